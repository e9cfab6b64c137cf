-- Renews leases: the entries of jobs that this consumer still owns become fresh; nobody else's are touched.
-- KEYS 1.. lane streams; and the job hashes (same hash tag)
-- ARGV 1 group, 2 consumer, 3 key prefix, then for each lease: index of its lane in KEYS, entry id, job id, attempt
-- returns {now, {lost job ids}, {job ids whose cancellation was asked for}}
local lost, cancelled = {}, {}
for i = 4, #ARGV, 4 do
  local id = ARGV[i + 2]
  local h = redis.call('HMGET', ARGV[3] .. 'job:' .. id, 'state', 'owner', 'attempts', 'cancel_requested')
  if h[1] == 'in_progress' and h[2] == ARGV[2] and h[3] == ARGV[i + 3] then
    -- pcall: a group that is gone is created again by the next read, and the lease is the hash's owner anyway.
    redis.pcall('XCLAIM', KEYS[tonumber(ARGV[i])], ARGV[1], ARGV[2], 0, ARGV[i + 1], 'JUSTID')
    if h[4] == '1' then cancelled[#cancelled + 1] = id end
  else
    lost[#lost + 1] = id
  end
end
local t = redis.call('TIME')
return {t[1] .. '.' .. string.format('%06d', tonumber(t[2])), lost, cancelled}
