//! The first look of a call, shared by background workers.
//!
//! Each worker takes one range of blocks after another until none is left. It converts their rows in
//! batches, as the call does by itself. Workers change only the time that a call takes. The later looks
//! find what the workers have left, what others have written meanwhile, and what is in a table that
//! workers cannot read.

use std::ffi::{CStr, CString};
use std::mem;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use pgrx::prelude::*;

use super::Error;
use super::batch::{Look, Reader};
use super::conversion::Conversion;
use super::convert::Pass;
use super::progress::{Progress, counted};
use super::table;
use crate::keys::{self, fingerprint, keyring};
use crate::pg::memory::with_room_for_errors;
use crate::pg::name::literal;
use crate::pg::relation::{Lock, Relation};
use crate::pg::report::notice;
use crate::pg::server;
use crate::pg::transaction::Transaction;
use crate::pg::worker::{Given, Workers, background_worker};

/// The least and the most blocks that a worker takes at a time.
const BLOCKS: Range<u64> = 32..2048;

/// The progress of all workers.
#[derive(Default)]
struct Shared {
    /// How many blocks have been taken, counted over all tables, one after the other.
    taken: AtomicU64,
    /// How many blocks are done, and the rows in them.
    blocks: AtomicU64,
    rows: AtomicI64,
    /// As in `Look`.
    found: AtomicUsize,
    locked: AtomicUsize,
    kept: AtomicUsize,
    done: AtomicI64,
}

impl Shared {
    /// Adds the outcome of a batch.
    fn add(&self, look: &Look, done: i64) {
        self.rows.fetch_add(look.report.rows, Relaxed);
        self.found.fetch_add(look.found, Relaxed);
        self.locked.fetch_add(look.locked, Relaxed);
        self.kept.fetch_add(look.kept, Relaxed);
        self.done.fetch_add(done, Relaxed);
    }
}

/// What a worker is to do.
#[derive(Debug, PartialEq)]
struct Task {
    conversion: Conversion,
    relation: pg_sys::Oid,
    batch_size: usize,
    workers: u64,
    fingerprints: String,
    tables: Tables,
    column_name: CString,
}

/// Tables, each with the number of its blocks and of all tables before it.
#[derive(Debug, PartialEq)]
struct Tables(Vec<(pg_sys::Oid, u64)>);

impl Tables {
    fn blocks(&self) -> u64 {
        self.0.last().map_or(0, |&(_, end)| end)
    }

    /// Returns the table that holds a block, and the range of its blocks that starts there and has at
    /// most `len` blocks.
    fn range(&self, start: u64, len: u64) -> Option<(pg_sys::Oid, Range<u32>)> {
        let table = self.0.partition_point(|&(_, end)| end <= start);
        let &(oid, end) = self.0.get(table)?;
        let first = table.checked_sub(1).map_or(0, |before| self.0[before].1);
        // A table has less than 2^32 blocks.
        let range = (start - first) as u32..(end.min(start + len) - first) as u32;
        Some((oid, range))
    }
}

impl Task {
    /// Takes what to read next. Ranges shrink as less is left, so that all workers end at about the same
    /// time.
    fn take(&self, shared: &Shared) -> Option<(pg_sys::Oid, Range<u32>)> {
        let mut range = None;
        let take = |taken| {
            let left = self.tables.blocks().saturating_sub(taken);
            let len = (left / (4 * self.workers)).clamp(BLOCKS.start, BLOCKS.end);
            range = self.tables.range(taken, len);
            range
                .as_ref()
                .map(|(_, blocks)| taken + blocks.len() as u64)
        };
        shared.taken.fetch_update(Relaxed, Relaxed, take).ok()?;
        range
    }

    fn to_text(&self) -> CString {
        let tables = self.tables.0.iter();
        let tables: Vec<_> = tables
            .map(|(oid, end)| format!("{}:{end}", oid.to_u32()))
            .collect();
        let text = format!(
            "{} {} {} {} {} {} ",
            self.conversion.code(),
            self.relation.to_u32(),
            self.batch_size,
            self.workers,
            self.fingerprints,
            tables.join(",")
        );
        // A name may hold any character.
        let text = [text.as_bytes(), self.column_name.to_bytes()].concat();
        CString::new(text).expect("no part of it holds a zero byte")
    }

