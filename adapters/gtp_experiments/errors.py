"""The one kind of error that experiments add to the core's."""

import difflib
from collections.abc import Iterable

from gtp_policy.errors import GTPError


class ExperimentError(GTPError, ValueError):
    """An experiment that cannot be run as requested: its environment, its folder or its command.

    Example:
        >>> from gtp_experiments import ExperimentError
        >>> issubclass(ExperimentError, ValueError)
        True
    """


def suggestion(word: str, known: Iterable[str]) -> str:
    """Returns a sentence with the known word that is most like a misspelt one.

    Args:
        word: What was given.
        known: What there is.

    Returns:
        The sentence with a space before it; empty if nothing is alike.

    Example:
        >>> from gtp_experiments.errors import suggestion
        >>> suggestion("actor_rl", ["actor_lr", "critic_lr"])
        ' Did you mean actor_lr?'
    """
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""
