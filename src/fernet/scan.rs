//! Tokens in a value: the value itself, or what stands in it between quotes, in JSON, in a list,
//! behind a prefix.
//!
//! In order, each step only where the one before has not settled the matter:
//!
//! 1. A value that is one token as we write it, which nearly all are, is decoded once, and that is
//!    all.
//! 2. What pyca makes of the value, which skips foreign bytes and ends at the padding, is a token if
//!    a key opens it. Line breaks may stand in such a token. What else stands before its padding stays.
//! 3. Behind that, each run of characters of the two alphabets may end in a token. Where none in a
//!    stretch of runs with an escaped `/` between them does, as in JSON, the stretch may end in one.
//!
//! Whatever is no token's stays where it is, byte for byte.

use std::convert::Infallible;
use std::iter;
use std::ops::Range;

use memchr::memmem;

use super::{Error, IV, Keyring, Token, codec};

/// What a token begins with in a run: the version, and a timestamp of 48 bits at most.
const START: &[u8] = b"gAAA";

/// What a token begins with that no key vouches for: a timestamp before the year 4147.
const UNKNOWN_START: &[u8] = b"gAAAAA";

impl Keyring {
    /// Looks at every token in `value`. Tells `each` the index of the key that opens it, or why none
    /// does; those that none opens come last. If `each` is not called, there is no token.
    ///
    /// # Panics
    /// If `buf` is shorter than `value`.
    pub fn inspect_value(
        &self,
        value: &[u8],
        buf: &mut [u8],
        each: impl FnMut(Result<usize, Error>),
    ) {
        let Ok(_) = self.each_token(value, buf, each, |_, _| Ok::<_, Infallible>(None));
    }

    /// Rotates every token in `value` that a key other than the first opens, and tells `each`
    /// of every token as [`inspect_value`](Self::inspect_value) does. The new value is at the front
    /// of `buf`; returns its length, or `None` if there is nothing to rotate.
    ///
    /// # Errors
    /// Those of `iv`, which is called once for each new token.
    ///
    /// # Panics
    /// If `buf` is shorter than `value`.
    pub fn rotate_value<E>(
        &self,
        value: &[u8],
        buf: &mut [u8],
        mut iv: impl FnMut() -> Result<IV, E>,
        each: impl FnMut(Result<usize, Error>),
    ) -> Result<Option<usize>, E> {
        self.each_token(value, buf, each, |token, key| match key {
            0 => Ok(None),
            _ => Ok(Some(self.reseal(token, key, &iv()?))),
        })
    }

