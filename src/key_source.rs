//! Where the keys come from, and the keyring that the backend keeps of them.

use std::cell::RefCell;
use std::rc::Rc;

use crate::error::Error;
use crate::fernet::{self, Keyring};
use crate::settings;

thread_local! {
    static KEYRING: RefCell<Option<Rc<Keyring>>> = const { RefCell::new(None) };
}

/// Returns the configured keys. The list is parsed at the first use after a change.
pub(crate) fn keyring() -> Result<Rc<Keyring>, Error> {
    KEYRING.with_borrow_mut(|cached| match cached {
        Some(keyring) => Ok(Rc::clone(keyring)),
        None => {
            let keyring = Rc::new(settings::with_keys(|list| match list {
                Some(list) => parse_setting(list),
                None => Err(Error::NoKeys),
            })?);
            Ok(Rc::clone(cached.insert(keyring)))
        }
    })
}

/// Drops the cached keyring, and with it the key material, because a setting changed.
pub(crate) fn forget() {
    KEYRING.with_borrow_mut(|cached| *cached = None);
}

/// Reads the list in `fernet.keys`: keys between commas.
pub(crate) fn parse_setting(list: &[u8]) -> Result<Keyring, Error> {
    let keyring = if list.trim_ascii().is_empty() {
        Err(fernet::Error::EmptyKeyList)
    } else {
        Keyring::parse(list.split(|&byte| byte == b','))
    };
    keyring.map_err(|refusal| Error::KeyList {
        setting: "fernet.keys",
        refusal,
    })
}
