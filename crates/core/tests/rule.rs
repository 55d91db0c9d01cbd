//! The glob matcher against the server's own algorithm, written down as it stands there.

use keyheat_core::rule::Pattern;
use proptest::prelude::*;

/// The server's `stringmatchlen`, recursion and all.
fn naive(mut pattern: &[u8], mut text: &[u8]) -> bool {
    while !pattern.is_empty() && !text.is_empty() {
        match pattern[0] {
            b'*' => {
                while pattern.len() > 1 && pattern[1] == b'*' {
                    pattern = &pattern[1..];
                }
                if pattern.len() == 1 {
                    return true;
                }
                while !text.is_empty() {
                    if naive(&pattern[1..], text) {
                        return true;
                    }
                    text = &text[1..];
                }
                return naive(&pattern[1..], text);
            }
            b'?' => text = &text[1..],
            b'[' => {
                pattern = &pattern[1..];
                let is_negated = pattern.first() == Some(&b'^');
                if is_negated {
                    pattern = &pattern[1..];
                }
                let mut is_in = false;
                loop {
                    if pattern.len() >= 2 && pattern[0] == b'\\' {
                        pattern = &pattern[1..];
                        is_in |= pattern[0] == text[0];
                    } else if pattern.is_empty() || pattern[0] == b']' {
                        break;
                    } else if pattern.len() >= 3 && pattern[1] == b'-' {
                        let (low, high) = (pattern[0].min(pattern[2]), pattern[0].max(pattern[2]));
                        is_in |= (low..=high).contains(&text[0]);
                        pattern = &pattern[2..];
                    } else {
                        is_in |= pattern[0] == text[0];
                    }
                    pattern = &pattern[1..];
                }
                if is_in == is_negated {
                    return false;
                }
                text = &text[1..];
                if pattern.is_empty() {
                    break;
                }
            }
            first => {
                if first == b'\\' && pattern.len() >= 2 {
                    pattern = &pattern[1..];
                }
                if pattern[0] != text[0] {
                    return false;
                }
                text = &text[1..];
            }
        }
        pattern = &pattern[1..];
    }
    if text.is_empty() {
        while pattern.first() == Some(&b'*') {
            pattern = &pattern[1..];
        }
    }
    pattern.is_empty() && text.is_empty()
}

fn bytes(alphabet: &'static [u8], len: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(alphabet), 0..len)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn globs_match_what_the_server_matches(
        pattern in bytes(b"aabbc**?[]^-\\", 9),
        text in bytes(b"aabbc]-\\", 7),
    ) {
        let glob = Pattern::Glob(pattern.clone().into());
        prop_assert_eq!(glob.is_match(&text), naive(&pattern, &text));
    }
}

#[test]
fn patterns_match_bytes_not_text() {
    assert!(Pattern::Prefix(b"\xff\x00"[..].into()).is_match(b"\xff\x00\x01"));
    assert!(!Pattern::Exact(b"a"[..].into()).is_match(b"a\x00"));
    assert!(Pattern::Glob(b"\xff?"[..].into()).is_match(b"\xff\xfe"));
    assert!(Pattern::Any.is_match(b""));
}
