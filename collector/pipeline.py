"""What takes spans, put together: the log, the loader behind it and the receivers in front of it.

Used from the main thread, at start and stop.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Protocol

from pydantic import ByteSize

from collector import otlp_http
from collector.admission import Admission
from collector.budget_rules import Rules
from collector.budgets import Budgets, Stored
from collector.budgets_api import BudgetMetrics
from collector.disk_reserve import DiskReserve
from collector.erasing import Intake
from collector.ledger import Ledger
from collector.listening import http_server, in_url, listen, named
from collector.loader import Load, Loader, Prepare
from collector.otlp_grpc import OtlpGrpc
from collector.quarantine import Quarantine
from collector.wal import Wal
from storage.engine import Engine
from storage.erasure import Unloaded
from storage.sampler import Sampler
from storage.volumes import Volumes


class Settings(Protocol):
    """What it takes of the settings; their page says what each means (docs/settings.md)."""

    data_dir: Path
    clickhouse: str | None
    host: str
    otlp_grpc_port: int
    otlp_http_port: int
    segment_bytes_max: ByteSize
    flush_interval_s: float
    wal_bytes_max: ByteSize
    request_bytes_max: ByteSize
    request_spans_max: int
    in_flight_bytes_max: ByteSize
    retransmit_window_s: float
    retransmit_entries_max: int
    tenants_max: int
    budget_interval_s: float
    disk_reserve: ByteSize
    shutdown_timeout_s: float


class Receivers(NamedTuple):
    """Where spans are received, and what takes OTLP/HTTP requests that come another way."""

    addresses: dict[str, str]
    otlp: otlp_http.OtlpHttp


class Pipeline:
    """The log, the loader behind it and the receivers in front of it. Made, guarded and received with in this order."""

    def __init__(self, settings: Settings, budgets: Rules, parts: ExitStack, ledger: Ledger) -> None:
        """Open the log. `parts` gets what is to be stopped. Raises WalInUse, OSError."""
        self._settings, self._budget_rules, self._parts, self._ledger = settings, budgets, parts, ledger
        data_dir = settings.data_dir.absolute()
        self._wal_directory = data_dir / "wal"
        self.wal = Wal(
            self._wal_directory,
            ledger,
            segment_bytes_max=settings.segment_bytes_max,
            flush_interval_s=settings.flush_interval_s,
            wal_bytes_max=settings.wal_bytes_max,
            queue_bytes_max=settings.in_flight_bytes_max,
            retransmit_window_s=settings.retransmit_window_s,
            quarantine_bytes=lambda: self.quarantine.bytes_on_disk(),  # noqa: PLW0108 (it opens below)
        )
        parts.callback(self.wal.release)
        self.quarantine = Quarantine(data_dir / "quarantine", ledger)

    def unloaded(self) -> Unloaded:
        """What erasures find beside the store."""
        return Intake(self.wal, self.quarantine, self._wal_directory)

    def ready(self) -> dict[str, str]:
        """What keeps it from taking requests, by part."""
        refusals = {"log": self.wal.refusal(), "disk": self._reserve.refusal()}
        return {part: refusal for part, refusal in refusals.items() if refusal}

    def guard(self, engine: Engine, sampler: Sampler, on_low: Callable[[], None]) -> None:
        """Begin to keep tenants within their budgets, and room on the disks. `on_low` is called when there is none."""
        volumes, settings = Volumes(engine), self._settings
        self.budgets = Budgets(
            self._budget_rules,
            self.wal,
            lambda: Stored(*volumes.of_tenants()),
            shorten=engine.shorten,
            sample=sampler.keep_of_ordinary,
            every_s=settings.budget_interval_s,
        )
        self._ledger.registry.register(BudgetMetrics(self.budgets))
        directories = [self._wal_directory, *([] if settings.clickhouse else [settings.data_dir.absolute() / "store"])]
        self._reserve = DiskReserve(
            directories,
            settings.disk_reserve,
            disks=volumes.rooms if settings.clickhouse else tuple,
            on_low=on_low,
        )
        for part in (self.budgets, self._reserve):
            part.start()
            self._parts.callback(part.stop)

    def held(self) -> dict[str, int]:
        """Bytes that it keeps beside the store."""
        return {"wal_bytes": self.wal.bytes_held(), "quarantine_bytes": self.quarantine.bytes_on_disk()}

    def receive(self, load: Load, prepare: Prepare, sampler: Sampler, broken: Callable[[], None]) -> Receivers:
        """Begin to load, and to receive. Calls `broken` when a receiver ends by itself."""
        settings, parts, host = self._settings, self._parts, self._settings.host
        loader = Loader(
            self.wal, load, self.quarantine, self._ledger, prepare=sampler.prepared(prepare), sampling=sampler
        )
        loader.start()
        parts.callback(loader.stop, settings.shutdown_timeout_s)
        parts.callback(self.wal.close)

        admission = Admission(
            self.wal.append,
            self._ledger,
            request_bytes_max=settings.request_bytes_max,
            request_spans_max=settings.request_spans_max,
            in_flight_bytes_max=settings.in_flight_bytes_max,
            retransmit_window_s=settings.retransmit_window_s,
            retransmit_entries_max=settings.retransmit_entries_max,
            tenants_max=settings.tenants_max,
            allow=self._allow,
        )
        for tenant, digest, received_unix_nano in self.wal.recent_digests():
            admission.remember(tenant, digest, received_unix_nano)

        otlp_grpc = OtlpGrpc(admission, f"{in_url(host)}:{settings.otlp_grpc_port}")
        with named(host, settings.otlp_grpc_port, "--otlp-grpc-port"):
            otlp_grpc.start()
        parts.callback(otlp_grpc.stop)

        app = otlp_http.OtlpHttp(admission)
        parts.callback(app.close)
        with named(host, settings.otlp_http_port, "--otlp-http-port"):
            listener = listen(host, settings.otlp_http_port)
        parts.enter_context(http_server(app, listener, broken, **otlp_http.UVICORN_OPTIONS))
        grpc_address = f"{in_url(host)}:{otlp_grpc.port}"
        http_address = f"http://{in_url(host)}:{listener.getsockname()[1]}"
        return Receivers({"otlp_grpc": grpc_address, "otlp_http": http_address}, app)

    def _allow(self, tenant: str, size: int) -> None:
        self._reserve.allow(tenant, size)
        self.budgets.allow(tenant, size)
