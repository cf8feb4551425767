"""What the worklist shows (docs/semantics.md §6): one item for each code and what it is about."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest

from tests import kit
from tests.kit import anchor, at, capture, event, infusion, log, new_setup, numbered, orders
from tests.transforms.test_decisions import desk
from transforms import billing, decisions
from transforms.codes import SAYS

A1, A2 = "canonical:A1", "canonical:A2"
MIDNIGHT = 16 * 60
MINUTE = 60_000
DAY = 1440 * MINUTE
MORNING = int(datetime(2026, 3, 2, 8, tzinfo=UTC).timestamp() * 1000)


def item(given: kit.Given, code: str) -> dict[str, Any]:
    """The one item of a code."""
    (only,) = [one for one in given.rows("worklist") if one["code"] == code]
    return only


def when(row: dict[str, Any]) -> str | None:
    """The time of an item as the events of these tests are written."""
    return None if row["time"] is None else row["time"].replace(tzinfo=None).isoformat()


# --- about encounters and therapy days ----------------------------------------------------------------------------------------------


def test_an_item_says_what_was_found_of_whom_and_what_to_do():
    given = log(*infusion(0, 500))
    one = item(given, "OVER_8H")
    initial = next(line["line_id"] for line in given.rows("lines") if line["code"] == "96369")
    further = next(line["line_id"] for line in given.rows("lines") if line["code"] == "96370")
    assert one["item_id"]
    assert one["line_id"] in (initial, further)
    assert {name: one[name] for name in one if name not in ("item_id", "line_id", "time")} == {
        "code": "OVER_8H", "severity": "hold", "patient_id": "pt-1", "pump_id": A1, "payer": "payer-a", "order_id": "ord-1",
        "session_id": given.session["session_id"], "service_date": date(2026, 3, 2), "minutes_at_stake": 500,
        "message": SAYS["OVER_8H"][0], "suggestion": SAYS["OVER_8H"][1], "state": "open",
    }  # fmt: skip
    assert when(one) == at(0)


def test_what_holds_is_severe_and_what_informs_is_not():
    given = log(*infusion(MIDNIGHT - 30, 500), *infusion(MIDNIGHT + 600, 4))
    assert {(one["code"], one["severity"]) for one in given.rows("worklist")} == {
        ("OVER_8H", "hold"), ("CROSS_MIDNIGHT", "inform"), ("LE_15_MIN", "inform"), ("NEAR_THRESHOLD", "inform"),
    }  # fmt: skip


def test_an_item_about_an_encounter_without_a_line_names_none():
    one = item(log(*infusion(0, 60), known=orders(drug="insulin")), "EXCLUDED_DRUG")
    assert (one["line_id"], one["minutes_at_stake"], one["severity"]) == (None, 60, "inform")


@pytest.mark.parametrize(("order", "why"), [({"drug": "insulin"}, "EXCLUDED_DRUG"), ({"route": "IV"}, "ROUTE_NOT_SC")])
@pytest.mark.parametrize("give", [log, lambda *events, known: desk(*events, known=known).given], ids=["by array", "by case"])
def test_what_would_hold_a_line_informs_where_there_can_be_none(order, why, give):
    """Clearing it would make no line; of the same delivery under another order it holds."""
    unended = [event(0, "delivery_start"), event(60, "power_on"), *infusion(100, 20)]
    assert item(give(*unended, known=orders()), "NO_STOP")["severity"] == "hold"
    assert {(one["code"], one["severity"], one["minutes_at_stake"]) for one in give(*unended, known=orders(order)).rows("worklist")} == {
        ("NO_STOP", "inform", 80), (why, "inform", 80),
    }  # fmt: skip


def test_a_code_that_a_session_has_names_the_first_session_that_has_it_and_other_codes_the_first_of_all():
    known = orders({}, {"pump_id": A2})
    unended = [
        *infusion(200, 30),
        event(300, "delivery_start"),
        event(310, "power_on"),
        event(500, "delivery_start"),
        event(510, "power_on"),
    ]
    captures = [capture(numbered(infusion(0, 60)), pump=A1, anchor=anchor(6000)), capture(numbered(unended), pump=A2, anchor=anchor(6000))]
    given = kit.give(*captures, known=known)
    first = min(given.rows("sessions"), key=lambda row: row["start"])
    held = min((row for row in given.rows("sessions") if "NO_STOP" in row["flags"]), key=lambda row: row["start"])
    several, no_stop = item(given, "GAP_OVER_LIMIT"), item(given, "NO_STOP")
    assert (several["pump_id"], several["session_id"], when(several)) == (A1, first["session_id"], at(0))
    assert (no_stop["pump_id"], no_stop["session_id"], when(no_stop)) == (A2, held["session_id"], at(300))
    assert several["minutes_at_stake"] == no_stop["minutes_at_stake"] == 60 + 30 + 20


def test_a_delivery_without_a_stop_is_told_with_the_stop_that_its_volume_suggests():
    start = {"rate_ml_h": 2.0, "programmed_ml": 1.5}
    piece = [event(0, "delivery_start", **start), event(60, "delivery_start", rate_ml_h=2.0), event(80, "delivery_stop")]
    given = log(*piece)
    (begun,) = [row["event_id"] for row in given.rows("events") if row["pump_time"].isoformat() == at(0)]
    said = item(given, "NO_STOP")["suggestion"]
    assert said.startswith(SAYS["NO_STOP"][1])
    assert said.endswith(f" Its volume was given by then: pumpledger decide {begun} --stop {at(45)}Z --by YOU")
    printed = kit.give(capture(numbered(piece)))
    assert item(printed, "NO_STOP")["suggestion"].endswith(f"--stop {at(45)} --by YOU")
    assert item(log(event(0, "delivery_start"), *piece[1:]), "NO_STOP")["suggestion"] == SAYS["NO_STOP"][1]


def test_a_suggested_stop_is_told_to_the_millisecond_where_it_is_no_whole_second():
    start = event(0, "delivery_start", rate_ml_h=7.0, programmed_ml=1.0)
    assert f"--stop {at(0, 514)}.286Z --by YOU" in item(log(start, event(60, "power_on")), "NO_STOP")["suggestion"]


def test_each_session_without_a_stop_of_an_encounter_is_told_and_none_of_another():
    def unended(minutes: float) -> list[dict[str, Any]]:
        return [event(minutes, "delivery_start", rate_ml_h=2.0, programmed_ml=1.5), event(minutes + 60, "power_on")]

    given = log(*unended(0), *unended(300), *unended(1440))
    said = {one["service_date"].day: one["suggestion"] for one in given.rows("worklist") if one["code"] == "NO_STOP"}
    assert {day: text.count("pumpledger decide") for day, text in said.items()} == {2: 2, 3: 1}
    assert at(45) in said[2]
    assert at(345) in said[2]
    assert at(1485) in said[3]


def test_a_therapy_day_begins_with_the_first_session_that_it_has():
    known = orders({}, {"pump_id": A2}, rule_set="per-diem", drug="treprostinil")
    captures = [
        capture(numbered(infusion(300, 60)), pump=A1, anchor=anchor(6000)),
        capture(numbered([*infusion(0, 60), *infusion(1440, 60.5)]), pump=A2, anchor=anchor(6000)),
    ]
    given = kit.give(*captures, known=known)
    found = {one["service_date"].day: one for one in given.rows("worklist")}
    assert {day: (one["code"], one["severity"], one["minutes_at_stake"], when(one)) for day, one in found.items()} == {
        2: ("NO_CODE", "hold", 120, at(0)),
        3: ("NO_CODE", "hold", 60, at(1440)),
    }
    line = {row["service_date"].day: row["line_id"] for row in given.rows("lines")}
    assert {day: one["line_id"] for day, one in found.items()} == line


def test_every_item_of_a_therapy_day_names_its_first_session():
    unended = [event(300, "delivery_start"), event(310, "power_on")]
    given = log(*infusion(0, 60), *unended, known=orders(rule_set="per-diem", drug="treprostinil"))
    first = min(given.rows("sessions"), key=lambda row: row["start"])
    assert {(one["code"], one["session_id"], when(one)) for one in given.rows("worklist")} == {
        (code, first["session_id"], at(0)) for code in ("NO_CODE", "NO_STOP")
    }


def test_a_therapy_day_has_the_minutes_at_stake_that_lie_in_it():
    unknown = [event(MIDNIGHT - 30, "delivery_start"), event(MIDNIGHT + 20.75, "power_on")]
    given = log(*infusion(MIDNIGHT - 100, 10.5), *unknown, known=orders(rule_set="per-diem"))
    assert {one["service_date"].day: one["minutes_at_stake"] for one in given.rows("worklist") if one["code"] == "NO_STOP"} == {
        2: 40,
        3: 20,
    }


# --- about decisions that shape facts ---------------------------------------------------------------------------------------------


def test_what_a_decision_about_facts_answered_is_told_with_what_was_decided():
    unended = [event(-100, "delivery_start"), event(-80, "power_on")]
    one = desk(*unended, *new_setup(-5), *infusion(0, 40), event(41, "reservoir_change"), *infusion(45, 40))
    (setup,) = [row for row in one.given.rows("setups") if row["new_site"] == "no"]
    one.shape("confirm-site", setup["setup_id"])
    one.stop(-85, begins=-100)
    stopped, confirmed = item(one.given, "NO_STOP"), item(one.given, "POSSIBLE_SITE_CHANGE")
    assert stopped["message"] == f"{SAYS['NO_STOP'][0]} Decided by ana, 2026-04-01: stop {at(-85)}Z."
    assert confirmed["message"] == f"{SAYS['POSSIBLE_SITE_CHANGE'][0]} Decided by ana, 2026-04-01: confirm-site."
    assert [(one["severity"], one["state"], one["minutes_at_stake"]) for one in (stopped, confirmed)] == [
        ("hold", "decided", 95), ("inform", "decided", 95),
    ]  # fmt: skip


def test_a_decision_about_facts_that_lapsed_is_told_with_how_to_take_it_back():
    one = desk(event(0, "delivery_start"), event(60, "power_on"), *infusion(100, 20))
    decision = one.stop(45)
    one.captures = desk(event(0, "delivery_start"), event(61, "power_on"), *infusion(100, 20)).captures
    lapsed, open_ = item(one.given, "DECISION_LAPSED"), item(one.given, "NO_STOP")
    said = f" The decision {decision.decision_id[:10]} (ana, 2026-04-01: stop {at(45)}Z) no longer holds: what it was taken on has changed."
    assert (lapsed["message"], open_["message"]) == (SAYS["DECISION_LAPSED"][0] + said, SAYS["NO_STOP"][0] + said)
    assert lapsed["suggestion"].endswith(f" pumpledger decide undo {decision.decision_id} --by YOU")
    assert (lapsed["severity"], lapsed["state"], lapsed["order_id"], lapsed["service_date"]) == (
        "inform",
        "open",
        "ord-1",
        date(2026, 3, 2),
    )
    one.captures = desk(event(0, "other")).captures
    alone = item(one.given, "DECISION_LAPSED")
    assert (alone["patient_id"], alone["pump_id"], alone["order_id"], alone["minutes_at_stake"]) == ("pt-1", A1, None, 0)


# --- about pumps ------------------------------------------------------------------------------------------------------------------


def of_pump(given: kit.Given, known: Any) -> list[dict[str, Any]]:
    """The items of pumps."""
    return list(billing.pump_items(given.facts["sessions"], given.facts["doubts"], known).to_pylist())


def test_a_delivery_without_an_order_is_told_with_its_minutes():
    known = orders({"start": at(90) + "Z"})
    given = log(*infusion(0, 20.5), event(30, "delivery_start"), event(40.75, "power_on"), *infusion(200, 60), known=known)
    (one,) = of_pump(given, known)
    mine = next(row for row in given.rows("sessions") if row["order_id"] is None)
    assert {name: one[name] for name in ("code", "severity", "state", "pump_id", "patient_id", "order_id", "line_id", "service_date")} == {
        "code": "UNASSIGNED_PUMP", "severity": "inform", "state": "open", "pump_id": A1, "patient_id": None, "order_id": None,
        "line_id": None, "service_date": None,
    }  # fmt: skip
    assert (one["session_id"], when(one), one["minutes_at_stake"]) == (mine["session_id"], at(0), 31)


@pytest.mark.parametrize(("other", "patient"), [({}, "pt-1"), ({"patient_id": "pt-2", "order_id": "ord-2"}, None)])
def test_a_cut_in_a_log_is_of_the_patient_of_its_pump_if_there_is_only_one(other, patient):
    known = orders({"stop": at(500) + "Z"}, {"start": at(500) + "Z", **other})
    lines = numbered([*infusion(0, 60), event(100, "other"), event(101, "other"), event(110, "power_off")])
    first = capture(lines[:3], anchor=anchor(105))
    given = kit.give(first, capture([line for line in lines if line["seq"] != 4], anchor=anchor(600)), known=known)
    (one,) = of_pump(given, known)
    assert (one["code"], one["severity"], one["pump_id"], one["patient_id"], when(one)) == ("LOG_GAP", "hold", A1, patient, at(100))
    assert one["minutes_at_stake"] == 0


def test_a_doubt_about_a_session_is_no_item_of_its_pump():
    given = log(event(0, "delivery_start"), event(60, "power_on"))
    assert given.rows("doubts")
    assert of_pump(given, orders()) == []


SEEN = [
    ("never", None, 2 * DAY, {}, (2, 4)),
    ("up to the evening before", -12 * 60, 2 * DAY, {}, (2, 4)),
    ("up to the first instant", 0, 2 * DAY, {}, (3, 4)),
    ("in the evening", 600, 2 * DAY, {}, (3, 4)),
    ("the next date", 1440, 2 * DAY, {}, (4, 4)),
    ("the last date", 2880, 2 * DAY, {}, None),
    ("as far as any", 600, 600 * MINUTE, {}, None),
    ("and no pump further than that date", 0, 900 * MINUTE, {}, None),
    ("an order that ends", 0, 4 * DAY, {"stop": 1440}, (3, 3)),
    ("an order that ends at midnight", 0, 4 * DAY, {"stop": 960}, None),
    ("an order that begins with the horizon", None, 0, {}, (2, 2)),
    ("an order that begins later", None, -MINUTE, {}, None),
    ("before another order of it", -12 * 60, -MINUTE, {}, None),
    ("where that date is over", 0, 2 * DAY, {"tz": "Asia/Tokyo"}, (3, 4)),
    ("where it is the next date already", 8 * 60, 2 * DAY, {"tz": "Asia/Tokyo"}, (4, 4)),
]


@pytest.mark.parametrize(("says", "seen", "horizon", "order", "missing"), SEEN, ids=[one[0] for one in SEEN])
def test_an_order_in_force_on_dates_that_no_capture_of_its_pump_reaches_is_told(says, seen, horizon, order, missing):
    told = {name: at(value) + "Z" if name == "stop" else value for name, value in order.items()}
    known = orders({"start": at(0) + "Z", **told})
    reached = {A1: MORNING + seen * MINUTE} if seen is not None else {"canonical:other": MORNING + 9 * DAY}
    items = billing.not_synced(known.all, reached, MORNING + horizon).to_pylist()
    if missing is None:
        assert items == []
        return
    (one,) = items
    first, last = (date(2026, 3, day) for day in missing)
    assert one["message"].endswith(f" {first} to {last}.")
    assert {name: one[name] for name in ("code", "severity", "state", "patient_id", "pump_id", "payer", "order_id", "service_date")} == {
        "code": "NOT_SYNCED", "severity": "inform", "state": "open", "patient_id": "pt-1", "pump_id": A1, "payer": "payer-a",
        "order_id": "ord-1", "service_date": first,
    }  # fmt: skip


def test_nothing_is_expected_of_any_pump_where_none_was_seen():
    assert billing.not_synced(orders().all, {}, None).num_rows == 0


def test_every_row_of_an_order_has_an_item_of_its_own():
    known = orders({"stop": at(60) + "Z"}, {"start": at(60) + "Z"}, {"pump_id": A2})
    items = billing.not_synced(known.all, {}, MORNING + DAY).to_pylist()
    assert len({one["item_id"] for one in items}) == 3


# --- what a reviewer is done with ------------------------------------------------------------------------------------------------


def cleared(one: dict[str, Any]) -> decisions.Decision:
    """A reviewer is done with an item."""
    return decisions.decide(
        decided_at=datetime(2026, 4, 1, tzinfo=UTC), by="ana", action="clear", argument=one["code"], note="", named="",
        about=one["item_id"], pump_id=one["pump_id"], patient_id=None, encounter_id=None, session_ids=(),
        evidence_hash=decisions.item_evidence(one), undoes=None,
    )  # fmt: skip


def test_an_item_about_a_pump_is_done_with_until_it_says_something_else():
    known = orders({"start": at(90) + "Z"})
    before, after = (log(*infusion(0, minutes), *infusion(70, 5), known=known) for minutes in (20, 22))
    (one,) = of_pump(before, known)
    done = cleared(one)

    def states(given: kit.Given, *decided: decisions.Decision) -> list[str]:
        items = billing.pump_items(given.facts["sessions"], given.facts["doubts"], known, decided)
        return [row["state"] for row in items.to_pylist()]

    assert states(before) == ["open"]
    assert states(before, done) == ["decided"]
    assert states(after, done) == ["open"]
    late = billing.not_synced(orders().all, {}, MORNING)
    (missing,) = late.to_pylist()
    again = billing.not_synced(orders().all, {}, MORNING, [cleared(missing)]).to_pylist()
    assert [row["state"] for row in again] == ["decided"]
