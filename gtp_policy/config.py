"""Every choice of a policy and its training, as one document."""

import warnings
from typing import Literal, Self

from pydantic import Field, model_validator

from gtp_policy._config import Bool, Config, Float, Int
from gtp_policy.acting import ArgmaxChoice, Choice
from gtp_policy.actor import FlowMapActorConfig
from gtp_policy.critic import Baseline, PolicyBaseline, QEnsembleConfig
from gtp_policy.guidance import AdvantageGuidance, AdvantageWeighterConfig, Guidance
from gtp_policy.loss import GTPLossConfig

# Jumps of a deterministic action, all candidates together: a second of a CPU, in a usual network.
MOST_JUMPS = 100_000


class GTPLearnerConfig(Config):
    """The choices of a `GTPLearner`.

    Example:
        >>> from gtp_policy import ExpectileBaseline, GTPLearnerConfig
        >>> GTPLearnerConfig(total_updates=20_000, baseline=ExpectileBaseline()).actor_lr
        0.0003
    """

    total_updates: Int = Field(
        default=1_000_000,
        ge=1,
        description="Length of the run: the curriculum and the learning rate unfold over it.",
    )
    actor_lr: Float = Field(default=3e-4, gt=0, description="Adam's learning rate of the actor.")
    critic_lr: Float = Field(
        default=3e-4, gt=0, description="Adam's learning rate of critic and value."
    )
    lr_schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="Whether learning rates fall to 0 along a half cosine."
    )
    max_grad_norm: Float | None = Field(
        default=None,
        gt=0,
        description="Clips the gradient norm of actor and critic; None: no clipping.",
    )
    ema_rate: Float = Field(
        default=0.005,
        gt=0,
        le=1,
        description="Rate at which the slow copies of actor and critic follow, every update.",
    )
    critic_ema_rate: Float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Rate of the critic's target; None: ema_rate. Values reach 95 % of the level "
        "of the returns after 3 / (rate * (1 - gamma)) updates: 60,000 with the defaults, where "
        "0.05 takes 6,000. Raise it for runs of few updates.",
    )
    baseline: Baseline = Field(
        default_factory=PolicyBaseline, description="What V(obs) in the advantage is."
    )
    guidance: Guidance = Field(
        default_factory=AdvantageGuidance,
        description="How the critic guides the actor, where there is one.",
    )
    guidance_start: Int = Field(
        default=0,
        ge=0,
        description="Updates during which the actor clones the data unguided, while the critic "
        "learns what to judge by; from total_updates on never. A critic of the first updates knows "
        "nothing, and what it leads the actor to takes long to unlearn.",
    )
    backup_actions: Int = Field(
        default=1,
        ge=1,
        le=10_000,
        description="Actions sampled per next observation; above 1 the target takes each critic's "
        "maximum over them (max-Q backup), then the minimum over critics.",
    )
    eval_candidates: Int = Field(
        default=16,
        ge=1,
        le=10_000,
        description="Fixed noises from which a deterministic action starts; the target critic "
        "chooses. Without a critic, or with 1, it is one noise: the same quantile of the policy "
        "everywhere.",
    )
    no_grad_precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Precision of matrix products of which no gradient is taken: sampled actions, "
        "targets, advantages. bfloat16 rounds their factors to 8 bits, a relative error of some "
        "1e-3 in the results, where fused updates run on a processor that multiplies them faster.",
    )
    choice: Choice = Field(
        default_factory=ArgmaxChoice,
        description="How the target critic chooses among several candidates.",
    )
    normalize_obs: Bool = Field(
        default=True, description="Whether from_dataset normalises observations by the dataset."
    )
    seed: Int = Field(
        default=0, ge=0, description="Seed of initial parameters and of every update."
    )

    @property
    def critic_rate(self) -> float:
        """The rate at which the critic's slow copy follows."""
        return self.ema_rate if self.critic_ema_rate is None else self.critic_ema_rate


class GTPConfig(Config):
    """Every choice of a generative trajectory policy and its training, in one JSON document.

    ``critic=None`` is behaviour cloning without a critic; ``weighter.eta = 0`` gives the same actor
    and trains a critic beside it.

    Raises:
        pydantic.ValidationError: If a field is unknown or out of range, or a deterministic action
            would take more than 100,000 jumps, all candidates together.

    Example:
        >>> from gtp_policy import AdvantageWeighterConfig, GTPConfig
        >>> config = GTPConfig(weighter=AdvantageWeighterConfig(eta=0.5))
        >>> GTPConfig.model_validate_json(config.model_dump_json()) == config
        True
    """

    actor: FlowMapActorConfig = Field(
        default_factory=FlowMapActorConfig, description="The policy network and its sampler."
    )
    critic: QEnsembleConfig | None = Field(
        default_factory=QEnsembleConfig, description="The critic; None for behaviour cloning."
    )
    loss: GTPLossConfig = Field(default_factory=GTPLossConfig, description="The actor's loss.")
    weighter: AdvantageWeighterConfig = Field(
        default_factory=AdvantageWeighterConfig, description="From advantages to weights."
    )
    learner: GTPLearnerConfig = Field(
        default_factory=GTPLearnerConfig, description="Optimisation and targets."
    )

    @model_validator(mode="after")
    def _actions_take_no_minutes(self) -> Self:
        candidates = 1 if self.critic is None else self.learner.eval_candidates
        if self.actor.steps * candidates > MOST_JUMPS:
            raise ValueError(
                f"actor.steps * learner.eval_candidates must not exceed {MOST_JUMPS}, and is "
                f"{self.actor.steps * candidates}"
            )
        return self

    def cap_curriculum(self, *, stacklevel: int = 2) -> Self:
        """Returns the config with a curriculum that the length of the run allows.

        Warns if the curriculum's ``end`` was set by hand; nobody asked for the default's fineness.

        Args:
            stacklevel: Whose line the warning shows; 2 is the caller's.

        Returns:
            The config itself if nothing had to change.

        Example:
            >>> from gtp_policy import GTPConfig, GTPLearnerConfig
            >>> short = GTPConfig(learner=GTPLearnerConfig(total_updates=20_000))
            >>> short.cap_curriculum().loss.curriculum.end
            160
        """
        curriculum, run = self.loss.curriculum, self.learner
        capped = curriculum.capped(run.total_updates, run.ema_rate)
        if capped == curriculum:
            return self
        if "end" in curriculum.model_fields_set:
            warnings.warn(
                f"The curriculum is too fine for the run: end={curriculum.end} is capped to "
                f"{capped.end} for total_updates={run.total_updates} and ema_rate={run.ema_rate}. "
                "Train longer, or raise ema_rate.",
                stacklevel=stacklevel,
            )
        return self.replace(loss=self.loss.replace(curriculum=capped))
