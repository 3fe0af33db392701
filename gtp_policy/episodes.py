"""Episodes as people have them: mappings of arrays, lists or tensors, checked one by one."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gtp_policy.dataset_builder import OfflineDatasetBuilder, as_array, as_flags
from gtp_policy.errors import DataError, EmptyDatasetError, ShapeError, UnsupportedSpaceError
from gtp_policy.spaces import ActionScaler, ObservationLayout, check_not_masked

Array = npt.NDArray[Any]
Observations = Array | Mapping[str, Array]

# Every name that a field has in files of robotics and reinforcement learning, ours first.
NAMES: Mapping[str, tuple[str, ...]] = {
    "obs": ("obs", "observation", "observations"),
    "action": ("action", "actions"),
    "reward": ("reward", "rewards"),
    "terminated": (
        "terminated",
        "termination",
        "terminations",
        "terminal",
        "terminals",
        "is_terminal",
    ),
    "truncated": ("truncated", "truncation", "truncations", "timeout", "timeouts"),
    "next_obs": ("next_obs", "next_observation", "next_observations"),
    "done": ("done", "dones"),
    "is_last": ("is_last",),
    "is_first": ("is_first",),
}
"""The names of each field that `read_episode` knows; others are not looked at."""
FLAGS = ("terminated", "truncated", "done", "is_last", "is_first")
"""The fields that say where an episode ends, as `ends_of_flags` reads them."""
RLDS = "is_terminal"
"""The field that says, next to ``is_last``, that steps are as RLDS has them."""


class Episode(NamedTuple):
    """What `read_episode` makes of an episode: arrays whose lengths agree.

    Attributes:
        name: What messages call it.
        obs: Observations, T rows or T + 1, one array or one per key.
        action: Actions, T rows.
        reward: Rewards, shape (T,); None where there are none.
        terminated: Bool, shape (T,).
        truncated: Bool, shape (T,); set at the last row of an episode that has not terminated.
        next_obs: Next observations, T rows; None where ``obs`` says them.

    Example:
        >>> from gtp_policy.episodes import read_episode
        >>> read_episode({"obs": [[0.0], [1.0]], "action": [[0.5]]}, "first").truncated
        array([ True])
    """

    name: str
    obs: Observations
    action: Array
    reward: Array | None
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    next_obs: Observations | None


def ends_of_flags(
    flags: Mapping[str, npt.NDArray[np.bool_]], size: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Returns which rows are terminated and which truncated, by all flags that there are.

    ``done`` says that an episode has ended, not how. Next to ``truncated`` a row is terminated
    where it is done and not truncated; next to ``terminated`` it is truncated where it is done and
    not terminated. ``is_last`` marks the last row of an episode, which was cut unless
    ``terminated`` says otherwise; ``is_first`` marks the row behind it, and the last of all rows is
    one too.

    Args:
        flags: Those of `FLAGS` that there are, of shape (N,).
        size: N.

    Returns:
        Terminated and truncated, shape (N,) each.

    Raises:
        DataError: If ``done`` is there without ``terminated`` and ``truncated``, or flags
            contradict each other.

    Example:
        >>> import numpy as np
        >>> from gtp_policy.episodes import ends_of_flags
        >>> done, cut = np.array([False, True, True]), np.array([False, False, True])
        >>> ends_of_flags({"done": done, "truncated": cut}, 3)
        (array([False,  True, False]), array([False, False,  True]))
    """
    never = np.zeros(size, np.bool_)
    terminated, truncated = flags.get("terminated"), flags.get("truncated")
    for end in ("done", "is_last"):
        if end not in flags:
            continue
        if end == "done" and terminated is None and truncated is None:
            raise DataError(
                "`done` mixes two things: got it without `terminated` and `truncated`, expected "
                "one of these too. An episode that ended by itself is terminated; one that was cut "
                "(a time limit, the end of a log) is truncated. Say which it is."
            )
        _check_ends(end, flags[end], "terminated", terminated)
        if end == "is_last":
            _check_ends(end, flags[end], "truncated", truncated)
    if "done" in flags:
        done = flags["done"]
        if terminated is None:
            terminated = done & ~(never if truncated is None else truncated)
        elif truncated is None:
            truncated = done & ~terminated
        elif (odd := np.flatnonzero(done & ~terminated & ~truncated)).size:
            raise DataError(
                f"`done` contradicts the other flags: got it set at row {odd[0]}, where neither "
                "`terminated` nor `truncated` is, expected one of them. Correct them, or leave "
                "`done` out."
            )
    terminated = never if terminated is None else terminated
    truncated = never if truncated is None else truncated
    if "is_last" in flags:
        truncated = truncated | (flags["is_last"] & ~terminated)
    if "is_first" in flags:
        last = np.append(flags["is_first"][1:], True)[:size]
        for name in FLAGS[:-1]:
            if name in flags and (odd := np.flatnonzero(flags[name] & ~last)).size:
                raise DataError(
                    f"`{name}` contradicts `is_first`: got it set at row {odd[0]}, and `is_first` "
                    "not at the next, expected both. Correct them, or leave `is_first` out."
                )
        if "is_last" in flags and (odd := np.flatnonzero(last[:-1] & ~flags["is_last"][:-1])).size:
            raise DataError(
                f"`is_first` contradicts `is_last`: got it set at row {odd[0] + 1}, and `is_last` "
                "not at the one before, expected both. Correct them, or leave `is_first` out."
            )
        truncated = truncated | (last & ~terminated)
    return terminated, truncated


