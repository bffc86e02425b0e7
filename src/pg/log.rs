//! The server log: masks messages, and the statements behind them, before they are written.

use std::cell::Cell;
use std::collections::TryReserveError;
use std::ffi::{CStr, c_char};
use std::{array, mem, ptr, thread};

use memchr::memchr;
use pgrx::prelude::*;

use super::literal::Syntax;

/// How to mask. Called in every server process, even while an error is being handled: it must neither
/// call the server nor panic.
#[derive(Clone, Copy)]
pub(crate) struct Masking {
    /// Tells whether a text is about secrets. If it is, all other texts of the message are masked
    /// more strictly.
    pub(crate) is_about_secrets: fn(&[u8]) -> bool,
    /// Returns what is logged in place of a text, or `None` to log the text itself. The last
    /// argument says whether another text of the message is about secrets.
    pub(crate) mask: fn(&[u8], Syntax, bool) -> Replacement,
}

pub(crate) type Replacement = Result<Option<Vec<u8>>, TryReserveError>;

/// What is logged if there is no memory for anything else.
const NO_MEMORY: &CStr = c"(not logged: no memory to mask it)";

thread_local! {
    static MASKING: Cell<fn() -> Option<Masking>> = const { Cell::new(|| None) };
    /// The hook of a library that was loaded earlier.
    static PREVIOUS: Cell<pg_sys::emit_log_hook_type> = const { Cell::new(None) };
    /// The message that the server is logging right now, masked.
    static MASKED: Cell<*mut pg_sys::ErrorData> = const { Cell::new(ptr::null_mut()) };
}

/// Has every message masked before it is written to the server log in any format, if `masking` then
/// returns a `Masking`. What the client gets is not changed. Called once in a process, or in the
/// postmaster for all processes.
pub(crate) fn mask_messages(masking: fn() -> Option<Masking>) {
    MASKING.set(masking);
    // SAFETY: a global that only this process changes.
    unsafe {
        PREVIOUS.set(pg_sys::emit_log_hook);
        pg_sys::emit_log_hook = Some(emit_log);
    }
}

/// The server calls this with the message that it is about to log. Afterwards it logs the message, if
/// that is still to be logged. Since it then sends the same message to the client and frees it, nothing
/// in it may change permanently. So if there is something to mask, this function has the server log the
/// message, masked for that long. The server then calls all hooks again: hooks of libraries that were
/// loaded earlier see only the masked message, and hooks of later ones see both.
#[pg_guard]
unsafe extern "C-unwind" fn emit_log(error: *mut pg_sys::ErrorData) {
    // SAFETY: the server passes the top of its stack of errors.
    if let Some(masked) = unsafe { Masked::new(error) } {
        // SAFETY: no arguments. It logs the top of the stack.
        unsafe { pg_sys::EmitErrorReport() };
        drop(masked);
        // SAFETY: it is still there.
        unsafe { (*error).output_to_server = false };
    } else if let Some(previous) = PREVIOUS.get() {
        // SAFETY: another hook of this kind.
        unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| previous(error)) };
    }
}

/// How many texts a message has: message, detail, detail for the log, hint, context, internal query, and
/// the running statement.
const TEXTS: usize = 7;
const MESSAGE: usize = 0;
const DETAIL: usize = 1;
const INTERNAL_QUERY: usize = 5;
const STATEMENT: usize = 6;

/// A message whose texts are masked until this is dropped. Until then, nothing of it is sent to the
/// client.
struct Masked {
    error: *mut pg_sys::ErrorData,
    originals: [*const c_char; TEXTS],
    /// The texts that replace the originals.
    _masked: [Option<Vec<u8>>; TEXTS],
    output_to_client: bool,
    /// The message during which a hook or the server logs this one.
    outer: *mut pg_sys::ErrorData,
}

