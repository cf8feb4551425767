"""Captures cut into records (docs/pump-formats.md §7): bare ones and stream messages, in bytes, hex or base64 text."""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

SIZE = 26


@dataclass(slots=True)
class Cut:
    """A capture cut into records, in its own order, and what lies between them.

    `records` holds them one after another; by record where it stood, the byte of its text or bytes at which a cut before it would be
    (-1: within a message, none), and whether a CRC proves it. `broken`: (number of records before it, where it stood, bytes, code,
    message). `falling`: whether sequence numbers fall where no two records tell. `lines`: whether where it stood is a line's number.
    """

    records: bytearray = field(default_factory=bytearray)
    offsets: list[int] = field(default_factory=list)
    borders: list[int] = field(default_factory=list)
    proved: list[bool] = field(default_factory=list)
    broken: list[tuple[int, int, bytes, str, str]] = field(default_factory=list)
    falling: bool = False
    lines: bool = False

    def keep(self, records: bytes, offsets: Sequence[int], borders: Iterable[int], *, proved: bool) -> None:
        """Adds records that lie one after another."""
        self.records += records
        self.offsets.extend(offsets)
        self.borders.extend(borders)
        self.proved.extend(itertools.repeat(proved, len(offsets)))

    def fail(self, offset: int, raw: bytes, code: str, why: str) -> None:
        """Adds bytes that give no record, behind the records so far."""
        self.broken.append((len(self.offsets), offset, raw, code, why))


def cut_of(data: bytes) -> Cut:
    """The records of a capture in any of its forms."""
    cut = Cut()
    if is_text(data):
        _cut_text(cut, data)
    else:
        _cut_bytes(cut, data, None)
    return cut


WHITE = b" \t\r\n"
_PRINTABLE = bytes([*range(0x21, 0x7F), *WHITE])


def is_text(data: bytes) -> bool:
    """Text, even if a few of its characters are damaged; records hold too many zeros for that."""
    return len(data.translate(None, _PRINTABLE)) * 20 <= len(data)


def _cut_text(cut: Cut, data: bytes) -> None:
    """Lines of which most hold whole records or messages are read each for itself, others as one text that was wrapped."""
    lines = [(number, line.strip()) for number, line in enumerate(data.split(b"\n"), 1)]
    read = [(number, line, from_text(line)) for number, line in lines if line]
    whole = sum(1 for _, _, found in read if found is not None and _is_whole(found))
    if len(read) > 1 and whole * 2 < len(read):
        joined = from_text(b"".join(line for _, line, _ in read))
        if joined is not None:
            _cut_bytes(cut, joined, None)
            return
    cut.lines = True
    for number, line, found in read:
        if found is None:
            cut.fail(number, line, "line", "the line is neither hex nor base64")
        else:
            _cut_bytes(cut, found, number)


def from_text(text: bytes) -> bytes | None:
    """The bytes that hex or base64 text stands for; whichever gives whole records, if both can be."""
    readings = []
    for reading in (_from_hex, _from_base64):
        if (found := reading(text)) is not None:
            if _is_whole(found):
                return found
            readings.append(found)
    return readings[0] if readings else None


def _from_hex(text: bytes) -> bytes | None:
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError:
        return None


def _from_base64(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text.translate(bytes.maketrans(b"-_", b"+/"), b" \t\r"), validate=True)
    except binascii.Error:
        return None


def _is_whole(data: bytes) -> bool:
    return len(data) >= SIZE and (len(data) % SIZE == 0 or next(_messages(data), None) is not None)


_OPCODE = b"\x81"
_HEAD, _CRC = 5, 2


def _message_end(data: bytes, at: int) -> int | None:
    """Where the message that begins here would end, by its own lengths."""
    if at + _HEAD > len(data) or data[at + 2] != 2 + SIZE * data[at + 3]:
        return None
    return at + _HEAD + SIZE * data[at + 3] + _CRC


def _messages(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the messages whose CRC holds begin and end. One may follow broken bytes."""
    at = data.find(_OPCODE)
    while at >= 0:
        end = _message_end(data, at)
        following = at + 1
        if end is not None and end <= len(data) and _crc_holds(data[at:end]):
            yield at, end
            following = end
        at = data.find(_OPCODE, following)


def _crc_holds(message: bytes) -> bool:
    return binascii.crc_hqx(message[:-_CRC], 0xFFFF) == int.from_bytes(message[-_CRC:], "little")


def _cut_bytes(cut: Cut, data: bytes, line: int | None) -> None:
    """Messages where there is one, else bare records. They stand at their byte, or in their line of a text."""
    done = 0
    for start, end in _messages(data):
        packet = _packet_start(data, start, done)
        _cut_between(cut, data, done, packet, line)
        first = start + _HEAD
        records = data[first : end - _CRC]
        count = len(records) // SIZE
        stood = range(first, end - _CRC, SIZE) if line is None else [line] * count
        cut.keep(records, stood, [packet, *itertools.repeat(-1, count - 1)][:count], proved=True)
        cut.falling, done = True, end
    if done or _looks_like_a_message(data):
        _cut_between(cut, data, done, len(data), line)
        return
    size = len(data) - len(data) % SIZE
    stood = range(0, size, SIZE)
    cut.keep(data[:size], stood if line is None else [line] * len(stood), stood, proved=False)
    if size < len(data):
        cut.fail(size if line is None else line, data[size:], "truncated", f"{len(data) - size} bytes are no whole record")


def _packet_start(data: bytes, start: int, done: int) -> int:
    """A message may stand behind the two bytes of its Bluetooth packet: none remains, and its transaction."""
    return start - 2 if start - 2 >= done and data[start - 2] == 0 and data[start - 1] == data[start + 1] else start


def _cut_between(cut: Cut, data: bytes, start: int, end: int, line: int | None) -> None:
    if start < end:
        head = next((at for at in (start, start + 2) if data[at : at + 1] == _OPCODE and _message_end(data, at) is not None), None)
        code, why = ("message", "the bytes are no stream message") if head is None else ("crc", "the CRC of a stream message does not hold")
        cut.fail(start if line is None else line, data[start:end], code, why)


def _looks_like_a_message(data: bytes) -> bool:
    """Whether bytes without a whole message are a damaged one: two of its opcode, its lengths, and its size hold.

    Else the damage would make bare records of it, out of step.
    """
    for at in (0, 2):
        if at + _HEAD > len(data):
            break
        opcode = data[at : at + 1] == _OPCODE
        lengths = _message_end(data, at) is not None and data[at + 3] > 0
        size = len(data) - at in (_HEAD + SIZE * data[at + 3] + _CRC, _HEAD + data[at + 2])
        if opcode + lengths + (size and len(data) % SIZE != 0) >= 2:
            return True
    return False
