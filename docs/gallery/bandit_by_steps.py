"""
Four modes, by number of network calls
======================================

The data hold actions around four corners, for one and the same observation. A policy with a single
Gaussian covers them with one blob. A flow map finds the corners, here after seconds of behaviour
cloning with a small network; K is the number of jumps that a sample takes.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from gtp_policy import GTPLearner, OfflineDataset, presets

rng, n = np.random.default_rng(0), 4000
action = rng.choice([-0.7, 0.7], (n, 2)) + 0.05 * rng.normal(size=(n, 2))
flat = {"reward": np.zeros(n), "terminated": np.ones(n), "truncated": np.zeros(n)}
dataset = OfflineDataset.from_arrays(
    obs=np.zeros((n, 1)), action=action, low=[-1, -1], high=[1, 1], **flat
)
one = presets.one_step()
actor = one.actor.replace(hidden=(64, 64, 64))
training = one.learner.replace(total_updates=1000, actor_lr=1e-2, ema_rate=0.05)
learner = GTPLearner.from_dataset(dataset, one.replace(actor=actor, critic=None, learner=training))
learner.update_from(dataset, 1000, batch_size=256)

figure, row = plt.subplots(1, 4, figsize=(10, 2.9), sharey=True, layout="constrained")
panels = {"data": action[:1500]}
for steps in (1, 2, 5):
    noise = torch.Generator().manual_seed(0)
    panels[f"K = {steps}"] = learner.act(torch.zeros(1500, 1), steps=steps, generator=noise).numpy()
for axes, (name, points) in zip(row, panels.items(), strict=True):
    axes.scatter(*points.T, s=2, alpha=0.4)
    axes.set(title=name, xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
plt.show()
