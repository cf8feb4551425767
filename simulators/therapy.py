"""What happens to one patient's pump over days, on the true UTC time line, and what must come out of it.

`Script` is a list of `Step`s in the vocabulary of docs/semantics.md §1; `Pen` writes one by hand, `therapy` by a seed. A step is
what truly happened. What a pump of one family writes into its log of it is that family's business: it gives back, as the steps
`told`, what a right reading of its log must give, and `truth` reckons from both what flowed and what the log can prove. This
reckoning is its own short reading of docs/semantics.md §4 and §5, on true time and for logs without holes, so that it agrees with
the derivation for no other reason than that both are right.

    script = therapy("pca", 7, datetime(2026, 3, 1, tzinfo=UTC), days=3)
    device, truth = simulators.family("canonical").simulate(script, seed=7)
"""

from __future__ import annotations

import json
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Self
from zoneinfo import ZoneInfo

from devices.contract import AlarmClass, At, Kind, Source, Target
from devices.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that happens, at true UTC `at` (a bolus: when it starts). Amounts in mL and mL/h, `rate_ml_h` None: unknown.

    `names`: which instant the record of a bolus names, and so when it is written. `to`: what a clock is set to, naive; of a loss
    what it shows when power is back (None: what the family resets to), `dark_since` when power went. `proves`: only in what a log
    tells, the source that this record shows to deliver (docs/semantics.md §4, proof), and `timed`, whether it prints a time.
    """

    at: datetime
    kind: Kind
    source: Source | None = None
    reason: str | None = None
    target: Target | None = None
    alarm_class: AlarmClass | None = None
    stops_delivery: bool = False
    rate_ml_h: float | None = None
    volume_ml: float | None = None
    programmed_ml: float | None = None
    duration_s: float | None = None
    lockout_s: float | None = None
    names: At = At.START
    to: datetime | None = None
    dark_since: datetime | None = None
    proves: Source | None = None
    timed: bool = True

    @property
    def recorded(self) -> datetime:
        """When its record is written, UTC."""
        if self.kind is Kind.BOLUS_DELIVERED and self.names is At.END:
            return self.at + timedelta(seconds=self.duration_s or 0)
        return self.at


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Steps between `start` and `end` (UTC), in order of time; the pump's clock shows `clock` (naive) at `start`.

    Raises InputError where a step has no UTC time, stands outside, or comes before the one it follows.
    """

    start: datetime
    end: datetime
    clock: datetime
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        times = [self.start, *(step.at for step in self.steps), self.end]
        if any(time.utcoffset() != timedelta(0) for time in times):
            raise InputError("A therapy script runs on UTC.", do="Give every time with tzinfo=UTC.", code="script")
        for before, after in pairwise(times):
            if after < before:
                raise InputError(f"A therapy script goes back in time at {after.isoformat()}.", do="Put its steps in order.", code="script")

    def log(self) -> list[Step]:
        """The steps in the order in which a pump that writes down all of them does so; what is written after `end` is not there."""
        return sorted((step for step in self.steps if step.recorded <= self.end), key=lambda step: step.recorded)


class PumpClock:
    """What the clock of a pump shows: it runs `drift_s_per_day` fast, is set by hand, and is lost with the power."""

    def __init__(self, script: Script, *, reset_to: datetime, drift_s_per_day: float = 0.0) -> None:
        self.speed = 1 + drift_s_per_day / 86_400
        self._since = [(script.start, script.clock)]
        for step in script.steps:
            if step.kind is Kind.CLOCK_CHANGE:
                self._since.append((step.at, step.to or (reset_to if step.reason == "loss" else self.shows(step.at))))

    def shows(self, at: datetime) -> datetime:
        """The reading (naive) at true time `at`, after a change at this very instant."""
        return self._read(at, [since for since in self._since if since[0] <= at])

    def showed(self, at: datetime) -> datetime:
        """The reading (naive) just before a change at true time `at`."""
        return self._read(at, [since for since in self._since if since[0] < at])

    def _read(self, at: datetime, known: list[tuple[datetime, datetime]]) -> datetime:
        since, shown = known[-1] if known else self._since[0]
        return shown + (at - since) * self.speed


