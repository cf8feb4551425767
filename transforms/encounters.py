"""Encounters (docs/semantics.md §6): sessions on one time line, grouped, with their minutes, set-ups and units.

All patients at once, as arrays: a *span* is a session that has an order, an *encounter* a group of spans, and `member` with `bounds`
says which spans are of which.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.block import NONE, Ints, booleans, coded, milliseconds
from transforms.codes import BIT
from transforms.groups import Bools, begins, covered, distinct, either, expand, has, listed, total, words
from transforms.orders import Order, Orders, local, local_ms, utc_ms
from transforms.ruleset import RuleSet
from transforms.tables import identify

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - what a pump prints has no zone
_DAY_MS = 86_400_000
_FIRST_DAY = date(1970, 1, 1).toordinal()
INFUSING, UNKNOWN = 0, 1
_CLASSES = {"infusing": INFUSING, "unknown": UNKNOWN}
NO, POSSIBLE, YES = range(3)
_SITES = {"no": NO, "possible": POSSIBLE, "yes": YES}


@dataclass(frozen=True, slots=True)
class Facts:
    """What billing reads: SESSIONS, INTERVALS, SETUPS and DOUBTS."""

    sessions: pa.Table
    intervals: pa.Table
    setups: pa.Table
    doubts: pa.Table


def day_of(number: int) -> date:
    """A date by its number of days since 1970."""
    return date.fromordinal(number + _FIRST_DAY)


def number_of(day: date) -> int:
    """The inverse of `day_of`."""
    return day.toordinal() - _FIRST_DAY


def local_date(instant_ms: int, order: Order) -> date:
    """The date of a UTC instant in the order's zone."""
    return local(instant_ms, order.zone).date()


def _read(printed_ms: int, order: Order) -> int:
    """What a pump printed, read in the order's zone, as UTC ms."""
    return utc_ms(_EPOCH + timedelta(milliseconds=printed_ms), order.zone)


class Terms:
    """The orders that some sessions have, by rank of their ids, and what the rule set of each says."""

    def __init__(self, named: Collection[str], orders: Orders, rule_sets: Mapping[str, RuleSet]) -> None:
        self.orders = [orders.of_id(name)[0] for name in sorted(named)]
        self.rank = {order.order_id: rank for rank, order in enumerate(self.orders)}
        self.patients = sorted({order.patient_id for order in self.orders})
        place = {patient: rank for rank, patient in enumerate(self.patients)}
        self.patient = np.array([place[order.patient_id] for order in self.orders], dtype=np.int64)
        self.rule_sets = list(rule_sets.values())
        number = {rules.name: n for n, rules in enumerate(self.rule_sets)}
        self.rules = np.array([number[rule_sets[order.rule_set].name] for order in self.orders], dtype=np.int64)
        self.eligible = np.array([self.rules_of(n).covers(order.route, order.drug) for n, order in enumerate(self.orders)], dtype=np.bool_)
        self._zones = sorted({order.tz for order in self.orders})
        zone = {name: n for n, name in enumerate(self._zones)}
        self._zone = np.array([zone[order.tz] for order in self.orders], dtype=np.int64)

    def rules_of(self, order: int) -> RuleSet:
        """The rule set of an order."""
        return self.rule_sets[int(self.rules[order])]

    def per_rules(self, tell: Any, kind: Any = np.int64) -> Any:
        """What a function tells of each rule set, for each order."""
        return np.array([tell(rules) for rules in self.rule_sets], dtype=kind)[self.rules]

    def column(self, name: str, order: Ints) -> pa.Array:
        """What orders say of themselves."""
        return pa.array([getattr(one, name) for one in self.orders], pa.string()).take(pa.array(order))

    def days(self, instants: Ints, order: Ints) -> Ints:
        """The local dates of UTC instants in the zones of these orders."""
        found = np.empty(len(instants), dtype=np.int64)
        zone = self._zone[order]
        for number in np.unique(zone).tolist():
            mine = zone == number
            tz = self.orders[int(np.flatnonzero(self._zone == number)[0])].zone
            found[mine] = local_ms(instants[mine], tz) // _DAY_MS
        return found

    def midnights(self, day: Ints, order: Ints) -> tuple[Ints, Ints]:
        """Local dates as UTC ms, half open."""
        first, which = distinct(day, self._zone[order])
        told = []
        for row in first.tolist():
            midnight = datetime.fromordinal(int(day[row]) + _FIRST_DAY)
            tz = self.orders[order[row]].zone
            told.append((utc_ms(midnight, tz), utc_ms(midnight + timedelta(days=1), tz)))
        bounds = np.array(told, dtype=np.int64).reshape(-1, 2)[which]
        return bounds[:, 0], bounds[:, 1]


