r"""IHE PCD-10 events, PCD-04 alarms and PCD-01 snapshots, HL7 v2.6 (docs/pump-formats.md §2, §6).

    MSH|^~\&|sender|…|sent|…|ORU^R42^ORU_R01|control id|…     ORU^R42 an event, R40 an alarm, R01 a snapshot
    OBR|1|order|infusion|…|||time of the event, with its zone
    OBX|3|CWE|0^MDC_ATTR_EVT_COND^MDC|1.0.0.2|197288^MDC_EVT_PUMP_DELIV_START^MDC||||||R

A capture is one message or several, bare or in MLLP frames. One message is one record. Terms are matched by their MDC name first and
by their number second: draft senders write number 0, makers write MDC_PUMP_… for MDC_DEV_PUMP_…. The pump's clock is read as UTC: the
time of each message, in the message's own zone, made UTC, so a change of zone or to daylight saving is no step of that clock.

Messages are split here and not by a library: those there are (`hl7`, `hl7apy`) do not join a segment that was wrapped over two lines,
raise bare IndexErrors on damaged headers, and read 30 and 1,000 times fewer messages a second; the splitting itself is a page.

Segments that are about the patient (PID, PV1 and the like) are not looked at and are left out of `raw`; the capture keeps them.
"""

from __future__ import annotations

import hashlib
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from devices import sequence
from devices.contract import (
    ANCHORS,
    CONTENT,
    EVENTS,
    FAULTS,
    RECORDS,
    AlarmClass,
    Anchor,
    Capture,
    Decoded,
    Kind,
    Log,
    PlacedAnchor,
    Sheet,
    Source,
    dump_detail,
    event_id,
    fault_id,
    parted,
    table,
)

FAMILY = "pcd"

SHEET = Sheet(
    family=FAMILY,
    title="IHE PCD-10 infusion pump events, PCD-04 alarms, PCD-01 snapshots",
    models="PCA, syringe and large-volume pumps whose gateway speaks HL7 v2.6 (IPEC Rev 1.5); samples seen: IHE's own, B. Braun",
    transport="HL7 messages in files, in MLLP frames, or one or more to an MQTT payload",
    source="docs/pump-formats.md §2, §6",
    identity="(sender MSH-3, control id MSH-10); the pump is pcd:OBX-18.1/OBX-18.3 of the MDS (of the alarm, in a PCD-04 without one)",
    elapsed="OBR-7 (PCD-04: OBX-14), as UTC; every message is its own clock anchor, unless it was sent a minute before its own time",
    gaps_visible=False,
    prime_targets=False,
    demands=False,
    limits=False,
    proof="none: a snapshot never starts a delivery",
    tells={
        "starts and stops": "primary, secondary, PCA, loading, clinician, intermittent, KVO, with reason, rate and volume of the segment",
        "rates": "a change of rate is a transitioning stop and a start",
        "boluses": "doses are deliveries of their own source",
        "alarms": "start and end, with their class; they never stop delivery by themselves, the stop says it",
        "clock": "UTC of every message; that the device's time was changed",
        "snapshots": "a PCD-01 that contradicts what runs shows that a message is missing: a hole before it",
    },
    does_not_tell=(
        "fills, sites, reservoir changes, demands granted or denied",
        "that a message is missing, but for what a snapshot contradicts",
        "that a message was damaged: HL7 has no checksum",
    ),
    unknown=(
        "the number of MDC_EVT_PUMP_DELIV_STOP: it is known by its name",
        "how a change of the device's time gives its old and new time: it is a loss of the clock",
        "whether a device number without its first letter in a PCD-04 is the same pump: it is taken as another",
        "two channels of one MDS count as one pump",
    ),
)

UNKNOWN_PUMP = f"{FAMILY}:unknown"

# --- the nomenclature ----------------------------------------------------------------------------------------------------------

_TERMS = (
    ("event", 68487, "ATTR_EVT_COND"),
    ("event_source", 68488, "ATTR_EVT_SOURCE"),
    ("infusing", 184519, "PUMP_INFUSING_STATUS"),
    ("flow", 158014, "FLOW_FLUID_PUMP_CURRENT"),
    ("sources", 158016, "PUMP_ACTIVE_SOURCES"),
    ("status", 158005, "PUMP_CURRENT_DELIVERY_STATUS"),
    ("reason", 158006, "PUMP_NOT_DELIVERING_REASON"),
    ("mode", 158008, "PUMP_PROGRAM_DELIVERY_MODE"),
    ("label", 158012, "PUMP_SOURCE_CHANNEL_LABEL"),
    ("rate", 157784, "FLOW_FLUID_PUMP"),
    ("dose_rate", 157924, "RATE_DOSE"),
    ("vtbi", 157884, "VOL_FLUID_TBI"),
    ("vtbi_remaining", 157872, "VOL_FLUID_TBI_REMAIN"),
    ("segment_volume", 157992, "VOL_FLUID_DELIV_SEGMENT"),
    ("total_volume", 157993, "VOL_FLUID_DELIV_TOTAL"),
    ("time_programmed", 157996, ""),
    ("time_remaining", 157916, "TIME_PD_REMAIN"),
    ("dose_tbi", 157999, ""),
    ("dose_remaining", 158000, ""),
    ("segment_dose", 158003, ""),
    ("total_dose", 158001, ""),
    ("drug", 184514, "DRUG_NAME_LABEL"),
    ("concentration", 157760, "CONC_DRUG"),
    ("care_area", 184516, "PUMP_DRUG_LIBRARY_CARE_AREA"),
    ("library", 184520, "PUMP_DRUG_LIBRARY_NAME"),
    ("library_version", 184517, "PUMP_DRUG_LIBRARY_VERSION"),
    ("dose_limit", 157985, ""),
    ("max_doses_h", 157988, ""),
    ("lockout", 157989, ""),
    ("patient_dose", 158017, ""),
    ("loading_dose", 158018, ""),
    ("clinician_dose", 158019, ""),
    ("alarm", 196616, "EVT_ALARM"),
    ("alarm_source", 68480, "ATTR_ALERT_SOURCE"),
    ("phase", 68481, "ATTR_EVENT_PHASE"),
    ("alarm_state", 68482, "ATTR_ALARM_STATE"),
    ("inactivation", 68483, "ATTR_ALARM_INACTIVATION_STATE"),
    ("priority", 68484, "ATTR_ALARM_PRIORITY"),
    ("alarm_type", 68485, "ATTR_ALERT_TYPE"),
    ("alarm_text", 68546, "ATTR_ALERT_TEXT"),
)
"""What is called how here: our word, number, MDC name without MDC_ and with PUMP_ for DEV_PUMP_ ("" where no source gives it)."""

