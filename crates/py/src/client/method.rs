//! `execute_command` of a protected class as a native method.
//!
//! Every command of an application passes here, and nearly all of them only to be counted. In Python,
//! passing arguments on (`*args, **options`) alone costs three times what counting does: a tuple, a dict
//! and a merge. Here they are passed on as they came.
//!
//! # Safety
//!
//! The method is called by the interpreter, which is therefore held; the arguments are the caller's and
//! live until the call returns. Nothing unwinds into C: what could panic is caught.

use std::ffi::{c_char, CStr};
use std::ptr;

use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyType};
use smallvec::SmallVec;

use super::args::Args;
use super::guard::Guard;
use super::kept::{bury, wire_bytes};

extern "C" {
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
            PyCFunctionFastWithKeywords: execute_command,
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

unsafe extern "C" fn execute_command(
    this: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    nargs: ffi::Py_ssize_t,
    kwnames: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: the interpreter calls, so it is held.
    let py = unsafe { Python::assume_attached() };
    let call = Call {
        this,
        args,
        nargs: usize::try_from(nargs).unwrap_or(0),
        kwnames,
    };
    // SAFETY: `this` is the caller's reference.
    let this = unsafe { Borrowed::from_ptr(py, this) };
    match call.run(py, this) {
        Ok(reply) => reply.into_ptr(),
        Err(error) => {
            error.restore(py);
            ptr::null_mut()
        }
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

impl Call {
    #[inline]
    fn run(&self, py: Python<'_>, this: Borrowed<'_, '_, PyAny>) -> PyResult<Py<PyAny>> {
        let guard = this.getattr(intern!(py, "_keyheat_guard"))?;
        if guard.is_none() {
            let own = this.getattr(intern!(py, "_keyheat_own"))?;
            return self.pass_on(py, &own);
        }
        let guard = guard
            .cast::<Guard>()
            .map_err(|_| PyTypeError::new_err("_keyheat_guard is not a Guard"))?;
        let it = guard.get();
        if it.has_hot_keys() {
            let decided = || {
                let parsed = Args::parse(self.args(py), &it.encoding)?;
                it.decide(py, &parsed, || self.options(py), || self.options_dict(py))
            };
            if let Some(found) = it.guarded(decided).flatten() {
                if !is_ticket(found.bind(py)) {
                    return Ok(found);
                }
                let args = PyTuple::new(py, self.args(py))?;
                let options = self.options_dict(py);
                let read = intern!(py, "_keyheat_read");
                let reply = this.call_method1(read, (guard, found, args, options))?;
                return Ok(reply.unbind());
            }
        }
        let reply = self.pass_on(py, it.own.bind(py));
        bury(py);
        it.guarded(|| {
            let bytes = reply
                .as_ref()
                .map_or(0, |reply| wire_bytes(reply.bind(py), 0));
            if let Some(parsed) = Args::parse(self.args(py), &it.encoding) {
                it.note_parsed(&parsed, bytes, reply.is_ok());
            }
        });
        reply
    }

    /// Calls the client's own method, looked up anew: instrumentation may replace it at any moment.
    #[inline]
    fn pass_on(&self, py: Python<'_>, own: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let method = own.getattr(intern!(py, "execute_command"))?;
        let mut all: SmallVec<[*mut ffi::PyObject; 16]> = SmallVec::new();
        all.push(self.this);
        let values = self.nargs + self.keywords();
        // SAFETY: that many references follow `args`, and the caller keeps them for as long as we run.
        unsafe {
            all.extend((0..values).map(|i| *self.args.add(i)));
            let reply =
                PyObject_Vectorcall(method.as_ptr(), all.as_ptr(), self.nargs + 1, self.kwnames);
            Bound::from_owned_ptr_or_err(py, reply).map(Bound::unbind)
        }
    }

    fn keywords(&self) -> usize {
        if self.kwnames.is_null() {
            return 0;
        }
        // SAFETY: it is a tuple.
        usize::try_from(unsafe { ffi::PyTuple_Size(self.kwnames) }).unwrap_or(0)
    }

    fn args<'a>(
        &'a self,
        py: Python<'a>,
    ) -> impl ExactSizeIterator<Item = Borrowed<'a, 'a, PyAny>> {
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
