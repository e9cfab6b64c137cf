"""A worker that costs nothing, not even what a front does: jobs of the batch lane end in a script in Redis.

Run as `python -m millrace_bench.bulk_worker <redis url>`. Every answer is the same; what is measured is what hands jobs
over and collects their results.
"""

from __future__ import annotations

import sys
import time

import redis

from millrace_schemas import (
    GROUP,
    MODELS,
    Choice,
    FinishReason,
    JobState,
    Lane,
    ModelInfo,
    QueueKeys,
    Result,
    Usage,
    encode,
    new_job_id,
)

MODEL = "bench"
_TTL = 86_400
_MOST = 128
#: What finish.lua does to a job that nobody streams, many jobs a call. KEYS 1 lane; ARGV 1 prefix, 2 group, 3 most
#: jobs, 4 and 5 the result's bytes before and behind the id.
_SCRIPT = """
local found = redis.call('XREADGROUP', 'GROUP', ARGV[2], 'nothing', 'COUNT', ARGV[3], 'STREAMS', KEYS[1], '>')
if not found then return 0 end
for _, entry in ipairs(found[1][2]) do
  local id = entry[2][2]
  redis.call('SET', ARGV[1] .. 'result:' .. id, ARGV[4] .. id .. ARGV[5], 'NX', 'EX', 600)
  redis.call('HSET', ARGV[1] .. 'job:' .. id, 'state', 'completed', 'attempts', 1, 'finished_at', 1)
  redis.call('EXPIRE', ARGV[1] .. 'job:' .. id, 600)
  redis.call('ZREM', ARGV[1] .. 'deadlines', id)
  redis.call('PUBLISH', ARGV[1] .. 'done:' .. id, 'completed')
  redis.call('XACK', KEYS[1], ARGV[2], entry[1])
  redis.call('XDEL', KEYS[1], entry[1])
end
return #found[1][2]
"""


def run(url: str) -> None:
    """Until it is killed."""
    client = redis.Redis.from_url(url)
    keys = QueueKeys(MODEL)
    info = ModelInfo(name=MODEL, max_model_len=4096, vocab_size=256, has_chat_template=True)
    client.set(keys.model, encode(info), ex=_TTL)
    client.zadd(MODELS, {MODEL: time.time() + _TTL})
    lane = keys.lanes[Lane.BATCH]
    client.xgroup_create(lane, GROUP, "0", mkstream=True)
    before, behind = _answer()
    script = client.register_script(_SCRIPT)
    print("ready", flush=True)
    while True:
        if not script(keys=[lane], args=[keys.prefix, GROUP, _MOST, before, behind]):
            time.sleep(0.002)


def _answer() -> tuple[bytes, bytes]:
    """A result's bytes before and behind its id; ids of one queue have one length."""
    job_id = new_job_id(MODEL)
    choice = Choice(0, "An answer of some length. " * 4, tuple(range(24)), FinishReason.STOP)
    result = Result(
        id=job_id, model=MODEL, state=JobState.COMPLETED, choices=(choice,), attempts=1,
        usage=Usage(prompt_tokens=200, completion_tokens=24, cached_tokens=128),
    )  # fmt: skip
    before, _, behind = encode(result).partition(job_id.encode())
    return before, behind


if __name__ == "__main__":
    run(sys.argv[1])
