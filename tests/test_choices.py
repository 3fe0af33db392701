"""Choosing among candidates: the best, or one by softmax."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gtp_policy import (
    FlowMapActor,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    OfflineDataset,
    QEnsemble,
    QEnsembleConfig,
    act,
    load_checkpoint,
    restore_,
    save_checkpoint,
)
from gtp_policy.acting import (
    ArgmaxChoice,
    ModeChoice,
    SoftmaxChoice,
    look,
    margin_of_mode,
    mode_share,
)
from gtp_policy.errors import CheckpointError, StateMismatchError
from gtp_policy.testing import assert_frequencies_close


def test_softmax_draws_in_proportion_to_exp_q() -> None:
    q = torch.tensor([0.0, 1.0, 3.0])
    choice = SoftmaxChoice(temperature=2.0)
    generator = torch.Generator().manual_seed(0)
    numbered = torch.arange(3.0).view(1, 3, 1)
    picked = choice.take(numbered.expand(20_000, 3, 1), q.expand(20_000, 3), generator)
    counts = torch.bincount(picked.flatten().long(), minlength=3)
    assert_frequencies_close(counts, torch.softmax(q.double() / 2, 0))
    best = ArgmaxChoice().take(numbered.expand(2, 3, 1), q.expand(2, 3), None)
    assert best.flatten().tolist() == [2, 2]


def test_a_cold_softmax_is_the_argmax() -> None:
    q = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    numbered = torch.arange(8.0).view(1, 8, 1).expand(100, 8, 1)
    cold = SoftmaxChoice(temperature=1e-6).take(numbered, q, torch.Generator().manual_seed(1))
    assert torch.equal(cold.flatten().long(), q.argmax(1))


@pytest.fixture
def parts() -> tuple[FlowMapActor, QEnsemble, Tensor]:
    return FlowMapActor(2, 1), QEnsemble(2, 1), torch.zeros(64, 2)


def test_act_passes_the_choice_on(parts: tuple[FlowMapActor, QEnsemble, Tensor]) -> None:
    actor, critic, obs = parts

    def chosen(choice: SoftmaxChoice | ArgmaxChoice | None, **options: bool) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return act(actor, critic, obs, candidates=16, choice=choice, generator=generator, **options)

    best = chosen(ArgmaxChoice())
    assert torch.equal(best, chosen(None))
    assert torch.equal(best, chosen(SoftmaxChoice(temperature=1e-9)))
    warm = chosen(SoftmaxChoice(temperature=1e9))
    assert torch.equal(warm, chosen(SoftmaxChoice(temperature=1e9)))  # a function of the generator
    assert not torch.equal(best, warm)
    value = [critic(obs, a).amin(0).mean().item() for a in (best, warm)]
    assert value[0] > value[1]
    fixed = chosen(SoftmaxChoice(temperature=1e9), deterministic=True)
    assert torch.equal(fixed, chosen(None, deterministic=True))


def candidates(centres: list[float], counts: list[int], width: float, dim: int = 2) -> Tensor:
    """Draws around centres on the diagonal, (1, n, dim)."""
    g = torch.Generator().manual_seed(3)
    parts = [
        c + width * torch.randn(n, dim, generator=g) for c, n in zip(centres, counts, strict=True)
    ]
    return torch.cat(parts).unsqueeze(0)


def test_the_mode_of_one_mode_is_near_its_mean_and_nearer_than_a_sample() -> None:
    x = candidates([0.3], [64], 0.1)
    got = ModeChoice().take(x, None, None)
    assert float((got - 0.3).norm()) < 0.03
    assert float((got - 0.3).norm()) < float((x[0] - 0.3).norm(dim=1).mean()) / 4


@pytest.mark.parametrize("counts", [(8, 8), (5, 11), (4, 12), (6, 5, 5)])
def test_the_mode_of_several_lies_in_one_of_them(counts: tuple[int, ...]) -> None:
    centres = [-0.8, 0.6, 0.0][: len(counts)]
    got = ModeChoice().take(candidates(centres, list(counts), 0.02), None, None)
    apart = (got[0, 0] - torch.tensor(centres)).abs()
    assert float(apart.min()) < 0.05
    # Where one is much fuller than the others, it is that one.
    if max(counts) > 2 * min(counts):
        assert int(apart.argmin()) == counts.index(max(counts))


@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from([1.0, 1e-3, 1e-9, 0.0]),
    st.integers(0, 99),
)
def test_a_mode_lies_among_its_candidates_whatever_they_are(
    rows: int, n: int, dim: int, width: float, seed: int
) -> None:
    """Also where all are equal, or clamped to the same bound."""
    g = torch.Generator().manual_seed(seed)
    x = (0.9 + width * torch.randn(rows, n, dim, generator=g)).clamp(-1, 1)
    got = ModeChoice().take(x, None, None)
    assert got.shape == (rows, dim)
    assert bool((got >= x.amin(1)).all())  # exactly, or it could leave [-1, 1]
    assert bool((got <= x.amax(1)).all())
    alone = torch.cat([ModeChoice().take(row.unsqueeze(0), None, None) for row in x])
    torch.testing.assert_close(got, alone, atol=1e-4, rtol=0)


def test_of_several_noises_a_deterministic_action_is_the_mode_and_needs_no_critic() -> None:
    config = GTPConfig(critic=None)
    config = config.replace(learner=config.learner.replace(eval_candidates=16))
    learner = GTPLearner.build(2, 3, config)
    obs = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    got = learner.act(obs, deterministic=True)
    assert torch.equal(got, learner.act(obs, deterministic=True))
    assert torch.equal(
        got, act(learner.actor, None, obs, candidates=16, choice=ModeChoice(), deterministic=True)
    )
    single = learner.act(obs, deterministic=True, candidates=1)
    assert not torch.equal(got, single)  # a number asked for is one of noises


class Shaped(QEnsemble):
    """Values actions by their distance from the policy's own middle, or along a direction."""

    def __init__(self, actor: FlowMapActor, shape: str) -> None:
        super().__init__(2, 1)
        self.shape, self.middle = shape, actor

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        noise = torch.randn(256, 1, generator=torch.Generator().manual_seed(5))
        tiled = obs[:, None].expand(-1, 256, -1).reshape(-1, 2)
        middle = self.middle.sample(tiled, noise=noise.repeat(len(obs), 1)).view(-1, 256, 1).mean(1)
        apart = action - middle
        q = {
            "peak": -apart.square(),
            "well": apart.square(),
            "slope": apart * torch.sign(torch.sin(1e3 * obs[:, :1])),
        }[self.shape]
        return q.squeeze(1).expand(2, -1)


