//! The SQL functions on single values. `sql/pg_fernet.sql` declares, documents and protects them.
//! One function serves both text and bytea if only the bytes matter, since both have the same
//! layout.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::fernet::{self, Token};
use crate::keys::fingerprint::{self, sql_index};
use crate::keys::{self, keyring};
use crate::pg::document::Document;
use crate::pg::value::{Buffer, Value};
use crate::pg::value_type::ValueType;
use crate::pg::{self, Report, encoding, random};

type Result<T, E = ErrorReport> = std::result::Result<T, E>;

#[pg_extern(sql = false)]
fn fernet_encrypt<'fcx>(plaintext: Value<'fcx>) -> Result<Value<'fcx>> {
    Ok(seal(&plaintext)?)
}

#[pg_extern(sql = false)]
fn fernet_encrypt_text<'fcx>(plaintext: Value<'fcx>) -> Result<Value<'fcx>> {
    Ok(encoding::with_utf8(&plaintext, seal)??)
}

#[pg_extern(sql = false)]
fn fernet_decrypt<'fcx>(token: Value<'fcx>) -> Result<Value<'fcx>> {
    let (buffer, len) = open(&token, |_| Ok(()))?;
    Ok(encoding::text_from_utf8(buffer, len)?)
}

#[pg_extern(sql = false)]
fn fernet_decrypt_ttl<'fcx>(
    token: Value<'fcx>,
    ttl: Interval,
    at: TimestampWithTimeZone,
) -> Result<Value<'fcx>> {
    let (buffer, len) = open(&token, |timestamp| check_age(timestamp, ttl, at))?;
    Ok(encoding::text_from_utf8(buffer, len)?)
}

#[pg_extern(sql = false)]
fn fernet_decrypt_bytea<'fcx>(token: Value<'fcx>) -> Result<Value<'fcx>> {
    let (buffer, len) = open(&token, |_| Ok(()))?;
    Ok(buffer.finish(len))
}

#[pg_extern(sql = false)]
fn fernet_decrypt_bytea_ttl<'fcx>(
    token: Value<'fcx>,
    ttl: Interval,
    at: TimestampWithTimeZone,
) -> Result<Value<'fcx>> {
    let (buffer, len) = open(&token, |timestamp| check_age(timestamp, ttl, at))?;
    Ok(buffer.finish(len))
}

#[pg_extern(sql = false)]
fn fernet_rotate<'fcx>(token: Value<'fcx>) -> Result<Value<'fcx>> {
    let keyring = keyring()?;
    let mut buffer = Buffer::new(token.len())?;
    let mut refusal = Some(fernet::Error::NotAToken);
    // Refused tokens come last.
    let each = |opener: Result<_, _>| refusal = opener.err();
    let rotated = keyring.rotate_value(&token[..], &mut buffer, random::iv, each)?;
    match (refusal, rotated) {
        (Some(refusal), _) => Err(Error::from(refusal).into()),
        (None, Some(len)) => Ok(buffer.finish(len)),
        (None, None) => Ok(token),
    }
}

#[pg_extern(sql = false)]
fn fernet_rotate_json<'fcx>(document: Document<'fcx>) -> Result<Document<'fcx>> {
    Ok(rotate_document(document, &ValueType::json())?)
}

#[pg_extern(sql = false)]
fn fernet_rotate_jsonb<'fcx>(document: Document<'fcx>) -> Result<Document<'fcx>> {
    Ok(rotate_document(document, &ValueType::jsonb())?)
}

#[pg_extern(sql = false)]
fn fernet_key_index(token: Value<'_>) -> Result<Option<i32>> {
    let keyring = keyring()?;
    let mut buffer = Buffer::new(token.len())?;
    let mut highest = None;
    // Refused tokens come last.
    keyring.inspect_value(&token[..], &mut buffer, |opener| {
        highest = match opener {
            Ok(index) => highest.max(Some(index)),
            Err(_) => None,
        };
    });
    Ok(highest.map(sql_index))
}

#[pg_extern(sql = false)]
fn fernet_key_index_json(document: Document<'_>) -> Result<Option<i32>> {
    Ok(highest_key(document, &ValueType::json())?)
}

#[pg_extern(sql = false)]
fn fernet_key_index_jsonb(document: Document<'_>) -> Result<Option<i32>> {
    Ok(highest_key(document, &ValueType::jsonb())?)
}

#[pg_extern(sql = false)]
fn fernet_is_token(value: Value<'_>) -> Result<bool> {
    let mut buffer = scratch(&value)?;
    Ok(Token::decode(&value, &mut buffer).is_ok())
}

#[pg_extern(sql = false)]
fn fernet_timestamp(token: Value<'_>) -> Result<TimestampWithTimeZone> {
    let keyring = keyring()?;
    let mut buffer = scratch(&token)?;
    let token = decode(&token, &mut buffer)?;
    match keyring.key_index(&token) {
        Some(_) => Ok(timestamp_at(token.timestamp())),
        None => Err(Error::from(fernet::Error::Unauthenticated).into()),
    }
}

#[pg_extern(sql = false)]
fn fernet_generate_key() -> String {
    ::fernet::Fernet::generate_key()
}

#[pg_extern(sql = false)]
fn fernet_keys()
-> Result<TableIterator<'static, (name!(key_index, i32), name!(fingerprint, String))>> {
    let fingerprints = fingerprint::of_all(&*keyring()?)?.into_iter().enumerate();
    Ok(TableIterator::new(fingerprints.map(
        |(index, fingerprint)| (sql_index(index), fingerprint::to_hex(fingerprint)),
    )))
}

