"""Frames of the serial line (docs/pump-formats.md §4.1), and the files in which they were recorded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np

from devices import sequence
from devices.contract import Anchor, Capture
from devices.errors import InputError
from devices.miva.records import SIZE, Part
from devices.miva.sheet import FAMILY

RING = 43_264
"""Records in a full ring: 169 flash pages of 4,096 bytes."""
COUNTER_ZERO = datetime(1970, 1, 1)  # noqa: DTZ001
"""What `pump_time` shows for counter 0 of a relative stamp: a counter is no date, and no order is in force then."""


CHECKS = ("sum", "xor")
FRAME = re.compile(rb"\x02([^\x02\x03]*)\x03")


def checksum(command: bytes, check: str) -> bytes:
    """The two hex digits of a command: of the sum of its bytes, or of their XOR."""
    value = sum(command) & 0xFF if check == "sum" else int(np.bitwise_xor.reduce(np.frombuffer(command, np.uint8), initial=0))
    return b"%02X" % value


def opened(frame: bytes, checks: Sequence[str]) -> tuple[bytes, list[str]]:
    """What a frame's inside says, in upper case, and by which of these checksums it is right."""
    said, told = frame[:-2], frame[-2:].upper()
    return said.upper(), [check for check in checks if checksum(said, check) == told]


_HEX = rb"[0-9A-F]"
REPLIES: Mapping[bytes, re.Pattern[bytes]] = {
    b"RI": re.compile(rb"RI(%b{8})(%b{8})" % (_HEX, _HEX)),
    b"RE": re.compile(rb"RE(%b{8})(%b{32})" % (_HEX, _HEX)),
    b"RC": re.compile(rb"RC(%b{12}|%b{8})" % (_HEX, _HEX)),
    b"RN": re.compile(rb"RN([0-9A-Z ]{8})"),
}


def clock_of(digits: bytes) -> tuple[str, datetime | None]:
    """The form of the stamps and what the clock shows, of an RC reply; no time where it is no date."""
    if len(digits) == 8:
        return "relative", COUNTER_ZERO + timedelta(seconds=int(digits[1:], 16))
    day, month, year, hour, minute, second = bytes.fromhex(digits.decode())
    try:
        return "absolute", datetime(2000 + year, month, day, hour, minute, second)  # noqa: DTZ001
    except ValueError:
        return "absolute", None


def recognise(name: str, data: bytes) -> bool:
    """Whether a file holds the bytes of a serial line over which a MIVA pump sent records."""
    return any(REPLIES[b"RE"].fullmatch(opened(frame, CHECKS)[0]) for frame in FRAME.findall(data))


def read_files(
    files: Sequence[tuple[str, bytes]], *, pump_id: str | None = None, model: str | None = None, anchor: Anchor | None = None
) -> list[Capture]:
    """The captures in recorded serial dialogues: one for each run of records, in order; frames with a wrong checksum are left out.

    The pump is that of the RN reply, the numbers are unwrapped by the RI reply before them. Raises InputError where neither file nor
    caller names the pump, where they name different ones, and where no RC or RI reply says how stamps and numbers are to be read.
    """
    frames = [opened(frame, CHECKS) for _, data in files for frame in FRAME.findall(data)]
    check = max(CHECKS, key=lambda one: sum(one in right for _, right in frames))
    times, serials, records = set(), set(), {}
    ring: tuple[int, int] | None = None
    newest: int | None = None
    for said, right in frames:
        if check not in right or (reply := REPLIES.get(said[:2])) is None or (match := reply.fullmatch(said)) is None:
            continue
        match said[:2]:
            case b"RC":
                times.add(clock_of(match[1])[0])
            case b"RN":
                serials.add(match[1].decode().strip())
            case b"RI":
                ring = int(match[1], 16) % RING, int(match[2], 16) % RING
                newest = ring[0] + (ring[1] - ring[0]) % RING if newest is None else newest + (ring[1] - newest) % RING
            case b"RE" if newest is not None:
                records[newest - (newest - int(match[1], 16)) % RING] = bytes.fromhex(match[2].decode())
    if not records or len(times) != 1:
        raise InputError(
            "These files are no whole dialogue with a MIVA pump.",
            why="Records need an RI reply before them, and RC replies of one form to say what their stamps are.",
            do="Record the serial line from the start of a download.",
            code="no_dialogue",
        )
    told = {f"{FAMILY}:{serial}" for serial in serials} | ({pump_id} if pump_id else set())
    if len(told) != 1:
        raise InputError(
            "These files name no pump." if not told else "These files are of another pump than was said, or of several.",
            do="Say which pump they are of with --pump miva:SERIAL." if not told else "Load the files of each pump by themselves.",
            code="which_pump",
        )
    (pump,), (time,) = told, times
    captures = []
    for first, last in sequence.runs_of(records):
        data = b"".join(records[number] for number in range(first, last + 1))
        part = Part(epoch=0, first=first, last=last, check=check, time=time, end=data[-SIZE:])
        placed = anchor and replace(anchor, after=anchor.after or sequence.key_of(0, max(records)))
        captures.append(Capture(data=data, family=FAMILY, pump_id=pump, model=model, part=str(part), anchor=placed))
    return captures
