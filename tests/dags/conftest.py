"""A real Airflow on a metadata database of its own, and a lake with what a pump told."""

from __future__ import annotations

import hashlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT

BIN = Path(sys.executable).parent
LIMIT_S = 300


class Site:
    """An AIRFLOW_HOME and a lake in one folder, and the environment that names them and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lake = folder, folder / "lake"
        home = folder / "airflow"
        home.mkdir()
        self.database = home / "airflow.db"
        self.environment = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "PUMPLEDGER_LAKE": str(self.lake),
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.database}",
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        }

    def write(self, name: str, text: str) -> Path:
        """A file in the lake's root."""
        self.lake.mkdir(exist_ok=True)
        path = self.lake / name
        path.write_text(text)
        return path

    def load(self, *lines: dict[str, Any]) -> None:
        """Puts canonical JSON lines into the store, as a person would."""
        file = self.folder / "capture.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        subprocess.run([BIN / "pumpledger", "load", file, "--lake", self.lake], env=self.environment, check=True, timeout=LIMIT_S)

    def rows(self, table: str) -> list[dict[str, Any]]:
        """All rows of a derived table."""
        return [row for file in sorted((self.lake / table).rglob("*.parquet")) for row in pq.ParquetFile(file).read().to_pylist()]

    def files(self) -> dict[str, str]:
        """Every file of the lake by its hash; the store is not of the lake."""
        return {
            str(path.relative_to(self.lake)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.lake.rglob("*"))
            if path.is_file() and not path.name.startswith("store.sqlite")
        }

    @contextmanager
    def airflow(self) -> Iterator[Airflow]:
        """Airflow on the metadata database of this site, in a process that ends with the block."""
        read, write = os.pipe()
        with (self.folder / "airflow.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("in_airflow.py"), str(write)],
                env=self.environment,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[write],
                text=True,
            )
        os.close(write)
        with process, os.fdopen(read) as results:
            try:
                yield Airflow(process, results, self.folder / "airflow.log")
            finally:
                process.kill()


class Airflow:
    """A process that runs one DAG after another."""

    def __init__(self, process: subprocess.Popen[str], results: Any, log: Path) -> None:
        self.process, self.results, self.log = process, results, log

    def __call__(self, name: str, *arguments: Any) -> Any:
        """The result of one job of in_airflow.py."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.results], [], [], LIMIT_S)
        answer = self.results.readline() if ready else ""
        assert answer, f"Airflow gave no result for {name}:\n{self.log.read_text()[-6000:]}"
        return json.loads(answer)

    def run(self, dag_id: str, moment: datetime | None = None, **conf: Any) -> Any:
        """One run of a DAG."""
        return self("run", dag_id, moment and moment.isoformat(), conf or None)


EVENING = (datetime.now(UTC) - timedelta(days=2)).replace(hour=18, minute=0, second=0, microsecond=0, tzinfo=None)


def infusion(seq: int, start: datetime, pump: str = "canonical:A17") -> list[dict[str, Any]]:
    """What a pump tells of one infusion of two hours, set up on a new site, its clock right."""

    def at(minutes: int) -> str:
        return (start + timedelta(minutes=minutes)).isoformat()

    return [
        {"pumpledger": 1, "pump_id": pump, "anchor": {"pump_clock": at(180), "utc": at(180) + "Z", "after_seq": seq + 4}},
        {"seq": seq, "pump_time": at(0), "kind": "reservoir_change"},
        {"seq": seq + 1, "pump_time": at(1), "kind": "priming_done", "target": "tubing", "volume_ml": 1.0},
        {"seq": seq + 2, "pump_time": at(2), "kind": "priming_done", "target": "cannula", "volume_ml": 0.1},
        {"seq": seq + 3, "pump_time": at(5), "kind": "delivery_start", "source": "primary", "rate_ml_h": 20.0},
        {"seq": seq + 4, "pump_time": at(125), "kind": "delivery_stop", "source": "primary", "reason": "user"},
    ]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A lake with the infusion of one pump in its store and its order, and an Airflow that knows it."""
    site = Site(tmp_path)
    start = (EVENING - timedelta(days=30)).isoformat() + "Z"
    site.write(
        "orders.csv",
        "pump_id,patient_id,order_id,drug,route,concentration,dose_unit,payer,rule_set,place_of_service,tz,start,stop\n"
        f"canonical:A17,P1,O1,immune globulin,SC,200,mg,acme,cpt-9637x,12,UTC,{start},\n",
    )
    site.write("pumpledger.toml", 'orders = "orders.csv"\n')
    site.load(*infusion(1, EVENING))
    return site
