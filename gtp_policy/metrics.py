"""What an update leaves behind, and the one place where it is copied to the host."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gtp_policy.errors import NonFiniteError


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
        return floats
