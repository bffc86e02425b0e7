//! Queries through the server's programming interface, SPI, with what pgrx's wrapper of it lacks:
//! cursors that give their memory back, commits, and subtransactions.
//!
//! A failing query raises an error of the server, which unwinds through here as a panic; the
//! transaction's end then frees what SPI holds. Cursors see what the active snapshot shows, and
//! statements that write see what is committed when they begin.

use std::ffi::{CStr, CString, c_void};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::panic::AssertUnwindSafe;
use std::ptr::{self, NonNull};
use std::time::Duration;
use std::{slice, thread};

use pgrx::pg_sys::panic::{CaughtError, ErrorReportWithLevel};
use pgrx::prelude::*;

use super::Error;
use super::encoding::printable;
use super::server;
use super::value::Value;

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

    pub(crate) fn to_item_pointer(self) -> pg_sys::ItemPointerData {
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
        Some(tid.into())
    }
}

impl From<pg_sys::ItemPointerData> for Tid {
    fn from(tid: pg_sys::ItemPointerData) -> Self {
        Self {
            block: u32::from(tid.ip_blkid.bi_hi) << 16 | u32::from(tid.ip_blkid.bi_lo),
            line: tid.ip_posid,
        }
    }
}

/// The number of the transaction that wrote a row version, as it is stored there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Xid(pub(crate) u32);

impl FromDatum for Xid {
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _: pg_sys::Oid,
    ) -> Option<Self> {
        // Of a value of four bytes the server extends the sign, as if it were an integer: what is
        // past 2^31 has its upper half full of ones. pgrx's own conversion takes that for no number.
        (!is_null).then_some(Self(datum.value() as u32))
    }
}

/// A connection to SPI. What it makes lives no longer than it does.
pub(crate) struct Connection(());

impl Connection {
    /// Connects for queries that see what the calling query sees.
    pub(crate) fn read_only() -> Self {
        Self::new(0)
    }

    fn new(options: u32) -> Self {
        // SAFETY: no pointers; cannot fail, but for lack of memory, which raises an error.
        unsafe { pg_sys::SPI_connect_ext(options as i32) };
        Self(())
    }

    /// Parses a query, and plans it without a look at the arguments: the planner takes a range of
    /// places to be narrow.
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
            connection: PhantomData,
        }
    }

    /// Calls `f`, which may call functions that look names up, with no schema but the server's own
    /// in the search path.
    pub(crate) fn with_safe_path<R>(&self, f: impl FnOnce() -> R) -> R {
        with_settings(&[(c"search_path", c"pg_catalog, pg_temp")], f)
    }

    /// Calls `f`, whose queries join by looking up rows one by one.
    pub(crate) fn with_nested_loops<R>(&self, f: impl FnOnce() -> R) -> R {
        with_settings(
            &[(c"enable_hashjoin", c"off"), (c"enable_mergejoin", c"off")],
            f,
        )
    }

    /// Calls `f`, and undoes what it did, locks included, unless `keep` wants to keep it.
    pub(crate) fn undo_unless<T>(&self, keep: impl FnOnce(&T) -> bool, f: impl FnOnce() -> T) -> T {
        in_subtransaction(keep, f).unwrap_or_else(|failure| failure.raise())
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

/// A transaction of a procedure, READ COMMITTED whatever the default is, with one snapshot for all
/// that it reads.
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
    pub(crate) fn end_callers() -> Result<(), Error> {
        Self::connect().commit()
    }

    /// Calls `f` in a transaction, and commits unless it returns an error. `f` cannot leave anything
    /// open that a commit would pull away.
    pub(crate) fn run<T, E: From<Error>>(f: impl FnOnce(&Self) -> Result<T, E>) -> Result<T, E> {
        // The last commit has left a transaction behind that has not done anything yet.
        set_config(c"transaction_isolation", c"read committed", Until::Commit);
        // Rows are found by their place, one or a range, and not by reading the whole table.
        set_config(c"enable_tidscan", c"on", Until::Commit);
        let transaction = Self::connect();
        // SAFETY: the active snapshot is a copy, and is popped before the commit.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
        let result = f(&transaction)?;
        // SAFETY: pushed above, and whatever was pushed since has been popped.
        unsafe { pg_sys::PopActiveSnapshot() };
        transaction.commit()?;
        Ok(result)
    }

    fn connect() -> Self {
        Self {
            connection: Connection::new(pg_sys::SPI_OPT_NONATOMIC),
        }
    }

    /// Commits. The server begins the next transaction at once.
    ///
    /// # Errors
    /// If somebody cancels the wait for a synchronous standby, which to the server is no reason to
    /// end the statement.
    fn commit(self) -> Result<(), Error> {
        // SAFETY: connected, and not inside of a subtransaction of ours.
        if wait_was_cancelled(|| unsafe { pg_sys::SPI_commit() }) {
            return Err(Error::ReplicationCancelled);
        }
        Ok(())
    }

    /// Calls `f`, which writes to rows. If it meets one that somebody has locked, or that has moved
    /// to another partition, undoes what it did and returns `None`.
    pub(crate) fn attempt<T>(&self, f: impl FnOnce() -> T) -> Option<T> {
        // Shorter than deadlock_timeout by far: were there a deadlock, nobody else would notice.
        match in_subtransaction(|_| true, || with_lock_timeout(Duration::from_millis(10), f)) {
            Ok(result) => Some(result),
            Err(failure) if UNAVAILABLE.iter().any(|&code| failure.is(code)) => {
                server::end_if_timed_out();
                None
            }
            Err(failure) => failure.raise(),
        }
    }
}

