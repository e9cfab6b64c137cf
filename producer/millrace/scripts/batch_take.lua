-- Makes one caller the owner of a batch for a while, or keeps it so.
-- KEYS 1 batch  hash  the batch
--      2 due    zset  id of a batch -> Unix time at which somebody must see to it
-- ARGV 1 id  2 owner's token  3 seconds  4 "take" or "keep"
-- Returns {0} when there is no such batch, or when somebody else has it; else {1, record, progress, revision, cancel}.
local held = redis.call('HMGET', KEYS[1], 'record', 'progress', 'revision', 'cancel', 'owner', 'lease')
if not held[1] then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return {0}
end
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
if held[5] ~= ARGV[2] and (ARGV[4] == 'keep' or (held[5] and tonumber(held[6]) > now)) then return {0} end
local lease = string.format('%.6f', now + ARGV[3])
redis.call('HSET', KEYS[1], 'owner', ARGV[2], 'lease', lease)
redis.call('ZADD', KEYS[2], lease, ARGV[1])
return {1, held[1], held[2] or '', held[3] or '0', held[4] or ''}
