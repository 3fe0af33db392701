"""CSV: a table of transitions, or a folder of such tables, with an episode or more each."""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from gtp_datasets._arrow import csv_columns, read_csv
from gtp_datasets._fields import (
    Choice,
    Wanted,
    as_named,
    check_times,
    ends_of,
    files_of,
    flat_dataset,
    named,
    shown_id,
    split_episodes,
    times_of,
)
from gtp_datasets._hdf5 import located
from gtp_policy import OfflineDataset
from gtp_policy.episodes import Episode


def load_csv(
    path: str | os.PathLike[str],
    *,
    obs: Wanted = None,
    action: Wanted = None,
    reward: Wanted = None,
    terminated: Wanted = None,
    truncated: Wanted = None,
    next_obs: Wanted = None,
    episode: Wanted = None,
    delimiter: str | None = None,
    low: npt.ArrayLike | None = None,
    high: npt.ArrayLike | None = None,
    gamma: float = 0.99,
    out_of_bounds: Literal["error", "clip"] = "error",
    unbounded: Literal["error", "data"] = "error",
    device: torch.device | str = "cpu",
) -> OfflineDataset:
    r"""Reads tables with names in their first line, by pyarrow.

    A *file* holds rows in time order; where episodes end is said by a column with their number, or
    by flags. Of a *folder*, every ``.csv`` or ``.tsv`` file, in small letters or capitals, is one
    episode, or as many as a column with their number says, in the order of the numbers in the
    files' names; none goes on in the next file. Episodes follow the rules of
    `OfflineDataset.from_episodes`: one that does not say how it ends was cut, and its last row,
    which has no next observation, is left out. The columns of the first file are those of all, by
    their names: they may stand in another order, and other ones are an error.

    Args:
        path: The file or folder.
        obs: Column that is ``obs``, or several, as a list, in its order, or a pattern such as
            ``"joint_*"``: numbered columns by their numbers, others in the order of the file. None:
            ``obs``, ``observation`` or ``observations``, alone or numbered (``obs_0``, ``obs_1``).
        action: Likewise.
        reward: Likewise; False leaves rewards out.
        terminated: Likewise.
        truncated: Likewise.
        next_obs: Likewise.
        episode: Column with the number of the episode; None: ``episode``, ``episode_id``,
            ``episode_index`` or ``traj_id``, and where no flag tells cuts, ``traj``,
            ``trajectory`` and the like; False: all rows of a file are one episode.
        delimiter: What stands between the cells; None: a tab in ``.tsv`` files, else a comma.
        low: Lower bounds of the actions, of their shape or a scalar; CSV does not hold them.
        high: Upper bounds of the actions, likewise.
        gamma: Discount factor, in [0, 1].
        out_of_bounds: Whether actions outside the bounds raise or are clipped.
        unbounded: Whether a dimension without known bounds raises, or takes the limits of the
            data, with a warning.
        device: Where the table lives.

    Returns:
        The dataset, actions scaled to [-1, 1].

    Raises:
        DataError: If a file cannot be read, or a field is missing, of other columns than in the
            first file of a folder, or of the wrong type or value; file, column and row are named.
        EmptyDatasetError: If there is no episode or no transition is left.
        UnsupportedSpaceError: If bounds are missing or no Box.
        MissingDependencyError: If pyarrow is not installed.

    Example:
        >>> import tempfile
        >>> from gtp_datasets import load_csv
        >>> with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        ...     _ = file.write("run,angle,speed,torque\n0,0.5,1,0.1\n0,0.6,2,0.2\n"
        ...                    "1,0,0,1\n1,1,1,1\n")
        ...     file.flush()
        ...     dataset = load_csv(file.name, obs=["angle", "speed"], action="torque",
        ...                        episode="run", low=-1.0, high=1.0)
        >>> dataset.transitions.next_obs
        tensor([[0.6000, 2.0000],
                [1.0000, 1.0000]])
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
        "source": f"CSV {path.name}",
    }
    if os.path.isdir(path):
        found = _of_folder(path, choose, delimiter)
        return OfflineDataset.from_episodes(found, **options)
    fields, chosen = _read(path, choose, delimiter)
    size, ids = len(fields["action"]), fields.pop("episode", None)
    ends = ends_of(ids, shown_id(chosen)) if ids is not None else None
    if ids is None and episode is False:
        ends = np.arange(size) == size - 1
    return flat_dataset(fields.pop("obs"), fields, ends=ends, **options)


def _of_folder(folder: Path, choose: Choice, delimiter: str | None) -> Iterator[Episode]:
    for name in files_of(folder, "csv"):
        fields, chosen = _read(folder / name, choose, delimiter, name)
        yield from split_episodes(fields, name, id_name=shown_id(chosen))


def _read(
    path: str | os.PathLike[str], choose: Choice, delimiter: str | None, source: str = ""
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Returns the fields, and the columns that each of them is of."""
    if delimiter is None:
        delimiter = "\t" if os.fspath(path).lower().endswith(".tsv") else ","
    available = csv_columns(path, delimiter)
    chosen = choose(available, source)
    times = times_of(available, chosen)
    names = list(dict.fromkeys(name for columns in chosen.values() for name in columns))
    table = read_csv(path, names, delimiter, times)
    vectors = ("obs", "next_obs", "action")
    fields = {
        field: np.stack([table[name] for name in columns], 1)
        if field in vectors or len(columns) > 1
        else table[columns[0]]
        for field, columns in chosen.items()
    }
    with named(source) if source else nullcontext():
        for name in times:
            if name in table:
                check_times(name, table[name], fields["episode"])
    return as_named(fields, chosen, choose.wanted), chosen
