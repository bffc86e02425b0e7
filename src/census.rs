//! What the columns of a database hold, without a look at any plaintext: `fernet_census` and
//! `fernet_find_columns`.

#![allow(
    clippy::result_large_err,
    reason = "pgrx takes the SQLSTATE of an ErrorReport alone, by value"
)]

use std::ffi::CStr;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::catalog::{Kind, Lock, Name, Relation, literal, schema_of};
use crate::citus::{self, Spread};
use crate::error::Error;
use crate::fernet::Keyring;
use crate::functions::{fingerprints, is_token, shown, sql_index};
use crate::key_source::keyring;
use crate::server;
use crate::spi::{Argument, Connection, Row, Scalar};
use crate::text::Buffer;

type Result<T, E = ErrorReport> = std::result::Result<T, E>;

type CensusRow = (
    name!(status, &'static str),
    name!(key_index, Option<i32>),
    name!(fingerprint, Option<String>),
    name!(tokens, i64),
);

#[allow(
    clippy::type_complexity,
    reason = "pgrx wants the columns of a table function spelt out"
)]
#[pg_extern(sql = false)]
fn fernet_census(
    relation: pg_sys::Oid,
    column_name: Name,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<
    TableIterator<
        'static,
        (
            name!(status, &'static str),
            name!(key_index, Option<i32>),
            name!(fingerprint, Option<String>),
            name!(tokens, i64),
        ),
    >,
> {
    let keyring = keyring()?;
    let mut census = Census::new(&keyring)?;
    let connection = Connection::read_only();
    let relation =
        Relation::open(&connection, relation, Lock::Read).ok_or(Error::NoRelation(relation))?;
    if relation.kind() == Kind::Other {
        return Err(Error::NoRows {
            relation: relation.shown(),
        }
        .into());
    }
    let column = relation.column(column_name.as_cstr())?;
    // In a transaction, other sessions might see other rows, or wait for our own locks.
    if Spread::of(&connection, relation.oid()) == Spread::Shards && !server::in_transaction_block()
    {
        census.add_shards(
            &connection,
            &relation,
            column_name.as_cstr(),
            &schema_of(fcinfo),
        )?;
        return Ok(TableIterator::new(census.rows()?));
    }
    let select = connection.prepare(
        &[
            b"SELECT t.",
            &column.name,
            b" FROM ",
            &relation.name(),
            b" AS t",
        ],
        [],
    );
    let mut cursor = select.open([]);
    if !matches!(relation.kind(), Kind::Table | Kind::MaterializedView) {
        cursor.expect_large_rows();
    }
    while let Some(rows) = cursor.fetch() {
        for row in rows.iter() {
            row.with_bytes(1, |value| census.count(value))?;
        }
    }
    drop(cursor);
    Ok(TableIterator::new(census.rows()?))
}

/// Counts tokens by what opens them, and values without any.
struct Census<'a> {
    keyring: &'a Keyring,
    /// How many tokens each key opens.
    under_key: Vec<i64>,
    unknown_key: i64,
    not_a_token: i64,
    nulls: i64,
}

impl<'a> Census<'a> {
    fn new(keyring: &'a Keyring) -> Result<Self, Error> {
        let mut under_key = Vec::new();
        under_key.try_reserve_exact(keyring.keys().len())?;
        under_key.resize(keyring.keys().len(), 0);
        Ok(Self {
            keyring,
            under_key,
            unknown_key: 0,
            not_a_token: 0,
            nulls: 0,
        })
    }

    fn count(&mut self, value: Option<&[u8]>) -> Result<(), Error> {
        let Some(value) = value else {
            self.nulls += 1;
            return Ok(());
        };
        let mut buffer = Buffer::new(value.len())?;
        let mut tokens = 0;
        self.keyring.inspect_value(value, &mut buffer, |opener| {
            tokens += 1;
            match opener {
                Ok(index) => self.under_key[index] += 1,
                Err(_) => self.unknown_key += 1,
            }
        });
        self.not_a_token += i64::from(tokens == 0);
        Ok(())
    }

    /// Counts the values in the shards of a table, each where it is.
    fn add_shards(
        &mut self,
        connection: &Connection,
        relation: &Relation<'_>,
        column_name: &CStr,
        schema: &[u8],
    ) -> Result<(), Error> {
        let before = [
            b"SELECT pg_catalog.concat(pg_catalog.string_agg(fingerprint, ','), ' ', \
              pg_catalog.string_agg(tokens::pg_catalog.text, ' ')) FROM ",
            schema,
            b".fernet_census(",
        ]
        .concat();
        let after = [b", ", &literal(column_name)[..], b")"].concat();
        let fingerprints = citus::fingerprints(self.keyring);
        let parse = |text: &str| {
            let (theirs, counts) = text.split_once(' ').ok_or(Error::Answer)?;
            if theirs != fingerprints {
                return Err(Error::OtherKeys);
            }
            citus::parse_counts(counts).ok_or(Error::Answer)
        };
        for counts in citus::on_shards(connection, relation.oid(), &before, &after, parse)? {
            let counters = (self.under_key.iter_mut()).chain([
                &mut self.unknown_key,
                &mut self.not_a_token,
                &mut self.nulls,
            ]);
            for (counter, count) in counters.zip(counts) {
                *counter += count;
            }
        }
        Ok(())
    }

    /// Returns a row for each status and key, whether there are such values or not.
    fn rows(self) -> Result<impl Iterator<Item = CensusRow> + use<>, Error> {
        let keys = fingerprints(self.keyring)?.into_iter().zip(self.under_key);
        let under_keys = keys.enumerate().map(|(index, (fingerprint, tokens))| {
            let status = if index == 0 { "current" } else { "old key" };
            (
                status,
                Some(sql_index(index)),
                Some(shown(fingerprint)),
                tokens,
            )
        });
        Ok(under_keys.chain([
            ("unknown key", None, None, self.unknown_key),
            ("not a token", None, None, self.not_a_token),
            ("null", None, None, self.nulls),
        ]))
    }
}

impl Scalar for Name {}

/// The columns that may hold tokens and that the caller may read, with their relation, and the
/// percentage of its blocks that is likely to hold `$1` rows.
///
/// A partitioned table stands for its partitions. If one of these is foreign, the others stand for
/// themselves: through the table, it would be read as a whole, if it can be reached. At least some 16 blocks are read, since a sample
/// of few blocks may turn out to be none. A standby has nothing of unlogged tables. The function's
/// own search_path applies.
const CANDIDATES: &[u8] = b"
    WITH mixed (oid) AS (
        SELECT DISTINCT pg_partition_root(oid) FROM pg_class WHERE relkind = 'f' AND relispartition)
    SELECT c.oid, a.attname,
           least(100, 100 * greatest($1 / greatest(s.rows, 1), 16 / greatest(s.blocks, 1)))::float8
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    CROSS JOIN LATERAL (
        WITH RECURSIVE types (oid, base) AS (
            SELECT oid, typbasetype FROM pg_type WHERE oid = a.atttypid
            UNION ALL
            SELECT t.oid, t.typbasetype FROM types JOIN pg_type AS t ON t.oid = types.base)
        SELECT oid FROM types WHERE base = 0) AS t
    CROSS JOIN LATERAL (
        SELECT sum(greatest(l.reltuples, 0))::float8, sum(l.relpages)::float8, bool_or(l.relpersistence = 'u')
        FROM pg_class AS l
        WHERE l.oid = c.oid OR c.relkind = 'p' AND l.oid IN (SELECT relid FROM pg_partition_tree(c.oid))
    ) AS s (rows, blocks, unlogged)
    LEFT JOIN mixed AS m ON m.oid = coalesce(pg_partition_root(c.oid), c.oid)
    WHERE CASE WHEN m.oid IS NULL THEN c.relkind IN ('r', 'p', 'm') AND NOT c.relispartition
               ELSE c.relkind = 'r' END
      AND c.relispopulated
      AND t.oid IN ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype, 'bytea'::regtype)
      AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
      AND NOT pg_is_other_temp_schema(n.oid)
      AND NOT (s.unlogged AND pg_is_in_recovery())
      AND has_schema_privilege(n.oid, 'USAGE')
      AND has_column_privilege(c.oid, a.attnum, 'SELECT')
    ORDER BY n.nspname, c.relname, a.attnum";

