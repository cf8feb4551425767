"""Medtronic Paradigm 5xx/7xx: history pages, and their reading over the CareLink USB stick (docs/pump-formats.md §3 and §8).

A page is 1024 bytes: records, zeros, CRC16. The model decides how long a record is and how fine its amounts are. Page 0 is the
newest; its number changes while it fills, so a page is known by its start: the bytes up to and including its first record with a
time. The parts of a capture are `page=N;dump=TOKEN` (`;bad` behind it: the pump never gave it whole) and `end;dump=TOKEN`, the
empty capture with which a download ends; TOKEN names one download, or the files that were given together.

In order: the sheet, the records of a page as data, `decode`, `assemble`, `cross_check`, the stick, `download`, files and transcripts.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from devices import dialogue
from devices.contract import (
    ANCHORS,
    EVENTS,
    FAULTS,
    HOLES,
    RECORDS,
    AlarmClass,
    Anchor,
    Capture,
    CaptureHead,
    Decoded,
    Kind,
    Log,
    PlacedAnchor,
    Sheet,
    event_id,
    fault_id,
    table,
)
from devices.dialogue import Ask, Dialogue, Got, Note, Reply, Step, Summary
from devices.errors import InputError, LinkError, PumpError, masked

FAMILY = "paradigm"

SHEET = Sheet(
    family=FAMILY,
    title="Medtronic Paradigm 5xx/7xx",
    models="508 to 754; the last two digits choose the layout: below 23 in 1/10 U, from 23 on in 1/40 U",
    transport="serial: CareLink USB stick, 9600 8N1; files: history pages, recorded dialogues",
    source="docs/pump-formats.md §3, measured on captured pages",
    identity="(pump, page start, offset in the page, record code); page numbers mean nothing across downloads",
    elapsed="the printed clock, with the clock changes that the log tells; after a battery reset it is lost",
    gaps_visible=True,
    prime_targets=True,
    demands=False,
    limits=False,
    proof="a bolus that starts after the halt, on every model; from x23 on a basal profile start (7b) above zero, "
    "which is written only while basal is delivered: nothing else tells that it resumed after a rewind or an alarm",
    tells={
        "starts and stops": "suspend and resume; alarms that stop delivery",
        "rates": "temporary basal; from x23 on each start of a basal profile segment",
        "boluses": "programmed and delivered amount, square or normal, at their start",
        "set-ups": "rewind, primes of tubing and cannula with their amounts",
        "clock": "changes with old and new time, losses by battery reset, the clock itself when the pump is asked",
        "checks": "daily totals: basal and bolus",
    },
    does_not_tell=(
        "when basal resumes after a rewind or an alarm, on models below x23 (until the next bolus)",
        "the end of a temporary basal, on models below x23",
        "how long a normal bolus took",
        "which new site an infusion has, other than by the prime of its cannula",
    ),
    unknown=(
        "the meaning of records that are kept as `other`",
        "whether square boluses are rewritten in place from x23 on: such a record is taken as an update",
    ),
)

# ---------------------------------------------------------------------------------------------------------------------
# The records of a page (§3.2)

PAGE_SIZE = 1024
_BODY = PAGE_SIZE - 2
_UNTIMED = -1
_EARLIEST = bytes([0, 0x40, 0, 1, 0])
_BASAL = "basal"

_CLASSES = {
    3: AlarmClass.BATTERY,
    4: AlarmClass.NO_DELIVERY,
    5: AlarmClass.EMPTY,
    16: AlarmClass.CLOCK_LOST,
    17: AlarmClass.CLOCK_LOST,
    21: AlarmClass.CLOCK_LOST,
    62: AlarmClass.EMPTY,
}
_STOPPING = frozenset({3, 4, 5, 6, 16, 17, 21, 61, 62, 103})

Says = dict[str, Any]


def _given(delivered: int, programmed: int, per_unit: int) -> Says:
    """Amounts in 1/`per_unit` U; a U is 10 µL. An amount that was not programmed is none."""
    says: Says = {"dose_unit": "U", "dose": delivered / per_unit, "volume_ml": delivered / (per_unit * 100)}
    if programmed:
        says |= {"programmed_dose": programmed / per_unit, "programmed_ml": programmed / (per_unit * 100)}
    return says


def _rate(forty_per_unit: int) -> Says:
    return {"dose_unit": "U", "rate_dose_h": forty_per_unit / 40, "rate_ml_h": forty_per_unit / 4000}


def _bolus(raw: bytes, larger: bool) -> Says:
    """A square bolus runs evenly over the duration it was programmed for; what was cut short took that share of it."""
    if larger:
        programmed, delivered, half_hours = raw[1] << 8 | raw[2], raw[3] << 8 | raw[4], raw[7]
        says = _given(delivered, programmed, 40)
        detail = f'"iob_u":{(raw[5] << 8 | raw[6]) / 40}'
    else:
        programmed, delivered, half_hours = raw[1], raw[2], raw[3]
        says = _given(delivered, programmed, 10)
        detail = ""
    if half_hours:
        says["duration_s"] = 1800.0 * half_hours * (min(1.0, delivered / programmed) if programmed else 1.0)
        detail += ("," if detail else "") + f'"programmed_s":{1800 * half_hours}'
    if detail:
        says["detail"] = f"{{{detail}}}"
    return says


def _prime(raw: bytes, _larger: bool) -> Says:
    """Nothing programmed: a manual prime, of the tubing, for as long as the button is held; one that moved nothing was given up."""
    programmed, delivered = raw[2], raw[4]
    if programmed:
        return {"target": "cannula", "reason": "amount_reached" if delivered == programmed else "aborted"} | _given(
            delivered, programmed, 10
        )
    return {"target": "tubing", "reason": "unknown" if delivered else "aborted"} | _given(delivered, 0, 10)


def _alarm(raw: bytes, _larger: bool) -> Says:
    kind = raw[1]
    return {
        "alarm_class": _CLASSES.get(kind, AlarmClass.OTHER).value,
        "stops_delivery": kind in _STOPPING,
        "detail": f'{{"type":{kind}}}',
    }


def _alarm_type(raw: bytes, _larger: bool) -> Says:
    return {"detail": f'{{"type":{raw[1]}}}'}


def _low_reservoir(raw: bytes, _larger: bool) -> Says:
    return {"detail": f'{{"left_u":{raw[1] / 10}}}'}


def _temp_basal(raw: bytes, _larger: bool) -> Says:
    if raw[7] >> 3:
        return {"detail": f'{{"percent":{raw[1]}}}'} | (_rate(0) if raw[1] == 0 else {})
    return _rate((raw[7] & 7) << 8 | raw[1])


def _temp_duration(raw: bytes, _larger: bool) -> Says:
    return {"detail": f'{{"duration_s":{raw[1] * 1800}}}'}


def _profile_start(raw: bytes, larger: bool) -> Says:
    rate = raw[8] | raw[9] << 8
    proves = {"proves": _BASAL} if rate and larger else {}
    return {"detail": f'{{"from_s":{raw[7] * 1800},"profile":{raw[1]}}}'} | _rate(rate) | proves


def _total(raw: bytes, larger: bool) -> Says:
    """The day comes in two bytes; 6d and 6e tell basal and bolus too."""
    at = _LAYOUTS[larger].date_at[raw[0]]
    told = [f'"date":"{_day(raw[at], raw[at + 1])}"']
    if raw[0] == 0x07:
        told.append(f'"total_u":{(raw[3] << 8 | raw[4]) / 40}')
    elif raw[0] in (0x6D, 0x6E):
        total, basal, bolus = (int.from_bytes(raw[i : i + 2]) / 40 for i in (11, 13, 16))
        told = [f'"basal_u":{basal}', f'"bolus_u":{bolus}', *told, f'"total_u":{total}']
    return {"detail": f"{{{','.join(told)}}}"}


@dataclass(frozen=True, slots=True)
class _Code:
    """One kind of record: its length (small, larger models), where its time or its date stands, and what it says."""

    name: str
    small: int = 7
    larger: int = 0
    time_at: int = 2
    larger_time_at: int = 0
    date_at: int = 0
    says: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[bytes, bool], Says] | None = None


def _kind(kind: Kind, **says: Any) -> Says:
    return {"kind": kind.value, **says}


_SETTINGS = _kind(Kind.SETTINGS_CHANGE)
_TOTAL = _kind(Kind.DAILY_TOTAL)
_CLOCK = _kind(Kind.CLOCK_CHANGE, reason="loss")
_BASAL_RATE = _kind(Kind.RATE_CHANGE, source=_BASAL)

_CODES: Mapping[int, _Code] = {
    0x01: _Code("bolus", 9, 13, 4, 8, says=_kind(Kind.BOLUS_DELIVERED, source="primary", at="start", proves=_BASAL), read=_bolus),
    0x03: _Code("prime", 10, time_at=5, says=_kind(Kind.PRIMING_DONE), read=_prime),
    0x06: _Code("alarm", 9, time_at=4, says=_kind(Kind.ALARM_RAISED), read=_alarm),
    0x07: _Code("daily total", 7, 10, _UNTIMED, date_at=5, says=_TOTAL, read=_total),
    0x08: _Code("basal profile edited", 152, says=_SETTINGS),
    0x09: _Code("basal profile before the edit", 152, says=_SETTINGS),
    0x0B: _Code("", 8, time_at=3),
    0x0C: _Code("alarm cleared", says=_kind(Kind.ALARM_CLEARED), read=_alarm_type),
    0x14: _Code("basal pattern selected", says=_SETTINGS),
    0x16: _Code("duration of a temporary basal", read=_temp_duration),
    0x17: _Code("clock changed: old time", says=_CLOCK),
    0x18: _Code("clock changed: new time", says=_CLOCK),
    0x19: _Code("low battery", says=_kind(Kind.ALARM_RAISED, alarm_class="battery", stops_delivery=False)),
    0x1E: _Code("suspend", says=_kind(Kind.DELIVERY_STOP, source=_BASAL, reason="user")),
    0x1F: _Code("resume", says=_kind(Kind.DELIVERY_START, source=_BASAL)),
    0x21: _Code("rewind", says=_kind(Kind.RESERVOIR_CHANGE)),
    0x30: _Code("", -1, time_at=_UNTIMED),
    0x33: _Code("temporary basal", 8, says=_BASAL_RATE, read=_temp_basal),
    0x34: _Code("low reservoir", says=_kind(Kind.ALARM_RAISED, alarm_class="low_reservoir", stops_delivery=False), read=_low_reservoir),
    0x5C: _Code("unabsorbed insulin", -1, time_at=_UNTIMED),
    0x6C: _Code("daily total", 38, time_at=_UNTIMED, date_at=1, says=_TOTAL, read=_total),
    0x6D: _Code("daily total", 44, time_at=_UNTIMED, date_at=1, says=_TOTAL, read=_total),
    0x6E: _Code("daily total", 52, time_at=_UNTIMED, date_at=1, says=_TOTAL, read=_total),
    0x7B: _Code("basal profile start", 10, says=_BASAL_RATE, read=_profile_start),
}
"""What has a meaning here, or its time elsewhere. The default: 7 bytes, a time at byte 2, `other`. Length -1: byte 1 tells it."""

_LENGTHS: Mapping[int, tuple[int, int]] = {
    **dict.fromkeys((65, 66, 83), (8, 8)),
    **dict.fromkeys((64, 103, 104), (9, 9)),
    **dict.fromkeys((57, 63), (10, 10)),
    **dict.fromkeys((86, 129, 130), (12, 12)),
    **dict.fromkeys((38, 54, 60), (21, 21)),
    0x2E: (107, 107),
    0x4F: (39, 39),
    0x50: (37, 37),
    0x54: (64, 64),
    0x55: (55, 55),
    0x7D: (37, 37),
    0x5A: (124, 144),
    0x5B: (20, 22),
    0x69: (7, 9),
}
"""The lengths, on small and on larger models, of the codes without a meaning here; 50 has 41 on x51 and x54."""

_REWRITTEN = frozenset({0x01, 0x03})
"""Records of which a pump may change the amount in place."""


class _Layout(NamedTuple):
    """The lengths and places of one kind of model, by code."""

    length: list[int]
    time_at: list[int]
    date_at: list[int]


def _layout(larger: bool, *, length_of_50: int = 37) -> _Layout:
    codes = [_CODES.get(code, _Code("", *_LENGTHS.get(code, (7, 7)))) for code in range(256)]
    length = [(larger and one.larger) or one.small for one in codes]
    length[0x50] = length_of_50
    return _Layout(length, [(larger and one.larger_time_at) or one.time_at for one in codes], [one.date_at for one in codes])


_LAYOUTS = {False: _layout(larger=False), True: _layout(larger=True)}
_LAYOUT_51 = _layout(larger=True, length_of_50=41)


def layout_of(model: str | None) -> tuple[_Layout, bool] | None:
    """The record layout of a model such as "522" or "723", and whether it is of the larger kind; None where the model says nothing."""
    found = re.fullmatch(r"\D*([57])(\d\d)\D*", model or "")
    if not found or not (8 if found[1] == "5" else 0) <= int(found[2]) <= 54:
        return None
    larger = int(found[2]) >= 23
    return (_LAYOUT_51 if found[2] in ("51", "54") else _LAYOUTS[larger]), larger


# ---------------------------------------------------------------------------------------------------------------------
# decode: one page


class _BadPageError(Exception):
    """Why a page gives none of its records."""

    def __init__(self, code: str, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.code, self.offset = code, offset


_NO_RECORDS, _NO_FAULTS, _NO_ANCHORS = table(RECORDS, []), table(FAULTS, []), table(ANCHORS, [])
_SAID = {code: (dict(one.says), one.read) for code, one in _CODES.items() if one.says or one.read}
_HEX = [f"{code:02x}" for code in range(256)]
_AT = [f":{offset:04d}:" for offset in range(PAGE_SIZE)]
_TYPES = {f.name: f.type for f in RECORDS}
_Ints = npt.NDArray[np.int64]


def _calendar() -> tuple[_Ints, _Ints]:
    """Two tables that read a time: ms of the day by its month, day and year bits, ms within the day by its other bits; below 0: none."""
    bits = np.arange(1 << 16)
    month, day, year = bits >> 12, bits >> 7 & 0x1F, bits & 0x7F
    months = np.arange("2000-01", "2100-02", dtype="datetime64[M]").astype("datetime64[D]").astype(np.int64)
    nth = np.where((month >= 1) & (month <= 12) & (year < 100), year * 12 + month - 1, -1)
    fine = (nth >= 0) & (day >= 1) & (day <= np.diff(months)[nth])
    days = np.where(fine, (months[nth] + day - 1) * 86_400_000, -(1 << 60))
    bits = np.arange(1 << 17)
    second, minute, hour = bits >> 11, bits >> 5 & 0x3F, bits & 0x1F
    fine = (second < 60) & (minute < 60) & (hour < 24)
    return days, np.where(fine, ((hour * 60 + minute) * 60 + second) * 1000, -(1 << 60))


_DAY_MS, _WITHIN_MS = _calendar()


def decode(capture: Capture) -> Decoded:
    """Records of one history page (§3.2), or exactly one fault: a bad page gives none of its records.

    Empty bytes with another part than a page's are the end of a download: its anchor alone. Times naive, as printed; doses in U,
    volumes in mL (U/100), rates in U/h and mL/h, durations in s.
    """
    anchors = _NO_ANCHORS
    if capture.anchor is not None:
        anchors = table(ANCHORS, [_anchor_row(capture, capture.anchor)])
    if not capture.data and not (capture.part or "").startswith("page="):
        return Decoded(_NO_RECORDS, _NO_FAULTS, anchors)
    try:
        return Decoded(_records(capture), _NO_FAULTS, anchors)
    except _BadPageError as bad:
        fault = {
            "fault_id": fault_id(capture.pump_id, bad.code, str(bad.offset), capture.data),
            "capture": capture.sha256,
            "part": capture.part,
            "offset": bad.offset,
            "pump_id": capture.pump_id,
            "log_epoch": 0,
            "code": bad.code,
            "message": str(bad),
            "hole": True,
            "raw": capture.data,
        }
        return Decoded(_NO_RECORDS, table(FAULTS, [fault]), anchors)


def _anchor_row(capture: Capture, anchor: Anchor) -> Says:
    return {
        "capture": capture.sha256,
        "pump_id": capture.pump_id,
        "log_epoch": 0,
        "part": capture.part,
        "after": anchor.after,
        "pump_clock": anchor.pump_clock,
        "utc": anchor.utc.astimezone(UTC),
        "round_trip_ms": anchor.round_trip_ms,
    }


def _whole(page: bytes) -> str:
    """Why these bytes are no history page: their length, or CRC16-CCITT over all but the last two bytes; "" if they are one."""
    if len(page) != PAGE_SIZE:
        return f"a page has {PAGE_SIZE} bytes, not {len(page)}"
    return "" if binascii.crc_hqx(page[:_BODY], 0xFFFF) == int.from_bytes(page[_BODY:]) else "the checksum of the page is wrong"


def _records(capture: Capture) -> pa.Table:
    """RECORDS of a page. Raises _BadPageError."""
    page = capture.data
    layout = layout_of(capture.model)
    if layout is None:
        raise _BadPageError("model", "the model is not known: it decides how long a record is")
    if why := _whole(page):
        raise _BadPageError("length" if len(page) != PAGE_SIZE else "crc", why)
    sizes, larger = layout
    offsets, ends = _walk(page, sizes.length)
    codes = [page[offset] for offset in offsets]
    ms, timed = _times(page, offsets, codes, sizes)
    if True not in timed:
        return _NO_RECORDS
    first = timed.index(True)
    return _columns(capture, offsets, ends, codes, ms, timed, _page_key(page, offsets[first], ends[first], sizes.time_at), larger)


def _walk(page: bytes, length: list[int]) -> tuple[list[int], list[int]]:
    """Where the records begin and end. Raises _BadPageError where one runs over the end."""
    offsets, ends = [], []
    at, end = 0, len(page[:_BODY].rstrip(b"\0"))
    while at < end:
        if not (code := page[at]):
            at += 1
            continue
        size = length[code]
        offsets.append(at)
        at += size if size > 0 else max(page[at + 1], 2)
        ends.append(at)
    if at > _BODY:
        raise _BadPageError("overrun", "a record runs over the end of the page", offsets[-1])
    return offsets, ends


def _times(page: bytes, offsets: list[int], codes: list[int], sizes: _Layout) -> tuple[_Ints, list[bool]]:
    """Times in ms since 1970, and which records have one. Raises _BadPageError for a time or a date that cannot be."""
    timed, stamps = [], []
    for offset, code in zip(offsets, codes, strict=True):
        at = sizes.time_at[code]
        timed.append(at > 0)
        stamps.append(page[offset + at : offset + at + 5] if at > 0 else _EARLIEST)
        if (date_at := sizes.date_at[code]) and _day(page[offset + date_at], page[offset + date_at + 1]) is None:
            raise _BadPageError("time", "a record has a date that cannot be", offset)
    b = np.frombuffer(b"".join(stamps), dtype=np.uint8).reshape(-1, 5).T.astype(np.int32)
    ms: _Ints = _DAY_MS[(b[0] & 0xC0) << 8 | (b[1] & 0xC0) << 6 | (b[3] & 0x1F) << 7 | b[4] & 0x7F]
    ms = ms + _WITHIN_MS[(b[0] & 0x3F) << 11 | (b[1] & 0x3F) << 5 | b[2] & 0x1F]
    if len(offsets) and ms.min() < 0:
        raise _BadPageError("time", "a record has a time that cannot be", offsets[int(np.argmax(ms < 0))])
    return ms, timed


def _day(d0: int, d1: int) -> date | None:
    """The date that two bytes tell, None if there is no such date."""
    try:
        return date(2000 + (d1 & 0x7F), (d0 & 0xE0) >> 4 | d1 >> 7, d0 & 0x1F)
    except ValueError:
        return None


def _page_key(page: bytes, start: int, end: int, time_at: list[int]) -> str:
    """What makes a page itself. Of a first record that may be rewritten, only code and time count."""
    head = page[:end]
    if (code := page[start]) in _REWRITTEN:
        stamp = start + time_at[code]
        head = page[: start + 1] + page[stamp : stamp + 5]
    return hashlib.sha256(head).hexdigest()[:16]


@cache
def _constant(size: int) -> dict[str, pa.Array]:
    """Columns of so many rows that are the same in every page: null, unless a record says otherwise."""
    return {f.name: pa.nulls(size, f.type) for f in RECORDS} | {"log_epoch": pa.repeat(pa.scalar(0, pa.int32()), size)}


def _columns(
    capture: Capture, offsets: list[int], ends: list[int], codes: list[int], ms: _Ints, timed: list[bool], key: str, larger: bool
) -> pa.Table:
    size, page = len(offsets), capture.data
    raws = [page[start:end] for start, end in zip(offsets, ends, strict=True)]
    said: dict[str, list[Any]] = {"kind": ["other"] * size, "detail": ["{}"] * size}
    for row, code in enumerate(codes):
        if code in _SAID:
            says, read = _SAID[code]
            for name, value in (says | read(raws[row], larger) if read else says).items():
                if name not in said:
                    said[name] = [None] * size
                said[name][row] = value
    times = ms.view("datetime64[ms]")
    columns: dict[str, pa.Array] = _constant(size) | {
        "capture": pa.repeat(capture.sha256, size),
        "offset": pa.array(np.array(offsets)),
        "pump_id": pa.repeat(capture.pump_id, size),
        "record_key": pa.array([key + _AT[at] + _HEX[code] for at, code in zip(offsets, codes, strict=True)], pa.string()),
        "page": pa.repeat(key, size),
        "pump_time": pa.array(times, mask=~np.array(timed)),
        "native_code": pa.array([_HEX[code] for code in codes], pa.string()),
        "raw": pa.array(raws, pa.binary()),
    }
    if capture.part is not None:
        columns["part"] = pa.repeat(capture.part, size)
    if 0x18 in codes:
        columns["new_time"] = pa.array(times, mask=np.array(codes) != 0x18)
    for name, values in said.items():
        columns[name] = pa.array(values, _TYPES[name])
    return pa.Table.from_arrays([columns[name] for name in _TYPES], schema=RECORDS)


# ---------------------------------------------------------------------------------------------------------------------
# assemble: the log of one pump from all its pages (§3.3)

_PART = re.compile(r"page=(\d{1,6});dump=([^;]*)(;bad)?")
_NEVER = -(2**63)
_DOWNLOAD_MS = 3_600_000
_STEP_MS = 60_000
_BEFORE_MS = 35_000
"""How much later than the record behind which it belongs a basal profile start may be stamped (§3.3)."""


@dataclass(frozen=True, slots=True)
class _Hole:
    kind: Kind
    key: str


@dataclass(frozen=True, slots=True)
class _Chosen:
    """One position of a page: the row of RECORDS that stands for it, and whether other rows contradict it."""

    row: int
    conflict: bool


class _Rows:
    """The columns of RECORDS that order and pairs depend on, as lists."""

    def __init__(self, records: pa.Table, anchors: pa.Table) -> None:
        self.table = records = records.combine_chunks()
        self.capture: list[str] = records.column("capture").to_pylist()
        self.part: list[str | None] = records.column("part").to_pylist()
        self.page: list[str] = records.column("page").to_pylist()
        self.offset: list[int] = records.column("offset").to_pylist()
        self.key: list[str] = records.column("record_key").to_pylist()
        self.raw: list[bytes] = records.column("raw").to_pylist()
        self.ms: list[int | None] = records.column("pump_time").cast(pa.int64()).to_pylist()
        self.dose: list[float | None] = records.column("dose").to_pylist()
        self.read_at: dict[str, int] = {}
        for capture, utc in zip(anchors.column("capture").to_pylist(), anchors.column("utc").cast(pa.int64()).to_pylist(), strict=True):
            self.read_at[capture] = max(utc, self.read_at.get(capture, _NEVER))

    def rank(self, row: int) -> tuple[int, float, bytes, str]:
        """Which of several readings of one record stands: the later anchor, the greater amount; the rest only decides."""
        return self.read_at.get(self.capture[row], _NEVER), self.dose[row] or 0.0, self.raw[row], self.capture[row]


def assemble(pump_id: str, records: pa.Table, faults: pa.Table, anchors: pa.Table) -> Log:
    """The log of one pump: pages in their order, each record once, pairs as one event, holes where pages are missing or bad.

    Pure; the order and repetition of captures do not matter. Within a dump pages are neighbours by their numbers, across dumps
    pages are the same by their start.
    """
    rows = _Rows(records, anchors)
    chosen, stands_for = _one_record_a_position(rows)
    log = _Events(pump_id, rows)
    run: list[_Chosen] = []
    for entry in _chain(rows, faults, anchors):
        if isinstance(entry, _Hole):
            log.extend(run)
            log.hole(entry)
            run = []
        else:
            run += chosen[entry]
    log.extend(run)
    events = log.table()
    ids = [event_id(pump_id, log.event_key[stands_for.get(key, key)]) for key in rows.key]
    return Log(
        events=events, anchors=_placed(events, rows, log.event_key, stands_for, anchors, faults), event_of_record=pa.array(ids, pa.string())
    )


def _one_record_a_position(rows: _Rows) -> tuple[dict[str, list[_Chosen]], dict[str, str]]:
    """By page, its records by offset; and, for record keys that were not taken, the key that stands for them."""
    found: dict[str, dict[tuple[int, bytes], list[int]]] = defaultdict(dict)
    for row, page in enumerate(rows.page):
        found[page].setdefault((rows.offset[row], rows.raw[row]), []).append(row)
    chosen: dict[str, list[_Chosen]] = {}
    stands_for: dict[str, str] = {}
    for page, positions in found.items():
        taken = chosen[page] = []
        group: list[tuple[int, bytes]] = []
        end = -1
        for position in [*sorted(positions), (PAGE_SIZE, b"")]:
            if position[0] >= end and group:
                taken += _settled(rows, {one: positions[one] for one in group}, stands_for)
                group = []
            group.append(position)
            end = max(end, position[0] + len(position[1]))
    return chosen, stands_for


def _settled(rows: _Rows, group: Mapping[tuple[int, bytes], list[int]], stands_for: dict[str, str]) -> list[_Chosen]:
    """What stands where several readings overlap: an update in place, else the version of the later anchor, in conflict."""
    if len(group) == 1:
        (only,) = group.values()
        return [_Chosen(max(only, key=rows.rank) if len(only) > 1 else only[0], False)]
    every = [row for same in group.values() for row in same]
    if len({(offset, raw[0], len(raw)) for offset, raw in group}) == 1 and next(iter(group))[1][0] in _REWRITTEN:
        return [_Chosen(max(every, key=rows.rank), False)]
    versions: dict[str, list[int]] = defaultdict(list)
    for row in every:
        versions[rows.capture[row]].append(row)

    def rank(capture: str) -> tuple[int, str, str]:
        content = sorted((rows.offset[row], rows.raw[row].hex()) for row in versions[capture])
        return rows.read_at.get(capture, _NEVER), hashlib.sha256(repr(content).encode()).hexdigest(), capture

    best = {rows.offset[row]: row for row in versions[max(versions, key=rank)]}
    keys = {rows.key[row] for row in best.values()}
    for row in every:
        if rows.key[row] not in keys:
            nearest = max((offset for offset in best if offset <= rows.offset[row]), default=min(best))
            stands_for[rows.key[row]] = rows.key[best[nearest]]
    return [_Chosen(best[offset], True) for offset in sorted(best)]


@dataclass
class _Dump:
    """What one download, or one set of files, gave: page number → page start, and → whether its bytes were bad."""

    good: dict[int, str] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)
    read_at: int = _NEVER


def _place(part: str | None, capture: str) -> tuple[str, int]:
    """(dump, page number) of a part; what names none is a dump of its own, and not known to be the newest page."""
    match = _PART.fullmatch(part or "")
    return (match[2], int(match[1])) if match else (capture, 1)


def _dumps(rows: _Rows, faults: pa.Table, anchors: pa.Table) -> dict[str, _Dump]:
    dumps: dict[str, _Dump] = defaultdict(_Dump)
    for part, capture, page in sorted(
        set(zip(rows.part, rows.capture, rows.page, strict=True)), key=lambda one: (one[2], one[1], one[0] or "")
    ):
        dump, number = _place(part, capture)
        dumps[dump].good.setdefault(number, page)
    for fault in faults.select(["part", "capture", "fault_id", "hole"]).to_pylist():
        dump, number = _place(fault["part"], fault["capture"])
        if fault["hole"] and number not in dumps[dump].good:
            dumps[dump].bad[number] = min(fault["fault_id"], dumps[dump].bad.get(number, fault["fault_id"]))
    for part, capture in zip(anchors.column("part").to_pylist(), anchors.column("capture").to_pylist(), strict=True):
        name = _place(part, capture)[0] if not (part or "").startswith("end;dump=") else part[9:]
        if name in dumps:
            dumps[name].read_at = max(dumps[name].read_at, rows.read_at[capture])
    return dumps


class _Places:
    """Pages on number lines, growing with time: two pages of which a dump tells the distance are on the same line."""

    def __init__(self) -> None:
        self.of: dict[str, tuple[int, int]] = {}
        self.on: dict[int, list[str]] = {}

    def put(self, page: str) -> tuple[int, int]:
        """(line, place) of a page, on a new line of its own if it is new."""
        if page not in self.of:
            self.of[page] = len(self.of), 0
            self.on[self.of[page][0]] = [page]
        return self.of[page]

    def join(self, newer: str, older: str, distance: int) -> None:
        """Brings two pages to one line; what contradicts a line is left out."""
        (keep, at), (move, was) = self.put(older), self.put(newer)
        if keep == move:
            return
        for page in self.on.pop(move):
            self.of[page] = keep, self.of[page][1] - was + at + distance
            self.on[keep].append(page)


def _chain(rows: _Rows, faults: pa.Table, anchors: pa.Table) -> list[str | _Hole]:
    """Page starts from oldest to newest, with the holes between them.

    A shorter distance is the surer one: a page that fills while a dump is read makes the numbers after it too large by one.
    """
    dumps = _dumps(rows, faults, anchors)
    places = _Places()
    for page in sorted(set(rows.page)):
        places.put(page)
    told = set()
    for dump in dumps.values():
        for (n, newer), (o, older) in pairwise(sorted(dump.good.items())):
            if newer != older:
                told.add((o - n, newer, older))
    for distance, newer, older in sorted(told):
        places.join(newer, older, distance)
    lines = {line: _Line(pages, places) for line, pages in places.on.items()}
    lost: list[tuple[int, int, str]] = []
    latest = max((dump.read_at for dump in dumps.values() if dump.good), default=_NEVER)
    for dump in dumps.values():
        for page in dump.good.values():
            line = lines[places.of[page][0]]
            line.read_at = max(line.read_at, dump.read_at)
        for number, fault in dump.bad.items():
            if dump.good:
                beside = max((n for n in dump.good if n < number), default=min(dump.good))
                on, at = places.of[dump.good[beside]]
                lines[on].bad.add(at + beside - number)
            elif dump.read_at == _NEVER or dump.read_at > latest:
                lost.append((dump.read_at, -number, fault))
    ms: dict[str, list[int]] = defaultdict(list)
    for page, at_ms in zip(rows.page, rows.ms, strict=True):
        if at_ms is not None:
            ms[page].append(at_ms)
    entries: list[str | _Hole] = []
    last = ""
    for line in sorted(lines.values(), key=lambda one: one.order(ms)):
        if last:
            entries.append(_Hole(Kind.DATA_GAP, f"gap:{last}..{line.pages[0]}"))
        entries += line.entries()
        last = line.pages[-1]
    for nth, _ in enumerate(dict.fromkeys(fault for _, _, fault in sorted(lost)), 1):
        entries.append(_Hole(Kind.DATA_CORRUPTION, f"lost:{last}..:{nth}"))
    return entries


class _Line:
    """One number line: its pages in order, and the places where only bad pages were read."""

    def __init__(self, pages: list[str], places: _Places) -> None:
        self.at = {page: places.of[page][1] for page in pages}
        self.pages = sorted(pages, key=lambda page: (self.at[page], page))
        self.bad: set[int] = set()
        self.read_at = _NEVER

    def order(self, ms: Mapping[str, list[int]]) -> tuple[int, int, str]:
        """Where the line stands among those it shares no page with: when it was read, else by its first printed time."""
        printed = min(at for page in self.pages for at in ms[page])
        return (self.read_at if self.read_at != _NEVER else printed), printed, self.pages[0]

    def entries(self) -> Iterable[str | _Hole]:
        """Pages and holes in order. A hole is named by the good pages beside it and its distance from the older one."""
        good = set(self.at.values())
        marks: list[tuple[int, str]] = sorted([(at, page) for page, at in self.at.items()] + [(at, "") for at in self.bad - good])
        for nth, (at, page) in enumerate(marks):
            older = next((p for _, p in reversed(marks[:nth]) if p), "")
            newer = next((p for _, p in marks[nth:] if p), "")
            since = at - (self.at[older] if older else self.at[newer])
            if nth and at - marks[nth - 1][0] != 1:
                yield _Hole(Kind.DATA_GAP, f"gap:{older}..{newer}:{since - 1}")
            yield page or _Hole(Kind.DATA_CORRUPTION, f"bad:{older}..{newer}:{since}")


class _Events:
    """Collects the events of a log: rows of RECORDS as they are, rows that pairs changed, holes."""

    def __init__(self, pump_id: str, rows: _Rows) -> None:
        self.pump_id, self.rows = pump_id, rows
        self.event_key: dict[str, str] = {}
        self._taken: list[int] = []
        self._conflict: list[bool] = []
        self._made: list[Says] = []
        self._order: list[tuple[bool, int]] = []

    def hole(self, hole: _Hole) -> None:
        """A hole has a place, and neither time nor bytes."""
        self._make({"record_key": hole.key, "kind": hole.kind.value, "native_code": "", "detail": "{}", "raw": b"", "conflict": False})

    def extend(self, run: list[_Chosen]) -> None:
        """The records of pages without a hole between them, oldest first."""
        run = self._resumed(run)
        nth = 0
        while nth < len(run):
            one, after = run[nth], run[nth + 1] if nth + 1 < len(run) else None
            code = self._code(one)
            if code == 0x17 and after and self._code(after) == 0x18:
                self._pair(one, after, self._clock_set)
                nth += 1
            elif code == 0x33 and after and self._code(after) == 0x16 and self.rows.ms[one.row] == self.rows.ms[after.row]:
                self._pair(one, after, self._temp_set)
                nth += 1
            elif code == 0x17:
                self._pair(one, None, self._clock_unknown)
            else:
                self.event_key[self.rows.key[one.row]] = self.rows.key[one.row]
                self._order.append((False, len(self._taken)))
                self._taken.append(one.row)
                self._conflict.append(one.conflict)
            nth += 1

    def table(self) -> pa.Table:
        """EVENTS in log order."""
        taken = self.rows.table.take(pa.array(self._taken, pa.int64()))
        ids = [event_id(self.pump_id, self.rows.key[row]) for row in self._taken]
        columns = {name: taken.column(name) for name in EVENTS.names if name in taken.column_names}
        columns |= {"event_id": pa.array(ids, pa.string()), "conflict": pa.array(self._conflict, pa.bool_())}
        plain = pa.table({name: columns[name] for name in EVENTS.names}, schema=EVENTS)
        order = pa.array([nth + made * len(self._taken) for made, nth in self._order], pa.int64())
        return pa.concat_tables([plain, table(EVENTS, self._made)]).take(order).combine_chunks()

    def _code(self, one: _Chosen) -> int:
        return self.rows.raw[one.row][0]

    def _resumed(self, run: list[_Chosen]) -> list[_Chosen]:
        """A basal profile start goes behind the fixed prime or the resume before which it was written, though stamped after it (§3.3).

        Records without a time, such as midnight's daily totals, may stand between the two.
        """
        run = list(run)
        for nth in range(len(run) - 1):
            here, ms = run[nth], self.rows.ms[run[nth].row]
            if self._code(here) != 0x7B or ms is None:
                continue
            then = next((n for n in range(nth + 1, len(run)) if self.rows.ms[run[n].row] is not None), nth)
            raw, then_ms = self.rows.raw[run[then].row], self.rows.ms[run[then].row]
            if (raw[0] == 0x1F or (raw[0] == 0x03 and raw[2])) and then_ms is not None and 0 <= ms - then_ms <= _BEFORE_MS:
                run[nth : then + 1] = [*run[nth + 1 : then + 1], here]
        return run

    def _make(self, says: Says) -> None:
        self._order.append((True, len(self._made)))
        self._made.append({"event_id": event_id(self.pump_id, says["record_key"]), "pump_id": self.pump_id, "log_epoch": 0, **says})

    def _pair(self, one: _Chosen, other: _Chosen | None, change: Callable[[Says, Says], Says]) -> None:
        """One event of a record and its partner, under the key of the first."""
        first = self._row(one)
        second = self._row(other) if other else {}
        conflict = one.conflict or (other is not None and other.conflict)
        key = first["record_key"]
        self.event_key |= {record["record_key"]: key for record in (first, second) if record}
        self._make({**first, **change(first, second), "raw": first["raw"] + second.get("raw", b""), "conflict": conflict})

    def _row(self, one: _Chosen) -> Says:
        names = [name for name in EVENTS.names if name in RECORDS.names]
        found: list[Says] = self.rows.table.select(names).slice(one.row, 1).to_pylist()
        return found[0]

    @staticmethod
    def _clock_set(first: Says, second: Says) -> Says:
        old, new = first["pump_time"], second["pump_time"]
        return {"reason": "set", "new_time": new, "detail": f'{{"new":"{new.isoformat()}","old":"{old.isoformat()}"}}'}

    @staticmethod
    def _clock_unknown(first: Says, _second: Says) -> Says:
        """The new time is on a page that is missing: what follows is another clock."""
        return {"reason": "loss", "pump_time": None, "new_time": None, "detail": f'{{"old":"{first["pump_time"].isoformat()}"}}'}

    @staticmethod
    def _temp_set(first: Says, second: Says) -> Says:
        """Duration 0 cancels: the rate is that of the profile again, which this record does not tell."""
        told = json.loads(second["detail"])
        detail = json.dumps({**json.loads(first["detail"]), **told}, sort_keys=True, separators=(",", ":"))
        if told["duration_s"]:
            return {"duration_s": float(told["duration_s"]), "detail": detail}
        return {"rate_ml_h": None, "rate_dose_h": None, "dose_unit": None, "detail": detail}


def _placed(
    events: pa.Table, rows: _Rows, event_key: Mapping[str, str], stands_for: Mapping[str, str], anchors: pa.Table, faults: pa.Table
) -> tuple[PlacedAnchor, ...]:
    """The anchors behind the last record of their dump's page 0, moved by what was written while the dump was read.

    A page 0 that is still blank gives no record: its anchor stands behind page 1.
    """
    if not anchors.num_rows:
        return ()
    row_of = {key: row for row, key in enumerate(events.column("record_key").to_pylist())}
    last: dict[tuple[str, int], int] = {}
    for row, key in enumerate(rows.key):
        place = _place(rows.part[row], rows.capture[row])
        last[place] = max(last.get(place, -1), row_of[event_key[stands_for.get(key, key)]])
    bad = {
        _place(part, capture) for part, capture in zip(faults.column("part").to_pylist(), faults.column("capture").to_pylist(), strict=True)
    }
    parts = anchors.column("part").to_pylist()
    newest = {_place(part, "")[0] for part in parts if _place(part, "")[1] == 0}
    clocks, utcs = (anchors.column(name).cast(pa.int64()).to_pylist() for name in ("pump_clock", "utc"))
    walk = _Walk(events)
    found = set()
    for part, clock, utc, trip in zip(parts, clocks, utcs, anchors.column("round_trip_ms").to_pylist(), strict=True):
        dump = part[9:] if (part or "").startswith("end;dump=") else _place(part, "")[0]
        at = last.get((dump, 0))
        if at is None and dump in newest and (dump, 0) not in bad:
            at = last.get((dump, 1))
        if at is not None:
            found.add(PlacedAnchor(walk.to(at, clock), clock, utc, trip))
    return tuple(sorted(found, key=lambda one: (one.after, one.utc_ms, one.pump_clock_ms, one.round_trip_ms or 0)))


class _Walk:
    """Finds the record behind which a clock was read, near the last one of the page as it was read a little earlier or later."""

    def __init__(self, events: pa.Table) -> None:
        self.ms: list[int | None] = events.column("pump_time").cast(pa.int64()).to_pylist()
        kinds = events.column("kind").to_pylist()
        lost = [one == AlarmClass.CLOCK_LOST.value for one in events.column("alarm_class").to_pylist()]
        walls = {*(kind.value for kind in HOLES), Kind.CLOCK_CHANGE.value}
        self.wall = [kind in walls or gone for kind, gone in zip(kinds, lost, strict=True)]
        self.bolus = [kind == Kind.BOLUS_DELIVERED.value for kind in kinds]

    def to(self, at: int, clock: int) -> int:
        """The row behind which the pump's clock showed `clock`, from row `at`; never over a hole or a change of the clock."""
        found = at
        while found > 0 and not self.wall[found] and self._ahead(found, clock) and not self.wall[found - 1]:
            found -= 1
        shown = self.ms[found]
        for row in range(found + 1, len(self.ms)):
            time = self.ms[row]
            if self.wall[row]:
                break
            if time is None or self.bolus[row]:
                continue
            if (shown is not None and time < shown - _STEP_MS) or time > clock:
                break
            found, shown = row, time
        return found

    def _ahead(self, row: int, clock: int) -> bool:
        time = self.ms[row]
        return time is not None and clock < time <= clock + _DOWNLOAD_MS


