"""What holds an encounter, to the instant (docs/semantics.md §6), and when what was cleared is open again."""

from __future__ import annotations

from typing import Any

import pytest

from devices.contract import Capture
from tests import kit
from tests.kit import anchor, at, capture, event, infusion, log, numbered, orders
from tests.transforms.test_decisions import Desk, desk

A1, A2, A3 = "canonical:A1", "canonical:A2", "canonical:A3"
MIDNIGHT = 16 * 60
Events = list[dict[str, Any]]


def pumps(*logs: Events, known: Any, end: float = 9000) -> kit.Given:
    """What these logs give, of one pump each."""
    captures = [capture(numbered(events), pump=f"canonical:A{n}", anchor=anchor(end)) for n, events in enumerate(logs, 1)]
    return kit.give(*captures, known=known)


def held(given: kit.Given) -> dict[tuple[str, int], set[str]]:
    """What holds the lines of each order and day."""
    found: dict[tuple[str, int], set[str]] = {}
    for line in given.rows("lines"):
        found.setdefault((line["order_id"], line["service_date"].day), set()).update(line["reasons"])
    return found


# --- how far a doubt reaches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tz", ["UTC", "Asia/Kathmandu"])
@pytest.mark.parametrize(
    ("says", "since_s", "until_s", "days"),
    [
        ("up to the last second", -5, 86_395, {2, 3}),
        ("from midnight on", 0, 86_395, {3}),
        ("up to midnight", 5, 86_400, {3, 4}),
        ("within a date", 5, 86_395, {3}),
        ("three dates", -5, 86_400, {2, 3, 4}),
    ],
)
def test_a_cut_reaches_the_dates_of_the_records_beside_it_to_the_second(says, since_s, until_s, days, tz):
    midnight = (MIDNIGHT - (345 if tz != "UTC" else 0)) * 60
    seconds = [midnight + since_s, midnight + since_s + 1, midnight + until_s, midnight + until_s + 60]
    lines = numbered([event(one / 60, "other") for one in seconds[:3]] + [event(seconds[3] / 60, "other")])
    cut = [capture(lines[:1], anchor=anchor(seconds[0] / 60)), capture([lines[0], lines[2]], anchor=anchor(9000), pump=A1)]
    daily = capture(numbered([one for day in range(4) for one in infusion(1440 * day, 30)]), pump=A2, anchor=anchor(9000))
    given = kit.give(*cut, daily, known=orders({}, {"pump_id": A2}, tz=tz))
    assert {day for (_, day), reasons in held(given).items() if "LOG_GAP" in reasons} == days, says


@pytest.mark.parametrize(("ended", "days"), [(30, {3}), (60, {2, 3}), (89, {2, 3})])
def test_a_cut_reaches_the_date_on_which_a_session_began_that_may_go_on_behind_it(ended, days):
    """It ended properly after midnight, and the last record before the hole is within the gap limit of that; or it is not."""
    evening = [event(MIDNIGHT - 60, "delivery_start", rate_ml_h=2.0), event(MIDNIGHT + ended, "delivery_stop")]
    lines = numbered([*evening, event(MIDNIGHT + 120, "other"), event(MIDNIGHT + 125, "other"), *infusion(MIDNIGHT + 600, 60)])
    lines = [line for line in lines if line["seq"] != 4]
    given = kit.give(capture(lines[:3], anchor=anchor(MIDNIGHT + 120)), capture(lines, anchor=anchor(9000)), known=orders())
    assert {day for (_, day), reasons in held(given).items() if "LOG_GAP" in reasons} == days


def test_without_utc_before_it_a_doubt_reaches_back_without_bound_and_without_utc_behind_it_ahead():
    def given(*anchors: tuple[int, float]) -> set[int]:
        lines = numbered([event(1440, "other"), event(1441, "other"), *infusion(1450, 10), event(2900, "other")])
        cut = [line for line in lines if line["seq"] != 2]
        captures = [capture([line for line in cut if line["seq"] <= last], anchor=anchor(minute)) for last, minute in anchors]
        captures.append(capture(cut))
        daily = capture(numbered([one for day in range(4) for one in infusion(1440 * day + 600, 30)]), pump=A2, anchor=anchor(9000))
        known = orders({}, {"pump_id": A2})
        return {day for (_, day), reasons in held(kit.give(*captures, daily, known=known)).items() if "LOG_GAP" in reasons}

    assert given((1, 1440), (5, 2901)) == {3}
    assert given((5, 2901)) == {2, 3}
    assert given((1, 1440)) == {3, 4, 5}
    assert given() == {2, 3, 4, 5}


