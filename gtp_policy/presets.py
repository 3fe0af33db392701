r"""Presets: the method, its ablations, its relatives and its tasks, as configs to start from.

.. code-block:: text

    model          pairs (t, s)  taught by                       local loss
    diffusion      s = t         -                               flow
    flow_matching  s = t         -                               flow, linear path
    consistency    s = 0         the data at u, adjacent         -
    ctm            all s         a solver, random gap            flow
    shortcut       dyadic        two jumps of the model itself   flow
    mean_flow      all s         a derivative                    flow (the case s = t)
    paper_loss     all s         the data at u, adjacent         flow
    gtp_solver     all s         a solver step to u              flow
    one_step, gtp  all s         two jumps of the target         flow, linear path

Every preset is a `GTPConfig`: change a field with ``replace``. Values that the source names are
marked with it; the others are the defaults of the fields.
"""

from typing import Any

from pydantic import Field

from gtp_policy._config import Config
from gtp_policy.actor import FlowMapActorConfig
from gtp_policy.config import GTPConfig, GTPLearnerConfig
from gtp_policy.critic import QEnsembleConfig
from gtp_policy.errors import UnknownPresetError, suggestion
from gtp_policy.guidance import AdvantageWeighterConfig, LinearQGuidance
from gtp_policy.loss import GTPLossConfig
from gtp_policy.rewards import LinearReward, RewardTransform, StandardizedReward
from gtp_policy.samplers import JumpSampler, OdeSampler
from gtp_policy.teachers import JvpTeacher, NoTeacher, OdeTeacher, SelfTeacher
from gtp_policy.times import (
    Curriculum,
    KarrasTimes,
    LinearTimes,
    LogNormalIndex,
)

_FINE = Curriculum(start=1280, end=1280)


class TaskPreset(Config):
    """What a task needs: how to train on it, and what to do to its rewards first.

    Example:
        >>> from gtp_policy import presets
        >>> preset = presets.task("antmaze-medium-play")
        >>> preset.reward
        LinearReward(kind='linear', subtract=0.5, multiply=4.0)
        >>> preset.policy.learner.backup_actions
        10
    """

    policy: GTPConfig = Field(
        default_factory=GTPConfig, description="Every choice of the policy and its training."
    )
    reward: RewardTransform = Field(
        default_factory=LinearReward,
        description="For `OfflineDataset.with_rewards`, before training.",
    )


def gtp() -> GTPConfig:
    """Returns the method as it comes: every default of this package.

    The objective of `one_step`, a critic with layer normalisation, a higher temperature of the
    weights, and rates that go by the length of the run. What the paper does is `paper_loss`; what
    differs, and why, stands in ``docs/explanation/deviations.md``.

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025)
        | https://arxiv.org/abs/2510.11499

    Returns:
        The config.

    Example:
        >>> from gtp_policy import GTPConfig, presets
        >>> presets.gtp() == GTPConfig()
        True
    """
    return GTPConfig()


def gtp_bc() -> GTPConfig:
    """Returns the method without a critic: behaviour cloning, the paper's eta = 0.

    Returns:
        The config.

    Example:
        >>> from gtp_policy import presets
        >>> presets.gtp_bc().critic is None
        True
    """
    return GTPConfig(critic=None)


def paper_loss() -> GTPConfig:
    """Returns the paper's method: score approximation from neighbours on a grid, five steps.

    With its weights and critic, its rates and constant learning rates: spelled out, whatever the
    defaults are.

    The data itself puts the point at the grid time below t, from which the target jumps to s;
    distances are squared. One step loses what five have: see ``docs/explanation/deviations.md``.
    The other presets start from it.

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025),
        | eq. 17 to 19, https://arxiv.org/abs/2510.11499

    Returns:
        The config.

    Example:
        >>> from gtp_policy import presets
        >>> presets.paper_loss().loss.teacher, presets.paper_loss().actor.steps
        (SurrogateTeacher(kind='surrogate'), 5)
    """
    return _on_grid()


