//! `fernet_rotate_column`: rotates a column in batches, with a commit after each.
//!
//! A batch reads a range of the table's blocks, rotates the tokens in memory, and writes them back
//! to the rows that nobody has changed meanwhile: those that still have the same place (`ctid`) and
//! writer (`xmin`). A row that was changed, or that somebody else has locked, is left for later; no
//! batch waits while it holds locks. At least two passes:
//!
//! 1. Over the blocks that the table has at the start.
//! 2. Over the whole table, for the rows that were written since the start, by others or by triggers,
//!    and for the ranges in which the first pass left rows out. Where a row is still locked, it
//!    waits, with that row alone in its transaction. A row that is changed meanwhile may move to where
//!    the pass has been already, and still be under the old key. So another such pass follows, until
//!    one has found nothing to rotate.
//!
//! Nothing is remembered between calls: a call after one that was cancelled finds what is left.
//!
//! Of a table that Citus spreads over nodes, each shard is rotated where it is, by
//! `fernet_rotate_shard`.

#![allow(
    clippy::result_large_err,
    reason = "pgrx takes the SQLSTATE of an ErrorReport alone, by value"
)]

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::ops::{AddAssign, Range};
use std::rc::Rc;
use std::time::{Duration, Instant};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::catalog::{self, Column, Identifier, Kind, Lock, Name, Relation};
use crate::citus::{self, Spread};
use crate::error::Error;
use crate::fernet::{self, Keyring, Token};
use crate::key_source::keyring;
use crate::progress::{Density, Progress, describe_time};
use crate::random;
use crate::server::{self, Record};
use crate::spi::{Argument, Connection, NewValues, Patience, Tid, Transaction, Xid};
use crate::text::{Buffer, Value};

