"""Which columns of a file are which field: by the names that are known, or as the caller says."""

import fnmatch
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch

from gtp_policy import ObservationLayout, OfflineDataset, episodes
from gtp_policy.dataset_builder import OfflineDatasetBuilder, as_flags
from gtp_policy.errors import DataError, EmptyDatasetError
from gtp_policy.shards import builders_write, check_parts

Array = npt.NDArray[np.generic]
Wanted = str | Sequence[str] | None | Literal[False]
"""Names or patterns of columns; None: by the known names; False: none, although there are some."""

ENDINGS: Mapping[str, tuple[str, ...]] = {
    "npz": (".npz",),
    "csv": (".csv", ".tsv"),
    "hdf5": (".hdf5", ".h5"),
}
"""How names of files end, in small letters, by their kind."""
EPISODE = ("episode", "episode_id", "episode_index", "traj_id")
# Taken where nothing else says where an episode was cut. `demo` and `rollout` alone may be flags.
GUESSED = (
    "episode_idx",
    "episode_number",
    "traj",
    "trajectory",
    "trajectory_id",
    "demo_id",
    "rollout_id",
)
ENDS = "episode_ends"  # an array of npz: the number of the row behind each episode's last
_CUTS = ("episode", "truncated", "done", "is_last", "is_first")
_TIMES = ("t", "time", "timestamp", "step", "timestep", "time_step", "frame_index")
FIELDS = (*episodes.NAMES, "episode")
# Of a number in a name: Python reads no more than some thousand, and nothing has as many.
_MOST_DIGITS = 300
_LONGEST_NAME = 256  # bytes, of an episode: names are sorted, and repeated ones pack to nothing


def choose_all(available: Sequence[str], wanted: Mapping[str, Wanted]) -> dict[str, list[str]]:
    """Returns the columns of each field that there is.

    Args:
        available: Columns of the file, in their order.
        wanted: What the caller says of each field.

    Returns:
        Names of columns by field.

    Raises:
        DataError: If a field is unknown, or a column is not there, or needed and not found.
    """
    unknown = sorted(wanted.keys() - set(FIELDS))
    own = dict(wanted)
    if own.get("terminated") is False or None not in (own.get("terminated"), own.get("truncated")):
        # What the caller says goes for all rows.
        own |= dict.fromkeys({*episodes.FLAGS} - {"terminated", "truncated"}, False)
    if unknown:
        raise DataError(
            f"The mapping names no field: got {unknown}, expected some of {', '.join(FIELDS)}."
        )
    groups = {field: _choose(available, field, own.get(field)) for field in FIELDS}
    groups["next_obs"] = _paired(groups["obs"], groups["next_obs"])
    found = {
        field: list(dict.fromkeys(name for group in own_groups for name in group))
        for field, own_groups in groups.items()
    }
    if own.get("episode") is None and not any(map(found.get, _CUTS)) and ENDS not in available:
        used = {name for names in found.values() for name in names}
        found["episode"] = [n for n in GUESSED if n in available and n not in used][:1]
    if found["done"] and not found["terminated"] and not found["truncated"]:
        name = found["done"][0]
        raise DataError(
            f"`{name}` mixes two things: got it without `terminated` and `truncated`, expected one "
            "of these too. An episode that ended by itself is terminated; one that was cut (a time "
            f"limit, the end of a log) is truncated. Say which it is: terminated={name!r} or "
            f"truncated={name!r}; terminated=False leaves it out."
        )
    for field in ("obs", "action"):
        if not found[field]:
            raise DataError(
                f"`{field}` is not found: got the columns {_shown(available)}, expected one of "
                f"{', '.join(episodes.NAMES[field])}. Say which it is, e.g. {field}='position', or "
                f"a list or a pattern such as {field}={'joint_*'!r}."
            )
    return {field: columns for field, columns in found.items() if columns}


