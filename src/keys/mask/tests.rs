use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};

use super::key::KEY;
use super::*;

const A: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";
const B: &str = "zPbY0uIHjWkDmkQX3AOXP/3LTk+4JVWVQbR3lFLxbl0=";
const TOKEN: &str = "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==";

const STATEMENT: Syntax = Syntax {
    statement: 0,
    has_escapes: false,
};

/// The result is the same whether the text is known to be a statement or only may have one in it.
fn with_keys_masked(text: &str) -> String {
    let masked = masked_as(message(text), text);
    assert_eq!(masked, masked_as(STATEMENT, text));
    masked
}

fn message(text: &str) -> Syntax {
    Syntax {
        statement: text.len(),
        ..STATEMENT
    }
}

fn masked_as(syntax: Syntax, text: &str) -> String {
    text_of(mask_keys(text.as_bytes(), syntax, false), text)
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
        ("AB A;B", "*** ***;***"),
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
fn keys_behind_other_base64() {
    let escaped = B.replace('/', r"\/");
    for (text, expected) in [
        (format!("https://vault/v1/{A}"), "https:***"),
        (format!("fernet-key_{A}"), "***"),
        (format!("(/{A}, x{B})"), "(***, ***)"),
        (format!("{}{A}", A.trim_end_matches('=')), "***"),
        (format!(r"https:\/\/vault\/v1\/{escaped}"), r"https:\***"),
    ] {
        assert_eq!(with_keys_masked(&text), expected);
    }
    for text in [
        // Longer base64, tokens, and names.
        format!("abcd{A}"),
        format!("x{A}="),
        format!("https://host/path/{}=", &TOKEN[..99]),
        format!("{}=", "long-option/".repeat(5)),
    ] {
        assert_eq!(with_keys_masked(&text), text);
    }
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
        let text = format!(r"SET fernet.keys = '\{start}{A}, %zz{A}'");
        assert_eq!(with_keys_masked(&text), r"SET fernet.keys = '\***, %***'");
    }
}

/// A broken key is masked as a whole, or all but less than a piece of it.
#[test]
fn broken_keys_behind_the_name() {
    let gaps = [
        " ", "\n", ", ", ";", ".", r"\n", " = ", "&#x0d;\n", ":", "!ä", "\\",
    ];
    for (gap, len) in gaps.into_iter().flat_map(|gap| [(gap, 2), (gap, 4)]) {
        let groups: Vec<_> = A.as_bytes().chunks(len).collect();
        let broken = String::from_utf8(groups.join(gap.as_bytes())).expect("text");
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
            let result = masked_as(message(&text), &text);
            assert_eq!(
                result,
                statement.replace("KEY", "***").replace("{}", "***"),
                "{text}"
            );
        }
    }
}

/// A literal may go on in another line, or be put together.
#[test]
fn literals_in_pieces_behind_the_name() {
    let in_fours: Vec<_> = A.as_bytes().chunks(4).collect();
    for gap in [
        "'\n'",
        "' -- it's\n\t'",
        "'||'",
        "' || E'",
        "' || $$$$ || '",
    ] {
        let broken = String::from_utf8(in_fours.join(gap.as_bytes())).expect("text");
        for statement in [
            "SELECT set_config('fernet.keys', '{}', false), 'a'",
            "DO $x$ BEGIN PERFORM set_config('fernet.keys', '{}', false); END $x$; SELECT 1",
            "DO $x$ BEGIN PERFORM set_config('fernet.keys', '{}', false); END",
            "SET fernet.keys = '{}",
        ] {
            let text = statement.replace("{}", &broken);
            for syntax in [STATEMENT, message(&text)] {
                let masked = masked_as(syntax, &text);
                for piece in A.as_bytes().chunks(4) {
                    let piece = str::from_utf8(piece).expect("text");
                    assert!(!masked.contains(piece), "{masked}");
                }
            }
        }
    }
}

