"""A second reading of docs/semantics.md §3-§6, made to differ: slot by slot over arrays of elapsed seconds, with no interval algebra.

A stretch is laid out as one slot of no length for each record (so that what happens in one instant keeps the order of the log) and
one slot for each second between them. Each rule of the text then fills or reads arrays over these slots. `random_encounter` writes
canonical captures of one patient that hit the boundaries of the rules often; `python -m tests.oracle --count N --seed S` compares the
oracle with the implementation over many of them and prints the first disagreement as small as it can be made.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from devices.contract import Capture
from devices.errors import InputError
from tests import kit

GAP_S = 3600
STEP_S = 60
SEPARATION_S = 900
LONG_MIN = 480
CAP = 8
SOURCES = ("primary", "basal", "intermittent", "secondary", "pca", "loading", "clinician")
SETTLING = ("primary", "basal", "intermittent")
RIDING_BOLUS = ("pca", "clinician", "loading")
TIME_CODES = frozenset({"NO_STOP", "NO_START", "SESSION_OPEN", "LOG_GAP", "CLOCK_UNCERTAIN", "RECORD_CONFLICT", "ORDER_BOUNDARY"})
SESSION_CODES = TIME_CODES | {"LOCKOUT_VIOLATION", "VOLUME_MISMATCH"}
KINDS = frozenset(
    {
        "delivery_start", "delivery_stop", "delivery_complete", "rate_change", "bolus_requested", "bolus_delivered", "demand_granted",
        "demand_denied", "limit_reached", "limit_cleared", "priming_started", "priming_done", "reservoir_change", "alarm_raised",
        "alarm_cleared", "clock_change", "power_on", "power_off", "new_patient", "settings_change", "counters_cleared", "daily_total",
        "device_link", "data_gap", "data_corruption", "other",
    }
)  # fmt: skip
REASONS = {
    "delivery_stop": ["user", "alarm", "malfunction", "powered_off", "between_doses", "switching", "standby", "transitioning", "unknown"],
    "clock_change": ["set", "periodic", "loss"],
    "demand_denied": ["lockout", "limit", "unknown"],
    "priming_done": ["amount_reached", "aborted", "error", "unknown"],
}
HALTS = frozenset({"reservoir_change", "power_off", "power_on", "new_patient"})
SETUP_KINDS = frozenset({"reservoir_change", "priming_started", "priming_done"})
SITE = {"no": 0, "possible": 1, "yes": 2}
BEGAN_BEFORE = "a bolus told at its end began before the first record of its stretch"
SAME_INSTANT = "set-ups of two pumps at the same instant"
LOSS_FIRST = "a loss of the clock is the first record of a log"
KVO_BEFORE_LOSS = "KVO, and nothing else, runs before a cut of the clock"
BEHIND = "the clock is set while it is behind where it was"
"""Where the text does not decide, or where the derivation does not follow it: such encounters are counted apart."""
_ZERO = datetime.fromisoformat("2000-01-01T00:00:00")

Line = dict[str, Any] | bytes


def printed_s(text: str) -> int:
    """Whole seconds of a naive time."""
    return round((datetime.fromisoformat(text) - _ZERO).total_seconds())


def naive(seconds: float) -> datetime:
    return _ZERO + timedelta(seconds=float(seconds))


def local(utc_s: float, tz: str) -> datetime:
    """The naive local time of an instant in UTC."""
    return naive(utc_s).replace(tzinfo=UTC).astimezone(ZoneInfo(tz)).replace(tzinfo=None)


def read_in_zone(clock_s: float, tz: str) -> float:
    """The UTC of a printed time that is read in a zone."""
    there = naive(clock_s).replace(tzinfo=ZoneInfo(tz)).astimezone(UTC).replace(tzinfo=None)
    return (there - _ZERO).total_seconds()


# --- §1, §2: from captures to the log -------------------------------------------------------------------------------------------------


@dataclass
class Event:
    """A record at its place; `None` in a log stands for a hole."""

    said: dict[str, Any]
    conflict: bool = False

    @property
    def kind(self) -> str:
        return str(self.said["kind"])

    @property
    def source(self) -> str | None:
        given = self.said.get("source")
        return given or (None if self.kind == "delivery_stop" else "primary")

    @property
    def halts(self) -> bool:
        return self.kind in HALTS or (self.kind == "alarm_raised" and bool(self.said.get("stops_delivery")))


@dataclass
class Read:
    """The log of one pump: events and holes (None) in order; anchors as (place in the log, clock, utc)."""

    log: list[Event | None]
    anchors: list[tuple[int, int, float]]


def _readable(line: bytes) -> dict[str, Any] | None:
    try:
        said = json.loads(line)
        printed_s(said["pump_time"])
        fits = isinstance(said["seq"], int) and said["kind"] in KINDS and said.get("source", "kvo") in (*SOURCES, "kvo")
        fits = fits and ("reason" not in said or said["reason"] in REASONS.get(said["kind"], [said["reason"]]))
    except (ValueError, KeyError, TypeError):
        return None
    return said if fits else None


def _own_number(line: bytes) -> int | None:
    try:
        number = json.loads(line).get("seq")
    except (ValueError, AttributeError):
        return None
    return number if isinstance(number, int) else None


def read_log(captures: Iterable[Capture]) -> Read:
    """Duplicates, order, conflicts and holes of the captures of one pump (§2)."""
    told: dict[tuple[int, int], dict[str, tuple[float, dict[str, Any]]]] = {}
    lost: list[tuple[int, int | None, int | None, int | None]] = []
    anchors: set[tuple[int, int, int, float]] = set()
    counted: dict[int, set[bool]] = {}
    for capture in captures:
        head, *lines = capture.data.strip().split(b"\n")
        header = json.loads(head)
        epoch = header.get("log_epoch", 0)
        counted.setdefault(epoch, set()).add(header.get("contiguous", True))
        clock = header.get("anchor")
        said = [_readable(line) for line in lines]
        last = (said[-1]["seq"] if said[-1] else _own_number(lines[-1])) if lines else None
        place = clock.get("after_seq", last) if clock else None
        utc = -1.0 if place is None else printed_s(clock["utc"].removesuffix("Z"))
        for n, (line, one) in enumerate(zip(lines, said, strict=True)):
            if one is None:
                before = next((s["seq"] for s in reversed(said[:n]) if s), None)
                after = next((s["seq"] for s in said[n + 1 :] if s), None)
                lost.append((epoch, _own_number(line), before, after))
                continue
            content = json.dumps(one, sort_keys=True)
            versions = told.setdefault((epoch, one["seq"]), {})
            versions[content] = (max(utc, versions.get(content, (-2.0, {}))[0]), one)
        if place is not None:
            anchors.add((epoch, place, printed_s(clock["pump_clock"]), utc))
    return _placed(told, lost, anchors, counted)


def _placed(told: Any, lost: Any, anchors: Any, counted: dict[int, set[bool]]) -> Read:
    log: list[Event | None] = []
    row_of: dict[tuple[int, int], int] = {}

    def hole() -> None:
        if not log or log[-1] is not None:
            log.append(None)

    for nth, epoch in enumerate(sorted({*counted, *(key[0] for key in told)})):
        numbers = sorted(seq for e, seq in told if e == epoch)
        unread = [one[1:] for one in lost if one[0] == epoch]
        holes = set().union(*(_missing(numbers, unread, contiguous=each) for each in counted[epoch]))
        if nth:
            hole()
        if 0 in holes:
            hole()
        for n, seq in enumerate(numbers, 1):
            versions = told[epoch, seq]
            best = max(when for when, _ in versions.values())
            first, *others = [said for when, said in versions.values() if when == best]
            if others:
                raise ValueError("two contents of one record under one anchor: the hash decides, and it is not the oracle's to know")
            row_of[epoch, seq] = len(log)
            log.append(Event(first, conflict=len(versions) > 1) if first["kind"] not in ("data_gap", "data_corruption") else None)
            if n in holes:
                hole()
    there = sorted((row_of[e, seq], clock, utc) for e, seq, clock, utc in anchors if (e, seq) in row_of)
    return Read(log, there)


def _missing(numbers: list[int], lost: list[tuple[int | None, int | None, int | None]], *, contiguous: bool) -> set[int]:
    """After how many of the numbers a hole stands."""
    if not numbers:
        return {0} if lost else set()
    holes: set[int] = set()
    if contiguous:
        holes.update(n for n, (a, b) in enumerate(pairwise(numbers), 1) if b - a > 1)
        for own, before, after in lost:
            if (own if own is not None else before + 1 if before is not None else numbers[-1]) > numbers[-1]:
                holes.add(len(numbers))
            if (own if own is not None else after - 1 if before is None and after is not None else numbers[0]) < numbers[0]:
                holes.add(0)
        return holes
    for own, before, after in lost:
        if own is not None:
            if own not in numbers:
                holes.add(sum(n < own for n in numbers))
        elif before is not None:
            at = numbers.index(before) + 1
            if after is None or at == len(numbers) or numbers[at] >= after:
                holes.add(at)
        elif after is not None:
            at = numbers.index(after)
            if at == 0 or numbers[at - 1] != after - 1:
                holes.add(at)
    return holes


# --- §3: stretches and their slots ----------------------------------------------------------------------------------------------------


@dataclass
class Placed:
    """An event in its stretch: `named` the elapsed second that its time names, `at` the one that the clock had reached."""

    event: Event
    named: int
    at: int
    clock: int
    row: int
    slot: int = -1


@dataclass(eq=False)
class Stretch:
    """What lies between two cuts, laid out in slots: `weight` 0 for an instant, 1 for a second; `elapsed` at the start of each slot."""

    events: list[Placed]
    cuts: list[str]
    lines: list[tuple[int, int, float]] = field(default_factory=list)
    reach_to: dict[str, int] = field(default_factory=dict)
    disputed: set[str] = field(default_factory=set)
    early: dict[int, int] = field(default_factory=dict)
    shifts: list[tuple[int, int]] = field(default_factory=list)
    anchors: list[tuple[int, int, float]] = field(default_factory=list)
    weight: Any = None
    elapsed: Any = None
    base: int = 0
    last_of_log: bool = False

    @cached_property
    def contradicted(self) -> list[tuple[tuple[int, int, float], tuple[int, int, float]]]:
        """The pairs of anchors that disagree, with no such pair within."""
        places = [(i, j) for j, b in enumerate(self.anchors) for i, a in enumerate(self.anchors[:j]) if disagree(a, b)]
        narrow = [(i, j) for i, j in places if not any((k, m) != (i, j) and i <= k and m <= j for k, m in places)]
        return [(self.anchors[i], self.anchors[j]) for i, j in narrow]

    def utc(self, slot: int) -> float | None:
        """UTC seconds at a slot, or None where the offset is not known."""
        here = float(self.elapsed[slot])
        if any(a[0] < slot < b[0] for a, b in self.contradicted):
            return None
        for at, e1, u1 in self.anchors:
            if at == slot:
                return u1 + here - e1
        before = [a for a in self.anchors if a[0] < slot]
        after = [a for a in self.anchors if a[0] > slot]
        if before and after:
            (_, e1, u1), (_, e2, u2) = before[-1], after[0]
            return u1 + (u2 - u1) * (here - e1) / (e2 - e1) if e2 > e1 else u1 + here - e1
        if not self.anchors:
            return None
        _, e1, u1 = before[-1] if before else after[0]
        return u1 + here - e1

    def doubtful(self, first: int, end: int) -> bool:
        """Whether a time of unknown quality lies from one slot to another."""
        return not self.anchors or any(first < b[0] and end > a[0] for a, b in self.contradicted)

    def printed(self, slot: int) -> int:
        """What the pump's clock shows at a slot."""
        last = self.events[-1]
        for n, one in enumerate(self.events):
            if one.slot == slot or (one is last and slot == one.slot + 1):
                return one.clock
            if self.early.get(n) == slot:
                return one.clock - max(0, one.named) + max(0, bolus_start(one))
        return int(self.base + self.elapsed[slot] + sum(by for at, by in self.shifts if at < slot))