#[pg_extern(sql = false)]
fn fernet_rotate_column(
    relation: Option<pg_sys::Oid>,
    column_name: Option<Name>,
    batch_size: Option<i32>,
    strict: Option<bool>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<Record, ErrorReport> {
    let started = Instant::now();
    let call = Call::new(relation, column_name, batch_size, strict, fcinfo)?;
    if call.keyring.keys().len() == 1 {
        warn_of_single_key();
    }
    let tally = if call.is_sharded {
        call.rotate_shards(&catalog::schema_of(fcinfo))?
    } else {
        call.rotate()?
    };
    tally.report(started.elapsed());
    Ok(Record::new(fcinfo, tally.counts.in_order()))
}

/// Rotates a shard for a call on another node, if the keys here are the same.
#[pg_extern(sql = false)]
fn fernet_rotate_shard(
    relation: Option<pg_sys::Oid>,
    column_name: Option<Name>,
    batch_size: Option<i32>,
    strict: Option<bool>,
    caller_fingerprints: Option<Value<'_>>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<Record, ErrorReport> {
    let call = Call::new(relation, column_name, batch_size, strict, fcinfo)?;
    let theirs = caller_fingerprints.ok_or(Error::Null("fingerprints"))?;
    if theirs[..] != *citus::fingerprints(&call.keyring).as_bytes() {
        return Err(Error::OtherKeys.into());
    }
    Ok(Record::new(fcinfo, [call.rotate()?.to_text()]))
}

/// A call of one of the procedures that may go ahead.
struct Call {
    relation: pg_sys::Oid,
    is_sharded: bool,
    column_name: Name,
    batch_size: i32,
    strict: bool,
    /// One for the whole call, whatever happens to the settings meanwhile.
    keyring: Rc<Keyring>,
}

impl Call {
    fn new(
        relation: Option<pg_sys::Oid>,
        column_name: Option<Name>,
        batch_size: Option<i32>,
        strict: Option<bool>,
        fcinfo: pg_sys::FunctionCallInfo,
    ) -> Result<Self, Error> {
        let relation = relation.ok_or(Error::Null("relation"))?;
        let column_name = column_name.ok_or(Error::Null("column_name"))?;
        let batch_size = batch_size.ok_or(Error::Null("batch_size"))?;
        let strict = strict.ok_or(Error::Null("strict"))?;
        if batch_size < 1 {
            return Err(Error::LessThanOne("batch_size"));
        }
        if !server::may_commit(fcinfo) {
            return Err(Error::InTransaction);
        }
        server::refuse_in_read_only_transaction(c"fernet_rotate_column()");

        let keyring = keyring()?;
        let is_sharded = check(relation, column_name.as_cstr())?;
        Ok(Self {
            relation,
            is_sharded,
            column_name,
            batch_size,
            strict,
            keyring,
        })
    }

    fn rotate(&self) -> Result<Tally, Error> {
        Rotation {
            column_name: self.column_name.as_cstr(),
            batch_size: self.batch_size as usize,
            strict: self.strict,
            keyring: Rc::clone(&self.keyring),
            ours: HashSet::new(),
            wrote_alone: true,
            tally: Tally::default(),
        }
        .run(self.relation)
    }

    fn rotate_shards(&self, schema: &[u8]) -> Result<Tally, Error> {
        let before = [b"CALL ", schema, b".fernet_rotate_shard("].concat();
        let after = [
            b", ",
            &catalog::literal(self.column_name.as_cstr())[..],
            format!(
                ", {}, {}, '{}')",
                self.batch_size,
                self.strict,
                citus::fingerprints(&self.keyring)
            )
            .as_bytes(),
        ]
        .concat();
        let connection = Connection::read_only();
        let tallies = citus::on_shards(&connection, self.relation, &before, &after, |text| {
            Tally::from_text(text).ok_or(Error::Answer)
        })?;
        let mut sum = Tally::default();
        for tally in tallies {
            sum += tally;
        }
        Ok(sum)
    }
}

/// Refuses, before anything is done, what cannot be rotated. Tells whether the table has its rows in
/// shards.
fn check(relation: pg_sys::Oid, column_name: &CStr) -> Result<bool, Error> {
    let connection = Connection::read_only();
    let tables = tables(&connection, relation);
    for table in tables {
        let Some(opened) = Relation::open(&connection, table, Lock::Write) else {
            if table == relation {
                return Err(Error::NoRelation(relation));
            }
            continue;
        };
        if Spread::of(&connection, table) == Spread::Copies {
            return Err(Error::Copies {
                relation: opened.shown(),
            });
        }
        Table::new(opened, column_name)?;
    }
    Ok(Spread::of(&connection, relation) == Spread::Shards)
}

/// Returns a relation and all that inherit from it, partitions included, but for temporary tables
/// of other sessions, which no query sees.
fn tables(connection: &Connection, relation: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    const FAMILY: &[u8] = b"
        WITH RECURSIVE family (member) AS (
            SELECT $1
            UNION
            SELECT i.inhrelid
            FROM family AS f
            JOIN pg_catalog.pg_inherits AS i ON i.inhparent OPERATOR(pg_catalog.=) f.member
            JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) i.inhrelid
            WHERE NOT pg_catalog.pg_is_other_temp_schema(c.relnamespace))
        SELECT member FROM family ORDER BY member";
    let mut tables = Vec::new();
    let family = connection.prepare(&[FAMILY], [pg_sys::OIDOID]);
    let mut cursor = family.open([Argument::oid(relation)]);
    while let Some(rows) = cursor.fetch() {
        tables.extend(rows.iter().map(|row| row.get::<pg_sys::Oid>(1)));
    }
    tables
}

/// How many values were met in which state.
#[derive(Clone, Copy, Default)]
struct Counts {
    rotated: i64,
    current: i64,
    unknown_key: i64,
    not_a_token: i64,
    nulls: i64,
}

