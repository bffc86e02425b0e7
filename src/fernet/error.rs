use std::fmt;

/// Why a key list or a token is refused. Holds neither key material nor plaintext.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The list has no element at all.
    EmptyKeyList,
    /// An element of the list is not 32 bytes in base64, or has more base64 after its padding.
    /// `position` counts from 1.
    InvalidKey { position: usize },
    /// The value does not have the form of a token: base64, version, lengths.
    NotAToken,
    /// The HMAC matches under none of the keys.
    Unauthenticated,
    /// The HMAC matches, but the decrypted bytes do not end in PKCS#7 padding.
    BadPadding,
    /// There is no memory for that many keys.
    OutOfMemory,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyKeyList => f.write_str("the key list is empty"),
            Self::InvalidKey { position } => {
                write!(f, "key {position} is not a valid Fernet key")
            }
            Self::NotAToken => f.write_str("value is not a Fernet token"),
            Self::Unauthenticated => f.write_str("no key authenticates the Fernet token"),
            Self::BadPadding => f.write_str("padding of the Fernet token is wrong"),
            Self::OutOfMemory => f.write_str("out of memory"),
        }
    }
}

impl std::error::Error for Error {}
