"""A simulated month of pumps of all families through the night: `python -m tests.month --pumps 200 --days 30 --seed S --lake DIR`.

Each pump is read every night over its own wire. Lake `whole` gets all captures, and then its night: what is ready there must be what
truly happened. Lake `late` gets the same captures as a month brings them, with a week of some pumps missing: of a pump that is asked the
downloads of that week did not happen, and the next one brings it; of one that publishes that week's captures are held up until the month
is over. Billing takes what is ready at the end of that week, and at the end of the month. When all has arrived, `late` must hold what
`whole` does, and each line that billing took must stand as it was, or be amended by a pair that is held. Exits 1 where anything is not so.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import simulators
from devices.contract import AlarmClass, Capture
from devices.dialogue import Summary
from ingest import night, people, review
from ingest.hub import decode_cap
from ingest.lake import Lake
from ingest.store import Arrival, Store
from simulators.link import Faults, SerialDevice
from simulators.therapy import Interval, SetUp, Truth, seconds, therapy
from tests import conformance
from tests.arrivals import digests
from transforms.decisions import AMENDED, figures, key_of
from transforms.orders import COLUMNS

ZONE = ZoneInfo(conformance.ZONE)
DAYLIGHT_SAVING = datetime(2026, 3, 8, 6, tzinfo=UTC)
"""01:00 of the night in which clocks go forward: it lies behind the middle of every run."""
GAP = timedelta(minutes=60)
KINDS = ("sc_continuous", "sc_continuous", "insulin_like", "sc_continuous", "pca", "sc_continuous", "demand_only")
DRIFT_S_PER_DAY = (-4, 8)
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "canonical": {"batch": 10},
    "miva": {"first": 43_000},
    "ids": {"keeps": 1500},
}
"""Small batches, so that a week is several captures; a ring that wraps; a history that holds less than a month of a busy pump."""
DOUBTED = frozenset({"NO_STOP", "NO_START", "SESSION_OPEN", "LOG_GAP", "CLOCK_UNCERTAIN", "RECORD_CONFLICT", "ORDER_BOUNDARY"})
"""The codes that are about time: whatever no such code holds must have the true minutes, held for something else or not."""
_Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pump:
    """A pump, what truly happened to it, and its captures with the number of the night in which each was taken."""

    truth: Truth
    asked: bool
    withheld: bool
    captures: tuple[tuple[int, Capture], ...]

    @property
    def pump_id(self) -> str:
        """family:serial."""
        return self.truth.pump_id

    @property
    def family(self) -> str:
        """Its family."""
        return self.pump_id.partition(":")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """Pumps, orders, and the nights of which logs are withheld."""

    pumps: Mapping[str, Pump]
    orders: tuple[dict[str, str], ...]
    nights: range
    start: datetime
    days: int

    def arrivals(self, wanted: Callable[[Pump, int], bool]) -> Iterator[tuple[Capture, Arrival]]:
        """The captures that are wanted, by pump and the night that took them."""
        for pump in self.pumps.values():
            for taken, capture in pump.captures:
                if wanted(pump, taken):
                    yield capture, Arrival(received_at=self.start + timedelta(days=taken + 1), via="month")

    def held_up(self, pump: Pump, taken: int) -> bool:
        """Whether this capture is among those withheld."""
        return pump.withheld and not pump.asked and taken in self.nights


# --- pumps and orders ------------------------------------------------------------------------------------------------------------


def month(pumps: int, days: int, seed: int, *, nights: range, withheld: Callable[[int], bool]) -> Month:
    """So many pumps over so many days; `nights`: those of which the pumps whose number is `withheld` have no logs."""
    start = DAYLIGHT_SAVING - timedelta(days=days * 11 // 20)
    found = {}
    for number in range(pumps):
        one = _pump(number, days, seed, start, nights if withheld(number) else range(0))
        found[one.pump_id] = one
    return Month(
        pumps=found, orders=tuple(_orders(list(found), start + timedelta(days=days // 2, hours=3))), nights=nights, start=start, days=days
    )


def _kind(number: int) -> str:
    return KINDS[number // len(conformance.FAMILIES) % len(KINDS)]


def _pump(number: int, days: int, seed: int, start: datetime, without: range) -> Pump:
    family = conformance.FAMILIES[number % len(conformance.FAMILIES)]
    chance = random.Random(f"month:{seed}:{number}")
    kind = "sc_continuous" if family == "paradigm" and _kind(number) == "demand_only" else _kind(number)
    script = therapy(kind, chance.randrange(10**6), start, days, tz=conformance.ZONE, clock_loss=number % 17 == 5)
    clock = conformance.Clock(start)
    device, truth = simulators.family(family).simulate(
        script,
        number,
        serial=f"{conformance.parameters(family)['serial'].default[:-3]}{number:03d}",
        now=clock,
        faults=Faults(drift_s_per_day=chance.uniform(*DRIFT_S_PER_DAY)),
        **OPTIONS.get(family, {}),
    )
    asked = isinstance(device, SerialDevice)
    taken: list[tuple[int, Capture]] = []
    sent: set[bytes] = set()
    for number_of_night in range(days):
        clock.now = start + timedelta(days=number_of_night, hours=21 + chance.random() * 6)
        if number_of_night == days - 1:
            clock.now = max(clock.now, script.end + timedelta(minutes=10))
        if not asked:
            fresh = [payload for payload in device.captures() if payload not in sent]
            sent.update(fresh)
            taken += [(number_of_night, decode_cap(payload)) for payload in fresh]
        elif number_of_night not in without:
            taken += [(number_of_night, one) for one in _asked(family, device, clock, [one for _, one in taken])]
    return Pump(truth=truth, asked=asked, withheld=bool(without), captures=tuple(taken))


def _asked(family: str, device: SerialDevice, clock: conformance.Clock, known: Sequence[Capture]) -> list[Capture]:
    got, end = conformance.ask_all(conformance.ADAPTERS[family], device.pump_id, conformance.Wire(device, clock).exchange, known)
    assert isinstance(end, Summary), end
    assert end.complete
    return got


def _orders(pumps: Sequence[str], hands: datetime) -> Iterator[dict[str, str]]:
    """Several payers and rule sets, an IV, an insulin, patients with two pumps, pumps that change hands at `hands`."""
    last: dict[str, str] = {}
    for number, pump in enumerate(pumps):
        long = _kind(number) in ("insulin_like", "pca")
        rules, payer = [("cpt-9637x", "payer-a"), ("cpt-9637x", "payer-d"), ("per-diem", "payer-b"), ("evidence-only", "payer-c")][
            2 if long and number % 4 else (0, 0, 1, 1, 2, 3, 0)[number % 7]
        ]
        row = dict.fromkeys(COLUMNS, "") | {
            "pump_id": pump, "patient_id": f"pt-{number:03d}", "order_id": f"ord-{number:03d}", "drug": "hydromorphone", "route": "SC",
            "payer": payer, "rule_set": rules, "tz": conformance.ZONE, "start": "2026-01-01T00:00:00Z",
        }  # fmt: skip
        if number == 6:
            row |= {"route": "IV"}
        if number == 9:
            row |= {"drug": "insulin lispro"}
        if number % 20 == 11:
            row |= {name: last[name] for name in ("patient_id", "order_id", "payer", "rule_set")}
        if number % 20 == 16:
            row |= {"patient_id": last["patient_id"], "drug": "ketamine"}
        if number % 25 == 7:
            turn = hands.strftime("%Y-%m-%dT%H:%M:%SZ")
            yield {**row, "patient_id": f"pt-{number:03d}b", "order_id": f"ord-{number:03d}b", "start": turn}
            row["stop"] = turn
        yield row
        last = row


def _written(rows: Iterable[Mapping[str, str]]) -> str:
    return "\n".join([",".join(COLUMNS), *(",".join(row[column] for column in COLUMNS) for row in rows)]) + "\n"


# --- what is due -----------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Due:
    """What a date of an order is worth, by the truth: when drug flowed, and the set-ups; `continuous` of a day."""

    flowed: list[Interval] = field(default_factory=list)
    set_ups: list[tuple[Truth, SetUp]] = field(default_factory=list)
    continuous: bool = False

    @property
    def minutes(self) -> int:
        """Whole minutes of the union."""
        end, total = datetime.min.replace(tzinfo=UTC), timedelta(0)
        for start, stop in sorted(self.flowed):
            total += max(timedelta(0), stop - max(start, end))
            end = max(end, stop)
        return int(total.total_seconds()) // 60

    @property
    def further_site(self) -> bool:
        """Whether a set-up behind the first counts as one of the pump with a new site (docs/semantics.md §6, 96371)."""
        found: list[tuple[Truth, datetime, bool, bool]] = []
        for truth, one in sorted(self.set_ups, key=lambda pair: pair[1].at):
            shows = (one.pump_setup, one.new_site == "yes")
            if found and found[-1][0] is truth and seconds(_within(truth.proved, found[-1][1], one.at)) < 15 * 60:
                shows = (shows[0] or found[-1][2], shows[1] or found[-1][3])
                found.pop()
            found.append((truth, one.at, *shows))
        return any(pump and site for _, _, pump, site in found[1:])


def _allowed(minutes: int) -> float:
    """How far minutes may be off: by one, and by what the pump's clock drifts meanwhile, for days."""
    return 1 + minutes * max(map(abs, DRIFT_S_PER_DAY)) / 86_400


