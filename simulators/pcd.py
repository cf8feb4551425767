r"""A PCA or large-volume pump behind a gateway that speaks IHE PCD, as docs/pump-formats.md §2 and §6 have it.

What delivers is one state, looked at after every second in which something happened: each source that stopped, or runs at another rate,
is a PCD-10 stop (transitioning where the drug goes on), then each that begins is a start. Doses are deliveries of their own source,
with the continuous one stopped meanwhile; KVO is a start whose delivery status is kvo; an alarm is a PCD-04, and the stop says that it
stopped. Every hour a PCD-01 shows the pump as it is. A rate of 0 delivers nothing and is not told; nor are fills, reservoirs, demands,
and clocks that are set: the gateway keeps UTC and writes times in the zone of the ward. Power that is lost is told by silence, and by
a change of the device's time when it is back. How a gateway spells its terms differs by seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from itertools import groupby

from devices.contract import AlarmClass, Capture, Kind, Source
from simulators.link import Faults, cap, still
from simulators.therapy import Script, Step, Truth, truth

FAMILY = "pcd"
PROFILES = {"R42": "IHE_PCD_010^IHE PCD^1.3.6.1.4.1.19376.1.6.4.10^ISO", "R40": "IHE_PCD_ACM_001^IHE PCD^1.3.6.1.4.1.19376.1.6.4.4^ISO"}
PROFILES["R01"] = "IHE_PCD_001^IHE PCD^1.3.6.1.4.1.19376.1.6.4.1^ISO"
STRUCTURES = {"R42": "ORU_R01", "R40": "ORU_R40", "R01": "ORU_R01"}

_KVO_ML_H = 0.1
_SECOND = timedelta(seconds=1)
_QUARTER = timedelta(minutes=15)
_ML_H = "265266^MDC_DIM_MILLI_L_PER_HR^MDC^mL/h^mL/h^UCUM"
_ML = "263762^MDC_DIM_MILLI_L^MDC^mL^mL^UCUM"
_SEC = "264320^MDC_DIM_X_SEC^MDC^s^s^UCUM"
_REASONS = {"user": "by-clinician", "alarm": "alarming", "powered_off": "powered-off", "between_doses": "between-doses"}
_REASONS |= {"switching": "switching-source", "standby": "standby"}
_GROUPS = {Source.PRIMARY: 2, Source.SECONDARY: 3, Source.CLINICIAN: 4, Source.PCA: 5, Source.LOADING: 6, Source.INTERMITTENT: 7}
_ALARMS = {AlarmClass.OCCLUSION: "196940^MDC_EVT_FLUID_LINE_OCCL^MDC", AlarmClass.BATTERY: "0^MDC_EVT_BATT_DEPL^MDC"}
_GENERAL_ALARM = "196670^MDC_EVT_PUMP_GENERAL_ALARM^MDC"
_EVENTS = {
    Kind.DELIVERY_START: "197288^MDC_EVT_PUMP_DELIV_START^MDC",
    Kind.DELIVERY_STOP: "0^MDC_EVT_PUMP_DELIV_STOP^MDC",
    Kind.DELIVERY_COMPLETE: "197292^MDC_EVT_PUMP_DELIV_COMP^MDC",
    Kind.NEW_PATIENT: "0^MDC_EVT_PATIENT_CHANGE^MDC",
    Kind.SETTINGS_CHANGE: "0^MDC_EVT_PUMP_PROG_CLEARED^MDC",
    Kind.COUNTERS_CLEARED: "0^MDC_EVT_PUMP_VOL_COUNTERS_CLEARED^MDC",
    Kind.DEVICE_LINK: "0^MDC_EVT_COMM_STATUS_CHANGE^MDC",
    Kind.CLOCK_CHANGE: "0^MDC_EVT_DEVICE_TIME_CHANGED^MDC",
}
_HALTS = frozenset({Kind.RESERVOIR_CHANGE, Kind.POWER_OFF, Kind.POWER_ON, Kind.NEW_PATIENT})
_WORDS = frozenset({Kind.NEW_PATIENT, Kind.SETTINGS_CHANGE, Kind.COUNTERS_CLEARED, Kind.DEVICE_LINK})
_DOSES = frozenset({Source.PCA, Source.CLINICIAN, Source.LOADING})


@dataclass(frozen=True, slots=True)
class _Message:
    """A message of what happened at `at`: what it tells, whether it is of the first of its second, and its OBX segments."""

    at: datetime
    trigger: str
    told: Step
    first: bool
    segments: tuple[str, ...]


@dataclass(slots=True)
class _Running:
    """A source that delivers: its rate, and since when."""

    rate_ml_h: float | None
    since: datetime

    def given(self, at: datetime) -> float | None:
        """What it gave in this segment, mL."""
        return None if self.rate_ml_h is None else self.rate_ml_h * (at - self.since).total_seconds() / 3600


@dataclass(slots=True)
class _Dose:
    source: Source
    rate_ml_h: float | None
    until: datetime


@dataclass(slots=True)
class _Style:
    """How a gateway writes: draft numbers, short names, how lines are wrapped."""

    draft: bool
    short: bool
    wraps: random.Random | None

    def term(self, code: int, name: str) -> str:
        """An OBX-3."""
        return f"{0 if self.draft else code}^{name.replace('MDC_DEV_PUMP_', 'MDC_PUMP_') if self.short else name}^MDC"

    def obx(self, number: int, kind: str, term: str, place: str, value: str = "", unit: str = "", more: str = "") -> str:
        """An OBX segment."""
        segment = f"OBX|{number}|{kind}|{term}|{place}|{value}|{unit}|||||{'R' if kind else 'X'}{more}"
        if self.wraps is None or self.wraps.random() > 0.2:
            return segment
        cut = self.wraps.randrange(12, len(segment) - 1)
        return f"{segment[:cut]}\r{segment[cut:]}" if " " not in segment[cut - 1 : cut + 1] else segment


@dataclass(slots=True)
class _Book:
    """Turns a script into messages."""

    style: _Style
    device: str
    script: Script
    snapshot: timedelta | None
    messages: list[_Message] = field(default_factory=list)
    base: dict[Source, float | None] = field(default_factory=dict)
    running: dict[Source, _Running] = field(default_factory=dict)
    dose: _Dose | None = None
    kvo: bool = False
    limited: bool = False
    why: str = "user"
    completed: set[Source] = field(default_factory=set)
    total: float = 0.0

    def write(self) -> list[_Message]:
        """All messages, in the order in which the log has them."""
        now = self.script.start
        for _, together in groupby(self.script.steps, key=lambda step: step.at.replace(microsecond=0)):
            steps = list(together)
            at = steps[0].at
            self._pass(now, min([at, *(step.dark_since for step in steps if step.dark_since)]))
            self._take(steps)
            now = at
        self._pass(now, self.script.end)
        order = sorted(enumerate(self.messages), key=lambda one: (one[1].at.replace(microsecond=0), not one[1].first, one[0]))
        return [message for _, message in order]

    # --- time ----------------------------------------------------------------------------------------------------------------

    def _pass(self, now: datetime, until: datetime) -> None:
        """What happens by itself up to a moment: doses end, and the pump is shown."""
        while True:
            due = [self.dose.until] if self.dose else []
            if self.snapshot is not None:
                due.append(now + self.snapshot - (now - self.script.start) % self.snapshot)
            if not due or min(due) >= until:
                break
            now = min(due)
            if self.dose and self.dose.until <= now:
                self.dose = None
                self._settle(now, [])
            else:
                self._show(now)

    def _take(self, steps: Sequence[Step]) -> None:
        at = steps[0].at
        if self.dose and self.dose.until <= at:
            self.dose = None
        self.why, self.completed = "user", set()
        words = [word for step in steps if (word := self._follow(step)) is not None]
        self._settle(at, words)

    def _follow(self, step: Step) -> Step | None:
        """Changes what is meant to run; gives the step where it is told by itself."""
        source = Source.PRIMARY if step.source in (None, Source.BASAL) else step.source
        match step.kind:
            case Kind.DELIVERY_START if source is Source.KVO:
                self.kvo = True
                self.base.clear()
            case Kind.DELIVERY_START:
                self.base[source], self.kvo = step.rate_ml_h, False
            case Kind.RATE_CHANGE if source in self.base:
                self.base[source] = step.rate_ml_h
            case Kind.DELIVERY_STOP | Kind.DELIVERY_COMPLETE if source is Source.KVO:
                self.kvo = False
            case Kind.DELIVERY_STOP | Kind.DELIVERY_COMPLETE:
                self.base.pop(source, None)
                self.dose, self.why = None, step.reason or "user"
                if step.kind is Kind.DELIVERY_COMPLETE:
                    self.completed.add(source)
            case Kind.BOLUS_DELIVERED if step.duration_s and step.duration_s >= 2 and self.dose is None:
                rate = None if step.volume_ml is None else step.volume_ml * 3600 / step.duration_s
                given = source if source in _DOSES else Source.CLINICIAN
                self.dose = _Dose(given, rate, step.at + timedelta(seconds=step.duration_s))
            case Kind.LIMIT_REACHED | Kind.LIMIT_CLEARED:
                self.limited = step.kind is Kind.LIMIT_REACHED
            case Kind.CLOCK_CHANGE if step.reason == "loss":
                self._halt()
                self.running.clear()
                return step
            case Kind.ALARM_RAISED | Kind.ALARM_CLEARED:
                if step.stops_delivery:
                    self._halt()
                    self.why = "alarm"
                return step
        if step.kind in _HALTS:
            self._halt()
            self.why = "powered_off" if step.kind is Kind.POWER_OFF else "user"
        return step if step.kind in _WORDS else None

    def _halt(self) -> None:
        self.base.clear()
        self.dose, self.kvo, self.limited = None, False, False

    # --- what delivers -------------------------------------------------------------------------------------------------------

    def _meant(self) -> dict[Source, float | None]:
        """Source → rate of what is to deliver now."""
        if self.dose:
            return {self.dose.source: self.dose.rate_ml_h}
        flowing = {source: rate for source, rate in self.base.items() if rate != 0}
        self.limited = self.limited and bool(self.base)
        if (flowing and self.limited) or (self.kvo and not flowing):
            return {Source.KVO: _KVO_ML_H}
        return flowing

    def _settle(self, at: datetime, words: Iterable[Step]) -> None:
        """Stops of what no longer delivers so, what is told by itself, starts of what begins."""
        meant = self._meant()
        changed = [s for s, run in self.running.items() if s not in meant or meant[s] != run.rate_ml_h]
        for source in changed:
            self._stop(at, source, goes_on=bool(meant))
        for step in words:
            self._tell(step)
        for source, rate in meant.items():
            if source not in self.running:
                self._start(at, source, rate)

    def _stop(self, at: datetime, source: Source, *, goes_on: bool) -> None:
        run = self.running.pop(source)
        given = run.given(at)
        self.total += given or 0.0
        kind = Kind.DELIVERY_COMPLETE if source in self.completed else Kind.DELIVERY_STOP
        reason = None if kind is Kind.DELIVERY_COMPLETE else "transitioning" if goes_on else self.why
        told = Step(at=at, kind=kind, source=source, reason=reason, volume_ml=given)
        status = "transitioning" if goes_on else "not-delivering"
        why = None if goes_on else _REASONS.get(self.why, "not-specified")
        body = self._delivery(kind, source, status, run.rate_ml_h, flow=run.rate_ml_h if goes_on else 0.0, why=why, given=given)
        self.messages.append(_Message(at, "R42", told, goes_on or kind is Kind.DELIVERY_COMPLETE, body))

    def _start(self, at: datetime, source: Source, rate: float | None) -> None:
        self.running[source] = _Running(rate, at)
        told = Step(at=at, kind=Kind.DELIVERY_START, source=source, rate_ml_h=rate)
        status = "kvo" if source is Source.KVO else "delivering"
        body = self._delivery(Kind.DELIVERY_START, source, status, rate, flow=rate, given=0.0)
        self.messages.append(_Message(at, "R42", told, False, body))

    # --- messages ------------------------------------------------------------------------------------------------------------

    def _obx(self, lines: Sequence[tuple[str, int, str, str, str, str]], *, at_head: str = "") -> tuple[str, ...]:
        mds = f"OBX|1||{self.style.term(70049, 'MDC_DEV_PUMP_INFUS_LVP_MDS')}|1.0.0.0|||||||X|||||N1||{self.device}"
        body = [
            self.style.obx(n, kind, self.style.term(code, name), place, *rest)
            for n, (kind, code, name, place, *rest) in enumerate(lines, 2)
        ]
        return (mds, *([at_head] if at_head else []), *body)

    def _delivery(
        self,
        kind: Kind | None,
        source: Source,
        status: str,
        rate: float | None,
        *,
        flow: float | None,
        why: str | None = None,
        given: float | None = None,
    ) -> tuple[str, ...]:
        """The OBX of a delivery: the pump's, then those of the source's group."""
        fluid = Source.PRIMARY if source is Source.KVO else source
        group = f"1.1.{_GROUPS[fluid]}"
        infusing = "not-infusing" if flow == 0 else "infusing"
        lines = [("CWE", 68487, "MDC_ATTR_EVT_COND", "1.0.0.2", _EVENTS[kind], "")] if kind else []
        if kind:
            lines.append(("ST", 68488, "MDC_ATTR_EVT_SOURCE", "1.0.0.3", f"{group}.0", ""))
        lines += [
            ("", 70050, "MDC_DEV_PUMP_INFUS_LVP_VMD", "1.1.0.0", "", ""),
            ("", 70067, "MDC_DEV_PUMP_DELIVERY_INFO", "1.1.1.0", "", ""),
            ("CWE", 184519, "MDC_PUMP_INFUSING_STATUS", "1.1.1.1", f"^pump-status-{infusing}", ""),
        ]
        if flow is not None:
            lines.append(("NM", 158014, "MDC_FLOW_FLUID_PUMP_CURRENT", "1.1.1.2", f"{flow:.6g}", _ML_H))
        lines += [
            ("CWE", 158016, "MDC_DEV_PUMP_ACTIVE_SOURCES", "1.1.1.3", f"^pump-source-info-{fluid.value}", ""),
            ("", 70071, f"MDC_DEV_PUMP_INFUSATE_SOURCE_{fluid.value.upper()}", f"{group}.0", "", ""),
            ("CWE", 158005, "MDC_DEV_PUMP_CURRENT_DELIVERY_STATUS", f"{group}.1", f"^pump-delivery-status-{status}", ""),
            ("CWE", 158008, "MDC_DEV_PUMP_PROGRAM_DELIVERY_MODE", f"{group}.2", "^pump-program-delivery-mode-continuous", ""),
            ("ST", 158012, "MDC_DEV_PUMP_SOURCE_CHANNEL_LABEL", f"{group}.3", "A", ""),
        ]
        if why:
            lines.append(("CWE", 158006, "MDC_DEV_PUMP_NOT_DELIVERING_REASON", f"{group}.4", f"^pump-stopped-{why}", ""))
        if rate is not None:
            lines.append(("NM", 157784, "MDC_FLOW_FLUID_PUMP", f"{group}.5", f"{rate:.6g}", _ML_H))
        if given is not None:
            lines.append(("NM", 157992, "MDC_VOL_FLUID_DELIV_SEGMENT", f"{group}.6", f"{given:.9g}", _ML))
        lines.append(("NM", 157993, "MDC_VOL_FLUID_DELIV_TOTAL", f"{group}.7", f"{self.total:.6g}", _ML))
        return self._obx(lines)

    def _tell(self, step: Step) -> None:
        """A message of something that is no delivery."""
        named = step.alarm_class if step.alarm_class in _ALARMS or step.alarm_class is None else AlarmClass.OTHER
        told = replace(step, alarm_class=named, stops_delivery=False, dark_since=None, to=None)
        if step.kind in (Kind.ALARM_RAISED, Kind.ALARM_CLEARED):
            self.messages.append(_Message(step.at, "R40", told, False, self._alarm(step)))
            return
        lines = [("CWE", 68487, "MDC_ATTR_EVT_COND", "1.0.0.2", _EVENTS[step.kind], "")]
        if step.lockout_s is not None:
            lines += [
                ("NM", 157989, "MDC_TIME_LOCKOUT", "1.1.5.1", f"{step.lockout_s:g}", _SEC),
                ("NM", 157988, "MDC_DOSES_PER_HOUR_MAX", "1.1.5.2", "4", ""),
            ]
        self.messages.append(_Message(step.at, "R42", told, False, self._obx(lines)))

    def _alarm(self, step: Step) -> tuple[str, ...]:
        """The OBX of a PCD-04; the inactivation state lacks a separator, as in the Technical Framework's own."""
        phase, state = ("start", "active") if step.kind is Kind.ALARM_RAISED else ("end", "inactive")
        value = _ALARMS.get(step.alarm_class or AlarmClass.OTHER, _GENERAL_ALARM)
        return (
            f"OBX|1|CWE|196616^MDC_EVT_ALARM^MDC|1.0.0.0.1|{value}|||ST|||F|||||||{self.device}",
            "OBX|2|CWE|68480^MDC_ATTR_ALERT_SOURCE^MDC|1.0.0.0.2|69985^MDC_DEV_PUMP_INFUS_MDS^MDC||||||F|||{time}",
            f"OBX|3|ST|68481^MDC_ATTR_EVENT_PHASE^MDC|1.0.0.0.3|{phase}||||||F",
            f"OBX|4|ST|68482^MDC_ATTR_ALARM_STATE^MDC|1.0.0.0.4|{state}||||||F",
            "OBX|5|ST|68483^MDC_ATTR_ALARM_INACTIVATION_STATE|1.0.0.0.5|enabled|||||F",
        )

    def _show(self, at: datetime) -> None:
        """A snapshot."""
        source, run = next(iter(self.running.items()), (Source.PRIMARY, None))
        status = "not-delivering" if run is None else "kvo" if source is Source.KVO else "delivering"
        rate = run.rate_ml_h if run else None
        body = self._delivery(None, source, status, rate, flow=rate if run else 0.0)
        self.messages.append(_Message(at, "R01", Step(at=at, kind=Kind.OTHER), False, body))


