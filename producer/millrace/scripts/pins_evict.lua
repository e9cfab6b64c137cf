-- Takes pins out of a queue's registry, and tells its workers.
-- KEYS 1 pins        hash    id -> Pin bytes
--      2 pin-expiry  zset    id -> Unix time
--      3 pin-terms   hash    id -> "tokens ttl created_at tenant"
--      4 control     channel of the queue's workers
-- ARGV ids; none: all
-- Returns those that were there.
local ids, gone = ARGV, {}
if #ARGV == 0 then ids = redis.call('HKEYS', KEYS[1]) end
for _, id in ipairs(ids) do
  if redis.call('HDEL', KEYS[1], id) == 1 then gone[#gone + 1] = id end
  redis.call('HDEL', KEYS[3], id)
  redis.call('ZREM', KEYS[2], id)
end
if #gone > 0 then redis.call('PUBLISH', KEYS[4], 'pins') end
return gone
