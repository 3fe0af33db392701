"""What one experiment is: data, reward, policy and evaluation, all visible in one JSON document."""

import hashlib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from gtp_datasets import ReferenceScores
from gtp_experiments.tasks import TASKS, Figure, task_of
from gtp_policy import (
    AdvantageWeighterConfig,
    Config,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    GTPLossConfig,
    LinearQGuidance,
    OfflineDataset,
    QEnsembleConfig,
)
from gtp_policy.acting import ArgmaxChoice, Choice
from gtp_policy.errors import suggestion
from gtp_policy.rewards import LinearReward, RewardTransform
from gtp_policy.times import LinearTimes

Count = Annotated[int, Field(strict=True, ge=1)]
Bounds = float | tuple[float, ...]
# Fields of an experiment that came later: at these values they change no name.
_AT_FIRST = {
    "best_episodes": None,
    "return_weighting": 0.0,
    "n_step": 1,
    "low": None,
    "high": None,
    "out_of_bounds": "error",
}
# Fields of earlier versions, with the values at which they have no effect. Records that hold them
# stay readable, and they stay part of the digest, so that runs keep their names.
_GONE = {"advantage_noise": 0.0, "advantage_bias": 0.0}


def _whole_text(value: str | None) -> str | None:
    """Refuses half a character: of a name that is not UTF-8, or in a record of somebody else's."""
    try:
        (value or "").encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be text that UTF-8 can hold; rename what is called so") from error
    return value


class EvaluationConfig(Config):
    """How often and where a policy is tried.

    Example:
        >>> from gtp_experiments import EvaluationConfig
        >>> EvaluationConfig(environment="Hopper-v4", episodes=10).every
        10000
    """

    environment: str | None = Field(
        default=None,
        description="An id of gymnasium, or module:function with a function that builds the "
        "environment. None: the dataset's own, by its id.",
    )
    every: Count = Field(
        default=10_000, description="Updates between evaluations; one more at the end."
    )
    episodes: Count = Field(default=10, description="Episodes per evaluation.")
    parallel: Count = Field(
        default=20,
        description="Environments that are open at a time, at most as many as the function that "
        "builds them has different ones; the noise of actions depends on it.",
    )
    max_steps: Count | None = Field(
        default=None, description="Cuts longer episodes; None: the environment's own limit alone."
    )
    steps: Count | None = Field(default=None, description="K at evaluation; None: the actor's.")
    candidates: Count = Field(
        default=1, description="Actions to draw and let the target critic choose."
    )
    choice: Choice = Field(
        default_factory=ArgmaxChoice,
        description="How one of several candidates is chosen; the policy's learner.choice is for "
        "those who use it afterwards.",
    )
    deterministic: bool = Field(
        default=False,
        strict=True,
        description="Whether the policy acts deterministically, as `GTPLearner.act` does, with one "
        "candidate here; else its actions are sampled.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        strict=True,
        description="Together with the run's seed and update: the starts.",
    )

    _text = field_validator("environment")(_whole_text)

    @model_validator(mode="after")
    def _one_way_to_choose(self, info: ValidationInfo) -> Self:
        chooses = self.choice != ArgmaxChoice()
        # Earlier versions took such a choice, and did not look at it: a record, which has a
        # context, may hold one.
        if chooses and info.context is None and (self.deterministic or self.candidates < 2):
            raise ValueError(
                f"choice says how one of several candidates is chosen: got {self.choice.kind} with "
                f"candidates={self.candidates}{' and deterministic' * self.deterministic}, "
                "expected candidates of 2 or more that are sampled. Set candidates, leave choice "
                "out, or for deterministic actions set the policy's learner.deterministic_choice"
            )
        if self.deterministic and self.candidates > 1:
            raise ValueError(
                "deterministic actions have their own candidates (learner.eval_candidates): leave "
                "candidates at 1"
            )
        return self


# Fields that came after runs had been published. Where they are what was done
# before, they are left out of the digest, so that older runs keep their names.
_ADDED_LATER: dict[type[Config], tuple[str, ...]] = {
    EvaluationConfig: ("deterministic",),
    GTPConfig: ("encoder",),
    FlowMapActorConfig: ("embedding", "action_statistics", "history", "chunk"),
    LinearTimes: ("rho",),
    QEnsembleConfig: ("activation", "reduction", "rho"),
    GTPLearnerConfig: (
        "normalize_actions",
        "backup",
        "critic_penalty",
        "critic_updates",
        "advantage",
        "gamma",
        "deterministic_choice",
        "playback",
    ),
    AdvantageWeighterConfig: ("signed", "effective_share"),
    LinearQGuidance: ("weighted",),
    GTPLossConfig: (
        "inner",
        "map_share",
        "flow_times",
        "units",
        "adaptive_power",
        "adaptive_constant",
        "adaptive_flow",
    ),
}


