//! Properties of the core. The `fernet` crate is the reference where the two are meant to agree.
//! They differ on purpose in three ways: we accept base64 as leniently as pyca does, ignore the
//! timestamp, and can keep it.

use std::convert::Infallible;

use fernet::{Fernet, MultiFernet};
use pg_fernet::fernet::{
    Error, Haystack, IV, Keyring, Token, count_tokens, overwrite_traces, sealed_len,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// The largest plaintext to try: past the chunks in which a token is encoded.
const LARGE: usize = 4000;

fn keyring(keys: &[&str]) -> Keyring {
    Keyring::parse_list(keys.join(",").as_bytes()).expect("valid keys")
}

fn seal(keyring: &Keyring, plaintext: &[u8], timestamp: u64, iv: &IV) -> String {
    let mut buf = vec![0; sealed_len(plaintext.len()).unwrap()];
    assert_eq!(keyring.seal(plaintext, timestamp, iv, &mut buf), buf.len());
    String::from_utf8(buf).expect("base64")
}

fn open(keyring: &Keyring, token: &[u8]) -> Result<Vec<u8>, Error> {
    let mut buf = vec![0xaa; Token::decoded_len_max(token.len())];
    let len = keyring.open(Token::decode(token, &mut buf)?)?;
    let plaintext = buf[..len].to_vec();
    // What followed the plaintext in the buffer is gone.
    let token_len = buf.len() - buf.iter().rev().take_while(|&&byte| byte == 0xaa).count();
    assert!(buf[len..token_len].iter().all(|&byte| byte == 0));
    Ok(plaintext)
}

/// The new token, if the value is a token that is not under the first key.
fn rotate(keyring: &Keyring, token: &[u8], iv: &IV) -> Result<Option<String>, Error> {
    let (mut buf, mut opener) = (vec![0; token.len()], Err(Error::NotAToken));
    let iv = || Ok::<IV, Infallible>(*iv);
    let Ok(len) = keyring.rotate_value(token, &mut buf, iv, |told| opener = told);
    opener?;
    Ok(len.map(|len| String::from_utf8(buf[..len].to_vec()).expect("base64")))
}

fn timestamp(token: &[u8]) -> u64 {
    let mut buf = vec![0; token.len()];
    Token::decode(token, &mut buf).expect("a token").timestamp()
}

fn key_index(keyring: &Keyring, token: &[u8]) -> Option<usize> {
    let mut buf = vec![0; token.len()];
    keyring.key_index(&Token::decode(token, &mut buf).ok()?)
}

/// What is reported about the tokens in a value.
fn inspect(keyring: &Keyring, value: &[u8]) -> Vec<Result<usize, Error>> {
    let mut openers = Vec::new();
    keyring.inspect_value(value, &mut vec![0; value.len()], |opener| {
        openers.push(opener)
    });
    openers
}

/// The new value, if anything is rotated. A rotation reports the same about its tokens as an
/// inspection.
fn rotate_value(keyring: &Keyring, value: &[u8]) -> Option<Vec<u8>> {
    let (mut buf, mut openers) = (vec![0xaa; value.len()], Vec::new());
    let mut ivs = (1..).map(|n| Ok::<IV, Infallible>([n; 16]));
    let iv = || ivs.next().unwrap();
    let Ok(len) = keyring.rotate_value(value, &mut buf, iv, |opener| openers.push(opener));
    assert_eq!(openers, inspect(keyring, value));
    len.map(|len| buf[..len].to_vec())
}

/// Base64 of 32 bytes.
fn key() -> impl Strategy<Value = String> {
    any::<[u8; 32]>().prop_map(|bytes| encode(&bytes))
}

fn encode(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE.encode(bytes)
}

fn decode(token: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE
        .decode(token)
        .expect("canonical base64")
}

proptest! {
    #[test]
    fn the_crate_opens_what_we_seal(key in key(), plaintext in vec(any::<u8>(), 0..LARGE), iv: IV) {
        let reference = Fernet::new(&key).unwrap();
        let token = seal(&keyring(&[&key]), &plaintext, 1_000_000_000, &iv);
        prop_assert_eq!(reference.decrypt(&token).unwrap(), plaintext);
    }

    #[test]
    fn we_open_what_the_crate_seals(key in key(), plaintext in vec(any::<u8>(), 0..LARGE), time: u32) {
        let token = Fernet::new(&key).unwrap().encrypt_at_time(&plaintext, time.into());
        prop_assert_eq!(timestamp(token.as_bytes()), u64::from(time));
        prop_assert_eq!(open(&keyring(&[&key]), token.as_bytes()), Ok(plaintext));
    }

    #[test]
    fn a_changed_token_is_refused_where_the_crate_refuses_it(
        key in key(),
        plaintext in vec(any::<u8>(), 0..100),
        at: prop::sample::Index,
        change in 1u8..,
    ) {
        let reference = Fernet::new(&key).unwrap();
        let mut bytes = decode(&reference.encrypt_at_time(&plaintext, 0));
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        let token = encode(&bytes);
        prop_assert!(reference.decrypt(&token).is_err());
        let expected = if at == 0 { Error::NotAToken } else { Error::Unauthenticated };
        prop_assert_eq!(open(&keyring(&[&key]), token.as_bytes()), Err(expected));
    }

    #[test]
    fn any_key_of_the_ring_opens(
        keys in vec(key(), 1..6),
        maker: prop::sample::Index,
        plaintext in vec(any::<u8>(), 0..100),
    ) {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let maker = maker.index(keys.len());
        let token = Fernet::new(keys[maker]).unwrap().encrypt(&plaintext);
        let reference = MultiFernet::new(keys.iter().map(|key| Fernet::new(key).unwrap()).collect());
        prop_assert_eq!(reference.decrypt(&token).unwrap(), &plaintext[..]);
        let ring = keyring(&keys);
        // Twice, since the ring remembers the key that opened the token before.
        for _ in 0..2 {
            prop_assert_eq!(key_index(&ring, token.as_bytes()), Some(maker));
            prop_assert_eq!(inspect(&ring, token.as_bytes()), [Ok(maker)]);
            prop_assert_eq!(open(&ring, token.as_bytes()), Ok(plaintext.clone()));
        }
    }

    #[test]
    fn rotation_keeps_plaintext_and_timestamp(
        new in key(),
        old in key(),
        plaintext in vec(any::<u8>(), 0..LARGE),
        time: u64,
        ivs: (IV, IV),
    ) {
        let ring = keyring(&[&new, &old]);
        let token = seal(&keyring(&[&old]), &plaintext, time, &ivs.0);
        let rotated = rotate(&ring, token.as_bytes(), &ivs.1).unwrap().expect("a new token");
        prop_assert_eq!(rotated.len(), token.len());
        prop_assert_eq!(timestamp(rotated.as_bytes()), time);
        prop_assert_eq!(open(&keyring(&[&new]), rotated.as_bytes()), Ok(plaintext.clone()));
        // The token that sealing under the new key would have made.
        prop_assert_eq!(&rotated, &seal(&keyring(&[&new]), &plaintext, time, &ivs.1));
        // A second run finds nothing to do.
        prop_assert_eq!(rotate(&ring, rotated.as_bytes(), &ivs.0), Ok(None));
    }

    #[test]
    fn a_token_of_no_key_of_the_ring_is_refused(keys in vec(key(), 1..4), other in key(), iv: IV) {
        prop_assume!(!keys.contains(&other));
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let token = seal(&keyring(&[&other]), b"secret", 1, &iv);
        let ring = keyring(&keys);
        prop_assert_eq!(open(&ring, token.as_bytes()), Err(Error::Unauthenticated));
        prop_assert_eq!(rotate(&ring, token.as_bytes(), &iv), Err(Error::Unauthenticated));
        prop_assert_eq!(key_index(&ring, token.as_bytes()), None);
    }

    #[test]
    fn foreign_bytes_between_the_characters_change_nothing(
        key in key(),
        plaintext in vec(any::<u8>(), 0..100),
        iv: IV,
        foreign in vec((any::<prop::sample::Index>(), "[^A-Za-z0-9+/_=-]"), 0..20),
    ) {
        let ring = keyring(&[&key]);
        let mut token: Vec<char> = seal(&ring, &plaintext, 1, &iv).chars().collect();
        for (at, character) in foreign {
            token.insert(at.index(token.len()), character.chars().next().unwrap());
        }
        let token: String = token.iter().collect();
        prop_assert_eq!(open(&ring, token.as_bytes()), Ok(plaintext));
    }

    #[test]
    fn no_input_panics(value in vec(any::<u8>(), 0..300)) {
        let ring = keyring(&[KEY]);
        prop_assert!(open(&ring, &value).is_err());
        prop_assert_eq!(key_index(&ring, &value), None);
        prop_assert!(inspect(&ring, &value).iter().all(Result::is_err));
        prop_assert_eq!(rotate_value(&ring, &value), None);
        let _ = Keyring::parse_list(&value);
        let _ = Keyring::parse_lines(&value);
    }
}

/// A part of a value.
#[derive(Clone, Debug)]
enum Part {
    Text(String),
    /// A token in one of its forms, under the first key, the second, or a third that is not in the
    /// ring.
    Token {
        key: usize,
        plaintext: Vec<u8>,
        equals: &'static str,
        slash: &'static str,
    },
}

impl Part {
    /// Text after which a token counts as a run of its own.
    fn separator() -> impl Strategy<Value = Self> {
        let text = prop_oneof![
            3 => "[,\"' :\n\\[{]{1,4}",
            1 => "[,\"é](gAAA|gA|x|=|%|, ){0,20}[,\"é=]?",
            1 => any::<String>().prop_map(|text| format!(",{text}")),
            1 => r",(\\{1,2}([nrtbfx]|u00e9|u00|/)){1,2}",
        ];
        text.prop_map(Self::Text)
    }

    fn token() -> impl Strategy<Value = Self> {
        let equals = prop::sample::select(vec!["=", "%3D", "%3d", "\\u003d", "\\\\u003D"]);
        let slash = prop::sample::select(vec!["_", "/", r"\/", r"\\\/"]);
        (0..3usize, vec(any::<u8>(), 0..50), equals, slash).prop_map(
            |(key, plaintext, equals, slash)| Self::Token {
                key,
                plaintext,
                equals,
                slash,
            },
        )
    }

    fn written(&self, rings: &[Keyring]) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Token {
                key,
                plaintext,
                equals,
                slash,
            } => {
                let token = seal(&rings[*key], plaintext, 1_700_000_000, &[7; 16]);
                let minus = if *slash == "_" { "-" } else { "+" };
                let token = token.replace('-', minus).replace('_', slash);
                token.replace('=', equals)
            }
        }
    }
}

