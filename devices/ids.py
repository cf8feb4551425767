"""Bluetooth SIG Insulin Delivery Service 1.0.2, history and its reading (docs/pump-formats.md §5).

    record   u16 type · u32 sequence · u16 seconds since the last reference time · data by type [· CRC-16/MCRF4XX if E2E], little-endian

A capture is text: each line is the value of one characteristic, as a letter, a blank and hex, in the order in which they came.

    H 0f0001000000…   notification of History Data (2B28; 780G 0108)     > 335a0f…   write to RACP (2B27; 780G 2A52)
    T e2070102…       value of Current Time (2A2B)                       < 0f0f33f0  its indication
    ? 2a2b            the read that asks for it
    {"uuid": …, "hex": …}   any of them as a monitor's log in JSON lines has it

A damaged byte so costs one line. The reading dialogue speaks the same lines both ways, so it runs over any stream; `bridge_line` and
`bridge_request` are what stands between it and the topics of an MQTT bridge. Only `H` lines are history.

`Capture.model` names the profile: "780g" (32-bit amounts in some records, Medtronic's own record types), anything else the standard;
"+crc" behind it says that E2E-CRC is on. A record must fit its layout to the byte, so a wrong profile gives faults, not amounts.

One capture does not tell the time of its records: `decode` leaves `pump_time` open and puts the offset into `native_ms`; `assemble`
puts both right from the whole log. What has no reference time since the last hole is part of that hole, until one comes.
"""

from __future__ import annotations

import json
import re
from binascii import unhexlify
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from math import isnan
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from devices import sequence
from devices.contract import (
    ANCHORS,
    EVENTS,
    FAULTS,
    HOLES,
    RECORDS,
    AlarmClass,
    Anchor,
    At,
    Capture,
    CaptureHead,
    Decoded,
    Kind,
    Log,
    PlacedAnchor,
    Sheet,
    Source,
    Target,
    dump_detail,
    fault_id,
    table,
)
from devices.dialogue import Ask, Dialogue, Got, Note, Reply, Step, Summary
from devices.errors import InputError, LinkError, PumpError

FAMILY = "ids"

SHEET = Sheet(
    family=FAMILY,
    title="Bluetooth Insulin Delivery Service history",
    models="any pump of the service 1.0.2; Medtronic 780G where its stream is already decrypted",
    transport="asked over RACP, through a BLE-to-MQTT bridge or any stream of lines; files of logged notifications",
    source="docs/pump-formats.md §5",
    identity="(pump, sequence number); the numbers leave no holes",
    elapsed="its own: seconds since the last reference time, summed over reference times; a loss of the clock is a cut",
    gaps_visible=True,
    prime_targets=False,
    demands=False,
    limits=True,
    proof="none: a rate or a bolus never proves that basal delivers",
    tells={
        "starts and stops": "therapy control state to and from run; standby and priming out of ready; on a 780G also stopped and restarted",
        "rates": "every change of the delivered basal rate, in U/h",
        "boluses": "programmed and delivered, in U, at their end, with their duration",
        "set-ups": "preparing (rewind, reservoir) and priming with amount and how it ended; not what was primed",
        "alarms": "annunciations, pending and confirmed, with their class; the limit of delivery",
        "clock": "reference times, set, periodic or lost, each with the seconds since the one before",
        "totals": "bolus and basal of each day",
    },
    does_not_tell=(
        "which part a priming fills: tubing or cannula",
        "UTC: the clock is read beside the log, from Current Time, where the pump has it",
        "that a limit is over: a confirmation clears none",
        "whether a record was damaged, unless E2E-CRC is on",
    ),
    unknown=(
        "Reference Time Base Offset (0033) is read, but is no base: no log that has nothing else is known",
        "of Medtronic's records only those of docs/pump-formats.md §5.2 are read; the others are kept as `other`",
    ),
)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


# --- what the records hold -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Profile:
    """How a device differs: 32-bit amounts in some records, records of its maker, E2E-CRC."""

    wide: bool
    medtronic: bool
    crc: bool


def profile_of(model: str | None) -> Profile:
    """The profile that a model names: "780g" anywhere in it, and "+crc" at its end; the standard's otherwise."""
    name = (model or "").casefold()
    medtronic = "780g" in name
    return Profile(wide=medtronic, medtronic=medtronic, crc=name.endswith("+crc"))


_Words = Mapping[int, str]

_REASON: _Words = {0x0F: "undetermined", 0x33: "set", 0x3C: "periodic", 0x55: "loss"}
_BOLUS: _Words = {0x33: "fast", 0x3C: "extended", 0x55: "multiwave"}
_ACTIVATION: _Words = {0x33: "manual", 0x3C: "recommended", 0x55: "changed", 0x5A: "commanded"}
_BOLUS_END: _Words = {0x0F: "undetermined", 0x33: "delivered", 0x3C: "cancelled", 0x55: "error"}
_CONTEXT: _Words = {0x33: "device", 0x3C: "remote", 0x55: "controller"}
_TBR: _Words = {0x33: "absolute", 0x3C: "relative"}
_TBR_END: _Words = {0x33: "over", 0x3C: "cancelled", 0x55: "error"}
_THERAPY: _Words = {0x33: "stop", 0x3C: "pause", 0x55: "run"}
_OPERATION: _Words = {0x33: "off", 0x3C: "standby", 0x55: "preparing", 0x5A: "priming", 0x66: "waiting", 0x96: "ready"}
_STATUS: _Words = {0x33: "pending", 0x3C: "snoozed", 0x55: "confirmed"}
_PRIMED: _Words = {0x33: "aborted", 0x3C: "amount_reached", 0x55: "error"}
_ANNUNCIATIONS: Mapping[int, tuple[str, AlarmClass]] = {
    0x000F: ("system", AlarmClass.MALFUNCTION),
    0x0033: ("mechanical", AlarmClass.MALFUNCTION),
    0x003C: ("occlusion", AlarmClass.OCCLUSION),
    0x0055: ("reservoir", AlarmClass.OTHER),
    0x005A: ("reservoir empty", AlarmClass.EMPTY),
    0x0066: ("reservoir low", AlarmClass.LOW_RESERVOIR),
    0x0069: ("priming", AlarmClass.OTHER),
    0x0096: ("set incomplete", AlarmClass.OTHER),
    0x0099: ("set detached", AlarmClass.OTHER),
    0x00A5: ("power", AlarmClass.POWER),
    0x00AA: ("battery empty", AlarmClass.BATTERY),
    0x00C3: ("battery low", AlarmClass.BATTERY),
    0x00CC: ("battery medium", AlarmClass.BATTERY),
    0x00F0: ("battery full", AlarmClass.BATTERY),
    0x00FF: ("temperature", AlarmClass.OTHER),
    0x0303: ("pressure", AlarmClass.OTHER),
    0x030C: ("bolus cancelled", AlarmClass.OTHER),
    0x0330: ("TBR over", AlarmClass.OTHER),
    0x033F: ("TBR cancelled", AlarmClass.OTHER),
    0x0356: ("max delivery", AlarmClass.LIMIT),
    0x0359: ("date time", AlarmClass.OTHER),
    0x0365: ("temperature", AlarmClass.OTHER),
}
"""Date time is a request to set the clock; that it was lost is told by a reference time, so the alarm is no cut of its own."""
_LIMIT = 0x0356
_ANNUNCIATION: _Words = {number: name for number, (name, _) in _ANNUNCIATIONS.items()}
_CORRUPTION = 0x03A6
_VENDOR = range(0xF000, 0xFFF1)

U8, S8, U16, S16, U32 = "u1", "i1", "<u2", "<i2", "<u4"
VENDOR16 = "annunciation"
"""An annunciation type: one of the standard's, or a vendor's."""
NUMBER = "number"
"""An SFLOAT of either sign."""
AMOUNT, RATE = "amount", "rate"
"""An SFLOAT, or a FLOAT where the record and the profile are wide, that is not negative; a rate must be a number too."""
TIME = "time"
_MOST = 1e4
"""U, or U/h: more than any pump holds."""


@dataclass(frozen=True, slots=True)
class _Record:
    """A record: what it is, its fields in order as (name, type or words [, bit of the flags, its first byte, that says it is there]).

    `wide`: its amounts are 32 bits where the profile says so. `tail`: more bytes may follow.
    """

    kind: Kind
    fields: tuple[tuple[str, str | _Words] | tuple[str, str | _Words, int], ...] = ()
    wide: bool = False
    tail: bool = False
    fixed: Mapping[str, str] = field(default_factory=dict)

    @property
    def varies(self) -> bool:
        """Whether its flags decide what is there."""
        return any(len(one) == 3 for one in self.fields)


