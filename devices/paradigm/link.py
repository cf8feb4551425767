"""The serial dialogue with a Paradigm through a CareLink USB stick: frames, checksums, `download` (docs/pump-formats.md §3.1).

The stick is polled: a request to the pump is acknowledged, then the stick tells how many bytes of the answer wait in its radio's
buffer, and these are fetched block by block. All that is ever asked stands in two tables; nothing that would change the pump can be built.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from devices.contract import Anchor, Capture, CaptureHead
from devices.dialogue import Ask, Dialogue, Got, Note, Reply, Step, Summary
from devices.errors import InputError, LinkError, PumpError, masked
from devices.paradigm.pages import PAGE_SIZE, Part, page_key, part_of, why_no_page
from devices.paradigm.records import layout_of
from devices.paradigm.sheet import FAMILY

_PRODUCT, _STATS, _SIGNAL, _STATUS = "product info", "interface statistics", "signal strength", "link status"
_STICK_READS: Mapping[str, bytes] = {_PRODUCT: b"\x04\0\0", _STATS: b"\x05\0\0", _SIGNAL: b"\x06\0\0", _STATUS: b"\x03\0\0"}
"""All that the stick is asked, `read radio` apart."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A request that only reads: its parameters (None: a page number), the bytes that go with it, how often and how long it is tried."""

    name: str
    parameters: bytes | None = b""
    button: int = 0
    retries: int = 2
    pages: int = 1
    tries: int = 3
    polls: int = 25


_POWER, _MODEL, _CLOCK_READ, _BATTERY, _COUNT, _PAGE = 0x5D, 0x8D, 0x70, 0x72, 0x9D, 0x80
_PUMP_READS: Mapping[int, _Read] = {
    _POWER: _Read("radio on for 10 minutes", b"\x01\x0a", button=0x55, retries=0, pages=0, tries=1, polls=120),
    _MODEL: _Read("model"),
    _CLOCK_READ: _Read("clock"),
    _BATTERY: _Read("battery", tries=2),
    _COUNT: _Read("number of pages"),
    _PAGE: _Read("history page", None, pages=2, tries=5),
}
"""The whole of what a pump is ever asked. Nothing else can be built: no setting, no bolus, no clock."""

_LAST_PAGE = 36
_MAX_BLOCKS = 40
_PAUSE_S = 0.1
_STICK_S = 1.5
_STICK_TRIES = 3
_MAX_RETRIES = 80
_MAX_TIME = timedelta(hours=1)
_WEAK = 50
_STICK_BLOCK = 64

_CRC8 = [0] * 256
for _value in range(256):
    _crc = _value
    for _ in range(8):
        _crc = (_crc << 1 ^ 0x9B) & 0xFF if _crc & 0x80 else _crc << 1
    _CRC8[_value] = _crc


def crc8(data: bytes) -> int:
    """CRC-8 of the stick: polynomial 0x9B, from 0, highest bit first (§3.1)."""
    crc = 0
    for byte in data:
        crc = _CRC8[crc ^ byte]
    return crc


def request(serial: str, code: int, page: int = 0) -> bytes:
    """The frame that asks the pump with this serial number. Raises InputError for anything that is not on the list of reading requests."""
    read = _PUMP_READS.get(code)
    if read is None or not re.fullmatch(r"\d{6}", serial) or not 0 <= page <= _LAST_PAGE:
        raise InputError(f"Request {code:02x} is not one that only reads.", do="Pumps are read here, never programmed.", code="not_a_read")
    parameters = bytes([page]) if read.parameters is None else read.parameters
    head = b"\x01\0\xa7\x01" + bytes.fromhex(serial)
    head += bytes([0x80 | len(parameters) >> 8, len(parameters) & 0xFF, read.button, read.retries, read.pages, 0, code])
    return head + bytes([crc8(head)]) + parameters + bytes([crc8(parameters)])


def _fetch(waiting: int) -> bytes:
    """The request that reads so many bytes from the radio's buffer."""
    head = b"\x0c\0" + waiting.to_bytes(2)
    return head + bytes([crc8(head)])


def _missing(size: int) -> Callable[[bytes], int]:
    """How much of a reply is still to come; a refusal is a block of its own, whatever was asked."""
    return lambda got: (_STICK_BLOCK if got[:2] == b"\x01\x66" else size) - len(got)