/// Tells whether a text ends without a base64 character, apart from an escape.
fn is_alone(before: &str) -> bool {
    let is_char = |c: char| c.is_ascii_alphanumeric() || "+/-_".contains(c);
    let rest = before.trim_end_matches(is_char);
    let chars = &before[rest.len()..];
    let is_escape = match chars.strip_prefix('u') {
        Some(digits) => digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => ["n", "r", "t", "b", "f"].contains(&chars),
    };
    chars.is_empty() || rest.ends_with('\\') && is_escape
}

proptest! {
    /// Whatever surrounds them, each token is rotated where it is, and everything else stays.
    #[test]
    fn tokens_in_a_value(
        first in Part::separator(),
        parts in vec((Part::token(), Part::separator()), 0..5),
    ) {
        let keys: Vec<String> = (1..4).map(|n| encode(&[n; 32])).collect();
        let rings: Vec<Keyring> = keys.iter().map(|key| keyring(&[key])).collect();
        let ring = keyring(&[&keys[0], &keys[1]]);
        let parts: Vec<Part> = [first]
            .into_iter()
            .chain(parts.into_iter().flat_map(|(token, separator)| [token, separator]))
            .collect();
        let value: String = parts.iter().map(|part| part.written(&rings)).collect();

        // Without a key for it, a token must be a run of its own.
        let mut expected = Vec::new();
        let mut alone = 0;
        for pair in parts.windows(2) {
            let [Part::Text(before), Part::Token { key, .. }] = pair else {
                continue;
            };
            alone += usize::from(is_alone(before));
            match key {
                0 | 1 => expected.push(Ok(*key)),
                _ if is_alone(before) => expected.push(Err(Error::Unauthenticated)),
                _ => {}
            }
        }
        // The value as a whole may look like a token, too.
        let mut buf = vec![0; value.len()];
        if expected.is_empty() && Token::decode(value.as_bytes(), &mut buf).is_ok() {
            expected.push(Err(Error::Unauthenticated));
        }
        // Refused tokens come last.
        expected.sort_by_key(Result::is_err);
        let told = inspect(&ring, value.as_bytes());
        prop_assert_eq!(&told, &expected);
        let counted = count_tokens(value.as_bytes(), &mut vec![0; value.len()]);
        prop_assert!(counted == alone || alone == 0);

        let rotated = rotate_value(&ring, value.as_bytes());
        prop_assert_eq!(rotated.is_some(), told.contains(&Ok(1)));
        let rotated = rotated.unwrap_or_else(|| value.clone().into_bytes());
        let mut rest = &rotated[..];
        for part in &parts {
            let old = part.written(&rings);
            // Escapes are left as they were.
            let escapes = match part {
                Part::Token { key: 1, slash, .. } => (slash.len() - 1) * old.matches(slash).count(),
                _ => 0,
            };
            let (new, behind) = rest.split_at(old.len() - escapes);
            rest = behind;
            match part {
                Part::Token { key: 1, plaintext, equals, .. } => {
                    let new = str::from_utf8(new).unwrap();
                    let at = new.find(equals).unwrap_or(new.len());
                    prop_assert_eq!(&new[at..], &old[at + escapes..]);
                    let new = new.replace(equals, "=");
                    prop_assert_eq!(&encode(&decode(&new)), &new);
                    prop_assert_eq!(open(&rings[0], new.as_bytes()), Ok(plaintext.clone()));
                    prop_assert_eq!(timestamp(new.as_bytes()), 1_700_000_000);
                }
                _ => prop_assert_eq!(new, old.as_bytes()),
            }
        }
        prop_assert!(rest.is_empty());
        prop_assert_eq!(rotate_value(&ring, &rotated), None);
        let again: Vec<_> = told.iter().map(|opener| opener.map(|_| 0)).collect();
        prop_assert_eq!(inspect(&ring, &rotated), again);
    }

    /// Each token of a value gets its own initialisation vector, and none is fetched in vain.
    #[test]
    fn initialisation_vectors(makers in vec(0..2usize, 1..6)) {
        let (new, old) = (encode(&[1; 32]), encode(&[2; 32]));
        let rings = [keyring(&[&new]), keyring(&[&old])];
        let tokens: Vec<String> = makers.iter().map(|&key| seal(&rings[key], b"x", 1, &[0; 16])).collect();
        let value = tokens.join(",");
        let rotated = rotate_value(&keyring(&[&new, &old]), value.as_bytes());
        let rotated = String::from_utf8(rotated.unwrap_or_else(|| value.into_bytes())).unwrap();
        let ivs: Vec<u8> = rotated.split(',').map(|token| decode(token)[9]).collect();
        let mut next = 1..;
        let expected: Vec<u8> = makers.iter().map(|&key| if key == 0 { 0 } else { next.next().unwrap() }).collect();
        prop_assert_eq!(ivs, expected);
    }
}