class Choice:
    """Which columns are which field: as the first file says, and the same names in all others.

    A pattern would find the columns of each file in its own order, and the numbers of one would
    stand where those of another belong.

    Args:
        wanted: What the caller says of each field.
    """

    def __init__(self, wanted: Mapping[str, Wanted]) -> None:
        self.wanted = wanted
        self._available: tuple[str, ...] = ()
        self._first: tuple[str, dict[str, list[str]]] | None = None

    def __call__(self, available: Sequence[str], source: str = "") -> dict[str, list[str]]:
        """Returns the columns of each field, in the order of the first file.

        Args:
            available: Columns of the file, in their order.
            source: What messages call the file, where it is one of several.

        Returns:
            Names of columns by field.

        Raises:
            DataError: As of `choose_all`, or if a field is of other columns than in the first file.
        """
        if self._first is not None and tuple(available) == self._available:
            return self._first[1]
        try:
            found = choose_all(available, self.wanted)
        except DataError as error:
            raise DataError(f"{source}: {error}" if source else str(error)) from error
        if self._first is None:
            self._available, self._first = tuple(available), (source, found)
        first, expected = self._first
        for field in FIELDS:
            got, own = found.get(field, []), expected.get(field, [])
            if set(got) != set(own):
                which = f", or name those to read with a list, {field}=[...]"
                raise DataError(
                    f"{source}: `{field}` is of other columns than in {first}: got {_shown(got)}, "
                    f"expected {_shown(own)}. Give them the same names everywhere"
                    f"{which if field in self.wanted else ''}."
                )
        return expected


def _choose(available: Sequence[str], field: str, wanted: Wanted) -> list[list[str]]:
    """Returns the columns of a field: those of each name or pattern together."""
    if wanted is False:
        return []
    if wanted is None:
        names = EPISODE if field == "episode" else episodes.NAMES[field]
        known: list[list[str]] = [[name] for name in names if name in available]
        for name in names:
            parts = re.compile(rf"{re.escape(name)}[_.\[ ]?\d+\]?")  # obs_0, obs.0, obs[0]
            if numbered := [column for column in available if parts.fullmatch(column)]:
                known.append(numbered)
        if len(known) > 1:
            raise DataError(
                f"`{field}` may be several columns: got "
                f"{_shown([name for own in known for name in own])}, expected one name that is "
                f"known, or one with numbers. Say which it is, with a name or a list: {field}=..."
            )
        return [_counted(field, found) if found[0] not in names else found for found in known]
    patterns = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise DataError(
            f"`{field}` is no name of a column: got {wanted!r}, expected a name, a pattern, a list "
            "of these, or False."
        )
    found: list[list[str]] = []
    for pattern in patterns:
        matches = [pattern] if pattern in available else fnmatch.filter(available, pattern)
        if not matches:
            raise DataError(
                f"`{field}` names a column that is not there: got {pattern!r}, expected some of "
                f"{_shown(available)}."
            )
        numbers = _numbers(matches)
        found.append(
            matches if numbers is None else [numbers[number] for number in sorted(numbers)]
        )
    return found


def _numbers(names: Sequence[str]) -> dict[int, str] | None:
    """Returns names by their numbers, where they are one name and a number; None: they are not."""
    found: dict[int, str] = {}
    words = set()
    for name in names:
        # Not by an expression, which tries every place in a long row of digits.
        head = name.removesuffix("]")
        word = _without_digits(head)
        digits = head[len(word) :]
        if not 0 < len(digits) <= _MOST_DIGITS:
            return None
        words.add(word[:-1] if word[-1:] in tuple("_.[ ") else word)
        found[int(digits)] = name
    return found if len(words) == 1 and len(found) == len(names) else None


def _without_digits(name: str) -> str:
    """Returns a name without the digits at its end."""
    stop = len(name)
    while stop and name[stop - 1].isdecimal():
        stop -= 1
    return name[:stop]


def _counted(field: str, names: Sequence[str]) -> list[str]:
    """Returns numbered columns in the order of their numbers, which have to be all there."""
    numbers = _numbers(names) or {}
    first = min(numbers, default=0)
    if set(numbers) != set(range(first, first + len(names))) or first > 1:
        raise DataError(
            f"`{field}` has numbered columns that do not follow each other: got {_shown(names)}, "
            "expected each number once, from 0 or 1 on. Say which they are with a list or a "
            f"pattern, e.g. {field}={f'{_beginning(names)}*'!r}."
        )
    return [numbers[number] for number in sorted(numbers)]


