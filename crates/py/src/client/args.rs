//! A command as Python passes it: a tuple of names, texts, bytes and numbers.
//!
//! Texts are read as UTF-8, as the server gets them; a client with another encoding, and every type that
//! is rare, goes through the client's own encoder, so that no key is ever taken for another.

use std::borrow::Cow;
use std::slice;

use keyheat_resp::command::{lookup, Access, Cacheable, Command, Flags, KeySpec};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyFunction, PyInt, PyString, PyType};
use smallvec::SmallVec;

/// A command line: its arguments as the server will see them.
pub struct Args<'a> {
    items: SmallVec<[Cow<'a, [u8]>; 8]>,
    /// `None` for one that is not in the table: of a module, or newer.
    pub command: Option<&'static Command>,
}

/// How a client turns arguments into bytes.
pub struct Encoding {
    pub is_utf8: bool,
    pub encode: Py<PyAny>,
}

impl<'a> Args<'a> {
    /// `None` for what cannot be sent; the client will say why.
    #[inline]
    pub fn parse<'py: 'a>(
        args: impl Iterator<Item = Borrowed<'a, 'py, PyAny>>,
        encoding: &Encoding,
    ) -> Option<Self> {
        let mut items: SmallVec<[Cow<'a, [u8]>; 8]> = SmallVec::new();
        for item in args {
            items.push(bytes_of(item, encoding)?);
        }
        let name = items.first()?;
        // Client libraries write some commands as one word with blanks in it.
        if name.contains(&b' ') {
            let words: SmallVec<[Cow<'a, [u8]>; 8]> = name
                .split(|byte| *byte == b' ')
                .map(|word| Cow::Owned(word.to_vec()))
                .collect();
            items.remove(0);
            items.insert_many(0, words);
        }
        let name = lookup(items.first()?);
        let command = match (name, items.get(1)) {
            (Some(name), Some(sub)) if !name.subcommands.is_empty() => {
                Some(name.sub(sub).unwrap_or(name))
            }
            (name, _) => name,
        };
        Some(Self { items, command })
    }

    pub fn argc(&self) -> usize {
        self.items.len()
    }

    pub fn arg(&self, i: usize) -> &[u8] {
        self.items.get(i).map_or(&[], |item| item)
    }

    /// Bytes of all arguments.
    #[inline]
    pub fn len_bytes(&self) -> u64 {
        self.items.iter().map(|item| item.len() as u64).sum()
    }

    pub fn cacheable(&self) -> Cacheable {
        self.command
            .map_or(Cacheable::No, |command| command.cacheable_line(self.argc()))
    }

    /// Whether it may change data. A command that is not known may.
    pub fn is_write(&self) -> bool {
        self.command.is_none_or(Command::is_write)
    }

    /// Whether it may wait in the server on purpose.
    pub fn is_blocking(&self) -> bool {
        self.command
            .is_some_and(|command| command.flags.contains(Flags::BLOCKING))
            || matches!(self.name(), "wait" | "waitaof" | "client|pause" | "debug")
    }

    /// The command's name in lower case, subcommands as `client|id`; empty where it is not known.
    pub fn name(&self) -> &'static str {
        self.command.map_or("", |command| command.name)
    }

    /// The key and what is done to it, for a line that names exactly one, at a fixed place.
    #[inline]
    pub fn only_key(&self) -> Option<(&[u8], Access)> {
        let KeySpec::Range {
            first,
            last,
            access,
            ..
        } = self.command?.keys
        else {
            return None;
        };
        let is_only = last == i16::from(first) || self.argc() == usize::from(first) + 1;
        let key = self.items.get(usize::from(first))?;
        (is_only && access != Access::NotKey && self.name() != "watch").then(|| (&**key, access))
    }

    pub fn for_each_key<'b>(&'b self, mut f: impl FnMut(&'b [u8], Access)) {
        let arg = |i| self.arg(i);
        let Some(command) = self.command else {
            return;
        };
        let _ = command.for_each_key_access(self.argc(), arg, |i, access| {
            if access != Access::NotKey {
                f(self.arg(i), access);
            }
        });
    }

    /// Every key that the command may change; every argument where it is not known. Returns whether there
    /// was any.
    pub fn for_each_written<'b>(&'b self, mut f: impl FnMut(&'b [u8])) -> bool {
        let mut is_any = false;
        if self.command.is_none() {
            self.items.iter().skip(1).for_each(|item| f(item));
            return true;
        }
        self.for_each_key(|key, _| {
            is_any = true;
            f(key);
        });
        is_any
    }

    /// Whether it sets a key only if it is not there, as taking a lock does.
    #[inline]
    pub fn sets_if_absent(&self) -> bool {
        match self.name() {
            "set" => self
                .items
                .iter()
                .skip(3)
                .any(|item| item.eq_ignore_ascii_case(b"nx")),
            "setnx" => true,
            _ => false,
        }
    }

    /// The line as one string of bytes that no other line has.
    pub fn line(&self, out: &mut SmallVec<[u8; 128]>) {
        out.extend_from_slice(self.name().as_bytes());
        for item in self.items.iter().skip(1) {
            out.extend_from_slice(&(item.len() as u64).to_le_bytes());
            out.extend_from_slice(item);
        }
    }

    /// The fields that a hash command names.
    pub fn fields(&self) -> SmallVec<[&[u8]; 4]> {
        let last = if self.name() == "hmget" {
            self.argc()
        } else {
            3.min(self.argc())
        };
        (2..last).map(|i| self.arg(i)).collect()
    }
}

#[inline]
fn bytes_of<'a, 'py: 'a>(
    item: Borrowed<'a, 'py, PyAny>,
    encoding: &Encoding,
) -> Option<Cow<'a, [u8]>> {
    // By far the most arguments are exactly one of these, and asking that is a comparison.
    if item.is_exact_instance_of::<PyBytes>() {
        return content_of(item).map(Cow::Borrowed);
    }
    if item.is_exact_instance_of::<PyString>() || item.is_instance_of::<PyString>() {
        // What is all ASCII is the same bytes in UTF-8; anything else is, if that is the encoding.
        let utf8 = utf8_of(item);
        if let Some(utf8) = utf8.filter(|utf8| encoding.is_utf8 || utf8.is_ascii()) {
            return Some(Cow::Borrowed(utf8));
        }
    } else if item.is_instance_of::<PyBytes>() {
        return content_of(item).map(Cow::Borrowed);
    } else if item.is_exact_instance_of::<PyInt>() {
        if let Ok(number) = item.extract::<i64>() {
            return Some(Cow::Owned(number.to_string().into_bytes()));
        }
    }
    let encoded = encoding.encode.bind(item.py()).call1((item,)).ok()?;
    if let Ok(bytes) = encoded.cast::<PyBytes>() {
        return Some(Cow::Owned(bytes.as_bytes().to_vec()));
    }
    // A buffer, which encoders pass on as it is.
    let copied = item.py().get_type::<PyBytes>().call1((encoded,)).ok()?;
    let bytes = copied.cast::<PyBytes>().ok()?;
    Some(Cow::Owned(bytes.as_bytes().to_vec()))
}

