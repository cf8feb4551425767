"""What lies at the borders of a rule: each case fails for a small change of the code that no other test noticed."""

from __future__ import annotations

import pytest

from tests import kit
from tests.kit import anchor, capture, event, infusion, log, numbered, orders

TWO_ORDERS = orders({"order_id": "ord-1"}, {"pump_id": "canonical:A2", "order_id": "ord-2", "drug": "treprostinil"})
MIDNIGHT = 16 * 60


def infusion_of(source: str, start: float, minutes: float) -> list[dict[str, object]]:
    """A delivery of another source."""
    return [event(start, "delivery_start", rate_ml_h=2.0, source=source), event(start + minutes, "delivery_stop", source=source)]


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


# --- codes of encounters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("minutes", "codes"),
    [
        (1, {"LE_15_MIN", "NEAR_THRESHOLD"}), (5, {"LE_15_MIN", "NEAR_THRESHOLD"}), (6, {"LE_15_MIN"}), (10, {"LE_15_MIN"}),
        (11, {"LE_15_MIN", "NEAR_THRESHOLD"}), (15, {"LE_15_MIN", "NEAR_THRESHOLD"}), (16, {"NEAR_THRESHOLD"}), (20, {"NEAR_THRESHOLD"}),
        (21, set()), (85, set()), (86, {"NEAR_THRESHOLD"}), (95, {"NEAR_THRESHOLD"}), (96, set()), (145, set()), (146, {"NEAR_THRESHOLD"}),
    ],
)  # fmt: skip
def test_minutes_near_another_number_of_units_are_told(minutes, codes):
    assert log(*infusion(0, minutes)).codes() == codes


@pytest.mark.parametrize(
    ("says", "events", "codes"),
    [
        ("nothing", infusion(0, 60), set()),
        ("several sessions", [*infusion(0, 30), *infusion(100, 30)], {"GAP_OVER_LIMIT"}),
        ("an alarm", [*infusion(0, 30)[:1], event(30, "alarm_raised", stops_delivery=True), *infusion(40, 30)], {"ALARM_PAUSE_EXCLUDED"}),
        ("KVO", [*infusion(0, 30), event(30, "delivery_start", source="kvo"), *infusion(40, 30)], {"KVO_EXCLUDED"}),
        ("KVO behind it", [*infusion(0, 60), event(60, "delivery_start", source="kvo"), event(90, "power_off")], set()),
        ("midnight", infusion(MIDNIGHT - 30, 60), {"CROSS_MIDNIGHT"}),
        ("up to before midnight", infusion(MIDNIGHT - 61, 60), set()),
        ("from midnight on", infusion(MIDNIGHT, 60), set()),
    ],
)
def test_what_is_worth_a_look_and_changes_nothing(says, events, codes):
    given = log(*events)
    assert (given.codes(), given.states()) == (codes, {"ready"}), says


@pytest.mark.parametrize(
    ("changed", "code"), [({"place_of_service": "12"}, "HOME_SETTING_USE_PER_DIEM"), ({"place_of_service": "11"}, None)]
)
def test_the_home_is_told(changed, code):
    assert log(*infusion(0, 60), known=orders(**changed)).codes() == ({code} if code else set())


def test_a_drug_that_is_excluded_and_a_route_that_is_another_are_told_apart_and_nothing_else_is():
    assert log(*infusion(0, 600), known=orders(drug="insulin")).codes() == {"EXCLUDED_DRUG"}
    assert log(*infusion(0, 600), known=orders(route="IV")).codes() == {"ROUTE_NOT_SC"}
    assert log(*infusion(0, 600), known=orders(route="IV", drug="insulin")).codes() == {"ROUTE_NOT_SC"}


