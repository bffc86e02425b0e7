//! The rotation of a column in batches, with a commit after each, and the proof that nothing is left.
//!
//! A *look* reads the whole relation, partition by partition, and rotates tokens in memory. When it
//! has a batch, it writes that back to the rows that are still what was read, those that have the same
//! place (`ctid`) and writer (`xmin`), commits, and reads on. It waits for a locked row only for a
//! moment: of rows that were changed meanwhile it takes the newest version, and what is still locked
//! is left for the next look.
//!
//! After a look that has rotated anything comes another one, and before it a wait, without a lock or a
//! snapshot of ours, for the transactions that have written to the relation: what they wrote may be
//! under an older key, and cannot be seen before. A look that finds nothing to rotate has read
//! everything in one snapshot. If those who were writing before it have ended, that is the proof:
//! rows that move cannot hide from one snapshot.
//!
//! Nothing is remembered between calls: a call after one that was cancelled finds what is left.

use std::ffi::CStr;
use std::time::{Duration, Instant};

use pgrx::prelude::*;

use super::Error;
use super::batch::{Batch, Look, NewRow, Reader};
use super::progress::Report;
use super::table::{self, Fate, Table, Writer};
use super::tally::inspect;
use super::warning;
use crate::fernet::{self, Keyring};
use crate::pg::report::notice;
use crate::pg::row::{Tid, Xid};
use crate::pg::transaction::Transaction;
use crate::pg::value_type::Stored;
use crate::pg::{random, server};

pub(super) struct Rotation<'a> {
    pub(super) relation: pg_sys::Oid,
    pub(super) column_name: &'a CStr,
    pub(super) batch_size: usize,
    pub(super) strict: bool,
    /// One for the whole call, whatever happens to the settings meanwhile.
    pub(super) keyring: &'a Keyring,
    /// How many tokens are under the first key because of this call.
    pub(super) rotated: i64,
}

