"""Datasets of every kind become the same transitions; what would be wrong is refused."""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
import torch
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from gtp_policy import GTPConfig, OfflineDataset, Transitions
from gtp_policy.encoders import ImpalaEncoderConfig
from gtp_policy.errors import DataError, UnsupportedSpaceError
from gtp_sb3 import GTP

Make = Callable[..., GTP]
Arrays = dict[str, np.ndarray]

# These tests train in portions; what that means is tested in test_sb3_offline.py.
pytestmark = pytest.mark.filterwarnings("ignore:.* more updates after")

# SB3's extractors draw their parameters from torch's global generator.
has_extractor = pytest.mark.global_rng


def rows_of(model: GTP) -> Transitions:
    """All transitions of the model's dataset, in time order."""
    data = model.dataset
    assert data is not None
    return data.transitions if isinstance(data, OfflineDataset) else data.rows(0, len(data))


def assert_same(a: Transitions, b: Transitions) -> None:
    for name, x, y in zip(Transitions._fields, a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-6, msg=name)


# --- kinds of datasets


def test_arrays_under_either_names_are_the_dataset(
    make_model: Make, arrays: Arrays, dataset: OfflineDataset, untouchable: Any
) -> None:
    short = make_model(untouchable, dataset=arrays)
    assert_same(rows_of(short), dataset.transitions)
    names = ["observations", "actions", "rewards", "next_observations", "terminals", "timeouts"]
    d4rl = dict(zip(names, arrays.values(), strict=True)) | {"infos/qpos": np.zeros(3)}
    assert_same(rows_of(make_model(untouchable, dataset=d4rl)), dataset.transitions)


def test_next_observations_can_be_the_following_rows(
    make_model: Make, arrays: Arrays, untouchable: Any
) -> None:
    columns = {k: v for k, v in arrays.items() if k != "next_obs"}
    rows = rows_of(make_model(untouchable, dataset=columns))
    expected = OfflineDataset.from_arrays(**columns, low=[-2.0], high=[2.0])
    assert len(rows.reward) == 59  # the one cut episode lost its last row
    assert_same(rows, expected.transitions)


def test_d4rl_file_with_the_bounds_of_the_environment(
    make_model: Make, arrays: Arrays, dataset: OfflineDataset, untouchable: Any, tmp_path: Path
) -> None:
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = arrays["obs"], arrays["action"]
        file["next_observations"], file["rewards"] = arrays["next_obs"], arrays["reward"]
        file["terminals"], file["timeouts"] = arrays["terminated"], arrays["truncated"]
    for given in (path, str(path)):
        assert_same(rows_of(make_model(untouchable, dataset=given)), dataset.transitions)
    with pytest.raises(DataError, match="outside the Box"):  # without an environment: -1 to 1
        make_model(None, dataset=path)


@pytest.fixture
def minari_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def make(observations: Any, space: spaces.Space[Any], steps: int = 4) -> minari.MinariDataset:
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
        rng = np.random.default_rng(1)
        episodes = [
            EpisodeBuffer(
                observations=observations(i),
                actions=rng.uniform(-2, 2, size=(steps, 1)).astype(np.float32),
                rewards=rng.normal(size=steps),
                terminations=np.arange(steps) == (steps - 1 if i == 0 else -1),
                truncations=np.arange(steps) == (steps - 1 if i else -1),
            )
            for i in range(3)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # wants an author and so on
            return minari.create_dataset_from_buffers(
                "toy/set-v0",
                episodes,
                observation_space=space,
                action_space=spaces.Box(-2, 2, (1,)),
            )

    return make


def test_minari_by_id_by_object_and_without_an_environment(
    make_model: Make, minari_set: Any, untouchable: Any
) -> None:
    values = np.random.default_rng(0).normal(size=(3, 5, 3)).astype(np.float32)
    data = minari_set(lambda i: values[i], spaces.Box(-9, 9, (3,)))
    models = [
        make_model(env, dataset=given)
        for env in (untouchable, None)
        for given in (data, "toy/set-v0")
    ]
    for model in models:
        rows = rows_of(model)
        np.testing.assert_array_equal(rows.obs, values[:, :-1].reshape(12, 3))
        np.testing.assert_array_equal(rows.next_obs, values[:, 1:].reshape(12, 3))
        assert (rows.discount == 0).nonzero().flatten().tolist() == [3]
        assert model.learn(2).predict(np.zeros(3))[0].shape == (1,)


def test_minari_goals_come_in_the_order_of_the_core(make_model: Make, minari_set: Any) -> None:
    keys = ("observation", "achieved_goal", "desired_goal")
    space = spaces.Dict({k: spaces.Box(-9, 9, (2,)) for k in keys})
    minari_set(lambda i: {k: np.full((5, 2), n, np.float32) for n, k in enumerate(keys)}, space)
    model = make_model(None, "MultiInputPolicy", dataset="toy/set-v0").learn(1)
    assert model.policy.layout.keys == keys
    assert rows_of(model).obs[0].tolist() == [0, 0, 1, 1, 2, 2]
    obs = {k: np.zeros(2) for k in reversed(keys)}
    assert model.predict(obs)[0].shape == (1,)


@has_extractor
def test_a_dataset_of_images_has_their_channels_first(make_model: Make, arrays: Arrays) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 36, 36), np.uint8)
    columns = arrays | {"obs": images, "next_obs": images, "low": [-2.0], "high": [2.0]}
    kwargs = {"features_extractor_kwargs": {"features_dim": 8}}
    data = OfflineDataset.from_arrays(**columns)
    model = make_model(None, "CnnPolicy", dataset=data, policy_kwargs=kwargs)
    assert model.observation_space == spaces.Box(0, 255, (3, 36, 36), np.uint8)
    assert model.learn(2).predict(images[0])[0].shape == (1,)
    columns |= {name: np.moveaxis(images, 1, -1) for name in ("obs", "next_obs")}
    with pytest.raises(DataError, match=r"expected .*\(3, 36, 36\).* Images need the axes"):
        make_model(None, "CnnPolicy", dataset=OfflineDataset.from_arrays(**columns))


