"""Prometheus' configuration and rules and Grafana's dashboard parse, and ask for metrics that exist."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx2
import pytest
import yaml

from compose_file import ROOT, services
from gateway_server import GatewayServer
from millrace.gateway.webhook_settings import WebhookSettings

INFRA = ROOT / "infra"
RULES = yaml.safe_load((INFRA / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((INFRA / "grafana" / "dashboards" / "millrace.json").read_text(encoding="utf-8"))
#: What Prometheus makes itself.
OWN = {"up"}
NAME = re.compile(r"\b(up|millrace_[a-z_]+)\b")


def expressions() -> list[str]:
    panels = DASHBOARD["panels"]
    return [
        *(rule["expr"] for rule in ALERTS),
        *(target["expr"] for panel in panels for target in panel.get("targets", ())),
    ]


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """The names that the source has as exported."""
    names: set[str] = set()
    for folder in ("producer", "worker"):
        for pattern in ("metrics*.py", "observing.py"):
            for path in (ROOT / folder).rglob(pattern):
                names |= set(re.findall(r"\bmillrace_[a-z_]+", path.read_text(encoding="utf-8")))
    return names


def test_expressions_ask_for_metrics_that_exist(exported: set[str]) -> None:
    # A histogram is asked for by the names of its parts.
    parts = {name + part for name in exported for part in ("_bucket", "_sum", "_count")}
    for expression in expressions():
        used = set(NAME.findall(expression))
        assert used, expression
        assert used <= exported | parts | OWN, expression


def test_the_gateways_metrics_are_there(redis_url: str) -> None:
    """The names of the gateway's panels, by asking it."""
    with GatewayServer(redis_url, webhooks=WebhookSettings()) as gateway:
        text = httpx2.get(f"{gateway.url}/metrics").text
    types = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    used = {name for expression in expressions() for name in NAME.findall(expression)}
    assert {
        name for name in used if name.startswith(("millrace_gateway_", "millrace_queue_", "millrace_redis_"))
    } <= types


def test_expressions_are_balanced() -> None:
    for expression in expressions():
        assert all(expression.count(a) == expression.count(b) for a, b in ("()", "[]", "{}")), expression


def test_alerts_have_names_of_their_own() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)


def test_prometheus_asks_services_that_exist() -> None:
    config = yaml.safe_load((INFRA / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    assert config["rule_files"] == ["rules.yml"]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert jobs["gateway"]["static_configs"] == [{"targets": ["gateway:8000"]}]
    (workers,) = jobs["worker"]["dns_sd_configs"]
    assert set(workers["names"]) <= set(services())
    assert str(workers["port"]) == services()["worker"]["environment"]["MILLRACE_METRICS_PORT"]


def test_the_dashboard_is_provisioned() -> None:
    provisioning = INFRA / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "millrace.yml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2] for volume in services()["grafana"]["volumes"])
    assert mounts["./infra/grafana/dashboards"] == provider["options"]["path"]
    assert source["url"] == "http://prometheus:9090"
    assert all(panel["datasource"]["uid"] == source["uid"] for panel in DASHBOARD["panels"])


def test_panels_have_places_of_their_own() -> None:
    places: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert grid["x"] + grid["w"] <= 24
        assert not cells & places, panel["title"]
        places |= cells
