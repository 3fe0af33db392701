"""Acting: candidates and the copies on the CPU of networks that live elsewhere."""

import concurrent.futures
import copy
import gc
import io
import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gtp_policy import (
    FlowMapActor,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    QEnsemble,
    QEnsembleConfig,
    acting,
)
from gtp_policy.acting import CPUSnapshot, ModeChoice, act
from gtp_policy.errors import DataError, ShapeError
from gtp_policy.networks import linear

OBS, ACT = 3, 2


def networks() -> tuple[FlowMapActor, QEnsemble]:
    hidden = (16, 8)
    actor = FlowMapActor(OBS, ACT, FlowMapActorConfig(hidden=hidden))
    return actor, QEnsemble(OBS, ACT, QEnsembleConfig(hidden=hidden))


def observations(rows: int) -> Tensor:
    return torch.randn(rows, OBS, generator=torch.Generator().manual_seed(1))


def stream() -> torch.Generator:
    return torch.Generator().manual_seed(2)


CHOICES: list[dict[str, Any]] = [
    {},
    {"steps": 2},
    {"candidates": 3},
    {"deterministic": True},
    {"deterministic": True, "candidates": 3, "steps": 1},
]


@pytest.mark.parametrize("rows", [1, 10, 33])
@pytest.mark.parametrize("choices", CHOICES)
def test_a_snapshot_acts_as_its_networks(rows: int, choices: dict[str, Any]) -> None:
    actor, critic = networks()
    snapshot, obs = CPUSnapshot(), observations(rows)
    for _ in range(2):
        expected = act(actor, critic, obs, generator=stream(), **choices)
        got = snapshot.act(actor, critic, obs, stamp=0, generator=stream(), **choices)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def double(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)


def load(module: nn.Module) -> None:
    module.load_state_dict(
        {k: 2 * v if v.is_floating_point() else v for k, v in module.state_dict().items()}
    )


