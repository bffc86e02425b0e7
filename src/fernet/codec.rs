//! Base64 as Fernet uses it: writes canonical base64url, reads whatever pyca reads.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::PAD;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
type Engine = base64::engine::Simd;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type Engine = base64::engine::GeneralPurpose;

static BASE64URL: LazyLock<Engine> = LazyLock::new(|| {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    return Engine::url_safe(PAD);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return Engine::new(&base64::alphabet::URL_SAFE, PAD);
});

/// Returns how many characters `len` bytes take in base64, or `None` if a `usize` cannot hold that.
pub(super) const fn encoded_len(len: usize) -> Option<usize> {
    base64::encoded_len(len, true)
}

/// Tells whether a byte is a character of either base64 alphabet. Padding is not.
pub(crate) const fn is_char(byte: u8) -> bool {
    matches!(byte, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' | b'-' | b'_')
}

/// Decodes base64 in the form in which we write it to the front of `buf`, and returns the number of
/// bytes. Three bytes for every four characters are always enough.
pub(super) fn decode_strict(encoded: &[u8], buf: &mut [u8]) -> Option<usize> {
    BASE64URL.decode_slice(encoded, buf).ok()
}

/// Decodes characters of the two alphabets without their padding, if they need any. Passes over a
/// `\` between them. Returns `None` if there is one character more than a multiple of four.
pub(super) fn decode_unpadded(chars: &[u8], buf: &mut [u8]) -> Option<usize> {
    let (groups, rest) = chars.split_at(chars.len() / 4 * 4);
    let (done, rest) = match decode_strict(groups, buf) {
        Some(len) => (len, rest),
        None => (0, chars),
    };
    let (len, _) = decode_lenient(rest.iter().chain(b"=="), &mut buf[done..])?;
    Some(done + len)
}

/// Decodes like CPython's `binascii.a2b_base64` when it is not strict, with both alphabets. Returns
/// how many bytes were written, and where the input ended: after its last character, or after the `=`
/// that ended it. Returns `None` if that is inside a group of four characters, or if `out` is too
/// small.
///
/// Skips all other bytes. A `=` ends the input if it completes a group that has at least two
/// characters; a `=` before that is skipped too. Bits that fill no byte are dropped.
pub(super) fn decode_lenient<'a>(
    encoded: impl IntoIterator<Item = &'a u8>,
    out: &mut [u8],
) -> Option<(usize, usize)> {
    let mut written = 0;
    let mut end = 0;
    let mut put = |byte: u8| {
        *out.get_mut(written)? = byte;
        written += 1;
        Some(())
    };
    // The current group: the value of its last character, its number of characters, and the number
    // of `=` since that character.
    let (mut last, mut chars, mut pads) = (0u8, 0, 0);
    for (at, &byte) in encoded.into_iter().enumerate() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            b'=' if chars >= 2 => {
                pads += 1;
                if chars + pads >= 4 {
                    return Some((written, at + 1));
                }
                continue;
            }
            _ => continue,
        };
        pads = 0;
        match chars {
            0 => {}
            1 => put(last << 2 | value >> 4)?,
            2 => put(last << 4 | value >> 2)?,
            _ => put(last << 6 | value)?,
        }
        last = value;
        end = at + 1;
        chars = (chars + 1) % 4;
    }
    (chars == 0).then_some((written, end))
}

/// How many bytes are encoded at a time: a multiple of three, so that no group straddles two
/// chunks.
const CHUNK: usize = 768;

/// Replaces the first `len` bytes of `buf` by their base64url form and returns its length.
///
/// Works from the last chunk to the first: a chunk's characters start at 4/3 of its own offset, so
/// they overwrite no byte that is still to be read.
pub(super) fn encode_in_place(buf: &mut [u8], len: usize) -> usize {
    for start in (0..len).step_by(CHUNK).rev() {
        let size = CHUNK.min(len - start);
        let bytes = start..start + size;
        let chars = start / 3 * 4..(start + size).div_ceil(3) * 4;
        // The caller's buffer holds `encoded_len(len)` bytes, so every chunk has room.
        if size <= SHORT {
            let mut chunk = [0; SHORT];
            chunk[..size].copy_from_slice(&buf[bytes]);
            encode_short(&chunk, size, &mut buf[chars]);
        } else {
            let mut chunk = [0; CHUNK];
            chunk[..size].copy_from_slice(&buf[bytes]);
            encode(&chunk[..size], &mut buf[chars]);
        }
    }
    len.div_ceil(3) * 4
}

fn encode(bytes: &[u8], out: &mut [u8]) {
    BASE64URL
        .encode_slice(bytes, out)
        .expect("there is room for the encoded form");
}

/// Most tokens are shorter than the 128 bytes from which on the engine uses vectors. It would
/// encode them group by group, which takes three times as long as encoding them with zeroes
/// appended.
const SHORT: usize = 129;

