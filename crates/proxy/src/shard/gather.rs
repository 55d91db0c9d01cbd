//! How many requests go upstream in one write.

/// Decides whether to look for more requests before what was gathered is sent upstream.
///
/// With fewer cores than busy threads, clients and servers are waiting for this core while the shard
/// sends their requests one by one. Letting them run first makes few large writes of many small
/// ones (`make bench`, row "forwarded"). With cores to spare nothing more comes meanwhile, and the
/// two system calls are wasted; so the shard learns from what a second look brings, and where that is
/// little it only tries now and then.
///
/// Who lets others run is put behind them by the system for a while. That costs latency where shards
/// have every core and are busy half of the time, so by default they have not (`crate::cores`).
#[derive(Default)]
pub(super) struct Gather {
    /// Events that a second look brings, averaged over the last few.
    gain: f32,
    turn: u32,
}

impl Gather {
    const TRY_EVERY: u32 = 32;
    const LEAST_GAIN: f32 = 1.0;

    pub(super) fn is_worth_it(&mut self) -> bool {
        self.turn = self.turn.wrapping_add(1);
        self.gain >= Self::LEAST_GAIN || self.turn % Self::TRY_EVERY == 0
    }

    pub(super) fn learn(&mut self, events: usize) {
        self.gain += (events as f32 - self.gain) / 8.0;
    }
}
