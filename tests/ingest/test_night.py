"""The night, whole: what it publishes, what a re-run changes, what a kill at any call leaves, and what it says of bad input."""

from __future__ import annotations

import random
import shutil
import signal
import time
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from devices.contract import Capture
from devices.errors import InputError, StorageError
from ingest import night
from ingest.lake import Lake
from ingest.store import Arrival, Store
from tests.ingest.test_files import FORK, at_call, in_child, kill
from tests.kit import PUMP, anchor, capture, event, infusion, new_setup, numbered
from tests.test_proof import derived, order_file, put
from transforms import tables

LINES = numbered([*new_setup(-5), *infusion(0, 95), *infusion(2000, 20), event(2030, "other")])
FIRST = capture(LINES[:4], anchor=anchor(60))
SECOND = capture(LINES[3:], anchor=anchor(3000))


def fresh(lake: Path, *captures: Capture) -> Path:
    night.open_lake(lake, buckets=1)
    put(lake, list(captures))
    return lake


def lines(lake: Path) -> list[dict[str, object]]:
    return list(Lake.open(lake).read("lines", tables.LINES).to_pylist())


def test_a_night_gives_lines_that_lead_back_to_the_bytes(tmp_path):
    lake = fresh(tmp_path / "lake", FIRST, SECOND)
    page = night.nightly(lake, orders_file=order_file(tmp_path))
    assert (page.received, page.refused, page.ready, page.hold) == (2, 0, 3, 0)
    assert {(line["code"], line["units"]) for line in lines(lake)} == {("96369", 1), ("96370", 1)}
    events = {row["event_id"]: row for row in Lake.open(lake).read("events", tables.EVENTS).to_pylist()}
    records = Lake.open(lake).read("records", night.LAKE_RECORDS).to_pylist()
    assert {row["event_id"] for row in records} == set(events)
    for line in lines(lake):
        assert all(events[event_id]["raw"] in FIRST.data + SECOND.data for event_id in line["event_ids"])


def test_every_record_received_is_an_event_quarantined_or_a_repeat(tmp_path):
    broken = Capture(data=FIRST.data + b"not json\n", family="canonical", pump_id=PUMP)
    lake = fresh(tmp_path / "lake", FIRST, SECOND, broken)
    night.nightly(lake, orders_file=order_file(tmp_path))
    (about,) = Lake.open(lake).read("pumps", tables.PUMPS).to_pylist()
    assert about["records"] == about["events"] + about["repeats"]
    assert (about["events"], about["repeats"], about["faults"], about["holes"]) == (len(LINES), 5, 1, 0)
    (fault,) = Lake.open(lake).read("faults", night.FAULTS).to_pylist()
    assert fault["raw"] == b"not json"


def test_running_it_again_or_a_day_again_changes_nothing(tmp_path):
    lake = fresh(tmp_path / "lake", FIRST)
    night.nightly(lake, orders_file=order_file(tmp_path))
    put(lake, [SECOND])
    night.nightly(lake)
    before = {path: path.stat().st_mtime_ns for path in sorted(lake.rglob("*")) if path.is_file() and "store" not in path.name}
    for day in (None, date(2026, 3, 20), date(2020, 1, 1)):
        night.nightly(lake, day=day)
    assert before == {path: path.stat().st_mtime_ns for path in sorted(lake.rglob("*")) if path.is_file() and "store" not in path.name}


def test_a_day_derives_what_was_received_on_it(tmp_path):
    lake = fresh(tmp_path / "lake", FIRST)
    night.take_orders(lake, order_file(tmp_path))
    night.drain(lake)
    assert night.touched(lake, date(2026, 3, 20)) == [0]
    assert night.touched(lake, date(2026, 3, 19)) == []
    assert night.touched(lake) == [0]
    night.consolidate(lake, 0)
    assert night.touched(lake) == []


def test_other_orders_derive_anew_and_only_then(tmp_path):
    lake = fresh(tmp_path / "lake", FIRST, SECOND)
    path = order_file(tmp_path)
    night.nightly(lake, orders_file=path)
    assert {line["state"] for line in lines(lake)} == {"ready"}
    path.write_text(path.read_text().replace("hydromorphone", "insulin aspart"))
    page = night.nightly(lake, orders_file=path)
    assert lines(lake) == []
    assert page.changed == 0


