//! What happens when the operating system gives no more memory: an error, and nothing worse.
//!
//! A failed allocation in Rust would abort the process, and the server would then end all sessions. Code
//! that may need much memory asks first, with `try_reserve`. For the many small allocations in this
//! crate, in pgrx and in the standard library, there is a reserve: they take what they need from it, and
//! [`ensure_reserve`] then ends the statement.
//!
//! A failed allocation in the server raises an error. But pgrx first copies that error, in the memory
//! context that could not get memory, and tries again until the server has had five errors in a row,
//! which is a PANIC. [`with_room_for_errors`] gives a part of the reserve back as soon as there is an
//! error.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::Error;
use super::error_context::with_error_context;
use super::report::class;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator::new();

/// A part of the reserve. To copy an error, the server may need a block of a megabyte. Nothing is
/// written to a part, so it takes address space but no memory.
const PART: Layout = match Layout::from_size_align(5 << 18, 16) {
    Ok(layout) => layout,
    Err(_) => unreachable!(),
};

const PARTS: usize = 3;

/// The system's allocator, with a reserve.
struct Allocator {
    /// In parts, so that something is left for raising the error after the first part was needed.
    reserve: [AtomicPtr<u8>; PARTS],
    is_whole: AtomicBool,
}

/// Raises an error if the reserve has been used and cannot be allocated again. Call it where a
/// statement begins its work, and between steps that may be repeated any number of times.
pub(crate) fn ensure_reserve() {
    if !ALLOCATOR.is_whole.load(Ordering::Relaxed) && !ALLOCATOR.fill() {
        out_of_memory();
    }
}

/// Calls `f`, which may ask the server for memory, even in very small pieces.
pub(crate) fn with_room_for_errors<R>(f: impl FnOnce() -> R) -> R {
    ensure_reserve();
    with_error_context(Some(make_room), null_mut(), f)
}

/// Raises an error if `len` bytes cannot be had. Call it before the server and pgrx allocate that much
/// piece by piece.
pub(super) fn ensure_room(len: usize) {
    if Vec::<u8>::new().try_reserve_exact(len).is_err() {
        out_of_memory();
    }
}

pub(super) fn out_of_memory() -> ! {
    with_error_context(Some(make_room), null_mut(), || {
        ErrorReport::from(Error::OutOfMemory).report(PgLogLevel::ERROR);
    });
    unreachable!("the error was raised")
}

/// The server calls this with each message, and so with every error before it is caught. An error that
/// is not a lack of memory has to be copied, too.
#[pg_guard]
unsafe extern "C-unwind" fn make_room(_arg: *mut c_void) {
    // SAFETY: a message is being made, and has its code.
    let code = unsafe { pg_sys::geterrcode() };
    let of_no_error = [
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        PgSqlErrorCode::ERRCODE_WARNING,
        PgSqlErrorCode::ERRCODE_NO_DATA,
    ];
    if of_no_error
        .iter()
        .all(|&other| class(other as c_int) != class(code))
    {
        ALLOCATOR.give_back();
    }
}

impl Allocator {
    const fn new() -> Self {
        Self {
            reserve: [const { AtomicPtr::new(null_mut()) }; PARTS],
            is_whole: AtomicBool::new(false),
        }
    }

    #[cold]
    fn fill(&self) -> bool {
        for part in &self.reserve {
            if part.load(Ordering::Relaxed).is_null() {
                // SAFETY: the layout is not empty.
                let memory = unsafe { System.alloc(PART) };
                if memory.is_null() {
                    return false;
                }
                part.store(memory, Ordering::Relaxed);
            }
        }
        self.is_whole.store(true, Ordering::Relaxed);
        true
    }

    /// Gives a part of the reserve back to the system. Returns whether there was one.
    fn give_back(&self) -> bool {
        self.is_whole.store(false, Ordering::Relaxed);
        for part in &self.reserve {
            let memory = part.swap(null_mut(), Ordering::Relaxed);
            if !memory.is_null() {
                // SAFETY: allocated with this layout, and used by nobody.
                unsafe { System.dealloc(memory, PART) };
                return true;
            }
        }
        false
    }

    /// Calls `allocate` until it returns memory, or until the reserve does not help.
    fn with_reserve(&self, size: usize, allocate: impl Fn() -> *mut u8) -> *mut u8 {
        loop {
            let memory = allocate();
            let is_too_much = size > PARTS * PART.size();
            if !memory.is_null() || is_too_much || !self.give_back() {
                return memory;
            }
        }
    }
}

// SAFETY: all memory is the system allocator's; a failed call has changed nothing.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller says.
        self.with_reserve(layout.size(), || unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller says.
        self.with_reserve(layout.size(), || unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller says; memory that could not grow is as it was.
        self.with_reserve(size, || unsafe { System.realloc(memory, layout, size) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller says.
        unsafe { System.dealloc(memory, layout) };
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn gives_back_no_more_than_is_needed() {
        let allocator = Allocator::new();
        // How often a request is repeated until there is memory or the reserve is used up.
        let requests = |size, until| {
            let made = Cell::new(0);
            let memory = allocator.with_reserve(size, || {
                made.set(made.get() + 1);
                if made.get() < until {
                    null_mut()
                } else {
                    &raw const made as *mut u8
                }
            });
            (made.get(), !memory.is_null())
        };
        assert_eq!(requests(1, 2), (1, false), "there is no reserve yet");
        assert!(allocator.fill());
        assert_eq!(
            requests(3 * PART.size() + 1, 2),
            (1, false),
            "it would not help"
        );
        assert_eq!(requests(1, 1), (1, true), "it is not needed");
        assert_eq!(requests(1, 2), (2, true));
        assert!(!allocator.is_whole.load(Ordering::Relaxed));
        assert!(allocator.fill());
        assert_eq!(
            requests(3 * PART.size(), 9),
            (4, false),
            "it has three parts"
        );
    }
}
