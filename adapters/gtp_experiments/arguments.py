"""The command line's arguments that experiments of every method share."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from gtp_experiments.config import Bounds, EvaluationConfig, ExperimentConfig, RunConfig
from gtp_experiments.errors import ExperimentError
from gtp_experiments.tasks import TASKS
from gtp_experiments.trackers import TRACKERS
from gtp_policy import Config, GTPConfig, presets
from gtp_policy.acting import ArgmaxChoice, Choice, SoftmaxChoice
from gtp_policy.errors import UnknownPresetError, suggestion
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
# Choices of the policy that a run makes itself, with what makes them.
_OF_THE_RUN = {"learner.seed": "--seeds", "learner.total_updates": "--updates"}


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds dataset, length, evaluation and place to a parser.

    Args:
        parser: The parser.
    """
    add = parser.add_argument
    add("--dataset", required=True, help=_help("dataset"))
    tasks = ", ".join(TASKS)
    add("--task", help=f"what scores go by: one of {tasks}; more may follow, as in hopper-medium")
    add("--data-note", help=_help("data_note"))
    add("--method", help="what tables call the policy (default: the preset)")
    add(
        "--reward",
        type=_reward,
        metavar="NAME|JSON",
        help=f"done to the rewards before training: one of {', '.join(REWARDS)}, or JSON "
        "(default: none)",
    )
    add("--best-episodes", type=float, metavar="SHARE", help=_help("best_episodes"))
    add("--return-weighting", type=float, metavar="TILT", help=_help("return_weighting"))
    add("--n-step", type=int, metavar="N", help=_help("n_step"))
    add("--gamma", type=float, help=_help("gamma"))
    add("--low", type=_bound, metavar="X[,X...]", help=_help("low"))
    add("--high", type=_bound, metavar="X[,X...]", help=_help("high"))
    add("--out-of-bounds", choices=["error", "clip"], help=_help("out_of_bounds"))
    add("--updates", type=int, required=True, help=_help("updates"))
    add("--batch-size", type=int, help=_help("batch_size"))
    add("--seeds", type=int, nargs="+", default=[0], help="a run for each (default: 0)")
    add("--environment", help=_help("environment", EvaluationConfig))
    add("--evaluate-every", type=int, metavar="UPDATES", help=_help("every", EvaluationConfig))
    add("--episodes", type=int, help=_help("episodes", EvaluationConfig))
    add("--max-steps", type=int, metavar="N", help=_help("max_steps", EvaluationConfig))
    add("--device", help=_help("device"))
    add(
        "--jobs",
        type=int,
        default=1,
        help="processes, of one seed each, on a GPU of all seeds (default: 1)",
    )
    add("--out", type=path, required=True, help="folder of all runs; they resume from there")


