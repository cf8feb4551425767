"""Histories of a pump's clock, and what is billed of them against the true clock: `python -m tests.histories --count N --seed S`.

A history is a `Plan`: a therapy on true time, and what happens to the clock meanwhile (drift, daylight saving by hand or not at all,
batteries out, clocks set back and forth, told by the log or not), downloads days apart, and a log that may have wrapped between
them. `play` writes what the pump records and what is read of it; `judge` derives lines from that and holds each against the seconds
in which drug truly flowed.

The claim (docs/semantics.md §3): wherever a jump of the clock is told by the log, shown by it, or bracketed by two anchors that
disagree by more than `anchor_drift`, a line is right within one minute or it is held. Drift moves UTC, never a duration: at 60 s a
day a duration is off by 0.07 %, a minute in a day. A jump that nothing brackets, or that two anchors cannot tell from drift, is not
to be known from the log: what comes of it is counted apart, as is how wrong it was.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from itertools import count, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa

from devices.contract import Capture, Kind, Log
from simulators.link import Faults
from simulators.therapy import Step, therapy
from tests import conformance, kit
from transforms import billing
from transforms.orders import Orders
from transforms.sessions import FactPolicy

PUMP = kit.PUMP
HOUR, DAY, YEAR = 3600, 86_400, 365 * 86_400
GAP_S = 3600
STEP_S = 60
BOLUS_S = 300
ZONES: Mapping[str, tuple[str, ...]] = {
    "America/New_York": ("2026-03-08", "2026-11-01"),
    "Europe/London": ("2026-03-29", "2026-10-25"),
    "America/St_Johns": ("2026-03-08", "2026-11-01"),
    "Australia/Lord_Howe": ("2026-04-05", "2026-10-04"),
    "Australia/Adelaide": ("2026-04-05", "2026-10-04"),
    "Pacific/Chatham": ("2026-04-05", "2026-09-27"),
    "Asia/Kolkata": ("2026-05-05",),
    "Asia/Kathmandu": ("2026-05-05",),
}
"""Zones, and days near which a history lies: those on which daylight saving changes, where it does."""
SIZES = {"seconds": (2, 59), "minutes": (61, 900), "hours": (HOUR, 20 * HOUR), "days": (DAY, 40 * DAY), "years": (YEAR, 18 * YEAR)}
RESETS = (datetime(2000, 1, 1), datetime(2007, 1, 1), datetime(2026, 1, 1))
"""What a clock shows that has lost the time."""
NOT_TOLD = ("not bracketed", "hidden in drift")
"""The jumps that a log cannot show: no anchor on one side, or anchors that differ by no more than drift may."""


# --- plans ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Delivery:
    """Drug that flows in `parts` (s), with a break (what, s) between each two; `start`: s since the history began."""

    start: int
    parts: tuple[int, ...]
    breaks: tuple[tuple[str, int], ...]
    end: str
    setup: bool


@dataclass(frozen=True, slots=True)
class Happening:
    """What happens to the clock `at` s: `by` s it is set or jumps; or it is without power for `dark` s; or it is read, `keeps` records."""

    at: float
    what: str
    by: int = 0
    dark: int = 0
    shows: datetime | None = None
    again: bool = True
    trip_ms: int = 40


@dataclass(frozen=True, slots=True)
class Plan:
    """One history before it is played: `begin` UTC, `drift` s a day, `keeps` so many records, `axis` of its elapsed time."""

    tz: str
    begin: datetime
    drift: float
    off: int
    keeps: int | None
    axis: str
    orders_from: str
    deliveries: tuple[Delivery, ...]
    happenings: tuple[Happening, ...]


def _size(rng: random.Random, names: Sequence[str] = tuple(SIZES)) -> int:
    return rng.randint(*SIZES[rng.choice(names)]) * rng.choice((1, -1))


def _therapy(rng: random.Random, days: int, midnight: int) -> Iterator[Delivery]:
    """Deliveries on each of these days, most of them short of eight hours a day; `midnight`: the first local one, s."""
    for day in range(days):
        at = midnight + day * DAY + rng.randint(HOUR, 21 * HOUR)
        for _ in range(rng.choice((1, 1, 2, 3))):
            parts = [rng.choice((rng.randint(300, 3000), rng.randint(1800, 14_000), rng.randint(3600, 24_000)))]
            breaks: list[tuple[str, int]] = []
            while rng.random() < 0.35 and len(parts) < 4:
                what = rng.choice(("pause", "alarm", "rate", "kvo", "noise"))
                breaks.append((what, 0 if what in ("rate", "noise") else rng.choice((60, 600, 2400, 5400))))
                parts.append(rng.randint(300, 6000))
            yield Delivery(at, tuple(parts), tuple(breaks), rng.choice(("stop", "stop", "complete", "alarm", "bolus")), rng.random() < 0.5)
            at += sum(parts) + sum(lasts for _, lasts in breaks) + rng.choice((1200, 5000, 9000, 20_000))


def _clock(rng: random.Random, at: float) -> Iterator[Happening]:
    """One thing that happens to a clock."""
    what = rng.choices(("set", "jump", "loss", "lost alarm", "reset", "stood", "twice"), (30, 34, 10, 5, 8, 5, 8))[0]
    dark = rng.choice((30, 600, 2400, 3 * HOUR, 11 * HOUR))
    shows, again = rng.choice(RESETS), rng.random() < 0.8
    if what == "twice":
        yield Happening(at, rng.choice(("set", "jump")), by=_size(rng))
        yield Happening(at + rng.randint(60, 30_000), rng.choice(("set", "jump")), by=_size(rng))
    elif what in ("set", "jump"):
        yield Happening(at, what, by=_size(rng, ("seconds", "minutes", "hours", "hours", "hours", "days", "days", "years")))
    else:
        yield Happening(at, what, dark=dark, shows=shows, again=again)
        if what != "stood" and rng.random() < 0.75:
            yield Happening(at + dark + rng.choice((180, 5000)), "right")


def plan(rng: random.Random) -> Plan:
    """A history at random."""
    tz = rng.choice(sorted(ZONES))
    near = datetime.fromisoformat(rng.choice(ZONES[tz]))
    days = rng.choice((2, 3, 4, 6))
    local = near - timedelta(days=rng.randint(0, days - 1)) + timedelta(seconds=rng.randint(0, DAY - 1))
    begin = local.replace(tzinfo=ZoneInfo(tz)).astimezone(UTC)
    deliveries = tuple(_therapy(rng, days, -round((local - local.replace(hour=0, minute=0, second=0)).total_seconds())))
    deliveries = tuple(one for one in deliveries if one.start > 600)
    happenings: list[Happening] = []
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3))):
        within = rng.choice(deliveries) if deliveries and rng.random() < 0.6 else None
        at = within.start + rng.random() * sum(within.parts) if within else rng.random() * days * DAY
        happenings += _clock(rng, at)
    if rng.random() < 0.5:
        happenings += [
            Happening(changes + rng.random() * rng.choice((600, HOUR, 12 * HOUR)), "dst", by=by)
            for changes, by in _changes(tz, begin, days * DAY)
        ]
    read, tells = 0.0, 0.9
    while read < days * DAY:
        read += rng.choice((0.4, 1, 2, 3)) * DAY * rng.uniform(0.8, 1.2)
        if within := next((one for one in deliveries if one.start > read and rng.random() < 0.012), None):
            # set back and not told, and the clock read while no record shows it: in the middle of a delivery, and then no more
            read, tells = within.start + within.parts[0] / 2, 0.0
            happenings.append(
                Happening(read - rng.randint(1, 60), "jump", by=-rng.randint(within.parts[0] // 2 + 90, within.parts[0] + 90))
            )
            happenings.append(Happening(read, "read"))
            continue
        what = "read" if rng.random() < tells else "read without the clock"
        happenings.append(Happening(min(read, days * DAY + 5000.0), what, trip_ms=rng.choice((20, 300, 3000))))
    return Plan(
        tz=tz, begin=begin, drift=rng.choice((0, rng.uniform(-60, 60), rng.uniform(-60, 60), 60, -60)),
        off=rng.choice((0, 0, rng.randint(-300, 300), 5 * HOUR)), keeps=rng.choice((None, None, rng.randint(6, 30))),
        axis=rng.choices(("printed", "counter", "restarting counter"), (70, 15, 15))[0],
        orders_from=rng.choice(("2026-01-01T00:00:00Z", "1960-01-01T00:00:00Z")),
        deliveries=deliveries, happenings=tuple(sorted(happenings, key=lambda one: one.at)),
    )  # fmt: skip


def _offset(tz: str, moment: datetime) -> timedelta:
    found = moment.astimezone(ZoneInfo(tz)).utcoffset()
    assert found is not None
    return found


def _changes(tz: str, begin: datetime, lasts: int) -> Iterator[tuple[int, int]]:
    """When the zone's offset changes in a time, and by how much, s."""
    for at in range(900, lasts, 900):
        by = _offset(tz, begin + timedelta(seconds=at)) - _offset(tz, begin + timedelta(seconds=at - 900))
        if by:
            yield at, round(by.total_seconds())


