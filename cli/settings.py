"""The table of settings: what `serve`, `collect` and `query` can be told, by options, by variables, and by default."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import typer
from pydantic import ByteSize, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ENV_PREFIX = "SPANHOUSE_"
MIB = 1 << 20

Role = Literal["serve", "collect", "query"]
"""What a process does: all, only receive, or only answer."""

Port = Annotated[int, Field(ge=0, le=65535)]
Bytes = Annotated[ByteSize, Field(ge=1)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    """Every setting. The options of the commands, the SPANHOUSE_ variables and docs/settings.md come from here."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    data_dir: Path = Field(Path("data"), description="Directory of the log, the store and the quarantine.")
    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. There is no authentication: use 0.0.0.0 in a network that you trust.",
    )
    otlp_grpc_port: Port = Field(4317, description="Port of OTLP/gRPC; 0 picks a free one.")
    otlp_http_port: Port = Field(4318, description="Port of OTLP/HTTP; 0 picks a free one.")
    http_port: Port = Field(4320, description="Port of the query API; 0 picks a free one.")
    request_bytes_max: Bytes = Field(
        ByteSize(64 * MIB), description="Largest request that is taken, before and after decompression."
    )
    request_spans_max: Count = Field(500_000, description="Most spans of a request that is taken.")
    in_flight_bytes_max: Bytes = Field(
        ByteSize(256 * MIB),
        description="Bytes of requests that may wait for their acknowledgement; beyond it senders are asked to retry.",
    )
    tenants_max: Count = Field(1000, description="Number of tenants that may send.")
    retransmit_window_s: Seconds = Field(
        600, description="Time for which a request is remembered, so that it is stored once when it is sent again."
    )
    retransmit_entries_max: Count = Field(131_072, description="Number of requests that are remembered.")
    wal_bytes_max: Bytes = Field(
        ByteSize(4096 * MIB), description="Size of the log and the quarantine at which senders are asked to retry."
    )
    segment_bytes_max: Bytes = Field(ByteSize(64 * MIB), description="Size at which a segment of the log is loaded.")
    flush_interval_s: Seconds = Field(
        1.0, description="Age at which a segment of the log is loaded when the loader has nothing else to do."
    )
    engine_memory_bytes_max: Bytes = Field(
        ByteSize(1536 * MIB), description="Resident memory of the process beyond which loads and queries are put off."
    )
    query_memory_bytes_max: Bytes = Field(
        ByteSize(512 * MIB), description="Memory that one query may use; beyond it the query is refused."
    )
    query_timeout_s: Seconds = Field(30, description="Time after which a query is given up.")
    clickhouse: str | None = Field(
        None,
        description="ClickHouse server that keeps the store, as http://host:8123; several with commas. "
        "Without it, chDB keeps it in this process.",
    )
    clickhouse_user: str = Field("default", description="User at the ClickHouse server.")
    clickhouse_password_file: Path | None = Field(None, description="File with the password of that user.")
    clickhouse_ca: Path | None = Field(None, description="Certificates to check the server's with, where it is https.")
    clickhouse_cluster: str | None = Field(
        None,
        description="Name of the cluster that those servers form, as their `remote_servers` has it: tables are "
        "replicated and sharded on it (docs/cluster.md).",
    )
    conventions: Path | None = Field(
        None, description="File of further attribute keys for the canonical columns (docs/conventions.md)."
    )
    redaction: Path | None = Field(
        None, description="File of rules for what is replaced or hashed before it is stored (docs/redaction.md)."
    )
    redaction_key_file: Path | None = Field(None, description="File with the key of those hashes, 16 bytes at least.")
    budgets: Path | None = Field(
        None, description="File of budgets: bytes on disk that tenants, and the store, may have (docs/budgets.md)."
    )
    budget_interval_s: Seconds = Field(10, description="Time after which the store is asked anew what tenants have.")
    disk_reserve: Annotated[ByteSize, Field(ge=0)] = Field(
        ByteSize(1024 * MIB),
        description="Bytes of each disk that are left free, a twentieth of it at most; senders are asked to retry.",
    )
    prices: Path | None = Field(None, description="File of prices of your own, before those known (docs/usage.md).")
    deployments: Path | None = Field(
        None, description="File that says which service ran which model version when (docs/links.md)."
    )
    mlflow_url: str | None = Field(
        None, description="MLflow server behind /mlflow, for all but its trace calls (docs/mlflow.md)."
    )
    registry_uri: str | None = Field(
        None, description="MLflow tracking URI that names runs, models and prompts (docs/registry.md)."
    )
    registry_models_uri: str | None = Field(
        None, description="URI of the model registry, where it is not that of the tracking server."
    )
    registry_write: bool = Field(False, description="Write links and verdicts of gates to the registry, as tags.")
    public_url: str = Field("", description="Address of this server for people, for what is written to the registry.")
    trace_spans_max: Count = Field(200_000, description="Most spans of a trace in one answer.")
    shutdown_timeout_s: Seconds = Field(
        30,
        description="Time to load what is in the log when the program stops; the rest is loaded after the next start.",
    )
    log_format: Literal["text", "json"] = Field("text", description="Form of the log and of the ready line.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")

    @model_validator(mode="after")
    def _leave_room(self) -> Self:
        if self.wal_bytes_max < self.segment_bytes_max:
            raise ValueError("wal_bytes_max must be segment_bytes_max at least")
        if self.in_flight_bytes_max < 2 * self.request_bytes_max:
            raise ValueError("in_flight_bytes_max must be twice request_bytes_max at least")
        if self.mlflow_url is not None and not self.mlflow_url.startswith(("http://", "https://")):
            raise ValueError("mlflow_url must begin with http:// or https://")
        if self.clickhouse_cluster is not None:
            if self.clickhouse is None:
                raise ValueError("clickhouse_cluster needs clickhouse, the addresses of its nodes")
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.clickhouse_cluster):
                raise ValueError("clickhouse_cluster must be a name of letters, digits, and any of _ . -")
        return self


