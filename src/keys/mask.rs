//! What must not be read in the server log: keys, and, where that is set, all literals.

use std::collections::TryReserveError;
use std::iter;
use std::ops::Range;

use crate::fernet::is_base64;
use crate::pg::literal::{Syntax, literals};

/// What stands in the log for what is masked. It does not show how long that is.
const MASK: &[u8] = b"***";

/// Returns a text with its keys masked, or `None` if there is none in it. If the name of the setting is in
/// another text of the message, this is as strict as behind it.
pub(super) fn mask_keys(
    text: &[u8],
    is_named_beside: bool,
) -> Result<Option<Vec<u8>>, TryReserveError> {
    replace(text, keys(text, is_named_beside))
}

/// The same for keys and literals.
pub(super) fn mask_literals(
    text: &[u8],
    syntax: Syntax,
    is_named_beside: bool,
) -> Result<Option<Vec<u8>>, TryReserveError> {
    let mut ranges = literals(text, syntax)?;
    for key in keys(text, is_named_beside) {
        ranges.try_reserve(1)?;
        ranges.push(key);
    }
    ranges.sort_unstable_by_key(|range| range.start);
    replace(text, ranges.into_iter())
}

/// Ranges are in the order in which they start, and may overlap.
fn replace(
    text: &[u8],
    ranges: impl Iterator<Item = Range<usize>>,
) -> Result<Option<Vec<u8>>, TryReserveError> {
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

/// How many characters a key has in base64, without its padding.
const KEY: usize = 43;
/// How many characters must be left of a piece of a key to be of use to anybody.
const PIECE: usize = 12;
/// The fewest characters of a token, and what it begins with.
const TOKEN: usize = 98;
const VERSION: &[u8] = b"gAAAA";
/// What the server puts in the place of what it cuts off.
const CUT: &[u8] = b"...";

/// Tells whether the name of the setting is in a text.
pub(super) fn is_named(text: &[u8]) -> bool {
    runs(text).any(|run| is_name(text, &run))
}

/// Finds what has the form of a key, with its padding or without, and pieces of keys that are cut short.
/// Behind the name of the setting, as in `SET fernet.keys = '…'`, also other pieces, as of one that is
/// mistyped or has blanks in it.
fn keys(text: &[u8], is_named: bool) -> impl Iterator<Item = Range<usize>> {
    let mut is_named = is_named;
    let mut done = 0;
    runs(text).filter_map(move |run| {
        if run.start < done {
            return None;
        }
        if is_name(text, &run) {
            is_named = true;
            return None;
        }
        let key = if is_named && let Some(end) = end_of_broken(text, run.start) {
            run.start..end
        } else {
            let start = run.start + escape_len(text, &run);
            let end = run.end + usize::from(text.get(run.end) == Some(&b'='));
            let is_cut = text[end..].starts_with(CUT) || text[..start].ends_with(CUT);
            let key = &text[start..run.end];
            let is_found = is_key(key)
                || is_named && is_piece(key)
                || is_cut && is_piece(key) && !key.starts_with(VERSION);
            is_found.then_some(start..end)?
        };
        done = key.end;
        Some(key)
    })
}

/// Finds all that is base64 and as long as possible. A slash in it may be written `\/`, as in JSON, or with
/// more backslashes, as in JSON within JSON.
fn runs(text: &[u8]) -> impl Iterator<Item = Range<usize>> + Clone {
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

/// Tells whether a run is the second part of the name `fernet.keys`, and not of that of a file. There may
/// be quotes and blanks between the parts.
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

/// Returns how much of a run belongs to the escape before a key, such as `\n`, `\u0022` or `%3D`.
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

/// Returns where the last of the runs between two quotes ends, if there are ones that are too short to be
/// masked by themselves, and together are not, and most of them are not words.
fn end_of_broken(text: &[u8], start: usize) -> Option<usize> {
    let is_quote = |&byte: &u8| matches!(byte, b'\'' | b'"' | b'$');
    // `&#x0d;` is a line break in XML.
    let is_gap = |byte: u8| byte.is_ascii_whitespace() || b"=,;.\\&#".contains(&byte);
    let before = text[..start].iter().rev().find(|&&byte| !is_gap(byte));
    if !before.is_some_and(is_quote) {
        return None;
    }
    let is_inside = |&&byte: &&u8| is_base64(byte) || is_gap(byte);
    let inside = &text[start..];
    let inside = &inside[..inside.iter().take_while(is_inside).count()];
    if !text.get(start + inside.len()).is_none_or(is_quote) {
        return None;
    }
    let (mut len, mut in_words) = (0, 0);
    for run in runs(inside).map(|run| &inside[run]) {
        if run.len() < PIECE {
            len += run.len();
            // One letter is no word.
            in_words += if run.len() > 1 && is_words(run.iter()) {
                run.len()
            } else {
                0
            };
        }
    }
    let is_last = |&byte: &u8| is_base64(byte) || byte == b'=';
    let end = start + 1 + inside.iter().rposition(is_last)?;
    // Of a key in groups of four, about one in twenty looks like a word.
    (len >= PIECE && in_words * 5 <= len * 3).then_some(end)
}

/// Tells whether it has the length of a key, and both lower and upper case letters, as in all keys but one
/// of a billion, and in few names that long.
fn is_key(run: &[u8]) -> bool {
    chars(run).count() == KEY
        && run.iter().any(u8::is_ascii_lowercase)
        && run.iter().any(u8::is_ascii_uppercase)
}

/// Tells whether it may be part of a key, and is neither words nor a token.
fn is_piece(run: &[u8]) -> bool {
    let len = chars(run).count();
    let is_token = len >= TOKEN && run.starts_with(VERSION);
    len >= PIECE && !is_words(chars(run)) && !is_token
}

fn is_words<'a>(chars: impl Iterator<Item = &'a u8> + Clone) -> bool {
    let all = |is_letter: fn(&u8) -> bool| {
        chars
            .clone()
            .all(|byte| is_letter(byte) || matches!(byte, b'_' | b'-'))
    };
    all(u8::is_ascii_lowercase) || all(u8::is_ascii_uppercase)
}

/// Leaves out what escapes a slash.
fn chars(run: &[u8]) -> impl Iterator<Item = &u8> + Clone {
    run.iter().filter(|&&byte| byte != b'\\')
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const A: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";
    const B: &str = "zPbY0uIHjWkDmkQX3AOXP/3LTk+4JVWVQbR3lFLxbl0=";
    const TOKEN: &str = "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==";

    const STATEMENT: Syntax = Syntax {
        statement: 0,
        has_escapes: false,
    };

    fn with_keys_masked(text: &str) -> String {
        text_of(mask_keys(text.as_bytes(), false), text)
    }

    fn with_literals_masked(text: &str, syntax: Syntax) -> String {
        text_of(mask_literals(text.as_bytes(), syntax, false), text)
    }

    fn text_of(masked: Result<Option<Vec<u8>>, TryReserveError>, text: &str) -> String {
        masked.expect("memory").map_or_else(
            || text.to_owned(),
            |masked| String::from_utf8(masked).expect("text"),
        )
    }

    #[test]
    fn keys_wherever_they_stand() {
        for (text, expected) in [
            ("SET fernet.keys = 'A,B'", "SET fernet.keys = '***,***'"),
            ("SET x.y TO 'A', 'B'", "SET x.y TO '***', '***'"),
            ("A", "***"),
            ("AB A;B", "****** ***;***"),
            (
                r#"parameter "fernet.keys" changed to "A""#,
                r#"parameter "fernet.keys" changed to "***""#,
            ),
            ("-c fernet.keys=A", "-c fernet.keys=***"),
            (r"E'A\nB\nA'", r"E'***\n***\n***'"),
            ("key=A&x=1", "key=***&x=1"),
            ("keys%3DA%2CA%3D", "keys%3D***%2C***%3D"),
            (r"\u0022A\u003d", r"\u0022***\u003d"),
            (r"E'\x27A\047A\U00000022A", r"E'\x27***\047***\U00000022***"),
            (r#"{"key": "Z"}"#, r#"{"key": "***"}"#),
            (
                r#"{"Query Text": "SELECT '{\"key\": \"Ä\"}'"}"#,
                r#"{"Query Text": "SELECT '{\"key\": \"***\"}'"}"#,
            ),
        ] {
            let text = text.replace('A', A);
            let text = text.replace('B', B);
            let text = text.replace('Ä', &B.replace('/', r"\\/"));
            let text = text.replace('Z', &B.replace('/', r"\/"));
            assert_eq!(with_keys_masked(&text), expected, "{text}");
        }
    }

    #[test]
    fn keys_without_their_padding() {
        let bare = &A[..KEY];
        assert_eq!(
            with_keys_masked(&format!("SELECT '{bare}'")),
            "SELECT '***'"
        );
        assert_eq!(with_keys_masked(&format!("{bare}%3D")), "***%3D");
    }

    #[test]
    fn pieces_of_keys_behind_the_name() {
        for piece in [
            &A[..30],
            &A[10..],
            &A[..PIECE],
            &format!("x{A}"),
            &format!("{A}{A}x"),
            &format!("gAAAA{}", r"\/".repeat(50)),
        ] {
            for statement in [
                "SET fernet.keys = '{}'",
                "SET FERNET.Keys TO '{}'",
                "set_config('fernet.keys', '{}', false)",
                "options=-cfernet.keys={}",
            ] {
                let result = with_keys_masked(&statement.replace("{}", piece));
                assert!(
                    result.contains("***") && !result.contains(&piece[3..PIECE]),
                    "{result}"
                );
            }
            let elsewhere = format!("SET fernet.keys_file = '/fernet.keys/{piece} ");
            if piece.len() < KEY {
                assert_eq!(with_keys_masked(&elsewhere), elsewhere);
            }
        }
    }

    #[test]
    fn pieces_behind_what_is_no_escape() {
        for start in ["ny", "abcd", "u00ag", "Uabcdefg"] {
            let text = format!(r"SET fernet.keys = 'x\{start}{A}, x%zz{A}'");
            assert_eq!(with_keys_masked(&text), r"SET fernet.keys = 'x\***, x%***'");
        }
    }

    /// All of a key, or all but less than a piece.
    #[test]
    fn broken_keys_behind_the_name() {
        let in_fours: Vec<_> = A.as_bytes().chunks(4).collect();
        for gap in [" ", "\n", ", ", ";", ".", r"\n", " = ", "&#x0d;\n"] {
            let broken = String::from_utf8(in_fours.join(gap.as_bytes())).expect("text");
            for statement in [
                "SET fernet.keys = '{}'",
                "SET fernet.keys = 'KEY', '{}';",
                "fernet.keys: SQL statement \"SET fernet.keys = '{}'\"\nPL/pgSQL function inline_code_block line 10 at EXECUTE",
                "SET \"fernet\".\"keys\" = '{}'",
                r#"{"Query Text": "SET \"fernet\" . \"keys\" = '{}'"}"#,
                "SET fernet\n. keys TO $x${}$x$",
                "EXECUTE 'SET fernet.keys = ''{}'''",
                r#"parameter "fernet.keys" changed to "{}""#,
                "set_config('fernet.keys', '{}...', false)",
                "set_config('fernet.keys', '{}",
            ] {
                let text = statement.replace("KEY", A).replace("{}", &broken);
                let result = with_keys_masked(&text);
                assert_eq!(
                    result,
                    statement.replace("KEY", "***").replace("{}", "***"),
                    "{text}"
                );
            }
        }
        let at_the_end = format!("SET fernet.keys = '{} {}'", &A[..33], &A[33..]);
        assert_eq!(
            with_keys_masked(&at_the_end),
            format!("SET fernet.keys = '*** {}'", &A[33..])
        );
    }

    #[test]
    fn keys_that_are_cut_short() {
        for (text, expected) in [
            (
                "unnamed portal with parameters: $1 = '{}...'",
                "unnamed portal with parameters: $1 = '***...'",
            ),
            (
                "Failing row contains (***,{}...).",
                "Failing row contains (***,***...).",
            ),
            ("LINE 1: ...{}'", "LINE 1: ...***'"),
        ] {
            for piece in [&A[..PIECE], &A[..42], &B[20..]] {
                assert_eq!(with_keys_masked(&text.replace("{}", piece)), expected);
            }
            for other in [
                &TOKEN[..40],
                "shorter",
                "words_and_words",
                "WORDS-AND-WORDS",
            ] {
                let text = text.replace("{}", other);
                assert_eq!(with_keys_masked(&text), text);
            }
        }
    }

    #[test]
    fn the_name_in_another_text() {
        assert!(is_named(b"SELECT set_config('fernet.keys', $1, false)"));
        assert!(!is_named(
            b"SELECT set_config('fernet.keys_file', $1, false)"
        ));
        let text = format!("$1 = '{}', $2 = '{TOKEN}'", &A[..20]);
        assert_eq!(with_keys_masked(&text), text);
        let masked = text_of(mask_keys(text.as_bytes(), true), &text);
        assert_eq!(masked, format!("$1 = '***', $2 = '{TOKEN}'"));
    }

    #[test]
    fn what_is_no_key() {
        let name = "a_long_name_that_has_as_many_letters_as_one";
        assert_eq!(name.len(), KEY);
        for text in [
            "",
            "=",
            "fernet.",
            "fernet.keys",
            TOKEN,
            name,
            "key 2 of fernet.keys is not a valid Fernet key",
            "fernet.keys is set in the configuration, but pg_fernet is not in shared_preload_libraries",
            "SET fernet.keys = ''; SELECT CURRENT_TIMESTAMP, pg_backend_pid()",
            &format!("SET fernet.keys = ''; SELECT fernet_decrypt('{TOKEN}')"),
            "Set fernet.keys_file to a file, or fernet.keys to a comma-separated list, the newest first.",
            &A[1..],
            &format!("x{A}"),
            "d41d8cd98f00b204e9800998ecf8427e",
            "waiting for something...",
            "SET fernet.keys = ''; SELECT 'two words', \"that are\" , 'none of a key'",
            "https:\\/\\/example.com\\/a\\/path\\/that\\/Is\\/longer\\/than\\/a\\/key\\/is\\/in\\/base64",
        ] {
            assert_eq!(with_keys_masked(text), text);
        }
    }

    #[test]
    fn literals_and_the_keys_outside_of_them() {
        let text = format!("SELECT 'secret', 'it''s', $$ body $$, \"{A}\", 1 -- {B}");
        let expected = r#"SELECT '***', '***', $$***$$, "***", 1 -- ***"#;
        assert_eq!(with_literals_masked(&text, STATEMENT), expected);
    }

    /// SQL in a message: bare, between double quotes, in JSON.
    #[test]
    fn literals_in_messages() {
        for text in [
            r#"plan: SELECT "it's", "'" AS x, "$$" AS y, 'secret' -- don't"#,
            r#"SQL statement "SELECT 'secret'""#,
            r#"SQL statement "SELECT'secret'""#,
            r#"SQL statement "SELECT '"', 'secret'""#,
            r#"SQL statement "SELECT "'", 'a"b', 'secret'""#,
            "SQL statement \"SELECT E'\\'secret', \"'\" -- '\"\nSQL statement \"SELECT 'a'\"",
            r#"{"Query Text": "SELECT 1 -- one\n, 'secret'"}"#,
            r#"{"Query Text": "SELECT 1 -- 'one\n, 'secret' -- '", "Plan": {"Filter": "(x = 'secret'::text)"}}"#,
            r#"{"Query Text": "SELECT E'\\'secret' || x"}"#,
            r#"Query Text: "SELECT E'a'\n\t-- it's\n 'b\\'secret', \"'\" FROM x""#,
            r#"{"Query Text": "SELECT '\\\\' LIKE E'\\\\', E'\\\\\\'secret'"}"#,
            "<Query-Text>SELECT 1 -- 'a'&#x0d; , 'secret', E'a'&#x0d;\n'b\\'secret'</Query-Text>",
            r#"Query Text: "SELECT e'\\\\', e'\\'secret'""#,
            r"parameters: $1 = 'a\', $2 = 'secret'",
            "SELECT N'secret'",
        ] {
            for has_escapes in [false, true] {
                let syntax = Syntax {
                    statement: text.len(),
                    has_escapes,
                };
                let masked = with_literals_masked(text, syntax);
                assert!(!masked.contains("secret"), "{masked}");
            }
        }
    }

    #[test]
    fn names_in_messages() {
        for text in [
            r#"relation "it's" does not exist"#,
            r#"la relation « x » n'existe pas, "l'autre" non plus"#,
            r#"role "o'n" cannot"#,
        ] {
            let syntax = Syntax {
                statement: text.len(),
                has_escapes: false,
            };
            assert_eq!(with_literals_masked(text, syntax), text);
        }
    }

    proptest! {
        /// No key is left, and nothing else is touched.
        #[test]
        fn masks_keys_and_nothing_else(
            keys in vec(any::<[u8; 32]>(), 0..5),
            around in vec("[ -*,.:-?@\\[\\]^`{-~äß€\n]{1,20}", 6),
            urlsafe: bool,
        ) {
            let engine = if urlsafe { URL_SAFE } else { STANDARD };
            let (mut text, mut expected) = (around[0].clone(), around[0].clone());
            for (key, around) in keys.iter().zip(&around[1..]) {
                text += &engine.encode(key);
                expected += "***";
                text += around;
                expected += around;
            }
            prop_assert_eq!(with_keys_masked(&text), expected);
        }

        /// Any bytes, as databases in other encodings have them, also such as are cut short.
        #[test]
        fn takes_any_bytes(text: Vec<u8>, sql in "['\"$a/*\\\\\n-]{0,40}") {
            for text in [&text[..], sql.as_bytes()] {
                for statement in [0, text.len() / 2, text.len()] {
                    let syntax = Syntax { statement, has_escapes: statement == 0 };
                    mask_literals(text, syntax, true).expect("memory");
                }
            }
        }
    }
}
