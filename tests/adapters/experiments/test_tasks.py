"""Tasks by name, and what is scored where success counts."""

from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from gtp_experiments import (
    TASKS,
    Evaluation,
    Evaluator,
    ExperimentError,
    Reference,
    RunConfig,
    RunResult,
    environment_of,
    load_data,
    run,
    table,
)
from gtp_experiments.tasks import task_of

Make = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("cube-single", "cube-single"),
        ("scene-task4", "scene"),
        ("metaworld-door-open", "metaworld-door-open"),
        ("door-open", "door"),  # D4RL's own task, not Meta-World's
        ("hopper-mixed", "hopper"),
        ("pendulum-mediocre", "pendulum"),
        ("maze2d-umaze-v1", "maze2d-umaze"),
    ],
)
def test_the_longest_name_counts(name: str, key: str) -> None:
    assert task_of(name) is TASKS[key]


@pytest.mark.parametrize("name", ["", "cube", "hopperx", "scenery", "pendulums-mediocre"])
def test_other_names_stand_for_no_task(name: str) -> None:
    assert task_of(name) is None


def test_manipulation_is_scored_by_success() -> None:
    by_success = {name for name, task in TASKS.items() if task.scored_by == "success"}
    assert by_success == {
        "pointmaze", "cube-single", "cube-double", "scene",
        "metaworld-pick-place", "metaworld-door-open",
    }  # fmt: skip
    config = RunConfig(dataset="a/b-v0", updates=5, task="scene-task4")
    assert config.scored_by == "success"
    assert config.replace(task=None).scored_by == "return"


def seen(update: int, returns: tuple[float, ...], success: tuple[bool, ...] | None) -> Evaluation:
    return Evaluation(update=update, returns=returns, lengths=(1,) * len(returns), success=success)


def result(*evaluations: Evaluation) -> RunResult:
    return RunResult(
        method="gtp", dataset="a.npz", task="scene", group="0", seed=0, updates=20,
        status="finished", evaluations=evaluations, ms_per_update=1.0, data_sha256="",
        reference=Reference(min=0.0, max=1.0, source="share of success", scored_by="success"),
        config={}, provenance={},
    )  # fmt: skip


def test_success_is_scored_whatever_the_returns_are() -> None:
    first = seen(10, (-9.0, -9.0, -9.0, -9.0), (True, True, True, False))
    second = seen(20, (-1.0, -1.0, -1.0, -1.0), (False, True, False, False))
    found = result(first, second)
    assert found.score(found.last) == 25.0
    assert found.best == first
    assert found.score(found.best) == 75.0
    assert "- scene: score = share of success, in %" in table([found])


def test_an_evaluation_without_success_has_no_score() -> None:
    found = result(seen(10, (1.0,), None))
    with pytest.raises(ExperimentError, match="An evaluation of gtp on scene has no successes"):
        found.score(found.last)


def test_an_environment_without_success_is_refused_at_the_first_evaluation(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(self: gymnasium.Env, action: np.ndarray) -> tuple[object, ...]:
        return (*step(self, action)[:4], {})

    config = make_config(task="scene")
    dataset = load_data(config).dataset
    evaluator = Evaluator(config, dataset)
    act = lambda obs: np.zeros((len(obs), 1), np.float32)  # noqa: E731
    assert evaluator.run(act, 0).success is not None
    line = type(evaluator._envs[0])
    step = line.step
    monkeypatch.setattr(line, "step", silent)
    with pytest.raises(ExperimentError, match="scene is scored by success: got no `success`"):
        evaluator.run(act, 0)


def as_npz(config: RunConfig, folder: Path) -> Path:
    """The data of an experiment as a file in OGBench's layout, its states doubled."""
    dataset = load_data(config).dataset
    batch, rows = dataset.transitions, []
    for i in range(len(dataset)):
        end = bool(dataset.terminated[i] or dataset.truncated[i])
        action, reward = batch.action[i].numpy(), float(batch.reward[i])
        rows.append((batch.obs[i].numpy(), action, reward, not dataset.terminated[i], False))
        if end:
            rows.append((batch.next_obs[i].numpy(), action, reward, True, True))
    names = ("observations", "actions", "rewards", "masks", "terminals")
    columns = {n: np.array(v) for n, v in zip(names, zip(*rows, strict=True), strict=True)}
    path = folder / "line-play-singletask-v0.npz"
    np.savez(path, **columns)
    return path


def test_a_run_on_ogbenchs_layout_is_scored_by_success(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    ogbench = config.replace(dataset=str(as_npz(config, tmp_path)), task="cube-single")
    ours, theirs = load_data(config).dataset, load_data(ogbench).dataset
    np.testing.assert_array_equal(ours.transitions.reward, theirs.transitions.reward)
    np.testing.assert_array_equal(ours.transitions.discount, theirs.transitions.discount)
    np.testing.assert_array_equal(ours.transitions.next_obs, theirs.transitions.next_obs)
    assert environment_of(ogbench) == "line_world:make"
    found = run(ogbench, tmp_path / "out")
    assert found is not None
    assert found.reference == Reference(
        min=0.0, max=1.0, source="share of successful episodes", scored_by="success"
    )
    success = found.evaluations[-1].success
    assert success is not None
    assert found.score(found.last) == pytest.approx(100 * np.mean(success))
    again = run(ogbench, tmp_path / "out")
    assert again == found


def test_a_file_without_environment_says_so() -> None:
    config = RunConfig(dataset="somewhere/cube.npz", updates=5)
    assert config.is_file
    assert config.name.startswith("cube_gtp_")
    with pytest.raises(ExperimentError, match=r"cube.npz does not say where to evaluate"):
        environment_of(config)
