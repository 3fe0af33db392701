"""The four-mode bandit, an illustration: one observation, actions around four corners.

A Gaussian policy can only cover the four modes with one blob; a generative one has to find them.
The truth puts 98.9 % of its samples within three standard deviations of a mode.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from gtp_policy import (
    AdvantageWeighter,
    Curriculum,
    FlowMapActor,
    GTPConfig,
    GTPLearner,
    GTPLoss,
    OfflineDataset,
    QEnsembleConfig,
    presets,
)
from gtp_policy.functional import ema_
from gtp_policy.times import KarrasTimes

MODES = np.array([(x, y) for x in (-0.8, 0.8) for y in (-0.8, 0.8)])
STD = 0.05


def make_dataset(n: int = 100_000, seed: int = 0) -> OfflineDataset:
    """Draws actions from the four modes alike; reward 1 at the mode (0.8, 0.8), 0 elsewhere."""
    rng = np.random.default_rng(seed)
    mode = rng.integers(len(MODES), size=n)
    return OfflineDataset.from_arrays(
        obs=np.zeros((n, 1)),
        action=MODES[mode] + STD * rng.normal(size=(n, 2)),
        reward=(mode == len(MODES) - 1).astype(float),
        next_obs=np.zeros((n, 1)),
        terminated=np.ones(n, bool),
        truncated=np.zeros(n, bool),
        low=[-1.0, -1.0],
        high=[1.0, 1.0],
        out_of_bounds="clip",  # three actions in 100,000 lie more than four deviations out
        source="four-mode bandit",
    )


def make_config(
    updates: int,
    *,
    seed: int = 0,
    eta: float | None = None,
    hidden: tuple[int, ...] = (256, 256, 256),
    t_max: float = KarrasTimes().t_max,
) -> GTPConfig:
    """Returns the paper's method for some thousand updates; without `eta`, behaviour cloning."""
    paper, ema_rate = presets.paper_loss(), 0.05
    curriculum = Curriculum(start=10, end=320).capped(updates, ema_rate)
    return GTPConfig(
        actor=paper.actor.replace(hidden=hidden, times=KarrasTimes(t_max=t_max)),
        critic=None if eta is None else QEnsembleConfig(hidden=(64, 64), layer_norm=False),
        loss=paper.loss.replace(curriculum=curriculum),
        weighter=paper.weighter.replace(eta=eta or 0.0),
        # A short run: targets that follow fast, and a learning rate that is high and then falls.
        learner=paper.learner.replace(
            total_updates=updates, actor_lr=2e-3, lr_schedule="cosine", ema_rate=ema_rate, seed=seed
        ),
    )


def one_step_config(updates: int, *, seed: int = 0) -> GTPConfig:
    """Returns a config for cloning in some thousand updates, trained for one network call."""
    one = presets.one_step()
    learner = one.learner.replace(total_updates=updates, actor_lr=4e-3, seed=seed)
    return one.replace(critic=None, learner=learner)


def train_clone(dataset: OfflineDataset, config: GTPConfig) -> GTPLearner:
    """Runs Algorithm 1 for ``total_updates``."""
    learner = GTPLearner.from_dataset(dataset, config)
    for _ in range(config.learner.total_updates):
        learner.update(dataset.sample(256, generator=learner.stream("batch")))
    return learner


def train_weighted(dataset: OfflineDataset, config: GTPConfig) -> FlowMapActor:
    """Trains with the weights of the true advantage, r - mean r, in a separate loop."""
    learner = GTPLearner.from_dataset(dataset, config.replace(critic=None))
    actor, target, choices = learner.actor, learner.target_actor, config.learner
    loss_fn, weigh = GTPLoss(learner.loss.config), AdvantageWeighter(config.weighter)
    optimizer = torch.optim.Adam(actor.parameters(), lr=choices.actor_lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, choices.total_updates)
    generator = torch.Generator().manual_seed(choices.seed)
    for update in range(choices.total_updates):
        data = dataset.sample(256, generator=generator)
        weight = weigh(data.reward - 1 / len(MODES))
        progress = update / choices.total_updates
        optimizer.zero_grad()
        loss_fn(
            actor, target, data.obs, data.action, weight, progress=progress, generator=generator
        ).loss.backward()
        optimizer.step()
        schedule.step()
        ema_(target.parameters(), actor.parameters(), choices.ema_rate)
    return target


def tilted_frequencies(eta: float) -> list[float]:
    """Returns pi_BC * w normalised, w = exp(eta A / std A) for the good mode and 1 for others."""
    p = 1 / len(MODES)
    tilt = math.exp(eta * (1 - p) / math.sqrt(p * (1 - p)))
    total = len(MODES) - 1 + tilt
    return [1 / total] * (len(MODES) - 1) + [tilt / total]


def mode_shares(action: torch.Tensor) -> tuple[float, list[float]]:
    """Returns the share of samples within 3 std of a mode, and each mode's share of all samples."""
    distance = np.linalg.norm(action.numpy()[:, None] - MODES, axis=-1)
    nearest = np.bincount(distance.argmin(1), minlength=len(MODES)) / len(distance)
    return float((distance.min(1) < 3 * STD).mean()), nearest.tolist()


def gaussian_clone(dataset: OfflineDataset, n: int, seed: int = 0) -> torch.Tensor:
    """Samples the Gaussian of maximum likelihood, full covariance, clipped to the bounds."""
    action = dataset.transitions.action.double()
    rng = np.random.default_rng(seed)
    sample = rng.multivariate_normal(action.mean(0).numpy(), action.T.cov().numpy(), size=n)
    return torch.from_numpy(sample).float().clamp(-1, 1)
