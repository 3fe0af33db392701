"""
How much the critic changes the data
====================================

Each action of the data counts in the loss by its advantage. The temperature η says how much: 0 is
behaviour cloning. The title of a panel has the effective share of the minibatch, which training
logs as ``weight_ess``: at a few per cent, a handful of transitions teach the whole policy.
"""

import matplotlib.pyplot as plt
import torch

from gtp_policy import AdvantageWeighter, AdvantageWeighterConfig
from gtp_policy.functional import effective_sample_size

advantage = torch.randn(2000, generator=torch.Generator().manual_seed(0)).sort().values

figure, row = plt.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
for axes, eta in zip(row, (0.3, 1.0, 3.0), strict=True):
    weight = AdvantageWeighter(AdvantageWeighterConfig(eta=eta))(advantage)
    share = effective_sample_size(weight) / len(weight)
    axes.fill_between(advantage, weight, 1e-2, alpha=0.3)
    axes.plot(advantage, weight)
    axes.set(title=f"η = {eta:g}: {100 * share:.0f} % effective", xlabel="advantage", yscale="log")
row[0].set_ylabel("weight in the loss")
plt.show()
