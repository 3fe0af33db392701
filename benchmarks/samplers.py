"""The core's samplers, one by one: the only private names of the core that benchmarks use."""

from collections.abc import Callable
from typing import Any, get_args

from torch import Tensor

from gtp_policy import FlowMapActor

Sample = Callable[[Tensor, Tensor, Tensor], object]  # observations, noise, where actions go


def fold(actor: FlowMapActor, steps: int) -> Any:  # noqa: ANN401 - a private type of the core's
    """Returns an actor as a folded network, along the grid of its K jumps."""
    from gtp_policy import _folding

    return _folding.fold(actor, steps)


def by_torch(folded: Any) -> Sample:  # noqa: ANN401 - as above
    """Returns the sampler in torch's operators."""
    from gtp_policy.kernels.folded import TorchSampler

    run: Sample = TorchSampler(folded).run
    return run


def by_triton(folded: Any, precision: str) -> Sample:  # noqa: ANN401 - as above
    """Returns the sampler as one Triton kernel."""
    from gtp_policy.kernels.folded_triton import TritonSampler

    run: Sample = TritonSampler(folded, precision).run
    return run


def precisions() -> tuple[str, ...]:
    """Returns the precisions that the Triton kernel offers."""
    from gtp_policy.kernels.folded import Precision

    return get_args(Precision)


def with_outputs_side_by_side(folded: Any) -> Any:  # noqa: ANN401 - as above
    """Returns a folded network with copies of its weights, transposed in memory."""
    return folded._replace(weights=tuple(w.mT.contiguous().mT for w in folded.weights))