@pytest.mark.parametrize("name", ["sessions", "setups", "events", "days", "worklist"])
def test_what_another_version_derived_with_other_columns_is_derived_anew_and_not_read(tmp_path, monkeypatch, name):
    lake = fresh(tmp_path / "lake", FIRST, SECOND)
    night.nightly(lake, orders_file=order_file(tmp_path))
    before = derived(lake)
    for path in (lake / name).rglob("*.parquet"):
        older = pq.read_table(path, partitioning=None)
        pq.write_table(older.drop_columns(older.column_names[-1]), path)
    with pytest.raises(StorageError, match="other columns"):
        Lake.open(lake).read(name, {**night.CONSOLIDATED, **night.BILLED}[name])
    monkeypatch.setattr(night, "code_version", lambda: "a later one")
    night.nightly(lake)
    assert derived(lake) == before


def test_bytes_that_nobody_can_read_are_kept_and_stop_nothing(tmp_path):
    stranger = Capture(data=b"\x00\x01", family="martian", pump_id="martian:1")
    unreadable = Capture(data=b"no header at all\n", family="canonical", pump_id="canonical:unknown")
    lake = fresh(tmp_path / "lake", FIRST, SECOND, stranger, unreadable)
    with Store(lake / "store.sqlite") as store:
        store.refuse(b"\xff", "no JSON", Arrival(received_at=datetime(2026, 3, 20, tzinfo=UTC), via="mqtt:gw1"))
    page = night.nightly(lake, orders_file=order_file(tmp_path))
    faults = {row["raw"]: row["code"] for row in Lake.open(lake).read("faults", night.FAULTS).to_pylist()}
    assert faults == {b"\x00\x01": "decoder", b"no header at all\n": "header", b"\xff": "refused"}
    assert (page.refused, page.ready) == (1, 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("cpt-9637x", "no-such"), "no rule set 'no-such'"),
        ((",UTC,", ",Mars/Olympus,"), "no time zone 'Mars/Olympus'"),
        (("2026-01-01T00:00:00Z", "soon"), "start is no time"),
    ],
)
def test_an_orders_file_with_an_error_is_refused_whole_and_the_night_does_not_start(tmp_path, change, says):
    lake = fresh(tmp_path / "lake", FIRST)
    path = order_file(tmp_path)
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(InputError, match=says) as raised:
        night.nightly(lake, orders_file=path)
    assert "line 2" in str(raised.value)
    with Store(lake / "store.sqlite") as store:
        assert len(list(store.pending())) == 1


def test_overlapping_orders_are_refused_with_both_lines_named(tmp_path):
    path = order_file(tmp_path)
    head, row = path.read_text().splitlines()
    path.write_text("\n".join([head, row, row.replace("ord-1", "ord-2").replace("2026-01", "2026-02")]))
    with pytest.raises(InputError, match="lines 2 and 3: these orders overlap"):
        night.nightly(fresh(tmp_path / "lake", FIRST), orders_file=path)


def test_one_writer_a_bucket(tmp_path):
    lake = fresh(tmp_path / "lake", FIRST)
    night.take_orders(lake, order_file(tmp_path))
    night.drain(lake)
    with Lake.open(lake).lock("consolidate", 0):
        assert in_child(consolidate_is_busy, lake) == 0


def consolidate_is_busy(lake: Path) -> None:
    with pytest.raises(StorageError) as raised:
        night.consolidate(lake, 0)
    assert raised.value.code == "busy"


def killed_at(lake: Path, orders: Path, number: int) -> None:
    with at_call(number, kill):
        night.nightly(lake, orders_file=orders)


def night_of(lake: Path, orders: Path) -> None:
    night.nightly(lake, orders_file=orders)


