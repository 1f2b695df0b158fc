"""The HTTP servers' life: they start, they end with their block, and somebody hears it when they end."""

import socket
import threading
from typing import Any

import httpx
import pytest

from collector.listening import http_server, listen

OPTIONS = {"log_config": None, "access_log": False}


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


async def broken(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("no start today")


def test_serves_within_its_block_and_says_when_it_ended() -> None:
    ended = threading.Event()
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with http_server(hello, listener, ended.set, lifespan="off", **OPTIONS):
        assert httpx.get(f"http://127.0.0.1:{port}/").text == "hello"
        assert not ended.is_set()
    assert ended.is_set()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_server_that_cannot_start_says_so() -> None:
    with pytest.raises(RuntimeError, match="cannot start an HTTP server"):  # noqa: SIM117
        with http_server(broken, listen("127.0.0.1", 0), lambda: None, lifespan="on", **OPTIONS):
            pytest.fail("it started")


def test_a_port_that_was_just_left_can_be_had_again() -> None:
    first = listen("127.0.0.1", 0)
    port = first.getsockname()[1]
    with http_server(hello, first, lambda: None, lifespan="off", **OPTIONS):
        httpx.get(f"http://127.0.0.1:{port}/")
        with pytest.raises(OSError, match="in use"):
            listen("127.0.0.1", port)
    listen("127.0.0.1", port).close()