fn seal<'fcx>(plaintext: &[u8]) -> Result<Value<'fcx>, Error> {
    Ok(Value::token_of(plaintext, &*keyring()?)?)
}

/// Decrypts a token that a key authenticates and whose timestamp passes `check`.
fn open(
    token: &[u8],
    check: impl FnOnce(u64) -> Result<(), Error>,
) -> Result<(Buffer, usize), Error> {
    let keyring = keyring()?;
    let mut buffer = scratch(token)?;
    let token = decode(token, &mut buffer)?;
    let timestamp = token.timestamp();
    let len = keyring.open(token)?;
    check(timestamp)?;
    Ok((buffer, len))
}

/// Rotates the tokens in a document, which may hold none.
fn rotate_document<'fcx>(
    document: Document<'fcx>,
    value_type: &ValueType,
) -> Result<Document<'fcx>, Error> {
    let keyring = keyring()?;
    let mut refusal = None;
    let rotated = document.change(value_type, |text, room| {
        let each = |opener: Result<_, _>| refusal = refusal.or_else(|| opener.err());
        keyring.rotate_value(text, room, random::iv, each)
    })?;
    match refusal {
        Some(refusal) => Err(refusal.into()),
        None => Ok(rotated.unwrap_or(document)),
    }
}

/// Returns the highest place of the keys that open the tokens in a document, or `None` if there is no
/// token, or if no key opens one of them.
fn highest_key(document: Document<'_>, value_type: &ValueType) -> Result<Option<i32>, Error> {
    let keyring = keyring()?;
    let mut highest = None;
    let mut is_unknown = false;
    document.read(value_type, |text| {
        let mut buffer = Buffer::new(text.len())?;
        keyring.inspect_value(text, &mut buffer, |opener| match opener {
            Ok(index) => highest = highest.max(Some(index)),
            Err(_) => is_unknown = true,
        });
        Ok(())
    })?;
    Ok(highest.filter(|_| !is_unknown).map(sql_index))
}

fn scratch(token: &[u8]) -> Result<Buffer, Error> {
    Ok(Buffer::new(Token::decoded_len_max(token.len()))?)
}

fn decode<'a>(token: &[u8], buffer: &'a mut Buffer) -> Result<Token<'a>, Error> {
    Ok(Token::decode(token, buffer)?)
}

/// Refuses a token that at the time `at` is older than `ttl`, or more than a minute ahead.
fn check_age(timestamp: u64, ttl: Interval, at: TimestampWithTimeZone) -> Result<(), Error> {
    let made = timestamp_at(timestamp);
    // The ends of the range of timestamptz, including the infinities, compare as they should.
    if i64::from(made) > i64::from(at).saturating_add(MAX_CLOCK_SKEW) {
        return Err(Error::FromTheFuture);
    }
    let expires = PgTryBuilder::new(|| i64::from(made + ttl))
        // The sum is past the range of timestamptz, at the end to which the interval points.
        .catch_when(PgSqlErrorCode::ERRCODE_DATETIME_FIELD_OVERFLOW, |_| {
            if ttl.as_micros() < 0 {
                i64::MIN
            } else {
                i64::MAX
            }
        })
        .execute();
    if expires < i64::from(at) {
        return Err(Error::Expired);
    }
    Ok(())
}

/// How far ahead the clock of the machine that made a token may be, in microseconds: a minute, as
/// in pyca.
const MAX_CLOCK_SKEW: i64 = 60_000_000;

/// Returns the time `seconds` after 1970, or infinity if that is past the range of timestamptz.
fn timestamp_at(seconds: u64) -> TimestampWithTimeZone {
    // PostgreSQL counts microseconds from 2000.
    const EPOCH: i64 = 946_684_800;
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| (seconds - EPOCH).checked_mul(1_000_000))
        .and_then(|micros| TimestampWithTimeZone::try_from(micros).ok())
        .unwrap_or_else(TimestampWithTimeZone::positive_infinity)
}

/// Why a single value is refused.
#[derive(Debug)]
enum Error {
    Keys(keys::Error),
    Server(pg::Error),
    /// The value is no token, or no key opens it.
    Token(fernet::Error),
    /// The token is older than its time to live.
    Expired,
    /// The token's timestamp is more than a minute ahead.
    FromTheFuture,
}

impl From<Error> for Report {
    fn from(error: Error) -> Self {
        match error {
            Error::Keys(error) => error.into(),
            Error::Server(error) => error.into(),
            Error::Token(refusal) => refusal.into(),
            Error::Expired => Self::new(
                PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
                "Fernet token has expired",
                "Raise ttl, or get a new token.",
            ),
            Error::FromTheFuture => Self::new(
                PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
                "Fernet token is from the future",
                "Check the clock of the machine that made the token. Without a ttl, the timestamp is \
                 not looked at.",
            ),
        }
    }
}

impl From<Error> for ErrorReport {
    fn from(error: Error) -> Self {
        Report::from(error).into()
    }
}

impl From<keys::Error> for Error {
    fn from(error: keys::Error) -> Self {
        Self::Keys(error)
    }
}

impl From<pg::Error> for Error {
    fn from(error: pg::Error) -> Self {
        Self::Server(error)
    }
}

impl From<fernet::Error> for Error {
    fn from(error: fernet::Error) -> Self {
        Self::Token(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::report::assert_documented;

    #[test]
    fn all_errors_are_documented() {
        let errors = [Error::Expired, Error::FromTheFuture];
        assert_documented(errors.map(Report::from));
    }
}
