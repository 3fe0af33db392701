"""The list of tasks: every one is an experiment that the runner and the peers understand."""

import os
import shlex
from pathlib import Path

import pytest

from benchmarks import metaworld_data, mixed_data, ogbench_data, studies
from benchmarks.peers import peer_configs, peer_parser
from benchmarks.studies import Row, Study
from benchmarks.tasks import TASKS, Task, surroundings
from gtp_experiments.cli import command_parser, configs_of
from gtp_experiments.tasks import task_of
from gtp_policy import StopSignal

BY_NAME = {task.name: task for task in TASKS}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_task_is_an_experiment(task: Task) -> None:
    words = [*shlex.split(task.words(Path("data"))), "--updates", "10", "--out", "runs"]
    (ours,) = configs_of(command_parser().parse_args(["run", *words]))
    (theirs,) = peer_configs(peer_parser().parse_args(["--peer", "rebrac", *words]))
    for config in (ours, theirs):
        assert config.task == task.name
        assert config.is_file == task.is_file
        assert config.data_note == task.note
        assert config.evaluation.environment == task.environment
        assert config.evaluation.episodes == 100
        assert config.reference is not None
    assert ours.reference == theirs.reference
    assert task_of(task.name) is not None


def test_names_and_data_are_there_once() -> None:
    assert len(BY_NAME) == len(TASKS) == len({task.dataset for task in TASKS})


def test_settings_are_chosen_on_four_tasks() -> None:
    assert [task.name for task in TASKS if task.decides] == [
        "hopper-medium", "antmaze-umaze", "antmaze-medium-play", "pointmaze-umaze",
    ]  # fmt: skip


def test_the_generators_write_what_the_list_reads() -> None:
    names = {task.dataset for task in TASKS}
    for name in ogbench_data.ENVIRONMENTS:
        assert f"{name}-play-singletask-task{ogbench_data.DEFAULT_TASK}-v0.npz" in names
    for name in metaworld_data.POLICIES:
        assert f"metaworld-{name}.hdf5" in names
    for name, mixed in mixed_data.TASKS.items():
        assert BY_NAME[f"{name}-mixed"].dataset == f"{name}-mixed.hdf5"
        assert BY_NAME[f"{name}-mixed"].environment == mixed.environment


def test_a_run_sees_what_its_task_needs() -> None:
    scene, hopper, maze = (BY_NAME[n] for n in ("scene", "hopper-medium", "pointmaze-umaze"))
    given = {"PYTHONPATH": "a", "MINARI_DATASETS_PATH": "there", "HOME": "mine"}
    assert surroundings(scene, given) == {**given, "PYTHONPATH": f"outputs/ogbench{os.pathsep}a"}
    assert surroundings(scene, {}) == {"PYTHONPATH": "outputs/ogbench"}
    assert surroundings(hopper, given) == given
    assert surroundings(maze, given) == {**given, "MINARI_DATASETS_PATH": "outputs/minari"}


def test_a_study_gives_a_row_what_its_task_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    def call(words: list[str], stop: StopSignal, variables: dict[str, str]) -> int:
        seen.append(variables)
        return 0

    monkeypatch.setattr(studies, "call", call)
    monkeypatch.setenv("PYTHONPATH", "a")
    task = BY_NAME["scene"]
    rows = (
        Row("gtp", task.words(), task=task),
        Row("gtp", BY_NAME["hopper-medium"].words(), steps=(1,)),
    )
    with StopSignal() as stop:
        assert studies.run(iter([Study("s", "t", "q", rows)]), Path("out"), 1, stop) == 0
    paths = [variables["PYTHONPATH"] for variables in seen]
    assert paths == [f"outputs/ogbench{os.pathsep}a", "a", "a"]
