"""What survives: state dictionaries, checkpoints, a run that was interrupted and resumed."""

import copy
import io
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from tianshou.algorithm.optim import (
    AdamOptimizerFactory,
    LRSchedulerFactory,
    LRSchedulerFactoryLinear,
    OptimizerFactory,
    RMSpropOptimizerFactory,
)
from tianshou.data import Batch
from tianshou.trainer import OfflineTrainerParams
from tianshou.utils import TensorboardLogger
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torch.utils.tensorboard import SummaryWriter

from gtp_policy import (
    ActionScaler,
    ExpectileBaseline,
    FlowMapActor,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    OfflineDataset,
    QEnsemble,
    QEnsembleConfig,
    latest_valid,
    load_checkpoint,
    read_metadata,
    save_checkpoint,
)
from gtp_policy.errors import CheckpointError, DataError, StateMismatchError
from gtp_policy.export import Surroundings, export_onnx
from gtp_runtime import Policy as RuntimePolicy
from gtp_tianshou import GTP, GTPPolicy, buffer_from_dataset
from gtp_tianshou._state import check_schedulers

Make = Callable[..., GTP]
Params = Callable[..., OfflineTrainerParams]


class Cosine(LRSchedulerFactory):
    def create_scheduler(self, optim: torch.optim.Optimizer) -> LRScheduler:
        return CosineAnnealingLR(optim, T_max=20)


def linear() -> OptimizerFactory:
    schedule = LRSchedulerFactoryLinear(4, 5, 1)
    return AdamOptimizerFactory(lr=1e-2).with_lr_scheduler_factory(schedule)


def cosine() -> OptimizerFactory:
    return RMSpropOptimizerFactory(lr=1e-2, momentum=0.9).with_lr_scheduler_factory(Cosine())


