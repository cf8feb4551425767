"""A pump of the Bluetooth Insulin Delivery Service, record for record and byte for byte as docs/pump-formats.md §5 has it.

`Pump` keeps the history of a therapy script and answers RACP requests with notifications. What its log has no word for is not there:
KVO, demands, a new patient, the end of a limit, what a priming fills. A script of another kind of pump runs here as the basal rate.
Of what happens it writes:

- a start: operational states up to ready, therapy state to run (0303), the delivered rate if it changed or is 0
  (0099); a stop: 0303, 0099 to 0;
- a 780G writes F00B and F00A beside them, and sometimes in place of the 0303;
- a bolus: 003C and 0055 (sometimes), 005A and 0066 when it is programmed, 0069 and 0096 at its end; a fast one has no minutes;
- a set-up: ready to preparing, to priming (030C), 0395 and 039A; an alarm: 033F (sometimes with 0356), and a stop where it stops;
- a reference time at the start, when the clock is set or lost (000F), every twelve hours (000F), on a 780G every hour (F00E);
- 00FF at midnight. Every record counts whole seconds from the last reference time.
So the truth of a script has more in `flowed` than in `proved`.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import floor

from devices.contract import AlarmClass, At, Kind, Source, Target
from devices.errors import InputError
from simulators.link import Faults, Line, still, whole_second
from simulators.therapy import PumpClock, Script, Step, Truth, on_basal_pump, truth

FAMILY = "ids"
EPOCH = datetime(2005, 1, 1)  # noqa: DTZ001
"""What the clock shows after it was lost."""
MODELS = ("sfloat", "780g", "sfloat+crc", "780g+crc")

_U_PER_ML = 100
_DAY = timedelta(days=1)
_EXTENDED_S = 1800
_PAUSE, _STOP, _RUN = 0x3C, 0x33, 0x55
_OFF, _STANDBY, _PREPARING, _PRIMING, _WAITING, _READY = 0x33, 0x3C, 0x55, 0x5A, 0x66, 0x96
_SET, _PERIODIC, _LOSS = 0x33, 0x3C, 0x55
_REASONS = {_SET: "set", _PERIODIC: "periodic", _LOSS: "loss"}
_ALARMS: dict[AlarmClass, tuple[int, AlarmClass]] = {
    AlarmClass.OCCLUSION: (0x003C, AlarmClass.OCCLUSION),
    AlarmClass.EMPTY: (0x005A, AlarmClass.EMPTY),
    AlarmClass.LOW_RESERVOIR: (0x0066, AlarmClass.LOW_RESERVOIR),
    AlarmClass.BATTERY: (0x00C3, AlarmClass.BATTERY),
    AlarmClass.POWER: (0x00A5, AlarmClass.POWER),
    AlarmClass.MALFUNCTION: (0x000F, AlarmClass.MALFUNCTION),
}
_OTHER_ALARM = (0x0055, AlarmClass.OTHER)
_MAX_DELIVERY = 0x0356


def crc16(data: bytes) -> int:
    """CRC-16/MCRF4XX: polynomial 1021 reflected, from FFFF."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x8408 if crc & 1 else crc >> 1
    return crc


