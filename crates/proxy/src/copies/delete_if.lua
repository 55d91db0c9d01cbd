-- value -> 1 deleted | 0 it holds another. KEYS: the key.
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