Interval = tuple[datetime, datetime]
"""From, to; true UTC."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One uninterrupted run of one source, true UTC."""

    source: Source
    start: datetime
    stop: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SetUp:
    """A set-up as the log shows it (docs/semantics.md §5): `at` its last event, `delivery` the start of the piece it belongs to."""

    at: datetime
    pump_setup: bool
    new_site: str
    delivery: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What tests compare with what came out of a pump's log, all of it on true UTC.

    `deliveries` and their union `flowed`: when drug truly flowed at a therapy's rate (KVO is not). `proved`: what of it the whole
    log, rightly read, shows as infusing; `kvo` and `set_ups` as this log shows them; `told`: the events it must give, in its order.
    What is derived from a part of the log lies within `proved`; whatever is derived outside of `flowed` is false.
    """

    pump_id: str
    start: datetime
    end: datetime
    deliveries: tuple[Delivery, ...]
    flowed: tuple[Interval, ...]
    proved: tuple[Interval, ...]
    kvo: tuple[Interval, ...]
    set_ups: tuple[SetUp, ...]
    told: tuple[Step, ...]

    @property
    def flowed_s(self) -> float:
        """Seconds in which drug truly flowed."""
        return seconds(self.flowed)

    @property
    def proved_s(self) -> float:
        """Seconds of infusion that the log proves."""
        return seconds(self.proved)

    def to_json(self) -> str:
        """All of it as JSON, times in ISO 8601, fields that say nothing left out."""

        def plain(value: Any) -> str:
            return value.isoformat() if isinstance(value, datetime) else str(value)

        told = [{name: value for name, value in asdict(step).items() if value is not None} for step in self.told]
        whole = {**asdict(self), "told": told, "flowed_s": self.flowed_s, "proved_s": self.proved_s}
        return json.dumps(whole, default=plain, indent=1)


def seconds(intervals: Iterable[Interval]) -> float:
    """The sum of their lengths, s."""
    return sum((stop - start).total_seconds() for start, stop in intervals)


def truth(pump_id: str, script: Script, told: Sequence[Step] | None = None) -> Truth:
    """The truth of a script on a pump whose log tells `told` (default: every step, as an all-telling log would)."""
    told = tuple(script.log() if told is None else told)
    real = _Reckoning(script.steps, until=script.end)
    shown = _Reckoning(told, until=None)
    return Truth(
        pump_id=pump_id,
        start=script.start,
        end=script.end,
        deliveries=real.deliveries(),
        flowed=real.infused(),
        proved=shown.infused(),
        kvo=_union(shown.kvo),
        set_ups=shown.set_ups(),
        told=told,
    )


_HALTS = frozenset({Kind.RESERVOIR_CHANGE, Kind.POWER_OFF, Kind.POWER_ON, Kind.NEW_PATIENT})
_SET_UPS = frozenset({Kind.RESERVOIR_CHANGE, Kind.PRIMING_STARTED, Kind.PRIMING_DONE})
_STOPS = frozenset({Kind.DELIVERY_STOP, Kind.DELIVERY_COMPLETE})
_Point = tuple[datetime, int]
"""A place: time, and the number of the step, for order is what time cannot tell."""


@dataclass(slots=True)
class _Run:
    """One source: unseen, on, zero, halted or stopped; `since` where its run began, none while a limit holds it at KVO."""

    state: str = "unseen"
    since: _Point | None = None
    halted: datetime | None = None


class _Reckoning:
    """What steps say of delivery.

    With `until` they are what truly happened, and a loss of power ends what ran when it went. Without, they are a log: what runs
    at a cut, or at its end, is shown as far as the last record before. `running`: the sources that ran at the end.
    """

    def __init__(self, steps: Sequence[Step], until: datetime | None) -> None:
        self.steps, self.until = steps, until
        self.runs: list[tuple[Source, _Point, _Point]] = []
        self.kvo: list[tuple[_Point, _Point]] = []
        self.running: set[Source] = set()
        self._sources: dict[Source, _Run] = {}
        self._kvo_since: _Point | None = None
        self._limited = False
        self._cut = 0
        self._stretch: list[int] = []
        self._ends: list[_Point] = []
        for number, step in enumerate(steps):
            if self._is_cut(step):
                self._end_stretch(number, step)
            self._stretch.append(self._cut)
            self._take((step.at, number), step)
        self._end_stretch(len(steps), None)
        self._boluses()

    # --- the course of things --------------------------------------------------------------------------------------------

    @staticmethod
    def _is_cut(step: Step) -> bool:
        lost = step.kind is Kind.CLOCK_CHANGE and step.reason == "loss"
        return lost or (step.kind is Kind.ALARM_RAISED and step.alarm_class is AlarmClass.CLOCK_LOST)

    def _end_stretch(self, number: int, step: Step | None) -> None:
        """Nothing is carried across: a log has shown what ran up to its last record, in truth it ran until the power went."""
        if self.until is not None:
            end = (step.dark_since or step.at, number) if step else (self.until, number)
        else:
            mine = [n for n in range(number) if self._stretch[n] == self._cut and self.steps[n].timed]
            end = max(((self.steps[n].recorded, n) for n in mine), default=(datetime.min.replace(tzinfo=UTC), number))
        self.running = {source for source, run in self._sources.items() if run.state in {"on", "zero"}}
        self._halt_all(end)
        self._ends.append(end)
        self._sources, self._limited = {}, False
        self._cut += 1

    def _of(self, source: Source | None) -> _Run:
        return self._sources.setdefault(source or Source.PRIMARY, _Run())

    def _take(self, here: _Point, step: Step) -> None:
        match step.kind:
            case Kind.DELIVERY_START if step.source is Source.KVO:
                self._kvo_since = self._kvo_since or here
            case Kind.DELIVERY_START:
                self._end_kvo(here)
                self._run(self._of(step.source), here, step.rate_ml_h != 0, step.source)
            case Kind.DELIVERY_STOP if step.source is None:
                for source in list(self._sources):
                    self._stop(source, here, "stopped")
                self._end_kvo(here)
            case Kind.DELIVERY_STOP | Kind.DELIVERY_COMPLETE if step.source is Source.KVO:
                self._end_kvo(here)
            case Kind.DELIVERY_STOP | Kind.DELIVERY_COMPLETE:
                self._stop(step.source or Source.PRIMARY, here, "stopped")
            case Kind.RATE_CHANGE:
                run = self._of(step.source)
                if run.state in {"on", "zero"}:
                    self._run(run, here, step.rate_ml_h != 0, step.source)
                elif step.rate_ml_h != 0:
                    self._prove(step, here)
            case Kind.BOLUS_DELIVERED:
                self._prove(step, here)
            case Kind.LIMIT_REACHED:
                self._reach_limit(here)
            case Kind.LIMIT_CLEARED:
                self._clear_limit(here)
            case kind if kind in _HALTS or (kind is Kind.ALARM_RAISED and step.stops_delivery):
                self._halt_all(here)
        if self._limited and not any(run.state in {"on", "zero"} for run in self._sources.values()):
            self._limited = False
            self._end_kvo(here)

    def _run(self, run: _Run, here: _Point, above: bool, source: Source | None) -> None:
        if not above:
            self._close(run, source or Source.PRIMARY, here)
            run.state = "zero"
        elif self._limited:
            run.state = "on"
            self._kvo_since = self._kvo_since or here
        else:
            run.state, run.since = "on", run.since or here

    def _prove(self, step: Step, here: _Point) -> None:
        if step.proves is None:
            return
        run = self._of(step.proves)
        if run.state == "unseen" or (run.state == "halted" and run.halted is not None and step.at > run.halted):
            self._run(run, here, True, step.proves)

    def _close(self, run: _Run, source: Source, here: _Point) -> None:
        if run.since is not None:
            self.runs.append((source, run.since, here))
            run.since = None

    def _stop(self, source: Source, here: _Point, state: str) -> None:
        run = self._of(source)
        self._close(run, source, here)
        if state == "stopped" or run.state != "stopped":
            run.state, run.halted = state, here[0]

    def _halt_all(self, here: _Point) -> None:
        for source in Source:
            if source is not Source.KVO:
                self._stop(source, here, "halted")
        self._end_kvo(here)

    def _end_kvo(self, here: _Point) -> None:
        if self._kvo_since is not None:
            self.kvo.append((self._kvo_since, here))
            self._kvo_since = None

    def _reach_limit(self, here: _Point) -> None:
        self._limited = True
        for source, run in self._sources.items():
            if run.state == "on":
                self._close(run, source, here)
                self._kvo_since = self._kvo_since or here

    def _clear_limit(self, here: _Point) -> None:
        self._limited = False
        self._end_kvo(here)
        for run in self._sources.values():
            if run.state == "on":
                run.since = run.since or here

    def _boluses(self) -> None:
        """A bolus that starts while nothing infuses is delivery of its own duration, cut short by a stop, a halt or the end."""
        covered = _merged((start, stop) for _, start, stop in self.runs)
        cuts = sorted(
            (step.at, number)
            for number, step in enumerate(self.steps)
            if step.kind in _STOPS or step.kind in _HALTS or (step.kind is Kind.ALARM_RAISED and step.stops_delivery)
        )
        for number, step in enumerate(self.steps):
            start = (step.at, number)
            before = bisect_right(covered, start, key=lambda run: run[0]) - 1
            if step.kind is not Kind.BOLUS_DELIVERED or (before >= 0 and start < covered[before][1]):
                continue
            stop = (step.at + timedelta(seconds=step.duration_s or 0), number)
            cut = cuts[bisect_right(cuts, start) :][:1]
            stop = max(start, min([stop, self._ends[self._stretch[number]], *cut]))
            self.runs.append((step.source or Source.PRIMARY, start, stop))

    # --- what it comes to ------------------------------------------------------------------------------------------------

    def deliveries(self) -> tuple[Delivery, ...]:
        """The runs of all sources, by start."""
        return tuple(Delivery(source, start[0], stop[0]) for source, start, stop in sorted(self.runs, key=lambda run: run[1]))

    def infused(self) -> tuple[Interval, ...]:
        """The union of the runs; what lasts no time is not in it."""
        return _union([(start, stop) for _, start, stop in self.runs])

    def set_ups(self) -> tuple[SetUp, ...]:
        """Set-up events with no piece beginning between them are one; one within a piece is one of its own."""
        runs = sorted((start, stop) for _, start, stop in self.runs)
        found: dict[tuple[int, int, _Point | None], list[Step]] = {}
        for number, step in enumerate(self.steps):
            if step.kind not in _SET_UPS:
                continue
            here, stretch = (step.at, number), self._stretch[number]
            around = [start for start, stop in runs if start < here < stop]
            if around:
                found[stretch, number, around[0]] = [step]
                continue
            follow = [start for start, _ in runs if start > here and self._stretch[start[1]] == stretch]
            found.setdefault((stretch, -1, min(follow, default=None)), []).append(step)
        return tuple(_set_up(steps, delivery[0] if delivery else None) for (_, _, delivery), steps in found.items())


def _set_up(steps: Sequence[Step], delivery: datetime | None) -> SetUp:
    done = [step for step in steps if step.kind is Kind.PRIMING_DONE]
    short = [step for step in done if step.reason in {"aborted", "error"} or (step.volume_ml or 0) < (step.programmed_ml or 0)]
    whole = [step for step in done if step not in short]
    pump = any(step.kind is Kind.RESERVOIR_CHANGE for step in steps) or any(step.target is not Target.CANNULA for step in whole)
    site = "no"
    if any(step.target in {None, Target.UNKNOWN} for step in done) or any(step.target is Target.CANNULA for step in short):
        site = "possible"
    if any(step.target is Target.CANNULA for step in whole):
        site = "yes"
    return SetUp(at=steps[-1].at, pump_setup=pump, new_site=site, delivery=delivery)


def _merged(runs: Iterable[tuple[_Point, _Point]]) -> list[tuple[_Point, _Point]]:
    merged: list[tuple[_Point, _Point]] = []
    for start, stop in sorted(runs):
        if merged and start[0] <= merged[-1][1][0]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def _union(runs: Iterable[tuple[_Point, _Point]]) -> tuple[Interval, ...]:
    return tuple((start[0], stop[0]) for start, stop in _merged(runs) if start[0] < stop[0])


@dataclass(slots=True)
class Pen:
    """Writes a script: each call puts a step at `now`, which `wait` and `until` move on. All but `script` give the pen back."""

    start: datetime
    tz: str = "America/New_York"
    now: datetime = field(init=False)
    steps: list[Step] = field(init=False, default_factory=list)
    offset: timedelta = field(init=False)

    def __post_init__(self) -> None:
        self.now = self.start
        self.offset = self._local_offset()

    def _local_offset(self) -> timedelta:
        offset = self.now.astimezone(ZoneInfo(self.tz)).utcoffset()
        assert offset is not None
        return offset

    def wait(self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0) -> Self:
        """Lets time pass."""
        self.now += timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        return self

    def until(self, hour: int, minute: int = 0, second: int = 0) -> Self:
        """Goes on to when the wall clock next shows this time."""
        zone = ZoneInfo(self.tz)
        local = self.now.astimezone(zone)
        then = local.replace(hour=hour, minute=minute, second=second, microsecond=0)
        if then.astimezone(UTC) < self.now:
            then = (local.replace(tzinfo=None) + timedelta(days=1)).replace(
                hour=hour, minute=minute, second=second, microsecond=0, tzinfo=zone
            )
        self.now = then.astimezone(UTC)
        return self

    def step(self, kind: Kind, **fields: Any) -> Self:
        """Any step."""
        self.steps.append(Step(at=self.now, kind=kind, **fields))
        return self

    def run(self, rate_ml_h: float | None, source: Source = Source.PRIMARY) -> Self:
        """A source starts to deliver."""
        return self.step(Kind.DELIVERY_START, source=source, rate_ml_h=rate_ml_h)

    def stop(self, source: Source = Source.PRIMARY, reason: str = "user") -> Self:
        """It stops."""
        return self.step(Kind.DELIVERY_STOP, source=source, reason=reason)

    def complete(self, source: Source = Source.PRIMARY) -> Self:
        """It has delivered its programmed volume."""
        return self.step(Kind.DELIVERY_COMPLETE, source=source)

    def rate(self, rate_ml_h: float, source: Source = Source.PRIMARY, duration_s: float | None = None) -> Self:
        """It runs at a new rate; for `duration_s`, where that is temporary."""
        return self.step(Kind.RATE_CHANGE, source=source, rate_ml_h=rate_ml_h, duration_s=duration_s)

    def bolus(
        self,
        volume_ml: float,
        duration_s: float,
        source: Source = Source.PCA,
        *,
        programmed_ml: float | None = None,
        names: At = At.END,
    ) -> Self:
        """An amount is given, from now on, for so long; time does not pass by that."""
        programmed = volume_ml if programmed_ml is None else programmed_ml
        fields = {"source": source, "volume_ml": volume_ml, "programmed_ml": programmed, "duration_s": duration_s, "names": names}
        return self.step(Kind.BOLUS_DELIVERED, **fields)

    def demand(self, *, denied: str | None = None) -> Self:
        """The patient presses the button; `denied` with its reason."""
        return self.step(Kind.DEMAND_DENIED, reason=denied) if denied else self.step(Kind.DEMAND_GRANTED)

    def alarm(self, alarm_class: AlarmClass, *, stops: bool = False) -> Self:
        """An alarm sounds, and stops delivery or not."""
        return self.step(Kind.ALARM_RAISED, alarm_class=alarm_class, stops_delivery=stops)

    def clear(self, alarm_class: AlarmClass) -> Self:
        """An alarm is silenced; nothing runs by that."""
        return self.step(Kind.ALARM_CLEARED, alarm_class=alarm_class)

    def reservoir(self) -> Self:
        """Reservoir, cassette or syringe is changed; what runs halts."""
        return self.step(Kind.RESERVOIR_CHANGE)

    def prime(self, target: Target, volume_ml: float, *, programmed_ml: float | None = None) -> Self:
        """A fill is done; with less than was programmed it was aborted."""
        programmed = programmed_ml if programmed_ml is not None else volume_ml if target is Target.CANNULA else None
        reason = "aborted" if programmed is not None and volume_ml < programmed else "amount_reached"
        return self.step(Kind.PRIMING_DONE, target=target, volume_ml=volume_ml, programmed_ml=programmed, reason=reason)

    def set_up(self, *, site: bool = True) -> Self:
        """Reservoir, tubing and, at a new site, cannula: 6 minutes in all, and nothing runs after it."""
        self.reservoir().wait(minutes=4).prime(Target.TUBING, 0.09)
        if site:
            self.wait(minutes=2).prime(Target.CANNULA, 0.005)
        return self

    def set_clock(self, to: datetime | None = None) -> Self:
        """The clock is set by hand, by default to what the wall clock shows."""
        right = self.now.astimezone(ZoneInfo(self.tz)).replace(tzinfo=None)
        self.offset = (to or right) - self.now.replace(tzinfo=None)
        return self.step(Kind.CLOCK_CHANGE, reason="set", to=to or right)

    def battery_out(self, minutes: float) -> Self:
        """Power goes now and is back after so long: nothing runs, and the clock is lost."""
        went = self.now
        return self.wait(minutes=minutes).step(Kind.CLOCK_CHANGE, reason="loss", dark_since=went)

    def clock_is_wrong(self) -> bool:
        """Whether the wall clock has gone to or from daylight saving since the pump's clock was set."""
        return self.offset != self._local_offset()

    def script(self, end: datetime | None = None) -> Script:
        """What was written, seen at `end` (default now); the pump's clock showed wall time at its start."""
        clock = self.start.astimezone(ZoneInfo(self.tz)).replace(tzinfo=None)
        steps = sorted(self.steps, key=lambda step: step.at)
        return Script(start=self.start, end=max(end or self.now, self.now), clock=clock, steps=tuple(steps))