    /// Reads what [`to_text`](Self::to_text) has written.
    fn parse(text: &CStr) -> Option<Self> {
        let mut parts = text.to_bytes().splitn(7, |&byte| byte == b' ');
        let mut next = || str::from_utf8(parts.next()?).ok();
        let table = |table: &str| {
            let (oid, end) = table.split_once(':')?;
            Some((
                pg_sys::Oid::from(oid.parse::<u32>().ok()?),
                end.parse().ok()?,
            ))
        };
        Some(Self {
            conversion: Conversion::of_code(next()?)?,
            relation: pg_sys::Oid::from(next()?.parse::<u32>().ok()?),
            batch_size: next()?.parse().ok()?,
            workers: next()?.parse().ok()?,
            fingerprints: next()?.to_owned(),
            tables: Tables(next()?.split(',').map(table).collect::<Option<_>>()?),
            column_name: CString::new(parts.next()?).ok()?,
        })
    }
}

/// Lets up to `workers` workers do the first look. Returns its outcome, or `None` if there are no
/// workers.
pub(super) fn share(
    pass: &mut Pass<'_>,
    workers: usize,
    label: &'static str,
) -> Result<Option<Look>, Error> {
    // If there is a constraint, nothing will be written: the first value to be converted ends the call.
    if workers == 0 || pass.constraint.is_some() {
        return Ok(None);
    }
    let (statement, tables) = Transaction::run(|transaction| {
        Ok::<_, Error>((statement(transaction, pass)?, tables(transaction, pass)))
    })?;
    let mut task = Task {
        conversion: pass.conversion,
        relation: pass.relation,
        batch_size: pass.batch_size,
        workers: 0,
        fingerprints: fingerprint::list(pass.keyring),
        tables,
        column_name: pass.column_name.to_owned(),
    };
    let useful = task.tables.blocks().div_ceil(BLOCKS.start);
    let workers = workers.min(usize::try_from(useful).unwrap_or(usize::MAX));
    if workers == 0 {
        return Ok(None);
    }
    task.workers = workers as u64;
    let started = Workers::start(
        c"fernet_convert_in_worker",
        workers.min(server::max_worker_processes()),
        Shared::default(),
        &statement,
        &task.to_text(),
        keys::settings::is_secret,
    );
    let mut started = match started {
        Ok(started) => started,
        Err(reason) => {
            notice(format!("no background worker started: {reason}"));
            return Ok(None);
        }
    };
    if started.count() < workers {
        notice(format!(
            "{} of {} started, since max_worker_processes allows no more",
            started.count(),
            counted(workers as i64, "background worker"),
        ));
    }
    if started.count() == 0 {
        return Ok(None);
    }
    let mut progress = Progress::new(Some(label), task.tables.blocks());
    while started.pass_on()? {
        let shared = started.shared();
        let (rows, blocks) = (shared.rows.load(Relaxed), shared.blocks.load(Relaxed));
        progress.tell(rows as u64, blocks);
        server::sleep(Duration::from_secs(1));
        // So that this transaction does not last long: its duration may be limited.
        Transaction::end_current()?;
    }
    let shared = started.shared();
    pass.done += shared.done.load(Relaxed);
    Ok(Some(Look {
        found: shared.found.load(Relaxed),
        locked: shared.locked.load(Relaxed),
        kept: shared.kept.load(Relaxed),
        // Each batch had a snapshot of its own.
        is_outdated: true,
        ..Look::new(pass.keyring)?
    }))
}

