//! Changes of the server's settings, for a while or in another process.

use std::ffi::CStr;
use std::slice;

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

/// Writes down, for [`restore`], what the session has set, and its role: C strings, names and values by turns,
/// and an empty one.
///
/// What the configuration says, a new session reads there itself. What concerns one transaction, and the
/// encoding of the client, is left out.
pub(super) fn of_session(is_private: impl Fn(&CStr) -> bool) -> Vec<u8> {
    use pg_sys::{GucContext, GucSource};
    let mut settings = Vec::new();
    let mut add = |name: &CStr, value: &CStr| {
        settings.extend_from_slice(name.to_bytes_with_nul());
        settings.extend_from_slice(value.to_bytes_with_nul());
    };
    // SAFETY: all settings, each with a name. A value lasts until the next one is asked for.
    unsafe {
        for &setting in all() {
            let (setting, name) = (&*setting, CStr::from_ptr((*setting).name));
            let may_be_set = matches!(
                setting.context,
                GucContext::PGC_SUSET | GucContext::PGC_USERSET
            );
            // RESET ALL leaves transactions alone, too, and roles, which are below.
            let is_of_session = setting.source >= GucSource::PGC_S_CLIENT
                && setting.flags as u32 & pg_sys::GUC_NO_RESET_ALL == 0;
            if may_be_set && is_of_session && name != c"client_encoding" && !is_private(name) {
                let value = pg_sys::GetConfigOption(setting.name, true, false);
                if !value.is_null() {
                    add(name, CStr::from_ptr(value));
                }
            }
        }
        let (login, session, role) = (
            pg_sys::GetAuthenticatedUserId(),
            pg_sys::GetSessionUserId(),
            pg_sys::GetOuterUserId(),
        );
        // In this order.
        if session != login {
            add(c"session_authorization", name_of_role(session));
        }
        if role != session {
            add(c"role", name_of_role(role));
        }
    }
    settings.push(0);
    settings
}

/// Sets what [`of_session`] has written down, of which `next` returns the strings one by one.
pub(super) fn restore<'a>(mut next: impl FnMut() -> &'a CStr) {
    use pg_sys::{GucAction, GucContext, GucSource};
    loop {
        let name = next();
        if name.is_empty() {
            return;
        }
        // SAFETY: C strings, which the server copies. Whoever has set it was allowed to.
        unsafe {
            pg_sys::set_config_option(
                name.as_ptr(),
                next().as_ptr(),
                GucContext::PGC_SUSET,
                GucSource::PGC_S_SESSION,
                GucAction::GUC_ACTION_SET,
                true,
                0,
                false,
            );
        }
    }
}

/// Returns all settings.
fn all() -> &'static [*mut pg_sys::config_generic] {
    // SAFETY: the server has an array of that many, which is there until a setting is defined.
    #[cfg(feature = "pg15")]
    let (settings, count) = unsafe { (pg_sys::get_guc_variables(), pg_sys::GetNumConfigOptions()) };
    #[cfg(not(feature = "pg15"))]
    let (settings, count) = {
        let mut count = 0;
        // SAFETY: the server makes such an array, in memory that lasts as long as the statement.
        (unsafe { pg_sys::get_guc_variables(&raw mut count) }, count)
    };
    // SAFETY: see above.
    unsafe { slice::from_raw_parts(settings, count as usize) }
}

/// Returns the name of a role, in memory that lasts as long as the transaction.
fn name_of_role(role: pg_sys::Oid) -> &'static CStr {
    // SAFETY: a C string; without such a role, an error is raised.
    unsafe { CStr::from_ptr(pg_sys::GetUserNameFromId(role, false)) }
}