def disagree(a: tuple[int, int, float], b: tuple[int, int, float]) -> bool:
    """Whether two anchors of a stretch prove a silent jump."""
    return abs((b[2] - a[2]) - (b[1] - a[1])) > 60 * abs(b[1] - a[1]) / 86400 + 120


def stretches(read: Read) -> list[Stretch]:
    """The stretches of a log, with the cut before each; the last may be empty, behind a hole that ends the log."""
    found: list[Stretch] = []
    cuts: list[str] = []
    now: Stretch | None = None
    base = shift = mark = 0
    stepped = False
    for row, event in enumerate(read.log):
        if event is None:
            now, cuts, stepped = None, ["LOG_GAP"], False
            continue
        clock = printed_s(event.said["pump_time"])
        named = clock - base - shift
        lost = (event.kind == "clock_change" and event.said.get("reason") == "loss") or (
            event.kind == "alarm_raised" and event.said.get("alarm_class") == "clock_lost"
        )
        if lost or stepped or (now is not None and event.kind != "bolus_delivered" and named < mark - STEP_S):
            now, cuts = None, [*cuts, "CLOCK_UNCERTAIN"]
        stepped = False
        if now is None:
            now = Stretch([], cuts, base=clock)
            if not found and cuts == ["CLOCK_UNCERTAIN"]:
                now.disputed.add(LOSS_FIRST)
            found.append(now)
            base, shift, mark, cuts, named = clock, 0, 0, [], 0
        mark = max(mark, named)
        now.events.append(Placed(event, named if event.kind == "bolus_delivered" else mark, mark, clock, row))
        if event.kind == "clock_change" and event.said.get("reason") != "loss":
            shift += printed_s(event.said["new"]) - printed_s(event.said["old"])
            if named < mark:
                now.disputed.add(BEHIND)
        for place, told, utc in read.anchors:
            there = told - base - shift
            if place != row:
                continue
            if there >= mark - STEP_S:
                now.lines.append((len(now.events) - 1, max(there, mark), utc))
            else:
                stepped = True
    if cuts:
        found.append(Stretch([], cuts))
    elif found:
        found[-1].last_of_log = True
    for one in found:
        if one.events:
            _lay_out(one)
    return found


def _lay_out(one: Stretch) -> None:
    items: list[tuple[int, str, int]] = []
    for n, placed in enumerate(one.events):
        items.append((placed.at, "event", n))
        ceiling = one.events[n + 1].at if n + 1 < len(one.events) else None
        for k, (place, there, _) in enumerate(one.lines):
            if place == n:
                at = max(there, items[-1][0])
                items.append((at if ceiling is None else min(at, ceiling), "anchor", k))
    for n, placed in enumerate(one.events):
        if placed.event.kind != "bolus_delivered":
            continue
        start = bolus_start(placed)
        if start < placed.at:
            place = sum(at <= start for at, _, _ in items)
            items.insert(place, (max(0, start), "bolus", n))
    end = items[-1][0]
    size = len(items) + end + 1
    weight = np.ones(size, dtype=np.int64)
    for n, (at, what, which) in enumerate(items):
        slot = n + at
        weight[slot] = 0
        if what == "event":
            one.events[which].slot = slot
        elif what == "bolus":
            one.early[which] = slot
        else:
            one.anchors.append((slot, one.lines[which][1], one.lines[which][2]))
    weight[-1] = 0
    one.weight = weight
    one.elapsed = np.concatenate(([0], np.cumsum(weight)))[:-1]
    for placed in one.events:
        said = placed.event.said
        if placed.event.kind == "clock_change" and said.get("reason") != "loss":
            one.shifts.append((placed.slot, printed_s(said["new"]) - printed_s(said["old"])))


def bolus_start(placed: Placed) -> int:
    """The elapsed second at which a bolus starts; before 0, of which no second counts, where that is before its stretch."""
    said = placed.event.said
    return placed.named - (int(said.get("duration_s") or 0) if said.get("at") == "end" else 0)


# --- §4: what each slot is ------------------------------------------------------------------------------------------------------------


@dataclass
class Piece:
    """Slots [first, end) that infuse, or that are unknown."""

    first: int
    end: int
    unknown: bool
    source: str | None = None
    flags: set[str] = field(default_factory=set)
    order: Mapping[str, str] | None = None


@dataclass(eq=False)
class Session:
    """What one session is; times are slots of its stretch."""

    stretch: Stretch
    stretch_no: int
    pump: str
    order: Mapping[str, str] | None
    pieces: list[Piece]
    flags: set[str] = field(default_factory=set)
    kinds: dict[str, int] = field(default_factory=dict)
    infusing: Any = None
    steady: Any = None

    @property
    def first(self) -> int:
        return self.pieces[0].first

    @property
    def end(self) -> int:
        return max(piece.end for piece in self.pieces)

    @property
    def start_utc(self) -> float | None:
        return self.stretch.utc(self.first)

    @property
    def stop_utc(self) -> float | None:
        return self.stretch.utc(self.end)

    def place(self) -> float:
        """Its start on the common time line: UTC, or the printed time read in the order's zone."""
        assert self.order is not None
        start = self.start_utc
        return read_in_zone(self.stretch.printed(self.first), self.order["tz"]) if start is None else start

    def seconds(self) -> Any:
        """Its infusing seconds on the common time line, at their elapsed distance from its start."""
        slots = np.flatnonzero(self.infusing & (self.stretch.weight > 0))
        return int(np.floor(self.place() + 0.5)) + self.stretch.elapsed[slots] - self.stretch.elapsed[self.first]

    def begins_ms(self) -> Any:
        """When each of its infusing seconds begins on the common time line, in ms: as drift has it, where nothing contradicts its UTC."""
        stretch = self.stretch
        if stretch.doubtful(self.first, self.end):
            return 1000 * self.seconds()
        knots = sorted({self.first, self.end, *(at for at, _, _ in stretch.anchors if self.first < at < self.end)})
        known = [utc for knot in knots if (utc := stretch.utc(knot)) is not None]
        slots = np.flatnonzero(self.infusing & (stretch.weight > 0))
        return np.round(1000 * np.interp(stretch.elapsed[slots], stretch.elapsed[knots], known)).astype(np.int64)

    def day(self) -> date:
        """Its service date."""
        assert self.order is not None
        start = self.start_utc
        return (naive(self.stretch.printed(self.first)) if start is None else local(start, self.order["tz"])).date()


