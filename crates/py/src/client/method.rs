//! `execute_command` of a protected class as a native method.
//!
//! Every command of an application passes here, and nearly all of them only to be counted. In Python,
//! passing arguments on (`*args, **options`) alone costs three times what counting does: a tuple, a dict
//! and a merge. Here they are passed on as they came.
//!
//! # Safety
//!
//! The method is called by the interpreter, which is therefore held; the arguments are the caller's and
//! live until the call returns. No panic unwinds into C; the end of a thread may unwind through here.

use std::ffi::{c_char, CStr};
use std::mem::MaybeUninit;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr;

use pyo3::exceptions::{PyMemoryError, PyRuntimeError, PyTypeError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyType};

use super::args::Args;
use super::guard::Guard;
use super::kept::{bury, wire_bytes};

type Unwinding = unsafe extern "C-unwind" fn(
    *mut ffi::PyObject,
    *const *mut ffi::PyObject,
    ffi::Py_ssize_t,
    *mut ffi::PyObject,
) -> *mut ffi::PyObject;
type Plain = unsafe extern "C" fn(
    *mut ffi::PyObject,
    *const *mut ffi::PyObject,
    ffi::Py_ssize_t,
    *mut ffi::PyObject,
) -> *mut ffi::PyObject;

extern "C-unwind" {
    fn PyObject_Call(
        callable: *mut ffi::PyObject,
        args: *mut ffi::PyObject,
        kwargs: *mut ffi::PyObject,
    ) -> *mut ffi::PyObject;

    /// Part of every CPython since 3.9 and of its stable interface since 3.12.
    fn PyObject_Vectorcall(
        callable: *mut ffi::PyObject,
        args: *const *mut ffi::PyObject,
        nargsf: usize,
        kwnames: *mut ffi::PyObject,
    ) -> *mut ffi::PyObject;
}

const DOC: &CStr = c"execute_command($self, /, *args, **options)\n--\n\n\
    Execute a command and return a parsed response.";

/// Gives a class the native `execute_command`.
///
/// Args: `class` a protected class that stands before the client's own.
#[pyfunction]
pub fn install_execute_command(class: &Bound<'_, PyType>) -> PyResult<()> {
    let py = class.py();
    // A method's definition has to live as long as the method, and classes are never many.
    let definition = Box::leak(Box::new(ffi::PyMethodDef {
        ml_name: c"execute_command".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            // SAFETY: the two differ only in what may unwind through them.
            PyCFunctionFastWithKeywords: unsafe {
                std::mem::transmute::<Unwinding, Plain>(execute_command)
            },
        },
        ml_flags: ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
        ml_doc: DOC.as_ptr().cast::<c_char>(),
    }));
    // SAFETY: the class is one, the definition lives for ever; the result is a new reference or an error.
    let method = unsafe {
        let descriptor = ffi::PyDescr_NewMethod(class.as_ptr().cast(), definition);
        Bound::from_owned_ptr_or_err(py, descriptor)?
    };
    class.setattr("execute_command", method)
}

/// The method itself.
///
/// While the client's own method runs, this frame must hold nothing that has to be dropped: where the
/// interpreter shuts down, a thread that waits for it in there is ended by unwinding its stack, which may
/// pass plain frames only, and foreign ones only where they are declared to be passed.
unsafe extern "C-unwind" fn execute_command(
    this: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    nargs: ffi::Py_ssize_t,
    kwnames: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    let call = Call {
        this,
        args,
        nargs: usize::try_from(nargs).unwrap_or(0),
        kwnames,
    };
    // SAFETY: the interpreter calls, so it is held, and what it passes lives until we return. `before` and
    // `after` catch what could panic. The references in `ahead` are given back by `after`.
    unsafe {
        let mut found = ptr::null_mut();
        let mut ahead = Ahead {
            method: ptr::null_mut(),
            guard: ptr::null_mut(),
            read: ptr::null_mut(),
            values: [const { MaybeUninit::uninit() }; INLINE_VALUES],
            all: ptr::null_mut(),
        };
        if !before(&call, &mut found, &mut ahead) {
            return found;
        }
        if !ahead.read.is_null() {
            let reply = PyObject_Call(ahead.method, ahead.read, ptr::null_mut());
            ffi::Py_DECREF(ahead.method);
            ffi::Py_DECREF(ahead.read);
            return reply;
        }
        let reply = PyObject_Vectorcall(ahead.method, ahead.all, call.nargs + 1, kwnames);
        after(&call, &ahead, reply)
    }
}

/// Arguments and values that are passed on without allocating.
const INLINE_VALUES: usize = 24;