/// A token at the end of any run is found, however long the run is.
#[test]
fn a_token_behind_a_hostile_run() {
    let (new, old) = (encode(&[1; 32]), encode(&[2; 32]));
    let (ring, old) = (keyring(&[&new, &old]), keyring(&[&old]));
    for plaintext in [&b"secret"[..], &[0; 20], &[0; 3000]] {
        let token = seal(&old, plaintext, 1, &[0; 16]);
        let hostile = "gAAA".repeat(1 << 18) + "A" + &"gAAAA".repeat(1 << 10);
        let value = format!("{hostile}{token}");
        assert_eq!(inspect(&ring, value.as_bytes()), [Ok(1)]);
        let rotated = rotate_value(&ring, value.as_bytes()).expect("a new value");
        assert!(rotated.starts_with(hostile.as_bytes()));
        assert_eq!(open(&ring, &rotated[hostile.len()..]).unwrap(), plaintext);
    }
}

/// What pyca reads of a value is rotated, whatever the rest: pyca skips other bytes, and ends at the
/// padding.
#[test]
fn a_token_with_foreign_bytes_in_it() {
    let (new, old) = (encode(&[1; 32]), encode(&[2; 32]));
    let (ring, old) = (keyring(&[&new, &old]), keyring(&[&old]));
    let token = seal(&old, b"secret", 1, &[0; 16]);
    let unknown = seal(&keyring(&[&encode(&[3; 32])]), b"secret", 1, &[0; 16]);
    let broken = format!("{}\n{}", &token[..60], &token[60..]);
    for (before, behind, openers) in [
        ("", "", &[Ok(1)][..]),
        (" '\t", "\r\n\n", &[Ok(1)]),
        ("", "\n# note", &[Ok(1)]),
        // Another token after it, which is not broken.
        ("[", &format!(",{token}]"), &[Ok(1), Ok(1)]),
        (
            "",
            &format!("\n{unknown}"),
            &[Ok(1), Err(Error::Unauthenticated)],
        ),
    ] {
        let value = format!("{before}{broken}{behind}");
        assert_eq!(inspect(&ring, value.as_bytes()), openers, "{value}");
        let rotated = rotate_value(&ring, value.as_bytes()).expect("a new value");
        assert_eq!(rotated.len(), value.len() - 1);
        let rest = rotated.strip_prefix(before.as_bytes()).unwrap();
        let (canonical, rest) = rest.split_at(token.len());
        assert_eq!(
            encode(&decode(str::from_utf8(canonical).unwrap())).as_bytes(),
            canonical
        );
        assert_eq!(open(&ring, canonical).unwrap(), b"secret");
        match behind.contains(&token) {
            true => assert_eq!(open(&ring, &rest[1..rest.len() - 1]).unwrap(), b"secret"),
            false => assert_eq!(rest, behind.as_bytes()),
        }
        assert_eq!(rotate_value(&ring, &rotated), None);
    }
    // Unknown keys, and no keys at all.
    let broken = format!("{}\n{}", &unknown[..60], &unknown[60..]);
    assert_eq!(
        inspect(&ring, broken.as_bytes()),
        [Err(Error::Unauthenticated)]
    );
    assert_eq!(
        count_tokens(broken.as_bytes(), &mut vec![0; broken.len()]),
        1
    );
}

