"""What the example says of chunks holds: nearer to new movements, with a quarter of the calls."""

import numpy as np
import pytest

from examples.chunks import STEPS, follow, logs
from gtp_policy import FlowMapActorConfig, GTPConfig, GTPLearner, GTPLearnerConfig
from gtp_policy.times import LinearTimes


@pytest.mark.slow
def test_chunks_follow_held_out_movements_better_with_a_quarter_of_the_calls() -> None:
    updates, found = 600, {}
    for h in (1, 4):
        distances = []
        for seed in (0, 1):
            config = GTPConfig(
                critic=None,
                actor=FlowMapActorConfig(hidden=(64, 64), steps=2, times=LinearTimes()),
                learner=GTPLearnerConfig(
                    total_updates=updates,
                    actor_lr=2e-3,
                    ema_rate=0.02,
                    normalize_actions=True,
                    seed=seed,
                ),
            )
            dataset = logs(100, np.random.default_rng(seed)).with_chunks(h)
            learner = GTPLearner.from_dataset(dataset, config)
            learner.update_from(dataset, updates, batch_size=128)
            distance, calls = follow(learner, dataset)
            assert calls == STEPS // h
            distances.append(distance)
        found[h] = np.mean(distances)
    assert found[4] < found[1]
