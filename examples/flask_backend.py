"""Answers for a web page, with Flask:  gunicorn --threads 32 flask_backend:app"""

import atexit
import functools
import json
import os
from collections.abc import Iterator
from datetime import timedelta

from flask import Flask, Response, request

import millrace
from millrace import Client, InvalidRequest, JobError, JobNotFound, MillraceError
from millrace.webhooks import InvalidSignature, verify

# The same words for everybody: a worker computes them once and keeps them in its prefix cache.
SYSTEM = "You answer customers of a bookshop, in one short paragraph."
# Seconds. A request that waits holds a thread.
MAX_WAIT = 20.0
# In place of your database.
ANSWERS: dict[str, str] = {}
app = Flask(__name__)


@functools.cache
def get_client() -> Client:
    """The client of this process, for all its threads."""
    # Made by the first request, not on import: a server may fork after that, and no client survives a fork.
    client = Client(os.environ.get("MILLRACE_REDIS_URL", "redis://localhost:6379/0"))
    atexit.register(client.close)
    return client


@app.errorhandler(MillraceError)
def explain(error: MillraceError):
    if isinstance(error, JobError):
        statuses = {"context_length_exceeded": 422, "cancelled": 410, "deadline_exceeded": 504}
        return {"error": error.error.code}, statuses.get(error.error.code, 502)
    if isinstance(error, InvalidRequest | InvalidSignature | JobNotFound):
        return {"error": str(error)}, 404 if isinstance(error, JobNotFound) else 400
    # No Redis, or no worker so far. The message is for your log; the caller may simply ask again.
    return {"error": "unavailable"}, 503, {"Retry-After": "5"}


@app.post("/answers")
def ask():
    # The key is the caller's: only the caller knows that two requests are one. Keys are the whole queue's, so put the
    # user's id in front once there are users. After the deadline nobody waits for the answer, so nobody should work.
    key = request.headers.get("Idempotency-Key", "")
    options = {"stream": True, "deadline": timedelta(minutes=5), "idempotency_key": key}
    options["webhook"] = os.environ.get("MILLRACE_WEBHOOK_URL")  # of `told` below, as a gateway reaches it
    body = request.get_json()
    job = get_client().submit(system=SYSTEM, prompt=body.get("question") if isinstance(body, dict) else None, **options)
    return {"id": job.id}, 202


@app.get("/answers/<job_id>")
def poll(job_id: str):
    wait = max(0.0, min(request.args.get("wait", 0.0, type=float), MAX_WAIT))
    try:
        result = get_client().result(job_id, timeout=wait)
    except millrace.ResultTimeout:
        return {"state": get_client().state(job_id)}, 202
    return {"state": result.state, "text": result.text}


@app.get("/answers/<job_id>/events")
def stream(job_id: str):
    # Asked before the status is sent: an unknown id is still a 404. A browser that lost its connection says by itself
    # which event it saw last.
    get_client().state(job_id)
    events = get_client().events(job_id, after=request.headers.get("Last-Event-ID", "0-0"))
    # Holds a thread until the job ends, at the deadline at the latest. The header keeps nginx from collecting events.
    return Response(sse(events), mimetype="text/event-stream", headers={"X-Accel-Buffering": "no"})


def sse(events: millrace.Events) -> Iterator[str]:
    yield ": waiting\n\n"  # Status and headers go out with the first bytes, and the first token may be far.
    try:
        for event in events:
            if isinstance(event, millrace.Tokens):
                yield f"event: tokens\ndata: {json.dumps({'text': event.text})}\nid: {events.last_id}\n\n"
        # At this event the page closes its EventSource; it would connect again otherwise.
        yield f"event: end\ndata: {json.dumps({'state': event.result.state})}\nid: {events.last_id}\n\n"
    except MillraceError:
        return  # No Redis: the connection ends, and the browser comes back with the id of its last event.


@app.delete("/answers/<job_id>")
def cancel(job_id: str):
    return {"state": get_client().cancel(job_id)}  # in_progress: its worker was told, and ends it at its next step


@app.post("/webhooks")
def told():
    # Nothing gets past this but what Millrace has signed. It may come twice: the second time changes nothing here.
    event = verify(request.get_data(), request.headers, os.environ["MILLRACE_WEBHOOK_SECRET"])
    if event.type == "job.completed":
        ANSWERS[event.job_id] = get_client().result(event.job_id, timeout=0).text
    return "", 204
