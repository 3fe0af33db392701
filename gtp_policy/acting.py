"""From observations to actions: one sample, or the best of several by a critic."""

import torch
from torch import Tensor

from gtp_policy._random import new_stream
from gtp_policy.actor import FlowMapActor
from gtp_policy.critic import QEnsemble


def act(
    actor: FlowMapActor,
    critic: QEnsemble | None,
    obs: Tensor,
    *,
    steps: int | None = None,
    candidates: int = 1,
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
    noise = _fixed_noise(actor, candidates).repeat(batch, 1) if deterministic else None
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
        best = critic(tiled, action).amin(0).view(batch, candidates).argmax(1)
    return action.view(batch, candidates, -1)[torch.arange(batch, device=best.device), best]


def _fixed_noise(actor: FlowMapActor, candidates: int) -> Tensor:
    first = actor.fixed_noise.unsqueeze(0)
    if candidates == 1:
        return first
    more = torch.randn(
        (candidates - 1, first.shape[1]), generator=new_stream(0, "fixed candidates")
    )
    return torch.cat([first, more.to(first)])