HELLO = Ask(data=_STICK_READS[_PRODUCT], missing=_missing(_STICK_BLOCK), timeout_s=_STICK_S, what="looking for a CareLink stick")


def is_hello(reply: bytes) -> bool:
    """Whether an answer to HELLO is that of a CareLink stick."""
    return len(reply) == _STICK_BLOCK and reply[:2] == b"\x01\x55" and reply[9:16] == b"ComLink"


def _block(reply: bytes, waiting: int, serial: str) -> tuple[bytes, bool, str]:
    """(data, whether it is the last, why it cannot be used) of a `read radio` reply."""
    if len(reply) != waiting or waiting < 14 or reply[0] != 2:
        return b"", False, "a block came cut short"
    if reply[12] != crc8(reply[:12]) or reply[-1] != crc8(reply[13:-1]) or len(reply) != 14 + ((reply[5] & 0x7F) << 8 | reply[6]):
        return b"", False, "a block came damaged"
    if reply[9:12].hex() != serial:
        return b"", False, "another pump answered"
    return reply[13:-1], bool(reply[5] & 0x80), ""


_T = TypeVar("_T")
_Talk = Generator[Step, Reply | None, _T]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a pump request gave: data, why it is not what was asked ("": it is), and when it was sent and received."""

    data: bytes
    why: str
    sent: datetime
    received: datetime


class _Stick:
    """Talks to one pump through the stick; counts what had to be asked again."""

    def __init__(self, pump_id: str) -> None:
        self.pump_id = pump_id
        self.serial = pump_id.partition(":")[2]
        self.done, self.total = 0, 0
        self.retries = 0
        self.heard = False
        self.unclean = True
        self.since: datetime | None = None

    def ask(self, data: bytes, size: int, what: str, timeout_s: float = _STICK_S) -> _Talk[Reply]:
        reply = yield Ask(data=data, missing=_missing(size), timeout_s=timeout_s, what=what, done=self.done, total=self.total)
        assert reply is not None
        self.since = self.since or reply.sent
        if reply.received - self.since > _MAX_TIME:
            raise LinkError(
                f"Reading {masked(self.pump_id)} takes too long.",
                why="So much had to be asked again that an hour went by.",
                do="Bring pump and stick closer together and run this again; what came so far is kept.",
                code="too_slow",
            )
        return reply

    def again(self, what: str, why: str) -> _Talk[None]:
        """Notes that something is asked again. Raises LinkError when that was needed too often."""
        self.retries += 1
        if self.retries > _MAX_RETRIES:
            raise LinkError(
                f"The radio link to {masked(self.pump_id)} is too bad.",
                why=f"{self.retries} requests failed, the last ({what}) because {why}.",
                do="Bring pump and stick closer together, away from other radios, and run this again; what came so far is kept.",
                code="too_noisy",
            )
        yield Note(f"{what}: {why}, asked again")

    def block(self, data: bytes, what: str) -> _Talk[Reply | None]:
        """A 64-byte reply of the stick to what it acknowledged, None where it did not. Silence is asked again, and so is a NAK."""
        for left in reversed(range(_STICK_TRIES)):
            reply = yield from self.ask(data, _STICK_BLOCK, what)
            if len(reply.data) == _STICK_BLOCK and reply.data[:2] == b"\x01\x55":
                return reply
            if left:
                refused = len(reply.data) > 2 and reply.data[1] == 0x66
                why = f"the stick refused it (error {reply.data[2]})" if refused else "the stick did not answer"
                yield from self.again(what, why)
        return None

    def waiting(self, polls: int, what: str) -> _Talk[int]:
        """How many bytes wait in the radio's buffer, 0 if none came while it was asked `polls` times."""
        for left in reversed(range(polls)):
            reply = yield from self.ask(_STICK_READS[_STATUS], _STICK_BLOCK, what)
            status = reply.data
            if len(status) == _STICK_BLOCK and status[:3] == b"\x01\x55\0" and status[5] & 1 and (size := int.from_bytes(status[6:8])):
                return size
            if left:
                yield from self.ask(b"", 1, what, _PAUSE_S)
        return 0

    def collect(self, polls: int, what: str) -> _Talk[tuple[bytes, str, datetime | None]]:
        """The data of one answer, block by block; why it is not whole; when its last block came."""
        data, came = b"", None
        for _ in range(_MAX_BLOCKS):
            size = yield from self.waiting(polls, what)
            if not size:
                return data, "the rest did not come" if data else "nothing came", came
            reply = yield from self.ask(_fetch(size), size, what, _STICK_S + size / 400)
            part, last, why = _block(reply.data, size, self.serial)
            data, came = data + part, reply.received
            if why or last:
                return data, why, came
        return data, "it did not end", came

    def drain(self, what: str) -> _Talk[None]:
        """Takes from the stick what is left of an answer that failed, so that it is not taken for the next."""
        for _ in range(_MAX_BLOCKS):
            size = yield from self.waiting(1, what)
            if not size:
                break
            yield from self.ask(_fetch(size), size, what, _STICK_S + size / 400)
        self.unclean = False

    def pump(self, code: int, page: int = 0, check: Callable[[bytes], str] = lambda _: "") -> _Talk[_Answer | None]:
        """What the pump answers, None if it does not at all. An answer that stays bad is given as it last came, with why."""
        read = _PUMP_READS[code]
        what = read.name if read.parameters is not None else f"{read.name} {page}"
        best: _Answer | None = None
        for left in reversed(range(read.tries)):
            if self.unclean:
                yield from self.drain(what)
            sent = yield from self.block(request(self.serial, code, page), what)
            data, why, came = b"", "the stick did not take it", None
            if sent:
                data, why, came = yield from self.collect(read.polls, what)
                why = why or check(data)
            if sent and came and data:
                best = _Answer(data, why, sent.sent, came)
                self.heard = True
            if not why:
                return best
            self.unclean = True
            if left:
                yield from self.again(what, why)
        return best


