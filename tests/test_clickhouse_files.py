"""The files of deploy/clickhouse, given to real servers and Keepers on top of ClickHouse's own, as its image does.

CLICKHOUSE_BINARY names the program. Each server has a network of its own, as in a container, with the service's name
and ports; that needs root and Linux's namespaces.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FILES = ROOT / "deploy" / "clickhouse"
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
GIB = 1 << 30
# Sends standard input to a URL, as a user, and prints what came back.
_ASK = """
import sys, urllib.error, urllib.request
url, user, key = sys.argv[1:]
who = {"X-ClickHouse-User": user, "X-ClickHouse-Key": key}
request = urllib.request.Request(url, sys.stdin.buffer.read() or None, who)
try:
    print(urllib.request.urlopen(request, timeout=120).read().decode())
except urllib.error.HTTPError as error:
    print(error.read().decode())
"""


def binary() -> str:
    """The program. Skips the test without it."""
    path = os.environ.get("CLICKHOUSE_BINARY")
    if path is None:
        pytest.skip("CLICKHOUSE_BINARY is not set: the path of a clickhouse program")
    return path


class Bridge:
    """A network of this test, to which the networks of services are connected."""

    def __init__(self) -> None:
        made = "ip link add net type bridge && ip link set net up && echo up && exec cat"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", made],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"up\n":
            pytest.skip("namespaces are not allowed here: services could not have their names and ports")

    def connect(self, pid: int, address: str) -> None:
        """Give the network of a process this address."""
        name = f"to{pid}"
        within(self._holder.pid, "ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        within(self._holder.pid, "ip", "link", "set", name, "master", "net", "up")
        within(pid, "ip", "address", "add", f"{address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            within(pid, "ip", "link", "set", link, "up")

    def close(self) -> None:
        """It goes with the process that holds it."""
        self._holder.kill()
        self._holder.wait(10)


def within(pid: int, *command: str, given: str = "") -> str:
    """What a command prints in the network of a process."""
    run = ["nsenter", f"--target={pid}", "--net", *command]
    return subprocess.run(run, check=True, input=given, capture_output=True, text=True, timeout=130).stdout.strip()


class Node:
    """A server or Keeper with the files that its service mounts, started when made."""

    def __init__(self, service: str, address: str, directory: Path, bridge: Bridge) -> None:
        self.directory = directory / service
        self._service, self._address, self._bridge = service, address, bridge
        self._env = {**os.environ, **SERVICES[service].get("environment", {}), "CLICKHOUSE_WATCHDOG_ENABLE": "0"}
        self._secrets, self._hosts = directory / "secrets", directory / "hosts"
        keeper = "keeper" in service
        self.directory.mkdir()
        if not keeper:
            self._unpack()
            anywhere = "<clickhouse><listen_host>0.0.0.0</listen_host></clickhouse>"  # the image's own file says so
            (self.directory / "etc/clickhouse-server/config.d/docker.xml").write_text(anywhere)
        for volume in SERVICES[service]["volumes"]:
            source, target = volume.split(":")[:2]
            if source.startswith("./"):
                self._put(ROOT / source, self.directory / target[1:])
        place = "clickhouse-keeper/keeper_config.xml" if keeper else "clickhouse-server/config.xml"
        self._command = [binary(), "keeper" if keeper else "server", f"--config-file={self.directory}/etc/{place}"]
        self.start()

    def _unpack(self) -> None:
        """ClickHouse's own configuration, all of whose logs are on."""
        command = [
            binary(),
            "install",
            "--link",
            "--noninteractive",
            "--user",
            "",
            "--group",
            "",
            f"--prefix={self.directory}",
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)

    def _put(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text().replace("/run/secrets/clickhouse", str(self._secrets / "clickhouse"))
        target.write_text(text.replace("/var/lib/clickhouse", f"{self.directory}/var/lib/clickhouse"))

    def start(self) -> None:
        """Start it; it may take a while until it answers."""
        run = 'mount --bind "$0" /etc/hosts && echo named && read connected && exec "$@"'
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "--net", "--mount", "sh", "-c", run, str(self._hosts), *self._command],
                env=self._env, cwd=self.directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "named\n", self.log()
        self._bridge.connect(self._process.pid, self._address)
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """Kill -9."""
        self._process.kill()
        self._process.wait(30)

    def wait(self, seconds_max: float = 60) -> None:
        """Wait until it says what its health check asks for."""
        check = SERVICES[self._service]["healthcheck"]["test"][-1]
        deadline = time.monotonic() + seconds_max
        while True:
            try:
                within(self._process.pid, sys.executable, "-c", _ASK, check, "", "")
                return
            except subprocess.CalledProcessError:
                assert self._process.poll() is None, self.log()
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.2)

    def log(self) -> str:
        """The end of what it wrote."""
        return (self.directory / "log").read_text(errors="replace")[-4000:]

    def ask(self, sql: str, user: str = "spanhouse", password: str | None = None) -> str:
        """What a statement answers, or the error's text."""
        if password is None:
            password = (self._secrets / "spanhouse" / "clickhouse-password").read_text() if user == "spanhouse" else ""
        url = "http://127.0.0.1:8123/"
        return within(self._process.pid, sys.executable, "-c", _ASK, url, user, password, given=sql)


