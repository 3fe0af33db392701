"""Whether a learner is whole: a change of its state ends well, or the learner says that it did not.

An update steps one network after the other, in place. To be able to take half an update back, every
parameter and moment would have to be copied before each one, which takes as long as the update.
So a learner is marked while it is being changed, and the mark stays if the change does not end.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gtp_policy.algorithm import Learner
from gtp_policy.errors import BrokenLearnerError


@contextmanager
def changing(learners: Sequence[Learner]) -> Iterator[None]:
    """Marks learners while the block changes them; an exception leaves them marked.

    Yields:
        Nothing.
    """
    for learner in learners:
        learner.broken = "a change that is going on"
    try:
        yield
    except BaseException as error:
        reason = f"{type(error).__name__} in the middle of update {learners[0].updates}"
        for learner in learners:
            learner.broken = reason
        raise
    for learner in learners:
        learner.broken = None


def check_whole(learners: Sequence[Learner]) -> None:
    """Raises unless every learner is whole."""
    for learner in learners:
        if learner.broken is not None:
            raise BrokenLearnerError(
                f"The learner is neither before nor after an update: got {learner.broken}, "
                "expected a state that is whole. Go on from a checkpoint: restore_(learner, path), "
                "or learner.load_state_dict."
            )
