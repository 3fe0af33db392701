"""A3: every call to the operating system that a writer makes is made to fail, one by one."""

import builtins
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from gtp_policy import CheckpointFolder, GTPLearner, load_checkpoint, save_checkpoint
from gtp_policy.errors import CheckpointError
from tests.reliability.interruptions import compare, temporaries
from tests.reliability.outcome import Outcome, unsaid
from tests.reliability.small import configs, digests, make_dataset, train

# What changes something on the disk, or opens something to do so.
CALLS = ("open", "write", "fsync", "close", "mkdir", "rename", "replace", "link", "unlink", "rmdir")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)


class Disk:
    """Counts the calls to the operating system, and lets one of them fail, or all from there on.

    Attributes:
        calls: Names of the calls made, in order.
        for_good: Whether all calls fail from the first failure on.
    """

    def __init__(
        self, fail_at: int | None = None, error: int = errno.EIO, *, for_good: bool = False
    ) -> None:
        self.calls: list[str] = []
        self.for_good = for_good
        self._fail_at, self._error = fail_at, error

    @contextmanager
    def in_place(self) -> Iterator["Disk"]:
        """Stands between Python and the operating system while the block lasts."""
        with (
            mock.patch.multiple(os, **{name: self._call(name) for name in CALLS}),
            mock.patch.object(builtins, "open", self._builtin(builtins.open)),
        ):
            yield self

    def _fails(self, name: str) -> bool:
        index = len(self.calls)
        self.calls.append(name)
        if self._fail_at is None:
            return False
        return index >= self._fail_at if self.for_good else index == self._fail_at

    def _call(self, name: str) -> Callable[..., Any]:
        genuine = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._fails(name):
                # No power fails here, and waiting for the disk would take most of the time.
                return None if name == "fsync" else genuine(*args, **kwargs)
            if name == "close":
                genuine(*args)  # close fails after it has closed
            if name == "write":
                genuine(args[0], bytes(args[1])[: len(args[1]) // 2])  # a disk that fills up
            raise OSError(self._error, os.strerror(self._error))

        return call

    def _builtin(self, genuine: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if set(mode) & set("wax+") and self._fails("open"):
                raise OSError(self._error, os.strerror(self._error))
            return genuine(file, mode, *args, **kwargs)

        return call


Writer = Callable[[str, GTPLearner], Path]


def _in_folder(directory: str, learner: GTPLearner) -> Path:
    return CheckpointFolder(directory, keep=1).save(learner)


def _as_zip(directory: str, learner: GTPLearner) -> Path:
    return save_checkpoint(f"{directory}/policy.zip", learner)


# A folder's checkpoints are directories; saving into it also removes the one before.
WRITERS: dict[str, Writer] = {"folder": _in_folder, "zip": _as_zip}


def failing_disk(count: int | None = None, *, writers: dict[str, Writer] | None = None) -> Outcome:
    """A3: after any failure the previous checkpoint loads, and nothing unfinished is to be seen.

    Args:
        count: At most so many; None for every call of every writer.
        writers: What to try; each saves a learner somewhere below a folder.
    """
    outcome = Outcome()
    dataset = make_dataset()
    learners = [
        GTPLearner.from_dataset(dataset, configs(200)["behaviour cloning"]) for _ in range(2)
    ]
    train(learners[0], dataset, 1)
    train(learners[1], dataset, 2)
    states = list(map(digests, learners))
    cases = _cases(writers or WRITERS, learners, outcome)
    for name, write, disk in itertools.islice(cases, count):
        with TemporaryDirectory() as directory:
            outcome.add(name, _problem(directory, write, disk, learners, states))
    outcome.worst = f"{len(outcome.failures)} of {outcome.count} left damage or no typed error"
    return outcome


def _cases(
    writers: dict[str, Writer], learners: list[GTPLearner], outcome: Outcome
) -> Iterator[tuple[str, Writer, Disk]]:
    for form, write in writers.items():
        with TemporaryDirectory() as directory:
            write(directory, learners[0])
            with Disk().in_place() as disk:
                write(directory, learners[1])
        outcome.details[form] = ", ".join(disk.calls)
        for missing in {"write", "fsync"} - set(disk.calls):
            outcome.add(form, f"the writer never calls {missing}: nothing reaches the disk")
        for index, call in enumerate(disk.calls):
            for error, for_good in itertools.product(ERRORS, (False, True)):
                name = f"{form}: {errno.errorcode[error]} at {call} ({index})"
                yield (
                    f"{name}{' and ever after' if for_good else ''}",
                    write,
                    Disk(index, error, for_good=for_good),
                )


def _problem(
    directory: str,
    write: Writer,
    disk: Disk,
    learners: list[GTPLearner],
    states: list[dict[str, str]],
) -> str | None:
    old, new = states
    with Disk().in_place():
        previous = write(directory, learners[0])
    raised = None
    with disk.in_place():
        try:
            path = write(directory, learners[1])
        except CheckpointError as error:
            raised = error
        except Exception as error:
            return f"raised {error!r}"
    found, problem = {}, None
    for name in sorted(set(os.listdir(directory)) - set(temporaries(directory))):
        try:
            found[name] = digests(load_checkpoint(Path(directory, name)).learner)
        except CheckpointError as error:
            return f"something unfinished is to be seen: {error}"
    if raised is None:
        # Only what comes after the new checkpoint is in place may fail without a word.
        problem = compare(new, found[path.name])
    elif previous.name not in found:
        return f"the previous checkpoint is gone: {raised}"
    elif found[previous.name] != new:
        problem = unsaid(raised, directory) or compare(old, found[previous.name])
    elif "unchanged" in str(raised):
        problem = f"says so after a change: {raised}"
    left = temporaries(directory)
    if raised is not None and left and not disk.for_good:
        problem = problem or f"left {left} behind"
    return problem or _next_problem(directory, write, learners[1], new)


def _next_problem(
    directory: str, write: Writer, learner: GTPLearner, state: dict[str, str]
) -> str | None:
    """Returns what is wrong once the disk works again."""
    with Disk().in_place():
        path = write(directory, learner)
    if write is _in_folder and temporaries(directory):
        return f"the next save left {temporaries(directory)} behind"
    return compare(state, digests(load_checkpoint(path).learner))
