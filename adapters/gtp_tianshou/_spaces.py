"""What a policy can act in, and Tianshou's observations as the core's vectors."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from tianshou.data import Batch, to_numpy
from torch import Tensor

from gtp_datasets import spaces
from gtp_policy import ActionScaler, ObservationLayout
from gtp_policy.errors import DataError, GTPError, UnsupportedSpaceError
from gtp_policy.spaces import real_array


def action_scaler_of(space: gym.Space[Any]) -> ActionScaler:
    """Returns the bounds of an action space as vectors; a Box of any rank, flattened in C order."""
    return spaces.action_scaler_of(
        space,
        advice="Keep DiscreteBCQ or DiscreteCQL for discrete actions; where a Box has no bounds, "
        "gymnasium.wrappers.TransformAction(env, lambda a: a, Box(low, high)) gives it some.",
    )


def check_layout(layout: ObservationLayout, space: gym.Space[Any]) -> None:
    """Raises unless a space has the parts that a layout names, in their shapes."""
    if not spaces.has_parts(space, layout):
        raise UnsupportedSpaceError(
            f"The observation space does not fit the layout: got {space}, expected {layout}. Leave "
            "one of the two out, or correct it."
        )


def plain(obs: Any) -> Any:  # noqa: ANN401 - Tianshou's observations are of any type
    """Returns observations without Tianshou's containers: an array, a tensor, or these by key."""
    if isinstance(obs, Batch):
        return {key: plain(obs[key]) for key in obs.get_keys()}
    if isinstance(obs, Mapping):
        return {key: plain(value) for key, value in obs.items()}
    return obs if isinstance(obs, Tensor) else real_array("obs", obs)


def flatten(layout: ObservationLayout, obs: Any) -> npt.NDArray[np.float32] | Tensor:  # noqa: ANN401
    """Returns observations as vectors, shape (B, O); raises where a number is not finite."""
    try:
        with np.errstate(over="ignore"):  # 1e39 becomes infinite in float32: found below
            flat: npt.NDArray[np.float32] | Tensor = layout.flatten(plain(obs))
    except GTPError:
        raise
    except (TypeError, ValueError) as error:
        raise DataError(
            f"`obs` holds no numbers: got {error}, expected arrays as in {layout}."
        ) from error
    finite = flat.isfinite() if isinstance(flat, Tensor) else np.isfinite(flat)
    if not finite.all():
        row, dim = (int(i[0]) for i in np.nonzero(~to_numpy(finite)))
        raise DataError(
            f"`obs` is not finite: got {float(flat[row, dim])} in row {row}, dimension {dim} of "
            f"{layout}, expected finite numbers. Look at what the environment returns."
        )
    return flat
