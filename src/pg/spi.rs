//! Queries through the server's programming interface, SPI, with what pgrx's wrapper lacks: cursors
//! that release their memory.
//!
//! A failing query raises an error of the server, which unwinds through here as a panic. The end of
//! the transaction then frees what SPI holds. Cursors see what the active snapshot shows;
//! statements that write see what is committed when they begin.

use std::cell::Cell;
use std::ffi::CString;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::thread::LocalKey;
use std::{slice, thread};

use pgrx::prelude::*;

use super::encoding::printable;
use super::guc::with_settings;
use super::memory::{ensure_reserve, out_of_memory};
use super::name::Name;
use super::row::{Tid, with_bytes_of};
use super::subtransaction::in_subtransaction;
use super::value_type::{Stored, ValueType};

/// A connection to SPI. What it makes does not outlive it.
pub(crate) struct Connection(());

impl Connection {
    /// Connects for queries that see what the calling query sees.
    pub(crate) fn read_only() -> Self {
        Self::new(0)
    }

    pub(super) fn new(options: u32) -> Self {
        // SAFETY: no pointers; cannot fail except for lack of memory, which raises an error.
        unsafe { pg_sys::SPI_connect_ext(options as i32) };
        Self(())
    }

    /// Parses a query, and plans it without knowing the arguments, so that the planner assumes a
    /// range of places to be narrow.
    pub(crate) fn prepare<const N: usize>(
        &self,
        query: &[&[u8]],
        mut types: [pg_sys::Oid; N],
    ) -> Plan<'_> {
        Plan {
            plan: prepare(&query.concat(), &mut types),
            connection: PhantomData,
        }
    }

    /// Runs a query that returns rows, which the process parses and plans only once.
    pub(crate) fn open_kept<const N: usize>(
        &self,
        query: &'static LocalKey<KeptQuery<N>>,
        arguments: [Argument; N],
    ) -> Cursor<'_> {
        open(query.with(KeptQuery::plan), arguments)
    }

    /// Calls `f`, which may call functions that look names up, with only the server's own schema in
    /// the search path.
    pub(crate) fn with_pinned_search_path<R>(&self, f: impl FnOnce() -> R) -> R {
        with_settings(&[(c"search_path", c"pg_catalog, pg_temp")], f)
    }

    /// Calls `f`, whose cursors see what is committed by now.
    pub(crate) fn with_latest_snapshot<R>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: the active snapshot is a copy, and is popped below; an error pops it as well.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
        let result = f();
        // SAFETY: pushed above, and whatever was pushed since has been popped.
        unsafe { pg_sys::PopActiveSnapshot() };
        result
    }

    /// Calls `f`, whose queries join by looking up rows one by one.
    pub(crate) fn with_nested_loops<R>(&self, f: impl FnOnce() -> R) -> R {
        with_settings(
            &[(c"enable_hashjoin", c"off"), (c"enable_mergejoin", c"off")],
            f,
        )
    }

    /// Calls `f`, and undoes what it did, including its locks, unless `keep` says to keep it.
    pub(crate) fn undo_unless<T>(&self, keep: impl FnOnce(&T) -> bool, f: impl FnOnce() -> T) -> T {
        in_subtransaction(keep, f).unwrap_or_else(|failure| failure.raise())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !thread::panicking() {
            // SAFETY: this connection is the innermost: those opened after it have ended.
            unsafe { pg_sys::SPI_finish() };
        }
    }
}

/// A parsed query.
pub(crate) struct Plan<'c> {
    plan: NonNull<pg_sys::_SPI_plan>,
    connection: PhantomData<&'c Connection>,
}

impl<'c> Plan<'c> {
    /// Runs a statement that writes, and returns how many rows it has processed.
    pub(crate) fn execute<const N: usize>(&self, arguments: [Argument; N]) -> u64 {
        let mut datums = arguments.map(|argument| argument.0);
        // SAFETY: the caller gives arguments of the types that the plan was made with.
        unsafe {
            let code = pg_sys::SPI_execute_plan(
                self.plan.as_ptr(),
                datums.as_mut_ptr(),
                ptr::null(),
                false,
                0,
            );
            if code < 0 {
                fail("SPI_execute_plan");
            }
            pg_sys::SPI_processed
        }
    }

    /// Runs a query that returns rows. The plan is not needed after this.
    pub(crate) fn open<const N: usize>(&self, arguments: [Argument; N]) -> Cursor<'c> {
        open(self.plan, arguments)
    }
}

