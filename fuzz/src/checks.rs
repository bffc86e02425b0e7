//! One check per fuzz target. Each takes whatever the fuzzer makes up, and panics if the core is
//! not what the rules, or the `fernet` crate, make of it.

use sha2::{Digest as _, Sha256};

use super::rules::{self, Key};
use crate::codec;
use crate::fernet::{Error, IV, Keyring, Token, sealed_len};

/// Keys for the fuzzer to choose from: that of the vectors, one of its own, and two that share the
/// half that signs.
const KEYS: [Key; 4] = [
    *b"\x73\x0f\xf4\xc7\xaf\x3d\x46\x92\x3e\x8e\xd4\x51\xee\x81\x3c\x87\xf7\x90\xb0\xa2\x26\xbc\x96\xa9\x2d\xe4\x9b\x5e\x9c\x05\xe1\xee",
    *b"a key's signing and its cipher's",
    *b"a half shared by the first of it",
    *b"a half shared by a second of it.",
];

const NEW_IV: IV = *b"another IV, new.";

/// Decoding and encoding: both ways of the core, and both of the `base64` crate's.
pub fn decode(data: &[u8]) {
    let expected = rules::decode(data);
    type Decode = fn(&[u8], &mut [u8]) -> Option<usize>;
    for decode in [codec::decode as Decode, codec::decode_lenient] {
        // No byte more than is promised to be enough, so that writing behind it shows.
        let mut buf = vec![0; Token::decoded_len_max(data.len())];
        let decoded = decode(data, &mut buf).map(|len| &buf[..len]);
        assert_eq!(decoded, expected.as_deref());
    }
    if let Some(decoded) = &expected {
        let mut buf = vec![0; decoded.len()];
        assert_eq!(codec::decode_lenient(data, &mut buf), Some(decoded.len()));
        buf.pop();
        assert_eq!(
            codec::decode_lenient(data, &mut buf).is_some(),
            decoded.is_empty()
        );
    }

    let encoded = rules::encode(data);
    let mut buf = data.to_vec();
    buf.resize(codec::encoded_len(data.len()).unwrap(), 0);
    assert_eq!(codec::encode_in_place(&mut buf, data.len()), encoded.len());
    assert_eq!(buf, encoded.as_bytes());
    assert_eq!(rules::decode(encoded.as_bytes()).as_deref(), Some(data));
}

/// Key lists and key files. A byte from 0xf0 on also stands for a whole key.
pub fn key_list(data: &[u8]) {
    let mut with_keys = Vec::new();
    for &byte in data {
        match byte {
            0xf0.. => {
                with_keys.extend(rules::encode(&KEYS[usize::from(byte) % KEYS.len()]).bytes())
            }
            _ => with_keys.push(byte),
        }
    }
    for text in [data, &with_keys] {
        compare_keys(Keyring::parse_list(text), rules::key_list(text));
        compare_keys(Keyring::parse_lines(text), rules::key_file(text));
    }
}

fn compare_keys(ring: Result<Keyring, Error>, expected: Result<Vec<Key>, Error>) {
    let fingerprints = |ring: Keyring| {
        ring.keys()
            .iter()
            .map(|key| key.fingerprint().to_vec())
            .collect()
    };
    let expected = expected.map(|keys| {
        keys.iter()
            .map(|key| Sha256::digest(key)[..8].to_vec())
            .collect()
    });
    assert_eq!(
        ring.map(fingerprints),
        expected as Result<Vec<Vec<u8>>, Error>
    );
}

/// Opening a token, and which key it is under.
pub fn open(data: &[u8]) {
    let Some(Case { keys, token }) = Case::new(data) else {
        return;
    };
    let record = rules::record(&token);
    let expected = record.and_then(|record| {
        let (index, plaintext) = rules::open(keys, &record)?;
        Ok((
            index,
            plaintext,
            rules::key_index(keys, &record),
            timestamp(&record),
        ))
    });
    let ring = keyring(keys);
    // Whatever key the ring remembers from the token before: the last of them, then this one's.
    open_one_under(keys.last().unwrap(), &ring);
    for _ in 0..2 {
        let mut buf = vec![0; Token::decoded_len_max(token.len())];
        let opened = Token::decode(&token, &mut buf).and_then(|decoded| {
            let index = ring.opening_key(&decoded)?;
            let (signer, timestamp) = (ring.key_index(&decoded), decoded.timestamp());
            let plaintext = open_in(&ring, &token)?;
            Ok((index, plaintext, signer, timestamp))
        });
        assert_eq!(opened, expected);
    }
}

/// Rotation: the same plaintext, at the same time, under the first key.
pub fn rotate(data: &[u8]) {
    let Some(Case { keys, token }) = Case::new(data) else {
        return;
    };
    let record = rules::record(&token);
    let expected = record.and_then(|record| match rules::open(keys, &record)? {
        (0, _) => Ok(None),
        (_, plaintext) => Ok(Some((plaintext, timestamp(&record)))),
    });
    let ring = keyring(keys);
    open_one_under(keys.last().unwrap(), &ring);
    let rotated = rotate_in(&ring, &token);
    let found = rotated.clone().map(|rotated| {
        rotated.map(|rotated| {
            let record = rules::record(&rotated).unwrap();
            assert_eq!(rules::encode(&record).as_bytes(), rotated, "canonical");
            assert_eq!(record[9..25], NEW_IV);
            let (_, plaintext) = rules::open(&keys[..1], &record).unwrap();
            (plaintext, timestamp(&record))
        })
    });
    assert_eq!(found, expected);
    if let Ok(Some(rotated)) = rotated {
        assert_eq!(open_in(&ring, &rotated), open_in(&ring, &token));
        assert_eq!(rotate_in(&ring, &rotated), Ok(None));
    }
}

