"""Canonical JSON lines, "the open door" (docs/semantics.md §1): a header line, then one event a line, in a file or an MQTT payload.

    {"pumpledger": 1, "pump_id": "canonical:A17", "log_epoch": 0, "contiguous": true, "anchor": {"pump_clock": …, "utc": …, "after_seq": …}}
    {"seq": 1, "pump_time": "2026-03-07T20:00:00", "kind": "delivery_start", "source": "primary", "rate_ml_h": 2.0}

A line that is not JSON, has an unknown kind or value, or no valid sequence number or time is a fault with its bytes; the rest is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
import pyarrow as pa

from devices import sequence
from devices.contract import (
    ANCHORS,
    CONTENT,
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
    dump_detail,
    fault_id,
    joined,
    table,
)

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
    round_trip_ms: int | None = None
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

_FIRST_YEAR, _LAST_YEAR = 1970, 2199
_DEFAULT_SOURCE = frozenset({Kind.DELIVERY_START, Kind.DELIVERY_COMPLETE, Kind.RATE_CHANGE, Kind.BOLUS_REQUESTED, Kind.BOLUS_DELIVERED})
_PRIMING = frozenset({Kind.PRIMING_STARTED, Kind.PRIMING_DONE})
_REASONS = {**REASONS, Kind.PRIMING_STARTED: REASONS[Kind.PRIMING_DONE]}


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
    lines = [(n, line.strip()) for n, line in enumerate(capture.data.split(b"\n"), 1)]
    lines = [(n, line) for n, line in lines if line]
    try:
        header = _header.decode(lines[0][1])
        if header.pump_id != capture.pump_id:
            raise msgspec.ValidationError("the header names another pump than the capture")
        if not header.pump_id.partition(":")[2] or not header.pump_id.isprintable():
            raise msgspec.ValidationError("pump_id is not family:serial in printable characters")
    except (IndexError, UnicodeDecodeError, msgspec.MsgspecError) as error:
        return _unreadable(capture, error)
    reader = _Reader(capture, header)
    for number, line in lines[1:]:
        reader.read(number, line)
    return reader.decoded(header)


def assemble(pump_id: str, records: pa.Table, faults: pa.Table, anchors: pa.Table) -> Log:
    """The log by its sequence numbers."""
    return sequence.assemble(pump_id, records, faults, anchors)


def _unreadable(capture: Capture, error: Exception) -> Decoded:
    """A capture without a readable header: no line of it can be placed, so all of it is one fault."""
    if not capture.data.strip():
        return joined(())
    fault = {
        "fault_id": fault_id(capture.pump_id, "header", "", capture.data),
        "capture": capture.sha256,
        "part": capture.part,
        "offset": 1,
        "pump_id": capture.pump_id,
        "log_epoch": 0,
        "code": "header",
        "message": f"no readable header line: {error}",
        "hole": False,
        "raw": capture.data,
    }
    return joined(())._replace(faults=table(FAULTS, [fault]))


class _Reader:
    """Collects the lines of one capture."""

    def __init__(self, capture: Capture, header: _Header) -> None:
        self.capture = capture
        self.sha = capture.sha256
        self.epoch = header.log_epoch
        self.offsets: list[int] = []
        self.lines: list[_Line] = []
        self.details: list[str] = []
        self.raws: list[bytes] = []
        self.faults: list[dict[str, Any]] = []
        self.last: int | None = None
        self.waiting: list[dict[str, Any]] = []

    def read(self, number: int, line: bytes) -> None:
        detail = "{}"
        seq: int | None = None
        try:
            try:
                event = _line.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                fields = _object.decode(line)
                if isinstance(fields.get("seq"), int) and not isinstance(fields["seq"], bool) and abs(fields["seq"]) <= 2**62:
                    seq = fields["seq"]
                extra = {name: fields.pop(name) for name in list(fields) if name not in _Line.__struct_fields__}
                event = msgspec.convert(fields, _Line)
                detail = dump_detail(extra)
            seq = event.seq
            detail = _checked(event, detail)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self.fault(number, line, seq, str(error))
            self.last = seq
            return
        self.offsets.append(number)
        self.lines.append(event)
        self.details.append(detail)
        self.raws.append(line)
        self._place(event.seq)
        self.last = event.seq

    def _place(self, seq: int) -> None:
        for fault in self.waiting:
            fault["before_seq"] = seq
        self.waiting.clear()

    def fault(self, number: int, line: bytes, seq: int | None, why: str, *, code: str = "line", hole: bool = True) -> None:
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
            "raw": line,
        }
        if hole and seq is None:
            fault["after_seq"] = self.lines[-1].seq if self.lines else None
            self.waiting.append(fault)
        self.faults.append(fault)

    def decoded(self, header: _Header) -> Decoded:
        anchors = []
        if (read := self._anchor(header)) is not None:
            after = read.after_seq if read.after_seq is not None else self.last
            if after is not None:
                anchors.append(
                    {
                        "capture": self.sha,
                        "pump_id": self.capture.pump_id,
                        "log_epoch": self.epoch,
                        "part": self.capture.part,
                        "after": sequence.key_of(self.epoch, after),
                        "pump_clock": read.pump_clock,
                        "utc": read.utc.astimezone(UTC),
                        "round_trip_ms": read.round_trip_ms,
                    }
                )
        for fault in self.faults:
            place = f"{self.epoch}:{fault['seq']}:{fault['after_seq']}:{fault['before_seq']}"
            fault["fault_id"] = fault_id(self.capture.pump_id, fault["code"], place, fault["raw"])
        return Decoded(self._records(header), table(FAULTS, self.faults), table(ANCHORS, anchors))

    def _anchor(self, header: _Header) -> _HeaderAnchor | None:
        """The header's anchor, else the capture's own (`load --clock`)."""
        try:
            told: _HeaderAnchor | None = _anchor.decode(header.anchor)
            if told is not None:
                if not all(_FIRST_YEAR <= moment.year <= _LAST_YEAR for moment in (told.pump_clock, told.utc)):
                    raise msgspec.ValidationError("no clock shows such a year")
                return told
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self.fault(1, bytes(header.anchor), None, f"the anchor cannot be read: {error}", code="anchor", hole=False)
            return None
        if (given := self.capture.anchor) is not None:
            return _HeaderAnchor(pump_clock=given.pump_clock, utc=given.utc, round_trip_ms=given.round_trip_ms)
        return None

    def _records(self, header: _Header) -> pa.Table:
        lines, size = self.lines, len(self.lines)
        columns: dict[str, Any] = {
            "capture": pa.repeat(pa.scalar(self.sha), size),
            "part": pa.repeat(pa.scalar(self.capture.part, pa.string()), size),
            "offset": self.offsets,
            "pump_id": pa.repeat(pa.scalar(self.capture.pump_id), size),
            "log_epoch": pa.repeat(pa.scalar(self.epoch, pa.int32()), size),
            "record_key": [sequence.key_of(self.epoch, line.seq) for line in lines],
            "page": pa.nulls(size, pa.string()),
            "contiguous": pa.repeat(pa.scalar(header.contiguous), size),
            "new_time": [line.new for line in lines],
            "native_ms": pa.nulls(size, pa.int64()),
            "proves": pa.nulls(size, pa.string()),
            "native_code": [line.kind for line in lines],
            "detail": self.details,
            "raw": self.raws,
        }
        for name in ("seq", *CONTENT.names):
            if name not in columns:
                columns[name] = [getattr(line, name) for line in lines]
        return pa.table(
            {f.name: columns[f.name] if isinstance(columns[f.name], pa.Array) else pa.array(columns[f.name], f.type) for f in RECORDS},
            schema=RECORDS,
        )


def _checked(event: _Line, detail: str) -> str:
    """Fills defaults and checks what the types alone cannot; gives the detail. Raises ValidationError."""
    kind = event.kind
    if not all(_FIRST_YEAR <= moment.year <= _LAST_YEAR for moment in (event.pump_time, event.old, event.new) if moment is not None):
        raise msgspec.ValidationError("no pump shows such a year")
    if event.source is None and kind in _DEFAULT_SOURCE:
        event.source = Source.PRIMARY.value
    reasons = _REASONS.get(Kind(kind))
    if reasons is not None:
        if event.reason is None:
            event.reason = reasons[0]
        elif event.reason not in reasons:
            raise msgspec.ValidationError(f"unknown reason for {kind} - at `$.reason`")
    if kind in _PRIMING and event.target is None:
        event.target = Target.UNKNOWN.value
    if kind == Kind.BOLUS_DELIVERED and event.at is None:
        event.at = At.START.value
    if kind == Kind.ALARM_RAISED:
        event.alarm_class = event.alarm_class or AlarmClass.OTHER.value
        event.stops_delivery = bool(event.stops_delivery)
    if kind == Kind.CLOCK_CHANGE:
        return _checked_clock(event, detail)
    return detail


def _checked_clock(event: _Line, detail: str) -> str:
    if event.reason == "loss":
        event.new = event.pump_time
    else:
        if event.old is None or event.new is None:
            raise msgspec.ValidationError("a clock change needs its old and its new time")
        if event.old != event.pump_time:
            raise msgspec.ValidationError("the time of a clock change is its old one")
    told = {"new": event.new.isoformat(), **({"old": event.old.isoformat()} if event.old else {})}
    return dump_detail({**msgspec.json.decode(detail), **told})