def _paired(obs: list[list[str]], next_obs: list[list[str]]) -> list[list[str]]:
    """Returns next observations in the order of the observations that they follow.

    By what their names have besides what all of them have: a number, or a word. A single name
    stands where the caller has put it.
    """
    if not next_obs:
        return []
    if list(map(len, obs)) != list(map(len, next_obs)):
        obs, next_obs = ([[name for group in side for name in group]] for side in (obs, next_obs))
    found = []
    for own, following in zip(obs, next_obs, strict=True):
        keys, others = _keys(own), _keys(following)
        if len(own) == 1 or len(own) != len(following):  # which the loaders refuse
            found.append(following)
        elif keys.keys() == others.keys():
            found.append([others[key] for key in keys])
        else:
            raise DataError(
                f"`next_obs` is of other columns than `obs`: got {_shown(following)} for "
                f"{_shown(own)}, expected the same numbers or endings. Pass both as lists in the "
                "same order."
            )
    return found


def _keys(names: Sequence[str]) -> dict[int | str, str]:
    """Returns names by what tells them apart, in their order."""
    if (numbers := _numbers(names)) is not None:
        return {number: name for number, name in numbers.items()}
    same = len(_beginning(names))
    return {name[same:]: name for name in names}


def _beginning(names: Sequence[str]) -> str:
    """Returns the letters that all names begin with."""
    first, last = min(names), max(names)
    same = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return first[: next(same, min(len(first), len(last)))]


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"{sorted(names)[:20]}{more}"


def flat_dataset(
    obs: Array | Mapping[str, Array],
    fields: Mapping[str, Array],
    *,
    ends: npt.NDArray[np.bool_] | None,
    low: npt.ArrayLike | None,
    high: npt.ArrayLike | None,
    gamma: float,
    out_of_bounds: Literal["error", "clip"],
    unbounded: Literal["error", "data"],
    device: torch.device | str,
    source: str,
) -> OfflineDataset:
    """Puts columns of transitions in time order together.

    Args:
        obs: Observations, one array or one per key, N rows.
        fields: The other fields by name.
        ends: Whether an episode ends with a row whatever its flags say, shape (N,); None: nothing
            shows it.
        low: As for `OfflineDataset.from_arrays`.
        high: Likewise.
        gamma: Likewise.
        out_of_bounds: Likewise.
        unbounded: Likewise.
        device: Likewise.
        source: Where the data comes from.

    Returns:
        The dataset.

    Raises:
        DataError: If nothing shows where an episode ends, or a field is bad.
        EmptyDatasetError: If no transition is left.
    """
    action = fields["action"]
    size = len(action) if action.ndim else 0
    if not size:
        raise EmptyDatasetError(
            f"The dataset is empty: got 0 transitions from {source}, expected at least 1."
        )
    if ends is None and not fields.keys() & {*episodes.FLAGS, episodes.RLDS}:
        raise DataError(
            "Nothing shows where an episode ends: got neither `terminated` nor `truncated` nor "
            "`episode`, expected one of them. Name the column, or pass episode=False if all rows "
            "are one episode."
        )
    rlds = episodes.RLDS in fields
    fields = {"terminated" if n == episodes.RLDS else n: part for n, part in fields.items()}
    given = {n: as_flags(n, _column(fields[n]), size) for n in episodes.FLAGS if n in fields}
    terminated, truncated = episodes.ends_of_flags(given, size)
    if rlds and "next_obs" not in fields:
        reward = _column(fields["reward"]) if "reward" in fields else None
        terminated, truncated = episodes.without_last_actions(
            terminated, truncated, given["is_last"], reward
        )
    if ends is not None:
        truncated = truncated | (ends & ~terminated)
    parts = obs if isinstance(obs, Mapping) else {"": obs}
    for key, part in parts.items():
        if part.shape[:1] != (size,):
            raise DataError(
                f"`obs` has the wrong shape: got {part.shape}{f' of {key}' if key else ''}, "
                f"expected {size} rows, one per action."
            )
    shapes = {key: part.shape[1:] for key, part in parts.items()}
    layout = ObservationLayout(shapes if isinstance(obs, Mapping) else shapes[""])
    if builders_write():
        check_parts(layout.keys, layout.shapes)
    builder = OfflineDatasetBuilder(
        size,
        obs_dim=layout.obs_dim,
        action_scaler=episodes.scaler_of([action], low, high, unbounded),
        gamma=gamma,
        out_of_bounds=out_of_bounds,
    )
    with np.errstate(over="ignore"):  # what is infinite in float32 is found by the builder
        vectors = layout.flatten(cast(Any, obs))
        episodes.look_at(builder, cast(Any, obs), layout)
        builder.extend(
            obs=vectors,
            action=action.reshape(size, -1),
            reward=_column(fields["reward"]) if "reward" in fields else None,
            next_obs=layout.flatten(cast(Any, fields["next_obs"]))
            if "next_obs" in fields
            else None,
            terminated=terminated,
            truncated=truncated,
            ends=ends,
        )
    return OfflineDataset.from_builder(builder, device=device, layout=layout, source=source)


