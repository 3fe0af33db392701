"""How much of a critic's advantage is true? hopper-medium, by rollouts in the simulator.

    python -m benchmarks.advantages RUN [--states 2000] [--rollouts 3] [--output FILE]

RUN is the folder of a finished run of `gtp_experiments` on Hopper. An observation of Hopper holds
the whole state but for the place on the track, which nothing depends on. So from states of the data
both the action of the data and one of the policy can be taken, and the policy followed from there
on, with equal noise: the difference of the returns is the advantage that the critic estimates. Some
five minutes on one core.
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.pages import RESULTS, table, write
from gtp_experiments import load_data
from gtp_experiments.reevaluation import finished
from gtp_policy import GTPLearner, load_checkpoint

OUTPUT = RESULTS / "advantages.json"
ENVIRONMENT = "Hopper-v5"
HORIZON = 300  # of discount .99: what follows counts a twentieth
RESAMPLES = 1000
Array = npt.NDArray[np.float64]


class Simulator:
    """Hopper from any observation."""

    def __init__(self) -> None:
        self._env: Any = gymnasium.make(ENVIRONMENT).unwrapped

    def step(self, obs: Array, action: Array) -> tuple[Array, float, bool]:
        """Returns next observation, reward and whether the hopper stands."""
        positions = self._env.model.nq - 1
        self._env.set_state(np.concatenate([[0.0], obs[:positions]]), obs[positions:])
        after, reward, fallen, _, _ = self._env.step(action)
        return after, float(reward), not fallen


def returns(
    simulator: Simulator, learner: GTPLearner, obs: Array, action: Array, gamma: float, seed: int
) -> Array:
    """Returns the discounted returns of an action in each state and the policy from there on.

    Args:
        simulator: Of the task.
        learner: Whose target actor acts; its noise is a function of row, step and ``seed``.
        obs: States, shape (N, O).
        action: Their first actions, in [-1, 1], shape (N, A).
        gamma: Discount per step.
        seed: Of the noise.

    Returns:
        Shape (N,).
    """
    obs, standing, found = obs.copy(), np.ones(len(obs), bool), np.zeros(len(obs))
    generator = torch.Generator().manual_seed(seed)
    for step in range(HORIZON):
        for i in np.flatnonzero(standing):
            obs[i], reward, standing[i] = simulator.step(obs[i], action[i])
            found[i] += gamma**step * reward
        with torch.no_grad():
            sampled = learner.target_actor.sample(
                torch.from_numpy(obs).float(), generator=generator
            )
        action = sampled.double().numpy()
    return found


def compare(estimate: Array, differences: Array) -> dict[str, Any]:
    """Compares estimated advantages with differences of returns.

    The noise of the returns makes every correlation with them smaller. By the spread between the
    rollouts of one state it is known how much of the differences is noise, and so how high the
    correlation with the truth is (Spearman's correction for attenuation).

    Args:
        estimate: Advantages of the critic, shape (N,).
        differences: Of returns, one row per rollout, shape (R, N), R >= 2.

    Returns:
        The correlation, corrected, with the 95 % interval of a bootstrap over states; the share of
        the differences' variance that is not noise; mean and standard error of the differences over
        all states, and over the tenth with the highest estimates.
    """
    truth = differences.mean(0)
    rng, every = np.random.default_rng(0), np.arange(len(truth))
    drawn = [
        _corrected(estimate, differences, rng.choice(every, len(every))) for _ in range(RESAMPLES)
    ]
    best = np.argsort(-estimate)[: len(truth) // 10]
    return {
        "correlation": _corrected(estimate, differences, every),
        "interval": [float(np.quantile(drawn, q)) for q in (0.025, 0.975)],
        "reliability": _reliability(differences),
        "all": _mean(truth),
        "best_tenth": _mean(truth[best]),
        "spread_of_estimates": float(estimate.std()),
        "spread_of_truth": float(truth.std() * np.sqrt(max(_reliability(differences), 0.0))),
    }


def _reliability(differences: Array) -> float:
    noise = differences.var(0, ddof=1).mean() / len(differences)
    return float(1 - noise / differences.mean(0).var())


def _corrected(estimate: Array, differences: Array, rows: npt.NDArray[np.intp]) -> float:
    reliability = max(_reliability(differences[:, rows]), 1e-3)
    raw = np.corrcoef(estimate[rows], differences.mean(0)[rows])[0, 1]
    return float(raw / np.sqrt(reliability))


def _mean(values: Array) -> list[float]:
    return [float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))]


def measure(folder: Path, states: int, rollouts: int) -> dict[str, Any]:
    """Returns the record of a run."""
    result, config, newest = finished(folder)
    learner, dataset = load_checkpoint(newest).learner, load_data(config).dataset
    assert learner.target_critic is not None
    gamma, simulator = config.gamma, Simulator()
    batch = dataset.sample(states, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sampled = learner.target_actor.sample(batch.obs, generator=torch.Generator().manual_seed(1))
        values, others = (learner.target_critic(batch.obs, a) for a in (batch.action, sampled))
    members = (values - others).double().numpy()
    obs = batch.obs.double().numpy()
    of_data, of_policy = (
        np.stack(
            [
                returns(simulator, learner, obs, action.double().numpy(), gamma, seed=2 + k)
                for k in range(rollouts)
            ]
        )
        for action in (batch.action, sampled)
    )
    return {
        "command": f"python -m benchmarks.advantages RUN --states {states} --rollouts {rollouts}",
        "method": result.method,
        "seed": result.seed,
        "updates": result.updates,
        "data_sha256": result.data_sha256,
        "values": float(np.corrcoef(values.mean(0).numpy(), of_data.mean(0))[0, 1]),
        "spread_of_values": float(of_data.mean(0).std()),
        "members": float(np.corrcoef(members)[0, 1]),
        **compare(members.mean(0), of_data - of_policy),
    }


def section(record: dict[str, Any]) -> str:
    """Returns the section of the results page."""
    low, high = record["interval"]
    lines = [
        ["Q(s, a) and the return", f"{record['values']:.3f}"],
        [
            "advantage and the difference of returns, corrected for their noise",
            f"{record['correlation']:.2f} [{low:.2f}, {high:.2f}]",
        ],
        ["advantages of the two members of the critic", f"{record['members']:.2f}"],
    ]
    (best, error), (mean, of_mean) = record["best_tenth"], record["all"]
    return "\n\n".join(
        [
            "## How much of an advantage is true",
            f"{record['method']} on hopper-medium, seed {record['seed']}, after "
            f"{record['updates']:,} updates. From states of the data the action of the data and "
            "one of the policy are taken in the simulator, and the policy followed from there on:",
            table(["correlation of", ""], lines),
            f"Returns differ between states by {record['spread_of_values']:.0f} (standard "
            f"deviation), between two actions of one state by {record['spread_of_truth']:.1f}: a "
            "critic can know the first well and the second hardly. The data's actions in the tenth "
            f"of the states that the critic likes them best in are better than the policy's by "
            f"{best:.2f} ± {error:.2f} (standard error), those of all states by {mean:.2f} ± "
            f"{of_mean:.2f}. Where the members agree and are both wrong, no pessimism over members "
            "helps.",
            f"`{record['command']}`, data: sha256 {record['data_sha256'][:12]}.",
        ]
    )


def main() -> None:
    """Measures and writes the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--states", type=int, default=2000)
    parser.add_argument("--rollouts", type=int, default=3)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    record = measure(args.run, args.states, args.rollouts)
    write(record, args.output)
    print(section(record))


if __name__ == "__main__":
    main()
