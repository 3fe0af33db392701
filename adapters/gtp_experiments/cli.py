"""The command: train by ``run`` or ``sweep``, look at runs, evaluate them once more."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from gtp_experiments.arguments import (
    CHOICES,
    add_experiment_arguments,
    add_policy_arguments,
    add_run_arguments,
    add_sweep_arguments,
    path,
    run_fields,
)
from gtp_experiments.config import EvaluationConfig, RunConfig
from gtp_experiments.drawing import draw
from gtp_experiments.errors import ExperimentError
from gtp_experiments.listing import list_of_runs, shown
from gtp_experiments.processes import start
from gtp_experiments.reevaluation import finished, reevaluate
from gtp_experiments.results import read_results
from gtp_experiments.runner import run_all
from gtp_experiments.slurm import submit
from gtp_experiments.sweep import SweepConfig, draw_outcome, outcome, read_space, sweep
from gtp_experiments.table import table
from gtp_experiments.trackers import TrackerName
from gtp_policy import StopSignal
from gtp_policy.errors import GTPError, suggestion

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
        arguments: Words of the command; default: those of the process.

    Returns:
        Exit status: 0; 2 for a mistake in the request; 3 if runs were stopped before their end.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    args, unknown = command_parser().parse_known_args(_joined(given))
    if unknown:
        known = re.findall(r"--[a-z-]+", args.parser.format_usage())
        args.parser.error(f"unknown: {' '.join(unknown)}.{suggestion(unknown[0], known)}")
    args.words = given
    try:
        status = int(args.do(args))
        sys.stdout.flush()
        return status
    except ValidationError as error:
        for problem in error.errors():
            place = ".".join(str(part) for part in problem["loc"])
            # An error of a whole config says itself what it got; its input is all of it.
            said = problem["msg"].removeprefix("Value error, ")
            words = f"{place}: {said}, got {problem['input']!r}" if place else said
            print(f"error: {words}", file=sys.stderr)
    except GTPError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:  # who reads, as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains at its end
        return 0
    except OSError as error:
        print(
            f"error: The machine refuses a file: got {error}, expected a place with room and "
            "permission for it. Free space or choose another folder; the same command goes on from "
            "what is saved.",
            file=sys.stderr,
        )
    except BrokenProcessPool:
        print(
            "error: A process of the runs was killed: got its end without an answer, expected a "
            "result. Machines do that when memory runs out: take fewer --jobs. The same command "
            "goes on from the last checkpoints.",
            file=sys.stderr,
        )
    return 2


def _joined(words: Sequence[str]) -> list[str]:
    """Returns words in which a bound such as ``-1,-1`` belongs to its option.

    argparse takes what begins with a dash and is no number for an option of its own.
    """
    found: list[str] = []
    for word in words:
        if found and found[-1] in ("--low", "--high") and word[:1] == "-" and "," in word:
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


def configs_of(args: argparse.Namespace) -> list[RunConfig]:
    """Builds one experiment per seed from parsed arguments.

    Args:
        args: What the parser returned.

    Returns:
        The experiments.
    """
    fields = run_fields(args)
    return [RunConfig(seed=seed, **fields) for seed in args.seeds]


def run_and_report(
    configs: Sequence[RunConfig], out: Path, jobs: int, track: Sequence[TrackerName] = ()
) -> int:
    """Runs experiments and prints their table.

    Args:
        configs: The experiments.
        out: The folder of all runs.
        jobs: How many at a time.
        track: Where figures go as well.

    Returns:
        Exit status: 0; 3 if runs were stopped before their end.
    """
    results = run_all(configs, out, jobs=jobs, track=track)
    done = [result for result in results if result is not None]
    if os.environ.get("RANK", "0") == "0":  # of processes that share runs, one reports
        print(table(done))
    if len(done) < len(results):
        print(f"{len(results) - len(done)} runs were stopped; the same command goes on with them.")
        return 3
    return 0


def command_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line.

    Returns:
        The parser.
    """
    parser = argparse.ArgumentParser(prog="gtp-experiments", description=__doc__)
    names = "run|config|sweep|list|show|evaluate|plot|table"
    commands = parser.add_subparsers(required=True, metavar=names)
    for name, do, text in (
        ("run", _run, "train and evaluate; resumes what a kill has left"),
        ("config", _config, "print the config of the first seed as JSON, run nothing"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(do=do)
        add_experiment_arguments(command)
        add_policy_arguments(command)
        add_run_arguments(command)
    command = commands.add_parser("sweep", help="search for choices with Optuna; resumes, shares")
    command.set_defaults(do=_sweep)
    add_experiment_arguments(command)
    add_policy_arguments(command)
    add_sweep_arguments(command)
    command = commands.add_parser("list", help="list the runs below a folder, done or not")
    command.set_defaults(do=_list)
    command.add_argument("folder", type=path)
    command = commands.add_parser("show", help="show runs: what was chosen, how they went")
    command.set_defaults(do=_show)
    command.add_argument("folders", type=path, nargs="+", metavar="RUN", help="folder of a run")
    command = commands.add_parser("evaluate", help="evaluate the last weights of a run otherwise")
    command.set_defaults(do=_evaluate)
    add = command.add_argument
    add("folders", type=path, nargs="+", metavar="RUN", help="folder of a finished run")
    add("--steps", type=int, nargs="+", required=True, metavar="K", help="one result for each")
    add("--candidates", type=int, default=1, help="actions to choose from (default: 1)")
    add("--choice", choices=[*CHOICES], default="argmax", help="how (default: argmax)")
    add("--deterministic", action="store_true", help="without sampling")
    add("--episodes", type=int, default=100, help="per result (default: 100)")
    add("--max-steps", type=int, help="cuts longer episodes; default: as the run did")
    add("--environment", help="where, if the run's is no id that gymnasium knows")
    add("--device", help="where to compute; default: where the run did")
    command = commands.add_parser("plot", help="draw runs: learning, actions, flow, weights")
    command.set_defaults(do=_plot)
    add = command.add_argument
    add("folders", type=path, nargs="+", metavar="RUN", help="folder of a finished run")
    add("--out", type=path, required=True, help="folder of the pictures")
    add("--episode", type=int, default=0, help="of the data, for advantages and weights")
    add("--row", type=int, default=0, help="of the data, for the flow at its observation")
    add("--rollout", choices=["gif", "mp4"], help="film an episode of each run")
    add("--environment", help="of the film; default the one of the evaluations")
    add("--device", help="where to compute; default: where the run did")
    command = commands.add_parser("table", help="summarise the results below a folder")
    command.set_defaults(do=_table)
    command.add_argument("folder", type=path)
    for command in commands.choices.values():
        command.set_defaults(parser=command)
    return parser


def _run(args: argparse.Namespace) -> int:
    configs = configs_of(args)
    if args.processes != 1:
        if args.processes < 1 or args.jobs != 1:
            raise ExperimentError(
                f"`processes` is out of range: got {args.processes} and {args.jobs} jobs, expected "
                "at least 1, and 1 job: processes share one run."
            )
        size = configs[0].batch_size
        if size % args.processes:
            raise ExperimentError(
                f"`batch_size` does not fit: got {size} with {args.processes} processes, expected "
                "a multiple of their number. Set --batch-size or --processes."
            )
        if "WORLD_SIZE" not in os.environ:  # else this is one of them
            return start(_without_processes(args.words), args.processes)
    return run_and_report(configs, args.out, args.jobs, args.track)


def _without_processes(words: list[str]) -> list[str]:
    kept = [word for word in words if not word.startswith("--processes=")]
    if "--processes" in kept:
        place = kept.index("--processes")
        del kept[place : place + 2]
    return kept


def _config(args: argparse.Namespace) -> int:
    print(configs_of(args)[0].model_dump_json(indent=1))
    return 0


def _sweep(args: argparse.Namespace) -> int:
    if args.jobs < 1:
        raise ExperimentError(f"`jobs` is out of range: got {args.jobs}, expected at least 1.")
    search = SweepConfig(
        space=read_space(args.space),
        trials=args.trials,
        sampler=args.sampler,
        prune=not args.no_prune,
        seed=args.sweep_seed,
    )
    configs = configs_of(args)
    of_all = f" of the {search.points} points of the grid" if search.sampler == "grid" else ""
    print(f"{search.count} trials{of_all}")
    if args.slurm is not None:
        for job in submit(
            configs, search, args.out, storage=args.storage, jobs=args.jobs, **dict(args.slurm)
        ):
            print(f"submitted {job.job_id}")
        return 0
    with StopSignal() as signal:
        study = sweep(
            configs,
            search,
            args.out,
            storage=args.storage,
            workers=args.jobs,
            stop=lambda: bool(signal),
        )
    print(outcome(study))
    for picture in draw_outcome(study, args.out):
        print(picture)
    if signal:
        print("The sweep was stopped; the same command goes on with it.")
        return 3
    return 0


def _list(args: argparse.Namespace) -> int:
    _check_folder(args.folder)
    print(list_of_runs(args.folder))
    return 0


def _show(args: argparse.Namespace) -> int:
    print("\n\n".join(_looked_at(shown, args.folders).values()))
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    results = [
        reevaluate(
            folder,
            EvaluationConfig(
                environment=args.environment,
                episodes=args.episodes,
                parallel=run.evaluation.parallel,
                max_steps=args.max_steps,
                steps=steps,
                candidates=args.candidates,
                choice=CHOICES[args.choice],
                deterministic=args.deterministic,
                seed=run.evaluation.seed,
            ),
            device=args.device,
        )
        for folder, (_, run, _) in _looked_at(finished, args.folders).items()
        for steps in args.steps
    ]
    print(table(results))
    return 0


def _plot(args: argparse.Namespace) -> int:
    for picture in draw(
        [*_looked_at(finished, args.folders)],
        args.out,
        episode=args.episode,
        row=args.row,
        rollout=args.rollout,
        environment=args.environment,
        device=args.device,
    ):
        print(picture)
    return 0


def _looked_at(look: Callable[[Path], T], folders: Sequence[Path]) -> dict[Path, T]:
    """Returns what folders have for a command; those that lack it are named and left out.

    A shell's ``runs/*`` names all that lies there. What does not lie there at all is a mistake, and
    so is a request of which nothing is left.
    """
    found: dict[Path, T] = {}
    lacking: list[ExperimentError] = []
    for folder in folders:
        try:
            found[folder] = look(folder)
        except ExperimentError as error:
            if not folder.exists():
                raise
            lacking.append(error)
    if not found:
        raise lacking[0]
    for one in lacking:
        print(f"left out: {one}", file=sys.stderr)
    return found


def _table(args: argparse.Namespace) -> int:
    _check_folder(args.folder)
    print(table(read_results(args.folder)))
    return 0


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ExperimentError(
            f"{folder} is no folder of runs: got {'a file' if folder.exists() else 'nothing'}, "
            "expected the folder that `run --out` wrote to."
        )
