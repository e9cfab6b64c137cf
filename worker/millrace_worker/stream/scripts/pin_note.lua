-- Notes in a job why its prompt was not pinned; of a job that is gone nothing is kept.
-- KEYS 1 job
-- ARGV 1 the reason
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'pin_problem', ARGV[1])
  redis.call('HDEL', KEYS[1], 'pin')
end
