"""The kinds of errors that experiments add to the core's."""

from gtp_policy.errors import GTPError


class ExperimentError(GTPError, ValueError):
    """An experiment that cannot be run as requested: its environment, its folder or its command.

    Example:
        >>> from gtp_experiments import ExperimentError
        >>> issubclass(ExperimentError, ValueError)
        True
    """


class InUseError(ExperimentError):
    """A run in whose folder another process works at this moment.

    Example:
        >>> from gtp_experiments import ExperimentError, InUseError
        >>> issubclass(InUseError, ExperimentError)
        True
    """
