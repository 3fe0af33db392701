"""The offline dataset: one table on one device, so that a minibatch is one gather.

A row is ``obs (O) | action (A) | reward (1) | discount (1) | next_obs (O)``, with
``| next_action (A)`` behind it where `OfflineDataset.with_next_actions` put it there, or
``| chunk_length (1)`` where `OfflineDataset.with_chunks` did.
"""

import copy
import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gtp_policy._numbers import as_float, as_int
from gtp_policy._random import new_stream
from gtp_policy.dataset_builder import OfflineDatasetBuilder, as_array
from gtp_policy.episodes import (
    Episode,
    append_episode,
    check_any,
    check_like,
    layout_of,
    read_episode,
    scaler_of,
)
from gtp_policy.errors import DataError, EmptyDatasetError, GTPError, ShapeError
from gtp_policy.frames import FrameStore, is_image, stored_columns
from gtp_policy.functional import check_device, check_kind, named_device_errors
from gtp_policy.rewards import RewardTransform, episode_numbers, episode_returns
from gtp_policy.shards import (
    SHARD_BYTES,
    Moments,
    ShardedRows,
    ShardWriter,
    builders_write,
    check_parts,
    checked_folder,
    images_column,
    open_shards,
    pieces,
)
from gtp_policy.spaces import ActionScaler, ObservationLayout
from gtp_policy.transitions import Transitions, missing_rewards, unpack


