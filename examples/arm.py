"""A simulated arm with seven joints, and the logs that three operators leave of it.

    python examples/arm.py logs [--episodes 300]      # one npz file per episode

Six joints turn, the last one slides by millimetres; a command is the next position of all. The
operators drive from pose to pose: one with care, one too fast and not quite there, one who stops
for thought. Nobody wrote down a reward, and nobody was told to.
"""

import argparse
from pathlib import Path

import numpy as np

# Largest position of each joint: six in rad, the last in m. The smallest is its negative.
LIMIT = np.array([2.9, 1.8, 2.9, 1.5, 2.9, 1.9, 0.02])
# What a joint moves in one of 20 steps per second, at most.
SPEED = 0.2 * LIMIT
STEPS = 40


class Arm:
    """The arm: joints follow their commands as fast as they can.

    Attributes:
        joints: Positions, shape (n, 7), of n arms at once.
        target: Poses to reach, shape (n, 7).
    """

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.joints, self.target = rng.uniform(-0.9, 0.9, (2, count, 7)) * LIMIT

    @property
    def obs(self) -> np.ndarray:
        """Joints and target, shape (n, 14)."""
        return np.hstack([self.joints, self.target])

    @property
    def distance(self) -> np.ndarray:
        """How far each arm is from its target, joints in units of their limits, shape (n,)."""
        return np.sqrt((((self.joints - self.target) / LIMIT) ** 2).mean(1))

    def step(self, command: np.ndarray) -> None:
        """Moves one step of 50 ms towards commanded positions, shape (n, 7)."""
        self.joints = self.joints + np.clip(command - self.joints, -SPEED, SPEED)


def smooth(s: np.ndarray) -> np.ndarray:
    """Returns the share of the way after a share of the time, slow at both ends."""
    s = np.clip(s, 0, 1)[:, None]
    return 10 * s**3 - 15 * s**4 + 6 * s**5


def way(
    operator: str, start: np.ndarray, target: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Returns the positions that an operator commands, shape (40, 7)."""
    t = np.arange(1, STEPS + 1)
    if operator == "careful":
        share = smooth(t / 18)
    elif operator == "hasty":
        share = smooth(t / 12)
        target = target + rng.normal(0, 0.12, 7) * LIMIT
    else:
        share = 0.5 * smooth(t / 12) + 0.5 * smooth((t - 24) / 12)
    command = start + share * (target - start) + rng.normal(0, 0.004, (STEPS, 7)) * LIMIT
    return command.clip(-LIMIT, LIMIT)


def record(number: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns one episode: what the robot's logger saved at 20 Hz."""
    rng = np.random.default_rng((seed, number))
    arm, operator = Arm(1, seed=rng.integers(2**32)), ("careful", "hasty", "slow")[number % 3]
    commands, seen = way(operator, arm.joints[0], arm.target[0], rng), []
    for command in commands:
        seen.append(arm.joints[0])
        arm.step(command[None])
    return {
        "joints": np.array(seen),
        "target": np.tile(arm.target, (STEPS, 1)),
        "command": commands,
    }


def write_logs(folder: Path, episodes: int, seed: int = 0) -> None:
    """Writes a folder of npz files, one per episode."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(episodes):
        np.savez(folder / f"run_{number:04}.npz", **record(number, seed))


def main() -> None:
    """Writes the logs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--episodes", type=int, default=300)
    args = parser.parse_args()
    write_logs(args.folder, args.episodes)
    print(f"{args.episodes} episodes in {args.folder}")


if __name__ == "__main__":
    main()
