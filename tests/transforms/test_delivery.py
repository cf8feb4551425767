# ruff: noqa: E501
"""Delivery (docs/semantics.md §4): what moves a source, what a bolus adds, what flowed, and which records show each second."""

from __future__ import annotations

from typing import Any

import pytest

from tests import kit
from tests.kit import Given, anchor, assembled, at, billed, capture, event, give, infusion, numbered, orders, saying

START, STOP, RATE, BOLUS = "delivery_start", "delivery_stop", "rate_change", "bolus_delivered"
END = 6000


def log(*events: dict[str, Any], end: float | None = END, **columns: dict[int, Any]) -> Given:
    """What a log gives; `columns` are what canonical lines cannot say, by the number of the record."""
    one = assembled([capture(numbered(events), anchor=anchor(end) if end is not None else None)])
    numbers = one.events["seq"].to_pylist()
    said = {
        name: [values.get(n, was) for n, was in zip(numbers, one.events[name].to_pylist(), strict=True)] for name, values in columns.items()
    }
    return billed([saying(one, **said)], orders())


def laid_out(given: Given) -> list[tuple[Any, ...]]:
    """The intervals of all sessions in order: from, to (elapsed minutes), class, source, and the numbers of the records that show it."""
    seq = {row["event_id"]: row["seq"] for row in given.rows("events")} | {None: None}
    rows = sorted(given.rows("intervals"), key=lambda row: (row["from_ms"], row["to_ms"]))
    return [
        (row["from_ms"] / 60_000, row["to_ms"] / 60_000, row["class"], row["source"], seq[row["first_event"]], seq[row["last_event"]])
        for row in rows
    ]


def told(given: Given) -> str:
    """The same in short, with what is flagged."""
    flags = sorted({flag for row in given.rows("sessions") for flag in row["flags"]})
    return ", ".join([*(f"{what} {low:g}-{high:g}" for low, high, what, *_ in laid_out(given)), *flags])


def start(minute: float, rate: float | None = 2.0, **fields: Any) -> dict[str, Any]:
    return event(minute, START, **({"rate_ml_h": rate} if rate is not None else {}), **fields)


def stop(minute: float, source: str | None = "primary", **fields: Any) -> dict[str, Any]:
    return event(minute, STOP, **({"source": source} if source else {}), **fields)


def rate(minute: float, to: float | None, **fields: Any) -> dict[str, Any]:
    return event(minute, RATE, **({"rate_ml_h": to} if to is not None else {}), **fields)


# --- the states of a source -----------------------------------------------------------------------------------------------------------

