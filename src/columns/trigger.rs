//! `fernet_encrypt_trigger`: encrypts plaintext that is written to columns.

use std::ffi::CStr;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::{Error, fit};
use crate::fernet;
use crate::keys::keyring;
use crate::pg::domain::Domain;
use crate::pg::encoding;
use crate::pg::error_context::without_line_of_copy;
use crate::pg::memory::with_room_for_errors;
use crate::pg::relation::{self, Relation};
use crate::pg::trigger::{Changes, Row, Trigger, Written};
use crate::pg::value::{Buffer, Value};
use crate::pg::value_type::Plaintext;

#[pg_extern(sql = false)]
fn fernet_encrypt_trigger(fcinfo: pg_sys::FunctionCallInfo) -> Result<Row, ErrorReport> {
    let trigger = Trigger::of(fcinfo).ok_or(Error::NotATrigger)?;
    // In this order, because after an error the latter resets the list of contexts to what it
    // found.
    Ok(without_line_of_copy(|| {
        with_room_for_errors(|| encrypt(&trigger))
    })?)
}

fn encrypt(trigger: &Trigger<'_>) -> Result<Row, Error> {
    let mut changes = Changes::default();
    for column in trigger.kept(|| columns(trigger))? {
        if let Some(written) = trigger.written(&column.column)
            && let Some(token) = column.token_for(&written, trigger)?
        {
            changes.push(&column.column, &token);
        }
    }
    Ok(trigger.row(&changes))
}

/// Finds the columns that a trigger names.
fn columns(trigger: &Trigger<'_>) -> Result<Vec<Column>, Error> {
    let relation = trigger.relation();
    let names = || (trigger.printable_name(), relation.printable_name());
    if !trigger.is_before_insert_or_update() {
        let (trigger, relation) = names();
        return Err(Error::TriggerEvent { trigger, relation });
    }
    let found = trigger
        .arguments()
        .map(|name| Column::find(&relation, name).map_err(|error| Error::Trigger(error.into())));
    let found = found.collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() {
        let (trigger, relation) = names();
        return Err(Error::TriggerArguments { trigger, relation });
    }
    Ok(found)
}

/// A column that is kept encrypted. Its length and domain are checked here, since the server checks
/// neither for a row that a trigger returns.
struct Column {
    name: String,
    column: relation::Column,
    plaintext: Plaintext,
    domain: Option<Domain>,
}

impl Column {
    fn find(relation: &Relation<'_>, name: &CStr) -> Result<Self, Error> {
        let column = relation.column(name)?;
        let name = encoding::printable(name.to_bytes());
        if column.generated {
            return Err(Error::Generated {
                column: name,
                relation: relation.printable_name(),
            });
        }
        let plaintext = column.value_type.plaintext();
        let plaintext = plaintext.ok_or_else(|| Error::NoPlaintext {
            column: name.clone(),
            relation: relation.printable_name(),
            type_name: column.printable_type(),
        })?;
        Ok(Self {
            plaintext,
            domain: Domain::of(column.type_oid),
            name,
            column,
        })
    }

    /// Returns the token for a value that is plaintext.
    ///
    /// A value that has the form of a token that no key opens is refused. Encrypted again, it would
    /// be a token in a token. If it were accepted, a writer with the wrong keys would fill the column
    /// with values that nobody here can read. A token with other text beside it is refused as well:
    /// it would be stored in plaintext, and decryption would drop the text. If the row already holds
    /// such a value, it stays, so that the row's other columns can be changed.
    fn token_for<'fcx>(
        &self,
        written: &Written<'_>,
        trigger: &Trigger<'_>,
    ) -> Result<Option<Value<'fcx>>, Error> {
        let keyring = keyring()?;
        written.with_bytes(|value| {
            let mut buffer = Buffer::new(value.len())?;
            let mut refusal = Some(fernet::Error::NotAToken);
            // Refused tokens come last.
            let each = |opener: Result<_, _>| refusal = opener.err();
            let is_token = keyring.inspect_whole(value, &mut buffer, each);
            let place = || self.place(trigger);
            match refusal {
                Some(fernet::Error::NotAToken) => {}
                _ if is_token || written.is_unchanged() => return Ok(None),
                None => return Err(Error::InText { place: place() }),
                Some(refusal) => {
                    let place = place();
                    return Err(Error::Value { place, refusal });
                }
            }
            let seal = |plaintext: &[u8]| Value::token_of(plaintext, &keyring);
            let token = self.plaintext.of_value(value, seal).flatten();
            let token = token.map_err(|error| Error::of_row(error, place))?;
            self.fit(token, trigger).map(Some)
        })
    }

    /// Turns a token into a value of the column's type.
    fn fit<'fcx>(&self, token: Value<'fcx>, trigger: &Trigger<'_>) -> Result<Value<'fcx>, Error> {
        fit::check_token(&self.column, token.len(), || self.place(trigger))?;
        let value = match (self.column.max_chars(), self.plaintext) {
            (Some(max), Plaintext::PaddedText) => {
                let mut padded = Buffer::new(max)?;
                padded.fill(b' ');
                padded[..token.len()].copy_from_slice(&token);
                padded.finish(max)
            }
            _ => token,
        };
        if let Some(domain) = &self.domain {
            domain.check(&value);
        }
        Ok(value)
    }

    /// Describes the column and its table for a message.
    fn place(&self, trigger: &Trigger<'_>) -> String {
        format!(
            "column \"{}\" of {}",
            self.name,
            trigger.relation().printable_name()
        )
    }
}
