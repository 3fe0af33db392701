"""
Ask the critic: the best of several candidates
==============================================

A policy of samples can be asked for several actions, and the critic that was trained with it for
the best of them. Here the data's actions are random, and the reward wants ``action = observation``:
what comes out moves there as the number of candidates grows, with the same weights.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from gtp_policy import GTPConfig, GTPLearner, OfflineDataset, QEnsembleConfig

rng, n = np.random.default_rng(0), 5000
obs, action = rng.uniform(-1, 1, (2, n, 1))
dataset = OfflineDataset.from_arrays(
    obs=obs, action=action, reward=-np.abs(action - obs)[:, 0],
    terminated=np.ones(n), truncated=np.zeros(n), low=[-1], high=[1],
)  # fmt: skip
base, sizes = GTPConfig(), (64, 64)
config = base.replace(
    actor=base.actor.replace(hidden=sizes, steps=1),
    critic=QEnsembleConfig(hidden=sizes),
    learner=base.learner.replace(total_updates=250),
)
learner = GTPLearner.from_dataset(dataset, config)
learner.update_from(dataset, 250, batch_size=256)

figure, row = plt.subplots(1, 3, figsize=(9, 3.2), sharey=True, layout="constrained")
asked = torch.linspace(-1, 1, 300)[:, None]
for axes, count in zip(row, (1, 4, 32), strict=True):
    noise = torch.Generator().manual_seed(0)
    axes.plot([-1, 1], [-1, 1], color="0.8", lw=4)
    axes.scatter(asked, learner.act(asked, candidates=count, generator=noise), s=4)
    axes.set(title=f"best of {count}" if count > 1 else "one sample", xlabel="observation")
row[0].set_ylabel("action")
plt.show()
