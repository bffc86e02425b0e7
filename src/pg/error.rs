use std::collections::TryReserveError;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::report::Report;

/// Failures of the server or of the operating system.
#[derive(Debug)]
pub(crate) enum Error {
    /// The text to encrypt cannot be converted to UTF-8.
    NotUtf8,
    /// The plaintext is not valid text in the database encoding.
    NotText,
    /// The result is too large for a value of PostgreSQL.
    TooLarge,
    /// The operating system gave no memory.
    OutOfMemory,
    /// The operating system gave no random bytes.
    NoRandomness,
    /// The wait for a synchronous standby was cancelled.
    ReplicationCancelled,
    /// A background worker has ended before its work was done.
    LostWorker,
    /// This worker was started by another version of the library.
    OtherLibrary,
    /// The relation has no column of that name.
    NoColumn { column: String, relation: String },
    /// The column's type cannot hold tokens.
    ColumnType {
        column: String,
        relation: String,
        type_name: String,
    },
}

impl From<Error> for Report {
    fn from(error: Error) -> Self {
        use PgSqlErrorCode as Code;
        match error {
            Error::NotUtf8 => Self::new(
                Code::ERRCODE_CHARACTER_NOT_IN_REPERTOIRE,
                "text has no equivalent in UTF-8",
                "To encrypt its bytes as they are, pass convert_to(value, getdatabaseencoding()).",
            ),
            Error::NotText => Self::new(
                Code::ERRCODE_CHARACTER_NOT_IN_REPERTOIRE,
                "plaintext is not valid text in the database encoding",
                "Use fernet_decrypt_bytea() to get the bytes as they are.",
            ),
            Error::TooLarge => Self::new(
                Code::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                "result would exceed the limit of 1 GB for a value",
                "Split the value: a token takes a third more space than its plaintext.",
            ),
            Error::OutOfMemory => Self::new(
                Code::ERRCODE_OUT_OF_MEMORY,
                "out of memory",
                "Give the server more memory, configure fewer keys, or pass a smaller batch_size.",
            ),
            Error::NoRandomness => Self::new(
                Code::ERRCODE_INTERNAL_ERROR,
                "could not generate random bytes",
                "Check the random number source of the operating system.",
            ),
            Error::ReplicationCancelled => Self::new(
                Code::ERRCODE_QUERY_CANCELED,
                "canceling statement due to user request",
                "Call it again once a synchronous standby is available: it continues where it stopped.",
            )
            .with_detail(
                "The last batch is committed here, but may not have been replicated to the standby.",
            ),
            Error::LostWorker => Self::new(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "a background worker has ended before its work was done",
                "The server log may say why. Call it again: it continues where it stopped.",
            ),
            Error::OtherLibrary => Self::new(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "pg_fernet was replaced after the session had loaded it",
                "Begin a new session, or restart the server if it preloads the library.",
            ),
            Error::NoColumn { column, relation } => Self::new(
                Code::ERRCODE_UNDEFINED_COLUMN,
                format!("column \"{column}\" of {relation} does not exist"),
                "Give the name as the catalogs have it, without quotes. fernet_find_columns() finds the columns \
                 that hold tokens.",
            ),
            Error::ColumnType {
                column,
                relation,
                type_name,
            } => Self::new(
                Code::ERRCODE_DATATYPE_MISMATCH,
                format!(
                    "column \"{column}\" of {relation} is of type {type_name}, which cannot hold tokens"
                ),
                "Tokens are kept in columns of type text, varchar, char, citext, bytea, json, jsonb, xml \
                 or hstore, and in arrays of and domains over these.",
            ),
        }
    }
}

impl From<Error> for ErrorReport {
    fn from(error: Error) -> Self {
        Report::from(error).into()
    }
}

impl From<TryReserveError> for Error {
    fn from(_: TryReserveError) -> Self {
        Self::OutOfMemory
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fernet;
    use crate::pg::report::assert_documented;

    #[test]
    fn all_are_documented() {
        let (column, relation) = (|| "value".into(), || "public.connection".into());
        let errors = [
            Error::NotUtf8,
            Error::NotText,
            Error::TooLarge,
            Error::OutOfMemory,
            Error::NoRandomness,
            Error::ReplicationCancelled,
            Error::LostWorker,
            Error::OtherLibrary,
            Error::NoColumn {
                column: column(),
                relation: relation(),
            },
            Error::ColumnType {
                column: "id".into(),
                relation: relation(),
                type_name: "integer".into(),
            },
        ];
        assert_documented(errors.map(Report::from));
        use fernet::Error::{BadPadding, NotAToken, Unauthenticated};
        assert_documented([NotAToken, Unauthenticated, BadPadding].map(Report::from));
    }
}
