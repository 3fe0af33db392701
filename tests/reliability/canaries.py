"""B2: files that want to be executed, to reach outside, or to fill the memory; all are refused.

Two families. Canaries are foreign or crafted files that leave a mark behind if
anything in them is executed. Forgeries are checkpoints whose every hash is right, because
who changes a file can compute its hash anew.
"""

import base64
import contextlib
import io
import itertools
import json
import os
import pickle
import shutil
import signal
import struct
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

import h5py
import minari
import numpy as np
import safetensors.torch
import torch
from gymnasium.spaces import Box
from minari.data_collector import EpisodeBuffer
from PIL import Image

import gtp_sb3
import gtp_tianshou
from gtp_datasets import load_d4rl_hdf5, load_minari, load_ogbench
from gtp_experiments import EvaluationConfig, ExperimentError, RunResult, reevaluate
from gtp_policy import (
    ActionScaler,
    GTPLearner,
    ObservationLayout,
    latest_valid,
    load_checkpoint,
    read_metadata,
    restore_,
    save_checkpoint,
)
from gtp_policy.checkpoint import bundle
from gtp_policy.checkpoint.bundle import write_bundle
from gtp_policy.errors import CheckpointError, DataError, StateMismatchError
from tests.reliability import jobs
from tests.reliability.faults import Disk
from tests.reliability.mutations import SECONDS, SLACK, peak_memory
from tests.reliability.outcome import Outcome
from tests.reliability.small import ACT, OBS, configs, make_dataset, train

CONFIG, WEIGHTS, TRAIN_STATE = "config.json", "weights.safetensors", "train_state.safetensors"
MANIFEST = "manifest.json"

# --- Watching -------------------------------------------------------------------------------------

EXECUTED = ("exec", "compile", "marshal.", "pickle.", "os.exec", "os.fork", "os.posix_spawn")
EXECUTED += ("os.spawn", "os.system", "subprocess.", "socket.", "code.__new__", "ctypes.dlopen")
WRITTEN = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate")
_seen: list[str] | None = None
_installed = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event == "os.mkdir" and os.path.isdir(arguments[0]):
        return  # Minari makes sure of its own folder, which is there
    if event == "compile" and str(arguments[0]).removeprefix('b"').startswith("{'descr': "):
        return  # NumPy parses the header of an array as a literal; running code would be `exec`
    if event.startswith(EXECUTED + WRITTEN):
        _seen.append(f"{event} {arguments!r:.200}")
    elif event == "open":
        _, mode, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(mode or "") & set("wax+"):
            _seen.append(f"open for writing {arguments!r:.200}")


