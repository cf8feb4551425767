"""Damaged and random bytes into a family, for as long as one likes: `python -m tests.fuzz --family F --seconds N --seed S`.

Every input is made from the seed and its number alone, so that a finding can be had again: `--first NUMBER --inputs 1`. Prints how
many were tried and what was found, one line for each new kind of finding; the exit status is 1 where there is any.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
import traceback
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from tests import conformance as kit

_MEMORY = 4 << 30
_SECONDS_EACH = 20.0


def inputs(family: str) -> list[kit.Played]:
    """Pumps of this family to start from: everything, and some therapies, under every variant of its wire."""
    found = []
    for options in kit.variants(family):
        for _, script in kit.scripts():
            if len(found) < 12 and kit.can_perform(family, script):
                found.append(kit.play(family, script, len(found), **options))
    return found


def tried(played: kit.Played, chance: random.Random) -> list[str]:
    """What is wrong with how one damaged input is read; an exception is a finding too."""
    adapter = played.adapter
    try:
        with kit.limited(_SECONDS_EACH):
            if chance.random() < 0.3:
                files = kit.files_of(played)
                name, data = chance.choice(files)
                spoiled = (name, kit.damaged(data, chance.choice(files)[1], chance))
                model = chance.choice((played.captures[0].model, None))
                return kit.load_totally(adapter, [spoiled, *files[: chance.choice((0, 2))]], played.truth.pump_id, model)
            captures = kit.wounded(played.captures, chance) + (played.captures if chance.random() < 0.5 else [])
            chance.shuffle(captures)
            return kit.read_totally(adapter, captures, played.known)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/devices/" in frame.filename]
        at = f"{Path((ours or [last])[-1].filename).name}:{(ours or [last])[-1].lineno}"
        return [f"{type(error).__name__} at {at}: {error}"]


def fuzz(family: str, seed: int, first: int = 0) -> Iterator[tuple[int, list[str]]]:
    """(number of the input, findings), without end."""
    pumps = inputs(family)
    for number in count(first):
        chance = random.Random(f"{family}:{seed}:{number}")
        yield number, tried(chance.choice(pumps), chance)


def _kind(finding: str) -> str:
    return "".join(" " if one.isdigit() else one for one in finding)[:60]


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Feeds damaged and random bytes to a family.")
    parser.add_argument("--family", required=True, choices=kit.FAMILIES)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--inputs", type=int, default=0, help="so many at most; 0: as many as there is time for")
    said = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.RLIM_INFINITY))
    end = time.monotonic() + said.seconds
    done, seen = 0, dict[str, int]()
    for number, findings in fuzz(said.family, said.seed, said.first):
        done += 1
        for finding in findings:
            kind = _kind(finding)
            seen[kind] = seen.get(kind, 0) + 1
            if seen[kind] == 1:
                print(f"{said.family}: input {number} of seed {said.seed}: {finding}", flush=True)
        if time.monotonic() >= end or done == said.inputs:
            break
    print(f"{said.family}: {done} inputs tried, {sum(seen.values())} findings of {len(seen)} kinds")
    return 1 if seen else 0


if __name__ == "__main__":
    sys.exit(main())
