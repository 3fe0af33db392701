"""Images: stored as bytes, sampled as the numbers they were, encoded by what a config names."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from gtp_policy import (
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    OfflineDataset,
    QEnsembleConfig,
    load_checkpoint,
    read_metadata,
    save_checkpoint,
)
from gtp_policy.encoders import ImpalaEncoderConfig, ObservationPart
from gtp_policy.errors import DataError, EmptyDatasetError, StateMismatchError

N, SHAPE = 24, (8, 6, 3)
ENCODER = ImpalaEncoderConfig(channels=(4, 4), features=10)


def columns(seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    step = np.arange(N)
    return {
        "action": random.uniform(-1, 1, (N, 2)),
        "reward": random.normal(size=N),
        "terminated": step % 8 == 7,
        "truncated": step % 8 == 3,
        "low": [-1.0, -1.0],
        "high": [1.0, 1.0],
    }


def pixels(seed: int = 0, shape: tuple[int, ...] = SHAPE, count: int = N) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def following(images: np.ndarray) -> np.ndarray:
    """The next row's image, but where an episode ends another one."""
    found = np.roll(images, -1, 0)
    found[3::4] = pixels(9, images.shape[1:], len(images))[3::4]
    return found


def config_of(**actor: Any) -> GTPConfig:
    return GTPConfig(
        actor=FlowMapActorConfig(hidden=(16,), time_dim=4, steps=2, **actor),
        critic=QEnsembleConfig(hidden=(16,)),
        encoder=ENCODER,
        learner=GTPLearnerConfig(total_updates=20),
    )


def same(a: Any, b: Any) -> None:
    for name, one in a._asdict().items():
        other = getattr(b, name)
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other), name


