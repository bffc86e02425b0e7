use aes::{Aes128Dec, Aes128Enc, Block};
use cbc::cipher::block_padding::{Padding as _, Pkcs7};
use cbc::cipher::{BlockModeDecrypt as _, BlockModeEncrypt as _, InnerIvInit as _, KeyInit as _};
use hmac::block_api::HmacCore;
use hmac::digest::block_api::{Buffer, FixedOutputCore as _, UpdateCore as _};
use hmac::digest::{CtOutput, Digest as _, Output};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::codec;
use super::token::{BLOCK, HMAC, IV, Token};

/// Size of a key in bytes: one half signs, the other encrypts.
const KEY: usize = 32;

/// HMAC without a buffer of its own.
type Mac = HmacCore<Sha256>;

/// A Fernet key, ready to use: it holds the HMAC state and both key schedules, which are wiped when
/// it is dropped. It does not hold the bytes of the key itself.
pub struct Key {
    mac: Mac,
    encryptor: Aes128Enc,
    decryptor: Aes128Dec,
    fingerprint: [u8; 8],
}

impl Key {
    /// Reads a key: 32 bytes in base64, decoded as leniently as pyca does it, with one exception.
    /// No more base64 may follow its padding: that would be another key, which pyca ignores.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; KEY]);
        let (len, end) = codec::decode_lenient(text, &mut bytes[..])?;
        if len != KEY || text[end..].iter().copied().any(codec::is_char) {
            return None;
        }
        let (signing, encryption) = bytes.split_at(KEY / 2);
        let encryptor = Aes128Enc::new_from_slice(encryption).ok()?;
        Some(Self {
            mac: Mac::new_from_slice(signing).ok()?,
            decryptor: Aes128Dec::from(&encryptor),
            encryptor,
            fingerprint: *Sha256::digest(&bytes[..]).first_chunk()?,
        })
    }

    /// Returns the first eight bytes of the SHA-256 of the key. They tell keys apart, and are of no
    /// use for finding a key.
    pub fn fingerprint(&self) -> [u8; 8] {
        self.fingerprint
    }

    /// Tells, in constant time, whether the token's HMAC was made with this key.
    pub(super) fn authenticates(&self, token: &Token<'_>) -> bool {
        self.sign(token.signed()) == CtOutput::new((*token.hmac()).into())
    }

    /// Returns the HMAC of a token's other bytes, which is compared in constant time. `Hmac` would give
    /// the same, but would clone a buffer that is still empty.
    pub(super) fn sign(&self, signed: &[u8]) -> CtOutput<Mac> {
        let mut mac = self.mac.clone();
        let mut buffer = Buffer::<Mac>::default();
        let mut hmac = Output::<Mac>::default();
        buffer.digest_blocks(signed, |blocks| mac.update_blocks(blocks));
        mac.finalize_fixed_core(&mut buffer, &mut hmac);
        CtOutput::new(hmac)
    }

    /// Returns the HMAC of the empty message, which is the same for two keys exactly if their
    /// signing halves are.
    pub(super) fn signing_id(&self) -> [u8; HMAC] {
        self.sign(&[]).into_bytes().into()
    }

    /// Returns the plaintext's length, or `None` if the padding is wrong under this key. Looks only
    /// at the last block, so that nothing is decrypted in vain. `blocks` is IV and ciphertext.
    pub(super) fn plaintext_len(&self, blocks: &[u8]) -> Option<usize> {
        let (before, last) = blocks.split_last_chunk::<BLOCK>()?;
        let mut block = Zeroizing::new(Block::from(*last));
        self.decrypt(before.last_chunk()?, &mut block[..]);
        let tail = Pkcs7::unpad(&block).ok()?.len();
        Some(before.len() - BLOCK + tail)
    }

    /// Decrypts whole blocks in place, including their padding.
    pub(super) fn decrypt(&self, iv: &IV, blocks: &mut [u8]) {
        let (blocks, _) = Block::slice_as_chunks_mut(blocks);
        cbc::Decryptor::inner_iv_init(&self.decryptor, &(*iv).into()).decrypt_blocks(blocks);
    }

    /// Encrypts whole blocks, which are already padded, in place.
    pub(super) fn encrypt(&self, iv: &IV, blocks: &mut [u8]) {
        let (blocks, _) = Block::slice_as_chunks_mut(blocks);
        cbc::Encryptor::inner_iv_init(&self.encryptor, &(*iv).into()).encrypt_blocks(blocks);
    }
}
