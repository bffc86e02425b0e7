//! A table whose column is converted: whether it may be, and the SQL that reads and writes it.

use std::ffi::CStr;

use pgrx::prelude::*;

use super::Error;
use super::citus::Spread;
use super::conversion::Conversion;
use super::fit::{self, Constraint};
use crate::pg::encoding;
use crate::pg::name::Identifier;
use crate::pg::new_values::NewValues;
use crate::pg::relation::{Column, Kind, Lock, Relation};
use crate::pg::row::{Tid, Xid};
use crate::pg::slot::{self, Scan, Slot, Version};
use crate::pg::spi::{Argument, Connection};
use crate::pg::transaction::{Transaction, VirtualXid};
use crate::pg::value::Value;

/// A relation and all that inherit from it, including partitions. Temporary tables of other
/// sessions are left out, since no query sees them. To be run with a safe search path.
const FAMILY: &str = "
    WITH RECURSIVE family (member) AS (
        SELECT $1
        UNION
        SELECT i.inhrelid
        FROM family AS f
        JOIN pg_inherits AS i ON i.inhparent = f.member
        JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE NOT pg_is_other_temp_schema(c.relnamespace))";

/// A table of a family, as a snapshot shows it.
pub(crate) struct Member {
    pub(crate) oid: pg_sys::Oid,
    /// Identifies its file. A table gets another one when it is rewritten.
    pub(crate) file: pg_sys::Oid,
    /// The number of the column in it. A column that is dropped and added again under the same name
    /// has another number.
    pub(crate) column: i16,
    /// Whether it is temporary. No other process can then read it.
    pub(crate) is_temporary: bool,
    /// About how many blocks it takes.
    pub(crate) blocks: u32,
}

/// Returns a relation and all that inherit from it.
pub(crate) fn family(
    connection: &Connection,
    relation: pg_sys::Oid,
    column_name: &CStr,
) -> Vec<Member> {
    const MEMBERS: &str = "
        SELECT c.oid, c.relfilenode,
               CASE WHEN c.relkind = 'r' THEN pg_relation_size(c.oid) / current_setting('block_size')::bigint END,
               (SELECT a.attnum::integer FROM pg_attribute AS a
                WHERE a.attrelid = c.oid AND a.attname::text = $2 AND NOT a.attisdropped),
               c.relpersistence = 't'
        FROM family JOIN pg_class AS c ON c.oid = family.member
        ORDER BY c.oid";
    let query = [FAMILY.as_bytes(), MEMBERS.as_bytes()];
    connection.with_pinned_search_path(|| {
        let plan = connection.prepare(&query, [pg_sys::OIDOID, pg_sys::TEXTOID]);
        let arguments = [
            Argument::oid(relation),
            Argument::text(column_name.to_bytes()),
        ];
        plan.open(arguments).collect(|row| Member {
            oid: row.get(1),
            file: row.get(2),
            // A table has less than 2^32 blocks; one that is gone by now has none.
            blocks: row.find::<i64>(3).unwrap_or(0) as u32,
            column: row.find::<i32>(4).unwrap_or(0) as i16,
            is_temporary: row.get(5),
        })
    })
}

/// A transaction of another session that may have written to a family, or has locked rows of it.
pub(crate) struct Writer {
    pub(crate) transaction: VirtualXid,
    /// Which process it is, and which relation it has written to: for a human.
    pub(crate) description: String,
}