def _on_grid(
    actor: dict[str, Any] | None = None,
    loss: dict[str, Any] | None = None,
    learner: dict[str, Any] | None = None,
) -> GTPConfig:
    """Returns the paper's method, which is what there was before others, with some changes."""
    return GTPConfig(
        actor=FlowMapActorConfig(**{**FlowMapActorConfig.before, **(actor or {})}),
        critic=QEnsembleConfig(**QEnsembleConfig.before),
        loss=GTPLossConfig(**{**GTPLossConfig.before, **(loss or {})}),
        weighter=AdvantageWeighterConfig(**AdvantageWeighterConfig.before),
        learner=GTPLearnerConfig(**{**GTPLearnerConfig.before, **(learner or {})}),
    )


def one_step() -> GTPConfig:
    """Returns the paper's method with the default's objective, which one network call is for.

    On the linear path, pairs of times are uniform draws off any grid, a tenth of them the one-step
    sampler's own. The target's two jumps through a point nearer to s teach the jump from t to s,
    on the first half of the minibatch; the flow loss takes all rows at separate times. Residuals
    are velocities, those of jumps under a pseudo-Huber weight, times enter by the softened
    logarithm of noise over signal, and actions are standardised by the dataset. An update takes
    fewer passes of the network than `paper_loss`, five times fewer where a critic needs actions.

    For runs of some ten thousand updates; in `gtp` the rates go by the length of the run.

    References:
        | One Step Diffusion via Shortcut Models (Frans et al., 2024), for two jumps that teach one
        | https://arxiv.org/abs/2410.12557

    Returns:
        The config, with one step.

    Example:
        >>> from gtp_policy import presets
        >>> presets.one_step().actor.steps
        1
    """
    paper = _on_grid(
        learner={
            "actor_lr": 2e-3,
            "ema_rate": 0.05,
            "lr_schedule": "cosine",
            "normalize_actions": True,
        }
    )
    return paper.replace(actor=FlowMapActorConfig(), loss=GTPLossConfig())


def gtp_solver() -> GTPConfig:
    """Returns `paper_loss` without score approximation: a step of Heun's solver from t to u.

    Two more network passes an update. The paper's ablation takes one to three steps:
    ``OdeTeacher(steps=3)`` with ``max_gap=3`` solves over up to three grid intervals.

    Returns:
        The config.

    Example:
        >>> from gtp_policy import presets
        >>> presets.gtp_solver().loss.teacher
        OdeTeacher(kind='ode', method='heun', steps=1)
    """
    return _on_grid(loss={"teacher": OdeTeacher()})


def gtp_linear_q(scale: float = 0.01) -> GTPConfig:
    """Returns `paper_loss` with linear-Q guidance instead of weights, from the paper's ablation.

    Args:
        scale: Lambda, the factor of -Q; the ablation takes 0.01 and 0.1, of the raw Q.

    Returns:
        The config.

    Example:
        >>> from gtp_policy import presets
        >>> presets.gtp_linear_q(0.1).learner.guidance.scale
        0.1
    """
    return _on_grid(learner={"guidance": LinearQGuidance(scale=scale)})


def paper() -> GTPConfig:
    """Returns `paper_loss` with the time range and scale of the method's parents.

    Noise from 80 down to 0.002 and sigma_data = 0.5 are EDM's (https://arxiv.org/abs/2206.00364,
    table 1), grids of 10 to 1280 intervals those of improved consistency training
    (https://arxiv.org/abs/2310.14189, section 3.5).

    Returns:
        The config.

    Example:
        >>> from gtp_policy import presets
        >>> presets.paper().actor.times.t_max
        80.0
    """
    return _on_grid(
        actor={"times": KarrasTimes(t_min=0.002, t_max=80.0), "sigma_data": 0.5},
        loss={"curriculum": Curriculum(start=10, end=1280)},
    )


def diffusion() -> GTPConfig:
    """Returns a diffusion policy: a denoiser, sampled by Heun's solver.

    Loss weight and law of the noise, ln t ~ N(-1.2, 1.2), are EDM's
    (https://arxiv.org/abs/2206.00364, table 1).

    Returns:
        The config.

    Example:
        >>> from gtp_policy import presets
        >>> presets.diffusion().actor.sampler
        OdeSampler(kind='ode', method='heun')
    """
    return _on_grid(
        actor={"sampler": OdeSampler(method="heun"), "steps": 10},
        loss={
            "teacher": NoTeacher(),
            "t_law": LogNormalIndex(mean=-1.2, std=1.2),
            "time_weight": "edm",
            "curriculum": _FINE,
        },
    )


