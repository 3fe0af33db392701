"""One place for what every test shares: threads, hypothesis profiles, seeds, the RNG guard."""

import os
import random
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# Small tensors gain nothing from more threads, and parallel test workers fight over the cores.
# `make test-cpus` looks at what two of them compute.
torch.set_num_threads(int(os.environ.get("GTP_TEST_THREADS", "1")))

# A case of the trials is given more than in the scorecard: tests are traced and share their cores.
os.environ.setdefault("TRIAL_SECONDS", "10")

# A shell ignores Ctrl-C for what runs behind it, and its children inherit that: tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

for name, max_examples in {"few": 5, "dev": 25, "ci": 100, "deep": 2000}.items():
    settings.register_profile(
        name,
        max_examples=max_examples,
        derandomize=True,  # a red test stays red until the code changes
        deadline=None,  # the first call of a torch operator is slower than the rest
        database=None,  # derandomised runs repeat themselves; a database would add a hidden input
        print_blob=True,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,  # the RNG guard below wraps the whole test
            HealthCheck.too_slow,  # torch's start-up is counted as data generation
        ],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


# Folders whose tests all belong to one tier, so that a new file cannot be left out of it.
TIERS = {"adapters": "hosts", "tests/adapters": "hosts", "tests/reliability": "reliability"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Gives tests the marker of their folder, and skips what needs a CUDA device without one."""
    for item in items:
        for folder, tier in TIERS.items():
            if item.path.is_relative_to(config.rootpath / folder):
                item.add_marker(tier)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@pytest.fixture
def generator() -> torch.Generator:
    """A torch generator with a fixed seed: the only source of randomness a test needs."""
    return torch.Generator().manual_seed(20251011)


def _global_rng_states() -> dict[str, object]:
    """Returns comparable copies of the state of the three global generators."""
    _, keys, position, *_ = np.random.get_state()  # noqa: NPY002 (read here, never drawn from)
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (np.asarray(keys).tobytes(), position),
        "random": random.getstate(),
    }


@pytest.fixture(autouse=True)
def _no_global_rng(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test after which torch's, numpy's or Python's global generator has moved."""
    if request.node.get_closest_marker("global_rng"):
        yield
        return
    before = _global_rng_states()
    yield
    after = _global_rng_states()
    moved = [name for name in before if before[name] != after[name]]
    if moved:
        pytest.fail(
            f"the global random state of {', '.join(moved)} changed during the test: "
            "pass an explicit generator (or mark a test of foreign code with `global_rng`).",
            pytrace=False,
        )
