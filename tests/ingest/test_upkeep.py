"""`verify` finds what was changed behind our back, and the quarantine keeps what could not be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices.contract import Capture
from devices.errors import InputError
from ingest import night, upkeep
from ingest.lake import Lake
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
