//! The settings `fernet.*` and their hooks.

use std::ffi::{CStr, CString, c_char, c_void};

use pgrx::prelude::*;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

use crate::key_source;

static KEYS: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

/// Defines the settings, and reserves their prefix so that a typing mistake is an error.
pub(crate) fn init() {
    // Secret: neither in SHOW ALL nor in pg_settings, and by name only to superusers and members
    // of pg_read_all_settings.
    let flags = GucFlags::SUPERUSER_ONLY
        | GucFlags::NO_SHOW_ALL
        | GucFlags::from_bits_retain(pg_sys::GUC_LIST_INPUT as i32);
    // SAFETY: both hooks are guarded.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"fernet.keys",
            c"Fernet keys, separated by commas, the newest first.",
            c"The first key encrypts, all of them decrypt.",
            &KEYS,
            GucContext::Suset,
            flags,
            Some(check_keys),
            Some(assign_keys),
            None,
        );
    }
    // SAFETY: the argument is a C string.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"fernet".as_ptr()) };
}

/// Calls `f` with the value of `fernet.keys`, or `None` if it is not set.
pub(crate) fn with_keys<R>(f: impl FnOnce(Option<&[u8]>) -> R) -> R {
    // SAFETY: `f` gets a borrow that it cannot keep, of a string that only a change of the setting
    // frees. `GucSetting::get` would leave a copy of the keys in memory.
    unsafe {
        let value: *const c_char = *KEYS.as_ptr();
        f((!value.is_null()).then(|| CStr::from_ptr(value).to_bytes()))
    }
}

/// Refuses a bad list, in words of our own: the server's would show the value.
#[pg_guard]
unsafe extern "C-unwind" fn check_keys(
    new_value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: the server passes a pointer to a C string, or to null where the setting has no value.
    let list = unsafe {
        if (*new_value).is_null() {
            return true;
        }
        CStr::from_ptr(*new_value).to_bytes()
    };
    let Err(refusal) = key_source::parse_setting(list) else {
        return true;
    };
    let message = CString::new(refusal.message()).unwrap_or_default();
    let hint = CString::new(refusal.hint()).unwrap_or_default();
    // SAFETY: the server reads these once the hook has returned; pstrdup'ed memory lasts that long.
    unsafe {
        pg_sys::GUC_check_errmsg_string = pg_sys::pstrdup(message.as_ptr());
        pg_sys::GUC_check_errhint_string = pg_sys::pstrdup(hint.as_ptr());
    }
    false
}

#[pg_guard]
unsafe extern "C-unwind" fn assign_keys(_new_value: *const c_char, _extra: *mut c_void) {
    key_source::forget();
}