def therapy(
    kind: str, seed: int, start: datetime, days: int, *, tz: str = "America/New_York", minutes: Sequence[int] = (), clock_loss: bool = False
) -> Script:
    """A script of this kind of therapy: "sc_continuous", "pca", "demand_only" or "insulin_like"; equal arguments give equal scripts.

    `minutes`: only for "sc_continuous", uninterrupted deliveries of just these lengths, spread over the days. `clock_loss`: the
    battery is out for some time on the second day. The clock follows daylight saving by hand, most of the time. Raises InputError.
    """
    if kind not in _KINDS:
        raise InputError(f"There is no kind of therapy {kind!r}.", do=f"Use one of: {', '.join(_KINDS)}.", code="script")
    if days < 1:
        raise InputError("A therapy takes at least one day.", code="script")
    chance = random.Random(f"{kind}:{seed}")
    pen = Pen(start.replace(microsecond=0), tz)
    _KINDS[kind](pen, chance, days, minutes)
    script = pen.script(start.replace(microsecond=0) + timedelta(days=days))
    if clock_loss:
        script = without_power(script, script.start + timedelta(hours=chance.uniform(25, 40)), minutes=40)
    return script


def on_basal_pump(script: Script, also: frozenset[Kind] = frozenset()) -> Script:
    """The script as it happens to a pump that has basal and boluses only; `also`: other kinds of steps that it knows."""
    steps, runs = [], False
    for step in script.steps:
        match step.kind:
            case Kind.DELIVERY_START if step.source is not Source.KVO:
                steps.append(replace(step, kind=Kind.RATE_CHANGE if runs else Kind.DELIVERY_START, source=Source.BASAL))
                runs = True
            case Kind.DELIVERY_STOP | Kind.DELIVERY_COMPLETE if runs and step.source is not Source.KVO:
                steps.append(replace(step, kind=Kind.DELIVERY_STOP, source=Source.BASAL, reason=step.reason or "user"))
                runs = False
            case Kind.RATE_CHANGE if runs:
                steps.append(replace(step, source=Source.BASAL))
            case Kind.BOLUS_DELIVERED:
                steps.append(replace(step, source=Source.PRIMARY))
            case Kind.ALARM_RAISED | Kind.CLOCK_CHANGE | Kind.RESERVOIR_CHANGE | Kind.POWER_OFF | Kind.POWER_ON:
                steps.append(step)
                halts = step.stops_delivery if step.kind is Kind.ALARM_RAISED else step.kind is not Kind.CLOCK_CHANGE
                runs = runs and not halts and step.reason != "loss"
            case kind if kind in {Kind.ALARM_CLEARED, Kind.PRIMING_DONE, *also}:
                steps.append(step)
    return replace(script, steps=tuple(steps))