@has_extractor
def test_minari_images_stay_bytes_with_their_channels_first(
    make_model: Make, minari_set: Any
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 36, 36, 3), np.uint8)
    data = minari_set(lambda i: images[i], spaces.Box(0, 255, (36, 36, 3), np.uint8))
    kwargs = {"features_extractor_kwargs": {"features_dim": 8}}
    model = make_model(None, "CnnPolicy", dataset=data, policy_kwargs=kwargs)
    assert model.observation_space.shape == (3, 36, 36)
    stored = np.stack([e.observations for e in data.iterate_episodes()])  # Minari's JPEG is lossy
    first = np.moveaxis(stored, -1, -3).astype(np.float32)
    rows = rows_of(model)
    np.testing.assert_array_equal(rows.obs, first[:, :-1].reshape(12, -1))
    np.testing.assert_array_equal(rows.next_obs, first[:, 1:].reshape(12, -1))
    assert model.dataset is not None
    assert model.dataset._obs.dtype == np.uint8  # type: ignore[union-attr]
    assert model.learn(2).predict(images[0, 0])[0].shape == (1,)

    class Pictures(gymnasium.Env[Any, Any]):
        observation_space = spaces.Box(0, 255, (36, 36, 3), np.uint8)
        action_space = spaces.Box(-2, 2, (1,))

    for env in (None, Pictures()):
        named = make_model(env, "CnnPolicy", dataset="toy/set-v0", policy_kwargs=kwargs)
        np.testing.assert_array_equal(rows_of(named).obs, rows.obs)


@has_extractor
@pytest.mark.parametrize("fault", ["short", "open"])
def test_broken_episodes_of_images_are_named(make_model: Make, minari_set: Any, fault: str) -> None:
    images = np.zeros((3, 5, 36, 36, 3), np.uint8)
    data = minari_set(lambda i: images[i], spaces.Box(0, 255, (36, 36, 3), np.uint8))
    with h5py.File(data.storage.data_path / "main_data.hdf5", "a") as file:
        if fault == "short":
            file["episode_1/rewards"].resize((3,))
        else:
            file["episode_1/truncations"][:] = False
            file["episode_1/terminations"][:] = False
    with pytest.raises(DataError, match="Episode 1 of toy/set-v0 is incomplete"):
        make_model(None, "CnnPolicy", dataset=data)
    none = minari.MinariDataset(data.storage, episode_indices=np.zeros(0, int))
    with pytest.raises(DataError, match="is empty"):
        make_model(None, "CnnPolicy", dataset=none)


@pytest.mark.parametrize("name", ["logs.npz", "logs.pkl", "logs.csv"])
def test_files_of_another_kind_are_named(make_model: Make, untouchable: Any, name: str) -> None:
    with pytest.raises(DataError, match="names a file of another kind"):
        make_model(untouchable, dataset=name)


def test_without_time_limits_next_observations_are_enough(
    make_model: Make, arrays: Arrays, untouchable: Any
) -> None:
    columns = {k: v for k, v in arrays.items() if k != "truncated"}
    model = make_model(untouchable, dataset=columns)
    assert len(rows_of(model).reward) == 60


@has_extractor
@pytest.mark.parametrize("followed", [True, False])
def test_image_arrays(make_model: Make, arrays: Arrays, followed: bool) -> None:
    class Pictures(gymnasium.Env[Any, Any]):
        observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
        action_space = spaces.Box(-2, 2, (1,))

    images = np.random.default_rng(0).integers(0, 256, (61, 36, 36, 1), np.uint8)
    columns = arrays | {"obs": images[:60], "next_obs": images[1:]}
    if not followed:
        del columns["next_obs"]
    model = make_model(
        Pictures(),
        "CnnPolicy",
        dataset=columns,
        policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}},
    ).learn(2)
    kept = [i for i in range(60) if followed or i != 39]  # else the cut row has no next one
    rows = rows_of(model)
    flat = images.reshape(61, -1).astype(np.float32)
    np.testing.assert_array_equal(rows.obs, flat[kept])
    ended = arrays["terminated"][kept]
    following = np.array(kept) + 1
    np.testing.assert_array_equal(rows.next_obs[~ended], flat[following[~ended]])
    # The extractor sees numbers from 0 to 1, as SB3's preprocessing makes them.
    seen: list[torch.Tensor] = []
    extractor = model.actor.encoder.extractor
    extractor.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    model.learn(1)
    assert seen[0].shape[1:] == (1, 36, 36)
    assert 0 <= seen[0].min() < 0.01
    assert 0.99 < seen[0].max() <= 1


