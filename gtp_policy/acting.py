"""From observations to actions: one sample, or the best of several by a critic."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from gtp_policy._config import Config, Float
from gtp_policy._random import generator_or_private, new_stream
from gtp_policy.actor import FlowMapActor
from gtp_policy.critic import QEnsemble


class ArgmaxChoice(Config):
    """Takes the candidate that the critic values most.

    Example:
        >>> from gtp_policy import ArgmaxChoice, GTPLearnerConfig
        >>> GTPLearnerConfig().choice == ArgmaxChoice()
        True
    """

    kind: Literal["argmax"] = Field("argmax", description="Discriminator of the union.")

    def pick(self, q: Tensor, generator: torch.Generator | None) -> Tensor:
        """Returns the chosen candidate of each row.

        Args:
            q: Values, shape (B, n).
            generator: Not used.

        Returns:
            Indices, shape (B,).
        """
        return q.argmax(1)


class SoftmaxChoice(Config):
    r"""Draws a candidate with probability proportional to :math:`\exp(Q / temperature)`.

    A deterministic action still takes the best one. The parents of the method evaluate with 50
    candidates at temperature 1.

    References:
        | Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning
        | (Wang et al., 2022), https://arxiv.org/abs/2208.06193

    Example:
        >>> from gtp_policy import GTPLearnerConfig, SoftmaxChoice
        >>> GTPLearnerConfig(choice=SoftmaxChoice(temperature=0.5)).choice.temperature
        0.5
    """

    kind: Literal["softmax"] = Field("softmax", description="Discriminator of the union.")
    temperature: Float = Field(1.0, gt=0, description="In units of Q; small is greedy.")

    def pick(self, q: Tensor, generator: torch.Generator | None) -> Tensor:
        """Returns the chosen candidate of each row.

        Args:
            q: Values, shape (B, n).
            generator: Source of randomness; default a stream of the package's own.

        Returns:
            Indices, shape (B,).
        """
        probability = torch.softmax(q / self.temperature, 1)
        generator = generator_or_private(generator, q.device)
        return torch.multinomial(probability, 1, generator=generator).squeeze(1)


Choice = Annotated[ArgmaxChoice | SoftmaxChoice, Field(discriminator="kind")]


def act(
    actor: FlowMapActor,
    critic: QEnsemble | None,
    obs: Tensor,
    *,
    steps: int | None = None,
    candidates: int = 1,
    choice: Choice | None = None,
    deterministic: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Acts with an actor and, where there is a choice, the critic's pessimistic opinion.

    .. math:: a = \arg\max_{a_i} \min_j Q_j(o, a_i), \quad a_1, \ldots, a_n \sim \pi(\cdot \mid o)

    `GTPLearner.act` is this function with the learner's slow copies and its default of candidates.

    Args:
        actor: The policy.
        critic: Judge of several candidates; None is fine for one.
        obs: Observation, shape (B, O), of the actor's dtype and device.
        steps: K; default the actor's.
        candidates: n, actions to draw per observation.
        choice: How one of several candidates is chosen; default `ArgmaxChoice`, which a
            deterministic action always takes.
        deterministic: Start from noises that are fixed with the actor, so that equal observations
            get equal actions. Never from zero noise, which can end between two modes.
        generator: Source of the noise; default a stream of the package's own.

    Returns:
        Actions in [-1, 1], shape (B, A).

    Raises:
        ShapeError: If ``obs`` has the wrong shape.
        DataError: If ``obs`` is no tensor of the actor's dtype and device.
        ValueError: If ``candidates`` or ``steps`` is smaller than 1, or several candidates are
            asked for without a critic.

    Example:
        >>> import torch
        >>> from gtp_policy import FlowMapActor, QEnsemble, act
        >>> actor, critic, obs = FlowMapActor(3, 2), QEnsemble(3, 2), torch.zeros(2, 3)
        >>> first, second = act(actor, critic, obs, candidates=8, deterministic=True)
        >>> torch.equal(first, second)
        True
    """
    if not isinstance(candidates, int) or isinstance(candidates, bool) or candidates < 1:
        raise ValueError(
            f"`candidates` is out of range: got {candidates}, expected an integer >= 1."
        )
    if candidates == 1 and not deterministic:
        return actor.sample(obs, steps=steps, generator=generator)
    actor.check_observations(obs)
    batch = obs.shape[0]
    noise = _fixed_noise(actor, candidates, steps).repeat(batch, 1) if deterministic else None
    if candidates == 1:
        return actor.sample(obs, steps=steps, noise=noise, generator=generator)
    if critic is None:
        raise ValueError(
            f"A choice among candidates needs a critic: got candidates={candidates} and no critic "
            "(behaviour cloning), expected a QEnsemble. Train one, or take candidates=1."
        )
    tiled = obs.repeat_interleave(candidates, 0)
    action = actor.sample(tiled, steps=steps, noise=noise, generator=generator)
    with torch.no_grad():
        q = critic(tiled, action).amin(0).view(batch, candidates)
        picker = ArgmaxChoice() if deterministic or choice is None else choice
        best = picker.pick(q, generator)
    return action.view(batch, candidates, -1)[torch.arange(batch, device=best.device), best]


def _fixed_noise(actor: FlowMapActor, candidates: int, steps: int | None) -> Tensor:
    noise = actor.fixed_noise.unsqueeze(0)
    shape = candidates - 1, actor.action_dim
    if candidates > 1:
        more = torch.randn(shape, generator=new_stream(0, "fixed candidates"))
        noise = torch.cat([noise, more.to(noise)])
    later = candidates, actor.noise_dim(steps) - actor.action_dim
    if later[1]:  # a stochastic sampler takes further noises on its way
        more = torch.randn(later, generator=new_stream(0, "fixed steps"))
        noise = torch.cat([noise, more.to(noise)], 1)
    return noise
