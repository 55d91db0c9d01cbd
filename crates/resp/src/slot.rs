//! The Cluster slot of a key.
//!
//! A slot is the CRC16 (XMODEM: polynomial 0x1021, start 0, no reflection) of the key, or of its
//! hash tag, modulo [`SLOTS`]. The CRC takes eight bytes a step from tables made at compile time
//! (slicing-by-8, after Kounavis and Berry), since one byte a step waits on itself.

/// Number of slots of a Cluster.
pub const SLOTS: u16 = 16384;

/// The slot that `key` belongs to.
#[inline]
pub fn slot(key: &[u8]) -> u16 {
    crc16(hash_tag(key)) & (SLOTS - 1)
}

/// The part of `key` that is hashed: what stands between the first `{` and the next `}`, if that
/// is not empty, else the whole key.
#[inline]
pub fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = memchr::memchr(b'{', key) else {
        return key;
    };
    let rest = key.get(open + 1..).unwrap_or_default();
    match memchr::memchr(b'}', rest) {
        None | Some(0) => key,
        Some(close) => rest.get(..close).unwrap_or(key),
    }
}

/// `TABLES[n][b]`: the CRC of byte `b` followed by `n` zero bytes.
static TABLES: [[u16; 256]; 8] = tables();

const fn tables() -> [[u16; 256]; 8] {
    let mut tables = [[0u16; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 {
                (crc << 1) ^ 0x1021
            } else {
                crc << 1
            };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut n = 1;
    while n < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[n - 1][byte];
            tables[n][byte] = (before << 8) ^ tables[0][(before >> 8) as usize];
            byte += 1;
        }
        n += 1;
    }
    tables
}

// A `u8` as index into an array of 256 is always in bounds: the compiler drops the check.
#[inline]
fn crc16(bytes: &[u8]) -> u16 {
    let mut crc = 0u16;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        if let &[a, b, c, d, e, f, g, h] = chunk {
            let [high, low] = crc.to_be_bytes();
            crc = TABLES[7][usize::from(a ^ high)]
                ^ TABLES[6][usize::from(b ^ low)]
                ^ TABLES[5][usize::from(c)]
                ^ TABLES[4][usize::from(d)]
                ^ TABLES[3][usize::from(e)]
                ^ TABLES[2][usize::from(f)]
                ^ TABLES[1][usize::from(g)]
                ^ TABLES[0][usize::from(h)];
        }
    }
    for &byte in chunks.remainder() {
        crc = (crc << 8) ^ TABLES[0][usize::from((crc >> 8) as u8 ^ byte)];
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, a bit at a time.
    fn slow(bytes: &[u8]) -> u16 {
        let mut crc = 0u16;
        for &byte in bytes {
            crc ^= u16::from(byte) << 8;
            for _ in 0..8 {
                crc = if crc & 0x8000 != 0 {
                    (crc << 1) ^ 0x1021
                } else {
                    crc << 1
                };
            }
        }
        crc
    }

    #[test]
    fn known_answers_hold() {
        // The check value of CRC-16/XMODEM, and slots as `CLUSTER KEYSLOT` gives them.
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(slot(b""), 0);
        assert_eq!(slot(b"foo"), 12182);
        assert_eq!(slot(b"bar"), 5061);
        assert_eq!(slot(b"123456789"), 0x31c3);
        assert_eq!(slot(b"foo{hash_tag}"), slot(b"hash_tag"));
    }

    #[test]
    fn only_the_first_tag_counts_and_an_empty_one_does_not() {
        for (key, tag) in [
            ("{user1000}.following", "user1000"),
            ("foo{}{bar}", "foo{}{bar}"),
            ("foo{{bar}}zap", "{bar"),
            ("foo{bar}{zap}", "bar"),
            ("foo{bar", "foo{bar"),
            ("foo}bar{", "foo}bar{"),
            ("{", "{"),
            ("", ""),
        ] {
            assert_eq!(hash_tag(key.as_bytes()), tag.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn the_sliced_crc_is_the_crc(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(crc16(&bytes), slow(&bytes));
        }
    }
}