@pytest.mark.parametrize("source", ["pca", "clinician", "loading"])
def test_what_is_unknown_of_a_bolus_is_no_basal_infusion(source):
    bolus = [event(0, "delivery_start", rate_ml_h=2.0, source=source), event(30, "delivery_stop", source=source)]
    given = log(event(-1, "demand_granted"), *bolus, event(40, "delivery_start", source=source), event(50, "power_on"))
    assert "DEMAND_ONLY" in given.reasons()


def test_boluses_of_less_than_a_minute_are_not_told_to_be_all_there_was():
    assert "DEMAND_ONLY" not in log(event(0, "bolus_delivered", source="pca", duration_s=59), event(5, "other")).codes()
    assert "DEMAND_ONLY" in log(event(0, "bolus_delivered", source="pca", duration_s=60), event(5, "other")).codes()


# --- more than one order ------------------------------------------------------------------------------------------------------------


def test_an_intravenous_infusion_is_on_the_dates_of_the_order_that_it_holds():
    known = orders({"tz": "Asia/Tokyo"}, {"pump_id": A2, "order_id": "ord-2", "route": "IV", "tz": "America/New_York"})
    # In Tokyo the first ends its date at 15:00 UTC, seven hours from the start of these tests.
    assert held(pumps(infusion(0, 60), infusion(419, 10), known=known))[("ord-1", 2)] == {"IV_SAME_ENCOUNTER"}
    assert held(pumps(infusion(0, 60), infusion(420, 60), known=known))[("ord-1", 2)] == set()
    assert held(pumps(infusion(430, 60), infusion(400, 19), known=known))[("ord-1", 3)] == set()
    assert held(pumps(infusion(430, 60), infusion(400, 20), known=known))[("ord-1", 3)] == {"IV_SAME_ENCOUNTER"}


def test_an_intravenous_infusion_holds_its_patient_alone_and_no_line_of_another_route():
    known = orders({}, {"pump_id": A2, "order_id": "ord-2", "route": "IV"}, {"pump_id": A3, "order_id": "ord-3", "patient_id": "pt-3"})
    given = pumps(infusion(0, 60), infusion(0, 60), infusion(0, 60), known=known)
    assert held(given) == {("ord-1", 2): {"IV_SAME_ENCOUNTER"}, ("ord-3", 2): set()}
    assert [item["order_id"] for item in given.rows("worklist") if item["code"] == "IV_SAME_ENCOUNTER"] == ["ord-1"]


def test_of_three_orders_those_on_one_date_hold_each_other():
    known = orders(*({"pump_id": f"canonical:A{n}", "order_id": f"ord-{n}"} for n in (1, 2, 3)))
    given = pumps(infusion(0, 60), infusion(100, 60), infusion(1440, 60), known=known)
    second = {"SECOND_ORDER_SAME_DAY"}
    assert held(given) == {("ord-1", 2): second, ("ord-2", 2): second, ("ord-3", 3): set()}


def test_of_three_pumps_only_those_that_infuse_at_once_hold_each_other():
    known = orders(*({"pump_id": f"canonical:A{n}"} for n in (1, 2, 3)))
    days = [*infusion(1440, 30)], [*infusion(1440 + 20, 30)], [*infusion(1440 + 60, 30)]
    given = pumps([*infusion(0, 60), *days[0]], [*infusion(60, 60), *days[1]], [*infusion(120, 60), *days[2]], known=known)
    assert held(given) == {("ord-1", 2): set(), ("ord-1", 3): {"OVERLAPPING_PUMPS"}}


def test_two_pumps_hold_the_encounters_of_both_if_these_are_of_two_dates():
    known = orders({}, {"pump_id": A2})
    given = pumps(infusion(MIDNIGHT - 60, 120), infusion(MIDNIGHT + 30, 60), known=known)
    assert held(given) == {("ord-1", 2): {"OVERLAPPING_PUMPS"}, ("ord-1", 3): {"OVERLAPPING_PUMPS"}}


