"""How long the derivation takes, from events to published lines, beside what only reads and sorts the same events.

    python -m benchmarks.derive                      # 10 million events of 5,000 pumps over 30 days
    python -m benchmarks.derive --pumps 500          # a tenth of it

Interleaved in one run, three times each, every one in a process of its own; of each the least time counts:

(a) polars reads the events and sorts them on one packed integer key;
(b) polars reads the events and sorts them on four columns;
(c) pandas: sessions and units by the simple rules alone, vectorised as one would write it;
(d) the derivation: time, sessions, set-ups, holds, ledgers, ids, lines and worklist, written as Parquet.

Ratios travel; absolute figures do not.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from devices.contract import EVENTS, event_id
from ingest.night import rule_sets
from transforms import billing, sessions
from transforms.block import Block
from transforms.orders import COLUMNS, Orders, parse

FIRST_MS = 1_772_323_200_000  # 2026-03-01 00:00 UTC
DAYS, A_DAY, DAY_MS = 30, 2, 86_400_000
PER_SESSION = 33
PUMPS_A_FILE = 125
READ = [
    "event_id", "pump_id", "log_epoch", "record_key", "seq", "kind", "source", "reason", "target", "at", "alarm_class", "stops_delivery",
    "pump_time", "new_time", "native_ms", "rate_ml_h", "rate_dose_h", "volume_ml", "programmed_ml", "dose", "programmed_dose", "duration_s",
    "lockout_s", "proves", "raw", "conflict",
]  # fmt: skip
"""The columns that the derivation reads, and so the others."""


# --- the events -----------------------------------------------------------------------------------------------------------------


def make(folder: Path, pumps: int, seed: int) -> None:
    """Events of so many pumps: about two sessions a pump and day, boluses, demands and rate changes the rest; one session in a
    hundred lacks its stop, one in two hundred has a hole, one in fifty an alarm that stops it."""
    for number, first in enumerate(range(0, pumps, PUMPS_A_FILE)):
        rng = np.random.default_rng([seed, number])
        count = min(PUMPS_A_FILE, pumps - first)
        events = _events(rng, first, count)
        pq.write_table(events, folder / f"events-{number:04}.parquet", compression="zstd", compression_level=1, row_group_size=1 << 16)


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
    pump = first + np.arange(size) // (DAYS * A_DAY * PER_SESSION)
    seq = np.arange(size) % (DAYS * A_DAY * PER_SESSION)
    cannula = (np.arange(size) % PER_SESSION) == 2
    hole, bolus, rate = kinds == 8, kinds == 0, (kinds == 3) | (kinds == 6)
    ids = [f"canonical:{n:05}" for n in range(first, first + pumps)]
    keys = [f"0:{n}" for n in range(DAYS * A_DAY * PER_SESSION)]
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


def known(pumps: int) -> Orders:
    """One order a pump."""
    rows = [
        f"canonical:{n:05},pt-{n:05},ord-{n:05},hydromorphone,SC,,,payer-{n % 7},cpt-9637x,,America/New_York,2026-01-01T00:00:00Z,"
        for n in range(pumps)
    ]
    return parse("\n".join([",".join(COLUMNS), *rows]), rule_sets())


# --- what is measured -------------------------------------------------------------------------------------------------------------


def packed(folder: Path) -> tuple[int, float]:
    """(a)"""
    import polars as pl

    events = pl.read_parquet(folder / "*.parquet", columns=READ)
    key = events["pump_id"].str.tail(5).cast(pl.Int64) * (1 << 32) + events["seq"].fill_null(0)
    return events.with_columns(key.alias("key")).sort("key").height, _resident_mb()


def four(folder: Path) -> tuple[int, float]:
    """(b)"""
    import polars as pl

    return pl.read_parquet(folder / "*.parquet", columns=READ).sort("pump_id", "log_epoch", "seq", "pump_time").height, _resident_mb()


def simple(folder: Path) -> tuple[int, float]:
    """(c): starts and stops paired, gaps closed, minutes and units; no holds, no ledger, no ids, no time but the printed one."""
    import pandas as pd

    events = pd.read_parquet(folder, columns=["pump_id", "seq", "kind", "source", "pump_time"])
    events = events.sort_values(["pump_id", "pump_time", "seq"])
    flow = events[events["kind"].isin(["delivery_start", "delivery_stop", "alarm_raised"])].copy()
    flow["start"] = flow["kind"] == "delivery_start"
    flow["stop_time"] = flow.groupby("pump_id")["pump_time"].shift(-1)
    pieces = flow[flow["start"] & flow["stop_time"].notna()].copy()
    gap = pieces["pump_time"] - pieces.groupby("pump_id")["stop_time"].shift(1)
    pieces["session"] = (gap.isna() | (gap > pd.Timedelta(minutes=60))).groupby(pieces["pump_id"]).cumsum()
    pieces["minutes"] = (pieces["stop_time"] - pieces["pump_time"]).dt.total_seconds() / 60
    found = pieces.groupby(["pump_id", "session"]).agg(start=("pump_time", "min"), minutes=("minutes", "sum")).reset_index()
    found["date"] = found["start"].dt.tz_localize("UTC").dt.tz_convert("America/New_York").dt.date
    by_day = found.groupby(["pump_id", "date"])["minutes"].sum().astype("int64").reset_index()
    by_day["further"] = ((by_day["minutes"] - 31) // 60).where(by_day["minutes"] >= 91, 0)
    return len(by_day), _resident_mb()


def derivation(folder: Path, share: int = 1) -> tuple[int, float]:
    """(d), of every `share`-th pump: files go over processes, as the tasks of a night take buckets; a few pumps need but one."""
    files = sorted(folder.glob("events-*.parquet"))
    (folder / "out").mkdir(exist_ok=True)
    batches = [[file] for file in files] if share == 1 else [files]
    workers = min(len(os.sched_getaffinity(0)), len(batches))
    derive = partial(_derived, len(files), share)
    if workers == 1:
        told = [derive(batch) for batch in batches]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            told = list(pool.map(derive, batches))
    spent = {what: sum(one.spent[what] for one in told) for what in ("read", "facts", "bill", "write")}
    print(f"   {workers} processes, of it " + ", ".join(f"{what} {seconds:.1f} s" for what, seconds in spent.items()), file=sys.stderr)
    at_most = {one.process: one.mb for one in sorted(told, key=lambda one: one.mb)}
    at_most[os.getpid()] = _resident_mb()
    return sum(one.lines for one in told), sum(at_most.values())


@dataclass
class Derived:
    """What a process made of some files: lines, seconds by step, and the most memory it held."""

    lines: int
    spent: dict[str, float]
    process: int
    mb: float


def _resident_mb() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _derived(files: int, share: int, batch: list[Path]) -> Derived:
    orders, policy = known(files * PUMPS_A_FILE), sessions.FactPolicy()
    spent = dict.fromkeys(("read", "facts", "bill", "write"), 0.0)
    mark = time.perf_counter()
    columns = [name for name in EVENTS.names if name in READ]
    parts = [pq.read_table(file, columns=columns, read_dictionary=_WORDS, filters=_due(file, share)) for file in batch]
    block = _block(pa.concat_tables(parts).unify_dictionaries().combine_chunks())
    del parts
    mark = _spent(spent, "read", mark)
    facts = sessions.derive_all(block, orders, policy, events=False)
    del block
    mark = _spent(spent, "facts", mark)
    found = billing.bill(billing.Facts(facts.sessions, facts.intervals, facts.setups, facts.doubts), orders, rule_sets(), asdict(policy))
    mark = _spent(spent, "bill", mark)
    tables = {name: getattr(facts, name) for name in ("sessions", "intervals", "setups", "doubts")}
    tables |= {name: getattr(found, name) for name in ("lines", "worklist", "days")}
    for name, table in tables.items():
        pq.write_table(table, batch[0].parent / "out" / f"{name}-{batch[0].stem}.parquet", compression="zstd", compression_level=1)
    _spent(spent, "write", mark)
    return Derived(found.lines.num_rows, spent, os.getpid(), _resident_mb())


def _due(file: Path, share: int) -> list[tuple[str, str, list[str]]] | None:
    if share == 1:
        return None
    first = int(file.stem.split("-")[1]) * PUMPS_A_FILE
    return [("pump_id", "in", [f"canonical:{n:05}" for n in range(first, first + PUMPS_A_FILE) if n % share == 0])]


def _spent(spent: dict[str, float], what: str, since: float) -> float:
    now = time.perf_counter()
    spent[what] += now - since
    return now


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


def _one_in_thirty(folder: Path) -> tuple[int, float]:
    return derivation(folder, 30)


ONES = {"a": packed, "b": four, "c": simple, "d": derivation, "n": _one_in_thirty}


# --- the run ----------------------------------------------------------------------------------------------------------------------


def main() -> int:
    """Makes the events, measures, prints."""
    asks = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asks.add_argument("--pumps", type=int, default=5000)
    asks.add_argument("--rounds", type=int, default=3)
    asks.add_argument("--seed", type=int, default=1)
    asks.add_argument("--folder", type=Path, help="where the events are kept (default: a temporary folder)")
    asks.add_argument("--one", choices=ONES, help=argparse.SUPPRESS)
    told = asks.parse_args()
    if told.one:
        began = time.perf_counter()
        rows, mb = ONES[told.one](told.folder)
        print(time.perf_counter() - began, mb, rows)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = told.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        pumps = -(-told.pumps // PUMPS_A_FILE) * PUMPS_A_FILE
        if not list(folder.glob("events-*.parquet")):
            make(folder, pumps, told.seed)
        events = sum(pq.read_metadata(file).num_rows for file in folder.glob("events-*.parquet"))
        print(
            f"{events:,} events of {pumps:,} pumps, seed {told.seed}; least of {told.rounds} rounds, interleaved, each in its own process"
        )
        subprocess.run([sys.executable, "-m", "benchmarks.derive", "--one", "n", "--folder", folder], check=True, capture_output=True)
        best: dict[str, tuple[float, float, int]] = {}
        for _ in range(told.rounds):
            for name in ONES:
                run = [sys.executable, "-m", "benchmarks.derive", "--one", name, "--folder", str(folder)]
                seconds, mb, rows = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
                best[name] = min(best.get(name, (float("inf"), 0.0, 0)), (float(seconds), float(mb), int(rows)))
    says = {
        "a": "polars: read, sort on a packed key", "b": "polars: read, sort on four columns", "c": "pandas: the simple rules alone",
        "d": "the derivation, to published lines", "n": "the derivation of 1/30 of the pumps",
    }  # fmt: skip
    for name, (seconds, mb, rows) in best.items():
        print(f"({name}) {says[name]:36} {seconds:7.2f} s  {mb:6.0f} MB  {rows:>10,} rows")
    d = best["d"][0]
    print(f"(d) is {d / best['a'][0]:.2f} x (a), {d / best['b'][0]:.2f} x (b), {d / best['c'][0]:.2f} x (c); {events / d:,.0f} events/s")
    print(f"1/30 of the pumps takes {best['n'][0] / d:.3f} of all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
