//! Row versions of a table, read through its access method. Reading them one after the other takes half
//! the instructions of a query. Locking them by their places does more than a query can: a query that
//! waits for a row checks its place again, and loses a row that has moved.

use std::ptr::{self, NonNull};
use std::thread;

use pgrx::prelude::*;

use super::memory::ensure_reserve;
use super::relation::{Column, Relation};
use super::row::{Tid, Xid};
use super::value_type::Stored;

/// A version of a row: its place, its writer, and one of its values, unless that is null.
pub(crate) struct Version<'v> {
    pub(crate) id: Tid,
    pub(crate) writer: Xid,
    /// Whether no transaction has locked or changed it yet, or has tried to.
    pub(crate) is_untouched: bool,
    pub(crate) value: Option<Stored<'v>>,
}

/// The rows of a table, or of a range of its blocks, as the active snapshot shows them.
pub(crate) struct Scan<'r> {
    scan: pg_sys::TableScanDesc,
    snapshot: pg_sys::Snapshot,
    slot: Slot<'r>,
    column: &'r Column,
}

impl<'r> Scan<'r> {
    /// Reads from a place up to the start of a block. The table's access method must find rows by
    /// their places.
    pub(crate) fn new(
        relation: &'r Relation<'_>,
        column: &'r Column,
        start: Tid,
        end: u32,
    ) -> Self {
        let slot = Slot::new(relation);
        let mut first = start.to_item_pointer();
        // If the table has no blocks, the snapshot shows no rows.
        let last = Tid {
            block: end.saturating_sub(1),
            line: u16::MAX,
        };
        let mut last = last.to_item_pointer();
        // SAFETY: the snapshot and the scan are held until `self` is dropped, which is before the
        // relation is closed.
        let (snapshot, scan) = unsafe {
            let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetActiveSnapshot());
            #[cfg(not(feature = "pg19"))]
            let begin = pg_sys::table_beginscan_tidrange;
            // This leaves out the hint that the table will only be read.
            #[cfg(feature = "pg19")]
            let begin = |relation, snapshot, first, last| {
                pg_sys::table_beginscan_tidrange(relation, snapshot, first, last, 0)
            };
            let scan = begin(relation.as_ptr(), snapshot, &raw mut first, &raw mut last);
            (snapshot, scan)
        };
        Self {
            scan,
            snapshot,
            slot,
            column,
        }
    }

    /// Returns the next version, or `None` after the last one.
    pub(crate) fn next(&mut self) -> Option<Version<'_>> {
        ensure_reserve();
        // A row may take long: its value may be large, and stored out of line.
        pgrx::check_for_interrupts!();
        let method = self.slot.relation.access_method();
        let next = method
            .scan_getnextslot_tidrange
            .expect("the access method finds rows by their places");
        let (scan, slot) = (self.scan, self.slot.slot.as_ptr());
        let direction = pg_sys::ScanDirection::ForwardScanDirection;
        // SAFETY: the slot is one of this relation.
        let found = unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| next(scan, direction, slot)) };
        found.then(|| self.slot.version(self.column))
    }
}

impl Drop for Scan<'_> {
    fn drop(&mut self) {
        if !thread::panicking() {
            // SAFETY: both were begun by `new`; nothing refers to a version any more.
            unsafe {
                pg_sys::table_endscan(self.scan);
                pg_sys::UnregisterSnapshot(self.snapshot);
            }
        }
    }
}

/// Room for one row version of an open relation.
pub(crate) struct Slot<'r> {
    slot: NonNull<pg_sys::TupleTableSlot>,
    relation: &'r Relation<'r>,
}

/// The result of an attempt to lock a row.
pub(crate) enum Lock {
    /// The row's newest version is locked, and in the slot.
    Held,
    /// Another transaction has locked the row.
    NotAvailable,
    /// The row was deleted, has moved to another partition, or was changed by this transaction.
    Gone,
}

impl<'r> Slot<'r> {
    pub(crate) fn new(relation: &'r Relation<'_>) -> Self {
        // SAFETY: the relation is open for longer than the slot exists.
        let slot = unsafe { pg_sys::table_slot_create(relation.as_ptr(), ptr::null_mut()) };
        Self {
            slot: NonNull::new(slot).expect("the server makes a slot or raises an error"),
            relation,
        }
    }