def test_unknown_time_of_another_pump_overlaps_nothing():
    unknown = [event(10, "delivery_start"), event(40, "power_on")]
    given = pumps(infusion(0, 60), unknown, known=orders({}, {"pump_id": A2}))
    assert held(given) == {("ord-1", 2): {"NO_STOP"}}


def test_a_long_piece_overlaps_what_begins_in_it_whatever_ended_meanwhile():
    known = orders({}, {"pump_id": A2}, {"pump_id": A3, "order_id": "ord-3"})
    given = pumps(infusion(MIDNIGHT - 100, 400), infusion(MIDNIGHT - 90, 10), infusion(MIDNIGHT + 100, 10), known=known)
    assert held(given) == {("ord-1", 2): {"OVERLAPPING_PUMPS", "SECOND_ORDER_SAME_DAY"}, ("ord-3", 3): {"SECOND_ORDER_SAME_DAY"}}


def test_pumps_that_infuse_at_once_of_an_order_billed_by_the_day_hold_nobody():
    known = orders(
        {"rule_set": "per-diem"}, {"rule_set": "per-diem", "pump_id": A2}, {"pump_id": A3, "order_id": "ord-3", "patient_id": "pt-3"}
    )
    given = pumps(infusion(0, 60), infusion(30, 60), infusion(0, 60), known=known)
    assert held(given) == {("ord-1", 2): set(), ("ord-3", 2): set()}
    assert given.codes() == set()


# --- what was cleared, and what opens it again --------------------------------------------------------------------------------------


def both(one: Events, other: Events, third: Events | None = None, **order: str) -> Desk:
    """A desk with two pumps, the second of another order if it is named, and maybe a third of one of its own."""
    known = orders({}, {"pump_id": A2, **order}, {"pump_id": A3, "order_id": "ord-3"})
    pumps = ((one, A1), (other, A2), *([(third, A3)] if third is not None else []))
    return Desk([capture(numbered(events), pump=pump, anchor=anchor(9000)) for events, pump in pumps], known)


def gap(*events: dict[str, Any], without: int, and_without: int = 0) -> Desk:
    """A desk with a log that lacks a record or two."""
    lines = [line for line in numbered(events) if line["seq"] not in (without, and_without)]
    return Desk([capture(lines, anchor=anchor(9000))])


IV, OTHER = {"order_id": "ord-2", "route": "IV"}, {"order_id": "ord-2"}
DAY = 1440
CUT = [*infusion(0, 60), event(62, "other"), event(64, "other"), event(70, "power_off"), event(80, "other")]

CLEARED: dict[str, tuple[str, Desk, Desk, bool]] = {
    "minutes within its own evidence": ("OVER_8H", desk(*infusion(0, 500)), desk(*infusion(0, 501)), False),
    "further units": ("OVER_UNIT_CAP", desk(*infusion(0, 580)), desk(*infusion(0, 640)), False),
    "nothing": ("OVER_8H", desk(*infusion(0, 500)), desk(*infusion(0, 500), *infusion(DAY, 500)), True),
    "another intravenous infusion": (
        "IV_SAME_ENCOUNTER",
        both(infusion(0, 60), infusion(100, 60), **IV),
        both(infusion(0, 60), [*infusion(100, 60), *infusion(300, 60)], **IV),
        False,
    ),
    "an intravenous infusion on another date": (
        "IV_SAME_ENCOUNTER",
        both(infusion(0, 60), infusion(100, 60), **IV),
        both(infusion(0, 60), [*infusion(100, 60), *infusion(DAY, 60)], **IV),
        True,
    ),
    "a longer intravenous infusion": (
        "IV_SAME_ENCOUNTER",
        both(infusion(0, 60), infusion(100, 60), **IV),
        both(infusion(0, 60), infusion(100, 61), **IV),
        False,
    ),
    "more of a third order, beside an intravenous infusion": (
        "IV_SAME_ENCOUNTER",
        both(infusion(0, 60), infusion(100, 60), infusion(0, 60), **IV),
        both(infusion(0, 60), infusion(100, 60), infusion(0, 61), **IV),
        True,
    ),
    "another infusion of the other pump at once, of another date": (
        "OVERLAPPING_PUMPS",
        both(infusion(MIDNIGHT - 60, 200), infusion(MIDNIGHT + 10, 10)),
        both(infusion(MIDNIGHT - 60, 200), [*infusion(MIDNIGHT + 10, 10), *infusion(MIDNIGHT + 90, 10)]),
        False,
    ),
    "another infusion of the other pump, not at once": (
        "OVERLAPPING_PUMPS",
        both(infusion(MIDNIGHT - 60, 200), infusion(MIDNIGHT + 10, 10)),
        both(infusion(MIDNIGHT - 60, 200), [*infusion(MIDNIGHT + 10, 10), *infusion(MIDNIGHT + 300, 10)]),
        True,
    ),
    "more of the other order that day": (
        "SECOND_ORDER_SAME_DAY",
        both(infusion(0, 60), infusion(100, 60), **OTHER),
        both(infusion(0, 60), infusion(100, 70), **OTHER),
        False,
    ),
    "more of the other order at once, of another date": (
        "SECOND_ORDER_SAME_DAY",
        both(infusion(MIDNIGHT - 60, 120), infusion(MIDNIGHT + 10, 10), **OTHER),
        both(infusion(MIDNIGHT - 60, 120), infusion(MIDNIGHT + 10, 11), **OTHER),
        False,
    ),
    "more of the other order on another date": (
        "SECOND_ORDER_SAME_DAY",
        both(infusion(0, 60), infusion(100, 60), **OTHER),
        both(infusion(0, 60), [*infusion(100, 60), *infusion(DAY, 60)], **OTHER),
        True,
    ),
    "another cut on that date": (
        "LOG_GAP",
        gap(*CUT, without=3),
        gap(*CUT, event(300, "other"), event(310, "power_off"), event(311, "other"), without=3, and_without=7),
        False,
    ),
}


