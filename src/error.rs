//! Every error that a user can meet: one enum, one mapping to SQLSTATE, message and hint.
//!
//! None of them holds key material or plaintext, so neither can reach a client or the server log.

use std::io;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::fernet;

#[derive(Debug)]
pub(crate) enum Error {
    /// No setting holds keys.
    NoKeys,
    /// The file of `fernet.keys_file` cannot be read, or others can read it.
    KeyFile { path: String, reason: String },
    /// The command of `fernet.keys_command` failed.
    KeyCommand { reason: String },
    /// The list in `setting` is refused.
    KeyList {
        setting: &'static str,
        refusal: fernet::Error,
    },
    /// The value is no token, or no key opens it.
    Token(fernet::Error),
    /// The token is older than its time to live.
    Expired,
    /// The token's timestamp is more than a minute ahead.
    FromTheFuture,
    /// The text to encrypt has no form in UTF-8.
    NotUtf8,
    /// The plaintext is no text of the database's encoding.
    NotText,
    /// The result would not fit into a value of PostgreSQL.
    TooLarge,
    /// The operating system gave no random bytes.
    NoRandomness,
}

impl From<fernet::Error> for Error {
    fn from(error: fernet::Error) -> Self {
        Self::Token(error)
    }
}

impl Error {
    fn sqlstate(&self) -> PgSqlErrorCode {
        use fernet::Error as Refusal;
        match self {
            Self::NoKeys => PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            Self::KeyFile { .. } | Self::KeyCommand { .. } => {
                PgSqlErrorCode::ERRCODE_CONFIG_FILE_ERROR
            }
            Self::KeyList {
                refusal: Refusal::OutOfMemory,
                ..
            } => PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY,
            Self::KeyList { .. } => PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            Self::Token(Refusal::NotAToken) => PgSqlErrorCode::ERRCODE_INVALID_TEXT_REPRESENTATION,
            Self::Token(_) => PgSqlErrorCode::ERRCODE_EXTERNAL_ROUTINE_INVOCATION_EXCEPTION,
            Self::Expired | Self::FromTheFuture => PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
            Self::NotUtf8 | Self::NotText => PgSqlErrorCode::ERRCODE_CHARACTER_NOT_IN_REPERTOIRE,
            Self::TooLarge => PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            Self::NoRandomness => PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        }
    }

    pub(crate) fn message(&self) -> String {
        use fernet::Error as Refusal;
        match self {
            Self::NoKeys => "no Fernet keys are configured".into(),
            Self::KeyFile { path, reason } => {
                format!("could not read Fernet keys from file \"{path}\": {reason}")
            }
            Self::KeyCommand { reason } => {
                format!("could not get Fernet keys from fernet.keys_command: {reason}")
            }
            Self::KeyList {
                setting,
                refusal: Refusal::InvalidKey { position },
            } => {
                format!("key {position} of {setting} is not a valid Fernet key")
            }
            Self::KeyList { setting, refusal } => format!("{setting}: {refusal}"),
            Self::Token(Refusal::Unauthenticated) => {
                "no configured key authenticates the Fernet token".into()
            }
            Self::Token(refusal) => refusal.to_string(),
            Self::Expired => "Fernet token has expired".into(),
            Self::FromTheFuture => "Fernet token is from the future".into(),
            Self::NotUtf8 => "text has no equivalent in UTF-8".into(),
            Self::NotText => "plaintext is not valid text in the database encoding".into(),
            Self::TooLarge => "result would exceed the limit of 1 GB for a value".into(),
            Self::NoRandomness => "could not generate random bytes".into(),
        }
    }

    pub(crate) fn hint(&self) -> &'static str {
        use fernet::Error as Refusal;
        match self {
            Self::NoKeys => {
                "Set fernet.keys to a comma-separated list of keys, the newest first, or \
                 fernet.keys_file to a file that holds them. fernet_generate_key() makes a key."
            }
            Self::KeyFile { .. } => {
                "fernet.keys_file must name a file that the server's user can read and others \
                 cannot."
            }
            Self::KeyCommand { .. } => {
                "Run the command by hand, as the server's user: it must print the keys and exit \
                 with status 0 within 10 seconds."
            }
            Self::KeyList {
                refusal: Refusal::OutOfMemory,
                ..
            } => "Use a shorter list of keys.",
            Self::KeyList { .. } => {
                "A list holds one or more keys, separated by commas, the newest first. A key is 32 \
                 bytes in base64, 44 characters with its padding; fernet_generate_key() makes one."
            }
            Self::Token(Refusal::NotAToken) => {
                "If the value is plaintext, encrypt it with fernet_encrypt(). \
                 fernet_is_token() tells which values are tokens."
            }
            Self::Token(Refusal::BadPadding) => {
                "The key authenticates the token, but does not decrypt it: whoever made the token \
                 did not follow the Fernet specification. Replace the value."
            }
            Self::Token(_) => {
                "Append the key that the token was made with to fernet.keys. \
                 fernet_key_index() is NULL for the values that no key opens."
            }
            Self::Expired => "Raise ttl, or get a new token.",
            Self::FromTheFuture => {
                "Check the clock of the machine that made the token. \
                 Without a ttl, the timestamp is not looked at."
            }
            Self::NotUtf8 => {
                "To encrypt its bytes as they are, pass convert_to(value, getdatabaseencoding())."
            }
            Self::NotText => "Use fernet_decrypt_bytea() to get the bytes as they are.",
            Self::TooLarge => {
                "Split the value: a token takes a third more space than its plaintext."
            }
            Self::NoRandomness => "Check the random number source of the operating system.",
        }
    }
}

impl From<Error> for ErrorReport {
    fn from(error: Error) -> Self {
        Self::new(error.sqlstate(), error.message(), "pg_fernet").set_hint(error.hint())
    }
}

/// Returns why input or output failed, as PostgreSQL says it: without the number of the error.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((reason, _)) => reason.into(),
        None => text,
    }
}
