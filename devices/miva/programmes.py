"""Programmes: what an infusion is programmed to do, in 2 or 16 records between a BEGIN and an END (docs/pump-formats.md §4.2)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from devices.contract import Source

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
SHORT_NAMES: Mapping[int, str] = {2: "Daily 1", 3: "Nightly", 4: "Daily 2"}
SHORT, LONG = 2, 16
LEAST = SHORT + 2
"""So many records a programme takes at least, with BEGIN and END."""


def _decimal(value: float) -> float:
    """The shortest decimal that a 32-bit float stands for: 2.03, as it was keyed in, not 2.0299999713897705."""
    return float(str(np.float32(value)))


@dataclass(frozen=True, slots=True)
class Programme:
    """What an infusion is programmed to do. `says` what a start of it is (none: it cannot be read); amounts in mL where they are."""

    says: Mapping[str, Any] | None
    delay: Mapping[str, Any] | None
    lockout_s: float | None
    amounts: Mapping[str, float]
    detail: Mapping[str, Any]


def short_programme(data: bytes) -> Programme:
    """The programme in the 32 bytes of the short form."""
    name, rate, vtbi, starting, extra, lockout = struct.unpack_from(">IffffI", data)
    given = {"rate": rate, "vtbi": vtbi, "loading": starting, "extra": extra, "lockout_s": lockout}
    fields = {key: _told(value) for key, value in given.items()}
    says = {"rate_ml_h": fields["rate"]} if _flows(fields["rate"]) else None
    detail = {"form": SHORT, "protocol": SHORT_NAMES.get(name, name), **fields}
    return Programme(says, None, float(lockout), _amounts(fields), detail)


def long_programme(data: bytes) -> Programme:
    """The programme in the 256 bytes of the long form, as its mode lays them out; only fields whose switch is on count."""
    mode, unit = data[93], data[97]
    if mode >= len(_MODES):
        return Programme(None, None, None, {}, {"form": LONG, "mode": mode})
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
        "form": LONG,
        "mode": mode_name,
        "rate_unit": _RATE_UNITS[unit] if unit < len(_RATE_UNITS) else unit,
        "protocol": _text(data[99:109]),
        "drug_name": _text(data[109:119]),
        "auth_role": int.from_bytes(data[88:90], "big"),
        "crc": data[84:88].hex(),
        **fields,
    }
    lockout = fields.get("lockout_s")
    return Programme(
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
