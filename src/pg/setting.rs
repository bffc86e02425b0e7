//! Settings of our own: strings that are checked when they are set.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};
use zeroize::Zeroizing;

use super::memory::with_room_for_errors;
use super::report::Report;
use super::{guc, server};

pub(crate) type Stored = GucSetting<Option<CString>>;

/// A list, whose elements SET takes one by one.
pub(crate) const LIST: GucFlags = GucFlags::from_bits_retain(pg_sys::GUC_LIST_INPUT as i32);
/// Shown neither by SHOW ALL nor in pg_settings. Only superusers and members of
/// pg_read_all_settings can read it by name.
pub(crate) const SECRET: GucFlags = GucFlags::SUPERUSER_ONLY.union(GucFlags::NO_SHOW_ALL);

pub(crate) trait Setting {
    const NAME: &'static CStr;
    const SUMMARY: &'static CStr;
    const DETAILS: &'static CStr;
    /// Who may set it.
    const CONTEXT: GucContext;
    const FLAGS: GucFlags;

    /// Where its value is.
    const STORED: &'static Stored;
    /// Called when it is set. For a value in a configuration file, also called when that file is
    /// read again.
    const ASSIGNED: fn();

    /// Checks a value before it is set.
    ///
    /// # Errors
    /// If whoever sets the value would get an error, the value is refused. Elsewhere the error would be
    /// only a warning, and the server would go on with the previous value. So the new value is kept
    /// there, and whoever uses it must refuse it.
    fn check(_value: &[u8], _in_configuration: bool) -> Result<(), Report> {
        Ok(())
    }
}

thread_local! {
    /// Whether settings are being defined, with the values that they were given before.
    static IS_DEFINING: Cell<bool> = const { Cell::new(false) };
}

pub(crate) fn define<S: Setting>() {
    let before = undefined_value::<S>();
    IS_DEFINING.set(true);
    // SAFETY: the hooks are guarded.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            S::NAME,
            S::SUMMARY,
            S::DETAILS,
            S::STORED,
            S::CONTEXT,
            S::FLAGS,
            Some(check::<S>),
            Some(assign::<S>),
            None,
        );
    }
    // Where setting a value would have been refused, the server only warns now, and drops the
    // value.
    if before.is_some_and(|before| with_value::<S, _>(|value| value != Some(&before[..]))) {
        // So that workers know, and that neither a rollback nor a reload undoes it.
        // SAFETY: name and value are C strings, which the server copies.
        unsafe {
            pg_sys::set_config_option(
                S::NAME.as_ptr(),
                DROPPED.as_ptr(),
                pg_sys::GucContext::PGC_POSTMASTER,
                pg_sys::GucSource::PGC_S_OVERRIDE,
                pg_sys::GucAction::GUC_ACTION_SET,
                true,
                0,
                false,
            );
        }
    }
    IS_DEFINING.set(false);
}

/// The value that a setting gets if it was set before it was defined, and the server has dropped
/// that value.
pub(crate) const DROPPED: &CStr = c"(dropped)";

/// Refuses to define settings if the server would then drop their earlier values: it accepts no
/// values during a parallel operation.
pub(crate) fn refuse_in_parallel_operation<S: Setting>() {
    // SAFETY: no arguments, no side effects.
    if unsafe { pg_sys::IsInParallelMode() } && undefined_value::<S>().is_some() {
        let name = S::NAME.to_string_lossy();
        let report = Report::new(
            PgSqlErrorCode::ERRCODE_INVALID_TRANSACTION_STATE,
            format!("cannot load pg_fernet during a parallel operation, since {name} is set"),
            "Add pg_fernet to shared_preload_libraries and restart the server, or call \
             fernet_generate_key() first in the session.",
        );
        ErrorReport::from(report).report(PgLogLevel::ERROR);
    }
}

