//! Initialisation vectors.

use std::cell::RefCell;

use super::Error;
use super::server;
use crate::fernet::IV;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool::EMPTY) };
}

/// Returns an initialisation vector from the operating system's generator.
pub(crate) fn iv() -> Result<IV, Error> {
    POOL.with_borrow_mut(|pool| pool.take(server::process_id()))
}

/// Random bytes that are still unused. Many are fetched at a time: a system call for each row would
/// take longer than the row's encryption.
struct Pool {
    bytes: [u8; 4096],
    /// Bytes before this offset are used.
    used: usize,
    /// The process that fetched the bytes. A process forked from it must not use them again.
    owner: i32,
}

impl Pool {
    const EMPTY: Self = Self {
        bytes: [0; 4096],
        used: 4096,
        owner: 0,
    };

    fn take(&mut self, process: i32) -> Result<IV, Error> {
        if self.owner != process || self.bytes.len() - self.used < size_of::<IV>() {
            *self = Self::EMPTY;
            getrandom::fill(&mut self.bytes).map_err(|_| Error::NoRandomness)?;
            self.used = 0;
            self.owner = process;
        }
        let iv = self.bytes[self.used..].first_chunk();
        self.used += size_of::<IV>();
        Ok(*iv.expect("the pool was filled"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn never_repeats() {
        let mut pool = Pool::EMPTY;
        let ivs: HashSet<IV> = (0..1000).map(|_| pool.take(1).unwrap()).collect();
        assert_eq!(ivs.len(), 1000);
    }

    #[test]
    fn a_forked_process_uses_none_of_its_parents_bytes() {
        let mut parent = Pool::EMPTY;
        parent.take(1).unwrap();
        let mut child = Pool { ..parent };
        let mut seen: HashSet<IV> = (0..200).map(|_| parent.take(1).unwrap()).collect();
        for _ in 0..200 {
            assert!(seen.insert(child.take(2).unwrap()));
        }
    }
}