# --- playing a plan -------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Record:
    """A record as it was written `at` s: what it says, the clock's reading (s, whole) it shows, the family's own elapsed time (s)."""

    at: float
    said: dict[str, Any]
    shown: int
    own: int
    shift: int = 0
    lost: bool = False

    @property
    def bolus(self) -> bool:
        return self.said["kind"] == Kind.BOLUS_DELIVERED.value


@dataclass(frozen=True, slots=True)
class Reading:
    """The clock as it was read `at` s, behind record number `after`: it showed `shown`, and the host `utc`, s since the history began."""

    at: float
    after: int
    shown: int
    shift: int
    utc: float


@dataclass(frozen=True, slots=True)
class Jump:
    """A step of the clock that was not told, `at` s, before record number `before` and behind so many readings of the clock; `own_by`:
    that of the family's elapsed time."""

    at: float
    by: float
    before: int
    readings: int
    own_by: float = 0


@dataclass(slots=True)
class History:
    """What was played: captures and orders, and the truth: when drug flowed (s since `begin`), and what happened to the clock."""

    tz: str
    begin: datetime
    pump_id: str
    captures: list[Capture]
    orders: Orders
    flows: list[tuple[float, float]]
    axis: str = "printed"
    records: list[Record] = field(default_factory=list)
    known: set[int] = field(default_factory=set)
    readings: list[Reading] = field(default_factory=list)
    jumps: list[Jump] = field(default_factory=list)
    met: Counter[str] = field(default_factory=Counter)

    def log(self) -> Log:
        """The log; of a family that keeps elapsed time of its own, with that in it."""
        found = kit.assembled(self.captures)
        if not self.records or self.axis == "printed":
            return found
        own = [None if seq is None else self.records[seq - 1].own * 1000 for seq in found.events["seq"].to_pylist()]
        at = found.events.column_names.index("native_ms")
        return replace(found, events=found.events.set_column(at, "native_ms", pa.array(own, pa.int64())))


