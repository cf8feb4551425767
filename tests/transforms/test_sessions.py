# ruff: noqa: E501
"""The state table of docs/semantics.md §4, sessions, set-ups and what is held, from canonical lines in."""

from __future__ import annotations

import pytest

from tests.kit import PUMP, anchor, at, capture, event, give, infusion, log, new_setup, numbered, orders

START, STOP = "delivery_start", "delivery_stop"


def minutes_of(session):
    return {what: session[f"{what}_s"] / 60 for what in ("infusing", "unknown", "kvo", "alarm", "paused") if session[f"{what}_s"]}


@pytest.mark.parametrize(
    ("says", "events", "minutes", "flags"),
    [
        ("start and stop", [event(0, START), event(30, STOP)], {"infusing": 30}, []),
        ("a completion ends it", [event(0, START), event(30, "delivery_complete")], {"infusing": 30}, []),
        ("rate 0 is no delivery", [event(0, START, rate_ml_h=2), event(10, "rate_change", rate_ml_h=0), event(20, "rate_change", rate_ml_h=1), event(30, STOP)], {"infusing": 20, "paused": 10}, []),
        ("a start at rate 0 waits for its rate", [event(0, START, rate_ml_h=0), event(10, "rate_change", rate_ml_h=1), event(30, STOP)], {"infusing": 20}, []),
        ("a rate change proves nothing", [event(0, "power_on"), event(1, "rate_change", rate_ml_h=2), event(10, START), event(30, STOP)], {"infusing": 20}, []),
        ("a second start: the first has no stop", [event(0, START), event(10, START), event(30, STOP)], {"infusing": 20, "unknown": 10}, ["NO_STOP"]),
        ("power on: no stop", [event(0, START), event(10, "power_on"), event(12, START), event(30, STOP)], {"infusing": 18, "unknown": 10, "paused": 2}, ["NO_STOP"]),
        ("power off is a halt", [event(0, START), event(10, "power_off"), event(11, "power_on"), event(12, START), event(30, STOP)], {"infusing": 28, "paused": 2}, []),
        ("a stop without a start", [event(0, "other"), event(10, STOP, source="primary")], {"unknown": 10}, ["NO_START"]),
        ("a stop of another source without a start", [event(0, START), event(10, STOP, source="basal"), event(30, STOP)], {"infusing": 30}, ["NO_START"]),
        ("a stop that names none stops all", [event(0, START), event(5, START, source="secondary"), event(30, STOP)], {"infusing": 30}, []),
        ("a stop that names none when nothing ran", [event(0, START), event(10, STOP), event(20, STOP)], {"infusing": 10}, []),
        ("an alarm that stops delivery", [event(0, START), event(10, "alarm_raised", stops_delivery=True), event(20, START), event(30, STOP)], {"infusing": 20, "alarm": 10}, []),
        ("an alarm that does not", [event(0, START), event(10, "alarm_raised", alarm_class="low_reservoir"), event(30, STOP)], {"infusing": 30}, []),
        ("an alarm cleared proves nothing", [event(0, START), event(10, "alarm_raised", stops_delivery=True), event(11, "alarm_cleared"), event(20, START), event(30, STOP)], {"infusing": 20, "alarm": 10}, []),
        ("a stop by alarm", [event(0, START), event(10, STOP, reason="alarm"), event(20, START), event(30, STOP)], {"infusing": 20, "alarm": 10}, []),
        ("a reservoir change halts", [event(0, START), event(10, "reservoir_change"), event(20, START), event(30, STOP)], {"infusing": 20, "paused": 10}, []),
        ("two sources are a union", [event(0, START), event(10, START, source="secondary"), event(20, STOP, source="primary"), event(40, STOP, source="secondary")], {"infusing": 40}, []),
        ("KVO is not infusing", [event(0, START), event(10, "delivery_complete"), event(10, START, source="kvo"), event(20, START), event(30, STOP)], {"infusing": 20, "kvo": 10}, []),
        ("KVO after the end is outside the session", [event(0, START), event(10, "delivery_complete"), event(10, START, source="kvo"), event(20, STOP, source="kvo")], {"infusing": 10}, []),
        ("KVO starts while it delivers: no stop", [event(0, START), event(10, START, source="kvo"), event(20, STOP, source="kvo")], {"unknown": 10}, ["NO_STOP"]),
        ("a stop of KVO that did not run says nothing", [event(0, START), event(10, STOP, source="kvo"), event(20, STOP)], {"infusing": 20}, []),
        ("the limit is KVO", [event(0, START), event(10, "limit_reached"), event(15, "limit_cleared"), event(30, STOP)], {"infusing": 25, "kvo": 5}, []),
        ("what starts in the limit is limited", [event(0, START), event(10, "limit_reached"), event(12, START, source="secondary"), event(15, "limit_cleared"), event(30, STOP)], {"infusing": 25, "kvo": 5}, []),
        ("a stop ends the limit", [event(0, START), event(10, "limit_reached"), event(12, STOP), event(20, START), event(30, STOP)], {"infusing": 20, "kvo": 2, "paused": 8}, []),
        ("a limit cleared that was not reached", [event(0, START), event(10, "limit_cleared"), event(30, STOP)], {"infusing": 20, "unknown": 10}, ["NO_STOP"]),
        ("a missing stop in the limit takes all since the start", [event(0, START), event(10, "limit_reached"), event(12, START), event(15, "limit_cleared"), event(30, STOP)], {"infusing": 15, "unknown": 12, "kvo": 3}, ["NO_STOP"]),
        ("a transitioning stop leaves no gap", [event(0, START), event(10, STOP, reason="transitioning"), event(10, START), event(30, STOP)], {"infusing": 30}, []),
        ("a bolus while it infuses adds nothing", [event(0, START), event(10, "bolus_delivered", volume_ml=1, duration_s=300), event(30, STOP)], {"infusing": 30}, []),
        ("a bolus on its own is delivery", [event(0, START), event(10, STOP), event(20, "bolus_delivered", volume_ml=1, duration_s=300), event(40, START), event(50, STOP)], {"infusing": 25, "paused": 25}, []),
        ("a bolus told at its end", [event(0, START), event(10, STOP), event(25, "bolus_delivered", at="end", volume_ml=1, duration_s=300), event(40, START), event(50, STOP)], {"infusing": 25, "paused": 25}, []),
        ("a bolus is cut short by a halt", [event(0, START), event(10, STOP), event(20, "bolus_delivered", volume_ml=1, duration_s=600), event(22, "power_off"), event(40, START), event(50, STOP)], {"infusing": 22, "paused": 28}, []),
        ("a bolus during KVO is delivery", [event(0, START), event(10, "delivery_complete"), event(10, START, source="kvo"), event(20, "bolus_delivered", duration_s=300), event(40, START), event(50, STOP)], {"infusing": 25, "kvo": 25}, []),
        ("an intermittent pause", [event(0, START, source="intermittent"), event(10, STOP, source="intermittent", reason="between_doses"), event(20, START, source="intermittent"), event(30, "delivery_complete", source="intermittent")], {"infusing": 20, "paused": 10}, []),
    ],
)  # fmt: skip
def test_the_state_table(says, events, minutes, flags):
    session = log(*events).session
    assert minutes_of(session) == minutes, says
    assert session["flags"] == flags, says
    assert session["state"] == ("uncertain" if flags else "closed")
    assert sum(session[f"{what}_s"] for what in ("infusing", "unknown", "kvo", "alarm", "paused")) == session["span_s"]