def _unset(config: Config) -> dict[str, Any]:
    """Returns what pydantic should exclude of a config and of those inside it."""
    exclude: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        later = _ADDED_LATER.get(type(config), getattr(config, "added_later", ()))
        default = field.get_default(call_default_factory=True)
        if name in later and value == config.before.get(name, default):
            exclude[name] = True
        elif isinstance(value, Config) and (inside := _unset(value)):
            exclude[name] = inside
    return exclude


class ExperimentConfig(Config):
    """What experiments of every method share: data, length and evaluation.

    Raises:
        pydantic.ValidationError: If a field is unknown or out of range, or ``task`` has no
            reference scores.

    Example:
        >>> from gtp_experiments import ExperimentConfig
        >>> ExperimentConfig(
        ...     dataset="mujoco/hopper/medium-v0", task="hopper-medium", method="mine", updates=10
        ... ).reference.source
        'D4RL hopper'
    """

    added_later: ClassVar[tuple[str, ...]] = ()
    """Fields that came after runs had been published: at their defaults they change no name."""

    dataset: str = Field(
        min_length=1,
        description="Id of a Minari dataset, or path of a file: HDF5 in D4RL's layout, or npz in "
        "OGBench's with rewards and masks.",
    )
    data_note: str = Field(
        default="", description="Where the data comes from, in words, for tables."
    )
    task: str | None = Field(
        default=None,
        description="Name of the task in D4RL's manner, e.g. hopper-medium: brings the reference "
        "scores and the paper's figure, and whether returns or successes are scored. None: returns "
        "stay as they are.",
    )
    low: Bounds | None = Field(
        default=None,
        description="Lower bounds of the actions, one number or one per dimension. None: those "
        "that the dataset has; of a file, which has none, those of the environment that evaluation "
        "names, or -1.",
    )
    high: Bounds | None = Field(default=None, description="Upper bounds, likewise, or 1.")
    out_of_bounds: Literal["error", "clip"] = Field(
        default="error",
        description="Whether actions of the dataset outside their bounds raise or are clipped.",
    )
    gamma: float = Field(default=0.99, ge=0, le=1, description="Discount factor.")
    reward: RewardTransform = Field(
        default_factory=LinearReward, description="Done to the rewards before training."
    )
    best_episodes: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of the episodes to train on, those with the highest returns: cloning "
        "them is X % BC. None: all.",
    )
    return_weighting: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="How much more often episodes of high returns are trained on, see "
        "OfflineDataset.with_return_weighting. 0: all alike.",
    )
    n_step: Count = Field(
        default=1,
        description="Steps of the data whose rewards a transition sums, see "
        "OfflineDataset.with_n_step.",
    )
    method: str = Field(min_length=1, description="What tables call the policy.")
    seed: int = Field(
        default=0,
        ge=0,
        strict=True,
        description="Of parameters, minibatches, updates and evaluations.",
    )
    updates: Count = Field(description="Length of the run.")
    batch_size: Count = Field(default=256, description="Transitions per update.")
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="How often and where the policy is tried."
    )
    log_every: Count = Field(
        default=1000, description="Updates between records of the training metrics."
    )
    checkpoint_every: Count = Field(default=10_000, description="Updates between checkpoints.")
    keep_checkpoints: Count = Field(
        default=2, description="How many of the newest stay on the disk."
    )
    threads: Count = Field(
        default=1, description="Threads of torch; sums in another order round apart."
    )
    device: str = Field(default="cpu", description="Where data and networks live.")

    _texts = field_validator("dataset", "data_note", "task", "method", "device")(_whole_text)

    @field_validator("device")
    @classmethod
    def _computes(cls, value: str) -> str:
        if value.startswith("meta"):
            raise ValueError("must be a device that computes; meta holds no numbers")
        return value

    @model_validator(mode="after")
    def _known_task(self) -> Self:
        if self.task is not None and task_of(self.task) is None:
            known, first = ", ".join(TASKS), self.task.split("-")[0]
            hint = suggestion(first, TASKS) or suggestion(self.task, TASKS)
            raise ValueError(f"task={self.task!r} must start with one of {known}.{hint}")
        return self

    @property
    def reference(self) -> ReferenceScores | None:
        """What scores 0 and 100, by ``task``."""
        task = None if self.task is None else task_of(self.task)
        return None if task is None else task.reference

    @property
    def scored_by(self) -> Figure:
        """What is scored, by ``task``: returns, or whether an episode reached its goal."""
        task = None if self.task is None else task_of(self.task)
        return "return" if task is None else task.scored_by

    @property
    def is_file(self) -> bool:
        """Whether ``dataset`` is the path of a file, not the id of a Minari dataset."""
        return self.dataset.lower().endswith((".hdf5", ".h5", ".npz"))

    @property
    def group(self) -> str:
        """Digest of every choice but the seed: a group's results are summarised together."""
        return hashlib.sha256(self._digested().encode()).hexdigest()[:8]

    def _digested(self) -> str:
        exclude = _unset(self)
        exclude |= {name: True for name, at in _AT_FIRST.items() if getattr(self, name) == at}
        # Older versions of pydantic warn of unions of which fields are left out, and write them.
        return self.replace(seed=0).model_dump_json(exclude=exclude, warnings=False)

    @property
    def name(self) -> str:
        """Name of the run's folder: readable, and another one for every other choice."""
        data = self.task or (Path(self.dataset).stem if self.is_file else self.dataset)
        words = (data, self.method, self.group, f"seed{self.seed}")
        return "_".join("".join(c if c.isalnum() else "-" for c in word) for word in words)


