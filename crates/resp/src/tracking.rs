//! What a server says on a connection that tracks keys: whether it is a primary, what is invalid now, and
//! what an error means.

use crate::reply::Value;

/// Whether a reply to `ROLE` is a primary's.
pub fn is_primary(role: &Value) -> bool {
    match role {
        Value::Array(items) => matches!(items.first(), Some(Value::Bulk(b)) if b == b"master"),
        _ => false,
    }
}

/// What an `invalidate` push names.
#[derive(Debug)]
pub enum Invalidation<I> {
    /// These keys.
    Keys(I),
    /// Every key: the server was flushed, or does not say which.
    All,
}

/// Reads a push; `None` where it is of another kind.
pub fn invalidation(push: &[Value]) -> Option<Invalidation<impl Iterator<Item = &[u8]>>> {
    match push {
        [Value::Bulk(kind), ..] if kind == b"invalidate" => {}
        _ => return None,
    }
    let Some(Value::Array(keys)) = push.get(1) else {
        return Some(Invalidation::All);
    };
    let keys = keys.iter().filter_map(|key| match key {
        Value::Bulk(key) => Some(&**key),
        _ => None,
    });
    Some(Invalidation::Keys(keys))
}

/// What an error says to a connection that tracks keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It passes by itself, soon: a start, a script, a failover.
    Passing,
    /// One key, or its slot, is not to be had from here; the others are none the worse for it.
    Key,
    /// A right or a command is missing, or a password is not the one: somebody has to change something.
    Refused,
}

/// Codes of errors that pass by themselves.
const PASSING: [&[u8]; 5] = [
    b"LOADING",
    b"MASTERDOWN",
    b"CLUSTERDOWN",
    b"TRYAGAIN",
    b"BUSY",
];

/// Reads an error, given without the leading `-`.
pub fn trouble(error: &[u8]) -> Trouble {
    let code = error.split(|byte| *byte == b' ').next().unwrap_or_default();
    // The server writes "access a key" where the key is what is refused, and names the command otherwise.
    let is_of_command = || error.windows(7).any(|part| part == b"command");
    match code {
        code if PASSING.contains(&code) => Trouble::Passing,
        b"MOVED" | b"ASK" => Trouble::Key,
        b"NOPERM" if !is_of_command() => Trouble::Key,
        _ => Trouble::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::parse;
    use crate::Limits;

    fn value(text: &[u8]) -> Value {
        parse(text, &Limits::default()).unwrap().unwrap().0
    }

    /// The keys a push names; `None` for all of them.
    fn named(text: &[u8]) -> Option<Option<Vec<Vec<u8>>>> {
        let Value::Push(push) = value(text) else {
            panic!("no push");
        };
        let invalidation = invalidation(&push)?;
        Some(match invalidation {
            Invalidation::Keys(keys) => Some(keys.map(<[u8]>::to_vec).collect()),
            Invalidation::All => None,
        })
    }

    #[test]
    fn only_a_primary_is_one() {
        assert!(is_primary(&value(b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n")));
        for other in [
            &b"*2\r\n$5\r\nslave\r\n:0\r\n"[..],
            b"*0\r\n",
            b"$6\r\nmaster\r\n",
            b"-ERR master\r\n",
        ] {
            assert!(!is_primary(&value(other)), "{other:?}");
        }
    }

    #[test]
    fn an_error_of_one_key_is_told_from_one_that_passes_and_one_that_stays() {
        for (error, means) in [
            (
                &b"BUSY Redis is busy running a script."[..],
                Trouble::Passing,
            ),
            (
                b"LOADING Redis is loading the dataset in memory",
                Trouble::Passing,
            ),
            (b"MASTERDOWN Link with MASTER is down", Trouble::Passing),
            (b"CLUSTERDOWN The cluster is down", Trouble::Passing),
            (b"MOVED 866 127.0.0.1:7001", Trouble::Key),
            (b"ASK 866 127.0.0.1:7001", Trouble::Key),
            (b"NOPERM No permissions to access a key", Trouble::Key),
            (
                b"NOPERM this user has no permissions to access one of the keys used as arguments",
                Trouble::Key,
            ),
            (
                b"NOPERM User limited has no permissions to run the 'pttl' command",
                Trouble::Refused,
            ),
            (b"ERR unknown command 'PTTL'", Trouble::Refused),
            (
                b"WRONGPASS invalid username-password pair",
                Trouble::Refused,
            ),
            (b"BUSYNESS", Trouble::Refused),
            (b"", Trouble::Refused),
        ] {
            assert_eq!(trouble(error), means, "{}", String::from_utf8_lossy(error));
        }
    }

    #[test]
    fn a_push_names_its_keys() {
        let push = b">2\r\n$10\r\ninvalidate\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n";
        assert_eq!(named(push), Some(Some(vec![b"a".to_vec(), b"b".to_vec()])));
    }

    #[test]
    fn a_push_without_a_list_names_every_key() {
        for all in [
            &b">2\r\n$10\r\ninvalidate\r\n_\r\n"[..],
            b">2\r\n$10\r\ninvalidate\r\n*-1\r\n",
            b">1\r\n$10\r\ninvalidate\r\n",
        ] {
            assert_eq!(named(all), Some(None), "{all:?}");
        }
    }

    #[test]
    fn a_push_of_another_kind_names_nothing() {
        for other in [&b">2\r\n$7\r\nmessage\r\n*0\r\n"[..], b">0\r\n"] {
            assert!(named(other).is_none(), "{other:?}");
        }
    }
}
