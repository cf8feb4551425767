"""Damaged and random bytes into a family, for as long as one likes: `python -m tests.fuzz --family F --seconds N --seed S`.

An input is one small thing: a page, a message, a frame, a few lines or records of a pump, wounded, spliced, cut or made up; a file of
them; or a download in which the pump's replies are so. Captures are decoded many at once: by the family's `decode_all`, or, where its
captures are streams (what is joined is read as the parts are), several inputs as one. What is cheap is tested of each input: no
exception, tables as declared, faults with bytes of their own capture, noise never passed over, an end in time. Of some also what
they give together with a whole log: in any order and repetition the same events, each record one of them, facts that add up.

Every input is made from the seed and its number alone, so a finding can be had again with the `--first` and `--count` that it prints.
The exit status is 1 where there is any finding.
"""

from __future__ import annotations

import argparse
import binascii
import random
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

import simulators.ids
from devices.contract import ANCHORS, FAULTS, RECORDS, Adapter, Capture, Decoded, joined
from devices.dialogue import Ask, Reply
from devices.errors import InputError
from simulators.therapy import therapy
from tests import conformance as kit

TOGETHER = 1024
"""So many inputs are read at once; with some of them a whole log is read, too."""
_STREAM = 32
"""So many of them are one capture where captures are streams."""
_MEMORY = 4 << 30
_SECONDS_EACH = 10.0
_PROGRESS_S = 60.0
_SHOWN = 4096
"""So many bytes of an input at most are shown."""
_SMALL = (16, 30, 64, 100, 200, 400, 800, 1600)
_CODED = re.compile(rb"[A-Za-z0-9+/=_-]{12}")
_RING = re.compile(r"^\d+:\d+-\d+ (\w+ \w+) \w+$")
_NOISE = (1, 2, 5, 16, 26, 64, 200, 1024)


class Small(NamedTuple):
    """A small capture, and the number of the pump that it is of; none where it is like nothing that a pump sends."""

    capture: Capture
    pump: int | None


@dataclass(frozen=True)
class Ground:
    """What the inputs of a family are made from: its pumps, small captures of one of them, and what it was asked and answered."""

    family: str
    played: list[kit.Played]

    @property
    def adapter(self) -> Adapter:
        return kit.ADAPTERS[self.family]

    @cached_property
    def small(self) -> list[Small]:
        """Captures as small as the family cuts them, each shape of them a few times."""
        found: dict[Any, list[Small]] = {}
        for number, pump in enumerate(self.played):
            for capture in pump.captures:
                for part in _smallest(self.adapter, capture):
                    shape = (number, len(part.data), part.data[:4])
                    found.setdefault(shape, []).append(Small(replace(part, pump_id=self.played[0].truth.pump_id, anchor=None), number))
        return [part for parts in found.values() for part in parts[:2]]

    @cached_property
    def is_stream(self) -> bool:
        """Whether small captures, joined, are read as each is."""
        one = max(self.small, key=lambda small: self.adapter.decode(small.capture).records.num_rows)
        (both,) = joined_captures(self.family, [one, one])
        told, wanted = self.adapter.decode(both), self.adapter.decode(one.capture)
        return told.faults.num_rows == 0 and told.records.num_rows == 2 * wanted.records.num_rows

    @cached_property
    def dialogues(self) -> list[Talk]:
        """The downloads of its pumps, where they are asked."""
        return (
            [Talk.of(pump, options) for pump, options in zip(self.played, _options(self.family), strict=False)]
            if self.family in kit.ASKED
            else []
        )


