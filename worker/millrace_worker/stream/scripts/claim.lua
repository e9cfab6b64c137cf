-- Takes over pending entries that nobody renewed for a while; the caller leases them with lease.lua.
-- A script because XAUTOCLAIM answers with two elements in Redis 6.2 and three since 7.0.
-- KEYS 1 lane stream
-- ARGV 1 group, 2 consumer, 3 least idle time in ms, 4 cursor, 5 most entries
-- returns {next cursor, {entry id, ...}}
local answer = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], 'COUNT', ARGV[5], 'JUSTID')
return {answer[1], answer[2]}
