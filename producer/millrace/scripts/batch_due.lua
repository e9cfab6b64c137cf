-- Hands out batches that somebody must see to; whoever got them has some seconds before others get them, too.
-- KEYS 1 due  zset  id of a batch -> Unix time at which somebody must see to it
-- ARGV 1 most batches  2 seconds
-- Returns their ids.
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, id in ipairs(ids) do redis.call('ZADD', KEYS[1], string.format('%.6f', now + ARGV[2]), id) end
return ids
