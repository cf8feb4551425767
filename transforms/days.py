"""Therapy days (docs/semantics.md §6): a fact for each order and local date, and the minutes of an encounter split by date."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa

from transforms import tables
from transforms.block import Ints
from transforms.codes import BIT, named
from transforms.encounters import INFUSING, UNKNOWN, Encounters, Spans, day_of
from transforms.groups import Bools, begins, covered, distinct, either, expand, has


@dataclass(frozen=True)
class Days:
    """Each order and local date with an infusing or unknown second, by order and date, and the sessions that have it."""

    spans: Spans
    order: Ints
    day: Ints
    low: Ints
    high: Ints
    """The date as UTC ms, half open."""
    of_member: Ints
    member: Ints
    """Spans, and of each which of the days."""
    infusing_ms: Ints
    unknown_ms: Ints
    continuous: Bools

    def __len__(self) -> int:
        return len(self.order)

    @property
    def left_open(self) -> Bools:
        """Where an open session leaves a date open: its last, or all of its dates while it spans less than 24 h; also one that began with
        the last record of the log, of which no second is told."""
        spans, terms = self.spans, self.spans.terms
        open_ = np.flatnonzero(spans.flags & BIT["SESSION_OPEN"] != 0)
        last = terms.days(np.maximum(spans.start, spans.stop - 1)[open_], spans.order[open_])
        first = np.where(spans.ints("span_s")[open_] < 86_400, terms.days(spans.start[open_], spans.order[open_]), last)
        place, day = expand(first, last + 1)
        order = np.concatenate((self.order, spans.order[open_][place]))
        _, which = distinct(order, np.concatenate((self.day, day)))
        return np.isin(which[: len(self)], which[len(self) :])

    def table(self) -> pa.Table:
        """DAYS."""
        terms = self.spans.terms
        told, which = np.unique(either(self.of_member, self.spans.flags[self.member], len(self)), return_inverse=True)
        columns = {
            "order_id": terms.column("order_id", self.order),
            "patient_id": terms.column("patient_id", self.order),
            "pump_ids": self.spans.pumps_of(self.of_member, self.member, len(self)),
            "date": pa.array(self.day.astype(np.int32), pa.int32()).cast(pa.date32()),
            "infusing_s": self.infusing_ms // 1000,
            "unknown_s": self.unknown_ms // 1000,
            "continuous": self.continuous,
            "flags": pa.array([sorted(named(bits)) for bits in told.tolist()], pa.list_(pa.string())).take(pa.array(which)),
        }
        return pa.table(columns, schema=tables.DAYS)


def days_of(spans: Spans) -> Days:
    """The therapy days of all sessions."""
    terms = spans.terms
    pieces = np.flatnonzero(((spans.what == INFUSING) | (spans.what == UNKNOWN)) & (spans.high > spans.low))
    owner = spans.owner[pieces]
    first, last = terms.days(spans.low[pieces], spans.order[owner]), terms.days(spans.high[pieces] - 1, spans.order[owner])
    place, day = expand(first, last + 1)
    piece, owner = pieces[place], owner[place]
    by = np.lexsort((owner, day, spans.order[owner]))
    piece, owner, day = piece[by], owner[by], day[by]
    new = begins(spans.order[owner], day)
    group = np.cumsum(new) - 1
    order, date_ = spans.order[owner[new]], day[new]
    low, high = terms.midnights(date_, order)
    begin, end = np.maximum(spans.low[piece], low[group]), np.minimum(spans.high[piece], high[group])
    lasts = []
    for what in (INFUSING, UNKNOWN):
        mine = spans.what[piece] == what
        lasts.append(covered(group[mine], begin[mine], end[mine], len(order)))
    long = (spans.ints("continuous_s") > 0) & (spans.ints("span_s") >= 86_400)
    continuous = has(group, long[owner], len(order))
    # Less than a second of delivery past midnight makes no day of therapy.
    kept = (lasts[0] >= 1000) | (lasts[1] > 0)
    one_each = begins(group, owner) & kept[group]
    of_member = (np.cumsum(kept) - 1)[group[one_each]]
    order, date_, low, high, infusing, unknown = (column[kept] for column in (order, date_, low, high, *lasts))
    return Days(spans, order, date_, low, high, of_member, owner[one_each], infusing, unknown, continuous[kept])


def split_by_day(encounters: Encounters, encounter: int) -> Iterator[tuple[date, int, dict[str, int]]]:
    """An encounter's minutes and units by local date, equal in total to those of the whole: each unit stands where it was reached."""
    spans, terms, rules, setups = encounters.spans, encounters.terms, encounters.rule(encounter), encounters.setups
    setup, minutes_of_all, units_of_all = rules.rule("setup"), int(encounters.minutes[encounter]), encounters.units_of(encounter)
    counting = setups.at[setups.counting & (setups.encounter == encounter)][:1]
    mine = np.concatenate([np.arange(*spans.bounds[one : one + 2]) for one in encounters.of(encounter).tolist()])
    mine = mine[spans.what[mine] == INFUSING]
    days = np.arange(encounters.day[encounter], encounters.last_day[encounter] + 1)
    order = int(encounters.order[encounter])
    set_up = np.clip(terms.days(counting, np.full(len(counting), order)), days[0], days[-1])
    low, high = terms.midnights(days, np.full(len(days), order))
    before_ms, before = 0, dict.fromkeys(units_of_all, 0)
    for number, (begin, end) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        day = day_of(int(days[number]))
        within = covered(np.zeros(len(mine), dtype=np.int64), np.maximum(spans.low[mine], begin), np.minimum(spans.high[mine], end), 1)
        before_ms += int(within[0])
        minutes = minutes_of_all if number == len(days) - 1 else min(minutes_of_all, before_ms // 60_000)
        reached = rules.units(minutes)
        units = {code: reached.get(code, 0) - before[code] for code in units_of_all if reached.get(code, 0) > before[code]}
        if setup is not None and setup.code in units_of_all:
            units.pop(setup.code, None)
            if days[number] in set_up:
                units[setup.code] = units_of_all[setup.code]
        before = {code: max(n, reached.get(code, 0)) for code, n in before.items()}
        yield day, minutes, units
