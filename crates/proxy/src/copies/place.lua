-- version, digest, deadline, the fence's ttl, the value if it is to be written
-- -> 1 placed or prolonged | 0 voided or too late | -1 the value is needed. KEYS: copy, fence.
if tonumber(redis.call('HGET', KEYS[2], 'v') or '0') > tonumber(ARGV[1]) then return 0 end
if redis.call('HGET', KEYS[2], 'd') == ARGV[2] and redis.call('PEXPIREAT', KEYS[1], ARGV[3]) == 1 then
  redis.call('HSET', KEYS[2], 'v', ARGV[1])
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
  return 1
end
if #ARGV < 5 then return -1 end
local t = redis.call('TIME')
if t[1] * 1000 + t[2] / 1000 >= tonumber(ARGV[3]) then return 0 end
redis.call('RESTORE', KEYS[1], ARGV[3], ARGV[5], 'REPLACE', 'ABSTTL')
redis.call('HSET', KEYS[2], 'v', ARGV[1], 'd', ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