_WORD_OF_NAME = {name: word for word, _, name in _TERMS if name}
_WORD_OF_CODE = {str(code): word for word, code, _ in _TERMS}

_EVENTS: Mapping[str, Kind] = {
    "EVT_PUMP_DELIV_START": Kind.DELIVERY_START,
    "EVT_PUMP_DELIV_STOP": Kind.DELIVERY_STOP,
    "EVT_PUMP_DELIV_COMP": Kind.DELIVERY_COMPLETE,
    "EVT_COMM_STATUS_CHANGE": Kind.DEVICE_LINK,
    "EVT_PUMP_PROG_CLEARED": Kind.SETTINGS_CHANGE,
    "EVT_PATIENT_CHANGE": Kind.NEW_PATIENT,
    "EVT_PATIENT_ID_CHANGE": Kind.NEW_PATIENT,
    "EVT_PATIENT_PARAMETER_CHANGE": Kind.SETTINGS_CHANGE,
    "EVT_PUMP_VOL_COUNTERS_CLEARED": Kind.COUNTERS_CLEARED,
    "EVT_DEVICE_TIME_CHANGED": Kind.CLOCK_CHANGE,
}
_EVENT_OF_CODE = {"197288": "EVT_PUMP_DELIV_START", "197292": "EVT_PUMP_DELIV_COMP"}
_ABOUT_DELIVERY = "PUMP_DELIV"

_SOURCES = {one.value: one for one in (*Source,) if one not in (Source.BASAL, Source.KVO)}
_SOURCE_HEAD = re.compile(r"PUMP_INFUSATE_SOURCE_([A-Z]+?)(?:_CHAN)?")
_DOSE_HEADS = {"patient_dose": Source.PCA, "loading_dose": Source.LOADING, "clinician_dose": Source.CLINICIAN}

_REASONS = {
    "by-clinician": "user",
    "alarming": "alarm",
    "switching-source": "switching",
    "between-doses": "between_doses",
    "standby": "standby",
    "powered-off": "powered_off",
}

_ALARM_WORDS = {
    "OCCL": AlarmClass.OCCLUSION,
    "OCCLUSION": AlarmClass.OCCLUSION,
    "AIR": AlarmClass.AIR,
    "EMPTY": AlarmClass.EMPTY,
    "BATT": AlarmClass.BATTERY,
    "BATTERY": AlarmClass.BATTERY,
    "MALF": AlarmClass.MALFUNCTION,
}
"""Words of the MDC name of an alarm that say its class."""
_ALARM_OF_CODE = {"196940": AlarmClass.OCCLUSION}

_ML_H = {"MDC_DIM_MILLI_L_PER_HR": 1.0, "265266": 1.0, "ML/H": 1.0, "ML/HR": 1.0}
_ML = {"MDC_DIM_MILLI_L": 1.0, "263762": 1.0, "ML": 1.0}
_SECONDS = {
    name: seconds
    for seconds, names in ((1.0, "MDC_DIM_X_SEC MDC_DIM_SEC 264320 S"), (60.0, "MDC_DIM_MIN 264352 MIN"), (3600.0, "MDC_DIM_HR H HR"))
    for name in names.split()
}
_PER_HOUR = {"min": 60.0, "h": 1.0, "hr": 1.0, "d": 1 / 24}
_MOST = 1e9
_LONGEST_TERM = 200

_TOLD = (
    *("mode", "label", "drug", "concentration", "care_area", "library", "library_version", "rate", "dose_rate", "vtbi", "vtbi_remaining"),
    *("segment_volume", "total_volume", "time_programmed", "time_remaining", "dose_tbi", "dose_remaining", "segment_dose", "total_dose"),
    *("dose_limit", "max_doses_h", "lockout", "reason"),
)
"""What of a message is kept in `detail` as it was sent."""


@lru_cache(maxsize=4096)
def _named(term: str, component: str) -> tuple[str, str]:
    """(name, number) of a coded term `number^name^system^…`; the name as in `_TERMS`, and of the alternate term where that is known."""
    parts = ["".join(part.split()) for part in term.split(component)]
    parts += [""] * (5 - len(parts))
    names = [_plain(parts[1]), _plain(parts[4])]
    known = [name for name in names if name in _WORD_OF_NAME or name in _EVENTS]
    return (known or names)[0], parts[0]


def _plain(name: str) -> str:
    return name.upper().removeprefix("MDC_").replace("DEV_PUMP_", "PUMP_")


@lru_cache(maxsize=4096)
def _word(term: str, component: str) -> tuple[str, str]:
    """(our word for an OBX-3 or "", its name): by name first, by number second."""
    name, code = _named(term, component)
    word = _WORD_OF_NAME.get(name) or _WORD_OF_CODE.get(code, "")
    if not word and "LOCKOUT" in name:
        word = "lockout"
    return word, name