class Machine:
    """The sources of one stretch, one record after the other, writing what each slot is."""

    def __init__(self, stretch: Stretch) -> None:
        self.stretch = stretch
        size = len(stretch.weight)
        self.state = dict.fromkeys(SOURCES, "unseen")
        self.began = dict.fromkeys(SOURCES, 0)
        self.ran_from = dict.fromkeys(SOURCES, 0)
        self.kvo_runs = self.kvo_seen = self.limited = False
        self.disputed: set[str] = set()
        self.why = "paused"
        self.infuses = {source: np.zeros(size, dtype=bool) for source in SOURCES}
        self.judged = np.zeros(size, dtype=bool)
        self.kvo = np.zeros(size, dtype=bool)
        self.alarm = np.zeros(size, dtype=bool)
        self.unknown: list[Piece] = []
        self.mismatch: list[int] = []
        self.given: dict[str, float | None] = dict.fromkeys(SOURCES)
        self.rate: dict[str, float | None] = dict.fromkeys(SOURCES)
        events = stretch.events
        for n, placed in enumerate(events):
            self.take(placed)
            if not self.any("delivering", "zero"):
                self.limited = False
            end = events[n + 1].slot if n + 1 < len(events) else placed.slot + 1
            self.fill(placed.slot, end)
        self.boluses = self.bolus_slots()

    def any(self, *states: str) -> bool:
        return any(state in states for state in self.state.values())

    def fill(self, first: int, end: int) -> None:
        """What holds from one record to the next."""
        seconds = int(self.stretch.weight[first:end].sum())
        for source, state in self.state.items():
            if state == "delivering":
                if self.limited:
                    self.kvo[first:end] = True
                    self.given[source] = None
                else:
                    self.infuses[source][first:end] = self.judged[first:end] = True
                rate, given = self.rate[source], self.given[source]
                self.given[source] = None if rate is None or given is None else given + rate * seconds / 3600
        if self.kvo_runs:
            self.kvo[first:end] = True
        self.alarm[first:end] = self.why == "alarm"

    def missing_stop(self, source: str, slot: int) -> None:
        self.infuses[source][self.began[source] : slot] = False
        self.unknown.append(Piece(self.began[source], slot, True, source, {"NO_STOP"}))

    def missing_start(self, source: str | None, slot: int) -> None:
        first = self.stretch.events[0].slot
        self.unknown.append(Piece(first, max(first + 1, slot), True, source, {"NO_START"}))

    def take(self, placed: Placed) -> None:
        event, slot = placed.event, placed.slot
        kind, source = event.kind, event.source
        if event.halts:
            self.halt(event, slot)
        elif kind == "delivery_start":
            self.start(event, slot)
        elif kind == "rate_change" and source in self.state:
            self.change(source, event.said, slot)
        elif kind in ("delivery_stop", "delivery_complete"):
            self.stop(event, slot)
        elif kind == "limit_reached":
            self.limited = self.any("delivering", "zero")
        elif kind == "limit_cleared":
            for one, state in self.state.items():
                if state == "delivering":
                    if not self.limited:
                        self.missing_stop(one, slot)
                        self.given[one] = None
                    self.began[one] = slot
            self.limited = False

    def halt(self, event: Event, slot: int) -> None:
        for one, state in self.state.items():
            if state == "delivering":
                if event.kind == "power_on":
                    self.missing_stop(one, slot)
                self.why = "alarm" if event.kind == "alarm_raised" else "paused"
            if state != "stopped":
                self.state[one] = "halted"
        self.kvo_runs = False

    def start(self, event: Event, slot: int) -> None:
        source = event.source
        assert source is not None
        rate = event.said.get("rate_ml_h", event.said.get("rate_dose_h"))
        if source == "kvo":
            self.kvo_runs = self.kvo_seen = True
            if not self.limited:
                for one, state in self.state.items():
                    if state == "delivering":
                        self.missing_stop(one, slot)
                        self.state[one] = "stopped"
                        self.why = "paused"
            return
        self.kvo_runs = False
        if self.state[source] == "delivering":
            self.missing_stop(source, slot)
            self.why = "paused"
        self.state[source] = "zero" if rate == 0 else "delivering"
        self.began[source] = self.ran_from[source] = slot
        self.given[source] = 0.0
        self.rate[source] = event.said.get("rate_ml_h")

    def change(self, source: str, said: Mapping[str, Any], slot: int) -> None:
        rate = said.get("rate_ml_h", said.get("rate_dose_h"))
        self.rate[source] = said.get("rate_ml_h")
        if self.state[source] == "delivering" and rate == 0:
            self.state[source] = "zero"
            self.why = "paused"
        elif self.state[source] == "zero" and rate != 0:
            self.state[source] = "delivering"
            self.began[source] = slot

    def stop(self, event: Event, slot: int) -> None:
        source = event.source
        reason = "alarm" if event.kind == "delivery_stop" and event.said.get("reason") in ("alarm", "malfunction") else "paused"
        if source == "kvo":
            self.kvo_runs = False
            return
        if source is None:
            if all(state == "unseen" for state in self.state.values()) and not self.kvo_seen:
                self.missing_start(source, slot)
                self.state = dict.fromkeys(SOURCES, "stopped")
                self.why = reason
            self.kvo_runs = False
            for one, state in self.state.items():
                if state in ("delivering", "zero"):
                    if state == "delivering":
                        self.why = reason
                    self.state[one] = "stopped"
            return
        if self.state[source] == "unseen":
            self.missing_start(source, slot)
            self.why = reason
        elif self.state[source] == "delivering":
            self.why = reason
        told, given = event.said.get("volume_ml"), self.given[source]
        runs_now = self.state[source] in ("delivering", "zero")
        if runs_now and told is not None and given is not None and abs(told - given) > max(1, 0.1 * told):
            self.mismatch.append(slot)
        self.state[source] = "stopped"

    def bolus_slots(self) -> Any:
        """The slots that only boluses fill."""
        stretch = self.stretch
        slots = np.zeros(len(stretch.weight), dtype=bool)
        ends = [p.slot for p in stretch.events if p.event.halts or p.event.kind == "delivery_stop"]
        given = [(stretch.early.get(n, p.slot), p) for n, p in enumerate(stretch.events) if p.event.kind == "bolus_delivered"]
        for first, placed in sorted(given, key=lambda one: one[0]):
            if bolus_start(placed) < 0:
                self.disputed.add(BEGAN_BEFORE)
            if self.judged[first] or slots[first]:
                continue
            until = bolus_start(placed) + int(placed.event.said.get("duration_s") or 0)
            end = int(np.searchsorted(stretch.elapsed, until, side="left"))
            end = min([end, len(slots) - 1, *(slot for slot in ends if slot > first)])
            slots[first : max(end, first + 1)] = True
        return slots


def runs(slots: Any) -> list[tuple[int, int]]:
    """[first, end) of each run of true slots."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], slots.astype(np.int8), [0]))))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def infusing_pieces(machine: Machine) -> list[Piece]:
    """Runs of slots in which anything infuses; those that touch are one, unless a halt lies between."""
    stretch = machine.stretch
    halts = [p.slot for p in stretch.events if p.event.halts]
    whole = machine.boluses.copy()
    for slots in machine.infuses.values():
        whole |= slots
    found: list[Piece] = []
    for first, end in runs(whole):
        last = found[-1] if found else None
        touches = last is not None and stretch.elapsed[first] == stretch.elapsed[last.end]
        if last is not None and touches and not any(last.end <= halt <= first for halt in halts):
            last.end = end
        else:
            found.append(Piece(first, end, False))
    return found


def order_at(orders: Sequence[Mapping[str, str]], pump: str, utc: float | None, clock: int) -> Mapping[str, str] | None:
    """The order in force on a pump: at UTC, or at the printed time read in the order's zone."""
    for order in orders:
        when = utc if utc is not None else read_in_zone(clock, order["tz"])
        start, stop = edges(order)
        if order["pump_id"] == pump and start <= when and (stop is None or when < stop):
            return order
    return None


def edges(order: Mapping[str, str]) -> tuple[int, int | None]:
    """When an order starts and stops, in UTC seconds."""
    stop = order.get("stop")
    return printed_s(order["start"].removesuffix("Z")), printed_s(stop.removesuffix("Z")) if stop else None


@dataclass
class Setup:
    """A set-up: of which session, when, what it shows."""

    session: Session
    at: float
    slot: int
    pump_setup: bool
    site: str


@dataclass
class Reach:
    """Dates on which encounters of an order are not proved; None is without bound."""

    order_id: str
    first: date | None
    last: date | None
    code: str


@dataclass
class Pump:
    """What one pump's log gives."""

    sessions: list[Session]
    setups: list[Setup]
    reaches: list[Reach]
    gaps: Counter[int]
    disputed: set[str] = field(default_factory=set)


def derive(pump: str, captures: Iterable[Capture], orders: Sequence[Mapping[str, str]]) -> Pump:
    """Sessions, set-ups and reaches of one pump (§3-§5)."""
    found = stretches(read_log(captures))
    result = Pump([], [], [], Counter())
    idle = kvo = False
    for number, stretch in enumerate(found):
        if not stretch.events:
            continue
        machine = Machine(stretch)
        sessions = _sessions(machine, number, pump, orders, result.gaps)
        quiet_clock = stretch.cuts == ["CLOCK_UNCERTAIN"] and idle
        for code in stretch.cuts:
            quiet = code == "CLOCK_UNCERTAIN" and (idle or len(stretch.cuts) > 1)
            settle, how = (stretch.events[0], "first") if quiet else _settling(stretch)
            stretch.reach_to[code] = stretch.events[0].slot if how == "start" else settle.slot
            if code == stretch.cuts[0]:
                _flag_cut(stretch, code, sessions, settle, how)
        if kvo and stretch.cuts == ["CLOCK_UNCERTAIN"]:
            result.disputed.add(KVO_BEFORE_LOSS)
        _flag_ends(machine, sessions)
        result.sessions += sessions
        result.setups += _setups(machine, sessions, quiet=quiet_clock)
        result.disputed |= machine.disputed | stretch.disputed
        kvo = machine.kvo_runs
        idle = _settling(stretch)[1] != "none" and not machine.any("delivering", "zero") and not kvo
    _reaches(pump, found, result, orders)
    return result


def _sessions(machine: Machine, number: int, pump: str, orders: Sequence[Mapping[str, str]], gaps: Counter[int]) -> list[Session]:
    stretch = machine.stretch
    pieces = sorted(infusing_pieces(machine) + machine.unknown, key=lambda piece: (piece.first, piece.end))
    patients = [p.slot for p in stretch.events if p.event.kind == "new_patient"]
    sessions: list[Session] = []
    for piece in pieces:
        start, stop = stretch.utc(piece.first), stretch.utc(piece.end)
        piece.order = order_at(orders, pump, start, stretch.printed(piece.first))
        if piece.order is not None and (ends := edges(piece.order)[1]) is not None:
            length = float(stretch.elapsed[piece.end] - stretch.elapsed[piece.first])
            if start is None:
                stop = read_in_zone(stretch.printed(piece.end), piece.order["tz"])
            elif stop is None:
                stop = start + length
            if stop > ends:
                piece.flags.add("ORDER_BOUNDARY")
        last = sessions[-1] if sessions else None
        same = last is not None and (last.order or {}).get("order_id") == (piece.order or {}).get("order_id")
        if last is not None and same:
            gap = int(stretch.elapsed[piece.first] - stretch.elapsed[last.end])
            gaps[gap] += 1
            if gap <= GAP_S and not any(last.end <= slot <= piece.first for slot in patients):
                last.pieces.append(piece)
                continue
        sessions.append(Session(stretch, number, pump, piece.order, [piece]))
    for session in sessions:
        _count(session, machine)
    return sessions


