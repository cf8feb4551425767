"""What billing pulls: sessions, set-ups, therapy days, lines and worklist, filtered and in a fixed order, in the formats people use.

A table is proposed from what pumps recorded; a biller decides. Every export that can carry a sentence says so (`PROPOSED`). Instants
are UTC and marked as such; `*_local` columns are in the order's zone and `printed_*` what the pump's clock showed, both without one.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xlsxwriter

from devices.errors import InputError
from ingest import files, listing
from ingest.lake import UNKNOWN, Lake
from transforms import decisions, tables

PROPOSED = "Proposed from what pumps recorded; a biller decides what is billed."

FORMATS = ("table", "csv", "xlsx", "json", "parquet")

_FILTERS: Mapping[str, str] = {"patient": "patient_id", "payer": "payer", "state": "state"}
"""Options, with the column that each is of; the month is that of the file."""

_NOT_CLEARED = decisions.NEVER_CLEARED | {decisions.REVIEWER_HOLD, decisions.DECISION_LAPSED}
"""Codes that are answered by another way: the order or the rule set is mended, or the decision taken back."""

_VALUES = 12
"""So many values are named where a filter finds none."""

_MONTH = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What makes a spreadsheet take text for a formula when it stands first in a cell (OWASP, CSV injection)."""

_XLSX_ROWS, _XLSX_TEXT = 1_048_575, 32_767
_XLSX_CREATED = datetime(2026, 1, 1)  # noqa: DTZ001 - a property of the file, fixed so that equal tables are equal bytes
_XLSX_FROM = 1900


@dataclass(frozen=True, slots=True)
class _View:
    schema: pa.Schema
    sort: tuple[tuple[str, str], ...]
    states: tuple[str, ...]
    shown: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...]
    """Headings for people, and what stands below them; a heading that ends in a blank is of a number."""


def select(
    lake: Lake, table: str, *, month: str | None = None, patient: str | None = None, payer: str | None = None, state: str | None = None
) -> pa.Table:
    """The rows of "sessions", "setups", "days", "lines" or "worklist", in a fixed order, with the schema of `transforms.tables`.

    `month` ("YYYY-MM", or "unknown") is that of the local start of a session, of its session for a set-up, of the service date for
    the others. Raises InputError where there is no such table, month or state, or the table lacks the column of a filter; StorageError.
    """
    view = _view(table)
    wanted = filters(table, patient=patient, payer=payer, state=state)
    rows = lake.read(table, view.schema, months=months(month))
    for column, value in wanted.items():
        rows = rows.filter(pc.equal(rows[column], value))
    return rows.sort_by(list(view.sort)).combine_chunks()


def nothing(lake: Lake, table: str, asked: Mapping[str, str | None]) -> str:
    """Why `select` gave no row with these filters, by option, and what it would give one for. Raises StorageError."""
    view = _view(table)
    columns = {option: column for option, column in _FILTERS.items() if column in view.schema.names}
    rows = lake.read(table, view.schema, columns=list(columns.values()), month_as="month").to_pylist()
    return nothing_of(table, asked, [{"month": {row["month"]}} | {name: {row[column]} for name, column in columns.items()} for row in rows])


def nothing_of(table: str, asked: Mapping[str, str | None], rows: Sequence[Mapping[str, Collection[str | None]]]) -> str:
    """The same of any rows, each with what it has of each option."""
    given, many = {option: value for option, value in asked.items() if value is not None}, _noun(table, 2)
    if not rows:
        return f"There are no {many} at all{'' if table == 'amendments' else '; `pumpledger nightly` derives them from what was received'}."
    beside = {option: {other: value for other, value in given.items() if other != option} for option in given}
    there = [_there(rows, option, rest) for option, rest in beside.items()]
    if not any(there):
        there = [_there(rows, option, {}) for option in given]
    return f"No {_noun(table, 1)} of {_words(given)}; {'; '.join(f'there are {many} of {one}' for one in there if one)}."


