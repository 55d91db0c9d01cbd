//! What a request means before it is run.
//!
//! [`lookup`] finds a command by its name in a table that was read from real servers (the union
//! of Valkey's and Redis' commands, in `data/`) and reviewed by hand where the servers do not say
//! enough: which answers may be cached, and which commands bind a connection. The reviews, with
//! a reason each, are in `generate/review.py`.
//!
//! A command that is not in the table (of a module, or newer than it) is `None`: its keys are
//! unknown, and so is whether it writes.

mod flags;
mod keys;
mod lookup;
mod table;

pub use flags::Flags;
pub use keys::{Access, KeyError, KeySpec, Part};
pub use lookup::lookup;

/// One command, or one subcommand.
#[derive(Debug)]
pub struct Command {
    /// In lower case; subcommands as `client|id`.
    pub name: &'static str,
    /// Number of arguments, the name (of a subcommand, both names) included; negative: at least
    /// so many.
    pub arity: i16,
    /// What it does and where it may run.
    pub flags: Flags,
    /// Where its keys are.
    pub keys: KeySpec,
    /// Whether its answer may be kept. Ask [`Command::cacheable_line`] about a whole request.
    pub cacheable: Cacheable,
    /// Its subcommands, sorted by name; where there are any, keys and flags are theirs.
    pub subcommands: &'static [Command],
}

/// Whether the answer to a command line may be kept until its key changes.
///
/// The command is read-only, its answer depends on nothing but one key's value, and every change
/// of that value is announced by an invalidation of the key, under the conditions named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cacheable {
    /// Never.
    No,
    /// Always, when the line names exactly one key.
    Yes,
    /// If none of the hash fields it names carries an expiry of its own: a field expires
    /// without an invalidation at that instant.
    HashFields,
    /// If no field of the hash can carry an expiry, that is, on servers without field expiry.
    WholeHash,
}

impl Command {
    /// The subcommand of that name, upper or lower case.
    pub fn sub(&self, name: &[u8]) -> Option<&'static Command> {
        let skip = self.name.len() + 1;
        self.subcommands.iter().find(|sub| {
            sub.name
                .as_bytes()
                .get(skip..)
                .is_some_and(|own| own.eq_ignore_ascii_case(name))
        })
    }

    /// Whether it changes data, or may: scripts and functions count unless declared read-only.
    ///
    /// Without keys (`FLUSHALL`, `SWAPDB`) it may change any key.
    #[inline]
    pub fn is_write(&self) -> bool {
        self.flags.intersects(Flags::WRITE.union(Flags::MAY_WRITE))
    }

    /// Whether so many arguments, the name included, are acceptable.
    #[inline]
    pub fn arity_ok(&self, argc: usize) -> bool {
        let arity = usize::from(self.arity.unsigned_abs());
        if self.arity < 0 {
            argc >= arity
        } else {
            argc == arity
        }
    }

    /// Whether the answer to this very line may be kept: [`Command::cacheable`], and the line
    /// names exactly one key.
    #[inline]
    pub fn cacheable_line(&self, argc: usize) -> Cacheable {
        match self.keys {
            KeySpec::Range { first, last, .. }
                if last == i16::from(first) || argc == usize::from(first) + 1 =>
            {
                self.cacheable
            }
            _ => Cacheable::No,
        }
    }
}
