"""A Tandem t:slim X2 and the log it keeps, byte for byte as docs/pump-formats.md §7 has it.

The pump numbers its records without holes and writes them as 26 bytes; it hands them out little-endian, big-endian (as the maker's
cloud does) or in Bluetooth stream messages, as they are or as text. What it has no word for is not there: KVO, limits, demands, a new
patient. A script of another kind of pump runs here as the basal rate, between resume and suspend. Of what happens it writes:

- a resume: 12, then 3 (resumed) and 279 of the same second; a suspend: 3 (suspended), 11, 279; an alarm that stops: 5, then a suspend;
- a bolus: 64, 65, 66, 55 (59 of an extended one) and 280 (started), and at its end 280 (done), then 20 (21);
- a clock that is set: 13 with the new time of day, then 14 if the date is another; one that was lost: alarm 14 and 99, from 2008 on;
- every hour 81, the sum of basal since midnight; at midnight 90 behind it.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from devices.contract import AlarmClass, Anchor, At, Capture, Kind, Source, Target
from devices.errors import InputError
from simulators.link import Faults, cap, still, whole_second
from simulators.therapy import PumpClock, Script, Step, Truth, on_basal_pump, truth

FAMILY = "tandem"
EPOCH = datetime(2008, 1, 1)  # noqa: DTZ001
"""Second 0 of every record, and what the clock shows after it was lost."""
FORMS = ("little", "big", "messages")
TEXTS = ("", "hex", "base64")

_U_PER_ML = 100
_HALF = 0xFFFF
_HOUR = timedelta(hours=1)
_EXTENDED_S = 900
_ALARMS = {AlarmClass.OCCLUSION: 2, AlarmClass.EMPTY: 8, AlarmClass.BATTERY: 12, AlarmClass.CLOCK_LOST: 14, AlarmClass.NO_DELIVERY: 0}
_ALERT = {AlarmClass.LOW_RESERVOIR: 0}
_OTHER_ALERT = 11
_TOLD_ALARM = frozenset({AlarmClass.OCCLUSION, AlarmClass.EMPTY, AlarmClass.BATTERY, AlarmClass.CLOCK_LOST})
_STOPPED_BY = {"user": 0, "alarm": 1, "malfunction": 2}
_FILLED = {"aborted": 0, "error": 2, "amount_reached": 3}
_NEW_SEGMENT, _TEMPORARY, _SUSPENDED, _RESUMED = 1 << 0, 1 << 2, 1 << 4, 1 << 5
_BASAL_OF_PROFILE, _BASAL_OF_TEMPORARY = 1, 2
_PER_MESSAGE = 9


def crc16(data: bytes) -> int:
    """CRC-16 CCITT: polynomial 1021, from FFFF."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021) & 0xFFFF if crc & 0x8000 else crc << 1
    return crc


@dataclass(frozen=True, slots=True)
class _Record:
    """A record written at true time `written`, its 16 bytes big-endian; `told`: what a right reading of it gives."""

    written: datetime
    event: int
    shown: datetime
    data: bytes
    told: Step

    def packed(self, seq: int, order: str) -> bytes:
        """Its 26 bytes: little-endian turns the numbers of the head and every word of the data."""
        seconds = int((self.shown - EPOCH).total_seconds())
        if order == "big":
            return struct.pack(">HII", self.event, seconds, seq) + self.data
        turned = b"".join(self.data[at : at + 4][::-1] for at in range(0, 16, 4))
        return struct.pack("<HII", self.event, seconds, seq) + turned