def _count(session: Session, machine: Machine) -> None:
    """The kind of each second of a session, and the flags that its pieces and records give."""
    stretch = session.stretch
    size = len(stretch.weight)
    infusing, unknown = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    for piece in session.pieces:
        (unknown if piece.unknown else infusing)[piece.first : piece.end] = True
        session.flags |= piece.flags
    steady = np.zeros(size, dtype=bool)
    for source, slots in machine.infuses.items():
        if source not in RIDING_BOLUS:
            steady |= slots
    session.infusing, session.steady = infusing, infusing & steady
    for piece in session.pieces:
        if piece.unknown and piece.source not in RIDING_BOLUS:
            session.steady[piece.first : piece.end] |= ~infusing[piece.first : piece.end]
    left = np.zeros(size, dtype=bool)
    left[session.first : session.end] = True
    for name, slots in (("infusing", infusing), ("unknown", unknown), ("kvo", machine.kvo), ("alarm", machine.alarm), ("paused", left)):
        mine = left & slots
        session.kinds[name] = int(stretch.weight[mine].sum())
        left &= ~mine
    if stretch.doubtful(session.first, session.end):
        session.flags.add("CLOCK_UNCERTAIN")
    low, high = stretch.elapsed[session.first], stretch.elapsed[session.end]
    for placed in stretch.events:
        near = low - GAP_S <= placed.named <= high + GAP_S
        if placed.event.conflict and near:
            session.flags.add("RECORD_CONFLICT")
    if any(session.first <= slot <= session.end for slot in machine.mismatch):
        session.flags.add("VOLUME_MISMATCH")
    if _too_soon(session):
        session.flags.add("LOCKOUT_VIOLATION")


def _too_soon(session: Session) -> bool:
    low, high = session.stretch.elapsed[session.first], session.stretch.elapsed[session.end]
    lockout: float | None = None
    granted: int | None = None
    for placed in session.stretch.events:
        if placed.event.kind == "settings_change" and "lockout_s" in placed.event.said:
            lockout = placed.event.said["lockout_s"]
        if placed.event.kind == "demand_granted":
            soon = lockout is not None and granted is not None and placed.at - granted < lockout
            if soon and low <= placed.at <= high:
                return True
            granted = placed.at
    return False


def _settling(stretch: Stretch) -> tuple[Placed, str]:
    """The record that settles a stretch, and how: start, end (a stop, completion or halt), or none."""
    zero = False
    for placed in stretch.events:
        event = placed.event
        if event.halts:
            return placed, "end"
        if event.kind == "delivery_start" and event.source in SETTLING:
            return placed, "end" if zero else "start"
        if event.kind == "rate_change" and event.source in SETTLING:
            zero = zero or 0 in (event.said.get("rate_ml_h"), event.said.get("rate_dose_h"))
        if event.kind in ("delivery_stop", "delivery_complete") and event.source in (None, *SETTLING):
            return placed, "end"
    return stretch.events[-1], "none"


def _flag_cut(stretch: Stretch, code: str, sessions: Iterable[Session], settle: Placed, how: str) -> None:
    """Marks the sessions that a cut leaves in doubt."""
    for session in sessions:
        begins = stretch.elapsed[session.first]
        ended = how == "end" and begins - stretch.elapsed[settle.slot] <= GAP_S
        if session.first < settle.slot or begins <= GAP_S or ended:
            session.flags.add(code)


def _flag_ends(machine: Machine, sessions: Sequence[Session]) -> None:
    """What still runs when the stretch ends leaves its last session open, or without a stop, if it could be a part of it."""
    stretch = machine.stretch
    flag = "SESSION_OPEN" if stretch.last_of_log else "NO_STOP"
    for source, state in machine.state.items():
        if state in ("delivering", "zero") and sessions:
            last = sessions[-1]
            if stretch.elapsed[machine.ran_from[source]] - stretch.elapsed[last.end] <= GAP_S:
                last.flags.add(flag)


# --- §5: set-ups ----------------------------------------------------------------------------------------------------------------------


def shows(event: Event) -> tuple[bool, str]:
    """Whether one set-up event shows a pump set-up, and what it shows of a new site."""
    said = event.said
    if event.kind == "reservoir_change":
        return True, "no"
    if event.kind == "priming_started":
        return False, "no"
    volume, programmed = said.get("volume_ml"), said.get("programmed_ml")
    aborted = said.get("reason") in ("aborted", "error") or (volume is not None and programmed is not None and volume < programmed)
    target = said.get("target", "unknown")
    if target == "cannula":
        return False, "possible" if aborted else "yes"
    return not aborted, "possible" if target == "unknown" else "no"


def _setups(machine: Machine, sessions: Sequence[Session], *, quiet: bool) -> list[Setup]:
    stretch = machine.stretch
    settle, how = _settling(stretch)
    pieces = sorted(((piece.first, piece.end, session) for session in sessions for piece in session.pieces), key=lambda p: p[:2])
    groups: dict[int, list[Placed]] = {}
    found: list[Setup] = []

    def make(session: Session, events: Sequence[Placed]) -> None:
        shown = [shows(placed.event) for placed in events]
        slot = events[-1].slot
        utc = stretch.utc(slot)
        order = session.order
        if order is None:
            return
        at = utc if utc is not None else read_in_zone(stretch.printed(slot), order["tz"])
        found.append(Setup(session, at, slot, any(s for s, _ in shown), max((site for _, site in shown), key=SITE.__getitem__)))

    for placed in stretch.events:
        if placed.event.kind not in SETUP_KINDS:
            continue
        ends_it = placed is stretch.events[-1]
        inside = [session for first, end, session in pieces if first <= placed.slot < end and not (ends_it and end == placed.slot + 1)]
        if inside:
            make(inside[0], [placed])
            continue
        if how == "end" and settle.event.kind != "reservoir_change" and not quiet and placed.slot < settle.slot:
            continue
        following = next((n for n, (first, _, _) in enumerate(pieces) if first > placed.slot), None)
        if following is not None:
            groups.setdefault(following, []).append(placed)
    for following, events in groups.items():
        make(pieces[following][2], events)
    return found


# --- §6: reach and lines --------------------------------------------------------------------------------------------------------------


def _reaches(pump: str, found: Sequence[Stretch], result: Pump, orders: Sequence[Mapping[str, str]]) -> None:
    def read(stretch: Stretch, slot: int) -> float | None:
        """UTC, as records know it: one at the very instant of an anchor that disagrees with the one before lies between the two."""
        torn = any(b[0] == slot for _, b in stretch.contradicted)
        return None if torn else stretch.utc(slot)

    known = [
        (number, placed.slot, utc)
        for number, stretch in enumerate(found)
        for placed in stretch.events
        if (utc := read(stretch, placed.slot)) is not None
    ]

    def back(number: int, slot: int, tz: str) -> date | None:
        utc = read(found[number], slot) if number >= 0 and found[number].events else None
        if utc is None:
            utc = next((u for n, s, u in reversed(known) if (n, s) < (number, slot)), None)
        return None if utc is None else local(utc, tz).date()

    def on(number: int, slot: int, tz: str) -> date | None:
        utc = read(found[number], slot) if found[number].events else None
        if utc is None:
            utc = next((u for n, s, u in known if (n, s) > (number, slot)), None)
        return None if utc is None else local(utc, tz).date()

    for session in result.sessions:
        if session.order is None:
            continue
        for code in session.flags & TIME_CODES:
            first, last = (
                back(session.stretch_no, session.first, session.order["tz"]),
                on(session.stretch_no, session.end, session.order["tz"]),
            )
            result.reaches.append(_either_way(Reach(session.order["order_id"], first, last, code)))
    mine = {order["order_id"]: order["tz"] for order in orders if order["pump_id"] == pump}
    for number, stretch in enumerate(found):
        before = found[number - 1] if number else None
        near = [
            begins
            for session in result.sessions
            if before is not None and session.stretch is before and (begins := session.start_utc) is not None
            if before.elapsed[-1] - before.elapsed[session.end] <= GAP_S
        ]
        for code in stretch.cuts:
            for order_id, tz in mine.items():
                first = back(number - 1, found[number - 1].events[-1].slot, tz) if number else None
                if first is not None:
                    first = min([first, *(local(begins, tz).date() for begins in near)])
                last = on(number, stretch.reach_to[code], tz) if stretch.events else None
                result.reaches.append(_either_way(Reach(order_id, first, last, code)))


def _either_way(reach: Reach) -> Reach:
    """Over all dates between the two, where UTC runs backwards."""
    if reach.first is None or reach.last is None or reach.first <= reach.last:
        return reach
    return replace(reach, first=reach.last, last=reach.first)


@dataclass
class Bill:
    """Codes with units, whole minutes, state and what holds of one encounter."""

    codes: dict[str, int]
    minutes: int
    reasons: set[str]

    @property
    def state(self) -> str:
        return "hold" if self.reasons else "ready"


Key = tuple[str, str, str]


@dataclass
class Told:
    """What the oracle says of one patient."""

    lines: dict[Key, Bill]
    pumps: dict[str, Pump]
    minutes: Counter[int]
    disputed: set[str]


