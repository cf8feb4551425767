"""Any arrival of captures ends in the same tables, on a real lake with nights in between (tests/arrivals.py; docs/semantics.md §7.2)."""

from __future__ import annotations

import pytest

from tests import arrivals

SEED = 20260308
NUMBERS = [world * arrivals.EACH_WORLD + nth for world in range(5) for nth in range(5)]
"""Some schedules of each of some worlds."""


@pytest.fixture(scope="module")
def played():
    return arrivals.run(NUMBERS, SEED, stop=3)


def test_captures_split_repeated_permuted_and_late_end_in_the_tables_of_all_at_once(played):
    assert played.wrong == [], f"python -m tests.arrivals --seed {SEED} --first {played.wrong[0][0]} --count 1"
    assert played.schedules == len(NUMBERS)


def test_the_worlds_have_several_families_and_lines_and_the_schedules_all_that_can_befall_them(played):
    assert len(played.families) >= 4
    assert played.lines > 10
    assert {name for name, times in played.met.items() if times} >= {"split", "repeated", "14 days late", "a night of the day"} | {
        f"a night {kind}" for kind in arrivals.KINDS
    }


def test_a_capture_that_never_comes_would_be_noticed():
    there, plan = arrivals.plan_of(SEED, NUMBERS[0])
    gone = there.captures[-1].pump_id
    left = [(one, at) for one, at in plan.arrivals if one.pump_id != gone]
    assert arrivals.played(there, arrivals.Schedule(left, [])) != there.at_once


def test_a_schedule_that_gives_other_tables_is_made_small():
    there, plan = arrivals.plan_of(SEED, NUMBERS[1])
    wrong = arrivals.World(there.captures, there.orders, there.older, {}, there.families, there.lines)
    small = arrivals.smallest(wrong, plan)
    assert small.nights == []
    assert [one for one, _ in small.arrivals] == list(there.captures)


def test_a_schedule_is_made_from_its_number_alone():
    one, other = (arrivals.plan_of(SEED, NUMBERS[2])[1] for _ in range(2))
    assert one.arrivals == other.arrivals
    assert one.nights == other.nights
