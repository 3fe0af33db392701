"""The GTP loss in a custom training loop: your critic, your optimiser, three lines of ours.

    python examples/custom_trainer.py [--smoke]

An illustration. In each context the logged actions lie near -0.7 and near 0.7, equally often; the
one on the context's side earns 1, the other 0. Cloning imitates both, weighting prefers the better.
"""

import argparse
import copy

import torch
from torch import Tensor, nn

from gtp_policy import (
    AdvantageWeighter,
    AdvantageWeighterConfig,
    Curriculum,
    FlowMapActor,
    FlowMapActorConfig,
    GTPLoss,
    GTPLossConfig,
)
from gtp_policy.functional import ema_


def critic_advantage(obs: Tensor, action: Tensor, reward: Tensor, updates: int) -> Tensor:
    """Fits custom Q and V to one-step rewards and returns Q - V of the data's actions."""
    q = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    v = nn.Sequential(nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam([*q.parameters(), *v.parameters()], lr=3e-3)
    for _ in range(updates):
        i = torch.randint(len(obs), (256,))
        both = torch.cat([q(torch.cat([obs[i], action[i]], 1)), v(obs[i])], 1)
        optimizer.zero_grad()
        (both - reward[i, None]).square().mean().backward()
        optimizer.step()
    return (q(torch.cat([obs, action], 1)) - v(obs)).detach()[:, 0]


def train(eta: float, obs: Tensor, action: Tensor, advantage: Tensor, updates: int) -> Tensor:
    """Trains a policy at temperature eta and returns one action of it per context."""
    actor = FlowMapActor(1, 1, FlowMapActorConfig(hidden=(64, 64), sigma_data=0.7))
    target = copy.deepcopy(actor).requires_grad_(False)
    optimizer = torch.optim.Adam(actor.parameters(), lr=5e-3)
    rng = torch.Generator().manual_seed(0)
    loss_fn = GTPLoss(GTPLossConfig(curriculum=Curriculum().capped(updates + 1, ema_rate=0.05)))
    weigh = AdvantageWeighter(AdvantageWeighterConfig(eta=eta))  # ours, 1 of 3
    for update in range(updates):
        i = torch.randint(len(obs), (256,), generator=rng)
        o, a, adv, done = obs[i], action[i], advantage[i], update / updates
        terms = loss_fn(actor, target, o, a, weigh(adv), progress=done, generator=rng)  # ours, 2
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
        ema_(target.parameters(), actor.parameters(), rate=0.05)  # ours, 3 of 3
    return target.sample(obs, generator=rng)


def main() -> None:
    """Trains with and without weights on the same data and prints what each policy earns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="few updates: runs, learns little")
    updates = 100 if parser.parse_args().smoke else 2000
    torch.manual_seed(0)  # your own networks draw from torch's global generator, ours never do
    obs, side = torch.rand(4000, 1) * 2 - 1, torch.randint(2, (4000, 1)) * 2 - 1
    action = 0.7 * side + 0.05 * torch.randn(4000, 1)

    def reward(actions: Tensor) -> Tensor:
        return ((actions - 0.7 * obs.sign()).abs() < 0.3).float()[:, 0]

    advantage = critic_advantage(obs, action, reward(action), updates)
    print(f"mean reward of the data           {reward(action).mean():.2f}")
    for eta, name in ((0.0, "cloned policy,   eta = 0"), (3.0, "weighted policy, eta = 3")):
        before, after = (reward(train(eta, obs, action, advantage, n)) for n in (0, updates))
        print(f"{name}: before {before.mean():.2f}, after {after.mean():.2f}")


if __name__ == "__main__":
    main()
