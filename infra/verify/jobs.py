"""Submits jobs to a gateway that may die at any moment, and afterwards looks for every one that was accepted.

    python jobs.py submit URL FILE SECONDS   until the time is over; what was accepted is written to FILE, a line each
    python jobs.py check URL FILE            prints one line; exit code 1 when anything was lost, doubled or wrong
    python jobs.py batch URL FILE LINES      the same as a file of so many lines; the batch's id is written to FILE
    python jobs.py progress URL FILE         how far that is: prints its state, and the lines that are done
    python jobs.py check-batch URL FILE      waits for its end, and reads its output; likewise

The standard library is all that it needs.
"""

import http.client
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
ENDS = ("completed", "failed", "expired", "cancelled")


def call(url, body=None, headers=None):
    """The answer's JSON."""
    data = None if body is None else json.dumps(body).encode()
    return json.loads(fetch(url, data, {"content-type": "application/json", **(headers or {})}))


def fetch(url, data=None, headers=None):
    """The answer. Tries again for as long as nobody answers, or the answer is that somebody else is away."""
    request = urllib.request.Request(url, data, headers or {})
    limit = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(request, timeout=70) as answer:
                return answer.read()
        except urllib.error.HTTPError as e:
            if e.code < 500 or time.monotonic() > limit:
                raise RuntimeError(f"{url}: {e.code} {e.read()[:300]!r}") from e
        except (OSError, http.client.HTTPException) as e:
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
                "prompt": prompt_of(number),
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


def prompt_of(number):
    return f"Uppercase every word: {WORDS[number % len(WORDS)]}"


def batch(url, file, lines):
    requests = []
    for number in range(int(lines)):
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt_of(number)}]
        body = {"model": "demo", "max_tokens": 16, "temperature": 0, "messages": messages}
        line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
        requests.append(json.dumps(line) + "\n")
    form = (
        '--limit\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        '--limit\r\ncontent-disposition: form-data; name="file"; filename="requests.jsonl"\r\n\r\n'
        f"{''.join(requests)}\r\n--limit--\r\n"
    )
    # Kept twice when the reply is lost, which nobody minds; the batch is made once.
    kind = {"content-type": "multipart/form-data; boundary=limit"}
    input_id = json.loads(fetch(f"{url}/v1/files", form.encode(), kind))["id"]
    wanted = {"input_file_id": input_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    made = call(f"{url}/v1/batches", wanted, {"idempotency-key": f"verify-{file}"})
    Path(file).write_text(made["id"])


def progress(url, file):
    found = call(f"{url}/v1/batches/{Path(file).read_text()}")
    counts = found["request_counts"]
    print(found["status"], counts["completed"] + counts["failed"], "of", counts["total"])
    return 0 if found["status"] in ("validating", "in_progress") else 1


def check_batch(url, file):
    limit = time.monotonic() + 3 * PATIENCE
    while (found := call(f"{url}/v1/batches/{Path(file).read_text()}"))["status"] not in ENDS:
        if time.monotonic() > limit:
            break
        time.sleep(0.5)
    print(found["status"], found["request_counts"], found.get("problem"), file=sys.stderr)
    if found["status"] != "completed":
        return 1
    total = found["request_counts"]["total"]
    lines = fetch(f"{url}/v1/files/{found['output_file_id']}/content").decode().splitlines()
    answers = [(line["custom_id"], line["response"]["body"]["choices"][0]["message"]["content"])
               for line in map(json.loads, lines)]  # fmt: skip
    right = sum(text.strip() == WORDS[int(name) % len(WORDS)].upper() for name, text in answers)
    distinct = len({name for name, _ in answers})
    print(f"{total} lines, {len(answers)} answers, {distinct} distinct, {right} right")
    return 0 if total == len(answers) == distinct == right else 1


COMMANDS = {"submit": submit, "check": check, "batch": batch, "progress": progress, "check-batch": check_batch}

if __name__ == "__main__":
    sys.exit(COMMANDS[sys.argv[1]](*sys.argv[2:]))
