"""One message, which can be asked (docs/pump-formats.md §2): its times, its groups of OBX, amounts in their units, its device."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from functools import cached_property, lru_cache
from itertools import chain
from typing import NamedTuple

from devices.contract import Anchor
from devices.pcd.frames import MOST_KEPT, SEPARATORS, Lines, segments_of, separator_of
from devices.pcd.terms import headed, word_of

_MOST = 1e9
_LONGEST_TERM = 200


class UnreadableError(Exception):
    """Why a message gives no record; `hole`: whether a delivery may have begun or ended in it."""

    def __init__(self, code: str, why: str, *, hole: bool = True) -> None:
        super().__init__(why)
        self.code, self.hole = code, hole


_TIME = re.compile(r"(\d{8})(\d{6})(?:\.(\d{1,6})\d*)?([+-]\d{4})?")


def _instant(text: str, zone: timezone | None) -> tuple[datetime | None, timezone | None]:
    """The instant of an HL7 time, naive and in UTC, and its zone; without a zone of its own it is in `zone`. It must tell the second."""
    match = _TIME.fullmatch("".join(text.split()))
    if match is None:
        return None, None
    day, time, fraction, offset = match.groups()
    try:
        if offset is not None:
            zone = _zone(offset)
        if zone is None:
            return None, None
        here = datetime.fromisoformat(f"{int(day):08}T{int(time):06}")
        if fraction is not None:
            here += timedelta(milliseconds=int(fraction.ljust(6, "0")) // 1000)
        return here - zone.utcoffset(None), zone
    except (ValueError, OverflowError):
        return None, None


@lru_cache(maxsize=256)
def _zone(offset: str) -> timezone:
    """The zone of +hhmm. Raises ValueError where it is a day or more."""
    minutes = int(offset[1:3]) * 60 + int(offset[3:])
    return timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))


class Unit(NamedTuple):
    """A unit as people write it, and its names, that of MDC first."""

    shown: str
    names: list[str]


class Style(dict[str, "Seen | None"]):
    """How a sender separates the parts of a field; and the OBX lines that were written so, each read once.

    A line is None that has no OBX-3, or is no OBX.
    """

    def __init__(self, separator: str, encoding: str) -> None:
        super().__init__()
        self.separator = separator
        self.component, self.repeat, self.escape, self.sub = list(encoding)
        self._units: dict[str, Unit] = {}

    def __missing__(self, line: str) -> Seen | None:
        if len(self) >= MOST_KEPT:
            self.clear()
        fields = line.split(self.separator)
        found = self[line] = Seen(fields, self) if fields[0] == "OBX" and len(fields) > 3 else None
        return found

    def unit(self, field: str) -> Unit:
        """What a field of units names."""
        found = self._units.get(field)
        if found is None:
            if len(self._units) >= MOST_KEPT:
                self._units.clear()
            shown = next((part for i in (4, 3, 1) if (part := self.part(field, i))), "")
            parts = field.split(self.component)
            names = ["".join(parts[i].split()).upper() for i in (1, 0, 4, 3) if i < len(parts)]
            found = self._units[field] = Unit(shown, names)
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
        self.value, self.observed, self._device = fields[5], fields[14], fields[18]
        self._unit = style.unit(fields[6])
        self.unit = self._unit.shown
        self.head_of = headed(self.word, self.name) if self.metric == "0" else None
        self.is_head_of_mds = self.metric == "0" and self.group[1:] == ("0", "0")
        self.is_named_mds = self.name.endswith("_MDS") and not self.is_head_of_mds and self.word != "alarm_source"

    @cached_property
    def values(self) -> list[str]:
        """All components of its value, in lower case."""
        parts = self.value.replace(self.style.repeat, self.style.component).split(self.style.component)
        return ["".join(part.split()).lower() for part in parts]

    @cached_property
    def words(self) -> set[str]:
        """The words of its value, wherever they stand, in lower case."""
        return set(re.split(r"[^\w-]", self.value.lower()))

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
    def device(self) -> str:
        """The device id that it gives: OBX-18.1 and 18.3."""
        parts = ("".join(self.style.text(self.style.part(self._device, i)).split()) for i in (0, 2))
        return "/".join(part for part in parts if part)

    @cached_property
    def number(self) -> float | None:
        """Its value as a number that can be an amount."""
        try:
            value = float(self.style.part(self.value, 0))
        except ValueError:
            return None
        return value if math.isfinite(value) and 0 <= value < _MOST else None

    def amount(self, units: Mapping[str, float] | None) -> float | None:
        """A number that can be, in one of these units (None: in any); 0 is 0 in every unit."""
        value = self.number
        if not value or units is None:
            return value
        scale = next((units[name] for name in self._unit.names if name in units), None)
        return None if scale is None else round(value * scale, 9)


class Message:
    """A message that can be asked. `Reader.message` makes it."""

    def __init__(self, raw: bytes, header: list[str], lines: Sequence[str], style: Style, zone: timezone | None) -> None:
        self.raw, self.style = raw, style
        header += [""] * (12 - len(header))
        self.sender, self.control = header[2].strip(), "".join(header[9].split())
        self.type, self.trigger = style.part(header[8], 0).upper(), style.part(header[8], 1).upper()
        self.version = style.part(header[11], 0)
        self.sent, own = _instant(style.part(header[6], 0), zone)
        self.zone = own or zone
        requests = (line.split(style.separator) for line in lines if line.startswith("OBR"))
        self.request = next((fields for fields in requests if fields[0] == "OBR"), [])
        self.seen = [one for line in lines if line.startswith("OBX") and (one := style[line]) is not None]
        self.by_word: dict[str, list[Seen]] = {}
        for one in self.seen:
            self.by_word.setdefault(one.word, []).append(one)

    def instant(self, text: str) -> datetime | None:
        """The instant of a time field, in the zone of the header where it has none."""
        return _instant(self.style.part(text, 0), self.zone)[0]

    def requested(self) -> datetime | None:
        """OBR-7."""
        return self.instant(self.request[7]) if len(self.request) > 7 else None

    def find(self, word: str, group: tuple[str, ...] | None, *, strict: bool = False) -> Seen | None:
        """The OBX of a word: that of the group, else (not `strict`) the only one of its VMD, else the only one there is."""
        there = self.by_word.get(word)
        if there is None:
            return None
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
        heads = (one for one in self.seen if one.is_head_of_mds)
        named = (one for one in self.seen if one.is_named_mds)
        return next((one.device for one in chain(heads, named, self.by_word.get("alarm", ())) if one.device), None)


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
