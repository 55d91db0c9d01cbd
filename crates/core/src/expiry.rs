//! A longer expiry on the server for keys of named business entities, while their time lasts.
//!
//! A shop with a promotion is known beforehand: from then until its end its keys get a longer time to live
//! when they are written, so that the sale does not meet an empty cache. It only ever lengthens, and never
//! beyond `factor_max` times what was written, nor beyond `max` in all. It says nothing of caches and
//! copies: their staleness has a bound of its own.

use crate::rule::Pattern;

/// One business entity and what its keys get. Moments are milliseconds of Unix time.
#[derive(Debug, Clone, PartialEq)]
pub struct Entity {
    /// For people: a shop, a promotion.
    pub name: Box<str>,
    /// Its keys.
    pub pattern: Pattern,
    /// From when.
    pub starts_ms: i64,
    /// Until when, this moment excluded.
    pub ends_ms: i64,
    /// The time to live its keys get at least.
    pub ttl_ms: i64,
}

/// All entities, and how far an expiry may be lengthened.
#[derive(Debug, Clone, PartialEq)]
pub struct LongerExpiry {
    entities: Vec<Entity>,
    factor_max: f64,
    max_ms: i64,
}

impl LongerExpiry {
    /// Args: `factor_max` at most so many times what was written, from 1; `max_ms` at most so long in all.
    #[must_use]
    pub fn new(entities: Vec<Entity>, factor_max: f64, max_ms: i64) -> Self {
        Self {
            entities,
            factor_max: factor_max.max(1.0),
            max_ms,
        }
    }

    /// The time to live a key is to get, if that is more than was written.
    ///
    /// Args: `written_ms` as the application wrote it; `now_ms` Unix time.
    #[must_use]
    pub fn ttl_ms(&self, key: &[u8], written_ms: i64, now_ms: i64) -> Option<i64> {
        if written_ms <= 0 {
            // It deletes.
            return None;
        }
        let of_key =
            |e: &&Entity| (e.starts_ms..e.ends_ms).contains(&now_ms) && e.pattern.is_match(key);
        let wanted = self
            .entities
            .iter()
            .filter(of_key)
            .map(|e| e.ttl_ms)
            .max()?;
        let most = (written_ms as f64 * self.factor_max) as i64;
        let longer = wanted.min(most).min(self.max_ms);
        (longer > written_ms).then_some(longer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn sale(ttl_ms: i64) -> Entity {
        Entity {
            name: "sale".into(),
            pattern: Pattern::Prefix((*b"shop:7:").into()),
            starts_ms: 1_000,
            ends_ms: 2_000,
            ttl_ms,
        }
    }

    #[test]
    fn it_lengthens_within_its_time_its_keys_and_its_bounds() {
        let longer = LongerExpiry::new(vec![sale(HOUR), sale(2 * HOUR)], 24.0, 3 * HOUR);
        let cases = [
            ("shop:7:a", 10_000, 1_000, Some(240_000)),
            ("shop:7:a", HOUR, 1_999, Some(2 * HOUR)),
            ("shop:7:a", 2 * HOUR, 1_500, None),
            ("shop:7:a", 10_000, 999, None),
            ("shop:7:a", 10_000, 2_000, None),
            ("shop:8:a", 10_000, 1_500, None),
            ("shop:7:a", 0, 1_500, None),
            ("shop:7:a", -5, 1_500, None),
            ("shop:7:a", i64::MAX, 1_500, None),
        ];
        for (key, written, now, wanted) in cases {
            assert_eq!(
                longer.ttl_ms(key.as_bytes(), written, now),
                wanted,
                "{key} {written} {now}"
            );
        }
    }

    #[test]
    fn the_longest_in_all_holds_for_every_entity() {
        let longer = LongerExpiry::new(vec![sale(10 * HOUR)], 1e9, HOUR);
        assert_eq!(longer.ttl_ms(b"shop:7:a", 5, 1_500), Some(HOUR));
        assert_eq!(longer.ttl_ms(b"shop:7:a", HOUR, 1_500), None);
    }
}