    /// Locks the newest version of a row without waiting. `of_key` says that a column in a unique
    /// index is to be updated. `id` must be the place of a version that the active snapshot shows:
    /// then all later versions still exist.
    #[allow(non_upper_case_globals, reason = "these are the server's own names")]
    pub(crate) fn lock_newest(&mut self, mut id: Tid, of_key: bool) -> Lock {
        use pg_sys::TM_Result::{TM_Ok, TM_Updated, TM_WouldBlock};
        let mode = if of_key {
            pg_sys::LockTupleMode::LockTupleExclusive
        } else {
            pg_sys::LockTupleMode::LockTupleNoKeyExclusive
        };
        let mut writer = None;
        loop {
            let mut place = id.to_item_pointer();
            let mut failure = pg_sys::TM_FailureData::default();
            // SAFETY: the slot is one of this relation, whose access method has the function.
            let result = unsafe {
                let lock = self.relation.access_method().tuple_lock;
                let lock = lock.expect("a table's access method locks rows");
                let (relation, slot) = (self.relation.as_ptr(), self.slot.as_ptr());
                let snapshot = pg_sys::GetActiveSnapshot();
                let command = pg_sys::GetCurrentCommandId(true);
                pg_sys::ffi::pg_guard_ffi_boundary(|| {
                    lock(
                        relation,
                        &raw mut place,
                        snapshot,
                        slot,
                        command,
                        mode,
                        pg_sys::LockWaitPolicy::LockWaitSkip,
                        0,
                        &raw mut failure,
                    )
                })
            };
            match result {
                // The version at the next place must have been written by the transaction that
                // changed the previous one.
                TM_Ok if writer.is_none_or(|writer| self.transactions().0 == writer) => {
                    return Lock::Held;
                }
                TM_Updated if !is_elsewhere(failure.ctid) => {
                    writer = Some(Xid(failure.xmax.into_inner()));
                    id = failure.ctid.into();
                }
                TM_WouldBlock => return Lock::NotAvailable,
                _ => return Lock::Gone,
            }
        }
    }

    /// Fetches the newest version of a row that this transaction has written. Returns false if
    /// another one has written it. `id` is as for [`lock_newest`](Self::lock_newest).
    pub(crate) fn fetch_our_newest(&mut self, id: Tid) -> bool {
        let mut place = id.to_item_pointer();
        // SAFETY: the scan and the snapshot end here; the access method of a table has the functions.
        unsafe {
            let method = self.relation.access_method();
            let begin = method.scan_begin.expect("a table's access method scans");
            let end = method.scan_end.expect("a table's access method scans");
            let fetch = method
                .tuple_fetch_row_version
                .expect("a table's access method fetches rows");
            let (relation, slot) = (self.relation.as_ptr(), self.slot.as_ptr());
            let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
            let flags = pg_sys::ScanOptions::SO_TYPE_TIDSCAN;
            let scan = pg_sys::ffi::pg_guard_ffi_boundary(|| {
                begin(
                    relation,
                    snapshot,
                    0,
                    ptr::null_mut(),
                    ptr::null_mut(),
                    flags,
                )
            });
            pg_sys::table_tuple_get_latest_tid(scan, &raw mut place);
            let found = pg_sys::ffi::pg_guard_ffi_boundary(|| {
                end(scan);
                fetch(relation, &raw mut place, snapshot, slot)
            });
            pg_sys::UnregisterSnapshot(snapshot);
            found && pg_sys::TransactionIdIsCurrentTransactionId(self.transactions().0.0.into())
        }
    }

    /// Returns the version in the slot, with the value of a column.
    pub(crate) fn version<'v>(&'v self, column: &'v Column) -> Version<'v> {
        let (writer, locker) = self.transactions();
        Version {
            // SAFETY: the slot is valid.
            id: unsafe { self.slot.as_ref() }.tts_tid.into(),
            writer,
            is_untouched: locker == Xid(0),
            value: self.stored(column),
        }
    }

    /// Returns the transaction that wrote the version in the slot, and the one that has locked or
    /// changed it, or 0.
    fn transactions(&self) -> (Xid, Xid) {
        let slot = self.slot.as_ptr();
        let mut is_null = false;
        // SAFETY: the slot holds a row of a table, which has both.
        unsafe {
            let get = (*(*slot).tts_ops).getsysattr;
            let get = get.expect("a table's rows have system columns");
            let (xmin, xmax) = pg_sys::ffi::pg_guard_ffi_boundary(|| {
                let mut get = |column| get(slot, column, &raw mut is_null);
                (
                    get(pg_sys::MinTransactionIdAttributeNumber),
                    get(pg_sys::MaxTransactionIdAttributeNumber),
                )
            });
            (xmin.into(), xmax.into())
        }
    }

    /// Returns the value of a column in the version in the slot, or `None` if it is null.
    pub(crate) fn stored<'v>(&'v self, column: &'v Column) -> Option<Stored<'v>> {
        let number = i32::from(column.number);
        let mut is_null = false;
        // SAFETY: the slot holds a row with that column.
        unsafe {
            let datum = pg_sys::slot_getattr(self.slot.as_ptr(), number, &raw mut is_null);
            Stored::new((datum, is_null), &column.value_type)
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if !thread::panicking() {
            // SAFETY: nothing refers to the slot any more.
            unsafe { pg_sys::ExecDropSingleTupleTableSlot(self.slot.as_ptr()) };
        }
    }
}

/// Tells whether the place of a row's next version means that it has moved to another partition.
fn is_elsewhere(id: pg_sys::ItemPointerData) -> bool {
    id.ip_posid == pg_sys::MovedPartitionsOffsetNumber as u16
}