/// Without a key that opens it, a token must be the whole run. Text that only resembles a token,
/// such as an image, is none. The plaintext of a value that is one token and nothing else.
fn open_value(keyring: &Keyring, value: &[u8]) -> (Option<Vec<u8>>, Vec<Result<usize, Error>>) {
    let (mut buf, mut openers) = (vec![0; value.len()], Vec::new());
    let len = keyring.open_value(value, &mut buf, |opener| openers.push(opener));
    (len.map(|len| buf[..len].to_vec()), openers)
}

#[test]
fn a_value_that_is_one_token_and_nothing_else() {
    let keys = [Fernet::generate_key(), Fernet::generate_key()];
    let keyring = keyring(&[&keys[0], &keys[1]]);
    let token = Fernet::new(&keys[1]).unwrap().encrypt(b"secret");
    let (start, end) = token.split_at(40);
    for whole in [
        token.clone(),
        format!(" {token}\r\n"),
        format!("{start}\n{end}"),
        token.replace('-', "+").replace('_', "/"),
    ] {
        let opened = (Some(b"secret".to_vec()), vec![Ok(1)]);
        assert_eq!(open_value(&keyring, whole.as_bytes()), opened, "{whole}");
        let mut buf = vec![0; whole.len()];
        assert!(Token::decode_whole(whole.as_bytes(), &mut buf).is_some());
    }
    // pyca opens some of these, too, and the text beside the token would be lost.
    for (text, tokens) in [
        (format!("\"{token}\""), 1),
        (format!("{token},{token}"), 2),
        (format!("{token} {token}"), 2),
        (format!("{token}x"), 1),
        (format!("={token}"), 1),
        (format!("{start}-\u{e4}-{end}"), 0),
        (token.replace("==", "%3D%3D"), 1),
    ] {
        let (plaintext, openers) = open_value(&keyring, text.as_bytes());
        assert_eq!(plaintext, None, "{text}");
        assert_eq!(openers, inspect(&keyring, text.as_bytes()));
        assert_eq!(openers.len(), tokens, "{text}");
        let mut buf = vec![0; text.len()];
        assert!(Token::decode_whole(text.as_bytes(), &mut buf).is_none());
    }
    let foreign = Fernet::new(&Fernet::generate_key()).unwrap().encrypt(b"x");
    let refused = (None, vec![Err(Error::Unauthenticated)]);
    assert_eq!(open_value(&keyring, foreign.as_bytes()), refused);
    assert_eq!(open_value(&keyring, b"secret"), (None, vec![]));
}

