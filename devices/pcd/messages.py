"""One message, which can be asked (docs/pump-formats.md §2): its times, its groups of OBX, amounts in their units, its device."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

from devices.contract import Anchor
from devices.pcd.frames import SEPARATORS, segments_of
from devices.pcd.terms import word_of

_MOST = 1e9
_LONGEST_TERM = 200


class UnreadableError(Exception):
    """Why a message gives no record; `hole`: whether a delivery may have begun or ended in it."""

    def __init__(self, code: str, why: str, *, hole: bool = True) -> None:
        super().__init__(why)
        self.code, self.hole = code, hole


_TIME = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(?:\.(\d{1,6})\d*)?([+-]\d{4})?")


def _instant(text: str, zone: timezone | None) -> tuple[datetime | None, timezone | None]:
    """The instant of an HL7 time, naive and in UTC, and its zone; without a zone of its own it is in `zone`. It must tell the second."""
    match = _TIME.fullmatch("".join(text.split()))
    if match is None:
        return None, None
    *parts, fraction, offset = match.groups()
    try:
        if offset is not None:
            minutes = int(offset[1:3]) * 60 + int(offset[3:])
            zone = timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))
        if zone is None:
            return None, None
        here = datetime(*map(int, parts), int((fraction or "0").ljust(6, "0")) // 1000 * 1000, tzinfo=zone)  # type: ignore[arg-type,misc]
        return here.astimezone(UTC).replace(tzinfo=None), zone
    except (ValueError, OverflowError):
        return None, None


@dataclass(frozen=True, slots=True)
class Seen:
    """One OBX: our word for it, its MDC name, the group it stands in (MDS.VMD.channel) and its metric there, its fields."""

    word: str
    name: str
    group: tuple[str, ...]
    metric: str
    fields: list[str]


class Message:
    """A message that can be asked. Raises UnreadableError where it has no header that can be read."""

    def __init__(self, raw: bytes, zone: timezone | None) -> None:
        segments, separator, self.raw = segments_of(raw)
        header = segments[0] if segments else []
        if len(header) < 2 or header[0] != "MSH" or not separator.isascii() or separator.isalnum() or separator.isspace():
            raise UnreadableError("header", "its header cannot be read")
        header += [""] * (21 - len(header))
        self.component, self.repeat, self.escape, self.sub = list(header[1] + SEPARATORS[len(header[1]) :])[:4]
        self.sender, self.control = header[2].strip(), "".join(header[9].split())
        self.type, self.trigger = self.part(header[8], 0).upper(), self.part(header[8], 1).upper()
        self.version = self.part(header[11], 0)
        self.sent, own = _instant(self.part(header[6], 0), zone)
        self.zone = own or zone
        self.requests = [segment for segment in segments if segment[0] == "OBR"]
        self.seen = [self._seen(segment) for segment in segments if segment[0] == "OBX" and len(segment) > 3]
        self.by_word: dict[str, list[Seen]] = {}
        for one in self.seen:
            self.by_word.setdefault(one.word, []).append(one)

    def _seen(self, fields: list[str]) -> Seen:
        fields += [""] * (19 - len(fields))
        word, name = word_of(fields[3][:_LONGEST_TERM], self.component)
        place = fields[4].strip().split(".")
        return Seen(word, name, tuple(place[:3]), ".".join(place[3:]), fields)

    def part(self, text: str, number: int) -> str:
        """A component of the first repetition of a field, from 0."""
        parts = text.split(self.repeat, 1)[0].split(self.component)
        return parts[number].strip() if number < len(parts) else ""

    def text(self, value: str) -> str:
        """A value as people read it."""
        if self.escape not in value:
            return value
        for letter, meant in zip("FSRT", ("|", self.component, self.repeat, self.sub), strict=True):
            value = value.replace(f"{self.escape}{letter}{self.escape}", meant)
        return value.replace(f"{self.escape}E{self.escape}", self.escape)

    def instant(self, text: str) -> datetime | None:
        """The instant of a time field, in the zone of the header where it has none."""
        return _instant(self.part(text, 0), self.zone)[0]

    def requested(self) -> datetime | None:
        """OBR-7."""
        return self.instant(self.requests[0][7]) if self.requests and len(self.requests[0]) > 7 else None

    def find(self, word: str, group: tuple[str, ...] | None, *, strict: bool = False) -> Seen | None:
        """The OBX of a word: that of the group, else (not `strict`) the only one of its VMD, else the only one there is."""
        there = self.by_word.get(word, [])
        if group is not None:
            for length in (3,) if strict else (3, 2):
                near = [one for one in there if one.group[:length] == group[:length]]
                if near:
                    return near[0] if len(near) == 1 or length == 3 else None
            if strict:
                return None
        return there[0] if len(there) == 1 else None

    def tokens(self, word: str, prefix: str, group: tuple[str, ...] | None = None) -> list[str]:
        """The values `prefix…` of an OBX, without the prefix; they stand in any component."""
        one = self.find(word, group)
        if one is None:
            return []
        parts = re.split(f"[{re.escape(self.repeat + self.component)}]", one.fields[5])
        values = ["".join(part.split()).lower() for part in parts]
        return [value.removeprefix(prefix) for value in values if value.startswith(prefix)]

    def amount(self, one: Seen | None, units: Mapping[str, float] | None) -> float | None:
        """A number that can be, in one of these units (None: in any); 0 is 0 in every unit."""
        if one is None:
            return None
        try:
            value = float(self.part(one.fields[5], 0))
        except ValueError:
            return None
        if not (math.isfinite(value) and 0 <= value < _MOST):
            return None
        if value == 0 or units is None:
            return value
        names = ["".join(part.split()).upper() for part in one.fields[6].split(self.component)]
        scale = next((units[name] for i in (1, 0, 4, 3) if i < len(names) and (name := names[i]) in units), None)
        return None if scale is None else round(value * scale, 9)

    def unit(self, one: Seen | None) -> str:
        """A unit as people write it."""
        parts = (self.part(one.fields[6], i) for i in (4, 3, 1)) if one is not None else ()
        return next((part for part in parts if part), "")

    def device(self) -> str | None:
        """The device id: OBX-18.1 and 18.3 of the MDS, else of the alarm."""
        heads = [one for one in self.seen if one.metric == "0" and one.group[1:] == ("0", "0")]
        named = [one for one in self.seen if one.name.endswith("_MDS") and one not in heads and one.word != "alarm_source"]
        for one in (*heads, *named, *self.by_word.get("alarm", [])):
            parts = ["".join(self.text(self.part(one.fields[18], i)).split()) for i in (0, 2)]
            if any(parts):
                return "/".join(part for part in parts if part)
        return None


def place_of(raw: bytes, zone: timezone | None) -> tuple[int | None, str | None]:
    """(UTC ms, record key) of a message that may be damaged, as far as they can be read: OBR-7, else MSH-7."""
    segments, _, _ = segments_of(raw)
    found: dict[str, list[str]] = {}
    for segment in segments:
        found.setdefault(segment[0], segment)
    header, request = found.get("MSH", []), found.get("OBR", [])
    sent, own = _instant(header[6].split("^")[0], zone) if len(header) > 6 else (None, None)
    happened = _instant(request[7].split("^")[0], own or zone)[0] if len(request) > 7 else None
    best = happened or sent
    key = key_of(header[2].strip(), "".join(header[9].split())) if len(header) > 9 and header[9].strip() else None
    return None if best is None else utc_ms(best), key


def key_of(sender: str, control: str) -> str:
    """The record key of a message: its sender and its control id."""
    return f"{sender}|{control}"


def utc_ms(naive_utc: datetime) -> int:
    """Milliseconds since 1970 of a naive time that is UTC."""
    return (naive_utc - _ZERO) // timedelta(milliseconds=1)


_ZERO = datetime(1970, 1, 1)  # noqa: DTZ001


def zone_of(anchor: Anchor | None) -> timezone | None:
    """The zone of a clock that was read beside UTC, to the quarter of an hour."""
    if anchor is None:
        return None
    quarters = round((anchor.pump_clock - anchor.utc.astimezone(UTC).replace(tzinfo=None)) / timedelta(minutes=15))
    return timezone(timedelta(minutes=15 * quarters)) if abs(quarters) < 96 else None
