"""Typed errors. Each message says what is wrong, what was got, what was expected, what to do.

A mistake in a config is a ``pydantic.ValidationError``, which already names field, rule and value.
Every other mistake is a `GTPError` that is also the built-in error one would expect.
"""

import difflib
from collections.abc import Iterable

# What torch and its optimisers raise on a state that is not one of theirs.
FOREIGN_STATE_ERRORS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


class GTPError(Exception):
    """The root of all errors that gtp-policy raises itself.

    Example:
        >>> from gtp_policy.errors import GTPError, ShapeError
        >>> issubclass(ShapeError, GTPError)
        True
    """


class ShapeError(GTPError, ValueError):
    """Two tensors disagree on a dimension, or one has the wrong rank.

    Example:
        >>> import torch
        >>> from gtp_policy.functional import td_target
        >>> td_target(torch.zeros(4), torch.zeros(4, 1), torch.zeros(4))
        Traceback (most recent call last):
        ...
        gtp_policy.errors.ShapeError: `discount` has the wrong shape: got (4, 1), expected (4,).
    """


class UnsupportedSpaceError(GTPError, TypeError):
    """An action or observation space that a flow-map policy cannot serve.

    Example:
        >>> from gtp_policy import ActionScaler
        >>> ActionScaler([-1.0], [float("inf")])
        Traceback (most recent call last):
        ...
        gtp_policy.errors.UnsupportedSpaceError: Action dimension 0 is unbounded: got low=-1.0, \
high=inf, expected finite bounds. Give the range of the data instead.
    """


class DataError(GTPError, ValueError):
    """A dataset field with a wrong length, dtype, rank, value or flag; names field and row.

    Example:
        >>> from gtp_policy.errors import DataError
        >>> issubclass(DataError, ValueError)
        True
    """


class EmptyDatasetError(DataError):
    """A dataset without a single transition.

    Example:
        >>> from gtp_policy.errors import DataError, EmptyDatasetError
        >>> issubclass(EmptyDatasetError, DataError)
        True
    """


class NonFiniteError(GTPError, ArithmeticError):
    """NaN or infinity where a number was needed: in advantages, losses or metrics.

    Example:
        >>> import torch
        >>> from gtp_policy import AdvantageWeighter
        >>> AdvantageWeighter()(torch.tensor([0.0, float("nan")]))
        Traceback (most recent call last):
        ...
        gtp_policy.errors.NonFiniteError: `advantage` is not finite: got nan at index 1 of 2, \
expected finite numbers. Look at the critic's loss and at the rewards.
    """


class StateMismatchError(GTPError, RuntimeError):
    """A saved state that was made with other choices than the object it is loaded into.

    Example:
        >>> from gtp_policy import FlowMapActor, FlowMapActorConfig
        >>> narrow = FlowMapActor(1, 1, FlowMapActorConfig(sigma_data=0.1))
        >>> narrow.load_state_dict(FlowMapActor(1, 1).state_dict())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        gtp_policy.errors.StateMismatchError: The parameters belong to another flow map: ...
    """


class BrokenLearnerError(GTPError, RuntimeError):
    """A learner whose last update ended half-way, by an error or by Ctrl-C.

    Some of its networks are a step further than others. It neither trains nor saves until a whole
    state is loaded into it.

    Example:
        >>> from gtp_policy.errors import BrokenLearnerError
        >>> issubclass(BrokenLearnerError, RuntimeError)
        True
    """


class DeviceError(GTPError, RuntimeError):
    """A device that has no memory left, or that another process has taken.

    Example:
        >>> from gtp_policy.errors import DeviceError
        >>> issubclass(DeviceError, RuntimeError)
        True
    """


class DistributedError(GTPError, RuntimeError):
    """Processes that share updates and have lost each other, or do not hold the same learner.

    Example:
        >>> from gtp_policy.errors import DistributedError
        >>> issubclass(DistributedError, RuntimeError)
        True
    """


class CheckpointError(GTPError, OSError):
    """A checkpoint that is missing, damaged, foreign or malicious, or that could not be written.

    Example:
        >>> from gtp_policy import load_checkpoint
        >>> load_checkpoint("nowhere")
        Traceback (most recent call last):
        ...
        gtp_policy.errors.CheckpointError: Checkpoint nowhere cannot be read: got no such file or \
directory, expected a directory or a zip file that save_checkpoint wrote.
    """


class PolicyFileError(GTPError, ValueError):
    """A policy file that this release cannot read: foreign, damaged, or of a later format.

    Example:
        >>> from gtp_policy.errors import PolicyFileError
        >>> issubclass(PolicyFileError, ValueError)
        True
    """


class ExportError(GTPError, RuntimeError):
    """A policy that cannot be exported so, or whose file does not act as the policy does.

    Example:
        >>> from gtp_policy.errors import ExportError
        >>> issubclass(ExportError, RuntimeError)
        True
    """


class MissingDependencyError(GTPError, ImportError):
    """An optional package is not installed; names the extra that brings it.

    Example:
        >>> from gtp_policy.errors import MissingDependencyError
        >>> issubclass(MissingDependencyError, ImportError)
        True
    """


class UnknownPresetError(GTPError, KeyError):
    """A name of a preset or task that there is not; the message lists those that there are.

    Example:
        >>> from gtp_policy import presets
        >>> presets.get("gpt")
        Traceback (most recent call last):
        ...
        gtp_policy.errors.UnknownPresetError: Unknown preset: got 'gpt', expected one of gtp, \
gtp_bc, paper_loss, one_step, gtp_solver, gtp_linear_q, paper, diffusion, flow_matching, \
consistency, ctm, shortcut, mean_flow. Did you mean gtp?
    """

    def __str__(self) -> str:
        """Returns the message itself: a KeyError would show it in quotes."""
        return Exception.__str__(self)


class TrainingWarning(UserWarning):
    """Training goes on, but its figures look like one of the known ways to fail.

    Example:
        >>> from gtp_policy.errors import TrainingWarning
        >>> issubclass(TrainingWarning, UserWarning)
        True
    """


def how_to_install(extra: str) -> str:
    """Returns a sentence that says how an extra of this package is installed.

    In a checkout, for as long as no package index has the package.

    Args:
        extra: Its name in ``pyproject.toml``.

    Returns:
        The sentence.

    Example:
        >>> from gtp_policy.errors import how_to_install
        >>> how_to_install("sb3")
        "In a checkout of gtp-policy, run: pip install '.[sb3]'"
    """
    return f"In a checkout of gtp-policy, run: pip install '.[{extra}]'"


def suggestion(word: str, known: Iterable[str]) -> str:
    """Returns a sentence with the known word that is most like a misspelt one.

    Args:
        word: What was given.
        known: What there is.

    Returns:
        The sentence with a space before it; empty if nothing is alike.

    Example:
        >>> from gtp_policy.errors import suggestion
        >>> suggestion("actor_rl", ["actor_lr", "critic_lr"])
        ' Did you mean actor_lr?'
    """
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""