def assert_same(a: Any, b: Any, name: str = "state") -> None:
    assert type(a) is type(b), name
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), name
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), name
        for key in a:
            assert_same(a[key], b[key], f"{name}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), name
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{name}[{i}]")
    else:
        assert a == b, name


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("factory", [None, linear, cosine])
def test_a_state_continues_bit_for_bit(
    dataset: OfflineDataset, make_algorithm: Make, params: Params, factory: Any
) -> None:
    def make() -> GTP:
        options = {} if factory is None else {"policy_optim": factory(), "critic_optim": linear()}
        config = GTPLearnerConfig(
            total_updates=20, baseline=ExpectileBaseline(hidden=(8,)), lr_schedule="cosine"
        )
        return make_algorithm(config=config, **options)

    whole, half = make(), make()
    whole.run_training(params(dataset, max_epochs=4))
    half.run_training(params(dataset))
    state = through_a_file(half.state_dict())
    kept = copy.deepcopy(state)
    other = make()
    assert not other.load_state_dict(state).missing_keys
    assert_same(state, kept)  # Tianshou's own takes a key out of the caller's dictionary
    assert other.learner.updates == 10
    other.run_training(params(dataset))
    assert_same(through_a_file(other.state_dict()), through_a_file(whole.state_dict()))


def test_a_loaded_state_is_a_copy(
    dataset: OfflineDataset, make_algorithm: Make, params: Params
) -> None:
    algorithm, other = make_algorithm(policy_optim=linear()), make_algorithm(policy_optim=linear())
    algorithm.run_training(params(dataset))
    state = algorithm.state_dict()
    before = copy.deepcopy(state)
    other.load_state_dict(state)
    other.run_training(params(dataset))
    assert_same(state, before)


def test_states_of_another_algorithm_are_refused_whole(
    dataset: OfflineDataset, make_algorithm: Make, params: Params
) -> None:
    algorithm = make_algorithm(policy_optim=linear())
    algorithm.run_training(params(dataset))
    before = copy.deepcopy(algorithm.state_dict())
    wide = QEnsemble(3, 2, QEnsembleConfig(hidden=(17,)))
    cases: list[tuple[dict[str, Any], str]] = [
        (algorithm.policy.state_dict(), "not one of GTP"),
        ({}, "not one of GTP"),
        (make_algorithm().state_dict(), "got 0, expected 2"),
        (make_algorithm(policy_optim=linear(), critic=wide).state_dict(), "other networks"),
        (make_algorithm(policy_optim=linear(), critic=None).state_dict(), "other networks"),
    ]
    broken = algorithm.state_dict()
    other_flow = FlowMapActor(3, 2, FlowMapActorConfig(sigma_data=0.25))
    broken["learner.actor._extra_state"] = other_flow.get_extra_state()
    cases.append((broken, "another flow map"))
    for state, match in cases:
        with pytest.raises(StateMismatchError, match=match):
            algorithm.load_state_dict(state)
        assert_same(algorithm.state_dict(), before)
    renamed = {k.replace("biases.0", "bias"): v for k, v in algorithm.state_dict().items()}
    with pytest.raises(StateMismatchError, match="other networks"):
        algorithm.load_state_dict(renamed)


def test_part_of_a_state_can_be_taken(
    dataset: OfflineDataset, make_algorithm: Make, params: Params
) -> None:
    algorithm, other = make_algorithm(), make_algorithm()
    algorithm.run_training(params(dataset))
    part = {k: v for k, v in algorithm.state_dict().items() if k.startswith("policy.")}
    result = other.load_state_dict(part, strict=False)
    assert result.unexpected_keys == []
    for key, value in part.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(other.state_dict()[key], value)
    assert other.learner.updates == 0


@pytest.mark.parametrize("kept_as", ["state", "checkpoint"])
def test_a_run_resumed_from_its_log_is_the_uninterrupted_one(
    dataset: OfflineDataset,
    make_algorithm: Make,
    params: Params,
    tmp_path: Path,
    action_space: Box,
    kept_as: str,
) -> None:
    def train(algorithm: GTP, folder: Path, **options: Any) -> int:
        def save(epoch: int, env_step: int, gradient_step: int) -> str:
            torch.save(algorithm.state_dict(), folder / "algorithm.pt")
            return str(algorithm.save(folder / "checkpoints" / f"{gradient_step:06d}"))

        writer = SummaryWriter(str(folder / "log"))
        logger = TensorboardLogger(writer, save_interval=1, update_interval=1)
        result = algorithm.run_training(
            params(dataset, logger=logger, save_checkpoint_fn=save, **options)
        )
        logger.finalize()
        return result.update_step

    whole, cut = make_algorithm(policy_optim=linear()), make_algorithm(policy_optim=linear())
    assert train(whole, tmp_path / "whole", max_epochs=4) == 20
    assert train(cut, tmp_path / "cut", max_epochs=2) == 10
    if kept_as == "state":
        resumed = make_algorithm(policy_optim=linear())
        state = torch.load(tmp_path / "cut" / "algorithm.pt", weights_only=True)
        resumed.load_state_dict(state)
    else:
        path = latest_valid(tmp_path / "cut" / "checkpoints")
        assert path is not None
        resumed = GTP.load(path, action_space=action_space, policy_optim=linear())
    assert resumed.learner.updates == 10
    # Logs are read in the order of their names, which hold the second in which they were begun.
    time.sleep(1 - time.time() % 1)
    assert train(resumed, tmp_path / "cut", max_epochs=4, resume_from_log=True) == 20
    assert_same(resumed.state_dict(), whole.state_dict())
    logged = TensorboardLogger.restore_logged_data(str(tmp_path / "cut" / "log"))
    steps = logged["update"]["update_step"]  # type: ignore[index,call-overload]
    assert steps.tolist() == list(range(1, 21))


def test_a_checkpoint_is_the_whole_algorithm(
    dataset: OfflineDataset, params: Params, tmp_path: Path, small: GTPConfig, goal_env: Any
) -> None:
    policy = GTPPolicy(
        actor=FlowMapActor(4, 1, small.actor),
        action_space=goal_env.action_space,
        observation_space=goal_env.observation_space,
        deterministic_eval=False,
        candidates=3,
        critic=QEnsemble(4, 1, small.critic),
        seed=7,
    )
    algorithm = GTP(policy=policy, critic=QEnsemble(4, 1, small.critic), gamma=0.9)
    path = algorithm.save(tmp_path / "a.zip", metadata={"task": "reach"})
    loaded = GTP.load(path)
    assert loaded.gamma == 0.9
    for name in ("deterministic_eval", "candidates", "steps", "seed", "layout"):
        assert getattr(loaded.policy, name) == getattr(policy, name), name
    assert loaded.policy.action_scaler == policy.action_scaler
    assert loaded.learner.full_config == algorithm.learner.full_config
    assert_same(loaded.state_dict(), algorithm.state_dict())
    obs, _ = goal_env().reset(seed=0)
    assert np.array_equal(loaded.policy.compute_action(obs), policy.compute_action(obs))
    assert read_metadata(path).metadata["task"] == "reach"
    assert GTP.load(path, gamma=0.5).gamma == 0.5


def test_files_go_from_host_to_host(
    dataset: OfflineDataset, action_space: Box, small: GTPConfig, params: Params, tmp_path: Path
) -> None:
    ours = GTP.from_buffer(dataset, action_space=action_space, config=small)
    ours.run_training(params(dataset))
    learner = load_checkpoint(ours.save(tmp_path / "ours")).learner
    obs = dataset.transitions.obs[:4]
    ours.policy.candidates = 4
    act = learner.act(obs, candidates=4, deterministic=True)
    assert torch.equal(ours.policy(Batch(obs=obs.numpy())).act, act)
    # The core trains on with the very file, and hands it back.
    while learner.updates < 20:
        learner.update(dataset.sample(16, generator=learner.stream("batch")))
    save_checkpoint(tmp_path / "core", learner, action_scaler=dataset.action_scaler)
    back = GTP.load(tmp_path / "core", action_space=action_space)
    assert back.learner.updates == 20
    whole = GTP.from_buffer(dataset, action_space=action_space, config=small)
    whole.learner.load_state_dict(load_checkpoint(tmp_path / "ours").learner.state_dict())
    whole.learner.set_total_updates_(10)
    table = whole.process_buffer(dataset)
    for _ in range(10):
        whole.learner.update(table.sample(16)[0])
    assert_same(dict(back.learner.state_dict()), dict(whole.learner.state_dict()))


def test_optimisers_and_schedulers_of_a_checkpoint(
    dataset: OfflineDataset, make_algorithm: Make, params: Params, tmp_path: Path
) -> None:
    algorithm = make_algorithm(policy_optim=cosine(), critic_optim=linear())
    algorithm.run_training(params(dataset))
    path = algorithm.save(tmp_path / "a")
    loaded = GTP.load(path, policy_optim=cosine(), critic_optim=linear())
    assert_same(loaded.state_dict(), algorithm.state_dict())
    with pytest.raises((StateMismatchError, CheckpointError), match="train_state=False"):
        GTP.load(path)  # RMSprop's state is none of Adam's
    acting = GTP.load(path, train_state=False)
    row = np.zeros(3)
    assert np.array_equal(acting.policy.compute_action(row), algorithm.policy.compute_action(row))
    adam = make_algorithm(policy_optim=linear()).save(tmp_path / "b")
    with pytest.raises(StateMismatchError, match=r"got 2, expected 0.*train_state=False"):
        GTP.load(adam)
    bare = make_algorithm().save(tmp_path / "c")
    with pytest.raises(StateMismatchError, match="got 0, expected 2"):
        GTP.load(bare, policy_optim=linear())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(["T_max", "base_lrs", "last_epoch"], ["x", None, [1.0], np.nan, {}]),
        ("T_max", 0),  # it is divided by
        ("T_max", -20),
        ("eta_min", 1e30),
    ],
)
def test_a_scheduler_takes_no_state_of_other_types(
    dataset: OfflineDataset, make_algorithm: Make, params: Params, name: str, value: Any
) -> None:
    algorithm = make_algorithm(policy_optim=cosine(), critic_optim=linear())
    algorithm.run_training(params(dataset))
    states = [copy.deepcopy(s.state_dict()) for s in algorithm.lr_schedulers]
    check_schedulers(states, algorithm.lr_schedulers)
    (state,) = (s for s in states if "T_max" in s)
    state[name] = value if name != "base_lrs" or value != [1.0] else [1.0, 1.0]
    with pytest.raises(StateMismatchError, match=f"got {name}="):
        check_schedulers(states, algorithm.lr_schedulers)


