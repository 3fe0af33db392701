"""The comparison of advantages with returns: the simulator's steps, and what is found where."""

import gymnasium
import numpy as np
import pytest

from benchmarks.advantages import ENVIRONMENT, Simulator, compare


def test_a_step_from_an_observation_is_the_environments() -> None:
    env, simulator, rng = gymnasium.make(ENVIRONMENT), Simulator(), np.random.default_rng(0)
    differences, ends = [], 0
    for seed in range(5):
        obs, _ = env.reset(seed=seed)
        for _ in range(200):
            action = rng.uniform(-1, 1, 3).astype(np.float32)
            ours, reward, stands = simulator.step(obs, action)
            obs, wanted, fallen, _, _ = env.step(action)
            # The solver of contacts starts from its last solution, which no observation holds.
            differences.append(np.abs(ours - obs).max())
            assert reward == pytest.approx(float(wanted), abs=0.05)
            if fallen:
                assert not stands
                ends += 1
                break
    assert ends == 5
    assert np.median(differences) < 1e-6


def drawn(signal: float, noise: float, rollouts: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Estimates that correlate with the truth by ``signal``, and noisy differences of returns."""
    rng = np.random.default_rng(0)
    truth, other = rng.normal(size=(2, 4000))
    estimate = signal * truth + np.sqrt(1 - signal**2) * other
    return 5 * estimate, truth + noise * rng.normal(size=(rollouts, 4000))


@pytest.mark.parametrize("signal", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("noise", [0.1, 2.0])
def test_noise_of_the_returns_does_not_hide_the_correlation(signal: float, noise: float) -> None:
    found = compare(*drawn(signal, noise))
    assert found["correlation"] == pytest.approx(signal, abs=0.06)
    low, high = found["interval"]
    assert low - 0.03 < signal < high + 0.03
    assert found["reliability"] == pytest.approx(1 / (1 + noise**2 / 3), abs=0.03)
    assert found["spread_of_truth"] == pytest.approx(1, abs=0.05)
    assert found["all"][0] == pytest.approx(0, abs=4 * found["all"][1])
    # The mean of a normal variable's upper tenth is 1.755.
    best, error = found["best_tenth"]
    assert best == pytest.approx(1.755 * signal, abs=4 * error)
