"""Tasks by name: what an evaluation is scored by, and on which scale."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from gtp_datasets import D4RL_REFERENCE, ReferenceScores

Figure = Literal["return", "success"]
"""What an episode counts with: its return, or whether it reached its goal (0 or 1)."""


class Task(NamedTuple):
    """How evaluations of a task are scored.

    Attributes:
        reference: The values that score 0 and 100, with their source.
        scored_by: What has these values.

    Example:
        >>> from gtp_experiments import TASKS
        >>> TASKS["cube-single"].scored_by
        'success'
    """

    reference: ReferenceScores
    scored_by: Figure = "return"


_SUCCESS = Task(ReferenceScores(0.0, 1.0, "share of successful episodes"), "success")
_PENDULUM = ReferenceScores(
    -1206.8,
    -146.3,
    "random actions and a swing-up by energy, 1000 episodes each (benchmarks.pendulum_data)",
)

TASKS: Mapping[str, Task] = MappingProxyType(
    {name: Task(reference) for name, reference in D4RL_REFERENCE.items()}
    | dict.fromkeys(("pointmaze", "cube-single", "cube-double", "scene"), _SUCCESS)
    | dict.fromkeys(("metaworld-pick-place", "metaworld-door-open"), _SUCCESS)
    | {"pendulum": Task(_PENDULUM)}
)
"""Tasks by the names that theirs begin with: D4RL's, mazes', OGBench's, Meta-World's, Pendulum."""


def task_of(name: str) -> Task | None:
    """Finds the task that a name stands for.

    Args:
        name: A key of `TASKS`, possibly followed by a hyphen and what the data are, as in
            ``hopper-medium``.

    Returns:
        The task with the longest fitting key; None if none fits.

    Example:
        >>> from gtp_experiments.tasks import task_of
        >>> task_of("antmaze-umaze").reference.source, task_of("chess")
        ('D4RL antmaze', None)
    """
    fitting = [key for key in TASKS if name == key or name.startswith(f"{key}-")]
    return TASKS[max(fitting, key=len)] if fitting else None
