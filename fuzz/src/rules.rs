//! The rules for keys, tokens and literals, written a second time and as plainly as possible. The core
//! and the masking of the log are compared with them.

use aes::Aes128;
use aes::cipher::{Array, BlockCipherDecrypt as _, BlockCipherEncrypt as _, KeyInit as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use hmac::{Hmac, Mac as _};
use memchr::memmem;
use sha2::Sha256;

use std::ops::Range;

use crate::fernet::Error;

pub type Key = [u8; 32];

pub const VERSION: u8 = 0x80;
/// Version, timestamp, IV.
pub const HEADER: usize = 1 + 8 + BLOCK;
pub const HMAC: usize = 32;
const BLOCK: usize = 16;

pub fn encode(bytes: &[u8]) -> String {
    URL_SAFE.encode(bytes)
}

/// Decodes base64 as pyca does.
pub fn decode(encoded: &[u8]) -> Option<Vec<u8>> {
    decode_and_place(encoded).map(|(bytes, _)| bytes)
}

/// Decodes base64 as pyca does. Also returns where it begins and ends, without the bytes that pyca
/// skips before and after it.
fn decode_and_place(encoded: &[u8]) -> Option<(Vec<u8>, Range<usize>)> {
    let start = encoded.iter().position(|&byte| digit(byte).is_some());
    let mut place = start.unwrap_or(0)..0;
    let mut digits = Vec::new();
    let mut pads = 0;
    for (at, &byte) in encoded.iter().enumerate() {
        let in_group = digits.len() % 4;
        if let Some(digit) = digit(byte) {
            digits.push(digit);
            pads = 0;
            place.end = at + 1;
        } else if byte == b'=' && in_group >= 2 {
            pads += 1;
            if in_group + pads == 4 {
                place.end = at + 1;
                return Some((whole_bytes(&digits), place));
            }
        }
    }
    let whole = digits.len().is_multiple_of(4);
    whole.then(|| (whole_bytes(&digits), place))
}

pub fn digit(byte: u8) -> Option<usize> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let byte = match byte {
        b'-' => b'+',
        b'_' => b'/',
        other => other,
    };
    DIGITS.iter().position(|&candidate| candidate == byte)
}

fn whole_bytes(digits: &[usize]) -> Vec<u8> {
    let bit = |n: usize| digits[n / 6] >> (5 - n % 6) & 1;
    let byte = |i: usize| (8 * i..8 * i + 8).fold(0, |byte, n| byte << 1 | bit(n) as u8);
    (0..digits.len() * 6 / 8).map(byte).collect()
}

/// Reads keys between commas.
pub fn key_list(list: &[u8]) -> Result<Vec<Key>, Error> {
    if list.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::EmptyKeyList);
    }
    keys(
        list.split(|&byte| byte == b',')
            .map(<[u8]>::to_vec)
            .collect(),
    )
}

/// Reads keys separated by line breaks and commas, with comments.
pub fn key_file(text: &[u8]) -> Result<Vec<Key>, Error> {
    let mut elements = vec![Vec::new()];
    let mut comment = false;
    for &byte in text {
        match byte {
            b'\n' => {
                comment = false;
                elements.push(Vec::new());
            }
            _ if comment => {}
            b'#' => comment = true,
            b',' => elements.push(Vec::new()),
            _ => elements.last_mut().unwrap().push(byte),
        }
    }
    elements.retain(|element| !element.iter().all(u8::is_ascii_whitespace));
    keys(elements)
}

fn keys(elements: Vec<Vec<u8>>) -> Result<Vec<Key>, Error> {
    let mut keys = Vec::new();
    for element in elements {
        let position = keys.len() + 1;
        let key = decode_and_place(&element)
            .filter(|(_, place)| {
                !element[place.end..]
                    .iter()
                    .any(|&byte| digit(byte).is_some())
            })
            .and_then(|(bytes, _)| bytes.try_into().ok());
        keys.push(key.ok_or(Error::InvalidKey { position })?);
    }
    if keys.is_empty() {
        return Err(Error::EmptyKeyList);
    }
    Ok(keys)
}

/// Returns the fields of a token: version, timestamp, IV, ciphertext, HMAC.
pub fn record(token: &[u8]) -> Result<Vec<u8>, Error> {
    let record = decode(token).filter(|record| is_record(record));
    record.ok_or(Error::NotAToken)
}

