"""`assemble`: what each record means in its place - programmes by position, rates of starts, the length of doses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from devices import sequence
from devices.contract import Kind, Log, dump_detail
from devices.miva.programmes import LEAST, LONG, SHORT, SHORT_NAMES, Programme, long_programme, short_programme
from devices.miva.records import BEGIN, END, SIZE, TYPES, Bools, Bytes, Ints, are_empty, details_of, head_of, subs_of

_ENDS_A_DOSE = (0x02, 0x03, 0x08, 0x09, 0x0E, 0x10, 0x11, 0x12, 0x13, 0x18, 0x1A, 0x1B, 0x1C, 0x1F)
"""Types after which a dose that finishes did not run on from its grant."""


def assemble(pump_id: str, records: pa.Table, faults: pa.Table, anchors: pa.Table) -> Log:
    """The log by its numbers, with what only the records around one tell: programmes, rates, the length of doses.

    Two readings of one number whose bytes differ anywhere are a conflict, for a record never changes.
    """
    bare = [f'{{"raw":"{raw.hex()}"}}' for raw in records.column("raw").to_pylist()]
    compared = records.set_column(records.schema.get_field_index("detail"), "detail", pa.array(bare, pa.string()))
    log = sequence.assemble(pump_id, compared, faults, anchors)
    return replace(log, events=_in_place(log.events))


_NOTHING: Mapping[str, Any] = dict.fromkeys(
    ("source", "reason", "at", "alarm_class", "stops_delivery", "pump_time", "native_ms", "rate_ml_h", "duration_s", "programmed_ml")
)


def _in_place(events: pa.Table) -> pa.Table:
    """The events as they are meant in their place."""
    bytes_of = events.column("raw").to_pylist()
    rows = np.array([row for row, raw in enumerate(bytes_of) if raw], dtype=np.int64)
    if not len(rows):
        return events
    raw = np.frombuffer(b"".join(bytes_of), np.uint8).reshape(-1, SIZE)
    of_records = events.take(pa.array(rows))
    epochs, numbers = of_records.column("log_epoch").to_numpy(), of_records.column("seq").to_numpy()
    times = of_records.column("pump_time").cast(pa.int64())
    dated, ms = times.is_valid().to_numpy(), times.fill_null(0).to_numpy()
    disputed = of_records.column("conflict").to_numpy()
    changes: dict[int, dict[str, Any]] = {}
    details = details_of(raw, *np.unique(subs_of(raw), return_inverse=True))
    for epoch in np.unique(epochs).tolist():
        first, last = np.searchsorted(epochs, [epoch, epoch + 1]).tolist()
        mine = slice(first, last)
        ring = _Ring(numbers[mine], raw[mine], ms[mine], dated[mine], disputed[mine], details[mine])
        ring.read()
        details[first:last] = ring.details
        changes |= {int(rows[first + row]): change for row, change in ring.changes.items()}
    return _changed(events, rows, details, changes)


def _changed(events: pa.Table, rows: Ints, details: list[str], changes: Mapping[int, Mapping[str, Any]]) -> pa.Table:
    written = events.column("detail").to_pylist()
    for row, detail, compared in zip(rows.tolist(), details, [written[row] for row in rows.tolist()], strict=True):
        conflict = json.loads(compared).get("conflicts_with") if "conflicts_with" in compared else None
        written[row] = dump_detail({**json.loads(detail), "conflicts_with": conflict}) if conflict else detail
    columns: dict[str, list[Any]] = {"detail": written}
    for name in {name for change in changes.values() for name in change}:
        columns[name] = events.column(name).to_pylist()
    for row, change in changes.items():
        for name, value in change.items():
            columns[name][row] = value
    for name, values in columns.items():
        column = events.schema.field(name)
        events = events.set_column(events.schema.get_field_index(name), column, pa.array(values, column.type))
    return events.combine_chunks()


@dataclass(frozen=True, slots=True)
class _Span:
    """The numbers `first` to `last`, BEGIN and END included, of a programme. `what` is

    known (all of it is there), lost (some of it is missing or disputed), tail (the log begins within it), head (the log ends within it).
    """

    first: int
    last: int
    what: str
    form: int = 0


class _Ring:
    """The records of one epoch by number, as they are meant in their place: `changes` by row, and the details.

    `dated` are those whose stamp is a time (an empty one's is none), `disputed` those that were read in two ways.
    """

    def __init__(self, numbers: Ints, raw: Bytes, ms: Ints, dated: Bools, disputed: Bools, details: list[str]) -> None:
        self.numbers, self.raw, self.ms, self.details = numbers, raw, ms, details
        self.changes: dict[int, dict[str, Any]] = {}
        self.empty = are_empty(raw)
        data = raw[:, 0] == 0
        self.begins = set(numbers[data & (raw[:, 5] == BEGIN)].tolist())
        self.ends = set(numbers[data & (raw[:, 5] == END)].tolist())
        self.first, self.last = int(numbers[0]), int(numbers[-1])
        self.dated, self.disputed = dated, disputed
        self.programme: Programme | None = None
        self.lost = False
        self.waiting = False
        self.granted: int | None = None

    def row(self, number: int) -> int | None:
        """The row of a number; none where it is missing."""
        row = int(np.searchsorted(self.numbers, number))
        return row if row < len(self.numbers) and self.numbers[row] == number else None

    def missing(self, number: int) -> bool:
        """Whether what stood at this number is not known."""
        row = self.row(number)
        return row is None or bool(self.empty[row])

    def _whole(self, first: int, last: int) -> bool:
        """Whether no number from `first` to `last` is missing, or was read in two ways."""
        low, high = self.row(first), self.row(last)
        return low is not None and high is not None and high - low == last - first and not self.disputed[low : high + 1].any()

    # --- where programmes are -------------------------------------------------------------------------------------------------

    def spans(self) -> Iterator[_Span]:
        """The programmes of the log, in its order (docs/pump-formats.md §4.2)."""
        free = self.first
        for mark in sorted(self.begins | self.ends):
            if mark >= free and (span := self._span(mark, free)) is not None:
                yield span
                free = span.last + 1

    def _span(self, mark: int, free: int) -> _Span | None:
        """The programme that a BEGIN or an END belongs to; `free`: what comes before is taken."""
        if mark in self.begins and (form := self._form(mark)):
            last = mark + form + 1
            return _Span(mark, last, "known" if self._whole(mark, last) else "lost", form)
        if (end := self._orphan(mark)) is not None:
            first = max(free, end - LONG)
            return _Span(first, end, "tail" if first == self.first and self._whole(first, end) else "lost")
        if mark in self.ends:
            return _Span(max(free, mark - SHORT), mark, "lost") if self.missing(mark - SHORT - 1) else None
        length = SHORT + 1 if self._short_name(mark) and self.missing(mark + SHORT + 1) else LONG + 1
        last = min(mark + length, self.last)
        return _Span(mark, last, "head" if last == self.last and self._whole(mark, last) else "lost")

    def _form(self, begin: int) -> int:
        """How many records a programme has, by where its END is; 0 where it has none.

        A field of the long form can look like the END of the short one, which is told by its name, or by the long one's missing END.
        """
        after = begin + LONG + 1
        if begin + SHORT + 1 in self.ends and (self._short_name(begin) or (after not in self.ends and not self.missing(after))):
            return SHORT
        return LONG if after in self.ends else 0

    def _short_name(self, begin: int) -> bool:
        row = self.row(begin + 1)
        return row is not None and int.from_bytes(self.raw[row, :4].tobytes(), "big") in SHORT_NAMES

    def _orphan(self, mark: int) -> int | None:
        """The END, at or after `mark`, of a long programme whose BEGIN is missing, so that `mark` is inside it."""
        found = None
        for number in range(mark, mark + LONG + 1):
            if number in self.begins and number != mark and self._form(number):
                break
            paired = number - SHORT - 1 in self.begins and number - SHORT - 1 >= mark
            if number in self.ends and self.missing(number - LONG - 1) and not paired:
                found = number
        return found

    # --- what happens ---------------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Goes through the log once."""
        spans = list(self.spans())
        inside = np.zeros(len(self.numbers), dtype=np.bool_)
        for span in spans:
            first, last = np.searchsorted(self.numbers, [span.first, span.last + 1]).tolist()
            inside[first:last] = True
        unread = ~inside & ~self.dated
        for row in np.flatnonzero(unread & ~self.empty).tolist():
            self.changes[row] = {**_NOTHING, "kind": Kind.DATA_CORRUPTION.value}
        good = np.flatnonzero(~unread)
        jumps = {int(after): int(self.numbers[after] - self.numbers[before]) - 1 for before, after in _jumps(self.numbers, good)}
        acting = good[np.isin(self.raw[good, 0], _ACTING) & ~inside[good]].tolist()
        at_span = {int(np.searchsorted(self.numbers, span.first)): span for span in spans}
        keys = dict(zip(acting, subs_of(self.raw[acting]).tolist(), strict=True))
        for row in sorted({*keys, *jumps, *at_span}):
            if row in jumps:
                self._cross(jumps[row])
            if row in at_span:
                self._take_programme(at_span[row])
            elif row in keys:
                self._take(row, *divmod(keys[row], 1 << 16))

    def _cross(self, count: int) -> None:
        """So many records are not known: a dose may have stopped, a delay ended, and, where there is room, the programme changed."""
        self.granted = None
        if count >= LEAST or self.waiting:
            self.programme, self.lost, self.waiting = None, True, False

    def _take_programme(self, span: _Span) -> None:
        first, last = np.searchsorted(self.numbers, [span.first, span.last + 1]).tolist()
        kind = (Kind.DATA_CORRUPTION if span.what == "lost" else Kind.OTHER).value
        inner = {**_NOTHING, "kind": kind, "native_code": "00"}
        for row in range(first, last):
            self.changes[row], self.details[row] = inner, _INNER
        begin, end = int(self.numbers[first]) in self.begins, int(self.numbers[last - 1]) in self.ends
        self.programme, self.lost, self.waiting = None, span.what == "lost", False
        if span.what != "tail" and begin:
            self._edge(first, kind)
        if span.what != "head" and end:
            self._edge(last - 1, kind if self.lost else Kind.SETTINGS_CHANGE.value)
        if span.what != "known":
            self.granted = None
            return
        data = self.raw[first + 1 : last - 1].tobytes()
        self.programme = short_programme(data) if span.form == SHORT else long_programme(data)
        self.lost, self.waiting = self.programme.says is None, self.programme.delay is not None
        self.changes[last - 1]["lockout_s"] = self.programme.lockout_s
        self._say(last - 1, programme=self.programme.detail)

    def _edge(self, row: int, kind: str) -> None:
        """A BEGIN or an END: it has a time."""
        self.changes[row], self.details[row] = {"kind": kind}, head_of(int(subs_of(self.raw[row : row + 1])[0]))

    def _take(self, row: int, code: int, sub: int) -> None:
        if code in _ENDS_A_DOSE:
            self.granted = None
        match code, sub:
            case 0x00, 2:  # the END of a programme that is not there
                self.programme, self.lost, self.waiting = None, True, False
            case (0x01, _) | (0x0A, 1 | 2):
                self.waiting = self.waiting and code == 0x01
                self._start(row)
            case 0x06, 2:
                self.granted = int(self.ms[row])
            case 0x06, 1 | 8:
                self._programmed(row, "auto_bolus" if sub == 1 else "clinician")
            case 0x17, 1:
                self._programmed(row, "extra")
                if self.granted is not None and self.ms[row] >= self.granted:
                    self.changes.setdefault(row, {})["duration_s"] = (int(self.ms[row]) - self.granted) / 1000
                self.granted = None
            case 0x17, 2:
                self._programmed(row, "loading")

    def _start(self, row: int) -> None:
        if self.lost:
            self.changes[row] = {"kind": Kind.DATA_CORRUPTION.value, "source": None}
            self._say(row, programme="lost")
        elif self.programme is not None:
            delayed = self.programme.delay if self.waiting else None
            self.changes[row] = dict(delayed or self.programme.says or {})

    def _programmed(self, row: int, dose: str) -> None:
        if self.programme is not None and not self.lost and (amount := self.programme.amounts.get(dose)) is not None:
            self.changes.setdefault(row, {})["programmed_ml"] = amount

    def _say(self, row: int, **more: Any) -> None:
        self.details[row] = dump_detail({**json.loads(self.details[row]), **more})


_INNER = dump_detail({"name": TYPES[0].name, "what": "programme"})
"""Detail of the records of a programme between BEGIN and END: they say nothing by themselves."""
_ACTING = tuple(sorted({0x00, 0x01, 0x06, 0x0A, 0x17, *_ENDS_A_DOSE}))


def _jumps(numbers: Ints, good: Ints) -> list[tuple[int, int]]:
    """Rows that follow each other among the good ones, but not in number."""
    wide = np.flatnonzero(np.diff(numbers[good]) > 1)
    return [(int(good[i]), int(good[i + 1])) for i in wide]
