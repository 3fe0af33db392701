"""What an update leaves behind, and the one place where it is copied to the host."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gtp_policy.errors import NonFiniteError, TrainingWarning
from gtp_policy.functional import check_shape

# Below it, 256 transitions weigh no more than 12 would.
_SMALLEST_ESS = 0.05


class UpdateMetrics(NamedTuple):
    """What an update leaves behind: 0-d tensors on the device, or None where nothing was computed.

    Attributes:
        actor_loss: Weighted consistency + flow_weight * flow.
        consistency: Trajectory consistency loss, weighted.
        flow: Instantaneous flow loss, weighted.
        actor_grad_norm: Gradient norm of the actor before clipping.
        critic_loss: Mean squared TD error over members and transitions.
        critic_grad_norm: Gradient norm of the critic before clipping.
        q_mean: Mean value of the data's actions over members.
        advantage_mean: Mean advantage of the data's actions.
        advantage_std: Its population standard deviation.
        weight_mean: Mean weight.
        weight_max: Largest weight.
        weight_clipped: Fraction of weights at the cap.
        weight_ess: Effective sample size over batch size, in (0, 1]; near 0, a few transitions
            carry the update: lower eta or max_weight.
        guided_q: Mean value of the actor's own actions, with `LinearQGuidance`.

    Example:
        >>> import torch
        >>> from gtp_policy import UpdateMetrics
        >>> loss = torch.tensor(1.0)
        >>> UpdateMetrics(loss, loss, loss, loss).to_floats()["flow"]
        1.0
    """

    actor_loss: Tensor
    consistency: Tensor
    flow: Tensor
    actor_grad_norm: Tensor
    critic_loss: Tensor | None = None
    critic_grad_norm: Tensor | None = None
    q_mean: Tensor | None = None
    advantage_mean: Tensor | None = None
    advantage_std: Tensor | None = None
    weight_mean: Tensor | None = None
    weight_max: Tensor | None = None
    weight_clipped: Tensor | None = None
    weight_ess: Tensor | None = None
    guided_q: Tensor | None = None

    def to_floats(self) -> dict[str, float]:
        """Copies the metrics to the host: the only transfer, so call it when you log.

        Warns with a `TrainingWarning` if the weights have collapsed onto a few transitions.

        Returns:
            Metrics by name, without those that were not computed.

        Raises:
            NonFiniteError: If a metric is NaN or infinite; names the first ones.

        Example:
            >>> import torch
            >>> from gtp_policy import UpdateMetrics
            >>> UpdateMetrics(*torch.tensor([float("nan"), 0.0, 0.0, 0.0])).to_floats()
            Traceback (most recent call last):
            ...
            gtp_policy.errors.NonFiniteError: The update is not finite: got actor_loss=nan, \
expected finite metrics. Lower the learning rate, set max_grad_norm, or look at the rewards' scale.
        """
        present = {name: value for name, value in self._asdict().items() if value is not None}
        values = torch.stack([value.detach().float() for value in present.values()]).tolist()
        floats = dict(zip(present, values, strict=True))
        bad = ", ".join(f"{name}={v}" for name, v in floats.items() if not math.isfinite(v))
        if bad:
            raise NonFiniteError(
                f"The update is not finite: got {bad}, expected finite metrics. Lower the learning "
                "rate, set max_grad_norm, or look at the rewards' scale."
            )
        if floats.get("weight_ess", 1.0) < _SMALLEST_ESS:
            ess = floats["weight_ess"]
            warnings.warn(
                f"The weights have collapsed: got an effective sample of {ess:.1%} of the batch, "
                f"expected at least {_SMALLEST_ESS:.0%}. A few transitions carry the "
                "update; lower eta or max_weight.",
                TrainingWarning,
                stacklevel=2,
            )
        return floats


def per_learner(
    metrics: Mapping[str, Tensor | Sequence[Tensor]], count: int
) -> list[UpdateMetrics]:
    """Returns metrics by name, (S,) each, as one record per learner.

    Args:
        metrics: Of S learners, tensors of shape (S,) or S tensors each.
        count: S.

    Returns:
        S records.

    Example:
        >>> import torch
        >>> from gtp_policy.metrics import per_learner
        >>> names = ("actor_loss", "consistency", "flow", "actor_grad_norm")
        >>> per_learner({name: torch.zeros(2) for name in names}, 2)[1].flow
        tensor(0.)
    """
    return [
        UpdateMetrics(**{name: value[i] for name, value in metrics.items()}) for i in range(count)
    ]


def spread_ratio(action: Tensor, first: Tensor, second: Tensor) -> Tensor:
    r"""Returns the spread of a policy's actions over the data's, which shows collapse.

    .. math:: \frac{E\|x - x'\|}{E\|a - x\|}, \quad x, x' \sim \pi(\cdot | o)

    with a of the data; one per observation is enough. 1 where the policy has the data's
    distribution given each observation, 0 where it always does the same. Guidance narrows a policy
    on purpose; in a clone, a ratio far below 1 says that modes were lost, as jumps lose them that
    were taught over large gaps: a grid that stays coarse, or too large a ``max_gap``.

    Args:
        action: Actions of the data, shape (B, A).
        first: An action of the policy for each of the same observations, shape (B, A).
        second: Another one, drawn independently, shape (B, A).

    Returns:
        The ratio, 0-d.

    Raises:
        ShapeError: If the shapes differ.

    Example:
        >>> import torch
        >>> from gtp_policy.metrics import spread_ratio
        >>> data = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
        >>> print(spread_ratio(data, torch.zeros(4, 1), torch.zeros(4, 1)))  # always the mean
        tensor(0.)
    """
    check_shape("first", first, tuple(action.shape))
    check_shape("second", second, tuple(action.shape))
    to_data = (action - first).norm(dim=-1).mean() + (action - second).norm(dim=-1).mean()
    tiny = torch.finfo(action.dtype).tiny
    ratio: Tensor = 2 * (first - second).norm(dim=-1).mean() / to_data.clamp_min(tiny)
    return ratio
