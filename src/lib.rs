//! Fernet tokens in SQL: encrypt, decrypt and rotate them inside PostgreSQL.
//!
//! | module      | what it holds |
//! |-------------|---------------|
//! | `functions` | the SQL functions on single values; `sql/pg_fernet.sql` declares them |
//! | `columns`   | whole columns: what they hold, their rotation in batches, what is written to them |
//! | `keys`      | from the settings `fernet.*` to the keyring of this process |
//! | `pg`        | all that touches the server |
//! | [`fernet`]  | the Fernet core: tokens, keys, keyrings; pure Rust, no PostgreSQL |
//!
//! Each may use only those below it.

#![allow(
    clippy::result_large_err,
    reason = "pgrx takes the SQLSTATE of an ErrorReport only by value"
)]

use pgrx::prelude::*;

mod columns;
pub mod fernet;
mod functions;
mod keys;
mod pg;

::pgrx::pg_module_magic!(name = c"pg_fernet", version = c"0.2.0");

// For cargo-pgrx. The scripts install the file itself.
extension_sql_file!("../sql/pg_fernet.sql", name = "pg_fernet", finalize);

#[pg_guard]
extern "C-unwind" fn _PG_init() {
    pg::memory::ensure_reserve();
    keys::settings::init();
}
