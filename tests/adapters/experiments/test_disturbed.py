"""Advantages that are wrong on purpose: by how much, and that their runs resume and keep names."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.disturbed import DisturbedConfig, DisturbedWeighter, command_parser, configs_of
from benchmarks.studies import COLLECTED, STUDIES, folder_of
from gtp_experiments import RunConfig, RunFolder, read_results, run
from gtp_experiments.records import write_json
from gtp_policy import AdvantageWeighter, GTPLearner
from gtp_policy.errors import TrainingWarning
from gtp_policy.functional import advantage_weights
from tests.adapters.experiments.test_experiment_runs import After, assert_same_run

Make = Callable[..., RunConfig]
ROOT = Path(__file__).parents[3]


def disturbed(config: RunConfig, **fields: float) -> DisturbedConfig:
    return DisturbedConfig(**dict(config), **fields)


def test_a_bias_moves_every_advantage_by_its_share_of_the_spread(
    make_config: Make, generator: torch.Generator
) -> None:
    advantage = torch.randn(64, generator=generator)
    learner = GTPLearner.build(2, 1, make_config().policy)
    weighter = DisturbedWeighter(learner, noise=0.0, bias=0.5)
    shifted = advantage + 0.5 * advantage.std(correction=0)
    expected = advantage_weights(shifted, 3.0, 1e-6, 100.0)
    torch.testing.assert_close(weighter(advantage), expected)


def test_noise_on_advantages_has_the_requested_size(make_config: Make) -> None:
    class Seen(AdvantageWeighter):
        def forward(self, advantage: torch.Tensor) -> torch.Tensor:
            return advantage

    class Spy(DisturbedWeighter, Seen):
        pass

    learner = GTPLearner.build(2, 1, make_config().policy)
    advantage = torch.arange(40_000.0) % 2  # population standard deviation 1/2
    weighter = Spy(learner, noise=2.0, bias=0.0)
    noise = weighter(advantage) - advantage
    # Mean and std of 40,000 N(0, 1) within 5 of their own standard errors.
    assert abs(float(noise.mean())) < 5 / 200
    assert abs(float(noise.std()) - 1.0) < 5 / (200 * 2**0.5)
    torch.testing.assert_close(weighter(advantage) - advantage, noise)  # same update, same noise
    learner.updates = 1
    assert not torch.equal(weighter(advantage) - advantage, noise)


@pytest.mark.filterwarnings("ignore:The curriculum is too fine")
def test_a_resumed_run_is_the_uninterrupted_one(make_config: Make, tmp_path: Path) -> None:
    config = disturbed(make_config(), advantage_noise=1.0)
    assert run(config, tmp_path / "whole") is not None
    assert run(config, tmp_path / "parts", stop=After(7)) is None
    assert run(config, tmp_path / "parts") is not None
    with pytest.warns(TrainingWarning, match="a weighter 'DisturbedWeighter'"):
        assert_same_run(tmp_path / "whole" / config.name, tmp_path / "parts" / config.name)
    plain = run(make_config(), tmp_path / "plain")
    assert plain is not None
    assert plain.group != config.group
    a, b = (
        (tmp_path / folder / name / "metrics.jsonl").read_text()
        for folder, name in (("whole", config.name), ("plain", make_config().name))
    )
    assert a != b  # the noise did something


def test_the_command_runs_in_processes(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    words = ["--dataset", config.dataset, "--updates", "3", "--seeds", "0", "1", "--jobs", "2"]
    words += ["--environment", "line_world:make", "--episodes", "2", "--out", str(tmp_path)]
    words += ["--advantage-noise", "0.5", "--advantage-bias=-1", "--set", "critic.hidden=[8]"]
    subprocess.run([sys.executable, "-m", "benchmarks.disturbed", *words], cwd=ROOT, check=True)
    results = read_results(tmp_path)
    assert [result.seed for result in results] == [0, 1]
    for result, config in zip(results, configs_of(command_parser().parse_args(words)), strict=True):
        assert (config.advantage_noise, config.advantage_bias) == (0.5, -1.0)
        assert (result.group, result.config) == (config.group, config.model_dump(mode="json"))


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_results_that_were_published_are_those_of_the_commands(study: object) -> None:
    """They count as such, and nothing is trained twice."""
    found = read_results(folder_of(study, COLLECTED))
    for row in study.rows:
        own = [result for result in found if result.method == row.method]
        assert own, row.method
        assert all(row.made(result) for result in own), row.method


def test_a_run_that_recorded_the_fields_is_found_again(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    folder = RunFolder(tmp_path, config, "00").path
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert "advantage_noise" not in record["config"]
    record["config"] |= {"advantage_noise": 0.0, "advantage_bias": 0.0}
    write_json(folder / "run.json", record)
    assert RunFolder(tmp_path, config, "00").path == folder
    assert RunConfig.model_validate(record["config"]) == config
    with pytest.raises(ValueError, match="advantage_noise"):
        RunConfig.model_validate(record["config"] | {"advantage_noise": 0.5})
    with_noise = record["config"] | {"advantage_noise": 0.5}
    assert DisturbedConfig.model_validate(with_noise) == disturbed(config, advantage_noise=0.5)