#[pg_extern(sql = false)]
fn fernet_find_columns(
    sample_rows: i32,
) -> Result<
    TableIterator<
        'static,
        (
            name!(relation, pg_sys::Oid),
            name!(column_name, Name),
            name!(sampled, i64),
            name!(tokens, i64),
        ),
    >,
> {
    if sample_rows < 1 {
        return Err(Error::LessThanOne("sample_rows").into());
    }
    let connection = Connection::read_only();
    let mut candidates = Vec::new();
    let mut cursor = connection
        .prepare(&[CANDIDATES], [pg_sys::INT4OID])
        .open([Argument::i32(sample_rows)]);
    while let Some(rows) = cursor.fetch() {
        candidates.extend(rows.iter().map(|row| Candidate::new(&row)));
    }
    drop(cursor);

    let mut found = Vec::new();
    for columns in candidates.chunk_by_mut(|a, b| a.relation == b.relation) {
        // Somebody may have dropped it by now.
        let Some(relation) = Relation::open(&connection, columns[0].relation, Lock::Read) else {
            continue;
        };
        if relation.hides_rows() {
            warn_of_hidden_rows(&relation);
            continue;
        }
        sample(&connection, &relation, columns, sample_rows)?;
        let with_tokens = columns.iter().filter(|column| column.tokens > 0);
        found.extend(with_tokens.map(|c| (c.relation, c.name, c.sampled, c.tokens)));
    }
    Ok(TableIterator::new(found))
}

