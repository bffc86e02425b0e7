//! One way of reading a text: as the server's own scanner does, or more loosely.

use std::iter;
use std::ops::Range;

use memchr::{memchr, memchr2, memmem};

/// Takes the place of the rest of an escape. No text of a message has it.
pub(super) const FILLER: u8 = 0;

/// One way of reading a text.
#[derive(Clone, Copy)]
pub(super) struct Reading {
    /// Whether any quote begins a literal, as in SQL. Otherwise, a quote after a word is an
    /// apostrophe.
    pub(super) is_sql: bool,
    /// Whether text between double quotes is a name. No literal begins in it, nor in a comment.
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

/// Finds the literals of one reading, in order, including empty ones.
pub(super) fn read(text: &[u8], how: Reading) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    // Whether the literal that continues here has escapes.
    let mut goes_on = None;
    // Where the last search for a continuation has failed. A search from any place before that fails
    // there, too. Without this, each literal in a comment that is not read as one would cause a search
    // of the rest of the comment.
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

/// Finds the values of parameters as the server logs them, wherever they are: `$1 = '…'`.
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
    /// The opening of a literal: its length, and whether the literal has escapes.
    Quote(usize, bool),
    /// The opening of a dollar-quoted literal: its length.
    Dollars(usize),
    Other(usize),
}

/// Returns the token at the start of a text, which must not be empty.
fn token(text: &[u8], how: Reading) -> Token {
    match text {
        [b'\'', ..] => Token::Quote(1, how.has_escapes),
        [b'e' | b'E', b'\'', ..] => Token::Quote(2, true),
        [b'b' | b'B' | b'x' | b'X', b'\'', ..] => Token::Quote(2, false),
        // Not `n`, which precedes an apostrophe in French.
        [b'N', b'\'', ..] => Token::Quote(2, how.has_escapes),
        [b'$', ..] => delimiter_len(text).map_or(Token::Other(1), Token::Dollars),
        [b'"', name @ ..] if how.is_strict => {
            Token::Other(2 + memchr(b'"', name).unwrap_or(name.len()))
        }
        [b'-', b'-', ..] if how.is_strict => Token::Other(line_len(text)),
        [b'/', b'*', ..] if how.is_strict => Token::Other(comment_len(text)),
        [first, ..] if is_word(*first) => {
            let len = if first.is_ascii_digit() {
                // A `$` after a number is not part of a name.
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

/// Returns the length of a literal's content, up to the quote that ends it. Two quotes in it stand for
/// one.
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

/// Returns the distance from a literal to the quote with which it continues on another line. If it does
/// not continue, returns the distance up to which there is no such quote.
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

/// Returns the length of the delimiter of a dollar-quoted literal, if the text begins with one.
fn delimiter_len(text: &[u8]) -> Option<usize> {
    let len = 1 + text[1..].iter().take_while(|&&byte| is_word(byte)).count();
    (text.get(len) == Some(&b'$') && !text[1].is_ascii_digit()).then_some(len + 1)
}

/// Returns the length of a line, without its terminator.
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

    /// The literals that one reading finds.
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
            // Places where no literal begins.
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
            // Literals that are cut short, or end with the text.
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
