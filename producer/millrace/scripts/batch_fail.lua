-- Notes why a batch cannot be worked off: shards that were begun end, and no others begin.
-- KEYS 1 batch  hash  the batch
-- ARGV 1 failure
-- Returns 1, or 0 when it was noted before, or nothing is open.
local held = redis.call('HMGET', KEYS[1], 'shards', 'begun', 'open', 'failure')
if held[4] or tonumber(held[3] or '0') == 0 then return 0 end
redis.call('HSET', KEYS[1], 'failure', ARGV[1], 'shards', held[2])
redis.call('HINCRBY', KEYS[1], 'open', held[2] - held[1])
return 1
