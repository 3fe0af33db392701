"""B1: a checkpoint with any byte changed is an error, or what it was; never silently another."""

import contextlib
import ctypes
import io
import itertools
import os
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from gtp_policy import ActionScaler, GTPLearner, load_checkpoint, save_checkpoint
from gtp_policy.errors import CheckpointError
from tests.reliability.outcome import Outcome
from tests.reliability.small import ACT, digests, make_config, make_dataset, train

# Of one case. Tests share their machine, and are traced: they allow more.
SECONDS = float(os.environ.get("TRIAL_SECONDS", "1"))
SLACK = 64 * 2**20

Load = Callable[[Path], Any]
Rng = np.random.Generator


# --- What may happen to the bytes of a file -------------------------------------------------------


def _flip_bit(data: bytearray, rng: Rng) -> bytearray:
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return data


def _set_byte(data: bytearray, rng: Rng) -> bytearray:
    data[int(rng.integers(len(data)))] = int(rng.integers(256))
    return data


def _truncate(data: bytearray, rng: Rng) -> bytearray:
    return data[: int(rng.integers(len(data)))]


def _extend(data: bytearray, rng: Rng) -> bytearray:
    return data + bytearray(rng.bytes(int(rng.integers(1, 200))))


def _repeat_block(data: bytearray, rng: Rng) -> bytearray:
    start, stop, at = (*sorted(rng.integers(len(data) + 1, size=2)), rng.integers(len(data)))
    return data[:at] + data[start:stop] + data[at:]


def _zero_block(data: bytearray, rng: Rng) -> bytearray:
    start = int(rng.integers(len(data)))
    stop = min(len(data), start + int(rng.integers(1, 65)))
    data[start:stop] = bytes(stop - start)
    return data


BYTES: dict[str, Callable[[bytearray, Rng], bytearray]] = {
    "bit flipped": _flip_bit,
    "byte set": _set_byte,
    "truncated": _truncate,
    "extended": _extend,
    "block repeated": _repeat_block,
    "block zeroed": _zero_block,
}
KINDS = (*BYTES, "file deleted", "files swapped")


