"""Statistics of actions that no two dimensions share, for actors of any number of dimensions."""

from gtp_policy.actor import ActionStatistics


def spread_apart(actions: int) -> ActionStatistics:
    """Means fall from 0.9 and stay above -0.9, standard deviations from 0.4."""
    places = range(actions)
    return ActionStatistics(
        mean=tuple(0.9 - 1.8 * i / actions for i in places),
        std=tuple(0.4 / (i + 1) for i in places),
    )
