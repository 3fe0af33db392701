"""Typed errors. Each message says what is wrong, what was got, what was expected, what to do."""

import numpy as np


class GTPRuntimeError(Exception):
    """The root of all errors that gtp-policy-runtime raises itself.

    Example:
        >>> from gtp_runtime.errors import ObservationError, GTPRuntimeError
        >>> issubclass(ObservationError, GTPRuntimeError)
        True
    """


class PolicyFileError(GTPRuntimeError, ValueError):
    """A file that is no policy file: foreign, damaged, too large, or with content that is refused.

    Example:
        >>> from gtp_runtime import Policy
        >>> Policy.load(b"no model")
        Traceback (most recent call last):
        ...
        gtp_runtime.errors.PolicyFileError: The policy file cannot be read: got a field of wire \
type 6, expected an ONNX model that gtp_policy.export wrote.
    """


class NewerFormatError(PolicyFileError):
    """A policy file of a later format than this release reads; the message names who wrote it.

    Example:
        >>> from gtp_runtime.errors import NewerFormatError, PolicyFileError
        >>> issubclass(NewerFormatError, PolicyFileError)
        True
    """


class ObservationError(GTPRuntimeError, ValueError):
    """An observation of the wrong structure, shape, type or range, or with NaN or infinity.

    Example:
        >>> from gtp_runtime.errors import ObservationError
        >>> issubclass(ObservationError, ValueError)
        True
    """


class NoiseError(GTPRuntimeError, ValueError):
    """A noise, a seed or a wish for a deterministic action that the file does not allow.

    Example:
        >>> from gtp_runtime.errors import NoiseError
        >>> issubclass(NoiseError, ValueError)
        True
    """


class ActionError(GTPRuntimeError, ArithmeticError):
    """The file's graph gave no finite action for a finite observation.

    Example:
        >>> from gtp_runtime.errors import ActionError
        >>> issubclass(ActionError, ArithmeticError)
        True
    """


class LatencyError(GTPRuntimeError, TimeoutError):
    """An action that was not there at its deadline.

    Args:
        message: What is wrong.
        deadline: Seconds that the action had.
        fallback: What `Watchdog` would have returned; None before the first action.

    Example:
        >>> from gtp_runtime.errors import LatencyError
        >>> LatencyError("late", deadline=0.01, fallback=None).deadline
        0.01
    """

    def __init__(self, message: str, *, deadline: float, fallback: np.ndarray | None) -> None:
        super().__init__(message)
        self.deadline = deadline
        self.fallback = fallback


class MissingDependencyError(GTPRuntimeError, ImportError):
    """An optional package is not installed; names the extra that brings it.

    Example:
        >>> from gtp_runtime.errors import MissingDependencyError
        >>> issubclass(MissingDependencyError, ImportError)
        True
    """
