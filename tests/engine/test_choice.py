"""The fused update against the reference: autograd on modules, on equal draws."""

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gtp_policy import (
    AdvantageGuidance,
    AdvantageWeighterConfig,
    Curriculum,
    ExpectileBaseline,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    GTPLoss,
    LinearQGuidance,
    MultiSeedLearner,
    NoGuidance,
    OfflineDataset,
    PolicyBaseline,
    QEnsembleConfig,
    QuantileBaseline,
    Transitions,
    load_checkpoint,
    presets,
    save_checkpoint,
)
from gtp_policy._engine import choice
from gtp_policy._engine.by_hand import ByHand
from gtp_policy._engine.choice import explain as engine_of
from gtp_policy._engine.seeds import share_, together
from gtp_policy._engine.support import against_recording
from gtp_policy.actor import ActionStatistics
from gtp_policy.algorithm import draw
from gtp_policy.errors import DataError, DeviceError, ShapeError
from gtp_policy.guidance import Guidance
from gtp_policy.kernels import explain, mlp, using
from gtp_policy.kernels.mlp import coarse_products
from gtp_policy.loss import AlphaSchedule
from gtp_policy.networks import LogRatioEmbedding, Mish, linear
from gtp_policy.samplers import JumpSampler, Sampler
from gtp_policy.teachers import (
    DifferenceTeacher,
    JvpTeacher,
    NoTeacher,
    OdeTeacher,
    SelfTeacher,
    SurrogateTeacher,
    TerminalTeacher,
)
from gtp_policy.times import KarrasTimes, LinearTimes, LogitNormalPairs, TimeSchedule, UniformPairs

OBS, ACT, ROWS = 3, 2, 24
STATISTICS = ActionStatistics(mean=(0.7, -0.2), std=(0.05, 0.4))
CRITIC = QEnsembleConfig(hidden=(24, 16))


def make_config(
    loss: dict[str, Any] | None = None,
    weighter: dict[str, Any] | None = None,
    critic: QEnsembleConfig | None = CRITIC,
    hidden: tuple[int, ...] = (16, 24),
    sampler: Sampler | None = None,
    times: TimeSchedule | None = None,
    embedding: str = "log",
    action_statistics: ActionStatistics | None = None,
    **learner: Any,
) -> GTPConfig:
    return GTPConfig(
        actor=FlowMapActorConfig(
            hidden=hidden,
            time_dim=8,
            steps=2,
            sampler=sampler or JumpSampler(),
            times=times or KarrasTimes(),
            embedding=embedding,
            action_statistics=action_statistics,
        ),
        critic=critic,
        loss=presets.paper_loss().loss.replace(
            **{"curriculum": Curriculum(start=10, end=20)} | (loss or {})
        ),
        weighter=AdvantageWeighterConfig(**AdvantageWeighterConfig.before | (weighter or {})),
        learner=GTPLearnerConfig(**{"total_updates": 20_000, "guidance_start": 0} | learner),
    )


def make_batch(seed: int = 0, rows: int = ROWS, dtype: torch.dtype = torch.float32) -> Transitions:
    g = torch.Generator().manual_seed(seed)
    return Transitions(
        obs=torch.randn(rows, OBS, generator=g) * 2 + 1,
        action=torch.rand(rows, ACT, generator=g) * 2 - 1,
        reward=torch.randn(rows, generator=g),
        next_obs=torch.randn(rows, OBS, generator=g) * 2 + 1,
        discount=0.99 * (torch.rand(rows, generator=g) > 0.1),
        next_action=torch.rand(rows, ACT, generator=g) * 2 - 1,
    ).to(dtype=dtype)


def make_learner(
    config: GTPConfig | None = None, *, dtype: torch.dtype = torch.float32, **build: Any
) -> GTPLearner:
    learner = GTPLearner.build(OBS, ACT, config or make_config(), **build)
    learner.set_observation_statistics_(torch.ones(OBS), torch.full((OBS,), 2.0))
    return learner.to(dtype)


def distance(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for p, q in pairs)


