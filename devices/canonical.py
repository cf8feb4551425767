"""Canonical JSON lines, "the open door" (docs/semantics.md §1): a header line, then one event a line, in a file or an MQTT payload.

    {"pumpledger": 1, "pump_id": "canonical:A17", "log_epoch": 0, "contiguous": true, "anchor": {"pump_clock": …, "utc": …, "after_seq": …}}
    {"seq": 1, "pump_time": "2026-03-07T20:00:00", "kind": "delivery_start", "source": "primary", "rate_ml_h": 2.0}

A line that is not JSON, has an unknown kind or value, or no valid sequence number or time is a fault with its bytes; the rest is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import chain
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pyarrow as pa

from devices import sequence
from devices.contract import (
    ANCHORS,
    FAULTS,
    REASONS,
    RECORDS,
    AlarmClass,
    Anchor,
    At,
    Capture,
    Decoded,
    Kind,
    Log,
    Sheet,
    Source,
    Target,
    anchor_row,
    dump_detail,
    fault_id,
    table,
)
from devices.errors import InputError, masked

FAMILY = "canonical"

SHEET = Sheet(
    family=FAMILY,
    title="Canonical JSON lines",
    models="any source that can write the event vocabulary, one event a line",
    transport="files; MQTT payloads of capture batches",
    source="docs/semantics.md §1",
    identity="(pump, log epoch, sequence number)",
    elapsed="the printed clock, with the clock changes that the log tells",
    gaps_visible=True,
    prime_targets=True,
    demands=True,
    limits=True,
    proof="none: a rate change or a bolus never proves that a source delivers",
    tells={
        "starts and stops": "every source, with rate and reason",
        "boluses": "volume or dose, programmed amount, duration, demands granted and denied",
        "set-ups": "reservoir changes, primes with their target",
        "clock": "changes with old and new time, losses, anchors",
    },
    does_not_tell=("what its writer left out: a source without contiguous numbers cannot show that a record is missing",),
    unknown=(),
)

_Amount = Annotated[float, msgspec.Meta(ge=0, lt=1e9)] | None
_Naive = Annotated[datetime, msgspec.Meta(tz=False)]
_Number = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]


class _Line(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One event line; what it does not name goes to `detail`."""

    seq: _Number
    pump_time: _Naive
    kind: Literal[tuple(k.value for k in Kind)]  # type: ignore[valid-type]
    source: Literal[tuple(s.value for s in Source)] | None = None  # type: ignore[valid-type]
    reason: str | None = None
    target: Literal[tuple(t.value for t in Target)] | None = None  # type: ignore[valid-type]
    at: Literal[tuple(a.value for a in At)] | None = None  # type: ignore[valid-type]
    alarm_class: Literal[tuple(a.value for a in AlarmClass)] | None = None  # type: ignore[valid-type]
    stops_delivery: bool | None = None
    old: _Naive | None = None
    new: _Naive | None = None
    rate_ml_h: _Amount = None
    rate_dose_h: _Amount = None
    volume_ml: _Amount = None
    programmed_ml: _Amount = None
    dose: _Amount = None
    programmed_dose: _Amount = None
    dose_unit: str | None = None
    duration_s: _Amount = None
    lockout_s: _Amount = None


class _HeaderAnchor(msgspec.Struct, forbid_unknown_fields=True):
    pump_clock: _Naive
    utc: Annotated[datetime, msgspec.Meta(tz=True)]
    round_trip_ms: Annotated[int, msgspec.Meta(ge=0, le=2**62)] | None = None
    after_seq: _Number | None = None


class _Header(msgspec.Struct):
    pumpledger: Literal[1]
    pump_id: str
    log_epoch: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0
    contiguous: bool = True
    anchor: msgspec.Raw = msgspec.Raw(b"null")


_line = msgspec.json.Decoder(_Line)
_header = msgspec.json.Decoder(_Header)
_anchor = msgspec.json.Decoder(_HeaderAnchor | None)
_object = msgspec.json.Decoder(dict[str, Any])
_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw])

