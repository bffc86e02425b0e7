//! A column is converted in batches, with a commit after each, until there is the proof that nothing is
//! left. What is done to a value is the [`Conversion`]'s: it is rotated, encrypted or decrypted.
//!
//! A *look* reads the whole relation, partition by partition, and converts values in memory. When it
//! has a batch, it writes that back to the rows that are still what was read, those that have the same
//! place (`ctid`) and writer (`xmin`), commits, and reads on. It waits for a locked row only for a
//! moment: of rows that were changed meanwhile it takes the newest version, and what is still locked
//! is left for the next look.
//!
//! After a look that has converted anything comes another one, and before it a wait, without a lock or
//! a snapshot of ours, for the transactions that have written to the relation: what they wrote may be
//! as it was before, and cannot be seen yet. A look that finds nothing to convert has read
//! everything in one snapshot. If those who were writing before it have ended, that is the proof:
//! rows that move cannot hide from one snapshot.
//!
//! Nothing is remembered between calls: a call after one that was cancelled finds what is left.

use std::ffi::CStr;
use std::time::{Duration, Instant};

use pgrx::prelude::*;

use super::Error;
use super::batch::{self, Batch, Look, NewRow, Reader};
use super::conversion::{Conversion, Found};
use super::fit::{self, Constraint};
use super::progress::Report;
use super::table::{self, Fate, Table, Writer};
use super::{warning, workers};
use crate::fernet::Keyring;
use crate::pg::catalogs;
use crate::pg::report::notice;
use crate::pg::server;
use crate::pg::slot::Version;
use crate::pg::transaction::Transaction;

pub(super) struct Pass<'a> {
    pub(super) conversion: Conversion,
    pub(super) relation: pg_sys::Oid,
    pub(super) column_name: &'a CStr,
    pub(super) batch_size: usize,
    /// One for the whole call, whatever happens to the settings meanwhile.
    pub(super) keyring: &'a Keyring,
    /// What refuses the first value to which there is something to do.
    pub(super) constraint: Option<&'a Constraint>,
    /// The table that was last found to take new values, and how often the catalogs had changed by then.
    pub(super) checked: Option<(pg_sys::Oid, u64)>,
    /// How many tokens were rotated, or values encrypted or decrypted, and are so because of this call.
    pub(super) done: i64,
}

