-- version, the fence's ttl -> 1 the copy is gone | 0 it was already. KEYS: copy, fence.
if tonumber(redis.call('HGET', KEYS[2], 'v') or '0') >= tonumber(ARGV[1]) then return 0 end
redis.call('DEL', KEYS[1])
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'v', ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
