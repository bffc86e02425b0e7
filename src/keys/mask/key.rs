//! What has the form of a key or of a piece of a key, and the name of the setting.

use std::iter;
use std::ops::Range;

use memchr::memmem;

use crate::fernet::is_base64;

/// How many characters a key has in base64, without its padding.
pub(super) const KEY: usize = 43;
/// How many characters a piece of a key must have to be of use to an attacker.
pub(super) const PIECE: usize = 12;
/// The least number of characters in a token, and the start of one.
const TOKEN: usize = 98;
const VERSION: &[u8] = b"gAAAA";
/// What the server puts in place of what it cuts off.
const CUT: &[u8] = b"...";

/// Returns the position after the name of the setting, if a text has it.
pub(super) fn name_end(text: &[u8]) -> Option<usize> {
    runs(text)
        .find(|run| is_name(text, run))
        .map(|name| name.end)
}

/// Finds what has the form of a key, with or without its padding, and pieces of keys that are cut short.
/// If the setting is named, as in `SET fernet.keys = '…'`, also finds other pieces, such as those of a
/// mistyped key.
pub(super) fn keys(text: &[u8], is_named: bool) -> impl Iterator<Item = Range<usize>> {
    runs(text).filter_map(move |run| {
        let start = run.start + escape_len(text, &run);
        let padding = text[run.end..].iter().take_while(|&&byte| byte == b'=');
        let padding = padding.count();
        let end = run.end + padding.min(1);
        let key = &text[start..run.end];
        let is_cut = text[end..].starts_with(CUT) || text[..start].ends_with(CUT);
        let is_found = is_key(key)
            || padding == 1 && ends_with_key(key)
            || is_named && is_piece(key)
            || is_cut && is_piece(key) && !key.starts_with(VERSION);
        is_found.then_some(start..end)
    })
}

/// Finds the runs of base64, each as long as possible. A slash in a run may be written `\/`, as in JSON,
/// or with more backslashes, as in JSON within JSON.
pub(super) fn runs(text: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    iter::from_fn(move || {
        let start = at + text[at..].iter().position(|&byte| is_base64(byte))?;
        at = start;
        loop {
            let backslashes = text[at..].iter().take_while(|&&byte| byte == b'\\').count();
            match text.get(at + backslashes) {
                Some(b'/') => at += backslashes + 1,
                Some(&byte) if backslashes == 0 && is_base64(byte) => at += 1,
                _ => return Some(start..at),
            }
        }
    })
}

/// Tells whether a run is the second part of the name `fernet.keys`, and not part of a file's name.
/// There may be quotes and blanks between the parts.
fn is_name(text: &[u8], run: &Range<usize>) -> bool {
    const PREFIX: &[u8] = b"fernet";
    let trim = |text: &[u8]| {
        let is_between = |&&byte: &&u8| byte.is_ascii_whitespace() || matches!(byte, b'"' | b'\\');
        text.len() - text.iter().rev().take_while(is_between).count()
    };
    text[run.clone()].eq_ignore_ascii_case(b"keys")
        && text[..trim(&text[..run.start])]
            .strip_suffix(b".")
            .map(|before| &before[..trim(before)])
            .and_then(|before| before.split_at_checked(before.len().wrapping_sub(PREFIX.len())))
            .is_some_and(|(before, prefix)| {
                prefix.eq_ignore_ascii_case(PREFIX) && !before.ends_with(b"/")
            })
}

/// Returns how many characters of a run belong to the escape before a key, such as `\n`, `\u0022`
/// or `%3D`.
fn escape_len(text: &[u8], run: &Range<usize>) -> usize {
    let len = chars(&text[run.clone()]).count().saturating_sub(KEY);
    let are_hex = |bytes: &[u8]| bytes.iter().all(u8::is_ascii_hexdigit);
    let is_escape = match (text[..run.start].last(), &text[run.start..run.start + len]) {
        (Some(b'\\'), [_, digits @ ..]) => matches!(digits.len(), 0..=2 | 4 | 8) && are_hex(digits),
        (Some(b'%'), digits) => digits.len() == 2 && are_hex(digits),
        _ => false,
    };
    let is_before_key = is_escape && is_key(&text[run.start + len..run.end]);
    if is_before_key { len } else { 0 }
}

/// Tells whether a run is as long as a key and has both lower- and upper-case letters. All but one of a
/// billion keys have both, and few names of that length do.
fn is_key(run: &[u8]) -> bool {
    chars(run).count() == KEY && has_both_cases(run)
}

/// Tells whether the run before a single `=` is a key with more before it, as in `https://vault/v1/…`:
/// base64 of the run's whole length would not have that padding. A run with a token in it is none.
fn ends_with_key(run: &[u8]) -> bool {
    let len = chars(run).count();
    len > KEY && len % 4 != KEY % 4 && has_both_cases(run) && memmem::find(run, VERSION).is_none()
}

fn has_both_cases(run: &[u8]) -> bool {
    run.iter().any(u8::is_ascii_lowercase) && run.iter().any(u8::is_ascii_uppercase)
}

/// Tells whether a run may be part of a key, and is neither words nor a token.
fn is_piece(run: &[u8]) -> bool {
    let is_token = chars(run).count() >= TOKEN && run.starts_with(VERSION);
    is_piece_or_token(run) && !is_token
}

/// Tells whether a run is long enough to be part of a key, and is not words.
pub(super) fn is_piece_or_token(run: &[u8]) -> bool {
    chars(run).count() >= PIECE && !is_words(run)
}

fn is_words(run: &[u8]) -> bool {
    let all = |is_letter: fn(&u8) -> bool| {
        chars(run).all(|byte| is_letter(byte) || matches!(byte, b'_' | b'-'))
    };
    all(u8::is_ascii_lowercase) || all(u8::is_ascii_uppercase)
}

/// Returns the characters without the backslashes that escape a slash.
fn chars(run: &[u8]) -> impl Iterator<Item = &u8> {
    run.iter().filter(|&&byte| byte != b'\\')
}
