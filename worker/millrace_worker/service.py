"""A whole worker: joins the queue's half and the engine's half; starts, drains and stops them in a written order.

Start: Redis answers, the text tools load, the group exists, the engine is ready, its cache holds what is pinned, the
heartbeat beats, jobs are read.
Stop (SIGTERM, SIGINT):
    1. no job is read any more;
    2. jobs end by themselves for up to `grace` seconds;
    3. the rest is checkpointed and handed over, and the other workers are told;
    4. what is still being written is written;
    5. this consumer leaves the group;
    6. the heartbeat stops, which removes the worker's notice;
    7. the engine stops.
A second signal ends the process at once: its leases run out, and nothing is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import redis
import structlog

from millrace_schemas import ModelInfo, QueueKeys, QueueUnavailable, queue_of
from millrace_schemas.aio import end_tasks, unless_set

from .config import WorkerConfig
from .frames import Ready, StepOutput
from .front.engine_link import ENGINE_COMMAND, EngineLink, EngineStartFailed
from .front.front import Front, QueueSide
from .front.job_log import log_end
from .front.outcome import Signature
from .front.pin_keeper import PinKeeper
from .front.running import Running
from .front.text import TextTools
from .metrics import Metrics
from .metrics_server import Probe, serve_metrics
from .notice import Notice
from .stream import control
from .stream.closing import Ending
from .stream.connection import Backoff, Refused, check_server, connect, connect_blocking, unavailable
from .stream.consumer import JobConsumer, block_for
from .stream.heartbeat import Heartbeat, Report, Watchdog
from .stream.lease import Lease, LeasedJob, LeaseTable
from .stream.objects import ObjectStore
from .stream.pins import PinLimits, PinRegistry
from .stream.publisher import Publisher
from .stream.reclaim import Reclaimer
from .stream.upkeep import Upkeep

if TYPE_CHECKING:
    from .front.spans import JobSpans

log = structlog.get_logger(__name__)

#: Seconds of tries before a worker that never reached Redis gives up. Once it has run, it tries for ever.
_REDIS_TRIES = 10.0
#: Seconds for the writes of a drain, beyond `grace`.
_LAST_WRITES = 10.0
#: Longest wait for producers to be able to find the model, before it is said that the worker serves.
_REGISTERED = 1.0


class Service:
    """One worker. `run` returns when a signal has drained it; it raises QueueUnavailable and EngineDied otherwise."""

    def __init__(
        self,
        config: WorkerConfig,
        tools: TextTools,
        engine_command: Sequence[str] = ENGINE_COMMAND,
        *,
        traced: bool = False,
    ):
        self._config = config
        self._tools = tools
        self._engine_command = engine_command
        self.model = served_name(config)
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._keys = QueueKeys(queue_of(self.model))
        self._started_at = time.time()
        self._ready: Ready | None = None
        self._stop = asyncio.Event()
        self._background: list[asyncio.Task[None]] = []
        self._build()
        self._spans = self._make_spans() if traced else None

    def _build(self) -> None:
        stream, keys = self._config.stream, self._keys
        url, block = stream.redis_url, block_for(stream.lease)
        self._client = connect(url)
        self._blocking = connect_blocking(url, block)
        self._listening = connect_blocking(url, control.WAIT)
        leases = self._leases = LeaseTable()
        self._watchdog = Watchdog(stream.lease, stream.engine_timeout + stream.lease)
        self._publisher = Publisher(
            *(self._client, keys, self.name, leases, ObjectStore(stream.s3_endpoint_url), stream),
            on_lost=self._on_lost,
            on_ended=self._on_ended,
        )
        self._consumer = JobConsumer(
            self._client, self._blocking, keys, self.name, leases, stream.max_attempts, block, self._take
        )
        self._reclaimer = Reclaimer(self._client, keys, self._consumer, leases, stream.lease)
        self._upkeep = Upkeep(self._client, keys, self._publisher, self.name, self.model)
        signature = Signature(self.model, self.name)
        self._running = Running(self._publisher, leases, signature, stream.max_attempts)
        limits = PinLimits(stream.max_pinned_tokens, stream.max_pinned_tokens_per_tenant)
        registry = PinRegistry(self._client, keys, self.name, limits)
        self._pins = PinKeeper(registry, self._running.pins, self._tools, self.name)
        queue = QueueSide(self._consumer, self._reclaimer, self._publisher, leases, self._pins)
        self._front = Front(queue, self._running, self._tools, signature, self._watchdog, self._new_link)
        metrics = Metrics(self.model, self.name, self._running, self._consumer, leases)
        self._probe = Probe(
            metrics=lambda: metrics.page(self._front.ready, draining=self._stop.is_set()),
            ready=lambda: self._front.ready is not None and not self._stop.is_set(),
        )

    async def run(self) -> None:
        """Starts, serves until a signal, drains.

        Raises QueueUnavailable, EngineStartFailed, EngineDied, and ConfigError when the port for metrics is taken.
        """
        self._catch_signals()
        async with serve_metrics(self._config.metrics_host, self._config.metrics_port, self._probe):
            await self._run()

    async def _run(self) -> None:
        try:
            await self._reach_redis()
            self._ready = await unless_set(self._stop, self._front.start_engine())
            if self._ready is not None:
                await self._serve(self._ready)
        finally:
            # On every way out: nothing that we started stays behind.
            await self._front.stop_engine()
            for client in (self._client, self._blocking, self._listening):
                await client.aclose()
        if self._front.failure is not None:
            raise self._front.failure

    async def _serve(self, ready: Ready) -> None:
        heartbeat = self._heartbeat(ready)
        # The loop ran all the while that the engine was loading, only nobody said so.
        self._watchdog.loop_ran()
        serving = asyncio.create_task(self._front.serve())
        await self._warm(serving)
        heartbeat.start()
        writer = asyncio.create_task(self._publisher.run())
        self._background = [
            asyncio.create_task(work) for work in (self._listen(), self._upkeep_loop(), self._pins.run())
        ]
        self._front.open()
        # Whoever submits once this is said finds the model; without Redis it is said all the same.
        await asyncio.to_thread(heartbeat.wait_registered, _REGISTERED)
        log.info("serving", model=self.model, worker=self.name, device=ready.device, blocks=ready.num_blocks)
        try:
            stopped = asyncio.create_task(self._stop.wait())
            # None of them ends by itself, unless the engine is lost or something is wrong with this program.
            await asyncio.wait((stopped, serving, writer, *self._background), return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            await self._drain(serving, writer)
            for task in (serving, writer, *self._background):
                if task.done() and not task.cancelled():
                    task.result()
        finally:
            await end_tasks(*self._background, serving, writer)
            await asyncio.to_thread(heartbeat.stop)

    async def _warm(self, serving: asyncio.Task[None]) -> None:
        """Waits for what is pinned, unless the worker is stopped or its engine lost; jobs come afterwards."""
        timeout = self._config.stream.pin_warm_timeout
        tasks = [asyncio.create_task(self._pins.warm(timeout)), asyncio.create_task(self._stop.wait())]
        try:
            await asyncio.wait((*tasks, serving), return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
        finally:
            await end_tasks(*tasks)

    async def _listen(self) -> None:
        running, front = self._running, self._front
        await control.listen(self._listening, self._keys, running.cancel, front.on_hand_over, self._pins.look_again)

    async def _drain(self, serving: asyncio.Task[None], writer: asyncio.Task[None]) -> None:
        """Steps 1 to 5 of the stop."""
        log.info("draining", held=self._running.held)
        await self._front.stop_reading()
        if not serving.done():
            await self._front.wait_settled(self._config.stream.grace)
        try:
            async with asyncio.timeout(_LAST_WRITES):
                given = await self._running.hand_over()
                await self._front.wait_settled(_LAST_WRITES)
                self._publisher.stop()
                await writer
                await end_tasks(serving)
                await self._consumer.leave()
                await self._pins.leave()
                await self._client.publish(self._keys.control, control.RECLAIM)
            log.info("drained", handed_over=given)
        except (redis.RedisError, OSError, TimeoutError) as e:
            log.warning("could not hand everything over; the leases run out by themselves", error=repr(e))

    def _heartbeat(self, ready: Ready) -> Heartbeat:
        tokenizer = self._tools.tokenizer
        notice = Notice(self.name, self.model, self._running, self._leases, self._started_at)
        model = ModelInfo(
            name=self.model,
            max_model_len=ready.max_model_len,
            vocab_size=ready.vocab_size,
            has_chat_template=tokenizer is not None and tokenizer.has_chat_template,
        )
        return Heartbeat(
            self._config.stream.redis_url,
            self._keys,
            self.name,
            self._leases,
            self._watchdog,
            lease=self._config.stream.lease,
            model_ttl=self._config.stream.model_ttl,
            model=model,
            info=lambda: notice.info(self._ready),
            report=self._on_report,
        )

    def _new_link(self, on_step: Callable[[StepOutput], None], busy: Callable[[], bool]) -> EngineLink:
        return EngineLink(
            self._config.engine,
            on_step,
            busy,
            self._watchdog,
            command=self._engine_command,
            silence_timeout=self._config.stream.engine_timeout,
        )

    def _take(self, leased: LeasedJob) -> None:
        self._front.take(leased)

    def _on_lost(self, lease: Lease) -> None:
        self._running.lost(lease)

    def _on_ended(self, ending: Ending) -> None:
        self._running.figures.ended(ending)
        log_end(ending, texts=self._config.log_prompts)
        if self._spans is not None:
            self._spans.ended(ending, self._running.now())

    def _make_spans(self) -> JobSpans:
        # Here and not on top: OpenTelemetry need not be installed.
        from .front.spans import JobSpans

        return JobSpans(self.name, lambda: self._running.clock_offset)

    def _on_report(self, report: Report) -> None:
        self._front.on_report(report)

    async def _upkeep_loop(self) -> None:
        pause = min(1.0, self._config.stream.lease / 4)
        while True:
            try:
                await self._upkeep.step()
            except (redis.RedisError, OSError) as e:
                # The reader says it louder, and this is tried again at once anyway.
                log.debug("upkeep failed", error=str(e))
            await asyncio.sleep(pause)

    async def _reach_redis(self) -> None:
        url = self._config.stream.redis_url
        limit, backoff = time.monotonic() + _REDIS_TRIES, Backoff(0.1, 1.0)
        while not self._stop.is_set():
            try:
                uptime = await check_server(self._client, url)
                await self._consumer.ensure_group()
            except QueueUnavailable as e:
                if isinstance(e, Refused) or e.__cause__ is None or time.monotonic() > limit:
                    raise
                await backoff.sleep()
            except (redis.RedisError, OSError) as e:
                if time.monotonic() > limit:
                    raise unavailable(e, url) from e
                await backoff.sleep()
            else:
                if uptime < self._config.stream.lease:
                    self._reclaimer.be_quiet(self._config.stream.lease - uptime)
                return

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        if self._stop.is_set():
            log.warning("second signal; leaving at once")
            if self._front.engine_pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._front.engine_pid, signal.SIGKILL)
            os._exit(128 + number)
        self._stop.set()


def served_name(config: WorkerConfig) -> str:
    """The model's public name: as configured, else the last component of the model's path or hub name."""
    return config.stream.served_model_name or config.engine.model.rstrip("/").rsplit("/", 1)[-1]


__all__ = ["EngineStartFailed", "Service", "served_name"]
