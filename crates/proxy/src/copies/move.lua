-- the register's ttl, how long places count -> {new version, places that may hold a copy}. KEYS: register.
local t = redis.call('TIME')
local now_us = t[1] * 1000000 + t[2]
local v = math.max(now_us, tonumber(redis.call('HGET', KEYS[1], 'v') or '0') + 1)
local out = {string.format('%.0f', v)}
redis.call('HSET', KEYS[1], 'v', out[1])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if string.sub(all[i], 1, 2) == 'c:' then
    if tonumber(all[i + 1]) + ARGV[2] > now_us / 1000 then out[#out + 1] = string.sub(all[i], 3)
    else redis.call('HDEL', KEYS[1], all[i]) end
  end
end
return out
