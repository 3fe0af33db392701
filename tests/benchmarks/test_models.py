"""The policies in models/: they load, act inside the box, and their cards say what was recorded."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.models import EPISODES, FILM, FOLDER, MODELS, PICTURE, RECORD, command
from benchmarks.pages import ROOT
from examples import pendulum
from gtp_experiments import RunResult
from gtp_experiments.reevaluation import finished
from gtp_policy.export import from_pretrained
from gtp_runtime import Policy

FOLDERS = {name: ROOT / FOLDER / name for name in MODELS}


def record_of(folder: Path) -> RunResult:
    return RunResult.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))


def observations(name: str, rows: int) -> np.ndarray:
    """Returns states of the task, its far corners included."""
    rng = np.random.default_rng(0)
    if name == "pendulum":
        angle, speed = rng.uniform(-np.pi, np.pi, rows), rng.uniform(-8, 8, rows)
        return np.stack([np.cos(angle), np.sin(angle), speed], 1).astype(np.float32)
    if name == "cube-single":
        normalizer = from_pretrained(FOLDERS[name]).learner.actor.normalizer
        mean, scale = normalizer.mean.numpy(), normalizer.scale.numpy()
        return (mean + scale * rng.normal(size=(rows, len(mean)))).astype(np.float32)
    position, goal = rng.uniform(-1.5, 1.5, (2, rows, 2))
    speed = rng.uniform(-5, 5, (rows, 2))
    return np.concatenate([position, speed, position, goal], 1).astype(np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_acts_inside_its_box_and_its_file_does_as_it_does(name: str) -> None:
    policy = from_pretrained(FOLDERS[name])
    scaler, obs = policy.action_scaler, observations(name, 500)
    assert scaler is not None
    acted = policy.learner.act(torch.from_numpy(obs), deterministic=True)
    chunk = policy.learner.actor.config.chunk
    steps = (-1, chunk, scaler.low.size) if chunk > 1 else acted.shape
    here = scaler.to_box(acted.reshape(steps)).numpy()
    assert (here >= scaler.low).all()
    assert (here <= scaler.high).all()
    assert here.std() > 0.2 * float(scaler.high[0])  # it does different things in different places
    file = Policy.load(FOLDERS[name] / "policy.onnx")
    parts: object = obs
    if name == "pointmaze-umaze":
        parts = {
            "observation": obs[:, :4],
            "achieved_goal": obs[:, 4:6],
            "desired_goal": obs[:, 6:],
        }
    np.testing.assert_allclose(file.act(parts, deterministic=True), here, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_card_says_what_the_run_recorded(name: str) -> None:
    card = (FOLDERS[name] / "README.md").read_text(encoding="utf-8")
    record = record_of(FOLDERS[name])
    (last,) = record.evaluations
    assert len(last.returns) == EPISODES
    assert f"| {np.mean(last.returns):.4g}, mean of {EPISODES} episodes" in card
    assert record.status == "finished"
    assert f"```bash\n{command(name, Path('outputs/models') / name)}\n```" in card
    assert f"]({PICTURE})" in card
    assert f"]({FILM})" in card


@pytest.mark.parametrize("name", MODELS)
def test_a_record_of_an_earlier_version_is_that_of_its_checkpoint(
    name: str, tmp_path: Path
) -> None:
    shutil.copy(FOLDERS[name] / RECORD, tmp_path / RECORD)
    step = f"step_{record_of(FOLDERS[name]).updates:012d}"
    with zipfile.ZipFile(FOLDERS[name] / "checkpoint.zip") as checkpoint:
        checkpoint.extractall(tmp_path / "checkpoints" / step)
    assert finished(tmp_path)[2].name == step


def test_the_models_are_good() -> None:
    """Far from random actions, and from the data where it is mediocre: the records say so."""
    maze, swing, cube = (record_of(FOLDERS[n]) for n in MODELS)
    assert np.mean(maze.evaluations[-1].returns) > 0.9
    assert np.mean(np.array(cube.evaluations[-1].returns) > -200) > 0.75  # -200 is a failure
    score = swing.score(swing.last)
    assert score is not None
    assert score > 70  # the data lies near 50


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_small(name: str) -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDERS[name].iterdir()}
    assert sizes.keys() == {"README.md", "checkpoint.zip", "policy.onnx", RECORD, PICTURE, FILM}
    assert max(sizes.values()) < 1_000_000


@pytest.mark.slow
def test_the_pendulum_is_held_up() -> None:
    policy = from_pretrained(FOLDERS["pendulum"])
    scaler, generator = policy.action_scaler, torch.Generator().manual_seed(0)
    assert scaler is not None

    def act(obs: np.ndarray) -> np.ndarray:
        rows = torch.from_numpy(np.asarray(obs, np.float32))
        return scaler.to_box(policy.learner.act(rows, generator=generator)).numpy()

    assert pendulum.evaluate(act, episodes=4, seed=7).mean() > -645  # the mean of the data
