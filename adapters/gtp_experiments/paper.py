"""The paper's figures, shown next to those of a run in a separate column.

Measured by its authors on D4RL's files, five seeds; never mixed with figures of this package.
Source: Feng et al., "Offline Reinforcement Learning with Generative Trajectory Policies",
https://arxiv.org/abs/2510.11499, the tables on D4RL and the ablation on hopper-medium-expert.
"""

from collections.abc import Mapping
from types import MappingProxyType

_LOCOMOTION = [
    f"{body}-{data}"
    for data in ("medium", "medium-replay", "medium-expert")
    for body in ("halfcheetah", "hopper", "walker2d")
]
_MAZES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
_ANTMAZE = [f"antmaze-{maze}" for maze in _MAZES]
_GTP = (53.9, 90.3, 89.5, 50.8, 101.7, 94.2, 93.8, 112.2, 114.2)
_GTP_MAZE = (100.0, 81.9, 83.3, 94.2, 53.5, 71.0)
_BC = (48.6, 83.7, 77.1, 46.3, 100.5, 83.4, 91.3, 109.6, 100.2)
_BC_MAZE = (84.2, 79.2, 74.4, 85.0, 34.4, 40.8)

PAPER: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        (task, method): f"{score:.1f}"
        for method, scores in (("gtp", (*_GTP, *_GTP_MAZE)), ("gtp_bc", (*_BC, *_BC_MAZE)))
        for task, score in zip((*_LOCOMOTION, *_ANTMAZE), scores, strict=True)
    }
    | {
        ("hopper-medium-expert", method): score
        for method, score in (
            ("gtp", "112.2 ± 0.6"),
            ("gtp_solver", "99.7 ± 1.7"),
            ("shortcut", "76.1"),
            ("mean_flow", "diverged"),
            ("gtp_linear_q 0.01", "111.4"),
            ("gtp_linear_q 0.1", "diverged"),
        )
    }
)
"""Normalised scores of the paper by (task, method)."""
