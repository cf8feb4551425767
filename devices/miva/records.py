"""The 16-byte records of the log (docs/pump-formats.md §4.2): their layouts as data, and each record decoded alone, to columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from devices import sequence
from devices.contract import (
    ANCHORS,
    FAULTS,
    RECORDS,
    AlarmClass,
    At,
    Capture,
    Decoded,
    Kind,
    Source,
    anchor_row,
    dump_detail,
    fault_id,
    table,
)
from devices.errors import InputError, masked

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SIZE = 16
EMPTY = b"\xff" * SIZE


# --- records, as data ----------------------------------------------------------------------------------------------------------

_WORD, _HIGH, _LOW = "u16 at 5", "byte 5", "byte 6"


@dataclass(frozen=True, slots=True)
class _Type:
    """A record type: where its sub-type stands (if it has one), what values or bits of it mean, and (name, offset, type) of its data."""

    name: str
    sub: str = ""
    values: Mapping[int, str] = field(default_factory=dict)
    bits: bool = False
    data: tuple[tuple[str, int, str], ...] = ()


_POWER = (("battery_v", 7, ">f4"), ("infused_ml", 11, ">f4"))
_LIFE = (("life_s", 7, ">u4"), ("life_ml", 11, ">f4"))

TYPES: dict[int, _Type] = {
    0x00: _Type("INFUSION_DATA", _HIGH, {1: "begin", 2: "end"}),
    0x01: _Type("RUN_INFUSION"),
    0x02: _Type("INFUSION_PAUSED", data=(("infused_ml", 7, ">f4"),)),
    0x03: _Type("CASSETTE_EMPTY_ALARM"),
    0x04: _Type("INFUSION_LIMIT_REACHED", _WORD, {1: "max per hour", 2: "max per interval", 4: "cleared"}),
    0x05: _Type("AUTHENTICATION", _WORD),
    0x06: _Type("DOSE_GRANTED", _HIGH, {1: "auto bolus", 2: "extra dose", 8: "clinician dose"}),
    0x07: _Type("EXTRA_DOSE_DENIED", _LOW),
    0x08: _Type("DOSE_CANCEL", _LOW, {0x10: "starting dose", 0x20: "extra dose", 0x40: "unknown"}),
    0x09: _Type("OCCLUSION_ALARM", _WORD, {1: "upstream", 2: "downstream", 4: "cleared"}),
    0x0A: _Type("DELAY_END", _WORD, {1: "normal", 2: "skipped"}),
    0x0B: _Type("PUMP_LIMIT_REACHED_ALARM", _WORD, {1: "product life", 2: "service life"}, data=_LIFE),
    0x0C: _Type("CLEAR_SHIFT_TOTAL"),
    0x0D: _Type(
        "BATTERY",
        _WORD,
        {
            0x01: "medium", 0x02: "low", 0x04: "depleted", 0x08: "reset", 0x10: "AC", 0x20: "high", 0x40: "new", 0x80: "over upper limit",
            0x100: "empty", 0x200: "under lower limit",
        },
        bits=True,
        data=_POWER,
    ),
    0x0E: _Type("CASSETTE_DETACHED_ALARM"),
    0x0F: _Type("TIME_STAMP"),
    0x10: _Type("POWER_OFF", data=_POWER),
    0x11: _Type("FIRMWARE_ERROR_ALARM", _WORD, {1: "flash CRC", 2: "library"}, data=(("file", 7, ">u1"), ("line", 8, ">u2"))),
    0x12: _Type(
        "SYSTEM_ERROR_ALARM",
        _WORD,
        {
            0x01: "upstream sensor", 0x02: "slow motor", 0x04: "downstream sensor", 0x08: "motor control", 0x10: "infused volume limit",
            0x20: "motor runs in wrong state", 0x40: "motor driver", 0x80: "timer interrupt", 0x100: "self test", 0x200: "fast motor",
            0x400: "upstream sensor failure", 0x800: "downstream sensor failure", 0x1000: "motor sensor", 0x2000: "primary audio",
            0x4000: "super capacitor", 0x8000: "external watchdog",
        },
        bits=True,
    ),
    0x13: _Type("BATTERY_FAILURE", _WORD, {1: "overheated", 2: "empty"}, data=_POWER),
    0x14: _Type("DEBUG", _WORD, data=(("timer", 7, ">u4"),)),
    0x15: _Type("UNATTENDED_ALARM"),
    0x16: _Type("SETTING_CHANGE"),
    0x17: _Type("DOSE_FINISH", _WORD, {1: "extra dose", 2: "starting dose"}),
    0x18: _Type(
        "POWER_ON",
        _WORD,
        {1: "high", 2: "medium", 3: "low", 4: "critical", 5: "AC", 6: "new", 7: "depleted", 8: "empty"},
        data=_POWER,
    ),
    0x19: _Type("STARTING_DOSE_SKIP"),
    0x1A: _Type(
        "SYSTEM_ERROR2_ALARM",
        _WORD,
        {
            0x01: "battery over upper limit", 0x02: "battery under lower limit", 0x04: "protection CPU", 0x08: "backup audio",
            0x10: "backup VDD loss", 0x20: "pressure sensor stuck", 0x40: "LCD", 0x80: "backup battery", 0x100: "built-in self test",
            0x200: "motor rotates fast",
        },
        bits=True,
    ),
    0x1B: _Type("PUMP_HARD_LIMIT_REACHED_ALARM", _WORD, {4: "product life"}, data=_LIFE),
    0x1C: _Type("BATTERY_DEPLETED_ALARM"),
    0x1D: _Type("PROGRAMMING_INCOMPLETE_ALARM"),
    0x1E: _Type("BATTERY_LOW_ALARM"),
    0x1F: _Type("BATTERY_CHECK_STATUS", _WORD, {1: "empty at power-on", 2: "depleted at motor", 3: "empty at motor"}),
}  # fmt: skip

BEGIN, END, _SETTING = 1, 2, 0x16
_PROTOCOLS = ("Daily 1", "Nightly", "Daily 2")
_NODES = ("value", "upper limit", "lower limit")
_PARAMETERS: Mapping[int, str] = {
    0: "starting dose", 1: "rate", 2: "extra dose volume", 3: "extra dose lockout", 4: "VTBI", 6: "near end", 8: "starting dose lockout",
    9: "visibility",
}  # fmt: skip
_WHOLE_PARAMETERS = (3, 8, 9)


@dataclass(frozen=True, slots=True)
class _Says:
    """What records of a type say alone: those with one of these sub-types, or with one of these bits (neither: all of them)."""

    code: int
    kind: Kind
    subs: frozenset[int] = frozenset()
    bits: int = 0
    source: Source | None = None
    reason: str | None = None
    at: At | None = None
    alarm: AlarmClass | None = None
    stops: bool | None = None

    def fits(self, sub: int) -> bool:
        """Whether this row holds for a record of its type."""
        return (not self.subs and not self.bits) or sub in self.subs or bool(sub & self.bits)


def _says(code: int, kind: Kind, *subs: int, **more: Any) -> _Says:
    return _Says(code, kind, frozenset(subs), **more)


def _alarm(code: int, alarm: AlarmClass, *subs: int, stops: bool = False, bits: int = 0) -> _Says:
    return _Says(code, Kind.ALARM_RAISED, frozenset(subs), bits, alarm=alarm, stops=stops)


_MEANINGS = (
    _says(0x00, Kind.SETTINGS_CHANGE, END),
    _says(0x01, Kind.DELIVERY_START, source=Source.PRIMARY),
    _says(0x02, Kind.DELIVERY_STOP, reason="user"),
    _says(0x03, Kind.DELIVERY_COMPLETE, source=Source.PRIMARY),
    _says(0x04, Kind.LIMIT_REACHED, 1, 2),
    _says(0x04, Kind.LIMIT_CLEARED, 4),
    _says(0x06, Kind.DEMAND_GRANTED, 2),
    _says(0x06, Kind.BOLUS_REQUESTED, 1, source=Source.INTERMITTENT),
    _says(0x06, Kind.BOLUS_REQUESTED, 8, source=Source.CLINICIAN),
    _says(0x07, Kind.DEMAND_DENIED, reason="unknown"),
    _alarm(0x09, AlarmClass.OCCLUSION, bits=3, stops=True),
    _says(0x09, Kind.ALARM_CLEARED, 4, alarm=AlarmClass.OCCLUSION),
    _says(0x0A, Kind.DELIVERY_START, 1, 2, source=Source.PRIMARY),
    _alarm(0x0B, AlarmClass.OTHER),
    _says(0x0C, Kind.COUNTERS_CLEARED),
    _alarm(0x0D, AlarmClass.BATTERY, bits=0x306),
    _says(0x0E, Kind.RESERVOIR_CHANGE),
    _says(0x10, Kind.POWER_OFF),
    _alarm(0x11, AlarmClass.MALFUNCTION, stops=True),
    _alarm(0x12, AlarmClass.MALFUNCTION, stops=True),
    _alarm(0x13, AlarmClass.BATTERY, stops=True),
    _alarm(0x15, AlarmClass.OTHER),
    _says(0x16, Kind.SETTINGS_CHANGE),
    _says(0x17, Kind.BOLUS_DELIVERED, 1, source=Source.PCA, at=At.END),
    _says(0x17, Kind.BOLUS_DELIVERED, 2, source=Source.LOADING, at=At.END),
    _says(0x18, Kind.POWER_ON),
    _alarm(0x1A, AlarmClass.MALFUNCTION, stops=True),
    _alarm(0x1B, AlarmClass.OTHER, stops=True),
    _alarm(0x1C, AlarmClass.BATTERY, stops=True),
    _alarm(0x1D, AlarmClass.OTHER),
    _alarm(0x1E, AlarmClass.BATTERY),
    _alarm(0x1F, AlarmClass.BATTERY, 2, 3, stops=True),
)


# --- a capture and its part ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The part of a capture: which records of which epoch (none: `last` before `first`), checksum, form of the stamps, bytes of the last.

    `0:1024-1087 sum relative 0900…`
    """

    epoch: int
    first: int
    last: int
    check: str
    time: str
    end: bytes

    def __str__(self) -> str:
        return f"{self.epoch}:{self.first}-{self.last} {self.check} {self.time} {self.end.hex()}"


