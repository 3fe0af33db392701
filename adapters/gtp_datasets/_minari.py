"""Access to Minari: opens local datasets only, and raises one type of error for its failures.

What a dataset says of itself is measured before Minari believes it. Episodes in HDF5, the format
that Minari writes, are read here: of each only what is needed, and images in two formats alone.
"""

import itertools
import json
import math
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gtp_datasets._hdf5 import check_count, check_expansion, check_object, open_hdf5, stored_bytes
from gtp_datasets._images import decoded
from gtp_policy.errors import DataError, GTPError, MissingDependencyError, how_to_install

if TYPE_CHECKING:
    import h5py
    from gymnasium import Space
    from minari import MinariDataset

# Of a metadata.json; that of large images, with the bounds of every pixel, has some megabytes.
_MOST_METADATA = 2**24
_NUMBERS = re.compile("(u?int|float)(8|16|32|64)|bool")
_LISTENING = threading.Lock()
_COLUMNS = ("actions", "rewards", "terminations", "truncations")


class Episode(NamedTuple):
    """What is read of an episode, by Minari's names."""

    id: int
    observations: Any
    actions: npt.NDArray[Any]
    rewards: npt.NDArray[Any]
    terminations: npt.NDArray[Any]
    truncations: npt.NDArray[Any]


def open_minari(dataset_or_id: "MinariDataset | str") -> "MinariDataset":
    """Returns a dataset itself, or the local one of an id; never downloads, never makes an env."""
    try:
        import minari
    except ImportError as error:
        raise MissingDependencyError(
            f"Minari is not installed: got `{error}`. {how_to_install('datasets')}"
        ) from error
    if isinstance(dataset_or_id, minari.MinariDataset):
        return dataset_or_id
    if not isinstance(dataset_or_id, str):
        raise DataError(
            f"`dataset_or_id` is no dataset: got {type(dataset_or_id).__name__}, expected a "
            "MinariDataset or an id."
        )
    unreadable = f"Minari dataset {dataset_or_id!r} cannot be opened"
    _check_metadata(dataset_or_id)
    try:
        # One at a time: two would put the other's list of warnings in the place of the process's.
        with _LISTENING, warnings.catch_warnings(record=True) as caught:
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
        _check_space(space, metadata[space])
    _check_total_episodes(dataset_or_id, metadata)
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


def data_path(dataset_id: str) -> Path:
    """Returns where Minari keeps the files of an id, whether they are there or not."""
    from minari.storage.datasets_root_dir import get_dataset_path

    return Path(get_dataset_path(dataset_id), "data")


def _check_metadata(dataset_id: str) -> None:
    """Raises if a file of metadata is too long to be one; Minari reads it whole."""
    path = data_path(dataset_id) / "metadata.json"
    if os.path.exists(path) and (not path.is_file() or path.stat().st_size > _MOST_METADATA):
        raise DataError(
            f"{path} is no metadata of Minari: got something else, or more than {_MOST_METADATA} "
            "bytes, expected a small JSON file. Download the dataset again."
        )


def _check_total_episodes(dataset_id: str, metadata: dict[str, Any]) -> None:
    """Raises if there are more episodes than bytes; Minari makes a number for each."""
    total = metadata.get("total_episodes")
    if type(total) is not int or not 0 <= total <= sum(map(stored_bytes, _files(dataset_id))):
        raise DataError(
            f"`total_episodes` of {dataset_id} is wrong: got {total!r}, expected a number >= 0, of "
            "episodes that its files have room for."
        )


def _files(dataset_id: str) -> list[Path]:
    found = data_path(dataset_id).rglob("*")
    return [path for path in found if path.is_file() and not path.is_symlink()]


def _check_space(name: str, text: str) -> None:
    """Raises if a space would have more numbers than its text has letters, or none of numbers."""

    def walk(space: Any) -> int:  # noqa: ANN401 - JSON
        parts = space.get("subspaces", [])
        if parts:
            return sum(map(walk, parts.values() if isinstance(parts, dict) else parts))
        if "dtype" in space and not _NUMBERS.fullmatch(str(space["dtype"])):
            raise ValueError(f"the dtype {space['dtype']}")
        shape = space.get("shape", space.get("n") if space.get("type") == "MultiBinary" else [])
        return math.prod([shape] if isinstance(shape, int) else shape)

    try:
        numbers = walk(json.loads(text))
        if not 0 <= numbers <= len(text):
            raise ValueError(f"{numbers} numbers from {len(text)} letters")
    except Exception as error:  # whatever foreign JSON leads to
        raise DataError(
            f"Minari dataset cannot be opened: got {type(error).__name__} ({error}) in its "
            f"`{name}`, expected a space as Minari writes it."
        ) from error


