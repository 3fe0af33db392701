"""The command line's arguments that experiments of every method share."""

import argparse
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from gtp_experiments.config import Bounds, EvaluationConfig
from gtp_experiments.errors import ExperimentError
from gtp_policy import Config, GTPConfig, presets
from gtp_policy.acting import ArgmaxChoice, Choice, SoftmaxChoice
from gtp_policy.rewards import LinearReward, ReturnRangeReward, RewardTransform, StandardizedReward

C = TypeVar("C", bound=Config)

REWARDS: dict[str, RewardTransform] = {
    "none": LinearReward(),
    "antmaze": LinearReward(subtract=0.5, multiply=4.0),
    "minus_one": LinearReward(subtract=1.0),
    "standardize": StandardizedReward(),
    "return_range": ReturnRangeReward(),
}
"""Reward transforms by the names that the command line knows."""
CHOICES: dict[str, Choice] = {"argmax": ArgmaxChoice(), "softmax": SoftmaxChoice()}
"""How one of several candidates is chosen, likewise."""


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds dataset, length, evaluation and place to a parser.

    Args:
        parser: The parser.
    """
    add = parser.add_argument
    add(
        "--dataset",
        required=True,
        help="id of a Minari dataset, or path of a file: D4RL's HDF5 or OGBench's npz",
    )
    add("--task", help="name in D4RL's manner, e.g. hopper-medium: scores and the paper's figure")
    add("--data-note", help="where the data comes from, in words, for tables")
    add("--method", help="what tables call the policy")
    add("--reward", type=_reward, metavar="NAME|JSON", help=f"one of {', '.join(REWARDS)}")
    add("--best-episodes", type=float, metavar="SHARE", help="train on those with the best returns")
    add(
        "--return-weighting",
        type=float,
        metavar="TILT",
        help="train more often on episodes with high returns",
    )
    add("--n-step", type=int, metavar="N", help="sum the rewards of N steps of the data")
    add("--gamma", type=float)
    add("--low", type=_bound, metavar="X[,X...]", help="lower bounds of the actions")
    add("--high", type=_bound, metavar="X[,X...]", help="upper bounds of the actions")
    add("--out-of-bounds", choices=["error", "clip"], help="actions of the data outside them")
    add("--updates", type=int, required=True)
    add("--batch-size", type=int)
    add("--seeds", type=int, nargs="+", default=[0])
    add("--environment", help="id of gymnasium, module:id or module:function")
    add("--evaluate-every", type=int, metavar="UPDATES")
    add("--episodes", type=int)
    add("--device")
    add("--jobs", type=int, default=1, help="processes")
    add("--out", type=Path, required=True, help="folder of all runs; they resume from there")


def add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what a generative trajectory policy is chosen by to a parser.

    Args:
        parser: The parser, with the arguments of `add_experiment_arguments`.
    """
    add = parser.add_argument
    add("--preset", default="gtp", help="the policy to start from")
    add("--set", action="append", default=[], metavar="PATH=VALUE", help="change of the preset")
    add("--steps", type=int, help="K at evaluation")
    add("--candidates", type=int, help="actions to choose from at evaluation")
    add("--choice", choices=[*CHOICES])


def run_fields(args: argparse.Namespace) -> dict[str, Any]:
    """Collects the fields of a `RunConfig` that were given.

    Args:
        args: What the parser returned.

    Returns:
        Fields by name, without the seed.

    Raises:
        ExperimentError: If there is no such field to set, or the value does not fit.
    """
    policy = presets.get(args.preset)
    for assignment in args.set:
        policy = assign(policy, assignment)
    return {"method": args.preset, **experiment_fields(args), "policy": policy}


def experiment_fields(args: argparse.Namespace) -> dict[str, Any]:
    """Collects the fields of an `ExperimentConfig` that were given.

    Args:
        args: What the parser returned.

    Returns:
        Fields by name, without the seed.
    """
    evaluation = {
        "environment": args.environment,
        "every": args.evaluate_every,
        "episodes": args.episodes,
        "steps": getattr(args, "steps", None),
        "candidates": getattr(args, "candidates", None),
        "choice": CHOICES.get(getattr(args, "choice", None) or ""),
    }
    fields: dict[str, Any] = {
        name: getattr(args, name)
        for name in (
            "dataset",
            "task",
            "data_note",
            "method",
            "reward",
            "best_episodes",
            "return_weighting",
            "n_step",
            "gamma",
            "low",
            "high",
            "out_of_bounds",
            "updates",
            "batch_size",
            "device",
        )
    }
    if args.evaluate_every is not None:
        fields["checkpoint_every"] = args.evaluate_every
    given = {name: value for name, value in evaluation.items() if value is not None}
    fields["evaluation"] = EvaluationConfig(**given)
    return {name: value for name, value in fields.items() if value is not None}


def _bound(text: str) -> Bounds:
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected a number, or one per dimension with commas between: "
            "--low=-1,-2"
        ) from error
    return numbers if "," in text else numbers[0]


def _reward(text: str) -> RewardTransform:
    if text in REWARDS:
        return REWARDS[text]
    try:
        transform: RewardTransform = TypeAdapter(RewardTransform).validate_json(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected one of {', '.join(REWARDS)}, or JSON such as "
            '{"kind": "linear", "multiply": 0.1}'
        ) from error
    return transform


def assign(config: GTPConfig, assignment: str) -> GTPConfig:
    """Changes one field of a nested config, as ``--set`` requests.

    Args:
        config: What to start from.
        assignment: ``path.to.field=value``, the value as JSON or else as plain text.

    Returns:
        The changed config.

    Raises:
        ExperimentError: If it has no ``=``, the path leads nowhere, or the value does not fit.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not all(path.split(".")):
        raise ExperimentError(
            f"--set is malformed: got {assignment!r}, expected path=value, e.g. "
            "learner.actor_lr=1e-3."
        )
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    try:
        return _replaced(config, path.split("."), value)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ExperimentError(
            f"--set does not fit: got {assignment!r}, and the config says: {problem['msg']}. "
            "`show` prints all fields."
        ) from error


def _replaced(config: C, path: list[str], value: object) -> C:
    name, *rest = path
    if rest:
        part = getattr(config, name, None) if name in type(config).model_fields else None
        if not isinstance(part, Config):
            raise ExperimentError(
                f"--set leads nowhere: got {'.'.join(path)!r}, expected {name!r} to have fields. "
                "`show` prints all fields."
            )
        value = _replaced(part, rest, value)
    return config.replace(**{name: value})