def as_named(
    fields: Mapping[str, Any], chosen: Mapping[str, Sequence[str]], wanted: Mapping[str, Wanted]
) -> dict[str, Any]:
    """Returns fields in which flags that have RLDS's names, not by the caller's word, keep them.

    Args:
        fields: The fields by name.
        chosen: Names of columns by field.
        wanted: What the caller says of each field.
    """
    rlds = chosen.get("terminated") == [episodes.RLDS] and "is_last" in chosen
    own = episodes.RLDS if rlds and wanted.get("terminated") is None else "terminated"
    return {own if name == "terminated" else name: part for name, part in fields.items()}


def _column(array: Array) -> Array:
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def ends_of(ids: Array, name: str = "episode") -> npt.NDArray[np.bool_]:
    """Returns where the number of the episode changes, and the last row.

    Args:
        ids: Number of the episode by row, shape (N,).
        name: What messages call them: the column.

    Raises:
        DataError: If a row has no number, an episode is in several places, or has several numbers.
    """
    ids = _column(ids)
    if ids.ndim != 1:
        raise DataError(
            f"`{name}` has the wrong shape: got {ids.shape}, expected one number per row. Name "
            "one column, or pass episode=False if it is none."
        )
    if ids.dtype.kind not in "fiubUS":
        raise DataError(
            f"`{name}` has the wrong dtype: got {ids.dtype}, expected numbers or words. Number the "
            "episodes."
        )
    if ids.dtype.kind == "f" and (unknown := np.flatnonzero(~np.isfinite(ids))).size:
        raise DataError(
            f"`{name}` has no number of the episode: got {ids[unknown[0]]} at row {unknown[0]} "
            f"({unknown.size} such rows among {len(ids)}), expected one in every row. Fill the "
            "empty cells, or leave the rows out."
        )
    if not len(ids):
        return np.zeros(0, np.bool_)
    # Beyond that, a neighbour's number is the same one: pyarrow reads long rows of digits so.
    exact = 2.0 ** (np.finfo(str(ids.dtype)).nmant + 1) if ids.dtype.kind == "f" else math.inf
    if ids.dtype.kind == "f" and (wrong := (ids % 1 != 0) | (np.abs(ids) >= exact)).any():
        raise DataError(
            f"`{name}` has numbers that may be of two episodes: got {ids[np.argmax(wrong)]!s} at "
            f"row {np.argmax(wrong)} as {ids.dtype}, expected whole numbers below {exact:.0f}. "
            "Number the episodes anew, or name another column."
        )
    if ids.dtype.kind in "US" and ids.dtype.itemsize > _LONGEST_NAME:  # each takes as much
        raise DataError(
            f"`{name}` has names that are too long: got {ids.dtype}, expected at most "
            f"{_LONGEST_NAME} bytes each. Number the episodes."
        )
    ends = np.append(ids[1:] != ids[:-1], True)
    starts = np.flatnonzero(np.append(True, ends[:-1]))
    _, first = np.unique(ids[starts], return_index=True)
    if len(first) != len(starts):
        again = np.setdiff1d(starts, starts[first])
        raise DataError(
            f"`{name}` is not in order: got {ids[again[0]]} again at row {again[0]}, expected the "
            "rows of an episode together. Sort them by episode and time."
        )
    return ends