impl Pass<'_> {
    /// Goes through with it, with the help of so many background workers.
    pub(super) fn run(mut self, workers: usize) -> Result<Report, Error> {
        Transaction::end_current()?;
        // Where nobody is writing, there is nobody to wait for, and the first look may be the proof.
        let mut has_waited = self.writers(false)?.is_empty();
        let mut label = self.conversion.doing();
        let mut shared = workers::share(&mut self, workers, label)?;
        let mut started = None;
        let mut unfinished = None;
        for looks in 1.. {
            let look = match shared.take() {
                Some(look) => look,
                None => self.look(label, true)?,
            };
            if look.found == 0 && !look.is_outdated && has_waited {
                return Ok(self.finish(look, None));
            }
            label = "checking what was written meanwhile";
            let started = started.get_or_insert_with(Instant::now);
            let is_in_vain = has_waited && look.found > 0 && look.found == look.kept;
            unfinished = self.wait_for_writers(look.locked > 0)?;
            has_waited = true;
            if look.locked > 0 {
                // What holds a row up may be a lock on another table, for which nobody was waited.
                server::sleep(PAUSE);
            }
            let is_enough =
                looks >= MIN_LOOKS && (started.elapsed() >= MIN_TIME || looks >= MAX_LOOKS);
            if unfinished.is_some() || is_in_vain || is_enough {
                break;
            }
        }
        let mut look = self.look("counting what is left", false)?;
        for _ in 1..MIN_LOOKS {
            if !look.is_outdated {
                break;
            }
            look = self.look("counting what is left", false)?;
        }
        Ok(self.finish(look, unfinished))
    }

    fn finish(&self, look: Look, unfinished: Option<Writer>) -> Report {
        let mut report = look.report;
        // The look has also seen what was done before it; but not what somebody has deleted since, or
        // what a trigger has undone when the transaction ended.
        report.done = self.done.min(match self.conversion {
            Conversion::Rotate { .. } | Conversion::Encrypt => report.tally.current(),
            Conversion::Decrypt => report.rows - report.tally.nulls - report.left,
        });
        report.unfinished = match unfinished {
            Some(writer) => Some(warning::gave_up_waiting(&writer.description)),
            None if look.is_outdated => Some(warning::GAVE_UP_LOOKING.into()),
            None => None,
        };
        report
    }

    fn writers(&self, or_row_locks: bool) -> Result<Vec<Writer>, Error> {
        Transaction::run(|transaction| Ok(table::writers(transaction, self.relation, or_row_locks)))
    }

    /// Waits for the transactions that have written to the relation, and if rows of it are locked,
    /// for those that may have done that. Returns who has not ended within `lock_timeout`.
    fn wait_for_writers(&self, or_row_locks: bool) -> Result<Option<Writer>, Error> {
        let started = Instant::now();
        let limit = server::lock_timeout();
        for writer in self.writers(or_row_locks)? {
            let left = || limit.map(|limit| limit.saturating_sub(started.elapsed()));
            // Most end at once. A lock timeout of a second instead would hide a cancellation that comes
            // at the same time.
            let moment = Instant::now();
            while !writer.transaction.has_ended() {
                if left() == Some(Duration::ZERO) {
                    return Ok(Some(writer));
                }
                if moment.elapsed() < Duration::from_secs(1) {
                    server::sleep(Duration::from_millis(10));
                    continue;
                }
                notice(format!("waiting for {}", writer.description));
                if !writer.transaction.wait(left()) {
                    return Ok(Some(writer));
                }
            }
        }
        Ok(None)
    }

    /// Looks at the whole relation, and converts what it finds, or only counts it. What finds nothing
    /// has one snapshot from its beginning to its end.
    fn look(&mut self, label: &'static str, converts: bool) -> Result<Look, Error> {
        let mut look = Look::new(self.keyring)?;
        let mut reader: Option<Reader> = None;
        loop {
            let is_done = Transaction::run(|transaction| {
                let reader = match &mut reader {
                    Some(reader) => reader,
                    None => {
                        let family = table::family(transaction, self.relation, self.column_name);
                        if family.is_empty() {
                            return Err(Error::NoRelation(self.relation));
                        }
                        reader.insert(Reader::new(family, label))
                    }
                };
                self.convert_batch(transaction, reader, &mut look, converts)
            })?;
            if is_done {
                return Ok(look);
            }
        }
    }

    /// Reads on until there is a batch, and writes that. Tells whether the reader is at its end.
    pub(super) fn convert_batch(
        &mut self,
        transaction: &Transaction,
        reader: &mut Reader,
        look: &mut Look,
        converts: bool,
    ) -> Result<bool, Error> {
        while let Some(oid) = reader.table() {
            // The lock on a table without anything to convert is not needed any longer.
            let batch = transaction.undo_unless(
                |batch: &Result<Batch, Error>| {
                    batch.as_ref().is_ok_and(|batch| !batch.rows.is_empty())
                },
                || self.read(transaction, reader, look, converts),
            )?;
            if !batch.rows.is_empty() {
                self.write(transaction, oid, &batch, look)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads the table that the reader is at, up to its end or until there is a batch.
    fn read(
        &mut self,
        transaction: &Transaction,
        reader: &mut Reader,
        look: &mut Look,
        converts: bool,
    ) -> Result<Batch, Error> {
        let mut batch = Batch::default();
        let member = &reader.members[0];
        let table = match Table::open(transaction, member.oid, self.column_name) {
            Ok(Some(table)) => table,
            // It is partitioned.
            Ok(None) => {
                reader.next_table();
                return Ok(batch);
            }
            // Its rows may be in a table that is newer than the snapshot.
            Err(Error::NoRelation(_)) => {
                look.is_outdated = true;
                reader.next_table();
                return Ok(batch);
            }
            Err(error) => return Err(error),
        };
        look.is_outdated |= !table.is_still(member);
        if self.done > 0 {
            // What a writer's lock does not keep out may have come while the last batch was written.
            self.check_again(transaction, &table)?;
        }
        let end = *reader.end.get_or_insert_with(|| table.relation.blocks());
        let mut scan = table.read(reader.at, end);
        while let Some(version) = scan.next() {
            let id = version.id;
            self.convert(&table, version, converts.then_some(&mut batch), look)?;
            look.report.rows += 1;
            reader.progress.advance(id.block);
            if batch.is_full(self.batch_size) {
                reader.at = id.next();
                return Ok(batch);
            }
        }
        reader.next_table();
        Ok(batch)
    }

    /// Counts what is in the value of a row. If there is a batch, and something to do, adds the row to
    /// it with its new value.
    fn convert(
        &self,
        table: &Table<'_>,
        version: Version<'_>,
        mut batch: Option<&mut Batch>,
        look: &mut Look,
    ) -> Result<(), Error> {
        let report = &mut look.report;
        let id = version.id;
        let Some(value) = version.value else {
            report.tally.nulls += 1;
            return Ok(());
        };
        let is_strict = self.conversion.is_strict() && batch.is_some();
        let values = batch.as_deref_mut().map(|batch| &mut batch.values);
        let found = self
            .conversion
            .apply(self.keyring, &value, &mut report.tally, values);
        let Found {
            due,
            new_value,
            in_text,
            refusal,
        } = found.map_err(|error| Error::of_row(error, || table.place(id)))?;
        if due > 0
            && let Some(constraint) = self.constraint
        {
            return Err(Error::Constrained(constraint.clone()));
        }
        if let (Some(batch), Some(value)) = (batch, new_value) {
            if self.conversion == Conversion::Encrypt {
                let len = batch.values.get(value).len();
                fit::check_token(&table.column, len, || table.place(id))?;
            }
            batch.push(NewRow {
                id,
                writer: version.writer,
                is_untouched: version.is_untouched,
                value,
                due,
            })?;
        }
        look.found += usize::from(due > 0);
        report.left += due;
        report.in_text += in_text;
        match refusal {
            Some(refusal) if is_strict => {
                return Err(Error::Value {
                    place: table.place(id),
                    refusal,
                });
            }
            Some(refusal) => report.name(|| format!("{}: {refusal}", table.place(id))),
            None if in_text > 0 => report.name(|| format!("{}: {IN_TEXT}", table.place(id))),
            None => {}
        }
        Ok(())
    }

    /// Refuses a table to which something has come, since it was found to take new values, that may not take
    /// them.
    fn check_again(&mut self, transaction: &Transaction, table: &Table<'_>) -> Result<(), Error> {
        let checked = Some((table.relation.oid(), catalogs::changes()));
        if self.checked != checked {
            let (relation, column) = (&table.relation, &table.column);
            fit::check_again(
                transaction,
                relation,
                column,
                self.column_name,
                self.conversion,
            )?;
            self.checked = checked;
        }
        Ok(())
    }

    /// Writes new values to their rows, and to the newest versions of those that were changed
    /// meanwhile.
    fn write(
        &mut self,
        transaction: &Transaction,
        oid: pg_sys::Oid,
        batch: &Batch,
        look: &mut Look,
    ) -> Result<(), Error> {
        let table =
            Table::open(transaction, oid, self.column_name)?.ok_or(Error::NoRelation(oid))?;
        // The UPDATE would be refused, but rows may be locked before that.
        table.relation.ensure_updatable(table.column.number);
        self.check_again(transaction, &table)?;
        // Does not wait for a row, or only for a moment: who else locks it now has been faster.
        let update = |batch: &Batch, rows: &dyn Fn(&NewRow) -> bool| {
            let rows = || batch.rows.iter().filter(|row| rows(row));
            let Some(are_sparse) = batch::are_sparse(rows()) else {
                return Some(0);
            };
            let new = rows().map(|row| (row.id, row.writer, batch.values.get(row.value)));
            let values = table.new_values(transaction);
            transaction.attempt(|| table.update(transaction, &values, new, are_sparse))
        };
        let written = update(batch, &|row| row.is_untouched);
        if written == Some(batch.rows.len() as u64) && !table.relation.has_code_on_update() {
            self.done += batch.due();
            return Ok(());
        }
        // Some of the rows were changed, moved or locked meanwhile, or before. Or a trigger or a rule has
        // had its say, and what the statement counts is not what is in the table.
        let mut rest = Batch::default();
        for row in &batch.rows {
            let may_be_ours = row.is_untouched && written.is_some();
            table.fate(row.id, may_be_ours, |fate| match fate {
                Fate::Ours(version) => self.count_written(&table, row, version, look),
                Fate::Held(version) => {
                    // Its tokens were counted when it was read.
                    let mut ignored = Look::new(self.keyring)?;
                    self.convert(&table, version, Some(&mut rest), &mut ignored)
                }
                Fate::Locked => {
                    look.locked += 1;
                    Ok(())
                }
                Fate::Gone => Ok(()),
            })?;
        }
        if update(&rest, &|_| true).is_none() {
            // What a trigger or a foreign key would change as well is locked.
            look.locked += rest.rows.len();
            return Ok(());
        }
        if !table.relation.has_code_on_update() {
            // All of these are locked.
            self.done += rest.due();
            return Ok(());
        }
        for row in &rest.rows {
            table.fate(row.id, true, |fate| match fate {
                Fate::Ours(version) => self.count_written(&table, row, version, look),
                _ => {
                    look.kept += 1;
                    Ok(())
                }
            })?;
        }
        Ok(())
    }

    /// Counts what was done to a row that this call has written, and what the row holds now.
    fn count_written(
        &mut self,
        table: &Table<'_>,
        row: &NewRow,
        version: Version<'_>,
        look: &mut Look,
    ) -> Result<(), Error> {
        let mut now = Look::new(self.keyring)?;
        self.convert(table, version, None, &mut now)?;
        let report = now.report;
        if now.found > 0 {
            look.kept += 1;
        } else {
            self.done += row.due.min(match self.conversion {
                Conversion::Rotate { .. } | Conversion::Encrypt => report.tally.current(),
                Conversion::Decrypt => 1 - report.tally.nulls,
            });
        }
        Ok(())
    }
}

/// Why a value is named that has tokens, and is neither encrypted nor decrypted.
const IN_TEXT: &str = "there is other text beside the token";

/// After that many looks, and that much time since the first one, it gives up if each has found
/// something; and however short they are, after so many at the most.
const MIN_LOOKS: u32 = 10;
const MAX_LOOKS: u32 = 100;
const MIN_TIME: Duration = Duration::from_secs(10);

/// How long to wait before the next look if rows were locked.
const PAUSE: Duration = Duration::from_millis(100);