/// Returns the statement that the server shows for the workers.
fn statement(transaction: &Transaction, pass: &Pass<'_>) -> Result<CString, Error> {
    let relation = Relation::open(transaction, pass.relation, Lock::Read)
        .ok_or(Error::NoRelation(pass.relation))?;
    let name = CString::new(relation.name()).expect("no name holds a zero byte");
    let procedure = pass.conversion.procedure().to_bytes();
    let statement = [
        b"CALL ",
        procedure.strip_suffix(b")").unwrap_or(procedure),
        &literal(&name),
        b", ",
        &literal(pass.column_name),
        b")",
    ];
    Ok(CString::new(statement.concat()).expect("no part of it holds a zero byte"))
}

/// Returns the tables that workers can read.
fn tables(transaction: &Transaction, pass: &Pass<'_>) -> Tables {
    let mut blocks = 0;
    let tables = table::family(transaction, pass.relation, pass.column_name)
        .into_iter()
        .filter(|member| !member.is_temporary && member.blocks > 0)
        .map(|member| {
            blocks += u64::from(member.blocks);
            (member.oid, blocks)
        });
    Tables(tables.collect())
}

background_worker!(fernet_convert_in_worker, |given: Given<'_, Shared>| {
    with_room_for_errors(|| convert(given))
});

fn convert(given: Given<'_, Shared>) -> Result<(), Error> {
    let task = Task::parse(given.task).expect("it is as it was written");
    let keyring = match keyring() {
        Err(keys::Error::Unset) => return Err(Error::KeysOfSession),
        keyring => keyring?,
    };
    if fingerprint::list(&keyring) != task.fingerprints {
        return Err(Error::KeysOfSession);
    }
    let mut pass = Pass {
        conversion: task.conversion,
        relation: task.relation,
        column_name: &task.column_name,
        batch_size: task.batch_size,
        keyring: &keyring,
        constraint: None,
        checked: None,
        done: 0,
    };
    let shared = given.shared;
    while let Some((oid, blocks)) = task.take(shared) {
        let count = blocks.len() as u64;
        let mut reader = Reader::of_range(oid, blocks);
        let mut is_done = false;
        while !is_done {
            if given.is_over() {
                return Ok(());
            }
            let mut look = Look::new(&keyring)?;
            is_done = Transaction::run(|transaction| {
                pass.convert_batch(transaction, &mut reader, &mut look, true)
            })?;
            shared.add(&look, mem::take(&mut pass.done));
        }
        shared.blocks.fetch_add(count, Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(tables: &[(u32, u64)]) -> Task {
        let tables = tables.iter().map(|&(oid, end)| (oid.into(), end));
        Task {
            conversion: Conversion::Rotate { strict: true },
            relation: 16384.into(),
            batch_size: 10_000,
            workers: 3,
            fingerprints: "cbeb362f1fa69a66,630dcd2966c43366".into(),
            tables: Tables(tables.collect()),
            column_name: c"a \"name\", 1:2".into(),
        }
    }

    #[test]
    fn a_worker_reads_what_was_written_for_it() {
        let task = task(&[(16384, 5), (16390, 70_000)]);
        assert_eq!(Task::parse(&task.to_text()), Some(task));
        assert_eq!(Task::parse(c"rotate 1 2 3 4"), None);
    }

    #[test]
    fn every_block_is_taken_once() {
        // The second table is empty.
        let task = task(&[(1, 10), (2, 10), (3, 70_010), (4, 70_011)]);
        let shared = Shared::default();
        let mut next = (1, 0);
        let mut lens = Vec::new();
        while let Some((oid, blocks)) = task.take(&shared) {
            if oid.to_u32() != next.0 {
                assert_eq!(
                    (blocks.start, next),
                    (0, if next.0 == 1 { (1, 10) } else { (3, 70_000) })
                );
            } else {
                assert_eq!(blocks.start, next.1);
            }
            next = (oid.to_u32(), blocks.end);
            lens.push(blocks.len());
        }
        assert_eq!(next, (4, 1));
        assert_eq!(lens.iter().sum::<usize>(), 70_011);
        // Ranges shrink, from 16 MB to 256 kB, and end with their table.
        assert!(lens[1..].is_sorted_by(|one, other| one >= other));
        assert_eq!((lens[0], lens[1], lens[lens.len() - 3]), (10, 2048, 32));
    }
}