# --- bytes to messages ---------------------------------------------------------------------------------------------------------

_VT, _FS, _CR = b"\x0b", b"\x1c", b"\r"
_HEADER = re.compile(rb"MSH[^\w\s]")
_USUAL = re.compile(rb"\|\^~\\&\|")
_LINE_ENDS = b"\r\n\x0b\x1c"
_BATCH = frozenset({"FHS", "BHS", "BTS", "FTS"})
_PATIENT = frozenset({"PID", "PD1", "NK1", "PV1", "PV2", "GT1", "IN1", "IN2", "NTE"})
_OTHERS = "MSH|SFT|UAC|EVN|MSA|ERR|ORC|OBR|OBX|TQ1|TQ2|CTD|CTI|FT1|PDA|PRT|ROL|SPM|SAC|DSC"
_SEGMENT = "|".join([*sorted(_BATCH | _PATIENT), _OTHERS, "Z[A-Z0-9]{2}"])
"""A line that begins with no segment of HL7 goes on with the one before: a wrapped OBX may go on with MDC|…."""
_BLANK = b"\r\n\t \x0b\x1c"
_BETWEEN = _BLANK + b"\xef\xbb\xbf"
_INDENT = b" \t\xef\xbb\xbf"
_SEPARATORS = "^~\\&"


@dataclass(frozen=True, slots=True)
class Frames:
    """What a byte stream in MLLP gave: whole messages, bytes that stood outside of frames, and the rest, to which more is to come."""

    messages: list[bytes]
    outside: bytes
    rest: bytes


def unframed(data: bytes) -> Frames:
    """Splits MLLP: VT message FS CR. `rest` begins with the VT of an unfinished message, or is empty; give it back with what comes next."""
    messages: list[bytes] = []
    outside, at = bytearray(), 0
    while (start := data.find(_VT, at)) >= 0:
        outside += data[at:start]
        end = data.find(_FS, start)
        if end < 0:
            return Frames(messages, bytes(outside).strip(_BLANK), data[start:])
        messages.append(data[start + 1 : end])
        at = end + 1
    outside += data[at:]
    return Frames(messages, bytes(outside).strip(_BLANK), b"")


def framed(message: bytes) -> bytes:
    """A message in its MLLP frame."""
    return _VT + message + _FS + _CR


def answer(message: bytes, *, accepted: bool, at: datetime, why: str = "") -> bytes:
    """The acknowledgement of a message, not framed: AA when it is durable, else AE with a sentence; `at` (with zone): when it is given."""
    segments, separator, _ = _segments(message.lstrip(_BETWEEN))
    header = segments[0] if segments and segments[0][0] == "MSH" else ["MSH", _SEPARATORS]
    header += [""] * (12 - len(header))
    component = header[1][:1] or "^"
    trigger = [part for part in header[8].split(component)[1:2] if part]
    own = "A" + hashlib.sha256(message).hexdigest()[:19]
    text = " ".join("".join(" " if c in separator + header[1] else c for c in why).split())
    lines = [
        ["MSH", header[1], *header[4:6], *header[2:4], at.strftime("%Y%m%d%H%M%S%z"), "", component.join(["ACK", *trigger, "ACK"]), own],
        ["MSA", "AA" if accepted else "AE", "".join(header[9].split()), text],
    ]
    lines[0] += [header[10] or "P", header[11] or "2.6"]
    if not accepted:
        lines.append(["ERR", "", "", component.join(["207", "Application internal error", "HL70357"]), "E"])
    return "".join(separator.join(line).rstrip(separator) + "\r" for line in lines).encode()


def _segments(raw: bytes) -> tuple[list[list[str]], str, bytes]:
    """The segments of a message as fields, its field separator, and its bytes; without those about the patient.

    A line that does not begin as a segment does is the rest of the one before, which was wrapped.
    """
    separator = raw[3:4].decode("latin-1") if raw.startswith(b"MSH") and len(raw) > 3 else "|"
    begins = _begins(separator)
    lines: list[str] = []
    kept: list[bytes] = []
    left_out = False
    for piece in raw.splitlines(keepends=True):
        line = piece.decode("utf-8", "replace").strip()
        if begins(line):
            left_out = line[:3] in _PATIENT
            if not left_out:
                lines.append(line)
        elif line and lines and not left_out:
            lines[-1] += line
        if not left_out:
            kept.append(piece)
    return [line.split(separator) for line in lines if line[:3] not in _BATCH], separator, b"".join(kept)


@lru_cache(maxsize=16)
def _begins(separator: str) -> Any:
    return re.compile(rf"(?:{_SEGMENT})(?:{re.escape(separator)}|\Z)").match


def _messages(data: bytes) -> Iterator[tuple[int, bytes, str]]:
    """(offset, bytes, what is wrong: a key of `_WRONG`, or "") of each message of a capture, and of what stands between them."""
    starts = sorted(_starts(data))
    if not starts and data.strip(_BETWEEN) and not _is_junk(data):
        yield 0, data.strip(_BLANK), "header"  # an envelope without a message in it: nothing is passed over in silence
        return
    for start, end in zip([0, *starts], [*starts, len(data)], strict=True):
        block, _, behind = data[start:end].partition(_FS)
        message = block.lstrip(_BETWEEN)
        if message.startswith(b"MSH"):
            cut = _before(data, start) == _VT and len(block) == end - start
            yield start + len(block) - len(message), message.rstrip(_BLANK), "frame" if cut else ""
        elif _is_junk(block):
            yield start, block.strip(_BLANK), "header"
        if _is_junk(behind):
            yield start + len(block) + 1, behind.strip(_BLANK), "header"


_WRONG = {"frame": "its frame does not end", "header": "it does not begin with MSH"}