def units(minutes: int) -> dict[str, int]:
    """Minutes in codes, one encounter (docs/billing.md §2)."""
    if minutes < 1:
        return {}
    if minutes < 16:
        return {"96372": 1}
    further = 0 if minutes < 91 else (minutes - 31) // 60
    return {"96369": 1} | ({"96370": further} if further else {})


def second_site(setups: Sequence[Setup], sessions: Sequence[Session]) -> bool:
    """Whether a further set-up of an encounter counts (96371)."""

    def counts(setup: Setup) -> bool:
        return setup.pump_setup and setup.site == "yes"

    kept: list[Setup] = []
    for setup in sorted(setups, key=lambda s: (s.at, not counts(s), s.session.pump, s.session.stretch_no, s.slot)):
        before = next((k for k in reversed(kept) if k.session.pump == setup.session.pump), None)
        if before is not None and _infused(before, setup, sessions) < SEPARATION_S:
            kept.remove(before)
            site = max(before.site, setup.site, key=SITE.__getitem__)
            kept.append(replace(setup, pump_setup=before.pump_setup or setup.pump_setup, site=site))
        else:
            kept.append(setup)
    # What several of one pump show together decides which of two at the same instant comes first.
    return any(counts(setup) for setup in sorted(kept, key=lambda s: (s.at, not counts(s)))[1:])


def _infused(a: Setup, b: Setup, sessions: Sequence[Session]) -> int:
    """Infusing seconds of their pump between two set-ups: by slots in the stretch of both, else on the common time line."""
    total = 0
    elsewhere: list[Any] = []
    for session in sessions:
        if session.pump != a.session.pump:
            continue
        if session.stretch is a.session.stretch and session.stretch is b.session.stretch:
            total += int(session.stretch.weight[a.slot : b.slot][session.infusing[a.slot : b.slot]].sum())
        else:
            elsewhere.append(session.seconds())
    if elsewhere:
        seconds = np.unique(np.concatenate(elsewhere))
        total += int(((seconds >= a.at) & (seconds < b.at)).sum())
    return total


def tell(captures: Sequence[Capture], orders: Sequence[Mapping[str, str]]) -> Told:
    """What the captures of one patient's pumps bill."""
    pumps = {
        pump: derive(pump, [one for one in captures if one.pump_id == pump], orders) for pump in sorted({one.pump_id for one in captures})
    }
    sessions = [session for pump in pumps.values() for session in pump.sessions if session.order is not None]
    setups = [setup for pump in pumps.values() for setup in pump.setups]
    encounters: dict[tuple[str, date], list[Session]] = {}
    for session in sessions:
        assert session.order is not None
        if session.order["route"] == "SC" and "insulin" not in session.order["drug"]:
            encounters.setdefault((session.order["order_id"], session.day()), []).append(session)
    bills: dict[tuple[str, date], Bill] = {}
    minutes: Counter[int] = Counter()
    for (order_id, day), mine in encounters.items():
        order = mine[0].order
        assert order is not None
        seconds = union(mine)
        m = seconds // 60
        minutes[seconds] += 1
        codes = units(m)
        if "96369" in codes and second_site([s for s in setups if s.session in mine], mine):
            codes["96371"] = 1
        reasons = set().union(*(session.flags for session in mine))
        if m > LONG_MIN:
            reasons.add("OVER_8H")
        if codes.get("96370", 0) > CAP:
            reasons.add("OVER_UNIT_CAP")
        if not any(session.stretch.weight[session.steady].sum() for session in mine):
            reasons.add("DEMAND_ONLY")
        intravenous = [session for session in sessions if session.order and session.order["route"] == "IV"]
        if any(_touches(one, day, order["tz"]) or any(_at_once(one, session) for session in mine) for one in intravenous):
            reasons.add("IV_SAME_ENCOUNTER")
        for pump in pumps.values():
            for reach in pump.reaches:
                inside = (reach.first is None or reach.first <= day) and (reach.last is None or day <= reach.last)
                if reach.order_id == order_id and inside:
                    reasons.add(reach.code)
        bills[order_id, day] = Bill(codes, m, reasons)
    _hold_together(encounters, bills, sessions)
    patients = {order["order_id"]: order["patient_id"] for order in orders}
    lines = {(patients[order_id], order_id, day.isoformat()): bill for (order_id, day), bill in bills.items() if bill.codes}
    disputed = set().union(*(pump.disputed for pump in pumps.values()))
    if any(a.at == b.at and a.session.pump != b.session.pump for n, a in enumerate(setups) for b in setups[:n]):
        disputed.add(SAME_INSTANT)
    return Told(lines, pumps, minutes, disputed)


def union(sessions: Sequence[Session]) -> int:
    """How many seconds infuse: those of one stretch all count, those of two at the same time once."""
    by_stretch: dict[int, list[Any]] = {}
    for session in sessions:
        by_stretch.setdefault(id(session.stretch), []).append(session.begins_ms())
    if len(by_stretch) == 1:
        return sum(len(seconds) for seconds in next(iter(by_stretch.values())))
    # Two stretches need not tick together: of a second that begins amid one of the other a part is common.
    begins = [np.sort(np.concatenate(parts)) for parts in by_stretch.values()]
    edges = np.unique(np.concatenate([ms for one in begins for ms in (one, one + 1000)]))
    most = np.max([np.searchsorted(one, edges, "right") - np.searchsorted(one + 1000, edges, "right") for one in begins], axis=0)
    return int(most[:-1] @ np.diff(edges)) // 1000


def _at_once(one: Session, other: Session) -> bool:
    """Whether two sessions infuse at the same time."""
    mine, theirs = one.seconds(), other.seconds()
    if not (len(mine) and len(theirs)) or mine.max() < theirs.min() or theirs.max() < mine.min():
        return False
    return bool(np.intersect1d(mine, theirs).size)


def _touches(session: Session, day: date, tz: str) -> bool:
    """Whether the span of a session touches a local date."""
    length = float(session.stretch.elapsed[session.end] - session.stretch.elapsed[session.first])
    start, stop = session.start_utc, session.stop_utc
    if start is None:
        clock = session.stretch.printed(session.first)
        first, last = naive(clock).date(), naive(clock + length).date()
    else:
        first, last = local(start, tz).date(), local(start + length if stop is None else stop, tz).date()
    return first <= day <= last


def _hold_together(encounters: Mapping[tuple[str, date], list[Session]], bills: Mapping[tuple[str, date], Bill], sessions: Any) -> None:
    """What two pumps or two orders at once hold."""
    if len({session.pump for session in sessions}) < 2 and len({session.order["order_id"] for session in sessions}) < 2:
        return
    billable = [session for mine in encounters.values() for session in mine]
    by_day = Counter(day for (_, day), bill in bills.items() if bill.codes)
    for key, mine in encounters.items():
        if bills[key].codes and by_day[key[1]] > 1:
            bills[key].reasons.add("SECOND_ORDER_SAME_DAY")
        for session in mine:
            assert session.order is not None
            for other in billable:
                same = other.order["order_id"] == session.order["order_id"]
                if (same and other.pump == session.pump) or other is session:
                    continue
                if _at_once(session, other):
                    bills[key].reasons.add("OVERLAPPING_PUMPS" if same else "SECOND_ORDER_SAME_DAY")


# --- random encounters ----------------------------------------------------------------------------------------------------------------

ZONES = {
    "America/New_York": ("2026-03-07", "2026-10-31"),
    "Asia/Kathmandu": ("2026-03-07", "2026-06-10"),
    "America/St_Johns": ("2026-03-07", "2026-10-31"),
    "Europe/London": ("2026-03-28", "2026-10-24"),
}
BOUNDS = (1, 16, 91, 151, 211, 481, 571)
"""Whole minutes at which codes, units or state change."""
GAPS = (3599, 3600, 3601)


@dataclass(frozen=True)
class Taken:
    """One capture as it is written: header and lines."""

    header: Mapping[str, Any]
    lines: tuple[Line, ...]

    def capture(self) -> Capture:
        rows = [self.header, *self.lines]
        data = b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n"
        return Capture(data=data, family="canonical", pump_id=self.header["pump_id"])


@dataclass(frozen=True)
class Encounter:
    """What one patient's pumps recorded, their orders, and what was put in."""

    captures: tuple[Taken, ...]
    orders: tuple[Mapping[str, str], ...]
    hit: Counter[str] = field(default_factory=Counter, compare=False)

    def text(self) -> str:
        """The captures and orders to read."""
        shown = [f"order {json.dumps(order)}" for order in self.orders]
        for taken in self.captures:
            shown.append(json.dumps(taken.header))
            shown += [line.decode() if isinstance(line, bytes) else json.dumps(line) for line in taken.lines]
        return "\n".join(shown)