def test_a_delivery_that_still_runs_is_open_and_held():
    given = log(event(0, START, rate_ml_h=2), event(30, "other"))
    assert (given.session["state"], given.session["stop"], given.session["infusing_s"]) == ("open", None, 1800)
    assert given.states() == {"hold"}
    assert given.reasons() == {"SESSION_OPEN"}


@pytest.mark.parametrize(("gap", "sessions"), [(3599, 1), (3600, 1), (3601, 2)])
def test_the_gap_limit_is_inclusive(gap, sessions):
    given = log(event(0, START), event(10, STOP), event(10 + gap / 60, START), event(100, STOP))
    assert len(given.rows("sessions")) == sessions


def test_a_new_patient_starts_a_new_session_whatever_the_gap():
    given = log(*infusion(0, 20), event(21, "new_patient"), *infusion(22, 20))
    assert len(given.rows("sessions")) == 2


def test_another_order_starts_a_new_session_and_a_piece_over_the_border_is_held():
    known = orders({"stop": at(30) + "Z"}, {"order_id": "ord-2", "patient_id": "pt-2", "start": at(30) + "Z"})
    apart = log(*infusion(0, 25), *infusion(31, 20), known=known)
    assert [s["order_id"] for s in sorted(apart.rows("sessions"), key=lambda s: s["start"])] == ["ord-1", "ord-2"]
    assert apart.states() == {"ready"}
    over = log(*infusion(0, 40), known=known)
    assert over.session["flags"] == ["ORDER_BOUNDARY"]
    assert over.states() == {"hold"}


