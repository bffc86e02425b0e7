//! The `fernet.*` settings.

use std::cell::Cell;
use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use pgrx::guc::PostgresGucEnum;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

use super::mask::{is_named, mask_keys, mask_literals};
use super::{Error, cache, error, file, secret};
use crate::fernet::Keyring;
use crate::pg::log::Masking;
use crate::pg::setting::{self, Setting, Stored};
use crate::pg::{Report, log, server, worker};

/// Where the keys come from.
pub(super) enum Source<'a> {
    /// No source is set.
    None,
    /// This setting was the source, until the server dropped its value.
    Dropped(&'static CStr),
    /// The list itself.
    Keys(&'a [u8]),
    File(&'a Path),
    Command(&'a OsStr),
}

/// Defines the settings, and reserves their prefix.
pub(crate) fn init() {
    PRELOADED.set(server::is_preloading());
    setting::refuse_in_parallel_operation::<Keys>();
    setting::refuse_in_parallel_operation::<KeysFile>();
    setting::refuse_in_parallel_operation::<KeysCommand>();
    // Nothing fails after this point: the server would call this again, and the settings would
    // already be defined.
    GucRegistry::define_enum_guc(
        c"fernet.mask_log",
        c"What is masked in the server log.",
        c"Anything that has the form of a Fernet key, or also all string literals.",
        &MASK_LOG,
        GucContext::Suset,
        GucFlags::empty(),
    );
    log::mask_messages(|| {
        let mask = match MASK_LOG.get() {
            MaskLog::Off => return None,
            MaskLog::Keys => mask_keys,
            MaskLog::Literals => mask_literals,
        };
        Some(Masking {
            is_about_secrets: is_named,
            mask,
        })
    });
    setting::define::<Keys>();
    setting::define::<KeysFile>();
    setting::define::<KeysCommand>();
    setting::reserve_prefix(c"fernet");
    // A library that is preloaded for a session cannot warn yet, so `warn_of_readable_keys` is
    // called again when keys are used.
    if server::in_a_statement() {
        warn_of_readable_keys();
    }
}

/// Tells whether a setting holds keys, which must not leave the process.
pub(crate) fn is_secret(setting: &CStr) -> bool {
    setting == Keys::NAME
}

/// Calls `f` with the first of the settings that is set.
pub(super) fn with_source<R>(f: impl FnOnce(Source<'_>) -> R) -> R {
    setting::with_value::<Keys, _>(|list| {
        setting::with_value::<KeysFile, _>(|path| {
            setting::with_value::<KeysCommand, _>(|command| f(first_of(list, path, command)))
        })
    })
}

/// An empty path or command counts as not set; an empty list is a list.
fn first_of<'a>(
    list: Option<&'a [u8]>,
    path: Option<&'a [u8]>,
    command: Option<&'a [u8]>,
) -> Source<'a> {
    let is_dropped = |value: &[u8]| value == setting::DROPPED.to_bytes();
    match (list, path.unwrap_or_default(), command.unwrap_or_default()) {
        (Some(list), ..) if is_dropped(list) => Source::Dropped(Keys::NAME),
        (Some(list), ..) => Source::Keys(list),
        (_, path, _) if is_dropped(path) => Source::Dropped(KeysFile::NAME),
        (_, path @ [_, ..], _) => Source::File(Path::new(OsStr::from_bytes(path))),
        (.., command) if is_dropped(command) => Source::Dropped(KeysCommand::NAME),
        (.., command @ [_, ..]) => Source::Command(OsStr::from_bytes(command)),
        _ => Source::None,
    }
}

static KEYS: Stored = Stored::new(None);

struct Keys;

impl Setting for Keys {
    const NAME: &CStr = c"fernet.keys";
    const SUMMARY: &CStr = c"Fernet keys, separated by commas, the newest first.";
    const DETAILS: &CStr =
        c"The first key encrypts, all of them decrypt. Takes precedence over fernet.keys_file.";
    const CONTEXT: GucContext = GucContext::Suset;
    const FLAGS: GucFlags = setting::SECRET.union(setting::LIST);
    const STORED: &Stored = &KEYS;
    const ASSIGNED: fn() = cache::forget;

    fn check(list: &[u8], in_configuration: bool) -> Result<(), Report> {
        if in_configuration && !PRELOADED.get() && !WERE_READABLE.replace(true) {
            // The next use then reads the keys again, and warns, even if it has keys of its own.
            cache::forget();
        }
        Ok(parse_list(list).map(drop)?)
    }
}

static KEYS_FILE: Stored = Stored::new(None);

struct KeysFile;

impl Setting for KeysFile {
    const NAME: &CStr = c"fernet.keys_file";
    const SUMMARY: &CStr = c"File with Fernet keys, one per line, the newest first.";
    const DETAILS: &CStr =
        c"Only the server's user may read it, as for ssl_key_file. Takes precedence over fernet.keys_command.";
    const CONTEXT: GucContext = GucContext::Suset;
    const FLAGS: GucFlags = GucFlags::SUPERUSER_ONLY;
    const STORED: &Stored = &KEYS_FILE;
    const ASSIGNED: fn() = cache::forget;

    fn check(path: &[u8], _: bool) -> Result<(), Report> {
        if path.is_empty() {
            return Ok(()); // counts as not set
        }
        Ok(file::check_path(path)?)
    }
}

static KEYS_COMMAND: Stored = Stored::new(None);

struct KeysCommand;

impl Setting for KeysCommand {
    const NAME: &CStr = c"fernet.keys_command";
    const SUMMARY: &CStr =
        c"Shell command that prints Fernet keys, one per line, the newest first.";
    const DETAILS: &CStr =
        c"Each server process runs it when it first needs a key, and again after a reload.";
    const CONTEXT: GucContext = GucContext::Sighup;
    const FLAGS: GucFlags = GucFlags::SUPERUSER_ONLY;
    const STORED: &Stored = &KEYS_COMMAND;
    const ASSIGNED: fn() = cache::forget;
}

/// What is masked in the server log.
#[derive(Clone, Copy, PostgresGucEnum)]
enum MaskLog {
    #[name = c"off"]
    Off,
    #[name = c"keys"]
    Keys,
    #[name = c"literals"]
    Literals,
}

static MASK_LOG: GucSetting<MaskLog> = GucSetting::<MaskLog>::new(MaskLog::Keys);

/// Reads the list in `fernet.keys`.
pub(super) fn parse_list(list: &[u8]) -> Result<Keyring, Error> {
    secret::note_depth();
    Keyring::parse_list(list).map_err(|refusal| Error::List {
        setting: "fernet.keys",
        refusal,
    })
}

thread_local! {
    /// Whether the postmaster loaded the library, so that every server process has it from the
    /// start.
    static PRELOADED: Cell<bool> = const { Cell::new(false) };
    /// Whether the configuration has keys that any role can read in a process without the library.
    static WERE_READABLE: Cell<bool> = const { Cell::new(false) };
    /// Whether this session has been warned about that.
    static TOLD: Cell<bool> = const { Cell::new(false) };
}

/// Warns, once per session, if any role can read the keys.
pub(super) fn warn_of_readable_keys() {
    // A worker leaves the warning to the process that has started it.
    let is_worker = server::in_parallel_worker() || worker::is_worker();
    if !WERE_READABLE.get() || TOLD.get() || is_worker {
        return;
    }
    TOLD.set(true);
    error::readable_keys().warn();
}
