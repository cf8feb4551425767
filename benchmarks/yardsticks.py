"""What the derivation is measured against (benchmarks/derive.py): what only reads and sorts the same events, or follows simple rules.

    python -m benchmarks.yardsticks a FOLDER

Prints the greatest memory of the process (MB) and how many rows came out.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

READ = [
    "event_id", "pump_id", "log_epoch", "record_key", "seq", "kind", "source", "reason", "target", "at", "alarm_class", "stops_delivery",
    "pump_time", "new_time", "native_ms", "rate_ml_h", "rate_dose_h", "volume_ml", "programmed_ml", "dose", "programmed_dose", "duration_s",
    "lockout_s", "proves", "raw", "conflict",
]  # fmt: skip
"""The columns that the derivation reads, and so the others."""


def packed(folder: Path) -> int:
    """(a) polars: read, and sort on one integer, the digits of the pump and the record's number. Streamed, as it is quickest."""
    import polars as pl

    pump = pl.col("pump_id").str.slice(len("canonical:")).cast(pl.Int64)
    key = pump * (1 << 32) + pl.col("seq").fill_null(0)
    events = pl.scan_parquet(folder / "events-*.parquet").select(READ)
    return events.with_columns(key.alias("key")).sort("key").collect(engine="streaming").height


def four(folder: Path) -> int:
    """(b) polars: read, and sort on the columns as they are."""
    import polars as pl

    events = pl.scan_parquet(folder / "events-*.parquet").select(READ)
    return events.sort("pump_id", "log_epoch", "seq", "pump_time").collect(engine="streaming").height


def simple(folder: Path) -> int:
    """(c) pandas: starts and stops paired, gaps closed, minutes and units; no holds, no ledger, no ids, no time but the printed one."""
    import pandas as pd

    events = pd.read_parquet(sorted(folder.glob("events-*.parquet")), columns=["pump_id", "seq", "kind", "source", "pump_time"])
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
    return len(by_day)


if __name__ == "__main__":
    rows = {"a": packed, "b": four, "c": simple}[sys.argv[1]](Path(sys.argv[2]))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, rows)
