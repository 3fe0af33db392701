"""Every public config: closed, frozen, finite, honest about types, exact in JSON."""

import importlib
import inspect
import math
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gtp_policy
from gtp_policy import (
    AdvantageGuidance,
    AdvantageWeighterConfig,
    Config,
    Curriculum,
    ExpectileBaseline,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearnerConfig,
    GTPLossConfig,
    LinearQGuidance,
    NoGuidance,
    PolicyBaseline,
    QEnsembleConfig,
    QuantileBaseline,
    presets,
)
from gtp_policy.acting import ArgmaxChoice, ModeChoice, SoftmaxChoice
from gtp_policy.actor import ActionStatistics
from gtp_policy.encoders import ObservationPart
from gtp_policy.errors import UnknownPresetError
from gtp_policy.loss import AlphaSchedule
from gtp_policy.rewards import LinearReward, ReturnRangeReward
from gtp_policy.samplers import JumpSampler, OdeSampler
from gtp_policy.teachers import (
    DifferenceTeacher,
    JvpTeacher,
    NoTeacher,
    OdeTeacher,
    SelfTeacher,
    SurrogateTeacher,
    TerminalTeacher,
)
from gtp_policy.testing import configs, schedules
from gtp_policy.times import KarrasTimes, LinearTimes, LogNormalIndex, UniformIndex, UniformTimes

CORE = Path(gtp_policy.__file__).parent


def configs_of_the_core() -> list[type[Config]]:
    """Returns the public configs of every module at the top of the core."""
    names = sorted(path.stem for path in CORE.glob("*.py") if not path.stem.startswith("_"))
    return sorted(
        {
            value
            for name in names
            for value in vars(importlib.import_module(f"gtp_policy.{name}")).values()
            if inspect.isclass(value) and issubclass(value, Config) and value is not Config
        },
        key=lambda kind: kind.__name__,
    )


CONFIGS = configs_of_the_core()
# What has no default: it is measured.
REQUIRED: dict[type[Config], dict[str, Any]] = {
    ActionStatistics: {"mean": (0.0, 0.5), "std": (0.1, 1.0)},
    ObservationPart: {"shape": (3,), "image": False},
}
every_config = pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)


def numeric_fields() -> list[Any]:
    """All (config, field) whose value is a number, optional ones included."""
    found = []
    for kind in CONFIGS:
        for name, info in kind.model_fields.items():
            types = {info.annotation, *typing.get_args(info.annotation)}
            if types & {int, float}:
                found.append(pytest.param(kind, name, types, id=f"{kind.__name__}.{name}"))
    return found


def refused(kind: type[Config], **fields: Any) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        kind(**fields)
    assert any(error["loc"][0] in fields for error in caught.value.errors())


def test_the_list_of_configs_is_complete() -> None:
    assert {kind.__name__ for kind in CONFIGS} == {
        "ActionStatistics",
        "ImpalaEncoderConfig",
        "ObservationPart",
        "Playback",
        "TerminalTeacher",
        "AdvantageGuidance",
        "AdvantageWeighterConfig",
        "AlphaSchedule",
        "ArgmaxChoice",
        "ModeChoice",
        "Curriculum",
        "DifferenceTeacher",
        "ExpectileBaseline",
        "FlowMapActorConfig",
        "GTPConfig",
        "GTPLearnerConfig",
        "GTPLossConfig",
        "JumpSampler",
        "JvpTeacher",
        "KarrasTimes",
        "LinearQGuidance",
        "LinearReward",
        "LinearTimes",
        "LogNormalIndex",
        "LogitNormalPairs",
        "NoGuidance",
        "NoTeacher",
        "OdeSampler",
        "OdeTeacher",
        "PolicyBaseline",
        "QEnsembleConfig",
        "QuantileBaseline",
        "ReturnRangeReward",
        "SelfTeacher",
        "SoftmaxChoice",
        "StandardizedReward",
        "SurrogateTeacher",
        "TaskPreset",
        "UniformIndex",
        "UniformPairs",
        "UniformTimes",
    }


@every_config
def test_defaults_are_valid_hashable_and_survive_json(kind: type[Config]) -> None:
    config = kind(**REQUIRED.get(kind, {}))
    assert kind.model_validate(config.model_dump()) == config
    assert kind.model_validate_json(config.model_dump_json()) == config
    assert hash(config) == hash(kind(**REQUIRED.get(kind, {})))
    assert config.replace() == config


