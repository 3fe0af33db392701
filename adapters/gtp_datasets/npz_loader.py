"""NumPy's npz files: of transitions, of episodes, or a folder with an episode or more in each."""

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from gtp_datasets._fields import (
    ENDS,
    GUESSED,
    Choice,
    Wanted,
    as_named,
    check_times,
    ends_of,
    files_of,
    flat_dataset,
    named,
    natural,
    shown_id,
    split_episodes,
    times_of,
)
from gtp_datasets._hdf5 import check_expansion, located, table_bytes
from gtp_datasets._npz import NpzFile, Shape, check_rows, open_npz
from gtp_policy import OfflineDataset
from gtp_policy.episodes import Episode
from gtp_policy.errors import DataError


def load_npz(
    path: str | os.PathLike[str],
    *,
    obs: Wanted = None,
    action: Wanted = None,
    reward: Wanted = None,
    terminated: Wanted = None,
    truncated: Wanted = None,
    next_obs: Wanted = None,
    episode: Wanted = None,
    low: npt.ArrayLike | None = None,
    high: npt.ArrayLike | None = None,
    gamma: float = 0.99,
    out_of_bounds: Literal["error", "clip"] = "error",
    unbounded: Literal["error", "data"] = "error",
    device: torch.device | str = "cpu",
) -> OfflineDataset:
    """Reads arrays that ``numpy.savez`` wrote; no object is ever decoded.

    Three layouts are understood:

    - a *file of transitions*: arrays of N rows. Where episodes end is said by ``terminated`` and
      ``truncated``, by ``episode`` (a number per row) or by an array ``episode_ends`` (the number
      of the row behind each episode's last);
    - a *file of episodes*: names with a folder, as ``3/obs`` or ``episode_3/obs``;
    - a *folder*: every npz file in it is one episode, in the order of the numbers in their names.

    What is one episode may hold several, of T rows each, where its own ``episode`` or
    ``episode_ends`` says so.

    Episodes follow the rules of `OfflineDataset.from_episodes`: T or T + 1 observations, and one
    that does not say how it ends was cut. The arrays of the first episode are those of all, by
    their names: they may stand in another order, and other ones are an error.

    Args:
        path: The file or folder.
        obs: Name of the array that is ``obs``, or names or patterns (``"joint_*"``) of several that
            become parts of a Dict. None: by the names that
            `gtp_policy.episodes.read_episode` knows.
            Numbered ones are in the order of their numbers.
        action: Likewise; several are joined.
        reward: Likewise; False leaves rewards out.
        terminated: Likewise.
        truncated: Likewise.
        next_obs: Likewise.
        episode: Likewise; False: all rows of a file, or of a folder in it, are one episode.
        low: Lower bounds of the actions, of their shape or a scalar; npz files do not hold them.
        high: Upper bounds of the actions, likewise.
        gamma: Discount factor, in [0, 1].
        out_of_bounds: Whether actions outside the bounds raise or are clipped.
        unbounded: Whether a dimension without known bounds raises, or takes the limits of the
            data, with a warning.
        device: Where the table lives.

    Returns:
        The dataset, actions scaled to [-1, 1].

    Raises:
        DataError: If a file cannot be read, declares more than it holds or has objects in it, or a
            field is missing, of other arrays than in the first episode, or of the wrong type, shape
            or value; file, field and row are named.
        EmptyDatasetError: If there is no episode or no transition is left.
        UnsupportedSpaceError: If bounds are missing or no Box.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from gtp_datasets import load_npz
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i in range(3):
        ...         np.savez(f"{folder}/run_{i}.npz", position=np.full((5, 2), i),
        ...                  command=np.zeros((4, 1)))
        ...     dataset = load_npz(folder, obs="position", action="command", low=-1.0, high=1.0)
        >>> len(dataset), dataset.has_rewards, int(dataset.truncated.sum())
        (12, False, 3)
    """
    wanted: dict[str, Wanted] = {
        "obs": obs,
        "action": action,
        "reward": reward,
        "terminated": terminated,
        "truncated": truncated,
        "next_obs": next_obs,
        "episode": episode,
    }
    choose, path = Choice(wanted), located(path)
    options: dict[str, Any] = {
        "low": low,
        "high": high,
        "gamma": gamma,
        "out_of_bounds": out_of_bounds,
        "unbounded": unbounded,
        "device": device,
        "source": f"npz {path.name}",
    }
    if os.path.isdir(path):
        return _of_episodes(_of_folder(path, choose), options)
    with open_npz(path) as file:
        if any("/" in name for name in file.names):
            return _of_episodes(_read_groups(file, choose), options)
        fields, ends = _read_flat(file, choose)
        return flat_dataset(fields.pop("obs"), fields, ends=ends, **options)


