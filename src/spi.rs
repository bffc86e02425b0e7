//! Queries through the server's programming interface, SPI, with what pgrx's wrapper of it lacks:
//! cursors that give their memory back, commits, and subtransactions.
//!
//! A failing query raises an error of the server, which unwinds through here as a panic; the
//! transaction's end then frees what SPI holds.

use std::ffi::{CStr, CString};
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::panic::AssertUnwindSafe;
use std::ptr::{self, NonNull};
use std::{slice, thread};

use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;

use crate::catalog;
use crate::error::Error;
use crate::text::Value;

/// A row's place in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tid {
    pub(crate) block: u32,
    /// Counted from 1. That of a range's end may be 0.
    pub(crate) line: u16,
}

impl Tid {
    /// Returns what precedes all rows of a block.
    pub(crate) fn start_of(block: u32) -> Self {
        Self { block, line: 0 }
    }

    /// Returns the next place that a row of the same block can have.
    pub(crate) fn next(self) -> Self {
        Self {
            line: self.line + 1, // at most 291, or 2,000 with blocks of 32 kB
            ..self
        }
    }

    /// Returns the range of this place alone.
    pub(crate) fn alone(self) -> Range<Self> {
        self..self.next()
    }

    fn to_item_pointer(self) -> pg_sys::ItemPointerData {
        pg_sys::ItemPointerData {
            ip_blkid: pg_sys::BlockIdData {
                bi_hi: (self.block >> 16) as u16,
                bi_lo: self.block as u16,
            },
            ip_posid: self.line,
        }
    }
}

impl fmt::Display for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({},{})", self.block, self.line)
    }
}

impl FromDatum for Tid {
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _: pg_sys::Oid,
    ) -> Option<Self> {
        if is_null {
            return None;
        }
        // SAFETY: the caller's datum refers to a tid.
        let tid = unsafe { *datum.cast_mut_ptr::<pg_sys::ItemPointerData>() };
        Some(Self {
            block: u32::from(tid.ip_blkid.bi_hi) << 16 | u32::from(tid.ip_blkid.bi_lo),
            line: tid.ip_posid,
        })
    }
}

/// A transaction's number.
pub(crate) type Xid = pg_sys::TransactionId;

/// A connection to SPI. What it makes lives no longer than it does.
pub(crate) struct Connection {
    read_only: bool,
}

impl Connection {
    /// Connects for queries that see what the calling query sees.
    pub(crate) fn read_only() -> Self {
        connect(0);
        Self { read_only: true }
    }

    /// Parses a query, to be planned without a look at the arguments: of a range of places it is
    /// then taken for granted that it is small.
    pub(crate) fn prepare<const N: usize>(
        &self,
        query: &[&[u8]],
        mut types: [pg_sys::Oid; N],
    ) -> Plan<'_> {
        let query = CString::new(query.concat()).expect("no name holds a zero byte");
        let options = pg_sys::CURSOR_OPT_GENERIC_PLAN;
        // SAFETY: the query is a C string, and `types` has as many elements as it is said to.
        let plan = unsafe {
            pg_sys::SPI_prepare_cursor(query.as_ptr(), N as i32, types.as_mut_ptr(), options as i32)
        };
        Plan {
            plan: NonNull::new(plan).unwrap_or_else(|| fail("SPI_prepare_cursor")),
            read_only: self.read_only,
            connection: PhantomData,
        }
    }
}

impl Connection {
    /// Calls `f`, which may call functions that look names up, with no schema but the server's own
    /// in the search path.
    pub(crate) fn with_safe_path<R>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: no pointers. If `f` raises an error, the end of the transaction puts the settings
        // back.
        let settings = unsafe { pg_sys::NewGUCNestLevel() };
        set_config(c"search_path", c"pg_catalog, pg_temp", Until::Level);
        let result = f();
        // SAFETY: the level begun above.
        unsafe { pg_sys::AtEOXact_GUC(true, settings) };
        result
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !thread::panicking() {
            // SAFETY: this connection is the innermost: others ended before, as they were opened
            // after.
            unsafe { pg_sys::SPI_finish() };
        }
    }
}

