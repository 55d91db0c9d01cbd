//! Settings of a longer expiry: which keys, from when until when, how long.

use keyheat_core::expiry::{Entity, LongerExpiry};
use keyheat_core::rule::spec::MatchSettings;
use serde::Deserialize;

use crate::settings::Settings;

/// One business entity.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntitySettings {
    /// For people: a shop, a promotion.
    pub name: String,
    /// Its keys.
    #[serde(rename = "match")]
    pub pattern: MatchSettings,
    /// From when, in seconds of Unix time.
    pub starts_s: f64,
    /// Until when, in seconds of Unix time.
    pub ends_s: f64,
    /// The time to live its keys get at least, in seconds.
    pub ttl_s: u64,
}

impl EntitySettings {
    fn entity(&self) -> Result<Entity, String> {
        let wrong = |why: &str| format!("longer_expiry {:?}: {why}", self.name);
        // A moment that is no number is neither.
        if self.ends_s.partial_cmp(&self.starts_s) != Some(std::cmp::Ordering::Greater) {
            return Err(wrong("ends: later than starts"));
        }
        let ttl_ms = i64::try_from(self.ttl_s).ok().filter(|s| *s > 0);
        let ttl_ms = ttl_ms.and_then(|s| s.checked_mul(1_000));
        Ok(Entity {
            name: self.name.as_str().into(),
            pattern: self.pattern.pattern().map_err(|why| wrong(&why))?,
            starts_ms: (self.starts_s * 1_000.0) as i64,
            ends_ms: (self.ends_s * 1_000.0) as i64,
            ttl_ms: ttl_ms.ok_or_else(|| wrong("ttl_s: above 0"))?,
        })
    }
}

impl Settings {
    /// What lengthens expiries, if anything does.
    ///
    /// # Errors
    /// A sentence that names the setting and what it accepts.
    pub(crate) fn longer_expiry(&self) -> Result<Option<LongerExpiry>, String> {
        if !(1.0..=1e6).contains(&self.longer_expiry_factor_max) {
            return Err("longer_expiry_factor_max: 1 to 1000000".into());
        }
        if !(1..=31_536_000).contains(&self.longer_expiry_max_s) {
            return Err("longer_expiry_max_s: 1 to 31536000 (a year)".into());
        }
        let entities = self.longer_expiry.iter().map(EntitySettings::entity);
        let entities = entities.collect::<Result<Vec<_>, _>>()?;
        let max_ms = self.longer_expiry_max_s as i64 * 1_000;
        let longer = LongerExpiry::new(entities, self.longer_expiry_factor_max, max_ms);
        Ok((!self.longer_expiry.is_empty()).then_some(longer))
    }
}
