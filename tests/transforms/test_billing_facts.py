"""Every row of the table in docs/billing.md §2, from canonical lines in to lines out."""

from __future__ import annotations

import random

import pytest

from ingest.night import rule_sets
from tests import kit, oracle
from tests.kit import anchor, capture, event, give, infusion, log, new_setup, numbered
from transforms import billing

INITIAL, FURTHER, SETUP, INJECTION = "96369", "96370", "96371", "96372"


@pytest.mark.parametrize(
    ("minutes", "units"),
    [
        (10, {INJECTION: 1}),
        (15, {INJECTION: 1}),
        (16, {INITIAL: 1}),
        (60, {INITIAL: 1}),
        (90, {INITIAL: 1}),
        (91, {INITIAL: 1, FURTHER: 1}),
        (150, {INITIAL: 1, FURTHER: 1}),
        (151, {INITIAL: 1, FURTHER: 2}),
        (210, {INITIAL: 1, FURTHER: 2}),
        (211, {INITIAL: 1, FURTHER: 3}),
        (480, {INITIAL: 1, FURTHER: 7}),
    ],
)
def test_minutes_give_their_units_and_are_ready(minutes, units):
    given = log(*new_setup(-5), *infusion(0, minutes))
    assert given.units() == units
    assert given.states() == {"ready"}
    assert {line["minutes"] for line in given.rows("lines")} == {minutes}


@pytest.mark.parametrize(
    ("minutes", "further", "reasons"),
    [(481, 7, {"OVER_8H"}), (540, 8, {"OVER_8H"}), (571, 9, {"OVER_8H", "OVER_UNIT_CAP"}), (1440, 23, {"OVER_8H", "OVER_UNIT_CAP"})],
)
def test_long_infusions_are_held_with_their_units_shown(minutes, further, reasons):
    given = log(*infusion(0, minutes))
    assert given.units() == {INITIAL: 1, FURTHER: further}
    assert given.states() == {"hold"}
    assert given.reasons() == reasons
    assert all("per-diem" in item["suggestion"] for item in given.rows("worklist") if item["code"] == "OVER_8H")


def test_an_occlusion_stop_is_not_counted():
    given = log(
        event(0, "delivery_start", rate_ml_h=2),
        event(40, "alarm_raised", alarm_class="occlusion", stops_delivery=True),
        event(75, "delivery_start", rate_ml_h=2),
        event(120, "delivery_stop"),
    )
    assert given.units() == {INITIAL: 1}
    assert {line["minutes"] for line in given.rows("lines")} == {85}
    assert given.session["alarm_s"] == 35 * 60
    assert given.states() == {"ready"}


def test_one_pump_with_four_needles_is_one_set_up():
    primes = [event(-5 + n, "priming_done", target="cannula", volume_ml=0.05) for n in range(4)]
    given = log(event(-6, "reservoir_change"), *primes, *infusion(0, 95))
    assert given.units() == {INITIAL: 1, FURTHER: 1}
    assert len(given.rows("setups")) == 1


def test_a_second_set_up_with_a_new_site_is_billed_once_however_many_follow():
    two = log(*new_setup(-5), *infusion(0, 60), *new_setup(70), *infusion(75, 60))
    assert two.units() == {INITIAL: 1, FURTHER: 1, SETUP: 1}
    assert two.states() == {"ready"}
    three = log(*new_setup(-5), *infusion(0, 60), *new_setup(70), *infusion(75, 60), *new_setup(140), *infusion(145, 20))
    assert three.units() == {INITIAL: 1, FURTHER: 1, SETUP: 1}
    assert "SECOND_96371" in three.codes()


def test_a_reservoir_change_alone_is_no_new_site():
    given = log(*new_setup(-5), *infusion(0, 60), event(70, "reservoir_change"), *infusion(75, 60))
    assert SETUP not in given.units()


def test_a_site_alone_is_no_pump_set_up():
    given = log(*new_setup(-5), *infusion(0, 60), event(70, "priming_done", target="cannula"), *infusion(75, 60))
    assert SETUP not in given.units()
    assert "SITE_CHANGE_NO_PUMP_SETUP" in given.codes()