# ---------------------------------------------------------------------------------------------------------------------
# The daily totals as a check of what was decoded


class Check(NamedTuple):
    """What the pump says it gave on a day, and the sum of what its records tell, in U; `what` is bolus or basal."""

    day: date
    what: str
    told: float
    summed: float


def cross_check(events: pa.Table) -> list[Check]:
    """Daily totals (6d, 6e) beside the sum of that day, for the days that the log covers whole, without a hole or a clock change.

    Boluses on every model; basal only where the pump writes its profile starts (7b, from x23 on). In order of days.
    """
    days = _Days()
    for event in events.select(
        ["kind", "pump_time", "new_time", "rate_dose_h", "dose", "duration_s", "proves", "stops_delivery", "native_code", "detail"]
    ).to_pylist():
        days.take(event)
    return days.checks()


def _midnight_after(day: date) -> datetime:
    return datetime.combine(day + timedelta(days=1), datetime.min.time())


class _Days:
    """Sums bolus and basal by printed day."""

    def __init__(self) -> None:
        self.told: list[tuple[date, float, float]] = []
        self.sums: dict[tuple[date, str], float] = defaultdict(float)
        self.broken: set[tuple[date, str]] = set()
        self.now: datetime | None = None
        self.scheduled: float | None = None
        self.temp: tuple[float | None, datetime] | None = None
        self.runs: bool | None = None
        self.halted = False
        self.torn = True

    def take(self, event: Says) -> None:
        kind, time, code = event["kind"], event["pump_time"], event["native_code"]
        if kind in HOLES or (kind == Kind.CLOCK_CHANGE and time is None):
            self._tear()
        elif code in ("6d", "6e"):
            detail = json.loads(event["detail"])
            day = date.fromisoformat(detail["date"])
            self.told.append((day, detail["bolus_u"], detail["basal_u"]))
            if self.now and self.now.date() == day:
                self._to(_midnight_after(day))
        elif kind == Kind.BOLUS_DELIVERED:
            self._bolus(time, event["dose"], timedelta(seconds=event["duration_s"] or 0))
            if self.halted and event["proves"]:
                self.runs, self.halted = True, False
        elif time is not None:
            self._to(time)
            self._state(kind, code, event)

    def _state(self, kind: str, code: str, event: Says) -> None:
        if kind == Kind.CLOCK_CHANGE:
            self._tear()
            self._to(event["new_time"])
        elif code == "7b":
            self.scheduled = event["rate_dose_h"]
            if self.halted or self.runs is None:
                self.runs, self.halted = bool(self.scheduled), not self.scheduled
        elif code == "33":
            detail = json.loads(event["detail"])
            lasts = detail.get("duration_s", 0)
            self.temp = (event["rate_dose_h"], event["pump_time"] + timedelta(seconds=lasts)) if lasts else None
        elif kind in (Kind.DELIVERY_START, Kind.DELIVERY_STOP):
            self.runs, self.halted = kind == Kind.DELIVERY_START, False
        elif kind == Kind.RESERVOIR_CHANGE or event["stops_delivery"]:
            self.runs, self.halted = False, True

    def _tear(self) -> None:
        """What comes next is another log or another clock: the days on both sides are not whole."""
        if self.now:
            self._break(self.now.date())
        self.now, self.scheduled, self.temp, self.runs, self.torn = None, None, None, None, True

    def _break(self, day: date) -> None:
        self.broken |= {(day, "bolus"), (day, "basal")}

    def _to(self, time: datetime) -> None:
        if self.torn:
            self._break(time.date())
            self.torn = False
        while self.now is not None and self.now < time:
            midnight = _midnight_after(self.now.date())
            until = min(time, midnight, self.temp[1] if self.temp and self.temp[1] > self.now else time)
            if self.temp and self.temp[1] <= self.now:
                self.temp = None
                continue
            rate = self._rate()
            if rate is None:
                self.broken.add((self.now.date(), "basal"))
            else:
                self.sums[self.now.date(), "basal"] += rate * (until - self.now).total_seconds() / 3600
            self.now = until
        self.now = max(self.now or time, time)

    def _rate(self) -> float | None:
        """What basal gives now. A share of the profile is not known: the pump tells no profile start while it lasts."""
        if self.runs is None:
            return None
        if not self.runs:
            return 0.0
        if self.temp:
            return self.temp[0]
        return self.scheduled

    def _bolus(self, start: datetime, dose: float, lasts: timedelta) -> None:
        """A square bolus over midnight belongs to both days."""
        midnight = _midnight_after(start.date())
        today = 1.0 if start + lasts <= midnight else (midnight - start) / lasts
        self.sums[start.date(), "bolus"] += dose * today
        self.sums[midnight.date(), "bolus"] += dose * (1 - today)

    def checks(self) -> list[Check]:
        """Told and summed, for whole days."""
        told = [(day, what, amount) for day, bolus, basal in self.told for what, amount in (("basal", basal), ("bolus", bolus))]
        return [Check(day, what, amount, self.sums[day, what]) for day, what, amount in sorted(set(told)) if (day, what) not in self.broken]


