"""B7: datasets at random changed in type, shape, storage and values; at every dataset's door."""

import io
import json
import os
import shutil
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import h5py
import numpy as np

from gtp_datasets import load_d4rl_hdf5, load_minari, load_ogbench
from gtp_datasets._hdf5 import MAX_EXPANSION, SLACK_BYTES
from gtp_policy.errors import GTPError
from tests.reliability.canaries import make_minari, time_limit
from tests.reliability.forgeries import VALUES, forge
from tests.reliability.mutations import SECONDS, peak_memory
from tests.reliability.outcome import Outcome

ROWS = 12
FIELDS = {
    "observations": np.zeros((ROWS, 3), np.float32),
    "actions": np.zeros((ROWS, 2), np.float32),
    "rewards": np.zeros(ROWS, np.float32),
    "terminals": np.arange(ROWS) % 4 == 3,
    "timeouts": np.zeros(ROWS, bool),
    "masks": np.ones(ROWS),
    "next_observations": np.zeros((ROWS, 3), np.float32),
}
DTYPES = ("f2", "f4", "f8", "i1", "i8", "u1", "u8", "?", "c8", "S5", "M8[s]", "V3", "f4,i4", ">f8")
SHAPES = ((), (0,), (ROWS,), (ROWS, 1), (ROWS, 2), (ROWS, 3), (ROWS - 1, 3), (ROWS, 3, 1), (0, 3))
NUMBERS = (0.0, 1.0, -1.0, 0.5, 2.0, np.nan, np.inf, -np.inf, 1e30, 1e39, 1e300, -0.0)
Rng = np.random.Generator


def forged_datasets(count: int) -> Outcome:
    """B7: an error of ours or a dataset, in a second and the stated memory."""
    outcome, rng, refused, largest = Outcome(), np.random.default_rng(0), 0, 0.0
    kinds = list(_KINDS.items())
    with TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        template = Path(directory, "template")
        template.mkdir()
        make_minari(template)
        for number in range(count):
            name, (make, load) = kinds[number % len(kinds)]
            folder = Path(directory, "case")
            shutil.copytree(template, folder)
            what = make(folder, rng)
            size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            problem, start = None, time.process_time()
            with peak_memory() as peak, time_limit(20 * SECONDS):
                try:
                    load(folder)
                except GTPError as error:
                    refused += 1
                    told = all(word in str(error) for word in ("got", "expected"))
                    problem = None if told else f"says too little: {error!r:.200}"
                except BaseException as error:
                    problem = f"raised {error!r:.200}"
            seconds = time.process_time() - start  # of this process: others may be at work
            largest = max(largest, peak[0])
            if seconds > SECONDS:
                problem = problem or f"took {seconds:.1f} s"
            if peak[0] > MAX_EXPANSION * size + SLACK_BYTES:
                problem = problem or f"took {peak[0] / 2**20:.0f} MB"
            outcome.add(f"{number} {name}: {what}", problem)
            shutil.rmtree(folder)
    outcome.details |= {"refused": refused, "most memory, MB": round(largest / 2**20, 1)}
    outcome.worst = f"{len(outcome.failures)} of {outcome.count} untyped or beyond the budget"
    return outcome


def _array(rng: Rng) -> tuple[np.ndarray[Any, Any], str]:
    """Returns an array of any type, shape and values."""
    dtype, shape = str(rng.choice(DTYPES)), SHAPES[rng.integers(len(SHAPES))]
    array = np.zeros(shape, dtype)
    if array.dtype.kind in "fiuc" and array.size:
        number = NUMBERS[rng.integers(len(NUMBERS))]
        with np.errstate(all="ignore"):
            filled = np.full(shape, number).astype(dtype)
        array[...] = filled
        if rng.integers(2):
            array.flat[:-1] = 0
        return array, f"{dtype}{list(shape)} of {number}"
    return array, f"{dtype}{list(shape)}"


