"""From observations as an environment shows them to actions as it takes them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gtp_policy.errors import DataError, ShapeError
from gtp_policy.functional import check_actions
from gtp_policy.spaces import ActionScaler, ObservationLayout, real_array


class Seen(NamedTuple):
    """Observations as vectors, and what their actions have to be given back as.

    Attributes:
        rows: Shape (B, m O), float32, m observations in one, the oldest first.
        single: Whether it was one observation, without a batch dimension.
        tensor: Whether it came as tensors.
        device: Where it came from.
    """

    rows: Tensor
    single: bool
    tensor: bool
    device: torch.device


def seen(obs: Any, layout: ObservationLayout, history: int) -> Seen:  # noqa: ANN401 - checked here
    """Makes vectors of one observation or several.

    Args:
        obs: An array or tensor, or a mapping of such, of the layout's shapes behind (m,) of a
            history and (B,) of several.
        layout: How one observation becomes a vector.
        history: m.

    Raises:
        ShapeError: If a part is missing or has another shape.
        DataError: If a part holds no real numbers.
    """
    named = isinstance(obs, Mapping)
    given = dict(obs) if named else {"": obs}
    if named != bool(layout.keys):
        raise ShapeError(
            f"The observation has the wrong structure: got {type(obs).__name__}, expected "
            f"{f'a mapping with {list(layout.keys)}' if layout.keys else 'one array'}."
        )
    past = (history,) if history > 1 else ()
    parts: dict[str, Tensor] = {}
    single, tensor, device = [], [], torch.device("cpu")
    for key, shape in zip(layout.keys or ("",), layout.shapes, strict=True):
        name = f"obs[{key!r}]" if named else "obs"
        if key not in given:
            raise ShapeError(
                f"`{name}` is missing: got {sorted(given)}, expected {list(layout.keys)}."
            )
        part, one = given[key], (*past, *shape)
        tensor.append(isinstance(part, Tensor))
        if not isinstance(part, Tensor):
            # A copy: torch warns of arrays that must not be written to.
            with np.errstate(over="ignore"):  # infinity is refused, in words
                part = torch.from_numpy(np.array(real_array(name, part), np.float32))
        elif part.is_complex() or part.layout != torch.strided:
            raise DataError(
                f"`{name}` is of the wrong kind: got {part.dtype}, {part.layout}, expected real "
                "numbers in a dense tensor."
            )
        else:
            device = part.device
        if tuple(part.shape) != one and tuple(part.shape[1:]) != one:
            several = "(B" + "".join(f", {n}" for n in one) + ")"
            raise ShapeError(
                f"`{name}` has the wrong shape: got {tuple(part.shape)}, expected {one} of one "
                f"observation or {several} of several.{_of_a_history(history)}"
            )
        single.append(tuple(part.shape) == one)
        parts[key] = (part.unsqueeze(0) if single[-1] else part).reshape(-1, *shape)
    if len(set(single)) > 1 or len(set(tensor)) > 1:
        raise ShapeError(
            "The parts of the observation disagree: got one and several, or arrays and tensors, "
            "expected all alike."
        )
    rows = layout.flatten(parts if named else parts[""])
    return Seen(rows.reshape(-1, history * layout.obs_dim), single[0], tensor[0], device)


def in_box(
    action: Tensor, scaler: ActionScaler, chunk: int, like: Seen
) -> Tensor | npt.NDArray[np.floating]:
    """Returns actions in the units of the environment, of the kind that the observations were.

    Args:
        action: In [-1, 1], shape (B, h A).
        scaler: Bounds of the action of one step.
        chunk: h.
        like: The observations.

    Returns:
        Members of the Box: shape (A,) of one observation, (B, A) of several; with chunks (h, A)
        and (B, h, A).

    Raises:
        DataError: If one on the CPU is not finite.
    """
    # Bounds that are rounded to 16 bits may lie outside the Box, and NumPy has no bfloat16.
    action = action.float() if action.dtype.itemsize < 4 else action
    steps = (chunk,) if chunk > 1 else ()
    boxed = scaler.to_box(action.reshape(-1, *steps, action.shape[-1] // chunk))
    boxed = boxed.to(like.device)
    check_actions(boxed)
    boxed = boxed[0] if like.single else boxed
    return boxed if like.tensor else boxed.numpy()


def _of_a_history(history: int) -> str:
    if history == 1:
        return ""
    return (
        f" The policy looks at {history} observations, the oldest first; learner.player() takes "
        "them one at a time and remembers."
    )
