-- Ends a caller's ownership of a batch, which is then due at a time of its choice, or never again.
-- KEYS 1 batch  hash  the batch
--      2 due    zset  id of a batch -> Unix time at which somebody must see to it
-- ARGV 1 id  2 owner's token  3 seconds until it is due, "": it has ended
-- Returns 1, or 0 when the batch was not the caller's.
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], 'owner', 'lease')
if ARGV[3] == '' then
  redis.call('ZREM', KEYS[2], ARGV[1])
else
  local clock = redis.call('TIME')
  redis.call('ZADD', KEYS[2], string.format('%.6f', clock[1] + clock[2] / 1000000 + ARGV[3]), ARGV[1])
end
return 1
