use std::collections::TryReserveError;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::fit::Constraint;
use crate::pg::relation::Kind;
use crate::pg::{self, Report};
use crate::{fernet, keys};

/// Why a call on a whole column is refused.
#[derive(Debug)]
pub(crate) enum Error {
    Keys(keys::Error),
    Server(pg::Error),
    /// An argument of a procedure is null.
    Null(&'static str),
    /// An argument that counts rows is less than one.
    LessThanOne(&'static str),
    /// Another argument that counts something is negative.
    Negative(&'static str),
    /// A background worker does not have the keys of the session that started it.
    KeysOfSession,
    /// A procedure that commits was called in a transaction block or a function.
    InTransaction,
    /// There is no relation of that oid.
    NoRelation(pg_sys::Oid),
    /// The relation is an index, a sequence or the like.
    NoRows {
        relation: String,
    },
    /// The column is computed from others.
    Generated {
        column: String,
        relation: String,
    },
    /// The column is part of the key by which the table is partitioned.
    PartitionKey {
        column: String,
        relation: String,
    },
    /// The relation is no table of this database.
    NotATable {
        relation: String,
        kind: Kind,
    },
    /// It is one of the server's own catalogs.
    Catalog {
        relation: String,
    },
    /// No token fits into the column.
    TooShort {
        column: String,
        relation: String,
    },
    /// A constraint or the like may refuse the new values.
    Constrained(Constraint),
    /// The table's access method has no scans by range.
    AccessMethod {
        relation: String,
    },
    /// Policies for row-level security apply to the caller.
    HiddenRows {
        relation: String,
    },
    /// The rows have copies on several Citus nodes, and the copies would come to differ.
    Replicated {
        relation: String,
    },
    /// A Citus node has other keys than the node that calls it.
    OtherKeys,
    /// A Citus node has given an unexpected answer.
    UnexpectedResponse,
    /// Some shards of a table failed; for each node, why.
    Shards {
        failed: usize,
        all: usize,
        failures: Vec<String>,
    },
    /// Values of the column's type are never plaintexts as a whole.
    NoPlaintext {
        column: String,
        relation: String,
        type_name: String,
    },
    /// `fernet_encrypt_trigger` was called other than by a trigger.
    NotATrigger,
    /// The trigger does not fire before a row is written.
    TriggerEvent {
        trigger: String,
        relation: String,
    },
    /// The trigger names no column.
    TriggerArguments {
        trigger: String,
        relation: String,
    },
    /// A column that a trigger names is refused.
    Trigger(Box<Self>),
    /// A token is longer than the column takes.
    TooLong {
        place: String,
        len: usize,
        type_name: String,
    },
    /// A value that is written to a column holds a token and other text.
    InText {
        place: String,
    },
    /// A value in a column is no token, or no key opens it.
    Value {
        place: String,
        refusal: fernet::Error,
    },
    /// A value in a column cannot be encrypted or decrypted, for the given reason.
    Row {
        place: String,
        reason: pg::Error,
    },
}

impl Error {
    /// Names the row of a value that could not be converted, if the value is at fault.
    pub(super) fn of_row(error: pg::Error, place: impl FnOnce() -> String) -> Self {
        use pg::Error::{NotText, NotUtf8, TooLarge};
        match error {
            reason @ (NotText | NotUtf8 | TooLarge) => Self::Row {
                place: place(),
                reason,
            },
            error => Self::Server(error),
        }
    }
}

/// The hint for a column that is too short.
const MAKE_IT_TEXT: &str = "Make the column text: a token has up to 100 characters more than four thirds of the bytes \
                            of its plaintext.";

/// The hint for a trigger that is not declared as it must be.
const CREATE_TRIGGER: &str = "Use CREATE TRIGGER ... BEFORE INSERT OR UPDATE ON table FOR EACH ROW EXECUTE \
                              FUNCTION fernet_encrypt_trigger('column', 'another').";

impl From<Error> for Report {
    fn from(error: Error) -> Self {
        use PgSqlErrorCode as Code;
        match error {
            Error::Keys(error) => error.into(),
            Error::Server(error) => error.into(),
            Error::Null(argument) => Self::new(
                Code::ERRCODE_NULL_VALUE_NOT_ALLOWED,
                format!("{argument} must not be null"),
                "Leave the argument out where it has a default.",
            ),
            Error::LessThanOne(argument) => Self::new(
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("{argument} must be at least 1"),
                "Leave the argument out to get its default.",
            ),
            Error::Negative(argument) => Self::new(
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("{argument} must be at least 0"),
                "Leave the argument out to get its default.",
            ),
            Error::KeysOfSession => Self::new(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "background workers have other keys than the session",
                "Background workers do not get the session's keys. Put the keys into a file and set \
                 fernet.keys_file instead of fernet.keys, or call it without workers.",
            ),
            Error::InTransaction => Self::new(
                Code::ERRCODE_INVALID_TRANSACTION_TERMINATION,
                "cannot commit in batches inside a transaction block",
                "Call it on its own, outside of a transaction block, since it commits after each \
                 batch. Inside, use UPDATE with fernet_rotate(), fernet_encrypt() or fernet_decrypt().",
            ),
            Error::NoRelation(oid) => Self::new(
                Code::ERRCODE_UNDEFINED_TABLE,
                format!("relation with OID {} does not exist", oid.to_u32()),
                "It may have been dropped. Give the name of a table.",
            ),
            Error::NoRows { relation } => Self::new(
                Code::ERRCODE_WRONG_OBJECT_TYPE,
                format!("{relation} is not a table or a view"),
                "Give the name of a table.",
            ),
            Error::Generated { column, relation } => Self::new(
                Code::ERRCODE_GENERATED_ALWAYS,
                format!("column \"{column}\" of {relation} is a generated column"),
                "Give the name of the column that it is computed from.",
            ),
            Error::PartitionKey { column, relation } => Self::new(
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("column \"{column}\" is in the partition key of {relation}"),
                "Each new value may belong to another partition: use UPDATE on the partitioned table, \
                 with fernet_rotate(), fernet_encrypt() or fernet_decrypt().",
            ),
            Error::NotATable { relation, kind } => Self::new(
                Code::ERRCODE_WRONG_OBJECT_TYPE,
                format!("{relation} is not a table"),
                match kind {
                    Kind::View => "Call it for the tables that the view reads.",
                    Kind::MaterializedView => {
                        "Call it for the tables that the materialized view reads, and refresh that."
                    }
                    Kind::ForeignTable => "Call it on the server that holds the table.",
                    _ => "Give the name of a table.",
                },
            ),
            Error::AccessMethod { relation } => Self::new(
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("access method of {relation} does not find rows by their block"),
                "Use UPDATE with fernet_rotate(), fernet_encrypt() or fernet_decrypt().",
            ),
            Error::Catalog { relation } => Self::new(
                Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("{relation} is a system catalog"),
                "Give the name of a table of your own.",
            ),
            Error::TooShort { column, relation } => Self::new(
                Code::ERRCODE_STRING_DATA_RIGHT_TRUNCATION,
                format!("column \"{column}\" of {relation} is too short for a token"),
                MAKE_IT_TEXT,
            ),
            Error::Constrained(Constraint {
                column,
                relation,
                name,
            }) => Self::new(
                Code::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
                format!("column \"{column}\" of {relation} is in {name}"),
                "A condition that holds for a plaintext may not hold for its token. Drop it first; afterwards, \
                 check whether it can be created again.",
            ),
            Error::HiddenRows { relation } => Self::new(
                Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("row-level security may hide rows of {relation}"),
                "Call it as the owner of the table or as a role with BYPASSRLS.",
            ),
            Error::Replicated { relation } => Self::new(
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("{relation} has copies of its rows on several nodes"),
                "If the copies were rotated one by one, they would differ. Compute the new tokens in a \
                 MATERIALIZED subquery of an UPDATE.",
            ),
            Error::OtherKeys => Self::new(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "keys are not those of the calling node",
                "Set the same keys on every node, in the same order. fernet_keys() shows their \
                 fingerprints.",
            ),
            Error::UnexpectedResponse => Self::new(
                Code::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
                "unexpected answer",
                "Update the extension on each node.",
            ),
            Error::Shards {
                failed,
                all,
                failures,
            } => {
                let report = Self::new(
                    Code::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
                    format!(
                        "{failed} of {all} shards failed, for instance on {}",
                        failures[0]
                    ),
                    "Each node needs the extension and the same keys, in fernet.keys_file, and the \
                     caller needs the same privileges there. What was done on other shards stays: \
                     call it again.",
                );
                if failures.len() > 1 {
                    report.with_detail(failures.join("\n"))
                } else {
                    report
                }
            }
            Error::NoPlaintext {
                column,
                relation,
                type_name,
            } => Self::new(
                Code::ERRCODE_DATATYPE_MISMATCH,
                format!(
                    "column \"{column}\" of {relation} is of type {type_name}, which cannot be encrypted or \
                     decrypted as a whole"
                ),
                "A token takes the place of values of type text, varchar, char, citext and bytea. Keep other \
                 secrets in a column of such a type.",
            ),
            Error::NotATrigger => Self::new(
                Code::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "fernet_encrypt_trigger() was not called as a trigger",
                CREATE_TRIGGER,
            ),
            Error::TriggerEvent { trigger, relation } => Self::new(
                Code::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                format!(
                    "trigger \"{trigger}\" of {relation} is not BEFORE INSERT OR UPDATE FOR EACH ROW"
                ),
                CREATE_TRIGGER,
            ),
            Error::TriggerArguments { trigger, relation } => Self::new(
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("trigger \"{trigger}\" of {relation} names no column"),
                CREATE_TRIGGER,
            ),
            Error::Trigger(error) => Self {
                hint: "Name columns of the table, of type text, varchar, char, citext or bytea: CREATE TRIGGER \
                       ... EXECUTE FUNCTION fernet_encrypt_trigger('column', 'another')."
                    .into(),
                ..Self::from(*error)
            },
            Error::TooLong {
                place,
                len,
                type_name,
            } => Self::new(
                Code::ERRCODE_STRING_DATA_RIGHT_TRUNCATION,
                format!("value too long for type {type_name}"),
                MAKE_IT_TEXT,
            )
            .with_detail(format!("A token for {place} has {len} characters.")),
            Error::InText { place } => Self::new(
                Code::ERRCODE_INVALID_TEXT_REPRESENTATION,
                format!("value is a Fernet token with other text beside it: {place}"),
                "Write a plaintext, or a token and nothing else. fernet_encrypt() makes a token of whatever is \
                 given to it.",
            ),
            Error::Row { place, reason } => {
                let report = Self::from(reason);
                Self {
                    message: format!("{}: {place}", report.message),
                    ..report
                }
            }
            Error::Value { place, refusal } => {
                let report = Self::from(refusal);
                // The message names the place, and so explains less than the error of a function
                // does.
                Self {
                    message: format!("{refusal}: {place}"),
                    ..report
                }
            }
        }
    }
}

impl From<Error> for ErrorReport {
    fn from(error: Error) -> Self {
        Report::from(error).into()
    }
}

impl From<keys::Error> for Error {
    fn from(error: keys::Error) -> Self {
        Self::Keys(error)
    }
}

impl From<pg::Error> for Error {
    fn from(error: pg::Error) -> Self {
        Self::Server(error)
    }
}

impl From<TryReserveError> for Error {
    fn from(error: TryReserveError) -> Self {
        Self::Server(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::report::assert_documented;

    #[test]
    fn all_are_documented() {
        let (column, relation) = (|| "value".into(), || "public.connection".into());
        let kinds = [
            Kind::View,
            Kind::MaterializedView,
            Kind::ForeignTable,
            Kind::Other,
        ];
        let not_tables = kinds.map(|kind| Error::NotATable {
            relation: relation(),
            kind,
        });
        let values = [
            (fernet::Error::NotAToken, "(0,1) of public.connection"),
            (fernet::Error::Unauthenticated, "(0,1) of public.connection"),
            (
                fernet::Error::Unauthenticated,
                "column \"value\" of public.connection",
            ),
        ];
        let values = values.map(|(refusal, place)| Error::Value {
            place: place.into(),
            refusal,
        });
        let reasons = [pg::Error::NotText, pg::Error::NotUtf8, pg::Error::TooLarge];
        let rows =
            reasons.map(|reason| Error::of_row(reason, || "(0,1) of public.connection".into()));
        let of_trigger = Error::of_row(pg::Error::NotUtf8, || {
            "column \"value\" of public.connection".into()
        });
        let errors = [
            Error::Keys(keys::Error::Unset),
            Error::Server(pg::Error::OutOfMemory),
            Error::Null("relation"),
            Error::LessThanOne("batch_size"),
            Error::Negative("workers"),
            Error::KeysOfSession,
            Error::InTransaction,
            Error::NoRelation(pg_sys::Oid::from(1234)),
            Error::NoRows {
                relation: relation(),
            },
            Error::Generated {
                column: column(),
                relation: relation(),
            },
            Error::PartitionKey {
                column: column(),
                relation: relation(),
            },
            Error::AccessMethod {
                relation: relation(),
            },
            Error::Catalog {
                relation: "pg_catalog.pg_authid".into(),
            },
            Error::TooShort {
                column: column(),
                relation: relation(),
            },
            Error::Constrained(Constraint {
                column: column(),
                relation: relation(),
                name: "constraint connection_value_check of public.connection".into(),
            }),
            Error::HiddenRows {
                relation: relation(),
            },
            Error::Replicated {
                relation: relation(),
            },
            Error::NoPlaintext {
                column: "extra".into(),
                relation: relation(),
                type_name: "jsonb".into(),
            },
            Error::NotATrigger,
            Error::TriggerEvent {
                trigger: "encrypt".into(),
                relation: relation(),
            },
            Error::TriggerArguments {
                trigger: "encrypt".into(),
                relation: relation(),
            },
            Error::InText {
                place: "column \"value\" of public.connection".into(),
            },
            Error::TooLong {
                place: "column \"value\" of public.connection".into(),
                len: 100,
                type_name: "character varying(64)".into(),
            },
            Error::OtherKeys,
            Error::UnexpectedResponse,
            Error::Shards {
                failed: 4,
                all: 8,
                failures: vec!["worker2:5432: keys are not those of the calling node".into()],
            },
        ];
        assert_documented(
            errors
                .into_iter()
                .chain(not_tables)
                .chain(values)
                .chain(rows)
                .chain([of_trigger])
                .map(Report::from),
        );
    }
}
