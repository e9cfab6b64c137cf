-- Takes webhooks that are due, for one gateway: no other sees them until the lease is over. What stands in the way of
-- others, because their receivers are busy, is passed over; when there is much of it, it is put behind.
-- KEYS 1 webhooks zset; and the job hashes, results and events of its ids (same hash tag)
-- ARGV 1 key prefix  2 most to take  3 lease, seconds  4 most calls of one receiver at once  5 most entries to look at
--      6 seconds by which entries are put behind  7 seconds that a job lives at least  8.. receiver, calls under way
-- Returns {entries in all, passed over, gone, seconds until the next one is due or "",
--          {id, claim, url, tenant, attempt, finished_at}, ...}; `gone` were entries without a job.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local most, limit, scan = tonumber(ARGV[2]), tonumber(ARGV[4]), tonumber(ARGV[5])
local calls = {}
for i = 8, #ARGV, 2 do calls[ARGV[i]] = tonumber(ARGV[i + 1]) end

local function keep(key)
  local ttl = redis.call('TTL', key)
  if ttl >= 0 and ttl < tonumber(ARGV[7]) then redis.call('EXPIRE', key, ARGV[7]) end
end

local claim = string.format('%.6f', now + tonumber(ARGV[3]))
local ended = {completed = true, failed = true, cancelled = true, expired = true}
local taken, passed, gone = {}, {}, 0
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', now), 'LIMIT', 0, scan)
for _, id in ipairs(due) do
  if #taken == most then break end
  local job = ARGV[1] .. 'job:' .. id
  -- pcall: one key of the wrong type must not keep all the others waiting.
  local h = redis.pcall('HMGET', job, 'state', 'webhook', 'tenant', 'finished_at')
  if h.err or not ended[h[1]] or not h[2] then
    redis.call('ZREM', KEYS[1], id)
    gone = gone + 1
  else
    local receiver = string.lower(string.match(h[2], '^%a+://([^/?]*)') or '')
    local busy = calls[receiver] or 0
    if busy >= limit then
      passed[#passed + 1] = id
    else
      calls[receiver] = busy + 1
      redis.call('ZADD', KEYS[1], claim, id)
      local attempt = redis.call('HINCRBY', job, 'webhook_attempts', 1)
      redis.call('HSET', job, 'webhook_state', 'sending')
      keep(job)
      keep(ARGV[1] .. 'result:' .. id)
      keep(ARGV[1] .. 'events:' .. id)
      taken[#taken + 1] = {id, claim, h[2], h[3] or '', tostring(attempt), h[4] or clock[1]}
    end
  end
end
if #due == scan and #taken < most then
  for _, id in ipairs(passed) do redis.call('ZADD', KEYS[1], string.format('%.6f', now + tonumber(ARGV[6])), id) end
end

local wait = ''
if #due == scan or #taken == most then
  wait = '0'
else
  local first = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.6f', now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  if first[2] then wait = string.format('%.6f', tonumber(first[2]) - now) end
end
return {redis.call('ZCARD', KEYS[1]), #passed, gone, wait, unpack(taken)}
