"""The studies behind `docs/results.md`: what is run on which data, with which seeds.

    python -m benchmarks.studies run [--only STUDY ...] [--jobs 2]   # hours; what is left
    python -m benchmarks.studies list                                # every command
    python -m benchmarks.studies collect                             # results that can be committed

A study is a list of rows, a row is one command of `gtp_experiments` or `benchmarks.peers` over
seeds: what is printed by ``list`` can be pasted into a shell. Datasets are looked up where
``MINARI_DATASETS_PATH`` says, the module ``antmaze_d4rl`` with the mazes on ``PYTHONPATH``; `make
results` puts d3rlpy, which the peers come from, there as well.
"""

import argparse
import dataclasses
import functools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import disturbed
from benchmarks.pages import RESULTS
from benchmarks.peers import peer_configs, peer_parser
from benchmarks.tasks import DEMONSTRATIONS, Task, surroundings
from gtp_experiments import ExperimentConfig, RunResult, read_results
from gtp_experiments.cli import command_parser, configs_of
from gtp_policy import StopSignal

COLLECTED = RESULTS / "experiments"
OUT = Path("outputs/experiments")
NOTE = "generated locally in the manner of D4RL, not files of D4RL"

UPDATES = 50_000
MAZE_UPDATES = 30_000
LONG = 100_000
SEEDS = (0, 1, 2)
HOPPER = "--dataset mujoco-local/hopper/medium-v0 --task hopper-medium --episodes 100"
UMAZE = (
    "--dataset D4RL-local/antmaze/umaze-v2 --task antmaze-umaze --episodes 100 "
    "--environment antmaze_d4rl:AntMazeD4RL-umaze-v2"
)
MEDIUM = (
    "--dataset D4RL-local/antmaze/medium-play-v2 --task antmaze-medium-play --episodes 100 "
    "--environment antmaze_d4rl:AntMazeD4RL-medium-v2"
)
# What a run of some ten thousand updates needs, see `docs/how-to/tune.md`. Cloning has no critic.
PAPER_BC = "--preset paper_loss --set critic=null"
CLONING = "--set loss.time_weight=edm --set learner.lr_schedule=cosine"
SHORT = (
    f"{CLONING} --set learner.baseline.samples=1 --set learner.critic_ema_rate=0.05 "
    "--set learner.guidance_start=5000"
)
GUIDED = f"{SHORT} --set weighter.eta=3"
# A constant rate and fast targets of both networks: a higher mean than the cosine's, and wider.
MEDIUM_GTP = (
    f"{MEDIUM} --preset paper_loss --reward antmaze --set loss.time_weight=edm "
    "--set learner.baseline.samples=1 --set learner.ema_rate=0.05 --set weighter.eta=3"
)
# What fails in the easy maze cannot be seen from the action, so the weights stay close to 1.
EASY_BC = f"{PAPER_BC} --set loss.time_weight=edm"
EASY_GTP = (
    "--preset paper_loss --reward antmaze --set loss.time_weight=edm "
    "--set learner.critic_ema_rate=0.05 "
    """--set learner.guidance_start=5000 --set 'learner.baseline={"kind": "expectile"}' """
    "--set weighter.eta=0.3"
)
CUBE = f"{DEMONSTRATIONS.words()} --set critic=null"
NO_LAYER_NORM = "--set critic.layer_norm=false"
LOW_RATE = "--set learner.actor_lr=5e-4"
# 89 % of the episodes arrive.
ARRIVING = "--best-episodes 0.88"


