-- Writes how far a shard has come, together with the parts that prove it; only its owner may, and only in order.
-- KEYS 1 batch   hash  the batch
--      2 output  list  parts of the output file
--      3 errors  list  parts of the error file
-- ARGV 1 owner's token  2 shard  3 revision that the caller knows  4 progress  5 output part, or ""
--      6 error part, or ""  7 done (1/0)  8 expired (1/0)  9 lines whose jobs are to be forgotten, or ""
--      10.. names of counts, each with what is added to it
-- Returns 1, or 0 when the shard is not the caller's any more. The same call again returns 1 and changes nothing.
local key, shard = KEYS[1], ARGV[2]
local held = redis.call('HMGET', key, 'owner:' .. shard, 'revision:' .. shard, 'progress:' .. shard)
if held[1] ~= ARGV[1] then return 0 end
local revision = tonumber(held[2] or '0')
if revision == tonumber(ARGV[3]) + 1 and held[3] == ARGV[4] then return 1 end
if revision ~= tonumber(ARGV[3]) then return 0 end
redis.call('HSET', key, 'progress:' .. shard, ARGV[4], 'revision:' .. shard, revision + 1)
redis.call('HDEL', key, 'problem')
if ARGV[5] ~= '' then redis.call('RPUSH', KEYS[2], ARGV[5]) end
if ARGV[6] ~= '' then redis.call('RPUSH', KEYS[3], ARGV[6]) end
if ARGV[9] ~= '' then redis.call('HSET', key, 'answered:' .. shard, ARGV[9]) end
for i = 10, #ARGV, 2 do redis.call('HINCRBY', key, ARGV[i], ARGV[i + 1]) end
if ARGV[8] == '1' then redis.call('HSET', key, 'expired', 1) end
if ARGV[7] == '1' then
  redis.call('HSET', key, 'done:' .. shard, 1)
  redis.call('HINCRBY', key, 'open', -1)
end
return 1