    /// Gives every token that a key opens to `change`, with the index of that key. `change` may put
    /// another into its place, and returns that one's length. Returns that of the new value.
    fn each_token<E>(
        &self,
        value: &[u8],
        buf: &mut [u8],
        mut each: impl FnMut(Result<usize, Error>),
        mut change: impl FnMut(Token<'_>, usize) -> Result<Option<usize>, E>,
    ) -> Result<Option<usize>, E> {
        assert!(buf.len() >= value.len());
        let mut whole = Error::NotAToken;
        if let Some(len) = Token::decode_strict(value, buf) {
            let token = Token { buf, len };
            match self.opener(&token) {
                Ok((key, _)) => {
                    each(Ok(key));
                    return change(token, key);
                }
                Err(refusal) => whole = refusal,
            }
        }

        let mut output = Output::new(value, buf);
        let mut found = false;
        let mut next = 0;
        if whole == Error::NotAToken
            && let Some(start) = Token::start(value)
            && let Some((len, end)) = Token::decode_lenient(&value[start..], output.at(start))
        {
            let buf = output.at(start);
            let token = Token { buf, len };
            match self.opener(&token) {
                Ok((key, _)) => {
                    each(Ok(key));
                    found = true;
                    next = start + own_len(&value[start..start + end]);
                    if let Some(len) = change(token, key)? {
                        output.replace(start..next, len);
                    }
                }
                Err(refusal) => whole = refusal,
            }
        }

        let mut refused = Refused::default();
        let mut attempt = |run: Range<usize>| {
            let (place, len, key) = match self.open_in(value, run, &mut output) {
                Some(Ok(opened)) => opened,
                Some(Err(refusal)) => return Ok(Some(Err(refusal))),
                None => return Ok(None),
            };
            each(Ok(key));
            let buf = output.at(place.start);
            if let Some(len) = change(Token { buf, len }, key)? {
                output.replace(place, len);
            }
            Ok(Some(Ok(())))
        };
        for stretch in stretches(value, next) {
            let before = refused;
            let mut opened = false;
            for run in runs(value, &stretch) {
                match attempt(run)? {
                    Some(Ok(())) => opened = true,
                    Some(Err(refusal)) => refused.add(refusal),
                    None => {}
                }
            }
            if !opened && has_escapes(&value[stretch.clone()]) {
                match attempt(stretch)? {
                    Some(Ok(())) => (opened, refused) = (true, before),
                    Some(Err(refusal)) => {
                        refused = before;
                        refused.add(refusal);
                    }
                    None => {}
                }
            }
            found |= opened;
        }
        if !found && refused == Refused::default() && whole != Error::NotAToken {
            refused.add(whole);
        }
        iter::repeat_n(Error::Unauthenticated, refused.unauthenticated)
            .chain(iter::repeat_n(Error::BadPadding, refused.badly_padded))
            .for_each(|refusal| each(Err(refusal)));
        Ok(output.finish())
    }

    /// Finds the token at the end of a run and opens it: returns its place, its length in the buffer,
    /// and the key. Or why no key opens the run, if it has the form of a token.
    #[allow(clippy::type_complexity, reason = "a name for it would say no more")]
    fn open_in(
        &self,
        value: &[u8],
        run: Range<usize>,
        output: &mut Output<'_>,
    ) -> Option<Result<(Range<usize>, usize, usize), Error>> {
        let mut unknown = None;
        for chars in candidates(value, run.clone()) {
            let buf = output.at(chars.start);
            let len = codec::decode_unpadded(&value[chars.clone()], buf)?;
            match self.opener(&Token { buf, len }) {
                Ok((key, _)) => return Some(Ok((chars, len, key))),
                // The whole run comes last.
                Err(refusal) => unknown = has_form(value, &run).then_some(Err(refusal)),
            }
        }
        unknown
    }
}

/// Counts what has the form of a token in `value`, for which no key is needed: fewer than there are,
/// where characters stand directly before one.
///
/// # Panics
/// If `buf` is shorter than `value`.
pub fn count_tokens(value: &[u8], buf: &mut [u8]) -> usize {
    let tokens = stretches(value, 0).map(|stretch| {
        if has_form(value, &stretch) {
            1
        } else {
            let runs = runs(value, &stretch);
            runs.filter(|run| has_form(value, run)).count()
        }
    });
    match tokens.sum() {
        0 => usize::from(Token::decode(value, buf).is_ok()),
        tokens => tokens,
    }
}

/// Tells whether there may be a token in a document, JSON for instance, which as a whole is none.
pub fn may_hold_tokens(document: &[u8]) -> bool {
    memmem::find(document, START).is_some()
}

/// Counts the tokens that no key opens.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Refused {
    unauthenticated: usize,
    badly_padded: usize,
}

impl Refused {
    fn add(&mut self, refusal: Error) {
        match refusal {
            Error::BadPadding => self.badly_padded += 1,
            _ => self.unauthenticated += 1,
        }
    }
}

/// Returns how much of what pyca decodes as a token is the token's own: all, where nothing but white
/// space stands between its last character and the `=` that ended it. Else that is somebody else's, or
/// a text is between them that must not be lost, and the token ends with its last character.
fn own_len(decoded: &[u8]) -> usize {
    let chars_end = decoded.iter().rposition(|byte| is_char(&byte));
    let chars_end = chars_end.map_or(0, |last| last + 1);
    let is_own = |&byte: &u8| byte == b'=' || byte.is_ascii_whitespace();
    if decoded[chars_end..].iter().all(is_own) {
        decoded.len()
    } else {
        chars_end
    }
}