# ---------------------------------------------------------------------------------------------------------------------
# download


class _Known:
    """What earlier downloads brought: pages behind which all is known, and pages of which a dump tells how far it got."""

    def __init__(self, pump_id: str, heads: Iterable[CaptureHead]) -> None:
        self.hashes: set[str] = set()
        self.complete: set[str] = set()
        self._dumps: dict[str, dict[int, str]] = defaultdict(dict)
        ended: set[str] = set()
        bad: dict[str, set[int]] = defaultdict(set)
        for head in sorted((one for one in heads if one.pump_id == pump_id and one.family == FAMILY), key=lambda one: one.sha256):
            self.hashes.add(head.data_sha256)
            told = part_of(head.part)
            if told is None:
                continue
            if told.number is None:
                ended.add(told.dump)
            elif told.bad or head.size != PAGE_SIZE:
                bad[told.dump].add(told.number)
            else:
                self._dumps[told.dump][told.number] = head.data_sha256
        self._at: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for token, pages_of in self._dumps.items():
            for number, sha in pages_of.items():
                self._at[sha].append((token, number))
                if token in ended and self._run_end(token, number) == max({*pages_of, *bad[token]}):
                    self.complete.add(sha)

    def _run_end(self, token: str, number: int) -> int:
        while number + 1 in self._dumps[token]:
            number += 1
        return number

    def ahead(self, sha: str) -> tuple[int, str] | None:
        """How many pages further an earlier dump got without a break from this page, and the last page it got there."""
        found = [
            (end - number, self._dumps[token][end]) for token, number in self._at[sha] if (end := self._run_end(token, number)) > number + 1
        ]
        return max(found, default=None)


@dataclass(frozen=True, slots=True)
class Given:
    """What is known beforehand of a dialogue that is replayed: it tells the time of nobody."""

    model: str | None
    token: str
    anchor: Anchor | None


def download(pump_id: str, known: Iterable[CaptureHead], *, model: str | None = None) -> Dialogue:
    """Reads what is not known yet, newest page first, and ends with the clock (docs/pump-formats.md §3.1); it tells its model by itself.

    Nothing is ever set.

    Each page comes with the anchor of the start; the empty capture `end;dump=TOKEN` with that of the end says that nothing older is
    missing. Stops at a page that is known and behind which all is known; goes on where a broken download stopped. A page that
    stays bad is given as it came. Raises InputError (serial), LinkError (no_stick, no_pump, weak_signal, lost_pump, too_noisy,
    too_slow), PumpError (wrong_model, no_clock).
    """
    if not re.fullmatch(r"paradigm:\d{6}", pump_id):
        raise InputError("A Paradigm is called by the six digits on its back.", do="Name it as paradigm:123456.", code="bad_pump")
    return _download(pump_id, _Known(pump_id, known), None)


