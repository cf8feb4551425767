"""Time (docs/semantics.md §3) to the millisecond: stretches, elapsed time, UTC with its quality, method and bound, event by event."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from devices.contract import Capture, Log
from tests import kit
from tests.kit import anchor, assembled, capture, event, infusion, numbered, orders, saying
from transforms.block import Block
from transforms.clock import ClockPolicy
from transforms.sessions import FactPolicy, Facts, derive, derive_all

MORNING = datetime(2026, 3, 2, 8, tzinfo=UTC)


def others(*minutes: float) -> list[dict[str, Any]]:
    """Records without a meaning, at these minutes of the pump's clock."""
    return [event(at, "other") for at in minutes]


def read(events: list[dict[str, Any]], *anchors: tuple[int, float, float]) -> list[Capture]:
    """One log whose clock was read so often: (number of the record before it, minute of the pump's clock, minute of UTC)."""
    lines = numbered(events)
    told = [capture(lines, anchor=anchor(shown, utc_minutes=utc, after_seq=after)) for after, shown, utc in anchors]
    return told or [capture(lines)]


def facts(log: Log | list[Capture]) -> Facts:
    return derive(log if isinstance(log, Log) else assembled(log), orders(), FactPolicy())


def timed(log: Log | list[Capture]) -> list[tuple[Any, ...]]:
    """Of each event: the number of its stretch, its place in it, elapsed minutes, minutes of UTC."""
    rows = facts(log).events.to_pylist()
    stretches = list(dict.fromkeys(row["stretch"] for row in rows if row["stretch"] is not None))
    return [
        (
            None if row["stretch"] is None else stretches.index(row["stretch"]),
            row["order_in_stretch"],
            None if row["elapsed_ms"] is None else row["elapsed_ms"] / 60_000,
            None if row["time"] is None else (row["time"] - MORNING).total_seconds() / 60,
        )
        for row in rows
    ]


def elapsed(log: Log | list[Capture]) -> list[tuple[int, float]]:
    """Of each event its stretch and its elapsed minutes."""
    return [(stretch, minutes) for stretch, _, minutes, _ in timed(log)]


def told(log: Log | list[Capture]) -> list[tuple[Any, ...]]:
    """Of each event its minute of UTC, quality and method."""
    rows = facts(log).events.to_pylist()
    return [(utc, row["time_quality"], row["time_method"]) for (_, _, _, utc), row in zip(timed(log), rows, strict=True)]


# --- stretches and elapsed time ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("back_s", "cut"), [(59.999, False), (60, False), (60.001, True)])
def test_a_step_back_of_more_than_a_minute_is_a_cut_and_a_smaller_one_counts_as_no_time_until_the_clock_is_past_where_it_was(back_s, cut):
    log = read(others(0, 10, 10 - back_s / 60, 9.5, 12))
    after = 12 - (10 - round(back_s, 3) / 60)
    assert elapsed(log) == (
        [(0, 0), (0, 10), (1, 0), (1, pytest.approx(9.5 - 9 + 0.001 / 60)), (1, pytest.approx(after))]
        if cut
        else [(0, 0), (0, 10), (0, 10), (0, 10), (0, 12)]
    )


def test_a_bolus_may_name_an_earlier_instant_but_none_before_its_stretch():
    bolus = [event(at, "bolus_delivered", volume_ml=1) for at in (5, -30, 11)]
    assert elapsed(read([*others(0, 10), bolus[0], bolus[1], *others(10.5), bolus[2], *others(12)])) == [
        (0, 0), (0, 10), (0, 5), (0, 0), (0, 10.5), (0, 11), (0, 12),
    ]  # fmt: skip