@has_extractor
def test_dict_of_image_and_vector(make_model: Make, arrays: Arrays) -> None:
    space = spaces.Dict(
        {"camera": spaces.Box(0, 255, (1, 36, 36), np.uint8), "gear": spaces.Discrete(3)}
    )

    class Car(gymnasium.Env[Any, Any]):
        observation_space = space
        action_space = spaces.Box(-2, 2, (1,))

    rng = np.random.default_rng(0)
    obs = {
        "camera": rng.integers(0, 256, (60, 36, 36, 1), np.uint8),
        "gear": rng.integers(0, 3, 60),
    }
    model = make_model(
        Car(),
        "MultiInputPolicy",
        dataset=arrays | {"obs": obs, "next_obs": obs},
        policy_kwargs={"features_extractor_kwargs": {"cnn_output_dim": 8}},
    ).learn(2)
    np.testing.assert_array_equal(rows_of(model).obs[:, -1], obs["gear"])
    model.set_dataset(None, keep_data=True)
    assert model.replay_buffer is not None
    np.testing.assert_array_equal(model.replay_buffer.observations["gear"][:60, 0, 0], obs["gear"])


# --- replay buffers of SB3


def filled(buffer: ReplayBuffer, steps: int, obs: Any) -> ReplayBuffer:
    """Steps in which reward and observation say time and environment, episodes of 4."""
    n = buffer.n_envs
    for t in range(steps):
        done = np.array([t % 4 == 3] * n)
        cut = t % 8 == 7
        number = t + 100.0 * np.arange(n)
        buffer.add(
            obs(number),
            obs(number + 0.5),
            np.linspace(-1, 1, n)[:, None],
            number,
            done,
            [{"TimeLimit.truncated": cut}] * n,
        )
    return buffer


@pytest.mark.parametrize(
    ("steps", "size", "n_envs"), [(6, 20, 1), (6, 20, 3), (13, 10, 1), (13, 30, 3)]
)
@pytest.mark.parametrize("named", [False, True])
def test_replay_buffer_is_read_whole_in_time_order(
    make_model: Make, steps: int, size: int, n_envs: int, named: bool
) -> None:
    box, action = spaces.Box(-999, 999, (2,)), spaces.Box(-2, 2, (1,))
    if named:
        buffer: ReplayBuffer = DictReplayBuffer(
            size, spaces.Dict({"a": box}), action, "cpu", n_envs
        )
        filled(buffer, steps, lambda x: {"a": np.stack([x, x], 1)})
    else:
        buffer = ReplayBuffer(size, box, action, "cpu", n_envs)
        filled(buffer, steps, lambda x: np.stack([x, x], 1))
    model = make_model(None, "MultiInputPolicy" if named else "MlpPolicy", dataset=buffer)
    first = max(0, steps - size // n_envs)
    numbers = np.concatenate([np.arange(first, steps) + 100.0 * e for e in range(n_envs)])
    rows = rows_of(model)
    np.testing.assert_array_equal(rows.reward, numbers)
    np.testing.assert_array_equal(rows.obs[:, 0], numbers)
    np.testing.assert_array_equal(rows.next_obs[:, 1], numbers + 0.5)
    np.testing.assert_allclose(rows.action[:, 0].unique(), np.linspace(-1, 1, n_envs), atol=1e-6)
    # Every second episode ends by itself; only that stops bootstrapping.
    np.testing.assert_array_equal(rows.discount == 0, numbers % 100 % 8 == 3)
    assert model.dataset is not None
    ends = (model.dataset.terminated | model.dataset.truncated).nonzero()[0]
    assert set(ends) >= {len(numbers) // n_envs * (e + 1) - 1 for e in range(n_envs)}
    assert model.dataset.action_scaler.high.tolist() == [2.0]
    model.learn(1)


def test_a_memory_optimised_buffer_takes_no_data_over(make_model: Make, untouchable: Any) -> None:
    model = make_model(
        untouchable,
        optimize_memory_usage=True,
        replay_buffer_kwargs={"handle_timeout_termination": False},
    )
    with pytest.raises(DataError, match="memory-optimised"):
        model.set_dataset(None, keep_data=True)


@pytest.mark.parametrize("steps", [6, 10, 13])
def test_memory_optimised_replay_buffer(make_model: Make, steps: int) -> None:
    buffer = ReplayBuffer(
        10,
        spaces.Box(-999, 999, (1,)),
        spaces.Box(-2, 2, (1,)),
        "cpu",
        optimize_memory_usage=True,
        handle_timeout_termination=False,
    )
    for t in range(steps):
        now = np.array([[float(t)]])
        buffer.add(now, now + 1, np.zeros((1, 1)), now[0], np.array([False]), [{}])
    rows = rows_of(make_model(None, dataset=buffer))
    numbers = np.arange(max(0, steps - 9) if steps >= 10 else 0, steps)
    np.testing.assert_array_equal(rows.obs[:, 0], numbers)
    np.testing.assert_array_equal(rows.next_obs[:, 0], numbers + 1)


@has_extractor
@pytest.mark.parametrize("steps", [7, 10, 13])
@pytest.mark.parametrize("once", [False, True])
def test_an_image_replay_buffer_goes_on_without_the_dataset(
    make_model: Make, steps: int, once: bool
) -> None:
    """What it is filled with later is not the dataset's; what it was filled with is stored once."""
    space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    buffer = ReplayBuffer(
        20,
        space,
        spaces.Box(-2, 2, (1,)),
        "cpu",
        n_envs=2,
        optimize_memory_usage=once,
        handle_timeout_termination=not once,
    )

    def add(numbers: range) -> None:
        for t in numbers:
            now = np.array([t, t + 100])
            images = np.ones((2, 1, 36, 36)) * now[:, None, None, None]
            buffer.add(images, images + 1, np.zeros((2, 1)), now, np.zeros(2), [{}, {}])

    add(range(steps))
    model = make_model(
        None,
        "CnnPolicy",
        dataset=buffer,
        policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}},
    )
    add(range(50, 60))
    rows = rows_of(model)
    kept = min(steps, 9 if once and steps >= 10 else 10)
    numbers = np.arange(steps - kept, steps)
    expected = np.concatenate([numbers, numbers + 100])
    np.testing.assert_array_equal(rows.reward, expected)
    np.testing.assert_array_equal(rows.obs, np.tile(expected[:, None], 36 * 36))
    np.testing.assert_array_equal(rows.next_obs, rows.obs + 1)
    assert len(model.dataset._obs) == 2 * (kept + 1)  # type: ignore[union-attr, arg-type]