impl Counts {
    fn in_order(self) -> [i64; 5] {
        [
            self.rotated,
            self.current,
            self.unknown_key,
            self.not_a_token,
            self.nulls,
        ]
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.rotated += other.rotated;
        self.current += other.current;
        self.unknown_key += other.unknown_key;
        self.not_a_token += other.not_a_token;
        self.nulls += other.nulls;
    }
}

/// What became of the values of a column.
#[derive(Default)]
struct Tally {
    counts: Counts,
    /// The first values that no key opens, by their place.
    bad: Vec<String>,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.counts += other.counts;
        self.name_bad(other.bad);
    }
}

impl Tally {
    fn name_bad(&mut self, more: impl IntoIterator<Item = String>) {
        let unnamed = NAMED - self.bad.len();
        self.bad.extend(more.into_iter().take(unnamed));
    }

    /// Leaves out what was met in a table that is gone, or has to be read again.
    fn keep_rotated_alone(&mut self) {
        self.counts = Counts {
            rotated: self.counts.rotated,
            ..Counts::default()
        };
        self.bad.clear();
    }

    /// Tells the client.
    fn report(&self, time: Duration) {
        let Counts {
            rotated,
            current,
            unknown_key,
            not_a_token,
            nulls,
        } = self.counts;
        let rows = rotated + current + unknown_key + not_a_token + nulls;
        let rate = rows as f64 / time.as_secs_f64().max(0.001);
        notice(format!(
            "rotated {rotated} of {rows} rows in {}, {rate:.0} rows/s",
            describe_time(time)
        ));
        if self.bad.is_empty() {
            return;
        }
        let bad = unknown_key + not_a_token;
        let left = if bad == 1 {
            "1 value was left as it is, since no key opens it".into()
        } else {
            format!("{bad} values were left as they are, since no key opens them")
        };
        let more = if bad > NAMED as i64 {
            "; and others"
        } else {
            ""
        };
        ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, left, "pg_fernet")
            .set_detail(format!("{}{more}.", self.bad.join("; ")))
            .set_hint(
                "Append the missing key to the list of keys, or encrypt plaintext with \
                 fernet_encrypt(). fernet_key_index() is NULL for these values.",
            )
            .report(PgLogLevel::WARNING);
    }

    /// Writes it down for the node that has called this one: the counts, then the values by line.
    fn to_text(&self) -> String {
        let counts = self.counts.in_order().map(|count| count.to_string());
        [&[counts.join(" ")], &self.bad[..]].concat().join("\n")
    }

    fn from_text(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let counts = citus::parse_counts(lines.next()?)?;
        let &[rotated, current, unknown_key, not_a_token, nulls] = &counts[..] else {
            return None;
        };
        Some(Self {
            counts: Counts {
                rotated,
                current,
                unknown_key,
                not_a_token,
                nulls,
            },
            bad: lines.map(str::to_owned).collect(),
        })
    }
}

struct Rotation<'a> {
    column_name: &'a CStr,
    batch_size: usize,
    strict: bool,
    keyring: Rc<Keyring>,
    /// The transactions of our own batches.
    ours: HashSet<Xid>,
    /// Whether nobody else's code, as that of a trigger, can have written in these transactions.
    wrote_alone: bool,
    tally: Tally,
}

/// What a pass has done to a table.
struct Done {
    /// The file that it read.
    file: pg_sys::Oid,
    /// Ranges in which rows were left to the next pass.
    left_out: Vec<Range<Tid>>,
}

impl Done {
    fn has_left_out(&self, range: &Range<Tid>) -> bool {
        (self.left_out.iter()).any(|other| other.start < range.end && range.start < other.end)
    }
}

/// What a transaction has done to a table.
enum Step {
    /// Nothing: the table is gone, or has no rows of its own.
    Gone,
    /// Nothing: the scan of that file had come to its end.
    End(pg_sys::Oid),
    /// Looked at so many rows, in so many blocks.
    Batch(u64, u32),
}