@dataclass
class Talk:
    """A download that once went well: what was answered to each request, to be answered again, or worse."""

    pump_id: str
    given: dict[str, Any]
    clock: kit.Clock
    answers: dict[bytes, list[bytes]] = field(default_factory=dict)

    @classmethod
    def of(cls, played: kit.Played, options: Mapping[str, Any]) -> Talk:
        """As a simulated pump answered."""
        talk = cls(played.truth.pump_id, {name: value for name, value in options.items() if name == "model"}, kit.Clock(played.truth.end))
        device, _ = simulators.family(played.family).simulate(kit.short(), 1, now=talk.clock, **options)
        wire = kit.Wire(device, talk.clock)  # type: ignore[arg-type]

        def exchange(ask: Ask) -> Reply:
            reply = wire.exchange(ask)
            talk.answers.setdefault(ask.data, []).append(reply.data)
            return reply

        if "model" not in kit.inspect.signature(played.adapter.download).parameters:
            talk.given = {}
        kit.ask_all(played.adapter, talk.pump_id, exchange, **talk.given)
        return talk

    def worse(self, chance: random.Random) -> Callable[[Ask], Reply]:
        """Answers as before, but for a few."""
        all_answers = [answer for answers in self.answers.values() for answer in answers]
        asked = dict.fromkeys(self.answers, 0)
        rate = chance.choice((0.02, 0.1, 0.5))
        turns = 0

        def exchange(ask: Ask) -> Reply:
            nonlocal turns
            turns += 1
            if turns > 20_000:
                raise kit.EndlessError(f"still asking: {ask.what}")
            mine = self.answers.get(ask.data) or all_answers
            data = mine[min(asked.get(ask.data, 0), len(mine) - 1)]
            asked[ask.data] = asked.get(ask.data, 0) + 1
            if chance.random() < rate:
                data = chance.choice((b"", chance.choice(all_answers), kit.damaged(data, chance.choice(all_answers), chance)))
            sent = self.clock.now
            return Reply(data=data, sent=sent, received=sent + kit.ANSWER)

        return exchange


def _smallest(adapter: Adapter, capture: Capture) -> list[Capture]:
    """The capture, lines left out that no record needs, as the smallest parts that its family makes of it."""
    if len(capture.data) > _SMALL[-1]:
        capture = _fewest_lines(adapter, capture)
    split: Callable[[Capture, int], list[Capture]] | None = getattr(adapter, "split", None)
    for size in _SMALL if split else ():
        with suppress(InputError):
            return split(capture, size)[:40]  # type: ignore[misc]
    return [capture]


def _fewest_lines(adapter: Adapter, capture: Capture) -> Capture:
    for end in (b"\r", b"\n"):
        lines = capture.data.split(end)
        if len(lines) > 4:
            rows = adapter.decode(capture).records.num_rows
            for at in reversed(range(1, len(lines) - 1)):
                fewer = replace(capture, data=end.join([*lines[:at], *lines[at + 1 :]]))
                told = adapter.decode(fewer)
                if told.records.num_rows == rows and not told.faults.num_rows:
                    capture, lines = fewer, fewer.data.split(end)
    return capture


def _options(family: str) -> list[dict[str, Any]]:
    batch = {"batch": 3} if "batch" in kit.parameters(family) else {}
    return [{**batch, **options} for options in kit.variants(family)]


def ground(family: str) -> Ground:
    """Pumps of this family under every variant of its wire, with little in their logs and with everything."""
    scripts = [kit.short(), kit.everything(), *(therapy(kind, 2, kit.SPRING, 2) for kind in kit.KINDS)]
    able = [script for script in scripts if kit.can_perform(family, script)][:2]
    return Ground(family, [kit.play(family, script, 1, **options) for script in able for options in _options(family)])


# --- inputs --------------------------------------------------------------------------------------------------------------------


def _page(data: bytes) -> bytes:
    return data[:-2] + binascii.crc_hqx(data[:-2], 0xFFFF).to_bytes(2, "big")


def _message(data: bytes) -> bytes:
    return data[:-2] + binascii.crc_hqx(data[2:-2], 0xFFFF).to_bytes(2, "little")