class _Pump:
    """A pump on true time: `now` s since the history began."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.speed = 1 + plan.drift / DAY
        self.now = 0.0
        self.since, self.base = 0.0, (plan.begin + _offset(plan.tz, plan.begin)).replace(tzinfo=None) + timedelta(seconds=plan.off)
        self.own_since, self.own_base = 0.0, 70_000.0
        self.shift = 0
        self.running = False
        self.flow_since = 0.0
        self.pending = list(plan.happenings)
        self.captures: list[Capture] = []
        self.history = History(plan.tz, plan.begin, PUMP, self.captures, kit.orders(tz=plan.tz, start=plan.orders_from), [], plan.axis)

    # --- clocks -------------------------------------------------------------------------------------------------------------------

    def clock(self) -> datetime:
        """What its clock shows, in the second that has begun."""
        return (self.base + timedelta(seconds=(self.now - self.since) * self.speed)).replace(microsecond=0)

    def set(self, to: datetime) -> None:
        self.since, self.base = self.now, to

    def own(self) -> float:
        """The elapsed time that its family keeps beside the clock, s."""
        return self.own_base + (self.now - self.own_since) * self.speed

    def right(self) -> datetime:
        """What a right clock would show."""
        moment = self.plan.begin + timedelta(seconds=self.now)
        return (moment + _offset(self.plan.tz, moment)).replace(tzinfo=None, microsecond=0)

    def write(self, kind: Kind, *, shown: datetime | None = None, lost: bool = False, **fields: Any) -> None:
        shown = shown or self.clock()
        said = {"pump_time": shown.isoformat(), "kind": kind.value, **fields}
        self.history.records.append(Record(self.now, said, _s(shown), int(self.own()), self.shift, lost))

    def wait(self, lasts: float) -> None:
        """Lets so many seconds with power go by, and what happens to the clock meanwhile."""
        end = self.now + lasts
        while self.pending and self.pending[0].at <= end:
            one = self.pending.pop(0)
            self.now = max(self.now, one.at)
            before = self.now
            self.happen(one)
            end += self.now - before
        self.now = end

    def happen(self, one: Happening) -> None:
        met, inside = self.history.met, "within a delivery" if self.running else "between deliveries"
        if one.what.startswith("read"):
            self.read(one)
        elif one.what == "jump":
            met[f"not told: {_sized(one.by)} {'on' if one.by > 0 else 'back'}"] += 1
            met[f"not told, {inside}"] += 1
            self.jump(one.by)
        elif one.what in ("set", "dst"):
            named = "daylight saving by hand" if one.what == "dst" else f"told: {_sized(one.by)}"
            met[f"{named} {'on' if one.by > 0 else 'back'}"] += 1
            met[f"told, {inside}"] += 1
            self.tell(self.clock() + timedelta(seconds=one.by))
        elif one.what == "right":
            self.tell(self.right())
        else:
            met[f"battery out: {one.what}"] += 1
            met[f"battery out {inside}"] += 1
            self.lose_power(one)

    def jump(self, by: float, own_by: float = 0) -> None:
        self.history.jumps.append(Jump(self.now, by, len(self.history.records), len(self.history.readings), own_by))
        self.base += timedelta(seconds=by)

    def tell(self, to: datetime) -> None:
        old = self.clock()
        self.write(Kind.CLOCK_CHANGE, old=old.isoformat(), new=to.isoformat())
        self.set(to)
        self.shift += _s(to) - _s(old)

    def lose_power(self, one: Happening) -> None:
        """Nothing runs while the power is out. The clock stands, or has lost the time: as the log tells, or as it shows."""
        runs = self.running
        self.end_flow()
        stood, before = self.clock(), self.own()
        self.now += one.dark
        own_by = 0.0
        if self.plan.axis == "restarting counter":
            self.own_since, self.own_base, own_by = self.now, 0.0, -before
        if one.what in ("reset", "stood"):
            shows = one.shows if one.what == "reset" and one.shows else stood
            self.jump((shows - self.clock()).total_seconds(), own_by)
            if one.again or self.plan.axis == "counter":
                self.write(Kind.POWER_ON)
        elif one.shows:
            self.set(one.shows)
            if one.what == "loss":
                self.write(Kind.CLOCK_CHANGE, reason="loss", lost=True)
            else:
                self.write(Kind.ALARM_RAISED, alarm_class="clock_lost", lost=True)
        if runs and one.again:
            self.wait(300)
            self.start()

    # --- therapy ------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        if not self.running:
            self.write(Kind.DELIVERY_START, source="primary", rate_ml_h=2.0)
            self.running, self.flow_since = True, self.now

    def end_flow(self) -> None:
        if self.running:
            self.history.flows.append((self.flow_since, self.now))
            self.running = False

    def stop(self, how: str = "stop") -> None:
        if not self.running:
            return
        self.end_flow()
        if how == "alarm":
            self.write(Kind.ALARM_RAISED, alarm_class="occlusion", stops_delivery=True)
        elif how == "complete":
            self.write(Kind.DELIVERY_COMPLETE, source="primary")
        else:
            self.write(Kind.DELIVERY_STOP, source="primary", reason="user")

    def pause(self, what: str, lasts: int) -> None:
        if what == "rate" and self.running:
            self.write(Kind.RATE_CHANGE, source="primary", rate_ml_h=2.5)
        elif what == "noise":
            self.write(Kind.OTHER)
        elif what in ("pause", "alarm", "kvo"):
            self.stop({"alarm": "alarm", "kvo": "complete"}.get(what, "stop"))
            if what == "kvo":
                self.write(Kind.DELIVERY_START, source="kvo", rate_ml_h=0.1)
            self.wait(lasts)
            self.start()

    def bolus(self) -> None:
        """Five minutes, told as it begins, at its end, or (by a clock that is printed) at its end with the time of its begin."""
        lasts, how = BOLUS_S, len(self.history.records) % (3 if self.plan.axis == "printed" else 2)
        if self.pending and self.pending[0].at <= self.now + lasts:
            return
        told = {"source": "pca", "volume_ml": 0.5, "duration_s": lasts}
        begun = self.clock()
        self.history.flows.append((self.now, self.now + lasts))
        if how == 0:
            self.write(Kind.BOLUS_DELIVERED, **told)
        self.wait(lasts)
        if how == 1:
            self.write(Kind.BOLUS_DELIVERED, at="end", **told)
        elif how == 2:
            self.write(Kind.BOLUS_DELIVERED, shown=begun, **told)
        self.write(Kind.OTHER)

    def deliver(self, one: Delivery) -> None:
        self.wait(max(0.0, one.start - self.now))
        if one.setup:
            self.write(Kind.RESERVOIR_CHANGE)
            self.wait(60)
            self.write(Kind.PRIMING_DONE, target="cannula", volume_ml=0.05)
            self.wait(60)
        self.start()
        for number, lasts in enumerate(one.parts):
            if number:
                self.pause(*one.breaks[number - 1])
            self.wait(lasts)
        self.stop(one.end)
        if one.end == "bolus":
            self.wait(1200)
            self.bolus()

    # --- downloads ----------------------------------------------------------------------------------------------------------------

    def read(self, one: Happening) -> None:
        """A download: the records that the log still holds, and the clock, behind the last of them."""
        history, total = self.history, len(self.history.records)
        if not total:
            return
        low = 0 if self.plan.keeps is None else max(0, total - self.plan.keeps)
        if low and not history.known:
            history.met["log begins in the middle"] += 1
        elif low > max(history.known, default=-1) + 1:
            history.met["log wrapped between downloads"] += 1
        history.met["downloads"] += 1
        anchor = None
        if one.what == "read":
            late = (hash_of(one) % 1000 / 1000 - 0.5) * one.trip_ms / 1000
            utc = self.now + late
            told = (self.plan.begin + timedelta(seconds=utc)).replace(tzinfo=None).isoformat(timespec="milliseconds")
            anchor = {"pump_clock": self.clock().isoformat(), "utc": told + "Z", "round_trip_ms": one.trip_ms, "after_seq": total}
            if history.readings and self.now - history.readings[-1].at > 1.5 * DAY:
                history.met["clock read days apart"] += 1
            history.readings.append(Reading(self.now, total - 1, _s(self.clock()), self.shift, utc))
        else:
            history.met["download without the clock"] += 1
        lines = [{"seq": number + 1, **history.records[number].said} for number in range(low, total)]
        history.known |= set(range(low, total))
        middle = len(lines) // 2 if len(lines) % 2 else 0
        self.captures += [kit.capture(part, anchor=anchor) for part in (lines[:middle], lines[middle:]) if part]


def hash_of(one: Happening) -> int:
    """A number that depends on when it happens alone, for chances that no shrinking changes."""
    return random.Random(repr(one.at)).randrange(10**6)


def _s(shown: datetime) -> int:
    return round((shown - datetime(2000, 1, 1)).total_seconds())


def _sized(by: float) -> str:
    return next(name for name, (_, most) in SIZES.items() if abs(by) <= most or name == "years")


def play(plan: Plan) -> History:
    """What a pump records of a plan, and what is read of it."""
    pump = _Pump(plan)
    pump.write(Kind.POWER_ON)
    for delivery in plan.deliveries:
        pump.deliver(delivery)
    pump.wait(max(0.0, plan.happenings[-1].at - pump.now) if plan.happenings else 0.0)
    pump.end_flow()
    history, met = pump.history, pump.history.met
    if plan.drift:
        met["drift"] += 1
        met["drift of 30 to 60 s a day"] += abs(plan.drift) >= 30
    for by in {
        _offset(plan.tz, plan.begin) % timedelta(hours=1),
        _offset(plan.tz, plan.begin + timedelta(seconds=pump.now)) % timedelta(hours=1),
    }:
        if by:
            met[f"a zone with {by.seconds // 60} minutes"] += 1
    if any(True for _ in _changes(plan.tz, plan.begin, int(pump.now))) and not any(one.what == "dst" for one in plan.happenings):
        met["daylight saving not at all"] += 1
    if plan.axis != "printed":
        met[f"elapsed time of its own: {plan.axis}"] += 1
    met["several downloads"] += met.pop("downloads", 0) > 1
    return history


# --- what the log can show ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Stretches:
    """A short reading of §3 of its own: the stretch of each known record, where each anchor is on the axis, and those that are steps back.

    A stretch ends at a hole, a loss, and where a record is more than a minute behind what was reached.
    """

    of: dict[int, int] = field(default_factory=dict)
    at: dict[Reading, float] = field(default_factory=dict)
    back: list[Reading] = field(default_factory=list)

    def cuts(self) -> Iterator[tuple[int, int]]:
        """The known records on both sides of each cut."""
        return ((a, b) for a, b in pairwise(sorted(self.of)) if self.of[a] != self.of[b])


def stretches(history: History) -> Stretches:
    """What of a history's log lies between two cuts."""
    own = history.axis != "printed"
    found = Stretches()
    reached, number, steady = 0.0, -1, -1
    read_behind: dict[int, list[Reading]] = {}
    for reading in history.readings:
        read_behind.setdefault(reading.after, []).append(reading)
    for n in sorted(history.known):
        record = history.records[n]
        here = record.own if own else record.shown - record.shift
        if n - 1 not in found.of or record.lost or (not record.bolus and here < reached - STEP_S):
            number, reached, steady = number + 1, here, n
        found.of[n], reached = number, max(reached, here)
        steady = steady if record.bolus else n
        for reading in read_behind.get(n, ()):
            behind = history.records[steady]
            shown = reading.shown - reading.shift
            ahead = shown - (behind.shown - behind.shift) if own else shown - reached
            if ahead < -STEP_S:
                found.back.append(reading)
                continue
            found.at[reading] = behind.own + ahead if own else shown
            reached = reached if own else max(reached, shown)
    return found