def with_secrets(directory: Path) -> Path:
    """The directory, with passwords made by the script that makes them."""
    for name in ("spanhouse", "clickhouse"):
        (directory / "secrets" / name).mkdir(parents=True)
    command = [sys.executable, ROOT / "deploy" / "make_secrets.py"]
    subprocess.run(
        [*command, *(directory / "secrets" / n for n in ("spanhouse", "clickhouse"))], check=True, timeout=30
    )
    return directory


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The one of the profile `server`."""
    binary()
    directory = with_secrets(tmp_path_factory.mktemp("clickhouse"))
    (directory / "hosts").touch()
    bridge = Bridge()
    node = Node("clickhouse", "10.99.0.1", directory, bridge)
    try:
        node.wait()
        yield node
    finally:
        node.kill()
        bridge.close()
        shutil.rmtree(directory)


def test_every_log_table_expires(server: Node) -> None:
    server.ask("SELECT throwIf(1)")
    server.ask("SYSTEM FLUSH LOGS", user="default")
    deadline = time.monotonic() + 60
    found: dict[str, str] = {}
    # The log of errors is written when there are some; the rest when it begins.
    while not {"query_log", "part_log", "crash_log"} <= set(found) and time.monotonic() < deadline:
        found = dict(
            line.split("\t")
            for line in server.ask(
                "SELECT name, engine_full FROM system.tables"
                " WHERE database = 'system' AND engine LIKE '%MergeTree' FORMAT TSVRaw"
            ).splitlines()
        )
        time.sleep(0.5)
    assert {"query_log", "part_log", "crash_log"} <= set(found) <= {"query_log", "part_log", "crash_log", "error_log"}
    assert all(" TTL event_date + toIntervalDay(" in engine for engine in found.values()), found


def test_statements_that_are_quick_are_not_logged(server: Node) -> None:
    server.ask("SELECT 'a quick one'")
    server.ask("SELECT 'a slow one', sleep(1.2)")
    server.ask("SYSTEM FLUSH LOGS", user="default")
    seen = "SELECT count() FROM system.query_log WHERE user = 'spanhouse' AND query LIKE '{}'"
    assert server.ask(seen.format("SELECT \\'a quick one%")) == "0"
    assert int(server.ask(seen.format("SELECT \\'a slow one%"))) > 0


def test_memory_is_bounded(server: Node) -> None:
    settings = (
        "SELECT name, value FROM system.server_settings WHERE name IN ('max_server_memory_usage', 'mark_cache_size')"
    )
    bounds = dict(line.split("\t") for line in server.ask(settings).splitlines())
    assert bounds == {"max_server_memory_usage": str(3 * GIB), "mark_cache_size": str(GIB // 4)}
    assert SERVICES["clickhouse"]["mem_limit"] == "4g"
    large = "SELECT length(groupArray(number)) FROM numbers(1000000000) SETTINGS max_memory_usage = {}"
    assert "limit (for query) exceeded" in server.ask(large.format(GIB))
    assert "limit (total) exceeded" in server.ask(large.format(0))
    assert server.ask("SELECT 1") == "1"


def test_disk_is_left_free_and_no_log_file_is_written(server: Node) -> None:
    assert server.ask("SELECT keep_free_space FROM system.disks") == str(2 * GIB)
    assert not list((server.directory / "var" / "log").rglob("*.log"))


def test_users(server: Node) -> None:
    assert "Authentication failed" in server.ask("SELECT 1", password="wrong")
    assert "Authentication failed" in server.ask("SELECT 1", password="")
    assert server.ask("CREATE DATABASE spanhouse") == ""
    assert server.ask("DROP DATABASE spanhouse") == ""
    assert "Not enough privileges" in server.ask("CREATE DATABASE other")
    assert "Not enough privileges" in server.ask("SELECT * FROM url('http://127.0.0.1/', CSV, 'a String')")
    included = (server.directory.parent / "secrets" / "clickhouse" / "secrets.xml").read_text()
    password = (server.directory.parent / "secrets" / "spanhouse" / "clickhouse-password").read_text()
    assert hashlib.sha256(password.encode()).hexdigest() in included


# The cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, Node]]:
    """Its nodes and Keepers by name."""
    binary()
    names = [name for name in SERVICES if name.startswith(("keeper-", "clickhouse-"))]
    addresses = {name: f"10.99.0.{number}" for number, name in enumerate(names, 11)}
    (tmp_path / "hosts").write_text("".join(f"{address} {name}\n" for name, address in addresses.items()))
    with_secrets(tmp_path)
    bridge = Bridge()
    nodes: dict[str, Node] = {}
    try:
        for name, address in addresses.items():
            nodes[name] = Node(name, address, tmp_path, bridge)
        for node in nodes.values():
            node.wait(120)
        yield nodes
    finally:
        for node in nodes.values():
            node.kill()
        bridge.close()
        shutil.rmtree(tmp_path)


SCHEMA = """
CREATE DATABASE spanhouse_local ON CLUSTER spanhouse;
CREATE DATABASE spanhouse ON CLUSTER spanhouse;
CREATE TABLE spanhouse_local.spans ON CLUSTER spanhouse (Id UInt64)
ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/spans', '{replica}') ORDER BY Id;
CREATE TABLE spanhouse_local.seen ON CLUSTER spanhouse (Id UInt64)
ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/seen', '{replica}') ORDER BY Id;
CREATE MATERIALIZED VIEW spanhouse_local.to_seen ON CLUSTER spanhouse TO spanhouse_local.seen
AS SELECT Id FROM spanhouse_local.spans;
CREATE TABLE spanhouse.spans ON CLUSTER spanhouse AS spanhouse_local.spans
ENGINE = Distributed('spanhouse', 'spanhouse_local', 'spans', cityHash64(Id));
CREATE TABLE spanhouse.seen ON CLUSTER spanhouse AS spanhouse_local.seen
ENGINE = Distributed('spanhouse', 'spanhouse_local', 'seen')
"""


def insert(node: Node, first: int, count: int) -> str:
    numbers = f"SELECT number + {first} FROM numbers({count})"
    return node.ask(f"INSERT INTO spanhouse.spans SETTINGS distributed_foreground_insert = 1 {numbers}")


@pytest.mark.slow
def test_the_cluster_shards_replicates_and_goes_on_without_a_node_and_a_keeper(cluster: dict[str, Node]) -> None:
    first, other = cluster["clickhouse-1-1"], cluster["clickhouse-2-2"]
    for statement in SCHEMA.split(";\n"):
        assert "Exception" not in (said := first.ask(statement)), said
    assert insert(first, 0, 1000) == ""
    for name, node in cluster.items():
        if name.startswith("clickhouse-"):
            for table in ("spans", "seen"):
                assert node.ask(f"SELECT count() FROM spanhouse.{table}") == "1000"
    of_shards = [
        int(cluster[f"clickhouse-{shard}-1"].ask("SELECT count() FROM spanhouse_local.spans")) for shard in (1, 2)
    ]
    assert sum(of_shards) == 1000
    assert min(of_shards) > 400
    assert other.ask("SELECT count() FROM clusterAllReplicas('spanhouse', system.one)") == "4"
    cluster["clickhouse-1-1"].kill()
    cluster["keeper-1"].kill()
    deadline = time.monotonic() + 90
    while (said := insert(other, 1000, 1000)) != "":  # a few seconds, until the Keepers that are left agree
        assert time.monotonic() < deadline, said
        time.sleep(0.5)
    found = other.ask("SELECT uniqExact(Id) FROM spanhouse.spans")
    assert found == "2000"
    cluster["keeper-1"].start()
    first.start()
    first.wait(120)
    while first.ask("SELECT count() FROM spanhouse_local.spans") != cluster["clickhouse-1-2"].ask(
        "SELECT count() FROM spanhouse_local.spans"
    ):
        assert time.monotonic() < deadline, "the node does not make up for what it missed"
        time.sleep(0.5)
