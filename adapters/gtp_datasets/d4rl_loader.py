"""D4RL's HDF5 files, read with h5py alone, and its dicts."""

import math
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from gtp_datasets._hdf5 import (
    check_expansion,
    check_object,
    open_hdf5,
    stored_bytes_of,
    table_bytes,
)
from gtp_datasets.spaces import action_scaler
from gtp_policy import OfflineDataset
from gtp_policy.dataset_builder import Column, OfflineDatasetBuilder, as_array, as_flags
from gtp_policy.episodes import scaler_of
from gtp_policy.errors import DataError

if TYPE_CHECKING:
    import h5py

REQUIRED = ("observations", "actions", "rewards", "terminals")
_PIECES = 64
_PIECE = 2**20  # numbers that are compared at a time
OPTIONAL = ("timeouts", "next_observations")


def load_d4rl_hdf5(
    path: "str | os.PathLike[str] | Mapping[str, npt.ArrayLike] | h5py.File",
    *,
    gamma: float = 0.99,
    next_obs: Literal["auto", "stored", "shifted"] = "auto",
    low: npt.ArrayLike = -1.0,
    high: npt.ArrayLike = 1.0,
    out_of_bounds: Literal["error", "clip"] = "error",
    unbounded: Literal["error", "data"] = "error",
    device: torch.device | str = "cpu",
) -> OfflineDataset:
    """Reads a file with D4RL's fields, in chunks; executes nothing and follows no link.

    Two conventions are understood. The *raw* layout has ``observations, actions, rewards,
    terminals, timeouts``, often ``next_observations``, and ``infos``, which is not read. The fields
    of ``qlearning_dataset`` are ``observations, actions, next_observations, rewards, terminals``;
    an episode is then taken as cut where a next observation is not the next row's observation:
    where they differ by more than a tenth of what a dimension typically changes in a step, and by
    more than the rounding of float32. A file of which more than a quarter of the rows end an
    episode so brings a warning.
    ``terminals`` stop bootstrapping, ``timeouts`` only end the episode.

    Without stored next observations the last transition of a timed-out episode has none, and is
    left out, as ``qlearning_dataset`` does. Deviation: a terminated row is always kept, also as the
    last of the file or with a timeout at the same row (there D4RL drops it).

    Args:
        path: The file, one that h5py has opened, or a dict with its fields, as D4RL's
            ``env.get_dataset()`` and ``qlearning_dataset`` return them.
        gamma: Discount factor, in [0, 1].
        next_obs: Whether to take the file's ``next_observations`` (``stored``) or the following
            row of ``observations`` (``shifted``); ``auto`` takes the stored ones if there are any.
        low: Lower bounds of the actions, of their shape or a scalar: D4RL's files do not hold them.
        high: Upper bounds of the actions, likewise.
        out_of_bounds: Whether actions outside the bounds raise or are clipped.
        unbounded: Whether an infinite bound raises, or takes the limits of the data, with a
            warning.
        device: Where the table lives.

    Returns:
        The dataset, actions scaled to [-1, 1].

    Raises:
        DataError: If the file cannot be read, is cut short, has a field missing or of the wrong
            type, shape or value (field and row are named), or leads to other files.
        EmptyDatasetError: If no transition is left.
        UnsupportedSpaceError: If the bounds are no Box.
        MissingDependencyError: If h5py is not installed.

    References:
        | D4RL: Datasets for Deep Data-Driven Reinforcement Learning (Fu et al., 2020)
        | https://arxiv.org/abs/2004.07219

    Example:
        >>> import tempfile
        >>> import h5py, numpy as np
        >>> from gtp_datasets import load_d4rl_hdf5
        >>> with tempfile.NamedTemporaryFile(suffix=".hdf5") as path:
        ...     with h5py.File(path, "w") as file:
        ...         file["observations"], file["actions"] = np.zeros((4, 2)), np.zeros((4, 1))
        ...         file["rewards"], file["terminals"] = np.ones(4), np.array([0, 1, 0, 0], bool)
        ...         file["timeouts"] = np.array([0, 0, 0, 1], bool)
        ...     dataset = load_d4rl_hdf5(path.name)
        >>> dataset.transitions.discount
        tensor([0.9900, 0.0000, 0.9900])
    """
    if not isinstance(next_obs, str) or next_obs not in ("auto", "stored", "shifted"):
        raise DataError(
            f"`next_obs` is unknown: got {next_obs!r}, expected 'auto', 'stored' or 'shifted'."
        )
    if not isinstance(unbounded, str) or unbounded not in ("error", "data"):
        raise DataError(f"`unbounded` is unknown: got {unbounded!r}, expected 'error' or 'data'.")
    choices = {"gamma": gamma, "out_of_bounds": out_of_bounds, "unbounded": unbounded}
    if isinstance(path, Mapping) and not hasattr(path, "filename"):  # which an open file has
        fields = {n: as_array(n, path[n]) for n in REQUIRED + OPTIONAL if n in path}
        _check_required(fields, sorted(map(str, path)))
        return _dataset(fields, next_obs, low, high, device, "D4RL dict", choices)
    with open_hdf5(path) as file:
        stored, declared = _fields(file)
        shapes = [field.shape for field in stored.values()]
        rows = max((shape[0] for shape in shapes if shape), default=0)
        width, height = (math.prod(stored[n].shape[1:]) for n in ("observations", "actions"))
        declared += table_bytes(rows, width, height)
        check_expansion(declared, stored_bytes_of(file), str(file.filename))
        # A chunk that is larger than a piece would be unpacked again for each.
        columns = {n: c[()] if math.prod(c.chunks or ()) > _PIECE else c for n, c in stored.items()}
        source = f"D4RL HDF5 {Path(str(file.filename)).name}"
        return _dataset(columns, next_obs, low, high, device, source, choices)