/// What an UPDATE fails with that meets a row which it cannot have now.
const UNAVAILABLE: [PgSqlErrorCode; 3] = [
    PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
    PgSqlErrorCode::ERRCODE_T_R_DEADLOCK_DETECTED,
    PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
];

/// Another transaction, by the lock that it has on its own number.
pub(crate) struct VirtualXid(pg_sys::VirtualTransactionId);

impl VirtualXid {
    /// Parses it from what `pg_locks` shows. Returns `None` for a transaction that has ended, and is
    /// about to release its locks: it has no number any more, which is shown as 0.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (process, number) = text.split_once('/')?;
        let (process, number) = (process.parse().ok()?, number.parse().ok()?);
        if number == 0 {
            return None;
        }
        Some(Self(pg_sys::VirtualTransactionId {
            #[cfg(any(feature = "pg15", feature = "pg16"))]
            backendId: process,
            #[cfg(not(any(feature = "pg15", feature = "pg16")))]
            procNumber: process,
            localTransactionId: number,
        }))
    }

    /// Tells whether the transaction has ended.
    pub(crate) fn has_ended(&self) -> bool {
        // SAFETY: what is not, or no longer, the number of a transaction has ended.
        unsafe { pg_sys::VirtualXactLock(self.0, false) }
    }

    /// Waits until the transaction has ended, and tells whether it has. To be called between
    /// transactions: then this process has neither a lock nor a snapshot that somebody could be
    /// waiting for.
    pub(crate) fn wait(&self, time: Option<Duration>) -> bool {
        // A time of zero has no end.
        let time = time.map_or(Duration::ZERO, |time| time.max(Duration::from_millis(1)));
        // SAFETY: as above.
        let wait = || unsafe { pg_sys::VirtualXactLock(self.0, true) };
        match in_subtransaction(|_| false, || with_lock_timeout(time, wait)) {
            Ok(_) => true,
            Err(failure) if failure.is(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE) => {
                server::end_if_timed_out();
                false
            }
            Err(failure) => failure.raise(),
        }
    }
}

/// Calls `f` in a subtransaction, which is undone, locks included, unless `keep` wants to keep it.
///
/// # Errors
/// What `f` raised: the caller must raise it again unless it knows better.
pub(crate) fn in_subtransaction<T>(
    keep: impl FnOnce(&T) -> bool,
    f: impl FnOnce() -> T,
) -> Result<T, Failure> {
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
        if result.as_ref().is_ok_and(keep) {
            pg_sys::ReleaseCurrentSubTransaction();
        } else {
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
    }
    result
}

/// An error that was caught.
pub(crate) enum Failure {
    /// All that the server says of it, which is gone from its own stack once it is caught.
    OfServer(*mut pg_sys::ErrorData),
    Ours(Box<CaughtError>),
}

impl Failure {
    fn new(error: CaughtError) -> Self {
        match error {
            // SAFETY: the error is the one that is being handled.
            CaughtError::PostgresError(_) => Self::OfServer(unsafe { pg_sys::CopyErrorData() }),
            error => Self::Ours(Box::new(error)),
        }
    }

    fn is(&self, code: PgSqlErrorCode) -> bool {
        self.code() == code as i32
    }

    /// Tells whether the statement has to end, as after a cancellation or for lack of memory, whatever
    /// was tried.
    pub(crate) fn ends_the_statement(&self) -> bool {
        use PgSqlErrorCode::{
            ERRCODE_INSUFFICIENT_RESOURCES, ERRCODE_OPERATOR_INTERVENTION,
            ERRCODE_TRANSACTION_ROLLBACK,
        };
        let class = |code| code & 0xfff; // of a SQLSTATE, its first two characters
        match self {
            Self::OfServer(_) => [
                ERRCODE_TRANSACTION_ROLLBACK,
                ERRCODE_INSUFFICIENT_RESOURCES,
                ERRCODE_OPERATOR_INTERVENTION,
            ]
            .iter()
            .any(|&ending| class(ending as i32) == class(self.code())),
            Self::Ours(_) => true,
        }
    }

