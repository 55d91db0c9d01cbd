//! What the proxy does with each command.
//!
//! The command table (`keyheat_resp::command`) says what a command *is*: its keys, whether it
//! writes, whether it needs a session. This says what a proxy that shares upstream connections
//! *does* about it. Nothing may be silently wrong: a command that would change a shared
//! connection, or that asks one node where the client believes it asks all, is handled here,
//! sent on a connection of its own, or refused with a sentence.
//!
//! Adding a command? Also: `docs/commands.md`, and `tests/proxy/test_commands.py`.

use keyheat_resp::command::{self, Command, Flags};

use crate::requests::{Kind, Taken, Way};

/// What the proxy does with a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Sent to the node of its key; several keys must share a slot.
    Keyed,
    /// As `Keyed`, and split over the nodes where the keys lie apart.
    Split(Merge),
    /// Sent to any node.
    AnyNode,
    /// Sent to every primary.
    AllNodes(Merge),
    /// Sent to every primary on connections of its own: the shared ones may be busy.
    Beside(Merge),
    /// Walks the nodes one after the other.
    Scan,
    /// Answered here.
    Local(Local),
    /// MULTI, EXEC, DISCARD, WATCH, UNWATCH.
    Session(Session),
    /// Waits on the server: sent on a connection of its own.
    Blocking,
    /// Subscriptions, on a connection of their own.
    Subscribe,
    /// `MONITOR`, on connections of its own.
    Monitor,
    /// `WAIT`: about what the client has written.
    Wait,
    /// As `OneServerOnly`, on a connection of its own.
    Apart,
    /// Fine before one server, meaningless or partial before a Cluster.
    OneServerOnly,
    /// Not supported yet.
    Refused(&'static str),
    /// Looks like HTTP: the connection is cut, as the server does.
    Cut,
}

impl Class {
    /// How a request of it is counted, unless it is answered on a shorter way.
    #[inline]
    pub fn taken(self, command: Option<&'static Command>) -> Taken {
        let kind = match self {
            Self::Keyed | Self::Split(_) if command.is_some_and(Command::is_write) => Kind::Write,
            Self::Keyed | Self::Split(_) => Kind::Read,
            Self::AnyNode if command.is_none() => Kind::Other,
            Self::AnyNode | Self::AllNodes(_) | Self::Beside(_) | Self::Scan => Kind::Server,
            Self::Apart | Self::OneServerOnly => Kind::Server,
            Self::Local(_) => Kind::Connection,
            Self::Session(_) => Kind::Transaction,
            Self::Blocking | Self::Wait => Kind::Blocking,
            Self::Subscribe | Self::Monitor => Kind::Pubsub,
            Self::Refused(_) | Self::Cut => Kind::Other,
        };
        let way = match self {
            Self::Local(_) => Way::Proxy,
            Self::Cut => Way::Error,
            _ => Way::Upstream,
        };
        Taken { kind, way }
    }
}

/// How the parts of a reply become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Merge {
    /// Elements go to their places (MGET).
    Elements,
    /// Numbers are added (DEL, EXISTS, DBSIZE …).
    Sum,
    /// All must be OK (MSET, FLUSHALL …).
    AllOk,
    /// One OK is enough (SCRIPT KILL).
    AnyOk,
    /// Arrays are joined (KEYS).
    Concat,
    /// One that is not null (RANDOMKEY).
    NotNull,
    /// The least of each (SCRIPT EXISTS).
    Least,
    /// Arrays are joined, each element once (PUBSUB CHANNELS).
    Union,
    /// Names, each with a number that is added (PUBSUB NUMSUB).
    Counts,
    /// Arrays are joined, the newest entries first (SLOWLOG GET).
    Newest,
    /// All must be OK, and then clients are paused, or not any more.
    Pause,
}

/// Commands that are answered here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Local {
    Ping,
    Echo,
    Hello,
    Auth,
    Select,
    Quit,
    Reset,
    Client,
    Cluster,
    /// READONLY and the like: fine before a Cluster, an error of the server elsewhere.
    OfCluster,
}

/// Commands of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Session {
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
}

const NEEDS_SESSION: &str = "needs a connection of its own, which keyheat does not give it yet";
const DEBUGGER: &str =
    "makes the connection a debugger's, which is no client's any more; connect to the server itself";
const REPLICATION: &str = "is between servers; connect to the server itself";

