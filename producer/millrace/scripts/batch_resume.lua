-- Makes a batch due now, and what nobody owns of it free, whatever time it was to be tried again at.
-- KEYS 1 batch  hash  the batch
--      2 due    zset  id of a batch -> Unix time at which somebody must see to it
-- ARGV 1 id
-- Returns 1, or 0 when there is no such batch, or when it has ended.
if redis.call('HEXISTS', KEYS[1], 'record') == 0 or not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
local names = {''}
for shard = 0, tonumber(redis.call('HGET', KEYS[1], 'begun') or '0') - 1 do names[#names + 1] = ':' .. shard end
for _, name in ipairs(names) do
  if redis.call('HEXISTS', KEYS[1], 'owner' .. name) == 0 then redis.call('HDEL', KEYS[1], 'lease' .. name) end
end
local clock = redis.call('TIME')
redis.call('ZADD', KEYS[2], string.format('%d.%06d', clock[1], clock[2]), ARGV[1])
return 1
