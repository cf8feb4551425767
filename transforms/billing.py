"""Facts to candidate lines (docs/semantics.md §6). Everything is proposed; a biller decides.

The rule set is data (`transforms.ruleset`); this module knows no code numbers. Encounters and therapy days are *holders* of lines: all
of them at once, as arrays. Where people decided, or billing took lines, those of the patient are settled one by one (`decisions.Case`).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms import tables
from transforms.block import NONE, Ints, milliseconds, timestamps
from transforms.codes import BIT, SAYS, bits_of, named
from transforms.days import Days, days_of, split_by_day
from transforms.decisions import Case, Decision, Review, answered
from transforms.encounters import Encounters, Facts, Spans, day_of, encounters_of, number_of, spans_of
from transforms.groups import begins, distinct, either, expand, listed, several, words
from transforms.holds import Holds, reach, reaches_of
from transforms.orders import Order, Orders
from transforms.ruleset import RuleSet
from transforms.sessions import TIME_CODES
from transforms.tables import identify, rows_to_table
from transforms.worklist import WORKLIST_ORDER, Worklist

__all__ = ["DAY_ORDER", "LINE_ORDER", "WORKLIST_ORDER", "Bill", "Facts", "bill", "not_synced", "pump_items", "settled"]


@dataclass(frozen=True, slots=True)
class Bill:
    """LINES, WORKLIST and DAYS."""

    lines: pa.Table
    worklist: pa.Table
    days: pa.Table


def bill(
    facts: Facts,
    orders: Orders,
    rule_sets: Mapping[str, RuleSet],
    fact_policies: Mapping[str, Any],
    decided: Iterable[Decision] = (),
    released: Iterable[dict[str, Any]] = (),
    patients: Collection[str] | None = None,
) -> Bill:
    """The candidate lines, worklist and therapy days of some patients: `facts` are all those of their orders' pumps.

    `decided` are the decisions in force about these patients and pumps, `released` the rows of LINES that releases hold of them; of
    these patients alone, if any are named: what else was released is looked at only.
    """
    review = Review(decided, released, _applied(facts))
    return _settle(_Book(facts, orders, rule_sets, fact_policies, patients), review, orders, review.concerned(orders), patients)[0]


def settled(
    facts: Facts,
    orders: Orders,
    rule_sets: Mapping[str, RuleSet],
    fact_policies: Mapping[str, Any],
    decided: Iterable[Decision] = (),
    released: Iterable[dict[str, Any]] = (),
    patients: Collection[str] | None = None,
) -> tuple[Bill, list[Case]]:
    """As `bill`, with what decisions can be about."""
    review = Review(decided, released, _applied(facts))
    book = _Book(facts, orders, rule_sets, fact_policies, patients)
    return _settle(book, review, orders, {*book.spans.terms.patients, *review.concerned(orders)}, patients)


def _settle(book: _Book, review: Review, orders: Orders, people: set[str], patients: Collection[str] | None) -> tuple[Bill, list[Case]]:
    """The tables; lines and items of these people from their cases, all others straight from the arrays."""
    people = (people | book.shaped_patients) if patients is None else (people | book.shaped_patients).intersection(patients)
    work, cases, rows = Worklist(book.facts.doubts), [], []
    plain = ~np.isin(book.patient, [n for n, name in enumerate(book.spans.terms.patients) if name in people])
    for patient, mine in book.cases(people):
        rows += review.settle(patient, mine, {order.pump_id for order in orders.of_patient(patient)})
        for case in mine:
            work.case(case)
        work.decisions(mine, review.shaping(patient), review.lapsed(patient) + review.adrift(patient, mine))
        cases += mine
    lines = pa.concat_tables([book.lines.filter(pa.array(plain[book.line_holder])), rows_to_table(tables.LINES, rows)])
    items = pa.concat_tables([book.items(np.flatnonzero(plain), work), work.table()])
    return Bill(_sorted(lines, LINE_ORDER), _sorted(items, WORKLIST_ORDER), _sorted(book.days.table(), DAY_ORDER)), cases


def _sorted(table: pa.Table, by: Iterable[str]) -> pa.Table:
    return table.sort_by([(name, "ascending") for name in by]) if table.num_rows else table.combine_chunks()


def _applied(facts: Facts) -> set[str]:
    """The decisions that shaped these facts."""
    return {one for rows in (facts.sessions, facts.setups) for one in rows["decisions"].combine_chunks().flatten().unique().to_pylist()}


LINE_ORDER = ("patient_id", "service_date", "order_id", "line_id", "revision")
DAY_ORDER = ("patient_id", "order_id", "date")


def pump_items(
    sessions: pa.Table, doubts: pa.Table, orders: Orders, decided: Iterable[Decision] = (), checks: Iterable[Mapping[str, Any]] = ()
) -> pa.Table:
    """The WORKLIST items of pumps rather than patients: deliveries without an order, cuts in a log, totals (`checks`) that disagree."""
    work = Worklist()
    work.unassigned(sessions.to_pylist())
    work.cuts(doubts.to_pylist(), orders)
    work.totals(checks, orders)
    return answered(work.table(), decided)


def not_synced(orders: Iterable[Order], seen_ms: Mapping[str, int], horizon_ms: int | None, decided: Iterable[Decision] = ()) -> pa.Table:
    """WORKLIST items for orders in force on dates that no capture of their pump reaches.

    `seen_ms` is, of each pump, the last UTC instant that its captures reach; `horizon_ms` the last that any pump's do: nothing is
    expected of a pump beyond it.
    """
    work = Worklist()
    if horizon_ms is not None:
        work.not_synced(orders, seen_ms, horizon_ms)
    return answered(work.table(), decided)


class _Book:
    """All encounters, and the therapy days of orders that are billed by the day, as holders of lines: those first, then these.

    Without reviewers and releases, that is: `decisions.Case` knows them.
    """

    def __init__(
        self, facts: Facts, orders: Orders, rule_sets: Mapping[str, RuleSet], policies: Mapping[str, Any], patients: Collection[str] | None
    ) -> None:
        if patients is not None:
            mine = pc.is_in(facts.sessions["patient_id"], value_set=pa.array(sorted(patients), pa.string()))
            facts = Facts(facts.sessions.filter(mine), facts.intervals, facts.setups, facts.doubts)
        self.facts = facts
        self.policies = {name: rules.policies_json(policies) for name, rules in rule_sets.items()}
        self.spans: Spans = spans_of(facts, orders, rule_sets)
        self.encounters: Encounters = encounters_of(self.spans)
        self.holds = Holds(self.encounters, reaches := reaches_of(self.spans, orders))
        self.days: Days = days_of(self.spans)
        by_day = self.spans.terms.per_rules(lambda rules: rules.basis == "day", np.bool_)
        self.per_diem: Ints = np.flatnonzero(by_day[self.days.order])
        self.order = np.concatenate((self.encounters.order, self.days.order[self.per_diem]))
        self.day = np.concatenate((self.encounters.day, self.days.day[self.per_diem]))
        self.patient: Ints = self.spans.terms.patient[self.order]
        place = np.full(len(self.days), -1, dtype=np.int64)
        place[self.per_diem] = np.arange(len(self.encounters), len(self.order))
        of_member = place[self.days.of_member]
        self.member = np.concatenate((self.encounters.member, self.days.member[of_member >= 0]))
        self.of_member = np.concatenate((self.encounters.of_member, of_member[of_member >= 0]))
        self.bounds = np.searchsorted(self.of_member, np.arange(len(self.order) + 1))
        self._day_codes(reach(reaches, self.days.order, self.days.day, self.days.day)[self.per_diem])

    def __len__(self) -> int:
        return len(self.order)

    def _day_codes(self, reached: Ints) -> None:
        """What is found of therapy days, and the code of each."""
        days, terms = self.days, self.spans.terms
        order, day, continuous = days.order[self.per_diem], days.day[self.per_diem], days.continuous[self.per_diem]
        # A session of unknown UTC has dates, as printed, that its doubt may not reach.
        own = either(days.of_member, self.spans.flags[days.member] & bits_of(TIME_CODES), len(days))[self.per_diem]
        codes = (reached | own) & ~BIT["SESSION_OPEN"]
        codes |= np.where(days.left_open[self.per_diem], BIT["SESSION_OPEN"], 0)
        firsts, self.therapy_of = distinct(order, continuous.astype(np.int64))
        self.therapies = [
            terms.rules_of(order[row]).day_code(terms.orders[order[row]].drug, continuous=bool(continuous[row])) for row in firsts
        ]
        none = np.array([told is None for told in self.therapies], dtype=np.bool_)
        codes |= np.where(none[self.therapy_of], BIT["NO_CODE"], 0)
        firsts, which = distinct(terms.rules[order], day)
        out = [not terms.rules_of(order[row]).in_force(day_of(int(day[row]))) for row in firsts.tolist()]
        codes |= np.where(np.array(out, dtype=np.bool_)[which], BIT["NOT_IN_FORCE"], 0)
        _, same = distinct(terms.patient[order], terms.rules[order], day)
        codes |= np.where(several(same, order, len(order))[same], BIT["SECOND_ORDER_SAME_DAY"], 0)
        # Of a day, what does not hold is not looked for.
        self.codes = np.concatenate((self.holds.codes, codes & self.holding[len(self.encounters) :]))
        self.reasons = self.codes & self.holding

    # --- of each holder ---------------------------------------------------------------------------------------------------------

    @cached_property
    def holding(self) -> Ints:
        """The codes that hold it, as bits: none where there can be no line, of which all inform."""
        found: Ints = self.spans.terms.per_rules(lambda rules: bits_of(rules.holds))[self.order]
        found[: len(self.encounters)][~self.encounters.eligible] = 0
        return found

    @cached_property
    def ids(self) -> list[str]:
        """Its id."""
        terms, days = self.spans.terms, self.days
        told = [terms.orders[order] for order in days.order[self.per_diem].tolist()]
        dates = [day_of(day) for day in days.day[self.per_diem].tolist()]
        return self.encounters.ids + [
            identify("day", order.patient_id, order.order_id, day) for order, day in zip(told, dates, strict=True)
        ]

    @cached_property
    def minutes(self) -> Ints:
        """Whole minutes of delivery."""
        return np.concatenate((self.encounters.minutes, self.days.infusing_ms[self.per_diem] // 1000 // 60))

    @cached_property
    def stake(self) -> Ints:
        """Whole minutes, infused or unknown."""
        seconds = (self.days.infusing_ms // 1000 + self.days.unknown_ms // 1000)[self.per_diem]
        return np.concatenate((self.encounters.stake, seconds // 60))

    @cached_property
    def evidence(self) -> list[str]:
        """The hash of what its sessions rest on."""
        hashes, member, bounds = self.spans.evidence, self.member.tolist(), self.bounds.tolist()
        return [
            hashlib.sha256("\n".join(sorted(hashes[span] for span in member[low:high])).encode()).hexdigest()
            for low, high in pairwise(bounds)
        ]

    @cached_property
    def shaped(self) -> dict[int, set[str]]:
        """The decisions that shaped what a holder rests on."""
        found: dict[int, set[str]] = defaultdict(set)
        of_span = self.spans.of("decisions")
        for at in np.flatnonzero(pc.list_value_length(of_span).to_numpy(zero_copy_only=False)[self.member]).tolist():
            found[int(self.of_member[at])].update(of_span[int(self.member[at])].as_py())
        setups = self.encounters.setups
        of_setup = self.facts.setups["decisions"].combine_chunks().take(pa.array(setups.rows))
        for at in np.flatnonzero(pc.list_value_length(of_setup).to_numpy(zero_copy_only=False)).tolist():
            found[int(setups.row_of[at])].update(of_setup[at].as_py())
        return found

    @property
    def shaped_patients(self) -> set[str]:
        """The patients of whom any holder is shaped by a decision."""
        return {self.spans.terms.patients[self.patient[holder]] for holder in self.shaped}

    @cached_property
    def _entries(self) -> tuple[Ints, Ints, Ints]:
        """What its ledger is made of: holder, interval, and ms of it; of a day what lies within."""
        spans, days = self.spans, self.days
        member, interval = expand(spans.bounds[self.member], spans.bounds[self.member + 1])
        holder = self.of_member[member]
        lasts = spans.to_ms[interval] - spans.from_ms[interval]
        is_day = holder >= len(self.encounters)
        at = self.per_diem[holder[is_day] - len(self.encounters)]
        within = np.minimum(spans.high[interval[is_day]], days.high[at]) - np.maximum(spans.low[interval[is_day]], days.low[at])
        lasts[is_day] = np.maximum(0, within)
        keep = ~is_day | (lasts > 0)
        return holder[keep], interval[keep], lasts[keep]

    @cached_property
    def ledger(self) -> pa.Array:
        """Its minutes, counted and not."""
        holder, interval, lasts = self._entries
        told, row = self.facts.intervals, pa.array(self.spans.interval[interval])
        why = told["class"].combine_chunks().take(row)
        kind = tables.LEDGER.value_type
        columns = {
            "session_id": told["session_id"].combine_chunks().take(row),
            "from": told["from_utc"].combine_chunks().take(row),
            "to": told["to_utc"].combine_chunks().take(row),
            "seconds": pa.array(lasts / 1000),
            "counted": pc.equal(why, "infusing"),
            "why": why,
        }
        entries = pa.StructArray.from_arrays([columns[field.name] for field in kind], fields=list(kind))
        return listed(holder, entries, len(self)).cast(tables.LEDGER)

    @cached_property
    def event_ids(self) -> pa.Array:
        """The ids of the starts, stops and set-ups behind it."""
        spans, setups = self.spans, self.encounters.setups
        member, interval = expand(spans.bounds[self.member], spans.bounds[self.member + 1])
        holder, row = self.of_member[member], pa.array(spans.interval[interval])
        ends = [self.facts.intervals[name].combine_chunks().take(row) for name in ("first_event", "last_event")]
        of_setup = self.facts.setups["evidence"].combine_chunks().take(pa.array(setups.rows))
        which = np.repeat(setups.row_of, pc.list_value_length(of_setup).to_numpy(zero_copy_only=False).astype(np.int64))
        rank, names = words(pa.chunked_array([*ends, of_setup.flatten()], pa.string()))
        owner = np.concatenate((holder, holder, which))[rank >= 0]
        rank = rank[rank >= 0]
        by = np.lexsort((rank, owner))
        owner, rank = owner[by], rank[by]
        first = begins(owner, rank)
        return listed(owner[first], names.take(pa.array(rank[first])), len(self))

    @cached_property
    def pump_ids(self) -> pa.Array:
        """The pumps of its sessions."""
        return self.spans.pumps_of(self.of_member, self.member, len(self))

    @cached_property
    def times(self) -> tuple[Ints, Ints]:
        """First start and last stop, where all are known."""
        start, stop = (milliseconds(self.spans.of(name))[self.member] for name in ("start", "stop"))
        if not len(self):
            return start, stop
        heads = self.bounds[:-1]
        unknown = np.minimum.reduceat(stop, heads) == NONE
        return np.minimum.reduceat(start, heads), np.where(unknown, NONE, np.maximum.reduceat(stop, heads))

    def say(self, holder: int, reasons: Collection[str]) -> str:
        """The sentence of its lines for the reasons that hold them."""
        rules = self.spans.terms.rules_of(int(self.order[holder]))
        if holder < len(self.encounters):
            return _explanation(int(self.minutes[holder]), self.encounters.units_of(holder), rules, reasons)
        number = holder - len(self.encounters)
        kind = "continuous" if self.days.continuous[self.per_diem[number]] else "intermittent"
        code, why = self.therapies[self.therapy_of[number]] or ("", "no therapy names the drug")
        held = "; held: " + " ".join(SAYS[one][0] for one in reasons).rstrip(".") if reasons else ""
        return f"{self.minutes[holder]} min of recorded delivery on this date, {kind} therapy = {code or 'no code'} x1; {why}{held}."

    @cached_property
    def says(self) -> pa.Array:
        """The sentence of each, for the reasons that its codes give."""
        many = len(self.encounters)
        kind = np.concatenate((np.full(many, -1), self.therapy_of))
        alike = [np.concatenate((column, np.zeros(len(self) - many, dtype=np.int64))) for column in self.encounters.units.T]
        firsts, which = distinct(kind, self.spans.terms.rules[self.order], self.minutes, self.reasons, *alike)
        return pa.array([self.say(row, named(int(self.reasons[row]))) for row in firsts.tolist()], pa.string()).take(pa.array(which))

    # --- lines ------------------------------------------------------------------------------------------------------------------

    @cached_property
    def _proposed(self) -> tuple[Ints, list[str], Ints, Ints, Ints, list[bool]]:
        """The lines: holder, code, units, minutes, date, and whether lines are split by date; by holder, date and code."""
        encounters, terms = self.encounters, self.spans.terms
        codes = encounters.line_codes
        has_lines = encounters.eligible & (self.holds.codes & BIT["NOT_IN_FORCE"] == 0)
        evidence = terms.per_rules(lambda rules: rules.basis == "evidence", np.bool_)[encounters.order]
        split = terms.per_rules(lambda rules: rules.basis != "evidence" and rules.policies.midnight != "start_date", np.bool_)
        split = split[encounters.order] & has_lines
        whole = has_lines & ~evidence & ~split
        holder, column = np.nonzero((encounters.units > 0) & whole[:, None])
        made = [(int(h), codes[c], int(encounters.units[h, c])) for h, c in zip(holder.tolist(), column.tolist(), strict=True)]
        rows = [(h, code, units, int(encounters.minutes[h]), int(encounters.day[h]), False) for h, code, units in made]
        rows += [
            (h, "", 0, int(encounters.minutes[h]), int(encounters.day[h]), False) for h in np.flatnonzero(has_lines & evidence).tolist()
        ]
        for one in np.flatnonzero(split).tolist():
            for day, minutes, told in split_by_day(encounters, one):
                rows += [(one, code, units, minutes, number_of(day), True) for code, units in sorted(told.items())]
        for number, therapy in enumerate(self.therapy_of.tolist()):
            one = len(encounters) + number
            rows.append((one, (self.therapies[therapy] or ("",))[0], 1, int(self.minutes[one]), int(self.day[one]), False))
        rows.sort(key=lambda row: (row[0], row[4], row[1]))
        ints = np.array([(row[0], row[2], row[3], row[4]) for row in rows], dtype=np.int64).reshape(-1, 4)
        return ints[:, 0], [row[1] for row in rows], ints[:, 1], ints[:, 2], ints[:, 3], [row[5] for row in rows]

    @cached_property
    def line_holder(self) -> Ints:
        """Of each line its holder."""
        return self._proposed[0]

    @cached_property
    def line_ids(self) -> list[str]:
        """The ids of the lines."""
        holder, code, _, _, day, split = self._proposed
        names = [self.spans.terms.rules_of(order).name for order in self.order[holder].tolist()]
        told = zip(holder.tolist(), code, names, day.tolist(), split, strict=True)
        return [identify("line", self.ids[h], c, name, *([day_of(d)] if by_day else [])) for h, c, name, d, by_day in told]

    @cached_property
    def lines(self) -> pa.Table:
        """LINES."""
        holder, code, units, minutes, day, _ = self._proposed
        terms, row = self.spans.terms, pa.array(holder)
        order = self.order[holder]

        def of_rules(tell: Callable[[RuleSet], str]) -> pa.Array:
            return pa.array([tell(rules) for rules in terms.rule_sets], pa.string()).take(pa.array(terms.rules[order]))

        rank, codes = words(pa.chunked_array([pa.array(code, pa.string())]))
        firsts, which = distinct(terms.rules[order], rank)
        revenue = [terms.rules_of(order[n]).revenue_of(codes[rank[n]].as_py()) for n in firsts.tolist()]
        told, reasons = np.unique(self.reasons[holder], return_inverse=True)
        start, stop = self.times
        names = pa.array(self.spans.session_ids, pa.string()).take(pa.array(self.member))
        utc = pa.timestamp("ms", "UTC")
        strings = pa.list_(pa.string())
        columns = {
            "line_id": pa.array(self.line_ids, pa.string()),
            "revision": pa.array(np.zeros(len(holder), dtype=np.int32)),
            "encounter_id": pa.array(self.ids, pa.string()).take(row),
            "session_ids": listed(self.of_member, names, len(self)).take(row),
            "pump_ids": self.pump_ids.take(row),
            **{name: terms.column(name, order) for name in _OF_ORDER},
            "rule_version": of_rules(lambda rules: rules.version),
            "service_date": pa.array(day.astype(np.int32), pa.int32()).cast(pa.date32()),
            "start": timestamps(start[holder], utc),
            "stop": timestamps(stop[holder], utc),
            "code": pa.array(code, pa.string()),
            "units": pa.array(units),
            "minutes": pa.array(minutes),
            "revenue_codes": pa.array(revenue, strings).take(pa.array(which)),
            "state": pa.array(["ready", "hold"]).take(pa.array((self.reasons[holder] != 0).astype(np.int64))),
            "reasons": pa.array([named(bits) for bits in told.tolist()], strings).take(pa.array(reasons)),
            "explanation": self.says.take(row),
            "policies": of_rules(lambda rules: self.policies[rules.name]),
            "ledger": self.ledger.take(row),
            "event_ids": self.event_ids.take(row),
            "evidence_hash": pa.array(self.evidence, pa.string()).take(row),
            "release_id": pa.nulls(len(holder), pa.string()),
            "supersedes": pa.nulls(len(holder), pa.string()),
            "decisions": pa.array([[]], strings).take(pa.array(np.zeros(len(holder), dtype=np.int64))),
        }
        return pa.table(columns, schema=tables.LINES)

    # --- what is decided about --------------------------------------------------------------------------------------------------

    def cases(self, people: Iterable[str]) -> Iterable[tuple[str, list[Case]]]:
        """The holders of each of these people as decisions are about them."""
        rank = {name: n for n, name in enumerate(self.spans.terms.patients)}
        for patient in sorted(people):
            yield patient, [self._case(holder) for holder in np.flatnonzero(self.patient == rank.get(patient, -1)).tolist()]

    def _case(self, holder: int) -> Case:
        """A holder as decisions are about it."""
        rules = self.spans.terms.rules_of(int(self.order[holder]))
        mine = self.member[self.bounds[holder] : self.bounds[holder + 1]].tolist()
        low, high = np.searchsorted(self.line_holder, (holder, holder + 1)).tolist()
        lines = self.lines.slice(low, high - low).to_pylist()
        initial = rules.rule("initial")
        is_day = holder >= len(self.encounters)
        return Case(
            self.ids[holder],
            tuple(self.spans.session_ids[span] for span in mine),
            self.evidence[holder],
            set(named(int(self.codes[holder]))),
            frozenset(named(int(self.holding[holder]))),
            lines,
            self.about(np.array([holder])).to_pylist()[0],
            causes=self._causes(holder, rules),
            say=lambda reasons: self.say(holder, reasons),
            shaped=self.shaped.get(holder, set()),
            head=next((line["line_id"] for line in lines if initial is not None and line["code"] == initial.code), None),
            flags={} if is_day else self._flags(mine),
        )

    def _causes(self, holder: int, rules: RuleSet) -> Callable[[str], Iterable[str]]:
        if holder < len(self.encounters):
            return lambda code: self.holds.causes(code, holder)
        order, day = int(self.order[holder]), int(self.day[holder])

        def causes(code: str) -> list[str]:
            if code == "NOT_IN_FORCE":
                return [rules.version]
            return self._second_orders(holder) if code == "SECOND_ORDER_SAME_DAY" else self.holds.reached(code, order, day, day)

        return causes

    def _second_orders(self, holder: int) -> list[str]:
        """What the same date of a patient's other orders, of the rule set of this therapy day, rests on."""
        rules = self.spans.terms.rules[self.order]
        same = (self.patient == self.patient[holder]) & (self.day == self.day[holder]) & (rules == rules[holder])
        others = np.flatnonzero(same & (self.order != self.order[holder])).tolist()
        return [f"{self.ids[other]} {self.evidence[other]}" for other in others]

    def _flags(self, mine: list[int]) -> dict[str, dict[str, Any]]:
        """The columns of items of a code that a session has: of the first that has it."""
        rows = self._of_span(np.array(mine)).to_pylist()
        told = zip(reversed(rows), reversed(self.spans.flags[mine].tolist()), strict=True)
        return {code: row for row, bits in told for code in named(bits)}

    def _of_span(self, spans: Ints) -> pa.Table:
        names = {"pump_id": "pump_id", "session_id": "session_id", "time": "start"}
        return pa.table({name: self.spans.of(column).take(pa.array(spans)) for name, column in names.items()})

    def about(self, holder: Ints) -> pa.Table:
        """The columns of WORKLIST that the items of holders share."""
        at = np.searchsorted(self.line_holder, holder)
        has_line = np.append(self.line_holder, -1)[at] == holder
        first = self._of_span(self.member[self.bounds[holder]])
        is_day = holder >= len(self.encounters)
        columns = {
            **{name: self.spans.terms.column(name, self.order[holder]) for name in ("patient_id", "payer", "order_id")},
            "pump_id": pc.if_else(pa.array(is_day), pc.list_element(self.pump_ids.take(pa.array(holder)), 0), first["pump_id"]),
            "session_id": first["session_id"],
            "line_id": pa.array(self.line_ids, pa.string()).take(pa.array(np.where(has_line, at, 0), mask=~has_line)),
            "service_date": pa.array(self.day[holder].astype(np.int32), pa.int32()).cast(pa.date32()),
            "time": pc.if_else(pa.array(is_day), timestamps(self.times[0][holder], pa.timestamp("ms", "UTC")), first["time"]),
            "minutes_at_stake": pa.array(self.stake[holder]),
        }
        return pa.table(columns)

    def items(self, holders: Ints, work: Worklist) -> pa.Table:
        """The WORKLIST items of holders about whom nobody decided."""
        codes = list(SAYS)
        place, code = np.nonzero(self.codes[holders][:, None] >> np.arange(len(codes)) & 1)
        holder = holders[place]
        about = self.about(holder)
        columns: dict[str, Any] = dict(zip(about.column_names, about.columns, strict=True))
        span = np.where(holder < len(self.encounters), self._first_with(holder, code), -1)
        own = pa.array(span >= 0)
        if len(holder):
            flagged = self._of_span(np.maximum(span, 0))
            columns |= {name: pc.if_else(own, flagged[name], columns[name]) for name in flagged.column_names}
        suggestions = [SAYS[one][1] for one in codes]
        suggested = pa.array(suggestions, pa.string()).take(pa.array(code))
        stops = np.flatnonzero(code == codes.index("NO_STOP")).tolist()
        if stops:
            rows = suggested.to_pylist()
            for row in stops:
                mine = self.member[self.bounds[holder[row]] : self.bounds[holder[row] + 1]].tolist()
                rows[row] += work.stops(self.spans.session_ids[one] for one in mine)
            suggested = pa.array(rows, pa.string())
        names, ids = [codes[n] for n in code.tolist()], self.ids
        columns |= {
            "item_id": pa.array([identify("item", name, ids[h]) for name, h in zip(names, holder.tolist(), strict=True)], pa.string()),
            "code": pa.array(codes).take(pa.array(code)),
            "severity": pa.array(["inform", "hold"]).take(pa.array(self.holding[holder] >> code & 1)),
            "message": pa.array([SAYS[one][0] for one in codes], pa.string()).take(pa.array(code)),
            "suggestion": suggested,
            "state": pa.array(["open"]).take(pa.array(np.zeros(len(code), dtype=np.int64))),
        }
        return pa.table({name: columns[name] for name in tables.WORKLIST.names}, schema=tables.WORKLIST)

    def _first_with(self, holder: Ints, code: Ints) -> Ints:
        """The first session of a holder that has a code itself, -1: none has."""
        found = np.full(len(code), -1, dtype=np.int64)
        for number in np.unique(code).tolist():
            having = np.flatnonzero(self.spans.flags[self.member] >> number & 1)
            first = np.full(len(self), -1, dtype=np.int64)
            first[self.of_member[having[::-1]]] = self.member[having[::-1]]
            mine = code == number
            found[mine] = first[holder[mine]]
        return found


_OF_ORDER = ("patient_id", "order_id", "payer", "drug", "route", "place_of_service", "rule_set")


def _explanation(m: int, units_of: Mapping[str, int], rules: RuleSet, reasons: Collection[str]) -> str:
    proposed = " + ".join(f"{code} x{units}" for code, units in sorted(units_of.items())) or "no code"
    parts = [f"{m} min of recorded delivery = {proposed}"]
    further = rules.rule("further")
    if further is not None and (units := units_of.get(further.code)):
        beyond = m - 60 * units
        parts.append(f"{beyond} min lie beyond {'the first hour' if units == 1 else f'the first {units} hours'}, more than 30")
    setup = rules.rule("setup")
    if setup is not None and setup.code in units_of:
        parts.append("a further pump set-up with a new site was recorded")
    if reasons:
        parts.append("held: " + " ".join(SAYS[code][0] for code in reasons).rstrip("."))
    return "; ".join(parts) + "."
