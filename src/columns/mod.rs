//! Whole columns: what they hold, and their rotation in batches.

mod census;
mod citus;
mod convert;
mod error;
mod find;
mod progress;
mod table;

use error::Error;
