"""The server's side of a lease: three short scripts, each on one data key and the two keys beside it.

Every one may be run twice, as client libraries do when a reply was lost. `expected` is how the value
begins that the caller has seen (the header of an envelope), or empty if it has seen none: a key that
changed since is somebody's newer value, and never overwritten.

KEYS of all: the data key, its lease, its wake-up.
"""

import hashlib
from typing import Final, NamedTuple


class Script(NamedTuple):
    """A script and the name the server knows it by."""

    text: bytes
    sha: bytes


def _script(text: str) -> Script:
    encoded = text.encode()
    return Script(encoded, hashlib.sha1(encoded, usedforsecurity=False).hexdigest().encode())


# What ACQUIRE answers with first.
FOUND: Final = 2
OURS: Final = 1
THEIRS: Final = 0

# token, lease in ms, expected -> {FOUND, value} | {OURS} | {THEIRS, ms until the lease ends}
ACQUIRE: Final = _script("""\
local value = redis.call('GET', KEYS[1])
if value and (ARGV[3] == '' or string.sub(value, 1, #ARGV[3]) ~= ARGV[3]) then
  return {2, value}
end
local holder = redis.call('HGET', KEYS[2], 'token')
if holder and holder ~= ARGV[1] then
  redis.call('HSET', KEYS[2], 'is_waited_for', '1')
  return {0, redis.call('PTTL', KEYS[2])}
end
redis.call('HSET', KEYS[2], 'token', ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('DEL', KEYS[3])
return {1}
""")

# Ends the lease, and wakes those who wait for it; if nobody does, nothing is left behind.
_END: Final = """\
local function finish(outcome, wake_ttl)
  local is_waited_for = redis.call('HEXISTS', KEYS[2], 'is_waited_for') == 1
  redis.call('DEL', KEYS[2])
  if is_waited_for then
    redis.call('XADD', KEYS[3], 'MAXLEN', '1', '*', 'outcome', outcome)
    redis.call('PEXPIRE', KEYS[3], wake_ttl)
  end
end
"""

# token, value, ttl in ms (0: do not store), expected, wake-up's ttl in ms
# -> 1 stored | 0 the lease is not ours any more | 2 the key has changed
FILL: Final = _script(
    _END
    + """\
local value = redis.call('GET', KEYS[1])
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[1] then
  return value == ARGV[2] and 1 or 0
end
local is_changed = value and (ARGV[4] == '' or string.sub(value, 1, #ARGV[4]) ~= ARGV[4])
if not is_changed and ARGV[3] ~= '0' then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
finish('filled', ARGV[5])
return is_changed and 2 or 1
"""
)

# token, lease in ms -> 1 renewed | 0 the lease is not ours any more
RENEW: Final = _script("""\
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[2], ARGV[2])
""")

# token, outcome, wake-up's ttl in ms -> 1 given back | 0 the lease is not ours any more
RELEASE: Final = _script(
    _END
    + """\
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[1] then
  return 0
end
finish(ARGV[2], ARGV[3])
return 1
"""
)

# wake-up's ttl in ms: the value goes, and whoever loads it may not fill any more
INVALIDATE: Final = _script(
    _END
    + """\
redis.call('DEL', KEYS[1])
finish('void', ARGV[1])
return 1
"""
)