def test_a_record_without_a_time_of_its_own_counts_as_no_time_and_cuts_nothing():
    log = assembled(read(others(0, 10, 11, 20), (4, 20, 20)))
    times = log.events["pump_time"].to_pylist()
    assert timed(saying(log, pump_time=[times[0], times[1], None, times[3]])) == [
        (0, 0, 0, 0),
        (0, 1, 10, 10),
        (0, 2, 10, 10),
        (0, 3, 20, 20),
    ]
    first = saying(log, pump_time=[None, *times[1:]])
    assert timed(first) == [(0, 0, 0, 10), (0, 1, 0, 10), (0, 2, 1, 11), (0, 3, 10, 20)]
    nowhere = saying(assembled(read(others(0, 10), (2, 30, 30))), pump_time=[None, None])
    assert timed(nowhere) == [(0, 0, 0, 30), (0, 1, 0, 30)]


def test_a_reading_is_compared_with_the_last_time_that_was_told():
    log = assembled(read(others(0, 100, 101), (3, 50, 50)))
    assert timed(saying(log, pump_time=[*log.events["pump_time"].to_pylist()[:2], None])) == [
        (0, 0, 0, None), (0, 1, 100, None), (0, 2, 100, None),
    ]  # fmt: skip


def test_a_hole_belongs_to_no_stretch_and_the_next_begins_at_nothing():
    assert timed(read([*others(0, 10), event(11, "data_gap"), *others(30, 45)], (5, 50, 50))) == [
        (0, 0, 0, None), (0, 1, 10, None), (None, None, None, None), (1, 0, 0, 30), (1, 1, 15, 45),
    ]  # fmt: skip


@pytest.mark.parametrize("lost", [event(10, "clock_change", reason="loss"), event(10, "alarm_raised", alarm_class="clock_lost")])
def test_the_record_that_shows_a_loss_is_the_first_of_its_stretch(lost):
    assert timed(read([*others(0), lost, *others(11)], (3, 11, 11))) == [(0, 0, 0, None), (1, 0, 0, 10), (1, 1, 1, 11)]


def test_a_loss_that_a_log_begins_with_is_a_cut_of_its_clock_and_one_behind_a_hole_is_a_hole():
    loss = event(0, "clock_change", reason="loss")
    (first,) = facts(read([loss, *others(1)], (2, 1, 1))).doubts.to_pylist()
    assert (first["code"], first["session_id"]) == ("CLOCK_UNCERTAIN", None)
    codes = [row["code"] for row in facts(read([event(-5, "data_gap"), loss, *others(1)], (3, 1, 1))).doubts.to_pylist()]
    assert codes == ["LOG_GAP"]
    assert facts(read(others(0, 1), (2, 1, 1))).doubts.num_rows == 0


def test_a_clock_that_is_set_takes_no_time_and_durations_run_on():
    changes = [event(10, "clock_change", old=kit.at(10), new=kit.at(70)), event(80, "clock_change", old=kit.at(80), new=kit.at(30))]
    log = [*others(0), changes[0], *others(75), changes[1], *others(40)]
    assert elapsed(read(log)) == [(0, 0), (0, 10), (0, 15), (0, 20), (0, 30)]
    assert told(read(log, (3, 78, 18))) == [
        (0, "corrected", "anchor and clock changes"),
        (10, "corrected", "anchor and clock changes"),
        (15, "exact", "anchor"),
        (20, "exact", "anchor"),
        (30, "corrected", "anchor and clock changes"),
    ]


def test_a_clock_that_was_set_before_any_record_told_it_runs_on_from_there():
    log = assembled(read([event(0, "clock_change", old=kit.at(0), new=kit.at(30)), *others(45)], (2, 50, 50)))
    untold = saying(log, pump_time=[None, log.events["pump_time"][1].as_py()])
    assert timed(untold) == timed(log) == [(0, 0, 0, 30), (0, 1, 15, 45)]


def test_a_reading_just_behind_a_clock_change_is_of_the_clock_as_it_was_set():
    log = [*others(0), event(10, "clock_change", old=kit.at(10), new=kit.at(70)), *others(75)]
    assert told(read(log, (2, 72, 12))) == [
        (0, "corrected", "anchor and clock changes"),
        (10, "corrected", "anchor and clock changes"),
        (15, "exact", "anchor"),
    ]
    assert [one[1] for one in told(read(log, (1, 2, 2)))] == ["exact", "exact", "corrected"]


