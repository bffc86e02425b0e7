//! Tables that [Citus](https://www.citusdata.com) spreads over several nodes. A request on one node
//! runs on every shard, on the shard's node and with the privileges of the caller.

use pgrx::prelude::*;

use super::Error;
use crate::pg::spi::{Argument, Connection};
use crate::pg::{Report, catalogs, relation};

/// Where the rows of a table are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spread {
    /// In the table.
    Here,
    /// In shards, each on one node.
    Shards,
    /// In shards, with copies of each on several nodes.
    Replicated,
}

impl Spread {
    pub(crate) fn of(connection: &Connection, relation: pg_sys::Oid) -> Self {
        if catalogs::extension(c"citus").is_none() {
            return Self::Here;
        }
        // Citus copies what it replicates itself, instead of leaving that to the server.
        const COPIED: &[u8] = b"
            SELECT repmodel OPERATOR(pg_catalog.<>) 's'::pg_catalog.\"char\"
            FROM pg_catalog.pg_dist_partition WHERE logicalrelid OPERATOR(pg_catalog.=) $1";
        let copied = connection.prepare(&[COPIED], [pg_sys::OIDOID]);
        let mut cursor = copied.open([Argument::oid(relation)]);
        let rows = cursor.fetch();
        match rows.and_then(|rows| rows.iter().next().map(|row| row.get::<bool>(1))) {
            None => Self::Here,
            Some(false) => Self::Shards,
            Some(true) => Self::Replicated,
        }
    }
}

/// Runs a command on all shards of a table at once, each in a session of its own. The command has
/// the shard's name between `before` and `after`. Returns what `parse` makes of the one value that
/// each shard returns.
///
/// # Errors
/// If it fails on any shard, or if `parse` refuses what a shard returns, but only after all shards
/// have ended.
pub(crate) fn on_shards<T>(
    connection: &Connection,
    relation: pg_sys::Oid,
    before: &[u8],
    after: &[u8],
    parse: impl Fn(&str) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    const RUN: &[u8] = b"
        SELECT pg_catalog.concat(r.nodename, ':', r.nodeport), r.success, r.result
        FROM pg_catalog.run_command_on_placements($1, $2) AS r";
    // Citus leaves this schema out, and the caller's search_path on that node cannot be trusted.
    let schema: &[u8] = if relation::is_in_public(relation) {
        b"public."
    } else {
        b""
    };
    let command = [
        &escaped(before)[..],
        b"pg_catalog.concat('",
        schema,
        b"', %L)::pg_catalog.regclass",
        &escaped(after),
    ]
    .concat();
    let run = connection.prepare(&[RUN], [pg_sys::REGCLASSOID, pg_sys::TEXTOID]);
    let shards = connection.with_pinned_search_path(|| {
        let cursor = run.open([Argument::oid(relation), Argument::text(&command)]);
        cursor.collect(|row| {
            let (node, result) = (row.printable(1), row.printable(3));
            if row.get(2) {
                parse(&result).map_err(|error| format!("{node}: {}", Report::from(error).message))
            } else {
                let message = result.trim_start_matches("ERROR:").trim();
                Err(format!("{node}: {message}"))
            }
        })
    });
    let (mut results, mut failures) = (Vec::new(), Vec::new());
    for shard in shards {
        match shard {
            Ok(result) => results.push(result),
            Err(failure) => failures.push(failure),
        }
    }
    if failures.is_empty() {
        return Ok(results);
    }
    let (failed, all) = (failures.len(), failures.len() + results.len());
    failures.sort();
    failures.dedup();
    Err(Error::Shards {
        failed,
        all,
        failures,
    })
}

/// Escapes a part of a format string.
fn escaped(part: &[u8]) -> Vec<u8> {
    let parts: Vec<_> = part.split(|&byte| byte == b'%').collect();
    parts.join(&b"%%"[..])
}