_RECEIVES = frozenset(
    ("data_dir", "otlp_grpc_port", "otlp_http_port", "request_bytes_max", "request_spans_max", "in_flight_bytes_max",
     "tenants_max", "retransmit_window_s", "retransmit_entries_max", "wal_bytes_max", "segment_bytes_max",
     "flush_interval_s", "shutdown_timeout_s", "redaction", "redaction_key_file",
     "budgets", "budget_interval_s", "disk_reserve")
)  # fmt: skip
_ANSWERS = frozenset(
    ("query_memory_bytes_max", "query_timeout_s", "prices", "deployments", "mlflow_url", "registry_uri",
     "registry_models_uri", "registry_write", "public_url", "trace_spans_max")
)  # fmt: skip
_SCHEMA = frozenset(
    ("data_dir", "clickhouse", "clickhouse_user", "clickhouse_password_file", "clickhouse_ca", "clickhouse_cluster")
)


def names_of(command: str) -> list[str]:
    """The settings that a command takes: a role, or one that works on a store."""
    without = {"serve": frozenset[str](), "collect": _ANSWERS, "query": _RECEIVES}.get(command)
    names = Settings.model_fields
    if command == "copy":
        return [name for name in names if name in _SCHEMA and name not in ("data_dir", "clickhouse")]
    return [name for name in names if name in _SCHEMA] if without is None else [n for n in names if n not in without]


def options(command: str) -> Iterator[inspect.Parameter]:
    """One option of a command for every setting that it takes."""
    for name in names_of(command):
        field = Settings.model_fields[name]
        sizes = field.annotation is ByteSize
        option = typer.Option(
            option_name(name),
            envvar=ENV_PREFIX + name.upper(),
            help=field.description,
            metavar="BYTES" if sizes else None,
        )
        yield inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=shown(field.default) if sizes else field.default,
            annotation=Annotated[str if sizes else field.annotation, option],
        )


def option_name(setting: str) -> str:
    """`--http-port` of `http_port`."""
    return "--" + setting.replace("_", "-")


def shown(value: Any) -> str:
    """A setting's value as people write it: 64 MiB, 0.5, data."""
    return value.human_readable(separator=" ").replace(".0 ", " ") if isinstance(value, ByteSize) else f"{value}"


class BadSettings(Exception):
    """Settings that cannot be used. The text says which and why."""


def settings_of(given: dict[str, Any]) -> Settings:
    """The settings from options, environment and defaults, in this order. Raises BadSettings."""
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = []
        for item in error.errors():
            name = ".".join(map(str, item["loc"]))
            where = (
                f" {item['input']!r} for {option_name(name)} ({ENV_PREFIX}{name.upper()})"
                if name
                else " these settings"
            )
            wrong.append(f"cannot use{where}: {item['msg'].removeprefix('Value error, ')}")
        raise BadSettings("; ".join(wrong)) from error
