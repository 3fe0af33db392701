"""A control loop at 100 Hz, in the shape of a ROS 2 node: a subscription, a timer, a publisher.

    python examples/control_loop.py [POLICY_FILE] [--seconds 10]

Needs gtp-policy-runtime, not torch. With rclpy, `PolicyNode` becomes a `Node`: `on_state` is the
callback of its subscription, `on_timer` that of ``create_timer``, ``publish`` its publisher's.
"""

import argparse
import math
import time
from collections.abc import Callable

import numpy as np

from gtp_runtime import ActionQueue, Policy, Watchdog, example_file

PERIOD = 0.01  # seconds


class PolicyNode:
    """Keeps the last state that was sensed, and publishes an action for it at every tick."""

    def __init__(self, policy: Policy, publish: Callable[[np.ndarray], None]) -> None:
        queue = ActionQueue(policy, deterministic=True)
        # Half a period for the policy; what comes later is replaced by the action before.
        first = np.zeros(policy.document.action_shape)
        self.watchdog = Watchdog(queue.act, deadline=PERIOD / 2, first=first)
        self.publish = publish
        self.state: np.ndarray | None = None

    def on_state(self, state: np.ndarray) -> None:
        """Takes what was sensed."""
        self.state = state

    def on_timer(self) -> None:
        """Acts on it."""
        if self.state is not None:
            self.publish(self.watchdog.act(self.state))


class Pendulum:
    """The plant: a pendulum with torque, instead of a robot."""

    def __init__(self) -> None:
        self.angle, self.speed, self.torque = math.pi, 0.0, 0.0

    def step(self) -> np.ndarray:
        """Moves on by a period and returns what is sensed."""
        self.speed += (15.0 * math.sin(self.angle) + 3.0 * self.torque) * PERIOD
        self.angle += self.speed * PERIOD
        return np.array([math.cos(self.angle), math.sin(self.angle), self.speed], np.float32)


def main() -> None:
    """Runs the loop, and prints how punctual it was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", nargs="?", default=example_file())
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--smoke", action="store_true", help="half a second")
    args = parser.parse_args()
    plant, policy, late = Pendulum(), Policy.load(args.policy), []
    node = PolicyNode(policy, publish=lambda action: setattr(plant, "torque", float(action[0])))
    ticks = int((0.5 if args.smoke else args.seconds) / PERIOD)
    start = time.perf_counter()
    for tick in range(1, ticks + 1):  # rclpy.spin(node) does this
        node.on_state(plant.step())
        node.on_timer()
        late.append(time.perf_counter() - (start + tick * PERIOD))
        time.sleep(max(-late[-1], 0.0))
    watchdog = node.watchdog
    missed = sum(seconds > 0 for seconds in late)
    print(f"{ticks} ticks, {missed} missed, {watchdog.late} actions late, ", end="")
    print(f"slowest {watchdog.slowest * 1e3:.2f} ms")
    watchdog.close()


if __name__ == "__main__":
    main()
