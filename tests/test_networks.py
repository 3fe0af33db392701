"""The default networks: what they see, and where their parameters come from."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gtp_policy.networks import FlowMapMLP, Mish, TimeEmbedding, linear, mlp, uniform_
from gtp_policy.testing import assert_same_distribution


@given(st.lists(st.floats(0.0, 1e4), min_size=1, max_size=5), st.integers(1, 16))
def test_embeddings_are_finite_and_bounded_down_to_zero(times: list[float], half: int) -> None:
    features = TimeEmbedding(2 * half)(torch.tensor(times))
    assert features.shape == (len(times), 2 * half)
    assert features.isfinite().all()
    assert features.abs().max() <= 1


def test_the_periods_are_what_the_docstring_says() -> None:
    embedding = TimeEmbedding(32, floor=1e-30).double()
    t = torch.tensor([1e-9, 0.5, 70.0]).double()
    slowest, fastest = [0, 16], [15, 31]
    # The fastest pair returns after a factor e of t, the slowest only after e^32: 14 decades.
    for factor, columns in ((math.e, fastest), (math.exp(32), slowest)):
        torch.testing.assert_close(
            embedding(t * factor)[:, columns], embedding(t)[:, columns], atol=1e-4, rtol=0
        )
    assert math.log10(math.exp(32)) == pytest.approx(14, abs=0.2)
    for factor in (math.exp(8), math.exp(16)):
        moved = (embedding(t * factor) - embedding(t))[:, slowest]
        assert moved.norm(dim=-1).min() > 1


def test_times_tell_apart_down_to_the_floor() -> None:
    t = torch.logspace(math.log10(0.002), math.log10(80.0), 1281)
    features = TimeEmbedding(32)(t)
    assert (features.diff(dim=0).norm(dim=-1) > 1e-3).all()
    below = TimeEmbedding(8, floor=0.01)(torch.tensor([0.0, 0.005, 0.01, 0.02]))
    assert torch.equal(below[0], below[1])
    assert torch.equal(below[0], below[2])
    assert not torch.equal(below[0], below[3])


@pytest.mark.parametrize("choices", [{"dim": 3}, {"dim": 0}, {"dim": -2}])
def test_an_embedding_has_an_even_dimension(choices: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="even number"):
        TimeEmbedding(**choices)


def test_a_floor_is_positive() -> None:
    for floor in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="`floor` is out of range"):
            TimeEmbedding(4, floor=floor)


def test_every_input_of_the_backbone_counts(generator: torch.Generator) -> None:
    network = FlowMapMLP(3, 2, (16, 8), 8, generator=generator)
    inputs = [torch.zeros(1, 3), torch.zeros(1, 2), torch.ones(1), torch.full((1,), 0.5)]
    reference = network(*inputs)
    assert reference.shape == (1, 2)
    for i in range(4):
        moved = [v + 0.25 if j == i else v for j, v in enumerate(inputs)]
        assert not torch.equal(network(*moved), reference)
    # The two times are not interchangeable.
    assert not torch.equal(network(*inputs[:2], inputs[3], inputs[2]), reference)


def test_the_layers_of_an_mlp(generator: torch.Generator) -> None:
    network = mlp(3, (5, 4), 2, generator=generator)
    kinds = [type(layer) for layer in network]
    assert kinds == [nn.Linear, Mish, nn.Linear, Mish, nn.Linear]
    assert [tuple(p.shape) for p in network.parameters()] == [
        (5, 3),
        (5,),
        (4, 5),
        (4,),
        (2, 4),
        (2,),
    ]


@pytest.mark.global_rng
def test_parameters_follow_torchs_own_law(generator: torch.Generator) -> None:
    ours = linear(9, 20_000, generator=generator)
    with torch.random.fork_rng():
        theirs = nn.Linear(9, 20_000)
    for name, parameter in ours.named_parameters():
        assert_same_distribution(
            parameter.detach().flatten(), dict(theirs.named_parameters())[name].detach().flatten()
        )


def test_parameters_come_from_the_generator() -> None:
    first, second, third = (
        linear(4, 3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
    assert not torch.equal(first.weight, third.weight)
    assert first.weight.requires_grad
    with torch.no_grad():
        uniform_(first.weight, 4, torch.Generator())
    assert first.weight.abs().max() <= 0.5
