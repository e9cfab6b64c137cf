-- Prolongs pins that were used, each by its own time to live; those that are gone stay gone.
-- KEYS 1 pins, 2 pin-expiry, 3 pin-terms
-- ARGV ids of pins
-- returns how many there were
local t = redis.call('TIME')
local now, found = tonumber(t[1]) + tonumber(t[2]) / 1e6, 0
for i = 1, #ARGV do
  local ends = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[i]))
  local ttl = string.match(redis.call('HGET', KEYS[3], ARGV[i]) or '', '^%d+ (%S+) ')
  if ends and ttl and ends > now then
    redis.call('ZADD', KEYS[2], string.format('%.6f', math.max(ends, now + tonumber(ttl))), ARGV[i])
    found = found + 1
  end
end
if found > 0 then
  local last = tonumber(redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2])
  for i = 1, 3 do redis.call('EXPIREAT', KEYS[i], math.ceil(last) + 1) end
end
return found
