"""The one kind of error that experiments add to the core's."""

from gtp_policy.errors import GTPError


class ExperimentError(GTPError, ValueError):
    """An experiment that cannot be run as requested: its environment, its folder or its command.

    Example:
        >>> from gtp_experiments import ExperimentError
        >>> issubclass(ExperimentError, ValueError)
        True
    """
