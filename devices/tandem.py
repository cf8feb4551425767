"""Tandem t:slim X2 event log (docs/pump-formats.md §7): records of 26 bytes, by themselves or in Bluetooth stream messages.

    record   type u16 (source << 12 | event) · u32 seconds since 2008-01-01, pump local time · u32 sequence number · four 32-bit words
    message  81 · transaction · cargo length · count · stream · count x record, newest first · CRC-16 CCITT (1021, FFFF), low byte first

A record is written in either byte order: big-endian as the maker's cloud hands it out, little-endian as the pump sends it over
Bluetooth. Each word is turned as a whole, so one table of fields, named by their big-endian offset, reads both.

A capture is a file or an MQTT batch: records or messages one after another, or the same as hex or base64 text, in lines or wrapped.
A message proves itself by its CRC. A bare record has none: it must look like one, and the looks of all of a capture tell its byte order.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from devices import sequence
from devices.contract import (
    ANCHORS,
    FAULTS,
    HOLES,
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
    fault_id,
    parted,
    table,
)
from devices.errors import InputError

FAMILY = "tandem"

SHEET = Sheet(
    family=FAMILY,
    title="Tandem t:slim X2 event log",
    models="t:slim X2 (BLE form, little-endian: verified on captured records; cloud form, big-endian: layout only)",
    transport="files and MQTT batches: records or BLE stream messages, raw, hex or base64",
    source="docs/pump-formats.md §7",
    identity="(pump, sequence number); the numbers leave no holes",
    elapsed="the record's seconds, with the clock changes that the log tells removed; no elapsed time of its own",
    gaps_visible=True,
    prime_targets=True,
    demands=False,
    limits=False,
    proof="none: a rate or a bolus never proves that basal delivers",
    tells={
        "starts and stops": "suspended (user, alarm, malfunction, algorithm) and resumed; the rate of the resume from the same second",
        "rates": "every change and every commanded rate of the basal, in U/h",
        "boluses": "requested, activated, completed: amounts in U, duration from activation to completion, extended ones too",
        "set-ups": "cartridge filled, tubing filled, cannula filled (a new site), each with how it ended",
        "alarms": "alarms, alerts, malfunctions, raised and cleared",
        "clock": "time and date changes with old and new value",
        "totals": "basal since midnight; the day's is the last before the new day",
    },
    does_not_tell=(
        "UTC or a time zone: seconds are the pump's local clock",
        "whether a bare record was damaged: only BLE messages carry a checksum",
        "a programmed amount of a fill",
    ),
    unknown=(
        "no sample of the cloud's big-endian log is public beyond single records, some of them composed",
        "no sample of a tubing or cannula fill was at hand; shut down (53) and start-up (99) are inferred",
        "a bare record with a source above 1, or an event above 1023, was never seen: it is quarantined",
        "279 with source 0 (suspended) and a commanded rate above zero was never seen: it would be read as rate 0",
    ),
)

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_SIZE = 26
_EPOCH_S = 1_199_145_600
_LITTLE = np.dtype([("type", "<u2"), ("seconds", "<u4"), ("seq", "<u4"), ("words", "<u4", 4)])
_BIG = _LITTLE.newbyteorder(">")
_NONE = -(2**63)

# --- what the events hold ------------------------------------------------------------------------------------------------------

AMOUNT, SIGNED = "amount", "signed"
"""Types of 32-bit floats: one that cannot be negative, and one that can. The others are unsigned integers, by their bytes."""
_FLOAT_MAX = 1e4
"""Above any rate, volume, amount or current of this pump."""

_DAY_MS = 86_400_000
_LAST_DAY = 2**32 // 86_400


_Place = tuple[int, int | str]
"""Big-endian offset in the data, and type."""


@dataclass(frozen=True, slots=True)
class _Event:
    """An event: what it is, its fields as name → (big-endian offset, type), and the most that a field may be."""

    kind: Kind
    fields: Mapping[str, _Place] = field(default_factory=dict)
    most: Mapping[str, int] = field(default_factory=dict)
    source: Source | None = None
    target: Target | None = None
    at: At | None = None


_BOLUS_DONE: Mapping[str, _Place] = {
    "bolus_id": (0, 2),
    "completion": (2, 2),
    "iob_u": (4, SIGNED),
    "delivered_u": (8, AMOUNT),
    "requested_u": (12, AMOUNT),
}
_BOLUS_BEGUN: Mapping[str, _Place] = {"bolus_id": (2, 2), "iob_u": (4, SIGNED), "size_u": (8, AMOUNT)}
_FILL: Mapping[str, _Place] = {"size_u": (0, AMOUNT), "completion": (4, 4)}
_FILL_ENDS = {"completion": 3}
_ALARM: Mapping[str, _Place] = {"alarm_id": (0, 4)}

_EVENTS: Mapping[int, _Event] = {
    3: _Event(
        Kind.RATE_CHANGE,
        {"commanded_u_h": (0, AMOUNT), "base_u_h": (4, AMOUNT), "max_u_h": (8, AMOUNT), "change": (13, 1), "profile": (14, 2)},
        source=Source.BASAL,
    ),
    4: _Event(Kind.ALARM_RAISED, {"alert_id": (0, 4)}),
    5: _Event(Kind.ALARM_RAISED, _ALARM),
    6: _Event(Kind.ALARM_RAISED, {"malfunction_id": (0, 4)}),
    11: _Event(Kind.DELIVERY_STOP, {"reason": (5, 1), "reservoir_u": (6, 2)}, source=Source.BASAL),
    12: _Event(Kind.DELIVERY_START, {"reservoir_u": (6, 2)}, source=Source.BASAL),
    13: _Event(
        Kind.CLOCK_CHANGE, {"prior_ms": (0, 4), "after_ms": (4, 4), "rtc_ms": (8, 4)}, {"prior_ms": _DAY_MS - 1, "after_ms": _DAY_MS - 1}
    ),
    14: _Event(
        Kind.CLOCK_CHANGE, {"prior_day": (0, 4), "after_day": (4, 4), "rtc_ms": (8, 4)}, {"prior_day": _LAST_DAY, "after_day": _LAST_DAY}
    ),
    20: _Event(Kind.BOLUS_DELIVERED, _BOLUS_DONE, source=Source.PRIMARY, at=At.END),
    21: _Event(Kind.BOLUS_DELIVERED, _BOLUS_DONE, source=Source.PRIMARY, at=At.END),
    26: _Event(Kind.ALARM_CLEARED, {"alert_id": (0, 4)}),
    28: _Event(Kind.ALARM_CLEARED, _ALARM),
    33: _Event(Kind.RESERVOIR_CHANGE, {"shown_u": (0, 4), "actual_u": (4, AMOUNT)}),
    36: _Event(Kind.DEVICE_LINK, {"current_ma": (0, SIGNED)}),
    37: _Event(Kind.DEVICE_LINK, {"current_ma": (0, SIGNED)}),
    53: _Event(Kind.POWER_OFF),
    55: _Event(Kind.OTHER, _BOLUS_BEGUN),
    59: _Event(Kind.OTHER, _BOLUS_BEGUN),
    60: _Event(Kind.DATA_CORRUPTION, {"block": (0, 4), "reason": (7, 1)}),
    61: _Event(Kind.PRIMING_DONE, _FILL, _FILL_ENDS, target=Target.CANNULA),
    63: _Event(Kind.PRIMING_DONE, {**_FILL, "position": (8, 4)}, _FILL_ENDS, target=Target.TUBING),
    64: _Event(Kind.OTHER, {"bolus_id": (2, 2)}),
    65: _Event(Kind.OTHER, {"bolus_id": (2, 2)}),
    66: _Event(
        Kind.BOLUS_REQUESTED,
        {"bolus_id": (2, 2), "food_u": (4, AMOUNT), "correction_u": (8, SIGNED), "total_u": (12, AMOUNT)},
        source=Source.PRIMARY,
    ),
    81: _Event(
        Kind.DAILY_TOTAL,
        {
            "basal_u": (0, AMOUNT),
            "rate_u_h": (4, AMOUNT),
            "iob_u": (8, SIGNED),
            "battery_mv": (12, 2),
            "battery_percent": (14, 1),
            "charging": (15, 1),
        },
    ),
    90: _Event(Kind.OTHER, {"commanded_u_h": (0, AMOUNT)}),
    99: _Event(Kind.POWER_ON, {"log_entries": (12, 4)}),
    279: _Event(Kind.RATE_CHANGE, {"rate_source": (2, 2), "commanded_mu_h": (6, 2)}, source=Source.BASAL),
    280: _Event(
        Kind.OTHER,
        {
            "bolus_id": (2, 2),
            "status": (1, 1),
            "bolus_source": (7, 1),
            "requested_now_mu": (4, 2),
            "requested_later_mu": (10, 2),
            "delivered_mu": (12, 2),
        },
    ),
}
"""By event id; one that is not here is `other`. A fill must end in a way that is known: its meaning for a set-up rests on it."""

_STOP_REASONS = {0: "user", 1: "alarm", 2: "malfunction"}
_FILL_REASONS = ("aborted", "error", "error", "amount_reached")
_ALARM_CLASSES = {
    2: AlarmClass.OCCLUSION,
    26: AlarmClass.OCCLUSION,
    8: AlarmClass.EMPTY,
    12: AlarmClass.BATTERY,
    3: AlarmClass.POWER,
    14: AlarmClass.CLOCK_LOST,
}
_RESUMED = 1 << 5
_SUSPENDED = 0
_UNIT = "U"
_U_PER_ML = 100

Fields = Mapping[str, npt.NDArray[Any]]
Said = dict[str, Any]


def _ml(units: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.asarray(np.round(units / _U_PER_ML, 8))


def _rate(u_h: npt.NDArray[Any]) -> Said:
    return {"rate_dose_h": u_h, "rate_ml_h": _ml(u_h), "dose_unit": _UNIT}


def _given(units: npt.NDArray[Any]) -> Said:
    return {"dose": units, "volume_ml": _ml(units), "dose_unit": _UNIT}


def _programmed(units: npt.NDArray[Any]) -> Said:
    return {"programmed_dose": units, "programmed_ml": _ml(units), "dose_unit": _UNIT}


def _delivering(f: Fields) -> Said:
    """279: what its source says to be suspended is at rate 0, whatever rate stands beside it."""
    return _rate(np.where(f["rate_source"] == _SUSPENDED, 0.0, f["commanded_mu_h"] / 1000))


def _bolus_delivery(f: Fields) -> Said:
    """280: with status 0 a bolus that is done, else nothing that another record does not tell."""
    done = f["status"] == 0
    given = _given(np.where(done, f["delivered_mu"] / 1000, np.nan))
    asked = _programmed(np.where(done, (f["requested_now_mu"] + f["requested_later_mu"]) / 1000, np.nan))
    words = {"kind": Kind.BOLUS_DELIVERED.value, "source": Source.PRIMARY.value, "at": At.END.value, "dose_unit": _UNIT}
    nothing = {"kind": Kind.OTHER.value}
    said = {name: [word if one else nothing.get(name) for one in done.tolist()] for name, word in words.items()}
    return {**given, **asked, **said}


def _alarm_class(f: Fields) -> list[str]:
    return [_ALARM_CLASSES.get(number, AlarmClass.OTHER).value for number in f["alarm_id"].tolist()]


_SAYS: Mapping[int, Callable[[Fields], Said]] = {
    3: lambda f: _rate(f["commanded_u_h"]),
    4: lambda f: {"alarm_class": AlarmClass.OTHER.value, "stops_delivery": False},
    5: lambda f: {"alarm_class": _alarm_class(f), "stops_delivery": False},
    6: lambda f: {"alarm_class": AlarmClass.MALFUNCTION.value, "stops_delivery": True},
    11: lambda f: {"reason": [_STOP_REASONS.get(number, "unknown") for number in f["reason"].tolist()]},
    13: lambda f: {"reason": "set", "step_ms": f["after_ms"] - f["prior_ms"]},
    14: lambda f: {"reason": "set", "step_ms": (f["after_day"] - f["prior_day"]) * _DAY_MS},
    20: lambda f: {**_given(f["delivered_u"]), **_programmed(f["requested_u"])},
    21: lambda f: {**_given(f["delivered_u"]), **_programmed(f["requested_u"])},
    26: lambda f: {"alarm_class": AlarmClass.OTHER.value},
    28: lambda f: {"alarm_class": _alarm_class(f)},
    61: lambda f: {**_given(f["size_u"]), "reason": [_FILL_REASONS[min(n, 3)] for n in f["completion"].tolist()]},
    63: lambda f: {**_given(f["size_u"]), "reason": [_FILL_REASONS[min(n, 3)] for n in f["completion"].tolist()]},
    66: lambda f: _programmed(f["total_u"]),
    81: lambda f: _given(f["basal_u"]),
    279: _delivering,
    280: _bolus_delivery,
}
"""What the fields of an event become: columns of RECORDS; `step_ms` is how far a clock change moved the clock."""


# --- files and batches ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Cut:
    """A capture cut into records, in its own order, and what lies between them.

    `records` holds them one after another; by record where it stood, the byte of its text or bytes at which a cut before it would be
    (-1: within a message, none), and whether a CRC proves it. `broken`: (number of records before it, where it stood, bytes, code,
    message). `falling`: whether sequence numbers fall where no two records tell. `lines`: whether where it stood is a line's number.
    """

    records: bytearray = field(default_factory=bytearray)
    offsets: list[int] = field(default_factory=list)
    borders: list[int] = field(default_factory=list)
    proved: list[bool] = field(default_factory=list)
    broken: list[tuple[int, int, bytes, str, str]] = field(default_factory=list)
    falling: bool = False
    lines: bool = False

    def keep(self, records: bytes, offsets: Sequence[int], borders: Iterable[int], *, proved: bool) -> None:
        self.records += records
        self.offsets.extend(offsets)
        self.borders.extend(borders)
        self.proved.extend(itertools.repeat(proved, len(offsets)))

    def fail(self, offset: int, raw: bytes, code: str, why: str) -> None:
        self.broken.append((len(self.offsets), offset, raw, code, why))


def _cut(data: bytes) -> _Cut:
    """The records of a capture in any of its forms."""
    cut = _Cut()
    if _is_text(data):
        _cut_text(cut, data)
    else:
        _cut_bytes(cut, data, None)
    return cut


_WHITE = b" \t\r\n"
_PRINTABLE = bytes([*range(0x21, 0x7F), *_WHITE])


def _is_text(data: bytes) -> bool:
    """Text, even if a few of its characters are damaged; records hold too many zeros for that."""
    return len(data.translate(None, _PRINTABLE)) * 20 <= len(data)


def _cut_text(cut: _Cut, data: bytes) -> None:
    """Lines of which most hold whole records or messages are read each for itself, others as one text that was wrapped."""
    lines = [(number, line.strip()) for number, line in enumerate(data.split(b"\n"), 1)]
    read = [(number, line, _from_text(line)) for number, line in lines if line]
    whole = sum(1 for _, _, found in read if found is not None and _is_whole(found))
    if len(read) > 1 and whole * 2 < len(read):
        joined = _from_text(b"".join(line for _, line, _ in read))
        if joined is not None:
            _cut_bytes(cut, joined, None)
            return
    cut.lines = True
    for number, line, found in read:
        if found is None:
            cut.fail(number, line, "line", "the line is neither hex nor base64")
        else:
            _cut_bytes(cut, found, number)


def _from_text(text: bytes) -> bytes | None:
    """The bytes that hex or base64 text stands for; whichever gives whole records, if both can be."""
    readings = []
    for reading in (_from_hex, _from_base64):
        if (found := reading(text)) is not None:
            if _is_whole(found):
                return found
            readings.append(found)
    return readings[0] if readings else None


def _from_hex(text: bytes) -> bytes | None:
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError:
        return None


def _from_base64(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text.translate(bytes.maketrans(b"-_", b"+/"), b" \t\r"), validate=True)
    except binascii.Error:
        return None


def _is_whole(data: bytes) -> bool:
    return len(data) >= _SIZE and (len(data) % _SIZE == 0 or next(_messages(data), None) is not None)


_OPCODE = b"\x81"
_HEAD, _CRC = 5, 2


def _message_end(data: bytes, at: int) -> int | None:
    """Where the message that begins here would end, by its own lengths."""
    if at + _HEAD > len(data) or data[at + 2] != 2 + _SIZE * data[at + 3]:
        return None
    return at + _HEAD + _SIZE * data[at + 3] + _CRC


def _messages(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the messages whose CRC holds begin and end. One may follow broken bytes."""
    at = data.find(_OPCODE)
    while at >= 0:
        end = _message_end(data, at)
        following = at + 1
        if end is not None and end <= len(data) and _crc_holds(data[at:end]):
            yield at, end
            following = end
        at = data.find(_OPCODE, following)


