"""An action at its deadline: the policy's own in time, what stands in for it late, never later."""

import threading
import time
from typing import Any

import numpy as np
import pytest
from onnx_writer import document, policy_bytes

from gtp_runtime import ActionQueue, LatencyError, ObservationError, Policy, Watchdog

LONG = 60.0  # for what comes at once, however busy the machine is


class Slow:
    """Answers with what it was asked, once it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked: list[float] = []

    def __call__(self, obs: Any) -> np.ndarray:
        self.asked.append(float(obs[0]))
        self.go.wait(LONG)
        return np.asarray(obs, np.float32)


def in_time(watchdog: Watchdog, slow: Slow, obs: list[float]) -> np.ndarray:
    """Returns the action of a call that has all the time it needs."""
    deadline, watchdog._deadline = watchdog._deadline, LONG
    slow.go.set()
    action = watchdog.act(obs)
    slow.go.clear()
    watchdog._deadline = deadline
    return action


def test_an_action_in_time_is_the_policys() -> None:
    policy = Policy.load(policy_bytes())
    with Watchdog(policy.act, deadline=LONG) as watchdog:
        assert watchdog.act(np.zeros(3)).shape == (2,)
        assert (watchdog.calls, watchdog.late) == (1, 0)
        assert 0 < watchdog.slowest < LONG
        with pytest.raises(ObservationError):
            watchdog.act(np.zeros(4))


def test_a_late_call_returns_at_the_deadline_with_the_last_action() -> None:
    slow, waits = Slow(), []
    with Watchdog(slow, 0.1, first=[7.0], on_late=waits.append) as watchdog:
        start = time.perf_counter()
        assert watchdog.act([1.0]).tolist() == [7.0]
        assert 0.1 <= time.perf_counter() - start < LONG / 2
        assert in_time(watchdog, slow, [2.0]).tolist() == [2.0]
        assert watchdog.act([3.0]).tolist() == [2.0]
        assert (watchdog.calls, watchdog.late) == (3, 2)
        assert len(waits) == 2
        assert min(waits) >= 0.1
        slow.go.set()


def test_while_one_is_late_others_do_not_pile_up() -> None:
    slow = Slow()
    with Watchdog(slow, 0.05, first=[0.0]) as watchdog:
        for i in range(5):
            watchdog.act([float(i)])
        assert in_time(watchdog, slow, [9.0]).tolist() == [9.0]
    *begun, last = slow.asked
    assert last == 9.0
    assert len(begun) <= 1  # none, where its thread had not even started


class SlowQueue(ActionQueue):
    """A queue that waits until it is let go."""

    go = threading.Event()

    def act(self, obs: Any) -> np.ndarray:
        self.go.wait(LONG)
        return super().act(obs)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("play", [1, 4])
def test_late_calls_are_steps_of_a_queue(play: int, wrapped: bool) -> None:
    policy = Policy.load(policy_bytes(document(action__chunk=4, observation__history=3)))
    queue = SlowQueue(policy, play=play, deterministic=True)
    seen = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    act: Any = queue.act
    given, options = seen, dict[str, Any]()
    if wrapped:  # the queue is not to be found in the function
        act, given = lambda obs: queue.act(obs / 8), seen * 8
        options = {"skip": lambda obs: queue.skip(obs / 8)}
    with Watchdog(act, LONG, first=np.zeros(2), **options) as watchdog:
        for step, late in enumerate([False, True, True, False]):
            queue.go.clear() if late else queue.go.set()
            watchdog._deadline = 0.05 if late else LONG
            action = watchdog.act(given[step])
    assert watchdog.late == 2
    # The chunk of the first step has four actions; else the last three observations are seen.
    window, place = (seen[[0, 0, 0]], 3) if play == 4 else (seen[1:], 0)
    assert np.array_equal(action, policy.act(window, deterministic=True)[place])


def test_an_error_in_skip_is_raised_by_the_next_call() -> None:
    """Lost, it would leave the queue behind for good."""
    slow = Slow()

    def skip(obs: object) -> None:
        raise KeyError("skip")

    with Watchdog(slow, 0.05, first=np.zeros(1), skip=skip) as watchdog:
        for _ in range(2):  # the second has not begun when it is given up
            watchdog.act([1.0])
        slow.go.set()
        watchdog._deadline = LONG
        watchdog._worker.submit(int).result()  # the thread has come to all of it
        with pytest.raises(KeyError, match="skip"):
            watchdog.act([1.0])
    with pytest.raises(TypeError, match="`skip` is no function"):
        Watchdog(slow, 0.05, skip=3)  # type: ignore[arg-type]


def test_a_skipped_step_leaves_out_its_action() -> None:
    policy = Policy.load(policy_bytes(document(action__chunk=4)))
    queue = ActionQueue(policy, deterministic=True)
    plan = policy.act(np.ones(3), deterministic=True)
    assert np.array_equal(queue.act(np.ones(3)), plan[0])
    for obs in ([np.nan] * 3, np.zeros((2, 3))):
        with pytest.raises(ObservationError):
            queue.skip(obs)
    queue.skip(np.zeros(3))
    assert np.array_equal(queue.act(np.ones(3)), plan[2])
    for _ in range(3):
        queue.skip(np.zeros(3))
    assert np.array_equal(queue.act(np.ones(3)), plan[0])


def test_a_late_call_may_raise_and_has_what_to_do_instead() -> None:
    slow = Slow()
    with Watchdog(slow, 0.05, late="raise") as watchdog:
        with pytest.raises(LatencyError, match=r"within 50\.0 ms") as caught:
            watchdog.act([1.0])
        assert caught.value.fallback is None
        assert caught.value.deadline == 0.05
        in_time(watchdog, slow, [2.0])
        with pytest.raises(LatencyError) as caught:
            watchdog.act([3.0])
        assert caught.value.fallback is not None
        assert caught.value.fallback.tolist() == [2.0]
        slow.go.set()


def test_without_anything_to_repeat_it_is_an_error() -> None:
    slow = Slow()
    with Watchdog(slow, 0.05) as watchdog:
        with pytest.raises(LatencyError):
            watchdog.act([1.0])
        slow.go.set()


def test_a_late_call_may_brake() -> None:
    slow = Slow()
    with Watchdog(slow, 0.05, late=lambda obs: -np.asarray(obs)) as watchdog:
        assert watchdog.act([4.0]).tolist() == [-4.0]
        slow.go.set()


def test_a_late_call_that_ends_behind_a_reset_leaves_nothing_in_the_new_episode() -> None:
    policy = Policy.load(policy_bytes(document(action__chunk=4, observation__history=2)))
    begun, go, compute = threading.Event(), threading.Event(), policy.compute

    def slowly(*args: Any, **options: Any) -> np.ndarray:
        begun.set()
        go.wait(LONG)
        return compute(*args, **options)

    policy.compute = slowly  # type: ignore[method-assign]
    old, new = np.full(3, 3.0), np.array([-1.0, 0.0, 1.0])
    queue, fresh = (ActionQueue(policy, deterministic=True) for _ in range(2))
    with Watchdog(queue.act, 0.05, first=[0.0, 0.0]) as watchdog:
        while not begun.is_set():  # where its thread had not started, the call was cancelled
            watchdog.act(old)
        queue.reset()
        watchdog._deadline = LONG
        go.set()
        found = [watchdog.act(new) for _ in range(3)]
    assert np.array_equal(found, [fresh.act(new) for _ in range(3)])


def test_a_timeout_of_what_computes_is_its_own() -> None:
    def act(obs: Any) -> np.ndarray:
        raise TimeoutError("a sensor")

    with Watchdog(act, LONG, first=[0.0]) as watchdog:
        with pytest.raises(TimeoutError, match="a sensor"):
            watchdog.act([0.0])
        assert watchdog.late == 0


def test_what_is_returned_is_the_callers_own() -> None:
    slow = Slow()
    with Watchdog(slow, 0.1) as watchdog:
        in_time(watchdog, slow, [1.0])[:] = 99
        watchdog.act([2.0])[:] = 98
        assert watchdog.act([3.0]).tolist() == [1.0]
        slow.go.set()


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), float("inf")])
def test_a_wrong_deadline_is_named(deadline: float) -> None:
    with pytest.raises(ValueError, match="`deadline` is out of range"):
        Watchdog(Slow(), deadline)


def test_a_wrong_choice_is_named() -> None:
    with pytest.raises(ValueError, match="`late` is unknown"):
        Watchdog(Slow(), 1.0, late="hope")  # type: ignore[arg-type]
