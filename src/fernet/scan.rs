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

use super::runs::{candidates, has_escapes, has_form, is_char, runs, stretches};
use super::{Error, IV, Keyring, Token, codec};

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