@every_config
def test_nothing_can_be_set_deleted_or_added(kind: type[Config]) -> None:
    config = kind(**REQUIRED.get(kind, {}))
    for name in kind.model_fields:
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            setattr(config, name, getattr(config, name))
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            delattr(config, name)
    with pytest.raises(pydantic.ValidationError):
        config.no_such_field = 1
    with pytest.raises(pydantic.ValidationError, match="no_such_field"):
        kind(no_such_field=1)
    with pytest.raises(pydantic.ValidationError, match="no_such_field"):
        config.replace(no_such_field=1)


@every_config
def test_every_field_is_described(kind: type[Config]) -> None:
    for name, info in kind.model_fields.items():
        assert info.description, name


@pytest.mark.parametrize(("kind", "name", "types"), numeric_fields())
def test_numbers_are_finite_and_neither_flags_nor_words(
    kind: type[Config], name: str, types: set[type]
) -> None:
    for value in (math.nan, math.inf, -math.inf, True, False, "1", "1e-3", [1], 1 + 0j):
        refused(kind, **{name: value})
    if float not in types:
        refused(kind, **{name: 2.5})
    if type(None) not in types:
        refused(kind, **{name: None})


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (KarrasTimes, {"t_min": 0.0}),
        (KarrasTimes, {"t_min": -0.1}),
        (KarrasTimes, {"rho": 0.5}),
        (UniformTimes, {"t_max": 0.0}),
        (LogNormalIndex, {"std": 0.0}),
        (Curriculum, {"start": 0}),
        (FlowMapActorConfig, {"hidden": ()}),
        (FlowMapActorConfig, {"hidden": (8, 0)}),
        (FlowMapActorConfig, {"hidden": (8, True)}),
        (FlowMapActorConfig, {"hidden": ("8",)}),
        (FlowMapActorConfig, {"time_dim": 3}),
        (FlowMapActorConfig, {"time_dim": 0}),
        (FlowMapActorConfig, {"steps": 0}),
        (FlowMapActorConfig, {"sigma_data": 0.0}),
        (QEnsembleConfig, {"hidden": (-1,)}),
        (QEnsembleConfig, {"members": 0}),
        (QEnsembleConfig, {"layer_norm": 1}),
        (QEnsembleConfig, {"layer_norm": "yes"}),
        (QEnsembleConfig, {"activation": "tanh"}),
        (QEnsembleConfig, {"reduction": "max"}),
        (QEnsembleConfig, {"rho": -0.1}),
        (QuantileBaseline, {"quantile": 0.0}),
        (QuantileBaseline, {"quantile": 1.0}),
        (GTPLearnerConfig, {"backup": "sarsa"}),
        (GTPLearnerConfig, {"critic_penalty": -1.0}),
        (PolicyBaseline, {"samples": 0}),
        (ExpectileBaseline, {"expectile": 0.0}),
        (ExpectileBaseline, {"expectile": 1.0}),
        (ExpectileBaseline, {"hidden": (0,)}),
        (AdvantageWeighterConfig, {"eta": -0.1}),
        (AdvantageWeighterConfig, {"eta": 1e31}),
        (AdvantageWeighterConfig, {"eps": 0.0}),
        (AdvantageWeighterConfig, {"max_weight": 0.5}),
        (AdvantageWeighterConfig, {"max_weight": 1e31}),
        (AdvantageWeighterConfig, {"signed": 1}),
        (AdvantageWeighterConfig, {"effective_share": 0.0}),
        (AdvantageWeighterConfig, {"effective_share": 1.0}),
        (LinearQGuidance, {"weighted": "yes"}),
        (GTPLossConfig, {"flow_weight": -1.0}),
        (GTPLossConfig, {"max_gap": 0}),
        (GTPLossConfig, {"huber": 0.0}),
        (GTPLossConfig, {"reduction": "max"}),
        (GTPLossConfig, {"time_weight": "t"}),
        (GTPLossConfig, {"t_law": {"kind": "karras"}}),
        (GTPLossConfig, {"s_rule": "one"}),
        (GTPLossConfig, {"u_rule": "uniform"}),
        (GTPLossConfig, {"target": "none"}),
        (GTPLossConfig, {"compare_at": "t"}),
        (GTPLossConfig, {"teacher": {"kind": "solver"}}),
        (OdeTeacher, {"steps": 0}),
        (OdeTeacher, {"steps": 4}),
        (OdeTeacher, {"method": "rk4"}),
        (JumpSampler, {"gamma": -0.1}),
        (JumpSampler, {"gamma": 1.1}),
        (OdeSampler, {"method": "rk4"}),
        (LinearQGuidance, {"scale": -1.0}),
        (LinearQGuidance, {"normalize": 1}),
        (LinearQGuidance, {"steps": 0}),
        (SoftmaxChoice, {"temperature": 0.0}),
        (LinearReward, {"multiply": 0.0}),
        (ReturnRangeReward, {"to": 0.0}),
        (LinearTimes, {"t_max": 2.0}),
        (GTPLearnerConfig, {"total_updates": 0}),
        (GTPLearnerConfig, {"actor_lr": 0.0}),
        (GTPLearnerConfig, {"critic_lr": -1.0}),
        (GTPLearnerConfig, {"ema_rate": -0.1}),
        (GTPLearnerConfig, {"ema_rate": 1.5}),
        (GTPLearnerConfig, {"critic_ema_rate": -0.1}),
        (GTPLearnerConfig, {"max_grad_norm": 0.0}),
        (GTPLearnerConfig, {"backup_actions": 0}),
        (GTPLearnerConfig, {"lr_schedule": "linear"}),
        (GTPLearnerConfig, {"normalize_obs": 1}),
        (GTPLearnerConfig, {"seed": -1}),
        (GTPConfig, {"critic": {"members": 0}}),
        (GTPConfig, {"loss": {"curriculum": {"start": 8, "end": 4}}}),
        (GTPConfig, {"actor": {"times": {"kind": "uniform", "rho": 7.0}}}),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(kind: type[Config], fields: dict[str, Any]) -> None:
    refused(kind, **fields)


