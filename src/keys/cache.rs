//! The keyring that this process keeps.

use std::cell::RefCell;
use std::rc::Rc;

use super::file::Stamp;
use super::secret;
use crate::fernet::Keyring;
use crate::pg::server;

thread_local! {
    static CACHE: RefCell<Option<Cached>> = const { RefCell::new(None) };
}

struct Cached {
    keyring: Rc<Keyring>,
    /// If the keys came from a file: the state of the file when they were read, and the statement
    /// that last compared it.
    file: Option<(Stamp, i64)>,
}

/// Returns the keyring. If the file that it came from has changed since, drops it and returns
/// `None`.
///
/// A file is checked once per statement. Each FETCH from a cursor is a statement of its own, so its
/// rows can have another keyring than the ones before.
pub(super) fn current() -> Option<Rc<Keyring>> {
    CACHE.with_borrow_mut(|cache| {
        let is_current = cache.as_mut().is_some_and(Cached::is_current);
        if !is_current {
            *cache = None;
        }
        cache.as_ref().map(|cached| Rc::clone(&cached.keyring))
    })
}

impl Cached {
    fn is_current(&mut self) -> bool {
        let Some((stamp, checked_in)) = &mut self.file else {
            return true;
        };
        let statement = server::statement();
        let is_current = *checked_in == statement || stamp.still_holds();
        *checked_in = statement;
        is_current
    }
}

/// Keeps a keyring. `file` is the state of the file that it came from, if any.
pub(super) fn keep(keyring: &Rc<Keyring>, file: Option<Stamp>) {
    let cached = Cached {
        keyring: Rc::clone(keyring),
        file: file.map(|stamp| (stamp, server::statement())),
    };
    CACHE.set(Some(cached));
}

/// Drops the keyring, and with it the key material.
pub(super) fn forget() {
    CACHE.set(None);
    secret::scrub();
}