/// What is needed to pass a call on, as plain pointers.
struct Ahead {
    /// The client's own method: a reference of ours.
    method: *mut ffi::PyObject,
    /// The guard: a reference of ours; null where there is none.
    guard: *mut ffi::PyObject,
    /// The arguments for what reads on behalf of others, which then is `method`: a reference of ours; null
    /// for any other command.
    read: *mut ffi::PyObject,
    values: [MaybeUninit<*mut ffi::PyObject>; INLINE_VALUES],
    /// `this`, the arguments and the values of the keywords: in `values`, or in memory of ours.
    all: *mut *mut ffi::PyObject,
}

/// Decides; false where the call has been answered, by `found`, or has failed, with an error set.
#[inline]
unsafe fn before(call: &Call, found: &mut *mut ffi::PyObject, ahead: &mut Ahead) -> bool {
    // SAFETY: see `execute_command`.
    let py = unsafe { Python::assume_attached() };
    // SAFETY: as above.
    let this = unsafe { Borrowed::from_ptr(py, call.this) };
    let decided = || call.decide(py, this);
    let decided = catch_unwind(AssertUnwindSafe(decided));
    let next = decided.unwrap_or_else(|_| Err(PyRuntimeError::new_err("a bug in keyheat")));
    match next {
        Ok(Next::Answer(answer)) => {
            *found = answer.into_ptr();
            false
        }
        Ok(Next::Send { method, guard }) => {
            ahead.method = method.into_ptr();
            ahead.guard = guard.map_or(ptr::null_mut(), Bound::into_ptr);
            // SAFETY: as many references as are copied follow `args`.
            if unsafe { call.lay_out(ahead) } {
                return true;
            }
            // SAFETY: both are ours.
            unsafe {
                ffi::Py_DECREF(ahead.method);
                ffi::Py_XDECREF(ahead.guard);
            }
            PyMemoryError::new_err("no memory for the arguments").restore(py);
            *found = ptr::null_mut();
            false
        }
        Ok(Next::Read { method, args }) => {
            ahead.method = method.into_ptr();
            ahead.read = args.into_ptr();
            true
        }
        Err(error) => {
            error.restore(py);
            *found = ptr::null_mut();
            false
        }
    }
}

/// Counts, and gives the references back.
#[inline]
unsafe fn after(call: &Call, ahead: &Ahead, reply: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: see `execute_command`; the references are ours to give back.
    unsafe {
        let py = Python::assume_attached();
        ffi::Py_DECREF(ahead.method);
        if ahead.all.cast_const() != ahead.values.as_ptr().cast() {
            libc::free(ahead.all.cast());
        }
        if ahead.guard.is_null() {
            return reply;
        }
        // An error that is set must not be seen by what is run here.
        let error = if reply.is_null() {
            PyErr::take(py)
        } else {
            None
        };
        let guard = Bound::from_owned_ptr(py, ahead.guard);
        call.note(py, &guard, reply);
        drop(guard);
        if let Some(error) = error {
            error.restore(py);
        }
        reply
    }
}

/// A call as the interpreter makes it.
struct Call {
    this: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    nargs: usize,
    /// A tuple of names whose values follow the arguments; null for none.
    kwnames: *mut ffi::PyObject,
}

/// What is to be done about a call.
enum Next<'py> {
    Answer(Py<PyAny>),
    Send {
        method: Bound<'py, PyAny>,
        guard: Option<Bound<'py, PyAny>>,
    },
    Read {
        method: Bound<'py, PyAny>,
        args: Bound<'py, PyTuple>,
    },
}