def half_done(tmp_path: Path) -> tuple[Path, Path, dict[str, bytes], int]:
    """A lake after one night with more in its store; its orders; the tables of the next night; how many calls that makes."""
    orders = order_file(tmp_path)
    lake = fresh(tmp_path / "lake", FIRST)
    night.nightly(lake, orders_file=orders)
    orders.write_text(orders.read_text().replace("hydromorphone", "morphine"))
    put(lake, [SECOND])
    dry = Path(shutil.copytree(lake, tmp_path / "dry"))
    with at_call(0, kill) as calls:
        night.nightly(dry, orders_file=orders)
    return lake, orders, derived(dry), len(calls)


def test_a_night_killed_before_or_after_any_write_and_run_again_gives_the_same_bytes(tmp_path):
    lake, orders, after, calls = half_done(tmp_path)
    assert calls > 60
    for number in range(1, calls + 1):
        root = Path(shutil.copytree(lake, tmp_path / str(number)))
        assert in_child(killed_at, root, orders, number) == -signal.SIGKILL
        night.nightly(root, orders_file=orders)
        assert derived(root) == after, number
        shutil.rmtree(root)


def test_a_night_killed_at_any_moment_and_run_again_gives_the_same_bytes(tmp_path):
    lake, orders, after, _ = half_done(tmp_path)
    chance = random.Random(11)
    for number in range(10):
        root = Path(shutil.copytree(lake, tmp_path / f"moment-{number}"))
        for _ in range(2):
            child = FORK.Process(target=night_of, args=(root, orders))
            child.start()
            time.sleep(chance.uniform(0.0, 0.4))
            child.kill()
            child.join()
        night.nightly(root, orders_file=orders)
        assert derived(root) == after
        shutil.rmtree(root)


def test_a_pump_whose_captures_make_no_sense_costs_no_other_pump_its_night(tmp_path):
    posing = Capture(data=FIRST.data.replace(b"canonical:A1", b"paradigm:123456"), family="canonical", pump_id="paradigm:123456")
    nowhere = Capture(data=FIRST.data.replace(b"canonical:A1", b"nosuch:55"), family="canonical", pump_id="nosuch:55")
    lake = fresh(tmp_path / "lake", FIRST, SECOND, posing, nowhere)
    assert night.nightly(lake, orders_file=order_file(tmp_path)).ready == 3
    faults = {(row["pump_id"], row["code"]) for row in Lake.open(lake).read("faults", night.FAULTS).to_pylist()}
    assert faults == {("paradigm:123456", "family"), ("nosuch:55", "family")}


def test_a_log_that_cannot_be_derived_is_put_aside_with_its_bytes(tmp_path, monkeypatch):
    lake = fresh(tmp_path / "lake", FIRST, SECOND)
    for name in ("derive", "derive_all"):
        monkeypatch.setattr(night.sessions, name, lambda *_: {}["oh"])
    night.nightly(lake, orders_file=order_file(tmp_path))
    faults = Lake.open(lake).read("faults", night.FAULTS).to_pylist()
    assert {(row["code"], row["raw"]) for row in faults} == {("derive", FIRST.data), ("derive", SECOND.data)}


@pytest.mark.parametrize("year", [b"9999", b"0001"])
def test_a_year_that_no_pump_shows_is_put_aside(tmp_path, year):
    far = Capture(data=capture(LINES[:4], pump="canonical:B2").data.replace(b"2026", year), family="canonical", pump_id="canonical:B2")
    lake = fresh(tmp_path / "lake", FIRST, SECOND, far)
    assert night.nightly(lake, orders_file=order_file(tmp_path)).ready == 3
    assert Lake.open(lake).read("faults", night.FAULTS).num_rows == 4


@pytest.mark.parametrize("start", ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00"])
def test_an_order_of_an_impossible_year_is_refused(tmp_path, start):
    path = order_file(tmp_path)
    path.write_text(path.read_text().replace("2026-01-01T00:00:00Z", start))
    with pytest.raises(InputError, match="line 2"):
        night.nightly(fresh(tmp_path / "lake", FIRST), orders_file=path)


def test_orders_that_are_no_csv_are_refused(tmp_path):
    path = order_file(tmp_path)
    path.write_text(path.read_text().replace("hydromorphone", "x" * 200_000))
    with pytest.raises(InputError, match="is no CSV"):
        night.nightly(fresh(tmp_path / "lake", FIRST), orders_file=path)