/// A transaction of a procedure, READ COMMITTED whatever the default is.
pub(crate) struct Transaction {
    connection: Connection,
}

impl Deref for Transaction {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl Transaction {
    /// Ends the transaction that the procedure was called in.
    pub(crate) fn end_callers() {
        Self::connect().commit();
    }

    /// Calls `f` in a transaction, and commits unless it returns an error. `f` cannot leave anything
    /// open that a commit would pull away.
    pub(crate) fn run<T>(f: impl FnOnce(&Self) -> Result<T, Error>) -> Result<T, Error> {
        // The last commit has left a transaction behind that has not done anything yet.
        set_config(c"transaction_isolation", c"read committed", Until::Commit);
        // Without it, each batch would read the whole table.
        set_config(c"enable_tidscan", c"on", Until::Commit);
        let transaction = Self::connect();
        let result = f(&transaction)?;
        transaction.commit();
        Ok(result)
    }

    fn connect() -> Self {
        connect(pg_sys::SPI_OPT_NONATOMIC);
        Self {
            connection: Connection { read_only: false },
        }
    }

    /// Commits. The server begins the next transaction at once.
    fn commit(self) {
        // SAFETY: connected, and not inside of a subtransaction of ours.
        unsafe { pg_sys::SPI_commit() };
    }

    /// Returns the oldest transaction that is running now.
    pub(crate) fn oldest_running(&self) -> Xid {
        // SAFETY: the snapshot is valid at least until another one is taken.
        unsafe { (*pg_sys::GetTransactionSnapshot()).xmin }
    }

    /// Returns the number of the transaction, or of the subtransaction, if it has written.
    pub(crate) fn xid(&self) -> Option<Xid> {
        // SAFETY: no arguments, no side effects.
        let xid = unsafe { pg_sys::GetCurrentTransactionIdIfAny() };
        (xid != pg_sys::InvalidTransactionId).then_some(xid)
    }

    /// Calls `f`, which writes to rows. If it meets one that it cannot have, undoes what it did and
    /// returns `None`: one that is locked, unless there is patience to wait for it, or one that has
    /// moved to another partition.
    pub(crate) fn attempt<T>(&self, patience: Patience, f: impl FnOnce() -> T) -> Option<T> {
        // SAFETY: these globals are always valid to read; they are put back below.
        let (context, owner) =
            unsafe { (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner) };
        // SAFETY: the subtransaction ends below, whatever happens in between.
        let settings = unsafe {
            pg_sys::BeginInternalSubTransaction(ptr::null());
            pg_sys::MemoryContextSwitchTo(context);
            pg_sys::NewGUCNestLevel()
        };
        if let Patience::Moment = patience {
            // Shorter than deadlock_timeout by far: were there a deadlock, nobody else would notice.
            set_config(c"lock_timeout", c"10ms", Until::Level);
        }
        let locked = |error| match patience {
            Patience::Moment => Attempt::NotToBeHad,
            Patience::Long => Attempt::failed(error),
        };
        let attempt = PgTryBuilder::new(AssertUnwindSafe(|| Attempt::Done(f())))
            .catch_when(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, locked)
            .catch_when(PgSqlErrorCode::ERRCODE_T_R_DEADLOCK_DETECTED, locked)
            .catch_when(PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE, |_| {
                Attempt::NotToBeHad
            })
            .catch_others(Attempt::failed)
            .execute();
        // SAFETY: as above.
        unsafe {
            match attempt {
                Attempt::Done(_) => {
                    pg_sys::AtEOXact_GUC(false, settings);
                    pg_sys::ReleaseCurrentSubTransaction();
                }
                _ => pg_sys::RollbackAndReleaseCurrentSubTransaction(),
            }
            pg_sys::MemoryContextSwitchTo(context);
            pg_sys::CurrentResourceOwner = owner;
        }
        match attempt {
            Attempt::Done(result) => Some(result),
            Attempt::NotToBeHad => None,
            // SAFETY: the copy is in memory of the caller's.
            Attempt::Failed(Failure::OfServer(error)) => unsafe { pg_sys::ReThrowError(error) },
            Attempt::Failed(Failure::Ours(error)) => error.rethrow(),
        }
    }
}

/// How long to wait for a row that somebody else has locked.
#[derive(Clone, Copy)]
pub(crate) enum Patience {
    Moment,
    /// As long as `lock_timeout` allows.
    Long,
}

enum Attempt<T> {
    Done(T),
    NotToBeHad,
    Failed(Failure),
}

pub(crate) enum Failure {
    /// All that the server says of an error, which it forgets once that is caught.
    OfServer(*mut pg_sys::ErrorData),
    Ours(Box<CaughtError>),
}

impl<T> Attempt<T> {
    fn failed(error: CaughtError) -> Self {
        Self::Failed(match error {
            // SAFETY: the error is the one that is being handled.
            CaughtError::PostgresError(_) => Failure::OfServer(unsafe { pg_sys::CopyErrorData() }),
            error => Failure::Ours(Box::new(error)),
        })
    }
}

fn connect(options: u32) {
    // SAFETY: no pointers; cannot fail, but for lack of memory, which raises an error.
    unsafe { pg_sys::SPI_connect_ext(options as i32) };
}

enum Until {
    Commit,
    /// The end of the innermost nest level of settings.
    Level,
}

/// Changes a setting that every role may change.
fn set_config(name: &CStr, value: &CStr, until: Until) {
    use pg_sys::{GucAction, GucContext, GucSource};
    let action = match until {
        Until::Commit => GucAction::GUC_ACTION_LOCAL,
        Until::Level => GucAction::GUC_ACTION_SAVE,
    };
    // SAFETY: name and value are C strings, which the server copies.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            GucContext::PGC_USERSET,
            GucSource::PGC_S_SESSION,
            action,
            true,
            0,
            false,
        );
    }
}

