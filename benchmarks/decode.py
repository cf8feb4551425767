"""Records a second that each family decodes on one core, against the plainest reader of the same bytes: `python -m benchmarks.decode`.

Of binary logs that is `struct.iter_unpack` over words of as many bytes as a record has on average; of JSON lines msgspec; of other
text a split into fields. A ratio of 10 means that a record takes ten times as long as its bytes alone.
"""

from __future__ import annotations

import argparse
import json
import struct
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import msgspec

from devices.contract import Capture, Decoded, joined
from tests import conformance as kit

_BEST_OF = 5
_ASKED_DAYS = 60
"""A simulated pump that is asked keeps no more, or answers too slowly for more."""


def captures_of(family: str, days: int) -> list[Capture]:
    """A long log of this family, from the files that it comes in."""
    days = min(days, _ASKED_DAYS) if family in kit.ASKED else days
    script = kit.therapy(kit.KINDS[3], 1, kit.SPRING - timedelta(days=days), days, tz=kit.ZONE)
    played = kit.play(family, script, 1)
    model = played.captures[0].model
    return played.adapter.read_files(kit.files_of(played), pump_id=played.truth.pump_id, model=model, anchor=None)


def plain(captures: Sequence[Capture], records: int) -> tuple[str, Callable[[], int]]:
    """The name of the plainest reader of these bytes, and the reader: it gives how many pieces it read."""
    data = b"".join(one.data for one in captures)
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        size = max(4, round(len(data) / records))
        layout = struct.Struct(f"<{size // 4}I{size % 4}B")
        whole = data[: len(data) // size * size]
        return f"struct.iter_unpack of {size} bytes", lambda: sum(1 for _ in layout.iter_unpack(whole))
    if text.startswith("{"):
        lines, decoder = data.splitlines(), msgspec.json.Decoder()
        return "msgspec.json of lines", lambda: len([decoder.decode(line) for line in lines])
    return "split into lines and fields", lambda: len([line.split("|") for line in text.splitlines()])


def best_s(work: Callable[[], object]) -> float:
    """The shortest of some runs, s."""
    found = []
    for _ in range(_BEST_OF):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)


def decoded(family: str, captures: Sequence[Capture]) -> Decoded:
    """As the night decodes them: all together where the family can."""
    adapter = kit.ADAPTERS[family]
    together: Callable[[Sequence[Capture]], Decoded] | None = getattr(adapter, "decode_all", None)
    return together(captures) if together else joined(adapter.decode(one) for one in captures)


def measured(family: str, days: int) -> dict[str, str | int | float]:
    """One row: records, how many are decoded and assembled a second, and how many times as long as the plain reader decoding takes."""
    captures = captures_of(family, days)
    told = decoded(family, captures)
    records = told.records.num_rows
    reader, read = plain(captures, records)
    ours_s, plain_s = best_s(lambda: decoded(family, captures)), best_s(read)
    assembled_s = best_s(lambda: kit.ADAPTERS[family].assemble(captures[0].pump_id, *told))
    return {
        "family": family,
        "records": records,
        "captures": len(captures),
        "bytes": sum(len(one.data) for one in captures),
        "records_per_s": round(records / ours_s),
        "assembled_per_s": round(records / assembled_s),
        "against": reader,
        "ratio": round(ours_s / plain_s, 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: one JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description="Decoded records a second, by family.")
    parser.add_argument("--family", choices=kit.FAMILIES, action="append", help="default: every one")
    parser.add_argument("--days", type=int, default=120, help="length of the simulated log")
    said = parser.parse_args(arguments)
    for family in said.family or kit.FAMILIES:
        print(json.dumps(measured(family, said.days)), flush=True)


if __name__ == "__main__":
    main()
