"""One action per observation: chunks are played in order, the past is remembered, noise follows."""

from typing import Any

import numpy as np
import pytest
from onnx_writer import document, policy_bytes

from gtp_runtime import ActionQueue, NoiseError, ObservationError, Policy, example_file

RNG = np.random.default_rng(0)
CHUNKS = Policy.load(policy_bytes(document(action__chunk=4)))
PAST = Policy.load(policy_bytes(document(action__chunk=2, observation__history=3)))


def observations(n: int) -> list[np.ndarray]:
    return list(RNG.normal(size=(n, 3)).astype(np.float32))


@pytest.mark.parametrize("play", [1, 3, 4])
def test_a_chunk_is_played_in_order_and_then_planned_anew(play: int) -> None:
    queue, obs = ActionQueue(CHUNKS, play=play, deterministic=True), observations(9)
    played = [queue.act(o) for o in obs]
    right = [CHUNKS.act(obs[i - i % play], deterministic=True)[i % play] for i in range(9)]
    assert np.array_equal(played, right)


def test_a_file_says_how_often_the_policy_acts() -> None:
    content = document(format_version=2, action__chunk=4, action__playback={"every": 3})
    policy, obs = Policy.load(policy_bytes(content)), observations(9)
    for play, every in ((None, 3), (2, 2)):
        queue = ActionQueue(policy, play=play, deterministic=True)
        right = [CHUNKS.act(obs[i - i % every], deterministic=True)[i % every] for i in range(9)]
        assert np.array_equal([queue.act(o) for o in obs], right)


@pytest.mark.parametrize("ensemble", [0, 0.7, 1e12])
def test_a_file_says_how_chunks_are_averaged(ensemble: float) -> None:
    playback = {"every": 2, "ensemble": ensemble}
    content = document(format_version=2, action__chunk=5, action__playback=playback)
    policy, obs = Policy.load(policy_bytes(content)), observations(9)
    queue = ActionQueue(policy, deterministic=True)
    for _ in range(2):
        queue.reset()
        for i, o in enumerate(obs):
            said = [
                policy.act(obs[j], deterministic=True)[i - j]
                for j in range(0, i + 1, 2)
                if i - j < 5
            ]
            weights = [np.exp(-ensemble * n) for n in range(len(said))]
            right = np.average(said, axis=0, weights=weights)
            np.testing.assert_allclose(queue.act(o), right, atol=1e-6)
    cut = ActionQueue(policy, play=2, deterministic=True)
    whole = [policy.act(obs[i - i % 2], deterministic=True)[i % 2] for i in range(9)]
    assert np.array_equal([cut.act(o) for o in obs], whole)


def test_an_episode_starts_anew_and_repeats_by_its_seed() -> None:
    queue, obs = ActionQueue(CHUNKS), observations(6)
    episodes = []
    for seed in (1, 2, 1):
        queue.reset(seed)
        episodes.append([queue.act(o) for o in obs])
    assert np.array_equal(episodes[0], episodes[2])
    assert not np.array_equal(episodes[0], episodes[1])
    random = np.random.default_rng(1)
    noises = [random.standard_normal(2, np.float32) for _ in range(2)]
    assert np.array_equal(episodes[0][:4], CHUNKS.act(obs[0], noise=noises[0]))
    assert np.array_equal(episodes[0][4:], CHUNKS.act(obs[4], noise=noises[1])[:2])


def test_a_seed_for_noise_inside_the_file_is_refused() -> None:
    content = document(noise={"source": "keyed", "input": None, "shape": [2], "seed": 0})
    queue = ActionQueue(Policy.load(policy_bytes(content)))
    queue.reset()
    with pytest.raises(NoiseError, match="noise is inside the file: got a seed"):
        queue.reset(seed=0)


def test_the_first_observation_stands_for_the_past_before_it() -> None:
    queue, obs = ActionQueue(PAST, play=1, deterministic=True), observations(5)
    played = [queue.act(o) for o in obs]
    windows = [(0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4)]
    right = [PAST.act(np.stack([obs[i] for i in w]), deterministic=True)[0] for w in windows]
    assert np.array_equal(played, right)
    queue.reset()
    assert np.array_equal(queue.act(obs[0]), played[0])


def test_the_past_of_a_dict_is_kept_by_key() -> None:
    content = document(
        observation={
            "kind": "dict",
            "parts": [
                {"input": "obs.a", "key": "a", "shape": [2]},
                {"input": "obs.b", "key": "b", "shape": [1]},
            ],
            "history": 2,
        }
    )
    policy = Policy.load(policy_bytes(content))
    queue = ActionQueue(policy, deterministic=True)
    first, second = ({"a": RNG.normal(size=2), "b": RNG.normal(size=1)} for _ in range(2))
    queue.act(first)
    right = policy.act({k: np.stack([first[k], second[k]]) for k in "ab"}, deterministic=True)
    for part in first.values():  # what a loop has written over is remembered as it was
        part[:] = 9.0
    assert np.array_equal(queue.act(second), right)


def test_a_loop_may_write_every_observation_into_the_same_array() -> None:
    obs, buffer = observations(5), np.zeros(3, np.float32)
    fresh, same = (ActionQueue(PAST, play=1, deterministic=True) for _ in range(2))
    for o in obs:
        buffer[:] = o
        assert np.array_equal(same.act(buffer), fresh.act(o))


def test_a_policy_without_chunks_is_its_own_queue() -> None:
    policy = Policy.load(policy_bytes())
    queue, obs = ActionQueue(policy, deterministic=True), observations(3)
    for o in obs:
        assert np.array_equal(queue.act(o), policy.act(o, deterministic=True))


@pytest.mark.parametrize("policy", [CHUNKS, PAST], ids=["chunks", "past"])
def test_a_wrong_observation_leaves_the_queue_as_it_was(policy: Policy) -> None:
    queue, obs = ActionQueue(policy, deterministic=True), observations(5)
    right = [queue.act(o) for o in obs]
    queue.reset()
    for o, action in zip(obs, right, strict=True):
        for bad in (np.full(3, np.nan), np.zeros(4), np.zeros((2, 3)), {"a": 1}):
            with pytest.raises(ObservationError):
                queue.act(bad)
        assert np.array_equal(queue.act(o), action)


@pytest.mark.parametrize("play", [0, 5, 1.0, True])
def test_a_wrong_number_to_play_is_named(play: Any) -> None:
    with pytest.raises(ValueError, match="`play` is out of range"):
        ActionQueue(CHUNKS, play=play)


def test_numbers_of_numpy_are_numbers() -> None:
    policy = Policy.load(example_file(), backend="numpy", threads=np.int64(1))
    assert ActionQueue(policy, play=np.int32(1)).act(np.zeros(3)).shape == (1,)
