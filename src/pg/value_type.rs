//! The types whose values can hold tokens, and the places in such values where tokens may be.

use std::ffi::CStr;

use pgrx::prelude::*;

use super::array::Array;
use super::jsonb::Jsonb;
use super::memory_context::with_memory_of_its_own;
use super::row::with_bytes_of;
use super::value::{Buffer, Value, Values};
use super::{Error, catalogs, encoding};
use crate::fernet::{Haystack, may_hold_tokens};

/// A type whose values can hold tokens.
pub(crate) struct ValueType {
    /// The type, or the type that a domain is over.
    pub(crate) oid: pg_sys::Oid,
    form: Form,
}

/// Where in a value there may be tokens. What is searched on its own is called a part below.
enum Form {
    /// In its bytes: text, bytea, and types with the same layout.
    Bytes,
    /// In its bytes, which as a whole are never a token.
    Document,
    /// In each string.
    Jsonb,
    /// In the text that the type's output function prints, from which the input function makes the
    /// value. As a whole it is never a token.
    Printed {
        output: pg_sys::Oid,
        input: pg_sys::Oid,
        input_argument: pg_sys::Oid,
    },
    /// In each element.
    Array(Box<ValueType>),
}

/// What a value holds as a whole, if that is a plaintext or its token.
#[derive(Clone, Copy)]
pub(crate) enum Plaintext {
    Text,
    /// Text that may be followed by blanks that do not count.
    PaddedText,
    Bytes,
}

impl Plaintext {
    /// Calls `f` with what is encrypted of a value, in the form that the functions on single values
    /// encrypt: text as UTF-8.
    pub(crate) fn of_value<R>(self, value: &[u8], f: impl FnOnce(&[u8]) -> R) -> Result<R, Error> {
        match self {
            Self::Bytes => Ok(f(value)),
            Self::Text => encoding::with_utf8(value, f),
            Self::PaddedText => encoding::with_utf8(without_blanks(value), f),
        }
    }

