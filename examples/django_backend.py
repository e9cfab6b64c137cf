"""Answers for a web page, with Django in one file:  gunicorn --threads 32 django_backend:application"""

import atexit
import contextlib
import functools
import json
import os
from collections.abc import Iterator
from datetime import timedelta

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views import View

import millrace
from millrace import Client, JobError, JobNotFound, MillraceError
from millrace.webhooks import verify

SYSTEM = "You answer customers of a bookshop, in one short paragraph."  # one text for all: a worker computes it once
ANSWERS: dict[str, str] = {}  # in place of your database


@functools.cache
def get_client() -> Client:  # made by the first request, not on import: a server may fork, and no client survives that
    client = Client(os.environ.get("MILLRACE_REDIS_URL", "redis://localhost:6379/0"))
    atexit.register(client.close)
    return client


class AnswerView(View):
    def dispatch(self, *args, **kwargs):
        try:
            return super().dispatch(*args, **kwargs)
        except JobError as e:
            statuses = {"context_length_exceeded": 422, "cancelled": 410, "deadline_exceeded": 504}
            return JsonResponse({"error": e.error.code}, status=statuses.get(e.error.code, 502))
        except (JobNotFound, ValueError) as e:  # InvalidRequest, InvalidSignature, broken JSON
            return JsonResponse({"error": str(e)}, status=404 if isinstance(e, JobNotFound) else 400)
        except MillraceError:  # no Redis, or no worker so far; the message is for your log
            return JsonResponse({"error": "unavailable"}, status=503, headers={"Retry-After": "5"})


class Ask(AnswerView):
    def post(self, request: HttpRequest):
        # Keys are the whole queue's: put the user's id in front. After the deadline nobody waits, and nobody works.
        key = request.headers.get("Idempotency-Key", "")
        options = {"stream": True, "deadline": timedelta(minutes=5), "idempotency_key": key}
        options["webhook"] = os.environ.get("MILLRACE_WEBHOOK_URL")  # of `Told` below, as a gateway reaches it
        body = json.loads(request.body)
        prompt = body.get("question") if isinstance(body, dict) else None
        return JsonResponse({"id": get_client().submit(system=SYSTEM, prompt=prompt, **options).id}, status=202)


class Answer(AnswerView):
    def get(self, request: HttpRequest, job_id: str):
        wait = max(0.0, min(float(request.GET.get("wait", 0)), 20.0))  # it holds a thread
        try:
            result = get_client().result(job_id, timeout=wait)
        except millrace.ResultTimeout:
            return JsonResponse({"state": get_client().state(job_id)}, status=202)
        return JsonResponse({"state": result.state, "text": result.text})

    def delete(self, request: HttpRequest, job_id: str):
        return JsonResponse({"state": get_client().cancel(job_id)})  # in_progress: its worker ends it at its next step


class AnswerEvents(AnswerView):
    def get(self, request: HttpRequest, job_id: str):
        # Asked before the status is sent: an unknown id is a 404. Under WSGI a stream holds a thread to its end.
        get_client().state(job_id)
        events = get_client().events(job_id, after=request.headers.get("Last-Event-ID", "0-0"))
        return StreamingHttpResponse(sse(events), "text/event-stream", headers={"X-Accel-Buffering": "no"})


class Told(AnswerView):
    def post(self, request: HttpRequest):
        # Nothing gets past this but what Millrace has signed. It may come twice: the second time changes nothing here.
        event = verify(request.body, request.headers, os.environ["MILLRACE_WEBHOOK_SECRET"])
        if event.type == "job.completed":
            ANSWERS[event.job_id] = get_client().result(event.job_id, timeout=0).text
        return HttpResponse(status=204)


def sse(events: millrace.Events) -> Iterator[str]:
    yield ": waiting\n\n"  # Status and headers go out with the first bytes, and the first token may be far.
    with contextlib.suppress(MillraceError):  # no Redis: this ends, and the browser comes back with its last event's id
        for event in events:
            if isinstance(event, millrace.Tokens):
                yield f"event: tokens\ndata: {json.dumps({'text': event.text})}\nid: {events.last_id}\n\n"
        # At this event the page closes its EventSource; it would connect again otherwise.
        yield f"event: end\ndata: {json.dumps({'state': event.result.state})}\nid: {events.last_id}\n\n"


# As soon as cookies say who the user is: CsrfViewMiddleware, and csrf_exempt for Told.
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["localhost", "127.0.0.1"], MIDDLEWARE=[])
VIEWS = {"answers": Ask, "answers/<job_id>": Answer, "answers/<job_id>/events": AnswerEvents, "webhooks": Told}
urlpatterns = [path(route, view.as_view()) for route, view in VIEWS.items()]
application = get_wsgi_application()