def flow_matching() -> GTPConfig:
    """Returns a flow-matching policy: the linear path, sampled by ten Euler steps.

    Path and even times after Flow Matching (https://arxiv.org/abs/2210.02747). Ten steps are those
    of flow Q-learning's teacher (https://arxiv.org/abs/2502.02538).

    Returns:
        The config.

    Example:
        >>> from gtp_policy import presets
        >>> presets.flow_matching().actor.times.path
        'linear'
    """
    return _on_grid(
        actor={"times": LinearTimes(), "sampler": OdeSampler(method="euler"), "steps": 10},
        loss={"teacher": NoTeacher(), "time_weight": "edm", "curriculum": _FINE},
    )


def consistency() -> GTPConfig:
    """Returns a consistency policy: jumps to time 0 alone, no flow loss, noise between jumps.

    Two steps, as consistency policies take (https://arxiv.org/abs/2309.16984); the sampler is
    Algorithm 1 of Consistency Models (https://arxiv.org/abs/2303.01469).

    Returns:
        The config.

    Example:
        >>> from gtp_policy import presets
        >>> presets.consistency().loss.s_rule
        'zero'
    """
    return _on_grid(
        actor={"sampler": JumpSampler(gamma=1.0), "steps": 2},
        loss={"s_rule": "zero", "flow_weight": 0.0},
    )


def ctm() -> GTPConfig:
    """Returns a consistency trajectory model: a solver over a random gap, compared at time 0.

    After https://arxiv.org/abs/2310.02279, eq. 8 and 9: both arrivals at s jump on to 0 by the
    target. The gap is at most three grid intervals, one step of Heun's solver each or shorter;
    their gap reaches further at the price of as many steps. No adversarial loss.

    Returns:
        The config.

    Example:
        >>> from gtp_policy import presets
        >>> presets.ctm().loss.compare_at
        'zero'
    """
    return _on_grid(
        loss={
            "teacher": OdeTeacher(method="heun", steps=3),
            "max_gap": 3,
            "compare_at": "zero",
        }
    )


def shortcut() -> GTPConfig:
    """Returns a Shortcut model: jumps of 1, 2, 4, ... intervals, each taught by two half as long.

    128 intervals and the target as teacher after https://arxiv.org/abs/2410.12557, section 3.
    Four steps, a power of two, so that the sampler uses pairs that were trained.

    Returns:
        The config.

    Example:
        >>> from gtp_policy import presets
        >>> presets.shortcut().loss.s_rule
        'dyadic'
    """
    return _on_grid(
        actor={"steps": 4},
        loss={
            "teacher": SelfTeacher(),
            "s_rule": "dyadic",
            "u_rule": "midpoint",
            "curriculum": Curriculum(start=128, end=128),
        },
    )


def mean_flow() -> GTPConfig:
    """Returns a mean-flow model: a derivative along the trajectory instead of a second point.

    The network's own endpoint without gradient is the teacher (https://arxiv.org/abs/2505.13447,
    Algorithm 1). The ``edm`` weight is ours: the target contains the network's derivative times the
    noise, and without a weight that evens out times, its variance there drowns the flow loss.

    Returns:
        The config.

    Example:
        >>> from gtp_policy import presets
        >>> presets.mean_flow().loss.target
        'stopgrad'
    """
    return _on_grid(
        loss={
            "teacher": JvpTeacher(),
            "target": "stopgrad",
            "time_weight": "edm",
            "curriculum": _FINE,
        }
    )


_METHODS = (
    gtp,
    gtp_bc,
    paper_loss,
    one_step,
    gtp_solver,
    gtp_linear_q,
    paper,
    diffusion,
    flow_matching,
    consistency,
    ctm,
    shortcut,
    mean_flow,
)
NAMES: tuple[str, ...] = tuple(method.__name__ for method in _METHODS)
"""What `get` knows."""


def get(name: str) -> GTPConfig:
    """Returns a preset by its name, for command lines and files.

    Args:
        name: One of `NAMES`.

    Returns:
        The config.

    Raises:
        UnknownPresetError: If there is no preset of that name.

    Example:
        >>> from gtp_policy import presets
        >>> presets.get("shortcut") == presets.shortcut()
        True
        >>> len(presets.NAMES)
        13
    """
    if not isinstance(name, str) or name not in NAMES:
        of_task = isinstance(name, str) and name in TASKS
        hint = " For a task, call presets.task." if of_task else suggestion(str(name), NAMES)
        raise UnknownPresetError(
            f"Unknown preset: got {name!r}, expected one of {', '.join(NAMES)}.{hint}"
        )
    return _METHODS[NAMES.index(name)]()


