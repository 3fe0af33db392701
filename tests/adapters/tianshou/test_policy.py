"""The policy against the core's own way of acting, and against what Tianshou expects of one."""

import copy
import io
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces import Box
from tianshou.algorithm.algorithm_base import Policy
from tianshou.data import Batch
from tianshou.utils.torch_utils import policy_within_training_step

from gtp_policy import (
    ActionScaler,
    FlowMapActor,
    GTPConfig,
    GTPLearnerConfig,
    ObservationLayout,
    QEnsemble,
    act,
)
from gtp_policy.acting import ArgmaxChoice, ModeChoice
from gtp_policy.chunks import Playback
from gtp_policy.errors import (
    DataError,
    NonFiniteError,
    ShapeError,
    StateMismatchError,
    UnsupportedSpaceError,
)
from gtp_tianshou import GTPPolicy

Make = Callable[..., GTPPolicy]
OBS = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


def fingerprint(module: torch.nn.Module) -> list[Any]:
    tensors = [v.clone() for v in module.state_dict().values() if isinstance(v, torch.Tensor)]
    return [t.numpy().tobytes() for t in tensors] + [m.training for m in module.modules()]


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("candidates", [1, 4])
def test_actions_are_the_cores_mapped_to_the_box(
    make_policy: Make, action_space: Box, candidates: int
) -> None:
    policy = make_policy(candidates=candidates)
    expected = act(
        policy.actor,
        policy.critic,
        torch.from_numpy(OBS),
        candidates=candidates,
        deterministic=True,
    )
    assert torch.equal(policy(Batch(obs=OBS, info=Batch())).act, expected)
    scaler = ActionScaler(action_space.low, action_space.high)
    one = act(
        policy.actor,
        policy.critic,
        torch.from_numpy(OBS[:1]),
        candidates=candidates,
        deterministic=True,
    )
    action = policy.compute_action(OBS[0])
    assert np.array_equal(action, scaler.to_box(one.numpy())[0])
    assert action.dtype == action_space.dtype


def test_a_batch_acts_as_its_rows(make_policy: Make) -> None:
    policy = make_policy()
    together = policy.map_action(policy(Batch(obs=OBS)).act)
    for row, action in zip(OBS, together, strict=True):
        assert np.allclose(policy.compute_action(row), action, atol=1e-6)


def test_evaluation_is_repeatable_and_training_is_not(make_policy: Make) -> None:
    policy, batch = make_policy(), Batch(obs=OBS)
    assert torch.equal(policy(batch).act, policy(batch).act)
    with policy_within_training_step(policy):  # Tianshou's convention, whatever deterministic_eval
        assert not torch.equal(policy(batch).act, policy(batch).act)
    policy.deterministic_eval = False
    assert not torch.equal(policy(batch).act, policy(batch).act)


def test_default_candidates_need_determinism_and_no_critic(make_policy: Make) -> None:
    batch, obs = Batch(obs=OBS), torch.from_numpy(OBS)
    policy = make_policy()
    alone = act(policy.actor, None, obs, deterministic=True)
    assert torch.equal(policy(batch).act, alone)
    policy.critic = None
    assert torch.equal(policy(batch).act, alone)
    policy._own_choices = GTPLearnerConfig(eval_candidates=16)
    mode = act(policy.actor, None, obs, candidates=16, choice=ModeChoice(), deterministic=True)
    assert torch.equal(policy(batch).act, mode)
    sampling, same = make_policy(deterministic_eval=False, seed=5), torch.Generator()
    expected = act(sampling.actor, None, obs, generator=same.manual_seed(5))
    assert torch.equal(sampling(batch).act, expected)


def test_seeds_are_honoured(make_policy: Make) -> None:
    batch = Batch(obs=OBS)
    actions = [make_policy(deterministic_eval=False, seed=s)(batch).act for s in (1, 1, 2)]
    assert torch.equal(actions[0], actions[1])
    assert not torch.equal(actions[0], actions[2])
    policy = make_policy(deterministic_eval=False, seed=5)
    policy(batch)
    policy.seed = 2
    assert torch.equal(policy(batch).act, actions[2])


def test_no_graph_is_built(make_policy: Make) -> None:
    result = make_policy()(Batch(obs=OBS), state=None)
    assert not result.act.requires_grad
    assert result.state is None