class _Book:
    """Turns a script into records."""

    def __init__(self, script: Script, clock: PumpClock) -> None:
        self._clock = clock
        self._records: list[_Record] = []
        self._now = script.start
        self._rate_u_h: float | None = None
        self._sum_u = 0.0
        self._bolus_id = 1000
        for step in script.steps:
            self._pass_time(step.dark_since or step.at)
            self._now = step.at
            self._take(step)
        self._pass_time(script.end)
        dark = [(step.dark_since, step.at) for step in script.steps if step.dark_since is not None]
        written = sorted(self._records, key=lambda record: record.written)
        self.records = [one for one in written if not any(went <= one.written < back for went, back in dark)]

    def _write(self, at: datetime, event: int, told: Step, layout: str = "", *values: float, shown: datetime | None = None) -> None:
        data = struct.pack(f">{layout}", *values).ljust(16, b"\0")
        self._records.append(_Record(at, event, whole_second(shown or self._clock.shows(at)), data, told))

    # --- time ------------------------------------------------------------------------------------------------------------

    def _pass_time(self, until: datetime) -> None:
        """Hour by hour of the pump's clock."""
        while True:
            shown = self._clock.shows(self._now)
            hour = shown.replace(minute=0, second=0, microsecond=0) + _HOUR
            there = self._now + (hour - shown) / self._clock.speed + timedelta(milliseconds=1)
            if there >= until:
                self._deliver(until)
                return
            self._deliver(there)
            if hour.hour == 0:
                self._total(there, hour - timedelta(seconds=1))
                self._sum_u = 0.0
                self._write(there, 90, Step(at=there, kind=Kind.OTHER), "f", self._rate_u_h or 0.0)
            else:
                self._total(there, hour)

    def _deliver(self, until: datetime) -> None:
        if until > self._now:
            self._sum_u += (self._rate_u_h or 0.0) * (until - self._now).total_seconds() / 3600
            self._now = until

    def _total(self, at: datetime, shown: datetime) -> None:
        told = Step(at=at, kind=Kind.DAILY_TOTAL, volume_ml=self._sum_u / _U_PER_ML)
        self._write(at, 81, told, "fffHBB", self._sum_u, self._rate_u_h or 0.0, 0.0, 3900, 64, 0, shown=shown)

    # --- what happens ----------------------------------------------------------------------------------------------------

    def _take(self, step: Step) -> None:
        at = step.at
        match step.kind:
            case Kind.DELIVERY_START:
                rate = step.rate_ml_h if step.rate_ml_h is not None else 0.01
                self._rate_u_h = rate * _U_PER_ML
                self._write(at, 12, replace(step, rate_ml_h=rate), "IHH", 0, 0, 180)
                self._rate(at, _RESUMED, _BASAL_OF_PROFILE)
            case Kind.DELIVERY_STOP:
                self._suspend(at, step.reason or "user")
            case Kind.RATE_CHANGE:
                self._rate_u_h = (step.rate_ml_h if step.rate_ml_h is not None else 0.01) * _U_PER_ML
                temporary = step.duration_s is not None
                self._rate(at, _TEMPORARY if temporary else _NEW_SEGMENT, _BASAL_OF_TEMPORARY if temporary else _BASAL_OF_PROFILE)
            case Kind.BOLUS_DELIVERED:
                self._bolus(step)
            case Kind.ALARM_RAISED:
                self._alarm(step)
            case Kind.ALARM_CLEARED:
                event, number = self._alarm_record(step)
                self._write(at, 28 if event == 5 else 26, Step(at=at, kind=Kind.ALARM_CLEARED), "I", number)
            case Kind.RESERVOIR_CHANGE:
                self._suspend(at, "user")
                self._write(at, 33, Step(at=at, kind=Kind.RESERVOIR_CHANGE), "If", 200, 201.5)
            case Kind.PRIMING_DONE:
                self._fill(step)
            case Kind.CLOCK_CHANGE if step.reason == "loss":
                self._rate_u_h, self._sum_u = None, 0.0
                self._alarm_told(at, 5, 14, AlarmClass.CLOCK_LOST)
                self._write(at, 99, Step(at=at, kind=Kind.POWER_ON), "IIII", 1, 0, 0, 0)
            case Kind.CLOCK_CHANGE:
                self._set_clock(step)
            case Kind.POWER_OFF | Kind.POWER_ON:
                self._rate_u_h = None
                self._write(at, 53 if step.kind is Kind.POWER_OFF else 99, Step(at=at, kind=step.kind))

    def _rate(self, at: datetime, change: int, source: int) -> None:
        """3 and, if it can hold the rate, 279."""
        rate = self._rate_u_h or 0.0
        told = Step(at=at, kind=Kind.RATE_CHANGE, source=Source.BASAL, rate_ml_h=rate / _U_PER_ML)
        self._write(at, 3, told, "fffBBH", rate, rate, 15.0, 0, change, 1)
        if round(rate * 1000) <= _HALF:
            self._write(at, 279, told, "HHHH", 0, source, _HALF, round(rate * 1000))

    def _suspend(self, at: datetime, reason: str) -> None:
        if self._rate_u_h is None:
            return
        zero = Step(at=at, kind=Kind.RATE_CHANGE, source=Source.BASAL, rate_ml_h=0.0)
        self._write(at, 3, zero, "fffBBH", 0.0, self._rate_u_h, 15.0, 0, _SUSPENDED, 1)
        stop = Step(at=at, kind=Kind.DELIVERY_STOP, source=Source.BASAL, reason=reason if reason in _STOPPED_BY else "unknown")
        self._write(at, 11, stop, "IBBH", 0, 0, _STOPPED_BY.get(reason, 6), 180)
        self._write(at, 279, zero, "HHHH", 0, 0, _HALF, 0)
        self._rate_u_h = None

    def _bolus(self, step: Step) -> None:
        self._bolus_id += 1
        number, at, end = self._bolus_id, step.at, step.at + timedelta(seconds=step.duration_s or 0)
        given = (step.volume_ml or 0.0) * _U_PER_ML
        asked = (step.volume_ml if step.programmed_ml is None else step.programmed_ml or 0.0) or 0.0
        asked *= _U_PER_ML
        nothing = Step(at=at, kind=Kind.OTHER)
        extended = (step.duration_s or 0) >= _EXTENDED_S
        self._write(at, 64, nothing, "BBHHHfI", 0, 2, number, 0, 0, 0.0, 0)
        self._write(at, 65, nothing, "BBHHHHHBBBB", 100, 0, number, 0, 0, 110, 30, 0, 1, 0, 0)
        requested = Step(at=at, kind=Kind.BOLUS_REQUESTED, source=Source.PRIMARY, programmed_ml=asked / _U_PER_ML)
        self._write(at, 66, requested, "HHfff", 0, number, asked, 0.0, asked)
        self._write(at, 59 if extended else 55, nothing, "HHff", 0, number, 0.0, asked)
        later = round(asked * 1000) if extended else 0
        now = round(asked * 1000) - later
        small = max(now, later) <= _HALF
        if small:
            self._write(at, 280, nothing, "BBHHBBHHHH", 1, 1, number, now, 0, 1, 0, later, 0, 0)
            done = "BBHHBBHHHH"
            self._write(end, 280, replace(nothing, at=end), done, 1, 0, number, now, 0, 1, 0, later, round(given * 1000), 0)
        told = replace(step, source=Source.PRIMARY, names=At.END, volume_ml=given / _U_PER_ML, programmed_ml=asked / _U_PER_ML)
        self._write(end, 21 if extended else 20, told, "HHfff", number, 3 if given >= asked else 0, 0.0, given, asked)

    @staticmethod
    def _alarm_record(step: Step) -> tuple[int, int]:
        """Event and number of an alarm or alert."""
        if step.alarm_class in _ALARMS:
            return 5, _ALARMS[step.alarm_class]
        if step.stops_delivery:
            return 5, _ALARMS[AlarmClass.NO_DELIVERY]
        return 4, _ALERT.get(step.alarm_class or AlarmClass.OTHER, _OTHER_ALERT)

    def _alarm(self, step: Step) -> None:
        if step.alarm_class is AlarmClass.MALFUNCTION and step.stops_delivery:
            self._rate_u_h = None
            told = Step(at=step.at, kind=Kind.ALARM_RAISED, alarm_class=AlarmClass.MALFUNCTION, stops_delivery=True)
            self._write(step.at, 6, told, "I", 1)
            return
        event, number = self._alarm_record(step)
        self._alarm_told(step.at, event, number, step.alarm_class)
        if step.stops_delivery:
            self._suspend(step.at, "alarm")

    def _alarm_told(self, at: datetime, event: int, number: int, alarm_class: AlarmClass | None) -> None:
        shown = alarm_class if event == 5 and alarm_class in _TOLD_ALARM else AlarmClass.OTHER
        self._write(at, event, Step(at=at, kind=Kind.ALARM_RAISED, alarm_class=shown), "I", number)

    def _fill(self, step: Step) -> None:
        cannula = step.target is Target.CANNULA
        reason = step.reason if step.reason in _FILLED else "amount_reached"
        told = replace(step, target=Target.CANNULA if cannula else Target.TUBING, reason=reason, programmed_ml=None)
        size = (step.volume_ml or 0.0) * _U_PER_ML
        self._write(step.at, 61 if cannula else 63, told, "fI", size, _FILLED[reason or "amount_reached"])

    def _set_clock(self, step: Step) -> None:
        """The time of day first, on the old date, then the date."""
        old, new = self._clock.showed(step.at), self._clock.shows(step.at)
        between = datetime.combine(old.date(), new.time())
        told = Step(at=step.at, kind=Kind.CLOCK_CHANGE, reason="set", to=between)
        self._write(step.at, 13, told, "III", _day_ms(old), _day_ms(new), 0, shown=between)
        if between.date() != new.date():
            days = [(day - EPOCH.date()).days for day in (old.date(), new.date())]
            self._write(step.at, 14, replace(told, to=new), "III", *days, 0, shown=new)


