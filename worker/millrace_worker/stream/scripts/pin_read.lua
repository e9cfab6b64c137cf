-- The pins of a queue, without those whose time is over, which are removed.
-- KEYS 1 pins, 2 pin-expiry, 3 pin-terms, 4 control channel
-- ARGV 1 bytes of pins after which no more are sent, 2.. ids of pins that the caller has already
-- returns {{id, ...}, {Pin bytes of those that the caller has not, ...}, 1 when some of these were left out, else 0}
local t = redis.call('TIME')
local over = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', tonumber(t[1]) + tonumber(t[2]) / 1e6)
for _, id in ipairs(over) do
  redis.call('HDEL', KEYS[1], id)
  redis.call('HDEL', KEYS[3], id)
  redis.call('ZREM', KEYS[2], id)
end
if #over > 0 then redis.call('PUBLISH', KEYS[4], 'pins') end
local known = {}
for i = 2, #ARGV do known[ARGV[i]] = true end
local ids, new, bytes, left = redis.call('ZRANGE', KEYS[2], 0, -1), {}, 0, 0
for _, id in ipairs(ids) do
  if not known[id] then
    if bytes >= tonumber(ARGV[1]) then
      left = 1
      break
    end
    local data = redis.call('HGET', KEYS[1], id)
    if data then
      new[#new + 1] = data
      bytes = bytes + #data
    end
  end
end
return {ids, new, left}
