"""From gymnasium's spaces to the core's bounds and layouts, and whether data fits: for every host.

gymnasium is imported on first use: bounds that come as numbers need none.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from gtp_policy import ActionScaler, ObservationLayout
from gtp_policy.errors import DataError, UnsupportedSpaceError
from gtp_policy.export import ObservationFacts
from gtp_policy.spaces import check_not_masked

if TYPE_CHECKING:
    from gymnasium.spaces import Box, Space

Shape = tuple[int, ...]
Numbers = npt.NDArray[Any]


class Units(Protocol):
    """What a dataset says of its units: any dataset, of the core or of a host."""

    layout: ObservationLayout
    action_scaler: ActionScaler

    @property
    def gamma(self) -> float:
        """Discount factor of one step."""
        ...


def action_scaler(
    low: npt.ArrayLike, high: npt.ArrayLike, shape: Shape, *, advice: str = ""
) -> ActionScaler:
    """Returns bounds of actions as vectors.

    Args:
        low: Lower bounds, of that shape or a scalar for all dimensions.
        high: Upper bounds, likewise.
        shape: Shape of one action; flattened in C order.
        advice: What to do about bounds that do not fit, as the end of the message.

    Returns:
        The bounds.

    Raises:
        UnsupportedSpaceError: If the bounds have another shape, or are infinite or empty.

    Example:
        >>> from gtp_datasets.spaces import action_scaler
        >>> action_scaler(-1.0, [1.0, 2.0], (2,))
        ActionScaler(low=[-1.0, -1.0], high=[1.0, 2.0])
    """
    check_not_masked(low, high)
    try:
        vectors = [np.broadcast_to(bound, shape).reshape(-1) for bound in (low, high)]
    except ValueError as error:
        raise UnsupportedSpaceError(
            f"Action bounds have the wrong shape: got low {np.shape(low)} and high "
            f"{np.shape(high)}, expected scalars or arrays of shape {shape}. {advice}".rstrip()
        ) from error
    try:
        return ActionScaler(*vectors)
    except UnsupportedSpaceError as error:
        raise UnsupportedSpaceError(f"{error} {advice}".rstrip()) from error


def action_scaler_of(
    space: "Space[Any]",
    low: npt.ArrayLike | None = None,
    high: npt.ArrayLike | None = None,
    *,
    advice: str = "",
) -> ActionScaler:
    """Returns the bounds of an action space as vectors; a Box of any rank, flattened in C order.

    Args:
        space: The action space.
        low: Lower bounds instead of the space's, as for `action_scaler`.
        high: Upper bounds instead of the space's.
        advice: As for `action_scaler`.

    Returns:
        The bounds.

    Raises:
        UnsupportedSpaceError: If the space is no Box, or its bounds do not fit.

    Example:
        >>> from gymnasium.spaces import Box
        >>> from gtp_datasets.spaces import action_scaler_of
        >>> action_scaler_of(Box(-2.0, 2.0, (1, 2)))
        ActionScaler(low=[-2.0, -2.0], high=[2.0, 2.0])
    """
    from gymnasium.spaces import Box

    if not isinstance(space, Box):
        raise UnsupportedSpaceError(
            f"The action space does not fit: got {space}, expected a bounded Box. A flow map "
            "generates continuous actions; for discrete ones take an algorithm made for them, or a "
            "wrapper that offers a Box (one score per choice and an argmax; of a hybrid action, "
            "these with its numbers), as docs/explanation/discrete-actions.md shows. "
            f"{advice}".rstrip()
        )
    low, high = space.low if low is None else low, space.high if high is None else high
    return action_scaler(low, high, space.shape, advice=advice)


def members_of(space: "Space[Any]", action: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns actions in the units of a Box as members of it: of its shape, type and range.

    Numbers of a Box of integers are rounded to the nearest one.

    Args:
        space: The Box.
        action: Vectors in its units, shape (..., A).

    Returns:
        Actions of shape (..., *space.shape) and the type of the space.

    Example:
        >>> import numpy as np
        >>> from gymnasium.spaces import Box
        >>> from gtp_datasets.spaces import members_of
        >>> members_of(Box(0, 9, (1, 2), np.int8), np.float32([[0.4, 8.7], [-0.2, 9.3]]))
        array([[[0, 9]],
        <BLANKLINE>
               [[0, 9]]], dtype=int8)
    """
    box = cast("Box", space)
    rows = action.reshape(*action.shape[:-1], *box.shape)
    if rows.dtype == box.dtype:  # its own bounds have clipped it
        return rows
    if is_whole(box):
        low, high = box.low.astype(np.float64), box.high.astype(np.float64)
        return np.rint(rows.astype(np.float64)).clip(low, high).astype(box.dtype)
    with np.errstate(over="ignore"):  # of float16; clipped below
        return rows.astype(box.dtype).clip(box.low, box.high)


