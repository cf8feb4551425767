"""The reading dialogue over RACP (docs/pump-formats.md §5.1), in lines: what of the history is not known yet, and the clock."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from devices import sequence
from devices.contract import Anchor, Capture, CaptureHead
from devices.dialogue import Ask, Dialogue, Got, Note, Reply, Step, Summary
from devices.errors import InputError, LinkError, PumpError
from devices.ids.columns import has_wide_amounts
from devices.ids.lines import line_of, numbers_of, part_of, values_of
from devices.ids.records import CRC, HEAD, LOST, VENDOR, maker_of, model_of, profile_of
from devices.ids.sheet import FAMILY
from devices.ids.values import crc16, times_of

REPORT, COUNT, ABORT = 0x33, 0x5A, 0x55
"""The requests that there are: report records, report their number, abort. None of them changes a pump."""
_NULL, _ALL, _RANGE, _FIRST, _LAST = 0x0F, 0x33, 0x5A, 0x66, 0x69
_BY_NUMBER = 0x0F
_RESPONSE, _COUNTED = 0x0F, 0x66
_SUCCESS, _NO_RECORDS, _NOT_COMPLETED = 0xF0, 0x06, 0x08
_REFUSALS = {
    0x02: "it does not know the request",
    0x03: "the operator is invalid",
    0x04: "it does not know the operator",
    0x05: "the operand is invalid",
    0x09: "it does not know the operand",
    0x0A: "the request is not applicable",
}
_WIDE, _NARROW = "780g", "standard"
"""Models by the width of their amounts."""
_PAGE = 40
_TRIES = 3
_SHORT_S, _PAGE_S = 5.0, 15.0
_READ_CLOCK = b"? 2a2b\n"
_LONGEST = 2**22


def racp_request(opcode: int, operator: int, *numbers: int) -> bytes:
    """A RACP request, without E2E (docs/pump-formats.md §5.1). Raises InputError for one that does not only read, such as delete (3C)."""
    if opcode not in (REPORT, COUNT, ABORT):
        raise InputError(f"RACP request {opcode:02X} does more than read.", code="request")
    operand = b"" if operator == _NULL else b"".join((bytes((_BY_NUMBER,)), *(one.to_bytes(4, "little") for one in numbers)))
    return bytes((opcode, operator)) + operand


@dataclass(frozen=True, slots=True)
class _Response:
    """A response to a request: its code, the number of records where it tells one, and whether it came with E2E-CRC."""

    code: int
    count: int
    crc: bool


_EITHER = (False, True)


def _response(received: bytes, opcode: int, forms: Sequence[bool]) -> _Response | None:
    """The response to a request of this opcode, where it is there, in one of these forms: without E2E-CRC, with it.

    With it, it is three bytes longer and its CRC holds: the two forms have no length in common. What other services send over the same
    characteristic (06 00 01 xx, 01 xx), and what its CRC disproves, is no response.
    """
    for value in values_of(received, b"<"):
        crc = len(value) in (7, 9)
        if crc not in forms or (crc and crc16(value[:-2]) != int.from_bytes(value[-2:], "little")):
            continue
        body = value[:-3] if crc else value
        if body[:2] == bytes((_RESPONSE, _NULL)) and body[2:3] == bytes((opcode,)) and len(body) == 4:
            return _Response(body[3], 0, crc)
        if body[:2] == bytes((_COUNTED, _NULL)) and opcode == COUNT and len(body) in (4, 6):
            return _Response(_SUCCESS, int.from_bytes(body[2:], "little"), crc)
    return None


HELLO = Ask(
    data=line_of(b">", racp_request(COUNT, _ALL)),
    missing=lambda received: 0 if is_hello(received) else 1,
    timeout_s=1.5,
    what="asking for an insulin delivery service",
)


def is_hello(answer: bytes) -> bool:
    """Whether this is what a pump of the family answers to HELLO."""
    return _response(answer, COUNT, (False,)) is not None


def download(pump_id: str, known: Iterable[CaptureHead], *, model: str | None = None) -> Dialogue:
    """Fetches the records that no known capture names in its part: blocks of 40 numbers, the newest block first.

    `Ask.data` and `Reply.data` are lines as in a capture. What is missing of a block is asked for again; what is repeated, retained or
    of another service is dropped; without a response the request is aborted and asked again. Raises LinkError where nothing answers,
    PumpError for a refusal.

    `model` (default: that of the last capture) names the profile. Whether E2E-CRC is on is found by asking. How wide amounts are is seen
    from their records, but whose the maker's own records are is not: InputError says which model to write down, and nothing is kept
    that could be read in two ways.
    """
    heads = list(known)
    models = [head.model for head in reversed(heads) if head.model]
    model = model or next(filter(maker_of, models), None) or next(iter(models), None)
    return _Download(pump_id, model, [one for head in heads for one in numbers_of(head.part)]).run()


def _which_model(what: str, why: str, lines: str) -> InputError:
    """A profile that is not named, or not this one, and what to write down."""
    return InputError(
        what, why=why, do=f"Write {lines} in the [[dock]] of its port in pumpledger.toml, and run this again.", code="which_model"
    )


@dataclass(slots=True)
class _Answered:
    """What came of one request: its history values, and the response, if one came."""

    values: list[bytes]
    code: int | None
    count: int
    crc: bool


class _Download:
    """One download. Its states are its methods, in their order: count, newest, clock, oldest, blocks.

    `maker`: the profile but for E2E-CRC, empty until it is known; `held` is what cannot be read before.
    """

    def __init__(self, pump_id: str, model: str | None, known: Sequence[sequence.Range]) -> None:
        self.pump_id, self.known = pump_id, known
        self.maker, self.crc = maker_of(model), profile_of(model).crc
        self.held: list[tuple[Sequence[bytes], str | None, Anchor | None]] = []
        self.counter = 0
        self.parts = 0
        self.done = self.total = 0
        self.complete = True

    def run(self) -> Dialogue:
        count = yield from self._count()
        newest = yield from self._one(_LAST, "asking for the newest record")
        if newest is None:
            return self._summary(None)
        last, value = newest
        clock = yield from self._read_clock()
        if clock is not None or not any(low <= last <= high for low, high in self.known):
            yield from self._keep([value], f"{last}-{last}", clock)
        first = yield from self._oldest(last, count.count)
        if count.code == _SUCCESS and count.count < last - first + 1:
            yield Note(f"the pump has {count.count} records of the numbers {first} to {last}")
        missing = sequence.without((first, last), [*self.known, (last, last)])
        self.total = sum(high - low + 1 for low, high in missing)
        for low, high in reversed(missing):
            for top in range(high, low - 1, -_PAGE):
                yield from self._block(max(low, top - _PAGE + 1), top)
        if self.held:
            raise _which_model(
                "Which model is this pump?",
                "Its history has records of its maker's own, and none that shows how wide its amounts are.",
                f'`model = "{_WIDE}"` for a Medtronic 780G, `model = "{_NARROW}"` for any other,',
            )
        return self._summary(clock)

    @property
    def model(self) -> str | None:
        """The model that names the profile, as far as it is known."""
        return model_of(self.maker, crc=self.crc)

    def _summary(self, clock: Anchor | None) -> Summary:
        offset = (clock.pump_clock - clock.utc.replace(tzinfo=None)).total_seconds() if clock else None
        return Summary(pump_id=self.pump_id, model=self.model, new_parts=self.parts, clock_offset_s=offset, complete=self.complete)

    def _keep(self, values: Sequence[bytes], part: str | None, anchor: Anchor | None = None) -> Generator[Step, Reply | None, None]:
        """Yields a capture; later, if at all, where it can be read in two ways until the maker is known. Raises InputError."""
        sound = [value for value in values if self._number(value) is not None]
        told = {wide for value in sound if (wide := has_wide_amounts(value, crc=self.crc)) is not None}
        if told == {True} and not profile_of(self.maker).wide:
            raise _which_model(
                "This pump writes amounts of 32 bits.",
                f"The standard's have 16{f', and so have those of a {self.maker}' if self.maker else ''}; a Medtronic 780G writes them so.",
                f'`model = "{_WIDE}"`',
            )
        if told == {False} and profile_of(self.maker).wide:
            raise _which_model(
                "This pump writes amounts of 16 bits.",
                f"Those of a {self.maker} have 32, in the records that came.",
                f'`model = "{_NARROW}"`',
            )
        self.maker = self.maker or (_NARROW if told == {False} else "")
        ready = [(values, part, anchor)]
        if self.maker:
            ready, self.held = [*self.held, *ready], []
        elif any(int.from_bytes(value[:2], "little") in VENDOR for value in sound):
            self.held += ready
            return
        for mine, numbers, clock in ready:
            self.parts += 1
            data = b"".join(line_of(b"H", value) for value in mine)
            yield Got(Capture(data=data, family=FAMILY, pump_id=self.pump_id, model=self.model, part=numbers, anchor=clock))

    # --- one request ---------------------------------------------------------------------------------------------------------

    def _exchange(self, body: bytes, what: str, timeout_s: float, forms: Sequence[bool] = ()) -> Generator[Step, Reply | None, _Answered]:
        """A request, and what comes of it; a response in one of these forms (default: that of the request) ends it."""
        opcode, request, forms = body[0], body, forms or (self.crc,)
        if self.crc:
            request = body + bytes((self.counter,))
            request += crc16(request).to_bytes(2, "little")
            self.counter = (self.counter + 1) % 256
        reply = yield Ask(
            data=line_of(b">", request),
            missing=lambda received: 0 if _response(received, opcode, forms) else 1,
            timeout_s=timeout_s,
            what=what,
            done=self.done,
            total=self.total,
        )
        assert reply is not None
        values, response = list(dict.fromkeys(values_of(reply.data, b"H"))), _response(reply.data, opcode, forms)
        if response is None:
            return _Answered(values, None, 0, self.crc)
        return _Answered(values, response.code, response.count, response.crc)

    def _abort(self) -> Generator[Step, Reply | None, None]:
        yield Note("no response: aborting")
        yield from self._exchange(racp_request(ABORT, _NULL), "aborting", _SHORT_S)

    def _settled(self, body: bytes, what: str, *, optional: bool = False) -> Generator[Step, Reply | None, _Answered]:
        """A request that is answered, if need be at the third time. A refusal of an optional one is an answer."""
        for _ in range(_TRIES):
            answered = yield from self._exchange(body, what, _SHORT_S)
            if answered.code is None:
                yield from self._abort()
            elif answered.code != _NOT_COMPLETED:
                if not optional:
                    self._refuse(answered.code)
                return answered
        raise self._no_answer()

    def _refuse(self, code: int) -> None:
        if code in _REFUSALS:
            raise PumpError("The pump refuses to report its history.", why=f"It says that {_REFUSALS[code]}.", code="refused")

    def _no_answer(self) -> LinkError:
        return LinkError(
            "The pump does not answer.",
            why="Its history service gave no response to three requests.",
            do="Bring it near the bridge, see that the two are connected, and run this again; it goes on where it stopped.",
            code="no_answer",
        )

    # --- states --------------------------------------------------------------------------------------------------------------

    def _count(self) -> Generator[Step, Reply | None, _Answered]:
        """The number of records; and, by the form of the response, whether E2E-CRC is on. A refusal is an answer.

        A pump with it does not take a request without; the other way round the request has an operand too many, and is refused.
        """
        named = self.crc
        body, what = racp_request(COUNT, _ALL), "counting the records"
        for _ in range(_TRIES):
            for asked in (named, not named):
                self.crc = asked
                answered = yield from self._exchange(body, what, _SHORT_S, _EITHER)
                if answered.code is None:
                    continue
                self.crc = answered.crc
                if answered.crc == asked and answered.code != _NOT_COMPLETED:
                    return answered
                return (yield from self._settled(body, what, optional=True))
            self.crc = named
            yield from self._abort()
        raise self._no_answer()

    def _one(self, operator: int, what: str) -> Generator[Step, Reply | None, tuple[int, bytes] | None]:
        """The number and the bytes of the newest or oldest record; none where the pump has none."""
        for _ in range(_TRIES):
            answered = yield from self._settled(racp_request(REPORT, operator), what)
            if answered.code == _NO_RECORDS:
                return None
            numbered = [(seq, value) for value in answered.values if (seq := self._number(value)) is not None and seq != LOST]
            if numbered:
                return (max if operator == _LAST else min)(numbered)
        raise PumpError("The pump reports a record that does not come.", do="Run this again.", code="no_record")

    def _oldest(self, last: int, count: int) -> Generator[Step, Reply | None, int]:
        """The number of the oldest record; asked for again where the count of the records disproves it.

        A retained notification can stand in for one that was lost, and then what is older would never be asked for.
        """
        first = last
        for _ in range(_TRIES):
            oldest = yield from self._one(_FIRST, "asking for the oldest record")
            first = min(first, oldest[0]) if oldest else first
            if last - first >= _LONGEST:
                raise PumpError(f"The pump says that its records go from {first} to {last}.", why="That cannot be.", code="numbers")
            if last - first + 1 >= count:
                return first
        self.complete = False
        yield Note(f"the pump has {count} records, more than the numbers {first} to {last}")
        return first

    def _number(self, value: bytes) -> int | None:
        """The sequence number of a history value that can be one."""
        if len(value) < HEAD + (CRC if self.crc else 0):
            return None
        if self.crc and crc16(value[:-2]) != int.from_bytes(value[-2:], "little"):
            return None
        return int.from_bytes(value[2:6], "little")

    def _read_clock(self) -> Generator[Step, Reply | None, Anchor | None]:
        """The pump's clock beside the host's, if it has one to read: ten bytes, a date time and 1/256 s in the ninth."""
        reply = yield Ask(
            data=_READ_CLOCK,
            missing=lambda received: 0 if any(values_of(received, b"T")) else 1,
            timeout_s=_SHORT_S,
            what="reading the clock",
        )
        assert reply is not None
        for value in values_of(reply.data, b"T"):
            if len(value) < 7:
                continue
            ms, possible = times_of(np.frombuffer(value[:7], dtype=np.uint8).astype(np.int64)[None, :])
            if possible[0]:
                shown = datetime.fromtimestamp(int(ms[0]) / 1000, UTC).replace(tzinfo=None)
                trip = round((reply.received - reply.sent).total_seconds() * 1000)
                return Anchor(pump_clock=shown, utc=reply.received, round_trip_ms=trip)
        yield Note("the pump does not tell its clock")
        return None

    def _block(self, low: int, high: int) -> Generator[Step, Reply | None, None]:
        """The records of a block, and again what is missing of it, while that brings more; three fruitless rounds end it."""
        wanted = set(range(low, high + 1))
        fruitless, heard = 0, True
        while wanted and fruitless < _TRIES:
            before = len(wanted)
            for run in sequence.runs_of(wanted):
                answered = yield from self._exchange(racp_request(REPORT, _RANGE, *run), f"reading records {run[0]} to {run[1]}", _PAGE_S)
                numbered = {value: self._number(value) for value in answered.values}
                kept = [value for value, seq in numbered.items() if seq is None or seq == LOST or run[0] <= seq <= run[1]]
                came = {seq for value in kept if (seq := numbered[value]) is not None and seq != LOST}
                lost_alone = not came and LOST in numbered.values()
                if kept:
                    runs = sequence.runs_of(came) or ([run] if lost_alone else [])
                    yield from self._keep(kept, part_of(runs))
                wanted -= came
                heard = answered.code is not None
                if answered.code is None:
                    yield from self._abort()
                    continue
                self._refuse(answered.code)
                if answered.code == _NO_RECORDS or (lost_alone and answered.code == _SUCCESS):
                    wanted -= set(range(run[0], run[1] + 1))
            fruitless = fruitless + 1 if len(wanted) == before else 0
        self.done += high - low + 1
        if wanted and not heard:
            raise self._no_answer()
        if wanted:
            self.complete = False
            yield Note(f"{len(wanted)} records between {low} and {high} do not come")
