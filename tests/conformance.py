"""What every pump family must do: its simulator's bytes, over its own wire, through its adapter, against the truth of the script.

A family is found by its name in `devices` and `simulators`; nothing here knows one. What a log cannot tell, its simulator's
`truth.told` leaves out, and its SHEET says. `python -m tests.conformance` prints the capability pages of docs/pumps anew.
"""

from __future__ import annotations

import base64
import inspect
import json
import random
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pyarrow as pa

import simulators
from devices import dialogue
from devices.contract import (
    ANCHORS,
    CHECKS,
    EVENTS,
    FAULTS,
    HOLES,
    RECORDS,
    Adapter,
    AlarmClass,
    Anchor,
    Capture,
    Decoded,
    Kind,
    Log,
    Sheet,
    Source,
    Target,
    joined,
)
from devices.dialogue import Ask, Reply, Summary
from devices.errors import InputError, PumpledgerError
from devices.families import families
from ingest.hub import decode_cap
from simulators.link import PublishingDevice, SerialDevice
from simulators.therapy import Interval, Pen, Script, Step, Truth, therapy
from tests.conftest import ROOT
from tests.kit import head, orders
from transforms import sessions
from transforms.orders import Orders

ADAPTERS: Mapping[str, Adapter] = families()
FAMILIES = tuple(name for name in ADAPTERS if name in simulators.families())
"""The families that can be played."""
ASKED = tuple(name for name in FAMILIES if hasattr(ADAPTERS[name], "download"))
"""Those of them whose pumps are asked over a serial line."""
PAGES = ROOT / "docs" / "pumps"

ZONE = "America/New_York"
SPRING = datetime(2026, 3, 6, 12, tzinfo=UTC)
AUTUMN = datetime(2026, 10, 30, 12, tzinfo=UTC)
KINDS = ("sc_continuous", "pca", "demand_only", "insulin_like")
ANSWER = timedelta(milliseconds=20)
"""What a whole answer takes on the virtual clock."""

# --- scripts -------------------------------------------------------------------------------------------------------------------


def everything(start: datetime = SPRING) -> Script:
    """A day on which all happens that a sheet can speak of: fills of both targets, demands, a limit, alarms, KVO, clock changes."""
    pen = Pen(start, ZONE)
    pen.step(Kind.NEW_PATIENT).wait(minutes=1).step(Kind.SETTINGS_CHANGE, lockout_s=600).wait(minutes=1)
    pen.set_up().wait(minutes=2).run(0.5).wait(minutes=20)
    for _ in range(2):
        pen.demand().bolus(0.2, 36).wait(minutes=3).demand(denied="lockout").wait(minutes=15)
    pen.step(Kind.LIMIT_REACHED).wait(minutes=12).step(Kind.LIMIT_CLEARED).wait(minutes=30).rate(0.8).wait(minutes=40)
    pen.alarm(AlarmClass.LOW_RESERVOIR).wait(minutes=2).clear(AlarmClass.LOW_RESERVOIR).wait(minutes=9)
    pen.alarm(AlarmClass.OCCLUSION, stops=True).wait(minutes=4).clear(AlarmClass.OCCLUSION).wait(minutes=1).run(0.8).wait(minutes=35)
    pen.set_clock(pen.now.replace(tzinfo=None) - timedelta(hours=2, minutes=13)).wait(minutes=25).stop().wait(minutes=3)
    pen.reservoir().wait(minutes=3).prime(Target.TUBING, 0.09).wait(minutes=1).prime(Target.CANNULA, 0.002, programmed_ml=0.005)
    pen.wait(minutes=2).run(0.6).wait(minutes=31).complete().run(0.1, Source.KVO).wait(minutes=6).stop(Source.KVO).wait(minutes=5)
    pen.run(0.4).wait(minutes=50).stop().wait(minutes=7)
    return pen.script()


