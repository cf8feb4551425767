"""What a line says of itself (docs/semantics.md §6): where it comes from, its ledger, its sentence; what is split by date."""

from __future__ import annotations

from datetime import date
from itertools import pairwise
from typing import Any

import pytest

from tests import kit
from tests.kit import anchor, at, capture, event, infusion, log, new_setup, numbered, orders
from tests.transforms.test_rule_sets import billed_with, changed
from transforms import billing, sessions

A1, A2 = "canonical:A1", "canonical:A2"
MIDNIGHT = 16 * 60
TOO_LONG = "The infusion is longer than the policy allows without a look."
ALARMED = [
    event(75, "delivery_start", rate_ml_h=2.0),
    event(105, "alarm_raised", alarm_class="occlusion", stops_delivery=True),
    *infusion(110, 20),
]


def shown(moment: Any) -> str | None:
    """A time as the events of these tests are written."""
    return None if moment is None else moment.replace(tzinfo=None).isoformat()


def of_day(given: kit.Given) -> dict[int, dict[str, Any]]:
    """The one line of each day of March."""
    rows = given.rows("lines")
    found = {row["service_date"].day: row for row in rows}
    assert len(found) == len(rows)
    return found


def test_a_line_says_whose_it_is_and_what_it_rests_on():
    events = [*new_setup(-5), *infusion(0, 60), event(65, "other"), *new_setup(70), *ALARMED, event(200, "other")]
    given = log(*events, known=orders(place_of_service="11"))
    assert {(line["code"], line["units"], line["minutes"]) for line in given.rows("lines")} == {
        ("96369", 1, 110), ("96370", 1, 110), ("96371", 1, 110),
    }  # fmt: skip
    for line in given.rows("lines"):
        assert {name: line[name] for name in ("patient_id", "order_id", "payer", "drug", "route", "place_of_service", "rule_set")} == {
            "patient_id": "pt-1", "order_id": "ord-1", "payer": "payer-a", "drug": "hydromorphone", "route": "SC",
            "place_of_service": "11", "rule_set": "cpt-9637x",
        }  # fmt: skip
        assert (line["revision"], line["release_id"], line["supersedes"], line["decisions"]) == (0, None, None, [])
        assert line["session_ids"] == [given.session["session_id"]]
        assert line["pump_ids"] == [A1]
        assert (shown(line["start"]), shown(line["stop"])) == (at(0), at(130))
        assert (line["state"], line["reasons"], line["service_date"]) == ("ready", [], date(2026, 3, 2))
        assert [(shown(one["from"]), shown(one["to"]), one["seconds"], one["counted"], one["why"]) for one in line["ledger"]] == [
            (at(0), at(60), 3600, True, "infusing"),
            (at(60), at(75), 900, False, "paused"),
            (at(75), at(105), 1800, True, "infusing"),
            (at(105), at(110), 300, False, "alarm"),
            (at(110), at(130), 1200, True, "infusing"),
        ]
        kinds = {row["event_id"]: row["kind"] for row in given.rows("events")}
        assert sorted(kinds[one] for one in line["event_ids"]) == sorted(kind for kind in kinds.values() if kind != "other")
        assert line["explanation"] == (
            "110 min of recorded delivery = 96369 x1 + 96370 x1 + 96371 x1; 50 min lie beyond the first hour, more than 30; "
            "a further pump set-up with a new site was recorded."
        )


@pytest.mark.parametrize(
    ("minutes", "says"),
    [
        (0.5, None),
        (10, "10 min of recorded delivery = 96372 x1."),
        (90, "90 min of recorded delivery = 96369 x1."),
        (91, "91 min of recorded delivery = 96369 x1 + 96370 x1; 31 min lie beyond the first hour, more than 30."),
        (151, "151 min of recorded delivery = 96369 x1 + 96370 x2; 31 min lie beyond the first 2 hours, more than 30."),
        (500, f"500 min of recorded delivery = 96369 x1 + 96370 x7; 80 min lie beyond the first 7 hours, more than 30; held: {TOO_LONG}"),
    ],
)
def test_a_line_has_a_sentence_that_a_person_can_read(minutes, says):
    assert {line["explanation"] for line in log(*infusion(0, minutes)).rows("lines")} == ({says} if says else set())