@dataclasses.dataclass(frozen=True)
class Row:
    """One method of a study: a command over seeds, and what to try again with its weights."""

    method: str
    words: str  # without seeds, updates and folder
    peer: str | None = None  # of `benchmarks.peers`; None: GTP
    seeds: tuple[int, ...] = SEEDS
    updates: int = UPDATES
    steps: tuple[int, ...] = ()  # K of the evaluations afterwards
    deterministic: bool = False  # whether they are repeated without sampling
    wrong_advantages: bool = False  # run by `benchmarks.disturbed`, whose options are in the words
    task: Task | None = None  # whose packages and data it needs

    def command(self, out: Path, jobs: int = 1) -> list[str]:
        """Returns the words behind ``python -m``."""
        seeds = [str(seed) for seed in self.seeds]
        common = [*shlex.split(self.words), "--method", self.method]
        if self.task is None:  # whose own words say where the data come from
            common += ["--data-note", NOTE]
        common += ["--updates", str(self.updates), "--evaluate-every", "10000"]
        common += ["--seeds", *seeds, "--out", str(out), "--jobs", str(jobs)]
        if self.peer is not None:
            return ["benchmarks.peers", "--peer", self.peer, *common]
        if self.wrong_advantages:
            return ["benchmarks.disturbed", *common]
        return ["gtp_experiments", "run", *common]

    def made(self, result: RunResult) -> bool:
        """Returns whether a result is one of the row's command, of whatever seed."""
        return _agree(self._record, result.config)

    @functools.cached_property
    def _record(self) -> dict[str, Any]:
        return self.configs(OUT)[0].model_dump(mode="json")

    def again(self, out: Path) -> list[list[str]]:
        """Returns the words behind ``python -m`` that evaluate the row's runs in other ways."""
        if not self.steps:
            return []
        configs = self.configs(out)
        words = ["gtp_experiments", "evaluate", *(str(out / config.name) for config in configs)]
        words += ["--steps", *map(str, self.steps)]
        # A record may name no module to import: the command does.
        environments = {config.evaluation.environment for config in configs} - {None}
        words += [word for name in environments for word in ("--environment", str(name))]
        return [words, *([[*words, "--deterministic"]] if self.deterministic else [])]

    @property
    def methods(self) -> list[str]:
        """What tables call the row's runs, and the evaluations of them."""
        ways = ["", ", deterministic"] if self.deterministic else [""]
        again = [f"{self.method}, K = {k}{way}" for way in ways for k in self.steps]
        return [self.method, *again]

    def configs(self, out: Path) -> Sequence[ExperimentConfig]:
        """Returns the row's experiments, one per seed."""
        words = self.command(out)[1:]
        if self.peer is not None:
            return peer_configs(peer_parser().parse_args(words))
        if self.wrong_advantages:
            return disturbed.configs_of(disturbed.command_parser().parse_args(words))
        return configs_of(command_parser().parse_args(words))


@dataclasses.dataclass(frozen=True)
class Study:
    """A question and the rows that answer it."""

    name: str
    title: str
    question: str
    rows: tuple[Row, ...]


def peers(data: str, iql: str, td3_bc: str, updates: int = UPDATES) -> tuple[Row, ...]:
    """Returns the three peers on a dataset, with the settings that their authors give for it."""
    return (
        Row("Gaussian BC", data, peer="bc", updates=updates),
        Row("TD3+BC", f"{data} {td3_bc}", peer="td3_bc", updates=updates),
        Row("IQL", f"{data} {iql}", peer="iql", updates=updates),
    )


MAZE_IQL = "--reward minus_one --expectile 0.9 --inverse-temperature 10"

