//! Text and bytea, in and out. Results are written directly to the memory that PostgreSQL receives.

use std::ffi::c_int;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;
use std::time::{SystemTime, UNIX_EPOCH};

use pgrx::callconv::{Arg, ArgAbi, BoxRet, FcInfo};
use pgrx::prelude::*;
use zeroize::zeroize_bytes;

use super::memory::with_room_for_errors;
use super::{Error, random, unguarded};
use crate::fernet::{Keyring, sealed_len};

/// The maximum number of bytes in a value: with its header, it must fit into one `palloc`
/// allocation.
pub(super) const MAX_VALUE: usize = 0x3fff_ffff - pg_sys::VARHDRSZ;

/// A text or bytea value: an argument, or a finished result.
pub(crate) struct Value<'fcx> {
    datum: pg_sys::Datum,
    bytes: &'fcx [u8],
}

impl Value<'_> {
    /// Makes a token under the first key, stamped with the time of the call.
    pub(crate) fn token_of(plaintext: &[u8], keyring: &Keyring) -> Result<Self, Error> {
        let mut buffer = Buffer::new(sealed_len(plaintext.len()).ok_or(Error::TooLarge)?)?;
        let len = seal(plaintext, keyring, &mut buffer)?;
        Ok(buffer.finish(len))
    }

    pub(crate) fn datum(&self) -> pg_sys::Datum {
        self.datum
    }
}

impl Deref for Value<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

// Text and bytea have one layout, and `sql/pg_fernet.sql` declares every function itself.
impl_sql_translatable!(Value<'_>, "bytea");

impl FromDatum for Value<'_> {
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _: pg_sys::Oid,
    ) -> Option<Self> {
        if is_null {
            return None;
        }
        // SAFETY: the caller's datum is a varlena that lives as long as the call; so does a
        // detoasted copy, which is in the memory context of the call.
        unsafe {
            let mut varlena = datum.cast_mut_ptr();
            // Most values are neither compressed nor out of line: the server would return them
            // unchanged.
            if pgrx::varatt_is_4b_c(varlena) || pgrx::varatt_is_1b_e(varlena) {
                varlena = with_room_for_errors(|| pg_sys::pg_detoast_datum_packed(varlena));
            }
            let bytes = pgrx::varlena_to_byte_slice(varlena);
            Some(Self { datum, bytes })
        }
    }
}

// SAFETY: as for FromDatum.
unsafe impl<'fcx> ArgAbi<'fcx> for Value<'fcx> {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: the argument is a text or bytea.
        let value = unsafe { arg.unbox_arg_using_from_datum() };
        // A function that is not STRICT takes an `Option`.
        value.expect("the argument is not null")
    }
}

// SAFETY: the datum is an argument, or a varlena in the function call's memory context.
unsafe impl BoxRet for Value<'_> {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        // SAFETY: see above.
        unsafe { fcinfo.return_raw_datum(self.datum) }
    }
}

/// Memory for a text or bytea value that is being made. It is filled with zeroes at first.
pub(crate) struct Buffer {
    varlena: NonNull<pg_sys::varlena>,
    capacity: usize,
}

impl Buffer {
    /// Allocates memory for a value of up to `capacity` bytes.
    pub(crate) fn new(capacity: usize) -> Result<Self, Error> {
        if capacity > MAX_VALUE {
            return Err(Error::TooLarge);
        }
        Self::larger_than_a_value(capacity)
    }

    /// Allocates memory for up to `capacity` bytes; the value may turn out shorter.
    pub(super) fn larger_than_a_value(capacity: usize) -> Result<Self, Error> {
        use pg_sys::{MCXT_ALLOC_HUGE, MCXT_ALLOC_NO_OOM, MCXT_ALLOC_ZERO};
        let flags = (MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO | MCXT_ALLOC_NO_OOM) as c_int;
        // SAFETY: the server returns memory, or null where there is none.
        let memory = unsafe { unguarded::palloc_extended(capacity + pg_sys::VARHDRSZ, flags) };
        let varlena = NonNull::new(memory.cast()).ok_or(Error::OutOfMemory)?;
        Ok(Self { varlena, capacity })
    }

    /// Makes the first `len` bytes the value.
    pub(crate) fn finish<'fcx>(self, len: usize) -> Value<'fcx> {
        // SAFETY: the memory lives as long as the call.
        let value = unsafe { self.value_for(len) };
        mem::forget(self);
        value
    }

