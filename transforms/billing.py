"""Facts to candidate lines (docs/semantics.md §6): encounters, units, what holds them, and the worklist.

Everything is proposed; a biller decides. The rule set is data (`transforms.ruleset`); this module knows no code numbers.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa

from transforms import tables
from transforms.codes import SAYS
from transforms.orders import Order, Orders, local, utc_ms
from transforms.ruleset import RuleSet
from transforms.sessions import TIME_CODES
from transforms.tables import identify, rows_to_table

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DWELL_MS = 72 * 3_600_000
_SITE = {"no": 0, "possible": 1, "yes": 2}
_SESSION_INFORMS = ("DELIVERED_GT_DEMANDED", "GAPS_INVISIBLE")
_SESSION_HOLDS = (*TIME_CODES, "LOCKOUT_VIOLATION", "VOLUME_MISMATCH")


@dataclass(frozen=True, slots=True)
class Facts:
    """What billing reads: SESSIONS, INTERVALS, SETUPS and DOUBTS."""

    sessions: pa.Table
    intervals: pa.Table
    setups: pa.Table
    doubts: pa.Table


@dataclass(frozen=True, slots=True)
class Bill:
    """LINES, WORKLIST and DAYS."""

    lines: pa.Table
    worklist: pa.Table
    days: pa.Table


@dataclass(slots=True)
class _Span:
    """A session as billing sees it: times in UTC ms, or in printed time read in the order's zone where UTC is unknown."""

    row: dict[str, Any]
    order: Order
    start: int
    stop: int
    infusing: list[tuple[int, int]]
    unknown: list[tuple[int, int]]
    intervals: list[dict[str, Any]]
    infusing_ms: int
    unknown_ms: int


@dataclass(slots=True)
class _Encounter:
    order: Order
    rules: RuleSet
    date: date
    encounter_id: str
    spans: list[_Span]
    minutes: int = 0
    codes: set[str] = field(default_factory=set)
    setups: list[dict[str, Any]] = field(default_factory=list)
    units: dict[str, int] = field(default_factory=dict)

    @property
    def eligible(self) -> bool:
        """Whether this rule set has lines for it at all."""
        return self.order.route in self.rules.routes and not self.rules.excludes(self.order.drug)

    @property
    def stake(self) -> int:
        """Whole minutes, infused or unknown."""
        return self.minutes + sum(span.unknown_ms for span in self.spans) // 60_000


def bill(facts: Facts, orders: Orders, rule_sets: Mapping[str, RuleSet], fact_policies: Mapping[str, Any]) -> Bill:
    """The candidate lines, worklist and therapy days of some patients: `facts` are all those of their orders' pumps."""
    work = _Worklist()
    spans = _spans(facts, orders)
    setups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for setup in facts.setups.to_pylist():
        if setup["session_id"] is not None:
            setups[setup["session_id"]].append(setup)
    doubts = facts.doubts.to_pylist()
    lines: list[dict[str, Any]] = []
    days: list[dict[str, Any]] = []
    by_patient: dict[str, list[_Span]] = defaultdict(list)
    for span in spans:
        by_patient[span.order.patient_id].append(span)
    for _, mine in sorted(by_patient.items()):
        encounters = _encounters(mine, rule_sets)
        for encounter in encounters:
            _count(encounter, setups)
        _hold(encounters, mine, doubts, orders)
        for encounter in encounters:
            found = _lines(encounter, fact_policies)
            lines += found
            work.encounter(encounter, found)
        _dwell(encounters, work)
        days += _days(mine)
    return Bill(
        rows_to_table(tables.LINES, lines, sort=LINE_ORDER),
        work.table(),
        rows_to_table(tables.DAYS, days, sort=DAY_ORDER),
    )


LINE_ORDER = ("patient_id", "service_date", "order_id", "line_id")
DAY_ORDER = ("patient_id", "order_id", "date")
WORKLIST_ORDER = ("item_id",)


def pump_items(sessions: pa.Table, doubts: pa.Table, orders: Orders) -> pa.Table:
    """The WORKLIST items of pumps rather than patients: deliveries without an order, and cuts in a log."""
    work = _Worklist()
    work.unassigned(sessions.to_pylist())
    work.cuts(doubts.to_pylist(), orders)
    return work.table()


