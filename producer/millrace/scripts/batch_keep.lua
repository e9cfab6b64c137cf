-- Keeps what a caller owns, a batch or a shard of it, for another while.
-- KEYS 1 batch  hash  the batch
--      2 due    zset  id of a batch -> Unix time at which somebody must see to it
-- ARGV 1 id  2 owner's token  3 seconds  4 "", or ":" and the shard  5 share of the input that was validated, or ""
-- Returns {0} when somebody else has it; else {1, cancel, failure}.
local owner, lease = 'owner' .. ARGV[4], 'lease' .. ARGV[4]
local held = redis.call('HMGET', KEYS[1], owner, 'cancel', 'failure')
if held[1] ~= ARGV[2] then return {0} end
local clock = redis.call('TIME')
local untilwhen = string.format('%.6f', clock[1] + clock[2] / 1000000 + ARGV[3])
redis.call('HSET', KEYS[1], lease, untilwhen)
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'checked', ARGV[5]) end
-- The only one who has any of it; with shards, others may have to be seen to sooner.
if ARGV[4] == '' then redis.call('ZADD', KEYS[2], untilwhen, ARGV[1]) end
return {1, held[2] or '', held[3] or ''}
