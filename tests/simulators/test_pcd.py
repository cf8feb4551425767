"""The simulated PCD gateway: what its messages, read by the adapter that shares no code with it, give against what truly happened."""

from __future__ import annotations

import importlib.util
import json
import random
from datetime import UTC, datetime, timedelta

import pytest

from devices import pcd as adapter
from devices.contract import AlarmClass, Kind, Source, joined
from ingest import hub, night
from ingest.hub import decode_cap
from ingest.store import Store
from simulators import family, pcd
from simulators.link import MAX_CAP, Faults, PublishingDevice, still
from simulators.rig import Rig
from simulators.therapy import Pen, therapy
from tests.conftest import need
from tests.kit import orders
from transforms.sessions import FactPolicy, derive

START = datetime(2026, 3, 2, 5, tzinfo=UTC)
KINDS = ("sc_continuous", "pca", "demand_only", "insulin_like")


def read(captures):
    return joined(adapter.decode(one) for one in captures)


def log_of(pump, captures=None):
    found = read(captures or adapter.read_files([("mllp", pump.mllp())]))
    assert captures is not None or found[1].to_pylist() == []
    return adapter.assemble(pump.pump_id, *found)


def facts(log):
    pump = log.events.column("pump_id")[0].as_py()
    return derive(log, orders(pump_id=pump, tz="America/New_York", start="2020-01-01T00:00:00Z"), FactPolicy())


def infusing(found):
    """(from, to) UTC of what was derived as infusing."""
    return [(one["from_utc"], one["to_utc"]) for one in found.intervals.to_pylist() if one["class"] == "infusing"]


def seconds(spans):
    return sum((high - low).total_seconds() for low, high in spans)


def outside(spans, of):
    """Seconds of spans that no interval of `of` covers."""
    return sum(
        (high - low).total_seconds() - sum(max(0.0, (min(high, b) - max(low, a)).total_seconds()) for a, b in of) for low, high in spans
    )


