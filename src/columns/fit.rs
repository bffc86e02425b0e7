//! Whether a column takes the new values of an encryption or a decryption.
//!
//! A token is longer than its plaintext, and differs each time. The server would stop at the first row
//! that a constraint refuses, with half of the column converted, and some of its messages would show
//! the value. It also lets a superuser write to its own catalogs.

use std::ffi::CStr;

use pgrx::prelude::*;

use super::conversion::Conversion;
use super::{Error, warning};
use crate::fernet::sealed_len;
use crate::pg::encoding;
use crate::pg::relation::{Column, Lock, Relation};
use crate::pg::spi::{Argument, Connection, KeptQuery};

/// Something that may refuse new values: a constraint, an index, a policy or the like.
#[derive(Clone, Debug)]
pub(crate) struct Constraint {
    pub(super) column: String,
    pub(super) relation: String,
    /// Its kind and name, for a message.
    pub(super) name: String,
}

impl Constraint {
    fn among(
        dependents: &[Dependent],
        relation: &Relation<'_>,
        column_name: &CStr,
    ) -> Option<Self> {
        let dependent = dependents.iter().find(|d| d.is_in_the_way)?;
        Some(Self {
            column: encoding::printable(column_name.to_bytes()),
            relation: relation.printable_name(),
            name: dependent.name.clone(),
        })
    }
}

/// Refuses what cannot be encrypted or decrypted, though it could be rotated. Returns the constraint
/// that makes the first value to be converted an error. It is no error yet: a table with a constraint
/// that only tokens satisfy can still have the proof.
pub(super) fn check(
    connection: &Connection,
    oid: pg_sys::Oid,
    column_name: &CStr,
    conversion: Conversion,
) -> Result<Option<Constraint>, Error> {
    if matches!(conversion, Conversion::Rotate { .. }) {
        // A new token is as long as the old one.
        return Ok(None);
    }
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
    if conversion == Conversion::Encrypt && !takes_a_token {
        return Err(Error::TooShort {
            column: printable_name(),
            relation: relation.printable_name(),
        });
    }
    let dependents = dependents(connection, &relation, &column, conversion);
    let constraint = Constraint::among(&dependents, &relation, column_name);
    if constraint.is_none() {
        for index in dependents {
            warning::useless(&index.name).warn();
        }
    }
    Ok(constraint)
}

/// Refuses a table if something was added since [`check`] that may refuse the values. What a writer's
/// lock keeps out cannot be added before the transaction ends; the rest can.
pub(super) fn check_again(
    connection: &Connection,
    relation: &Relation<'_>,
    column: &Column,
    column_name: &CStr,
    conversion: Conversion,
) -> Result<(), Error> {
    let dependents = dependents(connection, relation, column, conversion);
    match Constraint::among(&dependents, relation, column_name) {
        Some(constraint) => Err(Error::Constrained(constraint)),
        None => Ok(()),
    }
}

/// Refuses a token of length `len` if the column is too short for it.
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

/// An object that depends on the values of a column.
struct Dependent {
    /// Its kind and name, for a message.
    name: String,
    /// Whether it may refuse new values, or may show other rows because of them.
    is_in_the_way: bool,
}

/// Returns the objects that depend on the values of a column, those in the way first. It sees them as
/// they are now, not as the statement's snapshot shows them: the caller may have waited for another
/// session that was changing the table.
///
/// These are the column's constraints and those of its domain; and indexes, generated columns and
/// extended statistics, whose expressions may fail for a new value. They are also policies and the row
/// filters of publications, which would show other rows. Policies and filters of the tables that it
/// inherits from count, too.
///
/// An expression that asks only whether the value is NULL holds for a new one as well; any other may
/// not. A CHECK constraint that is NOT VALID is let through: it does not hold for the existing rows, and
/// may be meant for the tokens that are to come.
fn dependents(
    connection: &Connection,
    relation: &Relation<'_>,
    column: &Column,
    conversion: Conversion,
) -> Vec<Dependent> {
    let encrypts = match conversion {
        // A new token is as long as the old one.
        Conversion::Rotate { .. } => return Vec::new(),
        Conversion::Encrypt => true,
        Conversion::Decrypt => false,
    };
    connection.with_latest_snapshot(|| {
        connection.with_pinned_search_path(|| {
            let arguments = [
                Argument::oid(relation.oid()),
                Argument::i32(column.number.into()),
                Argument::bool(encrypts),
            ];
            let dependents = connection.open_kept(&DEPENDENTS, arguments);
            dependents.collect(|row| Dependent {
                name: row.printable(1),
                is_in_the_way: row.get(2),
            })
        })
    })
}

