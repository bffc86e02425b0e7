//! One way to read a text: as the server's own scanner does, or more loosely.

use std::iter;
use std::ops::Range;

use memchr::{memchr, memchr2, memmem};

/// What stands for the rest of an escape. No text of a message has it.
pub(super) const FILLER: u8 = 0;

/// One way to read a text.
#[derive(Clone, Copy)]
pub(super) struct Reading {
    /// As SQL, any quote begins a literal. Else one behind a word is an apostrophe.
    pub(super) is_sql: bool,
    /// What is between double quotes is a name, and no literal begins in it or in a comment.
    pub(super) is_strict: bool,
    pub(super) has_escapes: bool,
}

impl Reading {
    pub(super) fn sql(has_escapes: bool) -> Self {
        Self {
            is_sql: true,
            is_strict: true,
            has_escapes,
        }
    }
}

/// Finds the literals of one reading in their order, empty ones, too.
pub(super) fn read(text: &[u8], how: Reading) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    // Whether there are escapes in the literal that goes on here.
    let mut goes_on = None;
    // Where the last search for what goes on has failed. One from any place before that fails there, too.
    // Without this, each literal in a comment that is not seen as one would be a search of its rest.
    let mut searched = 0;
    iter::from_fn(move || {
        loop {
            let rest = text.get(at..).filter(|rest| !rest.is_empty())?;
            let token = match goes_on.take() {
                Some(has_escapes) => Token::Quote(1, has_escapes),
                None => token(rest, how),
            };
            match token {
                Token::Other(len) => at += len,
                Token::Quote(len, has_escapes) => {
                    let start = at + len;
                    let end = start + quoted_len(&text[start..], has_escapes);
                    at = end + 1;
                    if at >= searched {
                        match gap_len(text.get(at..).unwrap_or_default()) {
                            Ok(gap) => (at, goes_on) = (at + gap, Some(has_escapes)),
                            Err(gap) => searched = at + gap,
                        }
                    }
                    return Some(start..end);
                }
                Token::Dollars(len) => {
                    let content = &rest[len..];
                    let content_len = memmem::find(content, &rest[..len]).unwrap_or(content.len());
                    let start = at + len;
                    at = start + content_len + len;
                    return Some(start..start + content_len);
                }
            }
        }
    })
}

/// Finds the values of parameters, as the server logs them, wherever they stand: `$1 = '…'`.
pub(super) fn parameters(text: &[u8]) -> impl Iterator<Item = Range<usize>> {
    const OPENING: &[u8] = b" = '";
    let is_named = |&at: &usize| {
        let mut name = text[..at].iter().rev();
        name.find(|byte| !byte.is_ascii_digit()) == Some(&b'$')
    };
    memmem::find_iter(text, OPENING).filter(is_named).map(|at| {
        let start = at + OPENING.len();
        start..start + quoted_len(&text[start..], false)
    })
}

enum Token {
    /// What opens a literal, of that length, and whether there are escapes in it.
    Quote(usize, bool),
    /// The same for one between dollars.
    Dollars(usize),
    Other(usize),
}

/// Tells what a text begins with. It must not be empty.
fn token(text: &[u8], how: Reading) -> Token {
    match text {
        [b'\'', ..] => Token::Quote(1, how.has_escapes),
        [b'e' | b'E', b'\'', ..] => Token::Quote(2, true),
        [b'b' | b'B' | b'x' | b'X', b'\'', ..] => Token::Quote(2, false),
        // Not `n`, which is an apostrophe's in French.
        [b'N', b'\'', ..] => Token::Quote(2, how.has_escapes),
        [b'$', ..] => delimiter_len(text).map_or(Token::Other(1), Token::Dollars),
        [b'"', name @ ..] if how.is_strict => {
            Token::Other(2 + memchr(b'"', name).unwrap_or(name.len()))
        }
        [b'-', b'-', ..] if how.is_strict => Token::Other(line_len(text)),
        [b'/', b'*', ..] if how.is_strict => Token::Other(comment_len(text)),
        [first, ..] if is_word(*first) => {
            let len = if first.is_ascii_digit() {
                // A `$` behind a number is none of a name's.
                text.iter().take_while(|byte| byte.is_ascii_digit()).count()
            } else {
                let is_name = |&&byte: &&u8| is_word(byte) || byte == b'$';
                text.iter().take_while(is_name).count()
            };
            let is_apostrophe = !how.is_sql && text.get(len) == Some(&b'\'');
            Token::Other(len + usize::from(is_apostrophe))
        }
        _ => Token::Other(1),
    }
}

/// Returns the length of what a quote has opened, up to the one that closes it. Two quotes are one in it.
fn quoted_len(content: &[u8], has_escapes: bool) -> usize {
    let mut at = 0;
    loop {
        match content.get(at..) {
            Some([b'\'', b'\'', ..]) => at += 2,
            Some([b'\\', FILLER, _, ..]) if has_escapes => at += 3,
            Some([b'\\', _, ..]) if has_escapes => at += 2,
            Some([b'\'', ..]) => return at,
            Some([_, ..]) => at += 1,
            _ => return content.len(),
        }
    }
}

/// Returns how far behind a literal the quote is with which it goes on, if it does: on another line. Else
/// how far there is no such quote.
fn gap_len(text: &[u8]) -> Result<usize, usize> {
    let (mut at, mut is_line_over) = (0, false);
    loop {
        match text.get(at..) {
            Some([b'\n' | b'\r', ..]) => (at, is_line_over) = (at + 1, true),
            Some([b' ' | b'\t' | b'\x0b' | b'\x0c' | FILLER, ..]) => at += 1,
            Some(comment @ [b'-', b'-', ..]) => at += line_len(comment),
            Some([b'\'', ..]) if is_line_over => return Ok(at),
            _ => return Err(at),
        }
    }
}

