//! Where the keys come from, and the keyring that the backend keeps of them.

use std::cell::RefCell;
use std::rc::Rc;

use crate::error::Error;
use crate::fernet::Keyring;
use crate::key_command;
use crate::key_file::{self, Stamp};
use crate::secret;
use crate::server;
use crate::settings::{self, Source};

thread_local! {
    static CACHE: RefCell<Option<Cached>> = const { RefCell::new(None) };
}

struct Cached {
    keyring: Rc<Keyring>,
    /// What the file was when the keys were read, if they came from one, and the statement that
    /// last compared it.
    file: Option<(Stamp, i64)>,
}

/// Returns the configured keys. They are read at the first use after a change.
pub(crate) fn keyring() -> Result<Rc<Keyring>, Error> {
    secret::note_depth();
    if let Some(keyring) = CACHE.with_borrow_mut(current) {
        return Ok(keyring);
    }
    // The old one goes first: if the new one cannot be read, there is none. Loading scrubs after both.
    CACHE.with_borrow_mut(|cache| *cache = None);
    settings::warn_of_readable_keys();
    let cached = settings::with_source(load)?;
    let keyring = Rc::clone(&cached.keyring);
    CACHE.with_borrow_mut(|cache| *cache = Some(cached));
    Ok(keyring)
}

/// Drops the cached keyring, and with it the key material.
pub(crate) fn forget() {
    CACHE.with_borrow_mut(|cache| *cache = None);
    secret::scrub();
}

/// Returns the cached keyring, unless the file it came from has changed since. A file is looked at
/// once per statement. What is fetched in pieces is a statement for each piece, so that later rows
/// of it can have another keyring than the first.
fn current(cache: &mut Option<Cached>) -> Option<Rc<Keyring>> {
    let cached = cache.as_mut()?;
    if let Some((stamp, checked_in)) = &mut cached.file {
        let statement = server::statement();
        if *checked_in != statement {
            settings::with_source(|source| match source {
                Source::File(path) => stamp.still_holds(path),
                _ => false,
            })
            .then_some(())?;
            *checked_in = statement;
        }
    }
    Some(Rc::clone(&cached.keyring))
}

fn load(source: Source<'_>) -> Result<Cached, Error> {
    let loaded = read(source);
    // Reading keys leaves copies behind, also where a later one is refused.
    secret::scrub();
    loaded
}

fn read(source: Source<'_>) -> Result<Cached, Error> {
    Ok(match source {
        Source::None => return Err(Error::NoKeys),
        Source::Keys(list) => Cached {
            keyring: Rc::new(parse_setting(list)?),
            file: None,
        },
        Source::File(path) => {
            let (text, stamp) = key_file::read(path)?;
            Cached {
                keyring: Rc::new(parse_lines(text.as_bytes(), "fernet.keys_file")?),
                file: Some((stamp, server::statement())),
            }
        }
        Source::Command(command) => {
            let text = key_command::run(command)?;
            Cached {
                keyring: Rc::new(parse_lines(text.as_bytes(), "fernet.keys_command")?),
                file: None,
            }
        }
    })
}

/// Reads the list in `fernet.keys`.
pub(crate) fn parse_setting(list: &[u8]) -> Result<Keyring, Error> {
    secret::note_depth();
    Keyring::parse_list(list).map_err(|refusal| Error::KeyList {
        setting: "fernet.keys",
        refusal,
    })
}

fn parse_lines(text: &[u8], setting: &'static str) -> Result<Keyring, Error> {
    Keyring::parse_lines(text).map_err(|refusal| Error::KeyList { setting, refusal })
}
