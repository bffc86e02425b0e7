//! The places in a value where a token may be. Finding them needs no key.
//!
//! A *stretch* is an unbroken sequence of characters of the two base64 alphabets; a `/` in it may be
//! escaped, as in JSON. A stretch consists of *runs* of the characters that tokens in base64url are
//! written with. `/` and `+` join the runs: they are in tokens of the standard alphabet, or belong to
//! other text such as a path. A token may begin anywhere in a run or a stretch, and reaches to the end
//! of that run or of a later one.

use std::iter;
use std::ops::Range;

use memchr::memmem;

use super::{Token, codec};

/// The start of every token in a run: the version, and a timestamp of at most 48 bits.
const START: &[u8] = b"gAAA";

/// The start of a token that no key has authenticated: a timestamp before the year 4147.
const UNKNOWN_START: &[u8] = b"gAAAAA";

/// Tells whether a document, such as JSON, may hold a token.
pub fn may_hold_tokens(document: &[u8]) -> bool {
    memmem::find(document, START).is_some()
}

/// Returns the stretches from `from` on in which a token may begin.
pub(super) fn stretches(value: &[u8], mut from: usize) -> impl Iterator<Item = Range<usize>> {
    iter::from_fn(move || {
        let found = from + memmem::find(&value[from..], START)?;
        let chars_before = value[from..found].iter().rev().take_while(is_char);
        let start = found - chars_before.count();
        let start = start + escape_len(&value[..start], &value[start..found]);
        from = found;
        loop {
            from += value[from..].iter().take_while(is_char).count();
            match slashes(&value[from..]) {
                0 => return Some(start..from),
                slashes if value.get(from + slashes) == Some(&b'/') => from += slashes,
                _ => return Some(start..from),
            }
        }
    })
}

/// Counts the characters at the front that belong to an escape, such as a line break in JSON.
fn escape_len(before: &[u8], chars: &[u8]) -> usize {
    if !before.ends_with(b"\\") {
        return 0;
    }
    match chars {
        [b'n' | b'r' | b't' | b'b' | b'f', ..] => 1,
        [b'u', a, b, c, d, ..] if [a, b, c, d].iter().all(|digit| digit.is_ascii_hexdigit()) => 5,
        _ => 0,
    }
}

/// Returns the runs in a stretch in which a token may begin.
pub(super) fn runs<'v>(
    value: &'v [u8],
    stretch: &Range<usize>,
) -> impl Iterator<Item = Range<usize>> + use<'v> {
    let mut start = stretch.start;
    value[stretch.clone()]
        .split(joins_runs)
        .map(move |run| {
            let run = start..start + run.len();
            start = run.end + 1;
            run
        })
        .filter(|run| may_hold_tokens(&value[run.clone()]))
}

/// Tells whether a byte of a stretch is between two runs.
pub(super) fn joins_runs(byte: &u8) -> bool {
    matches!(byte, b'/' | b'+' | b'\\')
}

/// Returns what is before the byte that joins a part of a stretch to what follows, if one does.
pub(super) fn before_join(value: &[u8], part: Range<usize>) -> Option<Range<usize>> {
    let (b'/' | b'+', before) = value[part.clone()].split_last()? else {
        return None;
    };
    let slashes = before.iter().rev().take_while(|&&byte| byte == b'\\');
    Some(part.start..part.start + before.len() - slashes.count())
}

/// Counts the `\` at the front: an escape begins with several of them if the JSON is a string in
/// other JSON.
fn slashes(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|&&byte| byte == b'\\').count()
}

pub(super) fn is_char(byte: &&u8) -> bool {
    codec::is_char(**byte)
}

/// How many times the length of a run may be spent on the tokens that may be at its end.
const EFFORT: usize = 4;

/// How many characters the shortest token has that needs no padding, and by how many the others have
/// more.
const UNPADDED: usize = 140;
const UNPADDED_STEP: usize = 64;

