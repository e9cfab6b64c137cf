-- Ends a caller's ownership of a batch, or of a shard of it; the batch is then due at a time of its choice, or never again.
-- KEYS 1 batch  hash  the batch
--      2 due    zset  id of a batch -> Unix time at which somebody must see to it
-- Nobody may have it before.
-- ARGV 1 id  2 owner's token  3 "", or ":" and the shard  4 seconds until it is due, "": it has ended
-- Returns 1, or 0 when it was not the caller's.
local owner, lease = 'owner' .. ARGV[3], 'lease' .. ARGV[3]
if redis.call('HGET', KEYS[1], owner) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], owner, lease)
if ARGV[4] == '' then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return 1
end
local clock = redis.call('TIME')
local again = string.format('%.6f', clock[1] + clock[2] / 1000000 + ARGV[4])
if tonumber(ARGV[4]) > 0 then redis.call('HSET', KEYS[1], lease, again) end
-- Sooner when other shards are; not at all when the last one was done and others have brought the batch to its end.
redis.call('ZADD', KEYS[2], 'XX', 'LT', again, ARGV[1])
return 1
