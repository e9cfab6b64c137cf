"""Prometheus' configuration and rules and Grafana's dashboard parse, and ask for metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx2
import yaml

from compose_file import ROOT, services
from gateway_server import GatewayServer
from millrace.gateway.webhook_settings import WebhookSettings
from worker_process import WorkerProcess

INFRA = ROOT / "infra"
RULES = yaml.safe_load((INFRA / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((INFRA / "grafana" / "dashboards" / "millrace.json").read_text(encoding="utf-8"))
#: What Prometheus makes itself.
OWN = {"up"}
NAME = re.compile(r"\b(up|millrace_[a-z0-9_]+)\b")


def expressions() -> list[str]:
    panels = DASHBOARD["panels"]
    return [
        *(rule["expr"] for rule in ALERTS),
        *(target["expr"] for panel in panels for target in panel.get("targets", ())),
    ]


def asked_for() -> set[str]:
    """The metrics in panels and rules, a histogram's parts by the histogram's name."""
    names = {name for expression in expressions() for name in NAME.findall(expression)} - OWN
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def test_worker_and_gateway_expose_every_metric(redis_url: str, tmp_path: Path) -> None:
    """By asking a real worker and a real gateway."""
    with WorkerProcess(redis_url, tmp_path, metrics_port=0) as worker:
        lines = [json.loads(line) for line in worker.log.splitlines() if line.startswith("{")]
        types = types_of(next(line["url"] for line in lines if line["event"] == "metrics"))
    with GatewayServer(redis_url, webhooks=WebhookSettings()) as gateway:
        types |= types_of(f"{gateway.url}/metrics")
    assert asked_for() <= set(types)
    for expression in expressions():
        for name in re.findall(r"(millrace_[a-z0-9_]+)_bucket", expression):
            assert types[name] == "histogram", expression
        for name in re.findall(r"(?:rate|increase)\((millrace_[a-z0-9_]+?)(?:_bucket|_sum|_count)?[{\[]", expression):
            assert types[name] in ("counter", "histogram"), expression


def types_of(url: str) -> dict[str, str]:
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", httpx2.get(url).text, re.MULTILINE))


#: What somebody who looks after workers wants to see beside the queues.
WORKERS = {
    "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds", "leases", "dead_total",
    "generation_tokens_total", "kv_cache_usage_ratio", "num_requests_running", "num_requests_waiting", "step_seconds",
    "preemptions_total", "prefix_cache_hits_total", "batch_size", "redeliveries_total", "shared_decode_steps_total",
}  # fmt: skip


def test_the_dashboard_shows_workers() -> None:
    shown = " ".join(target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ()))
    assert {name for name in WORKERS if f"millrace_{name}" not in shown} == set()


def test_what_every_gateway_says_is_not_added_up() -> None:
    """They all read the same queues."""
    for expression in expressions():
        if re.search(r"millrace_(queue|workers|webhooks)", expression):
            assert re.search(r"max by \([\w, ]+\) \(millrace_", expression), expression


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
    assert all(panel["datasource"]["uid"] == source["uid"] for panel in DASHBOARD["panels"] if panel["type"] != "row")


def test_panels_have_places_of_their_own() -> None:
    places: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert grid["x"] + grid["w"] <= 24
        assert not cells & places, panel["title"]
        places |= cells