def test_a_therapy_day_has_a_sentence_of_its_own():
    known = orders(rule_set="per-diem")
    cited = "docs/billing.md §1: pain management per day, continuous (24 h and more) or intermittent (less than 24 h)"
    assert {day: line["explanation"] for day, line in of_day(log(*infusion(0, 1500), known=known)).items()} == {
        2: f"960 min of recorded delivery on this date, continuous therapy = S9326 x1; {cited}.",
        3: f"540 min of recorded delivery on this date, continuous therapy = S9326 x1; {cited}.",
    }
    (line,) = log(*infusion(0, 60), known=orders(rule_set="per-diem", drug="treprostinil")).rows("lines")
    assert line["explanation"] == (
        "60 min of recorded delivery on this date, intermittent therapy = no code x1; no therapy names the drug; "
        "held: No therapy of this rule set names the drug, and no code is guessed."
    )


def test_therapy_days_of_two_drugs_and_lengths_each_have_their_own_code():
    known = orders(
        {}, {"pump_id": A2, "order_id": "ord-2", "drug": "Hizentra"}, {"pump_id": "canonical:A3", "order_id": "ord-3"}, rule_set="per-diem"
    )
    runs = ((A1, 60), (A2, 60), ("canonical:A3", 1500))
    captures = [capture(numbered(infusion(0, minutes)), pump=pump, anchor=anchor(6000)) for pump, minutes in runs]
    found = {
        (line["order_id"], line["service_date"].day): (line["code"], line["minutes"])
        for line in kit.give(*captures, known=known).rows("lines")
    }
    assert found == {
        ("ord-1", 2): ("S9327", 60), ("ord-2", 2): ("S9338", 60), ("ord-3", 2): ("S9326", 960), ("ord-3", 3): ("S9326", 540),
    }  # fmt: skip


def test_a_line_of_several_sessions_begins_with_the_first_and_ends_with_the_last():
    known = orders({}, {"pump_id": A2})
    captures = [
        capture(numbered([*infusion(100, 30), *infusion(300, 30)]), pump=A1, anchor=anchor(6000)),
        capture(numbered(infusion(0, 600)), pump=A2, anchor=anchor(6000)),
    ]
    (line, *_) = kit.give(*captures, known=known).rows("lines")
    assert (shown(line["start"]), shown(line["stop"])) == (at(0), at(600))
    assert line["pump_ids"] == [A1, A2]
    assert len(line["session_ids"]) == 3
    assert [(shown(one["from"]), one["seconds"]) for one in line["ledger"]] == [(at(0), 36000), (at(100), 1800), (at(300), 1800)]


def test_a_line_has_no_stop_while_a_session_of_it_is_open():
    (line,) = log(*infusion(0, 60), event(200, "delivery_start"), event(230, "other")).rows("lines")
    assert (shown(line["start"]), line["stop"], line["minutes"]) == (at(0), None, 90)


def test_the_evidence_of_a_line_is_that_of_all_its_sessions_and_of_no_other():
    def hashed(*events: dict[str, Any]) -> str:
        return str({line["evidence_hash"] for line in log(*events).rows("lines") if line["service_date"].day == 2})

    one = hashed(*infusion(0, 60), *infusion(200, 30))
    assert hashed(*infusion(0, 60), *infusion(200, 30), *infusion(2000, 30)) == one
    assert hashed(*infusion(0, 60), *infusion(200, 31)) != one
    assert hashed(*infusion(0, 61), *infusion(200, 30)) != one


def test_lines_are_sorted_and_each_has_an_id_of_its_own():
    lines = log(*infusion(0, 95), *infusion(1440, 95)).rows("lines")
    assert len({line["line_id"] for line in lines}) == 4
    assert len({line["encounter_id"] for line in lines}) == 2
    keys = [(line["service_date"], line["line_id"]) for line in lines]
    assert keys == sorted(keys)
    again = log(*infusion(0, 200), *infusion(1440, 95)).rows("lines")
    assert {line["line_id"] for line in again} == {line["line_id"] for line in lines}


# --- split by date --------------------------------------------------------------------------------------------------------------

SPLIT = changed(midnight='"split_by_day"')