_FIRST_YEAR, _LAST_YEAR = 1970, 2199
_DEFAULT_SOURCE = frozenset(
    kind.value for kind in (Kind.DELIVERY_START, Kind.DELIVERY_COMPLETE, Kind.RATE_CHANGE, Kind.BOLUS_REQUESTED, Kind.BOLUS_DELIVERED)
)
_PRIMING = frozenset({Kind.PRIMING_STARTED.value, Kind.PRIMING_DONE.value})
_REASONS = {kind.value: reasons for kind, reasons in REASONS.items()} | {Kind.PRIMING_STARTED.value: REASONS[Kind.PRIMING_DONE]}
_BOLUS, _ALARM, _CLOCK = Kind.BOLUS_DELIVERED.value, Kind.ALARM_RAISED.value, Kind.CLOCK_CHANGE.value
_PRIMARY, _UNKNOWN, _START, _OTHER = Source.PRIMARY.value, Target.UNKNOWN.value, At.START.value, AlarmClass.OTHER.value

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001

_TOGETHER = 512
"""So many lines are read in one go; where that fails, these are read one by one."""


def recognise(name: str, data: bytes) -> bool:
    """Whether the first line is our header."""
    return b'"pumpledger"' in data.lstrip().split(b"\n", 1)[0]


def read_files(
    files: Sequence[tuple[str, bytes]], *, pump_id: str | None = None, model: str | None = None, anchor: Anchor | None = None
) -> list[Capture]:
    """One capture a file; the pump is the header's. A file whose header cannot be read is kept as of an unknown pump."""
    captures = []
    for _, data in files:
        try:
            named = _header.decode(data.lstrip().split(b"\n", 1)[0]).pump_id
            named = named if named.isprintable() else f"{FAMILY}:unknown"
        except (msgspec.MsgspecError, UnicodeDecodeError):
            named = pump_id or f"{FAMILY}:unknown"
        captures.append(Capture(data=data, family=FAMILY, pump_id=named, model=model, anchor=anchor))
    return captures


def decode(capture: Capture) -> Decoded:
    """Records, faults and the anchor of one capture."""
    return decode_all([capture])


def decode_all(captures: Sequence[Capture]) -> Decoded:
    """Records, faults and anchors of captures of any pumps, in their order: what `decode` gives of each, in one table of a kind."""
    readers = [_Reader(capture) for capture in captures]
    faults = [fault for reader in readers for fault in reader.faults]
    anchors = [anchor for reader in readers for anchor in reader.anchors]
    return Decoded(_records([reader for reader in readers if reader.lines]), table(FAULTS, faults), table(ANCHORS, anchors))


def assemble(pump_id: str, records: pa.Table, faults: pa.Table, anchors: pa.Table) -> Log:
    """The log by its sequence numbers."""
    return sequence.assemble(pump_id, records, faults, anchors)


def split(capture: Capture, size: int) -> list[Capture]:
    """A capture as captures of at most `size` bytes that together say the same; one that fits as itself (docs/semantics.md §1).

    It is cut between lines. Each part has the header, with an anchor that names the record behind which the clock was read. A line
    without a readable number keeps its place: the lines on both sides that say where it stood are repeated where a cut would part them.
    Raises InputError where a line, with the header and such neighbours, is larger, and where no header says what the lines are of.
    """
    if len(capture.data) <= size:
        return [capture]
    reader = _Reader(capture)
    numbers, lines = _lines(capture.data)
    too_large = InputError(
        f"A capture of {masked(capture.pump_id)} cannot be split into parts of {size} bytes.",
        why="It has no header line that can be read, or a line that is larger.",
        do="Load the file on the hub's machine with `pumpledger load`.",
        code="too_large",
    )
    if reader.header is None:
        raise too_large
    header, anchor = _anchored(reader, lines[0])
    lost = {fault["offset"] for fault in reader.faults if fault["hole"] and fault["seq"] is None}
    read = set(reader.offsets)
    lengths = [len(line) + 1 for line in lines]
    pieces = _pieces(lengths[1:], [n in read for n in numbers[1:]], [n in lost for n in numbers[1:]], size - len(header) - 1)
    parts = []
    for piece in pieces:
        data = b"\n".join([header, *(lines[1 + at] for at in piece), b""])
        if len(data) > size:
            raise too_large
        parts.append(replace(capture, data=data, anchor=anchor))
    return parts


