-- Gives a leased job back: "retry" (later, the attempt stays counted) or "handover" (at once, not counted).
-- KEYS 1 job, 2 lane stream, 3 delayed, 4 deadlines
-- ARGV 1 consumer, 2 attempt, 3 group, 4 entry id, 5 job id, 6 mode, 7 delay in s, 8 time to live of a live job in s,
--      9 consumer that holds what was handed over, 10 idle time in ms that marks it
-- returns 1 given back | 0 the lease is lost: nothing changed
local h = redis.call('HMGET', KEYS[1], 'state', 'owner', 'attempts', 'deadline')
if h[1] ~= 'in_progress' or h[2] ~= ARGV[1] or h[3] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'state', 'queued')
redis.call('HDEL', KEYS[1], 'owner', 'entry')
redis.call('EXPIRE', KEYS[1], ARGV[8])
if h[4] and h[4] ~= '' then redis.call('ZADD', KEYS[4], h[4], ARGV[5]) end
if ARGV[6] == 'retry' then
  local t = redis.call('TIME')
  redis.call('ZADD', KEYS[3], string.format('%.6f', tonumber(t[1]) + tonumber(t[2]) / 1e6 + tonumber(ARGV[7])), ARGV[5])
  redis.call('XACK', KEYS[2], ARGV[3], ARGV[4])
  redis.call('XDEL', KEYS[2], ARGV[4])
  return 1
end
redis.call('HINCRBY', KEYS[1], 'attempts', -1)
local moved = redis.pcall('XCLAIM', KEYS[2], ARGV[3], ARGV[9], 0, ARGV[4], 'IDLE', ARGV[10], 'JUSTID')
if moved.err or #moved == 0 then redis.call('XADD', KEYS[2], '*', 'job', ARGV[5]) end
return 1
