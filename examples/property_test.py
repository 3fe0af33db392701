"""Property tests of a custom flow map, with the checks that our network has to pass too.

pytest examples/property_test.py
python examples/property_test.py [--smoke]
"""

from collections.abc import Callable

import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import gtp_policy.testing as kit
from gtp_policy import FlowMap
from gtp_policy.functional import flow_map, perturb
from gtp_policy.times import KarrasTimes, Times


class Steered:
    """The exact flow map of actions from N(tanh(o_1 - o_2), 0.3^2): they follow the context."""

    times, std = KarrasTimes(), 0.3

    def mean(self, obs: Tensor) -> Tensor:
        """Returns the mean action in each context."""
        return (obs[:, :1] - obs[:, 1:]).tanh()

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Returns where the line through x_t and x_s meets time 0; s = t needs no limit."""
        b_t, b_s = (self.std**2 + t**2).sqrt(), (self.std**2 + s**2).sqrt()
        shrink = self.std**2 * (t + s) / (b_t * (t * b_s + s * b_t))
        return self.mean(obs) + shrink.unsqueeze(-1) * (x - self.mean(obs))

    def __call__(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Returns x_s."""
        return flow_map(x, self.endpoint(obs, x, t, s), t, s)


class OneEulerStep(Steered):
    """Broken on purpose: follows the tangent at t, whatever s is."""

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Returns the denoised action instead of the endpoint."""
        return super().endpoint(obs, x, t, t)


MAPS = {"steered": Steered(), "euler": OneEulerStep()}
KNOWN = {"euler-check_semigroup": "one step of a solver is not the solution"}


@kit.parametrize_with_checks(
    MAPS, obs_dim=2, action_dim=1, semigroup_atol=1e-5, expected_failures=KNOWN
)
def test_flow_map(flow_map: FlowMap, check: Callable[[FlowMap], None]) -> None:
    """Runs as one test per flow map and check; the known defect is a strict xfail."""
    check(flow_map)


# The first call of a torch operator is slower than the rest, which hypothesis takes for slow data.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kit.generators(), kit.flow_times(batch=1))
def test_noisy_data_become_less_noisy_data(generator: torch.Generator, times: Times) -> None:
    """A custom property: the flow takes the law at time t to the law at time s."""
    mine, n = Steered(), 50_000
    obs, z = torch.randn(2, n, 2, generator=generator, dtype=torch.float64)
    t, s = times.t.expand(n), times.s.expand(n)
    x_t = perturb(mine.mean(obs) + mine.std * z[:, :1], t, z[:, 1:])
    standardised = (mine(obs, x_t, t, s) - mine.mean(obs)) / (mine.std**2 + times.s**2).sqrt()
    kit.assert_moments_close(standardised, mean=0.0, std=1.0, false_alarm=1e-9)


if __name__ == "__main__":
    for name, mine in MAPS.items():
        try:
            kit.check_flow_map(mine, obs_dim=2, action_dim=1, semigroup_atol=1e-5)
            print(f"{name}: every check passed")
        except kit.CheckFailure as failure:
            print(f"{name}: caught. {failure}")
    test_noisy_data_become_less_noisy_data()
    print("steered: takes noisy data to less noisy data")
