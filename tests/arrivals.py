"""Captures as they may arrive, on a real lake: `python -m tests.arrivals --count N --seed S` (docs/semantics.md §7.2).

A world is some small pumps of several families, patients whose orders change hands between them, and all captures. A schedule lets these
arrive in another order, split at their records, pages or messages, again, and up to 14 days late, with nights in between, some of them
broken off, some under an older orders file. After the last night every derived table has the bytes that it has where all came at once:
the SHA-256 of its files. Not so the table of records, and the counts of what arrived in the table of pumps.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path

from devices.contract import Capture
from devices.errors import InputError
from ingest import night
from ingest.lake import Lake
from ingest.store import Arrival, Store
from simulators.therapy import therapy
from tests import conformance
from transforms.orders import COLUMNS

EACH_WORLD = 20
"""So many schedules are tried on one world."""
START = datetime(2026, 3, 7, 6, tzinfo=UTC)
ARRIVES = datetime(2026, 3, 10, tzinfo=UTC)
LATE_DAYS = 14
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where the lakes are: what a disk does is not the matter here, and thousands of lakes wait for it long."""
AS_ARRIVED = ("captures", "records", "repeats", "faults")
"""Columns of the table of pumps that count what arrived."""


@dataclass(frozen=True)
class World:
    """All captures of some pumps, the orders in force and those of a while before, and what derives of it at once."""

    captures: tuple[Capture, ...]
    orders: str
    older: str
    at_once: dict[str, str]
    families: frozenset[str]
    lines: int


def _pump(rng: random.Random, number: int) -> list[Capture]:
    """The captures of one pump that was read up to three times."""
    while True:
        family = rng.choice(conformance.FAMILIES)
        script = therapy(rng.choice(("sc_continuous", "sc_continuous", "insulin_like")), rng.randrange(10**6), START, rng.choice((1, 2)))
        if conformance.can_perform(family, script):
            break
    known = conformance.parameters(family)
    options = {"serial": f"{known['serial'].default[:-2]}{number:02d}"} | ({"batch": rng.choice((12, 30))} if "batch" in known else {})
    lasts = (script.end - script.start).total_seconds()
    captures: list[Capture] = []
    for at in (*sorted(rng.uniform(0.2, 0.9) * lasts for _ in range(rng.choice((0, 1, 2)))), lasts):
        played = conformance.play(family, script, number, at=script.start + timedelta(seconds=at), known=captures, **options)
        captures += played.captures
    return captures


def _orders(rng: random.Random, pumps: Sequence[str]) -> tuple[str, str]:
    """The orders of these pumps, one of which changes hands, and an older file of them."""
    usual = {"drug": "hydromorphone", "route": "SC", "payer": "payer-a", "rule_set": "cpt-9637x", "tz": "America/New_York"}
    rows = []
    for number, pump in enumerate(pumps):
        patient = rng.randint(0, number)
        row = {**usual, "pump_id": pump, "patient_id": f"pt-{patient}", "order_id": f"ord-{number}", "start": "2026-01-01T00:00:00Z"}
        if number == 0 or rng.random() < 0.3:
            turns = (START + timedelta(seconds=rng.randint(0, 2 * 86_400))).isoformat().replace("+00:00", "Z")
            row["stop"] = turns
            rows.append({**row, "patient_id": f"pt-{patient + 50}", "order_id": f"ord-{number + 50}", "start": turns, "stop": ""})
        rows.append(row)
    if rng.random() < 0.3:
        rows[-1]["rule_set"] = "per-diem"
    older = [{**row, "payer": "payer-b"} if rng.random() < 0.5 else row for row in rows]
    return _file(rows), _file(older[: rng.randint(1, len(older))])


def _file(rows: Iterable[dict[str, str]]) -> str:
    return "\n".join([",".join(COLUMNS), *(",".join(row.get(column, "") for column in COLUMNS) for row in rows)]) + "\n"


@lru_cache(maxsize=1)
def world(seed: int, number: int) -> World:
    """The world of this number."""
    rng = random.Random(f"world:{seed}:{number}")
    captures = [one for pump in range(rng.choice((2, 3, 4))) for one in _pump(rng, pump)]
    pumps = sorted({one.pump_id for one in captures})
    orders, older = _orders(rng, pumps)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        lake = Path(folder) / "lake"
        night.open_lake(lake, buckets=2)
        _arrive(lake, [(one, ARRIVES) for one in captures])
        _night(lake, orders)
        lines = Lake.open(lake).read("lines", night.BILLED["lines"]).num_rows
        return World(tuple(captures), orders, older, digests(lake), frozenset(one.family for one in captures), lines)