class _Rows:
    """A column whose rows become vectors where they are read.

    Args:
        column: Rows of any shape.
    """

    def __init__(self, column: Column) -> None:
        self._column, self.dtype = column, column.dtype
        self.shape = (column.shape[0], math.prod(column.shape[1:]))

    def __getitem__(self, rows: slice, /) -> npt.NDArray[np.generic]:
        return self._column[rows].reshape(-1, self.shape[1])


def _dataset(
    fields: Mapping[str, Column],
    next_obs: str,
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    device: torch.device | str,
    source: str,
    choices: Mapping[str, Any],
) -> OfflineDataset:
    """Puts the fields together, reading those of a file piece by piece."""
    stored = next_obs == "stored" or (next_obs == "auto" and "next_observations" in fields)
    needed = "next_observations" if stored else "timeouts"
    if needed not in fields:
        raise DataError(
            f"`{needed}` is missing: got the fields {sorted(fields)}, expected it next to "
            f"{', '.join(REQUIRED)}. Without `timeouts` and `next_observations` nothing shows "
            "where an episode was cut."
        )
    obs, action = fields["observations"], fields["actions"]
    if len(obs.shape) != 2:
        raise DataError(
            f"`observations` has the wrong shape: got {obs.shape}, expected rows of vectors."
        )
    if len(action.shape) < 2:
        raise DataError(
            f"`actions` has the wrong shape: got {action.shape}, expected rows of vectors."
        )
    rows = obs.shape[0]
    terminated = as_flags("terminals", fields["terminals"][:], rows)
    if "timeouts" in fields:
        truncated = as_flags("timeouts", fields["timeouts"][:], rows)
    else:
        truncated = _jumps(obs, fields["next_observations"]) & ~terminated
    whole = choices["unbounded"] == "data" and not (
        np.isfinite(low).all() and np.isfinite(high).all()
    )
    builder = OfflineDatasetBuilder(
        rows,
        obs_dim=obs.shape[1],
        action_scaler=scaler_of([action[:]], low, high, "data")
        if whole
        else action_scaler(low, high, action.shape[1:]),
        gamma=choices["gamma"],
        out_of_bounds=choices["out_of_bounds"],
    )
    builder.extend(
        obs=obs,
        action=action if len(action.shape) == 2 else _Rows(action),
        reward=fields["rewards"],
        terminated=terminated,
        truncated=truncated,
        next_obs=fields["next_observations"] if stored else None,
    )
    cuts = np.count_nonzero(truncated[:-1])
    # Few rows say little: two episodes of two steps have an end every second row.
    if "timeouts" not in fields and (2 * cuts > rows or cuts > max(rows / 4, 20)):
        warnings.warn(
            f"Many rows of {source} end an episode: {cuts} of {rows} have another observation in "
            "`next_observations` than the next row has. Where that is not meant, add `timeouts`.",
            stacklevel=3,
        )
    return OfflineDataset.from_builder(builder, device=device, source=source)


