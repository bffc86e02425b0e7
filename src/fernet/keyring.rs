use std::cell::Cell;
use std::iter;

use zeroize::zeroize_bytes;

use super::token::{BLOCK, CIPHERTEXT_AT, HMAC, IV, IV_AT, TIMESTAMP_AT, Token, VERSION};
use super::{Error, Key, codec, sealed_len};

/// One or more keys, newest first. The first makes all new tokens; each of them
/// opens tokens.
pub struct Keyring {
    keys: Vec<Key>,
    /// Whether no two keys share their signing half. Then at most one key authenticates a token,
    /// and the keys can be tried in any order.
    distinct: bool,
    /// The key that opened the previous token. In a rotation it opens nearly all of them, so it is
    /// tried first if the order is free.
    last: Cell<usize>,
}

impl Keyring {
    /// Reads keys between commas, newest first. Each element must be a key.
    ///
    /// # Errors
    /// [`Error::EmptyKeyList`], or [`Error::InvalidKey`] with the position of the first bad key.
    pub fn parse_list(list: &[u8]) -> Result<Self, Error> {
        if list.trim_ascii().is_empty() {
            return Err(Error::EmptyKeyList);
        }
        Self::parse(list.split(|&byte| byte == b','), list.len())
    }

    /// Reads keys separated by line breaks or commas, newest first. Blank lines are ignored, and so
    /// is the rest of a line after a `#`.
    ///
    /// # Errors
    /// [`Error::EmptyKeyList`], or [`Error::InvalidKey`] with the position of the first bad key.
    pub fn parse_lines(text: &[u8]) -> Result<Self, Error> {
        let lines = text.split(|&byte| byte == b'\n');
        let code = lines.filter_map(|line| line.split(|&byte| byte == b'#').next());
        let elements = code.flat_map(|line| line.split(|&byte| byte == b','));
        let keys = elements.filter(|element| !element.trim_ascii().is_empty());
        Self::parse(keys, text.len())
    }

