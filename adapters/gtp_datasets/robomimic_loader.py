"""robomimic's HDF5 files: a group per demonstration, read with h5py alone."""

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from gtp_datasets._fields import natural
from gtp_datasets._hdf5 import (
    check_count,
    check_expansion,
    check_object,
    open_hdf5,
    stored_bytes_of,
    table_bytes,
)
from gtp_policy import OfflineDataset
from gtp_policy.episodes import Episode, read_episode
from gtp_policy.errors import DataError

if TYPE_CHECKING:
    import h5py


def load_robomimic(
    path_or_file: "str | os.PathLike[str] | h5py.File",
    *,
    obs_keys: Sequence[str] | None = None,
    filter_key: str | None = None,
    dones: Literal["terminated", "truncated"] = "terminated",
    low: npt.ArrayLike = -1.0,
    high: npt.ArrayLike = 1.0,
    gamma: float = 0.99,
    out_of_bounds: Literal["error", "clip"] = "error",
    unbounded: Literal["error", "data"] = "error",
    device: torch.device | str = "cpu",
) -> OfflineDataset:
    """Reads a file of robomimic's layout; executes nothing and follows no link.

    A file has a group ``data`` with one group per demonstration, ``demo_0`` and so on: ``obs`` and
    often ``next_obs`` (a dataset per key), ``actions``, and often ``rewards`` and ``dones``. Its
    groups in ``mask`` list demonstrations by name. Simulator states and ``env_args`` are not read.

    Args:
        path_or_file: The file, or one that h5py has opened.
        obs_keys: Keys of the observation in the order to join them. None: all but images, in
            alphabetical order; a warning names the images.
        filter_key: Name of a list in ``mask``, to read its demonstrations alone, e.g. ``"train"``.
        dones: What ``dones`` mean. robomimic's own scripts mark success, and its algorithms take
            nothing to be earned after it (``"terminated"``); a file whose demonstrations were cut
            where ``dones`` stand wants ``"truncated"``.
        low: Lower bounds of the actions, shape (A,) or a scalar: the file does not hold them.
        high: Upper bounds of the actions, likewise.
        gamma: Discount factor, in [0, 1].
        out_of_bounds: Whether actions outside the bounds raise or are clipped.
        unbounded: Whether an infinite bound raises, or takes the limits of the data, with a
            warning.
        device: Where the table lives.

    Returns:
        The dataset, actions scaled to [-1, 1]; its ``obs_keys`` are the keys.

    Raises:
        DataError: If the file cannot be read, has another layout, leads to other files, or a field
            is missing or wrong; demonstration, field and row are named.
        EmptyDatasetError: If no transition is left.
        UnsupportedSpaceError: If the bounds are no Box.
        MissingDependencyError: If h5py is not installed.

    References:
        | What Matters in Learning from Offline Human Demonstrations for Robot Manipulation
        | (Mandlekar et al., 2021), https://arxiv.org/abs/2108.03298

    Example:
        >>> import tempfile
        >>> import h5py, numpy as np
        >>> from gtp_datasets import load_robomimic
        >>> with tempfile.NamedTemporaryFile(suffix=".hdf5") as path:
        ...     with h5py.File(path, "w") as file:
        ...         demo = file.create_group("data/demo_0")
        ...         demo["actions"], demo["dones"] = np.zeros((3, 1)), [0, 0, 1]
        ...         demo["obs/eef_pos"], demo["obs/object"] = np.ones((3, 3)), np.zeros((3, 2))
        ...     dataset = load_robomimic(path.name)
        >>> dataset.obs_keys, dataset.has_rewards, dataset.transitions.discount
        (('eef_pos', 'object'), False, tensor([0.9900, 0.9900, 0.0000]))
    """
    if dones not in ("terminated", "truncated"):
        raise DataError(f"`dones` is unknown: got {dones!r}, expected 'terminated' or 'truncated'.")
    with open_hdf5(path_or_file) as file:
        demos, on_disk = _demos(file, filter_key), stored_bytes_of(file)
        check_count(len(demos), on_disk, str(file.filename))
        keys = _keys(file, demos[0], obs_keys)
        check_count(len(demos) * (1 + len(keys)), on_disk, str(file.filename))
        fields = {demo: _fields(file, demo, keys) for demo in demos}
        declared = sum(check_object(file, name.encode()) for f in fields.values() for name in f)
        first = file[f"data/{demos[0]}"]
        width = sum(int(np.prod(first[f"obs/{key}"].shape[1:])) for key in keys)
        rows = sum(file[f"data/{demo}/actions"].shape[0] for demo in demos)
        declared += table_bytes(rows, width, int(np.prod(first["actions"].shape[1:])))
        check_expansion(declared, on_disk, str(file.filename))

        def episodes() -> Iterator[Episode]:
            for demo, names in fields.items():
                yield read_episode(_read(file, demo, names, keys, dones), demo)

        return OfflineDataset.from_episodes(
            episodes(),
            low=low,
            high=high,
            obs_keys=keys,
            gamma=gamma,
            out_of_bounds=out_of_bounds,
            unbounded=unbounded,
            device=device,
            source=f"robomimic {Path(str(file.filename)).name}",
        )