CHANGES = [
    lambda d: d,
    lambda d: d.with_history(3),
    lambda d: d.with_chunks(3),
    lambda d: d.with_history(2).with_chunks(2),
    lambda d: d.with_n_step(3),
    lambda d: d.with_next_actions().with_history(2),
    lambda d: d.with_best_episodes(0.5),
    lambda d: d.with_return_weighting(1.0),
    lambda d: d.split_episodes(0.5)[1],
    lambda d: d.with_history(2).split_episodes(0.5)[0],
    lambda d: d.split_episodes(0.5)[0].with_chunks(2),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("shape", [SHAPE, (3, 8, 6)])
def test_images_are_the_numbers_that_floats_would_be(
    change: Any, given: bool, shape: tuple[int, ...]
) -> None:
    images = pixels(shape=shape)
    after = following(images) if given else None
    flat = [None if x is None else x.reshape(N, -1).astype(np.float32) for x in (images, after)]
    stored = change(OfflineDataset.from_arrays(obs=images, next_obs=after, **columns()))
    floats = change(OfflineDataset.from_arrays(obs=flat[0], next_obs=flat[1], **columns()))
    assert stored.images == ("",)
    assert stored.obs_dim == floats.obs_dim
    same(stored.transitions, floats.transitions)
    same(stored.rows(2, 5), floats.rows(2, 5))
    a, b = (d.sample(40, generator=torch.Generator().manual_seed(1)) for d in (stored, floats))
    same(a, b)


def test_parts_by_key_are_joined_by_the_rule_of_layouts() -> None:
    images, speed = pixels(), np.random.default_rng(1).normal(size=(N, 2, 2))
    obs = {"speed": speed, "camera": images}
    dataset = OfflineDataset.from_arrays(obs=obs, next_obs=obs, **columns())
    assert dataset.obs_keys == ("camera", "speed")
    assert dataset.images == ("camera",)
    parts = dataset.layout.unflatten(dataset.transitions.obs)
    assert np.array_equal(parts["camera"].numpy(), images)
    assert np.array_equal(parts["speed"].numpy(), speed.astype(np.float32))
    mean, std = dataset.with_history(2).observation_statistics()
    mean, std = (dataset.layout.unflatten(x.view(2, -1)) for x in (mean, std))
    assert (mean["camera"] == 0).all()
    assert (std["camera"] == 1).all()
    expected = torch.from_numpy(speed).float().mean(0)
    torch.testing.assert_close(mean["speed"][1], expected)
    vectors = OfflineDataset.from_arrays(obs={"a": speed, "b": speed[:, 0]}, **columns())
    assert (vectors.images, vectors.obs_dim) == ((), 6)


@pytest.mark.parametrize("given", [True, False])
def test_memory_is_that_of_the_bytes(given: bool) -> None:
    images = np.zeros((2000, 64, 64, 3), np.uint8)
    images += np.arange(2000, dtype=np.uint8)[:, None, None, None]
    step = np.arange(2000)
    dataset = OfflineDataset.from_arrays(
        obs=images,
        next_obs=np.concatenate([images[1:], images[:1] + 9]) if given else None,
        action=np.zeros((2000, 2)),
        reward=np.zeros(2000),
        terminated=np.zeros(2000),
        truncated=step % 100 == 99,
        low=[-1.0] * 2,
        high=[1.0] * 2,
    )
    assert dataset.nbytes <= 1.1 * images.nbytes
    assert dataset.with_history(4).nbytes <= 1.1 * images.nbytes  # pictures are shared


@pytest.mark.parametrize("shape", [SHAPE, (3, 8, 6), (9, 7, 7)])
def test_random_shifts_pad_by_the_edge_and_crop(shape: tuple[int, ...]) -> None:
    images, shift = pixels(shape=shape), 2
    plain = OfflineDataset.from_arrays(obs=images, **columns()).with_history(2)
    shifted = plain.with_random_shift(shift)
    same(plain.transitions, shifted.transitions)
    a, b = (d.sample(200, generator=torch.Generator().manual_seed(3)) for d in (plain, shifted))
    spatial = (1, 2) if shape[-1] == 3 else (2, 3)
    widths = [(shift, shift) if axis in spatial else (0, 0) for axis in range(4)]
    seen: dict[str, set[tuple[int, int]]] = {"obs": set(), "next_obs": set()}
    agree = 0
    for row in range(200):
        moves = {}
        for field, found in seen.items():
            before = getattr(a, field)[row].numpy().reshape(2, *shape)
            after = getattr(b, field)[row].numpy().reshape(2, *shape)
            padded = np.pad(before, widths, mode="edge")
            fitting = [
                (dy, dx)
                for dy in range(2 * shift + 1)
                for dx in range(2 * shift + 1)
                if np.array_equal(
                    padded[
                        tuple(
                            slice(d, d + before.shape[axis])
                            for axis in range(4)
                            for d in [{spatial[0]: dy, spatial[1]: dx}.get(axis, 0)]
                        )
                    ],
                    after,
                )
            ]
            assert len(fitting) == 1  # both pictures of the history by one move
            found.add(fitting[0])
            moves[field] = fitting[0]
        agree += moves["obs"] == moves["next_obs"]
    assert len(seen["obs"]) == len(seen["next_obs"]) == 25
    assert agree < 40  # 8 of 200 by chance
    assert torch.equal(a.action, b.action)


def test_a_policy_with_an_encoder_is_loaded_by_its_choices(tmp_path: Any) -> None:
    obs = {"camera": pixels(), "speed": np.random.default_rng(1).normal(size=(N, 2))}
    dataset = OfflineDataset.from_arrays(obs=obs, **columns()).with_history(2).with_random_shift(1)
    learner = GTPLearner.from_dataset(dataset, config_of())
    for line in learner.explain():
        assert "because" in line
        assert "has an encoder" in line
    learner.update_from(dataset, 2, batch_size=8)
    config = learner.full_config
    assert config.encoder.parts == (
        ObservationPart(shape=SHAPE, image=True),
        ObservationPart(shape=(2,), image=False),
    )
    path = save_checkpoint(tmp_path / "a.zip", learner, layout=dataset.layout)
    assert read_metadata(path).config == learner.open_config
    loaded = load_checkpoint(path)
    seen = dataset.transitions.obs[:3]
    actions = [x.act(seen, deterministic=True) for x in (learner, loaded.learner)]
    assert torch.equal(*actions)
    for one in (learner, loaded.learner):
        one.update_from(dataset, 1, batch_size=8)
    for a, b in zip(learner.parameters(), loaded.learner.parameters(), strict=True):
        assert torch.equal(a, b)
    single = dataset.layout.flatten({k: v[:5] for k, v in obs.items()})
    assert loaded.learner.player().act(single).shape == (5, 2)
    with pytest.raises(StateMismatchError, match="without a custom `encoder`"):
        load_checkpoint(path, encoder=learner.actor.encoder)


@pytest.mark.parametrize("history", [1, 3])
def test_what_an_encoder_takes_is_counted_without_building_it(history: int) -> None:
    parts = (
        ObservationPart(shape=(8, 6, 3), image=True),
        ObservationPart(shape=(5,), image=False),
        ObservationPart(shape=(2, 16, 9), image=True),
    )
    config = ImpalaEncoderConfig(channels=(4, 3, 5), blocks=2, features=10, parts=parts)
    obs_dim = history * (144 + 5 + 288)
    encoder = config.build(obs_dim, history)
    numbers = sum(p.numel() for p in encoder.parameters())
    assert config.count(obs_dim, history) == (encoder.features_dim, numbers)
    with pytest.raises(ValueError, match="does not know the observations"):
        config.count(obs_dim + 1, history)


def test_an_encoder_that_takes_seconds_to_build_is_refused() -> None:
    widest = {"channels": (1,) * 8, "blocks": 16}
    parts = (ObservationPart(shape=(8, 8, 1), image=True),)
    assert ImpalaEncoderConfig(**widest, parts=parts).parts == parts
    with pytest.raises(ValueError, match="got 530 for 2 images, 8 stages and blocks=16"):
        ImpalaEncoderConfig(**widest, parts=parts * 2)


def test_actor_and_critic_have_encoders_of_their_own() -> None:
    dataset = OfflineDataset.from_arrays(obs=pixels(), **columns())
    learner = GTPLearner.from_dataset(dataset, config_of())
    encoders = {"actor": learner.actor.encoder, "critic": learner.critic.encoder}
    assert not {id(p) for p in encoders["actor"].parameters()} & {
        id(p) for p in encoders["critic"].parameters()
    }
    before = copy.deepcopy(encoders)
    learner.optimizers["actor"].step = lambda: None  # what the critic's step alone does
    learner.update_from(dataset, 1, batch_size=8)
    changed = {
        name: any(
            not torch.equal(a, b)
            for a, b in zip(old.parameters(), encoders[name].parameters(), strict=True)
        )
        for name, old in before.items()
    }
    assert changed == {"actor": False, "critic": True}


@pytest.mark.slow
def test_an_encoder_finds_what_is_in_a_picture() -> None:
    """One bright column; the action says which. The mean action would be 0.5 away on average."""
    random = np.random.default_rng(0)
    place = random.integers(0, 8, 400)
    images = np.zeros((400, 8, 8, 1), np.uint8)
    images[np.arange(400), :, place, 0] = 255
    dataset = OfflineDataset.from_arrays(
        obs=images,
        action=(place / 4 - 7 / 8)[:, None],
        reward=np.zeros(400),
        terminated=np.ones(400),
        truncated=np.zeros(400),
        low=[-1.0],
        high=[1.0],
    )
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(32,), steps=2),
        critic=None,
        encoder=ImpalaEncoderConfig(channels=(8,), features=32),
        learner=GTPLearnerConfig(total_updates=300, actor_lr=3e-3, ema_rate=0.05),
    )
    learner = GTPLearner.from_dataset(dataset, config)
    learner.update_from(dataset, 300, batch_size=64)
    batch = dataset.rows(0, 100)
    drawn = learner.act(batch.obs.repeat(32, 1), generator=learner.stream("test"))
    error = (drawn.view(32, 100, -1).mean(0) - batch.action).abs().mean()
    assert error < 0.2