def _crc_holds(message: bytes) -> bool:
    return binascii.crc_hqx(message[:-_CRC], 0xFFFF) == int.from_bytes(message[-_CRC:], "little")


def _cut_bytes(cut: _Cut, data: bytes, line: int | None) -> None:
    """Messages where there is one, else bare records. They stand at their byte, or in their line of a text."""
    done = 0
    for start, end in _messages(data):
        packet = _packet_start(data, start, done)
        _cut_between(cut, data, done, packet, line)
        first = start + _HEAD
        records = data[first : end - _CRC]
        count = len(records) // _SIZE
        stood = range(first, end - _CRC, _SIZE) if line is None else [line] * count
        cut.keep(records, stood, [packet, *itertools.repeat(-1, count - 1)][:count], proved=True)
        cut.falling, done = True, end
    if done or _looks_like_a_message(data):
        _cut_between(cut, data, done, len(data), line)
        return
    size = len(data) - len(data) % _SIZE
    stood = range(0, size, _SIZE)
    cut.keep(data[:size], stood if line is None else [line] * len(stood), stood, proved=False)
    if size < len(data):
        cut.fail(size if line is None else line, data[size:], "truncated", f"{len(data) - size} bytes are no whole record")


def _packet_start(data: bytes, start: int, done: int) -> int:
    """A message may stand behind the two bytes of its Bluetooth packet: none remains, and its transaction."""
    return start - 2 if start - 2 >= done and data[start - 2] == 0 and data[start - 1] == data[start + 1] else start


