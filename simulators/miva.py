"""A PCA pump of the MIVA platform, byte for byte as docs/pump-formats.md §4 has it: a ring of records behind a serial line.

The pump performs a therapy script and writes what such a pump writes: a programme before each start that needs a new one, runs, pauses,
doses, limits, alarms, cassettes. What it does not write, its log does not have: primes and sites, KVO after a completion, a low reservoir,
a new patient, a change of rate while it runs (here a pause, another programme, and a run). Its clock is a counter, or one that nobody
sets, and runs on without power; the power that goes is a power-off, the power that comes back a power-on.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import reduce
from typing import Literal

from devices.contract import AlarmClass, At, Kind, Source
from devices.errors import InputError
from simulators.link import Faults, Line, still
from simulators.therapy import Script, Step, Truth, truth

FAMILY = "miva"
RING = 43_264
"""So many records the pump keeps."""

_STOPPING: dict[AlarmClass, tuple[bytes, AlarmClass]] = {
    AlarmClass.OCCLUSION: (b"\x09\x00\x02", AlarmClass.OCCLUSION),
    AlarmClass.BATTERY: (b"\x1c\x00\x00", AlarmClass.BATTERY),
    AlarmClass.POWER: (b"\x1f\x00\x02", AlarmClass.BATTERY),
}
"""Alarm class of a script → type and sub-type of the record, and how a right reading classes it; of every other one a slow motor."""
_SLOW_MOTOR = (b"\x12\x00\x02", AlarmClass.MALFUNCTION)
_SOUNDING: dict[AlarmClass, tuple[bytes, AlarmClass]] = {
    AlarmClass.BATTERY: (b"\x0d\x00\x02", AlarmClass.BATTERY),
    AlarmClass.OTHER: (b"\x15\x00\x00", AlarmClass.OTHER),
}

_SWITCHES = (
    "basal", "vtbi", "loading", "time", "delay", "auto", "auto_interval", "extra", "lockout", "kvo", "delay_kvo", "per_hour",
    "per_interval", "clinician",
)  # fmt: skip
"""Of a bolus programme, bit by bit, and field by field."""
_SECONDS = ("time", "delay", "auto_interval", "lockout")


def checksum(command: bytes, family: str) -> bytes:
    """Two hex digits: the sum (Nimbus II, CAPS) or the XOR (Nimbus H) of the command's bytes."""
    total = reduce((lambda a, b: a + b) if family == "sum" else (lambda a, b: a ^ b), command, 0)
    return f"{total & 0xFF:02X}".encode()


def long_programme(**fields: float) -> bytes:
    """A programme of 16 records in bolus mode: only the fields that are given have their switch on."""
    words = b"".join(
        struct.pack(">I", round(fields.get(name, 0))) if name in _SECONDS else struct.pack(">f", fields.get(name, 0.0))
        for name in _SWITCHES
    )
    switches = sum(1 << bit for bit, name in enumerate(_SWITCHES) if name in fields)
    head = words.ljust(80, b"\0") + struct.pack(">I", switches) + bytes(4)
    tail = struct.pack(">HHBBBBBBB10s10s", 0xFFFF, 100, 0, 1, 255, 255, 0, 0, 0, b"PCA", b"DRUG")
    return (head + tail + bytes(105) + b"\0\xff\xff").ljust(256, b"\xff")


def short_programme(
    *, rate: float, vtbi: float = 20.0, loading: float = 0.0, extra: float = 0.0, lockout_s: int = 0, name: int = 2
) -> bytes:
    """A programme of 2 records."""
    return struct.pack(">IffffI8s", name, rate, vtbi, loading, extra, lockout_s, b"")


