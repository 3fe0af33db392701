"""The critic: independent members, and an expectile that is one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.nn import functional

from gtp_policy import QEnsemble, QEnsembleConfig
from gtp_policy.critic import ValueNetwork, expectile_loss
from gtp_policy.errors import ShapeError

OBS, ACT = 3, 2


def ensemble(
    *, layer_norm: bool = False, members: int = 3, seed: int = 0, activation: str = "mish"
) -> QEnsemble:
    config = QEnsembleConfig(
        hidden=(7, 5), members=members, layer_norm=layer_norm, activation=activation
    )
    return QEnsemble(OBS, ACT, config, seed=seed)


def data(generator: torch.Generator, batch: int = 6) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(batch, OBS, generator=generator),
        torch.rand(batch, ACT, generator=generator) * 2 - 1,
    )


def alone(critic: QEnsemble, member: int, obs: Tensor, action: Tensor) -> Tensor:
    """One member as a network of torch's own layers."""
    x = torch.cat([obs, action], -1)
    last = len(critic.weights) - 1
    for i, (weight, bias) in enumerate(zip(critic.weights, critic.biases, strict=True)):
        x = functional.linear(x, weight[member].T, bias[member, 0])
        if i == last:
            return x[:, 0]
        if critic.config.layer_norm:
            gain, shift = critic.gains[i][member, 0], critic.shifts[i][member, 0]
            x = functional.layer_norm(x, x.shape[-1:], gain, shift)
        if critic.config.activation == "mish":
            x = x * torch.tanh(functional.softplus(x))
        elif critic.config.activation == "gelu":
            x = x * (1 + torch.erf(x / 2**0.5)) / 2
        else:
            x = x * (x > 0)
    raise AssertionError


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("activation", ["mish", "gelu", "relu"])
def test_every_member_is_a_separate_network(
    layer_norm: bool, members: int, activation: str, generator: torch.Generator
) -> None:
    critic = ensemble(layer_norm=layer_norm, members=members, activation=activation).double()
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.normal_(generator=generator)
    obs, action = (v.double() for v in data(generator))
    together = critic(obs, action)
    assert together.shape == (members, 6)
    for j in range(members):
        torch.testing.assert_close(together[j], alone(critic, j, obs, action))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_every_parameter_learns_and_members_do_not_mix(
    layer_norm: bool, generator: torch.Generator
) -> None:
    critic = ensemble(layer_norm=layer_norm)
    critic(*data(generator))[1].square().sum().backward()
    for name, parameter in critic.named_parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad[1].abs().max() > 0, name
        assert (parameter.grad[[0, 2]] == 0).all(), name


def test_members_start_apart_and_seeds_decide() -> None:
    critic = ensemble()
    for weight in critic.weights:
        assert not torch.equal(weight[0], weight[1])
    first, second, third = (
        torch.cat([p.flatten() for p in ensemble(seed=seed).parameters()]) for seed in (4, 4, 5)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_parameters_start_like_torchs_layers() -> None:
    critic = QEnsemble(20, 5, QEnsembleConfig(hidden=(100,), members=20))
    for parameter, inputs in ((critic.weights[0], 25), (critic.biases[0], 25)):
        bound = 1 / inputs**0.5
        uniform = stats.uniform(-bound, 2 * bound)
        # Kolmogorov-Smirnov: a correct law fails with probability 1e-6.
        p = stats.kstest(parameter.detach().flatten().numpy(), uniform.cdf).pvalue
        assert p > 1e-6


def test_observations_are_normalised() -> None:
    critic = ensemble()
    obs, action = torch.full((1, OBS), 5.0), torch.zeros(1, ACT)
    expected = critic(torch.full((1, OBS), 2.0), action)
    critic.normalizer.set_statistics_(torch.ones(OBS), torch.full((OBS,), 2.0))
    torch.testing.assert_close(critic(obs, action), expected)


@pytest.mark.parametrize(
    ("field", "obs", "action"),
    [
        ("obs", (6, OBS + 1), (6, ACT)),
        ("obs", (OBS,), (6, ACT)),
        ("action", (6, OBS), (6, ACT + 1)),
        ("action", (6, OBS), (1, ACT)),
        ("action", (6, OBS), (ACT,)),
    ],
)
def test_wrong_shapes_are_named(field: str, obs: tuple[int, ...], action: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=f"`{field}` has the wrong shape"):
        ensemble()(torch.zeros(obs), torch.zeros(action))


@pytest.mark.parametrize("dims", [(0, 1), (1, 0)])
def test_dimensions_are_positive(dims: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="Dimensions are out of range"):
        QEnsemble(*dims)


def test_the_value_network(generator: torch.Generator) -> None:
    value = ValueNetwork(OBS, (8,), seed=3)
    obs, _ = data(generator)
    out = value(obs)
    assert out.shape == (6,)
    assert len(out.unique()) == 6
    assert torch.equal(out, ValueNetwork(OBS, (8,), seed=3)(obs))
    assert not torch.equal(out, ValueNetwork(OBS, (8,), seed=4)(obs))
    value.normalizer.set_statistics_(torch.ones(OBS), torch.full((OBS,), 2.0))
    torch.testing.assert_close(value(2 * obs + 1), out)


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.7, 0.9])
@given(values=st.lists(st.integers(-800, 800).map(lambda n: n / 8), min_size=2, max_size=20))
def test_the_minimiser_is_the_expectile(expectile: float, values: list[float]) -> None:
    expected = float(stats.expectile(np.array(values), alpha=expectile))
    q = torch.tensor(values, dtype=torch.float64)
    v = torch.tensor(expected, dtype=torch.float64, requires_grad=True)
    loss = expectile_loss(q, v.expand(len(q)), expectile).mean()
    (slope,) = torch.autograd.grad(loss, v)
    # Strongly convex: its minimum is where the slope is 0, and nowhere else.
    assert abs(float(slope)) < 1e-5  # the oracle's own root search stops at 1e-8 of the range
    for shift in (-0.1, 0.1):
        moved = expectile_loss(q, (v + shift).detach().expand(len(q)), expectile).mean()
        assert moved > loss


def test_the_expectile_loss_refuses_to_broadcast() -> None:
    with pytest.raises(ShapeError, match="`value` has the wrong shape"):
        expectile_loss(torch.zeros(4), torch.zeros(4, 1), 0.7)
