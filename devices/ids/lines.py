"""A capture as it stands: its lines, what a bridge's messages are as lines, the files they come in, and the numbers that a part names."""

from __future__ import annotations

import re
from binascii import unhexlify
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from devices import sequence
from devices.contract import Anchor, Capture
from devices.errors import InputError
from devices.ids.records import HEAD, STANDARD, VENDOR
from devices.ids.sheet import FAMILY

_SIG = "-0000-1000-8000-00805f9b34fb"
_CHANNELS: Mapping[str, str] = {
    "2b28": "H",
    "00000108-0000-1000-0000-009132591325": "H",
    "iddhistorydata": "H",
    "2b27": "R",
    "2a52": "R",
    "iddrecordaccesscontrolpoint": "R",
    "recordaccesscontrolpoint": "R",
    "2a2b": "T",
    "currenttime": "T",
}
"""Characteristics by UUID and by the names that the bridge gives them: history, RACP, the clock."""
_OF_MEDTRONIC = b"009132591325"


def _channel(characteristic: str) -> str | None:
    name = characteristic.casefold().replace(" ", "")
    return _CHANNELS.get(name[4:8] if name.startswith("0000") and name.endswith(_SIG) else name)


class _Logged(msgspec.Struct, gc=False):
    uuid: str
    hex: str


_logged = msgspec.json.Decoder(_Logged)
_OTHER_CHANNELS = (b"> ", b"< ", b"T ", b"? ")


@dataclass(slots=True)
class Lines:
    """The history notifications of a capture and their lines; and the lines that cannot be read: (values before it, line, bytes)."""

    values: list[bytes] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    broken: list[tuple[int, int, bytes]] = field(default_factory=list)


def read_lines(data: bytes) -> Lines:
    """Line by line; where all are history and can be read, at once."""
    text = data.split(b"\n")
    if data.startswith(b"H ") and data.count(b"\nH ") == len(text) - 2 and not text[-1]:
        with suppress(ValueError):
            return Lines([unhexlify(line[2:]) for line in text[:-1]], list(range(1, len(text))), [])
    found = Lines()
    values, lines = found.values, found.lines
    for number, line in enumerate(text, 1):
        try:
            if line.startswith(b"H "):
                values.append(unhexlify(line[2:].rstrip()))
                lines.append(number)
            elif line.startswith(b"{"):
                logged = _logged.decode(line)
                if _channel(logged.uuid) == "H":
                    values.append(unhexlify(logged.hex))
                    lines.append(number)
            elif line.strip() and not line.startswith(_OTHER_CHANNELS):
                found.broken.append((len(values), number, line))
        except (ValueError, RecursionError, msgspec.MsgspecError):
            found.broken.append((len(values), number, line))
    return found


def values_of(received: bytes, letter: bytes) -> Iterator[bytes]:
    """The values of the whole lines of one channel; a line that is no hex is none."""
    for line in received.split(b"\n")[:-1]:
        if line.startswith(letter + b" "):
            try:
                yield unhexlify(line[2:].strip())
            except ValueError:
                continue


def line_of(letter: bytes, value: bytes) -> bytes:
    """The line of a value on a channel."""
    return letter + b" " + value.hex().encode() + b"\n"


_MAC = r"(?P<device>(?:.*/)?(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2})"
_TOPIC = re.compile(_MAC + r"/[^/]+/(?P<characteristic>[^/]+)")

BRIDGE_TOPICS: Mapping[str, str] = {
    ">": "InsulinDelivery/IDDRecordAccessControlPoint/Set",
    "?": "CurrentTimeService/CurrentTime/Get",
}
"""Where a bridge takes what is asked, behind the device's own topic. What it has no name for is called by its UUID: pass such topics."""


def bridge_line(topic: str, payload: bytes) -> tuple[str, bytes] | None:
    """A message of a BLE-to-MQTT bridge (docs/pump-formats.md §5.3) as (the device's topic, up to its MAC; the line that it is).

    None where it is none of a characteristic that matters here. A payload that is not comma-separated decimal bytes is kept as it is,
    for `decode` to show.
    """
    found = _TOPIC.fullmatch(topic)
    channel = _channel(found["characteristic"]) if found else None
    if found is None or channel is None:
        return None
    letter = b"<" if channel == "R" else channel.encode()
    try:
        value = bytes(int(one) for one in payload.decode("ascii").split(","))
    except ValueError:
        return found["device"], letter + b" " + payload.replace(b"\n", b" ") + b"\n"
    return found["device"], letter + b" " + value.hex().encode() + b"\n"


def bridge_request(device: str, line: bytes, topics: Mapping[str, str] = BRIDGE_TOPICS) -> tuple[str, bytes]:
    """What `Ask.data` of the dialogue is to a bridge: topic and payload. Raises InputError for a line that asks nothing."""
    letter, _, value = line.decode("ascii", "replace").partition(" ")
    if letter not in topics:
        raise InputError(f"{line!r} is no request.", code="request")
    asked = bytes.fromhex(value) if letter == ">" else b""
    return f"{device}/{topics[letter]}", ",".join(map(str, asked)).encode()


def recognise(name: str, data: bytes) -> bool:
    """Whether most of the first lines can be read, and the history among them are records of known types."""
    head = data[:20_000]
    found = read_lines(head[: head.rfind(b"\n") + 1] if len(head) < len(data) else head)
    if not found.values or len(found.broken) * 4 > len(found.values):
        return False
    known = [v for v in found.values if len(v) >= HEAD and ((code := int.from_bytes(v[:2], "little")) in STANDARD or code in VENDOR)]
    return len(known) * 10 >= len(found.values) * 9


def read_files(
    files: Sequence[tuple[str, bytes]], *, pump_id: str | None = None, model: str | None = None, anchor: Anchor | None = None
) -> list[Capture]:
    """One capture a file; a log with Medtronic's characteristics is of a "780g" unless told otherwise. Raises InputError without a pump."""
    if pump_id is None:
        raise InputError("History records do not say which pump they are of.", do=f"Name it: --pump {FAMILY}:SERIAL.", code="no_pump")
    return [
        Capture(
            data=data,
            family=FAMILY,
            pump_id=pump_id,
            model=model or ("780g" if _OF_MEDTRONIC in data else None),
            anchor=anchor,
        )
        for _, data in files
    ]


# --- parts ---------------------------------------------------------------------------------------------------------------------


_RANGES = re.compile(r"\d+-\d+(,\d+-\d+)*")


def numbers_of(part: str | None) -> list[sequence.Range]:
    """The ranges that a capture's part names; none where it is something else."""
    if part is None or not _RANGES.fullmatch(part):
        return []
    return [(int(low), int(high)) for low, _, high in (one.partition("-") for one in part.split(","))]


def part_of(ranges: Iterable[sequence.Range]) -> str | None:
    """The part of a capture that holds these numbers; none where it holds none."""
    return ",".join(f"{low}-{high}" for low, high in ranges) or None
