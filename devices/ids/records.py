"""What the history records hold and mean, as data: profiles, layouts by type, and what their fields become (docs/pump-formats.md §5.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from devices.contract import AlarmClass, At, Kind, Source, Target
from devices.ids.values import Floats


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


def maker_of(model: str | None) -> str:
    """What a model says beside E2E-CRC; nothing where it names no maker's profile."""
    name = model or ""
    return name[: -len("+crc")] if name.casefold().endswith("+crc") else name


def model_of(maker: str, *, crc: bool) -> str | None:
    """The model that names this profile."""
    return f"{maker}{'+crc' if crc else ''}" or None


Words = Mapping[int, str]

_REASON: Words = {0x0F: "undetermined", 0x33: "set", 0x3C: "periodic", 0x55: "loss"}
_BOLUS: Words = {0x33: "fast", 0x3C: "extended", 0x55: "multiwave"}
_ACTIVATION: Words = {0x33: "manual", 0x3C: "recommended", 0x55: "changed", 0x5A: "commanded"}
_BOLUS_END: Words = {0x0F: "undetermined", 0x33: "delivered", 0x3C: "cancelled", 0x55: "error"}
_CONTEXT: Words = {0x33: "device", 0x3C: "remote", 0x55: "controller"}
_TBR: Words = {0x33: "absolute", 0x3C: "relative"}
_TBR_END: Words = {0x33: "over", 0x3C: "cancelled", 0x55: "error"}
_THERAPY: Words = {0x33: "stop", 0x3C: "pause", 0x55: "run"}
_OPERATION: Words = {0x33: "off", 0x3C: "standby", 0x55: "preparing", 0x5A: "priming", 0x66: "waiting", 0x96: "ready"}
_STATUS: Words = {0x33: "pending", 0x3C: "snoozed", 0x55: "confirmed"}
_PRIMED: Words = {0x33: "aborted", 0x3C: "amount_reached", 0x55: "error"}
ANNUNCIATIONS: Mapping[int, tuple[str, AlarmClass]] = {
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
ANNUNCIATION: Words = {number: name for number, (name, _) in ANNUNCIATIONS.items()}
CORRUPTION = 0x03A6
VENDOR = range(0xF000, 0xFFF1)

U8, S8, U16, S16, U32 = "u1", "i1", "<u2", "<i2", "<u4"
VENDOR16 = "annunciation"
"""An annunciation type: one of the standard's, or a vendor's."""
NUMBER = "number"
"""An SFLOAT of either sign."""
AMOUNT, RATE = "amount", "rate"
"""An SFLOAT, or a FLOAT where the record and the profile are wide, that is not negative; a rate must be a number too."""
TIME = "time"
MOST = 1e4
"""U, or U/h: more than any pump holds."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record: what it is, its fields in order as (name, type or words [, bit of the flags, its first byte, that says it is there]).

    `wide`: its amounts are 32 bits where the profile says so. `tail`: more bytes may follow.
    """

    kind: Kind
    fields: tuple[tuple[str, str | Words] | tuple[str, str | Words, int], ...] = ()
    wide: bool = False
    tail: bool = False
    fixed: Mapping[str, str] = field(default_factory=dict)

    @property
    def varies(self) -> bool:
        """Whether its flags decide what is there."""
        return any(len(one) == 3 for one in self.fields)


_BASAL = {"source": Source.BASAL.value}
_BOLUS_FIELDS: tuple[tuple[str, str | Words], ...] = (
    ("bolus_id", U16),
    ("type", _BOLUS),
    ("fast_u", AMOUNT),
    ("extended_u", AMOUNT),
    ("minutes", U16),
)
_CALCULATED = tuple((f"{how}_{why}_u", NUMBER) for how in ("fast", "extended") for why in ("meal", "correction"))
_RECOMMENDED = tuple((f"recommended_{name}", kind) for name, kind in _CALCULATED)
_CONFIRMED = tuple((f"confirmed_{name}", kind) for name, kind in _CALCULATED)
_BLOCK: tuple[tuple[str, str | Words], ...] = (("template", U8), ("block", U8), ("minutes", U16))

STANDARD: Mapping[int, Record] = {
    0x000F: Record(Kind.CLOCK_CHANGE, (("reason", _REASON), ("time", TIME), ("zone_15min", S8), ("dst", U8))),
    0x0033: Record(Kind.CLOCK_CHANGE, (("reason", _REASON), ("time", TIME), ("offset_min", S16))),
    0x003C: Record(Kind.OTHER, _RECOMMENDED),
    0x0055: Record(Kind.OTHER, _CONFIRMED),
    0x005A: Record(Kind.BOLUS_REQUESTED, _BOLUS_FIELDS, wide=True, fixed={"source": Source.PRIMARY.value}),
    0x0066: Record(Kind.OTHER, (("flags_2", U8), ("delay_min", U16, 0), ("template", U8, 1), ("activation", _ACTIVATION, 2))),
    0x0069: Record(Kind.BOLUS_DELIVERED, _BOLUS_FIELDS, wide=True, fixed={"source": Source.PRIMARY.value, "at": At.END.value}),
    0x0096: Record(
        Kind.OTHER,
        (("flags_2", U8), ("start_offset_s", U32), ("activation", _ACTIVATION, 0), ("end", _BOLUS_END, 1), ("annunciation", U16, 2)),
    ),
    0x0099: Record(
        Kind.RATE_CHANGE, (("flags", U8), ("old_u_h", AMOUNT), ("new_u_h", RATE), ("context", _CONTEXT, 0)), wide=True, fixed=_BASAL
    ),
    0x00A5: Record(Kind.OTHER, (("flags", U8), ("type", _TBR), ("value", NUMBER), ("minutes", U16), ("template", U8, 0))),
    0x00AA: Record(
        Kind.OTHER, (("flags", U8), ("type", _TBR), ("minutes", U16), ("end", _TBR_END), ("template", U8, 0), ("annunciation", U16, 1))
    ),
    0x00C3: Record(
        Kind.OTHER, (("flags", U8), ("type", _TBR), ("value", NUMBER), ("minutes", U16), ("elapsed_min", U16), ("template", U8, 0))
    ),
    0x00CC: Record(Kind.SETTINGS_CHANGE, (("type", U8), ("old", U8), ("new", U8))),
    0x00F0: Record(Kind.SETTINGS_CHANGE, (*_BLOCK, ("rate_u_h", AMOUNT))),
    0x00FF: Record(Kind.DAILY_TOTAL, (("flags", U8), ("bolus_u", AMOUNT), ("basal_u", AMOUNT), ("year", U16), ("month", U8), ("day", U8))),
    0x0303: Record(Kind.OTHER, (("old", _THERAPY), ("new", _THERAPY))),
    0x030C: Record(Kind.OTHER, (("old", _OPERATION), ("new", _OPERATION))),
    0x0330: Record(Kind.OTHER, (("remaining_u", AMOUNT),)),
    0x033F: Record(
        Kind.OTHER, (("flags", U8), ("annunciation", U16), ("type", VENDOR16), ("status", _STATUS), ("aux_1", U16, 0), ("aux_2", U16, 1))
    ),
    0x0356: Record(Kind.OTHER, (("flags_2", U8), ("aux_3", U16, 0), ("aux_4", U16, 1), ("aux_5", U16, 2))),
    0x0359: Record(Kind.OTHER, (*_BLOCK, ("factor", NUMBER))),
    0x0365: Record(Kind.OTHER, (*_BLOCK, ("ratio", NUMBER))),
    0x036A: Record(Kind.OTHER, (*_BLOCK, ("low", NUMBER), ("high", NUMBER))),
    0x0395: Record(Kind.PRIMING_STARTED, (("programmed_u", AMOUNT),), fixed={"target": Target.UNKNOWN.value}),
    0x039A: Record(
        Kind.PRIMING_DONE,
        (("flags", U8), ("delivered_u", AMOUNT), ("end", _PRIMED), ("annunciation", U16, 0)),
        fixed={"target": Target.UNKNOWN.value},
    ),
    CORRUPTION: Record(Kind.DATA_CORRUPTION),
    0x03A9: Record(Kind.OTHER, tail=True),
    0x03C0: Record(
        Kind.SETTINGS_CHANGE, (("template", U8), ("type", _BOLUS), ("fast_u", AMOUNT), ("extended_u", AMOUNT), ("minutes", U16))
    ),
    0x03CF: Record(Kind.SETTINGS_CHANGE, (("flags", U8), ("delay_min", U16, 0))),
    0x03F3: Record(Kind.SETTINGS_CHANGE, (("template", U8), ("type", _TBR), ("value", NUMBER), ("minutes", U16))),
    0x03FC: Record(Kind.SETTINGS_CHANGE, (("old_u", AMOUNT), ("new_u", AMOUNT)), wide=True),
}
"""By type; a type that is neither here nor a vendor's is a fault."""

MEDTRONIC: Mapping[int, Record] = {
    0xF00A: Record(Kind.DELIVERY_STOP, (("reason", U8),), tail=True, fixed=_BASAL),
    0xF00B: Record(Kind.DELIVERY_START, (("reason", U8),), tail=True, fixed=_BASAL),
    0xF00E: Record(Kind.CLOCK_CHANGE, (("reason", _REASON), ("time", TIME))),
}
KEPT = Record(Kind.OTHER, tail=True)
"""A vendor's record: a number, a place in time, and bytes."""

UNIT = "U"
_U_PER_ML = 100
HEAD, CRC = 8, 2
LOST = 0xFFFFFFFF
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
    return {"dose": units, "volume_ml": _ml(units), "dose_unit": UNIT}


def _programmed(units: Floats) -> Said:
    return {"programmed_dose": units, "programmed_ml": _ml(units), "dose_unit": UNIT}


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
    classes = {number: alarm.value for number, (_, alarm) in ANNUNCIATIONS.items()}
    told = _rows(f["type"], classes, AlarmClass.OTHER.value)
    alarm = ~limit & (raised | cleared)
    return {
        "kind": kinds.astype(object),
        "alarm_class": [name if one else None for name, one in zip(told, alarm.tolist(), strict=True)],
        "stops_delivery": _where(alarm & raised, value=False),
    }


SAYS: Mapping[int, Callable[[Fields], Said]] = {
    0x000F: _clock,
    0x0033: _clock,
    0x005A: lambda f: _programmed(_both(f)),
    0x0069: lambda f: _given(_both(f)),
    0x0099: lambda f: {"rate_dose_h": f["new_u_h"], "rate_ml_h": _ml(f["new_u_h"]), "dose_unit": UNIT},
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
