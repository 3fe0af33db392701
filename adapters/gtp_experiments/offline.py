"""How well a policy's actions fit data, without an environment."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from gtp_experiments.evaluation import check_units
from gtp_policy import GTPLearner, OfflineDataset
from gtp_policy.errors import DataError

# A dimension that does not vary in the data is left in its own units.
_LEAST_SPREAD = 1e-6


class ActionFit(NamedTuple):
    """How a policy's actions compare with the data's, in the units of the environment.

    Attributes:
        error: Root of the mean squared difference between a deterministic action and the data's,
            shape (A,); of chunks, over all of their steps that were made.
        relative_error: The same over the standard deviation of the data's action: 1 is what the
            mean of the data would reach. Where the data go several ways, no action can reach 0.
        distance: Sliced Wasserstein-1 distance between pairs of an observation and a sampled
            action, and pairs of the data, every dimension over its standard deviation.
        floor: The same distance between two halves of the data: what a policy that is the data's
            own law would have.

    Example:
        >>> from gtp_experiments import ActionFit
        >>> ActionFit._fields
        ('error', 'relative_error', 'distance', 'floor')
    """

    error: npt.NDArray[np.float64]
    relative_error: npt.NDArray[np.float64]
    distance: float
    floor: float


def fit_of_actions(
    learner: GTPLearner, dataset: OfflineDataset, *, rows: int = 4000, seed: int = 0
) -> ActionFit:
    r"""Compares a policy's actions with those of data, best of episodes that it was not trained on.

    .. math:: e_i = \sqrt{E[(\pi_i(o) - a_i)^2]}, \qquad
        W = E_u\, W_1(u^\top(o, a),\; u^\top(o', \pi(o')))

    with directions u on the sphere. The error says whether one action is right, the distance
    whether the samples of a policy are distributed as the data are, several ways included. Neither
    says what a policy reaches in its environment, where errors add up. They show a policy that has
    not learned yet, a joint that is left behind, and data that a policy was not made for.

    Args:
        learner: The learner; its target actor acts.
        dataset: The data.
        rows: Transitions that are drawn from it, at most. They are halved for the distances.
        seed: Of the transitions, the noise and the directions.

    Returns:
        Errors and distances.

    Raises:
        DataError: If there are fewer than 4 transitions, or they are not of the learner's sizes or
            units.

    References:
        | Sliced and Radon Wasserstein Barycenters of Measures (Bonneel et al., 2015),
        | https://doi.org/10.1007/s10851-014-0506-3

    Example:
        >>> import numpy as np
        >>> from gtp_experiments import fit_of_actions
        >>> from gtp_policy import GTPConfig, GTPLearner, OfflineDataset
        >>> rng = np.random.default_rng(0)
        >>> dataset = OfflineDataset.from_arrays(
        ...     obs=rng.normal(size=(50, 3)), action=rng.uniform(-1, 1, (50, 2)),
        ...     terminated=np.ones(50), truncated=np.zeros(50), low=[-1, -1], high=[1, 1])
        >>> learner = GTPLearner.from_dataset(dataset, GTPConfig(critic=None))
        >>> fit_of_actions(learner, dataset).error.shape
        (2,)
    """
    check_units(learner, dataset)
    actor = learner.target_actor.config
    dataset = dataset.with_steps(actor.history, actor.chunk)
    rows = 2 * (min(rows, len(dataset)) // 2)
    if rows < 4:
        raise DataError(
            f"There is too little data to compare with: got {len(dataset)} transitions, expected "
            "at least 4."
        )
    generator = torch.Generator(dataset.device).manual_seed(seed)
    batch = dataset.sample(rows, generator=generator)
    noise = torch.Generator(learner.device).manual_seed(seed)
    scaler = dataset.action_scaler

    def in_box(action: torch.Tensor) -> npt.NDArray[np.float64]:
        steps = action.cpu().double().numpy().reshape(-1, scaler.action_dim)
        boxed: npt.NDArray[np.float64] = scaler.to_box(steps).astype(np.float64)
        return boxed.reshape(rows, -1, scaler.action_dim)

    theirs = in_box(batch.action)
    best = in_box(learner.act(batch.obs, deterministic=True))
    drawn = in_box(learner.act(batch.obs, generator=noise))
    made = np.ones((rows, dataset.chunk), bool)
    if batch.chunk_length is not None:
        made = np.arange(dataset.chunk) < batch.chunk_length.cpu().numpy()[:, None]
    error = np.sqrt(((best - theirs)[made] ** 2).mean(0))
    std = theirs[made].std(0)
    obs = batch.obs.cpu().double().numpy()
    scale = np.concatenate([obs.std(0), theirs.reshape(rows, -1).std(0)])
    scale = np.where(scale < _LEAST_SPREAD, 1.0, scale)
    data, own = (np.hstack([obs, x.reshape(rows, -1)]) / scale for x in (theirs, drawn))
    half = rows // 2
    return ActionFit(
        error,
        error / np.where(std < _LEAST_SPREAD, 1.0, std),
        sliced_distance(data[:half], own[half:], seed=seed),
        sliced_distance(data[:half], data[half:], seed=seed),
    )


def sliced_distance(
    one: npt.NDArray[np.float64],
    other: npt.NDArray[np.float64],
    *,
    directions: int = 128,
    seed: int = 0,
) -> float:
    r"""Returns the sliced Wasserstein-1 distance of two samples of one size.

    .. math:: W = \frac{1}{m} \sum_{j=1}^m \frac{1}{n} \sum_{i=1}^n
        \left\lvert (u_j^\top x)_{(i)} - (u_j^\top y)_{(i)} \right\rvert

    with random directions :math:`u_j` on the sphere and :math:`(\cdot)_{(i)}` the i-th smallest.

    Args:
        one: Sample, shape (n, D).
        other: Sample, shape (n, D).
        directions: m.
        seed: Of the directions.

    Returns:
        The distance, in the unit of the samples.

    Example:
        >>> import numpy as np
        >>> from gtp_experiments import sliced_distance
        >>> x = np.random.default_rng(0).normal(size=(1000, 1))
        >>> round(sliced_distance(x, x + 0.5), 6)
        0.5
    """
    axes = np.random.default_rng(seed).normal(size=(one.shape[1], directions))
    axes /= np.linalg.norm(axes, axis=0)
    return float(np.abs(np.sort(one @ axes, 0) - np.sort(other @ axes, 0)).mean())
