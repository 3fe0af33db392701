"""What a deterministic action should start from: finished runs evaluated with several rules.

    python -m benchmarks.deterministic RUN [RUN ...] [--episodes 50]

A run is a folder of `gtp_experiments`; its environment has to be registered, or is given with
``--environment``. Evaluated are the last weights at one step, with episodes of the same starts for
every rule. Rows that the JSON has stay. A quarter of an hour per run.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.pages import RESULTS, read, write
from gtp_experiments import EvaluationConfig, Evaluator
from gtp_experiments.evaluation import policy_of
from gtp_experiments.reevaluation import data_of, finished, recorded_environment
from gtp_policy import FlowMapActor, GTPLearner, load_checkpoint
from gtp_policy.acting import ModeChoice, mode_share
from gtp_policy.keyed_noise import keyed_noise

RESULT = RESULTS / "deterministic.json"
OBSERVATIONS = 2_000
Noise = Callable[[Tensor, int], Tensor]


def one_for_all(obs: Tensor, count: int) -> Tensor:
    """Returns the same noise (B, count) for every observation, in pairs of opposite ones."""
    half = torch.randn((count + 1) // 2, generator=torch.Generator().manual_seed(0))
    return torch.cat([half, -half])[:count].expand(len(obs), -1)


# By name: how many actions, of whose noise; their mode is taken.
RULES: dict[str, tuple[int, Noise]] = {
    "noise of the observation, 1": (1, keyed_noise),
    "noise of the observation, mode of 4": (4, keyed_noise),
    "noise of the observation, mode of 8": (8, keyed_noise),
    "noise of the observation, mode of 16": (16, keyed_noise),
    "one noise for all, mode of 16": (16, one_for_all),
}


def rule(actor: FlowMapActor, steps: int, count: int, noise: Noise) -> Callable[[Tensor], Tensor]:
    """Returns how one acts by a rule."""
    width = actor.noise_dim(steps)

    def act(obs: Tensor) -> Tensor:
        start = noise(obs, count * width).reshape(-1, width)
        drawn = actor.sample(obs.repeat_interleave(count, 0), steps=steps, noise=start)
        return ModeChoice().take(drawn.view(len(obs), count, -1), None, None)

    return act


def evaluate(
    folder: Path,
    episodes: int,
    environment: str | None,
    before: dict[str, Any],
    rules: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Evaluates a run.

    Args:
        folder: Of the run.
        episodes: Per rule.
        environment: The run's own, if it is not registered.
        before: What was found by rule; those are not evaluated again.
        rules: By which to act; None: all of them.

    Returns:
        Task, seed, updates, share of the data where the critic prefers the mode, and by rule the
        episodes' scores.
    """
    trained, config, newest = finished(folder)
    evaluation = EvaluationConfig(
        steps=1,
        episodes=episodes,
        environment=environment or recorded_environment(folder, config),
        max_steps=config.evaluation.max_steps,
    )
    config = config.replace(evaluation=evaluation)
    checkpoint = load_checkpoint(newest, train_state=False)
    learner: GTPLearner = checkpoint.learner
    data = data_of(folder, trained, config, checkpoint)
    to_box = data.dataset.action_scaler.to_box
    evaluator, found = Evaluator(config, data.dataset), dict(before)
    assert learner.target_critic is not None
    obs = data.dataset.sample(OBSERVATIONS, generator=torch.Generator().manual_seed(0)).obs
    share = mode_share(learner.target_actor, learner.target_critic, obs)

    def run(name: str, act: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> None:
        if name in found or (rules is not None and name not in rules):
            return
        seen = evaluator.run(act, learner.updates)
        succeeded = config.scored_by == "success" and seen.success is not None
        found[name] = [float(v) for v in (seen.success if succeeded else seen.returns) or ()]
        print(f"{folder.name}: {name}: {np.mean(found[name]):.3g}", flush=True)

    try:
        run("sampled", policy_of(learner, data.dataset, evaluation))
        for name, (count, noise) in RULES.items():
            act = rule(learner.target_actor, 1, count, noise)
            run(name, lambda obs, act=act: to_box(act(torch.from_numpy(obs)).numpy()))  # type: ignore[misc]
    finally:
        evaluator.close()
    return {
        "task": config.task,
        "method": config.method,
        "seed": config.seed,
        "updates": learner.updates,
        "scored_by": config.scored_by,
        "mode_share": share,
        "scores": found,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluates the runs and writes the JSON."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    options.add_argument("--episodes", type=int, default=50)
    options.add_argument("--rules", nargs="+", choices=["sampled", *RULES], metavar="RULE")
    options.add_argument("--environment", help="of these runs, if it is not registered")
    options.add_argument("--output", type=Path, default=RESULT)
    args = options.parse_args(arguments)
    torch.set_num_threads(1)
    record = read(args.output) or {"rows": {}}
    record["command"] = "python -m benchmarks.deterministic RUN ..."
    for folder in args.runs:
        row = record["rows"].get(folder.name, {})
        record["rows"][folder.name] = evaluate(
            folder, args.episodes, args.environment, row.get("scores", {}), args.rules
        )
        write(record, args.output)


if __name__ == "__main__":
    main()
