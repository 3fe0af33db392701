"""Fit of actions: distances of known laws, and policies that have learned or not."""

import math

import numpy as np
import pytest
import torch

from gtp_experiments import fit_of_actions, sliced_distance
from gtp_policy import (
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    OfflineDataset,
)
from gtp_policy.errors import DataError


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_distance_of_a_shift_is_its_mean_length_along_a_direction(size: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, size))
    # E|u_1| of a direction on the sphere in D dimensions.
    along = math.gamma(size / 2) / (math.sqrt(math.pi) * math.gamma((size + 1) / 2))
    shift = np.zeros(size)
    shift[0] = 3.0
    found = sliced_distance(x, x + shift, directions=20_000)
    assert found == pytest.approx(3 * along, rel=0.02)


def test_the_distance_of_two_gaussians_is_the_difference_of_their_quantiles() -> None:
    n = 200_000
    x, y = np.random.default_rng(1).normal(size=(2, n, 1))
    # W1 of N(0, 1) and N(0, 4) is E|z| (2 - 1).
    assert sliced_distance(x, 2 * y) == pytest.approx(math.sqrt(2 / math.pi), rel=0.01)


def data(n: int = 600, seed: int = 0) -> OfflineDataset:
    """Two joints of very different ranges that follow the observation, and two ways to go."""
    rng = np.random.default_rng(seed)
    obs = rng.uniform(-1, 1, (n, 2))
    side = rng.choice([-1.0, 1.0], n)
    return OfflineDataset.from_arrays(
        obs=obs,
        action=np.c_[1.5 * obs[:, 0], 0.01 * (obs[:, 1] + 0.8 * side)],
        terminated=np.arange(n) % 20 == 19,
        truncated=np.zeros(n),
        low=[-2.0, -0.02],
        high=[2.0, 0.02],
    )


@pytest.mark.slow
def test_a_clone_fits_and_a_new_policy_does_not() -> None:
    dataset, updates = data(2000), 1500
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(64, 64)),
        critic=None,
        learner=GTPLearnerConfig(total_updates=updates, actor_lr=2e-3, normalize_actions=True),
    )
    learner, held_out = GTPLearner.from_dataset(dataset, config), data(2000, seed=1)
    new = fit_of_actions(learner, held_out)
    learner.update_from(dataset, updates, batch_size=128)
    fit = fit_of_actions(learner, held_out)
    assert fit.relative_error[0] < 0.15 < new.relative_error[0]
    # Of two ways, one action is right half of the time: the error is theirs, the distance is not.
    assert fit.relative_error[1] > 0.5
    assert fit.distance < 2 * fit.floor < new.distance / 2
    np.testing.assert_allclose(fit.error / fit.relative_error, [1.5 * 0.577, 0.0099], rtol=0.05)


def test_equal_seeds_give_equal_figures_and_chunks_are_counted_as_made() -> None:
    dataset = data(40)
    config = GTPConfig(actor=FlowMapActorConfig(hidden=(8,), chunk=4, history=2), critic=None)
    learner = GTPLearner.from_dataset(dataset.with_history(2).with_chunks(4), config)
    first, again = (fit_of_actions(learner, dataset) for _ in range(2))
    np.testing.assert_array_equal(first.error, again.error)
    assert first[2:] == again[2:]
    # By hand: the steps that were made, of every chunk that was drawn.
    chunks = dataset.with_history(2).with_chunks(4)
    batch = chunks.sample(40, generator=torch.Generator().manual_seed(0))
    drawn = learner.act(batch.obs, deterministic=True).reshape(40, 4, 2)
    squares = []
    for row in range(40):
        for step in range(int(batch.chunk_length[row])):
            squares.append((drawn[row, step] - batch.action[row].view(4, 2)[step]).numpy() ** 2)
    expected = np.sqrt(np.mean(squares, 0)) * [2.0, 0.02]
    np.testing.assert_allclose(first.error, expected, rtol=1e-5)


def test_too_little_data_is_an_error() -> None:
    dataset = data(3)
    learner = GTPLearner.from_dataset(dataset, GTPConfig(critic=None))
    with pytest.raises(DataError, match=r"got 2 transitions, expected at least 4"):
        fit_of_actions(learner, dataset)
