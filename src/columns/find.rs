//! `fernet_find_columns`: finds the columns that hold tokens, by sampling each.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::tally::inspect;
use super::{Error, warning};
use crate::fernet::{self, Keyring};
use crate::keys::{self, keyring};
use crate::pg;
use crate::pg::memory::with_room_for_errors;
use crate::pg::name::Name;
use crate::pg::relation::{Kind, Lock, Relation};
use crate::pg::spi::{Argument, Connection, Row};
use crate::pg::subtransaction::in_subtransaction;
use crate::pg::value::Buffer;
use crate::pg::value_type::Stored;

type Result<T, E = ErrorReport> = std::result::Result<T, E>;

type FoundRow = (
    name!(relation, pg_sys::Oid),
    name!(column_name, Name),
    name!(sampled, i64),
    name!(tokens, i64),
);

/// The columns that may hold tokens and that the caller may read. Each row gives the relation to
/// list, the table to read and its name, and the column. It also gives the percentage of the
/// table's blocks that is likely to hold `$1` rows of the relation, and the obstacle to reading the
/// table, if there is one.
///
/// Each table counts on its own, without those that inherit from it. A partitioned table represents
/// its partitions if the caller may read it and there is no obstacle in any of them. The partitions
/// are read one by one, since reading the partitioned table would lock all of them at once. If the
/// caller may not read each partition by itself, the partitioned table is read instead. A member
/// that the caller may read only through another table is not left out silently. At least some 16
/// blocks are read, since a sample of few blocks may turn out to be empty. The function's own
/// search_path applies.
///
/// There may be many tables, so nothing here visits all tables for each table. PostgreSQL 19 sizes the
/// hash table of a recursive query by the rows it expects, which may take many gigabytes; it expects few
/// rows from an array.
const CANDIDATES: &[u8] = b"
    WITH RECURSIVE types (oid) AS (
        (SELECT unnest('{text,varchar,bpchar,bytea,xml,json,jsonb}'::regtype[])::oid
        UNION ALL
        SELECT d.objid FROM pg_extension AS e
        JOIN pg_depend AS d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
        WHERE e.extname IN ('citext', 'hstore') AND d.classid = 'pg_type'::regclass AND d.deptype = 'e')
        UNION
        SELECT d.oid FROM types AS t
        JOIN pg_type AS d ON t.oid = CASE WHEN d.typtype = 'd' THEN d.typbasetype
                                          WHEN d.typsubscript = 'array_subscript_handler'::regproc THEN d.typelem END),
    tables AS (
        SELECT c.oid, n.nspname, c.relname, c.relkind, coalesce(pg_partition_root(c.oid), c.oid) AS root,
               has_schema_privilege(n.oid, 'USAGE') AS is_named,
               greatest(c.reltuples, 0)::float8 AS rows, c.relpages::float8 AS blocks,
               CASE WHEN c.relkind = 'f' THEN 'foreign'
                    WHEN c.relpersistence = 'u' AND pg_is_in_recovery() THEN 'unlogged' END AS obstacle
        FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE (c.relkind IN ('r', 'p', 'm')
               OR c.relkind = 'f' AND EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid))
          AND c.relispopulated
          AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
          AND NOT pg_is_other_temp_schema(n.oid)),
    columns AS (
        SELECT t.*, a.attname, a.attnum,
               t.is_named AND has_column_privilege(t.oid, a.attnum, 'SELECT') AS is_readable
        FROM tables AS t
        JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
        JOIN types ON types.oid = a.atttypid),
    trees AS (
        SELECT *,
               bool_and(obstacle IS NULL) OVER tree AND bool_or(is_readable AND oid = root) OVER tree
                   AS is_whole,
               bool_and(is_readable) FILTER (WHERE relkind <> 'p') OVER tree AS is_readable_by_part,
               sum(rows) FILTER (WHERE relkind <> 'p') OVER tree AS tree_rows,
               sum(blocks) FILTER (WHERE relkind <> 'p') OVER tree AS tree_blocks
        FROM columns
        WINDOW tree AS (PARTITION BY root, attname)),
    ancestors (oid, attname, ancestor) AS (
        SELECT c.oid, c.attname, c.oid
        FROM (SELECT array_agg(oid), array_agg(attname) FROM columns WHERE NOT is_readable AND relkind <> 'p') AS a (oids, attnames),
             unnest(oids, attnames) AS c (oid, attname)
        UNION
        SELECT a.oid, a.attname, i.inhparent
        FROM ancestors AS a JOIN pg_inherits AS i ON i.inhrelid = a.ancestor),
    heirs (oid, attname) AS (
        SELECT DISTINCT a.oid, a.attname
        FROM ancestors AS a JOIN columns AS c ON c.oid = a.ancestor AND c.attname = a.attname
        WHERE c.is_readable)
    SELECT s.oid, t.oid, format('%I.%I', t.nspname, t.relname), t.attname,
           least(100, 100 * greatest($1 / greatest(CASE WHEN t.is_whole THEN t.tree_rows ELSE t.rows END, 1),
                                     16 / greatest(CASE WHEN t.is_whole THEN t.tree_blocks ELSE t.blocks END, 1))),
           coalesce(t.obstacle, CASE WHEN NOT t.is_readable THEN 'not readable' END, '')
    FROM trees AS t
    JOIN tables AS s ON s.oid = CASE WHEN t.is_whole THEN t.root ELSE t.oid END
    LEFT JOIN heirs AS h ON h.oid = t.oid AND h.attname = t.attname
    WHERE CASE WHEN t.is_whole AND NOT t.is_readable_by_part THEN t.oid = t.root
               ELSE t.relkind <> 'p' AND (t.is_readable OR h.oid IS NOT NULL) END
    ORDER BY s.nspname, s.relname, t.nspname, t.relname, 6, t.attnum";

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
    Ok(TableIterator::new(with_room_for_errors(|| {
        find_columns(sample_rows)
    })?))
}

