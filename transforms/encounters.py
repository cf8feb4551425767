"""Encounters (docs/semantics.md §6): sessions on one time line, grouped, with their minutes, set-ups and units."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa

from transforms.orders import Order, Orders, local, utc_ms
from transforms.ruleset import RuleSet
from transforms.tables import identify

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_Date = date
_SITE = {"no": 0, "possible": 1, "yes": 2}


@dataclass(frozen=True, slots=True)
class Facts:
    """What billing reads: SESSIONS, INTERVALS, SETUPS and DOUBTS."""

    sessions: pa.Table
    intervals: pa.Table
    setups: pa.Table
    doubts: pa.Table


@dataclass(slots=True)
class Span:
    """A session as billing sees it: times in UTC ms, or in printed time read in the order's zone where UTC is unknown."""

    row: dict[str, Any]
    order: Order
    start: int
    stop: int
    infusing: list[tuple[int, int]]
    unknown: list[tuple[int, int]]
    intervals: list[dict[str, Any]]
    """Its rows of INTERVALS, times as UTC ms."""
    placed: list[tuple[int, int]]
    """Where each of them lies on this time line."""
    infusing_ms: int
    unknown_ms: int


@dataclass(slots=True)
class Encounter:
    """The sessions that "once per encounter" ranges over, with what is found of them."""

    order: Order
    rules: RuleSet
    date: date
    encounter_id: str
    spans: list[Span]
    minutes: int = 0
    codes: set[str] = field(default_factory=set)
    setups: list[dict[str, Any]] = field(default_factory=list)
    units: dict[str, int] = field(default_factory=dict)

    @property
    def eligible(self) -> bool:
        """Whether this rule set has lines for it at all."""
        return self.rules.covers(self.order.route, self.order.drug)

    @property
    def dates(self) -> list[_Date]:
        """The local dates that its lines stand on."""
        if self.rules.policies.midnight == "start_date":
            return [self.date]
        last = max(local_date(span.stop, self.order) for span in self.spans)
        return [self.date + timedelta(days=n) for n in range(max(0, (last - self.date).days) + 1)]

    @property
    def stake(self) -> int:
        """Whole minutes, infused or unknown."""
        return self.minutes + sum(span.unknown_ms for span in self.spans) // 60_000


def milliseconds(instant: datetime | None) -> int | None:
    """A UTC time as ms since 1970."""
    return None if instant is None else round((instant - _EPOCH) / timedelta(milliseconds=1))


def spans_of(facts: Facts, orders: Orders) -> list[Span]:
    """Sessions that have an order, with their intervals on one time line."""
    of_session: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for interval in _in_ms(facts.intervals, "from_utc", "to_utc").to_pylist():
        of_session[interval["session_id"]].append(interval)
    spans = []
    for row in facts.sessions.to_pylist():
        order = next((o for o in orders.of_id(row["order_id"]) if o.pump_id == row["pump_id"]), None) if row["order_id"] else None
        if order is None:
            continue
        intervals = of_session[row["session_id"]]
        start = milliseconds(row["start"])
        timed = start is not None and all(i["from_utc"] is not None and i["to_utc"] is not None for i in intervals)
        if start is None:
            start = utc_ms(row["printed_start"], order.zone) if row["printed_start"] is not None else order.start_ms
        begin = intervals[0]["from_ms"] if intervals else 0
        of_class: dict[str, list[tuple[int, int]]] = {"infusing": [], "unknown": []}
        placed: list[tuple[int, int]] = []
        lasting = {"infusing": 0, "unknown": 0}
        stop = start
        for interval in intervals:
            low, high = interval["from_ms"], interval["to_ms"]
            at = (interval["from_utc"], interval["to_utc"]) if timed else (start + low - begin, start + high - begin)
            stop = max(stop, at[1])
            placed.append(at)
            if interval["class"] in of_class:
                of_class[interval["class"]].append(at)
                lasting[interval["class"]] += high - low
        infusing, unknown = of_class["infusing"], of_class["unknown"]
        spans.append(Span(row, order, start, stop, infusing, unknown, intervals, placed, lasting["infusing"], lasting["unknown"]))
    return sorted(spans, key=lambda s: (s.order.patient_id, s.start, s.row["session_id"]))


def _in_ms(table: pa.Table, *columns: str) -> pa.Table:
    """A table with some of its times as UTC ms."""
    for name in columns:
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(pa.int64()))
    return table


def local_date(instant_ms: int, order: Order) -> date:
    """The date of a UTC instant in the order's zone."""
    return local(instant_ms, order.zone).date()


def encounters_of(spans: list[Span], rule_sets: Mapping[str, RuleSet]) -> list[Encounter]:
    """Sessions of one patient, grouped into encounters by the policy of their order's rule set."""
    found: dict[tuple[str, ...], Encounter] = {}
    for span in spans:
        order, rules = span.order, rule_sets[span.order.rule_set]
        if span.row["start"] is None and span.row["printed_start"] is not None:
            day = span.row["printed_start"].date()
        else:
            day = local_date(span.start, order)
        key = [order.order_id, day.isoformat()]
        if rules.policies.encounter == "session":
            key.append(span.row["session_id"])
        encounter = found.get(tuple(key))
        if encounter is None:
            encounter_id = identify("encounter", order.patient_id, *key)
            encounter = found[tuple(key)] = Encounter(order, rules, day, encounter_id, [])
        encounter.spans.append(span)
    return [found[key] for key in sorted(found)]


def count(encounter: Encounter, setups: Mapping[str, list[dict[str, Any]]]) -> None:
    """Minutes, set-ups and units of one encounter: seconds first, then whole minutes, once."""
    logs: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for span in encounter.spans:
        logs[span.row["pump_id"], span.row["stretch"]] += span.infusing
    twice = sum(length(log) for log in logs.values()) - length(iv for log in logs.values() for iv in log)
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


def _setups(encounter: Encounter, setups: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The encounter's set-ups by time; those of one pump with too little infusion between them are one, corrected."""
    separation_ms = encounter.rules.policies.setup_separation_min * 60_000
    by_pump: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for span in encounter.spans:
        for setup in setups.get(span.row["session_id"], ()):
            at = milliseconds(setup["time"])
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
    # Of two at the same instant the one that counts comes first, where it may be the one inside the initial code.
    return sorted(merged, key=lambda s: (s["at"], not (s["pump_setup"] and s["new_site"] == "yes"), s["setup_id"]))


def _infusion_between(encounter: Encounter, pump: str, one: dict[str, Any], other: dict[str, Any]) -> int:
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


def length(intervals: Iterable[tuple[int, int]]) -> int:
    """Length of the union of intervals."""
    total, reached = 0, -(2**62)
    for low, high in sorted(intervals):
        if high > max(low, reached):
            total += high - max(low, reached)
            reached = high
    return total
