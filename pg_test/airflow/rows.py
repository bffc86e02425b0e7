"""What the tests keep in Airflow, in the words of its models."""

import json

# What Airflow encrypts under the old key.
ENCRYPTED = {
    "connections": [
        {"conn_id": "both", "conn_type": "postgres", "host": "db", "login": "me",
         "password": "correct horse", "extra": json.dumps({"sslmode": "require"})},
        {"conn_id": "password_alone", "conn_type": "http", "password": "s3cr€t"},
        {"conn_id": "extra_alone", "conn_type": "http", "extra": json.dumps({"token": "abc"})},
        {"conn_id": "neither", "conn_type": "fs"},
        {"conn_id": "empty", "conn_type": "fs", "password": "", "extra": ""},
        {"conn_id": "unicode", "conn_type": "http", "password": "pässwörd 雪 🔑 '\"\\",
         "extra": json.dumps({"clé": "🗝 雪"}, ensure_ascii=False)},
        {"conn_id": "long", "conn_type": "google_cloud_platform",
         "extra": json.dumps({"keyfile": "é" * 50_000}, ensure_ascii=False)},
    ],
    "variables": [
        {"key": "text", "val": "a value"},
        {"key": "json", "val": json.dumps({"nested": [1, {"two": None}]})},
        {"key": "unicode", "val": "värde 雪 🔑\nsecond line\t"},
        {"key": "empty", "val": ""},
        {"key": "long", "val": "x" * 100_000},
    ],
    "triggers": [
        {"classpath": "example.Nested", "kwargs": {"hook": {"password": "雪", "ports": [1, 2]}}},
        {"classpath": "example.NoArguments", "kwargs": {}},
        {"classpath": "example.AtATime", "kwargs": {"moment": "2030-01-01T00:00:00+00:00"}},
    ],
    # A table in them represents an object of its library, whose secrets Airflow encrypts one by one.
    "xcoms": {
        "delta": {"delta": {"aws_access_key_id": "AKIA", "aws_secret_access_key": "s3cr€t" * 100}},
        "iceberg": {"iceberg": {"token": "雪"}},
        "nested": {"tables": [{"delta": {"sas_token": "a"}}, {"iceberg": {"credential": "id:secret"}}], "rows": 17},
        "no_secrets": {"text": "gAAAAA", "image": "gAAAAA" * 50, "nothing": None, "list": [1, "a\\\"b\u0001é"]},
    },
    "connection_tests": [
        {"connection_id": "tested", "conn_type": "http", "password": "tested password",
         "extra": json.dumps({"tested": "extra"})},
        {"connection_id": "tested_without", "conn_type": "http"},
    ],
}

# What Airflow stored before it had a key. Most of it contains SECRET, which the tests search the tables for.
SECRET = "plain-secret"
PLAINTEXT = {
    "connections": [
        {"conn_id": "plain_both", "conn_type": "postgres", "password": f"{SECRET} 雪",
         "extra": json.dumps({"token": SECRET})},
        {"conn_id": "plain_password", "conn_type": "http", "password": SECRET},
        {"conn_id": "plain_extra", "conn_type": "http", "extra": json.dumps({"a": SECRET})},
        {"conn_id": "plain_neither", "conn_type": "http"},
    ],
    "variables": [
        {"key": "plain_text", "val": SECRET},
        {"key": "plain_empty", "val": ""},
    ],
    "triggers": [{"classpath": "example.Plain", "kwargs": {"password": SECRET}}],
    "connection_tests": [
        {"connection_id": "plain_tested", "conn_type": "http", "password": SECRET,
         "extra": json.dumps({"a": SECRET})},
    ],
}


def expected(*seeded):
    """What Airflow must read back of what was seeded."""
    def secrets(row):
        # Airflow stores no empty password.
        return {"password": row.get("password") or None, "extra": row.get("extra")}

    found = {"connections": {}, "variables": {}, "triggers": {}, "xcoms": {}, "connection_tests": {}}
    for rows in seeded:
        found["connections"] |= {row["conn_id"]: secrets(row) for row in rows["connections"]}
        found["variables"] |= {row["key"]: row["val"] for row in rows["variables"]}
        found["triggers"] |= {row["classpath"]: row["kwargs"] for row in rows["triggers"]}
        found["xcoms"] |= rows.get("xcoms", {})
        found["connection_tests"] |= {
            row["connection_id"]: secrets(row) for row in rows["connection_tests"]
        }
    return found