fn find_columns(sample_rows: i32) -> Result<Vec<FoundRow>> {
    let keyring = match keyring() {
        Ok(keyring) => Some(keyring),
        Err(keys::Error::Unset) => None,
        Err(error) => return Err(error.into()),
    };
    let count = |value: Stored<'_>| count_tokens(keyring.as_deref(), &value);
    let mut found = Vec::new();
    for relation in candidates(sample_rows).chunk_by_mut(|a, b| a.relation == b.relation) {
        let mut rows_left = i64::from(sample_rows);
        let tables = relation.chunk_by_mut(|a, b| (a.table, a.obstacle) == (b.table, b.obstacle));
        for (columns, seed) in tables.zip(0..) {
            if let Some(obstacle) = columns[0].obstacle {
                warning::left_out(&columns[0].table_name, obstacle).warn();
            } else if rows_left > 0 {
                rows_left -= look_at(columns, rows_left, seed, count)?;
            }
        }
        for sum in sums(relation).filter(|&(_, _, _, tokens)| tokens > 0) {
            found.try_reserve(1).map_err(pg::Error::from)?;
            found.push(sum);
        }
    }
    Ok(found)
}

/// Finds the columns to look at.
fn candidates(sample_rows: i32) -> Vec<Candidate> {
    let connection = Connection::read_only();
    connection
        .prepare(&[CANDIDATES], [pg_sys::INT4OID])
        .open([Argument::i32(sample_rows)])
        .collect(Candidate::new)
}

/// A column that may hold tokens, in one table.
struct Candidate {
    /// The relation that the table counts as.
    relation: pg_sys::Oid,
    table: pg_sys::Oid,
    table_name: String,
    name: Name,
    percent: f64,
    obstacle: Option<Obstacle>,
    /// How many values were sampled, and how many tokens they hold.
    sampled: i64,
    tokens: i64,
}

impl Candidate {
    fn new(row: &Row<'_>) -> Self {
        Self {
            relation: row.get(1),
            table: row.get(2),
            table_name: row.printable(3),
            name: row.get(4),
            percent: row.get(5),
            obstacle: Obstacle::from_name(&row.printable(6)),
            sampled: 0,
            tokens: 0,
        }
    }
}

/// Adds up, column by column, the counts of the tables that count as one relation.
fn sums(columns: &[Candidate]) -> impl Iterator<Item = FoundRow> + use<> {
    let mut sums: Vec<FoundRow> = Vec::new();
    for column in columns {
        let sum = sums
            .iter_mut()
            .find(|sum| sum.1.as_cstr() == column.name.as_cstr());
        match sum {
            Some((_, _, sampled, tokens)) => {
                *sampled += column.sampled;
                *tokens += column.tokens;
            }
            None => sums.push((column.relation, column.name, column.sampled, column.tokens)),
        }
    }
    sums.into_iter()
}