def told(history: History) -> list[str]:
    """Of each jump that was not told, how the log shows it; those of NOT_TOLD it does not.

    A jump with nothing of its stretch on one side of it harms nothing.
    """
    found = stretches(history)
    return [_how(history, jump, found) for jump in history.jumps]


def _how(history: History, jump: Jump, found: Stretches) -> str:
    places, stretch, at = sorted(history.known), found.of, found.at
    aside = history.axis != "printed" and not jump.own_by
    before = max((n for n in places if n < jump.before), default=None)
    after = min((n for n in places if n >= jump.before), default=None)
    if before is None:
        return "before the log"
    here = stretch[before]
    mine = sorted((r for r in at if stretch[r.after] == here), key=lambda r: r.at)
    goes_on = after is not None and stretch[after] == here
    behind = set(history.readings[jump.readings :])
    later = [r for r in mine if r in behind]
    if aside:
        later, goes_on = [r for r in later if r.after == before], False
    earlier = [r for r in mine if r not in later]
    if not later and not goes_on:
        if aside:
            return "elapsed time of its own"
        if after is None:
            return "behind the log"
        return "in a hole" if after != before + 1 else "a record that shows a loss" if history.records[after].lost else "a step back"
    if not mine:
        return "no anchor at all"
    if not earlier or not later:
        seen = [r for r in found.back if stretch[r.after] == here and r in behind]
        alone = seen and not any(jump.at < other.at < seen[0].at for other in history.jumps)
        return "an anchor that is a step back" if earlier and alone else "not bracketed"
    skews = [(abs((b.utc - a.utc) - (at[b] - at[a])), abs(at[b] - at[a])) for a in earlier for b in later]
    least = min(skew - (60 * span / DAY + 120) for skew, span in skews)
    return "bracketed by two anchors" if least > STEP_S else "hidden in drift"


