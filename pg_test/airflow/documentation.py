"""The commands of docs/airflow.md, so that the tests run what a reader would."""

import re
from textwrap import dedent

from harness import HERE

PAGE = HERE.parents[1] / "docs" / "airflow.md"


def code_block(heading, language, containing=""):
    """The first code block in that language under that heading (that contains some text)."""
    section = re.split(rf"^#+ {re.escape(heading)}$", PAGE.read_text(), flags=re.MULTILINE)[1]
    blocks = re.findall(rf"^ *```{language}\n(.*?)^ *```$", section, re.MULTILINE | re.DOTALL)
    return dedent(next(block for block in blocks if containing in block))
