//! Changes of settings for a while.

use std::ffi::CStr;

use pgrx::prelude::*;

/// Calls `f` with other values of settings that every role may change.
pub(super) fn with_settings<R>(settings: &[(&CStr, &CStr)], f: impl FnOnce() -> R) -> R {
    // SAFETY: no pointers. If `f` raises an error, the end of the transaction, or of a subtransaction,
    // puts the settings back.
    let level = unsafe { pg_sys::NewGUCNestLevel() };
    for &(name, value) in settings {
        set_config(name, value, Until::Level);
    }
    let result = f();
    // SAFETY: the level begun above.
    unsafe { pg_sys::AtEOXact_GUC(true, level) };
    result
}

pub(super) enum Until {
    Commit,
    /// The end of the innermost nest level of settings.
    Level,
}

/// Changes a setting that every role may change.
pub(super) fn set_config(name: &CStr, value: &CStr, until: Until) {
    use pg_sys::{GucAction, GucContext, GucSource};
    let action = match until {
        Until::Commit => GucAction::GUC_ACTION_LOCAL,
        Until::Level => GucAction::GUC_ACTION_SAVE,
    };
    // SAFETY: name and value are C strings, which the server copies.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            GucContext::PGC_USERSET,
            GucSource::PGC_S_SESSION,
            action,
            true,
            0,
            false,
        );
    }
}
