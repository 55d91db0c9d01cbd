//! The inputs: two real traces, and streams made from a fixed seed.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;

/// One access: which key, and the size of its value.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    pub key: u64,
    pub bytes: u64,
}

pub struct Stream {
    pub name: &'static str,
    pub accesses: Vec<Access>,
}

/// Everything that is measured on.
pub struct Inputs {
    pub traces: Vec<Stream>,
    pub zipf: Stream,
    pub uniform: Stream,
    pub is_small: bool,
    pub missing: Vec<String>,
}

impl Inputs {
    pub fn load(data: &Path, is_small: bool) -> Result<Self, Box<dyn Error>> {
        let (mut traces, mut missing) = (Vec::new(), Vec::new());
        type Reader = fn(File) -> Result<Vec<Access>, Box<dyn Error>>;
        let files: [(&'static str, &str, Reader); 2] = [
            (
                "Twitter cluster 52",
                "traces/twitter_cluster52_1m.csv.zst",
                twitter,
            ),
            ("ORM busy", "traces/ecommerce_orm/orm-busy.trace.xz", orm),
        ];
        for (name, file, read) in files {
            let path = data.join(file);
            match File::open(&path) {
                Ok(file) => traces.push(Stream {
                    name,
                    accesses: read(file)?,
                }),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    eprintln!(
                        "{} is not there: what is measured on it is left out",
                        path.display()
                    );
                    missing.push(format!("{name} ({file})"));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let len = if is_small { 500_000 } else { 3_000_000 };
        let mut random = Random(1);
        Ok(Self {
            traces,
            zipf: Stream {
                name: "zipf 0.99, 10^6 keys",
                accesses: zipf(&mut random, len),
            },
            uniform: Stream {
                name: "uniform, 10^7 keys",
                accesses: uniform(&mut random, len),
            },
            is_small,
            missing,
        })
    }
}

/// `time, object, size, next_access_vtime`; lines that begin with `#` are comments.
fn twitter(file: File) -> Result<Vec<Access>, Box<dyn Error>> {
    let decoder = ruzstd::decoding::StreamingDecoder::new(BufReader::new(file))?;
    let mut accesses = Vec::new();
    for line in BufReader::new(decoder).lines() {
        let line = line?;
        let mut fields = line.split(',').map(str::trim);
        let (_, key, bytes) = (fields.next(), fields.next(), fields.next());
        if line.starts_with('#') {
            continue;
        }
        let (key, bytes) = key
            .zip(bytes)
            .ok_or_else(|| format!("a line without a size: {line}"))?;
        accesses.push(Access {
            key: key.parse()?,
            bytes: bytes.parse()?,
        });
    }
    Ok(accesses)
}

/// One big-endian 32-bit number an access. The trace has no sizes; all are taken as 100 bytes.
fn orm(file: File) -> Result<Vec<Access>, Box<dyn Error>> {
    let mut bytes = Vec::new();
    lzma_rs::xz_decompress(&mut BufReader::new(file), &mut bytes)
        .map_err(|error| format!("orm-busy.trace.xz: {error:?}"))?;
    let numbers = bytes
        .chunks_exact(4)
        .map(|four| four.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
    Ok(numbers.map(|key| Access { key, bytes: 100 }).collect())
}

/// A small generator (splitmix64), so that every run measures the same streams.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// 0 to 1, 1 excluded.
    pub fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Sizes from 1 to 1,000 bytes, a key's own.
fn size_of(key: u64) -> u64 {
    1 + Random(key).below(1000)
}

fn zipf(random: &mut Random, len: usize) -> Vec<Access> {
    let mut sum = 0.0;
    let cumulative: Vec<f64> = (1..=1_000_000_u64)
        .map(|rank| {
            sum += (rank as f64).powf(-0.99);
            sum
        })
        .collect();
    let mut draw = || {
        let at = random.part() * sum;
        cumulative.partition_point(|sum| *sum <= at) as u64
    };
    (0..len)
        .map(|_| draw())
        .map(|key| Access {
            key,
            bytes: size_of(key),
        })
        .collect()
}

fn uniform(random: &mut Random, len: usize) -> Vec<Access> {
    let keys = (0..len).map(|_| random.below(10_000_000));
    keys.map(|key| Access {
        key,
        bytes: size_of(key),
    })
    .collect()
}