/// A parsed query.
pub(crate) struct Plan<'c> {
    plan: NonNull<pg_sys::_SPI_plan>,
    read_only: bool,
    connection: PhantomData<&'c Connection>,
}

impl<'c> Plan<'c> {
    /// Runs a query that returns no rows, and returns how many it was about.
    pub(crate) fn execute<const N: usize>(&self, arguments: [Argument; N]) -> u64 {
        let mut datums = arguments.map(|argument| argument.0);
        // SAFETY: the caller gives arguments of the types that the plan was made with.
        unsafe {
            let code = pg_sys::SPI_execute_plan(
                self.plan.as_ptr(),
                datums.as_mut_ptr(),
                ptr::null(),
                self.read_only,
                0,
            );
            if code < 0 {
                fail("SPI_execute_plan");
            }
            pg_sys::SPI_processed
        }
    }

    /// Runs a query that returns rows.
    pub(crate) fn open<const N: usize>(&self, arguments: [Argument; N]) -> Cursor<'c> {
        let mut datums = arguments.map(|argument| argument.0);
        // SAFETY: the caller gives arguments of the types that the plan was made with; the server
        // copies them.
        let portal = unsafe {
            pg_sys::SPI_cursor_open(
                ptr::null(),
                self.plan.as_ptr(),
                datums.as_mut_ptr(),
                ptr::null(),
                self.read_only,
            )
        };
        Cursor {
            portal: NonNull::new(portal).unwrap_or_else(|| fail("SPI_cursor_open")),
            // A compromise between calls and memory: rows of tables hold 8 kB at most, since longer
            // values stay out of line.
            rows_at_once: 1000,
            connection: PhantomData,
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
    /// Fetches few rows at once: those of a view, or of another server, hold any amount.
    pub(crate) fn expect_large_rows(&mut self) {
        self.rows_at_once = 10;
    }

    /// Returns the next rows, or `None` after the last one.
    pub(crate) fn fetch(&mut self) -> Option<Rows> {
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
            // A row may take a while: its values may be large, and out of line.
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
impl Scalar for pg_sys::Oid {}
impl Scalar for Tid {}
impl Scalar for Xid {}

impl Row<'_> {
    /// Returns the value of a column, counted from 1, which must be of that type and not null.
    pub(crate) fn get<T: Scalar>(&self, column: i32) -> T {
        let (datum, is_null) = self.datum(column);
        // SAFETY: the queries of this crate read columns as what they are.
        unsafe { T::from_datum(datum, is_null) }.expect("the column is NOT NULL")
    }

    /// Calls `f` with the bytes of a value of text or bytea.
    pub(crate) fn with_bytes<R>(&self, column: i32, f: impl FnOnce(Option<&[u8]>) -> R) -> R {
        let (datum, is_null) = self.datum(column);
        if is_null {
            return f(None);
        }
        // SAFETY: the value is a varlena inside the row, or refers to one that the cursor's
        // snapshot holds; if it was copied to be read, the copy is freed once `f` has seen it.
        unsafe {
            let stored: *mut pg_sys::varlena = datum.cast_mut_ptr();
            let read = pg_sys::pg_detoast_datum_packed(stored);
            let result = f(Some(pgrx::varlena_to_byte_slice(read)));
            if read != stored {
                pg_sys::pfree(read.cast());
            }
            result
        }
    }

    fn datum(&self, column: i32) -> (pg_sys::Datum, bool) {
        let mut is_null = false;
        // SAFETY: row and shape belong together; a column that is not there is null.
        let datum = unsafe { pg_sys::SPI_getbinval(self.tuple, self.shape, column, &mut is_null) };
        (datum, is_null)
    }
}

/// New values for rows, which a query can read as the table `fernet_new_values`: the place of a row,
/// its writer, and the value.
pub(crate) struct NewValues<'c> {
    rows: *mut pg_sys::Tuplestorestate,
    shape: pg_sys::TupleDesc,
    count: usize,
    connection: PhantomData<&'c Connection>,
}

impl<'c> NewValues<'c> {
    const NAME: &'static CStr = c"fernet_new_values";

