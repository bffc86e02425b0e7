//! Compares the core with the `fernet` crate and with its lower bound: the primitives that a
//! rotation cannot do without. They run on the same bytes, in turn and each by itself.

use std::hint::black_box;

use aes::{Aes128Dec, Aes128Enc, Block};
use base64::Engine as _;
use base64::engine::Simd;
use base64::engine::general_purpose::PAD;
use cbc::cipher::{BlockModeDecrypt as _, BlockModeEncrypt as _, InnerIvInit as _, KeyInit as _};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fernet::{Fernet, MultiFernet};
use hmac::block_api::HmacCore;
use hmac::digest::block_api::{Buffer, FixedOutputCore as _, UpdateCore as _};
use hmac::digest::{CtOutput, Output};
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

/// How long the bare steps of a rotation take, each on the result of the one before; and how long each
/// step takes by itself.
fn floor(criterion: &mut Criterion, size: usize, token: &[u8]) {
    let engine = Simd::url_safe(PAD);
    let mac = HmacCore::<Sha256>::new_from_slice(&[1; 16]).expect("a key");
    let hmac = |signed: &[u8]| {
        let (mut mac, mut hmac) = (mac.clone(), Output::<HmacCore<Sha256>>::default());
        let mut buffer = Buffer::<HmacCore<Sha256>>::default();
        buffer.digest_blocks(signed, |blocks| mac.update_blocks(blocks));
        mac.finalize_fixed_core(&mut buffer, &mut hmac);
        CtOutput::<HmacCore<Sha256>>::new(hmac)
    };
    let encryptor = Aes128Enc::new(&[2; 16].into());
    let decryptor = Aes128Dec::new(&[2; 16].into());
    let iv = Block::from(IV);
    let decrypt = |bytes: &mut [u8]| {
        let (blocks, _) = Block::slice_as_chunks_mut(bytes);
        cbc::Decryptor::inner_iv_init(&decryptor, &iv).decrypt_blocks(blocks);
    };
    let encrypt = |bytes: &mut [u8]| {
        let (blocks, _) = Block::slice_as_chunks_mut(bytes);
        cbc::Encryptor::inner_iv_init(&encryptor, &iv).encrypt_blocks(blocks);
    };
    let binary = engine.decode(token).expect("base64");
    let mut decoded = binary.clone();
    let mut encoded = vec![0; token.len()];
    let signed = ..binary.len() - 32;
    let ciphertext = 25..binary.len() - 32;

    let mut group = criterion.benchmark_group(format!("floor/{size}"));
    group.bench_function("in turn", |bencher| {
        bencher.iter(|| {
            engine
                .decode_slice(black_box(token), &mut decoded)
                .expect("base64");
            let is_own = hmac(&decoded[signed])
                == CtOutput::new(decoded[signed.end..].try_into().expect("32 bytes"));
            decrypt(&mut decoded[ciphertext.clone()]);
            encrypt(&mut decoded[ciphertext.clone()]);
            let hmac = hmac(&decoded[signed]);
            decoded[signed.end..].copy_from_slice(hmac.as_bytes());
            engine.encode_slice(&decoded, &mut encoded).expect("room");
            is_own
        });
    });
    group.bench_function("base64 decode", |bencher| {
        bencher.iter(|| engine.decode_slice(black_box(token), &mut decoded));
    });
    group.bench_function("hmac", |bencher| {
        bencher.iter(|| hmac(black_box(&binary[signed])));
    });
    group.bench_function("cbc decrypt", |bencher| {
        bencher.iter(|| decrypt(black_box(&mut decoded[ciphertext.clone()])));
    });
    group.bench_function("cbc encrypt", |bencher| {
        bencher.iter(|| encrypt(black_box(&mut decoded[ciphertext.clone()])));
    });
    group.bench_function("base64 encode", |bencher| {
        bencher.iter(|| engine.encode_slice(black_box(&binary), &mut encoded));
    });
    group.finish();
}

/// How long the system's generator takes for as many initialisation vectors as are fetched at a
/// time.
fn vectors(criterion: &mut Criterion) {
    const VECTORS: usize = 256;
    let mut bytes = [0; VECTORS * BLOCK];
    let mut group = criterion.benchmark_group(format!("vectors/{VECTORS}"));
    group.bench_function("getrandom", |bencher| {
        bencher.iter(|| getrandom::fill(black_box(&mut bytes)));
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

criterion_group!(benches, rotate, seal_and_open, vectors);
criterion_main!(benches);