STATES = {
    "unseen": [event(0, "other")],
    "delivering": [start(0)],
    "zero": [start(0), rate(10, 0)],
    "halted": [start(0), event(10, "power_off")],
    "stopped": [start(0), stop(10)],
}
RECORDS = {
    "start": start(30), "start at 0": start(30, 0), "rate": rate(30, 3), "rate 0": rate(30, 0), "stop": stop(30),
    "halt": event(30, "power_off"), "power on": event(30, "power_on"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("state", "record", "proved", "plain"),
    [
        ("unseen", "start", "infusing 30-50", "infusing 30-50"),
        ("unseen", "start at 0", "infusing 40-50", "infusing 40-50"),
        ("unseen", "rate", "unknown 0-40, infusing 40-50, NO_START", "unknown 0-50, NO_START"),
        ("unseen", "rate 0", "unknown 0-40, infusing 40-50, NO_START", "unknown 0-50, NO_START"),
        ("unseen", "stop", "unknown 0-30, NO_START", "unknown 0-30, NO_START"),
        ("unseen", "halt", "infusing 40-50", ""),
        ("unseen", "power on", "infusing 40-50", ""),
        ("delivering", "start", "unknown 0-30, infusing 30-50, NO_STOP", "unknown 0-30, infusing 30-50, NO_STOP"),
        ("delivering", "start at 0", *("unknown 0-30, paused 30-40, infusing 40-50, NO_STOP",) * 2),
        ("delivering", "rate", "infusing 0-50", "infusing 0-50"),
        ("delivering", "rate 0", *("infusing 0-30, paused 30-40, infusing 40-50",) * 2),
        ("delivering", "stop", "infusing 0-30", "infusing 0-30"),
        ("delivering", "halt", "infusing 0-30, paused 30-40, infusing 40-50", "infusing 0-30"),
        ("delivering", "power on", "unknown 0-30, paused 30-40, infusing 40-50, NO_STOP", "unknown 0-30, NO_STOP"),
        ("zero", "start", *("infusing 0-10, paused 10-30, infusing 30-50",) * 2),
        ("zero", "start at 0", *("infusing 0-10, paused 10-40, infusing 40-50",) * 2),
        ("zero", "rate", *("infusing 0-10, paused 10-30, infusing 30-50",) * 2),
        ("zero", "rate 0", *("infusing 0-10, paused 10-40, infusing 40-50",) * 2),
        ("zero", "stop", "infusing 0-10", "infusing 0-10"),
        ("zero", "halt", "infusing 0-10, paused 10-40, infusing 40-50", "infusing 0-10"),
        ("zero", "power on", "infusing 0-10, paused 10-40, infusing 40-50", "infusing 0-10"),
        ("halted", "start", *("infusing 0-10, paused 10-30, infusing 30-50",) * 2),
        ("halted", "start at 0", *("infusing 0-10, paused 10-40, infusing 40-50",) * 2),
        ("halted", "rate", "infusing 0-10, paused 10-40, infusing 40-50", "infusing 0-10"),
        ("halted", "rate 0", "infusing 0-10, paused 10-40, infusing 40-50", "infusing 0-10"),
        ("halted", "stop", "infusing 0-10", "infusing 0-10"),
        ("halted", "halt", "infusing 0-10, paused 10-40, infusing 40-50", "infusing 0-10"),
        ("halted", "power on", "infusing 0-10, paused 10-40, infusing 40-50", "infusing 0-10"),
        ("stopped", "start", *("infusing 0-10, paused 10-30, infusing 30-50",) * 2),
        ("stopped", "start at 0", *("infusing 0-10, paused 10-40, infusing 40-50",) * 2),
        *(("stopped", record, "infusing 0-10", "infusing 0-10") for record in ("rate", "rate 0", "stop", "halt", "power on")),
    ],
)
def test_the_state_that_a_record_leaves_is_shown_by_a_rate_that_proves_delivery_and_by_one_that_does_not(state, record, proved, plain):
    events = [*STATES[state], RECORDS[record], rate(40, 4), stop(50)]
    assert told(log(*events, proves={len(events) - 1: "primary"})) == proved
    assert told(log(*events)) == plain


@pytest.mark.parametrize("halt", ["power_off", "power_on"])
@pytest.mark.parametrize("before", [[event(0, "other")], [start(0)], [start(0), rate(5, 0)], [start(0), event(5, "power_off")]])
def test_a_proof_at_the_instant_of_a_halt_is_none_and_one_behind_it_is(before, halt):
    def proved(second: float) -> str:
        bolus_ = {**event(10, BOLUS, source="clinician", volume_ml=1), "pump_time": at(10, second)}
        events = [*before, event(10, halt), bolus_, stop(20)]
        return told(log(*events, proves={len(events) - 1: "primary"}))

    assert "-20" not in proved(0)
    assert "-20" in proved(1)


def test_a_bolus_proves_the_source_that_it_names_and_no_other_record_does():
    first = [event(0, "other"), event(10, BOLUS, source="clinician", volume_ml=1), stop(30, "basal")]
    assert told(log(*first, proves={2: "basal"})) == "unknown 0-10, infusing 10-30, NO_START"
    assert told(log(*first)) == "unknown 0-30, NO_START"
    others = [event(0, "other"), event(10, "daily_total"), stop(30, "basal")]
    assert told(log(*others, proves={2: "basal"})) == "unknown 0-30, NO_START"


def test_a_proof_ends_keep_vein_open_and_is_limited_where_a_limit_is_on():
    kvo = [*infusion(-10, 5), event(0, "power_on"), start(5, source="kvo"), rate(20, 2, source="basal"), stop(40, "basal")]
    assert laid_out(log(*kvo, proves={5: "basal"})) == [
        (0, 5, "infusing", "primary", 1, 2), (5, 15, "paused", None, None, None),
        (15, 30, "kvo", "kvo", 4, 5), (30, 50, "infusing", "basal", 5, 6),
    ]  # fmt: skip
    limited = [event(0, "power_on"), start(2, source="basal"), event(5, "limit_reached"), rate(20, 2), event(30, "limit_cleared"), stop(40)]
    assert told(log(*limited, stop(41, "basal"), proves={4: "primary"})) == "infusing 2-5, kvo 5-30, infusing 30-41"
    alone = [event(0, "power_on"), start(2, source="basal"), event(5, "limit_reached"), rate(10, 2), stop(20, "basal"), stop(25)]
    assert laid_out(log(*alone, *infusion(30, 5), proves={4: "primary"}))[1:3] == [
        (5, 25, "kvo", "kvo", 3, 5), (25, 30, "paused", None, None, None),
    ]  # fmt: skip


def test_a_start_rate_or_completion_that_names_no_source_is_of_the_primary_one():
    events = [start(0), rate(10, 3), event(30, "delivery_complete"), start(40), stop(60)]
    assert laid_out(log(*events, source=dict.fromkeys(range(1, 5)))) == laid_out(log(*events)) == [
        (0, 30, "infusing", "primary", 1, 3), (30, 40, "paused", None, None, None), (40, 60, "infusing", "primary", 4, 5),
    ]  # fmt: skip


def test_a_stop_of_no_source_when_nothing_was_seen_makes_all_unknown_and_leaves_every_source_stopped():
    given = log(event(0, "other"), stop(10, None), stop(20, "basal"), rate(30, 2), *infusion(40, 20), proves={4: "primary"})
    assert laid_out(given) == [
        (0, 10, "unknown", None, 1, 2), (10, 40, "paused", None, None, None), (40, 60, "infusing", "primary", 5, 6),
    ]  # fmt: skip
    assert given.session["flags"] == ["NO_START"]


@pytest.mark.parametrize("seen", [start(0, source="kvo"), start(0, 0, source="basal"), start(0, source="secondary")])
def test_a_stop_of_no_source_stops_what_was_seen_and_is_no_missing_start(seen):
    given = log(seen, stop(10, None), *infusion(20, 20))
    assert "NO_START" not in given.session["flags"]


def test_a_stop_of_no_source_stops_every_source_that_runs_those_at_zero_and_keep_vein_open():
    given = log(
        start(0), start(1, source="secondary"), rate(5, 0), stop(10, None), rate(20, 3), rate(21, 3, source="secondary"), stop(30, None)
    )
    assert laid_out(given) == [(0, 1, "infusing", "primary", 1, 3), (1, 10, "infusing", "secondary", 2, 4)]
    kept = log(*infusion(0, 10), start(10, source="kvo"), stop(20, None), *infusion(40, 10))
    assert told(kept) == "infusing 0-10, kvo 10-20, paused 20-40, infusing 40-50"


def test_keep_vein_open_runs_from_its_first_start_and_ends_once():
    twice = log(*infusion(0, 10), start(10, source="kvo"), start(15, source="kvo"), stop(20, "kvo"), stop(25, "kvo"), *infusion(40, 10))
    assert laid_out(twice)[1:3] == [(10, 20, "kvo", "kvo", 3, 5), (20, 40, "paused", None, None, None)]
    halted = log(*infusion(0, 10), start(10, source="kvo"), event(20, "power_off"), *infusion(40, 10))
    assert laid_out(halted)[1] == (10, 20, "kvo", "kvo", 3, 4)
    begun = log(*infusion(0, 10), start(10, source="kvo"), start(20, 0, source="basal"), *infusion(40, 10))
    assert laid_out(begun)[1] == (10, 20, "kvo", "kvo", 3, 4)
    rates = log(*infusion(0, 10), start(10, source="kvo"), rate(20, 0, source="kvo"), *infusion(40, 10))
    assert laid_out(rates)[1] == (10, 40, "kvo", "kvo", 3, 5)


def test_keep_vein_open_that_starts_while_nothing_is_limited_leaves_what_delivers_without_a_stop_and_stopped():
    given = log(start(0), start(5, 0, source="basal"), start(10, source="kvo"), stop(20), rate(25, 1, source="basal"), stop(30, None))
    assert laid_out(given) == [(0, 10, "unknown", "primary", 1, 3), (10, 25, "kvo", "kvo", 3, 6), (25, 30, "infusing", "basal", 5, 6)]
    assert given.session["flags"] == ["NO_STOP"]
    within = log(start(0), event(5, "limit_reached"), start(10, source="kvo"), event(20, "limit_cleared"), stop(30))
    assert (told(within), within.session["flags"]) == ("infusing 0-5, kvo 5-20, infusing 20-30", [])


# --- limits -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "events", "expected"),
    [
        ("reached twice", [start(0), event(10, "limit_reached"), event(15, "limit_reached"), event(20, "limit_cleared"), stop(30)], "infusing 0-10, kvo 10-20, infusing 20-30"),
        ("again", [start(0), event(10, "limit_reached"), event(20, "limit_cleared"), event(25, "limit_reached"), event(28, "limit_cleared"), stop(30)], "infusing 0-10, kvo 10-20, infusing 20-25, kvo 25-28, infusing 28-30"),
        ("a stop ends it", [start(0), event(10, "limit_reached"), stop(20), *infusion(25, 10)], "infusing 0-10, kvo 10-20, paused 20-25, infusing 25-35"),
        ("a halt ends it", [start(0), event(10, "limit_reached"), event(20, "power_off"), *infusion(25, 10)], "infusing 0-10, kvo 10-20, paused 20-25, infusing 25-35"),
        ("rate 0 does not", [start(0), event(10, "limit_reached"), rate(20, 0), rate(25, 2), event(30, "limit_cleared"), stop(40)], "infusing 0-10, kvo 10-20, paused 20-25, kvo 25-30, infusing 30-40"),
        ("begun in it", [*infusion(0, 5), start(6, source="basal"), event(10, "limit_reached"), start(12), stop(15), event(20, "limit_cleared"), stop(30, "basal")], "infusing 0-5, paused 5-6, infusing 6-10, kvo 10-20, infusing 20-30"),
        ("another source ends, it stays", [start(0), start(1, source="basal"), event(10, "limit_reached"), stop(12), start(14), event(20, "limit_cleared"), stop(30), stop(31, "basal")], "infusing 0-10, kvo 10-20, infusing 20-31"),
        ("begun in it and never stopped", [start(0, source="basal"), event(10, "limit_reached"), start(12), start(14), event(20, "limit_cleared"), stop(30), stop(31, "basal")], "infusing 0-10, kvo 10-12, unknown 12-14, kvo 14-20, infusing 20-31, NO_STOP"),
        ("at its end still on", [start(0), event(10, "limit_reached"), event(20, "other")], "infusing 0-10, SESSION_OPEN"),
        ("cleared where none was on", [start(0), start(2, 0, source="basal"), event(10, "limit_cleared"), rate(12, 1, source="basal"), stop(30, None)], "unknown 0-10, infusing 10-30, NO_STOP"),
    ],
)  # fmt: skip
def test_limits(says, events, expected):
    assert told(log(*events)) == expected, says


