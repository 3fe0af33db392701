"""What metrics report when training goes wrong."""

import math
import warnings

import pytest
import torch

from gtp_policy import (
    AdvantageWeighterConfig,
    Curriculum,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    GTPLossConfig,
    QEnsembleConfig,
    Transitions,
    UpdateMetrics,
)
from gtp_policy.errors import ShapeError, TrainingWarning
from gtp_policy.metrics import spread_ratio


def metrics_of(eta: float, max_weight: float) -> UpdateMetrics:
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(8,), time_dim=4),
        critic=QEnsembleConfig(hidden=(8,)),
        loss=GTPLossConfig(curriculum=Curriculum(start=4, end=4)),
        weighter=AdvantageWeighterConfig(eta=eta, max_weight=max_weight),
        learner=GTPLearnerConfig(guidance_start=0),
    )
    generator = torch.Generator().manual_seed(0)
    obs, following = torch.randn(2, 256, 3, generator=generator)
    action = torch.rand(256, 2, generator=generator) * 2 - 1
    discount = torch.full((256,), 0.99)
    return GTPLearner.build(3, 2, config).update(
        Transitions(obs, action, action[:, 0], following, discount)
    )


def test_weights_without_a_cap_collapse_with_a_warning() -> None:
    with pytest.warns(TrainingWarning, match="effective sample of .*lower eta or max_weight"):
        metrics_of(eta=10.0, max_weight=1e30).to_floats()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics_of(eta=1.0, max_weight=100.0).to_floats()


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 2.0])
def test_the_spread_of_a_scaled_gaussian_is_known(scale: float) -> None:
    """E|x - x'| = scale sqrt(2) k and E|a - x| = sqrt(1 + scale^2) k, with one k for both."""
    n = 200_000
    action, first, second = torch.randn(3, n, 2, generator=torch.Generator().manual_seed(0))
    got = spread_ratio(action, scale * first, scale * second).item()
    # The relative standard error of a mean of distances is below 1 / sqrt(n).
    assert abs(got - scale * math.sqrt(2 / (1 + scale**2))) < 12 / math.sqrt(n)


def test_a_policy_that_lost_a_mode_shows_even_where_actions_vary_with_observations() -> None:
    generator = torch.Generator().manual_seed(0)
    action, first, second = torch.randint(2, (3, 10_000, 1), generator=generator) * 2.0 - 1
    assert abs(spread_ratio(action, first, second).item() - 1) < 0.05
    # One mode per observation, both over all: the marginal distribution is the data's.
    assert spread_ratio(action, first, first).item() == 0


def test_spread_wants_equal_shapes() -> None:
    with pytest.raises(ShapeError, match="`second` has the wrong shape"):
        spread_ratio(torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(4, 1))