# Off the grid: two jumps teach one, on a part of the minibatch, in units of velocity.
OFF_GRID: dict[str, Any] = {
    "teacher": SelfTeacher(),
    "t_law": UniformPairs(),
    "u_rule": "between",
    "inner": 0.3,
    "map_share": 0.4,
    "flow_times": "uniform",
    "units": "velocity",
    "adaptive_power": 0.5,
    "flow_weight": 0.5,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "off the grid": {"loss": OFF_GRID, "times": LinearTimes(rho=1.75), "embedding": "log_ratio"},
    "off the grid, other path": {"loss": OFF_GRID, "embedding": "log_ratio"},
    "off the grid, all rows, both adaptive": {
        "loss": OFF_GRID | {"map_share": 1.0, "adaptive_flow": True, "adaptive_power": 1.0},
        "times": LinearTimes(),
    },
    "standardised actions": {"action_statistics": STATISTICS},
    "standardised actions, off the grid": {
        "loss": OFF_GRID,
        "times": LinearTimes(),
        "action_statistics": STATISTICS,
        "guidance": LinearQGuidance(scale=0.5),
    },
    "standardised actions, guided through one jump": {
        "action_statistics": STATISTICS,
        "guidance": LinearQGuidance(scale=0.5, steps=1, weighted=True),
    },
    "standardised actions, a derivative": {
        "loss": {"teacher": JvpTeacher(), "target": "stopgrad", "time_weight": "edm"},
        "action_statistics": STATISTICS,
    },
    "terminal velocities": {
        "loss": OFF_GRID | {"teacher": TerminalTeacher(), "adaptive_power": 1.0},
        "times": LinearTimes(),
    },
    "from flow matching to Mean Flows": {
        "loss": OFF_GRID | {"teacher": SurrogateTeacher(), "inner": AlphaSchedule(sharpness=1.0)},
        "times": LinearTimes(),
    },
    "a difference": {
        "loss": OFF_GRID | {"teacher": DifferenceTeacher(), "t_law": LogitNormalPairs()},
        "times": LinearTimes(),
    },
    "velocities of shared times": {"loss": {"units": "velocity", "huber": 0.1}},
    "default": {},
    "one sample": {"baseline": PolicyBaseline(samples=1)},
    "expectile": {"baseline": ExpectileBaseline(expectile=0.8, hidden=(16, 8))},
    "quantile": {"baseline": QuantileBaseline(quantile=0.8, hidden=(16, 8))},
    "max-Q backup": {"backup_actions": 3},
    "best of three": {
        "backup": "best_of_n",
        "backup_actions": 3,
        "critic": QEnsembleConfig(hidden=(8,), members=4, reduction="mean", rho=0.5),
    },
    "what followed": {"advantage": "td"},
    "what followed, best of two": {
        "advantage": "td",
        "backup": "best_of_n",
        "backup_actions": 2,
        "baseline": PolicyBaseline(samples=3),
    },
    "what followed, by a resting critic": {"advantage": "td", "critic_updates": 1},
    "what followed, by a value": {
        "advantage": "td",
        "backup": "value",
        "baseline": ExpectileBaseline(hidden=(16, 8)),
    },
    "penalised next actions": {"critic_penalty": 0.3},
    "penalised, best of three": {
        "backup": "best_of_n",
        "backup_actions": 3,
        "critic_penalty": 0.3,
    },
    "value backup": {"backup": "value", "baseline": ExpectileBaseline(hidden=(16, 8))},
    "value backup, cloning": {
        "backup": "value",
        "baseline": QuantileBaseline(hidden=(16,)),
        "guidance": NoGuidance(),
    },
    "clipped": {"max_grad_norm": 0.05},
    "cosine": {"lr_schedule": "cosine"},
    "two rates": {"critic_ema_rate": 0.3},
    "cloning": {"critic": None},
    "huber, sum, gap": {"loss": {"huber": 0.1, "reduction": "sum", "time_weight": "gap"}},
    "endpoint weight": {"loss": {"time_weight": "endpoint", "flow_weight": 0.1, "max_gap": 3}},
    "sharp weights": {"weighter": {"eta": 20.0, "max_weight": 3.0}},
    "three members": {"critic": QEnsembleConfig(hidden=(8,), members=3)},
    "layer norm": {"critic": QEnsembleConfig(hidden=(24, 16), layer_norm=True)},
    "layer norm, gelu, three members": {
        "critic": QEnsembleConfig(hidden=(24, 16), members=3, layer_norm=True, activation="gelu"),
        "max_grad_norm": 0.05,
    },
    "relu": {"critic": QEnsembleConfig(hidden=(24, 16), activation="relu")},
    "one hidden layer": {"hidden": (16,)},
    "edm weight": {"loss": {"time_weight": "edm", "flow_weight": 0.3}},
    "pairs with zero": {"loss": {"s_rule": "zero"}},
    "dyadic pairs": {"loss": {"s_rule": "dyadic", "u_rule": "midpoint"}},
    "solver": {"loss": {"teacher": OdeTeacher()}},
    "Euler's, three steps": {"loss": {"teacher": OdeTeacher(method="euler", steps=3)}},
    "two jumps": {
        "loss": {"teacher": SelfTeacher(), "s_rule": "dyadic", "u_rule": "midpoint"},
    },
    "a derivative": {"loss": {"teacher": JvpTeacher(), "target": "stopgrad"}},
    "a slow derivative": {"loss": {"teacher": JvpTeacher()}, "critic": None},
    "its own teacher": {"loss": {"target": "stopgrad"}},
    "no teacher": {"loss": {"teacher": NoTeacher(), "time_weight": "edm"}},
    "linear path": {"times": LinearTimes(), "loss": {"time_weight": "edm"}},
    "no guidance": {"guidance": NoGuidance()},
    "no guidance, but a value": {"guidance": NoGuidance(), "baseline": ExpectileBaseline()},
    "linear Q": {"guidance": LinearQGuidance(scale=0.5)},
    "normalised linear Q": {
        "guidance": LinearQGuidance(scale=0.5, normalize=True, steps=1),
        "max_grad_norm": 0.05,
    },
    "one jump": {"guidance": LinearQGuidance(scale=0.5, steps=1)},
    "one jump, its own weights": {
        "guidance": LinearQGuidance(scale=2.0, normalize=True, steps=1, weighted=True),
        "critic": QEnsembleConfig(
            hidden=(24, 16), members=3, layer_norm=True, reduction="mean", rho=0.5
        ),
        "weighter": {"signed": True, "effective_share": 0.4},
        "times": LinearTimes(),
        "loss": OFF_GRID,
    },
    "one jump, gelu, a value": {
        "guidance": LinearQGuidance(scale=0.5, normalize=True, steps=1, weighted=True),
        "critic": QEnsembleConfig(hidden=(8,), activation="gelu"),
        "baseline": ExpectileBaseline(hidden=(8,)),
    },
    "weighted linear Q": {"guidance": LinearQGuidance(scale=0.5, weighted=True)},
    "signed": {"weighter": {"signed": True, "eta": 2.0}},
    "effective share": {"weighter": {"effective_share": 0.3}},
    "linear Q, linear path": {"guidance": LinearQGuidance(scale=0.5), "times": LinearTimes()},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_autograd(variant: str) -> None:
    """In float64, where the two differ by rounding alone: every parameter, by hand and by torch."""
    config = make_config(**VARIANTS[variant])
    reference = make_learner(config, dtype=torch.float64)
    fused, batch = copy.deepcopy(reference), make_batch(dtype=torch.float64)
    with using("reference"):
        expected = reference.update(batch).to_floats()
    assert fused.explain()[0].startswith("update: fused")
    assert fused.update(batch).to_floats() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    for name in reference.optimizers:
        for a, b in zip(
            getattr(fused, name).parameters(), getattr(reference, name).parameters(), strict=True
        ):
            assert a.grad is not None
            assert b.grad is not None
            assert float(b.grad.abs().max()) > 0
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_stay_with_the_reference(variant: str) -> None:
    config = make_config(**VARIANTS[variant])
    reference, fused = make_learner(config), make_learner(config)
    start = copy.deepcopy(fused)
    for step in range(2):
        with using("reference"):
            reference.update(make_batch(step))
        fused.update(make_batch(step))
    assert distance(fused, reference) <= 5e-5
    assert distance(fused, start) >= 3e-4  # two steps of Adam


@pytest.mark.parametrize("guidance", [AdvantageGuidance(), LinearQGuidance(scale=0.5)])
def test_guidance_may_start_later(guidance: Guidance) -> None:
    """Up to there the actor is one without guidance, from there on one with it."""
    late = make_learner(make_config(guidance=guidance, guidance_start=3))
    without = make_learner(make_config(guidance=NoGuidance()))
    for step in range(3):
        reported = late.update(make_batch(step)).to_floats()
        assert reported == without.update(make_batch(step)).to_floats()
        assert not {"weight_mean", "guided_q"} & reported.keys()
    assert distance(late, without) == 0
    guided = make_learner(make_config(guidance=guidance))
    guided.load_state_dict(without.state_dict())
    for step in range(2):
        reported = late.update(make_batch(step)).to_floats()
        assert reported == guided.update(make_batch(step)).to_floats()
        assert {"weight_mean", "guided_q"} & reported.keys()
    assert distance(late, guided) == 0


def test_comparing_at_zero_takes_the_reference() -> None:
    """It has no gradients by hand. Side by side, each seed does what it would do alone."""
    config = make_config(loss={"compare_at": "zero"})
    auto, reference = make_learner(config), make_learner(config)
    assert auto.explain()[0].startswith("update: reference")
    assert "compares at 'zero'" in auto.explain()[0]
    auto.update(make_batch())
    with using("reference"):
        reference.update(make_batch())
    assert distance(auto, reference) < 1e-6  # the sampler's own fast way rounds apart
    alone = [make_learner(config.replace(learner=config.learner.replace(seed=i))) for i in (0, 1)]
    both = MultiSeedLearner(copy.deepcopy(alone))
    batches = [make_batch(0), make_batch(1)]
    both.update(batches)
    for learner, member, batch in zip(alone, both.learners, batches, strict=True):
        learner.update(batch)
        assert distance(learner, member) == 0


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 40),
    hidden=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    members=st.integers(1, 3),
    samples=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_any_shape(rows: int, hidden: list[int], members: int, samples: int, seed: int) -> None:
    critic = QEnsembleConfig(hidden=tuple(hidden), members=members)
    config = make_config(
        critic=critic,
        hidden=tuple(hidden),
        baseline=PolicyBaseline(samples=samples),
        seed=seed,
        max_grad_norm=1.0,
    )
    reference = make_learner(config, dtype=torch.float64)
    fused, batch = copy.deepcopy(reference), make_batch(seed, rows, torch.float64)
    with using("reference"):
        reference.update(batch)
    fused.update(batch)
    # Adam's first step divides a gradient by its own size: what matters is the gradient.
    for a, b in zip(fused.parameters(), reference.parameters(), strict=True):
        if b.grad is not None:
            assert a.grad is not None
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-10)