def _hex_line(data: bytes) -> bytes:
    head, _, digits = data.strip().rpartition(b" ")
    try:
        whole = bytes.fromhex(digits.decode())[:-2]
    except ValueError:
        return data
    return b"%b %b\n" % (head, (whole + simulators.ids.crc16(whole).to_bytes(2, "little")).hex().encode())


_SEALS: Mapping[str, Callable[[bytes], bytes]] = {"paradigm": _page, "tandem": _message, "ids": _hex_line}
"""Checksums made right again, so that damage comes through to what lies behind them (docs/pump-formats.md §3.2, §5.2, §7)."""


def damaged(ground: Ground, chance: random.Random) -> Small:
    """One small capture, wounded, or nothing but noise, or with an odd part, model or anchor."""
    one, pump = chance.choice(ground.small)
    kind = chance.random()
    if kind < 0.01:
        return Small(replace(one, data=b"\x01" + chance.randbytes(chance.choice(_NOISE))), None)
    if kind < 0.03:
        return Small(kit.wounded([one, chance.choice(ground.small).capture], chance)[0], None)
    data = kit.damaged(one.data, chance.choice(ground.small).capture.data, chance)
    if ground.family in _SEALS and chance.random() < 0.5:
        data = _SEALS[ground.family](data)
    return Small(replace(one, data=data), pump)


# --- what is wrong -------------------------------------------------------------------------------------------------------------


def _of_tables(captures: Sequence[Capture], told: Decoded) -> list[str]:
    """What is wrong with what these captures were decoded to, as far as it is cheap to see."""
    found = []
    shas = {capture.sha256 for capture in captures}
    for name, schema in (("records", RECORDS), ("faults", FAULTS), ("anchors", ANCHORS)):
        rows = getattr(told, name)
        if not rows.schema.equals(schema):
            found.append(f"{name} have another schema")
            continue
        rows.validate(full=True)
        found += [f"{name}.{one.name} is null" for one in schema if not one.nullable and rows.column(one.name).null_count]
        if set(pc.unique(rows.column("capture")).to_pylist()) - shas:
            found.append(f"{name} name another capture")
        if rows.nbytes > 200_000 + 4000 * sum(len(capture.data) for capture in captures):
            found.append(f"{rows.nbytes} bytes of {name}")
    if told.records.num_rows and not pc.min(pc.binary_length(told.records.column("raw"))).as_py():
        found.append("a record has no bytes")
    heard = {*pc.unique(told.records.column("capture")).to_pylist(), *pc.unique(told.faults.column("capture")).to_pylist()}
    if any(capture.data.startswith(b"\x01") and capture.sha256 not in heard for capture in captures if capture.part is None):
        found.append("noise was passed over")
    plain = [capture for capture in captures if not _is_coded(capture.family, capture.data)]
    mine = pc.is_in(told.faults.column("capture"), value_set=pa.array([capture.sha256 for capture in plain], pa.string()))
    return found + kit.quarantine_differences(plain, told.faults.filter(mine))


def _is_coded(family: str, data: bytes) -> bool:
    """Whether it has hex or base64 digits of bytes: its faults have these bytes, which cannot be found in digits that are damaged."""
    return family == "tandem" and _CODED.search(data) is not None


def _decoded(adapter: Adapter, captures: Sequence[Capture]) -> Decoded:
    decode_all: Callable[[Sequence[Capture]], Decoded] | None = getattr(adapter, "decode_all", None)
    told = decode_all(captures) if decode_all else joined(adapter.decode(capture) for capture in captures)
    return Decoded(*(rows.combine_chunks() for rows in told))


