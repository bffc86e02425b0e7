"""The commands of docs/airflow.md, so that the tests run what a reader would."""

import sys

from harness import HERE

sys.path.insert(0, str(HERE.parent / "documentation"))

import pages  # noqa: E402, found through the path


def code_block(heading, language, containing=""):
    """The first code block in that language under that heading (that contains some text)."""
    return pages.code_block("docs/airflow.md", heading, language, containing)