/// Returns the length of what opens and closes a literal between dollars, if the text begins with it.
fn delimiter_len(text: &[u8]) -> Option<usize> {
    let len = 1 + text[1..].iter().take_while(|&&byte| is_word(byte)).count();
    (text.get(len) == Some(&b'$') && !text[1].is_ascii_digit()).then_some(len + 1)
}

/// Returns the length of a line, without what ends it.
fn line_len(text: &[u8]) -> usize {
    memchr2(b'\n', b'\r', text).unwrap_or(text.len())
}

/// Returns the length of the comment that a text begins with. Comments nest.
fn comment_len(text: &[u8]) -> usize {
    let (mut at, mut depth) = (0, 0);
    loop {
        match text.get(at..) {
            Some([b'/', b'*', ..]) => (at, depth) = (at + 2, depth + 1),
            Some([b'*', b'/', ..]) => (at, depth) = (at + 2, depth - 1),
            Some([_, ..]) => at += 1,
            _ => return text.len(),
        }
        if depth == 0 {
            return at;
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one reading finds.
    fn found(text: &str, how: Reading) -> Vec<&str> {
        let ranges = read(text.as_bytes(), how).filter(|range| !range.is_empty());
        ranges.map(|range| &text[range]).collect()
    }

    const MESSAGE: Reading = Reading {
        is_sql: false,
        is_strict: false,
        has_escapes: false,
    };

    #[test]
    fn statements() {
        for (text, expected) in [
            (
                "SELECT 'a', E'b', N'c', U&'d', x'ff'",
                &["a", "b", "c", "d", "ff"][..],
            ),
            ("SELECT'a'", &["a"]),
            ("SELECT 'it''s', '', 'b'", &["it''s", "b"]),
            (
                r"SELECT 'a\', 'b', e'c\'d', 'e'",
                &[r"a\", "b", r"c\'d", "e"],
            ),
            ("SELECT 'a' 'b'\n'c'", &["a", "b", "c"]),
            // What no literal begins in.
            (r#"SELECT "it's", 'a' AS "b""#, &["a"]),
            (r#"SELECT "a"" 'b", 'c'"#, &["c"]),
            ("-- don't\nSELECT 'a'", &["a"]),
            ("-- don't\rSELECT 'a'", &["a"]),
            ("/* don't /* nest */ it's */ SELECT 'a'", &["a"]),
            ("SELECT 1 - -1, 2 / 3, 'a'", &["a"]),
            // Dollars.
            ("DO $$ a 'b' $$; SELECT 'c'", &[" a 'b' ", "c"]),
            (
                "SELECT $x$a$$b$x$, $1, a$b$, 'c', $ü$d$ü$",
                &["a$$b", "c", "d"],
            ),
            ("SELECT $1$2, 'a'", &["a"]),
            ("SELECT $1$$a$$, 1$$b$$", &["a", "b"]),
            ("SELECT a$$b$$, 'c', a$e'd\\', 'e'", &["c", "d\\", "e"]),
            // On more than one line.
            ("SELECT E'a'\n'b\\'c', 'd'", &["a", r"b\'c", "d"]),
            (
                "SELECT e'a' -- it's\r\n\t--\n'b\\'c'\r'\\'d'",
                &["a", r"b\'c", r"\'d"],
            ),
            ("SELECT e'a' 'b\\', 'c'", &["a", r"b\", "c"]),
            ("SELECT e'a' /*\n*/ 'b\\', 'c'", &["a", r"b\", "c"]),
            ("SELECT E''\n'b\\'c'", &[r"b\'c"]),
            // Cut short, or at an end.
            ("SELECT 'a", &["a"]),
            ("SELECT 'a''", &["a''"]),
            ("SELECT e'a\\", &["a\\"]),
            ("SELECT $$a$", &["a$"]),
            ("SELECT $", &[]),
            ("SELECT '", &[]),
            ("SELECT \"a", &[]),
            ("/* a", &[]),
            ("", &[]),
        ] {
            assert_eq!(found(text, Reading::sql(false)), expected, "{text}");
        }
    }

    #[test]
    fn statements_with_escapes() {
        for (text, expected) in [
            (r"SELECT 'a\'b', N'\'', 'c'", &[r"a\'b", r"\'", "c"][..]),
            (r"SELECT x'a\', b'b\', 'c'", &[r"a\", r"b\", "c"]),
        ] {
            assert_eq!(found(text, Reading::sql(true)), expected, "{text}");
        }
    }

    #[test]
    fn messages() {
        for (text, expected) in [
            (
                "parameters: $1 = 'a', $2 = NULL, $3 = 'it''s'",
                &["a", "it''s"][..],
            ),
            ("unnamed portal with parameters: $1 = 'a...'", &["a..."]),
            (r#"SQL statement "SELECT 'a', e'b\'c'""#, &["a", r"b\'c"]),
            (r#"la relation « x » n'existe pas, l'autre: 'a'"#, &["a"]),
            ("Process 1: SELECT 'a'\nProcess 2: DO $$b$$", &["a", "b"]),
            (r#"syntax error at or near "'a""#, &[r#"a""#]),
        ] {
            assert_eq!(found(text, MESSAGE), expected, "{text}");
        }
    }
}