@has_extractor
@pytest.mark.parametrize("followed", [True, False])
@pytest.mark.parametrize("by_key", [True, False])
def test_images_of_arrays_are_the_datasets_own(
    make_model: Make, arrays: Arrays, followed: bool, by_key: bool
) -> None:
    """As its rewards and actions are, however often the caller fills its arrays again."""
    camera, gear = spaces.Box(0, 255, (1, 36, 36), np.uint8), spaces.Discrete(3)

    class Car(gymnasium.Env[Any, Any]):
        observation_space = spaces.Dict({"camera": camera, "gear": gear}) if by_key else camera
        action_space = spaces.Box(-2, 2, (1,))

    rng = np.random.default_rng(0)
    images, gears = rng.integers(0, 256, (61, 1, 36, 36), np.uint8), rng.integers(0, 3, 61)
    columns = arrays | {
        name: {"camera": images[rows], "gear": gears[rows]} if by_key else images[rows]
        for name, rows in (("obs", slice(60)), ("next_obs", slice(1, None)))
    }
    if not followed:
        del columns["next_obs"]
    size = "cnn_output_dim" if by_key else "features_dim"
    kwargs = {"features_extractor_kwargs": {size: 8}}
    policy = "MultiInputPolicy" if by_key else "CnnPolicy"
    model = make_model(Car(), policy, dataset=columns, policy_kwargs=kwargs)
    before = rows_of(model)
    for array in (images, gears, arrays["reward"], arrays["action"]):
        array[:] = 1
    for a, b in zip(before.present(), rows_of(model).present(), strict=True):
        np.testing.assert_array_equal(a, b)
    stored = model.dataset._obs  # type: ignore[union-attr]
    assert len(stored["camera"] if by_key else stored) == 60 + followed


@pytest.mark.global_rng
@pytest.mark.parametrize("cls", [HerReplayBuffer, NStepReplayBuffer])
def test_buffers_that_change_their_samples_are_refused(
    make_model: Make, walk: Any, cls: Any
) -> None:
    if cls is HerReplayBuffer:
        from stable_baselines3.common.envs import BitFlippingEnv

        env = DummyVecEnv([lambda: BitFlippingEnv(continuous=True)])
        buffer = cls(100, env.observation_space, env.action_space, env=env)
        model = make_model(env, "MultiInputPolicy", dataset=None)
    else:
        model = make_model(walk(), dataset=None)
        buffer = cls(100, model.observation_space, model.action_space)
    with pytest.raises(DataError, match="when it is sampled"):
        model.set_dataset(buffer)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_steps": 3},
        {"replay_buffer_class": HerReplayBuffer},
        {"replay_buffer_class": NStepReplayBuffer},
    ],
)
def test_a_dataset_does_not_meet_what_only_works_online(
    make_model: Make, untouchable: Any, changes: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match="learned from as it is"):
        make_model(untouchable, **changes)


# --- what does not fit


