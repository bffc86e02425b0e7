//! How SQL shows keys.

use crate::fernet::{Key, Keyring};
use crate::pg;

/// Returns the fingerprints of the keys. There may be so many that the memory for them cannot be
/// had.
pub(crate) fn of_all(keyring: &Keyring) -> Result<Vec<[u8; 8]>, pg::Error> {
    let mut fingerprints = Vec::new();
    fingerprints.try_reserve_exact(keyring.keys().len())?;
    fingerprints.extend(keyring.keys().iter().map(Key::fingerprint));
    Ok(fingerprints)
}

/// Returns a fingerprint as SQL shows it.
pub(crate) fn to_hex(fingerprint: [u8; 8]) -> String {
    format!("{:016x}", u64::from_be_bytes(fingerprint))
}

/// Returns the fingerprints of the keys in their order, for comparing the keys of two servers.
pub(crate) fn list(keyring: &Keyring) -> String {
    let fingerprints = keyring.keys().iter().map(|key| to_hex(key.fingerprint()));
    fingerprints.collect::<Vec<_>>().join(",")
}

/// Returns the number of a key in SQL: its place in the list, counted from 1.
pub(crate) fn sql_index(index: usize) -> i32 {
    // A list in a setting is shorter than 1 GB: it holds far less than 2^31 keys.
    index as i32 + 1
}
