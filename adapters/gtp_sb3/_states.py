"""States of networks and optimisers, taken over as a whole or not at all."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gtp_policy.errors import FOREIGN_STATE_ERRORS, GTPError, StateMismatchError
from gtp_policy.spaces import check_numbers


@contextlib.contextmanager
def whole_or_nothing(
    policy: Any,  # noqa: ANN401 - a GTPPolicy: its module imports this one
    *targets: nn.Module | torch.optim.Optimizer,
) -> Iterator[None]:
    """Puts parts of a policy back to what they were if they do not take over what they are given.

    Torch finds what does not fit after it has written the rest.

    Raises:
        StateMismatchError: If they do not.
    """
    before = [(target, copy.deepcopy(target.state_dict())) for target in targets]
    were_given = policy.scales_are_given
    try:
        yield
        check_numbers(policy)
    except BaseException as error:
        for target, state in before:
            if isinstance(target, nn.Module):
                nn.Module.load_state_dict(target, state)
            else:
                target.load_state_dict(state)
        policy.scales_are_given = were_given
        if isinstance(error, GTPError) or not isinstance(error, FOREIGN_STATE_ERRORS):
            raise
        raise StateMismatchError(
            f"The parameters do not fit: got {type(error).__name__} ({error}), expected what "
            "state_dict() or get_parameters() of such a model returned."
        ) from error
