"""Presets: closed, documented in JSON, and each of them trains and acts."""

import re
from pathlib import Path

import pytest
import torch

from gtp_policy import (
    Curriculum,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    QEnsembleConfig,
    Transitions,
    load_checkpoint,
    presets,
    save_checkpoint,
)
from gtp_policy.errors import GTPError, UnknownPresetError
from gtp_policy.presets import TaskPreset

every_name = pytest.mark.parametrize("name", presets.NAMES)


def small(config: GTPConfig) -> GTPConfig:
    """The same choices with networks that train in no time."""
    actor = FlowMapActorConfig(**{**config.actor.model_dump(), "hidden": (16,), "time_dim": 4})
    critic = None if config.critic is None else QEnsembleConfig(hidden=(16,))
    return config.replace(actor=actor, critic=critic)


def test_names_are_complete() -> None:
    assert set(presets.NAMES) == {
        *("diffusion", "flow_matching", "consistency", "ctm", "shortcut", "mean_flow"),
        *("gtp", "gtp_bc", "gtp_solver", "gtp_linear_q", "paper_loss", "one_step", "paper"),
    }
    assert presets.get("gtp") == GTPConfig()
    assert len({presets.get(name) for name in presets.NAMES}) == len(presets.NAMES)


@every_name
def test_a_preset_survives_json(name: str) -> None:
    config = presets.get(name)
    assert GTPConfig.model_validate_json(config.model_dump_json()) == config
    assert getattr(presets, name)() == config


@every_name
def test_a_preset_trains_acts_and_comes_back_from_disk(name: str, tmp_path: object) -> None:
    learner = GTPLearner.build(3, 2, small(presets.get(name)))
    generator = torch.Generator().manual_seed(0)
    before = [p.detach().clone() for p in learner.actor.parameters()]
    for _ in range(3):
        obs, following = torch.randn(2, 16, 3, generator=generator)
        action = torch.rand(16, 2, generator=generator) * 2 - 1
        discount = torch.full((16,), 0.99)
        metrics = learner.update(Transitions(obs, action, action[:, 0], following, discount))
        assert metrics.to_floats()["actor_grad_norm"] > 0
    changed = zip(before, learner.actor.parameters(), strict=True)
    assert all(not torch.equal(old, new) for old, new in changed)
    obs = torch.randn(5, 3, generator=generator)
    for options in ({}, {"deterministic": True}, {"steps": 1}, {"steps": 4}):
        action = learner.act(obs, **options)  # type: ignore[arg-type]
        assert action.shape == (5, 2)
        assert (action.abs() <= 1).all()
    path = save_checkpoint(f"{tmp_path}/saved", learner)
    loaded = load_checkpoint(path).learner
    assert loaded.full_config == learner.full_config
    again = loaded.act(obs, deterministic=True)
    assert torch.equal(again, learner.act(obs, deterministic=True))


def test_shortcut_samples_along_pairs_that_it_trains() -> None:
    config = presets.shortcut()
    assert config.loss.curriculum == Curriculum(start=128, end=128)
    training = config.actor.times.grid(128)
    sampling = config.actor.times.grid(config.actor.steps)
    torch.testing.assert_close(training[:: 128 // config.actor.steps], sampling)


def test_the_page_on_the_axes_names_the_presets_and_fields_that_there_are() -> None:
    page = Path(__file__).parents[1] / "docs" / "explanation" / "axes.md"
    axes, models = page.read_text(encoding="utf-8").split("## The axes")[1].split("## The models")
    rows = re.findall(r"^\| `(\w+)`", models.split("## ")[0], re.M)
    assert sorted(rows) == sorted(presets.NAMES)
    parts = {name: type(part) for name, part in GTPConfig()}
    for part, field in re.findall(r"`(actor|critic|learner|loss|weighter)\.(\w+)`", axes):
        assert field in parts[part].model_fields, f"{part}.{field}"


def test_an_unknown_name_is_answered_by_those_there_are() -> None:
    with pytest.raises(UnknownPresetError, match=r"got 'hopper', expected one of gtp, gtp_bc"):
        presets.get("hopper")
    with pytest.raises(UnknownPresetError, match=r"For a task, call presets\.task\."):
        presets.get("hopper-medium")
    with pytest.raises(UnknownPresetError, match=r"For a method, call presets\.get\."):
        presets.task("gtp")
    with pytest.raises(KeyError) as caught:
        presets.task("hopper")
    assert isinstance(caught.value, GTPError)
    assert str(caught.value).startswith("Unknown task: got 'hopper', expected one of half")


# Gradient norm, learning rate, max-Q backup: the parents' table, typed in a second time.
GYM = {
    "halfcheetah": (9, 2, 7),
    "hopper": (9, 4, 5),
    "walker2d": (1, 4, 5),
}
ANTMAZE = {
    "umaze": (2, 3e-4, 1),
    "umaze-diverse": (3, 3e-4, 10),
    "medium-play": (2, 1e-3, 10),
    "medium-diverse": (1, 3e-4, 10),
    "large-play": (10, 3e-4, 10),
    "large-diverse": (7, 3e-4, 10),
}


def summary(name: str) -> tuple[float | None, float, float, int, int, float, float]:
    preset = presets.task(name)
    c, reward = preset.policy.learner, preset.reward
    offset = getattr(reward, "subtract", float("nan"))
    return (
        c.max_grad_norm,
        c.actor_lr,
        c.critic_lr,
        c.backup_actions,
        c.total_updates,
        offset,
        getattr(reward, "multiply", float("nan")),
    )


def test_gym_tasks() -> None:
    for body, norms in GYM.items():
        for level, norm in zip(("medium", "medium-replay", "medium-expert"), norms, strict=True):
            expected = (norm, 3e-4, 3e-4, 1, 2_000_000, 0.0, 1.0)
            assert summary(f"{body}-{level}") == expected


def test_antmaze_tasks() -> None:
    for maze, (norm, rate, backup) in ANTMAZE.items():
        expected = (norm, rate, rate, backup, 1_000_000, 0.5, 4.0)
        assert summary(f"antmaze-{maze}") == expected


def test_adroit_and_kitchen_tasks() -> None:
    assert summary("pen-human")[:5] == (7, 3e-5, 3e-5, 1, 1_000_000)
    assert summary("pen-cloned")[:5] == (8, 3e-5, 3e-5, 1, 1_000_000)
    assert presets.task("pen-human").reward.kind == "standardize"
    assert summary("kitchen-complete")[:5] == (9, 3e-4, 3e-4, 1, 250_000)
    assert summary("kitchen-mixed")[:5] == (10, 3e-4, 3e-4, 1, 1_000_000)
    assert len(presets.TASKS) == 20


def test_a_task_changes_nothing_else() -> None:
    policy = presets.gtp_linear_q(0.1)
    preset = presets.task("hopper-medium", policy)
    assert TaskPreset.model_validate_json(preset.model_dump_json()) == preset
    own = policy.learner.replace(max_grad_norm=9.0, total_updates=2_000_000)
    assert preset.policy == policy.replace(learner=own)