    fn code(&self) -> i32 {
        match self {
            // SAFETY: the copy is in memory of the caller's, which outlived the subtransaction.
            Self::OfServer(error) => unsafe { (**error).sqlerrcode },
            Self::Ours(error) => report_of(error).sql_error_code() as i32,
        }
    }

    /// Returns the message of the error, for another message.
    pub(crate) fn message(&self) -> String {
        match self {
            // SAFETY: as above; an error of the server has a message, which is a C string.
            Self::OfServer(error) => unsafe {
                printable(CStr::from_ptr((**error).message).to_bytes())
            },
            Self::Ours(error) => report_of(error).message().into(),
        }
    }

    /// Raises the error again, whole.
    #[allow(
        unreachable_code,
        reason = "to some versions of the server ReThrowError is a function that may return"
    )]
    pub(crate) fn raise(self) -> ! {
        match self {
            Self::OfServer(error) => {
                // SAFETY: as above.
                unsafe { pg_sys::ReThrowError(error) };
                unreachable!("the error was raised")
            }
            Self::Ours(error) => error.rethrow(),
        }
    }
}

fn report_of(error: &CaughtError) -> &ErrorReportWithLevel {
    match error {
        CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic {
            ereport: report, ..
        } => report,
    }
}

/// Calls `f` with another `lock_timeout`; zero is none.
fn with_lock_timeout<T>(time: Duration, f: impl FnOnce() -> T) -> T {
    let time = CString::new(time.as_millis().to_string()).expect("digits hold no zero byte");
    with_settings(&[(c"lock_timeout", &time)], f)
}

/// Calls `f` with other values of settings that every role may change.
fn with_settings<R>(settings: &[(&CStr, &CStr)], f: impl FnOnce() -> R) -> R {
    // SAFETY: no pointers. If `f` raises an error, the end of the transaction, or of a subtransaction,
    // puts the settings back.
    let level = unsafe { pg_sys::NewGUCNestLevel() };
    for &(name, value) in settings {
        set_config(name, value, Until::Level);
    }
    let result = f();
    // SAFETY: the level begun above.
    unsafe { pg_sys::AtEOXact_GUC(true, level) };
    result
}

/// Calls `f`, which commits, and tells whether its wait for a synchronous standby was cancelled. The
/// server only warns of that, and forgets that somebody wanted the statement to end.
fn wait_was_cancelled(f: impl FnOnce()) -> bool {
    /// The warning, before it is translated.
    const WARNING: &CStr = c"canceling wait for synchronous replication due to user request";

    /// Called with each message while the context is in place.
    #[pg_guard]
    unsafe extern "C-unwind" fn look_at(found: *mut c_void) {
        // SAFETY: called while a message is being made, whose copy is in memory that outlives this
        // call; `found` is the variable below.
        unsafe {
            let context = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let message = pg_sys::CopyErrorData();
            pg_sys::MemoryContextSwitchTo(context);
            let id = (*message).message_id;
            if !id.is_null() && CStr::from_ptr(id) == WARNING {
                *found.cast() = true;
            }
            pg_sys::FreeErrorData(message);
        }
    }

    /// Takes the context away again, also where `f` raises an error.
    struct Reset(*mut pg_sys::ErrorContextCallback);
    impl Drop for Reset {
        fn drop(&mut self) {
            // SAFETY: a global of this process, and what it was before.
            unsafe { pg_sys::error_context_stack = self.0 };
        }
    }

    let mut found = false;
    // SAFETY: a global of this process. The context lasts as long as it is in place.
    unsafe {
        let reset = Reset(pg_sys::error_context_stack);
        let mut context = pg_sys::ErrorContextCallback {
            previous: reset.0,
            callback: Some(look_at),
            arg: (&raw mut found).cast(),
        };
        pg_sys::error_context_stack = &raw mut context;
        f();
    }
    found
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
    connection: PhantomData<&'c Connection>,
}