class Pump:
    """The pump at the moment `now`: only what happened by then was sent."""

    def __init__(
        self,
        pump_id: str,
        script: Script,
        messages: Sequence[_Message],
        *,
        faults: Faults,
        seed: int,
        batch: int,
        now: Callable[[], datetime],
    ) -> None:
        self.pump_id = pump_id
        self._messages, self._faults, self._seed, self._batch, self._now = messages, faults, seed, batch, now
        set_to = ((step.at, step.to - step.at.replace(tzinfo=None)) for step in script.steps if step.reason == "set" and step.to)
        self._zones = [(script.start, script.clock - script.start.replace(tzinfo=None)), *set_to]

    def messages(self) -> list[bytes]:
        """The HL7 messages there are, segments ended by CR."""
        moment = self._now()
        return [self._written(number, one) for number, one in enumerate(self._messages, 1) if one.at <= moment]

    def mllp(self) -> bytes:
        """What its gateway sends to a listener."""
        return b"".join(b"\x0b" + message + b"\x1c\r" for message in self.messages())

    def captures(self) -> list[bytes]:
        """The `cap` payloads of its messages, some to each, with the faults of its link."""
        there = self.messages()
        data = [b"".join(there[i : i + self._batch]) for i in range(0, len(there), self._batch)]
        whole = [Capture(data=one, family=FAMILY, pump_id=self.pump_id) for one in data]
        return [cap(capture) for capture in self._faults.strike(whole, self._seed)]

    def _time(self, at: datetime) -> str:
        offset = round([offset for since, offset in self._zones if since <= at][-1] / _QUARTER) * _QUARTER
        here = at.astimezone(timezone(offset))
        fraction = f".{here.microsecond // 1000:03d}" if here.microsecond >= 1000 else ""
        return here.strftime("%Y%m%d%H%M%S") + fraction + here.strftime("%z")

    def _written(self, number: int, message: _Message) -> bytes:
        sent, time = self._time(message.at + _SECOND), self._time(message.at)
        eui, kind = "00125A0000000001", f"ORU^{message.trigger}^{STRUCTURES[message.trigger]}"
        control, profile = f"{self._seed}{number:08d}", PROFILES[message.trigger]
        segments = [
            rf"MSH|^~\&|PAT_DEVICE_SIM^{eui}^EUI-64|SIM|LEDGER|LEDGER|{sent}||{kind}|{control}|P|2.6|||AL|NE||ASCII|en^English^ISO639||{profile}",
            "PID|||SIM-1^^^SIM^PI||Simulated^^^^^^L",
            "PV1||I|Ward^1^1",
            f"OBR|1|ORD-1^SIM|INF-1^SIM^{eui}^EUI-64|0^Simulated drug|||{time}",
            *(segment.replace("{time}", time) for segment in message.segments),
        ]
        return "".join(segment + "\r" for segment in segments).encode()


