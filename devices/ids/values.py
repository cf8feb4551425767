"""Numbers, dates and checksums of the service (docs/pump-formats.md §5.2), many at once."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def _powers(mantissa: Ints, exponent: Ints) -> Floats:
    """mantissa · 10^exponent, divided where the exponent is negative: so 1.2 is 1.2."""
    return np.asarray(np.where(exponent < 0, mantissa / 10.0 ** np.maximum(-exponent, 0), mantissa * 10.0 ** np.maximum(exponent, 0)))


def eleven_073(bits: npt.NDArray[Any], size: int) -> tuple[Floats, Bools]:
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


def crcs(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """The CRC of each row of bytes."""
    lookup = _crc_table()
    crc = np.full(len(rows), 0xFFFF, dtype=np.uint16)
    for column in rows.T:
        crc = (crc >> 8) ^ lookup[(crc ^ column) & 0xFF]
    return crc


def days_of(year: npt.NDArray[Any], month: npt.NDArray[Any], day: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Bools]:
    """Dates, and which of them are in the calendar."""
    year, month, day = (part.astype(np.int64) for part in (year, month, day))
    first = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    days = first.astype("datetime64[D]") + (day - 1)
    possible = (year >= 1970) & (year < 2200) & (month >= 1) & (month <= 12) & (day >= 1) & (days.astype("datetime64[M]") == first)
    return days, possible


def times_of(parts: Ints) -> tuple[Ints, Bools]:
    """Date times of seven bytes each as ms since 1970, and which of them can be."""
    year, month, day, hour, minute, second = parts[:, 0] | parts[:, 1] << 8, *(parts[:, i] for i in range(2, 7))
    days, possible = days_of(year, month, day)
    ms = days.astype("datetime64[ms]").astype(np.int64) + ((hour * 60 + minute) * 60 + second) * 1000
    return ms, possible & (hour < 24) & (minute < 60) & (second < 60)
