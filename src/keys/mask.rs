//! What must not be read in the server log: keys, and, where that is set, all literals.

use std::collections::TryReserveError;
use std::iter;
use std::ops::Range;

use crate::fernet::is_base64;
use crate::pg::literal::{Syntax, literals};

/// What stands in the log for what is masked. It does not show how long that is.
const MASK: &[u8] = b"***";

/// Returns a text with its keys masked, or `None` if there is none in it.
pub(super) fn mask_keys(text: &[u8]) -> Result<Option<Vec<u8>>, TryReserveError> {
    replace(text, keys(text))
}

/// Returns a text with its literals masked, and the keys outside of these, or `None` if there is nothing
/// to mask.
pub(super) fn mask_literals(
    text: &[u8],
    syntax: Syntax,
) -> Result<Option<Vec<u8>>, TryReserveError> {
    let mut masked = None;
    let passes: &[bool] = if syntax.is_statement {
        &[true]
    } else {
        &[true, false]
    };
    for &strictly in passes {
        let text = masked.as_deref().unwrap_or(text);
        masked = replace(text, literals(text, syntax, strictly))?.or(masked);
    }
    let text = masked.as_deref().unwrap_or(text);
    Ok(mask_keys(text)?.or(masked))
}

fn replace(
    text: &[u8],
    ranges: impl Iterator<Item = Range<usize>>,
) -> Result<Option<Vec<u8>>, TryReserveError> {
    let mut replaced = Vec::new();
    let mut copied = 0;
    for range in ranges {
        for part in [&text[copied..range.start], MASK] {
            replaced.try_reserve(part.len())?;
            replaced.extend_from_slice(part);
        }
        copied = range.end;
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
/// The fewest characters of a token.
const TOKEN: usize = 98;

/// Finds what has the form of a key, with its padding or without. Behind the name of the setting, as in
/// `SET fernet.keys = '…'`, also what may be a piece of one, cut short or mistyped.
fn keys(text: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    let mut is_named = false;
    iter::from_fn(move || {
        loop {
            let start = at + text[at..].iter().position(|&byte| is_base64(byte))?;
            let chars = text[start..].iter().take_while(|&&byte| is_base64(byte));
            let end = start + chars.count();
            at = end;
            let (before, run) = (&text[..start], &text[start..end]);
            if run.eq_ignore_ascii_case(b"keys") && ends_with_name(before) {
                is_named = true;
                continue;
            }
            // Of a line break that is written `\n`, the letter is none of the key's.
            let escaped = usize::from(run.len() == KEY + 1 && before.ends_with(b"\\"));
            let run = &run[escaped..];
            if run.len() == KEY && is_mixed(run) || is_named && is_piece(run) {
                let padding = usize::from(text.get(end) == Some(&b'='));
                at += padding;
                return Some(start + escaped..at);
            }
        }
    })
}

/// Tells whether a text ends where the name `fernet.keys` has its second part; not that of a file.
fn ends_with_name(text: &[u8]) -> bool {
    const PREFIX: &[u8] = b"fernet.";
    let Some((before, prefix)) = text.split_at_checked(text.len().wrapping_sub(PREFIX.len()))
    else {
        return false;
    };
    prefix.eq_ignore_ascii_case(PREFIX) && !before.ends_with(b"/")
}

/// Tells whether there are both lower and upper case letters, as in all keys but one of a billion, and in
/// few names that long.
fn is_mixed(run: &[u8]) -> bool {
    run.iter().any(u8::is_ascii_lowercase) && run.iter().any(u8::is_ascii_uppercase)
}

/// Tells whether it may be part of a key, and is neither a word nor a token.
fn is_piece(run: &[u8]) -> bool {
    let is_word =
        |is_letter: fn(&u8) -> bool| run.iter().all(|byte| is_letter(byte) || *byte == b'_');
    let is_token = run.len() >= TOKEN && run.starts_with(b"gAAAA");
    let is_word = is_word(u8::is_ascii_lowercase) || is_word(u8::is_ascii_uppercase);
    run.len() >= PIECE && !is_word && !is_token
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
        is_statement: true,
        has_escapes: false,
    };

    fn with_keys_masked(text: &str) -> String {
        text_of(mask_keys(text.as_bytes()), text)
    }

    fn with_literals_masked(text: &str, syntax: Syntax) -> String {
        text_of(mask_literals(text.as_bytes(), syntax), text)
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
        ] {
            let text = text.replace('A', A);
            let text = text.replace('B', B);
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
            &A[1..],
            &format!("x{A}"),
            "d41d8cd98f00b204e9800998ecf8427e",
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

    /// Names and statements between double quotes.
    #[test]
    fn literals_in_messages() {
        let message = Syntax {
            is_statement: false,
            has_escapes: false,
        };
        for text in [
            r#"plan: SELECT "it's", "'" AS x, "$$" AS y, 'secret' -- don't"#,
            r#"SQL statement "SELECT 'secret'""#,
            r#"SQL statement "SELECT '"', 'secret'""#,
            r#"{"Query Text": "SELECT 1 -- one\n, 'secret'"}"#,
        ] {
            let masked = with_literals_masked(text, message);
            assert!(!masked.contains("secret"), "{masked}");
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
                for is_statement in [true, false] {
                    let syntax = Syntax { is_statement, has_escapes: is_statement };
                    mask_literals(text, syntax).expect("memory");
                }
            }
        }
    }
}
