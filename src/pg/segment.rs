//! A segment of dynamic shared memory, divided into parts like those of the server's own parallel
//! queries.

use std::ptr::NonNull;

use pgrx::prelude::*;

/// What a process shares with its background workers.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Header,
    Shared,
    Libraries,
    /// C strings: the statement, the task, and the settings of the session.
    Texts,
    Queues,
}

/// The start of a segment. Another version of the library may have divided it differently.
const MAGIC: u64 = {
    let version = env!("CARGO_PKG_VERSION").as_bytes();
    let (mut magic, mut at) = (0, 0);
    while at < version.len() {
        magic = magic << 8 | version[at] as u64;
        at += 1;
    }
    magic
};

/// As large as the queues of the server's parallel queries. A longer message goes through in
/// pieces.
pub(super) const QUEUE_SIZE: usize = 16 << 10;

/// A segment that is mapped.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    segment: NonNull<pg_sys::dsm_segment>,
    parts: NonNull<pg_sys::shm_toc>,
}

impl Segment {
    /// Makes a segment with room for parts of these sizes, in the order of [`Part`]. It outlives
    /// transactions. The server raises an error if it does not have that much shared memory.
    pub(super) fn new(sizes: [usize; 5]) -> Self {
        let aligned = sizes.map(|size| size.next_multiple_of(pg_sys::ALIGNOF_BUFFER as usize));
        let mut needed = pg_sys::shm_toc_estimator {
            space_for_chunks: aligned.iter().sum(),
            number_of_keys: sizes.len(),
        };
        // SAFETY: the segment is as large as the server says that it has to be for the parts.
        unsafe {
            let size = pg_sys::shm_toc_estimate(&raw mut needed);
            let segment = pg_sys::dsm_create(size, 0);
            let address = pg_sys::dsm_segment_address(segment);
            let toc = pg_sys::shm_toc_create(MAGIC, address, size);
            for (part, size) in sizes.into_iter().enumerate() {
                pg_sys::shm_toc_insert(toc, part as u64, pg_sys::shm_toc_allocate(toc, size));
            }
            pg_sys::dsm_pin_mapping(segment);
            Self::of(segment).expect("it was laid out here")
        }
    }

    /// Returns `None` if another version of the library has made the segment.
    ///
    /// # Safety
    /// The segment must be mapped as long as the result is used.
    pub(super) unsafe fn of(segment: *mut pg_sys::dsm_segment) -> Option<Self> {
        // SAFETY: the caller says that it is mapped.
        let parts = unsafe { pg_sys::shm_toc_attach(MAGIC, pg_sys::dsm_segment_address(segment)) };
        Some(Self {
            segment: NonNull::new(segment)?,
            parts: NonNull::new(parts)?,
        })
    }

    /// Returns the address of a part.
    ///
    /// # Safety
    /// The segment must still be mapped.
    pub(super) unsafe fn find<T>(self, part: Part) -> *mut T {
        // SAFETY: the caller says that it is mapped; a segment has all parts.
        unsafe { pg_sys::shm_toc_lookup(self.parts.as_ptr(), part as u64, false).cast() }
    }

    pub(super) fn as_ptr(self) -> *mut pg_sys::dsm_segment {
        self.segment.as_ptr()
    }
}
