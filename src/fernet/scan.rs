//! Tokens in a value: the value itself, or tokens in it between quotes, in JSON, in a list or
//! after a prefix.
//!
//! These steps are taken in order, each only if those before have not settled the matter:
//!
//! 1. Nearly all values are one token in the form in which we write it. Such a value is decoded once,
//!    and no other step follows.
//! 2. The value as a whole is decoded as pyca does it, skipping other bytes and ending at the padding.
//!    The result is a token if a key opens it. It may have line breaks in it. Other text before its
//!    padding stays.
//! 3. After that, each run of characters may end in a token, even in the middle of a path. If none of
//!    several joined runs does, they may together: a token in the standard alphabet.
//! 4. A stretch that no key opens is a token if it has the form of one, and nothing directly precedes
//!    or follows it.
//!
//! All bytes that do not belong to a token stay where they are.

use std::convert::Infallible;
use std::iter;
use std::ops::{Deref, Range};

use super::runs::{before_join, has_form, is_char, joins_runs, places, runs, stretches};
use super::{Error, IV, Keyring, Token, codec};

/// Where tokens are looked for.
#[derive(Clone, Copy)]
pub struct Haystack<'v> {
    bytes: &'v [u8],
    is_document: bool,
}

impl<'v> Haystack<'v> {
    /// A document, such as JSON, which as a whole is no token.
    pub fn document(bytes: &'v [u8]) -> Self {
        Self {
            bytes,
            is_document: true,
        }
    }
}

impl<'v> From<&'v [u8]> for Haystack<'v> {
    fn from(bytes: &'v [u8]) -> Self {
        Self {
            bytes,
            is_document: false,
        }
    }
}