def _within(intervals: Iterable[Interval], start: datetime, stop: datetime) -> list[Interval]:
    return [(max(a, start), min(b, stop)) for a, b in intervals if a < stop and b > start]


def _sessions(truth: Truth, start: datetime, stop: datetime) -> list[list[Interval]]:
    """The pieces that begin under an order, as sessions: none across a loss of the clock."""
    cuts = [step.at for step in truth.told if step.reason == "loss" or step.alarm_class is AlarmClass.CLOCK_LOST]
    found: list[list[Interval]] = []
    for piece in truth.proved:
        if not start <= piece[0] < stop:
            continue
        if found and piece[0] - found[-1][-1][1] <= GAP and bisect_right(cuts, found[-1][-1][1]) == bisect_right(cuts, piece[0]):
            found[-1].append(piece)
        else:
            found.append([piece])
    return found


def due(of: Month) -> dict[tuple[str, date], Due]:
    """What is due by order and date: encounters by the date on which a session starts, therapy days by the date of delivery."""
    found: dict[tuple[str, date], Due] = defaultdict(Due)
    for row in of.orders:
        truth = of.pumps[row["pump_id"]].truth
        start = datetime.fromisoformat(row["start"])
        stop = datetime.fromisoformat(row["stop"]) if row["stop"] else datetime.max.replace(tzinfo=UTC)
        for session in _sessions(truth, start, stop):
            begin, end = session[0][0], session[-1][1]
            if row["rule_set"] == "per-diem":
                for day in _dates(begin, end):
                    flowed = _within(session, *_bounds(day))
                    if flowed:
                        one = found[row["order_id"], day]
                        one.flowed += flowed
                        one.continuous |= end - begin >= timedelta(hours=24)
                continue
            one = found[row["order_id"], begin.astimezone(ZONE).date()]
            one.flowed += session
            begins = {piece[0] for piece in session}
            one.set_ups += [(truth, setup) for setup in truth.set_ups if setup.delivery in begins]
    return found