def without_power(script: Script, at: datetime, *, minutes: float) -> Script:
    """The script with the battery out from `at` for so long.

    3 minutes after it is back the clock is set right, 2 more, and all runs again that would run by then. Nothing else of what would
    have happened meanwhile does; a limit is forgotten.
    """
    at = at.replace(microsecond=0)
    back = at + timedelta(minutes=minutes)
    again = back + timedelta(minutes=5)
    clock = PumpClock(script, reset_to=script.clock)
    meant = [step for step in script.steps if step.at <= again and step.kind is not Kind.BOLUS_DELIVERED]
    rates = {step.source: step.rate_ml_h for step in meant if step.kind in {Kind.DELIVERY_START, Kind.RATE_CHANGE}}
    right = back + timedelta(minutes=3)
    after = [step for step in script.steps if step.at > again]
    limits = [step for step in after if step.kind in {Kind.LIMIT_REACHED, Kind.LIMIT_CLEARED}][:1]
    steps = (
        *(_cut_short(step, at) for step in script.steps if step.at < at),
        Step(at=back, kind=Kind.CLOCK_CHANGE, reason="loss", dark_since=at),
        Step(at=right, kind=Kind.CLOCK_CHANGE, reason="set", to=clock.shows(right)),
        *(
            Step(at=again, kind=Kind.DELIVERY_START, source=source, rate_ml_h=rates[source])
            for source in sorted(_Reckoning(meant, until=again).running)
        ),
        *(step for step in after if step not in limits or step.kind is Kind.LIMIT_REACHED),
    )
    return replace(script, end=max(script.end, again), steps=steps)


