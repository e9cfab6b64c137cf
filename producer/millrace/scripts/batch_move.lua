-- Writes the record of a batch as a whole; only its owner may, and only in order.
-- KEYS 1 batch   hash  the batch
--      2 output  list  parts of the output file
--      3 errors  list  parts of the error file
-- ARGV 1 owner's token  2 revision that the caller knows  3 record  4 shards that are to be worked on; 0: no change
--      5 seconds to live, 0: it has not ended  6 only if nobody asked for its end (1/0)
-- Returns {1}, {0} when the batch is not the caller's any more, or {2, cancel}. The same call again returns {1} and changes
-- nothing.
local held = redis.call('HMGET', KEYS[1], 'owner', 'revision', 'record', 'cancel', 'shards')
if held[1] ~= ARGV[1] then return {0, ''} end
local revision = tonumber(held[2] or '0')
if revision == tonumber(ARGV[2]) + 1 and held[3] == ARGV[3] then return {1, ''} end
if revision ~= tonumber(ARGV[2]) then return {0, ''} end
if ARGV[6] == '1' and held[4] then return {2, held[4]} end
redis.call('HSET', KEYS[1], 'record', ARGV[3], 'revision', revision + 1)
redis.call('HDEL', KEYS[1], 'problem')
if ARGV[4] ~= '0' then redis.call('HSET', KEYS[1], 'shards', ARGV[4], 'begun', 0, 'open', ARGV[4]) end
if ARGV[5] ~= '0' then
  -- What only successors need, and nobody succeeds anybody any more.
  for shard = 0, tonumber(held[5] or '0') - 1 do
    redis.call('HDEL', KEYS[1], 'progress:' .. shard, 'revision:' .. shard, 'answered:' .. shard)
  end
  for i = 1, 3 do redis.call('EXPIRE', KEYS[i], ARGV[5]) end
end
return {1, ''}
