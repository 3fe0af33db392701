"""An action that decides would be seen, and an ant that stays is not one that goes."""

import numpy as np
import pytest
import torch

from benchmarks.failing import outcome, separation, upright


def test_what_an_episode_comes_to() -> None:
    # An arrival; an ant that goes 3 units and then stays within 1 of the end; one that never left.
    x = [0, 2, 4, 0, 3, 2.5, 3.2, 3, 0, 0.5]
    reward = np.array([0, 0, 1, 0, 0, 0, 0, 0, 0, 0], np.float32)
    ends = np.array([0, 0, 1, 0, 0, 0, 0, 1, 0, 1], bool)
    xy = np.stack([x, np.zeros(10)], 1).astype(np.float32)
    episode, arrives, stays = outcome(xy, reward, ends)
    assert episode.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2]
    assert arrives.tolist() == [True] * 3 + [False] * 7
    assert stays.tolist() == [False] * 4 + [True] * 6


def test_where_the_back_points() -> None:
    # Turned by a half, by a quarter about x, about z: columns 3 to 6 are the quaternion.
    half = np.sqrt(0.5)
    obs = np.zeros((3, 29), np.float32)
    obs[:, 3:7] = [[0, 1, 0, 0], [half, half, 0, 0], [half, 0, 0, half]]
    np.testing.assert_allclose(upright(obs), [-1, 0, 1], atol=1e-6)


@pytest.mark.slow
def test_an_action_that_decides_is_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    obs, action = torch.randn(2, 4000, 3, generator=generator)
    arrives = (action[:, 0] + 0.5 * obs[:, 0] > 0).float()
    train, test = torch.arange(3000), torch.arange(3000, 4000)
    blind = separation(obs, arrives, train, test, 300, seed=0)
    seeing = separation(torch.cat([obs, action], 1), arrives, train, test, 300, seed=0)
    # P(U < V) for the observation alone: both are normal, the correlation is 1 / sqrt(5).
    assert 0.6 < blind < 0.75
    assert seeing > 0.95