# --- the truth, and what is billed of it ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Judged:
    """What came out of a history: lines, and what is wrong with them; `untold`: whether a jump is in it that the log cannot show."""

    lines: int = 0
    ready: int = 0
    right: int = 0
    held: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    by_rule: int = 0
    how: Counter[str] = field(default_factory=Counter)
    most_wrong: int = 0

    @property
    def untold(self) -> str | None:
        return next((how for how in NOT_TOLD if self.how[how]), None)


def _sessions(history: History) -> list[list[tuple[float, float]]]:
    """The true pieces of infusion that began from the first record that was read to the last, an hour apart at most."""
    first, last = float("-inf"), float("inf")
    if history.records:
        begins, last = (history.records[end(history.known)] for end in (min, max))
        # a bolus that is told when it is over, by the time at which it began, is not older than the log
        first, last = begins.at - (BOLUS_S if begins.bolus and "at" not in begins.said else 0), last.at
    found: list[list[tuple[float, float]]] = []
    for start, stop in sorted(history.flows):
        if not first <= start <= last:
            continue
        if found and start - found[-1][-1][1] <= GAP_S:
            found[-1].append((start, stop))
        else:
            found.append([(start, stop)])
    return found


def _day(history: History, at: float) -> date:
    return (history.begin + timedelta(seconds=at)).astimezone(ZoneInfo(history.tz)).date()


