"""Guidance: what it adds to the loss, who gets the gradient, and what it leaves out."""

import copy
import itertools
from typing import Any

import pytest
import torch

from gtp_policy import (
    AdvantageGuidance,
    AdvantageWeighterConfig,
    ExpectileBaseline,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    LinearQGuidance,
    NoGuidance,
    QEnsembleConfig,
    Transitions,
)
from gtp_policy.guidance import Guidance
from gtp_policy.kernels import using

OBS, ACT, BATCH = 3, 2, 32


def learner_with(guidance: Guidance, *, critic: bool = True, **choices: Any) -> GTPLearner:
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(16,), time_dim=4, steps=3),
        critic=QEnsembleConfig(hidden=(16,)) if critic else None,
        learner=GTPLearnerConfig(guidance=guidance, **{"guidance_start": 0, **choices}),
    )
    return GTPLearner.build(OBS, ACT, config)


def batch(seed: int = 0) -> Transitions:
    g = torch.Generator().manual_seed(seed)
    obs, following = torch.randn(2, BATCH, OBS, generator=g)
    action = torch.rand(BATCH, ACT, generator=g) - 0.5
    return Transitions(obs, action, action[:, 0], following, torch.full((BATCH,), 0.9))


def parameters(learner: GTPLearner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.actor.parameters()])


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("steps", [None, 1])
def test_the_term_by_hand(normalize: bool, steps: int | None) -> None:
    guidance = LinearQGuidance(scale=0.25, normalize=normalize, steps=steps)
    learner = learner_with(guidance)
    actor, critic, obs = learner.actor, learner.critic, batch().obs
    noise = torch.randn(BATCH, ACT, generator=torch.Generator().manual_seed(1))
    term, mean = guidance.loss(actor, critic, obs, noise)
    q = critic(obs, actor.sample(obs, noise=noise, steps=steps or 3)).amin(0).detach()
    assert mean.item() == pytest.approx(q.mean().item(), rel=1e-5)
    scale = q.abs().mean() if normalize else 1.0
    assert term.item() == pytest.approx(float(-0.25 * q.mean() / scale), rel=1e-4)
    term.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in actor.parameters())
    assert all(p.grad is None for p in critic.parameters())


def test_a_small_step_along_the_gradient_raises_q() -> None:
    learner = learner_with(LinearQGuidance(scale=1.0))
    guidance, obs = learner.config.guidance, batch().obs
    noise = torch.randn(BATCH, ACT, generator=torch.Generator().manual_seed(1))
    assert isinstance(guidance, LinearQGuidance)
    term, before = guidance.loss(learner.actor, learner.critic, obs, noise)
    term.backward()
    gradients = [p.grad for p in learner.actor.parameters() if p.grad is not None]
    slope = sum(float(g.square().sum()) for g in gradients)
    with torch.no_grad():
        for p in learner.actor.parameters():
            p -= 1e-2 * p.grad
    _, after = guidance.loss(learner.actor, learner.critic, obs, noise)
    # The change of q is the squared norm of its gradient times the step, to first order.
    assert float(after - before) == pytest.approx(1e-2 * slope, rel=0.1)


def test_an_update_steps_along_both_terms() -> None:
    guided = learner_with(LinearQGuidance(scale=0.5))
    plain = learner_with(NoGuidance())
    data = batch()
    before = copy.deepcopy(guided.actor)
    metrics = guided.update(data)
    plain.update(data)
    noise = torch.randn(BATCH, ACT, generator=plain_stream(plain, "guidance"))
    term, q = guided.config.guidance.loss(before, guided.critic, data.obs, noise)  # type: ignore[union-attr]
    term.backward()
    for ours, theirs, extra in zip(
        guided.actor.parameters(), plain.actor.parameters(), before.parameters(), strict=True
    ):
        torch.testing.assert_close(ours.grad, theirs.grad + extra.grad, atol=1e-7, rtol=1e-4)
    assert metrics.guided_q is not None
    assert metrics.guided_q.item() == pytest.approx(q.item(), rel=1e-5)
    assert metrics.weight_mean is None


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("steps", [None, 1])
def test_weights_and_the_gradient_of_q_add_up(engine: Any, steps: int | None) -> None:
    """The losses as advantage guidance weighs them, and the pull of Q on top."""
    both = learner_with(LinearQGuidance(scale=0.5, steps=steps, weighted=True))
    weights = learner_with(AdvantageGuidance())
    data, before = batch(), copy.deepcopy(both.actor)
    with using(engine):
        metrics, expected = both.update(data), weights.update(data)
    assert metrics.weight_ess is not None
    assert metrics.weight_ess.item() == pytest.approx(expected.weight_ess.item(), rel=1e-5)  # type: ignore[union-attr]
    assert metrics.weight_ess.item() < 0.99
    noise = torch.randn(BATCH, ACT, generator=plain_stream(both, "guidance"))
    guidance = both.config.guidance
    assert isinstance(guidance, LinearQGuidance)
    assert both.critic is not None
    term, _ = guidance.loss(before, both.critic, data.obs, noise)
    term.backward()
    for ours, theirs, extra in zip(
        both.actor.parameters(), weights.actor.parameters(), before.parameters(), strict=True
    ):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert extra.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad + extra.grad, atol=1e-6, rtol=1e-4)