def short(start: datetime = SPRING) -> Script:
    """One new site, one delivery, one bolus, one pause: little to download."""
    pen = Pen(start, ZONE).set_up().wait(seconds=30).run(0.5).wait(minutes=40).bolus(0.2, 40).wait(minutes=10).stop().wait(minutes=5)
    return pen.run(0.5).wait(minutes=25).stop().wait(minutes=1).script()


def reset_clocks(start: datetime) -> Script:
    """Deliveries over which the clock is set by hand: by daylight saving, and by an odd time, forward and back."""
    pen = Pen(start, ZONE).set_up().wait(minutes=1)
    for minutes, change in ((95, 60), (61, -60), (120, 7), (33, -7), (240, 726), (47, -726)):
        pen.run(0.5).wait(minutes=minutes / 2)
        shown = (pen.now + pen.offset).replace(tzinfo=None)
        pen.set_clock(shown + timedelta(minutes=change)).wait(minutes=minutes / 2).stop().wait(minutes=80)
    return pen.script()


def scripts() -> Iterator[tuple[str, Script]]:
    """Everything, and every kind of therapy over the days of each change of daylight saving; some with the power lost."""
    yield "everything", everything()
    for number, kind in enumerate(KINDS):
        yield f"{kind} in spring", therapy(kind, number + 1, SPRING, 4, tz=ZONE)
        yield f"{kind} in autumn", therapy(kind, number + 11, AUTUMN, 4, tz=ZONE)
        yield f"{kind} without power", therapy(kind, number + 21, SPRING, 3, tz=ZONE, clock_loss=True)


# --- the wire ------------------------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """A clock that moves only when it is told to."""

    now: datetime

    def __call__(self) -> datetime:
        return self.now


class EndlessError(AssertionError):
    """A dialogue asked more often than any download needs."""


@dataclass
class Wire:
    """A serial line on a virtual clock: an answer that is whole takes 20 ms, one that is not its whole deadline.

    From byte `cut` of all that the pump sends on, nothing comes through, in either direction.
    """

    device: SerialDevice
    clock: Clock
    cut: int | None = None
    answers: list[bytes] = field(default_factory=list)
    heard: int = 0
    silent_s: float = 0.0

    @property
    def dead(self) -> bool:
        """Whether the cable is out."""
        return self.cut is not None and self.heard >= self.cut

    def exchange(self, ask: Ask) -> Reply:
        """Answers as ingest.docks.SerialLink does."""
        if len(self.answers) > 50_000:
            raise EndlessError(f"still asking: {ask.what}")
        sent = self.clock.now
        was_dead = self.dead
        data = b"" if was_dead or not ask.data else self.device.feed(ask.data)
        if self.cut is not None:
            data = data[: max(0, self.cut - self.heard)]
        self.answers.append(data)
        self.heard += len(data)
        waited = timedelta(seconds=ask.timeout_s) if ask.missing(data) > 0 else ANSWER
        if was_dead or self.dead:
            self.silent_s += waited.total_seconds()
        self.clock.now += waited
        return Reply(data=data, sent=sent, received=self.clock.now)


@dataclass
class Replay:
    """The same line once more, from what it carried: for cuts by the thousand."""

    answers: Sequence[bytes]
    clock: Clock
    cut: int
    asked: int = 0
    answered: int = 0
    heard: int = 0
    silent_s: float = 0.0

    def exchange(self, ask: Ask) -> Reply:
        """Answers as `Wire` with the same cut; `answered` counts the requests that reached the pump."""
        if self.asked > 50_000:
            raise EndlessError(f"still asking: {ask.what}")
        sent, dead = self.clock.now, self.heard >= self.cut
        data = b"" if dead else self.answers[self.asked][: self.cut - self.heard]
        self.asked += 1
        self.answered += not dead
        self.heard += len(data)
        waited = timedelta(seconds=ask.timeout_s) if ask.missing(data) > 0 else ANSWER
        if dead or self.heard >= self.cut:
            self.silent_s += waited.total_seconds()
        self.clock.now += waited
        return Reply(data=data, sent=sent, received=self.clock.now)


