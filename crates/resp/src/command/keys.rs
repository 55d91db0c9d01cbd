//! Which arguments of a request are keys.
//!
//! Nearly every command has its keys at fixed places, or counted by one of its arguments; both
//! are data. Four families scan their options and are written out, as the server writes them out:
//! `SORT`, `GEORADIUS`, `XREAD` and `MIGRATE`. In each of them an option's value may look like a
//! keyword (a group called `STREAMS`), so options are stepped over, not searched.

use super::{Command, Flags};

/// Where the keys of a command are. Indices count from the command's name, which is 0, also for
/// subcommands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySpec {
    /// It has none.
    None,
    /// Every `step`-th argument from `first` to `last`, which counts from the end when negative
    /// (-1 is the last argument).
    Range {
        /// First key.
        first: u8,
        /// Last key.
        last: i16,
        /// From one key to the next.
        step: u8,
        /// What is done to them.
        access: Access,
    },
    /// Several places.
    Parts(&'static [Part]),
    /// `SORT`: argument 1, and the last `STORE`'s.
    Sort,
    /// `GEORADIUS` and `GEORADIUSBYMEMBER`: argument 1, and the last `STORE`'s or `STOREDIST`'s.
    GeoRadius,
    /// `XREAD` and `XREADGROUP`: the first half of what follows `STREAMS`.
    Streams {
        /// What is done to them.
        access: Access,
    },
    /// `MIGRATE`: argument 3, or, if that is empty, everything after `KEYS`.
    Migrate,
}

/// One of several places of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// As [`KeySpec::Range`].
    Range {
        /// First key.
        first: u8,
        /// Last key.
        last: i16,
        /// From one key to the next.
        step: u8,
        /// What is done to them.
        access: Access,
    },
    /// Argument `count` is a number, and so many keys begin at `first`.
    Counted {
        /// Where the number of keys is.
        count: u8,
        /// First key.
        first: u8,
        /// From one key to the next.
        step: u8,
        /// What is done to them.
        access: Access,
    },
}

/// What a command does to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Its value is read, not changed.
    Read,
    /// Its value is changed, or may be.
    Write,
    /// It is no key, but its slot says where the command goes: a shard channel, or the cursor of
    /// `CLUSTERSCAN`.
    NotKey,
}

/// The arguments do not say which keys are meant; the server would refuse them too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// There are too few arguments.
    Missing,
    /// The number of keys is no number, is zero where it may not be, or exceeds the arguments.
    Count,
    /// An option is not followed by what it needs, or the streams do not pair up with their ids.
    Syntax,
}

impl std::fmt::Display for KeyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            KeyError::Missing => "too few arguments to hold the command's keys",
            KeyError::Count => "the number of keys does not fit the arguments",
            KeyError::Syntax => "the options do not say which arguments are keys",
        })
    }
}

impl std::error::Error for KeyError {}

impl Command {
    /// Calls `f` with the index of each key, in the order of the arguments' places in the
    /// command's own description (a destination before its sources).
    ///
    /// Shard channels and their like are no keys. A key named twice is given twice. `arg` is asked for indices
    /// below `argc` only.
    ///
    /// # Errors
    ///
    /// The arguments do not make sense. Some indices may have been given before.
    #[inline]
    pub fn for_each_key<'a>(
        &self,
        argc: usize,
        arg: impl Fn(usize) -> &'a [u8],
        mut f: impl FnMut(usize),
    ) -> Result<(), KeyError> {
        self.for_each_key_access(argc, arg, |i, access| {
            if access != Access::NotKey {
                f(i);
            }
        })
    }

    /// As [`Command::for_each_key`], with what is done to each key, and with what is no key
    /// but has a slot.
    ///
    /// # Errors
    ///
    /// As there.
    #[inline]
    pub fn for_each_key_access<'a>(
        &self,
        argc: usize,
        arg: impl Fn(usize) -> &'a [u8],
        mut f: impl FnMut(usize, Access),
    ) -> Result<(), KeyError> {
        match self.keys {
            KeySpec::None => Ok(()),
            KeySpec::Range {
                first,
                last,
                step,
                access,
            } => range(argc, first, last, step, |i| f(i, access)),
            KeySpec::Parts(parts) => {
                let may_be_none = self.flags.contains(Flags::NO_MANDATORY_KEYS);
                for part in parts {
                    match *part {
                        // "The rest", where nothing is left: `PFMERGE destination`.
                        Part::Range {
                            first, last: -1, ..
                        } if argc == usize::from(first) => {}
                        Part::Range {
                            first,
                            last,
                            step,
                            access,
                        } => {
                            range(argc, first, last, step, |i| f(i, access))?;
                        }
                        Part::Counted {
                            count,
                            first,
                            step,
                            access,
                        } => {
                            let at = usize::from(count);
                            if at >= argc {
                                return Err(KeyError::Missing);
                            }
                            let n = key_count(arg(at), argc, first, step, may_be_none)?;
                            (0..n).for_each(|i| {
                                f(usize::from(first) + i * usize::from(step), access);
                            });
                        }
                    }
                }
                Ok(())
            }
            KeySpec::Sort => sort(argc, arg, f),
            KeySpec::GeoRadius => georadius(argc, arg, f),
            KeySpec::Streams { access } => streams(argc, arg, |i| f(i, access)),
            KeySpec::Migrate => migrate(argc, arg, |i| f(i, Access::Write)),
        }
    }

    /// The first key, if the command has one and its arguments make sense that far.
    #[inline]
    pub fn first_key<'a>(&self, argc: usize, arg: impl Fn(usize) -> &'a [u8]) -> Option<usize> {
        match self.keys {
            KeySpec::None => None,
            KeySpec::Range {
                access: Access::NotKey,
                ..
            } => None,
            KeySpec::Range { first, .. } => {
                let first = usize::from(first);
                (first < argc).then_some(first)
            }
            _ => {
                let mut found = None;
                let result = self.for_each_key(argc, arg, |i| {
                    found.get_or_insert(i);
                });
                result.ok().and(found)
            }
        }
    }
}