#[test]
fn what_no_key_opens() {
    let (new, other) = (encode(&[1; 32]), encode(&[2; 32]));
    let ring = keyring(&[&new]);
    let told = |value: &str| {
        let openers = inspect(&ring, value.as_bytes());
        // What has the form of a token is counted without keys, too.
        let counted = count_tokens(value.as_bytes(), &mut vec![0; value.len()]);
        assert_eq!(counted, openers.len(), "{value}");
        openers
    };
    let token = seal(&keyring(&[&other]), b"secret", 1, &[0; 16]);
    let unknown = [Err(Error::Unauthenticated)];
    assert_eq!(told(&token), unknown);
    assert_eq!(told(&format!("{{\"x\":\"{token}\"}}")), unknown);
    assert_eq!(told(&format!("{token},{token}")), [unknown[0]; 2]);
    for none in [
        format!("x{token}"),
        // Cut short.
        format!("({})", token.trim_end_matches('=')),
        format!("({})", &token[..token.len() - 1]),
        format!("({}", &token[4..]),
        // Of the year 6325, in a value.
        format!(
            "[1, {}]",
            seal(&keyring(&[&other]), b"secret", 1 << 37, &[0; 16])
        ),
        format!(
            "data:image/png;base64,iVBORw0KGgo{}",
            "gAAAAAx/".repeat(100)
        ),
        String::new(),
    ] {
        assert_eq!(told(&none), []);
    }
    // As the whole value, that one is a token.
    assert_eq!(
        told(&seal(&keyring(&[&other]), b"secret", 1 << 37, &[0; 16])),
        unknown
    );
}