def _starts(data: bytes) -> set[int]:
    """Where messages begin: MSH at the start of a line, or a line that has the usual separators where a header has them."""
    found = {at.start() for at in _HEADER.finditer(data) if _before(data, at.start()) in _LINE_ENDS}
    for at in _USUAL.finditer(data):
        head = re.split(rb"[\r\n\x0b\x1c]", data[max(0, at.start() - 12) : at.start()])[-1].lstrip(_BETWEEN)
        if len(head) <= 4:
            found.add(at.start() - len(head))
    return found


def _before(data: bytes, at: int) -> bytes:
    """The byte before a place, blanks and a byte order mark aside; none at the start."""
    return data[max(0, at - 8) : at].rstrip(_INDENT)[-1:]


def _is_junk(data: bytes) -> bool:
    return any(line.strip(_BETWEEN) and line.strip(_BETWEEN)[:3].decode("latin-1") not in _BATCH for line in data.splitlines())


# --- one message ---------------------------------------------------------------------------------------------------------------


class _UnreadableError(Exception):
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
class _Seen:
    """One OBX: our word for it, its MDC name, the group it stands in (MDS.VMD.channel) and its metric there, its fields."""

    word: str
    name: str
    group: tuple[str, ...]
    metric: str
    fields: list[str]


class _Message:
    """A message that can be asked. Raises _UnreadableError where it has no header that can be read."""

    def __init__(self, raw: bytes, zone: timezone | None) -> None:
        segments, separator, self.raw = _segments(raw)
        header = segments[0] if segments else []
        if len(header) < 2 or header[0] != "MSH" or not separator.isascii() or separator.isalnum() or separator.isspace():
            raise _UnreadableError("header", "its header cannot be read")
        header += [""] * (21 - len(header))
        self.component, self.repeat, self.escape, self.sub = list(header[1] + _SEPARATORS[len(header[1]) :])[:4]
        self.sender, self.control = header[2].strip(), "".join(header[9].split())
        self.type, self.trigger = self.part(header[8], 0).upper(), self.part(header[8], 1).upper()
        self.version = self.part(header[11], 0)
        self.sent, own = _instant(self.part(header[6], 0), zone)
        self.zone = own or zone
        self.requests = [segment for segment in segments if segment[0] == "OBR"]
        self.seen = [self._seen(segment) for segment in segments if segment[0] == "OBX" and len(segment) > 3]
        self.by_word: dict[str, list[_Seen]] = {}
        for one in self.seen:
            self.by_word.setdefault(one.word, []).append(one)

    def _seen(self, fields: list[str]) -> _Seen:
        fields += [""] * (19 - len(fields))
        word, name = _word(fields[3][:_LONGEST_TERM], self.component)
        place = fields[4].strip().split(".")
        return _Seen(word, name, tuple(place[:3]), ".".join(place[3:]), fields)

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

    def find(self, word: str, group: tuple[str, ...] | None, *, strict: bool = False) -> _Seen | None:
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

    def amount(self, one: _Seen | None, units: Mapping[str, float] | None) -> float | None:
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

    def unit(self, one: _Seen | None) -> str:
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


def _place_of(raw: bytes, zone: timezone | None) -> tuple[int | None, str | None]:
    """(UTC ms, record key) of a message that may be damaged, as far as they can be read: OBR-7, else MSH-7."""
    segments, _, _ = _segments(raw)
    found: dict[str, list[str]] = {}
    for segment in segments:
        found.setdefault(segment[0], segment)
    header, request = found.get("MSH", []), found.get("OBR", [])
    sent, own = _instant(header[6].split("^")[0], zone) if len(header) > 6 else (None, None)
    happened = _instant(request[7].split("^")[0], own or zone)[0] if len(request) > 7 else None
    best = happened or sent
    key = _key(header[2].strip(), "".join(header[9].split())) if len(header) > 9 and header[9].strip() else None
    return None if best is None else _ms(best), key


def _key(sender: str, control: str) -> str:
    return f"{sender}|{control}"


def _ms(naive_utc: datetime) -> int:
    return (naive_utc - _ZERO) // timedelta(milliseconds=1)


_ZERO = datetime(1970, 1, 1)  # noqa: DTZ001
_AHEAD = timedelta(minutes=1)
"""A message that was sent so long before what it tells happened has a clock that is wrong: it anchors nothing."""


# --- what a message says -------------------------------------------------------------------------------------------------------

Said = dict[str, Any]


def _event(message: _Message) -> Said:
    """A PCD-10 message: one event."""
    conditions = message.by_word.get("event", [])
    if len(conditions) != 1:
        raise _UnreadableError("event", f"it tells {len(conditions)} events, not one")
    name, code = _named(conditions[0].fields[5], message.component)
    known = name if name in _EVENTS else _EVENT_OF_CODE.get(code, "")
    if not known and (_ABOUT_DELIVERY in name or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name)):
        raise _UnreadableError("event", "its event is not known, and may be one of delivery")
    kind = _EVENTS.get(known, Kind.OTHER)
    said: Said = {"kind": kind, "native_code": f"MDC_{known or name}"}
    group = _event_group(message)
    match kind:
        case Kind.DELIVERY_START:
            return said | _start(message, group)
        case Kind.DELIVERY_STOP | Kind.DELIVERY_COMPLETE:
            return said | _stop(message, group, kind)
        case Kind.SETTINGS_CHANGE:
            return said | {"lockout_s": message.amount(message.find("lockout", None), _SECONDS)}
        case Kind.CLOCK_CHANGE:
            return said | {"reason": "loss"}
    return said