/// Returns the transactions that have a writer's lock on a table of a family and, with
/// `or_row_locks`, those that may only have locked rows. Transactions that only read are left out.
///
/// A table that becomes a partition or a child in such a transaction cannot be seen yet. But that
/// transaction then holds a lock on the parent, of the kind that a vacuum also takes. A vacuum is
/// recognised by having no transaction number.
pub(crate) fn writers(
    connection: &Connection,
    relation: pg_sys::Oid,
    or_row_locks: bool,
) -> Vec<Writer> {
    const WRITERS: &str = "
        SELECT DISTINCT ON (l.virtualtransaction) l.virtualtransaction, l.pid, l.relation::regclass::text
        FROM pg_locks AS l JOIN family ON l.relation = family.member
        WHERE l.locktype = 'relation' AND l.granted
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND (l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock',
                          CASE WHEN $2 THEN 'RowShareLock' END)
               OR l.mode = 'ShareUpdateExclusiveLock' AND l.virtualtransaction IN (
                   SELECT virtualtransaction FROM pg_locks WHERE locktype = 'transactionid' AND granted))
          AND l.pid IS DISTINCT FROM pg_backend_pid()
        ORDER BY l.virtualtransaction, l.relation";
    let query = [FAMILY.as_bytes(), WRITERS.as_bytes()];
    let writers = connection.with_pinned_search_path(|| {
        let plan = connection.prepare(&query, [pg_sys::OIDOID, pg_sys::BOOLOID]);
        let cursor = plan.open([Argument::oid(relation), Argument::bool(or_row_locks)]);
        cursor.collect(|row| {
            let who = match row.find::<i32>(2) {
                Some(process) => format!("process {process}"),
                None => "a prepared transaction".into(),
            };
            let table = row.printable(3);
            VirtualXid::parse(&row.printable(1)).map(|transaction| Writer {
                transaction,
                description: format!("{who}, which has written to {table} or locked it"),
            })
        })
    });
    // Those that have not ended meanwhile.
    writers.into_iter().flatten().collect()
}

/// What is known of a table before anything is done.
pub(super) struct Checked {
    /// Whether its rows are in shards.
    pub(super) is_sharded: bool,
    /// The constraint that refuses new values, if there is one.
    pub(super) constraint: Option<Constraint>,
}

/// Refuses what cannot be converted, before anything is done. Only one table of the family is locked at
/// a time.
pub(super) fn check(
    relation: pg_sys::Oid,
    column_name: &CStr,
    conversion: Conversion,
) -> Result<Checked, Error> {
    let connection = Connection::read_only();
    let family = family(&connection, relation, column_name);
    if family.is_empty() {
        return Err(Error::NoRelation(relation));
    }
    let mut constraint = None;
    for member in family {
        let checked = connection.undo_unless(
            |_| false,
            || {
                if Spread::of(&connection, member.oid) == Spread::Replicated {
                    let opened = Relation::open(&connection, member.oid, Lock::Read);
                    let relation = opened
                        .ok_or(Error::NoRelation(member.oid))?
                        .printable_name();
                    return Err(Error::Replicated { relation });
                }
                match Table::open(&connection, member.oid, column_name) {
                    Err(Error::NoRelation(gone)) if gone != relation => Ok(None),
                    opened => {
                        drop(opened?);
                        fit::check(&connection, member.oid, column_name, conversion)
                    }
                }
            },
        );
        let found = checked?;
        constraint = constraint.or(found);
    }
    Ok(Checked {
        is_sharded: Spread::of(&connection, relation) == Spread::Shards,
        constraint,
    })
}

/// A table with rows of its own, open and locked until the transaction ends.
pub(crate) struct Table<'c> {
    pub(crate) relation: Relation<'c>,
    pub(crate) column: Column,
    name: Identifier,
}

/// As many new values as fit into the processor's cache while the server joins them to their rows.
const ROWS_AT_ONCE: usize = 1000;

