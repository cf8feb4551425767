"""Sessions and set-ups of pumps (docs/semantics.md §4, §5): from logs to the tables of facts.

The work is done by the kernels of `clock`, `machine` and `grouping` on the arrays of a block; here orders are found, and rows made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from itertools import islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from devices.contract import Kind, Log
from transforms import clock, decisions, grouping, machine, tables
from transforms.block import KIND, NONE, SOURCE, SOURCES, Block, Ints, booleans, coded, numbers, timestamps
from transforms.clock import QUALITIES, ClockPolicy, Timeline
from transforms.compiled import Kernels
from transforms.decisions import Decision, Shaping
from transforms.grouping import FLAGS, TIME_FLAGS, Grouped, Pieces
from transforms.machine import Found
from transforms.orders import Order, Orders, local_ms, utc_ms
from transforms.tables import identify

TIME_CODES = FLAGS[:7]
"""The codes about a session's time: the first row of docs/semantics.md §6."""

_ALARMING = ("alarm", "malfunction")
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - what a pump prints has no zone


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
    """The tables of some pumps: EVENTS, SESSIONS, INTERVALS, SETUPS, DOUBTS of `transforms.tables`."""

    events: pa.Table
    sessions: pa.Table
    intervals: pa.Table
    setups: pa.Table
    doubts: pa.Table


def derive(log: Log, orders: Orders, policy: FactPolicy, decided: Iterable[Decision] = ()) -> Facts:
    """Events with time, sessions, intervals, set-ups and doubts of one pump. Pure; equal logs and decisions give equal tables.

    `decided` are the decisions in force about this pump: those that hold on what it gives without any of them shape it.
    """
    names = pc.unique(log.events.column("pump_id")).to_pylist() or [""]
    block = Block.of(names, [log])
    base = derive_all(block, orders, policy)
    shaping = decisions.shape(base, decided)
    return _Facts(block, orders, policy, shaping).facts(events=True) if shaping else base


def derive_all(block: Block, orders: Orders, policy: FactPolicy, *, events: bool = True) -> Facts:
    """The same of all pumps of a block at once, without decisions: the rows of each are as `derive` gives them, sorted by pump.

    Events only if asked.
    """
    return _Facts(block, orders, policy, Shaping()).facts(events=events)