_PART = re.compile(r"(\d{1,9}):(-?\d{1,15})-(-?\d{1,15}) (sum|xor) (relative|absolute) ((?:[0-9a-f]{32})?)", re.ASCII)


def part_of(text: str | None) -> Part | None:
    """A part as its fields; none where it is no part."""
    if text is None or (match := _PART.fullmatch(text)) is None:
        return None
    epoch, first, last, check, time, end = match.groups()
    return Part(epoch=int(epoch), first=int(first), last=int(last), check=check, time=time, end=bytes.fromhex(end))


# --- decode: each record alone -------------------------------------------------------------------------------------------------


def decode(capture: Capture) -> Decoded:
    """Records, faults and the anchor of one capture."""
    part = part_of(capture.part)
    if part is None:
        return Decoded(table(RECORDS, []), _unplaced(capture, None, "the part does not say which records these are"), table(ANCHORS, []))
    anchors = _anchor_rows(capture, part)
    count = part.last - part.first + 1
    if len(capture.data) != SIZE * count:
        message = f"{len(capture.data)} bytes are not the {max(count, 0)} records that the part names"
        return Decoded(table(RECORDS, []), _unplaced(capture, part, message), anchors)
    raw = np.frombuffer(capture.data, np.uint8).reshape(-1, SIZE)
    stamps, dated = _stamps(raw, part.time)
    numbers = pa.array(np.arange(part.first, part.last + 1))
    said = {
        "capture": pa.repeat(pa.scalar(capture.sha256), count),
        "part": pa.repeat(pa.scalar(capture.part, pa.string()), count),
        "offset": pa.array(np.arange(count) * SIZE),
        "pump_id": pa.repeat(pa.scalar(capture.pump_id), count),
        "log_epoch": pa.repeat(pa.scalar(part.epoch, pa.int32()), count),
        "record_key": pa.array([sequence.key_of(part.epoch, number) for number in range(part.first, part.last + 1)], pa.string()),
        "seq": numbers,
        "contiguous": pa.repeat(pa.scalar(True), count),
        "pump_time": pa.array(stamps, pa.int64(), mask=~dated).cast(pa.timestamp("ms")),
        "native_ms": pa.array(stamps, pa.int64(), mask=~dated) if part.time == "relative" else pa.nulls(count, pa.int64()),
        "raw": _binary(capture.data),
        **_said_alone(raw),
    }
    columns = {column.name: said.get(column.name, pa.nulls(count, column.type)) for column in RECORDS}
    return Decoded(pa.table(columns, schema=RECORDS), table(FAULTS, []), anchors)