def true_minutes(history: History) -> dict[date, int]:
    """Whole minutes of infusion of each encounter by the true clock."""
    seconds: dict[date, float] = defaultdict(float)
    for pieces in _sessions(history):
        seconds[_day(history, pieces[0][0])] += sum(stop - start for start, stop in pieces)
    return {day: int(lasts // 60) for day, lasts in seconds.items()}


def at_a_border(history: History) -> bool:
    """Whether a minute of time would make the truth another one: a gap of an hour, a session that begins at midnight.

    What happens at a border to the second is the oracle's to test; no clock that drifts is right to the second.
    """
    sessions = _sessions(history)
    gaps = [b - a for (_, a), (b, _) in pairwise(piece for pieces in sessions for piece in pieces)]
    starts = [pieces[0][0] for pieces in sessions]
    return any(abs(gap - GAP_S) < 90 for gap in gaps) or any(_day(history, at - 900) != _day(history, at + 900) for at in starts)


def _by_rule(given: kit.Given) -> bool:
    """Whether a line may fall short by a rule of docs/semantics.md §6: a session of unknown time that has no order reaches none."""
    return any(row["order_id"] is None and row["start"] is None for row in given.rows("sessions"))


def judge(history: History, policy: FactPolicy | None = None) -> Judged:
    """The lines of a history against the truth: wrong is one that is ready and off by more than a minute."""
    found = Judged(how=Counter(told(history)))
    given = kit.billed([history.log()], history.orders, policy)
    truth = true_minutes(history)
    lines = given.rows("lines")
    for line in lines:
        found.lines += 1
        off = line["minutes"] - truth.get(line["service_date"], 0)
        if line["state"] != "ready":
            found.held += 1
            continue
        found.ready += 1
        if abs(off) <= 1:
            found.right += 1
        elif off < 0 and _by_rule(given):
            found.by_rule += 1
        else:
            found.most_wrong = max(found.most_wrong, abs(off))
            true = truth.get(line["service_date"], 0)
            found.wrong.append(f"{line['code']} of {line['service_date']} is ready with {line['minutes']} min, in truth {true}")
    unassigned = billing.pump_items(given.facts["sessions"], given.facts["doubts"], history.orders)
    if not given.rows("worklist") and not unassigned.num_rows:
        told_of = {line["service_date"] for line in lines}
        found.lost = [
            f"{day}: {minutes} min infused, no line, no item" for day, minutes in truth.items() if minutes > 1 and day not in told_of
        ]
    return found


# --- pumps of the families ----------------------------------------------------------------------------------------------------------------


def of_family(rng: random.Random) -> History:
    """A simulated pump of a family: a clock that drifts and is set, a battery that is out, downloads days apart."""
    tz = rng.choice(sorted(ZONES))
    days = rng.choice((2, 3, 4))
    near = datetime.fromisoformat(rng.choice(ZONES[tz])).replace(hour=rng.randint(0, 23), tzinfo=UTC)
    start = near - timedelta(days=rng.randint(0, days - 1))
    seed = rng.randrange(10**6)
    met: Counter[str] = Counter()
    while True:
        family, kind = rng.choice(conformance.FAMILIES), rng.choice(("sc_continuous", "sc_continuous", "insulin_like"))
        script = therapy(kind, seed, start, days, tz=tz)
        drift = rng.choice((0.0, 60.0, -60.0, rng.uniform(-60, 60)))
        faults = Faults(
            drift_s_per_day=drift,
            battery_out=start + timedelta(seconds=rng.randint(HOUR, days * DAY - HOUR)) if rng.random() < 0.3 else None,
            battery_out_min=rng.choice((5.0, 40.0, 600.0)),
        )
        sets = []
        if rng.random() < 0.5:
            at = start + timedelta(seconds=rng.randint(HOUR, days * DAY - HOUR))
            # a PCD message tells its time with a zone, and no zone is days away
            by = rng.choice((rng.randint(2, 59), 1800, HOUR, 5 * HOUR, *((DAY, 9 * DAY) if family != "pcd" else ()))) * rng.choice((1, -1))
            to = (at + _offset(tz, at)).replace(tzinfo=None, microsecond=0) + timedelta(seconds=by)
            sets.append(Step(at=at, kind=Kind.CLOCK_CHANGE, reason="set", to=to))
        script = replace(script, steps=tuple(sorted((*script.steps, *sets), key=lambda step: step.at)))
        if conformance.can_perform(family, script):
            break
    met[f"family {family}"] += 1
    met[f"family {family}, drift"] += bool(drift)
    met[f"family {family}, battery out"] += faults.battery_out is not None
    met[f"family {family}, clock set"] += bool(sets)
    reads = sorted(rng.uniform(0.2, days) for _ in range(rng.choice((0, 1, 2))))
    captures: list[Capture] = []
    for moment in (*(start + timedelta(days=at) for at in reads), None):
        played = conformance.play(family, script, seed, at=moment, known=captures, faults=faults)
        captures += played.captures
    met[f"family {family}, downloads days apart"] += bool(reads)
    truth = played.truth
    # what its log can prove of what flowed: not every family tells that a delivery goes on after an alarm
    flows = [((a - start).total_seconds(), (b - start).total_seconds()) for a, b in truth.proved]
    known = kit.orders(pump_id=truth.pump_id, tz=tz, start="1960-01-01T00:00:00Z")
    return History(tz, start, truth.pump_id, captures, known, flows, met=met)


# --- many of them -------------------------------------------------------------------------------------------------------------------------

SHARE_OF_FAMILIES = 10
"""Every so manieth history is played by the simulator of a family."""


def history(seed: int, number: int) -> tuple[History, Plan | None]:
    """The history of this number; of one that is played from a plan, that too. None is at a border."""
    for again in count():
        rng = random.Random(f"{seed}:{number}:{again}")
        if number % SHARE_OF_FAMILIES == 0:
            made, planned = of_family(rng), None
        else:
            planned = plan(rng)
            made = play(planned)
            if not made.known:
                continue
        if not at_a_border(made):
            return made, planned
    raise AssertionError("unreachable")


@dataclass(slots=True)
class Figures:
    """What a run found."""

    histories: int = 0
    lines: int = 0
    ready: int = 0
    right: int = 0
    held: int = 0
    met: Counter[str] = field(default_factory=Counter)
    how: Counter[str] = field(default_factory=Counter)
    apart: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in NOT_TOLD})
    by_rule: int = 0
    silent: list[tuple[int, str]] = field(default_factory=list)

    def add(self, number: int, made: History, judged: Judged) -> None:
        """Counts one history; what a jump that the log cannot show is behind, apart."""
        self.histories += 1
        self.met.update({name: int(times > 0) for name, times in made.met.items()})
        self.how.update({name: int(times > 0) for name, times in judged.how.items()})
        untold = judged.untold
        if untold is not None:
            apart = self.apart[untold]
            apart.update(histories=1, ready=judged.ready, wrong=len(judged.wrong), held=judged.held)
            apart["most minutes off"] = max(apart["most minutes off"], judged.most_wrong)
            return
        self.lines += judged.lines
        self.ready += judged.ready
        self.right += judged.right
        self.held += judged.held
        self.by_rule += judged.by_rule
        self.silent += [(number, what) for what in (*judged.wrong, *judged.lost)]

    def text(self) -> str:
        """All of it to read."""
        counts = f"{self.lines} lines, {self.ready} ready, {self.right} of them right within 1 minute, {self.held} held"
        shown = [
            f"{self.histories} histories; where every jump is told, shown or bracketed: {counts}, {len(self.silent)} silent errors",
            f"ready and short by a rule of §6, a session of unknown time has no order: {self.by_rule} lines",
        ]
        for name, apart in self.apart.items():
            said = ", ".join(f"{key} {apart[key]}" for key in ("histories", "held", "ready", "wrong", "most minutes off"))
            shown.append(f"apart, a jump {name}: {said}")
        for name, counted in (("how the log shows a jump that was not told", self.how), ("met in so many histories", self.met)):
            shown.append(f"{name}: " + ", ".join(f"{key} {counted[key]}" for key in sorted(counted)))
        return "\n".join(shown)

    def never(self) -> list[str]:
        """The features that no history had."""
        return sorted(FEATURES - {name for name in (*self.met, *self.how) if self.met[name] or self.how[name]})


