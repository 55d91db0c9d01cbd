//! Numbers that spread load and waits; nobody must rely on not guessing them.

/// Xorshift with 64 bits and shifts 13, 7, 17 (Marsaglia, 2003).
pub(crate) struct Random(u64);

impl Random {
    /// Numbers that follow from `seed`.
    pub fn new(seed: u64) -> Self {
        // From 0 it would never get away.
        Self(seed | 1)
    }

    /// The next number, from 0 to below 1.
    pub fn draw(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spread_over_the_unit_interval() {
        let mut random = Random::new(0);
        let mut tenths = [0; 10];
        for _ in 0..100_000 {
            tenths[(random.draw() * 10.0) as usize] += 1;
        }
        assert!(
            tenths.iter().all(|n| (9_000..11_000).contains(n)),
            "{tenths:?}"
        );
    }
}
