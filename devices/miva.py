"""Zyno / InfuTronix MIVA platform (Nimbus II, CAPS, Nimbus unified H): an event log of 16-byte records in a ring (docs/pump-formats.md §4).

    frame    02 · command in ASCII · checksum of the command, 2 hex digits · 03       9600 8N1; a reply repeats the command
    record   type u8 · stamp u32 · sub-type u16 · two 32-bit words · u8 unused        big-endian but for relative stamps; all FF: empty

A *capture* is the records of one range of the log; its `part` says which, and what else decoding needs (`_Part`). A record's number
is its ring index, unwrapped. `decode` reads each record alone. What a record means in its place (whether it lies inside a programme,
at which rate a start starts, how long a dose took) is found in `assemble`, over all captures, so that no border of a capture matters.

A programme (what an infusion is programmed to do) is 2 or 16 records between a BEGIN and an END. They have neither type nor time, look
like any record, and are known by their position alone. Where one of them is missing, all that is left of it belongs to the hole. A
start after a hole in which a programme may have stood has no known rate and may be one that delivers nothing: it is a hole itself.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
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
    Anchor,
    At,
    Capture,
    CaptureHead,
    Decoded,
    Kind,
    Log,
    Sheet,
    Source,
    dump_detail,
    fault_id,
    table,
)
from devices.dialogue import Ask, Dialogue, Got, Note, Reply, Step, Summary
from devices.errors import InputError, LinkError, PumpError, masked

FAMILY = "miva"

SHEET = Sheet(
    family=FAMILY,
    title="Zyno / InfuTronix MIVA event log",
    models="Nimbus II, CAPS (sum checksum), Nimbus unified H (XOR checksum)",
    transport="serial 9600 8N1, asked; files of the frames a pump sent",
    source="docs/pump-formats.md §4",
    identity="(pump, log epoch, ring index unwrapped); a ring that overran the last record read, or was reset, begins a new epoch",
    elapsed="seconds since the firmware was loaded (relative stamps); of old firmware the printed clock",
    gaps_visible=True,
    prime_targets=False,
    demands=True,
    limits=True,
    proof="none: a dose never proves that the basal rate runs",
    tells={
        "starts and stops": "run, pause, completion, end of a delayed start; the rate is the programme's",
        "boluses": "demands granted and denied (with the number of the attempt), doses finished; a demanded dose's duration from its grant",
        "limits": "hourly and interval limit reached, cleared",
        "set-ups": "cassette detached",
        "programming": "each programme as it was run, with lockout; settings changed, old and new",
        "alarms": "occlusion up- and downstream, battery, system and firmware errors, unattended",
    },
    does_not_tell=(
        "primes and sites: a new site is never seen",
        "the volume of one delivery or dose: volumes infused may run on over pauses and boluses, and stand in `detail`",
        "when the doses of an intermittent programme run, nor when it falls to KVO",
        "changes of the clock of old firmware, and, without an anchor, when a relative stamp was",
    ),
    unknown=(
        "no captured log is public: the layout is that of the maker's own driver",
        "how a pump goes on by itself after an occlusion: it counts as stopped until the next run",
        "the form of an absolute RC reply (dd mm yy hh mm ss) is inferred from that of WC",
        "the sub-type of a cancelled dose; byte 15",
    ),
)

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SIZE = 16
EMPTY = b"\xff" * SIZE
RING = 43_264
"""Records in a full ring: 169 flash pages of 4,096 bytes."""
COUNTER_ZERO = datetime(1970, 1, 1)  # noqa: DTZ001
"""What `pump_time` shows for counter 0 of a relative stamp: a counter is no date, and no order is in force then."""

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

_TYPES: dict[int, _Type] = {
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

_BEGIN, _END, _SETTING = 1, 2, 0x16
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
    _says(0x00, Kind.SETTINGS_CHANGE, _END),
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
_ENDS_A_DOSE = (0x02, 0x03, 0x08, 0x09, 0x0E, 0x10, 0x11, 0x12, 0x13, 0x18, 0x1A, 0x1B, 0x1C, 0x1F)
"""Types after which a dose that finishes did not run on from its grant."""

# --- programmes, as data -------------------------------------------------------------------------------------------------------

_MODES: tuple[tuple[str, tuple[tuple[str, str, int | None], ...]], ...] = (
    (
        "continuous",
        (
            ("rate", "f", 0), ("vtbi", "f", 1), ("loading", "f", 2), ("time_s", "I", 3), ("delay_s", "I", 4), ("kvo", "f", 5),
            ("delay_kvo", "f", 6), ("concentration", "f", 7), ("drug", "f", 22), ("diluent", "f", None), ("weight", "f", 10),
        ),
    ),
    (
        "bolus",
        (
            ("rate", "f", 0), ("vtbi", "f", 1), ("loading", "f", 2), ("time_s", "I", 3), ("delay_s", "I", 4), ("auto_bolus", "f", 5),
            ("auto_interval_s", "I", 6), ("extra", "f", 7), ("lockout_s", "I", 8), ("kvo", "f", 9), ("delay_kvo", "f", 10),
            ("max_per_hour", "f", 11), ("max_per_interval", "f", 12), ("clinician", "f", 13), ("concentration", "f", 14),
            ("drug", "f", 15), ("diluent", "f", 16), ("weight", "f", 17),
        ),
    ),
    (
        "intermittent",
        (
            ("rate", "f", 0), ("vtbi", "f", 1), ("loading", "f", 2), ("time_s", "I", 3), ("interval_s", "I", 4), ("delay_s", "I", 5),
            ("kvo_between", "f", 6), ("kvo", "f", 7), ("delay_kvo", "f", 8), ("max_per_hour", "f", 9), ("max_per_interval", "f", 10),
            ("concentration", "f", 11), ("drug", "f", 12), ("diluent", "f", 13), ("weight", "f", 14),
        ),
    ),
)  # fmt: skip
"""Of the 16-record form, by mode: (field, type, its bit in the switches; none: it never counts), 4 bytes each from byte 0."""
_CONTINUOUS, _BOLUS, _INTERMITTENT = range(3)
_RATE_UNITS = ("mL/h", "mg/min", "mg/kg/min", "mcg/min", "mcg/kg/min")
_AN_HOUR = {1: "mg", 3: "mcg"}
"""Rate units that become a dose an hour without a weight."""
_SHORT_NAMES: Mapping[int, str] = {2: "Daily 1", 3: "Nightly", 4: "Daily 2"}
_SHORT, _LONG = 2, 16
_LEAST = _SHORT + 2
"""So many records a programme takes at least, with BEGIN and END."""


def _decimal(value: float) -> float:
    """The shortest decimal that a 32-bit float stands for: 2.03, as it was keyed in, not 2.0299999713897705."""
    return float(str(np.float32(value)))


@dataclass(frozen=True, slots=True)
class _Programme:
    """What an infusion is programmed to do. `says` what a start of it is (none: it cannot be read); amounts in mL where they are."""

    says: Mapping[str, Any] | None
    delay: Mapping[str, Any] | None
    lockout_s: float | None
    amounts: Mapping[str, float]
    detail: Mapping[str, Any]


def _short_programme(data: bytes) -> _Programme:
    name, rate, vtbi, starting, extra, lockout = struct.unpack_from(">IffffI", data)
    given = {"rate": rate, "vtbi": vtbi, "loading": starting, "extra": extra, "lockout_s": lockout}
    fields = {key: _told(value) for key, value in given.items()}
    says = {"rate_ml_h": fields["rate"]} if _flows(fields["rate"]) else None
    detail = {"form": _SHORT, "protocol": _SHORT_NAMES.get(name, name), **fields}
    return _Programme(says, None, float(lockout), _amounts(fields), detail)


def _long_programme(data: bytes) -> _Programme:
    mode, unit = data[93], data[97]
    if mode >= len(_MODES):
        return _Programme(None, None, None, {}, {"form": _LONG, "mode": mode})
    mode_name, layout = _MODES[mode]
    (switches,) = struct.unpack_from(">I", data, 80)
    values = struct.unpack_from(">" + "".join(kind for _, kind, _ in layout), data)
    named = zip(layout, values, strict=True)
    fields = {name: _told(value) for (name, _, bit), value in named if bit is not None and switches >> bit & 1}
    delay = None
    if fields.get("delay_s"):
        kvo = fields.get("delay_kvo")
        delay = {"source": Source.KVO.value, **({"rate_ml_h": kvo} if unit == 0 and _flows(kvo) else {})}
    detail = {
        "form": _LONG,
        "mode": mode_name,
        "rate_unit": _RATE_UNITS[unit] if unit < len(_RATE_UNITS) else unit,
        "protocol": _text(data[99:109]),
        "drug_name": _text(data[109:119]),
        "auth_role": int.from_bytes(data[88:90], "big"),
        "crc": data[84:88].hex(),
        **fields,
    }
    lockout = fields.get("lockout_s")
    return _Programme(
        _start_of(mode, unit, fields),
        delay,
        float(lockout) if lockout is not None else None,
        _amounts(fields) if unit == 0 else {},
        detail,
    )


def _start_of(mode: int, unit: int, fields: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a start of a 16-record programme is; none where its rate cannot be read."""
    if mode == _INTERMITTENT:
        return {"rate_ml_h": 0.0}
    if "rate" not in fields:
        return {"rate_ml_h": 0.0} if mode == _BOLUS else {}
    rate = fields["rate"]
    if not _flows(rate):
        return None
    if unit == 0 or rate == 0:
        return {"rate_ml_h": rate}
    return {"rate_dose_h": rate * 60, "dose_unit": _AN_HOUR[unit]} if unit in _AN_HOUR else {}