_OF_FAMILIES = ("", ", drift", ", battery out", ", clock set", ", downloads days apart")
FEATURES = frozenset(
    {
        "drift", "drift of 30 to 60 s a day", "daylight saving by hand on", "daylight saving by hand back", "daylight saving not at all",
        "a zone with 30 minutes", "a zone with 45 minutes", "battery out: loss", "battery out: lost alarm", "battery out: reset",
        "battery out: stood", "battery out within a delivery", "battery out between deliveries", "told, within a delivery",
        "told, between deliveries", "not told, within a delivery", "not told, between deliveries", "several downloads",
        "clock read days apart", "download without the clock", "log wrapped between downloads", "log begins in the middle",
        "elapsed time of its own: counter", "elapsed time of its own: restarting counter", *NOT_TOLD, "bracketed by two anchors",
        "a step back", "an anchor that is a step back", "in a hole", "elapsed time of its own",
        *(f"{how}: {size} {way}" for how in ("told", "not told") for size in SIZES for way in ("on", "back")),
        *(f"family {name}{what}" for name in conformance.FAMILIES for what in _OF_FAMILIES),
    }
)  # fmt: skip
"""What must be met: a feature that never occurs proves nothing."""


def run(numbers: Iterable[int], seed: int, policy: FactPolicy | None = None, *, stop: int = 1) -> Figures:
    """Judges these histories, each made from its own number; ends at so many silent errors."""
    figures = Figures()
    for number in numbers:
        made, _ = history(seed, number)
        figures.add(number, made, judge(made, policy))
        if len(figures.silent) >= stop:
            break
    return figures


