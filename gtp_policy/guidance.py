r"""Guidance: how the critic turns imitation of the data into improvement on it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from gtp_policy._config import AnyFloat, Bool, Config, Float, Int
from gtp_policy.actor import FlowMapActor
from gtp_policy.critic import QEnsemble
from gtp_policy.errors import NonFiniteError
from gtp_policy.functional import (
    advantage_weights,
    check_kind,
    check_like,
    frozen,
    unwrapped,
)


class AdvantageGuidance(Config):
    """Weights each transition by its advantage, as `AdvantageWeighterConfig` says: the method.

    Example:
        >>> from gtp_policy import AdvantageGuidance, GTPLearnerConfig
        >>> GTPLearnerConfig().guidance == AdvantageGuidance()
        True
    """

    kind: Literal["advantage"] = Field(
        default="advantage", description="Discriminator of the union."
    )


class LinearQGuidance(Config):
    r"""Adds -Q of the actor's own actions to the loss; every weight is 1 unless ``weighted``.

    .. math:: L + \lambda \frac{-E[\min_j Q_j(o, \pi_\theta(o))]}{E|\min_j Q_j(o, \pi_\theta(o))|}

    with the divisor left out unless ``normalize`` (what others call ``q_norm``). The gradient
    passes through the sampler. By default that is all K steps, those that act: a gradient through
    one jump from T to 0 would improve that jump and leave the others where the data put them. One
    step costs a K-th, and its gradient is computed by hand like that of the losses.

    References:
        | Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning
        | (Wang et al., 2022), eq. 3, https://arxiv.org/abs/2208.06193

    Example:
        >>> from gtp_policy import GTPLearnerConfig, LinearQGuidance
        >>> GTPLearnerConfig(guidance=LinearQGuidance(scale=0.01)).guidance.normalize
        False
    """

    kind: Literal["linear_q"] = Field(default="linear_q", description="Discriminator of the union.")
    scale: Float = Field(
        default=0.01, ge=0, description="Lambda, factor of -Q in the actor's loss."
    )
    normalize: Bool = Field(
        default=False, description="Divides by the mean of abs(Q), without gradient."
    )
    steps: Int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Sampler steps to differentiate; None: the actor's K.",
    )
    weighted: Bool = Field(
        default=False,
        description="Whether the losses that hold the actor to the data weigh each transition by "
        "its advantage too, as AdvantageGuidance does.",
    )

    def loss(
        self,
        actor: FlowMapActor,
        critic: QEnsemble,
        obs: Tensor,
        noise: Tensor,
        *,
        mean_: Callable[[Sequence[Tensor]], object] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns what is added to the actor's loss.

        Args:
            actor: The policy, which gets the gradient. Inside ``DistributedDataParallel`` it is
                reduced with that of `GTPLoss`: go back through their sum.
            critic: Values its actions, and gets no gradient.
            obs: Observation, shape (B, O).
            noise: Standard normal, shape (B, ``actor.noise_dim(steps)``).
            mean_: Replaces tensors, in place, by their means over the processes that share a
                minibatch, each with some of its rows: the divisor is that of all rows. None: the
                rows are all there are.

        Returns:
            The term, 0-d, and the mean of Q over the actor's actions, 0-d and without gradient.
        """
        actor, critic = unwrapped(actor), unwrapped(critic)
        action = actor.sample_with_gradient(obs, noise, steps=self.steps)
        q = critic.config.reduce(frozen(critic)(obs, action))
        if not self.normalize:
            return -self.scale * q.mean(), q.detach().mean()
        divisor = q.detach().abs().mean()
        if mean_ is not None:
            mean_([divisor])
        return -self.scale * q.mean() / divisor, q.detach().mean()


class NoGuidance(Config):
    """Lets every transition weigh 1; a critic, if there is one, only values candidates.

    Example:
        >>> from gtp_policy import GTPLearnerConfig, NoGuidance
        >>> GTPLearnerConfig(guidance=NoGuidance()).guidance.kind
        'none'
    """

    kind: Literal["none"] = Field(default="none", description="Discriminator of the union.")


Guidance = Annotated[AdvantageGuidance | LinearQGuidance | NoGuidance, Field(discriminator="kind")]


def weighs(guidance: Guidance) -> bool:
    """Returns whether transitions weigh by their advantage.

    Args:
        guidance: Any.

    Returns:
        The answer.

    Example:
        >>> from gtp_policy import LinearQGuidance
        >>> from gtp_policy.guidance import weighs
        >>> weighs(LinearQGuidance()), weighs(LinearQGuidance(weighted=True))
        (False, True)
    """
    return isinstance(guidance, AdvantageGuidance) or (
        isinstance(guidance, LinearQGuidance) and guidance.weighted
    )


