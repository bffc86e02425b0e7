//! The core beside the `fernet` crate, and beside its floor: the primitives that a rotation cannot
//! do without, on the same bytes, each alone.

use std::hint::black_box;

use aes::{Aes128Dec, Aes128Enc, Block};
use base64::Engine as _;
use base64::engine::Simd;
use base64::engine::general_purpose::PAD;
use cbc::cipher::{BlockModeDecrypt as _, BlockModeEncrypt as _, InnerIvInit as _, KeyInit as _};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fernet::{Fernet, MultiFernet};
use hmac::{Hmac, Mac as _};
use pg_fernet::fernet::{BLOCK, Keyring, Token, sealed_len};
use sha2::Sha256;

const SIZES: [usize; 4] = [24, 200, 4096, 1 << 20];
const IV: [u8; BLOCK] = [7; BLOCK];

fn rotate(criterion: &mut Criterion) {
    let (new, old) = (Fernet::generate_key(), Fernet::generate_key());
    let ring = Keyring::parse_list(format!("{new},{old}").as_bytes()).expect("valid keys");
    let old = Fernet::new(&old).expect("a valid key");
    let reference = MultiFernet::new(vec![Fernet::new(&new).expect("a valid key"), old.clone()]);
    for size in SIZES {
        let token = old.encrypt(&vec![b'x'; size]);
        let mut buf = vec![0; token.len()];
        let mut group = criterion.benchmark_group(format!("rotate/{size}"));
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function("pg_fernet", |bencher| {
            bencher.iter(|| {
                let token = black_box(token.as_bytes());
                ring.rotate_value(
                    token,
                    &mut buf,
                    || Ok::<_, ()>(black_box(IV)),
                    |opener| {
                        opener.expect("a key that opens it");
                    },
                )
            });
        });
        group.bench_function("fernet crate", |bencher| {
            bencher.iter(|| {
                let plaintext = reference.decrypt(black_box(&token)).expect("a good token");
                reference.encrypt(&plaintext)
            });
        });
        group.finish();
        floor(criterion, size, token.as_bytes());
    }
}

/// What each step of a rotation takes alone. `scripts/bench` adds them up.
fn floor(criterion: &mut Criterion, size: usize, token: &[u8]) {
    let engine = Simd::url_safe(PAD);
    let mac = Hmac::<Sha256>::new_from_slice(&[1; 16]).expect("a key");
    let encryptor = Aes128Enc::new(&[2; 16].into());
    let decryptor = Aes128Dec::new(&[2; 16].into());
    let iv = Block::from(IV);
    let binary = engine.decode(token).expect("base64");
    let mut decoded = vec![0; token.len()];
    let mut encoded = vec![0; token.len()];
    let mut blocks = vec![Block::default(); (binary.len() - 57) / BLOCK];

    let mut group = criterion.benchmark_group(format!("floor/{size}"));
    group.bench_function("base64 decode", |bencher| {
        bencher.iter(|| engine.decode_slice(black_box(token), &mut decoded));
    });
    group.bench_function("hmac", |bencher| {
        bencher.iter(|| mac.clone().chain_update(black_box(&binary)).finalize());
    });
    group.bench_function("cbc decrypt", |bencher| {
        bencher.iter(|| {
            cbc::Decryptor::inner_iv_init(&decryptor, &iv).decrypt_blocks(black_box(&mut blocks));
        });
    });
    group.bench_function("cbc encrypt", |bencher| {
        bencher.iter(|| {
            cbc::Encryptor::inner_iv_init(&encryptor, &iv).encrypt_blocks(black_box(&mut blocks));
        });
    });
    group.bench_function("base64 encode", |bencher| {
        bencher.iter(|| engine.encode_slice(black_box(&binary), &mut encoded));
    });
    group.finish();
}

fn seal_and_open(criterion: &mut Criterion) {
    let key = Fernet::generate_key();
    let ring = Keyring::parse_list(key.as_bytes()).expect("a valid key");
    let reference = Fernet::new(&key).expect("a valid key");
    for size in SIZES {
        let plaintext = vec![b'x'; size];
        let token = reference.encrypt(&plaintext);
        let mut buf = vec![0; sealed_len(size).expect("a size")];
        let mut group = criterion.benchmark_group(format!("seal/{size}"));
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function("pg_fernet", |bencher| {
            bencher.iter(|| ring.seal(black_box(&plaintext), 0, &IV, &mut buf));
        });
        group.bench_function("fernet crate", |bencher| {
            bencher.iter(|| reference.encrypt(black_box(&plaintext)));
        });
        group.finish();
        let mut group = criterion.benchmark_group(format!("open/{size}"));
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function("pg_fernet", |bencher| {
            bencher.iter(|| {
                let token = Token::decode(black_box(token.as_bytes()), &mut buf).expect("a token");
                ring.open(token).expect("a key that opens it")
            });
        });
        group.bench_function("fernet crate", |bencher| {
            bencher.iter(|| reference.decrypt(black_box(&token)));
        });
        group.finish();
    }
}

criterion_group!(benches, rotate, seal_and_open);
criterion_main!(benches);