fn is_record(bytes: &[u8]) -> bool {
    let ciphertext = bytes.len().saturating_sub(HEADER + HMAC);
    ciphertext > 0 && ciphertext.is_multiple_of(BLOCK) && bytes[0] == VERSION
}

/// A token in a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The bytes that a rotation replaces.
    pub place: Range<usize>,
    pub record: Vec<u8>,
    /// The key that opens it, and the plaintext.
    pub outcome: Result<(usize, Vec<u8>), Error>,
}

/// Finds all tokens in a value or in a document, which as a whole is no token.
pub fn tokens(keys: &[Key], value: &[u8], is_document: bool) -> Vec<Found> {
    let whole = decode_and_place(value).filter(|(bytes, _)| is_record(bytes) && !is_document);
    let whole = whole.map(|(record, place)| found(keys, record, without_others(value, place)));
    let mut tokens = Vec::new();
    let mut at = 0;
    if let Some(whole) = &whole
        && whole.outcome.is_ok()
    {
        at = whole.place.end;
        tokens.push(whole.clone());
    }
    while at < value.len() {
        let stretch = at..end_of_stretch(value, at);
        at = stretch.end + 1;
        if let Some(stretch) = beginning_with_text(value, stretch) {
            tokens.extend(tokens_in_a_stretch(keys, value, stretch));
        }
    }
    if tokens.is_empty() {
        tokens.extend(whole);
    }
    tokens
}

/// Returns where the digits end. An escaped `/` counts as a digit.
fn end_of_stretch(value: &[u8], at: usize) -> usize {
    let count =
        |at: usize, f: &dyn Fn(u8) -> bool| value[at..].iter().take_while(|&&byte| f(byte)).count();
    let mut end = at;
    loop {
        end += count(end, &|byte| digit(byte).is_some());
        let escapes = count(end, &|byte| byte == b'\\');
        if escapes == 0 || value.get(end + escapes) != Some(&b'/') {
            return end;
        }
        end += escapes;
    }
}

/// Leaves out what precedes the first run of digits with a `gAAA`, and the letters of an escape.
fn beginning_with_text(value: &[u8], stretch: Range<usize>) -> Option<Range<usize>> {
    let text = &value[stretch.clone()];
    let first = text.windows(4).position(|window| window == b"gAAA")?;
    let before = &text[..first];
    let run = before.iter().rposition(|&byte| byte == b'\\');
    let mut start = stretch.start + run.map_or(0, |at| at + 1);
    if start > 0 && value[start - 1] == b'\\' {
        let escape = &value[start..stretch.start + first];
        if escape.len() >= 5 && escape[0] == b'u' && escape[1..5].iter().all(u8::is_ascii_hexdigit)
        {
            start += 5;
        } else if !escape.is_empty() && b"nrtbf".contains(&escape[0]) {
            start += 1;
        }
    }
    Some(start..stretch.end)
}

fn tokens_in_a_stretch(keys: &[Key], value: &[u8], stretch: Range<usize>) -> Vec<Found> {
    let joins = |byte: u8| b"/+\\".contains(&byte);
    // What is before the byte, or before the escape, that joins it to what follows.
    let before_joint = |range: Range<usize>| {
        let mut end = range.end.checked_sub(1).filter(|end| range.contains(end))?;
        if !b"/+".contains(&value[end]) {
            return None;
        }
        while end > range.start && value[end - 1] == b'\\' {
            end -= 1;
        }
        Some(range.start..end)
    };
    // The last one first: where another one ends is known only from what follows it.
    let joined = |range: Range<usize>| {
        let mut found = Vec::new();
        let mut rest = Some(range);
        while let Some(range) = rest
            && value[range.clone()].iter().any(|&byte| joins(byte))
            && let Some(last) = opened_at_the_end(keys, value, range.clone())
        {
            rest = before_joint(range.start..last.place.start);
            found.insert(0, last);
        }
        found
    };
    let mut tokens = Vec::new();
    let mut rest = stretch.start;
    let mut start = stretch.start;
    for at in stretch.clone().chain([stretch.end]) {
        if at < stretch.end && !joins(value[at]) {
            continue;
        }
        if let Some(found) = opened_at_the_end(keys, value, start..at) {
            if let Some(before) = before_joint(rest..found.place.start) {
                tokens.extend(joined(before));
            }
            rest = found.place.end;
            tokens.push(found);
        }
        start = at + 1;
    }
    tokens.extend(joined(rest..stretch.end));
    if tokens.is_empty() && value[stretch.clone()].starts_with(b"gAAAAA") {
        let record = record_at(value, stretch.clone());
        tokens.extend(record.map(|record| found(keys, record, stretch)));
    }
    tokens
}

