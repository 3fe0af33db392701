"""
From noise to action
====================

A flow map takes noise at the highest time to an action at time 0, in as many jumps as you like. The
one drawn here is known exactly, so that all paths are right: those of a policy that has learned
actions around -0.7, 0 and 0.7. Tests compare networks with such maps.
"""

import matplotlib.pyplot as plt
import torch

from gtp_policy.testing import MixtureFlowMap

oracle = MixtureFlowMap([-0.7, 0.0, 0.7], 0.06, [2.0, 1.0, 2.0])
paths, highest = 60, oracle.times.t_max
noise = highest * torch.randn(paths, 1, generator=torch.Generator().manual_seed(0))
times = highest * torch.linspace(1, 0, 80) ** 3
start = torch.full((paths,), highest)
x = torch.stack([oracle(noise[:, :0], noise, start, s.expand(paths)) for s in times])[..., 0]

figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
nearest = torch.tensor([-0.7, 0.0, 0.7]).sub(x[-1:].T).abs().argmin(1)
for path, mode in zip(x.T, nearest, strict=True):
    axes.plot(times, path, color=f"C{int(mode)}", lw=0.8, alpha=0.7)
axes.set(xscale="asinh", yscale="asinh", xlim=(highest, 0), xlabel="time t: noise on the left")
axes.set(ylabel="action", title="Noise becomes one of three actions")
axes.set_xticks([5, 3, 1, 0.3, 0], ["5", "3", "1", "0.3", "0"])
axes.set_yticks([-10, -3, -0.7, 0, 0.7, 3, 10], ["-10", "-3", "-0.7", "0", "0.7", "3", "10"])
plt.show()
