"""The four-mode bandit in short: modes found, modes in proportion, weights that tilt them.

`benchmarks/bandit.py` is the long form, five seeds and 20,000 updates.
"""

import pytest
import torch

from examples.bandit import (
    gaussian_clone,
    make_config,
    make_dataset,
    mode_shares,
    tilted_frequencies,
    train_clone,
    train_weighted,
)
from gtp_policy import GTPLearner, OfflineDataset
from gtp_policy.testing import assert_frequencies_close

UPDATES, HIDDEN, SAMPLES = 4000, (128, 128, 128), 20_000


@pytest.fixture(scope="module")
def dataset() -> OfflineDataset:
    return make_dataset()


@pytest.fixture(scope="module")
def clone(dataset: OfflineDataset) -> GTPLearner:
    return train_clone(dataset, make_config(UPDATES, hidden=HIDDEN))


@pytest.mark.slow
@pytest.mark.xdist_group("bandit")  # all share one policy, which takes the time
@pytest.mark.parametrize(("steps", "floor"), [(1, 0.25), (2, 0.7), (5, 0.75)])
def test_cloning_finds_the_modes(clone: GTPLearner, steps: int, floor: float) -> None:
    action = clone.act(torch.zeros(SAMPLES, 1), steps=steps, generator=clone.stream("test"))
    within, modes = mode_shares(action)
    assert within > floor, (within, modes)
    assert all(abs(share - 0.25) < 0.05 for share in modes), modes


def test_a_gaussian_cannot(dataset: OfflineDataset) -> None:
    assert mode_shares(gaussian_clone(dataset, SAMPLES))[0] < 0.1


@pytest.mark.slow
def test_weights_tilt_the_mode_frequencies(dataset: OfflineDataset) -> None:
    policy = train_weighted(dataset, make_config(UPDATES, eta=1.0, hidden=HIDDEN, t_max=20.0))
    # A long time range, since a short one pulls unequal modes together (KarrasTimes). 2000 draws
    # resolve the frequencies to about one part in a hundred, as well as so short a training learns
    # them; without weights the good mode would have 0.25 instead of 0.65.
    draws = 2000
    generator = torch.Generator().manual_seed(1)
    _, modes = mode_shares(policy.sample(torch.zeros(draws, 1), generator=generator))
    counts = [round(share * draws) for share in modes]
    assert_frequencies_close(counts, tilted_frequencies(eta=1.0), false_alarm=1e-6)