_BASAL = {"source": Source.BASAL.value}
_BOLUS_FIELDS: tuple[tuple[str, str | _Words], ...] = (
    ("bolus_id", U16),
    ("type", _BOLUS),
    ("fast_u", AMOUNT),
    ("extended_u", AMOUNT),
    ("minutes", U16),
)
_CALCULATED = tuple((f"{how}_{why}_u", NUMBER) for how in ("fast", "extended") for why in ("meal", "correction"))
_RECOMMENDED = tuple((f"recommended_{name}", kind) for name, kind in _CALCULATED)
_CONFIRMED = tuple((f"confirmed_{name}", kind) for name, kind in _CALCULATED)
_BLOCK: tuple[tuple[str, str | _Words], ...] = (("template", U8), ("block", U8), ("minutes", U16))

_STANDARD: Mapping[int, _Record] = {
    0x000F: _Record(Kind.CLOCK_CHANGE, (("reason", _REASON), ("time", TIME), ("zone_15min", S8), ("dst", U8))),
    0x0033: _Record(Kind.CLOCK_CHANGE, (("reason", _REASON), ("time", TIME), ("offset_min", S16))),
    0x003C: _Record(Kind.OTHER, _RECOMMENDED),
    0x0055: _Record(Kind.OTHER, _CONFIRMED),
    0x005A: _Record(Kind.BOLUS_REQUESTED, _BOLUS_FIELDS, wide=True, fixed={"source": Source.PRIMARY.value}),
    0x0066: _Record(Kind.OTHER, (("flags_2", U8), ("delay_min", U16, 0), ("template", U8, 1), ("activation", _ACTIVATION, 2))),
    0x0069: _Record(Kind.BOLUS_DELIVERED, _BOLUS_FIELDS, wide=True, fixed={"source": Source.PRIMARY.value, "at": At.END.value}),
    0x0096: _Record(
        Kind.OTHER,
        (("flags_2", U8), ("start_offset_s", U32), ("activation", _ACTIVATION, 0), ("end", _BOLUS_END, 1), ("annunciation", U16, 2)),
    ),
    0x0099: _Record(
        Kind.RATE_CHANGE, (("flags", U8), ("old_u_h", AMOUNT), ("new_u_h", RATE), ("context", _CONTEXT, 0)), wide=True, fixed=_BASAL
    ),
    0x00A5: _Record(Kind.OTHER, (("flags", U8), ("type", _TBR), ("value", NUMBER), ("minutes", U16), ("template", U8, 0))),
    0x00AA: _Record(
        Kind.OTHER, (("flags", U8), ("type", _TBR), ("minutes", U16), ("end", _TBR_END), ("template", U8, 0), ("annunciation", U16, 1))
    ),
    0x00C3: _Record(
        Kind.OTHER, (("flags", U8), ("type", _TBR), ("value", NUMBER), ("minutes", U16), ("elapsed_min", U16), ("template", U8, 0))
    ),
    0x00CC: _Record(Kind.SETTINGS_CHANGE, (("type", U8), ("old", U8), ("new", U8))),
    0x00F0: _Record(Kind.SETTINGS_CHANGE, (*_BLOCK, ("rate_u_h", AMOUNT))),
    0x00FF: _Record(Kind.DAILY_TOTAL, (("flags", U8), ("bolus_u", AMOUNT), ("basal_u", AMOUNT), ("year", U16), ("month", U8), ("day", U8))),
    0x0303: _Record(Kind.OTHER, (("old", _THERAPY), ("new", _THERAPY))),
    0x030C: _Record(Kind.OTHER, (("old", _OPERATION), ("new", _OPERATION))),
    0x0330: _Record(Kind.OTHER, (("remaining_u", AMOUNT),)),
    0x033F: _Record(
        Kind.OTHER, (("flags", U8), ("annunciation", U16), ("type", VENDOR16), ("status", _STATUS), ("aux_1", U16, 0), ("aux_2", U16, 1))
    ),
    0x0356: _Record(Kind.OTHER, (("flags_2", U8), ("aux_3", U16, 0), ("aux_4", U16, 1), ("aux_5", U16, 2))),
    0x0359: _Record(Kind.OTHER, (*_BLOCK, ("factor", NUMBER))),
    0x0365: _Record(Kind.OTHER, (*_BLOCK, ("ratio", NUMBER))),
    0x036A: _Record(Kind.OTHER, (*_BLOCK, ("low", NUMBER), ("high", NUMBER))),
    0x0395: _Record(Kind.PRIMING_STARTED, (("programmed_u", AMOUNT),), fixed={"target": Target.UNKNOWN.value}),
    0x039A: _Record(
        Kind.PRIMING_DONE,
        (("flags", U8), ("delivered_u", AMOUNT), ("end", _PRIMED), ("annunciation", U16, 0)),
        fixed={"target": Target.UNKNOWN.value},
    ),
    _CORRUPTION: _Record(Kind.DATA_CORRUPTION),
    0x03A9: _Record(Kind.OTHER, tail=True),
    0x03C0: _Record(
        Kind.SETTINGS_CHANGE, (("template", U8), ("type", _BOLUS), ("fast_u", AMOUNT), ("extended_u", AMOUNT), ("minutes", U16))
    ),
    0x03CF: _Record(Kind.SETTINGS_CHANGE, (("flags", U8), ("delay_min", U16, 0))),
    0x03F3: _Record(Kind.SETTINGS_CHANGE, (("template", U8), ("type", _TBR), ("value", NUMBER), ("minutes", U16))),
    0x03FC: _Record(Kind.SETTINGS_CHANGE, (("old_u", AMOUNT), ("new_u", AMOUNT)), wide=True),
}
"""By type; a type that is neither here nor a vendor's is a fault."""

_MEDTRONIC: Mapping[int, _Record] = {
    0xF00A: _Record(Kind.DELIVERY_STOP, (("reason", U8),), tail=True, fixed=_BASAL),
    0xF00B: _Record(Kind.DELIVERY_START, (("reason", U8),), tail=True, fixed=_BASAL),
    0xF00E: _Record(Kind.CLOCK_CHANGE, (("reason", _REASON), ("time", TIME))),
}
_KEPT = _Record(Kind.OTHER, tail=True)
"""A vendor's record: a number, a place in time, and bytes."""

_UNIT = "U"
_U_PER_ML = 100
_HEAD, _CRC = 8, 2
_LOST = 0xFFFFFFFF
"""The sequence number of a 03A6 whose own was corrupted: it stands where it was received."""

Fields = Mapping[str, npt.NDArray[Any]]
Said = dict[str, Any]


def _rows(values: npt.NDArray[Any], words: Mapping[int, str], other: str | None = None) -> list[str | None]:
    return [words.get(value, other) for value in values.tolist()]


def _where(chosen: npt.NDArray[Any], value: str | bool) -> list[str | bool | None]:
    return [value if one else None for one in chosen.tolist()]


def _ml(units: Floats) -> Floats:
    return np.asarray(np.round(units / _U_PER_ML, 8))


def _given(units: Floats) -> Said:
    return {"dose": units, "volume_ml": _ml(units), "dose_unit": _UNIT}


def _programmed(units: Floats) -> Said:
    return {"programmed_dose": units, "programmed_ml": _ml(units), "dose_unit": _UNIT}


def _both(f: Fields) -> Floats:
    """The two parts of a bolus: what is not there is NaN, and so is their sum."""
    return np.asarray(np.round(f["fast_u"] + f["extended_u"], 6))


def _clock(f: Fields) -> Said:
    new = f["time"] + f["offset_min"].astype(np.int64) * 60_000 if "offset_min" in f else f["time"]
    reasons = {0x33: "set", 0x3C: "periodic", 0x55: "loss"}
    return {"reason": _rows(f["reason"], reasons, "set"), "new_ms": new}


def _therapy(f: Fields) -> Said:
    run = 0x55
    starts = (f["new"] == run) & (f["old"] != run)
    stops = (f["old"] == run) & (f["new"] != run)
    kinds = np.where(starts, Kind.DELIVERY_START.value, np.where(stops, Kind.DELIVERY_STOP.value, Kind.OTHER.value))
    return {
        "kind": kinds.astype(object),
        "source": _where(starts | stops, Source.BASAL.value),
        "reason": _where(stops, "unknown"),
    }


def _operation(f: Fields) -> Said:
    off, preparing, ready = 0x33, 0x55, 0x96
    stops = (f["old"] == ready) & np.isin(f["new"], (0x3C, 0x5A, 0x66))
    cases = [f["new"] == preparing, f["new"] == off, f["old"] == off, stops]
    kinds = [Kind.RESERVOIR_CHANGE.value, Kind.POWER_OFF.value, Kind.POWER_ON.value, Kind.DELIVERY_STOP.value]
    stops = stops & ~cases[0] & ~cases[1] & ~cases[2]
    return {
        "kind": np.select(cases, kinds, Kind.OTHER.value).astype(object),
        "source": _where(stops, Source.BASAL.value),
        "reason": _where(stops, "standby"),
    }


