//! `CALL fernet_rotate_column`, `fernet_encrypt_column`, `fernet_decrypt_column`: their arguments, and
//! their calls on other Citus nodes.
//!
//! If Citus distributes a table, each shard is converted on its own node, by `fernet_rotate_shard`
//! and its kin. There is one such procedure for each conversion, so that a role that may rotate on a
//! node may not decrypt there.

use std::rc::Rc;
use std::time::Instant;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::conversion::Conversion;
use super::convert::Pass;
use super::progress::Report;
use super::table::{self, Checked};
use super::{Error, citus, warning};
use crate::fernet::Keyring;
use crate::keys::{fingerprint, keyring};
use crate::pg::memory::with_room_for_errors;
use crate::pg::name::{Name, literal, schema_of};
use crate::pg::server::{self, Record, Shape};
use crate::pg::spi::Connection;
use crate::pg::value::Value;

/// As 0.1.0 declares it. A database that was not updated still has that declaration with this
/// library.
#[pg_extern(sql = false)]
fn fernet_rotate_column(
    relation: Option<pg_sys::Oid>,
    column_name: Option<Name>,
    batch_size: Option<i32>,
    strict: Option<bool>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<Record, ErrorReport> {
    fernet_rotate_column_with_workers(relation, column_name, batch_size, strict, Some(0), fcinfo)
}

#[pg_extern(sql = false)]
fn fernet_rotate_column_with_workers(
    relation: Option<pg_sys::Oid>,
    column_name: Option<Name>,
    batch_size: Option<i32>,
    strict: Option<bool>,
    workers: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<Record, ErrorReport> {
    let strict = strict.ok_or(Error::Null("strict"))?;
    convert_column(
        Conversion::Rotate { strict },
        relation,
        column_name,
        batch_size,
        workers,
        fcinfo,
    )
}

#[pg_extern(sql = false)]
fn fernet_encrypt_column(
    relation: Option<pg_sys::Oid>,
    column_name: Option<Name>,
    batch_size: Option<i32>,
    workers: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<Record, ErrorReport> {
    convert_column(
        Conversion::Encrypt,
        relation,
        column_name,
        batch_size,
        workers,
        fcinfo,
    )
}

#[pg_extern(sql = false)]
fn fernet_decrypt_column(
    relation: Option<pg_sys::Oid>,
    column_name: Option<Name>,
    batch_size: Option<i32>,
    workers: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<Record, ErrorReport> {
    convert_column(
        Conversion::Decrypt,
        relation,
        column_name,
        batch_size,
        workers,
        fcinfo,
    )
}

#[pg_extern(sql = false)]
fn fernet_rotate_shard(
    relation: Option<pg_sys::Oid>,
    column_name: Option<Name>,
    batch_size: Option<i32>,
    strict: Option<bool>,
    fingerprints: Option<Value<'_>>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<Record, ErrorReport> {
    let strict = strict.ok_or(Error::Null("strict"))?;
    convert_shard(
        Conversion::Rotate { strict },
        relation,
        column_name,
        batch_size,
        fingerprints,
        fcinfo,
    )
}

#[pg_extern(sql = false)]
fn fernet_encrypt_shard(
    relation: Option<pg_sys::Oid>,
    column_name: Option<Name>,
    batch_size: Option<i32>,
    fingerprints: Option<Value<'_>>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<Record, ErrorReport> {
    convert_shard(
        Conversion::Encrypt,
        relation,
        column_name,
        batch_size,
        fingerprints,
        fcinfo,
    )
}

#[pg_extern(sql = false)]
fn fernet_decrypt_shard(
    relation: Option<pg_sys::Oid>,
    column_name: Option<Name>,
    batch_size: Option<i32>,
    fingerprints: Option<Value<'_>>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<Record, ErrorReport> {
    convert_shard(
        Conversion::Decrypt,
        relation,
        column_name,
        batch_size,
        fingerprints,
        fcinfo,
    )
}

fn convert_column(
    conversion: Conversion,
    relation: Option<pg_sys::Oid>,
    column_name: Option<Name>,
    batch_size: Option<i32>,
    workers: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<Record, ErrorReport> {
    let started = Instant::now();
    let record = with_room_for_errors(|| {
        let shape = Shape::of_result(fcinfo);
        let workers = workers.ok_or(Error::Null("workers"))?;
        let workers = usize::try_from(workers).map_err(|_| Error::Negative("workers"))?;
        let call = Call::new(conversion, relation, column_name, batch_size, fcinfo)?;
        if matches!(conversion, Conversion::Rotate { .. }) && call.keyring.keys().len() == 1 {
            warning::single_key().warn();
        }
        let report = if call.checked.is_sharded {
            // All at once, each in a process of its own.
            call.convert_shards(&schema_of(fcinfo))
        } else {
            call.convert(workers)
        }?;
        report.tell(conversion, started.elapsed());
        Ok::<_, Error>(shape.fill(report.counts(conversion)))
    })?;
    Ok(record)
}

/// Converts a shard for a call on another node, if the keys here are the same.
fn convert_shard(
    conversion: Conversion,
    relation: Option<pg_sys::Oid>,
    column_name: Option<Name>,
    batch_size: Option<i32>,
    fingerprints: Option<Value<'_>>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<Record, ErrorReport> {
    let record = with_room_for_errors(|| {
        let shape = Shape::of_result(fcinfo);
        let call = Call::new(conversion, relation, column_name, batch_size, fcinfo)?;
        let theirs = fingerprints.ok_or(Error::Null("fingerprints"))?;
        if theirs[..] != *fingerprint::list(&call.keyring).as_bytes() {
            return Err(Error::OtherKeys);
        }
        Ok(shape.fill([call.convert(0)?.to_text()]))
    })?;
    Ok(record)
}

/// A call that has passed all checks.
struct Call {
    conversion: Conversion,
    relation: pg_sys::Oid,
    checked: Checked,
    column_name: Name,
    batch_size: i32,
    /// The same keyring for the whole call, even if the settings change meanwhile.
    keyring: Rc<Keyring>,
}

impl Call {
    fn new(
        conversion: Conversion,
        relation: Option<pg_sys::Oid>,
        column_name: Option<Name>,
        batch_size: Option<i32>,
        fcinfo: pg_sys::FunctionCallInfo,
    ) -> Result<Self, Error> {
        let relation = relation.ok_or(Error::Null("relation"))?;
        let column_name = column_name.ok_or(Error::Null("column_name"))?;
        let batch_size = batch_size.ok_or(Error::Null("batch_size"))?;
        if batch_size < 1 {
            return Err(Error::LessThanOne("batch_size"));
        }
        if !server::may_commit(fcinfo) {
            return Err(Error::InTransaction);
        }
        server::refuse_in_read_only_transaction(conversion.procedure());

        let keyring = keyring()?;
        let checked = table::check(relation, column_name.as_cstr(), conversion)?;
        Ok(Self {
            conversion,
            relation,
            checked,
            column_name,
            batch_size,
            keyring,
        })
    }

    fn convert(&self, workers: usize) -> Result<Report, Error> {
        Pass {
            conversion: self.conversion,
            relation: self.relation,
            column_name: self.column_name.as_cstr(),
            batch_size: self.batch_size as usize,
            keyring: &self.keyring,
            constraint: self.checked.constraint.as_ref(),
            checked: None,
            done: 0,
        }
        .run(workers)
    }

    fn convert_shards(&self, schema: &[u8]) -> Result<Report, Error> {
        let (procedure, strict) = match self.conversion {
            Conversion::Rotate { strict } => ("rotate", format!("{strict}, ")),
            Conversion::Encrypt => ("encrypt", String::new()),
            Conversion::Decrypt => ("decrypt", String::new()),
        };
        let procedure = format!(".fernet_{procedure}_shard(");
        let before = [b"CALL ", schema, procedure.as_bytes()].concat();
        let after = [
            b", ",
            &literal(self.column_name.as_cstr())[..],
            format!(
                "::pg_catalog.name, {}, {strict}'{}'::pg_catalog.text, NULL::pg_catalog.text)",
                self.batch_size,
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
