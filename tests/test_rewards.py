"""Reward transforms: by hand, and without changing anything else."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from gtp_policy import OfflineDataset
from gtp_policy.errors import DataError
from gtp_policy.rewards import LinearReward, ReturnRangeReward, RewardTransform, StandardizedReward

# Two finished episodes with returns 3 and 1, and an unfinished one with return 2.
REWARD = [1.0, 2.0, 0.0, 1.0, 2.0]
TERMINATED = np.array([0, 1, 0, 0, 0], bool)
TRUNCATED = np.array([0, 0, 0, 1, 0], bool)


def dataset(reward: list[float]) -> OfflineDataset:
    return OfflineDataset.from_arrays(
        obs=np.arange(5.0)[:, None],
        action=np.zeros((5, 1)),
        reward=reward,
        next_obs=np.arange(5.0)[:, None] + 1,
        terminated=TERMINATED,
        truncated=TRUNCATED,
        low=[-1.0],
        high=[1.0],
    )


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (LinearReward(), REWARD),
        (LinearReward(subtract=0.5, multiply=4.0), [2.0, 6.0, -2.0, 2.0, 6.0]),
        (LinearReward(subtract=1.0), [0.0, 1.0, -1.0, 0.0, 1.0]),
        (StandardizedReward(), [-0.26726, 1.06904, -1.60357, -0.26726, 1.06904]),
        (ReturnRangeReward(to=10.0), [5.0, 10.0, 0.0, 5.0, 10.0]),
    ],
    ids=str,
)
def test_transforms_by_hand(transform: RewardTransform, expected: list[float]) -> None:
    original = dataset(REWARD)
    changed = original.with_rewards(transform)
    torch.testing.assert_close(
        changed.transitions.reward, torch.tensor(expected), atol=1e-5, rtol=0
    )
    for name in ("obs", "action", "next_obs", "discount"):
        assert torch.equal(getattr(changed.transitions, name), getattr(original.transitions, name))
    assert original.transitions.reward.tolist() == REWARD
    adapter: TypeAdapter[RewardTransform] = TypeAdapter(RewardTransform)
    assert adapter.validate_json(adapter.dump_json(transform)) == transform


def test_standardised_rewards_have_mean_0_and_std_1_even_far_from_0() -> None:
    reward = (1e4 + np.random.default_rng(0).random(5)).tolist()
    changed = dataset(reward).with_rewards(StandardizedReward()).transitions.reward
    assert abs(changed.mean().item()) < 1e-5
    assert changed.std(correction=0).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("transform", "reward", "what"),
    [
        (StandardizedReward(), [2.0] * 5, "reward"),
        (ReturnRangeReward(), [1.0, 1.0, 1.0, 1.0, 2.0], "return"),
    ],
)
def test_no_spread_to_divide_by(transform: RewardTransform, reward: list[float], what: str) -> None:
    with pytest.raises(DataError, match=f"the same {what} everywhere"):
        dataset(reward).with_rewards(transform)
