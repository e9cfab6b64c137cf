-- Writes down how a call ended. One that was claimed anew meanwhile belongs to another gateway and is left alone, but
-- what was delivered is delivered. Repeating it (a lost reply) changes nothing.
-- KEYS 1 webhooks zset  2 job  3 result  4 events
-- ARGV 1 id  2 claim  3 delivered | failed (for good) | retrying | pending (not called; it does not count)
--      4 error, or ""  5 seconds until the next call  6 seconds that a settled job lives, unless it knows them itself
-- Returns 1 when it was written down, else 0.
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
local mine = score and tonumber(score) == tonumber(ARGV[2])
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
  return 0
end
if not mine and ARGV[3] ~= 'delivered' then return 0 end
redis.call('HSET', KEYS[2], 'webhook_state', ARGV[3])
if ARGV[4] == '' then
  redis.call('HDEL', KEYS[2], 'webhook_error')
else
  redis.call('HSET', KEYS[2], 'webhook_error', ARGV[4])
end
if ARGV[3] == 'retrying' or ARGV[3] == 'pending' then
  local clock = redis.call('TIME')
  local next = tonumber(clock[1]) + tonumber(clock[2]) / 1e6 + tonumber(ARGV[5])
  redis.call('ZADD', KEYS[1], string.format('%.6f', next), ARGV[1])
  if ARGV[3] == 'pending' then redis.call('HINCRBY', KEYS[2], 'webhook_attempts', -1) end
  return 1
end
redis.call('ZREM', KEYS[1], ARGV[1])
local ttl = redis.call('HGET', KEYS[2], 'ttl') or ARGV[6]
for i = 2, 4 do redis.call('EXPIRE', KEYS[i], ttl) end
return 1