/// Leaves out the padding if it is not the token's own: if anything but white space precedes it.
fn without_others(value: &[u8], place: Range<usize>) -> Range<usize> {
    let text = &value[place.clone()];
    let digits = text.iter().rposition(|&byte| digit(byte).is_some());
    let end = digits.map_or(0, |last| last + 1);
    for byte in &text[end..] {
        if !b"= \t\n\x0c\r".contains(byte) {
            return place.start..place.start + end;
        }
    }
    place
}

/// Finds the token at the end of a text of digits, if a key opens one. Any `/` and `+` at the end may
/// belong to it or not.
fn opened_at_the_end(keys: &[Key], value: &[u8], text: Range<usize>) -> Option<Found> {
    let joints = |&&byte: &&u8| b"/+\\".contains(&byte);
    let first_end = text.end - value[text.clone()].iter().rev().take_while(joints).count();
    let mut tried = 0;
    for start in text.clone().rev() {
        for end in first_end..=text.end {
            let place = start..end;
            if start + 4 > end || !value[place.clone()].starts_with(b"gAAA") {
                continue;
            }
            if end > first_end && value[end - 1] == b'\\' {
                continue;
            }
            let Some(record) = record_at(value, place.clone()) else {
                continue;
            };
            // Limits the effort, because of hostile values.
            tried += place.len();
            if tried >= 4 * text.len() && start != text.start {
                continue;
            }
            let found = found(keys, record, place);
            if found.outcome.is_ok() {
                return Some(found);
            }
        }
    }
    None
}

/// Returns the digits at a place with the padding after them, if they have the form of a token.
fn record_at(value: &[u8], place: Range<usize>) -> Option<Vec<u8>> {
    let digits = &value[place.clone()];
    let count = digits.iter().filter(|&&byte| byte != b'\\').count();
    let padding = ["", "", "==", "="][count % 4];
    let record = decode(&[digits, padding.as_bytes()].concat()).filter(|record| is_record(record));
    record.filter(|_| is_padded(&value[place.end..], padding.len()))
}

/// Tells whether a text begins with so many `=`, escaped or not.
fn is_padded(text: &[u8], pads: usize) -> bool {
    if pads == 0 {
        return true;
    }
    let slashes = text.iter().take_while(|&&byte| byte == b'\\').count();
    let escapes: &[&str] = match slashes {
        0 => &["=", "%3D", "%3d"],
        _ => &["u003D", "u003d"],
    };
    escapes.iter().any(|escape| {
        let rest = text[slashes..].strip_prefix(escape.as_bytes());
        rest.is_some_and(|rest| is_padded(rest, pads - 1))
    })
}

fn found(keys: &[Key], record: Vec<u8>, place: Range<usize>) -> Found {
    let outcome = open(keys, &record);
    Found {
        place,
        record,
        outcome,
    }
}

/// Returns the index of the first key under which the record's HMAC is right.
pub fn key_index(keys: &[Key], record: &[u8]) -> Option<usize> {
    let (signed, hmac) = record.split_at(record.len() - HMAC);
    keys.iter().position(|key| sign(key, signed) == hmac)
}

/// Returns the index of the key that opens the record, and the plaintext.
pub fn open(keys: &[Key], record: &[u8]) -> Result<(usize, Vec<u8>), Error> {
    let (signed, hmac) = record.split_at(record.len() - HMAC);
    let mut refusal = Error::Unauthenticated;
    for (index, key) in keys.iter().enumerate() {
        if sign(key, signed) != hmac {
            continue;
        }
        let mut plaintext = decrypt(key, signed);
        let padding = plaintext[plaintext.len() - 1];
        let keep = plaintext.len().wrapping_sub(padding.into());
        if (1..=16).contains(&padding) && plaintext[keep..].iter().all(|&byte| byte == padding) {
            plaintext.truncate(keep);
            return Ok((index, plaintext));
        }
        refusal = Error::BadPadding;
    }
    Err(refusal)
}

pub fn sign(key: &Key, signed: &[u8]) -> [u8; HMAC] {
    let mac = Hmac::<Sha256>::new_from_slice(&key[..16]).unwrap();
    mac.chain_update(signed).finalize().into_bytes().into()
}