def _of_episodes(episodes: Iterator[Episode], options: Mapping[str, Any]) -> OfflineDataset:
    """Puts episodes together, parts of the observation in the order in which they were named."""
    first = list(itertools.islice(episodes, 1))
    keys = [*first[0].obs] if first and isinstance(first[0].obs, Mapping) else None
    whole = itertools.chain(first, episodes)
    return OfflineDataset.from_episodes(whole, obs_keys=keys, **options)


def _of_folder(folder: Path, choose: Choice) -> Iterator[Episode]:
    declared = on_disk = 0
    for name in files_of(folder, "npz"):
        with open_npz(folder / name) as file:
            read = _Reader(file, "", file.names, choose(file.names, name), choose.wanted)
            declared, on_disk = declared + read.declared, on_disk + file.on_disk
            check_expansion(declared, on_disk, str(folder))
            yield from _split(file, read, choose, name)


def _read_groups(file: NpzFile, choose: Choice) -> Iterator[Episode]:
    groups: dict[str, list[str]] = {}
    for name in file.names:
        group, slash, last = name.rpartition("/")
        groups.setdefault(group + slash, []).append(last)
    readers = []
    for group in natural(groups):
        name = f"Episode {group.removesuffix('/')!r}"
        chosen = choose(groups[group], name)
        readers.append((name, _Reader(file, group, groups[group], chosen, choose.wanted)))
    check_expansion(sum(reader.declared for _, reader in readers), file.on_disk, "The file")
    for name, reader in readers:
        yield from _split(file, reader, choose, name)


def _split(file: NpzFile, reader: "_Reader", choose: Choice, name: str) -> Iterator[Episode]:
    with named(name):
        fields, ends = as_named(reader.fields(), reader.chosen, choose.wanted), None
    if "episode" not in fields and choose.wanted.get("episode") is not False:
        with named(name):
            ends = _ends(file, reader, len(fields["action"]) if fields["action"].ndim else 0)
    yield from split_episodes(fields, name, id_name=shown_id(reader.chosen), ends=ends)


class _Reader:
    """The arrays of a file, or of one folder in it, that were chosen: looked at, not yet read.

    Args:
        file: The open file.
        prefix: What their names begin with.
        there: All names behind that.
        chosen: Their names behind that, by field.
        wanted: What the caller says of each field.
    """

    def __init__(
        self,
        file: NpzFile,
        prefix: str,
        there: Sequence[str],
        chosen: dict[str, list[str]],
        wanted: Mapping[str, Wanted],
    ) -> None:
        self._file, self.prefix, self.there = file, prefix, there
        if wanted.get("episode") is None and not _is_per_row(file, prefix, chosen):
            chosen = {field: names for field, names in chosen.items() if field != "episode"}
        self.chosen = chosen
        obs, next_obs = chosen["obs"], chosen.get("next_obs")
        if next_obs is not None and len(next_obs) != len(obs):
            raise DataError(
                f"`next_obs` is of other arrays than `obs`: got {next_obs}, expected {len(obs)}, "
                f"one for each of {obs}."
            )
        names = [prefix + name for columns in chosen.values() for name in columns]
        self.declared = file.declared(list(dict.fromkeys(names)))
        self.shapes: dict[str, Shape] = {name: file.shape(name) for name in names}
        rows = max((shape[0] for shape in self.shapes.values() if shape), default=0)
        width = {
            field: sum(math.prod(self.shapes[prefix + name][1:]) for name in chosen[field])
            for field in ("obs", "action")
        }
        self.declared += table_bytes(rows, width["obs"], width["action"])
        check_expansion(self.declared, file.on_disk, "The file")

    def fields(self) -> dict[str, Any]:
        """Returns the arrays by field; several observations by their names."""
        found: dict[str, Any] = {}
        for field, names in self.chosen.items():
            arrays = [self._file.read(self.prefix + name) for name in names]
            if field in ("obs", "next_obs") and len(names) > 1:
                found[field] = dict(zip(names, arrays, strict=True))
            else:
                found[field] = arrays[0] if len(arrays) == 1 else _joined(field, names, arrays)
        if isinstance(found.get("next_obs"), dict):  # by the names of the observations
            found["next_obs"] = dict(
                zip(self.chosen["obs"], found["next_obs"].values(), strict=True)
            )
        for name in times_of(self.there, self.chosen):
            with suppress(DataError):  # what cannot be read is not a number per row
                self._file.declared([self.prefix + name])
                if self._file.shape(self.prefix + name)[:1] == found["episode"].shape[:1]:
                    found[name] = self._file.read(self.prefix + name)
            if name in found:
                check_times(name, found.pop(name), found["episode"])
        return found


