"""docker-compose.yml, the Dockerfile and the manifests: what they name exists, and they fit their schemas."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import check_jsonschema
import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml

import spanhouse

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROFILES = ("server", "cluster", "single")
OVERLAYS = ("server", "cluster")
COMMANDS = set(typer.main.get_command(spanhouse.app).commands)  # type: ignore[attr-defined]
VARIABLES = {spanhouse.ENV_PREFIX + name.upper() for name in spanhouse.Settings.model_fields}


def of_profile(profile: str) -> dict[str, dict[str, Any]]:
    return {name: service for name, service in SERVICES.items() if profile in service["profiles"]}


def ours(service: dict[str, Any]) -> bool:
    """Whether it runs Spanhouse."""
    return "build" in service and "entrypoint" not in service


def manifests(overlay: str) -> list[dict[str, Any]]:
    """What kubectl would apply. Skips the test without kubectl."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is missing")
    command = ["kubectl", "kustomize", DEPLOY / "kubernetes" / "overlays" / overlay]
    made = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    return list(yaml.safe_load_all(made))


def pods(overlay: str) -> dict[str, dict[str, Any]]:
    """The pods' specs by the names of what makes them."""
    made = [each for each in manifests(overlay) if "template" in each.get("spec", {})]
    return {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in made}


# What is named of Spanhouse


@pytest.mark.parametrize("service", [name for name, service in SERVICES.items() if ours(service)])
def test_compose_names_commands_and_settings_that_exist(service: str) -> None:
    assert SERVICES[service]["command"][0] in COMMANDS
    assert set(SERVICES[service].get("environment", {})) <= VARIABLES


def test_the_image_names_settings_that_exist() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert set(re.findall(r"SPANHOUSE_\w+", text)) <= VARIABLES
    assert 'ENTRYPOINT ["spanhouse"]' in text
    [command] = json.loads(text.rpartition("CMD ")[2])
    assert command in COMMANDS
    settings = spanhouse.Settings()
    ports = [settings.otlp_grpc_port, settings.otlp_http_port, settings.http_port]
    assert f"EXPOSE {' '.join(map(str, ports))}" in text
    assert f"'SPANHOUSE_HTTP_PORT', '{settings.http_port}'" in text


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_name_commands_and_settings_that_exist(overlay: str) -> None:
    found = {each["containers"][0]["args"][0] for each in pods(overlay).values() if "args" in each["containers"][0]}
    assert found == {"collect", "query", "migrate"}
    assert found <= COMMANDS
    [settings] = [
        each["data"] for each in manifests(overlay) if each["kind"] == "ConfigMap" and "haproxy.cfg" not in each["data"]
    ]
    assert set(settings) <= VARIABLES


def test_pages_name_settings_that_exist() -> None:
    for page in ("docker.md", "kubernetes.md"):
        named = set(re.findall(r"SPANHOUSE_[A-Z_]+", (ROOT / "docs" / page).read_text()))
        assert named <= VARIABLES | {"SPANHOUSE_IMAGE"}


def test_the_image_is_made_of_all_packages() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    project = (ROOT / "pyproject.toml").read_text()
    packages = re.search(r"^packages = (\[.*\])$", project, re.MULTILINE)
    assert packages is not None
    needed = {name.partition(".")[0] for name in json.loads(packages[1])}
    assert let_in == needed | {"pyproject.toml", "requirements.lock", "README.md", "spanhouse.py"}


# Compose


def test_compose_fits_its_schema() -> None:
    schema = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(COMPOSE, json.loads(schema.read_text()))


@pytest.mark.parametrize("profile", PROFILES)
def test_compose_itself_takes_it(profile: str) -> None:
    ways = [way for way in (["docker", "compose"], ["docker-compose"]) if shutil.which(way[0])]
    compose = next((way for way in ways if not subprocess.run([*way, "version"], check=False).returncode), None)
    if compose is None:
        pytest.skip("Docker Compose is missing")
    command = [*compose, "--profile", profile, "config", "--services"]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout
    assert set(found.split()) == set(of_profile(profile))


def test_one_profile_is_the_one_without_asking() -> None:
    assert all(len(service["profiles"]) == 1 for service in SERVICES.values()), "profiles share nothing"
    assert "COMPOSE_PROFILES=server" in (ROOT / ".env").read_text().splitlines()


@pytest.mark.parametrize("profile", PROFILES)
def test_ports_are_the_defaults_for_this_machine_only_and_once(profile: str) -> None:
    ports = [port.split(":") for service in of_profile(profile).values() for port in service.get("ports", [])]
    assert {host for host, _, _ in ports} == {"127.0.0.1"}
    published = [int(outside) for _, outside, _ in ports]
    assert len(set(published)) == len(published)
    settings = spanhouse.Settings()
    assert {settings.otlp_grpc_port, settings.otlp_http_port, settings.http_port} <= set(published)


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_is_bounded_and_holds_no_password(service: str) -> None:
    told = SERVICES[service]
    assert told["mem_limit"]
    assert told["logging"]["options"]["max-size"]
    assert not [name for name in told.get("environment", {}) if "PASSWORD" in name and not name.endswith("_FILE")]
    if "build" in told or "haproxy" in told["image"]:
        assert (told["read_only"], told["cap_drop"]) == (True, ["ALL"])


