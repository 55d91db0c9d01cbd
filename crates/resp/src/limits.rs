//! How much one request or reply may ask of us.

/// The bounds that the parsers hold the other side to; the defaults are the server's own where it
/// has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest bulk string, in bytes (`proto-max-bulk-len` of the server).
    pub bulk_max_bytes: usize,
    /// Most arguments in one request. More than `request_max_bytes` has room for are refused at once.
    pub args_max: usize,
    /// Longest inline request, and longest header or reply line, in bytes. Values below 16 act as
    /// 16, which every length line fits.
    pub inline_max_bytes: usize,
    /// Longest request with all its framing, in bytes (`client-query-buffer-limit`). Values past
    /// 4 GiB act as 4 GiB.
    pub request_max_bytes: usize,
    /// Deepest nesting of a reply. Where it is made a value, past [`Limits::DEPTH_CAP`] acts as that.
    pub depth_max: usize,
}

impl Limits {
    /// The default, where a constant is needed.
    pub const DEFAULT: Self = Self {
        bulk_max_bytes: 512 << 20,
        args_max: i32::MAX as usize,
        inline_max_bytes: 64 << 10,
        request_max_bytes: 1 << 30,
        depth_max: 32,
    };

    /// No value may nest deeper than this, whatever the setting: owned values are built and
    /// dropped by recursion. A scanner keeps a number per level, and takes the setting as it is.
    pub const DEPTH_CAP: usize = 128;

    pub(crate) fn line_max_bytes(&self) -> usize {
        self.inline_max_bytes.max(16)
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth_max.min(Self::DEPTH_CAP)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