@pytest.mark.parametrize("shape", [(1,), (2, 3), ()])
def test_an_action_keeps_the_shape_of_its_space(make_policy: Make, shape: tuple[int, ...]) -> None:
    space = Box(-0.4, 0.4, shape)
    policy = make_policy(action_space=space)
    assert policy(Batch(obs=OBS)).act.shape == (7, *shape)
    action = policy.compute_action(OBS[0])
    assert action.shape == shape
    assert space.contains(action)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mapped_actions_stay_inside_the_box(dtype: Any) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        low = rng.normal(size=3).astype(dtype)
        space = Box(low, low + rng.uniform(1e-3, 5, 3).astype(dtype), dtype=dtype)
        policy = GTPPolicy.__new__(GTPPolicy)  # the map alone: no networks, no compilation
        torch.nn.Module.__init__(policy)
        policy.action_space = space
        policy.action_scaler = ActionScaler(space.low, space.high)
        unit = rng.uniform(-1.2, 1.2, (20, 3)).astype(np.float32)
        unit[:2] = [[-1.0] * 3, [1.0] * 3]
        mapped = policy.map_action(unit)
        assert mapped.dtype == dtype
        assert all(space.contains(a) for a in mapped)
        assert np.allclose(mapped[:2], [space.low, space.high], atol=1e-6)
        back = policy.map_action_inverse(mapped)
        scale = np.abs([space.low, space.high]).max(0) / (space.high - space.low)
        assert (np.abs(back - unit.clip(-1, 1)) <= 1e-6 * (1 + scale)).all()


def test_the_maps_agree_with_tianshous_own(make_policy: Make, action_space: Box) -> None:
    policy = make_policy()
    unit = np.random.default_rng(0).uniform(-1, 1, (9, 2)).astype(np.float32)
    mapped = Policy.map_action(policy, unit)
    assert np.allclose(policy.map_action(unit), mapped, atol=1e-6)
    assert np.allclose(policy.map_action_inverse(mapped), Policy.map_action_inverse(policy, mapped))
    assert np.allclose(policy.map_action(torch.from_numpy(unit)), mapped, atol=1e-6)
    assert policy.map_action(unit[0]).shape == (2,)


def test_dict_observations_are_read_by_key(goal_env: Any) -> None:
    layout = ObservationLayout.of_dict({"observation": (2,), "achieved_goal": (1,)})
    actor = FlowMapActor(4, 1)
    policy = GTPPolicy(
        actor=actor,
        action_space=goal_env.action_space,
        observation_space=goal_env.observation_space,
        candidates=1,
    )
    assert policy.layout.keys == ("observation", "achieved_goal", "desired_goal")
    obs, _ = goal_env().reset(seed=0)
    flat = np.concatenate([obs["observation"], obs["achieved_goal"], obs["desired_goal"]])
    expected = act(actor, None, torch.from_numpy(flat[None]), deterministic=True)
    action = policy.compute_action(obs)
    assert np.array_equal(action, policy.map_action(expected[0]))
    batch = Batch(obs={key: np.stack([v, v]) for key, v in obs.items()})
    assert torch.allclose(policy(batch).act, expected.expand(2, 1), atol=1e-6)
    some = GTPPolicy(
        actor=FlowMapActor(3, 1),
        action_space=goal_env.action_space,
        observation_space=goal_env.observation_space,
        layout=layout,
    )
    assert some.compute_action({**obs, "desired_goal": np.array([np.nan])}).shape == (1,)