def _anchored(reader: _Reader, header: bytes) -> tuple[bytes, Anchor | None]:
    """The header line and the anchor of the capture for its parts: either's anchor names its place; one without a place is gone."""
    assert reader.header is not None
    try:
        told = _anchor_of(reader.header)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return header, reader.capture.anchor
    given = reader.capture.anchor
    if told is None:
        after = given and (given.after or reader.last_key)
        return header, replace(given, after=after) if given and after else None
    if told.after is not None:
        return header, given
    fields = _raw_object.decode(header)
    if reader.last is None:
        fields["anchor"] = msgspec.Raw(b"null")
        return msgspec.json.encode(fields), None
    place = msgspec.Raw(str(reader.last).encode())
    fields["anchor"] = msgspec.Raw(msgspec.json.encode({**_raw_object.decode(reader.header.anchor), "after_seq": place}))
    return msgspec.json.encode(fields), given


def _pieces(lengths: Sequence[int], read: Sequence[bool], lost: Sequence[bool], room: int) -> Iterator[list[int]]:
    """The lines of each part, in their order: as many as there is room for (one at least), beside a lost one the read ones around it."""
    ahead: list[int | None] = [None] * (len(lengths) + 1)
    for at in reversed(range(len(lengths))):
        ahead[at] = at if read[at] else ahead[at + 1]
    start, behind = 0, None
    while start < len(lengths) or start == 0:
        stop, used, newest = start, 0, None
        before: list[int] = []
        after: list[int] = []
        while stop < len(lengths):
            lead = [behind] if behind is not None and lost[stop] and newest is None else before
            follower = ahead[stop + 1] if lost[stop] or (after and not read[stop]) else None
            tail = [] if follower is None else [follower]
            used += lengths[stop]
            if used + sum(lengths[at] for at in (*lead, *tail)) > room and stop > start:
                break
            before, after, newest = lead, tail, stop if read[stop] else newest
            stop += 1
        yield [*before, *range(start, stop), *after]
        behind = behind if newest is None else newest
        start = max(stop, 1)


