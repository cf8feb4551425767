"""The canonical pump: its lines, its payloads, and that the derivation finds its truth."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import canonical as adapter
from devices.contract import REASONS, AlarmClass, At, Capture, Kind, Log, Source, Target
from devices.errors import InputError
from simulators import canonical, families, family
from simulators.link import MAX_CAP, Faults, still
from simulators.therapy import Interval, therapy
from transforms import sessions
from transforms.orders import parse

START = datetime(2026, 3, 6, 12, tzinfo=UTC)
KINDS = ("sc_continuous", "pca", "demand_only", "insulin_like")
ORDERS = (
    "pump_id,patient_id,order_id,drug,route,concentration,dose_unit,payer,rule_set,place_of_service,tz,start,stop\n"
    "canonical:A17,p1,o1,hydromorphone,SC,,,payer,cpt-9637x,,America/New_York,2026-01-01T00:00:00Z,\n"
)


def received(payloads: list[bytes]) -> list[Capture]:
    told = [json.loads(payload) for payload in payloads]
    return [Capture(data=base64.b64decode(one["bytes"]), family=one["family"], pump_id=one["pump"]) for one in told]


def read(captures: list[Capture]) -> Log:
    decoded = [adapter.decode(capture) for capture in captures]
    tables = [pa.concat_tables([getattr(one, name) for one in decoded]) for name in ("records", "faults", "anchors")]
    return adapter.assemble("canonical:A17", *tables)


def lines_of(payloads: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for capture in received(payloads) for line in capture.data.splitlines()]


def derived(log: Log) -> tuple[tuple[Interval, ...], list[tuple[datetime, bool, str]]]:
    facts = sessions.derive(log, parse(ORDERS, ["cpt-9637x"]), sessions.FactPolicy())
    runs = sorted((row["from_utc"], row["to_utc"]) for row in facts.intervals.to_pylist() if row["class"] == "infusing")
    merged: list[Interval] = []
    for start, stop in runs:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    shown = sorted((row["time"], row["pump_setup"], row["new_site"]) for row in facts.setups.to_pylist())
    return tuple(merged), shown


def test_families_are_found_by_their_modules() -> None:
    assert {"canonical", "paradigm"} <= set(families())
    assert family("canonical") is canonical
    with pytest.raises(InputError, match="no simulated pump of family 'rig'"):
        family("rig")


@pytest.mark.parametrize("kind", KINDS)
def test_every_line_is_in_the_closed_vocabulary(kind: str) -> None:
    pump, truth = canonical.simulate(therapy(kind, 2, START, 4, clock_loss=True), batch=17)
    lines = lines_of(pump.captures())
    assert lines[0]["pumpledger"] == 1
    events = [line for line in lines if "pumpledger" not in line]
    assert [line["seq"] for line in events] == list(range(1, len(truth.told) + 1))
    for line in events:
        Kind(line["kind"])
        datetime.fromisoformat(line["pump_time"])
        for name, values in (("source", Source), ("target", Target), ("alarm_class", AlarmClass), ("at", At)):
            if name in line:
                values(line[name])
        if "reason" in line:
            assert line["reason"] in REASONS[Kind(line["kind"])]
    decoded = [adapter.decode(capture) for capture in received(pump.captures())]
    assert sum(one.faults.num_rows for one in decoded) == 0
    assert sum(one.records.num_rows for one in decoded) == len(truth.told)


def test_payloads_are_caps_and_name_their_own_hash() -> None:
    pump, _ = canonical.simulate(therapy("pca", 1, START, 3))
    payloads = pump.captures()
    for payload, capture in zip(payloads, received(payloads), strict=True):
        told = json.loads(payload)
        assert told["sha256"] == capture.sha256
        assert (told["v"], told["family"], told["pump"], told["kid"], told["sig"]) == (1, "canonical", "canonical:A17", None, None)
        assert len(payload) <= MAX_CAP


def test_the_anchor_stands_in_the_header_behind_the_last_record() -> None:
    pump, truth = canonical.simulate(therapy("pca", 1, START, 3), batch=10)
    headers = [line for line in lines_of(pump.captures()) if "pumpledger" in line]
    assert len(headers) > 2
    assert ["anchor" in header for header in headers] == [False] * (len(headers) - 1) + [True]
    anchor = headers[-1]["anchor"]
    assert anchor["after_seq"] == len(truth.told)
    assert datetime.fromisoformat(anchor["utc"]) == truth.end


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10_000), batch=st.integers(1, 60))
def test_what_is_derived_from_the_log_is_the_truth(kind: str, seed: int, batch: int) -> None:
    pump, truth = canonical.simulate(therapy(kind, seed, START, 3), batch=batch)
    infusing, shown = derived(read(received(pump.captures())))
    assert infusing == truth.proved
    assert shown == sorted((one.at, one.pump_setup, one.new_site) for one in truth.set_ups)


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10_000))
def test_with_a_lost_clock_as_many_seconds_are_derived_as_the_log_proves(kind: str, seed: int) -> None:
    pump, truth = canonical.simulate(therapy(kind, seed, START, 3, clock_loss=True))
    facts = sessions.derive(read(received(pump.captures())), parse(ORDERS, ["cpt-9637x"]), sessions.FactPolicy())
    lasting = sum(row["to_ms"] - row["from_ms"] for row in facts.intervals.to_pylist() if row["class"] == "infusing")
    assert lasting == pytest.approx(1000 * truth.proved_s, abs=2000)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), drift=st.sampled_from([-20.0, 20.0]))
def test_a_clock_that_drifts_moves_what_is_derived_by_the_drift_at_most(seed: int, drift: float) -> None:
    pump, truth = canonical.simulate(therapy("pca", seed, START, 3), faults=Faults(drift_s_per_day=drift))
    infusing, _ = derived(read(received(pump.captures())))
    assert len(infusing) == len(truth.proved)
    for (start, stop), (true_start, true_stop) in zip(infusing, truth.proved, strict=True):
        assert abs((start - true_start).total_seconds()) <= 63
        assert abs((stop - true_stop).total_seconds()) <= 63


def test_before_its_end_the_log_holds_what_is_recorded_by_then_and_only_grows() -> None:
    script = therapy("pca", 1, START, 3)
    half, _ = canonical.simulate(script, now=still(START + timedelta(days=1)))
    whole, _ = canonical.simulate(script)
    early = half.file().splitlines()[1:]
    late = whole.file().splitlines()[1:]
    assert 0 < len(early) < len(late)
    assert late[: len(early)] == early


def test_duplicates_and_disorder_change_nothing_and_a_broken_download_leaves_a_part() -> None:
    script = therapy("pca", 1, START, 3)
    plain, truth = canonical.simulate(script, batch=10)
    messy, _ = canonical.simulate(script, seed=4, batch=10, faults=Faults(duplicates=0.5, reorder=True))
    assert messy.captures() != plain.captures()
    assert len(messy.captures()) > len(plain.captures())
    assert set(messy.captures()) == set(plain.captures())
    assert read(received(messy.captures())).events == read(received(plain.captures())).events
    part, _ = canonical.simulate(script, batch=10, faults=Faults(keep=2))
    assert part.captures() == plain.captures()[:2]
    assert len(truth.told) > 20


def test_noise_is_in_the_bytes_and_never_makes_the_reader_fail() -> None:
    pump, _ = canonical.simulate(therapy("pca", 1, START, 3), seed=3, batch=5, faults=Faults(noise=0.9))
    plain, _ = canonical.simulate(therapy("pca", 1, START, 3), seed=3, batch=5)
    captures = received(pump.captures())
    assert any(one.data != other.data for one, other in zip(captures, received(plain.captures()), strict=True))
    assert [capture.sha256 for capture in captures] == [json.loads(payload)["sha256"] for payload in pump.captures()]
    log = read(captures)
    assert log.events.num_rows > 0


def test_equal_seeds_give_equal_payloads() -> None:
    script = therapy("pca", 9, START, 2)
    faults = Faults(duplicates=0.3, noise=0.2, reorder=True)
    first, second = (canonical.simulate(script, seed=5, faults=faults)[0].captures() for _ in range(2))
    assert first == second


def test_an_empty_log_is_no_capture() -> None:
    pump, _ = canonical.simulate(therapy("pca", 1, START, 2), now=still(START))
    assert pump.captures() == []
    assert adapter.decode(Capture(data=pump.file(), family="canonical", pump_id="canonical:A17")).records.num_rows == 0