# ---------------------------------------------------------------------------------------------------------------------
# The CareLink stick (§3.1)

_PRODUCT, _STATS, _SIGNAL, _STATUS = "product info", "interface statistics", "signal strength", "link status"
_STICK_READS: Mapping[str, bytes] = {_PRODUCT: b"\x04\0\0", _STATS: b"\x05\0\0", _SIGNAL: b"\x06\0\0", _STATUS: b"\x03\0\0"}
"""All that the stick is asked, `read radio` apart."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A request that only reads: its parameters (None: a page number), the bytes that go with it, how often and how long it is tried."""

    name: str
    parameters: bytes | None = b""
    button: int = 0
    retries: int = 2
    pages: int = 1
    tries: int = 3
    polls: int = 25


_POWER, _MODEL, _CLOCK_READ, _BATTERY, _COUNT, _PAGE = 0x5D, 0x8D, 0x70, 0x72, 0x9D, 0x80
_PUMP_READS: Mapping[int, _Read] = {
    _POWER: _Read("radio on for 10 minutes", b"\x01\x0a", button=0x55, retries=0, pages=0, tries=1, polls=120),
    _MODEL: _Read("model"),
    _CLOCK_READ: _Read("clock"),
    _BATTERY: _Read("battery", tries=2),
    _COUNT: _Read("number of pages"),
    _PAGE: _Read("history page", None, pages=2, tries=5),
}
"""The whole of what a pump is ever asked. Nothing else can be built: no setting, no bolus, no clock."""