def test_it_is_found_by_its_name_and_publishes():
    device, truth = family("pcd").simulate(therapy("pca", 1, START, 1), 1, serial="X9/00FF")
    assert isinstance(device, PublishingDevice)
    assert device.pump_id == truth.pump_id == "pcd:X9/00FF"
    assert {one.pump_id for one in adapter.read_files([("f", device.mllp())])} == {"pcd:X9/00FF"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_the_messages_tell_every_step_of_the_truth_in_its_order_with_its_amounts(kind, seed):
    pump, truth = pcd.simulate(therapy(kind, seed, START, days=3), seed)
    rows = log_of(pump).events.to_pylist()
    assert [(row["kind"], row["source"]) for row in rows] == [(step.kind, step.source) for step in truth.told]
    for row, step in zip(rows, truth.told, strict=True):
        assert row["pump_time"].replace(tzinfo=UTC) == step.at
        assert row["rate_ml_h"] == pytest.approx(step.rate_ml_h, abs=1e-5)
        assert row["lockout_s"] == step.lockout_s
        if step.kind is Kind.DELIVERY_STOP:
            assert row["reason"] == step.reason
            assert row["volume_ml"] == pytest.approx(step.volume_ml, abs=1e-5)
        if step.kind is Kind.ALARM_RAISED and step.alarm_class is AlarmClass.OCCLUSION:
            assert row["alarm_class"] == "occlusion"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clock_loss", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_what_is_derived_is_what_the_messages_prove_and_flowed(kind, clock_loss, seed):
    pump, truth = pcd.simulate(therapy(kind, seed, START, 4, clock_loss=clock_loss), seed)
    found = facts(log_of(pump))
    assert seconds(infusing(found)) == pytest.approx(truth.proved_s, abs=0.01)
    assert outside(infusing(found), truth.flowed) == pytest.approx(0, abs=0.01)
    kvo_s = sum(one["to_ms"] - one["from_ms"] for one in found.intervals.to_pylist() if one["class"] == "kvo") / 1000
    assert kvo_s <= sum((high - low).total_seconds() for low, high in truth.kvo) + 0.01
    assert not any("VOLUME_MISMATCH" in one["flags"] for one in found.sessions.to_pylist())


def test_power_that_is_lost_ends_the_proof_at_the_last_message_before():
    pen = Pen(START, "UTC").run(2.0).wait(hours=5).stop()
    faults = Faults(battery_out=START + timedelta(hours=2, minutes=30))
    pump, truth = pcd.simulate(pen.script(), faults=faults)
    log = log_of(pump)
    assert ("clock_change", "loss") in {(row["kind"], row["reason"]) for row in log.events.to_pylist()}
    spans = infusing(facts(log))
    assert (min(low for low, _ in spans), sorted(high for _, high in spans)[0]) == (START, START + timedelta(hours=2))
    assert outside(spans, truth.flowed) == 0


@pytest.mark.parametrize("seed", range(3))
def test_repeated_and_reordered_captures_of_any_size_give_the_same_log(seed):
    script = therapy("pca", seed, START, days=2)
    whole = log_of(pcd.simulate(script, seed)[0])
    pump, _ = pcd.simulate(script, seed, faults=Faults(duplicates=0.4, reorder=True), batch=1 + 6 * seed)
    captures = [decode_cap(payload) for payload in pump.captures()]
    assert log_of(pump, captures).events.equals(whole.events)


@pytest.mark.parametrize("seed", range(4))
def test_of_a_part_of_the_messages_nothing_is_derived_that_did_not_flow_but_what_is_held(seed):
    script = therapy("pca", seed, START, days=2)
    pump, truth = pcd.simulate(script, seed, snapshot_min=20)
    chance = random.Random(seed)
    captures = [one for one in adapter.read_files([("f", pump.mllp())]) if chance.random() > 0.05]
    found = facts(log_of(pump, captures))
    held = {one["session_id"] for one in found.sessions.to_pylist() if set(one["flags"]) & {"NO_STOP", "NO_START", "LOG_GAP"}}
    false = [one for one in found.intervals.to_pylist() if one["class"] == "infusing" and one["session_id"] not in held]
    assert outside([(one["from_utc"], one["to_utc"]) for one in false], truth.flowed) <= 1


def test_a_bad_byte_in_every_message_never_raises():
    pump, _ = pcd.simulate(therapy("sc_continuous", 3, START, days=2), 3, faults=Faults(noise=1.0))
    captures = [decode_cap(payload) for payload in pump.captures()]
    facts(log_of(pump, captures))


def test_only_what_has_happened_by_now_was_sent():
    script = therapy("sc_continuous", 5, START, days=3)
    whole, _ = pcd.simulate(script, 5)
    early, _ = pcd.simulate(script, 5, now=still(START + timedelta(days=1)))
    assert 0 < len(early.messages()) < len(whole.messages())
    assert early.messages() == whole.messages()[: len(early.messages())]


def test_a_drifting_clock_does_not_show_behind_a_gateway_that_keeps_utc():
    script = therapy("sc_continuous", 5, START, days=2)
    assert pcd.simulate(script, 5, faults=Faults(drift_s_per_day=9))[0].messages() == pcd.simulate(script, 5)[0].messages()


def test_times_are_written_in_the_zone_of_the_ward():
    pen = Pen(datetime(2026, 3, 8, 5, tzinfo=UTC)).run(2.0).wait(hours=3).set_clock().wait(hours=1).stop()
    text = b"".join(pcd.simulate(pen.script())[0].messages())
    assert b"20260308000000-0500" in text
    assert b"20260308050000-0400" in text


def test_a_bolus_interrupts_what_runs_and_kvo_follows_a_completion():
    pen = (
        Pen(START)
        .run(2.0)
        .wait(minutes=10)
        .bolus(0.2, 60)
        .wait(minutes=10)
        .complete()
        .run(0.1, Source.KVO)
        .wait(minutes=5)
        .stop(Source.KVO)
    )
    pump, truth = pcd.simulate(pen.script(), snapshot_min=None)
    rows = [(row["kind"], row["source"], row["reason"]) for row in log_of(pump).events.to_pylist()]
    assert rows == [
        ("delivery_start", "primary", None),
        ("delivery_stop", "primary", "transitioning"),
        ("delivery_start", "pca", None),
        ("delivery_stop", "pca", "transitioning"),
        ("delivery_start", "primary", None),
        ("delivery_complete", "primary", None),
        ("delivery_start", "kvo", None),
        ("delivery_stop", "kvo", "user"),
    ]
    assert truth.proved_s == 1200


def test_a_payload_fits_a_broker_and_names_the_pump_inside_alone():
    pump, _ = pcd.simulate(therapy("pca", 2, START, days=1), 2)
    for payload in pump.captures():
        assert len(payload) <= MAX_CAP
        assert json.loads(payload)["pump"] == pump.pump_id


def test_every_message_through_a_real_broker_is_stored_and_receipted(broker, tmp_path):
    night.open_lake(tmp_path / "lake")
    pump, _ = pcd.simulate(therapy("sc_continuous", 2, START, days=2), 2)
    store = tmp_path / "lake" / "store.sqlite"
    with hub.Hub(broker.url, store), Rig([pump], broker=broker.url, again_s=1.0) as rig:
        assert rig.wait_for_receipts(60) == {}
    with Store(store) as kept:
        assert len(kept.heads(pump.pump_id)) == len(pump.captures())


def test_a_library_reads_the_messages_as_the_adapter_does():
    need("hl7", importlib.util.find_spec("hl7") is not None, "no HL7 library here to read the messages with; install hl7")
    import hl7

    script = therapy("pca", 1, START, days=1)
    unwrapped = (pump.messages() for seed in range(50) if (pump := pcd.simulate(script, seed)[0]) and not wrapped(pump))
    for raw in next(unwrapped):
        told = hl7.parse(raw.decode())
        (row,) = adapter.decode(adapter.read_files([("f", raw)])[0]).records.to_pylist()
        assert row["record_key"] == f"{told.segment('MSH')[3]}|{told.segment('MSH')[10]}"
        if str(told.segment("MSH")[9]).startswith("ORU^R42"):
            (condition,) = [one for one in told.segments("OBX") if "MDC_ATTR_EVT_COND" in str(one[3])]
            assert row["native_code"] == str(condition[5][0][1])


def wrapped(pump):
    return any(line[:4] not in (b"MSH|", b"PID|", b"PV1|", b"OBR|", b"OBX|") for line in b"".join(pump.messages()).split(b"\r")[:-1])
