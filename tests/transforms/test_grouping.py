# ruff: noqa: E501
"""Sessions, set-ups and doubts (docs/semantics.md §4-§6): what is grouped, what is flagged, what stands in their rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.kit import Given, anchor, assembled, at, billed, capture, event, give, infusion, log, new_setup, numbered, orders, saying
from transforms.block import Block
from transforms.sessions import FactPolicy, derive, derive_all

START, STOP, BOLUS = "delivery_start", "delivery_stop", "bolus_delivered"
MORNING = datetime(2026, 3, 2, 8, tzinfo=UTC)


def sessions(given: Given) -> list[dict[str, Any]]:
    return sorted(given.rows("sessions"), key=lambda row: (row["printed_start"], row["span_s"]))


def setups(given: Given) -> list[dict[str, Any]]:
    return sorted(given.rows("setups"), key=lambda row: (row["elapsed_ms"], numbers(given, row["evidence"])))


def minute(moment: datetime | None) -> float | None:
    """Minutes from the morning of the first day."""
    return None if moment is None else (moment.replace(tzinfo=UTC) - MORNING).total_seconds() / 60


def numbers(given: Given, ids: list[str]) -> list[int]:
    """The numbers of records by the ids of their events."""
    seq = {row["event_id"]: row["seq"] for row in given.rows("events")}
    return [seq[one] for one in ids]


def spans(given: Given) -> list[tuple[Any, ...]]:
    """Of each session: from, to (UTC minutes), infusing minutes, flags."""
    return [(minute(s["start"]), minute(s["stop"]), s["infusing_s"] / 60, s["flags"]) for s in sessions(given)]


def doubts(given: Given) -> list[tuple[Any, ...]]:
    """Of each doubt: code, the number of its session (None: a cut), from, to (UTC minutes), the number of its record."""
    ids = [row["session_id"] for row in sessions(given)]
    found = [
        (
            row["code"],
            None if row["session_id"] is None else ids.index(row["session_id"]),
            minute(row["from_utc"]),
            minute(row["to_utc"]),
            *numbers(given, [row["event_id"]]),
        )
        for row in given.rows("doubts")
    ]
    return sorted(found, key=lambda one: (one[4] or 0, one[0], one[1] is not None))


def stop(at_: float, source: str | None = "primary", **fields: Any) -> dict[str, Any]:
    return event(at_, STOP, **({"source": source} if source else {}), **fields)


def bolus(at_: float, lasts: float = 0, **fields: Any) -> dict[str, Any]:
    return event(at_, BOLUS, **{"source": "pca", "volume_ml": 1.0, "duration_s": lasts * 60, **fields})


# --- which pieces are one session -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "events", "expected"),
    [
        ("at the stop of the first", [*infusion(0, 10), event(10, "new_patient"), *infusion(10, 10)], [(0, 10), (10, 20)]),
        ("at the start of the second", [*infusion(0, 10), event(20, "new_patient"), *infusion(20, 10)], [(0, 10), (20, 30)]),
        ("just behind the start of the second", [*infusion(0, 10), event(20, START), event(20, "new_patient"), *infusion(30, 10)], [(0, 20), (30, 40)]),
        ("before both", [event(0, "new_patient"), *infusion(0, 10), *infusion(20, 10)], [(0, 30)]),
        ("behind both", [*infusion(0, 10), *infusion(20, 10), event(30, "new_patient")], [(0, 30)]),
        ("the second of two", [event(-5, "new_patient"), *infusion(0, 10), event(15, "new_patient"), *infusion(20, 10)], [(0, 10), (20, 30)]),
        ("just before a bolus of no time", [event(0, "new_patient"), bolus(0), *infusion(10, 10)], [(0, 20)]),
        ("it stops what runs", [event(0, START), event(10, "new_patient"), *infusion(10, 10)], [(0, 10), (10, 20)]),
    ],
)  # fmt: skip
def test_a_new_patient_parts_what_lies_on_both_sides_of_it(says, events, expected):
    assert [(low, high) for low, high, *_ in spans(log(*events))] == expected, says


def test_pieces_are_grouped_by_the_one_that_reaches_furthest():
    given = log(event(0, "other"), event(0, START, source="basal"), event(10, START), event(100, "power_on"), *infusion(155, 10))
    assert spans(given) == [(0, 165, 10, ["NO_STOP"])]
    long = log(event(0, "other"), event(100, "delivery_stop", source="basal"), *infusion(150, 10))
    assert spans(long) == [(0, 160, 10, ["NO_START"])]
    unknown = log(event(0, "other"), event(0, START), event(2, START, source="basal"), stop(5, "basal"), event(200, START), stop(210))
    assert spans(unknown) == [(0, 210, 13, ["NO_STOP"])]


def test_orders_part_pieces_and_those_of_one_order_go_on():
    known = orders(
        {"stop": at(30) + "Z"},
        {"order_id": "ord-2", "start": at(30) + "Z", "stop": at(60) + "Z"},
        {"start": at(60) + "Z", "stop": at(90) + "Z"},
    )
    given = log(
        *infusion(0, 10), *infusion(20, 5), *infusion(30, 10), *infusion(60, 10), *infusion(89.9, 10), *infusion(120, 5), known=known
    )
    assert [(low, high, row["order_id"]) for (low, high, *_), row in zip(spans(given), sessions(given), strict=True)] == [
        (0, 25, "ord-1"), (30, 40, "ord-2"), (60, 99.9, "ord-1"), (120, 125, None),
    ]  # fmt: skip
    assert [row["flags"] for row in sessions(given)] == [[], [], ["ORDER_BOUNDARY"], []]


def test_what_runs_at_the_end_leaves_the_session_of_the_order_in_force_open_whatever_reaches_further():
    events = [event(0, START, source="primary"), event(120, START, source="basal"), event(180, STOP, source="basal")]
    known = orders({"stop": at(60) + "Z"}, {"order_id": "ord-2", "start": at(60) + "Z"})
    first, second = sessions(log(*events, event(180, START, source="primary", rate_ml_h=0), end=180, known=known))
    assert (first["order_id"], first["flags"]) == ("ord-1", ["NO_STOP", "SESSION_OPEN", "ORDER_BOUNDARY"])
    assert (second["order_id"], second["infusing_s"], second["flags"]) == ("ord-2", 3600, ["SESSION_OPEN"])


@pytest.mark.parametrize(("ends", "further"), [("alarm", False), ("power_off", False), ("new_patient", False), ("reservoir_change", True)])
def test_a_set_up_before_a_halt_that_settles_a_log_may_lie_in_a_delivery_that_is_not_seen_and_is_of_no_session(ends, further):
    """Else it would stand for the first of the next session, and the first would be taken for a further one; a change of the reservoir is
    itself of the next."""
    halt = event(60, "alarm_raised", alarm_class="occlusion", stops_delivery=True) if ends == "alarm" else event(60, ends)
    seen = [*infusion(600, 60), *new_setup(661), *infusion(665, 60)]
    given = log(event(0, "priming_done", target="cannula", volume_ml=0.3), halt, *seen)
    assert ("96371" in {line["code"] for line in given.rows("lines")}) is further
    assert [row["session_id"] is None for row in given.rows("setups")].count(True) == (not further)
    begun = log(event(0, "priming_done", target="cannula", volume_ml=0.3), *seen)
    assert "96371" in {line["code"] for line in begun.rows("lines")}


def test_a_source_at_rate_0_in_a_stretch_that_has_no_session_leaves_none_open():
    lost = [event(70, "clock_change", reason="loss"), event(71, START, rate_ml_h=0), event(80, "other")]
    (only,) = sessions(log(*infusion(0, 60), *lost, end=90))
    assert "SESSION_OPEN" not in only["flags"]


def test_an_order_of_another_pump_is_no_order_of_this_one():
    known = orders(
        {}, {"pump_id": "canonical:B2", "order_id": "ord-2", "start": at(60) + "Z"}, {"pump_id": "canonical:C3", "order_id": "ord-3"}
    )
    given = give(capture(numbered([*infusion(0, 20), *infusion(70, 20)]), pump="canonical:B2", anchor=anchor(100)), known=known)
    assert [row["order_id"] for row in sessions(given)] == [None, "ord-2"]
    assert [
        row["order_id"] for row in sessions(give(capture(numbered(infusion(0, 9)), pump="canonical:Z9", anchor=anchor(10)), known=known))
    ] == [None]


@pytest.mark.parametrize(("ends", "flags"), [(40, []), (39.999, ["ORDER_BOUNDARY"])])
def test_a_session_may_end_with_its_order_and_not_after_it(ends, flags):
    assert log(*infusion(0, 10), *infusion(30, 10), known=orders({"stop": at(ends) + "Z"})).session["flags"] == flags


def test_without_utc_the_printed_time_read_in_the_zone_of_the_order_finds_it_and_its_end():
    def given(**order: str) -> Given:
        return give(capture(numbered(infusion(0, 40))), known=orders(tz="Asia/Kathmandu", **order))

    begins = (datetime.fromisoformat(at(0)) - timedelta(hours=5, minutes=45)).isoformat() + "Z"
    later = (datetime.fromisoformat(at(0.001)) - timedelta(hours=5, minutes=45)).isoformat() + "Z"
    ends = (datetime.fromisoformat(at(39.9)) - timedelta(hours=5, minutes=45)).isoformat() + "Z"
    assert given(start=begins).session["order_id"] == "ord-1"
    assert given(start=later).session["order_id"] is None
    assert given(stop=ends).session["flags"] == ["CLOCK_UNCERTAIN", "ORDER_BOUNDARY"]
    assert given().session["flags"] == ["CLOCK_UNCERTAIN"]
    assert given(stop=begins).session["order_id"] is None


def test_an_end_without_utc_is_compared_with_the_order_by_its_printed_time():
    lines = numbered([event(0, START), event(30, "other"), stop(40)])
    read = [(1, 5, 5), (2, 35, 35), (3, 60, 600)]
    torn = [capture(lines, anchor=anchor(shown, utc_minutes=utc, after_seq=after)) for after, shown, utc in read]
    for ends, flags in ((39, ["CLOCK_UNCERTAIN", "ORDER_BOUNDARY"]), (41, ["CLOCK_UNCERTAIN"])):
        row = give(*torn, known=orders({"stop": at(ends) + "Z"})).session
        assert (minute(row["start"]), row["stop"], row["order_id"], row["flags"]) == (0, None, "ord-1", flags)


def test_a_pump_without_any_time_finds_no_order():
    one = assembled([capture(numbered(infusion(0, 40)))])
    given = billed([saying(one, pump_time=[None, None])], orders())
    assert (given.session["order_id"], given.session["printed_start"], given.session["span_s"]) == (None, None, 0)
    assert given.session["flags"] == ["CLOCK_UNCERTAIN"]


# --- what the events within a session add up to ------------------------------------------------------------------------------------------


def test_the_events_from_the_first_instant_of_a_session_to_its_last_are_counted():
    begin = [event(-1, "demand_granted"), event(0, "demand_denied"), event(0, START), event(0, "demand_granted"), bolus(0)]
    end = [
        bolus(60),
        event(60, "demand_granted"),
        stop(60),
        event(60, "demand_denied"),
        event(61, "demand_denied"),
        event(62, "demand_granted"),
    ]
    row = log(*begin, *end).session
    assert (row["bolus_count"], row["granted"], row["denied"], row["span_s"]) == (2, 2, 2, 3600)


@pytest.mark.parametrize(("granted", "told"), [(2, False), (1, True)])
def test_more_patient_boluses_than_granted_demands_are_told(granted, told):
    demands = [event(5 + n, "demand_granted") for n in range(granted)]
    given = log(event(0, START, rate_ml_h=2), *demands, bolus(10, 1), bolus(20, 1), bolus(30, 1, source="clinician"), stop(60))
    assert (given.session["bolus_count"], given.session["granted"]) == (3, granted)
    assert ("DELIVERED_GT_DEMANDED" in given.session["flags"]) is told


def test_the_greatest_rate_is_that_of_any_record_within_the_session():
    rates = [event(-5, "rate_change", rate_ml_h=9.0), event(0, START, rate_ml_h=2.0), event(10, "rate_change", rate_ml_h=4.5)]
    given = log(*rates, event(20, "rate_change", rate_ml_h=1.0), stop(60), event(70, "rate_change", rate_ml_h=8.0))
    assert given.session["max_rate_ml_h"] == 4.5
    assert log(event(0, START), stop(60)).session["max_rate_ml_h"] is None


@pytest.mark.parametrize(
    ("says", "events", "seconds"),
    [
        ("of one source", [*infusion(0, 60)], 3600),
        ("of two at once, together", [event(0, START), event(30, START, source="basal"), stop(60), stop(90, "basal")], 5400),
        ("of one within another", [event(0, START), event(30, START, source="basal"), stop(40, "basal"), stop(90)], 5400),
        ("of two with a pause", [*infusion(0, 30), *infusion(60, 30)], 3600),
        ("boluses are none", [bolus(0, 10), event(30, "demand_granted"), bolus(30, 10)], 0),
        ("deliveries of boluses are none", [event(0, START, source="pca"), stop(30, "pca"), event(40, START, source="clinician"), stop(50, "clinician"), event(55, START, source="loading"), stop(60, "loading")], 0),
        ("of both", [event(0, START, source="loading"), event(10, START), stop(30, "loading"), stop(50)], 2400),
        ("what is unknown is none", [event(0, START), event(30, START), stop(60)], 1800),
    ],
)  # fmt: skip
def test_continuous_seconds(says, events, seconds):
    assert log(*events).session["continuous_s"] == seconds, says


@pytest.mark.parametrize(
    ("says", "minutes", "lockouts", "held"),
    [
        ("of the first two", [10, 19, 40], [(-1, 600)], True),
        ("of the last two", [10, 30, 39], [(-1, 600)], True),
        ("exactly", [10, 20, 30], [(-1, 600)], False),
        ("no lockout is told", [10, 11], [], False),
        ("told too late", [10, 11], [(12, 600)], False),
        ("made shorter", [10, 19, 28], [(-1, 600), (9, 540)], False),
        ("made longer", [10, 20, 30], [(-1, 600), (25, 660)], True),
        ("of no time", [10, 10], [(-1, 0)], False),
    ],
)  # fmt: skip
def test_demands_granted_within_the_lockout(says, minutes, lockouts, held):
    events = [*(event(m, "settings_change", lockout_s=s) for m, s in lockouts), *(event(m, "demand_granted") for m in minutes)]
    given = log(*sorted([*events, *infusion(-2, 62)], key=lambda one: one["pump_time"]))
    assert ("LOCKOUT_VIOLATION" in given.session["flags"]) is held, says


def test_any_number_of_demands_may_be_too_soon():
    demands = [event(10 + n, "demand_granted") for n in range(12)]
    given = log(event(0, "settings_change", lockout_s=600), event(1, START), *demands, stop(40), *infusion(200, 10))
    assert [(row["granted"], row["flags"]) for row in sessions(given)] == [(12, ["LOCKOUT_VIOLATION"]), (0, [])]


def test_a_lockout_that_another_kind_of_record_tells_counts_for_nothing():
    events = [event(0, START), event(1, "other", lockout_s=600), event(10, "demand_granted"), event(11, "demand_granted"), stop(30)]
    assert log(*events).session["flags"] == []


def test_demands_too_soon_hold_the_session_that_one_of_them_lies_in_and_no_other():
    given = log(
        event(-200, "settings_change", lockout_s=6000), *infusion(-190, 10), *infusion(0, 10), event(10, "demand_granted"), event(90, "demand_granted"), *infusion(200, 10)
    )  # fmt: skip
    assert [flags for *_, flags in spans(given)] == [[], ["LOCKOUT_VIOLATION"], []]


def test_a_conflict_holds_the_sessions_within_the_gap_limit_of_it():
    def flags(conflict: float) -> list[bool]:
        events = sorted([*infusion(0, 10), event(conflict, "other"), *infusion(400, 10)], key=lambda one: one["pump_time"])
        lines = numbered(events)
        (seq,) = [line["seq"] for line in lines if line["kind"] == "other"]
        given = give(capture(lines, anchor=anchor(6000)), capture([{**lines[seq - 1], "kind": "daily_total"}]))
        return ["RECORD_CONFLICT" in row["flags"] for row in sessions(given)]

    assert flags(5) == [True, False]
    assert flags(70) == [True, False]
    assert flags(70.1) == [False, False]
    assert flags(339.9) == [False, False]
    assert flags(340) == [False, True]
    assert flags(470) == [False, True]


def test_each_session_has_the_volume_that_flowed_in_it():
    def volumes(*events: dict[str, Any]) -> list[float | None]:
        return [row["volume_ml"] for row in sessions(log(*events))]

    flow = [event(0, START, rate_ml_h=2.0), event(30, "new_patient"), event(30, START, rate_ml_h=6.0), stop(60)]
    assert volumes(*flow, *infusion(200, 15)) == [1.0, 3.0, 0.5]
    assert volumes(*flow, event(200, START, rate_ml_h=4.0), event(230, "other")) == [1.0, 3.0, 2.0]
    unknown = [event(0, START), stop(30), *infusion(200, 15), event(400, START), stop(430)]
    assert volumes(*unknown) == [None, 0.5, None]
    assert volumes(*infusion(0, 30), bolus(31), *infusion(200, 30)) == [2.0, 1.0]


def test_continuous_milliseconds_are_cut_to_whole_seconds():
    end = {**stop(1), "pump_time": at(0, 59) + ".999"}
    row = log(event(0, START, rate_ml_h=2.0), end).session
    assert (row["continuous_s"], row["infusing_s"], row["span_s"]) == (59, 59, 59)


def test_each_session_is_laid_out_by_what_lies_in_it_and_nothing_else():
    def one(begin: float, *pause: dict[str, Any]) -> list[dict[str, Any]]:
        return [event(begin, START), *pause, event(begin + 20, START), stop(begin + 30)]

    given = log(
        *one(0, event(10, "alarm_raised", stops_delivery=True)), event(40, START, source="kvo"), stop(90, "kvo"),
        *one(200, stop(210)), event(240, START), event(250, "alarm_raised", stops_delivery=True), event(260, "limit_cleared"),
        *one(400, stop(410), event(412, START, source="kvo")), event(430, START, source="kvo"), event(440, "power_off"),
        *one(600, stop(610, reason="malfunction")), *one(630, stop(640)), event(660, START, source="kvo"),
        *one(800, stop(810), event(810, START, source="kvo"), stop(815, "kvo")),
    )  # fmt: skip
    ids = [row["session_id"] for row in sessions(given)]
    laid = sorted(
        (ids.index(row["session_id"]), row["from_ms"] / 60_000, row["to_ms"] / 60_000, row["class"]) for row in given.rows("intervals")
    )
    run, alarm, idle, pause = "infusing", "alarm", "kvo", "paused"
    assert laid == [
        (0, 0, 10, run), (0, 10, 20, alarm), (0, 20, 30, run),
        (1, 200, 210, run), (1, 210, 220, pause), (1, 220, 230, run), (1, 230, 240, pause), (1, 240, 250, run),
        (2, 400, 410, run), (2, 410, 412, pause), (2, 412, 420, idle), (2, 420, 430, run),
        (3, 600, 610, run), (3, 610, 620, alarm), (3, 620, 630, run), (3, 630, 640, run), (3, 640, 650, pause), (3, 650, 660, run),
        (4, 800, 810, run), (4, 810, 815, idle), (4, 815, 820, pause), (4, 820, 830, run),
    ]  # fmt: skip
    assert [(row["alarm_s"], row["kvo_s"], row["paused_s"]) for row in sessions(given)] == [
        (600, 0, 0), (0, 0, 1200), (0, 480, 120), (600, 0, 600), (0, 300, 300),
    ]  # fmt: skip


# --- missing ends, cuts -----------------------------------------------------------------------------------------------------------------


def without(events: list[dict[str, Any]], *missing: int, **more: Any) -> Given:
    """A log of which these numbers are missing."""
    lines = numbered(events)
    return give(capture([line for line in lines if line["seq"] not in missing], anchor=anchor(6000), **more))


@pytest.mark.parametrize(
    ("says", "after", "flags"),
    [
        ("a start settles", [event(0, "other"), *infusion(61, 10), *infusion(200, 10)], [[], []]),
        ("a start in the gap of the cut", [event(0, "other"), *infusion(60, 10), *infusion(200, 10)], [["LOG_GAP"], []]),
        ("a stop settles and may end a session", [event(0, "other"), event(70, "power_off"), *infusion(130, 10), *infusion(300, 10)], [["LOG_GAP"], []]),
        ("a stop settles and the gap is over", [event(0, "other"), event(70, "power_off"), *infusion(130.1, 10), *infusion(300, 10)], [[], []]),
        ("a start behind rate 0 settles as a stop", [event(0, "rate_change", rate_ml_h=0), *infusion(61, 10), *infusion(200, 10)], [["LOG_GAP"], []]),
        ("other sources do not settle", [event(0, "other"), event(70, START, source="pca"), stop(80, "pca"), event(120, START), stop(150)], [["LOG_GAP"]]),
        ("nothing settles, to the end", [event(0, "other"), event(100, START, source="pca"), stop(110, "pca"), event(300, "other")], [["LOG_GAP"]]),
        ("a completion settles", [event(0, "other"), event(70, "delivery_complete"), *infusion(130, 10)], [["NO_START", "LOG_GAP"]]),
    ],
)  # fmt: skip
def test_what_begins_before_a_hole_is_settled_or_soon_after_is_held(says, after, flags):
    given = without([event(-600, "other"), event(-500, "other"), *after], 2)
    assert [row["flags"] for row in sessions(given)] == flags, says


def test_a_cut_reaches_from_the_last_record_before_it_to_what_settles_it():
    events = [*infusion(-600, 10), event(-300, "other"), event(0, "other"), event(70, "power_off"), *infusion(200, 10)]
    lines = [line for line in numbered(events) if line["seq"] != 3]
    assert doubts(give(capture(lines[:2], anchor=anchor(-590)), capture(lines, anchor=anchor(6000)))) == [("LOG_GAP", None, -590, 70, 4)]
    # without a time before it, it reaches back without bound, and what began then has no time either
    assert doubts(give(capture(lines, anchor=anchor(6000)))) == [("CLOCK_UNCERTAIN", 0, None, 0, 1), ("LOG_GAP", None, None, 70, 4)]
    started = [*infusion(-600, 10), event(-300, "other"), event(0, "other"), *infusion(200, 10)]
    lines = [line for line in numbered(started) if line["seq"] != 3]
    assert doubts(give(capture(lines[:2], anchor=anchor(-590)), capture(lines, anchor=anchor(6000)))) == [("LOG_GAP", None, -590, 0, 4)]
    nothing = [
        line for line in numbered([*infusion(-600, 10), event(-300, "other"), event(0, "other"), event(70, "other")]) if line["seq"] != 3
    ]
    assert doubts(give(capture(nothing[:2], anchor=anchor(-590)), capture(nothing, anchor=anchor(6000)))) == [
        ("LOG_GAP", None, -590, 70, 4)
    ]


def test_a_hole_at_the_end_of_a_log_is_a_cut_that_nothing_settles():
    lines = numbered([*infusion(0, 10), event(20, "other")])
    given = give(capture(lines[:2], anchor=anchor(15)), capture([*lines[:2], b"gone"], anchor=anchor(20, after_seq=2)))
    assert [one[:4] for one in doubts(given)] == [("LOG_GAP", None, 10, None)]
    assert given.states() == {"hold"}


def test_a_loss_of_the_clock_while_nothing_runs_is_settled_by_its_first_record():
    loss = event(30, "clock_change", reason="loss")

    def flags(*before: dict[str, Any]) -> list[list[str]]:
        given = log(*before, loss, event(31, "other"), *infusion(200, 20))
        return [row["flags"] for row in sessions(given)][-1:]

    assert flags(*infusion(0, 20)) == flags(event(0, "power_off")) == flags(event(0, "other")) == [[]]
    soon = log(*infusion(0, 20), loss, event(31, "power_off"), *infusion(91, 20))
    assert [row["flags"] for row in sessions(soon)][-1] == []
    late = log(event(0, START), loss, event(31, "power_off"), *infusion(91, 20))
    assert [row["flags"] for row in sessions(late)][-1] == ["CLOCK_UNCERTAIN"]
    idle = log(*infusion(0, 20), event(20, START, source="kvo"), loss, event(31, "power_off"), *infusion(91, 20))
    assert [row["flags"] for row in sessions(idle)][-1] == ["CLOCK_UNCERTAIN"]
    unsettled = log(event(0, "other"), loss, event(31, "power_off"), *infusion(91, 20))
    assert [row["flags"] for row in sessions(unsettled)][-1] == ["CLOCK_UNCERTAIN"]


def test_what_runs_when_its_stretch_ends_has_no_stop_unless_it_is_the_end_of_the_log():
    events = [event(0, START), event(30, "other"), event(40, "data_gap"), event(600, "power_off"), *infusion(700, 10)]
    given = log(*events)
    assert [row["flags"] for row in sessions(given)] == [["NO_STOP", "CLOCK_UNCERTAIN"], []]
    assert [row["state"] for row in sessions(given)] == ["uncertain", "closed"]
    at_zero = log(*infusion(0, 20), event(60, START, rate_ml_h=0), event(70, "data_gap"), event(600, "power_off"))
    assert at_zero.session["flags"] == ["NO_STOP", "CLOCK_UNCERTAIN"]


# --- set-ups ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "events", "expected"),
    [
        ("two before one piece", [event(-9, "reservoir_change"), event(-8, "priming_done", target="cannula"), *infusion(0, 10)], [(-8, True, "yes", [1, 2], 0)]),
        ("one before each of two", [event(-9, "reservoir_change"), *infusion(0, 10), event(15, "priming_done", target="cannula"), *infusion(20, 10)], [(-9, True, "no", [1], 0), (15, False, "yes", [4], 0)]),
        ("started alone is nothing", [event(-9, "priming_started"), *infusion(0, 10)], [(-9, False, "no", [1], 0)]),
        ("tubing", [event(-9, "priming_done", target="tubing"), *infusion(0, 10)], [(-9, True, "no", [1], 0)]),
        ("unknown target", [event(-9, "priming_done", target="unknown"), *infusion(0, 10)], [(-9, True, "possible", [1], 0)]),
        ("unknown and aborted", [event(-9, "priming_done", reason="aborted"), *infusion(0, 10)], [(-9, False, "possible", [1], 0)]),
        ("tubing and aborted", [event(-9, "priming_done", target="tubing", reason="error"), *infusion(0, 10)], [(-9, False, "no", [1], 0)]),
        ("cannula and aborted", [event(-9, "priming_done", target="cannula", reason="error"), *infusion(0, 10)], [(-9, False, "possible", [1], 0)]),
        ("less than programmed", [event(-9, "priming_done", target="cannula", volume_ml=0.04, programmed_ml=0.05), *infusion(0, 10)], [(-9, False, "possible", [1], 0)]),
        ("a lesser dose than programmed", [event(-9, "priming_done", target="cannula", dose=0.4, programmed_dose=0.5), *infusion(0, 10)], [(-9, False, "possible", [1], 0)]),
        ("as programmed", [event(-9, "priming_done", target="cannula", volume_ml=0.05, programmed_ml=0.05, dose=0.5, programmed_dose=0.5), *infusion(0, 10)], [(-9, False, "yes", [1], 0)]),
        ("more than programmed", [event(-9, "priming_done", target="cannula", volume_ml=0.06, programmed_ml=0.05), *infusion(0, 10)], [(-9, False, "yes", [1], 0)]),
        ("certain, then aborted", [event(-9, "priming_done", target="cannula"), event(-8, "priming_done", target="cannula", reason="aborted"), *infusion(0, 10)], [(-8, False, "yes", [1, 2], 0)]),
        ("a change that halts is of the next", [event(0, START), event(10, "reservoir_change"), *infusion(20, 10)], [(10, True, "no", [2], 0)]),
        ("within, and then before the next", [event(0, START), event(5, "priming_done", target="cannula"), event(10, "power_off"), event(11, "reservoir_change"), *infusion(20, 10)], [(5, False, "yes", [2], 0), (11, True, "no", [4], 0)]),
        ("two within are two", [event(0, START), event(5, "priming_done"), event(6, "priming_done"), stop(10)], [(5, True, "possible", [2], 0), (6, True, "possible", [3], 0)]),
        ("two between pieces that touch are within", [event(0, START), stop(10), event(10, "priming_started"), event(10, "priming_started"), event(10, START), event(10, "power_off"), *infusion(20, 5)], [(10, False, "no", [3], 0), (10, False, "no", [4], 0)]),
        ("two between pieces with a halt between are one", [event(0, START), stop(10), event(10, "priming_started"), event(10, "reservoir_change"), event(10, START), event(10, "power_off"), *infusion(20, 5)], [(10, True, "no", [3, 4], 0)]),
        ("at the very start", [event(0, START), event(0, "priming_started"), stop(10)], [(0, False, "no", [2], 0)]),
        ("just before the start", [event(0, "priming_started"), event(0, START), stop(10)], [(0, False, "no", [1], 0)]),
        ("just before the stop", [event(0, START), event(10, "priming_started"), stop(10)], [(10, False, "no", [2], 0)]),
        ("just behind the stop", [event(0, START), stop(10), event(10, "priming_started")], [(10, False, "no", [3], None)]),
        ("before what a limit makes KVO", [event(0, START, source="basal"), event(5, "limit_reached"), event(10, "rate_change", source="basal", rate_ml_h=0), event(11, "priming_started"), event(12, START), stop(15), event(20, "limit_cleared"), stop(21, "basal")], [(11, False, "no", [4], None)]),
        ("behind all", [*infusion(0, 10), event(15, "reservoir_change"), event(16, "priming_done")], [(16, True, "possible", [3, 4], None)]),
        ("around one within", [event(-5, "reservoir_change"), event(0, START), event(3, "priming_started"), stop(5), event(6, "priming_done", target="tubing"), *infusion(10, 5)], [(-5, True, "no", [1], 0), (3, False, "no", [3], 0), (6, True, "no", [5], 0)]),
        ("within the longer of two", [event(0, START, source="basal"), event(2, START), event(4, START), event(5, "priming_started"), stop(6), stop(9, "basal")], [(5, False, "no", [4], 0)]),
        ("within what has no stop, beside what has one", [event(0, START, source="basal"), event(10, START), stop(20), event(30, "priming_started"), event(50, "power_on")], [(30, False, "no", [4], 0)]),
        ("of the session that follows", [*infusion(0, 10), event(100, "reservoir_change"), *infusion(200, 10), event(300, "reservoir_change"), *infusion(400, 10)], [(100, True, "no", [3], 1), (300, True, "no", [6], 2)]),
        ("in what is unknown", [event(0, "other"), event(5, "priming_started"), stop(10), *infusion(200, 10)], [(5, False, "no", [2], 0)]),
    ],
)  # fmt: skip
def test_set_ups(says, events, expected):
    given = log(*events)
    ids = [row["session_id"] for row in sessions(given)]
    assert [
        (
            minute(row["time"]), row["pump_setup"], row["new_site"], numbers(given, row["evidence"]),
            None if row["session_id"] is None else ids.index(row["session_id"]),
        )
        for row in setups(given)
    ] == expected, says  # fmt: skip
    assert [minute(row["printed_time"]) for row in setups(given)] == [one[0] for one in expected]
    mine = [row for row in setups(given) if row["session_id"] is not None]
    assert sum(row["setups"] for row in sessions(given)) == len(mine)
    assert sum(row["new_sites"] for row in sessions(given)) == sum(row["new_site"] == "yes" for row in mine)
    assert sum(row["possible_sites"] for row in sessions(given)) == sum(row["new_site"] == "possible" for row in mine)
    assert {(row["order_id"], row["patient_id"]) for row in mine} <= {("ord-1", "pt-1")}
    assert all(row["order_id"] is None for row in setups(given) if row["session_id"] is None)


def test_a_set_up_of_a_session_without_an_order_is_of_nobody():
    given = log(*new_setup(-5), *infusion(0, 20), known=orders({"start": "2027-01-01T00:00:00Z"}))
    (row,) = setups(given)
    assert (row["session_id"], row["order_id"], row["patient_id"]) == (given.session["session_id"], None, None)


def test_set_ups_of_a_log_without_a_delivery_are_of_no_session():
    (row,) = setups(log(*new_setup(0)))
    assert (row["session_id"], row["order_id"], row["pump_setup"], row["new_site"]) == (None, None, True, "yes")


# --- many, and in a block ------------------------------------------------------------------------------------------------------------------


def test_more_intervals_than_there_was_room_for_are_all_there():
    days = 3
    events = [one for n in range(days * 480) for one in infusion(3 * n, 2)]
    given = log(*events, end=3 * 480 * days + 10)
    rows = sorted(given.rows("intervals"), key=lambda row: row["from_ms"])
    assert len(rows) == 2 * len(events) // 2 - 1
    assert [(row["from_ms"] / 60_000, row["to_ms"] / 60_000, row["class"]) for row in rows] == [
        (3 * (n // 2) + (2 if n % 2 else 0), 3 * (n // 2) + (3 if n % 2 else 2), "paused" if n % 2 else "infusing")
        for n in range(len(rows))
    ]
    assert given.session["infusing_s"] == days * 480 * 120


def test_pumps_of_a_block_are_told_apart():
    logs, known = {}, []
    for n, events in enumerate(
        (
            [*new_setup(-5), *infusion(0, 20), event(30, "data_gap"), *infusion(40, 20)],
            [*infusion(5, 10), event(20, "clock_change", reason="loss"), *infusion(25, 20)],
            [event(0, "other")],
            [event(-3, "data_gap"), *infusion(0, 20), event(30, "reservoir_change"), event(40, "data_gap")],
            [event(0, START), event(20, "other")],
        )
    ):
        pump = f"canonical:A{n}"
        lines = numbered(events)
        logs[pump] = assembled([capture(lines, pump=pump, anchor=anchor(100), contiguous=n != 1)])
        if n != 3:
            known.append({"pump_id": pump, "order_id": f"ord-{n}", "patient_id": f"pt-{n}", "stop": at(15 + 10 * n) + "Z"})
            known.append(
                {"pump_id": pump, "order_id": f"more-{n}", "patient_id": f"pt-{n}", "start": at(25 + 10 * n) + "Z", "tz": "Asia/Kathmandu"}
            )
    every = orders(*known)
    whole = derive_all(Block.of(list(logs), list(logs.values())), every, FactPolicy())
    alone = [derive(one, every, FactPolicy()) for one in logs.values()]
    for name in ("events", "sessions", "intervals", "setups", "doubts"):
        assert getattr(whole, name).to_pylist() == [row for one in alone for row in getattr(one, name).to_pylist()], name
    assert [row["flags"] for row in whole.sessions.to_pylist() if row["pump_id"] == "canonical:A1"] != []
    assert {row["pump_id"] for row in whole.sessions.to_pylist() if "GAPS_INVISIBLE" in row["flags"]} == {"canonical:A1"}
