"""The Dockerfile without Docker: its commands run one after another in a directory that becomes the root, and what they
leave runs as the image would: as its user, without capabilities, on a root that is read-only, in a network of its own.

That needs root and Linux's namespaces. What stands in for the base image is this machine's Python, /usr and /etc.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = Path(sys.base_prefix)
NETWORK = re.compile(r"PIP_|SSL_|REQUESTS_|.*_proxy$", re.IGNORECASE)
"""Variables that this machine needs to reach packages."""


def instructions(text: str) -> list[tuple[str, str]]:
    """Those of a Dockerfile, each with its arguments as one line."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in whole.splitlines())]


def let_in(ignored: str) -> list[str]:
    """What a .dockerignore that begins with * lets in, by name."""
    lines = [line for line in ignored.splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    return [line[1:] for line in lines if line.startswith("!")]


@dataclass
class Image:
    """What the Dockerfile makes, in `root`."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": f"{PYTHON}/bin:/usr/sbin:/usr/bin:/sbin:/bin"})
    directory: str = "/"
    user: str = "0:0"
    health: list[str] = field(default_factory=list)
    entry: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def build(self, kept: Path) -> None:
        """Do what each instruction says. Packages that were installed before, by the same lock, are in `kept`."""
        for name in ("dev", "proc", "usr", "opt", "tmp", "src", str(PYTHON)[1:]):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (self.root / name).symlink_to(f"usr/{name}")
        shutil.copytree("/etc", self.root / "etc", symlinks=False, ignore_dangling_symlinks=True)
        for word, rest in instructions((ROOT / "Dockerfile").read_text()):
            if word == "ENV":
                pairs = [pair.split("=", 1) for pair in shlex.split(rest)]
                self.env |= {name: value.replace("$PATH", self.env["PATH"]) for name, value in pairs}
            elif word == "RUN":
                self._run(rest, kept)
            elif word == "COPY" and not rest.startswith("--from"):
                self._copy(rest.split())
            elif word == "FROM":
                self.directory = "/"
            elif word == "WORKDIR":
                self.directory = rest
            elif word == "USER":
                self.user = rest
            elif word == "ENTRYPOINT":
                self.entry = json.loads(rest)
            elif word == "CMD":
                self.command = json.loads(rest)
            elif word == "HEALTHCHECK":
                self.health = json.loads(rest.partition(" CMD ")[2])

    def _run(self, line: str, kept: Path) -> None:
        packages = self.root / "opt"
        if "--require-hashes" not in line:
            self.process(["sh", "-c", line], network=True).check_returncode()
        elif kept.exists():
            shutil.rmtree(packages)
            subprocess.run(["cp", "-al", kept, packages], check=True)
        else:
            self.process(["sh", "-c", line], network=True).check_returncode()
            subprocess.run(["cp", "-al", packages, kept], check=True)

    def _copy(self, paths: list[str]) -> None:
        *sources, target = paths
        assert target == "./"
        for name in let_in((ROOT / ".dockerignore").read_text()) if sources == ["."] else sources:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, self.root / self.directory[1:] / name)

    def arguments(self, command: list[str], *, network: bool = False, read_only: bool = False) -> list[str]:
        """What runs a command in the image: `unshare`, the mounts, then the command as its user."""
        root, python = shlex.quote(str(self.root)), shlex.quote(str(PYTHON))
        mounts = [
            f"mount --bind {root} {root}",
            *(f"mount --rbind {path} {root}{path}" for path in ("/usr", "/dev", "/proc", python)),
        ]
        if read_only:
            mounts += [
                f"mount -t tmpfs tmpfs {root}/tmp",
                f"mount --bind {root}/data {root}/data",
                f"mount -o remount,bind,ro {root}",
            ]
        if not network:
            mounts.append("ip link set lo up")
        environment = {**self.env, **({k: v for k, v in os.environ.items() if NETWORK.match(k)} if network else {})}
        variables = [f"{name}={value}" for name, value in environment.items()]
        inner = shlex.join([*self.as_user(), "env", "-i", "-C", self.directory, *variables, *command])
        script = " && ".join([*mounts, f"exec chroot {root} {inner}"])
        return ["unshare", "--mount", *([] if network else ["--net"]), "sh", "-c", script]

    def as_user(self) -> list[str]:
        """The beginning of a command that runs as the image's user does."""
        if self.user == "0:0":
            return []
        uid, gid = self.user.split(":")
        dropped = ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        return ["setpriv", f"--reuid={uid}", f"--regid={gid}", *dropped]

    def process(self, command: list[str], **how: bool) -> subprocess.CompletedProcess[str]:
        """`docker run`, to its end."""
        run = subprocess.run(self.arguments(command, **how), check=False, capture_output=True, text=True, timeout=280)
        if run.returncode:
            sys.stderr.write(f"{command}\n{run.stdout[-2000:]}\n{run.stderr[-4000:]}")
        return run

    def exec(self, pid: int, command: list[str]) -> subprocess.CompletedProcess[str]:
        """`docker exec`."""
        into = ["nsenter", f"--target={pid}", "--mount", "--net", f"--root=/proc/{pid}/root", f"--wd=/proc/{pid}/cwd"]
        variables = [f"{name}={value}" for name, value in self.env.items()]
        command = [*into, *self.as_user(), "env", "-i", *variables, *command]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Image]:
    """Built once. The packages of the lock stay in pytest's cache, since nothing but the lock changes them."""
    probe = ["unshare", "--mount", "--net", "sh", "-c", "ip link set lo up"]
    if os.geteuid() or any(shutil.which(tool) is None for tool in ("unshare", "setpriv", "nsenter", "ip")):
        pytest.skip("the image's commands run as root, with util-linux and iproute2")
    if subprocess.run(probe, check=False, capture_output=True).returncode:
        pytest.skip("namespaces are not allowed here")
    told = (ROOT / "Dockerfile").read_bytes() + (ROOT / "requirements.lock").read_bytes() + sys.version.encode()
    cache = pytestconfig.cache.mkdir("image")
    kept = cache / hashlib.sha256(told).hexdigest()[:16]
    for other in cache.iterdir():
        if other != kept:
            shutil.rmtree(other)
    made = Image(tmp_path_factory.mktemp("image") / "root")
    made.build(kept)
    yield made
    shutil.rmtree(made.root)


