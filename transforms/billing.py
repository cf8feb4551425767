"""Facts to candidate lines (docs/semantics.md §6). Everything is proposed; a biller decides.

The rule set is data (`transforms.ruleset`); this module knows no code numbers.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import pyarrow as pa

from transforms import tables
from transforms.codes import SAYS
from transforms.days import Day, days_of, split_by_day
from transforms.encounters import Encounter, Facts, Span, count, encounters_of, spans_of
from transforms.holds import Reach, dwells, hold, reach_of, reached
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


def bill(facts: Facts, orders: Orders, rule_sets: Mapping[str, RuleSet], fact_policies: Mapping[str, Any]) -> Bill:
    """The candidate lines, worklist and therapy days of some patients: `facts` are all those of their orders' pumps."""
    work = Worklist()
    spans = spans_of(facts, orders)
    setups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for setup in facts.setups.to_pylist():
        if setup["session_id"] is not None:
            setups[setup["session_id"]].append(setup)
    doubts = facts.doubts.to_pylist()
    lines: list[dict[str, Any]] = []
    days: list[dict[str, Any]] = []
    reaches: dict[str, set[Reach]] = {}
    by_patient: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        by_patient[span.order.patient_id].append(span)
    for _, mine in sorted(by_patient.items()):
        by_time = [span for span in mine if rule_sets[span.order.rule_set].basis != "day"]
        encounters = encounters_of(by_time, rule_sets)
        for encounter in encounters:
            count(encounter, setups)
        hold(encounters, mine, doubts, orders)
        for encounter in encounters:
            found = _lines(encounter, fact_policies)
            lines += found
            work.encounter(encounter, found)
        for encounter in dwells(encounters):
            work.add("SITE_DWELL_LONG", encounter)
        for day in days_of(mine):
            days.append(day.row)
            rules = rule_sets[day.order.rule_set]
            if rules.basis == "day":
                if day.order.order_id not in reaches:
                    reaches[day.order.order_id] = reach_of(doubts, day.order, orders)
                line = _day_line(day, rules, reaches[day.order.order_id], fact_policies)
                lines.append(line)
                work.day(day, line, rules)
    return Bill(
        rows_to_table(tables.LINES, lines, sort=LINE_ORDER),
        work.table(),
        rows_to_table(tables.DAYS, days, sort=DAY_ORDER),
    )


LINE_ORDER = ("patient_id", "service_date", "order_id", "line_id")
DAY_ORDER = ("patient_id", "order_id", "date")


def pump_items(sessions: pa.Table, doubts: pa.Table, orders: Orders) -> pa.Table:
    """The WORKLIST items of pumps rather than patients: deliveries without an order, and cuts in a log."""
    work = Worklist()
    work.unassigned(sessions.to_pylist())
    work.cuts(doubts.to_pylist(), orders)
    return work.table()


def not_synced(orders: Iterable[Order], seen_ms: Mapping[str, int], horizon_ms: int | None) -> pa.Table:
    """WORKLIST items for orders in force on dates that no capture of their pump reaches.

    `seen_ms` is, of each pump, the last UTC instant that its captures reach; `horizon_ms` the last that any pump's do: nothing is
    expected of a pump beyond it.
    """
    work = Worklist()
    if horizon_ms is not None:
        work.not_synced(orders, seen_ms, horizon_ms)
    return work.table()


def _lines(encounter: Encounter, fact_policies: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The candidate lines of one encounter; of a rule set that only shows evidence, one without a code."""
    rules = encounter.rules
    if "NOT_IN_FORCE" in encounter.codes or not encounter.eligible:
        return []
    if rules.basis == "evidence":
        return [_line(encounter, rules, encounter.date, "", 0, encounter.minutes, fact_policies)]
    if rules.policies.midnight == "start_date":
        units = sorted(encounter.units.items())
        return [_line(encounter, rules, encounter.date, code, n, encounter.minutes, fact_policies) for code, n in units]
    return [
        _line(encounter, rules, day, code, n, minutes, fact_policies, str(day))
        for day, minutes, units in split_by_day(encounter)
        for code, n in sorted(units.items())
    ]


def _line(
    encounter: Encounter,
    rules: RuleSet,
    day: date,
    code: str,
    units: int,
    minutes: int,
    fact_policies: Mapping[str, Any],
    *key: str,
) -> dict[str, Any]:
    reasons = [one for one in SAYS if one in encounter.codes and one in rules.holds]
    return {
        **_common(encounter.spans, encounter.order, rules, fact_policies),
        "line_id": identify("line", encounter.encounter_id, code, rules.name, *key),
        "encounter_id": encounter.encounter_id,
        "service_date": day,
        "code": code,
        "units": units,
        "minutes": minutes,
        "state": "hold" if reasons else "ready",
        "reasons": reasons,
        "explanation": _explanation(encounter, reasons),
        "ledger": [_entry(span, interval) for span in encounter.spans for interval in span.intervals],
        "event_ids": _events(encounter.spans, encounter.setups),
    }


def _day_line(day: Day, rules: RuleSet, reaches: set[Reach], fact_policies: Mapping[str, Any]) -> dict[str, Any]:
    """The per-diem line of one order and local date."""
    order, date_ = day.order, day.row["date"]
    codes = reached(reaches, date_) - {"SESSION_OPEN"}
    codes |= {"SESSION_OPEN" for span in day.spans if day.is_left_open(span)}
    told = rules.day_code(order.drug, continuous=day.row["continuous"])
    if told is None:
        codes.add("NO_CODE")
    if not rules.in_force(date_):
        codes.add("NOT_IN_FORCE")
    reasons = [code for code in SAYS if code in codes and code in rules.holds]
    code, why = told or ("", "no therapy names the drug")
    encounter_id = identify("day", order.patient_id, order.order_id, date_)
    minutes = day.row["infusing_s"] // 60
    kind = "continuous" if day.row["continuous"] else "intermittent"
    held = "; held: " + " ".join(SAYS[one][0] for one in reasons).rstrip(".") if reasons else ""
    return {
        **_common(day.spans, order, rules, fact_policies),
        "line_id": identify("line", encounter_id, code, rules.name),
        "encounter_id": encounter_id,
        "service_date": date_,
        "code": code,
        "units": 1,
        "minutes": minutes,
        "state": "hold" if reasons else "ready",
        "reasons": reasons,
        "explanation": f"{minutes} min of recorded delivery on this date, {kind} therapy = {code or 'no code'} x1; {why}{held}.",
        "ledger": day.ledger(),
        "event_ids": _events(day.spans, []),
    }


def _common(spans: Sequence[Span], order: Order, rules: RuleSet, fact_policies: Mapping[str, Any]) -> dict[str, Any]:
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
        "policies": rules.policies_json(fact_policies),
        "evidence_hash": hashlib.sha256("\n".join(sorted(span.row["evidence_hash"] for span in spans)).encode()).hexdigest(),
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