def ask_all(
    adapter: Adapter, pump_id: str, exchange: Callable[[Ask], Reply], known: Sequence[Capture] = (), **given: Any
) -> tuple[list[Capture], Summary | PumpledgerError]:
    """What one download gives, and how it ended; an error of the one error tree is an end too, any other is raised.

    `given`: what else `download` of this family takes (a model that the pump does not tell).
    """
    got: list[Capture] = []
    try:
        return got, dialogue.run(adapter.download(pump_id, [head(one) for one in known], **given), exchange, got.append)
    except PumpledgerError as error:
        return got, error


# --- playing a script ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Played:
    """A script on a pump of a family, and what came over its wire; `line`: the bytes of a serial one, in their order."""

    family: str
    device: Any
    truth: Truth
    captures: list[Capture]
    line: bytes = b""

    @property
    def adapter(self) -> Adapter:
        return ADAPTERS[self.family]

    @property
    def known(self) -> Orders:
        """An order of this pump that is always in force."""
        return orders(pump_id=self.truth.pump_id, tz=ZONE, start="1960-01-01T00:00:00Z")


def parameters(family: str) -> Mapping[str, inspect.Parameter]:
    """The options of a family's simulator."""
    return inspect.signature(simulators.family(family).simulate).parameters


def variants(family: str) -> list[dict[str, Any]]:
    """The options under which it speaks otherwise: as it comes, and with each other value of an option whose values are known.

    They are known of an option that is a Literal, and of one whose module lists them (`model`: MODELS).
    """
    simulator = simulators.family(family)
    told = get_type_hints(simulator.simulate)
    found: list[dict[str, Any]] = [{}]
    for name, one in parameters(family).items():
        values = get_args(told[name]) if get_origin(told[name]) is Literal else getattr(simulator, f"{name.upper()}S", ())
        found += [{name: value} for value in values if value != one.default and one.default is not inspect.Parameter.empty]
    return found


def can_perform(family: str, script: Script) -> bool:
    """Whether this kind of pump can do what the script says: its simulator refuses one that it cannot (InputError, code "script")."""
    try:
        simulators.family(family).simulate(script)
    except InputError as error:
        if error.code != "script":
            raise
        return False
    return True


def play(
    family: str, script: Script, seed: int = 0, *, at: datetime | None = None, known: Sequence[Capture] = (), **options: Any
) -> Played:
    """Plays a script, and reads the pump at `at` (default: its end) as it is read in life: asked, received or as files."""
    clock = Clock(at or script.end)
    device, truth = simulators.family(family).simulate(script, seed, now=clock, **options)
    adapter, line = ADAPTERS[family], b""
    if isinstance(device, SerialDevice):
        wire = Wire(device, clock)
        given = {name: value for name, value in options.items() if name in inspect.signature(adapter.download).parameters}
        captures, end = ask_all(adapter, device.pump_id, wire.exchange, known, **given)
        line = b"".join(wire.answers)
        assert isinstance(end, Summary), end
        assert end.complete
        assert end.pump_id == device.pump_id
    elif isinstance(device, PublishingDevice):
        captures = [decode_cap(payload) for payload in device.captures()]
    else:
        captures = adapter.read_files(device.files(), pump_id=device.pump_id, model=None, anchor=None)
    return Played(family, device, truth, captures, line)


def decoded(adapter: Adapter, captures: Sequence[Capture]) -> Decoded:
    """RECORDS, FAULTS and ANCHORS of all of them, in their order."""
    return joined(adapter.decode(one) for one in captures)


def log_of(adapter: Adapter, pump_id: str, captures: Sequence[Capture]) -> Log:
    """The log that these captures give."""
    return adapter.assemble(pump_id, *decoded(adapter, captures))


def derived(log: Log, known: Orders) -> sessions.Facts:
    """The facts of a log."""
    return sessions.derive(log, known, sessions.FactPolicy())


# --- against the truth ---------------------------------------------------------------------------------------------------------

