"""Prints rules.yaml: the alerts of infra/prometheus/rules.yml as Prometheus' operator takes them.

python infra/k8s/components/monitoring/rules.py >infra/k8s/components/monitoring/rules.yaml
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

SOURCE = Path(__file__).resolve().parents[3] / "prometheus" / "rules.yml"
#: What the texts say of Compose, for Kubernetes.
WORDS = (
    (r"docker compose logs (\w+)", r"kubectl logs --selector app.kubernetes.io/component=\1"),
    (r"docker compose ps", "kubectl get pods"),
    (r"METRICS_KEY in \.env", "the one in the secret millrace-metrics-key"),
)


def rule(given: dict[str, Any]) -> dict[str, Any]:
    texts = {name: in_kubernetes(text) for name, text in given.get("annotations", {}).items()}
    return {**given, "annotations": texts} if texts else given


def in_kubernetes(text: str) -> str:
    for pattern, words in WORDS:
        text = re.sub(pattern, words, text)
    return text


def document() -> str:
    source = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))
    groups = [{**group, "rules": [rule(given) for given in group["rules"]]} for group in source["groups"]]
    made = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "millrace", "labels": {"app.kubernetes.io/part-of": "millrace"}},
        "spec": {"groups": groups},
    }
    return "# Made by rules.py from infra/prometheus/rules.yml.\n" + yaml.safe_dump(made, sort_keys=False, width=110)


if __name__ == "__main__":
    print(document(), end="")