    /// Calls `f` with the value that was encrypted. The server adds the blanks that it may lack.
    pub(crate) fn to_value<R>(
        self,
        plaintext: &[u8],
        f: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, Error> {
        match self {
            Self::Bytes => Ok(f(plaintext)),
            Self::Text | Self::PaddedText => encoding::with_text(plaintext, f),
        }
    }
}

/// Returns text without its trailing blanks.
fn without_blanks(text: &[u8]) -> &[u8] {
    let len = text.iter().rposition(|&byte| byte != b' ');
    &text[..len.map_or(0, |last| last + 1)]
}

/// Gets a part of a value, and as much room, to which it may write a replacement and return its
/// length.
pub(super) type Change<'f> =
    dyn FnMut(Haystack<'_>, &mut [u8]) -> Result<Option<usize>, Error> + 'f;

impl ValueType {
    /// Returns `None` if values of the type cannot hold tokens.
    pub(crate) fn of(oid: pg_sys::Oid) -> Option<Self> {
        // SAFETY: look oids up; a type that is not an array has no element type.
        let (oid, element) = unsafe {
            let oid = pg_sys::getBaseType(oid);
            (oid, pg_sys::get_element_type(oid))
        };
        let form = match oid {
            pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID => Form::Bytes,
            pg_sys::BYTEAOID | pg_sys::XMLOID => Form::Bytes,
            pg_sys::JSONOID => Form::Document,
            pg_sys::JSONBOID => Form::Jsonb,
            _ if element != pg_sys::InvalidOid => Form::Array(Box::new(Self::of(element)?)),
            _ if is_citext(oid) => Form::Bytes,
            _ if is_hstore(oid) => Form::printed(oid),
            _ => return None,
        };
        Some(Self { oid, form })
    }

    pub(crate) fn json() -> Self {
        Self {
            oid: pg_sys::JSONOID,
            form: Form::Document,
        }
    }

    pub(crate) fn jsonb() -> Self {
        Self {
            oid: pg_sys::JSONBOID,
            form: Form::Jsonb,
        }
    }

    /// Returns the value as a plaintext, or `None` if a token could not take its place: tokens are
    /// then only within values.
    pub(crate) fn plaintext(&self) -> Option<Plaintext> {
        match (self.oid, &self.form) {
            (pg_sys::XMLOID, _) => None,
            (pg_sys::BYTEAOID, _) => Some(Plaintext::Bytes),
            (pg_sys::BPCHAROID, _) => Some(Plaintext::PaddedText),
            (_, Form::Bytes) => Some(Plaintext::Text),
            _ => None,
        }
    }

    /// Calls `f` with each part of a value.
    ///
    /// # Safety
    /// The datum must be a value of the type.
    pub(super) unsafe fn read(
        &self,
        datum: pg_sys::Datum,
        f: &mut dyn FnMut(Haystack<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // SAFETY: the value is of the type.
        unsafe {
            match &self.form {
                Form::Bytes | Form::Document => with_bytes_of(datum, false, |bytes| {
                    let haystack = bytes.and_then(|bytes| self.form.haystack(bytes));
                    haystack.map_or(Ok(()), f)
                }),
                Form::Jsonb => Jsonb::open(datum).read(f),
                Form::Printed { output, .. } => match print(*output, datum) {
                    Some(text) => f(Haystack::document(text)),
                    None => Ok(()),
                },
                Form::Array(element_type) => Array::open(datum)
                    .elements()
                    .try_for_each(|element| element_type.read(*element, f)),
            }
        }
    }

    /// Calls `f` with each part of a value. Returns the new value, if there is one, in the current memory
    /// context.
    ///
    /// # Safety
    /// The datum must be a value of the type.
    pub(super) unsafe fn change(
        &self,
        datum: pg_sys::Datum,
        f: &mut Change<'_>,
    ) -> Result<Option<pg_sys::Datum>, Error> {
        // SAFETY: the value is of the type.
        unsafe {
            match &self.form {
                Form::Bytes | Form::Document => with_bytes_of(datum, false, |bytes| {
                    let Some(haystack) = bytes.and_then(|bytes| self.form.haystack(bytes)) else {
                        return Ok(None);
                    };
                    let mut buffer = Buffer::new(haystack.len())?;
                    let len = f(haystack, &mut buffer)?;
                    Ok(len.map(|len| buffer.finish(len).datum()))
                }),
                Form::Jsonb => Jsonb::open(datum).change(f),
                Form::Printed {
                    output,
                    input,
                    input_argument,
                } => {
                    let Some(text) = print(*output, datum) else {
                        return Ok(None);
                    };
                    // Includes the zero that ends a C string.
                    let mut buffer = Buffer::larger_than_a_value(text.len() + 1)?;
                    let haystack = Haystack::document(text);
                    let Some(len) = f(haystack, &mut buffer[..text.len()])? else {
                        return Ok(None);
                    };
                    buffer[len] = 0;
                    let text = buffer.as_mut_ptr().cast();
                    let value = pg_sys::OidInputFunctionCall(*input, text, *input_argument, -1);
                    Ok(Some(value))
                }
                Form::Array(element_type) => {
                    let mut array = Array::open(datum);
                    let domain = array.domain();
                    let mut is_changed = false;
                    for element in array.elements() {
                        if let Some(new) = element_type.change(*element, f)? {
                            if let Some(domain) = &domain {
                                domain.check_datum(new, false);
                            }
                            *element = new;
                            is_changed = true;
                        }
                    }
                    Ok(is_changed.then(|| array.close()))
                }
            }
        }
    }
}

impl Form {
    /// Returns the bytes of a value, unless they hold no token: most documents hold none, and need not
    /// be copied to be scanned.
    fn haystack<'v>(&self, bytes: &'v [u8]) -> Option<Haystack<'v>> {
        match self {
            Self::Bytes => Some(bytes.into()),
            _ => may_hold_tokens(bytes).then(|| Haystack::document(bytes)),
        }
    }

    /// Returns the form of a type whose values are printed. Their form in memory, too, has tokens
    /// unescaped.
    fn printed(oid: pg_sys::Oid) -> Self {
        let mut functions = [pg_sys::InvalidOid; 3];
        let [output, input, input_argument] = &mut functions;
        let mut is_varlena = false;
        // SAFETY: there is such a type, and it is complete.
        unsafe {
            pg_sys::getTypeOutputInfo(oid, output, &raw mut is_varlena);
            pg_sys::getTypeInputInfo(oid, input, input_argument);
        }
        let [output, input, input_argument] = functions;
        Self::Printed {
            output,
            input,
            input_argument,
        }
    }
}

/// Prints a value, unless its form in memory shows that it holds no token: strings in that are
/// unescaped.
///
/// # Safety
/// The function must be the output function of the value's type, which must be a varlena. The
/// result is in the current memory context.
unsafe fn print<'a>(output: pg_sys::Oid, datum: pg_sys::Datum) -> Option<&'a [u8]> {
    // SAFETY: the function takes the value; what it returns is a C string.
    unsafe {
        let value = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
        may_hold_tokens(pgrx::varlena_to_byte_slice(value)).then(|| {
            let text = pg_sys::OidOutputFunctionCall(output, value.into());
            CStr::from_ptr(text).to_bytes()
        })
    }
}

/// A value of a row, in which there may be tokens.
pub(crate) struct Stored<'v> {
    datum: pg_sys::Datum,
    value_type: &'v ValueType,
}