def test_fields_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match=r"t_min=5.0 must be smaller than t_max=5.0"):
        KarrasTimes(t_min=5.0, t_max=5.0)
    with pytest.raises(pydantic.ValidationError, match="start=20 must not exceed end=10"):
        Curriculum(start=20, end=10)


def test_a_dict_changes_what_it_names_of_a_config_inside() -> None:
    config = GTPConfig(learner=GTPLearnerConfig(total_updates=5000, ema_rate=0.02))
    changed = config.replace(learner={"seed": 1})
    assert changed == config.replace(learner=config.learner.replace(seed=1))
    assert changed.learner.model_fields_set == {"total_updates", "ema_rate", "seed"}
    rho = config.replace(actor={"times": {"kind": "karras", "rho": 5.0}}).replace(
        actor={"hidden": (8,), "times": {"t_max": 40.0}}
    )
    assert (rho.actor.times.rho, rho.actor.times.t_max, rho.actor.hidden) == (5.0, 40.0, (8,))
    other = rho.replace(actor={"times": {"kind": "linear"}})  # nothing of the other kind stays
    assert other.actor.times == LinearTimes()
    with pytest.raises(pydantic.ValidationError, match="sed"):
        config.replace(learner={"sed": 1})


def test_replace_validates_again() -> None:
    config = GTPConfig()
    with pytest.raises(pydantic.ValidationError):
        AdvantageWeighterConfig().replace(eta=-1.0)
    with pytest.raises(pydantic.ValidationError, match="t_min"):
        KarrasTimes(t_min=0.1, t_max=5.0).replace(t_max=0.001)
    with pytest.raises(pydantic.ValidationError, match=r"actor\.times"):
        config.replace(actor={"times": {"kind": "karras", "t_min": 9.0, "t_max": 5.0}})
    with pytest.raises(pydantic.ValidationError):
        config.replace(actor=QEnsembleConfig())
    changed = config.replace(weighter=config.weighter.replace(eta=0.0), critic=None)
    assert changed.weighter.eta == 0.0
    assert changed.critic is None
    assert config == GTPConfig()  # the original is what it was
    assert changed != config


def test_equal_values_are_equal_configs_whatever_their_type() -> None:
    assert KarrasTimes(t_max=5) == KarrasTimes(t_max=5.0)
    assert hash(KarrasTimes(t_max=5)) == hash(KarrasTimes(t_max=5.0))
    assert type(KarrasTimes(t_max=5).t_max) is float
    assert FlowMapActorConfig(hidden=[8, 8]).hidden == (8, 8)
    assert KarrasTimes() != UniformTimes()
    assert len({QEnsembleConfig(), QEnsembleConfig(members=2), QEnsembleConfig(members=3)}) == 2


