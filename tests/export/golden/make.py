"""Writes the golden policy files of the current format: once per version, then never again.

``python tests/export/golden/make.py`` writes ``version_<n>.onnx``, in which the critic chooses, and
``version_<n>_mode.onnx``, which acts by the mode, each with inputs and the actions of the policy in
it; files that are there stay. The tests run every golden file there is.
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
from gtp_policy.export import export_onnx
from gtp_policy.keyed_noise import keyed_noise


def main() -> None:
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(8, 8), time_dim=4, steps=2),
        critic=QEnsembleConfig(hidden=(8,)),
        learner=GTPLearnerConfig(eval_candidates=16),
    )
    learner = GTPLearner.build(3, 2, config)
    learner.set_observation_statistics_(torch.tensor([0.0, 1.0, 2.0]), torch.ones(3))
    scaler = ActionScaler([-1.0, 0.0], [1.0, 4.0])
    layout = ObservationLayout({"position": (2,), "speed": (1,)})
    flat = torch.linspace(-2.0, 2.0, 21).reshape(7, 3)
    for name, candidates in (("version_1", 3), ("version_1_mode", None)):
        path = Path(__file__).with_name(f"{name}.onnx")
        if path.exists():
            continue
        file = export_onnx(
            learner, path, candidates=candidates, layout=layout, action_scaler=scaler
        )
        noise = keyed_noise(flat, math.prod(file.noise.shape)).view(7, *file.noise.shape)
        action = scaler.to_box(learner.act(flat, candidates=candidates, deterministic=True))
        found = {
            "format_version": file.format_version,
            "inputs": [flat[:, :2].tolist(), flat[:, 2:].tolist(), noise.tolist()],
            "action": action.tolist(),
        }
        path.with_suffix(".json").write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