def _there(rows: Sequence[Mapping[str, Collection[str | None]]], option: str, rest: Mapping[str, str]) -> str:
    """What there is of an option beside the rest of what was asked, with how many rows; "" where there is nothing."""
    mine = [row for row in rows if all(value in row[other] for other, value in rest.items())]
    counts = Counter(one for row in mine for one in row[option] if one is not None)
    shown = [f"{printable(value)} ({count})" for value, count in sorted(counts.items())]
    more = f" and {len(shown) - _VALUES} more" if len(shown) > _VALUES else ""
    return f"{_words(rest)}{' and ' if rest else ''}{option} {', '.join(shown[:_VALUES])}{more}" if shown else ""


def _words(asked: Mapping[str, str]) -> str:
    return " and ".join(f"{option} {printable(value)}" for option, value in asked.items())


def schema(table: str) -> pa.Schema:
    """The columns of a table that is pulled. Raises InputError where there is no such table."""
    return _view(table).schema


def filters(table: str, *, patient: str | None = None, payer: str | None = None, state: str | None = None) -> dict[str, str]:
    """What the columns of a table have to be. Raises InputError where it never has this state, or lacks the column of a filter."""
    view = _view(table)
    if state is not None and view.states and state not in view.states:
        raise InputError(f"No row of {table} is ever {state!r}.", do=f"The states are {', '.join(view.states)}.", code="state")
    wanted = dict(zip(_FILTERS.values(), (patient, payer, state), strict=True))
    for option, (column, value) in zip(_FILTERS, wanted.items(), strict=True):
        if value is not None and column not in view.schema.names:
            raise InputError(
                f"{table} cannot be filtered by {option}.",
                why=f"It has no column {column}.",
                do=f"Leave the filter out; {', '.join(t for t in _VIEWS if column in _VIEWS[t].schema.names)} have it.",
                code="filter",
            )
    return {column: value for column, value in wanted.items() if value is not None}


def months(month: str | None) -> list[str] | None:
    """The months that `Lake.read` is to look at: all of them for None. Raises InputError where it is none."""
    if month is not None and month != UNKNOWN and not _MONTH.fullmatch(month):
        raise InputError(f"There is no month {month!r}.", do='Give it as "2026-03", or "unknown" for rows without a date.', code="month")
    return None if month is None else [month]


def write(table: pa.Table, name: str, form: str, to: Path | IO[Any], /) -> None:
    """Writes a table of `select`, whose name it was, to a file (whole or not at all) or a stream, as one of `FORMATS`.

    table    for people: a few columns, UTC times marked as such, ids short (`explain` takes them)
    csv      RFC 4180 (CRLF, header), UTF-8; lists joined with ";", the ledger as JSON; text that a spreadsheet would take for a
             formula has an apostrophe before it
    xlsx     typed cells, and a sheet "data dictionary"; equal tables are equal bytes
    json     one array of objects with all columns; UTC with Z, local and printed times without a zone
    parquet  with the schema, and what each column says in its fields' metadata

    Raises InputError for another format, for bytes to a terminal or a stream of text, or for more rows than a sheet holds; StorageError.
    """
    view = _view(name)
    if form not in FORMATS:
        raise InputError(f"There is no format {form!r}.", do=f"Choose one of {', '.join(FORMATS)}.", code="format")
    if form == "table":
        if isinstance(to, Path):
            text = io.StringIO()
            _print(table, name, view, text)
            files.replace_text(to, text.getvalue())
        else:
            _print(table, name, view, to)
        return
    data = {"csv": _csv, "xlsx": _xlsx, "json": _json, "parquet": _parquet}[form](table, name)
    if isinstance(to, Path):
        files.replace(to, data)
        return
    raw = getattr(to, "buffer", None) if isinstance(to, io.TextIOBase) else to
    if form in ("xlsx", "parquet") and (raw is None or to.isatty()):
        raise InputError(f"{form} is not for a terminal.", do="Send it to a file.", code="binary")
    if raw is None:
        to.write(data.decode())
    else:
        to.flush()
        raw.write(data)
        raw.flush()


