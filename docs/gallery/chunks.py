"""
Chunks, played to their end and blended
=======================================

A policy of chunks says several actions at once, and its plans jump where one ends and the next
begins. ``Playback`` says how they are played: to the end (fewest network calls), a new one every
few steps, or all that speak of the present step averaged.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from gtp_policy.chunks import ChunkPlayer, Playback

h, steps = 8, 60
rng = np.random.default_rng(0)


def plan(obs: torch.Tensor) -> torch.Tensor:
    """Stands for a policy: the next eight points of a sine, all shifted by one random error."""
    ahead = torch.sin((obs + torch.arange(h)) / 8)
    return ahead + torch.from_numpy(rng.normal(0, 0.15, (len(obs), 1))).float()


ways = {
    "every chunk to its end": Playback(),
    "a new chunk every 2 steps": Playback(every=2),
    "those that overlap, averaged": Playback(every=2, ensemble=0.05),
}
figure, row = plt.subplots(1, 3, figsize=(10, 3), sharey=True, layout="constrained")
for axes, (name, playback) in zip(row, ways.items(), strict=True):
    player = ChunkPlayer(plan, chunk=h, playback=playback)
    played = [player.act(torch.full((1, 1), float(t))).item() for t in range(steps)]
    axes.plot(np.sin(np.arange(steps) / 8), color="0.8", lw=4)
    axes.step(range(steps), played, where="post")
    axes.set(title=name, xlabel="step")
row[0].set_ylabel("action")
plt.show()
