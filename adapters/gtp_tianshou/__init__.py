"""GTP in Tianshou 2.x: a policy, an offline algorithm, buffers, and the high-level builder.

`GTPPolicy` and `GTP` stand where ``ContinuousDeterministicPolicy`` and ``TD3BC`` stand: the stock
trainer, collectors, loggers, optimiser factories and checkpoints work unchanged.
``gtp_tianshou.highlevel`` and ``gtp_tianshou.experiment`` hold what the high-level API needs, and
are imported only by name.

Needs the extra ``tianshou``.
"""

from gtp_policy.errors import MissingDependencyError, how_to_install

try:
    import tianshou  # noqa: F401 (imported to see that it is there)
except ImportError as error:
    raise MissingDependencyError(
        f"gtp_tianshou needs {error.name}: got no installed package of that name, expected the "
        f"extra `tianshou`. {how_to_install('tianshou')}"
    ) from error

from gtp_tianshou.algorithm import GTP
from gtp_tianshou.buffers import (
    buffer_from_d4rl,
    buffer_from_dataset,
    buffer_from_minari,
    dataset_from_buffer,
)
from gtp_tianshou.policy import GTPPolicy
from gtp_tianshou.stats import GTPTrainingStats

__all__ = [
    "GTP",
    "GTPPolicy",
    "GTPTrainingStats",
    "buffer_from_d4rl",
    "buffer_from_dataset",
    "buffer_from_minari",
    "dataset_from_buffer",
]
