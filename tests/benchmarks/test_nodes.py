"""An update on a GPU is few nodes, and a launch leaves little to the host: counted without one."""

import json

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
