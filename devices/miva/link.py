"""The dialogue with a pump: who it is, what of its log is not known yet, and its clock. It sends what reads, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from devices import sequence
from devices.contract import Anchor, Capture, CaptureHead
from devices.dialogue import Ask, Dialogue, Got, Identification, Note, Reply, Step, Summary
from devices.errors import LinkError, PumpError, masked
from devices.miva.frames import CHECKS, FRAME, REPLIES, RING, checksum, clock_of, opened
from devices.miva.records import EMPTY, SIZE, Part, part_of
from devices.miva.sheet import FAMILY

BATCH = 64
"""Records of one capture: about 4 s of the line."""
_TRIES = 4
_TIMEOUT_S = 0.5
_SILENT = 3
"""So many records in a row that cannot be had: the pump is gone."""
_ROUNDS = 4
"""The log may grow while it is read: so often what came meanwhile is read too."""
_READS = re.compile(rb"RI|RC|RN|RE[0-9A-F]{8}")


def _request(command: bytes, check: str) -> bytes:
    """The frame of a command that reads. There is no other: this adapter cannot set a clock."""
    if not _READS.fullmatch(command):
        raise ValueError(f"{command!r} does not read")
    return b"\x02" + command + checksum(command, check) + b"\x03"


def _missing(received: bytes) -> int:
    """A frame is whole with its 03; the shortest that is answered has 14 bytes."""
    return 0 if FRAME.search(received) else max(1, 14 - len(received))


HELLO = Ask(data=_request(b"RE00000000", "sum"), missing=_missing, timeout_s=_TIMEOUT_S, what="Is this a MIVA pump?")
"""Record 0 of the ring: the one request whose checksum is right in both families (docs/pump-formats.md §4.1)."""


def is_hello(answer: bytes) -> bool:
    """Whether a MIVA pump answered HELLO."""
    return bool(_greeted(answer))


def _greeted(answer: bytes) -> list[str]:
    """The checksums by which an answer to HELLO is right."""
    for frame in FRAME.findall(answer):
        said, right = opened(frame, CHECKS)
        if right and (match := REPLIES[b"RE"].fullmatch(said)) and int(match[1], 16) == 0:
            return right
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """RI and RC, read one after the other: first and newest record, unwrapped, and the clock (none: what it told is no date)."""

    tail: int
    head: int
    time: str
    clock: datetime | None
    utc: datetime
    round_trip_ms: int


class _Reader:
    """One download: how this pump is spoken to, and how far it is."""

    def __init__(self, pump_id: str | None) -> None:
        self.named = pump_id
        self.pump_id = pump_id or FAMILY
        self.check = CHECKS[0]
        self.epoch = 0
        self.done = self.total = 0
        self.new_parts = 0
        self.complete = True

    def gone(self) -> LinkError:
        """The pump does not answer any more."""
        return LinkError(
            f"The pump {masked(self.pump_id)} gives no whole answer any more.",
            why="It was undocked, switched off, or the cable is bad.",
            do="Dock it again and run this again; it goes on where it stopped.",
            code="no_answer",
        )

    def ask(self, command: bytes, what: str, tries: int = _TRIES) -> Generator[Step, Reply | None, tuple[re.Match[bytes], Reply] | None]:
        """The reply to a command, asked again where it does not come whole; none after all tries."""
        for left in range(tries - 1, -1, -1):
            reply = yield Ask(
                data=_request(command, self.check), missing=_missing, timeout_s=_TIMEOUT_S, what=what, done=self.done, total=self.total
            )
            assert reply is not None
            for frame in FRAME.findall(reply.data):
                said, right = opened(frame, [self.check])
                if right and (match := REPLIES[command[:2]].fullmatch(said)) and said.startswith(command):
                    return match, reply
            yield Note(f"{what}: {'a garbled answer' if reply.data else 'no answer'}{', asking again' if left else ''}")
        return None

    def greet(self) -> Generator[Step, Reply | None, None]:
        """Finds the checksum, and which pump this is. Raises LinkError; PumpError where it is another one than was named."""
        for _ in range(_TRIES):
            reply = yield HELLO
            assert reply is not None
            if checks := _greeted(reply.data):
                break
            yield Note("The pump does not answer, asking again")
        else:
            raise self.gone()
        for self.check in checks:
            if (told := (yield from self.ask(b"RN", "serial number"))) is not None:
                break
        else:
            raise self.gone()
        if not (serial := told[0][1].decode().strip()):
            raise PumpError(
                "The pump tells no serial number.",
                why="Its answer is blank, so nothing shows whose records these are.",
                do="Have its serial number set, and run this again.",
                code="no_serial",
            )
        self.pump_id = f"{FAMILY}:{serial}"
        if self.named not in (None, self.pump_id):
            raise PumpError(
                f"This is the pump {masked(self.pump_id)}, not {masked(self.named or '')}.",
                why="The pump itself tells its serial number.",
                do="Dock the right pump, or leave the name out: a pump of this family is called by the number that it tells.",
                code="other_pump",
            )

    def look(self, since: int | None) -> Generator[Step, Reply | None, _Look]:
        """Where the log begins and ends, and the clock; unwrapped from the newest record `since`. Raises LinkError."""
        ring = yield from self.ask(b"RI", "size of the log")
        time = yield from self.ask(b"RC", "clock")
        if ring is None or time is None:
            raise self.gone()
        tail, head = int(ring[0][1], 16) % RING, int(ring[0][2], 16) % RING
        length = (head - tail) % RING
        newest = tail + length if since is None else since + (head - since) % RING
        form, clock = clock_of(time[0][1])
        sent, received = time[1].sent, time[1].received
        trip = received - sent
        middle = sent + trip / 2
        return _Look(
            tail=newest - length,
            head=newest,
            time=form,
            clock=clock,
            utc=middle.replace(microsecond=middle.microsecond // 1000 * 1000),
            round_trip_ms=round(trip.total_seconds() * 1000),
        )

    def record(self, number: int) -> Generator[Step, Reply | None, bytes | None]:
        """The bytes of a record; none where it cannot be had."""
        found = yield from self.ask(b"RE%08X" % (number % RING), f"record {number}")
        return bytes.fromhex(found[0][2].decode()) if found else None

    def still(self, last: Part, look: _Look) -> Generator[Step, Reply | None, bool]:
        """Whether the last record that is known is where it was. Bytes that differ are read a second time. Raises LinkError."""
        if look.time != last.time or last.last < look.tail:
            return False
        differs: bytes | None = None
        for _ in range(_TRIES):
            found = yield from self.record(last.last)
            if found is None:
                raise self.gone()
            if found == last.end:
                return True
            if found == differs:
                return False
            differs = found
        raise self.gone()

    def capture(self, first: int, data: bytes, look: _Look, end: bytes) -> Capture:
        """Records from `first` on, with the clock read behind the newest record there is."""
        last = first + len(data) // SIZE - 1
        part = Part(epoch=self.epoch, first=first, last=last, check=self.check, time=look.time, end=end)
        anchor = None
        if look.clock is not None:
            after = sequence.key_of(self.epoch, look.head)
            anchor = Anchor(pump_clock=look.clock, utc=look.utc, round_trip_ms=look.round_trip_ms, after=after)
        return Capture(data=data, family=FAMILY, pump_id=self.pump_id, model=_model(self.check), part=str(part), anchor=anchor)

    def range(self, first: int, last: int, look: _Look) -> Generator[Step, Reply | None, _Look]:
        """Reads records and yields them batch by batch; gives the last look. Raises LinkError, PumpError."""
        number, silent = first, 0
        while number <= last:
            start, data, found = number, b"", None
            while number <= last and len(data) < BATCH * SIZE:
                found = yield from self.record(number)
                number += 1
                self.done += 1
                if found is None:
                    break
                data += found
            silent = 0 if data else silent + 1
            self.complete = self.complete and found is not None
            if data:
                look = yield from self.keep(start, data, look)
            if silent >= _SILENT:
                raise self.gone()
        return look

    def keep(self, start: int, data: bytes, before: _Look) -> Generator[Step, Reply | None, _Look]:
        """Yields a batch, but for what the ring has overwritten by now, and an empty newest record: that one is not written yet."""
        look = yield from self.look(before.head)
        if look.head - before.head > RING // 2:
            raise PumpError(
                f"The log of {masked(self.pump_id)} was reset while it was read.", do="Run this again to read the new one.", code="reset"
            )
        overrun = min(max(0, look.tail - start), len(data) // SIZE)
        if overrun:
            yield Note(f"{overrun} records were overwritten while they were read")
        start, data = start + overrun, data[overrun * SIZE :]
        while start + len(data) // SIZE - 1 == look.head and data.endswith(EMPTY):
            data = data[:-SIZE]
        if data:
            self.new_parts += 1
            yield Got(self.capture(start, data, look, data[-SIZE:]))
        return look


def _model(check: str) -> str:
    return "Nimbus II or CAPS" if check == "sum" else "Nimbus H"


def identify() -> Identification:
    """The dialogue that asks a pump which one it is: `miva:` and the serial number of its RN reply. Raises LinkError, PumpError."""
    reader = _Reader(None)
    yield from reader.greet()
    return reader.pump_id


def download(pump_id: str, known: Iterable[CaptureHead], *, model: str | None = None) -> Dialogue:
    """The dialogue that fetches what is not known yet, oldest first, and the clock at start and end; a `model` changes nothing here.

    The last known record is read again: other bytes mean that the ring overran it, or was reset, and begin a new epoch. Raises
    LinkError where the pump stops answering, PumpError where it is another one or its log was reset meanwhile.
    """
    parts = [part for head in known if head.pump_id == pump_id and (part := part_of(head.part)) is not None]
    reader = _Reader(pump_id)
    yield from reader.greet()
    latest = max((part for part in parts if part.end), key=lambda part: (part.epoch, part.last), default=None)
    look = yield from reader.look(latest.last if latest else None)
    if latest is not None:
        reader.epoch = latest.epoch
        if not (yield from reader.still(latest, look)):
            yield Note("The log does not go on from the last record read: the ring overran it, or was reset")
            reader.epoch += 1
            head, length = look.head % RING, look.head - look.tail
            base = (head - length) % RING
            look = replace(look, tail=base, head=base + length)
    read = [(part.first, part.last) for part in parts if part.epoch == reader.epoch]
    wanted = sequence.without((look.tail, look.head), read)
    for _ in range(_ROUNDS):
        reader.total += sum(last - first + 1 for first, last in wanted)
        seen = look.head
        for first, last in wanted:
            look = yield from reader.range(first, last, look)
        if look.head == seen:
            break
        wanted = [(seen + 1, look.head)]
    if latest is not None and not reader.new_parts and (reader.epoch, look.head) == (latest.epoch, latest.last):
        yield Got(reader.capture(look.head + 1, b"", look, latest.end))
    offset = None
    if look.time == "absolute" and look.clock is not None:
        offset = (look.clock - look.utc.astimezone(UTC).replace(tzinfo=None)).total_seconds()
    return Summary(
        pump_id=pump_id,
        model=_model(reader.check),
        new_parts=reader.new_parts,
        clock_offset_s=offset,
        complete=reader.complete and look.head == seen,
    )
