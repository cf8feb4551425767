"""Sessions and set-ups of one pump (docs/semantics.md §4, §5): pieces of delivery, grouped by order, and what is not proved of them."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from devices.contract import Kind, Log
from transforms import clock, machine, tables
from transforms.clock import CLOCK, HOLE, NONE, UNKNOWN, ClockPolicy, Timeline
from transforms.machine import Found, Point, Segment, Steps, at_row
from transforms.orders import Order, Orders, local, utc_ms
from transforms.tables import identify, rows_to_table

TIME_CODES = ("NO_STOP", "NO_START", "SESSION_OPEN", "LOG_GAP", "CLOCK_UNCERTAIN", "RECORD_CONFLICT", "ORDER_BOUNDARY")
"""The codes about a session's time: the first row of docs/semantics.md §6."""

_SETUP = frozenset(k.value for k in (Kind.RESERVOIR_CHANGE, Kind.PRIMING_STARTED, Kind.PRIMING_DONE))


_COLUMNS = (
    "event_id",
    "record_key",
    "kind",
    "source",
    "reason",
    "target",
    "at",
    "stops_delivery",
    "pump_time",
    "rate_ml_h",
    "rate_dose_h",
    "volume_ml",
    "programmed_ml",
    "dose",
    "programmed_dose",
    "duration_s",
    "lockout_s",
    "proves",
    "raw",
    "conflict",
)
"""What of the events is looked at here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FactPolicy:
    """The policies that shape facts and so belong to the lake."""

    gap_limit_min: float = 60
    clock_step_s: float = 60
    drift_s_per_day: float = 60
    drift_s: float = 120

    @property
    def gap_ms(self) -> int:
        """`gap_limit_min` in ms."""
        return round(self.gap_limit_min * 60_000)

    @property
    def clock(self) -> ClockPolicy:
        """The part that is about clocks."""
        return ClockPolicy(clock_step_s=self.clock_step_s, drift_s_per_day=self.drift_s_per_day, drift_s=self.drift_s)


@dataclass(frozen=True, slots=True)
class Facts:
    """The tables of one pump: EVENTS, SESSIONS, INTERVALS, SETUPS, DOUBTS of `transforms.tables`."""

    events: pa.Table
    sessions: pa.Table
    intervals: pa.Table
    setups: pa.Table
    doubts: pa.Table


@dataclass(slots=True)
class _Piece:
    start: Point
    stop: Point
    what: str
    code: str
    segments: list[Segment]
    order: Order | None = None


@dataclass(slots=True)
class _Session:
    pieces: list[_Piece]
    order: Order | None
    stop: Point
    flags: set[str] = field(default_factory=set)
    setups: list[dict[str, Any]] = field(default_factory=list)

    @property
    def start(self) -> Point:
        return self.pieces[0].start


def derive(log: Log, orders: Orders, policy: FactPolicy) -> Facts:
    """Events with time, sessions, intervals, set-ups and doubts of one pump. Pure; equal logs give equal tables."""
    line = clock.place(log, policy.clock)
    return _Pump(log, line, orders, policy).facts()


class _Pump:
    """One pump's log with its timeline, while its facts are made."""

    def __init__(self, log: Log, line: Timeline, orders: Orders, policy: FactPolicy) -> None:
        self.log, self.line, self.orders, self.policy = log, line, orders, policy
        events = log.events
        self.col: dict[str, list[Any]] = {name: events.column(name).to_pylist() for name in _COLUMNS}
        self.ms: list[int] = line.elapsed.tolist()
        self.row_of = {event: row for row, event in enumerate(self.col["event_id"])}
        self.pump_id: str = events.column("pump_id")[0].as_py() if events.num_rows else ""
        self.sessions: list[dict[str, Any]] = []
        self.intervals: list[dict[str, Any]] = []
        self.setups: list[dict[str, Any]] = []
        self.doubts: list[dict[str, Any]] = []
        self._last_known, self._next_known = _known(line.utc)
        self._by_instant: dict[int, tuple[list[int], list[int]]] = {}

    def facts(self) -> Facts:
        before: Found | None = None
        for number in range(len(self.line.first)):
            found = machine.run(self.steps(number))
            self.stretch(number, found, before)
            before = found
        self.trailing_hole()
        key = ("pump_id",)
        return Facts(
            events=self.events(),
            sessions=rows_to_table(tables.SESSIONS, self.sessions, sort=(*key, "session_id")),
            intervals=rows_to_table(tables.INTERVALS, self.intervals, sort=(*key, "session_id", "from_ms", "to_ms", "class")),
            setups=rows_to_table(tables.SETUPS, self.setups, sort=(*key, "setup_id")),
            doubts=rows_to_table(tables.DOUBTS, self.doubts, sort=(*key, "doubt_id")),
        )

    def events(self) -> pa.Table:
        """The log with its time, in the columns that are published."""
        line, log = self.line, self.log.events
        ids = self.col["event_id"]
        stretches = line.stretch.tolist()
        first = line.first.tolist()
        columns: dict[str, Any] = {
            "stretch": pa.array([ids[first[s]] if s >= 0 else None for s in stretches], pa.string()),
            "order_in_stretch": pa.array([row - first[s] if s >= 0 else None for row, s in enumerate(stretches)], pa.int64()),
            "time": pa.array([None if u == NONE else u for u in line.utc.tolist()], pa.int64()).cast(pa.timestamp("ms", "UTC")),
            "elapsed_ms": pa.array([None if e == NONE else e for e in self.ms], pa.int64()),
            "time_quality": pa.array([clock.QUALITIES[q] for q in line.quality.tolist()], pa.string()),
            "time_method": pa.array([line.method_name(row) for row in range(len(ids))], pa.string()),
            "time_bound_s": pa.array([None if math.isnan(b) else round(b, 3) for b in line.bound_s.tolist()], pa.float64()),
        }
        return pa.table({n: columns[n] if n in columns else log.column(n) for n in tables.EVENTS.names}, schema=tables.EVENTS)

    # --- one stretch ----------------------------------------------------------------------------------------------------

    def steps(self, number: int) -> Steps:
        low, high = int(self.line.first[number]), int(self.line.last[number]) + 1
        col = self.col
        rates = [ml if ml is not None else dose for ml, dose in zip(col["rate_ml_h"][low:high], col["rate_dose_h"][low:high], strict=True)]
        return Steps(
            first=low,
            ms=self.ms[low:high],
            kind=col["kind"][low:high],
            source=col["source"][low:high],
            reason=col["reason"][low:high],
            stops=col["stops_delivery"][low:high],
            rate=rates,
            volume=[
                told if ml is not None or dose is None else None
                for told, ml, dose in zip(col["volume_ml"][low:high], col["rate_ml_h"][low:high], col["rate_dose_h"][low:high], strict=True)
            ],
            duration_s=col["duration_s"][low:high],
            at_end=[at == "end" for at in col["at"][low:high]],
            proves=col["proves"][low:high],
            end_ms=int(self.line.end[number]),
        )

    def stretch(self, number: int, found: Found, before: Found | None) -> None:
        pieces = _pieces(found)
        for piece in pieces:
            piece.order = self.orders.in_force(self.pump_id, self.utc(piece.start), self.printed(piece.start))
        sessions = self.grouped(pieces, number)
        end_of_log = int(self.line.last[number]) == len(self.ms) - 1
        self.flag_open(sessions, found, "SESSION_OPEN" if end_of_log else "NO_STOP")
        self.flag_cut(number, sessions, found, before)
        self.flag_rest(number, sessions, found)
        self.make_setups(number, pieces, sessions)
        for session in sessions:
            self.emit(number, session, found)

    def grouped(self, pieces: list[_Piece], number: int) -> list[_Session]:
        """Pieces of one order at most the gap limit apart, with no new patient between them."""
        rows = range(int(self.line.first[number]), int(self.line.last[number]) + 1)
        patients = [at_row(self.ms[row], row) for row in rows if self.col["kind"][row] == Kind.NEW_PATIENT.value]
        sessions: list[_Session] = []
        for piece in pieces:
            last = sessions[-1] if sessions else None
            if (
                last is not None
                and _same(last.order, piece.order)
                and piece.start.ms - last.stop.ms <= self.policy.gap_ms
                and not any(last.stop <= new <= piece.start for new in patients)
            ):
                last.pieces.append(piece)
                last.stop = max(last.stop, piece.stop)
            else:
                sessions.append(_Session([piece], piece.order, piece.stop))
        return sessions

    def flag_open(self, sessions: list[_Session], found: Found, code: str) -> None:
        """What still runs at the end of the stretch leaves its session without a stop."""
        for session in sessions:
            for piece in session.pieces:
                for segment in piece.segments:
                    if segment.code == "OPEN":
                        session.flags.add(code)
                    elif segment.code in ("NO_STOP", "NO_START"):
                        session.flags.add(segment.code)
        if found.open_since and sessions:
            last = max(sessions, key=lambda s: s.stop)
            if any(since.ms <= last.stop.ms + self.policy.gap_ms for since in found.open_since):
                last.flags.add(code)

    def flag_cut(self, number: int, sessions: list[_Session], found: Found, before: Found | None) -> None:
        """After a cut the log may hide that a delivery goes on (docs/semantics.md §4.6)."""
        cut = int(self.line.after[number])
        if cut not in (HOLE, CLOCK):
            return
        first, last = int(self.line.first[number]), int(self.line.last[number])
        begins = at_row(self.ms[first], first)
        quiet = cut == CLOCK and before is not None and before.settled is not None and not before.open_since and not before.kvo_at_end
        ends = False
        if quiet:
            settled = begins
        elif found.settled is not None:
            settled, is_start = found.settled
            ends = not is_start
        else:
            settled = at_row(self.ms[last], last)
        code = "LOG_GAP" if cut == HOLE else "CLOCK_UNCERTAIN"
        for session in sessions:
            start = session.start
            near_first = start.ms - begins.ms <= self.policy.gap_ms
            near_settled = ends and start >= settled and start.ms - settled.ms <= self.policy.gap_ms
            if start < settled or near_first or near_settled:
                session.flags.add(code)
        self.doubt_of_cut(code, first, first if not quiet and found.settled and found.settled[1] else settled.row)

    def doubt_of_cut(self, code: str, first: int, settled: int) -> None:
        """A cut reaches from the last record before it to the settling record (to the first record, if a start settles)."""
        self.doubts.append(
            {
                "doubt_id": identify("cut", self.pump_id, self.col["record_key"][first]),
                "pump_id": self.pump_id,
                "code": code,
                "from_utc": self.known_before(first - 1),
                "to_utc": self.known_after(settled),
                "event_id": self.col["event_id"][first],
            }
        )

    def trailing_hole(self) -> None:
        """A hole at the end of the log is a cut that nothing settles."""
        size = len(self.ms)
        if size and self.line.stretch[size - 1] < 0:
            self.doubt_of_cut("LOG_GAP", size - 1, size)

    def known_before(self, row: int) -> int | None:
        """UTC of this row's event, or of the last before it that has one."""
        return self._last_known[row] if row >= 0 else None

    def known_after(self, row: int) -> int | None:
        """UTC of this row's event, or of the first after it that has one."""
        return self._next_known[row] if row < len(self.ms) else None

    def flag_rest(self, number: int, sessions: list[_Session], found: Found) -> None:
        first, last = int(self.line.first[number]), int(self.line.last[number]) + 1
        conflicts = [at_row(self.ms[row], row) for row in range(first, last) if self.col["conflict"][row]]
        violations = self.lockout_violations(first, last)
        mismatches = [at for at, told, flow in found.volumes if abs(told - flow) > 1 and abs(told - flow) > 0.1 * told]
        gap = self.policy.gap_ms
        for session in sessions:
            start, stop = session.start, session.stop
            if any(start.ms - gap <= at.ms <= stop.ms + gap for at in conflicts):
                session.flags.add("RECORD_CONFLICT")
            if any(start.ms <= low.ms <= stop.ms or start.ms <= high.ms <= stop.ms for low, high in violations):
                session.flags.add("LOCKOUT_VIOLATION")
            if any(start.ms <= at.ms <= stop.ms for at in mismatches):
                session.flags.add("VOLUME_MISMATCH")
            if self.uncertain(number, session):
                session.flags.add("CLOCK_UNCERTAIN")
            if session.order is not None and session.order.stop_ms is not None and self.outlasts(session):
                session.flags.add("ORDER_BOUNDARY")
            if not self.log.gaps_visible:
                session.flags.add("GAPS_INVISIBLE")

    def uncertain(self, number: int, session: _Session) -> bool:
        start, stop = session.start, session.stop
        if self.utc(start) is None or self.utc(stop) is None:
            return True
        if any(self.line.quality[row] == UNKNOWN for row in self.within(number, session)):
            return True
        return any(where == number and low < stop.ms and start.ms < high for where, low, high in self.line.contradicted)

    def outlasts(self, session: _Session) -> bool:
        order = session.order
        assert order is not None
        for piece in session.pieces:
            end = self.utc(piece.stop)
            if end is None and (printed := self.printed(piece.stop)) is not None:
                end = utc_ms(printed, order.zone)
            if end is not None and order.stop_ms is not None and end > order.stop_ms:
                return True
        return False

    def lockout_violations(self, first: int, last: int) -> list[tuple[Point, Point]]:
        """Two granted demands closer than the lockout that the log itself gives."""
        lockout_ms: float | None = None
        previous: Point | None = None
        found = []
        for row in range(first, last):
            if self.col["kind"][row] == Kind.SETTINGS_CHANGE.value and self.col["lockout_s"][row] is not None:
                lockout_ms = self.col["lockout_s"][row] * 1000
            elif self.col["kind"][row] == Kind.DEMAND_GRANTED.value:
                at = at_row(self.ms[row], row)
                if lockout_ms is not None and previous is not None and at.ms - previous.ms < lockout_ms:
                    found.append((previous, at))
                previous = at
        return found

    # --- set-ups (§5) ---------------------------------------------------------------------------------------------------

    def make_setups(self, number: int, pieces: list[_Piece], sessions: list[_Session]) -> None:
        first, last = int(self.line.first[number]), int(self.line.last[number]) + 1
        owner = {id(piece): session for session in sessions for piece in session.pieces}
        starts = [piece.start for piece in pieces]
        held = machine.Spans((piece.start, piece.stop) for piece in pieces)
        group: list[Point] = []
        for row in range(first, last):
            if self.col["kind"][row] not in _SETUP:
                continue
            at = at_row(self.ms[row], row)
            if held.hold(at) and (within := next((p for p in pieces if p.start < at < p.stop), None)) is not None:
                self.setup(number, [at], owner[id(within)])
                continue
            if group and bisect_left(starts, at) > bisect_right(starts, group[-1]):
                self.setup(number, group, self.next_session(group[-1], pieces, starts, owner))
                group = []
            group.append(at)
        if group:
            self.setup(number, group, self.next_session(group[-1], pieces, starts, owner))

    def next_session(self, at: Point, pieces: list[_Piece], starts: list[Point], owner: dict[int, _Session]) -> _Session | None:
        following = bisect_right(starts, at)
        return owner[id(pieces[following])] if following < len(pieces) else None

    def setup(self, number: int, points: list[Point], session: _Session | None) -> None:
        rows = [point.row for point in points]
        site, pump = "no", False
        for row in rows:
            kind, target = self.col["kind"][row], self.col["target"][row] or "unknown"
            aborted = self.aborted(row)
            pump |= kind == Kind.RESERVOIR_CHANGE.value
            if kind == Kind.PRIMING_DONE.value:
                pump |= target != "cannula" and not aborted
                if target == "cannula" and not aborted:
                    site = "yes"
                elif target != "tubing" and site == "no":
                    site = "possible"
        row, order = rows[-1], session.order if session else None
        setup = {
            "setup_id": identify("setup", self.pump_id, self.col["record_key"][rows[0]]),
            "pump_id": self.pump_id,
            "stretch": self.stretch_id(number),
            "patient_id": order.patient_id if order else None,
            "order_id": order.order_id if order else None,
            "elapsed_ms": self.ms[row],
            "time": self.utc(points[-1]),
            "printed_time": self.col["pump_time"][row],
            "pump_setup": pump,
            "new_site": site,
            "evidence": [self.col["event_id"][r] for r in rows],
        }
        self.setups.append(setup)
        if session is not None:
            session.setups.append(setup)

    def aborted(self, row: int) -> bool:
        """A priming that ended early, by its reason or by what it delivered."""
        if self.col["reason"][row] in ("aborted", "error"):
            return True
        for given, asked in (("volume_ml", "programmed_ml"), ("dose", "programmed_dose")):
            done, wanted = self.col[given][row], self.col[asked][row]
            if done is not None and wanted is not None and done < wanted - 1e-9:
                return True
        return False

    # --- rows -----------------------------------------------------------------------------------------------------------

    def emit(self, number: int, session: _Session, found: Found) -> None:
        order, start, stop = session.order, session.start, session.stop
        start_row, stop_row = start.row, stop.row
        session_id = identify("session", self.pump_id, order.order_id if order else "", self.col["record_key"][start_row])
        spans = _kinds(session, found)
        total = {what: sum(high - low for low, high, kind, _ in spans if kind == what) for what in _CLASSES}
        seconds = {what: total[what] // 1000 for what in _CLASSES}
        span_s = (stop.ms - start.ms) // 1000
        seconds["paused"] = span_s - sum(seconds[what] for what in _CLASSES if what != "paused")
        rows = self.within(number, session)
        codes = [code for code in TIME_CODES if code in session.flags]
        is_open = "SESSION_OPEN" in session.flags
        utc_start, utc_stop = self.utc(start), self.utc(stop)
        kinds = [self.col["kind"][row] for row in rows]
        pca = sum(1 for row in rows if self.col["kind"][row] == Kind.BOLUS_DELIVERED.value and self.col["source"][row] == "pca")
        granted = kinds.count(Kind.DEMAND_GRANTED.value)
        if pca > granted:
            session.flags.add("DELIVERED_GT_DEMANDED")
        rates = [self.col["rate_ml_h"][row] for row in rows if self.col["rate_ml_h"][row] is not None]
        continuous = _union(
            (max(seg.start.ms, start.ms), min(seg.stop.ms, stop.ms))
            for piece in session.pieces
            for seg in piece.segments
            if seg.what == "infusing" and seg.code != "BOLUS" and seg.source not in machine.BOLUS_LIKE
        )
        tz = order.zone if order else None
        self.sessions.append(
            {
                "session_id": session_id,
                "pump_id": self.pump_id,
                "stretch": self.stretch_id(number),
                "patient_id": order.patient_id if order else None,
                "order_id": order.order_id if order else None,
                "payer": order.payer if order else None,
                "drug": order.drug if order else None,
                "route": order.route if order else None,
                "start": utc_start,
                "stop": None if is_open else utc_stop,
                "start_local": local(utc_start, tz) if tz and utc_start is not None else None,
                "stop_local": local(utc_stop, tz) if tz and utc_stop is not None and not is_open else None,
                "printed_start": self.printed(start),
                "span_s": span_s,
                **{f"{what}_s": seconds[what] for what in _CLASSES},
                "volume_ml": self.volume(session, found, rows),
                "bolus_count": kinds.count(Kind.BOLUS_DELIVERED.value),
                "granted": granted,
                "denied": kinds.count(Kind.DEMAND_DENIED.value),
                "setups": len(session.setups),
                "new_sites": sum(s["new_site"] == "yes" for s in session.setups),
                "possible_sites": sum(s["new_site"] == "possible" for s in session.setups),
                "time_quality": clock.QUALITIES[max((int(self.line.quality[row]) for row in rows), default=UNKNOWN)],
                "state": "open" if is_open else ("uncertain" if codes else "closed"),
                "flags": codes + sorted(session.flags.difference(TIME_CODES)),
                "first_event": self.col["event_id"][start_row],
                "last_event": self.col["event_id"][stop_row],
                "evidence_hash": self.evidence(rows, session, codes),
                "continuous_s": continuous // 1000,
                "max_rate_ml_h": max(rates, default=None),
            }
        )
        for setup in session.setups:
            setup["session_id"] = session_id
        for low, high, what, segment in spans:
            from_utc, to_utc = self.utc_near(number, low), self.utc_near(number, high)
            self.intervals.append(
                {
                    "session_id": session_id,
                    "pump_id": self.pump_id,
                    "stretch": self.stretch_id(number),
                    "from_ms": low,
                    "to_ms": high,
                    "from_utc": from_utc,
                    "to_utc": to_utc,
                    "class": what,
                    "source": (*machine.SOURCES, "kvo")[segment.source] if segment is not None and segment.source >= 0 else None,
                    "first_event": self.col["event_id"][segment.start.row] if segment is not None else None,
                    "last_event": self.col["event_id"][segment.stop.row] if segment is not None else None,
                }
            )
        for code in codes:
            self.doubts.append(
                {
                    "doubt_id": identify("session", session_id, code),
                    "pump_id": self.pump_id,
                    "session_id": session_id,
                    "order_id": order.order_id if order else None,
                    "patient_id": order.patient_id if order else None,
                    "code": code,
                    "from_utc": utc_start if utc_start is not None else self.known_before(start_row),
                    "to_utc": utc_stop if utc_stop is not None else self.known_after(stop_row),
                    "event_id": self.col["event_id"][start_row],
                }
            )

    def volume(self, session: _Session, found: Found, rows: list[int]) -> float | None:
        """Rates x time plus boluses: None where a rate or an amount is unknown."""
        start, stop = session.start, session.stop
        for piece in session.pieces:
            for segment in piece.segments:
                if segment.what != "infusing" or (segment.code != "BOLUS" and segment.stop not in found.amounts):
                    return None
        flows = [amount for at, amount in found.amounts_in(start, stop)]
        boluses = [self.col["volume_ml"][row] for row in rows if self.col["kind"][row] == Kind.BOLUS_DELIVERED.value]
        return None if None in boluses else round(sum(flows) + sum(boluses), 6)

    def evidence(self, rows: list[int], session: _Session, codes: Iterable[str]) -> str:
        """Hash of the bytes of its events and set-ups, the order's terms and its codes of time."""
        hashed = hashlib.sha256()
        order = session.order
        hashed.update(f"{order}\n{self.utc(session.start)}\n{','.join(codes)}\n".encode())
        ids = {event for setup in session.setups for event in setup["evidence"]}
        for row in sorted({*rows, *(self.row_of[event] for event in ids)}):
            hashed.update(self.col["record_key"][row].encode() + b"\0" + hashlib.sha256(self.col["raw"][row]).digest())
        return hashed.hexdigest()

    # --- points ---------------------------------------------------------------------------------------------------------

    def stretch_id(self, number: int) -> str:
        return str(self.col["event_id"][int(self.line.first[number])])

    def within(self, number: int, session: _Session) -> list[int]:
        """The rows of a stretch whose instant lies in the session's span."""
        instants, rows = self.by_instant(number)
        return sorted(rows[bisect_left(instants, session.start.ms) : bisect_right(instants, session.stop.ms)])

    def by_instant(self, number: int) -> tuple[list[int], list[int]]:
        """The elapsed times of a stretch in order, and the row of each; of equal times the order of the log."""
        if number not in self._by_instant:
            low, high = int(self.line.first[number]), int(self.line.last[number]) + 1
            order = np.argsort(self.line.elapsed[low:high], kind="stable")
            self._by_instant = {number: (self.line.elapsed[low:high][order].tolist(), (order + low).tolist())}
        return self._by_instant[number]

    def utc(self, point: Point) -> int | None:
        at = int(self.line.utc[point.row])
        return None if at == NONE else at + point.ms - self.ms[point.row]

    def utc_near(self, number: int, ms: int) -> int | None:
        """UTC of an instant on elapsed time, reckoned from the last record that is not after it."""
        instants, rows = self.by_instant(number)
        near = rows[max(0, bisect_right(instants, ms) - 1)]
        return self.utc(Point(ms, near, near))

    def printed(self, point: Point) -> datetime | None:
        shown = self.col["pump_time"][point.row]
        return shown + timedelta(milliseconds=point.ms - self.ms[point.row]) if shown is not None else None


_CLASSES = ("infusing", "unknown", "kvo", "alarm", "paused")


def _same(one: Order | None, other: Order | None) -> bool:
    return (one.order_id if one else None) == (other.order_id if other else None)


def _known(utc: clock.Ints) -> tuple[list[int | None], list[int | None]]:
    """Of each row, the last UTC known up to it, and the first known from it on."""
    times = [None if moment == NONE else moment for moment in utc.tolist()]
    before: list[int | None] = []
    for moment in times:
        before.append(moment if moment is not None else (before[-1] if before else None))
    after: list[int | None] = []
    for moment in reversed(times):
        after.append(moment if moment is not None else (after[-1] if after else None))
    return before, after[::-1]


def _union(intervals: Iterable[tuple[int, int]]) -> int:
    """Length of the union of intervals."""
    total, reached = 0, None
    for low, high in sorted(intervals):
        if high <= low or (reached is not None and high <= reached):
            continue
        total += high - (low if reached is None else max(low, reached))
        reached = high
    return total


def _pieces(found: Found) -> list[_Piece]:
    """Infusing pieces (the union over the sources; pieces that touch are one, unless a halt lies between) and unknown ones."""
    pieces: list[_Piece] = []
    merged: _Piece | None = None
    for segment in sorted(s for s in found.segments if s.what == "infusing"):
        if merged is not None and (
            segment.start <= merged.stop
            or (segment.start.ms == merged.stop.ms and not any(merged.stop <= halt <= segment.start for halt in found.halts))
        ):
            merged.stop = max(merged.stop, segment.stop)
            merged.segments.append(segment)
        else:
            merged = _Piece(segment.start, segment.stop, "infusing", "", [segment])
            pieces.append(merged)
    pieces += [_Piece(s.start, s.stop, "unknown", s.code, [s]) for s in found.segments if s.what == "unknown"]
    return sorted(pieces, key=lambda piece: (piece.start, piece.stop, piece.what))


class _Sweep:
    """Segments of one kind, asked for what lies over intervals that come in order and that no segment begins or ends within."""

    def __init__(self, segments: list[Segment]) -> None:
        self._left = sorted(segments, reverse=True)
        self._longest: Segment | None = None

    def over(self, low: int, high: int) -> Segment | None:
        """A segment that covers this interval; of several the one that lasts longest."""
        while self._left and self._left[-1].start.ms <= low:
            segment = self._left.pop()
            if self._longest is None or segment.stop.ms > self._longest.stop.ms:
                self._longest = segment
        return self._longest if self._longest is not None and self._longest.stop.ms >= high else None


def _kinds(session: _Session, found: Found) -> list[tuple[int, int, str, Segment | None]]:
    """The span of a session cut into intervals of one kind each, in order: (from ms, to ms, kind, a segment that shows it)."""
    low, high = session.start.ms, session.stop.ms
    shown: dict[str, list[Segment]] = {"infusing": [], "unknown": [], "kvo": found.kvo_in(low, high)}
    for piece in session.pieces:
        shown[piece.what] += piece.segments
    edges = {low, high}
    for segments in shown.values():
        edges.update(min(max(ms, low), high) for s in segments for ms in (s.start.ms, s.stop.ms))
    ends = found.ends_until(low, high)
    edges.update(at.ms for at, _ in ends if low < at.ms < high)
    spans: list[tuple[int, int, str, Segment | None]] = []
    cuts = sorted(edges)
    sweeps = [_Sweep(segments) for segments in shown.values()]
    for left, right in pairwise(cuts):
        segment = next((s for sweep in sweeps if (s := sweep.over(left, right)) is not None), None)
        if segment is not None:
            what = segment.what
        else:
            before = bisect_right(ends, left, key=lambda end: end[0].ms)
            what = "alarm" if before and ends[before - 1][1] else "paused"
        if spans and spans[-1][1] == left and spans[-1][2] == what and (what != "infusing" or spans[-1][3] is segment):
            spans[-1] = (spans[-1][0], right, what, spans[-1][3])
        else:
            spans.append((left, right, what, segment))
    return spans