def without_last_actions(
    terminated: npt.NDArray[np.bool_],
    truncated: npt.NDArray[np.bool_],
    is_last: npt.NDArray[np.bool_],
    reward: Array | None,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Returns flags of steps as RLDS has them, whose last one of an episode is an observation.

    Its action and reward mean nothing there: what terminates is the step before it, and the last
    one counts as cut, so that it is left out where there is no observation behind it.

    Args:
        terminated: What ``is_terminal`` says, shape (N,).
        truncated: Bool, shape (N,).
        is_last: Bool, shape (N,).
        reward: Rewards, a warning of which tells what is lost; None without any.

    Returns:
        Terminated and truncated, shape (N,) each.

    References:
        | RLDS: an Ecosystem to Generate, Share and Use Datasets in Reinforcement Learning (Ramos et
        | al., 2021), https://arxiv.org/abs/2111.02767

    Example:
        >>> import numpy as np
        >>> from gtp_policy.episodes import without_last_actions
        >>> last = np.array([False, False, True])
        >>> without_last_actions(last, ~last & last, last, None)
        (array([False,  True, False]), array([False, False,  True]))
    """
    ends = np.flatnonzero(terminated & is_last)
    terminated, truncated = terminated.copy(), truncated.copy()
    terminated[ends], truncated[ends] = False, True
    before = ends[ends > 0] - 1
    terminated[before[~is_last[before]]] = True
    if reward is not None and np.any(np.asarray(reward)[ends] != 0):
        warnings.warn(
            "Steps with `is_last` and `is_terminal` are RLDS's: action and reward of an episode's "
            "last step mean nothing and are left out, and here some of these rewards are not 0. "
            "Where they are real, name the flags `terminated` and leave `is_last` out.",
            stacklevel=2,
        )
    return terminated, truncated


def _check_ends(
    end: str,
    ends: npt.NDArray[np.bool_],
    name: str,
    flag: npt.NDArray[np.bool_] | None,
) -> None:
    """Raises where a flag says that an episode ends and the one for all ends does not."""
    if flag is not None and (odd := np.flatnonzero(flag & ~ends)).size:
        raise DataError(
            f"`{name}` contradicts `{end}`: got it set at row {odd[0]}, where `{end}` is not, "
            f"expected both. Correct them, or leave `{end}` out."
        )


def read_episode(episode: Mapping[str, Any], name: str, *, copy: bool = False) -> Episode:
    """Checks one episode, as `OfflineDataset.from_episodes` describes it.

    Args:
        episode: The fields by name.
        name: What messages call the episode.
        copy: Whether no memory is shared with what was given, which may change then.

    Returns:
        The episode as arrays.

    Raises:
        DataError: If a field is missing, given twice, of another length or no numbers.

    Example:
        >>> from gtp_policy.episodes import read_episode
        >>> read_episode({"observations": [[0.0], [1.0]], "actions": [[0.5]]}, "first").obs.shape
        (2, 1)
    """
    try:
        return _read(_fields(episode), name, copy)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _fields(episode: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(episode, Mapping):
        raise DataError(
            f"An episode is no mapping: got {type(episode).__name__}, expected a dict with `obs` "
            "and `action`."
        )
    found = {}
    for field, names in NAMES.items():
        given = [name for name in names if name in episode and episode[name] is not None]
        if len(given) > 1:
            raise DataError(
                f"`{field}` is given twice: got {given}, expected one of them. Leave one out."
            )
        if given:
            found[field] = episode[given[0]]
    found[RLDS] = episode.get(RLDS) is not None and "is_last" in found
    for field in ("obs", "action"):
        if field not in found:
            raise DataError(
                f"`{field}` is missing: got {sorted(map(str, episode))}, expected one of "
                f"{', '.join(NAMES[field])}. Rename the field."
            )
    return found


def _read(given: Mapping[str, Any], name: str, copy: bool) -> Episode:
    obs, action = stacked("obs", given["obs"], copy), _array("action", given["action"], copy)
    next_obs = stacked("next_obs", given["next_obs"], copy) if "next_obs" in given else None
    steps = len(action) if action.ndim else 0
    if not steps:
        raise DataError(f"`action` is empty: got shape {action.shape}, expected a row per step.")
    rows = (steps,) if next_obs is not None else (steps, steps + 1)
    for field, value, lengths in (("obs", obs, rows), ("next_obs", next_obs, (steps,))):
        for key, part in _parts(field, value).items():
            got = len(part) if part.ndim else 0
            if got not in lengths:
                raise DataError(
                    f"`{key}` has the wrong length: got {got} rows, expected "
                    f"{' or '.join(map(str, lengths))} with {steps} actions. The observation after "
                    "the last action may follow as one more row."
                )
    reward = None
    if "reward" in given:
        reward = _array("reward", given["reward"], copy)
        if reward.shape == (steps, 1):
            reward = reward[:, 0]
        if reward.shape != (steps,):
            raise DataError(
                f"`reward` has the wrong shape: got {reward.shape}, expected ({steps},), one per "
                "action."
            )
    flags = {name: _flags(name, given[name], steps, copy) for name in FLAGS if name in given}
    if "is_first" in flags and (begins := np.flatnonzero(flags["is_first"][1:]) + 1).size:
        raise DataError(
            f"`is_first` is set behind the start: got True at row {begins[0]} of {steps}, expected "
            "it at row 0 only. Split the episode there."
        )
    terminated, truncated = ends_of_flags(flags, steps)
    if given.get(RLDS) and next_obs is None and rows_of(obs) == steps:
        terminated, truncated = without_last_actions(
            terminated, truncated, flags["is_last"], reward
        )
    early = np.flatnonzero(truncated[:-1])
    if len(early):
        raise DataError(
            f"`truncated` is set before the end: got True at row {early[0]} of {steps}, expected "
            "it at the last row only. Split the episode there."
        )
    truncated = truncated.copy()
    truncated[-1] |= not terminated[-1]
    return Episode(name, obs, action, reward, terminated, truncated, next_obs)


def _flags(name: str, value: Any, steps: int, copy: bool) -> npt.NDArray[np.bool_]:  # noqa: ANN401
    """Returns a flag per row: of one for the whole episode, at the row that it is of."""
    array = _array(name, value, copy)
    if array.ndim == 0:
        flags = np.zeros(steps, np.bool_)
        flags[0 if name == "is_first" else -1] = as_flags(name, array[None], 1)[0]
        return flags
    return as_flags(name, array[:, 0] if array.shape == (steps, 1) else array, steps)


def stacked(name: str, values: Any, copy: bool = False) -> Array | dict[str, Array]:  # noqa: ANN401
    """Returns rows of numbers as one array, or as one by key where the rows are mappings.

    Args:
        name: What messages call the values.
        values: An array, a tensor, a list or an object array of rows, or a mapping of these by key;
            rows may be mappings themselves.
        copy: As for `read_episode`.

    Returns:
        One array, or one per key.

    Raises:
        DataError: If rows differ in shape or keys, or hold no numbers.

    Example:
        >>> from gtp_policy.episodes import stacked
        >>> stacked("obs", [{"angle": 0.0}, {"angle": 1.0}])
        {'angle': array([0., 1.])}
    """
    if not isinstance(values, Mapping):
        values = _rows(values)
        if not (isinstance(values, list) and values and isinstance(values[0], Mapping)):
            return _array(name, values, copy)
        keys = set(values[0])
        for i, row in enumerate(values):
            if not isinstance(row, Mapping) or set(row) != keys:
                got = sorted(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
                raise DataError(
                    f"`{name}` changes its parts: got {got} at row {i}, expected "
                    f"{sorted(map(str, keys))} as in row 0."
                )
        values = {key: [row[key] for row in values] for key in values[0]}
    found = {}
    for key, part in values.items():
        own = f"{name}[{key!r}]"
        one = stacked(own, part, copy)
        if isinstance(one, dict):
            raise DataError(
                f"`{own}` has parts of its own: got {sorted(map(str, one))}, expected an array. "
                f"Put them next to the others, e.g. as {f'{key}/{next(iter(one), 0)}'!r}."
            )
        found[str(key)] = one
    return found


def _rows(values: Any) -> Any:  # noqa: ANN401 - whatever the caller has
    """Returns tensors as arrays, and arrays of objects as lists of what they hold."""
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    if isinstance(values, np.ma.MaskedArray):  # which would forget its mask as a list
        return values
    if isinstance(values, np.ndarray) and values.dtype.hasobject and values.ndim:
        values = values.tolist()
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return [x.detach().cpu().numpy() if isinstance(x, Tensor) else x for x in values]
    return values


def _array(name: str, values: Any, copy: bool) -> Array:  # noqa: ANN401 - whatever the caller has
    rows = _rows(values)
    array = as_array(name, rows)
    if copy and not isinstance(rows, list):  # a list has just become an array of its own
        array = array.copy()
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"`{name}` has the wrong dtype: got {array.dtype}, expected numbers. Encode words as "
            "numbers, or leave the field out."
        )
    return array


def rows_of(obs: Observations) -> int:
    """Returns how many rows observations have, of a mapping the first part.

    Args:
        obs: One array or one per key.

    Returns:
        The number.

    Example:
        >>> import numpy as np
        >>> from gtp_policy.episodes import rows_of
        >>> rows_of({"angle": np.zeros((3, 1))})
        3
    """
    return len(next(iter(obs.values())) if isinstance(obs, Mapping) else obs)


def _parts(name: str, obs: Observations | None) -> dict[str, Array]:
    if obs is None:
        return {}
    return (
        {f"{name}[{key!r}]": part for key, part in obs.items()}
        if isinstance(obs, Mapping)
        else {name: obs}
    )


def layout_of(episode: Episode, obs_keys: Sequence[str] | None = None) -> ObservationLayout:
    """Returns how an episode's observations become vectors.

    Args:
        episode: The episode.
        obs_keys: Parts of Dict observations in the order to join them; others are left out.
            Default: all, in the order of `ObservationLayout.of_dict`.

    Returns:
        The layout.

    Raises:
        DataError: If a key is missing, or keys are given for an array.

    Example:
        >>> from gtp_policy.episodes import layout_of, read_episode
        >>> layout_of(read_episode({"obs": [[0.0, 0.0]] * 2, "action": [[0.5]]}, "first"))
        ObservationLayout((2,))
    """
    obs = episode.obs
    if not isinstance(obs, Mapping):
        if obs_keys is not None:
            raise DataError(
                f"`obs_keys` does not fit: got {list(obs_keys)} with observations that have no "
                "parts, expected none. Leave it out."
            )
        return ObservationLayout(obs.shape[1:])
    missing = [key for key in obs_keys or () if key not in obs]
    if missing or (obs_keys is not None and not obs_keys):
        raise DataError(
            f"`obs_keys` does not fit: got {list(obs_keys or ())}, expected some of {sorted(obs)}."
        )
    if obs_keys is None:
        return ObservationLayout.of_dict({key: part.shape[1:] for key, part in obs.items()})
    return ObservationLayout({key: obs[key].shape[1:] for key in obs_keys})


def scaler_of(
    actions: Iterable[Array],
    low: npt.ArrayLike | None,
    high: npt.ArrayLike | None,
    unbounded: str,
) -> ActionScaler:
    """Returns the bounds of actions as vectors: those given, and with ``"data"`` the rest of it.

    Args:
        actions: Rows of actions of any shape, one array or more.
        low: Lower bounds of an action, a scalar or of its shape; None or infinite: not known.
        high: Upper bounds, likewise.
        unbounded: ``"data"`` to take bounds that are not known from the actions, with a warning;
            ``"error"`` to raise.

    Returns:
        The bounds.

    Raises:
        DataError: If ``unbounded`` is unknown.
        UnsupportedSpaceError: If a dimension stays without bounds, or they do not fit.

    Example:
        >>> import numpy as np
        >>> from gtp_policy.episodes import scaler_of
        >>> scaler_of([np.zeros((5, 2, 3))], low=-1.0, high=1.0, unbounded="error").action_dim
        6
    """
    if unbounded not in ("error", "data"):
        raise DataError(f"`unbounded` is unknown: got {unbounded!r}, expected 'error' or 'data'.")
    check_not_masked(low, high)
    for name, given in (("low", low), ("high", high)):
        if isinstance(given, Tensor) and given.is_meta:
            raise UnsupportedSpaceError(
                f"Action bounds are no numbers: got `{name}` on the device meta, expected numbers."
            )
    arrays = [array for array in actions if len(array)]
    shape = arrays[0].shape[1:] if arrays else np.asarray(low).shape
    bounds = []
    for given, unknown in ((low, -np.inf), (high, np.inf)):
        bound = np.asarray(unknown if given is None else given)
        # One vector is flattened in C order as actions are; of two shapes it is not clear how.
        for other in (shape, np.asarray(low).shape):
            if min(bound.ndim, len(other)) > 1 and bound.shape != other:
                raise UnsupportedSpaceError(
                    f"Action bounds have the wrong shape: got {bound.shape}, expected {other}, "
                    "that of an action and of both bounds, or one number."
                )
        bounds.append(np.broadcast_to(bound, shape).ravel() if bound.ndim == 0 else bound.ravel())
    if unbounded == "data" and arrays:
        rows = [np.reshape(array, (len(array), -1)) for array in arrays]
        with np.errstate(all="ignore"):
            ends = [end(row, 0) for row in rows for end in (np.min, np.max)]
        return ActionScaler.of_data(np.stack(ends), *bounds)
    try:
        return ActionScaler(*bounds)
    except UnsupportedSpaceError as error:
        raise UnsupportedSpaceError(
            f"{error} Pass low= and high=, or unbounded='data' to take what is not known from the "
            "data."
        ) from error


def append_episode(
    builder: OfflineDatasetBuilder, episode: Episode, layout: ObservationLayout
) -> None:
    """Writes the transitions of an episode behind those already there.

    Args:
        builder: The table.
        episode: The episode.
        layout: How its observations become vectors.

    Raises:
        DataError: If its observations have other parts or shapes than the layout, or a number is
            not finite or outside its bounds.

    Example:
        >>> from gtp_policy import ActionScaler
        >>> from gtp_policy.dataset_builder import OfflineDatasetBuilder
        >>> from gtp_policy.episodes import append_episode, layout_of, read_episode
        >>> episode = read_episode({"obs": [[0.0], [1.0]], "action": [[0.5]]}, "first")
        >>> builder = OfflineDatasetBuilder(1, obs_dim=1, action_scaler=ActionScaler([-1], [1]))
        >>> append_episode(builder, episode, layout_of(episode))
        >>> builder.filled
        1
    """
    try:
        with np.errstate(over="ignore"):  # what is infinite in float32 is found by the builder
            obs = layout.flatten(episode.obs)
            next_obs = None if episode.next_obs is None else layout.flatten(episode.next_obs)
        ended, cut = episode.terminated, episode.truncated
        steps = np.arange(len(ended))
        if next_obs is not None:
            kept, following = steps, next_obs
        elif len(obs) > len(steps):
            kept, following = steps, obs[1:]
        else:
            # What ends has a value of 0 whatever is seen then. What is cut needs its next
            # observation, and the last row has none: it is left out, and the one before is the end.
            kept = steps if ended[-1] else steps[:-1]
            following = obs[kept + ~ended[kept]]
            cut = cut.copy()
            cut[kept[-1:]] |= ~ended[kept[-1:]]
        look_at(builder, episode.obs, layout)
        action = episode.action
        builder.append(
            obs=obs[kept],
            action=action.reshape(len(action), -1)[kept],
            reward=None if episode.reward is None else episode.reward[kept],
            next_obs=following,
            terminated=ended[kept],
            truncated=cut[kept],
            ends=kept == kept[-1:],
            rows=kept,
        )
    except (DataError, ShapeError) as error:
        raise DataError(f"{episode.name}: {error}") from error


def look_at(builder: OfflineDatasetBuilder, obs: Observations, layout: ObservationLayout) -> None:
    """Shows a builder observations as they were before they became float32 vectors.

    Args:
        builder: The table.
        obs: Rows of observations that the layout fits.
        layout: How they become vectors.

    Example:
        >>> import numpy as np
        >>> from gtp_policy import ActionScaler, ObservationLayout
        >>> from gtp_policy.dataset_builder import OfflineDatasetBuilder
        >>> from gtp_policy.episodes import look_at
        >>> builder = OfflineDatasetBuilder(1, obs_dim=1, action_scaler=ActionScaler([-1], [1]))
        >>> look_at(builder, np.array([[5.3e6], [5.3e6 + 0.2]]), ObservationLayout((1,)))
    """
    start = 0
    for key, shape in zip(layout.keys or ("",), layout.shapes, strict=True):
        part = obs[key] if isinstance(obs, Mapping) else obs
        width = math.prod(shape)
        builder.look(part.reshape(len(part), width), start)
        start += width
    builder.looked = True


def check_any(episodes: Sequence[Episode], source: str) -> None:
    """Raises unless there is an episode, and all of them have actions of one shape.

    Args:
        episodes: The episodes.
        source: Where they come from.

    Raises:
        EmptyDatasetError: If there is none.
        DataError: If one has actions of another shape than the first.

    Example:
        >>> from gtp_policy.episodes import check_any
        >>> check_any([], "a folder")
        Traceback (most recent call last):
        ...
        gtp_policy.errors.EmptyDatasetError: There is no episode: got 0 from a folder, expected at \
least 1.
    """
    if not episodes:
        raise EmptyDatasetError(f"There is no episode: got 0 from {source}, expected at least 1.")
    for episode in episodes:
        check_like(episode, episodes[0])


def check_like(episode: Episode, first: Episode) -> None:
    """Raises unless an episode has actions of the shape that those of the first one have.

    Args:
        episode: The episode.
        first: The first one.

    Raises:
        DataError: If it has others.

    Example:
        >>> from gtp_policy.episodes import check_like, read_episode
        >>> one = read_episode({"obs": [[0.0], [1.0]], "action": [[0.5]]}, "first")
        >>> check_like(one, one)
    """
    got, expected = episode.action.shape[1:], first.action.shape[1:]
    if got != expected:
        raise DataError(
            f"{episode.name}: `action` has the wrong shape: got rows of {got}, expected rows "
            f"of {expected} as in {first.name}."
        )
