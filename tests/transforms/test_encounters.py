"""Sessions on one time line (docs/semantics.md §6): pumps without UTC, set-ups and their separation, and who else there is."""

from __future__ import annotations

import random
from typing import Any

import pyarrow.compute as pc
import pytest

from ingest.night import rule_sets
from tests import kit, oracle
from tests.kit import anchor, capture, event, infusion, log, new_setup, numbered, orders
from transforms import billing

A1, A2 = "canonical:A1", "canonical:A2"
Events = list[dict[str, Any]]
SETUP = "reservoir_change"


def two(one: Events, other: Events, *, known: Any = None, ends: tuple[float | None, float | None] = (6000, 6000)) -> kit.Given:
    """Two pumps of one order; `ends`: the minute of each one's anchor, None: it has none."""
    captures = [
        capture(numbered(events), pump=pump, anchor=anchor(end) if end is not None else None)
        for events, pump, end in ((one, A1, ends[0]), (other, A2, ends[1]))
    ]
    return kit.give(*captures, known=known or orders({}, {"pump_id": A2}))


def site(minutes: float) -> dict[str, Any]:
    """A new site and nothing else."""
    return event(minutes, "priming_done", target="cannula")


def lines(given: kit.Given) -> dict[tuple[int, str], int]:
    """Day of March 2026 and code of each line, with its units."""
    return {(line["service_date"].day, line["code"]): line["units"] for line in given.rows("lines")}


# --- against a count of seconds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", range(5))
def test_random_encounters_give_what_a_count_second_by_second_gives(part):
    for n in range(12 * part, 12 * part + 12):
        found = oracle.compare(oracle.random_encounter(random.Random(f"encounters:{n}")), reasons=True)
        assert not found.differences, n


def many() -> tuple[list[kit.Capture], dict[str, list[dict[str, str]]]]:
    """Random encounters, each of a patient of their own, by rule sets in turn; with the orders of each."""
    captures, of_patient = [], {}
    for n in range(16):
        one = oracle.random_encounter(random.Random(f"many:{n}"))
        name = f"P{n:02}"
        for taken in one.captures:
            other = oracle.Taken({**taken.header, "pump_id": f"{taken.header['pump_id']}-{name}"}, taken.lines)
            captures.append(other.capture())
        rule_set = ("cpt-9637x", "per-diem", "cpt-9637x", "evidence-only")[n % 4]
        rows = [dict(row) for row in one.orders]
        of_patient[name] = [
            {**row, "patient_id": name, "rule_set": rule_set} | {key: f"{row[key]}-{name}" for key in ("pump_id", "order_id")}
            for row in rows
        ]
    return captures, of_patient


def test_what_is_billed_of_a_patient_is_the_same_whoever_else_there_is():
    captures, of_patient = many()
    known = orders(*(row for rows in of_patient.values() for row in rows))
    whole = kit.give(*captures, known=known)
    facts = billing.Facts(*(whole.facts[name] for name in ("sessions", "intervals", "setups", "doubts")))
    assert whole.rows("lines")
    for name, rows in of_patient.items():
        mine = [one for one in captures if one.pump_id.endswith(name)]
        alone = kit.give(*mine, known=orders(*rows)).bill
        asked = billing.bill(facts, known, rule_sets(), {}, patients=[name])
        for table in ("lines", "worklist", "days"):
            column = getattr(whole.bill, table)["patient_id"]
            expected = getattr(whole.bill, table).filter(pc.equal(column, name)).to_pylist()
            assert getattr(alone, table).to_pylist() == expected, (name, table)
            assert getattr(asked, table).to_pylist() == expected, (name, table)


# --- pumps without UTC ------------------------------------------------------------------------------------------------


