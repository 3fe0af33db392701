"""Filling a dataset's table: the one place where numbers from outside are checked and converted."""

import warnings
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from gtp_policy._numbers import as_float
from gtp_policy.errors import DataError, EmptyDatasetError
from gtp_policy.shards import take_writer
from gtp_policy.spaces import ActionScaler, first_masked

# A chunk of `extend` holds about so many bytes: what a conversion needs on top of its result stays
# small, however long the file and however wide the observation.
CHUNK_BYTES = 2 * 2**20


class Column(Protocol):
    """What `OfflineDatasetBuilder.extend` reads piece by piece: an array, or an HDF5 dataset.

    Example:
        >>> import numpy as np
        >>> from gtp_policy.dataset_builder import Column
        >>> column: Column = np.zeros((10, 3))
        >>> column[2:5].shape
        (3, 3)
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Element type."""

    def __getitem__(self, rows: slice, /) -> npt.NDArray[np.generic]:
        """Returns some consecutive rows."""


class OfflineDatasetBuilder:
    """The table of an `OfflineDataset` while it is filled, every piece checked as it comes.

    A row is ``obs (O) | action (A) | reward (1) | discount (1) | next_obs (O)`` in float32. The
    table is allocated once at its final size, so that converting a dataset never needs twice the
    memory of the result; within `gtp_policy.shards.builders_write_to` there is none, and every
    piece goes to files.

    Args:
        size: N, an upper bound on the number of transitions. None where it is not known, which only
            files allow.
        obs_dim: O.
        action_scaler: Bounds of the action Box.
        gamma: Discount factor, in [0, 1].
        out_of_bounds: Whether actions outside the Box raise or are clipped to it.

    Attributes:
        has_rewards: Whether what was appended has rewards. Where it has none, NaN stands in the
            table: a critic that would learn from it raises.
        ends: Whether the log of an episode ends with a row, as `OfflineDataset.ends` says.
        looked: Whether observations are looked at before `append` gets them.
        writer: Where rows go instead of the table, if they go to files.

    Raises:
        DataError: If ``gamma`` lies outside [0, 1] or ``out_of_bounds`` or ``size`` is unknown.

    Example:
        >>> import numpy as np
        >>> from gtp_policy import ActionScaler, OfflineDataset
        >>> from gtp_policy.dataset_builder import OfflineDatasetBuilder
        >>> builder = OfflineDatasetBuilder(2, obs_dim=1, action_scaler=ActionScaler([-2], [2]))
        >>> for reward in (0.0, 1.0):
        ...     builder.append(obs=np.zeros((1, 1)), action=np.ones((1, 1)),
        ...                    reward=np.array([reward]), next_obs=np.zeros((1, 1)),
        ...                    terminated=np.array([False]), truncated=np.array([True]))
        >>> OfflineDataset.from_builder(builder).transitions.action
        tensor([[0.5000],
                [0.5000]])
    """

    def __init__(
        self,
        size: int | None,
        *,
        obs_dim: int,
        action_scaler: ActionScaler,
        gamma: float = 0.99,
        out_of_bounds: Literal["error", "clip"] = "error",
    ) -> None:
        discount = as_float(gamma)
        if discount is None or not 0.0 <= discount <= 1.0:
            raise DataError(f"`gamma` is out of range: got {gamma!r}, expected 0 to 1.")
        if not isinstance(out_of_bounds, str) or out_of_bounds not in ("error", "clip"):
            raise DataError(
                f"`out_of_bounds` is unknown: got {out_of_bounds!r}, expected 'error' or 'clip'."
            )
        self.action_scaler = action_scaler
        self.gamma = discount
        self.obs_dim = obs_dim
        self.writer = take_writer()
        if size is None and self.writer is None:
            raise DataError(
                "`size` is not known: got None for a table in memory, expected the number of "
                "transitions at most."
            )
        self._most = size
        held = 0 if self.writer is not None or size is None else size
        self.table = np.empty((held, 2 * obs_dim + action_scaler.action_dim + 2), np.float32)
        self.terminated = np.zeros(held, np.bool_)
        self.truncated = np.zeros(held, np.bool_)
        self.ends = np.zeros(held, np.bool_)
        self.filled = 0
        self.has_rewards = True
        self._clip = out_of_bounds == "clip"
        # Of observations, by dimension: the range, and what rounding to float32 has changed.
        self._least, self._largest = np.full(obs_dim, np.inf), np.full(obs_dim, -np.inf)
        self._lost = np.zeros(obs_dim)
        self._rewards = np.array([np.inf, -np.inf, 0.0])  # least, largest, lost
        self.looked = False

    def append(
        self,
        *,
        obs: npt.ArrayLike,
        action: npt.ArrayLike,
        reward: npt.ArrayLike | None = None,
        next_obs: npt.ArrayLike,
        terminated: npt.ArrayLike,
        truncated: npt.ArrayLike,
        ends: npt.ArrayLike | None = None,
        rows: npt.NDArray[np.intp] | None = None,
    ) -> None:
        """Checks n transitions in time order and writes them behind those already there.

        Args:
            obs: Shape (n, O).
            action: In the units of the Box, shape (n, A).
            reward: Shape (n,); None for data without rewards, of all pieces or none.
            next_obs: Shape (n, O).
            terminated: Whether the episode ended by itself, bool or 0/1, shape (n,). Where both
                flags are set, this one decides: the discount is 0.
            truncated: Whether the episode was cut, bool or 0/1, shape (n,).
            ends: Whether the log of the episode ends, bool or 0/1, shape (n,); where it does and
                ``terminated`` is not set, it was cut. Default: where one of the flags is set.
            rows: What errors call the rows, shape (n,). Default: counted from the start of the
                dataset.

        Raises:
            DataError: If a field has a wrong length, rank, dtype or value. The message names the
                field and its first bad row. Nothing of the piece is kept.
        """
        start, o, a = self.filled, self.obs_dim, self.action_scaler.action_dim
        values = {
            "obs": as_array("obs", obs),
            "action": as_array("action", action),
            "next_obs": as_array("next_obs", next_obs),
        }
        if reward is not None:
            values["reward"] = as_array("reward", reward)
        n = len(values["obs"]) if values["obs"].ndim else 0
        self._check_columns(values, n)
        if rows is None:
            rows = np.arange(start, start + n)
        ended = as_flags("terminated", terminated, n, rows)
        cut = as_flags("truncated", truncated, n, rows)
        last = ended | cut if ends is None else cut | as_flags("ends", ends, n, rows)
        if self._most is not None and start + n > self._most:
            raise DataError(
                f"More transitions than announced: got {start + n}, expected at most {self._most}."
            )
        if start and self.has_rewards != (reward is not None):
            raise DataError(
                f"`reward` is missing in a part of the data: got some rows with and others without "
                f"one, from row {rows[0] if n else start} on, expected it everywhere or nowhere. "
                "Leave out the episodes without rewards, or the rewards."
            )
        if self.writer is None:
            table = self.table[start : start + n]
        else:
            table = np.empty((n, self.table.shape[1]), np.float32)
        with np.errstate(over="ignore"):  # 1e39 becomes infinite here; the check below finds it
            table[:, :o] = values["obs"]
            table[:, o : o + a] = values["action"]
            table[:, o + a] = values.get("reward", 0.0)
            table[:, o + a + 1] = self.gamma * ~ended
            table[:, o + a + 2 :] = values["next_obs"]
        if not np.isfinite(table).all():
            _raise_not_finite(values, rows)
        # Scaled in double precision from the original: float32 bounds of a float64 action differ.
        unit = self.action_scaler.to_unit(values["action"].astype(np.float64))
        if not self._clip:
            self._check_bounds(values["action"], unit, rows)
        table[:, o : o + a] = unit.clip(-1.0, 1.0)
        self.has_rewards = reward is not None
        if not self.has_rewards:
            table[:, o + a] = np.nan
        if self.writer is not None:
            self.writer.add("table", table)
            self._grow(start + n)
        own = slice(start, start + n)
        self.terminated[own], self.truncated[own], self.ends[own] = ended, cut | last & ~ended, last
        self.filled += n
        if not self.looked:
            self.look(values["obs"])
        if reward is not None and n:
            exact = values["reward"].astype(np.float64)
            least, largest, lost = self._rewards
            changed = np.abs(exact - table[:, o + a]).max()
            self._rewards[:] = (
                min(least, exact.min()),
                max(largest, exact.max()),
                max(lost, changed),
            )

    def look(self, obs: npt.NDArray[np.generic], start: int = 0) -> None:
        """Looks at what float32 makes of observations, for `warn_of_rounding`.

        `append` does so; who makes float32 of them before calls it for what was there, and sets
        ``looked``.

        Args:
            obs: Shape (n, D).
            start: Dimension that the first column is.
        """
        own = slice(start, start + obs.shape[1])
        step = max(1, CHUNK_BYTES // (8 * max(1, obs.shape[1])))
        for i in range(0, len(obs), step):
            part = obs[i : i + step]
            self._least[own] = np.minimum(self._least[own], part.min(0))
            self._largest[own] = np.maximum(self._largest[own], part.max(0))
            if obs.dtype.itemsize > 4:
                exact = part.astype(np.float64, copy=False)
                with np.errstate(all="ignore"):  # what is not finite is found by `append`
                    lost = np.abs(exact - exact.astype(np.float32)).max(0)
                self._lost[own] = np.maximum(self._lost[own], lost)

    def warn_of_rounding(self) -> None:
        """Warns of numbers that float32, or a policy's normaliser, leaves little of."""
        with np.errstate(all="ignore"):
            span = self._largest - self._least
            size = np.maximum(np.abs(self._least), np.abs(self._largest))
            # A joint that never moves has noise of rounding. Below a std of 1e-6 is no scale.
            coarse = (span > 1e-10 * size) & (512 * self._lost > span)
            small = (span > np.maximum(1e-6 * size, 1e-12)) & ~coarse & (span < 2e-6)
        for where, what in (
            (
                coarse,
                "lose much of what varies to float32, by up to {lost:.2g}. Subtract a fixed offset "
                "before they are loaded and where the policy acts, e.g. the site's coordinate or "
                "the time at which an episode starts.",
            ),
            (
                small,
                "vary so little that they are centred and not scaled. If it is more than noise, "
                "multiply them by a fixed number, e.g. 1e6, before they are loaded and where the "
                "policy acts.",
            ),
        ):
            if (index := np.flatnonzero(where)).size:
                i = index[0]
                warnings.warn(
                    f"Observation dimensions {index[:8].tolist()}{' and more' * (len(index) > 8)}, "
                    f"the first from {self._least[i]:.10g} to {self._largest[i]:.10g}, "
                    + what.format(lost=self._lost[i]),
                    stacklevel=3,
                )
        least, largest, lost = self._rewards
        if 512 * lost > largest - least > 1e-10 * max(abs(least), abs(largest)):
            warnings.warn(
                f"Rewards, from {least:.10g} to {largest:.10g}, lose much of what varies to "
                f"float32, by up to {lost:.2g}. Subtract what is in all of them before they are "
                "loaded, e.g. a total that only grows.",
                stacklevel=3,
            )
        low, high = self.action_scaler.low, self.action_scaler.high
        steps = np.spacing(np.maximum(np.abs(low), np.abs(high)).astype(np.float32))
        if (index := np.flatnonzero(high - low < 256 * steps)).size:
            i = index[0]
            warnings.warn(
                f"Action dimensions {index[:8].tolist()} have few values in float32: the first has "
                f"bounds of {low[i]:.10g} to {high[i]:.10g}, in steps of {steps[i]:.2g}. Subtract "
                "a fixed offset from actions and bounds, and add it where the policy acts.",
                stacklevel=3,
            )

    def _grow(self, size: int) -> None:
        """Makes room for so many flags, which stay in memory until the last one is known."""
        more = size - len(self.terminated)
        if more > 0:
            room = np.zeros(max(more, len(self.terminated)), np.bool_)
            self.terminated = np.concatenate([self.terminated, room])
            self.truncated = np.concatenate([self.truncated, room])
            self.ends = np.concatenate([self.ends, room])

    def extend(
        self,
        *,
        obs: Column,
        action: Column,
        reward: Column | None = None,
        terminated: npt.ArrayLike,
        truncated: npt.ArrayLike,
        next_obs: Column | None = None,
        ends: npt.ArrayLike | None = None,
    ) -> None:
        """Appends whole columns in time order, in chunks that keep the memory needed small.

        Args:
            obs: Shape (N, O), an array or an HDF5 dataset, as all columns.
            action: In the units of the Box, shape (N, A).
            reward: Shape (N,); None for data without rewards.
            terminated: Bool or 0/1, shape (N,).
            truncated: Bool or 0/1, shape (N,).
            next_obs: Shape (N, O). Without it the next row's ``obs`` is taken; the last row of a
                truncated episode, and an unfinished last row, then have no next observation and
                are left out.
            ends: As for `append`, shape (N,).

        Raises:
            DataError: If a field has a wrong length, rank, dtype or value.
            EmptyDatasetError: If every row would be left out.
        """
        columns = {"obs": obs, "action": action}
        columns |= {"reward": reward} if reward is not None else {}
        columns |= {"next_obs": next_obs} if next_obs is not None else {}
        size = obs.shape[0] if obs.shape else 0
        self._check_columns(columns, size)
        ended = as_flags("terminated", terminated, size)
        cut = as_flags("truncated", truncated, size)
        last_rows = ended | cut if ends is None else cut | as_flags("ends", ends, size)
        cut = cut | (last_rows & ~ended)
        rows = np.arange(size)
        # A terminated row's next observation counts with a discount of 0: any will do, its own too.
        following = rows + ~ended
        if next_obs is None:
            keep = (following < size) & (ended | ~cut)
            left_out = ~keep[(rows + 1).clip(max=max(size - 1, 0))]
            rows = rows[keep]
            if size and not len(rows):
                raise EmptyDatasetError(
                    f"No transition is left: got {size} rows that each end a truncated episode, "
                    "expected rows with a next observation. Pass `next_obs`."
                )
            # The row before one that is left out now ends its episode.
            last_rows = last_rows | left_out
            cut = cut | (~ended & left_out)
        step = max(1, CHUNK_BYTES // (8 * self.table.shape[1]))
        for i in range(0, len(rows), step):
            chunk = rows[i : i + step]
            first, last = int(chunk[0]), int(chunk[-1])
            index, window = chunk - first, slice(first, last + 1)
            if next_obs is None:
                piece = obs[first : last + 2]
                pair = piece[index], piece[following[chunk] - first]
            else:
                pair = obs[window][index], next_obs[window][index]
            self.append(
                obs=pair[0],
                action=action[window][index],
                reward=None if reward is None else reward[window][index],
                next_obs=pair[1],
                terminated=ended[chunk],
                truncated=cut[chunk],
                ends=last_rows[chunk],
                rows=chunk,
            )

    def _check_columns(
        self, columns: dict[str, npt.NDArray[np.generic]] | dict[str, Column], size: int
    ) -> None:
        """Raises unless every column holds numbers and has ``size`` rows of the right width."""
        widths = {"action": self.action_scaler.action_dim, "reward": None}
        for name, column in columns.items():
            width = widths.get(name, self.obs_dim)
            expected = (size,) if width is None else (size, width)
            if np.dtype(column.dtype).kind not in "fiu":
                raise DataError(
                    f"`{name}` has the wrong dtype: got {column.dtype}, expected floating point or "
                    "integer."
                )
            if tuple(column.shape) != expected:
                advice = f". Pass {name}[:, 0]." if tuple(column.shape) == (*expected, 1) else "."
                if name == "action" and len(column.shape) == 2 and column.shape[0] == size:
                    advice = (
                        f", since `low` and `high` are of {width} dimensions. Correct the actions, "
                        "or the bounds: one number for all dimensions, or one for each."
                    )
                raise DataError(
                    f"`{name}` has the wrong shape: got {tuple(column.shape)}, expected {expected}"
                    f"{advice}"
                )

    def _check_bounds(
        self,
        action: npt.NDArray[np.generic],
        unit: npt.NDArray[np.floating],
        rows: npt.NDArray[np.intp],
    ) -> None:
        # Files hold float32 actions of a float64 Box and the other way round: a rounding error at
        # the edge is not a bad action.
        outside = np.abs(unit) > 1 + 1e-5
        if outside.any():
            row, dim = np.argwhere(outside)[0]
            low, high = self.action_scaler.low[dim], self.action_scaler.high[dim]
            raise DataError(
                f"`action` lies outside the Box: got {action[row, dim]} at row {rows[row]}, "
                f"dimension {dim} ({outside.any(1).sum()} such rows among {len(rows)}), expected "
                f"{low} to {high}. Correct the bounds, or pass out_of_bounds='clip'."
            )


def as_array(name: str, values: npt.ArrayLike) -> npt.NDArray[np.generic]:
    """Returns an array, without a copy where it is one already.

    Args:
        name: What the message calls the values.
        values: Numbers in equal rows.

    Returns:
        The array.

    Raises:
        DataError: If the values do not form an array, or some are masked.

    Example:
        >>> from gtp_policy.dataset_builder import as_array
        >>> as_array("reward", [0.0, 1.0])
        array([0., 1.])
    """
    if (row := first_masked(values)) is not None:
        raise DataError(
            f"`{name}` has masked values: got the first at row {row}, expected numbers. Fill them, "
            "or leave the rows out."
        )
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a device
        raise DataError(
            f"`{name}` is not an array: got {type(values).__name__} ({error}), expected numbers in "
            "equal rows."
        ) from error


def as_flags(
    name: str, values: npt.ArrayLike, size: int, rows: npt.NDArray[np.intp] | None = None
) -> npt.NDArray[np.bool_]:
    """Returns ``size`` flags as bool; 0/1 of any number type is welcome.

    Args:
        name: What the message calls the flags.
        values: Bool or 0/1, shape (N,).
        size: N.
        rows: Row numbers for the message, where the flags are a part of more; default 0..N-1.

    Returns:
        The flags, shape (N,).

    Raises:
        DataError: If they are of another shape or dtype, or a value is neither 0 nor 1.

    Example:
        >>> from gtp_policy.dataset_builder import as_flags
        >>> as_flags("terminated", [0, 1], 2)
        array([False,  True])
    """
    array = as_array(name, values)
    if array.dtype.kind not in "biuf":
        raise DataError(f"`{name}` has the wrong dtype: got {array.dtype}, expected bool or 0/1.")
    if array.shape != (size,):
        hint = f" Pass {name}[:, 0]." if array.shape == (size, 1) else ""
        raise DataError(
            f"`{name}` has the wrong shape: got {array.shape}, expected {(size,)}.{hint}"
        )
    if array.dtype.kind != "b":
        bad = np.flatnonzero((array != 0) & (array != 1))
        if len(bad):
            row = bad[0] if rows is None else rows[bad[0]]
            raise DataError(
                f"`{name}` is not a flag: got {array[bad[0]]} at row {row}, expected 0 or 1."
            )
    return array.astype(np.bool_, copy=False)


def _raise_not_finite(
    values: dict[str, npt.NDArray[np.generic]], rows: npt.NDArray[np.intp]
) -> None:
    for name, array in values.items():
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(array.astype(np.float32, copy=False))
        if bad.any():
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            where = f"row {rows[index[0]]}" + (f", dimension {index[1]}" if index[1:] else "")
            raise DataError(
                f"`{name}` is not finite in float32: got {array[index]} at {where}, expected "
                "finite numbers. Remove or repair the episode."
            )
