//! However a stream of replies is split, its frames end at the same places, and the scanner and
//! the parser agree on them.
//!
//! Input: one byte for the limits, one for the number of splits, so many bytes for where they
//! are, and the stream.

#![no_main]

use keyheat_resp::reply::{parse, ReplyScanner, Scan};
use keyheat_resp::{Limits, ProtocolError};
use libfuzzer_sys::fuzz_target;

fn frames(limits: Limits, input: &[u8], ends: &[usize]) -> (Vec<usize>, Option<ProtocolError>) {
    let mut scanner = ReplyScanner::new(limits);
    let (mut found, mut start) = (Vec::new(), 0);
    for &end in ends.iter().chain([&input.len()]) {
        while start < end {
            match scanner.scan(&input[start..end]) {
                Ok(Scan { consumed, complete }) => {
                    assert!(consumed <= end - start);
                    start += consumed;
                    if !complete {
                        break;
                    }
                    assert!(consumed > 0 && scanner.is_at_start());
                    found.push(start);
                }
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

fuzz_target!(|data: &[u8]| {
    let [choice, splits, rest @ ..] = data else {
        return;
    };
    let (places, input) = rest.split_at(rest.len().min(usize::from(splits % 16)));
    let limits = match choice % 3 {
        0 => Limits::default(),
        1 => Limits {
            inline_max_bytes: 16,
            depth_max: 2,
            ..Limits::default()
        },
        _ => Limits {
            bulk_max_bytes: 8,
            depth_max: usize::MAX,
            ..Limits::default()
        },
    };
    let mut ends: Vec<usize> = places
        .iter()
        .map(|place| usize::from(*place) * input.len() / 256)
        .collect();
    ends.sort_unstable();
    let whole = frames(limits, input, &[]);
    assert_eq!(frames(limits, input, &ends), whole);

    let (ends, error) = whole;
    let mut start = 0;
    for end in ends {
        let parsed = parse(&input[start..], &limits).map(|found| found.map(|(_, len)| len));
        assert_eq!(parsed, Ok(Some(end - start)));
        start = end;
    }
    let rest = parse(&input[start..], &limits).map(|found| found.map(|(_, len)| len));
    assert_eq!(rest, error.map_or(Ok(None), Err));
});
