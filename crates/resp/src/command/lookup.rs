//! From a name to its command.
//!
//! A name is folded to lower case as two words, its first and its last eight bytes (they overlap
//! in names shorter than sixteen), and these are hashed into an open table made at compile time.
//! The words and the length tell all names of up to sixteen bytes apart; only longer ones are
//! compared byte by byte.

use super::table::COMMANDS;
use super::Command;

const NAME_MAX: usize = 32;
const INDEX_BITS: u32 = 10;
const INDEX_LEN: usize = 1 << INDEX_BITS;

struct Entry {
    head: u64,
    tail: u64,
    /// Zero where the entry is free.
    len: u8,
    command: u16,
}

static INDEX: [Entry; INDEX_LEN] = index();

/// The command of that name, upper or lower case, or `None`: unknown here, perhaps known to the
/// server.
#[inline]
pub fn lookup(name: &[u8]) -> Option<&'static Command> {
    if name.is_empty() || name.len() > NAME_MAX {
        return None;
    }
    let (head, tail) = words(name);
    let (head, tail) = (lower(head), lower(tail));
    let mut at = hash(head, tail, name.len());
    loop {
        // The table is never full, so the walk ends at a free entry.
        let entry = INDEX.get(at % INDEX_LEN)?;
        if entry.len == 0 {
            return None;
        }
        if entry.head == head && entry.tail == tail && usize::from(entry.len) == name.len() {
            let command = COMMANDS.get(usize::from(entry.command))?;
            if name.len() <= 16 || command.name.as_bytes().eq_ignore_ascii_case(name) {
                return Some(command);
            }
        }
        at += 1;
    }
}

#[inline]
fn words(name: &[u8]) -> (u64, u64) {
    if let (Some(head), Some(tail)) = (name.first_chunk::<8>(), name.last_chunk::<8>()) {
        (u64::from_le_bytes(*head), u64::from_le_bytes(*tail))
    } else if let (Some(head), Some(tail)) = (name.first_chunk::<4>(), name.last_chunk::<4>()) {
        (
            u64::from(u32::from_le_bytes(*head)),
            u64::from(u32::from_le_bytes(*tail)),
        )
    } else {
        let mut word = 0;
        for &byte in name {
            word = word << 8 | u64::from(byte);
        }
        (word, 0)
    }
}

/// Folds A to Z to lower case in all eight bytes at once; other bytes stay.
#[inline]
const fn lower(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let ascii = !word & (0x80 * ONES);
    let low = word & (0x7f * ONES);
    let from_a = low + (0x80 - b'A' as u64) * ONES;
    let past_z = low + (0x80 - b'Z' as u64 - 1) * ONES;
    let upper = (from_a & !past_z) & ascii;
    word | (upper >> 2)
}

#[inline]
const fn hash(head: u64, tail: u64, len: usize) -> usize {
    let mixed = (head ^ tail.rotate_left(29) ^ len as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> (64 - INDEX_BITS)) as usize
}

/// As [`words`], which the compile-time interpreter cannot run.
const fn words_const(name: &[u8]) -> (u64, u64) {
    let width = if name.len() >= 8 {
        8
    } else if name.len() >= 4 {
        4
    } else {
        let (mut word, mut i) = (0, 0);
        while i < name.len() {
            word = word << 8 | name[i] as u64;
            i += 1;
        }
        return (word, 0);
    };
    let (mut head, mut tail, mut i) = (0, 0, 0);
    while i < width {
        head |= (name[i] as u64) << (8 * i);
        tail |= (name[name.len() - width + i] as u64) << (8 * i);
        i += 1;
    }
    (head, tail)
}

const fn index() -> [Entry; INDEX_LEN] {
    const FREE: Entry = Entry {
        head: 0,
        tail: 0,
        len: 0,
        command: 0,
    };
    let mut index = [FREE; INDEX_LEN];
    assert!(
        COMMANDS.len() < INDEX_LEN / 2,
        "the index is too full: raise INDEX_BITS"
    );
    let mut i = 0;
    while i < COMMANDS.len() {
        let name = COMMANDS[i].name.as_bytes();
        assert!(name.len() <= NAME_MAX, "a name is too long: raise NAME_MAX");
        let (head, tail) = words_const(name);
        let mut at = hash(head, tail, name.len()) % INDEX_LEN;
        while index[at].len != 0 {
            at = (at + 1) % INDEX_LEN;
        }
        index[at] = Entry {
            head,
            tail,
            len: name.len() as u8,
            command: i as u16,
        };
        i += 1;
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_command_is_found_in_any_case() {
        for command in &COMMANDS {
            for name in [command.name.to_string(), command.name.to_uppercase()] {
                let found = lookup(name.as_bytes()).map(|found| found.name);
                assert_eq!(found, Some(command.name));
            }
        }
        assert_eq!(lookup(b"GeT").map(|found| found.name), Some("get"));
    }

    #[test]
    fn a_name_is_not_found_by_its_likeness() {
        for name in [
            "",
            "g",
            "gets",
            "get ",
            "ge4",
            "g\x45\0",
            "georadius_r",
            "client|id",
        ] {
            assert!(lookup(name.as_bytes()).is_none(), "{name:?}");
        }
        // Folding must not make these out of `_`, `[` or `@`.
        assert!(lookup(b"SORT\x7fRO").is_none());
        assert!(lookup(&[b'x'; 4096]).is_none());
    }

    proptest! {
        #[test]
        fn folding_is_ascii_lower_case(bytes in any::<[u8; 8]>()) {
            let folded = lower(u64::from_le_bytes(bytes)).to_le_bytes();
            prop_assert_eq!(folded, bytes.map(|byte| byte.to_ascii_lowercase()));
        }

        #[test]
        fn only_names_of_the_table_are_found(name in proptest::collection::vec(any::<u8>(), 0..20)) {
            let slow = COMMANDS.iter().find(|c| c.name.as_bytes().eq_ignore_ascii_case(&name));
            prop_assert_eq!(lookup(&name).map(|c| c.name), slow.map(|c| c.name));
        }
    }
}
