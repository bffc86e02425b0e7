//! Memory that holds keys for a while.

use std::cell::Cell;
use std::hint::black_box;
use std::io::{self, Read};

use zeroize::{Zeroizing, zeroize_bytes};

use super::error::Reason;
use crate::fernet;

/// The maximum size of a key file, or of the output of a key command: room for 20,000 keys.
pub(crate) const MAX_LEN: usize = 1 << 20;

/// Text with keys in it: wiped when dropped, and never moved, which would leave a copy behind.
pub(crate) struct Secret {
    bytes: Zeroizing<Vec<u8>>,
    len: usize,
}

impl Secret {
    pub(crate) fn new() -> io::Result<Self> {
        let mut bytes = Zeroizing::new(Vec::new());
        bytes.try_reserve_exact(MAX_LEN + 1)?;
        bytes.resize(MAX_LEN + 1, 0);
        Ok(Self { bytes, len: 0 })
    }

    /// Reads once and appends what comes. Tells whether there may be more.
    pub(crate) fn read_from(&mut self, source: &mut impl Read) -> io::Result<bool> {
        let read = source.read(&mut self.bytes[self.len..])?;
        self.len += read;
        if self.len > MAX_LEN {
            return Err(Reason::TooLong.into());
        }
        Ok(read > 0)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

thread_local! {
    /// The lowest address of the stack, which grows downwards, at which keys have been in use.
    static DEEPEST: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Notes the depth of the stack at a point where keys come into use.
pub(crate) fn note_depth() {
    let here = 0_u8;
    DEEPEST.set(DEEPEST.get().min(&raw const here as usize));
}

/// Overwrites what functions that have returned may have left of keys on the stack and in the
/// processor's registers.
pub(crate) fn scrub() {
    /// More than the frames of the core, of RustCrypto and of reading a file together.
    const FRAMES: usize = 64 * 1024;
    let deepest = DEEPEST.get();
    if deepest == usize::MAX {
        return; // no key has been used here: the server starts, or a reload reaches an idle session
    }
    fernet::overwrite_traces();
    overwrite_stack(deepest.saturating_sub(FRAMES));
}

/// Overwrites the stack from here down to an address.
#[inline(never)]
fn overwrite_stack(end: usize) {
    let mut frame = [0xff_u8; 4096];
    zeroize_bytes(&mut frame);
    if frame.as_ptr() as usize > end {
        overwrite_stack(end);
    }
    // Used after the call, so that the compiler cannot turn the recursion into a loop in one frame.
    black_box(&frame);
}
