"""docker/: what can be checked without a docker daemon. docker/check.sh builds and runs the images."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from phs_milvus.cli import _parser
from phs_server.config import Settings
from tests.servers import REPO

DOCKER = REPO / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
TARGETS = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
SERVER_VARIABLES = {f"PHS_{field.name.upper()}" for field in dataclasses.fields(Settings)}
PINNED = re.compile(r"[\w./-]+:(v?\d+\.\d+\.\d+\S*|RELEASE\.\d{4}-\S+)|\S+@sha256:[0-9a-f]{64}")


def test_every_image_is_pinned_or_built_here() -> None:
    for name, service in SERVICES.items():
        if name in OURS:
            build = service["build"]
            assert (DOCKER / build["context"] / build["dockerfile"]).samefile(DOCKER / "Dockerfile")
            assert build["target"] in TARGETS
        else:
            assert PINNED.fullmatch(service["image"]), service["image"]
    base = re.search(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert base and PINNED.fullmatch(base[1])
    assert {"server-cpu", "server-cuda", "plugin"} <= TARGETS


@pytest.mark.parametrize("name", [name for name in OURS if SERVICES[name]["build"]["target"] == "plugin"])
def test_commands_are_ones_that_there_are(name: str) -> None:
    words = SERVICES[name]["command"]
    parser = _parser()
    (commands,) = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    if words[0] not in commands:
        pytest.skip(f"this version has no `phs-milvus {words[0]}`")
    assert parser.parse_args(words).run


def test_variables_are_settings() -> None:
    plugin = set(re.findall(r"PHS_\w+", (REPO / "phs_milvus/cli/connections.py").read_text()))
    for name in OURS:
        known = plugin if SERVICES[name]["build"]["target"] == "plugin" else SERVER_VARIABLES
        assert set(SERVICES[name]["environment"]) <= known, name
    assert set(re.findall(r"^(?:ENV)? +(PHS_\w+)=", DOCKERFILE, re.MULTILINE)) <= SERVER_VARIABLES
    used = set(re.findall(r"\$\{(\w+)", (DOCKER / "compose.yaml").read_text()))
    given = set(re.findall(r"^(\w+)=", (DOCKER / ".env").read_text(), re.MULTILINE))
    assert given - {"COMPOSE_PROFILES", "COMPOSE_PROJECT_NAME"} == used


def test_what_starts_waits_for_what_is_healthy() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[other] or SERVICES[other]["build"]["target"].startswith("server")
            assert set(SERVICES[other].get("profiles", [])) <= set(service.get("profiles", [])), (name, other)


def test_ports_are_open_to_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)


def test_images_run_as_a_user_without_rights_and_say_when_they_are_ready() -> None:
    for target in ("server-cpu", "server-cuda", "plugin"):
        stage = DOCKERFILE.partition(f" AS {target}\n")[2].partition("\nFROM ")[0]
        above = "" if target == "plugin" else DOCKERFILE.partition(" AS server\n")[2].partition("\nFROM ")[0]
        assert re.findall(r"^USER (\d+)$", above + stage, re.MULTILINE) == ["10001"]
    check = re.search(r'^HEALTHCHECK .*"-m", "([\w.]+)"\]$', DOCKERFILE, re.MULTILINE)
    assert check and importlib.util.find_spec(check[1])


def test_the_build_context_holds_what_is_copied_and_little_else() -> None:
    """Later patterns win, as docker reads them; ours have no wildcard inside a name."""
    patterns = [line for line in (REPO / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]

    def goes_in(path: str) -> bool:
        inside = True
        for pattern in patterns:
            name = pattern.lstrip("!")
            if fnmatch(path, name.removeprefix("**/")) or path.startswith(f"{name}/"):
                inside = pattern[0] == "!"
        return inside

    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert copied and all(goes_in(source) for line in copied for source in line.split())
    assert goes_in("assets/demo_model/config.json") and goes_in("models/mine/model.safetensors")
    assert not any(
        goes_in(path) for path in (".git/HEAD", ".venv/bin/python", "docker/.env", "assets/demo_scenes/0.webp")
    )


def test_kubernetes() -> None:
    service, deployment = yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {variable["name"] for variable in container["env"]} <= SERVER_VARIABLES
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["grpc"]
        assert asked["port"] == Settings().port and asked["service"] in ("readiness", "liveness")
    assert service["spec"]["ports"][0]["port"] == container["ports"][0]["containerPort"] == Settings().port
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["terminationGracePeriodSeconds"] > Settings().drain_seconds
    assert pod["securityContext"]["runAsUser"] == 10001


def run(tool: str, *arguments: str | Path, **environment: str) -> str:
    """The output of a tool, or a skip where it is not installed."""
    beside = Path(sys.executable).with_name(tool)
    found = str(beside) if beside.exists() else shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed here")
    command = [found, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=DOCKER, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_hadolint_finds_nothing() -> None:
    assert run("hadolint", "Dockerfile") == ""


def test_shellcheck_finds_nothing() -> None:
    assert run("shellcheck", "check.sh") == ""


@pytest.mark.parametrize("profile", ["cpu", "gpu", "cpu,rerank"])
def test_docker_compose_accepts_it(profile: str) -> None:
    shown = yaml.safe_load(run("docker-compose", "config", COMPOSE_PROFILES=profile))
    assert set(shown["services"]) == set(SERVICES), json.dumps(shown)
