r"""Guidance: how the critic turns imitation of the data into improvement on it."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from gtp_policy._config import Bool, Config, Float, Int
from gtp_policy.actor import FlowMapActor
from gtp_policy.critic import QEnsemble
from gtp_policy.functional import frozen


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
    r"""Adds the critic's opinion of the actor's own actions to the loss, every weight being 1.

    .. math:: L + \lambda \frac{-E[\min_j Q_j(o, \pi_\theta(o))]}{E|\min_j Q_j(o, \pi_\theta(o))|}

    with the divisor left out unless ``normalize`` (what others call ``q_norm``). The gradient
    passes through the sampler. By default that is all K steps, those that act: a gradient through
    one jump from T to 0 would improve that jump and leave the others where the data put them. One
    step costs a K-th.

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

    def loss(
        self, actor: FlowMapActor, critic: QEnsemble, obs: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns what is added to the actor's loss.

        Args:
            actor: The policy, which gets the gradient.
            critic: Judge of its actions, which gets none.
            obs: Observation, shape (B, O).
            noise: Standard normal, shape (B, ``actor.noise_dim(steps)``).

        Returns:
            The term, 0-d, and the mean of Q over the actor's actions, 0-d and without gradient.
        """
        action = actor.sample_with_gradient(obs, noise, steps=self.steps)
        q = frozen(critic)(obs, action).amin(0)
        divisor = q.detach().abs().mean() if self.normalize else 1.0
        return -self.scale * q.mean() / divisor, q.detach().mean()


class NoGuidance(Config):
    """Lets every transition weigh 1; a critic, if there is one, judges candidates alone.

    Example:
        >>> from gtp_policy import GTPLearnerConfig, NoGuidance
        >>> GTPLearnerConfig(guidance=NoGuidance()).guidance.kind
        'none'
    """

    kind: Literal["none"] = Field(default="none", description="Discriminator of the union.")


Guidance = Annotated[AdvantageGuidance | LinearQGuidance | NoGuidance, Field(discriminator="kind")]
