"""What the rows of sessions and doubts say of themselves: evidence, seconds, local times, and the deliveries that have no stop."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.kit import Given, anchor, assembled, at, billed, capture, event, give, infusion, log, new_setup, numbered, orders, saying
from transforms.block import Block
from transforms.orders import Orders
from transforms.sessions import FactPolicy, derive_all

START, STOP = "delivery_start", "delivery_stop"
END = 12_000


def hashes(lines: list[dict[str, Any]], known: Orders | None = None, **clock: Any) -> dict[str, str]:
    """The evidence of each session, by its id."""
    given = give(capture(lines, anchor=anchor(END, **clock)), known=known)
    return {row["session_id"]: row["evidence_hash"] for row in given.rows("sessions")}


def rests_on(events: list[dict[str, Any]]) -> list[set[int]]:
    """Of each session, in order, the numbers of the records whose bytes its evidence changes with."""
    lines = numbered(events)
    before = hashes(lines)
    given = give(capture(lines, anchor=anchor(END)))
    found: dict[str, set[int]] = {row["session_id"]: set() for row in sorted(given.rows("sessions"), key=lambda row: row["start"])}
    for n, line in enumerate(lines):
        after = hashes([*lines[:n], {**line, "said": "otherwise"}, *lines[n + 1 :]])
        assert set(after) == set(before)
        for session, mine in found.items():
            if after[session] != before[session]:
                mine.add(line["seq"])
    return list(found.values())


def test_the_evidence_of_a_session_is_the_bytes_of_its_records_and_of_its_set_ups_and_of_no_other():
    events = [
        event(-30, "other"), *new_setup(-20), event(-10, "other"), *infusion(0, 20), event(25, "other"), event(26, "reservoir_change"),
        *infusion(30, 20), event(55, "other"), *new_setup(100), event(150, "other"), event(200, START), event(210, "priming_started"),
        event(220, STOP, source="primary"), event(230, "reservoir_change"),
    ]  # fmt: skip
    assert rests_on(events) == [{2, 3, 4, *range(6, 12)}, {13, 14, 15, 17, 18, 19}]


def test_records_that_stand_out_of_order_are_evidence_of_the_session_that_their_instants_lie_in():
    late = [event(5, "bolus_delivered", source="pca", volume_ml=1), event(190, "bolus_delivered", source="pca", volume_ml=1)]
    events = [
        event(0, START),
        event(200, STOP, source="primary"),
        event(210, "other"),
        *late,
        event(215, "reservoir_change"),
        *infusion(300, 10),
    ]
    assert rests_on(events) == [{1, 2, 4, 5}, {6, 7, 8}]
    before = [
        event(0, "reservoir_change"),
        event(60, "other"),
        event(61, "bolus_delivered", volume_ml=1),
        event(59, "bolus_delivered", volume_ml=1),
    ]
    assert rests_on([*before, *infusion(130, 10)]) == [{1, 2, 3, 4}, {5, 6}]


def test_a_log_of_one_session_and_of_none():
    assert rests_on(infusion(0, 20)) == [{1, 2}]
    assert rests_on([event(0, START)]) == [{1}]
    assert rests_on([event(0, "other"), *new_setup(5)]) == []


def test_evidence_changes_with_the_terms_of_the_order_the_start_and_the_codes_of_time_and_with_nothing_else():
    lines = numbered([*infusion(0, 20), event(100, "other")])
    (before,) = hashes(lines).values()
    for changed in ({"payer": "payer-b"}, {"drug": "treprostinil"}, {"route": "IV"}, {"stop": at(END) + "Z"}):
        (after,) = hashes(lines, orders(**changed)).values()
        assert after != before
    assert list(hashes(lines, orders({}, {"pump_id": "canonical:A9", "order_id": "ord-9"})).values()) == [before]
    assert list(hashes(lines, utc_minutes=END + 1).values()) != [before]
    assert list(hashes([*lines, {"seq": 4, **event(200, "other")}]).values()) == [before]
    (held,) = hashes([lines[0], {"seq": 3, **event(100, "other")}]).values()
    (open_,) = hashes([lines[0], {"seq": 2, **event(100, "other")}]).values()
    assert len({before, held, open_}) == 3
    assert list(hashes(lines, orders(start="2027-01-01T00:00:00Z")).values()) != [before]


# --- columns ------------------------------------------------------------------------------------------


def test_the_columns_of_a_session_in_a_zone_of_its_own():
    known = orders({"order_id": "ord-0", "stop": at(-1) + "Z", "tz": "America/New_York"}, {"start": at(-1) + "Z", "tz": "Asia/Kathmandu"})
    given = give(capture(numbered(infusion(0, 90)), anchor=anchor(95, utc_minutes=155)), known=known)
    row = given.session
    assert (row["start"], row["stop"]) == (datetime(2026, 3, 2, 9, tzinfo=UTC), datetime(2026, 3, 2, 10, 30, tzinfo=UTC))
    assert (row["start_local"], row["stop_local"]) == (datetime(2026, 3, 2, 14, 45), datetime(2026, 3, 2, 16, 15))
    assert row["printed_start"].isoformat() == at(0)
    assert [row[name] for name in ("patient_id", "order_id", "payer", "drug", "route")] == [
        "pt-1",
        "ord-1",
        "payer-a",
        "hydromorphone",
        "SC",
    ]


def test_two_zones_on_one_pump():
    known = orders({"stop": at(60) + "Z", "tz": "America/New_York"}, {"order_id": "ord-2", "start": at(60) + "Z", "tz": "Asia/Kathmandu"})
    rows = sorted(log(*infusion(0, 30), *infusion(70, 30), known=known).rows("sessions"), key=lambda row: row["start"])
    assert [row["start_local"].isoformat() for row in rows] == ["2026-03-02T03:00:00", "2026-03-02T14:55:00"]
    nobody = log(*infusion(0, 30), known=orders(start="2027-01-01T00:00:00Z")).session
    assert (nobody["start_local"], nobody["stop_local"], nobody["payer"]) == (None, None, None)


def test_what_a_pump_printed_at_the_start_is_reckoned_from_the_record_that_it_starts_with():
    bolus = event(10, "bolus_delivered", at="end", volume_ml=1, duration_s=150)
    row = log(event(0, "clock_change", old=at(0), new=at(5)), bolus).session
    assert row["printed_start"].isoformat() == at(7.5)


def test_seconds_are_cut_and_the_rest_is_a_pause():
    def later(minutes: float, ms: int, kind: str, **fields: Any) -> dict[str, Any]:
        return {"pump_time": f"{at(minutes)}.{ms:03}", "kind": kind, **fields}

    row = log(
        later(0, 0, START), later(1, 900, "alarm_raised", stops_delivery=True), later(2, 800, START), later(3, 800, STOP),
        later(4, 700, START), later(5, 700, STOP),
    ).session  # fmt: skip
    assert {name: row[f"{name}_s"] for name in ("span", "infusing", "alarm", "paused")} == {
        "span": 300, "infusing": 180, "alarm": 59, "paused": 61,
    }  # fmt: skip


# --- deliveries without a stop ------------------------------------------------------------------------------------------


def pieces(given: Given) -> list[dict[str, Any]]:
    """The deliveries without a stop that the doubts tell, in order."""
    return sorted((piece for row in given.rows("doubts") for piece in row["pieces"]), key=lambda piece: (piece["from_ms"], piece["to_ms"]))


def test_each_delivery_without_a_stop_is_told_with_its_ends():
    given = log(event(0, "other"), event(10, START), event(30, START, source="basal"), event(50, "power_on"), *infusion(60, 5))
    seq = {row["event_id"]: row["seq"] for row in given.rows("events")}
    assert [
        (
            seq[one["event_id"]],
            seq[one["last_event"]],
            one["from_ms"],
            one["to_ms"],
            one["from_utc"].isoformat(),
            one["printed"].isoformat(),
        )
        for one in pieces(given)
    ] == [
        (2, 4, 600_000, 3_000_000, "2026-03-02T08:10:00+00:00", at(10)),
        (3, 4, 1_800_000, 3_000_000, "2026-03-02T08:30:00+00:00", at(30)),
    ]
    assert {(row["code"], bool(row["pieces"])) for row in given.rows("doubts")} == {("NO_STOP", True)}
    both = log(event(0, "other"), event(5, STOP, source="basal"), event(10, START), event(50, "power_on"), *infusion(60, 5))
    assert {(row["code"], len(row["pieces"])) for row in both.rows("doubts")} == {("NO_STOP", 1), ("NO_START", 0)}


def test_a_delivery_without_a_stop_and_without_utc_tells_what_was_printed():
    (one,) = pieces(give(capture(numbered([event(10, START), event(50, "power_on")]))))
    assert (one["from_utc"], one["printed"].isoformat(), one["to_ms"]) == (None, at(10), 2_400_000)
    bare = assembled([capture(numbered([event(10, START), event(50, "power_on")]))])
    (one,) = pieces(billed([saying(bare, pump_time=[None, None], native_ms=[0, 1000])], orders()))
    assert (one["from_utc"], one["printed"], one["to_ms"]) == (None, None, 1000)


@pytest.mark.parametrize(
    ("says", "fields", "between", "likely_min"),
    [
        ("volume and rate", {"programmed_ml": 1.5, "rate_ml_h": 2.0}, [], 45),
        ("dose and rate of dose", {"programmed_dose": 10.0, "rate_dose_h": 20.0}, [], 30),
        ("the volume comes first", {"programmed_ml": 1.5, "rate_ml_h": 2.0, "programmed_dose": 10.0, "rate_dose_h": 20.0}, [], 45),
        ("volume and rate of dose do not go together", {"programmed_ml": 1.5, "rate_dose_h": 2.0}, [], None),
        ("exactly as long as it lasted", {"programmed_ml": 2.0, "rate_ml_h": 2.0}, [], 60),
        ("longer than it lasted", {"programmed_ml": 2.01, "rate_ml_h": 2.0}, [], None),
        ("no volume", {"rate_ml_h": 2.0}, [], None),
        ("no rate", {"programmed_ml": 1.5}, [], None),
        ("nothing programmed", {"programmed_ml": 0.0, "rate_ml_h": 2.0}, [], None),
        ("another rate in between", {"programmed_ml": 1.5, "rate_ml_h": 2.0}, [event(30, "rate_change", rate_ml_h=3.0)], None),
        ("a limit in between", {"programmed_ml": 1.5, "rate_ml_h": 2.0}, [event(59, "limit_reached")], None),
        ("another record in between", {"programmed_ml": 1.5, "rate_ml_h": 2.0}, [event(30, "settings_change")], 45),
    ],
)
def test_how_long_a_delivery_without_a_stop_likely_lasted(says, fields, between, likely_min):
    given = log(event(0, START, **fields), *between, event(60, START, rate_ml_h=2.0), event(80, STOP))
    (one,) = pieces(given)
    assert one["likely_ms"] == (None if likely_min is None else likely_min * 60_000), says


def test_no_length_is_likely_of_a_delivery_that_goes_on_behind_a_rate_of_0_or_a_limit():
    programmed = event(0, START, programmed_ml=1.0, rate_ml_h=2.0)
    behind_zero = log(programmed, event(5, "rate_change", rate_ml_h=0), event(10, "rate_change", rate_ml_h=2.0), event(60, "power_on"))
    assert [one["likely_ms"] for one in pieces(behind_zero)] == [None]
    behind_limit = log(programmed, event(5, "limit_reached"), event(10, "limit_cleared"), event(60, "power_on"), *infusion(61, 5))
    assert [(one["from_ms"], one["likely_ms"]) for one in pieces(behind_limit)] == [(600_000, None)]


def test_rates_before_and_at_the_ends_of_a_delivery_do_not_speak_against_its_length():
    start = event(10, START, programmed_ml=1.0, rate_ml_h=2.0)
    given = log(
        event(0, "other"),
        event(5, "rate_change", rate_ml_h=3.0),
        start,
        event(60, START),
        event(61, "rate_change", rate_ml_h=1.0),
        event(70, STOP),
    )
    assert [one["likely_ms"] for one in pieces(given)] == [1_800_000]


# --- doubts: from when to when ------------------------------------------------------------------------------------------


def test_a_doubt_about_a_session_without_utc_reaches_from_the_last_time_known_to_the_next():
    lines = numbered([
        *infusion(0, 10), event(15, "data_gap"), *infusion(100, 10), event(120, "data_gap"), event(200, "other"), *infusion(300, 10),
    ])  # fmt: skip
    given = give(capture(lines[:2], anchor=anchor(12)), capture(lines, anchor=anchor(320)))
    (row,) = [row for row in given.rows("doubts") if row["code"] == "CLOCK_UNCERTAIN"]
    assert (row["from_utc"].isoformat(), row["to_utc"].isoformat()) == ("2026-03-02T08:10:00+00:00", "2026-03-02T11:20:00+00:00")
    assert (row["order_id"], row["patient_id"], row["pieces"]) == ("ord-1", "pt-1", [])
    alone = give(capture(lines[:2]))
    (row,) = alone.rows("doubts")
    assert (row["code"], row["from_utc"], row["to_utc"]) == ("CLOCK_UNCERTAIN", None, None)


def test_no_time_of_another_pump_bounds_a_doubt():
    names = ("canonical:A1", "canonical:B2", "canonical:C3", "canonical:D4")
    one = [*infusion(0, 10), event(15, "data_gap")]
    ends = [anchor(20, after_seq=2), None, None, anchor(60, after_seq=2)]
    logs = [assembled([capture(numbered(one), pump=pump, anchor=end)]) for pump, end in zip(names, ends, strict=True)]
    rows = derive_all(Block.of(names, logs), orders(*({"pump_id": pump} for pump in names)), FactPolicy()).doubts.to_pylist()
    assert {(row["pump_id"], row["code"], row["from_utc"], row["to_utc"]) for row in rows if row["pump_id"] in names[1:3]} == {
        (pump, code, None, None) for pump in names[1:3] for code in ("CLOCK_UNCERTAIN", "LOG_GAP")
    }
    told = [(row["pump_id"], row["code"], row["from_utc"].isoformat(), row["to_utc"]) for row in rows if row["pump_id"] not in names[1:3]]
    assert told == [(pump, "LOG_GAP", "2026-03-02T08:10:00+00:00", None) for pump in (names[0], names[3])]


def test_a_doubt_says_what_it_is_about():
    events = [
        event(0, START),
        event(10, "power_on"),
        event(200, "data_gap"),
        *infusion(300, 10),
        event(320, "other"),
        event(400, "data_gap"),
    ]
    given = give(capture(numbered(events), anchor=anchor(330, after_seq=6)), known=orders(start=at(100) + "Z"))
    seq = {row["event_id"]: row["seq"] for row in given.rows("events")}
    rows = given.rows("doubts")
    first, second = sorted(given.rows("sessions"), key=lambda row: row["printed_start"])
    assert {(row["code"], seq[row["event_id"]], row["session_id"], row["order_id"], row["patient_id"]) for row in rows} == {
        ("NO_STOP", 1, first["session_id"], None, None), ("CLOCK_UNCERTAIN", 1, first["session_id"], None, None),
        ("LOG_GAP", 4, None, None, None), ("LOG_GAP", 7, None, None, None), ("LOG_GAP", 4, second["session_id"], "ord-1", "pt-1"),
    }  # fmt: skip
    assert len({row["doubt_id"] for row in rows}) == 5
    assert {row["pump_id"] for row in rows} == {"canonical:A1"}
    until = {seq[row["event_id"]]: (row["from_utc"], row["to_utc"]) for row in rows if row["session_id"] is None}
    assert until[4][0] is None
    assert until[4][1].isoformat() == "2026-03-02T13:00:00+00:00"
    assert (until[7][0].isoformat(), until[7][1]) == ("2026-03-02T13:20:00+00:00", None)


def test_a_session_and_a_set_up_of_no_order_say_so():
    given = log(*new_setup(-5), *infusion(0, 10), *new_setup(200), *infusion(205, 10), known=orders(start=at(100) + "Z"))
    for name in ("sessions", "setups"):
        rows = sorted(given.rows(name), key=lambda row: row["session_id"] is None or row["order_id"] is not None)
        assert [(row["order_id"], row["patient_id"]) for row in rows] == [(None, None), ("ord-1", "pt-1")]
    told = sorted(given.rows("sessions"), key=lambda row: row["start"])
    assert {told[0][name] for name in ("payer", "drug", "route", "start_local", "stop_local")} == {None}
    assert [row["setups"] for row in told] == [1, 1]
    assert [row["new_site"] for row in given.rows("setups")] == ["yes", "yes"]


def test_of_orders_that_follow_each_other_a_piece_is_of_the_one_in_force_at_its_start_to_the_instant():
    def of(start: float, *, end: float | None = 1000) -> str | None:
        known = orders({"stop": at(100) + "Z"}, {"start": at(100) + "Z", "stop": at(200) + "Z", "order_id": "ord-2"})
        given = give(capture(numbered(infusion(start, 10)), anchor=None if end is None else anchor(end)), known=known)
        found: str | None = given.session["order_id"]
        return found

    for end in (1000, None):
        assert [of(start, end=end) for start in (99.99, 100, 199.99, 200)] == ["ord-1", "ord-2", "ord-2", None]
    later = orders(start=at(100) + "Z")
    assert [log(*infusion(start, 10), known=later).session["order_id"] for start in (99.99, 100)] == [None, "ord-1"]