def _day_ms(time: datetime) -> int:
    return int((time - time.replace(hour=0, minute=0, second=0, microsecond=0)) / timedelta(milliseconds=1))


def _settled(records: Sequence[_Record]) -> list[Step]:
    """What records tell together: of the sums of basal, only one that no other follows before the day, or the clock, ends."""
    told: list[Step] = []
    followed = False
    for record in reversed(records):
        step = record.told
        if record.event == 81:
            step = replace(step, kind=Kind.OTHER, volume_ml=None) if followed else step
            followed = True
        elif record.event == 90 or step.alarm_class is AlarmClass.CLOCK_LOST:
            followed = False
        told.append(step)
    return told[::-1]


class Pump:
    """The pump at the moment `now`: only what is written by then is in its log.

    `form`: the records "little"-endian, "big"-endian, or as Bluetooth "messages", newest first; `text`: as they are, or in lines of
    "hex" or "base64", one a record or message.
    """

    def __init__(
        self,
        pump_id: str,
        records: Sequence[_Record],
        clock: PumpClock,
        *,
        faults: Faults,
        seed: int,
        batch: int,
        form: str,
        text: str,
        first_seq: int,
        now: Callable[[], datetime],
    ) -> None:
        self.pump_id = pump_id
        self._records, self._clock, self._now = records, clock, now
        self._faults, self._seed, self._batch = faults, seed, batch
        self._form, self._text, self._first_seq = form, text, first_seq

    def captures(self) -> list[bytes]:
        """The `cap` payloads of its log, in batches of records, with the faults of its link."""
        return [cap(capture) for capture in self.batches()]

    def batches(self) -> list[Capture]:
        """The same as captures; the clock is read behind the last one."""
        size = self._there()
        whole = [
            Capture(
                data=self._written(start, min(start + self._batch, size)),
                family=FAMILY,
                pump_id=self.pump_id,
                anchor=self.anchor() if start + self._batch >= size else None,
            )
            for start in range(0, size, self._batch)
        ]
        return self._faults.strike(whole, self._seed)

    def file(self) -> bytes:
        """Its whole log as one file."""
        return self._written(0, self._there())

    def anchor(self) -> Anchor:
        """Its clock and UTC, read now."""
        moment = self._now()
        return Anchor(pump_clock=whole_second(self._clock.shows(moment)), utc=whole_second(moment.astimezone(UTC)), round_trip_ms=40)

    def _there(self) -> int:
        moment = self._now()
        return sum(1 for record in self._records if record.written <= moment)

    def _written(self, start: int, stop: int) -> bytes:
        order = "big" if self._form == "big" else "little"
        parts = [self._records[i].packed(self._first_seq + i, order) for i in range(start, stop)]
        if self._form == "messages":
            parts = _messages(parts[::-1])
        if not self._text:
            return b"".join(parts)
        return b"".join((part.hex().encode() if self._text == "hex" else base64.b64encode(part)) + b"\n" for part in parts)


