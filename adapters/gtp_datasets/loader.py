"""One call for every kind of data: looks at what it gets, says what it is, and loads it."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gtp_datasets._fields import ENDINGS, files_of
from gtp_datasets._hdf5 import open_hdf5
from gtp_datasets._npz import open_npz
from gtp_datasets.csv_loader import load_csv
from gtp_datasets.d4rl_loader import load_d4rl_hdf5
from gtp_datasets.lerobot_loader import load_lerobot
from gtp_datasets.minari_loader import load_minari
from gtp_datasets.npz_loader import load_npz
from gtp_datasets.ogbench_loader import load_ogbench
from gtp_datasets.robomimic_loader import load_robomimic
from gtp_policy import OfflineDataset
from gtp_policy.episodes import NAMES
from gtp_policy.errors import DataError, GTPError
from gtp_policy.shards import INDEX

KINDS: Mapping[str, Callable[..., OfflineDataset]] = {
    "minari": load_minari,
    "d4rl": load_d4rl_hdf5,
    "ogbench": load_ogbench,
    "robomimic": load_robomimic,
    "lerobot": load_lerobot,
    "npz": load_npz,
    "csv": load_csv,
    "episodes": OfflineDataset.from_episodes,
}
"""What `load_dataset` knows: the loader of each kind."""
_PICKLED = (".npy", ".pkl", ".pickle", ".pt", ".pth", ".joblib")
_FIELDS_OF_D4RL = {"observations", "actions", "terminals"}


def load_dataset(
    source: Any,  # noqa: ANN401 - a path, an id, a dict, a list, an open file
    *,
    kind: str | None = None,
    **options: Any,  # noqa: ANN401 - those of the loader
) -> OfflineDataset:
    """Loads data of any kind that is known, after a look at what it is.

    The loader that is taken stands in the dataset's ``source``, and in front of every error.

    Args:
        source: One of

            - the id of a Minari dataset on this machine (``"mujoco/hopper/medium-v0"``), or a
              ``MinariDataset``;
            - an HDF5 file of D4RL's or robomimic's layout, by its path or opened by h5py;
            - an npz file, of OGBench's layout or any other, or a folder of such files;
            - a CSV file or a folder of such files;
            - the folder of a LeRobotDataset of version 3;
            - a dict with D4RL's fields;
            - a list of episodes, each a dict.
        kind: What to take it for: ``"minari"``, ``"d4rl"``, ``"ogbench"``, ``"robomimic"``,
            ``"lerobot"``, ``"npz"``, ``"csv"`` or ``"episodes"``. None: what it looks like.
        **options: Those of the loader: the mapping of columns to fields, bounds and so on.

    Returns:
        The dataset.

    Raises:
        DataError: If it looks like nothing that is known, an option is none of the loader's, or
            something is wrong with it.
        EmptyDatasetError: If no transition is left.
        UnsupportedSpaceError: If bounds are missing or a space does not fit.
        MissingDependencyError: If what reads this kind is not installed.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from gtp_datasets import load_dataset
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/a.npz", obs=np.zeros((5, 2)), action=np.zeros((4, 1)))
        ...     dataset = load_dataset(folder, low=-1.0, high=1.0)
        >>> dataset.source.split()[0], len(dataset)
        ('npz', 4)
    """
    if isinstance(source, str | os.PathLike):
        source = os.path.expanduser(source)
    if kind is not None and kind not in KINDS:
        raise DataError(f"`kind` is unknown: got {kind!r}, expected one of {', '.join(KINDS)}.")
    taken = kind or kind_of(source)
    shown = repr(source) if isinstance(source, str) else f"a {type(source).__name__}"
    # What is neither a file nor a folder is taken for an id, which a misspelt folder is not.
    nowhere = taken == "minari" and kind is None and isinstance(source, str)
    guessed = " There is no file or folder of this name." if nowhere else ""
    try:
        return KINDS[taken](source, **options)
    except GTPError as error:
        raise type(error)(f"Took {shown} for {taken}. {error}{guessed}") from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise DataError(
            f"Took {shown} for {taken}. An option is none of its loader's: got {error}, expected "
            f"those of {KINDS[taken].__name__}.{guessed}"
        ) from error


def kind_of(source: Any) -> str:  # noqa: ANN401 - anything
    """Returns what data looks like; of files, only the names inside are looked at.

    Args:
        source: As for `load_dataset`.

    Returns:
        The kind, as `load_dataset` names them.

    Raises:
        DataError: If it looks like nothing that is known; says what is, and what was seen.

    Example:
        >>> from gtp_datasets.loader import kind_of
        >>> kind_of("mujoco/hopper/medium-v0"), kind_of([{"obs": [[0.0]], "action": [[0.0]]}])
        ('minari', 'episodes')
    """
    if isinstance(source, str | os.PathLike):
        return _of_path(Path(source))
    if hasattr(source, "iterate_episodes"):
        return "minari"
    if hasattr(source, "filename") and hasattr(source, "keys"):  # opened by h5py
        return _of_hdf5(source)
    if isinstance(source, Mapping):
        if source.keys() >= _FIELDS_OF_D4RL:
            return "ogbench" if "masks" in source else "d4rl"
        if all(source.keys() & set(NAMES[field]) for field in ("obs", "action")):
            raise _unknown(
                f"a dict with {sorted(map(str, source))[:9]}",
                " One episode goes as a list of one: OfflineDataset.from_episodes([episode]).",
            )
        raise _unknown(f"a dict with {sorted(map(str, source))[:9]}")
    if isinstance(source, bytes | bytearray) or hasattr(source, "read"):  # sequences, too
        more = " A file goes by its name, as str or Path; os.fsdecode makes one of bytes."
        raise _unknown(f"a {type(source).__name__}", more)
    if isinstance(source, Sequence) and source and isinstance(source[0], str | os.PathLike):
        more = " Several files go as the folder that they are in, or one by one."
        raise _unknown(f"a {type(source).__name__} of paths", more)
    if isinstance(source, Sequence) or hasattr(source, "__next__"):
        return "episodes"
    raise _unknown(f"a {type(source).__name__}")


def _of_path(path: Path) -> str:
    suffix = path.suffix.lower()
    if os.path.isdir(path):  # of a name that is too long pathlib raises
        return _of_folder(path)
    if suffix in ENDINGS["hdf5"]:
        return _of_hdf5(path)
    if suffix in ENDINGS["npz"]:
        with open_npz(path) as file:
            names = set(file.names)
        return "ogbench" if names >= _FIELDS_OF_D4RL | {"masks", "rewards"} else "npz"
    if suffix in ENDINGS["csv"]:
        return "csv"
    if os.path.exists(path):
        more = " Pickles are never read." if suffix in _PICKLED else ""
        raise _unknown(f"the file {str(path)!r}", more)
    if suffix or not path.name or path.is_absolute():  # ids have neither an ending nor a root
        raise _unknown(f"{str(path)!r}, where there is nothing")
    return "minari"


def _of_folder(path: Path) -> str:
    if (path / "meta" / "info.json").is_file():
        return "lerobot"
    if (path / INDEX).is_file():
        raise DataError(
            f"The folder {str(path)!r} holds a dataset that to_memmap or convert wrote: got "
            f"{INDEX} in it, expected data to load. Open it with OfflineDataset.memmap("
            f"{str(path)!r})."
        )
    counts = {kind: len(files_of(path, kind)) for kind in ENDINGS}
    kinds = [kind for kind, count in counts.items() if count]
    if len(kinds) > 1:
        shown = " and ".join(f"{counts[kind]} of {kind}" for kind in kinds)
        raise DataError(
            f"The folder {str(path)!r} holds files of several kinds: got {shown}, expected one "
            f"kind. Move the others away, or say which to read with kind={kinds[0]!r}."
        )
    if kinds and kinds[0] in KINDS:
        return kinds[0]
    names = [entry.name for entry in os.scandir(path)]
    raise _unknown(f"the folder {str(path)!r} with {sorted(names)[:9]}")


def _of_hdf5(path: Any) -> str:  # noqa: ANN401 - a path, or a file that is open
    with open_hdf5(path) as file:
        names = set(file)
        shown = str(file.filename)
    if "data" in names and "observations" not in names:
        return "robomimic"
    if names & _FIELDS_OF_D4RL:
        return "d4rl"
    raise _unknown(f"the HDF5 file {shown!r} with {sorted(names)[:9]}")


def _unknown(seen: str, more: str = "") -> DataError:
    return DataError(
        f"The data is of no known kind: got {seen}, expected one of {', '.join(KINDS)}: an id of "
        "Minari; HDF5 of D4RL's or robomimic's layout; npz or CSV, or a folder of these; the "
        "folder of a LeRobotDataset; a dict of D4RL's fields; a list of episodes. Say which with "
        f"kind=, or pass arrays to OfflineDataset.from_arrays.{more}"
    )
