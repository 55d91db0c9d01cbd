//! The command table: generated, do not edit.
//!
//! From `data/commands.json` (valkey 9.1.2 and redis 8.2.3; 2026-11-21),
//! `data/newer.json` and `generate/review.py`. To read the commands of newer servers and write
//! this file anew:
//!
//! ```text
//! python crates/resp/generate/collect.py VALKEY_SERVER REDIS_SERVER
//! python crates/resp/generate/render.py
//! ```

use super::Access::{NotKey, Read, Write};
use super::Cacheable::{HashFields, No, WholeHash, Yes};
use super::{Access, Cacheable, Command, Flags, KeySpec, Part};

const fn range(first: u8, last: i16, step: u8, access: Access) -> KeySpec {
    KeySpec::Range {
        first,
        last,
        step,
        access,
    }
}

const fn part(first: u8, last: i16, step: u8, access: Access) -> Part {
    Part::Range {
        first,
        last,
        step,
        access,
    }
}

const fn counted(count: u8, first: u8, step: u8, access: Access) -> Part {
    Part::Counted {
        count,
        first,
        step,
        access,
    }
}

const fn flags(flags: &[Flags]) -> Flags {
    let (mut all, mut i) = (Flags::NONE, 0);
    while i < flags.len() {
        all = all.union(flags[i]);
        i += 1;
    }
    all
}

const fn command(
    name: &'static str,
    arity: i16,
    flags: Flags,
    keys: KeySpec,
    cacheable: Cacheable,
    subcommands: &'static [Command],
) -> Command {
    Command {
        name,
        arity,
        flags,
        keys,
        cacheable,
        subcommands,
    }
}

