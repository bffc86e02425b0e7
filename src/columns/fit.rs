//! Whether a column takes what its values are to be encrypted or decrypted to.
//!
//! A token is longer than its plaintext, and another one each time. The server would stop at the first
//! row that a constraint does not let through, with half of the column converted, and some of its
//! messages show the value. And it lets a superuser write to its own catalogs.

use std::ffi::CStr;

use pgrx::prelude::*;

use super::conversion::Conversion;
use super::{Error, warning};
use crate::fernet::sealed_len;
use crate::pg::encoding;
use crate::pg::relation::{Column, Lock, Relation};
use crate::pg::spi::{Argument, Connection};

/// What may not take new values: a constraint, an index or a generated column.
#[derive(Clone, Debug)]
pub(crate) struct Constraint {
    pub(super) column: String,
    pub(super) relation: String,
    /// What it is, and its name, for a message.
    pub(super) name: String,
}

/// Refuses what cannot be encrypted or decrypted in a table that can be rotated. Returns what refuses
/// it as soon as there is anything to do: who has a constraint that only tokens satisfy can still have
/// the proof.
pub(super) fn check(
    connection: &Connection,
    oid: pg_sys::Oid,
    column_name: &CStr,
    conversion: Conversion,
) -> Result<Option<Constraint>, Error> {
    let encrypts = match conversion {
        // A token has the length of the one before.
        Conversion::Rotate { .. } => return Ok(None),
        Conversion::Encrypt => true,
        Conversion::Decrypt => false,
    };
    let relation = Relation::open(connection, oid, Lock::Write).ok_or(Error::NoRelation(oid))?;
    let column = relation.column(column_name)?;
    let printable_name = || encoding::printable(column_name.to_bytes());
    if relation.is_catalog() {
        return Err(Error::Catalog {
            relation: relation.printable_name(),
        });
    }
    if column.value_type.plaintext().is_none() {
        return Err(Error::NoPlaintext {
            column: printable_name(),
            relation: relation.printable_name(),
            type_name: column.printable_type(),
        });
    }
    let takes_a_token = column
        .max_chars()
        .is_none_or(|max| Some(max) >= sealed_len(0));
    if encrypts && !takes_a_token {
        return Err(Error::TooShort {
            column: printable_name(),
            relation: relation.printable_name(),
        });
    }
    let mut constraint = None;
    for Dependent {
        name,
        is_in_the_way,
    } in dependents(connection, &relation, &column, encrypts)
    {
        if is_in_the_way {
            constraint.get_or_insert_with(|| Constraint {
                column: printable_name(),
                relation: relation.printable_name(),
                name,
            });
        } else {
            warning::useless(&name).warn();
        }
    }
    Ok(constraint)
}

/// Refuses a token of that length if the column is too short for it.
pub(super) fn check_token(
    column: &Column,
    len: usize,
    place: impl FnOnce() -> String,
) -> Result<(), Error> {
    match column.max_chars() {
        Some(max) if len > max => Err(Error::TooLong {
            place: place(),
            len,
            type_name: column.printable_type(),
        }),
        _ => Ok(()),
    }
}

/// What is made of the values of a column.
struct Dependent {
    /// What it is, and its name, for a message.
    name: String,
    /// Whether new values may be refused.
    is_in_the_way: bool,
}

/// Returns the constraints that a column is in, those of the domain that is its type, its indexes, and
/// the columns that are generated from it.
///
/// A CHECK constraint that is NOT VALID does not hold for the rows that are there: it may be there for
/// the tokens that are to come, and is let through for these. What an index computes of a value may fail
/// for another, and a predicate on it may no longer hold.
fn dependents(
    connection: &Connection,
    relation: &Relation<'_>,
    column: &Column,
    encrypts: bool,
) -> Vec<Dependent> {
    const DEPENDENTS: &str = "
        WITH RECURSIVE domain (oid) AS (
            SELECT atttypid FROM pg_attribute WHERE attrelid = $1 AND attnum = $2
            UNION ALL
            SELECT t.typbasetype FROM domain AS d JOIN pg_type AS t USING (oid) WHERE t.typtype = 'd'
        )
        SELECT format('constraint %I of %s', c.conname,
                      CASE c.conrelid WHEN 0 THEN 'domain ' || c.contypid::regtype ELSE c.conrelid::regclass::text END),
               true
        FROM pg_constraint AS c
        WHERE c.contype = 'c' AND (c.convalidated OR NOT $3)
              AND (c.conrelid = $1 AND c.conkey && ARRAY[$2, 0]::smallint[]
                   OR c.contypid IN (SELECT oid FROM domain))
           -- What a foreign key refers to has a unique index.
           OR c.contype = 'f' AND c.conrelid = $1 AND $2 = ANY (c.conkey)
        UNION ALL
        SELECT format('generated column %I of %s', a.attname, a.attrelid::regclass), true
        FROM pg_attribute AS a JOIN pg_attrdef AS d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
        WHERE a.attrelid = $1 AND a.attgenerated <> '' AND d.adbin::text ~ format(' :varattno %s ', $2)
        UNION ALL
        SELECT CASE WHEN c.oid IS NULL THEN format('index %s', i.indexrelid::regclass)
                    ELSE format('constraint %I of %s', c.conname, c.conrelid::regclass) END,
               is_in_the_way
        FROM pg_index AS i
        LEFT JOIN pg_constraint AS c ON c.conindid = i.indexrelid AND c.contype IN ('p', 'u', 'x')
        CROSS JOIN LATERAL (
            SELECT EXISTS (SELECT FROM generate_series(0, i.indnkeyatts - 1) AS n WHERE i.indkey[n] = $2),
                   -- pg_depend does not tell the whole row, which is 0, from a column that is a key as well.
                   concat(i.indexprs, i.indpred) ~ format(' :varattno (0|%s) ', $2)
        ) AS column_is (key, computed)
        CROSS JOIN LATERAL (
            SELECT (i.indisunique OR i.indisexclusion) AND key OR computed
        ) AS u (is_in_the_way)
        WHERE i.indrelid = $1
          AND (is_in_the_way
               -- One of a partition is made of that of its table.
               OR $3 AND $2 = ANY (i.indkey)
                  AND NOT (SELECT relispartition FROM pg_class WHERE oid = i.indexrelid))
        ORDER BY 2 DESC, 1";
    connection.with_pinned_search_path(|| {
        let types = [pg_sys::OIDOID, pg_sys::INT4OID, pg_sys::BOOLOID];
        let plan = connection.prepare(&[DEPENDENTS.as_bytes()], types);
        let arguments = [
            Argument::oid(relation.oid()),
            Argument::i32(column.number.into()),
            Argument::bool(encrypts),
        ];
        plan.open(arguments).collect(|row| Dependent {
            name: row.printable(1),
            is_in_the_way: row.get(2),
        })
    })
}
