"""Triton's kernels on the CPU, interpreted, and updates that are recorded without a GPU."""

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gtp_policy import learner
from gtp_policy._engine import choice, launches
from gtp_policy._engine.cuda_graph import GraphedUpdate
from gtp_policy.kernels import mlp, philox

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed: it comes with torch's builds for CUDA, on Linux",
)


@contextlib.contextmanager
def interpreter() -> Iterator[None]:
    """Lets Triton's kernels be interpreted: it decides when they are defined."""
    from gtp_policy.kernels import draws_triton, mlp_triton, update_triton

    kernels = [module.kernel for module in (draws_triton, mlp_triton, update_triton)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        names = ("", ".core", ".math", ".standard", ".random")
        own = [importlib.import_module(f"triton.language{name}") for name in names]
        # The interpreter patches these, and functions within functions what it has patched.
        kinds = [x for x in vars(own[1]).values() if isinstance(x, type)]
        before = [dict(vars(module)) for module in (*own, *kinds)]
        _define_anew()
        for kernel in kernels:
            importlib.reload(kernel)
        yield
    for thing, was in zip((*own, *kinds), before, strict=True):
        for name, value in was.items():
            if vars(thing).get(name) is not value:
                setattr(thing, name, value)
    for kernel in kernels:
        importlib.reload(kernel)


def _define_anew() -> None:
    """Does it for Triton's own functions too, sums and random numbers among them."""
    language = importlib.import_module("triton.language")
    for name in ("standard", "random"):
        module = importlib.import_module(f"triton.language.{name}")
        before = {k: v for k, v in vars(module).items() if vars(language).get(k) is v}
        importlib.reload(module)
        for known in before:
            setattr(language, known, getattr(module, known))


@contextlib.contextmanager
def other_device() -> Iterator[None]:
    """Lets updates on the CPU take the ways of another device, by Triton's kernels."""
    with interpreter(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlp, "in_blocks", lambda x: False)
        yield


class Graph:
    """Replays by computing again what was recorded, from the same places."""

    def __init__(self, update: GraphedUpdate) -> None:
        self._update = update

    def replay(self) -> None:
        self._update.compute()


@contextlib.contextmanager
def recording(launch: int = 2) -> Iterator[list[int]]:
    """Records updates on the CPU, some in a launch; yields the launches' numbers of updates."""
    seen: list[int] = []
    replay = GraphedUpdate.replay

    def noted(update: GraphedUpdate) -> Any:
        seen.append(update.updates)
        return replay(update)

    with other_device(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(philox, "serves", lambda device: True)
        patch.setattr(GraphedUpdate, "_beside", lambda _: contextlib.nullcontext())
        patch.setattr(GraphedUpdate, "record_graph", lambda update: Graph(update))
        patch.setattr(GraphedUpdate, "replay", noted)
        patch.setattr(torch.cuda, "synchronize", lambda *_: None)
        for module in (choice, launches, learner):
            patch.setattr(module, "LAUNCH", launch)
        yield seen