@pytest.mark.parametrize("says", CLEARED)
def test_what_was_cleared_stays_so_as_long_as_what_made_it_hold_is_as_it_was(says):
    code, before, after, stands = CLEARED[says]
    one = Desk(before.captures, before.known)
    line = next(line for line in one.lines() if code in line["reasons"] and line["order_id"] == "ord-1")
    one.clear(code, line["encounter_id"])
    assert code not in next(again for again in one.lines() if again["line_id"] == line["line_id"])["reasons"]
    one.captures = after.captures
    again = next(again for again in one.lines() if again["line_id"] == line["line_id"])
    assert (code not in again["reasons"]) is stands
    items = [item for item in one.items(code) if item["line_id"] is not None and item["order_id"] == "ord-1"]
    mine = next(item for item in items if item["service_date"] == line["service_date"])
    assert mine["state"] == ("decided" if stands else "open")
    assert ("no longer holds" in mine["message"]) is not stands


def test_a_cleared_therapy_day_stays_so_whatever_reaches_another():
    def cut(day: int, seq: int) -> list[Capture]:
        """An hour, and a cut that a halt settles, of a date."""
        begin = day * DAY
        lines = [*infusion(begin, 60), event(begin + 90, "other"), event(begin + 91, "other"), event(begin + 95, "power_off")]
        lines = [{"seq": seq + n, **line} for n, line in enumerate(lines)]
        return [capture(lines[:3], anchor=anchor(begin + 90)), capture([*lines[:3], lines[4]], anchor=anchor(begin + 96))]

    first = capture(numbered(infusion(0, 60)), anchor=anchor(61))
    one = Desk([first, *cut(1, 3)], orders(rule_set="per-diem"))
    lines = {line["service_date"].day: line for line in one.lines()}
    assert {day: line["reasons"] for day, line in lines.items()} == {2: [], 3: ["LOG_GAP"]}
    one.clear("LOG_GAP", lines[3]["encounter_id"])
    assert {line["state"] for line in one.lines()} == {"ready"}
    one.captures += cut(2, 8)
    assert {line["service_date"].day: line["reasons"] for line in one.lines()} == {2: [], 3: [], 4: ["LOG_GAP"]}


def test_of_a_session_on_its_date_the_cleared_code_names_who_cleared_it():
    one = desk(*infusion(0, 500))
    decision = one.clear("OVER_8H")
    (found,) = one.items("OVER_8H")
    assert (found["state"], found["message"].endswith(f" Cleared by ana, {decision.decided_at:%Y-%m-%d}.")) == ("decided", True)
    assert at(0) == found["time"].replace(tzinfo=None).isoformat()