impl Deref for Haystack<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl Keyring {
    /// Looks at every token in a value. Calls `each` with the index of the key that opens it, or
    /// with the reason why none does; tokens that no key opens come last. If there is no token,
    /// `each` is not called.
    ///
    /// # Panics
    /// If `buf` is shorter than the value.
    pub fn inspect_value<'v>(
        &self,
        value: impl Into<Haystack<'v>>,
        buf: &mut [u8],
        each: impl FnMut(Result<usize, Error>),
    ) {
        let Ok(_) = self.each_token(value.into(), buf, each, |_, _| Ok::<_, Infallible>(None));
    }

    /// Rotates every token in a value that a key other than the first opens, and calls `each` for
    /// every token as [`inspect_value`](Self::inspect_value) does. The new value is then at the
    /// front of `buf`. Returns its length, or `None` if there is nothing to rotate.
    ///
    /// # Errors
    /// Those of `iv`, which is called once for each new token.
    ///
    /// # Panics
    /// If `buf` is shorter than the value.
    pub fn rotate_value<'v, E>(
        &self,
        value: impl Into<Haystack<'v>>,
        buf: &mut [u8],
        mut iv: impl FnMut() -> Result<IV, E>,
        each: impl FnMut(Result<usize, Error>),
    ) -> Result<Option<usize>, E> {
        self.each_token(value.into(), buf, each, |token, key| match key {
            0 => Ok(None),
            _ => Ok(Some(self.reseal(token, key, &iv()?))),
        })
    }

    /// Looks at every token in `value` as [`inspect_value`](Self::inspect_value) does. Tells whether the
    /// value is one token and nothing else, and a key opens it.
    ///
    /// # Panics
    /// If `buf` is shorter than `value`.
    pub fn inspect_whole(
        &self,
        value: &[u8],
        buf: &mut [u8],
        each: impl FnMut(Result<usize, Error>),
    ) -> bool {
        self.open_whole(value, buf, each).is_some()
    }

    /// Does the same. If the value is such a token, its plaintext is then at the front of `buf`,
    /// and its length is returned.
    ///
    /// # Panics
    /// If `buf` is shorter than `value`.
    pub fn open_value(
        &self,
        value: &[u8],
        buf: &mut [u8],
        each: impl FnMut(Result<usize, Error>),
    ) -> Option<usize> {
        let (token, key, len) = self.open_whole(value, buf, each)?;
        self.unseal(token, key, len);
        Some(len)
    }

    /// Looks at every token. If the value is one token that a key opens, returns it with the index of
    /// that key and the length of the plaintext.
    fn open_whole<'b>(
        &self,
        value: &[u8],
        buf: &'b mut [u8],
        mut each: impl FnMut(Result<usize, Error>),
    ) -> Option<(Token<'b>, usize, usize)> {
        let opened = Token::decode_whole(value, buf).and_then(|token| {
            let (key, plaintext_len) = self.opener(&token).ok()?;
            Some((token.len, key, plaintext_len))
        });
        match opened {
            Some((len, key, plaintext_len)) => {
                each(Ok(key));
                Some((Token { buf, len }, key, plaintext_len))
            }
            None => {
                self.inspect_value(value, buf, each);
                None
            }
        }
    }

    /// Calls `change` with every token that a key opens, and with the index of that key. `change`
    /// may put another token into its place, and then returns the other's length. Returns the
    /// length of the new value.
    fn each_token<E>(
        &self,
        haystack: Haystack<'_>,
        buf: &mut [u8],
        mut each: impl FnMut(Result<usize, Error>),
        mut change: impl FnMut(Token<'_>, usize) -> Result<Option<usize>, E>,
    ) -> Result<Option<usize>, E> {
        let Haystack {
            bytes: value,
            is_document,
        } = haystack;
        assert!(buf.len() >= value.len());
        let mut whole = Error::NotAToken;
        let mut refused_last = None;
        if !is_document && let Some(len) = Token::decode_strict(value, buf) {
            let token = Token { buf, len };
            match self.opener(&token) {
                Ok((key, _)) => {
                    each(Ok(key));
                    return change(token, key);
                }
                Err(refusal) => {
                    whole = refusal;
                    refused_last = Some((0..chars_len(value), refusal));
                }
            }
        }

        let mut search = Search {
            keyring: self,
            value,
            output: Output::new(value, buf),
            refused_last,
        };
        let mut found = false;
        let mut next = 0;
        if !is_document
            && whole == Error::NotAToken
            && let Some(start) = Token::start(value)
            && let Some((len, end)) =
                Token::decode_lenient(&value[start..], search.output.at(start))
        {
            let buf = search.output.at(start);
            let token = Token { buf, len };
            match self.opener(&token) {
                Ok((key, _)) => {
                    each(Ok(key));
                    found = true;
                    next = start + own_len(&value[start..start + end]);
                    if let Some(len) = change(token, key)? {
                        search.output.replace(start..next, len);
                    }
                }
                Err(refusal) => whole = refusal,
            }
        }

        let mut take = |output: &mut Output<'_>, Opened { place, len, key }: Opened| {
            each(Ok(key));
            let buf = output.at(place.start);
            if let Some(len) = change(Token { buf, len }, key)? {
                output.replace(place, len);
            }
            Ok(())
        };
        let mut refused = Refused::default();
        for stretch in stretches(value, next) {
            let mut rest = stretch.start;
            for run in runs(value, &stretch) {
                let Some(mut opened) = search.open_in(run.clone()) else {
                    continue;
                };
                // A token in the other alphabet may end before the byte that joins the runs. If nothing
                // joined them, both would be one run after the rotation.
                if let Some(before) = before_join(value, rest..opened.place.start)
                    && search.take_joined(before, &mut take)?.is_some()
                {
                    // What follows may have moved.
                    match search.open_in(run) {
                        Some(again) => opened = again,
                        None => continue,
                    }
                }
                rest = opened.place.end;
                take(&mut search.output, opened)?;
            }
            if let Some(end) = search.take_joined(rest..stretch.end, &mut take)? {
                rest = end;
            }
            if rest > stretch.start {
                found = true;
            } else if let Some(refusal) = search.refusal(stretch) {
                refused.add(refusal);
            }
        }
        if !found && refused == Refused::default() && whole != Error::NotAToken {
            refused.add(whole);
        }
        iter::repeat_n(Error::Unauthenticated, refused.unauthenticated)
            .chain(iter::repeat_n(Error::BadPadding, refused.badly_padded))
            .for_each(|refusal| each(Err(refusal)));
        Ok(search.output.finish())
    }
}

/// Tries what may be a token in a value, which it decodes at its place in the output.
struct Search<'a> {
    keyring: &'a Keyring,
    value: &'a [u8],
    output: Output<'a>,
    /// The same characters often come again at once: a value may be one stretch of one run.
    refused_last: Option<(Range<usize>, Error)>,
}

