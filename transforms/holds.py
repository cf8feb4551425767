"""What holds an encounter, and what is worth a look (docs/semantics.md §6): the two tables of codes, and their reach."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable
from datetime import date
from typing import Any

from transforms.encounters import Encounter, Span, local_date, milliseconds
from transforms.orders import Order, Orders
from transforms.sessions import TIME_CODES

_BOLUS_LIKE = ("pca", "clinician", "loading")
_DWELL_MS = 72 * 3_600_000
_NEVER = 2**62
_SESSION_INFORMS = ("DELIVERED_GT_DEMANDED", "GAPS_INVISIBLE")
_SESSION_HOLDS = (*TIME_CODES, "LOCKOUT_VIOLATION", "VOLUME_MISMATCH")


def hold(encounters: list[Encounter], spans: list[Span], doubts: list[dict[str, Any]], orders: Orders) -> None:
    """Adds the codes of every encounter of one patient."""
    reaches: dict[str, set[Reach]] = {}
    of_session = {id(span): encounter for encounter in encounters for span in encounter.spans}
    for encounter in encounters:
        order, policies, m = encounter.order, encounter.rules.policies, encounter.minutes
        flags = {flag for span in encounter.spans for flag in span.row["flags"]}
        encounter.codes |= flags.intersection((*_SESSION_HOLDS, *_SESSION_INFORMS))
        if order.order_id not in reaches:
            reaches[order.order_id] = reach_of(doubts, order, orders)
        for day in encounter.dates:
            encounter.codes |= reached(reaches[order.order_id], day)
        if not encounter.rules.in_force(encounter.date):
            encounter.codes.add("NOT_IN_FORCE")
        if encounter.eligible:
            if m > policies.long_infusion_hold_min:
                encounter.codes.add("OVER_8H")
            further = encounter.rules.rule("further")
            if further is not None and encounter.units.get(further.code, 0) > policies.unit_cap_96370:
                encounter.codes.add("OVER_UNIT_CAP")
            if any(s.row["route"] == "IV" and _touches(s, encounter) for s in spans):
                encounter.codes.add("IV_SAME_ENCOUNTER")
            if m and all(s.row["continuous_s"] == 0 and not _unknown_basal(s) for s in encounter.spans):
                encounter.codes.add("DEMAND_ONLY")
        _inform(encounter)
    for one, other in _at_once(spans):
        first, second = of_session.get(id(one)), of_session.get(id(other))
        if first is None or second is None:
            continue
        if one.order.order_id == other.order.order_id and one.row["pump_id"] != other.row["pump_id"]:
            first.codes.add("OVERLAPPING_PUMPS")
            second.codes.add("OVERLAPPING_PUMPS")
        elif one.order.order_id != other.order.order_id and first.eligible and second.eligible and first.rules.name == second.rules.name:
            first.codes.add("SECOND_ORDER_SAME_DAY")
            second.codes.add("SECOND_ORDER_SAME_DAY")
    with_lines = [e for e in encounters if e.eligible and e.minutes > 0]
    for encounter in with_lines:
        if any(
            e.date == encounter.date and e.order.order_id != encounter.order.order_id and e.rules.name == encounter.rules.name
            for e in with_lines
        ):
            encounter.codes.add("SECOND_ORDER_SAME_DAY")


def causes(
    code: str, encounter: Encounter, encounters: list[Encounter], spans: list[Span], doubts: list[dict[str, Any]], orders: Orders
) -> list[str]:
    """What, beside the evidence of an encounter's own sessions, makes a code hold it: another cause of the same code is another ground."""
    policies = encounter.rules.policies
    match code:
        case "OVER_8H":
            return [f"{encounter.minutes} over {policies.long_infusion_hold_min}"]
        case "OVER_UNIT_CAP":
            return [f"{sorted(encounter.units.items())} over {policies.unit_cap_96370}"]
        case "NOT_IN_FORCE":
            return [encounter.rules.version]
        case "IV_SAME_ENCOUNTER":
            return [_proof(span) for span in spans if span.row["route"] == "IV" and _touches(span, encounter)]
        case "OVERLAPPING_PUMPS" | "SECOND_ORDER_SAME_DAY":
            own = {id(span) for span in encounter.spans}
            at_once = [pair for pair in _at_once(spans) if own.intersection(map(id, pair))]
            others = [span for pair in at_once for span in pair if id(span) not in own]
            if code == "SECOND_ORDER_SAME_DAY":
                others += [
                    s for e in encounters if e.date == encounter.date and e.order.order_id != encounter.order.order_id for s in e.spans
                ]
            return [_proof(span) for span in others]
        case _:
            return reach_causes(code, doubts, encounter.order, orders, encounter.dates)


def _proof(span: Span) -> str:
    return f"{span.row['session_id']} {span.row['evidence_hash']}"