def test_what_lies_two_clock_changes_from_a_reading_is_not_exact_wherever_the_reading_was_made():
    def change(minutes: float, by: float) -> dict[str, Any]:
        return event(minutes, "clock_change", old=kit.at(minutes), new=kit.at(minutes + by))

    log = [*others(0), change(10, 60), *others(75), change(80, 60), *others(145), change(150, 60), *others(215)]
    qualities = {after: [quality for _, quality, _ in told(read(log, (after, shown, 0)))] for after, shown in ((2, 70), (4, 140), (6, 210))}
    assert qualities == {
        2: ["corrected", "corrected", "exact", "exact", "corrected", "corrected", "corrected"],
        4: ["corrected", "corrected", "corrected", "corrected", "exact", "exact", "corrected"],
        6: ["corrected", "corrected", "corrected", "corrected", "corrected", "corrected", "exact"],
    }


# --- elapsed time of the family's own -------------------------------------------------------------------------------------------------


def own(events: list[dict[str, Any]], minutes: list[float | None], *anchors: tuple[int, float, float]) -> Log:
    """A log whose family keeps elapsed time of its own, at these minutes."""
    return saying(assembled(read(events, *anchors)), native_ms=[None if at is None else round(at * 60_000) for at in minutes])


def test_elapsed_time_of_its_own_counts_whatever_the_printed_clock_does():
    assert elapsed(own(others(0, 500, 20, 30), [100, 110, 115, 120])) == [(0, 0), (0, 10), (0, 15), (0, 20)]
    assert elapsed(own(others(0, 10, 20, 30), [100, 110, 109, 120])) == [(0, 0), (0, 10), (0, 10), (0, 20)]
    assert elapsed(own(others(0, 10, 20, 30), [100, 110, 108.9, 120])) == [(0, 0), (0, 10), (1, 0), (1, pytest.approx(11.1))]
    assert elapsed(own(others(0, 10, 20, 30), [None, 110, None, 120])) == [(0, 0), (0, 0), (0, 0), (0, 10)]
    assert elapsed(own(others(0, 10, 20, 30), [100, None, None, None])) == [(0, 0)] * 4


def test_a_clock_that_is_set_does_not_move_elapsed_time_of_its_own():
    changed = [*others(0), event(10, "clock_change", old=kit.at(10), new=kit.at(400)), *others(405)]
    assert timed(own(changed, [50, 60, 65], (3, 410, 20))) == [(0, 0, 0, 0), (0, 1, 10, 10), (0, 2, 15, 15)]


def test_an_anchor_lies_as_far_behind_its_record_as_the_printed_clock_says():
    assert timed(own(others(0, 10, 20), [50, 60, 75], (2, 15, 15))) == [(0, 0, 0, 0), (0, 1, 10, 10), (0, 2, 25, 25)]
    assert timed(own(others(0, 10), [50, 60], (2, 9.5, 9.5))) == [(0, 0, 0, -0.5), (0, 1, 10, 9.5)]


def test_a_reading_of_a_clock_that_was_set_back_cuts_a_printed_clock_and_anchors_nothing():
    back = (2, 8.9, 8.9)
    assert timed(read(others(0, 10, 20), back)) == [(0, 0, 0, None), (0, 1, 10, None), (1, 0, 0, None)]
    assert timed(own(others(0, 10, 20), [0, 10, 20], back)) == [(0, 0, 0, None), (0, 1, 10, None), (0, 2, 20, None)]
    assert timed(read(others(0, 10, 20), (2, 9, 9))) == [(0, 0, 0, -1), (0, 1, 10, 9), (0, 2, 20, 19)]


