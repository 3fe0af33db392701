"""Pendulum data of a mediocre controller, and the returns that score 0 and 100 on this task.

    python -m benchmarks.pendulum_data [--episodes 100] [--seed 0] [--output outputs/data]
    python -m benchmarks.pendulum_data --reference      # the two returns, over 1000 episodes

The good controller pumps energy into the swing and holds the pendulum upright. The mediocre one
asks for two fifths of its torque, with noise of half the largest one, and forgets to hold in most
of its episodes.
The data are an HDF5 file in D4RL's layout, whose actions are fractions of the largest torque, as
everywhere in D4RL; `make_env` is the environment that takes them.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np

from benchmarks.pages import write
from benchmarks.rollouts import Arrays, returns_of, rollout, save_d4rl, seeds_of

ENVIRONMENT = "Pendulum-v1"
TORQUE, UPRIGHT_ENERGY = 2.0, 5.0  # of the environment: largest torque; energy at rest, upright
STRENGTH, NOISE = 0.4, 1.0  # of the mediocre controller
HOLDING_SHARE = 0.3
Act = Callable[[np.ndarray], np.ndarray]  # from an observation to a torque


def make_env() -> gymnasium.Env[np.ndarray, np.ndarray]:
    """Returns Pendulum with actions from -1 to 1."""
    low, high = np.float32([-1.0, 1.0])  # gymnasium warns of bounds in double precision
    return gymnasium.wrappers.RescaleAction(gymnasium.make(ENVIRONMENT), low, high)


def swing_up(obs: np.ndarray, *, hold: bool = True) -> np.ndarray:
    """Returns the torque of the good controller.

    Args:
        obs: cos and sin of the angle, 0 where upright, and its velocity, shape (3,).
        hold: Whether to hold the pendulum where it is upright.

    Returns:
        Torque, shape (1,), not clipped.
    """
    cos, sin, velocity = (float(x) for x in obs)
    if hold and cos > 0.9:
        return np.array([-(12.0 * np.arctan2(sin, cos) + 3.0 * velocity)])
    energy = velocity**2 / 6 + UPRIGHT_ENERGY * cos
    # At rest a push in any direction begins the swing.
    return np.array([TORQUE * np.sign((velocity or 1.0) * (UPRIGHT_ENERGY - energy))])


def mediocre(seed: int) -> Act:
    """Returns the mediocre controller of one episode."""
    rng = np.random.default_rng(seed)
    hold = bool(rng.uniform() < HOLDING_SHARE)
    return lambda obs: STRENGTH * swing_up(obs, hold=hold) + NOISE * rng.standard_normal(1)


def at_random(seed: int) -> Act:
    """Returns uniformly drawn torques."""
    rng = np.random.default_rng(seed)
    return lambda obs: rng.uniform(-TORQUE, TORQUE, 1)


def play(controller: Callable[[int], Act], seed: int, episodes: int) -> Arrays:
    """Plays episodes, each with a controller and a start of its own seed."""
    env = make_env()

    def play_one(start: int) -> Arrays:
        act = controller(start)
        return rollout(env, lambda obs: act(obs) / TORQUE, start)

    pieces = [play_one(start) for start in seeds_of(seed, 0, episodes)]
    return {field: np.concatenate([piece[field] for piece in pieces]) for field in pieces[0]}


def reference(episodes: int = 1000) -> tuple[float, float]:
    """Returns the mean returns of random torques and of the good controller."""
    low, high = (
        float(returns_of(play(controller, 0, episodes)).mean())
        for controller in (at_random, lambda _: swing_up)
    )
    return low, high


def main() -> None:
    """Writes the data, or prints the reference returns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--episodes", type=int, default=100)
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("outputs/data"))
    add("--reference", action="store_true")
    args = parser.parse_args()
    if args.reference:
        print("random: {:.0f}, swing-up: {:.0f}".format(*reference()))
        return
    data = play(mediocre, args.seed, args.episodes)
    path = args.output / "pendulum-mediocre.hdf5"
    save_d4rl(path, data)
    returns = returns_of(data)
    record = {
        "settings": {"episodes": args.episodes, "seed": args.seed},
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
    }
    write(record, path.with_suffix(".json"))
    print(f"{path}: {len(data['rewards'])} transitions, return {returns.mean():.0f}")


if __name__ == "__main__":
    main()
