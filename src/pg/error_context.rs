//! The server's list of callbacks that add their context to each message.

use std::ffi::c_void;

use pgrx::prelude::*;

/// Calls `f`. For each message that the server makes meanwhile, whether it is sent or not, calls
/// `callback` with `arg`.
pub(super) fn with_error_context<R>(
    callback: Option<unsafe extern "C-unwind" fn(*mut c_void)>,
    arg: *mut c_void,
    f: impl FnOnce() -> R,
) -> R {
    /// Removes the callback again, even if `f` raises an error.
    struct Reset(*mut pg_sys::ErrorContextCallback);
    impl Drop for Reset {
        fn drop(&mut self) {
            // SAFETY: a global of this process, and what it was before.
            unsafe { pg_sys::error_context_stack = self.0 };
        }
    }

    // SAFETY: a global of this process. The context lasts as long as it is in place.
    unsafe {
        let reset = Reset(pg_sys::error_context_stack);
        let mut context = pg_sys::ErrorContextCallback {
            previous: reset.0,
            callback,
            arg,
        };
        pg_sys::error_context_stack = &raw mut context;
        f()
    }
}

/// Calls `f`. If it raises an error, leaves out what COPY would add to the error: the line that it
/// has read, which has the plaintext in it. The error must not be delayed.
pub(crate) fn without_line_of_copy<R, E>(f: impl FnOnce() -> Result<R, E>) -> Result<R, E> {
    unsafe extern "C-unwind" {
        // The function has another address in pgrx's bindings.
        fn CopyFromErrorCallback(arg: *mut c_void);
    }
    let line = CopyFromErrorCallback as *const () as usize;
    // SAFETY: the list is the server's, from the innermost caller to the outermost. All of them exist
    // for as long as the function runs. After an error, whoever catches it resets the list; if that is
    // one of them, its later errors lack the line, too.
    unsafe {
        let mut link = &raw mut pg_sys::error_context_stack;
        while let Some(entry) = (*link).as_mut()
            && entry.callback.map(|callback| callback as usize) != Some(line)
        {
            link = &raw mut entry.previous;
        }
        let entry = *link;
        if let Some(copy) = entry.as_ref() {
            *link = copy.previous;
        }
        let result = f()?;
        *link = entry;
        Ok(result)
    }
}
