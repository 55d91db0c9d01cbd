//! What a command does and where it may run, as the servers flag it, and as reviewed.

/// A set of command flags.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flags(u32);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:expr;)*) => {
        impl Flags {
            $($(#[$doc])* pub const $name: Flags = Flags(1 << $bit);)*

            /// Every flag with its name.
            pub const NAMED: &'static [(&'static str, Flags)] =
                &[$((stringify!($name), Flags::$name)),*];
        }
    };
}

flags! {
    /// Changes data.
    WRITE = 0;
    /// Only reads data.
    READONLY = 1;
    /// Refused when the server is out of memory.
    DENYOOM = 2;
    /// For operators.
    ADMIN = 3;
    /// Publishes or subscribes.
    PUBSUB = 4;
    /// Not from scripts.
    NOSCRIPT = 5;
    /// May wait, holding up whatever follows on its connection.
    BLOCKING = 6;
    /// Allowed while the server loads its data.
    LOADING = 7;
    /// Allowed on a replica that lost its primary.
    STALE = 8;
    /// Allowed before authentication.
    NO_AUTH = 9;
    /// Not inside `MULTI`.
    NO_MULTI = 10;
    /// The places of its keys depend on its other arguments.
    MOVABLEKEYS = 11;
    /// Constant or logarithmic time.
    FAST = 12;
    /// Allowed while a script runs too long.
    ALLOW_BUSY = 13;
    /// Not while a replica loads data in the background.
    NO_ASYNC_LOADING = 14;
    /// Takes keys, but may be called with none.
    NO_MANDATORY_KEYS = 15;
    /// Asks for a slot that is being imported, as after `ASKING`.
    ASKING = 16;
    /// Belongs to a module that comes with the server.
    MODULE = 17;
    /// Changes or needs the state of its connection: it must not travel on a shared one. Not a
    /// server's flag but a reviewed one.
    SESSION = 18;
    /// May change data although it is not flagged [`Flags::WRITE`]: scripts and functions. Not a
    /// server's flag either.
    MAY_WRITE = 19;
}

impl Flags {
    /// No flag.
    pub const NONE: Flags = Flags(0);

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    /// Whether every flag of `other` is in this set.
    #[inline]
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any flag of `other` is in this set.
    #[inline]
    pub const fn intersects(self, other: Flags) -> bool {
        self.0 & other.0 != 0
    }
}

impl std::fmt::Debug for Flags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set()
            .entries(
                Self::NAMED
                    .iter()
                    .filter(|(_, flag)| self.contains(*flag))
                    .map(|(name, _)| name),
            )
            .finish()
    }
}
