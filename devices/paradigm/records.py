"""The records of a Paradigm's history pages as data: how long they are, where their time stands, what they say (docs/pump-formats.md §3.2).

The model decides how long a record is and how fine its amounts are. What records say is read column by column, of all of one code at
once: `raw[n]` is byte n of each of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from devices.contract import AlarmClass, Kind

READ_BYTES = 18
"""No field that is read lies behind so many bytes of a record."""
REWRITTEN = frozenset({0x01, 0x03})
"""Records of which a pump may change the amount in place."""

_UNTIMED = -1
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
_CLASS_OF = np.array([_CLASSES.get(kind, AlarmClass.OTHER).value for kind in range(256)], object)
_STOPS = np.array([kind in _STOPPING for kind in range(256)])

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_Floats = npt.NDArray[np.float64]
_Says = dict[str, Any]
"""Field → one value for all of some records, or a value for each; NaN is none."""

# --- what records say -----------------------------------------------------------------------------------------------------------


def _u16(raw: Ints, at: int) -> Ints:
    both: Ints = raw[at] << 8 | raw[at + 1]
    return both


def _only(word: str, where: Mask) -> npt.NDArray[np.object_]:
    """The word where it holds, else none."""
    return np.array([None, word], object)[where.astype(np.int64)]


def _given(delivered: Ints, programmed: Ints, per_unit: int) -> _Says:
    """Amounts in 1/`per_unit` U; a U is 10 µL. An amount that was not programmed is none."""
    planned = np.where(programmed > 0, programmed, np.nan)
    return {
        "dose_unit": "U",
        "dose": delivered / per_unit,
        "volume_ml": delivered / (per_unit * 100),
        "programmed_dose": planned / per_unit,
        "programmed_ml": planned / (per_unit * 100),
    }


def _rate(forty_per_unit: Ints | _Floats) -> _Says:
    """A rate in 1/40 U/h; NaN: none is told."""
    return {"dose_unit": _only("U", ~np.isnan(forty_per_unit)), "rate_dose_h": forty_per_unit / 40, "rate_ml_h": forty_per_unit / 4000}


def _bolus(raw: Ints, larger: bool) -> _Says:
    """A square bolus runs evenly over the duration it was programmed for; what was cut short took that share of it."""
    programmed, delivered, half_hours = (_u16(raw, 1), _u16(raw, 3), raw[7]) if larger else (raw[1], raw[2], raw[3])
    share = np.where(programmed > 0, np.minimum(1.0, delivered / np.maximum(programmed, 1)), 1.0)
    lasts = [f'"programmed_s":{1800 * one}' if one else "" for one in half_hours.tolist()]
    if larger:
        iob = (_u16(raw, 5) / 40).tolist()
        detail = [f'{{"iob_u":{units},{one}}}' if one else f'{{"iob_u":{units}}}' for units, one in zip(iob, lasts, strict=True)]
    else:
        detail = [f"{{{one}}}" for one in lasts]
    says = _given(delivered, programmed, 40 if larger else 10)
    return says | {"duration_s": np.where(half_hours > 0, 1800.0 * half_hours * share, np.nan), "detail": detail}


def _prime(raw: Ints, _larger: bool) -> _Says:
    """Nothing programmed: a manual prime, of the tubing, for as long as the button is held; one that moved nothing was given up."""
    programmed, delivered = raw[2], raw[4]
    fixed = programmed > 0
    manual = np.where(delivered > 0, "unknown", "aborted")
    return _given(delivered, programmed, 10) | {
        "target": np.where(fixed, "cannula", "tubing"),
        "reason": np.where(fixed, np.where(delivered == programmed, "amount_reached", "aborted"), manual),
    }


def _alarm(raw: Ints, larger: bool) -> _Says:
    return {"alarm_class": _CLASS_OF[raw[1]], "stops_delivery": _STOPS[raw[1]], **_alarm_type(raw, larger)}


def _alarm_type(raw: Ints, _larger: bool) -> _Says:
    return {"detail": [f'{{"type":{kind}}}' for kind in raw[1].tolist()]}


def _low_reservoir(raw: Ints, _larger: bool) -> _Says:
    return {"detail": [f'{{"left_u":{units}}}' for units in (raw[1] / 10).tolist()]}


def _temp_basal(raw: Ints, _larger: bool) -> _Says:
    """A rate, or percents of the profile: of those only 0 is a rate."""
    percents = raw[7] >> 3 > 0
    rate = np.where(percents, np.where(raw[1] == 0, 0.0, np.nan), (raw[7] & 7) << 8 | raw[1])
    told = zip(percents.tolist(), raw[1].tolist(), strict=True)
    return _rate(rate) | {"detail": [f'{{"percent":{value}}}' if percent else "{}" for percent, value in told]}


def _temp_duration(raw: Ints, _larger: bool) -> _Says:
    return {"detail": [f'{{"duration_s":{1800 * half_hours}}}' for half_hours in raw[1].tolist()]}


def _profile_start(raw: Ints, larger: bool) -> _Says:
    rate = raw[8] | raw[9] << 8
    told = zip((raw[7] * 1800).tolist(), raw[1].tolist(), strict=True)
    says = _rate(rate) | {"detail": [f'{{"from_s":{start},"profile":{number}}}' for start, number in told]}
    return says | ({"proves": _only(_BASAL, rate > 0)} if larger else {})


def _dated(raw: Ints, at: int) -> list[str]:
    """The dates that two bytes tell."""
    days: list[str] = np.datetime_as_string(date_ms(raw[at], raw[at + 1]).view("datetime64[ms]").astype("datetime64[D]")).tolist()
    return days


def _total(raw: Ints, _larger: bool) -> _Says:
    """07: the day and its total."""
    told = zip(_dated(raw, 5), (_u16(raw, 3) / 40).tolist(), strict=True)
    return {"detail": [f'{{"date":"{day}","total_u":{total}}}' for day, total in told]}


def _total_unread(raw: Ints, _larger: bool) -> _Says:
    """6c: of it only the day is known."""
    return {"detail": [f'{{"date":"{day}"}}' for day in _dated(raw, 1)]}


def _totals(raw: Ints, _larger: bool) -> _Says:
    """6d, 6e: the day, its total, and of it basal and bolus."""
    told = zip(_dated(raw, 1), *((_u16(raw, at) / 40).tolist() for at in (13, 16, 11)), strict=True)
    return {"detail": [f'{{"basal_u":{basal},"bolus_u":{bolus},"date":"{day}","total_u":{total}}}' for day, basal, bolus, total in told]}


# --- the layouts -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Code:
    """One kind of record: its length (small, larger models), where its time or its date stands, and what it says."""

    name: str
    small: int = 7
    larger: int = 0
    time_at: int = 2
    larger_time_at: int = 0
    date_at: int = 0
    says: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[Ints, bool], _Says] | None = None


def _kind(kind: Kind, **says: Any) -> _Says:
    return {"kind": kind.value, **says}


_SETTINGS = _kind(Kind.SETTINGS_CHANGE)
_TOTAL = _kind(Kind.DAILY_TOTAL)
_CLOCK = _kind(Kind.CLOCK_CHANGE, reason="loss")
_BASAL_RATE = _kind(Kind.RATE_CHANGE, source=_BASAL)

CODES: Mapping[int, Code] = {
    0x01: Code("bolus", 9, 13, 4, 8, says=_kind(Kind.BOLUS_DELIVERED, source="primary", at="start", proves=_BASAL), read=_bolus),
    0x03: Code("prime", 10, time_at=5, says=_kind(Kind.PRIMING_DONE), read=_prime),
    0x06: Code("alarm", 9, time_at=4, says=_kind(Kind.ALARM_RAISED), read=_alarm),
    0x07: Code("daily total", 7, 10, _UNTIMED, date_at=5, says=_TOTAL, read=_total),
    0x08: Code("basal profile edited", 152, says=_SETTINGS),
    0x09: Code("basal profile before the edit", 152, says=_SETTINGS),
    0x0B: Code("", 8, time_at=3),
    0x0C: Code("alarm cleared", says=_kind(Kind.ALARM_CLEARED), read=_alarm_type),
    0x14: Code("basal pattern selected", says=_SETTINGS),
    0x16: Code("duration of a temporary basal", read=_temp_duration),
    0x17: Code("clock changed: old time", says=_CLOCK),
    0x18: Code("clock changed: new time", says=_CLOCK),
    0x19: Code("low battery", says=_kind(Kind.ALARM_RAISED, alarm_class="battery", stops_delivery=False)),
    0x1E: Code("suspend", says=_kind(Kind.DELIVERY_STOP, source=_BASAL, reason="user")),
    0x1F: Code("resume", says=_kind(Kind.DELIVERY_START, source=_BASAL)),
    0x21: Code("rewind", says=_kind(Kind.RESERVOIR_CHANGE)),
    0x30: Code("", -1, time_at=_UNTIMED),
    0x33: Code("temporary basal", 8, says=_BASAL_RATE, read=_temp_basal),
    0x34: Code("low reservoir", says=_kind(Kind.ALARM_RAISED, alarm_class="low_reservoir", stops_delivery=False), read=_low_reservoir),
    0x5C: Code("unabsorbed insulin", -1, time_at=_UNTIMED),
    0x6C: Code("daily total", 38, time_at=_UNTIMED, date_at=1, says=_TOTAL, read=_total_unread),
    0x6D: Code("daily total", 44, time_at=_UNTIMED, date_at=1, says=_TOTAL, read=_totals),
    0x6E: Code("daily total", 52, time_at=_UNTIMED, date_at=1, says=_TOTAL, read=_totals),
    0x7B: Code("basal profile start", 10, says=_BASAL_RATE, read=_profile_start),
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


class Layout(NamedTuple):
    """The lengths and places of one kind of model, by code, and whether it is of the larger kind."""

    number: int
    larger: bool
    length: list[int]
    time_at: list[int]
    date_at: list[int]


def _layout(number: int, *, larger: bool, length_of_50: int = 37) -> Layout:
    codes = [CODES.get(code, Code("", *_LENGTHS.get(code, (7, 7)))) for code in range(256)]
    length = [(larger and one.larger) or one.small for one in codes]
    length[0x50] = length_of_50
    times = [(larger and one.larger_time_at) or one.time_at for one in codes]
    return Layout(number, larger, length, times, [one.date_at for one in codes])


_SMALL, _LARGER, _X51 = LAYOUTS = (_layout(0, larger=False), _layout(1, larger=True), _layout(2, larger=True, length_of_50=41))


def layout_of(model: str | None) -> Layout | None:
    """The record layout of a model such as "522" or "723"; None where the model says nothing."""
    found = re.fullmatch(r"\D*([57])(\d\d)\D*", model or "")
    if not found or not (8 if found[1] == "5" else 0) <= int(found[2]) <= 54:
        return None
    if found[2] in ("51", "54"):
        return _X51
    return _LARGER if int(found[2]) >= 23 else _SMALL


_IMPOSSIBLE = -(1 << 60)


def _calendar() -> tuple[Ints, Ints]:
    """Two tables that read a time: ms of the day by its month, day and year bits, ms within the day by its other bits; below 0: none."""
    bits = np.arange(1 << 16)
    month, day, year = bits >> 12, bits >> 7 & 0x1F, bits & 0x7F
    months = np.arange("2000-01", "2100-02", dtype="datetime64[M]").astype("datetime64[D]").astype(np.int64)
    nth = np.where((month >= 1) & (month <= 12) & (year < 100), year * 12 + month - 1, -1)
    fine = (nth >= 0) & (day >= 1) & (day <= np.diff(months)[nth])
    days = np.where(fine, (months[nth] + day - 1) * 86_400_000, _IMPOSSIBLE)
    bits = np.arange(1 << 17)
    second, minute, hour = bits >> 11, bits >> 5 & 0x3F, bits & 0x1F
    fine = (second < 60) & (minute < 60) & (hour < 24)
    return days, np.where(fine, ((hour * 60 + minute) * 60 + second) * 1000, _IMPOSSIBLE)


_DAY_MS, _WITHIN_MS = _calendar()


def time_ms(b: Ints) -> Ints:
    """Times of five bytes each, in ms since 1970; below 0: there is no such time."""
    days: Ints = _DAY_MS[(b[0] & 0xC0) << 8 | (b[1] & 0xC0) << 6 | (b[3] & 0x1F) << 7 | b[4] & 0x7F]
    within: Ints = _WITHIN_MS[(b[0] & 0x3F) << 11 | (b[1] & 0x3F) << 5 | b[2] & 0x1F]
    return days + within


def date_ms(d0: Ints, d1: Ints) -> Ints:
    """Dates of two bytes each, as their midnight in ms since 1970; below 0: there is no such date."""
    midnights: Ints = _DAY_MS[(d0 & 0xE0) << 8 | (d1 & 0x80) << 5 | (d0 & 0x1F) << 7 | d1 & 0x7F]
    return midnights
