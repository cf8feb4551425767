"""Therapy days (docs/semantics.md §6): a fact for each order and local date, and the minutes of an encounter split by date."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any

from transforms.encounters import Encounter, Span, length, local_date
from transforms.orders import Order, local, utc_ms


@dataclass(frozen=True, slots=True)
class Day:
    """One order on one local date: its sessions that infuse on it or may have, and the row of DAYS."""

    order: Order
    spans: tuple[Span, ...]
    row: dict[str, Any]

    def is_left_open(self, span: Span) -> bool:
        """Whether an open session leaves this date open: its last, or all of its dates while it spans less than 24 h."""
        if "SESSION_OPEN" not in span.row["flags"]:
            return False
        return bool(span.row["span_s"] < 86_400 or local_date(max(span.start, span.stop - 1), self.order) == self.row["date"])

    def ledger(self) -> list[dict[str, Any]]:
        """Its intervals within the date, counted and not."""
        low, high = _bounds(self.row["date"], self.order)
        entries = []
        for span in self.spans:
            for interval, (start, stop) in zip(span.intervals, span.placed, strict=True):
                within = max(0, min(stop, high) - max(start, low))
                if within:
                    entries.append(
                        {
                            "session_id": span.row["session_id"],
                            "from": interval["from_utc"],
                            "to": interval["to_utc"],
                            "seconds": within / 1000,
                            "counted": interval["class"] == "infusing",
                            "why": interval["class"],
                        }
                    )
        return entries


def days_of(spans: list[Span]) -> list[Day]:
    """The therapy days of one patient: each order and local date with an infusing or unknown second."""
    of_day: dict[tuple[str, date], list[Span]] = defaultdict(list)
    for span in spans:
        touched = {day for low, high in (*span.infusing, *span.unknown) if high > low for day in _dates(low, high, span.order)}
        for day in touched:
            of_day[span.order.order_id, day].append(span)
    return [_day(day, mine) for (_, day), mine in of_day.items()]


def _day(day: date, spans: list[Span]) -> Day:
    order = spans[0].order
    low, high = _bounds(day, order)
    row = {
        "order_id": order.order_id,
        "patient_id": order.patient_id,
        "pump_ids": sorted({span.row["pump_id"] for span in spans}),
        "date": day,
        "infusing_s": length(_clip((iv for span in spans for iv in span.infusing), low, high)) // 1000,
        "unknown_s": length(_clip((iv for span in spans for iv in span.unknown), low, high)) // 1000,
        "continuous": any(span.row["continuous_s"] > 0 and span.row["span_s"] >= 86_400 for span in spans),
        "flags": sorted({flag for span in spans for flag in span.row["flags"]}),
    }
    return Day(order, tuple(spans), row)


def split_by_day(encounter: Encounter) -> Iterator[tuple[date, int, dict[str, int]]]:
    """An encounter's minutes and units by local date, equal in total to those of the whole: each unit stands where it was reached."""
    setup = encounter.rules.rule("setup")
    counting = [s for s in encounter.setups[1:] if s["pump_setup"] and s["new_site"] == "yes"]
    before_ms, before = 0, dict.fromkeys(encounter.units, 0)
    dates = encounter.dates
    for day in dates:
        low, high = _bounds(day, encounter.order)
        before_ms += length(_clip((iv for span in encounter.spans for iv in span.infusing), low, high))
        minutes = encounter.minutes if day == dates[-1] else min(encounter.minutes, before_ms // 60_000)
        reached = encounter.rules.units(minutes)
        units = {code: reached.get(code, 0) - before[code] for code in encounter.units if reached.get(code, 0) > before[code]}
        if setup is not None and setup.code in encounter.units:
            units.pop(setup.code, None)
            if counting and local(counting[0]["at"], encounter.order.zone).date() == day:
                units[setup.code] = encounter.units[setup.code]
        before = {code: max(n, reached.get(code, 0)) for code, n in before.items()}
        yield day, minutes, units


def _bounds(day: date, order: Order) -> tuple[int, int]:
    """A local date as UTC ms, half open."""
    midnight = datetime.combine(day, time())
    return utc_ms(midnight, order.zone), utc_ms(midnight + timedelta(days=1), order.zone)


def _dates(low: int, high: int, order: Order) -> list[date]:
    first, last = local_date(low, order), local_date(high - 1, order)
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def _clip(intervals: Iterable[tuple[int, int]], low: int, high: int) -> Iterable[tuple[int, int]]:
    return ((max(start, low), min(stop, high)) for start, stop in intervals)
