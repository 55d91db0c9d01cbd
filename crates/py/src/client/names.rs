//! Names of commands as Python passes them, remembered by which object they are.
//!
//! A client library writes the name of a command as a literal, so it is the same object at every call, and
//! which command that is has to be found out once.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use keyheat_resp::command::{lookup, Access, Command, Flags, KeySpec};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::args::utf8_of;

const SLOTS: usize = 64;

/// An object, and the command it names. Both are written by whoever holds the interpreter, one at a time.
struct Slot {
    /// A reference of ours; null where the slot is free.
    name: AtomicPtr<ffi::PyObject>,
    command: AtomicPtr<Command>,
}

static NAMES: [Slot; SLOTS] = [const {
    Slot {
        name: AtomicPtr::new(ptr::null_mut()),
        command: AtomicPtr::new(ptr::null_mut()),
    }
}; SLOTS];

/// The command that `name` names, if all it does is to read one key, its first argument.
#[inline]
pub fn read_of_one_key(name: Borrowed<'_, '_, PyAny>) -> Option<&'static Command> {
    let slot = &NAMES[(name.as_ptr() as usize / 16) % SLOTS];
    if slot.name.load(Relaxed) != name.as_ptr() {
        return remember(slot, name);
    }
    // SAFETY: null, or a command of the table, which lives for ever.
    unsafe { slot.command.load(Relaxed).as_ref() }
}

#[cold]
fn remember(slot: &Slot, name: Borrowed<'_, '_, PyAny>) -> Option<&'static Command> {
    // Nothing else is kept: to let go of a `str` runs no code of anybody's, so the slot stays as it is left.
    if !name.is_exact_instance_of::<PyString>() {
        return None;
    }
    let found = utf8_of(name)
        .and_then(lookup)
        .filter(|command| is_read_of_one_key(command));
    let command = found.map_or(ptr::null_mut(), |command| ptr::from_ref(command).cast_mut());
    slot.command.store(command, Relaxed);
    // The reference keeps the object, so that its place is not another's.
    let old = slot.name.swap(name.to_owned().into_ptr(), Relaxed);
    // SAFETY: a reference of ours, or null; the interpreter is held.
    unsafe { ffi::Py_XDECREF(old) };
    found
}

fn is_read_of_one_key(command: &Command) -> bool {
    let is_one = matches!(
        command.keys,
        KeySpec::Range {
            first: 1,
            last: 1,
            access: Access::Read,
            ..
        }
    );
    is_one
        && !command.is_write()
        && command.subcommands.is_empty()
        && !command.flags.contains(Flags::SESSION)
}