/// Returns the value that was given to a setting that is not defined yet.
fn undefined_value<S: Setting>() -> Option<Zeroizing<Vec<u8>>> {
    // SAFETY: a C string; the result is null, or one that lasts until the setting changes.
    #[cfg(feature = "pg15")]
    let value = unsafe { bytes(pg_sys::GetConfigOption(S::NAME.as_ptr(), true, false)) };
    // Later servers show a setting without a value as empty.
    // SAFETY: the same, of a placeholder, which is a string.
    #[cfg(not(feature = "pg15"))]
    let value = unsafe {
        let setting = pg_sys::find_option(S::NAME.as_ptr(), false, true, 0);
        #[cfg(feature = "pg19")]
        let setting = setting
            .as_ref()
            .map(|setting| &setting.__bindgen_anon_1._string);
        #[cfg(not(feature = "pg19"))]
        let setting = setting.cast::<pg_sys::config_string>().as_ref();
        setting.and_then(|setting| bytes(*setting.variable))
    };
    value.map(|value| Zeroizing::new(value.to_vec()))
}

/// Makes all other names under a prefix errors, since they are typing mistakes.
pub(crate) fn reserve_prefix(prefix: &CStr) {
    // SAFETY: a C string.
    unsafe { pg_sys::MarkGUCPrefixReserved(prefix.as_ptr()) };
}

/// Calls `f` with the value of a setting, without the copy that pgrx makes. The setting must not be
/// set meanwhile.
pub(crate) fn with_value<S: Setting, R>(f: impl FnOnce(Option<&[u8]>) -> R) -> R {
    // SAFETY: `f` gets a borrow that it cannot keep, of a string that only a change of the setting frees.
    f(unsafe { bytes(*S::STORED.as_ptr()) })
}

#[pg_guard]
unsafe extern "C-unwind" fn check<S: Setting>(
    new_value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    source: pg_sys::GucSource::Type,
) -> bool {
    use pg_sys::GucSource::{PGC_S_CLIENT, PGC_S_DATABASE_USER, PGC_S_FILE};
    // SAFETY: the server passes a pointer to a C string, or to null where the setting has no value.
    let Some(value) = (unsafe { bytes(*new_value) }) else {
        return true;
    };
    let in_configuration = (PGC_S_FILE..=PGC_S_DATABASE_USER).contains(&source);
    let Err(report) = S::check(value, in_configuration) else {
        return true;
    };
    let is_told = source >= PGC_S_CLIENT || source == PGC_S_FILE && server::is_altering_system();
    // A worker takes over the settings of the process that has started it.
    let is_taken_over = server::in_parallel_worker() || guc::is_restoring();
    if is_told && !IS_DEFINING.get() && !is_taken_over {
        refuse(report);
        return false;
    }
    if server::is_postmaster() {
        // The server log gets the warning once, and not from each server process.
        report.warn();
    }
    true
}

#[pg_guard]
unsafe extern "C-unwind" fn assign<S: Setting>(_new_value: *const c_char, _extra: *mut c_void) {
    S::ASSIGNED();
}

/// Reports why a value is refused, in our own words: the server's message would show the value.
fn refuse(report: Report) {
    let message = CString::new(report.message).unwrap_or_default();
    let hint = CString::new(&*report.hint).unwrap_or_default();
    // SAFETY: the server reads these once the hook has returned; pstrdup'ed memory lasts that long.
    with_room_for_errors(|| unsafe {
        pg_sys::GUC_check_errcode(report.sqlstate as c_int);
        pg_sys::GUC_check_errmsg_string = pg_sys::pstrdup(message.as_ptr());
        pg_sys::GUC_check_errhint_string = pg_sys::pstrdup(hint.as_ptr());
    });
}

/// # Safety
/// `value` must be null, or a C string that lasts as long as the result is used.
unsafe fn bytes<'a>(value: *const c_char) -> Option<&'a [u8]> {
    // SAFETY: see above.
    unsafe { (!value.is_null()).then(|| CStr::from_ptr(value).to_bytes()) }
}
