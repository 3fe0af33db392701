"""
Look at the data first
======================

What a dataset holds says what can be learned from it: how good its episodes are, how they end,
whether actions stand at their bounds. ``report`` finds it in one call, here for the torques of a
mediocre controller of Pendulum.
"""

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np

from gtp_datasets import report
from gtp_policy import OfflineDataset

env, rng = gym.make("Pendulum-v1"), np.random.default_rng(0)
rows = []
for episode in range(20):
    obs, done = env.reset(seed=episode)[0], False
    while not done:
        torque = np.clip([-obs[2] + rng.normal(scale=1.5)], -2, 2)
        after, reward, _, done, _ = env.step(torque)
        rows.append((obs, torque, reward, after, done))
        obs = after
fields = ("obs", "action", "reward", "next_obs", "truncated")
data = dict(zip(fields, map(np.stack, zip(*rows, strict=True)), strict=True))
dataset = OfflineDataset.from_arrays(**data, terminated=np.zeros(len(rows)), low=[-2], high=[2])
print(report(dataset))

figure, row = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
row[0].hist(data["reward"].reshape(20, -1).sum(1), bins=8)
row[0].set(title="return of an episode", ylabel="episodes")
row[1].hist(data["action"][:, 0], bins=40)
row[1].set(title="torque", ylabel="steps")
row[2].scatter(np.arctan2(data["obs"][:, 1], data["obs"][:, 0]), data["obs"][:, 2], s=1)
row[2].set(title="where the data are", xlabel="angle", ylabel="speed")
plt.show()
