//! String literals in SQL, and in messages about it, as the server's own scanner finds them.

use std::iter;
use std::ops::Range;

use memchr::{memchr, memmem};

/// How a text is to be read.
#[derive(Clone, Copy)]
pub(crate) struct Syntax {
    /// Whether it is SQL, with no more than a few words before it. Else it is told about something, in
    /// any language, and there may be SQL in it.
    pub(crate) is_statement: bool,
    /// Whether `\` escapes a quote in every literal: not with `standard_conforming_strings`.
    pub(crate) has_escapes: bool,
}

/// Finds what stands between the quotes of literals: of parameters, too, as the server logs them, and
/// the bodies of functions and DO, between dollars. A literal without an end reaches to that of the text.
///
/// `strictly` as SQL, what is between double quotes is a name, and no literal begins in it or in a comment.
/// In a message, there may be a whole statement between such quotes, and without its line breaks, as in
/// JSON: that is to be searched in both ways.
pub(crate) fn literals(
    text: &[u8],
    syntax: Syntax,
    strictly: bool,
) -> impl Iterator<Item = Range<usize>> {
    let Syntax {
        is_statement,
        has_escapes,
    } = syntax;
    let mut at = 0;
    iter::from_fn(move || {
        loop {
            let rest = text.get(at..)?;
            let start = at;
            let content = match rest {
                [b'\'', ..] if is_statement || may_open(&text[..at]) => {
                    let content = &rest[1..];
                    let has_escapes = has_escapes || has_prefix(&text[..at], b"eE");
                    let len = quoted_len(content, has_escapes);
                    at += len + 2;
                    start + 1..start + 1 + len
                }
                [b'$', ..] if !text[..at].last().is_some_and(|&byte| is_word(byte)) => {
                    let Some(delimiter) = delimiter(rest) else {
                        at += 1;
                        continue;
                    };
                    let content = &rest[delimiter.len()..];
                    let len = memmem::find(content, delimiter).unwrap_or(content.len());
                    at += len + 2 * delimiter.len();
                    start + delimiter.len()..start + delimiter.len() + len
                }
                [b'"', name @ ..] if strictly => {
                    at += 2 + memchr(b'"', name).unwrap_or(name.len());
                    continue;
                }
                [b'-', b'-', ..] if strictly => {
                    at += memchr(b'\n', rest).unwrap_or(rest.len());
                    continue;
                }
                [b'/', b'*', ..] if strictly => {
                    at += comment_len(rest);
                    continue;
                }
                [] => return None,
                _ => {
                    at += 1;
                    continue;
                }
            };
            if !content.is_empty() {
                return Some(content);
            }
        }
    })
}

/// Tells whether a quote can begin a literal behind that text, which may be in any language: where it
/// stands behind a letter, it is an apostrophe, unless the letter is what literals begin with.
fn may_open(before: &[u8]) -> bool {
    !before.last().is_some_and(|&byte| is_word(byte)) || has_prefix(before, b"eEbBxX")
}

/// Tells whether the last word of a text is one of these letters.
fn has_prefix(text: &[u8], letters: &[u8]) -> bool {
    match text {
        [.., before, last] => letters.contains(last) && !is_word(*before),
        [last] => letters.contains(last),
        [] => false,
    }
}

/// Returns the length of what a quote has opened, up to the one that closes it. Two quotes are one in it.
fn quoted_len(content: &[u8], has_escapes: bool) -> usize {
    let mut at = 0;
    loop {
        match content.get(at..) {
            Some([b'\'', b'\'', ..]) => at += 2,
            Some([b'\\', _, ..]) if has_escapes => at += 2,
            Some([b'\'', ..]) => return at,
            Some([_, ..]) => at += 1,
            _ => return content.len(),
        }
    }
}

/// Returns what opens and closes a literal between dollars, if the text begins with it.
fn delimiter(text: &[u8]) -> Option<&[u8]> {
    let len = 1 + text[1..].iter().take_while(|&&byte| is_word(byte)).count();
    (text.get(len) == Some(&b'$') && !text[1].is_ascii_digit()).then(|| &text[..=len])
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

    fn found(text: &str, is_statement: bool, has_escapes: bool) -> Vec<&str> {
        let syntax = Syntax {
            is_statement,
            has_escapes,
        };
        let ranges = literals(text.as_bytes(), syntax, is_statement);
        ranges.map(|range| &text[range]).collect()
    }

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
            ("/* don't /* nest */ it's */ SELECT 'a'", &["a"]),
            ("SELECT 1 - -1, 2 / 3, 'a'", &["a"]),
            // Dollars.
            ("DO $$ a 'b' $$; SELECT 'c'", &[" a 'b' ", "c"]),
            (
                "SELECT $x$a$$b$x$, $1, a$b$, 'c', $ü$d$ü$",
                &["a$$b", "c", "d"],
            ),
            ("SELECT $1$2, 'a'", &["a"]),
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
            assert_eq!(found(text, true, false), expected, "{text}");
        }
        let old = found(r"SELECT 'a\'b', 'c'", true, true);
        assert_eq!(old, [r"a\'b", "c"]);
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
            assert_eq!(found(text, false, false), expected, "{text}");
        }
    }
}