def _annunciation(f: Fields) -> Said:
    raised, cleared, limit = f["status"] == 0x33, f["status"] == 0x55, f["type"] == _LIMIT
    kinds = np.select(
        [limit & raised, limit, raised, cleared],
        [Kind.LIMIT_REACHED.value, Kind.OTHER.value, Kind.ALARM_RAISED.value, Kind.ALARM_CLEARED.value],
        Kind.OTHER.value,
    )
    classes = {number: alarm.value for number, (_, alarm) in _ANNUNCIATIONS.items()}
    told = _rows(f["type"], classes, AlarmClass.OTHER.value)
    alarm = ~limit & (raised | cleared)
    return {
        "kind": kinds.astype(object),
        "alarm_class": [name if one else None for name, one in zip(told, alarm.tolist(), strict=True)],
        "stops_delivery": _where(alarm & raised, value=False),
    }


_SAYS: Mapping[int, Callable[[Fields], Said]] = {
    0x000F: _clock,
    0x0033: _clock,
    0x005A: lambda f: _programmed(_both(f)),
    0x0069: lambda f: _given(_both(f)),
    0x0099: lambda f: {"rate_dose_h": f["new_u_h"], "rate_ml_h": _ml(f["new_u_h"]), "dose_unit": _UNIT},
    0x00FF: lambda f: _given(np.asarray(np.round(f["bolus_u"] + f["basal_u"], 6))),
    0x0303: _therapy,
    0x030C: _operation,
    0x033F: _annunciation,
    0x0395: lambda f: _programmed(f["programmed_u"]),
    0x039A: lambda f: {**_given(f["delivered_u"]), "reason": _rows(f["end"], _PRIMED)},
    0xF00A: lambda f: {"reason": _rows(f["reason"], {1: "alarm", 2: "user"}, "unknown")},
    0xF00E: _clock,
}
"""What the fields of a record become: columns of RECORDS; `new_ms` is the time that a clock shows after its change."""


# --- numbers and checksums -----------------------------------------------------------------------------------------------------


def _powers(mantissa: Ints, exponent: Ints) -> Floats:
    """mantissa · 10^exponent, divided where the exponent is negative: so 1.2 is 1.2."""
    return np.asarray(np.where(exponent < 0, mantissa / 10.0 ** np.maximum(-exponent, 0), mantissa * 10.0 ** np.maximum(exponent, 0)))


def _eleven_073(bits: npt.NDArray[Any], size: int) -> tuple[Floats, Bools]:
    """IEEE 11073 SFLOAT (`size` 12: bits of the mantissa) or FLOAT (24) values, NaN where there is no number; and which can be.

    Infinities and the reserved value cannot. The special values are mantissas, with exponent 0.
    """
    raw = bits.astype(np.int64)
    top = 1 << (size - 1)
    mantissa, exponent = raw & (2 * top - 1), raw >> size
    low = 1 << (3 if size == 12 else 7)
    special = (exponent == 0) & (mantissa >= top - 2) & (mantissa <= top + 2)
    none = special & ((mantissa == top - 1) | (mantissa == top))
    signed = (mantissa ^ top) - top
    value = _powers(signed, (exponent ^ low) - low)
    return np.where(special, np.nan, value), ~special | none


@cache
def _crc_table() -> npt.NDArray[np.uint16]:
    values = np.arange(256, dtype=np.uint16)
    for _ in range(8):
        values = np.where(values & 1, (values >> 1) ^ np.uint16(0x8408), values >> 1).astype(np.uint16)
    return values


def crc16(data: bytes) -> int:
    """The E2E-CRC: CRC-16/MCRF4XX (polynomial 1021 reflected, from FFFF); low byte first on the wire (docs/pump-formats.md §5.2)."""
    lookup, crc = _crc_table().tolist(), 0xFFFF
    for byte in data:
        crc = (crc >> 8) ^ lookup[(crc ^ byte) & 0xFF]
    return crc


