"""Script → simulated pump → real wire → store → lake → sessions and set-ups, against what the script says truly happened."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import simulators
from ingest import docks, hub, night
from ingest.lake import Lake
from simulators.link import Faults
from simulators.rig import Rig
from simulators.therapy import Truth, therapy
from transforms.orders import COLUMNS


def orders_of(folder: Path, *pumps: str) -> Path:
    rows = [
        {
            "pump_id": pump, "patient_id": f"pt-{number}", "order_id": f"ord-{number}", "drug": "treprostinil", "route": "SC",
            "payer": "payer-a", "rule_set": "cpt-9637x", "tz": "America/New_York", "start": "2026-01-01T00:00:00Z",
        }
        for number, pump in enumerate(pumps)
    ]  # fmt: skip
    path = folder / "orders.csv"
    path.write_text("\n".join([",".join(COLUMNS), *(",".join(row.get(name, "") for name in COLUMNS) for row in rows)]) + "\n")
    return path


def rows(lake: Path, table: str, pump: str) -> list[dict[str, Any]]:
    found = Lake.open(lake).read(table, night.CONSOLIDATED[table]).to_pylist()
    return [row for row in found if row["pump_id"] == pump]


def check(lake: Path, truth: Truth) -> None:
    """Minutes as the log proves them, never more than flowed; set-ups as the log shows them."""
    infusing = sum(row["infusing_s"] for row in rows(lake, "sessions", truth.pump_id))
    assert infusing <= truth.flowed_s + len(rows(lake, "sessions", truth.pump_id))
    assert infusing == pytest.approx(truth.proved_s, abs=60)
    shown = sorted((row["pump_setup"], row["new_site"]) for row in rows(lake, "setups", truth.pump_id))
    assert shown == sorted((one.pump_setup, one.new_site) for one in truth.set_ups)


def scripted(kind: str, seed: int, days: int = 3, **more: Any):
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=days + 1)
    return therapy(kind, seed, start, days, **more)


def now() -> datetime:
    return datetime.now(UTC)


@pytest.mark.parametrize("kind", ["sc_continuous", "pca", "demand_only"])
def test_pumps_that_publish_through_a_real_broker_give_what_truly_happened(broker, tmp_path, kind):
    lake = tmp_path / "lake"
    night.open_lake(lake, buckets=2)
    played = [
        simulators.family("canonical").simulate(
            scripted(kind, seed), seed, serial=f"P{seed}", now=now, faults=Faults(duplicates=0.3, reorder=True)
        )
        for seed in range(4)
    ]
    with hub.Hub(broker.url, lake / "store.sqlite"), Rig([device for device, _ in played], broker=broker.url, again_s=1.0) as rig:
        rig.wait_for_receipts(60)
    night.nightly(lake, orders_file=orders_of(tmp_path, *(truth.pump_id for _, truth in played)))
    for _, truth in played:
        check(lake, truth)


@pytest.mark.parametrize("model", [522, 723])
def test_pumps_in_serial_docks_give_what_truly_happened(tmp_path, model):
    lake = tmp_path / "lake"
    night.open_lake(lake, buckets=2)
    played = [
        simulators.family("paradigm").simulate(
            scripted("insulin_like", seed), seed, serial=f"48291{seed}", model=model, now=now, faults=Faults(silence=0.02, noise=0.02)
        )
        for seed in range(3)
    ]
    with Rig([device for device, _ in played]) as rig:
        results = docks.sync_all(lake, [f"{path}={pump}" for pump, path in rig.ports.items()])
        assert not [result for result in results if "error" in result]
        again = docks.sync_all(lake, [f"{path}={pump}" for pump, path in rig.ports.items()])
        assert not [result for result in again if "error" in result]
    night.nightly(lake, orders_file=orders_of(tmp_path, *(truth.pump_id for _, truth in played)))
    for _, truth in played:
        check(lake, truth)
        (about,) = rows(lake, "pumps", truth.pump_id)
        assert about["records"] == about["events"] + about["repeats"]
        assert about["holes"] == 0