class _Facts:
    """A block, what the kernels found in it, and the rows made of it."""

    def __init__(self, block: Block, orders: Orders, policy: FactPolicy, shaping: Shaping) -> None:
        self.block, self.orders, self.shaping = block, orders.of_pumps(block.pumps), shaping
        named = {*shaping.clocks, *shaping.stops}
        events = block.words("event_id").to_pylist() if named else ()
        row_of = {event: row for row, event in enumerate(events) if event in named}
        self.clocks = {row_of[stretch]: told for stretch, told in shaping.clocks.items()}
        self.stops = {row_of[event]: told for event, told in shaping.stops.items()}
        self.line: Timeline = clock.place(block, policy.clock, {row: offset for row, (offset, _) in self.clocks.items()})
        self.found: Found = self._machine()
        self.pieces: Ints = self.found.pieces[: self.found.made[machine.N_PIECE]]
        self.said: Pieces = self._orders()
        self.gap_ms = policy.gap_ms
        self.out, self.cut_up = self._grouped()

    def facts(self, *, events: bool) -> Facts:
        return Facts(
            self.events() if events else tables.EVENTS.empty_table(), self.sessions(), self.intervals(), self.setups(), self.doubts()
        )

    # --- the kernels ----------------------------------------------------------------------------------------------------

    def _machine(self) -> Found:
        block, kind = self.block, self.block.kind
        ml, dose, volume = (numbers(block.column(name)) for name in ("rate_ml_h", "rate_dose_h", "volume_ml"))
        lasts = numbers(block.column("duration_s"))
        stopped = np.full(block.rows, NONE, dtype=np.int64)
        for row, (after_ms, _) in self.stops.items():
            stopped[row] = self.line.elapsed[row] + after_ms
        steps = machine.Steps(
            ms=self.line.elapsed,
            kind=kind,
            source=block.source,
            alarming=block.is_one("reason", *_ALARMING),
            stops=booleans(block.column("stops_delivery")),
            rate=np.where(np.isnan(ml), dose, ml),
            told=np.where(np.isnan(ml) & ~np.isnan(dose), np.nan, volume),
            lasts=np.rint(np.where(np.isnan(lasts), 0.0, lasts) * 1000).astype(np.int64),
            early=self.line.early,
            at_end=block.is_one("at", "end"),
            proves=coded(block.column("proves"), SOURCE),
            stopped=stopped,
        )
        found = machine.room(steps, len(self.line.first))
        kernels = Kernels(machine, block.rows)
        kernels.run(kernels.rows(steps), self.line.first, self.line.last, self.line.end, found)
        return found

    def _orders(self) -> Pieces:
        """The order of each piece: the one in force on its pump at its start."""
        pieces, line, known = self.pieces, self.line, self.orders
        starts = self.utc(pieces[:, machine.S_MS], pieces[:, machine.S_ROW])
        stops = self.utc(pieces[:, machine.E_MS], pieces[:, machine.E_ROW])
        pump = line.pump[pieces[:, machine.STRETCH]]
        order = np.full(len(pieces), -1, dtype=np.int64)
        bounds = np.searchsorted(pump, np.arange(len(self.block.pumps) + 1))
        for number, (low, high) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
            rows = known.rows_of_pump(self.block.pumps[number])
            if low == high or not rows:
                continue
            begins = np.array([known.all[row].start_ms for row in rows], dtype=np.int64)
            ends = np.array([_stop(known.all[row]) for row in rows], dtype=np.int64)
            last = np.searchsorted(begins, starts[low:high], side="right") - 1
            covered = (starts[low:high] != NONE) & (last >= 0) & ((ends[last] == NONE) | (starts[low:high] < ends[last]))
            order[low:high] = np.where(covered, rows.start + last, -1)
        for piece in np.flatnonzero(starts == NONE).tolist():
            rows = known.rows_of_pump(self.block.pumps[pump[piece]])
            printed = self.printed(int(pieces[piece, machine.S_MS]), int(pieces[piece, machine.S_ROW]))
            order[piece] = next(
                (row for row in rows if printed is not None and known.all[row].covers(utc_ms(printed, known.all[row].zone))), -1
            )
        for piece in np.flatnonzero((stops == NONE) & (order >= 0)).tolist():
            printed = self.printed(int(pieces[piece, machine.E_MS]), int(pieces[piece, machine.E_ROW]))
            stops[piece] = utc_ms(printed, known.all[order[piece]].zone) if printed is not None else NONE
        ids = {name: code for code, name in enumerate(sorted({known.all[row].order_id for row in np.unique(order[order >= 0]).tolist()}))}
        code_of = np.array([ids.get(one.order_id, -1) for one in known.all] + [-1], dtype=np.int64)
        stop_of = np.array([_stop(one) for one in known.all] + [NONE], dtype=np.int64)
        return Pieces(order, code_of[order], stops, stop_of[order])

    def _grouped(self) -> tuple[Grouped, Ints]:
        block, line = self.block, self.line
        volume, programmed = numbers(block.column("volume_ml")), numbers(block.column("programmed_ml"))
        dose, asked = numbers(block.column("dose")), numbers(block.column("programmed_dose"))
        lockout = numbers(block.column("lockout_s")) * 1000
        told = grouping.Told(
            kind=block.kind,
            source=block.source,
            ms=line.elapsed,
            utc=line.utc,
            quality=line.quality,
            target=coded(block.column("target"), {"tubing": grouping.TUBING, "cannula": grouping.CANNULA}),
            aborted=block.is_one("reason", "aborted", "error") | (volume < programmed - 1e-9) | (dose < asked - 1e-9),
            conflict=booleans(block.column("conflict")),
            lockout=np.where(block.kind == KIND[Kind.SETTINGS_CHANGE.value], lockout, np.nan),
            rate=numbers(block.column("rate_ml_h")),
            volume=volume,
        )
        number = np.arange(len(line.first))
        stretches = grouping.Line(
            first=line.first,
            last=line.last,
            after=line.after,
            ends_log=line.last == block.bounds[line.pump + 1] - 1,
            follows=(number > 0) & (line.pump == line.pump[number - 1]),
            shows_gaps=np.array(block.gaps_visible, dtype=np.bool_)[line.pump],
        )
        out = grouping.room(block.rows, len(line.first), len(self.pieces))
        kernels = Kernels(grouping, block.rows)
        cut_up = kernels.run(
            kernels.rows(told), kernels.rows(stretches), self.found, kernels.rows(self.said), line.contradicted, self.gap_ms, out
        )
        return out, cut_up

    # --- places ---------------------------------------------------------------------------------------------------------

    def utc(self, ms: Ints, row: Ints) -> Ints:
        """UTC of instants on elapsed time, each reckoned from a row."""
        return np.where(self.line.utc[row] == NONE, NONE, self.line.utc[row] + ms - self.line.elapsed[row])

    def shown(self, ms: Ints, row: Ints) -> Ints:
        """The same on the printed clock."""
        printed = self.block.pump_time[row]
        return np.where(printed == NONE, NONE, printed + ms - self.line.elapsed[row])

    def printed(self, ms: int, row: int) -> datetime | None:
        """What the pump's clock showed at an instant, reckoned from a row."""
        shown = int(self.block.pump_time[row])
        return None if shown == NONE else _EPOCH + timedelta(milliseconds=shown + ms - int(self.line.elapsed[row]))

    @cached_property
    def known(self) -> Ints:
        """The rows whose UTC is known."""
        return np.flatnonzero(self.line.utc != NONE)

    def known_up_to(self, rows: Ints) -> Ints:
        """Of each row, the last UTC known up to it in its pump's log; NONE where there is none."""
        at = np.searchsorted(self.known, rows, side="right") - 1
        return self._known_at(at, rows)

    def known_from(self, rows: Ints) -> Ints:
        """Of each row, the first UTC known from it on in its pump's log; NONE where there is none."""
        return self._known_at(np.searchsorted(self.known, rows), rows)

    def _known_at(self, at: Ints, rows: Ints) -> Ints:
        """UTC at these places of `known`, where they are of the logs that these rows are of."""
        row = np.append(self.known, -1)[np.where(at < len(self.known), at, -1)]
        pump, mine = (np.searchsorted(self.block.bounds, of, side="right") for of in (row, rows))
        return np.where((row >= 0) & (pump == mine), self.line.utc[row], NONE)

    def take(self, name: str, rows: Ints) -> pa.Array:
        """Of a column of words those of some rows; null for row -1."""
        return self.block.words(name).take(pa.array(rows, mask=rows < 0))

    def stretch_ids(self, stretches: Ints) -> pa.Array:
        return self.take("event_id", self.line.first[stretches])

    def pump_ids(self, stretches: Ints) -> pa.Array:
        return pa.array(self.block.pumps, pa.string()).take(pa.array(self.line.pump[stretches]))

    # --- rows -----------------------------------------------------------------------------------------------------------

    def events(self) -> pa.Table:
        """The logs with their time, in the columns that are published."""
        line, log = self.line, self.block.events
        first = line.first[line.stretch] if len(line.first) else line.stretch
        own = line.stretch >= 0
        columns = {
            "stretch": self.take("event_id", np.where(own, first, -1)),
            "order_in_stretch": pa.array(np.arange(self.block.rows) - first, pa.int64(), mask=~own),
            "time": timestamps(line.utc, pa.timestamp("ms", "UTC")),
            "elapsed_ms": pa.array(line.elapsed, pa.int64(), mask=line.elapsed == NONE),
            "time_quality": pa.array(QUALITIES, pa.string()).take(pa.array(line.quality)),
            "time_method": pa.array(clock.METHODS, pa.string()).take(pa.array(line.method)),
            "time_bound_s": pa.array(np.round(line.bound_s, 3), pa.float64(), mask=np.isnan(line.bound_s)),
        }
        return pa.table({n: columns[n] if n in columns else log.column(n) for n in tables.EVENTS.names}, schema=tables.EVENTS)

    @cached_property
    def rows(self) -> Ints:
        """The sessions as the kernel left them."""
        return self.out.sessions[: self.out.made[grouping.N_SESSION]]

    @cached_property
    def fills(self) -> Ints:
        """The set-ups as the kernel left them."""
        return self.out.setups[: self.out.made[grouping.N_SETUP]]

    @cached_property
    def setup_ids(self) -> list[str]:
        """The ids of the set-ups."""
        pumps = self.pump_ids(self.fills[:, grouping.U_STRETCH]).to_pylist()
        keys = self.take("record_key", self.out.fills[self.fills[:, grouping.U_FROM]]).to_pylist()
        return [identify("setup", pump, key) for pump, key in zip(pumps, keys, strict=True)]

    @cached_property
    def sites(self) -> tuple[Ints, list[str | None]]:
        """Of each set-up whether it has a new site, and the decision that says so."""
        sites = self.fills[:, grouping.U_SITE].copy()
        if not self.shaping.sites:
            return sites, [None] * len(sites)
        owned = self.fills[:, grouping.U_SESSION] >= 0
        confirmed = [self.shaping.sites.get(one) if has else None for one, has in zip(self.setup_ids, owned.tolist(), strict=True)]
        sites[[one is not None for one in confirmed]] = grouping.YES
        return sites, confirmed

    @cached_property
    def order(self) -> Ints:
        """Of each session the row of its order, -1: none."""
        return self.said.order[self.rows[:, grouping.PIECE_FROM]]

    @cached_property
    def start_row(self) -> Ints:
        """Of each session the row that it starts with."""
        return np.asarray(self.pieces[self.rows[:, grouping.PIECE_FROM], machine.S_ROW])

    @cached_property
    def ids(self) -> list[str]:
        """The ids of the sessions."""
        pumps, keys = self.pump_ids(self.rows[:, grouping.STRETCH]).to_pylist(), self.take("record_key", self.start_row).to_pylist()
        known = self.orders.all
        named = [known[row].order_id if row >= 0 else "" for row in self.order.tolist()]
        return [identify("session", pump, order, key) for pump, order, key in zip(pumps, named, keys, strict=True)]

    def of_order(self, name: str, rows: Ints) -> pa.Array:
        """What the orders of these rows say of themselves; null for row -1."""
        return pa.array([getattr(one, name) for one in self.orders.all], pa.string()).take(pa.array(rows, mask=rows < 0))

    def sessions(self) -> pa.Table:
        rows, pieces, order = self.rows, self.pieces, self.order
        stop = pieces[rows[:, grouping.STOP_PIECE]]
        start = pieces[rows[:, grouping.PIECE_FROM]]
        is_open = rows[:, grouping.FLAG] & grouping.F_OPEN != 0
        from_utc, to_utc = rows[:, grouping.FROM_UTC], np.where(is_open, NONE, rows[:, grouping.TO_UTC])
        span = (stop[:, machine.E_MS] - start[:, machine.S_MS]) // 1000
        seconds = {name: rows[:, grouping.INFUSED + code] // 1000 for code, name in enumerate(grouping.CLASSES)}
        seconds["paused"] = span - sum(seconds[name] for name in grouping.CLASSES if name != "paused")
        sites, _ = self.sites
        mine = self.fills[:, grouping.U_SESSION]
        naive = pa.timestamp("ms")

        def setups(which: npt.NDArray[np.bool_]) -> Ints:
            return np.bincount(mine[which & (mine >= 0)], minlength=len(rows)).astype(np.int64)

        state = np.where(is_open, 0, np.where(rows[:, grouping.FLAG] & TIME_FLAGS != 0, 2, 1))
        columns = {
            "session_id": self.ids,
            "pump_id": self.pump_ids(rows[:, grouping.STRETCH]),
            "stretch": self.stretch_ids(rows[:, grouping.STRETCH]),
            **{name: self.of_order(name, order) for name in ("patient_id", "order_id", "payer", "drug", "route")},
            "start": timestamps(from_utc, pa.timestamp("ms", "UTC")),
            "stop": timestamps(to_utc, pa.timestamp("ms", "UTC")),
            "start_local": timestamps(self.local(from_utc, order), naive),
            "stop_local": timestamps(self.local(to_utc, order), naive),
            "printed_start": timestamps(self.shown(start[:, machine.S_MS], start[:, machine.S_ROW]), naive),
            "span_s": span,
            **{f"{name}_s": found for name, found in seconds.items()},
            "volume_ml": _numbers(np.round(self.out.amounts[: len(rows), grouping.VOLUME], 6)),
            "bolus_count": rows[:, grouping.BOLUSES],
            "granted": rows[:, grouping.GRANTED_N],
            "denied": rows[:, grouping.DENIED_N],
            "setups": setups(sites >= 0),
            "new_sites": setups(sites == grouping.YES),
            "possible_sites": setups(sites == grouping.POSSIBLE),
            "time_quality": pa.array(QUALITIES, pa.string()).take(pa.array(rows[:, grouping.WORST])),
            "state": pa.array(("open", "closed", "uncertain")).take(pa.array(state)),
            "flags": _lists(*_named(rows[:, grouping.FLAG])),
            "first_event": self.take("event_id", start[:, machine.S_ROW]),
            "last_event": self.take("event_id", stop[:, machine.E_ROW]),
            "evidence_hash": list(self.evidence()),
            "continuous_s": rows[:, grouping.CONTINUOUS] // 1000,
            "max_rate_ml_h": _numbers(self.out.amounts[: len(rows), grouping.MAX_RATE]),
            "decisions": self.decided,
        }
        return _table(tables.SESSIONS, columns, "pump_id", "session_id")

    @cached_property
    def decided(self) -> list[list[str]]:
        """Of each session the decisions that shaped its time."""
        if not (self.stops or self.clocks):
            return [[]] * len(self.rows)
        found = []
        for one in self.rows:
            clock_ = self.clocks.get(int(self.line.first[one[grouping.STRETCH]]))
            mine = {self.stops[row][1] for row in self.begin(one, machine.INFUSING) if row in self.stops}
            found.append(sorted({*mine, clock_[1]} if clock_ is not None else mine))
        return found

    def segments(self, session: Ints) -> Ints:
        """The segments of the pieces of a session."""
        pieces = self.pieces[session[grouping.PIECE_FROM] : session[grouping.PIECE_TO]]
        return np.concatenate([self.found.segments[low:high] for low, high in pieces[:, [machine.SEG_FROM, machine.SEG_TO]].tolist()])

    def begin(self, session: Ints, what: int) -> set[int]:
        """The rows that the segments of a class of a session begin with."""
        mine = self.segments(session)
        return set(mine[mine[:, machine.WHAT] == what, machine.S_ROW].tolist())

    def unended(self, session: Ints) -> list[dict[str, Any]]:
        """The deliveries of a session that have no stop (PIECE)."""
        mine = self.segments(session)
        mine = mine[mine[:, machine.CODE] == machine.NO_STOP]
        events = self.block.words("event_id")
        times = self.utc(mine[:, machine.S_MS], mine[:, machine.S_ROW]), self.utc(mine[:, machine.E_MS], mine[:, machine.E_ROW])
        return [
            {
                "event_id": events[int(one[machine.S_ROW])].as_py(),
                "last_event": events[int(one[machine.E_ROW])].as_py(),
                "from_ms": int(one[machine.S_MS]),
                "to_ms": int(one[machine.E_MS]),
                "from_utc": _or_none(times[0][number]),
                "to_utc": _or_none(times[1][number]),
                "printed": _or_none(self.block.pump_time[one[machine.S_ROW]]),
                "likely_ms": self.likely_ms(one),
            }
            for number, one in enumerate(mine)
        ]

    def likely_ms(self, segment: Ints) -> int | None:
        """How long a delivery took to give its programmed volume, if the pump recorded volume and rate and nothing speaks against it."""
        row, last = int(segment[machine.S_ROW]), int(segment[machine.E_ROW])
        kind = self.block.kind
        if kind[row] != KIND[Kind.DELIVERY_START.value]:
            return None
        if np.isin(kind[row + 1 : last], [KIND[Kind.RATE_CHANGE.value], KIND[Kind.LIMIT_REACHED.value]]).any():
            return None
        for volume, rate in (("programmed_ml", "rate_ml_h"), ("programmed_dose", "rate_dose_h")):
            asked, flows = self.block.column(volume)[row].as_py(), self.block.column(rate)[row].as_py()
            if asked and flows:
                lasts = round(asked / flows * 3_600_000)
                return lasts if lasts <= segment[machine.E_MS] - segment[machine.S_MS] else None
        return None

    def local(self, utc: Ints, order: Ints) -> Ints:
        """Local ms in the zone of each one's order; NONE where either is not known."""
        zones = {one.tz: one.zone for one in {self.orders.all[row] for row in np.unique(order[order >= 0]).tolist()}}
        codes = {name: code for code, name in enumerate(zones)}
        of = np.array([codes.get(one.tz, -1) for one in self.orders.all] + [-1], dtype=np.int64)[order]
        found = np.full(len(utc), NONE, dtype=np.int64)
        for name, code in codes.items():
            mine = (of == code) & (utc != NONE)
            found[mine] = local_ms(utc[mine], zones[name])
        return found

    def evidence(self) -> Iterator[str]:
        """Of each session the hash of the bytes of its events and set-ups, the order's terms and its codes of time."""
        rows = self.rows
        terms = {row: str(self.orders.all[row]) if row >= 0 else "None" for row in np.unique(self.order).tolist()}
        sets, codes = _named(rows[:, grouping.FLAG] & TIME_FLAGS)
        joined = [",".join(names) for names in sets]
        shaped = [",".join(ids) for ids in self.decided]
        session, begins, ends = self.runs()
        bounds = np.searchsorted(session, np.arange(len(rows) + 1)).tolist()
        raw = _slices(self.block.words("raw"), begins, ends)
        told = zip(self.order.tolist(), rows[:, grouping.FROM_UTC].tolist(), codes.tolist(), shaped, pairwise(bounds), strict=True)
        for order, start, code, ids, (first, beyond) in told:
            hashed = hashlib.sha256(f"{terms[order]}\n{start}\n{joined[code]}\n{ids}\n".encode())
            for lengths, data in islice(raw, beyond - first):
                hashed.update(lengths)
                hashed.update(data)
            yield hashed.hexdigest()

    def runs(self) -> tuple[Ints, Ints, Ints]:
        """The rows that each session rests on, as runs of consecutive ones in order: session, from, up to."""
        rows, by_instant = self.rows, self.out.by_instant
        low, high = rows[:, grouping.INSIDE_FROM], rows[:, grouping.INSIDE_TO]
        moved = np.concatenate(([0], np.cumsum(by_instant != np.arange(len(by_instant)))))
        whole = (moved[high] == moved[low]) & (high > low)
        fills, mine = self.out.fills[: self.out.made[grouping.N_FILL]], self.fills
        filled = np.repeat(mine[:, grouping.U_SESSION], mine[:, grouping.U_TO] - mine[:, grouping.U_FROM])
        outside = (filled >= 0) & ~(whole[filled] & (fills >= low[filled]) & (fills < high[filled])) if len(rows) else filled >= 0
        scattered = [
            (number, row) for number in np.flatnonzero(~whole).tolist() for row in set(by_instant[low[number] : high[number]].tolist())
        ]
        single = np.array(scattered, dtype=np.int64).reshape(-1, 2)
        session = np.concatenate((np.flatnonzero(whole), filled[outside], single[:, 0]))
        begins = np.concatenate((low[whole], fills[outside], single[:, 1]))
        ends = np.concatenate((high[whole], fills[outside] + 1, single[:, 1] + 1))
        order = np.lexsort((begins, session))
        session, begins, ends = session[order], begins[order], ends[order]
        if not len(session):
            return session, begins, ends
        breaks = np.concatenate(([True], (session[1:] != session[:-1]) | (begins[1:] > ends[:-1])))
        firsts = np.flatnonzero(breaks)
        return session[firsts], begins[firsts], np.maximum.reduceat(ends, firsts)

    def intervals(self) -> pa.Table:
        rows = self.cut_up
        session = rows[:, grouping.I_SESSION]
        stretch = self.rows[session, grouping.STRETCH]
        utc = pa.timestamp("ms", "UTC")
        columns = {
            "session_id": pa.array(self.ids, pa.string()).take(pa.array(session)),
            "pump_id": self.pump_ids(stretch),
            "stretch": self.stretch_ids(stretch),
            "from_ms": rows[:, grouping.I_FROM],
            "to_ms": rows[:, grouping.I_TO],
            "from_utc": timestamps(rows[:, grouping.I_FROM_UTC], utc),
            "to_utc": timestamps(rows[:, grouping.I_TO_UTC], utc),
            "class": pa.array(grouping.CLASSES, pa.string()).take(pa.array(rows[:, grouping.I_CLASS])),
            "source": _take((*SOURCES, "kvo"), rows[:, grouping.I_SOURCE]),
            "first_event": self.take("event_id", rows[:, grouping.I_FIRST]),
            "last_event": self.take("event_id", rows[:, grouping.I_LAST]),
        }
        return _table(tables.INTERVALS, columns, "pump_id", "session_id", "from_ms", "to_ms", "class")

    def setups(self) -> pa.Table:
        rows, fills = self.fills, self.out.fills[: self.out.made[grouping.N_FILL]]
        session, stretch = rows[:, grouping.U_SESSION], rows[:, grouping.U_STRETCH]
        order = np.where(session >= 0, self.order[session] if len(self.order) else -1, -1)
        last = fills[rows[:, grouping.U_TO] - 1]
        sites, confirmed = self.sites
        columns = {
            "setup_id": self.setup_ids,
            "session_id": _take(self.ids, session),
            "pump_id": self.pump_ids(stretch),
            "stretch": self.stretch_ids(stretch),
            "patient_id": self.of_order("patient_id", order),
            "order_id": self.of_order("order_id", order),
            "elapsed_ms": self.line.elapsed[last],
            "time": timestamps(self.line.utc[last], pa.timestamp("ms", "UTC")),
            "printed_time": timestamps(self.block.pump_time[last], pa.timestamp("ms")),
            "pump_setup": rows[:, grouping.U_PUMP] != 0,
            "new_site": pa.array(("no", "possible", "yes")).take(pa.array(sites)),
            "evidence": pa.ListArray.from_arrays(
                pa.array(np.append(rows[:, grouping.U_FROM], len(fills)), pa.int32()), self.take("event_id", fills)
            ),
            "decisions": _each(confirmed),
        }
        return _table(tables.SETUPS, columns, "pump_id", "setup_id")

    def _ongoing(self) -> Ints:
        """Of each stretch, when the first of its sessions began that may go on behind the cut after it: those that ended there within
        the gap limit; NONE where there is none."""
        found = np.full(len(self.line.first), np.iinfo(np.int64).max)
        stretch = self.rows[:, grouping.STRETCH]
        ended = self.pieces[self.rows[:, grouping.STOP_PIECE], machine.E_MS]
        near = (self.line.end[stretch] - ended <= self.gap_ms) & (self.rows[:, grouping.FROM_UTC] != NONE)
        np.minimum.at(found, stretch[near], self.rows[near, grouping.FROM_UTC])
        return np.where(found < np.iinfo(np.int64).max, found, NONE)

    def doubts(self) -> pa.Table:
        """What is not proved about time: cuts, from the last record before them on, and sessions with a code of the first row."""
        made: list[dict[str, Any]] = []
        cuts = self.out.cuts[: self.out.made[grouping.N_CUT]]
        # A hole at the end of a log is a cut that nothing settles.
        ends = self.block.bounds[1:] - 1
        unsettled = [(grouping.F_GAP, row, -1) for row in ends[self.line.stretch[ends] < 0].tolist()]
        cuts = np.concatenate((cuts, np.array(unsettled, dtype=np.int64).reshape(-1, 3)))
        flags, firsts, settled = cuts.T
        pump_of = np.searchsorted(self.block.bounds, firsts, side="right") - 1
        since = np.where(firsts > self.block.bounds[pump_of], self.known_up_to(firsts - 1), NONE)
        before = np.searchsorted(self.line.first, firsts) - 1
        ongoing = np.append(self._ongoing(), NONE)[np.where(np.append(self.line.pump, -1)[before] == pump_of, before, -1)]
        until = np.where(settled >= 0, self.known_from(settled), NONE)
        keys, events = self.take("record_key", firsts).to_pylist(), self.take("event_id", firsts).to_pylist()
        of_cuts = zip(flags.tolist(), pump_of.tolist(), keys, events, since.tolist(), until.tolist(), ongoing.tolist(), strict=True)
        for flag, pump, key, event, from_utc, to_utc, goes_on in of_cuts:
            made.append(
                {
                    "doubt_id": identify("cut", self.block.pumps[pump], key),
                    "pump_id": self.block.pumps[pump],
                    "code": FLAGS[flag.bit_length() - 1],
                    "from_utc": _or_none(from_utc),
                    "to_utc": _or_none(to_utc),
                    "since_utc": _or_none(goes_on),
                    "event_id": event,
                    "pieces": [],
                }
            )
        doubted = np.flatnonzero(self.rows[:, grouping.FLAG] & TIME_FLAGS)
        rows, starts = self.rows[doubted], self.start_row[doubted]
        stops = self.pieces[rows[:, grouping.STOP_PIECE], machine.E_ROW]
        since, until = rows[:, grouping.FROM_UTC], rows[:, grouping.TO_UTC]
        since = np.where(since != NONE, since, self.known_up_to(starts))
        until = np.where(until != NONE, until, self.known_from(stops))
        events = self.take("event_id", starts).to_pylist()
        of_sessions = zip(doubted.tolist(), rows, events, since.tolist(), until.tolist(), strict=True)
        for session, one, event, from_utc, to_utc in of_sessions:
            order = int(self.order[session])
            for code in (code for bit, code in enumerate(TIME_CODES) if one[grouping.FLAG] >> bit & 1):
                made.append(
                    {
                        "doubt_id": identify("session", self.ids[session], code),
                        "pump_id": self.block.pumps[self.line.pump[one[grouping.STRETCH]]],
                        "session_id": self.ids[session],
                        "order_id": self.orders.all[order].order_id if order >= 0 else None,
                        "patient_id": self.orders.all[order].patient_id if order >= 0 else None,
                        "code": code,
                        "from_utc": _or_none(from_utc),
                        "to_utc": _or_none(to_utc),
                        "since_utc": None,
                        "event_id": event,
                        "pieces": self.unended(one) if code == "NO_STOP" else [],
                    }
                )
        return tables.rows_to_table(tables.DOUBTS, made, sort=("pump_id", "doubt_id"))


def _slices(column: pa.Array, begins: Ints, ends: Ints) -> Iterator[tuple[memoryview, memoryview]]:
    """Of each run of consecutive rows of a column of bytes, their lengths (int32) and their bytes, without a copy."""
    _, offsets, buffer = column.buffers()
    whole = np.frombuffer(offsets, dtype=np.int32) if offsets is not None else np.zeros(1, dtype=np.int32)
    at = whole[column.offset : column.offset + len(column) + 1]
    lengths = np.diff(at).data.cast("B")
    data = memoryview(buffer) if buffer is not None else memoryview(b"")
    places = zip((4 * begins).tolist(), (4 * ends).tolist(), at[begins].tolist(), at[ends].tolist(), strict=True)
    return ((lengths[low:high], data[first:last]) for low, high, first, last in places)


def _stop(order: Order) -> int:
    return NONE if order.stop_ms is None else order.stop_ms


def _or_none(moment: Any) -> int | None:
    return None if moment == NONE else int(moment)


def _numbers(values: Any) -> pa.Array:
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def _take(names: Sequence[str], codes: Ints) -> pa.Array:
    """Names by code; null for -1."""
    return pa.array(names, pa.string()).take(pa.array(codes, mask=codes < 0))


def _named(flags: Ints) -> tuple[list[list[str]], Ints]:
    """Bits as the codes that they stand for: all sets of codes there are, and of each the number of its set."""
    masks, where = np.unique(flags, return_inverse=True)
    return [[code for bit, code in enumerate(FLAGS) if mask >> bit & 1] for mask in masks.tolist()], where


def _each(values: list[str | None]) -> pa.Array:
    """A column of lists: of the one value, or empty where there is none."""
    column = pa.array(values, pa.string())
    ends = np.cumsum(np.append(0, column.is_valid().to_numpy(zero_copy_only=False)))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), column.drop_null())


def _lists(lists: Sequence[Sequence[str]], where: Ints) -> pa.Array:
    """A column of lists, each told by its number."""
    return pa.array(lists, pa.list_(pa.string())).take(pa.array(where))


def _table(schema: pa.Schema, columns: dict[str, Any], *sort: str) -> pa.Table:
    built = pa.table(
        {
            field.name: pa.array(columns[field.name], field.type) if not isinstance(columns[field.name], pa.Array) else columns[field.name]
            for field in schema
        },
        schema=schema,
    )
    return built.sort_by([(name, "ascending") for name in sort]) if built.num_rows else built


__all__ = ["TIME_CODES", "FactPolicy", "Facts", "derive", "derive_all"]
