//! The checks of the fuzz targets. They test the core, and the masking of the log, without a
//! server. `pg_test/core/fuzzed.rs` uses the same code to replay inputs that once failed.

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
