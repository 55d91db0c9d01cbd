//! Decoded values that are kept, and given out without being shared.
//!
//! What cannot be changed (text, bytes, numbers, `None`) is the same object for every caller. Lists,
//! sets, dicts and tuples of such are copied once when they are kept and again for every caller, so
//! nobody ever holds an object that another caller, or the cache, holds too. Anything else (what a
//! response callback of the application made) is not kept.
//!
//! Freeing is left to threads that hold the interpreter: the tracker drops values while it holds the
//! cache's lock, and must not run the interpreter's code there, nor wait for it. What it drops goes on
//! a list without locks, which the next caller empties. A lock would not do: a fork in the wrong moment
//! would leave it taken for ever in the child.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PySet, PyString, PyTuple};

/// Nested deeper, a value is not kept.
const DEPTH_MAX: usize = 8;
/// What an object takes beside its content.
const OBJECT_BYTES: usize = 56;

/// A kept value.
#[derive(Debug)]
pub struct Kept {
    /// Taken out when it is freed.
    objects: Option<(Py<PyAny>, Option<Py<PyDict>>)>,
    is_shared: bool,
}

/// What the engine stores.
pub type Value = Arc<Kept>;

impl Kept {
    /// Keeps a copy of `value`, with the memory it takes; `None` where it cannot be kept.
    ///
    /// Args: `options` of the call, kept as long.
    pub fn new(
        value: &Bound<'_, PyAny>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> Option<(Value, usize)> {
        let (copy, bytes) = copy(value, 0)?;
        let is_shared = copy.is(value);
        let options = options.map(|options| options.clone().unbind());
        let kept = Self {
            objects: Some((copy.unbind(), options)),
            is_shared,
        };
        Some((Arc::new(kept), bytes))
    }

    /// The value, for one caller.
    pub fn give(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let (object, _) = self.objects.as_ref()?;
        if self.is_shared {
            return Some(object.clone_ref(py));
        }
        copy(object.bind(py), 0).map(|(copy, _)| copy.unbind())
    }
}

/// A copy of a value that shares nothing that can change, and the memory it takes.
fn copy<'py>(value: &Bound<'py, PyAny>, depth: usize) -> Option<(Bound<'py, PyAny>, usize)> {
    let py = value.py();
    if depth > DEPTH_MAX {
        return None;
    }
    if let Ok(bytes) = value.cast_exact::<PyBytes>() {
        return Some((value.clone(), OBJECT_BYTES + bytes.as_bytes().len()));
    }
    if let Ok(text) = value.cast_exact::<PyString>() {
        // Four bytes a character at most, and the UTF-8 that Python may keep beside it.
        let len = text.len().unwrap_or(0);
        let is_ascii = text.to_str().is_ok_and(str::is_ascii);
        return Some((
            value.clone(),
            OBJECT_BYTES + if is_ascii { len } else { 8 * len },
        ));
    }
    let is_plain = value.is_none()
        || value.is_exact_instance_of::<PyBool>()
        || value.is_exact_instance_of::<PyInt>()
        || value.is_exact_instance_of::<PyFloat>();
    if is_plain {
        return Some((value.clone(), OBJECT_BYTES));
    }
    let mut bytes = 2 * OBJECT_BYTES;
    if let Ok(list) = value.cast_exact::<PyList>() {
        let items = list
            .iter()
            .map(|item| part(&item, 8, &mut bytes, depth))
            .collect::<Option<Vec<_>>>()?;
        return Some((PyList::new(py, items).ok()?.into_any(), bytes));
    }
    if let Ok(tuple) = value.cast_exact::<PyTuple>() {
        let items = tuple
            .iter()
            .map(|item| part(&item, 8, &mut bytes, depth))
            .collect::<Option<Vec<_>>>()?;
        return Some((PyTuple::new(py, items).ok()?.into_any(), bytes));
    }
    if let Ok(dict) = value.cast_exact::<PyDict>() {
        let new = PyDict::new(py);
        for (key, item) in dict {
            let key = part(&key, 32, &mut bytes, depth)?;
            new.set_item(key, part(&item, 72, &mut bytes, depth)?)
                .ok()?;
        }
        return Some((new.into_any(), bytes));
    }
    if let Ok(set) = value.cast_exact::<PySet>() {
        let new = PySet::empty(py).ok()?;
        for item in set {
            new.add(part(&item, 64, &mut bytes, depth)?).ok()?;
        }
        return Some((new.into_any(), bytes));
    }
    None
}

