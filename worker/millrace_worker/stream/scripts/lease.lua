-- Leases jobs: of entries that were delivered to this consumer or claimed by it, and of new ones of the lane.
-- KEYS 1 lane stream, 2 deadlines, 3 dead stream; and the job hashes and tokens of the entries (same hash tag)
-- ARGV 1 group, 2 consumer, 3 key prefix, 4 lane, 5 max attempts, 6 time to live of a live job in s,
--      7 most new entries, 8.. ids of entries that are here already
-- returns {now, {entry, verdict, job, attempt, created_at, started_at, cancel_requested, stream, request, tokens}, ...}
-- verdict: run | expired (its deadline has passed) | exhausted (no attempt left) | malformed (quarantined here)
-- All but malformed are leased: the caller runs them, or ends them with finish.lua. Entries of jobs that are gone or
-- terminal are acknowledged, deleted and not returned. A repeat by the owner (lost reply) costs no attempt.
local group, consumer, prefix = ARGV[1], ARGV[2], ARGV[3]
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1e6
local stamp = string.format('%.6f', now)
local out = {stamp}

local function drop(entry)
  redis.call('XACK', KEYS[1], group, entry)
  redis.call('XDEL', KEYS[1], entry)
end

local function quarantine(entry, id, reason, data)
  redis.call('XADD', KEYS[3], '*', 'job', id, 'entry', entry, 'lane', ARGV[4], 'code', 'undecodable',
    'reason', reason, 'attempts', 0, 'data', data)
  drop(entry)
  out[#out + 1] = {entry, 'malformed', '', '0', '0', '0', '', '', '', ''}
end

local function job_of(entry, fields)
  for i = 1, #fields, 2 do
    if fields[i] == 'job' and string.find(fields[i + 1], '^[%w._-]+$') then return fields[i + 1] end
  end
  quarantine(entry, '', 'the entry has no field named job that holds a job id', cmsgpack.pack(fields))
  return nil
end

local function lease(entry, id)
  local key = prefix .. 'job:' .. id
  -- pcall: one key of the wrong type must not keep all the other entries from being leased.
  local h = redis.pcall('HMGET', key, 'state', 'attempts', 'owner', 'deadline', 'created_at', 'cancel_requested',
    'stream', 'request', 'started_at')
  if h.err then return quarantine(entry, id, 'the record of the job is no hash', '') end
  if h[1] ~= 'queued' and h[1] ~= 'in_progress' then return drop(entry) end
  local attempts = tonumber(h[2] or '0') or 0
  -- A count that is none (a fraction, inf, nan) starts anew: a worker must not end over it.
  if attempts ~= math.floor(attempts) or attempts < 0 or attempts > 1e9 then attempts = 0 end
  local verdict = 'run'
  if h[4] and h[4] ~= '' and tonumber(h[4]) and tonumber(h[4]) <= now then
    verdict = 'expired'
  elseif h[1] == 'in_progress' and h[3] == consumer then
    verdict = 'run'
  elseif attempts >= tonumber(ARGV[5]) then
    verdict = 'exhausted'
  else
    attempts = attempts + 1
  end
  redis.call('HSET', key, 'state', 'in_progress', 'owner', consumer, 'worker', consumer, 'entry', entry,
    'attempts', attempts, 'started_at', h[9] or stamp)
  redis.call('EXPIRE', key, ARGV[6])
  if h[4] then redis.call('ZREM', KEYS[2], id) end
  -- Only a job that was leased before has tokens.
  local tokens = h[9] and redis.pcall('GET', prefix .. 'tokens:' .. id)
  if type(tokens) ~= 'string' then tokens = '' end
  out[#out + 1] = {entry, verdict, id, tostring(attempts), h[5] or stamp, h[9] or stamp, h[6] or '', h[7] or '',
    h[8] or '', tokens}
end

local function take(entry, fields)
  local id = job_of(entry, fields)
  if id then lease(entry, id) end
end

for i = 8, #ARGV do
  local found = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
  if found then take(found[1], found[2]) else drop(ARGV[i]) end
end
if ARGV[7] ~= '0' then
  -- Changes nothing, but a Redis without memory refuses it, and with it the read: such a job could be neither ended nor
  -- given back. A read on its own is taken, and then all that follows in a script.
  redis.call('SETRANGE', prefix .. 'tokens:', 0, '')
  local lanes = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', ARGV[7], 'STREAMS', KEYS[1], '>')
  for _, found in ipairs(lanes and lanes[1][2] or {}) do take(found[1], found[2]) end
end
return out
