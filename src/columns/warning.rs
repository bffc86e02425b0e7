//! The warnings to the client.

use super::conversion::Conversion;
use super::find::Obstacle;
use super::progress::counted;
use crate::pg::Report;

pub(super) fn single_key() -> Report {
    Report::warning(
        "there is a single key, so nothing can be under an old one",
        "Put the new key before the old one in the list of keys.",
    )
}

/// Some tokens that no key opens, and some other values, were left. The first of them are at `places`.
pub(super) fn left_as_they_are(
    conversion: Conversion,
    unknown_key: i64,
    other: i64,
    places: String,
) -> Report {
    let unknown_key = (unknown_key > 0).then(|| {
        (
            format!("{} that no key opens", counted(unknown_key, "token")),
            "Append the missing key to the list of keys.",
        )
    });
    let other = (other > 0).then(|| match conversion {
        Conversion::Rotate { .. } => (
            format!("{} without a token", counted(other, "value")),
            "A value without a token may be plaintext, or something that is not meant to be encrypted, \
             such as the hash of a password.",
        ),
        Conversion::Encrypt | Conversion::Decrypt => (
            format!("{} among other text", counted(other, "token")),
            "Text beside a token is neither encrypted nor decrypted: only the application knows what it is.",
        ),
    });
    let (left, hints): (Vec<_>, Vec<_>) = unknown_key.into_iter().chain(other).unzip();
    let message = format!("left as they are: {}", left.join(", "));
    Report::warning(message, hints.join(" ")).with_detail(places)
}

/// The last look saw this many tokens or values that are still to be converted.
pub(super) fn still_left(conversion: Conversion, left: i64) -> Report {
    let (message, hint) = match conversion {
        Conversion::Rotate { .. } => (
            format!(
                "{} can still be read only with an older key",
                counted(left, "token")
            ),
            "Give the new key to everything that writes to the table, check its triggers and rules, \
             and call this again. fernet_census() counts the tokens under each key.",
        ),
        Conversion::Encrypt => (
            format!("still in plaintext: {}", counted(left, "value")),
            "Make everything that writes to the table encrypt, check its triggers and rules, and \
             call this again. fernet_census() counts the values without a token.",
        ),
        Conversion::Decrypt => (
            format!("still encrypted: {}", counted(left, "value")),
            "Stop everything that encrypts on the way into the table, triggers included, and call this \
             again. fernet_census() counts the tokens under each key.",
        ),
    };
    Report::warning(message, hint).with_detail(
        "Other sessions wrote to or locked these rows each time, or a trigger or a rule keeps the old values.",
    )
}

/// There is no proof, for the given reason, that these are all that is left.
pub(super) fn unfinished(conversion: Conversion, reason: &str, left: i64) -> Report {
    let left = match conversion {
        Conversion::Rotate { .. } => {
            let tokens = counted(left, "token");
            format!("{tokens} can be read only with an older key")
        }
        Conversion::Encrypt => format!("Still in plaintext: {}", counted(left, "value")),
        Conversion::Decrypt => format!("Still encrypted: {}", counted(left, "value")),
    };
    Report::warning(
        reason,
        "Call this again when the other transaction has ended, or with a longer lock_timeout.",
    )
    .with_detail(format!("{left}, not counting what could not be seen."))
}

/// The index, which has the column as its first, no longer finds plaintexts once they are
/// encrypted.
pub(super) fn useless(index: &str) -> Report {
    Report::warning(
        format!("{index} finds no plaintext once it is encrypted"),
        "If the index is used to look up values, drop it, and keep a keyed hash of each value in another column.",
    )
}

/// `lock_timeout` ended the wait for that process, which has written to the table.
pub(super) fn gave_up_waiting(writer: &str) -> String {
    format!("gave up waiting for {writer}")
}

pub(super) const GAVE_UP_LOOKING: &str = "gave up, since a table was changed during each look";

/// A table was not looked at.
pub(super) fn left_out(table: &str, obstacle: Obstacle) -> Report {
    let (reason, hint) = match obstacle {
        Obstacle::Foreign => (
            "it is a foreign table",
            "Call fernet_find_columns() on the server that holds it.",
        ),
        Obstacle::Unlogged => (
            "unlogged tables cannot be read on a standby",
            "Call fernet_find_columns() on the primary server.",
        ),
        Obstacle::NotReadable => (
            "it can be read only through its parent",
            "Call fernet_find_columns() as the owner of the table.",
        ),
        Obstacle::HiddenRows => (
            "row-level security may hide rows of it",
            "Call fernet_find_columns() as the owner of the table or as a role with BYPASSRLS.",
        ),
    };
    Report::warning(format!("left out {table}: {reason}"), hint)
}

/// A table could not be looked at, for that reason.
pub(super) fn unreadable(table: &str, reason: &str) -> Report {
    Report::warning(
        format!("could not read {table}: {reason}"),
        "Other tables are not affected. Call fernet_find_columns() again when this one can be read.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::report::assert_documented;

    #[test]
    fn nothing_is_said_of_what_there_is_none_of() {
        let left = |unknown_key, other| {
            let report = left_as_they_are(Conversion::Decrypt, unknown_key, other, String::new());
            (report.message, report.hint)
        };
        let (unknown_key, append) = left(2, 0);
        assert_eq!(unknown_key, "left as they are: 2 tokens that no key opens");
        let (in_text, beside) = left(0, 1);
        assert_eq!(in_text, "left as they are: 1 token among other text");
        assert!(!append.contains("beside") && !beside.contains("Append"));
        assert_eq!(left(2, 1).1, format!("{append} {beside}"));
    }

    #[test]
    fn all_are_documented() {
        let table = "public.connection";
        let writer = "process 1234, which has written to public.connection or locked it";
        assert_documented([
            single_key(),
            unfinished(Conversion::Encrypt, &gave_up_waiting(writer), 3),
            unfinished(Conversion::Decrypt, GAVE_UP_LOOKING, 3),
            useless("index public.connection_password_idx"),
            unreadable(table, "canceling statement due to lock timeout"),
        ]);
        let conversions = [
            Conversion::Rotate { strict: false },
            Conversion::Encrypt,
            Conversion::Decrypt,
        ];
        assert_documented(conversions.map(|conversion| still_left(conversion, 3)));
        let left = |conversion| left_as_they_are(conversion, 2, 1, "(0,1) of it.".into());
        assert_documented(conversions.map(left));
        use Obstacle::*;
        assert_documented(
            [Foreign, Unlogged, NotReadable, HiddenRows].map(|obstacle| left_out(table, obstacle)),
        );
    }
}