fn part<'py>(
    item: &Bound<'py, PyAny>,
    slot_bytes: usize,
    bytes: &mut usize,
    depth: usize,
) -> Option<Bound<'py, PyAny>> {
    let (copied, more) = copy(item, depth + 1)?;
    *bytes += more + slot_bytes;
    Some(copied)
}

/// About how many bytes of a reply came over the wire.
pub fn wire_bytes(reply: &Bound<'_, PyAny>, depth: usize) -> u64 {
    /// Of a long reply so many elements are looked at.
    const LOOKS: usize = 16;
    if let Ok(bytes) = reply.cast_exact::<PyBytes>() {
        return bytes.as_bytes().len() as u64;
    }
    if let Ok(text) = reply.cast_exact::<PyString>() {
        return text.len().unwrap_or(0) as u64;
    }
    let is_container = reply.is_exact_instance_of::<PyList>()
        || reply.is_exact_instance_of::<PyDict>()
        || reply.is_exact_instance_of::<PySet>();
    if !is_container || depth > 2 {
        return 4; // a number, nothing, or what a callback made
    }
    let len = reply.len().unwrap_or(0);
    if len == 0 {
        return 4;
    }
    let of_items = |items: &mut dyn Iterator<Item = Bound<'_, PyAny>>| -> u64 {
        items.map(|item| 6 + wire_bytes(&item, depth + 1)).sum()
    };
    let looked = len.min(LOOKS);
    let sum = if let Ok(list) = reply.cast_exact::<PyList>() {
        of_items(&mut list.iter().take(looked))
    } else if let Ok(dict) = reply.cast_exact::<PyDict>() {
        of_items(&mut dict.iter().take(looked).flat_map(|(k, v)| [k, v]))
    } else if let Ok(set) = reply.cast_exact::<PySet>() {
        of_items(&mut set.iter().take(looked))
    } else {
        return 4;
    };
    sum * len as u64 / looked as u64
}

struct Grave {
    objects: (Py<PyAny>, Option<Py<PyDict>>),
    next: *mut Grave,
}

static GRAVES: AtomicPtr<Grave> = AtomicPtr::new(ptr::null_mut());

impl Drop for Kept {
    fn drop(&mut self) {
        let Some(objects) = self.objects.take() else {
            return;
        };
        let grave = Box::into_raw(Box::new(Grave {
            objects,
            next: ptr::null_mut(),
        }));
        let mut head = GRAVES.load(Ordering::Relaxed);
        loop {
            // SAFETY: `grave` is ours until the exchange below succeeds.
            unsafe { (*grave).next = head };
            match GRAVES.compare_exchange_weak(head, grave, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }
}

/// Frees what was dropped. The interpreter is held.
#[inline]
pub fn bury(py: Python<'_>) {
    if !GRAVES.load(Ordering::Relaxed).is_null() {
        bury_all(py);
    }
}

#[cold]
fn bury_all(_py: Python<'_>) {
    let mut grave = GRAVES.swap(ptr::null_mut(), Ordering::Acquire);
    while !grave.is_null() {
        // SAFETY: the whole list was taken in one swap, so each of its boxes is ours alone.
        let Grave { objects, next } = *unsafe { Box::from_raw(grave) };
        drop(objects);
        grave = next;
    }
}