def smaller(planned: Plan) -> Iterator[Plan]:
    """Plans with a little less in them."""
    for n in range(len(planned.deliveries)):
        yield replace(planned, deliveries=planned.deliveries[:n] + planned.deliveries[n + 1 :])
    for n in range(len(planned.happenings)):
        yield replace(planned, happenings=planned.happenings[:n] + planned.happenings[n + 1 :])
    for n, one in enumerate(planned.deliveries):
        plain = replace(one, parts=one.parts[:1], breaks=(), end="stop", setup=False)
        if plain != one:
            yield replace(planned, deliveries=(*planned.deliveries[:n], plain, *planned.deliveries[n + 1 :]))
    for name, bare in (("drift", 0), ("off", 0), ("keeps", None), ("axis", "printed")):
        if getattr(planned, name) != bare:
            yield replace(planned, **{name: bare})


def minimised(planned: Plan, wrong: Callable[[Plan], bool]) -> Plan:
    """The plan with all left out that the finding does not need."""
    changed = True
    while changed:
        changed = False
        for less in smaller(planned):
            if wrong(less):
                planned, changed = less, True
                break
    return planned


def silently_wrong(planned: Plan, policy: FactPolicy | None = None) -> bool:
    """Whether a plan, not at a border, gives a ready line that is wrong though the log could show why."""
    made = play(planned)
    if not made.known or at_a_border(made):
        return False
    judged = judge(made, policy)
    return judged.untold is None and bool(judged.wrong or judged.lost)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.histories", description="Judges what is billed of histories of a clock.")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first history")
    parser.add_argument("--stop", type=int, default=1, help="stop at so many silent errors")
    said = parser.parse_args(arguments)
    begun = time.monotonic()
    figures = run(range(said.first, said.first + said.count), said.seed, stop=said.stop)
    print(f"seed {said.seed}, {time.monotonic() - begun:.0f} s: {figures.text()}")
    for number in sorted({number for number, _ in figures.silent}):
        print(f"\nsilent error: python -m tests.histories --seed {said.seed} --first {number} --count 1")
        print("\n".join(what for other, what in figures.silent if other == number))
        _, planned = history(said.seed, number)
        if planned is not None:
            small = minimised(planned, silently_wrong)
            print(small, *(one.data.decode() for one in play(small).captures), sep="\n")
    never = figures.never() if said.count >= 1000 else []
    if never:
        print(f"never met: {', '.join(never)}")
    return 1 if figures.silent or never else 0


if __name__ == "__main__":
    raise SystemExit(main())
