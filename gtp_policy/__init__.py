"""Generative Trajectory Policies: offline reinforcement learning with a learned flow map.

A policy is one function, the flow map ``x_s = actor(obs, x_t, t, s)``. It moves a noisy action from
any time t to any earlier time s: one jump from noise to action, or several for quality.

The files in the order of the paper: ``times``, ``functional``, ``actor``, ``loss``, ``learner``.
"""

from gtp_policy._config import Config
from gtp_policy._version import __version__
from gtp_policy.acting import ArgmaxChoice, Choice, SoftmaxChoice, act
from gtp_policy.actor import FlowMapActor, FlowMapActorConfig
from gtp_policy.checkpoint import (
    Checkpoint,
    CheckpointFolder,
    CheckpointInfo,
    StopSignal,
    latest_valid,
    load_checkpoint,
    read_metadata,
    restore_,
    save_checkpoint,
)
from gtp_policy.config import GTPConfig, GTPLearnerConfig
from gtp_policy.critic import (
    ExpectileBaseline,
    PolicyBaseline,
    QEnsemble,
    QEnsembleConfig,
    ValueNetwork,
)
from gtp_policy.dataset import OfflineDataset
from gtp_policy.dataset_builder import OfflineDatasetBuilder
from gtp_policy.functional import FlowMap
from gtp_policy.guidance import AdvantageGuidance, Guidance, LinearQGuidance, NoGuidance
from gtp_policy.learner import GTPLearner
from gtp_policy.loss import GTPLoss, GTPLossConfig, GTPLossTerms, GTPResiduals, gtp_residuals
from gtp_policy.metrics import UpdateMetrics, spread_ratio
from gtp_policy.multi_seed import MultiSeedLearner
from gtp_policy.rewards import (
    LinearReward,
    ReturnRangeReward,
    RewardTransform,
    StandardizedReward,
)
from gtp_policy.samplers import JumpSampler, OdeSampler, Sampler
from gtp_policy.spaces import ActionScaler, ObservationLayout, ObservationNormalizer
from gtp_policy.teachers import (
    JvpTeacher,
    NoTeacher,
    OdeTeacher,
    SelfTeacher,
    SurrogateTeacher,
    Teacher,
)
from gtp_policy.times import (
    Curriculum,
    KarrasTimes,
    LinearTimes,
    LogNormalIndex,
    Times,
    TimeSchedule,
    UniformIndex,
    UniformTimes,
    draw_times,
)
from gtp_policy.transitions import Transitions
from gtp_policy.weighting import AdvantageWeighter, AdvantageWeighterConfig

__all__ = [
    "ActionScaler",
    "AdvantageGuidance",
    "AdvantageWeighter",
    "AdvantageWeighterConfig",
    "ArgmaxChoice",
    "Checkpoint",
    "CheckpointFolder",
    "CheckpointInfo",
    "Choice",
    "Config",
    "Curriculum",
    "ExpectileBaseline",
    "FlowMap",
    "FlowMapActor",
    "FlowMapActorConfig",
    "GTPConfig",
    "GTPLearner",
    "GTPLearnerConfig",
    "GTPLoss",
    "GTPLossConfig",
    "GTPLossTerms",
    "GTPResiduals",
    "Guidance",
    "JumpSampler",
    "JvpTeacher",
    "KarrasTimes",
    "LinearQGuidance",
    "LinearReward",
    "LinearTimes",
    "LogNormalIndex",
    "MultiSeedLearner",
    "NoGuidance",
    "NoTeacher",
    "ObservationLayout",
    "ObservationNormalizer",
    "OdeSampler",
    "OdeTeacher",
    "OfflineDataset",
    "OfflineDatasetBuilder",
    "PolicyBaseline",
    "QEnsemble",
    "QEnsembleConfig",
    "ReturnRangeReward",
    "RewardTransform",
    "Sampler",
    "SelfTeacher",
    "SoftmaxChoice",
    "StandardizedReward",
    "StopSignal",
    "SurrogateTeacher",
    "Teacher",
    "TimeSchedule",
    "Times",
    "Transitions",
    "UniformIndex",
    "UniformTimes",
    "UpdateMetrics",
    "ValueNetwork",
    "__version__",
    "act",
    "draw_times",
    "gtp_residuals",
    "latest_valid",
    "load_checkpoint",
    "read_metadata",
    "restore_",
    "save_checkpoint",
    "spread_ratio",
]