def _event_group(message: _Message) -> tuple[str, ...] | None:
    """The group (MDS.VMD.channel) that the event is of, where it is told and holds anything; else that of the active source."""
    told = message.find("event_source", None)
    if told is not None:
        group = tuple("".join(told.fields[5].split()).split(".")[:3])
        if any(one.group == group and one.metric != "0" for one in message.seen):
            return group
    active = message.tokens("sources", "pump-source-info-")
    heads = [one.group for one in message.seen if len(active) == 1 and (source := _head(one)) is not None and source.value == active[0]]
    return heads[0] if len(heads) == 1 else None


def _head(one: _Seen) -> Source | None:
    """The source whose group this OBX is the head of."""
    if one.metric != "0":
        return None
    match = _SOURCE_HEAD.fullmatch(one.name)
    return _SOURCES.get(match[1].lower()) if match else _DOSE_HEADS.get(one.word)


def _source(message: _Message, group: tuple[str, ...] | None) -> Source | None:
    """The source of an event; none where the message does not say. Raises _UnreadableError for one that there is not."""
    head = next((source for one in message.seen if one.group == group and (source := _head(one)) is not None), None)
    active = message.tokens("sources", "pump-source-info-", group)
    if not active:
        return head
    if any(name not in _SOURCES for name in active):
        raise _UnreadableError("source", "its source is not known")
    if len(active) > 1 and (head is None or head.value not in active):
        raise _UnreadableError("source", "it tells several sources")
    return _SOURCES[active[0]] if len(active) == 1 else head


def _start(message: _Message, group: tuple[str, ...] | None) -> Said:
    """A start must show that it is one, and whether it is KVO: IPEC asks for the delivery status in each."""
    status = message.tokens("status", "pump-delivery-status-", group)
    if len(status) != 1 or status[0] not in ("delivering", "kvo"):
        raise _UnreadableError("status", f"it is a start and its delivery status is {status[0] if len(status) == 1 else 'not told'}")
    if message.tokens("infusing", "pump-status-", group) == ["not-infusing"]:
        raise _UnreadableError("status", "it is a start and the pump does not infuse")
    source = _source(message, group) or Source.PRIMARY
    own = message.find("rate", group, strict=True)
    flow = message.find("flow", group) or own
    rate = message.amount(flow, _ML_H)
    vtbi = message.amount(message.find("vtbi", group, strict=True), _ML)
    return {
        "source": Source.KVO if status[0] == "kvo" else source,
        "rate_ml_h": message.amount(own, _ML_H) if rate is None else rate,
        "programmed_ml": vtbi,
        **_doses(message, group, "programmed_dose", "dose_tbi"),
    }


def _stop(message: _Message, group: tuple[str, ...] | None, kind: Kind) -> Said:
    """A stop or a completion; what has no source stops whatever runs."""
    source = _source(message, group)
    if kind is Kind.DELIVERY_COMPLETE and source is None:
        raise _UnreadableError("source", "it completes a delivery of no source")
    said: Said = {
        "source": source,
        "volume_ml": message.amount(message.find("segment_volume", group), _ML),
        **_doses(message, group, "dose", "segment_dose"),
    }
    transitioning = message.tokens("status", "pump-delivery-status-", group) == ["transitioning"]
    if kind is Kind.DELIVERY_STOP:
        reasons = message.tokens("reason", "pump-stopped-", group)
        said["reason"] = "transitioning" if transitioning else _REASONS.get(reasons[0] if len(reasons) == 1 else "", "unknown")
    return said


def _doses(message: _Message, group: tuple[str, ...] | None, column: str, word: str) -> Said:
    """An amount of drug and a rate of it, where their units agree: one column holds the unit of both."""
    amount = message.find(word, group, strict=True)
    dose, unit = message.amount(amount, None), message.unit(amount)
    said: Said = {column: dose, "dose_unit": unit} if dose is not None and unit else {}
    rate = message.find("dose_rate", group, strict=True)
    value = message.amount(rate, None)
    what, _, per = message.unit(rate).rpartition("/")
    if value is not None and what and per.lower() in _PER_HOUR and said.get("dose_unit", what) == what:
        said |= {"rate_dose_h": round(value * _PER_HOUR[per.lower()], 9), "dose_unit": what}
    return said


def _alarm(message: _Message) -> Said:
    """A PCD-04 message: its start, its end, or something else about it."""
    alarm = message.find("alarm", None)
    if alarm is None:
        raise _UnreadableError("alarm", "it tells no alarm, or several", hole=False)
    name, code = _named(alarm.fields[5], message.component)
    phase = message.find("phase", None)
    told = "".join(phase.fields[5].replace(message.component, "").split()).lower() if phase else ""
    kind = {"start": Kind.ALARM_RAISED, "end": Kind.ALARM_CLEARED}.get(told, Kind.OTHER)
    said: Said = {"kind": kind, "native_code": f"MDC_{name}" if name else code}
    if kind is not Kind.OTHER:
        words = (word for word in name.split("_") if word in _ALARM_WORDS)
        said["alarm_class"] = _ALARM_WORDS.get(next(words, ""), _ALARM_OF_CODE.get(code, AlarmClass.OTHER))
    if kind is Kind.ALARM_RAISED:
        said["stops_delivery"] = False
    return said


def _snapshot(message: _Message) -> Said:
    return {"kind": Kind.OTHER, "native_code": "R01"}


_READERS = {"R42": _event, "R40": _alarm, "R01": _snapshot}


def _happened(message: _Message) -> datetime | None:
    """OBR-7; of an alarm the time (OBX-14) that one of its OBX gives."""
    if message.trigger == "R40":
        for word in ("alarm_source", "alarm"):
            for one in message.by_word.get(word, []):
                if one.fields[14].strip():
                    return message.instant(one.fields[14])
    return message.requested()


