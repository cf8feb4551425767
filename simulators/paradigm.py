"""A Medtronic Paradigm pump behind its CareLink stick, byte for byte as docs/pump-formats.md §3 has it.

`Pump` keeps a therapy script as history records on pages; `Stick` is fed what a host writes to the serial port. What the pump
does not record, its log does not have: rates of a small model, completions, KVO, limits, demands. A script of another kind of pump
runs here as the basal rate, between suspend and resume. Of that rate:

- it runs from a resume to a suspend (1e), a rewind (21) or an alarm that stops it;
- after a suspend, 1f says that it runs again, also where the reservoir was changed meanwhile; after a rewind or an alarm while it
  ran, a larger model (x23 and later) says so by a 7b off the schedule, a small one by nothing, until a bolus proves it;
- a log that begins with a running pump shows nothing of it before such a proof.
So the truth of a script has more in `flowed` than in `proved`.
"""

from __future__ import annotations

import binascii
import random
import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

from devices.contract import AlarmClass, Kind, Source, Target
from devices.errors import InputError
from simulators.link import Faults, Line, still
from simulators.therapy import PumpClock, Script, Step, Truth, truth

FAMILY = "paradigm"
PAGE = 1024
PAGES = 37
"""So many pages the pump keeps; older ones are gone."""
_ROOM = PAGE - 2

_RESETS = {22: datetime(2005, 1, 1), 23: datetime(2007, 1, 1)}  # noqa: DTZ001
_LATER_RESET = datetime(2008, 1, 1)  # noqa: DTZ001

_ALARMS: dict[AlarmClass, tuple[int, AlarmClass]] = {
    AlarmClass.OCCLUSION: (4, AlarmClass.NO_DELIVERY),
    AlarmClass.NO_DELIVERY: (4, AlarmClass.NO_DELIVERY),
    AlarmClass.EMPTY: (62, AlarmClass.EMPTY),
    AlarmClass.BATTERY: (3, AlarmClass.BATTERY),
}
_AUTO_OFF = 6
_CLOCK_LOST = 17
_FIXED_PRIME_LEAD = timedelta(seconds=35)


MODELS = (522, 723)
"""A small and a larger one."""