_AMOUNTS = ("rate_ml_h", "volume_ml", "programmed_ml", "duration_s", "lockout_s")
_WORDS = ("source", "reason", "target", "alarm_class", "proves")
_NEVER_MADE_UP = frozenset({"source", "target", "proves", "rate_ml_h", "volume_ml", "duration_s", "lockout_s"})
"""Fields that no event may have where the truth has none: they make time, volume or a site."""


def losses(told: Sequence[Step]) -> bool:
    """Whether the clock was lost."""
    return any(step.reason == "loss" or step.alarm_class is AlarmClass.CLOCK_LOST for step in told)


def told_differences(log: Log, facts: sessions.Facts, truth: Truth) -> list[str]:
    """Where the events are not what the script's truth tells, in its order: what and whose, amounts, and the instant."""
    rows, times = log.events.to_pylist(), facts.events.column("time").to_pylist()
    least = len(truth.told)
    while least and not truth.told[least - 1].timed:
        least -= 1
    if not least <= len(rows) <= len(truth.told):
        first = next((n for n, (row, step) in enumerate(zip(rows, truth.told, strict=False)) if row["kind"] != step.kind), "the end")
        return [f"{len(rows)} events instead of {len(truth.told)}; they part at {first}"]
    found = []
    late = truth.start
    changes = sum(step.kind is Kind.CLOCK_CHANGE for step in truth.told)
    for number, (row, step, time) in enumerate(zip(rows, truth.told, times, strict=False)):
        found += [f"{number} ({step.kind} at {step.at}): {what}" for what in _said_otherwise(row, step)]
        if not step.timed:
            continue
        if time is None:
            if not losses(truth.told):
                found.append(f"{number} ({step.kind} at {step.at}): it has no time")
            continue
        allowed_s = 2 + changes + max(0.0, (late - step.recorded).total_seconds())
        if abs((time - step.recorded).total_seconds()) > allowed_s:
            found.append(f"{number} ({step.kind} at {step.at}): its time is {time}")
        late = max(late, step.recorded)
    return found


def _said_otherwise(row: Mapping[str, Any], step: Step) -> Iterator[str]:
    if row["kind"] != step.kind:
        yield f"kind is {row['kind']}"
        return
    for name in (*_WORDS, *_AMOUNTS):
        wanted, given = getattr(step, name), row[name]
        if wanted is None and (given is None or name not in _NEVER_MADE_UP or step.kind is Kind.DAILY_TOTAL):
            continue
        same = wanted is not None and given is not None and (abs(given - wanted) <= 1e-6 if name in _AMOUNTS else given == wanted)
        if not same:
            yield f"{name} is {given}, not {wanted}"
    if bool(row["stops_delivery"]) != step.stops_delivery:
        yield f"stops_delivery is {row['stops_delivery']}"
    if row["conflict"]:
        yield "it is in conflict"


def overstated_s(facts: sessions.Facts, truth: Truth) -> float:
    """Seconds that were derived as infusing outside of when drug truly flowed, as far as their UTC is known."""
    wrong = 0.0
    for row in facts.intervals.to_pylist():
        if row["class"] != "infusing" or row["from_utc"] is None:
            continue
        mine = (row["from_utc"], row["to_utc"])
        wrong += (mine[1] - mine[0]).total_seconds() - sum(_shared_s(mine, one) for one in truth.flowed)
    return wrong


def _shared_s(one: Interval, other: Interval) -> float:
    return max(0.0, (min(one[1], other[1]) - max(one[0], other[0])).total_seconds())