/// The text of a query, and the plan of it that the process keeps.
pub(crate) struct KeptQuery<const N: usize> {
    text: &'static str,
    types: [pg_sys::Oid; N],
    plan: Cell<Option<NonNull<pg_sys::_SPI_plan>>>,
}

impl<const N: usize> KeptQuery<N> {
    pub(crate) const fn new(text: &'static str, types: [pg_sys::Oid; N]) -> Self {
        Self {
            text,
            types,
            plan: Cell::new(None),
        }
    }

    fn plan(&self) -> NonNull<pg_sys::_SPI_plan> {
        if let Some(plan) = self.plan.get() {
            return plan;
        }
        let plan = prepare(self.text.as_bytes(), &mut self.types.clone());
        // SAFETY: the plan was just made. From now on it lasts as long as the process.
        if unsafe { pg_sys::SPI_keepplan(plan.as_ptr()) } != 0 {
            fail("SPI_keepplan");
        }
        self.plan.set(Some(plan));
        plan
    }
}

fn prepare(query: &[u8], types: &mut [pg_sys::Oid]) -> NonNull<pg_sys::_SPI_plan> {
    let query = CString::new(query).expect("no name holds a zero byte");
    let options = pg_sys::CURSOR_OPT_GENERIC_PLAN;
    // SAFETY: the query is a C string, and `types` has the number of elements that is given.
    let plan = unsafe {
        pg_sys::SPI_prepare_cursor(
            query.as_ptr(),
            types.len() as i32,
            types.as_mut_ptr(),
            options as i32,
        )
    };
    NonNull::new(plan).unwrap_or_else(|| fail("SPI_prepare_cursor"))
}

fn open<'c, const N: usize>(
    plan: NonNull<pg_sys::_SPI_plan>,
    arguments: [Argument; N],
) -> Cursor<'c> {
    let mut datums = arguments.map(|argument| argument.0);
    // SAFETY: the caller gives arguments of the types that the plan was made with; the server copies them.
    let portal = unsafe {
        pg_sys::SPI_cursor_open(
            ptr::null(),
            plan.as_ptr(),
            datums.as_mut_ptr(),
            ptr::null(),
            true,
        )
    };
    Cursor {
        portal: NonNull::new(portal).unwrap_or_else(|| fail("SPI_cursor_open")),
        // A compromise between calls and memory: rows of tables are at most 8 kB, since longer values stay
        // out of line.
        rows_at_once: 1000,
        connection: PhantomData,
    }
}

impl Drop for Plan<'_> {
    fn drop(&mut self) {
        if !thread::panicking() {
            // SAFETY: a running query has a copy of its own.
            unsafe { pg_sys::SPI_freeplan(self.plan.as_ptr()) };
        }
    }
}

/// A running query.
pub(crate) struct Cursor<'c> {
    portal: NonNull<pg_sys::PortalData>,
    rows_at_once: i64,
    connection: PhantomData<&'c Connection>,
}

impl Cursor<'_> {
    /// Fetches fewer rows at a time.
    pub(crate) fn fetch_at_most(&mut self, rows: usize) {
        self.rows_at_once = self.rows_at_once.min(rows as i64);
    }

    /// Fetches all rows, and returns what `f` makes of each.
    pub(crate) fn collect<T>(mut self, f: impl Fn(&Row<'_>) -> T) -> Vec<T> {
        let mut collected = Vec::new();
        while let Some(rows) = self.fetch() {
            if collected.try_reserve(rows.count).is_err() {
                out_of_memory();
            }
            collected.extend(rows.iter().map(|row| f(&row)));
        }
        collected
    }

    /// Returns the next rows, or `None` after the last one.
    pub(crate) fn fetch(&mut self) -> Option<Rows> {
        ensure_reserve();
        // SAFETY: the portal is open until `self` is dropped; SPI leaves the table of rows to us.
        let rows = unsafe {
            pg_sys::SPI_cursor_fetch(self.portal.as_ptr(), true, self.rows_at_once);
            Rows {
                table: NonNull::new(pg_sys::SPI_tuptable)
                    .unwrap_or_else(|| fail("SPI_cursor_fetch")),
                count: pg_sys::SPI_processed as usize,
            }
        };
        (rows.count > 0).then_some(rows)
    }
}

impl Drop for Cursor<'_> {
    fn drop(&mut self) {
        if !thread::panicking() {
            // SAFETY: the portal is open.
            unsafe { pg_sys::SPI_cursor_close(self.portal.as_ptr()) };
        }
    }
}

/// Rows that a query returned.
pub(crate) struct Rows {
    table: NonNull<pg_sys::SPITupleTable>,
    count: usize,
}

