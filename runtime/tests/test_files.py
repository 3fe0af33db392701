"""Files that gtp-policy wrote, and the actions that its policies gave: both backends give them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gtp_runtime import NoiseError, Policy, example_file

FILES = sorted((Path(__file__).parent / "files").glob("*.onnx"))
# In parts of an action's range: rounding of float32; of 11 bits through all layers.
CLOSE = {"float32": 1e-6, "float16": 2e-2}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("backend", ["onnxruntime", "numpy"])
def test_a_file_acts_as_the_policy_did(path: Path, backend: Any) -> None:
    policy = Policy.load(path, backend=backend)
    document = policy.document
    with np.load(path.with_suffix(".npz")) as found:
        right = dict(found)
    parts = [right[part.input] for part in document.observation]
    keys = [part.key for part in document.observation]
    obs: Any = dict(zip(keys, parts, strict=True)) if document.is_dict else parts[0]
    span = document.high - document.low
    limit = CLOSE[document.precision]

    def compare(found: np.ndarray, action: np.ndarray) -> None:
        difference = np.abs(found - action) / span
        # Of two candidates that are worth the same, rounding may choose the other.
        assert (difference < limit).all(1).mean() > (0.95 if document.candidates > 1 else 0.9999)

    compare(policy.act(obs, deterministic=True), right["deterministic"])
    if document.noise == "keyed":
        with pytest.raises(NoiseError):
            policy.act(obs, noise=right["noise"])
        return
    compare(policy.act(obs, noise=right["noise"]), right["action"])
    for i in range(3):
        one = {k: v[i] for k, v in obs.items()} if document.is_dict else obs[i]
        alone = policy.act(one, noise=right["noise"][i])
        assert alone.shape == document.action_shape
        compare(alone[None], right["action"][i : i + 1])
    # Far outside of what it has seen, and all the same in the Box.
    far = {k: 1e6 * v for k, v in obs.items()} if document.is_dict else 1e6 * obs
    action = policy.act(far, noise=right["noise"])
    assert ((action >= document.low) & (action <= document.high)).all()


def test_files_of_every_kind_are_there() -> None:
    names = {path.stem for path in FILES}
    assert {
        "box",
        "dict",
        "candidates",
        "layer_norm",
        "mode",
        "pixels",
        "float16",
        "keyed",
    } <= names
    assert all(path.with_suffix(".npz").exists() for path in FILES)


def test_the_example_is_as_it_says() -> None:
    policy = Policy.load(example_file())
    assert policy.document.steps == 2
    assert policy.document.low.tolist() == [-2.0]
    assert np.ptp(policy.act(np.zeros((50, 3)), seed=0)) > 0.1