impl Rotation<'_> {
    pub(super) fn run(mut self) -> Result<Report, Error> {
        Transaction::end_callers()?;
        // Where nobody is writing, there is nobody to wait for, and the first look may be the proof.
        let mut has_waited = self.writers(false)?.is_empty();
        let mut label = "rotating";
        let mut started = None;
        let mut unfinished = None;
        for looks in 1.. {
            let look = self.look(label, true)?;
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
        // The look has also seen what was rotated before it; but not what somebody has deleted since, or
        // what a trigger has undone when the transaction ended.
        report.rotated = self.rotated.min(report.tally.current());
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

    /// Looks at the whole relation, and rotates what it finds, or only counts it. What finds nothing
    /// has one snapshot from its beginning to its end.
    fn look(&mut self, label: &'static str, rotates: bool) -> Result<Look, Error> {
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
                while let Some(oid) = reader.table() {
                    // The lock on a table without anything to rotate is not needed any longer.
                    let batch = transaction.undo_unless(
                        |batch: &Result<Batch, Error>| {
                            batch.as_ref().is_ok_and(|batch| !batch.rows.is_empty())
                        },
                        || self.read(transaction, reader, &mut look, rotates),
                    )?;
                    if !batch.rows.is_empty() {
                        self.write(transaction, oid, &batch, &mut look)?;
                        return Ok(false);
                    }
                }
                Ok(true)
            })?;
            if is_done {
                return Ok(look);
            }
        }
    }

    /// Reads the table that the reader is at, up to its end or until there is a batch.
    fn read(
        &self,
        transaction: &Transaction,
        reader: &mut Reader,
        look: &mut Look,
        rotates: bool,
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
        let end = *reader.end.get_or_insert_with(|| table.relation.blocks());
        let mut cursor = table.read(transaction, reader.at..Tid::start_of(end));
        cursor.fetch_at_most(self.batch_size);
        while let Some(rows) = cursor.fetch() {
            for row in rows.iter() {
                let version = row.version();
                let id = version.id;
                let place = || table.place(id);
                let batch_for_new = rotates.then_some(&mut batch);
                let value = version.stored(&table.column.value_type);
                let (writer, is_untouched) = (version.writer, version.is_untouched);
                self.rotate(id, writer, is_untouched, value, batch_for_new, place, look)?;
                look.report.rows += 1;
                reader.progress.advance(id.block);
                if batch.is_full(self.batch_size) {
                    reader.at = id.next();
                    return Ok(batch);
                }
            }
        }
        reader.next_table();
        Ok(batch)
    }

    /// Counts the tokens in the value of a row. If there is a batch, and something to rotate, adds the
    /// row to it with its new value.
    #[allow(
        clippy::too_many_arguments,
        reason = "a row version, and what is made of it"
    )]
    fn rotate(
        &self,
        id: Tid,
        writer: Xid,
        is_untouched: bool,
        value: Option<Stored<'_>>,
        batch: Option<&mut Batch>,
        place: impl Fn() -> String,
        look: &mut Look,
    ) -> Result<(), Error> {
        let tally = &mut look.report.tally;
        let Some(value) = value else {
            tally.nulls += 1;
            return Ok(());
        };
        let (mut tokens, mut old, mut refusal) = (0, 0, None);
        let mut each = |opener: Result<usize, fernet::Error>| {
            tokens += 1;
            old += i64::from(opener.is_ok_and(|index| index > 0));
            refusal = refusal.or_else(|| opener.err());
            tally.add_token(opener);
        };
        let strict = self.strict && batch.is_some();
        match batch {
            Some(batch) => {
                let new_value = value.change(&mut batch.values, |part, room| {
                    self.keyring.rotate_value(part, room, random::iv, &mut each)
                })?;
                if let Some(value) = new_value {
                    batch.push(NewRow {
                        id,
                        writer,
                        is_untouched,
                        value,
                        tokens: old,
                    })?;
                }
            }
            None => inspect(self.keyring, &value, each)?,
        }
        look.found += usize::from(old > 0);
        if tokens == 0 {
            tally.not_a_token += 1;
            refusal = (!value.is_document()).then_some(fernet::Error::NotAToken);
        }
        match refusal {
            Some(refusal) if strict => Err(Error::Value {
                place: place(),
                refusal,
            }),
            Some(refusal) => {
                let describe = || format!("{}: {refusal}", place());
                look.report.name(describe);
                Ok(())
            }
            None => Ok(()),
        }
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
        // Does not wait for a row, or only for a moment: who else locks it now has been faster.
        let update = |batch: &Batch, rows: &dyn Fn(&NewRow) -> bool| {
            let mut values = table.new_values(transaction);
            let mut count = 0;
            for row in batch.rows.iter().filter(|row| rows(row)) {
                values.push(row.id, row.writer, batch.values.get(row.value));
                count += 1;
            }
            if count == 0 {
                return Some(0);
            }
            let shown = values.show();
            transaction.attempt(|| table.update(transaction, &shown, batch.range(), count))
        };
        let written = update(batch, &|row| row.is_untouched);
        if written == Some(batch.rows.len() as u64) && !table.relation.has_code_on_update() {
            self.rotated += batch.tokens();
            return Ok(());
        }
        // Some of the rows were changed, moved or locked meanwhile, or before. Or a trigger or a rule has
        // had its say, and what the statement counts is not what is in the table.
        let mut rest = Batch::default();
        for row in &batch.rows {
            let may_be_ours = row.is_untouched && written.is_some();
            table.fate(row.id, may_be_ours, |fate| match fate {
                Fate::Ours(value) => self.count_written(row, value, look),
                Fate::Held(id, writer, value) => {
                    // Its tokens were counted when it was read.
                    let mut ignored = Look::new(self.keyring)?;
                    let place = || table.place(id);
                    self.rotate(
                        id,
                        writer,
                        true,
                        value,
                        Some(&mut rest),
                        place,
                        &mut ignored,
                    )
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
            self.rotated += rest.tokens();
            return Ok(());
        }
        for row in &rest.rows {
            table.fate(row.id, true, |fate| match fate {
                Fate::Ours(value) => self.count_written(row, value, look),
                _ => {
                    look.kept += 1;
                    Ok(())
                }
            })?;
        }
        Ok(())
    }

    /// Counts the tokens of a row that this call has written, if they are under the first key now.
    fn count_written(
        &mut self,
        row: &NewRow,
        value: Option<Stored<'_>>,
        look: &mut Look,
    ) -> Result<(), Error> {
        let (mut old, mut current) = (0, 0);
        if let Some(value) = value {
            inspect(self.keyring, &value, |token| match token {
                Ok(0) => current += 1,
                Ok(_) => old += 1,
                Err(_) => {}
            })?;
        }
        if old > 0 {
            look.kept += 1;
        } else {
            self.rotated += row.tokens.min(current);
        }
        Ok(())
    }
}

/// After that many looks, and that much time since the first one, it gives up if each has found
/// something; and however short they are, after so many at the most.
const MIN_LOOKS: u32 = 10;
const MAX_LOOKS: u32 = 100;
const MIN_TIME: Duration = Duration::from_secs(10);

/// How long to wait before the next look if rows were locked.
const PAUSE: Duration = Duration::from_millis(100);