def _told(value: float) -> float | None:
    """A field of a programme; none where its bytes are no number."""
    if isinstance(value, int):
        return value
    return _decimal(value) if np.isfinite(value) else None


def _flows(rate: float | None) -> bool:
    return rate is not None and rate >= 0


def _amounts(fields: Mapping[str, float | None]) -> dict[str, float]:
    return {key: value for key in ("loading", "auto_bolus", "extra", "clinician") if (value := fields.get(key)) is not None and value >= 0}


def _text(data: bytes) -> str:
    return "".join(chr(byte) for byte in data if 32 <= byte < 127).strip()


# --- files ---------------------------------------------------------------------------------------------------------------------

_CHECKS = ("sum", "xor")
_FRAME = re.compile(rb"\x02([^\x02\x03]*)\x03")
_TIMES = ("relative", "absolute")


def _checksum(command: bytes, check: str) -> bytes:
    value = sum(command) & 0xFF if check == "sum" else int(np.bitwise_xor.reduce(np.frombuffer(command, np.uint8), initial=0))
    return b"%02X" % value


def _opened(frame: bytes, checks: Sequence[str]) -> tuple[bytes, list[str]]:
    """What a frame's inside says, in upper case, and by which of these checksums it is right."""
    said, told = frame[:-2], frame[-2:].upper()
    return said.upper(), [check for check in checks if _checksum(said, check) == told]


