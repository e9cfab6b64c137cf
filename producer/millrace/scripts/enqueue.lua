-- Makes one job, once: calling it again with the same id or idempotency key makes nothing and returns the first id.
-- KEYS 1 job        hash    the job
--      2 lane       stream  entries {job: id}
--      3 idem       string  job id made under the idempotency key; the job's own key again when there is none
--      4 model      string  registration of the queue's model
--      5 deadlines  zset    job id -> Unix time
--      6 unfinished zset    id of a tenant's job -> Unix time at which it was made
-- ARGV 1 id  2 request bytes  3 lane  4 stream (1/0)  5 deadline, Unix seconds, or ""
--      6 job_ttl, seconds  7 idem_ttl, seconds; 0: no idempotency key  8 require_model (1/0)
--      9 tenant, or ""  10 webhook, or ""  11 most unfinished jobs that the tenant may have; 0: any number
-- Returns {"queued", id}, {"exists", id}, {"unknown_model"} or {"too_many_jobs"}.
local id, idem_ttl = ARGV[1], tonumber(ARGV[7])
if idem_ttl > 0 then
  local first = redis.call('GET', KEYS[3])
  if first then return {'exists', first} end
end
if redis.call('EXISTS', KEYS[1]) == 1 then return {'exists', id} end
if ARGV[8] == '1' and redis.call('EXISTS', KEYS[4]) == 0 then return {'unknown_model'} end

local clock = redis.call('TIME')
local tenant, most = ARGV[9], tonumber(ARGV[11])
if tenant ~= '' then
  -- Those whose time to live ended before they did.
  redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', clock[1] - ARGV[6])
  if most > 0 and redis.call('ZCARD', KEYS[6]) >= most then return {'too_many_jobs'} end
  redis.call('ZADD', KEYS[6], clock[1], id)
  redis.call('EXPIRE', KEYS[6], ARGV[6])
end
local now = string.format('%d.%06d', clock[1], clock[2])
redis.call('HSET', KEYS[1], 'request', ARGV[2], 'lane', ARGV[3], 'state', 'queued', 'attempts', 0,
           'created_at', now, 'stream', ARGV[4])
if tenant ~= '' then redis.call('HSET', KEYS[1], 'tenant', tenant) end
if ARGV[10] ~= '' then redis.call('HSET', KEYS[1], 'webhook', ARGV[10]) end
redis.call('EXPIRE', KEYS[1], ARGV[6])
if ARGV[5] ~= '' then
  redis.call('HSET', KEYS[1], 'deadline', ARGV[5])
  redis.call('ZADD', KEYS[5], ARGV[5], id)
end
if idem_ttl > 0 then redis.call('SET', KEYS[3], id, 'EX', idem_ttl) end
redis.call('XADD', KEYS[2], '*', 'job', id)
return {'queued', id}
