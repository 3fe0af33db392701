"""From gymnasium's spaces to the core's arrays: what a policy can act in, checked once."""

from collections.abc import Mapping
from typing import Any, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from tianshou.data import Batch, to_numpy
from torch import Tensor

from gtp_policy import ActionScaler, ObservationLayout
from gtp_policy.errors import DataError, GTPError, UnsupportedSpaceError


def action_scaler_of(space: gym.Space[Any]) -> ActionScaler:
    """Returns the bounds of an action space as vectors; a Box of any rank, flattened in C order."""
    if isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary):
        raise UnsupportedSpaceError(
            f"The action space is discrete: got {space}, expected a bounded Box, since a flow map "
            "moves continuous actions. Keep DiscreteBCQ or DiscreteCQL for this environment, or "
            "let a wrapper offer a Box and map it to its actions (one score per action and an "
            "argmax, say)."
        )
    if not isinstance(space, gym.spaces.Box):
        raise UnsupportedSpaceError(
            f"The action space does not fit: got {space}, expected a bounded Box. Flatten it to a "
            "Box in a wrapper."
        )
    if not np.issubdtype(space.dtype, np.floating):
        raise UnsupportedSpaceError(
            f"The action space holds no real numbers: got a Box of {space.dtype}, expected "
            "floating point. Offer a float Box in a wrapper that rounds."
        )
    try:
        return ActionScaler(space.low.reshape(-1), space.high.reshape(-1))
    except UnsupportedSpaceError as error:
        raise UnsupportedSpaceError(
            f"{error} With gymnasium.wrappers.RescaleAction or ClipAction an environment gets "
            "bounds."
        ) from error


def layout_of(space: gym.Space[Any]) -> ObservationLayout:
    """Returns how observations of a space become vectors; Dict keys in the house's order."""
    if isinstance(space, gym.spaces.Box):
        return ObservationLayout(space.shape)
    if isinstance(space, gym.spaces.Dict):
        other = {k: s for k, s in space.spaces.items() if not isinstance(s, gym.spaces.Box)}
        if other:
            raise UnsupportedSpaceError(
                f"The observation has parts that are no Box: got {other}, expected Boxes. Pass "
                "layout= without them, or flatten them in a wrapper."
            )
        return ObservationLayout.of_dict(
            {key: cast("gym.spaces.Box", part).shape for key, part in space.spaces.items()}
        )
    raise UnsupportedSpaceError(
        f"The observation space does not fit: got {space}, expected a Box or a Dict of Boxes. "
        "Flatten it with gymnasium.wrappers.FlattenObservation."
    )


def check_layout(layout: ObservationLayout, space: gym.Space[Any]) -> None:
    """Raises unless a space has the parts that a layout names, in their shapes."""
    parts = space.spaces if isinstance(space, gym.spaces.Dict) else {"": space}
    found = {k: s.shape for k, s in parts.items() if isinstance(s, gym.spaces.Box)}
    named = isinstance(space, gym.spaces.Dict) == bool(layout.keys)
    expected = dict(zip(layout.keys or ("",), layout.shapes, strict=True))
    if not named or any(found.get(key) != shape for key, shape in expected.items()):
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
    return obs if isinstance(obs, Tensor) else np.asarray(obs)


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