def _messages(records: Sequence[bytes]) -> list[bytes]:
    """Stream messages of up to nine records, each behind the two bytes of its packet."""
    messages = []
    for number, start in enumerate(range(0, len(records), _PER_MESSAGE)):
        some = records[start : start + _PER_MESSAGE]
        transaction = number % 256
        body = bytes((0x81, transaction, 2 + 26 * len(some), len(some), 3)) + b"".join(some)
        messages.append(bytes((0, transaction)) + body + struct.pack("<H", crc16(body)))
    return messages


def simulate(
    script: Script,
    seed: int = 0,
    *,
    serial: str = "T1001",
    faults: Faults | None = None,
    now: Callable[[], datetime] | None = None,
    batch: int = 50,
    form: str = "messages",
    text: str = "",
    first_seq: int = 180_001,
) -> tuple[Pump, Truth]:
    """The pump of a script, and the truth.

    `batch` records go into one capture, in a `form` and `text` of `Pump`; the log begins at `first_seq`. simulators.link.Simulator
    has the other options. Raises InputError for a form or text that there is not.
    """
    if form not in FORMS or text not in TEXTS:
        raise InputError(f"There is no Tandem log as {form!r} {text!r}.", do=f"Use one of {FORMS} and one of {TEXTS}.", code="form")
    faults = faults or Faults()
    script = on_basal_pump(faults.happen_to(script))
    pump_id = f"{FAMILY}:{serial}"
    clock = PumpClock(script, reset_to=EPOCH, drift_s_per_day=faults.drift_s_per_day)
    records = [record for record in _Book(script, clock).records if record.written <= script.end]
    pump = Pump(
        pump_id,
        records,
        clock,
        faults=faults,
        seed=seed,
        batch=batch,
        form=form,
        text=text,
        first_seq=first_seq,
        now=now or still(script.end),
    )
    return pump, truth(pump_id, script, _settled(records))