def _cut_between(cut: _Cut, data: bytes, start: int, end: int, line: int | None) -> None:
    if start < end:
        head = next((at for at in (start, start + 2) if data[at : at + 1] == _OPCODE and _message_end(data, at) is not None), None)
        code, why = ("message", "the bytes are no stream message") if head is None else ("crc", "the CRC of a stream message does not hold")
        cut.fail(start if line is None else line, data[start:end], code, why)


def _looks_like_a_message(data: bytes) -> bool:
    """Whether bytes without a whole message are a damaged one: two of its opcode, its lengths, and its size hold.

    Else the damage would make bare records of it, out of step.
    """
    for at in (0, 2):
        if at + _HEAD > len(data):
            break
        opcode = data[at : at + 1] == _OPCODE
        lengths = _message_end(data, at) is not None and data[at + 3] > 0
        size = len(data) - at in (_HEAD + _SIZE * data[at + 3] + _CRC, _HEAD + data[at + 2])
        if opcode + lengths + (size and len(data) % _SIZE != 0) >= 2:
            return True
    return False


def recognise(name: str, data: bytes) -> bool:
    """Whether these are stream messages whose CRC holds, or whole records of which nine in ten look like ones."""
    cut = _cut(data)
    if any(cut.proved):
        return True
    if cut.broken or not cut.offsets:
        return False
    looks = [_looks(np.frombuffer(cut.records, order)) for order in (_LITTLE, _BIG)]
    return any(np.count_nonzero(look == 3) * 10 >= 9 * len(look) for look in looks)