def replay(pump_id: str, given: Given) -> Dialogue:
    """The dialogue that reads a recording: as `download`, but it asks for every page and for no clock."""
    return _download(pump_id, _Known("", ()), given)


def _download(pump_id: str, known: _Known, given: Given | None) -> Dialogue:
    stick = _Stick(pump_id)
    yield from _greet(stick)
    model = yield from _model(stick, given)
    clock: tuple[Anchor, float] | None = None
    if given is None:
        clock = yield from _read_clock(stick)
        if clock is None:
            raise PumpError(
                f"{masked(pump_id)} does not tell its clock.",
                why="Without it nothing it recorded has a time.",
                do="Run this again, closer to the pump.",
                code="no_clock",
            )
        battery = yield from _battery(stick)
        anchor: Anchor | None = clock[0]
        token = hashlib.sha256(f"{pump_id}\n{clock[0]}".encode()).hexdigest()[:16]
    else:
        battery, anchor, token = None, given.anchor, given.token
    new, whole = yield from _pages(stick, known, Capture(data=b"", family=FAMILY, pump_id=pump_id, model=model, anchor=anchor), token)
    ended = (yield from _read_clock(stick)) if given is None else None
    if ended:
        yield Got(Capture(data=b"", family=FAMILY, pump_id=pump_id, model=model, part=str(Part(token)), anchor=ended[0]))
    return Summary(
        pump_id=pump_id,
        model=model,
        new_parts=new,
        clock_offset_s=clock[1] if clock else None,
        battery=battery,
        complete=whole and (ended is not None or given is not None),
    )


def _greet(stick: _Stick) -> _Talk[None]:
    reply = yield from stick.block(_STICK_READS[_PRODUCT], HELLO.what)
    if reply is None or not is_hello(reply.data):
        raise LinkError(
            "No CareLink stick answers.",
            why="Nothing is plugged in there, or another device is.",
            do="Plug the stick in, wait until its light is on, and run this again.",
            code="no_stick",
        )
    yield from stick.block(_STICK_READS[_STATS], _STATS)
    yield from stick.pump(_POWER)


def _model(stick: _Stick, given: Given | None) -> _Talk[str]:
    answer = yield from stick.pump(_MODEL, check=lambda data: "" if data and len(data) > data[0] else "the answer is too short")
    if answer is None or answer.why:
        if given and given.model:
            return given.model
        if given:
            raise no_model()
        raise (yield from _unheard(stick))
    text = answer.data[1 : 1 + answer.data[0]].decode("ascii", "replace").strip("\0 ")
    if layout_of(text) is None:
        raise PumpError(
            f"{masked(stick.pump_id)} says it is a model {text!r}.",
            why="That is no Paradigm whose pages are known here.",
            do="Check that the serial number is that of the pump at hand.",
            code="wrong_model",
        )
    return text


def _unheard(stick: _Stick) -> _Talk[LinkError]:
    """What to say when the pump does not answer: a weak signal, or none."""
    signal = yield from stick.block(_STICK_READS[_SIGNAL], _SIGNAL)
    if stick.heard and signal and signal.data[3] < _WEAK:
        return LinkError(
            f"The signal of {masked(stick.pump_id)} is too weak: {signal.data[3]} of 255.",
            why=f"About {_WEAK} is needed.",
            do="Put the pump within a hand's breadth of the stick and run this again.",
            code="weak_signal",
        )
    return LinkError(
        f"The stick hears nothing of {masked(stick.pump_id)}.",
        why="The pump is out of reach, its battery is empty, or this is not its serial number.",
        do="Put the pump within a hand's breadth of the stick, check the number on its back, and run this again.",
        code="no_pump",
    )


