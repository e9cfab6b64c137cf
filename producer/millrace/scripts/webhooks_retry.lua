-- Makes the webhook of an ended job due now, also one that was delivered or given up: that one starts anew.
-- KEYS 1 webhooks zset, and channel  2 job
-- ARGV 1 id
-- Returns "due", "missing", "no_webhook", "not_ended", or "sending" while a gateway calls.
local state, webhook, told = unpack(redis.call('HMGET', KEYS[2], 'state', 'webhook', 'webhook_state'))
if not state then return 'missing' end
if not webhook then return 'no_webhook' end
if state == 'queued' or state == 'in_progress' then return 'not_ended' end
local clock = redis.call('TIME')
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if told == 'sending' and score and tonumber(score) > tonumber(clock[1]) then return 'sending' end
if not score then redis.call('HSET', KEYS[2], 'webhook_state', 'pending', 'webhook_attempts', 0) end
redis.call('ZADD', KEYS[1], clock[1], ARGV[1])
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 'due'
