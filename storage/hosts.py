"""Handles on a ClickHouse server, or on whichever node of a cluster answers.

A handle is opened when it is first used, so that the program starts while the servers are away. All handles of a
process use one host, so that it reads what it wrote, until that does not answer; a statement that reads is asked once
more elsewhere then.
"""

import random
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
import zstandard
from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError

CONNECT_TIMEOUT_S = 5
SEND_RECEIVE_TIMEOUT_S = 300
# A node without its neighbours or its Keeper answers, but cannot do what another one can: NETWORK_ERROR,
# SOCKET_TIMEOUT, TABLE_IS_READ_ONLY, ALL_CONNECTION_TRIES_FAILED, NO_ZOOKEEPER, TOO_FEW_LIVE_REPLICAS,
# ALL_REPLICAS_ARE_STALE, KEEPER_EXCEPTION, and what an overloaded one says: TOO_MANY_SIMULTANEOUS_QUERIES.
_ELSEWHERE_CODES = frozenset({202, 209, 210, 225, 242, 279, 285, 369, 999})


class BadAddress(Exception):
    """The address of a server is none; the text says why."""


@dataclass(frozen=True, slots=True)
class Host:
    """Where a server listens for HTTP."""

    host: str
    port: int
    secure: bool


def hosts_of(text: str) -> tuple[Host, ...]:
    """The hosts of `http://one:8123,http://two:8123`. Raises BadAddress."""
    return tuple(_host(one.strip()) for one in text.split(","))


def _host(text: str) -> Host:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as error:
        raise BadAddress(f"cannot use the ClickHouse address {text!r}: {error}") from error
    if url.username or url.password:
        raise BadAddress("cannot use a ClickHouse address with a password in it: give it by --clickhouse-password-file")
    if url.scheme not in ("http", "https") or not url.hostname or url.path.strip("/") or url.query:
        raise BadAddress(f"cannot use the ClickHouse address {text!r}: it should be like http://clickhouse:8123")
    secure = url.scheme == "https"
    return Host(url.hostname, port or (8443 if secure else 8123), secure)


class Hosts:
    """The servers, how to log in, and the settings of every statement. Thread-safe."""

    def __init__(
        self,
        hosts: Sequence[Host],
        user: str = "default",
        password: str = "",
        ca: Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._hosts = hosts
        self._login: dict[str, Any] = {"username": user, "password": password, "ca_cert": str(ca) if ca else ""}
        self._settings = dict(settings or {})
        self._first = random.randrange(len(hosts))  # processes spread over the nodes

    def connect(self) -> tuple[Any, int]:
        """A client of the host that answered last, or else of the next that answers, and the number of that host.

        Raises ClickHouseError.
        """
        failed: ClickHouseError | None = None
        first = self._first
        for place in range(len(self._hosts)):
            number = (first + place) % len(self._hosts)
            host = self._hosts[number]
            try:
                client = clickhouse_connect.get_client(
                    host=host.host,
                    port=host.port,
                    secure=host.secure,
                    connect_timeout=CONNECT_TIMEOUT_S,
                    send_receive_timeout=SEND_RECEIVE_TIMEOUT_S,
                    autogenerate_session_id=False,  # a session does one statement at a time, and dies with its node
                    form_encode_query_params=True,  # traces by the thousand do not fit into an address
                    query_retries=0,
                    settings=self._settings,
                    **{key: value for key, value in self._login.items() if value},
                )
            except (ClickHouseError, ssl.SSLError) as error:
                failed = error if isinstance(error, ClickHouseError) else OperationalError(str(error))
            else:
                self._first = number
                return client, number
        assert failed is not None
        raise failed

    def leave(self, number: int) -> None:
        """This host is in trouble: whoever connects next begins with the one after it."""
        if self._first == number:
            self._first = (number + 1) % len(self._hosts)


class Handle:
    """A client that is opened at first use, and on another host when its own is away or cannot do what is asked."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._client: Any = None
        self._host = 0

    def command(self, cmd: str, parameters: dict[str, Any] | None = None) -> Any:
        """Run a statement."""
        return self._do("command", cmd, parameters=parameters)

    def query(self, query: str, **options: Any) -> Any:
        """Ask, once more on another host if this one went away."""
        try:
            return self._do("query", query, **options)
        except OperationalError:
            return self._do("query", query, **options)

    def insert(
        self, table: str, data: Sequence[Sequence[Any]], column_names: list[str], settings: dict[str, Any]
    ) -> Any:
        """Insert rows of Python's values."""
        return self._do("insert", table, data, column_names=column_names, settings=settings)

    def raw_insert(self, table: str, column_names: Sequence[str], block: bytes, settings: dict[str, Any]) -> Any:
        """Insert a block in the server's own format.

        It travels compressed: a twelfth of the bytes for a tenth more of the processor (decision 8).
        """
        small = zstandard.ZstdCompressor(level=1).compress(block)
        return self._do("raw_insert", table, column_names, small, settings, fmt="Native", compression="zstd")

    def close(self) -> None:
        """Let go of the connection; the next use opens another."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _do(self, what: str, *arguments: Any, **named: Any) -> Any:
        if self._client is None:
            self._client, self._host = self._hosts.connect()
        try:
            return getattr(self._client, what)(*arguments, **named)
        except ClickHouseError as error:
            if isinstance(error, OperationalError) or getattr(error, "code", None) in _ELSEWHERE_CODES:
                self.close()
                self._hosts.leave(self._host)
            raise