class Script:
    """Writes the log of one pump: true seconds since its begin, and what its clock shows."""

    def __init__(self, rng: random.Random, hit: Counter[str], begin_utc: int, clock: int, *, faults: float, drift: float) -> None:
        self.rng, self.hit, self.begin, self.clock, self.faults, self.drift = rng, hit, begin_utc, clock, faults, drift
        self.now = 0
        self.lines: list[dict[str, Any]] = []
        self.anchors: list[tuple[int, dict[str, str]]] = []

    @property
    def time(self) -> int:
        return self.clock + self.now

    def add(self, kind: str, **fields: Any) -> None:
        self.lines.append({"pump_time": naive(self.time).isoformat(), "kind": kind, **fields})

    def wait(self, seconds: int) -> None:
        self.now += max(0, seconds)

    def faulty(self, share: float, name: str) -> bool:
        """Whether a fault of this share happens here; counts it."""
        happens = self.rng.random() < share * self.faults
        if happens:
            self.hit[name] += 1
        return happens

    def anchor(self, error: int = 0) -> None:
        """The clock is read now."""
        utc = self.begin + round(self.now * (1 + self.drift)) + error
        if self.lines:
            told = {"pump_clock": naive(self.time).isoformat(), "utc": naive(utc).isoformat() + "Z"}
            self.anchors.append((len(self.lines) - 1, told))

    def set_clock(self) -> None:
        by = self.rng.choice((1, 7, 59, 61, 300, 3600, 7200, 86400, 200000)) * self.rng.choice((1, -1))
        self.hit["clock change"] += 1
        reason = self.rng.choice(({}, {}, {"reason": "set"}, {"reason": "periodic"}))
        self.add("clock_change", old=naive(self.time).isoformat(), new=naive(self.time + by).isoformat(), **reason)
        self.clock += by

    def lose_clock(self) -> None:
        if self.rng.random() < 0.5:
            self.hit["clock loss"] += 1
            self.clock += self.rng.choice((-500000, -3600, 0, 0, 40, 7200))
            self.add("clock_change", reason="loss")
        else:
            self.hit["clock lost alarm"] += 1
            self.clock += self.rng.choice((-3600, 0, 0, 600))
            self.add("alarm_raised", alarm_class="clock_lost", **self.rng.choice(({}, {"stops_delivery": True})))

    def step(self) -> None:
        """The clock steps with no record of it."""
        by = self.rng.choice((-1, -30, -60, -61, -300, -7200, -90000, 500, 5000, 90000))
        self.hit["step back within" if -60 <= by < 0 else "step back" if by < 0 else "silent jump"] += 1
        self.clock += by

    def setup(self) -> None:
        for _ in range(self.rng.choice((1, 1, 1, 2))):
            for what in self.rng.sample(("reservoir", "tubing", "cannula", "unknown", "started"), self.rng.choice((1, 2, 3))):
                self.hit[f"set-up {what}"] += 1
                if what == "reservoir":
                    self.add("reservoir_change")
                else:
                    self.prime(what)
                self.wait(self.rng.choice((0, 0, 20, 60)))

    def prime(self, target: str) -> None:
        if target == "started":
            self.add("priming_started")
            return
        how = self.rng.choice(({}, {}, {"volume_ml": 0.3, "programmed_ml": 0.3, "reason": "amount_reached"}, None))
        if how is None:
            self.hit["set-up aborted"] += 1
            how = self.rng.choice(({"reason": "aborted"}, {"reason": "error"}, {"volume_ml": 0.1, "programmed_ml": 0.3}))
        self.add("priming_done", **({} if target == "unknown" and self.rng.random() < 0.5 else {"target": target}), **how)

    def bolus(self) -> None:
        source = self.rng.choice(("pca", "pca", "clinician", "loading", "primary"))
        fields: dict[str, Any] = {"source": source, "volume_ml": 0.5}
        lasts = self.rng.choice((None, 0, 1, 30, 60, 300, 900, 960))
        if lasts is not None:
            fields["duration_s"] = lasts
        if source == "pca":
            self.add(self.rng.choice(("demand_granted", "demand_denied", "bolus_requested")))
        if self.rng.random() < 0.4:
            self.wait(self.rng.choice((0, lasts or 0, (lasts or 0) + 5)))
            self.hit["bolus at end"] += 1
            self.add("bolus_delivered", at="end", **fields)
        else:
            self.hit["bolus at start"] += 1
            self.add("bolus_delivered", **fields)
            self.wait(self.rng.choice((0, 10, lasts or 0, (lasts or 0) + 30)))

    def noise(self) -> None:
        kind = self.rng.choice(("other", "device_link", "alarm_cleared", "daily_total", "counters_cleared", "battery", "settings_change"))
        if kind == "battery":
            self.hit["alarm without stop"] += 1
            self.add("alarm_raised", alarm_class="battery")
        else:
            self.add(kind)

    def stray(self) -> None:
        """A record that fits nothing: it may say that another is missing."""
        rng = self.rng
        self.hit["stray record"] += 1
        source = rng.choice((*SOURCES, "kvo"))
        rng.choice(
            (
                lambda: self.add("delivery_stop", source=source, reason=rng.choice(("user", "alarm", "unknown"))),
                lambda: self.add("delivery_stop"),
                lambda: self.add("rate_change", source=source, rate_ml_h=rng.choice((0, 2.0))),
                lambda: self.add("limit_reached"),
                lambda: self.add("limit_cleared"),
                lambda: self.add("power_on"),
                lambda: self.add("power_off"),
                lambda: self.add("delivery_start", source="kvo", rate_ml_h=0.1),
                lambda: self.add("delivery_start", source=source if source != "kvo" else "basal", rate_ml_h=rng.choice((0, 1.0))),
                lambda: self.add("delivery_complete"),
            )
        )()

    def rate(self) -> dict[str, Any]:
        return self.rng.choice(({"rate_ml_h": 2.0}, {"rate_ml_h": 2.0}, {"rate_dose_h": 1.0}, {}))

    def deliver(self, seconds: int) -> None:
        """Lets drug flow for so many seconds in all, with what may happen meanwhile."""
        rng = self.rng
        source = rng.choices(SOURCES, (55, 20, 8, 7, 5, 3, 2))[0]
        rate = self.rate()
        self.add("delivery_start", source=source, **rate)
        marks = sorted(rng.randint(0, seconds) for _ in range(rng.choice((0, 0, 1, 1, 2, 3))))
        flowed, told = 0, True
        for mark in marks:
            self.wait(mark - flowed)
            flowed = mark
            extra, keeps = self.meanwhile(source, rate, seconds - flowed)
            flowed += extra
            told = told and keeps
            if flowed > seconds:
                break
        self.wait(seconds - flowed)
        self.finish(source, volume=2.0 * seconds / 3600 if rate.get("rate_ml_h") and told and not marks else None)

    def meanwhile(self, source: str, rate: Mapping[str, Any], left: int) -> tuple[int, bool]:
        """Something within a delivery; gives the seconds it flowed meanwhile."""
        rng = self.rng
        pause = rng.choice((1, 60, 300, 1800, *GAPS, 4000))
        what = rng.choices(
            ("rate", "zero", "limit", "alarm", "clock", "prime", "bolus", "noise", "second", "kvo", "fault"),
            (8, 10, 12, 12, 10, 8, 10, 8, 8, 4, 12),
        )[0]
        if what == "rate":
            self.add("rate_change", source=source, **self.rate())
        elif what == "zero":
            self.hit["rate 0"] += 1
            self.add("rate_change", source=source, rate_ml_h=0)
            self.wait(pause)
            self.add("rate_change" if rng.random() < 0.8 else "delivery_start", source=source, **rate)
        elif what == "limit":
            self.hit["limit"] += 1
            self.add("limit_reached")
            self.wait(pause)
            if rng.random() < 0.3:
                self.add("delivery_start", source="kvo", rate_ml_h=0.1)
                self.wait(30)
                self.add("delivery_stop", source="kvo")
            self.add("limit_cleared")
        elif what == "alarm":
            self.hit["alarm with stop"] += 1
            self.add("alarm_raised", alarm_class=rng.choice(("occlusion", "air", "empty")), stops_delivery=True)
            self.wait(pause)
            if rng.random() < 0.5:
                self.add("alarm_cleared")
            self.add("delivery_start", source=source, **rate)
        elif what == "clock":
            self.set_clock()
        elif what == "prime":
            self.hit["priming within"] += 1
            self.prime(rng.choice(("tubing", "cannula", "unknown", "started")))
        elif what == "bolus":
            before = self.now
            self.bolus()
            return self.now - before, True
        elif what == "noise":
            self.noise()
        elif what == "second":
            self.hit["second source"] += 1
            other = rng.choice([one for one in SOURCES if one != source])
            self.add("delivery_start", source=other, rate_ml_h=1.0)
            inner = rng.randint(0, left)
            self.wait(inner)
            self.add(rng.choice(("delivery_stop", "delivery_complete")), source=other)
            return inner, True
        elif what == "kvo":
            self.hit["kvo"] += 1
            self.add("delivery_stop", source=source, reason=rng.choice(("transitioning", "switching")))
            self.add("delivery_start", source="kvo", rate_ml_h=0.1)
            self.wait(pause)
            self.add("delivery_start", source=source, **rate)
        else:
            self.fault(source, rate)
        return 0, what in ("noise", "prime")

    def fault(self, source: str, rate: Mapping[str, Any]) -> None:
        """One fault, each with its share."""
        if self.faulty(0.12, "start without stop"):
            self.add("delivery_start", source=source, **rate)
        elif self.faulty(0.12, "kvo without stop"):
            self.add("delivery_start", source="kvo", rate_ml_h=0.1)
        elif self.faulty(0.12, "power on without stop"):
            self.add("power_on")
            if self.rng.random() < 0.7:
                self.add("delivery_start", source=source, **rate)
        elif self.faulty(0.15, "limit cleared alone"):
            self.add("limit_cleared")
        elif self.faulty(0.3, "a clock lost"):
            self.lose_clock()
        elif self.faulty(0.3, "a silent step"):
            self.step()
        elif self.faulty(0.2, "a stray record"):
            self.stray()
        elif self.faulty(0.1, "a gap that the log tells"):
            self.add(self.rng.choice(("data_gap", "data_corruption")))
        elif self.faulty(0.4, "lockout violation"):
            self.add("settings_change", lockout_s=600)
            self.add("demand_granted")
            self.add("demand_granted")

    def finish(self, source: str, *, volume: float | None) -> None:
        rng = self.rng
        if self.faulty(0.05, "stop left out"):
            return
        told: dict[str, Any] = {}
        if volume is not None and rng.random() < 0.3:
            told = {"volume_ml": round(volume, 6)}
            if self.faulty(0.2, "volume mismatch"):
                told = {"volume_ml": round(2 * volume + 3, 6)}
        how = rng.choices(("stop", "complete", "any", "alarm", "reservoir", "off", "patient", "kvo"), (50, 15, 8, 8, 6, 4, 2, 7))[0]
        if how == "stop":
            reason = rng.choice(({}, {"reason": "user"}, {"reason": "alarm"}, {"reason": "malfunction"}, {"reason": "standby"}))
            self.add("delivery_stop", source=source, **reason, **told)
        elif how == "complete":
            self.add("delivery_complete", source=source, **told)
        elif how == "any":
            self.hit["stop without a source"] += 1
            self.add("delivery_stop", reason="user")
        elif how == "alarm":
            self.hit["alarm with stop"] += 1
            self.add("alarm_raised", alarm_class="occlusion", stops_delivery=True)
        elif how == "reservoir":
            self.add("reservoir_change")
        elif how == "off":
            self.add("power_off")
            self.wait(rng.choice((0, 600)))
            self.add("power_on")
        elif how == "patient":
            self.hit["new patient"] += 1
            self.add("new_patient")
        else:
            self.hit["kvo"] += 1
            self.add("delivery_complete", source=source)
            self.add("delivery_start", source="kvo", rate_ml_h=0.1)
            self.wait(rng.choice((60, 900)))
            self.add("delivery_stop", source="kvo")

    def day(self) -> None:
        """The deliveries of one encounter, so split that their sum meets a boundary often, and what lies between them."""
        rng = self.rng
        total = rng.choices((rng.choice(BOUNDS) * 60 + rng.choice((-1, -1, 0, 0, 1, 30, -30)), rng.randint(1, 40000)), (75, 25))[0]
        parts = min(rng.choice((1, 1, 1, 2, 2, 3, 4)), total)
        edges_ = [0, *sorted(rng.sample(range(1, total), parts - 1)), total] if parts > 1 else [0, total]
        apart = total > 1000 and rng.random() < 0.15
        if apart:
            self.hit["set-ups 15 min apart"] += 1
            edges_ = [0, rng.choice((899, 900, 901)), total]
        if apart or rng.random() < 0.7:
            self.setup()
            self.wait(rng.choice((0, 30, 600)))
        for nth, (low, high) in enumerate(pairwise(edges_)):
            if nth and apart:
                self.add("reservoir_change")
                self.add("priming_done", target="cannula")
            elif nth:
                self.between()
            self.deliver(high - low)

    def between(self) -> None:
        rng = self.rng
        whole = rng.choice((0, 1, 60, 600, 1800, *GAPS, *GAPS, 5400))
        begun = self.now
        for _ in range(rng.choice((0, 0, 1, 2))):
            what = rng.choice(("setup", "setup", "noise", "clock", "bolus", "fault", "kvo"))
            if what == "setup":
                self.setup()
            elif what == "noise":
                self.noise()
            elif what == "clock":
                self.set_clock()
            elif what == "bolus" and rng.random() < 0.5:
                self.bolus()
            elif what == "kvo":
                self.add("delivery_start", source="kvo", rate_ml_h=0.1)
                self.wait(rng.choice((0, 60)))
                self.add("delivery_stop", source="kvo")
            elif what == "fault":
                self.fault("primary", {"rate_ml_h": 2.0})
        self.wait(whole - (self.now - begun))