def add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what a generative trajectory policy is chosen by to a parser.

    Args:
        parser: The parser, with the arguments of `add_experiment_arguments`.
    """
    add = parser.add_argument
    names = ", ".join(presets.NAMES)
    add("--preset", default="gtp", help=f"the policy to start from: {names} (default: gtp)")
    add("--set", action="append", default=[], metavar="PATH=VALUE", help="change of the preset")
    add("--steps", type=int, help=_help("steps", EvaluationConfig))
    add("--candidates", type=int, help=_help("candidates", EvaluationConfig))
    add("--choice", choices=[*CHOICES], help="how one of them is chosen (default: argmax)")
    add("--deterministic", action="store_true", default=None, help="evaluate without sampling")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what changes how runs are carried out, and not what they are, to a parser.

    Args:
        parser: The parser, with the arguments of `add_experiment_arguments`.
    """
    add = parser.add_argument
    add("--processes", type=int, default=1, help="that share the updates of a run (default: 1)")
    add("--track", nargs="+", choices=TRACKERS, default=[], help="send figures there as well")


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what a sweep searches for, and how, to a parser.

    Args:
        parser: The parser, with the arguments of `add_experiment_arguments`.
    """
    add = parser.add_argument
    add("--space", type=path, required=True, metavar="FILE", help="JSON: values or a range by path")
    add("--sampler", choices=["tpe", "random", "grid"], default="tpe", help="(default: tpe)")
    add("--trials", type=int, help="how many (default: 20, and of a grid all of its points)")
    add("--storage", help="Optuna's, as sqlite:///sweep.db (default: a file in --out)")
    add("--no-prune", action="store_true", help="let trials that are worse come to their end")
    add("--sweep-seed", type=int, default=0, help="of the draws (default: 0)")
    add(
        "--slurm",
        type=_setting,
        nargs="*",
        metavar="NAME=VALUE",
        help="submit --jobs workers to SLURM with these settings of submitit, as partition=gpu",
    )


def _setting(text: str) -> tuple[str, str | int]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected name=value, as partition=gpu")
    return name, int(value) if value.isdigit() else value


def path(text: str) -> Path:
    """Returns a path that was given as an argument, ``~`` expanded.

    Args:
        text: The argument.

    Returns:
        The path.

    Raises:
        argparse.ArgumentTypeError: If it is empty, as a variable of the shell that is not set.
    """
    if not text:
        raise argparse.ArgumentTypeError("got '', expected a path: is a variable not set?")
    return Path(text).expanduser()


def _help(field: str, of: type[Config] = ExperimentConfig) -> str:
    """Returns what a field is and its default: its own description, without the full stop."""
    info = of.model_fields[field]
    # What argparse would take for a place to fill in.
    text = f"{info.description}".rstrip(".").replace("%", "%%")
    given = info.is_required() or info.default is None or info.default == ""
    return text if given else f"{text} (default: {info.default})"


def run_fields(args: argparse.Namespace) -> dict[str, Any]:
    """Collects the fields of a `RunConfig` that were given.

    Args:
        args: What the parser returned.

    Returns:
        Fields by name, without the seed.

    Raises:
        ExperimentError: If there is no such field to set, or the value does not fit.
    """
    try:
        policy = presets.get(args.preset)
    except UnknownPresetError as error:
        raise ExperimentError(str(error.args[0])) from error
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
        "max_steps": args.max_steps,
        "steps": getattr(args, "steps", None),
        "candidates": getattr(args, "candidates", None),
        "choice": CHOICES.get(getattr(args, "choice", None) or ""),
        "deterministic": getattr(args, "deterministic", None),
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
        said = f" ({error.errors()[0]['msg']})" if text[:1] == "{" else ""
        raise argparse.ArgumentTypeError(
            f"got {text!r}{said}, expected one of {', '.join(REWARDS)}, or JSON such as "
            '{"kind": "linear", "multiply": 0.1}.' + suggestion(text, REWARDS)
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
    head = path.split(".")[0]
    if head in RunConfig.model_fields and head not in GTPConfig.model_fields:
        raise ExperimentError(
            f"--set changes the policy: got {assignment!r}, and {head} is a field of the run, "
            "expected one of the policy. `run --help` has options for what a run is."
        )
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return _assigned(config, path, value, assignment, "--set")


def assigned(config: RunConfig, path: str, value: object) -> RunConfig:
    """Changes one field of a run or of its policy, as a sweep requests.

    Args:
        config: What to start from.
        path: Field of the run, as ``batch_size`` or ``evaluation.candidates``, or of the policy,
            as ``weighter.eta``.
        value: The value.

    Returns:
        The changed config.

    Raises:
        ExperimentError: If the path leads nowhere, or the value does not fit.

    Example:
        >>> from gtp_experiments import RunConfig
        >>> from gtp_experiments.arguments import assigned
        >>> config = RunConfig(dataset="a/b-v0", updates=1)
        >>> assigned(config, "weighter.eta", 2.0).policy.weighter.eta
        2.0
    """
    words, by = f"{path}={value}", "The space"
    if path.split(".")[0] in RunConfig.model_fields:
        return _assigned(config, path, value, words, by)
    return config.replace(policy=_assigned(config.policy, path, value, words, by))


def _check_of_policy(path: str, value: object, by: str) -> None:
    """Raises where a run would put its own value in place of the one that is set."""
    if isinstance(value, Mapping):
        for name, inside in value.items():
            _check_of_policy(f"{path}.{name}", inside, by)
    elif option := _OF_THE_RUN.get(path.removeprefix("policy.")):
        raise ExperimentError(
            f"{by} has no effect: got {path}={value!r}, which is always the run's own, expected "
            f"another field. Leave it out, and choose it by {option} of the command or by the "
            "fields `seed` and `updates` of the run."
        )


def _assigned(config: C, path: str, value: object, words: str, by: str) -> C:
    _check_of_policy(path, value, by)
    try:
        return _replaced(config, path.split("."), value, by)
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ").rstrip(".")
        said += "" if said.endswith("?") else "."
        said += _whole(config, path.split("."), value)
        raise ExperimentError(
            f"{by} does not fit: got {words!r}, and the config says: {said} "
            "`config` prints all fields."
        ) from error


def _replaced(config: C, path: list[str], value: object, by: str) -> C:
    name, *rest = path
    if rest:
        there = name in type(config).model_fields
        part = getattr(config, name) if there else None
        if not isinstance(part, Config):
            is_now = f", which is {json.dumps(part, default=str)} now," if there else ""
            hint = "" if there else suggestion(name, type(config).model_fields)
            whole = _whole(config, path, value) if there else ""
            raise ExperimentError(
                f"{by} leads nowhere: got {'.'.join(path)!r}, expected {name!r}{is_now} to have "
                f"fields.{hint or whole} `config` prints all fields."
            )
        value = _replaced(part, rest, value, by)
    return config.replace(**{name: value})


def _whole(config: Config, path: list[str], value: object) -> str:
    """Returns how to set a part as a whole, where its kind is to be another; empty if that is not.

    The fields of a part go by its kind, so that none of them can be kept.
    """
    *outer, last = path
    if not outer or last != "kind":
        return ""
    part = {last: value}
    try:
        _replaced(config, outer, part, "")
    except ValidationError as error:
        problem = error.errors()[0]
        known = problem["type"] == "union_tag_invalid"
        return f" Of kinds there are {problem['ctx']['expected_tags']}." if known else ""
    except ExperimentError:
        return ""
    words = f"{'.'.join(outer)}={json.dumps(part)}"
    return f" Another kind is another object, set as a whole: --set '{words}'."