# --- what does not fit


def test_images_and_encoders_need_each_other() -> None:
    images = OfflineDataset.from_arrays(obs=pixels(), **columns())
    vectors = OfflineDataset.from_arrays(obs=np.zeros((N, 3)), **columns())
    with pytest.raises(DataError, match="Images need an encoder"):
        GTPLearner.from_dataset(images, GTPConfig())
    with pytest.raises(DataError, match="There is nothing to encode"):
        GTPLearner.from_dataset(vectors, config_of())
    with pytest.raises(DataError, match="There is nothing to shift"):
        vectors.with_random_shift(2)
    with pytest.raises(DataError, match="`pixels` is out of range"):
        images.with_random_shift(-1)
    with pytest.raises(ValueError, match="does not know the observations"):
        GTPLearner.build(144, 2, config_of())
    fitted = config_of().fit_to_observations(images.layout, images.images)
    with pytest.raises(ValueError, match="does not know the observations"):
        GTPLearner.build(145, 2, fitted)
    turned = OfflineDataset.from_arrays(obs=pixels(shape=(3, 8, 6)), **columns())
    with pytest.raises(DataError, match="is for other observations"):
        GTPLearner.from_dataset(turned, fitted)
    with pytest.raises(ValueError, match="Two encoders"):
        GTPLearner.from_dataset(images, config_of(), encoder=ENCODER.replace(
            parts=fitted.encoder.parts).build(144, generator=torch.Generator()))  # fmt: skip


@pytest.mark.parametrize(
    ("obs", "next_obs", "message"),
    [
        ({}, None, "has no parts"),
        ({"a": pixels(), 1: pixels()}, None, "has no parts"),
        ({"a": pixels(), "b": np.zeros((N - 1, 2))}, None, r"`obs\['b'\]` has the wrong shape"),
        ({"a": np.array(["x"] * N)}, None, "holds no rows of numbers"),
        ({"a": pixels()}, {"b": pixels()}, "`next_obs` has other parts"),
        ({"a": pixels()}, {"a": pixels()[:, :4]}, r"`next_obs\['a'\]` has the wrong shape"),
        ({"a": pixels()}, {"a": pixels().astype(float)}, "is not like"),
        (np.zeros((N, 2)), {"a": pixels()}, "got a mapping and an array"),
        (np.zeros((N, 4, 4, 3)), None, r"expected \(N, O\)"),
    ],
)
def test_wrong_parts(obs: Any, next_obs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        OfflineDataset.from_arrays(obs=obs, next_obs=next_obs, **columns())


def test_no_images_at_all() -> None:
    empty = {k: v[:0] if isinstance(v, np.ndarray) else v for k, v in columns().items()}
    with pytest.raises(EmptyDatasetError):
        OfflineDataset.from_arrays(obs=pixels(count=0), **empty)
