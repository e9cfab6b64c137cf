"""Submits jobs to a gateway that may die at any moment, and afterwards looks for every one that was accepted.

    python jobs.py submit URL FILE SECONDS   until the time is over; what was accepted is written to FILE, a line each
    python jobs.py check URL FILE            prints one line; exit code 1 when anything was lost, doubled or wrong

The standard library is all that it needs.
"""

import json
import sys
import time
import urllib.error
import urllib.request
from itertools import count
from pathlib import Path

SYSTEM = "Change the words by the rule."
WORDS = ("quiet river", "every mountain", "summer garden", "stone bird", "winter evening", "cloud morning")
#: Between two jobs: a small machine works off in a minute what comes in during one.
PAUSE = 0.2
PATIENCE = 120.0


def call(url, body=None, headers=None):
    """The answer's JSON. Tries again for as long as nobody answers, or the answer is that somebody else is away."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **(headers or {})})
    limit = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(request, timeout=70) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as e:
            if e.code < 500 or time.monotonic() > limit:
                raise RuntimeError(f"{url}: {e.code} {e.read()[:300]!r}") from e
        except (OSError, ValueError) as e:
            if time.monotonic() > limit:
                raise RuntimeError(f"{url}: {e}") from e
        time.sleep(0.25)


def submit(url, file, seconds):
    limit = time.monotonic() + float(seconds)
    with Path(file).open("w") as accepted:
        for number in count():
            if time.monotonic() > limit:
                break
            job = {
                "system": SYSTEM,
                "prompt": f"Uppercase every word: {WORDS[number % len(WORDS)]}",
                "sampling": {"max_tokens": 16, "temperature": 0},
                "lane": "batch" if number % 3 else "interactive",
                "metadata": {"number": str(number)},
            }
            # The same key in every attempt: a reply that was lost makes no second job.
            made = call(f"{url}/v1/jobs", job, {"idempotency-key": f"verify-{file}-{number}"})
            accepted.write(json.dumps({"number": number, "id": made["id"]}) + "\n")
            accepted.flush()
            time.sleep(PAUSE)


def check(url, file):
    jobs = [json.loads(line) for line in Path(file).read_text().splitlines()]
    wrong = []
    for job in jobs:
        limit = time.monotonic() + PATIENCE
        while (found := call(f"{url}/v1/jobs/{job['id']}?wait=30"))["state"] in ("queued", "in_progress"):
            if time.monotonic() > limit:
                break
        expected = WORDS[job["number"] % len(WORDS)].upper()
        text = "".join(choice["text"] for choice in (found.get("result") or {}).get("choices", ()))
        if found["state"] != "completed" or text.strip() != expected:
            wrong.append((job, found["state"], text, expected))
    distinct = len({job["id"] for job in jobs})
    print(f"{len(jobs)} accepted, {distinct} distinct, {len(jobs) - len(wrong)} completed with the right answer")
    for line in wrong[:5]:
        print(*line, file=sys.stderr)
    return 0 if jobs and distinct == len(jobs) and not wrong else 1


if __name__ == "__main__":
    sys.exit({"submit": submit, "check": check}[sys.argv[1]](*sys.argv[2:]))