def reach_causes(code: str, doubts: Iterable[dict[str, Any]], order: Order, orders: Orders, dates: Iterable[date]) -> list[str]:
    """The doubts of a code that reach any of these dates of an order, and how far they do."""
    days = list(dates)
    found = []
    for doubt in doubts:
        if doubt["code"] == code:
            for reach in reach_of([doubt], order, orders):
                if any(reached([reach], day) for day in days):
                    found.append(f"{doubt['doubt_id']} {reach[1]} {reach[2]}")
    return found


Reach = tuple[str, date | None, date | None]
"""A code, and the dates from and to which what it says may have been; None: without bound."""


def reach_of(doubts: Iterable[dict[str, Any]], order: Order, orders: Orders) -> set[Reach]:
    """How far what is not proved reaches into an order: of its own sessions, and of cuts in the logs of all pumps that it names."""
    pumps = {one.pump_id for one in orders.of_id(order.order_id)}
    found = set()
    for doubt in doubts:
        if doubt["session_id"] is None:
            mine = doubt["pump_id"] in pumps
        else:
            mine = doubt["order_id"] == order.order_id and doubt["patient_id"] == order.patient_id
        if mine:
            low, high = milliseconds(doubt["from_utc"]), milliseconds(doubt["to_utc"])
            found.add((doubt["code"], None if low is None else local_date(low, order), None if high is None else local_date(high, order)))
    return found


def reached(reaches: Iterable[Reach], day: date) -> set[str]:
    """The codes that may have been true on this date."""
    return {code for code, low, high in reaches if (low is None or low <= day) and (high is None or day <= high)}


def _unknown_basal(span: Span) -> bool:
    """Whether something other than a bolus may have been delivered in the seconds that nothing proves."""
    return any(i["class"] == "unknown" and i["source"] not in _BOLUS_LIKE for i in span.intervals)


def _touches(span: Span, encounter: Encounter) -> bool:
    return local_date(span.start, encounter.order) <= encounter.date <= local_date(span.stop, encounter.order)


def _at_once(spans: list[Span]) -> Iterable[tuple[Span, Span]]:
    """Pairs of sessions that infuse at the same time."""
    pieces = sorted(((low, high, n) for n, span in enumerate(spans) for low, high in span.infusing if high > low))
    running: list[tuple[int, int]] = []
    seen = set()
    for low, high, number in pieces:
        running = [(stop, other) for stop, other in running if stop > low]
        for _, other in running:
            if other != number and (pair := (min(number, other), max(number, other))) not in seen:
                seen.add(pair)
                yield spans[pair[0]], spans[pair[1]]
        running.append((high, number))


def _inform(encounter: Encounter) -> None:
    """Codes that change nothing and are worth a look."""
    rules, order, m, codes = encounter.rules, encounter.order, encounter.minutes, encounter.codes
    spans = encounter.spans
    if not encounter.eligible:
        codes.add("EXCLUDED_DRUG" if order.route in rules.routes else "ROUTE_NOT_SC")
        return
    if 1 <= m <= 15:
        codes.add("LE_15_MIN")
    near = round(rules.policies.near_threshold_min)
    if any(rules.units(max(0, m + step)) != rules.units(m) for step in (-near, near)):
        codes.add("NEAR_THRESHOLD")
    if any(local_date(s.start, order) != local_date(s.stop, order) for s in spans):
        codes.add("CROSS_MIDNIGHT")
    if len(spans) > 1:
        codes.add("GAP_OVER_LIMIT")
    if any(s.row["kvo_s"] for s in spans):
        codes.add("KVO_EXCLUDED")
    if any(s.row["alarm_s"] for s in spans):
        codes.add("ALARM_PAUSE_EXCLUDED")
    if order.place_of_service == "12":
        codes.add("HOME_SETTING_USE_PER_DIEM")
    limit = rules.limit_ml_h(order.drug)
    if limit is not None and any((s.row["max_rate_ml_h"] or 0) > limit for s in spans):
        codes.add("RATE_ABOVE_THERAPY_LIMIT")


def dwells(encounters: list[Encounter]) -> list[Encounter]:
    """Encounters with more than 72 h on one site: from a new site to the end of infusion before the next."""
    by_order: dict[str, list[Encounter]] = defaultdict(list)
    for encounter in encounters:
        by_order[encounter.order.order_id].append(encounter)
    found = []
    for mine in by_order.values():
        sites = sorted(s["at"] for e in mine for s in e.setups if s["new_site"] == "yes")
        for encounter in mine:
            pieces = [piece for span in encounter.spans for piece in span.infusing]
            if not pieces:
                continue
            first = max(0, bisect_right(sites, min(low for low, _ in pieces)) - 1)
            last = bisect_left(sites, max(high for _, high in pieces))
            for number in range(first, last):
                following = sites[number + 1] if number + 1 < len(sites) else _NEVER
                ends = [min(high, following) for low, high in pieces if low < following]
                if ends and max(ends) - sites[number] > _DWELL_MS:
                    found.append(encounter)
                    break
    return found