def derived_differences(facts: sessions.Facts, truth: Truth) -> list[str]:
    """Where sessions and set-ups are not what the log proves (docs/semantics.md §4, §5), or more than flowed."""
    found = []
    intervals = facts.intervals.to_pylist()
    infusing = [row for row in intervals if row["class"] == "infusing"]
    infused_s = sum(row["to_ms"] - row["from_ms"] for row in infusing) / 1000
    if abs(infused_s - truth.proved_s) > 60:
        found.append(f"{infused_s} s are infusing, the log proves {truth.proved_s} s")
    if infused_s > truth.flowed_s + len(infusing):
        found.append(f"{infused_s} s are infusing, {truth.flowed_s} s flowed")
    if (wrong := overstated_s(facts, truth)) > 60 + 2 * len(infusing):
        found.append(f"{wrong} s are infusing while nothing flowed")
    for row in facts.sessions.to_pylist():
        parts = sum(row[f"{kind}_s"] for kind in ("infusing", "unknown", "kvo", "alarm", "paused"))
        if parts != row["span_s"]:
            found.append(f"a session of {row['span_s']} s has parts of {parts} s")
    shown = sorted((row["pump_setup"], row["new_site"]) for row in facts.setups.to_pylist())
    wanted = sorted((one.pump_setup, one.new_site) for one in truth.set_ups)
    if shown != wanted:
        found.append(f"set-ups are {shown}, not {wanted}")
    times = [row["time"] for row in facts.setups.to_pylist()]
    if None not in times and shown == wanted:
        for time, one in zip(sorted(times), sorted(truth.set_ups, key=lambda one: one.at), strict=True):
            if abs((time - one.at).total_seconds()) > 60:
                found.append(f"a set-up is at {time}, not {one.at}")
    return found


def accounting_differences(captures: Sequence[Capture], records: pa.Table, faults: pa.Table, log: Log) -> list[str]:
    """Where a record is neither event nor repetition, an event is of no record, or what is quarantined has not its bytes (§7.1)."""
    found = []
    of = log.event_of_record.to_pylist()
    if len(of) != records.num_rows:
        found.append(f"{records.num_rows} records, {len(of)} of them accounted for")
    holes = {kind.value for kind in HOLES}
    rows = log.events.select(["event_id", "kind", "raw"]).to_pylist()
    ids = [row["event_id"] for row in rows]
    if len(set(ids)) != len(ids):
        found.append(f"{len(ids) - len(set(ids))} events are there twice")
    if lost := set(of) - set(ids):
        found.append(f"{len(lost)} records became events that are not there")
    real = {row["event_id"] for row in rows if row["kind"] not in holes or row["raw"]}
    if made := real - set(of):
        found.append(f"{len(made)} events come from no record")
    if empty := [row for row in rows if row["event_id"] in real and not row["raw"]]:
        found.append(f"{len(empty)} events have no bytes")
    found += quarantine_differences(captures, faults)
    return found


def quarantine_differences(captures: Sequence[Capture], faults: pa.Table) -> list[str]:
    """Where a fault has not the bytes of the capture that it is of; whole lines (a patient's, say) may be left out of it."""
    data = {one.sha256: one.data for one in captures}
    found = []
    for fault in faults.select(["capture", "code", "raw", "message"]).to_pylist():
        if fault["capture"] not in data:
            found.append(f"fault {fault['code']} is of no capture")
        elif not _holds(data[fault["capture"]], fault["raw"]):
            found.append(f"fault {fault['code']} ({fault['message']}) holds bytes that its capture has not")
    return found


_LINE_ENDS = re.compile(rb"[\r\n]")
_BETWEEN_DIGITS = re.compile(rb"[\s:-]")


def _holds(data: bytes, raw: bytes) -> bool:
    """Whether these bytes, line by line, are of those: as they are, or as their hex or base64 digits."""
    if all(line in data for line in _LINE_ENDS.split(raw)):
        return True
    return raw.hex().encode() in _BETWEEN_DIGITS.sub(b"", data.lower()) or base64.b64encode(raw) in data


# --- the sheet -----------------------------------------------------------------------------------------------------------------


