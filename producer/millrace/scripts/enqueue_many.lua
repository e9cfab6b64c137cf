-- Makes jobs that differ in nothing but id and request, each once: a call that is repeated makes none of them again.
-- KEYS 1 lane       stream  entries {job: id}
--      2 model      string  registration of the queue's model
--      3 deadlines  zset    job id -> Unix time
--      4 unfinished zset    id of a tenant's job -> Unix time at which it was made
--      5..          hash    the jobs
-- ARGV 1 lane  2 stream (1/0)  3 deadline, Unix seconds, or ""  4 job_ttl, seconds  5 tenant, or ""
--      6.. id and request bytes of each job
-- Returns {"queued"}, also for jobs that were there already, or {"unknown_model"}: then none was made.
if redis.call('EXISTS', KEYS[2]) == 0 then return {'unknown_model'} end
local lane, stream, deadline, ttl, tenant = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local clock = redis.call('TIME')
local now = string.format('%d.%06d', clock[1], clock[2])
if tenant ~= '' then
  -- Those whose time to live ended before they did.
  redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', clock[1] - ttl)
end
for i = 5, #KEYS do
  local job, id, request = KEYS[i], ARGV[2 * i - 4], ARGV[2 * i - 3]
  if redis.call('EXISTS', job) == 0 then
    redis.call('HSET', job, 'request', request, 'lane', lane, 'state', 'queued', 'attempts', 0,
               'created_at', now, 'stream', stream)
    redis.call('EXPIRE', job, ttl)
    if tenant ~= '' then
      redis.call('HSET', job, 'tenant', tenant)
      redis.call('ZADD', KEYS[4], clock[1], id)
    end
    if deadline ~= '' then
      redis.call('HSET', job, 'deadline', deadline)
      redis.call('ZADD', KEYS[3], deadline, id)
    end
    redis.call('XADD', KEYS[1], '*', 'job', id)
  end
end
if tenant ~= '' then redis.call('EXPIRE', KEYS[4], ttl) end
return {'queued'}
