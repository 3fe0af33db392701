"""Which way things are computed: what `using` selects, and what a tensor allows."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gtp_policy._contexts import transforming
from gtp_policy._numbers import as_int

EngineName = Literal["auto", "torch", "reference"]
_ENGINE: ContextVar[EngineName] = ContextVar("engine", default="auto")
_THREADS = ContextVar("threads", default=1)
# What a tensor has for `__torch_dispatch__` unless its class brings one, as FakeTensor does.
_AS_ALWAYS = Tensor.__torch_dispatch__


@contextmanager
def using(engine: EngineName, *, threads: int | None = None) -> Iterator[None]:
    """Chooses how things are computed within a block, for the thread that runs it.

    Args:
        engine: ``"auto"``, the fastest way for device, dtype and shape; ``"torch"``, the fastest
            one with torch's operators alone; ``"reference"``, torch's operators in the order of the
            formulas.
        threads: Threads of fused updates and folded samplers on the CPU; default unchanged, which
            is 1: at these sizes two quiet cores give 1.2 times the speed of one, and a core that is
            busy elsewhere makes every operator wait for it. The reference takes torch's own number.

    Raises:
        ValueError: If there is no such engine, or no such number of threads.

    Yields:
        Nothing.

    Example:
        >>> import torch
        >>> from gtp_policy import FlowMapActor
        >>> from gtp_policy.kernels import using
        >>> actor, obs, z = FlowMapActor(3, 2), torch.zeros(4, 3), torch.ones(4, 2)
        >>> with using("reference"):
        ...     expected = actor.sample(obs, noise=z)
        >>> torch.allclose(actor.sample(obs, noise=z), expected, atol=1e-6)
        True
    """
    if engine not in get_args(EngineName):
        raise ValueError(
            f"Unknown engine: got {engine!r}, expected 'auto', 'torch' or 'reference'."
        )
    count = as_int(threads)
    if threads is not None and (count is None or count < 1):
        raise ValueError(f"`threads` is out of range: got {threads!r}, expected an integer >= 1.")
    token = _ENGINE.set(engine)
    limit = _THREADS.set(count or _THREADS.get())
    try:
        yield
    finally:
        _THREADS.reset(limit)
        _ENGINE.reset(token)


@contextmanager
def few_threads() -> Iterator[None]:
    """Keeps torch to the number of threads that `using` allows, within a block.

    Yields:
        Nothing.

    Example:
        >>> import torch
        >>> from gtp_policy.kernels.switch import few_threads, using
        >>> with using("auto", threads=1), few_threads():
        ...     torch.get_num_threads()
        1
    """
    before, limit = torch.get_num_threads(), _THREADS.get()
    if before <= limit:
        yield
        return
    torch.set_num_threads(limit)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def engine() -> EngineName:
    """Returns what `using` selects in this thread: ``"auto"``, ``"torch"`` or ``"reference"``.

    Example:
        >>> from gtp_policy.kernels.switch import engine
        >>> engine()
        'auto'
    """
    return _ENGINE.get()


def only_reference(device: torch.device) -> str | None:
    """Returns why nothing but the reference may run at this moment, or None."""
    if engine() == "reference":
        return 'kernels.using("reference") selects it'
    if torch.is_anomaly_enabled():
        return "anomaly detection is on, which watches autograd"
    if torch.is_autocast_enabled(device.type):
        return "autocast is on"
    if transforming():
        return "a compiler, a tracer or a function transform is at work"
    return None


def explain(of: Any, rows: int | None = None) -> str:  # noqa: ANN401 - anything with `explain`
    """Returns which way something will be computed, and why not a faster one.

    Args:
        of: A `GTPLearner` or a `FlowMapActor`.
        rows: Number of observations; default what is usual.

    Returns:
        A line per computation.

    Raises:
        TypeError: If it has no choice to make.

    Example:
        >>> from gtp_policy import GTPConfig, GTPLearner
        >>> from gtp_policy.kernels import explain
        >>> print(explain(GTPLearner.build(3, 2, GTPConfig(critic=None)), rows=64))
        update: fused (gradients by hand, into buffers) on cpu, torch.float32
        sample: torch (its operators, in place), because its matrix products are the faster ones
        beyond 24 rows
    """
    if not hasattr(of, "explain"):
        raise TypeError(
            f"There is nothing to explain: got {type(of).__name__}, expected a GTPLearner or a "
            "FlowMapActor."
        )
    return "\n".join(of.explain(rows))


def plain(x: Tensor, devices: tuple[str, ...] = ("cpu",)) -> bool:
    """Returns whether a tensor is one that kernels may take.

    Not where the reference is selected, a compiler, a tracer or a function transform is at work,
    derivatives travel forward, or the tensor is one that computes in its own way.

    Args:
        x: Any tensor.
        devices: Types of devices for which there is a kernel.

    Returns:
        The answer.

    Example:
        >>> import torch
        >>> from gtp_policy.kernels.switch import plain, using
        >>> plain(torch.zeros(1)), plain(torch.zeros(1, dtype=torch.int64))
        (True, False)
        >>> with using("reference"):
        ...     plain(torch.zeros(1))
        False
    """
    return (
        not transforming()  # first: a compiler cannot trace the rest
        and type(x).__torch_dispatch__ is _AS_ALWAYS
        and (x.is_cpu if len(devices) == 1 else x.device.type in devices)
        and (x.dtype == torch.float32 or x.dtype == torch.float64)
        and _ENGINE.get() != "reference"
        and (
            forward_ad._current_level < 0  # the usual case, and the faster test
            or forward_ad.unpack_dual(x).tangent is None  # type: ignore[no-untyped-call]
        )
    )