/// Returns the places at the end of a run, or of several joined runs, at which there may be a token:
/// from each `gAAA` on, the shortest first. If the last bytes join runs, those of them that are needed
/// for the length of a token may be its last characters, and the others follow it.
///
/// A run of nothing but `gAAA` holds so many places that trying all of them would take quadratic
/// time. So it gives up, except for the run as a whole, once it has tried several times the length
/// of the run. No token is missed by that. To be missed, a token would have to begin after the start
/// of the run, with other characters before it. The longer places, which those characters make, are
/// tried after it. Shorter places begin inside the token, in its ciphertext or HMAC, where nobody
/// can choose the characters. One of 2^24 places there has a `gAAA`, and it would take four such
/// places that are each nearly as long as the token.
pub(super) fn places(value: &[u8], run: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let padding = padding(&value[run.end..]);
    let behind = value[run.clone()].iter().rev();
    let first_end = run.end - behind.take_while(|byte| joins_runs(byte)).count();
    let joins = (first_end..run.end).filter(|&at| value[at] != b'\\');
    let join_count = joins.clone().count();
    // By how many of them are the token's own.
    let mut ends = [first_end; UNPADDED_STEP];
    iter::zip(&mut ends[1..], joins).for_each(|(end, at)| *end = at + 1);

    let mut effort = EFFORT * run.len();
    let (mut counted, mut chars) = (first_end, 0);
    memmem::rfind_iter(&value[run.start..first_end], START)
        .map(move |at| run.start + at)
        .flat_map(move |start| {
            chars += count_chars(&value[start..counted]);
            counted = start;
            let own = UNPADDED.wrapping_sub(chars) % UNPADDED_STEP;
            let unpadded = own < join_count && fits(chars + own, 0);
            let with_all = fits(chars + join_count, padding);
            let unpadded = unpadded.then(|| start..ends[own]).into_iter();
            unpadded.chain(with_all.then_some(start..run.end))
        })
        .filter(move |place| {
            effort = effort.saturating_sub(place.len());
            effort > 0 || place.start == run.start
        })
}

/// Tells whether a stretch as a whole has the form of a token.
pub(super) fn has_form(value: &[u8], stretch: &Range<usize>) -> bool {
    let (chars, behind) = (&value[stretch.clone()], &value[stretch.end..]);
    chars.starts_with(UNKNOWN_START) && fits(count_chars(chars), padding(behind))
}

/// Counts the characters in a part of a stretch: all bytes but the `\` that escape some of them.
fn count_chars(run: &[u8]) -> usize {
    run.iter().filter(|&&byte| byte != b'\\').count()
}

/// Tells whether so many characters, followed by so much padding, have the length of a token.
fn fits(chars: usize, padding: usize) -> bool {
    chars.next_multiple_of(4) - chars <= padding && Token::has_len(chars * 3 / 4)
}