def edit(arrays: Arrays, **changes: Any) -> dict[str, Any]:
    return {k: v for k, v in (arrays | changes).items() if v is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": np.full((60, 1), 2.1)}, "outside the Box"),
        ({"obs": np.full((60, 3), np.nan)}, "`obs` is not finite"),
        ({"obs": np.full((60, 3), 1e39)}, "not finite in float32"),
        ({"obs": np.zeros((60, 4))}, "`obs` has the wrong shape"),
        ({"obs": np.zeros((59, 3))}, "wrong shape"),
        ({"obs": np.array([["a"] * 3] * 60)}, "wrong dtype"),
        ({"reward": None}, "A critic needs rewards"),
        ({"dones": np.zeros(60)}, "`dones` mixes them"),
        ({"truncated": None, "next_obs": None}, "`truncated` is missing"),
        ({"terminated": np.full(60, 2)}, "not a flag"),
        ({"action": np.zeros((60, 2))}, "`action` has the wrong shape"),
    ],
)
def test_bad_arrays_are_named(
    make_model: Make, untouchable: Any, arrays: Arrays, changes: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make_model(untouchable, dataset=edit(arrays, **changes))


@has_extractor
def test_bad_parts_next_to_images_are_named(make_model: Make, arrays: Arrays) -> None:
    class Car(gymnasium.Env[Any, Any]):
        observation_space = spaces.Dict(
            {"camera": spaces.Box(0, 255, (1, 36, 36), np.uint8), "speed": spaces.Box(-9, 9, (1,))}
        )
        action_space = spaces.Box(-2, 2, (1,))

    good = {"camera": np.zeros((60, 1, 36, 36), np.uint8), "speed": np.zeros((60, 1))}
    for bad, message in (
        (good | {"speed": np.full((60, 1), np.inf)}, "obs\\['speed'\\]` is not finite"),
        ({"camera": good["camera"]}, "other keys"),
        (good["camera"], "other keys"),
        (good | {"speed": np.zeros((59, 1))}, "several lengths"),
        (good | {"camera": np.zeros((60, 36, 35, 1), np.uint8)}, "wrong shape"),
    ):
        with pytest.raises(DataError, match=message):
            make_model(Car(), "MultiInputPolicy", dataset=arrays | {"obs": bad, "next_obs": bad})
    short = {k: v[:-1] for k, v in good.items()}
    with pytest.raises(DataError, match="`next_obs` has the wrong length"):
        make_model(Car(), "MultiInputPolicy", dataset=arrays | {"obs": good, "next_obs": short})


def test_a_dataset_of_another_kind_is_named(make_model: Make, untouchable: Any) -> None:
    with pytest.raises(DataError, match="no known kind: got int"):
        make_model(untouchable, dataset=3)


def test_arrays_alone_do_not_say_the_bounds(make_model: Make, arrays: Arrays) -> None:
    with pytest.raises(DataError, match="bounds of the actions are unknown"):
        make_model(None, dataset=arrays)


def test_other_units_other_gamma_and_other_observations_are_refused(
    make_model: Make, arrays: Arrays, untouchable: Any
) -> None:
    wide = OfflineDataset.from_arrays(**arrays, low=[-4.0], high=[4.0])
    with pytest.raises(DataError, match="other units"):
        make_model(untouchable, dataset=wide)
    other = OfflineDataset.from_arrays(**arrays, low=[-2.0], high=[2.0], gamma=0.9)
    with pytest.raises(DataError, match="`gamma` of the dataset"):
        make_model(untouchable, dataset=other, gamma=0.99)
    assert make_model(untouchable, dataset=other).gamma == 0.9
    with pytest.raises(DataError, match="observations of the dataset do not fit"):
        make_model(type(untouchable)(obs_dim=4), dataset=other)


def test_a_discount_is_chosen_in_one_place(make_model: Make, untouchable: Any, arrays: Any) -> None:
    other = OfflineDataset.from_arrays(**arrays, low=[-2.0], high=[2.0], gamma=0.9)
    config = make_model(untouchable).gtp_config
    config = config.replace(learner=config.learner.replace(gamma=0.5))
    with pytest.raises(DataError, match="`gamma` of the dataset"):
        make_model(untouchable, dataset=other, gtp_config=config)
    model = make_model(untouchable, dataset=arrays, gtp_config=config)
    assert model.gamma == rows_of(model).discount.max() == 0.5
    with pytest.raises(ValueError, match=r"`gamma` and `learner.gamma` of the config are one"):
        make_model(untouchable, dataset=arrays, gtp_config=config, gamma=0.9)
    for given, gamma in ((config, 0.5), (None, 0.9)):
        source = make_model(untouchable, dataset=other)
        model = GTP.from_actor(source, untouchable, dataset=arrays, gtp_config=given)
        assert model.gamma == model.learner.config.gamma == gamma


def test_a_discount_that_is_set_later_asks_for_the_data_again(
    make_model: Make, untouchable: Any, arrays: Any, tmp_path: Any
) -> None:
    model = make_model(untouchable, dataset=arrays)
    model.gamma = 0.5
    with pytest.raises(DataError, match="`gamma` was changed since the dataset was read"):
        model.learn(1)
    model.set_dataset(arrays)
    model.learn(1)
    assert rows_of(model).discount.max() == model.learner.config.gamma == 0.5
    model.save(tmp_path / "model")
    for changes in ({"gamma": 0.25}, {"custom_objects": {"gamma": 0.25}}):
        loaded = GTP.load(tmp_path / "model", dataset=arrays, **changes)
        assert loaded.gamma == loaded.learner.config.gamma == 0.25
        assert rows_of(loaded).discount.max() == 0.25
    model.learner.save(tmp_path / "core.zip")
    assert GTP.load(tmp_path / "core.zip", env=untouchable).gamma == 0.5
    with pytest.raises(ValueError, match="gamma"):
        model.gamma = 1.5


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3),
        spaces.Box(-np.inf, np.inf, (1,)),
        spaces.Box(-1, np.inf, (1,)),
        spaces.MultiBinary(2),
    ],
)
def test_action_spaces_that_no_flow_can_serve_are_refused_at_once(
    make_model: Make, untouchable: Any, space: Any
) -> None:
    untouchable.action_space = space
    for dataset in ({}, {"dataset": None}):
        with pytest.raises(UnsupportedSpaceError):
            make_model(untouchable, **dataset)