    /// # Safety
    /// The memory must live as long as `'a`, and nothing else may write to it.
    unsafe fn value_for<'a>(&self, len: usize) -> Value<'a> {
        assert!(len <= self.capacity && len <= MAX_VALUE);
        let varlena = self.varlena.as_ptr();
        // SAFETY: the memory holds the header and `len` bytes.
        unsafe {
            pgrx::set_varsize_4b(varlena, (len + pg_sys::VARHDRSZ) as i32);
            Value {
                datum: pg_sys::Datum::from(varlena),
                bytes: slice::from_raw_parts(pgrx::vardata_4b(varlena).cast(), len),
            }
        }
    }
}

/// Writes a token to a buffer of at least its length, and returns that length.
fn seal(plaintext: &[u8], keyring: &Keyring, buffer: &mut [u8]) -> Result<usize, Error> {
    // A token has no other way to show a clock before 1970.
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Ok(keyring.seal(plaintext, now.as_secs(), &random::iv()?, buffer))
}

/// Text or bytea values that are kept for later, one after the other. They are not wiped, since
/// they are about to be written to a table.
#[derive(Default)]
pub(crate) struct Values {
    /// Each value in the server's layout, aligned as its header must be.
    words: Vec<u32>,
}

impl Values {
    /// Adds a value of up to `capacity` bytes, if `make` makes one and returns its length. Returns
    /// the index for [`get`](Self::get).
    pub(crate) fn push(
        &mut self,
        capacity: usize,
        make: impl FnOnce(&mut [u8]) -> Result<Option<usize>, Error>,
    ) -> Result<Option<usize>, Error> {
        const HEADER: usize = pg_sys::VARHDRSZ / size_of::<u32>();
        if capacity > MAX_VALUE {
            return Err(Error::TooLarge);
        }
        let start = self.words.len();
        let words_of = |bytes: usize| HEADER + bytes.div_ceil(size_of::<u32>());
        // Growing by doubling would take too much memory for a single large value.
        if capacity < 1 << 20 {
            self.words.try_reserve(words_of(capacity))?;
        } else {
            self.words.try_reserve_exact(words_of(capacity))?;
        }
        self.words.resize(start + words_of(capacity), 0);
        let value = self.words[start..].as_mut_ptr();
        // SAFETY: after the header there is room for so many bytes.
        let bytes = unsafe { slice::from_raw_parts_mut(value.add(HEADER).cast(), capacity) };
        let made = make(bytes);
        let Ok(Some(len)) = made else {
            self.words.truncate(start);
            return made;
        };
        assert!(len <= capacity);
        // SAFETY: the memory begins with the header.
        unsafe { pgrx::set_varsize_4b(value.cast(), (len + pg_sys::VARHDRSZ) as i32) };
        self.words.truncate(start + words_of(len));
        Ok(Some(start))
    }

    /// Adds a copy of a value.
    pub(crate) fn copy(&mut self, value: &[u8]) -> Result<Option<usize>, Error> {
        self.push(value.len(), |room| {
            room.copy_from_slice(value);
            Ok(Some(value.len()))
        })
    }

    /// Adds a token, as [`Value::token_of`] makes it.
    pub(crate) fn token_of(
        &mut self,
        plaintext: &[u8],
        keyring: &Keyring,
    ) -> Result<Option<usize>, Error> {
        let len = sealed_len(plaintext.len()).ok_or(Error::TooLarge)?;
        self.push(len, |room| seal(plaintext, keyring, room).map(Some))
    }

    /// Returns a value, by the index that [`push`](Self::push) has returned.
    pub(crate) fn get(&self, start: usize) -> Value<'_> {
        let varlena = self.words[start..].as_ptr().cast::<pg_sys::varlena>();
        Value {
            datum: pg_sys::Datum::from(varlena.cast_mut()),
            // SAFETY: a value begins there.
            bytes: unsafe { pgrx::varlena_to_byte_slice(varlena) },
        }
    }

    /// Returns how many bytes the values have.
    pub(crate) fn len(&self) -> usize {
        self.words.len() * size_of::<u32>()
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the memory holds the header and `capacity` initialised bytes.
        unsafe {
            slice::from_raw_parts(
                pgrx::vardata_4b(self.varlena.as_ptr()).cast(),
                self.capacity,
            )
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe {
            let data = pgrx::vardata_4b(self.varlena.as_ptr()).cast::<u8>();
            slice::from_raw_parts_mut(data.cast_mut(), self.capacity)
        }
    }
}

impl Drop for Buffer {
    /// Wipes and frees a buffer that did not become a result: it may hold plaintext.
    fn drop(&mut self) {
        zeroize_bytes(self);
        // SAFETY: the memory came from the server, and nothing refers to it any more.
        unsafe { unguarded::pfree(self.varlena.as_ptr().cast()) };
    }
}