def _is_per_row(file: NpzFile, prefix: str, chosen: dict[str, list[str]]) -> bool:
    """Returns whether what was guessed to number episodes is a number per row, and not a path."""
    names = chosen.get("episode", [])
    if not {*names} & {*GUESSED}:
        return True
    both = [prefix + names[0], prefix + chosen["action"][0]]
    file.declared(both)
    shape, of_action = map(file.shape, both)
    return shape[:1] == of_action[:1] and math.prod(shape[1:]) == 1


def _joined(
    field: str, names: list[str], arrays: list[npt.NDArray[np.generic]]
) -> npt.NDArray[np.generic]:
    if len({array.shape[:1] for array in arrays}) > 1 or not all(a.ndim for a in arrays):
        shapes = dict(zip(names, (a.shape for a in arrays), strict=True))
        raise DataError(
            f"`{field}` is of arrays that do not fit together: got {shapes}, expected equally many "
            "rows."
        )
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], 1)


def _read_flat(
    file: NpzFile, choose: Choice
) -> tuple[dict[str, Any], npt.NDArray[np.bool_] | None]:
    """Returns the fields of a file of transitions, and where episodes end as far as it says so."""
    reader = _Reader(file, "", file.names, choose(file.names), choose.wanted)
    check_rows(reader.shapes)
    fields = as_named(reader.fields(), reader.chosen, choose.wanted)
    size = len(fields["action"]) if fields["action"].ndim else 0
    ids = fields.pop("episode", None)
    if ids is not None:
        return fields, ends_of(ids, shown_id(reader.chosen))
    if choose.wanted.get("episode") is False:
        return fields, np.arange(size) == size - 1
    return fields, _ends(file, reader, size)


def _ends(file: NpzFile, reader: _Reader, size: int) -> npt.NDArray[np.bool_] | None:
    """Returns where episodes end by the array that says it, shape (size,); None without one."""
    if ENDS not in reader.there:
        return None
    name = reader.prefix + ENDS
    file.declared([name])
    shape = file.shape(name)
    if shape and shape[0] > size:  # before they are read, and widened to what differences take
        raise DataError(
            f"`{ENDS}` does not fit: got {shape[0]} ends, expected at most {size}, the number of "
            "rows."
        )
    behind = file.read(name)
    if len(shape) != 1 or behind.dtype.kind not in "iu" or not len(behind):
        raise DataError(
            f"`{ENDS}` is no list of rows: got {behind.dtype} of shape {shape}, expected integers."
        )
    if (np.diff(behind, prepend=0) <= 0).any() or behind[-1] != size:
        raise DataError(
            f"`{ENDS}` does not fit: got {behind[-1]} as its last of {len(behind)}, expected "
            f"rising numbers up to {size}, the number of rows."
        )
    return np.isin(np.arange(size), behind - 1)
