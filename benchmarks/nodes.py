"""Counts what a recorded update holds and what a launch leaves to the host; needs no GPU.

    python -m benchmarks.gpu --nodes

The record is ``benchmarks/results/nodes.json``, printed as one line of JSON; its ``nodes_m1`` and
``host_ops_per_launch`` are those of the default. Nothing is computed: tensors are those of the meta
device, Triton's kernels are counted where they would be launched. A node is an operator that is no
view, or a kernel of Triton's; some operators are two kernels on a GPU, and a product may be split
into two. Counted of the host are all operators of a launch outside of its graph, views among them.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.contenders import Case
from benchmarks.pages import RESULTS, write
from gtp_policy import (
    GTPConfig,
    GTPLearner,
    MultiSeedLearner,
    OfflineDataset,
    PolicyBaseline,
    QEnsembleConfig,
    _folding,
    presets,
)
from gtp_policy._engine import choice, support
from gtp_policy._engine.choice import LAUNCH
from gtp_policy._engine.cuda_graph import GraphedUpdate
from gtp_policy.actor import ActionStatistics
from gtp_policy.kernels import (
    draws_triton_kernel,
    folded_triton_kernel,
    mlp_triton_kernel,
    philox,
    triton_launch,
    update_triton_kernel,
)

OUTPUT = RESULTS / "nodes.json"
DEFAULT = "the default"
SEEDS = 16
# Microseconds that a node takes on an H200, lower and upper end: an estimate on paper, from the
# time between two kernels of a graph and from products of this size, and not a measurement.
NODE_MICROSECONDS = (3.7, 4.4)
# Operators that make a tensor without a kernel, or only ask for something.
_FREE = (
    "empty",
    "new_empty",
    "detach",
    "alias",
    "device",
    "promote_types",
    "resolve",
    "unsafe_view",
)


class Counted(TorchDispatchMode):
    """Notes every operator and every launch of a kernel of Triton's, by name."""

    def __init__(self, *, views: bool = False) -> None:
        super().__init__()
        self.names: list[str] = []
        self._views = views

    def __torch_dispatch__(
        self,
        function: Any,  # noqa: ANN401
        kinds: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        name = function._schema.name.split("::")[1].strip("_")
        if self._views or not (function.is_view or name.startswith(_FREE)):
            self.names.append(name)
        return function(*args, **(kwargs or {}))

    def launch(self, kernel: Any, *_: object, **__: object) -> None:  # noqa: ANN401
        """Notes a kernel instead of launching it."""
        self.names.append(f"triton {getattr(kernel, '__name__', None) or kernel.fn.__name__}")


class _Stream:
    cuda_stream = 0

    def __init__(self, *_: object) -> None:
        pass

    def wait_stream(self, other: object) -> None:
        """Waits for nothing."""


class _Graph:
    """Stands for a CUDA graph: what is recorded into it is the body of a `with` block."""

    def replay(self) -> None:
        """Launches nothing."""


@contextlib.contextmanager
def pretended_gpu() -> Iterator[None]:
    """Lets the meta device, which computes nothing, take the ways that a GPU takes."""

    def nothing(*_: object, **__: object) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    stubs = {
        "current_stream": _Stream,
        "Stream": _Stream,
        "stream": nothing,
        "device": nothing,
        "device_of": nothing,
        "synchronize": lambda *_: None,
    }
    kernels = (draws_triton_kernel, folded_triton_kernel, mlp_triton_kernel, update_triton_kernel)
    with contextlib.ExitStack() as stack:
        for name, stub in stubs.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stub))
        for module in kernels:  # which would be interpreted, if they were not counted
            stack.enter_context(mock.patch.object(module, "INTERPRETED", True))
        stack.enter_context(mock.patch.object(triton_launch, "launch", return_value=None))
        stack.enter_context(mock.patch.object(philox, "serves", return_value=True))
        # Torch knows no autocast of the meta device.
        stack.enter_context(mock.patch.object(choice, "only_reference", return_value=None))
        for module in (_folding, support):
            stack.enter_context(mock.patch.object(module, "DEVICES", ("cpu", "meta")))
        yield


@contextlib.contextmanager
def counting(*, views: bool = False) -> Iterator[Counted]:
    """Yields what notes operators and launches of the block."""
    counted = Counted(views=views)
    with mock.patch.object(triton_launch, "launch", counted.launch), counted:
        yield counted


