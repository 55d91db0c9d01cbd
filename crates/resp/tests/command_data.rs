//! The table is what the committed data says, and its keys are where they should be.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helpers may stop at the first surprise, as its tests may"
)]

use keyheat_resp::command::{lookup, Access, Cacheable, Command, Flags, KeyError, KeySpec, Part};
use serde_json::{json, Map, Value};

fn read(name: &str) -> Map<String, Value> {
    let path = format!("{}/data/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let data: Value = serde_json::from_str(&text).unwrap();
    data["commands"].as_object().unwrap().clone()
}

fn data() -> Map<String, Value> {
    let mut all = read("newer.json");
    all.extend(read("commands.json"));
    all
}

fn find(name: &str) -> &'static Command {
    let found = match name.split_once('|') {
        None => lookup(name.as_bytes()),
        Some((container, sub)) => {
            lookup(container.as_bytes()).and_then(|c| c.sub(sub.to_uppercase().as_bytes()))
        }
    };
    found.unwrap_or_else(|| panic!("{name} is not in the table"))
}

fn access(access: Access) -> &'static str {
    match access {
        Access::Read => "read",
        Access::Write => "write",
        Access::NotKey => "not_key",
    }
}

/// A key specification in the data's own words.
fn keys(spec: KeySpec) -> Value {
    let special = |name: &str, a: Access| json!({"special": name, "access": access(a)});
    match spec {
        KeySpec::None => Value::Null,
        KeySpec::Range {
            first,
            last,
            step,
            access: a,
        } => {
            json!({"range": [first, last, step, access(a)]})
        }
        KeySpec::Parts(parts) => {
            let part = |part: &Part| match *part {
                Part::Range {
                    first,
                    last,
                    step,
                    access: a,
                } => {
                    json!(["range", first, last, step, access(a)])
                }
                Part::Counted {
                    count,
                    first,
                    step,
                    access: a,
                } => {
                    json!(["counted", count, first, step, access(a)])
                }
            };
            json!({"parts": parts.iter().map(part).collect::<Vec<_>>()})
        }
        KeySpec::Sort => special("sort", Access::Read),
        KeySpec::GeoRadius => special("georadius", Access::Read),
        KeySpec::Streams { access } => special("streams", access),
        KeySpec::Migrate => special("migrate", Access::Write),
    }
}

#[test]
fn the_table_is_what_the_data_says() {
    let reviewed = Flags::SESSION.union(Flags::MAY_WRITE);
    for (name, entry) in &data() {
        let command = find(name);
        assert_eq!(command.name, name);
        assert_eq!(
            i64::from(command.arity),
            entry["arity"].as_i64().unwrap(),
            "{name}"
        );
        assert_eq!(keys(command.keys), entry["keys"], "{name}");
        let mut flags: Vec<String> = Flags::NAMED
            .iter()
            .filter(|(_, flag)| command.flags.contains(*flag) && !reviewed.contains(*flag))
            .map(|(name, _)| name.to_lowercase())
            .collect();
        flags.sort();
        assert_eq!(json!(flags), entry["flags"], "{name}");
    }
}

#[test]
fn every_subcommand_of_the_table_is_in_the_data() {
    let data = data();
    for (name, _) in data.iter().filter(|(name, _)| !name.contains('|')) {
        for sub in find(name).subcommands {
            assert!(data.contains_key(sub.name), "{}", sub.name);
        }
    }
}

#[test]
fn what_is_cacheable_is_read_only_and_keyed() {
    for name in data().keys() {
        let command = find(name);
        if command.cacheable != Cacheable::No {
            assert!(command.flags.contains(Flags::READONLY), "{name}");
            assert!(!command.is_write(), "{name}");
            assert!(
                !command
                    .flags
                    .intersects(Flags::BLOCKING.union(Flags::SESSION)),
                "{name}"
            );
            assert!(
                matches!(
                    command.keys,
                    KeySpec::Range {
                        access: Access::Read,
                        ..
                    }
                ),
                "{name}"
            );
        }
    }
    let kind = |name: &str| find(name).cacheable;
    assert_eq!(kind("get"), Cacheable::Yes);
    assert_eq!(kind("zrange"), Cacheable::Yes);
    assert_eq!(kind("hget"), Cacheable::HashFields);
    assert_eq!(kind("hgetall"), Cacheable::WholeHash);
    for name in [
        "ttl",
        "pfcount",
        "touch",
        "srandmember",
        "getex",
        "eval_ro",
        "object|freq",
    ] {
        assert_eq!(kind(name), Cacheable::No, "{name}");
    }
}

#[test]
fn a_line_with_several_keys_is_not_cacheable() {
    assert_eq!(find("exists").cacheable_line(2), Cacheable::Yes);
    assert_eq!(find("exists").cacheable_line(3), Cacheable::No);
    assert_eq!(find("lrange").cacheable_line(4), Cacheable::Yes);
    assert_eq!(find("mget").cacheable_line(2), Cacheable::No);
}

#[test]
fn scripts_may_write_unless_declared_read_only() {
    for name in [
        "eval", "evalsha", "fcall", "set", "flushall", "msetex", "delex",
    ] {
        assert!(find(name).is_write(), "{name}");
    }
    for name in ["eval_ro", "fcall_ro", "get", "watch", "publish"] {
        assert!(!find(name).is_write(), "{name}");
    }
}

