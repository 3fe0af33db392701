"""The process that serves: a socket, uvicorn, and signals that end it gracefully."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from gtp_runtime.policy import Policy
from gtp_runtime.serving.app import Limits, create_app

_LAST_PORT = 2**16 - 1
_AHEAD = 2**16  # at least what the longest head of a request takes, which must be there as a whole
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SLOW = b'{"error":{"type":"SlowRequestError","message":"No whole request arrived in time."}}'


class _PatientFlow(FlowControl):
    """Reads on only where what has been read is nearly used up.

    Requests may be sent without waiting for answers. With each that is answered uvicorn reads on,
    up to a quarter of a megabyte, though it has others to answer that are of some bytes each.
    """

    def __init__(self, transport: asyncio.Transport, connection: h11.Connection) -> None:
        super().__init__(transport)
        self._connection = connection

    def resume_reading(self) -> None:
        if len(self._connection.trailing_data[0]) <= _AHEAD:
            super().resume_reading()


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP protocol, whose requests must be there as a whole within a time.

    The first one from when a client connects, others from their first bytes: uvicorn stops the
    clock of a connection that is kept open at any byte, and starts it again after an answer alone.
    What a client sends ahead of answers waits in the system's buffers.
    """

    seconds = 10.0
    _patient = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock of a connection.

        Args:
            transport: The connection.
        """
        super().connection_made(transport)
        self.flow = _PatientFlow(transport, self.conn)
        self._start_clock()

    def data_received(self, data: bytes) -> None:
        """Starts the clock of a request of which more has to come.

        Args:
            data: What has arrived.
        """
        super().data_received(data)
        if not self._patient and self._is_late():
            self._start_clock()

    def _start_clock(self) -> None:
        self._patient = True
        asyncio.get_running_loop().call_later(self.seconds, self._give_up, self.cycle)

    def _is_late(self) -> bool:
        """Returns whether something of a request has come, and no answer to it is under way."""
        if self.cycle is None:
            return True
        answered = self.cycle.response_complete  # a body that nobody reads may still come
        return answered and bool(
            self.conn.trailing_data[0] or self.conn.their_state is h11.SEND_BODY
        )

    def _give_up(self, before: object) -> None:
        self._patient = False
        transport = self.transport
        # A request that is answered has other limits, and a WebSocket another protocol.
        if transport.is_closing() or transport.get_protocol() is not self or not self._is_late():
            return
        if self.cycle is not before:  # that one has come, and another is late
            self._start_clock()
            return
        head = (
            "HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\n"
            f"content-length: {len(_SLOW)}\r\nconnection: close\r\n\r\n"
        )
        transport.write(head.encode() + _SLOW)
        transport.close()


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens, and whose connections send what they have at once.

    Args:
        host: An address or a name.
        port: 0 for a free one.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=128)
    # Connections have it from here. asyncio sets it on sockets that say that they are of TCP, which
    # this one does not; without it an answer's second packet waits 40 ms for the client's word.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(
    policy: Policy,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    stop_seconds: int = 10,
) -> None:
    """Serves a policy until SIGINT or SIGTERM; then answers what it has, and returns.

    Prints the address once it listens.

    Args:
        policy: The policy.
        host: Address to listen at. Others than this machine's own are open to everyone who reaches
            them: there is no encryption and no password.
        port: Port; 0 for a free one.
        limits: What it takes.
        stop_seconds: Time for what is under way when it stops.

    Raises:
        ValueError: If there is no such port.
        OSError: If the address is taken.
    """
    if not 0 <= port <= _LAST_PORT:
        raise ValueError(
            f"`port` is out of range: got {port}, expected 1 to {_LAST_PORT}, or 0 for a free one."
        )
    limits = limits or Limits()
    listener = listen(host, port)
    hosts = [*_LOOPBACK, "[::1]"] if host in _LOOPBACK else None
    options: dict[str, Any] = {
        "http": PatientProtocol,
        "ws": "websockets-sansio",
        "ws_max_size": limits.body_bytes,
        "ws_per_message_deflate": False,  # a kilobyte would be a megabyte to be read
        "limit_concurrency": limits.connections + 1,  # it refuses the one that reaches it
        "timeout_graceful_shutdown": stop_seconds,
        "timeout_keep_alive": 30,
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
    }
    server = uvicorn.Server(uvicorn.Config(create_app(policy, limits, hosts), **options))
    bound = listener.getsockname()
    name = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
    with _ended_by_signals(server):
        print(f"serving {policy!r} at http://{name}:{bound[1]}", flush=True)
        server.run(sockets=[listener])


@contextlib.contextmanager
def _ended_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """Has signals end the server, and nothing else.

    Once it has stopped, uvicorn puts back the handlers that it found and raises the signals again:
    the process would end by the signal, as one that was killed at work does.
    """
    if threading.current_thread() is not threading.main_thread():  # others get none
        yield
        return
    before = {s: signal.signal(s, server.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
