//! Fernet tokens in SQL: encrypt, decrypt and rotate them inside PostgreSQL.
//!
//! | module       | what it holds |
//! |--------------|---------------|
//! | [`fernet`]   | the Fernet core: tokens, keys, keyrings; pure Rust, no PostgreSQL |
//! | `functions`  | the SQL functions; `sql/pg_fernet.sql` declares them |
//! | `census`, `rotate_column` | whole columns: what they hold, and their rotation in batches |
//! | `table`, `catalog`, `spi`, `slot`, `progress` | what these two build on: tables, relations, queries, row versions, notices |
//! | `citus`      | tables spread over several servers |
//! | `settings`   | the settings `fernet.*` |
//! | `key_source` | from the settings to the backend's cached keyring |
//! | `key_file`, `key_command`, `secret` | keys from outside, and the memory they pass through |
//! | `process`    | programs that the server runs, with all their descendants |
//! | `text`       | text and bytea in and out, encodings |
//! | `server`     | what else the server is asked for |
//! | `random`     | initialisation vectors |
//! | `error`      | every error: SQLSTATE, message, hint |

use pgrx::prelude::*;

mod catalog;
mod census;
mod citus;
mod error;
pub mod fernet;
mod functions;
mod key_command;
mod key_file;
mod key_source;
mod process;
mod progress;
mod random;
mod rotate_column;
mod secret;
mod server;
mod settings;
mod slot;
mod spi;
mod table;
mod text;

::pgrx::pg_module_magic!(name = c"pg_fernet", version = c"0.2.0");

extension_sql_file!("../sql/pg_fernet.sql", name = "pg_fernet", finalize);

#[pg_guard]
extern "C-unwind" fn _PG_init() {
    settings::init();
}