def learner_of(shape: str, **choices: Any) -> GTPLearner:
    learner = GTPLearner.build(2, 1, GTPConfig(learner=GTPLearnerConfig(**choices)))
    learner.target_critic = Shaped(learner.target_actor, shape)
    return learner


# A concave Q prefers the middle (Jensen), a convex one does not, a linear one does in half of all.
@pytest.mark.parametrize(
    ("shape", "low", "high"), [("peak", 0.9, 1), ("well", 0, 0.1), ("slope", 0.35, 0.65)]
)
def test_the_critic_says_in_which_share_the_mode_is_better(
    shape: str, low: float, high: float
) -> None:
    learner, obs = (
        learner_of(shape),
        torch.randn(128, 2, generator=torch.Generator().manual_seed(0)),
    )
    assert learner.target_critic is not None
    share = mode_share(learner.target_actor, learner.target_critic, obs)
    assert low <= share <= high
    learner.updates = 2_000
    look(learner, 1, lambda: obs)
    narrow = shape == "peak"
    assert learner.target_actor.mode_share == share
    expected = act(
        learner.target_actor,
        None,
        obs,
        candidates=16 if narrow else 1,
        choice=ModeChoice(),
        deterministic=True,
    )
    assert torch.equal(learner.act(obs, deterministic=True), expected)
    learner.config = learner.config.replace(eval_candidates=16)  # said is said
    mode = act(
        learner.target_actor, None, obs, candidates=16, choice=ModeChoice(), deterministic=True
    )
    assert torch.equal(learner.act(obs, deterministic=True), mode)


def test_a_learner_looks_every_thousand_updates_and_at_the_end() -> None:
    learner, obs = learner_of("peak", total_updates=2_345), torch.zeros(4, 2)
    for updates, done, looks in (
        (1, 1, False),
        (999, 1, False),
        (1_000, 1, True),
        (1_001, 1, False),
        (1_007, 16, True),
        (2_016, 16, False),
        (2_345, 1, True),
    ):
        learner.updates, learner.target_actor.mode_share = updates, None
        look(learner, done, lambda: obs)
        assert (learner.target_actor.mode_share is not None) == looks, updates


def test_what_was_seen_of_the_mode_is_saved_and_trains_nothing(tmp_path: Path) -> None:
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(8,)),
        critic=QEnsembleConfig(hidden=(8,)),
        learner=GTPLearnerConfig(total_updates=3),
    )
    rows = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    dataset = OfflineDataset.from_arrays(
        obs=rows,
        action=rows[:, :1].tanh(),
        reward=rows[:, 1],
        terminated=torch.ones(32),
        truncated=torch.zeros(32),
        low=[-1.0],
        high=[1.0],
    )
    looking = GTPLearner.from_dataset(dataset, config)
    said = GTPLearner.from_dataset(
        dataset, config.replace(learner=config.learner.replace(eval_candidates=1))
    )
    for learner in (looking, said):
        learner.update_from(dataset, 3, batch_size=16)
    share = looking.target_actor.mode_share
    assert share is not None
    assert said.target_actor.mode_share is None
    for a, b in zip(looking.parameters(), said.parameters(), strict=True):
        assert torch.equal(a, b)
    save_checkpoint(tmp_path / "a.zip", looking)
    for train_state in (True, False):
        loaded = load_checkpoint(tmp_path / "a.zip", train_state=train_state).learner
        assert loaded.target_actor.mode_share == share
    state = looking.state_dict()
    said.load_state_dict(state)
    assert said.target_actor.mode_share == share
    del state["_extra_state"]["mode_share"]  # of a state from before
    said.load_state_dict(state)
    assert said.target_actor.mode_share is None
    state["_extra_state"]["mode_share"] = 2.0
    with pytest.raises(StateMismatchError, match="no share of the mode: got 2"):
        said.load_state_dict(state)


