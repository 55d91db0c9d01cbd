-- owner, lease in ms, the register's ttl, places -> {1, version, server's ms} | {0}: it is another's.
-- KEYS: lease, register.
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return {0} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local t = redis.call('TIME')
local now_ms = t[1] * 1000 + math.floor(t[2] / 1000)
for i = 4, #ARGV do redis.call('HSET', KEYS[2], 'c:' .. ARGV[i], string.format('%.0f', now_ms)) end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {1, redis.call('HGET', KEYS[2], 'v') or '0', string.format('%.0f', now_ms)}