@contextlib.contextmanager
def watching() -> Iterator[list[str]]:
    """Collects what is executed, written or connected to while the block lasts."""
    global _seen, _installed
    if not _installed:  # an audit hook stays for the life of the process
        sys.addaudithook(_hook)
        _installed = True
    _seen = events = []
    try:
        yield events
    finally:
        _seen = None


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in a block that waits for ever."""
    if not hasattr(signal, "setitimer") or threading.current_thread() != threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"still waiting after {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        # The test runner may have its own timer.
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        signal.setitimer(signal.ITIMER_REAL, *timer)


class Mark:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


# --- Canaries -------------------------------------------------------------------------------------


class Scene(NamedTuple):
    """Where a canary is made.

    Attributes:
        folder: A separate folder, with a good checkpoint ``good`` in it.
        mark: The file that appears if the canary sings.
        payload: A pickle that makes it sing.
        files: Content of the good checkpoint.
    """

    folder: Path
    mark: Path
    payload: bytes
    files: dict[str, bytes]


Door = Callable[[Path], Any]
Canary = tuple[str, Callable[[Scene], Path], tuple[str, ...]]


def _pickle(scene: Scene) -> Path:
    path = scene.folder / "policy.pt"
    path.write_bytes(scene.payload)
    return path


def _torch_zip(scene: Scene) -> Path:
    path = scene.folder / "policy.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", scene.payload)
        archive.writestr("archive/version", "3\n")
    return path


def _sb3_zip(scene: Scene) -> Path:
    path = scene.folder / "model.zip"
    serialized = base64.b64encode(scene.payload).decode()
    data = {"policy_class": {":type:": "<class 'abc.ABCMeta'>", ":serialized:": serialized}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps(data))
        archive.writestr("policy.pth", scene.payload)
        archive.writestr("pytorch_variables.pth", scene.payload)
        archive.writestr("_stable_baselines3_version", "2.9.2")
    return path


def _object_npy(scene: Scene) -> Path:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Mark(scene.mark)], dtype=object), allow_pickle=True)
    return _bundle(scene, {WEIGHTS: buffer.getvalue(), TRAIN_STATE: buffer.getvalue()})


OGBENCH = {
    "observations": np.zeros((4, 2)),
    "actions": np.zeros((4, 1)),
    "rewards": np.zeros(4),
    "masks": np.ones(4),
    "terminals": np.arange(4) == 3,
}


def _object_npz(scene: Scene) -> Path:
    path = scene.folder / "objects.npz"
    fields = OGBENCH | {"rewards": np.array([Mark(scene.mark)] * 4, dtype=object)}
    np.savez(path, **fields, allow_pickle=True)
    return path


def _npz_header(scene: Scene) -> Path:
    """An array whose header declares 12 TB."""
    path = scene.folder / "header.npz"
    np.savez(path, **{name: array for name, array in OGBENCH.items() if name != "observations"})
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3)}
    with zipfile.ZipFile(path, "a") as archive, archive.open("observations.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, header)
    return path


def _npz_bomb(scene: Scene) -> Path:
    """A hundred megabytes of zeros in a hundred kilobytes: more rows than observations."""
    path = scene.folder / "zeros.npz"
    np.savez_compressed(path, **OGBENCH | {"actions": np.zeros((13 * 2**20, 1))})
    return path


def _npz_of_bytes(scene: Scene) -> Path:
    """Bytes that a thousandth of the memory holds, and that become numbers of float32, twice."""
    path = scene.folder / "bytes.npz"
    np.savez_compressed(path, **OGBENCH | {"observations": np.zeros((4, 13 * 2**20), np.uint8)})
    return path


def _npz_hole(scene: Scene) -> Path:
    """A gigabyte of observations that were never written, so that the file has a hole."""
    path, rows = scene.folder / "hole.npz", 2**27 // 8
    header = io.BytesIO()
    fields = {"descr": "<f8", "fortran_order": False, "shape": (4, rows)}
    np.lib.format.write_array_header_1_0(header, fields)
    np.savez(path, **{name: array for name, array in OGBENCH.items() if name != "observations"})
    info = zipfile.ZipInfo("observations.npy")
    start = len(header.getvalue())
    with zipfile.ZipFile(path, "a") as archive, archive.open(info, "w", force_zip64=True) as member:
        member.write(header.getvalue())
        for _ in range(rows * 32 // 2**20):
            member.write(bytes(2**20))
    data = path.read_bytes()
    begin = data.index(header.getvalue()) + start
    with open(path, "wb") as file:
        file.write(data[:begin])
        file.seek(begin + rows * 32)
        file.write(data[begin + rows * 32 :])
    return path


def _pickled_weights(scene: Scene) -> Path:
    return _bundle(scene, {WEIGHTS: scene.payload, TRAIN_STATE: scene.payload})


def _yaml_tag(scene: Scene) -> Path:
    text = f"!!python/object/apply:os.mkdir ['{scene.mark}']\n"
    return _bundle(scene, {CONFIG: text.encode()})


def _tianshou_hdf5(scene: Scene) -> Path:
    path = scene.folder / "buffer.hdf5"
    with h5py.File(path, "w") as file:
        for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
            file[name] = np.frombuffer(scene.payload, dtype=np.int8)
            file[name].attrs["__data_type__"] = "Mark"  # there, what is no array is unpickled
    return path


def _minari_spec(scene: Scene) -> Path:
    """A data set without an observation space, whose environment would have to be built."""
    (scene.folder / "gtp_canary.py").write_text(f"open({str(scene.mark)!r}, 'w')")
    spec = {"id": "Canary-v0", "entry_point": "gtp_canary:Env", "kwargs": {}}
    path = make_minari(scene.folder)
    metadata = json.loads((path / "metadata.json").read_text())
    del metadata["observation_space"]
    metadata |= {"env_spec": json.dumps(spec), "eval_env_spec": json.dumps(spec)}
    (path / "metadata.json").write_text(json.dumps(metadata))
    return path


def _traversal(scene: Scene) -> Path:
    (scene.folder.parent / WEIGHTS).write_bytes(scene.files[WEIGHTS])
    names = {f"../{WEIGHTS}": scene.files[WEIGHTS]}
    return _rebuilt(scene, {CONFIG: scene.files[CONFIG]} | names | {TRAIN_STATE: b""})


def _traversal_zip(scene: Scene) -> Path:
    path = scene.folder / "up.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (f"../{scene.mark.name}", str(scene.mark), MANIFEST):
            archive.writestr(name, b"{}")
    return path


def _symlink(scene: Scene) -> Path:
    path = _bundle(scene, {})
    outside = scene.folder.parent / "outside"
    (path / WEIGHTS).rename(outside)
    (path / WEIGHTS).symlink_to(outside)
    return path


def _zip_bomb(scene: Scene) -> Path:
    """A hundred kilobytes that would be 100 MB, with the right hash in the manifest."""
    path = _rebuilt(scene, scene.files | {WEIGHTS: bytes(100 * 2**20)})
    packed = scene.folder / "bomb.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in path.iterdir():
            archive.write(file, file.name)
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    return packed


def _long_index(scene: Scene) -> Path:
    path = scene.folder / "index.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(20_000):
            archive.writestr(zipfile.ZipInfo(str(number)), b"")
    return path


def _header(length: int) -> Callable[[Scene], Path]:
    def make(scene: Scene) -> Path:
        data = struct.pack("<Q", length) + b"{}" + bytes(64)
        return _bundle(scene, {WEIGHTS: data, TRAIN_STATE: data})

    return make


def _alias_bomb(scene: Scene) -> Path:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for one, two in itertools.pairwise("abcdefghijk"):
        lines.append(f"{two}: &{two} [{', '.join([f'*{one}'] * 9)}]")
    return _bundle(scene, {CONFIG: "\n".join(lines).encode()})


def _nesting_bomb(name: str, depth: int) -> Callable[[Scene], Path]:
    def make(scene: Scene) -> Path:
        bomb = b"[" * depth + b"]" * depth
        if name != MANIFEST:
            return _bundle(scene, {name: bomb})
        path = _bundle(scene, {})
        (path / MANIFEST).write_bytes(bomb)
        return path

    return make


def _external_link(scene: Scene) -> Path:
    path = scene.folder / "linked.hdf5"
    with h5py.File(scene.folder / "secret.hdf5", "w") as secret:
        secret["x"] = np.zeros((4, 2))
    with h5py.File(path, "w") as file:
        file["observations"] = h5py.ExternalLink(str(scene.folder / "secret.hdf5"), "x")
        file["actions"], file["rewards"] = np.zeros((4, 1)), np.zeros(4)
        file["terminals"], file["timeouts"] = np.zeros(4, bool), np.zeros(4, bool)
    return path


def _minari_link(scene: Scene) -> Path:
    path = make_minari(scene.folder)
    with h5py.File(scene.folder / "secret.hdf5", "w") as secret:
        secret["x"] = np.zeros(3)
    with h5py.File(path / "main_data.hdf5", "a") as file:
        del file["episode_0/rewards"]
        link = h5py.ExternalLink(str(scene.folder / "secret.hdf5"), "x")
        file["episode_0/rewards"] = link
    return path


def _pipe(scene: Scene) -> Path:
    path = scene.folder / "pipe.zip"
    os.mkfifo(path)
    return path


def _pipe_inside(scene: Scene) -> Path:
    path = _bundle(scene, {})
    (path / WEIGHTS).unlink()
    os.mkfifo(path / WEIGHTS)
    return path


def _pipe_as(name: str) -> Callable[[Scene], Path]:
    def make(scene: Scene) -> Path:
        os.mkfifo(scene.folder / name)
        return scene.folder / name

    return make


def _second_table(scene: Scene) -> Path:
    """A zip64 locator before the end: the table that is read is not the one that was looked at."""
    path = scene.folder / "two.zip"
    write_bundle(path, scene.files, written_by="another program")
    data = path.read_bytes()
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)
    path.write_bytes(data[:-22] + locator + data[-22:])
    return path


def _hole(scene: Scene) -> Path:
    """Weights of 4 GB that take no place on the disk, and a manifest that knows their length."""
    path = _bundle(scene, {})
    length = 2**32
    with open(path / WEIGHTS, "wb") as file:
        file.truncate(length)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest.pop("sha256")
    manifest["files"][WEIGHTS]["bytes"] = length
    sealed = {**manifest, "sha256": bundle._sha256(bundle._canonical(manifest))}
    (path / MANIFEST).write_bytes(bundle._canonical(sealed))
    return path


def _d4rl(scene: Scene) -> Path:
    path = scene.folder / "data.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = np.zeros((40, 2)), np.zeros((40, 1))
        file["terminals"], file["timeouts"] = np.zeros(40, bool), np.zeros(40, bool)
    return path


def _oversized_chunk(scene: Scene) -> Path:
    path = _d4rl(scene)
    with h5py.File(path, "a") as file:
        rewards = {"maxshape": (None,), "chunks": (2**27,), "compression": 9}
        file.create_dataset("rewards", (40,), "f8", **rewards)
    return path


def _deflated_twice(scene: Scene) -> Path:
    path = _d4rl(scene)
    with h5py.File(path, "a") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((2**20,))
        for _ in range(2):
            plist.set_deflate(9)
        space = h5py.h5s.create_simple((40,), (h5py.h5s.UNLIMITED,))
        h5py.h5d.create(file.id, b"rewards", h5py.h5t.IEEE_F64LE, space, plist)
    return path


def _hole_in_hdf5(scene: Scene) -> Path:
    path = _d4rl(scene)
    with h5py.File(path, "a") as file:
        file.create_dataset("rewards", (2**28,), "f8")
        file["rewards"][-1] = 0.0  # the rest was never written
    return path


def _edited_metadata(scene: Scene, **changes: Any) -> Path:
    path = make_minari(scene.folder)
    metadata = json.loads((path / "metadata.json").read_text())
    (path / "metadata.json").write_text(json.dumps(metadata | changes))
    return path


def _many_episodes(scene: Scene) -> Path:
    return _edited_metadata(scene, total_episodes=10**9)


def _huge_space(scene: Scene) -> Path:
    space = {"type": "Box", "dtype": "float32", "shape": [10**9], "low": 0, "high": 1}
    return _edited_metadata(scene, observation_space=json.dumps(space))


def _shared_rewards(scene: Scene) -> Path:
    path = make_minari(scene.folder)
    with h5py.File(path / "main_data.hdf5", "a") as file:
        del file["episode_0/rewards"]
        kind = h5py.vlen_dtype(np.float64)
        file["episode_0"].create_dataset("rewards", (3,), kind)[0] = np.zeros(10**5)
    return path


def _image(data: bytes | None) -> Callable[[Scene], Path]:
    """Returns what makes a data set with one image: these bytes, or a large one."""

    def make(scene: Scene) -> Path:
        content = data
        if content is None:
            buffer = io.BytesIO()
            Image.new("1", (16_383, 16_383)).save(buffer, "PNG")
            content = buffer.getvalue()
        space = Box(0, 255, (32, 32, 3), np.uint8)
        path = make_minari(scene.folder, np.zeros((4, 32, 32, 3), np.uint8), space)
        with h5py.File(path / "main_data.hdf5", "a") as file:
            del file["episode_0/observations"]
            kind = h5py.vlen_dtype(np.uint8)
            rows = file["episode_0"].create_dataset("observations", (4,), kind)
            for row in range(4):
                rows[row] = np.frombuffer(content, np.uint8)
        return path

    return make


def _run_of(environment: object) -> Callable[[Scene], Path]:
    """Returns what makes the folder of a finished run whose record names an environment."""

    def make(scene: Scene) -> Path:
        path = scene.folder / "run"
        (scene.folder / "gtp_canary.py").write_text(f"open({str(scene.mark)!r}, 'w')")
        evaluation = {"environment": environment}
        config = {"dataset": "nowhere.hdf5", "updates": 1, "evaluation": evaluation}
        result = RunResult(
            **{"method": "gtp", "dataset": "nowhere.hdf5", "group": "0", "seed": 0, "updates": 1},
            status="finished",
            evaluations=(),
            ms_per_update=1.0,
            data_sha256="",
            config=config,
            provenance={},
        )
        (path / "checkpoints").mkdir(parents=True)
        (path / "result.json").write_text(result.model_dump_json())
        good = {CONFIG: scene.files[CONFIG], WEIGHTS: scene.files[WEIGHTS]}
        document = json.loads(good[CONFIG])
        name = f"step_{document['updates']:012d}"
        write_bundle(path / "checkpoints" / name, scene.files, written_by="another program")
        return path

    return make


HOSTS = ("GTP.load of SB3", "GTP.load of Tianshou")
DATA_DOORS = ("load_d4rl_hdf5", "load_minari", "load_ogbench")
CHECKPOINT = ("load_checkpoint", "read_metadata", "restore_", "latest_valid", *HOSTS)
# A manifest that is right says nothing of tensors that are wrong: reading metadata may pass.
TENSORS = ("load_checkpoint", "restore_", "latest_valid", *HOSTS)
CANARIES: list[Canary] = [
    ("pickle .pt", _pickle, CHECKPOINT),
    ("SB3 zip with pickles", _sb3_zip, CHECKPOINT),
    ("object npy", _object_npy, TENSORS),
    ("YAML tag", _yaml_tag, CHECKPOINT),
    ("Tianshou HDF5 with a pickle", _tianshou_hdf5, ("load_d4rl_hdf5", *CHECKPOINT)),
    ("Minari environment", _minari_spec, ("load_minari",)),
    ("path traversal", _traversal, TENSORS),
    ("symbolic link", _symlink, TENSORS),
    ("zip bomb", _zip_bomb, TENSORS),
    ("safetensors header of 2^63", _header(2**63), TENSORS),
    ("YAML alias bomb", _alias_bomb, CHECKPOINT),
    ("HDF5 external link", _external_link, ("load_d4rl_hdf5",)),
]
MORE_CANARIES: list[Canary] = [
    ("torch zip with a pickle", _torch_zip, CHECKPOINT),
    ("pickles as safetensors", _pickled_weights, TENSORS),
    ("path traversal in a zip", _traversal_zip, CHECKPOINT),
    ("zip with a long index", _long_index, CHECKPOINT),
    ("safetensors header of 2^64 - 1", _header(2**64 - 1), TENSORS),
    ("safetensors header of 90 MB", _header(90_000_000), TENSORS),
    ("config of nested lists", _nesting_bomb(CONFIG, 100_000), CHECKPOINT),
    ("manifest of nested lists", _nesting_bomb(MANIFEST, 30_000), CHECKPOINT),
    ("manifest of a gigabyte of brackets", _nesting_bomb(MANIFEST, 10**6), CHECKPOINT),
    ("Minari external link", _minari_link, ("load_minari",)),
    ("npz with objects", _object_npz, ("load_ogbench",)),
    ("npz with a header of 12 TB", _npz_header, ("load_ogbench",)),
    ("npz with a field of 100 MB", _npz_bomb, ("load_ogbench",)),
    ("npz of bytes that become numbers", _npz_of_bytes, ("load_ogbench",)),
    ("npz that is a hole", _npz_hole, ("load_ogbench",)),
    ("named pipe as npz", _pipe_as("buffer.npz"), ("load_ogbench",)),
    ("named pipe", _pipe, ("load_checkpoint", "read_metadata", "latest_valid", *HOSTS)),
    ("named pipe inside", _pipe_inside, TENSORS),
    ("named pipe as HDF5", _pipe_as("buffer.hdf5"), ("load_d4rl_hdf5",)),
    ("zip with a second table of contents", _second_table, CHECKPOINT),
    ("weights that are a hole", _hole, TENSORS),
    ("HDF5 chunk of a gigabyte", _oversized_chunk, ("load_d4rl_hdf5",)),
    ("HDF5 deflated twice", _deflated_twice, ("load_d4rl_hdf5",)),
    ("HDF5 that is a hole", _hole_in_hdf5, ("load_d4rl_hdf5",)),
    ("Minari of 10^9 episodes", _many_episodes, ("load_minari",)),
    ("Minari space of 10^9 numbers", _huge_space, ("load_minari",)),
    ("Minari rewards that share memory", _shared_rewards, ("load_minari",)),
    ("Minari image in PostScript", _image(b"%!PS-Adobe-3.0 EPSF-3.0\n"), ("load_minari",)),
    ("Minari image of 16,383 x 16,383", _image(None), ("load_minari",)),
    ("run that names a module", _run_of("gtp_canary:Env"), ("evaluate",)),
    ("run that names a module of an id", _run_of("gtp_canary:Canary-v0"), ("evaluate",)),
    ("run that names os:abort", _run_of("os:abort"), ("evaluate",)),
    ("run of a config that is none", _run_of(7), ("evaluate",)),
]


def _bundle(scene: Scene, changes: dict[str, bytes]) -> Path:
    """Writes the good checkpoint with other files in it, all hashes right."""
    return _rebuilt(scene, scene.files | changes)


def _rebuilt(scene: Scene, files: dict[str, bytes]) -> Path:
    path = scene.folder / "step_000000000099"
    write_bundle(path, files, written_by="another program")
    return path


def make_minari(
    folder: Path,
    observations: Any = np.zeros((4, 3)),  # noqa: B008 - never changed
    space: Box = Box(-9, 9, (3,), np.float64),  # noqa: B008
) -> Path:
    """Writes a small Minari dataset; returns the folder of its data."""
    episode = EpisodeBuffer(
        observations=observations,
        actions=np.zeros((3, 2)),
        rewards=np.zeros(3),
        terminations=np.array([False, False, True]),
        truncations=np.zeros(3, bool),
    )
    with mock.patch.dict(os.environ, MINARI_DATASETS_PATH=str(folder)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari wants an author, a description and so on
        minari.create_dataset_from_buffers(
            "toy/set-v0",
            [episode],
            observation_space=space,
            action_space=Box(-1, 1, (2,)),
        )
    return folder / "toy" / "set-v0" / "data"


# --- Forgeries ------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """A checkpoint taken apart, to be changed before it is put together with new hashes."""

    document: dict[str, Any]
    weights: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]


def _set(path: str, value: Any) -> Callable[[Parts], None]:
    """Returns the forgery that sets one entry of config.json."""

    def forge(parts: Parts) -> None:
        *keys, last = (int(key) if key.isdigit() else key for key in path.split("."))
        place: Any = parts.document
        for key in keys:
            place = place[key]
        place[last] = value

    return forge


def _tensor(file: str, name: str, change: Callable[[torch.Tensor], Any]) -> Callable[[Parts], None]:
    """Returns the forgery that changes one tensor, or takes it away where ``change`` gives None."""

    def forge(parts: Parts) -> None:
        tensors = getattr(parts, file)
        value = change(tensors.pop(name) if name in tensors else torch.zeros(1))
        if value is not None:
            tensors[name] = value

    return forge


def _rename(file: str, old: str, new: str) -> Callable[[Parts], None]:
    def forge(parts: Parts) -> None:
        tensors = getattr(parts, file)
        tensors[new] = tensors.pop(old)

    return forge


WEIGHT, MOMENT = "critic.weights.0", "actor/0/exp_avg"
GROUP = "optimizers.actor.groups.0"
FORGERIES: dict[str, Callable[[Parts], None]] = {
    "huge layers": _set("config.actor.hidden", [10**9, 10**9]),
    "many layers": _set("config.actor.hidden", [1] * 100_000),
    "huge critic": _set("config.critic.hidden", [10**9]),
    "many members": _set("config.critic.members", 10**12),
    "huge time embedding": _set("config.actor.time_dim", 10**12),
    "many steps": _set("config.actor.steps", 10**13),
    "many samples": _set("config.learner.baseline.samples", 10**13),
    "many backup actions": _set("config.learner.backup_actions", 10**13),
    "fine curriculum": _set("config.loss.curriculum.end", 10**13),
    "another baseline": _set("config.learner.baseline", {"kind": "expectile"}),
    "huge observation": _set("obs_dim", 10**12),
    "huge action": _set("action_dim", 10**12),
    "no dimension": _set("action_dim", 0),
    "huge counter": _set("updates", 10**400),
    "negative counter": _set("updates", -1),
    "counter of text": _set("updates", "7"),
    "counter of NaN": _set("updates", float("nan")),
    "infinite rate": _set("config.learner.actor_lr", float("inf")),
    "huge standard deviation": _set("config.actor.sigma_data", 1e300),
    "tiny standard deviation": _set("config.actor.sigma_data", 1e-300),
    "huge time": _set("config.actor.times.t_max", 1e39),
    "no time": _set("config.actor.times.t_min", 1e-300),
    "times that do not fall": _set("config.actor.times.rho", 1e12),
    "statistics of no action": _set(
        "config.actor.action_statistics", {"mean": [0.0] * ACT, "std": [1e300] * ACT}
    ),
    "statistics of one dimension": _set(
        "config.actor.action_statistics", {"mean": [0.0], "std": [0.5]}
    ),
    "tiny pseudo-Huber": _set("config.loss.huber", 1e-300),
    "cold choice": _set("config.learner.choice", {"kind": "softmax", "temperature": 1e-300}),
    "unknown field": _set("config.learner.hook", "os.system"),
    "unknown dtype": _set("dtype", "float16"),
    "another dtype": _set("dtype", "float64"),
    "a custom network": _set("own_network", True),
    "a custom encoder": _set("own_encoder", True),
    "box of another size": _set("action_box", {"low": [0.0], "high": [1.0]}),
    "box upside down": _set("action_box", {"low": [1.0, 1.0], "high": [0.0, 0.0]}),
    "huge layout": _set("layout", {"keys": [], "shapes": [[10**6, 10**6]]}),
    "layout without shapes": _set("layout", {"keys": ["a", "b"], "shapes": [[3]]}),
    "metadata of a list": _set("metadata", []),
    "no optimisers": _set("optimizers", {}),
    "optimiser of no network": _set("optimizers.unknown", {"groups": [], "numbers": {}}),
    "no groups": _set("optimizers.actor.groups", []),
    "options of another": _set(GROUP, {"params": [0], "momentum": 0.9}),
    "betas of 5": _set(f"{GROUP}.betas", [5.0, 7.0]),
    "betas of None": _set(f"{GROUP}.betas", None),
    "another implementation": _set(f"{GROUP}.fused", None),
    "differentiable": _set(f"{GROUP}.differentiable", True),
    "amsgrad": _set(f"{GROUP}.amsgrad", True),
    "foreach of text": _set(f"{GROUP}.foreach", "os.system"),
    "parameters of another": _set(f"{GROUP}.params", [7, 8, 9]),
    "a number for a moment": _set("optimizers.actor.numbers", {"0": {"exp_avg": 3}}),
    "a number of no parameter": _set("optimizers.actor.numbers", {"-1": {"x": 3}}),
    "weight missing": _tensor("weights", WEIGHT, lambda x: None),
    "weight too many": _tensor("weights", "critic.weights.99", lambda x: x),
    "weight of another shape": _tensor("weights", WEIGHT, lambda x: x[..., :-1].contiguous()),
    "weight transposed": _tensor("weights", WEIGHT, lambda x: x.mT.contiguous()),
    "weight of another dtype": _tensor("weights", WEIGHT, lambda x: x.double()),
    "weight of integers": _tensor("weights", WEIGHT, lambda x: x.int()),
    "weight without elements": _tensor("weights", WEIGHT, lambda x: x[:0]),
    "weight under another name": _rename("weights", WEIGHT, "__class__"),
    "moment missing": _tensor("moments", MOMENT, lambda x: None),
    "moment too many": _tensor("moments", "actor/0/hook", lambda x: x),
    "moment of no network": _rename("moments", MOMENT, "unknown/0/exp_avg"),
    "moment before the first": _rename("moments", MOMENT, "actor/-1/exp_avg"),
    "moment behind the last": _rename("moments", MOMENT, "actor/999/exp_avg"),
    "moment without a place": _rename("moments", MOMENT, "exp_avg"),
    "moment of one number": _tensor("moments", MOMENT, lambda x: torch.tensor(1.0)),
    "moment of another shape": _tensor("moments", MOMENT, lambda x: x.flatten()),
    "moment of another dtype": _tensor("moments", MOMENT, lambda x: x.double()),
    "moment of bytes": _tensor("moments", MOMENT, lambda x: x.to(torch.uint8)),
    "step missing": _tensor("moments", "actor/0/step", lambda x: None),
    "step of the moment's shape": _tensor("moments", "actor/0/step", lambda x: torch.ones(16, 21)),
    "step of NaN": _tensor("moments", "actor/0/step", lambda x: x * float("nan")),
    "step of -1": _tensor("moments", "actor/0/step", lambda x: x * 0 - 1),
}


# --- The trial ------------------------------------------------------------------------------------


def hostile_files(count: int | None = None, *, doors: dict[str, Door] | None = None) -> Outcome:
    """B2: nothing is executed or written, each file is a typed error within a second."""
    outcome, executed, slowest, largest, accepted = Outcome(), 0, 0.0, 0.0, []
    learner = GTPLearner.from_dataset(make_dataset(), configs(200)["policy baseline"])
    train(learner, make_dataset(), 2)
    ways = _doors(learner) | (doors or {})
    _warm_up(learner, ways)
    cases = [
        *((name, make, names) for name, make, names in CANARIES + MORE_CANARIES),
        *((name, _forgery(forge), TENSORS) for name, forge in FORGERIES.items()),
    ]
    for name, make, names in itertools.islice(cases, count):
        problems = []
        with TemporaryDirectory() as directory, _scene(Path(directory), learner) as scene:
            with Disk().in_place():
                path = make(scene)
            for door in names:
                verdict = _open(ways[door], path, scene, door, forged=name in FORGERIES)
                scene.mark.unlink(missing_ok=True)
                executed += bool(verdict.executed)
                slowest, largest = max(slowest, verdict.seconds), max(largest, verdict.memory)
                accepted += [name] if verdict.accepted and name not in accepted else []
                problems += [f"{door}: {problem}" for problem in verdict.problems()]
        outcome.add(name, "; ".join(problems) or None)
    outcome.details |= {
        "canaries": len(CANARIES),
        "more canaries": len(MORE_CANARIES),
        "forgeries with right hashes": len(FORGERIES),
        "accepted, as nothing in them contradicts itself": accepted,
        "slowest, ms": round(1e3 * slowest, 1),
        "most memory, MB": round(largest / 2**20, 1),
    }
    outcome.worst = f"{executed} executed; at most {1e3 * slowest:.0f} ms"
    return outcome


class Verdict(NamedTuple):
    """What happened at a door."""

    executed: list[str]
    accepted: bool
    problem: str | None
    seconds: float
    memory: float
    allowed: float

    def problems(self) -> Iterator[str]:
        """Yields what is wrong."""
        if self.executed:
            yield f"executed {self.executed}"
        if self.problem:
            yield self.problem
        if self.seconds > SECONDS:
            yield f"took {self.seconds:.2f} s"
        if self.memory > self.allowed:
            yield f"took {self.memory / 2**20:.0f} MB, allowed {self.allowed / 2**20:.0f}"


def _open(door: Door, path: Path, scene: Scene, name: str, *, forged: bool) -> Verdict:
    size = sum(f.stat().st_size for f in [path, *path.rglob("*")] if f.is_file())
    problem: str | None = "was accepted"
    start = time.process_time()  # others may be at work; who waits is stopped by the limit
    with warnings.catch_warnings(), peak_memory() as peak, watching() as events:
        warnings.simplefilter("ignore")  # latest_valid says what it skips
        try:
            with time_limit(20 * SECONDS):
                found = door(path.parent if name == "latest_valid" else path)
        except (CheckpointError, StateMismatchError) as error:
            problem = None if str(path) in str(error) else f"the file is not named: {error}"
        except (DataError, ExperimentError) as error:
            problem = None if name in (*DATA_DOORS, "evaluate") else repr(error)
        except BaseException as error:
            problem = f"raised {error!r:.300}"
        else:
            # The newest whose bytes are right: a forgery's are, what is damaged is passed over.
            if name == "latest_valid" and (forged or found == scene.folder / "good"):
                problem = None
    seconds = time.process_time() - start
    accepted = problem == "was accepted"
    if accepted and forged:
        problem = _usage_problem(path)
    executed = events + ([f"{scene.mark.name} was made"] if scene.mark.exists() else [])
    return Verdict(executed, accepted, problem, seconds, peak[0], 2 * size + SLACK)


def _usage_problem(path: Path) -> str | None:
    """Returns what is wrong with a learner that came from a forgery: it must act and train."""
    process, reader = jobs.start(jobs.use, str(path))
    process.join(60)
    messages = jobs.sent(reader)
    if process.exitcode != 0:
        return f"was accepted, and using it ended with exit code {process.exitcode}"
    return f"was accepted, and using it raised {messages[0]}" if messages[0] else None


def _doors(learner: GTPLearner) -> dict[str, Door]:
    def minari_at(path: Path) -> Any:
        root = path.parents[2]
        with mock.patch.dict(os.environ, MINARI_DATASETS_PATH=str(root)):
            return load_minari("toy/set-v0")

    return {
        "load_checkpoint": load_checkpoint,
        "read_metadata": read_metadata,
        "restore_": lambda path: restore_(learner, path),
        "latest_valid": latest_valid,
        "load_d4rl_hdf5": load_d4rl_hdf5,
        "load_minari": minari_at,
        "load_ogbench": load_ogbench,
        "GTP.load of SB3": gtp_sb3.GTP.load,
        "GTP.load of Tianshou": gtp_tianshou.GTP.load,
        "evaluate": lambda path: reevaluate(path, EvaluationConfig(steps=1, episodes=1)),
    }


def _forgery(forge: Callable[[Parts], None]) -> Callable[[Scene], Path]:
    def make(scene: Scene) -> Path:
        parts = Parts(
            json.loads(scene.files[CONFIG]),
            safetensors.torch.load(scene.files[WEIGHTS]),
            safetensors.torch.load(scene.files[TRAIN_STATE]),
        )
        forge(parts)
        changed = {
            CONFIG: json.dumps(parts.document).encode(),
            WEIGHTS: safetensors.torch.save(parts.weights),
            TRAIN_STATE: safetensors.torch.save(parts.moments),
        }
        return _bundle(scene, changed)

    return make


@contextlib.contextmanager
def _scene(directory: Path, learner: GTPLearner) -> Iterator[Scene]:
    folder = directory / "checkpoints"
    folder.mkdir()
    with Disk().in_place():
        # With all that a host needs to know of what it acts on.
        scaler, layout = ActionScaler([-1.0] * ACT, [1.0] * ACT), ObservationLayout((OBS,))
        good = save_checkpoint(folder / "good", learner, action_scaler=scaler, layout=layout)
    mark = directory / "executed"
    sys.path.insert(0, str(folder))  # where a module that a file names would be found
    try:
        files = {name: (good / name).read_bytes() for name in (CONFIG, WEIGHTS, TRAIN_STATE)}
        yield Scene(folder, mark, pickle.dumps(Mark(mark)), files)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("gtp_canary", None)


def _warm_up(learner: GTPLearner, doors: dict[str, Door]) -> None:
    """Passes good files through every door, so that nothing is imported while we watch."""
    with TemporaryDirectory() as directory, _scene(Path(directory), learner) as scene:
        for name in CHECKPOINT:
            doors[name](scene.folder if name == "latest_valid" else scene.folder / "good")
        doors["load_minari"](make_minari(scene.folder))
        path = scene.folder / "good.hdf5"
        with h5py.File(path, "w") as file:
            file["observations"], file["actions"] = np.zeros((4, 2)), np.zeros((4, 1))
            file["rewards"], file["terminals"] = np.zeros(4), np.zeros(4, bool)
            file["timeouts"] = np.zeros(4, bool)
        doors["load_d4rl_hdf5"](path)
        np.savez(scene.folder / "good.npz", **OGBENCH)
        doors["load_ogbench"](scene.folder / "good.npz")
        with contextlib.suppress(ExperimentError):
            doors["evaluate"](_run_of("Canary-v0")(scene))
        with contextlib.suppress(DataError):
            shutil.rmtree(scene.folder / "toy")
            doors["load_minari"](_image(b"x")(scene))
        b"x".decode("cp437")  # the names in foreign zip files
        # A canary that cannot sing proves nothing.
        pickle.loads(scene.payload)  # noqa: S301
        if not scene.mark.exists():
            raise RuntimeError("the canary does not sing")