def test_a_pump_without_an_order_is_shown_and_billed_to_nobody():
    known = orders({"start": "2027-01-01T00:00:00Z"})
    given = log(*infusion(0, 40), known=known)
    assert given.session["patient_id"] is None
    assert given.rows("lines") == []


def test_a_clock_change_adds_and_removes_nothing():
    given = log(
        event(0, START), event(10, "clock_change", old=at(10), new=at(70)), event(80, STOP), end=6000,
    )  # fmt: skip
    assert given.session["infusing_s"] == 20 * 60
    assert given.states() == {"ready"}
    assert given.session["time_quality"] == "corrected"


@pytest.mark.parametrize(
    "cut",
    [
        [event(10, "clock_change", reason="loss")],
        [event(10, "alarm_raised", alarm_class="clock_lost")],
        [event(-10, "other")],
    ],
    ids=["loss", "clock_lost", "step back"],
)
def test_nothing_is_carried_across_a_cut_of_the_clock(cut):
    given = log(event(0, START), event(5, "other"), *cut, event(20, STOP))
    assert not any(session["infusing_s"] > 5 * 60 for session in given.rows("sessions"))
    assert given.states() == {"hold"}


def test_a_missing_record_holds_what_it_may_have_changed():
    lines = numbered([*infusion(0, 30), *infusion(40, 30), *infusion(200, 60)])
    whole = give(capture(lines, anchor=anchor(6000)))
    assert whole.states() == {"ready"}
    holed = give(capture([line for line in lines if line["seq"] != 2], anchor=anchor(6000)))
    assert holed.states() == {"hold"}
    assert {"LOG_GAP", "NO_STOP"} <= holed.reasons()


def test_a_hole_does_not_hold_other_days():
    settled = numbered([*infusion(0, 30), event(40, "other"), event(50, "other"), event(51, "power_on"), *infusion(60 * 48, 30)])
    given = give(capture([line for line in settled if line["seq"] != 3], anchor=anchor(9000)))
    assert {line["service_date"].day: line["state"] for line in given.rows("lines")} == {2: "hold", 4: "ready"}


def test_a_later_capture_heals_a_hole():
    lines = numbered([*infusion(0, 30), *infusion(40, 30)])
    first = capture(lines[:1] + lines[2:], anchor=anchor(6000))
    second = capture(lines[1:2])
    assert give(first, second).states() == {"ready"}
    assert give(second, first).bytes() == give(first, second).bytes()


