//! Repeats one operation many times, so that `scripts/instructions` can count its instructions.
//!
//!     instructions seal|open|rotate SIZE TIMES

use std::hint::black_box;

use pg_fernet::fernet::{BLOCK, Keyring, Token, sealed_len};

const NEW: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";
const OLD: &str = "X1v1z6D-1C_2uIdyXFSKX0x0Dqz5sVJCEA4MbGDJDhM=";
const IV: [u8; BLOCK] = [7; BLOCK];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut argument = || arguments.next().unwrap_or_default();
    let (operation, size, times) = (argument(), argument(), argument());
    let (Ok(size), Ok(times)) = (size.parse(), times.parse::<usize>()) else {
        return; // cargo bench runs every bench without these arguments
    };

    let ring = Keyring::parse_list(format!("{NEW},{OLD}").as_bytes()).expect("valid keys");
    let old = Keyring::parse_list(OLD.as_bytes()).expect("a valid key");
    let plaintext = vec![b'x'; size];
    let mut token = vec![0; sealed_len(size).expect("a size")];
    old.seal(&plaintext, 0, &IV, &mut token);
    let mut buf = vec![0; token.len()];
    for _ in 0..times {
        match operation.as_str() {
            "seal" => {
                black_box(ring.seal(black_box(&plaintext), 0, &IV, &mut buf));
            }
            "open" => {
                let token = Token::decode(black_box(&token[..]), &mut buf).expect("a token");
                black_box(ring.open(token)).expect("a key that opens it");
            }
            "rotate" => {
                let rotated = ring.rotate_value(
                    black_box(&token[..]),
                    &mut buf,
                    || Ok::<_, ()>(IV),
                    |opener| {
                        black_box(opener).expect("a key that opens it");
                    },
                );
                black_box(rotated).expect("an IV");
            }
            _ => panic!("seal, open or rotate"),
        }
    }
}