/// Counts the tokens in a value: those that a key opens and those that only have the form, or,
/// without keys, only the latter.
fn count_tokens(keyring: Option<&Keyring>, value: &Stored<'_>) -> Result<i64, Error> {
    let mut tokens = 0;
    match keyring {
        Some(keyring) => inspect(keyring, value, |_| tokens += 1)?,
        None => value.read(|part| {
            let mut buffer = Buffer::new(part.len())?;
            tokens += fernet::count_tokens(part, &mut buffer) as i64;
            Ok(())
        })?,
    }
    Ok(tokens)
}

/// Samples rows of a table, and returns how many.
///
/// Undoing the subtransaction releases its locks, including those on indexes and TOAST tables. It
/// has written nothing, so nothing is lost.
fn look_at(
    columns: &mut [Candidate],
    rows: i64,
    seed: u32,
    count: impl Fn(Stored<'_>) -> Result<i64, Error>,
) -> Result<i64, Error> {
    let table_name = columns[0].table_name.clone();
    let looked_at = in_subtransaction(
        |_| false,
        || {
            let connection = Connection::read_only();
            match Relation::open(&connection, columns[0].table, Lock::Read) {
                // The table may have been dropped by now.
                None => Ok(0),
                Some(relation) if relation.hides_rows() => {
                    warning::left_out(&table_name, Obstacle::HiddenRows).warn();
                    Ok(0)
                }
                Some(relation) => sample(&connection, &relation, columns, rows, seed, count),
            }
        },
    );
    looked_at.unwrap_or_else(|failure| {
        if failure.ends_the_statement() {
            failure.raise();
        }
        warning::unreadable(&table_name, &failure.message()).warn();
        Ok(0)
    })
}

/// Samples rows of a table: the same ones each time, as long as the table does not change.
fn sample(
    connection: &Connection,
    table: &Relation<'_>,
    columns: &mut [Candidate],
    rows: i64,
    seed: u32,
    count: impl Fn(Stored<'_>) -> Result<i64, Error>,
) -> Result<i64, Error> {
    let percent = columns[0].percent;
    // Only columns that nobody has dropped or changed meanwhile.
    let mut columns: Vec<_> = columns
        .iter_mut()
        .filter_map(|candidate| {
            let column = table.column(candidate.name.as_cstr()).ok()?;
            Some((candidate, column))
        })
        .collect();
    let names: Vec<_> = columns.iter().map(|(_, column)| &column.name[..]).collect();
    let names = names.join(&b", "[..]);
    let is_partitioned = table.kind() == Kind::PartitionedTable;
    let from: &[u8] = if is_partitioned {
        b" FROM "
    } else {
        b" FROM ONLY "
    };
    let mut sample = |percent: f64| {
        let size = format!(" TABLESAMPLE SYSTEM ({percent}) REPEATABLE ({seed}) LIMIT {rows}");
        let select = [b"SELECT ", &names[..], from, &table.name(), size.as_bytes()];
        let mut cursor = connection.prepare(&select, []).open([]);
        let mut sampled = 0;
        while let Some(rows) = cursor.fetch() {
            for row in rows.iter() {
                sampled += 1;
                for ((candidate, column), number) in columns.iter_mut().zip(1..) {
                    if let Some(value) = row.stored(number, &column.value_type) {
                        candidate.sampled += 1;
                        candidate.tokens += count(value)?;
                    }
                }
            }
        }
        Ok(sampled)
    };
    match sample(percent)? {
        // The sample takes the same block numbers in each partition; in small partitions, it may be
        // empty.
        0 if is_partitioned => sample(100.0),
        sampled => Ok(sampled),
    }
}

/// Why a table is not sampled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Obstacle {
    Foreign,
    Unlogged,
    NotReadable,
    HiddenRows,
}

impl Obstacle {
    /// Reads what [`CANDIDATES`] calls it.
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "foreign" => Some(Self::Foreign),
            "unlogged" => Some(Self::Unlogged),
            "not readable" => Some(Self::NotReadable),
            _ => None,
        }
    }
}