def test_a_pump_without_utc_stands_with_its_printed_time_read_in_the_zone_of_its_order():
    known = orders({}, {"pump_id": A2}, tz="Europe/Berlin")
    given = two(infusion(0, 60), infusion(60 + 30, 60), known=known, ends=(6000, None))
    assert {(line["code"], line["minutes"]) for line in given.rows("lines")} == {("96369", 90)}
    assert given.reasons() == {"CLOCK_UNCERTAIN", "OVERLAPPING_PUMPS"}
    (line, *_) = given.rows("lines")
    assert (line["start"], line["stop"]) == (None, None)
    apart = two(infusion(0, 60), infusion(60 + 60, 60), known=known, ends=(6000, None))
    assert {line["minutes"] for line in apart.rows("lines")} == {120}
    assert apart.reasons() == {"CLOCK_UNCERTAIN"}


def test_a_session_that_runs_on_into_unknown_time_lies_at_its_elapsed_distance_from_its_start():
    events = numbered([*infusion(10, 60), event(75, "other"), *infusion(90, 60), event(200, "other")])
    first = capture(events[:2], anchor={**anchor(70), "after_seq": 2})
    second = capture(events, anchor=anchor(210, utc_minutes=510))
    other = capture(numbered(infusion(90, 60)), pump=A2, anchor=anchor(6000))
    given = kit.give(first, second, other, known=orders({}, {"pump_id": A2}))
    (mine,) = [row for row in given.rows("sessions") if row["pump_id"] == A1]
    assert mine["start"] is not None
    assert [row["to_utc"] is None for row in given.rows("intervals") if row["pump_id"] == A1][-1]
    assert {line["minutes"] for line in given.rows("lines")} == {120}


def test_set_ups_without_utc_stand_with_their_printed_time_read_in_the_zone_of_their_order():
    known = orders({}, {"pump_id": A2}, tz="Europe/Berlin")
    # In UTC the other pump was set up half an hour before this one, so that its set-up is the one inside the initial hour.
    given = two([event(0, SETUP), *infusion(0, 60)], [*new_setup(30), *infusion(31, 60)], known=known, ends=(6000, None))
    assert set(given.units()) == {"96369"}
    later = two([event(0, SETUP), *infusion(0, 60)], [*new_setup(90), *infusion(91, 60)], known=known, ends=(6000, None))
    assert later.units()["96371"] == 1


# --- set-ups --------------------------------------------------------------------------------------------------------------


def test_infusion_between_set_ups_is_that_of_their_own_pump():
    other = infusion(0, 60)
    given = two([*new_setup(-5), *infusion(0, 14), *new_setup(20), *infusion(25, 10)], other)
    assert "96371" not in given.units()
    given = two([*new_setup(-5), *infusion(0, 15), *new_setup(20), *infusion(25, 10)], other)
    assert given.units()["96371"] == 1


def test_set_ups_of_two_pumps_are_never_one_that_was_corrected():
    given = two([*new_setup(-5), *infusion(0, 60)], [*new_setup(-4), *infusion(70, 60)])
    assert given.units()["96371"] == 1


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_set_ups_at_the_same_instant_the_one_that_counts_is_inside_the_initial_hour(first):
    both = ([*new_setup(-5), *infusion(0, 60)], [event(-5, SETUP), *infusion(70, 60)])
    assert "96371" not in two(both[first], both[1 - first]).units()


def test_a_run_of_corrections_is_one_set_up_with_the_latest_time_and_what_any_of_them_shows():
    corrected = [*infusion(0, 60), site(70), *infusion(71, 5), event(80, SETUP), *infusion(81, 5), event(90, SETUP), *infusion(91, 30)]
    assert log(*new_setup(-5), *corrected).units()["96371"] == 1
    # 15 minutes lie between the first and the last of them, but never between two that follow each other.
    slow = [*infusion(0, 60), site(70), *infusion(71, 10), event(85, SETUP), *infusion(86, 10), event(100, SETUP), *infusion(101, 30)]
    assert log(*new_setup(-5), *slow).units()["96371"] == 1
    parted = [*infusion(0, 60), site(70), *infusion(71, 20), event(95, SETUP), *infusion(96, 30)]
    assert "96371" not in log(*new_setup(-5), *parted).units()