@dataclass(frozen=True)
class Spans:
    """Sessions that have an order, by patient, start and id: times in UTC ms, or in printed time read in the order's zone where UTC is
    unknown. Those of span n have their intervals from `bounds[n]` to `bounds[n + 1]`."""

    facts: Facts
    terms: Terms
    row: Ints
    """Of SESSIONS."""
    order: Ints
    start: Ints
    stop: Ints
    day: Ints
    """The local date that it counts for."""
    first_day: Ints
    last_day: Ints
    """The local dates of start and stop."""
    bounds: Ints
    interval: Ints
    """Of each interval the row of INTERVALS."""
    low: Ints
    high: Ints
    """Where it lies on this time line."""
    from_ms: Ints
    to_ms: Ints
    """The same on the elapsed time of its stretch."""
    what: Ints
    """Its class: INFUSING, UNKNOWN, or -1."""

    @cached_property
    def patient(self) -> Ints:
        """The rank of its patient."""
        return self.terms.patient[self.order]

    @cached_property
    def owner(self) -> Ints:
        """Of each interval its span."""
        return np.repeat(np.arange(len(self.row)), np.diff(self.bounds))

    def lasting(self, what: int) -> Ints:
        """Ms of elapsed time of a class."""
        return total(self.owner, np.where(self.what == what, self.to_ms - self.from_ms, 0), len(self.row))

    def of(self, name: str) -> pa.Array:
        """A column of SESSIONS."""
        return self.facts.sessions[name].combine_chunks().take(pa.array(self.row))

    def ints(self, name: str) -> Ints:
        """A column of whole numbers of SESSIONS."""
        return np.asarray(self.facts.sessions[name].to_numpy(), dtype=np.int64)[self.row]

    @cached_property
    def flags(self) -> Ints:
        """The codes of the session, as bits."""
        lists = self.of("flags")
        told = lists.flatten().dictionary_encode()
        bits = np.array([BIT[name] for name in told.dictionary.to_pylist()], dtype=np.int64)
        owner = np.repeat(np.arange(len(self.row)), pc.list_value_length(lists).to_numpy(zero_copy_only=False))
        return either(owner, bits[told.indices.to_numpy(zero_copy_only=False)], len(self.row))

    @cached_property
    def pump(self) -> tuple[Ints, pa.Array]:
        """The rank of its pump, and the pumps."""
        rank, names = words(self.facts.sessions["pump_id"])
        return rank[self.row], names

    def pumps_of(self, group: Ints, member: Ints, groups: int) -> pa.Array:
        """The pumps of the sessions of each group."""
        rank, names = self.pump
        firsts, _ = distinct(group, rank[member])
        return listed(group[firsts], names.take(pa.array(rank[member[firsts]])), groups)

    @cached_property
    def session_ids(self) -> list[str]:
        """The ids of the sessions."""
        ids: list[str] = self.of("session_id").to_pylist()
        return ids

    @cached_property
    def evidence(self) -> list[str]:
        """The hashes of what the sessions rest on."""
        hashes: list[str] = self.of("evidence_hash").to_pylist()
        return hashes