def test_a_large_batch_is_worked_on_in_pieces_that_fit_together() -> None:
    config = make_config(
        hidden=(256, 128), critic=QEnsembleConfig(hidden=(256, 128)), max_grad_norm=1.0
    )
    reference, fused, batch = make_learner(config), make_learner(config), make_batch(0, 700)
    with using("reference"):
        expected = reference.update(batch).to_floats()
    assert fused.update(batch).to_floats() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for a, b in zip(fused.actor.parameters(), reference.actor.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)


def test_engines_may_change_between_updates() -> None:
    """The optimisers' state is the same, so a run may go on with the other engine."""
    reference, mixed = make_learner(dtype=torch.float64), make_learner(dtype=torch.float64)
    for step in range(6):
        batch = make_batch(step, dtype=torch.float64)
        with using("reference"):
            reference.update(batch)
        with using("reference" if step % 2 else "auto"):
            mixed.update(batch)
    assert distance(mixed, reference) <= 1e-8
    for name, optimizer in reference.optimizers.items():
        own = mixed.optimizers[name].state_dict()["state"]
        for key, state in optimizer.state_dict()["state"].items():
            assert own[key]["step"] == state["step"] == 6
            torch.testing.assert_close(own[key]["exp_avg"], state["exp_avg"])


@pytest.mark.parametrize("samples", [1, 4])
def test_coarse_products_where_no_gradient_is_taken(samples: int) -> None:
    """The stated error: some 1e-3 in what is sampled and scored, none in what is learned from."""
    networks = {"hidden": (64, 64), "critic": QEnsembleConfig(hidden=(64, 64))}
    config = make_config(baseline=PolicyBaseline(samples=samples), **networks)
    coarse = config.replace(learner=config.learner.replace(no_grad_precision="bfloat16"))
    exact, rounded, batch = make_learner(config), make_learner(coarse), make_batch(rows=256)
    expected, reported = exact.update(batch).to_floats(), rounded.update(batch).to_floats()
    for name in ("actor_loss", "critic_loss", "advantage_std", "weight_mean"):
        assert reported[name] == pytest.approx(expected[name], rel=1e-2)
    assert reported["q_mean"] == pytest.approx(expected["q_mean"], rel=1e-5)  # has a gradient
    assert torch.get_float32_matmul_precision() == "highest"
    assert explain(rounded).splitlines()[0].endswith("bfloat16 products where no gradient is taken")