// One line a command, however long: a change of one is one line of the diff.
#[rustfmt::skip]
static ACL: [Command; 13] = [
    command("acl|cat", -2, flags(&[Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("acl|deluser", -3, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("acl|dryrun", -4, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("acl|genpass", -2, flags(&[Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("acl|getuser", 3, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("acl|help", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("acl|list", 2, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("acl|load", 2, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("acl|log", -2, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("acl|save", 2, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("acl|setuser", -3, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("acl|users", 2, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("acl|whoami", 2, flags(&[Flags::LOADING, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
];

#[rustfmt::skip]
static CLIENT: [Command; 20] = [
    command("client|caching", 3, flags(&[Flags::ALLOW_BUSY, Flags::LOADING, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("client|capa", -3, flags(&[Flags::ALLOW_BUSY, Flags::LOADING, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("client|getname", 2, flags(&[Flags::ALLOW_BUSY, Flags::LOADING, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("client|getredir", 2, flags(&[Flags::ALLOW_BUSY, Flags::LOADING, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("client|help", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("client|id", 2, flags(&[Flags::ALLOW_BUSY, Flags::LOADING, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("client|import-source", 3, flags(&[Flags::LOADING, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("client|info", 2, flags(&[Flags::LOADING, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("client|kill", -3, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("client|list", -2, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("client|no-evict", 3, flags(&[Flags::ADMIN, Flags::ALLOW_BUSY, Flags::LOADING, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("client|no-touch", 3, flags(&[Flags::ALLOW_BUSY, Flags::LOADING, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("client|pause", -3, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("client|reply", 3, flags(&[Flags::ALLOW_BUSY, Flags::LOADING, Flags::NO_MULTI, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("client|setinfo", 4, flags(&[Flags::ALLOW_BUSY, Flags::LOADING, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("client|setname", 3, flags(&[Flags::ALLOW_BUSY, Flags::LOADING, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("client|tracking", -3, flags(&[Flags::LOADING, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("client|trackinginfo", 2, flags(&[Flags::LOADING, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("client|unblock", -3, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("client|unpause", 2, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
];

#[rustfmt::skip]
static CLUSTER: [Command; 35] = [
    command("cluster|addslots", -3, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|addslotsrange", -4, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|bumpepoch", 2, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|cancelslotmigrations", 2, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|count-failure-reports", 3, flags(&[Flags::ADMIN, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|countkeysinslot", 3, flags(&[Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|delslots", -3, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|delslotsrange", -4, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|failover", -2, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|flushslot", -3, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::WRITE]), KeySpec::None, No, &[]),
    command("cluster|flushslots", 2, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|forget", 3, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|getkeysinslot", 4, flags(&[Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|getslotmigrations", 2, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|help", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|info", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|keyslot", 3, flags(&[Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|links", 2, flags(&[Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|meet", -4, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|migrateslots", -4, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|migration", -4, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|myid", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|myshardid", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|nodes", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|replicas", 3, flags(&[Flags::ADMIN, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|replicate", -3, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|reset", -2, flags(&[Flags::ADMIN, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|saveconfig", 2, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|set-config-epoch", 3, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|setslot", -4, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|shards", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|slaves", 3, flags(&[Flags::ADMIN, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|slot-stats", -4, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|slots", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("cluster|syncslots", -3, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
];

#[rustfmt::skip]
static COMMANDLOG: [Command; 4] = [
    command("commandlog|get", 4, flags(&[Flags::ADMIN, Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("commandlog|help", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("commandlog|len", 3, flags(&[Flags::ADMIN, Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("commandlog|reset", 3, flags(&[Flags::ADMIN, Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
];

#[rustfmt::skip]
static COMMAND: [Command; 7] = [
    command("command|count", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("command|docs", -2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("command|getkeys", -3, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("command|getkeysandflags", -3, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("command|help", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("command|info", -2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("command|list", -2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
];

#[rustfmt::skip]
static CONFIG: [Command; 5] = [
    command("config|get", -3, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("config|help", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("config|resetstat", 2, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("config|rewrite", 2, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("config|set", -4, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
];

#[rustfmt::skip]
static FUNCTION: [Command; 9] = [
    command("function|delete", 3, flags(&[Flags::NOSCRIPT, Flags::WRITE]), KeySpec::None, No, &[]),
    command("function|dump", 2, flags(&[Flags::NOSCRIPT]), KeySpec::None, No, &[]),
    command("function|flush", -2, flags(&[Flags::NOSCRIPT, Flags::WRITE]), KeySpec::None, No, &[]),
    command("function|help", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("function|kill", 2, flags(&[Flags::ALLOW_BUSY, Flags::NOSCRIPT]), KeySpec::None, No, &[]),
    command("function|list", -2, flags(&[Flags::NOSCRIPT]), KeySpec::None, No, &[]),
    command("function|load", -3, flags(&[Flags::DENYOOM, Flags::NOSCRIPT, Flags::WRITE]), KeySpec::None, No, &[]),
    command("function|restore", -3, flags(&[Flags::DENYOOM, Flags::NOSCRIPT, Flags::WRITE]), KeySpec::None, No, &[]),
    command("function|stats", 2, flags(&[Flags::ALLOW_BUSY, Flags::NOSCRIPT]), KeySpec::None, No, &[]),
];

#[rustfmt::skip]
static HOTKEYS: [Command; 4] = [
    command("hotkeys|get", 2, flags(&[Flags::ADMIN, Flags::NOSCRIPT]), KeySpec::None, No, &[]),
    command("hotkeys|reset", 2, flags(&[Flags::ADMIN, Flags::NOSCRIPT]), KeySpec::None, No, &[]),
    command("hotkeys|start", -2, flags(&[Flags::ADMIN, Flags::NOSCRIPT]), KeySpec::None, No, &[]),
    command("hotkeys|stop", 2, flags(&[Flags::ADMIN, Flags::NOSCRIPT]), KeySpec::None, No, &[]),
];

#[rustfmt::skip]
static LATENCY: [Command; 7] = [
    command("latency|doctor", 2, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("latency|graph", 3, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("latency|help", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("latency|histogram", -2, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("latency|history", 3, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("latency|latest", 2, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("latency|reset", -2, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
];

#[rustfmt::skip]
static MEMORY: [Command; 6] = [
    command("memory|doctor", 2, Flags::NONE, KeySpec::None, No, &[]),
    command("memory|help", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("memory|malloc-stats", 2, flags(&[Flags::LOADING]), KeySpec::None, No, &[]),
    command("memory|purge", 2, flags(&[Flags::LOADING]), KeySpec::None, No, &[]),
    command("memory|stats", 2, Flags::NONE, KeySpec::None, No, &[]),
    command("memory|usage", -3, flags(&[Flags::READONLY]), range(2, 2, 1, Read), No, &[]),
];

#[rustfmt::skip]
static MODULE: [Command; 5] = [
    command("module|help", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("module|list", 2, flags(&[Flags::ADMIN, Flags::NOSCRIPT]), KeySpec::None, No, &[]),
    command("module|load", -3, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::NOSCRIPT]), KeySpec::None, No, &[]),
    command("module|loadex", -3, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::NOSCRIPT]), KeySpec::None, No, &[]),
    command("module|unload", 3, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::NOSCRIPT]), KeySpec::None, No, &[]),
];

#[rustfmt::skip]
static OBJECT: [Command; 5] = [
    command("object|encoding", 3, flags(&[Flags::READONLY]), range(2, 2, 1, Read), No, &[]),
    command("object|freq", 3, flags(&[Flags::READONLY]), range(2, 2, 1, Read), No, &[]),
    command("object|help", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("object|idletime", 3, flags(&[Flags::READONLY]), range(2, 2, 1, Read), No, &[]),
    command("object|refcount", 3, flags(&[Flags::READONLY]), range(2, 2, 1, Read), No, &[]),
];

#[rustfmt::skip]
static PUBSUB: [Command; 6] = [
    command("pubsub|channels", -2, flags(&[Flags::LOADING, Flags::PUBSUB, Flags::STALE]), KeySpec::None, No, &[]),
    command("pubsub|help", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("pubsub|numpat", 2, flags(&[Flags::LOADING, Flags::PUBSUB, Flags::STALE]), KeySpec::None, No, &[]),
    command("pubsub|numsub", -2, flags(&[Flags::LOADING, Flags::PUBSUB, Flags::STALE]), KeySpec::None, No, &[]),
    command("pubsub|shardchannels", -2, flags(&[Flags::LOADING, Flags::PUBSUB, Flags::STALE]), KeySpec::None, No, &[]),
    command("pubsub|shardnumsub", -2, flags(&[Flags::LOADING, Flags::PUBSUB, Flags::STALE]), KeySpec::None, No, &[]),
];

#[rustfmt::skip]
static SCRIPT: [Command; 7] = [
    command("script|debug", -3, flags(&[Flags::NOSCRIPT, Flags::SESSION]), KeySpec::None, No, &[]),
    command("script|exists", -3, flags(&[Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("script|flush", -2, flags(&[Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("script|help", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("script|kill", 2, flags(&[Flags::ALLOW_BUSY, Flags::NOSCRIPT]), KeySpec::None, No, &[]),
    command("script|load", 3, flags(&[Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("script|show", 3, flags(&[Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
];

#[rustfmt::skip]
static SLOWLOG: [Command; 4] = [
    command("slowlog|get", -2, flags(&[Flags::ADMIN, Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("slowlog|help", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("slowlog|len", 2, flags(&[Flags::ADMIN, Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("slowlog|reset", 2, flags(&[Flags::ADMIN, Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
];

#[rustfmt::skip]
static XGROUP: [Command; 6] = [
    command("xgroup|create", -5, flags(&[Flags::DENYOOM, Flags::WRITE]), range(2, 2, 1, Write), No, &[]),
    command("xgroup|createconsumer", 5, flags(&[Flags::DENYOOM, Flags::WRITE]), range(2, 2, 1, Write), No, &[]),
    command("xgroup|delconsumer", 5, flags(&[Flags::WRITE]), range(2, 2, 1, Write), No, &[]),
    command("xgroup|destroy", 4, flags(&[Flags::WRITE]), range(2, 2, 1, Write), No, &[]),
    command("xgroup|help", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("xgroup|setid", -5, flags(&[Flags::WRITE]), range(2, 2, 1, Write), No, &[]),
];

#[rustfmt::skip]
static XINFO: [Command; 4] = [
    command("xinfo|consumers", 4, flags(&[Flags::READONLY]), range(2, 2, 1, Read), No, &[]),
    command("xinfo|groups", 3, flags(&[Flags::READONLY]), range(2, 2, 1, Read), No, &[]),
    command("xinfo|help", 2, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("xinfo|stream", -3, flags(&[Flags::READONLY]), range(2, 2, 1, Read), No, &[]),
];

/// Every command, by name.
#[rustfmt::skip]
pub(super) static COMMANDS: [Command; 279] = [
    command("acl", -2, Flags::NONE, KeySpec::None, No, &ACL),
    command("append", 3, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("asking", 1, flags(&[Flags::FAST, Flags::SESSION]), KeySpec::None, No, &[]),
    command("auth", -2, flags(&[Flags::ALLOW_BUSY, Flags::FAST, Flags::LOADING, Flags::NO_AUTH, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("bgrewriteaof", 1, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::NOSCRIPT]), KeySpec::None, No, &[]),
    command("bgsave", -1, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::NOSCRIPT]), KeySpec::None, No, &[]),
    command("bitcount", -2, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("bitfield", -2, flags(&[Flags::DENYOOM, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("bitfield_ro", -2, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("bitop", -4, flags(&[Flags::DENYOOM, Flags::WRITE]), KeySpec::Parts(&[part(2, 2, 1, Write), part(3, -1, 1, Read)]), No, &[]),
    command("bitpos", -3, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("blmove", 6, flags(&[Flags::BLOCKING, Flags::DENYOOM, Flags::WRITE]), KeySpec::Parts(&[part(1, 1, 1, Write), part(2, 2, 1, Write)]), No, &[]),
    command("blmpop", -5, flags(&[Flags::BLOCKING, Flags::MOVABLEKEYS, Flags::WRITE]), KeySpec::Parts(&[counted(2, 3, 1, Write)]), No, &[]),
    command("blpop", -3, flags(&[Flags::BLOCKING, Flags::WRITE]), range(1, -2, 1, Write), No, &[]),
    command("brpop", -3, flags(&[Flags::BLOCKING, Flags::WRITE]), range(1, -2, 1, Write), No, &[]),
    command("brpoplpush", 4, flags(&[Flags::BLOCKING, Flags::DENYOOM, Flags::WRITE]), KeySpec::Parts(&[part(1, 1, 1, Write), part(2, 2, 1, Write)]), No, &[]),
    command("bzmpop", -5, flags(&[Flags::BLOCKING, Flags::MOVABLEKEYS, Flags::WRITE]), KeySpec::Parts(&[counted(2, 3, 1, Write)]), No, &[]),
    command("bzpopmax", -3, flags(&[Flags::BLOCKING, Flags::FAST, Flags::WRITE]), range(1, -2, 1, Write), No, &[]),
    command("bzpopmin", -3, flags(&[Flags::BLOCKING, Flags::FAST, Flags::WRITE]), range(1, -2, 1, Write), No, &[]),
    command("client", -2, Flags::NONE, KeySpec::None, No, &CLIENT),
    command("cluster", -2, Flags::NONE, KeySpec::None, No, &CLUSTER),
    command("clusterscan", -2, flags(&[Flags::READONLY]), range(1, 1, 1, NotKey), No, &[]),
    command("command", -1, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &COMMAND),
    command("commandlog", -2, Flags::NONE, KeySpec::None, No, &COMMANDLOG),
    command("config", -2, Flags::NONE, KeySpec::None, No, &CONFIG),
    command("copy", -3, flags(&[Flags::DENYOOM, Flags::WRITE]), KeySpec::Parts(&[part(1, 1, 1, Read), part(2, 2, 1, Write)]), No, &[]),
    command("dbsize", 1, flags(&[Flags::FAST, Flags::READONLY]), KeySpec::None, No, &[]),
    command("debug", -2, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("decr", 2, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("decrby", 3, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("del", -2, flags(&[Flags::WRITE]), range(1, -1, 1, Write), No, &[]),
    command("delex", -2, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("delifeq", 3, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("digest", 2, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("discard", 1, flags(&[Flags::ALLOW_BUSY, Flags::FAST, Flags::LOADING, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("dump", 2, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("echo", 2, flags(&[Flags::FAST, Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("eval", -3, flags(&[Flags::MAY_WRITE, Flags::MOVABLEKEYS, Flags::NO_MANDATORY_KEYS, Flags::NOSCRIPT, Flags::STALE]), KeySpec::Parts(&[counted(2, 3, 1, Write)]), No, &[]),
    command("eval_ro", -3, flags(&[Flags::MOVABLEKEYS, Flags::NO_MANDATORY_KEYS, Flags::NOSCRIPT, Flags::READONLY, Flags::STALE]), KeySpec::Parts(&[counted(2, 3, 1, Read)]), No, &[]),
    command("evalsha", -3, flags(&[Flags::MAY_WRITE, Flags::MOVABLEKEYS, Flags::NO_MANDATORY_KEYS, Flags::NOSCRIPT, Flags::STALE]), KeySpec::Parts(&[counted(2, 3, 1, Write)]), No, &[]),
    command("evalsha_ro", -3, flags(&[Flags::MOVABLEKEYS, Flags::NO_MANDATORY_KEYS, Flags::NOSCRIPT, Flags::READONLY, Flags::STALE]), KeySpec::Parts(&[counted(2, 3, 1, Read)]), No, &[]),
    command("exec", 1, flags(&[Flags::LOADING, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("exists", -2, flags(&[Flags::FAST, Flags::READONLY]), range(1, -1, 1, Read), Yes, &[]),
    command("expire", -3, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("expireat", -3, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("expiretime", 2, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("failover", -1, flags(&[Flags::ADMIN, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("fcall", -3, flags(&[Flags::MAY_WRITE, Flags::MOVABLEKEYS, Flags::NO_MANDATORY_KEYS, Flags::NOSCRIPT, Flags::STALE]), KeySpec::Parts(&[counted(2, 3, 1, Write)]), No, &[]),
    command("fcall_ro", -3, flags(&[Flags::MOVABLEKEYS, Flags::NO_MANDATORY_KEYS, Flags::NOSCRIPT, Flags::READONLY, Flags::STALE]), KeySpec::Parts(&[counted(2, 3, 1, Read)]), No, &[]),
    command("flushall", -1, flags(&[Flags::WRITE]), KeySpec::None, No, &[]),
    command("flushdb", -1, flags(&[Flags::WRITE]), KeySpec::None, No, &[]),
    command("function", -2, Flags::NONE, KeySpec::None, No, &FUNCTION),
    command("gcra", -2, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("geoadd", -5, flags(&[Flags::DENYOOM, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("geodist", -4, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("geohash", -2, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("geopos", -2, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("georadius", -6, flags(&[Flags::DENYOOM, Flags::MOVABLEKEYS, Flags::WRITE]), KeySpec::GeoRadius, No, &[]),
    command("georadius_ro", -6, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("georadiusbymember", -5, flags(&[Flags::DENYOOM, Flags::MOVABLEKEYS, Flags::WRITE]), KeySpec::GeoRadius, No, &[]),
    command("georadiusbymember_ro", -5, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("geosearch", -7, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("geosearchstore", -8, flags(&[Flags::DENYOOM, Flags::WRITE]), KeySpec::Parts(&[part(1, 1, 1, Write), part(2, 2, 1, Read)]), No, &[]),
    command("get", 2, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("getbit", 3, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("getdel", 2, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("getex", -2, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("getrange", 4, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("getset", 3, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("hdel", -3, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("hello", -1, flags(&[Flags::ALLOW_BUSY, Flags::FAST, Flags::LOADING, Flags::NO_AUTH, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("hexists", 3, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), HashFields, &[]),
    command("hexpire", -6, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("hexpireat", -6, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("hexpiretime", -5, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("hget", 3, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), HashFields, &[]),
    command("hgetall", 2, flags(&[Flags::READONLY]), range(1, 1, 1, Read), WholeHash, &[]),
    command("hgetdel", -5, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("hgetex", -5, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("hincrby", 4, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("hincrbyfloat", 4, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("hkeys", 2, flags(&[Flags::READONLY]), range(1, 1, 1, Read), WholeHash, &[]),
    command("hlen", 2, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), WholeHash, &[]),
    command("hmget", -3, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), HashFields, &[]),
    command("hmset", -4, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("hotkeys", -2, Flags::NONE, KeySpec::None, No, &HOTKEYS),
    command("hpersist", -5, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("hpexpire", -6, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("hpexpireat", -6, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("hpexpiretime", -5, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("hpttl", -5, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("hrandfield", -2, flags(&[Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("hscan", -3, flags(&[Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("hset", -4, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("hsetex", -6, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("hsetnx", 4, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("hstrlen", 3, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), HashFields, &[]),
    command("httl", -5, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("hvals", 2, flags(&[Flags::READONLY]), range(1, 1, 1, Read), WholeHash, &[]),
    command("incr", 2, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("incrby", 3, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("incrbyfloat", 3, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("increx", -2, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("info", -1, flags(&[Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("keys", 2, flags(&[Flags::READONLY]), KeySpec::None, No, &[]),
    command("lastsave", 1, flags(&[Flags::FAST, Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("latency", -2, Flags::NONE, KeySpec::None, No, &LATENCY),
    command("lcs", -3, flags(&[Flags::READONLY]), range(1, 2, 1, Read), No, &[]),
    command("lindex", 3, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("linsert", 5, flags(&[Flags::DENYOOM, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("llen", 2, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("lmove", 5, flags(&[Flags::DENYOOM, Flags::WRITE]), KeySpec::Parts(&[part(1, 1, 1, Write), part(2, 2, 1, Write)]), No, &[]),
    command("lmpop", -4, flags(&[Flags::MOVABLEKEYS, Flags::WRITE]), KeySpec::Parts(&[counted(1, 2, 1, Write)]), No, &[]),
    command("lolwut", -1, flags(&[Flags::FAST, Flags::READONLY]), KeySpec::None, No, &[]),
    command("lpop", -2, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("lpos", -3, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("lpush", -3, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("lpushx", -3, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("lrange", 4, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("lrem", 4, flags(&[Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("lset", 4, flags(&[Flags::DENYOOM, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("ltrim", 4, flags(&[Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("memory", -2, Flags::NONE, KeySpec::None, No, &MEMORY),
    command("mget", -2, flags(&[Flags::FAST, Flags::READONLY]), range(1, -1, 1, Read), No, &[]),
    command("migrate", -6, flags(&[Flags::MOVABLEKEYS, Flags::WRITE]), KeySpec::Migrate, No, &[]),
    command("module", -2, Flags::NONE, KeySpec::None, No, &MODULE),
    command("monitor", 1, flags(&[Flags::ADMIN, Flags::LOADING, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("move", 3, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("mset", -3, flags(&[Flags::DENYOOM, Flags::WRITE]), range(1, -1, 2, Write), No, &[]),
    command("msetex", -4, flags(&[Flags::DENYOOM, Flags::MOVABLEKEYS, Flags::WRITE]), KeySpec::Parts(&[counted(1, 2, 2, Write)]), No, &[]),
    command("msetnx", -3, flags(&[Flags::DENYOOM, Flags::WRITE]), range(1, -1, 2, Write), No, &[]),
    command("multi", 1, flags(&[Flags::ALLOW_BUSY, Flags::FAST, Flags::LOADING, Flags::NO_MULTI, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("object", -2, Flags::NONE, KeySpec::None, No, &OBJECT),
    command("persist", 2, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("pexpire", -3, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("pexpireat", -3, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("pexpiretime", 2, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("pfadd", -2, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("pfcount", -2, flags(&[Flags::READONLY]), range(1, -1, 1, Read), No, &[]),
    command("pfdebug", 3, flags(&[Flags::ADMIN, Flags::DENYOOM, Flags::WRITE]), range(2, 2, 1, Write), No, &[]),
    command("pfmerge", -2, flags(&[Flags::DENYOOM, Flags::WRITE]), KeySpec::Parts(&[part(1, 1, 1, Write), part(2, -1, 1, Read)]), No, &[]),
    command("pfselftest", 1, flags(&[Flags::ADMIN]), KeySpec::None, No, &[]),
    command("ping", -1, flags(&[Flags::FAST]), KeySpec::None, No, &[]),
    command("psetex", 4, flags(&[Flags::DENYOOM, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("psubscribe", -2, flags(&[Flags::LOADING, Flags::NOSCRIPT, Flags::PUBSUB, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("psync", -3, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::NO_MULTI, Flags::NOSCRIPT, Flags::SESSION]), KeySpec::None, No, &[]),
    command("pttl", 2, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("publish", 3, flags(&[Flags::FAST, Flags::LOADING, Flags::PUBSUB, Flags::STALE]), KeySpec::None, No, &[]),
    command("pubsub", -2, Flags::NONE, KeySpec::None, No, &PUBSUB),
    command("punsubscribe", -1, flags(&[Flags::LOADING, Flags::NOSCRIPT, Flags::PUBSUB, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("quit", -1, flags(&[Flags::ALLOW_BUSY, Flags::FAST, Flags::LOADING, Flags::NO_AUTH, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("randomkey", 1, flags(&[Flags::READONLY]), KeySpec::None, No, &[]),
    command("readonly", 1, flags(&[Flags::FAST, Flags::LOADING, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("readwrite", 1, flags(&[Flags::FAST, Flags::LOADING, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("rename", 3, flags(&[Flags::WRITE]), KeySpec::Parts(&[part(1, 1, 1, Write), part(2, 2, 1, Write)]), No, &[]),
    command("renamenx", 3, flags(&[Flags::FAST, Flags::WRITE]), KeySpec::Parts(&[part(1, 1, 1, Write), part(2, 2, 1, Write)]), No, &[]),
    command("replconf", -1, flags(&[Flags::ADMIN, Flags::ALLOW_BUSY, Flags::LOADING, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("replicaof", 3, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("reset", 1, flags(&[Flags::ALLOW_BUSY, Flags::FAST, Flags::LOADING, Flags::NO_AUTH, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("restore", -4, flags(&[Flags::DENYOOM, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("restore-asking", -4, flags(&[Flags::ASKING, Flags::DENYOOM, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("role", 1, flags(&[Flags::FAST, Flags::LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("rpop", -2, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("rpoplpush", 3, flags(&[Flags::DENYOOM, Flags::WRITE]), KeySpec::Parts(&[part(1, 1, 1, Write), part(2, 2, 1, Write)]), No, &[]),
    command("rpush", -3, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("rpushx", -3, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("sadd", -3, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("save", 1, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::NO_MULTI, Flags::NOSCRIPT]), KeySpec::None, No, &[]),
    command("scan", -2, flags(&[Flags::READONLY]), KeySpec::None, No, &[]),
    command("scard", 2, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("script", -2, Flags::NONE, KeySpec::None, No, &SCRIPT),
    command("sdiff", -2, flags(&[Flags::READONLY]), range(1, -1, 1, Read), No, &[]),
    command("sdiffstore", -3, flags(&[Flags::DENYOOM, Flags::WRITE]), KeySpec::Parts(&[part(1, 1, 1, Write), part(2, -1, 1, Read)]), No, &[]),
    command("select", 2, flags(&[Flags::ALLOW_BUSY, Flags::FAST, Flags::LOADING, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("set", -3, flags(&[Flags::DENYOOM, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("setbit", 4, flags(&[Flags::DENYOOM, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("setex", 4, flags(&[Flags::DENYOOM, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("setnx", 3, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("setrange", 4, flags(&[Flags::DENYOOM, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("shutdown", -1, flags(&[Flags::ADMIN, Flags::ALLOW_BUSY, Flags::LOADING, Flags::NO_MULTI, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("sinter", -2, flags(&[Flags::READONLY]), range(1, -1, 1, Read), No, &[]),
    command("sintercard", -3, flags(&[Flags::MOVABLEKEYS, Flags::READONLY]), KeySpec::Parts(&[counted(1, 2, 1, Read)]), No, &[]),
    command("sinterstore", -3, flags(&[Flags::DENYOOM, Flags::WRITE]), KeySpec::Parts(&[part(1, 1, 1, Write), part(2, -1, 1, Read)]), No, &[]),
    command("sismember", 3, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("slaveof", 3, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::NOSCRIPT, Flags::STALE]), KeySpec::None, No, &[]),
    command("slowlog", -2, Flags::NONE, KeySpec::None, No, &SLOWLOG),
    command("smembers", 2, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("smismember", -3, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("smove", 4, flags(&[Flags::FAST, Flags::WRITE]), KeySpec::Parts(&[part(1, 1, 1, Write), part(2, 2, 1, Write)]), No, &[]),
    command("sort", -2, flags(&[Flags::DENYOOM, Flags::MOVABLEKEYS, Flags::WRITE]), KeySpec::Sort, No, &[]),
    command("sort_ro", -2, flags(&[Flags::MOVABLEKEYS, Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("spop", -2, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("spublish", 3, flags(&[Flags::FAST, Flags::LOADING, Flags::PUBSUB, Flags::STALE]), range(1, 1, 1, NotKey), No, &[]),
    command("srandmember", -2, flags(&[Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("srem", -3, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("sscan", -3, flags(&[Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("ssubscribe", -2, flags(&[Flags::LOADING, Flags::NOSCRIPT, Flags::PUBSUB, Flags::SESSION, Flags::STALE]), range(1, -1, 1, NotKey), No, &[]),
    command("strlen", 2, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("subscribe", -2, flags(&[Flags::LOADING, Flags::NOSCRIPT, Flags::PUBSUB, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("substr", 4, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("sunion", -2, flags(&[Flags::READONLY]), range(1, -1, 1, Read), No, &[]),
    command("sunionstore", -3, flags(&[Flags::DENYOOM, Flags::WRITE]), KeySpec::Parts(&[part(1, 1, 1, Write), part(2, -1, 1, Read)]), No, &[]),
    command("sunsubscribe", -1, flags(&[Flags::LOADING, Flags::NOSCRIPT, Flags::PUBSUB, Flags::SESSION, Flags::STALE]), range(1, -1, 1, NotKey), No, &[]),
    command("swapdb", 3, flags(&[Flags::FAST, Flags::WRITE]), KeySpec::None, No, &[]),
    command("sync", 1, flags(&[Flags::ADMIN, Flags::NO_ASYNC_LOADING, Flags::NO_MULTI, Flags::NOSCRIPT, Flags::SESSION]), KeySpec::None, No, &[]),
    command("time", 1, flags(&[Flags::FAST, Flags::LOADING, Flags::STALE]), KeySpec::None, No, &[]),
    command("touch", -2, flags(&[Flags::FAST, Flags::READONLY]), range(1, -1, 1, Read), No, &[]),
    command("ttl", 2, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("type", 2, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("unlink", -2, flags(&[Flags::FAST, Flags::WRITE]), range(1, -1, 1, Write), No, &[]),
    command("unsubscribe", -1, flags(&[Flags::LOADING, Flags::NOSCRIPT, Flags::PUBSUB, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("unwatch", 1, flags(&[Flags::ALLOW_BUSY, Flags::FAST, Flags::LOADING, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), KeySpec::None, No, &[]),
    command("vadd", -1, flags(&[Flags::DENYOOM, Flags::MODULE, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("vcard", -1, flags(&[Flags::FAST, Flags::MODULE, Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("vdim", -1, flags(&[Flags::FAST, Flags::MODULE, Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("vemb", -1, flags(&[Flags::FAST, Flags::MODULE, Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("vgetattr", -1, flags(&[Flags::FAST, Flags::MODULE, Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("vinfo", -1, flags(&[Flags::FAST, Flags::MODULE, Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("vismember", -1, flags(&[Flags::MODULE, Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("vlinks", -1, flags(&[Flags::FAST, Flags::MODULE, Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("vrandmember", -1, flags(&[Flags::MODULE, Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("vrem", -1, flags(&[Flags::MODULE, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("vsetattr", -1, flags(&[Flags::FAST, Flags::MODULE, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("vsim", -1, flags(&[Flags::MODULE, Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("wait", 3, flags(&[Flags::BLOCKING, Flags::SESSION]), KeySpec::None, No, &[]),
    command("waitaof", 4, flags(&[Flags::BLOCKING, Flags::SESSION]), KeySpec::None, No, &[]),
    command("watch", -2, flags(&[Flags::ALLOW_BUSY, Flags::FAST, Flags::LOADING, Flags::NO_MULTI, Flags::NOSCRIPT, Flags::SESSION, Flags::STALE]), range(1, -1, 1, Read), No, &[]),
    command("xack", -4, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("xackdel", -6, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("xadd", -5, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("xautoclaim", -6, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("xcfgset", -2, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("xclaim", -6, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("xdel", -3, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("xdelex", -5, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("xgroup", -2, Flags::NONE, KeySpec::None, No, &XGROUP),
    command("xidmprecord", -2, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("xinfo", -2, Flags::NONE, KeySpec::None, No, &XINFO),
    command("xlen", 2, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("xnack", -2, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("xpending", -3, flags(&[Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("xrange", -4, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("xread", -4, flags(&[Flags::BLOCKING, Flags::MOVABLEKEYS, Flags::READONLY]), KeySpec::Streams { access: Read }, No, &[]),
    command("xreadgroup", -7, flags(&[Flags::BLOCKING, Flags::MOVABLEKEYS, Flags::WRITE]), KeySpec::Streams { access: Read }, No, &[]),
    command("xrevrange", -4, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("xsetid", -3, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("xtrim", -4, flags(&[Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("zadd", -4, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("zcard", 2, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("zcount", 4, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("zdiff", -3, flags(&[Flags::MOVABLEKEYS, Flags::READONLY]), KeySpec::Parts(&[counted(1, 2, 1, Read)]), No, &[]),
    command("zdiffstore", -4, flags(&[Flags::DENYOOM, Flags::MOVABLEKEYS, Flags::WRITE]), KeySpec::Parts(&[part(1, 1, 1, Write), counted(2, 3, 1, Read)]), No, &[]),
    command("zincrby", 4, flags(&[Flags::DENYOOM, Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("zinter", -3, flags(&[Flags::MOVABLEKEYS, Flags::READONLY]), KeySpec::Parts(&[counted(1, 2, 1, Read)]), No, &[]),
    command("zintercard", -3, flags(&[Flags::MOVABLEKEYS, Flags::READONLY]), KeySpec::Parts(&[counted(1, 2, 1, Read)]), No, &[]),
    command("zinterstore", -4, flags(&[Flags::DENYOOM, Flags::MOVABLEKEYS, Flags::WRITE]), KeySpec::Parts(&[part(1, 1, 1, Write), counted(2, 3, 1, Read)]), No, &[]),
    command("zlexcount", 4, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("zmpop", -4, flags(&[Flags::MOVABLEKEYS, Flags::WRITE]), KeySpec::Parts(&[counted(1, 2, 1, Write)]), No, &[]),
    command("zmscore", -3, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("zpopmax", -2, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("zpopmin", -2, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("zrandmember", -2, flags(&[Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("zrange", -4, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("zrangebylex", -4, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("zrangebyscore", -4, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("zrangestore", -5, flags(&[Flags::DENYOOM, Flags::WRITE]), KeySpec::Parts(&[part(1, 1, 1, Write), part(2, 2, 1, Read)]), No, &[]),
    command("zrank", -3, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("zrem", -3, flags(&[Flags::FAST, Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("zremrangebylex", 4, flags(&[Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("zremrangebyrank", 4, flags(&[Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("zremrangebyscore", 4, flags(&[Flags::WRITE]), range(1, 1, 1, Write), No, &[]),
    command("zrevrange", -4, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("zrevrangebylex", -4, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("zrevrangebyscore", -4, flags(&[Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("zrevrank", -3, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("zscan", -3, flags(&[Flags::READONLY]), range(1, 1, 1, Read), No, &[]),
    command("zscore", 3, flags(&[Flags::FAST, Flags::READONLY]), range(1, 1, 1, Read), Yes, &[]),
    command("zunion", -3, flags(&[Flags::MOVABLEKEYS, Flags::READONLY]), KeySpec::Parts(&[counted(1, 2, 1, Read)]), No, &[]),
    command("zunionstore", -4, flags(&[Flags::DENYOOM, Flags::MOVABLEKEYS, Flags::WRITE]), KeySpec::Parts(&[part(1, 1, 1, Write), counted(2, 3, 1, Read)]), No, &[]),
];