def test_clipped_coordinates_have_no_gradient_by_hand_either() -> None:
    """A jump far out of bounds: nothing pulls where the action cannot move."""
    learner = learner_with(LinearQGuidance(scale=10.0, steps=1))
    plain = learner_with(NoGuidance())
    with torch.no_grad():
        for own in (learner, plain):
            for actor in (own.actor, own.target_actor):
                actor.network.mlp[-1].bias.fill_(50.0)  # type: ignore[index, union-attr]
    learner.update(batch())
    plain.update(batch())
    for ours, theirs in zip(learner.actor.parameters(), plain.actor.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_share_of_effective_samples_is_kept_while_advantages_change(engine: Any) -> None:
    """Update by update, and alike after a restart: the temperature has no memory."""
    config = learner_with(NoGuidance()).full_config.replace(
        weighter=AdvantageWeighterConfig(effective_share=0.5, signed=True, max_weight=1e6),
        learner=GTPLearnerConfig(guidance=AdvantageGuidance(), critic_lr=1e-2, guidance_start=0),
    )
    learner, resumed = (GTPLearner.build(OBS, ACT, config) for _ in range(2))
    spreads = []
    with using(engine):
        for update in range(12):
            if update == 6:
                resumed.load_state_dict(copy.deepcopy(learner.state_dict()))
            metrics = learner.update(batch(update)).to_floats()
            assert metrics["weight_ess"] == pytest.approx(0.5, abs=1e-3)
            spreads.append(metrics["advantage_std"])
            if update >= 6:
                assert resumed.update(batch(update)).to_floats() == metrics
    assert max(spreads) > 2 * min(spreads)
    assert torch.equal(parameters(learner), parameters(resumed))


def plain_stream(learner: GTPLearner, name: str) -> torch.Generator:
    learner.updates -= 1
    stream = learner.stream(name)
    learner.updates += 1
    return stream


def test_without_guidance_the_actor_is_a_clone_whatever_the_critic_thinks() -> None:
    learners = [
        learner_with(NoGuidance()),
        learner_with(NoGuidance(), critic=False),
        learner_with(LinearQGuidance(scale=0.0)),
        learner_with(NoGuidance(), baseline=ExpectileBaseline(hidden=(8,))),
    ]
    with using("reference"):  # a clone has a faster way, which rounds apart
        for update, learner in itertools.product(range(3), learners):
            learner.update(batch(update))
    first, *others = map(parameters, learners)
    assert all(torch.equal(first, other) for other in others)
    # The same as weights of temperature 0.
    config = learners[0].full_config
    zero = GTPLearner.build(
        OBS,
        ACT,
        config.replace(
            weighter=AdvantageWeighterConfig(eta=0.0),
            learner=config.learner.replace(guidance={"kind": "advantage"}),
        ),
    )
    for update in range(3):
        zero.update(batch(update))
    torch.testing.assert_close(parameters(zero), first, atol=1e-6, rtol=1e-5)


def test_metrics_say_what_was_computed() -> None:
    for guidance, expected in (
        (NoGuidance(), set()),
        (LinearQGuidance(), {"guided_q"}),
    ):
        metrics = learner_with(guidance).update(batch()).to_floats()
        common = {"actor_loss", "consistency", "flow", "actor_grad_norm"}
        common |= {"critic_loss", "critic_grad_norm", "q_mean"}
        assert set(metrics) == common | expected


def test_linear_q_needs_a_critic() -> None:
    with pytest.raises(ValueError, match="needs a critic: got critic=None"):
        learner_with(LinearQGuidance(), critic=False)


def test_a_resumed_run_guides_alike() -> None:
    one, two = (learner_with(LinearQGuidance(scale=0.1)) for _ in range(2))
    for update in range(2):
        one.update(batch(update))
    two.update(batch(0))
    resumed = learner_with(LinearQGuidance(scale=0.1))
    resumed.load_state_dict(two.state_dict())
    resumed.update(batch(1))
    assert torch.equal(parameters(one), parameters(resumed))
