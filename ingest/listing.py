"""Rows for people, whole at any width: a table where it fits, else a record for each row. No cell is ever cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_WIDTH = 180
"""Where nobody watches: a file, or a program that reads on."""

_LONG, _PROSE, _WORD = 40, 24, 64
"""A text of more characters is wrapped; it is hard to read in fewer; a longer word is wrapped within."""

_STYLES = {"released": "blue", "ready": "green", "hold": "yellow", "uncertain": "yellow", "open": "cyan", "void": "dim"}


def show(to: IO[str], headings: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "") -> None:
    """Writes rows of printable text below these headings; one that ends in a blank is of a number.

    On a terminal that has no room for the words of every column, each row is a paragraph that names what it tells.
    """
    console = Console(file=to, highlight=False, width=None if to.isatty() else _WIDTH)
    titles = [heading.strip() for heading in headings]
    columns = [[title, *(row[at] for row in rows)] for at, title in enumerate(titles)]
    least = [max(map(_least, column)) for column in columns]
    frame = 3 * len(titles) + 1
    if to.isatty() and sum(least) + frame > console.width:
        _records(console, titles, rows)
        console.print(Text(f"\n{caption}" if rows else caption, style="dim italic"), overflow="fold")
        return
    console.width = max(console.width, sum(least) + frame)
    table = Table(caption=caption, caption_justify="left")
    for heading, width in zip(headings, _shared(console.width - frame, least, columns), strict=True):
        table.add_column(heading.strip(), justify="right" if heading.endswith(" ") else "left", width=width, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    console.print(table)


def _least(cell: str) -> int:
    """The columns that a text needs: its longest word, and some more where it is long."""
    return max([1, *(min(cell_len(word), _WORD) for word in cell.split()), _PROSE if len(cell) > _LONG else 0])


def _shared(room: int, least: Sequence[int], columns: Sequence[Sequence[str]]) -> Sequence[int]:
    """Widths of columns: what each needs, and what is left shared out, first to those that want least more."""
    widths = list(least)
    more = {at: max(map(cell_len, column)) - least[at] for at, column in enumerate(columns)}
    for left, at in enumerate(sorted(more, key=lambda at: (more[at], at))):
        widths[at] += min(more[at], (room - sum(widths)) // (len(more) - left))
    return widths


def _records(console: Console, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    prose = [any(len(row[at]) > _LONG for row in rows) for at in range(len(titles))]
    for number, row in enumerate(rows):
        told = [(long, _named(title, cell)) for long, title, cell in zip(prose, titles, row, strict=True) if cell]
        if number:
            console.print()
        console.print(Text(" · ").join(text for long, text in told if not long), overflow="fold")
        for text in (text for long, text in told if long):
            console.print(Padding(text, (0, 0, 0, 2), expand=False), overflow="fold")


def _named(title: str, cell: str) -> Text:
    return Text.assemble((f"{title} ", "dim"), (cell, _STYLES.get(cell, "")))
