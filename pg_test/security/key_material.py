"""Everything in memory that is worth as much as a key: its bytes, and what is computed from them.

Written from FIPS 197 and FIPS 180-4, since no library returns these values."""

import base64
import struct


def needles(key):
    """What to search for, by name, for a key in base64."""
    raw = base64.urlsafe_b64decode(key)
    signing, encryption = raw[:16], raw[16:]
    found = {
        "base64": key.encode(),
        "key": raw,
        "signing half": signing,
        "encryption half": encryption,
        "padded signing half": xor(signing, 0x36),
        "padded signing half, outer": xor(signing, 0x5c),
    }
    for name, pad in ("HMAC state", 0x36), ("HMAC state, outer", 0x5c):
        state = sha256_compress(xor(signing.ljust(64, b"\0"), pad))
        found[name] = struct.pack("=8I", *state)
    keys = round_keys(encryption)
    for n, round_key in enumerate(keys[1:], 1):
        found[f"round key {n}"] = round_key
    for n, round_key in enumerate(keys[1:-1], 1):
        # The key schedule that the equivalent inverse cipher, and with it the processor's instruction,
        # decrypts with.
        found[f"decryption round key {n}"] = inverse_mix_columns(round_key)
    return found


def xor(data, byte):
    return bytes(b ^ byte for b in data)


#
# AES-128
#

def times(a, b):
    """Product in GF(2^8)."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a = a << 1 ^ (0x11b if a & 0x80 else 0)
        b >>= 1
    return product


def s_box():
    def rotated(x, n):
        return (x << n | x >> 8 - n) & 0xff

    box = [0x63]
    for a in range(1, 256):
        x = next(b for b in range(1, 256) if times(a, b) == 1)
        box.append(x ^ rotated(x, 1) ^ rotated(x, 2) ^ rotated(x, 3) ^ rotated(x, 4) ^ 0x63)
    return box


S_BOX = s_box()


def round_keys(key):
    words = [key[i:i + 4] for i in range(0, 16, 4)]
    round_constant = 1
    for i in range(4, 44):
        word = words[-1]
        if i % 4 == 0:
            word = [S_BOX[b] for b in word[1:] + word[:1]]
            word[0] ^= round_constant
            round_constant = times(round_constant, 2)
        words.append(bytes(a ^ b for a, b in zip(words[-4], word)))
    return [b"".join(words[i:i + 4]) for i in range(0, 44, 4)]


def inverse_mix_columns(block):
    columns = (block[i:i + 4] for i in range(0, 16, 4))
    return bytes(times(c[i], 14) ^ times(c[(i + 1) % 4], 11) ^ times(c[(i + 2) % 4], 13) ^ times(c[(i + 3) % 4], 9)
                 for c in columns for i in range(4))


#
# SHA-256
#

def fractions_of_roots(degree, count):
    """The first 32 bits of the fractional parts of the square roots of the first primes."""
    primes, n = [], 2
    while len(primes) < count:
        if all(n % p for p in primes):
            primes.append(n)
        n += 1
    return [integer_root(p << 32 * degree, degree) & 0xffffffff for p in primes]


def integer_root(n, degree):
    low, high = 0, 1 << n.bit_length()
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle ** degree <= n else (low, middle)
    return low


INITIAL = fractions_of_roots(2, 8)
CONSTANTS = fractions_of_roots(3, 64)


def sha256_compress(block):
    """The state after the first block of a message."""
    def rotated(x, n):
        return (x >> n | x << 32 - n) & 0xffffffff

    w = list(struct.unpack(">16I", block))
    for i in range(16, 64):
        s0 = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3
        s1 = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10
        w.append((w[i - 16] + s0 + w[i - 7] + s1) & 0xffffffff)
    a, b, c, d, e, f, g, h = INITIAL
    for i in range(64):
        s1 = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)
        t1 = h + s1 + (e & f ^ ~e & g) + CONSTANTS[i] + w[i]
        s0 = rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)
        t2 = s0 + (a & b ^ a & c ^ b & c)
        h, g, f, e, d, c, b, a = g, f, e, (d + t1) & 0xffffffff, c, b, a, (t1 + t2) & 0xffffffff
    return [(x + y) & 0xffffffff for x, y in zip(INITIAL, (a, b, c, d, e, f, g, h))]