/// Counts the `=` at the front of `bytes`, up to the two that a token may need. They may be escaped
/// as applications do it, for a URL or, once or several times, for JSON.
fn padding(bytes: &[u8]) -> usize {
    fn strip(bytes: &[u8]) -> Option<&[u8]> {
        match bytes {
            [b'=', rest @ ..] | [b'%', b'3', b'D' | b'd', rest @ ..] => Some(rest),
            [b'\\', ..] => match &bytes[slashes(bytes)..] {
                [b'u', b'0', b'0', b'3', b'D' | b'd', rest @ ..] => Some(rest),
                _ => None,
            },
            _ => None,
        }
    }
    iter::successors(strip(bytes), |rest| strip(rest))
        .take(2)
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the characters that are decoded and authenticated.
    fn effort(value: &[u8]) -> usize {
        // Each run twice, and the joined runs.
        let runs = stretches(value, 0).flat_map(|stretch| {
            let runs = runs(value, &stretch).flat_map(|run| [run.clone(), run]);
            runs.chain([stretch]).collect::<Vec<_>>()
        });
        runs.flat_map(|run| places(value, run))
            .map(|chars| chars.len())
            .sum()
    }

    #[test]
    fn hostile_values_take_linear_effort() {
        for size in [1 << 10, 1 << 16, 1 << 20, 1 << 21] {
            for (hostile, padding) in [
                ("gAAA", ""),
                ("gAAAAA", "=="),
                ("gAAAA", "="),
                ("gAAA,", ""),
                (r"gAAA\/", ""),
                (r"gAAAA\\", "/"),
                ("gAAA/////", ""),
                ("gAAAgAAA/", ""),
            ] {
                let value = hostile.repeat(size / hostile.len()) + padding;
                assert!(effort(value.as_bytes()) <= 3 * (EFFORT + 1) * value.len());
            }
        }
    }

    #[test]
    fn the_shortest_come_first_and_the_whole_run_comes_always() {
        let value = "gAAA".repeat(1000);
        let lengths: Vec<_> = places(value.as_bytes(), 0..value.len())
            .map(|chars| chars.len())
            .collect();
        assert_eq!(lengths[..3], [140, 204, 268]);
        // Less than four times 4000 characters in all.
        assert_eq!(lengths.len(), 20);
        assert_eq!(lengths.iter().sum::<usize>(), 14_960);
        // A token has at least 73 bytes, with one block. 4000 characters are 3000 bytes, which no token has.
        assert!(!fits(96, 2) && fits(98, 2) && !Token::has_len(3000));
        let value = "gAAA".repeat(1011);
        let longest = places(value.as_bytes(), 0..value.len()).last();
        assert_eq!(longest, Some(0..value.len()));
    }

    #[test]
    fn padding_may_be_escaped() {
        for (bytes, expected) in [
            ("", 0),
            ("=", 1),
            ("==", 2),
            ("===", 2),
            ("= =", 1),
            (" ==", 0),
            ("%3D%3d", 2),
            ("=%3D", 2),
            ("%3", 0),
            ("%3E", 0),
            (r"\u003d\u003D", 2),
            (r"\\u003d\\\u003d", 2),
            (r"\u003e", 0),
            (r"\u003", 0),
            ("u003d", 0),
            (r"\n", 0),
        ] {
            assert_eq!(padding(bytes.as_bytes()), expected, "{bytes}");
        }
    }

    #[test]
    fn stretches_are_as_long_as_they_can_be() {
        let found = |value: &str, from| stretches(value.as_bytes(), from).collect::<Vec<_>>();
        assert_eq!(found("gAAA", 0)[0], 0..4);
        assert_eq!(found(" ab-_gAAA+/12= gAA gAAA", 0), [1..13, 19..23]);
        assert_eq!(found("gAAAgAAA,gAAA", 0), [0..8, 9..13]);
        // As after a token.
        assert_eq!(found("==xgAAA", 2)[0], 2..7);
        assert!(found("gaaa gAA A", 0).is_empty());
        // Across escaped slashes, and starting after an escape.
        assert_eq!(found(r"gAAA\/xgAAA\n", 0)[0], 0..11);
        assert_eq!(found(r"a\/gAAA\\\/x\x", 0)[0], 2..12);
        assert_eq!(found(r"gAAA\\", 0)[0], 0..4);
        assert_eq!(found(r"\ngAAA\\u00e9agAAA", 0), [2..6, 13..18]);
        assert_eq!(found(r"\xgAAA\u00e", 0)[0], 1..6);
    }

    #[test]
    fn runs_end_at_what_joins_them() {
        let found = |value: &str| runs(value.as_bytes(), &(0..value.len())).collect::<Vec<_>>();
        assert_eq!(found("gAAA-_gAAA")[0], 0..10);
        assert_eq!(found(r"a/gAAA/x\/gAAA+gAAAx"), [2..6, 10..14, 15..20]);
        let before = |value: &str| before_join(value.as_bytes(), 0..value.len());
        assert_eq!(
            [r"a/b\\/", "a++", "/", "a", ""].map(before),
            [Some(0..3), Some(0..2), Some(0..0), None, None]
        );
    }

    #[test]
    fn what_joins_runs_may_be_the_end_of_a_token() {
        let found = |chars: usize, joins: &str| {
            let value = format!("gAAA{}{joins}==", "x".repeat(chars - 4));
            let places = places(value.as_bytes(), 0..value.len() - 2);
            places.map(|place| place.end).collect::<Vec<_>>()
        };
        assert_eq!(found(140, ""), [140]);
        assert_eq!(found(140, "//"), [140]);
        assert_eq!(found(138, "/+/"), [140]);
        // Two more, and a `\` each.
        assert_eq!(found(138, r"\/\/\/"), [142]);
        assert_eq!(found(138, r"\/"), [] as [usize; 0]);
        // With padding, only as a whole.
        assert_eq!(found(118, "/"), [119]);
        assert_eq!(found(118, "//"), [] as [usize; 0]);
        assert_eq!(found(204 - 63, &"/".repeat(1000)), [204]);
        assert_eq!(found(140, &"/".repeat(64)), [140, 204]);
    }
}
