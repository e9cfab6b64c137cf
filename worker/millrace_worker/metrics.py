"""A worker's metrics by name. Where vLLM has the same figure it has the same name, with millrace_ for vllm:."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from millrace_schemas import Lane
from millrace_schemas.exposition import Family, Histogram, one, render

from .cache_metrics import cache_families
from .frames import Ready
from .front.figures import Figures
from .front.running import Running
from .stream.consumer import JobConsumer
from .stream.lease import LeaseTable


@dataclass(frozen=True, slots=True)
class Metrics:
    """Reads the parts of a worker. To be called in their loop: it costs about a millisecond, and only when asked."""

    model: str
    worker: str
    running: Running
    consumer: JobConsumer
    leases: LeaseTable

    def page(self, ready: Ready | None, *, draining: bool) -> str:
        """`ready` is the engine's word at its start, None before that."""
        families = [*self._worker(ready, draining), *self._engine(), *self._tokens(), *self._jobs(), *self._times()]
        return render(families, {"model": self.model})

    def _worker(self, ready: Ready | None, draining: bool) -> Iterator[Family]:
        labels = {"worker": self.worker, "device": ready.device if ready else ""}
        yield Family("millrace_worker_info", "gauge", "1; its labels say who this is.", [(labels, 1)])
        yield one("millrace_worker_ready", "gauge", "1 while an engine is loaded.", int(ready is not None))
        yield one("millrace_worker_draining", "gauge", "1 once the worker was told to stop.", int(draining))
        yield one(
            "millrace_engine_restarts_total",
            "counter",
            "Times that the engine process died and was replaced.",
            self.running.figures.engine_deaths,
        )

    def _engine(self) -> Iterator[Family]:
        running, figures = self.running, self.running.figures
        load = running.load_now
        used = 1 - load.free_blocks / load.total_blocks if load.total_blocks else 0.0
        yield one("millrace_num_requests_running", "gauge", "Sequences that the engine runs.", load.running)
        yield one(
            "millrace_num_requests_waiting", "gauge", "Jobs held that the engine does not run yet.", running.num_waiting
        )
        yield one("millrace_kv_cache_usage_ratio", "gauge", "Share of the KV blocks that sequences hold, 0 to 1.", used)
        yield one("millrace_kv_cache_blocks", "gauge", "KV blocks that there are.", load.total_blocks)
        yield Family(
            "millrace_pinned_prefixes",
            "gauge",
            "Pinned prefixes by the fastest tier of the cache that holds all of them; none: no tier does.",
            [({"tier": tier}, count) for tier, count in running.pins.by_tier().items()],
        )
        yield one(
            "millrace_preemptions_total",
            "counter",
            "Sequences set back because others needed blocks.",
            figures.preemptions,
        )
        yield one("millrace_batch_size", "histogram", "Sequences of a step.", figures.batch_size)
        yield one("millrace_iteration_tokens", "histogram", "Tokens of a step, prompts' included.", figures.step_tokens)
        yield one("millrace_step_seconds", "histogram", "Seconds that a step kept the engine.", figures.step_seconds)

    def _tokens(self) -> Iterator[Family]:
        totals = self.running.totals
        yield one(
            "millrace_prompt_tokens_total", "counter", "Tokens of prompts that the engine began.", totals.prompt_tokens
        )
        yield one("millrace_generation_tokens_total", "counter", "Tokens generated.", totals.output_tokens)
        yield from cache_families(totals, self.running.cache)
        yield one(
            "millrace_shared_decode_steps_total",
            "counter",
            "Steps in which attention read KV blocks once for several sequences.",
            totals.shared_steps,
        )
        yield Family(
            "millrace_shared_decode_tokens_total",
            "counter",
            "Cached tokens that it so read, and those that it did not read again because of it, in all steps.",
            [({"kind": "read"}, totals.shared_read), ({"kind": "saved"}, totals.shared_saved)],
        )

    def _jobs(self) -> Iterator[Family]:
        figures = self.running.figures
        yield one("millrace_leases", "gauge", "Jobs that this worker holds.", len(self.leases))
        yield Family("millrace_leased_total", "counter", "Jobs leased.", _by_lane(figures.leased))
        yield Family(
            "millrace_redeliveries_total",
            "counter",
            "Those among them that an earlier attempt had not ended: its worker died or stalled, or it is a retry.",
            _by_lane(figures.redelivered),
        )
        yield one(
            "millrace_lost_leases_total",
            "counter",
            "Jobs taken over by another worker while they ran here.",
            figures.lost,
        )
        finished = [
            ({"lane": lane, "state": state, "code": code}, count)
            for (lane, state, code), count in sorted(figures.finished.items())
        ]
        yield Family("millrace_jobs_finished_total", "counter", "Jobs whose end this worker wrote.", finished)
        yield one(
            "millrace_dead_total",
            "counter",
            "What this worker put into the dead stream: jobs without attempts left, and what is no job.",
            figures.dead + self.consumer.malformed,
        )

    def _times(self) -> Iterator[Family]:
        figures: Figures = self.running.figures
        yield Family(
            "millrace_request_queue_time_seconds",
            "histogram",
            "From submit to the first lease.",
            _histograms(figures.queue_time),
        )
        yield Family(
            "millrace_time_to_first_token_seconds",
            "histogram",
            "From submit to the first token, of jobs in their first attempt.",
            _histograms(figures.first_token),
        )
        yield one(
            "millrace_inter_token_latency_seconds",
            "histogram",
            "Between two tokens of an answer.",
            figures.inter_token,
        )
        yield Family(
            "millrace_e2e_request_latency_seconds",
            "histogram",
            "From submit to the end, of completed jobs.",
            _histograms(figures.latency),
        )


def _by_lane(counts: Mapping[Lane, int]) -> list[tuple[dict[str, object], float]]:
    return [({"lane": lane}, counts.get(lane, 0)) for lane in Lane]


def _histograms(by_lane: Mapping[Lane, Histogram]) -> list[tuple[dict[str, object], Histogram]]:
    return [({"lane": lane}, histogram) for lane, histogram in by_lane.items()]
