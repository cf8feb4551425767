"""The doctor over real ports, brokers and folders: what is broken has its code and the next step, and nothing is stored or told."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import serial

from devices import families
from devices.errors import StorageError
from ingest import doctor, files, night, settings
from ingest.doctor import Finding
from ingest.store import Arrival, Store
from simulators import paradigm
from simulators.rig import Rig
from simulators.therapy import therapy
from tests.broker import PATIENCE_S
from tests.conftest import ROOT
from tests.kit import capture, event, numbered


def about(found: Sequence[Finding], what: str) -> Finding:
    (one,) = [finding for finding in found if finding.what.startswith(what)]
    return one


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, SQLite's own helper files apart."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-wal", "-shm"))}


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    night.open_lake(tmp_path / "lake")
    with Store(tmp_path / "lake" / "store.sqlite") as store:
        store.append([(capture(numbered([event(0, "other")]), pump="canonical:SERIAL4711"), Arrival(datetime.now(UTC), "file:a"))])
    return tmp_path / "lake"


@pytest.fixture
def stick() -> Iterator[tuple[str, paradigm.Stick]]:
    start = datetime.now(UTC) - timedelta(days=2)
    device, _ = paradigm.simulate(therapy("insulin_like", 1, start, 1), 1, serial="482916")
    with Rig([device]) as rig:
        yield rig.ports["paradigm:482916"], device


def test_where_all_works_it_says_so_and_leaves_everything_as_it_was(lake, broker, stick):
    port, device = stick
    before = tree(lake)
    found = doctor.examine(lake, ports=[f"{port}=paradigm:482916"], broker=broker.url)
    assert not doctor.broken(found)
    for name in ("versions", "families", "settings", "lake", "store", "disk", "broker", "port"):
        assert about(found, name).state == "ok"
    assert "family paradigm answers" in about(found, "port").says
    assert "captures of 1 pumps, 1 of them" in about(found, "store").says
    assert "canonical" in about(found, "families").says
    assert tree(lake) == before
    assert device.forbidden == []


def test_its_report_names_no_pump_no_password_and_no_adapter_by_its_serial_number(lake, broker, stick, monkeypatch):
    port, _ = stick
    missing = "/dev/serial/by-id/usb-FTDI_A10693EZ-if00-port0"
    url = broker.url.replace("://", "://reader:secret@")
    monkeypatch.setenv("HOME", str(lake))
    found = doctor.examine(lake, ports=[f"{port}=paradigm:482916", f"{missing}=paradigm:739184"], broker=url)
    for text in (doctor.as_text(found), json.dumps(doctor.as_plain(found))):
        assert not [secret for secret in ("482916", "739184", "4711", "secret", "reader", "A10693EZ", str(lake)) if secret in text]
        assert "…16" in text or "\\u202616" in text


def test_where_there_is_nothing_yet_it_breaks_nothing_and_makes_nothing(tmp_path):
    found = doctor.examine(tmp_path / "lake", ports=[])
    assert not doctor.broken(found)
    assert [about(found, name).code for name in ("lake", "store", "orders", "broker", "ports")] == [
        "no_lake", "no_store", "no_orders", "no_broker_named", "no_port",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_ports_that_do_not_answer_each_say_why(lake, stick):
    port, _ = stick
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"socket://127.0.0.1:{free.getsockname()[1]}"
    silent, quiet = os.openpty()
    (lake / "plain").write_text("no port")
    with serial.Serial(port, exclusive=True):
        found = doctor.examine(lake, ports=["/dev/nosuchport", port, nobody, os.ttyname(quiet), str(lake / "plain")])
    os.close(silent)
    os.close(quiet)
    ports = [one for one in found if one.what.startswith("port ")]
    assert [one.code for one in ports] == ["no_port", "busy", "unreachable", "silent", "not_serial"]
    assert all(one.state == "broken" and one.do for one in ports)
    assert f"(process {os.getpid()})" in ports[1].why
    assert doctor.broken(found)


def test_a_port_that_nobody_named_may_be_silent(lake, monkeypatch):
    silent, quiet = os.openpty()

    class Info:
        device = os.ttyname(quiet)

        def __lt__(self, other: object) -> bool:
            return False

    monkeypatch.setattr(doctor.list_ports, "comports", lambda: [Info()])
    found = doctor.examine(lake)
    os.close(silent)
    os.close(quiet)
    assert (about(found, "port ").state, about(found, "port ").code) == ("note", "silent")
    assert not doctor.broken(found)


def test_a_broker_that_is_away_or_refuses_or_is_none_is_told_apart(lake, broker):
    broker.stop()
    away = about(doctor.examine(lake, ports=[], broker=broker.url), "broker")
    broker.start("allow_anonymous false", f"password_file {broker.folder}/passwords")
    refused = about(doctor.examine(lake, ports=[], broker=broker.url), "broker")
    wrong = about(doctor.examine(lake, ports=[], broker="http://localhost"), "broker")
    assert [(one.state, one.code) for one in (away, refused, wrong)] == [
        ("broken", "no_broker"), ("broken", "broker_refuses"), ("broken", "broker_url"),
    ]  # fmt: skip
    assert all(one.do for one in (away, refused, wrong))


def test_a_disk_that_is_full_or_not_writable_is_broken(lake, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        raise StorageError(f"There is no room left for {path}.", do="Free some space.", code="disk_full")

    monkeypatch.setattr(files, "create", full)
    found = doctor.examine(lake, ports=[])
    assert {about(found, name).code for name in ("lake", "store")} == {"disk_full"}
    assert doctor.broken(found)


@pytest.mark.parametrize(
    ("free", "state", "code"), [(100 << 20, "broken", "disk_full"), (1 << 30, "note", "disk_low"), (50 << 30, "ok", "")]
)
def test_free_space_is_judged(lake, monkeypatch, free, state, code):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free}))
    disk = about(doctor.examine(lake, ports=[]), "disk")
    assert (disk.state, disk.code) == (state, code)


def test_a_store_that_is_none_and_settings_and_orders_that_cannot_be_read_are_broken(lake):
    (lake / "store.sqlite").write_bytes(b"no database at all" * 100)
    (lake / settings.NAME).write_text("ordres = 3\n")
    found = doctor.examine(lake, ports=[])
    assert [(about(found, name).state, about(found, name).code) for name in ("store", "settings")] == [
        ("broken", "damaged"), ("broken", "settings"),
    ]  # fmt: skip
    (lake / settings.NAME).write_text('orders = "orders.csv"\n')
    assert about(doctor.examine(lake, ports=[]), "orders").code == "orders"
    (lake / "orders.csv").write_text("pump_id\n")
    assert about(doctor.examine(lake, ports=[]), "orders").state == "broken"


def test_a_clock_from_before_this_program_was_written_is_broken_and_one_that_is_not_kept_is_noted(lake, monkeypatch):
    class Early(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2001, 1, 1, tzinfo=UTC)

    monkeypatch.setattr(doctor, "_synchronised", lambda: False)
    assert (about(doctor.examine(lake, ports=[]), "clock").state, about(doctor.examine(lake, ports=[]), "clock").code) == (
        "note",
        "clock_free",
    )
    monkeypatch.setattr(doctor, "datetime", Early)
    assert (about(doctor.examine(lake, ports=[]), "clock").state, about(doctor.examine(lake, ports=[]), "clock").code) == (
        "broken", "clock_wrong",
    )  # fmt: skip


def test_a_check_that_fails_itself_is_a_finding(lake, monkeypatch):
    def bad() -> None:
        raise RuntimeError("a family that does not load")

    monkeypatch.setattr(families, "families", bad)
    one = about(doctor.examine(lake, ports=[]), "families")
    assert (one.state, one.code, "does not load" in one.why) == ("broken", "bug", True)


def test_the_command_prints_a_report_and_ends_with_1_where_something_is_broken(lake, stick):
    port, _ = stick

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ingest.cli", "doctor", *arguments, "--lake", str(lake)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=2 * PATIENCE_S, check=False)

    fine = run(port)
    assert fine.returncode == 0, fine.stdout + fine.stderr
    assert "family paradigm answers" in fine.stdout
    bad = run("/dev/nosuchport", "--json")
    assert bad.returncode == 1
    told = json.loads(bad.stdout)
    assert told["broken"]
    assert [one["code"] for one in told["findings"] if one["state"] == "broken"] == ["no_port"]
