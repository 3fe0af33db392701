"""C4: a truncation bootstraps and a termination does not, against the solved Bellman equation.

Three states in a row, reward 1, 2, 3, one action that is always taken:

    0 --1--> 1 --2--> 2 --3--> end, or back to 0

If the end is a termination, Q(2) = 3. If it is a time limit, Q(2) = 3 + gamma Q(0).
"""

import itertools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gtp_policy import GTPLearner, OfflineDataset
from gtp_policy.functional import precondition
from tests.reliability.outcome import Outcome
from tests.reliability.small import make_config

REWARD = np.array([1.0, 2.0, 3.0])
ACTION = 0.25
TOLERANCE = 1e-4


class OneAction(nn.Module):
    """A backbone that makes the actor take one action, so that the critic alone is measured."""

    def __init__(self, sigma_data: float) -> None:
        super().__init__()
        self.sigma_data = sigma_data
        self.idle = nn.Parameter(torch.zeros(1))  # an optimiser wants something to hold

    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        skip, out, inner = (c.unsqueeze(-1) for c in precondition(t, self.sigma_data))
        return (ACTION - skip * (x / inner)) / out + 0 * self.idle


def exact(gamma: float, *, terminated: bool) -> npt.NDArray[np.float64]:
    """Solves Q = r + gamma P Q."""
    follow = np.array([[0, 1, 0], [0, 0, 1], [0 if terminated else 1, 0, 0]])
    return np.linalg.solve(np.eye(3) - gamma * follow, REWARD)


def learned(gamma: float, *, terminated: bool, updates: int) -> npt.NDArray[np.float64]:
    """Learns Q from the three transitions."""
    dataset = OfflineDataset.from_arrays(
        obs=np.eye(3),
        action=np.full((3, 1), ACTION),
        reward=REWARD,
        next_obs=np.eye(3)[[1, 2, 0]],
        terminated=[False, False, terminated],
        truncated=[False, False, not terminated],
        low=[-1.0],
        high=[1.0],
        gamma=gamma,
    )
    config = make_config(
        updates,
        members=1,
        steps=1,
        sigma_data=0.5,
        ema_rate=1.0,  # fitted Q iteration without delay
        critic_lr=1e-2,
        lr_schedule="cosine",
    )
    learner = GTPLearner.from_dataset(dataset, config, network=OneAction(0.5))
    assert learner.critic is not None
    for _ in range(updates):
        learner.update(dataset.transitions)
    with torch.no_grad():
        q = learner.critic(dataset.transitions.obs, dataset.transitions.action)
    return q.amin(0).double().numpy()


def truncation_bootstraps(count: int, *, updates: int = 700) -> Outcome:
    """C4: Q within 1e-4 of the exact one, for both ends and two discounts."""
    outcome, worst = Outcome(), 0.0
    for gamma, terminated in itertools.islice(itertools.product((0.5, 0.8), (True, False)), count):
        error = np.abs(
            learned(gamma, terminated=terminated, updates=updates)
            - exact(gamma, terminated=terminated)
        ).max()
        worst = max(worst, float(error))
        case = f"gamma={gamma}, {'terminated' if terminated else 'truncated'}"
        outcome.add(case, f"Q is {error:.2g} off" if not error <= TOLERANCE else None)
    outcome.worst = f"Q at most {worst:.1e} from the exact one"
    return outcome
