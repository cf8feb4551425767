"""Rows for people: nothing of a cell is lost at any width."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from ingest import listing

HEADINGS = ("date", "pump", "minutes ", "what", "id")
ROWS = [
    ["2026-03-01", "canonical:PCA-03", "600", "The infusion is longer than the policy allows without a look.", "3269b6e973"],
    ["2026-03-02", "paradigm:482917", "12", "", "f2e2e25416"],
]


class Terminal(io.StringIO):
    """A terminal that takes what it gets."""

    def isatty(self) -> bool:
        return True


def shown(width: int | None, rows: list[list[str]], headings: tuple[str, ...] = HEADINGS, caption: str = "") -> str:
    """What a terminal of this width shows, or a file where there is none, without colours."""
    to = io.StringIO() if width is None else Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "30" if width is None else str(width))
        patch.setenv("TERM", "xterm")
        listing.show(to, headings, rows, caption=caption)
    return re.sub(r"\x1b\[[\d;]*m", "", to.getvalue())


def squeezed(text: str) -> str:
    """Without blanks, line ends and frames."""
    return re.sub(r"[\s│┃]", "", text)


def test_where_there_is_room_it_is_a_table():
    lines = shown(100, ROWS).splitlines()
    assert lines[1].split() == ["┃", "date", "┃", "pump", "┃", "minutes", "┃", "what", "┃", "id", "┃"]
    assert len({len(line) for line in lines}) == 1
    assert "│     600 │" in shown(100, ROWS)


def test_where_there_is_none_each_row_is_a_record_that_names_what_it_tells():
    told = shown(60, ROWS, caption="2 items.")
    first, second, caption = told.split("\n\n")
    assert "date 2026-03-01 · pump canonical:PCA-03 · minutes 600 · id" in first
    assert "what The infusion is longer" in first
    assert "what" not in second
    assert caption.strip() == "2 items."
    assert max(map(len, told.splitlines())) <= 60


def test_what_goes_to_a_file_is_a_table_whatever_the_terminal_is():
    assert "│ 2026-03-01 │ canonical:PCA-03 │     600 │ The infusion is longer than the policy allows without a look. │" in shown(
        None, ROWS
    )


def test_wide_columns_make_a_file_wider():
    columns = tuple(f"column-{n}" for n in range(30))
    told = shown(None, [[f"value-{n}-{'x' * 10}" for n in range(30)]], columns)
    assert all(f" value-{n}-xxxxxxxxxx " in told for n in range(30))


words = st.text(st.sampled_from("abé漢字-_:"), max_size=90)
cells = st.lists(words, max_size=8).map(" ".join)


@given(st.lists(st.lists(cells, min_size=5, max_size=5), max_size=4), st.one_of(st.none(), st.integers(12, 200)))
def test_no_cell_is_cut_at_any_width(rows, width):
    told = shown(width, rows)
    assert "…" not in told
    if width is not None:
        assert all(cell_len(line) <= width for line in told.splitlines())
    if "━" not in told:
        for row in rows:
            for cell in row:
                assert squeezed(cell) in squeezed(told)
    else:
        columns = list(zip(*(line.split("│")[1:-1] for line in told.splitlines() if line.startswith("│")), strict=True))
        for at, column in enumerate(columns):
            assert squeezed("".join(column)) == squeezed("".join(row[at] for row in rows))
