"""Requests of several clients computed as one batch, with a queue that is bounded."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gtp_runtime.errors import ActionError, GTPRuntimeError
from gtp_runtime.graph import Array
from gtp_runtime.policy import Policy
from gtp_runtime.serving.bodies import Request

_REMEMBERED = 4096  # latencies of so many answers


class OverloadedError(GTPRuntimeError):
    """The queue is full, or the server stops: the client may try again later."""


class TooManyRowsError(GTPRuntimeError, ValueError):
    """A request with more observations than one may have."""


class Measures:
    """What has happened: counts, and the latencies of the last answers.

    Attributes:
        requests: Requests that were understood.
        answered: Those that got an action.
        failed: Those that were wrong: observation, noise or body.
        refused: Those that found the queue full or the server stopping.
        rows: Observations that got an action.
        batches: Computations that took.
    """

    def __init__(self) -> None:
        self.requests = self.answered = self.failed = self.refused = 0
        self.rows = self.batches = 0
        self._start = time.monotonic()
        self._latencies: deque[float] = deque(maxlen=_REMEMBERED)

    def remember(self, seconds: float) -> None:
        """Counts an answer.

        Args:
            seconds: From the whole request to its action.
        """
        self.answered += 1
        self._latencies.append(seconds)

    def report(self) -> dict[str, Any]:
        """Returns everything as JSON values; latencies in milliseconds, null before the first."""
        latencies = np.array(self._latencies) * 1e3
        p50, p99 = np.quantile(latencies, [0.5, 0.99]) if latencies.size else (None, None)
        return {
            "uptime_s": time.monotonic() - self._start,
            "requests": self.requests,
            "answered": self.answered,
            "failed": self.failed,
            "refused": self.refused,
            "rows": self.rows,
            "batches": self.batches,
            "latency_ms": {
                "p50": None if p50 is None else float(p50),
                "p99": None if p99 is None else float(p99),
                "max": float(latencies.max()) if latencies.size else None,
                "of": int(latencies.size),
            },
        }


class _Waiting:
    def __init__(self, parts: list[Array], noise: Array | None) -> None:
        self.parts, self.noise, self.rows = parts, noise, len(parts[0])
        self.done: asyncio.Future[Array] = asyncio.get_running_loop().create_future()


class Batcher:
    """Computes what waits, all of it at once, in one thread.

    Nothing waits for a batch to fill: while one is computed the next gathers. Each request brings
    its own noise, so its action does not depend on whom it is computed with, up to rounding.

    Args:
        policy: The policy.
        max_waiting: Requests that may wait.
        max_rows: Observations in a batch, and in a request.
    """

    def __init__(self, policy: Policy, *, max_waiting: int, max_rows: int) -> None:
        self._policy, self._max_waiting, self._max_rows = policy, max_waiting, max_rows
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "gtp-serve")
        self.stopping = False
        self.measures = Measures()

    async def act(self, request: Request) -> Array:
        """Returns the action of a request.

        Args:
            request: Observation and options.

        Returns:
            The action, as `Policy.act` returns it.

        Raises:
            OverloadedError: If too many wait.
            TooManyRowsError: If the request has too many observations.
            GTPRuntimeError: As `Policy.act` raises it.
        """
        start = time.perf_counter()
        self.measures.requests += 1
        if self.stopping or len(self._waiting) >= self._max_waiting:
            self.measures.refused += 1
            why = "the server stops" if self.stopping else f"{len(self._waiting)} requests wait"
            raise OverloadedError(f"Too much at once: {why}. Try again later.")
        try:
            parts, single = self._policy.check(request.obs)
            rows = len(parts[0])
            if rows > self._max_rows:
                raise TooManyRowsError(
                    f"Too many observations: got {rows}, expected at most {self._max_rows}."
                )
            noise = self._policy.draw_noise(
                parts, deterministic=request.deterministic, seed=request.seed
            )
            waiting = _Waiting(parts, noise)
            self._waiting.append(waiting)
            self._arrived.set()
            action = await waiting.done
        except GTPRuntimeError:
            self.measures.failed += 1
            raise
        self.measures.rows += rows
        self.measures.remember(time.perf_counter() - start)
        return action[0] if single else action

    async def work(self) -> None:
        """Computes until `stop`, and then what still waits."""
        loop = asyncio.get_running_loop()
        while self._waiting or not self.stopping:
            batch = self._gather()
            if not batch:
                if not self.stopping:  # or all who waited have gone
                    self._arrived.clear()
                    await self._arrived.wait()
                continue
            found: list[Array | Exception]
            try:
                found = await loop.run_in_executor(self._thread, self._compute, batch)
            except Exception as error:  # to those who wait, whatever it is
                found = [error] * len(batch)
            self._answer(batch, found)
        self._thread.shutdown()

    def stop(self) -> None:
        """Refuses what comes from now on; `work` ends when everything before is answered."""
        self.stopping = True
        self._arrived.set()

    def _gather(self) -> list[_Waiting]:
        """Takes from the queue what fits into one batch; who has gone is left out."""
        batch: list[_Waiting] = []
        rows = 0
        while self._waiting and rows + self._waiting[0].rows <= self._max_rows:
            waiting = self._waiting.popleft()
            if not waiting.done.done():
                batch.append(waiting)
                rows += waiting.rows
        return batch

    def _compute(self, batch: list[_Waiting]) -> list[Array | Exception]:
        """Returns what each request gets. Runs in the thread."""
        parts = [np.concatenate(each) for each in zip(*(w.parts for w in batch), strict=True)]
        noises = [w.noise for w in batch if w.noise is not None]
        try:
            actions = self._policy.compute(parts, np.concatenate(noises) if noises else None)
        except ActionError as error:
            if len(batch) == 1:
                return [error]
            # One that there is no action for is nobody else's error: found by halves.
            half = len(batch) // 2
            return self._compute(batch[:half]) + self._compute(batch[half:])
        return list(np.split(actions, np.cumsum([w.rows for w in batch])[:-1]))

    def _answer(self, batch: list[_Waiting], found: list[Array | Exception]) -> None:
        self.measures.batches += 1
        for waiting, result in zip(batch, found, strict=True):
            if waiting.done.done():
                continue
            if isinstance(result, Exception):
                waiting.done.set_exception(result)
            else:
                waiting.done.set_result(result)


@contextlib.asynccontextmanager
async def working(batcher: Batcher) -> AsyncIterator[None]:
    """Lets a batcher work inside the context.

    Args:
        batcher: The batcher.

    Yields:
        Nothing.
    """
    task = asyncio.create_task(batcher.work())
    try:
        yield
    finally:
        batcher.stop()
        await task