positive = st.floats(1e-12, 1e12)
numbers = st.just(0.0) | positive
hidden = st.lists(st.integers(1, 2**40), min_size=1, max_size=4).map(tuple)
curricula = st.tuples(st.integers(1, 2**20), st.integers(1, 2**20)).map(
    lambda pair: Curriculum(start=min(pair), end=max(pair))
)
losses = st.builds(
    GTPLossConfig,
    adaptive_power=st.just(0.0),  # another metric than huber's
    flow_times=st.just("shared"),
    map_share=st.just(1.0),
    units=st.just("position"),
    flow_weight=numbers,
    curriculum=curricula,
    t_law=st.just(UniformIndex())
    | st.builds(LogNormalIndex, mean=st.floats(-1e12, -1e-12) | numbers, std=positive),
    max_gap=st.integers(1, 2**62),
    s_rule=st.sampled_from(["uniform", "zero", "equal_u", "dyadic"]),
    u_rule=st.sampled_from(["adjacent", "midpoint"]),
    teacher=st.sampled_from([SurrogateTeacher(), SelfTeacher(), JvpTeacher(), NoTeacher()])
    | st.builds(OdeTeacher, method=st.sampled_from(["euler", "heun"]), steps=st.integers(1, 3)),
    target=st.sampled_from(["ema", "stopgrad"]),
    compare_at=st.sampled_from(["s", "zero"]),
    time_weight=st.sampled_from(["none", "gap", "endpoint", "edm"]),
    huber=st.none() | positive,
    reduction=st.sampled_from(["mean", "sum"]),
)
learners = st.builds(
    GTPLearnerConfig,
    total_updates=st.integers(1, 2**62),
    actor_lr=positive,
    critic_lr=positive,
    lr_schedule=st.sampled_from(["constant", "cosine"]),
    max_grad_norm=st.none() | positive,
    ema_rate=st.floats(1e-12, 1),
    critic_ema_rate=st.none() | st.floats(1e-12, 1),
    baseline=st.builds(PolicyBaseline, samples=st.integers(1, 10_000))
    | st.builds(
        ExpectileBaseline,
        expectile=st.floats(1e-12, 1, exclude_max=True),
        hidden=hidden,
    )
    | st.builds(
        QuantileBaseline,
        quantile=st.floats(1e-12, 1, exclude_max=True),
        hidden=hidden,
    ),
    backup=st.sampled_from(["max_q", "best_of_n"]),
    critic_penalty=numbers,
    guidance=st.sampled_from([AdvantageGuidance(), NoGuidance()])
    | st.builds(
        LinearQGuidance,
        scale=numbers,
        normalize=st.booleans(),
        weighted=st.booleans(),
        steps=st.none() | st.integers(1, 10_000),
    ),
    guidance_start=st.integers(0, 2**62),
    backup_actions=st.integers(1, 10_000),
    choice=st.just(ArgmaxChoice()) | st.builds(SoftmaxChoice, temperature=positive),
    deterministic_choice=st.just(ArgmaxChoice()) | st.just(ModeChoice()),
    normalize_obs=st.booleans(),
    seed=st.integers(0, 2**62),
)
everything = st.builds(
    GTPConfig,
    actor=configs()
    | st.builds(
        FlowMapActorConfig,
        hidden=hidden,
        sigma_data=st.none(),
        times=schedules() | st.just(LinearTimes()),
        sampler=st.builds(JumpSampler, gamma=st.just(0.0) | st.floats(1e-12, 1))
        | st.builds(OdeSampler, method=st.sampled_from(["euler", "heun"])),
    ),
    critic=st.none()
    | st.builds(
        QEnsembleConfig,
        hidden=hidden,
        members=st.integers(1, 99),
        layer_norm=st.booleans(),
        activation=st.sampled_from(["mish", "gelu", "relu"]),
        reduction=st.sampled_from(["min", "mean"]),
        rho=numbers,
    ),
    loss=losses,
    weighter=st.builds(
        AdvantageWeighterConfig,
        eta=st.floats(0, 1e30),
        eps=positive,
        max_weight=st.floats(1.0, 1e30),
        signed=st.booleans(),
        effective_share=st.none() | st.floats(1e-12, 1, exclude_max=True),
    ),
    learner=learners,
)


