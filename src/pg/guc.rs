//! Changes to the server's settings, temporarily or in another process.

use std::cell::Cell;
use std::ffi::{CStr, CString};
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
    /// The end of the innermost nesting level of settings.
    Level,
    /// The end of the session, if the transaction commits.
    Exit,
}

/// Changes a setting that every role may change.
pub(super) fn set_config(name: &CStr, value: &CStr, until: Until) {
    use pg_sys::{GucAction, GucContext, GucSource};
    let action = match until {
        Until::Commit => GucAction::GUC_ACTION_LOCAL,
        Until::Level => GucAction::GUC_ACTION_SAVE,
        Until::Exit => GucAction::GUC_ACTION_SET,
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

/// Writes down, for [`restore`], the settings of the session and its roles, as C strings: for each
/// setting, its name, its value and its origin; then an empty string; then two roles.
///
/// Settings that concern one transaction or the client are left out.
pub(super) fn of_session(is_private: impl Fn(&CStr) -> bool) -> Vec<u8> {
    use pg_sys::GucContext;
    let mut texts = Vec::new();
    let mut add = |text: &CStr| texts.extend_from_slice(text.to_bytes_with_nul());
    // SAFETY: all settings, each with a name. A value lasts until the next one is asked for.
    unsafe {
        for &setting in all() {
            let (setting, name) = (&*setting, CStr::from_ptr((*setting).name));
            let may_be_set = matches!(
                setting.context,
                GucContext::PGC_SUSET | GucContext::PGC_USERSET
            );
            if may_be_set
                && !NOT_OF_SESSION.contains(&name)
                && !is_private(name)
                && let Some(value) = value_of(setting)
            {
                add(name);
                add(&value);
                add(&Origin::of(setting).to_text());
            }
        }
        add(c"");
        add(name_of_role(pg_sys::GetSessionUserId()));
        let role = pg_sys::GetCurrentRoleId();
        add(if role == pg_sys::InvalidOid {
            c"none"
        } else {
            name_of_role(role)
        });
    }
    texts
}

/// Settings of one transaction or of the client; and roles, which are written down separately.
const NOT_OF_SESSION: [&CStr; 7] = [
    c"transaction_isolation",
    c"transaction_read_only",
    c"transaction_deferrable",
    c"client_encoding",
    c"seed",
    c"session_authorization",
    c"role",
];

/// Returns a value in the form in which it can be set.
///
/// # Safety
/// The setting must be one of the server's list.
unsafe fn value_of(setting: &pg_sys::config_generic) -> Option<CString> {
    // SAFETY: the server tells the kind of a setting. A value lasts until the next one is asked for.
    unsafe {
        if setting.vartype == pg_sys::config_type::PGC_REAL {
            // The server would show only six digits of it.
            #[cfg(feature = "pg19")]
            let real = &setting.__bindgen_anon_1._real;
            #[cfg(not(feature = "pg19"))]
            let real = &*std::ptr::from_ref(setting).cast::<pg_sys::config_real>();
            return CString::new(format!("{:?}", *real.variable)).ok();
        }
        let value = pg_sys::GetConfigOption(setting.name, true, false);
        (!value.is_null()).then(|| CStr::from_ptr(value).to_owned())
    }
}

thread_local! {
    static IS_RESTORING: Cell<bool> = const { Cell::new(false) };
}

/// Tells whether this process is taking over the settings of another one, as they are there.
pub(super) fn is_restoring() -> bool {
    IS_RESTORING.get()
}

/// Sets what [`of_session`] has written down. `next` returns its strings one by one.
pub(super) fn restore<'a>(mut next: impl FnMut() -> &'a CStr) {
    IS_RESTORING.set(true);
    let mut refused = Vec::new();
    loop {
        let name = next();
        if name.is_empty() {
            break;
        }
        let (value, origin) = (next(), Origin::parse(next()));
        let origin = origin.expect("it is as it was written");
        if !origin.set(name, value, PgLogLevel::DEBUG3) {
            refused.push((name, value, origin));
        }
    }
    // Which values a setting may have can depend on another one, which is set by now.
    for (name, value, origin) in refused {
        origin.set(name, value, PgLogLevel::ERROR);
    }
    IS_RESTORING.set(false);
    // Sets them even if they are those of the login: the user's own settings may name another role.
    set_config(c"session_authorization", next(), Until::Exit);
    set_config(c"role", next(), Until::Exit);
}

/// Who has set a value, and how.
///
/// Any role can set a name that may belong to a library that is not loaded yet. When the library is
/// loaded, the server uses this origin to decide whether the role was allowed to.
struct Origin {
    context: pg_sys::GucContext::Type,
    source: pg_sys::GucSource::Type,
    role: pg_sys::Oid,
}

impl Origin {
    fn of(setting: &pg_sys::config_generic) -> Self {
        Self {
            context: setting.scontext,
            source: setting.source,
            role: setting.srole,
        }
    }

    fn to_text(&self) -> CString {
        let text = format!("{} {} {}", self.context, self.source, self.role.to_u32());
        CString::new(text).expect("digits and spaces hold no zero byte")
    }

    /// Reads what [`to_text`](Self::to_text) has written.
    fn parse(text: &CStr) -> Option<Self> {
        let mut parts = text.to_str().ok()?.splitn(3, ' ');
        let mut next = || parts.next()?.parse().ok();
        Some(Self {
            context: next()?,
            source: next()?,
            role: next()?.into(),
        })
    }

    /// Sets a value that has this origin in another session. If the value is refused, reports that at
    /// `level` and returns false.
    fn set(&self, name: &CStr, value: &CStr, level: PgLogLevel) -> bool {
        use pg_sys::{GucAction, GucSource};
        // This login may have found other settings of the role or the database than that session has;
        // the session's take precedence. A value that the server has accepted from the configuration may
        // not be valid in this database.
        let (source, level) = if self.source < GucSource::PGC_S_CLIENT {
            (GucSource::PGC_S_CLIENT, PgLogLevel::DEBUG3)
        } else {
            (self.source, level)
        };
        // SAFETY: C strings, which the server copies.
        unsafe {
            let done = pg_sys::set_config_option_ext(
                name.as_ptr(),
                value.as_ptr(),
                self.context,
                source,
                self.role,
                GucAction::GUC_ACTION_SET,
                true,
                level as i32,
                false,
            );
            done != 0
        }
    }
}

/// Returns all settings.
fn all() -> &'static [*mut pg_sys::config_generic] {
    // SAFETY: the server has an array of that many settings, which exists until another setting is
    // defined.
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
