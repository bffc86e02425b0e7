use std::ffi::CStr;
use std::io;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::fernet;
use crate::pg::Report;

/// Why there are no keys.
#[derive(Debug)]
pub(crate) enum Error {
    /// No setting holds keys.
    Unset,
    /// The server has dropped the value that this setting was given before the library was loaded.
    Dropped(&'static CStr),
    /// `fernet.keys_file` is not the path of a file.
    Path,
    /// The file of `fernet.keys_file` cannot be read, or others can read it.
    File { path: String, reason: String },
    /// The command of `fernet.keys_command` failed.
    Command { reason: String },
    /// The list in `setting` is refused.
    List {
        setting: &'static str,
        refusal: fernet::Error,
    },
}

/// Why a file, or the output of a command, is refused though it can be read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reason {
    NotAFile,
    /// The file is somebody else's.
    Owner,
    /// The group can write to a file that root owns, or others can read it.
    RootFileMode,
    /// Others can read the file.
    Mode,
    TooLong,
    TimedOut,
}

impl From<Reason> for io::Error {
    fn from(reason: Reason) -> Self {
        Self::other(match reason {
            Reason::NotAFile => "it is not a regular file",
            Reason::Owner => "it must be owned by the database user or root",
            Reason::RootFileMode => {
                "a file owned by root must have permissions u=rw,g=r (0640) or less"
            }
            Reason::Mode => "it must have permissions u=rw (0600) or less",
            Reason::TooLong => "more than 1 MiB",
            Reason::TimedOut => "it took longer than 10 s",
        })
    }
}

/// Warns that the configuration has keys that any role can read.
pub(super) fn readable_keys() -> Report {
    Report::warning(
        "fernet.keys is set in the configuration, but pg_fernet is not in shared_preload_libraries",
        "Add pg_fernet to shared_preload_libraries and restart the server, or use fernet.keys_file.",
    )
    .with_detail("Any role can read the keys in a server process that has not loaded the library.")
}

impl From<Error> for Report {
    fn from(error: Error) -> Self {
        use PgSqlErrorCode as Code;
        match error {
            Error::Unset => Self::new(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "no Fernet keys are configured",
                "Set fernet.keys_file to a file that holds the keys, or fernet.keys to a \
                 comma-separated list of them, the newest first. fernet_generate_key() makes a key.",
            ),
            Error::Dropped(setting) => Self::new(
                Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!(
                    "{} was set before pg_fernet was loaded, and is not in effect",
                    setting.to_string_lossy()
                ),
                "A warning said why when pg_fernet was loaded. Begin another session, or set it again as \
                 a role that may.",
            ),
            Error::Path => Self::new(
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                "fernet.keys_file must be the absolute path of a file",
                "Write the keys into a file, and set this to its absolute path. A list of keys belongs in \
                 fernet.keys.",
            ),
            Error::File { path, reason } => Self::new(
                Code::ERRCODE_CONFIG_FILE_ERROR,
                format!("could not read Fernet keys from file \"{path}\": {reason}"),
                "fernet.keys_file must name a file that the server's user can read and others cannot.",
            ),
            Error::Command { reason } => Self::new(
                Code::ERRCODE_CONFIG_FILE_ERROR,
                format!("could not get Fernet keys from fernet.keys_command: {reason}"),
                "Run the command by hand, as the server's user: it must print the keys and exit with \
                 status 0 within 10 seconds.",
            ),
            Error::List {
                setting,
                refusal: refusal @ fernet::Error::OutOfMemory,
            } => Self::new(
                Code::ERRCODE_OUT_OF_MEMORY,
                format!("{setting}: {refusal}"),
                "Use a shorter list of keys.",
            ),
            Error::List { setting, refusal } => Self::new(
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                match refusal {
                    fernet::Error::InvalidKey { position } => {
                        format!("key {position} of {setting} is not a valid Fernet key")
                    }
                    _ => format!("{setting}: {refusal}"),
                },
                "Separate keys by commas, or in a file by line breaks, the newest first. A key is 32 \
                 bytes in base64, 44 characters with its padding; fernet_generate_key() makes one.",
            ),
        }
    }
}

impl From<Error> for ErrorReport {
    fn from(error: Error) -> Self {
        Report::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::report::assert_documented;

    #[test]
    fn all_are_documented() {
        let list = |setting, refusal| Error::List { setting, refusal };
        let errors = [
            Error::Unset,
            Error::Dropped(c"fernet.keys"),
            Error::Path,
            Error::File {
                path: "…".into(),
                reason: "No such file or directory".into(),
            },
            Error::Command {
                reason: "it ended with exit status: 1".into(),
            },
            list("fernet.keys", fernet::Error::InvalidKey { position: 2 }),
            list("fernet.keys", fernet::Error::EmptyKeyList),
            list("fernet.keys_file", fernet::Error::OutOfMemory),
        ];
        assert_documented(errors.map(Report::from));
        assert_documented([readable_keys()]);
    }

    /// On the page, these are in the rows below the error that they belong to.
    #[test]
    fn reasons_are_documented() {
        use Reason::*;
        let reasons = [NotAFile, Owner, RootFileMode, Mode, TooLong, TimedOut];
        assert_documented(reasons.map(|reason| {
            Report {
                message: io::Error::from(reason).to_string(),
                ..Error::Command {
                    reason: String::new(),
                }
                .into()
            }
        }));
    }
}
