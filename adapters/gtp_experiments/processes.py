"""Several processes that do one run together: who writes, what they agree on, how they start."""

import os
import secrets
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from gtp_experiments.errors import ExperimentError
from gtp_policy.errors import MissingDependencyError, NonFiniteError, how_to_install
from gtp_policy.functional import named_connection_errors

T = TypeVar("T")

# While one process evaluates, the others wait.
_PATIENCE = timedelta(hours=12)


def together() -> bool:
    """Returns whether this process is one of several that share their runs.

    Returns:
        The answer.

    Example:
        >>> from gtp_experiments.processes import together
        >>> together()
        False
    """
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def writes() -> bool:
    """Returns whether this process writes records and checkpoints: the first one does.

    Returns:
        The answer.

    Example:
        >>> from gtp_experiments.processes import writes
        >>> writes()
        True
    """
    return not together() or dist.get_rank() == 0


def agreed(leave: bool, device: str) -> bool:
    """Returns whether any of the processes wants to leave, so that all do after the same update.

    Args:
        leave: What this one wants.
        device: Where the run computes.

    Returns:
        The answer, the same in all.

    Example:
        >>> from gtp_experiments.processes import agreed
        >>> agreed(True, "cpu"), agreed(False, "cpu")
        (True, False)
    """
    if not together():
        return leave
    flag = torch.tensor([int(leave)], device=device)
    with named_connection_errors("its answer"):
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def first_does(work: Callable[[], T]) -> T:
    """Lets the first process do something while the others wait, and gives all its result.

    Args:
        work: What to do; its result is a plain object that can be pickled.

    Returns:
        The result.

    Raises:
        ExperimentError: In the others, if it failed in the first, which raises its own error.
        NonFiniteError: In all, if the first one found that training has diverged.

    Example:
        >>> from gtp_experiments.processes import first_does
        >>> first_does(lambda: 1 + 1)
        2
    """
    if not together():
        return work()
    box: list[tuple[str, str, T | None]] = [("", "", None)]
    if writes():
        try:
            box = [("", "", work())]
        except BaseException as error:
            _tell([(type(error).__name__, str(error), None)])
            raise
    _tell(box)
    kind, failed, found = box[0]
    if kind == NonFiniteError.__name__:
        raise NonFiniteError(failed)
    if kind:
        raise ExperimentError(
            f"The first process failed: got {kind} ({failed}), expected its result."
        )
    return found  # type: ignore[return-value]  # None only where the first has None


def _tell(box: list[Any]) -> None:
    """Replaces what is in a list by what the first process has in its own."""
    with named_connection_errors("its answer"):
        dist.broadcast_object_list(box)


def join(device: str) -> None:
    """Joins the other processes that torchrun or Accelerate started, if it did, for good.

    Args:
        device: Where the run computes.

    Raises:
        MissingDependencyError: If there are others and Accelerate is not installed.

    Example:
        >>> from gtp_experiments.processes import join, together
        >>> join("cpu")
        >>> together()
        False
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or together():
        return
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingDependencyError(
            f"Accelerate is not installed: got {error}. {how_to_install('distributed')}"
        ) from error
    PartialState(cpu=device == "cpu", timeout=_PATIENCE)


def end(status: int) -> NoReturn:
    """Ends this process; at once, if others share its runs.

    All that it had to do is done then. Taking down the interpreter beside the threads of its
    connections ended one run in some twenty by std::terminate, and so as if it had failed.

    Args:
        status: Exit status.

    Example:
        >>> from gtp_experiments.processes import end
        >>> end(0)
        Traceback (most recent call last):
        ...
        SystemExit: 0
    """
    if together():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def start(arguments: Sequence[str], processes: int) -> int:
    """Starts this command in several processes by torchrun and waits for them.

    Args:
        arguments: Of the command, without ``--processes``.
        processes: How many.

    Returns:
        Exit status of the processes.

    Raises:
        ExperimentError: If one of them was killed.

    Example:
        >>> from gtp_experiments.processes import start
        >>> start.__name__
        'start'
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What `torchrun --standalone` does.
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=secrets.token_hex(8),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "gtp_experiments", *arguments)
    except SignalException:  # the processes got it too, and saved
        return 3
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        # One that raises has the others ended by a signal, which then is not what was wrong.
        if not any(code > 0 for code in codes):
            raise ExperimentError(
                f"A process of the run was killed: got signal {-min(codes)}, expected its end. The "
                "same command goes on from the last checkpoint."
            ) from error
        return max(codes)  # what was wrong stands above
    return 0