/// The HMAC is right, and the padding is not: no key opens such a token. An Elixir library made this
/// one.
#[test]
fn a_token_with_a_wrong_padding() {
    let ring = keyring(&[KEY, "fJXYWeIEcXMO3tLDheFVezM5QWBVFvkymG80n0Rluqs="]);
    let token = "gAAAAABbMo2BBMM_-oujQN75vi92E0_HDf-TWTLLZYX6S3sqDyJh4QL9Qqi4oPP47mEcc5OBQ2qUmqJfJVmt1UBuRBK096V8Rp5M-f-sjS79HKJedlg9Ay4=";
    let unknown = seal(&keyring(&[&encode(&[3; 32])]), b"x", 1, &[0; 16]);
    let refused = Err(Error::BadPadding);
    for (value, openers) in [
        (token.into(), &[refused][..]),
        (format!("'{token}'"), &[refused]),
        (format!("x{token}"), &[]),
        (
            format!("{token},{unknown}"),
            &[Err(Error::Unauthenticated), refused],
        ),
    ] {
        assert_eq!(inspect(&ring, value.as_bytes()), openers);
        assert_eq!(rotate_value(&ring, value.as_bytes()), None);
    }
}

/// Keys may share their signing half. If the padding is wrong under one key, pyca goes on to the
/// next. So a ring must neither stop at the first HMAC that matches, nor trust the key that it
/// remembers.
#[test]
fn keys_that_share_their_signing_half() {
    let key = |encryption: u8| {
        let mut bytes = [7; 32];
        bytes[16..].fill(encryption);
        encode(&bytes)
    };
    let (first, second, third) = (key(1), key(2), key(3));
    let ring = keyring(&[&first, &second]);
    for iv in 0..200 {
        let token = seal(&keyring(&[&second]), b"a secret", 1, &[iv; 16]);
        // In about one case of 256, what the first key makes of it ends in something like padding.
        match open(&keyring(&[&first]), token.as_bytes()) {
            Ok(garbage) => assert_eq!(open(&ring, token.as_bytes()), Ok(garbage)),
            Err(_) => assert_eq!(open(&ring, token.as_bytes()), Ok(b"a secret".to_vec())),
        }
        // The key that authenticates it is still the first.
        assert_eq!(key_index(&ring, token.as_bytes()), Some(0));
    }
    let token = seal(&keyring(&[&third]), b"a secret", 1, &[0; 16]);
    assert_eq!(open(&ring, token.as_bytes()), Err(Error::BadPadding));
}

#[test]
fn duplicates_of_the_first_key_are_the_first_key() {
    let key = Fernet::generate_key();
    let other = Fernet::generate_key();
    let ring = keyring(&[&key, &other, &key]);
    let token = Fernet::new(&key).unwrap().encrypt(b"a secret");
    for _ in 0..2 {
        assert_eq!(key_index(&ring, token.as_bytes()), Some(0));
        assert_eq!(rotate(&ring, token.as_bytes(), &[0; 16]), Ok(None));
        assert!(open(&ring, Fernet::new(&other).unwrap().encrypt(b"x").as_bytes()).is_ok());
    }
}

const KEY: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";

