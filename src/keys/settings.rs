//! The settings `fernet.*` and their hooks.

use std::cell::Cell;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use pgrx::prelude::*;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

use super::{Error, cache, file, secret};
use crate::fernet::Keyring;
use crate::pg::report::{self, Report};
use crate::pg::server;

type Setting = GucSetting<Option<CString>>;

static KEYS: Setting = Setting::new(None);
static KEYS_FILE: Setting = Setting::new(None);
static KEYS_COMMAND: Setting = Setting::new(None);

thread_local! {
    /// Whether the settings are being defined, with the values that they were given before.
    static IS_DEFINING: Cell<bool> = const { Cell::new(false) };
    /// Whether the postmaster loaded the library. Then every server process has it from the start.
    static PRELOADED: Cell<bool> = const { Cell::new(false) };
    /// Whether the configuration has keys that any role can read in a process without the library.
    static WERE_READABLE: Cell<bool> = const { Cell::new(false) };
    /// Whether this session has been warned of that.
    static TOLD: Cell<bool> = const { Cell::new(false) };
}

/// Where the keys come from.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// No setting tells.
    None,
    /// The list itself.
    Keys(&'a [u8]),
    File(&'a Path),
    Command(&'a OsStr),
}

/// Defines the settings, and reserves their prefix so that a typing mistake is an error.
pub(crate) fn init() {
    PRELOADED.set(server::is_preloading());
    // Secret: neither in SHOW ALL nor in pg_settings, and by name only to superusers and members
    // of pg_read_all_settings.
    let secret = GucFlags::SUPERUSER_ONLY | GucFlags::NO_SHOW_ALL;
    let list = GucFlags::from_bits_retain(pg_sys::GUC_LIST_INPUT as i32);
    IS_DEFINING.set(true);
    // SAFETY: all hooks are guarded.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"fernet.keys",
            c"Fernet keys, separated by commas, the newest first.",
            c"The first key encrypts, all of them decrypt. Goes before fernet.keys_file.",
            &KEYS,
            GucContext::Suset,
            secret | list,
            Some(check_keys),
            Some(assign),
            None,
        );
        GucRegistry::define_string_guc_with_hooks(
            c"fernet.keys_file",
            c"File with Fernet keys, one a line, the newest first.",
            c"Only the server's user may read it, as for ssl_key_file. Goes before fernet.keys_command.",
            &KEYS_FILE,
            GucContext::Suset,
            GucFlags::SUPERUSER_ONLY,
            Some(check_keys_file),
            Some(assign),
            None,
        );
        GucRegistry::define_string_guc_with_hooks(
            c"fernet.keys_command",
            c"Shell command that prints Fernet keys, one a line, the newest first.",
            c"Each server process runs it when it first needs a key, and again after a reload.",
            &KEYS_COMMAND,
            GucContext::Sighup,
            GucFlags::SUPERUSER_ONLY,
            None,
            Some(assign),
            None,
        );
    }
    IS_DEFINING.set(false);
    // SAFETY: the argument is a C string.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"fernet".as_ptr()) };
    // What loads the library for a session has nobody to tell yet: `warn_of_readable_keys` is called
    // again when keys are used.
    if server::in_a_statement() {
        warn_of_readable_keys();
    }
}

/// Warns, once in a session, if any role can read the keys.
pub(crate) fn warn_of_readable_keys() {
    // What a parallel worker would tell, its leader does.
    if !WERE_READABLE.get() || TOLD.get() || server::in_parallel_worker() {
        return;
    }
    TOLD.set(true);
    report::warn(
        "fernet.keys is set in the configuration, but pg_fernet is not in shared_preload_libraries",
        Some(
            "Any role can read the keys in a server process that has not loaded the library."
                .into(),
        ),
        "Add pg_fernet to shared_preload_libraries and restart the server, or use fernet.keys_file.",
    );
}

/// Reads the list in `fernet.keys`.
pub(super) fn parse_list(list: &[u8]) -> Result<Keyring, Error> {
    secret::note_depth();
    Keyring::parse_list(list).map_err(|refusal| Error::List {
        setting: "fernet.keys",
        refusal,
    })
}

