-- Removes a consumer that holds nothing. One that holds entries stays: deleting it would drop them for ever.
-- KEYS 1 lane stream
-- ARGV 1 group, 2 consumer, 3 consumer that holds what was handed over ("": keep what is pending), 4 idle mark in ms
-- returns 1 removed | 0 it still holds entries
local held = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1000, ARGV[2])
if #held > 0 then
  if ARGV[3] == '' then return 0 end
  for _, p in ipairs(held) do
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, p[1], 'IDLE', ARGV[4], 'JUSTID')
  end
  if #held == 1000 then return 0 end
end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