# --- boluses ----------------------------------------------------------------------------------------------------------------------------


def bolus(minute: float, lasts: float | None = None, **fields: Any) -> dict[str, Any]:
    return event(
        minute, BOLUS, **{"source": "pca", "volume_ml": 1.0, **({"duration_s": lasts * 60} if lasts is not None else {}), **fields}
    )


@pytest.mark.parametrize(
    ("says", "events", "expected"),
    [
        ("two that follow", [bolus(0, 5), bolus(5, 5)], [(0, 5, "infusing", "pca", 1, 1), (5, 10, "infusing", "pca", 2, 2)]),
        ("one within another adds nothing", [bolus(0, 10), bolus(5, 10)], [(0, 10, "infusing", "pca", 1, 1)]),
        ("a third counts from the first that counts", [bolus(0, 10), bolus(5, 10), bolus(12, 5)], [(0, 10, "infusing", "pca", 1, 1), (10, 12, "paused", None, None, None), (12, 17, "infusing", "pca", 3, 3)]),
        ("cut by a stop of any source", [start(-20, source="basal"), stop(-10, "basal"), bolus(0, 10), stop(4, "basal")], [(0, 10, "infusing", "basal", 1, 2), (10, 20, "paused", None, None, None), (20, 24, "infusing", "pca", 3, 4)]),
        ("cut by the first halt behind it alone", [event(-5, "power_off"), bolus(0, 10), event(3, "reservoir_change"), event(6, "power_on")], [(5, 8, "infusing", "pca", 2, 3)]),
        ("cut by an alarm", [bolus(0, 10), event(4, "alarm_raised", stops_delivery=True), bolus(9, 2)], [(0, 4, "infusing", "pca", 1, 2), (4, 9, "alarm", None, None, None), (9, 11, "infusing", "pca", 3, 3)]),
        ("an alarm that stops nothing", [bolus(0, 10), event(4, "alarm_raised"), bolus(19, 2)], [(0, 10, "infusing", "pca", 1, 1), (10, 19, "paused", None, None, None), (19, 21, "infusing", "pca", 3, 3)]),
        ("cut by a stop for an alarm", [*infusion(-20, 10), bolus(0, 10), stop(4, reason="alarm"), bolus(9, 2)], [(0, 10, "infusing", "primary", 1, 2), (10, 20, "paused", None, None, None), (20, 24, "infusing", "pca", 3, 4), (24, 29, "alarm", None, None, None), (29, 31, "infusing", "pca", 5, 5)]),
        ("no source named", [{**bolus(0, 5), "source": None}], [(0, 5, "infusing", "primary", 1, 1)]),
        ("of another source", [bolus(0, 5, source="clinician")], [(0, 5, "infusing", "clinician", 1, 1)]),
        ("told at its end", [event(0, "other"), bolus(10, 5, at="end")], [(5, 10, "infusing", "pca", 2, 2)]),
        ("told at its end and begun before all", [event(0, "other"), bolus(3, 5, at="end")], [(0, 3, "infusing", "pca", 2, 2)]),
        ("while a delivery runs", [start(0), bolus(5, 30), stop(10)], [(0, 10, "infusing", "primary", 1, 3)]),
        ("at the instant of its stop", [start(0), bolus(10, 5), stop(10)], [(0, 10, "infusing", "primary", 1, 3)]),
        ("just behind its stop", [start(0), stop(10), bolus(10, 5)], [(0, 10, "infusing", "primary", 1, 2), (10, 15, "infusing", "pca", 3, 3)]),
        ("just before its start", [bolus(10, 5), start(10), stop(20)], [(0, 10, "infusing", "primary", 2, 3)]),
        ("just behind its start", [start(10), bolus(10, 5), stop(20)], [(0, 10, "infusing", "primary", 1, 3)]),
        ("longer than the delivery that follows", [bolus(0, 30), start(10), stop(20, reason="switching")], [(0, 20, "infusing", "pca", 1, 3)]),
        ("behind a delivery at rate 0", [start(0), rate(5, 0), bolus(10, 5), stop(20)], [(0, 5, "infusing", "primary", 1, 2), (5, 10, "paused", None, None, None), (10, 15, "infusing", "pca", 3, 3)]),
        ("in a limit", [start(0), event(5, "limit_reached"), bolus(10, 5), stop(20)], [(0, 5, "infusing", "primary", 1, 2), (5, 10, "kvo", "kvo", 2, 4), (10, 15, "infusing", "pca", 3, 3)]),
        ("in a delivery without a stop", [start(0), bolus(10, 5), start(20), stop(30)], [(0, 20, "unknown", "primary", 1, 3), (20, 30, "infusing", "primary", 3, 4)]),
        ("in a limit of a delivery without a stop", [start(0), event(5, "limit_reached"), bolus(10, 5), start(20), stop(30), *infusion(40, 5)], [(0, 10, "unknown", "primary", 1, 4), (10, 15, "infusing", "pca", 3, 3), (15, 20, "unknown", "primary", 1, 4), (20, 30, "kvo", "kvo", 4, 5), (30, 40, "paused", None, None, None), (40, 45, "infusing", "primary", 6, 7)]),
        ("in the longer of two deliveries", [start(0), start(1, source="basal"), stop(5), bolus(10, 30), stop(20, "basal"), bolus(25, 1)], [(0, 1, "infusing", "primary", 1, 3), (1, 20, "infusing", "basal", 2, 5), (20, 25, "paused", None, None, None), (25, 26, "infusing", "pca", 6, 6)]),
        ("in a delivery that still runs", [start(0), event(20, "other"), bolus(20, 5)], [(0, 20, "infusing", "primary", 1, 3)]),
    ],
)  # fmt: skip
def test_boluses(says, events, expected):
    assert laid_out(log(*events)) == expected, says


