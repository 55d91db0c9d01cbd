//! Glob patterns as `KEYS` and `PSUBSCRIBE` understand them.
//!
//! `*` any bytes, `?` one byte, `[a-z]`, `[^x]`, `\` before a byte takes it as it is. The corners are
//! the server's too: `[]` matches nothing and `[^]` anything, a range may be written backwards, a
//! class left open ends with the pattern, a backslash at the end is itself.
//!
//! The server's matcher recurses at every star, which takes exponential time on `a*a*a*…b`. Here a
//! mismatch goes back to the last star only: every other part of a pattern takes exactly one byte, so
//! if the last star cannot be stretched to fit, no earlier one can. Time is at most pattern × key.

/// Whether `text` as a whole matches `pattern`.
pub(super) fn is_match(pattern: &[u8], text: &[u8]) -> bool {
    let (mut rest, mut at) = (pattern, 0);
    // After the last star: the pattern behind it, and where in the text it is tried next.
    let mut star: Option<(&[u8], usize)> = None;
    loop {
        if let Some((b'*', behind)) = rest.split_first() {
            star = Some((behind, at));
            rest = behind;
            continue;
        }
        let is_at_end = at == text.len();
        if rest.is_empty() && is_at_end {
            return true;
        }
        if let (Some(byte), false) = (text.get(at), rest.is_empty()) {
            let (is_taken, behind) = take_one(rest, *byte);
            if is_taken {
                (rest, at) = (behind, at + 1);
                continue;
            }
        }
        match star {
            Some((behind, from)) if !is_at_end => {
                star = Some((behind, from + 1));
                (rest, at) = (behind, from + 1);
            }
            _ => return false,
        }
    }
}

/// Matches one byte against the first element of a pattern that is neither empty nor a star.
fn take_one(pattern: &[u8], byte: u8) -> (bool, &[u8]) {
    match pattern {
        [b'?', behind @ ..] => (true, behind),
        [b'[', behind @ ..] => take_class(behind, byte),
        [b'\\', escaped, behind @ ..] => (*escaped == byte, behind),
        [literal, behind @ ..] => (*literal == byte, behind),
        [] => (false, pattern),
    }
}

/// Matches one byte against a class whose opening bracket is already taken.
fn take_class(class: &[u8], byte: u8) -> (bool, &[u8]) {
    let (is_negated, mut rest) = match class {
        [b'^', behind @ ..] => (true, behind),
        _ => (false, class),
    };
    let mut is_in = false;
    loop {
        rest = match rest {
            [b'\\', escaped, behind @ ..] => {
                is_in |= *escaped == byte;
                behind
            }
            [b']', behind @ ..] => return (is_in != is_negated, behind),
            [] => return (is_in != is_negated, rest),
            [first, b'-', last, behind @ ..] => {
                let range = *first.min(last)..=*first.max(last);
                is_in |= range.contains(&byte);
                behind
            }
            [literal, behind @ ..] => {
                is_in |= *literal == byte;
                behind
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corners_are_those_of_the_server() {
        let cases: [(&str, &str, bool); 26] = [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("**", "abc", true),
            ("?", "", false),
            ("h?llo", "hello", true),
            ("h*llo", "heeeello", true),
            ("h*llo", "heeeell", false),
            ("*a*b", "xaxbxb", true),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("[]", "]", false),
            ("[]a]", "a]", false),
            ("[^]", "x", true),
            ("[abc", "b", true),
            ("[abc", "bc", false),
            ("[\\]]", "]", true),
            ("[a-", "-", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("a\\", "a\\", true),
            ("item:*:price", "item:1:2:price", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(
                is_match(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} on {text}"
            );
        }
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = b"a*".repeat(40);
        let text = [b"a".repeat(4000), b"b".to_vec()].concat();
        assert!(is_match(&pattern, &text));
        assert!(!is_match(&[pattern, b"c".to_vec()].concat(), &text));
    }
}