#[inline]
fn range(
    argc: usize,
    first: u8,
    last: i16,
    step: u8,
    mut f: impl FnMut(usize),
) -> Result<(), KeyError> {
    let first = usize::from(first);
    let last = if last < 0 {
        argc.checked_sub(usize::from(last.unsigned_abs()))
            .ok_or(KeyError::Missing)?
    } else {
        usize::from(last.unsigned_abs())
    };
    if last < first || last >= argc {
        return Err(KeyError::Missing);
    }
    let mut i = first;
    while i <= last {
        f(i);
        i += usize::from(step.max(1));
    }
    Ok(())
}

fn key_count(
    text: &[u8],
    argc: usize,
    first: u8,
    step: u8,
    may_be_none: bool,
) -> Result<usize, KeyError> {
    let n = crate::number::integer(text).ok_or(KeyError::Count)?;
    let n = usize::try_from(n).map_err(|_| KeyError::Count)?;
    let room = argc.saturating_sub(usize::from(first)) / usize::from(step.max(1));
    if n > room || (n == 0 && !may_be_none) {
        return Err(KeyError::Count);
    }
    Ok(n)
}

fn is(text: &[u8], keyword: &str) -> bool {
    text.eq_ignore_ascii_case(keyword.as_bytes())
}

/// `SORT key [BY pattern] [LIMIT offset count] [GET pattern …] [ASC|DESC] [ALPHA] [STORE key]`
fn sort<'a>(
    argc: usize,
    arg: impl Fn(usize) -> &'a [u8],
    mut f: impl FnMut(usize, Access),
) -> Result<(), KeyError> {
    if argc < 2 {
        return Err(KeyError::Missing);
    }
    f(1, Access::Read);
    let mut store = None;
    let mut i = 2;
    while i < argc {
        let option = arg(i);
        if is(option, "LIMIT") {
            i += 2;
        } else if is(option, "GET") || is(option, "BY") {
            i += 1;
        } else if is(option, "STORE") && i + 1 < argc {
            store = Some(i + 1);
            i += 1;
        }
        i += 1;
    }
    if let Some(store) = store {
        f(store, Access::Write);
    }
    Ok(())
}

/// `GEORADIUS key longitude latitude radius unit [… STORE key] [… STOREDIST key]`, and
/// `GEORADIUSBYMEMBER`, which is one argument shorter.
fn georadius<'a>(
    argc: usize,
    arg: impl Fn(usize) -> &'a [u8],
    mut f: impl FnMut(usize, Access),
) -> Result<(), KeyError> {
    const OPTIONS_AT: usize = 5;
    if argc < 2 {
        return Err(KeyError::Missing);
    }
    f(1, Access::Read);
    let mut store = None;
    let mut i = OPTIONS_AT;
    while i + 1 < argc {
        let option = arg(i);
        if is(option, "STORE") || is(option, "STOREDIST") {
            store = Some(i + 1);
            i += 1;
        }
        i += 1;
    }
    if let Some(store) = store {
        f(store, Access::Write);
    }
    Ok(())
}

/// `XREAD [COUNT n] [BLOCK ms] STREAMS key … id …`, and
/// `XREADGROUP GROUP g c [COUNT n] [BLOCK ms] [CLAIM ms] [NOACK] STREAMS key … id …`
fn streams<'a>(
    argc: usize,
    arg: impl Fn(usize) -> &'a [u8],
    f: impl FnMut(usize),
) -> Result<(), KeyError> {
    let mut i = 1;
    while i < argc {
        let option = arg(i);
        if is(option, "STREAMS") {
            let first = i + 1;
            let rest = argc - first;
            if rest == 0 || rest % 2 != 0 {
                return Err(KeyError::Syntax);
            }
            (first..first + rest / 2).for_each(f);
            return Ok(());
        } else if is(option, "BLOCK") || is(option, "COUNT") || is(option, "CLAIM") {
            i += 1;
        } else if is(option, "GROUP") {
            i += 2;
        } else if !is(option, "NOACK") {
            return Err(KeyError::Syntax);
        }
        i += 1;
    }
    Err(KeyError::Syntax)
}

/// `MIGRATE host port key|"" db timeout [COPY] [REPLACE] [AUTH p] [AUTH2 u p] [KEYS key …]`
fn migrate<'a>(
    argc: usize,
    arg: impl Fn(usize) -> &'a [u8],
    mut f: impl FnMut(usize),
) -> Result<(), KeyError> {
    const KEY_AT: usize = 3;
    const OPTIONS_AT: usize = 6;
    if argc <= KEY_AT {
        return Err(KeyError::Missing);
    }
    if !arg(KEY_AT).is_empty() {
        f(KEY_AT);
        return Ok(());
    }
    let mut i = OPTIONS_AT;
    while i < argc {
        let option = arg(i);
        if is(option, "KEYS") {
            if i + 1 == argc {
                return Err(KeyError::Syntax);
            }
            (i + 1..argc).for_each(f);
            return Ok(());
        }
        i += match option {
            _ if is(option, "AUTH") => 2,
            _ if is(option, "AUTH2") => 3,
            _ => 1,
        };
    }
    Err(KeyError::Syntax)
}
