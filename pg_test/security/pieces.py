"""Two ways in which drivers fetch a result in pieces; each yields a function that fetches the next value."""

import os
import socket
import struct
from contextlib import contextmanager

import psycopg

from postgres import connect


@contextmanager
def by_fetch(database, setting, query):
    """A FETCH for each piece, as psycopg's server-side cursors do."""
    with connect(database, options=f"-c {setting}") as session, session.transaction(force_rollback=True):
        cursor = session.cursor("pieces")
        cursor.execute(query)
        yield lambda: cursor.fetchone()[0]


@contextmanager
def by_execute(database, setting, query):
    """An Execute message for each piece of one portal, as JDBC and asyncpg do, and libpq does not."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"{os.environ['PGHOST']}/.s.PGSQL.{os.environ.get('PGPORT', 5432)}")
        stream = connection.makefile("rwb")

        def send(kind, body):
            stream.write(kind + struct.pack("!i", len(body) + 4) + body)

        def receive(last):
            """Reads up to a message of that kind; returns the text of the last row."""
            text = None
            stream.flush()
            while True:
                kind, size = struct.unpack("!ci", stream.read(5))
                body = stream.read(size - 4)
                if kind == b"E":
                    raise psycopg.Error(body.decode())
                if kind == b"D":
                    text = body[6:].decode()
                if kind == last:
                    return text

        def fetch():
            send(b"E", b"\0" + struct.pack("!i", 1))
            send(b"H", b"")
            return receive(b"s")

        start = f"user\0{os.environ['PGUSER']}\0database\0{database}\0options\0-c {setting}\0\0"
        send(b"", struct.pack("!i", 3 << 16) + start.encode())
        receive(b"Z")
        send(b"P", b"\0" + query.encode() + b"\0\0\0")
        send(b"B", b"\0\0" + bytes(6))
        yield fetch
