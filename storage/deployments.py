"""Which model version a service ran when: deployments made by API, which are in the store, and those of a file.

Few enough to be kept in memory, those of all tenants. Called from the threads of the API and from the settling thread.
"""

import threading
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from storage.engine import Engine
from storage.linking import Deployment
from storage.row_clock import RowClock

DEPLOYMENTS_MAX = 10_000
"""Of all tenants, those of the file aside: each is looked at for every trace of its tenant."""
_STILL_RUNS = 2**63 - 1
_COLUMNS = (
    "Tenant", "DeploymentId", "Service", "Environment", "ModelName", "ModelVersion", "Since", "Until", "Deleted",
    "Updated",
)  # fmt: skip
_READ = """SELECT
    toString(Tenant), DeploymentId, Service, Environment, ModelName, ModelVersion, toUnixTimestamp64Nano(Since),
    toUnixTimestamp64Nano(Until), toUnixTimestamp64Micro(Updated), Deleted
FROM spanhouse.deployments FINAL"""
_FILE_KEYS = frozenset(("tenant", "id", "service", "environment", "model", "version", "since", "until"))


class BadDeployments(Exception):
    """A file of deployments that cannot be used. The text says what is wrong in it."""


class TooManyDeployments(Exception):
    """There is no room for another one. The text says how to make some."""


class Deployments:
    """The deployments of a store and those of a file (see `load_file`), by tenant."""

    def __init__(self, engine: Engine, of_file: Mapping[str, Sequence[Deployment]] | None = None) -> None:
        self._engine = engine
        self._changing = threading.Lock()
        self._by_tenant: dict[str, dict[str, Deployment]] = {}
        self._clock = RowClock(1_000_000, self._read())
        self._of_file = dict(of_file or {})

    def reload(self) -> None:
        """Learn what other processes changed. Raises StoreUnavailable."""
        with self._changing:
            self._read()

    def _read(self) -> int:
        """Take what the store has, and give the time of its last row."""
        last_us = 0
        by_tenant: dict[str, dict[str, Deployment]] = {}
        for *row, updated_us, deleted in self._engine.rows(_READ):
            last_us = max(last_us, updated_us)
            if not deleted:
                tenant, deployment = row[0], _deployment(row[1:])
                by_tenant.setdefault(tenant, {})[deployment.id] = deployment
        self._by_tenant = by_tenant
        return last_us

    def of(self, tenant: str) -> list[Deployment]:
        """All deployments of a tenant, by service and start."""
        found = [*self._by_tenant.get(tenant, {}).values(), *self._of_file.get(tenant, ())]
        return sorted(found, key=lambda d: (d.service, d.since_unix_nano, d.id))

    def services(self) -> set[str]:
        """Services of any tenant that have one."""
        stored = (d.service for deployments in list(self._by_tenant.values()) for d in list(deployments.values()))
        return {*stored, *(d.service for deployments in self._of_file.values() for d in deployments)}

    def put(self, tenant: str, deployment: Deployment) -> None:
        """Make a deployment, or replace the one of that id. Raises TooManyDeployments, StoreUnavailable."""
        with self._changing:
            mine = self._by_tenant.get(tenant, {})
            if deployment.id not in mine and sum(map(len, self._by_tenant.values())) >= DEPLOYMENTS_MAX:
                raise TooManyDeployments(
                    f"cannot keep more than {DEPLOYMENTS_MAX} deployments: delete some that have ended"
                )
            self._write(tenant, deployment, deleted=False)
            self._by_tenant[tenant] = {**mine, deployment.id: deployment}

    def delete(self, tenant: str, deployment_id: str) -> bool:
        """Remove a deployment; False if there is no such. Those of the file cannot be removed here."""
        with self._changing:
            mine = dict(self._by_tenant.get(tenant, {}))
            deployment = mine.pop(deployment_id, None)
            if deployment is None:
                return False
            self._write(tenant, deployment, deleted=True)
            self._by_tenant[tenant] = mine
            return True

    def _write(self, tenant: str, d: Deployment, *, deleted: bool) -> None:
        until = _STILL_RUNS if d.until_unix_nano is None else d.until_unix_nano
        row = (
            tenant, d.id, d.service, d.environment, d.model_name, d.model_version, d.since_unix_nano, until,
            int(deleted), self._clock.next(),
        )  # fmt: skip
        self._engine.insert("deployments", _COLUMNS, [row])


def _deployment(row: Sequence[Any]) -> Deployment:
    id_, service, environment, name, version, since, until = row
    return Deployment(id_, service, environment, name, version, since, None if until == _STILL_RUNS else until)


def load_file(path: Path) -> dict[str, list[Deployment]]:
    """Deployments by tenant of a TOML file. Raises BadDeployments.

    [[deployment]]
    service = "support-bot"
    environment = "prod"            # any, where left out
    model = "support"
    version = "4"
    since = 2026-01-31T12:00:00Z
    until = 2026-02-28T12:00:00Z    # still runs, where left out
    tenant = "default"              # the default
    """
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadDeployments(f"cannot read the deployments in {path}: {error}") from error
    entries = table.pop("deployment", [])
    if table or not isinstance(entries, list):
        raise BadDeployments(f"cannot use {path}: it holds [[deployment]] tables and nothing else")
    found: dict[str, list[Deployment]] = {}
    for number, entry in enumerate(entries, 1):
        try:
            deployment = _of_file(number, entry)
        except ValueError as error:
            raise BadDeployments(f"cannot use [[deployment]] number {number} in {path}: {error}") from error
        found.setdefault(entry.get("tenant", "default"), []).append(deployment)
    return found


def _of_file(number: int, entry: Mapping[str, Any]) -> Deployment:
    if unknown := sorted(set(entry) - _FILE_KEYS):
        raise ValueError(f"there is no {unknown[0]!r}; it takes {', '.join(sorted(_FILE_KEYS))}")
    texts = {key: entry.get(key, "") for key in ("id", "service", "environment", "model", "version", "tenant")}
    if wrong := [key for key, value in texts.items() if not isinstance(value, str)]:
        raise ValueError(f"{wrong[0]} is a text, in quotes")
    if missing := [key for key in ("service", "model", "version", "since") if not entry.get(key)]:
        raise ValueError(f"it needs {missing[0]}")
    until = entry.get("until")
    deployment = Deployment(
        id=texts["id"] or f"file-{number}",
        service=texts["service"],
        environment=texts["environment"],
        model_name=texts["model"],
        model_version=texts["version"],
        since_unix_nano=_nano("since", entry["since"]),
        until_unix_nano=None if until is None else _nano("until", until),
        source="file",
    )
    if deployment.until_unix_nano is not None and deployment.until_unix_nano <= deployment.since_unix_nano:
        raise ValueError("until lies before since")
    return deployment


def _nano(key: str, value: object) -> int:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError(f"{key} is a time with a zone, without quotes: 2026-01-31T12:00:00Z")
    since_1970 = value - datetime(1970, 1, 1, tzinfo=UTC)
    if not timedelta() <= since_1970 < timedelta(days=365 * 290):
        raise ValueError(f"{key} lies between 1970 and 2260")
    return since_1970 // timedelta(microseconds=1) * 1000
