//! Counts of tokens by the key that opens them, and of values without any.

use std::ops::AddAssign;

use super::Error;
use crate::fernet::{self, Keyring};
use crate::pg;
use crate::pg::value::Buffer;
use crate::pg::value_type::Stored;

/// Tells `each` which key opens each token in a value, or why none does.
pub(super) fn inspect(
    keyring: &Keyring,
    value: &Stored<'_>,
    mut each: impl FnMut(Result<usize, fernet::Error>),
) -> Result<(), pg::Error> {
    value.read(|part| {
        let mut buffer = Buffer::new(part.len())?;
        keyring.inspect_value(part, &mut buffer, &mut each);
        Ok(())
    })
}

#[derive(Clone, Default)]
pub(super) struct Tally {
    /// How many tokens each key opens.
    pub(super) under_key: Vec<i64>,
    /// Tokens that no key opens.
    pub(super) unknown_key: i64,
    /// Values in which there is no token.
    pub(super) not_a_token: i64,
    pub(super) nulls: i64,
}

impl Tally {
    pub(super) fn new(keyring: &Keyring) -> Result<Self, Error> {
        let mut under_key = Vec::new();
        under_key.try_reserve_exact(keyring.keys().len())?;
        under_key.resize(keyring.keys().len(), 0);
        Ok(Self {
            under_key,
            ..Self::default()
        })
    }

    /// Counts a token by the key that opens it.
    pub(super) fn add_token(&mut self, opener: Result<usize, fernet::Error>) {
        match opener {
            Ok(index) => self.under_key[index] += 1,
            Err(_) => self.unknown_key += 1,
        }
    }

    /// Returns how many tokens are under the first key.
    pub(super) fn current(&self) -> i64 {
        self.under_key.first().copied().unwrap_or(0)
    }

    /// Returns how many tokens are under older keys.
    pub(super) fn old(&self) -> i64 {
        self.under_key.iter().skip(1).sum()
    }

    /// Writes it down, as [`parse`](Self::parse) reads it, for the node that has asked this one.
    pub(super) fn to_text(&self) -> String {
        let others = [self.unknown_key, self.not_a_token, self.nulls];
        let counts: Vec<_> = self
            .under_key
            .iter()
            .chain(&others)
            .map(i64::to_string)
            .collect();
        counts.join(" ")
    }

    /// Reads what another node with the same keys has counted: a number for each key, then the tokens
    /// that no key opens, the values without a token, and the nulls.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let counts: Option<Vec<i64>> = text.split(' ').map(|count| count.parse().ok()).collect();
        let counts = counts?;
        let (under_key, &[unknown_key, not_a_token, nulls]) = counts.split_last_chunk()?;
        Some(Self {
            under_key: under_key.to_vec(),
            unknown_key,
            not_a_token,
            nulls,
        })
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        // A tally that has counted nothing yet may not know how many keys there are.
        if self.under_key.len() < other.under_key.len() {
            self.under_key.resize(other.under_key.len(), 0);
        }
        for (count, more) in self.under_key.iter_mut().zip(other.under_key) {
            *count += more;
        }
        self.unknown_key += other.unknown_key;
        self.not_a_token += other.not_a_token;
        self.nulls += other.nulls;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_writes_down_another_one_reads() {
        let mut sum = Tally::default();
        for _ in 0..2 {
            sum += Tally::parse("1 20 300 4 5 6").unwrap();
        }
        assert_eq!(sum.to_text(), "2 40 600 8 10 12");
        assert_eq!((sum.current(), sum.old()), (2, 640));
        for bad in ["", "1 2", "1 2 x 4", "1  2 3 4"] {
            assert!(Tally::parse(bad).is_none(), "{bad:?}");
        }
    }
}
