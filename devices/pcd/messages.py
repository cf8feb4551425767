"""One message, which can be asked (docs/pump-formats.md §2): its times, its groups of OBX, amounts in their units, its device."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from functools import cached_property, lru_cache

from devices.contract import Anchor
from devices.pcd.frames import MOST_KEPT, SEPARATORS, Lines, segments_of, separator_of
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
    year, month, day, hour, minute, second, fraction, offset = match.groups()
    try:
        if offset is not None:
            zone = _zone(offset)
        if zone is None:
            return None, None
        us = int(fraction.ljust(6, "0")) // 1000 * 1000 if fraction else 0
        here = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second), us)  # noqa: DTZ001
        return here - zone.utcoffset(None), zone
    except (ValueError, OverflowError):
        return None, None


@lru_cache(maxsize=256)
def _zone(offset: str) -> timezone:
    """The zone of +hhmm. Raises ValueError where it is a day or more."""
    minutes = int(offset[1:3]) * 60 + int(offset[3:])
    return timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))


class Style(dict[str, "Seen | None"]):
    """How a sender separates the parts of a field; and the OBX lines that were written so, each read once.

    A line is None that has no OBX-3, or is no OBX.
    """

    def __init__(self, separator: str, encoding: str) -> None:
        super().__init__()
        self.separator = separator
        self.component, self.repeat, self.escape, self.sub = list(encoding)

    def __missing__(self, line: str) -> Seen | None:
        if len(self) >= MOST_KEPT:
            self.clear()
        fields = line.split(self.separator)
        found = self[line] = Seen(fields, self) if fields[0] == "OBX" and len(fields) > 3 else None
        return found

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


class Seen:
    """One OBX: our word for it, its MDC name, the group it stands in (MDS.VMD.channel) and its metric there, its fields."""

    def __init__(self, fields: list[str], style: Style) -> None:
        fields += [""] * (19 - len(fields))
        self.style = style
        self.word, self.name = word_of(fields[3][:_LONGEST_TERM], style.component)
        place = fields[4].strip().split(".")
        self.group, self.metric = tuple(place[:3]), ".".join(place[3:])
        self.value, self.units, self.observed, self._device = fields[5], fields[6], fields[14], fields[18]
        self.is_mds = self.metric == "0" and self.group[1:] == ("0", "0")

    @cached_property
    def values(self) -> list[str]:
        """All components of its value, in lower case."""
        parts = self.value.replace(self.style.repeat, self.style.component).split(self.style.component)
        return ["".join(part.split()).lower() for part in parts]

    @cached_property
    def shown(self) -> str:
        """Its value as people read it."""
        return self.style.text(self.value.replace(self.style.component, " ").strip())

    @cached_property
    def told(self) -> str:
        """Its value with its unit, as people read them."""
        value = self.value.replace(self.style.component, " ").strip()
        return self.style.text(f"{value} {self.unit}".strip())

    @cached_property
    def unit(self) -> str:
        """Its unit as people write it."""
        parts = (self.style.part(self.units, i) for i in (4, 3, 1))
        return next((part for part in parts if part), "")

    @cached_property
    def device(self) -> str:
        """The device id that it gives: OBX-18.1 and 18.3."""
        parts = ("".join(self.style.text(self.style.part(self._device, i)).split()) for i in (0, 2))
        return "/".join(part for part in parts if part)

    def amount(self, units: Mapping[str, float] | None) -> float | None:
        """A number that can be, in one of these units (None: in any); 0 is 0 in every unit."""
        try:
            value = float(self.style.part(self.value, 0))
        except ValueError:
            return None
        if not (math.isfinite(value) and 0 <= value < _MOST):
            return None
        if value == 0 or units is None:
            return value
        names = ["".join(part.split()).upper() for part in self.units.split(self.style.component)]
        scale = next((units[name] for i in (1, 0, 4, 3) if i < len(names) and (name := names[i]) in units), None)
        return None if scale is None else round(value * scale, 9)


class Message:
    """A message that can be asked. `Reader.message` makes it."""

    def __init__(self, raw: bytes, header: list[str], lines: Sequence[str], style: Style, zone: timezone | None) -> None:
        self.raw, self.style = raw, style
        header += [""] * (21 - len(header))
        self.sender, self.control = header[2].strip(), "".join(header[9].split())
        self.type, self.trigger = style.part(header[8], 0).upper(), style.part(header[8], 1).upper()
        self.version = style.part(header[11], 0)
        self.sent, own = _instant(style.part(header[6], 0), zone)
        self.zone = own or zone
        self.request: list[str] = []
        self.seen: list[Seen] = []
        self.by_word: dict[str, list[Seen]] = {}
        for line in lines:
            if line.startswith("OBX"):
                if (one := style[line]) is not None:
                    self.seen.append(one)
                    self.by_word.setdefault(one.word, []).append(one)
            elif not self.request and line.startswith("OBR"):
                fields = line.split(style.separator)
                self.request = fields if fields[0] == "OBR" else []

    def instant(self, text: str) -> datetime | None:
        """The instant of a time field, in the zone of the header where it has none."""
        return _instant(self.style.part(text, 0), self.zone)[0]

    def requested(self) -> datetime | None:
        """OBR-7."""
        return self.instant(self.request[7]) if len(self.request) > 7 else None

    def find(self, word: str, group: tuple[str, ...] | None, *, strict: bool = False) -> Seen | None:
        """The OBX of a word: that of the group, else (not `strict`) the only one of its VMD, else the only one there is."""
        there = self.by_word.get(word, ())
        if group is not None and (strict or len(there) > 1):
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
        return [] if one is None else [value.removeprefix(prefix) for value in one.values if value.startswith(prefix)]

    def device(self) -> str | None:
        """The device id: OBX-18.1 and 18.3 of the MDS, else of the alarm."""
        heads = [one for one in self.seen if one.is_mds]
        named = [one for one in self.seen if one.name.endswith("_MDS") and not one.is_mds and one.word != "alarm_source"]
        return next((one.device for one in (*heads, *named, *self.by_word.get("alarm", ())) if one.device), None)


class Reader:
    """Reads messages one after another; what stands in many of them is read once."""

    def __init__(self) -> None:
        self._lines: dict[str, Lines] = {}
        self._styles: dict[tuple[str, str], Style] = {}

    def message(self, raw: bytes, zone: timezone | None) -> Message:
        """A message, which can be asked. Raises UnreadableError where it has no header that can be read."""
        separator = separator_of(raw)
        there = self._lines.get(separator)
        if there is None:
            there = self._lines[separator] = Lines(separator)
        lines, kept = there.of(raw)
        header = lines[0].split(separator) if lines else []
        if len(header) < 2 or header[0] != "MSH" or not separator.isascii() or separator.isalnum() or separator.isspace():
            raise UnreadableError("header", "its header cannot be read")
        encoding = (header[1] + SEPARATORS[len(header[1]) :])[:4]
        style = self._styles.get((separator, encoding))
        if style is None:
            style = self._styles[separator, encoding] = Style(separator, encoding)
        return Message(kept, header, lines, style, zone)


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