def count(policy: GTPConfig, case: Case | None = None, *, seeds: int = 1) -> dict[str, Any]:
    """Counts one update of a config, and a launch of sixteen updates of a dataset's minibatches.

    Args:
        policy: The config.
        case: Dimensions and size of minibatches; default Hopper's.
        seeds: S.

    Returns:
        With their numbers: names of an update's nodes, of the host's operators for one more launch,
        and of those for a call of `update_from` in addition.
    """
    case = case or Case()
    if policy.learner.normalize_actions:  # what a dataset would set
        n = case.action_dim
        statistics = ActionStatistics(mean=(0.0,) * n, std=(0.5,) * n)
        policy = policy.replace(actor=policy.actor.replace(action_statistics=statistics))
    several = [
        GTPLearner.build(
            case.obs_dim,
            case.action_dim,
            policy.replace(learner=policy.learner.replace(seed=seed)),
        )
        for seed in range(seeds)
    ]
    rows = torch.zeros(8, case.obs_dim)
    dataset = OfflineDataset.from_arrays(
        obs=rows,
        action=rows[:, :1].expand(-1, case.action_dim),
        reward=rows[:, 0],
        next_obs=rows,
        terminated=rows[:, 0],
        truncated=rows[:, 0] + 1,
        low=[-1.0] * case.action_dim,
        high=[1.0] * case.action_dim,
    ).to("meta")
    for learner in several:
        learner.to("meta")
        for name, optimizer in learner.optimizers.items():
            optimizer.param_groups[0]["params"] = list(getattr(learner, name).parameters())
    nodes: list[list[str]] = []

    def record(update: GraphedUpdate) -> _Graph:
        with counting() as counted:
            update.compute()
        nodes.append(counted.names)
        return _Graph()

    with pretended_gpu(), mock.patch.object(GraphedUpdate, "record_graph", record):
        own = several[0] if seeds == 1 else MultiSeedLearner(several)
        own.update_from(dataset, LAUNCH, batch_size=case.batch)
        if not nodes:
            raise RuntimeError(f"Updates are not recorded: got {several[0].explain()[0]!r}.")
        host = []
        for launches in (1, 2):
            with counting(views=True) as counted:
                own.update_from(dataset, launches * LAUNCH, batch_size=case.batch)
            host.append(Counter(counted.names))
    each = Counter(nodes[0])
    return {
        "nodes": {name: number / LAUNCH for name, number in each.most_common()},
        "host": dict(host[1] - host[0]),
        "host_per_call": dict(host[0] + host[0] - host[1]),
    }


def _number(counts: dict[str, float]) -> int:
    return round(sum(counts.values()))


def configs() -> dict[str, GTPConfig]:
    """Returns what is counted, by the names that the page has: all with one sampled action.

    Guidance starts at once, since the clone that comes before it takes fewer nodes.
    """
    norm = QEnsembleConfig(layer_norm=True)
    found = {
        "`presets.paper_loss()`": presets.paper_loss(),
        "the same, critic with layer normalisation": presets.paper_loss().replace(critic=norm),
        "`presets.one_step()`": presets.one_step(),
        DEFAULT: GTPConfig(),
    }
    run = {"baseline": PolicyBaseline(samples=1), "guidance_start": 0}
    return {
        name: policy.replace(learner=policy.learner.replace(**run))
        for name, policy in found.items()
    }


def measure() -> dict[str, Any]:
    """Returns the record that the page's table is made from."""
    policies = configs()
    counts = {name: count(policy) for name, policy in policies.items()}
    default = counts[DEFAULT]
    run = policies[DEFAULT].learner.replace(guidance_start=None)
    cloning = count(policies[DEFAULT].replace(learner=run))
    several = count(policies[DEFAULT], seeds=SEEDS)
    nodes = _number(default["nodes"])
    return {
        "nodes_m1": nodes,
        "host_ops_per_launch": _number(default["host"]),
        "estimated_ms": [round(nodes * each / 1000, 2) for each in NODE_MICROSECONDS],
        "estimated_node_us": list(NODE_MICROSECONDS),
        "command": "python -m benchmarks.gpu --nodes",
        "updates_per_launch": LAUNCH,
        "nodes": {name: _number(found["nodes"]) for name, found in counts.items()},
        "nodes_before_guidance": _number(cloning["nodes"]),
        "host_ops_per_call": _number(default["host_per_call"]),
        "seeds": SEEDS,
        "nodes_of_seeds": _number(several["nodes"]),
        "host_ops_per_launch_of_seeds": _number(several["host"]),
        "node_names": default["nodes"],
    }


def main() -> None:
    """Writes the record, and prints it."""
    record = measure()
    write(record, OUTPUT)
    print(json.dumps(record))
