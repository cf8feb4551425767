"""The main job on simulated pumps: PCA and subcutaneous pumps over MQTT and serial lines → store → lake → lines."""

from __future__ import annotations

import csv
import io
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import simulators
from devices.contract import AlarmClass, Source, Target
from devices.errors import InputError, masked
from ingest import docks, explain, files, hub, night, settings, telling, views
from ingest.lake import Lake
from ingest.page import as_html
from simulators.rig import Rig, embedded_broker
from simulators.therapy import Pen, Script, Truth
from transforms.orders import COLUMNS

TZ = "America/New_York"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """A pump, what happens to it, and the order behind it."""

    family: str
    serial: str
    order: dict[str, str]
    script: Script
    options: dict[str, Any]

    @property
    def pump_id(self) -> str:
        """family:serial."""
        return f"{self.family}:{self.serial}"


def patients(now: datetime) -> list[Patient]:
    """The demo's patients, whose last days end now (UTC): lines of every code that are ready, and others held for several reasons."""
    start = (now - timedelta(days=4)).replace(hour=5, minute=0, second=0, microsecond=0)

    def pen() -> Pen:
        return Pen(start, TZ).until(8)

    plain = pen().set_up().wait(seconds=30).run(2.0).wait(minutes=95).stop()
    two_sites = pen().set_up().wait(seconds=30).run(1.5).wait(minutes=60).stop()
    two_sites.wait(minutes=5).set_up().wait(seconds=30).run(1.5).wait(minutes=75).complete().run(0.1, Source.KVO)
    two_sites.wait(minutes=12).stop(Source.KVO)
    long = pen().set_up().wait(seconds=30).run(1.0).wait(hours=5).alarm(AlarmClass.OCCLUSION, stops=True).wait(minutes=9)
    long.clear(AlarmClass.OCCLUSION).run(1.0).wait(hours=5).stop()
    demands = pen().set_up().run(0.0)
    for _ in range(6):
        demands.wait(minutes=20).demand().bolus(0.5, 240.0).wait(minutes=6).demand(denied="lockout")
    demands.wait(minutes=20).stop()
    lost = pen().set_up().wait(seconds=30).run(2.0).wait(minutes=40).battery_out(25).wait(minutes=3).set_clock()
    lost.wait(minutes=2).run(2.0).wait(minutes=50).stop()
    possible = pen().set_up().wait(seconds=30).run(2.0).wait(minutes=70).stop().wait(minutes=4)
    possible.reservoir().wait(minutes=2).prime(Target.UNKNOWN, 0.3).wait(minutes=1).run(2.0).wait(minutes=30).stop()
    basal = Pen(start, TZ).until(7).run(0.4, Source.BASAL).wait(minutes=20).stop(Source.BASAL)
    for minutes in (130, 95):
        basal.wait(hours=20).until(9).set_up().wait(seconds=30).run(0.4, Source.BASAL).wait(minutes=minutes).stop(Source.BASAL)
    serial_pca = pen().run(1.2).wait(minutes=50)
    for _ in range(3):
        serial_pca.demand().bolus(0.4, 120.0).wait(minutes=22).demand(denied="lockout").wait(minutes=8)
    serial_pca.stop().wait(minutes=20).reservoir().wait(minutes=6).run(1.2).wait(minutes=70).stop()
    insulin = Pen(start, TZ).until(6).run(0.09, Source.BASAL).wait(hours=6).stop(Source.BASAL).wait(minutes=30)
    insulin.run(0.09, Source.BASAL).wait(hours=20).stop(Source.BASAL)
    return [
        _patient("canonical", "PCA-01", "pt-101", "hydromorphone", plain, now),
        _patient("canonical", "PCA-02", "pt-102", "morphine", two_sites, now),
        _patient("canonical", "PCA-03", "pt-103", "hydromorphone", long, now),
        _patient("canonical", "PCA-04", "pt-104", "morphine", demands, now),
        _patient("canonical", "PCA-05", "pt-105", "hydromorphone", lost, now),
        _patient("canonical", "PCA-06", "pt-106", "ketamine", possible, now),
        _patient("miva", "M4821907", "pt-107", "hydromorphone", serial_pca, now),
        _patient("paradigm", "482916", "pt-201", "treprostinil", basal, now, model=723),
        _patient("paradigm", "482917", "pt-202", "insulin lispro", insulin, now, model=522),
    ]


