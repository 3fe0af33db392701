"""Writes the golden policy files of the current format: once per version, then never again.

``python tests/export/golden/make.py`` writes ``version_1.onnx``, in which the critic chooses,
``version_1_mode.onnx``, which acts by the mode, and ``version_2.onnx``, whose chunks overlap, each
with inputs and the actions of the policy in it; files that are there stay. The tests run every
golden file there is.
"""

import json
import math
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
)
from gtp_policy.chunks import Playback
from gtp_policy.export import export_onnx
from gtp_policy.keyed_noise import keyed_noise


def choosing() -> GTPLearner:
    """Returns a policy with a critic."""
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(8, 8), time_dim=4, steps=2),
        critic=QEnsembleConfig(hidden=(8,)),
        learner=GTPLearnerConfig(eval_candidates=16),
    )
    return GTPLearner.build(3, 2, config)


def planning() -> GTPLearner:
    """Returns a clone that plans four steps, every second one anew."""
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(8, 8), time_dim=4, chunk=4),
        critic=None,
        learner=GTPLearnerConfig(playback=Playback(every=2, ensemble=0.5)),
    )
    return GTPLearner.build(3, 4 * 2, config)


def main() -> None:
    scaler = ActionScaler([-1.0, 0.0], [1.0, 4.0])
    layout = ObservationLayout({"position": (2,), "speed": (1,)})
    flat = torch.linspace(-2.0, 2.0, 21).reshape(7, 3)
    files = (
        ("version_1", choosing, 3),
        ("version_1_mode", choosing, None),
        ("version_2", planning, None),
    )
    for name, make, candidates in files:
        path = Path(__file__).with_name(f"{name}.onnx")
        if path.exists():
            continue
        learner = make()
        learner.set_observation_statistics_(torch.tensor([0.0, 1.0, 2.0]), torch.ones(3))
        file = export_onnx(
            learner, path, candidates=candidates, layout=layout, action_scaler=scaler
        )
        noise = keyed_noise(flat, math.prod(file.noise.shape)).view(7, *file.noise.shape)
        acted = learner.act(flat, candidates=candidates, deterministic=True)
        # Of chunks (7, h, 2), as the file has them.
        action = scaler.to_box(acted.view(7, -1, 2).squeeze(1))
        found = {
            "format_version": file.format_version,
            "inputs": [flat[:, :2].tolist(), flat[:, 2:].tolist(), noise.tolist()],
            "action": action.tolist(),
        }
        path.with_suffix(".json").write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