def test_time_between_set_ups_is_elapsed_time_whatever_the_clock_drifts():
    def drifting(minutes: float, gained: float) -> kit.Given:
        events = numbered([event(-100, "power_on"), *new_setup(-5), *infusion(0, minutes), *new_setup(20), *infusion(25, 60)])
        first = capture(events[:1], anchor={**anchor(-100), "after_seq": 1})
        return kit.give(first, capture(events, anchor=anchor(100, utc_minutes=100 + gained)))

    assert drifting(15, -2).units()["96371"] == 1
    assert "96371" not in drifting(14.95, 2).units()


def test_infusion_between_set_ups_of_two_stretches_is_told_by_utc():
    def parted(minutes: float) -> dict[str, int]:
        before = [*new_setup(-5), *infusion(0, minutes)]
        after = [event(30, "clock_change", reason="loss", new=kit.at(30)), *new_setup(35), *infusion(40, 60)]
        events = numbered([*before, *after])
        first = capture(events[: len(before)], anchor={**anchor(29), "after_seq": len(before)})
        return kit.give(first, capture(events, anchor=anchor(200))).units()

    assert "96371" not in parted(14)
    assert parted(15)["96371"] == 1


def test_only_set_ups_of_the_encounter_count_for_it():
    day = 1440
    given = log(*new_setup(-5), *infusion(0, 60), *new_setup(day - 5), *infusion(day, 60), *new_setup(day + 70), *infusion(day + 75, 60))
    assert lines(given) == {(2, "96369"): 1, (3, "96369"): 1, (3, "96370"): 1, (3, "96371"): 1}


def test_the_add_on_waits_for_an_initial_hour():
    short = [*new_setup(-5), *infusion(0, 15), *new_setup(20)]
    given = log(*short, event(25, "delivery_start", rate_ml_h=2.0), event(25.5, "delivery_stop"))
    assert lines(given) == {(2, "96372"): 1}
    assert "ADDON_WITHOUT_INITIAL" in given.codes()
    given = log(*short, event(25, "delivery_start", rate_ml_h=2.0), event(26, "delivery_stop"))
    assert lines(given) == {(2, "96369"): 1, (2, "96371"): 1}
    assert "ADDON_WITHOUT_INITIAL" not in given.codes()


@pytest.mark.parametrize(
    ("says", "second", "third", "codes"),
    [
        ("a site without a set-up", [site(70)], [], {"SITE_CHANGE_NO_PUMP_SETUP"}),
        ("a set-up without a site", [event(70, SETUP)], [], set()),
        ("a possible site with a set-up", [event(70, SETUP), event(70, "priming_done")], [], {"POSSIBLE_SITE_CHANGE"}),
        ("a possible site alone", [event(70, "priming_done", target="cannula", reason="aborted")], [], set()),
        ("one that counts", new_setup(70), [], set()),
        ("two that count", new_setup(70), new_setup(140), {"SECOND_96371"}),
    ],
)
def test_what_further_set_ups_say(says, second, third, codes):
    given = log(*new_setup(-5), *infusion(0, 60), *second, *infusion(75, 60), *third, *infusion(145, 17))
    assert given.codes() == codes, says


def test_the_first_set_up_is_inside_the_initial_hour_whatever_it_holds():
    for first in ([site(-5)], [event(-5, "priming_done")], [event(-5, SETUP)], new_setup(-5)):
        assert log(*first, *infusion(0, 60)).codes() == set()


# --- 72 h on one site -------------------------------------------------------------------------------------------------------

HOUR = 60