#[test]
fn arity_counts_the_name() {
    assert!(find("get").arity_ok(2));
    assert!(!find("get").arity_ok(1));
    assert!(!find("get").arity_ok(3));
    assert!(find("mset").arity_ok(300));
    assert!(!find("mset").arity_ok(2));
    assert!(find("client|id").arity_ok(2));
}

/// The keys of a line, each with what is done to it; `*` before a key that is written.
fn marked(line: &str) -> Result<Vec<String>, KeyError> {
    let words: Vec<&[u8]> = line
        .split(' ')
        .map(|word| word.trim_matches('"').as_bytes())
        .collect();
    let mut command = lookup(words[0]).unwrap();
    if let Some(sub) = words.get(1).and_then(|name| command.sub(name)) {
        command = sub;
    }
    let mut keys = Vec::new();
    command.for_each_key_access(
        words.len(),
        |i| words[i],
        |i, access| {
            let mark = match access {
                Access::Read => "",
                Access::Write => "*",
                Access::NotKey => "@",
            };
            keys.push(format!("{mark}{}", String::from_utf8_lossy(words[i])));
        },
    )?;
    let first = command.first_key(words.len(), |i| words[i]);
    let named = keys.iter().find(|key| !key.starts_with('@'));
    assert_eq!(
        first.map(|i| String::from_utf8_lossy(words[i]).into_owned()),
        named.map(|key| key.trim_start_matches('*').to_string()),
        "{line}"
    );
    Ok(keys)
}

#[test]
fn keys_are_found_with_what_is_done_to_them() {
    for (line, keys) in [
        ("GET k", "k"),
        ("SET k v EX 9", "*k"),
        ("MGET a b c", "a b c"),
        ("MSET a 1 b 2", "*a *b"),
        ("MSETEX 2 a 1 b 2 EX 9", "*a *b"),
        ("BLPOP a b 0", "*a *b"),
        ("BITOP AND d a b", "*d a b"),
        ("PFMERGE d", "*d"),
        ("COPY a b", "a *b"),
        ("EVAL s 2 a b x", "*a *b"),
        ("EVAL s 0 x", ""),
        ("FCALL_RO f 1 a x", "a"),
        ("ZUNIONSTORE d 2 a b WEIGHTS 1 2", "*d a b"),
        ("ZINTERCARD 2 a b LIMIT 1", "a b"),
        ("BZMPOP 0 2 a b MIN", "*a *b"),
        ("XREAD COUNT 1 STREAMS a b 0 0", "a b"),
        (
            "XREADGROUP GROUP STREAMS COUNT BLOCK 1 NOACK STREAMS a >",
            "a",
        ),
        ("XREADGROUP GROUP g c CLAIM 5 STREAMS a b > >", "a b"),
        ("SORT k BY STORE GET STORE STORE d", "k *d"),
        ("SORT k LIMIT 0 STORE STORE x STORE d", "k *d"),
        ("SORT k STORE", "k"),
        ("GEORADIUS k 1 2 3 m STORE x STOREDIST d", "k *d"),
        ("GEORADIUSBYMEMBER k m 3 m STORE d", "k *d"),
        ("MIGRATE h 1 k 0 9 COPY", "*k"),
        (
            "MIGRATE h 1 \"\" 0 9 AUTH KEYS AUTH2 KEYS KEYS KEYS a b",
            "*a *b",
        ),
        ("OBJECT ENCODING k", "k"),
        ("MEMORY USAGE k", "k"),
        ("XGROUP CREATE k g $", "*k"),
        ("SPUBLISH ch m", "@ch"),
        ("CLIENT ID", ""),
        ("PING", ""),
    ] {
        let keys: Vec<String> = keys.split_whitespace().map(str::to_string).collect();
        assert_eq!(marked(line), Ok(keys), "{line}");
    }
}

#[test]
fn lines_that_make_no_sense_have_no_keys() {
    for (line, error) in [
        ("GET", KeyError::Missing),
        ("BLPOP", KeyError::Missing),
        ("EVAL s", KeyError::Missing),
        ("EVAL s x a", KeyError::Count),
        ("EVAL s -1 a", KeyError::Count),
        ("EVAL s 2 a", KeyError::Count),
        ("ZUNION 0 a", KeyError::Count),
        ("MSETEX 2 a 1 b", KeyError::Count),
        ("EVAL s 9223372036854775807 a", KeyError::Count),
        ("XREAD STREAMS a", KeyError::Syntax),
        ("XREAD STREAMS", KeyError::Syntax),
        ("XREAD COUNT 1", KeyError::Syntax),
        ("XREAD NONSENSE STREAMS a 0", KeyError::Syntax),
        ("MIGRATE h 1 \"\" 0 9 KEYS", KeyError::Syntax),
        ("MIGRATE h 1 \"\" 0 9 COPY", KeyError::Syntax),
        ("SORT", KeyError::Missing),
    ] {
        assert_eq!(marked(line), Err(error), "{line}");
    }
}
