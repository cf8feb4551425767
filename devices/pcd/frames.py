"""Bytes to messages (docs/pump-formats.md §2): MLLP frames, acknowledgements, where messages begin, and their segments."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

_VT, _FS, _CR = b"\x0b", b"\x1c", b"\r"
_HEADER = re.compile(rb"MSH[^\w\s]")
_SEPARATED = b"|^~\\&|"
_USUAL_HEADER = b"MSH" + _SEPARATED
_USUAL = re.compile(re.escape(_SEPARATED))
_LINE_ENDS = b"\r\n\x0b\x1c"
_BATCH = frozenset({"FHS", "BHS", "BTS", "FTS"})
_PATIENT = frozenset({"PID", "PD1", "NK1", "PV1", "PV2", "GT1", "IN1", "IN2", "NTE"})
_OTHERS = "MSH SFT UAC EVN MSA ERR ORC OBR OBX TQ1 TQ2 CTD CTI FT1 PDA PRT ROL SPM SAC DSC"
_SEGMENTS = _BATCH | _PATIENT | frozenset(_OTHERS.split())
"""A line that begins with no segment of HL7 goes on with the one before: a wrapped OBX may go on with MDC|…."""
_OWN = re.compile("Z[A-Z0-9]{2}")
_BLANK = b"\r\n\t \x0b\x1c"
BETWEEN = _BLANK + b"\xef\xbb\xbf"
_INDENT = b" \t\xef\xbb\xbf"
SEPARATORS = "^~\\&"
MOST_KEPT = 16_384
"""So many lines that were read are kept, not to be read again: far more than come in every message of some hundred pumps."""


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
    segments, separator, _ = segments_of(message.lstrip(BETWEEN))
    header = segments[0] if segments and segments[0][0] == "MSH" else ["MSH", SEPARATORS]
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


def segments_of(raw: bytes) -> tuple[list[list[str]], str, bytes]:
    """The segments of a message as fields, its field separator, and its bytes; without those about the patient."""
    separator = separator_of(raw)
    lines, kept = Lines(separator).of(raw)
    return [line.split(separator) for line in lines], separator, kept


def separator_of(raw: bytes) -> str:
    """What separates the fields of a message: the byte behind its MSH."""
    return raw[3:4].decode("latin-1") if raw.startswith(b"MSH") and len(raw) > 3 else "|"


class Lines(dict[bytes, tuple[str, bool, bool, bool]]):
    """The lines of messages with one field separator, each looked at once, for most come again in the next message.

    Of each: its text, whether a segment begins with it, whether that is one of a message (not an envelope, not about the patient),
    and whether it is about the patient.
    """

    def __init__(self, separator: str) -> None:
        super().__init__()
        self._ends = ("", separator)

    def __missing__(self, piece: bytes) -> tuple[str, bool, bool, bool]:
        text = piece.decode("utf-8", "replace").strip()
        name = text[:3]
        begins = text[3:4] in self._ends and (name in _SEGMENTS or _OWN.fullmatch(name) is not None)
        is_about_patient = begins and name in _PATIENT
        if len(self) >= MOST_KEPT:
            self.clear()
        found = self[piece] = text, begins, begins and not is_about_patient and name not in _BATCH, is_about_patient
        return found

    def of(self, raw: bytes) -> tuple[list[str], bytes]:
        """The segments of a message as text, and its bytes; without those about the patient.

        A line that does not begin as a segment does is the rest of the one before, which was wrapped.
        """
        lines: list[str] = []
        kept: list[bytes] = []
        is_told = left_out = False
        for piece in raw.splitlines(keepends=True):
            text, begins, is_of_message, is_about_patient = self[piece]
            if begins:
                is_told, left_out = is_of_message, is_about_patient
                if is_told:
                    lines.append(text)
            elif is_told:
                lines[-1] += text
            if not left_out:
                kept.append(piece)
        return lines, b"".join(kept)


def messages_of(data: bytes) -> Iterator[tuple[int, bytes, str]]:
    """(offset, bytes, what is wrong: a key of `WRONG`, or "") of each message of a capture, and of what stands between them."""
    if data.startswith(_USUAL_HEADER) and data.count(b"MSH") == data.count(_SEPARATED) == 1 and _FS not in data:
        yield 0, data.rstrip(_BLANK), ""  # one bare message, as most captures are
        return
    starts = sorted(_starts(data))
    if not starts and data.strip(BETWEEN) and not _is_junk(data):
        yield 0, data.strip(_BLANK), "header"  # an envelope without a message in it: nothing is passed over in silence
        return
    for start, end in zip([0, *starts], [*starts, len(data)], strict=True):
        block, _, behind = data[start:end].partition(_FS)
        message = block.lstrip(BETWEEN)
        if message.startswith(b"MSH"):
            cut = _before(data, start) == _VT and len(block) == end - start
            yield start + len(block) - len(message), message.rstrip(_BLANK), "frame" if cut else ""
        elif _is_junk(block):
            yield start, block.strip(_BLANK), "header"
        if _is_junk(behind):
            yield start + len(block) + 1, behind.strip(_BLANK), "header"


WRONG = {"frame": "its frame does not end", "header": "it does not begin with MSH"}


def _starts(data: bytes) -> set[int]:
    """Where messages begin: MSH at the start of a line, or a line that has the usual separators where a header has them."""
    found = {at.start() for at in _HEADER.finditer(data) if _before(data, at.start()) in _LINE_ENDS}
    for at in _USUAL.finditer(data):
        head = re.split(rb"[\r\n\x0b\x1c]", data[max(0, at.start() - 12) : at.start()])[-1].lstrip(BETWEEN)
        if len(head) <= 4:
            found.add(at.start() - len(head))
    return found


def _before(data: bytes, at: int) -> bytes:
    """The byte before a place, blanks and a byte order mark aside; none at the start."""
    return data[max(0, at - 8) : at].rstrip(_INDENT)[-1:]


def _is_junk(data: bytes) -> bool:
    return any(line.strip(BETWEEN) and line.strip(BETWEEN)[:3].decode("latin-1") not in _BATCH for line in data.splitlines())


def begin_of(data: bytes, offset: int) -> int:
    """Where a message that stands there begins with its frame."""
    before = data[max(0, offset - 8) : offset].rstrip(_INDENT)
    return max(0, offset - 8) + len(before) - 1 if before.endswith(_VT) else offset