STUDIES = (
    Study(
        "hopper",
        "Locomotion: hopper-medium",
        "Does GTP improve on its data (behaviour: 49.8), on cloning and on the peers?",
        (
            Row("gtp", f"{HOPPER} --preset paper_loss {GUIDED}", steps=(1, 2, 5, 10)),
            Row(
                "gtp_bc",
                f"{HOPPER} {PAPER_BC} {CLONING}",
                steps=(1, 2, 5, 10),
            ),
            Row(  # deterministic: the mode of 16, as the Gaussian acts with its mean
                "one_step_bc",
                f"{HOPPER} --preset one_step --set critic=null --set learner.eval_candidates=16",
                steps=(1, 2, 5),
                deterministic=True,
            ),
            Row("GTPConfig()", HOPPER, updates=MAZE_UPDATES, steps=(1, 5)),
            Row("GTPConfig(), longer", HOPPER, seeds=(0,), updates=LONG, steps=(1, 5)),
            Row(
                "no layer norm",
                f"{HOPPER} {NO_LAYER_NORM}",
                updates=MAZE_UPDATES,
                steps=(1,),
                deterministic=True,
            ),
            Row(
                "no layer norm, longer",
                f"{HOPPER} {NO_LAYER_NORM}",
                seeds=(0,),
                updates=LONG,
                steps=(1,),
                deterministic=True,
            ),
            Row("actor rate 5e-4", f"{HOPPER} {LOW_RATE}", updates=MAZE_UPDATES),
            Row("discount 0.997", f"{HOPPER} --gamma 0.997", updates=MAZE_UPDATES),
            Row("discount 0.997, longer", f"{HOPPER} --gamma 0.997", updates=LONG),
            *peers(HOPPER, iql="--reward return_range", td3_bc=""),
            Row(
                "ReBRAC", f"{HOPPER} --actor-beta 0.01 --critic-beta 0.001", "rebrac", seeds=(0, 1)
            ),
        ),
    ),
    Study(
        "umaze",
        "AntMaze: umaze",
        "The easy maze: every episode of the data runs from start to goal, 89 % arrive. The last "
        "rows learn from episodes that arrived.",
        (
            Row("gtp", f"{UMAZE} {EASY_GTP}", updates=MAZE_UPDATES),
            Row("gtp_bc", f"{UMAZE} {EASY_BC}", updates=MAZE_UPDATES),
            *peers(UMAZE, iql=MAZE_IQL, td3_bc="--reward minus_one", updates=MAZE_UPDATES),
            Row("gtp, best 88 %", f"{UMAZE} {ARRIVING} {EASY_GTP}", updates=MAZE_UPDATES),
            Row("gtp_bc, best 88 %", f"{UMAZE} {ARRIVING} {EASY_BC}", updates=MAZE_UPDATES),
            Row("Gaussian BC, best 88 %", f"{UMAZE} {ARRIVING}", "bc", updates=MAZE_UPDATES),
            Row(
                "gtp_bc, best 88 %, twice as long",
                f"{UMAZE} {ARRIVING} {EASY_BC} --set learner.lr_schedule=cosine",
                updates=2 * MAZE_UPDATES,
            ),
        ),
    ),
    Study(
        "medium-play",
        "AntMaze: medium-play",
        "A fifth of the trips pass the goal of the evaluation: does the critic stitch them?",
        (
            Row("gtp", MEDIUM_GTP, updates=MAZE_UPDATES),
            Row(
                "gtp, cosine",  # the settings of hopper
                f"{MEDIUM} --preset paper_loss --reward antmaze {GUIDED}",
                updates=MAZE_UPDATES,
            ),
            Row("GTPConfig()", f"{MEDIUM} --reward antmaze", updates=MAZE_UPDATES, steps=(1, 5)),
            Row("GTPConfig(), longer", f"{MEDIUM} --reward antmaze", updates=LONG),
            Row("actor rate 5e-4", f"{MEDIUM} --reward antmaze {LOW_RATE}", updates=MAZE_UPDATES),
            Row(
                "no layer norm",
                f"{MEDIUM} --reward antmaze {NO_LAYER_NORM}",
                updates=MAZE_UPDATES,
                steps=(1,),
                deterministic=True,
            ),
            Row(
                "gtp_bc",
                f"{MEDIUM} {PAPER_BC} {CLONING}",
                updates=MAZE_UPDATES,
            ),
            *peers(MEDIUM, iql=MAZE_IQL, td3_bc="--reward minus_one", updates=MAZE_UPDATES),
            Row(
                "ReBRAC",
                f"{MEDIUM} --reward minus_one --actor-beta 0.001 --critic-beta 0.0005",
                "rebrac",
                seeds=(0, 1),
                updates=MAZE_UPDATES,
            ),
        ),
    ),
    Study(
        "cube",
        "Manipulation: cube-single from demonstrations",
        "A robot arm moves a cube to its goal. Five hundred demonstrations of OGBench's scripted "
        "oracle are cloned: are chunks of five actions, at a fifth of the network calls, as good "
        "as single ones?",
        (
            Row("h = 1", CUBE, updates=MAZE_UPDATES, task=DEMONSTRATIONS),
            Row("h = 5", f"{CUBE} --set actor.chunk=5", updates=MAZE_UPDATES, task=DEMONSTRATIONS),
        ),
    ),
    Study(
        "ablation",
        "The ablation's rows",
        "Which pieces matter? The paper's own rows are on hopper-medium-expert of D4RL.",
        (
            Row("gtp", f"{HOPPER} --preset paper_loss {GUIDED}"),
            Row("gtp_solver", f"{HOPPER} --preset gtp_solver {GUIDED}"),
            *(
                Row(name, f"{HOPPER} --preset {name} {GUIDED}", seeds=(0,))
                for name in ("shortcut", "mean_flow")
            ),
            Row(
                "mean_flow, pseudo-Huber",
                f"{HOPPER} --preset mean_flow {GUIDED} --set loss.huber=0.1",
                seeds=(0,),
            ),
            *(
                Row(
                    f"gtp_linear_q {weight}",
                    f"{HOPPER} --preset gtp_linear_q {SHORT} --set learner.guidance.scale={weight}",
                    seeds=(0,),
                )
                for weight in (0.01, 0.1)
            ),
        ),
    ),
    Study(
        "noise",
        "Wrong advantages",
        "Noise and bias on the advantages, in units of their standard deviation in the minibatch, "
        "where guidance matters most: antmaze-medium-play.",
        (
            Row("gtp", MEDIUM_GTP, updates=MAZE_UPDATES),
            *(
                Row(
                    f"noise {x}",
                    f"{MEDIUM_GTP} --advantage-noise {x}",
                    seeds=(0,),
                    updates=MAZE_UPDATES,
                    wrong_advantages=True,
                )
                for x in (0.5, 1.0, 2.0)
            ),
            *(
                Row(
                    f"bias {x:+}",
                    f"{MEDIUM_GTP} --advantage-bias={x}",
                    seeds=(0,),
                    updates=MAZE_UPDATES,
                    wrong_advantages=True,
                )
                for x in (-1.0, 1.0)
            ),
        ),
    ),
)
# Whose folder a study shares.
SHARED = {"ablation": "hopper", "noise": "medium-play"}