def crc8(data: bytes) -> int:
    """The checksum of the stick's and the radio's frames: polynomial 9B, from 0, high bit first."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x9B) & 0xFF if crc & 0x80 else crc << 1
    return crc


def stamp(time: datetime) -> bytes:
    """The 5 bytes of a wall time."""
    month = time.month
    return bytes(
        (
            time.second | (month & 0b1100) << 4,
            time.minute | (month & 0b0011) << 6,
            time.hour,
            time.day,
            time.year - 2000,
        )
    )


def _day_stamp(day: date) -> bytes:
    """The 2 bytes of a date."""
    return bytes((day.day | (day.month & 0b1110) << 4, (day.year - 2000) | (day.month & 1) << 7))


@dataclass(frozen=True, slots=True)
class _Entry:
    """A record as written at true time `written`; `later` is what it is rewritten to, in place, from `until` on."""

    written: datetime
    data: bytes
    later: bytes = b""
    until: datetime | None = None

    def at(self, moment: datetime) -> bytes:
        return self.later if self.until is not None and moment >= self.until else self.data


_NOT_HERE = frozenset({Kind.LIMIT_REACHED, Kind.LIMIT_CLEARED, Kind.POWER_OFF, Kind.POWER_ON, Kind.NEW_PATIENT})


def _performed(script: Script) -> Script:
    """The script as this kind of pump performs it: it knows no limits, no KVO, no switch and no patient, and so runs on."""
    if any(step.kind is Kind.DELIVERY_START and step.rate_ml_h == 0 for step in script.steps):
        raise InputError(
            "A Paradigm cannot perform this script: its log does not tell a basal rate of 0 from one that runs.", code="script"
        )
    return replace(script, steps=tuple(s for s in script.steps if s.kind not in _NOT_HERE and s.source is not Source.KVO))


class _Book:
    """Turns a script into records, and into what they tell."""

    def __init__(self, script: Script, clock: PumpClock, chance: random.Random, *, large: bool) -> None:
        self.script, self.clock, self.chance, self.large = script, clock, chance, large
        self._entries: list[tuple[datetime, int, int, _Entry]] = []
        self._told: list[tuple[datetime, int, int, Step]] = []
        self._day = clock.shows(script.start).date()
        starts = [step.source for step in script.steps if step.kind is Kind.DELIVERY_START]
        self._suspended = bool(starts) and starts[0] is not Source.BASAL
        self._runs = False
        self._rate = 0.0
        self._reckoned = script.start
        self._basal_u = self._bolus_u = 0.0
        self._cannula: datetime | None = None
        for number, step in enumerate(script.steps):
            self._pass_time(step.dark_since or step.at)
            following = script.steps[number + 1].at if number + 1 < len(script.steps) else script.end
            self._take(step, following)
        self._pass_time(script.end)

    def entries(self) -> list[_Entry]:
        """The records in the order in which they are written."""
        return [entry for _, _, _, entry in sorted(self._entries, key=lambda one: one[:3]) if entry.written <= self.script.end]

    def told(self) -> list[Step]:
        """What a right reading of them gives, in its order."""
        return [step for written, _, _, step in sorted(self._told, key=lambda one: one[:3]) if written <= self.script.end]

    # --- writing ---------------------------------------------------------------------------------------------------------

    def _write(self, at: datetime, data: bytes, *, rank: int = 0, later: bytes = b"", until: datetime | None = None) -> None:
        self._entries.append((at, rank, len(self._entries), _Entry(at, data, later, until)))

    def _tell(self, written: datetime, step: Step, *, rank: int = 0) -> None:
        self._told.append((written, rank, len(self._told), step))

    def _plain(self, code: int, byte: int, step: Step, told: Step) -> None:
        """A record of seven bytes: code, one byte, wall time."""
        self._write(step.at, bytes((code, byte)) + self._stamp(step.at))
        self._tell(step.at, told)

    def _stamp(self, at: datetime) -> bytes:
        return stamp(self.clock.shows(at))

    # --- what happens ----------------------------------------------------------------------------------------------------

    def _take(self, step: Step, following: datetime) -> None:
        match step.kind:
            case Kind.DELIVERY_START:
                self._start(step, following)
            case Kind.DELIVERY_STOP | Kind.DELIVERY_COMPLETE if self._runs:
                self._runs, self._suspended = False, True
                told = Step(at=step.at, kind=Kind.DELIVERY_STOP, source=Source.BASAL, reason="user")
                self._plain(0x1E, int(self.large), step, told)
            case Kind.RATE_CHANGE if self._runs:
                self._change_rate(step)
            case Kind.BOLUS_DELIVERED:
                self._bolus(step)
            case Kind.RESERVOIR_CHANGE:
                self._runs = False
                self._plain(0x21, 0, step, step)
            case Kind.PRIMING_DONE:
                self._prime(step)
            case Kind.ALARM_RAISED:
                self._alarm(step)
            case Kind.ALARM_CLEARED if step.alarm_class in _ALARMS:
                self._plain(0x0C, _ALARMS[step.alarm_class][0], step, Step(at=step.at, kind=Kind.ALARM_CLEARED))
            case Kind.CLOCK_CHANGE if step.reason == "loss":
                self._lose_the_clock(step)
            case Kind.CLOCK_CHANGE:
                self._write(step.at, bytes((0x17, 0)) + stamp(self.clock.showed(step.at)))
                self._write(step.at, bytes((0x18, 0)) + self._stamp(step.at))
                self._tell(step.at, step)
                self._day = self.clock.shows(step.at).date()

    def _start(self, step: Step, following: datetime) -> None:
        if self._runs:
            return
        self._runs = True
        self._rate = (step.rate_ml_h or 0.0) * 100
        if self._suspended:
            self._suspended = False
            self._plain(0x1F, int(self.large), step, Step(at=step.at, kind=Kind.DELIVERY_START, source=Source.BASAL))
            if self.large:
                room = min(35, int((following - step.at).total_seconds()))
                seconds = self.chance.randint(min(1, room), room)
                self._profile(step.at + timedelta(seconds=seconds), ahead_of=step.at)
        elif self.large:
            fixed = self._cannula
            near = fixed is not None and step.at - fixed <= _FIXED_PRIME_LEAD
            self._profile(step.at, ahead_of=fixed if near else None)

    def _profile(self, at: datetime, *, ahead_of: datetime | None = None) -> None:
        """7b: the scheduled rate runs. It is written before the record of the instant `ahead_of`, with a later stamp."""
        shown = self.clock.shows(at)
        half_hours = shown.hour * 2 + shown.minute // 30
        forties = min(round(self._rate * 40), 0xFFFF)
        data = bytes((0x7B, 1)) + stamp(shown) + struct.pack("<BH", half_hours, forties)
        written = ahead_of or at
        self._write(written, data, rank=-1 if ahead_of else 0)
        told = Step(at=at, kind=Kind.RATE_CHANGE, source=Source.BASAL, rate_ml_h=forties / 4000, proves=Source.BASAL)
        self._tell(written, told)

    def _change_rate(self, step: Step) -> None:
        self._rate = (step.rate_ml_h or 0.0) * 100
        if step.duration_s is None:
            if self.large:
                self._profile(step.at)
            return
        forties = min(round(self._rate * 40), 0x7FF) if step.duration_s else 0
        when = self._stamp(step.at)
        self._write(step.at, bytes((0x33, forties & 0xFF)) + when + bytes((forties >> 8,)))
        self._write(step.at, bytes((0x16, round(step.duration_s / 1800))) + when)
        rate = forties / 4000 if step.duration_s else None
        self._tell(step.at, replace(step, source=Source.BASAL, rate_ml_h=rate))

    def _bolus(self, step: Step) -> None:
        """A bolus is stamped at its start and written at its end, after a suspend that cut it short; a larger model writes a square one
        at its start and rewrites it.
        """
        lasts = timedelta(seconds=step.duration_s or 0)
        share = min(1.0, step.volume_ml / step.programmed_ml) if step.volume_ml and step.programmed_ml else 1.0
        half_hours = int(round(lasts.total_seconds() / share, 3) // 1800)
        given = self._counted(step.volume_ml or 0)
        programmed = max(given, self._counted(step.programmed_ml or 0))
        self._bolus_u += given
        whole = self._bolus_record(step.at, programmed, given, half_hours)
        written = step.at if self.large and half_hours else step.at + lasts
        if self.chance.random() < 0.5:
            self._estimate(step.at)
        if self.large and half_hours:
            begun = self._bolus_record(step.at, programmed, 0, half_hours)
            self._write(written, begun, rank=1, later=whole, until=step.at + lasts)
        else:
            self._write(written, whole, rank=1)
        told = Step(
            at=step.at,
            kind=Kind.BOLUS_DELIVERED,
            source=Source.PRIMARY,
            volume_ml=given / 100,
            programmed_ml=programmed / 100,
            duration_s=half_hours * 1800.0 * (given / programmed if programmed else 1.0) if half_hours else None,
            proves=Source.BASAL,
        )
        self._tell(written, told, rank=1)
        if self.chance.random() < 0.5:
            doses = self.chance.randint(1, 5)
            self._write(written, bytes((0x5C, 2 + 3 * doses)) + b"\x2c\x06\x04" * doses, rank=1)
            self._tell(written, Step(at=written, kind=Kind.OTHER, timed=False), rank=1)

    def _counted(self, volume_ml: float) -> float:
        """Units as this model counts them: whole steps, and as many as it can."""
        return min(int(volume_ml * 4000 + 1e-6), 65_535) / 40 if self.large else min(int(volume_ml * 1000 + 1e-6), 255) / 10

    def _bolus_record(self, at: datetime, programmed: float, given: float, half_hours: int) -> bytes:
        if self.large:
            return struct.pack(">BHHHB", 1, round(programmed * 40), round(given * 40), 0, half_hours) + self._stamp(at)
        return bytes((1, round(programmed * 10), round(given * 10), half_hours)) + self._stamp(at)

    def _estimate(self, at: datetime) -> None:
        """5b, what the bolus calculator proposed."""
        body = bytes(self.chance.randrange(256) for _ in range(15 if self.large else 13))
        self._write(at, bytes((0x5B, 0)) + self._stamp(at) + body)
        self._tell(at, Step(at=at, kind=Kind.OTHER))

    def _prime(self, step: Step) -> None:
        """A tubing fill has no programmed amount; the pump knows but these two, so an unknown target is a tubing fill."""
        tenths = min(255, round((step.volume_ml or 0) * 1000))
        fixed = step.target is Target.CANNULA
        wanted = min(255, max(1, round((step.programmed_ml or step.volume_ml or 0) * 1000))) if fixed else 0
        self._write(step.at, bytes((0x03, 0, wanted, 0, tenths)) + self._stamp(step.at))
        self._cannula = step.at if fixed else None
        if fixed:
            reason = "aborted" if tenths != wanted else "amount_reached"
            told = replace(step, volume_ml=tenths / 1000, programmed_ml=wanted / 1000, reason=reason)
        else:
            told = replace(step, target=Target.TUBING, volume_ml=tenths / 1000, programmed_ml=None, reason="unknown")
        self._tell(step.at, told)

    def _alarm(self, step: Step) -> None:
        if step.alarm_class is AlarmClass.LOW_RESERVOIR:
            self._plain(0x34, 200, step, replace(step, stops_delivery=False))
        elif step.alarm_class is AlarmClass.BATTERY and not step.stops_delivery:
            self._plain(0x19, 0, step, step)
        elif step.stops_delivery:
            self._runs = False
            kind, said = _ALARMS.get(step.alarm_class or AlarmClass.OTHER, (_AUTO_OFF, AlarmClass.OTHER))
            self._write(step.at, bytes((0x06, kind, 0, 0)) + self._stamp(step.at))
            self._tell(step.at, replace(step, alarm_class=said))

    def _lose_the_clock(self, step: Step) -> None:
        """The alarm of the lost clock, and its end, both with the date of the reset: it alone says that power was out."""
        self._runs = False
        self._reckoned = step.at
        when = self._stamp(step.at)
        self._write(step.at, bytes((0x06, _CLOCK_LOST, 0, 0)) + when)
        self._tell(step.at, replace(step, kind=Kind.ALARM_RAISED, alarm_class=AlarmClass.CLOCK_LOST, stops_delivery=True, reason=None))
        self._plain(0x0C, _CLOCK_LOST, step, Step(at=step.at, kind=Kind.ALARM_CLEARED))
        self._day = self.clock.shows(step.at).date()

    # --- the day's totals ------------------------------------------------------------------------------------------------

    def _reckon(self, at: datetime) -> None:
        if self._runs and at > self._reckoned:
            self._basal_u += self._rate * (at - self._reckoned).total_seconds() / 3600
        self._reckoned = max(at, self._reckoned)

    def _pass_time(self, at: datetime) -> None:
        """Writes the totals of each day that ends, by the pump's own clock, before true time `at`."""
        shown = self.clock.showed(at)
        while self._day < shown.date():
            midnight = datetime(self._day.year, self._day.month, self._day.day) + timedelta(days=1)  # noqa: DTZ001
            true = at - (shown - midnight) / self.clock.speed
            self._reckon(true)
            self._totals(true, self._day)
            self._day += timedelta(days=1)
        self._reckon(at)

    def _totals(self, at: datetime, day: date) -> None:
        basal = min(round(self._basal_u * 40), 0xFFFF)
        bolus = min(round(self._bolus_u * 40), 0xFFFF - basal)
        self._basal_u = self._bolus_u = 0.0
        when = _day_stamp(day)
        self._write(at, struct.pack(">BHH", 0x07, 0, basal + bolus) + when + bytes(3 if self.large else 0))
        code, length = (0x6E, 52) if self.large else (0x6D, 44)
        long = bytes((code,)) + when + bytes(8) + struct.pack(">HHxH", basal + bolus, basal, bolus)
        self._write(at, long.ljust(length, b"\0"))
        for _ in range(2):
            self._tell(at, Step(at=at, kind=Kind.DAILY_TOTAL, timed=False))