def test_what_was_seen_of_the_mode_goes_with_the_parameters_and_no_others() -> None:
    learner, other = learner_of("peak"), GTPLearner.build(2, 1)
    learner.target_actor.mode_share = 0.9
    obs = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    later = GTPLearner.from_actor(learner, GTPConfig())
    assert torch.equal(*(x.act(obs, deterministic=True) for x in (learner, later)))
    state = copy.deepcopy(learner.target_actor.state_dict())
    other.target_actor.load_state_dict(state)
    assert other.target_actor.mode_share == 0.9
    other.target_actor.load_state_dict(other.actor.state_dict())
    assert other.target_actor.mode_share is None
    other.target_actor.mode_share = 0.9
    other.target_actor.load_state_dict(dict(state))  # which does not say
    assert other.target_actor.mode_share is None
    other.target_actor.mode_share = 0.9
    other.take_actor_(GTPLearner.build(2, 1, GTPConfig(critic=None)))
    assert other.target_actor.mode_share is None
    other.take_actor_(learner)
    assert other.target_actor.mode_share == 0.9
    other.target_critic, other.updates = None, 1_000
    look(other, 1, lambda: obs)
    assert other.target_actor.mode_share is None  # nobody looks any more


def test_a_learner_whose_actors_differ_in_their_choices_is_not_saved(tmp_path: Path) -> None:
    learner = GTPLearner.build(2, 1)
    learner.target_actor.config = learner.target_actor.config.replace(steps=5)
    with pytest.raises(CheckpointError, match="a target actor of another config"):
        learner.save(tmp_path / "policy")
    learner.actor.config = learner.actor.config.replace(steps=5)
    assert load_checkpoint(learner.save(tmp_path / "policy")).learner.actor.config.steps == 5


def test_what_normalises_observations_goes_with_the_actor(tmp_path: Path) -> None:
    learner, other = GTPLearner.build(2, 1), GTPLearner.build(2, 1)
    learner.normalized_by = "VecNormalize"
    state = copy.deepcopy(learner.state_dict())
    other.load_state_dict(state)
    assert other.normalized_by == "VecNormalize"
    del state["_extra_state"]["normalized_by"]  # of a state from before, with and without metadata
    other.normalized_by = None
    other.load_state_dict(state)
    assert other.normalized_by == "VecNormalize"
    other.load_state_dict(dict(state))
    assert other.normalized_by == "VecNormalize"  # an average is of networks that saw the same
    other.normalized_by = None
    other.load_state_dict(dict(state))
    assert other.normalized_by is None
    restore_(other, learner.save(tmp_path / "normalised"))
    assert other.normalized_by == "VecNormalize"
    learner.normalized_by = None
    restore_(other, learner.save(tmp_path / "raw"))
    assert other.normalized_by is None
    for name in ("", "a" * 101, "a\nb", "\ud800", 3):
        state["_extra_state"]["normalized_by"] = name
        with pytest.raises(StateMismatchError, match="names nothing that normalises"):
            other.load_state_dict(state)


def test_images_are_looked_at_a_few_at_a_time() -> None:
    seen: list[int] = []

    class Encoder(torch.nn.Module):
        features_dim = 2

        def forward(self, obs: Tensor) -> Tensor:
            seen.append(len(obs))
            return obs

    obs = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    learner, plain = GTPLearner.build(2, 1, encoder=Encoder()), GTPLearner.build(2, 1)
    assert learner.target_critic is not None
    assert plain.target_critic is not None
    share = mode_share(learner.target_actor, learner.target_critic, obs)
    assert max(seen) == 16 * 16
    assert share == mode_share(plain.target_actor, plain.target_critic, obs)


@pytest.mark.parametrize("size", [1, 2])
def test_the_mode_does_not_hang_on_the_last_bit(size: int) -> None:
    """In one dimension an even number of candidates always has two in the middle."""
    g = torch.Generator().manual_seed(0)
    action = torch.randn(200, 16, size, generator=g).clamp(-1, 1)
    nudged = action * (1 + 1e-7 * torch.randn(action.shape, generator=g))
    first, second = (ModeChoice().take(x, None, None) for x in (action, nudged))
    clear = margin_of_mode(action) > 1e-6
    assert clear.float().mean() > 0.9
    torch.testing.assert_close(first[clear], second[clear], atol=1e-5, rtol=0)


def test_what_was_seen_of_the_mode_goes_with_an_actor_inside_of_any_module() -> None:
    seen, other = (torch.nn.ModuleDict({"policy": FlowMapActor(2, 1, seed=i)}) for i in (0, 1))
    seen["policy"].mode_share = 0.75
    other["policy"].mode_share = 0.25
    other.load_state_dict(seen.state_dict())
    assert other["policy"].mode_share == 0.75
    other.load_state_dict(dict(seen.state_dict()))  # which does not say
    assert other["policy"].mode_share is None
