"""The log of one Paradigm from all its pages: their order, each record once, pairs as one event, holes (docs/pump-formats.md §3.3).

Page 0 is the newest; its number changes while it fills, so a page is known by its start: the bytes up to and including its first
record with a time.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pyarrow as pa

from devices.contract import EVENTS, HOLES, RECORDS, AlarmClass, Kind, Log, PlacedAnchor, event_id, table
from devices.paradigm.pages import PAGE_SIZE, part_of
from devices.paradigm.records import REWRITTEN

_Fields = dict[str, Any]
_NEVER = -(2**63)
_DOWNLOAD_MS = 3_600_000
_STEP_MS = 60_000
_HALVES = frozenset({0x17, 0x18, 0x33, 0x16})
"""Records of which two only mean something together."""
_BEFORE_MS = 35_000
"""How much later than the record behind which it belongs a basal profile start may be stamped (§3.3)."""


@dataclass(frozen=True, slots=True)
class _Hole:
    kind: Kind
    key: str


@dataclass(frozen=True, slots=True)
class _Chosen:
    """One position of a page: the row of RECORDS that stands for it, and whether other rows contradict it."""

    row: int
    conflict: bool


class _Rows:
    """The columns of RECORDS that order and pairs depend on, as lists."""

    def __init__(self, records: pa.Table, anchors: pa.Table) -> None:
        self.table = records = records.combine_chunks()
        self.capture: list[str] = records.column("capture").to_pylist()
        self.part: list[str | None] = records.column("part").to_pylist()
        self.page: list[str] = records.column("page").to_pylist()
        self.offset: list[int] = records.column("offset").to_pylist()
        self.key: list[str] = records.column("record_key").to_pylist()
        self.raw: list[bytes] = records.column("raw").to_pylist()
        self.ms: list[int | None] = records.column("pump_time").cast(pa.int64()).to_pylist()
        self.dose: list[float | None] = records.column("dose").to_pylist()
        self.read_at: dict[str, int] = {}
        for capture, utc in zip(anchors.column("capture").to_pylist(), anchors.column("utc").cast(pa.int64()).to_pylist(), strict=True):
            self.read_at[capture] = max(utc, self.read_at.get(capture, _NEVER))

    def rank(self, row: int) -> tuple[int, float, bytes, str]:
        """Which of several readings of one record stands: the later anchor, the greater amount; the rest only decides."""
        return self.read_at.get(self.capture[row], _NEVER), self.dose[row] or 0.0, self.raw[row], self.capture[row]


def assemble(pump_id: str, records: pa.Table, faults: pa.Table, anchors: pa.Table) -> Log:
    """The log of one pump: pages in their order, each record once, pairs as one event, holes where pages are missing or bad.

    Pure; the order and repetition of captures do not matter. Within a dump pages are neighbours by their numbers, across dumps
    pages are the same by their start.
    """
    rows = _Rows(records, anchors)
    chosen, stands_for = _one_record_a_position(rows)
    log = _Events(pump_id, rows)
    run: list[_Chosen] = []
    for entry in _chain(rows, faults, anchors):
        if isinstance(entry, _Hole):
            log.extend(run)
            log.hole(entry)
            run = []
        else:
            run += chosen[entry]
    log.extend(run)
    events = log.table()
    ids = [event_id(pump_id, log.event_key[stands_for.get(key, key)]) for key in rows.key]
    return Log(
        events=events, anchors=_placed(events, rows, log.event_key, stands_for, anchors, faults), event_of_record=pa.array(ids, pa.string())
    )


def _one_record_a_position(rows: _Rows) -> tuple[dict[str, list[_Chosen]], dict[str, str]]:
    """By page, its records by offset; and, for record keys that were not taken, the key that stands for them."""
    found: dict[str, dict[tuple[int, bytes], list[int]]] = defaultdict(dict)
    for row, page in enumerate(rows.page):
        found[page].setdefault((rows.offset[row], rows.raw[row]), []).append(row)
    chosen: dict[str, list[_Chosen]] = {}
    stands_for: dict[str, str] = {}
    for page, positions in found.items():
        taken = chosen[page] = []
        group: list[tuple[int, bytes]] = []
        end = -1
        for position in [*sorted(positions), (PAGE_SIZE, b"")]:
            if position[0] >= end and group:
                taken += _settled(rows, {one: positions[one] for one in group}, stands_for)
                group = []
            group.append(position)
            end = max(end, position[0] + len(position[1]))
    return chosen, stands_for


def _settled(rows: _Rows, group: Mapping[tuple[int, bytes], list[int]], stands_for: dict[str, str]) -> list[_Chosen]:
    """What stands where several readings overlap: an update in place, else the version of the later anchor, in conflict."""
    if len(group) == 1:
        (only,) = group.values()
        return [_Chosen(max(only, key=rows.rank) if len(only) > 1 else only[0], False)]
    every = [row for same in group.values() for row in same]
    if len({(offset, raw[0], len(raw)) for offset, raw in group}) == 1 and next(iter(group))[1][0] in REWRITTEN:
        return [_Chosen(max(every, key=rows.rank), False)]
    versions: dict[str, list[int]] = defaultdict(list)
    for row in every:
        versions[rows.capture[row]].append(row)

    def rank(capture: str) -> tuple[int, str, str]:
        content = sorted((rows.offset[row], rows.raw[row].hex()) for row in versions[capture])
        return rows.read_at.get(capture, _NEVER), hashlib.sha256(repr(content).encode()).hexdigest(), capture

    best = {rows.offset[row]: row for row in versions[max(versions, key=rank)]}
    keys = {rows.key[row] for row in best.values()}
    for row in every:
        if rows.key[row] not in keys:
            nearest = max((offset for offset in best if offset <= rows.offset[row]), default=min(best))
            stands_for[rows.key[row]] = rows.key[best[nearest]]
    return [_Chosen(best[offset], True) for offset in sorted(best)]


@dataclass
class _Dump:
    """What one download, or one set of files, gave: page number → page start, and → whether its bytes were bad."""

    good: dict[int, str] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)
    read_at: int = _NEVER


def _place(part: str | None, capture: str) -> tuple[str, int]:
    """(dump, page number) of a part; what names none is a dump of its own, and not known to be the newest page."""
    told = part_of(part)
    return (told.dump, told.number) if told and told.number is not None else (capture, 1)


def _dump_of(part: str | None, capture: str) -> str:
    """The dump that a page or an end belongs to."""
    told = part_of(part)
    return told.dump if told else capture


def _dumps(rows: _Rows, faults: pa.Table, anchors: pa.Table) -> dict[str, _Dump]:
    dumps: dict[str, _Dump] = defaultdict(_Dump)
    for part, capture, page in sorted(
        set(zip(rows.part, rows.capture, rows.page, strict=True)), key=lambda one: (one[2], one[1], one[0] or "")
    ):
        dump, number = _place(part, capture)
        dumps[dump].good.setdefault(number, page)
    for fault in faults.select(["part", "capture", "fault_id", "hole"]).to_pylist():
        dump, number = _place(fault["part"], fault["capture"])
        if fault["hole"] and number not in dumps[dump].good:
            dumps[dump].bad[number] = min(fault["fault_id"], dumps[dump].bad.get(number, fault["fault_id"]))
    for part, capture in zip(anchors.column("part").to_pylist(), anchors.column("capture").to_pylist(), strict=True):
        name = _dump_of(part, capture)
        if name in dumps:
            dumps[name].read_at = max(dumps[name].read_at, rows.read_at[capture])
    return dumps


class _Places:
    """Pages on number lines, growing with time: two pages of which a dump tells the distance are on the same line."""

    def __init__(self) -> None:
        self.of: dict[str, tuple[int, int]] = {}
        self.on: dict[int, list[str]] = {}

    def put(self, page: str) -> tuple[int, int]:
        """(line, place) of a page, on a new line of its own if it is new."""
        if page not in self.of:
            self.of[page] = len(self.of), 0
            self.on[self.of[page][0]] = [page]
        return self.of[page]

    def join(self, newer: str, older: str, distance: int) -> None:
        """Brings two pages to one line; what contradicts a line is left out."""
        (keep, at), (move, was) = self.put(older), self.put(newer)
        if keep == move:
            return
        for page in self.on.pop(move):
            self.of[page] = keep, self.of[page][1] - was + at + distance
            self.on[keep].append(page)


def _chain(rows: _Rows, faults: pa.Table, anchors: pa.Table) -> list[str | _Hole]:
    """Page starts from oldest to newest, with the holes between them.

    A shorter distance is the surer one: a page that fills while a dump is read makes the numbers after it too large by one.
    """
    dumps = _dumps(rows, faults, anchors)
    places = _Places()
    for page in sorted(set(rows.page)):
        places.put(page)
    told = set()
    for dump in dumps.values():
        for (n, newer), (o, older) in pairwise(sorted(dump.good.items())):
            if newer != older:
                told.add((o - n, newer, older))
    for distance, newer, older in sorted(told):
        places.join(newer, older, distance)
    lines = {line: _Line(pages, places) for line, pages in places.on.items()}
    lost: list[tuple[int, int, str]] = []
    latest = max((dump.read_at for dump in dumps.values() if dump.good), default=_NEVER)
    for dump in dumps.values():
        for page in dump.good.values():
            line = lines[places.of[page][0]]
            line.read_at = max(line.read_at, dump.read_at)
        for number, fault in dump.bad.items():
            if dump.good:
                beside = max((n for n in dump.good if n < number), default=min(dump.good))
                on, at = places.of[dump.good[beside]]
                lines[on].bad.add(at + beside - number)
            elif dump.read_at == _NEVER or dump.read_at > latest:
                lost.append((dump.read_at, -number, fault))
    ms: dict[str, list[int]] = defaultdict(list)
    for page, at_ms in zip(rows.page, rows.ms, strict=True):
        if at_ms is not None:
            ms[page].append(at_ms)
    entries: list[str | _Hole] = []
    last = ""
    for line in sorted(lines.values(), key=lambda one: one.order(ms)):
        if last:
            entries.append(_Hole(Kind.DATA_GAP, f"gap:{last}..{line.pages[0]}"))
        entries += line.entries()
        last = line.pages[-1]
    for nth, _ in enumerate(dict.fromkeys(fault for _, _, fault in sorted(lost)), 1):
        entries.append(_Hole(Kind.DATA_CORRUPTION, f"lost:{last}..:{nth}"))
    return entries


class _Line:
    """One number line: its pages in order, and the places where only bad pages were read."""

    def __init__(self, pages: list[str], places: _Places) -> None:
        self.at = {page: places.of[page][1] for page in pages}
        self.pages = sorted(pages, key=lambda page: (self.at[page], page))
        self.bad: set[int] = set()
        self.read_at = _NEVER

    def order(self, ms: Mapping[str, list[int]]) -> tuple[int, int, str]:
        """Where the line stands among those it shares no page with: when it was read, else by its first printed time."""
        printed = min(at for page in self.pages for at in ms[page])
        return (self.read_at if self.read_at != _NEVER else printed), printed, self.pages[0]

    def entries(self) -> Iterable[str | _Hole]:
        """Pages and holes in order. A hole is named by the good pages beside it and its distance from the older one."""
        good = set(self.at.values())
        marks: list[tuple[int, str]] = sorted([(at, page) for page, at in self.at.items()] + [(at, "") for at in self.bad - good])
        for nth, (at, page) in enumerate(marks):
            older = next((p for _, p in reversed(marks[:nth]) if p), "")
            newer = next((p for _, p in marks[nth:] if p), "")
            since = at - (self.at[older] if older else self.at[newer])
            if nth and at - marks[nth - 1][0] != 1:
                yield _Hole(Kind.DATA_GAP, f"gap:{older}..{newer}:{since - 1}")
            yield page or _Hole(Kind.DATA_CORRUPTION, f"bad:{older}..{newer}:{since}")


class _Events:
    """Collects the events of a log: rows of RECORDS as they are, rows that pairs changed, holes."""

    def __init__(self, pump_id: str, rows: _Rows) -> None:
        self.pump_id, self.rows = pump_id, rows
        self.event_key: dict[str, str] = {}
        self._taken: list[int] = []
        self._conflict: list[bool] = []
        self._made: list[_Fields] = []
        self._order: list[tuple[bool, int]] = []
        halves = [row for row, raw in enumerate(rows.raw) if raw[0] in _HALVES]
        said = rows.table.select([name for name in EVENTS.names if name in RECORDS.names]).take(pa.array(halves, pa.int64()))
        self._half: dict[int, _Fields] = dict(zip(halves, said.to_pylist(), strict=True))

    def hole(self, hole: _Hole) -> None:
        """A hole has a place, and neither time nor bytes."""
        self._make({"record_key": hole.key, "kind": hole.kind.value, "native_code": "", "detail": "{}", "raw": b"", "conflict": False})

    def extend(self, run: list[_Chosen]) -> None:
        """The records of pages without a hole between them, oldest first."""
        run = self._resumed(run)
        nth = 0
        while nth < len(run):
            one, after = run[nth], run[nth + 1] if nth + 1 < len(run) else None
            code = self._code(one)
            if code == 0x17 and after and self._code(after) == 0x18:
                self._pair(one, after, self._clock_set)
                nth += 1
            elif code == 0x33 and after and self._code(after) == 0x16 and self.rows.ms[one.row] == self.rows.ms[after.row]:
                self._pair(one, after, self._temp_set)
                nth += 1
            elif code == 0x17:
                self._pair(one, None, self._clock_unknown)
            else:
                self.event_key[self.rows.key[one.row]] = self.rows.key[one.row]
                self._order.append((False, len(self._taken)))
                self._taken.append(one.row)
                self._conflict.append(one.conflict)
            nth += 1

    def table(self) -> pa.Table:
        """EVENTS in log order."""
        taken = self.rows.table.take(pa.array(self._taken, pa.int64()))
        ids = [event_id(self.pump_id, self.rows.key[row]) for row in self._taken]
        columns = {name: taken.column(name) for name in EVENTS.names if name in taken.column_names}
        columns |= {"event_id": pa.array(ids, pa.string()), "conflict": pa.array(self._conflict, pa.bool_())}
        plain = pa.table({name: columns[name] for name in EVENTS.names}, schema=EVENTS)
        order = pa.array([nth + made * len(self._taken) for made, nth in self._order], pa.int64())
        return pa.concat_tables([plain, table(EVENTS, self._made)]).take(order).combine_chunks()

    def _code(self, one: _Chosen) -> int:
        return self.rows.raw[one.row][0]

    def _resumed(self, run: list[_Chosen]) -> list[_Chosen]:
        """A basal profile start goes behind the fixed prime or the resume before which it was written, though stamped after it (§3.3).

        Records without a time, such as midnight's daily totals, may stand between the two.
        """
        run = list(run)
        for nth in range(len(run) - 1):
            here, ms = run[nth], self.rows.ms[run[nth].row]
            if self._code(here) != 0x7B or ms is None:
                continue
            then = next((n for n in range(nth + 1, len(run)) if self.rows.ms[run[n].row] is not None), nth)
            raw, then_ms = self.rows.raw[run[then].row], self.rows.ms[run[then].row]
            if (raw[0] == 0x1F or (raw[0] == 0x03 and raw[2])) and then_ms is not None and 0 <= ms - then_ms <= _BEFORE_MS:
                run[nth : then + 1] = [*run[nth + 1 : then + 1], here]
        return run

    def _make(self, says: _Fields) -> None:
        self._order.append((True, len(self._made)))
        self._made.append({"event_id": event_id(self.pump_id, says["record_key"]), "pump_id": self.pump_id, "log_epoch": 0, **says})

    def _pair(self, one: _Chosen, other: _Chosen | None, change: Callable[[_Fields, _Fields], _Fields]) -> None:
        """One event of a record and its partner, under the key of the first."""
        first = self._half[one.row]
        second = self._half[other.row] if other else {}
        conflict = one.conflict or (other is not None and other.conflict)
        key = first["record_key"]
        self.event_key |= {record["record_key"]: key for record in (first, second) if record}
        self._make({**first, **change(first, second), "raw": first["raw"] + second.get("raw", b""), "conflict": conflict})

    @staticmethod
    def _clock_set(first: _Fields, second: _Fields) -> _Fields:
        old, new = first["pump_time"], second["pump_time"]
        return {"reason": "set", "new_time": new, "detail": f'{{"new":"{new.isoformat()}","old":"{old.isoformat()}"}}'}

    @staticmethod
    def _clock_unknown(first: _Fields, _second: _Fields) -> _Fields:
        """The new time is on a page that is missing: what follows is another clock."""
        return {"reason": "loss", "pump_time": None, "new_time": None, "detail": f'{{"old":"{first["pump_time"].isoformat()}"}}'}

    @staticmethod
    def _temp_set(first: _Fields, second: _Fields) -> _Fields:
        """Duration 0 cancels: the rate is that of the profile again, which this record does not tell."""
        told = json.loads(second["detail"])
        detail = json.dumps({**json.loads(first["detail"]), **told}, sort_keys=True, separators=(",", ":"))
        if told["duration_s"]:
            return {"duration_s": float(told["duration_s"]), "detail": detail}
        return {"rate_ml_h": None, "rate_dose_h": None, "dose_unit": None, "detail": detail}


def _placed(
    events: pa.Table, rows: _Rows, event_key: Mapping[str, str], stands_for: Mapping[str, str], anchors: pa.Table, faults: pa.Table
) -> tuple[PlacedAnchor, ...]:
    """The anchors behind the last record of their dump's page 0, moved by what was written while the dump was read.

    A page 0 that is still blank gives no record: its anchor stands behind page 1.
    """
    if not anchors.num_rows:
        return ()
    row_of = {key: row for row, key in enumerate(events.column("record_key").to_pylist())}
    last: dict[tuple[str, int], int] = {}
    for row, key in enumerate(rows.key):
        place = _place(rows.part[row], rows.capture[row])
        last[place] = max(last.get(place, -1), row_of[event_key[stands_for.get(key, key)]])
    bad = {
        _place(part, capture) for part, capture in zip(faults.column("part").to_pylist(), faults.column("capture").to_pylist(), strict=True)
    }
    parts = anchors.column("part").to_pylist()
    newest = {_place(part, "")[0] for part in parts if _place(part, "")[1] == 0}
    clocks, utcs = (anchors.column(name).cast(pa.int64()).to_pylist() for name in ("pump_clock", "utc"))
    walk = _Walk(events)
    found = set()
    for part, clock, utc, trip in zip(parts, clocks, utcs, anchors.column("round_trip_ms").to_pylist(), strict=True):
        dump = _dump_of(part, "")
        at = last.get((dump, 0))
        if at is None and dump in newest and (dump, 0) not in bad:
            at = last.get((dump, 1))
        if at is not None:
            found.add(PlacedAnchor(walk.to(at, clock), clock, utc, trip))
    return tuple(sorted(found, key=lambda one: (one.after, one.utc_ms, one.pump_clock_ms, one.round_trip_ms or 0)))


class _Walk:
    """Finds the record behind which a clock was read, near the last one of the page as it was read a little earlier or later."""

    def __init__(self, events: pa.Table) -> None:
        self.ms: list[int | None] = events.column("pump_time").cast(pa.int64()).to_pylist()
        kinds = events.column("kind").to_pylist()
        lost = [one == AlarmClass.CLOCK_LOST.value for one in events.column("alarm_class").to_pylist()]
        walls = {*(kind.value for kind in HOLES), Kind.CLOCK_CHANGE.value}
        self.wall = [kind in walls or gone for kind, gone in zip(kinds, lost, strict=True)]
        self.bolus = [kind == Kind.BOLUS_DELIVERED.value for kind in kinds]

    def to(self, at: int, clock: int) -> int:
        """The row behind which the pump's clock showed `clock`, from row `at`; never over a hole or a change of the clock."""
        found = at
        while found > 0 and not self.wall[found] and self._ahead(found, clock) and not self.wall[found - 1]:
            found -= 1
        shown = self.ms[found]
        for row in range(found + 1, len(self.ms)):
            time = self.ms[row]
            if self.wall[row]:
                break
            if time is None or self.bolus[row]:
                continue
            if (shown is not None and time < shown - _STEP_MS) or time > clock:
                break
            found, shown = row, time
        return found

    def _ahead(self, row: int, clock: int) -> bool:
        time = self.ms[row]
        return time is not None and clock < time <= clock + _DOWNLOAD_MS
