"""Every choice of a policy and its training, as one document."""

from typing import Literal

from pydantic import Field

from gtp_policy._config import Bool, Config, Float, Int
from gtp_policy.actor import FlowMapActorConfig
from gtp_policy.critic import Baseline, PolicyBaseline, QEnsembleConfig
from gtp_policy.loss import GTPLossConfig
from gtp_policy.weighting import AdvantageWeighterConfig


class GTPLearnerConfig(Config):
    """The choices of a `GTPLearner`.

    Example:
        >>> from gtp_policy import ExpectileBaseline, GTPLearnerConfig
        >>> GTPLearnerConfig(total_updates=20_000, baseline=ExpectileBaseline()).actor_lr
        0.0003
    """

    total_updates: Int = Field(
        1_000_000,
        ge=1,
        description="Updates that make progress 1: curriculum and learning rate.",
    )
    actor_lr: Float = Field(3e-4, gt=0, description="Adam's learning rate of the actor.")
    critic_lr: Float = Field(3e-4, gt=0, description="Adam's learning rate of critic and value.")
    lr_schedule: Literal["constant", "cosine"] = Field(
        "constant", description="Whether learning rates fall to 0 along a half cosine."
    )
    max_grad_norm: Float | None = Field(
        None, gt=0, description="Clips the gradient norm of actor and critic; None: no clipping."
    )
    ema_rate: Float = Field(
        0.005, gt=0, le=1, description="Rate at which both targets follow, every update."
    )
    baseline: Baseline = Field(
        default_factory=PolicyBaseline, description="What V(obs) in the advantage is."
    )
    backup_actions: Int = Field(
        1,
        ge=1,
        description="Actions sampled per next observation; above 1 the target takes each critic's "
        "maximum over them (max-Q backup), then the minimum over critics.",
    )
    normalize_obs: Bool = Field(
        True, description="Whether from_dataset normalises observations by the dataset."
    )
    seed: Int = Field(0, ge=0, description="Seed of initial parameters and of every update.")


class GTPConfig(Config):
    """Every choice of a generative trajectory policy and its training, in one JSON document.

    ``critic=None`` is behaviour cloning without a critic; ``weighter.eta = 0`` gives the same actor
    and trains a critic beside it.

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
