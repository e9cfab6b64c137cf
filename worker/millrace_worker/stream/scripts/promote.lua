-- Puts delayed jobs whose time has come back into their lanes, and names queued jobs whose deadline has passed.
-- KEYS 1 delayed, 2 deadlines; and the job hashes and lanes (same hash tag)
-- ARGV 1 key prefix, 2 most jobs of each kind
-- returns {now, promoted, {job, request, stream, attempts, created_at, started_at}, ...}; the caller ends those jobs
-- with finish.lua
local t = redis.call('TIME')
local now = string.format('%.6f', tonumber(t[1]) + tonumber(t[2]) / 1e6)
local promoted = 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])) do
  redis.call('ZREM', KEYS[1], id)
  -- pcall: one key of the wrong type must not keep all the others waiting.
  local h = redis.pcall('HMGET', ARGV[1] .. 'job:' .. id, 'state', 'lane')
  if h[1] == 'queued' then
    redis.call('XADD', ARGV[1] .. 'lane:' .. (h[2] or 'interactive'), '*', 'job', id)
    promoted = promoted + 1
  end
end
local out = {now, tostring(promoted)}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[2])) do
  local h = redis.pcall('HMGET', ARGV[1] .. 'job:' .. id, 'state', 'request', 'stream', 'attempts', 'created_at',
    'started_at')
  if h[1] == 'queued' then
    out[#out + 1] = {id, h[2] or '', h[3] or '', h[4] or '0', h[5] or now, h[6] or ''}
  else
    redis.call('ZREM', KEYS[2], id)
  end
end
return out