def is_whole(space: "Space[Any]") -> bool:
    """Returns whether the members of a space are whole numbers.

    Args:
        space: The space.

    Returns:
        The answer.

    Example:
        >>> import numpy as np
        >>> from gymnasium.spaces import Box
        >>> from gtp_datasets.spaces import is_whole
        >>> is_whole(Box(0, 9, (2,), np.int8)), is_whole(Box(0, 9, (2,)))
        (True, False)
    """
    return space.dtype is not None and space.dtype.kind in "iu"


def box_of(scaler: ActionScaler, shape: Shape | None = None, *, whole: bool = False) -> "Box":
    """Returns bounds as a space, by default of vectors in float32, as environments have them.

    Args:
        scaler: The bounds.
        shape: Of one action, with as many numbers as there are bounds; None: a vector.
        whole: Whether actions are whole numbers: the space is of int64 then.

    Returns:
        The space.

    Example:
        >>> from gtp_policy import ActionScaler
        >>> from gtp_datasets.spaces import box_of
        >>> box_of(ActionScaler([-2.0], [2.0]))
        Box(-2.0, 2.0, (1,), float32)
        >>> box_of(ActionScaler([-3.0], [3.0]), (), whole=True)
        Box(-3, 3, (), int64)
    """
    from gymnasium.spaces import Box

    dtype: type[Any] = np.int64 if whole else np.float32
    shape = scaler.low.shape if shape is None else shape
    low, high = (bound.reshape(shape).astype(dtype) for bound in (scaler.low, scaler.high))
    return Box(low, high, dtype=dtype)


def shape_of_box(part: "Space[Any]") -> Shape | None:
    """Returns the shape of a Box; None for any other space.

    Args:
        part: An observation space, or a part of one.

    Returns:
        The shape.

    Example:
        >>> from gymnasium.spaces import Box, Discrete
        >>> from gtp_datasets.spaces import shape_of_box
        >>> shape_of_box(Box(0, 1, (2, 3))), shape_of_box(Discrete(3))
        ((2, 3), None)
    """
    from gymnasium.spaces import Box

    return part.shape if isinstance(part, Box) else None


def layout_of(
    space: "Space[Any]",
    keys: Sequence[str] | None = None,
    *,
    shape_of: Callable[["Space[Any]"], Shape | None] = shape_of_box,
) -> ObservationLayout:
    """Returns how observations of a space become vectors.

    Args:
        space: The observation space.
        keys: Parts of a Dict in the order to join them; others are left out. Default: all, in the
            order of `ObservationLayout.of_dict`.
        shape_of: Shape of a part as a host passes it on; None for a part that it does not pass on.
            Default: Boxes alone.

    Returns:
        The layout.

    Raises:
        UnsupportedSpaceError: If the space or a part of it has no shape, or a key no part.

    Example:
        >>> from gymnasium.spaces import Box, Dict
        >>> from gtp_datasets.spaces import layout_of
        >>> space = Dict({key: Box(0, 1, (2,)) for key in ("achieved_goal", "observation")})
        >>> layout_of(space, ["observation", "achieved_goal"]).keys
        ('observation', 'achieved_goal')
    """
    from gymnasium.spaces import Dict, Tuple

    if not isinstance(space, Dict):
        shape = None if isinstance(space, Tuple) else shape_of(space)
        if shape is None or keys is not None:
            and_keys = "" if keys is None else f" and the keys {list(keys)}"
            raise UnsupportedSpaceError(
                f"The observation space does not fit: got {space}{and_keys}, expected a Box "
                "without keys or a Dict of Boxes. "
                "gymnasium.wrappers.FlattenObservation makes vectors of others."
            )
        return ObservationLayout(shape)
    shapes: dict[str, Shape] = {}
    for key in space.spaces if keys is None else keys:
        part = space.spaces.get(key)
        if isinstance(part, Dict | Tuple):
            raise UnsupportedSpaceError(
                f"The observation's part {key!r} has parts of its own: got {part}, expected a Box. "
                "Leave it out, by loading the dataset with obs_keys= of the other parts, or join "
                "its parts in a wrapper, e.g. gymnasium.wrappers.FlattenObservation."
            )
        shape = None if part is None else shape_of(part)
        if shape is None:
            raise UnsupportedSpaceError(
                f"The observation's part {key!r} does not fit: got {part}, which is no Box, "
                f"expected a Box; there are {sorted(space.spaces)}. Leave the part out by naming "
                "the others, or flatten it in a wrapper."
            )
        shapes[key] = shape
    return ObservationLayout.of_dict(shapes) if keys is None else ObservationLayout(shapes)


def has_parts(
    space: "Space[Any]",
    layout: ObservationLayout,
    *,
    shape_of: Callable[["Space[Any]"], Shape | None] = shape_of_box,
) -> bool:
    """Returns whether a layout can flatten the observations of a space.

    Args:
        space: The observation space; parts that the layout leaves out do not matter.
        layout: The layout.
        shape_of: As for `layout_of`.

    Returns:
        The answer.

    Example:
        >>> from gymnasium.spaces import Box, Dict
        >>> from gtp_policy import ObservationLayout
        >>> from gtp_datasets.spaces import has_parts
        >>> space = Dict(position=Box(0, 1, (2,)), speed=Box(0, 1, (3,)))
        >>> [has_parts(space, ObservationLayout(shapes)) for shapes in ({"speed": (3,)}, (3,))]
        [True, False]
    """
    from gymnasium.spaces import Dict

    if isinstance(space, Dict) != bool(layout.keys):
        return False
    parts = space.spaces if isinstance(space, Dict) else {"": space}
    return all(
        key in parts and shape_of(parts[key]) == shape
        for key, shape in zip(layout.keys or ("",), layout.shapes, strict=True)
    )


