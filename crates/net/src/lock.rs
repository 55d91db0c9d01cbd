//! Locks, where a thread that panics must not take the others down with it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a lock whose holder cannot have left it half-done.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