@pytest.mark.parametrize("profile", PROFILES)
def test_volumes_are_there_and_no_two_write_to_one(profile: str) -> None:
    writers: list[str] = []
    for service in of_profile(profile).values():
        for source, target, *mode in (volume.split(":") for volume in service.get("volumes", [])):
            if source.startswith("./"):
                assert (ROOT / source).is_file(), source
            else:
                assert source in COMPOSE["volumes"]
                writers += [source] * (mode != ["ro"])
            if target == "/run/secrets/clickhouse":
                assert "clickhouse" in source
    assert len(set(writers)) == len(writers)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_collector_has_a_volume_and_time_to_load(profile: str) -> None:
    for service in of_profile(profile).values():
        if ours(service) and service["command"] in (["collect"], ["serve"]):
            assert any(volume.endswith(":/data") for volume in service["volumes"])
            assert int(service["stop_grace_period"].removesuffix("s")) > 2 * spanhouse.Settings().shutdown_timeout_s
            assert not any("clickhouse" in name for name in service.get("depends_on", {})), "it starts without"


def test_addresses_are_those_of_services() -> None:
    for profile, cluster in (("server", None), ("cluster", "spanhouse")):
        for service in of_profile(profile).values():
            if ours(service):
                hosts = re.findall(r"http://([\w-]+):8123", service["environment"]["SPANHOUSE_CLICKHOUSE"])
                assert set(hosts) == {name for name in of_profile(profile) if re.match(r"clickhouse(-\d|$)", name)}
                assert service["environment"].get("SPANHOUSE_CLICKHOUSE_CLUSTER") == cluster
    known = {
        alias
        for name, service in of_profile("cluster").items()
        for networks in [service.get("networks", [])]
        for alias in [name, *(networks["cluster"]["aliases"] if isinstance(networks, dict) else [])]
    }
    files = {file: (DEPLOY / file).read_text() for file in ("clickhouse/cluster.xml", "clickhouse/keeper.xml")}
    for text in files.values():
        assert set(re.findall(r"<host(?:name)?>([^<]+)<", text)) <= known
    assert set(re.findall(r'"\$\{\w+-([\w-]+)\}"', (DEPLOY / "balancer/haproxy.cfg").read_text())) <= known
    nodes = [service["environment"] for name, service in SERVICES.items() if re.match(r"clickhouse-\d-\d", name)]
    assert len({(node["SHARD"], node["REPLICA"]) for node in nodes}) == 4


def test_passwords_are_made_once(tmp_path: Path) -> None:
    first, second = tmp_path / "spanhouse", tmp_path / "clickhouse"
    first.mkdir()
    second.mkdir()
    seen = []
    for _ in range(2):
        subprocess.run([sys.executable, DEPLOY / "make_secrets.py", first, second], check=True, timeout=30)
        seen.append(((first / "clickhouse-password").read_text(), (second / "secrets.xml").read_text()))
    assert seen[0] == seen[1]
    assert seen[0][0] not in seen[0][1]
    (first / "clickhouse-password").unlink()
    (first / "clickhouse-password").write_text("my own\n")
    subprocess.run([sys.executable, DEPLOY / "make_secrets.py", first, second], check=True, timeout=30)
    assert (second / "secrets.xml").read_text() != seen[0][1]


# Kubernetes


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("version", ["1.29", "1.34", "1.37"])
def test_manifests_fit_their_schemas(overlay: str, version: str) -> None:
    for manifest in manifests(overlay):
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_what_the_restricted_standard_asks(overlay: str) -> None:
    for spec in pods(overlay).values():
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        [container] = spec["containers"]
        security = container["securityContext"]
        assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False)
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} == set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_service_puts_variables_into_a_pod_of_ours(overlay: str) -> None:
    """A service of the name `spanhouse-http` would set SPANHOUSE_HTTP_PORT."""
    for name, spec in pods(overlay).items():
        assert name == "spanhouse-balancer" or spec["enableServiceLinks"] is False


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_select(overlay: str) -> None:
    made = manifests(overlay)
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in made if "template" in each.get("spec", {})]
    for each in made:
        spec = each.get("spec", {})
        selector = {"Service": spec.get("selector"), "PodDisruptionBudget": spec.get("selector"),
                    "NetworkPolicy": spec.get("podSelector")}.get(each["kind"])  # fmt: skip
        if selector is not None:
            wanted = selector.get("matchLabels", selector).items()
            assert any(wanted <= one.items() for one in labels), each["metadata"]["name"]


def test_a_collector_in_kubernetes_has_a_volume_and_time_to_load() -> None:
    [collect] = [each for each in manifests("cluster") if each["kind"] == "StatefulSet"]
    assert collect["spec"]["volumeClaimTemplates"][0]["metadata"]["name"] == "data"
    assert collect["spec"]["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    template = collect["spec"]["template"]["spec"]
    assert template["terminationGracePeriodSeconds"] > 2 * spanhouse.Settings().shutdown_timeout_s
    services = [each for each in manifests("cluster") if each["kind"] == "Service"]
    [headless] = [each for each in services if each["spec"].get("clusterIP") == "None"]
    assert collect["spec"]["serviceName"] == headless["metadata"]["name"]
    [balancer] = [spec["containers"][0] for name, spec in pods("cluster").items() if name == "spanhouse-balancer"]
    hosts = {each["name"]: each.get("value", "") for each in balancer["env"]}
    for at in range(collect["spec"]["replicas"]):
        assert hosts[f"COLLECTOR_{at + 1}"].startswith(
            f"{collect['metadata']['name']}-{at}.{headless['metadata']['name']}."
        )


# What these tests stand on


def test_there_is_something_to_look_at() -> None:
    assert {profile for service in SERVICES.values() for profile in service["profiles"]} == set(PROFILES)
    assert os.access(ROOT / "Dockerfile", os.R_OK)
