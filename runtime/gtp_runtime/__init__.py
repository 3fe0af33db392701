"""Policies of gtp-policy without torch: load a policy file, act, serve.

Example:
    >>> import numpy as np
    >>> from gtp_runtime import Policy, example_file
    >>> Policy.load(example_file()).act(np.zeros(3), deterministic=True).shape
    (1,)
"""

from pathlib import Path

from gtp_runtime._version import __version__ as __version__
from gtp_runtime.action_queue import ActionQueue
from gtp_runtime.document import Document, ObservationPart
from gtp_runtime.errors import (
    ActionError,
    GTPRuntimeError,
    LatencyError,
    MissingDependencyError,
    NewerFormatError,
    NoiseError,
    ObservationError,
    PolicyFileError,
)
from gtp_runtime.policy import Policy
from gtp_runtime.watchdog import Watchdog

__all__ = [
    "ActionError",
    "ActionQueue",
    "Document",
    "GTPRuntimeError",
    "LatencyError",
    "MissingDependencyError",
    "NewerFormatError",
    "NoiseError",
    "ObservationError",
    "ObservationPart",
    "Policy",
    "PolicyFileError",
    "Watchdog",
    "example_file",
]


def example_file() -> Path:
    """Returns the path of a small policy file that comes with the package.

    An untrained policy from observations of shape (3,) to actions of shape (1,) in [-2, 2], to try
    things with.

    Returns:
        The path.

    Example:
        >>> from gtp_runtime import example_file
        >>> example_file().name
        'example.onnx'
    """
    return Path(__file__).with_name("example.onnx")
