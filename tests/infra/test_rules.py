"""infra/prometheus/rules.yml and the table of alerts in docs/operating.md say the same; promtool takes the rules."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from compose_file import ROOT

RULES = ROOT / "infra" / "prometheus" / "rules.yml"
CASES = Path(__file__).with_name("rules_cases.yml")
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
]
#: | name | `expression` for 1 m | what to do |
ROW = re.compile(r"^\| ([^|`]+) \| `([^`]+)`(?: for (\d+) m)? \| (.+) \|$", re.MULTILINE)
PROMTOOL = shutil.which("promtool")


def table() -> list[tuple[str, str, str | None, str]]:
    text = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    section = text.split("\n## Alerts\n")[1].split("\n## ")[0]
    rows = ROW.findall(section)
    # Every line of the table but its head is one.
    assert len(rows) == sum(line.startswith("|") for line in section.splitlines()) - 2
    return [(name, expression, minutes and f"{minutes}m", to_do) for name, expression, minutes, to_do in rows]


def plain(expression: str) -> str:
    return " ".join(expression.split())


def test_the_table_and_the_rules_say_the_same() -> None:
    """Names, expressions and times, and their order."""
    written = [
        ("".join(word.capitalize() for word in name.split()), plain(expression), minutes or None)
        for name, expression, minutes, _ in table()
    ]
    assert written == [(rule["alert"], plain(rule["expr"]), rule.get("for")) for rule in ALERTS]


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description"}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_speaks_of_labels_that_it_has(rule: dict[str, Any]) -> None:
    """What an aggregation leaves out is empty in the text."""
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    kept = re.match(r"(?:histogram_quantile\([\d.]+, )?(?:sum|max|min)(?: by \(([\w, ]+)\))?\s*\(", rule["expr"])
    if kept:
        assert used <= set((kept[1] or "").split(", ")), rule["alert"]
    else:
        assert used <= {"instance", "job", "model"}, rule["alert"]


def test_every_alert_has_a_case() -> None:
    cases = yaml.safe_load(CASES.read_text(encoding="utf-8"))["tests"]
    speaking = {
        case["alertname"] for group in cases for case in group["alert_rule_test"] if case["exp_alerts"]
    }  # fmt: skip
    assert speaking == {rule["alert"] for rule in ALERTS}


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool")
def test_promtool_takes_the_rules(tmp_path: Path) -> None:
    assert PROMTOOL
    (tmp_path / "rules.yml").write_bytes(RULES.read_bytes())
    config = (RULES.parent / "prometheus.yml").read_text(encoding="utf-8")
    # start.sh makes it.
    (tmp_path / "key").touch()
    (tmp_path / "prometheus.yml").write_text(config.replace("/tmp/metrics-key", "key"))
    for what in ("rules", "config"):
        file = "rules.yml" if what == "rules" else "prometheus.yml"
        done = subprocess.run(
            [PROMTOOL, "check", what, file], cwd=tmp_path, capture_output=True, text=True, check=False
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool")
def test_alerts_speak_when_they_should(tmp_path: Path) -> None:
    assert PROMTOOL
    bare = [{key: value for key, value in rule.items() if key != "annotations"} for rule in ALERTS]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "millrace", "rules": bare}]}))
    (tmp_path / "cases.yml").write_bytes(CASES.read_bytes())
    done = subprocess.run(
        [PROMTOOL, "test", "rules", "cases.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