def swap(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data = 2 * parameter.data


def normalise(module: nn.Module) -> None:
    module.normalizer.set_statistics_(torch.ones(OBS), torch.full((OBS,), 3.0))


def replace(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Sequential):
            part[2] = linear(16, 8, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("change", [double, load, swap, normalise])
@pytest.mark.parametrize("which", [0, 1])
def test_a_change_is_noticed_without_a_new_stamp(
    which: int, change: Callable[[nn.Module], None]
) -> None:
    pair, snapshot, obs = networks(), CPUSnapshot(), observations(4)
    snapshot.act(*pair, obs, stamp=0, candidates=4, deterministic=True)
    change(pair[which])
    got = snapshot.act(*pair, obs, stamp=0, candidates=4, deterministic=True)
    expected = act(*pair, obs, candidates=4, deterministic=True)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_new_layers_activations_and_configs_are_noticed() -> None:
    actor, _ = networks()
    snapshot, obs = CPUSnapshot(), observations(4)

    def check() -> Tensor:
        got = snapshot.act(actor, None, obs, stamp=0, deterministic=True)
        expected = act(actor, None, obs, deterministic=True)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
        return got

    before = [check()]
    replace(actor)
    before.append(check())
    actor.network.mlp[1] = nn.ReLU()
    before.append(check())
    actor.config = actor.config.replace(steps=2)
    before.append(check())
    assert len({tuple(action.flatten().tolist()) for action in before}) == 4


def test_what_tensors_do_not_count_needs_a_stamp() -> None:
    actor, _ = networks()
    snapshot, obs = CPUSnapshot(), observations(4)
    before = snapshot.act(actor, None, obs, stamp=0, deterministic=True)
    for parameter in actor.parameters():
        parameter.data.mul_(2)  # as the replay of a CUDA graph would
    assert torch.equal(snapshot.act(actor, None, obs, stamp=0, deterministic=True), before)
    got = snapshot.act(actor, None, obs, stamp=1, deterministic=True)
    torch.testing.assert_close(got, act(actor, None, obs, deterministic=True), atol=1e-6, rtol=0)
    assert not torch.equal(got, before)


def test_few_rows_never_reach_the_networks_and_nothing_is_copied_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actor, critic = networks()
    sampled, copied = [], []
    original = FlowMapActor.sample
    monkeypatch.setattr(
        FlowMapActor,
        "sample",
        lambda self, *a, **k: sampled.append(self) or original(self, *a, **k),
    )
    fill = acting._copy_all_
    monkeypatch.setattr(acting, "_copy_all_", lambda *a: copied.append(a) or fill(*a))
    snapshot = CPUSnapshot()
    for _ in range(3):
        snapshot.act(actor, critic, observations(16), stamp=0, candidates=2)
    assert actor not in sampled
    assert len({id(module) for module in sampled}) == 1
    assert not copied
    snapshot.act(actor, critic, observations(17), stamp=0, candidates=2)
    assert sampled[-1] is actor
    double(actor)
    for _ in range(3):
        snapshot.act(actor, critic, observations(16), stamp=0, candidates=2)
    assert len(copied) == 1  # the critic was not written to
    assert sampled[-1] is sampled[0]


def test_a_method_of_its_own_is_not_copied() -> None:
    actor, _ = networks()
    snapshot, obs = CPUSnapshot(), observations(4)
    layer = actor.network.mlp[0]
    before = snapshot.act(actor, None, obs, stamp=0, deterministic=True)
    layer.forward = lambda x: nn.functional.linear(x, layer.weight)  # what it holds stays there
    got = snapshot.act(actor, None, obs, stamp=0, deterministic=True)
    assert snapshot._copies["actor"].module is None
    assert not torch.equal(got, before)
    torch.testing.assert_close(got, act(actor, None, obs, deterministic=True), atol=1e-6, rtol=0)
    del layer.forward
    assert torch.equal(snapshot.act(actor, None, obs, stamp=0, deterministic=True), before)


def test_copies_are_good_outside_inference_mode_too() -> None:
    actor, _ = networks()
    snapshot, obs = CPUSnapshot(), observations(4)
    with torch.inference_mode():
        snapshot.act(actor, None, obs, stamp=0, deterministic=True)
    double(actor)
    got = snapshot.act(actor, None, obs, stamp=1, deterministic=True)
    torch.testing.assert_close(got, act(actor, None, obs, deterministic=True), atol=1e-6, rtol=0)


def test_a_snapshot_says_what_act_says() -> None:
    actor, critic = networks()
    snapshot = CPUSnapshot()
    for rows in (4, 40):
        with pytest.raises(ShapeError, match="expected \\(B, 3\\)"):
            snapshot.act(actor, critic, torch.zeros(rows, 4), stamp=0)
        with pytest.raises(DataError, match="wrong dtype"):
            snapshot.act(actor, critic, observations(rows).double(), stamp=0)
        with pytest.raises(ValueError, match="`candidates` is out of range: got 0"):
            snapshot.act(actor, critic, observations(rows), stamp=0, candidates=0)
        with pytest.raises(ValueError, match="needs a critic"):
            snapshot.act(actor, None, observations(rows), stamp=0, candidates=2)


@pytest.mark.parametrize("with_critic", [False, True])
def test_a_mode_is_taken_of_a_copy_without_a_critic(with_critic: bool) -> None:
    actor, critic = networks()
    snapshot = CPUSnapshot()
    for rows in (2, 40):
        call = (actor, critic if with_critic else None, observations(rows))
        choices: dict[str, Any] = {"candidates": 4, "choice": ModeChoice(), "deterministic": True}
        got = snapshot.act(*call, **choices)
        torch.testing.assert_close(got, act(*call, **choices), atol=1e-5, rtol=0)
    assert list(snapshot._copies) == ["actor"]


def test_threads_share_a_snapshot() -> None:
    actor, _ = networks()
    snapshot, obs = CPUSnapshot(), observations(2)
    expected = act(actor, None, obs, deterministic=True)
    results: list[Tensor] = []

    def run() -> None:
        for i in range(50):
            results.append(snapshot.act(actor, None, obs, stamp=i, deterministic=True))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 200
    for result in results:
        torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


def test_copies_and_pickles_start_empty() -> None:
    actor, _ = networks()
    snapshot, obs = CPUSnapshot(), observations(2)
    expected = snapshot.act(actor, None, obs, stamp=0, deterministic=True)
    file = io.BytesIO()
    torch.save(snapshot, file)
    file.seek(0)
    for other in (copy.deepcopy(snapshot), torch.load(file, weights_only=False)):
        assert not other._copies
        assert torch.equal(other.act(actor, None, obs, stamp=0, deterministic=True), expected)


def test_a_copy_keeps_no_actor_alive() -> None:
    actor, critic = networks()
    acting._SNAPSHOTS.setdefault(actor, CPUSnapshot()).act(actor, critic, observations(1), stamp=0)
    before = len(acting._SNAPSHOTS)
    del actor
    gc.collect()
    assert len(acting._SNAPSHOTS) == before - 1


def test_a_copy_is_not_renewed_while_another_thread_samples_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actor, _ = networks()
    snapshot, obs = CPUSnapshot(), observations(1)
    snapshot.act(actor, None, obs, deterministic=True)
    sampling, go_on, renewed = threading.Event(), threading.Event(), []
    sample, renew = FlowMapActor.sample, acting._Copy.renew

    def slow(self: FlowMapActor, *args: Any, **kwargs: Any) -> Any:
        sampling.set()
        assert go_on.wait(60)
        return sample(self, *args, **kwargs)

    monkeypatch.setattr(FlowMapActor, "sample", slow)
    first = threading.Thread(target=snapshot.act, args=(actor, None, obs))
    first.start()
    assert sampling.wait(60)
    monkeypatch.setattr(
        acting._Copy, "renew", lambda self, stamp: renewed.append(1) or renew(self, stamp)
    )
    second = threading.Thread(target=snapshot.act, args=(actor, None, obs))
    second.start()
    second.join(0.2)
    assert renewed == []  # it waits for its turn
    go_on.set()
    for thread in (first, second):
        thread.join(60)
    assert renewed == [1]


def _sampled(rank: int | None) -> list[float]:
    """What one worker samples first; without a number, from the package's own stream."""
    learner = GTPLearner.build(3, 2, GTPConfig(critic=None))
    generator = None if rank is None else learner.stream(f"worker {rank}")
    return learner.act(torch.zeros(1, 3), generator=generator).flatten().tolist()


def _both(rank: int) -> tuple[list[float], list[float]]:
    return _sampled(None), _sampled(rank)


@pytest.mark.slow
def test_workers_draw_alike_unless_each_has_a_generator_of_its_own() -> None:
    """As the docstring of `act` says, and its line that avoids it."""
    with concurrent.futures.ProcessPoolExecutor(
        2, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        plain, own = zip(*pool.map(_both, [0, 1]), strict=True)
    assert plain[0] == plain[1]
    assert own[0] != own[1]
    assert list(own) == [_sampled(0), _sampled(1)]  # and repeats itself