impl<'c> Plan<'c> {
    /// Runs a statement that writes, and returns how many rows it was about.
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
        let mut datums = arguments.map(|argument| argument.0);
        // SAFETY: the caller gives arguments of the types that the plan was made with; the server
        // copies them.
        let portal = unsafe {
            pg_sys::SPI_cursor_open(
                ptr::null(),
                self.plan.as_ptr(),
                datums.as_mut_ptr(),
                ptr::null(),
                true,
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
    /// Fetches fewer rows at once.
    pub(crate) fn fetch_at_most(&mut self, rows: usize) {
        self.rows_at_once = self.rows_at_once.min(rows as i64);
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
impl Scalar for i32 {}
impl Scalar for i64 {}
impl Scalar for pg_sys::Oid {}
impl Scalar for Tid {}
impl Scalar for Xid {}

impl Row<'_> {
    /// Returns the value of a column, counted from 1, which must be of that type and not null.
    pub(crate) fn get<T: Scalar>(&self, column: i32) -> T {
        self.find(column).expect("the column is NOT NULL")
    }

    /// Returns the value of a column, which must be of that type, or `None` if it is null.
    pub(crate) fn find<T: Scalar>(&self, column: i32) -> Option<T> {
        let (datum, is_null) = self.datum(column);
        // SAFETY: the queries of this crate read columns as what they are.
        unsafe { T::from_datum(datum, is_null) }
    }

    /// Returns the columns of a query for versions of rows: the place, `xmin`, `xmax`, and a value of
    /// text or bytea. All at once: for each by itself it would take longer.
    pub(crate) fn version(&self) -> Version<'_> {
        let (mut datums, mut nulls) = ([pg_sys::Datum::null(); 4], [false; 4]);
        // SAFETY: row and shape belong together; the queries for versions have these columns.
        unsafe {
            assert_eq!((*self.shape).natts, 4);
            pg_sys::heap_deform_tuple(
                self.tuple,
                self.shape,
                datums.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
            let [id, xmin, xmax, value] = datums;
            Version {
                id: Tid::from_datum(id, nulls[0]).expect("every row has a place"),
                writer: Xid::from_datum(xmin, nulls[1]).expect("every row has a writer"),
                is_untouched: Xid::from_datum(xmax, nulls[2]) == Some(Xid(0)),
                value: (value, nulls[3]),
                rows: PhantomData,
            }
        }
    }

    /// Calls `f` with the bytes of a value of text or bytea.
    pub(crate) fn with_bytes<R>(&self, column: i32, f: impl FnOnce(Option<&[u8]>) -> R) -> R {
        let (datum, is_null) = self.datum(column);
        // SAFETY: the value is a varlena inside the row, or refers to one that the cursor's
        // snapshot holds.
        unsafe { with_bytes_of(datum, is_null, f) }
    }

    fn datum(&self, column: i32) -> (pg_sys::Datum, bool) {
        let mut is_null = false;
        // SAFETY: row and shape belong together; a column that is not there is null.
        let datum = unsafe { pg_sys::SPI_getbinval(self.tuple, self.shape, column, &mut is_null) };
        (datum, is_null)
    }
}

/// A version of a row: its place, who wrote it, and one value of it.
pub(crate) struct Version<'r> {
    pub(crate) id: Tid,
    pub(crate) writer: Xid,
    /// Whether nobody has locked or changed it yet, or has tried to.
    pub(crate) is_untouched: bool,
    value: (pg_sys::Datum, bool),
    rows: PhantomData<&'r Rows>,
}

impl Version<'_> {
    /// Calls `f` with the bytes of the value.
    pub(crate) fn with_bytes<R>(&self, f: impl FnOnce(Option<&[u8]>) -> R) -> R {
        // SAFETY: as for `Row::with_bytes`.
        unsafe { with_bytes_of(self.value.0, self.value.1, f) }
    }
}

/// Calls `f` with the bytes of a value of text or bytea, unless that is null.
///
/// # Safety
/// The datum must be such a value, or null.
pub(crate) unsafe fn with_bytes_of<R>(
    datum: pg_sys::Datum,
    is_null: bool,
    f: impl FnOnce(Option<&[u8]>) -> R,
) -> R {
    if is_null {
        return f(None);
    }
    // SAFETY: the caller says so. If the value was copied to be read, the copy is freed once `f` has
    // seen it.
    unsafe {
        let stored: *mut pg_sys::varlena = datum.cast_mut_ptr();
        // To be told that there is nothing to do would cost as much as half of a decryption.
        if pgrx::varatt_is_4b_u(stored)
            || pgrx::varatt_is_1b(stored) && !pgrx::varatt_is_1b_e(stored)
        {
            return f(Some(pgrx::varlena_to_byte_slice(stored)));
        }
        let read = pg_sys::pg_detoast_datum_packed(stored);
        let result = f(Some(pgrx::varlena_to_byte_slice(read)));
        if read != stored {
            pg_sys::pfree(read.cast());
        }
        result
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

    pub(crate) fn push(&mut self, id: Tid, writer: Xid, value: Value<'_>) {
        let id = id.to_item_pointer();
        let mut datums = [ptr::from_ref(&id).into(), writer.0.into(), value.datum()];
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

fn fail(function: &str) -> ! {
    // SAFETY: a global that the failing call has set.
    let code = unsafe { pg_sys::SPI_result };
    panic!("{function} failed with code {code}");
}
