"""Going on from a clone, and actions of every Box, in both hosts: the same rule in each."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from tianshou.data import Batch
from tianshou.trainer import OfflineTrainerParams

import gtp_sb3
import gtp_tianshou
from gtp_datasets.spaces import members_of
from gtp_policy import FlowMapActorConfig, GTPConfig, OfflineDataset, QEnsembleConfig
from gtp_policy.errors import DataError, StateMismatchError, UnsupportedSpaceError

pytestmark = pytest.mark.global_rng  # hosts draw from global generators

N = 60
SMALL = GTPConfig(actor=FlowMapActorConfig(hidden=(16,)), critic=QEnsembleConfig(hidden=(16,)))
CLONE = SMALL.replace(critic=None)
ONWARD = GTPConfig(critic=QEnsembleConfig(hidden=(16,)))


def make_data(rewards: bool, box: Box = Box(-2, 2, (1,))) -> OfflineDataset:  # noqa: B008
    rng = np.random.default_rng(0)
    low, high = (np.asarray(bound, np.float64) for bound in (box.low, box.high))
    return OfflineDataset.from_arrays(
        obs=rng.normal(1.0, 2.0, size=(N, 3)),
        action=rng.uniform(low, high, size=(N, *box.shape)),
        reward=rng.normal(size=N) if rewards else None,
        terminated=np.arange(N) % 20 == 19,
        truncated=np.zeros(N),
        low=low,
        high=high,
    )


OBS = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)


def test_sb3_goes_on_from_a_clone(tmp_path: Path) -> None:
    clone = gtp_sb3.GTP(
        "MlpPolicy", None, dataset=make_data(False), gtp_config=CLONE, batch_size=8, device="cpu"
    ).learn(3)
    clone.save(tmp_path / "clone")
    expected = clone.predict(OBS, deterministic=True)[0]
    for source in (clone, tmp_path / "clone"):
        model = gtp_sb3.GTP.from_actor(
            source, dataset=make_data(True), gtp_config=ONWARD, batch_size=8
        )
        assert model.critic is not None
        assert model.learner.updates == 0
        np.testing.assert_array_equal(model.predict(OBS, deterministic=True)[0], expected)
        model.learn(2)
        assert model.learner.updates == 2
        assert (model.predict(OBS, deterministic=True)[0] != expected).any()
    with pytest.raises(DataError, match=r"needs rewards.*gtp_config=.*GTP\.from_actor"):
        gtp_sb3.GTP.from_actor(clone, dataset=make_data(False), gtp_config=ONWARD)
    with pytest.raises(ValueError, match="actions of the environment do not fit"):
        gtp_sb3.GTP.from_actor(clone, Plain(Box(-1, 1, (1,))), gtp_config=ONWARD)
    with pytest.raises(StateMismatchError, match="is another actor"):
        gtp_sb3.GTP.from_actor(clone, gtp_config=SMALL.replace(actor={"hidden": (8,)}))
    online = gtp_sb3.GTP.from_actor(clone, Plain(Box(-2, 2, (1,))), gtp_config=ONWARD)
    np.testing.assert_array_equal(online.predict(OBS, deterministic=True)[0], expected)


def act(algorithm: Any) -> np.ndarray:
    return np.asarray(algorithm.policy.forward(Batch(obs=OBS, info={})).act)


def test_tianshou_goes_on_from_a_clone(tmp_path: Path) -> None:
    space = Box(-2, 2, (1,))
    clone = gtp_tianshou.GTP.from_buffer(make_data(False), action_space=space, config=CLONE)
    train(clone, make_data(False))
    path = clone.save(tmp_path / "clone.zip")
    expected = act(clone)
    for source in (clone, path):
        algorithm = gtp_tianshou.GTP.from_actor(source, make_data(True), config=ONWARD)
        assert algorithm.learner.critic is not None
        np.testing.assert_array_equal(act(algorithm), expected)
        train(algorithm, make_data(True))
        assert (act(algorithm) != expected).any()
    with pytest.raises(DataError, match=r"needs rewards.*config=.*GTP\.from_actor"):
        gtp_tianshou.GTP.from_actor(clone, make_data(False), config=ONWARD)
    with pytest.raises(DataError, match="other units"):
        gtp_tianshou.GTP.from_actor(clone, make_data(True, Box(-1, 1, (1,))), config=ONWARD)
    with pytest.raises(DataError, match=r"of Tianshou's needs rewards.*GTP\.from_buffer"):
        gtp_tianshou.buffer_from_dataset(make_data(False))


def test_tianshou_goes_on_with_what_the_source_acts_and_discounts_by(tmp_path: Path) -> None:
    data, space = make_data(True), Box(-2, 2, (1,))
    buffer = gtp_tianshou.buffer_from_dataset(data)
    options: dict[str, Any] = {"deterministic_eval": False, "steps": 3, "candidates": 4}
    source = gtp_tianshou.GTP.from_buffer(
        buffer, action_space=space, config=SMALL, gamma=0.9, out_of_bounds="clip", **options
    )

    def told(algorithm: gtp_tianshou.GTP) -> dict[str, Any]:
        return {name: getattr(algorithm.policy, name) for name in options}

    for whence in (source, source.save(tmp_path / "source.zip")):
        algorithm = gtp_tianshou.GTP.from_actor(whence, buffer, config=ONWARD)
        assert told(algorithm) == options
        assert algorithm.gamma == algorithm.learner.config.gamma == 0.9
    assert gtp_tianshou.GTP.from_actor(source, buffer, config=ONWARD).out_of_bounds == "clip"
    other = {"deterministic_eval": True, "steps": 2, "candidates": None}
    algorithm = gtp_tianshou.GTP.from_actor(source, buffer, config=ONWARD, gamma=0.8, **other)
    assert (told(algorithm), algorithm.gamma) == (other, 0.8)
    chosen = ONWARD.with_gamma(0.7)
    assert gtp_tianshou.GTP.from_actor(source, buffer, config=chosen).gamma == 0.7
    assert gtp_tianshou.GTP.from_actor(source, data, config=ONWARD).gamma == data.gamma
    clone = gtp_tianshou.GTP.from_actor(source, buffer, config=ONWARD.replace(critic=None))
    assert told(clone) == {**options, "candidates": None}


def train(algorithm: Any, data: OfflineDataset) -> None:
    algorithm.run_training(
        OfflineTrainerParams(
            buffer=data, max_epochs=1, epoch_num_steps=2, batch_size=8, show_progress=False
        )
    )


class Plain(gymnasium.Env[Any, Any]):
    """Ends after two steps; checks that every action is a member of its space."""

    def __init__(self, space: Box) -> None:
        self.observation_space, self.action_space = Box(-9, 9, (3,), np.float32), space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), (action, self.action_space)
        self.count += 1
        return np.zeros(3, np.float32), 0.0, False, self.count == 2, {}


BOXES = [
    Box(-1, 1, (2, 3)),
    Box(np.float32(-0.5), np.float32(3.0), ()),
    Box(0, 9, (2,), np.int64),
    Box(0, 255, (3,), np.uint8),
    Box(-1, 2, (2,), np.int8),
    Box(-0.1, 0.3, (2,), np.float16),
    Box(np.array([-5.0, 0.0]), np.array([0.0, 1e-3]), dtype=np.float64),
]


@pytest.mark.parametrize("space", BOXES, ids=str)
def test_actions_are_members_of_every_box_in_both_hosts(space: Box) -> None:
    data = make_data(True, space)
    model = gtp_sb3.GTP(
        "MlpPolicy", None, dataset=data, gtp_config=SMALL, batch_size=8, device="cpu"
    ).learn(1)
    flat = model.predict(OBS, deterministic=True)[0]
    assert flat.shape == (5, int(np.prod(space.shape)))
    env = Plain(space)
    model = gtp_sb3.GTP("MlpPolicy", env, dataset=data, gtp_config=SMALL, batch_size=8).learn(1)
    for deterministic in (True, False):
        actions, _ = model.predict(OBS, deterministic=deterministic)
        assert all(space.contains(actions[i, ...]) for i in range(len(OBS)))
        assert space.contains(model.predict(OBS[0], deterministic=deterministic)[0])
    algorithm = gtp_tianshou.GTP.from_buffer(data, action_space=space, config=SMALL)
    for policy_act in (act(algorithm), np.full((2, *space.shape), 1.0), -np.ones(space.shape)):
        mapped = algorithm.policy.map_action(policy_act)
        rows = mapped if mapped.ndim > len(space.shape) else mapped[None]
        assert all(space.contains(rows[i, ...]) for i in range(len(rows)))
    assert space.contains(algorithm.policy.compute_action(OBS[0]))
    env.reset()
    env.step(algorithm.policy.compute_action(OBS[0]))


def test_integers_are_rounded_to_the_nearest() -> None:
    space = Box(0, 9, (2,), np.int64)
    got = members_of(space, np.float32([[0.4, 0.6], [8.51, -0.3]]))
    np.testing.assert_array_equal(got, [[0, 1], [9, 0]])


def test_a_replay_buffer_that_would_round_is_refused() -> None:
    env = Plain(Box(0, 9, (2,), np.int64))
    with pytest.raises(
        UnsupportedSpaceError, match="cannot hold these actions: got a Box of int64"
    ):
        gtp_sb3.GTP("MlpPolicy", env, gtp_config=SMALL)


@pytest.mark.parametrize("host", ["sb3", "tianshou"])
@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Discrete(3),
        gymnasium.spaces.MultiDiscrete([2, 3]),
        gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(2), Box(-1, 1, (2,))]),
    ],
    ids=str,
)
def test_discrete_and_hybrid_actions_are_refused_with_a_remedy(host: str, space: Any) -> None:
    make: dict[str, Any] = {
        "sb3": lambda: gtp_sb3.GTP("MlpPolicy", Plain(space)),
        "tianshou": lambda: gtp_tianshou.GTP.from_buffer(make_data(True), action_space=space),
    }
    with pytest.raises(UnsupportedSpaceError, match=r"one score per choice.*discrete-actions\.md"):
        make[host]()


def test_torchs_default_type_changes_nothing_in_sb3() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        model = gtp_sb3.GTP(
            "MlpPolicy", None, dataset=make_data(True), gtp_config=SMALL, batch_size=8, device="cpu"
        ).learn(1)
        assert {p.dtype for p in model.policy.parameters()} == {torch.float32}
        algorithm = gtp_tianshou.GTP.from_buffer(
            make_data(True), action_space=Box(-2, 2, (1,)), config=SMALL
        )
        train(algorithm, make_data(True))
    finally:
        torch.set_default_dtype(torch.float32)


def test_actions_outside_the_box_may_be_clipped_in_sb3() -> None:
    rng = np.random.default_rng(0)
    data = {
        "obs": rng.normal(size=(9, 3)),
        "action": np.full((9, 1), 2.5),
        "reward": np.ones(9),
        "next_obs": rng.normal(size=(9, 3)),
        "terminated": np.zeros(9),
        "truncated": np.zeros(9),
    }
    kwargs: dict[str, Any] = {"dataset": data, "gtp_config": SMALL, "device": "cpu"}
    with pytest.raises(DataError, match="pass out_of_bounds='clip'"):
        gtp_sb3.GTP("MlpPolicy", Plain(Box(-2, 2, (1,))), **kwargs)
    model = gtp_sb3.GTP("MlpPolicy", Plain(Box(-2, 2, (1,))), out_of_bounds="clip", **kwargs)
    assert model.dataset is not None
    assert (model.dataset.transitions.action == 1).all()