    /// `value_type` is text or bytea.
    pub(crate) fn new(_: &'c Connection, value_type: pg_sys::Oid) -> Self {
        let columns = [
            (c"id", pg_sys::TIDOID),
            (c"writer", pg_sys::XIDOID),
            (c"value", value_type),
        ];
        // SAFETY: as many columns are described as there are. What is made here is in memory of the
        // connection; what exceeds work_mem is in a file that `drop` closes.
        unsafe {
            let shape = pg_sys::CreateTemplateTupleDesc(columns.len() as i32);
            for ((name, oid), number) in columns.into_iter().zip(1..) {
                pg_sys::TupleDescInitEntry(shape, number, name.as_ptr(), oid, -1, 0);
            }
            Self {
                rows: pg_sys::tuplestore_begin_heap(false, false, pg_sys::work_mem),
                shape,
                count: 0,
                connection: PhantomData,
            }
        }
    }

    pub(crate) fn push(&mut self, id: Tid, writer: Xid, value: &Value<'_>) {
        let id = id.to_item_pointer();
        let mut datums = [
            ptr::from_ref(&id).into(),
            writer.into_inner().into(),
            value.datum(),
        ];
        // SAFETY: the values are those of the three columns; they are copied.
        unsafe {
            pg_sys::tuplestore_putvalues(
                self.rows,
                self.shape,
                datums.as_mut_ptr(),
                [false; 3].as_mut_ptr(),
            );
        }
        self.count += 1;
    }

    /// Shows the values to queries until the result is dropped.
    pub(crate) fn show(&self) -> Shown<'_> {
        let mut relation = pg_sys::EphemeralNamedRelationData {
            md: pg_sys::EphemeralNamedRelationMetadataData {
                name: Self::NAME.as_ptr().cast_mut(),
                reliddesc: pg_sys::InvalidOid,
                tupdesc: self.shape,
                enrtype: pg_sys::EphemeralNameRelationType::ENR_NAMED_TUPLESTORE,
                enrtuples: self.count as f64,
            },
            reldata: self.rows.cast(),
        };
        // SAFETY: the description is moved into memory of the connection, and used no longer than
        // the rows are there.
        unsafe {
            let memory = pg_sys::palloc(size_of_val(&relation)).cast();
            ptr::copy_nonoverlapping(&raw mut relation, memory, 1);
            if pg_sys::SPI_register_relation(memory) < 0 {
                fail("SPI_register_relation");
            }
        }
        Shown(PhantomData)
    }
}