def _failing(work: Callable[[], list[str]], seconds: float = _SECONDS_EACH) -> list[str]:
    """What it finds; an exception is a finding, and so is having no end."""
    try:
        with kit.limited(seconds):
            return work()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = ([frame for frame in frames if "/devices/" in frame.filename] or frames)[-1]
        return [f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {error}"]


def decoded(ground: Ground, captures: Sequence[Capture]) -> Iterator[tuple[Sequence[Capture], str]]:
    """Findings in how captures are decoded, each with the fewest of them that show it."""
    adapter = ground.adapter
    if not _failing(lambda: _of_tables(captures, _decoded(adapter, captures)), _SECONDS_EACH + len(captures) / 20):
        return
    alone = [(capture, _failing(lambda one=capture: _of_tables([one], _decoded(adapter, [one])))) for capture in captures]
    for capture, findings in alone:
        for finding in findings:
            yield [capture], finding
    if not any(findings for _, findings in alone):
        for finding in _failing(lambda: _of_tables(captures, _decoded(adapter, captures))):
            yield captures, f"{finding} (together)"


def joined_captures(family: str, stream: Sequence[Small]) -> list[Capture]:
    """Small captures of a stream, as fewer that are longer."""
    alike: dict[Any, list[Capture]] = {}
    for one, pump in stream:
        alike.setdefault((pump, _RING.sub(r"\1", one.part or "") if family == "miva" else ""), []).append(one)
    runs = [some[at : at + _STREAM] for some in alike.values() for at in range(0, len(some), _STREAM)]
    return [_ring(run) if family == "miva" else replace(run[0], data=b"".join(one.data for one in run)) for run in runs]


def _ring(captures: Sequence[Capture]) -> Capture:
    """Records of a ring behind each other: the part says how many (docs/pump-formats.md §4)."""
    data = b"".join(one.data[:16].ljust(16, b"\0") for one in captures)
    return replace(captures[0], data=data, part=_RING.sub(rf"0:0-{len(captures) - 1} \1 {data[-16:].hex()}", captures[0].part or ""))


def logged(ground: Ground, captures: Sequence[Capture], chance: random.Random) -> list[str]:
    """What is wrong with the log of a pump and its facts where these captures are in it, and whether their order changes it."""
    adapter, pump = ground.adapter, ground.played[0]
    mine = [
        *(capture for capture in captures if not _is_coded(capture.family, capture.data)),
        *chance.sample(pump.captures, min(len(pump.captures), chance.choice((0, 3)))),
    ]
    if not mine:
        return []
    found = kit.read_totally(adapter, mine, pump.known)
    first = kit.log_of(adapter, pump.truth.pump_id, mine)
    chance.shuffle(mine)
    again = kit.log_of(adapter, pump.truth.pump_id, [*mine, chance.choice(mine)])
    if not (first.events.equals(again.events) and first.anchors == again.anchors and first.gaps_visible == again.gaps_visible):
        found.append("another order and a repetition give another log")
    return found


def talked(ground: Ground, chance: random.Random) -> tuple[list[Capture], list[str]]:
    """The captures of a download in which some replies are damaged, and what is wrong with how it went."""
    talk = chance.choice(ground.dialogues)
    got: list[Capture] = []

    def work() -> list[str]:
        captures, _ = kit.ask_all(ground.adapter, talk.pump_id, talk.worse(chance), **talk.given)
        got.extend(captures)
        return [f"a capture of {capture.pump_id!r}" for capture in captures if capture.pump_id.partition(":")[0] != ground.family]

    return got, _failing(work)


def loaded(ground: Ground, chance: random.Random) -> tuple[list[Capture], list[str]]:
    """A damaged file and some that are whole, as captures named by `part`, and what is wrong with how they are recognised and read."""
    pump = chance.choice(ground.played)
    files = kit.files_of(pump)
    name, data = chance.choice(files)
    spoiled = (name, kit.damaged(data, chance.choice(files)[1], chance))
    model = chance.choice((pump.captures[0].model, None))
    some = [spoiled, *files[: chance.choice((0, 2))]]
    found = _failing(lambda: kit.load_totally(ground.adapter, some, pump.truth.pump_id, model))
    coded = any(_is_coded(ground.family, data) for _, data in some)
    shown = [Capture(data=data, family=ground.family, pump_id=pump.truth.pump_id, model=model, part=name) for name, data in some]
    return shown, [what for what in found if not (coded and what.endswith("holds bytes that its capture has not"))]


# --- the run -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """What is wrong, which inputs show it, and their bytes."""

    first: int
    count: int
    what: str
    captures: Sequence[Capture] = ()

    def __str__(self) -> str:
        shown = "".join(f"\n    {one.model!r} {one.part!r} {one.anchor} {one.data[:_SHOWN].hex()}" for one in self.captures[:4])
        return f"{self.what}  [--first {self.first} --count {self.count}]{shown}"


def batch(ground: Ground, seed: int, first: int, size: int) -> Iterator[Finding]:
    """The findings of inputs `first` to `first + size - 1`."""
    alone: list[Capture] = []
    stream: list[Small] = []
    number_of: dict[str, int] = {}
    for number in range(first, first + size):
        chance = random.Random(f"{ground.family}:{seed}:{number}")
        kind = chance.random()
        if kind < 0.002:
            files, findings = loaded(ground, chance)
            yield from (Finding(number, 1, what, files) for what in findings)
        elif kind < 0.012 and ground.dialogues:
            got, findings = talked(ground, chance)
            yield from (Finding(number, 1, what) for what in findings)
            yield from (Finding(number, 1, what, some) for some, what in (decoded(ground, got) if got else ()))
        else:
            small = damaged(ground, chance)
            if ground.is_stream and small.pump is not None:
                stream.append(small)
            else:
                alone.append(small.capture)
            number_of[small.capture.sha256] = number
    captures = [*alone, *joined_captures(ground.family, stream)]
    for some, what in decoded(ground, captures):
        mine = [number_of[one.sha256] for one in some if one.sha256 in number_of]
        yield Finding(mine[0], 1, what, some) if len(mine) == 1 else Finding(first, size, what, some)
    chance = random.Random(f"{ground.family}:{seed}:{first}:log")
    some = chance.sample(captures, min(len(captures), chance.choice((1, 2, 4))))
    if some:
        yield from (Finding(first, size, what, some) for what in _failing(lambda: logged(ground, some, chance)))


def fuzz(family: str, seed: int, first: int = 0, most: int = sys.maxsize) -> Iterator[tuple[int, list[Finding]]]:
    """(how many inputs so far, findings of the last batch), until there were `most`."""
    made = ground(family)
    for done in count(0, TOGETHER):
        size = min(TOGETHER, most - done)
        if size <= 0:
            return
        yield done + size, list(batch(made, seed, first + done, size))


def _kind(what: str) -> str:
    return "".join(" " if one.isdigit() else one for one in what)[:60]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Feeds damaged and random bytes to a family.")
    parser.add_argument("--family", required=True, choices=kit.FAMILIES)
    parser.add_argument("--seconds", type=float, help="no longer than this; default: 60, or as long as --count takes")
    parser.add_argument("--count", type=int, default=sys.maxsize, help="so many inputs at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    said = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.RLIM_INFINITY))
    seconds = said.seconds or (60.0 if said.count == sys.maxsize else float("inf"))
    began, shown = time.monotonic(), 0.0
    done, seen = 0, dict[str, int]()
    for so_far, findings in fuzz(said.family, said.seed, said.first, said.count):
        done = so_far
        for finding in findings:
            kind = _kind(finding.what)
            seen[kind] = seen.get(kind, 0) + 1
            if seen[kind] == 1:
                print(f"{said.family}, seed {said.seed}: {finding}", flush=True)
        took = time.monotonic() - began
        if took >= seconds:
            break
        if took >= shown + _PROGRESS_S:
            shown = took
            print(f"{said.family}: {done} inputs so far, {done / took:.0f} a second", file=sys.stderr, flush=True)
    took = time.monotonic() - began
    print(f"{said.family}: {done} inputs, {done / took:.0f} a second; {sum(seen.values())} findings of {len(seen)} kinds")
    return 1 if seen else 0


if __name__ == "__main__":
    sys.exit(main())
