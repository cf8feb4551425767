"""The state machine of delivery (docs/semantics.md §4), over the events of one stretch in log order, on elapsed time.

All that affects a source's state lives here. Each source but KVO is in one of five states, and a record moves it by the
table `NEXT`; what the moves leave behind are *segments*: (class, source, from, to), each end a point (elapsed ms, row), for
rows order what the clock cannot. `run` works on plain arrays and lists and knows nothing of tables, orders or UTC.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

from devices.contract import Kind, Source

SOURCES = tuple(s.value for s in Source if s is not Source.KVO)
KVO = len(SOURCES)
SOURCE_CODE = {name: code for code, name in enumerate((*SOURCES, Source.KVO.value))}
ANY = -1
"""The source of a stop that names none."""
BOLUS_LIKE = frozenset(SOURCE_CODE[s] for s in (Source.PCA, Source.CLINICIAN, Source.LOADING))

UNSEEN, DELIVERING, ZERO, HALTED, STOPPED = range(5)

# What a record does to the state of its source. A move that needs more than a new state is named by its mark:
# "open" a delivery begins, "close" it ends, "no_stop" it was never ended before, "no_start" it was never begun,
# "proof" it is shown to deliver where the family says that such a record proves it.
START, START_AT_ZERO, RATE_ABOVE, RATE_ZERO, STOP, HALT, POWER_ON = range(7)
NEXT: dict[int, dict[int, tuple[int, str]]] = {
    START: {
        UNSEEN: (DELIVERING, "open"),
        DELIVERING: (DELIVERING, "no_stop open"),
        ZERO: (DELIVERING, "open"),
        HALTED: (DELIVERING, "open"),
        STOPPED: (DELIVERING, "open"),
    },
    START_AT_ZERO: {
        UNSEEN: (ZERO, ""),
        DELIVERING: (ZERO, "no_stop"),
        ZERO: (ZERO, ""),
        HALTED: (ZERO, ""),
        STOPPED: (ZERO, ""),
    },
    RATE_ABOVE: {
        UNSEEN: (UNSEEN, "proof"),
        DELIVERING: (DELIVERING, ""),
        ZERO: (DELIVERING, "open"),
        HALTED: (HALTED, "proof"),
        STOPPED: (STOPPED, ""),
    },
    RATE_ZERO: {
        UNSEEN: (UNSEEN, ""),
        DELIVERING: (ZERO, "close"),
        ZERO: (ZERO, ""),
        HALTED: (HALTED, ""),
        STOPPED: (STOPPED, ""),
    },
    STOP: {
        UNSEEN: (STOPPED, "no_start"),
        DELIVERING: (STOPPED, "close"),
        ZERO: (STOPPED, ""),
        HALTED: (STOPPED, ""),
        STOPPED: (STOPPED, ""),
    },
    HALT: {
        UNSEEN: (HALTED, ""),
        DELIVERING: (HALTED, "close"),
        ZERO: (HALTED, ""),
        HALTED: (HALTED, ""),
        STOPPED: (STOPPED, ""),
    },
    POWER_ON: {
        UNSEEN: (HALTED, ""),
        DELIVERING: (HALTED, "no_stop"),
        ZERO: (HALTED, ""),
        HALTED: (HALTED, ""),
        STOPPED: (STOPPED, ""),
    },
}

HALTS = frozenset(k.value for k in (Kind.RESERVOIR_CHANGE, Kind.POWER_OFF, Kind.POWER_ON, Kind.NEW_PATIENT))
_ALARMING = frozenset(("alarm", "malfunction"))
_SETTLING = frozenset(SOURCE_CODE[s] for s in (Source.PRIMARY, Source.BASAL, Source.INTERMITTENT))


class Point(NamedTuple):
    """A place on a stretch: elapsed ms, then rank among what is at that instant, which is the row of the log, or -1: before all.

    `row` is the record it is reckoned from.
    """

    ms: int
    rank: int
    row: int


_NEVER = Point(2**62, 0, 0)


def at_row(ms: int, row: int) -> Point:
    """The place of a record."""
    return Point(ms, row, row)


class Spans:
    """Stretches between two points, half open, that may overlap; found by bisection."""

    def __init__(self, spans: Iterable[tuple[Point, Point]]) -> None:
        self._starts: list[Point] = []
        self._reach: list[Point] = []
        for start, stop in sorted(spans):
            self._starts.append(start)
            self._reach.append(max(stop, self._reach[-1]) if self._reach else stop)

    def hold(self, at: Point) -> bool:
        """Whether any of them holds this point."""
        before = bisect_right(self._starts, at)
        return before > 0 and at < self._reach[before - 1]


class Segment(NamedTuple):
    """What was true of a source between two points. `code` is NO_STOP, NO_START, OPEN (it still ran at the end) or empty."""

    start: Point
    stop: Point
    what: str
    source: int
    code: str


@dataclass(slots=True)
class Found:
    """What one stretch gave.

    `segments` of class infusing, unknown and kvo; `ends` where a delivery ended, and whether an alarm ended it; `halts`;
    `open_since` the points since which sources run at the end, `kvo_at_end` whether KVO does; `settled` the first record that shows
    what runs, and whether it is a start; `volumes` (row, volume told, volume by rate x time) of deliveries whose rate is known throughout.
    """

    segments: list[Segment] = field(default_factory=list)
    ends: list[tuple[Point, bool]] = field(default_factory=list)
    halts: list[Point] = field(default_factory=list)
    open_since: list[Point] = field(default_factory=list)
    settled: tuple[Point, bool] | None = None
    kvo_at_end: bool = False
    volumes: list[tuple[Point, float, float]] = field(default_factory=list)
    amounts: dict[Point, float] = field(default_factory=dict)
    _sorted: dict[str, list[Any]] = field(default_factory=dict)

    def amounts_in(self, start: Point, stop: Point) -> list[tuple[Point, float]]:
        """What deliveries that ended after `start` and up to `stop` gave by rate x time, mL."""
        given = self._order("amounts", self.amounts.items())
        return given[bisect_right(given, start, key=_place) : bisect_right(given, stop, key=_place)]

    def ends_until(self, low: int, high: int) -> list[tuple[Point, bool]]:
        """Where deliveries ended within these ms, in order, and before them the last that ended up to `low`."""
        ends = self._order("ends", self.ends)
        first = bisect_right(ends, low, key=lambda end: end[0].ms)
        return ends[max(0, first - 1) : bisect_right(ends, high, key=lambda end: end[0].ms)]

    def kvo_in(self, low: int, high: int) -> list[Segment]:
        """The segments of keep-vein-open that reach into these ms."""
        kvo = self._order("kvo", (segment for segment in self.segments if segment.what == "kvo"))
        reach = self._order("kvo reach", accumulate((segment.stop.ms for segment in kvo), max))
        return kvo[bisect_left(reach, low) : bisect_right(kvo, high, key=lambda segment: segment.start.ms)]

    def _order(self, name: str, items: Iterable[Any]) -> list[Any]:
        if name not in self._sorted:
            self._sorted[name] = sorted(items)
        return self._sorted[name]


def _place(amount: tuple[Point, float]) -> Point:
    return amount[0]


@dataclass(frozen=True, slots=True)
class Steps:
    """The events of one stretch as lists, row by row of the log from `first` on."""

    first: int
    ms: list[int]
    kind: list[str]
    source: list[str | None]
    reason: list[str | None]
    stops: list[bool | None]
    rate: list[float | None]
    volume: list[float | None]
    duration_s: list[float | None]
    at_end: list[bool]
    proves: list[str | None]
    end_ms: int
    """Where the stretch ends: its last event, or an anchor read after it."""


class _Delivery:
    """One source: its state, where its delivery began, and what a limit has cut off of it and is not yet proved."""

    __slots__ = ("began", "given", "halted_at", "limited", "pending", "rate", "rate_since", "run_since", "state")

    def __init__(self, begins: Point) -> None:
        self.state = UNSEEN
        self.began = begins
        self.limited: Point | None = None
        self.pending: Point | None = None
        self.halted_at = begins
        self.run_since = begins
        self.rate: float | None = None
        self.rate_since = 0
        self.given: float | None = None


class _Machine:
    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.found = Found()
        self.begins = Point(0, -1, steps.first)
        self.sources = [_Delivery(self.begins) for _ in range(KVO)]
        self.limit = False
        self.kvo_since: Point | None = None
        self.kvo_seen = False
        self.covers: list[tuple[Point, Point]] = []

    # --- segments -----------------------------------------------------------------------------------------------------

    def segment(self, what: str, source: int, start: Point, stop: Point, code: str = "") -> None:
        self.found.segments.append(Segment(start, stop, what, source, code))

    def open(self, source: int, at: Point) -> None:
        one = self.sources[source]
        one.began = at
        one.pending = None
        one.limited = at if self.limit else None

    def close(self, source: int, at: Point, *, alarm: bool, code: str = "") -> None:
        """A delivery ends for a known reason: what it gave is proved."""
        one = self.sources[source]
        if one.limited is None:
            self.infused(source, one.began, at, code)
        else:
            if one.pending is not None:
                self.infused(source, one.began, one.pending, code)
            self.segment("kvo", KVO, one.limited, at)
        one.limited = one.pending = None
        self.found.ends.append((at, alarm))

    def infused(self, source: int, start: Point, stop: Point, code: str = "") -> None:
        self.segment("infusing", source, start, stop, code)
        self.covers.append((start, stop))

    def no_stop(self, source: int, at: Point) -> None:
        """A record that cannot follow on what delivers: all since this delivery began is unknown."""
        one = self.sources[source]
        self.segment("unknown", source, one.began, at, "NO_STOP")
        self.covers.append((one.began, one.limited if one.limited is not None else at))
        one.limited = one.pending = None
        one.given = None
        self.found.ends.append((at, False))

    def no_start(self, source: int, at: Point) -> None:
        self.segment("unknown", source, self.begins, at, "NO_START")

    # --- amounts: rate x time since a delivery began, known only while every rate is ------------------------------------

    def flow(self, source: int, at: Point) -> None:
        one = self.sources[source]
        if one.state == DELIVERING and one.given is not None:
            if one.rate is None or self.limit:
                one.given = None
            else:
                one.given += one.rate * (at.ms - one.rate_since) / 3_600_000
        one.rate_since = at.ms

    # --- records --------------------------------------------------------------------------------------------------------

    def move(self, source: int, record: int, at: Point, *, alarm: bool = False, proves: bool = False) -> None:
        one = self.sources[source]
        was = one.state
        one.state, marks = NEXT[record][was]
        if marks == "proof":
            if proves:
                self.prove(source, at)
            return
        for mark in marks.split():
            match mark:
                case "open":
                    self.open(source, at)
                case "close":
                    self.close(source, at, alarm=alarm)
                case "no_stop":
                    self.no_stop(source, at)
                case "no_start":
                    self.no_start(source, at)
        if record in (HALT, POWER_ON):
            one.halted_at = at

    def prove(self, source: int, at: Point) -> None:
        """A record that the family calls a proof: an unseen or halted source delivers from here on."""
        one = self.sources[source]
        if one.state == UNSEEN:
            self.no_start(source, at)
        elif one.state != HALTED or at.ms <= one.halted_at.ms:
            return
        one.state = DELIVERING
        one.given = None
        self.open(source, at)
        self.end_kvo(at)

    def end_kvo(self, at: Point) -> None:
        if self.kvo_since is not None:
            self.segment("kvo", KVO, self.kvo_since, at)
            self.kvo_since = None

    def start(self, source: int, rate: float | None, at: Point) -> None:
        if source == KVO:
            if not self.limit:
                for other, one in enumerate(self.sources):
                    if one.state == DELIVERING:
                        self.no_stop(other, at)
                        one.state = STOPPED
            self.kvo_seen = True
            if self.kvo_since is None:
                self.kvo_since = at
            return
        self.end_kvo(at)
        one = self.sources[source]
        self.move(source, START_AT_ZERO if rate == 0 else START, at)
        one.run_since = at
        one.rate, one.rate_since, one.given = rate, at.ms, 0.0

    def stop(self, source: int, at: Point, told: float | None, *, alarm: bool) -> None:
        if source == KVO:
            self.end_kvo(at)
        elif source == ANY:
            if all(one.state == UNSEEN for one in self.sources) and not self.kvo_seen:
                self.no_start(ANY, at)
                for one in self.sources:
                    one.state = STOPPED
            running = [other for other, one in enumerate(self.sources) if one.state in (DELIVERING, ZERO)]
            for other in running:
                self.flow(other, at)
                self.tell(other, at, told if len(running) == 1 else None)
                self.move(other, STOP, at, alarm=alarm)
            self.end_kvo(at)
        else:
            self.flow(source, at)
            self.tell(source, at, told)
            self.move(source, STOP, at, alarm=alarm)

    def tell(self, source: int, at: Point, told: float | None) -> None:
        one = self.sources[source]
        if told is not None and one.given is not None and one.state in (DELIVERING, ZERO):
            self.found.volumes.append((at, told, one.given))
        if one.given is not None and one.state in (DELIVERING, ZERO):
            self.found.amounts[at] = self.found.amounts.get(at, 0.0) + one.given
        one.given = None

    def halt(self, record: int, at: Point, *, alarm: bool) -> None:
        self.found.halts.append(at)
        for source in range(KVO):
            self.flow(source, at)
            self.tell(source, at, None)
            self.move(source, record, at, alarm=alarm)
        self.end_kvo(at)

    def reach_limit(self, at: Point) -> None:
        if self.limit:
            return
        for source, one in enumerate(self.sources):
            self.flow(source, at)
            if one.state == DELIVERING:
                one.pending = one.limited = at
        self.limit = True

    def clear_limit(self, at: Point) -> None:
        for source, one in enumerate(self.sources):
            if one.state != DELIVERING:
                continue
            if self.limit:
                one.given = None
                if one.pending is not None:
                    self.infused(source, one.began, one.pending)
                if one.limited is not None:
                    self.segment("kvo", KVO, one.limited, at)
            else:
                self.no_stop(source, at)
            one.began, one.limited, one.pending = at, None, None
        self.limit = False

    def settle(self, at: Point, kind: str, source: int) -> None:
        if self.found.settled is not None:
            return
        halted = bool(self.found.halts) and self.found.halts[-1] == at
        if halted or (kind in _MOVES and (source in _SETTLING or source == ANY)):
            self.found.settled = (at, kind == Kind.DELIVERY_START.value)

    def run(self) -> Found:
        steps = self.steps
        for i, kind in enumerate(steps.kind):
            at = at_row(steps.ms[i], steps.first + i)
            named = steps.source[i]
            unnamed = ANY if kind == Kind.DELIVERY_STOP.value else SOURCE_CODE[Source.PRIMARY]
            source = SOURCE_CODE[named] if named is not None else unnamed
            if kind == Kind.DELIVERY_START.value:
                self.start(source, steps.rate[i], at)
            elif kind == Kind.RATE_CHANGE.value:
                if source != KVO:
                    self.flow(source, at)
                    rate = steps.rate[i]
                    proves = steps.proves[i] is not None
                    self.move(source, RATE_ZERO if rate == 0 else RATE_ABOVE, at, proves=proves)
                    self.sources[source].rate = rate
            elif kind in (Kind.DELIVERY_STOP.value, Kind.DELIVERY_COMPLETE.value):
                self.stop(source, at, steps.volume[i], alarm=steps.reason[i] in _ALARMING)
            elif kind == Kind.ALARM_RAISED.value and steps.stops[i]:
                self.halt(HALT, at, alarm=True)
            elif kind in HALTS:
                self.halt(POWER_ON if kind == Kind.POWER_ON.value else HALT, at, alarm=False)
            elif kind == Kind.LIMIT_REACHED.value:
                self.reach_limit(at)
            elif kind == Kind.LIMIT_CLEARED.value:
                self.clear_limit(at)
            elif kind == Kind.BOLUS_DELIVERED.value and (proved := steps.proves[i]) is not None:
                self.prove(SOURCE_CODE[proved], at)
            if self.limit and not any(one.state in (DELIVERING, ZERO) for one in self.sources):
                self.limit = False
            self.settle(at, kind, source)
        self.finish()
        self.boluses()
        return self.found

    def finish(self) -> None:
        """What still runs when the stretch ends, ends for counting at its last event."""
        last = at_row(max(self.steps.ms), self.steps.first + len(self.steps.ms) - 1)
        for source, one in enumerate(self.sources):
            if one.state not in (DELIVERING, ZERO):
                continue
            self.found.open_since.append(one.began if one.state == DELIVERING else one.run_since)
            if one.state == DELIVERING:
                self.flow(source, last)
                self.tell(source, last, None)
                if one.limited is None:
                    self.covers.append((one.began, _NEVER))
                self.close(source, last, alarm=False, code="OPEN")
                self.found.ends.pop()
        self.found.kvo_at_end = self.kvo_since is not None
        self.end_kvo(last)

    def boluses(self) -> None:
        """A bolus that starts while nothing infuses is delivery of its own duration, cut short by a stop, a halt or the end."""
        steps = self.steps
        alarms = [kind == Kind.ALARM_RAISED.value and bool(steps.stops[i]) for i, kind in enumerate(steps.kind)]
        cuts = [
            (at_row(steps.ms[i], steps.first + i), alarms[i] or steps.reason[i] in _ALARMING)
            for i, kind in enumerate(steps.kind)
            if kind == Kind.DELIVERY_STOP.value or kind in HALTS or alarms[i]
        ]
        given = []
        for i, kind in enumerate(steps.kind):
            if kind == Kind.BOLUS_DELIVERED.value:
                lasts = round((steps.duration_s[i] or 0.0) * 1000)
                begins, ends = (steps.ms[i] - lasts, steps.ms[i]) if steps.at_end[i] else (steps.ms[i], steps.ms[i] + lasts)
                row = steps.first + i
                start = at_row(begins, row) if begins >= 0 else Point(0, -1, row)
                given.append((start, ends, SOURCE_CODE[steps.source[i] or Source.PRIMARY]))
        cuts.sort()
        covered = Spans(self.covers)
        flows_until = Point(-1, -1, 0)
        for start, ends, source in sorted(given):
            if start < flows_until or covered.hold(start):
                continue
            stop, alarm = Point(min(ends, steps.end_ms), -1, start.row), False
            following = bisect_right(cuts, (start, True))
            if following < len(cuts) and cuts[following][0].ms <= stop.ms:
                stop, alarm = cuts[following]
            stop = max(stop, start)
            self.segment("infusing", source, start, stop, "BOLUS")
            flows_until = stop
            self.found.ends.append((stop, alarm))


_MOVES = frozenset(k.value for k in (Kind.DELIVERY_START, Kind.DELIVERY_STOP, Kind.DELIVERY_COMPLETE))


def run(steps: Steps) -> Found:
    """What the events of one stretch show."""
    return _Machine(steps).run()
