//! A longer expiry for keys of business entities: a number in a write, changed before it is sent.
//!
//! Only what sets an expiry is looked at, and nothing but the number is changed. What may be a lock (`NX`, and any
//! expiry of a key that is taken for one), asks about the expiry that is there (`GT`, `LT`, `XX`) or may hold a
//! value that looks like an option (`IFEQ`) goes as it was written.

use std::time::{SystemTime, UNIX_EPOCH};

use keyheat_resp::command::{self, Command};
use keyheat_resp::encode;
use keyheat_resp::number::integer;
use keyheat_resp::request::{Parse, RequestParser};
use keyheat_resp::Limits;

use super::client::ClientId;
use super::serve::{Flow, Request};
use super::Shard;

/// Where an expiry stands, and how it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    at: usize,
    /// Milliseconds in one of its units.
    unit_ms: i64,
    /// Whether it is a moment of Unix time.
    is_absolute: bool,
}

impl Shard {
    /// Serves a request, with a longer expiry where it writes one to a key of an entity.
    pub(super) fn dispatch_lengthened(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let Some(frame) = self.lengthened(request) else {
            return self.dispatch(id, request);
        };
        let mut parser = RequestParser::new(Limits::default());
        if !matches!(parser.parse(&frame), Ok(Parse::Complete { .. })) {
            return self.dispatch(id, request);
        }
        let flow = self.dispatch(id, &Request::new(parser.frame(&frame), &parser));
        if flow == Flow::Next {
            self.stats.expiries_lengthened.add(1);
        }
        flow
    }

    fn lengthened(&self, request: &Request<'_>) -> Option<Vec<u8>> {
        let longer = self.longer_expiry.as_deref()?;
        let place = place_of(command::lookup(request.arg(0))?, request)?;
        let written = integer(request.arg(place.at))?;
        let now_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()?
            .as_millis() as i64;
        let from_ms = if place.is_absolute { now_ms } else { 0 };
        let written_ms = written.checked_mul(place.unit_ms)?.checked_sub(from_ms)?;
        let ttl_ms = longer.ttl_ms(request.arg(1), written_ms, now_ms)?;
        let number = from_ms.checked_add(ttl_ms)? / place.unit_ms;
        let is_lock = || {
            let key_hash = self.hasher.hash(request.arg(1));
            self.locks.contains(key_hash, self.now)
        };
        if number <= written || is_lock() {
            return None;
        }
        let number = number.to_string();
        let mut frame = Vec::with_capacity(request.frame.len() + number.len());
        encode::array_header(&mut frame, request.argc());
        for i in 0..request.argc() {
            let is_it = i == place.at;
            encode::bulk(
                &mut frame,
                if is_it {
                    number.as_bytes()
                } else {
                    request.arg(i)
                },
            );
        }
        Some(frame)
    }
}

fn place_of(command: &Command, request: &Request<'_>) -> Option<Place> {
    let place = |at, unit_ms, is_absolute| {
        Some(Place {
            at,
            unit_ms,
            is_absolute,
        })
    };
    match (command.name, request.argc()) {
        ("setex", 4) | ("expire", 3) => place(2, 1_000, false),
        ("psetex", 4) | ("pexpire", 3) => place(2, 1, false),
        ("expireat", 3) => place(2, 1_000, true),
        ("pexpireat", 3) => place(2, 1, true),
        ("set", 5..) => option_of(request, 3),
        ("getex", 4..) => option_of(request, 2),
        _ => None,
    }
}

/// The expiry among options.
///
/// Args: `first` the place of the first option.
fn option_of(request: &Request<'_>, first: usize) -> Option<Place> {
    const NOT_WITH: [&[u8]; 5] = [b"NX", b"IFEQ", b"IFNE", b"IFDEQ", b"IFDNE"];
    const UNITS: [(&[u8], i64, bool); 4] = [
        (b"EX", 1_000, false),
        (b"PX", 1, false),
        (b"EXAT", 1_000, true),
        (b"PXAT", 1, true),
    ];
    let mut found = None;
    for at in first..request.argc() {
        let word = request.arg(at);
        if NOT_WITH
            .iter()
            .any(|other| word.eq_ignore_ascii_case(other))
        {
            return None;
        }
        let unit = UNITS
            .iter()
            .find(|(name, ..)| word.eq_ignore_ascii_case(name));
        if let (Some(&(_, unit_ms, is_absolute)), None) = (unit, found) {
            found = (at + 1 < request.argc()).then_some(Place {
                at: at + 1,
                unit_ms,
                is_absolute,
            });
        }
    }
    found
}