def _patient(family: str, serial: str, patient: str, drug: str, pen: Pen, now: datetime, **options: Any) -> Patient:
    order = {
        "pump_id": f"{family}:{serial}",
        "patient_id": patient,
        "order_id": f"ord-{patient[3:]}",
        "drug": drug,
        "route": "SC",
        "payer": "payer-a",
        "rule_set": "cpt-9637x",
        "tz": TZ,
        "start": (pen.start - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return Patient(family=family, serial=serial, order=order, script=pen.script(now), options=options)


def orders_csv(of: Sequence[Patient]) -> str:
    """The orders behind these patients, as orders.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(one.order for one in of)
    return text.getvalue()


def run(out: Path, say: Callable[[str], None], show_page: Callable[[night.Page], None]) -> Path:
    """Runs the demo into `out`/lake and gives the lake's folder. Raises InputError where `out` holds something else."""
    lake = _fresh(out)
    now = datetime.now(UTC).replace(microsecond=0)
    people = patients(now)
    say(f"1. {len(people)} simulated pumps begin: PCA pumps publish over MQTT; a PCA pump and subcutaneous pumps wait in serial docks.")
    devices, truths = [], []
    for number, one in enumerate(people):
        device, truth = simulators.family(one.family).simulate(
            one.script, number, serial=one.serial, now=lambda: datetime.now(UTC), **one.options
        )
        devices.append(device)
        truths.append(truth)
    files.replace_text(lake / "orders.csv", orders_csv(people))
    store = lake / "store.sqlite"
    with embedded_broker() as broker, hub.Hub(broker, store) as listening, Rig(devices, broker=broker) as rig:
        rig.wait_for_receipts(60)
        say(f"2. The hub heard them at {broker}: {listening.counters.stored} captures are durable, and each has its receipt.")
        ports = [f"{path}={pump}" for pump, path in rig.ports.items()]
        began = time.monotonic()
        for result in docks.sync_all(lake, ports, store=store):
            if "error" in result:
                raise InputError(f"The simulated dock failed: {result['line']}", do="Run it again; tell us if it stays.", code="demo")
            say(f"3. Downloaded over {Path(result['port']).name}: {result['line']}")
        say(f"   (all docks at once, {time.monotonic() - began:.1f} s)")
    say("4. The night: store → raw → events → sessions → set-ups → lines → worklist.")
    show_page(night.nightly(lake, orders_file=lake / "orders.csv", store=store))
    _show(lake, truths, say)
    return lake


def _fresh(out: Path) -> Path:
    lake = out / "lake"
    if lake.exists() and not (lake / settings.NAME).exists():
        raise InputError(f"{lake} is there and is no lake.", do="Name another folder with --out.", code="demo")
    shutil.rmtree(lake, ignore_errors=True)
    night.open_lake(lake)
    return lake


def _show(lake: Path, truths: Sequence[Truth], say: Callable[[str], None]) -> None:
    there = Lake.open(lake)
    for name in ("sessions", "setups", "lines", "worklist"):
        say(f"\n{name}:")
        views.write(views.select(there, name), name, "table", sys.stdout)
    say("What truly flowed, and what the ledger counts, in minutes:")
    counted: dict[str, int] = {}
    for row in views.select(there, "sessions").to_pylist():
        counted[row["pump_id"]] = counted.get(row["pump_id"], 0) + row["infusing_s"]
    for truth in truths:
        say(f"  {masked(truth.pump_id)}: {truth.flowed_s / 60:.1f} flowed, {counted.get(truth.pump_id, 0) / 60:.1f} counted")
    lines = [line for line in views.select(there, "lines").to_pylist() if line["state"] == "ready"]
    shown = max(lines, key=lambda line: (len(line["pump_ids"]), line["code"]))
    say(f"\nOne line, down to the bytes (pumpledger explain {shown['line_id'][:10]} --lake {lake}):\n")
    say(telling.as_text(explain.explain(there, shown["line_id"])))
    page = lake.parent / "line.html"
    files.replace_text(page, as_html(explain.explain(there, shown["line_id"])))
    say(f"\nThe same with its timeline drawn: {page}")
    say(f"The Parquet lies in {lake}; look around with: pumpledger lines --lake {lake}")