class RunConfig(ExperimentConfig):
    """An experiment with a generative trajectory policy: everything that decides its result.

    Raises:
        pydantic.ValidationError: If a field is unknown or out of range, or several candidates are
            to be chosen from without a critic.

    Example:
        >>> from gtp_experiments import RunConfig
        >>> config = RunConfig(dataset="mujoco/hopper/medium-v0", updates=1000, seed=3)
        >>> config.policy.learner.seed, config.policy.learner.total_updates
        (3, 1000)
        >>> RunConfig.model_validate_json(config.model_dump_json()) == config
        True
    """

    method: str = Field(default="gtp", min_length=1, description="What tables call the policy.")
    policy: GTPConfig = Field(
        default_factory=GTPConfig,
        description="Every choice of the policy and its training; its seed and total_updates are "
        "always set to those of the run.",
    )

    def build_learner(self, dataset: OfflineDataset) -> GTPLearner:
        """Builds what is trained. A subclass may build another learner from further fields.

        Args:
            dataset: The data of the experiment.

        Returns:
            The learner.
        """
        return GTPLearner.from_dataset(dataset, self.policy)

    @model_validator(mode="before")
    @classmethod
    def _without_gone_fields(cls, fields: Any) -> Any:  # noqa: ANN401 - whatever was given
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if (name, value) not in _GONE.items()}

    @field_validator("policy")
    @classmethod
    def _one_seed_and_length(cls, policy: GTPConfig, info: ValidationInfo) -> GTPConfig:
        if not {"seed", "updates"} <= info.data.keys():
            return policy  # they are wrong themselves, and the error will say so
        seed, updates = info.data["seed"], info.data["updates"]
        return policy.replace(learner=policy.learner.replace(seed=seed, total_updates=updates))

    def _digested(self) -> str:
        gone = {n: value for n, value in _GONE.items() if n not in type(self).model_fields}
        more = "".join(f',"{name}":{value}' for name, value in gone.items())
        return f"{super()._digested().removesuffix('}')}{more}}}"

    @model_validator(mode="after")
    def _critic_for_candidates(self) -> Self:
        if self.evaluation.candidates > 1 and self.policy.critic is None:
            raise ValueError("evaluation.candidates > 1 needs a critic, and policy.critic is None")
        return self

    @model_validator(mode="after")
    def _one_sum_of_rewards(self) -> Self:
        if self.n_step > 1 and self.policy.actor.chunk > 1:
            raise ValueError(
                f"a chunk sums the rewards of its own steps: got n_step={self.n_step} with "
                f"actor.chunk={self.policy.actor.chunk}, expected one of them to be 1. Leave "
                "n_step at 1"
            )
        return self