def test_a_layout_that_leaves_parts_out_is_kept(make_model: Make, minari_set: Any) -> None:
    from gtp_datasets import load_minari

    keys = ("observation", "achieved_goal", "desired_goal")
    space = spaces.Dict({k: spaces.Box(-9, 9, (2,)) for k in keys})

    class Goals(gymnasium.Env[Any, Any]):
        observation_space = space
        action_space = spaces.Box(-2, 2, (1,))

    minari_set(lambda i: {k: np.full((5, 2), n, np.float32) for n, k in enumerate(keys)}, space)
    dataset = load_minari("toy/set-v0", obs_keys=["desired_goal", "observation"])
    model = make_model(Goals(), "MultiInputPolicy", dataset=dataset).learn(1)
    assert model.actor.obs_dim == 4
    assert model.predict({k: np.zeros(2) for k in keys})[0].shape == (1,)
    with pytest.raises(DataError, match="leaves parts of the observation out"):
        model.set_dataset(None, keep_data=True)
    assert model.dataset is not None  # still there


@has_extractor
@pytest.mark.parametrize("left_out", ["gear", "camera"])
def test_an_extractor_needs_all_parts(
    make_model: Make, arrays: Arrays, config: GTPConfig, left_out: str
) -> None:
    parts = {
        "camera": spaces.Box(0, 255, (1, 36, 36), np.uint8),
        "gear": spaces.Discrete(3),
        "speed": spaces.Box(-1, 1, (2,)),
    }

    kept = [key for key in ("camera", "speed") if key != left_out]
    shapes = {"camera": (60, 1, 36, 36), "speed": (60, 2)}
    obs = {key: np.zeros(shapes[key], parts[key].dtype) for key in kept}
    dataset = OfflineDataset.from_arrays(**arrays | {"obs": obs, "next_obs": obs}, low=-2, high=2)
    make = functools.partial(make_model, policy="MultiInputPolicy", dataset=dataset)
    other = gymnasium.Env[Any, Any]()
    other.observation_space = spaces.Dict({key: parts[key] for key in (*kept, left_out)})
    other.action_space = spaces.Box(-2, 2, (1,))
    message = rf"without \['{left_out}'\].*FilterObservation\(env, .*{kept[-1]}'\]\)"
    with pytest.raises(UnsupportedSpaceError, match=message):
        make(other)
    if "camera" in kept:  # without one, there is no extractor
        with pytest.raises(UnsupportedSpaceError, match=message):
            make().set_env(other)
        # The core's encoder sees what the layout has.
        config = config.replace(encoder=ImpalaEncoderConfig(channels=(4,), features=8))
        model = make(other, gtp_config=config)
        assert model.predict(other.observation_space.sample())[0].shape == (1,)
    model = make(gymnasium.wrappers.FilterObservation(other, kept))
    assert model.predict(model.observation_space.sample())[0].shape == (1,)


# --- VecNormalize


def normalized_env(env: Any, **changes: Any) -> VecNormalize:
    return VecNormalize(DummyVecEnv([lambda: env]), **changes)


def test_untouched_statistics_come_from_the_dataset_and_stay(
    make_model: Make, untouchable: Any, arrays: Arrays, capsys: pytest.CaptureFixture[str]
) -> None:
    env = normalized_env(untouchable, gamma=0.9)
    model = make_model(env, dataset=arrays, verbose=1)
    assert "takes its statistics from the dataset" in capsys.readouterr().out
    assert not env.training
    np.testing.assert_allclose(env.obs_rms.mean, arrays["obs"].mean(0), atol=1e-5)
    np.testing.assert_allclose(env.obs_rms.var, arrays["obs"].var(0), rtol=1e-5)
    # What the wrapper would have seen, had it run: discounted rewards, from 0 after each end.
    running, seen = 0.0, []
    for r, end in zip(arrays["reward"], arrays["terminated"] | arrays["truncated"], strict=True):
        running = 0.9 * running + r
        seen.append(running)
        running = 0.0 if end else running
    np.testing.assert_allclose(env.ret_rms.var, np.var(seen), rtol=1e-4)
    batch = model._minibatch(1000)
    expected = env.normalize_obs(arrays["obs"].astype(np.float32))
    assert set(batch.obs[:, 0].tolist()) <= set(expected[:, 0].tolist())
    rewards = set(env.normalize_reward(arrays["reward"].astype(np.float32)).tolist())
    assert set(batch.reward.tolist()) <= rewards
    count = env.obs_rms.count
    model.learn(3)
    assert env.obs_rms.count == count