/// What became of a row after it was read.
pub(crate) enum Fate<'v> {
    /// This transaction has written its newest version.
    Ours(Version<'v>),
    /// Its newest version is locked now, and is given here.
    Held(Version<'v>),
    /// Another transaction has locked it.
    Locked,
    /// It was deleted, or is in another partition now.
    Gone,
}

impl<'c> Table<'c> {
    /// Opens a table, or returns `None` if it is partitioned and so has no rows of its own.
    ///
    /// # Errors
    /// If it is gone, or cannot be converted.
    pub(crate) fn open(
        connection: &'c Connection,
        oid: pg_sys::Oid,
        column_name: &CStr,
    ) -> Result<Option<Self>, Error> {
        Relation::lock_ancestors(connection, oid);
        let relation =
            Relation::open(connection, oid, Lock::Write).ok_or(Error::NoRelation(oid))?;
        let kind = relation.kind();
        if !matches!(kind, Kind::Table | Kind::PartitionedTable) {
            return Err(Error::NotATable {
                relation: relation.printable_name(),
                kind,
            });
        }
        let column = relation.column(column_name)?;
        if column.generated {
            return Err(Error::Generated {
                column: encoding::printable(column_name.to_bytes()),
                relation: relation.printable_name(),
            });
        }
        if relation.is_partitioned_by(column_name) {
            return Err(Error::PartitionKey {
                column: encoding::printable(column_name.to_bytes()),
                relation: relation.printable_name(),
            });
        }
        if relation.hides_rows() {
            return Err(Error::HiddenRows {
                relation: relation.printable_name(),
            });
        }
        if kind == Kind::PartitionedTable {
            return Ok(None);
        }
        if !relation.has_tid_ranges() {
            return Err(Error::AccessMethod {
                relation: relation.printable_name(),
            });
        }
        Ok(Some(Self {
            name: relation.name(),
            relation,
            column,
        }))
    }

    /// Reads the rows from a place up to the start of a block, as the transaction's snapshot shows
    /// them.
    ///
    /// # Errors
    /// The server's, if the role may not read the table.
    pub(crate) fn read(&self, start: Tid, end: u32) -> Scan<'_> {
        self.relation.ensure_readable(&[
            pg_sys::SelfItemPointerAttributeNumber as i16,
            pg_sys::MinTransactionIdAttributeNumber as i16,
            pg_sys::MaxTransactionIdAttributeNumber as i16,
            self.column.number,
        ]);
        Scan::new(&self.relation, &self.column, start, end)
    }

    /// Tells whether the table still is what a snapshot has shown of it, so that the snapshot shows
    /// its rows and the column's values.
    pub(crate) fn is_still(&self, member: &Member) -> bool {
        (self.relation.file(), self.column.number) == (member.file, member.column)
    }

    /// Returns room for new values of the column, which [`update`](Self::update) takes.
    pub(crate) fn new_values<'tx>(&self, transaction: &'tx Transaction) -> NewValues<'tx> {
        NewValues::new(transaction, &self.column.value_type, ROWS_AT_ONCE)
    }

    /// Writes new values to those rows that are still at the same place and have the same writer.
    /// Returns how many rows the server says it has updated. `are_sparse` says that there are many other
    /// rows between them.
    ///
    /// Comparing the writer finds rows that were changed while we waited for their lock: servers
    /// before the releases of November 2025 do not check the place again.
    pub(crate) fn update<'v>(
        &self,
        transaction: &Transaction,
        values: &NewValues<'_>,
        rows: impl Iterator<Item = (Tid, Xid, Value<'v>)>,
        are_sparse: bool,
    ) -> u64 {
        let update = [
            b"UPDATE ONLY ",
            &self.name[..],
            b" AS t SET ",
            &self.column.name,
            b" = n.value FROM fernet_new_values AS n \
               WHERE t.ctid OPERATOR(pg_catalog.=) n.id AND t.xmin OPERATOR(pg_catalog.=) n.writer \
               AND t.ctid OPERATOR(pg_catalog.>=) $1 AND t.ctid OPERATOR(pg_catalog.<) $2",
        ];
        let execute = || {
            let mut rows = rows.peekable();
            let plan = transaction.prepare(&update, [pg_sys::TIDOID; 2]);
            let mut count = 0;
            while let Some(&(id, ..)) = rows.peek() {
                values.clear();
                let (mut first, mut last) = (id, id);
                for (id, writer, value) in rows.by_ref().take(ROWS_AT_ONCE) {
                    (first, last) = (first.min(id), last.max(id));
                    values.push(id, writer, value);
                }
                count += plan.execute([Argument::tid(first), Argument::tid(last.next())]);
            }
            count
        };
        // If most rows of a range are written, the range is read once more; otherwise each row is
        // looked up.
        if are_sparse {
            transaction.with_nested_loops(execute)
        } else {
            execute()
        }
    }

    /// Tells what became of a row that this transaction has read and may have written. Locks the row if
    /// it can without waiting.
    pub(crate) fn fate<R>(&self, id: Tid, may_be_ours: bool, f: impl FnOnce(Fate<'_>) -> R) -> R {
        let mut slot = Slot::new(&self.relation);
        if may_be_ours && slot.fetch_our_newest(id) {
            return f(Fate::Ours(slot.version(&self.column)));
        }
        match slot.lock_newest(id, self.relation.is_key(self.column.number)) {
            slot::Lock::Held => f(Fate::Held(slot.version(&self.column))),
            slot::Lock::NotAvailable => f(Fate::Locked),
            slot::Lock::Gone => f(Fate::Gone),
        }
    }

    /// Names a row for a human.
    pub(crate) fn place(&self, id: Tid) -> String {
        format!("{id} of {}", self.relation.printable_name())
    }
}
