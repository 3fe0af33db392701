"""The policy: a flow map by structure, whatever its network, and its sampler."""

import copy
import io
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from gtp_policy import FlowMapActor, FlowMapActorConfig
from gtp_policy.actor import ActionStatistics
from gtp_policy.errors import DataError, ShapeError, StateMismatchError
from gtp_policy.functional import sample_flow
from gtp_policy.networks import linear
from gtp_policy.testing import (
    MixtureFlowMap,
    Probe,
    actors,
    check_boundary,
    check_flow_map,
    check_identity,
    probes,
)
from gtp_policy.times import KarrasTimes, LinearTimes, UniformTimes

OBS, ACT = 3, 2
PAPER = KarrasTimes(t_min=0.002, t_max=80.0)


class Zero(nn.Module):
    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return torch.zeros_like(x)


def small(**choices: Any) -> FlowMapActor:
    config = FlowMapActorConfig(**({"hidden": (16,), "time_dim": 4} | choices))
    return FlowMapActor(OBS, ACT, config)


# --- structure


@pytest.mark.slow
@given(actors(st.integers(1, 5), st.integers(1, 3)))
def test_an_actor_is_a_flow_map_whatever_its_parameters(actor: FlowMapActor) -> None:
    check_flow_map(actor, obs_dim=actor.obs_dim, action_dim=actor.action_dim, batch=8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fresh_actor_is_a_flow_map(dtype: torch.dtype) -> None:
    check_flow_map(small().to(dtype), obs_dim=OBS, action_dim=ACT)


@given(st.data())
def test_identity_and_boundary_are_bit_exact(data: st.DataObject) -> None:
    actor = data.draw(actors(OBS, ACT))
    probe: Probe = data.draw(probes(OBS, ACT, actor.times))
    check_identity(actor, probe, atol=0.0)
    check_boundary(actor, probe, atol=0.0)


@pytest.mark.parametrize("action_dim", [1, 7, 64])
@pytest.mark.parametrize("t_max", [1.0, 80.0, 1e4])
def test_dimensions_and_time_ranges(action_dim: int, t_max: float) -> None:
    config = FlowMapActorConfig(hidden=(8,), times=KarrasTimes(t_min=1e-6, t_max=t_max))
    actor = FlowMapActor(5, action_dim, config).double()
    check_flow_map(actor, obs_dim=5, action_dim=action_dim, batch=4)
    assert actor.sample(torch.zeros(3, 5).double()).abs().max() <= 1


@pytest.mark.parametrize(
    ("steps", "multiplier"),
    [(1, 3.906097e-5), (2, 1.196643e-3), (5, 3.421496e-3), (10, 4.704170e-3)],
)
def test_a_zero_network_multiplies_by_the_methods_numbers(steps: int, multiplier: float) -> None:
    config = FlowMapActorConfig(times=PAPER, sigma_data=0.5)
    actor = FlowMapActor(1, 2, config, network=Zero()).double()
    z = torch.tensor([[1.0, -0.25]]).double()
    got = actor.sample(torch.zeros(1, 1).double(), steps=steps, noise=z)
    expected = [80 * multiplier, -20 * multiplier]
    assert got[0].tolist() == pytest.approx(expected, rel=5e-7)


def test_a_zero_network_is_the_denoiser_of_a_normal_distribution() -> None:
    config = FlowMapActorConfig(sigma_data=0.3, times=KarrasTimes())
    actor = FlowMapActor(1, 1, config, network=Zero()).double()
    x, t = torch.tensor([[1.7]]).double(), torch.tensor([0.4]).double()
    got = actor.endpoint(torch.zeros(1, 1).double(), x, t, t)
    assert got.item() == pytest.approx(1.7 * 0.09 / (0.09 + 0.16))


class Echo(nn.Module):
    """A backbone that remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear(OBS + ACT + 2, ACT, generator=torch.Generator())
        self.seen: list[tuple[Tensor, ...]] = []

    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        self.seen.append((obs, x, t, s))
        return self.layer(torch.cat([obs, x, t.unsqueeze(-1), s.unsqueeze(-1)], -1))


def test_a_network_of_the_users_own() -> None:
    config = FlowMapActorConfig(sigma_data=0.3, times=KarrasTimes())
    actor = FlowMapActor(OBS, ACT, config, network=Echo())
    actor.normalizer.set_statistics_(torch.full((OBS,), 1.0), torch.full((OBS,), 2.0))
    obs, x = torch.full((1, OBS), 5.0), torch.full((1, ACT), 3.0)
    t, s = torch.tensor([0.4]), torch.tensor([0.1])
    got = actor.endpoint(obs, x, t, s)
    seen_obs, seen_x, seen_t, seen_s = actor.network.seen[0]
    assert seen_obs.tolist() == [[2.0] * OBS]  # normalised
    assert seen_x[0].tolist() == pytest.approx([6.0] * ACT)  # 1 / sqrt(0.09 + 0.16) = 2
    assert (seen_t, seen_s) == (t, s)
    raw = actor.network.layer(torch.cat([seen_obs, seen_x, t.unsqueeze(-1), s.unsqueeze(-1)], -1))
    torch.testing.assert_close(got, 0.36 * x + 0.24 * raw)
    actor.double()
    check_flow_map(actor, obs_dim=OBS, action_dim=ACT)


def test_an_empty_container_is_still_the_users_network() -> None:
    class Bag(nn.ModuleList):
        def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return 2 * x

    network = Bag()
    assert not network  # bool() of a container is that of its length
    assert FlowMapActor(OBS, ACT, network=network).network is network


# --- sampling


@pytest.mark.parametrize("steps", [None, 1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_is_the_flow_from_t_max_to_zero_clipped_at_the_end(
    steps: int | None, dtype: torch.dtype, generator: torch.Generator
) -> None:
    actor = small(steps=3, times=UniformTimes(t_max=4.0)).to(dtype)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.mul_(3)
    obs = torch.randn(64, OBS, generator=generator, dtype=dtype)
    z = torch.randn(64, ACT, generator=generator, dtype=dtype)
    x = 4.0 * z
    n = steps or 3
    for i in range(n):
        t, s = (torch.full((64,), 4.0 * (n - k) / n, dtype=dtype) for k in (i, i + 1))
        x = actor(obs, x, t, s)
    got = actor.sample(obs, steps=steps, noise=z)
    torch.testing.assert_close(got, x.clamp(-1, 1))
    assert got.dtype == dtype
    assert not got.requires_grad
    assert (x.abs() > 1).any()  # the clip had something to do
    assert (x.abs() < 1).any()
    grid = actor.times.grid(n, dtype=dtype)
    path = sample_flow(actor, obs, 4.0 * z, grid)
    torch.testing.assert_close(path[-1].clamp(-1, 1), got)


def test_noise_comes_from_the_generator() -> None:
    actor, obs = small(), torch.zeros(5, OBS)
    first, second, third = (
        actor.sample(obs, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    z = torch.randn(5, ACT, generator=torch.Generator().manual_seed(1))
    assert torch.equal(actor.sample(obs, noise=z), first)
    # Without one: the package's own stream, which goes on.
    assert not torch.equal(actor.sample(obs), actor.sample(obs))


def test_observations_move_the_action() -> None:
    actor = small()
    z = actor.fixed_noise.expand(2, -1)
    first, second = actor.sample(torch.tensor([[0.0] * OBS, [2.0] * OBS]), noise=z)
    assert not torch.equal(first, second)


def test_the_fixed_noise_is_part_of_the_policy() -> None:
    actor, obs = small(), torch.zeros(4, OBS)
    assert actor.fixed_noise.shape == (ACT,)
    assert (actor.fixed_noise != 0).all()
    assert "fixed_noise" in actor.state_dict()
    noise = actor.fixed_noise.expand(4, -1)
    actions = actor.sample(obs, noise=noise)
    assert torch.equal(actions, actor.sample(obs, noise=noise))
    torch.testing.assert_close(actions, actions[:1].expand(4, -1))
    other = FlowMapActor(OBS, ACT, seed=1)
    assert not torch.equal(other.fixed_noise, FlowMapActor(OBS, ACT).fixed_noise)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_zero_noise_is_no_deterministic_policy(steps: int) -> None:
    """Exactly between two modes the exact flow stays there: an action that is not in the data."""
    oracle = MixtureFlowMap([-0.7, 0.7], 0.05)
    grid = oracle.times.grid(steps, dtype=torch.float64)
    noise = FlowMapActor(1, 1).fixed_noise.double()
    obs, start = torch.zeros(2, 1).double(), torch.stack([torch.zeros(1).double(), noise])
    between, mode = sample_flow(oracle, obs, grid[0] * start, grid)[-1].squeeze(-1).tolist()
    assert between == pytest.approx(0.0, abs=1e-9)
    assert abs(mode) == pytest.approx(0.7, abs=0.2)


# --- state


def test_the_state_is_the_whole_policy(generator: torch.Generator) -> None:
    first = small()
    first.normalizer.set_statistics_(torch.full((OBS,), 3.0), torch.full((OBS,), 0.5))
    second = FlowMapActor(OBS, ACT, first.config, seed=9)
    obs = torch.randn(6, OBS, generator=generator)

    def act(actor: FlowMapActor) -> Tensor:
        return actor.sample(obs, noise=actor.fixed_noise.expand(6, -1))

    assert not torch.equal(act(first), act(second))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(act(first), act(second))
    assert torch.equal(act(copy.deepcopy(first)), act(first))


def test_a_copy_shares_nothing() -> None:
    actor = small()
    clone = copy.deepcopy(actor)
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.zero_()
    assert all(p.abs().max() > 0 for p in actor.parameters())


def test_seeds_decide_the_parameters() -> None:
    first, second, third = (
        torch.cat([p.flatten() for p in FlowMapActor(OBS, ACT, seed=seed).parameters()])
        for seed in (4, 4, 5)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_an_open_scale_is_one_half() -> None:
    assert FlowMapActorConfig().sigma_data is None
    assert FlowMapActor(OBS, ACT).config.sigma_data == FlowMapActor(OBS, ACT).sigma_data == 0.5
    assert small(sigma_data=0.2).sigma_data == 0.2


# --- errors


@pytest.mark.parametrize("dims", [(0, 1), (1, 0), (-1, 1)])
def test_dimensions_are_positive(dims: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="Dimensions are out of range"):
        FlowMapActor(*dims)


@pytest.mark.parametrize(
    ("field", "shapes"),
    [
        ("obs", {"obs": (4, OBS + 1)}),
        ("obs", {"obs": (OBS,)}),
        ("obs", {"obs": ()}),
        ("obs", {"obs": (4, OBS, 1)}),
        ("x", {"x": (4, ACT + 1)}),
        ("x", {"x": (3, ACT)}),
        ("x", {"x": (ACT,)}),
        ("t", {"t": (4, 1)}),
        ("t", {"t": ()}),
        ("s", {"s": (1,)}),
    ],
)
def test_wrong_shapes_are_named(field: str, shapes: dict[str, tuple[int, ...]]) -> None:
    full = {"obs": (4, OBS), "x": (4, ACT), "t": (4,), "s": (4,)} | shapes
    inputs = [torch.ones(shape) for shape in full.values()]
    for function in (small(), small().endpoint):
        with pytest.raises(ShapeError, match=f"`{field}` has the wrong shape"):
            function(*inputs)


def test_a_sample_refuses_what_makes_no_sense() -> None:
    actor, obs = small(), torch.zeros(4, OBS)
    for wrong in (torch.zeros(4, OBS + 1), torch.zeros(OBS)):
        with pytest.raises(ShapeError, match="`obs` has the wrong shape"):
            actor.sample(wrong)
    for noise in (torch.zeros(ACT), torch.zeros(3, ACT), torch.zeros(4, 1)):
        with pytest.raises(ShapeError):
            actor.sample(obs, noise=noise)


def test_large_noise_does_not_overflow() -> None:
    actor = FlowMapActor(OBS, ACT, FlowMapActorConfig(times=PAPER))
    action = actor.sample(torch.full((1, OBS), 1e3), noise=torch.full((1, ACT), 1e3))
    assert action.isfinite().all()
    assert math.isfinite(float(action.sum()))


@pytest.mark.parametrize(
    "other",
    [
        FlowMapActorConfig(sigma_data=0.1),
        FlowMapActorConfig(times=KarrasTimes(t_max=80.0)),
        FlowMapActorConfig(times=UniformTimes()),
    ],
)
def test_parameters_of_another_flow_map_are_refused(other: FlowMapActorConfig) -> None:
    saved = FlowMapActor(2, 1, other).state_dict()
    actor = FlowMapActor(2, 1)
    with pytest.raises(StateMismatchError, match="sigma_data"):
        actor.load_state_dict(saved)
    FlowMapActor(2, 1, other).load_state_dict(saved)  # where they belong, they load


def test_the_default_network_separates_the_smallest_time_from_zero() -> None:
    times = KarrasTimes(t_min=1e-5)
    actor = FlowMapActor(1, 1, FlowMapActorConfig(times=times))
    node = times.grid(20)[-2:-1]
    assert node < 1e-3
    embed = actor.network.embedding
    assert not torch.equal(embed(node), embed(torch.zeros(1)))


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (torch.zeros(2, OBS, dtype=torch.float64), r"dtype: got torch.float64, expected torch"),
        (torch.zeros(2, OBS, dtype=torch.int64), r"dtype: got torch.int64"),
        ([[0.0] * OBS], "no tensor: got list"),
    ],
)
def test_observations_from_outside_are_checked(obs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        FlowMapActor(OBS, ACT).sample(obs)


def test_a_single_observation_gets_a_hint() -> None:
    with pytest.raises(ShapeError, match=r"Use obs\[None\]"):
        FlowMapActor(OBS, ACT).sample(torch.zeros(OBS))


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_steps_are_a_positive_integer(steps: Any) -> None:
    with pytest.raises(ValueError, match="`steps` is out of range"):
        FlowMapActor(OBS, ACT).sample(torch.zeros(1, OBS), steps=steps)


class Narrow(nn.Module):
    """Returns one number per row, which would broadcast to every dimension of the action."""

    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return x[:, :1]


def test_a_backbone_of_the_wrong_width_is_refused() -> None:
    actor = FlowMapActor(OBS, 2, network=Narrow())
    with pytest.raises(ShapeError, match=r"output of the network.*got \(3, 1\), expected \(3, 2\)"):
        actor.endpoint(torch.zeros(3, OBS), torch.zeros(3, 2), torch.ones(3), torch.ones(3))


def test_states_from_before_linear_times_had_an_exponent_load() -> None:
    before = FlowMapActorConfig(times=LinearTimes(), embedding="log")
    actor = FlowMapActor(OBS, ACT, before)
    actor.set_extra_state({"sigma_data": 0.5, "times": {"kind": "linear"}})
    other = FlowMapActor(OBS, ACT, before.replace(times=LinearTimes(rho=2.0)))
    with pytest.raises(StateMismatchError, match="another flow map"):
        other.load_state_dict(actor.state_dict())


# --- actions standardised inside the flow

STATISTICS = ActionStatistics(mean=(0.9, -0.25), std=(0.01, 0.5))


def test_a_standardised_flow_ends_where_the_plain_one_does_moved_and_clipped(
    generator: torch.Generator,
) -> None:
    plain = FlowMapActor(OBS, ACT, FlowMapActorConfig(steps=2, sigma_data=0.5)).double()
    moved = FlowMapActor(
        OBS, ACT, FlowMapActorConfig(steps=2, sigma_data=0.5, action_statistics=STATISTICS)
    ).double()
    obs, z = torch.zeros(64, OBS).double(), torch.randn(64, ACT, generator=generator).double()
    grid = plain.times.grid(2).double()
    x = grid[0] * z
    for t, s in itertools.pairwise(grid):
        x = plain(obs, x, t.expand(64), s.expand(64))
    mean, std = (torch.tensor(s).double() for s in (STATISTICS.mean, STATISTICS.std))
    expected = (mean + std * x).clamp(-1, 1)
    for sample in (moved.sample, moved.sample_with_gradient):
        torch.testing.assert_close(sample(obs, noise=z).detach(), expected, rtol=0, atol=1e-7)


def test_a_state_belongs_to_its_statistics() -> None:
    other = FlowMapActor(OBS, ACT, FlowMapActorConfig(action_statistics=STATISTICS))
    with pytest.raises(StateMismatchError, match="action_statistics"):
        FlowMapActor(OBS, ACT).load_state_dict(other.state_dict())
    other.load_state_dict(FlowMapActor(OBS, ACT, other.config).state_dict())


def test_statistics_of_another_action_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got 2 dimensions, expected action_dim=3"):
        FlowMapActor(OBS, 3, FlowMapActorConfig(action_statistics=STATISTICS))
    with pytest.raises(ValidationError, match="got 2 and 1"):
        ActionStatistics(mean=(0.0, 0.0), std=(1.0,))
    with pytest.raises(ValidationError, match=r"greater than or equal to 0\.000001"):
        ActionStatistics(mean=(0.0,), std=(0.0,))


def test_a_dimension_that_hardly_varies_is_named_and_a_constant_one_is_not() -> None:
    with pytest.warns(UserWarning, match="Action dimension 1 varies by a std of 5e-05"):
        found = ActionStatistics.of(torch.zeros(2), torch.tensor([0.5, 5e-5]))
    assert found.std == (0.5, 1e-4)
    ActionStatistics.of(torch.ones(1), torch.zeros(1))