impl Call {
    #[inline]
    fn decide<'py>(&self, py: Python<'py>, this: Borrowed<'_, 'py, PyAny>) -> PyResult<Next<'py>> {
        let name = intern!(py, "execute_command");
        // SAFETY: both are objects; the result is a new reference or an error. A client that has a way of its
        // own to be asked for attributes is not asked in it for one that is ours.
        let guard = unsafe {
            let name = intern!(py, "_keyheat_guard").as_ptr();
            let found = ffi::PyObject_GenericGetAttr(self.this, name);
            Bound::from_owned_ptr_or_err(py, found)?
        };
        if guard.is_none() {
            let own = this.getattr(intern!(py, "_keyheat_own"))?;
            let method = own.getattr(name)?;
            return Ok(Next::Send {
                method,
                guard: None,
            });
        }
        let it = guard
            .cast::<Guard>()
            .map_err(|_| PyTypeError::new_err("_keyheat_guard is not a Guard"))?
            .get();
        if it.has_hot_keys() {
            let decided = || {
                let parsed = Args::parse(self.args(py), &it.encoding)?;
                it.decide(py, &parsed, || self.options(py), || self.options_dict(py))
            };
            if let Some(found) = it.guarded(decided).flatten() {
                if !is_ticket(found.bind(py)) {
                    return Ok(Next::Answer(found));
                }
                // What reads for others is written in Python, and is called in this one's place.
                let method = this.getattr(intern!(py, "_keyheat_read"))?;
                let args = PyTuple::new(py, self.args(py))?;
                let options = self.options_dict(py).into_bound(py);
                let all = [
                    guard,
                    found.into_bound(py),
                    args.into_any(),
                    options.into_any(),
                ];
                let args = PyTuple::new(py, all)?;
                return Ok(Next::Read { method, args });
            }
        }
        // Looked up anew: instrumentation may replace the client's own method at any moment.
        let method = it.own.bind(py).getattr(name)?;
        Ok(Next::Send {
            method,
            guard: Some(guard),
        })
    }

    /// Copies `this`, the arguments and the values of the keywords to where they can be passed on from.
    #[inline]
    ///
    /// Returns false where there is no memory for that.
    unsafe fn lay_out(&self, ahead: &mut Ahead) -> bool {
        let values = self.nargs + self.keywords();
        ahead.all = if values < INLINE_VALUES {
            ahead.values.as_mut_ptr().cast()
        } else {
            // SAFETY: plain memory, given back by `after`.
            unsafe { libc::malloc((values + 1) * size_of::<*mut ffi::PyObject>()).cast() }
        };
        if ahead.all.is_null() {
            return false;
        }
        // SAFETY: there is room for `values` and one, and that many follow `args`.
        unsafe {
            *ahead.all = self.this;
            ptr::copy_nonoverlapping(self.args, ahead.all.add(1), values);
        }
        true
    }

    #[inline]
    fn note(&self, py: Python<'_>, guard: &Bound<'_, PyAny>, reply: *mut ffi::PyObject) {
        let Ok(guard) = guard.cast::<Guard>() else {
            return;
        };
        let it = guard.get();
        bury(py);
        it.guarded(|| {
            // SAFETY: a reference that `execute_command` returns later, or null.
            let reply = unsafe { Bound::from_borrowed_ptr_or_opt(py, reply) };
            let bytes = reply.as_ref().map_or(0, |reply| wire_bytes(reply, 0));
            if it.note_read(self.args(py), bytes).is_some() {
                return;
            }
            if let Some(parsed) = Args::parse(self.args(py), &it.encoding) {
                it.note_parsed(&parsed, bytes, reply.is_some());
            }
        });
    }

    fn keywords(&self) -> usize {
        if self.kwnames.is_null() {
            return 0;
        }
        // SAFETY: it is a tuple.
        usize::try_from(unsafe { ffi::PyTuple_Size(self.kwnames) }).unwrap_or(0)
    }

    fn args<'a, 'py: 'a>(
        &'a self,
        py: Python<'py>,
    ) -> impl ExactSizeIterator<Item = Borrowed<'a, 'py, PyAny>> {
        // SAFETY: `nargs` references, the caller's for as long as we run.
        (0..self.nargs).map(move |i| unsafe { Borrowed::from_ptr(py, *self.args.add(i)) })
    }

    fn options<'py>(
        &self,
        py: Python<'py>,
    ) -> impl Iterator<Item = (Bound<'py, PyAny>, Bound<'py, PyAny>)> + use<'_, 'py> {
        let (args, nargs, kwnames) = (self.args, self.nargs, self.kwnames);
        (0..self.keywords()).map(move |i| {
            // SAFETY: `kwnames` is a tuple of names, and a value for each follows the arguments.
            unsafe {
                let index = ffi::Py_ssize_t::try_from(i).unwrap_or(0);
                let name = Borrowed::from_ptr(py, ffi::PyTuple_GetItem(kwnames, index));
                let value = Borrowed::from_ptr(py, *args.add(nargs + i));
                (name.to_owned(), value.to_owned())
            }
        })
    }

    fn options_dict(&self, py: Python<'_>) -> Py<PyDict> {
        let dict = PyDict::new(py);
        for (name, value) in self.options(py) {
            // Names of keywords are strings, which always fit.
            let _ = dict.set_item(name, value);
        }
        dict.unbind()
    }
}

fn is_ticket(found: &Bound<'_, PyAny>) -> bool {
    found.is_exact_instance_of::<super::tickets::Lead>()
        || found.is_exact_instance_of::<super::tickets::Join>()
}
