"""The asset starts the billing under a running scheduler, its DAG processor and its API server."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

from tests.dags.conftest import BIN, LIMIT_S, Site


def test_the_night_starts_the_billing_through_the_asset(site: Site) -> None:
    port, logs = _free_ports(2)
    site.environment |= {
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__API_AUTH__JWT_SECRET": "of this test alone, and long enough for its algorithm: it guards nothing",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(logs),
    }
    _airflow(site, "db", "migrate")
    with ExitStack() as running:
        running.enter_context(_service(site, "api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"))
        running.enter_context(_service(site, "dag-processor"))
        running.enter_context(_service(site, "scheduler"))
        _until(site, "both DAGs are read", lambda: _ask(site, "select count(*) from serialized_dag") >= 2)
        _airflow(site, "dags", "trigger", "pumpledger_night")
        _until(site, "the billing ran", lambda: _ask(site, _BILLED) >= 1)
    assert {row["patient_id"] for row in site.rows("lines")} == {"P1"}


_BILLED = "select count(*) from dag_run where dag_id = 'pumpledger_billing' and run_type = 'asset_triggered' and state = 'success'"


def _ask(site: Site, query: str) -> int:
    with closing(sqlite3.connect(f"file:{site.database}?mode=ro", uri=True, timeout=30)) as database:
        return int(database.execute(query).fetchone()[0])


def _until(site: Site, what: str, holds: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not holds():
        told = "\n".join(f"{log.name}:\n{log.read_text()[-3000:]}" for log in site.folder.glob("*.log"))
        assert time.monotonic() < end, f"it did not come about that {what}\n{told}"
        time.sleep(0.5)


def _airflow(site: Site, *arguments: str) -> None:
    done = subprocess.run([BIN / "airflow", *arguments], env=site.environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def _service(site: Site, name: str, *arguments: str) -> Iterator[None]:
    """A part of Airflow in a process group of its own, which ends with the block."""
    with (site.folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [BIN / "airflow", name, *arguments], env=site.environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield
    finally:
        with process, suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
            os.killpg(process.pid, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