@given(everything)
def test_json_returns_every_bit(config: GTPConfig) -> None:
    again = GTPConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert hash(again) == hash(config)
    assert again.model_dump_json() == config.model_dump_json()
    assert GTPConfig.model_validate(config.model_dump()) == config
    assert config.replace() == config


def test_json_is_as_strict_as_python() -> None:
    for text in ('{"eta": true}', '{"eta": "1"}', '{"eta": NaN}', '{"eta": 1e999}', '{"tau": 1}'):
        with pytest.raises(pydantic.ValidationError):
            AdvantageWeighterConfig.model_validate_json(text)
    assert AdvantageWeighterConfig.model_validate_json('{"eta": 1}').eta == 1.0


@pytest.mark.parametrize("rho", [0.0, 8.1, 100.0])
def test_nodes_that_float32_cannot_hold_are_refused(rho: float) -> None:
    refused(LinearTimes, rho=rho)
    assert LinearTimes(rho=8.0).floor > np.finfo(np.float32).tiny


@pytest.mark.parametrize("inner", [0.0, 0.9999999, 1.0])
def test_inner_points_that_float32_puts_at_an_end_are_refused(inner: float) -> None:
    refused(GTPLossConfig, inner=inner)


@pytest.mark.parametrize("value", [1e300, 1e39, 1e20, -1e20, 1e-20, 1e-300, 5e-324])
def test_numbers_whose_squares_leave_float32_are_refused(value: float) -> None:
    for config, field in (
        (FlowMapActorConfig, "sigma_data"),
        (KarrasTimes, "t_min"),
        (KarrasTimes, "t_max"),
        (UniformTimes, "t_max"),
        (AlphaSchedule, "sharpness"),
        (DifferenceTeacher, "step"),
        (TerminalTeacher, "step"),
        (GTPLossConfig, "huber"),
        (LinearQGuidance, "scale"),
        (SoftmaxChoice, "temperature"),
        (LogNormalIndex, "mean"),
        (QEnsembleConfig, "rho"),
    ):
        refused(config, **{field: value})


@pytest.mark.parametrize(
    "statistics", [{"mean": (1.5,)}, {"mean": (-1e300,)}, {"std": (1.5,)}, {"std": (1e-7,)}]
)
def test_statistics_that_no_actions_have_are_refused(statistics: dict[str, Any]) -> None:
    refused(ActionStatistics, **{"mean": (0.0,), "std": (0.5,)} | statistics)


def test_a_grid_that_does_not_fall_is_refused_before_anything_acts() -> None:
    with pytest.raises(pydantic.ValidationError, match="equal neighbours"):
        FlowMapActorConfig(times=LinearTimes(rho=1e-10), steps=2)
    FlowMapActorConfig(times=LinearTimes(rho=1e-10), steps=1)


def test_a_schedule_of_alpha_is_finite_however_sharp() -> None:
    places = [AlphaSchedule(sharpness=1e12).at(progress) for progress in (0.0, 0.5, 1.0)]
    assert places == [0.0, 0.5, 0.995]


@pytest.mark.parametrize(
    ("build", "meant"),
    [
        (lambda: GTPLearnerConfig(total_update=3), "Did you mean total_updates?"),
        (lambda: GTPConfig(eta=3), "Did you mean weighter.eta?"),
        (lambda: GTPConfig(critics=None), "Did you mean critic?"),
        (lambda: GTPConfig().replace(rho=1.0), "critic.rho"),
        (lambda: GTPConfig(learner={"sed": 3}), "Did you mean seed?"),
        (lambda: GTPConfig.from_record({"lerner": {}}), "Did you mean learner?"),
        (lambda: presets.get("gtpp"), "Did you mean gtp?"),
        (lambda: presets.get("shortcuts"), "Did you mean shortcut?"),
        (lambda: GTPConfig(quux=1), "Extra inputs are not permitted"),
    ],
)
def test_an_unknown_name_gets_a_guess(build: Callable[[], Any], meant: str) -> None:
    with pytest.raises((pydantic.ValidationError, UnknownPresetError)) as caught:
        build()
    assert meant in str(caught.value)