class Pump:
    """The pump itself: its history as it stands at a moment, its clock, its serial number (six digits)."""

    def __init__(self, script: Script, *, seed: int = 0, model: int = 522, serial: str = "482916", drift_s_per_day: float = 0.0) -> None:
        if not (serial.isdigit() and len(serial) == 6):
            raise InputError("A Paradigm serial number has six digits.", code="serial")
        script = _performed(script)
        self.serial, self.model = serial, model
        self.clock = PumpClock(script, reset_to=_RESETS.get(model % 100, _LATER_RESET), drift_s_per_day=drift_s_per_day)
        book = _Book(script, self.clock, random.Random(f"paradigm:{seed}"), large=model % 100 >= 23)
        self._entries, self._written = book.entries(), [entry.written for entry in book.entries()]
        self.truth = truth(f"{FAMILY}:{serial}", script, book.told())

    def pages(self, moment: datetime) -> list[bytes]:
        """All history pages as they stand at true UTC `moment`, page 0, the newest, first; also those the pump has no room for."""
        pages = [b""]
        for entry in self._entries[: bisect_right(self._written, moment)]:
            record = entry.at(moment)
            if len(pages[-1]) + len(record) > _ROOM:
                pages.append(b"")
            pages[-1] += record
        return [_page(records) for records in reversed(pages)]


