"""An update on a GPU is few nodes, and a launch leaves little to the host: counted without one."""

import json
from pathlib import Path

import pytest

from benchmarks import nodes
from benchmarks.contenders import Case
from gtp_policy import GTPConfig, presets
from tests.interpreted import needs_triton

# The numbers of nodes do not depend on sizes.
TINY = Case(obs_dim=3, action_dim=2, batch=8)


RECORD = json.loads(nodes.OUTPUT.read_text(encoding="utf-8"))
# One copy, and three operators around it.
HOST = {"empty": 1, "copy": 1, "clone": 1, "unbind": 1}


@needs_triton
@pytest.mark.parametrize("name", nodes.configs())
def test_an_update_is_as_many_nodes_as_the_page_says(name: str) -> None:
    found = nodes.count(nodes.configs()[name], TINY)
    assert sum(found["nodes"].values()) == RECORD["nodes"][name] < 90
    assert found["nodes"]["triton adam"] == found["nodes"]["triton gradient_norms"] == 2
    assert found["nodes"]["triton draws"] == found["nodes"]["triton follow"] == 1
    assert found["host"] == HOST


@needs_triton
def test_one_line_of_json_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = nodes.count(nodes.configs()[nodes.DEFAULT], TINY)
    monkeypatch.setattr(nodes, "count", lambda *_, **__: one)
    monkeypatch.setattr(nodes, "OUTPUT", tmp_path / "nodes.json")
    nodes.main()
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert (found["nodes_m1"], found["host_ops_per_launch"]) == (RECORD["nodes_m1"], 4)
    low, high = found["estimated_ms"]
    assert 0 < low < high == round(found["nodes_m1"] * found["estimated_node_us"][1] / 1000, 2)


@needs_triton
def test_the_default_clones_first_which_takes_fewer_nodes() -> None:
    found = nodes.count(GTPConfig(), TINY)
    assert sum(found["nodes"].values()) == RECORD["nodes_before_guidance"]
    assert "triton weights" not in found["nodes"]


@needs_triton
def test_the_host_does_as_much_for_several_seeds() -> None:
    found = nodes.count(nodes.configs()[nodes.DEFAULT], TINY, seeds=3)
    assert found["host"] == HOST
    assert sum(found["nodes"].values()) == RECORD["nodes_of_seeds"]


def test_operators_of_a_config_that_is_not_recorded_are_not_counted() -> None:
    with pytest.raises(RuntimeError, match="Updates are not recorded: got 'update: "):
        nodes.count(presets.gtp_linear_q(), TINY)
