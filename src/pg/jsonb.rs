//! The strings of jsonb documents, and documents with other strings in their places. Documents are not
//! printed for that: a few bytes can print as gigabytes.

use std::ptr;
use std::slice;

use pgrx::pg_sys::JsonbIteratorToken as Token;
use pgrx::prelude::*;

use super::Error;
use super::value::Buffer;
use super::value_type::Change;
use crate::fernet::{Haystack, may_hold_tokens};

/// A document, in the current memory context.
pub(super) struct Jsonb(*mut pg_sys::Jsonb);

impl Jsonb {
    /// # Safety
    /// The datum must be a jsonb.
    pub(super) unsafe fn open(datum: pg_sys::Datum) -> Self {
        // SAFETY: it is.
        Self(unsafe { pg_sys::pg_detoast_datum(datum.cast_mut_ptr()) }.cast())
    }

    /// Calls `f` with each string in which a token may begin. Keys of objects are included.
    pub(super) fn read(
        &self,
        f: &mut dyn FnMut(Haystack<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // SAFETY: the document is open.
        let bytes = unsafe { pgrx::varlena_to_byte_slice(self.0.cast()) };
        // The document holds its strings unescaped.
        if !may_hold_tokens(bytes) {
            return Ok(());
        }
        self.each_part(|_, part| match string(part) {
            Some(string) if may_hold_tokens(string) => f(string.into()),
            _ => Ok(()),
        })
    }

    /// Calls `f` with each such string. Returns the new document, if there is one.
    pub(super) fn change(&self, f: &mut Change<'_>) -> Result<Option<pg_sys::Datum>, Error> {
        let mut changed = Vec::new();
        let mut number = 0;
        self.read(&mut |string| {
            let mut buffer = Buffer::new(string.len())?;
            if let Some(len) = f(string, &mut buffer)? {
                changed.try_reserve(1)?;
                changed.push((number, buffer.finish(len)));
            }
            number += 1;
            Ok(())
        })?;
        if changed.is_empty() {
            return Ok(None);
        }

        let mut changed = changed.into_iter().peekable();
        let mut number = 0;
        let mut document = Building::default();
        let mut is_scalar = false;
        self.each_part(|token, part| {
            if string(part).is_some_and(may_hold_tokens) {
                if let Some((_, new)) = changed.next_if(|(changed, _)| *changed == number) {
                    part.val.string.val = new.as_ptr().cast_mut().cast();
                    part.val.string.len = new.len() as i32;
                }
                number += 1;
            }
            // SAFETY: each start of an array or object is followed by its contents and its end. The
            // strings are in the current memory context, or in the document.
            unsafe {
                let value = match token {
                    Token::WJB_KEY | Token::WJB_VALUE | Token::WJB_ELEM => ptr::from_mut(part),
                    _ => ptr::null_mut(),
                };
                is_scalar |= token == Token::WJB_BEGIN_ARRAY && part.val.array.rawScalar;
                push(&mut document, token, value);
            }
            Ok(())
        })?;
        // SAFETY: the document is what ended last.
        unsafe {
            let document = document.result;
            if (*document).type_ == pg_sys::jbvType::jbvArray {
                (*document).val.array.rawScalar = is_scalar;
            }
            Ok(Some(pg_sys::JsonbValueToJsonb(document).into()))
        }
    }

    /// Calls `f` with all parts of the document in order, and with the kind of each.
    fn each_part(
        &self,
        mut f: impl FnMut(Token::Type, &mut pg_sys::JsonbValue) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // SAFETY: the document is open; each part is in it.
        unsafe {
            let mut parts = pg_sys::JsonbIteratorInit(&raw mut (*self.0).root);
            let mut part = pg_sys::JsonbValue::default();
            loop {
                let token = pg_sys::JsonbIteratorNext(&raw mut parts, &raw mut part, false);
                if token == Token::WJB_DONE {
                    return Ok(());
                }
                pgrx::check_for_interrupts!();
                f(token, &mut part)?;
            }
        }
    }
}

/// A document to which parts are [`push`]ed; `result` is the array or object that has ended last.
#[cfg(feature = "pg19")]
type Building = pg_sys::JsonbInState;

#[cfg(not(feature = "pg19"))]
#[derive(Default)]
struct Building {
    parts: *mut pg_sys::JsonbParseState,
    result: *mut pg_sys::JsonbValue,
}

/// # Safety
/// As `pushJsonbValue` of the server.
unsafe fn push(document: &mut Building, token: Token::Type, value: *mut pg_sys::JsonbValue) {
    // SAFETY: the caller's.
    unsafe {
        #[cfg(feature = "pg19")]
        pg_sys::pushJsonbValue(document, token, value);
        #[cfg(not(feature = "pg19"))]
        {
            document.result = pg_sys::pushJsonbValue(&raw mut document.parts, token, value);
        }
    }
}

fn string(part: &pg_sys::JsonbValue) -> Option<&[u8]> {
    // SAFETY: a part of that type has a string of that length.
    unsafe {
        (part.type_ == pg_sys::jbvType::jbvString).then(|| {
            let string = part.val.string;
            slice::from_raw_parts(string.val.cast(), string.len as usize)
        })
    }
}
