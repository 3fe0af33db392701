"""Policy files for the tests of gtp-policy-runtime, with the actions of the policies they are of.

    python -m benchmarks.runtime_files

Untrained small policies of every kind that `export_onnx` writes, each with observations, noises and
the core's own actions for them. Files that are there stay: they show that later runtimes read them.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.pages import ROOT
from gtp_policy import (
    ActionScaler,
    FlowMapActor,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    ObservationLayout,
    QEnsembleConfig,
)
from gtp_policy.acting import ModeChoice
from gtp_policy.actor import ActionStatistics
from gtp_policy.export import export_onnx
from gtp_policy.keyed_noise import keyed_noise

FILES = ROOT / "runtime" / "tests" / "files"
EXAMPLE = ROOT / "runtime" / "gtp_runtime" / "example.onnx"
HIDDEN = (16, 16)
SCALER = ActionScaler([-2.0, 0.0], [2.0, 1.0])
ROWS = 40


class Pixels(nn.Module):
    """A small encoder of images (3, 8, 8), as users write them."""

    features_dim = 6

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.net = nn.Sequential(
            nn.utils.skip_init(nn.Conv2d, 3, 4, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.utils.skip_init(nn.Linear, 64, 6),
        )
        for parameter in self.net.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Returns features of images that come as vectors.

        Args:
            obs: Shape (B, 192).

        Returns:
            Shape (B, 6).
        """
        features: torch.Tensor = self.net(obs.reshape(-1, 3, 8, 8))
        return features


def actor(obs_dim: int = 3, **config: Any) -> FlowMapActor:  # noqa: ANN401 - fields of the config
    """Returns an actor whose actions spread: the last layer of a new one is small."""
    made = FlowMapActor(obs_dim, 2, FlowMapActorConfig(hidden=HIDDEN, steps=2, **config))
    made.normalizer.set_statistics_(torch.full((obs_dim,), 0.1), torch.full((obs_dim,), 0.7))
    return made


def learner(**critic: Any) -> GTPLearner:  # noqa: ANN401 - fields of the config
    """Returns a learner that acts by the mode of four candidates, or by the best of them."""
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=HIDDEN, steps=2),
        critic=QEnsembleConfig(hidden=HIDDEN, **critic),
        learner=GTPLearnerConfig(eval_candidates=4),
    )
    return GTPLearner.build(3, 2, config)


def policies() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yields names, policies and the options of their export."""
    box = {"action_scaler": SCALER}
    yield "box", actor(), box
    yield "one_step", actor(), box | {"steps": 1}
    yield "unit", actor(), {}
    yield "keyed", actor(), box | {"noise": "keyed"}
    yield "float16", actor(), box | {"precision": "float16"}
    statistics = ActionStatistics(mean=(0.1, -0.2), std=(0.3, 0.05))
    yield "standardised", actor(action_statistics=statistics), box
    layout = ObservationLayout.of_dict({"camera": (2, 2), "speed": (1,)})
    yield "dict", actor(5), box | {"layout": layout}
    by_critic = box | {"candidates": 4}
    yield "candidates", learner(), by_critic
    yield "layer_norm", learner(layer_norm=True, activation="gelu"), by_critic
    yield "mode", learner(), box
    pixels = FlowMapActor(
        192, 2, FlowMapActorConfig(hidden=HIDDEN, steps=2), encoder=Pixels(), seed=0
    )
    yield "pixels", pixels, box | {"layout": ObservationLayout((3, 8, 8))}


def write(name: str, policy: Any, options: dict[str, Any], folder: Path) -> None:  # noqa: ANN401
    """Writes a file, and beside it what the policy does.

    Args:
        name: Of the file.
        policy: A learner or an actor.
        options: Of its export.
        folder: Where.
    """
    document = export_onnx(policy, folder / f"{name}.onnx", **options)
    rng = np.random.default_rng(0)
    obs = {
        part.input: rng.normal(size=(ROWS, *part.shape)).astype(np.float32)
        for part in document.observation.parts
    }
    noise = rng.standard_normal((ROWS, *document.noise.shape), np.float32)
    flat = np.concatenate([part.reshape(ROWS, -1) for part in obs.values()], 1)
    keyed = keyed_noise(torch.from_numpy(flat), math.prod(document.noise.shape)).numpy()
    np.savez_compressed(
        folder / f"{name}.npz",
        noise=noise,
        action=_core(policy, document, obs, noise, options),
        deterministic=_core(policy, document, obs, keyed.reshape(noise.shape), options),
        **obs,
    )


def _core(
    policy: Any,  # noqa: ANN401 - a learner or an actor
    document: Any,  # noqa: ANN401 - a PolicyFile
    obs: dict[str, np.ndarray],
    noise: np.ndarray,
    options: dict[str, Any],
) -> np.ndarray:
    """Returns the core's actions: `FlowMapActor.sample`, and the mode or the critic's choice."""
    flat = torch.cat([torch.tensor(o).flatten(1) for o in obs.values()], 1)
    is_learner = isinstance(policy, GTPLearner)
    own = policy.target_actor if is_learner else policy
    n, steps = document.candidates, document.steps
    tiled = flat.repeat_interleave(n, 0)
    z = torch.tensor(noise).reshape(n * len(flat), -1)
    action = own.sample(tiled, noise=z, steps=steps)
    if n > 1:
        # A number that is asked for is one for the critic to choose from.
        choice = policy.config.choice if "candidates" in options else ModeChoice()
        with torch.no_grad():
            q = policy.target_critic.config.reduce(policy.target_critic(tiled, action))
            action = choice.take(action.reshape(-1, n, 2), q.reshape(-1, n), None)
    scaler = options.get("action_scaler")
    boxed = action if scaler is None else scaler.to_box(action)
    result: np.ndarray = boxed.numpy().astype(np.float32)
    return result


def main() -> None:
    """Writes what is not there."""
    FILES.mkdir(exist_ok=True)
    for name, policy, options in policies():
        if (path := FILES / f"{name}.onnx").exists():
            continue
        write(name, policy, options, FILES)
        print(f"{name:14} {path.stat().st_size} bytes")
    if not EXAMPLE.exists():
        example = FlowMapActor(3, 1, FlowMapActorConfig(hidden=(32, 32), steps=2))
        export_onnx(example, EXAMPLE, action_scaler=ActionScaler([-2.0], [2.0]))
        print(f"{'example':14} {EXAMPLE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