impl Search<'_> {
    /// Opens the token of these characters.
    fn open(&mut self, place: Range<usize>) -> Result<Opened, Error> {
        if let Some((last, refusal)) = &self.refused_last
            && *last == place
        {
            return Err(*refusal);
        }
        let buf = self.output.at(place.start);
        let len =
            codec::decode_unpadded(&self.value[place.clone()], buf).ok_or(Error::NotAToken)?;
        match self.keyring.opener(&Token { buf, len }) {
            Ok((key, _)) => Ok(Opened { place, len, key }),
            Err(refusal) => {
                self.refused_last = Some((place, refusal));
                Err(refusal)
            }
        }
    }

    /// Finds the token at the end of a run, if a key opens one.
    fn open_in(&mut self, run: Range<usize>) -> Option<Opened> {
        places(self.value, run).find_map(|place| self.open(place).ok())
    }

    /// Calls `take` with each token in several joined runs of which none has such a token at its end.
    /// Returns where the last of the runs ends.
    ///
    /// Where a token ends is known only from what follows it, so the last one is found first. But they
    /// are replaced from left to right. Until then, each one's end is kept at its place in the buffer,
    /// since there may be many.
    fn take_joined<E>(
        &mut self,
        range: Range<usize>,
        mut take: impl FnMut(&mut Output<'_>, Opened) -> Result<(), E>,
    ) -> Result<Option<usize>, E> {
        const END: usize = size_of::<usize>();
        let (last, mut first) = (range.end, None);
        let mut rest = Some(range);
        while let Some(range) = rest
            && let Some(Opened { place, .. }) = self.open_in_joined(range.clone())
        {
            self.output.at(place.start)[..END].copy_from_slice(&place.end.to_ne_bytes());
            first = Some(place.start);
            rest = before_join(self.value, range.start..place.start);
        }
        let gap = self.output.gap;
        let mut next = first;
        while let Some(start) = next {
            let end = self.output.buf[start - gap..].first_chunk::<END>();
            let end = usize::from_ne_bytes(*end.expect("a token is longer"));
            // It may have moved.
            if let Ok(opened) = self.open(start..end) {
                take(&mut self.output, opened)?;
            }
            let between = self.value[end..last].iter();
            let start = end + between.take_while(|byte| joins_runs(byte)).count();
            next = (start < last).then_some(start);
        }
        Ok(first.map(|_| last))
    }

    /// Does the same as [`open_in`](Self::open_in) for several joined runs of which none has such a token
    /// at its end.
    fn open_in_joined(&mut self, range: Range<usize>) -> Option<Opened> {
        // From the end: this is repeated for each token of many.
        let is_joined = self.value[range.clone()].iter().rev().any(joins_runs);
        is_joined.then(|| self.open_in(range))?
    }

    /// Returns the reason why no key opens a stretch, if the stretch as a whole has the form of a
    /// token.
    fn refusal(&mut self, stretch: Range<usize>) -> Option<Error> {
        if !has_form(self.value, &stretch) {
            return None;
        }
        match self.open(stretch) {
            Err(Error::NotAToken) | Ok(_) => None,
            Err(refusal) => Some(refusal),
        }
    }
}

/// A token that a key opens.
struct Opened {
    place: Range<usize>,
    /// Its length in the buffer.
    len: usize,
    key: usize,
}

/// Counts what has the form of a token in a value. This needs no key, but misses tokens that other
/// characters directly precede or follow.
///
/// # Panics
/// If `buf` is shorter than the value.
pub fn count_tokens<'v>(value: impl Into<Haystack<'v>>, buf: &mut [u8]) -> usize {
    let Haystack {
        bytes: value,
        is_document,
    } = value.into();
    match stretches(value, 0)
        .filter(|stretch| has_form(value, stretch))
        .count()
    {
        0 if !is_document => usize::from(Token::decode(value, buf).is_ok()),
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

/// Returns the length of a token in the form in which we write it, without its padding.
fn chars_len(token: &[u8]) -> usize {
    token.len() - token.iter().rev().take_while(|&&byte| byte == b'=').count()
}

/// Returns how many of the bytes that pyca decodes as a token belong to the token: all, if there is
/// only white space between its last character and the `=` that ended it. Otherwise the `=` belongs to
/// other text, or there is text between them that must not be lost; the token then ends with its last
/// character.
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

/// The new value, made from left to right in a buffer of the value's length. The buffer after the
/// finished part is working space.
struct Output<'a> {
    value: &'a [u8],
    buf: &'a mut [u8],
    /// How much of the value is done.
    done: usize,
    /// How many bytes shorter the new value is so far, because tokens in it had other bytes between
    /// their characters.
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

    /// Returns the buffer from the position that `place` of the value will have.
    fn at(&mut self, place: usize) -> &mut [u8] {
        &mut self.buf[place - self.gap..]
    }

    /// Replaces the token at `place` by the new token, which is in the buffer at the start of `place`.
    /// If the old token has no padding at its place, because the padding follows it, the new token's is
    /// left out.
    fn replace(&mut self, place: Range<usize>, len: usize) {
        let old = self.value[place.clone()].iter();
        let len = len.min(old.filter(|byte| is_char(byte) || **byte == b'=').count());
        self.copy_to(place.start);
        self.done = place.end;
        self.gap += place.len() - len;
    }

    /// Copies the value up to `end`.
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