@pytest.mark.slow
@pytest.mark.timeout(600)  # packages are installed the first time
def test_it_serves_as_a_user_on_a_read_only_root(image: Image, tmp_path: Path) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    with output.open("wb") as out, log.open("wb") as err:
        arguments = image.arguments([*image.entry, *image.command], read_only=True)
        process = subprocess.Popen(arguments, stdout=out, stderr=err)
    try:
        wait_for(lambda: "Spanhouse is ready" in output.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert re.search(r"^Uid:\s+10001\s+10001", status, re.MULTILINE)
        assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
        refused = image.exec(process.pid, ["touch", "/opt/spanhouse/here"])
        assert "Read-only file system" in refused.stderr
        health = image.exec(process.pid, image.health)
        assert health.returncode == 0, health.stderr
        sent = image.exec(process.pid, ["spanhouse", "demo"])
        assert sent.returncode == 0, sent.stderr
        wait_for(lambda: "POST /chat" in image.exec(process.pid, ["spanhouse", "traces"]).stdout)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert "WARNING" not in log.read_text(), log.read_text()
    assert {path.name for path in (image.root / "data").iterdir()} == {"wal", "store", "quarantine"}
    assert not list((image.root / "tmp").iterdir())


@pytest.mark.slow
def test_its_health_check_fails_where_nothing_answers(image: Image) -> None:
    assert image.process(image.health, read_only=True).returncode == 1


def wait_for(holds, seconds_max: float = 60) -> None:
    """Wait until `holds()` is true."""
    deadline = time.monotonic() + seconds_max
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)