def spans_of(facts: Facts, orders: Orders, rule_sets: Mapping[str, RuleSet]) -> Spans:
    """Sessions that have an order, with their intervals on one time line."""
    sessions, intervals = facts.sessions, facts.intervals
    order, order_ids = words(sessions["order_id"])
    pump, pump_ids = words(sessions["pump_id"])
    rows = np.flatnonzero(order >= 0)
    firsts, which = distinct(order[rows], pump[rows])
    heads = rows[firsts]
    pairs = zip(order_ids.take(pa.array(order[heads])).to_pylist(), pump_ids.take(pa.array(pump[heads])).to_pylist(), strict=True)
    own = [next((o for o in orders.of_id(name) if o.pump_id == pump_id), None) for name, pump_id in pairs]
    terms = Terms({one.order_id for one in own if one is not None}, orders, rule_sets)
    rank = np.array([-1 if one is None else terms.rank[one.order_id] for one in own], dtype=np.int64)[which]
    rows, rank = rows[rank >= 0], rank[rank >= 0]

    start = milliseconds(sessions["start"])[rows]
    printed = milliseconds(sessions["printed_start"])[rows]
    known = start != NONE
    for at in np.flatnonzero(~known).tolist():
        # Without either time no order is found, so that one is there.
        start[at] = _read(int(printed[at]), terms.orders[rank[at]])
    names = pc.rank(sessions["session_id"], tiebreaker="first").to_numpy()[rows].astype(np.int64)
    by = np.lexsort((names, start, terms.patient[rank]))
    rows, start, printed, known, rank = rows[by], start[by], printed[by], known[by], rank[by]

    span_of = np.full(sessions.num_rows + 1, -1, dtype=np.int64)
    span_of[rows] = np.arange(len(rows))
    of_row = pc.index_in(intervals["session_id"], value_set=sessions["session_id"]).fill_null(sessions.num_rows).to_numpy()
    owner = span_of[of_row]
    taken = np.flatnonzero(owner >= 0)
    taken = taken[np.argsort(owner[taken], kind="stable")]
    owner = owner[taken]
    bounds = np.searchsorted(owner, np.arange(len(rows) + 1))
    from_ms, to_ms = (np.asarray(intervals[name].to_numpy(), dtype=np.int64)[taken] for name in ("from_ms", "to_ms"))
    from_utc, to_utc = (milliseconds(intervals[name])[taken] for name in ("from_utc", "to_utc"))
    timed = known & ~has(owner, (from_utc == NONE) | (to_utc == NONE), len(rows))
    first_ms = np.append(from_ms, 0)[np.minimum(bounds[:-1], len(from_ms))]
    low = np.where(timed[owner], from_utc, start[owner] + from_ms - first_ms[owner])
    high = np.where(timed[owner], to_utc, start[owner] + to_ms - first_ms[owner])
    stop = start.copy()
    np.maximum.at(stop, owner, high)
    first_day = terms.days(start, rank)
    return Spans(
        facts=facts,
        terms=terms,
        row=rows,
        order=rank,
        start=start,
        stop=stop,
        day=np.where(known, first_day, printed // _DAY_MS),
        first_day=first_day,
        last_day=terms.days(stop, rank),
        bounds=bounds,
        interval=taken,
        low=low,
        high=high,
        from_ms=from_ms,
        to_ms=to_ms,
        what=coded(intervals["class"], _CLASSES)[taken],
    )


@dataclass(frozen=True)
class Encounters:
    """The sessions that "once per encounter" ranges over, by order and date, with their minutes, set-ups and units."""

    spans: Spans
    order: Ints
    day: Ints
    member: Ints
    """Spans, those of each encounter together."""
    bounds: Ints
    ids: list[str]

    def __len__(self) -> int:
        return len(self.order)

    @property
    def terms(self) -> Terms:
        """The orders."""
        return self.spans.terms

    @cached_property
    def of_member(self) -> Ints:
        """Of each member its encounter."""
        return np.repeat(np.arange(len(self)), np.diff(self.bounds))

    @cached_property
    def eligible(self) -> Bools:
        """Whether the rule set has lines for it at all."""
        found: Bools = self.terms.eligible[self.order]
        return found

    @cached_property
    def last_day(self) -> Ints:
        """The last of the local dates that its lines stand on; `day` is the first."""
        split = self.terms.per_rules(lambda rules: rules.policies.midnight != "start_date", np.bool_)[self.order]
        last = self.day.copy()
        np.maximum.at(last, self.of_member, self.spans.last_day[self.member])
        return np.where(split, last, self.day)

    @cached_property
    def stake(self) -> Ints:
        """Whole minutes, infused or unknown."""
        return self.minutes + total(self.of_member, self.spans.lasting(UNKNOWN)[self.member], len(self)) // 60_000

    @cached_property
    def pieces(self) -> tuple[Ints, Ints]:
        """The intervals that infuse: of each its encounter, and which of the intervals of the spans it is."""
        spans = self.spans
        member, interval = expand(spans.bounds[self.member], spans.bounds[self.member + 1])
        infuses = spans.what[interval] == INFUSING
        return self.of_member[member[infuses]], interval[infuses]

    @cached_property
    def minutes(self) -> Ints:
        """Whole minutes of delivery: seconds first, what two pumps gave at once a single time, then minutes, once."""
        spans, (owner, piece) = self.spans, self.pieces
        stretch, _ = words(spans.facts.sessions["stretch"])
        firsts, logs = distinct(owner, stretch[spans.row[spans.owner[piece]]])
        low, high = spans.low[piece], spans.high[piece]
        apart = total(owner[firsts], covered(logs, low, high, len(firsts)), len(self))
        twice = apart - covered(owner, low, high, len(self))
        return (total(self.of_member, spans.lasting(INFUSING)[self.member], len(self)) - twice) // 60_000

    @cached_property
    def setups(self) -> Setups:
        """Its set-ups."""
        return _setups(self)

    @cached_property
    def line_codes(self) -> list[str]:
        """The codes that the rule sets propose, sorted."""
        return sorted({line.code for one in self.terms.rule_sets for line in one.lines})

    @cached_property
    def units(self) -> Ints:
        """Of each encounter and each of these codes the units."""
        rules, column = self.terms.rules[self.order], {code: n for n, code in enumerate(self.line_codes)}
        firsts, which = distinct(rules, self.minutes)
        told = np.zeros((len(firsts), len(column)), dtype=np.int64)
        for number, row in enumerate(firsts.tolist()):
            for code, units in self.terms.rule_sets[rules[row]].units(int(self.minutes[row])).items():
                told[number, column[code]] = units
        found = told[which]
        counting = has(self.setups.encounter, self.setups.counting, len(self))
        for number in np.unique(rules).tolist():
            initial, setup = (self.terms.rule_sets[number].rule(role) for role in ("initial", "setup"))
            if initial is not None and setup is not None:
                found[counting & (rules == number) & (found[:, column[initial.code]] > 0), column[setup.code]] = setup.units
        return found

    def rule(self, encounter: int) -> RuleSet:
        """The rule set of an encounter."""
        return self.terms.rules_of(int(self.order[encounter]))

    def of(self, encounter: int) -> Ints:
        """The spans of an encounter."""
        return self.member[self.bounds[encounter] : self.bounds[encounter + 1]]

    def units_of(self, encounter: int) -> dict[str, int]:
        """Code → units of an encounter."""
        return {code: units for code, units in zip(self.line_codes, self.units[encounter].tolist(), strict=True) if units}


@dataclass(frozen=True)
class Setups:
    """The set-ups of encounters by time, those with too little infusion between them as one."""

    encounter: Ints
    at: Ints
    is_pump: Bools
    site: Ints
    """Whether it has a new site: NO, POSSIBLE or YES."""
    further: Bools
    """All but the first of its encounter."""
    row_of: Ints
    rows: Ints
    """Which rows of SETUPS: `rows[n]` is of set-up `row_of[n]`'s encounter."""

    @property
    def counting(self) -> Bools:
        """Further set-ups that count."""
        found: Bools = self.further & self.is_pump & (self.site == YES)
        return found


def encounters_of(spans: Spans) -> Encounters:
    """Sessions of each patient, grouped into encounters by the policy of their order's rule set, with minutes, set-ups and units."""
    terms = spans.terms
    by_time = terms.per_rules(lambda rules: rules.basis != "day", np.bool_)[spans.order]
    alone = terms.per_rules(lambda rules: rules.policies.encounter == "session", np.bool_)[spans.order]
    mine = np.flatnonzero(by_time)
    session = np.where(alone[mine], mine, -1)
    by = np.lexsort((mine, session, spans.day[mine], spans.order[mine]))
    member, session = mine[by], session[by]
    first = begins(spans.order[member], spans.day[member], session)
    bounds = np.append(np.flatnonzero(first), len(member))
    heads = member[bounds[:-1]]
    days = {number: day_of(number).isoformat() for number in np.unique(spans.day[heads]).tolist()}
    ids = []
    for head, own in zip(heads.tolist(), alone[heads].tolist(), strict=True):
        order = terms.orders[spans.order[head]]
        key = [spans.session_ids[head]] if own else []
        ids.append(identify("encounter", order.patient_id, order.order_id, days[int(spans.day[head])], *key))
    return Encounters(spans, spans.order[heads], spans.day[heads], member, bounds, ids)


def _setups(encounters: Encounters) -> Setups:
    """The set-ups of encounters by time; those of one pump with too little infusion between them are one, corrected."""
    spans, table = encounters.spans, encounters.spans.facts.setups
    encounter_of = np.full(len(spans.row) + 1, -1, dtype=np.int64)
    encounter_of[encounters.member] = encounters.of_member
    span_of = np.full(spans.facts.sessions.num_rows + 1, len(spans.row), dtype=np.int64)
    span_of[spans.row] = np.arange(len(spans.row))
    ids = spans.facts.sessions["session_id"]
    of_row = pc.index_in(table["session_id"], value_set=ids, skip_nulls=True).fill_null(len(ids)).to_numpy()
    rows = np.flatnonzero(encounter_of[span_of[of_row]] >= 0)
    span = span_of[of_row[rows]]
    owner = encounter_of[span]
    at, printed = milliseconds(table["time"])[rows], milliseconds(table["printed_time"])[rows]
    for one in np.flatnonzero((at == NONE) & (printed != NONE)).tolist():
        at[one] = _read(int(printed[one]), encounters.terms.orders[encounters.order[owner[one]]])
    at = np.where(at == NONE, spans.start[span], at)
    names = pc.rank(table["setup_id"], tiebreaker="first").to_numpy()[rows].astype(np.int64)
    pump = spans.pump[0][span]
    by = np.lexsort((names, at, pump, owner))
    rows, owner, at, pump, names = rows[by], owner[by], at[by], pump[by], names[by]

    separation = encounters.terms.per_rules(lambda rules: rules.policies.setup_separation_min * 60_000, np.float64)
    between = _infusion_between(encounters, rows, owner, at, pump)
    apart = begins(owner, pump) | (between >= separation[encounters.order[owner]])
    group = np.cumsum(apart) - 1
    count = int(apart.sum())
    is_pump = has(group, booleans(table["pump_setup"])[rows], count)
    site = np.zeros(count, dtype=np.int64)
    np.maximum.at(site, group, coded(table["new_site"], _SITES)[rows])
    last = np.flatnonzero(np.append(apart[1:], True)) if count else np.empty(0, dtype=np.int64)
    # Of two at the same instant the one that counts comes first, where it may be the one inside the initial code.
    by = np.lexsort((names[last], ~(is_pump & (site == YES)), at[last], owner[last]))
    found_owner, is_pump, site = owner[last][by], is_pump[by], site[by]
    return Setups(found_owner, at[last][by], is_pump, site, ~begins(found_owner), owner, rows)


def _infusion_between(encounters: Encounters, rows: Ints, owner: Ints, at: Ints, pump: Ints) -> Ints:
    """Ms that a pump infused between each set-up and the one before it: on elapsed time where one stretch holds both."""
    spans, table = encounters.spans, encounters.spans.facts.setups
    elapsed = np.asarray(table["elapsed_ms"].to_numpy(), dtype=np.int64)[rows]
    known = spans.facts.sessions["stretch"].unique()
    stretch = pc.index_in(table["stretch"], value_set=known).fill_null(-1).to_numpy().astype(np.int64)[rows]
    of_session = pc.index_in(spans.facts.sessions["stretch"], value_set=known).to_numpy().astype(np.int64)[spans.row]
    of_piece, pieces = encounters.pieces
    bounds = np.searchsorted(of_piece, np.arange(len(encounters) + 1))
    pair, place = expand(bounds[owner], bounds[owner + 1])
    piece = pieces[place]
    span = spans.owner[piece]
    mine = (pair > 0) & (spans.pump[0][span] == pump[pair])
    pair, piece, span = pair[mine], piece[mine], span[mine]
    before = pair - 1
    within = (stretch[before] == stretch[pair]) & (stretch[pair] == of_session[span])
    low, high = np.where(within, elapsed[before], at[before]), np.where(within, elapsed[pair], at[pair])
    begin, end = np.where(within, spans.from_ms[piece], spans.low[piece]), np.where(within, spans.to_ms[piece], spans.high[piece])
    begin, end = np.maximum(begin, low), np.minimum(end, high)
    # Stretches whose clocks are not known may lie on top of each other: one pump does not infuse twice at once.
    elsewhere = covered(pair[~within], begin[~within], end[~within], len(rows))
    return elsewhere + total(pair[within], np.maximum(0, end - begin)[within], len(rows))
