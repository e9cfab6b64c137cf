"""Every Redis key, built here and nowhere else.

All keys of a queue share the hash tag `{queue}`, so a script may touch several of them in a Redis Cluster.

    millrace:{q}:lane:interactive     stream   {job: id} entries; consumer group `workers`, created at id 0
    millrace:{q}:lane:batch           stream   likewise
    millrace:{q}:dead                 stream   {job, entry, lane, code, reason, attempts, data} of what could not be run
    millrace:{q}:failures             stream   {job, lane, code, reason, attempts} of what failed or expired last
    millrace:{q}:delayed              zset     job id -> Unix time at which a script puts it back into its lane
    millrace:{q}:deadlines            zset     job id -> Unix time at which a script expires it
    millrace:{q}:job:<id>             hash     request (bytes), lane, state, attempts, created_at, started_at,
                                               finished_at, owner, entry, cancel_requested, deadline, progress,
                                               tenant, webhook, webhook_state, webhook_attempts, webhook_error, ttl,
                                               pin, pin_problem
    millrace:{q}:tokens:<id>          string   checkpoint: the tokens so far, 4 bytes little-endian each
    millrace:{q}:events:<id>          stream   {e: event bytes} of a job with stream = true
    millrace:{q}:result:<id>          string   Result bytes, written once
    millrace:{q}:done:<id>            channel  published when the job becomes terminal
    millrace:{q}:control              channel  "cancel <id>", "reclaim" and "pins" to the queue's workers
    millrace:{q}:idem:<key>           string   job id made under this idempotency key
    millrace:{q}:idem@<tenant>:<key>  string   likewise, of a tenant
    millrace:{q}:unfinished:<tenant>  zset     id of a tenant's job without an end -> Unix time at which it was made
    millrace:{q}:webhooks             zset     id of an ended job with a webhook -> Unix time at which to call it; and a
                                               channel of the same name, on which such ids are published
    millrace:{q}:model                string   ModelInfo bytes, kept alive by workers
    millrace:{q}:worker:<name>        string   WorkerInfo bytes, kept alive by its heartbeat
    millrace:{q}:workers              zset     worker name -> last beat, Unix time
    millrace:{q}:pins                 hash     id of a pin -> Pin bytes, with its tokens
    millrace:{q}:pin-expiry           zset     id of a pin -> Unix time at which it ends
    millrace:{q}:pin-terms            hash     id of a pin -> "tokens ttl created_at tenant" (PinTerms)
    millrace:{q}:cache:<name>         string   WorkerCache bytes, kept alive by the worker
    millrace:models                   zset     model name -> Unix time at which its registration ends
    millrace:webhook-queues           set      queues that ever had a job with a webhook
    millrace:webhook-secret@<tenant>  hash     current, previous, previous_until: secrets that sign webhooks

Keys of the gateway share the hash tag `{@}`, which no queue can have:

    millrace:{@}:keys                 hash     id of an API key -> ApiKey bytes, with a digest of its secret
    millrace:{@}:rate:<key id>        hash     requests, tokens: Unix time at which the key's allowance is whole

Keys of bulk files share the hash tag `{@bulk}`:

    millrace:{@bulk}:batch:<id>       hash     record (Batch bytes), cancel (Unix time), failure (BatchError bytes),
                                               problem, checked; the counts completed, failed, prompt_tokens,
                                               completion_tokens, cached_tokens, expired; shards, begun and open: how
                                               many there are, were begun, and have not ended; revision, owner and
                                               lease (Unix time) of the whole, and of each shard, as `owner:3`, with
                                               progress (ShardProgress bytes), answered (lines whose jobs go), done
    millrace:{@bulk}:output:<id>      list     Part bytes: pieces of the output file, in order
    millrace:{@bulk}:errors:<id>      list     likewise, of the error file
    millrace:{@bulk}:due              zset     id of a batch without an end -> Unix time at which to see to it
    millrace:{@bulk}:batches@<tenant> zset     id of a batch -> Unix time at which it was made
    millrace:{@bulk}:file:<id>        string   BulkFile bytes
    millrace:{@bulk}:files@<tenant>   zset     id of a file -> Unix time at which it was made
    millrace:{@bulk}:expiring         zset     id of a file that is not to stay -> Unix time from which it may go
    millrace:{@bulk}:webhooks         zset     id of a batch whose end is to be told -> Unix time at which to call; and
                                               a channel of the same name, as those of queues
    millrace:{@bulk}:job:<id>         hash     of such a batch: state, webhook, tenant, finished_at, webhook_state,
                                               webhook_attempts, webhook_error, ttl, as of a job

Every key but the streams of work, the zsets, the set of queues, the webhooks' secrets, the API keys and the files has a
time to live.
"""