def test_a_bolus_of_no_time_leaves_a_session_of_no_time():
    given = log(bolus(0), event(10, "other"))
    assert (given.session["span_s"], given.session["bolus_count"], laid_out(given)) == (0, 1, [])
    assert given.session["first_event"] == given.session["last_event"]


def test_a_bolus_is_cut_short_by_the_end_of_its_stretch():
    assert laid_out(log(bolus(0, 30), event(10, "other"), end=None)) == [(0, 10, "infusing", "pca", 1, 1)]
    assert laid_out(log(bolus(0, 30), event(10, "other"), end=15)) == [(0, 15, "infusing", "pca", 1, 1)]


@pytest.mark.parametrize(
    ("first", "lasts", "infusing"),
    [("other", 59, 4), ("other", 55, 0), ("other", 20, 0), ("reservoir_change", 59, 0), ("power_on", 59, 0), ("other", 600, 90)],
)
def test_of_a_bolus_that_began_before_its_stretch_only_what_lies_within_counts(first, lasts, infusing):
    """It names 55 minutes before the first record; a halt there ends it, a stop later cuts it short."""
    given = kit.log(
        event(0, first), event(-55, "bolus_delivered", source="pca", duration_s=lasts * 60), event(90, "delivery_stop", source="pca")
    )
    assert kit.infused_s(given) == infusing * 60


