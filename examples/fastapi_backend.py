"""Answers for a web page, with FastAPI:  uvicorn fastapi_backend:app"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated

from fastapi import Body, Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

import millrace
from millrace import AsyncClient, InvalidRequest, JobError, JobNotFound, MillraceError
from millrace.webhooks import InvalidSignature, verify

# The same words for everybody: a worker computes them once and keeps them in its prefix cache.
SYSTEM = "You answer customers of a bookshop, in one short paragraph."
# In place of your database.
ANSWERS: dict[str, str] = {}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # One client for the process: its connections are shared, and it belongs to this event loop.
    async with AsyncClient(os.environ.get("MILLRACE_REDIS_URL", "redis://localhost:6379/0")) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


@app.exception_handler(MillraceError)
async def explain(request: Request, error: MillraceError) -> JSONResponse:
    if isinstance(error, JobError):
        statuses = {"context_length_exceeded": 422, "cancelled": 410, "deadline_exceeded": 504}
        return JSONResponse({"error": error.error.code}, statuses.get(error.error.code, 502))
    if isinstance(error, InvalidRequest | InvalidSignature | JobNotFound):
        return JSONResponse({"error": str(error)}, 404 if isinstance(error, JobNotFound) else 400)
    # No Redis, or no worker so far. The message is for your log; the caller may simply ask again.
    return JSONResponse({"error": "unavailable"}, 503, {"Retry-After": "5"})


async def get_client(request: Request) -> AsyncClient:
    return request.app.state.client


Client = Annotated[AsyncClient, Depends(get_client)]


@app.post("/answers", status_code=202)
async def ask(client: Client, question: Annotated[str, Body(embed=True)], idempotency_key: Annotated[str, Header()]):
    # The key is the caller's: only the caller knows that two requests are one. Keys are the whole queue's, so put the
    # user's id in front once there are users. After the deadline nobody waits for the answer, so nobody should work.
    options = {"stream": True, "deadline": timedelta(minutes=5), "idempotency_key": idempotency_key}
    options["webhook"] = os.environ.get("MILLRACE_WEBHOOK_URL")  # of `told` below, as a gateway reaches it
    job = await client.submit(system=SYSTEM, prompt=question, **options)
    return {"id": job.id}


@app.get("/answers/{job_id}")
async def poll(client: Client, job_id: str, response: Response, wait: Annotated[float, Query(ge=0, le=20)] = 0):
    try:
        result = await client.result(job_id, timeout=wait)
    except millrace.ResultTimeout:
        response.status_code = 202
        return {"state": await client.state(job_id)}
    return {"state": result.state, "text": result.text}


async def follow(client: Client, job_id: str, last_event_id: Annotated[str, Header()] = "0-0") -> millrace.EventStream:
    # A dependency runs before the status is sent: an unknown id is still a 404. A browser that lost its connection says
    # by itself which event it saw last.
    await client.state(job_id)
    return client.events(job_id, after=last_event_id)


# In silence FastAPI sends a comment every 15 seconds, so proxies do not take a job that waits for a dead connection.
@app.get("/answers/{job_id}/events", response_class=EventSourceResponse)
async def stream(events: Annotated[millrace.EventStream, Depends(follow)]) -> AsyncIterator[ServerSentEvent]:
    try:
        async for event in events:
            if isinstance(event, millrace.Tokens):
                yield ServerSentEvent(data={"text": event.text}, event="tokens", id=events.last_id)
        # At this event the page closes its EventSource; it would connect again otherwise.
        yield ServerSentEvent(data={"state": event.result.state}, event="end", id=events.last_id)
    except MillraceError:
        return  # No Redis: the connection ends, and the browser comes back with the id of its last event.


@app.delete("/answers/{job_id}")
async def cancel(client: Client, job_id: str):
    return {"state": await client.cancel(job_id)}  # in_progress: its worker was told, and ends it at its next step


@app.post("/webhooks", status_code=204)
async def told(client: Client, request: Request) -> None:
    # Nothing gets past this but what Millrace has signed. It may come twice: the second time changes nothing here.
    event = verify(await request.body(), request.headers, os.environ["MILLRACE_WEBHOOK_SECRET"])
    if event.type == "job.completed":
        ANSWERS[event.job_id] = (await client.result(event.job_id, timeout=0)).text
