-- Ends a job: result, state, last event, acknowledgement and wake-up in one move.
-- KEYS 1 job, 2 result, 3 tokens, 4 events, 5 lane stream, 6 deadlines, 7 delayed, 8 dead stream, 9 done channel,
--      10 webhooks, 11 prefix of the tenants' unfinished jobs (the rest of the key is in the job; same hash tag),
--      12 failures
-- ARGV 1 consumer ("" ends a job that is queued, for the queue itself), 2 attempt, 3 group, 4 entry id, 5 job id,
--      6 terminal state, 7 result bytes, 8 bytes of the last Tokens event or "", 9 bytes of the Finished event or "",
--      10 time to live in s (a job with a webhook notes it, and it begins when somebody was told),
--      11 number n of the next, then n fields of an entry for failures,
--      12 + n.. fields of an entry for the dead stream, if any
-- returns 1 ended | 2 this attempt had ended it already (lost reply) | 0 the lease is lost: nothing changed
local h = redis.call('HMGET', KEYS[1], 'state', 'owner', 'attempts', 'stream', 'tenant', 'webhook')
local owned = h[2] == ARGV[1] and h[3] == ARGV[2]
if ARGV[1] == '' then
  if h[1] ~= 'queued' or ARGV[6] == 'completed' then return 0 end
elseif h[1] ~= 'in_progress' or not owned then
  if owned and h[1] == ARGV[6] then return 2 end
  return 0
end
local t = redis.call('TIME')
-- Until then it lives as jobs without an end do: whoever is told at last must still find the result.
local ttl = h[6] and math.max(tonumber(ARGV[10]), 604800) or ARGV[10]
redis.call('SET', KEYS[2], ARGV[7], 'NX', 'EX', ttl)
redis.call('HSET', KEYS[1], 'state', ARGV[6], 'finished_at', t[1] .. '.' .. string.format('%06d', tonumber(t[2])))
redis.call('EXPIRE', KEYS[1], ttl)
if h[4] == '1' then
  if ARGV[8] ~= '' then redis.call('XADD', KEYS[4], '*', 'e', ARGV[8]) end
  if ARGV[9] ~= '' then redis.call('XADD', KEYS[4], '*', 'e', ARGV[9]) end
  redis.call('EXPIRE', KEYS[4], ttl)
end
if ARGV[4] ~= '' then
  redis.call('XACK', KEYS[5], ARGV[3], ARGV[4])
  redis.call('XDEL', KEYS[5], ARGV[4])
end
redis.call('DEL', KEYS[3])
-- One that was leased waits for neither.
if ARGV[1] == '' then
  redis.call('ZREM', KEYS[6], ARGV[5])
  redis.call('ZREM', KEYS[7], ARGV[5])
end
if h[5] then redis.call('ZREM', KEYS[11] .. h[5], ARGV[5]) end
if h[6] then
  redis.call('HSET', KEYS[1], 'ttl', ARGV[10])
  redis.call('ZADD', KEYS[10], t[1], ARGV[5])
  redis.call('PUBLISH', KEYS[10], ARGV[5])
end
local n = tonumber(ARGV[11])
if n > 0 then
  -- A notice for people: as many as somebody may want to read, for as long as there is a result behind them.
  redis.call('XADD', KEYS[12], 'MAXLEN', 100, '*', unpack(ARGV, 12, 11 + n))
  redis.call('EXPIRE', KEYS[12], ARGV[10])
end
if #ARGV > 11 + n then redis.call('XADD', KEYS[8], '*', unpack(ARGV, 12 + n)) end
redis.call('PUBLISH', KEYS[9], ARGV[6])
return 1
