"""What the events hold, as data (docs/pump-formats.md §7): their fields by big-endian offset, and what these become in records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from devices.contract import AlarmClass, At, Kind, Source, Target

AMOUNT, SIGNED = "amount", "signed"
"""Types of 32-bit floats: one that cannot be negative, and one that can. The others are unsigned integers, by their bytes."""
FLOAT_MAX = 1e4
"""Above any rate, volume, amount or current of this pump."""

_DAY_MS = 86_400_000
_LAST_DAY = 2**32 // 86_400


Place = tuple[int, int | str]
"""Big-endian offset in the data, and type."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event: what it is, its fields as name → (big-endian offset, type), and the most that a field may be."""

    kind: Kind
    fields: Mapping[str, Place] = field(default_factory=dict)
    most: Mapping[str, int] = field(default_factory=dict)
    source: Source | None = None
    target: Target | None = None
    at: At | None = None


_BOLUS_DONE: Mapping[str, Place] = {
    "bolus_id": (0, 2),
    "completion": (2, 2),
    "iob_u": (4, SIGNED),
    "delivered_u": (8, AMOUNT),
    "requested_u": (12, AMOUNT),
}
_BOLUS_BEGUN: Mapping[str, Place] = {"bolus_id": (2, 2), "iob_u": (4, SIGNED), "size_u": (8, AMOUNT)}
_FILL: Mapping[str, Place] = {"size_u": (0, AMOUNT), "completion": (4, 4)}
_FILL_ENDS = {"completion": 3}
_ALARM: Mapping[str, Place] = {"alarm_id": (0, 4)}

EVENTS: Mapping[int, Event] = {
    3: Event(
        Kind.RATE_CHANGE,
        {"commanded_u_h": (0, AMOUNT), "base_u_h": (4, AMOUNT), "max_u_h": (8, AMOUNT), "change": (13, 1), "profile": (14, 2)},
        source=Source.BASAL,
    ),
    4: Event(Kind.ALARM_RAISED, {"alert_id": (0, 4)}),
    5: Event(Kind.ALARM_RAISED, _ALARM),
    6: Event(Kind.ALARM_RAISED, {"malfunction_id": (0, 4)}),
    11: Event(Kind.DELIVERY_STOP, {"reason": (5, 1), "reservoir_u": (6, 2)}, source=Source.BASAL),
    12: Event(Kind.DELIVERY_START, {"reservoir_u": (6, 2)}, source=Source.BASAL),
    13: Event(
        Kind.CLOCK_CHANGE, {"prior_ms": (0, 4), "after_ms": (4, 4), "rtc_ms": (8, 4)}, {"prior_ms": _DAY_MS - 1, "after_ms": _DAY_MS - 1}
    ),
    14: Event(
        Kind.CLOCK_CHANGE, {"prior_day": (0, 4), "after_day": (4, 4), "rtc_ms": (8, 4)}, {"prior_day": _LAST_DAY, "after_day": _LAST_DAY}
    ),
    20: Event(Kind.BOLUS_DELIVERED, _BOLUS_DONE, source=Source.PRIMARY, at=At.END),
    21: Event(Kind.BOLUS_DELIVERED, _BOLUS_DONE, source=Source.PRIMARY, at=At.END),
    26: Event(Kind.ALARM_CLEARED, {"alert_id": (0, 4)}),
    28: Event(Kind.ALARM_CLEARED, _ALARM),
    33: Event(Kind.RESERVOIR_CHANGE, {"shown_u": (0, 4), "actual_u": (4, AMOUNT)}),
    36: Event(Kind.DEVICE_LINK, {"current_ma": (0, SIGNED)}),
    37: Event(Kind.DEVICE_LINK, {"current_ma": (0, SIGNED)}),
    53: Event(Kind.POWER_OFF),
    55: Event(Kind.OTHER, _BOLUS_BEGUN),
    59: Event(Kind.OTHER, _BOLUS_BEGUN),
    60: Event(Kind.DATA_CORRUPTION, {"block": (0, 4), "reason": (7, 1)}),
    61: Event(Kind.PRIMING_DONE, _FILL, _FILL_ENDS, target=Target.CANNULA),
    63: Event(Kind.PRIMING_DONE, {**_FILL, "position": (8, 4)}, _FILL_ENDS, target=Target.TUBING),
    64: Event(Kind.OTHER, {"bolus_id": (2, 2)}),
    65: Event(Kind.OTHER, {"bolus_id": (2, 2)}),
    66: Event(
        Kind.BOLUS_REQUESTED,
        {"bolus_id": (2, 2), "food_u": (4, AMOUNT), "correction_u": (8, SIGNED), "total_u": (12, AMOUNT)},
        source=Source.PRIMARY,
    ),
    81: Event(
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
    90: Event(Kind.OTHER, {"commanded_u_h": (0, AMOUNT)}),
    99: Event(Kind.POWER_ON, {"log_entries": (12, 4)}),
    279: Event(Kind.RATE_CHANGE, {"rate_source": (2, 2), "commanded_mu_h": (6, 2)}, source=Source.BASAL),
    280: Event(
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
RESUMED = 1 << 5
SUSPENDED = 0
UNIT = "U"
_U_PER_ML = 100

Fields = Mapping[str, npt.NDArray[Any]]
Said = dict[str, Any]


def _ml(units: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.asarray(np.round(units / _U_PER_ML, 8))


def _rate(u_h: npt.NDArray[Any]) -> Said:
    return {"rate_dose_h": u_h, "rate_ml_h": _ml(u_h), "dose_unit": UNIT}


def _given(units: npt.NDArray[Any]) -> Said:
    return {"dose": units, "volume_ml": _ml(units), "dose_unit": UNIT}


def _programmed(units: npt.NDArray[Any]) -> Said:
    return {"programmed_dose": units, "programmed_ml": _ml(units), "dose_unit": UNIT}


def _delivering(f: Fields) -> Said:
    """279: what its source says to be suspended is at rate 0, whatever rate stands beside it."""
    return _rate(np.where(f["rate_source"] == SUSPENDED, 0.0, f["commanded_mu_h"] / 1000))


def _bolus_delivery(f: Fields) -> Said:
    """280: with status 0 a bolus that is done, else nothing that another record does not tell."""
    done = f["status"] == 0
    given = _given(np.where(done, f["delivered_mu"] / 1000, np.nan))
    asked = _programmed(np.where(done, (f["requested_now_mu"] + f["requested_later_mu"]) / 1000, np.nan))
    words = {"kind": Kind.BOLUS_DELIVERED.value, "source": Source.PRIMARY.value, "at": At.END.value, "dose_unit": UNIT}
    nothing = {"kind": Kind.OTHER.value}
    said = {name: [word if one else nothing.get(name) for one in done.tolist()] for name, word in words.items()}
    return {**given, **asked, **said}


def _alarm_class(f: Fields) -> list[str]:
    return [_ALARM_CLASSES.get(number, AlarmClass.OTHER).value for number in f["alarm_id"].tolist()]


SAYS: Mapping[int, Callable[[Fields], Said]] = {
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
