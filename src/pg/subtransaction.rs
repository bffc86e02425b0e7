//! Subtransactions, and the errors that end them.

use std::ffi::CStr;
use std::panic::AssertUnwindSafe;
use std::ptr;

use pgrx::pg_sys::panic::{CaughtError, ErrorReportWithLevel};
use pgrx::prelude::*;

use super::encoding::printable;
use super::report::class;

/// Calls `f` in a subtransaction. It is undone, including its locks, unless `keep` says to keep it.
///
/// # Errors
/// The error that `f` raised. The caller must raise it again unless it knows better.
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
    /// All that the server says of it. Once an error is caught, the server's own stack no longer
    /// has it.
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

    pub(super) fn is(&self, code: PgSqlErrorCode) -> bool {
        self.code() == code as i32
    }

    /// Tells whether the statement has to end whatever was tried, as after a cancellation or for lack
    /// of memory.
    pub(crate) fn ends_the_statement(&self) -> bool {
        use PgSqlErrorCode::{
            ERRCODE_INSUFFICIENT_RESOURCES, ERRCODE_OPERATOR_INTERVENTION,
            ERRCODE_TRANSACTION_ROLLBACK,
        };
        match self {
            Self::OfServer(_) => [
                ERRCODE_TRANSACTION_ROLLBACK,
                ERRCODE_INSUFFICIENT_RESOURCES,
                ERRCODE_OPERATOR_INTERVENTION,
            ]
            .iter()
            .any(|&ending| self.is_of_class(ending)),
            Self::Ours(_) => true,
        }
    }

    /// Tells whether the server lacks memory, shared memory or disk space.
    pub(super) fn is_lack_of_resources(&self) -> bool {
        self.is_of_class(PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES)
    }

    fn is_of_class(&self, code: PgSqlErrorCode) -> bool {
        class(code as i32) == class(self.code())
    }

    fn code(&self) -> i32 {
        match self {
            // SAFETY: the copy is in the caller's memory, which outlived the subtransaction.
            Self::OfServer(error) => unsafe { (**error).sqlerrcode },
            Self::Ours(error) => report_of(error).sql_error_code() as i32,
        }
    }

    /// Returns the error's message, for use in another message.
    pub(crate) fn message(&self) -> String {
        match self {
            // SAFETY: as above; an error of the server has a message, which is a C string.
            Self::OfServer(error) => unsafe {
                printable(CStr::from_ptr((**error).message).to_bytes())
            },
            Self::Ours(error) => report_of(error).message().into(),
        }
    }

    /// Raises the error again, complete.
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
