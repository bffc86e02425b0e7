//! Memory that holds keys for a while.

use std::io::{self, Read};

use zeroize::{Zeroizing, zeroize_bytes};

/// The most that a key file, or the output of a key command, may hold: room for 20,000 keys.
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

    /// Reads once and appends what comes. Returns whether there may be more.
    pub(crate) fn read_from(&mut self, source: &mut impl Read) -> io::Result<bool> {
        let read = source.read(&mut self.bytes[self.len..])?;
        self.len += read;
        if self.len > MAX_LEN {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "more than 1 MiB",
            ));
        }
        Ok(read > 0)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Overwrites the part of the stack that functions which have returned may have left keys in.
#[inline(never)]
pub(crate) fn scrub_stack() {
    // More than the frames of the core, of RustCrypto and of a query's executor take together.
    zeroize_bytes(&mut [0xff; 64 * 1024]);
}