impl Drop for NewValues<'_> {
    fn drop(&mut self) {
        if !thread::panicking() {
            // SAFETY: no query reads the rows any more.
            unsafe { pg_sys::tuplestore_end(self.rows) };
        }
    }
}

/// [`NewValues`] that queries see.
pub(crate) struct Shown<'v>(PhantomData<&'v ()>);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if !thread::panicking() {
            // SAFETY: registered under that name.
            unsafe { pg_sys::SPI_unregister_relation(NewValues::NAME.as_ptr()) };
        }
    }
}

/// An argument of a query, in memory that lasts as long as the connection.
pub(crate) struct Argument(pg_sys::Datum);

impl Argument {
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

    pub(crate) fn xid(xid: Xid) -> Self {
        Self(xid.into_inner().into())
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

fn fail(function: &str) -> ! {
    // SAFETY: a global that the failing call has set.
    let code = unsafe { pg_sys::SPI_result };
    panic!("{function} failed with code {code}");
}

/// What becomes of the work of a subtransaction, and of its locks.
pub(crate) enum AtEnd {
    #[allow(dead_code, reason = "for Transaction::attempt")]
    Keep,
    Undo,
}

/// Calls `f` in a subtransaction. If `f` raises an error, its work is undone and the error returned:
/// the caller must raise it again unless it knows better.
pub(crate) fn in_subtransaction<T>(at_end: AtEnd, f: impl FnOnce() -> T) -> Result<T, Failure> {
    // SAFETY: these globals are always valid to read; they are put back below.
    let (context, owner) = unsafe { (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner) };
    // SAFETY: the subtransaction ends below, whatever happens in between.
    unsafe {
        pg_sys::BeginInternalSubTransaction(ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
    }
    let result = PgTryBuilder::new(AssertUnwindSafe(|| Ok(f())))
        .catch_others(|error| {
            // SAFETY: the current context may be one that ends with the subtransaction.
            unsafe { pg_sys::MemoryContextSwitchTo(context) };
            Err(Failure::new(error))
        })
        .execute();
    // SAFETY: as above.
    unsafe {
        match (&result, at_end) {
            (Ok(_), AtEnd::Keep) => pg_sys::ReleaseCurrentSubTransaction(),
            _ => pg_sys::RollbackAndReleaseCurrentSubTransaction(),
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
    }
    result
}

impl Failure {
    fn new(error: CaughtError) -> Self {
        match error {
            // SAFETY: the error is the one that is being handled.
            CaughtError::PostgresError(_) => Self::OfServer(unsafe { pg_sys::CopyErrorData() }),
            error => Self::Ours(Box::new(error)),
        }
    }

    /// Tells whether the statement has to end, as after a cancellation or for lack of memory, whatever
    /// was tried.
    pub(crate) fn ends_the_statement(&self) -> bool {
        let class = |code| code & 0xfff; // of a SQLSTATE, its first two characters
        match self {
            Self::OfServer(error) => {
                // SAFETY: the copy is in memory of the caller's.
                let code = unsafe { (**error).sqlerrcode };
                [
                    PgSqlErrorCode::ERRCODE_TRANSACTION_ROLLBACK,
                    PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES,
                    PgSqlErrorCode::ERRCODE_OPERATOR_INTERVENTION,
                ]
                .iter()
                .any(|&ending| class(ending as i32) == class(code))
            }
            Self::Ours(_) => true,
        }
    }

    /// Returns the message of the error, for another message.
    pub(crate) fn message(&self) -> String {
        match self {
            // SAFETY: as above; an error of the server has a message, which is a C string.
            Self::OfServer(error) => unsafe {
                catalog::shown(CStr::from_ptr((**error).message).to_bytes())
            },
            Self::Ours(error) => match &**error {
                CaughtError::PostgresError(report)
                | CaughtError::ErrorReport(report)
                | CaughtError::RustPanic {
                    ereport: report, ..
                } => report.message().into(),
            },
        }
    }

    /// Raises the error again, whole.
    pub(crate) fn rethrow(self) -> ! {
        match self {
            // SAFETY: as above.
            Self::OfServer(error) => unsafe { pg_sys::ReThrowError(error) },
            Self::Ours(error) => error.rethrow(),
        }
    }
}
