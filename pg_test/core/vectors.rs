//! The Fernet specification's own test vectors.

use pg_fernet::fernet::{Error, IV, Keyring, Token, sealed_len};
use serde::Deserialize;

#[derive(Deserialize)]
struct Vector {
    token: String,
    #[serde(deserialize_with = "unix_time")]
    now: u64,
    secret: String,
    #[serde(default)]
    src: String,
    #[serde(default)]
    iv: IV,
    #[serde(default)]
    ttl_sec: u64,
    #[serde(default)]
    desc: String,
}

/// The vectors hold times of one day in one form: `1985-10-26T01:20:00-07:00`.
fn unix_time<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    const MIDNIGHT: u64 = 499_158_000; // 1985-10-26T00:00:00-07:00
    let text = String::deserialize(deserializer)?;
    let time = text
        .strip_prefix("1985-10-26T")
        .and_then(|rest| rest.strip_suffix("-07:00"))
        .expect("a time of that day");
    let seconds = time.split(':').fold(0, |sum, part| {
        sum * 60 + part.parse::<u64>().expect("a number")
    });
    Ok(MIDNIGHT + seconds)
}

impl Vector {
    fn keyring(&self) -> Keyring {
        Keyring::parse_list(self.secret.as_bytes()).expect("a valid key")
    }

    fn open(&self) -> Result<(u64, Vec<u8>), Error> {
        let mut buf = vec![0; self.token.len()];
        let token = Token::decode(self.token.as_bytes(), &mut buf)?;
        let timestamp = token.timestamp();
        let len = self.keyring().open(token)?;
        Ok((timestamp, buf[..len].to_vec()))
    }
}

#[test]
fn generate() {
    let vectors: Vec<Vector> =
        serde_json::from_str(include_str!("../vectors/generate.json")).expect("vectors");
    assert!(!vectors.is_empty());
    for vector in vectors {
        let mut buf = vec![0; sealed_len(vector.src.len()).unwrap()];
        let keyring = vector.keyring();
        let len = keyring.seal(vector.src.as_bytes(), vector.now, &vector.iv, &mut buf);
        assert_eq!(&buf[..len], vector.token.as_bytes());
    }
}

#[test]
fn verify() {
    let vectors: Vec<Vector> =
        serde_json::from_str(include_str!("../vectors/verify.json")).expect("vectors");
    assert!(!vectors.is_empty());
    for vector in vectors {
        let (timestamp, plaintext) = vector.open().expect("a good token");
        assert_eq!(plaintext, vector.src.as_bytes());
        assert!(vector.now <= timestamp + vector.ttl_sec);
    }
}

/// Two of the bad tokens are bad only by their time, which the core leaves to its caller.
#[test]
fn invalid() {
    let vectors: Vec<Vector> =
        serde_json::from_str(include_str!("../vectors/invalid.json")).expect("vectors");
    let mut outcomes = vectors.iter().map(|vector| {
        let outcome = vector.open().map(|(timestamp, _)| timestamp);
        (vector.desc.as_str(), vector, outcome)
    });
    let mut refused = |expected: &str, error: Error| {
        let (desc, _, outcome) = outcomes.next().expect("a further vector");
        assert_eq!((desc, outcome), (expected, Err(error)));
    };
    refused("incorrect mac", Error::Unauthenticated);
    refused("too short", Error::NotAToken);
    refused("invalid base64", Error::NotAToken);
    refused("payload size not multiple of block size", Error::NotAToken);
    refused("payload padding error", Error::BadPadding);
    let (desc, vector, outcome) = outcomes.next().expect("a further vector");
    assert_eq!(desc, "far-future TS (unacceptable clock skew)");
    assert!(outcome.expect("a good HMAC") > vector.now + 60);
    let (desc, vector, outcome) = outcomes.next().expect("a further vector");
    assert_eq!(desc, "expired TTL");
    assert!(outcome.expect("a good HMAC") + vector.ttl_sec < vector.now);
    let (desc, _, outcome) = outcomes.next().expect("a further vector");
    assert_eq!(
        (desc, outcome),
        (
            "incorrect IV (causes padding error)",
            Err(Error::BadPadding)
        )
    );
    assert!(outcomes.next().is_none());
}