def not_synced(orders: Iterable[Order], seen_ms: Mapping[str, int], horizon_ms: int | None) -> pa.Table:
    """WORKLIST items for orders in force on dates that no capture of their pump reaches.

    `seen_ms` is, of each pump, the last UTC instant that its captures reach; `horizon_ms` the last that any pump's do: nothing is
    expected of a pump beyond it.
    """
    work = _Worklist()
    if horizon_ms is not None:
        work.not_synced(orders, seen_ms, horizon_ms)
    return work.table()


# --- encounters -----------------------------------------------------------------------------------------------------------


def _ms(instant: datetime | None) -> int | None:
    return None if instant is None else round((instant - _EPOCH) / timedelta(milliseconds=1))


def _spans(facts: Facts, orders: Orders) -> list[_Span]:
    """Sessions that have an order, with their intervals on one time line."""
    of_session: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for interval in facts.intervals.to_pylist():
        of_session[interval["session_id"]].append(interval)
    spans = []
    for row in facts.sessions.to_pylist():
        order = next((o for o in orders.of_id(row["order_id"]) if o.pump_id == row["pump_id"]), None) if row["order_id"] else None
        if order is None:
            continue
        intervals = of_session[row["session_id"]]
        start = _ms(row["start"])
        timed = start is not None and all(i["from_utc"] is not None and i["to_utc"] is not None for i in intervals)
        if start is None:
            start = utc_ms(row["printed_start"], order.zone) if row["printed_start"] is not None else order.start_ms
        begin = intervals[0]["from_ms"] if intervals else 0
        placed: dict[str, list[tuple[int, int]]] = {"infusing": [], "unknown": []}
        lasting = {"infusing": 0, "unknown": 0}
        stop = start
        for interval in intervals:
            low, high = interval["from_ms"], interval["to_ms"]
            at = (_ms(interval["from_utc"]), _ms(interval["to_utc"])) if timed else (start + low - begin, start + high - begin)
            assert at[0] is not None
            assert at[1] is not None
            stop = max(stop, at[1])
            if interval["class"] in placed:
                placed[interval["class"]].append((at[0], at[1]))
                lasting[interval["class"]] += high - low
        spans.append(
            _Span(row, order, start, stop, placed["infusing"], placed["unknown"], intervals, lasting["infusing"], lasting["unknown"])
        )
    return sorted(spans, key=lambda s: (s.order.patient_id, s.start, s.row["session_id"]))


def _date(instant_ms: int, order: Order) -> date:
    return local(instant_ms, order.zone).date()


def _encounters(spans: list[_Span], rule_sets: Mapping[str, RuleSet]) -> list[_Encounter]:
    """Sessions of one patient, grouped into encounters by the policy of their order's rule set."""
    found: dict[tuple[str, ...], _Encounter] = {}
    for span in spans:
        order, rules = span.order, rule_sets[span.order.rule_set]
        if span.row["start"] is None and span.row["printed_start"] is not None:
            day = span.row["printed_start"].date()
        else:
            day = _date(span.start, order)
        key = [order.order_id, day.isoformat()]
        if rules.policies.encounter == "session":
            key.append(span.row["session_id"])
        encounter = found.get(tuple(key))
        if encounter is None:
            encounter_id = identify("encounter", order.patient_id, *key)
            encounter = found[tuple(key)] = _Encounter(order, rules, day, encounter_id, [])
        encounter.spans.append(span)
    return [found[key] for key in sorted(found)]


def _count(encounter: _Encounter, setups: Mapping[str, list[dict[str, Any]]]) -> None:
    """Minutes, set-ups and units of one encounter: seconds first, then whole minutes, once."""
    logs: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for span in encounter.spans:
        logs[span.row["pump_id"], span.row["stretch"]] += span.infusing
    twice = sum(_length(log) for log in logs.values()) - _length(iv for log in logs.values() for iv in log)
    encounter.minutes = (sum(span.infusing_ms for span in encounter.spans) - twice) // 60_000
    encounter.units = encounter.rules.units(encounter.minutes)
    encounter.setups = _setups(encounter, setups)
    initial, setup = encounter.rules.rule("initial"), encounter.rules.rule("setup")
    counting = [s for s in encounter.setups[1:] if s["pump_setup"] and s["new_site"] == "yes"]
    if counting and setup is not None:
        if initial is not None and initial.code in encounter.units:
            encounter.units[setup.code] = setup.units
        elif encounter.eligible:
            encounter.codes.add("ADDON_WITHOUT_INITIAL")
    for further in encounter.setups[1:]:
        if further["new_site"] == "yes" and not further["pump_setup"]:
            encounter.codes.add("SITE_CHANGE_NO_PUMP_SETUP")
        if further["new_site"] == "possible" and further["pump_setup"]:
            encounter.codes.add("POSSIBLE_SITE_CHANGE")
    if len(counting) > 1:
        encounter.codes.add("SECOND_96371")