/// The query of [`dependents`]. To plan it takes many times as long as to run it, which a table with a thousand
/// partitions would need for each.
///
/// The column conenforced exists from PostgreSQL 18 on. An index of a partition is made from that of the
/// partitioned table.
const QUERY: &str = "
    WITH RECURSIVE domain (oid) AS (
        SELECT atttypid FROM pg_attribute WHERE attrelid = $1 AND attnum = $2
        UNION ALL
        SELECT t.typbasetype FROM domain AS d JOIN pg_type AS t USING (oid) WHERE t.typtype = 'd'
    ), line (oid, number) AS (
        SELECT $1, $2
        UNION
        SELECT up.attrelid, up.attnum::integer
        FROM line AS l
        JOIN pg_attribute AS a ON (a.attrelid, a.attnum) = (l.oid, l.number)
        JOIN pg_inherits AS i ON i.inhrelid = l.oid
        JOIN pg_attribute AS up ON (up.attrelid, up.attname) = (i.inhparent, a.attname)
    ), enforced AS (
        SELECT c.*
        FROM (SELECT * FROM pg_constraint WHERE conrelid = $1
              UNION ALL
              SELECT c.* FROM domain AS d JOIN pg_constraint AS c ON c.contypid = d.oid) AS c
        WHERE coalesce((to_jsonb(c) ->> 'conenforced')::boolean, true)
    ), index AS (
        SELECT CASE WHEN c.oid IS NULL THEN format('index %s', i.indexrelid::regclass)
                    ELSE format('constraint %I of %s', c.conname, c.conrelid::regclass) END AS name,
               indisunique OR indisexclusion AS is_constraint, i.*
        FROM pg_index AS i
        LEFT JOIN enforced AS c ON c.conindid = i.indexrelid AND c.contype IN ('p', 'u', 'x')
        WHERE i.indrelid = $1
    ), expression (name, tree, variable) AS (
        SELECT format('constraint %I of %s', conname,
                      CASE conrelid WHEN 0 THEN 'domain ' || contypid::regtype ELSE conrelid::regclass::text END),
               conbin::text, CASE conrelid WHEN 0 THEN 'COERCETODOMAINVALUE' ELSE format(':varattno (0|%s) ', $2) END
        FROM enforced
        WHERE contype = 'c' AND (convalidated OR NOT $3)
        UNION ALL
        SELECT format('generated column %I of %s', a.attname, a.attrelid::regclass), d.adbin::text, format(':varattno %s ', $2)
        FROM pg_attribute AS a JOIN pg_attrdef AS d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
        WHERE a.attrelid = $1 AND a.attgenerated <> ''
        UNION ALL
        SELECT name, concat(indexprs, indpred), format(':varattno (0|%s) ', $2)
        FROM index
        UNION ALL
        SELECT format('statistics %s.%I', s.stxnamespace::regnamespace, s.stxname), s.stxexprs::text, format(':varattno (0|%s) ', l.number)
        FROM line AS l JOIN pg_statistic_ext AS s ON s.stxrelid = l.oid
        UNION ALL
        SELECT format('the row filter of publication %I', p.pubname), r.prqual::text, format(':varattno (0|%s) ', l.number)
        FROM line AS l JOIN pg_publication_rel AS r ON r.prrelid = l.oid JOIN pg_publication AS p ON p.oid = r.prpubid
    )
    SELECT name, true
    FROM expression
    WHERE regexp_replace(tree, '[{]NULLTEST :arg [{][^{}]*[}][^{}]*[}]', '', 'g') ~ variable
    UNION ALL
    -- A policy, of whatever table, may have subqueries, in which the numbers are those of other columns. One
    -- that has whole rows depends on the table as a whole.
    SELECT format('policy %I of %s', p.polname, p.polrelid::regclass), true
    FROM line AS l
    JOIN pg_depend AS d ON (d.refclassid, d.refobjid) = ('pg_class'::regclass, l.oid)
    JOIN pg_policy AS p ON d.classid = 'pg_policy'::regclass AND d.objid = p.oid
    WHERE d.refobjsubid = l.number OR d.refobjsubid = 0 AND concat(p.polqual, p.polwithcheck) ~ ':varattno 0 '
    UNION ALL
    -- What a foreign key refers to has a unique index.
    SELECT format('constraint %I of %s', conname, conrelid::regclass), true
    FROM enforced
    WHERE contype = 'f' AND $2 = ANY (conkey)
    UNION ALL
    SELECT name, is_constraint
    FROM index
    WHERE CASE WHEN is_constraint THEN EXISTS (SELECT FROM generate_series(0, indnkeyatts - 1) AS n WHERE indkey[n] = $2)
               ELSE $3 AND indkey[0] = $2 AND NOT (SELECT relispartition FROM pg_class WHERE oid = indexrelid) END
    ORDER BY 2 DESC, 1";

thread_local! {
    static DEPENDENTS: KeptQuery<3> =
        const { KeptQuery::new(QUERY, [pg_sys::OIDOID, pg_sys::INT4OID, pg_sys::BOOLOID]) };
}