def _page(records: bytes) -> bytes:
    body = records.ljust(_ROOM, b"\0")
    return body + binascii.crc_hqx(body, 0xFFFF).to_bytes(2, "big")


_ACK = b"\x01\x55\x00"
_REFUSED = b"\x01\x66\x0f"
_LENGTHS = {0x03: 3, 0x04: 3, 0x05: 3, 0x06: 3, 0x0C: 5}
_TRANSMIT = 0x01
_READING = frozenset({0x70, 0x71, 0x72, 0x73, 0x74, 0x76, 0x79, 0x80, 0x8D, 0x98, 0x9D, 0xC0, 0xC3})
_POWER = 0x5D


class Stick:
    """The CareLink stick before the pump: `feed` it what the host writes.

    It needs no time: an answer that takes a pump its time takes here some polls of the link status. A pump whose radio was not
    powered, or that is called by another serial number, does not answer at all. `forbidden` collects every command that would have
    changed the pump: it stays empty.
    """

    def __init__(self, pump: Pump, *, faults: Faults, seed: int, now: Callable[[], datetime], signal: int) -> None:
        self.pump_id = f"{FAMILY}:{pump.serial}"
        self.pump = pump
        self.forbidden: list[int] = []
        self._now, self._signal = now, signal
        self._line = Line(faults, seed, nak=_REFUSED.ljust(64, b"\0"))
        self._chance = random.Random(f"stick:{seed}")
        self._host = b""
        self._block = bytearray(64)
        self._radio: deque[bytes] = deque()
        self._polls = 0
        self._awake_until: datetime | None = None
        self._counts = {"naks": 0, "rx": 0, "tx": 0, "usb": 0}

    def feed(self, data: bytes) -> bytes:
        """Takes host bytes in any pieces; gives the answers to the commands that are whole by now. Raises UnpluggedError."""
        self._host += data
        answers = b""
        while self._host:
            length = self._length()
            if length == 0 or len(self._host) < length:
                break
            frame, self._host = self._host[:length], self._host[length:]
            answers += self._line.carry(frame, self._answer)
        return answers

    def _length(self) -> int:
        """The length of the command that the host began; 0: not known yet. What is no command is refused as a whole."""
        first = self._host[0]
        if first == _TRANSMIT:
            return 16 + ((self._host[7] & 0x7F) << 8 | self._host[8]) if len(self._host) > 8 else 0
        return _LENGTHS.get(first, len(self._host))

    def _answer(self, frame: bytes) -> bytes:
        self._counts["usb"] += 1
        match frame[0]:
            case 0x04:
                return self._said(b"\x00\x00\x00" + b"\x00\x00\x00" + b"ComLink II" + b"\x01\x10" + b"\x02\x00\x01\x01\x03")
            case 0x05:
                return self._stats(frame[1])
            case 0x06:
                return self._said(bytes((self._signal,)))
            case 0x03:
                return self._status()
            case 0x0C:
                return self._read_radio(frame)
            case 0x01 if crc8(frame[:14]) == frame[14] and crc8(frame[15:-1]) == frame[-1]:
                self._transmit(frame)
                return self._said(b"")
            case _:
                return self._said(b"", head=_REFUSED)

    def _said(self, payload: bytes, *, head: bytes = _ACK) -> bytes:
        """One block of 64 bytes: the answer in front, behind it whatever the buffer held before."""
        self._counts["naks"] += head != _ACK
        self._block[: len(head) + len(payload)] = head + payload
        return bytes(self._block)

    def _stats(self, which: int) -> bytes:
        received, sent = (self._counts["usb"], self._counts["usb"]) if which else (self._counts["rx"], self._counts["tx"])
        return self._said(struct.pack(">BBBBII", 0, 0, self._counts["naks"] & 0xFF, 0, received, sent))

    def _status(self) -> bytes:
        if not self._radio:
            return self._said(b"\x00\x02\x00\x00\x00")
        if self._polls:
            self._polls -= 1
            return self._said(b"\x00\x02\x02\x00\x00")
        flags = 0x03 if len(self._radio) > 1 else 0x01
        return self._said(struct.pack(">BBBH", 0, 2, flags, len(self._radio[0])))

    def _read_radio(self, frame: bytes) -> bytes:
        asked = int.from_bytes(frame[2:4], "big")
        if crc8(frame[:4]) != frame[4] or not self._radio or asked != len(self._radio[0]):
            return self._said(b"", head=_REFUSED)
        answer = self._radio.popleft()
        self._polls = self._chance.choice((0, 0, 1))
        self._block[: min(64, len(answer))] = answer[:64]
        self._counts["rx"] += 1
        return answer

    def _transmit(self, frame: bytes) -> None:
        """The pump hears a packet, and answers it if it is meant and awake."""
        self._counts["tx"] += 1
        self._radio.clear()
        command, parameters = frame[13], frame[15:-1]
        if frame[4:7].hex() != self.pump.serial:
            return
        if command == _POWER:
            minutes = parameters[1] if len(parameters) > 1 else 0
            self._awake_until = self._now() + timedelta(minutes=minutes)
            self._send(b"\x00")
            return
        if command not in _READING:
            self.forbidden.append(command)
            return
        if self._awake_until is None or self._now() > self._awake_until:
            return
        data = self._data(command, parameters)
        self._send(data[:64] if frame[11] < 2 else data)

    def _data(self, command: int, parameters: bytes) -> bytes:
        moment = self._now()
        match command:
            case 0x8D:
                name = str(self.pump.model).encode()
                data = bytes((len(name),)) + name
            case 0x70:
                time = self.pump.clock.shows(moment)
                data = struct.pack(">BBBHBB", time.hour, time.minute, time.second, time.year, time.month, time.day)
            case 0x71:
                data = self.pump.serial.encode()
            case 0x72:
                data = b"\x00\x00\x8c"
            case 0x73:
                data = (1200).to_bytes(2, "big")
            case 0x74:
                data = b"VER 2.4A1.1"
            case 0x9D:
                data = (len(self.pump.pages(moment)) - 1).to_bytes(4, "big")
            case 0x80:
                return self._history(parameters[0] if parameters else 0, moment)
            case _:
                data = b""
        return data.ljust(64, b"\0")

    def _history(self, number: int, moment: datetime) -> bytes:
        """A page; past the end one byte."""
        pages = self.pump.pages(moment)
        return pages[number] if number < min(len(pages), PAGES) else b"\x00"

    def _send(self, data: bytes) -> None:
        """Puts an answer on the radio: blocks of 64 and 128 bytes, the last one marked."""
        kind = self._chance.choice((1, 3, 4))
        self._polls = self._chance.choice((0, 1, 2))
        while data:
            size = min(self._chance.choice((64, 128)), len(data))
            block, data = data[:size], data[size:]
            end = 0 if data else 0x80
            head = bytes((2, 0, kind, 0, self._signal, end | size >> 8, size & 0xFF, 0xA7, 1)) + bytes.fromhex(self.pump.serial)
            self._radio.append(head + bytes((crc8(head),)) + block + bytes((crc8(block),)))


def simulate(
    script: Script,
    seed: int = 0,
    *,
    serial: str = "482916",
    model: int = 522,
    faults: Faults | None = None,
    now: Callable[[], datetime] | None = None,
    signal: int = 210,
) -> tuple[Stick, Truth]:
    """The stick before the pump of a script, and the truth; the model's last two digits decide what it records (22 or less: small).

    simulators.link.Simulator has the other options. Raises InputError for a serial number that is none, or a script that starts at rate 0.
    """
    faults = faults or Faults()
    script = faults.happen_to(script)
    pump = Pump(script, seed=seed, model=model, serial=serial, drift_s_per_day=faults.drift_s_per_day)
    return Stick(pump, faults=faults, seed=seed, now=now or still(script.end), signal=signal), pump.truth
