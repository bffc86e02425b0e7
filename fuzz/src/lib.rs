//! What the fuzz targets check, on the core alone. `pg_test/core/fuzzed.rs` replays the inputs that
//! once failed, with the same code.

#[path = "../../src/fernet/codec.rs"]
mod codec;
#[path = "../../src/fernet/mod.rs"]
pub mod fernet;

pub mod checks;
mod rules;