def test_boluses_told_out_of_order_are_taken_by_their_instants():
    given = log(event(0, "other"), bolus(30, 2), bolus(10, 5), bolus(20, 30), bolus(12, 1))
    assert [(low, high, seq) for low, high, what, _, seq, _ in laid_out(given) if what == "infusing"] == [(10, 15, 3), (20, 50, 4)]


def test_a_start_that_is_all_of_its_log_lasts_no_time():
    given = log(start(0), end=None)
    assert (given.session["span_s"], laid_out(given)) == (0, [])


# --- what flowed ------------------------------------------------------------------------------------------------------------------------


def volume(*events: dict[str, Any], **more: Any) -> float | None:
    (row,) = log(*events, **more).rows("sessions")
    return row["volume_ml"]


@pytest.mark.parametrize(
    ("says", "events", "ml"),
    [
        ("rate x time", [start(0), stop(30)], 1.0),
        ("two rates", [start(0), rate(30, 4), stop(60)], 3.0),
        ("two rates at one instant", [start(0), rate(30, 4), rate(30, 8), stop(60)], 5.0),
        ("a rate that is not told", [start(0), rate(30, None), stop(60)], None),
        ("a start whose rate is not told", [start(0, None), rate(30, 2), stop(60)], None),
        ("a rate not told of no time", [start(0), rate(30, None), rate(30, 2), stop(60)], None),
        ("a limit", [start(0), event(10, "limit_reached"), event(20, "limit_cleared"), stop(60)], None),
        ("two deliveries", [start(0), stop(30), start(40, 6), stop(60)], 3.0),
        ("two sources", [start(0), start(0, 6, source="basal"), stop(30, "basal"), stop(60)], 5.0),
        ("two sources stopped at once", [start(0), start(0, 6, source="basal"), stop(60, None)], 8.0),
        ("halted", [start(0), event(30, "power_off"), start(40), stop(70)], 2.0),
        ("no stop", [start(0), start(30), stop(60)], None),
        ("no start", [event(0, "other"), stop(30)], None),
        ("a bolus that rides on it", [start(0), bolus(10, 5), stop(60)], 3.0),
        ("a bolus whose volume is not told", [start(0), event(10, BOLUS, source="pca"), stop(60)], None),
        ("boluses alone", [bolus(0, 5), bolus(30, 5, volume_ml=0.25)], 1.25),
        ("a bolus outside its span", [start(0), stop(60), event(200, BOLUS, source="pca")], None),
        ("rate 0 and on", [start(0), rate(10, 0), rate(20, 2), stop(30)], None),
    ],
)  # fmt: skip
def test_the_volume_of_a_session_is_known_only_while_every_rate_is(says, events, ml):
    given = log(*events)
    first = min(given.rows("sessions"), key=lambda row: row["start"])
    assert first["volume_ml"] == (pytest.approx(ml) if ml is not None else (2.0 if says == "a bolus outside its span" else None)), says


