"""Which decisions are in force, what each rests on, and what becomes of lines (docs/semantics.md §6; docs/decisions/0019, 0020)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pytest

from devices.contract import Capture
from ingest.night import rule_sets
from tests import kit
from tests.kit import anchor, at, capture, event, infusion, log, new_setup, numbered, orders
from tests.transforms.test_decisions import UNENDED, Desk, desk
from transforms import billing, decisions, sessions
from transforms.decisions import Decision, Evidence

A1, A2 = "canonical:A1", "canonical:A2"
FIRST = datetime(2026, 4, 1, tzinfo=UTC)
DAY = 1440


def taken(minute: int, action: str, about: str = "x", argument: str = "", undoes: Decision | None = None, **more: Any) -> Decision:
    """A decision of so many minutes after the first."""
    usual = {
        "decided_at": FIRST + timedelta(minutes=minute), "by": "ana", "note": "", "named": "", "pump_id": None, "patient_id": "pt-1",
        "encounter_id": None, "session_ids": (), "evidence_hash": "e",
    }  # fmt: skip
    undone = None if undoes is None else undoes.decision_id
    return decisions.decide(**{**usual, "action": action, "about": about, "argument": argument, "undoes": undone, **more})


# --- in force -----------------------------------------------------------------------------------------------------------------------


def test_decisions_on_different_questions_are_all_in_force_oldest_first():
    every = [
        taken(0, "clear", argument="OVER_8H"), taken(1, "clear", argument="NO_STOP"), taken(2, "clear", "y", "NO_STOP"), taken(3, "hold"),
        taken(4, "stop"), taken(5, "confirm-site"), taken(6, "confirm-clock"), taken(7, "note", note="a"), taken(8, "note", note="b"),
        taken(9, "void", "y"),
    ]  # fmt: skip
    assert decisions.in_force(every) == every
    assert decisions.in_force(reversed(every)) == every


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        (taken(0, "clear", argument="OVER_8H"), taken(1, "clear", argument="OVER_8H", note="again")),
        (taken(0, "stop", argument=at(1)), taken(1, "stop", argument=at(2))),
        (taken(0, "hold"), taken(1, "void")),
        (taken(0, "void"), taken(1, "hold")),
        (taken(0, "confirm-site"), taken(1, "confirm-site", by="bea")),
    ],
    ids=["clear", "stop", "hold and void", "void and hold", "site"],
)
def test_of_several_on_one_question_the_newest_is_in_force(older, newer):
    assert decisions.in_force([older, newer]) == decisions.in_force([newer, older]) == [newer]
    undone = taken(2, "undo", newer.decision_id, undoes=newer)
    assert decisions.in_force([undone, newer, older]) == [older]
    assert decisions.in_force([taken(3, "undo", undone.decision_id, undoes=undone), undone, newer, older]) == [newer]


def test_what_is_taken_back_once_and_again_stays_so_while_one_of_both_stands():
    one = taken(0, "hold")
    first, second = (taken(n, "undo", one.decision_id, undoes=one) for n in (1, 2))
    again = taken(3, "undo", first.decision_id, undoes=first)
    assert decisions.in_force([one, first, second]) == []
    assert decisions.in_force([one, first, second, again]) == []
    assert decisions.in_force([one, first, again]) == [one]


def test_the_id_of_a_decision_is_of_all_that_it_says():
    one = taken(0, "hold")
    others = [
        taken(1, "hold"), taken(0, "void"), taken(0, "hold", "y"), taken(0, "hold", argument="a"), taken(0, "hold", by="bea"),
        taken(0, "hold", note="n"), taken(0, "hold", session_ids=("s",)), taken(0, "hold", evidence_hash="f"),
        taken(0, "hold", pump_id="p"),
    ]  # fmt: skip
    assert len({each.decision_id for each in [one, *others]}) == 10
    assert one == taken(0, "hold")


def test_a_decision_is_the_row_that_it_is_kept_as():
    one = taken(0, "stop", session_ids=("s", "t"), pump_id=A1)
    row = one.row()
    assert row["session_ids"] == ["s", "t"]
    elsewhere = {**row, "decided_at": FIRST.astimezone(timezone(timedelta(hours=9))), "more": 1}
    again = Decision.of(elsewhere)
    assert again == one
    assert again.decided_at.tzinfo == UTC


# --- what a decision about facts rests on -------------------------------------------------------------------------------------------


def base(*captures: Capture, known: Any = None) -> sessions.Facts:
    """Facts without decisions."""
    return sessions.derive(kit.assembled(captures), known or orders(), sessions.FactPolicy())


def of(*events: dict[str, Any], end: float | None = 6000, known: Any = None) -> sessions.Facts:
    """Facts of one capture."""
    return base(capture(numbered(events), anchor=None if end is None else anchor(end)), known=known)


def setup_of(facts: sessions.Facts, minutes: float) -> dict[str, Any]:
    """The set-up of so many minutes."""
    (only,) = [row for row in facts.setups.to_pylist() if row["printed_time"].isoformat() == at(minutes)]
    return dict(only)


def begun(facts: sessions.Facts, minutes: float) -> str:
    """The delivery that begins at so many minutes."""
    (only,) = [
        row["event_id"]
        for row in facts.events.to_pylist()
        if row["pump_time"].isoformat() == at(minutes) and row["kind"] == "delivery_start"
    ]
    return str(only)


def test_a_site_is_confirmed_where_none_is_certain_and_the_set_up_is_of_a_session():
    facts = of(*new_setup(-5), *infusion(0, 40), event(41, "reservoir_change"), *infusion(45, 40), event(90, "reservoir_change"))
    evidence = Evidence(facts)
    assert evidence.of("confirm-site", setup_of(facts, 41)["setup_id"]) is not None
    assert evidence.of("confirm-site", setup_of(facts, -5)["setup_id"]) is None
    assert evidence.of("confirm-site", setup_of(facts, 90)["setup_id"]) is None
    assert evidence.of("confirm-site", "no such set-up") is None


def test_a_confirmed_site_rests_on_the_records_of_the_set_up_and_whose_it_is():
    def hashed(volume: float = 0.3, minutes: float = 40, **order: str) -> str | None:
        prime = event(41, "priming_done", target="tubing", volume_ml=volume)
        facts = of(*new_setup(-5), *infusion(0, 40), prime, *infusion(45, minutes), known=orders(**order))
        return Evidence(facts).of("confirm-site", setup_of(facts, 41)["setup_id"])

    assert hashed() == hashed(minutes=50)
    assert len({hashed(), hashed(volume=0.4), hashed(order_id="ord-2"), hashed(patient_id="pt-2")}) == 4


def test_a_stop_is_confirmed_of_a_delivery_without_one():
    facts = of(*UNENDED)
    evidence = Evidence(facts)
    assert evidence.of("stop", begun(facts, 0)) is not None
    assert evidence.of("stop", begun(facts, 60)) is None
    assert [piece["event_id"] for piece in evidence.every_piece()] == [begun(facts, 0)]
    (piece,) = evidence.pieces(begun(facts, 0))
    assert (piece["order_id"], piece["patient_id"], piece["to_ms"] - piece["from_ms"]) == ("ord-1", "pt-1", 3_600_000)
    assert evidence.pieces(begun(facts, 60)) == []


def test_a_confirmed_stop_rests_on_every_record_from_its_start_to_the_one_that_shows_it_over():
    def hashed(*, before: str = "a", first: str = "a", within: str = "a", last: str = "a", behind: str = "a", **order: str) -> str | None:
        events = [
            event(-1, "other", says=before), event(0, "delivery_start", says=first), event(30, "other", says=within),
            event(60, "power_on", says=last), event(61, "other", says=behind),
        ]  # fmt: skip
        facts = of(*events, known=orders(**order))
        return Evidence(facts).of("stop", begun(facts, 0))

    assert hashed() == hashed(before="b", behind="b")
    assert len({hashed(), hashed(first="b"), hashed(within="b"), hashed(last="b"), hashed(order_id="o"), hashed(patient_id="p")}) == 6


@pytest.mark.parametrize(
    ("told", "lasts"),
    [
        (at(0) + "Z", 0), (at(45) + "Z", 45 * 60_000), (at(60) + "Z", 3_600_000), (at(60) + ".001Z", None), (at(-0.1) + "Z", None),
        (at(45), 45 * 60_000), (at(30) + "+00:00", 30 * 60_000), ("soon", None), ("", None),
    ],
)  # fmt: skip
def test_a_stop_is_told_as_utc_or_as_the_pump_prints_it_within_the_delivery(told, lasts):
    facts = of(*UNENDED)
    assert Evidence(facts).lasts(begun(facts, 0), told) == lasts
    assert Evidence(facts).lasts(begun(facts, 60), told) is None


def test_without_utc_a_stop_is_told_as_the_pump_prints_it_alone():
    facts = of(*UNENDED, end=None)
    assert Evidence(facts).lasts(begun(facts, 0), at(45)) == 45 * 60_000
    assert Evidence(facts).lasts(begun(facts, 0), at(45) + "Z") is None


HOURS = 3_600_000


def stretches(
    first: list[dict[str, Any]], second: list[dict[str, Any]], *anchors: tuple[int, float, float], gone: bool = True
) -> sessions.Facts:
    """Two runs of records, a missing one between them; anchors: behind which number, pump minute, UTC minute."""
    lines = numbered([*first, *([event(0, "other")] if gone else []), *second])
    kept = [line for line in lines if not gone or line["seq"] != len(first) + 1]
    captures = [capture(kept, anchor={**anchor(clock, utc_minutes=utc), "after_seq": seq}) for seq, clock, utc in anchors]
    return base(*(captures or [capture(kept)]))


def confirmed(facts: sessions.Facts) -> int | None:
    """The offset that the stretch of the first event would take, in minutes."""
    first = facts.events.to_pylist()[0]["stretch"]
    offset = Evidence(facts).offset_ms(first)
    assert (offset is None) == (Evidence(facts).of("confirm-clock", first) is None)
    return None if offset is None else offset // 60_000


LOST = event(1440, "clock_change", reason="loss", new=at(1440))
LATER = infusion(1450, 40)


SET = event(1441, "clock_change", old=at(1441), new=at(1501))
HALT = event(1440, "alarm_raised", alarm_class="clock_lost")


@pytest.mark.parametrize(
    ("says", "first", "second", "anchors", "gone", "offset"),
    [
        ("over a hole", infusion(0, 40), LATER, [(5, 1500, 1740)], True, 240),
        ("nothing behind it has an anchor", infusion(0, 40), LATER, [], True, None),
        ("it has one of its own", infusion(0, 40), LATER, [(2, 45, 50), (5, 1500, 1740)], True, None),
        ("only it has one", infusion(0, 40), LATER, [(2, 45, 50)], True, None),
        ("over a loss", infusion(0, 40), [LOST, *LATER], [(5, 1500, 1740)], False, 240),
        ("lost by an alarm", infusion(0, 40), [HALT, *LATER], [(5, 1500, 1740)], False, 240),
        ("over a loss after which it was set", infusion(0, 40), [LOST, SET, *infusion(1510, 40)], [(6, 1560, 1800)], False, 240),
        (
            "over a hole behind which it was set",
            infusion(0, 40),
            [event(1440, "other"), SET, *infusion(1510, 40)],
            [(7, 1560, 1800)],
            True,
            300,
        ),
        ("up to another record", [*infusion(0, 40), event(40, "other")], LATER, [(6, 1500, 1740)], True, 240),
        ("the next begins before, by the clock it was set to", infusion(0, 40), infusion(10, 40), [(5, 60, 300)], True, None),
        ("it stepped back and the next begins later in UTC", infusion(DAY, 40), infusion(10, 40), [(4, 60, 60)], False, None),
    ],
)
def test_the_offset_that_a_stretch_without_an_anchor_may_take(says, first, second, anchors, gone, offset):
    assert confirmed(stretches(first, second, *anchors, gone=gone)) == offset, says


def test_a_confirmed_clock_rests_on_the_records_of_its_stretch_and_on_the_offset():
    def hashed(says: str = "a", behind: str = "a", utc: float = 1740) -> str | None:
        facts = stretches([event(-1, "other", says=says), *infusion(0, 40)], [event(1445, "other", says=behind), *LATER], (7, 1500, utc))
        return Evidence(facts).of("confirm-clock", facts.events.to_pylist()[0]["stretch"])

    assert hashed() == hashed(behind="b")
    assert len({hashed(), hashed("b"), hashed(utc=1741)}) == 3


def test_a_bolus_that_names_an_earlier_instant_does_not_tell_the_clock():
    bolus = event(5, "bolus_delivered", source="pca", volume_ml=1.0)
    assert confirmed(stretches([*infusion(0, 40), bolus], [bolus, *LATER], (7, 1500, 1740))) == 240


def test_facts_are_shaped_by_what_still_holds_alone():
    facts = of(*new_setup(-5), *UNENDED, event(81, "reservoir_change"), *infusion(85, 40))
    evidence, setup, start = Evidence(facts), setup_of(facts, 81)["setup_id"], begun(facts, 0)

    def shaped(action: str, about: str, argument: str = "", wrong: str = "") -> decisions.Shaping:
        told = evidence.of(action, about) or ""
        return decisions.shape(facts, [taken(0, action, about, argument, evidence_hash=told + wrong)])

    assert not decisions.shape(facts, [])
    assert not decisions.shape(facts, [taken(0, "hold", setup), taken(0, "clear", start)])
    assert list(shaped("confirm-site", setup).sites) == [setup]
    assert not shaped("confirm-site", setup, wrong="!")
    stops = shaped("stop", start, at(45) + "Z").stops
    assert {event_id: lasts for event_id, (lasts, _) in stops.items()} == {start: 45 * 60_000}
    assert not shaped("stop", start, at(61) + "Z")
    assert not shaped("stop", start, at(45) + "Z", wrong="!")


# --- hold, void, note, clear ------------------------------------------------------------------------------------------------------


def test_a_hold_of_an_encounter_holds_all_its_lines_and_its_note_is_shown():
    one = desk(*infusion(0, 95), *infusion(DAY, 95))
    encounter = next(line["encounter_id"] for line in one.lines() if line["service_date"].day == 2)
    case = one.case(encounter)
    held = one.take(
        action="hold", about=encounter, evidence_hash=case.evidence_hash, encounter_id=encounter, session_ids=case.session_ids, note="ask"
    )
    assert {(line["service_date"].day, line["state"], tuple(line["decisions"])) for line in one.lines()} == {
        (2, "hold", (held.decision_id,)), (3, "ready", ()),
    }  # fmt: skip
    (item,) = one.items("REVIEWER_HOLD")
    assert item["message"].endswith(" ana, 2026-04-01: ask.")
    assert (item["severity"], item["state"]) == ("hold", "open")
    assert f"pumpledger decide undo {held.decision_id} --by YOU" in item["suggestion"]


def test_a_hold_that_lapsed_holds_the_line_that_it_was_about_alone():
    one = desk(*infusion(0, 95))
    first = next(line for line in one.lines() if line["code"] == "96370")
    held = one.line("hold", first)
    one.captures = desk(*infusion(0, 96)).captures
    assert {line["code"]: (line["state"], line["reasons"]) for line in one.lines()} == {
        "96369": ("ready", []), "96370": ("hold", ["DECISION_LAPSED"]),
    }  # fmt: skip
    (item,) = one.items("DECISION_LAPSED")
    assert f"pumpledger decide undo {held.decision_id} --by YOU" in item["suggestion"]
    assert "no longer holds" in item["message"]


def test_a_hold_whose_line_is_gone_holds_what_its_sessions_are_in_now():
    one = desk(*infusion(0, 95))
    further = next(line for line in one.lines() if line["code"] == "96370")
    one.line("hold", further)
    one.captures = desk(*infusion(0, 60)).captures
    assert {line["code"]: line["reasons"] for line in one.lines()} == {"96369": ["DECISION_LAPSED"]}


def test_a_hold_of_a_session_that_moved_to_another_date_goes_with_it_and_holds_no_other():
    lines = numbered([*infusion(0, 60), *infusion(DAY, 60)])
    one = Desk([capture(lines[:2], anchor=anchor(70))])
    one.line("hold", one.lines()[0])
    one.captures = [capture(lines[:2], anchor=anchor(70, utc_minutes=70 + 3 * DAY))]
    assert {(line["service_date"].day, tuple(line["reasons"])) for line in one.lines()} == {(5, ("DECISION_LAPSED",))}
    one.captures = [capture(lines, anchor=anchor(DAY + 70))]
    assert {line["service_date"].day: line["reasons"] for line in one.lines()} == {2: ["REVIEWER_HOLD"], 3: []}


@pytest.mark.parametrize("action", ["hold", "void"])
def test_a_session_that_leaves_an_encounter_which_goes_on_takes_what_was_decided_with_it(action):
    one = desk(*infusion(0, 60), *infusion(870, 40))
    one.line(action, one.lines()[0])
    one.known = orders(tz="Asia/Tokyo")
    assert {(line["service_date"].day, line["minutes"], tuple(line["reasons"])) for line in one.lines()} == {
        (2, 60, ("DECISION_LAPSED",)),
        (3, 40, ("DECISION_LAPSED",)),
    }


def test_a_note_that_lapsed_is_gone_and_holds_nothing():
    one = desk(*infusion(0, 95))
    case = one.case()
    one.take(action="note", about=case.encounter_id, evidence_hash=case.evidence_hash, note="seen", encounter_id=case.encounter_id)
    one.captures = desk(*infusion(0, 96)).captures
    assert one.given.states() == {"ready"}
    assert all(line["decisions"] == [] for line in one.lines())
    assert not any("seen" in item["message"] for item in one.given.rows("worklist"))


def test_what_is_cleared_of_one_encounter_is_not_cleared_of_another():
    one = desk(*infusion(0, 500), *infusion(DAY, 500))
    line = next(line for line in one.lines() if line["service_date"].day == 2)
    decision = one.clear("OVER_8H", line["encounter_id"])
    found = {line["service_date"].day: (line["state"], line["decisions"]) for line in one.lines()}
    assert found == {2: ("ready", [decision.decision_id]), 3: ("hold", [])}
    assert {item["service_date"].day: item["state"] for item in one.items("OVER_8H")} == {2: "decided", 3: "open"}


def test_the_sentence_of_a_line_says_what_still_holds_it():
    one = desk(*infusion(0, 600))
    assert "held: " in one.lines()[0]["explanation"]
    one.clear("OVER_8H")
    assert {line["explanation"].partition("held: ")[2] for line in one.lines()} == {"More further hours than the cap."}
    one.clear("OVER_UNIT_CAP")
    assert not any("held: " in line["explanation"] for line in one.lines())


def test_clearing_what_only_informs_is_shown_and_changes_no_line():
    one = desk(*infusion(0, 95))
    one.clear("NEAR_THRESHOLD")
    (item,) = one.items("NEAR_THRESHOLD")
    assert (item["state"], item["severity"]) == ("decided", "inform")
    assert {(line["state"], tuple(line["decisions"])) for line in one.lines()} == {("ready", ())}


# --- releases -----------------------------------------------------------------------------------------------------------------------


def states(one: Desk) -> dict[tuple[str, int, int], str]:
    """Of each line by code, day and revision its state."""
    return {(line["code"], line["service_date"].day, line["revision"]): line["state"] for line in one.lines()}


def test_a_release_of_one_encounter_leaves_the_others_to_be_taken():
    one = desk(*infusion(0, 60))
    one.release()
    one.captures = desk(*infusion(0, 60), *infusion(DAY, 60)).captures
    assert states(one) == {("96369", 2, 0): "released", ("96369", 3, 0): "ready"}
    assert [row["service_date"].day for row in one.release()] == [3]


def test_only_ready_lines_with_a_code_and_voids_that_nothing_holds_are_taken():
    ready = {"release_id": None, "state": "ready", "code": "96369", "supersedes": None, "reasons": []}
    void = {**ready, "state": "void", "supersedes": "x/0"}
    assert decisions.takeable(ready)
    assert decisions.takeable(void)
    for other in (
        {**ready, "release_id": "r"}, {**ready, "state": "hold"}, {**ready, "code": ""}, {**void, "reasons": ["OVER_8H"]},
        {**void, "supersedes": None}, {**void, "release_id": "r"},
    ):  # fmt: skip
        assert not decisions.takeable(other)


def test_units_minutes_date_code_and_payer_are_what_was_released():
    line = log(*infusion(0, 60)).rows("lines")[0]
    assert decisions.figures(line) == ("96369", 1, 60, "2026-03-02", "payer-a")
    assert decisions.key_of({**line, "revision": 3}) == f"{line['line_id']}/3"


def test_an_amendment_of_an_amendment_is_named_by_the_one_that_stands():
    one = desk(*infusion(0, 60))
    one.release()
    for minutes in (70, 80):
        one.captures = desk(*infusion(0, minutes)).captures
        one.clear_all()
        assert len(one.release()) == 2
    assert {(line["revision"], line["state"], line["minutes"]) for line in one.lines()} == {
        (0, "released", 60), (1, "void", 60), (2, "released", 70), (3, "void", 70), (4, "released", 80),
    }  # fmt: skip
    line_id = one.lines()[0]["line_id"]
    assert {line["revision"]: line["supersedes"] for line in one.lines()} == {
        0: None, 1: f"{line_id}/0", 2: f"{line_id}/0", 3: f"{line_id}/2", 4: f"{line_id}/2",
    }  # fmt: skip


def test_a_void_says_what_it_voids_and_waits_for_what_replaces_it():
    one = desk(*infusion(0, 60))
    one.release()
    one.captures = desk(*infusion(0, 500)).captures
    (void,) = one.lines(state="void")
    assert void["explanation"] == "Voids 96369 x1, 60 min, which was released."
    assert (void["units"], void["minutes"], void["release_id"]) == (1, 60, None)
    replacing = next(line for line in one.lines(state="hold") if line["code"] == "96369")
    assert void["reasons"] == replacing["reasons"] == ["OVER_8H", "AMENDED_AFTER_RELEASE"]
    amended = one.clear("AMENDED_AFTER_RELEASE")
    (void,) = one.lines(state="void")
    assert (void["reasons"], void["decisions"]) == (["OVER_8H"], [amended.decision_id])


def test_a_void_of_what_nothing_replaces_waits_until_it_is_cleared():
    one = desk(*infusion(0, 60), *infusion(DAY, 60))
    one.release()
    one.captures = desk(*infusion(0, 60), event(DAY, "other")).captures
    (void,) = one.lines(state="void")
    assert (void["service_date"].day, void["reasons"], void["revision"]) == (3, ["AMENDED_AFTER_RELEASE"], 1)
    (item,) = one.items("AMENDED_AFTER_RELEASE")
    assert {name: item[name] for name in ("patient_id", "payer", "order_id", "pump_id", "line_id", "minutes_at_stake")} == {
        "patient_id": "pt-1", "payer": "payer-a", "order_id": "ord-1", "pump_id": A1, "line_id": void["line_id"], "minutes_at_stake": 60,
    }  # fmt: skip
    assert (item["service_date"].day, item["session_id"]) == (3, void["session_ids"][0])
    assert states(one)["96369", 2, 0] == "released"


def test_a_line_that_was_voided_and_comes_back_is_a_new_revision_on_hold():
    one = desk(*infusion(0, 60))
    one.release()
    one.captures = desk(event(0, "other")).captures
    one.clear("AMENDED_AFTER_RELEASE")
    assert len(one.release()) == 1
    one.captures = desk(*infusion(0, 60)).captures
    assert states(one) == {("96369", 2, 0): "released", ("96369", 2, 1): "void", ("96369", 2, 2): "hold"}
    assert next(line for line in one.lines() if line["revision"] == 2)["reasons"] == ["AMENDED_AFTER_RELEASE"]


def test_what_another_patient_was_billed_of_the_same_pump_at_another_time_amends_nothing():
    one = desk(*infusion(0, 60))
    one.release()
    known = orders({"stop": at(70) + "Z"}, {"start": at(70) + "Z", "patient_id": "pt-2", "order_id": "ord-2"})
    other = Desk(desk(*infusion(0, 60), *infusion(100, 60)).captures, known, released=one.released)
    assert {(line["patient_id"], line["revision"]): line["state"] for line in other.lines()} == {
        ("pt-1", 0): "released",
        ("pt-2", 0): "ready",
    }


def test_of_two_codes_that_are_gone_each_is_replaced_by_its_like():
    one = desk(*infusion(0, 95))
    one.release()
    lines = numbered(infusion(0, 95))
    one.captures = [capture(lines, anchor=anchor(6000, utc_minutes=6000 + DAY))]
    was = {line["code"]: line["line_id"] for line in one.lines(state="released")}
    now = {line["code"]: line["supersedes"] for line in one.lines(state="hold")}
    assert now == {code: f"{line_id}/0" for code, line_id in was.items()}
    assert sorted(states(one).items()) == sorted(
        {
            **{(code, 2, 0): "released" for code in was}, **{(code, 2, 1): "void" for code in was},
            **{(code, 3, 0): "hold" for code in was},
        }.items()
    )  # fmt: skip


def test_a_reviewers_void_of_what_changed_since_needs_no_second_look_either():
    one = desk(*infusion(0, 60))
    one.release()
    one.captures = desk(*infusion(0, 70)).captures
    case = one.case()
    voided = one.about(case, "void", case.encounter_id, case.evidence_hash)
    assert states(one) == {("96369", 2, 0): "released", ("96369", 2, 1): "void"}
    (void,) = one.lines(state="void")
    assert (void["reasons"], void["decisions"]) == ([], [voided.decision_id])
    assert one.items("AMENDED_AFTER_RELEASE") == []


def test_items_of_what_is_wholly_released_are_closed_and_open_again_with_an_amendment():
    one = desk(*infusion(0, 90))
    one.release()
    assert [item["state"] for item in one.items("NEAR_THRESHOLD")] == ["closed"]
    one.captures = desk(*infusion(0, 91)).captures
    assert [item["state"] for item in one.items("NEAR_THRESHOLD")] == ["open"]


# --- some patients alone, and therapy days --------------------------------------------------------------------------------------


def billed(one: Desk, *patients: str) -> list[tuple[str, int, str]]:
    """Patient, revision and state of each line, of these patients alone if any are named."""
    facts = [one.base(pump) for pump in sorted({capture.pump_id for capture in one.captures})]
    tables = (pa.concat_tables([getattr(of_pump, name) for of_pump in facts]) for name in ("sessions", "intervals", "setups", "doubts"))
    found = billing.bill(billing.Facts(*tables), one.known, rule_sets(), {}, one.decided, one.released, patients or None)
    return sorted((line["patient_id"], line["revision"], line["state"]) for line in found.lines.to_pylist())


def test_of_some_patients_alone_lines_are_settled_as_of_all():
    known = orders({}, {"pump_id": A2, "patient_id": "pt-2", "order_id": "ord-2"})
    captures = [capture(numbered(infusion(0, 60)), pump=pump, anchor=anchor(600)) for pump in (A1, A2)]
    one = Desk(captures, known)
    one.release()
    assert billed(one) == [("pt-1", 0, "released"), ("pt-2", 0, "released")]
    assert billed(one, "pt-2") == [("pt-2", 0, "released")]
    one.captures = [capture(numbered(infusion(0, 70)), pump=pump, anchor=anchor(600)) for pump in (A1, A2)]
    amended = [("pt-1", 0, "released"), ("pt-1", 1, "void"), ("pt-1", 2, "hold")]
    assert billed(one, "pt-1") == amended
    assert billed(one) == amended + [("pt-2", *rest) for _, *rest in amended]
    assert billed(one, "pt-9") == []


def test_a_therapy_day_says_which_decisions_it_rests_on():
    known = orders(rule_set="per-diem")
    one = Desk([capture(numbered([*UNENDED, *infusion(DAY, 60)]), anchor=anchor(6000))], known)
    assert {line["service_date"].day: line["state"] for line in one.lines()} == {2: "hold", 3: "ready"}
    stopped = one.stop(45)
    assert {line["service_date"].day: (line["state"], line["minutes"], line["decisions"]) for line in one.lines()} == {
        2: ("ready", 65, [stopped.decision_id]), 3: ("ready", 60, []),
    }  # fmt: skip


def test_a_therapy_day_is_held_voided_and_released_as_any_line():
    one = desk(*infusion(0, 60), *infusion(DAY, 60), known=orders(rule_set="per-diem"))
    second, third = sorted(one.lines(), key=lambda line: line["service_date"])
    held = one.line("hold", second)
    assert {line["service_date"].day: (line["state"], line["reasons"]) for line in one.lines()} == {
        2: ("hold", ["REVIEWER_HOLD"]),
        3: ("ready", []),
    }
    (item,) = one.items("REVIEWER_HOLD")
    assert (item["line_id"], item["service_date"].day, item["pump_id"]) == (second["line_id"], 2, A1)
    assert [row["line_id"] for row in one.release()] == [third["line_id"]]
    one.undo(held)
    one.line("void", second)
    assert {line["service_date"].day: line["state"] for line in one.lines()} == {2: "void", 3: "released"}
    assert one.release() == []