def _write(script: Script, rng: random.Random, hit: Counter[str], pump: str) -> list[Taken]:
    """The captures of one log: numbered, split, repeated, and damaged."""
    base = rng.randint(1, 50)
    lines: list[Line] = [{"seq": n, **line} for n, line in enumerate(script.lines, base)]
    numbers = [n for n, _ in enumerate(script.lines, base)]
    hidden: set[int] = set()
    everywhere: dict[int, bytes] = {}
    contiguous = True
    if rng.random() < 0.05 * (1 + script.faults):
        contiguous = False
        hit["not contiguous"] += 1
        if rng.random() < 0.5:
            numbers = [n * 10 for n in numbers]
            lines = [{**line, "seq": line["seq"] * 10} for line in lines if isinstance(line, dict)]
    epoch_from = len(lines)
    if len(lines) > 2 and script.faulty(0.04, "new epoch"):
        epoch_from = rng.randint(1, len(lines) - 1)
    if script.faulty(0.3, "records missing"):
        first = rng.randrange(len(lines))
        hidden |= set(range(first, min(len(lines), first + rng.choice((1, 1, 2, 4)))))
    if script.faulty(0.2, "broken line"):
        n = rng.randrange(len(lines))
        line = lines[n]
        assert isinstance(line, dict)
        everywhere[n] = rng.choice(
            (
                b"{not JSON",
                json.dumps({**line, "kind": "dance"}).encode(),
                json.dumps({**line, "source": "moon"}).encode(),
                json.dumps({**line, "pump_time": "yesterday"}).encode(),
                json.dumps({k: v for k, v in line.items() if k != "seq"}).encode(),
            )
        )
    if len(hidden) >= len(lines):
        hidden = set()

    def header(epoch: int, anchor: Mapping[str, Any] | None) -> dict[str, Any]:
        head: dict[str, Any] = {"pumpledger": 1, "pump_id": pump}
        if epoch:
            head["log_epoch"] = epoch
        if not contiguous:
            head["contiguous"] = False
        return head | ({"anchor": anchor} if anchor else {})

    taken: list[Taken] = []
    for epoch, (low, high) in enumerate(((0, epoch_from), (epoch_from, len(lines)))):
        if low == high:
            continue
        cuts = sorted(rng.sample(range(low + 1, high), min(rng.choice((0, 0, 1, 2)), high - low - 1)))
        anchors = [(at, told) for at, told in script.anchors if low <= at < high]
        for a, b in pairwise([low, *cuts, high]):
            start = max(low, a - rng.choice((0, 0, 1, 3)))
            mine = [everywhere.get(n, lines[n]) for n in range(start, b) if n not in hidden]
            if rng.random() < 0.1 * script.faults and mine and cuts:
                hit["broken line that another capture has"] += 1
                mine[rng.randrange(len(mine))] = b"{torn"
            here = next((one for one in anchors if start <= one[0] < b), None)
            if here is not None:
                anchors.remove(here)
            told = None
            if here is not None:
                last = here[0] == b - 1 and rng.random() < 0.5
                told = here[1] if last else {**here[1], "after_seq": numbers[here[0]]}
            if mine:
                taken.append(Taken(header(epoch, told), tuple(mine)))
        for at, clock in anchors:
            if at not in hidden:
                taken.append(Taken(header(epoch, {**clock, "after_seq": numbers[at]}), (everywhere.get(at, lines[at]),)))
    if epoch_from == len(lines) and script.faulty(0.12, "conflict"):
        n = rng.choice([n for n in range(len(lines)) if n not in hidden])
        line = lines[n]
        assert isinstance(line, dict)
        bare = {"seq": line["seq"], "pump_time": line["pump_time"]}
        changed = rng.choice(({**bare, "kind": "other"}, {**bare, "kind": "delivery_stop"}, {**line, "note": 1}, {**line, "kind": "dance"}))
        last = script.anchors[-1] if script.anchors else None
        known = any(t.header.get("anchor") and line in t.lines for t in taken)
        if last is not None and changed != line and n not in everywhere:
            later = script.begin + round(script.now * (1 + script.drift)) + 100
            clock = {"pump_clock": naive(script.time + 100).isoformat(), "utc": naive(later).isoformat() + "Z"}
            if known and rng.random() < 0.5:
                taken.append(Taken(header(0, None), (changed,)))
            else:
                taken.append(Taken(header(0, {**clock, "after_seq": numbers[-1]}), (changed,)))
    if rng.random() < 0.2:
        taken.append(rng.choice(taken))
        hit["capture twice"] += 1
    rng.shuffle(taken)
    return taken


def random_encounter(rng: random.Random) -> Encounter:
    """One patient with one or two pumps and one or two orders, some clean, some with faults."""
    hit: Counter[str] = Counter()
    tz = rng.choice(sorted(ZONES))
    two_pumps = rng.random() < 0.25
    faults = rng.choice((0.0, 0.0, 0.5, 1.0, 1.0))
    begin = printed_s(rng.choice(ZONES[tz])) + rng.randint(-6, 30) * 3600 + rng.randint(0, 3599)
    begin = int(read_in_zone(begin, tz))
    taken: list[Taken] = []
    scripts: list[Script] = []
    for n in range(2 if two_pumps else 1):
        start = begin + (rng.choice((-3600, 0, 300, 5000, 40000)) if n else 0)
        clock = round((local(start, tz) - _ZERO).total_seconds()) + rng.choice((0, 0, 7, -400, 90000))
        drift = 0.0 if two_pumps or rng.random() < 0.8 else rng.choice((-0.0005, 0.0004))
        script = Script(rng, hit, start, clock, faults=faults, drift=drift)
        if script.faulty(0.12, "log begins in the middle"):
            script.add("other")
            script.wait(rng.choice((60, 4000)))
            script.add("delivery_stop", source=rng.choice(("primary", "basal")))
        days = rng.choice((1, 1, 2, 3))
        for day in range(days):
            script.day()
            if day < days - 1:
                if script.faulty(0.15, "anchor within"):
                    script.anchor()
                if script.faulty(0.05, "loss between days"):
                    script.lose_clock()
                script.wait(rng.choice((3600, 20000, 50000, 80000)) + rng.randint(0, 7200))
        if script.faulty(0.08, "open end"):
            script.add("delivery_start", source=rng.choice(("primary", "pca")), rate_ml_h=rng.choice((0, 2.0)))
            script.wait(rng.choice((0, 900, 7200)))
            if rng.random() < 0.5:
                script.noise()
        script.wait(rng.choice((0, 5, 700)))
        if script.faulty(0.08, "two anchors that disagree"):
            script.anchor(rng.choice((-4000, 3000, 90000)))
            script.wait(rng.choice((100, 5000)))
            script.noise()
            script.day()
            script.anchor()
        elif script.faulty(0.1, "no anchor"):
            script.anchors = []
        else:
            script.anchor()
            if rng.random() < 0.2:
                hit["two anchors that agree"] += 1
                script.wait(rng.choice((30, 600)))
                script.noise()
                script.anchor()
        scripts.append(script)
        pump = f"canonical:A{n + 1}"
        taken += _write(script, rng, hit, pump)
    return Encounter(tuple(taken), _orders(rng, hit, tz, scripts), hit)


