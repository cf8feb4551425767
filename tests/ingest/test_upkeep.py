"""`verify` finds what was changed behind our back, and the quarantine keeps what could not be read."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from devices.contract import Capture
from devices.errors import InputError, StorageError
from ingest import night, people, review, upkeep
from ingest.lake import RAW_SCHEMA, Lake
from tests.ingest.test_night import FIRST, SECOND, fresh
from tests.kit import PUMP
from tests.test_proof import order_file, put

BROKEN = Capture(data=FIRST.data + b"not json\n", family="canonical", pump_id=PUMP)


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    root = fresh(tmp_path / "lake", FIRST, SECOND, BROKEN)
    night.nightly(root, orders_file=order_file(tmp_path))
    return root


def test_a_lake_that_was_let_alone_verifies(lake):
    assert upkeep.verify(lake) == []


def test_a_lake_with_buckets_of_no_pump_verifies(tmp_path):
    root = tmp_path / "many"
    night.open_lake(root, buckets=8)
    put(root, [FIRST])
    night.nightly(root, orders_file=order_file(tmp_path))
    assert upkeep.verify(root) == []


def test_a_changed_byte_is_found(lake):
    path = next((lake / "sessions").rglob("*.parquet"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert {finding.code for finding in upkeep.verify_files(lake)} == {"changed"}


def test_captures_that_wait_for_a_night_are_no_fault_but_said(lake):
    put(lake, [Capture(data=SECOND.data + b"\n", family="canonical", pump_id=PUMP)])
    night.drain(lake)
    assert [finding.code for finding in upkeep.verify(lake)] == ["stale"]


def test_a_table_that_is_not_what_its_captures_give_is_found(lake):
    there = Lake.open(lake)
    current = there.current("consolidate", 0)
    tables = {name: there.read(name, schema) for name, schema in night.CONSOLIDATED.items()}
    tables["sessions"] = tables["sessions"].slice(1)
    there.publish("consolidate", 0, tables, night._months(tables), dict(current.inputs))
    assert [finding.code for finding in upkeep.verify(lake)] == ["differs"]


def test_the_quarantine_shows_the_bytes_and_a_person_can_be_done_with_them(lake):
    there = Lake.open(lake)
    (row,) = upkeep.quarantine(there)
    assert row["raw"] == b"not json"
    assert upkeep.retry(there, row["fault_id"][:8]) == {"records": 4, "faults": 1, "still": 1}
    upkeep.discard(there, row["fault_id"], by="reviewer", note="a torn line; the pump was read again")
    assert upkeep.quarantine(there) == []
    assert upkeep.fault(there, row["fault_id"])["raw"] == b"not json"
    with pytest.raises(InputError, match="too short"):
        upkeep.fault(there, "ab")


def test_lines_that_are_not_what_their_sessions_give_are_found(lake):
    there = Lake.open(lake)
    tables = {name: there.read(name, schema) for name, schema in night.BILLED.items()}
    assert tables["lines"].num_rows
    tables["lines"] = tables["lines"].slice(1)
    there.publish("bill", 0, tables, dict.fromkeys(tables, "2026-03"), dict(there.current("bill", 0).inputs))
    found = upkeep.verify(lake)
    assert [finding.code for finding in found] == ["differs"]
    assert "lines" in found[0].message


def test_lines_that_were_not_derived_since_their_sessions_were_are_said(lake):
    put(lake, [Capture(data=SECOND.data + b"\n", family="canonical", pump_id=PUMP)])
    night.drain(lake)
    night.consolidate(lake, 0)
    assert [finding.code for finding in upkeep.verify(lake)] == ["stale"]


def test_a_finding_names_its_file(lake):
    path = next((lake / "sessions").rglob("*.parquet"))
    path.unlink()
    assert [str(path) in finding.message for finding in upkeep.verify_files(lake)] == [True]


def test_captures_and_decisions_whose_manifests_were_lost_are_taken_in_again_by_the_next_night(lake):
    sha = next(iter(Lake.open(lake).raw_hashes(0)))
    before = Lake.open(lake).read("lines", night.BILLED["lines"])
    line = before["line_id"][0].as_py()
    review.decide(lake, line, "hold", by="ana")
    for name in ("raw", "decisions", "audit"):
        shutil.rmtree(lake / "manifests" / name)
    night.nightly(lake)
    assert sha in Lake.open(lake).raw_hashes(0)
    assert [one.action for one in people.decisions(Lake.open(lake))] == ["hold"]
    assert upkeep.verify(lake) == []


def test_a_night_beside_a_decision_that_is_being_written_leaves_it_to_its_writer(lake):
    review.decide(lake, Lake.open(lake).read("lines", night.BILLED["lines"])["line_id"][0].as_py(), "hold", by="ana")
    shutil.rmtree(lake / "manifests" / "decisions")
    with ThreadPoolExecutor(1) as other, Lake.open(lake).lock("decisions", 0):
        other.submit(night.drain, lake).result()
    assert people.decisions(Lake.open(lake)) == []
    night.drain(lake)
    assert len(people.decisions(Lake.open(lake))) == 1


def test_orders_whose_manifest_was_lost_stop_the_night(lake):
    shutil.rmtree(lake / "manifests" / "terms")
    with pytest.raises(InputError) as raised:
        night.nightly(lake)
    assert raised.value.code == "no_terms"
    night.nightly(lake, orders_file=next((lake / "orders").glob("*.csv")))
    assert upkeep.verify(lake) == []


def test_what_is_damaged_is_to_be_derived_again_only_where_it_can_be(lake):
    said = {}
    for name in ("lines", "sessions", "raw"):
        path = next((lake / name).rglob("*.parquet"))
        path.write_bytes(b"")
        with pytest.raises(StorageError) as raised:
            Lake.open(lake).read(name, {**night.BILLED, **night.CONSOLIDATED, "raw": RAW_SCHEMA}[name])
        said[name] = raised.value.do
    for stage, schemas in (("consolidate", night.CONSOLIDATED), ("bill", night.BILLED)):
        for name in schemas:
            path = next((lake / name).rglob("*.parquet"), None)
            if path is not None:
                path.write_bytes(b"")
                with pytest.raises(StorageError, match=f"manifests/{stage} "):
                    Lake.open(lake).read(name, schemas[name])
    assert "manifests/bill" in said["lines"]
    assert "manifests/consolidate" in said["sessions"]
    assert "backup" in said["raw"]
    assert "manifests" not in said["raw"]
