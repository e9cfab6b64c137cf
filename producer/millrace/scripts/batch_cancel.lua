-- Notes that a batch is to be cancelled; its owner, or the next one, does it.
-- KEYS 1 batch  hash  the batch
--      2 due    zset  id of a batch -> Unix time at which somebody must see to it
-- ARGV 1 id
-- Returns 1, or 0 when there is no such batch, or when it has ended.
if redis.call('HEXISTS', KEYS[1], 'record') == 0 or not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
local clock = redis.call('TIME')
local now = string.format('%d.%06d', clock[1], clock[2])
redis.call('HSETNX', KEYS[1], 'cancel', now)
redis.call('ZADD', KEYS[2], now, ARGV[1])
return 1