def _cut_short(step: Step, at: datetime) -> Step:
    if step.kind is not Kind.BOLUS_DELIVERED or not step.duration_s or step.at + timedelta(seconds=step.duration_s) <= at:
        return step
    share = (at - step.at).total_seconds() / step.duration_s
    return replace(step, duration_s=step.duration_s * share, volume_ml=(step.volume_ml or 0) * share, names=At.START)


def _mind_the_clock(pen: Pen, chance: random.Random) -> None:
    if pen.clock_is_wrong() and chance.random() < 0.8:
        pen.set_clock().wait(minutes=1)


def _sc_continuous(pen: Pen, chance: random.Random, days: int, minutes: Sequence[int]) -> None:
    """A pain drug under the skin: some deliveries a day, a new site every third; interruptions unless the minutes are given."""
    for day in range(days):
        lengths = list(minutes[day::days]) if minutes else [chance.randint(12, 420) for _ in range(chance.randint(1, 2))]
        if not lengths:
            pen.wait(days=1)
            continue
        pen.until(chance.randint(7, 9), chance.randint(0, 59), chance.randint(0, 59))
        _mind_the_clock(pen, chance)
        if day % 3 == 0:
            if not minutes and chance.random() < 0.3:
                pen.prime(Target.CANNULA, 0.002, programmed_ml=0.005).wait(minutes=2)
            pen.set_up().wait(seconds=chance.randint(5, 35))
        elif chance.random() < 0.3:
            pen.set_up(site=False).wait(minutes=1)
        for length in lengths:
            rate = chance.randint(4, 20) / 10
            pen.run(rate)
            if minutes:
                pen.wait(minutes=length).stop()
            else:
                _interrupted(pen, chance, rate, length)
            pen.wait(minutes=chance.randint(90, 150))


