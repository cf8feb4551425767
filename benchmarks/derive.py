"""How long the derivation takes, from events to published lines, beside what only reads and sorts the same events.

    python -m benchmarks.derive                      # 10 million events of 5,000 pumps over 30 days
    python -m benchmarks.derive --pumps 500          # a tenth of it

Interleaved in one run, three times each, every one from the start of its process to its end, imports included; of each the least time
counts:

(a) polars reads the events and sorts them on one packed integer key;
(b) polars reads the events and sorts them on four columns;
(c) pandas: sessions and units by the simple rules alone, vectorised as one would write it;
(d) the derivation: time, sessions, set-ups, holds, ledgers, ids, lines and worklist, written as Parquet;
(n) the same of every thirtieth pump: the night in which few have something new;
(s) the same of ten pumps for each processor: what starting takes, before much is derived.

polars works on all processors, and so does the derivation, in a process for each. Memory is the sum of the greatest memory of each
process, with what they share counted once. Ratios travel; absolute figures do not.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.yardsticks import READ
from devices.contract import EVENTS, event_id
from ingest import files
from ingest.night import collector_off, rule_sets
from ingest.processes import each, processors
from transforms import billing, sessions
from transforms.block import Block
from transforms.orders import COLUMNS, Orders, parse

FIRST_MS = 1_772_323_200_000  # 2026-03-01 00:00 UTC
DAYS, A_DAY, DAY_MS = 30, 2, 86_400_000
PER_SESSION = 33
PUMPS_A_FILE = 100
ROW_GROUP = 1 << 14
A_PUMP = DAYS * A_DAY * PER_SESSION


# --- the events -----------------------------------------------------------------------------------------------------------------


def make(folder: Path, pumps: int, seed: int) -> None:
    """Events of so many pumps: about two sessions a pump and day, boluses, demands and rate changes the rest; one session in a
    hundred lacks its stop, one in two hundred has a hole, one in fifty an alarm that stops it."""
    for number, first in enumerate(range(0, pumps, PUMPS_A_FILE)):
        rng = np.random.default_rng([seed, number])
        count = min(PUMPS_A_FILE, pumps - first)
        events = _events(rng, first, count)
        pq.write_table(events, folder / f"events-{number:04}.parquet", compression="zstd", compression_level=1, row_group_size=ROW_GROUP)


def _events(rng: np.random.Generator, first: int, pumps: int) -> pa.Table:
    many = pumps * DAYS * A_DAY
    slot = DAY_MS // A_DAY
    start = FIRST_MS + np.tile(np.arange(DAYS * A_DAY) * slot, pumps) + rng.integers(1_800_000, 3_600_000, many)
    lasts = rng.integers(20 * 60_000, 9 * 3_600_000, many)
    body = PER_SESSION - 5
    within = np.sort(rng.random((many, body)), axis=1) * lasts[:, None]
    at = np.empty((many, PER_SESSION), dtype=np.int64)
    at[:, 0] = start - 300_000
    at[:, 1], at[:, 2], at[:, 3] = start - 240_000, start - 120_000, start
    at[:, 4:-1] = start[:, None] + within.astype(np.int64) // 1000 * 1000
    at[:, -1] = start + lasts
    at = at // 1000 * 1000
    what = rng.choice(4, p=[0.35, 0.35, 0.1, 0.2], size=(many, body))
    names = np.array(
        ["bolus_delivered", "demand_granted", "demand_denied", "rate_change", "reservoir_change", "priming_done", "delivery_start",
         "delivery_stop", "data_gap", "alarm_raised"]
    )  # fmt: skip
    kind = np.empty((many, PER_SESSION), dtype=np.int64)
    kind[:, 0], kind[:, 1], kind[:, 2], kind[:, 3], kind[:, -1] = 4, 5, 5, 6, 7
    kind[:, 4:-1] = what
    odd = rng.random(many)
    kind[odd < 0.01, -1] = 2
    kind[(odd > 0.5) & (odd < 0.505), 10] = 8
    kind[(odd > 0.6) & (odd < 0.62), -1] = 9
    kinds, times = kind.ravel(), at.ravel()
    size = len(kinds)
    pump = first + np.arange(size) // A_PUMP
    seq = np.arange(size) % A_PUMP
    cannula = (np.arange(size) % PER_SESSION) == 2
    hole, bolus, rate = kinds == 8, kinds == 0, (kinds == 3) | (kinds == 6)
    ids = [f"canonical:{n:05}" for n in range(first, first + pumps)]
    keys = [f"0:{n}" for n in range(A_PUMP)]
    columns = {
        "event_id": [event_id(one, key) for one in ids for key in keys],
        "pump_id": pa.array(ids).take(pa.array(pump - first)),
        "log_epoch": np.zeros(size, dtype=np.int32),
        "record_key": keys * pumps,
        "seq": pa.array(seq, mask=hole),
        "kind": pa.array(names.tolist()).take(pa.array(kinds)),
        "source": pa.array(["primary", "pca"]).take(pa.array(np.where(bolus, 1, 0), mask=~(bolus | rate | (kinds == 7)))),
        "reason": pa.array(["user"]).take(pa.array(np.zeros(size, dtype=np.int64), mask=kinds != 7)),
        "target": pa.array(["tubing", "cannula"]).take(pa.array(cannula.astype(np.int64), mask=kinds != 5)),
        "alarm_class": pa.array(["occlusion"]).take(pa.array(np.zeros(size, dtype=np.int64), mask=kinds != 9)),
        "stops_delivery": pa.array(np.ones(size, dtype=bool), mask=kinds != 9),
        "pump_time": pa.array(times, mask=hole).cast(pa.timestamp("ms")),
        "rate_ml_h": pa.array(rng.integers(1, 40, size) / 10, mask=~rate),
        "volume_ml": pa.array(np.full(size, 0.2), mask=~(bolus | (kinds == 5))),
        "duration_s": pa.array(np.full(size, 30.0), mask=~bolus),
        "native_code": pa.array([""]).take(pa.array(np.zeros(size, dtype=np.int64))),
        "detail": pa.array(["{}"]).take(pa.array(np.zeros(size, dtype=np.int64))),
        "raw": pa.array(np.frombuffer(rng.bytes(26 * size), dtype="S26"), pa.binary()),
        "conflict": np.zeros(size, dtype=bool),
    }
    return pa.table(
        {f.name: pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(size, f.type) for f in EVENTS}, schema=EVENTS
    )


@cache
def known(pumps: int) -> Orders:
    """One order a pump."""
    rows = [
        f"canonical:{n:05},pt-{n:05},ord-{n:05},hydromorphone,SC,,,payer-{n % 7},cpt-9637x,,America/New_York,2026-01-01T00:00:00Z,"
        for n in range(pumps)
    ]
    return parse("\n".join([",".join(COLUMNS), *rows]), rule_sets())


# --- what is measured -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Derived:
    """What the derivation of some files gave: lines; CPU seconds of each step; the process that did it, and its greatest memory, MB."""

    lines: int
    spent: Counter[str]
    process: int
    mb: tuple[float, float]


def derivation(folder: Path, out: Path, what: str) -> None:
    """(d), (n) or (s): prints memory (MB, of all processes) and how many lines came out."""
    made = sorted(folder.glob("events-*.parquet"))
    pumps = sum(pq.read_metadata(file).num_rows for file in made) // A_PUMP
    share = SHARES[what]
    if what == "s":
        made = made[: processors()]
    # A file is a block of a good size; of few pumps, all files of a process are one.
    together = 1 if share == 1 else -(-len(made) // processors())
    blocks = [made[first : first + together] for first in range(0, len(made), together)]
    memory = {os.getpid(): _memory_mb()}
    spent: Counter[str] = Counter()
    lines = 0
    for one in each(partial(_derive, out=out, pumps=pumps, share=share), blocks):
        memory[one.process] = max(memory.get(one.process, (0.0, 0.0)), one.mb)
        spent.update(one.spent)
        lines += one.lines
    cpu = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in spent.items())
    print(f"    CPU of {len(memory)} processes: {cpu}", file=sys.stderr)
    shared = max(shared for _, shared in memory.values())
    print(sum(whole - shared for whole, shared in memory.values()) + shared, lines)


def _derive(made: Sequence[Path], *, out: Path, pumps: int, share: int) -> Derived:
    orders, policy = known(pumps), sessions.FactPolicy()
    spent: Counter[str] = Counter()
    mark = time.process_time()

    def note(what: str) -> None:
        nonlocal mark
        now = time.process_time()
        spent[what] += now - mark
        mark = now

    block = _block(pa.concat_tables([_read(file, pumps, share) for file in made]))
    note("read")
    facts = sessions.derive_all(block, orders, policy, events=False)
    del block
    note("facts")
    told = billing.Facts(facts.sessions, facts.intervals, facts.setups, facts.doubts)
    with collector_off():
        found = billing.bill(told, orders, rule_sets(), asdict(policy))
    note("bill")
    tables = {name: getattr(facts, name) for name in ("sessions", "intervals", "setups", "doubts")}
    tables |= {name: getattr(found, name) for name in ("lines", "worklist", "days")}
    for name, table in tables.items():
        (out / f"{name}-{made[0].stem}.parquet").write_bytes(files.parquet(table))
    note("write")
    return Derived(found.lines.num_rows, spent, os.getpid(), _memory_mb())


def _memory_mb() -> tuple[float, float]:
    """The greatest memory of this process so far, and how much of it is the code of libraries, which processes share."""
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    status = Path("/proc/self/status")
    told = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line) if status.exists() else {}
    return whole, int(told.get("RssFile", "0 kB").split()[0]) / 1024


def _read(file: Path, pumps: int, share: int) -> pa.Table:
    """The events of every `share`-th pump that are in a file."""
    columns = [name for name in EVENTS.names if name in READ]
    with pq.ParquetFile(file, read_dictionary=_WORDS) as opened:
        if share == 1:
            return opened.read(columns=columns, use_threads=False)
        due = [f"canonical:{n:05}" for n in range(0, pumps, share)]
        at = EVENTS.get_field_index("pump_id")
        told = [opened.metadata.row_group(group).column(at).statistics for group in range(opened.num_row_groups)]
        groups = [number for number, one in enumerate(told) if bisect_left(due, one.min) < bisect_right(due, one.max)]
        found = opened.read_row_groups(groups, columns=columns, use_threads=False)
    return found.filter(pc.is_in(found["pump_id"], value_set=pa.array(due)))


_WORDS = ["pump_id", "kind", "source", "reason", "target", "at", "alarm_class", "proves"]


def _block(events: pa.Table) -> Block:
    """A file of events as a block, with an anchor behind the last event of every pump and day."""
    pump = events.column("pump_id").combine_chunks()
    code = pump.indices.to_numpy() if isinstance(pump, pa.DictionaryArray) else pump.chunk(0).indices.to_numpy()
    bounds = np.concatenate(([0], np.flatnonzero(np.diff(code)) + 1, [len(code)])).astype(np.int64)
    day = PER_SESSION * A_DAY
    after = np.arange(day - 1, len(code), day, dtype=np.int64)
    clock = events.column("pump_time").cast(pa.int64()).take(pa.array(after)).fill_null(0).to_numpy() + 60_000
    return Block(
        events=events,
        pumps=tuple(pump.dictionary.to_pylist()),
        bounds=bounds,
        after=after,
        clock=clock,
        utc=clock.copy(),
        trip=np.full(len(after), 120),
        anchor_bounds=np.searchsorted(after, bounds),
        gaps_visible=(True,) * (len(bounds) - 1),
    )


# --- the run ----------------------------------------------------------------------------------------------------------------------


SHARES = {"d": 1, "n": 30, "s": PUMPS_A_FILE // 10}
SAYS = {
    "a": "polars: read, sort on a packed key", "b": "polars: read, sort on four columns", "c": "pandas: the simple rules alone",
    "d": "the derivation, to published lines", "n": "the derivation of 1/30 of the pumps", "s": "the derivation of ten pumps a processor",
}  # fmt: skip


def main() -> int:
    """Makes the events, measures, prints."""
    asks = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asks.add_argument("--pumps", type=int, default=5000)
    asks.add_argument("--rounds", type=int, default=3)
    asks.add_argument("--seed", type=int, default=1)
    asks.add_argument("--folder", type=Path, help="where the events are kept (default: a temporary folder)")
    told = asks.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = told.folder or Path(temporary, "events")
        folder.mkdir(parents=True, exist_ok=True)
        if not list(folder.glob("events-*.parquet")):
            make(folder, told.pumps, told.seed)
        events = sum(pq.read_metadata(file).num_rows for file in folder.glob("events-*.parquet"))
        print(f"{events:,} events, seed {told.seed}; least of {told.rounds} rounds, interleaved, on {processors()} processors")
        best = _measured(folder, Path(temporary), told.rounds)
    for name, (seconds, mb, rows) in best.items():
        print(f"({name}) {SAYS[name]:39} {seconds:7.2f} s  {mb:6.0f} MB  {rows:>10,} rows")
    d = best["d"][0]
    print(f"(d) is {d / best['a'][0]:.2f} x (a), {d / best['b'][0]:.2f} x (b), {d / best['c'][0]:.2f} x (c); {events / d:,.0f} events/s")
    n, s = best["n"][0], best["s"][0]
    print(f"1/30 of the pumps takes {n / d:.3f} of all; without what starting takes, {(n - s) / (d - s):.3f}")
    return 0


def _measured(folder: Path, temporary: Path, rounds: int) -> dict[str, tuple[float, float, int]]:
    """Of each the least time (s) that it took, its memory (MB) and how many rows came out."""
    out = temporary / "out"
    out.mkdir()
    # As on a machine where it is installed: imports are compiled already, wherever and however this one keeps them.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(temporary / "compiled")

    def run(*arguments: str) -> tuple[float, float, int]:
        began = time.perf_counter()
        done = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True, env=environment)
        seconds = time.perf_counter() - began
        mb, rows = done.stdout.split()
        return seconds, float(mb), int(rows)

    runs = {name: ("-m", "benchmarks.yardsticks", name, str(folder)) for name in "abc"}
    runs |= {name: ("-m", "benchmarks.derivation", str(folder), str(out), name) for name in SHARES}
    for name in ("c", "n"):  # compiles what is not yet: Python's modules, and the kernels
        run(*runs[name])
    best: dict[str, tuple[float, float, int]] = {}
    for _ in range(rounds):
        for name, arguments in runs.items():
            best[name] = min(best.get(name, (float("inf"), 0.0, 0)), run(*arguments))
    return best


if __name__ == "__main__":
    sys.exit(main())