def folder_of(study: Study, out: Path) -> Path:
    """Returns where the runs of a study lie; equal runs of two studies are done once."""
    return out / SHARED.get(study.name, study.name)


def chosen(names: list[str] | None) -> Iterator[Study]:
    """Yields the studies of these names, all by default."""
    unknown = set(names or ()) - {study.name for study in STUDIES}
    if unknown:
        known = ", ".join(study.name for study in STUDIES)
        sys.exit(f"error: there is no study {', '.join(sorted(unknown))}; there are {known}.")
    yield from (study for study in STUDIES if not names or study.name in names)


def call(words: list[str], stop: StopSignal, variables: dict[str, str]) -> int:
    """Runs a command and passes one signal on, so that it can save and leave."""
    # Another session: a Ctrl-C in the terminal would reach it as well, and count as a second.
    process = subprocess.Popen(words, start_new_session=True, env=variables)
    passed_on = False
    while True:
        try:
            return process.wait(0.5)
        except subprocess.TimeoutExpired:
            if stop and not passed_on:
                process.terminate()
                passed_on = True


def _agree(wanted: dict[str, Any], got: dict[str, Any]) -> bool:
    """Returns whether two configs agree in all fields that both have: new fields make none old.

    How deterministic actions are chosen plays no part where they are sampled.
    """
    evaluation = wanted.get("evaluation") or {}
    idle = set() if evaluation.get("deterministic") else {"eval_candidates", "deterministic_choice"}

    def same(a: object, b: object) -> bool:
        if isinstance(a, dict) and isinstance(b, dict):
            return all(same(a[key], b[key]) for key in (a.keys() & b.keys()) - {"seed"} - idle)
        return a == b

    return same(wanted, got)


def left_of(row: Row, results: Sequence[RunResult]) -> Row | None:
    """Returns a row with the seeds that have no result yet, or lack one with other steps.

    Args:
        row: The row.
        results: Those that are collected: they count without the folders they came from.

    Returns:
        What is left to be run; None if it is nothing.
    """
    done = {(r.method, r.seed) for r in results if r.method != row.method or row.made(r)}
    seeds = tuple(s for s in row.seeds if any((name, s) not in done for name in row.methods))
    return dataclasses.replace(row, seeds=seeds) if seeds else None


def run(studies: Iterator[Study], out: Path, jobs: int, stop: StopSignal) -> int:
    """Runs what is left, row after row; returns how many rows could not be run."""
    failed = 0
    for study in studies:
        collected = read_results(folder_of(study, COLLECTED))
        for whole in study.rows:
            folder = folder_of(study, out)
            if (row := left_of(whole, collected)) is None:
                print(f"{study.name}: {whole.method} is in {COLLECTED}", flush=True)
                continue
            words = [sys.executable, "-m", *row.command(folder, jobs)]
            print(f"\n{study.name}: {row.method}\n  {shlex.join(words)}", flush=True)
            given = dict(os.environ)
            variables = given if row.task is None else surroundings(row.task, given)
            status = call(words, stop, variables)
            if stop:
                return failed + 1
            for again in row.again(folder):
                status = status or call([sys.executable, "-m", *again], stop, variables)
            failed += status != 0
    return failed


def collect(out: Path, into: Path) -> int:
    """Copies the results of every run, without its provenance's repetition; returns how many."""
    count = 0
    for folder in sorted({folder_of(study, out) for study in STUDIES}):
        for result in read_results(folder):
            name = f"{result.task}_{result.group}_seed{result.seed}.result.json"
            path = into / folder.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            document = json.dumps(result.model_dump(mode="json"), separators=(",", ":"))
            path.write_text(document + "\n", encoding="utf-8")
            count += 1
    return count


def main() -> None:
    """Runs, lists or collects."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("do", choices=["run", "list", "collect"])
    parser.add_argument("--only", nargs="+", metavar="STUDY")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    studies = chosen(args.only)
    if args.do == "run":
        with StopSignal() as stop:
            failed = run(studies, args.out, args.jobs, stop)
        if failed:
            sys.exit(f"{failed} rows did not come to their end; the same command goes on.")
    elif args.do == "list":
        for study in studies:
            for row in study.rows:
                print(f"python -m {shlex.join(row.command(folder_of(study, args.out), args.jobs))}")
    else:
        print(f"{collect(args.out, COLLECTED)} results in {COLLECTED}")


if __name__ == "__main__":
    main()