def sheet_differences(sheet: Sheet, log: Log) -> list[str]:
    """What a log tells that the sheet of its family says it does not."""
    rows = log.events.select(["kind", "target", "proves"]).to_pylist()
    kinds = {row["kind"] for row in rows}
    found = []
    if not sheet.demands:
        found += [f"the sheet knows no {kind}" for kind in (Kind.DEMAND_GRANTED, Kind.DEMAND_DENIED) if kind in kinds]
    if not sheet.limits:
        found += [f"the sheet knows no {kind}" for kind in (Kind.LIMIT_REACHED, Kind.LIMIT_CLEARED) if kind in kinds]
    if not sheet.prime_targets:
        told = {row["target"] for row in rows} - {None, Target.UNKNOWN.value}
        found += [f"the sheet knows no target {target}" for target in sorted(told)]
    if sheet.proof.startswith("none") and any(row["proves"] for row in rows):
        found.append("the sheet knows no proof")
    if log.gaps_visible != sheet.gaps_visible:
        found.append(f"the sheet says that gaps are {'' if sheet.gaps_visible else 'not '}visible, the log does not")
    return found


def promised(sheet: Sheet) -> set[tuple[str, str]]:
    """(column, value) that a log must show of a script on which all happens, by the sheet."""
    wanted = set()
    if sheet.demands:
        wanted |= {("kind", Kind.DEMAND_GRANTED.value), ("kind", Kind.DEMAND_DENIED.value)}
    if sheet.limits:
        wanted |= {("kind", Kind.LIMIT_REACHED.value)}
    if sheet.prime_targets:
        wanted |= {("target", Target.TUBING.value), ("target", Target.CANNULA.value)}
    return wanted


def shown(log: Log) -> set[tuple[str, str]]:
    """(column, value) of the columns that sheets speak of."""
    return {(name, value) for name in ("kind", "target") for value in log.events.column(name).to_pylist() if value is not None}


