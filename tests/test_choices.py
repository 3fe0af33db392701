"""Choosing among candidates: the best, or one by softmax."""

import pytest
import torch
from torch import Tensor

from gtp_policy import FlowMapActor, QEnsemble, act
from gtp_policy.acting import ArgmaxChoice, SoftmaxChoice
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
