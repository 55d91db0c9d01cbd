//! How many requests go upstream in one write.

/// Decides whether to look for more requests before what was gathered is sent upstream.
///
/// With fewer cores than busy threads, clients and servers are waiting for this core while the shard
/// sends their requests one by one. Letting them run first makes few large writes of many small
/// ones, and a third less work in all. It costs latency: the system puts who lets others run behind
/// them for a while. So it is done only where shards have every core, which is not the default
/// (`crate::cores`), and there the shard learns from what a second look brings: where that is little
/// it only tries now and then.
#[derive(Default)]
pub(super) struct Gather {
    /// Shards have every core.
    is_crowded: bool,
    /// Events that a second look brings, averaged over the last few.
    gain: f32,
    turn: u32,
}

impl Gather {
    const TRY_EVERY: u32 = 32;
    const LEAST_GAIN: f32 = 1.0;

    pub(super) fn new(is_crowded: bool) -> Self {
        Self {
            is_crowded,
            ..Self::default()
        }
    }

    pub(super) fn is_worth_it(&mut self) -> bool {
        if !self.is_crowded {
            return false;
        }
        self.turn = self.turn.wrapping_add(1);
        self.gain >= Self::LEAST_GAIN || self.turn % Self::TRY_EVERY == 0
    }

    pub(super) fn learn(&mut self, events: usize) {
        self.gain += (events as f32 - self.gain) / 8.0;
    }
}
