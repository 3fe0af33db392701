r"""Algorithm 1 of the paper, once: the draws, and lines 4 to 9 over what networks can do.

An update has two halves. `draw` draws everything random; `update` is a function of the minibatch
and of these draws alone, so that ways to compute it can be compared with each other. It fixes
what is computed from what, and in which order; values, gradients and steps are computed by
`Networks`, of which there are two kinds, in ``gtp_policy/_engine``: by autograd and by hand.

Every tensor has a leading axis of seeds, S, which is 1 for one learner: one body serves one learner
and several that are updated side by side.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gtp_policy.actor import FlowMapActor
from gtp_policy.config import GTPLearnerConfig
from gtp_policy.critic import PolicyBaseline, QEnsemble, ValueNetwork
from gtp_policy.dataset import OfflineDataset
from gtp_policy.functional import effective_sample_size, td_target
from gtp_policy.guidance import AdvantageWeighter, Guidance, LinearQGuidance, weighs
from gtp_policy.kernels import philox
from gtp_policy.loss import GTPLoss, LossDraws
from gtp_policy.spaces import ActionScaler, ObservationLayout
from gtp_policy.times import LogitNormalPairs, Times
from gtp_policy.transitions import Transitions


class Shared(Protocol):
    """What an update needs of others where several processes compute one: some rows each."""

    def own(self, tensor: Tensor, dim: int = 1) -> Tensor:
        """Returns this process's rows of a tensor."""
        ...

    def gather(self, own: Tensor) -> Tensor:
        """Returns the rows of all processes, (S, B), of those of each."""
        ...

    def mean_(self, tensors: Iterable[Tensor]) -> None:
        """Replaces tensors, in place, by their means over the processes."""
        ...

    def means(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns metrics, (S,) each, as means over the processes."""
        ...

    def rows_of(self, rows: int, mapped: int) -> int:
        """Returns how many of B rows, M of them for the map's loss, this process computes."""
        ...

    def batch(self, batch: Transitions) -> Transitions:
        """Returns this process's rows of minibatches."""
        ...

    def draws(self, draws: "Draws") -> "Draws":
        """Returns what was drawn for this process's rows."""
        ...

    def any(self, flag: bool) -> bool:
        """Returns whether a flag is up in any of the processes."""
        ...


class Learner(Protocol):
    """What an update reads and changes: `gtp_policy.GTPLearner` is one."""

    actor: FlowMapActor
    target_actor: FlowMapActor
    critic: QEnsemble | None
    target_critic: QEnsemble | None
    value: ValueNetwork | None
    loss: GTPLoss
    weighter: AdvantageWeighter
    config: GTPLearnerConfig
    optimizers: dict[str, torch.optim.Optimizer]
    updates: int
    broken: str | None
    processes: "Shared | None"
    action_scaler: ActionScaler | None
    layout: ObservationLayout | None

    @property
    def progress(self) -> float:
        """Fraction of the run that is done."""
        ...

    @property
    def guidance(self) -> Guidance:
        """The guidance in force, which may begin later than the updates."""
        ...

    @property
    def learning_rates(self) -> dict[str, float]:
        """Learning rates to set before a step; none for optimisers that have their own."""
        ...

    @property
    def critic_learns(self) -> bool:
        """Whether critic and value network do a step, which they may do for a part of the run."""
        ...

    def stream(self, name: str) -> torch.Generator:
        """Returns the generator of this update for one purpose."""
        ...


class Networks(Protocol):
    """What Algorithm 1 does with the networks of S learners of one configuration.

    Shapes: S learners, N critics, n actions for each of B observations.
    """

    learners: Sequence[Learner]

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Returns the target actors' actions (S, n, A) for observations (S, n, O) and noise."""
        ...

    def target_q(self, obs: Tensor, action: Tensor) -> Tensor:
        """Returns the target critics' values (S, N, n, B) of actions (S, n, B, A)."""
        ...

    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        """Returns the critics' values (S, N, n, B) of actions (S, n, B, A)."""
        ...

    def value(self, obs: Tensor) -> Tensor:
        """Returns V (S, B) of the value networks."""
        ...

    def fit_critic(
        self, obs: Tensor, action: Tensor, y: Tensor, mask: Tensor | None
    ) -> dict[str, Tensor]:
        """Does a step of every critic towards y (S, B) and returns metrics, (S,) each.

        Rows where ``mask`` (S, B) is 0 have no loss.
        """
        ...

    def fit_value(self, obs: Tensor, q: Tensor, mask: Tensor | None) -> None:
        """Does a step of every value network towards q (S, B), by the baseline's loss."""
        ...

    def weigh(self, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighters' weights (S, B), and `weight_metrics` of them."""
        ...

    def fit_actor(
        self, batch: Transitions, weight: Tensor | None, draws: "Draws"
    ) -> dict[str, Tensor]:
        """Does a step of every actor on its loss and returns metrics, (S,) each."""
        ...

    def follow(self) -> None:
        """Moves every target network towards its network."""
        ...


class Draws(NamedTuple):
    """What is random in an update; the noises of actions are None where none are sampled."""

    backup: Tensor | None  # (S, R, B, W), for R actions per next observation, W of noise each
    baseline: Tensor | None  # (S, M, B, W), for M actions per observation
    times: Times  # (S, M) each, of the first M of B rows
    z: Tensor  # (S, B, A)
    guide: Tensor | None = None  # (S, B, W), for the actor's own actions under linear-Q guidance
    flow_t: Tensor | None = None  # (S, B), of the flow loss; None: those of the consistency loss


def draw(learners: Sequence[Learner], action: Tensor) -> Draws:
    """Draws from one stream per learner and purpose: none depends on how much another one drew.

    On a GPU every number is drawn by counter, see `gtp_policy.kernels.philox`: a recorded update
    can draw the same.

    Args:
        learners: Whose streams and choices.
        action: Of the minibatches, or a tensor like them, shape (S, B, A).

    Returns:
        The draws.
    """
    with torch.inference_mode(False):  # for every caller: autograd may have to keep them
        draws = [_draw(learner, own) for learner, own in zip(learners, action, strict=True)]
    if len(draws) == 1:
        return draws[0]
    backup, baseline, times, z, guide, flow_t = zip(*draws, strict=True)
    return Draws(
        _together(backup),
        _together(baseline),
        Times(*(torch.cat(same) for same in zip(*times, strict=True))),
        torch.cat(z),
        _together(guide),
        _together(flow_t),
    )


def _together(tensors: Sequence[Tensor | None]) -> Tensor | None:
    given = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(given) if given else None


def _draw(learner: Learner, action: Tensor) -> Draws:
    if philox.serves(action.device):
        return _draw_by_counter(learner, action)
    actor, config, batch_size = learner.actor, learner.config, len(action)

    def noise(name: str, rows: int, steps: int | None = None) -> Tensor:
        shape, generator = (rows, actor.noise_dim(steps)), learner.stream(name)
        return torch.randn(shape, generator=generator, device=action.device, dtype=action.dtype)

    backup = baseline = guide = None
    if learner.critic is not None:
        if _backs_up(learner) and config.backup != "value":
            copies = config.backup_actions
            drawn = noise("backup", batch_size * copies)
            backup = drawn.view(1, batch_size, copies, -1).transpose(1, 2)
        if isinstance(learner.guidance, LinearQGuidance):
            guide = noise("guidance", batch_size, learner.guidance.steps).unsqueeze(0)
        if weighs(learner.guidance) and isinstance(config.baseline, PolicyBaseline):
            copies = config.baseline.samples
            baseline = noise("baseline", copies * batch_size).view(1, copies, batch_size, -1)
    of_loss = learner.loss.draw(
        actor.times, action, progress=learner.progress, generator=learner.stream("loss")
    )
    return _with_seeds(_common(backup, baseline, config), guide, of_loss)


def _draw_by_counter(learner: Learner, action: Tensor) -> Draws:
    """Draws what `_draw` draws, by counter: every number is one of a row and a column."""
    actor, config, loss = learner.actor, learner.config, learner.loss
    choices, rows, width = loss.config, len(action), learner.actor.noise_dim()
    columns = {"z": action.shape[1], "times": 3}
    if choices.flow_times == "uniform":
        columns["flow"] = 1
    if learner.critic is not None:
        if _backs_up(learner) and config.backup != "value":
            columns["backup"] = config.backup_actions * width
        if isinstance(learner.guidance, LinearQGuidance):
            columns["guidance"] = actor.noise_dim(learner.guidance.steps)
        if weighs(learner.guidance) and isinstance(config.baseline, PolicyBaseline):
            columns["baseline"] = config.baseline.samples * width
    words = philox.several(
        columns, philox.key_of(config.seed), learner.updates, rows, action.device
    )

    def noise(name: str, width: int) -> Tensor | None:
        """Returns normal numbers, (1, n, B, width)."""
        if name not in words:
            return None
        return philox.normal(words[name]).to(action).view(1, rows, -1, width).transpose(1, 2)

    guide = noise("guidance", columns.get("guidance", 1))
    backup, baseline = noise("backup", width), noise("baseline", width)
    guide = None if guide is None else guide.squeeze(1)
    if type(loss).draw is not GTPLoss.draw:  # a custom one
        generator = learner.stream("loss")
        of_loss = loss.draw(actor.times, action, progress=learner.progress, generator=generator)
        return _with_seeds(_common(backup, baseline, config), guide, of_loss)
    raw = philox.uniform(words["times"]).T
    if isinstance(choices.t_law, LogitNormalPairs):
        raw = torch.cat([philox.normal(words["times"]).T[:2], raw[2:]])
    raw = raw[:, : math.ceil(choices.map_share * rows)].contiguous()
    z = philox.normal(words["z"]).to(action)
    share = philox.uniform(words["flow"]).squeeze(1) if "flow" in words else None
    of_loss = loss.draws_of(actor.times, raw, z, share, progress=learner.progress)
    return _with_seeds(_common(backup, baseline, config), guide, of_loss)


def _with_seeds(
    of_values: tuple[Tensor | None, Tensor | None], guide: Tensor | None, of_loss: LossDraws
) -> Draws:
    """Returns draws of one learner; those of its loss get their leading axis here."""
    times, z, flow_t = of_loss
    return Draws(
        *of_values,
        Times(*(t.unsqueeze(0) for t in times)),
        z.unsqueeze(0),
        guide,
        None if flow_t is None else flow_t.unsqueeze(0),
    )


def _backs_up(learner: Learner) -> bool:
    """Returns whether an update computes the critic's target: to learn it, or for advantages."""
    return learner.critic_learns or _by_td(learner)


def _by_td(learner: Learner) -> bool:
    return weighs(learner.guidance) and learner.config.advantage == "td"


def _common(
    backup: Tensor | None, baseline: Tensor | None, config: GTPLearnerConfig
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the noises of backup and baseline, the same ones where their values are compared."""
    if config.advantage == "td" and backup is not None and baseline is not None:
        shared = min(backup.shape[1], baseline.shape[1])
        baseline = torch.cat([backup[:, :shared], baseline[:, shared:]], 1)
    return backup, baseline


def minibatch(learner: Learner, dataset: OfflineDataset, batch_size: int) -> Transitions:
    """Draws the minibatch of a learner's next update: from its stream, or on a GPU by counter.

    Args:
        learner: Whose seed and number of updates count.
        dataset: The data.
        batch_size: B.

    Returns:
        B transitions.
    """
    custom = type(dataset).sample is not OfflineDataset.sample
    # Images may be moved at random, behind the draw of their rows.
    if custom or dataset.images or not philox.serves(dataset.device):
        return dataset.sample(batch_size, generator=learner.stream("batch"))
    key, device = philox.key_of(learner.config.seed), dataset.device
    words = philox.words(key, "batch", learner.updates, batch_size, 1, device)
    return dataset.take(philox.below(words, len(dataset)).squeeze(1))


def update(networks: Networks, batch: Transitions, draws: Draws) -> dict[str, Tensor]:
    """Does lines 4 to 9 of Algorithm 1 for every learner.

    Args:
        networks: The learners' networks.
        batch: A minibatch per learner, fields (S, B, ...).
        draws: What is random.

    Returns:
        Metrics by name, (S,) each.
    """
    first = networks.learners[0]
    weight, metrics = None, {}
    if first.critic is not None:
        next_action, sampled = _sample_actions(networks, batch, draws)
        mask = batch.critic_mask(first.actor.config.chunk)
        if _backs_up(first):
            y = td_target(batch.reward, batch.discount, _next_value(networks, batch, next_action))
        if first.critic_learns:
            metrics = networks.fit_critic(batch.obs, batch.action, y, mask)
            if first.value is not None:
                q = networks.target_q(batch.obs, batch.action.unsqueeze(1)).squeeze(2)
                networks.fit_value(batch.obs, first.critic.config.reduce(q, 1), mask)
        if weighs(first.guidance):
            if _by_td(first):
                advantage = y - _value(networks, batch.obs, sampled)
            else:
                advantage = advantage_of(networks, batch.obs, batch.action, sampled)
            if mask is not None:  # nothing is known for or against what a cut left incomplete
                advantage = advantage * mask
            weight, of_weights = _weigh(networks, advantage)
            metrics |= of_weights
    metrics |= networks.fit_actor(batch, weight, draws)
    networks.follow()
    return metrics if first.processes is None else first.processes.means(metrics)


def _weigh(networks: Networks, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns weights (S, B) and metrics of them; their scale is that of all processes' rows."""
    processes = networks.learners[0].processes
    if processes is None:
        return networks.weigh(advantage)
    weight, metrics = networks.weigh(processes.gather(advantage))
    return processes.own(weight), metrics


def means_of(learner: Learner) -> Callable[[Sequence[Tensor]], object] | None:
    """Returns what makes means over all processes of means over this one's rows, if there are any.

    Args:
        learner: Whose processes.

    Returns:
        What replaces tensors, in place; None where one process computes all rows.
    """
    return None if learner.processes is None else learner.processes.mean_


def _sample_actions(
    networks: Networks, batch: Transitions, draws: Draws
) -> tuple[Tensor | None, Tensor | None]:
    """Samples the backup's actions and the baseline's, as far as there are any, in one pass."""
    asked = [
        (noise, _repeat(obs, noise.shape[1]))
        for noise, obs in ((draws.backup, batch.next_obs), (draws.baseline, batch.obs))
        if noise is not None
    ]
    if not asked:
        return None, None
    noise, obs = asked[0]
    if len(asked) > 1:  # a copy is a launch of its own
        noise, obs = (torch.cat(parts, 1) for parts in zip(*asked, strict=True))
    drawn = networks.sample(obs.flatten(1, 2), noise.flatten(1, 2))
    action = drawn.view(*noise.shape[:3], -1)
    copies = 0 if draws.backup is None else draws.backup.shape[1]
    return (
        None if draws.backup is None else action[:, :copies],
        None if draws.baseline is None else action[:, copies:],
    )


def _repeat(obs: Tensor, n: int) -> Tensor:
    """Returns observations (S, B, O) n times, (S, n, B, O)."""
    return obs.unsqueeze(1).expand(-1, n, -1, -1)


def _next_value(networks: Networks, batch: Transitions, next_action: Tensor | None) -> Tensor:
    """Returns what next observations are worth, (S, B): by n actions each, or by V without any."""
    if next_action is None:
        return networks.value(batch.next_obs)
    config, reduce = networks.learners[0].config, _reduction(networks)
    next_q = networks.target_q(batch.next_obs, next_action)
    if config.critic_penalty:
        assert batch.next_action is not None  # `Transitions.check` has looked
        distance = (next_action - batch.next_action.unsqueeze(1)).square().sum(-1)
        next_q = next_q - config.critic_penalty * distance.unsqueeze(1)
    if config.backup == "best_of_n":
        return reduce(next_q, 1).amax(1)
    # Max-Q backup: each member's best action first, the pessimism over members last.
    return reduce(next_q.amax(2), 1)


def _value(networks: Networks, obs: Tensor, sampled: Tensor | None) -> Tensor:
    """Returns V (S, B) by the value network, or the target critics of sampled actions."""
    if sampled is None:
        return networks.value(obs)
    return _reduction(networks)(networks.target_q(obs, sampled), 1).mean(1)


def td_advantage_of(
    networks: Networks, batch: Transitions, next_action: Tensor | None, sampled: Tensor | None
) -> Tensor:
    """Returns by how much what followed is better than V: the critic's target less V.

    Args:
        networks: The learners' networks.
        batch: A minibatch per learner, fields (S, B, ...).
        next_action: n actions per next observation, shape (S, n, B, A); None for the value
            network's V.
        sampled: M actions per observation, shape (S, M, B, A); None for the value network's V.

    Returns:
        A, shape (S, B).
    """
    y = td_target(batch.reward, batch.discount, _next_value(networks, batch, next_action))
    return y - _value(networks, batch.obs, sampled)


def _reduction(networks: Networks) -> Callable[[Tensor, int], Tensor]:
    """Returns what makes one value of those of the members of an ensemble."""
    critic = networks.learners[0].critic
    assert critic is not None
    return critic.config.reduce


def advantage_of(networks: Networks, obs: Tensor, action: Tensor, sampled: Tensor | None) -> Tensor:
    """Returns by how much actions are better than V: a network, or the mean of sampled actions.

    Args:
        networks: The learners' networks.
        obs: Shape (S, B, O).
        action: Shape (S, B, A).
        sampled: M actions per observation, shape (S, M, B, A); None for the value network's V.

    Returns:
        A, shape (S, B).
    """
    action, reduce = action.unsqueeze(1), _reduction(networks)
    if sampled is None:
        return reduce(networks.q(obs, action).squeeze(2), 1) - networks.value(obs)
    q = reduce(networks.q(obs, torch.cat([action, sampled], 1)), 1)
    return q[:, 0] - q[:, 1:].mean(1)


WEIGHT_METRICS = (
    *("advantage_mean", "advantage_std", "weight_mean"),
    *("weight_max", "weight_clipped", "weight_ess"),
)
"""What is measured of weights, in the order of `weight_metrics`."""


def weight_metrics(advantage: Tensor, weight: Tensor, max_weight: float) -> dict[str, Tensor]:
    """Returns metrics of advantages and weights, (S, B) each.

    Args:
        advantage: What the weights are of.
        weight: The weights.
        max_weight: Their cap.

    Returns:
        By name, (S,) each.
    """
    found = (
        advantage.mean(1),
        advantage.std(1, correction=0),
        weight.mean(1),
        weight.amax(1),
        (weight >= max_weight).float().mean(1),
        effective_sample_size(weight) / weight.shape[1],
    )
    return dict(zip(WEIGHT_METRICS, found, strict=True))
