"""Leaving out any one inner record never makes a line ready that was not, nor a ready line larger (docs/semantics.md §7.5)."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import assume, given

from tests import leave_one_out
from tests.kit import anchor, capture, event, give, infusion, log, numbered
from tests.test_proof import SLOW, histories, last_minute

SEED = 20260308
LOGS = 12
EACH_CAPTURED = 9
"""Every so manieth captured case is tried here, and all of them by the command."""


@pytest.fixture(scope="module")
def tried():
    return leave_one_out.run(leave_one_out.random_cases(LOGS, SEED), stop=3)


def test_of_random_logs(tried):
    assert tried.wrong == [], f"python -m tests.leave_one_out {tried.wrong[0][0]}"
    assert tried.logs >= LOGS


def test_the_random_logs_have_ready_lines_that_a_missing_record_holds(tried):
    assert tried.ready > 5
    assert tried.now_held > 20


@pytest.mark.parametrize("rules", ["per-diem", "evidence-only"])
def test_of_random_logs_that_are_billed_by_the_day_or_not_at_all(rules):
    found = leave_one_out.run(leave_one_out.random_cases(LOGS, SEED, rules=rules), stop=3)
    assert found.wrong == [], f"python -m tests.leave_one_out {found.wrong[0][0]}"
    assert found.ready > 5
    assert found.now_held > 20


def test_of_captured_logs(fixtures):
    found = leave_one_out.run(islice(leave_one_out.captured_cases(fixtures / "canonical"), 0, None, EACH_CAPTURED), stop=3)
    assert found.wrong == []
    assert found.left_out > 100
    assert found.now_held > 50


@SLOW
@given(lines=histories())
def test_of_logs_of_any_episodes(lines):
    end = anchor(last_minute(lines) + 5)
    complete = give(capture(lines, anchor=end))
    assume(not leave_one_out.lacks_a_stop(complete))
    whole = leave_one_out.lines_of(complete)
    for missing in lines[1:-1]:
        without = give(capture([line for line in lines if line is not missing], anchor=end))
        assert list(leave_one_out.grown(whole, leave_one_out.lines_of(without))) == [], missing


def test_a_log_that_does_not_show_its_holes_would_be_noticed(monkeypatch):
    """Without the numbers, a line grows by the record that is missing: a check that cannot fail is none."""
    without = leave_one_out._without

    def unseen(taken, place, before):
        less = without(taken, place, before)
        return leave_one_out.oracle.Taken({**less.header, "contiguous": False}, less.lines)

    monkeypatch.setattr(leave_one_out, "_without", unseen)
    assert leave_one_out.run(leave_one_out.random_cases(60, SEED), stop=1).wrong


def test_what_grows_is_what_is_ready_and_was_not_or_was_less():
    ready, held = ("ready", 1, frozenset()), ("hold", 1, frozenset({"LOG_GAP"}))
    one, other = ("pt-1", "ord-1", "2026-03-02", "96369"), ("pt-1", "ord-1", "2026-03-02", "96370")
    assert list(leave_one_out.grown({one: ready, other: ready}, {one: ready, other: held})) == []
    assert list(leave_one_out.grown({one: held}, {one: ready})) == [one]
    assert list(leave_one_out.grown({one: ready}, {one: ready, other: ready})) == [other]
    assert list(leave_one_out.grown({other: ready}, {other: ("ready", 2, frozenset())})) == [other]


@pytest.mark.parametrize(
    ("second", "double"),
    [
        ([event(30, "delivery_start", source="basal")], True),
        ([event(30, "delivery_stop", source="basal")], True),
        ([event(30, "delivery_start", source="pca")], False),
        ([event(30, "delivery_stop", source="primary"), event(31, "delivery_start", source="basal")], False),
        ([event(30, "delivery_stop"), event(31, "delivery_start", source="basal")], False),
        ([event(30, "power_off"), event(31, "delivery_stop", source="basal")], False),
        ([event(30, "clock_change", reason="loss"), event(31, "delivery_start", source="basal")], False),
    ],
)
def test_what_runs_two_sources_at_once_is_known(second, double):
    assert leave_one_out.runs_two_at_once(log(event(0, "delivery_start", source="primary"), *second)) is double


def test_a_line_with_a_session_of_unknown_utc_is_known():
    lines = numbered([*infusion(0, 60), event(90, "other")])
    assert leave_one_out.with_a_printed_date(give(capture(lines))) == {("pt-1", "ord-1", "2026-03-02", "96369")}
    assert leave_one_out.with_a_printed_date(give(capture(lines, anchor=anchor(90)))) == set()