impl Rotation<'_> {
    fn run(mut self, relation: pg_sys::Oid) -> Result<Tally, Error> {
        Transaction::end_callers();

        let (start, tables, mut report) = Transaction::run(|transaction| {
            let tables = tables(transaction, relation);
            let report = Report::new("rotating", count_blocks(transaction, &tables));
            Ok((transaction.oldest_running(), tables, report))
        })?;
        let mut done = HashMap::new();
        for table in tables {
            done.insert(table, self.first_pass(table, &mut report)?);
        }

        for _ in 0..MORE_PASSES {
            // There may be new partitions, with rows that have moved there.
            let (tables, mut report) = Transaction::run(|transaction| {
                let tables = self::tables(transaction, relation);
                let blocks = count_blocks(transaction, &tables);
                Ok((
                    tables,
                    Report::new("checking what was written meanwhile", blocks),
                ))
            })?;
            let rotated = self.tally.counts.rotated;
            let mut is_done = true;
            for table in tables {
                let before = match done.remove(&table) {
                    Some(before) => before,
                    None => self.first_pass(table, &mut report)?,
                };
                let Some(before) = before else { continue };
                let after = self.another_pass(table, start, &before, &mut report)?;
                is_done &= after.as_ref().is_none_or(|after| after.left_out.is_empty());
                done.insert(table, after);
            }
            if is_done && self.tally.counts.rotated == rotated {
                return Ok(self.tally);
            }
        }
        warn_of_rest();
        Ok(self.tally)
    }

    /// Rotates what the table holds at the start, or returns `None` if it has no rows of its own,
    /// or has been dropped.
    fn first_pass(&mut self, oid: pg_sys::Oid, report: &mut Report) -> Result<Option<Done>, Error> {
        let mut scan: Option<Scan> = None;
        let mut left_out = Vec::new();
        let mut tally = Tally::default();
        loop {
            let step = Transaction::run(|transaction| {
                let Some(table) = Table::open(transaction, oid, self.column_name)? else {
                    return Ok(Step::Gone);
                };
                let scan = match &mut scan {
                    Some(scan) if scan.is_of(&table) => scan,
                    // The table is new to us, or was rewritten, and all rows are elsewhere now.
                    scan => {
                        left_out.clear();
                        tally.keep_rotated_alone();
                        scan.insert(Scan::new(&table))
                    }
                };
                let Some(range) = scan.next(self.batch_size) else {
                    return Ok(Step::End(scan.file));
                };
                let batch = self.read(transaction, &table, range, None)?;
                let written = self.write(transaction, &table, &batch, Patience::Moment);
                if written < batch.ids.len() {
                    left_out.push(batch.range.clone());
                }
                tally.counts += batch.counts;
                tally.counts.rotated += written as i64;
                tally.name_bad(batch.bad.iter().cloned());
                let blocks = scan.advance(batch.range, batch.rows);
                Ok(Step::Batch(batch.rows, blocks))
            })?;
            match step {
                Step::Gone => {
                    tally.keep_rotated_alone();
                    self.tally += tally;
                    return Ok(None);
                }
                Step::End(file) => {
                    self.tally += tally;
                    return Ok(Some(Done { file, left_out }));
                }
                Step::Batch(rows, blocks) => report.advance(rows, blocks),
            }
        }
    }

    /// Rotates what was written since `start`, and what the pass before left out. Returns `None` if the
    /// table has been dropped.
    fn another_pass(
        &mut self,
        oid: pg_sys::Oid,
        start: Xid,
        before: &Done,
        report: &mut Report,
    ) -> Result<Option<Done>, Error> {
        let mut scan: Option<Scan> = None;
        let mut left_out = Vec::new();
        loop {
            let mut locked = None;
            let step = Transaction::run(|transaction| {
                let Some(table) = Table::open(transaction, oid, self.column_name)? else {
                    return Ok(Step::Gone);
                };
                let scan = match &mut scan {
                    Some(scan) if scan.is_of(&table) => scan,
                    scan => scan.insert(Scan::new(&table)),
                };
                let Some(range) = scan.next(self.batch_size) else {
                    return Ok(Step::End(scan.file));
                };
                let all = before.file != scan.file || before.has_left_out(&range);
                let since = (!all).then_some(start);
                let batch = self.read(transaction, &table, range, since)?;
                let written = self.write(transaction, &table, &batch, Patience::Moment);
                self.tally.counts.rotated += written as i64;
                let missing = batch.ids.len() - written;
                if missing > 0 {
                    locked = Some((scan.file, batch.range.clone(), since, missing));
                }
                let blocks = scan.advance(batch.range, batch.rows);
                Ok(Step::Batch(batch.rows, blocks))
            })?;
            if let Some((file, range, since, missing)) = locked {
                // Others changed the rest before we could.
                if self.wait_for_rest(oid, file, range.clone(), since)? < missing {
                    left_out.push(range);
                }
            }
            match step {
                Step::Gone => return Ok(None),
                Step::End(file) => {
                    return Ok(Some(Done { file, left_out }));
                }
                Step::Batch(rows, blocks) => report.advance(rows, blocks),
            }
        }
    }

    /// Rotates the rows of a range that others have locked, one by one, and returns how many. While
    /// it waits for a row it has no lock on another, so nobody waits for us.
    fn wait_for_rest(
        &mut self,
        oid: pg_sys::Oid,
        file: pg_sys::Oid,
        range: Range<Tid>,
        since: Option<Xid>,
    ) -> Result<usize, Error> {
        let mut written = 0;
        let rest = Transaction::run(|transaction| {
            // If the table was rewritten, the pass starts again.
            match Table::open(transaction, oid, self.column_name)? {
                Some(table) if table.relation.file() == file => {
                    Ok(self.read(transaction, &table, range, since)?.ids)
                }
                _ => Ok(Vec::new()),
            }
        })?;
        for row in rest {
            Transaction::run(|transaction| {
                let table = Table::open(transaction, oid, self.column_name)?;
                if let Some(table) = table.filter(|table| table.relation.file() == file) {
                    let batch = self.read(transaction, &table, row.alone(), since)?;
                    written += self.write(transaction, &table, &batch, Patience::Long);
                }
                Ok(())
            })?;
        }
        self.tally.counts.rotated += written as i64;
        Ok(written)
    }

    /// Reads the rows of a range, or those that were written `since`, and rotates their tokens in
    /// memory. Ends early where the batch is full.
    fn read<'tx>(
        &self,
        transaction: &'tx Transaction,
        table: &Table<'_>,
        range: Range<Tid>,
        since: Option<Xid>,
    ) -> Result<Batch<'tx>, Error> {
        let (column, name) = (&table.column.name[..], &table.name[..]);
        let select = [
            b"SELECT t.ctid, t.xmin, t.",
            column,
            b" FROM ONLY ",
            name,
            b" AS t WHERE t.ctid OPERATOR(pg_catalog.>=) $1 AND t.ctid OPERATOR(pg_catalog.<) $2",
            b" AND pg_catalog.age(t.xmin) OPERATOR(pg_catalog.<=) pg_catalog.age($3)",
        ];
        use pg_sys::{TIDOID, XIDOID};
        let (from, to) = (Argument::tid(range.start), Argument::tid(range.end));
        let mut cursor = match since {
            None => transaction
                .prepare(&select[..5], [TIDOID, TIDOID])
                .open([from, to]),
            Some(since) => transaction
                .prepare(&select, [TIDOID, TIDOID, XIDOID])
                .open([from, to, Argument::xid(since)]),
        };
        let mut batch = Batch::new(transaction, table, range);
        while let Some(rows) = cursor.fetch() {
            for row in rows.iter() {
                let (id, writer) = (row.get::<Tid>(1), row.get::<Xid>(2));
                if since.is_some() && self.wrote_alone && self.ours.contains(&writer) {
                    continue;
                }
                let outcome = row.with_bytes(3, |value| self.rotate(value))?;
                batch.rows += 1;
                match outcome {
                    Outcome::Null => batch.counts.nulls += 1,
                    // Counted where it was before we moved it. A row of ours that is not current was
                    // written by a trigger, or only looks like ours, from before the last wraparound.
                    Outcome::Current if self.ours.contains(&writer) => batch.rows -= 1,
                    Outcome::Current => batch.counts.current += 1,
                    Outcome::Rotated(mut buffer, len) => {
                        batch.push(id, writer, &buffer.value(len))?;
                    }
                    Outcome::Refused(refusal) if self.strict => {
                        return Err(Error::Value {
                            place: table.place(id),
                            refusal,
                        });
                    }
                    Outcome::Refused(refusal) => {
                        match refusal {
                            fernet::Error::NotAToken => batch.counts.not_a_token += 1,
                            _ => batch.counts.unknown_key += 1,
                        }
                        if batch.bad.len() < NAMED {
                            batch.bad.push(format!("{}: {refusal}", table.place(id)));
                        }
                    }
                }
                if batch.ids.len() == self.batch_size || batch.bytes >= BATCH_BYTES {
                    batch.range.end = id.next();
                    return Ok(batch);
                }
            }
        }
        Ok(batch)
    }

    fn rotate(&self, value: Option<&[u8]>) -> Result<Outcome, Error> {
        let Some(value) = value else {
            return Ok(Outcome::Null);
        };
        let mut buffer = Buffer::new(value.len())?;
        let iv = random::iv()?;
        let rotated =
            Token::decode(value, &mut buffer).and_then(|token| self.keyring.rotate(token, &iv));
        Ok(match rotated {
            Ok(Some(len)) => Outcome::Rotated(buffer, len),
            Ok(None) => Outcome::Current,
            Err(refusal) => Outcome::Refused(refusal),
        })
    }

    /// Writes the new tokens to the rows that are still what was read, and returns how many are.
    fn write(
        &mut self,
        transaction: &Transaction,
        table: &Table<'_>,
        batch: &Batch<'_>,
        patience: Patience,
    ) -> usize {
        if batch.ids.is_empty() {
            return 0;
        }
        self.wrote_alone &= !table.relation.has_triggers_or_rules();
        let _shown = batch.values.show();
        let execute = |query: &[u8]| {
            let types = [pg_sys::TIDOID, pg_sys::TIDOID];
            let update = transaction.prepare(&[query], types);
            let Range { start, end } = batch.range;
            update.execute([Argument::tid(start), Argument::tid(end)])
        };
        let attempt =
            |query: &[u8]| transaction.attempt(patience, || (execute(query), transaction.xid()));
        let done = match (attempt(&table.update()), patience) {
            (None, Patience::Moment) => attempt(&table.update_of_unlocked()),
            (done, _) => done,
        };
        let (written, xid) = done.unwrap_or_default();
        self.ours.extend(xid);
        written as usize
    }
}

