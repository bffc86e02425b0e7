//! Fernet tokens in SQL: encrypt, decrypt and rotate them inside PostgreSQL.
//!
//! | module       | what it holds |
//! |--------------|---------------|
//! | [`fernet`]   | the Fernet core: tokens, keys, keyrings; pure Rust, no PostgreSQL |
//! | `functions`  | the SQL functions; `sql/pg_fernet.sql` declares them |
//! | `settings`   | the settings `fernet.*` |
//! | `key_source` | from the settings to the backend's cached keyring |
//! | `text`       | text and bytea in and out, encodings |
//! | `random`     | initialisation vectors |
//! | `error`      | every error: SQLSTATE, message, hint |

use pgrx::prelude::*;

mod error;
pub mod fernet;
mod functions;
mod key_source;
mod random;
mod settings;
mod text;

::pgrx::pg_module_magic!(name = c"pg_fernet", version = c"0.1.0");

extension_sql_file!("../sql/pg_fernet.sql", name = "pg_fernet", finalize);

#[pg_guard]
extern "C-unwind" fn _PG_init() {
    settings::init();
}
