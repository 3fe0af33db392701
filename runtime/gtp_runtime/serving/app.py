"""The application: routes, limits, and typed answers to everything that is wrong."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from gtp_runtime._version import __version__
from gtp_runtime.errors import ActionError, GTPRuntimeError
from gtp_runtime.graph import Array
from gtp_runtime.policy import Policy
from gtp_runtime.serving.batcher import Batcher, OverloadedError, TooManyRowsError, working
from gtp_runtime.serving.bodies import JSON, MSGPACK, NPY, BodyError, dump, parse


@dataclass(frozen=True)
class Limits:
    """What a server takes; beyond it, it refuses.

    Attributes:
        body_bytes: Size of a body or WebSocket message.
        body_seconds: Time for a body to arrive.
        rows: Observations in a request, and in a batch.
        waiting: Requests that wait for the computation.
        connections: Connections at a time.
    """

    body_bytes: int = 2**20
    body_seconds: float = 5.0
    rows: int = 256
    waiting: int = 256
    connections: int = 512


class _TypedError(Exception):
    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.content = {"error": {"type": kind, "message": message}}


def create_app(
    policy: Policy, limits: Limits | None = None, hosts: list[str] | None = None
) -> Starlette:
    """Returns the application that serves a policy.

    Args:
        policy: The policy.
        limits: What it takes.
        hosts: Names under which it may be called; default any. A page in a browser that has made
            its own name point here is kept out by them.

    Returns:
        The ASGI application.
    """
    limits = limits or Limits()
    batcher: Batcher | None = None
    sockets = 0

    def running() -> Batcher:
        assert batcher is not None, "the application has not started"
        return batcher

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        nonlocal batcher
        batcher = Batcher(policy, max_waiting=limits.waiting, max_rows=limits.rows)
        async with working(batcher):
            yield

    async def answer(kind: str, body: bytes, query: dict[str, str]) -> tuple[dict[str, Any], int]:
        """Returns the answer to a body, and its status."""
        id_: str | int | None = None
        try:
            try:
                request = parse(kind, body, query)
            except BodyError as error:
                running().measures.failed += 1
                raise _TypedError(400, "BodyError", str(error)) from error
            id_ = request.id
            content: dict[str, Any] = {"action": await _act(running(), request)}
            status = 200
        except _TypedError as error:
            content, status = dict(error.content), error.status
        return content | ({} if id_ is None else {"id": id_}), status

    async def act(request: HTTPRequest) -> Response:
        kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        reply = kind
        try:
            if kind not in (JSON, MSGPACK, NPY):
                raise _TypedError(
                    415,
                    "ContentTypeError",
                    f"The body has the wrong type: got {kind[:80]!r}, expected {JSON}, {MSGPACK} "
                    f"or {NPY}.",
                )
            body = await _body(request, limits)
            content, status = await answer(kind, body, dict(request.query_params))
        except _TypedError as error:
            content, status = error.content, error.status
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        if "error" in content and reply != MSGPACK:
            reply = JSON
        headers = {"retry-after": "1"} if status == 503 else {}
        if status in (408, 413):  # the rest of the body is not read
            headers["connection"] = "close"
        return Response(dump(reply, content), status, headers, reply)

    async def stream(socket: WebSocket) -> None:
        nonlocal sockets
        await socket.accept()
        if sockets >= limits.connections:
            await socket.close(1013, f"{sockets} connections are open, try again later")
            return
        sockets += 1
        try:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                text = message.get("text")
                kind = MSGPACK if text is None else JSON
                body = message["bytes"] if text is None else text.encode()
                content, _ = await answer(kind, body, {})
                if kind == JSON:
                    await socket.send_text(dump(kind, content).decode())
                else:
                    await socket.send_bytes(dump(kind, content))
                # Neither need have waited for anything: others are answered between two messages.
                await asyncio.sleep(0)
        except WebSocketDisconnect:
            return
        finally:
            sockets -= 1

    async def health(request: HTTPRequest) -> Response:
        stopping = running().stopping
        return JSONResponse({"status": "stopping" if stopping else "ok"}, 503 if stopping else 200)

    async def metadata(request: HTTPRequest) -> Response:
        about = {"runtime_version": __version__, "backend": policy.backend}
        return JSONResponse({"policy": dict(policy.document.content)} | about)

    async def metrics(request: HTTPRequest) -> Response:
        return JSONResponse(running().measures.report())

    async def wrong(request: HTTPRequest, error: Exception) -> Response:
        status = getattr(error, "status_code", 500)
        what = {404: "no such path", 405: "no such method here"}.get(status, "an unexpected error")
        kind = {404: "NotFound", 405: "MethodNotAllowed"}.get(status, "InternalError")
        return JSONResponse({"error": {"type": kind, "message": f"There is {what}."}}, status)

    return Starlette(
        routes=[
            Route("/act", act, methods=["POST"]),
            Route("/health", health),
            Route("/metadata", metadata),
            Route("/metrics", metrics),
            WebSocketRoute("/act", stream),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)] if hosts else [],
        exception_handlers={404: wrong, 405: wrong, 500: wrong},
        lifespan=lifespan,
    )


async def _act(batcher: Batcher, request: Any) -> Array:  # noqa: ANN401 - what `parse` returns
    """Returns the action, or raises what a client is told."""
    try:
        return await batcher.act(request)
    except OverloadedError as error:
        raise _TypedError(503, "OverloadedError", str(error)) from error
    except TooManyRowsError as error:
        raise _TypedError(413, "TooManyRowsError", str(error)) from error
    except ActionError as error:
        raise _TypedError(500, "ActionError", str(error)) from error
    except GTPRuntimeError as error:  # the observation, or the noise
        raise _TypedError(422, type(error).__name__, str(error)) from error


async def _body(request: HTTPRequest, limits: Limits) -> bytes:
    """Reads a body within its limits of size and time."""
    too_large = _TypedError(
        413, "BodyTooLargeError", f"The body is larger than {limits.body_bytes} bytes."
    )
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > limits.body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise too_large
    except TimeoutError as error:
        raise _TypedError(
            408, "SlowBodyError", f"The body did not arrive within {limits.body_seconds} s."
        ) from error
    return bytes(body)