class Episodes:
    """The episodes of a dataset, measured before any of them is read.

    Args:
        dataset: The dataset, possibly filtered or split.
        keys: Parts of a Dict observation that are wanted; none for a plain array.

    Attributes:
        steps: How many transitions there are.
        declared: Bytes that reading all of them takes.
        on_disk: Bytes of data in the files.

    Raises:
        DataError: If something in the files is wrong.
    """

    def __init__(self, dataset: "MinariDataset", keys: Sequence[str] = ()) -> None:
        self._dataset, self._keys = dataset, tuple(keys)
        storage, space = dataset.storage, dataset.observation_space
        self._parts = {k: space.spaces[k] for k in self._keys} if self._keys else {"": space}
        self._encoded = bool(getattr(storage, "jpeg_encoding", True))
        self._bad: dict[int, DataError] = {}
        self.declared = self._packed = 0
        if unnamed := [key for key in self._keys if "/" in key or key in ("", ".")]:
            raise DataError(
                f"`obs_keys` names no part: got {unnamed[:3]}, which HDF5 reads as groups in each "
                "other, expected names without a slash."
            )
        if storage.FORMAT == "hdf5":
            self._path = Path(storage.data_path) / "main_data.hdf5"
            with open_hdf5(self._path) as file:
                self.on_disk = stored_bytes(self._path)
                numbers = dataset.episode_indices
                names = sum(1 for _ in self._names(0))
                check_count(len(numbers) * names, self.on_disk, str(self._path))
                self.steps = sum(self._measure(file, index) for index in numbers)
            return
        if any(self._is_image(part) for part in self._parts.values()):
            raise DataError(
                f"Images of {dataset.id} are not read: got the format {storage.FORMAT!r}, expected "
                "'hdf5', of which each image is looked at before it is decoded."
            )
        files = [p for p in Path(storage.data_path).rglob("*") if p.is_file()]
        self.on_disk = sum(map(stored_bytes, files))
        self.steps = _total_steps(dataset)

    def __iter__(self) -> Iterator[tuple[int, Callable[[], Any]]]:
        """Yields of each episode its number, and what reads it: a bad one is no end to the rest."""
        self._packed = 0
        if self._dataset.storage.FORMAT == "hdf5":
            with open_hdf5(self._path) as file:
                for index in map(int, self._dataset.episode_indices):
                    yield index, partial(self._read, file, index)
            return
        try:
            for episode in self._dataset.iterate_episodes():
                yield episode.id, partial(lambda same: same, episode)
        except (MemoryError, GTPError):
            raise
        except Exception as error:
            raise _unreadable(self._dataset, error) from error

    def _names(self, index: int) -> Iterator[tuple[str, "Space[Any] | None"]]:
        """Yields every object that is read of an episode, and the space of its elements."""
        yield f"episode_{index}", None
        for name in _COLUMNS:
            yield f"episode_{index}/{name}", None
        if self._keys:
            yield f"episode_{index}/observations", None
        for key, part in self._parts.items():
            yield f"episode_{index}/observations{f'/{key}' if key else ''}", part

    def _measure(self, file: "h5py.File", index: int) -> int:
        """Adds what an episode takes, unless it is bad; returns its number of steps."""
        declared = 0
        groups = {"": file}  # each is looked up once: there are five columns per episode and more
        try:
            for name, space in self._names(index):
                declared += self._measure_part(file, groups, name, space)
        except DataError as error:  # to be raised where it is read, or passed over
            self._bad[index] = error
            return 0
        self.declared += declared
        check_expansion(self.declared, self.on_disk, str(self._path))
        shape = file[f"episode_{index}/rewards"].shape
        return int(shape[0]) if shape else 0

    def _measure_part(
        self,
        file: "h5py.File",
        groups: "dict[str, h5py.Group]",
        name: str,
        space: "Space[Any] | None",
    ) -> int:
        parent, _, last = name.rpartition("/")
        if parent not in groups:
            groups[parent] = file[parent]  # which was checked before
        there = groups[parent]
        if not hasattr(there, "keys"):  # to look for a name in a dataset would read all of it
            raise DataError(f"`{parent}` has the wrong type: got a dataset, expected a group.")
        if last not in there:
            raise DataError(
                f"`{name}` is missing: got {[*itertools.islice(there, 9)]}, expected {last!r}."
            )
        image = space is not None and self._is_image(space)
        declared = check_object(file, name.encode(), images=image)
        if image and space is not None:
            declared += len(file[name]) * math.prod(space.shape or ())
        return declared

    def _read(self, file: "h5py.File", index: int) -> Episode:
        if index in self._bad:
            raise self._bad[index]
        try:
            group = file[f"episode_{index}"]
            columns = {name: group[name][()] for name in _COLUMNS}
            parts = {
                key: self._part(group[f"observations/{key}" if key else "observations"], space)
                for key, space in self._parts.items()
            }
        except (MemoryError, GTPError):
            raise
        except Exception as error:
            raise _unreadable(self._dataset, error) from error
        return Episode(index, parts if self._keys else parts[""], **columns)

    def _is_image(self, space: "Space[Any]") -> bool:
        from minari.dataset.minari_storage import is_image_space

        return self._encoded and bool(is_image_space(space))

    def _part(self, stored: "h5py.Dataset", space: "Space[Any]") -> npt.NDArray[Any]:
        if not self._is_image(space):
            values: npt.NDArray[Any] = stored[()]
            return values
        images = np.empty((len(stored), *(space.shape or ())), np.uint8)
        for i, image in enumerate(images):  # one at a time: they may share memory in the file
            # Not bytes(), which makes as many as a number says.
            packed = np.asarray(stored[i]).tobytes()
            self._packed += len(packed)
            if self._packed > self.on_disk:
                raise DataError(
                    f"`{stored.name}` has images that share their bytes: got more than "
                    f"{self.on_disk} of them by row {i}, expected at most those of the file."
                )
            image[...] = decoded(packed, image.shape, f"{stored.name} at row {i}")
        return images


def _total_steps(dataset: "MinariDataset") -> int:
    """Returns how many transitions the metadata announce."""
    try:
        steps = int(dataset.total_steps)
    except Exception as error:
        raise _unreadable(dataset, error) from error
    if steps < 0:
        raise DataError(f"`total_steps` of {dataset.id} is negative: got {steps}, expected >= 0.")
    return steps


def _unreadable(dataset: "MinariDataset", error: Exception) -> DataError:
    return DataError(
        f"{dataset.id} cannot be read: got {type(error).__name__} ({error}), expected a complete "
        "dataset. Download it again."
    )
