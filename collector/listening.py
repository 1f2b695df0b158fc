"""Sockets to listen on, and uvicorn on a thread of its own: for the OTLP/HTTP receiver and for the query API alike.

Called from the main thread at start and stop. Each server has its own event loop, so that neither slows the other.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn

GRACE_S = 10


class CannotListen(Exception):
    """An address cannot be listened on. The text is a sentence for a person, with the way out."""


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket bound to the address; it refuses connections until a server listens. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # A port that was just left can be had again; one that somebody listens on cannot.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


@contextmanager
def named(host: str, port: int, option: str) -> Iterator[None]:
    """Say of an address that cannot be listened on which it is, and how to choose another. Raises CannotListen."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise CannotListen(f"cannot listen on {host} port {port}: {reason}; choose another with {option}") from error


def in_url(host: str) -> str:
    """A host as addresses have it."""
    return f"[{host}]" if ":" in host else host


@contextmanager
def http_server(app: Any, listener: socket.socket, ended: Callable[[], None], **options: Any) -> Iterator[None]:
    """Serve an ASGI application within the block; `options` are uvicorn's.

    Leaving it closes the listener, gives requests that are under way GRACE_S seconds, and waits for the end. `ended` is
    called on the server's thread when that ends, also when it ends by itself. Raises RuntimeError when it cannot start.
    """
    server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=GRACE_S, **options))

    def serve() -> None:
        try:
            with suppress(SystemExit):  # how uvicorn ends after it has logged why it cannot start
                server.run(sockets=[listener])
        finally:
            ended()

    thread = threading.Thread(target=serve, name="http-server")
    thread.start()
    try:
        while thread.is_alive() and not server.started:
            thread.join(0.01)
        if not server.started:
            raise RuntimeError("cannot start an HTTP server: the log says why")
        yield
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