impl<'v> Stored<'v> {
    /// Returns `None` for a null.
    ///
    /// # Safety
    /// The datum must be a value of the type, or null, and last as long as `'v`.
    pub(super) unsafe fn new(
        (datum, is_null): (pg_sys::Datum, bool),
        value_type: &'v ValueType,
    ) -> Option<Self> {
        (!is_null).then_some(Self { datum, value_type })
    }

    /// Tells whether values of this type hold all sorts of things, so that one without a token is no
    /// fault.
    pub(crate) fn is_document(&self) -> bool {
        !matches!(self.value_type.form, Form::Bytes)
    }

    /// Returns the value as a plaintext, or as its token: see [`ValueType::plaintext`].
    pub(crate) fn plaintext(&self) -> Option<Plaintext> {
        self.value_type.plaintext()
    }

    /// Calls `f` with each part of the value.
    pub(crate) fn read(
        &self,
        mut f: impl FnMut(Haystack<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // SAFETY: the value is of the type.
        let mut read = || unsafe { self.value_type.read(self.datum, &mut f) };
        match self.value_type.form {
            Form::Bytes | Form::Document => read(),
            _ => with_memory_of_its_own(read),
        }
    }

    /// Calls `f` with each part of the value, and with as much room, to which it may write a replacement
    /// and return its length. Keeps the new value, if there is one, and returns its index in `values`.
    pub(crate) fn change(
        &self,
        values: &mut Values,
        mut f: impl FnMut(Haystack<'_>, &mut [u8]) -> Result<Option<usize>, Error>,
    ) -> Result<Option<usize>, Error> {
        if let Form::Bytes = self.value_type.form {
            // Nearly all columns have such a type: `f` writes directly to where the value is kept.
            let keep = |bytes: Option<&[u8]>| {
                let bytes = bytes.unwrap_or_default();
                values.push(bytes.len(), |room| f(bytes.into(), room))
            };
            // SAFETY: the value is of the type.
            return unsafe { with_bytes_of(self.datum, false, keep) };
        }
        with_memory_of_its_own(|| {
            // SAFETY: the value is of the type; of all these types, values are varlenas.
            let changed = unsafe {
                let changed = self.value_type.change(self.datum, &mut f)?;
                changed.and_then(|datum| Value::from_datum(datum, false))
            };
            let Some(value) = changed else {
                return Ok(None);
            };
            values.copy(&value)
        })
    }
}

/// Tells whether a type is that of the extension citext. The extension's owner can add other types
/// to it, but only a superuser can declare that a type is stored as text is.
fn is_citext(oid: pg_sys::Oid) -> bool {
    // SAFETY: looks oids up.
    is_of_extension(c"citext", oid) && unsafe { pg_sys::IsBinaryCoercible(oid, pg_sys::TEXTOID) }
}

/// Tells whether a type is that of the extension hstore. The extension's owner can add other types to
/// it; what those print may depend on settings, and may be read as something else.
fn is_hstore(oid: pg_sys::Oid) -> bool {
    if !is_of_extension(c"hstore", oid) {
        return false;
    }
    // SAFETY: look an oid up; the result is a C string.
    unsafe {
        let qualified = pg_sys::FORMAT_TYPE_FORCE_QUALIFY as u16;
        let name = CStr::from_ptr(pg_sys::format_type_extended(oid, -1, qualified)).to_bytes();
        // quote_all_identifiers adds quotes.
        (name.ends_with(b".hstore") || name.ends_with(b".\"hstore\""))
            && pg_sys::get_typlen(oid) == -1
    }
}

fn is_of_extension(name: &CStr, oid: pg_sys::Oid) -> bool {
    // SAFETY: looks oids up.
    let owner = |oid| unsafe { pg_sys::getExtensionOfObject(pg_sys::TypeRelationId, oid) };
    catalogs::extension(name).is_some_and(|extension| owner(oid) == extension)
}
