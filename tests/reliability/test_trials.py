"""Every trial of the scorecard at its count per pull request."""

import os
from typing import Any

import pytest

from tests.reliability import registry

# Trials that kill processes share the server that forks them, and with it one test process.
KILLING = {"A1", "A2", "A5", "B2"}
SLOW = {"A1", "A2", "A3", "A6", "A7", "B1", "B2", "B6", "B7", "C2", "C4", "C5", "E1", "L1"}


# What is known not to hold yet, and why.
OPEN: dict[str, str] = {}


def trial(name: str) -> Any:
    marks = [pytest.mark.xdist_group("killing")] if name in KILLING else []
    if name in OPEN:
        marks += [pytest.mark.xfail(reason=OPEN[name], strict=False), pytest.mark.global_rng]
    return pytest.param(name, marks=[*marks, pytest.mark.slow] if name in SLOW else marks)


@pytest.mark.filterwarnings("ignore:The curriculum is too fine", "ignore:`torch.jit.script`")
@pytest.mark.parametrize("name", [trial(name) for name in registry.TRIALS])
def test_a_trial_passes(name: str) -> None:
    if name in KILLING and os.name != "posix":
        pytest.skip("kill -9, forks and named pipes are of POSIX systems")
    outcome = registry.run(name, release=False)
    assert outcome.failures == []
    assert outcome.count >= (registry.TRIALS[name].pull_request or 1)
