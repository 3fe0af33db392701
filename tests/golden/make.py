"""Writes the golden file of the current format: once per format version, then never again.

``python tests/golden/make.py`` writes ``format_<version>.zip`` and, next to it, the actions of
the policy in it. The tests load every golden file there is with the code of today.
"""

import json
from pathlib import Path

import torch

from gtp_policy import (
    ActionScaler,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    ObservationLayout,
    QEnsembleConfig,
    Transitions,
    save_checkpoint,
)
from gtp_policy._random import new_stream
from gtp_policy.checkpoint.bundle import FORMAT_VERSION


def observations() -> torch.Tensor:
    return torch.linspace(-2.0, 2.0, 21).reshape(7, 3)


def main() -> None:
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(8, 8), time_dim=4, steps=3, sigma_data=0.4),
        critic=QEnsembleConfig(hidden=(8,)),
        learner=GTPLearnerConfig(total_updates=10, ema_rate=0.5, seed=3),
    )
    learner = GTPLearner.build(3, 2, config)
    learner.set_observation_statistics_(torch.tensor([0.0, 1.0, 2.0]), torch.ones(3))
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        action = torch.rand(16, 2, generator=generator) * 2 - 1
        obs, following = torch.randn(2, 16, 3, generator=generator)
        learner.update(Transitions(obs, action, action[:, 0], following, torch.full((16,), 0.9)))
    path = Path(__file__).with_name(f"format_{FORMAT_VERSION}.zip")
    save_checkpoint(
        path,
        learner,
        action_scaler=ActionScaler([-2.0, 0.0], [2.0, 1.0]),
        layout=ObservationLayout({"position": (2,), "speed": (1,)}),
        metadata={"made_by": "tests/golden/make.py"},
    )
    # From noises that the test makes too, so that it does not hang on how one acts by now.
    actor, critic, obs = learner.target_actor, learner.target_critic, observations()
    more = torch.randn(7, 2, generator=new_stream(0, "fixed candidates"))
    noise = torch.cat([actor.fixed_noise[None], more]).repeat(len(obs), 1)
    tiled = obs.repeat_interleave(8, 0)
    action = actor.sample(tiled, noise=noise)
    best = critic(tiled, action).amin(0).view(-1, 8).argmax(1)
    action = action.view(-1, 8, 2)
    answers = {
        "one": action[:, 0].tolist(),
        "best_of_8": action[torch.arange(len(obs)), best].tolist(),
        "updates": learner.updates,
    }
    path.with_suffix(".json").write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
