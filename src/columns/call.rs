//! `CALL fernet_rotate_column`: what it is called with, here or on the nodes of Citus.
//!
//! Of a table that Citus spreads over nodes, each shard is rotated where it is, by
//! `fernet_rotate_shard`.

use std::rc::Rc;
use std::time::Instant;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::convert::Rotation;
use super::progress::Report;
use super::{Error, citus, table, warning};
use crate::fernet::Keyring;
use crate::keys::{fingerprint, keyring};
use crate::pg::name::Name;
use crate::pg::relation;
use crate::pg::server::{self, Record};
use crate::pg::spi::Connection;
use crate::pg::value::Value;

#[pg_extern(sql = false)]
fn fernet_rotate_column(
    relation: Option<pg_sys::Oid>,
    column_name: Option<Name>,
    batch_size: Option<i32>,
    strict: Option<bool>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<Record, ErrorReport> {
    let started = Instant::now();
    let call = Call::new(relation, column_name, batch_size, strict, fcinfo)?;
    if call.keyring.keys().len() == 1 {
        warning::single_key().warn();
    }
    let report = if call.is_sharded {
        call.rotate_shards(&relation::schema_of(fcinfo))?
    } else {
        call.rotate()?
    };
    report.tell(started.elapsed());
    Ok(Record::new(fcinfo, report.counts()))
}

/// Rotates a shard for a call on another node, if the keys here are the same.
#[pg_extern(sql = false)]
fn fernet_rotate_shard(
    relation: Option<pg_sys::Oid>,
    column_name: Option<Name>,
    batch_size: Option<i32>,
    strict: Option<bool>,
    caller_fingerprints: Option<Value<'_>>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<Record, ErrorReport> {
    let call = Call::new(relation, column_name, batch_size, strict, fcinfo)?;
    let theirs = caller_fingerprints.ok_or(Error::Null("fingerprints"))?;
    if theirs[..] != *fingerprint::list(&call.keyring).as_bytes() {
        return Err(Error::OtherKeys.into());
    }
    Ok(Record::new(fcinfo, [call.rotate()?.to_text()]))
}

/// A call of one of the procedures that may go ahead.
struct Call {
    relation: pg_sys::Oid,
    is_sharded: bool,
    column_name: Name,
    batch_size: i32,
    strict: bool,
    /// One for the whole call, whatever happens to the settings meanwhile.
    keyring: Rc<Keyring>,
}

impl Call {
    fn new(
        relation: Option<pg_sys::Oid>,
        column_name: Option<Name>,
        batch_size: Option<i32>,
        strict: Option<bool>,
        fcinfo: pg_sys::FunctionCallInfo,
    ) -> Result<Self, Error> {
        let relation = relation.ok_or(Error::Null("relation"))?;
        let column_name = column_name.ok_or(Error::Null("column_name"))?;
        let batch_size = batch_size.ok_or(Error::Null("batch_size"))?;
        let strict = strict.ok_or(Error::Null("strict"))?;
        if batch_size < 1 {
            return Err(Error::LessThanOne("batch_size"));
        }
        if !server::may_commit(fcinfo) {
            return Err(Error::InTransaction);
        }
        server::refuse_in_read_only_transaction(c"fernet_rotate_column()");

        let keyring = keyring()?;
        let is_sharded = table::check(relation, column_name.as_cstr())?;
        Ok(Self {
            relation,
            is_sharded,
            column_name,
            batch_size,
            strict,
            keyring,
        })
    }

    fn rotate(&self) -> Result<Report, Error> {
        Rotation {
            relation: self.relation,
            column_name: self.column_name.as_cstr(),
            batch_size: self.batch_size as usize,
            strict: self.strict,
            keyring: &self.keyring,
            rotated: 0,
        }
        .run()
    }

    fn rotate_shards(&self, schema: &[u8]) -> Result<Report, Error> {
        let before = [b"CALL ", schema, b".fernet_rotate_shard("].concat();
        let after = [
            b", ",
            &relation::literal(self.column_name.as_cstr())[..],
            format!(
                "::pg_catalog.name, {}, {}, '{}'::pg_catalog.text, NULL::pg_catalog.text)",
                self.batch_size,
                self.strict,
                fingerprint::list(&self.keyring)
            )
            .as_bytes(),
        ]
        .concat();
        let connection = Connection::read_only();
        let reports = citus::on_shards(&connection, self.relation, &before, &after, |text| {
            Report::parse(text).ok_or(Error::UnexpectedResponse)
        })?;
        let mut sum = Report::default();
        for report in reports {
            sum += report;
        }
        Ok(sum)
    }
}