def _orders(rng: random.Random, hit: Counter[str], tz: str, scripts: Sequence[Script]) -> tuple[Mapping[str, str], ...]:
    usual = {"patient_id": "pt-1", "order_id": "ord-1", "drug": "hydromorphone", "route": "SC", "tz": tz, "start": "2026-01-01T00:00:00Z"}
    first = {**usual, "pump_id": "canonical:A1"}
    special = rng.random()
    if special < 0.04:
        hit["excluded drug"] += 1
        first["drug"] = "insulin lispro"
    elif special < 0.07:
        first["route"] = "IV"
    rows = [first]
    if rng.random() < 0.2:
        hit["order that ends within"] += 1
        script = scripts[0]
        stop = naive(script.begin + rng.randint(0, max(1, script.now))).isoformat() + "Z"
        first["stop"] = stop
        if rng.random() < 0.6:
            hit["second order of the pump"] += 1
            rows.append({**usual, "pump_id": "canonical:A1", "order_id": "ord-2", "start": stop, "route": rng.choice(("SC", "SC", "IV"))})
    if len(scripts) > 1:
        kind = rng.choice(("same", "same", "second", "iv", "insulin", "none"))
        hit[f"second pump: {kind}"] += 1
        same = {"drug": first["drug"], "route": first["route"]} if kind == "same" else {"order_id": "ord-3"}
        other = {**usual, **same, "pump_id": "canonical:A2"}
        if kind == "iv":
            other["route"] = "IV"
        if kind == "insulin":
            other["drug"] = "insulin lispro"
        if kind != "none":
            rows.append(other)
    return tuple(rows)


# --- comparison -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """What differs, in words, and what the oracle told."""

    differences: tuple[str, ...]
    told: Told


def compare(encounter: Encounter, *, sessions: bool = True, reasons: bool = False) -> Compared:
    """Oracle and implementation over one encounter: codes, units, minutes and state of each date; sessions where asked."""
    captures = [taken.capture() for taken in encounter.captures]
    told = tell(captures, encounter.orders)
    given = kit.give(*captures, known=kit.orders(*encounter.orders))
    mine: dict[Key, Any] = {}
    for key, bill in told.lines.items():
        mine[key] = (bill.codes, bill.minutes, bill.state, sorted(bill.reasons) if reasons else None)
    theirs: dict[Key, Any] = {}
    for line in given.rows("lines"):
        key = (line["patient_id"], line["order_id"], line["service_date"].isoformat())
        codes, _, _, _ = theirs.setdefault(key, ({}, line["minutes"], line["state"], sorted(line["reasons"]) if reasons else None))
        codes[line["code"]] = line["units"]
    found = [
        f"{key}: oracle {mine.get(key)}, derived {theirs.get(key)}" for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key)
    ]
    if sessions:
        counted = Counter(_row(pump, session) for pump, one in told.pumps.items() for session in one.sessions)
        derived = Counter(
            (
                row["pump_id"], row["order_id"], row["start"] and row["start"].replace(tzinfo=None).isoformat(timespec="seconds"),
                row["span_s"], row["infusing_s"], row["unknown_s"], row["kvo_s"], tuple(sorted(SESSION_CODES.intersection(row["flags"]))),
            )
            for row in given.rows("sessions")
        )  # fmt: skip
        found += [f"only the oracle has the session {row}" for row in counted - derived]
        found += [f"only the derivation has the session {row}" for row in derived - counted]
    return Compared(tuple(found), told)


def _row(pump: str, session: Session) -> tuple[Any, ...]:
    start = session.start_utc
    kinds = session.kinds
    return (
        pump, (session.order or {}).get("order_id"), None if start is None else naive(int(start)).isoformat(timespec="seconds"),
        sum(kinds.values()), kinds["infusing"], kinds["unknown"], kinds["kvo"], tuple(sorted(session.flags)),
    )  # fmt: skip


def _smaller(encounter: Encounter) -> Iterator[Encounter]:
    """Encounters with a little less in them."""
    for n in range(len(encounter.captures)):
        yield replace(encounter, captures=encounter.captures[:n] + encounter.captures[n + 1 :])
    for n in range(len(encounter.orders)):
        yield replace(encounter, orders=encounter.orders[:n] + encounter.orders[n + 1 :])
    for n, order in enumerate(encounter.orders):
        if order["tz"] != "UTC":
            yield replace(encounter, orders=(*encounter.orders[:n], {**order, "tz": "UTC"}, *encounter.orders[n + 1 :]))
    numbers = {
        (t.header["pump_id"], t.header.get("log_epoch", 0), line["seq"])
        for t in encounter.captures
        for line in t.lines
        if isinstance(line, dict)
    }
    for pump, epoch, seq in sorted(numbers):
        yield replace(encounter, captures=tuple(_without(t, pump, epoch, seq) for t in encounter.captures))
    for n, taken in enumerate(encounter.captures):
        if "anchor" in taken.header:
            bare = replace(taken, header={k: v for k, v in taken.header.items() if k != "anchor"})
            yield replace(encounter, captures=(*encounter.captures[:n], bare, *encounter.captures[n + 1 :]))
        for k, line in enumerate(taken.lines):
            if isinstance(line, bytes):
                less = replace(taken, lines=taken.lines[:k] + taken.lines[k + 1 :])
                yield replace(encounter, captures=(*encounter.captures[:n], less, *encounter.captures[n + 1 :]))


def _without(taken: Taken, pump: str, epoch: int, seq: int) -> Taken:
    """A capture without a record, the numbers behind it closed up."""
    if (taken.header["pump_id"], taken.header.get("log_epoch", 0)) != (pump, epoch):
        return taken
    lines: list[Line] = []
    for line in taken.lines:
        if isinstance(line, bytes):
            lines.append(line)
        elif line["seq"] != seq:
            lines.append({**line, "seq": line["seq"] - (line["seq"] > seq)})
    header = dict(taken.header)
    anchor = header.get("anchor")
    if anchor and anchor.get("after_seq", 0) >= seq:
        header["anchor"] = {**anchor, "after_seq": anchor["after_seq"] - 1}
    return Taken(header, tuple(lines))


def minimised(encounter: Encounter, differs: Any) -> Encounter:
    """The encounter with all left out that the disagreement does not need."""
    changed = True
    while changed:
        changed = False
        for less in _smaller(encounter):
            if not less.captures or not less.orders:
                continue
            try:
                if differs(less):
                    encounter, changed = less, True
                    break
            except (ValueError, InputError):
                continue
    return encounter


@dataclass
class Figures:
    """What a run met."""

    encounters: int = 0
    disputed: Counter[str] = field(default_factory=Counter)
    dates: int = 0
    ready: int = 0
    hit: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, encounter: Encounter, told: Told) -> None:
        """Counts one encounter: its faults, and the boundaries that its seconds and gaps met exactly."""
        self.encounters += 1
        self.hit += encounter.hit
        for bill in told.lines.values():
            self.dates += 1
            self.ready += bill.state == "ready"
            self.codes.update(bill.codes)
            self.reasons.update(bill.reasons)
        for seconds, times in told.minutes.items():
            for bound in BOUNDS:
                if seconds // 60 in (bound - 1, bound):
                    self.hit[f"{seconds // 60} min at {bound}"] += times
        for pump in told.pumps.values():
            for gap in GAPS:
                self.hit[f"gap of {gap} s"] += pump.gaps[gap]


def run(
    count: int, seed: int, *, sessions: bool, reasons: bool, stop: int, first: int = 0
) -> tuple[Figures, list[tuple[int, Encounter, tuple[str, ...]]]]:
    """Compares so many random encounters; each is made from its own number, so that one can be made again."""
    figures = Figures()
    failed: list[tuple[int, Encounter, tuple[str, ...]]] = []
    for n in range(first, first + count):
        encounter = random_encounter(random.Random(f"{seed}:{n}"))
        try:
            compared = compare(encounter, sessions=sessions, reasons=reasons)
        except ValueError as error:
            if "the hash decides" in str(error):
                figures.hit["left to the hash"] += 1
                continue
            raise
        figures.add(encounter, compared.told)
        figures.disputed.update(compared.told.disputed)
        if compared.differences:
            failed.append((n, encounter, compared.differences))
            if len(failed) >= stop:
                break
    return figures, failed


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description="Compare the oracle with the derivation.")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first encounter")
    parser.add_argument("--sessions", action="store_true", help="compare sessions too: start, kinds of seconds, flags")
    parser.add_argument("--reasons", action="store_true", help="compare the codes that hold, not only the state")
    parser.add_argument("--stop", type=int, default=1, help="stop after so many disagreements")
    asked = parser.parse_args()
    begun = time.monotonic()
    how = {"sessions": asked.sessions, "reasons": asked.reasons}
    figures, failed = run(asked.count, asked.seed, stop=asked.stop, first=asked.first, **how)
    print(f"seed {asked.seed}: {figures.encounters} encounters, {figures.dates} dates with lines, {figures.ready} of them ready,")
    print(f"{time.monotonic() - begun:.0f} s; {len(failed)} disagree")
    for name, counted in (("disputed", figures.disputed), ("codes", figures.codes), ("holds", figures.reasons), ("met", figures.hit)):
        print(f"{name}: " + ", ".join(f"{key} {counted[key]}" for key in sorted(counted)))
    for n, encounter, differences in failed:
        small = minimised(encounter, lambda less: compare(less, **how).differences)
        print(f"\nencounter {asked.seed}:{n}: {differences[0]}\nas small as can be:\n{small.text()}")
        print("\n".join(compare(small, **how).differences))
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