def test_overlapping_users_of_a_switch_leave_it_as_it_was() -> None:
    """Torch has one switch for all threads: the last to need it brings back what was there."""
    first, second = coarse_products("bfloat16"), coarse_products("bfloat16")
    precision = torch.get_float32_matmul_precision
    assert precision() == "highest"
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert precision() == "medium"
    second.__exit__(None, None, None)
    assert precision() == "highest"
    try:
        with coarse_products("bfloat16"):
            torch.set_float32_matmul_precision("high")
        assert precision() == "high"  # somebody else's choice, made meanwhile
    finally:
        torch.set_float32_matmul_precision("highest")


def test_an_update_takes_one_thread_unless_more_are_requested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, call = [], ByHand.__call__

    def spy(*args: Any) -> Any:
        seen.append(torch.get_num_threads())
        return call(*args)

    monkeypatch.setattr(ByHand, "__call__", spy)
    learner, before = make_learner(), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        learner.update(make_batch())
        with using("auto", threads=2):
            learner.update(make_batch())
        with using("auto", threads=8):
            learner.update(make_batch())
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2, 3]
    with (
        pytest.raises(ValueError, match="`threads` is out of range: got 0"),
        using("auto", threads=0),
    ):
        pass


# --- what the engine must notice


def swap_optimizer(learner: GTPLearner) -> None:
    learner.optimizers["actor"] = torch.optim.SGD(learner.actor.parameters(), lr=0.1)


CHANGES: dict[str, Callable[[GTPLearner], Any]] = {
    "another length": lambda x: x.set_total_updates_(25_000),
    "new memory": lambda x: [p.set_(p.detach().clone()) for p in x.critic.parameters()],
    "other values": lambda x: [p.mul_(0.5) for p in x.parameters()],
    "raw writes": lambda x: [p.data.add_(0.1) for p in x.target_critic.parameters()],
    "statistics": lambda x: x.set_observation_statistics_(torch.zeros(OBS), torch.ones(OBS)),
    "a loaded state": lambda x: x.load_state_dict(copy.deepcopy(x.state_dict())),
    "an assigned state": lambda x: x.load_state_dict(copy.deepcopy(x.state_dict()), assign=True),
    "another optimiser": swap_optimizer,
    "another weighter": lambda x: setattr(x, "weighter", Flat()),
}


class Flat(nn.Module):
    """Custom weights: all 2."""

    def __init__(self) -> None:
        super().__init__()
        self.config = AdvantageWeighterConfig()

    def forward(self, advantage: Tensor) -> Tensor:
        return torch.full_like(advantage, 2.0)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_updates_counts_at_once(change: str) -> None:
    reference, fused = make_learner(dtype=torch.float64), make_learner(dtype=torch.float64)
    for step in range(4):
        batch = make_batch(step, ROWS + step % 2, torch.float64)
        if step == 2:
            with torch.no_grad():
                for learner in (reference, fused):
                    CHANGES[change](learner)
        with using("reference"):
            expected = reference.update(batch).to_floats()
        assert fused.update(batch).to_floats() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert distance(fused, reference) <= 1e-8


@pytest.mark.parametrize(
    "factory",
    [
        lambda name, module: torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.1),
        lambda name, module: torch.optim.SGD(module.parameters(), lr=1e-2, momentum=0.9),
        lambda name, module: torch.optim.Adam(module.parameters(), lr=1e-3, amsgrad=True),
        lambda name, module: torch.optim.Adam(module.parameters(), lr=1e-3, fused=True),
        lambda name, module: torch.optim.Adam(
            [{"params": [p], "lr": 1e-3 * (i + 1)} for i, p in enumerate(module.parameters())]
        ),
    ],
    ids=["AdamW", "SGD", "amsgrad", "fused Adam", "groups"],
)
def test_optimisers_of_a_users_own(factory: Any) -> None:
    config = make_config(max_grad_norm=0.1)
    reference, fused = (
        make_learner(config, dtype=torch.float64, optimizer=factory) for _ in range(2)
    )
    for step in range(3):
        batch = make_batch(step, dtype=torch.float64)
        with using("reference"):
            reference.update(batch)
        fused.update(batch)
    assert distance(fused, reference) <= 1e-8


PATCHED = [
    *[(name, "forward") for name in ("critic", "target_critic", "value", "actor.network.mlp.1")],
    *[("target_actor", name) for name in ("_endpoint", "to_action", "sample", "endpoint")],
    *[("actor", name) for name in ("_features", "to_standard")],
    *[("critic.normalizer", "forward"), ("target_actor.network.embedding", "forward")],
    ("value.network.0", "forward"),
]


@pytest.mark.parametrize(("name", "method"), PATCHED)
def test_a_method_that_comes_and_goes_between_updates_counts(name: str, method: str) -> None:
    config = make_config(
        action_statistics=STATISTICS,
        baseline=ExpectileBaseline(hidden=(8,)) if "value" in name else PolicyBaseline(samples=2),
    )
    plain, chosen = (make_learner(config, dtype=torch.float64) for _ in range(2))
    for step in range(3):
        batch = make_batch(step, dtype=torch.float64)
        for learner in (plain, chosen):
            module = learner.get_submodule(name)
            if step == 1:
                halve(module, method)
            if step == 2:
                delattr(module, method)
        assert (f"has a {method}" in explain(chosen)) == (step == 1)
        with using("reference"):
            plain.update(batch)
        chosen.update(batch)
        assert distance(chosen, plain) <= 1e-9


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_of_all_modules_count_at_once(kind: str) -> None:
    learner, called = make_learner(), []
    learner.update(make_batch())
    register = getattr(nn.modules.module, f"register_module_{kind}_hook")
    handle = register(lambda module, *_: called.append(module))
    try:
        assert "hooks of all modules" in explain(learner)
        learner.update(make_batch())
    finally:
        handle.remove()
    assert learner.actor.network.mlp[0] in called
    assert explain(learner).startswith("update: fused")


