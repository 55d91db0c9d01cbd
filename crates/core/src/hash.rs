//! The hash by which every part of keyheat names a key.
//!
//! Counts are merged across shards, processes and languages by hash alone, so the function must
//! never change between builds: it is XXH3, 64 bits, with a seed, and the vectors below are
//! committed. (Hashes made for hash maps, such as ahash and foldhash, differ between versions.)
//!
//! The seed is one per cluster of keyheat processes and is to be kept secret: whoever knows it can
//! craft keys that share a hash, and hide one key behind another's counts. Wherever a wrong answer
//! could come of a collision, the key's bytes are compared as well.

use std::hash::{BuildHasherDefault, Hasher};

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Hashes keys with one seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyHasher {
    seed: u64,
}

impl KeyHasher {
    /// A hasher with `seed`. Processes whose counts are merged must use the same seed.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The hash of `key`: XXH3-64 of its bytes under the seed.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> u64 {
        xxh3_64_with_seed(key, self.seed)
    }
}

/// Spreads an already random `u64` over a hash table, for maps keyed by key hash.
///
/// One multiplication, for this is on the way of every request; it only has to survive keys that are no
/// hashes (numbers of nodes, tests with small numbers), since the others come from [`KeyHasher`].
#[derive(Debug, Default, Clone, Copy)]
pub struct HashOfHash(u64);

impl Hasher for HashOfHash {
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    #[inline]
    fn write_u64(&mut self, value: u64) {
        // hashbrown takes its tag from the high bits and the place from the low ones.
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// A map keyed by key hash.
pub type ByHash<V> = hashbrown::HashMap<u64, V, BuildHasherDefault<HashOfHash>>;

/// Carries every bit of `value` into both the high and the low bits.
#[inline]
pub fn spread(value: u64) -> u64 {
    let product = u128::from(value ^ 0xa076_1d64_78bd_642f) * u128::from(0x9e37_79b9_7f4a_7c15_u64);
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_every_other_process() {
        // Made with the C library's XXH3_64bits_withSeed. A change here breaks merging with every
        // process that is already running.
        let vectors: [(u64, &[u8], u64); 5] = [
            (0, b"", 0x2d06_8005_38d3_94c2),
            (0, b"item:1", 0xf13e_7aba_cd0d_dbfe),
            (1, b"item:1", 0xd95a_14d7_26ed_df14),
            (
                0x9e37_79b9_7f4a_7c15,
                b"user:{42}:profile:settings",
                0x4b45_7cb9_abea_44fe,
            ),
            (7, &[0xff; 300], 0xda4f_ac2c_e39b_c738),
        ];
        for (seed, key, hash) in vectors {
            assert_eq!(
                KeyHasher::new(seed).hash(key),
                hash,
                "seed {seed}, key {key:?}"
            );
        }
    }
}
