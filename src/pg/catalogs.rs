//! The catalogs: whether somebody has changed them.

use std::cell::Cell;
use std::ffi::c_int;

use pgrx::prelude::*;

thread_local! {
    /// `None` until the server has been asked to tell of changes.
    static CHANGES: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Returns a number that is another one once this process has learnt that somebody has changed a relation
/// or a constraint. It has learnt what was committed before it got a lock on the relation.
///
/// The server tells of each relation to which, say, an index or a policy is added; and of constraints, since
/// those of a domain are of no relation. It has room for ten who want to be told of relations, so this asks
/// once for the whole process.
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
