"""Every inner record left out, one at a time: `python -m tests.leave_one_out --logs N --seed S` (docs/semantics.md §7.5).

Leaving out any one record between the first and the last of a contiguous log never makes a line ready that was not, nor a ready line
larger. The logs are the random encounters of tests/oracle.py whose numbers leave no holes, with all the faults in them, and the
captured ones where PUMPLEDGER_FIXTURES has them. A clock that was read behind the record that is left out was read behind the one
before it.

The text knows cases that are otherwise, and each takes a second fault (docs/decisions/0012): a cut that a start settles reaches only to
its first record, for a start shows that nothing ran before; in a log that also lacks a stop, or of a pump that runs two of the sources
that settle at once, this need not be so, and a line of a later date can then be ready. And of two anchors that contradict each other
nothing between them is known, but where the record that is left out lies between, each has a stretch of its own that it dates, and the
hole reaches the dates of its two sides alone. A session without UTC stands on the date that its clock printed; of a clock that was wrong
by days that holds a line which is another's, until the record that shows this session is left out. And what holds a line because another
order of the patient infused on that date is known only as long as that is proved: of two orders the other one's doubts reach none of this
one's lines (§6). Such lines are counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from devices import canonical
from devices.contract import Capture
from devices.errors import InputError
from ingest.night import rule_sets
from tests import kit, oracle
from tests.conftest import ROOT
from transforms.orders import COLUMNS, Orders, parse

Record = tuple[str, int, int]
"""Pump, log epoch, number."""
Key = tuple[str, ...]
"""Patient, order, service date and code of a line."""
Lines = Mapping[Key, tuple[str, int, frozenset[str]]]
"""State, units and reasons of each line."""
SETTLING = frozenset({"primary", "basal", "intermittent"})
"""The sources whose start, stop or completion settles what is behind a cut."""
OF_OTHERS = frozenset({"SECOND_ORDER_SAME_DAY", "IV_SAME_ENCOUNTER", "OVERLAPPING_PUMPS"})
"""What holds a line for what another order or pump of the patient is proved to have infused."""


@dataclass(frozen=True)
class Case:
    """The captures of the pumps of some patients, and their orders; `name`: how to have it again."""

    name: str
    captures: tuple[oracle.Taken, ...]
    orders: Orders

    def logs(self) -> dict[str, list[tuple[int, int]]]:
        """Epoch and number of the records of each pump, in order; only of logs whose numbers leave no holes."""
        found: dict[str, set[tuple[int, int]]] = {}
        for taken in self.captures:
            told = {(_epoch(taken), line["seq"]) for line in taken.lines if isinstance(line, dict)}
            found.setdefault(taken.header["pump_id"], set()).update(told)
        only_ordered = {taken.header["pump_id"] for taken in self.captures if not taken.header.get("contiguous", True)}
        return {pump: sorted(mine) for pump, mine in found.items() if pump not in only_ordered}

    def inner(self) -> list[Record]:
        """The records between the first and the last of each log."""
        return [(pump, epoch, number) for pump, mine in self.logs().items() for epoch, number in mine[1:-1]]

    def without(self, record: Record | None) -> list[Capture]:
        """The captures as they would be if this record had never been read."""
        if record is None:
            return [taken.capture() for taken in self.captures]
        pump, *place = record
        mine = self.logs()[pump]
        before = mine[bisect_left(mine, tuple(place)) - 1]
        return [
            _without(taken, tuple(place), before).capture() if taken.header["pump_id"] == pump else taken.capture()
            for taken in self.captures
        ]


def _epoch(taken: oracle.Taken) -> int:
    return int(taken.header.get("log_epoch", 0))


def _without(taken: oracle.Taken, place: tuple[int, ...], before: tuple[int, int]) -> oracle.Taken:
    epoch, number = place
    if _epoch(taken) != epoch:
        return taken
    header, anchor = dict(taken.header), taken.header.get("anchor")
    last = taken.lines[-1] if taken.lines else None
    behind = None if anchor is None else anchor.get("after_seq", last["seq"] if isinstance(last, dict) else None)
    if behind == number:
        del header["anchor"]
        if before[0] == epoch:
            header["anchor"] = {**anchor, "after_seq": before[1]}
    return oracle.Taken(header, tuple(line for line in taken.lines if not isinstance(line, dict) or line["seq"] != number))


def random_case(seed: int, number: int, rules: str = "cpt-9637x") -> Case:
    """A random encounter with a log whose numbers leave no holes, and its orders, billed by this rule set."""
    for again in count():
        encounter = oracle.random_encounter(random.Random(f"leave-one-out:{seed}:{number}:{again}"))
        name = f"--seed {seed} --first {number} --logs 1 --no-fixtures --rules {rules}"
        case = Case(name, encounter.captures, kit.orders(*encounter.orders, rule_set=rules))
        if case.inner():
            return case
    raise AssertionError("unreachable")


def captured_cases(fixtures: Path) -> Iterator[Case]:
    """The captured canonical logs, those together whose pumps are of one patient."""
    rows = [dict(zip(COLUMNS, line.split(","), strict=True)) for line in (fixtures / "orders.csv").read_text().splitlines()[1:]]
    by_pump: dict[str, list[oracle.Taken]] = {}
    for path in sorted(fixtures.glob("logs/*.jsonl")):
        for capture in canonical.read_files([(path.name, path.read_bytes())]):
            header, *lines = capture.data.strip().split(b"\n")
            by_pump.setdefault(capture.pump_id, []).append(oracle.Taken(json.loads(header), tuple(_read(line) for line in lines)))
    for pumps in _together([(row["pump_id"], row["patient_id"]) for row in rows]):
        mine = [row for row in rows if row["pump_id"] in pumps]
        text = "\n".join([",".join(COLUMNS), *(",".join(row[column] for column in COLUMNS) for row in mine)]) + "\n"
        captures = tuple(taken for pump in sorted(pumps) for taken in by_pump.get(pump, ()))
        if captures:
            yield Case(f"the captured logs of {', '.join(sorted(pumps))}", captures, parse(text, rule_sets()))


def _read(line: bytes) -> oracle.Line:
    try:
        told = json.loads(line)
    except ValueError:
        return line
    return told if isinstance(told, dict) and isinstance(told.get("seq"), int) else line


def _together(links: Iterable[tuple[str, str]]) -> list[set[str]]:
    """The pumps that share patients, directly or by way of others."""
    groups: list[tuple[set[str], set[str]]] = []
    for pump, patient in links:
        mine = [group for group in groups if pump in group[0] or patient in group[1]]
        joined = ({pump}.union(*(group[0] for group in mine)), {patient}.union(*(group[1] for group in mine)))
        groups = [group for group in groups if group not in mine] + [joined]
    return [pumps for pumps, _ in groups]


def lines_of(given: kit.Given) -> Lines:
    """All lines by patient, order, service date and code."""
    return {_key(line): (line["state"], line["units"], frozenset(line["reasons"])) for line in given.rows("lines")}


def _key(line: Mapping[str, Any]) -> Key:
    return tuple(str(line[name]) for name in ("patient_id", "order_id", "service_date", "code"))


def grown(whole: Lines, less: Lines) -> Iterator[Key]:
    """The lines that are ready, and were not or are larger than they were."""
    for key, (state, units, _) in less.items():
        was, before, _ = whole.get(key, ("none", 0, frozenset()))
        if state == "ready" and (was != "ready" or units > before):
            yield key


def lacks_a_stop(given: kit.Given) -> bool:
    """Whether a log has the fault by which a hole that a start settles may make a line ready."""
    return any("NO_STOP" in row["flags"] for row in given.rows("sessions"))


def with_a_printed_date(given: kit.Given) -> set[Key]:
    """The lines that rest on a session without UTC: it stands on the date that its clock printed, whenever it was."""
    without = {row["session_id"] for row in given.rows("sessions") if row["start"] is None}
    return {_key(line) for line in given.rows("lines") if without.intersection(line["session_ids"])}


def runs_two_at_once(given: kit.Given) -> bool:
    """Whether a pump runs two of the sources that settle at once: a start, a stop or a completion of one tells nothing of the other."""
    stretch, running, known = None, set[str](), set[str]()
    for row in given.rows("events"):
        if row["stretch"] != stretch:
            stretch, running, known = row["stretch"], set(), set()
        source, kind = row["source"], row["kind"]
        if kind in oracle.HALTS or row["stops_delivery"] or (kind == "delivery_stop" and source is None):
            running, known = set(), set(SETTLING)
        elif source in SETTLING and kind == "delivery_start":
            running.add(source)
        elif source in SETTLING and kind in ("delivery_stop", "delivery_complete"):
            if source not in known:
                running.add(source)
            if len(running) > 1:
                return True
            running.discard(source)
        if source in SETTLING:
            known.add(source)
        if len(running) > 1:
            return True
    return False


def contradicts_itself(given: kit.Given) -> bool:
    """Whether two anchors of a stretch contradict each other: UTC is known of some of its records, and of others not."""
    known: dict[str | None, set[bool]] = {}
    for row in given.rows("events"):
        known.setdefault(row["stretch"], set()).add(row["time"] is not None)
    return any(len(both) == 2 for stretch, both in known.items() if stretch is not None)


@dataclass(slots=True)
class Figures:
    """What a run found."""

    cases: int = 0
    logs: int = 0
    left_out: int = 0
    ready: int = 0
    hold: int = 0
    now_held: int = 0
    apart: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, Record, str]] = field(default_factory=list)

    def add(self, case: Case) -> None:
        """Leaves out each inner record of a case."""
        given = kit.give(*case.without(None), known=case.orders)
        whole = lines_of(given)
        unended, torn, double = lacks_a_stop(given), contradicts_itself(given), runs_two_at_once(given)
        printed = with_a_printed_date(given)
        states = [state for state, _, _ in whole.values()]
        self.cases += 1
        self.logs += len(case.logs())
        self.ready += states.count("ready")
        self.hold += states.count("hold")
        for record in case.inner():
            less = lines_of(kit.give(*case.without(record), known=case.orders))
            self.left_out += 1
            self.now_held += any(state == "ready" and less.get(key, ("",))[0] == "hold" for key, (state, _, _) in whole.items())
            for key in grown(whole, less):
                if unended:
                    self.apart["in a log that lacks a stop"] += 1
                elif double:
                    self.apart["of a pump that runs two sources at once"] += 1
                elif torn and key in whole and whole[key][0] == "hold" and whole[key][2] == {"CLOCK_UNCERTAIN"}:
                    self.apart["in a log whose anchors contradict each other"] += 1
                elif key in printed and whole[key][0] == "hold":
                    self.apart["that a session without UTC held, by the date that its clock printed"] += 1
                elif key in whole and whole[key][0] == "hold" and whole[key][2] <= OF_OTHERS:
                    self.apart["that only another order or pump of the patient held"] += 1
                else:
                    self.wrong.append((case.name, record, f"{' '.join(key)}: {whole.get(key)} → {less[key]}"))

    def text(self) -> str:
        """All of it to read."""
        apart = ", ".join(f"{self.apart[name]} {name}" for name in sorted(self.apart)) or "none"
        return (
            f"{self.logs} logs in {self.cases} cases with {self.ready} lines ready and {self.hold} on hold; "
            f"{self.left_out} records left out, {self.now_held} times a ready line was held by that; "
            f"{len(self.wrong)} lines became ready or larger; apart: {apart}"
        )


def run(cases: Iterable[Case], *, stop: int = 1) -> Figures:
    """Leaves out every inner record of these cases; ends behind the case with which so many findings are reached."""
    figures = Figures()
    for case in cases:
        figures.add(case)
        if len(figures.wrong) >= stop:
            break
    return figures


def random_cases(logs: int, seed: int, first: int = 0, rules: str = "cpt-9637x") -> Iterator[Case]:
    """Random cases with so many logs or one more."""
    found = 0
    for number in count(first):
        if found >= logs:
            return
        case = random_case(seed, number, rules)
        found += len(case.logs())
        yield case


def smallest(case: Case, record: Record) -> tuple[Case, Record]:
    """The case with all left out that the finding does not need."""

    def wrong(less: Case) -> bool:
        if record not in less.inner():
            return False
        try:
            given = kit.give(*less.without(None), known=less.orders)
            return not (lacks_a_stop(given) or runs_two_at_once(given)) and any(
                grown(lines_of(given), lines_of(kit.give(*less.without(record), known=less.orders)))
            )
        except (ValueError, InputError):
            return False

    changed = True
    while changed:
        changed = False
        for less in _smaller(case):
            if wrong(less):
                case, changed = less, True
                break
    return case, record


def _smaller(case: Case) -> Iterator[Case]:
    captures = case.captures
    for n in range(len(captures)):
        yield Case(case.name, captures[:n] + captures[n + 1 :], case.orders)
    for n, taken in enumerate(captures):
        for k in range(len(taken.lines)):
            # from an end: within, it would be a second hole
            if k in (0, len(taken.lines) - 1):
                less = oracle.Taken(taken.header, taken.lines[:k] + taken.lines[k + 1 :])
                yield Case(case.name, (*captures[:n], less, *captures[n + 1 :]), case.orders)
        for k, line in enumerate(taken.lines):
            if isinstance(line, dict) and line["kind"] != "other":
                plain = {"seq": line["seq"], "pump_time": line["pump_time"], "kind": "other"}
                less = oracle.Taken(taken.header, (*taken.lines[:k], plain, *taken.lines[k + 1 :]))
                yield Case(case.name, (*captures[:n], less, *captures[n + 1 :]), case.orders)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.leave_one_out", description="Leaves out every inner record of many logs.")
    parser.add_argument("--logs", "--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first random encounter")
    parser.add_argument("--rules", default="cpt-9637x", choices=sorted(rule_sets()), help="the rule set that bills the random encounters")
    parser.add_argument("--no-fixtures", action="store_true", help="leave the captured logs alone")
    parser.add_argument("--stop", type=int, default=1, help="stop at so many findings")
    said = parser.parse_args(arguments)
    begun = time.monotonic()
    parts = [("random", random_cases(said.logs, said.seed, said.first, said.rules))]
    folder = Path(os.environ.get("PUMPLEDGER_FIXTURES", ROOT.parent / "shared" / "fixtures")) / "canonical"
    if not said.no_fixtures and folder.is_dir():
        parts.append(("captured", captured_cases(folder)))
    found = False
    for name, cases in parts:
        figures = run(cases, stop=said.stop)
        print(f"{name}, seed {said.seed}, {time.monotonic() - begun:.0f} s: {figures.text()}", flush=True)
        for case_name, record, what in figures.wrong:
            print(f"\n{what}\nwithout {record}: python -m tests.leave_one_out {case_name}")
        if figures.wrong and name == "random":
            case_name, record, _ = figures.wrong[0]
            small, record = smallest(random_case(said.seed, int(case_name.split()[3]), said.rules), record)
            print(f"as small as can be, without {record}:", *(taken.capture().data.decode() for taken in small.captures), sep="\n")
        found = found or bool(figures.wrong)
    return int(found)


if __name__ == "__main__":
    raise SystemExit(main())