def plain(value: Any) -> Any:
    """A value of a table as JSON has it: UTC as ISO 8601 with Z, times without a zone and dates as they are, bytes as hex."""
    match value:
        case datetime():
            text = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
            return text.isoformat(timespec="milliseconds" if text.microsecond else "seconds") + ("Z" if value.tzinfo else "")
        case date():
            return value.isoformat()
        case bytes():
            return value.hex()
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
        case _:
            return value


def answers(code: str, ident: str) -> list[str]:
    """The commands with which a reviewer answers a code that holds, or informs of, what has this id; none where only mending helps.

    They are for people to copy, and no part of any table: `pumpledger decide` says what else can be decided.
    """
    asked = [f"--{decisions.SITE}"] if code == decisions.ANSWERS[decisions.SITE] else []
    asked += [] if code in _NOT_CLEARED else [f"--clear {code}"]
    return [f"pumpledger decide {ident[:10]} {one} --by YOU" for one in asked]


def printable(text: str) -> str:
    """Text with every character that would steer a terminal or a page made visible instead."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _view(table: str) -> _View:
    try:
        return _VIEWS[table]
    except KeyError:
        raise InputError(f"There is no table {table!r} to pull.", do=f"Choose one of {', '.join(_VIEWS)}.", code="table") from None


# --- formats ----------------------------------------------------------------------------------------------------------------


def _csv(table: pa.Table, _: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(table.column_names)
    columns = [[_csv_cell(value) for value in column.to_pylist()] for column in table.columns]
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue().encode()


def _csv_cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value).removesuffix(".0")
        case _:
            text = _text(value)
            return "'" + text if text.startswith(_FORMULA) else text


def _text(value: Any) -> str:
    """What is neither number nor truth as the text of one cell."""
    if isinstance(value, list):
        if any(isinstance(item, Mapping) for item in value):
            return json.dumps(plain(value), separators=(",", ":"), ensure_ascii=False)
        return ";".join(str(plain(item)) for item in value)
    return str(plain(value))


def _json(table: pa.Table, _: str) -> bytes:
    rows = [json.dumps(plain(row), ensure_ascii=False) for row in table.to_pylist()]
    return ("[" + ",\n ".join(rows) + "]\n").encode()


def _parquet(table: pa.Table, _: str) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"says": PROPOSED}), sink, compression="zstd")
    return sink.getvalue()


def _xlsx(table: pa.Table, name: str) -> bytes:
    if table.num_rows > _XLSX_ROWS:
        raise InputError(
            f"{table.num_rows} rows do not fit on a sheet, which holds {_XLSX_ROWS}.",
            do="Pull one month, or take csv or parquet.",
            code="too_many_rows",
        )
    sink = io.BytesIO()
    with xlsxwriter.Workbook(sink, {"in_memory": True}) as book:
        book.set_properties({"title": f"pumpledger {name}", "comments": PROPOSED, "created": _XLSX_CREATED})
        head = book.add_format({"bold": True, "bottom": 1})
        sheet = book.add_worksheet(name)
        formats = {kind: book.add_format({"num_format": code}) for kind, code in _XLSX_TIMES.items()}
        for at, field in enumerate(table.schema):
            values = table.column(at).to_pylist()
            sheet.write_string(0, at, field.name, head)
            longest = 0
            for row, value in enumerate(values, 1):
                longest = max(longest, _xlsx_cell(sheet, row, at, value, formats.get(field.type)))
            sheet.set_column(at, at, min(max(len(field.name) + 4, longest + 1), 48))
        sheet.freeze_panes(1, 0)
        sheet.autofilter(0, 0, table.num_rows, table.num_columns - 1)
        _xlsx_dictionary(book, table.schema, head)
    return sink.getvalue()


_XLSX_TIMES: Mapping[pa.DataType, str] = {
    pa.timestamp("ms", "UTC"): 'yyyy\\-mm\\-dd hh:mm:ss "UTC"',
    pa.timestamp("ms"): "yyyy\\-mm\\-dd hh:mm:ss",
    pa.date32(): "yyyy\\-mm\\-dd",
}


def _xlsx_cell(sheet: Any, row: int, at: int, value: Any, time_format: Any) -> int:
    """Writes a cell by its type, so that no text becomes a formula, a link or a number; gives about how wide it shows."""
    match value:
        case None:
            return 0
        case bool():
            sheet.write_boolean(row, at, value)
            return 5
        case float() if not math.isfinite(value):
            return 0
        case int() | float():
            sheet.write_number(row, at, value)
            return len(str(value))
        case date() if value.year >= _XLSX_FROM:
            sheet.write_datetime(row, at, value.replace(tzinfo=None) if isinstance(value, datetime) else value, time_format)
            return 23 if isinstance(value, datetime) else 10
    text = _text(value)
    if len(text) > _XLSX_TEXT:
        note = f" … cut here: a cell holds {_XLSX_TEXT} characters; json and parquet have all {len(text)}"
        text = text[: _XLSX_TEXT - len(note)] + note
    sheet.write_string(row, at, text)
    return len(text)


def _xlsx_dictionary(book: Any, schema: pa.Schema, head: Any) -> None:
    sheet = book.add_worksheet("data dictionary")
    for at, (title, width) in enumerate((("column", 22), ("type", 26), ("what it says", 72))):
        sheet.write_string(0, at, title, head)
        sheet.set_column(at, at, width)
    for row, field in enumerate(schema, 1):
        kind = "list of ledger entries" if field.type == tables.LEDGER else str(field.type)
        for at, text in enumerate((field.name, kind + ("" if not field.nullable else ", may be empty"), _says(field))):
            sheet.write_string(row, at, text)
    sheet.write_string(len(schema) + 2, 0, PROPOSED, book.add_format({"bold": True}))
    sheet.write_string(len(schema) + 3, 0, "Times marked UTC are UTC; *_local is the order's zone; printed_* is the pump's own clock.")
    sheet.freeze_panes(1, 0)


def _says(field: pa.Field) -> str:
    return str((field.metadata or {}).get(b"says", b""), "utf-8")


# --- for people -------------------------------------------------------------------------------------------------------------


def _print(table: pa.Table, name: str, view: _View, to: IO[str]) -> None:
    rows = [[printable(cell(row)) for _, cell in view.shown] for row in table.to_pylist()]
    caption = f"{table.num_rows} {_noun(name, table.num_rows)}. {PROPOSED} `pumpledger explain ID` leads from a row to its bytes."
    listing.show(to, [heading for heading, _ in view.shown], rows, caption=caption)


def _noun(name: str, count: int) -> str:
    many = {"setups": "set-ups", "worklist": "worklist items"}.get(name, name)
    return many[:-1] if count == 1 else many


def _minute(column: str, fallback: str = "") -> Callable[[Mapping[str, Any]], str]:
    """An instant to the minute; the pump's own clock, named so, where UTC is unknown."""

    def cell(row: Mapping[str, Any]) -> str:
        if row[column] is not None:
            return f"{row[column]:%Y-%m-%d %H:%M}"
        return f"{row[fallback]:%Y-%m-%d %H:%M} (pump)" if fallback and row[fallback] is not None else "unknown"

    return cell


