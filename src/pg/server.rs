//! What the other modules ask of the server they run in.

use std::ffi::CStr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr;
use std::time::Duration;

use pgrx::PgList;
use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::unguarded;

/// Returns the id of this server process.
pub(crate) fn process_id() -> i32 {
    // SAFETY: set once after the fork, and read by a single thread.
    unsafe { pg_sys::MyProcPid }
}

/// Returns a number that another statement of the client does not share: the time it started. Each
/// FETCH of the client's, and each Execute message for a part of a portal's rows, is a statement.
pub(crate) fn statement() -> pg_sys::TimestampTz {
    unguarded::GetCurrentStatementStartTimestamp()
}

/// Waits until `fd` is readable, and tells whether it is; no longer than `time`. Ends the statement
/// with an error, or the session, if somebody wants it to end.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, time: Duration) -> bool {
    wait(pg_sys::WL_SOCKET_READABLE, fd.as_raw_fd(), time) & pg_sys::WL_SOCKET_READABLE != 0
}

/// Waits for that time, or less, and ends as [`wait_readable`] does.
pub(crate) fn sleep(time: Duration) {
    wait(0, pg_sys::PGINVALID_SOCKET, time);
}

/// Returns how many background workers the server can have at the most.
pub(crate) fn max_worker_processes() -> usize {
    // SAFETY: a global that is set when the server starts.
    unsafe { pg_sys::max_worker_processes }.unsigned_abs() as usize
}

/// Returns `lock_timeout`, if there is one.
pub(crate) fn lock_timeout() -> Option<Duration> {
    // SAFETY: a global that only this process changes.
    let milliseconds = unsafe { pg_sys::LockTimeout };
    (milliseconds > 0).then(|| Duration::from_millis(milliseconds as u64))
}

/// Ends the statement if `statement_timeout` has passed. Where that comes while a lock timeout does, the
/// server reports the lock timeout only, and forgets the other.
pub(crate) fn end_if_timed_out() {
    // SAFETY: a global that only this process changes; no arguments, no side effects.
    let (limit, now) = unsafe { (pg_sys::StatementTimeout, pg_sys::GetCurrentTimestamp()) };
    if limit > 0 && now - statement() >= i64::from(limit) * 1000 {
        ErrorReport::new(
            PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            "canceling statement due to statement timeout",
            "pg_fernet",
        )
        .report(PgLogLevel::ERROR);
    }
}

fn wait(event: u32, socket: pg_sys::pgsocket, time: Duration) -> u32 {
    let events = event | pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: the latch is this process's own; the socket is open, or none.
    let occurred = unsafe {
        let occurred = pg_sys::WaitLatchOrSocket(
            pg_sys::MyLatch,
            events as i32,
            socket,
            i64::try_from(time.as_millis()).unwrap_or(i64::MAX),
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
        occurred
    };
    pgrx::check_for_interrupts!();
    occurred as u32
}

/// Tells whether the library is being loaded on behalf of a statement of the client, that is,
/// later than the server and the session could have loaded it.
pub(crate) fn in_a_statement() -> bool {
    // SAFETY: a global that only this process changes.
    unsafe { !pg_sys::debug_query_string.is_null() }
}

/// Tells whether this is the postmaster, or a server process on its own.
pub(crate) fn is_postmaster() -> bool {
    // SAFETY: a global that is set with the fork.
    unsafe { !pg_sys::IsUnderPostmaster }
}

/// Tells whether ALTER SYSTEM is running.
pub(crate) fn is_altering_system() -> bool {
    // SAFETY: the statements of a portal live as long as it is active.
    unsafe {
        let portal = pg_sys::ActivePortal;
        if portal.is_null() {
            return false;
        }
        PgList::<pg_sys::PlannedStmt>::from_pg((*portal).stmts)
            .iter_ptr()
            .map(|statement| (*statement).utilityStmt)
            .any(|utility| {
                !utility.is_null() && (*utility).type_ == pg_sys::NodeTag::T_AlterSystemStmt
            })
    }
}

/// Tells whether it is being loaded by the postmaster, for all processes that it will start.
pub(crate) fn is_preloading() -> bool {
    // SAFETY: a global that only this process changes.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Tells whether this is a worker that takes part in another process's query.
pub(crate) fn in_parallel_worker() -> bool {
    // SAFETY: set once, when the process starts.
    unsafe { pg_sys::ParallelWorkerNumber >= 0 }
}

/// Tells whether a procedure may commit: not inside a transaction block, nor in a function.
pub(crate) fn may_commit(fcinfo: pg_sys::FunctionCallInfo) -> bool {
    // SAFETY: the call's context is null or a node; that of CALL is a CallContext.
    unsafe {
        let context = (*fcinfo).context;
        !context.is_null()
            && (*context).type_ == pg_sys::NodeTag::T_CallContext
            && !(*context.cast::<pg_sys::CallContext>()).atomic
    }
}

/// Tells whether the client has begun a transaction.
pub(crate) fn in_transaction_block() -> bool {
    // SAFETY: no arguments, no side effects.
    unsafe { pg_sys::IsTransactionBlock() }
}

/// Raises an error if the transaction is read-only, as on a hot standby.
pub(crate) fn refuse_in_read_only_transaction(command: &CStr) {
    // SAFETY: a C string.
    unsafe { pg_sys::PreventCommandIfReadOnly(command.as_ptr()) };
}

/// What the row looks like that a procedure returns in its INOUT parameters.
pub(crate) struct Shape(pg_sys::TupleDesc);

impl Shape {
    /// To be called before anything is committed: the procedure may be dropped while it runs.
    pub(crate) fn of_result(fcinfo: pg_sys::FunctionCallInfo) -> Self {
        let mut shape = ptr::null_mut();
        // SAFETY: `fcinfo` is that of the call.
        unsafe {
            pg_sys::get_call_result_type(fcinfo, ptr::null_mut(), &mut shape);
            assert!(!shape.is_null());
            Self(pg_sys::BlessTupleDesc(shape))
        }
    }

    /// The values must be of the types of those parameters.
    pub(crate) fn fill<T: IntoDatum, const N: usize>(self, values: [T; N]) -> Record {
        let mut datums = values.map(|value| value.into_datum().expect("the value is not null"));
        let mut nulls = [false; N];
        // SAFETY: the shape is in the memory context of the call. The row gets as many values as it has columns.
        unsafe {
            assert!((*self.0).natts as usize == N);
            let tuple = pg_sys::heap_form_tuple(self.0, datums.as_mut_ptr(), nulls.as_mut_ptr());
            Record(pg_sys::HeapTupleHeaderGetDatum((*tuple).t_data))
        }
    }
}

/// A row: what a procedure returns.
pub(crate) struct Record(pg_sys::Datum);

impl_sql_translatable!(Record, "record");

// SAFETY: the datum is a row in the memory context of the call.
unsafe impl BoxRet for Record {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        // SAFETY: see above.
        unsafe { fcinfo.return_raw_datum(self.0) }
    }
}