_LAST_PAGE = 36
_MAX_BLOCKS = 40
_PAUSE_S = 0.1
_STICK_S = 1.5
_STICK_TRIES = 3
_MAX_RETRIES = 80
_MAX_TIME = timedelta(hours=1)
_WEAK = 50
_STICK_BLOCK = 64

_CRC8 = [0] * 256
for _value in range(256):
    _crc = _value
    for _ in range(8):
        _crc = (_crc << 1 ^ 0x9B) & 0xFF if _crc & 0x80 else _crc << 1
    _CRC8[_value] = _crc


def crc8(data: bytes) -> int:
    """CRC-8 of the stick: polynomial 0x9B, from 0, highest bit first (§3.1)."""
    crc = 0
    for byte in data:
        crc = _CRC8[crc ^ byte]
    return crc


def request(serial: str, code: int, page: int = 0) -> bytes:
    """The frame that asks the pump with this serial number. Raises InputError for anything that is not on the list of reading requests."""
    read = _PUMP_READS.get(code)
    if read is None or not re.fullmatch(r"\d{6}", serial) or not 0 <= page <= _LAST_PAGE:
        raise InputError(f"Request {code:02x} is not one that only reads.", do="Pumps are read here, never programmed.", code="not_a_read")
    parameters = bytes([page]) if read.parameters is None else read.parameters
    head = b"\x01\0\xa7\x01" + bytes.fromhex(serial)
    head += bytes([0x80 | len(parameters) >> 8, len(parameters) & 0xFF, read.button, read.retries, read.pages, 0, code])
    return head + bytes([crc8(head)]) + parameters + bytes([crc8(parameters)])


