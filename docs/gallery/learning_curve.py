"""
The learning curve of a study
=============================

Runs leave a record each, ``result.json``: every choice and evaluation, hash of the data, software.
This reads those of a study that the repository keeps (hopper-medium, data generated locally) and
draws what the tables are made of: one line per seed, the mean on top.
"""

from itertools import groupby
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from gtp_experiments import read_results

root = next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "benchmarks/results").is_dir())
results = read_results(root / "benchmarks/results/experiments/hopper")

figure, row = plt.subplots(1, 3, figsize=(9, 3.2), sharey=True, layout="constrained")
methods = ("gtp", "gtp_bc", "TD3+BC")
runs = sorted((r for r in results if r.method in methods), key=lambda r: methods.index(r.method))
for axes, (method, mine) in zip(row, groupby(runs, key=lambda r: r.method), strict=True):
    curves = [[(e.update, r.score(e)) for e in r.evaluations] for r in mine]
    for curve in curves:
        axes.plot(*zip(*curve, strict=True), color="C0", lw=0.8, alpha=0.5)
    axes.plot(*np.mean(curves, axis=0).T, color="C0", lw=2)
    axes.set(title=f"{method}, {len(curves)} seeds", xlabel="updates", ylim=(0, 110))
row[0].set_ylabel("normalised score")
plt.show()
