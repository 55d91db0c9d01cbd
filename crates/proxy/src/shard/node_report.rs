//! How the nodes do, shown every tick.

use super::Shard;
use crate::node_stats::NodeReport;

impl Shard {
    /// Shows how the nodes do.
    pub(super) fn report_nodes(&mut self) {
        let (min, max) = self.overload.limits;
        let mut reports = keyheat_net::lock(&self.node_stats);
        reports.resize(self.nodes.len(), NodeReport::default());
        for (node, report) in reports.iter_mut().enumerate() {
            let state = &self.nodes[node];
            let under_way = self.under_way(node as u32);
            let shared = state.shared.iter();
            let lines = shared.filter_map(|&(_, _, _, index)| self.upstreams.get(index as usize));
            let queued: usize = lines
                .filter(|up| up.has_line)
                .map(|up| up.pending.len().saturating_sub(state.window))
                .sum();
            *report = NodeReport {
                state: state.guard.breaker.state(),
                opened: state.guard.breaker.opened,
                limit: match self.overload.has_congestion {
                    true => u64::from(state.guard.limit.limit(min, max)),
                    false => 0,
                },
                in_flight: (under_way - queued) as u64,
                queued: queued as u64,
                turned_back: state.guard.turned_back,
                stale_answers: state.guard.stale_answers,
            };
        }
    }
}