def _fetch(waiting: int) -> bytes:
    """The request that reads so many bytes from the radio's buffer."""
    head = b"\x0c\0" + waiting.to_bytes(2)
    return head + bytes([crc8(head)])


def _missing(size: int) -> Callable[[bytes], int]:
    """How much of a reply is still to come; a refusal is a block of its own, whatever was asked."""
    return lambda got: (_STICK_BLOCK if got[:2] == b"\x01\x66" else size) - len(got)


HELLO = Ask(data=_STICK_READS[_PRODUCT], missing=_missing(_STICK_BLOCK), timeout_s=_STICK_S, what="looking for a CareLink stick")


def is_hello(reply: bytes) -> bool:
    """Whether an answer to HELLO is that of a CareLink stick."""
    return len(reply) == _STICK_BLOCK and reply[:2] == b"\x01\x55" and reply[9:16] == b"ComLink"


def _block(reply: bytes, waiting: int, serial: str) -> tuple[bytes, bool, str]:
    """(data, whether it is the last, why it cannot be used) of a `read radio` reply."""
    if len(reply) != waiting or waiting < 14 or reply[0] != 2:
        return b"", False, "a block came cut short"
    if reply[12] != crc8(reply[:12]) or reply[-1] != crc8(reply[13:-1]) or len(reply) != 14 + ((reply[5] & 0x7F) << 8 | reply[6]):
        return b"", False, "a block came damaged"
    if reply[9:12].hex() != serial:
        return b"", False, "another pump answered"
    return reply[13:-1], bool(reply[5] & 0x80), ""


