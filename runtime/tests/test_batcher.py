"""The batcher by itself: who is computed together, who fails alone, and how it ends."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest
from onnx_writer import document, graph, model, node, policy_bytes, port

from gtp_runtime import Policy
from gtp_runtime.errors import ActionError

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("msgpack", reason="the extra `serve` is not installed")
from gtp_runtime.serving.batcher import Batcher, working
from gtp_runtime.serving.bodies import Request


def root() -> Policy:
    """Returns a policy that acts by the square root of what it sees: NaN below 0."""
    content = document(action__shape=[3], action__low=[-9.0] * 3, action__high=[9.0] * 3)
    content["noise"] = {"source": "keyed", "input": None, "shape": [1]}
    ports = [port("obs", ("batch", 3))], [port("action", ("batch", 3))]
    nodes = [node("Sqrt", ["obs"], ["action"])]
    return Policy.load(model(graph(nodes, {}, *ports), {"gtp_policy": json.dumps(content)}))


def ask(obs: Any) -> Request:
    return Request(np.asarray(obs), deterministic=False, seed=None, id=None)


def test_a_request_without_an_action_fails_alone() -> None:
    asked = [[[1.0, 4.0, 9.0]], [[-1.0] * 3], [[16.0] * 3, [25.0] * 3], [[-4.0] * 3], [[0.0] * 3]]

    async def run() -> list[Any]:
        batcher = Batcher(root(), max_waiting=8, max_rows=8)
        tasks = [asyncio.create_task(batcher.act(ask(obs))) for obs in asked]
        await asyncio.sleep(0)  # all of them wait before the first is computed
        async with working(batcher):
            found = await asyncio.gather(*tasks, return_exceptions=True)
        assert (batcher.measures.batches, batcher.measures.answered) == (1, 3)
        assert batcher.measures.failed == 2
        return found

    found = asyncio.run(run())
    for obs, action in zip(asked, found, strict=True):
        if np.min(obs) < 0:
            assert isinstance(action, ActionError)
        else:
            np.testing.assert_allclose(action, np.sqrt(obs))


def test_it_ends_where_all_who_waited_have_gone() -> None:
    async def run() -> None:
        batcher = Batcher(Policy.load(policy_bytes()), max_waiting=8, max_rows=8)
        tasks = [asyncio.create_task(batcher.act(ask([1, 2, 3]))) for _ in range(3)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        batcher.stop()
        await asyncio.wait_for(batcher.work(), 60)
        assert batcher.measures.batches == 0

    asyncio.run(run())
