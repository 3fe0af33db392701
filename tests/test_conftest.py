"""The guard of conftest.py notices what it is there to notice."""

from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")


@pytest.mark.slow
def test_a_test_that_moves_a_global_generator_fails(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST.read_text(encoding="utf-8"))
    pytester.makeini("[pytest]\nmarkers = global_rng: may move a global generator\n")
    pytester.makepyfile(
        """
        import random

        import numpy as np
        import pytest
        import torch
        from hypothesis import given, strategies as st

        def test_torch():
            torch.rand(1)

        def test_numpy():
            np.random.rand()

        def test_python():
            random.random()

        @pytest.mark.global_rng
        def test_marked():
            torch.rand(1)

        @given(st.integers())
        def test_explicit(generator, seed):
            torch.rand(1, generator=generator)
            np.random.default_rng(abs(seed)).random()
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:xdist")
    # The guard speaks after the test, so each offender counts as passed and as an error.
    result.assert_outcomes(passed=5, errors=3)
    result.stdout.fnmatch_lines(["*global random state of torch changed during the test*"])


@pytest.mark.slow
def test_a_folder_gives_its_tests_their_tier(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nmarkers =\n    hosts: a tier\n    reliability: a tier\n")
    tiers = {
        "adapters/gtp_sb3": ["hosts"],
        "tests": [],
        "tests/adapters/sb3": ["hosts"],
        "tests/engine": [],
        "tests/reliability": ["reliability"],
    }
    for number, (folder, markers) in enumerate(tiers.items()):
        path = pytester.path / folder / f"test_{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "def test_it(request):\n"
            f"    assert [mark.name for mark in request.node.iter_markers()] == {markers}\n",
            encoding="utf-8",
        )
    conftest = pytester.path / "tests" / "conftest.py"
    conftest.write_text(CONFTEST.read_text(encoding="utf-8"), encoding="utf-8")
    result = pytester.runpytest_subprocess("-p", "no:xdist", "tests", "adapters")
    result.assert_outcomes(passed=len(tiers))
