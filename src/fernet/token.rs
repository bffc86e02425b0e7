use super::{Error, codec};

/// Size of an AES block, and of an initialisation vector.
pub const BLOCK: usize = 16;

/// An initialisation vector. It must be unpredictable, and used only once.
pub type IV = [u8; BLOCK];

// version ‖ timestamp ‖ IV ‖ ciphertext ‖ HMAC
pub(super) const VERSION: u8 = 0x80;
pub(super) const TIMESTAMP_AT: usize = 1;
pub(super) const IV_AT: usize = 9;
pub(super) const CIPHERTEXT_AT: usize = IV_AT + BLOCK;
pub(super) const HMAC: usize = 32;

/// Returns the length in bytes of the token of a plaintext of `len` bytes, or `None` if a `usize`
/// cannot hold that.
pub const fn sealed_len(len: usize) -> Option<usize> {
    let Some(padded) = (len / BLOCK + 1).checked_mul(BLOCK) else {
        return None;
    };
    match padded.checked_add(CIPHERTEXT_AT + HMAC) {
        Some(len) => codec::encoded_len(len),
        None => None,
    }
}

/// A token of the right form, decoded in the caller's buffer. Nothing in it can be trusted until a
/// key of a [`Keyring`](super::Keyring) has authenticated it.
pub struct Token<'a> {
    pub(super) buf: &'a mut [u8],
    /// The token is `buf[..len]`.
    pub(super) len: usize,
}

impl<'a> Token<'a> {
    /// Returns the size of a buffer that holds the decoded form of any `len` characters.
    pub const fn decoded_len_max(len: usize) -> usize {
        len - len / 4
    }

    /// Decodes `encoded` into `buf`.
    ///
    /// # Errors
    /// [`Error::NotAToken`] unless it is base64 (as pyca takes it) of the version, a timestamp, an
    /// IV, one or more blocks of ciphertext and an HMAC.
    ///
    /// # Panics
    /// If `buf` is smaller than [`decoded_len_max`](Self::decoded_len_max).
    pub fn decode(encoded: &[u8], buf: &'a mut [u8]) -> Result<Self, Error> {
        assert!(buf.len() >= Self::decoded_len_max(encoded.len()));
        let lenient = |buf: &mut [u8]| {
            let start = Self::start(encoded)?;
            Self::decode_lenient(&encoded[start..], buf).map(|(len, _)| len)
        };
        let len = Self::decode_strict(encoded, buf)
            .or_else(|| lenient(buf))
            .ok_or(Error::NotAToken)?;
        Ok(Self { buf, len })
    }

    /// Decodes `encoded` into `buf` if it is a token and nothing else. White space may be in it and
    /// around it: nothing else is lost when its plaintext replaces it.
    ///
    /// # Panics
    /// As [`decode`](Self::decode).
    pub fn decode_whole(encoded: &[u8], buf: &'a mut [u8]) -> Option<Self> {
        assert!(buf.len() >= Self::decoded_len_max(encoded.len()));
        let lenient = |buf: &mut [u8]| {
            let start = Self::start(encoded)?;
            let (len, end) = Self::decode_lenient(&encoded[start..], buf)?;
            let is_own = |(at, &byte): (usize, &u8)| {
                byte.is_ascii_whitespace()
                    || at >= start && (byte == b'=' || at < start + end && codec::is_char(byte))
            };
            encoded.iter().enumerate().all(is_own).then_some(len)
        };
        let len = Self::decode_strict(encoded, buf).or_else(|| lenient(buf))?;
        Some(Self { buf, len })
    }

    /// Decodes a token in the form in which we write it, and returns its length in `buf`.
    pub(super) fn decode_strict(encoded: &[u8], buf: &mut [u8]) -> Option<usize> {
        let [b'g', b'A'..=b'P', ..] = encoded else {
            return None;
        };
        codec::decode_strict(encoded, buf).filter(|&len| Self::has_len(len))
    }

    /// Decodes a token from its [`start`](Self::start) on, as pyca does. Returns its length in
    /// `buf` and its end.
    pub(super) fn decode_lenient(encoded: &[u8], buf: &mut [u8]) -> Option<(usize, usize)> {
        codec::decode_lenient(encoded, buf).filter(|&(len, _)| Self::has_len(len))
    }

    /// Returns the position of a value's first character, if the first two characters decode to the
    /// version. So most values that are no token need not be decoded.
    pub(super) fn start(encoded: &[u8]) -> Option<usize> {
        let mut chars = encoded
            .iter()
            .enumerate()
            .filter(|&(_, &byte)| codec::is_char(byte));
        let (start, b'g') = chars.next()? else {
            return None;
        };
        matches!(chars.next()?, (_, b'A'..=b'P')).then_some(start)
    }

    /// Tells whether a token may have `len` bytes: its ciphertext must be one or more blocks.
    pub(super) const fn has_len(len: usize) -> bool {
        len > CIPHERTEXT_AT + HMAC && (len - CIPHERTEXT_AT - HMAC).is_multiple_of(BLOCK)
    }

    /// Returns when the token was made, in seconds since 1970.
    pub fn timestamp(&self) -> u64 {
        let bytes = self.buf[TIMESTAMP_AT..].first_chunk();
        u64::from_be_bytes(*bytes.expect("a token holds a timestamp"))
    }

    /// Returns the bytes that the HMAC covers.
    pub(super) fn signed(&self) -> &[u8] {
        &self.buf[..self.len - HMAC]
    }

    pub(super) fn hmac(&self) -> &[u8; HMAC] {
        let hmac = self.buf[..self.len].last_chunk();
        hmac.expect("a token ends in its HMAC")
    }
}
