-- Makes a batch, once: calling it again with the same id changes nothing.
-- KEYS 1 batch  hash  the batch
--      2 due    zset  id of a batch -> Unix time at which somebody must see to it
--      3..      zset  id of a batch -> Unix time at which it was made
-- ARGV 1 id  2 record  3 Unix time  4 seconds after which a batch is forgotten for certain
-- Returns 1, or 0 when it was there already.
if redis.call('HSETNX', KEYS[1], 'record', ARGV[2]) == 0 then return 0 end
for i = 2, #KEYS do redis.call('ZADD', KEYS[i], ARGV[3], ARGV[1]) end
for i = 3, #KEYS do redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', ARGV[3] - ARGV[4]) end
return 1
