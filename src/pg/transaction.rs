//! Transactions of a procedure, and waiting for those of others.

use std::ffi::{CStr, CString, c_int, c_void};
use std::ops::Deref;
use std::ptr;
use std::time::Duration;

use pgrx::prelude::*;

use super::error_context::with_error_context;
use super::guc::{Until, set_config, with_settings};
use super::spi::Connection;
use super::subtransaction::in_subtransaction;
use super::{Error, server, worker};

/// A transaction of a procedure. It is READ COMMITTED whatever the default is, and has one snapshot
/// for all its reads.
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
    /// Ends the transaction in which the procedure was called, or which the last commit has begun.
    pub(crate) fn end_current() -> Result<(), Error> {
        Self::connect().commit()
    }

    /// Calls `f` in a transaction, and commits unless it returns an error. `f` cannot leave anything
    /// open that would end with the commit.
    pub(crate) fn run<T, E: From<Error>>(f: impl FnOnce(&Self) -> Result<T, E>) -> Result<T, E> {
        // The last commit has begun a transaction that has not done anything yet.
        set_config(c"transaction_isolation", c"read committed", Until::Commit);
        // Rows are found by their place or a range of places, and not by reading the whole table.
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
    /// If the wait for a synchronous standby is cancelled. For the server, that is no reason to end
    /// the statement.
    fn commit(self) -> Result<(), Error> {
        // SAFETY: connected, and not inside of a subtransaction of ours.
        if wait_was_cancelled(|| unsafe { pg_sys::SPI_commit() }) {
            return Err(Error::ReplicationCancelled);
        }
        Ok(())
    }

    /// Calls `f`, which writes to rows. If it meets a row that is locked, or that has moved to
    /// another partition, undoes what it did and returns `None`.
    pub(crate) fn attempt<T>(&self, f: impl FnOnce() -> T) -> Option<T> {
        // Far shorter than deadlock_timeout, so that nobody else notices a deadlock. Workers also wait
        // for each other when the table grows: a batch that is given up then has to be written again.
        let is_worker = worker::is_worker();
        let time = Duration::from_millis(if is_worker { 100 } else { 10 });
        let write = || {
            let result = f();
            if is_worker {
                // When a worker commits, it may have to wait for longer: for another worker, or for a
                // lock of the session that waits for the workers.
                fire_deferred_triggers();
            }
            result
        };
        match in_subtransaction(|_| true, || with_lock_timeout(time, write)) {
            Ok(result) => Some(result),
            Err(failure) if UNAVAILABLE.iter().any(|&code| failure.is(code)) => {
                server::end_if_timed_out();
                None
            }
            Err(failure) => failure.raise(),
        }
    }
}

/// The error of an UPDATE that meets a row which it cannot have now.
const UNAVAILABLE: [PgSqlErrorCode; 3] = [
    PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
    PgSqlErrorCode::ERRCODE_T_R_DEADLOCK_DETECTED,
    PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
];

/// Another transaction, identified by the lock that it holds on its own number.
pub(crate) struct VirtualXid(pg_sys::VirtualTransactionId);

impl VirtualXid {
    /// Parses it from what `pg_locks` shows. Returns `None` for a transaction that has ended and is
    /// about to release its locks: it no longer has a number, which is shown as 0.
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
        // SAFETY: a number that is not, or no longer, that of a transaction counts as ended.
        unsafe { pg_sys::VirtualXactLock(self.0, false) }
    }

    /// Waits until the transaction has ended, and tells whether it has. Call it between
    /// transactions: then this process has neither a lock nor a snapshot that others could be
    /// waiting for.
    pub(crate) fn wait(&self, time: Option<Duration>) -> bool {
        // A time of zero means no limit.
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

/// Does now what triggers would do at the commit.
fn fire_deferred_triggers() {
    let mut all_immediate = pg_sys::ConstraintsSetStmt {
        type_: pg_sys::NodeTag::T_ConstraintsSetStmt,
        constraints: ptr::null_mut(),
        deferred: false,
    };
    // SAFETY: as of SET CONSTRAINTS ALL IMMEDIATE, which the server only reads.
    unsafe { pg_sys::AfterTriggerSetState(&raw mut all_immediate) };
}

/// Calls `f` with another `lock_timeout`; zero means none.
fn with_lock_timeout<T>(time: Duration, f: impl FnOnce() -> T) -> T {
    let time = CString::new(time.as_millis().to_string()).expect("digits hold no zero byte");
    with_settings(&[(c"lock_timeout", &time)], f)
}

/// Calls `f`, which commits, and tells whether its wait for a synchronous standby was cancelled. The
/// server only warns of that, and forgets that the statement was to end.
fn wait_was_cancelled(f: impl FnOnce()) -> bool {
    /// The warning before it is translated.
    const WARNING: &CStr = c"canceling wait for synchronous replication due to user request";

    /// Called with each message while the context is in place.
    #[pg_guard]
    unsafe extern "C-unwind" fn look_at(found: *mut c_void) {
        // SAFETY: called while a message is being made, whose copy is in memory that outlives this
        // call; `found` is the variable below.
        unsafe {
            if pg_sys::geterrcode() != PgSqlErrorCode::ERRCODE_WARNING as c_int {
                return;
            }
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

    let mut found = false;
    with_error_context(Some(look_at), (&raw mut found).cast(), f);
    found
}