class OfflineDataset:
    """Validated transitions on one device, sampled by an explicit generator.

    Made by `OfflineDataset.from_arrays` or `OfflineDataset.from_episodes`, from an
    `OfflineDatasetBuilder`, or by the loaders of ``gtp_datasets``; the constructor itself checks
    nothing. Data that is larger than the memory stays in files: `OfflineDataset.memmap`.

    Args:
        table: Rows as above, float32, shape (N, 2 O + A + 2), or wider by A or by 1; in memory or
            in files.
        layout: How one observation became numbers, of which a row's ``obs`` has one or more.
        terminated: Episode ended by itself after this transition, numpy bool (N,).
        truncated: Episode was cut after this transition, numpy bool (N,). Both flags are kept as
            they came; where both are set the transition counts as terminated.
        action_scaler: Maps the dataset's actions, [-1, 1], back to the units of the Box.
        gamma: Discount factor of one step, that ``discount`` was made with.
        source: Where the data comes from, for reports and score tables.
        n_step: Steps that a transition spans at most, as `with_n_step` says.
        has_rewards: Whether the data has rewards. Without them ``reward`` is NaN: enough for
            cloning, and an error for a critic.
        history: m, observations in one, as `with_history` says.
        chunk: h, steps of an action, as `with_chunks` says.
        store: Images, where observations have any: rows then hold their numbers (`FrameStore`).
        ends: What `ends` is, where it is more than the flags say.

    Attributes:
        obs_dim: O, of all m observations together.
        action_dim: A, of all h steps together; ``action_scaler`` and `layout` are those of one.

    Example:
        >>> import numpy as np, torch
        >>> from gtp_policy import OfflineDataset
        >>> dataset = OfflineDataset.from_arrays(
        ...     obs=np.zeros((3, 2)), action=np.zeros((3, 1)), reward=np.ones(3),
        ...     terminated=np.array([0, 0, 1], bool), truncated=np.zeros(3, bool),
        ...     next_obs=np.ones((3, 2)), low=[-1.0], high=[1.0])
        >>> batch = dataset.sample(256, generator=torch.Generator().manual_seed(0))
        >>> batch.obs.shape, sorted(set(batch.discount.tolist()))
        (torch.Size([256, 2]), [0.0, 0.9900000095367432])
    """

    def __init__(
        self,
        table: Tensor | ShardedRows,
        *,
        layout: ObservationLayout,
        terminated: npt.NDArray[np.bool_],
        truncated: npt.NDArray[np.bool_],
        action_scaler: ActionScaler,
        gamma: float,
        source: str,
        n_step: int = 1,
        has_rewards: bool = True,
        history: int = 1,
        chunk: int = 1,
        store: FrameStore | None = None,
        ends: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self._table, self._store, self._ends = table, store, ends
        self.layout = layout
        self.obs_dim = layout.obs_dim * history
        self.action_dim = action_scaler.action_dim * chunk
        self.history, self.chunk = history, chunk
        self.terminated, self.truncated = terminated, truncated
        self.action_scaler = action_scaler
        self._gamma = gamma
        self.n_step = n_step
        self.has_rewards = has_rewards
        self.source = source

    @property
    def gamma(self) -> float:
        """Discount factor of one step, that ``discount`` was made with."""
        return self._gamma

    @classmethod
    def from_arrays(
        cls,
        *,
        obs: npt.ArrayLike | Mapping[str, npt.ArrayLike],
        action: npt.ArrayLike,
        reward: npt.ArrayLike | None = None,
        terminated: npt.ArrayLike,
        truncated: npt.ArrayLike,
        next_obs: npt.ArrayLike | Mapping[str, npt.ArrayLike] | None = None,
        ends: npt.ArrayLike | None = None,
        low: npt.ArrayLike | None = None,
        high: npt.ArrayLike | None = None,
        gamma: float = 0.99,
        out_of_bounds: Literal["error", "clip"] = "error",
        unbounded: Literal["error", "data"] = "error",
        device: torch.device | str = "cpu",
        source: str = "arrays",
    ) -> Self:
        """Builds a dataset from flat arrays in time order.

        Any float or integer type, read-only or not contiguous: the numbers are copied as float32.
        Images, uint8 of three axes each, stay bytes, and what is an observation and the next one of
        another row is kept once: they become numbers when they are sampled.

        Args:
            obs: Observations, shape (N, O), or images, (N, height, width, channels) or with the
                channels first; or a mapping of such arrays, of any shapes (N, ...), which are
                joined in the order of `ObservationLayout.of_dict`.
            action: Actions in the units of the Box, shape (N, A), or (N, ...) where the bounds
                have another shape; flattened in C order.
            reward: Rewards, shape (N,); None for data without any, to be cloned.
            terminated: Whether the episode ended by itself, bool or 0/1, shape (N,).
            truncated: Whether the episode was cut (time limit), bool or 0/1, shape (N,). Only
                termination stops bootstrapping; where both flags are set, it does.
            next_obs: Next observations, like ``obs``. Without it the next row's ``obs`` is taken;
                the last row of a truncated episode, and an unfinished last row, then have no next
                observation and are left out.
            ends: Whether the log of an episode ends with the row, bool or 0/1, shape (N,), for
                logs that go on where ``terminated`` is set. A row that neither is terminated is
                truncated. Default: an episode ends where one of the flags is set.
            low: Lower bounds of the action Box, of an action's shape or a scalar for all
                dimensions; None or infinite where they are not known.
            high: Upper bounds of the action Box, likewise.
            gamma: Discount factor, in [0, 1].
            out_of_bounds: Whether actions outside the Box raise or are clipped to it.
            unbounded: Whether a dimension without known bounds raises, or takes the smallest and
                largest value of the data, with a warning.
            device: Where the table lives, and the images.
            source: Where the data comes from.

        Returns:
            The dataset, actions scaled to [-1, 1].

        Raises:
            EmptyDatasetError: If no transition is left.
            DataError: If a field has a wrong length, rank, dtype, value or flag.
            UnsupportedSpaceError: If the Box is unbounded or empty.

        Example:
            >>> import numpy as np
            >>> from gtp_policy import OfflineDataset
            >>> len(OfflineDataset.from_arrays(
            ...     obs=np.arange(6.0).reshape(6, 1), action=np.zeros((6, 1)), reward=np.zeros(6),
            ...     terminated=np.array([0, 0, 1, 0, 0, 0], bool),
            ...     truncated=np.array([0, 0, 0, 0, 0, 1], bool), low=[-1.0], high=[1.0]))
            5
        """
        layout: ObservationLayout | None = None
        frames: dict[str, Tensor] = {}
        following: npt.NDArray[np.generic] | None
        if isinstance(obs, Mapping) or is_image(as_array("obs", obs)):
            column, following, layout, frames = stored_columns(obs, next_obs, source)
        else:
            column = as_array("obs", obs)
            following = None if next_obs is None else as_array("next_obs", _plain(next_obs))
        if column.shape[:1] == (0,):
            raise _empty(source)
        if column.ndim != 2:
            raise DataError(
                f"`obs` has the wrong shape: got {column.shape}, expected (N, O). Flatten each "
                "observation to one vector."
            )
        actions = as_array("action", action)
        scaler = scaler_of([actions] if actions.ndim else [], low, high, unbounded)
        # Bounds are vectors inside; actions of another shape than theirs fail the builder's check.
        if actions.ndim != 2 and actions.shape[1:] in (
            np.asarray(low).shape,
            np.asarray(high).shape,
        ):
            actions = actions.reshape(len(actions), -1)
        builder = OfflineDatasetBuilder(
            len(column),
            obs_dim=column.shape[1],
            action_scaler=scaler,
            gamma=gamma,
            out_of_bounds=out_of_bounds,
        )
        builder.extend(
            obs=column,
            action=actions,
            reward=None if reward is None else as_array("reward", reward),
            terminated=terminated,
            truncated=truncated,
            next_obs=following,
            ends=ends,
        )
        return cls.from_builder(builder, device=device, layout=layout, source=source, frames=frames)

    @classmethod
    def from_episodes(
        cls,
        episodes: Iterable[Mapping[str, Any] | Episode],
        *,
        low: npt.ArrayLike | None = None,
        high: npt.ArrayLike | None = None,
        obs_keys: Sequence[str] | None = None,
        gamma: float = 0.99,
        out_of_bounds: Literal["error", "clip"] = "error",
        unbounded: Literal["error", "data"] = "error",
        device: torch.device | str = "cpu",
        source: str = "episodes",
    ) -> Self:
        """Builds a dataset from episodes, one mapping each.

        An episode of T steps has ``action`` (T rows) and ``obs`` (T rows, or T + 1 where the one
        after the last action was recorded too), and may have ``reward`` (T), ``next_obs`` (T rows),
        ``terminated`` and ``truncated``: a flag per row, or one for the whole episode. Rows are
        arrays, tensors, lists or arrays of objects; an observation is an array or a mapping of
        arrays. The long names ``observations``, ``actions``, ``rewards``, ``terminations``,
        ``truncations`` and the singular ones are known as well, and ``terminals``, ``is_terminal``
        and ``timeouts``; what else is there is not looked at.

        **How an episode ends.** Where ``terminated`` is set the episode ended by itself, and
        nothing is earned after it. An episode that does not say so was cut: it counts as truncated
        at its last row, whose value goes on. ``terminated`` may also be set before the last row,
        where a goal was reached and the log went on: values end there, the episode does not. The
        last row of an episode that was cut, without an observation after it, has no next
        observation and is left out, as in `from_arrays`. ``done`` or ``dones`` says that it ended,
        not how: next to ``truncated`` a row is terminated where it is done and not truncated, and
        next to ``terminated`` the other way round; alone it is an error. ``is_last`` marks the last
        row, and no more; next to ``is_terminal`` it is RLDS's, whose last step is an observation
        alone: what that flag says counts for the step before it. ``is_first`` is set at the first
        row alone.

        Args:
            episodes: The episodes; read once, and a generator may fill the same arrays for each.
                Where they are converted to files, one after the other, and all of them are held in
                memory only for ``unbounded="data"``.
            low: As for `from_arrays`.
            high: As for `from_arrays`.
            obs_keys: Parts of a mapping of observations in the order to join them; others are left
                out. Default: all, in the order of `ObservationLayout.of_dict`.
            gamma: Discount factor, in [0, 1].
            out_of_bounds: As for `from_arrays`.
            unbounded: As for `from_arrays`.
            device: Where the table lives.
            source: Where the data comes from.

        Returns:
            The dataset, actions scaled to [-1, 1].

        Raises:
            EmptyDatasetError: If there is no episode, or no transition is left.
            DataError: If a field is missing or has a wrong length, shape, dtype, value or flag. The
                message names episode, field and row, counted from the start of the episode.
            UnsupportedSpaceError: If the Box is unbounded or empty.

        Example:
            >>> from gtp_policy import OfflineDataset
            >>> pushed = {"obs": [[0.0], [1.0], [2.0]], "action": [[0.5]] * 2, "terminated": True}
            >>> cut = {"obs": [[0.0], [1.0]], "action": [[0.1], [0.2]]}
            >>> dataset = OfflineDataset.from_episodes([pushed, cut], low=[-1.0], high=[1.0])
            >>> dataset.transitions.next_obs.flatten(), dataset.transitions.discount
            (tensor([1., 2., 1.]), tensor([0.9900, 0.0000, 0.9900]))
            >>> dataset.has_rewards
            False
        """
        # A table in memory needs its size first, and bounds of the data all actions; files do not.
        hold = not builders_write() or unbounded == "data"
        # What makes episodes one by one may fill the same arrays again; those of a list are there.
        copied = hold and not isinstance(episodes, list | tuple)
        named = (
            e if isinstance(e, Episode) else read_episode(e, f"Episode {number}", copy=copied)
            for number, e in enumerate(episodes)
        )
        found = list(itertools.islice(named, None if hold else 1))
        check_any(found, source)
        layout = layout_of(found[0], obs_keys)
        if builders_write():
            check_parts(layout.keys, layout.shapes)
        builder = OfflineDatasetBuilder(
            None if builders_write() else sum(len(episode.action) for episode in found),
            obs_dim=layout.obs_dim,
            action_scaler=scaler_of((e.action for e in found), low, high, unbounded),
            gamma=gamma,
            out_of_bounds=out_of_bounds,
        )
        for episode in itertools.chain(found, named):
            check_like(episode, found[0])
            append_episode(builder, episode, layout)
        return cls.from_builder(builder, device=device, layout=layout, source=source)

    @classmethod
    def from_builder(
        cls,
        builder: OfflineDatasetBuilder,
        *,
        device: torch.device | str = "cpu",
        layout: ObservationLayout | None = None,
        source: str = "arrays",
        frames: Mapping[str, Tensor | ShardedRows] | None = None,
    ) -> Self:
        """Takes over what a builder has filled; a last transition without a flag is truncated.

        Of one that wrote to files, the index is written, and the dataset stays there.

        Args:
            builder: A builder, not to be appended to any more: its memory is shared.
            device: Where the table should live.
            layout: How observations were flattened; default: they were vectors.
            source: Where the data comes from.
            frames: Images by the keys of the layout, uint8, of which the builder's observations
                have the numbers, as a `FrameStore` reads them. Default: none.

        Returns:
            The dataset.

        Raises:
            EmptyDatasetError: If the builder holds no transition.
            ShapeError: If the layout's ``obs_dim`` is not the builder's.
            DataError: If there is no such device, or rows in files are to be on another one.
        """
        check_device(device)
        if builder.writer is not None and torch.device(device).type != "cpu":
            raise DataError(
                f"`device` does not fit: got {str(device)!r} for rows that go to files, expected "
                "'cpu'. Call .to(device) on the dataset, where it has room for the table."
            )
        size = builder.filled
        if not size:
            raise _empty(source)
        builder.warn_of_rounding()
        layout = layout or ObservationLayout((builder.obs_dim,))
        store = FrameStore(layout, frames).to(device) if frames else None
        columns = store.columns if store is not None else layout.obs_dim
        if columns != builder.obs_dim:
            raise ShapeError(
                f"`layout` has the wrong length: got {columns} from {layout}, expected "
                f"{builder.obs_dim}, the builder's obs_dim."
            )
        terminated, truncated = builder.terminated[:size], builder.truncated[:size]
        truncated[-1] |= not terminated[-1]
        ends = builder.ends[:size]
        ends[-1] = True
        table: Tensor | ShardedRows
        if builder.writer is None:
            table = torch.from_numpy(builder.table[:size]).to(device)
        else:
            table = builder.writer.rows("table")
        made = cls(
            table,
            layout=layout,
            terminated=terminated,
            truncated=truncated,
            action_scaler=builder.action_scaler,
            gamma=builder.gamma,
            source=source,
            has_rewards=builder.has_rewards,
            store=store,
            ends=None if np.array_equal(ends, terminated | truncated) else ends,
        )
        return made if builder.writer is None else made._finished(builder.writer)

    @classmethod
    def memmap(cls, folder: str | os.PathLike[str], *, verify: bool = True) -> Self:
        """Opens a dataset whose rows stay in files, as ``gtp_datasets.convert`` writes them.

        Minibatches are those of the same dataset in memory, bit for bit: the same rows are drawn
        and they alone are read. Statistics stand in the index. Learners train from it as from any
        other; what needs the whole table at once (`transitions`, `rewards`, `with_rewards`,
        `with_n_step` and so on) raises: call it before the data is converted. Flags are mapped,
        read-only. Several processes share one copy, in the system's page cache, and the resident
        set does not grow with the table. Nothing may write to the folder meanwhile.

        Args:
            folder: The folder.
            verify: Whether the SHA-256 of every file is compared, which reads all of them once.
                Lengths and headers always are.

        Returns:
            The dataset, on the CPU; `to` loads it to another device.

        Raises:
            DataError: If the folder is no dataset, or an incomplete one, or one of another version,
                or a file in it is missing, damaged, of another length or a link; the message names
                the file.

        Example:
            >>> import tempfile, torch
            >>> from gtp_policy import OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [2.0]], action=[[0.0], [0.0]], reward=[0.0, 1.0],
            ...     terminated=[1, 1], truncated=[0, 0], low=[-1.0], high=[1.0])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     _ = dataset.to_memmap(folder)
            ...     mapped = OfflineDataset.memmap(folder)
            >>> batches = [d.sample(9, generator=torch.Generator()) for d in (dataset, mapped)]
            >>> torch.equal(batches[0].obs, batches[1].obs)
            True
        """
        path = checked_folder(folder)
        index, columns = open_shards(path, verify=verify)
        try:
            keys = index.keys or ("",)
            if len(set(keys)) < len(keys) or len(set(index.images)) < len(index.images):
                raise ValueError(f"one key twice in {keys!r:.80} or {index.images!r:.80}")
            parts = dict(zip(keys, index.shapes, strict=True))
            layout = ObservationLayout(parts if index.keys else parts[""])
            scaler = ActionScaler(index.low, index.high)
            frames = {key: columns.pop(images_column(i)) for i, key in enumerate(index.images)}
            table, terminated, truncated = (
                columns.pop(name) for name in ("table", "terminated", "truncated")
            )
            ends = columns.pop("ends", None)
            opened = cls(
                table,
                layout=layout,
                terminated=terminated.array(),
                truncated=truncated.array(),
                action_scaler=scaler,
                gamma=index.gamma,
                source=index.source,
                n_step=index.n_step,
                has_rewards=index.has_rewards,
                history=index.history,
                chunk=index.chunk,
                store=FrameStore(layout, frames) if frames else None,
                ends=None if ends is None else ends.array(),
            )
            fault = opened._fault(columns)
        except (GTPError, KeyError, ValueError) as error:
            fault = f"{type(error).__name__} ({error})"
        if fault:
            raise DataError(
                f"The index of `{path}` does not fit together: got {fault}. Copy it again, or "
                "convert the data again."
            )
        return opened

    def _fault(self, more: Mapping[str, ShardedRows]) -> str:
        """Returns what is wrong with what an index says, "" if nothing is."""
        table = self._table
        parts = dict(zip(self.layout.keys or ("",), self.layout.shapes, strict=True))
        assert isinstance(table, ShardedRows)
        assert table.moments is not None
        narrow = 2 * self._obs_columns + self.action_dim + 2
        wide = narrow + (1 if self.chunk > 1 else self.action_dim)
        widths = {wide} if self.chunk > 1 else {narrow, wide}
        measured = (self._obs_columns + self.action_scaler.action_dim,)
        for what, fits in (
            (f"more columns, {sorted(more)}", not more),
            (
                f"rows of {table.dtype} and shape {table.shape[1:]}, expected {sorted(widths)}",
                table.dtype.is_floating_point and table.shape[1:] in {(w,) for w in widths},
            ),
            (
                f"{table.moments.mean.shape} and {table.moments.variance.shape} moments, "
                f"expected {measured}",
                {m.shape for m in table.moments} == {measured},
            ),
            *(
                (
                    f"flags of {flags.dtype} and shape {flags.shape}, expected ({len(table)},)",
                    flags.dtype == np.bool_ and flags.shape == (len(table),),
                )
                for flags in (self.terminated, self.truncated, self._ends)
                if flags is not None
            ),
            *(
                (
                    f"images {key!r} of {images.dtype} and shape {images.shape[1:]}, expected "
                    f"those of {self.layout}",
                    images.dtype == torch.uint8 and images.shape[1:] == parts.get(key),
                )
                for key, images in (self._store.frames.items() if self._store else ())
            ),
        ):
            if not fits:
                return what
        return ""

    def to_memmap(self, folder: str | os.PathLike[str], *, shard_bytes: int = SHARD_BYTES) -> Self:
        """Writes the dataset to a folder, for `memmap` to open: rows, flags, images, statistics.

        The index is written last. What an interrupted call left in the folder is replaced. What is
        returned shifts images as the dataset does (`with_random_shift`); the folder does not say
        so, call it again after `memmap`.

        Args:
            folder: A new folder, or one that is empty or incomplete.
            shard_bytes: Bytes of rows in one file at most. Every file stays open for as long as the
                dataset is in use, and systems allow about a thousand.

        Returns:
            The dataset, opened from there.

        Raises:
            DataError: If the folder holds a dataset or other files, or an argument is wrong, or
                there are more parts of an observation, or files, than `memmap` reads.
            OSError: If the operating system refuses.

        Example:
            >>> import tempfile
            >>> from gtp_policy import OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [2.0]], action=[[0.0], [0.0]], reward=[0.0, 1.0],
            ...     terminated=[1, 1], truncated=[0, 0], low=[-1.0], high=[1.0])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     dataset.to_memmap(folder)
            OfflineDataset('arrays', 2 transitions, obs_dim=1, action_dim=1, gamma=0.99, in files,
                           device='cpu')
        """
        check_parts(self.layout.keys, self.layout.shapes)
        with ShardWriter(folder, shard_bytes) as writer:
            for piece in pieces(self._table):
                writer.add("table", self._table[piece].numpy(force=True))
            written = copy.copy(self)
            written._table = writer.rows("table")
            return written._finished(writer)

    def _finished(self, writer: ShardWriter) -> Self:
        """Writes what is left once the table is in files, and returns the dataset from there."""
        flags = {"terminated": self.terminated, "truncated": self.truncated}
        flags |= {} if self._ends is None else {"ends": self._ends}
        for name, column in flags.items():
            writer.add(name, column, one_file=True)
        for i, images in enumerate(self._store.frames.values() if self._store else ()):
            if (name := images_column(i)) not in writer:  # unless they came with the rows
                for piece in pieces(images):
                    writer.add(name, images[piece].numpy(force=True))
        moments = self._moments()
        writer.finish(
            source=self.source.encode(errors="backslashreplace").decode(),
            gamma=self.gamma,
            n_step=self.n_step,
            history=self.history,
            chunk=self.chunk,
            has_rewards=self.has_rewards,
            keys=self.layout.keys,
            shapes=self.layout.shapes,
            images=self.images,
            low=tuple(self.action_scaler.low.tolist()),
            high=tuple(self.action_scaler.high.tolist()),
            mean=tuple(moments.mean.tolist()),
            variance=tuple(moments.variance.tolist()),
        )
        opened = self.memmap(writer.folder, verify=False)
        if self._store is not None and opened._store is not None:
            # How images are augmented is no part of the data, and goes on here as it was.
            opened._store = opened._store.replace(opened._store.frames, self._store.shift)
        return opened

    def __len__(self) -> int:
        """Returns N, the number of transitions."""
        return self._table.shape[0]

    def __repr__(self) -> str:
        """Shows where the data comes from and its size."""
        return (
            f"OfflineDataset({self.source!r}, {len(self)} transitions, obs_dim={self.obs_dim}, "
            f"action_dim={self.action_dim}, gamma={self.gamma}, "
            + (f"n_step={self.n_step}, " if self.n_step > 1 else "")
            + ("" if self.has_rewards else "no rewards, ")
            + (f"history={self.history}, " if self.history > 1 else "")
            + (f"chunk={self.chunk}, " if self.chunk > 1 else "")
            + ("in files, " if isinstance(self._table, ShardedRows) else "")
            + f"device='{self.device}')"
        )

    @property
    def obs_keys(self) -> tuple[str, ...]:
        """Keys of a Dict observation in the order they were flattened; empty for a Box."""
        return self.layout.keys

    @property
    def device(self) -> torch.device:
        """The device that the table lives on."""
        return self._table.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the table's numbers."""
        return self._table.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that the table, the flags and the images occupy, in memory or in files."""
        images = self._store.nbytes if self._store is not None else 0
        ends = self._ends.nbytes if self._ends is not None else 0
        return self._table.nbytes + self.terminated.nbytes + self.truncated.nbytes + ends + images

    @property
    def ends(self) -> npt.NDArray[np.bool_]:
        """Whether the log of an episode ends with a row, bool (N,): what follows is of another one.

        Where one of the flags is set, and at the last row, unless the data says more: a log may go
        on where ``terminated`` is set. Then values end there, and with them n-step returns and
        chunks; episodes, their returns and histories do not.
        """
        if self._ends is not None:
            return self._ends
        ends: npt.NDArray[np.bool_] = self.terminated | self.truncated
        ends[-1:] = True
        return ends

    @property
    def transitions(self) -> Transitions:
        """All transitions in time order, as views of the table; of images, a copy as numbers."""
        return self._split(self.table)

    @property
    def rewards(self) -> Tensor:
        """Rewards of all transitions, a view of the table, shape (N,); NaN where there are none."""
        return self._columns().reward

    @property
    def images(self) -> tuple[str, ...]:
        """Keys of the observation's parts that are images; "" where it is one itself."""
        return tuple(self._store.frames) if self._store is not None else ()

    def rows(self, start: int, stop: int) -> Transitions:
        """Returns consecutive transitions in time order.

        Args:
            start: The first.
            stop: Behind the last.

        Returns:
            As many as there are of them.
        """
        return self._split(self._table[start:stop])

    def stored(self) -> list[Tensor]:
        """Returns everything that is held: columns of the table, and images.

        Returns:
            The fields of `transitions` that are there, with the numbers of images instead of
            pixels, and behind them the images, uint8, one tensor per key.
        """
        images = [] if self._store is None else [*self._store.frames.values()]
        # Where the table is in memory its images are there, too.
        return [*self._columns().present(), *(i for i in images if isinstance(i, Tensor))]

    def sample(self, batch_size: int, *, generator: torch.Generator) -> Transitions:
        """Draws a minibatch uniformly with replacement, by one gather on the dataset's device.

        Args:
            batch_size: B, at least 1.
            generator: Source of randomness, on the dataset's device.

        Returns:
            B transitions.

        Raises:
            DataError: If ``batch_size`` is smaller than 1.
            TypeError: If ``generator`` is no generator.

        References:
            | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al.,
            | 2025), Algorithm 1, first line of the loop, https://arxiv.org/abs/2510.11499
        """
        return self._split(self.sample_rows(batch_size, [generator]), generator)

    def take(self, index: Tensor) -> Transitions:
        """Returns transitions by their numbers.

        Args:
            index: Integers from 0 to ``len(dataset) - 1``, shape (B,), on the dataset's device.

        Returns:
            B transitions, copied.

        Raises:
            DataError: If ``index`` is no vector of integers.
            IndexError: If there is no such transition.

        Example:
            >>> import torch
            >>> from gtp_policy import OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [2.0]], action=[[0.0], [0.0]], reward=[0.0, 1.0],
            ...     terminated=[1, 1], truncated=[0, 0], low=[-1.0], high=[1.0])
            >>> dataset.take(torch.tensor([1, 1])).reward
            tensor([1., 1.])
        """
        check_kind("index", index, Tensor)
        whole = not (index.is_floating_point() or index.is_complex() or index.dtype == torch.bool)
        if index.ndim != 1 or not whole:
            raise DataError(
                f"`index` does not fit: got {index.dtype} of shape {tuple(index.shape)}, expected "
                "integers of shape (B,). Of a mask, take mask.nonzero()[:, 0]."
            )
        return self._split(self._table.index_select(0, index.long()))

    @property
    def table(self) -> Tensor:
        """All rows: obs, action, reward, discount, next_obs, and what may follow, shape (n, W).

        What may follow is next_action or chunk_length. Not a copy: do not write to it. Of images,
        rows hold numbers. A DataError if rows stay in files.
        """
        if isinstance(self._table, Tensor):
            return self._table
        raise DataError(
            f"The whole table is needed in memory: got {self!r}, whose rows stay in files. Call "
            "with_rewards, with_n_step, with_history, with_chunks, with_next_actions and what else "
            "makes or shows a whole table before the data is converted, and convert what it "
            "returns."
        )

    def sample_rows(self, batch_size: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Draws several minibatches like `sample`, one below the other, by one gather for all.

        Args:
            batch_size: B, at least 1.
            generators: One per minibatch, on the dataset's device.

        Returns:
            Rows of the table: obs, action, reward, discount and next_obs of n B transitions, shape
            (n B, 2 O + A + 2), and next_action or chunk_length where the dataset has them.

        Raises:
            DataError: If ``batch_size`` is smaller than 1.
            TypeError: If one of the generators is none.

        Example:
            >>> import torch
            >>> from gtp_policy import OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [2.0]], action=[[0.0], [0.0]], reward=[0.0, 0.0],
            ...     terminated=[1, 1], truncated=[0, 0], low=[-1.0], high=[1.0])
            >>> dataset.sample_rows(4, [torch.Generator(), torch.Generator()]).shape
            torch.Size([8, 5])
        """
        batch_size = check_batch_size(batch_size)
        if not isinstance(generators, list | tuple) or not generators:
            raise TypeError(
                f"`generators` are none: got {generators!r:.60}, expected a list with a "
                "torch.Generator per minibatch."
            )
        for generator in generators:
            if not isinstance(generator, torch.Generator):  # None would mean torch's global one
                raise TypeError(
                    f"`generator` has the wrong type: got {type(generator).__name__}, expected a "
                    "torch.Generator, e.g. learner.stream('batch')."
                )
        numbers = [
            torch.randint(len(self), (batch_size,), generator=g, device=self._table.device)
            for g in generators
        ]
        return self._table.index_select(0, numbers[0] if len(numbers) == 1 else torch.cat(numbers))

    def observation_statistics(self) -> tuple[Tensor, Tensor]:
        """Computes what an `ObservationNormalizer` takes; images are left to their encoder.

        Returns:
            Mean and population standard deviation of ``obs``, each (O,).

        Example:
            >>> from gtp_policy import OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [2.0]], action=[[0.0], [0.0]], reward=[0.0, 0.0],
            ...     terminated=[1, 1], truncated=[0, 0], low=[-1.0], high=[1.0])
            >>> dataset.observation_statistics()
            (tensor([1.]), tensor([1.]))
        """
        moments, stop = self._moments(), self._obs_columns
        mean = moments.mean[:stop].to(self.dtype)
        std = moments.variance[:stop].sqrt().to(self.dtype)
        if self._store is not None:
            return self._store.spread(mean, 0.0), self._store.spread(std, 1.0)
        return mean, std

    def action_statistics(self) -> tuple[Tensor, Tensor]:
        """Computes what an actor standardises actions by.

        Of chunks, every step has the statistics of single actions: padding counts for nothing.

        Returns:
            Mean and population standard deviation, each (A,), in units of [-1, 1].

        Example:
            >>> from gtp_policy import OfflineDataset
            >>> OfflineDataset.from_arrays(
            ...     obs=[[0.0], [0.0]], action=[[0.5], [-0.5]], reward=[0.0, 0.0],
            ...     terminated=[1, 1], truncated=[0, 0], low=[-1.0], high=[1.0]
            ... ).action_statistics()
            (tensor([0.]), tensor([0.5000]))
        """
        mean, variance = (m[self._obs_columns :] for m in self._moments())
        of_one = mean.to(self.dtype), variance.sqrt().to(self.dtype)
        return of_one[0].repeat(self.chunk), of_one[1].repeat(self.chunk)

    def action_std(self) -> float:
        """Measures the spread of the actions: the natural ``sigma_data`` of an actor.

        Returns:
            Root mean square over dimensions of the standard deviation, in units of [-1, 1].

        Example:
            >>> from gtp_policy import OfflineDataset
            >>> OfflineDataset.from_arrays(
            ...     obs=[[0.0], [0.0]], action=[[0.5], [-0.5]], reward=[0.0, 0.0],
            ...     terminated=[1, 1], truncated=[0, 0], low=[-1.0], high=[1.0]).action_std()
            0.5
        """
        return float(self._moments().variance[self._obs_columns :].mean().sqrt())

    def _moments(self) -> Moments:
        """Measures the columns of observations and of the first step of actions, a row's own.

        Piece by piece in double precision (Chan et al., 1979), so that rows in files, which are
        measured once, have the statistics of rows in memory.
        """
        if isinstance(self._table, ShardedRows) and self._table.moments is not None:
            return self._table.moments
        stop = self._obs_columns + self.action_scaler.action_dim
        mean = torch.zeros(stop, dtype=torch.float64, device=self.device)
        squares, count = torch.zeros_like(mean), 0
        for piece in pieces(self._table):
            rows = self._table[piece][:, :stop].double()
            of_rows = rows.mean(0)
            squares += (rows - of_rows).square_().sum(0)
            difference, total = of_rows - mean, count + len(rows)
            squares += difference.square() * (count * len(rows) / total)
            mean += difference * (len(rows) / total)
            count = total
        return Moments(mean, squares / count)

    def with_rewards(self, transform: RewardTransform) -> Self:
        """Returns the dataset with transformed rewards; the original keeps its own.

        Args:
            transform: What to do to them.

        Returns:
            A dataset with a new table that shares flags and description.

        Raises:
            DataError: If the transform is to divide by a spread that is 0, or makes rewards that
                are not finite, or there are none, or they are sums of several steps.

        Example:
            >>> from gtp_policy import OfflineDataset
            >>> from gtp_policy.rewards import LinearReward
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [0.0]], action=[[0.5], [-0.5]], reward=[0.0, 1.0],
            ...     terminated=[1, 1], truncated=[0, 0], low=[-1.0], high=[1.0])
            >>> dataset.with_rewards(LinearReward(subtract=1.0)).transitions.reward
            tensor([-1.,  0.])
        """
        check_kind("transform", transform, *get_args(get_args(RewardTransform)[0]))
        self.check_one_step("with_rewards")
        self.check_rewards("with_rewards")
        return self.with_reward_column(transform.apply(self.rewards, self.ends))

    def with_reward_column(self, rewards: Tensor) -> Self:
        """Returns the dataset with other rewards, as given; the original keeps its own.

        For rewards of your own making, or for data that has none. Images are shared.

        Args:
            rewards: One per transition, as the dataset holds them: of n-step transitions, sums.
                Finite, shape (N,).

        Returns:
            A dataset with a new table that shares flags and description, and has rewards.

        Raises:
            DataError: If ``rewards`` is no tensor of that shape, or not finite in the table's type.

        Example:
            >>> import torch
            >>> from gtp_policy import OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [0.0]], action=[[0.5], [-0.5]], terminated=[1, 1],
            ...     truncated=[0, 0], low=[-1.0], high=[1.0])
            >>> scored = dataset.with_reward_column(torch.tensor([2.0, 3.0]))
            >>> scored.rewards, scored.has_rewards, dataset.has_rewards
            (tensor([2., 3.]), True, False)
        """
        check_kind("rewards", rewards, Tensor)
        if rewards.shape != (len(self),) or rewards.is_complex():
            raise DataError(
                f"`rewards` do not fit: got shape {tuple(rewards.shape)} of {rewards.dtype}, "
                f"expected ({len(self)},) of numbers, one per transition."
            )
        column = rewards.to(self.table)
        if not (fine := column.isfinite()).all():
            row = int((~fine).nonzero()[0, 0])
            raise DataError(
                f"`rewards` are not finite: got {rewards[row].item()} at row {row}, expected "
                f"numbers that {column.dtype} holds."
            )
        changed = copy.copy(self)
        changed._table = self.table.clone()
        changed.rewards.copy_(column)
        changed.has_rewards = True
        return changed

    def with_best_episodes(self, share: float) -> Self:
        r"""Returns the dataset without the episodes of the lowest returns.

        Of n episodes the :math:`\lceil n \cdot share \rceil` with the highest sums of rewards are
        kept, in time order; of equal ones the earlier. Cloning what is left is known as X % BC.
        Take it before a reward transform that makes long episodes look bad.

        Args:
            share: Of the episodes, in (0, 1].

        Returns:
            A dataset with a new table and new flags.

        Raises:
            DataError: If ``share`` is out of range, or there are no rewards, or they are sums of
                several steps.

        References:
            | Decision Transformer: Reinforcement Learning via Sequence Modeling (Chen et al.,
            | 2021), section 5.1, https://arxiv.org/abs/2106.01345

        Example:
            >>> from gtp_policy import OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [1.0]], action=[[0.5], [-0.5]], reward=[0.0, 1.0],
            ...     terminated=[1, 1], truncated=[0, 0], low=[-1.0], high=[1.0])
            >>> dataset.with_best_episodes(0.5).transitions.obs
            tensor([[1.]])
        """
        found = as_float(share)
        if found is None or not 0 < found <= 1:
            raise DataError(f"`share` is out of range: got {share!r}, expected 0 < share <= 1.")
        episode, returns = self._episode_returns("with_best_episodes")
        count = math.ceil(len(returns) * found - 1e-9)  # 100 * 0.07 is a little more than 7
        best = np.argsort(-returns, kind="stable")[: max(count, 1)]
        kept = np.isin(episode, best)
        return self._with_rows(np.flatnonzero(kept))

    def with_return_weighting(self, tilt: float = 1.0) -> Self:
        r"""Returns the dataset with episodes of high returns more often, those of low ones less.

        Of :math:`N` transitions in episodes of returns :math:`R_i` and lengths :math:`l_i`, episode
        i comes

        .. math:: c_i = N w_i / \textstyle\sum_j w_j l_j \text{ times}, \quad
            w_i = e^{\,\text{tilt} \cdot (R_i - \mu) / \sigma}

        rounded such that about N transitions stay; :math:`\mu` and :math:`\sigma` are mean and
        spread of the return over transitions. Whole episodes are repeated or left out, in time
        order. Where agents of different quality made the data, what is cloned is more of the better
        ones: a critic tells which action is better in a state, not whose states are worth a
        network's attention. With ``tilt=0``, or where all returns are equal, nothing changes.

        Take it before a reward transform that makes long episodes look bad, and before
        `with_n_step`, `with_history` and `with_chunks`.

        Args:
            tilt: By how many powers of e an episode of a return one spread higher comes more often,
                0 to 10.

        Returns:
            A dataset with a new table and new flags.

        Raises:
            DataError: If ``tilt`` is out of range, or there are no rewards, or they are sums of
                several steps.

        References:
            | Harnessing Mixed Offline Reinforcement Learning Datasets via Trajectory Weighting
            | (Hong et al., 2023), https://arxiv.org/abs/2306.13085

        Example:
            >>> from gtp_policy import OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [1.0], [2.0]], action=[[0.5]] * 3, reward=[0.0, 1.0, 2.0],
            ...     terminated=[1, 1, 1], truncated=[0, 0, 0], low=[-1.0], high=[1.0])
            >>> dataset.with_return_weighting(1.0).transitions.obs.flatten()
            tensor([1., 2., 2.])
        """
        found = as_float(tilt)
        if found is None or not 0 <= found <= 10:
            raise DataError(f"`tilt` is out of range: got {tilt!r}, expected 0 to 10.")
        episode, returns = self._episode_returns("with_return_weighting")
        spread = float(returns[episode].std())
        if found == 0 or spread <= 1e-9 * float(np.abs(returns).max()):
            return self
        weight = np.exp(found * (returns - returns.max()) / spread)  # the mean cancels
        counts = len(self) * weight / weight[episode].sum()
        # Rounded sums: what one episode loses, a later one gets.
        counts = np.diff(np.rint(np.cumsum(counts)).astype(np.int64), prepend=0)
        lengths = np.bincount(episode)
        first = np.repeat(np.cumsum(lengths) - lengths, counts)
        size = np.repeat(lengths, counts)
        within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        weighted = self._with_rows(np.repeat(first, size) + within)
        # Of the last row, which may have no flag, there can be copies that are not last.
        weighted.truncated |= (within == np.repeat(size, size) - 1) & ~weighted.terminated
        return weighted

    def split_episodes(self, share: float, *, seed: int = 0) -> tuple[Self, Self]:
        r"""Splits the dataset by whole episodes, drawn at random: one to train on, one kept back.

        Of n episodes the first dataset gets :math:`n \cdot share` of them, rounded, and each at
        least one. Neighbouring transitions look alike, so that a split by transitions would try a
        policy on what it has seen.

        Take it first of all: what is measured of the data, such as the scales of the actions, then
        comes from the first dataset alone.

        Args:
            share: Of the episodes in the first dataset, in (0, 1).
            seed: Of the draw: equal seeds split equally.

        Returns:
            Two datasets with new tables and flags, each in time order.

        Raises:
            DataError: If ``share`` or ``seed`` is out of range, there are fewer than two episodes,
                or the dataset stays in files.

        Example:
            >>> from gtp_policy import OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [0.0], [1.0], [2.0]], action=[[0.5]] * 4,
            ...     terminated=[0, 1, 1, 1], truncated=[0] * 4, low=[-1.0], high=[1.0])
            >>> train, held_out = dataset.split_episodes(0.7)
            >>> sorted([*train.transitions.obs.flatten().tolist(),
            ...         *held_out.transitions.obs.flatten().tolist()])
            [0.0, 0.0, 1.0, 2.0]
        """
        found, number = as_float(share), as_int(seed)
        if found is None or not 0 < found < 1:
            raise DataError(f"`share` is out of range: got {share!r}, expected 0 < share < 1.")
        if number is None or number < 0:
            raise DataError(f"`seed` is out of range: got {seed!r}, expected an integer >= 0.")
        episode = episode_numbers(self.ends)
        n = int(episode[-1]) + 1
        if n < 2:
            raise DataError(
                f"Nothing can be kept back: got {n} episode in {self.source}, expected at least 2. "
                "Record another one, or cut the log at points where the robot was reset."
            )
        order = torch.randperm(n, generator=new_stream(number, "split"), device="cpu").numpy()
        count = min(max(round(n * found), 1), n - 1)
        first = np.isin(episode, order[:count])
        return self._with_rows(np.flatnonzero(first)), self._with_rows(np.flatnonzero(~first))

    def _episode_returns(self, what: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Returns the number of each row's episode and each episode's return, for a method."""
        self.check_one_step(what)
        self.check_rewards(what)
        return episode_numbers(self.ends), episode_returns(self.rewards, self.ends)

    def _with_rows(self, rows: npt.NDArray[np.intp]) -> Self:
        """Returns the dataset with these rows, whole episodes in time order."""
        chosen = copy.copy(self)
        chosen._table = self.table[torch.from_numpy(rows).to(self.device)]
        chosen.terminated, chosen.truncated = self.terminated[rows], self.truncated[rows]
        chosen._ends = None if self._ends is None else self._ends[rows]
        return chosen

    def with_n_step(self, n: int) -> Self:
        r"""Returns the dataset with n-step transitions: rewards summed along the data.

        .. math:: r_t + \gamma r_{t+1} + \ldots + \gamma^{k-1} r_{t+k-1}, \quad
            \gamma^k (1 - \mathrm{terminated}), \quad s_{t+k}

        instead of reward, discount and next observation, with k = n or as many steps as the episode
        has left. An episode that ends by itself gives the rest of its return and discount 0; one
        that is cut bootstraps from its last observation, never across its end. Actions and
        observations stay, and so do the flags: they say where episodes end.

        Take it after a reward transform. The data's own actions are followed for n steps, so that
        values lean towards those of the behaviour: short n, for sparse rewards.

        Args:
            n: Steps, at least 1; 1 changes nothing.

        Returns:
            A dataset with a new table that shares flags and description.

        Raises:
            DataError: If ``n`` is smaller than 1, or the transitions are n-step ones already.

        References:
            | Reinforcement Learning: An Introduction (Sutton and Barto, 2018), section 7.1
            | http://incompleteideas.net/book/the-book-2nd.html

        Example:
            >>> from gtp_policy import OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [1.0], [2.0]], action=[[0.0]] * 3, reward=[1.0, 2.0, 4.0],
            ...     next_obs=[[1.0], [2.0], [3.0]], terminated=[0, 0, 1], truncated=[0, 0, 0],
            ...     low=[-1.0], high=[1.0], gamma=0.5)
            >>> two = dataset.with_n_step(2).transitions
            >>> two.reward, two.discount, two.next_obs.flatten()
            (tensor([2., 4., 4.]), tensor([0.2500, 0.0000, 0.0000]), tensor([2., 3., 3.]))
        """
        n = check_steps("n", n)
        self.check_one_step("with_n_step")
        changed, _ = self._over_steps(n)
        changed.n_step = n
        return changed

    def with_random_shift(self, pixels: int = 4) -> Self:
        """Returns the dataset with images that are moved a little whenever they are sampled.

        Up to so many pixels, up or down and left or right, each way equally often; edges are
        repeated. Observation and next observation move by themselves, images of one history
        together. Only `sample` does so, with its generator, behind the draw of the minibatch:
        `transitions` and acting see images as they are.

        Args:
            pixels: At most, at least 0; 0 changes nothing.

        Returns:
            A dataset that shares table, images and description.

        Raises:
            DataError: If ``pixels`` is smaller than 0, or there are no images.

        References:
            | Image Augmentation Is All You Need (Kostrikov et al., 2020), section 3.1
            | https://arxiv.org/abs/2004.13649

        Example:
            >>> import numpy as np
            >>> from gtp_policy import OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=np.zeros((2, 8, 8, 3), np.uint8), action=[[0.5], [-0.5]], reward=[0.0, 1.0],
            ...     terminated=[1, 1], truncated=[0, 0], low=[-1.0], high=[1.0])
            >>> dataset.with_random_shift(2).obs_dim
            192
        """
        found = as_int(pixels)
        if found is None or found < 0:
            raise DataError(f"`pixels` is out of range: got {pixels!r}, expected an integer >= 0.")
        if self._store is None:
            raise DataError(
                f"There is nothing to shift: got observations {self.layout} without images, "
                "expected some of type uint8."
            )
        changed = copy.copy(self)
        changed._store = self._store.replace(self._store.frames, found)
        return changed

    def with_history(self, m: int) -> Self:
        r"""Returns the dataset with the last m observations of the episode instead of one.

        .. math:: (o_{t-m+1}, \ldots, o_t)

        The newest stands last. Before the start of an episode its first observation stands, so that
        nothing of another episode is ever seen. Take it before chunks and n-step returns: next
        observations then have their history too. ``layout`` stays that of one observation.

        Args:
            m: Observations, at least 1; 1 changes nothing.

        Returns:
            A dataset with a new table that shares flags and description; itself for m = 1.

        Raises:
            DataError: If ``m`` is smaller than 1, or transitions span several steps or have a
                history already.

        Example:
            >>> from gtp_policy import OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [1.0], [5.0]], action=[[0.0]] * 3, reward=[0.0] * 3,
            ...     next_obs=[[1.0], [2.0], [6.0]], terminated=[0, 1, 1], truncated=[0, 0, 0],
            ...     low=[-1.0], high=[1.0])
            >>> two = dataset.with_history(2).transitions
            >>> two.obs.tolist(), two.next_obs.tolist()
            ([[0.0, 0.0], [0.0, 1.0], [5.0, 5.0]], [[0.0, 1.0], [1.0, 2.0], [5.0, 6.0]])
        """
        m = check_steps("m", m)
        if m == 1:
            return self
        self.check_one_step("with_history")
        if self.history > 1:
            raise DataError(
                f"with_history needs single observations: got history={self.history}, expected 1. "
                "Take the dataset that with_history was called on."
            )
        one, starts = self._columns(), self._starts()
        row = np.arange(len(self))
        past = [
            one.obs[torch.from_numpy(np.maximum(row - back, starts)).to(self.device)]
            for back in range(m - 1, -1, -1)
        ]
        rest = [one.action, one.reward[:, None], one.discount[:, None]]
        last = [] if one.next_action is None else [one.next_action]
        changed = copy.copy(self)
        changed._table = torch.cat([*past, *rest, *past[1:], one.next_obs, *last], 1)
        changed.history, changed.obs_dim = m, self.obs_dim * m
        return changed

    def with_chunks(self, h: int) -> Self:
        r"""Returns the dataset with the next h actions of the episode instead of one.

        .. math:: a = (a_t, \ldots, a_{t+h-1}), \quad
            r = r_t + \gamma r_{t+1} + \ldots + \gamma^{k-1} r_{t+k-1}, \quad
            \gamma^k (1 - \mathrm{terminated}), \quad s_{t+k}

        with k = h or as many steps as the episode has left; k is ``chunk_length``. Behind the end
        of an episode its last action is repeated. A learner knows this padding from the data:

        * The actor's losses count the k steps alone.
        * An episode that ends by itself has a return that does not depend on what would have
          followed, so that the critic learns from its chunks, discount 0.
        * One that is cut before the chunk is over says nothing about the rest of the chunk: the
          critic does not learn from it, and the actor clones it unweighted.

        One flow map over all h A numbers learns what belongs together, and the critic values whole
        chunks: values are backed up h steps at a time along what the policy would really play.
        Take it last, after histories and reward transforms. `GTPLearner.player` plays the chunks.

        Args:
            h: Steps of an action, at least 1; 1 changes nothing.

        Returns:
            A dataset with a new table that shares flags and description; itself for h = 1.

        Raises:
            DataError: If ``h`` is smaller than 1, or transitions span several steps or have next
                actions.

        References:
            | Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware (Zhao et al.,
            | 2023), section 4.1, https://arxiv.org/abs/2304.13705
            | Reinforcement Learning with Action Chunking (Li et al., 2025)
            | https://arxiv.org/abs/2507.07969

        Example:
            >>> from gtp_policy import OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [1.0], [2.0]], action=[[0.1], [0.2], [0.3]], reward=[1.0, 2.0, 4.0],
            ...     next_obs=[[1.0], [2.0], [3.0]], terminated=[0, 0, 1], truncated=[0, 0, 0],
            ...     low=[-1.0], high=[1.0], gamma=0.5)
            >>> two = dataset.with_chunks(2).transitions
            >>> two.action
            tensor([[0.1000, 0.2000],
                    [0.2000, 0.3000],
                    [0.3000, 0.3000]])
            >>> two.reward, two.discount, two.chunk_length
            (tensor([2., 4., 4.]), tensor([0.2500, 0.0000, 0.0000]), tensor([2., 2., 1.]))
        """
        h = check_steps("h", h)
        if h == 1:
            return self
        self.check_one_step("with_chunks")
        if self._columns().next_action is not None:
            raise DataError(
                "with_chunks has no next actions: got a dataset of with_next_actions, expected one "
                "without. critic_penalty is for actions of one step."
            )
        changed, last = self._over_steps(h)
        row = torch.arange(len(self), device="cpu")
        actions = self._columns().action
        chunk = [actions[torch.minimum(row + step, last).to(self.device)] for step in range(h)]
        length = (last - row + 1).to(self.table).unsqueeze(1)
        of_action, of_reward = self._obs_columns, self._obs_columns + self.action_dim
        changed._table = torch.cat(
            [changed.table[:, :of_action], *chunk, changed.table[:, of_reward:], length], 1
        )
        changed.chunk, changed.action_dim = h, self.action_dim * h
        return changed

    def with_steps(self, history: int, chunk: int) -> Self:
        """Returns the dataset in the history and the chunks of a policy.

        Args:
            history: m of its actor's config.
            chunk: h of its actor's config.

        Returns:
            `with_history` and `with_chunks` of what it has single observations and actions of.

        Raises:
            DataError: If it has other histories or chunks than the policy, or more than single
                steps of what has to become some.

        Example:
            >>> from gtp_policy import OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [0.0]], action=[[0.5], [-0.5]], reward=[0.0, 1.0],
            ...     terminated=[0, 1], truncated=[0, 0], low=[-1.0], high=[1.0])
            >>> dataset.with_steps(history=1, chunk=2).transitions.action
            tensor([[ 0.5000, -0.5000],
                    [-0.5000, -0.5000]])
        """
        found = self
        if found.history == 1:
            found = found.with_history(history)
        if found.chunk == 1:
            found = found.with_chunks(chunk)
        got, expected = (found.history, found.chunk), (history, chunk)
        if got != expected:
            raise DataError(
                f"The dataset is one of other steps than the policy: got (history, chunk) = {got}, "
                f"expected {expected}. Give the dataset of single steps."
            )
        return found

    def _over_steps(self, n: int) -> tuple[Self, Tensor]:
        """Returns the dataset with transitions of n steps, and the last row that each spans."""
        changed = copy.copy(self)
        changed._table = self.table.clone()
        # What is earned does not go on behind a termination, whether or not the log does.
        ends = torch.from_numpy(self.terminated | self.ends)
        one = self._columns()
        reward, discount = one.reward.double(), one.discount.double()
        # Of row i, what is summed so far, and the row that it reaches.
        last = torch.arange(len(self), device="cpu")
        for _ in range(n - 1):
            rows = torch.nonzero(~ends[last])[:, 0]
            if not len(rows):  # every episode has come to its end
                break
            last[rows] += 1
            rows, ahead = rows.to(self.device), last[rows].to(self.device)
            reward[rows] += discount[rows] * one.reward[ahead]
            discount[rows] *= one.discount[ahead]
        of_reward = self._obs_columns + self.action_dim
        changed.table[:, of_reward] = reward.to(self.table)
        changed.table[:, of_reward + 1] = discount.to(self.table)
        changed.table[:, of_reward + 2 :] = self.table[last.to(self.device), of_reward + 2 :]
        return changed, last

    def _starts(self) -> npt.NDArray[np.intp]:
        """Returns the row in which the episode of each row begins."""
        first = np.ones(len(self), np.bool_)
        first[1:] = self.ends[:-1]
        row = np.arange(len(self))
        return np.maximum.accumulate(np.where(first, row, 0))

    def with_next_actions(self) -> Self:
        """Returns the dataset with the data's own action at each next observation.

        What ``GTPLearnerConfig.critic_penalty`` needs. Where an episode ends by itself no value
        follows, and its last action stands there; where it is cut, the next action is not known and
        the row is left out, so that the row before it ends the episode. Take it before n-step
        returns, which go on to the action at the observation that they reach.

        Returns:
            A dataset with a new table; itself if it has next actions.

        Raises:
            EmptyDatasetError: If no row has a next action.
            DataError: If rewards are sums of several steps.

        Example:
            >>> from gtp_policy import OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [1.0], [2.0]], action=[[0.1], [0.2], [0.3]], reward=[0.0] * 3,
            ...     next_obs=[[1.0], [2.0], [3.0]], terminated=[0, 0, 0], truncated=[0, 0, 1],
            ...     low=[-1.0], high=[1.0])
            >>> dataset.with_next_actions().transitions.next_action
            tensor([[0.2000],
                    [0.3000]])
        """
        if self._columns().next_action is not None:
            return self
        self.check_one_step("with_next_actions")
        cut = self.ends & ~self.terminated
        kept = np.flatnonzero(~cut)
        if not len(kept):
            raise EmptyDatasetError(
                f"No transition has a next action: got {len(self)} rows that each end a cut "
                "episode, expected episodes of several rows. Set critic_penalty to 0."
            )
        rows = torch.from_numpy(kept)
        following = rows + torch.from_numpy(~self.terminated[kept])
        changed = copy.copy(self)
        actions = self._columns().action[following.to(self.device)]
        changed._table = torch.cat([self.table[rows.to(self.device)], actions], 1)
        changed.terminated = self.terminated[kept]
        changed.truncated = self.truncated[kept] | (~changed.terminated & cut[following.numpy()])
        if self._ends is not None:
            changed._ends = self._ends[kept] | cut[(kept + 1).clip(max=len(self) - 1)]
        return changed

    def check_one_step(self, what: str) -> None:
        """Raises if rewards are sums of several steps, which something would take for those of one.

        Args:
            what: What would, for the message.

        Raises:
            DataError: If the dataset is one of `with_n_step` or `with_chunks`.
        """
        for method, name, steps in (
            ("with_n_step", "n_step", self.n_step),
            ("with_chunks", "chunk", self.chunk),
        ):
            if steps > 1:
                raise DataError(
                    f"{what} needs rewards of single steps: got {name}={steps}, expected 1. Take "
                    f"the dataset that {method} was called on."
                )

    def check_rewards(self, what: str, advice: str | None = None) -> None:
        """Raises if the data has no rewards, for something that needs them.

        Args:
            what: What does, for the message.
            advice: What to do; default: what helps a user of the core.

        Raises:
            DataError: If ``has_rewards`` is False.
        """
        if not self.has_rewards:
            # What makes another dataset can be left out; a learner's own advice is another.
            if advice is None and hasattr(type(self), what):
                advice = (
                    f"Leave {what} out, load data with rewards, or give them: "
                    "dataset.with_reward_column(rewards)."
                )
            raise missing_rewards(what, f"got a dataset without any ({self.source})", advice)

    def to(self, device: torch.device | str) -> Self:
        """Returns the dataset with its table on another device.

        Args:
            device: Target device.

        Returns:
            A dataset that shares flags and description, and the table if it is there already.

        Raises:
            DataError: If there is no such device.
            DeviceError: If it has no memory left for the table, or another process has taken it.
        """
        check_device(device)
        moved, size = copy.copy(self), self._table.nbytes
        size += 0 if self._store is None else self._store.nbytes
        with named_device_errors(f"a table of {len(self)} transitions", device, size):
            moved._table = self._table.to(device)
            moved._store = None if self._store is None else self._store.to(device)
        return moved

    @property
    def _obs_columns(self) -> int:
        """Columns of the table for an observation."""
        if self._store is None:
            return self.obs_dim
        return self._store.columns * self.history

    def _columns(self) -> Transitions:
        """Returns views of the table, in which images are numbers of images."""
        return unpack(self.table, self._obs_columns, self.action_dim, self.chunk)

    def _split(self, rows: Tensor, generator: torch.Generator | None = None) -> Transitions:
        found = unpack(rows, self._obs_columns, self.action_dim, self.chunk)
        if self._store is None:
            return found
        return found._replace(
            obs=self._store.expand(found.obs, generator),
            next_obs=self._store.expand(found.next_obs, generator),
        )


def _plain(next_obs: npt.ArrayLike | Mapping[str, npt.ArrayLike]) -> npt.ArrayLike:
    if isinstance(next_obs, Mapping):
        raise DataError(
            "`next_obs` is not like `obs`: got a mapping and an array, expected an array."
        )
    return next_obs


def check_steps(name: str, steps: object) -> int:
    """Returns a number of steps as a plain integer, or raises a DataError unless it is >= 1."""
    found = as_int(steps)
    if found is None or found < 1:
        raise DataError(f"`{name}` is out of range: got {steps!r}, expected an integer >= 1.")
    return found


def check_batch_size(batch_size: object) -> int:
    """Returns a batch size as a plain integer, or raises a DataError unless it is 1 to 2^31 - 1."""
    found = as_int(batch_size)
    if found is None or not 1 <= found < 2**31:
        raise DataError(
            f"`batch_size` is out of range: got {batch_size!r}, expected an integer >= 1 and below "
            "2^31."
        )
    return found


def _empty(source: str) -> EmptyDatasetError:
    return EmptyDatasetError(
        f"The dataset is empty: got 0 transitions from {source}, expected at least 1."
    )
