"""The server's side of copies: short scripts, each on keys of one slot (`_copies_core.py` says why).

Every one may be run twice, as client libraries do when a reply was lost.
"""

from typing import Final

# owner, lease in ms, the register's ttl, places -> {1, version, server's ms} | {0}: it is another's.
# KEYS: lease, register.
LEASE: Final = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return {0} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local t = redis.call('TIME')
local now_ms = t[1] * 1000 + math.floor(t[2] / 1000)
for i = 4, #ARGV do redis.call('HSET', KEYS[2], 'c:' .. ARGV[i], string.format('%.0f', now_ms)) end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {1, redis.call('HGET', KEYS[2], 'v') or '0', string.format('%.0f', now_ms)}
"""
# the register's ttl, how long places count -> {new version, places that may hold a copy}. KEYS: register.
MOVE: Final = """
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
"""
# version, digest, deadline, the fence's ttl, the value if it is to be written
# -> 1 placed or prolonged | 0 voided or too late | -1 the value is needed. KEYS: copy, fence.
PLACE: Final = """
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
"""
# version, the fence's ttl -> 1 the copy is gone | 0 it was already. KEYS: copy, fence.
FENCE: Final = """
if tonumber(redis.call('HGET', KEYS[2], 'v') or '0') >= tonumber(ARGV[1]) then return 0 end
redis.call('DEL', KEYS[1])
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'v', ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
"""
# value -> 1 deleted | 0 it holds another. KEYS: the key.