def _of(column: str) -> Callable[[Mapping[str, Any]], str]:
    def cell(row: Mapping[str, Any]) -> str:
        value = row[column]
        if isinstance(value, bool):
            return "yes" if value else "no"
        return ", ".join(value) if isinstance(value, list) else ("" if value is None else str(value))

    return cell


def _minutes(column: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: str(row[column] // 60)


def _id(column: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: (row[column] or "")[:10]


def _sorted(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name.lstrip("-"), "descending" if name.startswith("-") else "ascending") for name in names)


_VIEWS: Mapping[str, _View] = {
    "sessions": _View(
        tables.SESSIONS,
        _sorted("start", "printed_start", "pump_id", "session_id"),
        ("open", "closed", "uncertain"),
        (
            ("start (UTC)", _minute("start", "printed_start")),
            ("pump", _of("pump_id")),
            ("patient", _of("patient_id")),
            ("drug", _of("drug")),
            ("infusing min ", _minutes("infusing_s")),
            ("unknown min ", _minutes("unknown_s")),
            ("boluses ", _of("bolus_count")),
            ("sites ", _of("new_sites")),
            ("state", _of("state")),
            ("flags", _of("flags")),
            ("id", _id("session_id")),
        ),
    ),
    "setups": _View(
        tables.SETUPS,
        _sorted("time", "printed_time", "pump_id", "setup_id"),
        (),
        (
            ("time (UTC)", _minute("time", "printed_time")),
            ("pump", _of("pump_id")),
            ("patient", _of("patient_id")),
            ("pump set-up", _of("pump_setup")),
            ("new site", _of("new_site")),
            ("session", _id("session_id")),
            ("id", _id("setup_id")),
        ),
    ),
    "days": _View(
        tables.DAYS,
        _sorted("date", "patient_id", "order_id"),
        (),
        (
            ("date", _of("date")),
            ("patient", _of("patient_id")),
            ("order", _of("order_id")),
            ("pumps", _of("pump_ids")),
            ("infusing min ", _minutes("infusing_s")),
            ("unknown min ", _minutes("unknown_s")),
            ("continuous", _of("continuous")),
            ("flags", _of("flags")),
        ),
    ),
    "lines": _View(
        tables.LINES,
        _sorted("service_date", "patient_id", "order_id", "encounter_id", "code", "line_id", "revision"),
        ("ready", "hold", "released", "void"),
        (
            ("date", _of("service_date")),
            ("patient", _of("patient_id")),
            ("payer", _of("payer")),
            ("drug", _of("drug")),
            ("code", _of("code")),
            ("units ", _of("units")),
            ("minutes ", _of("minutes")),
            ("state", _of("state")),
            ("held by", _of("reasons")),
            ("release", _id("release_id")),
            ("id", _id("line_id")),
            ("rev ", _of("revision")),
        ),
    ),
    "amendments": _View(
        tables.AMENDMENTS,
        _sorted("patient_id", "order_id", "released_date", "service_date", "released_code", "code", "released", "line_id"),
        ("ready", "hold", "released", "void"),
        (
            ("patient", _of("patient_id")),
            ("payer", _of("payer")),
            ("released", _of("released_date")),
            ("code", _of("released_code")),
            ("units ", _of("released_units")),
            ("minutes ", _of("released_minutes")),
            ("now", _of("service_date")),
            ("code", _of("code")),
            ("units ", _of("units")),
            ("minutes ", _of("minutes")),
            ("state", _of("state")),
            ("held by", _of("reasons")),
            ("line", lambda row: (row["line_id"] or row["void"])[:10]),
            ("taken by", _id("taken_by")),
        ),
    ),
    "worklist": _View(
        tables.WORKLIST,
        _sorted("severity", "-minutes_at_stake", "service_date", "code", "item_id"),
        ("open", "decided", "closed"),
        (
            ("severity", _of("severity")),
            ("code", _of("code")),
            ("date", _of("service_date")),
            ("patient", _of("patient_id")),
            ("pump", _of("pump_id")),
            ("minutes ", _of("minutes_at_stake")),
            ("what", _of("message")),
            ("next", _of("suggestion")),
            ("answer", lambda row: " or ".join(answers(row["code"], row["item_id"])) if row["state"] == "open" else ""),
            ("state", _of("state")),
            ("id", _id("item_id")),
        ),
    ),
}
