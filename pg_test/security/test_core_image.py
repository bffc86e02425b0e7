"""What a core image of a session's process holds of keys and plaintexts: memory and registers."""

import secrets
import shutil
import subprocess
import time
import warnings
from pathlib import Path

import pytest

import key_material
import pyca
from key_files import write
from postgres import column, value
from settings import refusal, use_file

if not shutil.which("gcore"):
    warnings.warn("gdb is not installed: NOT TESTED that no key stays behind in memory")
    pytestmark = pytest.mark.skip("gdb, which makes core images, is not installed")

ROWS = 3000
EMPTY_PAGE = bytes(4096)


def core_image(session, folder):
    """The image without its empty pages, which are nearly all of the memory that server processes share."""
    value(session, "SELECT 1")  # a statement that has nothing to do with keys
    image = folder / f"core.{session.info.backend_pid}"
    try:
        subprocess.run(["gcore", "-o", folder / "core", str(session.info.backend_pid)], check=True, capture_output=True)
        with image.open("rb") as file:
            return b"".join(page for page in iter(lambda: file.read(len(EMPTY_PAGE)), b"") if page != EMPTY_PAGE)
    finally:
        image.unlink(missing_ok=True)


def found(image, *keys):
    """What there is of the keys, by name."""
    return {name for key in keys for name, needle in key_material.needles(key).items() if needle in image}


def encrypted(key, rows=ROWS):
    """Tokens, and a part that their plaintexts have in common."""
    mark = secrets.token_hex(8)
    return [pyca.encrypt(key, f"{mark} {n}".encode(), int(time.time())).decode() for n in range(rows)], mark.encode()


def use(session, *keys):
    """Puts the keys to every use."""
    tokens, _ = encrypted(keys[-1])
    for call in ("fernet_decrypt(token)", "fernet_decrypt_bytea(token)", "fernet_rotate(token)", "fernet_encrypt(token)",
                 "fernet_key_index(token)", "fernet_timestamp(token)", "fernet_decrypt(token, '1 hour')"):
        assert value(session, f"SELECT count({call}) FROM unnest(%s::text[]) AS token", tokens) == ROWS
    assert len(column(session, "SELECT fingerprint FROM fernet_keys()")) == len(keys)


def test_keys_in_use_are_found(db, folder, key_file, keys):
    """Otherwise the other tests would prove nothing."""
    use_file(db, key_file)
    use(db, *keys)
    image = core_image(db, folder)
    for key in keys:
        names = found(image, key)
        assert {"HMAC state", "HMAC state, outer"} <= names
        # What the key was read from has been wiped.
        assert names.isdisjoint({"base64", "key", "signing half", "padded signing half", "padded signing half, outer"})
        # Without the processor's instructions for AES, the schedule has another form.
        if "aes" in Path("/proc/cpuinfo").read_text():
            assert {"encryption half", "round key 1", "round key 10", "decryption round key 1"} <= names
    db.execute("SELECT set_config('fernet.keys', %s, false)", [keys[0]])
    assert "base64" in found(core_image(db, folder), keys[0])


def test_after_a_reset(db, folder, key_file, keys):
    use_file(db, key_file)
    use(db, *keys)
    db.execute("RESET fernet.keys_file")
    assert found(core_image(db, folder), *keys) == set()


@pytest.mark.parametrize("query", [
    "SELECT fernet_encrypt('hello')",
    "SELECT fernet_decrypt({token})",
    "SELECT fernet_rotate({token})",
    "SELECT fernet_key_index({token})",
    "SELECT * FROM fernet_keys()",
])
def test_after_a_reset_following_one_call(db, folder, key_file, keys, query):
    """Registers keep values from the last call."""
    use_file(db, key_file)
    (token,), _ = encrypted(keys[-1], rows=1)
    db.execute(query.format(token=f"'{token}'"))
    db.execute("RESET fernet.keys_file")
    assert found(core_image(db, folder), *keys) == set()


def test_after_the_file_was_replaced(db, folder, keys):
    old, new, _ = keys
    path = write(folder / "keys", old)
    use_file(db, path)
    use(db, old)
    write(path, new)
    use(db, new)
    image = core_image(db, folder)
    assert found(image, old) == set()
    assert found(image, new) != set()


def test_an_idle_session_keeps_its_keys_until_it_uses_keys_again(db, folder, keys):
    """Even after statements that use none, such as that of core_image()."""
    path = write(folder / "keys", keys[0])
    use_file(db, path)
    use(db, keys[0])
    write(path, keys[1])
    assert found(core_image(db, folder), keys[0]) != set()
    use(db, keys[1])
    assert found(core_image(db, folder), keys[0]) == set()


def test_after_the_file_was_removed(db, folder, key_file, keys):
    use_file(db, key_file)
    use(db, *keys)
    key_file.unlink()
    refusal(db, "F0000")
    assert found(core_image(db, folder), *keys) == set()


def test_after_a_reset_of_the_command(db, folder, configuration, key_file, keys):
    configuration.set("fernet.keys_command", f"cat {key_file}")
    use(db, *keys)
    configuration.set("fernet.keys_command", "")
    assert found(core_image(db, folder), *keys) == set()


def test_after_a_list_was_refused(db, folder, configuration, keys):
    """Its good keys have been read by then."""
    path = write(folder / "keys", *keys, "bad")
    use_file(db, path)
    refusal(db, "22023")
    db.execute("RESET fernet.keys_file")
    for end in "echo bad", "exit 1", "yes '#'":
        configuration.set("fernet.keys_command", f"cat {path}; {end}")
        with pytest.raises(Exception):
            use(db, *keys)
    assert found(core_image(db, folder), *keys) == set()


def test_after_use_deep_in_a_recursion(db, folder, key_file, keys):
    """What calls leave on the stack is far below the place where the keys are dropped."""
    db.execute("""
        CREATE FUNCTION pg_temp.deep(depth int) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN
            RETURN CASE depth WHEN 0 THEN fernet_decrypt(fernet_encrypt('hello')) ELSE pg_temp.deep(depth - 1) END;
        END $$""")
    use_file(db, key_file)
    assert value(db, "SELECT pg_temp.deep(200)") == "hello"
    db.execute("RESET fernet.keys_file")
    assert found(core_image(db, folder), *keys) == set()


def test_plaintexts_of_what_was_only_rotated_or_refused(db, folder, key_file, keys):
    use_file(db, key_file)
    tokens, mark = encrypted(keys[-1])
    tokens.append(pyca.encrypt(keys[-1], mark * 2000, 1000).decode())
    # Of a size that is not overwritten at once after its memory is freed.
    expired, no_text = (pyca.encrypt(keys[0], mark * 200 + end, 1000).decode() for end in (b"", b"\0\xff"))
    for call in "fernet_rotate(token)", "fernet_key_index(token)", "fernet_timestamp(token)":
        assert value(db, f"SELECT count({call}) FROM unnest(%s::text[]) AS token", tokens) == ROWS + 1
    refusal(db, "22000", f"SELECT fernet_decrypt('{expired}', '1 hour')")
    refusal(db, "22021", f"SELECT fernet_decrypt('{no_text}')")
    # Until then, some of the last plaintext may be on the stack and in registers.
    db.execute("RESET fernet.keys_file")
    assert mark not in core_image(db, folder)

    # A result belongs to the server, which does not wipe memory. So the search does find plaintext.
    use_file(db, key_file)
    value(db, "SELECT count(fernet_decrypt(token)) FROM unnest(%s::text[]) AS token", tokens)
    assert mark in core_image(db, folder)
