"""Addresses of ClickHouse servers, and handles that find one that answers."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError

from storage.hosts import BadAddress, Handle, Host, Hosts, hosts_of


def test_addresses() -> None:
    assert hosts_of("http://one:81, https://two,http://[::1]") == (
        Host("one", 81, secure=False),
        Host("two", 8443, secure=True),
        Host("::1", 8123, secure=False),
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "should be like http://clickhouse:8123"),
        ("clickhouse:8123", "should be like"),
        ("http://a/b", "should be like"),
        ("tcp://a:9000", "should be like"),
        ("http://a:x", "Port could not be cast"),
        ("http://me:secret@a", "--clickhouse-password-file"),
    ],
)
def test_what_is_no_address(text: str, why: str) -> None:
    with pytest.raises(BadAddress, match=why) as refused:
        hosts_of(text)
    assert "secret" not in str(refused.value)


@pytest.fixture
def silent() -> Iterator[Host]:
    """A server that refuses everything, in words that are not ClickHouse's."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(503)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Host("127.0.0.1", server.server_port, secure=False)
    server.shutdown()
    server.server_close()


def test_no_host_answers(silent: Host) -> None:
    closed = Host("127.0.0.1", 1, secure=False)
    handle = Handle(Hosts([closed, silent, closed]))
    for _ in range(3):
        with pytest.raises(ClickHouseError):
            handle.query("SELECT 1")
    handle.close()