def _forge_hdf5(file: h5py.Group, names: list[str], rng: Rng) -> str:
    """Changes one of the fields of a file; returns how."""
    name, kind = str(rng.choice(names)), rng.integers(12)
    if name in file:
        del file[name]
    if kind == 0:
        return f"{name} removed"
    if kind == 1:
        file.create_group(name)
        return f"{name} is a group"
    if kind == 2:
        file[name] = h5py.SoftLink(str(rng.choice([f"/{name}", "/nowhere", "/"])))
        return f"{name} is a link"
    if kind == 3:
        file[name] = h5py.Empty("f4")
        return f"{name} is empty"
    if kind == 4:
        file[name] = np.dtype("f4")  # a type with a name
        return f"{name} is a type"
    if kind == 5:
        vlen = h5py.string_dtype() if rng.integers(2) else h5py.vlen_dtype(np.uint8)
        file.create_dataset(name, (ROWS,), vlen)
        return f"{name} of any length"
    if kind == 6:
        file.create_dataset(name, (ROWS,), h5py.ref_dtype)
        return f"{name} of references"
    if kind == 7:
        rows = int(rng.choice([10**5, 10**7, 10**9, 2**40]))
        chunks = (int(rng.choice([1, 100, 10**6])),)
        options = {"maxshape": (None,), "chunks": chunks, "compression": "gzip"}
        file.create_dataset(name, (rows,), "f8", **options)
        return f"{name} of {rows} rows that are not there"
    array, what = _array(rng)
    if array.dtype.kind == "M":
        array, what = array.astype("i8"), f"{what} as integers"
    file[name] = array
    return f"{name}: {what}"


def _forge_d4rl(folder: Path, rng: Rng) -> str:
    names = ["observations", "actions", "rewards", "terminals", "timeouts"]
    with h5py.File(folder / "data.hdf5", "w") as file:
        for name in names if rng.integers(2) else [*names, "next_observations"]:
            file[name] = FIELDS[name]
        return ", ".join(_forge_hdf5(file, [*file], rng) for _ in range(rng.integers(1, 3)))


def _forge_ogbench(folder: Path, rng: Rng) -> str:
    path, what = folder / "data.npz", []
    names = ["observations", "actions", "rewards", "terminals", "masks"]
    fields: dict[str, Any] = {name: FIELDS[name] for name in names}
    for _ in range(rng.integers(1, 3)):
        name = str(rng.choice(names))
        fields[name], how = _array(rng)
        what.append(f"{name}: {how}")
    method = int(rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]))
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, array in fields.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            data = bytearray(buffer.getvalue())
            if rng.integers(8) == 0:  # in its header
                data[rng.integers(min(len(data), 128))] = rng.integers(256)
                what.append(f"{name} damaged")
            archive.writestr(f"{name}.npy", bytes(data))
    if rng.integers(3) == 0:
        data = bytearray(path.read_bytes())
        data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data[: rng.choice([len(data), rng.integers(1, len(data))])])
        what.append("file damaged")
    return ", ".join(what)


def _forge_episodes(folder: Path, rng: Rng) -> str:
    names = ["observations", "actions", "rewards", "terminations", "truncations"]
    with h5py.File(folder / "toy/set-v0/data/main_data.hdf5", "a") as file:
        if rng.integers(10) == 0:
            return _forge_hdf5(file, ["episode_0"], rng)
        return _forge_hdf5(file["episode_0"], names, rng)


def _forge_metadata(folder: Path, rng: Rng) -> str:
    path = folder / "toy/set-v0/data/metadata.json"
    metadata = json.loads(path.read_text())
    if rng.integers(2):
        return_to, name = metadata, str(rng.choice(["observation_space", "action_space"]))
        space = json.loads(metadata[name])
        what = f"{name}: {forge(space, rng)}"
        return_to[name] = json.dumps(space)
    else:
        what = forge(metadata, rng)
    if rng.integers(20) == 0:
        metadata = VALUES[rng.integers(len(VALUES))]
        what = f"{metadata!r:.40} alone"
    path.write_text(json.dumps(metadata), encoding="utf-8", errors="surrogatepass")
    return what


def _load_minari(folder: Path) -> object:
    with mock.patch.dict(os.environ, MINARI_DATASETS_PATH=str(folder)):
        return load_minari("toy/set-v0")


_KINDS: dict[str, tuple[Callable[[Path, Rng], str], Callable[[Path], object]]] = {
    "D4RL": (_forge_d4rl, lambda folder: load_d4rl_hdf5(folder / "data.hdf5")),
    "OGBench": (_forge_ogbench, lambda folder: load_ogbench(folder / "data.npz")),
    "Minari's episodes": (_forge_episodes, _load_minari),
    "Minari's metadata": (_forge_metadata, _load_minari),
}