_T = TypeVar("_T")
_Talk = Generator[Step, Reply | None, _T]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a pump request gave: data, why it is not what was asked ("": it is), and when it was sent and received."""

    data: bytes
    why: str
    sent: datetime
    received: datetime


class _Stick:
    """Talks to one pump through the stick; counts what had to be asked again."""

    def __init__(self, pump_id: str) -> None:
        self.pump_id = pump_id
        self.serial = pump_id.partition(":")[2]
        self.done, self.total = 0, 0
        self.retries = 0
        self.heard = False
        self.unclean = True
        self.since: datetime | None = None

    def ask(self, data: bytes, size: int, what: str, timeout_s: float = _STICK_S) -> _Talk[Reply]:
        reply = yield Ask(data=data, missing=_missing(size), timeout_s=timeout_s, what=what, done=self.done, total=self.total)
        assert reply is not None
        self.since = self.since or reply.sent
        if reply.received - self.since > _MAX_TIME:
            raise LinkError(
                f"Reading {masked(self.pump_id)} takes too long.",
                why="So much had to be asked again that an hour went by.",
                do="Bring pump and stick closer together and run this again; what came so far is kept.",
                code="too_slow",
            )
        return reply

    def again(self, what: str, why: str) -> _Talk[None]:
        """Notes that something is asked again. Raises LinkError when that was needed too often."""
        self.retries += 1
        if self.retries > _MAX_RETRIES:
            raise LinkError(
                f"The radio link to {masked(self.pump_id)} is too bad.",
                why=f"{self.retries} requests failed, the last ({what}) because {why}.",
                do="Bring pump and stick closer together, away from other radios, and run this again; what came so far is kept.",
                code="too_noisy",
            )
        yield Note(f"{what}: {why}, asked again")

    def block(self, data: bytes, what: str) -> _Talk[Reply | None]:
        """A 64-byte reply of the stick to what it acknowledged, None where it did not. Silence is asked again, and so is a NAK."""
        for left in reversed(range(_STICK_TRIES)):
            reply = yield from self.ask(data, _STICK_BLOCK, what)
            if len(reply.data) == _STICK_BLOCK and reply.data[:2] == b"\x01\x55":
                return reply
            if left:
                refused = len(reply.data) > 2 and reply.data[1] == 0x66
                why = f"the stick refused it (error {reply.data[2]})" if refused else "the stick did not answer"
                yield from self.again(what, why)
        return None

    def waiting(self, polls: int, what: str) -> _Talk[int]:
        """How many bytes wait in the radio's buffer, 0 if none came while it was asked `polls` times."""
        for left in reversed(range(polls)):
            reply = yield from self.ask(_STICK_READS[_STATUS], _STICK_BLOCK, what)
            status = reply.data
            if len(status) == _STICK_BLOCK and status[:3] == b"\x01\x55\0" and status[5] & 1 and (size := int.from_bytes(status[6:8])):
                return size
            if left:
                yield from self.ask(b"", 1, what, _PAUSE_S)
        return 0

    def collect(self, polls: int, what: str) -> _Talk[tuple[bytes, str, datetime | None]]:
        """The data of one answer, block by block; why it is not whole; when its last block came."""
        data, came = b"", None
        for _ in range(_MAX_BLOCKS):
            size = yield from self.waiting(polls, what)
            if not size:
                return data, "the rest did not come" if data else "nothing came", came
            reply = yield from self.ask(_fetch(size), size, what, _STICK_S + size / 400)
            part, last, why = _block(reply.data, size, self.serial)
            data, came = data + part, reply.received
            if why or last:
                return data, why, came
        return data, "it did not end", came

    def drain(self, what: str) -> _Talk[None]:
        """Takes from the stick what is left of an answer that failed, so that it is not taken for the next."""
        for _ in range(_MAX_BLOCKS):
            size = yield from self.waiting(1, what)
            if not size:
                break
            yield from self.ask(_fetch(size), size, what, _STICK_S + size / 400)
        self.unclean = False

    def pump(self, code: int, page: int = 0, check: Callable[[bytes], str] = lambda _: "") -> _Talk[_Answer | None]:
        """What the pump answers, None if it does not at all. An answer that stays bad is given as it last came, with why."""
        read = _PUMP_READS[code]
        what = read.name if read.parameters is not None else f"{read.name} {page}"
        best: _Answer | None = None
        for left in reversed(range(read.tries)):
            if self.unclean:
                yield from self.drain(what)
            sent = yield from self.block(request(self.serial, code, page), what)
            data, why, came = b"", "the stick did not take it", None
            if sent:
                data, why, came = yield from self.collect(read.polls, what)
                why = why or check(data)
            if sent and came and data:
                best = _Answer(data, why, sent.sent, came)
                self.heard = True
            if not why:
                return best
            self.unclean = True
            if left:
                yield from self.again(what, why)
        return best