def _detail(message: _Message, said: Said) -> str:
    detail: dict[str, Any] = {"sent": message.sent.isoformat() if message.sent else ""}
    request = [*message.requests[0], *[""] * 4] if message.requests else [""] * 4
    for name, value in (("order", request[2]), ("infusion", request[3]), ("version", message.version)):
        if value:
            detail[name] = message.text(message.part(value, 0))
    for word in _TOLD:
        if (one := message.find(word, None)) is not None:
            value = one.fields[5].replace(message.component, " ").strip()
            detail[word] = message.text(f"{value} {message.unit(one)}".strip())
    if message.trigger == "R40":
        for word in ("phase", "alarm_state", "inactivation", "priority", "alarm_type", "alarm_text", "alarm_source"):
            if (one := message.find(word, None)) is not None:
                detail[word] = message.text(one.fields[5].replace(message.component, " ").strip())
    if said["native_code"] == "R01":
        detail |= _shown(message)
    return dump_detail(detail)


def _shown(message: _Message) -> dict[str, str]:
    """What a snapshot shows to run: "nothing", "kvo", "delivery", or "something"; not told where several parts of the pump tell it."""
    infusing = message.tokens("infusing", "pump-status-")
    if infusing == ["not-infusing"]:
        return {"shows": "nothing"}
    if infusing != ["infusing"]:
        return {}
    parts = [part for one in message.by_word.get("status", []) for part in re.split(r"[^\w-]", one.fields[5].lower())]
    told = {part.removeprefix("pump-delivery-status-") for part in parts}
    return {"shows": "delivery" if "delivering" in told else "kvo" if "kvo" in told else "something"}


# --- captures ------------------------------------------------------------------------------------------------------------------


def recognise(name: str, data: bytes) -> bool:
    """Whether the bytes begin as HL7 does and speak of device observations."""
    head = data[:65536].lstrip(_BETWEEN)
    return head[:3] in (b"MSH", b"FHS", b"BHS") and (b"ORU^R" in head or b"^MDC" in head)


def read_files(
    files: Sequence[tuple[str, bytes]], *, pump_id: str | None = None, model: str | None = None, anchor: Anchor | None = None
) -> list[Capture]:
    """One capture a message, every byte as it came; what names no pump is of `pump_id`, or unknown.

    `anchor` gives times that have no zone theirs.
    """
    zone = _zone(anchor)
    captures = []
    for _, data in files:
        found = list(_messages(data))
        begins = [0, *(_begin(data, offset) for offset, _, _ in found[1:])]
        for (_, raw, _), begin, end in zip(found, begins, [*begins[1:], len(data)], strict=False):
            try:
                device = _Message(raw, zone).device()
            except _UnreadableError:
                device = None
            named = f"{FAMILY}:{device}" if device else pump_id or UNKNOWN_PUMP
            captures.append(Capture(data=data[begin:end], family=FAMILY, pump_id=named, model=model, anchor=anchor))
    return captures


def split(capture: Capture, size: int) -> list[Capture]:
    """The capture as captures of whole messages, each of at most `size` bytes. What has no time of its own stays between its neighbours.

    Raises InputError where a message is larger.
    """
    return parted(capture, size, _borders(capture) if len(capture.data) > size else (), decode)


def _borders(capture: Capture) -> list[int]:
    """Where messages begin before which a capture may be cut."""
    told = decode(capture)
    marks = [(offset, True, True) for offset in told.records["offset"].to_pylist()]
    marks += [(fault["offset"], False, fault["seq"] is not None) for fault in told.faults.select(["offset", "seq"]).to_pylist()]
    borders: list[int] = []
    since: list[int] = []
    bound = False
    for offset, is_record, is_placed in sorted(marks):
        since.append(offset)
        bound |= not is_placed
        if is_record:
            borders += [] if bound else since
            since, bound = [], False
    return [_begin(capture.data, offset) for offset in [*borders, *([] if bound else since)]]


def _begin(data: bytes, offset: int) -> int:
    """Where a message that stands there begins with its frame."""
    before = data[max(0, offset - 8) : offset].rstrip(_INDENT)
    return max(0, offset - 8) + len(before) - 1 if before.endswith(_VT) else offset


def _zone(anchor: Anchor | None) -> timezone | None:
    """The zone of a clock that was read beside UTC, to the quarter of an hour."""
    if anchor is None:
        return None
    quarters = round((anchor.pump_clock - anchor.utc.astimezone(UTC).replace(tzinfo=None)) / timedelta(minutes=15))
    return timezone(timedelta(minutes=15 * quarters)) if abs(quarters) < 96 else None


def decode(capture: Capture) -> Decoded:
    """Records, faults and anchors of one capture. `seq` of a fault is the UTC instant (ms) at which it stands: messages have no number."""
    sha, zone = capture.sha256, _zone(capture.anchor)
    rows: list[Said] = []
    faults: list[Said] = []
    for offset, raw, wrong in _messages(capture.data):
        stood = {"capture": sha, "part": capture.part, "offset": offset, "pump_id": capture.pump_id, "log_epoch": 0}
        try:
            if wrong:
                raise _UnreadableError(wrong, _WRONG[wrong])
            rows.append(stood | _record(_Message(raw, zone), capture.pump_id))
        except _UnreadableError as error:
            own, _ = _place_of(raw, zone)
            before = _ms(rows[-1]["pump_time"]) if rows and own is None else None
            hole = error.hole and capture.pump_id != UNKNOWN_PUMP
            told = {"code": error.code, "message": str(error), "hole": hole, "raw": _segments(raw)[2]}
            faults.append(stood | told | {"seq": own, "after_seq": before, "rows": len(rows)})
    for fault in faults:
        behind = fault.pop("rows")
        if fault["seq"] is None and behind < len(rows):
            fault["before_seq"] = _ms(rows[behind]["pump_time"])
        place = f"{fault['seq']}:{fault['after_seq']}:{fault.get('before_seq')}"
        fault["fault_id"] = fault_id(capture.pump_id, fault["code"], place, fault["raw"])
    anchors = [_anchor_row(row) for row in rows if row.pop("anchors")]
    quarantined = table(FAULTS, faults) if faults else FAULTS.empty_table()
    return Decoded(table(RECORDS, rows), quarantined, table(ANCHORS, anchors))


