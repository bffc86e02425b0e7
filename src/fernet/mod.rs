//! The Fernet core: keys, keyrings and tokens, with no knowledge of PostgreSQL.
//!
//! [Fernet] is AES-128-CBC and HMAC-SHA256 over one versioned, timestamped record that travels as
//! base64url. The ciphers, the hash and the MAC come from RustCrypto; this module puts them
//! together so that
//!
//! * key schedules and HMAC states are computed once per key, not once per token;
//! * a token is decoded once, whatever the number of keys;
//! * everything happens in one buffer that the caller provides: a row costs no allocation;
//! * time and randomness are arguments: every function is deterministic.
//!
//! What is accepted is what `cryptography.fernet` (pyca) accepts, since that is what the
//! applications that own these tokens run.
//!
//! [Fernet]: https://github.com/fernet/spec/blob/master/Spec.md
#![forbid(unsafe_code)]

mod codec;
mod error;
mod key;
mod keyring;
mod runs;
mod scan;
mod token;

pub(crate) use codec::is_char as is_base64;
pub use error::Error;
pub use key::Key;
pub use keyring::{Keyring, overwrite_traces};
pub use runs::may_hold_tokens;
pub use scan::{Haystack, count_tokens};
pub use token::{BLOCK, IV, Token, sealed_len};
