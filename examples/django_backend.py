"""Answers for a web page, with Django in one file:  gunicorn --threads 32 django_backend:application"""

import atexit
import functools
import json
import os
from collections.abc import Iterator
from datetime import timedelta

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views import View

import millrace
from millrace import Client, JobError, JobNotFound, MillraceError

# The same words for everybody: a worker computes them once and keeps them in its prefix cache.
SYSTEM = "You answer customers of a bookshop, in one short paragraph."


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
        except (JobNotFound, ValueError) as e:  # millrace.InvalidRequest is a ValueError, as broken JSON is
            return JsonResponse({"error": str(e)}, status=404 if isinstance(e, JobNotFound) else 400)
        except MillraceError:
            # No Redis, or no worker so far. The message is for your log; the caller may simply ask again.
            return JsonResponse({"error": "unavailable"}, status=503, headers={"Retry-After": "5"})


class Ask(AnswerView):
    def post(self, request: HttpRequest):
        # The caller knows that two requests are one. Put the user's id in front: keys are the whole queue's. After the
        # deadline nobody waits for the answer, so nobody should work.
        key = request.headers.get("Idempotency-Key", "")
        options = {"stream": True, "deadline": timedelta(minutes=5), "idempotency_key": key}
        body = json.loads(request.body)
        prompt = body.get("question") if isinstance(body, dict) else None
        job = get_client().submit(system=SYSTEM, prompt=prompt, **options)
        return JsonResponse({"id": job.id}, status=202)


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
        # Asked before the status is sent: an unknown id is still a 404. A browser that returns says what it saw last.
        get_client().state(job_id)
        events = get_client().events(job_id, after=request.headers.get("Last-Event-ID", "0-0"))
        # Under WSGI this holds a thread until the job ends, at the deadline at the latest. The header is for nginx.
        return StreamingHttpResponse(sse(events), "text/event-stream", headers={"X-Accel-Buffering": "no"})


def sse(events: millrace.Events) -> Iterator[str]:
    yield ": waiting\n\n"  # Status and headers go out with the first bytes, and the first token may be far.
    try:
        for event in events:
            if isinstance(event, millrace.Tokens):
                yield f"event: tokens\ndata: {json.dumps({'text': event.text})}\nid: {events.last_id}\n\n"
        # At this event the page closes its EventSource; it would connect again otherwise.
        yield f"event: end\ndata: {json.dumps({'state': event.result.state})}\nid: {events.last_id}\n\n"
    except MillraceError:
        return  # no Redis: the connection ends, and the browser comes back with the id of its last event


# Add CsrfViewMiddleware as soon as cookies say who the user is.
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["localhost", "127.0.0.1"], MIDDLEWARE=[])
views = {"answers": Ask, "answers/<job_id>": Answer, "answers/<job_id>/events": AnswerEvents}
urlpatterns = [path(route, view.as_view()) for route, view in views.items()]
application = get_wsgi_application()