def test_a_possible_site_asks_for_a_person():
    given = log(*new_setup(-5), *infusion(0, 60), event(70, "reservoir_change"), event(71, "priming_done"), *infusion(75, 60))
    assert SETUP not in given.units()
    assert "POSSIBLE_SITE_CHANGE" in given.codes()


def test_two_set_ups_within_a_quarter_of_an_hour_of_infusion_are_one_that_was_corrected():
    given = log(*new_setup(-5), *infusion(0, 14), *new_setup(20), *infusion(25, 60))
    assert SETUP not in given.units()
    given = log(*new_setup(-5), *infusion(0, 15), *new_setup(20), *infusion(25, 60))
    assert given.units()[SETUP] == 1


def test_set_ups_are_not_parted_by_infusion_that_lies_twice_on_one_time():
    """Ten minutes by the printed clock and, of a stretch whose UTC is known, the same ten: one pump gave ten minutes, not twenty."""
    before = [event(0, "reservoir_change"), event(0.5, "delivery_start", rate_ml_h=2.0), event(10.5, "power_off")]
    behind = [event(10.5, "reservoir_change"), event(10.5, "priming_done", target="cannula"), *infusion(10.5, 30)]
    lost = [event(3000, "clock_change", reason="loss"), *infusion(3000, 60)]
    lines = numbered(before) + [{**one, "seq": one["seq"] + 4} for one in numbered(behind + lost)]
    given = give(capture(lines, anchor=anchor(3060, utc_minutes=60, after_seq=lines[-1]["seq"])))
    assert len(given.rows("setups")) == 2
    assert "96371" not in given.units()


def test_seconds_are_summed_before_minutes_are_cut():
    given = log(event(0, "delivery_start"), event(7.5, "delivery_stop"), event(10, "delivery_start"), event(18.5, "delivery_stop"))
    assert given.units() == {INITIAL: 1}
    assert {line["minutes"] for line in given.rows("lines")} == {16}


@pytest.mark.parametrize("drug", ["Insulin Lispro", "humalog 100", "Merilog", "Actrapid Penfill", ""])
def test_insulin_and_what_may_be_insulin_make_no_line(drug):
    from tests.kit import orders

    given = log(*infusion(0, 60), known=orders(drug=drug))
    assert given.rows("lines") == []
    assert [(item["code"], item["minutes_at_stake"]) for item in given.rows("worklist")] == [("EXCLUDED_DRUG", 60)]


def test_an_injection_is_named_with_no_revenue_code_of_the_infusion():
    assert [line["revenue_codes"] for line in log(*infusion(0, 10)).rows("lines")] == [[]]
    assert [line["revenue_codes"] for line in log(*infusion(0, 20)).rows("lines")] == [["0450", "0510", "0760"]]


def test_another_route_makes_no_line():
    from tests.kit import orders

    given = log(*infusion(0, 60), known=orders(route="IV"))
    assert given.rows("lines") == []
    assert "ROUTE_NOT_SC" in given.codes()


@pytest.mark.parametrize(("hours", "long"), [(72, False), (73, True)])
@pytest.mark.parametrize("later", [False, True])
def test_more_than_72_hours_on_one_site_is_worth_a_look_whether_or_not_another_site_follows(hours, long, later):
    begin = 24 * 60
    end = begin + hours * 60
    further = [*new_setup(end), *infusion(end, 60)] if later else []
    given = log(*new_setup(begin), *infusion(begin, hours * 60), *further)
    assert ("SITE_DWELL_LONG" in given.codes()) is long


def test_lines_are_the_same_settled_one_by_one_and_all_at_once() -> None:
    for n in range(60):
        one = oracle.random_encounter(random.Random(f"settled:{n}"))
        given = kit.give(*(taken.capture() for taken in one.captures), known=kit.orders(*one.orders))
        facts = billing.Facts(*(given.facts[name] for name in ("sessions", "intervals", "setups", "doubts")))
        alone, cases = billing.settled(facts, kit.orders(*one.orders), rule_sets(), {})
        assert {case.encounter_id for case in cases} >= {line["encounter_id"] for line in given.rows("lines")}
        for name in ("lines", "worklist", "days"):
            assert getattr(alone, name).equals(getattr(given.bill, name)), (n, name)
