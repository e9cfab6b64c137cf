-- Takes requests and tokens out of what an API key may use a minute: both, or neither. Each allowance is a bucket that
-- holds a minute's worth and fills steadily; all that is kept of it is when it will be full (GCRA).
-- KEYS 1 rate              hash    requests, tokens: Unix time at which the bucket is full
-- ARGV 1 requests to take  2 requests a minute; 0: no limit
--      3 tokens to take    4 tokens a minute; 0: no limit      (negative ones are given back)
--      5 1: take them even if there are not as many: they were used already
-- Returns {taken (1/0), then for requests and for tokens: seconds until there will be as many, seconds until full}.
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local taken, buckets = 1, {}
for i, name in ipairs({'requests', 'tokens'}) do
  local count, limit = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local bucket = {name = name, full = now, after = now, wait = 0}
  if limit > 0 then
    bucket.full = math.max(now, tonumber(redis.call('HGET', KEYS[1], name) or now))
    bucket.after = math.max(now, bucket.full + count * 60 / limit)
    bucket.wait = math.max(0, bucket.after - now - 60)
    -- Sums of fractions may miss the last one by less than this.
    if bucket.wait > 0.00001 and ARGV[5] ~= '1' then taken = 0 end
  end
  buckets[i] = bucket
end
local reply, last = {taken}, now
for _, bucket in ipairs(buckets) do
  if taken == 1 then
    bucket.full = bucket.after
    if bucket.full > now then redis.call('HSET', KEYS[1], bucket.name, string.format('%.6f', bucket.full)) end
    if bucket.full == now then redis.call('HDEL', KEYS[1], bucket.name) end
    last = math.max(last, bucket.full)
  end
  reply[#reply + 1] = string.format('%.6f', bucket.wait)
  reply[#reply + 1] = string.format('%.6f', bucket.full - now)
end
if taken == 1 and last > now then redis.call('EXPIRE', KEYS[1], math.ceil(last - now) + 1) end
return reply