def _decimal(value: float, mantissa_bits: int, exponent_bits: int) -> tuple[bytes, float]:
    """IEEE 11073 bytes of a value that is not negative, as exact as they can be; and the value that they have."""
    most = (1 << (mantissa_bits - 1)) - 3
    exponent = -6
    while round(value / 10.0**exponent) > most:
        exponent += 1
    mantissa = round(value / 10.0**exponent)
    while mantissa and mantissa % 10 == 0 and exponent < 0:
        mantissa, exponent = mantissa // 10, exponent + 1
    bits = (exponent % (1 << exponent_bits)) << mantissa_bits | mantissa
    told = mantissa / 10.0**-exponent if exponent < 0 else mantissa * 10.0**exponent
    return bits.to_bytes((mantissa_bits + exponent_bits) // 8, "little"), told


def _date(time: datetime) -> bytes:
    return struct.pack("<HBBBBB", time.year, time.month, time.day, time.hour, time.minute, time.second)


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is written at true time `written`; `told`: what a right reading gives. `reference`: a reference time of this reason."""

    written: datetime
    code: int
    data: bytes
    told: Step | None
    reference: int | None = None


_LIMITED = frozenset({Kind.LIMIT_REACHED, Kind.LIMIT_CLEARED, Kind.SETTINGS_CHANGE})
"""What it knows beside basal and boluses."""


@dataclass(frozen=True, slots=True)
class _Record:
    written: datetime
    data: bytes
    told: Step | None


class _Book:
    """Turns a script into history records."""

    def __init__(self, script: Script, clock: PumpClock, chance: random.Random, *, medtronic: bool) -> None:
        self._script, self._clock, self._chance, self._medtronic = script, clock, chance, medtronic
        self._entries: list[_Entry] = []
        self._now = script.start
        self._rate_u_h = 0.0
        self._runs = self._temporary = False
        self._operation = _READY
        self._basal_u = self._bolus_u = 0.0
        self._max_bolus_u = 10.0
        self._bolus_id = self._instance = 0
        self._reference(script.start, _PERIODIC)
        for step in script.steps:
            self._pass_time(step.dark_since or step.at)
            self._now = step.at
            self._take(step)
        self._pass_time(script.end)
        self._dark = [(step.dark_since, step.at) for step in script.steps if step.dark_since is not None]

    def records(self, first_seq: int) -> list[_Record]:
        """The records by number, with periodic reference times between them."""
        written = sorted(self._entries, key=lambda entry: entry.written)
        written = [one for one in written if one.written <= self._script.end and not self._is_dark(one.written)]
        found: list[_Record] = []
        base = 0
        period = 3600 if self._medtronic else 12 * 3600

        def add(entry: _Entry) -> None:
            nonlocal base
            tick = self._tick(entry.written)
            offset = 0 if entry.reference == _LOSS else tick - base
            head = struct.pack("<HIH", entry.code, first_seq + len(found), offset)
            found.append(_Record(entry.written, head + entry.data, entry.told))
            base = base if entry.reference is None else tick

        def add_periodic(until: datetime) -> None:
            while (due := self._at(base + period)) < until:
                if self._is_dark(due):
                    return
                add(self._reference_entry(due, _PERIODIC))

        for entry in written:
            add_periodic(entry.written)
            add(entry)
        add_periodic(self._script.end)
        return found

    def _is_dark(self, at: datetime) -> bool:
        return any(went <= at < back for went, back in self._dark)

    def _tick(self, at: datetime) -> int:
        """Seconds that the pump has counted since the script began."""
        return floor((at - self._script.start).total_seconds() * self._clock.speed + 1e-6)

    def _at(self, tick: int) -> datetime:
        return self._script.start + timedelta(seconds=tick / self._clock.speed)

    # --- writing ---------------------------------------------------------------------------------------------------------

    def _write(self, at: datetime, code: int, data: bytes, kind: Kind | None = None, **told: object) -> None:
        step = Step(at=at, kind=kind or Kind.OTHER, **told)  # type: ignore[arg-type]
        self._entries.append(_Entry(at, code, data, step))

    def _reference_entry(self, at: datetime, reason: int) -> _Entry:
        shown = whole_second(self._clock.shows(at))
        told = Step(at=at, kind=Kind.CLOCK_CHANGE, reason=_REASONS[reason], to=shown)
        if self._medtronic and reason == _PERIODIC:
            return _Entry(at, 0xF00E, bytes((reason,)) + _date(shown), told, reason)
        return _Entry(at, 0x000F, bytes((reason,)) + _date(shown) + struct.pack("<bB", -20, 0), told, reason)

    def _reference(self, at: datetime, reason: int) -> None:
        self._entries.append(self._reference_entry(at, reason))

    def _short(self, value: float) -> tuple[bytes, float]:
        return _decimal(value, 12, 4)

    def _wide(self, value: float) -> tuple[bytes, float]:
        """An amount of a record that has 32-bit ones on a 780G."""
        return _decimal(value, 24, 8) if self._medtronic else self._short(value)

    # --- time ------------------------------------------------------------------------------------------------------------

    def _pass_time(self, until: datetime) -> None:
        """Midnight by midnight of the pump's clock."""
        while True:
            shown = self._clock.shows(self._now)
            midnight = shown.replace(hour=0, minute=0, second=0, microsecond=0) + _DAY
            there = self._now + (midnight - shown) / self._clock.speed
            just_after = there + timedelta(milliseconds=1)
            self._deliver(min(just_after, until))
            if just_after >= until:
                return
            basal, bolus = self._short(self._basal_u), self._short(self._bolus_u)
            day = midnight - _DAY
            data = b"\x00" + bolus[0] + basal[0] + struct.pack("<HBB", day.year, day.month, day.day)
            self._write(there, 0x00FF, data, Kind.DAILY_TOTAL)
            self._basal_u = self._bolus_u = 0.0

    def _deliver(self, until: datetime) -> None:
        if until > self._now:
            self._basal_u += self._rate_u_h * (until - self._now).total_seconds() / 3600
            self._now = until

    # --- what happens ----------------------------------------------------------------------------------------------------

    def _take(self, step: Step) -> None:
        at = step.at
        match step.kind:
            case Kind.DELIVERY_START:
                self._start(step)
            case Kind.DELIVERY_STOP:
                self._stop(at, _PAUSE if self._chance.random() < 0.5 else _STOP, 2)
            case Kind.RATE_CHANGE:
                self._end_temporary(at)
                rate = self._rate_of(step)
                if step.duration_s:
                    self._temporary = True
                    minutes = struct.pack("<H", int(step.duration_s // 60))
                    self._write(at, 0x00A5, b"\x00\x33" + self._short(rate)[0] + minutes)
                self._deliver_at(at, rate)
            case Kind.BOLUS_DELIVERED:
                self._bolus(step)
            case Kind.ALARM_RAISED:
                number, said = _ALARMS.get(step.alarm_class or AlarmClass.OTHER, _OTHER_ALARM)
                self._annunciation(at, number, 0x33, Kind.ALARM_RAISED, alarm_class=said)
                if step.stops_delivery:
                    self._stop(at, _STOP, 1)
            case Kind.ALARM_CLEARED:
                number, said = _ALARMS.get(step.alarm_class or AlarmClass.OTHER, _OTHER_ALARM)
                self._annunciation(at, number, 0x3C, Kind.OTHER)
                self._annunciation(at, number, 0x55, Kind.ALARM_CLEARED, alarm_class=said)
            case Kind.LIMIT_REACHED:
                self._annunciation(at, _MAX_DELIVERY, 0x33, Kind.LIMIT_REACHED)
            case Kind.LIMIT_CLEARED:
                self._annunciation(at, _MAX_DELIVERY, 0x55, Kind.OTHER)
            case Kind.RESERVOIR_CHANGE:
                self._stop(at, _STOP, 2)
                self._operate(at, _PREPARING)
                self._write(at, 0x0330, self._short(180.0)[0])
            case Kind.PRIMING_DONE:
                self._prime(step)
            case Kind.CLOCK_CHANGE if step.reason == "loss":
                self._rate_u_h, self._runs, self._temporary = 0.0, False, False
                self._basal_u = self._bolus_u = 0.0
                self._reference(at, _LOSS)
            case Kind.CLOCK_CHANGE:
                self._reference(at, _SET)
            case Kind.POWER_OFF | Kind.POWER_ON:
                self._rate_u_h, self._runs, self._temporary = 0.0, False, False
                self._operate(at, _OFF if step.kind is Kind.POWER_OFF else _STANDBY)
            case Kind.SETTINGS_CHANGE:
                old, self._max_bolus_u = self._max_bolus_u, self._max_bolus_u + 1
                self._write(at, 0x03FC, self._wide(old)[0] + self._wide(self._max_bolus_u)[0], Kind.SETTINGS_CHANGE)

    @staticmethod
    def _rate_of(step: Step) -> float:
        return (step.rate_ml_h if step.rate_ml_h is not None else 0.01) * _U_PER_ML

    def _start(self, step: Step) -> None:
        at = step.at
        if self._operation != _READY:
            if self._operation != _WAITING:
                self._operate(at, _WAITING)
            self._operate(at, _READY)
        self._runs = True
        rate = self._rate_of(step)
        runs_at = self._wide(rate)[1] / _U_PER_ML
        told = Step(at=at, kind=Kind.DELIVERY_START, source=Source.BASAL, rate_ml_h=runs_at)
        alone = self._medtronic and self._chance.random() < 0.5
        if not alone:
            self._entries.append(_Entry(at, 0x0303, bytes((_STOP, _RUN)), told))
        if self._medtronic:
            self._entries.append(_Entry(at, 0xF00B, b"\x02", told if alone else Step(at=at, kind=Kind.OTHER)))
        self._deliver_at(at, rate, always=rate == 0)

    def _stop(self, at: datetime, state: int, reason: int) -> None:
        self._end_temporary(at)
        if not self._runs:
            return
        self._runs = False
        alone = self._medtronic and self._chance.random() < 0.5
        if self._medtronic:
            why = {1: "alarm", 2: "user"}[reason]
            kind = Kind.DELIVERY_STOP if alone else Kind.OTHER
            said = {"source": Source.BASAL, "reason": why} if alone else {}
            self._write(at, 0xF00A, bytes((reason,)), kind, **said)
        if not alone:
            self._write(at, 0x0303, bytes((_RUN, state)), Kind.DELIVERY_STOP, source=Source.BASAL, reason="unknown")
        self._deliver_at(at, 0.0)

    def _deliver_at(self, at: datetime, rate: float, *, always: bool = False) -> None:
        """0099, if the delivered rate changes by that; a start at 0 writes it always, else nothing in the log would tell it."""
        new, told = self._wide(rate)
        old, was = self._wide(self._rate_u_h)
        self._rate_u_h = rate
        if always or told != was:
            data = b"\x01" + old + new + b"\x33"
            self._write(at, 0x0099, data, Kind.RATE_CHANGE, source=Source.BASAL, rate_ml_h=told / _U_PER_ML)

    def _end_temporary(self, at: datetime) -> None:
        if self._temporary:
            self._temporary = False
            self._write(at, 0x00AA, struct.pack("<BBHB", 0, 0x33, 60, 0x3C))

    def _operate(self, at: datetime, state: int) -> None:
        old, self._operation = self._operation, state
        kind, said = Kind.OTHER, {}
        if state == _PREPARING:
            kind = Kind.RESERVOIR_CHANGE
        elif state == _OFF:
            kind = Kind.POWER_OFF
        elif old == _OFF:
            kind = Kind.POWER_ON
        elif old == _READY:
            kind, said = Kind.DELIVERY_STOP, {"source": Source.BASAL, "reason": "standby"}
        self._write(at, 0x030C, bytes((old, state)), kind, **said)

    def _annunciation(self, at: datetime, number: int, status: int, kind: Kind, **said: object) -> None:
        """033F, and sometimes a second part, which tells nothing more."""
        self._instance += status == 0x33
        long = self._chance.random() < 0.3
        aux = struct.pack("<HH", 7, 8) if long else b""
        self._write(at, 0x033F, struct.pack("<BHHB", 3 if long else 0, self._instance, number, status) + aux, kind, **said)
        if long:
            self._entries.append(_Entry(at, 0x0356, struct.pack("<BH", 1, 9), None))

    def _bolus(self, step: Step) -> None:
        """Programmed when it begins; of one that takes half an hour or more the minutes are told, of others only when it ended."""
        self._bolus_id += 1
        at, lasts = step.at, step.duration_s or 0.0
        end = at + timedelta(seconds=lasts)
        given = (step.volume_ml or 0.0) * _U_PER_ML
        asked = max(given, (step.programmed_ml if step.programmed_ml is not None else step.volume_ml or 0.0) * _U_PER_ML)
        self._bolus_u += given
        if self._chance.random() < 0.5:
            parts = self._short(asked)[0] + self._short(0.0)[0] * 3
            self._write(at, 0x003C, parts)
            self._write(at, 0x0055, parts)
        extended = lasts >= _EXTENDED_S
        minutes = int(lasts // 60) if extended else 0
        programmed, wanted = self._bolus_data(asked, minutes, extended=extended)
        self._write(at, 0x005A, programmed, Kind.BOLUS_REQUESTED, source=Source.PRIMARY, programmed_ml=wanted)
        self._entries.append(_Entry(at, 0x0066, b"\x14\x33", None))
        delivered, volume = self._bolus_data(given, minutes, extended=extended)
        took = minutes * 60.0 if minutes else lasts
        told = Step(
            at=end - timedelta(seconds=took),
            kind=Kind.BOLUS_DELIVERED,
            source=Source.PRIMARY,
            volume_ml=volume,
            programmed_ml=wanted,
            duration_s=took if volume else None,
            names=At.END,
        )
        self._entries.append(_Entry(end, 0x0069, delivered, told))
        ended = 0x3C if given < asked else 0x0F if self._medtronic else 0x33
        self._entries.append(_Entry(end, 0x0096, struct.pack("<BIBB", 3, 0, 0x33, ended), None))

    def _bolus_data(self, units: float, minutes: int, *, extended: bool) -> tuple[bytes, float]:
        """The 13 or 9 bytes of 005A and 0069; and the amount that they tell, mL."""
        (amount, told), (nothing, _) = self._wide(units), self._wide(0.0)
        head = struct.pack("<HB", self._bolus_id, 0x3C if extended else 0x33)
        parts = nothing + amount if extended else amount + nothing
        return head + parts + struct.pack("<H", minutes), told / _U_PER_ML

    def _prime(self, step: Step) -> None:
        at = step.at
        if self._operation != _PRIMING:
            self._operate(at, _PRIMING)
        delivered = (step.volume_ml or 0.0) * _U_PER_ML
        wanted = (step.programmed_ml or 0.0) * _U_PER_ML or delivered
        programmed, asked = self._short(wanted)
        self._write(at, 0x0395, programmed, Kind.PRIMING_STARTED, target=Target.UNKNOWN, programmed_ml=asked / _U_PER_ML)
        reason = step.reason if step.reason in ("aborted", "error") else "amount_reached"
        amount, given = self._short(delivered)
        data = b"\x00" + amount + bytes(({"aborted": 0x33, "error": 0x55, "amount_reached": 0x3C}[reason],))
        said = {"target": Target.UNKNOWN, "volume_ml": given / _U_PER_ML, "reason": reason}
        self._write(at, 0x039A, data, Kind.PRIMING_DONE, **said)


_REPORT, _DELETE, _ABORT, _COUNT = 0x33, 0x3C, 0x55, 0x5A
_ALL, _UP_TO, _FROM, _RANGE, _FIRST, _LAST = 0x33, 0x3C, 0x55, 0x5A, 0x66, 0x69
_SUCCESS, _UNKNOWN, _BAD_OPERATOR, _BAD_OPERAND, _NONE = 0xF0, 0x02, 0x03, 0x05, 0x06


class Pump:
    """The pump at the moment `now`: only what is written by then is in its history, and of that the newest `keeps` records.

    `loses`: the share of notifications that do not come (QoS 0). `chatter`: a retained notification comes before the first answer, and
    other services speak on the same characteristic. `forbidden` collects every request that does not only read: it stays empty.
    """

    def __init__(
        self,
        pump_id: str,
        records: Sequence[_Record],
        clock: PumpClock,
        *,
        crc: bool,
        faults: Faults,
        seed: int,
        first_seq: int,
        loses: float,
        chatter: bool,
        tells_clock: bool,
        keeps: int | None,
        now: Callable[[], datetime],
    ) -> None:
        self.pump_id = pump_id
        self.forbidden: list[bytes] = []
        self._records, self._clock, self._now, self._crc = records, clock, now, crc
        self._first_seq, self._loses, self._tells_clock, self._keeps = first_seq, loses, tells_clock, keeps
        self._line = Line(faults, seed, nak=b"< 0f0f3308\n")
        self._repeats = faults.duplicates
        self._chance = random.Random(f"ids pump:{seed}")
        self._chatter = chatter
        self._retained: list[tuple[str, bytes]] = []
        self._host = b""
        self._counter = 0

    def feed(self, data: bytes) -> bytes:
        """Takes request lines of the host in any pieces (`> hex`, `? 2a2b`), gives the lines of what comes back. Raises UnpluggedError."""
        self._host += data
        *lines, self._host = self._host.split(b"\n")
        return b"".join(self._line.carry(line, self._lines) for line in lines if line)

    def _lines(self, request: bytes) -> bytes:
        if request == b"? 2a2b":
            return b"T " + self.current_time().hex().encode() + b"\n" if self._tells_clock else b""
        if not request.startswith(b"> "):
            return b""
        return b"".join(f"{letter} {value.hex()}\n".encode() for letter, value in self.answer(bytes.fromhex(request[2:].decode())))

    def answer(self, request: bytes) -> list[tuple[str, bytes]]:
        """What comes of a RACP request: ("H", a history notification) and ("<", an indication of RACP)."""
        body = request
        if self._crc:
            if len(request) < 5 or crc16(request[:-2]) != int.from_bytes(request[-2:], "little"):
                return []
            body = request[:-3]
        found, answer = self._respond(body)
        sent: list[tuple[str, bytes]] = [("H", value) for value in found if self._chance.random() >= self._loses]
        sent = [one for one in sent for _ in range(2 if self._chance.random() < self._repeats else 1)]
        if self._chatter:
            sent = [*self._retained, ("<", b"\x06\x00\x01\x01"), *sent, ("<", b"\x01\x01")]
            self._retained = [one for one in sent if one[0] == "H"][-1:]
        return [*sent, ("<", self._protected(answer))]

    def current_time(self) -> bytes:
        """The value of Current Time: date time, day of the week, 1/256 s, no reason."""
        shown = self._clock.shows(self._now())
        return _date(shown) + bytes((shown.isoweekday(), shown.microsecond * 256 // 1_000_000, 0))

    def file(self) -> bytes:
        """Its whole history as lines, in order."""
        return b"".join(f"H {value.hex()}\n".encode() for value in self._history().values())

    def _history(self) -> dict[int, bytes]:
        moment = self._now()
        there = [(self._first_seq + i, record.data) for i, record in enumerate(self._records) if record.written <= moment]
        kept = there if self._keeps is None else there[-self._keeps :]
        return {seq: data + crc16(data).to_bytes(2, "little") if self._crc else data for seq, data in kept}

    def _protected(self, answer: bytes) -> bytes:
        if not self._crc:
            return answer
        answer += bytes((self._counter,))
        self._counter = (self._counter + 1) % 256
        return answer + crc16(answer).to_bytes(2, "little")

    def _respond(self, body: bytes) -> tuple[list[bytes], bytes]:
        opcode = body[0] if body else 0
        if opcode not in (_REPORT, _COUNT, _ABORT):
            self.forbidden.append(body)
            return [], bytes((0x0F, 0x0F, opcode, _UNKNOWN))
        if opcode == _ABORT:
            return [], bytes((0x0F, 0x0F, _ABORT, _SUCCESS))
        chosen, code = self._chosen(body)
        if opcode == _COUNT and code in (_SUCCESS, _NONE):
            return [], b"\x66\x0f" + struct.pack("<I", len(chosen))
        return chosen, bytes((0x0F, 0x0F, opcode, code))

    def _chosen(self, body: bytes) -> tuple[list[bytes], int]:
        """The records that an operator names, and the response code."""
        history = self._history()
        if len(body) < 3 or body[2] != 0x0F or len(body[3:]) % 4:
            return [], _BAD_OPERAND
        operator, numbers = body[1], [one for (one,) in struct.iter_unpack("<I", body[3:])]
        if len(numbers) != {_ALL: 0, _FIRST: 0, _LAST: 0, _UP_TO: 1, _FROM: 1, _RANGE: 2}.get(operator, -1):
            return [], _BAD_OPERATOR if operator not in (_ALL, _FIRST, _LAST, _UP_TO, _FROM, _RANGE) else _BAD_OPERAND
        seqs = list(history)
        match operator:
            case 0x66:
                seqs = seqs[:1]
            case 0x69:
                seqs = seqs[-1:]
            case 0x3C:
                seqs = [seq for seq in seqs if seq <= numbers[0]]
            case 0x55:
                seqs = [seq for seq in seqs if seq >= numbers[0]]
            case 0x5A:
                seqs = [seq for seq in seqs if numbers[0] <= seq <= numbers[1]]
        return [history[seq] for seq in seqs], _SUCCESS if seqs else _NONE


def simulate(
    script: Script,
    seed: int = 0,
    *,
    serial: str = "B1001",
    model: str = "sfloat",
    faults: Faults | None = None,
    now: Callable[[], datetime] | None = None,
    first_seq: int = 52_000,
    loses: float = 0.0,
    chatter: bool = False,
    tells_clock: bool = True,
    keeps: int | None = None,
    noise_seed: int | None = None,
) -> tuple[Pump, Truth]:
    """The pump of a script, and the truth.

    `model`: one of MODELS; `noise_seed`: the chance of its link, where that is not `seed`; the other options are those of `Pump` and of
    simulators.link.Simulator. Raises InputError for a model that there is not.
    """
    if model not in MODELS:
        raise InputError(
            f"There is no model {model!r} of an insulin delivery service.", do=f"Use one of: {', '.join(MODELS)}.", code="model"
        )
    faults = faults or Faults()
    script = on_basal_pump(faults.happen_to(script), also=_LIMITED)
    pump_id = f"{FAMILY}:{serial}"
    clock = PumpClock(script, reset_to=EPOCH, drift_s_per_day=faults.drift_s_per_day)
    book = _Book(script, clock, random.Random(f"ids:{seed}"), medtronic=model.startswith("780g"))
    records = book.records(first_seq)
    pump = Pump(
        pump_id,
        records,
        clock,
        crc=model.endswith("+crc"),
        faults=faults,
        seed=seed if noise_seed is None else noise_seed,
        first_seq=first_seq,
        loses=loses,
        chatter=chatter,
        tells_clock=tells_clock,
        keeps=keeps,
        now=now or still(script.end),
    )
    return pump, truth(pump_id, script, [record.told for record in records if record.told is not None])
