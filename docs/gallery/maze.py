"""
A maze, and trips that differ
=============================

The data of ``make demo``: a controller drives PointMaze from random starts to random goals, now
fast and now slowly. A clone drives like their mixture; offline reinforcement learning sees that a
reward is worth more the sooner it comes, and prefers the bright trips. Run it from a checkout.
"""

import os
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

root = next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "examples").is_dir())
sys.path.insert(0, str(root))

from examples.pointmaze import behaviour, collect, maze_map  # noqa: E402

with tempfile.TemporaryDirectory() as folder:
    os.environ["MINARI_DATASETS_PATH"] = folder
    trips = behaviour(collect("gallery/maze-v0", steps=3000))

figure, axes = plt.subplots(figsize=(6, 4.6), layout="constrained")
walls = np.array(maze_map()) == 1
height, width = walls.shape
box = (-width / 2, width / 2, -height / 2, height / 2)
axes.imshow(walls, cmap="Greys", vmax=3, extent=box)
for path in trips.trajectories:
    speed = 100 * np.linalg.norm(np.diff(path, axis=0), axis=1)
    drawn = axes.scatter(*path[1:].T, c=speed, s=2, vmin=0, vmax=5, cmap="plasma")
axes.scatter(*trips.goals.T, marker="*", color="C2", s=60, zorder=3)
figure.colorbar(drawn, label="speed, cells per 100 steps")
axes.set(title=f"{len(trips.steps)} trips of the controller", xticks=[], yticks=[])
plt.show()
