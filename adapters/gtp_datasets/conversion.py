"""Data that is larger than the memory: from whatever loaders read to files, read row by row."""

import os
from typing import Any

from gtp_datasets.loader import load_dataset
from gtp_policy import OfflineDataset
from gtp_policy.errors import DataError
from gtp_policy.shards import SHARD_BYTES, ShardWriter, builders_write_to


def convert(
    source: Any,  # noqa: ANN401 - a dataset, or whatever load_dataset takes
    folder: str | os.PathLike[str],
    *,
    kind: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    **options: Any,  # noqa: ANN401 - those of the loader
) -> OfflineDataset:
    """Writes data to a folder that `gtp_policy.OfflineDataset.memmap` opens.

    Rows are checked and written as they come: the table is never in memory. D4RL's and robomimic's
    HDF5, Minari, folders with a file per episode and episodes from a generator are read piece by
    piece. What a loader reads whole is still held whole: the arrays of an npz file (OGBench's, too)
    or of a CSV file, the columns of a LeRobotDataset; and with ``unbounded="data"`` all episodes,
    until their actions are known.

    The folder then has the table and images as shards, the flags, and ``dataset.json``: lengths,
    SHA-256, statistics and how observations and actions became numbers. That index is written last:
    an interrupted call leaves a folder that does not open, and can be repeated.

    What makes a whole new table (`OfflineDataset.with_rewards`, `OfflineDataset.with_n_step` and so
    on) has to come first: convert the dataset that it returns.

    Args:
        source: An `OfflineDataset`, an iterable of episodes as
            `OfflineDataset.from_episodes` takes them, or anything that `load_dataset` takes.
        folder: A new folder, or one that is empty or incomplete.
        kind: As for `load_dataset`.
        shard_bytes: Bytes of rows in one file at most.
        **options: Those of the loader.

    Returns:
        The dataset, opened from the folder.

    Raises:
        DataError: If the folder holds a dataset or other files, or an option is none of the
            loader's, or something is wrong with the data, or it has more parts of an observation,
            or files, than are read again.
        EmptyDatasetError: If no transition is left.
        UnsupportedSpaceError: If bounds are missing or a space does not fit.
        MissingDependencyError: If what reads this kind is not installed.
        OSError: If the operating system refuses.

    Example:
        >>> import tempfile
        >>> from gtp_datasets import convert
        >>> episodes = ({"obs": [[0.0], [1.0]], "action": [[0.5]]} for _ in range(1000))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     convert(episodes, folder, low=-1.0, high=1.0)
        OfflineDataset('episodes', 1000 transitions, obs_dim=1, action_dim=1, gamma=0.99,
                       no rewards, in files, device='cpu')
    """
    if isinstance(source, OfflineDataset):
        if options or kind is not None:
            given = sorted({**options, "kind": kind}) if kind is not None else sorted(options)
            raise DataError(
                f"A dataset has no options: got {given}, expected none. They belong to what loads "
                "data."
            )
        return source.to_memmap(folder, shard_bytes=shard_bytes)
    with ShardWriter(folder, shard_bytes) as writer, builders_write_to(writer):
        return load_dataset(source, kind=kind, **options)
