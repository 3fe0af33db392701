"""Writes the golden policy file of the current format: once per version, then never again.

``python tests/export/golden/make.py`` writes ``version_<n>.onnx`` and, next to it, inputs and the
actions of the policy in it. The tests run every golden file there is.
"""

import json
from pathlib import Path

import torch

from gtp_policy import (
    ActionScaler,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    ObservationLayout,
    QEnsembleConfig,
)
from gtp_policy.export import export_onnx


def main() -> None:
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(8, 8), time_dim=4, steps=2),
        critic=QEnsembleConfig(hidden=(8,)),
    )
    learner = GTPLearner.build(3, 2, config)
    learner.set_observation_statistics_(torch.tensor([0.0, 1.0, 2.0]), torch.ones(3))
    scaler = ActionScaler([-1.0, 0.0], [1.0, 4.0])
    layout = ObservationLayout({"position": (2,), "speed": (1,)})
    folder = Path(__file__).parent
    file = export_onnx(
        learner, folder / "version_1.onnx", candidates=3, layout=layout, action_scaler=scaler
    )
    flat = torch.linspace(-2.0, 2.0, 21).reshape(7, 3)
    noise = torch.tensor(file.noise.fixed).reshape(1, 3, 2).expand(7, -1, -1)
    action = scaler.to_box(learner.act(flat, candidates=3, deterministic=True))
    found = {
        "format_version": file.format_version,
        "inputs": [flat[:, :2].tolist(), flat[:, 2:].tolist(), noise.tolist()],
        "action": action.tolist(),
    }
    (folder / "version_1.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
