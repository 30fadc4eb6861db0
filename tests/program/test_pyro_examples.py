"""The table of Pyro's own examples in the documentation is the one that its command prints."""

from pathlib import Path

import pytest

from tests.program.pyro_examples import HEADER, rows

PAGE = Path(__file__).parents[2] / "docs" / "any-pyro-program.md"


@pytest.mark.slow
def test_the_table_of_the_page_is_what_the_programs_do() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index(HEADER) :].split("\n\n")[0].splitlines()
    assert table[2:] == rows(steps=2, num_data=4)