class AdvantageWeighterConfig(Config):
    """The choices of an `AdvantageWeighter`.

    Example:
        >>> from gtp_policy import AdvantageWeighterConfig
        >>> AdvantageWeighterConfig(eta=0.0).eta
        0.0
    """

    before: ClassVar[Mapping[str, Any]] = {"eta": 1.0}

    eta: AnyFloat = Field(
        default=3.0,
        ge=0,
        le=1e30,
        description="Temperature; 0 is behaviour cloning, larger is greedier. At most 1e30.",
    )
    eps: Float = Field(
        default=1e-6, gt=0, description="Added to the standard deviation of the advantages."
    )
    max_weight: AnyFloat = Field(
        default=100.0,
        ge=1,
        le=1e30,
        description="Cap, applied to the exponent; at most 1e30 for float32.",
    )
    signed: Bool = Field(
        default=False,
        description="Whether the exponent is that of the advantage itself, so that bad transitions "
        "weigh down to 1 / max_weight, and not of max(0, A), which gives all of them weight 1.",
    )
    effective_share: Float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of the minibatch that should count: the temperature of each minibatch "
        "is solved for such that its weights have this effective sample, whatever the scale and "
        "shape of the advantages, and eta is not used. None: eta.",
    )

    def weigh(self, advantage: Tensor) -> Tensor:
        """Returns `advantage_weights` of a batch by these choices.

        Args:
            advantage: A, shape (B,), finite.

        Returns:
            Weights, shape (B,), without gradient.

        Raises:
            ShapeError: If ``advantage`` is not of rank 1 or is empty.

        Example:
            >>> import torch
            >>> from gtp_policy import AdvantageWeighterConfig
            >>> signed = AdvantageWeighterConfig(eta=1.0, signed=True)
            >>> signed.weigh(torch.tensor([-1.0, 0.0, 1.0]))
            tensor([0.2938, 1.0000, 3.4034])
        """
        return advantage_weights(
            advantage,
            self.eta,
            self.eps,
            self.max_weight,
            signed=self.signed,
            effective_share=self.effective_share,
        )


class AdvantageWeighter(nn.Module):
    r"""Turns a batch of advantages into weights in [1, max_weight].

    .. math:: w = \exp \min\left(\eta \frac{\max(0, A)}{\mathrm{std}(A) + \epsilon},
        \ln w_{max}\right)

    or what `AdvantageWeighterConfig` makes of it: ``signed`` leaves :math:`\max(0, \cdot)` out,
    ``effective_share`` solves for :math:`\eta`. Has no parameters and no state; a module so that it
    prints, moves and composes with the rest.

    Args:
        config: The choices.

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025),
        | eq. 14, https://arxiv.org/abs/2510.11499

    Example:
        >>> import torch
        >>> from gtp_policy import AdvantageWeighter, AdvantageWeighterConfig
        >>> paper = AdvantageWeighterConfig(eta=1.0, signed=False)
        >>> AdvantageWeighter(paper)(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([1.0000, 1.0000, 3.4034])
    """

    def __init__(self, config: AdvantageWeighterConfig | None = None) -> None:
        super().__init__()
        self.config = AdvantageWeighterConfig() if config is None else config
        check_kind("config", self.config, AdvantageWeighterConfig)

    def forward(self, advantage: Tensor) -> Tensor:
        """Returns one weight per advantage.

        On the CPU, advantages that are not finite raise at once. On another device looking at them
        would stop the device, so NaN passes on to the loss, where ``UpdateMetrics.to_floats``
        raises.

        Args:
            advantage: A, shape (B,).

        Returns:
            Weights, shape (B,), without gradient; exactly 1 where A <= 0 (unless ``signed``) or
            eta = 0.

        Raises:
            ShapeError: If ``advantage`` is not of rank 1 or is empty.
            NonFiniteError: If an advantage on the CPU is NaN or infinite.

        Example:
            >>> import torch
            >>> from gtp_policy import AdvantageWeighter, AdvantageWeighterConfig
            >>> AdvantageWeighter(AdvantageWeighterConfig(eta=0.0))(torch.tensor([3.0, -2.0]))
            tensor([1., 1.])
        """
        check_like("advantage", advantage, advantage)
        if advantage.device.type == "cpu":
            finite = advantage.isfinite()
            if not finite.all():
                index = int((~finite).flatten().nonzero()[0])
                raise NonFiniteError(
                    f"`advantage` is not finite: got {float(advantage.flatten()[index])} at index "
                    f"{index} of {advantage.numel()}, expected finite numbers. Look at the "
                    "critic's loss and at the rewards."
                )
        return self.config.weigh(advantage)