def test_a_loaded_run_goes_on_with_the_length_it_had(
    dataset: OfflineDataset, action_space: Box, small: GTPConfig, params: Params, tmp_path: Path
) -> None:
    algorithm = GTP.from_buffer(dataset, action_space=action_space, config=small)
    algorithm.create_trainer(params(dataset, max_epochs=100))
    loaded = GTP.load(algorithm.save(tmp_path / "a"))
    loaded.create_trainer(params(dataset))
    assert loaded.learner.config.total_updates == 500


@pytest.mark.parametrize("of_the_core", [True, False])
def test_a_loaded_run_that_had_ended_becomes_longer(
    dataset: OfflineDataset,
    action_space: Box,
    small: GTPConfig,
    params: Params,
    tmp_path: Path,
    of_the_core: bool,
) -> None:
    algorithm = GTP.from_buffer(dataset, action_space=action_space, config=small)
    algorithm.run_training(params(dataset))
    save = algorithm.learner.save if of_the_core else algorithm.save
    loaded = GTP.load(save(tmp_path / "a"), action_space=action_space)
    before = [p.detach().clone() for p in loaded.learner.actor.parameters()]
    loaded.run_training(params(dataset))  # it moved nothing: its rates had fallen to 0
    assert loaded.learner.config.total_updates == 20
    now = loaded.learner.actor.parameters()
    assert not any(torch.equal(a, b) for a, b in zip(before, now, strict=True))
    algorithm.run_training(params(dataset))
    assert_same(loaded.state_dict(), algorithm.state_dict())


