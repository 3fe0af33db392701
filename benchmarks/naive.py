"""Algorithm 1 as one writes it down the first time: the yardstick of `benchmarks.speed`.

Every line of the algorithm is a line here: separate modules, one forward per term, Adam and the
target networks as torch's tutorials have them, numbers read off after every update. It computes
what `GTPLearner.update` computes (`tests/benchmarks/test_naive.py` compares them on equal draws).
"""

import copy
import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

T_MIN, T_MAX, RHO = 0.005, 5.0, 7.0
SIGMA_DATA, TIME_DIM, STD_EPS = 0.5, 32, 1e-6


def karras_grid(n: int) -> Tensor:
    """Returns n + 1 descending times, the last one 0."""
    i = torch.arange(n, dtype=torch.float64) / n
    start, end = T_MAX ** (1 / RHO), T_MIN ** (1 / RHO)
    times = (start + i * (end - start)) ** RHO
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)]).float()


def mlp(inputs: int, outputs: int, width: int) -> nn.Sequential:
    """Returns three hidden layers with Mish."""
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.Mish(),
        nn.Linear(width, width),
        nn.Mish(),
        nn.Linear(width, width),
        nn.Mish(),
        nn.Linear(width, outputs),
    )


class TimeEmbedding(nn.Module):
    """Sines and cosines of ln(t) / 4."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        octaves = torch.linspace(-3.0, 2.0, TIME_DIM // 2, dtype=torch.float64)
        self.register_buffer("frequencies", (2 * math.pi * 2**octaves).float())

    def forward(self, t: Tensor) -> Tensor:
        """Returns (B, TIME_DIM)."""
        angle = torch.log(t.clamp(min=T_MIN / 2))[:, None] / 4 * self.frequencies[None, :]
        return torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)


class Actor(nn.Module):
    """The flow map: where a noisy action at time t lies at time s."""

    def __init__(self, obs_dim: int, action_dim: int, width: int) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.embedding = TimeEmbedding()
        self.net = mlp(obs_dim + action_dim + 2 * TIME_DIM, action_dim, width)

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Returns the endpoint that the preconditioned network predicts."""
        variance = t**2 + SIGMA_DATA**2
        c_skip = SIGMA_DATA**2 / variance
        c_out = t * SIGMA_DATA / torch.sqrt(variance)
        c_in = 1 / torch.sqrt(variance)
        inputs = [obs, c_in[:, None] * x, self.embedding(t), self.embedding(s)]
        return c_skip[:, None] * x + c_out[:, None] * self.net(torch.cat(inputs, dim=1))

    def forward(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Returns the action moved from time t to time s."""
        ratio = (s / t)[:, None]
        return ratio * x + (1 - ratio) * self.endpoint(obs, x, t, s)

    @torch.no_grad()
    def sample(self, obs: Tensor, noise: Tensor, grid: Tensor) -> Tensor:
        """Returns actions: noise moved to time 0 along the grid's jumps."""
        x = grid[0] * noise
        for t, s in itertools.pairwise(grid):
            x = self(obs, x, t.repeat(len(x)), s.repeat(len(x)))
        return x.clamp(-1, 1)


class Critic(nn.Module):
    """Two Q networks."""

    def __init__(self, obs_dim: int, action_dim: int, width: int) -> None:
        super().__init__()
        self.q1 = mlp(obs_dim + action_dim, 1, width)
        self.q2 = mlp(obs_dim + action_dim, 1, width)

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both values, (B,) each."""
        x = torch.cat([obs, action], dim=1)
        return self.q1(x).squeeze(1), self.q2(x).squeeze(1)

    def minimum(self, obs: Tensor, action: Tensor) -> Tensor:
        """Returns the smaller value."""
        return torch.min(*self(obs, action))


class NaiveGTP:
    """Algorithm 1: actor, twin critic, their target networks, two optimisers."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        *,
        width: int = 256,
        steps: int = 5,
        samples: int = 4,
        intervals: int = 40,
        max_grad_norm: float = 5.0,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.samples, self.intervals, self.device = samples, intervals, device
        self.sampling_grid = karras_grid(steps).to(device)
        self.training_grid = karras_grid(intervals).flip(0).to(device)
        self.lr, self.ema_rate, self.max_grad_norm = 3e-4, 0.005, max_grad_norm
        self.eta, self.max_weight, self.flow_weight = 1.0, 100.0, 1.0
        self.generator = torch.Generator(device).manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.actor = Actor(obs_dim, action_dim, width).to(device)
            self.critic = Critic(obs_dim, action_dim, width).to(device)
        self.target_actor = copy.deepcopy(self.actor)
        self.target_critic = copy.deepcopy(self.critic)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=self.lr)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=self.lr)

    def noise(self, purpose: str, rows: int) -> Tensor:
        """Draws standard normal noise; ``purpose`` is for tests, which bring their own."""
        shape = (rows, self.actor.action_dim)
        return torch.randn(shape, generator=self.generator, device=self.device)

    def times(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draws t > u >= s from the grid, u the neighbour of t."""
        grid, g = self.training_grid, self.generator
        k = torch.randint(1, self.intervals + 1, (rows,), generator=g, device=self.device)
        m = (torch.rand(rows, generator=g, device=self.device) * k).long()
        return grid[k], grid[k - 1], grid[m]

    def update(
        self, obs: Tensor, action: Tensor, reward: Tensor, next_obs: Tensor, discount: Tensor
    ) -> dict[str, float]:
        """Does one update of everything and returns its numbers."""
        # Critic.
        with torch.no_grad():
            noise = self.noise("backup", len(obs))
            next_action = self.target_actor.sample(next_obs, noise, self.sampling_grid)
            next_q = self.target_critic.minimum(next_obs, next_action)
            y = reward + discount * next_q
        q1, q2 = self.critic(obs, action)
        critic_loss = (F.mse_loss(q1, y) + F.mse_loss(q2, y)) / 2
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        critic_norm = nn.utils.clip_grad_norm_(self.critic.parameters(), self.max_grad_norm)
        self.critic_optimizer.step()

        # Advantages and weights.
        with torch.no_grad():
            tiled = obs.repeat(self.samples, 1)
            noise = self.noise("baseline", len(tiled))
            sampled = self.target_actor.sample(tiled, noise, self.sampling_grid)
            value = self.critic.minimum(tiled, sampled).view(self.samples, -1).mean(0)
            advantage = self.critic.minimum(obs, action) - value
            spread = advantage.std(correction=0) + STD_EPS
            weight = torch.exp(self.eta * advantage.clamp(min=0) / spread)
            weight = weight.clamp(max=self.max_weight)

        # Actor: consistency along the trajectory, and the instantaneous flow.
        t, u, s = self.times(len(obs))
        z = self.noise("loss", len(obs))
        x_t, x_u = action + t[:, None] * z, action + u[:, None] * z
        with torch.no_grad():
            start = torch.where(u > 0, u, t)
            arrival = self.target_actor(obs, x_u, start, s)
            arrival = torch.where((u > 0)[:, None], arrival, action)
        consistency = ((self.actor(obs, x_t, t, s) - arrival) ** 2).mean(1)
        flow = ((self.actor.endpoint(obs, x_t, t, t) - action) ** 2).mean(1)
        actor_loss = (weight * (consistency + self.flow_weight * flow)).mean()
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        actor_norm = nn.utils.clip_grad_norm_(self.actor.parameters(), self.max_grad_norm)
        self.actor_optimizer.step()

        # Target networks.
        with torch.no_grad():
            for target, source in self._pairs():
                target.data.copy_((1 - self.ema_rate) * target.data + self.ema_rate * source.data)
        return {
            "critic_loss": critic_loss.item(),
            "critic_grad_norm": critic_norm.item(),
            "q_mean": ((q1 + q2) / 2).mean().item(),
            "weight_mean": weight.mean().item(),
            "weight_max": weight.max().item(),
            "consistency": (weight * consistency).mean().item(),
            "flow": (weight * flow).mean().item(),
            "actor_loss": actor_loss.item(),
            "actor_grad_norm": actor_norm.item(),
        }

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        modules = ((self.target_actor, self.actor), (self.target_critic, self.critic))
        for target, source in modules:
            yield from zip(target.parameters(), source.parameters(), strict=True)

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Returns an action per observation."""
        rows = torch.as_tensor(obs, dtype=torch.float32, device=self.device)
        noise = self.noise("act", len(rows))
        return self.target_actor.sample(rows, noise, self.sampling_grid).cpu().numpy()
