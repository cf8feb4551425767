"""The door for notebooks and scripts: the tables of a lake as pandas DataFrames, and `explain`, which leads back to the bytes.

    >>> import pumpledger
    >>> lake = pumpledger.open("lake")
    >>> march = lake.sessions(month="2026-03")
    >>> march.groupby("patient_id")["infusing_s"].sum() / 60
    >>> print(lake.explain(march["session_id"][0]))

It only reads. Everything is proposed from what pumps recorded; a biller decides.

dtypes: text `str`; instants `datetime64[ms, UTC]`; local and printed times `datetime64[ms]` without a zone; dates `datetime64[ms]` at
midnight; whole numbers `int64` or `int32`, those that can be missing `Int64`; truth `bool`, or `boolean` where it can be missing; other
numbers `float64`; lists as Python lists, bytes as bytes. What a column says: `columns("sessions")`.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ingest import explain as _explain
from ingest import people, review, telling, views
from ingest.lake import Lake
from ingest.page import as_html
from transforms import tables

_NULLABLE = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
_SCHEMAS = {
    "sessions": tables.SESSIONS,
    "setups": tables.SETUPS,
    "days": tables.DAYS,
    "lines": tables.LINES,
    "worklist": tables.WORKLIST,
    "amendments": tables.AMENDMENTS,
    "events": tables.EVENTS,
    "intervals": tables.INTERVALS,
}


def open(lake: str | Path = "lake") -> LakeTables:  # noqa: A001 - pumpledger.open is what a notebook says
    """The lake at this folder. Raises StorageError where there is none."""
    return LakeTables(Lake.open(Path(lake)))


def columns(table: str) -> dict[str, str]:
    """What each column of a table says."""
    return {field.name: field.metadata[b"says"].decode() for field in _SCHEMAS[table]}


class Explanation(dict[str, Any]):
    """What something rests on, down to its bytes: a dict that prints as a tree, and shows as a page in a notebook."""

    def __str__(self) -> str:
        return telling.as_text(self)

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escape(self.page())}" style="width:100%;height:48em;border:0"></iframe>'

    def page(self) -> str:
        """One HTML page that needs nothing else."""
        return as_html(self)


class LakeTables:
    """A lake's tables. The filters are those of the command line; each raises InputError where it cannot be meant."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake

    def sessions(
        self, *, month: str | None = None, patient: str | None = None, payer: str | None = None, state: str | None = None
    ) -> pd.DataFrame:
        """Infusions with their seconds by kind; `month` ("2026-03") is that of the local start."""
        return _frame(views.select(self.lake, "sessions", month=month, patient=patient, payer=payer, state=state))

    def setups(self, *, month: str | None = None, patient: str | None = None) -> pd.DataFrame:
        """Set-ups of pump and site; `month` is that of the session they were made for."""
        return _frame(views.select(self.lake, "setups", month=month, patient=patient))

    def days(self, *, month: str | None = None, patient: str | None = None) -> pd.DataFrame:
        """Therapy days by order and local date."""
        return _frame(views.select(self.lake, "days", month=month, patient=patient))

    def lines(
        self, *, month: str | None = None, patient: str | None = None, payer: str | None = None, state: str | None = None
    ) -> pd.DataFrame:
        """Candidate lines; `month` is that of the service date."""
        return _frame(views.select(self.lake, "lines", month=month, patient=patient, payer=payer, state=state))

    def worklist(
        self, *, month: str | None = None, patient: str | None = None, payer: str | None = None, state: str | None = None
    ) -> pd.DataFrame:
        """What a person has to look at, what holds first."""
        return _frame(views.select(self.lake, "worklist", month=month, patient=patient, payer=payer, state=state))

    def amendments(self, *, month: str | None = None, payer: str | None = None) -> pd.DataFrame:
        """What changed in lines after they were released; `month` is that of the date of service, as released or as it is now."""
        return _frame(review.amendments(self.lake, month=month, payer=payer))

    def releases(self) -> pd.DataFrame:
        """What billing took, one row a release; the lines themselves are in `lines(state="released")`."""
        return pd.DataFrame([release.plain() for release in people.releases(self.lake)])

    def events(self, *, pump: str, month: str | None = None) -> pd.DataFrame:
        """The events of one pump by stretch and place in the log; `month` is that of UTC time, "unknown" of events without."""
        return _frame(self._of_pump("events", pump, month, ("stretch", "order_in_stretch", "record_key")))

    def intervals(self, *, pump: str, month: str | None = None) -> pd.DataFrame:
        """What each moment of one pump's sessions was; `month` is that of the session's local start."""
        return _frame(self._of_pump("intervals", pump, month, ("session_id", "from_ms", "to_ms", "class")))

    def explain(self, ident: str) -> Explanation:
        """What a line, session, set-up, worklist item or event (its id, or the first six characters or more) rests on."""
        return Explanation(_explain.explain(self.lake, ident))

    def _of_pump(self, table: str, pump: str, month: str | None, sort: tuple[str, ...]) -> pa.Table:
        rows = self.lake.read(table, _SCHEMAS[table], months=views.months(month), buckets=[self.lake.bucket_of(pump)])
        return rows.filter(pc.equal(rows["pump_id"], pump)).sort_by([(column, "ascending") for column in sort])


def _frame(table: pa.Table) -> pd.DataFrame:
    return pd.DataFrame({field.name: _series(table[field.name], field) for field in table.schema})


def _series(column: pa.ChunkedArray, field: pa.Field) -> pd.Series[Any]:
    if pa.types.is_list(field.type) or pa.types.is_binary(field.type):
        return pd.Series(column.to_pylist(), dtype=object)
    if pa.types.is_string(field.type):
        return pd.Series(column.to_pylist(), dtype="str")
    series: pd.Series[Any] = column.to_pandas(date_as_object=False, types_mapper=_NULLABLE.get if field.nullable else None)
    return series