/// Encodes the first `size` bytes, which zeroes follow, into `out`, whose length must be exactly that
/// of the result.
fn encode_short(bytes: &[u8; SHORT], size: usize, out: &mut [u8]) {
    let mut chars = [0; SHORT / 3 * 4];
    encode(bytes, &mut chars);
    out.copy_from_slice(&chars[..out.len()]);
    // The zeroes that fill up the last group become padding.
    let padding = out.len() / 4 * 3 - size;
    let end = out.len() - padding;
    out[end..].fill(b'=');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lenient(encoded: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![0; encoded.len()];
        let (len, _) = decode_lenient(encoded, &mut out)?;
        out.truncate(len);
        Some(out)
    }

    #[test]
    fn lenient_takes_both_alphabets_and_skips_the_rest() {
        assert_eq!(lenient(b"-_+/").unwrap(), [0xfb, 0xff, 0xbf]);
        assert_eq!(lenient(b" 'Zm\n9v\xff' ").unwrap(), b"foo");
        assert_eq!(lenient(b"").unwrap(), b"");
        assert_eq!(lenient(b"%%%").unwrap(), b"");
    }

    #[test]
    fn lenient_ends_at_the_padding_that_completes_a_group() {
        assert_eq!(lenient(b"Zg==Zm9v").unwrap(), b"f");
        assert_eq!(lenient(b"Zm8=!").unwrap(), b"fo");
        assert_eq!(lenient(b"Zm8==").unwrap(), b"fo");
        // One `=` comes too early to count, and the other is cancelled by a further character.
        assert_eq!(lenient(b"=Z=m9v").unwrap(), b"foo");
        assert_eq!(lenient(b"Zm=9v").unwrap(), b"foo");
        // Remaining bits are ignored.
        assert_eq!(lenient(b"Zh==").unwrap(), b"f");
    }

    #[test]
    fn lenient_tells_where_the_input_ended() {
        for (encoded, end) in [
            (&b"Zm9v"[..], 4),
            (b" Zm9v\n", 5),
            (b"Zg==Zm9v", 4),
            (b"Zm8 = =", 5),
            (b"Zm=9v==", 5),
            (b"==", 0),
            (b"", 0),
        ] {
            let (_, found) = decode_lenient(encoded, &mut [0; 9]).unwrap();
            assert_eq!(found, end, "{}", encoded.escape_ascii());
        }
    }

    #[test]
    fn unpadded_takes_any_number_of_characters_but_a_single_one() {
        let unpadded = |chars: &[u8]| {
            let mut out = vec![0; chars.len()];
            let len = decode_unpadded(chars, &mut out)?;
            out.truncate(len);
            Some(out)
        };
        assert_eq!(unpadded(b"").unwrap(), b"");
        assert_eq!(unpadded(b"Zm9v").unwrap(), b"foo");
        assert_eq!(unpadded(b"Zm9vZg").unwrap(), b"foof");
        assert_eq!(unpadded(b"Zm9vZm8").unwrap(), b"foofo");
        assert_eq!(unpadded(b"-_+/").unwrap(), [0xfb, 0xff, 0xbf]);
        assert_eq!(unpadded(b"-_-_+/").unwrap(), [0xfb, 0xff, 0xbf, 0xfb]);
        assert_eq!(unpadded(b"Zm9vZ"), None);
        // PHP and others write a slash in JSON this way.
        assert_eq!(unpadded(br"-_+\/").unwrap(), [0xfb, 0xff, 0xbf]);
        assert_eq!(unpadded(br"Zm9v\/g").unwrap(), b"foo\xfe");
        assert_eq!(
            unpadded(br"-_+\/-_+\\/Zm8").unwrap(),
            [0xfb, 0xff, 0xbf, 0xfb, 0xff, 0xbf, b'f', b'o']
        );
    }

    #[test]
    fn lenient_refuses_an_unfinished_group() {
        for encoded in [&b"Z"[..], b"Zg", b"Zg=", b"Zm8", b"Zm9vZ", b"Z==="] {
            assert_eq!(lenient(encoded), None, "{}", encoded.escape_ascii());
        }
    }

    #[test]
    fn lenient_refuses_what_does_not_fit() {
        assert_eq!(decode_lenient(b"Zm9v", &mut [0; 2]), None);
    }

    #[test]
    fn encodes_in_place_at_every_length_around_a_chunk() {
        let bytes: Vec<u8> = (0..3000u32).map(|i| (i * 7 % 251) as u8).collect();
        for len in (0..SHORT + 5)
            .chain(CHUNK - 4..CHUNK + 5)
            .chain(2 * CHUNK - 2..2 * CHUNK + 4)
            .chain(CHUNK + SHORT - 2..CHUNK + SHORT + 3)
            .chain([3000])
        {
            let expected = base64::engine::general_purpose::URL_SAFE.encode(&bytes[..len]);
            let mut buf = vec![0; encoded_len(len).unwrap()];
            buf[..len].copy_from_slice(&bytes[..len]);
            assert_eq!(encode_in_place(&mut buf, len), buf.len());
            assert_eq!(buf, expected.as_bytes(), "length {len}");
        }
    }
}
