"""What follows matrix products, by Triton: interpreted, against torch's operators."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gtp_policy.kernels import using
from gtp_policy.kernels.mlp import GradientPass, Pass, Stack
from tests.interpreted import needs_triton, other_device

pytestmark = needs_triton


@pytest.fixture(scope="module", autouse=True)
def interpreted() -> Iterator[None]:
    with other_device():
        yield


@pytest.mark.parametrize(
    ("groups", "share", "norm", "activation", "transposed"),
    [
        (1, 1, False, "mish", True),
        (2, 2, False, "relu", False),
        (2, 1, False, "gelu", True),
        (4, 2, True, "mish", False),
        (1, 1, True, "gelu", False),
    ],
)
def test_passes_are_those_of_torchs_operators(
    groups: int, share: int, norm: bool, activation: Any, transposed: bool
) -> None:
    g = torch.Generator().manual_seed(0)
    outputs = 1 if share > 1 else 3
    widths, rows = [5, 9, 17, outputs], 11

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g)

    sizes = [*itertools.pairwise(widths)]
    weights = [normal(groups, *((o, i) if transposed else (i, o))) / i**0.5 for i, o in sizes]
    biases = [normal(groups, o) for _, o in sizes]
    gains, shifts = ([normal(groups, 1, o) for _, o in sizes[:-1]] for _ in range(2))
    stack = Stack(
        [w.mT if transposed else w for w in weights],
        [b.unsqueeze(1) for b in biases],
        *((gains, shifts) if norm else ()),
    )
    inputs, upstream = normal(groups // share, rows, 5), normal(groups, rows, outputs)
    found = []
    for engine in ("auto", "torch"):
        kinds = weights, biases, *([[x[:, 0] for x in k] for k in (gains, shifts)] if norm else [])
        into = Stack(*([torch.full_like(x, torch.nan) for x in kind] for kind in kinds))
        with using(engine):  # type: ignore[arg-type]
            forward = Pass(stack, rows, share=share, activation=activation)
            both = GradientPass(
                stack, rows, into, share=share, activation=activation, transposed=transposed
            )
            assert (both.triton is not None) == (engine == "auto")
            forward.inputs.copy_(inputs)
            both.inputs.copy_(inputs)
            results = [forward.run().clone(), both.run().clone()]
            both.gradients(upstream)
            both.run()
            results.append(both.input_gradients(upstream).clone())
        found.append([*results, *(x for kind in into for x in kind)])
    for mine, theirs in zip(*found, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-6 * max(scale, 1))
