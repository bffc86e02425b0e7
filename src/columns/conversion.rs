//! What a conversion does to each value of a column: rotate, encrypt or decrypt it.

use std::ffi::CStr;

use super::tally::{Tally, inspect};
use crate::fernet::{self, Keyring};
use crate::pg::value::{Buffer, Values};
use crate::pg::value_type::Stored;
use crate::pg::{self, random};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conversion {
    /// Tokens under older keys become tokens under the first one. `strict` stops at the first value
    /// that holds no token, or one that no key opens.
    Rotate { strict: bool },
    /// Values without a token become one under the first key.
    Encrypt,
    /// Values that are one token and nothing else, which a key opens, become their plaintexts. If a
    /// plaintext is again such a token, the next look decrypts it.
    Decrypt,
}

/// What was found in a value.
pub(super) struct Found {
    /// How many tokens are to be rotated, or 1 for a value that is to be encrypted or decrypted.
    pub(super) due: i64,
    /// The index of the new value, if one was made.
    pub(super) new_value: Option<usize>,
    /// How many tokens that a key opens cannot be converted because other text is beside them.
    pub(super) in_text: i64,
    /// Why the value, or a part of it, is left unchanged.
    pub(super) refusal: Option<fernet::Error>,
}

impl Conversion {
    /// Looks at a value and counts its tokens. If it is to be converted and there is room for new
    /// values, makes the new one.
    pub(super) fn apply(
        self,
        keyring: &Keyring,
        value: &Stored<'_>,
        tally: &mut Tally,
        mut values: Option<&mut Values>,
    ) -> Result<Found, pg::Error> {
        let (mut current, mut old, mut unknown) = (0, 0, 0);
        let mut refusal = None;
        let mut each = |opener: Result<usize, fernet::Error>| {
            match opener {
                Ok(0) => current += 1,
                Ok(_) => old += 1,
                Err(error) => {
                    unknown += 1;
                    refusal.get_or_insert(error);
                }
            }
            tally.add_token(opener);
        };
        let mut new_value = None;
        let mut is_whole = false;
        match (self, value.plaintext()) {
            (Self::Rotate { .. }, _) => match values {
                Some(values) => {
                    new_value = value.change(values, |part, room| {
                        keyring.rotate_value(part, room, random::iv, &mut each)
                    })?;
                }
                None => inspect(keyring, value, each)?,
            },
            (Self::Encrypt, Some(plaintext)) => value.read(|plain| {
                let mut buffer = Buffer::new(plain.len())?;
                let mut is_plaintext = true;
                is_whole = keyring.inspect_whole(&plain, &mut buffer, |opener| {
                    is_plaintext = false;
                    each(opener);
                });
                if is_plaintext && let Some(values) = &mut values {
                    let seal = |plaintext: &[u8]| values.token_of(plaintext, keyring);
                    new_value = plaintext.of_value(&plain, seal)??;
                }
                Ok(())
            })?,
            (Self::Decrypt, Some(plaintext)) => value.read(|token| {
                let mut buffer = Buffer::new(token.len())?;
                let Some(len) = keyring.open_value(&token, &mut buffer, &mut each) else {
                    return Ok(());
                };
                is_whole = true;
                if let Some(values) = &mut values {
                    let keep = |value: &[u8]| values.copy(value);
                    new_value = plaintext.to_value(&buffer[..len], keep)??;
                }
                Ok(())
            })?,
            // The column's type was changed meanwhile.
            (Self::Encrypt | Self::Decrypt, None) => inspect(keyring, value, each)?,
        }

        let tokens = current + old + unknown;
        tally.not_a_token += i64::from(tokens == 0);
        let in_text = if is_whole { 0 } else { current + old };
        let (due, in_text) = match self {
            Self::Rotate { .. } => {
                if tokens == 0 && !value.is_document() {
                    refusal = Some(fernet::Error::NotAToken);
                }
                (old, 0)
            }
            Self::Encrypt => (i64::from(tokens == 0), in_text),
            Self::Decrypt => (i64::from(is_whole), in_text),
        };
        Ok(Found {
            due,
            new_value,
            in_text,
            refusal,
        })
    }

    /// Tells whether the call stops at the first value that cannot be converted.
    pub(super) fn is_strict(self) -> bool {
        self == Self::Rotate { strict: true }
    }

    /// Returns the name from which [`of_code`](Self::of_code) reads it.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Rotate { strict: false } => "rotate",
            Self::Rotate { strict: true } => "rotate_strictly",
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
        }
    }

    pub(super) fn of_code(code: &str) -> Option<Self> {
        let all = [
            Self::Rotate { strict: false },
            Self::Rotate { strict: true },
            Self::Encrypt,
            Self::Decrypt,
        ];
        all.into_iter().find(|conversion| conversion.code() == code)
    }

    /// Returns the present participle for progress messages.
    pub(super) fn doing(self) -> &'static str {
        match self {
            Self::Rotate { .. } => "rotating",
            Self::Encrypt => "encrypting",
            Self::Decrypt => "decrypting",
        }
    }

    /// Returns the past participle, and the noun it applies to, for messages.
    pub(super) fn done(self) -> (&'static str, &'static str) {
        match self {
            Self::Rotate { .. } => ("rotated", "token"),
            Self::Encrypt => ("encrypted", "value"),
            Self::Decrypt => ("decrypted", "value"),
        }
    }

    /// Returns the procedure's name as the server's messages show it.
    pub(super) fn procedure(self) -> &'static CStr {
        match self {
            Self::Rotate { .. } => c"fernet_rotate_column()",
            Self::Encrypt => c"fernet_encrypt_column()",
            Self::Decrypt => c"fernet_decrypt_column()",
        }
    }
}
