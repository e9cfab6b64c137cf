-- Puts the end of a batch into the outbox, once: repeating it makes no second webhook. It goes out when the batch's record
-- says that it has ended.
-- KEYS 1 webhooks zset, and channel  2 hash of what is told and how far that is
-- ARGV 1 id  2 terminal status  3 url  4 tenant  5 Unix time of the end  6 seconds to live
-- Returns 1, or 0 when it was told, or given up.
local told = redis.call('HGET', KEYS[2], 'webhook_state')
if told == 'delivered' or told == 'failed' then return 0 end
redis.call('HSET', KEYS[2], 'state', ARGV[2], 'webhook', ARGV[3], 'tenant', ARGV[4], 'finished_at', ARGV[5], 'ttl', ARGV[6])
redis.call('EXPIRE', KEYS[2], ARGV[6])
-- NX: a gateway may be calling already.
redis.call('ZADD', KEYS[1], 'NX', ARGV[5], ARGV[1])
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 1