def test_what_one_pump_of_a_block_keeps_by_itself_is_no_matter_of_the_others():
    jump = others(0, 10, 500, 510)
    apart = [(2, 12, 12), (4, 520, 30)]
    logs = {
        "canonical:A1": assembled(read(jump, *apart)),
        "canonical:A2": own(jump, [7, 17, 18, 28], *apart),
        "canonical:A3": assembled(read(jump, *apart)),
        "canonical:A4": own(jump, [None, 17, 18, 28], (2, 12, 12)),
        "canonical:A5": own(others(0, 10), [3, 9], (2, 10, 10), (2, 10, 400)),
    }
    known = orders(*({"pump_id": pump, "order_id": pump} for pump in logs))
    whole = derive_all(Block.of(list(logs), list(logs.values())), known, FactPolicy()).events.to_pylist()
    alone = [row for log in logs.values() for row in derive(log, known, FactPolicy()).events.to_pylist()]
    assert whole == alone
    assert elapsed(logs["canonical:A1"]) == elapsed(logs["canonical:A3"]) == [(0, 0), (0, 10), (0, 500), (0, 510)]
    assert elapsed(logs["canonical:A2"]) == [(0, 0), (0, 10), (0, 11), (0, 21)]


# --- UTC ------------------------------------------------------------------------------------------------------------------------------


def test_an_anchor_ahead_of_its_record_ends_the_stretch_later_and_a_record_behind_it_counts_from_it():
    log = [*others(0), event(10, "delivery_start"), *others(19.5, 25)]
    assert elapsed(read(log, (2, 20, 20))) == [(0, 0), (0, 10), (0, 20), (0, 25)]
    bolus = [*others(0), event(10, "bolus_delivered", volume_ml=1, duration_s=1200)]
    assert facts(read(bolus, (2, 25, 25))).sessions["infusing_s"].to_pylist() == [900]
    assert facts(read(bolus)).sessions["infusing_s"].to_pylist() == [0]


def test_between_two_anchors_drift_moves_utc_in_proportion_and_beyond_them_not_at_all():
    log = read(others(0, 10, 30, 50, 70), (2, 10, 10), (4, 50, 51))
    assert told(log) == [
        (0, "exact", "anchor"),
        (10, "exact", "anchor"),
        (30.5, "corrected", "between two anchors"),
        (51, "corrected", "between two anchors"),
        (71, "exact", "anchor"),
    ]
    assert told(read(others(0, 10, 30, 50), (2, 10, 10), (4, 50, 50))) == [(at, "exact", "anchor") for at in (0, 10, 30, 50)]


def test_drift_is_rounded_to_the_millisecond():
    rows = facts(read(others(0, 10, 20, 40), (1, 0, 0), (4, 40, 40 + 1 / 60_000))).events["time"].to_pylist()
    assert [(row - MORNING).total_seconds() for row in rows] == [0, 600, 1200, 2400.001]


def test_the_bound_grows_with_the_round_trip_and_with_the_time_to_the_nearer_anchor():
    lines = numbered(others(0, 720, 1440, 2880))
    log = [
        capture(lines, anchor=anchor(0, after_seq=1, round_trip_ms=500)),
        capture(lines, anchor=anchor(1440, after_seq=3, round_trip_ms=3000)),
    ]
    assert facts(log).events["time_bound_s"].to_pylist() == [1.25, 31.25, 1.25, 62.5]
    assert facts(read(others(0, 10))).events["time_bound_s"].to_pylist() == [None, None]


@pytest.mark.parametrize(
    ("apart", "off_s", "agree"),
    [(0, 120, True), (0, 120.001, False), (1440, 180, True), (1440, 180.001, False), (1440, -180, True), (1440, -180.001, False)],
)
def test_two_anchors_may_disagree_by_two_minutes_and_a_minute_a_day(apart, off_s, agree):
    log = read(others(0, apart), (1, 0, 0), (2, apart, apart + off_s / 60))
    assert ("anchors disagree" in {method for _, _, method in told(log)}) is not agree


