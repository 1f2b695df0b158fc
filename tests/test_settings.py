"""The table of settings: options, environment and defaults, and what is said about a value that cannot be."""

import inspect
import os
import subprocess
from pathlib import Path

import pytest
import typer.testing
from program import COMMAND

import spanhouse
from cli import store
from collector import pipeline
from query import service


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch):
    """`spanhouse serve` up to the point where the parts would start: gives the settings they would get."""

    def settings_of(*arguments: str, **environment: str) -> spanhouse.Settings:
        seen = []
        monkeypatch.setattr(spanhouse, "run", lambda settings, ready, role: seen.append(settings))
        runner = typer.testing.CliRunner(env=environment)
        result = runner.invoke(spanhouse.app, ["serve", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return seen[0]

    for name in os.environ:
        if name.startswith(spanhouse.ENV_PREFIX):
            monkeypatch.delenv(name)
    return settings_of


def test_defaults(serve) -> None:
    settings = serve()
    assert settings == spanhouse.Settings()
    assert (settings.otlp_grpc_port, settings.otlp_http_port, settings.http_port) == (4317, 4318, 4320)


def test_option_goes_before_environment_before_default(serve) -> None:
    settings = serve("--http-port=5", SPANHOUSE_HTTP_PORT="6", SPANHOUSE_HOST="::1", SPANHOUSE_DATA_DIR="/d")
    assert (settings.http_port, settings.host, settings.data_dir) == (5, "::1", Path("/d"))


@pytest.mark.parametrize(("text", "size"), [("4096", 4096), ("64MiB", 64 << 20), ("1.5 MiB", 3 << 19), ("1kB", 1000)])
def test_sizes(serve, text: str, size: int) -> None:
    assert serve(f"--request-bytes-max={text}").request_bytes_max == size


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--http-port=65536", "cannot use 65536 for --http-port (SPANHOUSE_HTTP_PORT): "),
        ("--flush-interval-s=0", "cannot use 0.0 for --flush-interval-s (SPANHOUSE_FLUSH_INTERVAL_S): "),
        ("--wal-bytes-max=much", "cannot use 'much' for --wal-bytes-max (SPANHOUSE_WAL_BYTES_MAX): "),
        ("--otlp-grpc-port=x", "Invalid value for '--otlp-grpc-port' (env var: 'SPANHOUSE_OTLP_GRPC_PORT'): "),
        ("--log-format=xml", "Invalid value for '--log-format' (env var: 'SPANHOUSE_LOG_FORMAT'): "),
        ("--wal-bytes-max=1MiB", "cannot use these settings: wal_bytes_max must be segment_bytes_max at least"),
        ("--request-bytes-max=1GiB", "cannot use these settings: in_flight_bytes_max must be twice request_bytes_max"),
        ("--data-dir=/proc/1/here", "cannot use the data directory /proc/1/here: "),
    ],
)
def test_a_wrong_value_is_named(argument: str, said: str) -> None:
    result = subprocess.run([COMMAND, "serve", argument], check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode in (1, 2)
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_variable_is_named(serve, caplog: pytest.LogCaptureFixture) -> None:
    serve(SPANHOUSE_DATADIR="/d")
    assert "ignoring SPANHOUSE_DATADIR: there is no such setting; is it SPANHOUSE_DATA_DIR?" in caplog.text


@pytest.mark.parametrize("name", spanhouse.Settings.model_fields)
def test_every_setting_is_described_and_used(name: str) -> None:
    field = spanhouse.Settings.model_fields[name]
    assert field.description
    assert field.description.endswith(".")
    code = "".join(map(inspect.getsource, (spanhouse, pipeline, service, store)))
    assert f"settings.{name}" in code, "a setting that nothing reads"


def test_a_package_that_hides_one_of_ours_is_named(tmp_path: Path) -> None:
    hiding = tmp_path / "storage"
    hiding.mkdir()
    (hiding / "__init__.py").touch()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [COMMAND, "--version"], check=False, env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert f"the package storage of Spanhouse is hidden by {hiding}" in result.stderr