#[test]
fn key_lists() {
    let parse = |list: &str| Keyring::parse_list(list.as_bytes()).map(|ring| ring.keys().len());
    assert_eq!(parse(KEY), Ok(1));
    assert_eq!(parse(&format!("{KEY},{KEY} , '{KEY}'\n")), Ok(3));
    assert_eq!(parse(&KEY.replace('_', "/").replace('-', "+")), Ok(1));
    for empty in ["", " ", "\n\t"] {
        assert_eq!(parse(empty), Err(Error::EmptyKeyList));
    }
    for (list, position) in [
        ("secret".into(), 1),
        (",".into(), 1),
        (format!("{KEY},"), 2),
        (format!(",{KEY}"), 1),
        (format!("{KEY},,{KEY}"), 2),
        (KEY.trim_end_matches('=').into(), 1),
        (format!("{KEY}, {}", &KEY[4..]), 2),
        (format!("{KEY},AAAA{KEY}"), 2),
        (format!("{KEY} {KEY}"), 1),
        (format!("{KEY};{KEY}"), 1),
        (format!("{KEY},{KEY}\n{KEY}"), 2),
        (format!("{KEY}{KEY}"), 1),
        (format!("{KEY} -"), 1),
        (format!("{KEY} new"), 1),
    ] {
        let refusal = Error::InvalidKey { position };
        assert_eq!(parse(&list), Err(refusal), "{list:?}");
    }
}

#[test]
fn key_files() {
    let parse = |text: &str| Keyring::parse_lines(text.as_bytes()).map(|ring| ring.keys().len());
    assert_eq!(parse(KEY), Ok(1));
    assert_eq!(parse(&format!("{KEY}\n{KEY}\r\n")), Ok(2));
    assert_eq!(parse(&format!("{KEY},{KEY}\n\n, {KEY},\n")), Ok(3));
    assert_eq!(
        parse(&format!("# old, new\n\n  # {KEY}\n{KEY} # since May\n#")),
        Ok(1)
    );
    for empty in ["", "\n", "# nothing\n", " ,\n,"] {
        assert_eq!(parse(empty), Err(Error::EmptyKeyList));
    }
    for (text, position) in [
        ("secret".into(), 1),
        (format!("# a comment\n\n{KEY}\nbad\n"), 2),
        // A file without a final line break, and what was appended to it.
        (format!("{KEY}\n{KEY}{KEY}\n"), 2),
        (format!("{KEY} {KEY}\n"), 1),
        (format!("{KEY} since May\n"), 1),
    ] {
        let refusal = Error::InvalidKey { position };
        assert_eq!(parse(&text), Err(refusal), "{text:?}");
    }
}

/// `printf KEY | base64 -d | sha256sum`
#[test]
fn fingerprint() {
    let ring = keyring(&[KEY]);
    assert_eq!(
        ring.keys()[0].fingerprint(),
        [0xcb, 0xeb, 0x36, 0x2f, 0x1f, 0xa6, 0x9a, 0x66]
    );
}

#[test]
fn three_bytes_for_four_characters_are_enough() {
    for len in 0..100 {
        assert_eq!(Token::decoded_len_max(len), (3 * len).div_ceil(4));
    }
}

#[test]
fn refusals_say_what_is_wrong() {
    for (refusal, message) in [
        (Error::EmptyKeyList, "the key list is empty"),
        (
            Error::InvalidKey { position: 2 },
            "key 2 is not a valid Fernet key",
        ),
        (Error::NotAToken, "value is not a Fernet token"),
        (
            Error::Unauthenticated,
            "no key authenticates the Fernet token",
        ),
        (Error::BadPadding, "padding of the Fernet token is wrong"),
        (Error::OutOfMemory, "out of memory"),
    ] {
        assert_eq!(refusal.to_string(), message);
    }
}

/// pg_test/security looks for what it overwrites; here, it only has to come to its end.
#[test]
fn overwriting_traces_succeeds() {
    assert!(overwrite_traces());
}