/// Returns the stretches from `from` on in which a token may begin: runs of characters, with an escaped
/// `/` between one and the next.
fn stretches(value: &[u8], mut from: usize) -> impl Iterator<Item = Range<usize>> {
    iter::from_fn(move || {
        let found = from + memmem::find(&value[from..], START)?;
        let chars_before = value[from..found].iter().rev().take_while(is_char);
        let start = found - chars_before.count();
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

/// Returns the runs of characters in a stretch in which a token may begin.
fn runs<'v>(
    value: &'v [u8],
    stretch: &Range<usize>,
) -> impl Iterator<Item = Range<usize>> + use<'v> {
    let mut start = stretch.start;
    value[stretch.clone()]
        .split(|&byte| byte == b'\\')
        .map(move |run| {
            let run = start..start + run.len();
            start = run.end + 1;
            run
        })
        .filter(|run| may_hold_tokens(&value[run.clone()]))
}

fn has_escapes(stretch: &[u8]) -> bool {
    stretch.contains(&b'\\')
}

/// Counts the `\` at the front: an escape begins with several where JSON is a string in other JSON.
fn slashes(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|&&byte| byte == b'\\').count()
}

fn is_char(byte: &&u8) -> bool {
    codec::is_char(**byte)
}

/// How many times the length of a run is spent on the tokens that may be at its end.
const EFFORT: usize = 4;

/// Returns what may be a token at the end of a run, or of a stretch: from any `gAAA` on, the shortest
/// first.
///
/// A run of nothing but `gAAA` holds so many of them that to try all would be quadratic; so, but for
/// the run as a whole, they are given up once they have taken several times its length. That misses
/// no token. It would have to begin behind its start, where somebody else's characters stand before
/// it; the longer ones that these make come after it. Shorter ones begin inside of it, in a
/// ciphertext or an HMAC, where nobody can place anything: there is a `gAAA` in one of 2^24 places,
/// and it would take four that each are nearly as long as the token.
fn candidates(value: &[u8], run: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let padding = padding(&value[run.end..]);
    let mut effort = EFFORT * run.len();
    let (mut counted, mut chars) = (run.end, 0);
    memmem::rfind_iter(&value[run.clone()], START)
        .map(move |at| run.start + at)
        .filter(move |&start| {
            chars += count_chars(&value[start..counted]);
            counted = start;
            fits(chars, padding)
        })
        .map(move |start| start..run.end)
        .filter(move |place| {
            effort = effort.saturating_sub(place.len());
            effort > 0 || place.start == run.start
        })
}

/// Tells whether a run, or a stretch, as a whole has the form of a token.
fn has_form(value: &[u8], run: &Range<usize>) -> bool {
    let (run, behind) = (&value[run.clone()], &value[run.end..]);
    run.starts_with(UNKNOWN_START) && fits(count_chars(run), padding(behind))
}

/// Counts the characters in a run or a stretch: all bytes but the `\` that escape some of them.
fn count_chars(run: &[u8]) -> usize {
    run.iter().filter(|&&byte| byte != b'\\').count()
}

/// Tells whether so many characters, with so much padding behind them, have the length of a token.
fn fits(chars: usize, padding: usize) -> bool {
    chars.next_multiple_of(4) - chars <= padding && Token::has_len(chars * 3 / 4)
}

/// Counts the `=` at the front of `bytes`, up to the two that a token may need, written as they are
/// or as applications escape them: in a URL, or in JSON, once or more often.
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

/// The new value, made from left to right in a buffer of the value's length. What is behind the part
/// that is done is room to work in.
struct Output<'a> {
    value: &'a [u8],
    buf: &'a mut [u8],
    /// How much of the value is done.
    done: usize,
    /// How much shorter than that the new value is: what has stood inside of tokens is gone.
    gap: usize,
}