#[test]
fn what_stays_behind_the_name() {
    for text in [
        "SET fernet.keys = '***'; SELECT relname, 1 FROM pg_class WHERE relname = '***'",
        "DO $$ BEGIN PERFORM 'a', set_config('fernet.keys', '***', false); END $$; SELECT 1",
        "DO $$ BEGIN EXECUTE 'SET fernet.keys = ''***'''; END $$",
        "SELECT set_config('fernet.keys', '***', false), current_setting('fernet.keys')",
        "SET fernet.keys = '***'; SELECT \"Short Name\", a_very_long_name",
        &format!("SET fernet.keys = '***', '***'; SELECT '{TOKEN}', fernet_decrypt('{TOKEN}')"),
    ] {
        for value in [A, "a b", &format!("a_b:{A}")] {
            assert_eq!(masked_as(STATEMENT, &text.replace("***", value)), text);
        }
    }
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
    let masked = |syntax, text: &str| text_of(mask_keys(text.as_bytes(), syntax, true), text);
    for (text, expected) in [
        ("$1 = 'PIECE', $2 = 'TOKEN'", "$1 = '***', $2 = 'TOKEN'"),
        ("$1 = 'a:b'", "$1 = '***'"),
        (
            "relation \"A name in blanks\"",
            "relation \"A name in blanks\"",
        ),
    ] {
        let text = text.replace("PIECE", &A[..20]).replace("TOKEN", TOKEN);
        assert_eq!(with_keys_masked(&text), text);
        let expected = expected.replace("TOKEN", TOKEN);
        assert_eq!(masked(message(&text), &text), expected);
    }
    let statement = format!("SELECT 'a:b', '{}'", &A[..20]);
    assert_eq!(masked(STATEMENT, &statement), "SELECT 'a:b', '***'");
}

#[test]
fn before_the_name() {
    for text in [
        "WITH v (v, n) AS (VALUES ('{}', 'fernet.keys')) SELECT set_config(n, v, false) FROM v",
        "DO $$ DECLARE k text := '{}'; BEGIN PERFORM set_config('fernet.keys', k, false); END $$",
        "SET application_name = '{}'; SET fernet.keys = '***'",
        "$1 = '{}', $2 = 'fernet.keys'",
    ] {
        for value in [&A[..42], &format!("{} {}", &A[..20], &A[20..])] {
            let text = text.replace("{}", value);
            let masked = masked_as(STATEMENT, &text).replace("*** ***", "***");
            assert_eq!(masked, text.replace(value, "***"));
            let told = masked_as(message(&text), &text);
            assert!(
                !told.contains(&A[..PIECE]) && !told.contains(&A[30..42]),
                "{told}"
            );
        }
    }
    // Shorter pieces are masked only in messages: a statement may have other values there.
    let parameters = "$1 = 'a b', $2 = 'fernet.keys'";
    assert_eq!(
        masked_as(message(parameters), parameters),
        "$1 = '***', $2 = 'fernet.keys'"
    );
    assert_eq!(masked_as(STATEMENT, parameters), parameters);
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
        "d41d8cd98f00b204e9800998ecf8427e",
        "waiting for something...",
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
        "JSON data, line 1: ['...\nportal with parameters: $1 = '[''secret'']', $10 = 'secret'",
        "JSON data, line 1: $1 = 'x\nportal with parameters: $1 = '$1 = ''x secret'",
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

/// Any role can have such texts logged, and nothing interrupts the masking of them.
#[test]
fn hostile_texts_take_linear_time() {
    let time = |text: &str, syntax| {
        let once = || {
            let start = time_of_thread();
            mask_literals(text.as_bytes(), syntax, true).expect("memory");
            time_of_thread() - start
        };
        (0..3).map(|_| once()).min().expect("one of three")
    };
    for (start, part) in ["", "fernet.keys ", "'", "\"", "$$", "/*"]
        .into_iter()
        .flat_map(|start| HOSTILE.map(|part| (start, part)))
    {
        let text = |size: usize| start.to_owned() + &part.repeat(size / part.len());
        for syntax in [message, |_: &str| STATEMENT] {
            let [short, long] = [1 << 14, 1 << 18].map(|size| {
                let text = text(size);
                time(&text, syntax(&text))
            });
            // The text is sixteen times as long. A quadratic search would take 256 times as long.
            let limit = 64 * short + Duration::from_millis(1);
            assert!(long < limit, "{start}{part}: {short:?}, {long:?}");
        }
    }
}

/// The time that the processor has spent on this thread: on a busy machine, other threads do not count.
fn time_of_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Texts that begin something that may go on, or in which something else is searched for.
const HOSTILE: [&str; 23] = [
    "''--",
    "''--\n",
    "\"--\n--'",
    "'a' -- \n",
    "-- 'a'\n",
    "''\n",
    "''\n\t",
    "'' ",
    "''&#x0d;",
    "e'\\'",
    "\\",
    "a\\\\",
    "\\\"",
    "\"",
    "$a$b",
    "$a",
    "$1",
    "$1 = '",
    "$1 = '''",
    "/*'",
    "keys ",
    ". keys",
    "Aa0=...",
];

proptest! {
    /// No key is left, and nothing else is changed.
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

    /// Any bytes, as in databases with other encodings, including characters that are cut short.
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