_HEX = rb"[0-9A-F]"
_REPLIES: Mapping[bytes, re.Pattern[bytes]] = {
    b"RI": re.compile(rb"RI(%b{8})(%b{8})" % (_HEX, _HEX)),
    b"RE": re.compile(rb"RE(%b{8})(%b{32})" % (_HEX, _HEX)),
    b"RC": re.compile(rb"RC(%b{12}|%b{8})" % (_HEX, _HEX)),
    b"RN": re.compile(rb"RN([0-9A-Z ]{8})"),
}


def _clock(digits: bytes) -> tuple[str, datetime | None]:
    """The form of the stamps and what the clock shows, of an RC reply; no time where it is no date."""
    if len(digits) == 8:
        return "relative", COUNTER_ZERO + timedelta(seconds=int(digits[1:], 16))
    day, month, year, hour, minute, second = bytes.fromhex(digits.decode())
    try:
        return "absolute", datetime(2000 + year, month, day, hour, minute, second)  # noqa: DTZ001
    except ValueError:
        return "absolute", None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
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


def _part(text: str | None) -> _Part | None:
    """A part as its fields; none where it is no part."""
    if text is None or (match := _PART.fullmatch(text)) is None:
        return None
    epoch, first, last, check, time, end = match.groups()
    return _Part(epoch=int(epoch), first=int(first), last=int(last), check=check, time=time, end=bytes.fromhex(end))