def test_between_two_anchors_that_disagree_nothing_is_known_and_each_keeps_its_own_side():
    disagree, exact = (None, "unknown", "anchors disagree"), "anchor"
    log = read(others(0, 10, 20, 30, 40, 50), (2, 10, 10), (4, 30, 90), (5, 40, 100))
    assert told(log) == [
        (0, "exact", exact), (10, "exact", exact), disagree, disagree, (100, "exact", exact), (110, "exact", exact),
    ]  # fmt: skip
    assert facts(log).events["time_bound_s"].to_pylist()[2:4] == [None, None]


def test_a_clock_that_is_set_little_by_little_is_known_by_the_readings_that_lie_further_apart():
    """Each reading agrees with the next, and the third not with the first: a reading more must not hide what two of them show."""
    steps = read(others(0, 10, 20, 30, 40, 50), (2, 10, 10), (3, 20, 22), (4, 30, 34), (6, 50, 54))
    assert [utc for utc, _, _ in told(steps)] == [0, 10, None, None, 44, 54]
    assert [utc for utc, _, _ in told(read(others(0, 10, 20, 30, 40, 50), (2, 10, 10), (4, 30, 34), (6, 50, 54)))] == [
        0,
        10,
        None,
        None,
        44,
        54,
    ]
    more = read(others(0, 10, 20, 30, 40, 50), (1, 0, 0), (2, 10, 11.9), (3, 20, 23.8), (4, 30, 35.7), (5, 40, 47.6), (6, 50, 59.5))
    assert [utc for utc, _, _ in told(more)] == [0, None, None, None, None, None]


def test_two_readings_of_one_moment_that_disagree_leave_nothing_known_of_the_whole_stretch():
    assert {utc for utc, _, _ in told(read(others(0, 10, 20), (2, 10, 10), (2, 10, 400)))} == {None}
    assert {utc for utc, _, _ in told(read(others(0, 10, 20), (2, 10, 10), (2, 10, 11)))} != {None}


def test_readings_that_disagree_beside_elapsed_time_of_its_own_leave_nothing_known_of_their_stretch_alone():
    events = [*others(0, 10, 20, 30), event(31, "data_gap"), *others(40, 50)]
    log = own(events, [0, 10, 20, 30, None, 40, 50], (2, 10, 10), (4, 30, 90), (7, 50, 110))
    assert [utc for utc, _, _ in told(log)] == [None, None, None, None, None, 100, 110]
    printed = read(events, (2, 10, 10), (4, 30, 90), (7, 50, 110))
    assert [utc for utc, _, _ in told(printed)] == [0, 10, None, None, None, 100, 110]


def test_anchors_behind_a_hole_are_those_of_the_stretch_that_they_were_read_in():
    events = [*others(0, 10), event(11, "data_gap"), *others(20, 30), event(31, "data_gap"), *others(40)]
    assert [utc for utc, _, _ in told(read(events, (2, 10, 10), (7, 45, 55)))] == [0, 10, None, None, None, None, 50]
    assert [utc for utc, _, _ in told(read(events, (3, 15, 15), (5, 30, 33)))] == [None, None, None, 23, 33, None, None]


# --- what time leaves in doubt ----------------------------------------------------------------------------------------------------------


def flags(log: list[Capture]) -> list[tuple[int, list[str]]]:
    """Of each session, in order: its elapsed seconds, and its codes."""
    rows = sorted(facts(log).sessions.to_pylist(), key=lambda row: row["printed_start"])
    return [(row["span_s"], row["flags"]) for row in rows]


@pytest.mark.parametrize(
    ("first", "second", "doubtful"),
    [
        ((2, 60, 60), (5, 200, 300), [False, True]),
        ((1, 0, 0), (2, 60, 160), [True, False]),
        ((2, 60, 60), (3, 100, 250), [False, False]),
        ((3, 100, 100), (4, 150, 300), [False, True]),
        ((1, 0, 0), (5, 200, 400), [True, True]),
    ],
)
def test_a_session_is_uncertain_if_any_of_it_lies_between_two_anchors_that_disagree(first, second, doubtful):
    events = [*infusion(0, 60), *others(100), *infusion(130, 60)]
    log = read(events, first, second)
    assert ["CLOCK_UNCERTAIN" in codes for _, codes in flags(log)] == doubtful