def _record(message: _Message, pump_id: str) -> Said:
    """The row of one message. Raises _UnreadableError."""
    device = message.device()
    if device is None and pump_id == UNKNOWN_PUMP:
        raise _UnreadableError("device", "it names no pump", hole=False)
    if device is not None and f"{FAMILY}:{device}" != pump_id:
        raise _UnreadableError("pump", "it is of another pump than the capture", hole=False)
    reader = _READERS.get(message.trigger)
    if reader is None or message.type == "ACK":
        raise _UnreadableError("type", "it is no event, alarm or snapshot", hole=message.type != "ACK")
    said = reader(message)
    delivery = reader is _event
    if not message.control:
        raise _UnreadableError("control_id", "it has no control id, so it cannot be told from its repetition", hole=delivery)
    time = _happened(message)
    if time is None:
        raise _UnreadableError("time", "it has no time with second and zone", hole=delivery)
    said = {name: value for name, value in said.items() if value is not None}
    return {
        **said,
        "record_key": _key(message.sender, message.control),
        "contiguous": False,
        "pump_time": time,
        "new_time": time if said["kind"] is Kind.CLOCK_CHANGE else None,
        "detail": _detail(message, said),
        "raw": message.raw,
        "anchors": message.sent is None or time - message.sent <= _AHEAD,
    }


def _anchor_row(row: Said) -> Said:
    time = row["pump_time"]
    same = {name: row[name] for name in ("capture", "part", "pump_id", "log_epoch")}
    return same | {"after": row["record_key"], "pump_clock": time, "utc": time.replace(tzinfo=UTC)}


# --- assemble ------------------------------------------------------------------------------------------------------------------


class _Told(msgspec.Struct):
    """What of `detail` the order and the holes need."""

    sent: str = ""
    shows: str = ""


_told = msgspec.json.Decoder(_Told)
_SAYS = [name for name in CONTENT.names if name not in ("raw", "detail")]
_LAG_MS = 10_000
"""A snapshot shows the pump as it was some seconds around its time: it is not held against a start or a stop so near."""


@dataclass(slots=True)
class _Row:
    """A record in its place in the log."""

    index: int
    key: str
    kind: str
    reason: str | None
    source: str | None
    rate: float | None
    ms: int
    told: _Told
    conflicts: list[str] = field(default_factory=list)

    @property
    def place(self) -> tuple[int, bool, int, str, int, str]:
        """OBR-7 to the second, transitioning stops and completions first; then its fraction, MSH-7, MSH-10 (numbers by their size)."""
        first = self.kind == Kind.DELIVERY_COMPLETE.value or self.reason == "transitioning"
        control = self.key.rpartition("|")[2]
        return self.ms // 1000, not first, self.ms, self.told.sent, len(control), self.key


def assemble(pump_id: str, records: pa.Table, faults: pa.Table, anchors: pa.Table) -> Log:
    """The log of one pump by the times of its messages; KVO stops find their source, and holes their places."""
    records = records.combine_chunks()
    rows = sorted(_one_row_a_key(records), key=lambda row: row.place)
    holes = _fault_holes(rows, faults)
    kvo_stops, contradicted = _followed(rows, holes)
    holes |= contradicted
    events = _events(pump_id, records, rows, kvo_stops)
    at = [float(i) for i in range(len(rows))]
    if holes:
        gaps = [sequence.hole_row(pump_id, 0, kind, key) for _, (kind, key) in sorted(holes.items())]
        events = pa.concat_tables([events, pa.Table.from_pylist(gaps, schema=EVENTS)])
        order = np.argsort([*at, *(row - 0.5 for row in sorted(holes))], kind="stable")
        events = events.take(pa.array(order)).combine_chunks()
    return Log(
        events=events,
        anchors=_placed(events, anchors),
        event_of_record=pa.array([event_id(pump_id, key) for key in records.column("record_key").to_pylist()], pa.string()),
        gaps_visible=False,
    )


def _one_row_a_key(records: pa.Table) -> list[_Row]:
    """One row of each message: of different contents the later, then the one sent later, then the greater content hash (semantics §2)."""
    names = ("record_key", "kind", "reason", "source", "rate_ml_h")
    columns = [records.column(name).to_pylist() for name in names]
    times = records.column("pump_time").cast(pa.int64()).to_pylist()
    details = records.column("detail").to_pylist()
    found: dict[str, list[_Row]] = {}
    for index, (key, kind, reason, source, rate) in enumerate(zip(*columns, strict=True)):
        found.setdefault(key, []).append(_Row(index, key, kind, reason, source, rate, times[index], _told.decode(details[index])))
    again = [row.index for rows in found.values() if len(rows) > 1 for row in rows]
    readings = iter(records.take(pa.array(again, pa.int64())).to_pylist())
    return [rows[0] if len(rows) == 1 else _chosen(rows, [next(readings) for _ in rows]) for rows in found.values()]


def _chosen(rows: list[_Row], readings: list[dict[str, Any]]) -> _Row:
    """Which of several readings of a message stands; when it was sent is no part of its content."""
    alike = len({(reading["raw"], reading["pump_time"]) for reading in readings}) == 1
    content = [""] * len(rows) if alike else [_content(reading) for reading in readings]
    latest = {one: max((row.ms, row.told.sent) for row, other in zip(rows, content, strict=True) if other == one) for one in set(content)}
    winner = max(latest, key=lambda one: (latest[one], one))
    same = [i for i, one in enumerate(content) if one == winner]
    best = rows[min(same, key=lambda i: (rows[i].told.sent, readings[i]["raw"], readings[i]["capture"], readings[i]["offset"]))]
    best.conflicts = sorted(latest.keys() - {winner})
    return best