def read_files(
    files: Sequence[tuple[str, bytes]], *, pump_id: str | None = None, model: str | None = None, anchor: Anchor | None = None
) -> list[Capture]:
    """One capture a file. No record names its pump. Raises InputError without a pump id."""
    if pump_id is None:
        raise InputError("Tandem records do not say which pump they are of.", do=f"Name it: --pump {FAMILY}:SERIAL.", code="no_pump")
    return [Capture(data=data, family=FAMILY, pump_id=pump_id, model=model, anchor=anchor) for _, data in files]


def split(capture: Capture, size: int) -> list[Capture]:
    """The capture as captures of whole records or messages, each of at most `size` bytes, in the form in which they came.

    The anchor of each names the record behind which the clock was read; it says too which reading of a record is the later one.
    Raises InputError where one message is larger, or damaged records would not be read as before.
    """
    if len(capture.data) <= size:
        return [capture]
    if capture.anchor is not None:
        after = next(iter(decode(capture).anchors["after"].to_pylist()), None)
        capture = replace(capture, anchor=replace(capture.anchor, after=after))
    return parted(capture, size, _borders(capture.data), decode)


def _borders(data: bytes) -> list[int]:
    """Where in these bytes records or messages begin before which they may be cut: those between two that can be read."""
    cut = _cut(data)
    _, good, _, _ = _read(cut)
    good[1:] &= good[:-1].copy()
    good[[number for number, *_ in cut.broken if number < len(good)]] = False
    may = [(cut.offsets[row], cut.borders[row]) for row in np.flatnonzero(good).tolist() if cut.borders[row] >= 0]
    if not _is_text(data):
        return [border for _, border in may]
    texts = [(0, data)]
    if cut.lines:
        lines = data.split(b"\n")
        starts = itertools.accumulate((len(line) + 1 for line in lines), initial=0)
        texts = list(zip(starts, lines, strict=False))
    read = {number: _place_in_text(text, start) for number, (start, text) in enumerate(texts, 1) if text.strip()}
    found = [read[stood if cut.lines else 1](border) for stood, border in may]
    return [place for place in found if place is not None]