def _demos(file: "h5py.File", filter_key: str | None) -> list[str]:
    """Returns the names of the demonstrations, in their order."""
    if "data" not in set(file):
        raise DataError(
            f"`data` is missing: got {sorted(file)[:9]}, expected a group `data` with a group per "
            "demonstration. Is this a file of robomimic?"
        )
    there = natural(_children(file, "data"))
    if not there:
        raise DataError(
            "`data` holds no demonstration: got an empty group or a dataset, expected groups "
            "demo_0, demo_1 and so on."
        )
    if filter_key is None:
        return there
    name = f"mask/{filter_key}"
    masks = _children(file, "mask")
    if filter_key not in masks:
        raise DataError(f"`filter_key` is not there: got {filter_key!r}, expected one of {masks}.")
    size = check_object(file, name.encode())
    check_expansion(size, stored_bytes_of(file), name)
    listed = file[name]
    if getattr(listed, "dtype", np.dtype("f8")).kind != "S":  # of a number, bytes() makes so many
        raise DataError(
            f"`{name}` is no list of names: got {getattr(listed, 'dtype', 'a group')}, expected "
            "strings of a fixed length."
        )
    if listed.size > len(there):  # before each becomes a word of Python's
        raise DataError(
            f"`{name}` names more than there is: got {listed.size} names, expected at most "
            f"{len(there)}, one for each group of `data`."
        )
    wanted = {demo.decode(errors="replace") for demo in listed[()].ravel().tolist()}
    if missing := sorted(wanted - set(there)):
        raise DataError(
            f"`{name}` names what is not there: got {missing[:5]}, expected groups of `data`."
        )
    return [demo for demo in there if demo in wanted]


def _children(file: "h5py.File", name: str) -> list[str]:
    """Returns what a group holds; nothing of what is none."""
    parent, _, last = name.rpartition("/")
    there = file[parent] if parent else file
    if not hasattr(there, "keys") or not there.id.links.exists(last.encode()):
        return []  # to look into a dataset would read it whole
    check_object(file, name.encode())
    group = file[name]
    return sorted(group) if hasattr(group, "keys") else []


def _keys(file: "h5py.File", demo: str, obs_keys: Sequence[str] | None) -> list[str]:
    check_object(file, f"data/{demo}".encode())
    there = _children(file, f"data/{demo}/obs")
    if not there or (obs_keys is not None and set(obs_keys) - set(there)) or obs_keys == []:
        got = "no `obs`" if not there else f"{list(obs_keys or [])}"
        raise DataError(
            f"The observations of {demo} are not there: got {got}, expected some of {there}. Is "
            "this a file of robomimic with extracted observations?"
        )
    if obs_keys is not None:
        return list(obs_keys)
    check_count(len(there), stored_bytes_of(file), str(file.filename))
    for key in there:
        check_object(file, f"data/{demo}/obs/{key}".encode())
    images = [key for key in there if len(getattr(file[f"data/{demo}/obs/{key}"], "shape", ())) > 3]
    if images:
        warnings.warn(
            f"Images are left out: {images}. Name them in obs_keys= if the policy should see them.",
            stacklevel=4,
        )
    return [key for key in there if key not in images]


def _fields(file: "h5py.File", demo: str, keys: Sequence[str]) -> list[str]:
    """Returns the names of what is read of a demonstration, after a look at each group above."""
    base = f"data/{demo}"
    inside = set(_children(file, base))
    names = []
    for name in ("actions", "obs"):
        if name not in inside:
            raise DataError(f"{demo}: `{name}` is missing: got {sorted(inside)}, expected it.")
    for group in ("obs", "next_obs"):
        there = set(_children(file, f"{base}/{group}"))
        if missing := sorted(set(keys) - there):
            if group == "next_obs" and not there:
                continue
            raise DataError(
                f"{demo}: `{group}` lacks keys: got {sorted(there)}, expected {missing} too."
            )
        names += [f"{base}/{group}/{key}" for key in keys]
    return names + [f"{base}/{n}" for n in ("actions", "rewards", "dones") if n in inside]


def _read(
    file: "h5py.File", demo: str, names: Sequence[str], keys: Sequence[str], dones: str
) -> dict[str, Any]:
    """Returns the fields of a demonstration by the names that `read_episode` knows."""
    base = f"data/{demo}"
    for name in names:
        if not hasattr(file[name], "dtype"):
            raise DataError(f"`{name}` has the wrong type: got a group, expected a dataset.")
    found: dict[str, Any] = {
        group: {key: file[f"{base}/{group}/{key}"][()] for key in keys}
        for group in ("obs", "next_obs")
        if f"{base}/{group}/{keys[0]}" in names
    }
    found["action"] = file[f"{base}/actions"][()]
    if f"{base}/rewards" in names:
        found["reward"] = file[f"{base}/rewards"][()]
    if f"{base}/dones" in names and dones == "terminated":
        found["terminated"] = file[f"{base}/dones"][()]
    return found
