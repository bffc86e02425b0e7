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
    mask(text, syntax, is_named_beside, Vec::new())
}

/// The same for keys and literals.
pub(super) fn mask_literals(
    text: &[u8],
    syntax: Syntax,
    is_named_beside: bool,
) -> Result<Option<Vec<u8>>, TryReserveError> {
    mask(text, syntax, is_named_beside, literals(text, syntax)?)
}

/// Masks keys, and other ranges.
fn mask(
    text: &[u8],
    syntax: Syntax,
    is_named_beside: bool,
    mut ranges: Vec<Range<usize>>,
) -> Result<Option<Vec<u8>>, TryReserveError> {
    let own = name_end(text);
    let named = own.or_else(|| is_named_beside.then_some(0));
    if let Some(named) = named {
        // Where an error has the name, the statement that it is about need not be about keys.
        let place = own.map_or(&text[..syntax.statement], |_| text);
        add(&mut ranges, values(place, syntax, named)?)?;
    }
    add(&mut ranges, keys(text, named))?;
    ranges.sort_unstable_by_key(|range| range.start);
    replace(text, &ranges)
}

/// Finds what is between quotes from where the setting is named, unless it is masked without that, or is a
/// token: between the characters of a key there may be anything, and a literal may come in pieces.
fn values(text: &[u8], syntax: Syntax, named: usize) -> Result<Vec<Range<usize>>, TryReserveError> {
    let mut found = literals(text, syntax)?;
    // The body of a DO or of a function that has the name in it is code, with literals of its own.
    let is_body = |literal: &&Range<usize>| {
        literal.contains(&named)
            && literal.start >= syntax.statement
            && text[..literal.start].ends_with(b"$")
    };
    if let Some(body) = found.iter().find(is_body).cloned() {
        let syntax = Syntax {
            statement: 0,
            ..syntax
        };
        let inside = literals(&text[body.clone()], syntax)?.into_iter();
        found.retain(|literal| *literal != body);
        let at = body.start;
        add(
            &mut found,
            inside.map(|literal| at + literal.start..at + literal.end),
        )?;
    }
    // As in `parameter "fernet.keys" changed to "…"`. In a message without the name, these are names.
    let is_value = |quoted: &Range<usize>| {
        let inside = &text[quoted.clone()];
        let chars = inside.iter().filter(|&&byte| is_base64(byte)).count();
        named > 0 && quoted.start >= named && chars >= PIECE && !is_named(inside)
    };
    add(&mut found, quoted(text).filter(is_value))?;
    found.retain_mut(|value| {
        value.start = value.start.max(named);
        let inside = text.get(value.clone()).unwrap_or_default();
        let is_last = |&byte: &u8| is_base64(byte) || byte == b'=';
        let first = inside.iter().position(|&byte| is_base64(byte));
        let last = inside.iter().rposition(is_last);
        *value = value.start + first.unwrap_or(0)..value.start + last.map_or(0, |last| last + 1);
        !inside.eq_ignore_ascii_case(b"fernet.keys")
            && !runs(inside).all(|run| is_piece_or_token(&inside[run]))
    });
    Ok(found)
}

fn add(
    ranges: &mut Vec<Range<usize>>,
    more: impl IntoIterator<Item = Range<usize>>,
) -> Result<(), TryReserveError> {
    for range in more {
        ranges.try_reserve(1)?;
        ranges.push(range);
    }
    Ok(())
}

/// Ranges are in the order in which they start, and may overlap.
fn replace(text: &[u8], ranges: &[Range<usize>]) -> Result<Option<Vec<u8>>, TryReserveError> {
    let mut replaced = Vec::new();
    let mut copied = 0;
    for range in ranges {
        if range.start >= copied {
            for part in [&text[copied..range.start], MASK] {
                replaced.try_reserve(part.len())?;
                replaced.extend_from_slice(part);
            }
        }
        copied = copied.max(range.end);
    }
    if copied == 0 {
        return Ok(None);
    }
    replaced.try_reserve(text.len() - copied)?;
    replaced.extend_from_slice(&text[copied..]);
    Ok(Some(replaced))
}
