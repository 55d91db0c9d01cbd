//! `SLOWLOG GET` and `ACL LOG` of several primaries: one list, the newest entries first, as many as were asked
//! for. Numbers of entries are each primary's own. Servers tell the time of a slow command in whole seconds, so
//! entries of one second stand in no order but that within a primary.

use std::cmp::Reverse;

use keyheat_resp::encode;

use super::jobs::elements;

/// Entries that a server shows if it is not told how many.
const ENTRIES: usize = 10;
const AGE: &[u8] = b"age-seconds\r\n";

/// How many entries a request asks for; -1 means all, and of anything else the server has said what is wrong.
pub(super) fn wanted(count: &[u8]) -> usize {
    let count = std::str::from_utf8(count).ok().filter(|c| !c.is_empty());
    match count.map(str::parse::<i64>) {
        Some(Ok(count)) => usize::try_from(count).unwrap_or(usize::MAX),
        _ => ENTRIES,
    }
}

/// Makes one list of them. A reply that is none (of `ACL LOG RESET`) stands for all.
pub(super) fn merge(parts: &[Vec<u8>], count: usize) -> Option<Vec<u8>> {
    if let Some(first) = parts.first().filter(|p| p.first() != Some(&b'*')) {
        return Some(first.clone());
    }
    let mut entries: Vec<(Reverse<i64>, &[u8])> = Vec::new();
    for part in parts {
        let found = elements(part)?;
        entries.extend(found.into_iter().map(|e| (Reverse(micros(e)), e)));
    }
    entries.sort_by_key(|(time, _)| *time);
    entries.truncate(count);
    let mut out = Vec::new();
    encode::array_header(&mut out, entries.len());
    for (_, entry) in entries {
        out.extend_from_slice(entry);
    }
    Some(out)
}

/// When an entry was made, comparable with others of its kind alone; 0 if it does not say.
fn micros(entry: &[u8]) -> i64 {
    if let Some(at) = entry.windows(AGE.len()).position(|w| w == AGE) {
        let mut lines = entry[at + AGE.len()..].split(|b| *b == b'\n');
        let first = lines.next().unwrap_or_default();
        let line = match first.first() {
            Some(b'$') => lines.next().unwrap_or_default(),
            _ => first.get(1..).unwrap_or_default(),
        };
        let age = std::str::from_utf8(line.trim_ascii()).ok();
        let age = age.and_then(|text| text.parse::<f64>().ok());
        return age.map_or(0, |age| -(age * 1e6) as i64);
    }
    let stamp = elements(entry).and_then(|parts| {
        let line = parts.get(1)?.strip_prefix(b":")?.strip_suffix(b"\r\n")?;
        std::str::from_utf8(line).ok()?.parse::<i64>().ok()
    });
    stamp.unwrap_or(0).saturating_mul(1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow(number: u8, second: u8) -> String {
        format!("*3\r\n:{number}\r\n:{second}\r\n:7\r\n")
    }

    #[test]
    fn the_newest_entries_of_all_come_first_and_no_more_than_were_asked_for() {
        let one = format!("*2\r\n{}{}", slow(4, 50), slow(3, 20));
        let other = format!("*1\r\n{}", slow(9, 30));
        let parts = [one.into_bytes(), other.into_bytes(), b"*0\r\n".to_vec()];
        let expected = format!("*2\r\n{}{}", slow(4, 50), slow(9, 30));
        assert_eq!(merge(&parts, 2), Some(expected.into_bytes()));
    }

    #[test]
    fn refused_commands_are_put_in_order_by_their_age_in_both_protocols() {
        let two = b"*2\r\n$11\r\nage-seconds\r\n$3\r\n2.5\r\n".to_vec();
        let three = b"%1\r\n$11\r\nage-seconds\r\n,0.5\r\n".to_vec();
        let list = |entry: &[u8]| [b"*1\r\n", entry].concat();
        let expected = [b"*2\r\n".as_slice(), &three, &two].concat();
        assert_eq!(merge(&[list(&two), list(&three)], 10), Some(expected));
    }

    #[test]
    fn what_is_no_list_stands_for_all() {
        let parts = vec![b"+OK\r\n".to_vec(); 2];
        assert_eq!(merge(&parts, 10), Some(b"+OK\r\n".to_vec()));
        assert_eq!((wanted(b""), wanted(b"3")), (10, 3));
        assert_eq!((wanted(b"-1"), wanted(b"reset")), (usize::MAX, 10));
    }
}