class Files:
    """A checkpoint of some form as files in memory, which can be written changed and unchanged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.zipped = path.suffix == ".zip"
        if self.zipped:
            self.whole = path.read_bytes()
            with zipfile.ZipFile(path) as archive:
                self.files = {name: archive.read(name) for name in archive.namelist()}
        else:
            self.files = {file.name: file.read_bytes() for file in sorted(path.iterdir())}
        self.size = sum(map(len, self.files.values()))

    def write(self, files: dict[str, bytes]) -> None:
        """Writes a set of files over what is there."""
        if self.zipped:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                for name, data in files.items():
                    archive.writestr(zipfile.ZipInfo(name), data)
            _write(self.path, buffer.getvalue())
            return
        for name in self.files.keys() - files.keys():
            (self.path / name).unlink(missing_ok=True)
        for name, data in files.items():
            if files is self.files or data is not self.files[name]:
                _write(self.path / name, data)

    def restore(self) -> None:
        """Writes everything as it was."""
        if self.zipped:
            _write(self.path, self.whole)
        else:
            self.path.mkdir(exist_ok=True)
            self.write(self.files)

    def mutate(self, kind: str, rng: Rng) -> str:
        """Writes a changed checkpoint; returns what was changed."""
        names = sorted(self.files)
        first, second = rng.choice(names, size=2, replace=False).tolist()
        changed = dict(self.files)
        if kind == "file deleted":
            del changed[first]
            self.write(changed)
            return first
        if kind == "files swapped":
            changed[first], changed[second] = changed[second], changed[first]
            self.write(changed)
            return f"{first} and {second}"
        if self.zipped:
            _write(self.path, _changed(self.whole, kind, rng, self._span(first)))
            return f"the zip near {first}"
        changed[first] = _changed(changed[first], kind, rng)
        self.write(changed)
        return first

    def _span(self, name: str) -> tuple[int, int]:
        """Returns where a member lies in the zip file, its header or the index behind all."""
        with zipfile.ZipFile(io.BytesIO(self.whole)) as archive:
            starts = sorted(info.header_offset for info in archive.infolist())
            start, index = archive.getinfo(name).header_offset, archive.start_dir
        ends = [*starts[1:], index]
        # The member that lies first lends its turn to the index at the end.
        return (index, len(self.whole)) if start == 0 else (start, ends[starts.index(start)])


def _write(path: Path, data: bytes) -> None:
    # Some file systems wait for the disk when a file is emptied and written again.
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def _changed(data: bytes, kind: str, rng: Rng, span: tuple[int, int] | None = None) -> bytes:
    start, stop = span or (0, len(data))
    while True:
        middle = BYTES[kind](bytearray(data[start:stop]), rng)
        after = b"" if kind == "truncated" else data[stop:]
        result = data[:start] + bytes(middle) + after
        if result != data:  # a byte that was set to what it was is no mutation
            return result


# --- The trial ------------------------------------------------------------------------------------


def mutated(count: int, *, load: Load = load_checkpoint) -> Outcome:
    """B1: eight kinds of damage to every file of both forms: an error, or the same content."""
    outcome, rng = Outcome(), np.random.default_rng(11)
    kinds: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    slowest, largest, same = 0.0, 0.0, 0
    with TemporaryDirectory() as directory:
        pairs = list(itertools.product(_checkpoints(Path(directory)), KINDS))
        # The first round is on large files, where memory shows; the rest on small ones.
        rounds = itertools.chain(pairs[:16], itertools.cycle(pairs[16:]))
        truth = {files: _content(load_checkpoint(files.path)) for (files, _) in pairs[::8]}
        for index, (files, kind) in enumerate(itertools.islice(rounds, count)):
            what = files.mutate(kind, rng)
            start = time.process_time()  # others may be at work
            with peak_memory() as peak:
                verdict = _verdict(load, files, truth[files])
            seconds = time.process_time() - start
            files.restore()
            slowest, largest = max(slowest, seconds), max(largest, peak[0])
            kinds[kind] += 1
            refused[kind] += verdict == "refused"
            same += verdict == "the same"
            problem = None if verdict in ("refused", "the same") else verdict
            if seconds > SECONDS:
                problem = problem or f"took {seconds:.1f} s"
            if peak[0] > 2 * files.size + SLACK:
                problem = problem or f"took {peak[0] / 2**20:.0f} MB for {files.size} bytes"
            outcome.add(f"{index}: {kind}, {what}, {files.path.name}", problem)
    silent = sum("silently" in failure for failure in outcome.failures)
    outcome.details |= {
        "by kind": {k: f"{refused[k]} of {kinds[k]} refused" for k in KINDS if kinds[k]},
        "still the same content": same,
        "slowest, ms": round(1e3 * slowest, 1),
        "most memory, MB": round(largest / 2**20, 1),
    }
    outcome.worst = f"{silent} silently different; at most {1e3 * slowest:.0f} ms"
    return outcome


def _checkpoints(directory: Path) -> Iterator[Files]:
    dataset, scaler = make_dataset(), ActionScaler([-2.0] * ACT, [2.0] * ACT)
    for name, width in (("large", 1024), ("small", 8)):
        config = make_config(200, critic=width < 1024, hidden=(width, width))
        learner = GTPLearner.from_dataset(dataset, config)
        train(learner, dataset, 2)
        for suffix in ("", ".zip"):
            yield Files(
                save_checkpoint(
                    directory / f"{name}{suffix}",
                    learner,
                    action_scaler=scaler,
                    layout=dataset.layout,
                    metadata={"task": "toy", "scores": [1.5, None, True]},
                )
            )


def _verdict(load: Load, files: Files, truth: dict[str, Any]) -> str:
    try:
        found = load(files.path)
    except CheckpointError as error:
        named = str(files.path) in str(error)
        return "refused" if named else f"the error does not name the file: {error}"
    except BaseException as error:
        return f"raised {error!r}"
    return "the same" if _content(found) == truth else "silently different"


def _content(checkpoint: Any) -> dict[str, Any]:
    return digests(checkpoint.learner) | {
        "config": checkpoint.learner.full_config.model_dump_json(),
        "scaler": repr(checkpoint.action_scaler),
        "layout": repr(checkpoint.layout),
        "metadata": repr(checkpoint.metadata),
    }


@contextlib.contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Measures by how many bytes the resident memory grew at its highest; 0 where it cannot."""
    grown = [0.0]
    if not _can_reset():
        yield grown
        return
    _give_back_freed_memory()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    yield grown
    grown[0] = max(0.0, _status("VmHWM") - before)


def _give_back_freed_memory() -> None:
    # What the allocator keeps for later is resident already, and would hide what comes.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _can_reset() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _status(name: str) -> float:
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith(name))
    return 1024 * float(line.split()[1])