def test_spaces_of_a_checkpoint(make_algorithm: Make, tmp_path: Path) -> None:
    path = make_algorithm().save(tmp_path / "a")
    space = GTP.load(path).policy.action_space
    assert isinstance(space, Box)
    assert (space.low.tolist(), space.high.tolist()) == ([-2.0, 0.0], [2.0, 5.0])
    for wrong in (Box(-1, 1, (2,)), Box(-2, 2, (1,))):
        with pytest.raises(StateMismatchError, match="trained for other actions"):
            GTP.load(path, action_space=wrong)
    bare = save_checkpoint(tmp_path / "bare", GTPLearner.build(3, 2, GTPConfig(critic=None)))
    with pytest.raises(StateMismatchError, match="names no action bounds"):
        GTP.load(bare)
    assert GTP.load(bare, action_space=Box(-1, 1, (2,))).policy.critic is None


def test_another_dtype_survives(make_algorithm: Make, tmp_path: Path) -> None:
    algorithm = make_algorithm().to(torch.float64)
    loaded = GTP.load(algorithm.save(tmp_path / "a"))
    assert_same(loaded.state_dict(), algorithm.state_dict())


def test_files_that_cannot_be_written_or_read(make_algorithm: Make, tmp_path: Path) -> None:
    algorithm = make_algorithm()
    path = algorithm.save(tmp_path / "a")
    with pytest.raises(CheckpointError, match="exists"):
        algorithm.save(path)
    with pytest.raises(CheckpointError, match="JSON"):
        algorithm.save(tmp_path / "b", metadata={"x": float("nan")})
    with pytest.raises(CheckpointError, match="nowhere"):
        GTP.load(tmp_path / "nowhere")
    for _ in range(2):  # a zip file is replaced, as save_best_fn needs it
        algorithm.save(tmp_path / "best.zip")


@pytest.mark.parametrize(
    ("own", "match"),
    [
        ({"gamma": "0.9"}, "gamma"),
        ({"gamma": 2.0}, "gamma"),
        ({"candidates": 10**12}, "candidates"),
        ({"candidates": 4}, "without a critic"),
        ({"lr_schedulers": [3]}, "lr_schedulers"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"lr_schedulers": [3] * 40_000}, "more than 32768 values"),
        ("text", "tianshou"),
    ],
)
def test_metadata_that_we_did_not_write(own: Any, match: str, tmp_path: Path) -> None:
    learner = GTPLearner.build(3, 2, GTPConfig(critic=None))
    path = save_checkpoint(tmp_path / "a", learner, metadata={"tianshou": own})
    with pytest.raises(CheckpointError, match=match):
        GTP.load(path, action_space=Box(-1, 1, (2,)))


@pytest.mark.parametrize("value", [object(), 3, "x", [object()], {"a": 1}])
def test_what_is_no_state_of_schedulers(make_algorithm: Make, value: Any) -> None:
    algorithm = make_algorithm(policy_optim=linear())
    with pytest.raises(StateMismatchError, match="schedulers are none"):
        algorithm.load_state_dict(algorithm.state_dict() | {"_lr_schedulers": value})


def test_states_of_another_kind_of_scheduler(make_algorithm: Make, tmp_path: Path) -> None:
    one, other = make_algorithm(policy_optim=linear()), make_algorithm(policy_optim=cosine())
    state = one.state_dict() | {"_lr_schedulers": other.state_dict()["_lr_schedulers"]}
    with pytest.raises(StateMismatchError, match=r"T_max.*LambdaLR"):
        one.load_state_dict(state)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: setattr(a.policy, "steps", 20_000),
        lambda a: setattr(a.policy, "candidates", 20_000),
        lambda a: setattr(a.policy, "seed", 2**70),
        lambda a: setattr(a.policy, "steps", "2"),
    ],
)
def test_what_loading_refuses_is_not_saved(
    make_algorithm: Make, tmp_path: Path, spoil: Any
) -> None:
    algorithm = make_algorithm()
    path = algorithm.save(tmp_path / "policy.zip")
    before = path.read_bytes()
    spoil(algorithm)
    with pytest.raises(CheckpointError, match=r"cannot be saved: got .*, expected"):
        algorithm.save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("flag", [np.True_, np.False_, 1, 0])
