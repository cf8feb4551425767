"""What is asked of the simulated stick and read by the Paradigm adapter is what the script says: neither knows the other."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import dialogue
from devices import paradigm as adapter
from devices.contract import Capture, Kind, Log, joined
from devices.dialogue import Ask, Reply, Summary
from simulators import paradigm
from simulators.link import Faults, still, whole_second
from simulators.paradigm import Stick
from simulators.therapy import Step, Truth, therapy
from tests.kit import head
from transforms import sessions
from transforms.orders import parse

START = datetime(2026, 3, 6, 12, tzinfo=UTC)
KINDS = ("sc_continuous", "pca", "insulin_like")
ORDERS = (
    "pump_id,patient_id,order_id,drug,route,concentration,dose_unit,payer,rule_set,place_of_service,tz,start,stop\n"
    "paradigm:482916,p1,o1,hydromorphone,SC,,,payer,cpt-9637x,,America/New_York,2026-01-01T00:00:00Z,\n"
)
SAID = ("source", "reason", "target", "alarm_class", "rate_ml_h", "volume_ml", "programmed_ml", "duration_s", "proves")


def download(stick: Stick, moment: datetime, known: Sequence[Capture] = ()) -> tuple[list[Capture], Summary]:
    got: list[Capture] = []
    clock = [moment]

    def exchange(ask: Ask) -> Reply:
        sent = clock[0]
        data = stick.feed(ask.data) if ask.data else b""
        clock[0] += timedelta(milliseconds=20)
        return Reply(data=data, sent=sent, received=clock[0])

    summary = dialogue.run(adapter.download(stick.pump_id, [head(one) for one in known]), exchange, got.append)
    return got, summary


def read(captures: Sequence[Capture]) -> Log:
    found = joined(adapter.decode(capture) for capture in captures)
    assert found.faults.num_rows == 0
    return adapter.assemble("paradigm:482916", *found)


def infusing_s(log: Log) -> float:
    facts = sessions.derive(log, parse(ORDERS, ["cpt-9637x"]), sessions.FactPolicy())
    return sum(row["to_ms"] - row["from_ms"] for row in facts.intervals.to_pylist() if row["class"] == "infusing") / 1000


def told(truth: Truth) -> list[Step]:
    """What the log says, but for untimed records at its end: on a page of their own they are none yet."""
    steps = list(truth.told)
    while steps and not steps[-1].timed:
        steps.pop()
    return steps


def check(stick: Stick, truth: Truth, log: Log) -> None:
    events = log.events.to_pylist()
    steps = told(truth)
    assert [event["kind"] for event in events[: len(steps)]] == [step.kind.value for step in steps]
    assert len(steps) <= len(events) <= len(truth.told)
    for event, step in zip(events, steps, strict=False):
        shown = stick.pump.clock.showed(step.at) if step.kind is Kind.CLOCK_CHANGE else stick.pump.clock.shows(step.at)
        assert event["pump_time"] == (whole_second(shown) if step.timed else None)
        for name in SAID:
            expected = getattr(step, name)
            expected = expected.value if isinstance(expected, Enum) else expected
            assert event[name] == (pytest.approx(expected) if isinstance(expected, float) else expected), (name, step)
        assert bool(event["stops_delivery"]) == step.stops_delivery


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10_000), model=st.sampled_from([522, 723]), loss=st.booleans())
def test_what_is_downloaded_and_read_is_what_the_script_says(kind: str, seed: int, model: int, loss: bool) -> None:
    stick, truth = paradigm.simulate(therapy(kind, seed, START, 5, clock_loss=loss), seed, model=model)
    captures, summary = download(stick, truth.end)
    assert summary.complete
    assert summary.model == str(model)
    assert stick.forbidden == []
    log = read(captures)
    check(stick, truth, log)
    if told(truth)[-1].kind is Kind.BOLUS_DELIVERED:  # it runs on until the anchor that was read after it
        assert truth.proved_s - 1 <= infusing_s(log) <= truth.flowed_s + 1
    else:
        assert infusing_s(log) == pytest.approx(truth.proved_s, abs=1)


@pytest.mark.parametrize("model", [522, 723])
def test_a_download_that_goes_on_from_the_last_gives_what_one_alone_gives(model: int) -> None:
    moment = [START + timedelta(days=4)]
    script = therapy("insulin_like", 3, START, 20)
    stick, truth = paradigm.simulate(script, 3, model=model, now=lambda: moment[0])
    captures: list[Capture] = []
    while moment[0] < script.end:
        moment[0] = min(moment[0] + timedelta(days=2, hours=3), script.end)
        captures += download(stick, moment[0], captures)[0]
    log = read(captures)
    check(stick, truth, log)
    fresh, _ = paradigm.simulate(script, 3, model=model, now=still(script.end))
    assert log.events.equals(read(download(fresh, script.end)[0]).events)


@pytest.mark.parametrize("seed", range(6))
def test_over_a_bad_link_the_log_is_the_same_once_it_is_complete(seed: int) -> None:
    script = therapy("insulin_like", seed, START, 10)
    clean, truth = paradigm.simulate(script, seed, model=723)
    noisy, _ = paradigm.simulate(script, seed, model=723, faults=Faults(silence=0.03, noise=0.03, naks=0.02))
    captures: list[Capture] = []
    complete = False
    for _ in range(10):
        got, summary = download(noisy, script.end, captures)
        captures += got
        complete = summary.complete
        if complete:
            break
    assert complete
    assert noisy.forbidden == []
    decoded = [adapter.decode(capture) for capture in captures]
    tables: list[Any] = [pa.concat_tables([getattr(one, name) for one in decoded]) for name in ("records", "faults", "anchors")]
    log = adapter.assemble("paradigm:482916", *tables)
    assert log.events.equals(read(download(clean, script.end)[0]).events)
    assert infusing_s(log) == pytest.approx(truth.proved_s, abs=1)