def _check_required(fields: Collection[str], names: Sequence[str]) -> None:
    for name in REQUIRED:
        if name not in fields:
            raise DataError(
                f"`{name}` is missing: got the fields {list(names)}, expected "
                f"{', '.join(REQUIRED)}. Is this a file of D4RL?"
            )


def _fields(file: "h5py.File") -> tuple[Mapping[str, "h5py.Dataset"], int]:
    """Returns the fields, none of them read yet, and the bytes that reading them takes."""
    import h5py

    names = set(file)  # `name in file` would follow a link
    _check_required(names, sorted(names))
    fields, declared = {}, 0
    for name in REQUIRED + OPTIONAL:
        if name not in names:
            continue
        declared += check_object(file, name.encode())
        field = file[name]
        if not isinstance(field, h5py.Dataset):
            raise DataError(
                f"`{name}` has the wrong type: got {type(field).__name__}, expected a dataset."
            )
        if field.dtype.kind not in "fiub":
            raise DataError(
                f"`{name}` has the wrong dtype: got {field.dtype}, expected numbers or flags. "
                "Objects are never decoded."
            )
        fields[name] = field
    return fields, declared


def _jumps(obs: Column, next_obs: Column) -> npt.NDArray[np.bool_]:
    """Returns, row by row, whether the next observation is not the next row's observation.

    Up to what the data itself shows to be little: the two may be stored in different types, or be
    measured twice.
    """
    if obs.shape != next_obs.shape:
        raise DataError(
            f"`next_observations` has the wrong shape: got {next_obs.shape}, expected {obs.shape} "
            "as `observations`."
        )
    size, width = obs.shape
    jumps = np.ones(size, np.bool_)  # the last row has no next one
    step = max(1, _PIECE // max(1, width))
    floor, rounding = _tolerance(obs, next_obs, max(_PIECES, step // 4))
    for i in range(0, size - 1, step):
        stop = min(i + step, size - 1)
        own = obs[i + 1 : stop + 1].astype(np.float64)
        # Comparing so, NaN is a jump: what is not finite is found by the builder.
        same = np.abs(next_obs[i:stop].astype(np.float64) - own) <= floor + rounding * np.abs(own)
        jumps[i:stop] = ~same.all(axis=1)
    return jumps


def _tolerance(obs: Column, next_obs: Column, most: int) -> tuple[npt.NDArray[np.float64], float]:
    """Returns how far a next observation may be from the next row's: by dimension, and relatively.

    A tenth of what a dimension typically changes in a step, where it changes; and ten times what
    typically lies between the two, where that is little beside the spread of the data: a sensor
    that is read twice. Both go by the data's own units. Relatively, the rounding of the narrower
    type: of float32 at least, as which the table holds them.
    """
    count = min(obs.shape[0] - 1, max(1, most))
    if count < 1:
        return np.zeros(obs.shape[1]), 0.0
    # Pieces from all over the data: of a file, whole chunks are read anyway.
    size = -(-count // _PIECES)
    starts = np.unique(np.linspace(0, obs.shape[0] - 1 - size, _PIECES).astype(np.intp))
    windows = [slice(int(start), int(start) + size) for start in starts]
    own, seen, after = (
        np.concatenate([column[w.start + ahead : w.stop + ahead] for w in windows]).astype("f8")
        for column, ahead in ((obs, 0), (next_obs, 0), (obs, 1))
    )
    narrow = any(column.dtype == np.float16 for column in (obs, next_obs))
    rounding = 2 * float(np.finfo(np.float16 if narrow else np.float32).eps)
    with np.errstate(all="ignore"):
        moved, gap = np.abs(seen - own), np.abs(seen - after)
        moved[~(moved > rounding * np.abs(own))] = np.nan
        gap = np.nan_to_num(gap, nan=0.0, posinf=0.0)
        spread = np.nan_to_num(own, nan=0.0, posinf=0.0, neginf=0.0).std(0)
    moved.sort(axis=0)  # NaN comes last
    changes = np.count_nonzero(~np.isnan(moved), axis=0)
    middle = np.take_along_axis(moved, np.maximum(changes - 1, 0)[None] // 2, 0)[0]
    noise = 10 * np.median(gap, axis=0)
    floor = np.maximum(
        np.where(changes > 0, middle, 0.0) / 10, np.where(10 * noise < spread, noise, 0.0)
    )
    return floor, rounding
