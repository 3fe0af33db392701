"""A deadline for every action: what a control loop gets when the policy is late."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from gtp_runtime.action_queue import ActionQueue, copied
from gtp_runtime.errors import LatencyError
from gtp_runtime.graph import Array
from gtp_runtime.policy import Observation


class Watchdog:
    """Returns an action by its deadline, come what may: the policy's, or what stands in for it.

    The policy computes in a thread of the watchdog's own, and the caller waits no longer than the
    deadline. What comes later is thrown away. While a late action is still being computed, the next
    call waits for its turn within its own deadline; it never waits for more than one.

    What a late call gives is chosen once:

    - ``"repeat"``: the last action that was in time; before there is one, ``first``.
    - ``"raise"``: `LatencyError`, with that action as its ``fallback``.
    - a function of the observation: what it returns, for instance an action that brakes.

    An action that is there when the caller wakes is given, also where the system woke it after the
    deadline: `slowest` shows that. An error of the policy is raised as it is, if it comes in time.
    A watchdog belongs to one control loop.

    With ``queue.act``, every call is one step of the `ActionQueue`, in time or late: after late
    calls the queue goes on with the action planned for now, and has seen what was observed
    meanwhile.

    Args:
        act: What computes: ``policy.act``, or ``queue.act`` of an `ActionQueue`.
        deadline: Seconds, > 0.
        late: What a late call gives.
        first: Action for late calls before any was in time.
        on_late: Called with the seconds that were waited, at every late call, before it returns.
        skip: Called in the watchdog's thread with the observation of a late call that ``act`` never
            gets; default ``queue.skip`` where ``act`` is ``queue.act``. With a function around a
            queue, as ``lambda obs: queue.act(obs / 10)``, give
            ``skip=lambda obs: queue.skip(obs / 10)``, else the queue falls behind by a step each
            time. An error in it is raised by the next call.

    Attributes:
        calls: Number of calls that ended, late ones included.
        late: Number of late ones.
        slowest: Longest wait of a call, seconds.

    Raises:
        ValueError: If ``deadline`` is not positive, or ``late`` is unknown.
        TypeError: If ``skip`` is no function.

    Example:
        >>> import numpy as np
        >>> from gtp_runtime import Policy, Watchdog, example_file
        >>> policy = Policy.load(example_file())
        >>> with Watchdog(policy.act, deadline=1.0, first=np.zeros(1)) as watchdog:
        ...     action = watchdog.act(np.zeros(3))
        >>> action.shape, watchdog.late
        ((1,), 0)
    """

    def __init__(
        self,
        act: Callable[[Observation], Array],
        deadline: float,
        *,
        late: Literal["repeat", "raise"] | Callable[[Observation], Array] = "repeat",
        first: ArrayLike | None = None,
        on_late: Callable[[float], None] | None = None,
        skip: Callable[[Observation], object] | None = None,
    ) -> None:
        if not 0 < deadline < threading.TIMEOUT_MAX:
            raise ValueError(f"`deadline` is out of range: got {deadline}, expected seconds > 0.")
        if not callable(late) and late not in ("repeat", "raise"):
            raise ValueError(
                f'`late` is unknown: got {late!r}, expected "repeat", "raise" or a function of the '
                "observation."
            )
        if skip is not None and not callable(skip):
            raise TypeError(
                f"`skip` is no function: got {type(skip).__name__}, expected one of the "
                "observation, such as queue.skip."
            )
        queue = getattr(act, "__self__", None)
        self._skip = queue.skip if skip is None and isinstance(queue, ActionQueue) else skip
        self._act, self._deadline, self._late, self._on_late = act, deadline, late, on_late
        self._last = None if first is None else np.array(first, np.float32)
        self._worker = ThreadPoolExecutor(1, "gtp-watchdog")
        self._skipped: Future[object] | None = None
        self.calls = self.late = 0
        self.slowest = 0.0

    def act(self, obs: Observation) -> Array:
        """Returns an action for an observation by the deadline.

        Args:
            obs: As what computes takes it. Not to be written to before the next call returns.

        Returns:
            The action in time, or what a late call gives.

        Raises:
            LatencyError: If it is late and ``late`` is ``"raise"``, or ``"repeat"`` without an
                action to repeat.
        """
        start = time.perf_counter()
        if self._skipped is not None and self._skipped.done():
            skipped, self._skipped = self._skipped, None
            skipped.result()  # an error in it, which would leave the queue behind
        future: Future[Array] = self._worker.submit(self._act, obs)
        try:
            action = future.result(self._deadline)
        except TimeoutError as error:
            if future.done() and not future.cancelled() and future.exception() is error:
                raise  # the policy's own, not that of waiting
            if future.cancel() and self._skip is not None:
                # What has begun takes its own step, and this one comes after it.
                self._skipped = self._worker.submit(self._skip, copied(obs))
            return self._give(obs, time.perf_counter() - start)
        self._count(start)
        self._last = action
        return action.copy()

    def _give(self, obs: Observation, waited: float) -> Array:
        self.late += 1
        self.calls += 1
        self.slowest = max(self.slowest, waited)
        if self._on_late is not None:
            self._on_late(waited)
        if callable(self._late):
            return self._late(obs)
        if self._late == "raise" or self._last is None:
            raise LatencyError(
                f"The action is late: got none after {waited * 1e3:.1f} ms, expected one within "
                f"{self._deadline * 1e3:.1f} ms. Do something safe; fewer steps are faster.",
                deadline=self._deadline,
                fallback=None if self._last is None else self._last.copy(),
            )
        return self._last.copy()

    def _count(self, start: float) -> None:
        self.calls += 1
        self.slowest = max(self.slowest, time.perf_counter() - start)

    def close(self) -> None:
        """Ends the thread, once it has computed what it is at."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        """Returns the watchdog."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the thread."""
        self.close()