def _setups(encounter: _Encounter, setups: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The encounter's set-ups by time; those of one pump with too little infusion between them are one, corrected."""
    separation_ms = encounter.rules.policies.setup_separation_min * 60_000
    by_pump: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for span in encounter.spans:
        for setup in setups.get(span.row["session_id"], ()):
            at = _ms(setup["time"])
            if at is None and setup["printed_time"] is not None:
                at = utc_ms(setup["printed_time"], encounter.order.zone)
            by_pump[setup["pump_id"]].append({**setup, "at": at if at is not None else span.start})
    merged: list[dict[str, Any]] = []
    for pump, mine in sorted(by_pump.items()):
        mine.sort(key=lambda s: (s["at"], s["setup_id"]))
        kept: list[dict[str, Any]] = []
        for setup in mine:
            if kept and _infusion_between(encounter, pump, kept[-1], setup) < separation_ms:
                last = kept[-1]
                site = max(last["new_site"], setup["new_site"], key=lambda s: _SITE[s])
                kept[-1] = {
                    **setup,
                    "pump_setup": last["pump_setup"] or setup["pump_setup"],
                    "new_site": site,
                    "evidence": last["evidence"] + setup["evidence"],
                }
            else:
                kept.append(setup)
        merged += kept
    return sorted(merged, key=lambda s: (s["at"], s["setup_id"]))


def _infusion_between(encounter: _Encounter, pump: str, one: dict[str, Any], other: dict[str, Any]) -> int:
    """Milliseconds that a pump infused between two set-ups: on elapsed time where one stretch holds both."""
    total = 0
    for span in encounter.spans:
        if span.row["pump_id"] != pump:
            continue
        if one["stretch"] == other["stretch"] == span.row["stretch"]:
            low, high = one["elapsed_ms"], other["elapsed_ms"]
            pieces = [(i["from_ms"], i["to_ms"]) for i in span.intervals if i["class"] == "infusing"]
        else:
            low, high, pieces = one["at"], other["at"], span.infusing
        total += sum(max(0, min(stop, high) - max(start, low)) for start, stop in pieces)
    return total


# --- what holds an encounter ------------------------------------------------------------------------------------------------


def _hold(encounters: list[_Encounter], spans: list[_Span], doubts: list[dict[str, Any]], orders: Orders) -> None:
    """Adds the codes of every encounter of one patient."""
    of_session = {id(span): encounter for encounter in encounters for span in encounter.spans}
    for encounter in encounters:
        order, policies, m = encounter.order, encounter.rules.policies, encounter.minutes
        flags = {flag for span in encounter.spans for flag in span.row["flags"]}
        encounter.codes |= flags.intersection((*_SESSION_HOLDS, *_SESSION_INFORMS))
        pumps = {o.pump_id for o in orders.of_id(order.order_id)}
        for doubt in doubts:
            if doubt["session_id"] is None:
                mine = doubt["pump_id"] in pumps
            else:
                mine = doubt["order_id"] == order.order_id and doubt["patient_id"] == order.patient_id
            if mine and _reaches(doubt, encounter):
                encounter.codes.add(doubt["code"])
        if not encounter.rules.in_force(encounter.date):
            encounter.codes.add("NOT_IN_FORCE")
        if m > policies.long_infusion_hold_min:
            encounter.codes.add("OVER_8H")
        further = encounter.rules.rule("further")
        if further is not None and encounter.units.get(further.code, 0) > policies.unit_cap_96370:
            encounter.codes.add("OVER_UNIT_CAP")
        if any(s.row["route"] == "IV" and _touches(s, encounter) for s in spans):
            encounter.codes.add("IV_SAME_ENCOUNTER")
        if m and all(s.row["continuous_s"] == 0 and not s.unknown for s in encounter.spans):
            encounter.codes.add("DEMAND_ONLY")
        _inform(encounter)
    for one, other in _at_once(spans):
        first, second = of_session[id(one)], of_session[id(other)]
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


def _reaches(doubt: dict[str, Any], encounter: _Encounter) -> bool:
    """Whether what is not proved may have been on the encounter's date."""
    low, high = _ms(doubt["from_utc"]), _ms(doubt["to_utc"])
    return (low is None or _date(low, encounter.order) <= encounter.date) and (
        high is None or encounter.date <= _date(high, encounter.order)
    )


def _touches(span: _Span, encounter: _Encounter) -> bool:
    return _date(span.start, encounter.order) <= encounter.date <= _date(span.stop, encounter.order)


def _at_once(spans: list[_Span]) -> Iterable[tuple[_Span, _Span]]:
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


def _inform(encounter: _Encounter) -> None:
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
    if any(_date(s.start, order) != _date(s.stop, order) for s in spans):
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


def _dwell(encounters: list[_Encounter], work: _Worklist) -> None:
    """More than 72 h on one site: from a new site to the end of infusion before the next."""
    by_order: dict[str, list[_Encounter]] = defaultdict(list)
    for encounter in encounters:
        by_order[encounter.order.order_id].append(encounter)
    for mine in by_order.values():
        sites = sorted(s["at"] for e in mine for s in e.setups if s["new_site"] == "yes")
        for encounter in mine:
            stops = [high for span in encounter.spans for _, high in span.infusing]
            before = [site for site in sites if stops and site < max(stops)]
            if before and max(stops) - before[-1] > _DWELL_MS:
                work.add("SITE_DWELL_LONG", encounter)


# --- lines --------------------------------------------------------------------------------------------------------------------


def _lines(encounter: _Encounter, fact_policies: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The candidate lines of one encounter."""
    rules, order = encounter.rules, encounter.order
    if not encounter.eligible or not encounter.units or "NOT_IN_FORCE" in encounter.codes:
        return []
    reasons = [code for code in SAYS if code in encounter.codes and code in rules.holds]
    spans = encounter.spans
    ledger = [_entry(span, interval) for span in spans for interval in span.intervals]
    events = {interval[end] for span in spans for interval in span.intervals for end in ("first_event", "last_event")}
    events |= {event for setup in encounter.setups for event in setup["evidence"]}
    starts = [span.row["start"] for span in spans]
    stops = [span.row["stop"] for span in spans]
    evidence = hashlib.sha256("\n".join(sorted(span.row["evidence_hash"] for span in spans)).encode()).hexdigest()
    common = {
        "revision": 0,
        "encounter_id": encounter.encounter_id,
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
        "service_date": encounter.date,
        "start": min(starts) if None not in starts else None,
        "stop": max(stops) if None not in stops else None,
        "minutes": encounter.minutes,
        "revenue_codes": list(rules.revenue_codes),
        "state": "hold" if reasons else "ready",
        "reasons": reasons,
        "explanation": _explanation(encounter, reasons),
        "policies": rules.policies_json(fact_policies),
        "ledger": ledger,
        "event_ids": sorted(event for event in events if event is not None),
        "evidence_hash": evidence,
    }
    return [
        {**common, "line_id": identify("line", encounter.encounter_id, code, rules.name), "code": code, "units": units}
        for code, units in sorted(encounter.units.items())
    ]


def _entry(span: _Span, interval: dict[str, Any]) -> dict[str, Any]:
    return {
        "session_id": span.row["session_id"],
        "from": interval["from_utc"],
        "to": interval["to_utc"],
        "seconds": (interval["to_ms"] - interval["from_ms"]) / 1000,
        "counted": interval["class"] == "infusing",
        "why": interval["class"],
    }


def _explanation(encounter: _Encounter, reasons: list[str]) -> str:
    m, rules = encounter.minutes, encounter.rules
    proposed = " + ".join(f"{code} x{units}" for code, units in sorted(encounter.units.items()))
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


# --- days -----------------------------------------------------------------------------------------------------------------------


def _days(spans: list[_Span]) -> list[dict[str, Any]]:
    """Therapy days of one patient: each order and local date with an infusing or unknown second."""
    of_day: dict[tuple[str, date], list[_Span]] = defaultdict(list)
    for span in spans:
        touched = {day for low, high in (*span.infusing, *span.unknown) if high > low for day in _dates(low, high, span.order)}
        for day in touched:
            of_day[span.order.order_id, day].append(span)
    rows = []
    for (order_id, day), mine in of_day.items():
        order = mine[0].order
        low, high = _bounds(day, order)
        rows.append(
            {
                "order_id": order_id,
                "patient_id": order.patient_id,
                "pump_ids": sorted({span.row["pump_id"] for span in mine}),
                "date": day,
                "infusing_s": _length(_clip((iv for span in mine for iv in span.infusing), low, high)) // 1000,
                "unknown_s": _length(_clip((iv for span in mine for iv in span.unknown), low, high)) // 1000,
                "continuous": any(
                    span.row["continuous_s"] > 0 and span.row["span_s"] >= 86_400 and span.start <= low and span.stop >= high
                    for span in mine
                ),
                "flags": sorted({flag for span in mine for flag in span.row["flags"]}),
            }
        )
    return rows


def _bounds(day: date, order: Order) -> tuple[int, int]:
    """A local date as UTC ms, half open."""
    midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - local midnight, made aware by the zone
    return utc_ms(midnight, order.zone), utc_ms(midnight + timedelta(days=1), order.zone)


def _dates(low: int, high: int, order: Order) -> list[date]:
    first, last = _date(low, order), _date(high - 1, order)
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def _clip(intervals: Iterable[tuple[int, int]], low: int, high: int) -> Iterable[tuple[int, int]]:
    return ((max(start, low), min(stop, high)) for start, stop in intervals)


def _length(intervals: Iterable[tuple[int, int]]) -> int:
    """Length of the union of intervals."""
    total, reached = 0, -(2**62)
    for low, high in sorted(intervals):
        if high > max(low, reached):
            total += high - max(low, reached)
            reached = high
    return total


# --- the worklist ---------------------------------------------------------------------------------------------------------------


class _Worklist:
    """Items by id: one for each code and what it is about."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, Any]] = {}

    def table(self) -> pa.Table:
        return rows_to_table(tables.WORKLIST, list(self.items.values()), sort=WORKLIST_ORDER)

    def encounter(self, encounter: _Encounter, lines: list[dict[str, Any]]) -> None:
        for code in encounter.codes:
            self.add(code, encounter, lines)

    def add(self, code: str, encounter: _Encounter, lines: list[dict[str, Any]] | None = None) -> None:
        holder = next((s for s in encounter.spans if code in s.row["flags"]), encounter.spans[0])
        self._item(
            code,
            encounter.encounter_id,
            severity="hold" if code in encounter.rules.holds else "inform",
            patient_id=encounter.order.patient_id,
            pump_id=holder.row["pump_id"],
            payer=encounter.order.payer,
            order_id=encounter.order.order_id,
            session_id=holder.row["session_id"],
            line_id=lines[0]["line_id"] if lines else None,
            service_date=encounter.date,
            time=holder.row["start"],
            minutes_at_stake=encounter.stake,
        )

    def unassigned(self, sessions: list[dict[str, Any]]) -> None:
        for row in sessions:
            if row["order_id"] is None:
                stake = (row["infusing_s"] + row["unknown_s"]) // 60
                self._item(
                    "UNASSIGNED_PUMP", row["session_id"], pump_id=row["pump_id"], session_id=row["session_id"], time=row["start"],
                    minutes_at_stake=stake,
                )  # fmt: skip

    def cuts(self, doubts: list[dict[str, Any]], orders: Orders) -> None:
        for doubt in doubts:
            if doubt["session_id"] is None:
                own = {order.patient_id for order in orders.of_pump(doubt["pump_id"])}
                self._item(
                    doubt["code"], doubt["doubt_id"], severity="hold", pump_id=doubt["pump_id"],
                    patient_id=next(iter(own)) if len(own) == 1 else None, time=doubt["from_utc"],
                )  # fmt: skip

    def not_synced(self, orders: Iterable[Order], seen_ms: Mapping[str, int], horizon_ms: int) -> None:
        for order in orders:
            seen = seen_ms.get(order.pump_id)
            end = min(horizon_ms, order.stop_ms - 1) if order.stop_ms is not None else horizon_ms
            last = _date(end, order)
            missing = _date(order.start_ms, order) if seen is None or seen < order.start_ms else _date(seen, order) + timedelta(days=1)
            if missing <= last and end >= order.start_ms:
                self._item(
                    "NOT_SYNCED", f"{order.order_id}:{order.pump_id}:{order.start_ms}", patient_id=order.patient_id, pump_id=order.pump_id,
                    payer=order.payer, order_id=order.order_id, service_date=missing, says=f" {missing} to {last}.",
                )  # fmt: skip

    def _item(self, code: str, about: str, *, severity: str = "inform", says: str = "", **columns: Any) -> None:
        message, suggestion = SAYS[code]
        item_id = identify("item", code, about)
        self.items[item_id] = {
            "minutes_at_stake": 0,
            **columns,
            "item_id": item_id,
            "code": code,
            "severity": severity,
            "message": message + says,
            "suggestion": suggestion,
            "state": "open",
        }