# ---------------------------------------------------------------------------------------------------------------------
# download


class _Known:
    """What earlier downloads brought: pages behind which all is known, and pages of which a dump tells how far it got."""

    def __init__(self, pump_id: str, heads: Iterable[CaptureHead]) -> None:
        self.hashes: set[str] = set()
        self.complete: set[str] = set()
        self._dumps: dict[str, dict[int, str]] = defaultdict(dict)
        ended: set[str] = set()
        bad: dict[str, set[int]] = defaultdict(set)
        for head in sorted((one for one in heads if one.pump_id == pump_id and one.family == FAMILY), key=lambda one: one.sha256):
            self.hashes.add(head.data_sha256)
            if match := _PART.fullmatch(head.part or ""):
                pages = bad[match[2]] if match[3] or head.size != PAGE_SIZE else None
                if pages is not None:
                    pages.add(int(match[1]))
                else:
                    self._dumps[match[2]][int(match[1])] = head.data_sha256
            elif (head.part or "").startswith("end;dump="):
                ended.add((head.part or "")[9:])
        self._at: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for token, pages_of in self._dumps.items():
            for number, sha in pages_of.items():
                self._at[sha].append((token, number))
                if token in ended and self._run_end(token, number) == max({*pages_of, *bad[token]}):
                    self.complete.add(sha)

    def _run_end(self, token: str, number: int) -> int:
        while number + 1 in self._dumps[token]:
            number += 1
        return number

    def ahead(self, sha: str) -> tuple[int, str] | None:
        """How many pages further an earlier dump got without a break from this page, and the last page it got there."""
        found = [
            (end - number, self._dumps[token][end]) for token, number in self._at[sha] if (end := self._run_end(token, number)) > number + 1
        ]
        return max(found, default=None)


@dataclass(frozen=True, slots=True)
class _Given:
    """What is known beforehand of a dialogue that is replayed: it tells the time of nobody."""

    model: str | None
    token: str
    anchor: Anchor | None


def download(pump_id: str, known: Iterable[CaptureHead], *, model: str | None = None) -> Dialogue:
    """Reads what is not known yet, newest page first, and ends with the clock (docs/pump-formats.md §3.1); it tells its model by itself.

    Nothing is ever set.

    Each page comes with the anchor of the start; the empty capture `end;dump=TOKEN` with that of the end says that nothing older is
    missing. Stops at a page that is known and behind which all is known; goes on where a broken download stopped. A page that
    stays bad is given as it came. Raises InputError (serial), LinkError (no_stick, no_pump, weak_signal, lost_pump, too_noisy,
    too_slow), PumpError (wrong_model, no_clock).
    """
    if not re.fullmatch(r"paradigm:\d{6}", pump_id):
        raise InputError("A Paradigm is called by the six digits on its back.", do="Name it as paradigm:123456.", code="bad_pump")
    return _download(pump_id, _Known(pump_id, known), None)


def _download(pump_id: str, known: _Known, given: _Given | None) -> Dialogue:
    stick = _Stick(pump_id)
    yield from _greet(stick)
    model = yield from _model(stick, given)
    clock: tuple[Anchor, float] | None = None
    if given is None:
        clock = yield from _read_clock(stick)
        if clock is None:
            raise PumpError(
                f"{masked(pump_id)} does not tell its clock.",
                why="Without it nothing it recorded has a time.",
                do="Run this again, closer to the pump.",
                code="no_clock",
            )
        battery = yield from _battery(stick)
        anchor: Anchor | None = clock[0]
        token = hashlib.sha256(f"{pump_id}\n{clock[0]}".encode()).hexdigest()[:16]
    else:
        battery, anchor, token = None, given.anchor, given.token
    new, whole = yield from _pages(stick, known, Capture(data=b"", family=FAMILY, pump_id=pump_id, model=model, anchor=anchor), token)
    ended = (yield from _read_clock(stick)) if given is None else None
    if ended:
        yield Got(Capture(data=b"", family=FAMILY, pump_id=pump_id, model=model, part=f"end;dump={token}", anchor=ended[0]))
    return Summary(
        pump_id=pump_id,
        model=model,
        new_parts=new,
        clock_offset_s=clock[1] if clock else None,
        battery=battery,
        complete=whole and (ended is not None or given is not None),
    )


def _greet(stick: _Stick) -> _Talk[None]:
    reply = yield from stick.block(_STICK_READS[_PRODUCT], HELLO.what)
    if reply is None or not is_hello(reply.data):
        raise LinkError(
            "No CareLink stick answers.",
            why="Nothing is plugged in there, or another device is.",
            do="Plug the stick in, wait until its light is on, and run this again.",
            code="no_stick",
        )
    yield from stick.block(_STICK_READS[_STATS], _STATS)
    yield from stick.pump(_POWER)


def _model(stick: _Stick, given: _Given | None) -> _Talk[str]:
    answer = yield from stick.pump(_MODEL, check=lambda data: "" if data and len(data) > data[0] else "the answer is too short")
    if answer is None or answer.why:
        if given and given.model:
            return given.model
        if given:
            raise _no_model()
        raise (yield from _unheard(stick))
    text = answer.data[1 : 1 + answer.data[0]].decode("ascii", "replace").strip("\0 ")
    if layout_of(text) is None:
        raise PumpError(
            f"{masked(stick.pump_id)} says it is a model {text!r}.",
            why="That is no Paradigm whose pages are known here.",
            do="Check that the serial number is that of the pump at hand.",
            code="wrong_model",
        )
    return text


def _unheard(stick: _Stick) -> _Talk[LinkError]:
    """What to say when the pump does not answer: a weak signal, or none."""
    signal = yield from stick.block(_STICK_READS[_SIGNAL], _SIGNAL)
    if stick.heard and signal and signal.data[3] < _WEAK:
        return LinkError(
            f"The signal of {masked(stick.pump_id)} is too weak: {signal.data[3]} of 255.",
            why=f"About {_WEAK} is needed.",
            do="Put the pump within a hand's breadth of the stick and run this again.",
            code="weak_signal",
        )
    return LinkError(
        f"The stick hears nothing of {masked(stick.pump_id)}.",
        why="The pump is out of reach, its battery is empty, or this is not its serial number.",
        do="Put the pump within a hand's breadth of the stick, check the number on its back, and run this again.",
        code="no_pump",
    )