fn decrypt(key: &Key, signed: &[u8]) -> Vec<u8> {
    let cipher = Aes128::new_from_slice(&key[16..]).unwrap();
    let blocks: Vec<&[u8]> = signed[HEADER - BLOCK..].chunks(BLOCK).collect();
    let decrypt = |pair: &[&[u8]]| {
        let mut block = Array::try_from(pair[1]).unwrap();
        cipher.decrypt_block(&mut block);
        xor(&block, pair[0])
    };
    blocks.windows(2).flat_map(decrypt).collect()
}

/// Encrypts the whole blocks after the header, in place.
pub fn encrypt(key: &Key, signed: &mut [u8]) {
    let cipher = Aes128::new_from_slice(&key[16..]).unwrap();
    for at in (HEADER..signed.len().saturating_sub(BLOCK - 1)).step_by(BLOCK) {
        let block = xor(&signed[at..at + BLOCK], &signed[at - BLOCK..at]);
        let mut block = Array::try_from(&block[..]).unwrap();
        cipher.encrypt_block(&mut block);
        signed[at..at + BLOCK].copy_from_slice(&block);
    }
}

fn xor(left: &[u8], right: &[u8]) -> Vec<u8> {
    left.iter()
        .zip(right)
        .map(|(left, right)| left ^ right)
        .collect()
}

/// Finds keys in a text. If `fernet.keys` is named, also finds pieces of keys.
pub fn keys_in(text: &[u8], is_named: bool) -> Vec<&[u8]> {
    let mut found = Vec::new();
    let mut at = 0_usize;
    for mut run in text.split(|&byte| digit(byte).is_none()) {
        let (before, behind) = (&text[..at], &text[at + run.len()..]);
        at += run.len() + 1;
        // An escape before a key, which is a letter and its digits, is not part of the key.
        let escape = run.len().saturating_sub(43);
        let is_digit = |byte: &u8| byte.is_ascii_hexdigit();
        if before.ends_with(b"\\")
            && [1, 2, 3, 5, 9].contains(&escape)
            && run[1..escape].iter().all(is_digit)
        {
            run = &run[escape..];
        }
        // With one `=` after it, it is either base64 or has a key at its end.
        let is_odd = run.len() > 43 && run.len() % 4 != 3;
        let is_padded = behind.starts_with(b"=") && !behind.starts_with(b"==");
        let has_token = memmem::find(run, b"gAAAA").is_some();
        let is_glued = is_odd && is_padded && !has_token;
        let has_both_cases =
            run.iter().any(u8::is_ascii_lowercase) && run.iter().any(u8::is_ascii_uppercase);
        let is_token = run.len() > 97 && run.starts_with(b"gAAAA");
        if run.len() == 43 && has_both_cases || is_named && is_long(run) && !is_token {
            found.push(run);
        } else if is_glued && has_both_cases {
            found.push(&run[run.len() - 43..]);
        }
    }
    found
}

/// Finds, in the literals of a statement that begin after `fernet.keys`, what is too short to be a piece
/// of a key, or words.
pub fn short_in_literals(statement: &[u8], has_escapes: bool) -> Vec<&[u8]> {
    let named = named(statement).unwrap_or(statement.len());
    let behind = statement[named..].as_ptr();
    literals(statement, has_escapes)
        .into_iter()
        .filter(|literal| literal.as_ptr() >= behind)
        // The name itself is no secret.
        .filter(|literal| !literal.eq_ignore_ascii_case(b"fernet.keys"))
        .flat_map(|literal| literal.split(|&byte| byte != b'\\' && digit(byte).is_none()))
        .filter(|run| !run.contains(&b'\\') && !is_long(run))
        .collect()
}

/// Returns where `fernet.keys` ends, if a text has it. With a slash before or after it, it is part of a
/// path.
pub fn named(text: &[u8]) -> Option<usize> {
    let text = text.to_ascii_lowercase();
    let name = b"fernet.keys";
    memmem::find_iter(&text, name)
        .find(|&at| {
            let behind = text.get(at + name.len());
            !text[..at].ends_with(b"/")
                && behind.is_none_or(|&byte| byte != b'\\' && digit(byte).is_none())
        })
        .map(|at| at + name.len())
}

