"""What the package tests itself with, for testing your own flow maps.

- *Oracles*: analytic flow maps, with the data distributions they belong to.
- *Checks*: one function per invariant; `check_flow_map` and `parametrize_with_checks` run them.
- *Strategies* for hypothesis: times, observations, actions, advantages, actors.
- *Statistics*: assertions about samples that state how often they fail on correct code.
- *Measures*: what training approaches.

Needs the extra ``testing``: hypothesis and pytest.
"""

from gtp_policy.errors import MissingDependencyError, how_to_install

try:
    import hypothesis  # noqa: F401 (imported to see that it is there)
    import pytest  # noqa: F401 (likewise)
except ImportError as error:
    raise MissingDependencyError(
        f"gtp_policy.testing needs {error.name}: got no installed package of that name, expected "
        f"the extra `testing`. {how_to_install('testing')}"
    ) from error

from gtp_policy.testing.checks import (
    CheckFailure,
    check_batch_independence,
    check_between,
    check_boundary,
    check_denoiser_is_endpoint,
    check_deterministic,
    check_finite,
    check_finite_gradients,
    check_identity,
    check_line,
    check_no_inplace,
    check_semigroup,
    check_shape_dtype_device,
)
from gtp_policy.testing.measures import semigroup_defect, wasserstein1
from gtp_policy.testing.mixtures import MixtureFlowMap
from gtp_policy.testing.oracles import (
    AnalyticFlowMap,
    GaussianFlowMap,
    LinearPathFlowMap,
    PointMassFlowMap,
)
from gtp_policy.testing.probes import Probe, draw_probe
from gtp_policy.testing.statistics import (
    assert_frequencies_close,
    assert_moments_close,
    assert_same_distribution,
)
from gtp_policy.testing.strategies import (
    actions,
    actors,
    advantages,
    batches,
    configs,
    flow_times,
    generators,
    observations,
    probes,
    schedules,
    transitions,
)
from gtp_policy.testing.suite import check_flow_map, parametrize_with_checks

__all__ = [
    "AnalyticFlowMap",
    "CheckFailure",
    "GaussianFlowMap",
    "LinearPathFlowMap",
    "MixtureFlowMap",
    "PointMassFlowMap",
    "Probe",
    "actions",
    "actors",
    "advantages",
    "assert_frequencies_close",
    "assert_moments_close",
    "assert_same_distribution",
    "batches",
    "check_batch_independence",
    "check_between",
    "check_boundary",
    "check_denoiser_is_endpoint",
    "check_deterministic",
    "check_finite",
    "check_finite_gradients",
    "check_flow_map",
    "check_identity",
    "check_line",
    "check_no_inplace",
    "check_semigroup",
    "check_shape_dtype_device",
    "configs",
    "draw_probe",
    "flow_times",
    "generators",
    "observations",
    "parametrize_with_checks",
    "probes",
    "schedules",
    "semigroup_defect",
    "transitions",
    "wasserstein1",
]
