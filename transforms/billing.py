"""Facts to candidate lines (docs/semantics.md §6). Everything is proposed; a biller decides.

The rule set is data (`transforms.ruleset`); this module knows no code numbers.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from transforms import tables
from transforms.codes import SAYS
from transforms.days import Day, days_of, split_by_day
from transforms.decisions import Case, Decision, Review, answered
from transforms.encounters import Encounter, Facts, Span, count, encounters_of, spans_of
from transforms.holds import Reach, causes, dwells, hold, reach_causes, reach_of, reached
from transforms.orders import Order, Orders
from transforms.ruleset import RuleSet
from transforms.tables import identify, rows_to_table
from transforms.worklist import WORKLIST_ORDER, Worklist

__all__ = ["DAY_ORDER", "LINE_ORDER", "WORKLIST_ORDER", "Bill", "Facts", "bill", "not_synced", "pump_items"]


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
) -> Bill:
    """The candidate lines, worklist and therapy days of some patients: `facts` are all those of their orders' pumps.

    `decided` are the decisions in force about these patients and pumps, `released` the rows of LINES that releases hold of them.
    """
    return settled(facts, orders, rule_sets, fact_policies, decided, released)[0]


def settled(
    facts: Facts,
    orders: Orders,
    rule_sets: Mapping[str, RuleSet],
    fact_policies: Mapping[str, Any],
    decided: Iterable[Decision] = (),
    released: Iterable[dict[str, Any]] = (),
    patients: Iterable[str] | None = None,
) -> tuple[Bill, list[Case]]:
    """As `bill`, with what decisions can be about; of these patients alone, if any are named: what else was released is looked at only."""
    policies = {name: rules.policies_json(fact_policies) for name, rules in rule_sets.items()}
    review = Review(decided, released, _applied(facts))
    work = Worklist(facts.doubts)
    spans = spans_of(facts, orders)
    every: list[Case] = []
    setups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for setup in facts.setups.to_pylist():
        if setup["session_id"] is not None:
            setups[setup["session_id"]].append(setup)
    of_pump: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for doubt in facts.doubts.to_pylist():
        of_pump[doubt["pump_id"]].append(doubt)
    lines: list[dict[str, Any]] = []
    days: list[dict[str, Any]] = []
    reaches: dict[str, set[Reach]] = {}
    by_patient: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        by_patient[span.order.patient_id].append(span)
    for patient in sorted({*by_patient, *review.patients()} if patients is None else set(patients)):
        mine = by_patient.get(patient, [])
        pumps = {one.pump_id for order in orders.of_patient(patient) for one in orders.of_id(order.order_id)}
        doubts = [doubt for pump in sorted(pumps) for doubt in of_pump[pump]]
        by_time = [span for span in mine if rule_sets[span.order.rule_set].basis != "day"]
        encounters = encounters_of(by_time, rule_sets)
        for encounter in encounters:
            count(encounter, setups)
        hold(encounters, mine, doubts, orders)
        for encounter in dwells(encounters):
            encounter.codes.add("SITE_DWELL_LONG")
        cases = [_case(encounter, encounters, mine, doubts, orders, policies) for encounter in encounters]
        for day in days_of(mine):
            days.append(day.row)
            rules = rule_sets[day.order.rule_set]
            if rules.basis == "day":
                if day.order.order_id not in reaches:
                    reaches[day.order.order_id] = reach_of(doubts, day.order, orders)
                cases.append(_day_case(day, rules, reaches[day.order.order_id], doubts, orders, policies))
        lines += review.settle(patient, cases, {order.pump_id for order in orders.of_patient(patient)})
        for case in cases:
            work.case(case)
        work.decisions(cases, review.shaping(patient), review.lapsed(patient))
        every += cases
    billed = Bill(
        rows_to_table(tables.LINES, lines, sort=LINE_ORDER),
        work.table(),
        rows_to_table(tables.DAYS, days, sort=DAY_ORDER),
    )
    return billed, every


def _applied(facts: Facts) -> set[str]:
    """The decisions that shaped these facts."""
    return {one for rows in (facts.sessions, facts.setups) for told in rows["decisions"].to_pylist() for one in told}


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


def _case(
    encounter: Encounter,
    encounters: list[Encounter],
    spans: list[Span],
    doubts: list[dict[str, Any]],
    orders: Orders,
    policies: Mapping[str, str],
) -> Case:
    """An encounter as decisions are about it."""
    found = _lines(encounter, policies)
    holder = encounter.spans[0].row
    initial = encounter.rules.rule("initial")
    head = next((line["line_id"] for line in found if initial is not None and line["code"] == initial.code), None)
    return Case(
        encounter.encounter_id,
        tuple(span.row["session_id"] for span in encounter.spans),
        _evidence(encounter.spans),
        encounter.codes,
        encounter.rules.holds,
        found,
        {
            "patient_id": encounter.order.patient_id,
            "pump_id": holder["pump_id"],
            "payer": encounter.order.payer,
            "order_id": encounter.order.order_id,
            "session_id": holder["session_id"],
            "line_id": found[0]["line_id"] if found else None,
            "service_date": encounter.date,
            "time": holder["start"],
            "minutes_at_stake": encounter.stake,
        },
        causes=lambda code: causes(code, encounter, encounters, spans, doubts, orders),
        say=lambda reasons: _explanation(encounter, reasons),
        shaped=_shaped(encounter.spans, encounter.setups),
        head=head,
        flags={
            code: {"pump_id": span.row["pump_id"], "session_id": span.row["session_id"], "time": span.row["start"]}
            for span in reversed(encounter.spans)
            for code in span.row["flags"]
        },
    )


def _day_case(
    day: Day, rules: RuleSet, reaches: set[Reach], doubts: list[dict[str, Any]], orders: Orders, policies: Mapping[str, str]
) -> Case:
    """A therapy day as decisions are about it: codes that do not hold are not looked for."""
    line, codes, say = _day_line(day, rules, reaches, policies)
    return Case(
        line["encounter_id"],
        tuple(line["session_ids"]),
        line["evidence_hash"],
        codes & rules.holds,
        rules.holds,
        [line],
        {
            **{name: line[name] for name in ("patient_id", "payer", "order_id", "line_id", "service_date")},
            "pump_id": line["pump_ids"][0],
            "session_id": line["session_ids"][0],
            "time": line["start"],
            "minutes_at_stake": (day.row["infusing_s"] + day.row["unknown_s"]) // 60,
        },
        causes=lambda code: [rules.version] if code == "NOT_IN_FORCE" else reach_causes(code, doubts, day.order, orders, [day.row["date"]]),
        say=say,
        shaped=_shaped(day.spans, ()),
    )


def _shaped(spans: Iterable[Span], setups: Iterable[dict[str, Any]]) -> set[str]:
    """The decisions that shaped what a line rests on."""
    return {one for row in (*(span.row for span in spans), *setups) for one in row["decisions"]}


def _evidence(spans: Iterable[Span]) -> str:
    return hashlib.sha256("\n".join(sorted(span.row["evidence_hash"] for span in spans)).encode()).hexdigest()


def _lines(encounter: Encounter, policies: Mapping[str, str]) -> list[dict[str, Any]]:
    """The candidate lines of one encounter; of a rule set that only shows evidence, one without a code."""
    rules = encounter.rules
    if "NOT_IN_FORCE" in encounter.codes or not encounter.eligible:
        return []
    split = rules.basis != "evidence" and rules.policies.midnight != "start_date"
    if split:
        told = list(split_by_day(encounter))
    else:
        told = [(encounter.date, encounter.minutes, {"": 0} if rules.basis == "evidence" else encounter.units)]
    same = {
        **_common(encounter.spans, encounter.order, rules, policies),
        "encounter_id": encounter.encounter_id,
        "ledger": [_entry(span, interval) for span in encounter.spans for interval in span.intervals],
        "event_ids": _events(encounter.spans, encounter.setups),
    }
    return [
        {
            **same,
            "line_id": identify("line", encounter.encounter_id, code, rules.name, *([day] if split else [])),
            "service_date": day,
            "code": code,
            "units": n,
            "revenue_codes": rules.revenue_of(code),
            "minutes": minutes,
        }
        for day, minutes, units in told
        for code, n in sorted(units.items())
    ]


def _day_line(
    day: Day, rules: RuleSet, reaches: set[Reach], policies: Mapping[str, str]
) -> tuple[dict[str, Any], set[str], Callable[[list[str]], str]]:
    """The per-diem line of one order and local date, the codes found of it, and its sentence for the reasons that hold it."""
    order, date_ = day.order, day.row["date"]
    codes = reached(reaches, date_) - {"SESSION_OPEN"}
    codes |= {"SESSION_OPEN" for span in day.spans if day.is_left_open(span)}
    told = rules.day_code(order.drug, continuous=day.row["continuous"])
    if told is None:
        codes.add("NO_CODE")
    if not rules.in_force(date_):
        codes.add("NOT_IN_FORCE")
    code, why = told or ("", "no therapy names the drug")
    encounter_id = identify("day", order.patient_id, order.order_id, date_)
    minutes = day.row["infusing_s"] // 60
    kind = "continuous" if day.row["continuous"] else "intermittent"

    def say(reasons: list[str]) -> str:
        held = "; held: " + " ".join(SAYS[one][0] for one in reasons).rstrip(".") if reasons else ""
        return f"{minutes} min of recorded delivery on this date, {kind} therapy = {code or 'no code'} x1; {why}{held}."

    line = {
        **_common(day.spans, order, rules, policies),
        "line_id": identify("line", encounter_id, code, rules.name),
        "encounter_id": encounter_id,
        "service_date": date_,
        "code": code,
        "units": 1,
        "minutes": minutes,
        "ledger": day.ledger(),
        "event_ids": _events(day.spans, []),
    }
    return line, codes, say


def _common(spans: Sequence[Span], order: Order, rules: RuleSet, policies: Mapping[str, str]) -> dict[str, Any]:
    """What all lines of some sessions of one order say alike."""
    starts = [span.row["start"] for span in spans]
    stops = [span.row["stop"] for span in spans]
    return {
        "revision": 0,
        "session_ids": [span.row["session_id"] for span in spans],
        "pump_ids": sorted({span.row["pump_id"] for span in spans}),
        "patient_id": order.patient_id,
        "order_id": order.order_id,
        "payer": order.payer,
        "drug": order.drug,
        "route": order.route,
        "place_of_service": order.place_of_service,
        "rule_set": rules.name,
        "rule_version": rules.version,
        "start": min(starts) if None not in starts else None,
        "stop": max(stops) if None not in stops else None,
        "revenue_codes": list(rules.revenue_codes),
        "policies": policies[rules.name],
        "evidence_hash": _evidence(spans),
        "release_id": None,
        "supersedes": None,
    }


def _events(spans: Iterable[Span], setups: Iterable[dict[str, Any]]) -> list[str]:
    """The ids of the starts, stops and set-ups behind a line."""
    events = {interval[end] for span in spans for interval in span.intervals for end in ("first_event", "last_event")}
    events |= {event for setup in setups for event in setup["evidence"]}
    return sorted(event for event in events if event is not None)


def _entry(span: Span, interval: dict[str, Any]) -> dict[str, Any]:
    return {
        "session_id": span.row["session_id"],
        "from": interval["from_utc"],
        "to": interval["to_utc"],
        "seconds": (interval["to_ms"] - interval["from_ms"]) / 1000,
        "counted": interval["class"] == "infusing",
        "why": interval["class"],
    }


def _explanation(encounter: Encounter, reasons: list[str]) -> str:
    m, rules = encounter.minutes, encounter.rules
    proposed = " + ".join(f"{code} x{units}" for code, units in sorted(encounter.units.items())) or "no code"
    parts = [f"{m} min of recorded delivery = {proposed}"]
    further = rules.rule("further")
    if further is not None and (units := encounter.units.get(further.code)):
        beyond = m - 60 * units
        parts.append(f"{beyond} min lie beyond {'the first hour' if units == 1 else f'the first {units} hours'}, more than 30")
    setup = rules.rule("setup")
    if setup is not None and setup.code in encounter.units:
        parts.append("a further pump set-up with a new site was recorded")
    if reasons:
        parts.append("held: " + " ".join(SAYS[code][0] for code in reasons).rstrip("."))
    return "; ".join(parts) + "."