def _interrupted(pen: Pen, chance: random.Random, rate: float, length: int) -> None:
    half = length * 30 + chance.randint(-60, 60)
    pen.wait(seconds=half)
    match chance.choice(("", "", "occlusion", "low", "pause", "rate")):
        case "occlusion":
            pen.alarm(AlarmClass.OCCLUSION, stops=True).wait(minutes=chance.randint(1, 20)).clear(AlarmClass.OCCLUSION)
            pen.wait(seconds=30).run(rate)
        case "low":
            pen.alarm(AlarmClass.LOW_RESERVOIR).wait(minutes=1).clear(AlarmClass.LOW_RESERVOIR)
        case "pause":
            pen.stop().wait(minutes=chance.randint(2, 75)).run(rate)
        case "rate":
            pen.rate(rate + 0.5)
    pen.wait(seconds=length * 60 - half)
    if chance.random() < 0.3:
        pen.complete().run(0.1, Source.KVO).wait(minutes=chance.randint(5, 30)).stop(Source.KVO)
    else:
        pen.stop()


def _demands(pen: Pen, chance: random.Random, end: datetime, *, lockout_s: int, per_hour: int) -> None:
    """The patient presses the button until `end`: granted at most every `lockout_s`; the hourly limit makes the pump fall to KVO."""
    granted: list[datetime] = []
    while True:
        pen.wait(seconds=chance.randint(120, 7200))
        if pen.now + timedelta(minutes=75) >= end:
            pen.now = end
            return
        if granted and pen.now < granted[-1] + timedelta(seconds=lockout_s):
            pen.demand(denied="lockout")
            continue
        pen.demand().bolus(0.2, 36).wait(seconds=36)
        granted.append(pen.now)
        if sum(time > pen.now - timedelta(hours=1) for time in granted) >= per_hour:
            pen.wait(seconds=1).step(Kind.LIMIT_REACHED).wait(minutes=chance.randint(10, 50)).step(Kind.LIMIT_CLEARED)