impl Masked {
    /// Returns `None` if there is nothing to mask, or it is masked already.
    ///
    /// # Safety
    /// `error` must be on the stack of errors, with its texts, as long as the result exists.
    unsafe fn new(error: *mut pg_sys::ErrorData) -> Option<Self> {
        // SAFETY: see above.
        if unsafe { !(*error).output_to_server } || error == MASKED.get() {
            return None;
        }
        let masking = MASKING.get()()?;
        // SAFETY: see above. Texts are C strings.
        let (originals, contents, syntaxes) = unsafe {
            let originals = texts(error);
            let contents = originals.map(|text| bytes(text));
            (originals, contents, syntaxes(error, &contents))
        };
        let are_about_secrets = contents.map(masking.is_about_secrets);
        let mut masked = [const { None }; TEXTS];
        for at in 0..TEXTS {
            let is_beside = (0..TEXTS).any(|other| other != at && are_about_secrets[other]);
            masked[at] =
                match (masking.mask)(contents[at], syntaxes[at], is_beside).and_then(terminated) {
                    Ok(masked) => masked,
                    // An empty vector marks the text that needs no memory.
                    Err(_) => Some(Vec::new()),
                };
        }
        if masked.iter().all(Option::is_none) {
            return None;
        }
        let replacements: [*const c_char; TEXTS] = array::from_fn(|at| match &masked[at] {
            None => originals[at],
            Some(text) if text.is_empty() => NO_MEMORY.as_ptr(),
            Some(text) => text.as_ptr().cast(),
        });
        // SAFETY: C strings; those that are ours live as long as `masked`.
        let output_to_client = unsafe {
            set_texts(error, replacements);
            mem::replace(&mut (*error).output_to_client, false)
        };
        Some(Self {
            error,
            originals,
            _masked: masked,
            output_to_client,
            outer: MASKED.replace(error),
        })
    }
}

impl Drop for Masked {
    fn drop(&mut self) {
        // SAFETY: the stack of errors is a static array.
        unsafe {
            set_texts(self.error, self.originals);
            (*self.error).output_to_client = self.output_to_client;
            if thread::panicking() {
                // There was no memory to log the message. The next message says so, and must need
                // less memory.
                pg_sys::debug_query_string = ptr::null();
            }
        }
        MASKED.set(self.outer);
    }
}

/// Makes a masked text a C string.
fn terminated(masked: Option<Vec<u8>>) -> Replacement {
    let Some(mut text) = masked else {
        return Ok(None);
    };
    text.try_reserve_exact(1)?;
    text.push(0);
    Ok(Some(text))
}

/// # Safety
/// `error` must be valid.
unsafe fn texts(error: *const pg_sys::ErrorData) -> [*const c_char; TEXTS] {
    // SAFETY: see above; a global that only this process changes.
    unsafe {
        [
            (*error).message,
            (*error).detail,
            (*error).detail_log,
            (*error).hint,
            (*error).context,
            (*error).internalquery,
            // The statement is not logged with all messages.
            if (*error).hide_stmt {
                ptr::null_mut()
            } else {
                pg_sys::debug_query_string.cast_mut()
            },
        ]
        .map(<*mut c_char>::cast_const)
    }
}

/// # Safety
/// `error` must be valid.
unsafe fn set_texts(error: *mut pg_sys::ErrorData, texts: [*const c_char; TEXTS]) {
    let [message, detail, detail_log, hint, context, query, statement] =
        texts.map(<*const c_char>::cast_mut);
    // SAFETY: see above; a global that only this process changes.
    unsafe {
        (*error).message = message;
        (*error).detail = detail;
        (*error).detail_log = detail_log;
        (*error).hint = hint;
        (*error).context = context;
        (*error).internalquery = query;
        if !(*error).hide_stmt {
            pg_sys::debug_query_string = statement;
        }
    }
}

/// Returns the bytes of a text, or none if it is null.
///
/// # Safety
/// `text` must be null, or a C string that outlives the result.
unsafe fn bytes<'a>(text: *const c_char) -> &'a [u8] {
    if text.is_null() {
        return &[];
    }
    // SAFETY: see above.
    unsafe { CStr::from_ptr(text) }.to_bytes()
}

/// Tells how the texts are to be read. A message that logs a statement ends with it, whether the
/// statement is a simple one, or is prepared or executed under a name. If a simple statement is an
/// EXECUTE, the detail has the prepared statement, after a word in the language of the log.
///
/// # Safety
/// `error` must be valid, and its message's identifier null or a C string. So must the running
/// statement.
unsafe fn syntaxes(error: *const pg_sys::ErrorData, texts: &[&[u8]; TEXTS]) -> [Syntax; TEXTS] {
    // SAFETY: see above; a global that only this process changes.
    let (message, statement) = unsafe {
        (
            bytes((*error).message_id),
            bytes(pg_sys::debug_query_string),
        )
    };
    // From 19 on, it cannot be turned off.
    // SAFETY: another such global.
    #[cfg(not(feature = "pg19"))]
    let has_escapes = unsafe { !pg_sys::standard_conforming_strings };
    #[cfg(feature = "pg19")]
    let has_escapes = false;
    array::from_fn(|at| Syntax {
        statement: match at {
            MESSAGE if texts[at].ends_with(statement) => texts[at].len() - statement.len(),
            DETAIL if message.ends_with(b"statement: %s") => {
                memchr(b':', texts[at]).unwrap_or_default()
            }
            INTERNAL_QUERY | STATEMENT => 0,
            _ => texts[at].len(),
        },
        has_escapes,
    })
}
