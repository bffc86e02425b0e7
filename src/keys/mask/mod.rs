//! What the server log must not show: keys and, with `literals`, all literals.

mod key;
#[cfg(test)]
mod tests;

use std::collections::TryReserveError;
use std::ops::Range;

use key::{PIECE, is_piece_or_token, keys, name_end, runs};

use crate::fernet::is_base64;
use crate::pg::literal::{Syntax, literals, quoted};

/// Replaces in the log what is masked, whatever its length.
const MASK: &[u8] = b"***";

/// Tells whether a text has the name of the setting.
pub(super) fn is_named(text: &[u8]) -> bool {
    name_end(text).is_some()
}

/// Returns a text with its keys masked, or `None` if it has no keys. If the name of the setting is in
/// the text or in another text of the message, pieces of keys are masked, too.
pub(super) fn mask_keys(
    text: &[u8],
    syntax: Syntax,
    is_named_beside: bool,
) -> Result<Option<Vec<u8>>, TryReserveError> {
    let mut rest = Rest::of(text);
    rest.erase_keys(syntax, is_named_beside)?;
    rest.masked()
}

/// Does the same for keys and literals.
pub(super) fn mask_literals(
    text: &[u8],
    syntax: Syntax,
    is_named_beside: bool,
) -> Result<Option<Vec<u8>>, TryReserveError> {
    let mut rest = Rest::of(text);
    literals(text, syntax, |literal| rest.erase(literal))?;
    rest.erase_keys(syntax, is_named_beside)?;
    rest.masked()
}

/// Replaces each byte that is masked. No text of a message has it.
const ERASED: u8 = 0;

/// A text with some of its bytes erased.
struct Rest<'a> {
    text: &'a [u8],
    /// The text with what is masked erased, or empty while nothing is. Its size does not depend on how
    /// much is found, or how often.
    rest: Vec<u8>,
}

impl<'a> Rest<'a> {
    fn of(text: &'a [u8]) -> Self {
        let rest = Vec::new();
        Self { text, rest }
    }

    fn erase(&mut self, range: Range<usize>) -> Result<(), TryReserveError> {
        if range.is_empty() {
            return Ok(());
        }
        if self.rest.is_empty() {
            self.rest.try_reserve_exact(self.text.len())?;
            self.rest.extend_from_slice(self.text);
        }
        self.rest[range].fill(ERASED);
        Ok(())
    }

    fn erase_keys(&mut self, syntax: Syntax, is_named_beside: bool) -> Result<(), TryReserveError> {
        let text = self.text;
        let name_end = name_end(text);
        let is_named = is_named_beside || name_end.is_some();
        if is_named {
            values(text, syntax, name_end, |value| self.erase(value))?;
        }
        keys(text, is_named).try_for_each(|key| self.erase(key))
    }

    fn masked(self) -> Result<Option<Vec<u8>>, TryReserveError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let mut masked = Vec::new();
        let are_alike = |&one: &u8, &other: &u8| (one == ERASED) == (other == ERASED);
        for part in self.rest.chunk_by(are_alike) {
            let part = if part[0] == ERASED { MASK } else { part };
            masked.try_reserve(part.len())?;
            masked.extend_from_slice(part);
        }
        Ok(Some(masked))
    }
}

/// Finds what is between quotes, unless it is masked anyway or is a token: there may be anything between
/// the characters of a key, and a literal may come in pieces. In a statement that has the name, looks
/// only after the name; a statement without the name need not be about keys.
fn values(
    text: &[u8],
    syntax: Syntax,
    name_end: Option<usize>,
    mut found: impl FnMut(Range<usize>) -> Result<(), TryReserveError>,
) -> Result<(), TryReserveError> {
    let (place, named) = match name_end {
        Some(name_end) => (text, name_end),
        None => (&text[..syntax.statement], 0),
    };
    let mut find = |mut value: Range<usize>| {
        if value.end >= named || value.start >= syntax.statement {
            value.start = value.start.max(named);
        }
        let inside = text.get(value.clone()).unwrap_or_default();
        let is_last = |&byte: &u8| is_base64(byte) || byte == b'=';
        let first = inside.iter().position(|&byte| is_base64(byte));
        let last = inside.iter().rposition(is_last);
        value = value.start + first.unwrap_or(0)..value.start + last.map_or(0, |last| last + 1);
        let is_whole = !inside.eq_ignore_ascii_case(b"fernet.keys")
            && !runs(inside).all(|run| is_piece_or_token(&inside[run]));
        if is_whole { found(value) } else { Ok(()) }
    };
    literals(place, syntax, |literal| {
        // If the body of a DO or of a function has the name in it, it is code with literals of its
        // own.
        let is_body = literal.contains(&named)
            && literal.start >= syntax.statement
            && text[..literal.start].ends_with(b"$");
        if !is_body {
            return find(literal);
        }
        let syntax = Syntax {
            statement: 0,
            ..syntax
        };
        literals(&text[literal.clone()], syntax, |inside| {
            find(literal.start + inside.start..literal.start + inside.end)
        })
    })?;
    // As in `parameter "fernet.keys" changed to "…"`. In a message without the name, what is in
    // double quotes is a name.
    let is_value = |quoted: &Range<usize>| {
        let inside = &text[quoted.clone()];
        let chars = inside.iter().filter(|&&byte| is_base64(byte)).count();
        quoted.start >= named && chars >= PIECE && !is_named(inside)
    };
    match name_end {
        Some(_) => quoted(text).filter(is_value).try_for_each(find),
        None => Ok(()),
    }
}
