//! What must not be read in the server log: keys, and, where that is set, all literals.

mod key;
#[cfg(test)]
mod tests;

use std::collections::TryReserveError;
use std::ops::Range;

use key::{PIECE, is_piece_or_token, keys, name_end, runs};

use crate::fernet::is_base64;
use crate::pg::literal::{Syntax, literals, quoted};

/// What stands in the log for what is masked. It does not show how long that is.
const MASK: &[u8] = b"***";

/// Tells whether the name of the setting is in a text.
pub(super) fn is_named(text: &[u8]) -> bool {
    name_end(text).is_some()
}

/// Returns a text with its keys masked, or `None` if there is none in it. If the name of the setting is in
/// another text of the message, this is as strict as behind it, but for the literals of a statement.
pub(super) fn mask_keys(
    text: &[u8],
    syntax: Syntax,
    is_named_beside: bool,
) -> Result<Option<Vec<u8>>, TryReserveError> {
    let mut rest = Rest::of(text);
    rest.erase_keys(syntax, is_named_beside)?;
    rest.masked()
}

/// The same for keys and literals.
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

/// What stands for each byte that is masked. No text of a message has it.
const ERASED: u8 = 0;

/// What is left of a text.
struct Rest<'a> {
    text: &'a [u8],
    /// The text with what is masked erased, or nothing as long as nothing is. Of what is masked, this takes no
    /// more memory the more there is, or the more often it is found.
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
        let own = name_end(text);
        let named = own.or_else(|| is_named_beside.then_some(0));
        if let Some(named) = named {
            // Where an error has the name, the statement that it is about need not be about keys.
            let place = own.map_or(&text[..syntax.statement], |_| text);
            values(place, syntax, named, |value| self.erase(value))?;
        }
        keys(text, named).try_for_each(|key| self.erase(key))
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

/// Finds what is between quotes from where the setting is named, unless it is masked without that, or is a
/// token: between the characters of a key there may be anything, and a literal may come in pieces.
fn values(
    text: &[u8],
    syntax: Syntax,
    named: usize,
    mut found: impl FnMut(Range<usize>) -> Result<(), TryReserveError>,
) -> Result<(), TryReserveError> {
    let mut find = |mut value: Range<usize>| {
        value.start = value.start.max(named);
        let inside = text.get(value.clone()).unwrap_or_default();
        let is_last = |&byte: &u8| is_base64(byte) || byte == b'=';
        let first = inside.iter().position(|&byte| is_base64(byte));
        let last = inside.iter().rposition(is_last);
        value = value.start + first.unwrap_or(0)..value.start + last.map_or(0, |last| last + 1);
        let is_whole = !inside.eq_ignore_ascii_case(b"fernet.keys")
            && !runs(inside).all(|run| is_piece_or_token(&inside[run]));
        if is_whole { found(value) } else { Ok(()) }
    };
    literals(text, syntax, |literal| {
        // The body of a DO or of a function that has the name in it is code, with literals of its own.
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
    // As in `parameter "fernet.keys" changed to "…"`. In a message without the name, these are names.
    let is_value = |quoted: &Range<usize>| {
        let inside = &text[quoted.clone()];
        let chars = inside.iter().filter(|&&byte| is_base64(byte)).count();
        named > 0 && quoted.start >= named && chars >= PIECE && !is_named(inside)
    };
    quoted(text).filter(is_value).try_for_each(find)
}
