"""An update on a GPU is few nodes, and a launch leaves little to the host: counted without one."""

import pytest

from benchmarks import nodes
from benchmarks.contenders import Case
from gtp_policy import GTPConfig, PolicyBaseline, QEnsembleConfig, presets
from tests.interpreted import needs_triton

# The numbers of nodes do not depend on sizes.
TINY = Case(obs_dim=3, action_dim=2, batch=8)


def with_one_sample(policy: GTPConfig, **critic: bool) -> GTPConfig:
    run = policy.learner.replace(baseline=PolicyBaseline(samples=1))
    return policy.replace(learner=run, critic=QEnsembleConfig(**critic))


@needs_triton
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("preset", ["gtp", "one_step"])
def test_an_update_is_at_most_a_hundred_nodes(preset: str, layer_norm: bool) -> None:
    policy = with_one_sample(presets.get(preset), layer_norm=layer_norm)
    found = nodes.count(policy, TINY)
    assert 60 < sum(found["nodes"].values()) <= 90
    assert found["nodes"]["triton adam"] == found["nodes"]["triton gradient_norms"] == 2
    assert found["nodes"]["triton draws"] == found["nodes"]["triton follow"] == 1
    # One copy, and three operators around it.
    assert found["host"] == {"empty": 1, "copy": 1, "clone": 1, "unbind": 1}


@needs_triton
def test_the_host_does_as_much_for_several_seeds() -> None:
    found = nodes.count(with_one_sample(GTPConfig()), TINY, seeds=3)
    assert found["host"] == {"empty": 1, "copy": 1, "clone": 1, "unbind": 1}
    assert sum(found["nodes"].values()) <= 90


def test_operators_of_a_config_that_is_not_recorded_are_not_counted() -> None:
    with pytest.raises(RuntimeError, match="Updates are not recorded: got 'update: "):
        nodes.count(presets.gtp_linear_q(), TINY)