def split(capture: Capture, size: int) -> list[Capture]:
    """The capture as captures of whole records, each of at most `size` bytes, whose parts say which records they are.

    The anchor of each names the record behind which the clock was read; it says too which reading of a record is the later one.
    Raises InputError where a record is larger, or the part does not say which records these are.
    """
    if len(capture.data) <= size:
        return [capture]
    part = part_of(capture.part)
    step = size // SIZE * SIZE
    if part is None or not step or len(capture.data) != SIZE * (part.last - part.first + 1):
        raise InputError(
            f"A capture of {masked(capture.pump_id)} has {len(capture.data)} bytes and cannot be split into captures of {size}.",
            why=f"A record has {SIZE} bytes." if part and not step else "Its part does not say which records these are.",
            do="Load the file on the hub's machine with `pumpledger load`.",
            code="too_large",
        )
    anchor = capture.anchor and replace(capture.anchor, after=capture.anchor.after or sequence.key_of(part.epoch, part.last))
    parts = []
    for start in range(0, len(capture.data), step):
        data = capture.data[start : start + step]
        first = part.first + start // SIZE
        mine = replace(part, first=first, last=first + len(data) // SIZE - 1, end=data[-SIZE:])
        parts.append(replace(capture, data=data, part=str(mine), anchor=anchor))
    return parts


def _unplaced(capture: Capture, part: Part | None, message: str) -> pa.Table:
    """All of a capture as one fault: no byte of it can be placed. Where the part is readable, it is known where a hole may be."""
    if not capture.data:
        return table(FAULTS, [])
    fault = {
        "fault_id": fault_id(capture.pump_id, "part", capture.part or "", capture.data),
        "capture": capture.sha256,
        "part": capture.part,
        "offset": 0,
        "pump_id": capture.pump_id,
        "log_epoch": part.epoch if part else 0,
        "code": "part",
        "message": message,
        "after_seq": part.first - 1 if part else None,
        "hole": part is not None,
        "raw": capture.data,
    }
    return table(FAULTS, [fault])


def _anchor_rows(capture: Capture, part: Part) -> pa.Table:
    if (anchor := capture.anchor) is None:
        return table(ANCHORS, [])
    after = anchor.after or sequence.key_of(part.epoch, part.last)
    return table(ANCHORS, [anchor_row(capture, anchor, after, log_epoch=part.epoch)])


def _binary(data: bytes) -> pa.Array:
    """The records as a binary column over the capture's own bytes."""
    count = len(data) // SIZE
    offsets = np.arange(count + 1, dtype=np.int32) * SIZE
    return pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def are_empty(raw: Bytes) -> Bools:
    """Which records were never written, or are worn out: all FF."""
    return np.asarray((raw == 0xFF).all(axis=1))


def _stamps(raw: Bytes, time: str) -> tuple[Ints, Bools]:
    """The stamps, ms since 1970 or of the counter, and which of them are a time."""
    written = ~are_empty(raw)
    four = np.ascontiguousarray(raw[:, 1:5])
    if time == "relative":
        return (four.view("<u4")[:, 0] & 0x0FFF_FFFF).astype(np.int64) * 1000, written
    bits = four.view(">u4")[:, 0].astype(np.int64)
    month, day = bits >> 22 & 15, bits >> 17 & 31
    hour, minute, second = bits >> 12 & 31, bits >> 6 & 63, bits & 63
    months = ((bits >> 26) + 30) * 12 + np.clip(month, 1, 12) - 1
    days = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    following = (months + 1).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    valid = (month >= 1) & (month <= 12) & (day >= 1) & (day <= following - days) & (hour < 24) & (minute < 60) & (second < 60)
    return (((days + day - 1) * 24 + hour) * 3600 + minute * 60 + second) * 1000, valid & written


def subs_of(raw: Bytes) -> npt.NDArray[np.int32]:
    """Type and sub-type in one number, the type above the low 16 bits; 2**24 for an empty record."""
    types = raw[:, 0].astype(np.int32)
    high, low = raw[:, 5].astype(np.int32), raw[:, 6].astype(np.int32)
    place = _PLACES[types]
    sub = np.where(place == 1, high << 8 | low, np.where(place == 2, high, np.where(place == 3, low, 0)))
    return np.asarray(np.where(are_empty(raw), 1 << 24, types << 16 | sub), dtype=np.int32)


_PLACES = np.ones(256, dtype=np.int8)
for _code, _type in TYPES.items():
    _PLACES[_code] = (_WORD, _HIGH, _LOW).index(_type.sub) + 1 if _type.sub else 0
_PLACES[_SETTING] = 1


def _meaning(key: int) -> _Says:
    """What a record of this type and sub-type says alone."""
    code, sub = key >> 16, key & 0xFFFF
    if code > 0xFF:
        return _says(0xFF, Kind.DATA_CORRUPTION)
    return next((one for one in _MEANINGS if one.code == code and one.fits(sub)), _says(code, Kind.OTHER))


def _said_alone(raw: Bytes) -> dict[str, pa.Array]:
    """What each record says alone, as columns."""
    keys, which = np.unique(subs_of(raw), return_inverse=True)
    found = [_meaning(int(key)) for key in keys]
    columns: dict[str, tuple[list[Any], pa.DataType]] = {
        "kind": ([one.kind.value for one in found], pa.string()),
        "source": ([one.source and one.source.value for one in found], pa.string()),
        "reason": ([one.reason for one in found], pa.string()),
        "at": ([one.at and one.at.value for one in found], pa.string()),
        "alarm_class": ([one.alarm and one.alarm.value for one in found], pa.string()),
        "stops_delivery": ([one.stops for one in found], pa.bool_()),
        "native_code": ([f"{one.code:02x}" for one in found], pa.string()),
    }
    index = pa.array(which)
    details = pa.array(details_of(raw, keys, which), pa.string())
    return {"detail": details, **{name: pa.array(values, kind).take(index) for name, (values, kind) in columns.items()}}


def details_of(raw: Bytes, keys: npt.NDArray[np.int32], which: npt.NDArray[np.intp]) -> list[str]:
    """The details as JSON text, one a record, from types and sub-types (`keys`, and which of them each record has)."""
    heads = [head_of(int(key)) for key in keys]
    found = [heads[i] for i in which.tolist()]
    for code in np.unique(keys >> 16).tolist():
        rows = np.flatnonzero(raw[:, 0] == code)
        if code == _SETTING:
            whole = np.isin(raw[rows, 6], _WHOLE_PARAMETERS)
            _add(found, raw, rows[whole], (("old", 7, ">u4"), ("new", 11, ">u4")))
            _add(found, raw, rows[~whole], (("old", 7, ">f4"), ("new", 11, ">f4")))
        elif code in TYPES:
            _add(found, raw, rows, TYPES[code].data)
    return found


def _add(details: list[str], raw: Bytes, rows: Ints, layout: Sequence[tuple[str, int, str]]) -> None:
    """Adds the data fields of these rows to their details; what is no number is null."""
    texts: list[list[str]] = []
    for name, offset, kind in layout:
        dtype = np.dtype(kind)
        values = np.ascontiguousarray(raw[rows, offset : offset + dtype.itemsize]).view(dtype)[:, 0]
        told = values.astype(dtype.newbyteorder("=")).astype("U").tolist()
        if dtype.kind == "f":
            told = [text if fine else "null" for text, fine in zip(told, np.isfinite(values).tolist(), strict=True)]
        texts.append([f',"{name}":{text}' for text in told])
    for row, *more in zip(rows.tolist(), *texts, strict=True):
        details[row] = details[row][:-1] + "".join(more) + "}"


def head_of(key: int) -> str:
    """The part of the detail that type and sub-type give."""
    code, sub = key >> 16, key & 0xFFFF
    if code > 0xFF:
        return "{}"
    known = TYPES.get(code)
    if known is None:
        return dump_detail({"sub": sub})
    if code == _SETTING:
        protocol, node, parameter = sub >> 12, sub >> 8 & 7, sub & 0xFF
        return dump_detail(
            {
                "name": known.name,
                "protocol": _PROTOCOLS[protocol] if protocol < len(_PROTOCOLS) else protocol,
                "node": _NODES[node] if node < len(_NODES) else node,
                "parameter": _PARAMETERS.get(parameter, parameter),
            }
        )
    said: dict[str, Any] = {"name": known.name}
    if code == 0x07:
        said["attempt"] = sub
    elif known.sub:
        said["sub"] = sub
        names = [name for value, name in known.values.items() if (sub & value if known.bits else sub == value)]
        said |= {"what": names if known.bits else names[0]} if names else {}
    return dump_detail(said)
