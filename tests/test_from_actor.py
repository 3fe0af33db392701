"""Cloning without rewards, and going on from the clone: where they are missed, and what stays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gtp_policy import (
    ExpectileBaseline,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    GTPLossConfig,
    MultiSeedLearner,
    OfflineDataset,
    QEnsembleConfig,
    kernels,
    load_checkpoint,
    presets,
    restore_,
    save_checkpoint,
)
from gtp_policy.acting import ModeChoice
from gtp_policy.errors import DataError, StateMismatchError
from gtp_policy.rewards import LinearReward

N = 60


def make_data(rewards: bool) -> OfflineDataset:
    rng = np.random.default_rng(0)
    return OfflineDataset.from_arrays(
        obs=rng.normal(2.0, 3.0, size=(N, 3)),
        action=rng.uniform(-1, 1, size=(N, 2)),
        reward=rng.normal(size=N) if rewards else None,
        terminated=np.arange(N) % 20 == 19,
        truncated=np.zeros(N),
        low=[-1.0, -1.0],
        high=[1.0, 1.0],
    )


@pytest.fixture
def logs() -> OfflineDataset:
    return make_data(rewards=False)


@pytest.fixture
def scored() -> OfflineDataset:
    return make_data(rewards=True)


def make_config(**changes: Any) -> GTPConfig:
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(16, 16)),
        critic=QEnsembleConfig(hidden=(16,)),
        learner=GTPLearnerConfig(total_updates=2000, ema_rate=0.1),
    )
    return config.replace(**changes)


def cloned(logs: OfflineDataset, config: GTPConfig | None = None) -> GTPLearner:
    learner = GTPLearner.from_dataset(logs, config or make_config(critic=None))
    learner.update_from(logs, 5, batch_size=16)
    return learner


# --- rewards that are missing


def test_a_clone_needs_no_rewards_and_is_the_clone_of_data_with_them(
    logs: OfflineDataset, scored: OfflineDataset
) -> None:
    assert (logs.has_rewards, scored.has_rewards) == (False, True)
    assert logs.transitions.reward.isnan().all()
    first, second = cloned(logs), cloned(scored)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    with kernels.using("reference"):
        assert torch.isfinite(torch.cat([p.flatten() for p in cloned(logs).parameters()])).all()


def test_several_seeds_clone_without_rewards_too(logs: OfflineDataset) -> None:
    both = MultiSeedLearner.from_dataset(logs, make_config(critic=None), seeds=(0, 1))
    both.update_from(logs, 2, batch_size=8)
    assert both.updates == 2


ADVICE = r"needs rewards: got .*GTPConfig\(critic=None\).*GTPLearner\.from_actor"


def test_a_critic_says_that_rewards_are_missing_wherever_it_meets_them(
    logs: OfflineDataset, scored: OfflineDataset
) -> None:
    learner = GTPLearner.from_dataset(scored, make_config())
    before = [p.clone() for p in learner.parameters()]
    several = MultiSeedLearner.from_dataset(scored, make_config(), seeds=(0, 1))
    batch = logs.sample(8, generator=torch.Generator().manual_seed(0))
    for call in (
        lambda: GTPLearner.from_dataset(logs, make_config()),
        lambda: learner.update_from(logs, batch_size=8),
        lambda: learner.update(batch),
        lambda: several.update([batch, batch]),
        lambda: several.update_from(logs, batch_size=8),
    ):
        with pytest.raises(DataError, match=ADVICE):
            call()
    for call in (
        lambda: logs.with_rewards(LinearReward()),
        lambda: logs.with_best_episodes(0.5),
        lambda: logs.with_return_weighting(1.0),
    ):
        # No critic asked for them: cloning without one would not help.
        with pytest.raises(DataError, match=r"needs rewards: got .*with_reward_column\(rewards\)"):
            call()
    assert learner.broken is None
    for a, b in zip(before, learner.parameters(), strict=True):
        assert torch.equal(a, b)


def test_one_reward_that_is_missing_among_others_is_no_data_without_rewards(
    scored: OfflineDataset,
) -> None:
    batch = scored.sample(8, generator=torch.Generator().manual_seed(0))
    batch.reward[3] = torch.nan
    clone = GTPLearner.from_dataset(scored, make_config(critic=None))
    with pytest.raises(DataError, match="`reward` is not finite: got nan at row 3"):
        clone.update(batch)


def test_what_is_missing_stays_missing(logs: OfflineDataset) -> None:
    assert "no rewards" in repr(logs)
    for changed in (logs.with_n_step(2), logs.with_next_actions(), logs.to("cpu")):
        assert not changed.has_rewards
        assert changed.transitions.reward.isnan().all()


# --- going on from an actor


@pytest.mark.parametrize("start", ["learner", "file"])
@pytest.mark.parametrize("preset", ["gtp", "one_step"])
def test_the_first_evaluation_is_that_of_the_clone(
    logs: OfflineDataset, scored: OfflineDataset, tmp_path: Path, start: str, preset: str
) -> None:
    config = presets.get(preset).replace(critic=None)
    config = config.replace(learner=config.learner.replace(deterministic_choice=ModeChoice()))
    config = config.replace(actor=config.actor.replace(hidden=(16, 16)))
    clone = source = cloned(logs, config)
    if start == "file":
        source = load_checkpoint(save_checkpoint(tmp_path / "clone.zip", clone)).learner
    following = presets.get(preset)
    choice = {"deterministic_choice": ModeChoice()}  # a critic's would not be the clone's
    following = following.replace(learner=following.learner.replace(**choice))
    learner = GTPLearner.from_actor(source, following)
    assert (learner.updates, learner.critic is None) == (0, False)
    obs = scored.transitions.obs[:7]
    assert torch.equal(learner.act(obs, deterministic=True), clone.act(obs, deterministic=True))
    drawn = [x.act(obs, generator=torch.Generator().manual_seed(1)) for x in (learner, clone)]
    assert torch.equal(*drawn)
    assert torch.equal(learner.critic.normalizer.mean, clone.actor.normalizer.mean)
    learner.update_from(scored, 2, batch_size=16)
    assert learner.updates == 2
    assert not torch.equal(learner.act(obs, deterministic=True), clone.act(obs, deterministic=True))


def test_the_source_stays_as_it_is(logs: OfflineDataset, scored: OfflineDataset) -> None:
    clone = cloned(logs)
    before = [p.clone() for p in clone.parameters()]
    GTPLearner.from_actor(clone, GTPConfig()).update_from(scored, 2, batch_size=16)
    assert clone.updates == 5
    for a, b in zip(before, clone.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_grid_stays_as_fine_as_it_was_where_the_config_leaves_it_open(
    logs: OfflineDataset,
) -> None:
    clone = cloned(logs)
    clone.updates = clone.config.total_updates
    grid = clone.full_config.loss.curriculum.end
    assert grid > 10
    curriculum = GTPLearner.from_actor(clone, GTPConfig()).full_config.loss.curriculum
    assert (curriculum.start, curriculum.end) == (grid, grid)
    chosen = GTPConfig(loss=GTPLossConfig(curriculum={"start": 5, "end": 20}))
    assert GTPLearner.from_actor(clone, chosen).full_config.loss.curriculum.start == 5


def test_another_actor_is_refused_and_an_equal_one_is_not(logs: OfflineDataset) -> None:
    clone = cloned(logs)
    wrong = GTPConfig(actor=FlowMapActorConfig(hidden=(8,)))
    with pytest.raises(StateMismatchError, match=r"got hidden: \(16, 16\) there, \(8,\) here"):
        GTPLearner.from_actor(clone, wrong)
    same = GTPConfig(actor=FlowMapActorConfig(hidden=(16, 16)))
    assert GTPLearner.from_actor(clone, same).actor.config == clone.actor.config
    other = GTPLearner.build(4, 2, make_config())
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(StateMismatchError, match="The actor has other networks"):
        other.take_actor_(clone)
    for a, b in zip(before, other.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(DataError, match="`source` is of the wrong kind: got FlowMapActor"):
        GTPLearner.from_actor(clone.actor)  # type: ignore[arg-type]


def test_restoring_a_clone_into_a_learner_with_a_critic_leads_on(
    logs: OfflineDataset, scored: OfflineDataset, tmp_path: Path
) -> None:
    path = save_checkpoint(tmp_path / "clone.zip", cloned(logs))
    with pytest.raises(
        StateMismatchError, match=r"GTPLearner\.from_actor\(load_checkpoint\(path\)"
    ):
        restore_(GTPLearner.from_dataset(scored, make_config()), path)


@pytest.mark.global_rng  # a module of torch's own
def test_custom_networks_go_along(logs: OfflineDataset, scored: OfflineDataset) -> None:
    encoder = torch.nn.Linear(3, 5)
    encoder.features_dim = 5  # type: ignore[assignment]
    clone = GTPLearner.from_dataset(logs, make_config(critic=None), encoder=encoder)
    learner = GTPLearner.from_actor(clone, make_config().replace(actor=clone.actor.config))
    assert learner.critic is not None
    assert torch.equal(learner.critic.encoder.weight, clone.actor.encoder.weight)
    assert learner.critic.encoder is not learner.actor.encoder
    learner.update_from(scored, 1, batch_size=8)


# --- the type of numbers


@pytest.mark.parametrize("expectile", [False, True])
def test_the_data_decide_the_type_of_numbers_not_torchs_default(
    scored: OfflineDataset, expectile: bool
) -> None:
    config = make_config()
    if expectile:
        config = config.replace(
            learner=config.learner.replace(baseline=ExpectileBaseline(hidden=(16,)))
        )
    torch.set_default_dtype(torch.float64)
    try:
        learner = GTPLearner.from_dataset(scored, config)
        learner.update_from(scored, 2, batch_size=8)
        assert {p.dtype for p in learner.parameters()} == {torch.float32}
        assert learner.act(scored.transitions.obs[:2], deterministic=True).dtype == torch.float32
        onward = GTPLearner.from_actor(learner, config.replace(actor=learner.actor.config))
        onward.update_from(scored, 1, batch_size=8)
        assert {p.dtype for p in onward.parameters()} == {torch.float32}
        many = MultiSeedLearner.from_dataset(scored, config, seeds=(0, 1))
        many.update_from(scored, 1, batch_size=8)
    finally:
        torch.set_default_dtype(torch.float32)
