//! String literals in SQL and in messages about it, found by the rules of the server's own scanner.

mod read;

use std::collections::TryReserveError;
use std::iter;
use std::ops::Range;

use memchr::{memchr, memchr2, memmem};

use read::{FILLER, Reading, parameters, read};

/// How a text is to be read.
#[derive(Clone, Copy)]
pub(crate) struct Syntax {
    /// Where SQL begins; it then reaches to the end of the text. The text before it, or all of it, is a
    /// message in any language, and may have SQL in it.
    pub(crate) statement: usize,
    /// Whether `\` escapes a quote in every literal. It does not with
    /// `standard_conforming_strings`.
    pub(crate) has_escapes: bool,
}

/// Finds the contents of literals, including the parameters that the server logs, and the dollar-quoted
/// bodies of functions and DO. A literal without an end reaches to the end of the text.
///
/// If a text can be read in more than one way, finds the literals of all readings. So ranges may
/// overlap, and come in no order. Some are empty.
pub(crate) fn literals(
    text: &[u8],
    syntax: Syntax,
    found: impl FnMut(Range<usize>) -> Result<(), TryReserveError>,
) -> Result<(), TryReserveError> {
    let mut found = Found(found);
    let (told, statement) = text.split_at(syntax.statement);
    found.in_message(told)?;
    found.in_statement(statement, told.len(), syntax.has_escapes)
}

/// Receives what is found.
struct Found<F>(F);

impl<F: FnMut(Range<usize>) -> Result<(), TryReserveError>> Found<F> {
    /// The setting may have changed since the server read the statement. If so, the server has run the
    /// statement, and has found an end to each literal.
    fn in_statement(
        &mut self,
        text: &[u8],
        at: usize,
        has_escapes: bool,
    ) -> Result<(), TryReserveError> {
        self.add(read(text, Reading::sql(has_escapes)), at)?;
        self.if_all_end(text, at, !has_escapes)
    }

    /// SQL in a message may or may not be between double quotes, and may have double quotes of its own.
    /// In plans in JSON and YAML, its line breaks and backslashes are escaped. Some literals in a
    /// message may have escapes, but parameters never do. A value that the message quotes before them
    /// may have any quotes in it.
    fn in_message(&mut self, text: &[u8]) -> Result<(), TryReserveError> {
        if memchr2(b'\'', b'$', text).is_none() {
            return Ok(());
        }
        let text = &unescape_xml(text)?;
        let unescaped = unescape_json(text)?;
        self.add(parameters(text), 0)?;
        for has_escapes in [false, true] {
            for is_strict in [false, true] {
                let how = Reading {
                    is_sql: false,
                    is_strict,
                    has_escapes,
                };
                self.add(read(text, how), 0)?;
            }
            if let Some(quote) = memchr(b'"', text) {
                self.if_all_end(&text[quote + 1..], quote + 1, has_escapes)?;
            }
            for quoted in quoted(text) {
                self.if_all_end(&unescaped[quoted.clone()], quoted.start, has_escapes)?;
            }
        }
        Ok(())
    }

    /// Adds the literals of SQL, unless one of them has no end.
    fn if_all_end(
        &mut self,
        text: &[u8],
        at: usize,
        has_escapes: bool,
    ) -> Result<(), TryReserveError> {
        let read = || read(text, Reading::sql(has_escapes));
        if read().all(|literal| literal.end < text.len()) {
            self.add(read(), at)?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        literals: impl Iterator<Item = Range<usize>>,
        at: usize,
    ) -> Result<(), TryReserveError> {
        for literal in literals {
            (self.0)(at + literal.start..at + literal.end)?;
        }
        Ok(())
    }
}

/// Finds what is between double quotes as in JSON, where a quote after a backslash does not count.
pub(crate) fn quoted(text: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    iter::from_fn(move || {
        let start = at + memchr(b'"', text.get(at..)?)? + 1;
        let mut end = start;
        loop {
            match text.get(end..) {
                Some([b'\\', _, ..]) => end += 2,
                Some([b'"', ..]) | Some([]) | None => break,
                Some(_) => end += 1,
            }
        }
        let end = end.min(text.len());
        at = end + 1;
        Some(start..end)
    })
}

/// Replaces the escapes of JSON by what they mean, in place, so that nothing else moves.
fn unescape_json(text: &[u8]) -> Result<Vec<u8>, TryReserveError> {
    let mut unescaped = copy(text)?;
    let mut at = 0;
    while let Some(backslash) = text.get(at..).and_then(|rest| memchr(b'\\', rest)) {
        at += backslash;
        if let [escape, character, ..] = &mut unescaped[at..] {
            *escape = FILLER;
            match character {
                b'n' => *character = b'\n',
                b'r' => *character = b'\r',
                b't' | b'f' => *character = b' ',
                _ => {}
            }
        }
        at += 2;
    }
    Ok(unescaped)
}

/// Does the same for the escape that the server writes in XML for white space.
fn unescape_xml(text: &[u8]) -> Result<Vec<u8>, TryReserveError> {
    const RETURN: &[u8] = b"&#x0d;";
    let mut unescaped = copy(text)?;
    for at in memmem::find_iter(text, RETURN) {
        let escape = &mut unescaped[at..at + RETURN.len()];
        escape.fill(FILLER);
        escape[0] = b'\r';
    }
    Ok(unescaped)
}

fn copy(text: &[u8]) -> Result<Vec<u8>, TryReserveError> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(text.len())?;
    copy.extend_from_slice(text);
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The setting has changed since the server read the statement.
    #[test]
    fn statements_read_with_another_setting() {
        let ranges = |text: &str, has_escapes| {
            let syntax = Syntax {
                statement: 0,
                has_escapes,
            };
            let mut ranges = Vec::new();
            let found = |literal| {
                ranges.push(literal);
                Ok(())
            };
            literals(text.as_bytes(), syntax, found).expect("memory");
            ranges.sort_unstable_by_key(|range| range.start);
            ranges.dedup();
            ranges
        };
        // Every literal has an end either way: `a\'b` is a literal in one reading, `a\` in the
        // other.
        let old = r"SELECT 'a\'b''c'";
        for has_escapes in [false, true] {
            assert!(ranges(old, has_escapes).contains(&(8..15)), "{has_escapes}");
        }
        let new = r"SELECT 'a' LIKE $1 ESCAPE '\' ORDER BY 1, 'b' LIKE 'c' ESCAPE '\'";
        let exact: Vec<_> = read(new.as_bytes(), Reading::sql(false)).collect();
        assert_eq!(ranges(new, false), exact);
    }
}