/// A column that may hold tokens.
struct Candidate {
    relation: pg_sys::Oid,
    name: Name,
    percent: f64,
    /// How many values were looked at, and how many of them are tokens.
    sampled: i64,
    tokens: i64,
}

impl Candidate {
    fn new(row: &Row<'_>) -> Self {
        Self {
            relation: row.get(1),
            name: row.get(2),
            percent: row.get(3),
            sampled: 0,
            tokens: 0,
        }
    }
}

/// Looks at some rows of a relation, the same ones each time as long as it does not change.
fn sample(
    connection: &Connection,
    relation: &Relation<'_>,
    columns: &mut [Candidate],
    sample_rows: i32,
) -> Result<(), Error> {
    let mut names = Vec::new();
    for column in columns.iter() {
        match relation.column(column.name.as_cstr()) {
            Ok(column) => names.push(column.name),
            // Somebody has dropped or changed it meanwhile.
            Err(_) => names.push(b"NULL::pg_catalog.text".to_vec()),
        }
    }
    let select = [
        b"SELECT ",
        &names.join(&b", "[..])[..],
        b" FROM ",
        &relation.name(),
        format!(
            " TABLESAMPLE SYSTEM ({}) REPEATABLE (0) LIMIT {sample_rows}",
            columns[0].percent
        )
        .as_bytes(),
    ]
    .concat();
    let mut cursor = connection.prepare(&[&select], []).open([]);
    while let Some(rows) = cursor.fetch() {
        for row in rows.iter() {
            for (column, number) in columns.iter_mut().zip(1..) {
                let is_token = row.with_bytes(number, |value| value.map(is_token).transpose())?;
                column.sampled += i64::from(is_token.is_some());
                column.tokens += i64::from(is_token == Some(true));
            }
        }
    }
    Ok(())
}

fn warn_of_hidden_rows(relation: &Relation<'_>) {
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_WARNING,
        format!(
            "left out {}: row-level security may hide rows of it",
            relation.shown()
        ),
        "pg_fernet",
    )
    .set_hint("Call fernet_find_columns() as the owner of the table or as a role with BYPASSRLS.")
    .report(PgLogLevel::WARNING);
}
