//! What the other modules ask of the server they run in.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use pgrx::prelude::*;

/// Returns the id of this server process.
pub(crate) fn process_id() -> i32 {
    // SAFETY: set once after the fork, and read by a single thread.
    unsafe { pg_sys::MyProcPid }
}

/// Returns a number that another statement of the client does not share: the time it started.
pub(crate) fn statement() -> pg_sys::TimestampTz {
    // SAFETY: no arguments, no side effects.
    unsafe { pg_sys::GetCurrentStatementStartTimestamp() }
}

/// Waits until `fd` is readable, and tells whether it is; no longer than `time`. Raises an error if
/// the statement is cancelled or the session is to end meanwhile.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, time: Duration) -> bool {
    wait(pg_sys::WL_SOCKET_READABLE, fd.as_raw_fd(), time) & pg_sys::WL_SOCKET_READABLE != 0
}

/// Waits for that time, or less. Raises an error as [`wait_readable`] does.
pub(crate) fn sleep(time: Duration) {
    wait(0, pg_sys::PGINVALID_SOCKET, time);
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
