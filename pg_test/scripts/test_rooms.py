"""The rooms of the sources import only what is below them, never what is above or beside: src/lib.rs has their
order."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

# From the top down; the first two are side by side.
ROOMS = ["functions", "columns", "keys", "pg", "fernet"]
BELOW = {"functions": ROOMS[2:], **{room: ROOMS[at + 1:] for at, room in enumerate(ROOMS) if at}}


def imports(path):
    """The rooms that a source file names."""
    text = re.sub(r"//.*", "", path.read_text())
    named = re.findall(r"\bcrate::(\w+)", text)
    for group in re.findall(r"\bcrate::\{(.*?)\};", text, re.DOTALL):
        named += re.findall(r"(?:^|,)\s*(\w+)", re.sub(r"\{[^{}]*\}", "", group))
    return {name for name in named if name in ROOMS}


def room_of(path):
    return path.relative_to(ROOT / "src").parts[0].removesuffix(".rs")


def test_imports_go_down():
    files = [path for path in (ROOT / "src").rglob("*.rs") if path.name != "lib.rs"]
    assert {room_of(path) for path in files} == set(ROOMS)
    assert [(str(path), name) for path in files for name in imports(path)
            if name not in [room_of(path), *BELOW[room_of(path)]]] == []
    # The test sees imports that exist.
    assert imports(ROOT / "src/columns/convert.rs") == {"fernet", "pg"}
    assert imports(ROOT / "src/pg/report.rs") == {"fernet"}


def test_unsafe_code_is_in_one_room():
    unsafe = [path for path in (ROOT / "src").rglob("*.rs") if re.search(r"\bunsafe (\{|extern|fn|impl)", path.read_text())]
    outside = [path for path in unsafe if room_of(path) != "pg"]
    assert outside == []
    assert len(unsafe) > 5
