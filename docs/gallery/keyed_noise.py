"""
Deterministic, and still of many modes
======================================

Twice the same observation, twice the same action: the usual way is one fixed noise, and then the
policy turns to the same side everywhere. ``deterministic=True`` derives the noise from the
observation instead, so that the actions of a set of observations are distributed as samples are.
"""

import matplotlib.pyplot as plt
import torch

from gtp_policy.functional import sample_flow
from gtp_policy.keyed_noise import keyed_noise
from gtp_policy.testing import MixtureFlowMap

oracle, n = MixtureFlowMap([-0.6, 0.6], 0.08), 400  # left or right, whatever the observation
obs = torch.linspace(-1, 1, n)[:, None]
grid = oracle.times.grid(5)
noises = {
    "sampled: another action in every call": torch.randn(
        n, 1, generator=torch.Generator().manual_seed(0)
    ),
    "one noise for all: always the same side": torch.full((n, 1), 0.4),
    "keyed noise: repeatable, both sides": keyed_noise(obs, 1),
}

figure, row = plt.subplots(1, 3, figsize=(10, 3), sharey=True, layout="constrained")
for axes, (name, z) in zip(row, noises.items(), strict=True):
    action = sample_flow(oracle, obs, grid[0] * z, grid)[-1]
    axes.scatter(obs[:, 0], action[:, 0], s=4)
    axes.set_title(name, size=10)
    axes.set(xlabel="observation", ylim=(-1, 1))
row[0].set_ylabel("action")
plt.show()
