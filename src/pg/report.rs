//! Errors, warnings and notices, as the server sends them.

use std::borrow::Cow;
use std::ffi::c_int;
use std::io;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::encoding::printable;
use crate::fernet;

/// A message to the client. None of it is key material or plaintext, so neither can reach a client
/// or the server log this way.
pub(crate) struct Report {
    pub(crate) sqlstate: PgSqlErrorCode,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    /// The next step.
    pub(crate) hint: Cow<'static, str>,
}

impl Report {
    pub(crate) fn new(
        sqlstate: PgSqlErrorCode,
        message: impl Into<String>,
        hint: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            sqlstate,
            message: message.into(),
            detail: None,
            hint: hint.into(),
        }
    }

    /// Makes a message that is not an error.
    pub(crate) fn warning(message: impl Into<String>, hint: impl Into<Cow<'static, str>>) -> Self {
        Self::new(PgSqlErrorCode::ERRCODE_WARNING, message, hint)
    }

    pub(crate) fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Sends this to the client as a warning. The statement goes on.
    pub(crate) fn warn(mut self) {
        self.sqlstate = PgSqlErrorCode::ERRCODE_WARNING;
        ErrorReport::from(self).report(PgLogLevel::WARNING);
    }
}

impl From<Report> for ErrorReport {
    fn from(report: Report) -> Self {
        let raised = Self::new(report.sqlstate, report.message, "pg_fernet").set_hint(report.hint);
        match report.detail {
            Some(detail) => raised.set_detail(detail),
            None => raised,
        }
    }
}

/// Why a value is refused, whatever it is read for.
impl From<fernet::Error> for Report {
    fn from(refusal: fernet::Error) -> Self {
        use PgSqlErrorCode::{
            ERRCODE_EXTERNAL_ROUTINE_INVOCATION_EXCEPTION, ERRCODE_INVALID_TEXT_REPRESENTATION,
        };
        match refusal {
            fernet::Error::NotAToken => Self::new(
                ERRCODE_INVALID_TEXT_REPRESENTATION,
                refusal.to_string(),
                "If the value is plaintext that should be a token, encrypt it with fernet_encrypt(). \
                 fernet_key_index() is NULL for values without a token.",
            ),
            fernet::Error::BadPadding => Self::new(
                ERRCODE_EXTERNAL_ROUTINE_INVOCATION_EXCEPTION,
                refusal.to_string(),
                "The key authenticates the token, but does not decrypt it: whoever made the token did \
                 not follow the Fernet specification. Replace the value.",
            ),
            _ => Self::new(
                ERRCODE_EXTERNAL_ROUTINE_INVOCATION_EXCEPTION,
                "no configured key authenticates the Fernet token",
                "Append the key that the token was made with to the list of keys. fernet_key_index() \
                 is NULL for the values that no key opens.",
            ),
        }
    }
}

/// Sends a notice about progress to the client.
pub(crate) fn notice(message: String) {
    let code = PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION;
    ErrorReport::new(code, message, "pg_fernet").report(PgLogLevel::NOTICE);
}

/// Returns why input or output failed, in PostgreSQL's words: without the number of the error.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let reason = text
        .split_once(" (os error ")
        .map_or(&*text, |(reason, _)| reason);
    // The message is in the language of lc_messages.
    printable(reason.as_bytes())
}

/// Returns the class of a SQLSTATE as the server has it: its first two characters.
pub(super) fn class(sqlstate: c_int) -> c_int {
    sqlstate & 0xfff
}

/// Checks that docs/troubleshooting.md has a row for each of these: an error with its SQLSTATE, a
/// warning under the heading of warnings.
#[cfg(test)]
pub(crate) fn assert_documented(reports: impl IntoIterator<Item = Report>) {
    let page = include_str!("../../docs/troubleshooting.md").replace('`', "");
    let (errors, warnings) = page.split_once("\n## Warnings\n").expect("the heading");
    for report in reports {
        let (rows, sqlstate) = match report.sqlstate {
            PgSqlErrorCode::ERRCODE_WARNING => (warnings, String::new()),
            code => (errors, written(code)),
        };
        let is_its_row = |row: &str| row.contains(&sqlstate) && row.contains(&report.message);
        assert!(
            rows.lines().any(is_its_row),
            "{sqlstate} {}",
            report.message
        );
        assert!(report.hint.ends_with('.'), "{}", report.message);
    }
}

#[cfg(test)]
fn written(sqlstate: PgSqlErrorCode) -> String {
    // Five characters of six bits each.
    let character = |at: u32| char::from(b'0' + (sqlstate as u32 >> (6 * at) & 0x3f) as u8);
    (0..5).map(character).collect()
}
