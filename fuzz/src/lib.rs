//! What the fuzz targets check, on the core and on what masks the log, without a server.
//! `pg_test/core/fuzzed.rs` replays the inputs that once failed, with the same code.

#[path = "../../src/fernet/codec.rs"]
mod codec;
#[path = "../../src/fernet/mod.rs"]
pub mod fernet;
#[path = "../../src/keys/mask/mod.rs"]
mod mask;
#[path = "../../src/pg"]
mod pg {
    pub(crate) mod literal;
}

pub mod checks;
mod rules;
