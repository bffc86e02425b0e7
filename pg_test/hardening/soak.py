"""How much a test does: a share in `make test`, all of it in `make soak`."""

import os

SOAK = os.environ.get("PG_FERNET_SOAK", "0") != "0"


def count(share, in_soak):
    return in_soak if SOAK else share
