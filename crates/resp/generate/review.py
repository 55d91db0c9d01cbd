"""What the servers do not say about their commands, decided by hand, with a reason each.

Two questions. *May the answer be kept until the key changes?* and *does the command bind its
connection?* `render.py` refuses to write the table while a command that raises one of the
questions is not answered here.
"""

# ---- Cacheable ---------------------------------------------------------------------------------
#
# Asked of every read-only command with one key at a fixed place, and of those in SEVERAL_KEYS.
# Yes means: the answer depends on the arguments and on the key's value alone, not on time, chance,
# other keys or the server's state, and asking changes nothing; so that it holds until the server
# announces that the key changed.

CACHEABLE = {
    "yes": {
        # strings and bitmaps
        "get", "getrange", "substr", "strlen", "digest",
        "getbit", "bitcount", "bitpos", "bitfield_ro",
        # lists
        "lindex", "llen", "lpos", "lrange",
        # sets; their order of members may differ between servers, never what they contain
        "scard", "sismember", "smismember", "smembers",
        # sorted sets and places
        "zcard", "zcount", "zlexcount", "zmscore", "zscore", "zrank", "zrevrank",
        "zrange", "zrangebylex", "zrangebyscore",
        "zrevrange", "zrevrangebylex", "zrevrangebyscore",
        "geodist", "geohash", "geopos", "geosearch", "georadius_ro", "georadiusbymember_ro",
        # streams, as far as only their entries count
        "xlen", "xrange", "xrevrange",
        # any type
        "exists", "type",
        # the bytes of DUMP may differ by encoding, but any of them restores the same value
        "dump",
    },
    # A hash field that expires sends its invalidation when the server removes it, which may be
    # seconds after it ceased to exist for readers.
    "hash_fields": {"hget", "hmget", "hexists", "hstrlen"},
    "whole_hash": {"hgetall", "hkeys", "hvals", "hlen"},
}  # fmt: skip

# Read-only, with a range of keys, but asked about all the same: cacheable when it names one.
SEVERAL_KEYS = {"exists"}

NOT_CACHEABLE = {
    "time: the answer counts down": ["ttl", "pttl", "httl", "hpttl"],
    "time: about expiry, like the TTL family, and gone without notice at that instant": [
        "expiretime", "pexpiretime", "hexpiretime", "hpexpiretime",
    ],
    "chance: each call is to give another answer": [
        "srandmember", "hrandfield", "zrandmember", "vrandmember",
    ],
    "a cursor's answer depends on the table's state, and a scan is not repeated": [
        "hscan", "sscan", "zscan",
    ],
    "reads other keys by pattern (BY, GET)": ["sort_ro"],
    "the server's own bookkeeping, which changes without a change of the key": [
        "object|encoding", "object|freq", "object|idletime", "object|refcount", "memory|usage",
    ],
    "consumer groups change by reading, and idle times run": [
        "xinfo|stream", "xinfo|groups", "xinfo|consumers", "xpending",
    ],
    "of a module: that each of its writes announces the key is not established": [
        "vcard", "vdim", "vemb", "vgetattr", "vinfo", "vismember", "vlinks", "vsim",
    ],
}  # fmt: skip

# Read-only commands that are not even asked about, for the record:
#   MGET, SDIFF, SINTER, SUNION, ZDIFF, ZINTER, ZUNION, *CARD, LCS   depend on several keys
#   PFCOUNT      may write its cached count into the key; and several keys
#   TOUCH        is called for its effect
#   XREAD        may wait, and "$" means "from now"
#   EVAL_RO, EVALSHA_RO, FCALL_RO   may read other keys, time and chance
#   KEYS, SCAN, CLUSTERSCAN, DBSIZE, RANDOMKEY   depend on all keys
# Commands flagged as writes although they also read (GETEX, GETDEL, GETSET, HGETEX) never are.

# ---- Session -----------------------------------------------------------------------------------
#
# Asked of every command flagged no_multi, no_auth, pubsub or asking, of every CLIENT and SCRIPT
# subcommand, and of every command without keys at top level. Yes means: it changes the state of
# its connection, or its answer depends on it, so it must not travel on a connection that others
# share.

SESSION = {
    "a transaction is open on the connection": ["multi", "exec", "discard", "watch", "unwatch"],
    "replies turn into pushes": [
        "subscribe", "psubscribe", "ssubscribe",
        "unsubscribe", "punsubscribe", "sunsubscribe", "monitor",
    ],
    "who the connection is, its protocol, its database, its end": [
        "auth", "hello", "select", "reset", "quit",
    ],
    "how a Cluster node treats the connection": ["readonly", "readwrite", "asking"],
    "the connection becomes a replica's": ["sync", "psync", "replconf", "cluster|syncslots"],
    "about the writes of this very connection": ["wait", "waitaof"],
    "the script debugger takes the connection over": ["script|debug"],
    "sets a property of the connection": [
        "client|caching", "client|capa", "client|import-source", "client|no-evict",
        "client|no-touch", "client|reply", "client|setinfo", "client|setname", "client|tracking",
    ],
    "tells a property of the connection": [
        "client|getname", "client|getredir", "client|id", "client|info", "client|trackinginfo",
        "acl|whoami",
    ],
}  # fmt: skip

NOT_SESSION = {
    "about the server or about other connections": [
        "client|help", "client|kill", "client|list", "client|pause", "client|unblock",
        "client|unpause", "script|exists", "script|flush", "script|help", "script|kill",
        "script|load", "script|show", "pubsub|channels", "pubsub|numpat", "pubsub|numsub",
        "pubsub|shardchannels", "pubsub|shardnumsub", "save", "shutdown", "bgrewriteaof",
        "bgsave", "debug", "failover", "info", "lastsave", "lolwut", "replicaof",
        "role", "slaveof", "time", "pfselftest",
    ],
    "publishing needs no subscription": ["publish", "spublish"],
    "its flag stands for ASKING, so that none is needed": ["restore-asking"],
    "about the data of the database selected, no more than any other command": [
        "dbsize", "flushall", "flushdb", "keys", "randomkey", "scan", "swapdb",
    ],
    "holds nothing": ["echo", "ping"],
    "its subcommands are asked one by one, or concern the server": [
        "acl", "client", "cluster", "command", "commandlog", "config", "function", "hotkeys",
        "latency", "memory", "module", "object", "pubsub", "script", "slowlog", "xgroup", "xinfo",
    ],
}  # fmt: skip

# ---- Writes that are not flagged so --------------------------------------------------------------

# Scripts and functions may write unless they are called by their read-only names. What a
# transaction writes is known from the commands queued in it.
MAY_WRITE = {"eval", "evalsha", "fcall"}
