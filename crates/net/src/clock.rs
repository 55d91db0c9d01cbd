//! The one clock of the data plane.
//!
//! `CLOCK_BOOTTIME` goes on while the machine is suspended, so a proof of freshness taken before
//! a suspension has lapsed after it. `CLOCK_MONOTONIC` would stand still and call it fresh.

/// Nanoseconds of this clock.
pub type Nanos = u64;

/// Nanoseconds since boot, time in suspension included.
#[must_use]
pub fn now() -> Nanos {
    let mut ts = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    #[cfg(target_os = "linux")]
    let id = libc::CLOCK_BOOTTIME;
    // Elsewhere `CLOCK_MONOTONIC` is the closest there is (on macOS it counts suspended time).
    #[cfg(not(target_os = "linux"))]
    let id = libc::CLOCK_MONOTONIC;
    // SAFETY: `ts` is a valid, writable timespec; the call has no other effect.
    unsafe { libc::clock_gettime(id, &mut ts) };
    (ts.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(ts.tv_nsec as u64)
}

/// One millisecond in [`Nanos`].
pub const MS: Nanos = 1_000_000;
/// One second in [`Nanos`].
pub const SEC: Nanos = 1_000_000_000;