def recognise(name: str, data: bytes) -> bool:
    """Whether a file holds the bytes of a serial line over which a MIVA pump sent records."""
    return any(_REPLIES[b"RE"].fullmatch(_opened(frame, _CHECKS)[0]) for frame in _FRAME.findall(data))


def read_files(
    files: Sequence[tuple[str, bytes]], *, pump_id: str | None = None, model: str | None = None, anchor: Anchor | None = None
) -> list[Capture]:
    """The captures in recorded serial dialogues: one for each run of records, in order; frames with a wrong checksum are left out.

    The pump is that of the RN reply, the numbers are unwrapped by the RI reply before them. Raises InputError where neither file nor
    caller names the pump, where they name different ones, and where no RC or RI reply says how stamps and numbers are to be read.
    """
    frames = [_opened(frame, _CHECKS) for _, data in files for frame in _FRAME.findall(data)]
    check = max(_CHECKS, key=lambda one: sum(one in right for _, right in frames))
    times, serials, records = set(), set(), {}
    ring: tuple[int, int] | None = None
    newest: int | None = None
    for said, right in frames:
        if check not in right or (reply := _REPLIES.get(said[:2])) is None or (match := reply.fullmatch(said)) is None:
            continue
        match said[:2]:
            case b"RC":
                times.add(_clock(match[1])[0])
            case b"RN":
                serials.add(match[1].decode().strip())
            case b"RI":
                ring = int(match[1], 16) % RING, int(match[2], 16) % RING
                newest = ring[0] + (ring[1] - ring[0]) % RING if newest is None else newest + (ring[1] - newest) % RING
            case b"RE" if newest is not None:
                records[newest - (newest - int(match[1], 16)) % RING] = bytes.fromhex(match[2].decode())
    if not records or len(times) != 1:
        raise InputError(
            "These files are no whole dialogue with a MIVA pump.",
            why="Records need an RI reply before them, and RC replies of one form to say what their stamps are.",
            do="Record the serial line from the start of a download.",
            code="no_dialogue",
        )
    told = {f"{FAMILY}:{serial}" for serial in serials} | ({pump_id} if pump_id else set())
    if len(told) != 1:
        raise InputError(
            "These files name no pump." if not told else "These files are of another pump than was said, or of several.",
            do="Say which pump they are of with --pump miva:SERIAL." if not told else "Load the files of each pump by themselves.",
            code="which_pump",
        )
    (pump,), (time,) = told, times
    captures = []
    for first, last in _runs(records):
        data = b"".join(records[number] for number in range(first, last + 1))
        part = _Part(epoch=0, first=first, last=last, check=check, time=time, end=data[-SIZE:])
        placed = anchor and replace(anchor, after=anchor.after or sequence.key_of(0, max(records)))
        captures.append(Capture(data=data, family=FAMILY, pump_id=pump, model=model, part=str(part), anchor=placed))
    return captures


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as ranges without holes, both ends in."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


# --- decode: each record alone -------------------------------------------------------------------------------------------------


def decode(capture: Capture) -> Decoded:
    """Records, faults and the anchor of one capture."""
    part = _part(capture.part)
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


def _unplaced(capture: Capture, part: _Part | None, message: str) -> pa.Table:
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


def _anchor_rows(capture: Capture, part: _Part) -> pa.Table:
    if (anchor := capture.anchor) is None:
        return table(ANCHORS, [])
    row = {
        "capture": capture.sha256,
        "pump_id": capture.pump_id,
        "log_epoch": part.epoch,
        "part": capture.part,
        "after": anchor.after or sequence.key_of(part.epoch, part.last),
        "pump_clock": anchor.pump_clock,
        "utc": anchor.utc.astimezone(UTC),
        "round_trip_ms": anchor.round_trip_ms,
    }
    return table(ANCHORS, [row])