class _Book:
    """Turns a script into records, and into what they tell."""

    def __init__(self, script: Script, chance: random.Random, stamp: Callable[[datetime], bytes], form: str, *, chatter: bool) -> None:
        self.script, self._chance, self._stamp, self._form = script, chance, stamp, form
        self.records: list[tuple[datetime, bytes]] = []
        self.told: list[Step] = []
        self._rate: float | None = None
        self._lockout_s = 0.0
        self._programmed: tuple[float | None, float, float] | None = None
        self._runs = False
        self._granted: datetime | None = None
        self._shown = False
        self._infused_ml = 0.0
        happens: list[tuple[datetime, float, Callable[[Step], None], Step]]
        happens = [(step.at, number, self._take, step) for number, step in enumerate(script.steps)]
        happens += [(step.dark_since, -1, self._go_dark, step) for step in script.steps if step.dark_since]
        happens += [
            (step.at + timedelta(seconds=step.duration_s or 0), -3 if step.duration_s else number + 0.5, self._finish, step)
            for number, step in enumerate(script.steps)
            if step.kind is Kind.BOLUS_DELIVERED
        ]
        if chatter:
            hours = int((script.end - script.start).total_seconds() // 3600)
            idle = Step(at=script.start, kind=Kind.OTHER)
            happens += [(script.start + timedelta(hours=hour, seconds=17), -2, self._chat, idle) for hour in range(0, hours, 5)]
        for self._now, _, act, step in sorted(happens, key=lambda one: one[:2]):
            if self._now <= script.end:
                act(step)

    # --- writing ---------------------------------------------------------------------------------------------------------

    def _write(self, head: bytes, told: Step | None, data: bytes = b"") -> None:
        """A record of type and sub-type (3 bytes), stamped now, and what it tells; none: nothing that matters here."""
        self.records.append((self._now, head[:1] + self._stamp(self._now) + (head[1:] + data).ljust(11, b"\0")))
        self.told.append(told or Step(at=self._now, kind=Kind.OTHER))

    def _power(self) -> bytes:
        return struct.pack(">ff", self._chance.uniform(5.5, 6.5), self._infused_ml)

    def _programme(self) -> None:
        """A BEGIN, the programme that is to run, and an END."""
        self._programmed = self._wanted()
        extra = self._extra_ml()
        rate = self._rate or 0.0
        self._write(b"\x00\x01\x00", None)
        if self._form == "short":
            data = short_programme(rate=rate, extra=extra, lockout_s=round(self._lockout_s))
        else:
            data = long_programme(basal=rate, vtbi=20.0, extra=extra, lockout=self._lockout_s, kvo=2.03, per_hour=4.0)
        for place in range(0, len(data), 16):
            self.records.append((self._now, data[place : place + 16]))
            self.told.append(Step(at=self._now, kind=Kind.OTHER))
        self._write(b"\x00\x02\x00", Step(at=self._now, kind=Kind.SETTINGS_CHANGE, lockout_s=self._lockout_s))

    def _wanted(self) -> tuple[float | None, float, float]:
        return self._rate, self._lockout_s, self._extra_ml()

    def _extra_ml(self) -> float:
        """The dose that the next one is, for it is programmed before."""
        doses = [step for step in self.script.steps if step.kind is Kind.BOLUS_DELIVERED]
        ahead = [step for step in doses if step.at >= self._now]
        return float((*ahead, *doses[-1:])[0].programmed_ml or 0) if doses else 0.0

    # --- what happens ----------------------------------------------------------------------------------------------------

    def _take(self, step: Step) -> None:
        match step.kind:
            case Kind.SETTINGS_CHANGE:
                self._lockout_s = step.lockout_s or 0.0
                later = (one.rate_ml_h for one in self.script.steps if one.at >= step.at and one.kind is Kind.DELIVERY_START)
                self._rate = next(later, self._rate)
                self._write(b"\x05\x00\x07", None)
                self._programme()
            case Kind.DELIVERY_START if step.source is not Source.KVO:
                self._start(step)
            case Kind.DELIVERY_STOP if self._runs:
                self._pause(step)
            case Kind.DELIVERY_COMPLETE if self._runs and step.source is not Source.KVO:
                self._write(b"\x03\x00\x00", Step(at=step.at, kind=Kind.DELIVERY_COMPLETE, source=Source.PRIMARY))
                self._cancel()
            case Kind.RATE_CHANGE if self._runs:
                self._pause(step)
                self._start(step)
            case Kind.BOLUS_DELIVERED if self._granted != step.at:
                self._grant(step)
            case Kind.DEMAND_GRANTED:
                self._grant(step)
            case Kind.DEMAND_DENIED:
                self._write(b"\x07\x00\x01", Step(at=step.at, kind=step.kind, reason="unknown"))
            case Kind.LIMIT_REACHED:
                self._write(b"\x04\x00\x01", step)
            case Kind.LIMIT_CLEARED:
                self._write(b"\x04\x00\x04", step)
            case Kind.RESERVOIR_CHANGE:
                self._halt(b"\x0e\x00\x00", step)
            case Kind.POWER_OFF:
                self._halt(b"\x10\x00\x00", step, self._power())
            case Kind.POWER_ON:
                self._halt(b"\x18\x00\x05", step, self._power())
            case Kind.CLOCK_CHANGE if step.reason == "loss":
                self._halt(b"\x18\x00\x06", Step(at=step.at, kind=Kind.POWER_ON), self._power())
            case Kind.ALARM_RAISED if step.stops_delivery:
                head, said = _STOPPING.get(step.alarm_class or AlarmClass.OTHER, _SLOW_MOTOR)
                self._halt(head, Step(at=step.at, kind=step.kind, alarm_class=said, stops_delivery=True))
            case Kind.ALARM_RAISED if step.alarm_class in _SOUNDING:
                head, said = _SOUNDING[step.alarm_class]
                self._write(head, Step(at=step.at, kind=step.kind, alarm_class=said), self._power() if head[0] == 0x0D else b"")
            case Kind.ALARM_CLEARED if step.alarm_class is AlarmClass.OCCLUSION:
                self._write(b"\x09\x00\x04", step)
                self._shown = False

    def _start(self, step: Step) -> None:
        if self._runs:
            self._pause(step)
        self._rate = step.rate_ml_h
        if self._programmed != self._wanted():
            self._programme()
        self._runs = True
        rate = self._rate or 0.0
        self._write(b"\x01\x00\x00", Step(at=step.at, kind=Kind.DELIVERY_START, source=Source.PRIMARY, rate_ml_h=rate))

    def _pause(self, step: Step) -> None:
        self._infused_ml += self._chance.uniform(0, 1)
        self._halt(b"\x02\x00\x00", Step(at=step.at, kind=Kind.DELIVERY_STOP, reason="user"), struct.pack(">f", self._infused_ml))

    def _halt(self, head: bytes, told: Step, data: bytes = b"") -> None:
        self._runs = False
        self._write(head, told, data)
        self._cancel()

    def _cancel(self) -> None:
        """A dose that runs ends here, and is not finished."""
        if self._granted is not None:
            self._write(b"\x08\x00\x20", None)
            self._granted = None

    def _go_dark(self, step: Step) -> None:
        self._halt(b"\x10\x00\x00", Step(at=self._now, kind=Kind.POWER_OFF), self._power())

    def _grant(self, step: Step) -> None:
        self._granted, self._shown = step.at, True
        self._write(b"\x06\x02\x00", Step(at=step.at, kind=Kind.DEMAND_GRANTED))

    def _finish(self, step: Step) -> None:
        """A dose is finished; how long it took is shown unless something came between."""
        if self._granted is None:
            return
        shown = (self._now - self._granted).total_seconds() if self._shown else None
        begun = self._granted if self._shown else self._now
        self._granted = None
        self._write(b"\x17\x00\x01", Step(at=begun, kind=Kind.BOLUS_DELIVERED, source=Source.PCA, duration_s=shown, names=At.END))

    def _chat(self, step: Step) -> None:
        """What a log is full of: battery states, time stamps."""
        if self._chance.random() < 0.5:
            self._write(b"\x0d\x00\x01", None, self._power())
        else:
            self._write(b"\x0f\x00\x00", None)


class Pump:
    """The pump at the moment `now`: only what is recorded by then is in its ring. `asked` are the commands it was sent.

    `records` with their true times, from ring index `first` on; `clock` gives the digits of an RC reply.
    """

    def __init__(
        self,
        pump_id: str,
        records: list[tuple[datetime, bytes]],
        clock: Callable[[datetime], bytes],
        *,
        checksum_family: str = "sum",
        first: int = 0,
        faults: Faults | None = None,
        seed: int = 0,
        now: Callable[[], datetime],
    ) -> None:
        self.pump_id = pump_id
        self.records, self.first = records, first
        self.asked: list[bytes] = []
        self._clock, self._check, self._now = clock, checksum_family, now
        self._line = Line(faults or Faults(), seed)
        self._heard = b""

    def feed(self, data: bytes) -> bytes:
        """Answers each whole frame whose checksum is right, in one piece; is silent to all else."""
        self._heard += data
        answers = b""
        while (end := self._heard.find(b"\x03")) >= 0:
            frame, self._heard = self._heard[:end], self._heard[end + 1 :]
            inside = frame[frame.rfind(b"\x02") + 1 :]
            command, told = inside[:-2], inside[-2:]
            if b"\x02" in frame and told == checksum(command, self._check):
                self.asked.append(command)
                answers += self._line.carry(command, self._answer)
        return answers

    def _answer(self, command: bytes) -> bytes:
        moment = self._now()
        count = sum(1 for written, _ in self.records if written <= moment)
        newest = self.first + count - 1
        match command[:2], len(command):
            case b"RI", 2:
                oldest = max(self.first, newest - RING + 1)
                said = b"%08X%08X" % (oldest % RING, max(newest, self.first) % RING)
            case b"RC", 2:
                said = self._clock(moment)
            case b"RN", 2:
                said = self.pump_id.partition(":")[2].encode()
            case b"RE", 10:
                said = command[2:] + self._record(int(command[2:], 16), newest).hex().upper().encode()
            case _:
                return b""
        said = command[:2] + said
        return b"\x02" + said + checksum(said, self._check) + b"\x03"

    def _record(self, index: int, newest: int) -> bytes:
        """What is at a place of the ring: the newest record that was written there; nothing is FF."""
        number = newest - (newest - index) % RING
        return self.records[number - self.first][1] if number >= self.first and newest >= self.first else b"\xff" * 16


def simulate(
    script: Script,
    seed: int = 0,
    *,
    serial: str = "M1234567",
    faults: Faults | None = None,
    now: Callable[[], datetime] | None = None,
    checksum_family: Literal["sum", "xor"] = "sum",
    clock: Literal["relative", "absolute"] = "relative",
    form: Literal["long", "short"] = "long",
    first: int = 0,
    loaded_days: float = 90.0,
    chatter: bool = True,
) -> tuple[Pump, Truth]:
    """The pump of a script, and the truth: `checksum_family` of its frames, `clock` of its stamps, `form` of its programmes.

    `first`: the ring index of its first record; `loaded_days`: how long its counter has run when the script begins; `chatter`: records that
    mean nothing here come in between (simulators.link.Simulator has the other options). Raises InputError for a serial number that is none.
    """
    if len(serial) != 8 or not serial.isascii() or not serial.isalnum() or serial != serial.upper():
        raise InputError("A MIVA serial number is 8 capital letters and digits.", code="script")
    faults = faults or Faults()
    script = faults.happen_to(script)
    speed = 1 + faults.drift_s_per_day / 86_400

    def counter(at: datetime) -> int:
        return int(loaded_days * 86_400 + (at - script.start).total_seconds() * speed)

    def shows(at: datetime) -> datetime:
        return script.clock + (at - script.start) * speed

    def stamp(at: datetime) -> bytes:
        if clock == "relative":
            return struct.pack("<I", 0xF000_0000 | counter(at))
        t = shows(at)
        return struct.pack(">I", (t.year - 2000) << 26 | t.month << 22 | t.day << 17 | t.hour << 12 | t.minute << 6 | t.second)

    def digits(at: datetime) -> bytes:
        if clock == "relative":
            return b"%08X" % (0xF000_0000 | counter(at))
        t = shows(at)
        return b"%02X%02X%02X%02X%02X%02X" % (t.day, t.month, t.year - 2000, t.hour, t.minute, t.second)

    pump_id = f"{FAMILY}:{serial}"
    book = _Book(script, random.Random(f"miva:{seed}"), stamp, form, chatter=chatter)
    pump = Pump(
        pump_id,
        book.records,
        digits,
        checksum_family=checksum_family,
        first=first,
        faults=faults,
        seed=seed,
        now=now or still(script.end),
    )
    return pump, truth(pump_id, script, book.told)
