-- The secrets that a tenant's webhooks are signed with; the first is made at its first use. Repeating it is harmless.
-- KEYS 1 hash  current, previous, previous_until
-- ARGV 1 a new secret  2 1: put it in the place of the current one  3 seconds that the current one goes on then
-- Returns {current} or {current, previous}.
local clock = redis.call('TIME')
local current, previous, ends = unpack(redis.call('HMGET', KEYS[1], 'current', 'previous', 'previous_until'))
if not current or (ARGV[2] == '1' and current ~= ARGV[1]) then
  if current then
    previous, ends = current, string.format('%d', clock[1] + ARGV[3])
    redis.call('HSET', KEYS[1], 'previous', previous, 'previous_until', ends)
  end
  current = ARGV[1]
  redis.call('HSET', KEYS[1], 'current', current)
end
if previous and tonumber(ends) > tonumber(clock[1]) then return {current, previous} end
return {current}