def test_policy_is_trained_on_what_it_will_be_shown(
    make_model: Make, untouchable: Any, arrays: Arrays
) -> None:
    """A scale of the observations that the wrapper removes must not matter."""
    config = make_model().gtp_config
    config = config.replace(
        learner=config.learner.replace(seed=1, normalize_obs=False, total_updates=3)
    )
    models = []
    for scale in (1.0, 1000.0):
        scaled = arrays | {k: arrays[k] * scale for k in ("obs", "next_obs")}
        untouchable.observation_space = spaces.Box(-1e5, 1e5, (3,))
        env = normalized_env(untouchable, norm_reward=False)
        models.append(make_model(env, dataset=scaled, gtp_config=config).learn(3))
    for model in models:
        model.policy.candidates = 1  # a mode may be another one for a rounding
    a, b = (m.predict(np.ones((4, 3)), deterministic=True)[0] for m in models)
    np.testing.assert_allclose(a, b, atol=1e-3)


def test_frozen_statistics_are_used_as_they_are(
    make_model: Make, untouchable: Any, arrays: Arrays
) -> None:
    env = normalized_env(untouchable)
    env.obs_rms.update(np.full((50, 3), 2.0) + np.random.default_rng(0).normal(size=(50, 3)))
    env.training = False
    mean = env.obs_rms.mean.copy()
    model = make_model(env, dataset=arrays)
    np.testing.assert_array_equal(env.obs_rms.mean, mean)
    assert model._minibatch(500).obs.mean() < -1


def test_moving_statistics_are_refused_with_a_way_out(
    make_model: Make, untouchable: Any, arrays: Arrays
) -> None:
    env = normalized_env(untouchable)
    env.obs_rms.update(np.random.default_rng(0).normal(size=(50, 3)))
    with pytest.raises(DataError, match=r"still move.*training = False"):
        make_model(env, dataset=arrays)
    env.training = False
    model = make_model(env, dataset=arrays)
    env.training = True
    with pytest.raises(DataError, match="still move"):
        model.learn(1)


def test_sums_of_rewards_are_not_taken_for_rewards(
    make_model: Make, untouchable: Any, dataset: OfflineDataset
) -> None:
    several = dataset.with_n_step(3)
    env = normalized_env(untouchable)
    with pytest.raises(
        DataError, match=r"VecNormalize\(norm_reward=True\) needs rewards of single"
    ):
        make_model(env, dataset=several)
    assert env.training  # untouched
    model = make_model(normalized_env(untouchable, norm_reward=False), dataset=several)
    shown = model._offline.shown
    assert isinstance(shown, OfflineDataset)
    assert shown.n_step == 3
    discounts = sorted(set(shown.transitions.discount.tolist()) - {0.0})
    assert discounts == pytest.approx([0.99**3, 0.99**2, 0.99], rel=1e-6)
    model = make_model(type(untouchable)(), dataset=several)
    with pytest.raises(DataError, match=r"needs rewards of single steps"):
        model.set_dataset(None, keep_data=True)


def test_data_that_is_refused_leaves_the_statistics_alone(
    make_model: Make, untouchable: Any, dataset: OfflineDataset, config: Any
) -> None:
    env = normalized_env(untouchable, norm_reward=False)
    config = config.replace(actor=config.actor.replace(chunk=2))
    model = make_model(env, dataset=None, gtp_config=config)
    with pytest.raises(DataError, match="needs rewards of single steps"):
        model.set_dataset(dataset.with_n_step(3))
    assert env.training
    assert (env.obs_rms.mean == 0).all()
    assert env.obs_rms.count < 1
    model.set_dataset(dataset)
    assert not env.training
    np.testing.assert_allclose(env.obs_rms.mean, dataset.observation_statistics()[0], atol=1e-4)


def test_another_environment_shows_the_same_data_in_another_way(
    make_model: Make, untouchable: Any, arrays: Arrays
) -> None:
    plain = type(untouchable)
    model = make_model(normalized_env(untouchable), dataset=arrays)
    assert model.actor.normalizer.mean.abs().max() < 1e-5
    model.set_env(plain())
    model.learn(1)
    batch = model._minibatch(200)
    assert set(batch.obs[:, 0].tolist()) <= set(arrays["obs"][:, 0].astype(np.float32).tolist())
    mean = torch.from_numpy(arrays["obs"].mean(0)).float()
    torch.testing.assert_close(model.actor.normalizer.mean, mean)


