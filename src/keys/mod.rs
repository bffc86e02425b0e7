//! From the settings to the keyring of this process.
//!
//! | module        | what it holds |
//! |---------------|---------------|
//! | `settings`    | `fernet.*`, and their hooks |
//! | `cache`       | the keyring that is kept, and forgetting it |
//! | `file`        | keys from a file |
//! | `command`     | keys from the output of a command |
//! | `secret`      | the memory that keys pass through |
//! | `mask`        | what must not be read in the server log |
//! | `fingerprint` | what SQL shows of keys |
//! | `error`       | why there are no keys, and what the client is warned of |

mod cache;
mod command;
mod error;
mod file;
pub(crate) mod fingerprint;
mod mask;
mod secret;
pub(crate) mod settings;

use std::rc::Rc;

pub(crate) use error::Error;
use settings::Source;

use crate::fernet::Keyring;
use crate::pg::memory::ensure_reserve;

/// Returns the configured keys. They are read when they are first used after a change.
pub(crate) fn keyring() -> Result<Rc<Keyring>, Error> {
    ensure_reserve();
    secret::note_depth();
    if let Some(keyring) = cache::current() {
        return Ok(keyring);
    }
    // The previous keyring is gone by now: if the new one cannot be read, there is none.
    settings::warn_of_readable_keys();
    let read = settings::with_source(read);
    // Reading keys leaves copies behind, even if a later one is refused.
    secret::scrub();
    let (keyring, file) = read?;
    let keyring = Rc::new(keyring);
    cache::keep(&keyring, file);
    Ok(keyring)
}

fn read(source: Source<'_>) -> Result<(Keyring, Option<file::Stamp>), Error> {
    Ok(match source {
        Source::None => return Err(Error::Unset),
        Source::Dropped(setting) => return Err(Error::Dropped(setting)),
        Source::Keys(list) => (settings::parse_list(list)?, None),
        Source::File(path) => {
            let (text, stamp) = file::read(path)?;
            (
                parse_lines(text.as_bytes(), "fernet.keys_file")?,
                Some(stamp),
            )
        }
        Source::Command(command) => {
            let text = command::run(command)?;
            (parse_lines(text.as_bytes(), "fernet.keys_command")?, None)
        }
    })
}

fn parse_lines(text: &[u8], setting: &'static str) -> Result<Keyring, Error> {
    Keyring::parse_lines(text).map_err(|refusal| Error::List { setting, refusal })
}
