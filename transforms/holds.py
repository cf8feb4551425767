"""What holds an encounter, and what is worth a look (docs/semantics.md §6): the two tables of codes, and their reach."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from transforms.block import NONE, Ints, coded, milliseconds
from transforms.codes import BIT, bits_of
from transforms.encounters import INFUSING, POSSIBLE, UNKNOWN, YES, Encounters, Spans, day_of
from transforms.groups import Bools, distinct, either, expand, has, several
from transforms.orders import Order, Orders, local_ms
from transforms.ruleset import RuleSet
from transforms.sessions import TIME_CODES

_BOLUS_LIKE = {"pca": 0, "clinician": 0, "loading": 0}
_DAY_MS = 86_400_000
_DWELL_MS = 72 * 3_600_000
_EVER = 2**62
_FROM_SESSION = bits_of((*TIME_CODES, "LOCKOUT_VIOLATION", "VOLUME_MISMATCH", "DELIVERED_GT_DEMANDED", "GAPS_INVISIBLE"))
_Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reach:
    """What a doubt says of an order: a code, and the days from and to which it may have been true; `_EVER` without bound."""

    doubt_id: str
    code: str
    order: int
    first: int
    last: int

    def touches(self, first: int, last: int) -> bool:
        """Whether it reaches any day of these."""
        return self.first <= last and first <= self.last

    def __str__(self) -> str:
        first, last = (None if abs(day) == _EVER else day_of(day) for day in (self.first, self.last))
        return f"{self.doubt_id} {first} {last}"


def reaches_of(spans: Spans, orders: Orders) -> list[Reach]:
    """How far what is not proved reaches into the orders: of their own sessions, and of cuts in the logs of all pumps that they name."""
    terms, doubts = spans.terms, spans.facts.doubts
    found = []
    since, until, ongoing = (milliseconds(doubts[name]) for name in ("from_utc", "to_utc", "since_utc"))
    # A cut reaches the session that may go on behind it.
    since = np.where((since != NONE) & (ongoing != NONE), np.minimum(since, ongoing), since)
    rows = doubts.select(["doubt_id", "code", "pump_id", "session_id", "order_id"]).to_pylist()
    for row, low, high in zip(rows, since.tolist(), until.tolist(), strict=True):
        cut = row["session_id"] is None
        named = sorted({order.order_id for order in orders.of_pump(row["pump_id"])}) if cut else [row["order_id"]]
        for order in (terms.rank[name] for name in named if name in terms.rank):
            first = -_EVER if low == NONE else _day(low, terms.orders[order])
            last = _EVER if high == NONE else _day(high, terms.orders[order])
            # UTC that runs backwards shows that one of two anchors is false: nothing tells which.
            first, last = min(first, last), max(first, last)
            found.append(Reach(row["doubt_id"], row["code"], order, first, last))
    return found


def reach(reaches: Iterable[Reach], order: Ints, first: Ints, last: Ints) -> Ints:
    """The codes that may have been true of something of an order between two days, as bits; sorted by order."""
    found = np.zeros(len(order), dtype=np.int64)
    for one in reaches:
        mine = slice(*np.searchsorted(order, (one.order, one.order + 1)).tolist())
        found[mine] |= np.where((one.first <= last[mine]) & (first[mine] <= one.last), BIT[one.code], 0)
    return found


def _day(instant_ms: int, order: Order) -> int:
    return int(local_ms(np.array([instant_ms], dtype=np.int64), order.zone)[0]) // _DAY_MS


class Holds:
    """The codes of all encounters, and on what grounds each is there."""

    def __init__(self, encounters: Encounters, reaches: list[Reach]) -> None:
        self.encounters, self.spans, self.terms = encounters, encounters.spans, encounters.terms
        self.reaches: dict[int, list[Reach]] = defaultdict(list)
        for one in reaches:
            self.reaches[one.order].append(one)
        many = len(encounters)
        self.encounter_of = np.full(len(self.spans.row), -1, dtype=np.int64)
        self.encounter_of[encounters.member] = encounters.of_member
        self.patient = self.terms.patient[encounters.order]
        self.codes: Ints = either(encounters.of_member, self.spans.flags[encounters.member] & _FROM_SESSION, many)
        """What was found of each encounter, as bits."""
        self.codes |= reach(reaches, encounters.order, encounters.day, encounters.last_day)
        self._by_rules()
        self._of_spans()
        self._of_setups()
        self._of_patients()
        self._sites()

    def _add(self, code: str, where: Bools) -> None:
        self.codes[where] |= BIT[code]

    def _by_rules(self) -> None:
        """What only the order, its rules, the minutes and the date say."""
        encounters, terms = self.encounters, self.terms
        rules, m, eligible = terms.rules[encounters.order], encounters.minutes, encounters.eligible
        firsts, which = distinct(rules, encounters.day)
        in_force = [terms.rule_sets[rules[row]].in_force(day_of(int(encounters.day[row]))) for row in firsts.tolist()]
        self._add("NOT_IN_FORCE", ~np.array(in_force, dtype=np.bool_)[which])
        firsts, which = distinct(rules, m)
        near = [_is_near(terms.rule_sets[rules[row]], int(m[row])) for row in firsts.tolist()]
        self._add("NEAR_THRESHOLD", eligible & np.array(near, dtype=np.bool_)[which])
        column = {code: n for n, code in enumerate(encounters.line_codes)}
        for number in np.unique(rules).tolist():
            one, mine = terms.rule_sets[number], eligible & (rules == number)
            self._add("OVER_8H", mine & (m > one.policies.long_infusion_hold_min))
            if (further := one.rule("further")) is not None:
                self._add("OVER_UNIT_CAP", mine & (encounters.units[:, column[further.code]] > one.policies.unit_cap_96370))
        self._add("LE_15_MIN", eligible & (m >= 1) & (m <= 15))
        of_rule = np.array([order.route in terms.rules_of(n).routes for n, order in enumerate(terms.orders)], dtype=np.bool_)
        home = np.array([order.place_of_service == "12" for order in terms.orders], dtype=np.bool_)
        self._add("EXCLUDED_DRUG", ~eligible & of_rule[encounters.order])
        self._add("ROUTE_NOT_SC", ~eligible & ~of_rule[encounters.order])
        self._add("HOME_SETTING_USE_PER_DIEM", eligible & home[encounters.order])

    def _of_spans(self) -> None:
        """What its own sessions say."""
        encounters, spans, many = self.encounters, self.spans, len(self.encounters)
        member, owner, eligible = encounters.member, encounters.of_member, encounters.eligible

        def add(code: str, true: Bools) -> None:
            self._add(code, eligible & has(owner, true[member], many))

        add("CROSS_MIDNIGHT", spans.first_day != spans.last_day)
        add("KVO_EXCLUDED", spans.ints("kvo_s") > 0)
        add("ALARM_PAUSE_EXCLUDED", spans.ints("alarm_s") > 0)
        limits = [self.terms.rules_of(n).limit_ml_h(order.drug) for n, order in enumerate(self.terms.orders)]
        limit = np.array(limits, dtype=np.float64)[spans.order]  # NaN where there is none: no rate is above it.
        fastest = spans.facts.sessions["max_rate_ml_h"].fill_null(0.0).to_numpy()[spans.row]
        add("RATE_ABOVE_THERAPY_LIMIT", fastest > limit)
        self._add("GAP_OVER_LIMIT", eligible & (np.diff(encounters.bounds) > 1))
        # Something other than a bolus may have been delivered in seconds that nothing proves.
        other = (spans.what == UNKNOWN) & (coded(spans.facts.intervals["source"], _BOLUS_LIKE)[spans.interval] < 0)
        basal = (spans.ints("continuous_s") > 0) | has(spans.owner, other, len(spans.row))
        self._add("DEMAND_ONLY", eligible & (encounters.minutes > 0) & ~has(owner, basal[member], many))

    def _of_setups(self) -> None:
        """What its set-ups say: all but the first, which is inside the initial code."""
        encounters, setups, many = self.encounters, self.encounters.setups, len(self.encounters)

        def add(code: str, which: Bools) -> None:
            self._add(code, has(setups.encounter, setups.further & which, many))

        add("SITE_CHANGE_NO_PUMP_SETUP", (setups.site == YES) & ~setups.is_pump)
        add("POSSIBLE_SITE_CHANGE", (setups.site == POSSIBLE) & setups.is_pump)
        counting = np.bincount(setups.encounter[setups.counting], minlength=many)
        self._add("SECOND_96371", counting > 1)
        column = {code: n for n, code in enumerate(encounters.line_codes)}
        rules = self.terms.rules[encounters.order]
        for number in np.unique(rules).tolist():
            if (setup := self.terms.rule_sets[number].rule("setup")) is not None:
                alone = (rules == number) & (counting > 0) & (encounters.units[:, column[setup.code]] == 0)
                self._add("ADDON_WITHOUT_INITIAL", alone & encounters.eligible)

    def _of_patients(self) -> None:
        """What other sessions of the patient say."""
        encounters, spans, terms = self.encounters, self.spans, self.terms
        for span in np.flatnonzero(self._is_iv).tolist():
            self.codes[self._touched_by(span)] |= BIT["IV_SAME_ENCOUNTER"]
        for one, other in self._at_once(spans.patient):
            first, second = int(self.encounter_of[one]), int(self.encounter_of[other])
            for span, encounter in ((one, second), (other, first)):
                if self._is_iv[span] and encounter >= 0 and encounters.eligible[encounter]:
                    self.codes[encounter] |= BIT["IV_SAME_ENCOUNTER"]
            if first < 0 or second < 0:
                continue
            pair = [first, second]
            if spans.order[one] == spans.order[other]:
                if spans.pump[0][one] != spans.pump[0][other]:
                    self.codes[pair] |= BIT["OVERLAPPING_PUMPS"]
            elif encounters.eligible[pair].all() and encounters.rule(first).name == encounters.rule(second).name:
                self.codes[pair] |= BIT["SECOND_ORDER_SAME_DAY"]
        rows = np.flatnonzero(encounters.eligible & (encounters.minutes > 0))
        place, day = expand(encounters.day[rows], encounters.last_day[rows] + 1)
        rows = rows[place]
        order = encounters.order[rows]
        _, same = distinct(terms.patient[order], terms.rules[order], day)
        self.codes[rows[several(same, order, len(rows))[same]]] |= BIT["SECOND_ORDER_SAME_DAY"]

    @cached_property
    def _is_iv(self) -> Bools:
        return np.array([order.route == "IV" for order in self.terms.orders], dtype=np.bool_)[self.spans.order]

    def _touched_by(self, span: int) -> Ints:
        """The eligible encounters of the same patient on whose dates, in their own zone, a session was running."""
        encounters = self.encounters
        mine = np.flatnonzero((self.patient == self.spans.patient[span]) & encounters.eligible)
        order = encounters.order[mine]
        first, last = (self.terms.days(np.full(len(mine), at[span]), order) for at in (self.spans.start, self.spans.stop))
        return mine[(first <= encounters.last_day[mine]) & (encounters.day[mine] <= last)]

    def _at_once(self, patient: Ints) -> Iterator[tuple[int, int]]:
        """Pairs of sessions of one patient that infuse at the same time."""
        spans = self.spans
        rows = np.flatnonzero((spans.what == INFUSING) & (spans.high > spans.low) & (patient[spans.owner] >= 0))
        low, high, owner = spans.low[rows], spans.high[rows], spans.owner[rows]
        whose = patient[owner]
        by = np.lexsort((owner, high, low, whose))
        low, high, owner, whose = low[by], high[by], owner[by], whose[by]
        shared = np.unique(whose[1:][(whose[1:] == whose[:-1]) & (low[1:] < high[:-1])])
        for one in shared.tolist():
            mine = slice(*np.searchsorted(whose, (one, one + 1)).tolist())
            yield from _pairs(zip(low[mine].tolist(), high[mine].tolist(), owner[mine].tolist(), strict=True))

    def _sites(self) -> None:
        """Encounters with more than 72 h on one site: from a new site to the end of infusion before the next."""
        encounters, setups = self.encounters, self.encounters.setups
        owner, piece = encounters.pieces
        first = np.full(len(encounters), _EVER, dtype=np.int64)
        last = np.full(len(encounters), -_EVER, dtype=np.int64)
        np.minimum.at(first, owner, self.spans.low[piece])
        np.maximum.at(last, owner, self.spans.high[piece])
        bounds = np.searchsorted(owner, np.arange(len(encounters) + 1))
        order, at = encounters.order[setups.encounter[setups.site == YES]], setups.at[setups.site == YES]
        by = np.lexsort((at, order))
        order, at = order[by], at[by]
        of_order = np.searchsorted(order, np.arange(len(self.terms.orders) + 1))
        sites_of = [at[low:high].tolist() for low, high in zip(of_order[:-1].tolist(), of_order[1:].tolist(), strict=True)]
        has_pieces = np.flatnonzero(last > -_EVER)
        for one, low, high in zip(has_pieces.tolist(), first[has_pieces].tolist(), last[has_pieces].tolist(), strict=True):
            sites = sites_of[encounters.order[one]]
            begin = max(0, bisect_right(sites, low) - 1)
            for number in range(begin, bisect_left(sites, high)):
                following = sites[number + 1] if number + 1 < len(sites) else _EVER
                if min(high, following) - sites[number] > _DWELL_MS and self._dwells(one, bounds, sites[number], following):
                    self.codes[one] |= BIT["SITE_DWELL_LONG"]
                    break

    def _dwells(self, encounter: int, bounds: Ints, site: int, following: int) -> bool:
        mine = self.encounters.pieces[1][bounds[encounter] : bounds[encounter + 1]]
        low, high = self.spans.low[mine], self.spans.high[mine]
        ends = np.minimum(high, following)[low < following]
        return bool(len(ends) and ends.max() - site > _DWELL_MS)

    def causes(self, code: str, encounter: int) -> list[str]:
        """What, beside the evidence of its own sessions, makes a code hold an encounter: another cause is another ground."""
        encounters, rules = self.encounters, self.encounters.rule(encounter)
        match code:
            case "OVER_8H":
                return [f"{encounters.minutes[encounter]} over {rules.policies.long_infusion_hold_min}"]
            case "OVER_UNIT_CAP":
                return [f"{list(encounters.units_of(encounter).items())} over {rules.policies.unit_cap_96370}"]
            case "NOT_IN_FORCE":
                return [rules.version]
            case "IV_SAME_ENCOUNTER":
                iv = np.flatnonzero(self._is_iv & (self.spans.patient == self.patient[encounter])).tolist()
                at_once = self._beside(encounter)
                return [self._proof(span) for span in iv if span in at_once or encounter in self._touched_by(span)]
            case "OVERLAPPING_PUMPS" | "SECOND_ORDER_SAME_DAY":
                others = self._beside(encounter)
                if code == "SECOND_ORDER_SAME_DAY":
                    same = (self.patient == self.patient[encounter]) & (encounters.day <= encounters.last_day[encounter])
                    same &= (encounters.last_day >= encounters.day[encounter]) & (encounters.order != encounters.order[encounter])
                    others += [span for one in np.flatnonzero(same).tolist() for span in encounters.of(one).tolist()]
                return [self._proof(span) for span in others]
            case _:
                order = int(encounters.order[encounter])
                return self.reached(code, order, int(encounters.day[encounter]), int(encounters.last_day[encounter]))

    def _beside(self, encounter: int) -> list[int]:
        """The sessions of the same patient that infuse at the same time as one of an encounter."""
        own, patient = set(self.encounters.of(encounter).tolist()), self.spans.patient
        at_once = self._at_once(np.where(patient == self.patient[encounter], patient, -1))
        return [span for pair in at_once if own.intersection(pair) for span in pair if span not in own]

    def reached(self, code: str, order: int, first: int, last: int) -> list[str]:
        """The doubts of a code that reach any of these days of an order, and how far they do."""
        return [str(one) for one in self.reaches.get(order, ()) if one.code == code and one.touches(first, last)]

    def _proof(self, span: int) -> str:
        return f"{self.spans.session_ids[span]} {self.spans.evidence[span]}"


def _pairs(pieces: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int]]:
    """Pairs of owners of sorted pieces that have time in common."""
    running: list[tuple[int, int]] = []
    seen = set()
    for low, high, number in pieces:
        running = [(stop, other) for stop, other in running if stop > low]
        for _, other in running:
            if other != number and (pair := (min(number, other), max(number, other))) not in seen:
                seen.add(pair)
                yield pair
        running.append((high, number))


def _is_near(rules: RuleSet, minutes: int) -> bool:
    """Whether a few minutes make another number of units."""
    near = round(rules.policies.near_threshold_min)
    return any(rules.units(max(0, minutes + step)) != rules.units(minutes) for step in (-near, near))
