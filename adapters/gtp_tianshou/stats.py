"""What an update reports to Tianshou's trainers and loggers."""

from dataclasses import field, make_dataclass
from typing import Any

from tianshou.algorithm.algorithm_base import TrainingStats

from gtp_policy import UpdateMetrics

# One field per metric of the core, optional where it is there.
_Fields: Any = make_dataclass(
    "_Fields",
    [
        *(
            (name, float | None, field(default=None))
            if name in UpdateMetrics._field_defaults
            else (name, float)
            for name in UpdateMetrics._fields
        ),
        ("ms_per_update", float),
    ],
    bases=(TrainingStats,),
    kw_only=True,
)


class GTPTrainingStats(_Fields):
    """The metrics of an update as floats; what was not computed is None, and not logged.

    Fetching them is the only transfer from the device, so `GTP` does it once in ``log_every``
    updates; in between, the numbers of the last such update stand.

    Each metric of the core's `UpdateMetrics`, which describes them, is a field of the same name.

    Args:
        train_time: Seconds that this update took on the host, set by Tianshou.
        smoothed_loss: Moving averages, set by Tianshou's trainer.
        ms_per_update: Mean milliseconds of an update since the numbers were fetched last, without
            sampling the batch.

    Example:
        >>> from gtp_tianshou import GTPTrainingStats
        >>> stats = GTPTrainingStats(actor_loss=1.0, consistency=0.5, flow=0.5,
        ...                          actor_grad_norm=2.0, ms_per_update=3.0)
        >>> sorted(stats.get_loss_stats_dict())
        ['actor_grad_norm', 'actor_loss', 'consistency', 'flow', 'ms_per_update']
    """