def digests(lake: Path) -> dict[str, str]:
    """SHA-256 of every derived table: of the names and bytes of its files; of the pumps, of what does not count what arrived."""
    found = {}
    for name in (*night.CONSOLIDATED, *night.BILLED):
        if name in ("records", "pumps"):
            continue
        hashed = hashlib.sha256()
        for path in sorted((lake / name).rglob("*.parquet")):
            hashed.update(path.relative_to(lake).as_posix().encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        found[name] = hashed.hexdigest()
    pumps = Lake.open(lake).read("pumps", night.CONSOLIDATED["pumps"]).drop_columns(list(AS_ARRIVED)).sort_by("pump_id")
    found["pumps"] = hashlib.sha256(repr(pumps.to_pylist()).encode()).hexdigest()
    return found


# --- schedules --------------------------------------------------------------------------------------------------------------------------


@dataclass
class Schedule:
    """Captures with the time at which each arrives, in that order, and after how many of them there is a night of which kind."""

    arrivals: list[tuple[Capture, datetime]]
    nights: list[tuple[int, str]]
    met: Counter[str] = field(default_factory=Counter)


KINDS = ("whole", "whole", "of the day", "broken off after the store", "broken off before the lines", "under older orders")


def schedule(rng: random.Random, there: World) -> Schedule:
    """How the captures of a world arrive."""
    met: Counter[str] = Counter()
    captures: list[Capture] = []
    for one in there.captures:
        parts = _split(rng, one) if rng.random() < 0.4 else [one]
        met["split"] += len(parts) > 1
        captures += [one, *parts] if len(parts) > 1 and rng.random() < 0.2 else parts
    again = rng.sample(captures, rng.randint(0, len(captures) // 2))
    met["repeated"] += bool(again)
    late = rng.choice((0, 1, LATE_DAYS))
    arrivals = [(one, ARRIVES + timedelta(days=rng.randint(0, late), seconds=rng.randrange(86_400))) for one in (*captures, *again)]
    arrivals.sort(key=lambda arrival: arrival[1])
    met["a day and more late"] += late > 0
    met["14 days late"] += any(at - ARRIVES >= timedelta(days=LATE_DAYS) for _, at in arrivals)
    if rng.random() < 0.3:
        rng.shuffle(arrivals)
        met["the clocks of receipt out of order"] += 1
    places = sorted(rng.randrange(len(arrivals) + 1) for _ in range(rng.choice((0, 1, 1, 2, 3))))
    nights = [(place, rng.choice(KINDS)) for place in places]
    met.update(f"a night {kind}" for _, kind in nights)
    met["no night in between"] += not nights
    return Schedule(arrivals, nights, met)


def _split(rng: random.Random, capture: Capture) -> list[Capture]:
    """The capture at borders of its family, where it has any."""
    adapter = conformance.ADAPTERS[capture.family]
    if not hasattr(adapter, "split"):
        return [capture]
    try:
        return adapter.split(capture, max(200, int(len(capture.data) * rng.uniform(0.2, 0.9))))
    except InputError:
        return [capture]


def _arrive(lake: Path, arrivals: Iterable[tuple[Capture, datetime]]) -> None:
    with Store(lake / "store.sqlite") as store:
        store.append((one, Arrival(received_at=at, via="test")) for one, at in arrivals)


def _night(lake: Path, orders: str, kind: str = "whole", day: datetime | None = None) -> None:
    """A night, or the part of one that is not broken off, by the steps that the Airflow tasks take."""
    path = lake.parent / "orders.csv"
    path.write_text(orders)
    night.take_orders(lake, path)
    night.drain(lake)
    if kind == "broken off after the store":
        return
    for bucket in night.touched(lake, day.date() if day and kind == "of the day" else None):
        night.consolidate(lake, bucket)
    if kind == "broken off before the lines":
        return
    for bucket in night.buckets(lake):
        night.bill(lake, bucket)


def played(there: World, plan: Schedule) -> dict[str, str]:
    """What the lake holds in the end."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        lake = Path(folder) / "lake"
        night.open_lake(lake, buckets=2)
        done = 0
        for place, kind in plan.nights:
            _arrive(lake, plan.arrivals[done:place])
            done = place
            _night(lake, there.older if kind == "under older orders" else there.orders, kind, plan.arrivals[max(0, place - 1)][1])
        _arrive(lake, plan.arrivals[done:])
        _night(lake, there.orders)
        return digests(lake)


@dataclass(slots=True)
class Figures:
    """What a run found."""

    schedules: int = 0
    arrivals: int = 0
    worlds: int = 0
    lines: int = 0
    families: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[int, list[str]]] = field(default_factory=list)

    def text(self) -> str:
        """All of it to read."""
        met = ", ".join(f"{name} {self.met[name]}" for name in sorted(self.met))
        families = ", ".join(f"{name} {self.families[name]}" for name in sorted(self.families))
        return (
            f"{self.schedules} schedules with {self.arrivals} arrivals on {self.worlds} worlds ({self.lines} lines; {families}); "
            f"{len(self.wrong)} gave other tables\nmet in so many schedules: {met}"
        )


def plan_of(seed: int, number: int) -> tuple[World, Schedule]:
    """The schedule of this number, and its world."""
    there = world(seed, number // EACH_WORLD)
    return there, schedule(random.Random(f"schedule:{seed}:{number}"), there)


def run(numbers: Iterable[int], seed: int, *, stop: int = 1) -> Figures:
    """Plays these schedules, each made from its own number; ends at so many that give other tables."""
    figures = Figures()
    seen: set[int] = set()
    for number in numbers:
        there, plan = plan_of(seed, number)
        if number // EACH_WORLD not in seen:
            seen.add(number // EACH_WORLD)
            figures.worlds += 1
            figures.lines += there.lines
            figures.families.update(there.families)
        found = played(there, plan)
        figures.schedules += 1
        figures.arrivals += len(plan.arrivals)
        figures.met.update({name: int(times > 0) for name, times in plan.met.items()})
        differ = [name for name, digest in there.at_once.items() if found[name] != digest]
        if differ:
            figures.wrong.append((number, differ))
            if len(figures.wrong) >= stop:
                break
    return figures


def smallest(there: World, plan: Schedule) -> Schedule:
    """The schedule with all left out that the finding does not need; each capture still arrives."""

    def wrong(less: Schedule) -> bool:
        return played(there, less) != there.at_once

    changed = True
    while changed:
        changed = False
        for less in _smaller(there, plan):
            if wrong(less):
                plan, changed = less, True
                break
    return plan


def _smaller(there: World, plan: Schedule) -> Iterator[Schedule]:
    for n in range(len(plan.nights)):
        yield Schedule(plan.arrivals, plan.nights[:n] + plan.nights[n + 1 :])
    at_once = [(one, ARRIVES) for one in there.captures]
    if plan.arrivals != at_once and len(plan.nights) == 0:
        yield Schedule(at_once, [])
    shas = Counter(one.sha256 for one, _ in plan.arrivals)
    for n, (one, _) in enumerate(plan.arrivals):
        if shas[one.sha256] > 1:
            nights = [(place - (place > n), kind) for place, kind in plan.nights]
            yield Schedule(plan.arrivals[:n] + plan.arrivals[n + 1 :], nights)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.arrivals", description="Plays schedules of arrival on a real lake.")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first schedule")
    parser.add_argument("--stop", type=int, default=1, help="stop at so many that give other tables")
    said = parser.parse_args(arguments)
    begun = time.monotonic()
    figures = run(range(said.first, said.first + said.count), said.seed, stop=said.stop)
    print(f"seed {said.seed}, {time.monotonic() - begun:.0f} s: {figures.text()}")
    for number, differ in figures.wrong:
        there, plan = plan_of(said.seed, number)
        small = smallest(there, plan)
        print(f"\n{', '.join(differ)} differ: python -m tests.arrivals --seed {said.seed} --first {number} --count 1")
        print(f"as small as can be: nights {small.nights}, arrivals")
        print("\n".join(f"  {at:%Y-%m-%d %H:%M} {one.pump_id} {one.part or ''} {one.sha256[:12]}" for one, at in small.arrivals))
    return int(bool(figures.wrong))


if __name__ == "__main__":
    sys.exit(main())
