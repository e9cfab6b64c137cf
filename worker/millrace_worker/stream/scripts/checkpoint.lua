-- Stores new tokens of a running job and publishes their events: what a reader has seen is always checkpointed.
-- KEYS 1 job, 2 tokens, 3 events
-- ARGV 1 consumer, 2 attempt, 3 offset in bytes, 4 token bytes, 5 time to live in s, 6 bytes of a token's record,
--      7.. event bytes
-- returns the bytes stored, or -1 when the lease is lost. An answer below the offset: the checkpoint vanished and
-- must be sent whole. A repeat (lost reply) writes the same bytes and publishes nothing twice.
local h = redis.call('HMGET', KEYS[1], 'state', 'owner', 'attempts')
if h[1] ~= 'in_progress' or h[2] ~= ARGV[1] or h[3] ~= ARGV[2] then return -1 end
local have, offset = redis.call('STRLEN', KEYS[2]), tonumber(ARGV[3])
if have < offset then return have end
local upto = offset + #ARGV[4]
if #ARGV[4] > 0 and have < upto then
  redis.call('SETRANGE', KEYS[2], offset, ARGV[4])
  have = upto
  redis.call('EXPIRE', KEYS[2], ARGV[5])
  redis.call('HSET', KEYS[1], 'progress', upto / ARGV[6])
elseif #ARGV[4] > 0 then
  return have
end
for i = 7, #ARGV do redis.call('XADD', KEYS[3], '*', 'e', ARGV[i]) end
if #ARGV > 6 then redis.call('EXPIRE', KEYS[3], ARGV[5]) end
return have