def same_vectors(first: ObservationLayout, second: ObservationLayout) -> bool:
    """Returns whether two layouts make the same vectors of what belongs to them.

    A plain array has the numbers of its vector in the same order where it is a vector; of two other
    shapes, such as (2, 3) and (3, 2), one may be the other turned.

    Args:
        first: A layout.
        second: Another one.

    Returns:
        The answer.

    Example:
        >>> from gtp_policy import ObservationLayout
        >>> from gtp_datasets.spaces import same_vectors
        >>> same_vectors(ObservationLayout((2, 3)), ObservationLayout((6,)))
        True
    """
    if first.keys or second.keys:
        return first == second
    # An axis of one element turns nothing.
    axes = [tuple(n for n in layout.shapes[0] if n > 1) for layout in (first, second)]
    flat = min(map(len, axes)) <= 1 and first.obs_dim == second.obs_dim
    return flat or axes[0] == axes[1]


def check_dataset(
    dataset: Units, layout: ObservationLayout, scaler: ActionScaler, gamma: float
) -> None:
    """Raises unless a dataset was made for the spaces and the discount factor of a policy.

    Args:
        dataset: The dataset.
        layout: Layout of the policy's observations.
        scaler: Bounds of its actions.
        gamma: Discount factor of its training.

    Raises:
        DataError: If the observations, the units of the actions or the discount factor differ.

    Example:
        >>> from gtp_policy import ActionScaler, ObservationLayout, OfflineDataset
        >>> from gtp_datasets.spaces import check_dataset
        >>> dataset = OfflineDataset.from_arrays(
        ...     obs=[[0.0]], action=[[0.0]], reward=[0.0], terminated=[1], truncated=[0],
        ...     low=[-2.0], high=[2.0])
        >>> check_dataset(dataset, ObservationLayout((1,)), ActionScaler([-2.0], [2.0]), 0.99)
    """
    # Of images the axes count: the same numbers in another order are another picture.
    turned = bool(getattr(dataset, "images", ())) and dataset.layout != layout
    if turned or not same_vectors(dataset.layout, layout):
        images = " Images need the axes in that order, np.moveaxis(images, -1, -3)." * turned
        raise DataError(
            f"The observations of the dataset do not fit: got {dataset.layout}, expected {layout}. "
            f"Choose keys and their order where you load it (obs_keys=).{images}"
        )
    if not dataset.action_scaler.is_close(scaler):
        raise DataError(
            f"The actions of the dataset have other units in its `action_scaler`: got "
            f"{dataset.action_scaler}, expected {scaler}, the bounds of the action space. Load it "
            "with low= and high= of the space."
        )
    if dataset.gamma != gamma:
        raise DataError(
            f"`gamma` of the dataset is not the policy's `gamma`: got {dataset.gamma}, expected "
            f"{gamma}. Make both with the same gamma."
        )


# Bounds of more elements, those of images, would make most of a policy's file.
_MOST_BOUNDS = 1024


def observation_facts(space: "Space[Any] | None") -> dict[str, ObservationFacts]:
    """Returns what a space says of observations besides their shapes, for a policy's file.

    Args:
        space: The observation space; None says nothing.

    Returns:
        Type and bounds by key of a Dict, or under "" of another space; bounds of up to 1024
        elements.

    Example:
        >>> from gymnasium.spaces import Box
        >>> from gtp_datasets.spaces import observation_facts
        >>> observation_facts(Box(0, 255, (2,), "uint8"))[""]
        ObservationFacts(dtype='uint8', low=(0.0, 0.0), high=(255.0, 255.0))
    """
    if space is None:
        return {}
    from gymnasium.spaces import Dict

    parts = dict(space.spaces) if isinstance(space, Dict) else {"": space}
    facts = {}
    for key, part in parts.items():
        low, high = _bounds(part)
        if low is not None and high is not None and low.size > _MOST_BOUNDS:
            low = high = None
        facts[key] = ObservationFacts(
            str(part.dtype or "float32"),
            *(None if v is None else tuple(map(float, v.reshape(-1))) for v in (low, high)),
        )
    return facts


def _bounds(part: "Space[Any]") -> tuple[Numbers | None, Numbers | None]:
    """Returns the least and the largest observation of a space that has them."""
    from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

    if isinstance(part, Box):
        return part.low, part.high
    if isinstance(part, Discrete):
        return np.array(part.start), np.array(part.start + part.n - 1)
    if isinstance(part, MultiDiscrete):
        return part.start, part.start + part.nvec - 1
    if isinstance(part, MultiBinary):
        return np.zeros(part.shape), np.ones(part.shape)
    return None, None
