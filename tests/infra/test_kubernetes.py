"""infra/k8s renders, keeps to Kubernetes' schemas and to what the commands take; docs/kubernetes.md says what works."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click import Command, Context
from typer.main import get_command

from compose_file import ROOT
from millrace.bulk import service
from millrace.cli import app
from millrace_schemas.job import queue_of
from millrace_schemas.keys import QueueKeys
from millrace_worker.config import load

Object = dict[str, Any]
K8S = ROOT / "infra" / "k8s"
DOC = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
OVERLAYS = ("base", "overlays/demo", "overlays/gpu", "overlays/autoscaled")
KUBECTL = str(Path(sys.executable).with_name("kubectl"))
VERSIONS = ("1.30", "1.37")
WORKLOADS = ("Deployment", "StatefulSet")
#: Seconds that a worker needs beside its grace, as docs/operating.md has it.
BESIDE = 20
SECRETS = {"millrace-redis", "millrace-s3", "millrace-hub", "millrace-metrics-key"}


def kubectl(*args: str, cwd: Path = ROOT) -> str:
    # Whatever cluster somebody's configuration names, it is not asked.
    environ = {**os.environ, "KUBECONFIG": os.devnull}
    done = subprocess.run([KUBECTL, *args], cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{args}: {done.stderr}"
    assert not done.stderr, done.stderr
    return done.stdout


@cache
def rendered(folder: Path | str) -> tuple[Object, ...]:
    return tuple(yaml.safe_load_all(kubectl("kustomize", str(K8S / folder))))


def of(objects: tuple[Object, ...], *kinds: str) -> list[Object]:
    return [found for found in objects if found["kind"] in kinds]


def one(objects: tuple[Object, ...], kind: str, name: str) -> Object:
    (found,) = (
        found for found in of(objects, kind) if re.fullmatch(f"{name}(-[a-z0-9]{{10}})?", found["metadata"]["name"])
    )
    return found


def blocks(language: str) -> list[str]:
    """Of the page."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", DOC, re.DOTALL | re.MULTILINE)
    return [text for of_language, text in found if of_language == language]


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The overlay of the page, in a copy."""
    root = shutil.copytree(K8S, tmp_path_factory.mktemp("mine") / "k8s")
    folder = root / "overlays" / "mine"
    folder.mkdir()
    (text,) = (text for text in blocks("yaml") if "kind: Kustomization" in text)
    (folder / "kustomization.yaml").write_text(text)
    return folder


@pytest.fixture(params=[*OVERLAYS, "mine"])
def objects(request: pytest.FixtureRequest, mine: Path) -> tuple[Object, ...]:
    return rendered(mine if request.param == "mine" else request.param)


def containers(objects: tuple[Object, ...]) -> list[tuple[Object, Object]]:
    """Pods with each of their containers."""
    pods = [found["spec"]["template"] for found in of(objects, *WORKLOADS)]
    return [(pod["spec"], container) for pod in pods for container in pod["spec"]["containers"]]


def settings_of(objects: tuple[Object, ...], container: Object) -> dict[str, str]:
    """What the container's environment has from config maps."""
    maps = [source["configMapRef"]["name"] for source in container.get("envFrom", ()) if "configMapRef" in source]
    return {key: value for name in maps for key, value in one(objects, "ConfigMap", name)["data"].items()}


#: What may stand in an object that Kubernetes' own schemas do not know: (fields that must, fields that may).
CUSTOM: dict[str, dict[str, tuple[set[str], set[str]]]] = {
    "ScaledObject": {
        "": (
            {"scaleTargetRef", "triggers", "minReplicaCount", "maxReplicaCount"},
            {"pollingInterval", "cooldownPeriod", "initialCooldownPeriod", "advanced"},
        ),
        "scaleTargetRef": ({"name"}, {"kind", "apiVersion"}),
        "triggers": ({"type", "metadata"}, {"name", "authenticationRef", "metricType"}),
        "triggers.authenticationRef": ({"name"}, {"kind"}),
        # Without consumerGroup: the scaler then counts the stream's entries.
        "triggers.metadata": ({"address", "stream", "streamLength"}, {"enableTLS", "databaseIndex"}),
        "advanced": (set(), {"horizontalPodAutoscalerConfig"}),
        "advanced.horizontalPodAutoscalerConfig": (set(), {"behavior"}),
    },
    "TriggerAuthentication": {
        "": ({"secretTargetRef"}, set()),
        "secretTargetRef": ({"parameter", "name", "key"}, set()),
    },
    "PodMonitor": {
        "": ({"selector", "podMetricsEndpoints"}, set()),
        "podMetricsEndpoints": ({"port"}, {"interval", "relabelings"}),
        "podMetricsEndpoints.relabelings": ({"targetLabel", "replacement"}, set()),
    },
    "ServiceMonitor": {
        "": ({"selector", "endpoints"}, set()),
        "endpoints": ({"port"}, {"interval", "relabelings", "authorization"}),
        "endpoints.authorization": ({"credentials"}, {"type"}),
        "endpoints.authorization.credentials": ({"name", "key"}, set()),
        "endpoints.relabelings": ({"targetLabel", "replacement"}, set()),
    },
    "PrometheusRule": {
        "": ({"groups"}, set()),
        "groups": ({"name", "rules"}, set()),
        "groups.rules": ({"alert", "expr", "labels", "annotations"}, {"for"}),
    },
}
API = {"ScaledObject": "keda.sh/v1alpha1", "TriggerAuthentication": "keda.sh/v1alpha1"}


