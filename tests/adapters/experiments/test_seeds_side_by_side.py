"""Several seeds in one program: the runs that each would be alone, whatever comes between."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gtp_experiments import (
    ExperimentError,
    RunConfig,
    RunResult,
    read_result,
    run,
    run_all,
    run_seeds,
    runner,
    training,
)
from gtp_experiments.records import Lines
from gtp_policy import CheckpointFolder, GTPLearner, MultiSeedLearner, load_checkpoint
from gtp_policy.errors import NonFiniteError

Make = Callable[..., RunConfig]
SEEDS = (0, 1, 2)


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    newest = CheckpointFolder(folder / "checkpoints").latest()
    assert newest is not None
    return dict(load_checkpoint(newest).learner.named_parameters())


def updates(folder: Path, name: str) -> list[int]:
    return [line["update"] for line in Lines(folder / f"{name}.jsonl").read()]


def assert_complete(out: Path, config: RunConfig) -> None:
    """Raises unless a run has each record once, up to its end."""
    folder = out / config.name
    assert updates(folder, "metrics") == [5, 10, 15, 20, 25, 30]
    assert updates(folder, "evaluations") == [10, 20, 30]
    result = read_result(folder / "result.json")
    assert result is not None
    assert (result.seed, result.status) == (config.seed, "finished")
    assert [e.update for e in result.evaluations] == [10, 20, 30]
    assert result.ms_per_update > 0


def assert_alike(out: Path, alone: Path, config: RunConfig, tolerance: float = 1e-4) -> None:
    """Raises unless a run has the parameters and records of one that was alone, but for rounding.

    Thirty steps of Adam lie between: where a gradient is next to nothing, rounding decides its
    sign, so that few parameters are further apart than most.
    """
    one, other = parameters(out / config.name), parameters(alone / config.name)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.allclose(value, other[name], rtol=tolerance, atol=tolerance), name
    for name in ("metrics", "evaluations"):
        mine, theirs = (Lines(f / config.name / f"{name}.jsonl").read() for f in (out, alone))
        for a, b in zip(mine, theirs, strict=True):
            for key, value in a.items():
                assert value == pytest.approx(b[key], rel=1e-2, abs=1e-2), (name, key)


@pytest.fixture
def configs(make_config: Make) -> list[RunConfig]:
    return [make_config(seed=seed) for seed in SEEDS]


def test_each_seed_is_the_run_that_it_would_be_alone(
    configs: list[RunConfig], tmp_path: Path
) -> None:
    results = run_seeds(configs, tmp_path / "together")
    assert [result and result.seed for result in results] == list(SEEDS)
    for config, result in zip(configs, results, strict=True):
        assert_complete(tmp_path / "together", config)
        alone = run(config, tmp_path / "alone")
        assert alone is not None
        assert result is not None
        assert_alike(tmp_path / "together", tmp_path / "alone", config)
    # The seeds have starts and parameters of their own.
    assert len({result.evaluations[0].returns for result in results if result}) == len(SEEDS)


def test_they_learn_in_one_program(
    configs: list[RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = []

    class Seen(MultiSeedLearner):
        def __init__(self, learners: Sequence[GTPLearner]) -> None:
            groups.append([learner.config.seed for learner in learners])
            super().__init__(learners)

    monkeypatch.setattr(training, "MultiSeedLearner", Seen)
    monkeypatch.setattr(GTPLearner, "update_from", lambda *_, **__: pytest.fail("one alone"))
    run_seeds(configs, tmp_path)
    assert groups == [list(SEEDS)]


@pytest.mark.parametrize("after", [1, 7, 10, 23])
def test_stopped_and_resumed_they_are_those_that_were_not(
    after: int, configs: list[RunConfig], tmp_path: Path
) -> None:
    run_seeds(configs, tmp_path / "whole")
    calls = iter([False] * (after - 1) + [True] * 9)
    assert run_seeds(configs, tmp_path / "cut", stop=lambda: next(calls)) == [None] * len(SEEDS)
    for config in configs:
        folder = CheckpointFolder(tmp_path / "cut" / config.name / "checkpoints")
        newest = folder.latest()
        assert newest is not None
        assert load_checkpoint(newest).learner.updates == after
    run_seeds(configs, tmp_path / "cut")
    for config in configs:
        one, other = (tmp_path / name / config.name for name in ("whole", "cut"))
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            assert (one / name).read_bytes() == (other / name).read_bytes()
        mine, theirs = parameters(one), parameters(other)
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


@pytest.mark.parametrize("ahead", [3, 10, 17])
def test_those_that_are_behind_catch_up(
    ahead: int, configs: list[RunConfig], tmp_path: Path
) -> None:
    calls = iter([False] * (ahead - 1) + [True])
    assert run(configs[1], tmp_path / "together", stop=lambda: next(calls)) is None
    run_seeds(configs, tmp_path / "together")
    for config in configs:
        assert_complete(tmp_path / "together", config)
        run(config, tmp_path / "alone")
        assert_alike(tmp_path / "together", tmp_path / "alone", config)


def test_a_seed_that_is_done_is_not_repeated(configs: list[RunConfig], tmp_path: Path) -> None:
    done = run(configs[1], tmp_path)
    before = (tmp_path / configs[1].name / "result.json").stat().st_mtime_ns
    results = run_seeds(configs, tmp_path)
    assert results[1] == done
    assert (tmp_path / configs[1].name / "result.json").stat().st_mtime_ns == before
    for config in configs:
        assert_complete(tmp_path, config)
    # All are done: not even the data are needed.
    Path(configs[0].dataset).rename(tmp_path / "gone.hdf5")
    try:
        assert run_seeds(configs, tmp_path) == results
    finally:
        (tmp_path / "gone.hdf5").rename(configs[0].dataset)


def test_one_that_was_killed_before_its_result_gets_it(
    configs: list[RunConfig], tmp_path: Path
) -> None:
    first = run_seeds(configs, tmp_path)
    (tmp_path / configs[2].name / "result.json").unlink()
    again = run_seeds(configs, tmp_path)
    assert first[2] is not None
    assert again[2] is not None
    assert again[2].evaluations == first[2].evaluations
    assert again[2].ms_per_update == pytest.approx(first[2].ms_per_update, rel=0.5)


def test_one_that_diverges_leaves_the_others_alone(
    configs: list[RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(configs[0], tmp_path / "alone")
    look = training.Training.look

    def look_and_see(self: training.Training, metrics: Any, seconds: float) -> None:
        if self.config.seed == 1 and self.learner.updates == 15:
            raise NonFiniteError("its loss is not finite")
        look(self, metrics, seconds)

    monkeypatch.setattr(training.Training, "look", look_and_see)
    results = run_seeds(configs, tmp_path / "together")
    assert [result and result.status for result in results] == ["finished", "diverged", "finished"]
    assert results[1] is not None
    assert results[1].message == "after 15 updates: its loss is not finite"
    for seed in (0, 2):
        assert_complete(tmp_path / "together", configs[seed])
    assert_alike(tmp_path / "together", tmp_path / "alone", configs[0])


def test_where_nobody_knows_whose_fault_it_was_each_goes_on_alone(
    configs: list[RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = MultiSeedLearner.update_from

    def fails_late(self: MultiSeedLearner, *args: Any, **kwargs: Any) -> Any:
        metrics = both(self, *args, **kwargs)
        if self.updates >= 14:
            for learner in self.learners:
                learner.broken = "half-way"
            raise NonFiniteError("advantages are not finite")
        return metrics

    monkeypatch.setattr(MultiSeedLearner, "update_from", fails_late)
    results = run_seeds(configs, tmp_path / "together")
    assert [result and result.status for result in results] == ["finished"] * len(SEEDS)
    for config in configs:
        assert_complete(tmp_path / "together", config)
        run(config, tmp_path / "alone")
        assert_alike(tmp_path / "together", tmp_path / "alone", config)


def test_all_may_diverge(make_config: Make, tmp_path: Path) -> None:
    policy = make_config().policy
    policy = policy.replace(learner=policy.learner.replace(critic_lr=1e12))
    results = run_seeds([make_config(seed=seed, policy=policy) for seed in SEEDS], tmp_path)
    assert [result and result.status for result in results] == ["diverged"] * len(SEEDS)
    assert all(result and "not finite" in result.message for result in results)


class WithItsOwnLearner(RunConfig):
    """What `benchmarks.disturbed` does: a learner whose update is another."""

    def build_learner(self, dataset: Any) -> GTPLearner:
        return super().build_learner(dataset)


def test_learners_of_their_own_are_run_one_after_the_other(
    configs: list[RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "MultiSeedLearner", lambda _: pytest.fail("side by side"))
    own = [WithItsOwnLearner(**dict(config)) for config in configs[:2]]
    assert [result and result.status for result in run_seeds(own, tmp_path)] == ["finished"] * 2


def test_wrong_groups_are_refused(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="more than the seed: got 2"):
        run_seeds([make_config(), make_config(seed=1, batch_size=8)], tmp_path)
    with pytest.raises(ExperimentError, match="the same: got 2 with 1"):
        run_seeds([make_config(), make_config()], tmp_path)
    assert run_seeds([], tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "programs"),
    [
        ("cuda", [[(0, 16), (1, 16)], [(0, 8)]]),
        ("cuda:1", [[(0, 16), (1, 16)], [(0, 8)]]),
        ("cpu", [[(0, 16)], [(0, 8)], [(1, 16)]]),
    ],
)
def test_on_a_gpu_the_seeds_of_one_experiment_are_one_program(
    device: str,
    programs: list[list[tuple[int, int]]],
    make_config: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[tuple[int, int]]] = []

    def instead(configs: Sequence[RunConfig], *_: Any, **__: Any) -> list[RunResult | None]:
        asked.append([(config.seed, config.batch_size) for config in configs])
        return [f"seed {c.seed}, {c.batch_size}" for c in configs]  # type: ignore[misc]

    monkeypatch.setattr(runner, "run_seeds", instead)
    given = [(0, 16), (0, 8), (1, 16)]
    configs = [make_config(seed=seed, batch_size=size, device=device) for seed, size in given]
    results = run_all(configs, tmp_path)
    assert asked == programs
    assert results == [f"seed {seed}, {size}" for seed, size in given]