@pytest.mark.parametrize(
    ("says", "events", "long_on"),
    [
        ("72 h", [*new_setup(0), *infusion(0, 72 * HOUR)], set()),
        ("a second more", [*new_setup(0), *infusion(0, 72 * HOUR + 1 / 60)], {2}),
        ("days later", [*new_setup(0), *infusion(0, 60), *infusion(72 * HOUR - 60, 61)], {5}),
        ("days later, up to 72 h", [*new_setup(0), *infusion(0, 60), *infusion(72 * HOUR - 60, 60)], set()),
        ("a new one in time", [*new_setup(0), *infusion(0, 60), *new_setup(71 * HOUR), *infusion(71 * HOUR, 120)], set()),
        ("none that is known", [event(0, SETUP), *infusion(0, 80 * HOUR)], set()),
        ("only possible", [event(0, "priming_done"), *infusion(0, 80 * HOUR)], set()),
        (
            "nothing given for days before a new one",
            [*new_setup(0), *infusion(0, 60), *new_setup(80 * HOUR), *infusion(80 * HOUR, 60)],
            set(),
        ),
        ("the second of two", [*new_setup(0), *infusion(0, 60), *new_setup(90), *infusion(90, 73 * HOUR)], {2}),
        ("the first of two in one session", [*new_setup(0), *infusion(0, 73 * HOUR), *new_setup(73 * HOUR), *infusion(73 * HOUR, 60)], {2}),
        ("a site made after the last infusion", [*infusion(0, 80 * HOUR), *new_setup(80 * HOUR)], set()),
    ],
)
def test_more_than_72_hours_from_a_new_site_to_the_last_infusion_on_it(says, events, long_on):
    items = [item for item in log(*events, end=9000).rows("worklist") if item["code"] == "SITE_DWELL_LONG"]
    assert {item["service_date"].day for item in items} == long_on, says


def test_sites_of_another_order_say_nothing_of_this_one():
    known = orders({}, {"pump_id": A2, "order_id": "ord-2", "drug": "treprostinil"})
    given = two([*new_setup(0), *infusion(0, 60)], infusion(73 * HOUR, 60), known=known)
    assert "SITE_DWELL_LONG" not in given.codes()
    given = two([*new_setup(0), *infusion(0, 60)], infusion(73 * HOUR, 60))
    assert "SITE_DWELL_LONG" in given.codes()


# --- minutes ----------------------------------------------------------------------------------------------------------------


def test_minutes_at_stake_are_those_infused_and_those_unknown():
    unknown = [event(100, "delivery_start"), event(110.75, "power_on")]
    given = log(*infusion(0, 60.5), *unknown)
    assert {item["minutes_at_stake"] for item in given.rows("worklist")} == {60 + 10}
    assert {line["minutes"] for line in given.rows("lines")} == {60}


def test_what_three_pumps_give_at_once_is_counted_a_single_time():
    pumps = (A1, A2, "canonical:A3")
    captures = [
        capture(numbered(infusion(start, 60)), pump=pump, anchor=anchor(6000)) for pump, start in zip(pumps, (0, 20, 40), strict=True)
    ]
    given = kit.give(*captures, known=orders(*({"pump_id": pump} for pump in pumps)))
    assert {line["minutes"] for line in given.rows("lines")} == {100}
    assert [day["infusing_s"] for day in given.rows("days")] == [6000]


def test_two_stretches_of_one_pump_whose_printed_times_overlap_are_not_counted_twice():
    events = [*infusion(0, 60), event(30, "clock_change", reason="loss", new=kit.at(30)), *infusion(31, 60)]
    given = kit.give(capture(numbered(events)))
    assert len(given.rows("sessions")) == 2
    assert {line["minutes"] for line in given.rows("lines")} == {91}


def test_a_session_without_a_second_of_delivery_is_of_its_day_and_makes_no_line():
    given = log(event(0, "delivery_stop", source="primary"), event(1, "other"), *infusion(2000, 60))
    assert lines(given) == {(3, "96369"): 1}
    assert {(item["service_date"].day, item["code"]) for item in given.rows("worklist")} >= {(2, "NO_START")}