@pytest.mark.parametrize(
    ("says", "events", "only"),
    [
        ("boluses", [event(0, "bolus_delivered", source="pca", duration_s=1800), event(40, "other")], True),
        ("deliveries of boluses", infusion_of("clinician", 0, 30), True),
        ("a basal one too", [*infusion_of("clinician", 0, 30), *infusion(40, 1)], False),
        ("a basal one of another session", [*infusion_of("loading", 0, 30), *infusion(200, 1)], False),
        ("what is unknown may be basal", [*infusion_of("pca", 0, 30), event(40, "delivery_start"), event(50, "power_on")], False),
        ("what is unknown is none", [*infusion_of("pca", 0, 30), event(40, "delivery_start", source="pca"), event(50, "power_on")], True),
    ],
)
def test_an_encounter_of_boluses_alone_is_held(says, events, only):
    demands = [event(-1, "demand_granted")]
    assert ("DEMAND_ONLY" in log(*demands, *events).reasons()) is only, says


def two(first: list[dict[str, object]], second: list[dict[str, object]], **order: str) -> list[tuple[int, str, list[str]]]:
    """Two pumps of one patient, the second of another order: date, order and reasons of every line."""
    known = orders({}, {"pump_id": "canonical:A2", "order_id": "ord-2", **order})
    captures = [
        capture(numbered(events), pump=pump, anchor=anchor(6000)) for pump, events in (("canonical:A1", first), ("canonical:A2", second))
    ]
    rows = kit.give(*captures, known=known).rows("lines")
    return sorted((row["service_date"].day, row["order_id"], row["reasons"]) for row in rows)


@pytest.mark.parametrize(
    ("says", "begins", "lasts", "held"),
    [
        ("that day", 300, 60, True),
        ("the day before", -600, 60, False),
        ("from the day before into it", -500, 30, True),
        ("into the next day", MIDNIGHT - 10, 30, True),
        ("the next day", MIDNIGHT, 60, False),
    ],
)
def test_an_intravenous_infusion_holds_the_dates_that_it_touches(says, begins, lasts, held):
    assert two(infusion(0, 60), infusion(begins, lasts), route="IV") == [(2, "ord-1", ["IV_SAME_ENCOUNTER"] if held else [])], says


@pytest.mark.parametrize(("begins", "held"), [(MIDNIGHT + 30, True), (MIDNIGHT + 120, False)])
@pytest.mark.parametrize("rules", ["cpt-9637x", "per-diem", "evidence-only"])
def test_an_intravenous_infusion_at_the_same_time_holds_an_encounter_that_began_the_day_before(begins, held, rules):
    found = two(infusion(MIDNIGHT - 60, 180), infusion(begins, 60), route="IV", rule_set=rules)
    assert {tuple(reasons) for _, order, reasons in found if order == "ord-1"} == {("IV_SAME_ENCOUNTER",) if held else ()}


@pytest.mark.parametrize(
    ("says", "first", "second", "order", "held"),
    [
        ("at once", infusion(0, 60), infusion(30, 60), {}, True),
        ("the same day", infusion(0, 60), infusion(60, 60), {}, True),
        ("less than a minute", infusion(0, 60), infusion(100, 0.5), {}, False),
        ("less than a minute, at once", infusion(0, 60), infusion(30, 0.5), {}, True),
        ("of another rule set", infusion(0, 60), infusion(30, 60), {"rule_set": "evidence-only"}, False),
        ("by the day", infusion(0, 60), infusion(30, 60), {"rule_set": "per-diem"}, False),
        ("of a drug without lines", infusion(0, 60), infusion(30, 60), {"drug": "insulin"}, False),
        ("the next day", infusion(0, 60), infusion(1440, 60), {}, False),
        ("of another patient", infusion(0, 60), infusion(30, 60), {"patient_id": "pt-2"}, False),
    ],
)
def test_a_second_order_holds_both_if_both_have_lines_or_infuse_at_once(says, first, second, order, held):
    found = {row[1]: row[2] for row in two(first, second, **order)}
    assert (found["ord-1"] == ["SECOND_ORDER_SAME_DAY"]) is held, says
    if "ord-2" in found:
        assert ("SECOND_ORDER_SAME_DAY" in found["ord-2"]) is held, says


