"""The yardstick of the speed benchmark computes what the library computes."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import speed
from benchmarks.naive import NaiveGTP
from gtp_policy import GTPLearner, draw_times

WIDTH = 16


class SameDraws(NaiveGTP):
    """The naive transcription with parameters and draws of a learner."""

    def __init__(self, learner: GTPLearner, samples: int) -> None:
        super().__init__(
            speed.OBS, speed.ACT, width=WIDTH, samples=samples, max_grad_norm=speed.MAX_GRAD_NORM
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
        return torch.randn(rows, speed.ACT, generator=g)


@pytest.mark.global_rng
@pytest.mark.parametrize("samples", [1, 4])
def test_the_naive_transcription_is_the_same_algorithm(samples: int) -> None:
    learner = speed.library(samples, width=WIDTH)
    naive = SameDraws(learner, samples)
    for i in range(2):
        batch = speed.batch(i)
        told = naive.update(*batch)
        metrics = learner.update(batch).to_floats()
        assert told == pytest.approx({k: metrics[k] for k in told}, rel=1e-4)
    start = speed.library(samples, width=WIDTH)
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
    learner = speed.library(width=WIDTH)
    naive = SameDraws(learner, 1)
    obs, noise = (
        torch.randn(6, speed.OBS, generator=generator),
        torch.randn(6, speed.ACT, generator=generator),
    )
    naive.noise = lambda purpose, rows: noise  # type: ignore[method-assign]
    expected = learner.target_actor.sample(obs, noise=noise).numpy()
    np.testing.assert_allclose(naive.act(obs.numpy()), expected, atol=1e-6)
    assert np.abs(expected).max() > 1e-2


@pytest.mark.global_rng
def test_the_benchmark_runs_and_says_what_it_measured() -> None:
    result = speed.run(rounds=2, width=4, smoke=True)
    assert set(result["update"]) == {"M = 1", "M = 4"}
    assert set(result["action"]) == {"K = 1", "K = 2", "K = 5"}
    for of in (*result["update"].values(), *result["action"].values()):
        for entry in of.values():
            assert 0 < entry["ms"]["q1"] <= entry["ms"]["median"] <= entry["ms"]["q3"]
            assert entry["p50"] <= entry["p99"] <= entry["max"]
        assert of["naive"]["times_faster_than_naive"]["median"] == 1
    for groups in result["profile"].values():
        assert groups["matrix products"]["operators"] >= 20


def test_rounds_are_interleaved() -> None:
    order: list[str] = []
    contenders: speed.Contenders = {
        name: (lambda name=name: order.append(name)) for name in ("a", "b")
    }
    times = speed.measure(contenders, rounds=2, calls=2)
    assert order[6:] == ["a", "a", "b", "b"] * 2
    assert times["a"].shape == (2, 2)
    slow = {"naive": np.full((3, 2), 6.0), "fast": np.full((3, 2), 2.0)}
    assert speed.compare(slow)["fast"]["times_faster_than_naive"]["median"] == 3


def test_every_operator_belongs_to_one_group() -> None:
    operators = [op for ops in speed.GROUPS.values() for op in ops]
    assert len(operators) == len(set(operators))
    spent = speed.profile(lambda: nn.functional.mish(torch.ones(4) + 1), calls=3)
    assert spent["Mish, as one operator"]["operators"] == 1
    assert spent["elementwise arithmetic"]["operators"] == 1


def test_the_page_says_what_the_json_says() -> None:
    text = speed.PAGE.read_text(encoding="utf-8")
    record = json.loads(speed.RESULT.read_text(encoding="utf-8"))
    begin, end = text.index(speed.START), text.index(speed.END) + len(speed.END)
    assert text[begin:end] == speed.render(record), "run: python -m benchmarks.speed --page"


def test_the_floor_counts_what_torch_counts() -> None:
    """The products of an update by torch's own counter, less those the floor folds away."""
    learner = speed.library(samples=1)
    learner.update(speed.batch())
    with FlopCounterMode(display=False) as counter:
        learner.update(speed.batch())
    counted = counter.get_total_flops() / 1e9
    assert speed.floor(2, speed.WIDTH)["M = 1"]["gflop"] == pytest.approx(counted, rel=0.05)
