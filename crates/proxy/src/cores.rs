//! The cores this process may use.

use std::sync::OnceLock;

/// The cores that shards should be busy on: all but one.
///
/// One is left to the kernel's packets, to the proxy's own other threads, and to the server or the
/// clients where they are on this host. With as many shards as cores these have to take turns with
/// shards: a request costs more then, and waits longer (`benches/results/latency.md`). Where it is a
/// quota that limits this process, there are other cores for all that, and the quota is for shards.
pub(crate) fn for_shards() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| shards_on(allowed(), usable()))
}

fn shards_on(allowed: usize, usable: usize) -> usize {
    if usable < allowed {
        return usable.max(1);
    }
    (allowed - 1).max(1)
}

/// Cores that threads may run on all at the same time, a quota considered.
fn usable() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Cores that the system may put threads of this process on.
#[cfg(target_os = "linux")]
fn allowed() -> usize {
    // SAFETY: a `cpu_set_t` is plain bits, and all of them 0 is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is writable and as large as is said.
    let failed = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if failed != 0 {
        return usable();
    }
    // SAFETY: only reads the set.
    let count = unsafe { libc::CPU_COUNT(&set) };
    usize::try_from(count).unwrap_or(1).max(1)
}

#[cfg(not(target_os = "linux"))]
fn allowed() -> usize {
    usable()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_core_is_left_to_others_unless_a_quota_leaves_them_more() {
        let cases = [
            (1, 1, 1),
            (2, 2, 1),
            (3, 3, 2),
            (64, 64, 63),
            (8, 2, 2),
            (8, 1, 1),
        ];
        for (allowed, usable, shards) in cases {
            assert_eq!(shards_on(allowed, usable), shards, "{allowed} {usable}");
        }
    }

    #[test]
    fn no_more_is_usable_than_allowed() {
        assert!(usable() <= allowed());
    }
}