@pytest.mark.parametrize(("begins", "minutes", "held"), [(30, {90}, True), (59.9, {119}, True), (60, {120}, False), (200, {120}, False)])
def test_two_pumps_of_one_order_hold_each_other_only_while_both_infuse(begins, minutes, held):
    known = orders({}, {"pump_id": "canonical:A2"})
    captures = [
        capture(numbered(infusion(at, 60)), pump=pump, anchor=anchor(6000)) for at, pump in ((0, "canonical:A1"), (begins, "canonical:A2"))
    ]
    given = kit.give(*captures, known=known)
    assert {line["minutes"] for line in given.rows("lines")} == minutes
    assert given.reasons() == ({"OVERLAPPING_PUMPS"} if held else set())


# --- how far a doubt reaches ------------------------------------------------------------------------------------------


def test_a_cut_holds_every_date_from_the_record_before_it_to_what_settles_it_and_no_other():
    known = orders({}, {"pump_id": "canonical:A2"}, {"pump_id": "canonical:A3", "order_id": "ord-3", "patient_id": "pt-3"})
    days = [one for day in range(6) for one in infusion(1440 * day, 30)]
    cut = numbered(
        [event(1440 - 100, "other"), event(1440 + 10, "other"), event(3 * 1440 + 10, "other"), event(3 * 1440 + 20, "power_off")]
    )
    captures = [
        capture([cut[0]], anchor=anchor(1440 - 90)), capture([*cut[:1], *cut[2:]], anchor=anchor(9000)),
        *(capture(numbered(days), pump=pump, anchor=anchor(9000)) for pump in ("canonical:A2", "canonical:A3")),
    ]  # fmt: skip
    lines = kit.give(*captures, known=known).rows("lines")
    held = {(line["order_id"], line["service_date"].day - 2): line["reasons"] for line in lines}
    assert held == {
        (order, day): ["LOG_GAP"] if order == "ord-1" and 1 <= day <= 3 else [] for order in ("ord-1", "ord-3") for day in range(6)
    }


def test_a_session_without_a_stop_holds_every_date_that_it_touches():
    known = orders({}, {"pump_id": "canonical:A2"})
    days = [one for day in range(5) for one in infusion(1440 * day, 30)]
    open_ = numbered([event(1440 + 60, "delivery_start", rate_ml_h=2.0), event(3 * 1440 + 60, "power_on")])
    given = kit.give(capture(open_, anchor=anchor(9000)), capture(numbered(days), pump="canonical:A2", anchor=anchor(9000)), known=known)
    held = {line["service_date"].day - 2: line["reasons"] for line in given.rows("lines")}
    assert held == {0: [], 1: ["NO_STOP"], 2: ["NO_STOP"], 3: ["NO_STOP"], 4: []}


# --- therapy days ------------------------------------------------------------------------------------------


