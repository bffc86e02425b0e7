//! Memory contexts: memory of the server's that is freed all at once.

use std::ffi::CStr;

use pgrx::prelude::*;

/// Makes a memory context, which lasts until it or its parent is deleted.
///
/// # Safety
/// The parent must be a memory context.
pub(super) unsafe fn memory_context(
    parent: pg_sys::MemoryContext,
    name: &'static CStr,
) -> pg_sys::MemoryContext {
    // SAFETY: the caller says that the parent is one; the server keeps the pointer to the name.
    unsafe {
        pg_sys::AllocSetContextCreateInternal(
            parent,
            name.as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        )
    }
}

/// Calls `f` in a memory context of its own, which is deleted afterwards. What `f` returns must not
/// refer to that memory.
pub(super) fn with_memory_of_its_own<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: whoever catches an error of the server sets the context back.
    unsafe {
        let caller = pg_sys::CurrentMemoryContext;
        let own = memory_context(caller, c"pg_fernet value");
        pg_sys::MemoryContextSwitchTo(own);
        let result = f();
        pg_sys::MemoryContextSwitchTo(caller);
        pg_sys::MemoryContextDelete(own);
        result
    }
}