fn is_long(run: &[u8]) -> bool {
    let all = |is: fn(&u8) -> bool| run.iter().all(|byte| is(byte) || b"_-".contains(byte));
    run.len() > 11 && !all(u8::is_ascii_lowercase) && !all(u8::is_ascii_uppercase)
}

/// Tells whether a text has a key in it, with nothing around it that could belong to it.
pub fn holds_key(text: &[u8], key: &Key) -> bool {
    let key = encode(key);
    let key = key.trim_end_matches('=');
    let spellings = [key.to_owned(), key.replace('-', "+").replace('_', "/")];
    let mut runs = text.split(|&byte| digit(byte).is_none());
    runs.any(|run| spellings.iter().any(|key| run == key.as_bytes()))
}

/// Finds the contents of the literals of a statement.
pub fn literals(text: &[u8], has_escapes: bool) -> Vec<&[u8]> {
    let mut found = Vec::new();
    let mut rest = text;
    while let &[first, ref behind @ ..] = rest {
        // `$` is not part of a number.
        let is_word = |&&byte: &&u8| {
            byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80 || byte == b'$'
        };
        let word = match first {
            b'$' => 0,
            b'0'..=b'9' => 1,
            _ => rest.iter().take_while(is_word).count(),
        };
        rest = if word > 0 && rest.get(word) != Some(&b'\'') {
            &rest[word..]
        } else if word > 0 || first == b'\'' {
            let has_escapes = match &rest[..word] {
                b"e" | b"E" => true,
                b"b" | b"B" | b"x" | b"X" => false,
                _ => has_escapes,
            };
            let mut next = Some(&rest[word + 1..]);
            let mut end = rest;
            while let Some(literal) = next {
                let (content, behind) = literal_in(literal, has_escapes);
                found.push(content);
                end = behind;
                next = continued(behind);
            }
            end
        } else if first == b'$' {
            let tag = behind
                .iter()
                .take_while(|byte| is_word(byte) && **byte != b'$')
                .count();
            let (delimiter, content) = rest.split_at((tag + 2).min(rest.len()));
            if delimiter.len() > 1 && delimiter.ends_with(b"$") && !behind[0].is_ascii_digit() {
                let (content, behind) = up_to(content, delimiter);
                found.push(content);
                behind
            } else {
                behind
            }
        } else if first == b'"' {
            up_to(behind, b"\"").1
        } else if rest.starts_with(b"--") {
            line(rest)
        } else if rest.starts_with(b"/*") {
            comment(&rest[2..])
        } else {
            behind
        };
    }
    found
}

/// Splits a text after an opening quote into the content and what follows the closing quote.
fn literal_in(text: &[u8], has_escapes: bool) -> (&[u8], &[u8]) {
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with(b"''") || rest[0] == b'\\' && has_escapes {
            at += 2;
        } else if rest[0] == b'\'' {
            return (&text[..at], &rest[1..]);
        } else {
            at += 1;
        }
    }
    (text, b"")
}

/// Returns what follows the quote with which a literal continues: on another line, after nothing but
/// blanks and comments that end with their line.
fn continued(mut text: &[u8]) -> Option<&[u8]> {
    let mut lines = 0;
    loop {
        match text {
            [b'\'', behind @ ..] if lines > 0 => return Some(behind),
            [b'\n' | b'\r', ..] => lines += 1,
            [b' ' | b'\t' | b'\x0b' | b'\x0c', ..] => {}
            [b'-', b'-', ..] => {
                text = line(text);
                continue;
            }
            _ => return None,
        }
        text = &text[1..];
    }
}

/// Returns what follows a comment, given the text after its opening.
fn comment(mut text: &[u8]) -> &[u8] {
    while !text.is_empty() {
        if let Some(behind) = text.strip_prefix(b"*/") {
            return behind;
        }
        text = match text.strip_prefix(b"/*") {
            Some(inside) => comment(inside),
            None => &text[1..],
        };
    }
    text
}

/// Returns the terminator of a line and what follows it.
fn line(text: &[u8]) -> &[u8] {
    let end = text.iter().position(|byte| b"\n\r".contains(byte));
    &text[end.unwrap_or(text.len())..]
}

/// Splits a text into what precedes and what follows a separator, or into the text and nothing.
fn up_to<'a>(text: &'a [u8], end: &[u8]) -> (&'a [u8], &'a [u8]) {
    let at = (0..text.len()).find(|&at| text[at..].starts_with(end));
    at.map_or((text, b""), |at| (&text[..at], &text[at + end.len()..]))
}
