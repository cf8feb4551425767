"""What lies at the borders of a rule: each case fails for a small change of the code that no other test noticed."""

from __future__ import annotations

import pytest

from tests import kit
from tests.kit import anchor, capture, event, infusion, log, numbered, orders

TWO_ORDERS = orders({"order_id": "ord-1"}, {"pump_id": "canonical:A2", "order_id": "ord-2", "drug": "treprostinil"})
MIDNIGHT = 16 * 60


def two_pumps(one: list[dict[str, object]], other: list[dict[str, object]]) -> kit.Given:
    """What two pumps of one patient give, of two orders."""
    captures = [
        capture(numbered(events), pump=pump, anchor=anchor(6000)) for pump, events in (("canonical:A1", one), ("canonical:A2", other))
    ]
    return kit.give(*captures, known=TWO_ORDERS)


def test_two_orders_that_infuse_at_the_same_time_hold_each_other_though_they_began_on_different_dates():
    at_once = two_pumps(infusion(MIDNIGHT - 60, 120), infusion(MIDNIGHT + 30, 60))
    assert len({line["service_date"] for line in at_once.rows("lines")}) == 2
    assert at_once.reasons() == {"SECOND_ORDER_SAME_DAY"}
    assert at_once.states() == {"hold"}


def test_two_orders_one_after_the_other_on_two_dates_do_not():
    assert two_pumps(infusion(MIDNIGHT - 120, 90), infusion(MIDNIGHT + 30, 60)).states() == {"ready"}


def test_two_orders_on_one_date_hold_each_other_though_they_never_infuse_at_once():
    assert two_pumps(infusion(0, 60), infusion(300, 60)).reasons() == {"SECOND_ORDER_SAME_DAY"}


@pytest.mark.parametrize(("gap", "sessions"), [(59, 1), (60, 1), (61, 2)])
def test_pieces_at_most_the_gap_limit_apart_are_one_session(gap, sessions):
    assert len(log(*infusion(0, 60), *infusion(60 + gap, 60)).rows("sessions")) == sessions


def test_a_new_patient_between_two_pieces_parts_them_whatever_the_gap():
    assert len(log(*infusion(0, 60), event(65, "new_patient"), *infusion(70, 60)).rows("sessions")) == 2


def test_a_stop_that_comes_with_a_new_start_leaves_one_piece_and_a_halt_leaves_two():
    changed = log(*infusion(0, 60), *infusion(60, 60))
    halted = log(event(0, "delivery_start", rate_ml_h=2.0), event(60, "reservoir_change"), *infusion(60, 60))
    assert changed.session["infusing_s"] == halted.session["infusing_s"] == 7200
    assert [one["pump_setup"] for one in halted.rows("setups")] == [True]
    assert halted.rows("setups")[0]["session_id"] == halted.session["session_id"]


@pytest.mark.parametrize(("told", "held"), [(2.9, False), (3.1, True)])
def test_a_volume_more_than_a_tenth_and_a_millilitre_from_rate_by_time_holds(told, held):
    stop = event(60, "delivery_stop", source="primary", reason="user", volume_ml=told)
    assert ("VOLUME_MISMATCH" in log(event(0, "delivery_start", rate_ml_h=2.0), stop).reasons()) is held


@pytest.mark.parametrize(("minutes", "held"), [(9, True), (10, False)])
def test_two_granted_demands_closer_than_the_lockout_hold(minutes, held):
    demands = [event(10, "demand_granted"), event(10 + minutes, "demand_granted")]
    given = log(event(-1, "settings_change", lockout_s=600), event(0, "delivery_start", rate_ml_h=2.0), *demands, infusion(0, 60)[1])
    assert ("LOCKOUT_VIOLATION" in given.reasons()) is held


def test_the_five_kinds_of_seconds_of_a_session_with_all_of_them():
    given = log(
        event(0, "delivery_start", rate_ml_h=2.0),
        event(10, "alarm_raised", alarm_class="occlusion", stops_delivery=True),
        event(15, "delivery_start", rate_ml_h=2.0),
        event(25, "delivery_stop", source="primary", reason="user"),
        event(30, "delivery_start", source="kvo", rate_ml_h=0.1),
        event(40, "delivery_start", rate_ml_h=2.0),
        event(50, "delivery_start", rate_ml_h=3.0),
        event(60, "delivery_stop", source="primary", reason="user"),
    )
    told = {kind: given.session[f"{kind}_s"] for kind in ("infusing", "unknown", "kvo", "alarm", "paused", "span")}
    assert told == {"infusing": 1800, "unknown": 600, "kvo": 600, "alarm": 300, "paused": 300, "span": 3600}


@pytest.mark.parametrize(("rate", "told"), [(3.0, False), (3.1, True)])
def test_a_rate_over_the_limit_of_its_therapy_is_told(rate, told):
    given = log(event(0, "delivery_start", rate_ml_h=rate), event(60, "delivery_stop", source="primary", reason="user"))
    assert ("RATE_ABOVE_THERAPY_LIMIT" in given.codes()) is told
    assert given.states() == {"ready"}
