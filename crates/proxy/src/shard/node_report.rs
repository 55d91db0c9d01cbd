//! How the nodes do, shown every tick.

use keyheat_core::Nanos;

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
                proved_at: self.proved_at(node as u32),
            };
        }
    }

    /// The newest proof, where there is anything that it proves.
    fn proved_at(&self, node: u32) -> Option<Nanos> {
        let source = Self::source(node);
        if self.cache.is_idle(source) {
            return None;
        }
        let age = self.cache.proof_age(source, self.now)?;
        Some(self.now.saturating_sub(age))
    }

    /// Shows a new proof at once: its age is to be told to the millisecond.
    pub(super) fn report_proof(&self, node: u32) {
        let mut reports = keyheat_net::lock(&self.node_stats);
        if let Some(report) = reports.get_mut(node as usize) {
            report.proved_at = self.proved_at(node);
        }
    }
}
