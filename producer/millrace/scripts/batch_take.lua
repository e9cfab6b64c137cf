-- Makes one caller the owner of a batch, or of one shard of it, for a while.
-- KEYS 1 batch  hash  the batch
--      2 due    zset  id of a batch -> Unix time at which somebody must see to it
-- ARGV 1 id  2 owner's token, another one each time  3 seconds
-- A shard that was begun comes before one that was not, so that no more of them are under way than there are processes.
-- While no shard is open, before the first and after the last, the batch as a whole is to be had.
-- Returns {0} when there is nothing to be had; else {1, shard or "", record, its progress, revision, cancel, failure, lines
-- whose jobs are to be forgotten}.
local key, due, id, token = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local held = redis.call('HMGET', key, 'record', 'cancel', 'failure', 'shards', 'begun', 'open', 'owner', 'lease',
                        'revision')
if not held[1] then
  redis.call('ZREM', due, id)
  return {0}
end
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local lease = string.format('%.6f', now + ARGV[3])

-- Also without an owner there may be one: it is not to be tried again before.
local function is_free(untilwhen)
  return not untilwhen or tonumber(untilwhen) <= now
end

if tonumber(held[6] or '0') == 0 then
  if held[7] ~= token and not is_free(held[8]) then return {0} end
  redis.call('HSET', key, 'owner', token, 'lease', lease)
  redis.call('ZADD', due, lease, id)
  return {1, '', held[1], '', held[9] or '0', held[2] or '', held[3] or '', ''}
end

local shards, begun = tonumber(held[4]), tonumber(held[5])
local chosen, more, paused, soonest = nil, false, false, nil
for shard = 0, begun - 1 do
  local found = redis.call('HMGET', key, 'done:' .. shard, 'owner:' .. shard, 'lease:' .. shard)
  if not found[1] then
    if found[2] == token then
      -- The same call again: its reply was lost.
      chosen, more = shard, true
      break
    elseif not is_free(found[3]) then
      paused = paused or not found[2]
      soonest = math.min(soonest or tonumber(found[3]), tonumber(found[3]))
    elseif chosen then
      more = true
    else
      chosen = shard
    end
  end
end
-- What stopped a shard would stop the next one, too.
if not chosen and begun < shards and not paused then
  chosen = begun
  begun = begun + 1
  redis.call('HSET', key, 'begun', begun)
end
-- Whoever is idle may have what is left; otherwise a lease ends first.
if more or (begun < shards and not paused) then
  redis.call('ZADD', due, string.format('%.6f', now), id)
else
  if chosen then soonest = math.min(soonest or math.huge, now + ARGV[3]) end
  if soonest then redis.call('ZADD', due, string.format('%.6f', soonest), id) end
end
if not chosen then return {0} end
redis.call('HSET', key, 'owner:' .. chosen, token, 'lease:' .. chosen, lease)
local own = redis.call('HMGET', key, 'progress:' .. chosen, 'revision:' .. chosen, 'answered:' .. chosen)
return {1, tostring(chosen), held[1], own[1] or '', own[2] or '0', held[2] or '', held[3] or '',
        own[3] or ''}
