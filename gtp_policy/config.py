"""Every choice of a policy and its training, as one document."""

import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, Self

from pydantic import Field, model_validator
from torch import Tensor

from gtp_policy._config import Bool, Config, Float, Int
from gtp_policy.acting import MOST_JUMPS, ArgmaxChoice, Choice, ModeChoice
from gtp_policy.actor import ActionStatistics, FlowMapActorConfig
from gtp_policy.chunks import Playback
from gtp_policy.critic import Baseline, NetworkBaseline, PolicyBaseline, QEnsembleConfig
from gtp_policy.encoders import ImpalaEncoderConfig
from gtp_policy.errors import DataError
from gtp_policy.guidance import AdvantageGuidance, AdvantageWeighterConfig, Guidance
from gtp_policy.loss import GTPLossConfig
from gtp_policy.spaces import ObservationLayout


class GTPLearnerConfig(Config):
    """The choices of a `GTPLearner`.

    Example:
        >>> from gtp_policy import ExpectileBaseline, GTPLearnerConfig
        >>> GTPLearnerConfig(total_updates=20_000, baseline=ExpectileBaseline()).lr_schedule
        'cosine'
    """

    before: ClassVar[Mapping[str, Any]] = {
        "actor_lr": 3e-4,
        "critic_lr": 3e-4,
        "baseline": PolicyBaseline(samples=4),
        "deterministic_choice": ArgmaxChoice(),
        "ema_rate": 0.005,
        "eval_candidates": 16,
        "guidance_start": 0,
        "lr_schedule": "constant",
        "normalize_actions": False,
    }

    total_updates: Int = Field(
        default=1_000_000,
        ge=1,
        description="Length of the run: the curriculum and the learning rate unfold over it.",
    )
    gamma: Float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Discount factor that choices left open go by; the data's own discounts are "
        "what values are made of, and a dataset of another one is an error. None: the dataset's by "
        "from_dataset, 0.99 without one.",
    )
    actor_lr: Float | None = Field(
        default=None,
        gt=0,
        description="Adam's learning rate of the actor. None: by the length of the run, 2e-3 up to "
        "50,000 updates, then falling with the root of the length, to 3e-4.",
    )
    critic_lr: Float | None = Field(
        default=None,
        gt=0,
        description="Adam's learning rate of critic and value. None: 3e-4 from 30,000 updates on; "
        "shorter runs have a higher one, with the root of the length, up to 1e-3.",
    )
    lr_schedule: Literal["constant", "cosine"] = Field(
        default="cosine", description="Whether learning rates fall to 0 along a half cosine."
    )
    max_grad_norm: Float | None = Field(
        default=None,
        gt=0,
        description="Clips the gradient norm of actor and critic; None: no clipping.",
    )
    ema_rate: Float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Rate at which the actor's target network follows, every update; 0 leaves it, "
        "which acts, as it is. None: by the length of the run, 1500 / total_updates between 0.005 "
        "and 0.05.",
    )
    critic_ema_rate: Float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Rate of the critic's target. Values reach 95 % of the level of the returns "
        "after 3 / (rate * (1 - gamma)) updates. None: ema_rate where that is set, otherwise the "
        "rate at which this takes a fifth of the run, between 0.005 and 0.1.",
    )
    critic_updates: Int | None = Field(
        default=None,
        ge=1,
        description="Updates over which the critic (and the value network) learns: its learning "
        "rate follows lr_schedule over them, its other choices that are left open go by them, and "
        "from then on it rests, while the actor learns from values that change no more. None: the "
        "whole run.",
    )
    baseline: Baseline = Field(
        default_factory=lambda: PolicyBaseline(samples=1),
        description="What V(obs) in the advantage is.",
    )
    advantage: Literal["q", "td"] = Field(
        default="q",
        description="What the advantage of a transition is, of which its weight is made. q: "
        "Q(obs, action) - V(obs), what the critic thinks of the data's action. td: what followed "
        "it in the data, the critic's target (reward + discount V(next_obs)) - V(obs), by target "
        "networks; actions are sampled with the same noise for both, so that what noise does to "
        "values cancels.",
    )
    guidance: Guidance = Field(
        default_factory=AdvantageGuidance,
        description="How the critic guides the actor, where there is one.",
    )
    guidance_start: Int | None = Field(
        default=None,
        ge=0,
        description="Updates during which the actor clones the data unguided, while the critic "
        "learns what is good; from total_updates on never. A critic of the first updates knows "
        "nothing, and what it leads the actor to takes long to unlearn. None: a sixth of the run, "
        "at most 5,000 updates.",
    )
    backup_actions: Int = Field(
        default=1,
        ge=1,
        le=10_000,
        description="n, actions sampled per next observation, of which the target takes the best "
        "as backup says.",
    )
    backup: Literal["max_q", "best_of_n", "value"] = Field(
        default="max_q",
        description="What the critic's target takes the value of the next observation from. max_q: "
        "each target critic's maximum over the sampled actions, then their reduction. best_of_n: "
        "the sampled action that the reduction of the target critics values most. value: the value "
        "network of an expectile or quantile baseline; no action is sampled. With one sampled "
        "action the first two are the same.",
    )
    critic_penalty: Float = Field(
        default=0.0,
        ge=0,
        description="Beta: so many times the squared distance to the data's next action is taken "
        "from a sampled next action's value in the critic's target (ReBRAC). Above 0, minibatches "
        "need next_action, see OfflineDataset.with_next_actions.",
    )
    eval_candidates: Int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Noises, functions of the observation, from which a deterministic action "
        "starts. With 1 it is distributed as a sample is, over observations. With more, "
        "deterministic_choice makes one action of theirs: by default the mode, which is better "
        "where noise hurts, as in walking, and worse where it helps, as before a wall. None: 16 "
        "where the critic prefers the mode in two thirds of the observations or more, see "
        "gtp_policy.acting.mode_share, otherwise and without a critic 1.",
    )
    no_grad_precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Precision of matrix products of which no gradient is taken: sampled actions, "
        "targets, advantages. bfloat16 rounds their factors to 8 bits, a relative error of some "
        "1e-3 in the results, where fused updates run on a processor that multiplies them faster.",
    )
    choice: Choice = Field(
        default_factory=ArgmaxChoice,
        description="How one of ``candidates`` actions is chosen where their number is given.",
    )
    deterministic_choice: Choice = Field(
        default_factory=ModeChoice,
        description="What a deterministic action is of its candidates: where they lie densest, or "
        "the one that the target critic values most (without a critic then the first).",
    )
    playback: Playback = Field(
        default_factory=Playback,
        description="How actions in chunks are played: how often anew, and whether those that "
        "overlap are averaged.",
    )
    normalize_obs: Bool = Field(
        default=True, description="Whether from_dataset normalises observations by the dataset."
    )
    normalize_actions: Bool = Field(
        default=True,
        description="Whether from_dataset standardises each action dimension by the dataset, "
        "inside the flow.",
    )
    seed: Int = Field(
        default=0, ge=0, description="Seed of initial parameters and of every update."
    )

    @model_validator(mode="after")
    def _consistent_backup(self) -> Self:
        if self.backup == "value" and not isinstance(self.baseline, NetworkBaseline):
            raise ValueError(
                f"backup='value' needs a value network: got {type(self.baseline).__name__}, "
                "expected an ExpectileBaseline or a QuantileBaseline. Set baseline."
            )
        if self.backup == "value" and self.backup_actions > 1:
            raise ValueError(
                f"backup='value' samples no actions: got backup_actions={self.backup_actions}, "
                "expected 1. Take backup='best_of_n', or leave backup_actions."
            )
        if self.backup == "value" and self.critic_penalty:
            raise ValueError(
                f"backup='value' samples no actions: got critic_penalty={self.critic_penalty}, "
                "expected 0. Take another backup, or leave critic_penalty."
            )
        return self

    @property
    def actor_rate(self) -> float:
        """The rate at which the actor's target network follows."""
        if self.ema_rate is not None:
            return self.ema_rate
        return min(max(1500 / self.total_updates, 0.005), 0.05)

    @property
    def critic_rate(self) -> float:
        """The rate at which the critic's target network follows."""
        if self.critic_ema_rate is not None:
            return self.critic_ema_rate
        if self.ema_rate is not None:
            return self.ema_rate
        gamma = 0.99 if self.gamma is None else self.gamma
        # 3 / (rate * (1 - gamma)) updates are a fifth of those of the critic.
        wanted = 15 / max((1 - gamma) * self.critic_length, 15.0)
        return min(max(wanted, 0.005), 0.1)

    @property
    def initial_actor_lr(self) -> float:
        """Adam's learning rate of the actor, before its schedule."""
        if self.actor_lr is not None:
            return self.actor_lr
        return min(max(2e-3 * math.sqrt(50_000 / self.total_updates), 3e-4), 2e-3)

    @property
    def initial_critic_lr(self) -> float:
        """Adam's learning rate of critic and value network, before its schedule."""
        if self.critic_lr is not None:
            return self.critic_lr
        return min(max(3e-4 * math.sqrt(30_000 / self.critic_length), 3e-4), 1e-3)

    @property
    def critic_length(self) -> int:
        """Updates over which the critic learns."""
        if self.critic_updates is not None:
            return min(self.critic_updates, self.total_updates)
        return self.total_updates

    @property
    def guided_from(self) -> int:
        """The update from which on the critic guides the actor."""
        if self.guidance_start is not None:
            return self.guidance_start
        return min(self.total_updates // 6, 5_000)

    def resolved(self) -> Self:
        """Returns the same choices with those that were left open as the length of the run has it.

        Returns:
            A config that does the same at this ``total_updates``.

        Example:
            >>> from gtp_policy import GTPLearnerConfig
            >>> config = GTPLearnerConfig(total_updates=30_000).resolved()
            >>> config.ema_rate, config.guidance_start
            (0.05, 5000)
        """
        return self.replace(
            actor_lr=self.initial_actor_lr,
            critic_lr=self.initial_critic_lr,
            ema_rate=self.actor_rate,
            critic_ema_rate=self.critic_rate,
            critic_updates=self.critic_length,
            guidance_start=self.guided_from,
        )


class ActionData(Protocol):
    """A dataset as far as its actions are measured, in units of [-1, 1]."""

    def action_statistics(self) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation, (A,) each."""

    def action_std(self) -> float:
        """Returns the root mean square of the standard deviations."""


class GTPConfig(Config):
    """Every choice of a generative trajectory policy and its training, in one JSON document.

    ``critic=None`` is behaviour cloning without a critic; ``weighter.eta = 0`` gives the same actor
    and trains a critic too.

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
    encoder: ImpalaEncoderConfig | None = Field(
        default=None,
        description="What makes features of observations with images, for actor, critic and value "
        "network each; None: they see observations as they are.",
    )
    loss: GTPLossConfig = Field(default_factory=GTPLossConfig, description="The actor's loss.")
    weighter: AdvantageWeighterConfig = Field(
        default_factory=AdvantageWeighterConfig, description="From advantages to weights."
    )
    learner: GTPLearnerConfig = Field(
        default_factory=GTPLearnerConfig, description="Optimisation and targets."
    )

    @model_validator(mode="after")
    def _no_penalty_on_chunks(self) -> Self:
        if self.actor.chunk > 1 and self.learner.critic_penalty:
            raise ValueError(
                "critic_penalty compares actions of one step: got "
                f"{self.learner.critic_penalty} and actor.chunk={self.actor.chunk}, expected one "
                "of 0 and 1"
            )
        return self

    @model_validator(mode="after")
    def _playback_fits_chunk(self) -> Self:
        self.learner.playback.check(self.actor.chunk)
        return self

    @model_validator(mode="after")
    def _actions_take_no_minutes(self) -> Self:
        candidates = self.learner.eval_candidates or 1
        if self.critic is None and not isinstance(self.learner.deterministic_choice, ModeChoice):
            candidates = 1
        if self.actor.steps * candidates > MOST_JUMPS:
            raise ValueError(
                f"actor.steps * learner.eval_candidates must not exceed {MOST_JUMPS}, and is "
                f"{self.actor.steps * candidates}"
            )
        return self

    def fit_to_steps(self, history: int, chunk: int) -> Self:
        """Returns the config for data of some history and chunk, where it leaves them open, at 1.

        Args:
            history: m, observations in one of the data's.
            chunk: h, steps in one of its actions.

        Returns:
            The config itself if it says so already.

        Raises:
            DataError: If it says something else.

        Example:
            >>> from gtp_policy import GTPConfig
            >>> GTPConfig().fit_to_steps(history=1, chunk=4).actor.chunk
            4
        """
        actor = self.actor
        for name, own, there in (
            ("history", actor.history, history),
            ("chunk", actor.chunk, chunk),
        ):
            if own not in (1, there):
                method = "with_chunks" if name == "chunk" else "with_history"
                raise DataError(
                    f"`{name}` of the dataset is not the config's: got {there}, expected {own}. "
                    f"Train on dataset.{method}({own}), or leave actor.{name} at 1."
                )
        if (actor.history, actor.chunk) == (history, chunk):
            return self
        return self.replace(actor=actor.replace(history=history, chunk=chunk))

    def fit_to_observations(self, layout: ObservationLayout, images: tuple[str, ...]) -> Self:
        """Returns the config with an encoder that knows the parts of an observation.

        Args:
            layout: Its parts.
            images: Keys of those that are images.

        Returns:
            The config itself without an encoder, or with one that knows them.

        Raises:
            DataError: If there are no images to encode, or others.

        Example:
            >>> from gtp_policy import GTPConfig, ObservationLayout
            >>> from gtp_policy.encoders import ImpalaEncoderConfig
            >>> config = GTPConfig(encoder=ImpalaEncoderConfig())
            >>> config.fit_to_observations(ObservationLayout((8, 8, 3)), ("",)).encoder.parts
            (ObservationPart(shape=(8, 8, 3), image=True),)
        """
        if self.encoder is None:
            return self
        return self.replace(encoder=self.encoder.fit_to(layout, images))

    def fit_to_actions(self, data: ActionData) -> Self:
        """Returns the config with what the actor leaves open measured from a dataset's actions.

        Their statistics if ``learner.normalize_actions``, ``sigma_data`` if not.

        Args:
            data: What measures them, an `OfflineDataset` or the like.

        Returns:
            The config itself if nothing was open.

        Example:
            >>> from gtp_policy import GTPConfig, GTPLearnerConfig, OfflineDataset
            >>> dataset = OfflineDataset.from_arrays(
            ...     obs=[[0.0], [0.0]], action=[[0.75], [0.25]], reward=[0.0, 0.0],
            ...     terminated=[1, 1], truncated=[0, 0], low=[-1.0], high=[1.0])
            >>> plain = GTPConfig(learner=GTPLearnerConfig(normalize_actions=False))
            >>> plain.fit_to_actions(dataset).actor.sigma_data
            0.25
            >>> config = GTPConfig(learner=GTPLearnerConfig(normalize_actions=True))
            >>> config.fit_to_actions(dataset).actor.action_statistics
            ActionStatistics(mean=(0.5,), std=(0.25,))
        """
        actor = self.actor
        if self.learner.normalize_actions:
            if actor.action_statistics is None:
                statistics = ActionStatistics.of(*data.action_statistics())
                return self.replace(actor=actor.replace(action_statistics=statistics))
        elif actor.sigma_data is None:
            # All actions equal gives std 0, which no preconditioning survives.
            return self.replace(actor=actor.replace(sigma_data=max(data.action_std(), 0.01)))
        return self

    def with_gamma(self, gamma: float) -> Self:
        """Returns the config with the discount factor that its open choices go by, if it has none.

        Args:
            gamma: Discount factor of the data.

        Returns:
            The config itself if it names one.

        Example:
            >>> from gtp_policy import GTPConfig
            >>> GTPConfig().with_gamma(0.9).learner.gamma
            0.9
        """
        if self.learner.gamma is not None:
            return self
        return self.replace(learner=self.learner.replace(gamma=float(gamma)))

    def cap_curriculum(self, *, stacklevel: int = 2) -> Self:
        """Returns the config with a curriculum that the length of the run allows.

        Warns if the curriculum's ``end`` was set by hand; the default's fineness is no choice, and
        off the grid it is of no effect.

        Args:
            stacklevel: Whose line the warning shows; 2 is the caller's.

        Returns:
            The config itself if nothing had to change.

        Example:
            >>> from gtp_policy import GTPConfig, GTPLearnerConfig
            >>> short = GTPConfig(learner=GTPLearnerConfig(total_updates=20_000))
            >>> short.cap_curriculum().loss.curriculum.end
            640
        """
        curriculum, run = self.loss.curriculum, self.learner
        capped = curriculum.capped(run.total_updates, run.actor_rate)
        if capped == curriculum:
            return self
        if "end" in curriculum.model_fields_set and self.loss.u_rule != "between":
            warnings.warn(
                f"The curriculum is too fine for the run: end={curriculum.end} is capped to "
                f"{capped.end} for total_updates={run.total_updates} and ema_rate="
                f"{run.actor_rate}. Train longer, or raise ema_rate.",
                stacklevel=stacklevel,
            )
        return self.replace(loss=self.loss.replace(curriculum=capped))
