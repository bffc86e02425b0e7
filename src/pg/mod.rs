//! All that touches the server, and with it all unsafe code.
//!
//! | module        | what it holds |
//! |---------------|---------------|
//! | `value`       | text and bytea, in and out |
//! | `encoding`    | from the encoding of the database to UTF-8, and back |
//! | `relation`    | relations: open, inspect, name |
//! | `spi`         | queries, commits, subtransactions |
//! | `slot`        | one row version, read or locked by its place |
//! | `server`      | what else the server is asked for |
//! | `process`     | programs that the server runs, with all their descendants |
//! | `random`      | initialisation vectors |
//! | `report`      | errors, warnings and notices as the server has them |
//! | `error`       | what the server, or the operating system, does not give |

pub(crate) mod encoding;
mod error;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod relation;
pub(crate) mod report;
pub(crate) mod server;
pub(crate) mod slot;
pub(crate) mod spi;
pub(crate) mod value;

pub(crate) use error::Error;
pub(crate) use report::Report;