def test_what_still_runs_at_the_end_has_flowed_up_to_there():
    assert volume(start(0), event(30, "other")) == 1.0
    assert volume(start(0), event(30, BOLUS, source="pca", volume_ml=1.0), event(20, BOLUS, source="pca", volume_ml=0.5)) == 2.5
    assert volume(start(0), start(10, 6, source="basal"), event(30, "other")) == 3.0


@pytest.mark.parametrize(
    ("says", "events", "differs"),
    [
        ("by less than 10 %", [start(0, 18), stop(60, volume_ml=20.0)], False),
        ("by more than 10 %", [start(0, 18), stop(60, volume_ml=20.01)], True),
        ("too little", [start(0, 18), stop(60, volume_ml=16.0)], True),
        ("by 1 mL of little", [start(0, 1), stop(60, volume_ml=2.0)], False),
        ("by more than 1 mL of little", [start(0, 1), stop(60, volume_ml=2.01)], True),
        ("a completion tells it", [start(0, 18), event(60, "delivery_complete", volume_ml=30)], True),
        ("another source's stop", [start(0, 18), stop(60, "basal", volume_ml=30), stop(61)], False),
        ("of no source, one runs", [start(0, 18), stop(60, None, volume_ml=30)], True),
        ("of no source, two run", [start(0, 18), start(0, 2, source="basal"), stop(60, None, volume_ml=30)], False),
        ("of no source, one runs and one is at zero", [start(0, 18), start(0, 0, source="basal"), stop(60, None, volume_ml=30)], False),
        ("at zero", [start(0, 18), rate(30, 0), stop(40, volume_ml=30), *infusion(50, 5)], True),
        ("at zero, as told", [start(0, 18), rate(30, 0), stop(40, volume_ml=9), *infusion(50, 5)], False),
        ("a rate unknown", [start(0, 18), rate(30, None), stop(60, volume_ml=30)], False),
        ("stopped before", [start(0, 18), stop(59), stop(60, volume_ml=90)], False),
        ("halted before", [start(0, 18), event(59, "power_off"), stop(60, volume_ml=90)], False),
        ("a limit was on", [start(0, 18), event(1, "limit_reached"), event(2, "limit_cleared"), stop(60, volume_ml=90)], False),
        ("a limit was on while it was at zero", [start(0, 18), start(0, 1, source="basal"), rate(10, 0), event(12, "limit_reached"), rate(13, 0), event(14, "limit_cleared"), rate(20, 18), stop(30, volume_ml=90), stop(31, "basal")], True),
        ("a start again, no stop", [start(0, 18), start(30, 18), stop(60, volume_ml=9)], False),
        ("a halt tells nothing", [start(0, 18), event(60, "reservoir_change", volume_ml=90)], False),
    ],
)  # fmt: skip
def test_a_volume_told_that_differs_by_more_than_a_tenth_and_a_millilitre(says, events, differs):
    assert ("VOLUME_MISMATCH" in log(*events).reasons()) is differs, says