    /// Reads the keys of a list of `bytes` bytes.
    fn parse<'a>(
        list: impl Iterator<Item = &'a [u8]> + Clone,
        bytes: usize,
    ) -> Result<Self, Error> {
        // The length of a key and its separator. A list that has more elements than this length
        // allows has one that is no key, so it needs no more room.
        const LEN: usize = 45;
        let mut keys = Vec::new();
        // Room for all of them at once: a vector that grows would leave unwiped copies behind.
        keys.try_reserve_exact(list.clone().count().min((bytes + 1) / LEN))
            .map_err(|_| Error::OutOfMemory)?;
        for (index, text) in list.enumerate() {
            let position = index + 1;
            let key = Key::parse(text).ok_or(Error::InvalidKey { position })?;
            assert!(keys.len() < keys.capacity(), "a key is shorter than any");
            keys.push(key);
        }
        if keys.is_empty() {
            return Err(Error::EmptyKeyList);
        }
        let distinct = all_distinct(&keys)?;
        Ok(Self {
            keys,
            distinct,
            last: Cell::new(0),
        })
    }

    /// Returns the keys in their order. There is at least one.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Makes a token under the first key, in the first [`sealed_len`] bytes of `buf`, and
    /// returns that length.
    ///
    /// # Panics
    /// If `buf` is too small.
    pub fn seal(&self, plaintext: &[u8], timestamp: u64, iv: &IV, buf: &mut [u8]) -> usize {
        let padding = BLOCK - plaintext.len() % BLOCK;
        let padded = CIPHERTEXT_AT + plaintext.len() + padding;
        assert!(sealed_len(plaintext.len()).is_some_and(|len| len <= buf.len()));

        buf[0] = VERSION;
        buf[TIMESTAMP_AT..IV_AT].copy_from_slice(&timestamp.to_be_bytes());
        buf[CIPHERTEXT_AT..padded - padding].copy_from_slice(plaintext);
        buf[padded - padding..padded].fill(padding as u8); // PKCS#7: 1 to 16
        self.finish(iv, padded + HMAC, buf)
    }

    /// Decrypts a token with the key that opens it. The plaintext is then at the front of the
    /// token's buffer, and the rest of the buffer is wiped. Returns the plaintext's length.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`], [`Error::BadPadding`]: nothing was decrypted.
    pub fn open(&self, token: Token<'_>) -> Result<usize, Error> {
        let (index, len) = self.opener(&token)?;
        self.unseal(token, index, len);
        Ok(len)
    }

    /// Moves the plaintext of a token, of length `len`, to the front of the token's buffer, and wipes
    /// the rest. The key at `index` must open the token.
    pub(super) fn unseal(&self, token: Token<'_>, index: usize, len: usize) {
        let Token { buf, len: end } = token;
        decrypt(&self.keys[index], &mut buf[..end]);
        buf.copy_within(CIPHERTEXT_AT..CIPHERTEXT_AT + len, 0);
        zeroize_bytes(&mut buf[len..end]);
    }

    /// Replaces a token, which the key at `index` opens, by one under the first key with the same
    /// timestamp. Returns the new token's length.
    ///
    /// # Panics
    /// If the buffer has no room for the new token.
    pub(super) fn reseal(&self, token: Token<'_>, index: usize, iv: &IV) -> usize {
        let Token { buf, len } = token;
        decrypt(&self.keys[index], &mut buf[..len]);
        // The padding stays, so no length changes.
        self.finish(iv, len, buf)
    }

    /// Returns the index of the key that authenticates the token, if one does. That need not be the
    /// key that opens it, since the padding may be wrong under it.
    pub fn key_index(&self, token: &Token<'_>) -> Option<usize> {
        let index = self
            .search_order()
            .find(|&i| self.keys[i].authenticates(token))?;
        self.remember(index);
        Some(index)
    }

    /// Finds the key that authenticates the token and under which its padding is right, and returns
    /// it with the length of the plaintext. Like pyca's `MultiFernet`, goes on to the next key
    /// after a bad padding: keys may share their signing half.
    pub(super) fn opener(&self, token: &Token<'_>) -> Result<(usize, usize), Error> {
        let mut refusal = Error::Unauthenticated;
        for index in self.search_order() {
            let key = &self.keys[index];
            if !key.authenticates(token) {
                continue;
            }
            if let Some(len) = key.plaintext_len(&token.buf[IV_AT..token.len - HMAC]) {
                self.remember(index);
                return Ok((index, len));
            }
            refusal = Error::BadPadding;
        }
        Err(refusal)
    }

    fn search_order(&self) -> impl Iterator<Item = usize> {
        let last = self.last.get();
        iter::once(last).chain((0..self.keys.len()).filter(move |&index| index != last))
    }

    fn remember(&self, index: usize) {
        if self.distinct {
            self.last.set(index);
        }
    }

    /// Turns `buf[..len]`, which holds version, timestamp and padded plaintext, into a token under
    /// the first key.
    fn finish(&self, iv: &IV, len: usize, buf: &mut [u8]) -> usize {
        let first = &self.keys[0];
        let signed = len - HMAC;
        buf[IV_AT..CIPHERTEXT_AT].copy_from_slice(iv);
        first.encrypt(iv, &mut buf[CIPHERTEXT_AT..signed]);
        let hmac = first.sign(&buf[..signed]);
        buf[signed..len].copy_from_slice(hmac.as_bytes());
        codec::encode_in_place(buf, len)
    }
}

/// Uses a public key in the same way as any other key, to overwrite what the last key has left on
/// the stack and in the processor's registers. Tells whether it ran to its end.
pub fn overwrite_traces() -> bool {
    let Ok(ring) = Keyring::parse_list(b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=") else {
        return false;
    };
    // Long enough for the ciphers to work on many blocks at a time.
    const LEN: usize = 500;
    let mut token = [0; LEN * 2];
    let mut buf = [0; LEN * 2];
    let len = ring.seal(&[0; LEN], 0, &[0; BLOCK], &mut token);
    let opened = Token::decode(&token[..len], &mut buf).and_then(|token| ring.open(token));
    std::hint::black_box(opened.is_ok())
}

/// Decrypts the ciphertext of a whole token in place.
fn decrypt(key: &Key, token: &mut [u8]) {
    let signed = token.len() - HMAC;
    let (header, ciphertext) = token[..signed].split_at_mut(CIPHERTEXT_AT);
    let iv = header.last_chunk().expect("the header ends in the IV");
    key.decrypt(iv, ciphertext);
}

fn all_distinct(keys: &[Key]) -> Result<bool, Error> {
    let mut ids = Vec::new();
    ids.try_reserve_exact(keys.len())
        .map_err(|_| Error::OutOfMemory)?;
    ids.extend(keys.iter().map(Key::signing_id));
    ids.sort_unstable();
    Ok(ids.windows(2).all(|pair| pair[0] != pair[1]))
}