def _read_clock(stick: _Stick) -> _Talk[tuple[Anchor, float] | None]:
    """The pump's clock and the host's, read in the same breath; and the pump's minus the host's in seconds."""
    answer = yield from stick.pump(_CLOCK_READ, check=lambda data: "" if _clock_of(data) else "that is no time")
    if answer is None or answer.why or not (clock := _clock_of(answer.data)):
        return None
    trip = answer.received - answer.sent
    utc = (answer.sent + trip / 2).astimezone(UTC)
    utc = utc.replace(microsecond=utc.microsecond // 1000 * 1000)
    anchor = Anchor(pump_clock=clock, utc=utc, round_trip_ms=round(trip.total_seconds() * 1000))
    return anchor, (clock - utc.replace(tzinfo=None)).total_seconds()


def _clock_of(data: bytes) -> datetime | None:
    if len(data) < 7:
        return None
    try:
        return datetime(data[3] << 8 | data[4], data[5], data[6], data[0], data[1], data[2])  # noqa: DTZ001
    except ValueError:
        return None


def _battery(stick: _Stick) -> _Talk[str | None]:
    """Its voltage, in 1/100 V behind a status byte that is 0 unless the battery is low."""
    answer = yield from stick.pump(_BATTERY)
    if answer is None or answer.why or len(answer.data) < 3:
        return None
    return f"{(answer.data[1] << 8 | answer.data[2]) / 100:.2f} V" + (" (low)" if answer.data[0] else "")


def _pages(stick: _Stick, known: _Known, blank: Capture, token: str) -> _Talk[tuple[int, bool]]:
    """Gives the pages, newest first: how many were new, and whether none stayed bad.

    A page that comes twice has moved up by one, for another was begun meanwhile; or it is an old answer, so it is asked again.
    """
    answer = yield from stick.pump(_COUNT, check=lambda data: "" if len(data) >= 4 else "the answer is too short")
    count = min(int.from_bytes(answer.data[:4]), _LAST_PAGE) if answer and not answer.why else _LAST_PAGE
    new, whole, number = 0, True, 0
    before, start_before = b"", ""
    jump: tuple[int, int, str] | None = None
    may_jump = True
    while number <= count:
        stick.done, stick.total = number, count + 1
        page = yield from stick.pump(_PAGE, number, check=_page_answer)
        if page and page.data == before and number:
            stick.unclean = True
            yield Note(f"history page {number}: the same as the page before it, asked again")
            page = yield from stick.pump(_PAGE, number, check=_page_answer)
        if page is None:
            raise LinkError(
                f"{masked(stick.pump_id)} went silent at history page {number}.",
                why="It is out of reach, or its radio time is over.",
                do="Bring it closer and run this again; it goes on where it stopped.",
                code="lost_pump",
            )
        if len(page.data) <= 2 and not page.why:
            break
        sha = hashlib.sha256(page.data).hexdigest()
        if jump and sha != jump[2]:
            yield Note(f"history page {number}: the pages have moved, reading them one by one")
            number, jump, may_jump = jump[1], None, False
            continue
        jump = None
        part = f"page={number};dump={token}{';bad' if page.why else ''}"
        yield Got(replace(blank, data=page.data, part=part))
        new += sha not in known.hashes
        if page.why:
            whole = False
            yield Note(f"history page {number}: {page.why}; kept as it came")
        elif start := _start_of(page.data, blank.model):
            if sha in known.complete:
                break
            count = min(count + (start == start_before), _LAST_PAGE)
            start_before = start
            if may_jump and (ahead := known.ahead(sha)) and number + ahead[0] <= count:
                jump = (number + ahead[0], number + 1, ahead[1])
        before = page.data
        number = jump[0] if jump else number + 1
    stick.done = stick.total = max(stick.total, 1)
    return new, whole


def _page_answer(data: bytes) -> str:
    """Why an answer is neither a page nor the byte or two that a pump gives for a page that it does not have."""
    return "" if 1 <= len(data) <= 2 else _whole(data)


def _start_of(page: bytes, model: str | None) -> str:
    """What makes a page itself; "" for one without a timed record, which is blank again and again."""
    records = decode(Capture(data=page, family=FAMILY, pump_id=FAMILY, model=model)).records
    return str(records.column("page")[0]) if records.num_rows else ""


# ---------------------------------------------------------------------------------------------------------------------
# Files: pages, and recorded dialogues

_GZIP = b"\x1f\x8b"
_MAX_UNPACKED = 1 << 28


def _unpacked(data: bytes) -> bytes:
    """A .gz file as it was before; anything else as it is. Raises InputError for one that is damaged."""
    if not data.startswith(_GZIP):
        return data
    try:
        return zlib.decompressobj(wbits=31).decompress(data, _MAX_UNPACKED)
    except zlib.error as error:
        raise InputError("A .gz file cannot be unpacked.", why=f"{error}.", do="Copy it again from where it came.", code="gzip") from error


def _is_transcript(data: bytes) -> bool:
    line = data.split(b"\n", 1)[0]
    return b"host_to_stick" in line or b"stick_to_host" in line


def recognise(name: str, data: bytes) -> bool:
    """Whether a file is a history page (by its checksum, or by size and name), or a recorded dialogue with a stick."""
    if len(data) == PAGE_SIZE and re.search(r"page\D*\d", name, re.IGNORECASE):
        return True
    try:
        return not _whole(data) or _is_transcript(_unpacked(data))
    except InputError:
        return False


def read_files(
    files: Sequence[tuple[str, bytes]], *, pump_id: str | None = None, model: str | None = None, anchor: Anchor | None = None
) -> list[Capture]:
    """The captures of history pages and recorded dialogues that were given together: one dump.

    The last number in a page's file name is its page number, 0 the newest. A recorded dialogue is answered by request and read as a
    pump is. Raises InputError where the model is not told, or a name tells no number, or two the same.
    """
    token = hashlib.sha256(repr(sorted(hashlib.sha256(data).hexdigest() for _, data in files)).encode()).hexdigest()[:16]
    unpacked = [(name, _unpacked(data)) for name, data in files]
    recorded = [data for _, data in unpacked if _is_transcript(data)]
    pages = [(name, data) for name, data in unpacked if not _is_transcript(data)]
    captures: list[Capture] = []
    if recorded:
        captures += _replayed(recorded, pump_id, _Given(model, token if not pages else f"{token}-dialogue", anchor))
    if pages and layout_of(model) is None:
        raise _no_model()
    numbers: dict[int, str] = {}
    for name, data in pages:
        found = re.findall(r"\d+", re.split(r"[/\\]", name)[-1].rpartition(".")[0] or name)
        if not found or len(found[-1]) > 6:
            raise InputError(
                f"{name} tells no page number.", do="Name history pages like page-0.data, 0 being the newest.", code="no_number"
            )
        number = int(found[-1])
        if number in numbers:
            raise InputError(f"{numbers[number]} and {name} are both page {number}.", do="Load each download by itself.", code="two_pages")
        numbers[number] = name
        captures.append(
            Capture(
                data=data,
                family=FAMILY,
                pump_id=pump_id or f"{FAMILY}:unknown",
                model=model,
                part=f"page={number};dump={token}",
                anchor=anchor,
            )
        )
    return captures


def _no_model() -> InputError:
    return InputError(
        "The model of this Paradigm is not told.",
        why="It decides how long a record is: with a wrong one the pages read as something else.",
        do="Say it with --model, as it stands on the pump's back (522, 723).",
        code="model",
    )


class TranscriptLink:
    """A recorded dialogue that answers by request, not by position.

    What the pump was asked is looked for from where the recording stands, and from its beginning again; what the stick says on the
    way to the answer comes in the order it was said. What was never asked gets no answer, as in a time-out.
    """

    def __init__(self, recordings: Iterable[bytes]) -> None:
        """Raises InputError for a line that is not one of such a recording."""
        self._said: list[tuple[bytes, bytes]] = []
        for number, line in enumerate((line for one in recordings for line in one.splitlines() if line.strip()), 1):
            try:
                told = json.loads(line)
                data = bytes.fromhex(told["hex"])
                from_host = {"host_to_stick": True, "stick_to_host": False}[told["dir"]]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise InputError(
                    f"Line {number} of the recorded dialogue cannot be read.", do="Check that the file is whole.", code="transcript"
                ) from error
            if from_host:
                self._said.append((data, b""))
            elif self._said:
                self._said[-1] = self._said[-1][0], self._said[-1][1] + data
        self._at = 0

    def serials(self) -> set[str]:
        """The serial numbers of the pumps that were asked."""
        return {asked[4:7].hex() for asked, _ in self._said if asked[:1] == b"\x01" and len(asked) >= 16}

    def exchange(self, ask: Ask) -> Reply:
        """Answers with the bytes alone: a recording knows no time."""
        never = datetime.fromtimestamp(0, UTC)
        return Reply(data=self._answer(ask.data), sent=never, received=never)

    def _answer(self, asked: bytes) -> bytes:
        if asked[:1] in (b"\x03", b"\x0c"):
            places: Iterable[int] = self._until_next_request()
        else:
            places = [*range(self._at, len(self._said)), *range(self._at)]
        for place in places:
            if self._said[place][0] == asked:
                self._at = place + 1
                return self._said[place][1]
        return b""

    def _until_next_request(self) -> Iterable[int]:
        for place in range(self._at, len(self._said)):
            if self._said[place][0][:1] == b"\x01":
                return
            yield place


def _replayed(recordings: list[bytes], pump_id: str | None, given: _Given) -> list[Capture]:
    """The pages of a recorded dialogue. Raises InputError where it is that of another pump, or of several, or tells no model."""
    link = TranscriptLink(recordings)
    serials = sorted(link.serials())
    if len(serials) != 1 or (pump_id and pump_id.partition(":")[2] not in (serials[0], "unknown")):
        raise InputError(
            "The recorded dialogue is not that of the one pump it is said to be of.",
            why=f"It asks {', '.join(masked(f'{FAMILY}:{one}') for one in serials) or 'no pump'}.",
            do="Leave --pump out, or load the dialogues of each pump by themselves.",
            code="wrong_pump",
        )
    captures: list[Capture] = []
    try:
        dialogue.run(_download(f"{FAMILY}:{serials[0]}", _Known("", ()), given), link.exchange, captures.append)
    except LinkError as error:
        if not captures:
            raise InputError(
                "The recorded dialogue gives no page.", why=f"{error.what} {error.why}", do="Check that it is whole.", code="transcript"
            ) from error
    return captures