def _dates(start: datetime, stop: datetime) -> list[date]:
    first, last = start.astimezone(ZONE).date(), stop.astimezone(ZONE).date()
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def _bounds(day: date) -> Interval:
    midnights = (datetime(one.year, one.month, one.day, tzinfo=ZONE) for one in (day, day + timedelta(days=1)))
    start, stop = (midnight.astimezone(UTC) for midnight in midnights)
    return start, stop


def _units(minutes: int, further_site: bool) -> dict[str, int]:
    if minutes < 16:
        return {"96372": 1} if minutes else {}
    return {"96369": 1} | ({"96370": (minutes - 31) // 60} if minutes >= 91 else {}) | ({"96371": 1} if further_site else {})


# --- lakes -----------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Figures:
    """What a run found: counts, seconds by step, the amendments in words, and what must not be."""

    counts: dict[str, int] = field(default_factory=dict)
    held: Counter[str] = field(default_factory=Counter)
    took_s: dict[str, float] = field(default_factory=dict)
    amendments: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def text(self) -> str:
        """All of it to read."""
        return "\n".join(
            [
                ", ".join(f"{name} {count}" for name, count in self.counts.items()),
                "encounters and days held, by code: " + ", ".join(f"{code} {n}" for code, n in self.held.most_common()),
                "seconds: " + ", ".join(f"{name} {took:.1f}" for name, took in self.took_s.items()),
                f"{len(self.amendments)} amendments:",
                *(f"  {n} x {kind}" for kind, n in self.kinds.most_common()),
                *self.amendments,
                f"{len(self.wrong)} violations",
                *(f"  {one}" for one in self.wrong),
            ]
        )


@dataclass(slots=True)
class _Run:
    """A month on its two lakes."""

    of: Month
    root: Path
    figures: Figures

    def timed(self, name: str, step: Callable[[], Any]) -> Any:
        """What a step gives; its seconds go to the figures."""
        begun = time.monotonic()
        found = step()
        self.figures.took_s[name] = time.monotonic() - begun
        return found

    def night(self, name: str, lake: Path, wanted: Callable[[Pump, int], bool]) -> None:
        """The wanted captures arrive, and then it is night."""
        night.open_lake(lake)
        orders = self.root / "orders.csv"
        orders.write_text(_written(self.of.orders))
        with Store(lake / "store.sqlite") as store:
            self.timed(f"{name}, store", lambda: store.append(self.of.arrivals(wanted)))
        self.timed(f"{name}, night", lambda: night.nightly(lake, orders_file=orders))

    def take(self, name: str, lake: Path) -> int:
        """Billing takes what is ready; how many rows that is. None of them is more than truly flowed."""
        taken = self.timed(name, lambda: review.release(lake, by="month"))
        if taken is None:
            return 0
        worth = due(self.of)
        rows = [row for row in _lines(lake) if row["release_id"] == taken.release_id and row["state"] == "released"]
        for row in rows:
            true = worth.get((row["order_id"], row["service_date"]))
            flowed = true.minutes if true else 0
            if row["minutes"] > flowed + _allowed(flowed) or not flowed or (row["code"] == "S9326" and not (true and true.continuous)):
                self.figures.wrong.append(f"{name}: {_shown(row)} was ready, and {flowed} min flowed")
        return len(rows)


def run(of: Month, root: Path) -> Figures:
    """The month on the lakes `whole` and `late` of this folder, which must not hold any yet."""
    found = Figures()
    this = _Run(of, root, found)
    whole, late = root / "whole", root / "late"
    this.night("whole", whole, lambda pump, taken: True)
    found.counts |= {"pumps": len(of.pumps), "captures": sum(len(pump.captures) for pump in of.pumps.values())}
    found.counts |= {name: Lake.open(whole).read(name, night.CONSOLIDATED[name]).num_rows for name in ("events", "sessions", "setups")}
    _against_pumps(of, whole, found)
    lines = _lines(whole)
    for state in ("ready", "hold"):
        found.counts[f"lines {state}"] = sum(line["state"] == state for line in lines)
    found.held.update(code for _, codes in {line["encounter_id"]: line["reasons"] for line in lines}.items() for code in codes)
    _against_truth("whole", of, lines, found)

    end = of.nights[-1]
    this.night("the week is over", late, lambda pump, taken: taken <= end and not of.held_up(pump, taken))
    found.counts["released after the week"] = this.take("first release", late)
    this.night("the month is over", late, lambda pump, taken: taken > end)
    found.counts["released after the month"] = this.take("second release", late)
    found.counts["captures late"] = sum(of.held_up(pump, taken) for pump in of.pumps.values() for taken, _ in pump.captures)
    this.night("all is there", late, of.held_up)
    _against_whole(whole, late, found)
    standing = _standing(_lines(late))
    _against_truth("late", of, standing, found)
    _amendments(of, whole, late, found)
    return found


def _lines(lake: Path) -> list[_Row]:
    rows: list[_Row] = Lake.open(lake).read("lines", night.BILLED["lines"]).to_pylist()
    return rows


def _standing(lines: Iterable[_Row]) -> list[_Row]:
    """The lines without what is void."""
    lines = list(lines)
    void = {line["supersedes"] for line in lines if line["state"] == "void"}
    return [line for line in lines if line["state"] != "void" and key_of(line) not in void]


def _shown(line: Mapping[str, Any]) -> str:
    pumps = "+".join(pump.partition(":")[0] for pump in line["pump_ids"])
    return f"{line['order_id']} ({pumps}) {line['service_date']} {line['code'] or line['rule_set']} x{line['units']}, {line['minutes']} min"


def _against_pumps(of: Month, lake: Path, found: Figures) -> None:
    """Each pump infused as long as its log proves, within a minute and what its clock may be off, and no longer than truly; its set-ups."""
    rows: dict[str, dict[str, list[_Row]]] = {name: defaultdict(list) for name in ("intervals", "setups")}
    for name, mine in rows.items():
        for row in Lake.open(lake).read(name, night.CONSOLIDATED[name]).to_pylist():
            mine[row["pump_id"]].append(row)
    for pump, one in of.pumps.items():
        truth = one.truth
        pieces = [row for row in rows["intervals"][pump] if row["class"] == "infusing"]
        infused_s = sum(row["to_ms"] - row["from_ms"] for row in pieces) / 1000
        drift_s = 60 * (_allowed(int(truth.flowed_s) // 60) - 1)
        if abs(infused_s - truth.proved_s) > 60 + drift_s or infused_s > truth.flowed_s + len(pieces) + drift_s:
            found.wrong.append(f"{pump}: {infused_s} s are infusing, {truth.proved_s} s are proved, {truth.flowed_s} s flowed")
        shown = Counter((row["pump_setup"], row["new_site"]) for row in rows["setups"][pump])
        if shown != (wanted := Counter((setup.pump_setup, setup.new_site) for setup in truth.set_ups)):
            found.wrong.append(f"{pump}: set-ups are {shown}, not {wanted}")


def _against_truth(name: str, of: Month, lines: Sequence[_Row], found: Figures) -> None:
    """Where time is not in doubt minutes are true to one; what is ready, or taken and standing, is due; what is due has one line."""
    worth = due(of)
    order_rows = {row["order_id"]: row for row in of.orders}
    there: dict[tuple[str, date], list[_Row]] = defaultdict(list)
    for line in lines:
        there[line["order_id"], line["service_date"]].append(line)
    for key, rows in there.items():
        codes = Counter(row["code"] for row in rows)
        if max(codes.values()) > 1:
            found.wrong.append(f"{name}: {_shown(rows[0])} is there {max(codes.values())} times")
        true = worth.get(key, Due())
        minutes = rows[0]["minutes"]
        if DOUBTED.isdisjoint(code for row in rows for code in row["reasons"]) and abs(minutes - true.minutes) > _allowed(true.minutes):
            found.wrong.append(f"{name}: {_shown(rows[0])} is {rows[0]['state']}, {true.minutes} min are due")
        ready = [row for row in rows if row["state"] != "hold"]
        if not ready:
            continue
        wanted = {"": 0}
        if ready[0]["rule_set"] == "cpt-9637x":
            wanted = _units(minutes, true.further_site)
        elif ready[0]["rule_set"] == "per-diem":
            wanted = {"S9326" if true.continuous else "S9327": 1}
        if wanted != (given := {row["code"]: row["units"] for row in ready}) or len(ready) != len(rows):
            found.wrong.append(f"{name}: {_shown(ready[0])} has {given} ready, {wanted} are due")
    for (order, day), true in worth.items():
        row = order_rows[order]
        if row["route"] == "SC" and not row["drug"].startswith("insulin") and true.minutes > 1 and (order, day) not in there:
            found.wrong.append(f"{name}: {order} {day}: {true.minutes} min flowed, and there is no line")


# --- late --------------------------------------------------------------------------------------------------------------------------


def _against_whole(whole: Path, late: Path, found: Figures) -> None:
    """Where no release touches them all tables are the same; what was released stands or is amended, and nothing of it is ready."""
    one, other = digests(whole), digests(late)
    found.wrong += [f"{name} differs" for name in one if one[name] != other[name] and name not in night.BILLED]
    found.wrong += ["days differs"] if one["days"] != other["days"] else []
    lines, now = _lines(whole), _lines(late)
    touched = {line["encounter_id"] for line in now if line["release_id"] or line["supersedes"] or AMENDED in line["reasons"]}
    if [line for line in lines if line["encounter_id"] not in touched] != [line for line in now if line["encounter_id"] not in touched]:
        found.wrong.append("lines that no release touches differ")
    items = [Lake.open(lake).read("worklist", night.BILLED["worklist"]).to_pylist() for lake in (whole, late)]
    ids = {line["line_id"] for line in now if line["encounter_id"] in touched}
    days = {(line["order_id"], line["service_date"]) for line in now if line["encounter_id"] in touched}
    left = [
        [item for item in part if item["line_id"] not in ids and (item["order_id"], item["service_date"]) not in days] for part in items
    ]
    if left[0] != left[1]:
        found.wrong.append("worklist items that no release touches differ")
    _pairs(lines, now, touched, found)


def _pairs(lines: Sequence[_Row], now: Sequence[_Row], touched: Collection[str], found: Figures) -> None:
    true = {line["line_id"]: line for line in lines}
    voids = {line["supersedes"] for line in now if line["state"] == "void"}
    for line in now:
        whole = true.get(line["line_id"])
        if line["state"] == "released" and key_of(line) not in voids:
            if whole is None or whole["state"] != "ready" or figures(whole) != figures(line):
                found.wrong.append(f"{_shown(line)} stands as released, and is not what all captures give")
        elif line["state"] in ("ready", "hold") and line["encounter_id"] in touched:
            if line["state"] == "ready" or AMENDED not in line["reasons"]:
                found.wrong.append(f"{_shown(line)} is {line['state']} behind a release")
            if whole is None or figures(whole) != figures(line):
                found.wrong.append(f"{_shown(line)} amends, and is not what all captures give")
    missing = true.keys() - {line["line_id"] for line in now}
    found.wrong += [f"{_shown(true[line_id])} is not there behind a release" for line_id in sorted(missing)]
    for before, after in pairwise(sorted(_standing(now), key=lambda line: line["line_id"])):
        if before["line_id"] == after["line_id"]:
            found.wrong.append(f"{_shown(before)} stands twice")


def _amendments(of: Month, whole: Path, late: Path, found: Figures) -> None:
    """Each amendment in words: what was taken, what there is now, and why."""
    lake = Lake.open(late)
    reasons = {line["line_id"]: line["reasons"] for line in _lines(whole)}
    taken = {release.release_id: f"release {number}" for number, release in enumerate(people.releases(lake), 1)}
    pumps: dict[str, list[Pump]] = defaultdict(list)
    for row in of.orders:
        pumps[row["patient_id"]].append(of.pumps[row["pump_id"]])
    for row in review.amendments(lake).to_pylist():
        mine = pumps[row["patient_id"]]
        own = reasons.get(row["line_id"], [])
        kind = _what(row) + (f", now held by {'+'.join(own)}" if own else "")
        why = "its log ended there when billing took it"
        if any(pump.withheld for pump in mine):
            why = "downloads did not happen" if all(pump.asked for pump in mine if pump.withheld) else "messages came late"
        was = "nothing" if row["released"] is None else f"{row['released_code']} x{row['released_units']}, {row['released_minutes']} min"
        now = "nothing" if row["line_id"] is None else f"{row['code']} x{row['units']}, {row['minutes']} min"
        families = "+".join(pump.family for pump in mine)
        day = row["released_date"] or row["service_date"]
        found.kinds[f"{kind}: {why}"] += 1
        found.amendments.append(
            f"  {row['order_id']} ({families}) {day}, {taken.get(row['release_id'], 'not taken')}: {was} -> {now} ({kind}; {why})"
        )


def _what(row: Mapping[str, Any]) -> str:
    if row["released"] is None:
        return "a line was added"
    if row["line_id"] is None:
        return "a line is gone"
    names = ("code", "units", "minutes")
    changed = [name for name in names if row[name] != row[f"released_{name}"]]
    changed += ["date"] if row["service_date"] != row["released_date"] else []
    more = " (more)" if (row["minutes"] or 0) > (row["released_minutes"] or 0) else " (less)" if "minutes" in changed else ""
    return (" and ".join(changed) or "nothing") + more + " changed"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.month", description="A simulated month of pumps through the night.")
    parser.add_argument("--pumps", type=int, default=200)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lake", type=Path, help="an empty folder for the two lakes (default: one that is removed)")
    said = parser.parse_args(arguments)
    if said.days < 21:
        parser.error("--days must be 21 or more: the third week is withheld.")
    if said.lake and said.lake.exists() and any(said.lake.iterdir()):
        parser.error(f"{said.lake} is not empty.")
    begun = time.monotonic()
    of = month(said.pumps, said.days, said.seed, nights=range(14, 21), withheld=lambda number: number % 5 == 0)
    made_s = time.monotonic() - begun
    with tempfile.TemporaryDirectory() as folder:
        root = said.lake or Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        figures = run(of, root)
    print(f"seed {said.seed}, {said.pumps} pumps over {said.days} days, made in {made_s:.0f} s")
    print(figures.text())
    return int(bool(figures.wrong))


if __name__ == "__main__":
    sys.exit(main())
