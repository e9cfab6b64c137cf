-- Keeps places for a list of jobs among a tenant's unfinished ones, for all or for none. enqueue.lua turns each place
-- into its job's; one that is not taken is free again when its time is over.
-- KEYS 1 unfinished zset    id of a tenant's job -> Unix time at which it was made
--      2.. of each job      the string of its idempotency key, or its hash: one that is there needs no place
-- ARGV 1 most unfinished jobs that the tenant may have  2 job_ttl, seconds  3 time that places are kept, seconds
--      4.. ids of the jobs
-- Returns 1, or 0 when there are too many: nothing is kept then.
local clock = redis.call('TIME')
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', clock[1] - ARGV[2])
local new = {}
for i = 2, #KEYS do
  local id = ARGV[i + 2]
  if redis.call('EXISTS', KEYS[i]) == 0 and not redis.call('ZSCORE', KEYS[1], id) then new[#new + 1] = id end
end
if #new == 0 then return 1 end
if redis.call('ZCARD', KEYS[1]) + #new > tonumber(ARGV[1]) then return 0 end
-- What is older than job_ttl is dropped, above and in enqueue.lua.
for _, id in ipairs(new) do redis.call('ZADD', KEYS[1], clock[1] - ARGV[2] + ARGV[3], id) end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