@pytest.mark.filterwarnings("ignore:.* more updates after")
@pytest.mark.parametrize("raw_first", [False, True])
def test_a_trained_policy_that_is_shown_other_observations_warns(
    make_model: Make, untouchable: Any, arrays: Arrays, tmp_path: Any, raw_first: bool
) -> None:
    def env(raw: bool) -> Any:
        plain = type(untouchable)()
        return plain if raw else normalized_env(plain)

    model = make_model(env(raw_first), dataset=arrays).learn(2)
    model.save(tmp_path / "model")
    loaded = GTP.load(tmp_path / "model", env=env(not raw_first), dataset=arrays)
    model.set_env(env(not raw_first))
    for other in (model, loaded):
        with pytest.warns(UserWarning, match="trained on other observations: got") as caught:
            other.learn(1)
        assert caught[0].filename == __file__
        other.learn(1)  # said once


def test_a_clone_that_is_shown_other_observations_warns(
    make_model: Make, untouchable: Any, arrays: Arrays
) -> None:
    clone = make_model(normalized_env(untouchable), dataset=arrays).learn(2)
    model = GTP.from_actor(clone, dataset=arrays)
    with pytest.warns(UserWarning, match="got them as they are, expected them normalised by Vec"):
        model.learn(1)
    assert model.learner.normalized_by is None


@pytest.mark.parametrize("changes", [{"norm_obs": False}, {"norm_reward": False}])
def test_half_of_vec_normalize(
    make_model: Make, untouchable: Any, arrays: Arrays, changes: dict[str, Any]
) -> None:
    env = normalized_env(untouchable, **changes)
    batch = make_model(env, dataset=arrays)._minibatch(300)
    plain = make_model(type(untouchable)(), dataset=arrays)._minibatch(300)
    raw_obs = set(batch.obs[:, 0].tolist()) <= set(arrays["obs"][:, 0].astype(np.float32).tolist())
    raw_reward = set(batch.reward.tolist()) <= set(arrays["reward"].astype(np.float32).tolist())
    assert (raw_obs, raw_reward) == ("norm_obs" in changes, "norm_reward" in changes)
    assert plain.obs.shape == batch.obs.shape


@has_extractor
def test_vec_normalize_of_a_dict_and_of_images(make_model: Make, arrays: Arrays) -> None:
    class Car(gymnasium.Env[Any, Any]):
        observation_space = spaces.Dict(
            {"camera": spaces.Box(0, 255, (1, 36, 36), np.uint8), "speed": spaces.Box(-9, 9, (2,))}
        )
        action_space = spaces.Box(-2, 2, (1,))

    rng = np.random.default_rng(0)
    obs = {
        "camera": rng.integers(0, 256, (60, 1, 36, 36), np.uint8),
        "speed": rng.normal(3, 2, size=(60, 2)),
    }
    env = normalized_env(Car(), norm_obs_keys=["speed"])
    model = make_model(
        env,
        "MultiInputPolicy",
        dataset=arrays | {"obs": obs, "next_obs": obs},
        policy_kwargs={"features_extractor_kwargs": {"cnn_output_dim": 8}},
    ).learn(1)
    np.testing.assert_allclose(env.obs_rms["speed"].mean, obs["speed"].mean(0), rtol=1e-4)
    rows = model._offline.shown.rows(0, 60)  # type: ignore[union-attr]
    torch.testing.assert_close(rows.obs[:, -2:].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    assert rows.obs[:, 0].max() > 200  # pixels as they are
    raw = rows_of(model)
    np.testing.assert_allclose(raw.obs[:, -2:], obs["speed"].astype(np.float32))
    env.norm_obs_keys = ["speed", "radio"]
    with pytest.raises(DataError, match="normalises what the dataset leaves out"):
        model.learn(1)


@has_extractor
def test_vec_normalize_of_an_offline_dataset_of_images(
    make_model: Make, untouchable: Any, arrays: Arrays
) -> None:
    """Rewards are normalised and images stay bytes; to normalise images is refused, unchanged."""
    untouchable.observation_space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 36, 36), np.uint8)
    columns = {k: v for k, v in arrays.items() if k != "next_obs"} | {"obs": images}
    dataset = OfflineDataset.from_arrays(**columns, low=[-2.0], high=[2.0])
    choices: dict[str, Any] = {
        "policy": "CnnPolicy",
        "dataset": dataset,
        "policy_kwargs": {"features_extractor_kwargs": {"features_dim": 8}},
    }
    env = normalized_env(untouchable, norm_obs=False)
    model = make_model(env, **choices).learn(1)
    shown = model._offline.shown
    assert isinstance(shown, OfflineDataset)
    assert shown.images == ("",)
    assert shown.nbytes < 1.1 * dataset.nbytes
    torch.testing.assert_close(shown.transitions.obs, dataset.transitions.obs, rtol=0, atol=0)
    expected = env.normalize_reward(dataset.rewards.numpy()).astype(np.float32)
    np.testing.assert_array_equal(shown.rewards, expected)
    env = normalized_env(untouchable)
    floats = {"policy_kwargs": choices["policy_kwargs"] | {"normalize_images": False}}
    with pytest.raises(DataError, match="got norm_obs=True and the images that are the obs"):
        make_model(env, **choices | floats)
    assert env.training  # untouched
    assert env.obs_rms.count < 1
