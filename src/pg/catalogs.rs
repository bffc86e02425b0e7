//! The catalogs: which extensions there are, and whether another session has changed anything.

use std::cell::Cell;
use std::ffi::{CStr, c_int};

use pgrx::prelude::*;

/// Returns the oid of an extension that the database has.
pub(crate) fn extension(name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: a C string; the result is no oid where there is no such extension.
    let oid = unsafe { pg_sys::get_extension_oid(name.as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

thread_local! {
    /// `None` until the server has been asked to report changes.
    static CHANGES: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Returns a number that changes once this process has learnt that a relation or a constraint was
/// changed. The process has learnt of every change that was committed before it got a lock on the
/// relation.
///
/// The server reports each relation to which, for instance, an index or a policy is added. It reports
/// constraints as well, since those of a domain belong to no relation. It has room for only ten
/// callbacks for relations, so this process registers one.
pub(crate) fn changes() -> u64 {
    CHANGES.get().unwrap_or_else(|| {
        let argument = pg_sys::Datum::null();
        // SAFETY: the library stays loaded, and with it the functions.
        unsafe {
            pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), argument);
            let constraints = pg_sys::SysCacheIdentifier::CONSTROID as c_int;
            pg_sys::CacheRegisterSyscacheCallback(constraints, Some(constraint_changed), argument);
        }
        CHANGES.set(Some(0));
        0
    })
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_argument: pg_sys::Datum, _relation: pg_sys::Oid) {
    count();
}

#[pg_guard]
unsafe extern "C-unwind" fn constraint_changed(
    _argument: pg_sys::Datum,
    _cache: c_int,
    _hash: u32,
) {
    count();
}

fn count() {
    CHANGES.set(CHANGES.get().map(|changes| changes.wrapping_add(1)));
}
