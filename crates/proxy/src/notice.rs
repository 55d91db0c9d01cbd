//! What clients have set at the servers, and would notice here: `MONITOR` and `CLIENT PAUSE`.
//!
//! A PING asks whether somebody is there, and needs no server. But `MONITOR` shows it, and `CLIENT PAUSE` holds
//! it up: while either is on through this proxy, the PINGs of its clients go upstream. While clients are paused,
//! each request goes on a connection of its own: on a shared one a write that waits would hold up everybody
//! behind it, and be taken for a server that hangs. Shared by all shards.
//!
//! The other way about, `MONITOR` shows what the proxy asks the servers for itself, which nobody behind it has
//! said. What it asks on connections of its own is known by their address and left out. The servers know them by
//! the same address unless there is NAT between: then it is shown.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use keyheat_core::Nanos;
use keyheat_net::clock::{self, MS, SEC};
use keyheat_net::lock;

/// For so long after its end a connection's lines are known: those that come late.
const LATE: Nanos = 2 * SEC;

/// Clients in `MONITOR`, and until when clients are paused: their writes, or all they say.
#[derive(Debug, Default)]
pub(crate) struct Notice {
    monitors: AtomicUsize,
    writes_until: AtomicU64,
    all_until: AtomicU64,
    own: Mutex<Own>,
}

/// Connections on which the proxy asks for itself, by their address as `MONITOR` shows it.
#[derive(Debug, Default)]
struct Own {
    known: HashSet<String>,
    /// Those that have ended, and when.
    ended: VecDeque<(Nanos, String)>,
}

/// A connection on which the proxy asks for itself, for as long as this is there.
#[derive(Debug)]
pub(crate) struct OwnTalk {
    notice: Arc<Notice>,
    address: String,
}

/// A pause that a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pause {
    Writes(Nanos),
    All(Nanos),
    End,
}

/// A client in `MONITOR`, for as long as this is there.
#[derive(Debug)]
pub(crate) struct Monitoring(Arc<Notice>);

impl Pause {
    /// Of the arguments of `CLIENT PAUSE`; without a number it is `CLIENT UNPAUSE`.
    pub fn of(millis: &[u8], mode: &[u8], now: Nanos) -> Self {
        let millis = std::str::from_utf8(millis).ok();
        let Some(millis) = millis.and_then(|text| text.parse::<u64>().ok()) else {
            return Self::End;
        };
        let until = now.saturating_add(millis.saturating_mul(MS));
        if mode.eq_ignore_ascii_case(b"write") {
            Self::Writes(until)
        } else {
            Self::All(until)
        }
    }
}

impl Notice {
    /// Whether a PING is to be the server's.
    pub fn has_pings(&self, now: Nanos) -> bool {
        self.monitors.load(Relaxed) > 0 || now < self.all_until.load(Relaxed)
    }

    /// Whether requests may wait at the server until somebody lets them go.
    pub fn is_paused(&self, now: Nanos) -> bool {
        now < self.writes_until.load(Relaxed)
    }

    /// The servers have agreed to a pause. As with them, the longest counts.
    pub fn pause(&self, pause: Pause) {
        match pause {
            Pause::Writes(until) => {
                self.writes_until.fetch_max(until, Relaxed);
            }
            Pause::All(until) => {
                self.writes_until.fetch_max(until, Relaxed);
                self.all_until.fetch_max(until, Relaxed);
            }
            Pause::End => {
                self.writes_until.store(0, Relaxed);
                self.all_until.store(0, Relaxed);
            }
        }
    }

    /// A client begins to monitor.
    pub fn monitor(self: &Arc<Self>) -> Monitoring {
        self.monitors.fetch_add(1, Relaxed);
        Monitoring(Arc::clone(self))
    }

    /// The proxy begins to ask for itself, from `address`.
    pub fn talk(self: &Arc<Self>, address: SocketAddr) -> OwnTalk {
        let address = address.to_string();
        let mut own = lock(&self.own);
        own.forget(clock::now());
        own.ended.retain(|(_, ended)| *ended != address);
        own.known.insert(address.clone());
        OwnTalk {
            notice: Arc::clone(self),
            address,
        }
    }

    /// Whether what was said from an address the proxy has asked for itself.
    pub fn is_own(&self, address: &str) -> bool {
        lock(&self.own).known.contains(address)
    }
}

/// The address in a line of `MONITOR`, and what was said from there: `+TIME [DB ADDRESS] "COMMAND" …`.
pub(crate) fn parts_of(line: &[u8]) -> Option<(&str, &[u8])> {
    let end = line.windows(2).position(|w| w == b"] ")?;
    let start = line[..end].iter().rposition(|&byte| byte == b' ')?;
    let address = std::str::from_utf8(&line[start + 1..end]).ok()?;
    Some((address, &line[end + 2..]))
}

impl Own {
    fn forget(&mut self, now: Nanos) {
        while self.ended.front().is_some_and(|(at, _)| now > at + LATE) {
            if let Some((_, address)) = self.ended.pop_front() {
                self.known.remove(&address);
            }
        }
    }
}

impl Drop for OwnTalk {
    fn drop(&mut self) {
        let address = std::mem::take(&mut self.address);
        let mut own = lock(&self.notice.own);
        own.ended.push_back((clock::now(), address));
    }
}

impl Drop for Monitoring {
    fn drop(&mut self) {
        self.0.monitors.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_is_noticed_while_somebody_monitors_or_clients_are_paused() {
        let notice = Arc::new(Notice::default());
        assert!(!notice.has_pings(5));
        let monitoring = notice.monitor();
        assert!(notice.has_pings(5) && !notice.is_paused(5));
        drop(monitoring);
        assert!(!notice.has_pings(5));
        notice.pause(Pause::Writes(9));
        assert!(notice.is_paused(5) && !notice.has_pings(5));
        notice.pause(Pause::All(6));
        assert!(notice.has_pings(5) && !notice.has_pings(6));
        assert!(notice.is_paused(8) && !notice.is_paused(9));
        notice.pause(Pause::of(b"", b"", 5));
        assert!(!notice.is_paused(5) && !notice.has_pings(5));
    }

    #[test]
    fn what_the_proxy_asks_for_itself_is_known_by_its_address() {
        let notice = Arc::new(Notice::default());
        let line = |address: &str, said: &str| format!("+1.5 [0 {address}] {said}\r\n");
        let knows = |line: &[u8]| parts_of(line).is_some_and(|(address, _)| notice.is_own(address));
        let is_own = |address: &str, said: &str| knows(line(address, said).as_bytes());
        let looks = notice.talk(([127, 0, 0, 1], 5000).into());
        let _beats = notice.talk("[::1]:7".parse().unwrap());
        assert!(is_own("127.0.0.1:5000", r#""INFO" "server""#));
        assert!(!is_own("127.0.0.1:500", r#""INFO" "server""#));
        assert!(!is_own("lua", r#""SET" "[0 127.0.0.1:5000] " "1""#));
        assert!(is_own("[::1]:7", r#""ROLE""#));
        assert!(!knows(b"+OK\r\n"));
        drop(looks);
        assert!(is_own("127.0.0.1:5000", r#""INFO" "server""#)); // it may come late
        lock(&notice.own).forget(clock::now() + LATE + 1);
        assert!(!is_own("127.0.0.1:5000", r#""INFO" "server""#));
        assert_eq!(lock(&notice.own).known.len(), 1);
    }
}