def test_a_broken_line_is_a_hole_only_where_the_numbers_do_not_show_that_nothing_is_missing():
    lines = numbered([*infusion(0, 30), *infusion(40, 30)])
    harmless = give(capture([*lines[:2], b'{"seq": NaN}', *lines[2:]], anchor=anchor(6000)))
    assert harmless.states() == {"ready"}
    at_the_end = give(capture([*lines, b"garbage"], anchor=anchor(6000, after_seq=4)))
    assert at_the_end.states() == {"hold"}
    only_ordering = give(capture([*lines[:2], b'{"seq": NaN}', *lines[2:]], anchor=anchor(6000), contiguous=False))
    assert only_ordering.states() == {"hold"}
    assert "GAPS_INVISIBLE" in only_ordering.codes()


def test_no_anchor_no_utc_and_every_line_of_the_order_is_held():
    given = give(capture(numbered(infusion(0, 30))))
    assert given.session["start"] is None
    assert given.session["time_quality"] == "unknown"
    assert given.reasons() == {"CLOCK_UNCERTAIN"}


def test_anchors_that_disagree_prove_a_silent_jump():
    lines = numbered([*infusion(0, 30), *infusion(100, 30)])
    one = capture(lines[:2], anchor=anchor(40))
    other = capture(lines[2:], anchor=anchor(200, utc_minutes=260))
    given = give(one, other)
    assert sorted(s["time_quality"] for s in given.rows("sessions")) == ["exact", "unknown"]
    assert given.states() == {"hold"}
    agreeing = give(one, capture(lines[2:], anchor=anchor(200, utc_minutes=201)))
    assert agreeing.states() == {"ready"}
    assert {s["time_quality"] for s in agreeing.rows("sessions")} == {"exact", "corrected"}


def test_two_anchors_of_one_moment_that_disagree_leave_no_utc_at_all():
    lines = numbered(infusion(0, 30))
    given = give(capture(lines, anchor=anchor(40)), capture(lines, anchor=anchor(40, utc_minutes=220)))
    assert given.session["time_quality"] == "unknown"
    assert given.reasons() == {"CLOCK_UNCERTAIN"}


def test_the_same_number_with_other_content_is_a_conflict():
    lines = numbered(infusion(0, 30))
    other = capture([{**lines[0], "rate_ml_h": 9.0}])
    given = give(capture(lines, anchor=anchor(60)), other)
    assert given.session["flags"] == ["RECORD_CONFLICT"]
    assert given.states() == {"hold"}
    assert given.bytes() == give(other, capture(lines, anchor=anchor(60))).bytes()


def test_two_pumps_at_once_are_never_counted_twice():
    known = orders({}, {"pump_id": "canonical:B2"})
    one = capture(numbered(infusion(0, 60)), anchor=anchor(600))
    two = capture(numbered(infusion(30, 60)), pump="canonical:B2", anchor=anchor(600))
    given = give(one, two, known=known)
    assert {line["minutes"] for line in given.rows("lines")} == {90}
    assert given.reasons() == {"OVERLAPPING_PUMPS"}


def test_a_second_order_on_one_date_holds_both():
    known = orders({}, {"pump_id": "canonical:B2", "order_id": "ord-2"})
    one = capture(numbered(infusion(0, 60)), anchor=anchor(600))
    two = capture(numbered(infusion(120, 60)), pump="canonical:B2", anchor=anchor(600))
    given = give(one, two, known=known)
    assert len(given.rows("lines")) == 2
    assert given.reasons() == {"SECOND_ORDER_SAME_DAY"}


def test_an_iv_infusion_on_the_date_holds():
    known = orders({}, {"pump_id": "canonical:B2", "order_id": "ord-2", "route": "IV"})
    one = capture(numbered(infusion(0, 60)), anchor=anchor(600))
    two = capture(numbered(infusion(120, 60)), pump="canonical:B2", anchor=anchor(600))
    assert give(one, two, known=known).reasons() == {"IV_SAME_ENCOUNTER"}


def test_demand_only_is_held():
    boluses = [event(m, "bolus_delivered", source="pca", volume_ml=1, duration_s=600) for m in range(0, 60, 15)]
    given = log(event(-1, START, rate_ml_h=0), *boluses, event(70, STOP))
    assert given.reasons() == {"DEMAND_ONLY"}