/// Calls `f` with the first of the settings that is set.
pub(crate) fn with_source<R>(f: impl FnOnce(Source<'_>) -> R) -> R {
    // SAFETY: `f` gets borrows that it cannot keep, of strings that only a change of the settings
    // frees. `GucSetting::get` would leave copies of the keys in memory.
    let value = |setting: &'static Setting| unsafe {
        let value: *const c_char = *setting.as_ptr();
        (!value.is_null()).then(|| CStr::from_ptr(value).to_bytes())
    };
    let path = |setting| value(setting).filter(|value| !value.is_empty());
    let source = if let Some(list) = value(&KEYS) {
        Source::Keys(list)
    } else if let Some(path) = path(&KEYS_FILE) {
        Source::File(Path::new(OsStr::from_bytes(path)))
    } else if let Some(command) = path(&KEYS_COMMAND) {
        Source::Command(OsStr::from_bytes(command))
    } else {
        Source::None
    };
    f(source)
}

/// Refuses a bad list.
#[pg_guard]
unsafe extern "C-unwind" fn check_keys(
    new_value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: the server passes a valid pointer.
    let Some(list) = (unsafe { value_of(new_value) }) else {
        return true;
    };
    use pg_sys::GucSource::{PGC_S_DATABASE_USER, PGC_S_FILE};
    let in_the_configuration = (PGC_S_FILE..=PGC_S_DATABASE_USER).contains(&source);
    if in_the_configuration && !PRELOADED.get() && !WERE_READABLE.replace(true) {
        // The next use reads the keys again, and warns, also where it has keys of its own.
        cache::forget();
    }
    match parse_list(list) {
        Ok(_) => true,
        Err(refusal) => keep_or_refuse(source, refusal),
    }
}

/// Refuses what is no path of a key file.
#[pg_guard]
unsafe extern "C-unwind" fn check_keys_file(
    new_value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: the server passes a valid pointer.
    let path = unsafe { value_of(new_value) }.unwrap_or_default();
    match file::check_path(path) {
        Ok(()) => true,
        Err(refusal) => path.is_empty() || keep_or_refuse(source, refusal),
    }
}

/// Refuses a bad value where that is an error for whoever sets it. Elsewhere it would be a warning, and
/// the server would go on with the value before, or with the next source of keys: there the value is
/// kept, and refused when a key is needed.
fn keep_or_refuse(source: pg_sys::GucSource::Type, refusal: Error) -> bool {
    use pg_sys::GucSource::{PGC_S_CLIENT, PGC_S_FILE};
    let is_told = source >= PGC_S_CLIENT || source == PGC_S_FILE && server::is_altering_system();
    // A parallel worker takes over what its leader has.
    if is_told && !IS_DEFINING.get() && !server::in_parallel_worker() {
        return refuse(refusal.into());
    }
    if server::is_postmaster() {
        // The server log is told once, and not by each server process.
        let report = Report::from(refusal);
        report::warn(report.message, report.detail, report.hint);
    }
    true
}

/// # Safety
/// `new_value` must be what the server passes to the check hook of a string: a pointer to a C string,
/// or to null where the setting has no value.
unsafe fn value_of<'a>(new_value: *mut *mut c_char) -> Option<&'a [u8]> {
    // SAFETY: see above.
    unsafe { (!(*new_value).is_null()).then(|| CStr::from_ptr(*new_value).to_bytes()) }
}

/// Says why a check hook refuses a value, in words of our own: the server's would show it.
fn refuse(report: Report) -> bool {
    let message = CString::new(report.message).unwrap_or_default();
    let hint = CString::new(report.hint).unwrap_or_default();
    // SAFETY: the server reads these once the hook has returned; pstrdup'ed memory lasts that long.
    unsafe {
        pg_sys::GUC_check_errcode(report.sqlstate as c_int);
        pg_sys::GUC_check_errmsg_string = pg_sys::pstrdup(message.as_ptr());
        pg_sys::GUC_check_errhint_string = pg_sys::pstrdup(hint.as_ptr());
    }
    false
}

/// Any of the settings changes, or, for a value in a configuration file, that file is read again.
#[pg_guard]
unsafe extern "C-unwind" fn assign(_new_value: *const c_char, _extra: *mut c_void) {
    cache::forget();
}