/// The `fernet` crate on the same tokens. It differs on purpose, in three ways:
///
/// * it refuses a timestamp from the future, so it is told that it is that time;
/// * it takes base64url alone, so it gets what we take in that form;
/// * it takes any number of `=` at the end, even none, so what it takes we get with those it lacks.
pub fn fernet_crate(data: &[u8]) {
    let Some(Case { keys, token }) = Case::new(data) else {
        return;
    };
    let ring = keyring(keys);
    if let Some(bytes) = rules::decode(&token) {
        let theirs = open_with_crate(keys, &rules::encode(&bytes));
        assert_eq!(open_in(&ring, &token).ok(), theirs);
    }
    if let Ok(token) = str::from_utf8(&token)
        && let Some(theirs) = open_with_crate(keys, token)
    {
        assert_eq!(open_in(&ring, padded(token).as_bytes()), Ok(theirs));
    }
}

/// What a check of tokens works on.
struct Case {
    keys: &'static [Key],
    token: Vec<u8>,
}

impl Case {
    /// Makes a token of what the fuzzer made up. It could not guess an HMAC: so its first bytes say
    /// under which keys the rest becomes a token, and how that is written.
    fn new(data: &[u8]) -> Option<Self> {
        let (&[ring, signer, spelling], rest) = data.split_first_chunk()?;
        // One or more, from any on. The one that signs need not be among them.
        let first = usize::from(ring >> 2) % KEYS.len();
        let keys = &KEYS[first..];
        let keys = &keys[..1 + usize::from(ring) % keys.len()];
        let key = &KEYS[usize::from(signer >> 2) % KEYS.len()];
        let mut record = rest.to_vec();
        match signer & 3 {
            0 => {
                return Some(Self {
                    keys,
                    token: record,
                });
            } // as text
            1 => {} // as it is
            2 => record.extend(rules::sign(key, rest)),
            _ => {
                rules::encrypt(key, &mut record);
                record.extend(rules::sign(key, &record));
            }
        }
        Some(Self {
            keys,
            token: spell(&record, spelling),
        })
    }
}

/// Writes a token in one of the ways that pyca takes, or nearly so.
fn spell(record: &[u8], how: u8) -> Vec<u8> {
    let mut token = rules::encode(record);
    if how & 1 != 0 {
        token = token.replace('-', "+").replace('_', "/");
    }
    if how & 2 != 0 {
        token.truncate(token.trim_end_matches('=').len());
    }
    if how & 4 != 0 {
        token.push_str("=more");
    }
    if how & 8 != 0 {
        token.insert(token.len() * usize::from(how) / 256, '\n');
    }
    token.into_bytes()
}

fn timestamp(record: &[u8]) -> u64 {
    u64::from_be_bytes(record[1..9].try_into().unwrap())
}

fn keyring(keys: &[Key]) -> Keyring {
    let list: Vec<String> = keys.iter().map(|key| rules::encode(key)).collect();
    Keyring::parse_list(list.join(",").as_bytes()).unwrap()
}

fn open_in(ring: &Keyring, token: &[u8]) -> Result<Vec<u8>, Error> {
    let mut buf = vec![0; Token::decoded_len_max(token.len())];
    let len = ring.open(Token::decode(token, &mut buf)?)?;
    assert!(
        buf[len..].iter().all(|&byte| byte == 0),
        "what stood behind the plaintext is wiped"
    );
    buf.truncate(len);
    Ok(buf)
}

fn rotate_in(ring: &Keyring, token: &[u8]) -> Result<Option<Vec<u8>>, Error> {
    let mut buf = vec![0; token.len()];
    let len = ring.rotate(Token::decode(token, &mut buf)?, &NEW_IV)?;
    Ok(len.map(|len| buf[..len].to_vec()))
}

fn open_one_under(key: &Key, ring: &Keyring) {
    let mut token = vec![0; sealed_len(3).unwrap()];
    keyring(&[*key]).seal(b"one", 0, &NEW_IV, &mut token);
    ring.open(Token::decode(&token.clone(), &mut token).unwrap())
        .unwrap();
}

fn open_with_crate(keys: &[Key], token: &str) -> Option<Vec<u8>> {
    let record = rules::record(padded(token).as_bytes()).ok()?;
    let time = timestamp(&record).saturating_sub(60);
    keys.iter().find_map(|key| {
        let key = ::fernet::Fernet::new(&rules::encode(key)).unwrap();
        key.decrypt_at_time(token, None, time).ok()
    })
}

/// What is too many of them is ignored.
fn padded(token: &str) -> String {
    token.trim_end_matches('=').to_owned() + "=="
}