def check_custom(found: Object) -> None:
    assert found["apiVersion"] == API.get(found["kind"], "monitoring.coreos.com/v1")
    for path, (must, may) in CUSTOM[found["kind"]].items():
        places = [found["spec"]]
        for name in filter(None, path.split(".")):
            inner = [place[name] for place in places if name in place]
            places = [item for value in inner for item in (value if isinstance(value, list) else [value])]
        for place in places:
            assert must <= set(place) <= must | may, (found["kind"], path, set(place))


def test_objects_keep_to_their_schemas(objects: tuple[Object, ...]) -> None:
    for found in objects:
        if found["kind"] in CUSTOM:
            check_custom(found)
            continue
        for version in VERSIONS:
            kubernetes_validate.validate(found, version, strict=True)


def test_scaling_behaves_as_an_autoscaler_may() -> None:
    (scaled,) = of(rendered("overlays/autoscaled"), "ScaledObject")
    behavior = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "worker"},
        "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "worker"}, "maxReplicas": 8, "behavior": behavior},
    }
    for version in VERSIONS:
        kubernetes_validate.validate(autoscaler, version, strict=True)


def test_pods_are_confined(objects: tuple[Object, ...]) -> None:
    for pod, container in containers(objects):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] >= 100
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        own = container["securityContext"]
        assert own["readOnlyRootFilesystem"] is True
        assert own["allowPrivilegeEscalation"] is False
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert {"/tmp"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
    assert all(account["automountServiceAccountToken"] is False for account in of(objects, "ServiceAccount"))


def test_a_gpu_worker_asks_for_a_gpu() -> None:
    objects = rendered("overlays/gpu")
    pod, container = next((pod, one) for pod, one in containers(objects) if one["name"] == "worker")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert any(toleration["key"] == "nvidia.com/gpu" for toleration in pod["tolerations"])
    assert load(environ=settings_of(objects, container)).engine.device == "cuda"
    # Its volume in place of the one in memory of the node, not beside it.
    (cache,) = (volume for volume in pod["volumes"] if volume["name"] == "cache")
    assert set(cache) == {"name", "ephemeral"}


def test_images_are_pinned_and_are_built(objects: tuple[Object, ...]) -> None:
    built = re.findall(r"^FROM .* AS (\S+)$", (ROOT / "infra/docker/Dockerfile").read_text(), re.MULTILINE)
    for _, container in containers(objects):
        name, _, tag = container["image"].rpartition(":")
        assert re.fullmatch(r"\d+\.\d+\.\d+(-\w+)?", tag), container["image"]
        name = name.rpartition("/")[2]
        assert name in {*built, "redis"}, container["image"]


def test_pods_have_the_time_that_they_need(objects: tuple[Object, ...]) -> None:
    for pod, container in containers(objects):
        left = pod["terminationGracePeriodSeconds"]
        settings = settings_of(objects, container)
        if container["name"] == "worker":
            assert left > load(environ=settings).stream.grace + BESIDE
        if container["name"] == "bulk":
            assert left >= service._GRACE + BESIDE
        if container["name"] == "gateway":
            assert left > container["lifecycle"]["preStop"]["sleep"]["seconds"] + BESIDE


def test_probes_ask_for_what_is_there(objects: tuple[Object, ...]) -> None:
    for _, container in containers(objects):
        ports = {port["name"] for port in container.get("ports", ())}
        probes = {name: container[name] for name in container if name.endswith("Probe")}
        assert "readinessProbe" in probes
        asked = {
            name: probe["httpGet"]["path"]
            for name, probe in probes.items()
            if "httpGet" in probe and probe["httpGet"]["port"] in ports
        }
        if container["name"] == "worker":
            assert asked == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
        if container["name"] == "gateway":
            # Ready without a worker: whoever is to wake one submits here.
            assert asked == dict.fromkeys(("startupProbe", "livenessProbe", "readinessProbe"), "/healthz")


def test_settings_are_those_of_the_commands(objects: tuple[Object, ...]) -> None:
    for _, container in containers(objects):
        settings = settings_of(objects, container)
        if container["name"] == "worker":
            config = load(environ={**settings, "MILLRACE_REDIS_URL": "redis://redis/0"})
            (port,) = container["ports"]
            assert config.metrics_port == port["containerPort"]
            assert config.metrics_host == "0.0.0.0"
            own = {name.removeprefix("MILLRACE_").lower() for name in settings if name.startswith("MILLRACE_")}
            assert own <= set(flatten(config))
        if container["name"] in ("gateway", "bulk"):
            parse([expanded(word, settings) for word in container["args"]])
        if container["name"] == "gateway":
            (port,) = container["ports"]
            assert f"--port={port['containerPort']}" in container["args"]


def expanded(word: str, settings: dict[str, str]) -> str:
    """As Kubernetes does it."""
    return re.sub(r"\$\((\w+)\)", lambda name: settings[name[1]], word)


def flatten(config: Any) -> list[str]:
    return [*config.__struct_fields__, *config.engine.__struct_fields__, *config.stream.__struct_fields__]


def parse(line: list[str]) -> None:
    """What the command line parser says of `millrace ...`, without running anything."""
    assert line[0] == "millrace"
    command: Command = get_command(app)
    context, words = Context(command, info_name="millrace"), line[1:]
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context(line[-1], words, parent=context)


def test_what_is_referred_to_is_there(objects: tuple[Object, ...]) -> None:
    accounts = {account["metadata"]["name"] for account in of(objects, "ServiceAccount")}
    names = set()
    for pod, container in containers(objects):
        assert pod["serviceAccountName"] in accounts
        volumes = {volume["name"] for volume in pod.get("volumes", ())}
        claims = {claim for found in of(objects, "StatefulSet") for claim in claims_of(found)}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes | claims
        names |= set(re.findall(r"'(?:secretKeyRef|secretRef)': {[^}]*'name': '([^']+)'", str(container)))
        settings_of(objects, container)
    assert names <= SECRETS
    assert not of(objects, "Secret")
    assert all(f"| `{name}` |" in DOC for name in SECRETS)


def claims_of(found: Object) -> list[str]:
    return [claim["metadata"]["name"] for claim in found["spec"]["volumeClaimTemplates"]]


def test_selectors_find_pods(objects: tuple[Object, ...]) -> None:
    pods = [found["spec"]["template"] for found in of(objects, *WORKLOADS)]

    def selected(labels: dict[str, str]) -> list[Object]:
        return [pod for pod in pods if labels.items() <= pod["metadata"]["labels"].items()]

    for found in objects:
        kind, spec = found["kind"], found.get("spec", {})
        if kind in (*WORKLOADS, "PodDisruptionBudget", "PodMonitor"):
            assert len(selected(spec["selector"]["matchLabels"])) == 1, found["metadata"]
        if kind == "Service":
            (pod,) = selected(spec["selector"])
            ports = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
            assert {port["targetPort"] for port in spec["ports"]} <= ports
        if kind == "ServiceMonitor":
            services = of(objects, "Service")
            labels = spec["selector"]["matchLabels"].items()
            (service_found,) = (one for one in services if labels <= one["metadata"]["labels"].items())
            assert spec["endpoints"][0]["port"] in {port["name"] for port in service_found["spec"]["ports"]}
        if kind == "NetworkPolicy":
            assert selected(spec["podSelector"]["matchLabels"]), found["metadata"]
        if kind == "ScaledObject":
            assert spec["scaleTargetRef"]["name"] in {d["metadata"]["name"] for d in of(objects, "Deployment")}
    budgets = {found["metadata"]["name"] for found in of(objects, "PodDisruptionBudget")}
    assert budgets == {found["metadata"]["name"] for found in of(objects, "Deployment")}


def test_every_pod_is_closed_by_default(objects: tuple[Object, ...]) -> None:
    closed = one(objects, "NetworkPolicy", "default-deny")["spec"]
    assert set(closed) == {"podSelector", "policyTypes"}
    labels = closed["podSelector"]["matchLabels"]
    for found in of(objects, *WORKLOADS):
        assert labels.items() <= found["spec"]["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("folder", ["overlays/autoscaled", "mine"])
def test_scaling_looks_at_the_models_lanes(folder: str, mine: Path) -> None:
    objects = rendered(mine if folder == "mine" else folder)
    (scaled,) = of(objects, "ScaledObject")
    (worker,) = (container for _, container in containers(objects) if container["name"] == "worker")
    settings = settings_of(objects, worker)
    lanes = QueueKeys(queue_of(settings["MILLRACE_SERVED_MODEL_NAME"])).lanes
    triggers = scaled["spec"]["triggers"]
    assert {trigger["name"]: trigger["metadata"]["stream"] for trigger in triggers} == lanes
    assert all(isinstance(value, str) for trigger in triggers for value in trigger["metadata"].values())
    # Its number is KEDA's; and the model is known for long after its last worker.
    assert "replicas" not in one(objects, "Deployment", "worker")["spec"]
    config = load(environ=settings)
    assert config.stream.model_ttl >= 7 * 86_400
    scale_down = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    (policy,) = scale_down["policies"]
    pod = one(objects, "Deployment", "worker")["spec"]["template"]["spec"]
    assert policy["periodSeconds"] >= pod["terminationGracePeriodSeconds"]
    authentications = {found["metadata"]["name"] for found in of(objects, "TriggerAuthentication")}
    assert {trigger["authenticationRef"]["name"] for trigger in triggers} <= authentications


def test_alerts_are_those_of_prometheus() -> None:
    folder = K8S / "components" / "monitoring"
    made = subprocess.run([sys.executable, folder / "rules.py"], capture_output=True, text=True, check=True).stdout
    assert (folder / "rules.yaml").read_text() == made, "run infra/k8s/components/monitoring/rules.py"
    assert "docker" not in made
    assert ".env" not in made
    source = yaml.safe_load((ROOT / "infra/prometheus/rules.yml").read_text())
    rules = yaml.safe_load(made)["spec"]["groups"][0]["rules"]
    assert [rule["expr"] for rule in rules] == [rule["expr"] for rule in source["groups"][0]["rules"]]
    jobs = set(re.findall(r'job="(\w+)"', str(rules)))
    monitors = yaml.safe_load_all((folder / "monitors.yaml").read_text())
    assert jobs <= {found["metadata"]["name"] for found in monitors}


def commands() -> list[str]:
    return [line.partition("  #")[0].strip() for text in blocks("") for line in text.splitlines()]


def of_kubectl(test: Callable[[list[str]], bool]) -> list[str]:
    return [line for line in commands() if line.startswith("kubectl ") and test(shlex.split(line)[1:])]


@pytest.mark.parametrize("line", of_kubectl(lambda words: words[0] == "create"))
def test_commands_of_the_page_that_create(line: str) -> None:
    assert kubectl(*shlex.split(line)[1:], "--dry-run=client", "--output=yaml")


@pytest.mark.parametrize("line", of_kubectl(lambda words: words[0] == "kustomize" or "--kustomize" in words))
def test_commands_of_the_page_that_apply(line: str, mine: Path) -> None:
    folder = Path(shlex.split(line)[-1])
    assert rendered(mine if folder.name == "mine" else ROOT / folder)


def test_other_commands_of_the_page() -> None:
    """Names that exist, and flags that kubectl knows; `millrace` in a pod as its parser takes it."""
    names = {
        f"{kind}/{name}" for kind, name in (("deployment", "worker"), ("deployment", "bulk"), ("service", "gateway"))
    }
    seen = set()
    for line in of_kubectl(lambda words: True):
        words = shlex.split(line)
        seen.add(words[1])
        assert {word for word in words if re.match(r"(deployment|service)/", word)} <= names
        if "--" in words:
            parse(words[words.index("--") + 1 :])
            words = words[: words.index("--")]
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        # Of the command, which has up to three words.
        depth = {"create": 3 if words[2] == "secret" else 2, "rollout": 2, "set": 2}.get(words[1], 1)
        known = kubectl(*words[1 : 1 + depth], "--help") + kubectl("options")
        assert all(re.search(rf"{flag}\b", known) for flag in flags), line
    assert {"apply", "create", "drain", "exec", "kustomize", "logs", "port-forward", "rollout", "set"} <= seen


def test_manifests_in_the_page_are_valid() -> None:
    for text in blocks("yaml"):
        found = yaml.safe_load(text)
        if found["kind"] != "Kustomization":
            kubernetes_validate.validate(found, VERSIONS[-1], strict=True)