def _binary(data: bytes) -> pa.Array:
    """The records as a binary column over the capture's own bytes."""
    count = len(data) // SIZE
    offsets = np.arange(count + 1, dtype=np.int32) * SIZE
    return pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _empty(raw: Bytes) -> Bools:
    return np.asarray((raw == 0xFF).all(axis=1))


def _stamps(raw: Bytes, time: str) -> tuple[Ints, Bools]:
    """The stamps, ms since 1970 or of the counter, and which of them are a time."""
    written = ~_empty(raw)
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


def _subs(raw: Bytes) -> npt.NDArray[np.int32]:
    """Type and sub-type in one number, the type above the low 16 bits; 2**24 for an empty record."""
    types = raw[:, 0].astype(np.int32)
    high, low = raw[:, 5].astype(np.int32), raw[:, 6].astype(np.int32)
    place = _PLACES[types]
    sub = np.where(place == 1, high << 8 | low, np.where(place == 2, high, np.where(place == 3, low, 0)))
    return np.asarray(np.where(_empty(raw), 1 << 24, types << 16 | sub), dtype=np.int32)


_PLACES = np.ones(256, dtype=np.int8)
for _code, _type in _TYPES.items():
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
    keys, which = np.unique(_subs(raw), return_inverse=True)
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
    details = pa.array(_details(raw, keys, which), pa.string())
    return {"detail": details, **{name: pa.array(values, kind).take(index) for name, (values, kind) in columns.items()}}


def _details(raw: Bytes, keys: npt.NDArray[np.int32], which: npt.NDArray[np.intp]) -> list[str]:
    """The details as JSON text, one a record, from types and sub-types (`keys`, and which of them each record has)."""
    heads = [_head(int(key)) for key in keys]
    found = [heads[i] for i in which.tolist()]
    for code in np.unique(keys >> 16).tolist():
        rows = np.flatnonzero(raw[:, 0] == code)
        if code == _SETTING:
            whole = np.isin(raw[rows, 6], _WHOLE_PARAMETERS)
            _add(found, raw, rows[whole], (("old", 7, ">u4"), ("new", 11, ">u4")))
            _add(found, raw, rows[~whole], (("old", 7, ">f4"), ("new", 11, ">f4")))
        elif code in _TYPES:
            _add(found, raw, rows, _TYPES[code].data)
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


def _head(key: int) -> str:
    """The part of the detail that type and sub-type give."""
    code, sub = key >> 16, key & 0xFFFF
    if code > 0xFF:
        return "{}"
    known = _TYPES.get(code)
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


# --- assemble: each record in its place ----------------------------------------------------------------------------------------


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
    details = _details(raw, *np.unique(_subs(raw), return_inverse=True))
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
        self.empty = _empty(raw)
        data = raw[:, 0] == 0
        self.begins = set(numbers[data & (raw[:, 5] == _BEGIN)].tolist())
        self.ends = set(numbers[data & (raw[:, 5] == _END)].tolist())
        self.first, self.last = int(numbers[0]), int(numbers[-1])
        self.dated, self.disputed = dated, disputed
        self.programme: _Programme | None = None
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
            first = max(free, end - _LONG)
            return _Span(first, end, "tail" if first == self.first and self._whole(first, end) else "lost")
        if mark in self.ends:
            return _Span(max(free, mark - _SHORT), mark, "lost") if self.missing(mark - _SHORT - 1) else None
        length = _SHORT + 1 if self._short_name(mark) and self.missing(mark + _SHORT + 1) else _LONG + 1
        last = min(mark + length, self.last)
        return _Span(mark, last, "head" if last == self.last and self._whole(mark, last) else "lost")

    def _form(self, begin: int) -> int:
        """How many records a programme has, by where its END is; 0 where it has none.

        A field of the long form can look like the END of the short one, which is told by its name, or by the long one's missing END.
        """
        after = begin + _LONG + 1
        if begin + _SHORT + 1 in self.ends and (self._short_name(begin) or (after not in self.ends and not self.missing(after))):
            return _SHORT
        return _LONG if after in self.ends else 0

    def _short_name(self, begin: int) -> bool:
        row = self.row(begin + 1)
        return row is not None and int.from_bytes(self.raw[row, :4].tobytes(), "big") in _SHORT_NAMES

    def _orphan(self, mark: int) -> int | None:
        """The END, at or after `mark`, of a long programme whose BEGIN is missing, so that `mark` is inside it."""
        found = None
        for number in range(mark, mark + _LONG + 1):
            if number in self.begins and number != mark and self._form(number):
                break
            paired = number - _SHORT - 1 in self.begins and number - _SHORT - 1 >= mark
            if number in self.ends and self.missing(number - _LONG - 1) and not paired:
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
        keys = dict(zip(acting, _subs(self.raw[acting]).tolist(), strict=True))
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
        if count >= _LEAST or self.waiting:
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
        self.programme = _short_programme(data) if span.form == _SHORT else _long_programme(data)
        self.lost, self.waiting = self.programme.says is None, self.programme.delay is not None
        self.changes[last - 1]["lockout_s"] = self.programme.lockout_s
        self._say(last - 1, programme=self.programme.detail)

    def _edge(self, row: int, kind: str) -> None:
        """A BEGIN or an END: it has a time."""
        self.changes[row], self.details[row] = {"kind": kind}, _head(int(_subs(self.raw[row : row + 1])[0]))

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