/// A batch ends once its new tokens take this much memory, if it has no more than `batch_size`.
const BATCH_BYTES: usize = 16 << 20;

/// How many passes follow the first one, if each finds something.
const MORE_PASSES: usize = 5;

/// How many bad values are named.
const NAMED: usize = 5;

enum Outcome {
    Null,
    Current,
    /// Into a token of that length.
    Rotated(Buffer, usize),
    Refused(fernet::Error),
}

/// Rows that were read, and their new tokens.
struct Batch<'tx> {
    /// What was read.
    range: Range<Tid>,
    rows: u64,
    counts: Counts,
    bad: Vec<String>,
    ids: Vec<Tid>,
    values: NewValues<'tx>,
    /// What the values take.
    bytes: usize,
}

impl<'tx> Batch<'tx> {
    fn new(connection: &'tx Connection, table: &Table<'_>, range: Range<Tid>) -> Self {
        Self {
            range,
            rows: 0,
            counts: Counts::default(),
            bad: Vec::new(),
            ids: Vec::new(),
            values: NewValues::new(connection, table.column.storage.type_oid()),
            bytes: 0,
        }
    }

    fn push(&mut self, id: Tid, writer: Xid, value: &Value<'_>) -> Result<(), Error> {
        self.ids.try_reserve(1)?;
        self.ids.push(id);
        self.values.push(id, writer, value);
        self.bytes += value.len();
        Ok(())
    }
}

