"""Access to Minari: opens local datasets only, and raises one type of error for its failures."""

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gtp_policy.errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    from minari import EpisodeData, MinariDataset


def open_minari(dataset_or_id: "MinariDataset | str") -> "MinariDataset":
    """Returns a dataset itself, or the local one of an id; never downloads, never makes an env."""
    try:
        import minari
    except ImportError as error:
        raise MissingDependencyError(
            f"Minari is not installed: got `{error}`. Run `pip install 'gtp-policy[datasets]'`."
        ) from error
    if isinstance(dataset_or_id, minari.MinariDataset):
        return dataset_or_id
    if not isinstance(dataset_or_id, str):
        raise DataError(
            f"`dataset_or_id` is no dataset: got {type(dataset_or_id).__name__}, expected a "
            "MinariDataset or an id."
        )
    unreadable = f"Minari dataset {dataset_or_id!r} cannot be opened"
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")  # says why a folder does not count as a dataset
            metadata = minari.list_local_datasets(prefix=dataset_or_id).get(dataset_or_id)
    except Exception as error:  # a malformed id
        raise DataError(f"{unreadable}: got {error}, expected a local dataset.") from error
    if metadata is None:
        reasons = "; ".join(str(w.message) for w in caught) or "no such dataset"
        raise DataError(
            f"Minari dataset {dataset_or_id!r} is not on this machine: got {reasons}, expected a "
            f"downloaded dataset. Run `minari download {dataset_or_id}`, or set "
            "MINARI_DATASETS_PATH to the folder that holds it."
        )
    for space in ("observation_space", "action_space"):
        # Minari would build the environment that the file names, to read its spaces.
        if not isinstance(metadata.get(space), str):
            raise DataError(
                f"{unreadable}: got no `{space}` in its metadata, expected both spaces."
            )
    try:
        return minari.load_dataset(dataset_or_id, download=False)
    except ImportError as error:
        raise MissingDependencyError(
            f"{unreadable}: got `{error}`. Install what this storage format needs."
        ) from error
    except Exception as error:  # Minari lets pass what json, gymnasium and its own asserts raise
        raise DataError(
            f"{unreadable}: got {type(error).__name__} ({error}), expected a complete dataset of a "
            "supported version. Download it again or update Minari."
        ) from error


def total_steps(dataset: "MinariDataset") -> int:
    """Returns how many transitions the metadata announce."""
    try:
        steps = int(dataset.total_steps)
    except Exception as error:
        raise _unreadable(dataset, error) from error
    if steps < 0:
        raise DataError(f"`total_steps` of {dataset.id} is negative: got {steps}, expected >= 0.")
    return steps


def episodes(dataset: "MinariDataset") -> Iterator["EpisodeData"]:
    """Yields the episodes in order."""
    try:
        yield from dataset.iterate_episodes()
    except MemoryError:
        raise
    except Exception as error:
        raise _unreadable(dataset, error) from error


def _unreadable(dataset: "MinariDataset", error: Exception) -> DataError:
    return DataError(
        f"{dataset.id} cannot be read: got {type(error).__name__} ({error}), expected a complete "
        "dataset. Download it again."
    )