_INNER = dump_detail({"name": _TYPES[0].name, "what": "programme"})
"""Detail of the records of a programme between BEGIN and END: they say nothing by themselves."""
_ACTING = tuple(sorted({0x00, 0x01, 0x06, 0x0A, 0x17, *_ENDS_A_DOSE}))


def _jumps(numbers: Ints, good: Ints) -> list[tuple[int, int]]:
    """Rows that follow each other among the good ones, but not in number."""
    wide = np.flatnonzero(np.diff(numbers[good]) > 1)
    return [(int(good[i]), int(good[i + 1])) for i in wide]


# --- asking --------------------------------------------------------------------------------------------------------------------

BATCH = 64
"""Records of one capture: about 4 s of the line."""
_TRIES = 4
_TIMEOUT_S = 0.5
_SILENT = 3
"""So many records in a row that cannot be had: the pump is gone."""
_ROUNDS = 4
"""The log may grow while it is read: so often what came meanwhile is read too."""
_READS = re.compile(rb"RI|RC|RN|RE[0-9A-F]{8}")


def _request(command: bytes, check: str) -> bytes:
    """The frame of a command that reads. There is no other: this adapter cannot set a clock."""
    if not _READS.fullmatch(command):
        raise ValueError(f"{command!r} does not read")
    return b"\x02" + command + _checksum(command, check) + b"\x03"


def _missing(received: bytes) -> int:
    """A frame is whole with its 03; the shortest that is answered has 14 bytes."""
    return 0 if _FRAME.search(received) else max(1, 14 - len(received))


HELLO = Ask(data=_request(b"RE00000000", "sum"), missing=_missing, timeout_s=_TIMEOUT_S, what="Is this a MIVA pump?")
"""Record 0 of the ring: the one request whose checksum is right in both families (docs/pump-formats.md §4.1)."""


def is_hello(answer: bytes) -> bool:
    """Whether a MIVA pump answered HELLO."""
    return bool(_greeted(answer))


def _greeted(answer: bytes) -> list[str]:
    """The checksums by which an answer to HELLO is right."""
    for frame in _FRAME.findall(answer):
        said, right = _opened(frame, _CHECKS)
        if right and (match := _REPLIES[b"RE"].fullmatch(said)) and int(match[1], 16) == 0:
            return right
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """RI and RC, read one after the other: first and newest record, unwrapped, and the clock (none: what it told is no date)."""

    tail: int
    head: int
    time: str
    clock: datetime | None
    utc: datetime
    round_trip_ms: int