def test_images_and_odd_types_of_observations(make_policy: Make) -> None:
    policy = make_policy(obs_dim=6, observation_space=Box(0, 255, (2, 3), np.uint8))
    frame = np.arange(6, dtype=np.uint8).reshape(2, 3)
    action = policy.compute_action(frame)
    assert np.array_equal(action, policy.compute_action(frame.astype(np.float64)))
    assert np.array_equal(action, policy.compute_action(frame.tolist()))
    frame.flags.writeable = False  # shared memory of a subprocess may be so
    assert np.array_equal(action, policy.compute_action(frame))
    tensor = torch.from_numpy(frame.copy())[None].float()
    assert np.array_equal(action, policy.map_action(policy(Batch(obs=tensor)).act)[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_observations_that_are_not_finite_are_named(make_policy: Make, bad: float) -> None:
    policy, obs = make_policy(), OBS.astype(np.float64)
    obs[4, 2] = bad
    with pytest.raises(DataError, match="row 4, dimension 2"):
        policy(Batch(obs=obs))
    with pytest.raises(DataError, match="row 0, dimension 2"):
        policy.compute_action(obs[4])
    with pytest.raises(DataError, match="row 4, dimension 2"):
        policy(Batch(obs=torch.from_numpy(obs)))


@pytest.mark.parametrize(
    ("obs", "error"),
    [
        (np.zeros((7, 4)), ShapeError),
        (np.zeros(3), ShapeError),
        ({"a": np.zeros((7, 3))}, ShapeError),
        (np.array([["x"] * 3]), DataError),
        (np.array([[None] * 3]), DataError),
    ],
)
def test_observations_of_the_wrong_kind(make_policy: Make, obs: Any, error: Any) -> None:
    with pytest.raises(error, match="obs"):
        make_policy()(Batch(obs=obs))


def test_actions_that_are_not_finite_are_named(make_policy: Make) -> None:
    with pytest.raises(NonFiniteError, match="got nan"):
        make_policy().map_action(np.array([[0.0, np.nan]]))
    with pytest.raises(ShapeError, match=r"expected \(..., 2\)"):
        make_policy().map_action(np.zeros((4, 3)))


@pytest.mark.parametrize(
    ("space", "match"),
    [
        (spaces.Discrete(3), "Keep DiscreteBCQ or DiscreteCQL"),
        (spaces.MultiDiscrete([2, 2]), "discrete"),
        (spaces.MultiBinary(2), "discrete"),
        (spaces.Dict(a=Box(-1, 1, (1,))), "does not fit"),
        (Box(-np.inf, np.inf, (2,)), "dimension 0 is unbounded"),
        (Box(np.float32([-1, -1]), np.float32([1, np.inf])), "dimension 1 is unbounded"),
        (Box(0.0, 0.0, (2,)), "no range"),
    ],
)
def test_action_spaces_that_do_not_fit(make_policy: Make, space: Any, match: str) -> None:
    with pytest.raises(UnsupportedSpaceError, match=match):
        make_policy(action_space=space, actor=FlowMapActor(3, 2), critic=None)


@pytest.mark.parametrize(
    ("space", "match"),
    [
        (spaces.Discrete(3), "does not fit"),
        (spaces.Tuple([Box(-1, 1, (3,))]), "does not fit"),
        (spaces.Dict(a=Box(-1, 1, (2,)), b=spaces.Discrete(2)), "no Box"),
    ],
)
def test_observation_spaces_that_do_not_fit(make_policy: Make, space: Any, match: str) -> None:
    with pytest.raises(UnsupportedSpaceError, match=match):
        make_policy(observation_space=space)


def test_a_layout_must_fit_the_space(make_policy: Make) -> None:
    for shapes in ({"x": (3,)}, (3,)):
        with pytest.raises(UnsupportedSpaceError, match="does not fit the layout"):
            make_policy(
                observation_space=spaces.Dict(a=Box(-1, 1, (3,))), layout=ObservationLayout(shapes)
            )


def test_scaling_may_be_off_on_the_unit_box_alone(make_policy: Make) -> None:
    policy = make_policy(action_space=Box(-1, 1, (2,)), action_scaling=False)
    unit = policy(Batch(obs=OBS)).act.numpy()
    assert np.array_equal(policy.map_action(unit), unit)
    with pytest.raises(UnsupportedSpaceError, match="action_scaling=False"):
        make_policy(action_scaling=False)
    with pytest.raises(ValueError, match="got 'tanh'"):
        make_policy(action_bound_method="tanh")


def test_dimensions_must_fit(make_policy: Make) -> None:
    with pytest.raises(ShapeError, match="The actor does not fit"):
        make_policy(actor=FlowMapActor(3, 1))
    with pytest.raises(ShapeError, match="The critic does not fit"):
        make_policy(critic=QEnsemble(4, 2))
    with pytest.raises(ValueError, match="needs a critic"):
        make_policy(critic=None, candidates=2)


def test_acting_is_pure(make_policy: Make) -> None:
    policy = make_policy()  # the guard of these tests watches the global generators
    policy.train()
    before, obs = fingerprint(policy), OBS[0].copy()
    for _ in range(50):
        policy.compute_action(obs)
    assert fingerprint(policy) == before
    assert np.array_equal(obs, OBS[0])


def test_actor_and_critic_stay_in_evaluation_mode(make_policy: Make) -> None:
    policy = make_policy()
    assert not policy.train().actor.training
    assert not policy.critic.training
    assert policy.training


def test_threads_may_share_a_policy(make_policy: Make) -> None:
    policy = make_policy(deterministic_eval=False)

    def play(seed: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        return np.stack(
            [policy.compute_action(o, generator=generator) for o in np.tile(OBS, (8, 1))]
        )

    alone = [play(seed) for seed in range(4)]
    together: list[Any] = [None] * 4
    threads = [
        threading.Thread(target=lambda s=s: together.__setitem__(s, play(s))) for s in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_copies_and_states_act_alike(make_policy: Make, small: GTPConfig) -> None:
    policy = make_policy(deterministic_eval=False)
    policy.compute_action(OBS[0])  # the stream has moved
    twin = copy.deepcopy(policy)
    assert np.array_equal(policy.compute_action(OBS[0]), twin.compute_action(OBS[0]))
    state = through_a_file(policy.state_dict())
    other = make_policy(
        actor=FlowMapActor(3, 2, small.actor, seed=1), critic=QEnsemble(3, 2, small.critic, seed=1)
    )
    other.load_state_dict(state)
    policy.deterministic_eval = True
    assert np.array_equal(policy.compute_action(OBS[0]), other.compute_action(OBS[0]))
    alone = make_policy(actor=FlowMapActor(3, 2, small.actor, seed=2), critic=None)
    alone.load_state_dict(state)  # takes the actor, and lets the critic be
    assert np.array_equal(policy.compute_action(OBS[0]), alone.compute_action(OBS[0]))
    with pytest.raises(StateMismatchError, match="Unexpected key"):
        alone.load_state_dict({**state, "other.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("choices", "chunk"),
    [
        ({"eval_candidates": 16}, 1),
        ({"eval_candidates": 4, "deterministic_choice": ArgmaxChoice()}, 1),
        ({"playback": Playback(every=1)}, 3),
    ],
)
def test_a_state_says_how_its_policy_acts(
    make_policy: Make, small: GTPConfig, choices: dict[str, Any], chunk: int
) -> None:
    config = small.actor.replace(chunk=chunk)

    def make(seed: int) -> GTPPolicy:
        dims = 3, 2 * chunk
        networks = FlowMapActor(*dims, config, seed=seed), QEnsemble(*dims, small.critic, seed=seed)
        return make_policy(actor=networks[0], critic=networks[1])

    def play(policy: GTPPolicy) -> np.ndarray:
        state, found = None, []
        for obs in OBS:
            result = policy(Batch(obs=obs[None]), state=state)
            state = result.state
            found.append(result.act.numpy())
        return np.stack(found)

    policy = make(0)
    before = play(policy)
    policy._own_choices = GTPLearnerConfig(**choices)
    assert not np.array_equal(play(policy), before)
    other = make(1)
    other.load_state_dict(through_a_file(policy.state_dict()))
    assert np.array_equal(play(other), play(policy))
    average = {k: (v + v + v) / 3 for k, v in policy.state_dict().items() if "actor" not in k}
    other.load_state_dict(average, strict=False)
    assert np.array_equal(play(other), play(policy))
    # Of an earlier version.
    other.load_state_dict({k: v for k, v in policy.state_dict().items() if k != "_extra_state"})
    assert np.array_equal(play(other), play(policy))


def test_a_state_whose_policy_cannot_be_had_is_told(make_policy: Make) -> None:
    policy = make_policy()
    policy._own_choices = GTPLearnerConfig(eval_candidates=4, deterministic_choice=ArgmaxChoice())
    with pytest.warns(UserWarning, match=r"argmax of eval_candidates=4.*Pass critic="):
        make_policy(critic=None).load_state_dict(policy.state_dict())
    for wrong in (torch.zeros(3), torch.tensor(list(b'{"playback": 3}'))):
        with pytest.raises(StateMismatchError, match="does not say how a policy acts"):
            make_policy().load_state_dict(policy.state_dict() | {"_extra_state": wrong})


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_that_is_refused_changes_nothing(
    make_policy: Make, small: GTPConfig, assign: bool
) -> None:
    policy, other = make_policy(), make_policy(actor=FlowMapActor(3, 2, small.actor, seed=1))
    policy.actor.mode_share = 0.25
    before, networks = fingerprint(policy), list(policy.parameters())
    state = other.state_dict()
    last = [name for name in state if name.startswith("critic.")][-1]
    for wrong in ({last: torch.zeros(3, 3)}, {last: None}, {"other.weight": torch.zeros(1)}):
        with pytest.raises(StateMismatchError, match="does not fit the policy: got"):
            policy.load_state_dict(state | wrong, assign=assign)
        assert fingerprint(policy) == before
        assert all(a is b for a, b in zip(policy.parameters(), networks, strict=True))
        assert policy.actor.mode_share == 0.25
    with pytest.raises(StateMismatchError, match="another flow map"):
        policy.load_state_dict(state | {"actor._extra_state": torch.zeros(3)}, assign=assign)
    assert fingerprint(policy) == before
    policy.load_state_dict(state, assign=assign)
    assert fingerprint(policy) == fingerprint(other)


def test_another_dtype(make_policy: Make) -> None:
    policy = make_policy().to(torch.float64)
    assert policy(Batch(obs=OBS)).act.dtype == torch.float64
    assert policy.compute_action(OBS[0]).dtype == np.float32


def test_an_observation_of_ragged_rows_is_named() -> None:
    policy = GTPPolicy(actor=FlowMapActor(3, 1), action_space=Box(-2.0, 2.0, (1,)))
    with pytest.raises(DataError, match=r"`obs` is no array of numbers: got .*rows of one length"):
        policy.compute_action([[1.0], [1.0, 2.0]])