/// Decides about a command by its name and flags.
fn class_of(command: &Command) -> Class {
    use Class::{
        AllNodes, AnyNode, Blocking, Keyed, OneServerOnly, Refused, Scan, Split, Subscribe,
    };
    let name = command.name;
    match name {
        "ping" => return Class::Local(Local::Ping),
        "echo" => return Class::Local(Local::Echo),
        "hello" => return Class::Local(Local::Hello),
        "auth" => return Class::Local(Local::Auth),
        "select" => return Class::Local(Local::Select),
        "quit" => return Class::Local(Local::Quit),
        "reset" => return Class::Local(Local::Reset),
        "client" => return Class::Local(Local::Client),
        "readonly" | "readwrite" | "asking" => return Class::Local(Local::OfCluster),
        "cluster" => return Class::Local(Local::Cluster),
        "multi" => return Class::Session(Session::Multi),
        "exec" => return Class::Session(Session::Exec),
        "discard" => return Class::Session(Session::Discard),
        "watch" => return Class::Session(Session::Watch),
        "unwatch" => return Class::Session(Session::Unwatch),
        "mget" => return Split(Merge::Elements),
        "mset" => return Split(Merge::AllOk),
        "del" | "unlink" | "exists" | "touch" => return Split(Merge::Sum),
        "subscribe" | "unsubscribe" | "psubscribe" | "punsubscribe" | "ssubscribe"
        | "sunsubscribe" => return Subscribe,
        "scan" => return Scan,
        "dbsize" => return AllNodes(Merge::Sum),
        "keys" => return AllNodes(Merge::Concat),
        "flushall" | "flushdb" => return AllNodes(Merge::AllOk),
        "randomkey" => return AllNodes(Merge::NotNull),
        "script" | "function" => return OneServerOnly,
        "publish" | "info" | "time" | "command" | "lastsave" | "lolwut" | "role" => {
            return AnyNode;
        }
        "save" | "bgsave" | "bgrewriteaof" => return AllNodes(Merge::AllOk),
        "monitor" => return Class::Monitor,
        "wait" | "waitaof" => return Class::Wait,
        "debug" => return Class::Apart,
        "sync" | "psync" | "replconf" => return Refused(REPLICATION),
        _ => {}
    }
    if command.flags.contains(Flags::SESSION) && command.subcommands.is_empty() {
        return Refused(NEEDS_SESSION);
    }
    if command.flags.contains(Flags::BLOCKING) {
        return Blocking;
    }
    let has_keys = !matches!(command.keys, command::KeySpec::None)
        || command
            .subcommands
            .iter()
            .any(|s| !matches!(s.keys, command::KeySpec::None));
    if has_keys {
        Keyed
    } else {
        OneServerOnly
    }
}

/// Subcommands that are dealt with otherwise than their command.
fn class_of_subcommand(command: &Command, sub: &str) -> Option<Class> {
    Some(match (command.name, sub) {
        ("script" | "function", "kill") => Class::Beside(Merge::AnyOk),
        ("script", "load") | ("script" | "function", "flush") => Class::AllNodes(Merge::AllOk),
        ("function", "load" | "delete" | "restore") => Class::AllNodes(Merge::AllOk),
        ("function", "list" | "dump" | "help" | "stats") | ("script", "help" | "show") => {
            Class::AnyNode
        }
        ("script", "exists") => Class::AllNodes(Merge::Least),
        ("script", "debug") => Class::Refused(DEBUGGER),
        ("config", "get" | "help") | ("acl", "whoami" | "cat" | "genpass" | "help") => {
            Class::AnyNode
        }
        ("pubsub", "channels" | "shardchannels") => Class::AllNodes(Merge::Union),
        ("pubsub", "numsub" | "shardnumsub") => Class::AllNodes(Merge::Counts),
        ("pubsub", "numpat") | ("latency", "reset") => Class::AllNodes(Merge::Sum),
        ("slowlog", "len") => Class::AllNodes(Merge::Sum),
        ("slowlog", "get") | ("acl", "log") => Class::AllNodes(Merge::Newest),
        ("latency", "latest" | "history") => Class::AllNodes(Merge::Concat),
        ("memory", "purge")
        | ("slowlog", "reset")
        | ("acl", "setuser" | "deluser" | "load" | "save") => Class::AllNodes(Merge::AllOk),
        ("acl", "list" | "users" | "getuser" | "dryrun")
        | ("module", "list")
        | ("pubsub" | "slowlog" | "latency" | "memory" | "module", "help") => Class::AnyNode,
        ("config", "set" | "resetstat" | "rewrite") => Class::AllNodes(Merge::AllOk),
        _ => return None,
    })
}

/// Finds the class of every command without comparing names on the way: by its address in the
/// static table.
pub(super) struct Classes {
    by_address: hashbrown::HashMap<usize, Class>,
}

impl Classes {
    pub fn new() -> Self {
        Self {
            by_address: hashbrown::HashMap::new(),
        }
    }

    /// The class of a command; `sub` is its first argument.
    pub fn get(&mut self, command: &'static Command, sub: &[u8]) -> Class {
        if !command.subcommands.is_empty() {
            if let Some(sub) = command.sub(sub) {
                let name = sub.name.rsplit('|').next().unwrap_or(sub.name);
                if let Some(class) = class_of_subcommand(command, name) {
                    return class;
                }
                if !matches!(sub.keys, command::KeySpec::None) {
                    return Class::Keyed;
                }
            }
        }
        let address = std::ptr::from_ref(command) as usize;
        *self
            .by_address
            .entry(address)
            .or_insert_with(|| class_of(command))
    }
}