def _read_clock(stick: _Stick) -> _Talk[tuple[Anchor, float] | None]:
    """The pump's clock and the host's, read in the same breath; and the pump's minus the host's in seconds."""
    answer = yield from stick.pump(_CLOCK_READ, check=lambda data: "" if _clock_of(data) else "that is no time")
    if answer is None or answer.why or not (clock := _clock_of(answer.data)):
        return None
    trip = answer.received - answer.sent
    utc = (answer.sent + trip / 2).astimezone(UTC)
    utc = utc.replace(microsecond=utc.microsecond // 1000 * 1000)
    anchor = Anchor(pump_clock=clock, utc=utc, round_trip_ms=round(trip.total_seconds() * 1000))
    return anchor, (clock - utc.replace(tzinfo=None)).total_seconds()


def _clock_of(data: bytes) -> datetime | None:
    if len(data) < 7:
        return None
    try:
        return datetime(data[3] << 8 | data[4], data[5], data[6], data[0], data[1], data[2])  # noqa: DTZ001
    except ValueError:
        return None


def _battery(stick: _Stick) -> _Talk[str | None]:
    """Its voltage, in 1/100 V behind a status byte that is 0 unless the battery is low."""
    answer = yield from stick.pump(_BATTERY)
    if answer is None or answer.why or len(answer.data) < 3:
        return None
    return f"{(answer.data[1] << 8 | answer.data[2]) / 100:.2f} V" + (" (low)" if answer.data[0] else "")


def _pages(stick: _Stick, known: _Known, blank: Capture, token: str) -> _Talk[tuple[int, bool]]:
    """Gives the pages, newest first: how many were new, and whether none stayed bad.

    A page that comes twice has moved up by one, for another was begun meanwhile; or it is an old answer, so it is asked again.
    """
    answer = yield from stick.pump(_COUNT, check=lambda data: "" if len(data) >= 4 else "the answer is too short")
    count = min(int.from_bytes(answer.data[:4]), _LAST_PAGE) if answer and not answer.why else _LAST_PAGE
    new, whole, number = 0, True, 0
    before, start_before = b"", ""
    jump: tuple[int, int, str] | None = None
    may_jump = True
    while number <= count:
        stick.done, stick.total = number, count + 1
        page = yield from stick.pump(_PAGE, number, check=_page_answer)
        if page and page.data == before and number:
            stick.unclean = True
            yield Note(f"history page {number}: the same as the page before it, asked again")
            page = yield from stick.pump(_PAGE, number, check=_page_answer)
        if page is None:
            raise LinkError(
                f"{masked(stick.pump_id)} went silent at history page {number}.",
                why="It is out of reach, or its radio time is over.",
                do="Bring it closer and run this again; it goes on where it stopped.",
                code="lost_pump",
            )
        if len(page.data) <= 2 and not page.why:
            break
        sha = hashlib.sha256(page.data).hexdigest()
        if jump and sha != jump[2]:
            yield Note(f"history page {number}: the pages have moved, reading them one by one")
            number, jump, may_jump = jump[1], None, False
            continue
        jump = None
        part = str(Part(token, number, bool(page.why)))
        yield Got(replace(blank, data=page.data, part=part))
        new += sha not in known.hashes
        if page.why:
            whole = False
            yield Note(f"history page {number}: {page.why}; kept as it came")
        elif start := page_key(page.data, blank.model):
            if sha in known.complete:
                break
            count = min(count + (start == start_before), _LAST_PAGE)
            start_before = start
            if may_jump and (ahead := known.ahead(sha)) and number + ahead[0] <= count:
                jump = (number + ahead[0], number + 1, ahead[1])
        before = page.data
        number = jump[0] if jump else number + 1
    stick.done = stick.total = max(stick.total, 1)
    return new, whole


def _page_answer(data: bytes) -> str:
    """Why an answer is neither a page nor the byte or two that a pump gives for a page that it does not have."""
    return "" if 1 <= len(data) <= 2 else why_no_page(data)


def no_model() -> InputError:
    """What is raised where neither pump nor person tells the model."""
    return InputError(
        "The model of this Paradigm is not told.",
        why="It decides how long a record is: with a wrong one the pages read as something else.",
        do="Say it with --model, as it stands on the pump's back (522, 723).",
        code="model",
    )
