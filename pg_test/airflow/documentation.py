"""The commands of docs/airflow.md, so that the tests run what a reader would."""

import pages


def code_block(heading, language, containing=""):
    """The first code block in that language under that heading (that contains some text)."""
    return pages.code_block("docs/airflow.md", heading, language, containing)
