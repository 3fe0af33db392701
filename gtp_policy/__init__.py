"""Generative Trajectory Policies: offline reinforcement learning with a learned flow map.

A policy is one function, the flow map ``x_s = actor(obs, x_t, t, s)``. It moves a noisy action from
any time t to any earlier time s: one jump from noise to action, or several for quality.

The files in the order of the paper: ``times``, ``functional``, ``actor``, ``loss``, ``learner``.
"""

import importlib
import warnings

from gtp_policy._config import Config
from gtp_policy._version import __version__
from gtp_policy.acting import act
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
    QuantileBaseline,
)
from gtp_policy.dataset import OfflineDataset
from gtp_policy.functional import FlowMap
from gtp_policy.guidance import (
    AdvantageGuidance,
    AdvantageWeighter,
    AdvantageWeighterConfig,
    LinearQGuidance,
    NoGuidance,
)
from gtp_policy.learner import GTPLearner
from gtp_policy.loss import GTPLoss, GTPLossConfig
from gtp_policy.metrics import UpdateMetrics
from gtp_policy.multi_seed import MultiSeedLearner
from gtp_policy.spaces import ActionScaler, ObservationLayout
from gtp_policy.times import Curriculum
from gtp_policy.transitions import Transitions

__all__ = [
    "ActionScaler",
    "AdvantageGuidance",
    "AdvantageWeighter",
    "AdvantageWeighterConfig",
    "Checkpoint",
    "CheckpointFolder",
    "CheckpointInfo",
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
    "LinearQGuidance",
    "MultiSeedLearner",
    "NoGuidance",
    "ObservationLayout",
    "OfflineDataset",
    "PolicyBaseline",
    "QEnsemble",
    "QEnsembleConfig",
    "QuantileBaseline",
    "StopSignal",
    "Transitions",
    "UpdateMetrics",
    "__version__",
    "act",
    "latest_valid",
    "load_checkpoint",
    "read_metadata",
    "restore_",
    "save_checkpoint",
]

# Names that stood here until 0.1, by the module that has them. They keep working for one release.
_MOVED = {
    "ArgmaxChoice": "acting",
    "Choice": "acting",
    "SoftmaxChoice": "acting",
    "ValueNetwork": "critic",
    "OfflineDatasetBuilder": "dataset_builder",
    "Guidance": "guidance",
    "GTPLossTerms": "loss",
    "GTPResiduals": "loss",
    "gtp_residuals": "loss",
    "spread_ratio": "metrics",
    "LinearReward": "rewards",
    "ReturnRangeReward": "rewards",
    "RewardTransform": "rewards",
    "StandardizedReward": "rewards",
    "JumpSampler": "samplers",
    "OdeSampler": "samplers",
    "Sampler": "samplers",
    "ObservationNormalizer": "spaces",
    "JvpTeacher": "teachers",
    "NoTeacher": "teachers",
    "OdeTeacher": "teachers",
    "SelfTeacher": "teachers",
    "SurrogateTeacher": "teachers",
    "Teacher": "teachers",
    "KarrasTimes": "times",
    "LinearTimes": "times",
    "LogNormalIndex": "times",
    "TimeSchedule": "times",
    "Times": "times",
    "UniformIndex": "times",
    "UniformTimes": "times",
    "draw_times": "times",
}


def __getattr__(name: str) -> object:
    if name not in _MOVED:
        raise AttributeError(f"module 'gtp_policy' has no attribute {name!r}")
    module = f"gtp_policy.{_MOVED[name]}"
    warnings.warn(
        f"`gtp_policy.{name}` has moved: write `from {module} import {name}`.",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(importlib.import_module(module), name)
