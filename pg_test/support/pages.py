"""The pages of the documentation, and the code blocks on them."""

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
PAGES = [str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))]


@dataclass
class Block:
    page: str
    line: int
    heading: str
    # The text between the previous block, or the heading, and this one.
    before: str
    language: str
    text: str
    # What the page says that it prints, if it does: a block with no language, right after it.
    output: str | None = None

    def __str__(self):
        return f"{self.page}:{self.line}"

    @property
    def file(self):
        """The name of the file that the block shows, if the line before it gives one: `name`:"""
        name = re.search(r"^ *`([\w./-]+)`:\s*$", self.before, re.MULTILINE)
        return name and name[1]


def blocks(page):
    found, heading, before = [], None, ""
    lines = enumerate((ROOT / page).read_text().splitlines(keepends=True), 1)
    for number, line in lines:
        if fence := re.match(r"( *```)(\w*)$", line):
            closing, language = fence.groups()
            text = dedent("".join(iter(lambda: next(lines)[1], closing + "\n")))
            if not language and found and found[-1].heading == heading and not before.strip():
                found[-1].output = text
            else:
                found.append(Block(page, number, heading, before, language, text))
            before = ""
        elif title := re.match(r"#+ (.*)$", line):
            heading, before = title[1], ""
        else:
            before += line
    return found


def code_block(page, heading, language, containing=""):
    """The first block in that language right under that heading (that contains some text)."""
    return next(block.text for block in blocks(page)
                if (block.heading, block.language) == (heading, language) and containing in block.text)


def links(page):
    """The links to other pages of ours: the file, and the heading there, if there is one."""
    text = (ROOT / page).read_text()
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        yield (ROOT / page).parent / path if path else ROOT / page, anchor


def anchors(path):
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