impl<'a> Output<'a> {
    fn new(value: &'a [u8], buf: &'a mut [u8]) -> Self {
        Self {
            value,
            buf,
            done: 0,
            gap: 0,
        }
    }

    /// Returns the buffer from where that place of the value will be.
    fn at(&mut self, place: usize) -> &mut [u8] {
        &mut self.buf[place - self.gap..]
    }

    /// Takes the new token that is in the buffer at the start of `place` instead of the old one that the
    /// value has there. Padding that the old one has not in its place is not taken: it is behind it.
    fn replace(&mut self, place: Range<usize>, len: usize) {
        let old = self.value[place.clone()].iter();
        let len = len.min(old.filter(|byte| is_char(byte) || **byte == b'=').count());
        self.copy_to(place.start);
        self.done = place.end;
        self.gap += place.len() - len;
    }

    /// Takes what the value has, up to there.
    fn copy_to(&mut self, end: usize) {
        let bytes = &self.value[self.done..end];
        self.buf[self.done - self.gap..end - self.gap].copy_from_slice(bytes);
        self.done = end;
    }

    /// Returns the length of the new value, if any token was replaced.
    fn finish(mut self) -> Option<usize> {
        if self.done == 0 {
            return None;
        }
        self.copy_to(self.value.len());
        Some(self.done - self.gap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the characters that are decoded and authenticated.
    fn effort(value: &[u8]) -> usize {
        let runs = stretches(value, 0).flat_map(|stretch| {
            let runs: Vec<_> = runs(value, &stretch).chain([stretch]).collect();
            runs
        });
        runs.flat_map(|run| candidates(value, run))
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
            ] {
                let value = hostile.repeat(size / hostile.len()) + padding;
                assert!(effort(value.as_bytes()) <= 2 * (EFFORT + 1) * value.len());
            }
        }
    }

    #[test]
    fn the_shortest_come_first_and_the_whole_run_comes_always() {
        let value = "gAAA".repeat(1000);
        let lengths: Vec<_> = candidates(value.as_bytes(), 0..value.len())
            .map(|chars| chars.len())
            .collect();
        assert_eq!(lengths[..3], [140, 204, 268]);
        // Less than four times 4000 characters in all.
        assert_eq!(lengths.len(), 20);
        assert_eq!(lengths.iter().sum::<usize>(), 14_960);
        // 73 bytes are the least: one block. 4000 characters are 3000 bytes, which is no length.
        assert!(!fits(96, 2) && fits(98, 2) && !Token::has_len(3000));
        let value = "gAAA".repeat(1011);
        let longest = candidates(value.as_bytes(), 0..value.len()).last();
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
    fn runs_are_as_long_as_they_can_be() {
        let found = |value: &str, from| {
            let stretches = stretches(value.as_bytes(), from);
            let runs =
                stretches.flat_map(|stretch| runs(value.as_bytes(), &stretch).collect::<Vec<_>>());
            runs.map(|run| (run.start, run.end)).collect::<Vec<_>>()
        };
        assert_eq!(found("gAAA", 0), [(0, 4)]);
        assert_eq!(found(" ab-_gAAA+/12= gAA gAAA", 0), [(1, 13), (19, 23)]);
        assert_eq!(found("gAAAgAAA,gAAA", 0), [(0, 8), (9, 13)]);
        // As behind a token.
        assert_eq!(found("==xgAAA", 2), [(2, 7)]);
        assert_eq!(found("gaaa gAA A", 0), []);
        // An escaped slash is between two runs, and inside of a stretch.
        assert_eq!(found(r"gAAA\/xgAAA\n", 0), [(0, 4), (5, 11)]);
        let first = |value: &str| stretches(value.as_bytes(), 0).next();
        assert_eq!(first(r"gAAA\/xgAAA\n"), Some(0..11));
        assert_eq!(first(r"a\/gAAA\\\/x\x"), Some(2..12));
        assert_eq!(first(r"gAAA\\"), Some(0..4));
    }
}