/// A table with rows of its own, open and locked until the transaction ends.
struct Table<'c> {
    relation: Relation<'c>,
    name: Identifier,
    column: Column,
}

impl<'c> Table<'c> {
    /// Opens a table, or returns `None` if it is gone or partitioned.
    fn open(
        connection: &'c Connection,
        oid: pg_sys::Oid,
        column_name: &CStr,
    ) -> Result<Option<Self>, Error> {
        match Relation::open(connection, oid, Lock::Write) {
            Some(relation) => Self::new(relation, column_name),
            None => Ok(None),
        }
    }

    fn new(relation: Relation<'c>, column_name: &CStr) -> Result<Option<Self>, Error> {
        let kind = relation.kind();
        if !matches!(kind, Kind::Table | Kind::PartitionedTable) {
            return Err(Error::NotATable {
                relation: relation.shown(),
                kind,
            });
        }
        let column = relation.column(column_name)?;
        if column.generated {
            return Err(Error::Generated {
                column: catalog::shown(column_name.to_bytes()),
                relation: relation.shown(),
            });
        }
        if relation.hides_rows() {
            return Err(Error::HiddenRows {
                relation: relation.shown(),
            });
        }
        if kind == Kind::PartitionedTable {
            return Ok(None);
        }
        if !relation.has_tid_ranges() {
            return Err(Error::AccessMethod {
                relation: relation.shown(),
            });
        }
        Ok(Some(Self {
            name: relation.name(),
            relation,
            column,
        }))
    }