def test_a_demand_within_the_lockout_of_the_log_is_held():
    given = log(
        event(-1, "settings_change", lockout_s=600),
        event(0, START),
        event(5, "demand_granted"),
        event(14, "demand_granted"),
        event(30, STOP),
    )
    assert given.reasons() == {"LOCKOUT_VIOLATION"}
    fine = log(
        event(-1, "settings_change", lockout_s=600),
        event(0, START),
        event(5, "demand_granted"),
        event(15, "demand_granted"),
        event(30, STOP),
    )
    assert fine.states() == {"ready"}


@pytest.mark.parametrize(("volume", "held"), [(20.0, False), (22.5, True), (21.5, False)])
def test_a_volume_that_differs_from_rate_x_time_is_held(volume, held):
    given = log(event(0, START, rate_ml_h=20), event(60, STOP, source="primary", volume_ml=volume))
    assert given.reasons() == ({"VOLUME_MISMATCH"} if held else set())


def test_set_ups_belong_to_the_next_piece_and_one_within_a_piece_stands_alone():
    given = log(
        *new_setup(-5), *infusion(0, 30), event(31, "reservoir_change"), event(32, "priming_done", target="tubing"), *infusion(40, 30)
    )
    first, second = sorted(given.rows("setups"), key=lambda s: s["elapsed_ms"])
    assert (first["pump_setup"], first["new_site"]) == (True, "yes")
    assert (second["pump_setup"], second["new_site"]) == (True, "no")
    assert {first["session_id"], second["session_id"]} == {given.session["session_id"]}
    within = log(event(0, START), event(10, "priming_done", target="cannula"), event(30, STOP))
    assert within.rows("setups")[0]["session_id"] == within.session["session_id"]
    after = log(*infusion(0, 30), event(40, "reservoir_change"))
    assert after.rows("setups")[0]["session_id"] is None


def test_an_aborted_cannula_prime_is_only_a_possible_site():
    for aborted in ({"reason": "aborted"}, {"programmed_ml": 0.05, "volume_ml": 0.02}):
        given = log(event(-1, "priming_done", target="cannula", **aborted), *infusion(0, 30))
        assert given.rows("setups")[0]["new_site"] == "possible"


def test_unknown_utc_is_billed_on_the_pumps_printed_date_and_held():
    given = give(capture(numbered(infusion(0, 30))), known=orders(tz="Asia/Kathmandu"))
    (line,) = given.rows("lines")
    assert (line["service_date"].isoformat(), line["state"], line["start"]) == ("2026-03-02", "hold", None)


def test_every_event_can_be_found_again_from_its_line():
    given = log(*new_setup(-5), *infusion(0, 95))
    ids = {e["event_id"]: e for e in given.rows("events")}
    for line in given.rows("lines"):
        assert {ids[i]["kind"] for i in line["event_ids"]} == {"reservoir_change", "priming_done", "delivery_start", "delivery_stop"}
        assert sum(entry["seconds"] for entry in line["ledger"] if entry["counted"]) == 95 * 60
    assert all(e["raw"] for e in ids.values())
    assert given.session["pump_id"] == PUMP


@pytest.mark.parametrize("rules", ["cpt-9637x", "per-diem"])
def test_a_cut_over_which_utc_runs_backwards_reaches_all_dates_between(rules):
    lines = numbered([*infusion(1500, 60), event(1590, "other"), event(1600, "other"), *infusion(1700, 60)])
    before = capture(lines[:3], anchor=anchor(1595))
    after = capture(lines[4:], anchor=anchor(1800, utc_minutes=300))
    given = give(before, after, known=orders(rule_set=rules))
    assert {line["service_date"].day: line["reasons"] for line in given.rows("lines")} == {2: ["LOG_GAP"], 3: ["LOG_GAP"]}
