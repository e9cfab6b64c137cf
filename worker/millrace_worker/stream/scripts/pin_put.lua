-- Pins a prefix for a job, or makes its pin last longer, and notes in the job what became of it.
-- KEYS 1 pins, 2 pin-expiry, 3 pin-terms, 4 job, 5 control channel
-- ARGV 1 pin id, 2 Pin bytes, or "" while the caller does not know whether they are needed, 3 tokens, 4 ttl in s,
--      5 tenant, 6 most tokens of the queue's pins, 7 most of a tenant's, 8 tokens that a pin counts as at least
-- returns {"pinned"} | {"unknown"}: come again with bytes | {"queue_full", tokens} | {"tenant_full", tokens}: by pins
-- that are there; nothing changed. A repeat (lost reply) changes nothing but the expiry.
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1e6
local id, tokens, ttl, tenant = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
for _, over in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)) do
  redis.call('HDEL', KEYS[1], over)
  redis.call('HDEL', KEYS[3], over)
  redis.call('ZREM', KEYS[2], over)
end
local created, new = string.format('%.6f', now), redis.call('HEXISTS', KEYS[1], id) == 0
if new then
  if ARGV[2] == '' then return {'unknown'} end
  local all, own = 0, 0
  for _, terms in ipairs(redis.call('HVALS', KEYS[3])) do
    local count, of = string.match(terms, '^(%d+) %S+ %S+ (%S*)$')
    count = math.max(tonumber(count), tonumber(ARGV[8]))
    all = all + count
    if of == tenant then own = own + count end
  end
  local counted = math.max(tokens, tonumber(ARGV[8]))
  if all + counted > tonumber(ARGV[6]) then return {'queue_full', all} end
  if tenant ~= '' and own + counted > tonumber(ARGV[7]) then return {'tenant_full', own} end
  redis.call('HSET', KEYS[1], id, ARGV[2])
else
  local had, since = string.match(redis.call('HGET', KEYS[3], id) or '', '^%d+ (%S+) (%S+) ')
  ttl, created = math.max(ttl, tonumber(had) or 0), since or created
end
redis.call('HSET', KEYS[3], id, string.format('%d %.17g %s %s', tokens, ttl, created, tenant))
local ends = math.max(now + ttl, tonumber(redis.call('ZSCORE', KEYS[2], id)) or 0)
redis.call('ZADD', KEYS[2], string.format('%.6f', ends), id)
local last = tonumber(redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2])
for i = 1, 3 do redis.call('EXPIREAT', KEYS[i], math.ceil(last) + 1) end
if redis.call('EXISTS', KEYS[4]) == 1 then
  redis.call('HSET', KEYS[4], 'pin', id)
  redis.call('HDEL', KEYS[4], 'pin_problem')
end
if new then redis.call('PUBLISH', KEYS[5], 'pins') end
return {'pinned'}