    /// The statement that writes [`NewValues`] to those rows, all in the range from `$1` to `$2`,
    /// that still have the same writers.
    ///
    /// The writer tells row versions apart that are at the same place one after the other. It is
    /// also what a row is known by that was changed while we waited for its lock: servers before
    /// the releases of November 2025 do not look at its place again.
    fn update(&self) -> Vec<u8> {
        let (name, column) = (&self.name[..], &self.column.name[..]);
        [
            b"UPDATE ONLY ",
            name,
            b" AS t SET ",
            column,
            b" = n.value FROM fernet_new_values AS n \
               WHERE t.ctid OPERATOR(pg_catalog.=) n.id AND t.xmin OPERATOR(pg_catalog.=) n.writer \
               AND t.ctid OPERATOR(pg_catalog.>=) $1 AND t.ctid OPERATOR(pg_catalog.<) $2",
        ]
        .concat()
    }

    /// The same for those of the rows that nobody has locked in any way. It locks them first, and so
    /// costs more. The lock is as strong as that of an UPDATE can be: where the column is in a unique
    /// index, it would wait for those who refer to the row by a foreign key.
    fn update_of_unlocked(&self) -> Vec<u8> {
        let (name, column) = (&self.name[..], &self.column.name[..]);
        [
            b"UPDATE ONLY ", name, b" AS t SET ", column, b" = u.value \
              FROM (SELECT l.ctid, n.value FROM fernet_new_values AS n, ONLY ", name, b" AS l \
                    WHERE l.ctid OPERATOR(pg_catalog.=) n.id AND l.xmin OPERATOR(pg_catalog.=) n.writer \
                      AND l.ctid OPERATOR(pg_catalog.>=) $1 AND l.ctid OPERATOR(pg_catalog.<) $2 \
                    FOR UPDATE OF l SKIP LOCKED) AS u (id, value) \
              WHERE t.ctid OPERATOR(pg_catalog.=) u.id \
                AND t.ctid OPERATOR(pg_catalog.>=) $1 AND t.ctid OPERATOR(pg_catalog.<) $2",
        ]
        .concat()
    }

