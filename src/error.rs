//! Every error that a user can meet: one enum, one mapping to SQLSTATE, message and hint.
//!
//! None of them holds key material or plaintext, so neither can reach a client or the server log.

use std::collections::TryReserveError;
use std::io;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::catalog::{Kind, shown};
use crate::fernet;

#[derive(Debug)]
pub(crate) enum Error {
    /// No setting holds keys.
    NoKeys,
    /// `fernet.keys_file` is not the path of a file.
    KeyFilePath,
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
    /// The operating system gave no memory.
    OutOfMemory,
    /// The operating system gave no random bytes.
    NoRandomness,
    /// An argument of a procedure is null.
    Null(&'static str),
    /// An argument that counts rows is not positive.
    LessThanOne(&'static str),
    /// A procedure that commits was called where it may not.
    InTransaction,
    /// There is no relation of that oid.
    NoRelation(pg_sys::Oid),
    /// The relation is an index, a sequence or the like.
    NoRows { relation: String },
    /// The relation has no column of that name.
    NoColumn { column: String, relation: String },
    /// The column's type can hold no tokens.
    ColumnType {
        column: String,
        relation: String,
        type_name: String,
    },
    /// The column is computed from others.
    Generated { column: String, relation: String },
    /// The table's rows are in partitions by what is in the column.
    PartitionKey { column: String, relation: String },
    /// The relation is no table of this database.
    NotATable { relation: String, kind: Kind },
    /// The table's access method has no scans by range.
    AccessMethod { relation: String },
    /// Policies for row-level security apply to the caller.
    HiddenRows { relation: String },
    /// The rows have copies on several nodes of Citus, which would not be the same any more.
    Copies { relation: String },
    /// Somebody has cancelled the wait for a synchronous standby.
    ReplicationCancelled,
    /// A node of Citus has other keys than the one that asks it for something.
    OtherKeys,
    /// A node of Citus has not answered as it should.
    Answer,
    /// Shards of a table failed: for each node, why.
    Shards {
        failed: usize,
        all: usize,
        failures: Vec<String>,
    },
    /// A value in a column is no token, or no key opens it.
    Value {
        place: String,
        refusal: fernet::Error,
    },
}

impl From<fernet::Error> for Error {
    fn from(error: fernet::Error) -> Self {
        Self::Token(error)
    }
}

impl From<TryReserveError> for Error {
    fn from(_: TryReserveError) -> Self {
        Self::OutOfMemory
    }
}

impl Error {
    pub(crate) fn sqlstate(&self) -> PgSqlErrorCode {
        use fernet::Error as Refusal;
        match self {
            Self::NoKeys | Self::OtherKeys => {
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE
            }
            Self::KeyFile { .. } | Self::KeyCommand { .. } => {
                PgSqlErrorCode::ERRCODE_CONFIG_FILE_ERROR
            }
            Self::OutOfMemory
            | Self::KeyList {
                refusal: Refusal::OutOfMemory,
                ..
            } => PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY,
            Self::KeyList { .. } | Self::KeyFilePath | Self::LessThanOne(_) => {
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE
            }
            Self::Token(refusal) | Self::Value { refusal, .. } => match refusal {
                Refusal::NotAToken => PgSqlErrorCode::ERRCODE_INVALID_TEXT_REPRESENTATION,
                _ => PgSqlErrorCode::ERRCODE_EXTERNAL_ROUTINE_INVOCATION_EXCEPTION,
            },
            Self::Expired | Self::FromTheFuture => PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
            Self::NotUtf8 | Self::NotText => PgSqlErrorCode::ERRCODE_CHARACTER_NOT_IN_REPERTOIRE,
            Self::TooLarge => PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            Self::NoRandomness => PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            Self::Null(_) => PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            Self::InTransaction => PgSqlErrorCode::ERRCODE_INVALID_TRANSACTION_TERMINATION,
            Self::NoRelation(_) => PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            Self::NoRows { .. } | Self::NotATable { .. } => {
                PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE
            }
            Self::NoColumn { .. } => PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
            Self::ColumnType { .. } => PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
            Self::Generated { .. } => PgSqlErrorCode::ERRCODE_GENERATED_ALWAYS,
            Self::AccessMethod { .. } | Self::Copies { .. } | Self::PartitionKey { .. } => {
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED
            }
            Self::ReplicationCancelled => PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            Self::Answer | Self::Shards { .. } => {
                PgSqlErrorCode::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION
            }
            Self::HiddenRows { .. } => PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        }
    }

    pub(crate) fn message(&self) -> String {
        use fernet::Error as Refusal;
        match self {
            Self::NoKeys => "no Fernet keys are configured".into(),
            Self::KeyFilePath => "fernet.keys_file must be the absolute path of a file".into(),
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
            Self::OutOfMemory => "out of memory".into(),
            Self::NoRandomness => "could not generate random bytes".into(),
            Self::Null(argument) => format!("{argument} must not be null"),
            Self::LessThanOne(argument) => format!("{argument} must be at least 1"),
            Self::InTransaction => "cannot rotate in batches inside a transaction block".into(),
            Self::NoRelation(oid) => format!("relation with OID {} does not exist", oid.to_u32()),
            Self::NoRows { relation } => format!("{relation} is not a table or a view"),
            Self::NoColumn { column, relation } => {
                format!("column \"{column}\" of {relation} does not exist")
            }
            Self::ColumnType {
                column,
                relation,
                type_name,
            } => format!(
                "column \"{column}\" of {relation} is of type {type_name}, which cannot hold tokens"
            ),
            Self::Generated { column, relation } => {
                format!("column \"{column}\" of {relation} is a generated column")
            }
            Self::PartitionKey { column, relation } => {
                format!("column \"{column}\" is in the partition key of {relation}")
            }
            Self::ReplicationCancelled => "canceling statement due to user request".into(),
            Self::NotATable { relation, .. } => format!("{relation} is not a table"),
            Self::AccessMethod { relation } => {
                format!("access method of {relation} does not find rows by their block")
            }
            Self::HiddenRows { relation } => {
                format!("row-level security may hide rows of {relation}")
            }
            Self::Copies { relation } => {
                format!("{relation} has copies of its rows on several nodes")
            }
            Self::Answer => "unexpected answer".into(),
            Self::OtherKeys => "keys are not those of the calling node".into(),
            Self::Shards {
                failed,
                all,
                failures,
            } => format!(
                "{failed} of {all} shards failed, for instance on {}",
                failures[0]
            ),
            Self::Value { place, refusal } => format!("{refusal}: {place}"),
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::Shards { failures, .. } if failures.len() > 1 => Some(failures.join("\n")),
            Self::ReplicationCancelled => Some(
                "The last batch is committed here, but may not have been replicated to the standby."
                    .into(),
            ),
            _ => None,
        }
    }

    pub(crate) fn hint(&self) -> &'static str {
        use fernet::Error as Refusal;
        match self {
            Self::NoKeys => {
                "Set fernet.keys_file to a file that holds the keys, or fernet.keys to a \
                 comma-separated list of them, the newest first. fernet_generate_key() makes a key."
            }
            Self::KeyFilePath => {
                "Write the keys into a file, and its path here, from / on. A list of keys belongs into \
                 fernet.keys."
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
                "Separate keys by commas, or in a file by line breaks, the newest first. A key is 32 \
                 bytes in base64, 44 characters with its padding; fernet_generate_key() makes one."
            }
            Self::Token(Refusal::NotAToken)
            | Self::Value {
                refusal: Refusal::NotAToken,
                ..
            } => {
                "If the value is plaintext that should be a token, encrypt it with \
                 fernet_encrypt(). fernet_key_index() is NULL for values without a token."
            }
            Self::Token(Refusal::BadPadding)
            | Self::Value {
                refusal: Refusal::BadPadding,
                ..
            } => {
                "The key authenticates the token, but does not decrypt it: whoever made the token \
                 did not follow the Fernet specification. Replace the value."
            }
            Self::Token(_) | Self::Value { .. } => {
                "Append the key that the token was made with to the list of keys. \
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
            Self::OutOfMemory => "Configure fewer keys, or pass a smaller batch_size.",
            Self::NoRandomness => "Check the random number source of the operating system.",
            Self::Null(_) => "Leave the argument out where it has a default.",
            Self::LessThanOne(_) => "Leave the argument out to get its default.",
            Self::InTransaction => {
                "Call it on its own, outside of a transaction block, since it commits after each \
                 batch. Inside, use UPDATE ... SET column = fernet_rotate(column) WHERE \
                 fernet_key_index(column) > 1."
            }
            Self::NoRelation(_) => "It may have been dropped. Give the name of a table.",
            Self::NoRows { .. } => "Give the name of a table.",
            Self::NoColumn { .. } => "fernet_find_columns() finds the columns that hold tokens.",
            Self::ColumnType { .. } => {
                "Tokens are kept in columns of type text, varchar, char, citext or bytea, or of a \
                 domain over one of them."
            }
            Self::PartitionKey { .. } => {
                "Each new token may belong into another partition: use UPDATE on the partitioned \
                 table, SET column = fernet_rotate(column) WHERE fernet_key_index(column) > 1."
            }
            Self::ReplicationCancelled => {
                "Call it again once a synchronous standby is there: it goes on where it ended."
            }
            Self::Generated { .. } => "Rotate the column that it is computed from.",
            Self::NotATable { kind, .. } => match kind {
                Kind::View => "Rotate the tables that the view reads.",
                Kind::MaterializedView => {
                    "Rotate the tables that the materialized view reads, and refresh it."
                }
                Kind::ForeignTable => "Rotate the table on the server that holds it.",
                _ => "Give the name of a table.",
            },
            Self::AccessMethod { .. } => {
                "Use UPDATE ... SET column = fernet_rotate(column) WHERE \
                 fernet_key_index(column) > 1."
            }
            Self::Copies { .. } => {
                "Rotated one by one, they would be different tokens. Compute the new tokens in a \
                 MATERIALIZED subquery of an UPDATE."
            }
            Self::OtherKeys => {
                "Set the same keys on every node, in the same order. fernet_keys() shows their \
                 fingerprints."
            }
            Self::Answer => "Update the extension on each node.",
            Self::Shards { .. } => {
                "Each node needs the extension and the same keys, in fernet.keys_file, and the \
                 caller needs the same privileges there. What was done on other shards stays: \
                 call it again."
            }
            Self::HiddenRows { .. } => {
                "Call it as the owner of the table or as a role with BYPASSRLS."
            }
        }
    }
}

/// Warns the client of something that is no error.
pub(crate) fn warn(message: String, detail: Option<String>, hint: &str) {
    let mut report =
        ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, message, "pg_fernet").set_hint(hint);
    if let Some(detail) = detail {
        report = report.set_detail(detail);
    }
    report.report(PgLogLevel::WARNING);
}

/// Tells the client how something is going.
pub(crate) fn notice(message: String) {
    let code = PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION;
    ErrorReport::new(code, message, "pg_fernet").report(PgLogLevel::NOTICE);
}

impl From<Error> for ErrorReport {
    fn from(error: Error) -> Self {
        let report =
            Self::new(error.sqlstate(), error.message(), "pg_fernet").set_hint(error.hint());
        match error.detail() {
            Some(detail) => report.set_detail(detail),
            None => report,
        }
    }
}

/// Returns why input or output failed, as PostgreSQL says it: without the number of the error.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let reason = text
        .split_once(" (os error ")
        .map_or(&*text, |(reason, _)| reason);
    // It is in the language of lc_messages.
    shown(reason.as_bytes())
}
