-- Cancels a job: a queued one ends here, a running one is marked for its worker, an ended one stays as it is.
-- The lane's entry of a queued job stays as a tombstone; the worker that reads it sees the state and drops it.
-- KEYS 1 job        hash    the job
--      2 result     string  Result bytes, written once
--      3 tokens     string  checkpoint of earlier attempts
--      4 events     stream  {e: event bytes} of a job with stream = 1
--      5 delayed    zset    job id -> Unix time
--      6 deadlines  zset    job id -> Unix time
--      7 webhooks   zset    job id -> Unix time
--      8 prefix of the tenants' unfinished jobs (the rest of the key is in the job; same hash tag)
-- ARGV 1 id  2 attempts that the Result was built for  3 Result bytes  4 Finished event bytes  5 ttl, seconds; a job
--      with a webhook keeps for it, and begins it when somebody was told
--      6 done channel  7 control channel
-- Returns the state that the job is in now; "requested" when its worker will end it; "changed" when the attempts are
-- not ARGV 2 any more, so the Result must be built anew; "missing" when there is no such job.
local state, attempts, stream, tenant, webhook =
  unpack(redis.call('HMGET', KEYS[1], 'state', 'attempts', 'stream', 'tenant', 'webhook'))
if not state then return 'missing' end
if state == 'in_progress' then
  redis.call('HSET', KEYS[1], 'cancel_requested', 1)
  redis.call('PUBLISH', ARGV[7], 'cancel ' .. ARGV[1])
  return 'requested'
end
if state ~= 'queued' then return state end
if attempts ~= ARGV[2] then return 'changed' end

local clock = redis.call('TIME')
local now = string.format('%d.%06d', clock[1], clock[2])
-- Until then it lives as jobs without an end do: whoever is told at last must still find the result.
local ttl = webhook and math.max(tonumber(ARGV[5]), 604800) or ARGV[5]
redis.call('SET', KEYS[2], ARGV[3], 'NX', 'EX', ttl)
redis.call('HSET', KEYS[1], 'state', 'cancelled', 'finished_at', now, 'cancel_requested', 1)
redis.call('EXPIRE', KEYS[1], ttl)
redis.call('DEL', KEYS[3])
if stream == '1' then
  redis.call('XADD', KEYS[4], '*', 'e', ARGV[4])
  redis.call('EXPIRE', KEYS[4], ttl)
end
redis.call('ZREM', KEYS[5], ARGV[1])
redis.call('ZREM', KEYS[6], ARGV[1])
if tenant then redis.call('ZREM', KEYS[8] .. tenant, ARGV[1]) end
if webhook then
  redis.call('HSET', KEYS[1], 'ttl', ARGV[5])
  redis.call('ZADD', KEYS[7], clock[1], ARGV[1])
  redis.call('PUBLISH', KEYS[7], ARGV[1])
end
redis.call('PUBLISH', ARGV[6], 'cancelled')
return 'cancelled'