impl Rows {
    pub(crate) fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        // SAFETY: the table holds that many rows until `self` is dropped.
        let (tuples, shape) = unsafe {
            let table = self.table.as_ref();
            (slice::from_raw_parts(table.vals, self.count), table.tupdesc)
        };
        tuples.iter().map(move |&tuple| {
            // A row may take long: its values may be large, and stored out of line.
            pgrx::check_for_interrupts!();
            Row {
                tuple,
                shape,
                rows: PhantomData,
            }
        })
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        if !thread::panicking() {
            // SAFETY: nothing refers to the rows any more.
            unsafe { pg_sys::SPI_freetuptable(self.table.as_ptr()) };
        }
    }
}

pub(crate) struct Row<'r> {
    tuple: pg_sys::HeapTuple,
    shape: pg_sys::TupleDesc,
    rows: PhantomData<&'r Rows>,
}

/// A value that is copied out of its row.
pub(crate) trait Scalar: FromDatum + Copy {}
impl Scalar for bool {}
impl Scalar for f64 {}
impl Scalar for i32 {}
impl Scalar for i64 {}
impl Scalar for pg_sys::Oid {}
impl Scalar for Name {}

impl Row<'_> {
    /// Returns the value of a column, counted from 1. It must be of type `T` and not null.
    pub(crate) fn get<T: Scalar>(&self, column: i32) -> T {
        self.find(column).expect("the column is NOT NULL")
    }

    /// Returns the value of a column, or `None` if it is null. It must be of type `T`.
    pub(crate) fn find<T: Scalar>(&self, column: i32) -> Option<T> {
        let (datum, is_null) = self.datum(column);
        // SAFETY: the queries of this crate read columns as what they are.
        unsafe { T::from_datum(datum, is_null) }
    }

    /// Returns a value that can hold tokens, or `None` if it is null.
    pub(crate) fn stored<'v>(
        &'v self,
        column: i32,
        value_type: &'v ValueType,
    ) -> Option<Stored<'v>> {
        // SAFETY: the queries of this crate read columns as what they are. The value is inside the row,
        // or refers to one that the cursor's snapshot holds.
        unsafe { Stored::new(self.datum(column), value_type) }
    }

    /// Returns a text value for a human, or an empty one if it is null.
    pub(crate) fn printable(&self, column: i32) -> String {
        self.with_bytes(column, |bytes| printable(bytes.unwrap_or_default()))
    }

    /// Calls `f` with the bytes of a text or bytea value.
    pub(crate) fn with_bytes<R>(&self, column: i32, f: impl FnOnce(Option<&[u8]>) -> R) -> R {
        let (datum, is_null) = self.datum(column);
        // SAFETY: the value is a varlena inside the row, or refers to one that the cursor's
        // snapshot holds.
        unsafe { with_bytes_of(datum, is_null, f) }
    }

    fn datum(&self, column: i32) -> (pg_sys::Datum, bool) {
        let mut is_null = false;
        // SAFETY: row and shape belong together; a missing column is null.
        let datum = unsafe { pg_sys::SPI_getbinval(self.tuple, self.shape, column, &mut is_null) };
        (datum, is_null)
    }
}

/// An argument of a query, in memory that lasts as long as the connection.
pub(crate) struct Argument(pg_sys::Datum);

impl Argument {
    pub(crate) fn bool(value: bool) -> Self {
        Self(value.into())
    }

    pub(crate) fn i32(value: i32) -> Self {
        Self(value.into())
    }

    pub(crate) fn oid(value: pg_sys::Oid) -> Self {
        Self(value.into())
    }

    pub(crate) fn text(bytes: &[u8]) -> Self {
        // SAFETY: copies as many bytes as there are.
        let text =
            unsafe { pg_sys::cstring_to_text_with_len(bytes.as_ptr().cast(), bytes.len() as i32) };
        Self(text.into())
    }

    pub(crate) fn tid(tid: Tid) -> Self {
        // SAFETY: palloc returns as much memory as it is asked for, or raises an error.
        unsafe {
            let copy = pg_sys::palloc(size_of::<pg_sys::ItemPointerData>())
                .cast::<pg_sys::ItemPointerData>();
            copy.write(tid.to_item_pointer());
            Self(copy.into())
        }
    }
}

pub(super) fn fail(function: &str) -> ! {
    // SAFETY: a global that the failing call has set.
    let code = unsafe { pg_sys::SPI_result };
    panic!("{function} failed with code {code}");
}
