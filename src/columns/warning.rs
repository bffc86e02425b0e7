//! What the client is warned of.

use super::progress::counted;
use crate::pg::Report;

pub(super) fn single_key() -> Report {
    Report::warning(
        "there is a single key, so nothing can be under an old one",
        "Put the new key before the old one in the list of keys.",
    )
}

/// Values were not rotated, the first of which are at `places`.
pub(super) fn left_as_they_are(unknown_key: i64, not_a_token: i64, places: String) -> Report {
    Report::warning(
        format!(
            "left as they are: {} that no key opens, {} without a token",
            counted(unknown_key, "token"),
            counted(not_a_token, "value")
        ),
        "Append the missing key to the list of keys. A value without a token may be plaintext, or \
         something that is not meant to be encrypted, such as the hash of a password.",
    )
    .with_detail(places)
}

/// The last look saw tokens under an older key.
pub(super) fn still_old(tokens: i64) -> Report {
    Report::warning(
        format!(
            "{} can still be read only with an older key",
            counted(tokens, "token")
        ),
        "Give the new key to all that write to the table, look at its triggers and rules, and call \
         this again. fernet_census() counts the tokens under each key.",
    )
    .with_detail(
        "Others wrote or locked their rows each time, or a trigger or a rule keeps them as they are.",
    )
}

/// There is no proof, for that reason, that no other tokens are under an older key.
pub(super) fn unfinished(reason: &str, tokens: i64) -> Report {
    Report::warning(
        reason,
        "Call this again when the other transaction has ended, or with a longer lock_timeout.",
    )
    .with_detail(format!(
        "{} can be read only with an older key, not counting what could not be seen.",
        counted(tokens, "token")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::report::assert_documented;

    #[test]
    fn all_are_documented() {
        assert_documented([
            single_key(),
            left_as_they_are(2, 1, "no key opens (0,1) of public.connection.".into()),
            still_old(3),
        ]);
    }
}
