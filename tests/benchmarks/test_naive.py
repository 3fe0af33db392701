"""The yardstick of the speed benchmarks computes what the library computes."""

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.contenders import MAX_GRAD_NORM, Case, batch, library
from benchmarks.naive import NaiveGTP
from gtp_policy import GTPLearner
from gtp_policy.times import draw_times

CASE = Case(width=16)


class SameDraws(NaiveGTP):
    """The naive transcription with parameters and draws of a learner."""

    def __init__(self, learner: GTPLearner, samples: int) -> None:
        super().__init__(
            CASE.obs_dim,
            CASE.action_dim,
            width=CASE.width,
            samples=samples,
            max_grad_norm=MAX_GRAD_NORM,
        )
        self.learner = learner
        for mine, theirs in zip(
            [*self.actors(), *self.critics()], self.of_the_learner(), strict=True
        ):
            mine.data.copy_(theirs)

    def actors(self) -> list[Tensor]:
        return [*self.actor.parameters(), *self.target_actor.parameters()]

    def critics(self) -> list[Tensor]:
        both = (self.critic, self.target_critic)
        return [p for critic in both for q in (critic.q1, critic.q2) for p in q.parameters()]

    def of_the_learner(self) -> list[Tensor]:
        result = [*self.learner.actor.parameters(), *self.learner.target_actor.parameters()]
        for critic in (self.learner.critic, self.learner.target_critic):
            for member in range(2):
                for weight, bias in zip(critic.weights, critic.biases, strict=True):
                    result += [weight[member].T, bias[member, 0]]
        return [tensor.detach() for tensor in result]

    def times(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        self.loss_stream = self.learner.stream("loss")
        schedule = self.learner.actor.times
        return draw_times(schedule, self.intervals, rows, generator=self.loss_stream)

    def noise(self, purpose: str, rows: int) -> Tensor:
        g = self.loss_stream if purpose == "loss" else self.learner.stream(purpose)
        return torch.randn(rows, CASE.action_dim, generator=g)


@pytest.mark.global_rng
@pytest.mark.parametrize("samples", [1, 4])
def test_the_naive_transcription_is_the_same_algorithm(samples: int) -> None:
    learner = library(CASE.but(samples=samples))
    naive = SameDraws(learner, samples)
    for i in range(2):
        minibatch = batch(CASE, seed=i)
        reported = naive.update(*minibatch.present())
        metrics = learner.update(minibatch).to_floats()
        assert reported == pytest.approx({k: metrics[k] for k in reported}, rel=1e-4)
    start = library(CASE.but(samples=samples))
    moved = 0.0
    pairs = zip([*naive.actors(), *naive.critics()], naive.of_the_learner(), strict=True)
    for mine, theirs in pairs:
        # An Adam step is 3e-4 whatever the gradient: a small one's sign is rounding.
        torch.testing.assert_close(mine.detach(), theirs, atol=5e-5, rtol=0)
    for before, after in zip(start.parameters(), learner.parameters(), strict=True):
        moved = max(moved, float((before - after).detach().abs().max()))
    assert moved > 5e-4


@pytest.mark.global_rng
def test_the_naive_sampler_is_the_same_sampler(generator: torch.Generator) -> None:
    learner = library(CASE)
    naive = SameDraws(learner, 1)
    obs, noise = (
        torch.randn(6, CASE.obs_dim, generator=generator),
        torch.randn(6, CASE.action_dim, generator=generator),
    )
    naive.noise = lambda purpose, rows: noise  # type: ignore[method-assign]
    expected = learner.target_actor.sample(obs, noise=noise).numpy()
    np.testing.assert_allclose(naive.act(obs.numpy()), expected, atol=1e-6)
    assert np.abs(expected).max() > 1e-2
