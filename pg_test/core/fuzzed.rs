//! Replays what the fuzz targets found: each file in `fuzzed/TARGET/` made a core fail that had the
//! fault in the file's name.

use std::fs;
use std::path::Path;

#[path = "../../fuzz/src/checks.rs"]
pub mod checks;
#[path = "../../src/fernet/codec.rs"]
mod codec;
#[path = "../../src/keys/mask/mod.rs"]
mod mask;
#[path = "../../fuzz/src/rules.rs"]
pub mod rules;

/// The core, and its parts for use in this crate only.
mod fernet {
    pub(crate) use super::codec::is_char as is_base64;
    pub(crate) use pg_fernet::fernet::*;
}

#[path = "../../src/pg"]
mod pg {
    pub(crate) mod literal;
}

fn replay(target: &str, check: fn(&[u8])) {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("pg_test/core/fuzzed");
    for entry in fs::read_dir(found.join(target)).expect("inputs for the target") {
        let path = entry.expect("an input").path();
        println!("{}", path.display()); // cargo shows it if the check fails
        check(&fs::read(path).expect("an input"));
    }
}

#[test]
fn decode() {
    replay("decode", checks::decode);
}

#[test]
fn key_list() {
    replay("key_list", checks::key_list);
}

#[test]
fn open() {
    replay("open", checks::open);
}

#[test]
fn scan() {
    replay("scan", checks::scan);
}

#[test]
fn fernet_crate() {
    replay("fernet_crate", checks::fernet_crate);
}

#[test]
fn mask() {
    replay("mask", checks::mask);
}