# --- what still runs at the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "events", "state"),
    [
        ("at zero, begun soon after", [*infusion(0, 60), start(120, 0), event(300, "other")], "open"),
        ("at zero, begun too late", [*infusion(0, 60), start(120.1, 0), event(300, "other")], "closed"),
        ("at zero, begun before", [start(0), rate(60, 0), event(300, "other")], "open"),
        ("two at zero, the earlier counts", [*infusion(0, 60), start(100, 0), start(200, 0, source="basal"), event(300, "other")], "open"),
        ("two at zero, whichever it is", [*infusion(0, 60), start(100, 0, source="basal"), start(200, 0), event(300, "other")], "open"),
        ("KVO alone", [*infusion(0, 60), start(60, source="kvo"), event(300, "other")], "closed"),
        ("limited since before", [start(0), event(10, "limit_reached"), event(300, "other")], "open"),
    ],
)  # fmt: skip
def test_what_still_runs_within_the_gap_leaves_its_session_open(says, events, state):
    (row,) = log(*events).rows("sessions")
    assert row["state"] == state, says
    assert (row["stop"] is None) is (state == "open")


def test_a_confirmed_stop_is_of_its_own_delivery_whatever_the_order_of_the_log():
    given = give(capture(numbered([start(0), start(60), stop(80)]), anchor=anchor(END)))
    assert told(given) == "unknown 0-60, infusing 60-80, NO_STOP"
    assert kit.infused_s(given) == 1200
