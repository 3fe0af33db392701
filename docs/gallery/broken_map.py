"""
A test that catches a broken flow map
=====================================

To jump from t to s must be the same as to jump from t to u and on to s. One Euler step looks
plausible and is no flow map: the picture shows by how much it misses, and the check of the testing
kit says so in words. Your own network is tested with the same call.
"""

import matplotlib.pyplot as plt
import torch

from gtp_policy.testing import CheckFailure, MixtureFlowMap, check_flow_map


class OneEulerStep(MixtureFlowMap):
    """Broken on purpose: follows the tangent at t, however far s is."""

    def endpoint(self, obs, x, t, s):
        """Returns the denoised action instead of the endpoint."""
        return super().endpoint(obs, x, t, t)


figure, row = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
start, u = torch.linspace(0.05, 3, 40), torch.linspace(0.02, 0.98, 40)
t, share = (v.flatten() for v in torch.meshgrid(start, u, indexing="ij"))
obs, x, zero = torch.zeros(len(t), 1), t[:, None] * 0.5, torch.zeros(len(t))
for axes, kind in zip(row, (MixtureFlowMap, OneEulerStep), strict=True):
    phi = kind([-0.5, 0.5], 0.1)
    miss = (phi(obs, phi(obs, x, t, share * t), share * t, zero) - phi(obs, x, t, zero)).abs()
    error = miss.reshape(40, 40).T.clamp(1e-8).numpy()
    shown = axes.pcolormesh(start.numpy(), u.numpy(), error, norm="log", vmin=1e-8, vmax=1)
    axes.set(title=kind.__name__, xlabel="t", ylabel="u / t")
    try:
        check_flow_map(phi, obs_dim=1, action_dim=1, semigroup_atol=1e-5)
    except CheckFailure as failure:
        print("caught:", failure)
figure.colorbar(shown, label="error of two jumps against one")
plt.show()
