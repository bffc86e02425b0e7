//! `fernet_census`: counts the tokens of a column by key, without looking at any plaintext.

use std::ffi::CStr;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::Error;
use super::citus::{self, Spread};
use super::tally::{Tally, inspect};
use crate::fernet::Keyring;
use crate::keys::fingerprint::{self, sql_index};
use crate::keys::keyring;
use crate::pg::memory::with_room_for_errors;
use crate::pg::name::{Name, literal, schema_of};
use crate::pg::relation::{Kind, Lock, Relation};
use crate::pg::server;
use crate::pg::spi::Connection;
use crate::pg::value_type::Stored;

type Result<T, E = ErrorReport> = std::result::Result<T, E>;

type CensusRow = (
    name!(status, &'static str),
    name!(key_index, Option<i32>),
    name!(fingerprint, Option<String>),
    name!(tokens, i64),
);

#[allow(
    clippy::type_complexity,
    reason = "pgrx wants the columns of a table function spelt out"
)]
#[pg_extern(sql = false)]
fn fernet_census(
    relation: pg_sys::Oid,
    column_name: Name,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<
    TableIterator<
        'static,
        (
            name!(status, &'static str),
            name!(key_index, Option<i32>),
            name!(fingerprint, Option<String>),
            name!(tokens, i64),
        ),
    >,
> {
    Ok(TableIterator::new(with_room_for_errors(|| {
        census(relation, column_name.as_cstr(), fcinfo)
    })?))
}

fn census(
    relation: pg_sys::Oid,
    column_name: &CStr,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<impl Iterator<Item = CensusRow> + use<>, Error> {
    let keyring = keyring()?;
    let mut census = Census::new(&keyring)?;
    let connection = Connection::read_only();
    let relation =
        Relation::open(&connection, relation, Lock::Read).ok_or(Error::NoRelation(relation))?;
    if relation.kind() == Kind::Other {
        return Err(Error::NoRows {
            relation: relation.printable_name(),
        });
    }
    let column = relation.column(column_name)?;
    // In a transaction, other sessions might see other rows, or wait for our own locks.
    if Spread::of(&connection, relation.oid()) == Spread::Shards && !server::in_transaction_block()
    {
        census.add_shards(&connection, &relation, column_name, &schema_of(fcinfo))?;
        return census.rows();
    }
    let select = connection.prepare(
        &[
            b"SELECT t.",
            &column.name,
            b" FROM ",
            &relation.name(),
            b" AS t",
        ],
        [],
    );
    let mut cursor = select.open([]);
    if !matches!(relation.kind(), Kind::Table | Kind::MaterializedView) {
        // A row of a view or of another server can be of any size.
        cursor.fetch_at_most(10);
    }
    while let Some(rows) = cursor.fetch() {
        for row in rows.iter() {
            census.count(row.stored(1, &column.value_type))?;
        }
    }
    drop(cursor);
    census.rows()
}

/// What a column holds, as far as it has been read.
struct Census<'a> {
    keyring: &'a Keyring,
    tally: Tally,
}

impl<'a> Census<'a> {
    fn new(keyring: &'a Keyring) -> Result<Self, Error> {
        let tally = Tally::new(keyring)?;
        Ok(Self { keyring, tally })
    }

    fn count(&mut self, value: Option<Stored<'_>>) -> Result<(), Error> {
        let Some(value) = value else {
            self.tally.nulls += 1;
            return Ok(());
        };
        let mut tokens = 0;
        inspect(self.keyring, &value, |opener| {
            tokens += 1;
            self.tally.add_token(opener);
        })?;
        self.tally.not_a_token += i64::from(tokens == 0);
        Ok(())
    }

    /// Counts the tokens in the shards of a table, each shard where it is.
    fn add_shards(
        &mut self,
        connection: &Connection,
        relation: &Relation<'_>,
        column_name: &CStr,
        schema: &[u8],
    ) -> Result<(), Error> {
        let before = [
            b"SELECT pg_catalog.concat(pg_catalog.string_agg(fingerprint, ','), ' ', \
              pg_catalog.string_agg(tokens::pg_catalog.text, ' ')) FROM ",
            schema,
            b".fernet_census(",
        ]
        .concat();
        let after = [b", ", &literal(column_name)[..], b"::pg_catalog.name)"].concat();
        let fingerprints = fingerprint::list(self.keyring);
        let parse = |text: &str| {
            let (theirs, counts) = text.split_once(' ').ok_or(Error::UnexpectedResponse)?;
            if theirs != fingerprints {
                return Err(Error::OtherKeys);
            }
            Tally::parse(counts).ok_or(Error::UnexpectedResponse)
        };
        for tally in citus::on_shards(connection, relation.oid(), &before, &after, parse)? {
            self.tally += tally;
        }
        Ok(())
    }

    /// Returns a row for each status and key, whether there are such tokens or not.
    fn rows(self) -> Result<impl Iterator<Item = CensusRow> + use<>, Error> {
        let keys = fingerprint::of_all(self.keyring)?
            .into_iter()
            .zip(self.tally.under_key);
        let under_keys = keys.enumerate().map(|(index, (fingerprint, tokens))| {
            let status = if index == 0 { "current" } else { "old key" };
            (
                status,
                Some(sql_index(index)),
                Some(fingerprint::to_hex(fingerprint)),
                tokens,
            )
        });
        Ok(under_keys.chain([
            ("unknown key", None, None, self.tally.unknown_key),
            ("not a token", None, None, self.tally.not_a_token),
            ("null", None, None, self.tally.nulls),
        ]))
    }
}
