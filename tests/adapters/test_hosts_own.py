"""The job that runs the hosts' own tests: what it selects, swaps, excludes and says."""

import sys
from pathlib import Path

import pytest

from tests import hosts_own

# As the host writes its tests: of the algorithm, of another one, and one that is excluded.
TESTS = """
import pytest
from stable_baselines3 import DQN, TD3

@pytest.mark.parametrize("model_class", [DQN, TD3])
def test_learns(model_class):
    if model_class == TD3:
        model = model_class("MlpPolicy", "Pendulum-v1", policy_delay=1, buffer_size=10)
        assert type(model).__mro__[1].__module__ == "gtp_sb3.gtp"

@pytest.mark.parametrize("model_class", [DQN, TD3])
def test_state_dependent_noise(model_class):
    assert False

def test_names_it():
    TD3("MlpPolicy", "Pendulum-v1", no_such_argument=1)

def test_of_something_else():
    assert False
"""


@pytest.mark.slow
def test_a_suite_is_selected_swapped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_save_load.py").write_text(TESTS)
    name = "SB3 TD3 online"
    result = hosts_own.run(name, tmp_path, [])
    assert result.passed == 1
    assert list(result.excluded) == ["test_save_load::test_state_dependent_noise[TD3]"]
    assert result.failed == ("test_save_load::test_names_it",)
    assert result.notes == {("left out of the calls", "policy_delay"): 1}
    assert [path.name for path in (tmp_path / "tests").iterdir()] == ["test_save_load.py"]
    hosts_own.show({name: result})
    said = capsys.readouterr().out
    assert "excluded: gSDE is the host's exploration noise" in said
    assert "failed: test_save_load::test_names_it" in said


def test_a_missing_checkout_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, reason in (
        ([], "no checkout of a host: got no path"),
        (["--sb3", str(tmp_path)], "--sb3 is no checkout of the host"),
    ):
        monkeypatch.setattr(sys, "argv", ["hosts_own", *arguments])
        with pytest.raises(SystemExit):
            hosts_own.main()
        assert reason in capsys.readouterr().err