def freeze(learner: GTPLearner) -> None:
    next(learner.actor.parameters()).requires_grad_(False)


def halve(module: nn.Module, method: str) -> None:
    """Puts a function in a method's place, as quantisers, adapters and probes do."""
    function = getattr(module, method)

    def put(*args: Any, **kwargs: Any) -> Any:
        found = function(*args, **kwargs)
        return found / 2 if isinstance(found, Tensor) else tuple(part / 2 for part in found)

    setattr(module, method, put)


class OwnLoss(GTPLoss):
    """A custom loss."""


UNSUPPORTED: dict[str, tuple[Callable[[GTPLearner], Any], str]] = {
    "hook": (
        lambda x: x.actor.network.mlp[0].register_forward_hook(lambda *_: None),
        "actor has hooks",
    ),
    "frozen": (freeze, "parameters of actor are frozen"),
    "loss": (lambda x: setattr(x, "loss", OwnLoss()), "the loss is a OwnLoss"),
    "activation": (
        lambda x: x.actor.network.mlp.__setitem__(1, nn.Tanh()),
        "actor has a network of other layers",
    ),
    "weighter": (lambda x: halve(x.weighter, "forward"), "the weighter has a forward that was put"),
    "terms": (lambda x: halve(x.loss, "time_weights"), "the loss has a time_weights that was put"),
    "dtype": (lambda x: x.critic.normalizer.float(), "critic has parameters of several dtypes"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_unsupported_runs_by_the_reference_and_says_so(case: str) -> None:
    change, reason = UNSUPPORTED[case]
    plain, chosen = make_learner(dtype=torch.float64), make_learner(dtype=torch.float64)
    for learner in (plain, chosen):
        change(learner)
    assert reason in explain(chosen)
    assert explain(chosen).startswith("update: reference")
    batch = make_batch(dtype=torch.float64)
    with using("reference"):
        plain.update(batch)
    chosen.update(batch)
    assert distance(chosen, plain) <= 1e-12  # samplers differ


@pytest.mark.parametrize(
    "change",
    [
        lambda x: setattr(x, "config", x.config.replace(sigma_data=0.3)),
        lambda x: setattr(x, "config", x.config.replace(times=LinearTimes(rho=3.0))),
        lambda x: setattr(x.network, "embedding", LogRatioEmbedding(8, "ve")),
    ],
    ids=["scale", "times", "embedding"],
)
def test_a_target_with_another_flow_map_takes_the_reference(change: Callable[[Any], None]) -> None:
    plain, chosen = make_learner(dtype=torch.float64), make_learner(dtype=torch.float64)
    for step in range(2):
        batch = make_batch(step, dtype=torch.float64)
        with using("reference"):
            plain.update(batch)
        chosen.update(batch)
        for learner in (plain, chosen):
            change(learner.target_actor)
    assert "flow map of the target actor differs" in explain(chosen)
    assert distance(chosen, plain) <= 1e-9


def test_more_that_is_unsupported() -> None:
    own = GTPLearner.build(OBS, ACT, make_config(), network=OwnNetwork())
    assert "actor has a custom network" in explain(own)
    encoded = GTPLearner.build(OBS, ACT, make_config(), encoder=OwnEncoder())
    assert "actor has an encoder" in explain(encoded)
    learner = make_learner()
    with using("reference"):
        assert 'kernels.using("reference") selects it' in explain(learner)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "autocast is on" in explain(learner)
        learner.update(make_batch())
    with pytest.raises(TypeError, match="nothing to explain: got Tensor"):
        explain(torch.zeros(1))


class OwnNetwork(nn.Module):
    """A custom backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear(OBS + ACT + 2, ACT, generator=torch.Generator())

    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        out: Tensor = self.linear(torch.cat([obs, x, t[:, None], s[:, None]], 1))
        return out


class OwnEncoder(nn.Module):
    """A custom encoder."""

    features_dim = OBS

    def forward(self, obs: Tensor) -> Tensor:
        return obs.tanh()


def test_a_learner_copies_without_its_engine() -> None:
    learner = make_learner()
    learner.update(make_batch())
    twin = copy.deepcopy(learner)
    learner.update(make_batch(1))
    before = copy.deepcopy(twin)
    twin.update(make_batch(1))
    assert distance(twin, learner) == 0.0
    assert distance(twin, before) > 0


def test_an_update_looks_once_at_what_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, looks = make_learner(), []
    facts = choice._facts
    monkeypatch.setattr(choice, "_facts", lambda x: looks.append(1) or facts(x))
    learner.update(make_batch())
    assert looks == [1]


def test_buffers_that_find_no_memory_are_named_and_looked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = make_learner()
    learner.update(make_batch())
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(choice, "_on_cpu", lambda learner: False)
        patch.setattr(choice, "_build", fail)
        with pytest.raises(DeviceError, match=r"no memory left .* for updates"):
            learner.updates_per_launch(2 * ROWS)
        with pytest.raises(DeviceError, match=r"no memory left .* for updates"):
            learner.update(make_batch(rows=2 * ROWS))
    assert learner.broken is None
    learner.update(make_batch())  # of the first size, whose buffers are gone
    assert learner._dispatcher._fast is not None


def set_in_group(name: str, value: Any) -> Callable[[GTPLearner], Any]:
    return lambda x: x.optimizers["actor"].param_groups[0].__setitem__(name, value)


@pytest.mark.parametrize(
    "change",
    [
        set_in_group("weight_decay", 0.5),
        set_in_group("maximize", True),
        set_in_group("betas", (0.5, 0.5)),
        lambda x: x.optimizers["actor"].register_step_post_hook(
            lambda o, *_: [p.data.mul_(0.5) for p in o.param_groups[0]["params"]]
        ),
        lambda x: x.actor.network.mlp[0].weight.register_hook(lambda g: g * 3),
        lambda x: x.actor.normalizer.mean.fill_(-1.0),
        lambda x: setattr(x.optimizers["actor"], "step", lambda *_: None),
    ],
    ids=["weight decay", "maximize", "betas", "step hook", "gradient hook", "one mean", "own step"],
)
def test_what_is_changed_after_the_first_update_counts(change: Callable[[GTPLearner], Any]) -> None:
    reference, fused = make_learner(dtype=torch.float64), make_learner(dtype=torch.float64)
    for step in range(3):
        batch = make_batch(step, dtype=torch.float64)
        if step == 1:
            for learner in (reference, fused):
                change(learner)
        with using("reference"):
            reference.update(batch)
        fused.update(batch)
    assert distance(fused, reference) <= 1e-8
    # The targets' statistics follow, as the reference has it.
    assert torch.equal(fused.target_actor.normalizer.mean, fused.actor.normalizer.mean)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomalies_are_looked_for_where_autograd_computes() -> None:
    learner = make_learner()
    with torch.autograd.detect_anomaly(check_nan=True):
        assert "anomaly detection is on" in explain(learner)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_the_state_of_any_optimiser_serves_both_engines(kind: Any) -> None:
    options = {"lr": 1e-2} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    learner = make_learner(optimizer=lambda name, module: kind(module.parameters(), **options))
    learner.update(make_batch())
    with using("reference"):
        learner.update(make_batch(1))
    learner.update(make_batch(2))
    assert learner.updates == 3


def test_layers_that_are_tied_or_end_in_an_activation_are_left_to_the_reference() -> None:
    ended = make_learner()
    ended.actor.network.mlp.append(Mish())
    assert "actor has a network of other layers" in explain(ended)
    assert "sample: reference" in explain_actor(ended)
    tied = make_learner(make_config(hidden=(16, 16, 16)))
    tied.actor.network.mlp[4].weight = tied.actor.network.mlp[2].weight
    assert "shares some between layers" in explain(tied)


def explain_actor(learner: GTPLearner) -> str:
    return explain(learner.actor)


# --- on other devices than the CPU: everything in one launch


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seeds", [1, 2])
def test_batched_products_compute_the_same(
    monkeypatch: pytest.MonkeyPatch, variant: str, seeds: int
) -> None:
    """The path of other devices, run on this one."""
    config = make_config(**VARIANTS[variant])
    numbers = tuple(range(seeds))
    several = MultiSeedLearner(make_seeds(config, numbers, torch.float64))
    reference = MultiSeedLearner(make_seeds(config, numbers, torch.float64))
    monkeypatch.setattr(mlp, "in_blocks", lambda x: False)
    for step in range(2):
        batches = [make_batch(7 * seed + step, dtype=torch.float64) for seed in numbers]
        reported = several.update(batches)
        with using("reference"):
            expected = reference.update(batches)
        for a, b in zip(reported, expected, strict=True):
            assert a.to_floats() == pytest.approx(b.to_floats(), rel=1e-7, abs=1e-10)
    for one, own in zip(several.learners, reference.learners, strict=True):
        assert distance(one, own) <= 1e-8


ON_DEVICES = ["default", "expectile", "clipped", "max-Q backup", "cloning"]
ON_DEVICES += ["solver", "two jumps", "its own teacher", "no teacher", "no guidance"]
ON_DEVICES += ["off the grid", "a difference"]
ON_DEVICES += ["layer norm", "layer norm, gelu, three members", "relu"]
ON_DEVICES += ["quantile", "best of three", "value backup", "signed", "effective share"]
ON_DEVICES += [
    "what followed",
    "what followed, by a resting critic",
    "penalised next actions",
    "one jump",
    "one jump, its own weights",
    "one jump, gelu, a value",
]


@pytest.mark.parametrize("variant", ON_DEVICES)
def test_an_update_looks_at_no_number(variant: str) -> None:
    """On the meta device there are no numbers: to look at one is an error there."""
    config = make_config(**VARIANTS[variant])
    learner = GTPLearner.build(OBS, ACT, config).to("meta")
    for name, optimizer in learner.optimizers.items():
        optimizer.param_groups[0]["params"] = list(getattr(learner, name).parameters())
    batch = with_seeds(make_batch())
    draws = draw([make_learner(config)], batch.action)
    times = type(draws.times)(*(t.to("meta") for t in draws.times))
    noises = {name: x.to("meta") for name, x in draws._asdict().items() if isinstance(x, Tensor)}
    fused = ByHand([learner], ROWS)
    metrics = fused(
        batch.to("meta"),
        draws._replace(**noises, times=times),
        learner.learning_rates,
    )
    assert fused.recordable
    assert {x.device.type for x in metrics.values()} == {"meta"}
    with pytest.raises(RuntimeError, match="meta"):
        metrics["actor_loss"].item()


@pytest.mark.parametrize("variant", ["linear Q", "a derivative"])
def test_what_needs_autograd_is_not_recorded(variant: str) -> None:
    learner = make_learner(make_config(**VARIANTS[variant]))
    assert against_recording([learner]) == "a part of it needs autograd"
    weighted = make_learner()
    weighted.weighter = Flat()  # type: ignore[assignment]
    assert against_recording([weighted]) == "the weighter is a custom class"
    swap_optimizer(weighted := make_learner())
    assert against_recording([weighted]) == "the optimiser of actor is not a plain torch.optim.Adam"
    assert against_recording([make_learner()]) == "CUDA graphs need a CUDA device"


def with_seeds(batch: Transitions) -> Transitions:
    """Gives a minibatch its leading axis of seeds."""
    return batch.map(lambda field: field.unsqueeze(0))


# --- minibatches of a dataset


def make_dataset() -> OfflineDataset:
    batch = make_batch(1, 200)
    return OfflineDataset.from_arrays(
        obs=batch.obs,
        action=batch.action,
        reward=batch.reward,
        next_obs=batch.next_obs,
        terminated=batch.discount == 0,
        truncated=batch.discount != 0,
        low=[-1.0] * ACT,
        high=[1.0] * ACT,
    )


def test_seeds_that_are_first_updated_in_inference_mode_can_learn_on() -> None:
    several = MultiSeedLearner(make_seeds(make_config(), (0, 1), torch.float32))
    with torch.inference_mode():
        several.update([make_batch(0), make_batch(1)])
    with using("reference"):
        several.update([make_batch(0), make_batch(1)])


def test_updates_from_a_dataset_are_those_of_a_loop() -> None:
    """On the CPU to the last bit, since that is what they are there."""
    dataset = make_dataset()
    several, single = (GTPLearner.from_dataset(dataset, make_config()) for _ in range(2))
    several.update_from(dataset, 5, batch_size=ROWS)
    for _ in range(5):
        single.update(dataset.sample(ROWS, generator=single.stream("batch")))
    assert distance(several, single) == 0
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(ValueError, match="`updates` is out of range"):
            several.update_from(dataset, wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="`batch_size` is out of range: got 0"):
        several.update_from(dataset, batch_size=0)
    with pytest.raises(ShapeError, match="expected"):
        GTPLearner.build(OBS + 1, ACT).update_from(dataset)
    assert several.updates == 5


# --- several seeds


def make_seeds(config: GTPConfig, seeds: tuple[int, ...], dtype: torch.dtype) -> list[GTPLearner]:
    configs = [config.replace(learner=config.learner.replace(seed=seed)) for seed in seeds]
    return [make_learner(c, dtype=dtype) for c in configs]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_seed_does_what_it_would_do_alone(variant: str) -> None:
    config, seeds = make_config(**VARIANTS[variant]), (0, 7, 3)
    alone = make_seeds(config, seeds, torch.float64)
    several = MultiSeedLearner(make_seeds(config, seeds, torch.float64))
    for step in range(3):
        batches = [make_batch(10 * seed + step, dtype=torch.float64) for seed in seeds]
        reported = several.update(batches)
        for learner, batch, metrics in zip(alone, batches, reported, strict=True):
            expected = learner.update(batch).to_floats()
            assert metrics.to_floats() == pytest.approx(expected, rel=1e-7, abs=1e-10)
    for one, own in zip(several.learners, alone, strict=True):
        assert distance(one, own) <= 1e-8
        assert one.updates == own.updates == 3
    assert distance(several.learners[0], several.learners[1]) > 1e-2


def test_seeds_by_the_reference() -> None:
    config = make_config()
    fused, reference = (
        MultiSeedLearner(make_seeds(config, (0, 1), torch.float64)) for _ in range(2)
    )
    batches = [make_batch(seed, dtype=torch.float64) for seed in (0, 1)]
    fused.update(batches)
    with using("reference"):
        reference.update(batches)
    for a, b in zip(fused.learners, reference.learners, strict=True):
        assert distance(a, b) <= 1e-8


def test_a_seed_is_saved_loaded_and_goes_on_alone(tmp_path: Any) -> None:
    config = make_config()
    several = MultiSeedLearner(make_seeds(config, (0, 1), torch.float32))
    for step in range(2):
        several.update([make_batch(step), make_batch(step + 5)])
    path = save_checkpoint(tmp_path / "one.zip", several.learners[1])
    loaded = load_checkpoint(path).learner
    assert distance(loaded, several.learners[1]) == 0.0
    loaded.update(make_batch(9))
    several.learners[1].update(make_batch(9))
    assert distance(loaded, several.learners[1]) == 0.0
    with pytest.raises(ValueError, match=r"gone apart: got numbers of updates \[2, 3\]"):
        several.update([make_batch(9), make_batch(9)])
    twin = copy.deepcopy(several.learners[1])
    assert distance(twin, loaded) == 0.0


@pytest.mark.parametrize("critic", [None, CRITIC])
def test_some_of_the_learners_that_shared_memory_go_on_together(
    critic: QEnsembleConfig | None,
) -> None:
    config = make_config(critic=critic)
    learners = make_seeds(config, (0, 1, 2), torch.float64)
    alone = make_seeds(config, (0, 2), torch.float64)
    batches = [make_batch(seed, dtype=torch.float64) for seed in (0, 1, 2)]
    MultiSeedLearner(learners).update(batches)
    still = copy.deepcopy(learners[1])
    MultiSeedLearner([learners[0], learners[2]]).update([batches[0], batches[2]])
    for learner, batch in zip(alone, (batches[0], batches[2]), strict=True):
        learner.update(batch)
        learner.update(batch)
    assert distance(learners[0], alone[0]) <= 1e-8
    assert distance(learners[2], alone[1]) <= 1e-8
    assert distance(learners[1], still) == 0.0


def test_updates_of_every_seed_are_counted() -> None:
    several = MultiSeedLearner(make_seeds(make_config(), (0, 1), torch.float32))
    batches = [make_batch(), make_batch(1)]
    several.update(batches)
    parameter = next(several.learners[1].target_actor.parameters())
    before = parameter._version
    several.update(batches)
    assert parameter._version > before


def test_a_loaded_state_counts_for_its_seed_alone() -> None:
    config = make_config()
    several = MultiSeedLearner(make_seeds(config, (0, 1), torch.float64))
    alone = make_seeds(config, (0, 1), torch.float64)
    batches = [make_batch(step, dtype=torch.float64) for step in (0, 1)]
    several.update(batches)
    state = copy.deepcopy(several.learners[0].state_dict())
    several.learners[0].load_state_dict(state)
    several.update(batches)
    for learner, batch in zip(alone, batches, strict=True):
        learner.update(batch)
        learner.update(batch)
    for one, own in zip(several.learners, alone, strict=True):
        assert distance(one, own) <= 1e-8


def test_seeds_from_a_dataset_draw_their_own_minibatches() -> None:
    batch = make_batch(0, 64)
    dataset = OfflineDataset.from_arrays(
        obs=batch.obs.numpy(),
        action=batch.action.numpy(),
        reward=batch.reward.numpy(),
        next_obs=batch.next_obs.numpy(),
        terminated=torch.zeros(64).numpy(),
        truncated=torch.ones(64).numpy(),
        low=[-1.0] * ACT,
        high=[1.0] * ACT,
    )
    several = MultiSeedLearner.from_dataset(dataset, make_config(), seeds=(4, 5))
    alone = GTPLearner.from_dataset(dataset, make_config(seed=5))
    several.update(several.sample(dataset, 16))
    alone.update(dataset.sample(16, generator=alone.stream("batch")))
    assert several.updates == 1
    assert distance(several.learners[1], alone) <= 1e-6
    with pytest.raises(ValueError, match="not all different"):
        MultiSeedLearner.from_dataset(dataset, make_config(), seeds=(4, 4))


def test_learners_that_do_not_belong_together() -> None:
    first = make_learner()
    with pytest.raises(ValueError, match="of which some are the same"):
        MultiSeedLearner([first, first])
    with pytest.raises(ValueError, match="at least one"):
        MultiSeedLearner([])
    with pytest.raises(ValueError, match="differ in more than the seed"):
        MultiSeedLearner([first, make_learner(make_config(ema_rate=0.1))])
    several = MultiSeedLearner([first, make_learner(make_config(seed=1))])
    with pytest.raises(ValueError, match="Minibatches do not fit"):
        several.update([make_batch()])
    with pytest.raises(ValueError, match="Minibatches do not fit"):
        several.update([make_batch(), make_batch(rows=3)])


def test_minibatches_of_several_learners_have_the_same_fields() -> None:
    several = MultiSeedLearner([make_learner(make_config(seed=seed)) for seed in (0, 1)])
    plain = make_batch(0)._replace(next_action=None)
    before = copy.deepcopy([learner.state_dict() for learner in several.learners])
    for batches in ([plain, make_batch(1)], [make_batch(1), plain]):
        with pytest.raises(ValueError, match=r"different fields.*next_action"):
            several.update(batches)
    assert several.updates == 0
    for learner, state in zip(several.learners, before, strict=True):
        for name, value in learner.actor.state_dict().items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, state[f"actor.{name}"]), name


@pytest.mark.parametrize("choice", [{"backup_actions": 3}, {"total_updates": 7}, {"actor_lr": 1.0}])
def test_a_choice_of_one_learner_that_is_changed_later_is_told(choice: dict[str, Any]) -> None:
    several = MultiSeedLearner([make_learner(make_config(seed=seed)) for seed in (0, 1)])
    batches = [make_batch(0), make_batch(1)]
    several.update(batches)
    first, second = several.learners
    second.config = second.config.replace(**choice)
    for _ in range(2):
        with pytest.raises(ValueError, match="differ in more than the seed"):
            several.update(batches)
    assert several.updates == 1
    first.config = first.config.replace(**choice)
    several.update(batches)
    assert several.updates == 2


def test_sharing_memory_keeps_values_and_is_done_once() -> None:
    tensors = [torch.arange(6.0).view(2, 3) + i for i in range(3)]
    expected = torch.stack(tensors)
    assert torch.equal(together(tensors), expected)
    share_(tensors)
    places = [t.data_ptr() for t in tensors]
    share_(tensors)
    assert [t.data_ptr() for t in tensors] == places
    joined = together(tensors)
    assert torch.equal(joined, expected)
    joined[1] += 10
    assert torch.equal(tensors[1], expected[1] + 10)


def test_the_engines_are_distinguished() -> None:
    assert engine_of(make_learner()) == (
        "update: fused (gradients by hand, into buffers) on cpu, torch.float32"
    )


def test_a_device_without_faster_ways_takes_the_reference_and_says_so() -> None:
    """Such as MPS: the meta device stands for it, which has none either."""
    learner = make_learner().to("meta")
    update, sample = learner.explain()
    assert update.startswith("update: reference (modules and autograd)")
    assert "no faster ways on meta, only on cpu and cuda" in update
    assert "reference" in sample


def test_a_switch_that_was_set_for_each_device_is_left_as_it_was() -> None:
    """In a process of its own: torch never forgets that the two ways to set it were mixed."""
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import torch\n"
        "from gtp_policy.kernels.mlp import coarse_products, precision\n"
        "if not hasattr(torch.backends.cuda.matmul, 'fp32_precision'): raise SystemExit\n"
        "torch.set_float32_matmul_precision('highest')\n"
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'\n"
        "before = precision()\n"
        "with coarse_products('bfloat16'):\n"
        "    assert precision() == ('tf32', 'bf16'), precision()\n"
        "assert precision() == before, precision()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