def _place_in_text(text: bytes, start: int) -> Callable[[int], int | None]:
    """Where the characters of a byte begin in a text, which itself begins at `start`; None for a byte that shares one with another."""
    characters = np.flatnonzero(~np.isin(np.frombuffer(text, np.uint8), list(_WHITE))).tolist()
    is_hex = len(characters) == 2 * len(_from_text(b"".join(text.split())) or b"")
    size, of = (2, 1) if is_hex else (4, 3)
    return lambda byte: None if byte % of else start + characters[byte // of * size]


# --- decode --------------------------------------------------------------------------------------------------------------------

_SEQ_MAX = 2**22
"""Some nine years of records: a bare record with a greater number is damaged."""
_YEAR_2012, _YEAR_2042 = 126_230_400, 1_072_915_200


def _looks(rows: npt.NDArray[Any]) -> Ints:
    """How much each record looks like one, 0..3: its type, its time, its number. This compares byte orders; see `_can_be`."""
    kind, event = rows["type"] < 0x2000, rows["type"] & 0x0FFF
    time = (rows["seconds"] >= _YEAR_2012) & (rows["seconds"] < _YEAR_2042)
    return np.asarray((kind & (event > 0) & (event < 512)).astype(np.int64) + time + (rows["seq"] < _SEQ_MAX))


def _can_be(rows: npt.NDArray[Any]) -> Bools:
    """Whether a record without a CRC can be one: sources 0 and 1 and events up to 500 were seen; a lost clock begins at 2008."""
    event = rows["type"] & 0x0FFF
    return np.asarray((rows["type"] < 0x2000) & (event > 0) & (event < 1024) & (rows["seconds"] < _YEAR_2042) & (rows["seq"] < _SEQ_MAX))


def _read(cut: _Cut) -> tuple[npt.NDArray[Any], Bools, str, str]:
    """The records in their byte order, which of them can be read, and why the others cannot: code and message."""
    proved = np.array(cut.proved, dtype=np.bool_)
    little, big = (np.frombuffer(bytes(cut.records), order) for order in (_LITTLE, _BIG))
    scores = [int(_looks(rows[~proved]).sum()) for rows in (little, big)]
    if proved.any() or scores[0] > scores[1]:
        rows = little
    elif scores[1] > scores[0]:
        rows = big
    else:
        return little, proved, "byte_order", "the records can be read in neither byte order, or in both"
    return rows, proved | _can_be(rows), "record", "the bytes cannot be a record: its type, time or number is out of range"


def decode(capture: Capture) -> Decoded:
    """Records, faults and the anchor of one capture."""
    cut, sha = _cut(capture.data), capture.sha256
    rows, good, code, why = _read(cut)
    for first, last in _runs(~good):
        raw = bytes(cut.records[first * _SIZE : last * _SIZE])
        cut.broken.append((first, cut.offsets[first], raw, code, why))
    here = np.flatnonzero(good)
    records, sound = _records(capture, sha, rows[here], [cut.offsets[i] for i in here.tolist()], _raw(cut, here))
    seqs = rows["seq"][here].astype(np.int64)
    rises = int(np.sign(np.diff(seqs)).sum()) if len(seqs) > 1 else 0
    falling = rises < 0 or (rises == 0 and cut.falling)
    faults = [_lost(broken, here, seqs, falling=falling) for broken in cut.broken]
    for i in np.flatnonzero(~sound).tolist():
        faults.append(
            {
                "offset": cut.offsets[here[i]],
                "code": "value",
                "message": f"record {seqs[i]} of event {int(rows['type'][here[i]]) & 0x0FFF} holds a value that cannot be",
                "seq": int(seqs[i]),
                "hole": True,
                "raw": bytes(cut.records[here[i] * _SIZE : (here[i] + 1) * _SIZE]),
            }
        )
    anchors = []
    if capture.anchor is not None:
        after = capture.anchor.after or _newest(seqs, faults)
        if after is None:
            faults.append({"offset": 0, "code": "anchor", "message": "the clock was read behind no record", "hole": False, "raw": b""})
        else:
            anchors.append(_anchor_row(capture, sha, capture.anchor, after))
    for fault in faults:
        place = f"0:{fault.get('seq')}:{fault.get('after_seq')}:{fault.get('before_seq')}"
        fault |= {"capture": sha, "part": capture.part, "pump_id": capture.pump_id, "log_epoch": 0}
        fault["fault_id"] = fault_id(capture.pump_id, fault["code"], place, fault["raw"])
    faults.sort(key=lambda one: one["offset"])
    return Decoded(records, table(FAULTS, faults), table(ANCHORS, anchors))


def _runs(flags: Bools) -> list[tuple[int, int]]:
    """First and behind-the-last index of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8))).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _lost(broken: tuple[int, int, bytes, str, str], here: Ints, seqs: Ints, *, falling: bool) -> dict[str, Any]:
    """The fault of bytes that gave no record, between the numbers of the readable neighbours in its capture."""
    at, offset, raw, code, why = broken
    split = int(np.searchsorted(here, at))
    sides = [int(seqs[split - 1]) if split > 0 else None, int(seqs[split]) if split < len(seqs) else None]
    if None not in sides and sides[0] != sides[1]:
        sides.sort(key=lambda seq: seq or 0)
    elif falling:
        sides.reverse()
    return {"offset": offset, "code": code, "message": why, "after_seq": sides[0], "before_seq": sides[1], "hole": True, "raw": raw}


def _newest(seqs: Ints, faults: Sequence[Mapping[str, Any]]) -> str | None:
    """The key of the last record of a capture, read or not: behind it the clock was read."""
    if not len(seqs):
        return None
    highest = int(seqs.max())
    beyond = sum(max(1, len(f["raw"]) // _SIZE) for f in faults if f.get("after_seq") == highest and f.get("before_seq") is None)
    return sequence.key_of(0, highest + beyond)


def _anchor_row(capture: Capture, sha: str, anchor: Anchor, after: str) -> dict[str, Any]:
    return {
        "capture": sha,
        "pump_id": capture.pump_id,
        "log_epoch": 0,
        "part": capture.part,
        "after": after,
        "pump_clock": anchor.pump_clock,
        "utc": anchor.utc.astimezone(UTC),
        "round_trip_ms": anchor.round_trip_ms,
    }


def _raw(cut: _Cut, here: Ints) -> pa.Array:
    whole = pa.Array.from_buffers(pa.binary(_SIZE), len(cut.offsets), [None, pa.py_buffer(bytes(cut.records))])
    return (whole if len(here) == len(cut.offsets) else whole.take(pa.array(here))).cast(pa.binary())


def _field(words: npt.NDArray[Any], offset: int, size: int | str) -> npt.NDArray[Any]:
    """A field by its big-endian offset, from words of the machine's order: floats to six decimals, the pump's own precision."""
    word = words[:, offset >> 2]
    if isinstance(size, str):
        shown = np.ascontiguousarray(word).view(np.float32).astype(np.float64)
        return np.asarray(np.round(shown, 6) + 0.0)
    return np.asarray((word.astype(np.int64) >> 8 * (4 - (offset & 3) - size)) & (256**size - 1))


def _possible(event: _Event, fields: Fields) -> Bools:
    """Whether all fields of the records of an event hold what they can hold."""
    checks = [fields[name] <= most for name, most in event.most.items()]
    for name, (_, kind) in event.fields.items():
        if kind == AMOUNT:
            checks.append((fields[name] >= 0) & (fields[name] <= _FLOAT_MAX))
        elif kind == SIGNED:
            checks.append(np.abs(fields[name]) <= _FLOAT_MAX)
    return np.asarray(np.logical_and.reduce(checks)) if checks else np.asarray(np.True_)


def _details(fields: Fields) -> list[str]:
    """JSON of each record's fields, with sorted keys."""
    names = sorted(fields)
    pattern = "{" + ",".join(f'"{name}":%s' for name in names) + "}"
    return [pattern % values for values in zip(*(fields[name].tolist() for name in names), strict=True)]


_AMOUNTS = ("rate_ml_h", "rate_dose_h", "volume_ml", "programmed_ml", "dose", "programmed_dose")
_WORDS = ("source", "reason", "target", "at", "alarm_class", "stops_delivery", "dose_unit")


def _records(capture: Capture, sha: str, rows: npt.NDArray[Any], offsets: list[int], raw: pa.Array) -> tuple[pa.Table, Bools]:
    """RECORDS of readable records; and which of them hold possible values: the others are left out."""
    size = len(rows)
    events = (rows["type"] & 0x0FFF).astype(np.int64)
    words = rows["words"].astype(np.uint32)
    time = (rows["seconds"].astype(np.int64) + _EPOCH_S) * 1000
    step = np.full(size, _NONE, dtype=np.int64)
    amounts = {name: np.full(size, np.nan) for name in _AMOUNTS}
    said: dict[str, npt.NDArray[Any]] = {name: np.full(size, None, dtype=object) for name in _WORDS}
    kind, detail = np.full(size, Kind.OTHER.value, dtype=object), np.full(size, "{}", dtype=object)
    sound = np.ones(size, dtype=np.bool_)
    columns: dict[str, npt.NDArray[Any]] = {**amounts, **said, "kind": kind, "step_ms": step}
    for number in np.unique(events).tolist():
        if (event := _EVENTS.get(number)) is None:
            continue
        mine = np.flatnonzero(events == number)
        fields = {name: _field(words[mine], *place) for name, place in event.fields.items()}
        sound[mine] = _possible(event, fields)
        fixed = {"kind": event.kind, "source": event.source, "target": event.target, "at": event.at}
        values: Said = {name: value.value for name, value in fixed.items() if value is not None}
        if number in _SAYS:
            values |= _SAYS[number](fields)
        for name, value in values.items():
            columns[name][mine] = value
        if fields:
            detail[mine] = _details(fields)
    moved = step != _NONE
    old = np.where(moved, time - step, time)
    seqs = pa.array(rows["seq"].astype(np.int64))
    found: dict[str, pa.Array] = {
        "capture": pa.repeat(pa.scalar(sha), size),
        "part": pa.repeat(pa.scalar(capture.part, pa.string()), size),
        "offset": pa.array(offsets, pa.int64()),
        "pump_id": pa.repeat(pa.scalar(capture.pump_id), size),
        "log_epoch": pa.repeat(pa.scalar(0, pa.int32()), size),
        "record_key": pc.binary_join_element_wise(pa.scalar(sequence.key_of(0, 0)[:-1]), seqs.cast(pa.string()), ""),
        "seq": seqs,
        "contiguous": pa.repeat(pa.scalar(True), size),
        "kind": pa.array(kind, pa.string()),
        "pump_time": pa.array(old).cast(pa.timestamp("ms")),
        "new_time": pa.array(time, mask=~moved).cast(pa.timestamp("ms")),
        "native_code": pa.array(events).cast(pa.string()),
        "detail": pa.array(detail, pa.string()),
        "raw": raw,
        **{name: pa.array(values, from_pandas=True) for name, values in amounts.items()},
        **{name: pa.array(values, RECORDS.field(name).type) for name, values in said.items()},
    }
    whole = pa.table({f.name: found[f.name] if f.name in found else pa.nulls(size, f.type) for f in RECORDS}, schema=RECORDS)
    return (whole if sound.all() else whole.filter(pa.array(sound))), sound


# --- assemble ------------------------------------------------------------------------------------------------------------------


_STEP_BACK_MS = 60_000
"""A record this far before the one it follows shows a clock that went back, or is damaged (docs/semantics.md §3)."""
_NOT_IN_A_HOLE = ("source", "reason", "target", "at", "alarm_class", "stops_delivery", "new_time", *_AMOUNTS, "dose_unit")
_NOT_IN_OTHER = ("source", "at", "dose", "volume_ml", "programmed_dose", "programmed_ml", "dose_unit")


def assemble(pump_id: str, records: pa.Table, faults: pa.Table, anchors: pa.Table) -> Log:
    """The log by its sequence numbers; then what several records tell together, whichever captures they came in.

    A resume takes its rate from the same second, a bolus its duration from its activation; a bolus that a completion tells is
    not told again by its delivery record, nor a day by a sum that a later one has passed. This pump writes down what happens as it
    happens, so a single record whose time fits neither neighbour is a damaged one: a hole.
    """
    log = sequence.assemble(pump_id, records, faults, anchors)
    events = log.events
    if not events.num_rows:
        return log
    found = _told_together(events)
    events = _set(events, "rate_dose_h", {row: rate for row, (rate, _) in found.rates.items()})
    events = _set(events, "rate_ml_h", {row: rate for row, (_, rate) in found.rates.items()})
    events = _set(events, "dose_unit", dict.fromkeys(found.rates, _UNIT))
    events = _set(events, "duration_s", found.durations)
    for rows, kind, without in ((found.again, Kind.OTHER, _NOT_IN_OTHER), (found.damaged, Kind.DATA_CORRUPTION, _NOT_IN_A_HOLE)):
        events = _set(events, "kind", dict.fromkeys(rows, kind.value))
        for name in without:
            events = _set(events, name, dict.fromkeys(rows))
    return replace(log, events=events.combine_chunks())


def _set(events: pa.Table, name: str, values: Mapping[int, Any]) -> pa.Table:
    """The table with other values in some rows of a column."""
    if not values:
        return events
    where = events.schema.get_field_index(name)
    chosen = np.zeros(events.num_rows, dtype=np.bool_)
    rows = sorted(values)
    chosen[rows] = True
    kind = events.schema.field(name).type
    column = pc.replace_with_mask(events.column(name).combine_chunks(), pa.array(chosen), pa.array([values[row] for row in rows], kind))
    return events.set_column(where, events.schema.field(name), column)


@dataclass(frozen=True, slots=True)
class _Together:
    """By row: rates of resumes (U/h, mL/h), durations of boluses; rows that tell again what another tells; damaged rows."""

    rates: Mapping[int, tuple[float, float]]
    durations: Mapping[int, float]
    again: Sequence[int]
    damaged: Sequence[int]


def _told_together(events: pa.Table) -> _Together:
    native, kinds = events.column("native_code"), events.column("kind")
    codes = pc.if_else(pc.equal(native, ""), "-1", native).cast(pa.int64()).to_numpy().copy()
    lost = pc.equal(events.column("alarm_class"), AlarmClass.CLOCK_LOST.value).fill_null(False)
    lost = pc.and_(lost, pc.equal(kinds, Kind.ALARM_RAISED.value)).to_numpy()
    hole = pc.is_in(kinds, pa.array([kind.value for kind in HOLES])).to_numpy()
    time, new = (events.column(name).cast(pa.int64()).fill_null(_NONE).to_numpy() for name in ("pump_time", "new_time"))
    time, step = np.where(hole, _NONE, time), np.where(new == _NONE, 0, new - time)
    damaged = _damaged(np.cumsum(hole | lost), time, step)
    codes[damaged], step[damaged], hole[damaged] = -1, 0, True
    run = np.cumsum(hole | lost)
    durations, again = _boluses(events, codes, run, time - (np.cumsum(step) - step))
    sums = np.flatnonzero((codes == 81) | (codes == 90))
    passed = (codes[sums[:-1]] == 81) & (codes[sums[1:]] == 81) & (run[sums[:-1]] == run[sums[1:]])
    rates = _resume_rates(events, codes, time, hole | lost | (step != 0))
    return _Together(rates, durations, [*again, *sums[:-1][passed].tolist()], damaged)


def _damaged(run: Ints, time: Ints, step: Ints) -> list[int]:
    """Rows without which the clock does not go back where it does: both sides of that place, if either would do."""
    back = (run[1:] == run[:-1]) & (time[:-1] != _NONE)
    back &= time[1:] < np.where(time[:-1] != _NONE, time[:-1] + step[:-1], 0) - _STEP_BACK_MS
    found = set()
    for row in np.flatnonzero(back).tolist():
        for without, before, after in ((row, row - 1, row + 1), (row + 1, row, row + 2)):
            inside = before >= 0 and after < len(run) and run[before] == run[after] and time[before] != _NONE
            if not inside or time[after] >= time[before] + step[before] - _STEP_BACK_MS:
                found.add(without)
    return sorted(found)


def _resume_rates(events: pa.Table, codes: Ints, time: Ints, breaks: Bools) -> dict[int, tuple[float, float]]:
    """Rates of the resumes: of the next rate record of the same second, else of the one before; no other resume or stop between."""
    told = np.flatnonzero((codes == 3) | (codes == 279))
    details = [json.loads(text) for text in events.column("detail").take(pa.array(told)).to_pylist()]
    resumes = [one["change"] & _RESUMED if "change" in one else one["rate_source"] != _SUSPENDED for one in details]
    told = told[np.array(resumes, dtype=np.bool_)]
    turn = (codes == 11) | (codes == 12)
    second = np.cumsum(breaks | np.append(True, np.diff(time) != 0))
    turns = np.cumsum(turn)
    found = {}
    for row in np.flatnonzero(codes == 12).tolist():
        at = int(np.searchsorted(told, row))
        near = [*told[at : at + 1].tolist(), *told[max(0, at - 1) : at].tolist()]
        same = (one for one in near if second[one] == second[row] and turns[one] == turns[row] - (one < row))
        if (one := next(same, None)) is not None:
            found[row] = (events.column("rate_dose_h")[one].as_py(), events.column("rate_ml_h")[one].as_py())
    return found


def _boluses(events: pa.Table, codes: Ints, run: Ints, elapsed: Ints) -> tuple[dict[int, float], list[int]]:
    """Durations of the boluses by row, and the delivery records of boluses that another record tells.

    An extended bolus has an activation and a completion of its own (59, 21) under the id of its first part (55, 20). A bolus
    of which nothing came took no time.
    """
    done = pc.equal(events.column("kind"), Kind.BOLUS_DELIVERED.value).to_numpy()
    rows = np.flatnonzero(np.isin(codes, (20, 21, 55, 59)) | ((codes == 280) & done))
    details = events.column("detail").take(pa.array(rows)).to_pylist()
    doses = events.column("dose").take(pa.array(rows)).to_pylist()
    begun: dict[tuple[int, int], int] = {}
    durations: dict[int, float] = {}
    told: dict[int, int] = {}
    again: list[int] = []
    ids = [json.loads(detail)["bolus_id"] for detail in details]
    completed = {bolus for bolus, row in zip(ids, rows.tolist(), strict=True) if codes[row] in (20, 21)}
    for bolus, row, dose in zip(ids, rows.tolist(), doses, strict=True):
        code = int(codes[row])
        if code in (55, 59):
            begun[bolus, code] = row
            continue
        if code == 280:
            if bolus in completed:
                again.append(row)
                continue
            if bolus in told:
                again.append(told[bolus])
            told[bolus] = row
        known = [begun[bolus, one] for one in _BEGINNINGS[code] if (bolus, one) in begun]
        if known and dose:
            start = max(known) if code == 280 else known[0]
            if run[start] == run[row] and elapsed[row] >= elapsed[start]:
                durations[row] = float(elapsed[row] - elapsed[start]) / 1000
    return durations, again


_BEGINNINGS = {20: (55, 59), 21: (59, 55), 280: (55, 59)}
"""Whose activation a completion is of: its own kind's first."""
