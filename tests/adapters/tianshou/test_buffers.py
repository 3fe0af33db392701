"""Buffers against datasets, row by row, and against the semantics of Tianshou's own buffers."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict
from minari.data_collector import EpisodeBuffer
from tianshou.algorithm.algorithm_base import Algorithm
from tianshou.data import Batch, PrioritizedReplayBuffer, ReplayBuffer, VectorReplayBuffer
from tianshou.utils.torch_utils import policy_within_training_step

from gtp_datasets import load_d4rl_hdf5
from gtp_policy import (
    ActionScaler,
    FlowMapActorConfig,
    GTPConfig,
    ObservationLayout,
    OfflineDataset,
)
from gtp_policy.dataset_builder import OfflineDatasetBuilder
from gtp_policy.errors import DataError, EmptyDatasetError, ShapeError
from gtp_tianshou import (
    GTP,
    buffer_from_d4rl,
    buffer_from_dataset,
    buffer_from_minari,
    dataset_from_buffer,
)

UNIT = Box(-1, 1, (1,))


def filled(
    buffer: Any, lengths: list[int], *, ends: str = "terminated", **changes: Any
) -> ReplayBuffer:
    """Adds episodes whose observations count up, the last one possibly unfinished."""
    count = 0
    for length in lengths:
        for i in range(abs(length)):
            done = length > 0 and i == length - 1
            row = {
                "obs": np.array([count, 0.0]),
                "act": np.array([0.5]),
                "rew": float(count),
                "terminated": done and ends == "terminated",
                "truncated": done and ends == "truncated",
                "obs_next": np.array([count + 1, 0.0]),
                "info": {},
            }
            buffer.add(Batch(row | changes))
            count += 1
    return buffer


def test_sums_of_rewards_do_not_become_a_buffer(dataset: OfflineDataset) -> None:
    with pytest.raises(DataError, match="needs rewards of single steps: got n_step=3"):
        buffer_from_dataset(dataset.with_n_step(3))


def test_a_dataset_survives_the_way_to_a_buffer_and_back(
    dataset: OfflineDataset, action_space: Box
) -> None:
    buffer = buffer_from_dataset(dataset)
    back = dataset_from_buffer(buffer, action_space=action_space, gamma=dataset.gamma)
    for a, b in zip(dataset.transitions.present(), back.transitions.present(), strict=True):
        assert torch.equal(a, b)
    assert np.array_equal(dataset.terminated, back.terminated)
    assert np.array_equal(dataset.truncated, back.truncated)
    assert back.action_scaler == dataset.action_scaler
    assert back.layout == dataset.layout


def test_actions_in_a_buffer_are_those_of_a_collector(dataset: OfflineDataset) -> None:
    buffer = buffer_from_dataset(dataset)
    box = dataset.action_scaler.to_box(dataset.transitions.action.numpy())
    assert np.array_equal(buffer.act, dataset.transitions.action.numpy())
    assert np.allclose(buffer.act, dataset.action_scaler.to_unit(box), atol=1e-6)
    assert box.max() > 4  # in the environment's units they would lie outside


def test_flags_are_bool_and_keep_apart(dataset: OfflineDataset) -> None:
    buffer = buffer_from_dataset(dataset)
    for name in ("terminated", "truncated", "done"):
        assert getattr(buffer, name).dtype == np.bool_
    assert np.array_equal(buffer.done, buffer.terminated | buffer.truncated)
    assert (buffer.terminated.sum(), buffer.truncated.sum()) == (5, 5)


def test_neighbours_stop_at_the_ends_of_episodes(dataset: OfflineDataset) -> None:
    buffer, n = buffer_from_dataset(dataset), len(dataset)
    rows = np.arange(n)
    last, first = rows % 6 == 5, rows % 6 == 0
    assert np.array_equal(buffer.next(rows), np.where(last, rows, rows + 1))
    assert np.array_equal(buffer.prev(rows), np.where(first, rows, rows - 1))
    assert buffer.unfinished_index().size == 0
    assert np.array_equal(buffer.sample_indices(0), rows)


def test_a_buffer_that_goes_on_collecting_leaves_the_dataset_as_it_is(
    dataset: OfflineDataset,
) -> None:
    before = [column.clone() for column in dataset.transitions.present()]
    buffer = buffer_from_dataset(dataset)
    row = buffer[0]
    for name in ("obs", "act", "obs_next"):
        row[name] = np.full_like(row[name], 0.25)
    for _ in range(len(buffer)):
        buffer.add(row)
    assert (buffer.obs == 0.25).all()
    for a, b in zip(before, dataset.transitions.present(), strict=True):
        assert torch.equal(a, b)


def test_n_step_returns_are_those_of_the_definition(dataset: OfflineDataset) -> None:
    buffer, n, gamma = buffer_from_dataset(dataset), len(dataset), 0.9
    rows = np.arange(n)
    batch = Algorithm.compute_nstep_return(
        buffer[rows], buffer, rows, lambda b, i: torch.full((len(i), 1), 10.0), gamma, n_step=3
    )
    for row in rows:
        end = row - row % 6 + 5
        stop = min(row + 2, end)
        expected = sum(gamma**k * buffer.rew[row + k] for k in range(stop - row + 1))
        if not buffer.terminated[stop]:
            expected += gamma ** (stop - row + 1) * 10.0
        assert batch.returns[row].item() == pytest.approx(expected, abs=1e-5)


def test_seeds_make_the_batches(dataset: OfflineDataset) -> None:
    draws = [buffer_from_dataset(dataset, seed=s).sample_indices(32) for s in (0, 0, 1)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    rows = {k: getattr(buffer_from_dataset(dataset), k) for k in ("obs", "act", "rew", "obs_next")}
    flags = {k: getattr(buffer_from_dataset(dataset), k) for k in ("terminated", "truncated")}
    stock = ReplayBuffer.from_data(**rows, **flags, done=flags["terminated"])
    assert stock.next(0) == 0  # what `buffer_from_dataset` sets right
    assert buffer_from_dataset(dataset).next(0) == 1


def test_observations_may_keep_their_keys() -> None:
    layout = ObservationLayout({"b": (2, 1), "a": (1,)})
    builder = OfflineDatasetBuilder(4, obs_dim=3, action_scaler=ActionScaler([-1], [1]))
    builder.append(
        obs=np.arange(12.0).reshape(4, 3),
        action=np.zeros((4, 1)),
        reward=np.zeros(4),
        next_obs=np.ones((4, 3)),
        terminated=np.zeros(4),
        truncated=np.zeros(4),
    )
    dataset = OfflineDataset.from_builder(builder, layout=layout)
    assert buffer_from_dataset(dataset).obs.shape == (4, 3)
    buffer = buffer_from_dataset(dataset, unflatten=True)
    assert buffer.obs.b.shape == (4, 2, 1)
    assert buffer.obs.a[:, 0].tolist() == [2.0, 5.0, 8.0, 11.0]
    back = dataset_from_buffer(buffer, action_space=UNIT, layout=layout)
    assert torch.equal(back.transitions.obs, dataset.transitions.obs)
    shown = dataset_from_buffer(buffer, action_space=UNIT)  # keys in the house's order
    assert shown.layout.keys == ("a", "b")
    space = Dict(b=Box(-9, 99, (2, 1)), a=Box(-9, 99, (1,)))
    by_space = dataset_from_buffer(buffer, action_space=UNIT, observation_space=space)
    assert torch.equal(by_space.transitions.obs, shown.transitions.obs)
    assert by_space.transitions.obs[0].tolist() == [2.0, 0.0, 1.0]


@pytest.mark.parametrize("make", [lambda: ReplayBuffer(20), lambda: VectorReplayBuffer(20, 1)])
def test_collected_episodes_are_read_in_time_order(make: Callable[[], ReplayBuffer]) -> None:
    buffer = make()
    vector = isinstance(buffer, VectorReplayBuffer)
    if vector:
        for i in range(25):  # the ring has turned once
            done = i % 4 == 3
            buffer.add(
                Batch(
                    obs=np.array([[i, 0.0]]),
                    act=np.array([[0.5]]),
                    rew=np.array([float(i)]),
                    terminated=np.array([done]),
                    truncated=np.array([False]),
                    obs_next=np.array([[i + 1, 0.0]]),
                    info=np.array([{}]),
                )
            )
    else:
        filled(buffer, [4] * 6 + [-1])
    dataset = dataset_from_buffer(buffer, action_space=UNIT, gamma=0.5)
    assert dataset.transitions.obs[:, 0].tolist() == [float(i) for i in range(5, 25)]
    ended = [i % 4 == 3 for i in range(5, 25)]
    assert dataset.terminated.tolist() == ended
    assert dataset.transitions.discount.tolist() == [0.0 if e else 0.5 for e in ended]
    assert dataset.truncated.tolist() == [False] * 19 + [True]  # unfinished: cut, and bootstraps


def test_a_time_limit_bootstraps() -> None:
    buffer = filled(ReplayBuffer(8), [4, 4], ends="truncated")
    dataset = dataset_from_buffer(buffer, action_space=UNIT)
    assert (dataset.transitions.discount == torch.tensor(0.99)).all()
    assert np.flatnonzero(dataset.truncated).tolist() == [3, 7]


@pytest.mark.parametrize(("ends", "kept"), [("terminated", 7), ("truncated", 5)])
def test_without_next_observations_the_end_of_what_was_cut_is_left_out(
    ends: str, kept: int
) -> None:
    buffer = filled(ReplayBuffer(8, ignore_obs_next=True), [3, 3, -2], ends=ends)
    dataset = dataset_from_buffer(buffer, action_space=UNIT)
    obs, next_obs = dataset.transitions.obs[:, 0], dataset.transitions.next_obs[:, 0]
    assert len(dataset) == kept
    goes_on = torch.from_numpy(~dataset.terminated)
    assert torch.equal(next_obs[goes_on], obs[goes_on] + 1)  # never the observation itself
    cut = {"terminated": [6], "truncated": [1, 3, 4]}[ends]
    assert np.flatnonzero(dataset.truncated).tolist() == cut


def test_prioritised_buffers_can_be_read_too() -> None:
    buffer = filled(PrioritizedReplayBuffer(20, alpha=0.6, beta=0.4), [4, 4])
    assert len(dataset_from_buffer(buffer, action_space=UNIT)) == 8


def test_long_buffers_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = filled(ReplayBuffer(30), [7] * 4)
    whole = dataset_from_buffer(buffer, action_space=UNIT)
    monkeypatch.setattr("gtp_tianshou.buffers._CHUNK_BYTES", 300)
    pieces = dataset_from_buffer(buffer, action_space=UNIT)
    for a, b in zip(whole.transitions.present(), pieces.transitions.present(), strict=True):
        assert torch.equal(a, b)


def test_what_float32_leaves_little_of_is_told() -> None:
    buffer = filled(ReplayBuffer(5), [5])
    buffer.obs[:] = 5.3e6 + 0.01 * buffer.obs
    with pytest.warns(UserWarning, match=r"Observation dimensions \[0\], .*Subtract"):
        dataset_from_buffer(buffer, action_space=UNIT)


def test_what_is_wrong_in_a_buffer_is_named() -> None:
    with pytest.raises(EmptyDatasetError, match="buffer is empty"):
        dataset_from_buffer(ReplayBuffer(3), action_space=UNIT)
    units = filled(ReplayBuffer(5), [5], act=np.array([1.7]))
    with pytest.raises(DataError, match=r"got 1.7 in row 0.*map_action_inverse"):
        dataset_from_buffer(units, action_space=UNIT)
    clipped = dataset_from_buffer(units, action_space=UNIT, out_of_bounds="clip")
    assert (clipped.transitions.action == 1).all()
    with pytest.raises(DataError, match="`reward` is not finite"):
        dataset_from_buffer(filled(ReplayBuffer(5), [5], rew=float("nan")), action_space=UNIT)
    with pytest.raises(DataError, match="`action` has the wrong shape"):
        dataset_from_buffer(filled(ReplayBuffer(5), [5]), action_space=Box(-1, 1, (2,)))
    with pytest.raises(ShapeError, match="`obs` has the wrong shape"):
        dataset_from_buffer(
            filled(ReplayBuffer(5), [5]), action_space=UNIT, layout=ObservationLayout((3,))
        )


def test_flags_of_a_file_may_be_floats(dataset: OfflineDataset, action_space: Box) -> None:
    good = buffer_from_dataset(dataset)
    rows = {k: getattr(good, k) for k in ("obs", "act", "rew", "obs_next")}
    flags = {k: getattr(good, k).astype(float) for k in ("terminated", "truncated", "done")}
    buffer = ReplayBuffer.from_data(**rows, **flags)
    back = dataset_from_buffer(buffer, action_space=action_space)
    assert torch.equal(back.transitions.discount, dataset.transitions.discount)
    rows["obs"] = rows["obs"].copy()
    bad = ReplayBuffer.from_data(**rows, **(flags | {"terminated": flags["terminated"] * 2}))
    with pytest.raises(DataError, match="`terminated` is not a flag"):
        dataset_from_buffer(bad, action_space=action_space)


def test_minari_datasets_become_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    episode = EpisodeBuffer(
        observations=np.arange(8.0).reshape(4, 2),
        actions=np.array([[2.0], [-2.0], [1.0]]),
        rewards=np.arange(3.0),
        terminations=[False] * 3,
        truncations=[False, False, True],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari wants an author, a description and so on
        made = minari.create_dataset_from_buffers(
            "toy/set-v0",
            [episode, episode],
            observation_space=Box(-9, 9, (2,), np.float64),
            action_space=Box(-2, 2, (1,)),
        )
    for source in (made, "toy/set-v0"):
        buffer = buffer_from_minari(source, seed=3)
        assert buffer.act[:, 0].tolist() == [1.0, -1.0, 0.5] * 2
        assert buffer.obs[:, 0].tolist() == [0.0, 2.0, 4.0] * 2
        assert buffer.obs_next[:, 0].tolist() == [2.0, 4.0, 6.0] * 2
        assert not buffer.terminated.any()
        assert buffer.next(np.arange(6)).tolist() == [1, 2, 2, 4, 5, 5]
    with pytest.raises(DataError, match="outside the Box"):
        buffer_from_minari("toy/set-v0", low=-1.0, high=1.0)


def test_d4rl_files_become_buffers(tmp_path: Path) -> None:
    path = tmp_path / "task.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = np.arange(12.0).reshape(6, 2)
        file["actions"], file["rewards"] = np.full((6, 1), 0.5), np.ones(6)
        file["terminals"] = np.array([0, 0, 1, 0, 0, 0], bool)
        file["timeouts"] = np.array([0, 0, 0, 0, 0, 1], bool)
    buffer = buffer_from_d4rl(path, seed=1)
    dataset = load_d4rl_hdf5(path)
    assert np.array_equal(buffer.obs, dataset.transitions.obs.numpy())
    assert buffer.terminated.tolist() == [False, False, True, False, False]
    assert buffer.truncated.tolist() == [False, False, False, False, True]
    assert buffer_from_d4rl(path, high=4.0, low=-4.0).act[0, 0] == 0.125


@pytest.mark.parametrize("name", ["act", "rew"])
def test_masked_values_are_refused(name: str) -> None:
    ends = np.array([False, False, True])
    columns = {"obs": np.zeros((3, 2)), "act": np.zeros((3, 1)), "rew": np.zeros(3)}
    columns[name] = np.ma.masked_array(columns[name], mask=np.arange(columns[name].size) == 1)
    buffer = ReplayBuffer.from_data(
        **columns, terminated=ends, truncated=~ends, done=ends, obs_next=np.zeros((3, 2))
    )
    with pytest.raises(DataError, match="masked values: got the first at row 1"):
        dataset_from_buffer(buffer, action_space=Box(-1, 1, (1,)))


def test_done_alone_ends_an_episode() -> None:
    rows, no = np.arange(8), np.zeros(8, np.bool_)
    buffer = ReplayBuffer.from_data(
        obs=rows[:, None] * 1.0,
        act=np.zeros((8, 1)),
        rew=np.ones(8),
        terminated=no,
        truncated=no,
        done=rows % 4 == 3,
        obs_next=rows[:, None] + 1.0,
    )
    dataset = dataset_from_buffer(buffer, action_space=Box(-1, 1, (1,)))
    assert dataset.ends.tolist() == dataset.truncated.tolist() == (rows % 4 == 3).tolist()
    assert not dataset.terminated.any()
    assert dataset.transitions.discount.min() > 0


@pytest.mark.parametrize("preload", [True, False])
def test_actions_in_another_order_than_the_space_has_them(preload: bool) -> None:
    space = Box(-1, 1, (3, 2))

    def fill(shape: tuple[int, ...]) -> ReplayBuffer:
        buffer = ReplayBuffer(4)
        for last in (False, False, False, True):
            step = {"obs": np.zeros(2), "obs_next": np.ones(2), "rew": 1.0, "info": {}}
            flags = {"terminated": last, "truncated": False}
            buffer.add(Batch(act=np.zeros(shape), **step, **flags))
        return buffer

    config = GTPConfig(actor=FlowMapActorConfig(hidden=(8,)), critic=None)
    algorithm = GTP.from_buffer(fill((3, 2)), action_space=space, config=config)
    algorithm.preload = preload

    def update(shape: tuple[int, ...]) -> None:
        table = algorithm.process_buffer(fill(shape))
        with policy_within_training_step(algorithm.policy):
            algorithm.update(table, 4)

    for shape in ((3, 2), (1, 3, 2), (6,)):
        update(shape)
    with pytest.raises(ShapeError, match=r"`act` has the wrong shape: got \(2, 3\), expected"):
        update((2, 3))
