//! Domains: whether they accept a value. Code that changes a value without the server's own conversions
//! must check that.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;

use pgrx::prelude::*;

use super::value::Value;

/// A domain, with its constraints after their first use. Must not outlive the memory context in which
/// it was made.
pub(crate) struct Domain {
    oid: pg_sys::Oid,
    constraints: Cell<*mut c_void>,
    memory: pg_sys::MemoryContext,
}

impl Domain {
    /// Returns `None` if the type is not a domain.
    pub(crate) fn of(oid: pg_sys::Oid) -> Option<Self> {
        // SAFETY: looks an oid up; the current memory context is valid.
        let (base, memory) = unsafe { (pg_sys::getBaseType(oid), pg_sys::CurrentMemoryContext) };
        (base != oid).then_some(Self {
            oid,
            constraints: Cell::new(ptr::null_mut()),
            memory,
        })
    }

    /// Raises an error if the domain, which is over text or bytea, does not accept the value.
    pub(crate) fn check(&self, value: &Value<'_>) {
        // SAFETY: text and bytea have the same layout.
        unsafe { self.check_datum(value.datum(), false) };
    }

    /// Raises an error if the domain does not accept the value.
    ///
    /// # Safety
    /// The datum must be a value of the type that the domain is over, or null.
    pub(super) unsafe fn check_datum(&self, datum: pg_sys::Datum, is_null: bool) {
        // SAFETY: the caller says so; the server keeps the constraints in memory that still exists.
        unsafe {
            let constraints = self.constraints.as_ptr();
            pg_sys::domain_check(datum, is_null, self.oid, constraints, self.memory);
        }
    }
}
