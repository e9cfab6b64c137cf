"""Asks a running Prometheus: `health URL` for its targets and the rules, `dashboard URL FILE`."""

import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path


def ask(url, path, **query):
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
        return json.load(answer)["data"]


def health(url):
    limit = time.monotonic() + 60
    while True:
        targets = {target["labels"]["job"]: target["health"] for target in ask(url, "targets")["activeTargets"]}
        rules = [rule for group in ask(url, "rules")["groups"] for rule in group["rules"]]
        well = sum(rule["health"] == "ok" for rule in rules)
        good = targets == {"gateway": "up", "worker": "up"} and rules and well == len(rules)
        if good or time.monotonic() > limit:
            print(f"{targets}, {well} of {len(rules)} rules ok")
            return not good
        time.sleep(1)


def dashboard(url, file):
    expressions = [
        target["expr"] for panel in json.loads(Path(file).read_text())["panels"] for target in panel.get("targets", ())
    ]
    filled = 0
    for expression in expressions:
        try:
            filled += bool(ask(url, "query", query=expression)["result"])
        except urllib.error.HTTPError as e:
            print(f"{expression}: {e.read().decode()}")
            return 1
    print(f"{len(expressions)} valid, {filled} with data")
    return 0


if __name__ == "__main__":
    sys.exit({"health": health, "dashboard": dashboard}[sys.argv[1]](*sys.argv[2:]))