def page(sheet: Sheet) -> str:
    """The capability page of a family, from its sheet alone."""

    def answer(yes: bool) -> str:
        return "yes" if yes else "no"

    facts = [
        ("Models", sheet.models),
        ("Transport", sheet.transport),
        ("Layout from", sheet.source),
        ("What makes a record itself", sheet.identity),
        ("Elapsed time", sheet.elapsed),
        ("Shows that a record is missing", answer(sheet.gaps_visible)),
        ("Tells what a fill filled (tubing, cannula)", answer(sheet.prime_targets)),
        ("Tells the patient's demands", answer(sheet.demands)),
        ("Tells its limits", answer(sheet.limits)),
        ("What proves that a source delivers", sheet.proof),
    ]
    lines = [f"# {sheet.title}", "", f"Family `{sheet.family}`. Printed from its sheet by `python -m tests.conformance`.", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {_cell(text)} |" for name, text in facts), ""]
    if sheet.tells:
        lines += ["## What its log tells", "", "| | |", "|---|---|"]
        lines += [*(f"| {_cell(name)} | {_cell(text)} |" for name, text in sheet.tells.items()), ""]
    for title, texts in (("What it does not tell", sheet.does_not_tell), ("What is not known about it", sheet.unknown)):
        if texts:
            lines += [f"## {title}", "", *(f"- {text}" for text in texts), ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def pages() -> dict[str, str]:
    """File name → text of every page that docs/pumps must have."""
    return {f"{name}.md": page(adapter.SHEET) for name, adapter in ADAPTERS.items()}


def print_pages(folder: Path = PAGES) -> list[str]:
    """Writes the pages that are not current, removes those of no family; gives their names."""
    folder.mkdir(exist_ok=True)
    wanted = pages()
    changed = []
    for path in sorted(folder.glob("*.md")):
        if path.name not in wanted:
            path.unlink()
            changed.append(path.name)
    for name, text in wanted.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            changed.append(name)
    return changed


# --- damage --------------------------------------------------------------------------------------------------------------------

_DIGITS = re.compile(rb"\d+")
_PARTS = ("", "page=0", "page=1;dump=x;bad", "0:5-2 sum relative ", "0:0-999999999 xor absolute ", "9" * 40, "\0", "end;dump=", "🜚")
_MODELS = ("", "0", "522", "723", "999999999999", "x", "٣")
_NUMBERS = (b"0", b"-1", b"9" * 30, b"1e400", b"4294967295", b"-9223372036854775809", b"NaN")


def _pieces(data: bytes, chance: random.Random) -> tuple[bytes, bytes, bytes]:
    start = chance.randrange(len(data) + 1)
    stop = min(len(data), start + chance.choice((0, 1, 1, 2, 7, 26, 64, 300)))
    return data[:start], data[start:stop], data[stop:]


def damaged(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Bytes with one wound or a few: bits, slices lost, doubled, moved, put in from `other`, numbers blown up, noise."""
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        before, middle, after = _pieces(data, chance)
        match chance.randrange(10):
            case 0:
                flipped = bytes(byte ^ (1 << chance.randrange(8)) for byte in middle[:1])
                data = before + flipped + middle[1:] + after
            case 1:
                data = before + after
            case 2:
                data = before + middle * chance.choice((2, 3, 40)) + after
            case 3:
                data = before + chance.randbytes(len(middle)) + after
            case 4:
                data = before + chance.randbytes(chance.choice((1, 3, 100))) + middle + after
            case 5:
                data = before + bytes((chance.choice((0x00, 0xFF, 0x0A, 0x20, 0x7B)),)) * len(middle) + after
            case 6:
                data = before + _pieces(other, chance)[1] + after
            case 7:
                data = before
            case 8 if numbers := list(_DIGITS.finditer(data[:20_000])):
                one = chance.choice(numbers)
                data = data[: one.start()] + chance.choice(_NUMBERS) + data[one.end() :]
            case _:
                data = after + before
    return data


def wounded(captures: Sequence[Capture], chance: random.Random) -> list[Capture]:
    """Some of these captures, one or more of them with damaged bytes, part, model or anchor, or with nothing but noise."""
    some = [chance.choice(captures) for _ in range(chance.choice((1, 1, 2, 4)))]
    for number in range(chance.choice((1, len(some)))):
        one, other = some[number], chance.choice(captures)
        match chance.randrange(12):
            case 0:
                one = replace(one, data=chance.randbytes(chance.choice((0, 1, 2, 25, 26, 64, 512, 1024, 3000))))
            case 1:
                one = replace(one, data=b"")
            case 2:
                one = replace(one, part=chance.choice((None, other.part, *_PARTS)))
            case 3:
                one = replace(one, part=damaged((one.part or "").encode(), b"0;=-", chance).decode(errors="replace"))
            case 4:
                one = replace(one, model=chance.choice((None, *_MODELS)))
            case 5:
                one = replace(one, anchor=_odd_anchor(one.anchor or other.anchor, chance))
            case _:
                one = replace(one, data=damaged(one.data, other.data, chance))
        some[number] = one
    return some


def _odd_anchor(anchor: Anchor | None, chance: random.Random) -> Anchor | None:
    anchor = anchor or Anchor(pump_clock=datetime(2026, 3, 6, 12), utc=SPRING)
    after = chance.choice((None, anchor.after, "", "0:1", "0:999999999999999999999", "x"))
    shift = timedelta(days=chance.choice((0, 0, 1, -400, 20_000)))
    return chance.choice((None, replace(anchor, after=after, pump_clock=anchor.pump_clock + shift), replace(anchor, round_trip_ms=2**40)))


class HangError(AssertionError):
    """It took longer than any input may."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises HangError in what takes longer: so that an endless loop is a finding."""

    def ring(signum: int, frame: Any) -> None:
        raise HangError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def decode_totally(adapter: Adapter, capture: Capture) -> tuple[Decoded, list[str]]:
    """What a capture decodes to, whatever it holds, and what is wrong with that: schema, size, quarantine."""
    one = adapter.decode(capture)
    found = []
    for name, schema in (("records", RECORDS), ("faults", FAULTS), ("anchors", ANCHORS)):
        rows = getattr(one, name)
        if not rows.schema.equals(schema):
            found.append(f"{name} have another schema")
        else:
            rows.validate(full=True)
            found += [f"{name}.{f.name} is null" for f in schema if not f.nullable and rows.column(f.name).null_count]
        if rows.nbytes > 200_000 + 4000 * len(capture.data):
            found.append(f"{rows.nbytes} bytes of {name} from {len(capture.data)}")
    for name in ("records", "faults", "anchors"):
        if set(getattr(one, name).column("capture").to_pylist()) - {capture.sha256}:
            found.append(f"{name} name another capture")
    found += quarantine_differences([capture], one.faults)
    return one, found


def together_differences(adapter: Adapter, captures: Sequence[Capture]) -> list[str]:
    """What captures give otherwise when they are decoded together than when each is decoded alone."""
    together, each = adapter.decode_all(captures), decoded(adapter, captures)
    return [f"other {name}" for name in Decoded._fields if not getattr(together, name).equals(getattr(each, name))]


def check_differences(adapter: Adapter, log: Log) -> list[str]:
    """What is wrong with the checks of a log, if its family has any: schema, nulls, pump, and the event that each is by."""
    if not hasattr(adapter, "cross_check"):
        return []
    checks = adapter.cross_check(log.events)
    if not checks.schema.equals(CHECKS):
        return ["checks have another schema"]
    found = [f"checks.{f.name} is null" for f in CHECKS if checks.column(f.name).null_count]
    pump_of = dict(zip(*(log.events.column(name).to_pylist() for name in ("event_id", "pump_id")), strict=True))
    return found + [f"the check {row} is by no event" for row in checks.to_pylist() if pump_of.get(row["event_id"]) != row["pump_id"]]


def read_totally(adapter: Adapter, captures: Sequence[Capture], known: Orders) -> list[str]:
    """What is wrong with how these captures are read, down to the facts: nothing may raise."""
    found: list[str] = []
    each = []
    for capture in captures:
        one, wrong = decode_totally(adapter, capture)
        found += wrong
        each.append(one)
    if found:
        return found
    pump_id = captures[0].pump_id
    records, faults, anchors = joined(each)
    log = adapter.assemble(pump_id, records, faults, anchors)
    if not log.events.schema.equals(EVENTS):
        return ["events have another schema"]
    log.events.validate(full=True)
    found += [f"events.{f.name} is null" for f in EVENTS if not f.nullable and log.events.column(f.name).null_count]
    found += accounting_differences(captures, records, faults, log)
    found += check_differences(adapter, log)
    facts = derived(log, known)
    for row in facts.sessions.to_pylist():
        if sum(row[f"{kind}_s"] for kind in ("infusing", "unknown", "kvo", "alarm", "paused")) != row["span_s"]:
            found.append("the parts of a session are not its span")
    return found


def files_of(played: Played) -> list[tuple[str, bytes]]:
    """Files as a person may have them: those the device gives, its whole log, its recorded line, or the bytes of its captures."""
    if hasattr(played.device, "files"):
        return list(played.device.files())
    if hasattr(played.device, "file"):
        return [("log-0.data", played.device.file())]
    if played.line and played.adapter.recognise("line", played.line):
        return [("line", played.line)]
    if played.adapter.recognise("log", together := b"".join(one.data for one in played.captures)):
        return [("log", together)]
    return [(f"page-{number}.data", one.data) for number, one in enumerate(played.captures)]


def load_totally(adapter: Adapter, files: Sequence[tuple[str, bytes]], pump_id: str, model: str | None) -> list[str]:
    """What is wrong with how files are recognised and read: an InputError says what to do, nothing else may be raised."""
    found = [f"recognise({name}) is no bool" for name, data in files if not isinstance(adapter.recognise(name, data), bool)]
    try:
        captures = adapter.read_files(files, pump_id=pump_id, model=model, anchor=None)
    except InputError as error:
        return found + ([] if error.do else [f"{error.code} does not say what to do"])
    for capture in captures:
        found += decode_totally(adapter, capture)[1]
    return found


if __name__ == "__main__":
    print(json.dumps({"printed": print_pages()}))