def _crcs(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """The CRC of each row of bytes."""
    lookup = _crc_table()
    crc = np.full(len(rows), 0xFFFF, dtype=np.uint16)
    for column in rows.T:
        crc = (crc >> 8) ^ lookup[(crc ^ column) & 0xFF]
    return crc


# --- lines ---------------------------------------------------------------------------------------------------------------------

_SIG = "-0000-1000-8000-00805f9b34fb"
_CHANNELS: Mapping[str, str] = {
    "2b28": "H",
    "00000108-0000-1000-0000-009132591325": "H",
    "iddhistorydata": "H",
    "2b27": "R",
    "2a52": "R",
    "iddrecordaccesscontrolpoint": "R",
    "recordaccesscontrolpoint": "R",
    "2a2b": "T",
    "currenttime": "T",
}
"""Characteristics by UUID and by the names that the bridge gives them: history, RACP, the clock."""
_OF_MEDTRONIC = b"009132591325"


def _channel(characteristic: str) -> str | None:
    name = characteristic.casefold().replace(" ", "")
    return _CHANNELS.get(name[4:8] if name.startswith("0000") and name.endswith(_SIG) else name)


class _Logged(msgspec.Struct, gc=False):
    uuid: str
    hex: str


_logged = msgspec.json.Decoder(_Logged)
_OTHER_CHANNELS = (b"> ", b"< ", b"T ", b"? ")


@dataclass(slots=True)
class _Read:
    """The history notifications of a capture and their lines; and the lines that cannot be read: (values before it, line, bytes)."""

    values: list[bytes] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    broken: list[tuple[int, int, bytes]] = field(default_factory=list)


def _read(data: bytes) -> _Read:
    """Line by line; where all are history and can be read, at once."""
    text = data.split(b"\n")
    if data.startswith(b"H ") and data.count(b"\nH ") == len(text) - 2 and not text[-1]:
        with suppress(ValueError):
            return _Read([unhexlify(line[2:]) for line in text[:-1]], list(range(1, len(text))), [])
    found = _Read()
    values, lines = found.values, found.lines
    for number, line in enumerate(text, 1):
        try:
            if line.startswith(b"H "):
                values.append(unhexlify(line[2:].rstrip()))
                lines.append(number)
            elif line.startswith(b"{"):
                logged = _logged.decode(line)
                if _channel(logged.uuid) == "H":
                    values.append(unhexlify(logged.hex))
                    lines.append(number)
            elif line.strip() and not line.startswith(_OTHER_CHANNELS):
                found.broken.append((len(values), number, line))
        except (ValueError, RecursionError, msgspec.MsgspecError):
            found.broken.append((len(values), number, line))
    return found


_MAC = r"(?P<device>(?:.*/)?(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2})"
_TOPIC = re.compile(_MAC + r"/[^/]+/(?P<characteristic>[^/]+)")

BRIDGE_TOPICS: Mapping[str, str] = {
    ">": "InsulinDelivery/IDDRecordAccessControlPoint/Set",
    "?": "CurrentTimeService/CurrentTime/Get",
}
"""Where a bridge takes what is asked, behind the device's own topic. What it has no name for is called by its UUID: pass such topics."""


def bridge_line(topic: str, payload: bytes) -> tuple[str, bytes] | None:
    """A message of a BLE-to-MQTT bridge (docs/pump-formats.md §5.3) as (the device's topic, up to its MAC; the line that it is).

    None where it is none of a characteristic that matters here. A payload that is not comma-separated decimal bytes is kept as it is,
    for `decode` to show.
    """
    found = _TOPIC.fullmatch(topic)
    channel = _channel(found["characteristic"]) if found else None
    if found is None or channel is None:
        return None
    letter = b"<" if channel == "R" else channel.encode()
    try:
        value = bytes(int(one) for one in payload.decode("ascii").split(","))
    except ValueError:
        return found["device"], letter + b" " + payload.replace(b"\n", b" ") + b"\n"
    return found["device"], letter + b" " + value.hex().encode() + b"\n"


def bridge_request(device: str, line: bytes, topics: Mapping[str, str] = BRIDGE_TOPICS) -> tuple[str, bytes]:
    """What `Ask.data` of the dialogue is to a bridge: topic and payload. Raises InputError for a line that asks nothing."""
    letter, _, value = line.decode("ascii", "replace").partition(" ")
    if letter not in topics:
        raise InputError(f"{line!r} is no request.", code="request")
    asked = bytes.fromhex(value) if letter == ">" else b""
    return f"{device}/{topics[letter]}", ",".join(map(str, asked)).encode()


def recognise(name: str, data: bytes) -> bool:
    """Whether most of the first lines can be read, and the history among them are records of known types."""
    head = data[:20_000]
    found = _read(head[: head.rfind(b"\n") + 1] if len(head) < len(data) else head)
    if not found.values or len(found.broken) * 4 > len(found.values):
        return False
    known = [v for v in found.values if len(v) >= _HEAD and ((code := int.from_bytes(v[:2], "little")) in _STANDARD or code in _VENDOR)]
    return len(known) * 10 >= len(found.values) * 9


def read_files(
    files: Sequence[tuple[str, bytes]], *, pump_id: str | None = None, model: str | None = None, anchor: Anchor | None = None
) -> list[Capture]:
    """One capture a file; a log with Medtronic's characteristics is of a "780g" unless told otherwise. Raises InputError without a pump."""
    if pump_id is None:
        raise InputError("History records do not say which pump they are of.", do=f"Name it: --pump {FAMILY}:SERIAL.", code="no_pump")
    return [
        Capture(
            data=data,
            family=FAMILY,
            pump_id=pump_id,
            model=model or ("780g" if _OF_MEDTRONIC in data else None),
            anchor=anchor,
        )
        for _, data in files
    ]


# --- decode --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Heads:
    """The values of a capture side by side: all bytes (and some more, so that no read runs over), start and length of each, heads."""

    flat: npt.NDArray[np.uint8]
    starts: Ints
    lengths: Ints
    codes: Ints
    seqs: Ints
    offsets: Ints

    def rows(self, mine: Ints, first: int, size: int) -> npt.NDArray[np.uint8]:
        """So many bytes of each of these values, from `first` on."""
        return np.asarray(self.flat[(self.starts[mine] + first)[:, None] + np.arange(size)])


def _heads(values: Sequence[bytes]) -> _Heads:
    lengths = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
    starts = np.cumsum(lengths) - lengths
    flat = np.frombuffer(b"".join(values) + bytes(64), dtype=np.uint8)
    rows = flat[starts[:, None] + np.arange(_HEAD)]
    heads = np.ascontiguousarray(rows).view(np.dtype([("type", "<u2"), ("seq", "<u4"), ("offset", "<u2")])).reshape(-1)
    return _Heads(flat, starts, lengths, heads["type"].astype(np.int64), heads["seq"].astype(np.int64), heads["offset"].astype(np.int64))


class _Decoder:
    """One capture: sorts its values into records and faults."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.profile = profile_of(capture.model)
        self.read = _read(capture.data)
        self.heads = _heads(self.read.values)
        size = len(self.read.values)
        self.why: dict[int, tuple[str, str]] = {}
        self.kind = np.full(size, None, dtype=object)
        self.detail = np.full(size, "{}", dtype=object)
        self.amounts = {name: np.full(size, np.nan) for name in _AMOUNTS}
        self.words = {name: np.full(size, None, dtype=object) for name in _WORDS}
        self.new_ms = np.zeros(size, dtype=np.int64)
        self.has_new = np.zeros(size, dtype=np.bool_)

    def decoded(self) -> Decoded:
        checked = self._checked()
        lost = (self.heads.seqs[checked] == _LOST) & (self.heads.codes[checked] != _CORRUPTION)
        self._fail(checked[lost], "number", "the record has no sequence number")
        checked = checked[~lost]
        known = {**_STANDARD, **(_MEDTRONIC if self.profile.medtronic else {})}
        for code in np.unique(self.heads.codes[checked]).tolist():
            mine = checked[self.heads.codes[checked] == code]
            record = known.get(code) or (_KEPT if code in _VENDOR else None)
            if record is None:
                self._fail(mine, "type", f"{code:04X} is no type of record")
            else:
                self._take(code, record, mine)
        return self._tables()

    def _checked(self) -> Ints:
        """The values that are long enough and, with E2E, whose CRC holds."""
        least = _HEAD + (_CRC if self.profile.crc else 0)
        good = self.heads.lengths >= least
        self._fail(np.flatnonzero(~good), "length", f"a record has {least} bytes or more")
        if not self.profile.crc:
            return np.flatnonzero(good)
        for length in np.unique(self.heads.lengths[good]).tolist():
            mine = np.flatnonzero(good & (self.heads.lengths == length))
            rows = self.heads.rows(mine, 0, length)
            told = rows[:, -2].astype(np.uint16) | rows[:, -1].astype(np.uint16) << 8
            bad = mine[_crcs(rows[:, :-2]) != told]
            good[bad] = False
            self._fail(bad, "crc", "the CRC of a record does not hold")
        return np.flatnonzero(good)

    def _fail(self, rows: Ints, code: str, why: str) -> None:
        for row in rows.tolist():
            self.why[row] = (code, why)

    def _take(self, code: int, record: _Record, mine: Ints) -> None:
        """Records of one type, those of equal flags together, for they have one layout."""
        if not record.varies:
            self._take_alike(code, record, mine, 0xFF)
            return
        flags = self.heads.flat[self.heads.starts[mine] + _HEAD]
        for value in np.unique(flags).tolist():
            self._take_alike(code, record, mine[flags == value], value)

    def _take_alike(self, code: int, record: _Record, mine: Ints, flags: int) -> None:
        wide = record.wide and self.profile.wide
        there = [(one[0], one[1]) for one in record.fields if len(one) == 2 or flags >> one[2] & 1]
        layout = np.dtype([(name, *_stored(kind, wide=wide)) for name, kind in there])
        size = self.heads.lengths[mine] - _HEAD - (_CRC if self.profile.crc else 0)
        fits = size >= layout.itemsize if record.tail else size == layout.itemsize
        self._fail(mine[~fits], "length", f"a record {code:04X} has {layout.itemsize} bytes of data{' or more' if record.tail else ''}")
        mine = mine[fits]
        if not len(mine):
            return
        fields: dict[str, npt.NDArray[Any]] = {}
        sound = np.ones(len(mine), dtype=np.bool_)
        if layout.itemsize:
            rows = np.ascontiguousarray(self.heads.rows(mine, _HEAD, layout.itemsize)).view(layout).reshape(-1)
            for name, kind in there:
                fields[name], possible = _value(rows[name], kind)
                sound &= possible
        if code == 0x00FF:
            sound &= _days(fields["year"], fields["month"], fields["day"])[1]
        self._fail(mine[~sound], "value", f"a record {code:04X} holds a value that cannot be")
        mine, fields = mine[sound], {name: values[sound] for name, values in fields.items()}
        if not len(mine):
            return
        said: Said = {"kind": record.kind.value, **record.fixed, **(_SAYS[code](fields) if fields and code in _SAYS else {})}
        if "new_ms" in said:
            self.new_ms[mine], self.has_new[mine] = said.pop("new_ms"), True
        for name, values in said.items():
            column = self.kind if name == "kind" else self.amounts[name] if name in self.amounts else self.words[name]
            column[mine] = values
        if fields:
            self.detail[mine] = _details(fields, dict(there))

    def _tables(self) -> Decoded:
        """RECORDS, FAULTS and ANCHORS of what was found."""
        heads, size = self.heads, len(self.read.values)
        good = np.array([row not in self.why for row in range(size)], dtype=np.bool_)
        numbered = good & (heads.seqs != _LOST)
        place = _Places(np.flatnonzero(numbered), heads.seqs[numbered], self.capture.part)
        faults: list[dict[str, Any]] = []
        for row in np.flatnonzero(good & ~numbered).tolist():
            after, before = place.around(row)
            if after is None and before is None:
                self.why[row] = ("place", "data corruption without a sequence number, received beside no other record")
                good[row] = False
            else:
                self.detail[row] = dump_detail({"after": after, "before": before})
        for row, (code, why) in self.why.items():
            own = int(heads.seqs[row]) if code in ("type", "value") or (code == "length" and heads.lengths[row] >= _HEAD) else None
            sides = (None, None) if own is not None else place.around(row)
            faults.append(self._fault(self.read.lines[row], self.read.values[row], code, why, own, sides))
        for row, line, raw in self.read.broken:
            faults.append(self._fault(line, raw, "line", "the line is no value of a characteristic", None, place.around(row - 0.5)))
        here = np.flatnonzero(good)
        anchors: list[dict[str, Any]] = []
        if (anchor := self.capture.anchor) is not None:
            newest = int(heads.seqs[numbered].max()) if numbered.any() else None
            behind = anchor.after or (None if newest is None else sequence.key_of(0, newest))
            if behind is None:
                why = "the clock was read behind no record"
                faults.append(self._fault(0, b"", "anchor", why, None, (None, None)) | {"hole": False})
            else:
                anchors.append(_anchor_row(self.capture, anchor, behind))
        for fault in faults:
            at = f"0:{fault['seq']}:{fault['after_seq']}:{fault['before_seq']}"
            fault["fault_id"] = fault_id(self.capture.pump_id, fault["code"], at, fault["raw"])
        faults.sort(key=lambda one: one["offset"])
        return Decoded(self._records(here, numbered), table(FAULTS, faults), table(ANCHORS, anchors))

    def _fault(self, line: int, raw: bytes, code: str, why: str, own: int | None, sides: tuple[int | None, int | None]) -> dict[str, Any]:
        return {
            "capture": self.capture.sha256,
            "part": self.capture.part,
            "offset": line,
            "pump_id": self.capture.pump_id,
            "log_epoch": 0,
            "code": code,
            "message": why if own is None else f"{why} (record {own})",
            "seq": own,
            "after_seq": sides[0],
            "before_seq": sides[1],
            "hole": True,
            "raw": raw,
        }

    def _records(self, here: Ints, numbered: Bools) -> pa.Table:
        size = len(here)
        seqs = pa.array(self.heads.seqs[here], mask=~numbered[here])
        keys = pc.binary_join_element_wise(pa.scalar(sequence.key_of(0, 0)[:-1]), seqs.cast(pa.string()).fill_null("lost"), "")
        values, lines = self.read.values, self.read.lines
        found: dict[str, pa.Array] = {
            "capture": pa.repeat(pa.scalar(self.capture.sha256), size),
            "part": pa.repeat(pa.scalar(self.capture.part, pa.string()), size),
            "offset": pa.array([lines[row] for row in here.tolist()], pa.int64()),
            "pump_id": pa.repeat(pa.scalar(self.capture.pump_id), size),
            "log_epoch": pa.repeat(pa.scalar(0, pa.int32()), size),
            "record_key": keys,
            "seq": seqs,
            "contiguous": pa.repeat(pa.scalar(value=True), size),
            "kind": pa.array(self.kind[here], pa.string()),
            "new_time": pa.array(self.new_ms[here], mask=~self.has_new[here]).cast(pa.timestamp("ms")),
            "native_ms": pa.array(self.heads.offsets[here] * 1000),
            "native_code": _names(self.heads.codes[here]),
            "detail": pa.array(self.detail[here], pa.string()),
            "raw": pa.array([values[row] for row in here.tolist()], pa.binary()),
            **{name: pa.array(column[here], from_pandas=True) for name, column in self.amounts.items()},
            **{name: pa.array(column[here], RECORDS.field(name).type) for name, column in self.words.items()},
        }
        return pa.table({f.name: found[f.name] if f.name in found else pa.nulls(size, f.type) for f in RECORDS}, schema=RECORDS)


_AMOUNTS = ("rate_ml_h", "rate_dose_h", "volume_ml", "programmed_ml", "dose", "programmed_dose")
_WORDS = ("source", "reason", "target", "at", "alarm_class", "stops_delivery", "dose_unit")


def _names(codes: Ints) -> pa.Array:
    """Types as four hex digits."""
    distinct, which = np.unique(codes, return_inverse=True)
    return pa.array([f"{code:04X}" for code in distinct.tolist()], pa.string()).take(pa.array(which))


def _stored(kind: str | _Words, *, wide: bool) -> tuple[Any, ...]:
    """How numpy reads a field: type, and how many of it where it is more than one."""
    if not isinstance(kind, str):
        return (U8,)
    if kind == TIME:
        return (U8, 7)
    if kind in (AMOUNT, RATE):
        return (U32 if wide else U16,)
    return (U16 if kind in (NUMBER, VENDOR16) else kind,)


def _value(stored: npt.NDArray[Any], kind: str | _Words) -> tuple[npt.NDArray[Any], Bools]:
    """The values of a field, and which of them can be. A time is in ms since 1970."""
    if not isinstance(kind, str):
        return stored, np.isin(stored, list(kind))
    if kind == TIME:
        return _times(stored.astype(np.int64))
    if kind == VENDOR16:
        return stored, np.isin(stored, list(_ANNUNCIATIONS)) | ((stored >= _VENDOR.start) & (stored < _VENDOR.stop))
    if kind in (NUMBER, AMOUNT, RATE):
        values, possible = _eleven_073(stored, 24 if stored.dtype.itemsize == 4 else 12)
        if kind != NUMBER:
            possible &= np.isnan(values) & (kind != RATE) | (values >= 0) & (values <= _MOST)
        return values, possible
    return stored, np.ones(len(stored), dtype=np.bool_)


def _days(year: npt.NDArray[Any], month: npt.NDArray[Any], day: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Bools]:
    """Dates, and which of them are in the calendar."""
    year, month, day = (part.astype(np.int64) for part in (year, month, day))
    first = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    days = first.astype("datetime64[D]") + (day - 1)
    possible = (year >= 1970) & (year < 2200) & (month >= 1) & (month <= 12) & (day >= 1) & (days.astype("datetime64[M]") == first)
    return days, possible


def _times(parts: Ints) -> tuple[Ints, Bools]:
    year, month, day, hour, minute, second = parts[:, 0] | parts[:, 1] << 8, *(parts[:, i] for i in range(2, 7))
    days, possible = _days(year, month, day)
    ms = days.astype("datetime64[ms]").astype(np.int64) + ((hour * 60 + minute) * 60 + second) * 1000
    return ms, possible & (hour < 24) & (minute < 60) & (second < 60)


def _details(fields: Fields, kinds: Mapping[str, str | _Words]) -> list[str]:
    """JSON of each record's fields, with sorted keys; what is no number is null."""
    columns = []
    for name in sorted(fields):
        values, kind = fields[name], kinds[name]
        if kind == VENDOR16:
            columns.append([f'"{_ANNUNCIATION.get(value, f"{value:04X}")}"' for value in values.tolist()])
        elif not isinstance(kind, str):
            columns.append([f'"{kind[value]}"' for value in values.tolist()])
        elif kind == TIME:
            columns.append([f'"{text}"' for text in np.datetime_as_string(values.astype("datetime64[ms]"), unit="s").tolist()])
        elif values.dtype.kind == "f" and np.isnan(values).any():
            columns.append(["null" if isnan(value) else repr(value) for value in values.tolist()])
        else:
            columns.append(values.tolist())
    pattern = "{" + ",".join(f'"{name}":%s' for name in sorted(fields)) + "}"
    return [pattern % row for row in zip(*columns, strict=True)]


class _Places:
    """The numbers of the readable neighbours of a place in a capture; at its ends those beside the range that its part names."""

    def __init__(self, rows: Ints, seqs: Ints, part: str | None) -> None:
        self._rows, self._seqs = rows, seqs
        numbers = _numbers(part)
        self._first = numbers[0][0] - 1 if numbers else None
        self._last = numbers[-1][1] + 1 if numbers else None

    def around(self, row: float) -> tuple[int | None, int | None]:
        at = int(np.searchsorted(self._rows, row))
        after = int(self._seqs[at - 1]) if at > 0 else self._first
        return after, int(self._seqs[at]) if at < len(self._rows) else self._last


def _anchor_row(capture: Capture, anchor: Anchor, after: str) -> dict[str, Any]:
    return {
        "capture": capture.sha256,
        "pump_id": capture.pump_id,
        "log_epoch": 0,
        "part": capture.part,
        "after": after,
        "pump_clock": anchor.pump_clock,
        "utc": anchor.utc.astimezone(UTC),
        "round_trip_ms": anchor.round_trip_ms,
    }


def decode(capture: Capture) -> Decoded:
    """Records, faults and the anchor of one capture. `offset` is a line number, `native_ms` the record's own offset in ms."""
    return _Decoder(capture).decoded()


# --- assemble ------------------------------------------------------------------------------------------------------------------

_PAIRS = {"005A": "0066", "0069": "0096", "033F": "0356"}
_BASES = ("000F", "F00E")


def assemble(pump_id: str, records: pa.Table, faults: pa.Table, anchors: pa.Table) -> Log:
    """The log by its sequence numbers; then its time, and what several records tell together, whichever captures they came in.

    Two parts of one thing are one event, under the key of the first. A record without a base time is part of the hole before it, or
    of one at the start of the log. A stop or start that the maker's own record tells again is told once.
    """
    has_number = records.column("seq").is_valid()
    numbered = records.filter(has_number)
    log = sequence.assemble(pump_id, numbered, faults, anchors)
    book = _Book(pump_id, log, records.filter(pc.invert(has_number)))
    book.set_times()
    book.join_parts()
    book.time_boluses()
    book.tell_once()
    book.rate_starts()
    where = book.event_ids()
    mine, lost = iter(log.event_of_record.to_pylist()), iter(book.lost_at)
    of = [where[next(mine)] if known else where[next(lost)] for known in has_number.to_pylist()]
    return replace(log, events=book.events(), anchors=book.anchors(), event_of_record=pa.array(of, pa.string()))


class _Book:
    """The rows of a log while they are put right. `into` says which row an event is told by: another one, where it is no event itself."""

    def __init__(self, pump_id: str, log: Log, lost: pa.Table) -> None:
        self.pump_id = pump_id
        self._anchors = log.anchors
        self.table, self._shift = log.events, np.arange(log.events.num_rows)
        self.lost_at: list[str] = []
        if lost.num_rows:
            self._place(lost.to_pylist())
        size = self.table.num_rows
        self.into = np.arange(size)
        self.code = np.array(self.table.column("native_code").to_pylist(), dtype=object)
        self.kind = np.array(self.table.column("kind").to_pylist(), dtype=object)
        self.hole = np.isin(self.kind, [kind.value for kind in HOLES])
        self.is_base = np.isin(self.code, _BASES) & (self.kind == Kind.CLOCK_CHANGE.value)
        self.loss = (self.kind == Kind.CLOCK_CHANGE.value) & (np.array(self.table.column("reason").to_pylist(), dtype=object) == "loss")
        self.seq = self.table.column("seq").fill_null(-1).to_numpy()
        self.offset = self.table.column("native_ms").fill_null(0).to_numpy()
        self.base = np.full(size, -1)
        self.native = np.zeros(size, dtype=np.int64)
        self.has_time = np.zeros(size, dtype=np.bool_)
        self.changed: dict[str, dict[int, Any]] = {}

    def _place(self, lost: list[dict[str, Any]]) -> None:
        """Puts a hole where a corruption without a number was received, unless there is one already."""
        keys, seqs = self.table.column("record_key").to_pylist(), self.table.column("seq").to_pylist()
        ids, codes = self.table.column("event_id").to_pylist(), self.table.column("native_code").to_pylist()
        rows = [row for row, seq in enumerate(seqs) if seq is not None]
        numbers = [seqs[row] for row in rows]
        new: dict[int, dict[str, Any]] = {}
        for record in lost:
            near = json.loads(record["detail"])
            if near["after"] is not None:
                at = int(np.searchsorted(numbers, near["after"], side="right"))
                row = rows[at - 1] + 1 if at else 0
            else:
                at = int(np.searchsorted(numbers, near["before"]))
                row = rows[at] if at < len(rows) else len(seqs)
            there = next((one for one in (row, row - 1) if 0 <= one < len(seqs) and seqs[one] is None and not codes[one]), None)
            if there is not None:
                self.lost_at.append(ids[there])
                continue
            key = f"gap:0:behind-{keys[row - 1]}" if row else "gap:0:start"
            said = {"native_code": "03A6", "raw": min(record["raw"], new[row]["raw"]) if row in new else record["raw"]}
            new[row] = {**sequence.hole_row(self.pump_id, 0, Kind.DATA_CORRUPTION, key), **said}
            self.lost_at.append(new[row]["event_id"])
        if not new:
            return
        places = np.concatenate((np.arange(len(seqs)), np.array(list(new)) - 0.5))
        order = np.argsort(places, kind="stable")
        both = pa.concat_tables([self.table, pa.Table.from_pylist(list(new.values()), schema=EVENTS)])
        self.table = both.take(pa.array(order)).combine_chunks()
        self._shift = np.flatnonzero(order < len(seqs))

    # --- time ----------------------------------------------------------------------------------------------------------------

    def set_times(self) -> None:
        """Wall time and elapsed time from the last base with no hole in between (docs/pump-formats.md §5.2, time rules).

        Elapsed time begins, behind each hole or loss, at the time that the first base shows, and runs on over all later ones.
        """
        size = len(self.code)
        if not size:
            return
        number = np.arange(size)
        before = np.concatenate(([-1], np.maximum.accumulate(np.where(self.is_base, number, -1))[:-1]))
        hole = np.maximum.accumulate(np.where(self.hole, number, -1))
        based = ~self.hole & (before > hole)
        new = self.table.column("new_time").cast(pa.int64()).fill_null(0).to_numpy()
        elapsed = self._elapsed(based, new)
        own = self.loss | (self.is_base & ~based)
        shown = np.where(own, new, new[before] + self.offset)
        self.native = np.where(self.is_base, elapsed, elapsed[before] + self.offset)
        self.base = np.where(based, before, -1)
        self.has_time = based | self.is_base
        self._absorb(np.flatnonzero(~self.hole & ~self.has_time), hole)
        mask = ~self.has_time
        self._replace("pump_time", pa.array(shown, mask=mask).cast(pa.timestamp("ms")))
        self._replace("native_ms", pa.array(self.native, mask=mask))

    def _elapsed(self, based: Bools, new: Ints) -> Ints:
        """Elapsed time at each base, 0 elsewhere."""
        bases = np.flatnonzero(self.is_base)
        fresh = ~based[bases] | self.loss[bases]
        passed = np.cumsum(np.where(fresh, 0, self.offset[bases]))
        begun = np.maximum.accumulate(np.where(fresh, np.arange(len(bases)), 0))
        elapsed = np.zeros(len(based), dtype=np.int64)
        elapsed[bases] = passed - passed[begun] + new[bases[begun]]
        return elapsed

    def _absorb(self, rows: Ints, hole: Ints) -> None:
        """Records without a base become part of the hole before them; at the start of the log, a hole of their own."""
        for before in np.unique(hole[rows]).tolist():
            mine = rows[hole[rows] == before]
            if before >= 0:
                detail = {**json.loads(self.table.column("detail")[before].as_py()), "without_time": len(mine)}
                self._set("detail", before, dump_detail(detail))
            else:
                key = f"gap:0:{self.seq[mine[0]]}-{self.seq[mine[-1]]}"
                told = sequence.hole_row(self.pump_id, 0, Kind.DATA_CORRUPTION, key, dump_detail({"without_time": len(mine)}))
                for name, value in {**dict.fromkeys(EVENTS.names), **told}.items():
                    self._set(name, int(mine[0]), value)
                self.hole[mine[0]] = True
            self.into[mine] = before if before >= 0 else mine[0]

    # --- what belongs together -----------------------------------------------------------------------------------------------

    def join_parts(self) -> None:
        """Part 2 with the next number and the same offset goes into part 1: its fields, and its bytes behind the first's."""
        second = np.array([_PAIRS.get(code, "-") for code in self.code[:-1]], dtype=object) == self.code[1:]
        near = (np.diff(self.seq) == 1) & (np.diff(self.offset) == 0) & self.has_time[1:] & self.has_time[:-1]
        rows = np.flatnonzero(second & near)
        if not len(rows):
            return
        wanted = self.table.select(["detail", "raw", "conflict"])
        ones, twos = wanted.take(pa.array(rows)).to_pylist(), wanted.take(pa.array(rows + 1)).to_pylist()
        for row, one, two in zip(rows.tolist(), ones, twos, strict=True):
            if one["conflict"] or two["conflict"]:
                parts = [json.loads(one["detail"]), json.loads(two["detail"])]
                others = sorted({other for part in parts for other in part.get("conflicts_with", ())})
                detail = dump_detail({**parts[1], **parts[0], "conflicts_with": others})
                self._set("conflict", row, True)
            else:
                detail = one["detail"][:-1] + "," + two["detail"][1:]
            self._set("detail", row, detail)
            self._set("raw", row, one["raw"] + two["raw"])
        self.into[rows + 1] = rows

    def time_boluses(self) -> None:
        """How long boluses took: the effective minutes; where these are 0, since the programming of that id and the start after it.

        Nothing is known across a cut, and a bolus of which nothing came took no time.
        """
        cut = np.cumsum(self.hole | self.loss)
        rows = np.flatnonzero(np.isin(self.code, ("005A", "0069")) & self.has_time)
        asked: dict[tuple[int, int], tuple[int, Any, Any]] = {}
        amounts = [self.table.column(name) for name in ("programmed_dose", "programmed_ml", "dose")]
        for row in rows.tolist():
            detail = json.loads(self._get("detail", row))
            bolus = int(cut[row]), detail["bolus_id"]
            if self.code[row] == "005A":
                asked[bolus] = int(self.native[row]), amounts[0][row].as_py(), amounts[1][row].as_py()
                continue
            begun = asked.get(bolus)
            if begun is not None:
                self._set("programmed_dose", row, begun[1])
                self._set("programmed_ml", row, begun[2])
            lasted = detail["minutes"] * 60.0
            if not lasted and begun is not None and "start_offset_s" in detail:
                lasted = (int(self.native[row]) - begun[0]) / 1000 - detail["start_offset_s"]
            if lasted > 0 and amounts[2][row].as_py() != 0:
                self._set("duration_s", row, float(lasted))

    def tell_once(self) -> None:
        """F00A and F00B beside a 0303 of the same meaning and offset, with no other turn between them, are told by that."""
        turns = np.flatnonzero(np.isin(self.code, ("0303", "F00A", "F00B")) & (self.kind != Kind.OTHER.value) & self.has_time)
        for number, row in enumerate(turns.tolist()):
            if self.code[row] == "0303":
                continue
            beside = [int(turns[at]) for at in (number - 1, number + 1) if 0 <= at < len(turns)]
            if any(
                self.code[one] == "0303"
                and self.kind[one] == self.kind[row]
                and (self.base[one], self.offset[one]) == (self.base[row], self.offset[row])
                for one in beside
            ):
                for name, value in (("kind", Kind.OTHER.value), ("source", None), ("reason", None)):
                    self._set(name, row, value)

    def rate_starts(self) -> None:
        """A start runs at the rate that a 0099 of the same instant tells; at 0 where the 0099 before it, or the next one, says so.

        What runs at 0 must not count as delivery. Where no 0099 tells, the rate is not known, and above 0 (docs/semantics.md §1).
        """
        rates = np.flatnonzero((self.code == "0099") & self.has_time)
        turns = np.flatnonzero(np.isin(self.code, ("0303", "F00A", "F00B")) & (self.kind != Kind.OTHER.value) & self.has_time)
        run = np.cumsum(self.hole | self.loss)
        names = ("rate_dose_h", "rate_ml_h", "dose_unit")
        columns = {name: self.table.column(name) for name in names}
        for number, row in enumerate(turns.tolist()):
            if self.kind[row] != Kind.DELIVERY_START.value or self._get("kind", row) == Kind.OTHER.value:
                continue
            at = int(np.searchsorted(rates, row))
            after, before = rates[at : at + 1].tolist(), rates[max(0, at - 1) : at].tolist()
            near = [one for one in (*after, *before) if run[one] == run[row]]
            told = next((one for one in near if self.native[one] == self.native[row]), None)
            if told is not None:
                said = {name: columns[name][told].as_py() for name in names}
            elif any(columns["rate_dose_h"][one].as_py() == 0 for one in before if one in near) or any(
                json.loads(self._get("detail", one))["old_u_h"] == 0
                for one in after
                if one in near and (number + 1 == len(turns) or one < turns[number + 1])
            ):
                said = {"rate_dose_h": 0.0, "rate_ml_h": 0.0, "dose_unit": _UNIT}
            else:
                continue
            for name, value in said.items():
                self._set(name, row, value)

    # --- the result ----------------------------------------------------------------------------------------------------------

    def _get(self, name: str, row: int) -> Any:
        changed = self.changed.get(name, {})
        return changed[row] if row in changed else self.table.column(name)[row].as_py()

    def _set(self, name: str, row: int, value: Any) -> None:
        self.changed.setdefault(name, {})[row] = value

    def _replace(self, name: str, column: pa.Array) -> None:
        self.table = self.table.set_column(self.table.schema.get_field_index(name), EVENTS.field(name), column)

    def events(self) -> pa.Table:
        """The events that are left, with all changes."""
        for name, values in self.changed.items():
            chosen = np.zeros(len(self.code), dtype=np.bool_)
            rows = sorted(values)
            chosen[rows] = True
            kind = EVENTS.field(name).type
            column = self.table.column(name).combine_chunks()
            self._replace(name, pc.replace_with_mask(column, pa.array(chosen), pa.array([values[row] for row in rows], kind)))
        self.changed = {}
        return self.table.filter(pa.array(self.into == np.arange(len(self.into)))).combine_chunks()

    def event_ids(self) -> dict[str, str]:
        """By the id that a row began with, the id of the event that tells it."""
        ids = self.table.column("event_id").to_pylist()
        changed = self.changed.get("event_id", {})
        final = [changed.get(row, began) for row, began in enumerate(ids)] if changed else ids
        return {began: final[into] for began, into in zip(ids, self.into.tolist(), strict=True)}

    def anchors(self) -> tuple[PlacedAnchor, ...]:
        """The anchors behind the rows that are left."""
        row_of = np.cumsum(self.into == np.arange(len(self.into))) - 1
        return tuple(replace(anchor, after=int(row_of[self.into[self._shift[anchor.after]]])) for anchor in self._anchors)


# --- download ------------------------------------------------------------------------------------------------------------------

REPORT, COUNT, ABORT = 0x33, 0x5A, 0x55
"""The requests that there are: report records, report their number, abort. None of them changes a pump."""
_NULL, _ALL, _RANGE, _FIRST, _LAST = 0x0F, 0x33, 0x5A, 0x66, 0x69
_BY_NUMBER = 0x0F
_RESPONSE, _COUNTED = 0x0F, 0x66
_SUCCESS, _NO_RECORDS, _NOT_COMPLETED = 0xF0, 0x06, 0x08
_REFUSALS = {
    0x02: "it does not know the request",
    0x03: "the operator is invalid",
    0x04: "it does not know the operator",
    0x05: "the operand is invalid",
    0x09: "it does not know the operand",
    0x0A: "the request is not applicable",
}
_PAGE = 40
_TRIES = 3
_SHORT_S, _PAGE_S = 5.0, 15.0
_READ_CLOCK = b"? 2a2b\n"
_RANGES = re.compile(r"\d+-\d+(,\d+-\d+)*")
_LONGEST = 2**22

Range = tuple[int, int]
"""First and last number, both in it."""


def racp_request(opcode: int, operator: int, *numbers: int) -> bytes:
    """A RACP request, without E2E (docs/pump-formats.md §5.1). Raises InputError for one that does not only read, such as delete (3C)."""
    if opcode not in (REPORT, COUNT, ABORT):
        raise InputError(f"RACP request {opcode:02X} does more than read.", code="request")
    operand = b"" if operator == _NULL else b"".join((bytes((_BY_NUMBER,)), *(one.to_bytes(4, "little") for one in numbers)))
    return bytes((opcode, operator)) + operand


def _numbers(part: str | None) -> list[Range]:
    """The ranges that a capture's part names; none where it is something else."""
    if part is None or not _RANGES.fullmatch(part):
        return []
    return [(int(low), int(high)) for low, _, high in (one.partition("-") for one in part.split(","))]


def _runs(numbers: Iterable[int]) -> list[Range]:
    """Numbers as ranges, in order."""
    runs: list[Range] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs


def _without(whole: Range, known: Iterable[Range]) -> list[Range]:
    """What of a range is in none of the known ones, in order."""
    left, at = [], whole[0]
    for low, high in sorted(known):
        if low > at:
            left.append((at, min(low - 1, whole[1])))
        at = max(at, high + 1)
        if at > whole[1]:
            break
    if at <= whole[1]:
        left.append((at, whole[1]))
    return [one for one in left if one[0] <= one[1]]


def _values(received: bytes, letter: bytes) -> Iterator[bytes]:
    """The values of the whole lines of one channel; a line that is no hex is none."""
    for line in received.split(b"\n")[:-1]:
        if line.startswith(letter + b" "):
            try:
                yield unhexlify(line[2:].strip())
            except ValueError:
                continue


def _answer(received: bytes, opcode: int, *, crc: bool) -> tuple[int, int] | None:
    """The response to a request of this opcode as (code, number of records), where it is there.

    What other services send over the same characteristic (06 00 01 xx, 01 xx), and what its CRC disproves, is no response.
    """
    for value in _values(received, b"<"):
        body = value
        if crc:
            if len(value) < 5 or crc16(value[:-2]) != int.from_bytes(value[-2:], "little"):
                continue
            body = value[:-3]
        if body[:2] == bytes((_RESPONSE, _NULL)) and body[2:3] == bytes((opcode,)) and len(body) == 4:
            return body[3], 0
        if body[:2] == bytes((_COUNTED, _NULL)) and opcode == COUNT and len(body) in (4, 6):
            return _SUCCESS, int.from_bytes(body[2:], "little")
    return None


def _line(letter: bytes, value: bytes) -> bytes:
    return letter + b" " + value.hex().encode() + b"\n"


HELLO = Ask(
    data=_line(b">", racp_request(COUNT, _ALL)),
    missing=lambda received: 0 if _answer(received, COUNT, crc=False) else 1,
    timeout_s=1.5,
    what="asking for an insulin delivery service",
)


def is_hello(answer: bytes) -> bool:
    """Whether this is what a pump of the family answers to HELLO."""
    return _answer(answer, COUNT, crc=False) is not None


def download(pump_id: str, known: Iterable[CaptureHead], *, model: str | None = None) -> Dialogue:
    """Fetches the records that no known capture names in its part: blocks of 40 numbers, the newest block first.

    `Ask.data` and `Reply.data` are lines as in a capture. What is missing of a block is asked for again; what is repeated, retained or
    of another service is dropped; without a response the request is aborted and asked again. `model` (default: that of the last
    capture) names the profile. Raises LinkError where nothing answers, PumpError for a refusal.
    """
    heads = list(known)
    model = model or next((head.model for head in reversed(heads) if head.model), None)
    return _Download(pump_id, model, [one for head in heads for one in _numbers(head.part)]).run()


@dataclass(slots=True)
class _Answered:
    """What came of one request: its history values, and the response, if one came."""

    values: list[bytes]
    code: int | None
    count: int


class _Download:
    """One download. Its states are its methods, in their order: count, newest, clock, oldest, blocks."""

    def __init__(self, pump_id: str, model: str | None, known: Sequence[Range]) -> None:
        self.pump_id, self.model, self.known = pump_id, model, known
        self.crc = profile_of(model).crc
        self.counter = 0
        self.parts = 0
        self.done = self.total = 0
        self.complete = True

    def run(self) -> Dialogue:
        count = yield from self._settled(racp_request(COUNT, _ALL), "counting the records", optional=True)
        newest = yield from self._one(_LAST, "asking for the newest record")
        if newest is None:
            return self._summary(None)
        last, value = newest
        clock = yield from self._read_clock()
        if clock is not None or not any(low <= last <= high for low, high in self.known):
            yield self._got([value], f"{last}-{last}", clock)
        first = yield from self._oldest(last, count.count)
        if count.code == _SUCCESS and count.count < last - first + 1:
            yield Note(f"the pump has {count.count} records of the numbers {first} to {last}")
        missing = _without((first, last), [*self.known, (last, last)])
        self.total = sum(high - low + 1 for low, high in missing)
        for low, high in reversed(missing):
            for top in range(high, low - 1, -_PAGE):
                yield from self._block(max(low, top - _PAGE + 1), top)
        return self._summary(clock)

    def _summary(self, clock: Anchor | None) -> Summary:
        offset = (clock.pump_clock - clock.utc.replace(tzinfo=None)).total_seconds() if clock else None
        return Summary(pump_id=self.pump_id, model=self.model, new_parts=self.parts, clock_offset_s=offset, complete=self.complete)

    def _got(self, values: Sequence[bytes], part: str | None, anchor: Anchor | None = None) -> Got:
        self.parts += 1
        data = b"".join(_line(b"H", value) for value in values)
        return Got(Capture(data=data, family=FAMILY, pump_id=self.pump_id, model=self.model, part=part, anchor=anchor))

    # --- one request ---------------------------------------------------------------------------------------------------------

    def _exchange(self, body: bytes, what: str, timeout_s: float) -> Generator[Step, Reply | None, _Answered]:
        opcode, request = body[0], body
        if self.crc:
            request = body + bytes((self.counter,))
            request += crc16(request).to_bytes(2, "little")
            self.counter = (self.counter + 1) % 256
        reply = yield Ask(
            data=_line(b">", request),
            missing=lambda received: 0 if _answer(received, opcode, crc=self.crc) else 1,
            timeout_s=timeout_s,
            what=what,
            done=self.done,
            total=self.total,
        )
        assert reply is not None
        code, count = _answer(reply.data, opcode, crc=self.crc) or (None, 0)
        return _Answered(list(dict.fromkeys(_values(reply.data, b"H"))), code, count)

    def _abort(self) -> Generator[Step, Reply | None, None]:
        yield Note("no response: aborting")
        yield from self._exchange(racp_request(ABORT, _NULL), "aborting", _SHORT_S)

    def _settled(self, body: bytes, what: str, *, optional: bool = False) -> Generator[Step, Reply | None, _Answered]:
        """A request that is answered, if need be at the third time. A refusal of an optional one is an answer."""
        for _ in range(_TRIES):
            answered = yield from self._exchange(body, what, _SHORT_S)
            if answered.code is None:
                yield from self._abort()
            elif answered.code != _NOT_COMPLETED:
                if not optional:
                    self._refuse(answered.code)
                return answered
        raise self._no_answer()

    def _refuse(self, code: int) -> None:
        if code in _REFUSALS:
            raise PumpError("The pump refuses to report its history.", why=f"It says that {_REFUSALS[code]}.", code="refused")

    def _no_answer(self) -> LinkError:
        return LinkError(
            "The pump does not answer.",
            why="Its history service gave no response to three requests.",
            do="Bring it near the bridge, see that the two are connected, and run this again; it goes on where it stopped.",
            code="no_answer",
        )

    # --- states --------------------------------------------------------------------------------------------------------------

    def _one(self, operator: int, what: str) -> Generator[Step, Reply | None, tuple[int, bytes] | None]:
        """The number and the bytes of the newest or oldest record; none where the pump has none."""
        for _ in range(_TRIES):
            answered = yield from self._settled(racp_request(REPORT, operator), what)
            if answered.code == _NO_RECORDS:
                return None
            numbered = [(seq, value) for value in answered.values if (seq := self._number(value)) is not None and seq != _LOST]
            if numbered:
                return (max if operator == _LAST else min)(numbered)
        raise PumpError("The pump reports a record that does not come.", do="Run this again.", code="no_record")

    def _oldest(self, last: int, count: int) -> Generator[Step, Reply | None, int]:
        """The number of the oldest record; asked for again where the count of the records disproves it.

        A retained notification can stand in for one that was lost, and then what is older would never be asked for.
        """
        first = last
        for _ in range(_TRIES):
            oldest = yield from self._one(_FIRST, "asking for the oldest record")
            first = min(first, oldest[0]) if oldest else first
            if last - first >= _LONGEST:
                raise PumpError(f"The pump says that its records go from {first} to {last}.", why="That cannot be.", code="numbers")
            if last - first + 1 >= count:
                return first
        self.complete = False
        yield Note(f"the pump has {count} records, more than the numbers {first} to {last}")
        return first

    def _number(self, value: bytes) -> int | None:
        """The sequence number of a history value that can be one."""
        if len(value) < _HEAD + (_CRC if self.crc else 0):
            return None
        if self.crc and crc16(value[:-2]) != int.from_bytes(value[-2:], "little"):
            return None
        return int.from_bytes(value[2:6], "little")

    def _read_clock(self) -> Generator[Step, Reply | None, Anchor | None]:
        """The pump's clock beside the host's, if it has one to read: ten bytes, a date time and 1/256 s in the ninth."""
        reply = yield Ask(
            data=_READ_CLOCK,
            missing=lambda received: 0 if any(_values(received, b"T")) else 1,
            timeout_s=_SHORT_S,
            what="reading the clock",
        )
        assert reply is not None
        for value in _values(reply.data, b"T"):
            if len(value) < 7:
                continue
            ms, possible = _times(np.frombuffer(value[:7], dtype=np.uint8).astype(np.int64)[None, :])
            if possible[0]:
                shown = datetime.fromtimestamp(int(ms[0]) / 1000, UTC).replace(tzinfo=None)
                trip = round((reply.received - reply.sent).total_seconds() * 1000)
                return Anchor(pump_clock=shown, utc=reply.received, round_trip_ms=trip)
        yield Note("the pump does not tell its clock")
        return None

    def _block(self, low: int, high: int) -> Generator[Step, Reply | None, None]:
        """The records of a block, and again what is missing of it, while that brings more; three fruitless rounds end it."""
        wanted = set(range(low, high + 1))
        fruitless, heard = 0, True
        while wanted and fruitless < _TRIES:
            before = len(wanted)
            for run in _runs(wanted):
                answered = yield from self._exchange(racp_request(REPORT, _RANGE, *run), f"reading records {run[0]} to {run[1]}", _PAGE_S)
                numbered = {value: self._number(value) for value in answered.values}
                kept = [value for value, seq in numbered.items() if seq is None or seq == _LOST or run[0] <= seq <= run[1]]
                came = {seq for value in kept if (seq := numbered[value]) is not None and seq != _LOST}
                lost_alone = not came and _LOST in numbered.values()
                if kept:
                    runs = _runs(came) or ([run] if lost_alone else [])
                    yield self._got(kept, ",".join(f"{a}-{b}" for a, b in runs) or None)
                wanted -= came
                heard = answered.code is not None
                if answered.code is None:
                    yield from self._abort()
                    continue
                self._refuse(answered.code)
                if answered.code == _NO_RECORDS or (lost_alone and answered.code == _SUCCESS):
                    wanted -= set(range(run[0], run[1] + 1))
            fruitless = fruitless + 1 if len(wanted) == before else 0
        self.done += high - low + 1
        if wanted and not heard:
            raise self._no_answer()
        if wanted:
            self.complete = False
            yield Note(f"{len(wanted)} records between {low} and {high} do not come")
