"""What the night makes of what a family may offer: captures that are decoded together, and totals that the pump tells by itself."""

from __future__ import annotations

import binascii
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from devices import paradigm
from devices.contract import Anchor, Capture, Decoded
from ingest import night
from ingest.lake import Lake
from simulators.paradigm import Pump
from simulators.therapy import therapy
from tests.test_proof import order_file, put
from transforms import tables

PUMP = "paradigm:482916"
START = datetime(2026, 3, 5, 5, tzinfo=UTC)


def pages(*, of_bolus: Callable[[bytearray], None] = lambda _: None) -> list[Capture]:
    """The pages of a pump after nine days; `of_bolus` may change the largest bolus of the oldest of them."""
    pump = Pump(therapy("insulin_like", 3, START, 9), seed=3, model=723)
    moment = pump.truth.end
    anchor = Anchor(pump_clock=pump.clock.shows(moment).replace(microsecond=0), utc=moment, round_trip_ms=40)
    parts = [
        Capture(data=data, family="paradigm", pump_id=PUMP, model="723", part=f"page={number};dump=x", anchor=anchor)
        for number, data in enumerate(pump.pages(moment))
    ]
    oldest = parts[-1]
    records = [row for row in paradigm.decode(oldest).records.to_pylist() if row["kind"] == "bolus_delivered" and row["duration_s"] is None]
    largest = max(records, key=lambda row: row["dose"])
    data = bytearray(oldest.data)
    record = bytearray(largest["raw"])
    of_bolus(record)
    data[largest["offset"] : largest["offset"] + len(record)] = record
    data[1022:] = binascii.crc_hqx(bytes(data[:1022]), 0xFFFF).to_bytes(2)
    parts[-1] = Capture(data=bytes(data), family="paradigm", pump_id=PUMP, model="723", part=oldest.part, anchor=anchor)
    return parts


def lake_of(tmp_path: Path, captures: Sequence[Capture]) -> Path:
    root = tmp_path / "lake"
    night.open_lake(root, buckets=1)
    put(root, list(captures))
    return root


def rows(root: Path, name: str, schema: Any) -> list[dict[str, Any]]:
    return list(Lake.open(root).read(name, schema).to_pylist())


def items(root: Path) -> list[dict[str, Any]]:
    return [one for one in rows(root, "worklist", tables.WORKLIST) if one["code"] == "TOTALS_DISAGREE"]


def test_totals_that_agree_are_no_item(tmp_path):
    root = lake_of(tmp_path, pages())
    night.nightly(root, orders_file=order_file(tmp_path))
    (about,) = rows(root, "pumps", tables.PUMPS)
    assert about["events"] > 100
    assert about["disagreements"] == []
    assert items(root) == []


def test_a_bolus_that_was_read_otherwise_than_the_pump_counted_it_is_one_item_of_its_date_and_holds_nothing(tmp_path):
    def doubled(record: bytearray) -> None:
        record[1:3] = record[3:5] = (2 * int.from_bytes(record[3:5])).to_bytes(2)

    root = lake_of(tmp_path, pages(of_bolus=doubled))
    page = night.nightly(root, orders_file=order_file(tmp_path))
    (item,) = items(root)
    (about,) = rows(root, "pumps", tables.PUMPS)
    (check,) = about["disagreements"]
    assert (check["what"], check["unit"], item["pump_id"], item["severity"]) == ("bolus", "U", PUMP, "inform")
    assert isinstance(check["date"], date)
    assert check["date"] == item["service_date"]
    assert f"bolus {check['told']:.2f} U told, {check['summed']:.2f} summed" in item["message"]
    assert check["summed"] > check["told"] + 0.5
    events = {row["event_id"]: row for row in rows(root, "events", tables.EVENTS)}
    assert events[check["event_id"]]["kind"] == "daily_total"
    assert page.people == len([one for one in rows(root, "worklist", tables.WORKLIST) if one["severity"] == "hold"])


def test_a_check_that_fails_costs_no_fact_and_is_told(tmp_path, monkeypatch):
    captures = pages()
    whole = lake_of(tmp_path / "whole", captures)
    night.nightly(whole, orders_file=order_file(tmp_path))
    monkeypatch.setattr(paradigm, "cross_check", lambda _: {}["oh"])
    root = lake_of(tmp_path, captures)
    night.nightly(root, orders_file=order_file(tmp_path))
    assert rows(root, "events", tables.EVENTS) == rows(whole, "events", tables.EVENTS)
    assert [row["code"] for row in rows(root, "faults", night.FAULTS)] == ["check"]


def test_a_capture_whose_decoding_fails_is_put_aside_alone_though_all_are_decoded_together(monkeypatch):
    captures = pages()
    spoiled = captures[1]
    alone: list[str] = []

    def decode(capture: Capture, really: Callable[[Capture], Decoded] = paradigm.decode) -> Decoded:
        alone.append(capture.sha256)
        if capture == spoiled:
            raise ZeroDivisionError("oh")
        return really(capture)

    together = night.decode_all(captures)
    assert together.faults.num_rows == 0
    monkeypatch.setattr(paradigm, "decode", decode)
    assert night.decode_all(captures).records.equals(together.records)
    assert alone == []
    monkeypatch.setattr(paradigm, "decode_all", lambda _: {}["oh"])
    found = night.decode_all(captures)
    assert [(row["code"], row["raw"]) for row in found.faults.to_pylist()] == [("decoder", spoiled.data)]
    kept = [sha256 for sha256 in together.records["capture"].to_pylist() if sha256 != spoiled.sha256]
    assert found.records["capture"].to_pylist() == kept


@pytest.mark.parametrize("captures", [[], [Capture(data=b"?", family="nosuch", pump_id="nosuch:1")]])
def test_what_no_family_can_read_is_put_aside_and_of_nothing_comes_nothing(captures):
    assert night.decode_all(captures).faults["raw"].to_pylist() == [one.data for one in captures]