def test_flags_and_numbers_of_numpy_are_saved(
    make_algorithm: Make, tmp_path: Path, flag: Any
) -> None:
    algorithm = make_algorithm(gamma=torch.tensor(0.5))
    chosen = {"deterministic_eval": flag, "steps": np.int64(3), "seed": np.uint8(4)}
    for name, value in {**chosen, "candidates": np.int32(2)}.items():
        setattr(algorithm.policy, name, value)
    loaded = GTP.load(algorithm.save(tmp_path / "a.zip"))
    assert {name: getattr(loaded.policy, name) for name in chosen} == chosen
    assert (loaded.policy.candidates, loaded.gamma) == (2, 0.5)
    for obs in np.zeros((2, 3)):
        np.testing.assert_array_equal(
            loaded.policy.compute_action(obs), algorithm.policy.compute_action(obs)
        )


def test_a_state_that_fails_late_changes_nothing(
    dataset: OfflineDataset, make_algorithm: Make, params: Params
) -> None:
    options = {"policy_optim": linear(), "critic_optim": linear()}
    algorithm, other = (make_algorithm(**options) for _ in range(2))
    other.run_training(params(dataset))
    state, before = other.state_dict(), copy.deepcopy(algorithm.state_dict())
    state["_lr_schedulers"][-1] = dict.fromkeys(algorithm.lr_schedulers[-1].state_dict(), None)
    algorithm.lr_schedulers[-1].load_state_dict = fail  # type: ignore[method-assign]
    with pytest.raises(StateMismatchError, match="on purpose"):
        algorithm.load_state_dict(state)
    del algorithm.lr_schedulers[-1].load_state_dict
    assert_same(algorithm.state_dict(), before)


@pytest.mark.parametrize(
    "wrong", [{"policy._extra_state": torch.zeros(3)}, {"_lr_schedulers": [{"foreign": 1}]}]
)
def test_a_state_that_is_refused_stays_as_it_is(make_algorithm: Make, wrong: Any) -> None:
    algorithm, other = (make_algorithm(policy_optim=linear()) for _ in range(2))
    with torch.no_grad():
        other.learner.actor.network.mlp[0].weight += 1
    state, before = other.state_dict() | wrong, copy.deepcopy(algorithm.state_dict())
    given = copy.deepcopy(state)
    with pytest.raises(StateMismatchError):
        algorithm.load_state_dict(state, strict=False, assign=True)
    assert_same(state, given)
    assert_same(algorithm.state_dict(), before)


def test_what_a_state_brings_is_trained(
    dataset: OfflineDataset, make_algorithm: Make, params: Params
) -> None:
    algorithm, other = make_algorithm(), make_algorithm()
    algorithm.run_training(params(dataset))
    state = copy.deepcopy(algorithm.state_dict())
    other.load_state_dict(state, assign=True)
    assert other.learner.actor.network.mlp[0].weight.data_ptr() == (
        state["learner.actor.network.mlp.0.weight"].data_ptr()
    )
    for one in (algorithm, other):
        one.learner.update(dataset.sample(8, generator=torch.Generator().manual_seed(0)))
    assert_same(other.state_dict(), algorithm.state_dict())


failures = iter([True])


def fail(state: Any) -> None:
    if next(failures, False):
        raise StateMismatchError("on purpose")


