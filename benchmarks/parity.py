"""How far exported policies are from the policies that they were made of, as JSON.

    python -m benchmarks.parity [--rows 20000] [--steps 1 2 5 10] [--batches 1 7 256 4096]

Untrained policies with large last layers, from everywhere that a policy may live in: a checkpoint
of the core's, models of the hosts, chunks with a history, and images with an encoder of one's own.
Each file is run by gtp-policy-runtime on all observations in batches of every size, with the noise
that the core's own sampler gets; the figure is the largest difference of an action, where an
action's range is [-1, 1]. Also: whether actions stay in the Box for observations up to 1e6, and
whether NaN is refused.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmarks.clock import conditions, versions
from benchmarks.pages import RESULTS, write
from benchmarks.runtime_files import Pixels
from gtp_policy import (
    ActionScaler,
    FlowMapActor,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    ObservationLayout,
    save_checkpoint,
)
from gtp_policy.export import PolicySource, export_onnx
from gtp_policy.export.source import source_of
from gtp_runtime import ObservationError, Policy

RESULT = RESULTS / "parity.json"
O, A = 11, 3
HIDDEN = (64, 64)
LOW, HIGH = [-2.0, 0.0, -1.0], [2.0, 1.0, 10.0]
KINDS = ("core", "sb3", "tianshou", "chunks", "images")


def policies(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yields names and policies, as `export_onnx` takes them.

    Args:
        folder: Where checkpoints go.
    """
    from gymnasium.spaces import Box

    from gtp_sb3 import MlpPolicy
    from gtp_tianshou import GTPPolicy

    scaler, small = ActionScaler(LOW, HIGH), FlowMapActorConfig(hidden=HIDDEN)
    spaces = Box(-np.inf, np.inf, (O,)), Box(np.float32(LOW), np.float32(HIGH))
    learner = GTPLearner.build(O, A, GTPConfig(actor=small, critic=None))
    _spread_(learner.target_actor)
    yield "core", save_checkpoint(folder / "core.zip", learner, action_scaler=scaler)
    MlpPolicy(*spaces, net_arch=list(HIDDEN)).save(str(folder / "sb3"))
    host = MlpPolicy.load(str(folder / "sb3"))
    _spread_(host.learner.target_actor)
    yield "sb3", host
    actor = _spread_(FlowMapActor(O, A, small, seed=1))
    yield "tianshou", GTPPolicy(actor=actor, action_space=spaces[1])
    chunks = small.replace(history=2, chunk=4)
    learner = GTPLearner.build(2 * O, 4 * A, GTPConfig(actor=chunks, critic=None))
    _spread_(learner.target_actor)
    yield "chunks", save_checkpoint(folder / "chunks.zip", learner, action_scaler=scaler)
    images = _spread_(FlowMapActor(192, A, small, encoder=Pixels()))
    layout = ObservationLayout((3, 8, 8))
    yield "images", PolicySource(images, layout=layout, action_scaler=scaler)


def _spread_(actor: FlowMapActor) -> FlowMapActor:
    """Makes the actions of an untrained actor fill their range, in place."""
    with torch.no_grad():
        for parameter in list(actor.network.parameters())[-2:]:
            parameter.mul_(3)
    return actor


def parity(
    policy: Any,  # noqa: ANN401 - as `export_onnx` takes it
    steps: int,
    rows: int,
    batches: list[int],
    precision: Any,  # noqa: ANN401 - a literal
    folder: Path,
) -> dict[str, Any]:
    """Measures one policy at one K and one precision.

    Args:
        policy: The policy.
        steps: K.
        rows: Number of observations.
        batches: Sizes of the batches.
        precision: Of the file.
        folder: Where the file goes.
    """
    path, source = folder / "policy.onnx", source_of(policy)
    export_onnx(policy, path, steps=steps, candidates=1, precision=precision)
    runtime = Policy.load(path)
    document = runtime.document
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((rows, *document.observation[0].shape), np.float32)
    noise = rng.standard_normal((rows, *document.noise_shape), np.float32)
    scaler = source.action_scaler
    assert scaler is not None, "every policy here has its bounds"
    drawn = source.actor.sample(
        torch.from_numpy(obs).flatten(1), noise=torch.from_numpy(noise), steps=steps
    )
    right = scaler.to_box(drawn.view(-1, A)).numpy().reshape(rows, *document.result_shape)
    half = (document.high - document.low) / 2
    apart = {}
    for size in batches:
        parts = [
            runtime.act(obs[i : i + size], noise=noise[i : i + size]) for i in range(0, rows, size)
        ]
        apart[str(size)] = float(np.abs((np.concatenate(parts) - right) / half).max())
    # By the graph alone: the runtime would clip to the Box once more.
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    scale = np.float32(10.0) ** rng.integers(0, 7, (rows, *[1] * (obs.ndim - 1)))
    far = (scale * obs).clip(-1e6, 1e6).astype(np.float32)
    (action,) = session.run(None, {document.observation[0].input: far, "noise": noise})
    try:
        runtime.act(np.full_like(obs[:1], np.nan), noise=noise[:1])
        refused = False
    except ObservationError:
        refused = True
    return {
        "apart": apart,
        "in_box": bool(((action >= document.low) & (action <= document.high)).all()),
        "nan_refused": refused,
    }


def main() -> None:
    """Measures and writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 5, 10])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 7, 256, 4096])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, policy in policies(folder):
            if kind not in args.kinds:
                continue
            # A network with an encoder of one's own has no file of float16.
            for precision in ("float32",) if kind == "images" else ("float32", "float16"):
                # Rounding to 11 bits hides whatever the size of a batch changes.
                batches = args.batches if precision == "float32" else args.batches[-1:]
                for steps in args.steps:
                    row = parity(policy, steps, args.rows, batches, precision, folder)
                    found.append({"kind": kind, "precision": precision, "steps": steps} | row)
                    print(found[-1], flush=True)
    record = {
        "command": f"python -m benchmarks.parity --rows {args.rows}",
        "conditions": conditions("cpu", observations=args.rows, hidden=HIDDEN),
        "versions": versions(["onnxruntime", "stable_baselines3", "tianshou"]),
        "rows": found,
    }
    write(record, args.output)


if __name__ == "__main__":
    main()