def _content(reading: Mapping[str, Any]) -> str:
    detail = msgspec.json.decode(reading["detail"])
    detail.pop("sent", None)
    said = {name: str(reading[name]) for name in _SAYS}
    return hashlib.sha256(dump_detail({**said, "detail": detail}).encode()).hexdigest()


_Holes = dict[int, tuple[Kind, str]]
"""By the row before which it stands: kind and key."""


def _fault_holes(rows: Sequence[_Row], faults: pa.Table) -> _Holes:
    """Where messages stood that could not be read, and did not come again readable."""
    keys = {row.key for row in rows}
    seconds, times = [row.ms // 1000 for row in rows], sorted(row.ms for row in rows)
    holes: _Holes = {}
    lost = faults.select(["seq", "after_seq", "before_seq", "hole", "raw"]).to_pylist()
    for fault in sorted(lost, key=lambda one: [(n is None, n or 0) for n in (one["seq"], one["after_seq"], one["before_seq"])]):
        own, after, before = fault["seq"], fault["after_seq"], fault["before_seq"]
        if not fault["hole"] or _place_of(fault["raw"], UTC)[1] in keys:
            continue
        if own is not None:
            at, name = bisect_left(seconds, own // 1000), f"at-{own}"
        elif after is not None:
            at, name = bisect_right(times, after), f"after-{after}"
        elif before is not None:
            at, name = bisect_left(seconds, before // 1000), f"until-{before}"
        else:
            continue
        holes.setdefault(at, (Kind.DATA_CORRUPTION, f"gap:0:{name}"))
    return holes


_DELIVERIES = frozenset(kind.value for kind in (Kind.DELIVERY_START, Kind.DELIVERY_STOP, Kind.DELIVERY_COMPLETE))


def _followed(rows: Sequence[_Row], holes: Mapping[int, Any]) -> tuple[set[int], _Holes]:
    """The log followed from start to end: the rows that stop KVO, and the snapshots that show that a message is missing before them.

    What is missing is not known, so nothing that runs is known behind such a hole. `None` in `runs`: at rate 0, or not to be judged.
    """
    moves = [row.ms for row in rows if row.kind in _DELIVERIES]
    runs: dict[str | None, bool | None] = {}
    kvo_stops: set[int] = set()
    found: _Holes = {}
    for number, row in enumerate(rows):
        source = row.source
        if number in holes or row.kind in (Kind.CLOCK_CHANGE.value, Kind.NEW_PATIENT.value):
            runs.clear()
        match row.kind:
            case Kind.DELIVERY_START.value:
                runs = dict.fromkeys(runs, False) if source == "kvo" else {**runs, "kvo": False}
                runs[source] = None if row.rate == 0 and source != "kvo" else True
            case Kind.DELIVERY_STOP.value if runs.get("kvo"):
                kvo_stops.add(number)
                runs["kvo"] = False
            case Kind.DELIVERY_STOP.value if source is None:
                runs = dict.fromkeys([*runs, None], False)
            case Kind.DELIVERY_STOP.value | Kind.DELIVERY_COMPLETE.value:
                runs[source] = False
            case Kind.OTHER.value if row.told.shows and runs and None not in runs.values():
                near = bisect_left(moves, row.ms - _LAG_MS) < bisect_right(moves, row.ms + _LAG_MS)
                running = {name for name, on in runs.items() if on}
                known = "nothing" if not running else "kvo" if running == {"kvo"} else "delivery"
                agree = row.told.shows == known or (row.told.shows == "something" and running)
                if not near and not agree:
                    found[number] = (Kind.DATA_GAP, f"gap:0:before-{row.key}")
                    runs.clear()
    return kvo_stops, found


def _events(pump_id: str, records: pa.Table, rows: Sequence[_Row], kvo_stops: set[int]) -> pa.Table:
    """EVENTS of the rows, without holes."""
    taken = records.take(pa.array([row.index for row in rows], pa.int64()))
    details = taken.column("detail").to_pylist()
    for number, row in enumerate(rows):
        if row.conflicts:
            details[number] = dump_detail({**msgspec.json.decode(details[number]), "conflicts_with": row.conflicts})
    sources = [Source.KVO.value if number in kvo_stops else row.source for number, row in enumerate(rows)]
    columns = {
        **{name: taken.column(name) for name in EVENTS.names if name in taken.column_names},
        "event_id": pa.array([event_id(pump_id, row.key) for row in rows], pa.string()),
        "source": pa.array(sources, pa.string()),
        "detail": pa.array(details, pa.string()),
        "conflict": pa.array([bool(row.conflicts) for row in rows], pa.bool_()),
    }
    return pa.table({name: columns[name] for name in EVENTS.names}, schema=EVENTS).combine_chunks()


def _placed(events: pa.Table, anchors: pa.Table) -> tuple[PlacedAnchor, ...]:
    """The anchors of the readings that stand, in log order."""
    times = events.column("pump_time").cast(pa.int64()).to_pylist()
    row_of = {key: row for row, key in enumerate(events.column("record_key").to_pylist())}
    clocks = anchors.column("pump_clock").cast(pa.int64()).to_pylist()
    there = {
        (row, clock)
        for key, clock in zip(anchors.column("after").to_pylist(), clocks, strict=True)
        if (row := row_of.get(key)) is not None and times[row] == clock
    }
    return tuple(PlacedAnchor(row, clock, clock, None) for row, clock in sorted(there))