class _Reader:
    """What one capture gives: the events of its lines with their numbers, details and bytes, its faults and its anchor."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.sha = capture.sha256
        self.header: _Header | None = None
        self.epoch = 0
        self.contiguous = True
        self.offsets: list[int] = []
        self.lines: list[_Line] = []
        self.details: list[str | None] = []
        self.raws: list[bytes] = []
        self.faults: list[dict[str, Any]] = []
        self.anchors: list[dict[str, Any]] = []
        self.last: int | None = None
        self._waiting: list[dict[str, Any]] = []
        numbers, lines = _lines(capture.data)
        if not lines:
            return
        try:
            self.header = _header_of(capture, lines[0])
        except (UnicodeDecodeError, msgspec.MsgspecError) as error:
            # no line can be placed without it, so all of the capture is one fault
            self._fault(1, capture.data, None, f"no readable header line: {error}", code="header", hole=False)
        else:
            self.epoch, self.contiguous = self.header.log_epoch, self.header.contiguous
            for start in range(1, len(lines), _TOGETHER):
                self._read(numbers[start : start + _TOGETHER], lines[start : start + _TOGETHER])
            self._read_anchor(self.header)
        for fault in self.faults:
            place = "" if fault["code"] == "header" else f"{self.epoch}:{fault['seq']}:{fault['after_seq']}:{fault['before_seq']}"
            fault["fault_id"] = fault_id(capture.pump_id, fault["code"], place, fault["raw"])

    @property
    def last_key(self) -> str | None:
        """The key of the record of the last line, read or not; None where it has no number."""
        return None if self.last is None else sequence.key_of(self.epoch, self.last)

    def _read(self, numbers: Sequence[int], lines: Sequence[bytes]) -> None:
        try:
            events = _strictly(lines)
            details = [_checked(event) for event in events]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            for number, line in zip(numbers, lines, strict=True):
                self._read_one(number, line)
        else:
            self._keep(numbers, events, details, lines)

    def _read_one(self, number: int, line: bytes) -> None:
        seq: int | None = None
        extra: dict[str, Any] = {}
        try:
            try:
                event = _line.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                fields = _object.decode(line)
                if isinstance(fields.get("seq"), int) and not isinstance(fields["seq"], bool) and abs(fields["seq"]) <= 2**62:
                    seq = fields["seq"]
                extra = {name: fields.pop(name) for name in list(fields) if name not in _Line.__struct_fields__}
                event = msgspec.convert(fields, _Line)
            seq = event.seq
            detail = _checked(event, extra)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._fault(number, line, seq, str(error))
            self.last = seq
        else:
            self._keep([number], [event], [detail], [line])

    def _keep(self, numbers: Sequence[int], events: Sequence[_Line], details: Sequence[str | None], lines: Sequence[bytes]) -> None:
        for fault in self._waiting:
            fault["before_seq"] = events[0].seq
        self._waiting.clear()
        self.offsets += numbers
        self.lines += events
        self.details += details
        self.raws += lines
        self.last = events[-1].seq

    def _fault(self, number: int, raw: bytes, seq: int | None, why: str, *, code: str = "line", hole: bool = True) -> None:
        fault: dict[str, Any] = {
            "capture": self.sha,
            "part": self.capture.part,
            "offset": number,
            "pump_id": self.capture.pump_id,
            "log_epoch": self.epoch,
            "code": code,
            "message": why,
            "seq": seq,
            "after_seq": None,
            "before_seq": None,
            "hole": hole,
            "raw": raw,
        }
        if hole and seq is None:
            fault["after_seq"] = self.lines[-1].seq if self.lines else None
            self._waiting.append(fault)
        self.faults.append(fault)

    def _read_anchor(self, header: _Header) -> None:
        """The header's anchor, else the capture's own (`load --clock`): behind the record that it names, else behind the last line."""
        try:
            read: Anchor | None = _anchor_of(header)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._fault(1, bytes(header.anchor), None, f"the anchor cannot be read: {error}", code="anchor", hole=False)
            return
        read = read or self.capture.anchor
        if read is None or (after := read.after or self.last_key) is None:
            return
        self.anchors.append(anchor_row(self.capture, read, after, sha256=self.sha, log_epoch=self.epoch))


def _lines(data: bytes) -> tuple[Sequence[int], list[bytes]]:
    """The numbers of the lines that are not blank, and these lines without the blanks around them."""
    lines = [line.strip() for line in data.split(b"\n")]
    if not lines[-1]:
        lines.pop()
    if all(lines):
        return range(1, len(lines) + 1), lines
    return [number for number, line in enumerate(lines, 1) if line], [line for line in lines if line]


def _header_of(capture: Capture, line: bytes) -> _Header:
    """The header of a capture from its first line. Raises ValidationError, DecodeError, UnicodeDecodeError."""
    header = _header.decode(line)
    if header.pump_id != capture.pump_id:
        raise msgspec.ValidationError("the header names another pump than the capture")
    if not header.pump_id.partition(":")[2] or not header.pump_id.isprintable():
        raise msgspec.ValidationError("pump_id is not family:serial in printable characters")
    return header


def _anchor_of(header: _Header) -> Anchor | None:
    """The anchor that a header tells. Raises ValidationError, DecodeError, UnicodeDecodeError."""
    told: _HeaderAnchor | None = _anchor.decode(header.anchor)
    if told is None:
        return None
    if not all(_FIRST_YEAR <= moment.year <= _LAST_YEAR for moment in (told.pump_clock, told.utc)):
        raise msgspec.ValidationError("no clock shows such a year")
    after = None if told.after_seq is None else sequence.key_of(header.log_epoch, told.after_seq)
    return Anchor(pump_clock=told.pump_clock, utc=told.utc, round_trip_ms=told.round_trip_ms, after=after)


def _strictly(lines: Sequence[bytes]) -> list[_Line]:
    """The events of lines that are each one event without unknown fields. Raises ValidationError, DecodeError, UnicodeDecodeError.

    All lines are decoded in one go. That each is one event of its own is sure where each begins with a brace and there are as many
    events as lines: no string of JSON goes over the end of a line, and no field that is known has braces, so each such brace begins
    an event.
    """
    if {line[0] for line in lines} != {ord("{")}:
        raise msgspec.ValidationError("a line is no object")
    events: list[_Line] = _line.decode_lines(b"\n".join(lines))
    if len(events) != len(lines):
        raise msgspec.ValidationError("a line is more than one object")
    return events


def _records(readers: Sequence[_Reader]) -> pa.Table:
    """RECORDS of what was read from captures, in their order."""
    each = np.repeat(np.arange(len(readers)), [len(reader.lines) for reader in readers])
    lines = list(chain.from_iterable(reader.lines for reader in readers))

    def told(name: str, of_capture: Iterable[Any]) -> pa.Array:
        return pa.array(of_capture, RECORDS.field(name).type).take(pa.array(each))

    written = {
        "offset": chain.from_iterable(reader.offsets for reader in readers),
        "seq": [line.seq for line in lines],
        "kind": [line.kind for line in lines],
        "source": [line.source for line in lines],
        "reason": [line.reason for line in lines],
        "target": [line.target for line in lines],
        "at": [line.at for line in lines],
        "alarm_class": [line.alarm_class for line in lines],
        "stops_delivery": [line.stops_delivery for line in lines],
        "new_time": [line.new for line in lines],
        "rate_ml_h": [line.rate_ml_h for line in lines],
        "rate_dose_h": [line.rate_dose_h for line in lines],
        "volume_ml": [line.volume_ml for line in lines],
        "programmed_ml": [line.programmed_ml for line in lines],
        "dose": [line.dose for line in lines],
        "programmed_dose": [line.programmed_dose for line in lines],
        "dose_unit": [line.dose_unit for line in lines],
        "duration_s": [line.duration_s for line in lines],
        "lockout_s": [line.lockout_s for line in lines],
        "raw": chain.from_iterable(reader.raws for reader in readers),
    }
    columns = {
        "capture": told("capture", [reader.sha for reader in readers]),
        "part": told("part", [reader.capture.part for reader in readers]),
        "pump_id": told("pump_id", [reader.capture.pump_id for reader in readers]),
        "log_epoch": told("log_epoch", [reader.epoch for reader in readers]),
        "contiguous": told("contiguous", [reader.contiguous for reader in readers]),
        # Arrow takes spans of time six times as fast as times, whose zone it asks for
        "pump_time": pa.array([line.pump_time - _EPOCH for line in lines], pa.duration("ms")).cast(pa.int64()).cast(pa.timestamp("ms")),
        "detail": pa.array(chain.from_iterable(reader.details for reader in readers), pa.string()).fill_null("{}"),
        **{name: pa.array(values, RECORDS.field(name).type) for name, values in written.items()},
        **{name: pa.nulls(len(lines), RECORDS.field(name).type) for name in ("page", "native_ms", "proves")},
    }
    columns["record_key"] = sequence.keys_of(columns["log_epoch"], columns["seq"])
    columns["native_code"] = columns["kind"]
    return pa.table([columns[name] for name in RECORDS.names], schema=RECORDS)


def _checked(event: _Line, extra: Mapping[str, Any] | None = None) -> str | None:
    """Fills defaults and checks what the types alone cannot; gives the detail, if any, `extra` in it. Raises ValidationError."""
    if not _FIRST_YEAR <= event.pump_time.year <= _LAST_YEAR:
        raise msgspec.ValidationError("no pump shows such a year")
    kind = event.kind
    if event.source is None and kind in _DEFAULT_SOURCE:
        event.source = _PRIMARY
    if kind in _REASONS:
        reasons = _REASONS[kind]
        if event.reason is None:
            event.reason = reasons[0]
        elif event.reason not in reasons:
            raise msgspec.ValidationError(f"unknown reason for {kind} - at `$.reason`")
    if kind == _BOLUS:
        event.at = event.at or _START
    elif kind in _PRIMING:
        event.target = event.target or _UNKNOWN
    elif kind == _ALARM:
        event.alarm_class = event.alarm_class or _OTHER
        event.stops_delivery = bool(event.stops_delivery)
    if event.old is not None or event.new is not None or kind == _CLOCK:
        extra = {**(extra or {}), **_changed(event)}
    return dump_detail(extra) if extra else None


def _changed(event: _Line) -> dict[str, str]:
    """What the detail of a clock change says of it; of another kind nothing. Raises ValidationError."""
    if not all(_FIRST_YEAR <= moment.year <= _LAST_YEAR for moment in (event.old, event.new) if moment is not None):
        raise msgspec.ValidationError("no pump shows such a year")
    if event.kind != _CLOCK:
        return {}
    if event.reason == "loss":
        event.new = event.pump_time
    elif event.old is None or event.new is None:
        raise msgspec.ValidationError("a clock change needs its old and its new time")
    elif event.old != event.pump_time:
        raise msgspec.ValidationError("the time of a clock change is its old one")
    return {"new": event.new.isoformat()} | ({"old": event.old.isoformat()} if event.old else {})