@pytest.mark.parametrize(
    ("says", "events", "one", "other", "uncertain"),
    [
        ("both within", infusion(0, 60), (1, 10, 10), (1, 50, 150), True),
        ("from its start", infusion(0, 60), (1, 0, 0), (1, 50, 150), True),
        ("up to its stop", infusion(0, 60), (1, 10, 10), (1, 60, 160), True),
        ("up to its start", [*others(0), *infusion(100, 60)], (1, 50, 50), (1, 100, 200), False),
        ("from its stop", [*infusion(0, 60), *others(200)], (2, 60, 60), (2, 100, 200), False),
        ("within and behind", [*infusion(0, 60), *others(200)], (1, 50, 50), (2, 100, 200), True),
    ],
)
def test_a_session_is_uncertain_though_every_record_of_it_has_a_time_if_two_anchors_within_it_disagree(says, events, one, other, uncertain):
    assert [codes for _, codes in flags(read(events, one, other))] == [["CLOCK_UNCERTAIN"] if uncertain else []], says


@pytest.mark.parametrize(("apart", "off_s", "agree"), [(0, 120, True), (0, 120.001, False), (1440, 180, True), (1440, 180.001, False)])
def test_a_session_is_uncertain_from_the_same_limit_on(apart, off_s, agree):
    log = read(infusion(0, 1500), (1, 10, 10), (1, 10 + apart, 10 + apart + off_s / 60))
    assert [codes for _, codes in flags(log)] == [[] if agree else ["CLOCK_UNCERTAIN"]]


@pytest.mark.parametrize("torn", [{0}, {1}, {2}, {0, 2}, {1, 2}, {0, 1, 2}])
def test_a_pair_of_anchors_that_disagree_is_of_its_stretch_and_no_other(torn):
    events, anchors = [], []
    for n in range(3):
        begin, before = 300 * n, 5 * n
        events += [*infusion(begin, 20), *infusion(begin + 100, 20), event(begin + 130, "data_gap")]
        off = 200 if n in torn else 0
        anchors += [(before + 3, begin + 105, begin + 105), (before + 3, begin + 115, begin + 115 + off)]
    found = facts(read(events, *anchors)).sessions.to_pylist()
    rows = sorted(found, key=lambda row: row["printed_start"])
    assert [n for n, row in enumerate(rows) if "CLOCK_UNCERTAIN" in row["flags"]] == [2 * n + 1 for n in sorted(torn)]


def test_what_is_read_behind_a_hole_before_any_record_is_of_no_stretch():
    bolus = [event(0, "bolus_delivered", volume_ml=1, duration_s=1800), event(5, "data_gap")]
    assert facts(read(bolus, (2, 25, 25))).sessions["infusing_s"].to_pylist() == [0]
    assert timed(read([event(0, "data_gap"), *others(10)], (1, 5, 5))) == [(None, None, None, None), (0, 0, 0, None)]
    back = read([*others(0, 100), event(101, "data_gap"), *others(110)], (3, 50, 50))
    assert facts(back).doubts["code"].to_pylist() == ["LOG_GAP"]


def test_the_clock_is_judged_by_the_policies_of_the_lake():
    assert FactPolicy().clock == ClockPolicy()
    told_ = FactPolicy(clock_step_s=1, drift_s_per_day=2, drift_s=3).clock
    assert told_ == ClockPolicy(clock_step_s=1, drift_s_per_day=2, drift_s=3)
    assert [FactPolicy().gap_ms, FactPolicy(gap_limit_min=0.25).gap_ms] == [3_600_000, 15_000]
    log = assembled(read(others(0, 10, 9.5)))
    assert derive(log, orders(), FactPolicy(clock_step_s=29.999)).events["order_in_stretch"].to_pylist() == [0, 1, 0]
    assert derive(log, orders(), FactPolicy(clock_step_s=30)).events["order_in_stretch"].to_pylist() == [0, 1, 2]