    /// Names a row for a human.
    fn place(&self, id: Tid) -> String {
        format!("{id} of {}", self.relation.shown())
    }
}

fn count_blocks(connection: &Connection, tables: &[pg_sys::Oid]) -> u64 {
    let open = |&table| Relation::open(connection, table, Lock::Write);
    let tables = tables.iter().filter_map(open);
    tables
        .filter(|table| table.kind() == Kind::Table)
        .map(|table| u64::from(table.blocks()))
        .sum()
}

/// A scan of a table in ranges, up to the size it had at the start.
struct Scan {
    file: pg_sys::Oid,
    at: Tid,
    end: u32,
    density: Density,
}

impl Scan {
    fn new(table: &Table<'_>) -> Self {
        Self {
            file: table.relation.file(),
            at: Tid::start_of(0),
            end: table.relation.blocks(),
            density: Density::new(table.relation.rows_per_block()),
        }
    }

    /// Tells whether the table still has the file that is being scanned.
    fn is_of(&self, table: &Table<'_>) -> bool {
        self.file == table.relation.file()
    }

    /// Returns a range with about as many rows, or `None` at the end.
    fn next(&self, rows: usize) -> Option<Range<Tid>> {
        let blocks = self.density.blocks(rows as u64);
        let end = self.at.block.saturating_add(blocks).min(self.end);
        (self.at.block < end).then(|| self.at..Tid::start_of(end))
    }

    /// Goes on to the end of a range that was read. Returns the number of blocks in it.
    fn advance(&mut self, range: Range<Tid>, rows: u64) -> u32 {
        self.at = range.end;
        let blocks = range.end.block - range.start.block;
        // Of a single block that is too much for a batch nothing can be learnt.
        if blocks > 0 {
            self.density.learn(rows, blocks);
        }
        blocks
    }
}

/// Tells the client about the progress, once a second at most.
struct Report {
    label: &'static str,
    started: Instant,
    shown: Instant,
    rows: u64,
    blocks: u64,
    blocks_in_all: u64,
}

impl Report {
    fn new(label: &'static str, blocks_in_all: u64) -> Self {
        let started = Instant::now();
        Self {
            label,
            started,
            shown: started,
            rows: 0,
            blocks: 0,
            blocks_in_all,
        }
    }

    fn advance(&mut self, rows: u64, blocks: u32) {
        self.rows += rows;
        self.blocks += u64::from(blocks);
        if self.shown.elapsed() < Duration::from_secs(1) {
            return;
        }
        self.shown = Instant::now();
        let progress = Progress {
            rows: self.rows,
            blocks: self.blocks,
            blocks_in_all: self.blocks_in_all,
            time: self.started.elapsed(),
        };
        notice(format!("{}: {}", self.label, progress.describe()));
    }
}

fn notice(message: String) {
    let code = PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION;
    ErrorReport::new(code, message, "pg_fernet").report(PgLogLevel::NOTICE);
}

fn warn_of_rest() {
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_WARNING,
        "some values may still be under an old key: others wrote in each pass, or a trigger kept them",
        "pg_fernet",
    )
    .set_hint("fernet_census() tells how many values are under an old key. Call this again.")
    .report(PgLogLevel::WARNING);
}

fn warn_of_single_key() {
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_WARNING,
        "there is a single key, so nothing can be under an old one",
        "pg_fernet",
    )
    .set_hint("Put the new key before the old one in the list of keys.")
    .report(PgLogLevel::WARNING);
}
