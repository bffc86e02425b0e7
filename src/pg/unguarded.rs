//! Functions of the server that raise no errors when called as here. pgrx's own bindings guard each call
//! against errors, which takes longer than the functions themselves.

use std::ffi::{c_char, c_int, c_void};

use pgrx::pg_sys::{Size, TimestampTz};

unsafe extern "C-unwind" {
    /// Only with `MCXT_ALLOC_NO_OOM` and `MCXT_ALLOC_HUGE`. It returns null if there is no memory.
    pub(super) fn palloc_extended(size: Size, flags: c_int) -> *mut c_void;
    /// Only with memory that `palloc` has returned.
    pub(super) fn pfree(memory: *mut c_void);
    pub(super) safe fn GetDatabaseEncoding() -> c_int;
    /// Only with `no_error`.
    pub(super) fn pg_verify_mbstr(
        encoding: c_int,
        bytes: *const c_char,
        len: c_int,
        no_error: bool,
    ) -> bool;
    pub(super) safe fn GetCurrentStatementStartTimestamp() -> TimestampTz;
}
