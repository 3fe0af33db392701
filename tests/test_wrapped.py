"""Networks inside torch's wrappers: of several processes, of several devices, of a compiler."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gtp_policy import (
    AdvantageWeighter,
    FlowMapActor,
    FlowMapActorConfig,
    GTPLearner,
    GTPLoss,
    GTPLossConfig,
    LinearQGuidance,
    QEnsemble,
    QEnsembleConfig,
    act,
)
from gtp_policy.acting import CPUSnapshot
from gtp_policy.actor import ActionStatistics
from gtp_policy.errors import DataError
from gtp_policy.export.source import source_of
from gtp_policy.functional import ema_, unwrapped
from gtp_policy.testing import check_flow_map, parametrize_with_checks

OBS, ACT, ROWS = 3, 2, 8


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    """A group of one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "processes": DistributedDataParallel,
    "devices": DataParallel,
    "a compiler": compiled,
    "an average": AveragedModel,
    "an average, compiled": lambda module: compiled(AveragedModel(module)),
    "processes, compiled": lambda module: compiled(DistributedDataParallel(module)),
}
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())


@pytest.fixture(autouse=True)
def _forget_graphs(group: None) -> Iterator[None]:
    yield
    torch.compiler.reset()


def networks() -> tuple[FlowMapActor, QEnsemble]:
    statistics = ActionStatistics(mean=(0.5, -0.2), std=(0.1, 0.4))
    config = FlowMapActorConfig(hidden=(16, 8), action_statistics=statistics, sigma_data=0.7)
    return FlowMapActor(OBS, ACT, config), QEnsemble(OBS, ACT, QEnsembleConfig(hidden=(16, 8)))


def rows() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, OBS, generator=g), torch.rand(ROWS, ACT, generator=g) * 2 - 1


LOSSES: dict[str, dict[str, Any]] = {
    "default": {},
    "weights of times": {"time_weight": "edm"},
    "its own teacher, at zero": {"target": "stopgrad", "compare_at": "zero", "units": "position"},
}


@pytest.mark.slow
@every_wrapper
@pytest.mark.parametrize("choices", LOSSES.values(), ids=LOSSES.keys())
def test_the_loss_and_its_gradients_are_those_without_a_wrapper(
    wrap: Callable[[nn.Module], Any], choices: dict[str, Any]
) -> None:
    actor, _ = networks()
    wrapped, target = wrap(copy.deepcopy(actor)), copy.deepcopy(actor).requires_grad_(False)
    loss, weight = GTPLoss(GTPLossConfig(**choices)), AdvantageWeighter()(torch.zeros(ROWS))
    losses = []
    for one, slow in ((actor, target), (wrapped, target), (wrapped, compiled(target))):
        one.zero_grad()
        generator = torch.Generator().manual_seed(1)
        terms = loss(one, slow, *rows(), weight, progress=0.5, generator=generator)
        terms.loss.backward()
        losses.append(terms.loss.detach())
        for p, q in zip(actor.parameters(), one.parameters(), strict=True):
            assert q.grad is not None
            torch.testing.assert_close(q.grad, p.grad)
    torch.testing.assert_close(losses[1:], losses[:1] * 2)


@pytest.mark.parametrize("guided", [False, True])
def test_processes_exchange_every_gradient(guided: bool) -> None:
    """Calls around the wrapper would train each process on its own, without a word."""
    actor, critic = networks()
    wrapped, exchanged = DistributedDataParallel(actor), []

    def exchange(_: object, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
        exchanged.append(bucket.buffer().clone())
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    wrapped.register_comm_hook(None, exchange)
    target = copy.deepcopy(actor).requires_grad_(False)
    loss: Tensor = GTPLoss()(wrapped, target, *rows()).loss
    if guided:
        loss = loss + LinearQGuidance(scale=1.0).loss(wrapped, critic, rows()[0], rows()[1])[0]
    loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in actor.parameters() if p.grad is not None])
    assert gradients.numel() == sum(p.numel() for p in actor.parameters())
    sent = torch.cat(exchanged)
    torch.testing.assert_close(sent.abs().sort().values, gradients.abs().sort().values)


@every_wrapper
def test_wrapped_flow_maps_pass_every_check(wrap: Callable[[nn.Module], Any]) -> None:
    wrapped = wrap(networks()[0])
    check_flow_map(wrapped, obs_dim=OBS, action_dim=ACT, batch=4)
    mark = parametrize_with_checks([wrapped], obs_dim=OBS, action_dim=ACT, batch=4)
    for case in mark.args[1]:
        flow_map, check = case.values
        check(flow_map)


def test_an_average_is_the_target_of_a_loss() -> None:
    actor, _ = networks()
    average = AveragedModel(actor, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(actor)
    expected, got = (
        GTPLoss()(actor, target, *rows(), progress=0.5, generator=torch.Generator()).loss
        for target in (average.module, average)
    )
    assert torch.equal(got, expected)


@every_wrapper
def test_wrapped_networks_act_as_they_do_without(wrap: Callable[[nn.Module], Any]) -> None:
    actor, critic = networks()
    pair = wrap(actor), wrap(critic)
    obs, choices = rows()[0], dict[str, Any](candidates=3, deterministic=True)
    expected = act(actor, critic, obs, **choices)
    assert torch.equal(act(*pair, obs, **choices), expected)
    got = CPUSnapshot().act(*pair, obs, **choices)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    with pytest.raises(DataError, match="`actor` is of the wrong kind: got QEnsemble"):
        act(pair[1], None, obs)


@every_wrapper
def test_a_critic_learns_through_its_wrapper_and_guides_from_inside(
    wrap: Callable[[nn.Module], Any],
) -> None:
    actor, critic = networks()
    obs, action = rows()
    wrapped = wrap(critic)
    torch.testing.assert_close(wrapped(obs, action), critic(obs, action))
    noise = torch.ones(ROWS, ACT)
    expected = LinearQGuidance().loss(actor, critic, obs, noise)
    torch.testing.assert_close(LinearQGuidance().loss(wrap(actor), wrapped, obs, noise), expected)


@every_wrapper
def test_targets_follow_what_is_wrapped(wrap: Callable[[nn.Module], Any]) -> None:
    actor, _ = networks()
    target, wrapped = copy.deepcopy(actor).requires_grad_(False), wrap(actor)
    inside = unwrapped(wrapped)
    with torch.no_grad():
        for parameter in inside.parameters():
            parameter.add_(1.0)
    ema_(target.parameters(), wrapped.parameters(), 1.0)
    assert all(map(torch.equal, target.parameters(), inside.parameters()))
    assert type(inside) is FlowMapActor  # an average holds a copy of its own
    assert source_of(wrapped).actor is inside


@pytest.mark.parametrize("wrap", [DistributedDataParallel, DataParallel, AveragedModel])
def test_a_learner_says_that_it_takes_no_wrapper(wrap: Callable[[nn.Module], Any]) -> None:
    actor, critic = networks()
    with pytest.raises(DataError, match=f"got a {wrap.__name__}, expected a FlowMapActor"):
        GTPLearner(wrap(actor), critic)
    with pytest.raises(DataError, match="expected a QEnsemble"):
        GTPLearner(actor, wrap(critic))