def split(*events: dict[str, Any], **order: str) -> list[tuple[int, str, int, int]]:
    """Day, code, units and minutes of each line where lines split at midnight."""
    rows = billed_with(SPLIT, *events, known=orders(**order))
    assert len({row["line_id"] for row in rows}) == len(rows)
    return sorted((row["service_date"].day, row["code"], row["units"], row["minutes"]) for row in rows)


@pytest.mark.parametrize(
    ("says", "events", "expected"),
    [
        ("within one date", infusion(0, 95), [(2, "96369", 1, 95), (2, "96370", 1, 95)]),
        ("an hour on each side", infusion(MIDNIGHT - 60, 120), [(2, "96369", 1, 60), (3, "96370", 1, 120)]),
        ("the first hour is reached behind midnight", infusion(MIDNIGHT - 10, 60), [(3, "96369", 1, 60)]),
        ("three dates", infusion(MIDNIGHT - 60, 1440 + 120), [(2, "96369", 1, 60), (3, "96370", 24, 1500), (4, "96370", 1, 1560)]),
        ("seconds are cut once", infusion(MIDNIGHT - 60.5, 151), [(2, "96369", 1, 60), (3, "96370", 2, 151)]),
        ("up to midnight", infusion(MIDNIGHT - 95, 95), [(2, "96369", 1, 95), (2, "96370", 1, 95)]),
        (
            "another session the next day",
            [*infusion(MIDNIGHT - 60, 120), *infusion(MIDNIGHT + 200, 60)],
            [(2, "96369", 1, 60), (3, "96369", 1, 60), (3, "96370", 1, 120)],
        ),
    ],
)
def test_units_stand_on_the_date_on_which_they_were_reached(says, events, expected):
    assert split(*events) == expected, says


def test_a_set_up_that_counts_without_an_initial_hour_is_on_no_date():
    events = [*new_setup(MIDNIGHT - 20), *infusion(MIDNIGHT - 15, 15), *new_setup(MIDNIGHT + 5), *infusion(MIDNIGHT + 10, 0.5)]
    assert split(*events) == [(2, "96372", 1, 15)]


def test_a_set_up_is_split_with_its_encounter_alone():
    first = [*new_setup(MIDNIGHT - 65), *infusion(MIDNIGHT - 60, 30), *new_setup(MIDNIGHT + 10), *infusion(MIDNIGHT + 15, 60)]
    second = [*new_setup(MIDNIGHT + 600), *infusion(MIDNIGHT + 605, 60)]
    assert [one for one in split(*first, *second) if one[1] == "96371"] == [(3, "96371", 1, 90)]


def test_lines_that_split_are_held_on_every_date_that_a_doubt_reaches():
    cut = numbered([*infusion(MIDNIGHT - 60, 120), event(2000, "other"), event(2010, "other"), event(2020, "power_off")])
    rows = billed_with_log([line for line in cut if line["seq"] != 4])
    assert {(row["service_date"].day, row["state"]) for row in rows} == {(2, "hold"), (3, "hold")}


def billed_with_log(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a log as it is, where lines split at midnight."""
    facts = sessions.derive(kit.assembled([capture(lines, anchor=anchor(6000))]), orders(), sessions.FactPolicy())
    tables = billing.Facts(facts.sessions, facts.intervals, facts.setups, facts.doubts)
    return list(billing.bill(tables, orders(), {SPLIT.name: SPLIT}, {}).lines.to_pylist())


def test_evidence_never_splits_and_says_how_much():
    given = log(*infusion(MIDNIGHT - 60, 120), known=orders(rule_set="evidence-only"))
    (line,) = given.rows("lines")
    (again,) = billed_with(changed(midnight='"split_by_day"', basis='"evidence"'), *infusion(MIDNIGHT - 60, 120))
    assert {name: again[name] for name in ("code", "units", "minutes", "service_date")} == {
        name: line[name] for name in ("code", "units", "minutes", "service_date")
    }
    assert (line["code"], line["units"], line["minutes"], line["service_date"].day) == ("", 0, 120, 2)
    assert line["explanation"] == "120 min of recorded delivery = no code."
    assert [pair for pair in pairwise(one["to"] for one in line["ledger"]) if pair[0] > pair[1]] == []
