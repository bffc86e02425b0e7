//! Keys from the file that `fernet.keys_file` names.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;

use super::error::{Error, Reason};
use super::secret::{self, Secret};
use crate::fernet::Keyring;
use crate::pg::encoding::printable;
use crate::pg::report::reason;

/// The state of a file when it was read.
pub(super) struct Stamp {
    path: PathBuf,
    state: State,
}

/// Tells one state of a file from another.
#[derive(PartialEq, Eq)]
struct State {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// Whether the last change before the file was read was old enough for any later change to show
    /// in the times. A file system's clock may tick only every two seconds.
    settled: bool,
}

const COARSEST_CLOCK: Duration = Duration::from_secs(2);

impl Stamp {
    /// Tells whether the file has certainly not changed.
    pub(super) fn still_holds(&self) -> bool {
        let now = self.path.metadata();
        self.state.settled && now.is_ok_and(|now| State::new(&now) == self.state)
    }
}

impl State {
    fn new(metadata: &Metadata) -> Self {
        let changed = Duration::from_secs(metadata.ctime().max(0).unsigned_abs());
        let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + changed);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            settled: age.is_ok_and(|age| age > COARSEST_CLOCK),
        }
    }
}

/// Refuses anything but an absolute path. Errors show a path, since it is no secret; other values
/// may be keys, possibly mistyped. An absolute path of 44 characters can be a key, too.
pub(super) fn check_path(path: &[u8]) -> Result<(), Error> {
    secret::note_depth();
    if path.starts_with(b"/") && Keyring::parse_list(path).is_err() {
        Ok(())
    } else {
        Err(Error::Path)
    }
}

/// Reads a key file, by the rule of `ssl_key_file`: nobody else may be able to read it.
pub(super) fn read(path: &Path) -> Result<(Secret, Stamp), Error> {
    let bytes = path.as_os_str().as_bytes();
    check_path(bytes)?;
    read_private(path).map_err(|error| Error::File {
        path: printable(bytes),
        reason: reason(&error),
    })
}

fn read_private(path: &Path) -> io::Result<(Secret, Stamp)> {
    // Without NONBLOCK, opening a FIFO would wait until somebody writes to it.
    let mut file = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    // These are of the opened file; the path may name another one by now.
    let metadata = file.metadata()?;
    check_private(&metadata)?;
    let mut text = Secret::new()?;
    while text.read_from(&mut file)? {}
    let stamp = Stamp {
        path: path.to_owned(),
        state: State::new(&metadata),
    };
    Ok((text, stamp))
}

fn check_private(metadata: &Metadata) -> Result<(), Reason> {
    let (owner, mode) = (metadata.uid(), metadata.mode());
    if !metadata.is_file() {
        Err(Reason::NotAFile)
    } else if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        Err(Reason::Owner)
    } else if owner == 0 && mode & 0o037 != 0 {
        Err(Reason::RootFileMode)
    } else if owner != 0 && mode & 0o077 != 0 {
        Err(Reason::Mode)
    } else {
        Ok(())
    }
}