/// A key of a plain cache: a `str` or `bytes`.
#[inline]
pub fn key_bytes<'a>(key: Borrowed<'a, '_, PyAny>) -> Option<&'a [u8]> {
    if key.is_exact_instance_of::<PyString>() || key.is_instance_of::<PyString>() {
        utf8_of(key)
    } else if key.is_instance_of::<PyBytes>() {
        content_of(key)
    } else {
        None
    }
}

/// What the server gets of an argument that needs no copy: `bytes`, or a `str` whose UTF-8 that is.
#[inline]
pub fn plain_bytes<'a>(item: Borrowed<'a, '_, PyAny>, encoding: &Encoding) -> Option<&'a [u8]> {
    if item.is_exact_instance_of::<PyString>() {
        utf8_of(item).filter(|utf8| encoding.is_utf8 || utf8.is_ascii())
    } else if item.is_exact_instance_of::<PyBytes>() {
        content_of(item)
    } else {
        None
    }
}

/// The UTF-8 of a `str`, which Python keeps with it; `None` for one with lone surrogates.
#[inline]
pub fn utf8_of<'a>(text: Borrowed<'a, '_, PyAny>) -> Option<&'a [u8]> {
    let mut len = 0;
    // SAFETY: `text` is a `str`, and the tuple it is in keeps it alive for 'a; its UTF-8 lives as long as
    // it does and never changes.
    unsafe {
        let start = ffi::PyUnicode_AsUTF8AndSize(text.as_ptr(), &raw mut len);
        if start.is_null() {
            ffi::PyErr_Clear();
            return None;
        }
        Some(slice::from_raw_parts(
            start.cast(),
            usize::try_from(len).ok()?,
        ))
    }
}

/// The content of a `bytes`.
fn content_of<'a>(bytes: Borrowed<'a, '_, PyAny>) -> Option<&'a [u8]> {
    // SAFETY: as above; the content of a `bytes` never changes.
    unsafe {
        let start = ffi::PyBytes_AsString(bytes.as_ptr());
        let len = usize::try_from(ffi::PyBytes_Size(bytes.as_ptr())).ok()?;
        (!start.is_null()).then(|| slice::from_raw_parts(start.cast(), len))
    }
}

/// What the options of a call add to the identity of its decoded reply; `None` where that cannot be told.
///
/// Functions and types are told by their identity, so whoever keeps the reply keeps the options too.
pub fn variant_of<'py>(
    options: impl Iterator<Item = (Bound<'py, PyAny>, Bound<'py, PyAny>)>,
) -> Option<u64> {
    let mut variant = 0_u64;
    for (name, value) in options {
        let name = name.cast::<PyString>().ok()?.to_str().ok()?;
        if name == "keys" {
            continue; // what the client's own cache wants to know
        }
        if name == "NEVER_DECODE" {
            variant = variant.wrapping_add(0x9e37_79b9_7f4a_7c15); // whatever its value
            continue;
        }
        let mut text: SmallVec<[u8; 64]> = SmallVec::new();
        text.extend_from_slice(name.as_bytes());
        text.push(b'=');
        if let Ok(value) = value.cast_exact::<PyString>() {
            text.push(b's');
            text.extend_from_slice(value.to_str().ok()?.as_bytes());
        } else if value.is_none() {
            text.push(b'n');
        } else if let Ok(value) = value.cast_exact::<pyo3::types::PyBool>() {
            text.extend_from_slice(if value.is_true() { b"T" } else { b"F" });
        } else if let Ok(value) = value.cast_exact::<PyInt>() {
            text.push(b'i');
            text.extend_from_slice(&value.extract::<i64>().ok()?.to_le_bytes());
        } else if value.is_instance_of::<PyType>() || value.is_instance_of::<PyFunction>() {
            text.push(b'@');
            text.extend_from_slice(&(value.as_ptr() as usize).to_le_bytes());
        } else {
            return None;
        }
        // The order of options means nothing, so they are added up.
        let hash = keyheat_core::hash::KeyHasher::new(0).hash(&text);
        variant = variant.wrapping_add(hash | 1);
    }
    Some(variant)
}