def test_gamma_is_one_choice(
    dataset: OfflineDataset,
    action_space: Box,
    small: GTPConfig,
    make_algorithm: Make,
    tmp_path: Path,
) -> None:
    half = GTPLearnerConfig(gamma=0.5)
    assert make_algorithm(config=half).gamma == 0.5
    assert make_algorithm(config=half, gamma=0.5).gamma == 0.5
    config = small.replace(learner=half)
    buffer = buffer_from_dataset(dataset)
    algorithm = GTP.from_buffer(buffer, action_space=action_space, config=config)
    assert algorithm.gamma == 0.5
    assert algorithm.process_buffer(buffer).dataset.transitions.discount.max() == 0.5
    with pytest.raises(ValueError, match=r"one choice: got 0.9 and 0.5"):
        make_algorithm(config=half, gamma=0.9)
    with pytest.raises(ValueError, match=r"one choice: got 0.9 and 0.5"):
        GTP.from_buffer(buffer, action_space=action_space, config=config, gamma=0.9)
    with pytest.raises(DataError, match=r"got gamma=0.99, expected 0.5"):
        GTP.from_buffer(dataset, action_space=action_space, config=config)
    # A file of the core has it in the config.
    loaded = GTP.load(algorithm.learner.save(tmp_path / "a"), action_space=action_space)
    assert loaded.gamma == 0.5
    other = GTP.load(tmp_path / "a", action_space=action_space, gamma=0.9)
    assert other.gamma == other.learner.config.gamma == 0.9


def test_gamma_is_a_discount(make_algorithm: Make) -> None:
    for gamma in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="gamma"):
            make_algorithm(gamma=gamma)


def test_a_file_made_from_a_checkpoint_acts_as_the_policy(tmp_path: Path) -> None:
    actor = FlowMapActor(4, 6, FlowMapActorConfig(hidden=(16,)))
    policy = GTPPolicy(actor=actor, action_space=Box(0, 9, (2, 3), np.int32), steps=3)
    algorithm = GTP(policy=policy, critic=None)
    path = algorithm.save(tmp_path / "policy.zip", metadata={"task": "toy"})
    obs = np.random.default_rng(0).standard_normal((50, 4), np.float32)
    right = policy.forward(Batch(obs=obs, info={})).act
    right = policy.map_action(np.asarray(right))
    for source in (policy, path):
        document = export_onnx(source, tmp_path / "policy.onnx")
        assert document.steps == 3
        assert document.action.shape == (2, 3)
        found = RuntimePolicy.load(tmp_path / "policy.onnx").act(obs, deterministic=True)
        np.testing.assert_array_equal(found, right)


def test_the_default_space_is_of_the_saved_shape_and_kind(tmp_path: Path) -> None:
    actor = FlowMapActor(4, 6, FlowMapActorConfig(hidden=(16,)))
    space = Box(0, 9, (2, 3), np.int8)
    policy = GTPPolicy(actor=actor, action_space=space, steps=3)
    path = GTP(policy=policy, critic=None).save(tmp_path / "policy.zip")
    obs = np.ones(4, np.float32)
    loaded = GTP.load(path)
    assert loaded.policy.action_space == Box(0, 9, (2, 3), np.int64)
    np.testing.assert_array_equal(loaded.policy.compute_action(obs), policy.compute_action(obs))
    again = read_metadata(loaded.save(tmp_path / "again.zip")).metadata
    assert again == read_metadata(path).metadata
    assert GTP.load(path, action_space=space).policy.action_space == space
    for other in (Box(0, 9, (6,), np.int8), Box(0, 9, (2, 3))):
        with pytest.raises(StateMismatchError, match="other actions"):
            GTP.load(path, action_space=other)


@pytest.mark.parametrize("change", [{"steps": 2}, {"candidates": 3}])
def test_a_file_that_says_two_things_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    learner = GTPLearner.build(4, 6)
    metadata = {"tianshou": {"steps": 5, "candidates": 7}}
    record = Surroundings(steps=5, candidates=7).replace(**change).record()
    path = save_checkpoint(
        tmp_path / "policy.zip",
        learner,
        action_scaler=ActionScaler([-1.0] * 6, [1.0] * 6),
        metadata=metadata | record,
    )
    with pytest.raises(CheckpointError, match="contradicts itself"):
        GTP.load(path)


@pytest.mark.parametrize(
    "surroundings",
    [{"steps": 0}, {"action_shape": [5]}, {"candidates": 10**9}, {"colour": "red"}, [1]],
)
def test_surroundings_that_do_not_fit_are_refused(tmp_path: Path, surroundings: Any) -> None:
    actor = FlowMapActor(4, 6, FlowMapActorConfig(hidden=(16,)))
    learner = GTPLearner(actor, None, config=GTPLearnerConfig())
    path = save_checkpoint(
        tmp_path / "policy.zip", learner, metadata={Surroundings.KEY: surroundings}
    )
    with pytest.raises(CheckpointError, match="metadata of 'policy_surroundings' with"):
        export_onnx(path, tmp_path / "policy.onnx")