from __future__ import annotations

from .job import Lane

GROUP = "workers"
#: What takes the place of a queue where the ends of batches are told; no queue can have this name.
BULK_QUEUE = "@bulk"
_BULK = f"millrace:{{{BULK_QUEUE}}}:"
BATCHES_DUE = _BULK + "due"
BULK_FILES_EXPIRING = _BULK + "expiring"
MODELS = "millrace:models"
API_KEYS = "millrace:{@}:keys"
WEBHOOK_QUEUES = "millrace:webhook-queues"
#: Of the channels `millrace:{q}:webhooks`, for PSUBSCRIBE.
WEBHOOK_CHANNELS = "millrace:{*}:webhooks"


class QueueKeys:
    """The keys of one queue."""

    __slots__ = (
        "_prefix", "control", "dead", "deadlines", "delayed", "failures", "lanes", "model", "pin_expiry",
        "pin_terms", "pins", "queue", "unfinished_prefix", "webhooks", "workers",
    )  # fmt: skip

    def __init__(self, queue: str):
        self.queue = queue
        self._prefix = prefix = f"millrace:{{{queue}}}:"
        self.lanes: dict[Lane, str] = {lane: f"{prefix}lane:{lane}" for lane in Lane}
        self.dead = prefix + "dead"
        self.failures = prefix + "failures"
        self.delayed = prefix + "delayed"
        self.deadlines = prefix + "deadlines"
        self.control = prefix + "control"
        self.model = prefix + "model"
        self.workers = prefix + "workers"
        self.webhooks = prefix + "webhooks"
        self.pins = prefix + "pins"
        self.pin_expiry = prefix + "pin-expiry"
        self.pin_terms = prefix + "pin-terms"
        #: finish.lua and cancel.lua read the tenant that follows from the job.
        self.unfinished_prefix = prefix + "unfinished:"

    @property
    def prefix(self) -> str:
        """Scripts that meet ids only at run time build `prefix .. "job:" .. id` from this."""
        return self._prefix

    def job(self, job_id: str) -> str:
        return f"{self._prefix}job:{job_id}"

    def tokens(self, job_id: str) -> str:
        return f"{self._prefix}tokens:{job_id}"

    def events(self, job_id: str) -> str:
        return f"{self._prefix}events:{job_id}"

    def result(self, job_id: str) -> str:
        return f"{self._prefix}result:{job_id}"

    def done(self, job_id: str) -> str:
        return f"{self._prefix}done:{job_id}"

    def idempotency(self, key: str, tenant: str = "") -> str:
        return f"{self._prefix}idem@{tenant}:{key}" if tenant else f"{self._prefix}idem:{key}"

    def unfinished(self, tenant: str) -> str:
        return self.unfinished_prefix + tenant

    def worker(self, name: str) -> str:
        return f"{self._prefix}worker:{name}"

    def cache(self, worker: str) -> str:
        return f"{self._prefix}cache:{worker}"


def rate_key(key_id: str) -> str:
    """What is left of an API key's allowances per minute."""
    return f"millrace:{{@}}:rate:{key_id}"


def webhook_secret(tenant: str) -> str:
    return f"millrace:webhook-secret@{tenant}"


def batch_key(batch_id: str) -> str:
    return f"{_BULK}batch:{batch_id}"


def batch_parts(batch_id: str) -> tuple[str, str]:
    """Of the output and of the error file."""
    return f"{_BULK}output:{batch_id}", f"{_BULK}errors:{batch_id}"


def batches_of(tenant: str) -> str:
    return f"{_BULK}batches@{tenant}"


def bulk_file(file_id: str) -> str:
    return f"{_BULK}file:{file_id}"


def bulk_files_of(tenant: str) -> str:
    return f"{_BULK}files@{tenant}"