# The parents' values per task: Diffusion Policies as an Expressive Policy Class for Offline
# Reinforcement Learning (Wang et al., 2022), table of hyper-parameters and the authors' script.
# Gradient norm, then what differs from learning rate 3e-4, raw rewards and one backup action.
_RUN: dict[str, dict[str, Any]] = {
    "gym": {"total_updates": 2_000_000},
    "antmaze": {"total_updates": 1_000_000, "backup_actions": 10},
    "adroit": {"total_updates": 1_000_000, "actor_lr": 3e-5, "critic_lr": 3e-5},
    "kitchen": {"total_updates": 1_000_000},
}
_REWARDS: dict[str, RewardTransform] = {
    "gym": LinearReward(),
    "antmaze": LinearReward(subtract=0.5, multiply=4.0),
    "adroit": StandardizedReward(),
    "kitchen": LinearReward(),
}
_TASKS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "halfcheetah-medium": ("gym", 9.0, {}),
    "hopper-medium": ("gym", 9.0, {}),
    "walker2d-medium": ("gym", 1.0, {}),
    "halfcheetah-medium-replay": ("gym", 2.0, {}),
    "hopper-medium-replay": ("gym", 4.0, {}),
    "walker2d-medium-replay": ("gym", 4.0, {}),
    "halfcheetah-medium-expert": ("gym", 7.0, {}),
    "hopper-medium-expert": ("gym", 5.0, {}),
    "walker2d-medium-expert": ("gym", 5.0, {}),
    "antmaze-umaze": ("antmaze", 2.0, {"backup_actions": 1}),
    "antmaze-umaze-diverse": ("antmaze", 3.0, {}),
    "antmaze-medium-play": ("antmaze", 2.0, {"actor_lr": 1e-3, "critic_lr": 1e-3}),
    "antmaze-medium-diverse": ("antmaze", 1.0, {}),
    "antmaze-large-play": ("antmaze", 10.0, {}),
    "antmaze-large-diverse": ("antmaze", 7.0, {}),
    "pen-human": ("adroit", 7.0, {}),
    "pen-cloned": ("adroit", 8.0, {}),
    "kitchen-complete": ("kitchen", 9.0, {"total_updates": 250_000}),
    "kitchen-partial": ("kitchen", 10.0, {}),
    "kitchen-mixed": ("kitchen", 10.0, {}),
}
TASKS: tuple[str, ...] = tuple(_TASKS)
"""What `task` knows."""


def task(name: str, policy: GTPConfig | None = None) -> TaskPreset:
    """Returns what the method's parents set per task, on top of any policy.

    Sets ``max_grad_norm``, learning rates, ``backup_actions`` (max-Q backup), ``total_updates``
    and the reward transform; everything else stays as in ``policy``. These values were tuned by
    others for another actor, and are a start, not an optimum.

    Args:
        name: One of `TASKS`, D4RL's names without version.
        policy: Where to start from; default `gtp`.

    Returns:
        Policy and reward transform.

    Raises:
        UnknownPresetError: If the task is not known.

    References:
        | Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning
        | (Wang et al., 2022), https://arxiv.org/abs/2208.06193, and its script of 2022

    Example:
        >>> from gtp_policy import presets
        >>> preset = presets.task("walker2d-medium", presets.shortcut())
        >>> preset.policy.learner.max_grad_norm, preset.policy.loss.s_rule
        (1.0, 'dyadic')
    """
    if not isinstance(name, str) or name not in _TASKS:
        of_method = isinstance(name, str) and name in NAMES
        hint = " For a method, call presets.get." if of_method else suggestion(str(name), _TASKS)
        raise UnknownPresetError(
            f"Unknown task: got {name!r}, expected one of {', '.join(TASKS)}.{hint}"
        )
    group, max_grad_norm, own = _TASKS[name]
    policy = policy or gtp()
    learner = policy.learner.replace(
        max_grad_norm=max_grad_norm, **{"actor_lr": 3e-4, "critic_lr": 3e-4, **_RUN[group], **own}
    )
    return TaskPreset(policy=policy.replace(learner=learner), reward=_REWARDS[group])
