//! Settings that change while a shard runs.

use std::sync::Arc;

use keyheat_core::detect::Nominator;
use keyheat_core::window::{Totals, Window};
use keyheat_resp::request::RequestParser;

use super::intake::limits_of;
use super::{Shard, ShardSettings};
use crate::overload_settings::Overload;
use crate::settings::Settings;

impl Shard {
    /// New settings hold from here on; those of connections, for new ones.
    pub(super) fn on_settings(&mut self, new: ShardSettings) {
        let ShardSettings { settings, tls } = new;
        self.tls = tls;
        self.overload = Overload::of(&settings);
        self.guard_as_told();
        self.budget = settings.buffers_max_bytes / settings.shard_count().max(1);
        for (_, client) in &mut self.clients {
            if client.input.is_empty() {
                // Between two requests nothing is lost with the parser.
                client.parser = RequestParser::new(limits_of(client, settings.request_max_bytes));
            }
        }
        self.output_max = settings.output_max();
        // They have been checked.
        self.longer_expiry = settings.longer_expiry().ok().flatten().map(Box::new);
        let old = std::mem::replace(&mut self.settings, Arc::clone(&settings));
        self.read_from_replicas_as_told();
        if old.may_cache() != settings.may_cache() {
            self.cache_on = settings.local_cache && settings.may_cache();
            self.cache.clear();
        }
        if old.rules == settings.rules && old.window_ms == settings.window_ms {
            return;
        }
        if let Err(e) = self.count_anew(&settings) {
            tracing::error!("the new rules cannot be counted by: {e}");
        }
    }

    /// Counts for other rules: from nothing, as a window is over soon.
    fn count_anew(&mut self, settings: &Settings) -> Result<(), String> {
        let count = settings.shard_count().max(1);
        let nominator = Nominator::new(&settings.rule_set()?, count as u32);
        let span = settings.window()?;
        let mut window = Window::new(span.clone()).map_err(|e| e.to_string())?;
        let (ops, bytes) = nominator.check_steps(&Totals::default(), span.window);
        window.set_check_steps(ops, bytes);
        self.nominator = nominator;
        self.window = window;
        Ok(())
    }
}