class _Reader:
    """One download: how this pump is spoken to, and how far it is."""

    def __init__(self, pump_id: str) -> None:
        self.pump_id = pump_id
        self.check = _CHECKS[0]
        self.epoch = 0
        self.done = self.total = 0
        self.new_parts = 0
        self.complete = True

    def gone(self) -> LinkError:
        """The pump does not answer any more."""
        return LinkError(
            f"The pump {masked(self.pump_id)} gives no whole answer any more.",
            why="It was undocked, switched off, or the cable is bad.",
            do="Dock it again and run this again; it goes on where it stopped.",
            code="no_answer",
        )

    def ask(self, command: bytes, what: str, tries: int = _TRIES) -> Generator[Step, Reply | None, tuple[re.Match[bytes], Reply] | None]:
        """The reply to a command, asked again where it does not come whole; none after all tries."""
        for left in range(tries - 1, -1, -1):
            reply = yield Ask(
                data=_request(command, self.check), missing=_missing, timeout_s=_TIMEOUT_S, what=what, done=self.done, total=self.total
            )
            assert reply is not None
            for frame in _FRAME.findall(reply.data):
                said, right = _opened(frame, [self.check])
                if right and (match := _REPLIES[command[:2]].fullmatch(said)) and said.startswith(command):
                    return match, reply
            yield Note(f"{what}: {'a garbled answer' if reply.data else 'no answer'}{', asking again' if left else ''}")
        return None

    def greet(self) -> Generator[Step, Reply | None, None]:
        """Finds the checksum, and whether it is this pump. Raises LinkError, PumpError."""
        for _ in range(_TRIES):
            reply = yield HELLO
            assert reply is not None
            if checks := _greeted(reply.data):
                break
            yield Note("The pump does not answer, asking again")
        else:
            raise self.gone()
        for self.check in checks:
            if (told := (yield from self.ask(b"RN", "serial number"))) is not None:
                break
        else:
            raise self.gone()
        if f"{FAMILY}:{(serial := told[0][1].decode().strip())}" != self.pump_id:
            raise PumpError(
                f"This is the pump {masked(f'{FAMILY}:{serial}')}, not {masked(self.pump_id)}.",
                do=f"Dock the right pump, or name this one as {FAMILY}:SERIAL with the serial number on its label.",
                code="other_pump",
            )

    def look(self, since: int | None) -> Generator[Step, Reply | None, _Look]:
        """Where the log begins and ends, and the clock; unwrapped from the newest record `since`. Raises LinkError."""
        ring = yield from self.ask(b"RI", "size of the log")
        time = yield from self.ask(b"RC", "clock")
        if ring is None or time is None:
            raise self.gone()
        tail, head = int(ring[0][1], 16) % RING, int(ring[0][2], 16) % RING
        length = (head - tail) % RING
        newest = tail + length if since is None else since + (head - since) % RING
        form, clock = _clock(time[0][1])
        sent, received = time[1].sent, time[1].received
        trip = received - sent
        middle = sent + trip / 2
        return _Look(
            tail=newest - length,
            head=newest,
            time=form,
            clock=clock,
            utc=middle.replace(microsecond=middle.microsecond // 1000 * 1000),
            round_trip_ms=round(trip.total_seconds() * 1000),
        )

    def record(self, number: int) -> Generator[Step, Reply | None, bytes | None]:
        """The bytes of a record; none where it cannot be had."""
        found = yield from self.ask(b"RE%08X" % (number % RING), f"record {number}")
        return bytes.fromhex(found[0][2].decode()) if found else None

    def still(self, last: _Part, look: _Look) -> Generator[Step, Reply | None, bool]:
        """Whether the last record that is known is where it was. Bytes that differ are read a second time. Raises LinkError."""
        if look.time != last.time or last.last < look.tail:
            return False
        differs: bytes | None = None
        for _ in range(_TRIES):
            found = yield from self.record(last.last)
            if found is None:
                raise self.gone()
            if found == last.end:
                return True
            if found == differs:
                return False
            differs = found
        raise self.gone()

    def capture(self, first: int, data: bytes, look: _Look, end: bytes) -> Capture:
        """Records from `first` on, with the clock read behind the newest record there is."""
        last = first + len(data) // SIZE - 1
        part = _Part(epoch=self.epoch, first=first, last=last, check=self.check, time=look.time, end=end)
        anchor = None
        if look.clock is not None:
            after = sequence.key_of(self.epoch, look.head)
            anchor = Anchor(pump_clock=look.clock, utc=look.utc, round_trip_ms=look.round_trip_ms, after=after)
        return Capture(data=data, family=FAMILY, pump_id=self.pump_id, model=_model(self.check), part=str(part), anchor=anchor)

    def range(self, first: int, last: int, look: _Look) -> Generator[Step, Reply | None, _Look]:
        """Reads records and yields them batch by batch; gives the last look. Raises LinkError, PumpError."""
        number, silent = first, 0
        while number <= last:
            start, data, found = number, b"", None
            while number <= last and len(data) < BATCH * SIZE:
                found = yield from self.record(number)
                number += 1
                self.done += 1
                if found is None:
                    break
                data += found
            silent = 0 if data else silent + 1
            self.complete = self.complete and found is not None
            if data:
                look = yield from self.keep(start, data, look)
            if silent >= _SILENT:
                raise self.gone()
        return look

    def keep(self, start: int, data: bytes, before: _Look) -> Generator[Step, Reply | None, _Look]:
        """Yields a batch, but for what the ring has overwritten by now, and an empty newest record: that one is not written yet."""
        look = yield from self.look(before.head)
        if look.head - before.head > RING // 2:
            raise PumpError(
                f"The log of {masked(self.pump_id)} was reset while it was read.", do="Run this again to read the new one.", code="reset"
            )
        overrun = min(max(0, look.tail - start), len(data) // SIZE)
        if overrun:
            yield Note(f"{overrun} records were overwritten while they were read")
        start, data = start + overrun, data[overrun * SIZE :]
        while start + len(data) // SIZE - 1 == look.head and data.endswith(EMPTY):
            data = data[:-SIZE]
        if data:
            self.new_parts += 1
            yield Got(self.capture(start, data, look, data[-SIZE:]))
        return look


def _model(check: str) -> str:
    return "Nimbus II or CAPS" if check == "sum" else "Nimbus H"


def download(pump_id: str, known: Iterable[CaptureHead], *, model: str | None = None) -> Dialogue:
    """The dialogue that fetches what is not known yet, oldest first, and the clock at start and end; a `model` changes nothing here.

    The last known record is read again: other bytes mean that the ring overran it, or was reset, and begin a new epoch. Raises
    LinkError where the pump stops answering, PumpError where it is another one or its log was reset meanwhile.
    """
    parts = [part for head in known if head.pump_id == pump_id and (part := _part(head.part)) is not None]
    reader = _Reader(pump_id)
    yield from reader.greet()
    latest = max((part for part in parts if part.end), key=lambda part: (part.epoch, part.last), default=None)
    look = yield from reader.look(latest.last if latest else None)
    if latest is not None:
        reader.epoch = latest.epoch
        if not (yield from reader.still(latest, look)):
            yield Note("The log does not go on from the last record read: the ring overran it, or was reset")
            reader.epoch += 1
            head, length = look.head % RING, look.head - look.tail
            base = (head - length) % RING
            look = replace(look, tail=base, head=base + length)
    read = [(part.first, part.last) for part in parts if part.epoch == reader.epoch]
    wanted = _without((look.tail, look.head), read)
    for _ in range(_ROUNDS):
        reader.total += sum(last - first + 1 for first, last in wanted)
        seen = look.head
        for first, last in wanted:
            look = yield from reader.range(first, last, look)
        if look.head == seen:
            break
        wanted = [(seen + 1, look.head)]
    if latest is not None and not reader.new_parts and (reader.epoch, look.head) == (latest.epoch, latest.last):
        yield Got(reader.capture(look.head + 1, b"", look, latest.end))
    offset = None
    if look.time == "absolute" and look.clock is not None:
        offset = (look.clock - look.utc.astimezone(UTC).replace(tzinfo=None)).total_seconds()
    return Summary(
        pump_id=pump_id,
        model=_model(reader.check),
        new_parts=reader.new_parts,
        clock_offset_s=offset,
        complete=reader.complete and look.head == seen,
    )


def _without(whole: tuple[int, int], known: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """What a range has that none of the known ones has, as ranges; both ends are in."""
    first, last = whole
    found = []
    for low, high in sorted(known):
        if low <= high and low <= last:
            if low > first:
                found.append((first, low - 1))
            first = max(first, high + 1)
    return [*found, (first, last)] if first <= last else found
