//! What a look reads, what it has seen, and the rows that are to be written.

use std::collections::VecDeque;
use std::ops::Range;

use pgrx::prelude::*;

use super::Error;
use super::progress::{Progress, Report};
use super::table::Member;
use super::tally::Tally;
use crate::fernet::Keyring;
use crate::pg::row::{Tid, Xid};
use crate::pg::value::Values;

/// What a look has seen and done.
pub(super) struct Look {
    pub(super) report: Report,
    /// Rows with something to convert. `locked` counts those of them that another transaction had
    /// locked; `kept` counts those that were written but still hold what they held before.
    pub(super) found: usize,
    pub(super) locked: usize,
    pub(super) kept: usize,
    /// Whether a table was rewritten, changed or replaced after the snapshot was taken. The snapshot
    /// may then not show its rows.
    pub(super) is_outdated: bool,
}

impl Look {
    pub(super) fn new(keyring: &Keyring) -> Result<Self, Error> {
        Ok(Self {
            report: Report::new(Tally::new(keyring)?),
            found: 0,
            locked: 0,
            kept: 0,
            is_outdated: false,
        })
    }
}

/// How far a look has come.
pub(super) struct Reader {
    /// The tables that are still to be read. The first one is being read now.
    pub(super) members: VecDeque<Member>,
    /// The place in the first table up to which it has been read, and how many blocks the table had
    /// when reading began. Rows written after those blocks since then are left to the next look.
    pub(super) at: Tid,
    pub(super) end: Option<u32>,
    pub(super) progress: Progress,
}

impl Reader {
    pub(super) fn new(members: Vec<Member>, label: &'static str) -> Self {
        let blocks = members.iter().map(|member| u64::from(member.blocks)).sum();
        Self {
            members: members.into(),
            at: Tid::start_of(0),
            end: None,
            progress: Progress::new(Some(label), blocks),
        }
    }

    /// Reads a range of blocks of one table, without progress notices.
    pub(super) fn of_range(oid: pg_sys::Oid, blocks: Range<u32>) -> Self {
        let member = Member {
            oid,
            // Not looked up, since what such a reader sees is no proof.
            file: pg_sys::InvalidOid,
            column: 0,
            is_temporary: false,
            blocks: blocks.len() as u32,
        };
        Self {
            members: [member].into(),
            at: Tid::start_of(blocks.start),
            end: Some(blocks.end),
            progress: Progress::new(None, 0),
        }
    }

    pub(super) fn table(&self) -> Option<pg_sys::Oid> {
        self.members.front().map(|member| member.oid)
    }

    pub(super) fn next_table(&mut self) {
        if let Some(member) = self.members.pop_front() {
            self.progress.end_table(member.blocks);
        }
        self.at = Tid::start_of(0);
        self.end = None;
    }
}

/// A row to be written.
pub(super) struct NewRow {
    pub(super) id: Tid,
    pub(super) writer: Xid,
    /// Whether nobody had locked or changed the row when it was read.
    pub(super) is_untouched: bool,
    /// Index into the batch's values.
    pub(super) value: usize,
    /// How many tokens in it were to be rotated, or 1 for a value that was to be encrypted or decrypted.
    pub(super) due: i64,
}

/// Rows of one table that are to be written.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) rows: Vec<NewRow>,
    pub(super) values: Values,
}

impl Batch {
    /// A batch ends once its new values take this much memory, even if it could have more rows.
    const MAX_BYTES: usize = 16 << 20;

    /// Tells whether it has reached the number of rows that it may have, or takes too much memory
    /// for more.
    pub(super) fn is_full(&self, rows: usize) -> bool {
        self.rows.len() >= rows || self.values.len() >= Self::MAX_BYTES
    }

    pub(super) fn push(&mut self, row: NewRow) -> Result<(), Error> {
        self.rows.try_reserve(1)?;
        self.rows.push(row);
        Ok(())
    }

    /// Returns how many tokens or values are done once all rows are written.
    pub(super) fn due(&self) -> i64 {
        self.rows.iter().map(|row| row.due).sum()
    }
}

/// Tells whether the rows span more blocks than there are rows, or returns `None` if there are no
/// rows.
pub(super) fn are_sparse<'r>(rows: impl Iterator<Item = &'r NewRow> + Clone) -> Option<bool> {
    let blocks = || rows.clone().map(|row| row.id.block);
    let range = blocks().max()? - blocks().min()?;
    Some(range as usize > rows.clone().count())
}
