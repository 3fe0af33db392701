"""From advantages to weights: how a good action counts for more than its copy."""

from pydantic import Field
from torch import Tensor, nn

from gtp_policy._config import Config, Float
from gtp_policy.errors import NonFiniteError
from gtp_policy.functional import advantage_weights


class AdvantageWeighterConfig(Config):
    """The choices of an `AdvantageWeighter`.

    Example:
        >>> from gtp_policy import AdvantageWeighterConfig
        >>> AdvantageWeighterConfig(eta=0.0).eta
        0.0
    """

    eta: Float = Field(
        default=1.0, ge=0, description="Temperature; 0 is behaviour cloning, larger is greedier."
    )
    eps: Float = Field(
        default=1e-6, gt=0, description="Added to the standard deviation of the advantages."
    )
    max_weight: Float = Field(
        default=100.0,
        ge=1,
        le=1e30,
        description="Cap, applied to the exponent; at most 1e30 for float32.",
    )


class AdvantageWeighter(nn.Module):
    r"""Turns a batch of advantages into weights in [1, max_weight].

    .. math:: w = \exp \min\left(\eta \frac{\max(0, A)}{\mathrm{std}(A) + \epsilon},
        \ln w_{max}\right)

    Has no parameters; a module so that it prints, moves and composes with the rest.

    Args:
        config: The choices.

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025),
        | eq. 14, https://arxiv.org/abs/2510.11499

    Example:
        >>> import torch
        >>> from gtp_policy import AdvantageWeighter
        >>> AdvantageWeighter()(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([1.0000, 1.0000, 3.4034])
    """

    def __init__(self, config: AdvantageWeighterConfig | None = None) -> None:
        super().__init__()
        self.config = config or AdvantageWeighterConfig()

    def forward(self, advantage: Tensor) -> Tensor:
        """Returns one weight per advantage.

        On the CPU, advantages that are not finite raise at once. On another device looking at them
        would stop the device, so NaN passes on to the loss, where ``UpdateMetrics.to_floats``
        raises.

        Args:
            advantage: A, shape (B,).

        Returns:
            Weights, shape (B,), without gradient; exactly 1 where A <= 0 or eta = 0.

        Raises:
            ShapeError: If ``advantage`` is not of rank 1 or is empty.
            NonFiniteError: If an advantage on the CPU is NaN or infinite.

        Example:
            >>> import torch
            >>> from gtp_policy import AdvantageWeighter, AdvantageWeighterConfig
            >>> AdvantageWeighter(AdvantageWeighterConfig(eta=0.0))(torch.tensor([3.0, -2.0]))
            tensor([1., 1.])
        """
        if advantage.device.type == "cpu":
            finite = advantage.isfinite()
            if not finite.all():
                index = int((~finite).flatten().nonzero()[0])
                raise NonFiniteError(
                    f"`advantage` is not finite: got {float(advantage.flatten()[index])} at index "
                    f"{index} of {advantage.numel()}, expected finite numbers. Look at the "
                    "critic's loss and at the rewards."
                )
        c = self.config
        return advantage_weights(advantage, c.eta, c.eps, c.max_weight)