def times_of(available: Sequence[str], chosen: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the columns that say when a row was, where one has the number of its episode.

    Args:
        available: Columns of the file.
        chosen: Names of columns by field; what is one of them is no time.
    """
    used = {name for names in chosen.values() for name in names}
    return [n for n in _TIMES if n in available and n not in used] if "episode" in chosen else []


def check_times(name: str, times: npt.NDArray[Any], ids: npt.NDArray[Any]) -> None:
    """Raises where a row was before the one that stands above it in its episode.

    Args:
        name: The column that says when.
        times: What it says by row; what are no numbers, one per row, are not looked at.
        ids: Number of the episode by row.

    Raises:
        DataError: If time falls within an episode.
    """
    times, ids = cast(Any, _column(times)), cast(Any, _column(ids))
    if times.dtype.kind not in "iuf" or times.ndim != 1 or times.shape != ids.shape:
        return
    falls = np.flatnonzero((times[1:] < times[:-1]) & (ids[1:] == ids[:-1]))
    if falls.size:
        row = int(falls[0]) + 1
        raise DataError(
            f"`{name}` is not in order: got {times[row]} behind {times[row - 1]} at row {row}, in "
            f"episode {ids[row]}, expected numbers that do not fall. Sort the rows by episode and "
            "time, or rename the column if it is no time."
        )


def split_episodes(
    fields: Mapping[str, Any],
    source: str,
    *,
    id_name: str = "episode",
    ends: npt.NDArray[np.bool_] | None = None,
) -> Iterator[episodes.Episode]:
    """Yields the episodes of one file among several: it is one, unless it says where others begin.

    Args:
        fields: The fields by name; `episode` is the number of the episode by row, or of the file.
        source: What messages call the file.
        id_name: What messages call the number of the episode.
        ends: Whether an episode ends with a row, where there is no `episode`, shape (N,).

    Raises:
        DataError: If there are several episodes, and arrays of which it is not said which rows are
            whose; or an episode is bad.
    """
    fields = dict(fields)
    ids = fields.pop("episode", None)
    if ids is not None and np.size(ids) != 1:  # one number is that of the whole file
        with named(source):
            ends = ends_of(ids, id_name)
    stops = np.flatnonzero([] if ends is None else ends) + 1
    if ends is None or len(stops) < 2:
        yield episodes.read_episode(fields, source)
        return
    for field, value in fields.items():
        for part in value.values() if isinstance(value, Mapping) else (value,):
            if part.shape[:1] != ends.shape:
                raise DataError(
                    f"{source}: `{field}` has the wrong shape: got {part.shape} with {len(stops)} "
                    f"episodes in {len(ends)} rows, expected as many rows. What has one more, as "
                    "the observation after the last action, needs a file per episode."
                )
    for start, stop in zip([0, *stops[:-1].tolist()], stops.tolist(), strict=True):
        rows = slice(start, stop)
        one = {
            field: {key: part[rows] for key, part in value.items()}
            if isinstance(value, Mapping)
            else value[rows]
            for field, value in fields.items()
        }
        yield episodes.read_episode(one, f"{source} from row {start}")


@contextmanager
def named(source: str) -> Iterator[None]:
    """Puts the name of a file among several in front of what is wrong in it.

    Args:
        source: What messages call it.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{source}: {error}") from error


def shown_id(chosen: Mapping[str, Sequence[str]]) -> str:
    """Returns what messages call the number of the episode: its column, if it is one.

    Args:
        chosen: Names of columns by field.
    """
    columns = chosen.get("episode", ())
    return columns[0] if len(columns) == 1 else "episode"


def files_of(folder: str | os.PathLike[str], kind: str) -> list[str]:
    """Returns the names of the files of a kind in a folder, in the order of their numbers.

    Args:
        folder: The folder.
        kind: One of `ENDINGS`.
    """
    return natural(e.name for e in os.scandir(folder) if e.name.lower().endswith(ENDINGS[kind]))


def natural(names: Iterable[str]) -> list[str]:
    """Returns names in the order of the numbers in them: demo_2 before demo_10.

    Args:
        names: The names.
    """

    def key(name: str) -> list[tuple[bool, int, str]]:
        parts = re.split(r"(\d+)", name)
        numbers = [p.isdecimal() and len(p) <= _MOST_DIGITS for p in parts]
        return [(not n, int(p) if n else 0, p) for n, p in zip(numbers, parts, strict=True)]

    return sorted(names, key=key)