/// Several tokens in a path, in either alphabet, with or without padding.
#[test]
fn tokens_in_a_path() {
    let (new, old) = (encode(&[1; 32]), encode(&[2; 32]));
    let (ring, old) = (keyring(&[&new, &old]), keyring(&[&old]));
    let unknown = seal(&keyring(&[&encode(&[3; 32])]), &[7; 40], 1, &[5; 16]);
    // 40 bytes need no padding.
    let token = seal(&old, &[7; 40], 1, &[5; 16]);
    let standard = token.replace('-', "+").replace('_', "/");
    assert!(!token.contains('=') && standard.contains('/') && standard.contains('+'));
    let escaped = standard.replace('/', "\\/");
    for (value, openers) in [
        (format!("https://host/{token}/edit"), &[Ok(1)][..]),
        (format!("https:\\/\\/host\\/{token}\\/edit"), &[Ok(1)]),
        (format!("{token}/{token}+{token}"), &[Ok(1); 3]),
        (format!("{standard}/{token}/x"), &[Ok(1); 2]),
        (format!("\"{escaped}\\/{token}\""), &[Ok(1); 2]),
        (format!("{token}\\/{escaped}"), &[Ok(1); 2]),
        (format!("x/{standard}"), &[Ok(1)]),
        (format!("{standard}/{standard}"), &[Ok(1); 2]),
        (format!("x/{standard}+{standard}/{token}"), &[Ok(1); 3]),
        (
            format!("\"{escaped}\\/{escaped}\\/{escaped}\""),
            &[Ok(1); 3],
        ),
        (format!("\"{escaped}\\/\""), &[Ok(1)]),
        // If no key opens it, there must be nothing else in the stretch.
        (format!("{unknown}/{token}"), &[Ok(1)]),
        (format!("{unknown}\\/{escaped}"), &[Ok(1)]),
        (format!("{unknown}/x"), &[]),
        (
            format!("\"\\n{unknown}\\u00e9{unknown}\\t\""),
            &[Err(Error::Unauthenticated); 2],
        ),
    ] {
        assert_eq!(inspect(&ring, value.as_bytes()), openers, "{value}");
        let old_tokens = openers.iter().filter(|opener| opener.is_ok()).count();
        let Some(rotated) = rotate_value(&ring, value.as_bytes()) else {
            assert_eq!(old_tokens, 0);
            continue;
        };
        // Bytes that do not belong to a token have not changed.
        let rotated = String::from_utf8(rotated).unwrap();
        let again = inspect(&ring, rotated.as_bytes());
        assert_eq!(again, vec![Ok(0); old_tokens], "{rotated}");
        let (mut before, mut after) = (value.clone(), rotated);
        for old in [&escaped, &standard, &token] {
            before = before.replace(old.as_str(), "?");
        }
        while let Some(at) = after.match_indices("gAAA").map(|(at, _)| at).find(|&at| {
            let end = at + token.len();
            end <= after.len() && open(&ring, &after.as_bytes()[at..end]).is_ok()
        }) {
            after.replace_range(at..at + token.len(), "?");
        }
        assert_eq!(after, before);
    }
}

/// A token in the standard alphabet may have as its last characters what joins it to the next one.
#[test]
fn tokens_that_end_in_what_joins_them() {
    let (new, old) = (encode(&[1; 32]), encode(&[2; 32]));
    let (ring, old) = (keyring(&[&new, &old]), keyring(&[&old]));
    for end in ["-", "_", "-_", "__"] {
        let mut tokens = (0..).map(|time| seal(&old, &[7; 40], time, &[5; 16]));
        let token = tokens.find(|token| token.ends_with(end)).unwrap();
        let token = token.replace('-', "+").replace('_', "/");
        for joint in ["/", "+", "//+"] {
            for slash in ["/", "\\/", "\\\\/"] {
                let path = [&token[..]; 3].join(joint).replace('/', slash);
                for value in [path.clone(), format!("a/{path}/\""), format!("{path}\\/,")] {
                    assert_eq!(inspect(&ring, value.as_bytes()), [Ok(1); 3], "{value}");
                    let rotated = rotate_value(&ring, value.as_bytes()).unwrap();
                    assert_eq!(inspect(&ring, &rotated), [Ok(0); 3], "{value}");
                    let joint = joint.replace('/', slash);
                    let rest = value.replace(&path, "");
                    let made = 3 * token.len() + 2 * joint.len() + rest.len();
                    assert_eq!(rotated.len(), made, "{value}");
                }
            }
        }
    }
}

/// As a whole, a document is never a token, whatever is in it.
#[test]
fn a_document_is_no_token() {
    let (new, old) = (encode(&[1; 32]), encode(&[2; 32]));
    let (ring, old) = (keyring(&[&new, &old]), keyring(&[&old]));
    let token = seal(&old, b"secret", 1, &[0; 16]);
    let (first, second) = token.split_at(60);
    let unlucky = format!("{{\"gB\": \"some gAAA word{}\"}}", "x".repeat(126));
    for document in [format!("{{\"{first}\": \"{second}\"}}"), unlucky] {
        let mut buf = vec![0; document.len()];
        let mut told = Vec::new();
        let haystack = Haystack::document(document.as_bytes());
        ring.inspect_value(haystack, &mut buf, |opener| told.push(opener));
        assert_eq!(told, []);
        assert_eq!(count_tokens(haystack, &mut buf), 0);
        // As text, the same bytes may be one.
        assert_eq!(inspect(&ring, document.as_bytes()).len(), 1);
    }
}
