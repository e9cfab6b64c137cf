"""docker-compose.yml, .env.example and the Dockerfiles keep their rules; infra/verify_compose.sh runs them."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from compose_file import COMPOSE, ROOT, services, variables

SERVICES = services()
DOCKERFILES = sorted((ROOT / "infra" / "docker").glob("*Dockerfile"))
#: name:version, where the version has at least two numbers.
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+(\.\d+)?[\w.-]*")
GPU_PROFILE = {"worker-gpu": ["gpu"]}


def test_which_services_there_are() -> None:
    assert {"redis", "s3", "gateway", "worker", "worker-gpu", "bulk", "prometheus", "grafana"} <= set(SERVICES)
    assert {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service} == GPU_PROFILE


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] not in ("", "root", "0", 0)
    assert service["read_only"] is True
    assert all(path.startswith("/tmp") and "size=" in path for path in service["tmpfs"])
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_limited_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    assert float(service["cpus"]) > 0
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["pids_limit"] > 0
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["options"]["max-size"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_tells_its_health(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_the_health_of_others(name: str) -> None:
    for other, condition in SERVICES[name].get("depends_on", {}).items():
        assert "healthcheck" in SERVICES[other]
        assert condition == {"condition": "service_healthy"}


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned(name: str) -> None:
    assert PINNED.fullmatch(SERVICES[name]["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_published_on_this_machine_alone(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", ()))


def test_only_the_gateway_can_be_published_wider() -> None:
    lines = (ROOT / "docker-compose.yml").read_text(encoding="utf-8").splitlines()
    assert [line.split("[")[0].strip() for line in lines if "GATEWAY_BIND" in line and "ports" in line] == ["ports:"]
    assert all('"127.0.0.1:' in line or "GATEWAY_BIND" in line for line in lines if line.strip().startswith("ports:"))


def test_redis_keeps_what_it_was_given() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    for setting in ("appendonly yes", "maxmemory-policy noeviction", "requirepass $$REDISCLI_AUTH"):
        assert setting in command
    assert SERVICES["redis"]["volumes"] == ["redis-data:/data"]


def test_secrets_are_asked_for() -> None:
    asked = {name for name, (kind, _) in variables().items() if kind == "?"}
    assert asked == {"REDIS_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "GRAFANA_PASSWORD"}
    assert all(f"set {name} there" in variables()[name][1] for name in asked)


def test_a_gpu_is_reserved() -> None:
    (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_a_worker_has_time_to_drain() -> None:
    for name in ("worker", "worker-gpu"):
        grace = float(SERVICES[name]["environment"]["MILLRACE_GRACE"])
        assert grace < float(SERVICES[name]["stop_grace_period"].removesuffix("s"))


def example() -> list[tuple[str, str, str]]:
    """Name, value and the line above, of each setting in .env.example."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    settings = [(line, above) for above, line in zip(["", *lines], lines, strict=False) if re.match(r"\w+=", line)]
    return [(*line.split("=", 1), above) for line, above in settings]


def test_the_example_names_what_compose_reads() -> None:
    # Compose itself reads the project's name.
    assert {name for name, _, _ in example()} == {*variables(), "COMPOSE_PROJECT_NAME"}
    assert len(example()) == len({name for name, _, _ in example()})


def test_the_examples_values_are_the_defaults() -> None:
    used = variables()
    for name, value, _ in example():
        if name in used and used[name][0] == "-":
            assert value == used[name][1], name


def test_every_group_of_the_example_has_a_comment() -> None:
    assert all(above.startswith("#") or "=" in above for _, _, above in example())


def test_every_dockerfile_is_looked_at() -> None:
    assert {path.name for path in DOCKERFILES} == {"Dockerfile", "s3.Dockerfile"}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_is_pinned_and_leaves_root(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", text, re.MULTILINE)
    assert stages
    names = {name for _, name in stages}
    assert all(base in {*names, "scratch"} or PINNED.fullmatch(base) for base, _ in stages)
    assert "latest" not in text
    assert not re.search(r"^ADD ", text, re.MULTILINE)
    for stage in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]:
        if "\nCMD " in stage:
            assert re.search(r"^USER 10001:10001$", stage, re.MULTILINE)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_takes_a_dockerfile(path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


#: What Compose knows of a service, as far as it is used here; another key is a slip of the pen.
KEYS = {
    "build", "cap_drop", "command", "cpus", "depends_on", "deploy", "entrypoint", "environment", "healthcheck", "image",
    "init", "logging", "mem_limit", "pids_limit", "ports", "profiles", "read_only", "restart", "security_opt",
    "stop_grace_period", "tmpfs", "ulimits", "user", "volumes",
}  # fmt: skip


def test_the_file_is_one_that_compose_takes() -> None:
    """As `docker compose config` would look at it; that itself is in the next test."""
    document = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    assert {key for key in document if not key.startswith("x-")} == {"services", "volumes"}
    named: set[str] = set()
    for name, service in SERVICES.items():
        assert set(service) <= KEYS, name
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        assert all(isinstance(value, str | int | float | None) for value in service.get("environment", {}).values()), (
            name
        )
        sources = [volume.split(":")[0] for volume in service.get("volumes", ())]
        assert all((ROOT / source).exists() for source in sources if source.startswith("./") and source != "./models")
        named |= {source for source in sources if not source.startswith(".")}
        build = service.get("build")
        assert build is None or (ROOT / build["context"] / build["dockerfile"]).is_file()
    assert named == set(document["volumes"])


def composes() -> list[list[str]]:
    found = [["docker-compose"]] if shutil.which("docker-compose") else []
    version = ["docker", "compose", "version"]
    if shutil.which("docker") and subprocess.run(version, capture_output=True, check=False).returncode == 0:
        found.append(["docker", "compose"])
    return found


@pytest.mark.parametrize("compose", composes(), ids=" ".join)
def test_compose_takes_the_file(compose: list[str]) -> None:
    """It needs no engine for that."""
    settings = ["--env-file", str(ROOT / ".env.example"), "--file", str(COMPOSE)]
    done = subprocess.run([*compose, *settings, "config", "--quiet"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_targets_and_images_fit() -> None:
    text = (ROOT / "infra" / "docker" / "Dockerfile").read_text(encoding="utf-8")
    for service in SERVICES.values():
        target = service.get("build", {}).get("target")
        if target is not None:
            assert re.search(rf"^FROM \S+ AS {target}$", text, re.MULTILINE)
            assert service["image"].split(":")[0] == target


def test_images_bear_the_projects_version() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version
    assert {s["image"].split(":")[1] for s in SERVICES.values() if "build" in s} == {version[1]}


def test_requirements_of_an_image(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("requirements", ROOT / "infra" / "docker" / "requirements.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(str(ROOT / "pyproject.toml"), "gateway", "s3")
    names = [re.match(r"[\w-]+", line)[0] for line in capsys.readouterr().out.splitlines()]
    assert {"redis", "msgspec", "starlette", "boto3"} <= set(names)
    assert "torch" not in names