def _patient_controlled(rate_ml_h: float) -> Callable[[Pen, random.Random, int, Sequence[int]], None]:
    def write(pen: Pen, chance: random.Random, days: int, minutes: Sequence[int]) -> None:
        pen.until(chance.randint(8, 11), chance.randint(0, 59))
        pen.step(Kind.NEW_PATIENT).wait(minutes=1).step(Kind.SETTINGS_CHANGE, lockout_s=600).wait(minutes=1)
        pen.set_up().wait(minutes=1).run(rate_ml_h)
        last = pen.start + timedelta(days=days)
        while pen.now < last:
            _demands(pen, chance, min(pen.now + timedelta(hours=20), last), lockout_s=600, per_hour=4)
            if pen.now >= last:
                break
            if chance.random() < 0.4:
                pen.alarm(AlarmClass.OCCLUSION, stops=True).wait(minutes=chance.randint(1, 9)).clear(AlarmClass.OCCLUSION)
            else:
                pen.stop()
            pen.wait(minutes=2)
            _mind_the_clock(pen, chance)
            pen.reservoir().wait(minutes=3).prime(Target.TUBING, 0.09).wait(minutes=1).run(rate_ml_h)
        pen.stop()

    return write


def _insulin_like(pen: Pen, chance: random.Random, days: int, minutes: Sequence[int]) -> None:
    """A basal rate that always runs, but for suspends, changes of the reservoir every third day, and alarms; boluses at meals."""
    rates = [chance.randint(2, 12) * 0.0025 for _ in range(4)]
    basal = Source.BASAL

    def meal(hour: int) -> None:
        pen.until(hour, chance.randint(1, 25), chance.randint(0, 59))
        tenths = chance.randint(10, 120)
        if chance.random() < 0.15:
            pen.bolus(tenths / 1000, 1800 * chance.randint(1, 3), basal, names=At.START)
        else:
            pen.bolus(tenths / 1000, tenths * 4, basal, names=At.START)

    pen.until(7, 10).set_up().wait(seconds=chance.randint(3, 35)).run(rates[1], basal)
    for day in range(days):
        if day:
            pen.until(6).rate(rates[1], basal)
        meal(8)
        pen.until(10)
        _mind_the_clock(pen, chance)
        if chance.random() < 0.5:
            pen.until(10, chance.randint(5, 40)).stop(basal).wait(minutes=chance.randint(5, 60)).run(rates[1], basal)
        pen.until(12).rate(rates[2], basal)
        meal(12)
        if chance.random() < 0.3:
            pen.until(15, chance.randint(0, 29)).rate(0.0125, basal, duration_s=3600.0).wait(minutes=60).rate(rates[2], basal)
        pen.until(18).rate(rates[3], basal)
        meal(18)
        if chance.random() < 0.2:
            pen.until(20, 2).bolus(0.02, 90, basal, programmed_ml=0.05, names=At.START).wait(seconds=90).stop(basal)
            pen.wait(minutes=5).run(rates[3], basal)
        if day % 3 == 2:
            pen.until(20, 30).set_up(site=chance.random() < 0.6).wait(seconds=chance.randint(3, 35)).run(rates[3], basal)
        elif chance.random() < 0.2:
            pen.until(20, 40).alarm(AlarmClass.NO_DELIVERY, stops=True).wait(minutes=chance.randint(1, 20)).clear(AlarmClass.NO_DELIVERY)
            pen.wait(minutes=2).run(rates[3], basal)
        if chance.random() < 0.2:
            pen.until(22).alarm(AlarmClass.LOW_RESERVOIR)
        if day < days - 1:
            pen.until(0).rate(rates[0], basal)


_KINDS: dict[str, Callable[[Pen, random.Random, int, Sequence[int]], None]] = {
    "sc_continuous": _sc_continuous,
    "pca": _patient_controlled(0.5),
    "demand_only": _patient_controlled(0.0),
    "insulin_like": _insulin_like,
}
