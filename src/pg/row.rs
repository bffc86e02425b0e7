//! Versions of rows: their places, their writers and their values.

use std::fmt;

use pgrx::prelude::*;

/// The place of a row in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tid {
    pub(crate) block: u32,
    /// Counted from 1. The end of a range may have 0.
    pub(crate) line: u16,
}

impl Tid {
    /// Returns the place before all rows of a block.
    pub(crate) fn start_of(block: u32) -> Self {
        Self { block, line: 0 }
    }

    /// Returns the next place that a row of the same block may have.
    pub(crate) fn next(self) -> Self {
        Self {
            line: self.line + 1, // a block has at most 291 rows, or 1,169 if it has 32 kB
            ..self
        }
    }

    pub(crate) fn to_item_pointer(self) -> pg_sys::ItemPointerData {
        pg_sys::ItemPointerData {
            ip_blkid: pg_sys::BlockIdData {
                bi_hi: (self.block >> 16) as u16,
                bi_lo: self.block as u16,
            },
            ip_posid: self.line,
        }
    }
}

impl fmt::Display for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({},{})", self.block, self.line)
    }
}

impl From<pg_sys::ItemPointerData> for Tid {
    fn from(tid: pg_sys::ItemPointerData) -> Self {
        Self {
            block: u32::from(tid.ip_blkid.bi_hi) << 16 | u32::from(tid.ip_blkid.bi_lo),
            line: tid.ip_posid,
        }
    }
}

/// The number of the transaction that wrote a row version, as it is stored there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Xid(pub(crate) u32);

impl From<pg_sys::Datum> for Xid {
    fn from(datum: pg_sys::Datum) -> Self {
        // The server sign-extends a value of four bytes, as if it were an integer: a number past
        // 2^31 has an upper half full of ones. pgrx's own conversion refuses that.
        Self(datum.value() as u32)
    }
}

/// Calls `f` with the bytes of a text or bytea value, unless it is null.
///
/// # Safety
/// The datum must be such a value, or null.
pub(crate) unsafe fn with_bytes_of<R>(
    datum: pg_sys::Datum,
    is_null: bool,
    f: impl FnOnce(Option<&[u8]>) -> R,
) -> R {
    if is_null {
        return f(None);
    }
    // SAFETY: the caller says so. If the value had to be copied to be read, the copy is freed after
    // `f` has seen it.
    unsafe {
        let stored: *mut pg_sys::varlena = datum.cast_mut_ptr();
        // Calling the server only to learn that there is nothing to do would cost as much as half
        // of a decryption.
        if pgrx::varatt_is_4b_u(stored)
            || pgrx::varatt_is_1b(stored) && !pgrx::varatt_is_1b_e(stored)
        {
            return f(Some(pgrx::varlena_to_byte_slice(stored)));
        }
        let read = pg_sys::pg_detoast_datum_packed(stored);
        let result = f(Some(pgrx::varlena_to_byte_slice(read)));
        if read != stored {
            pg_sys::pfree(read.cast());
        }
        result
    }
}
