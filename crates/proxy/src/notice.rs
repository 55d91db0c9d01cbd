//! What clients have set at the servers, and would notice here: `MONITOR` and `CLIENT PAUSE`.
//!
//! A PING asks whether somebody is there, and needs no server. But `MONITOR` shows it, and `CLIENT PAUSE` holds
//! it up: while either is on through this proxy, the PINGs of its clients go upstream. While clients are paused,
//! each request goes on a connection of its own: on a shared one a write that waits would hold up everybody
//! behind it, and be taken for a server that hangs. Shared by all shards.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

use keyheat_core::Nanos;
use keyheat_net::clock::MS;

/// Clients in `MONITOR`, and until when clients are paused: their writes, or all they say.
#[derive(Debug, Default)]
pub(crate) struct Notice {
    monitors: AtomicUsize,
    writes_until: AtomicU64,
    all_until: AtomicU64,
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
}