def simulate(
    script: Script,
    seed: int = 0,
    *,
    serial: str = "B7/0012210000000042",
    faults: Faults | None = None,
    now: Callable[[], datetime] | None = None,
    batch: int = 1,
    snapshot_min: float | None = 60,
) -> tuple[Pump, Truth]:
    """The pump of a script, and the truth; `batch` messages go into one capture, a snapshot comes every `snapshot_min` (None: never).

    `serial` is OBX-18.1/OBX-18.3 of the MDS. The gateway keeps UTC, so a clock that runs fast (Faults) does not show.
    """
    faults = faults or Faults()
    script = faults.happen_to(script)
    number, _, eui = serial.partition("/")
    chance = random.Random(f"{FAMILY}:{seed}")
    style = _Style(chance.random() < 0.5, chance.random() < 0.5, chance if chance.random() < 0.5 else None)
    snapshot = timedelta(minutes=snapshot_min) if snapshot_min else None
    messages = _Book(style, f"{number}^^{eui}^EUI-64" if eui else number, script, snapshot).write()
    pump_id = f"{FAMILY}:{serial}"
    pump = Pump(pump_id, script, messages, faults=faults, seed=seed, batch=batch, now=now or still(script.end))
    return pump, truth(pump_id, script, [message.told for message in messages])
