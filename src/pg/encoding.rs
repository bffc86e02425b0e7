//! Conversion from the database encoding to UTF-8 and back.

use std::ffi::{CStr, c_int};

use pgrx::prelude::*;

use super::Error;
use super::memory::with_room_for_errors;
use super::unguarded;
use super::value::{Buffer, MAX_VALUE, Value};

/// Calls `f` with the UTF-8 form of a text argument.
pub(crate) fn with_utf8<R>(text: &[u8], f: impl FnOnce(&[u8]) -> R) -> Result<R, Error> {
    match database_encoding() {
        // The server has checked it.
        UTF8 => Ok(f(text)),
        // Text of no known encoding. As convert_to() does, takes it for UTF-8 if it is valid UTF-8.
        SQL_ASCII if is_valid_utf8(text) => Ok(f(text)),
        SQL_ASCII => Err(Error::NotUtf8),
        encoding => {
            let (converted, len) = convert(text, encoding, UTF8)?.ok_or(Error::NotUtf8)?;
            Ok(f(&converted[..len]))
        }
    }
}

/// Calls `f` with text in the database encoding, which is given in UTF-8.
pub(crate) fn with_text<R>(utf8: &[u8], f: impl FnOnce(&[u8]) -> R) -> Result<R, Error> {
    Ok(match from_utf8(utf8)? {
        Some((converted, len)) => f(&converted[..len]),
        None => f(utf8),
    })
}

/// Turns the first `len` bytes, which are UTF-8, into a text value in the database encoding.
pub(crate) fn text_from_utf8<'fcx>(buffer: Buffer, len: usize) -> Result<Value<'fcx>, Error> {
    Ok(match from_utf8(&buffer[..len])? {
        Some((converted, len)) => converted.finish(len),
        None => buffer.finish(len),
    })
}

/// Converts text from UTF-8 and returns it with its length, or `None` if it is the same in the database
/// encoding.
fn from_utf8(utf8: &[u8]) -> Result<Option<(Buffer, usize)>, Error> {
    if !is_valid_utf8(utf8) {
        return Err(Error::NotText);
    }
    match database_encoding() {
        UTF8 | SQL_ASCII => Ok(None),
        encoding => Ok(Some(convert(utf8, UTF8, encoding)?.ok_or(Error::NotText)?)),
    }
}

const UTF8: c_int = pg_sys::pg_enc::PG_UTF8 as c_int;
const SQL_ASCII: c_int = pg_sys::pg_enc::PG_SQL_ASCII as c_int;

/// Returns a name or a path for a message. pgrx takes messages for UTF-8, and the server takes them for
/// text in the database encoding. Where these differ, only ASCII is the same in both.
pub(crate) fn printable(text: &[u8]) -> String {
    if database_encoding() == UTF8 {
        return String::from_utf8_lossy(text).into_owned();
    }
    let ascii = |&byte: &u8| if byte.is_ascii() { byte.into() } else { '?' };
    text.iter().map(ascii).collect()
}

fn database_encoding() -> c_int {
    unguarded::GetDatabaseEncoding()
}

/// Tells whether the bytes are UTF-8 text as the server accepts it, which has no zero byte.
fn is_valid_utf8(bytes: &[u8]) -> bool {
    // SAFETY: pointer and length are those of a slice of less than 1 GB.
    unsafe { unguarded::pg_verify_mbstr(UTF8, bytes.as_ptr().cast(), bytes.len() as c_int, true) }
}

/// Converts text and returns it with its length, or `None` if a character has no equivalent. Raises
/// no error for that, unlike the server's own `pg_do_encoding_conversion`, whose message shows the
/// character.
fn convert(text: &[u8], from: c_int, to: c_int) -> Result<Option<(Buffer, usize)>, Error> {
    // The server requires this much room, including a terminating zero, and counts it in an int.
    const GROWTH: usize = pg_sys::MAX_CONVERSION_GROWTH as usize;
    let room = (text.len() + 1) * GROWTH;
    if c_int::try_from(room).is_err() {
        return Err(Error::TooLarge);
    }
    let mut converted = Buffer::larger_than_a_value(room)?;
    let done = with_room_for_errors(|| {
        // SAFETY: no pointers.
        let conversion = unsafe { pg_sys::FindDefaultConversionProc(from, to) };
        // SAFETY: pointers and lengths are those of slices, and fit.
        (conversion != pg_sys::InvalidOid).then(|| unsafe {
            pg_sys::pg_do_encoding_conversion_buf(
                conversion,
                from,
                to,
                text.as_ptr().cast_mut(),
                text.len() as c_int,
                converted.as_mut_ptr(),
                converted.len() as c_int,
                true,
            )
        })
    });
    if done != Some(text.len() as c_int) {
        return Ok(None);
    }
    // No character of text is the zero that ends it.
    let len = CStr::from_bytes_until_nul(&converted).map_or(0, CStr::count_bytes);
    if len > MAX_VALUE {
        return Err(Error::TooLarge);
    }
    Ok(Some((converted, len)))
}