def days(given: kit.Given) -> list[tuple[int, int, int, bool]]:
    """Of each therapy day: day, infusing and unknown minutes, whether it is continuous."""
    rows = sorted(given.rows("days"), key=lambda row: row["date"])
    return [(row["date"].day, row["infusing_s"] // 60, row["unknown_s"] // 60, row["continuous"]) for row in rows]


BOLUSES = [event(at, "bolus_delivered", source="pca", duration_s=60) for at in range(0, 1501, 50)]


@pytest.mark.parametrize(
    ("says", "events", "expected"),
    [
        ("one", infusion(0, 60), [(2, 60, 0, False)]),
        ("up to midnight", infusion(MIDNIGHT - 60, 60), [(2, 60, 0, False)]),
        ("over midnight", infusion(MIDNIGHT - 60, 90), [(2, 60, 0, False), (3, 30, 0, False)]),
        ("less than a day", infusion(0, 1439), [(2, 960, 0, False), (3, 479, 0, False)]),
        ("a day", infusion(0, 1440), [(2, 960, 0, True), (3, 480, 0, True)]),
        ("a day with a pause", [*infusion(0, 700), *infusion(740, 700)], [(2, 920, 0, True), (3, 480, 0, True)]),
        ("what is unknown", [event(0, "delivery_start"), event(60, "power_on")], [(2, 0, 60, False)]),
        ("a pause over midnight", [*infusion(MIDNIGHT - 60, 30), *infusion(MIDNIGHT + 10, 30)], [(2, 30, 0, False), (3, 30, 0, False)]),
        ("boluses are not continuous", BOLUSES, [(2, 20, 0, False), (3, 11, 0, False)]),
    ],
)  # fmt: skip
def test_therapy_days(says, events, expected):
    assert days(log(*events, known=orders(rule_set="per-diem"))) == expected, says


def test_a_therapy_day_is_one_of_the_zone_of_its_order_though_it_has_23_hours():
    known = orders(rule_set="per-diem", tz="Europe/Berlin")
    spring = 26 * 1440
    given = kit.give(capture(numbered(infusion(spring, 2400)), anchor=anchor(spring + 6000)), known=known)
    assert days(given) == [(28, 15 * 60, 0, True), (29, 23 * 60, 0, True), (30, 2 * 60, 0, True)]


def test_two_pumps_on_one_therapy_day_are_never_counted_twice():
    known = orders({"rule_set": "per-diem"}, {"rule_set": "per-diem", "pump_id": "canonical:A2"})
    given = kit.give(
        capture(numbered(infusion(0, 60)), anchor=anchor(6000)),
        capture(numbered(infusion(30, 60)), pump="canonical:A2", anchor=anchor(6000)),
        known=known,
    )
    assert days(given) == [(2, 90, 0, False)]
    (row,) = given.rows("days")
    assert (row["pump_ids"], row["flags"]) == (["canonical:A1", "canonical:A2"], [])


@pytest.mark.parametrize(
    ("says", "events", "states"),
    [
        ("less than a day", [event(0, "delivery_start"), event(1439, "other")], {2: "hold", 3: "hold"}),
        ("a second less than a day", [event(0, "delivery_start"), event(1440 - 1 / 60, "other")], {2: "hold", 3: "hold"}),
        ("a day", [event(0, "delivery_start"), event(1440, "other")], {2: "ready", 3: "hold"}),
        ("up to midnight", [event(-480, "delivery_start"), event(MIDNIGHT, "other")], {2: "hold"}),
        ("two days", [event(0, "delivery_start"), event(2880, "other")], {2: "ready", 3: "ready", 4: "hold"}),
    ],
)
def test_an_open_session_leaves_its_last_date_open_or_all_while_it_is_short(says, events, states):
    given = log(*events, known=orders(rule_set="per-diem"), end=2880)
    assert {line["service_date"].day: line["state"] for line in given.rows("lines")} == states, says


@pytest.mark.parametrize(("since", "states"), [(900, {2: "hold", 3: "ready"}), (MIDNIGHT + 200, {2: "ready", 3: "hold"})])
def test_an_open_session_of_no_time_leaves_its_date_open_too(since, states):
    """The pump was read right behind the start: how long it will run, and so the code of the date, is not known."""
    first = [*infusion(0, 60), *([*infusion(MIDNIGHT + 10, 60)] if since > MIDNIGHT else [])]
    given = log(*first, event(since, "delivery_start"), known=orders(rule_set="per-diem"), end=since + 1)
    assert {line["service_date"].day: line["state"] for line in given.rows("lines")} == {
        day: state for day, state in states.items() if day == 2 or since > MIDNIGHT
    }


def test_the_ledger_of_a_therapy_day_has_what_lies_in_it_alone():
    events = [*infusion(MIDNIGHT - 60, 30), *infusion(MIDNIGHT - 10, 40), event(MIDNIGHT + 30, "delivery_start", source="kvo")]
    given = log(*events, *infusion(MIDNIGHT + 40, 10), known=orders(rule_set="per-diem"))
    rows = {line["service_date"].day: line for line in given.rows("lines")}
    told = {day: [(entry["seconds"], entry["counted"], entry["why"]) for entry in row["ledger"]] for day, row in rows.items()}
    assert told == {
        2: [(1800, True, "infusing"), (1200, False, "paused"), (600, True, "infusing")],
        3: [(1800, True, "infusing"), (600, False, "kvo"), (600, True, "infusing")],
    }
