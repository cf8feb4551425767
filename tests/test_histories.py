"""Lines against the true clock, over histories of pumps whose clocks lie (tests/histories.py; docs/semantics.md §3)."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pyarrow as pa
import pytest

from devices.contract import Log
from tests import histories, kit
from tests.kit import anchor, capture, event, infusion, numbered
from transforms.sessions import FactPolicy

COUNT = 300
SEED = 20260308
BLIND = {
    "two anchors never disagree": FactPolicy(drift_s=1e12),
    "no step back is one": FactPolicy(clock_step_s=1e12),
}


@pytest.fixture(scope="module")
def judged():
    return histories.run(range(COUNT), SEED, stop=5)


def test_a_line_is_right_within_a_minute_or_held_wherever_the_log_can_show_what_its_clock_did(judged):
    assert judged.silent == [], f"python -m tests.histories --seed {SEED} --first {judged.silent[0][0]} --count 1"
    assert judged.histories == COUNT
    assert judged.right + judged.by_rule == judged.ready


def test_many_lines_are_ready_and_many_are_held(judged):
    assert judged.ready > judged.lines / 3
    assert judged.held > judged.lines / 10


def test_what_drift_can_hide_is_as_little_as_anchors_may_differ(judged):
    assert judged.apart["hidden in drift"]["most minutes off"] <= 10


def test_everything_that_a_clock_can_do_happens():
    met = histories.Figures()
    for number in count():
        made, _ = histories.history(SEED, number)
        met.add(number, made, histories.Judged(how=histories.Counter(histories.told(made))))
        if not met.never():
            return
        assert number < 3000, met.never()


@pytest.mark.parametrize("policy", BLIND.values(), ids=BLIND.keys())
def test_a_derivation_that_does_not_see_a_jump_would_be_noticed(policy):
    found = histories.run(range(600), SEED, policy, stop=1)
    assert found.silent
    number, _ = found.silent[0]
    _, planned = histories.history(SEED, number)
    if planned is not None:
        small = histories.minimised(planned, lambda less: histories.silently_wrong(less, policy))
        assert len(small.deliveries) + len(small.happenings) <= len(planned.deliveries) + len(planned.happenings)
        assert histories.silently_wrong(small, policy)
        assert not histories.silently_wrong(small)


def test_a_history_is_made_from_its_number_alone():
    for number in (3, 10):
        one, other = (histories.history(SEED, number)[0] for _ in range(2))
        assert one.captures == other.captures
        assert one.flows == other.flows


def test_a_clock_that_was_set_back_when_it_was_read_is_a_cut_though_no_record_shows_it():
    lines = numbered([event(0, "power_on"), event(100, "delivery_start", rate_ml_h=2.0), event(130, "delivery_stop", source="primary")])
    before = capture(lines[:1], anchor={**anchor(60), "after_seq": 1})
    # set back by an hour in the delivery, read then, and past where it was when the delivery ends, 90 minutes after it began
    found = kit.give(before, capture(lines[:2], anchor={**anchor(50, utc_minutes=110), "after_seq": 2}), capture(lines))
    assert "ready" not in found.states()
    assert {"NO_STOP", "NO_START"} <= {flag for session in found.rows("sessions") for flag in session["flags"]}


def test_anchors_that_disagree_beside_elapsed_time_of_the_familys_own_place_nothing():
    events = numbered([*infusion(0, 60), event(600, "other"), event(700, "other")])
    # the clock jumped a day behind the stop, and was read before the next record: by elapsed time nothing is wrong between the anchors
    read = {**anchor(90 + 1440, utc_minutes=90), "after_seq": 2}
    log = kit.assembled([capture(events[:2], anchor=read), capture(events, anchor=anchor(710))])
    own = with_own_time(log, [0, 3_600_000, 36_000_000, 42_000_000])
    assert kit.billed([own], kit.orders()).states() == {"hold"}
    agreed = kit.assembled([capture(events[:2], anchor={**anchor(90), "after_seq": 2}), capture(events, anchor=anchor(710))])
    assert kit.billed([with_own_time(agreed, [0, 3_600_000, 36_000_000, 42_000_000])], kit.orders()).states() == {"ready"}


def with_own_time(log: Log, own_ms: list[int]) -> Log:
    at = log.events.column_names.index("native_ms")
    return replace(log, events=log.events.set_column(at, "native_ms", pa.array(own_ms, pa.int64())))
