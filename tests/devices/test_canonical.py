"""Canonical JSON lines: what a line says, what is put aside, where holes are, and that cutting a capture changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import canonical as adapter
from devices.contract import CONTENT, Anchor, Capture, Decoded, Kind, Log, joined
from devices.errors import InputError
from tests.kit import PUMP, anchor, at, capture, event, numbered

MANY = 2000
"""More lines than are read in one go."""


def records(*captures: Capture) -> list[dict[str, Any]]:
    return list(adapter.decode_all(captures).records.to_pylist())


def faults(*captures: Capture) -> list[dict[str, Any]]:
    return list(adapter.decode_all(captures).faults.to_pylist())


def the_record(**line: Any) -> dict[str, Any]:
    (only,) = records(capture([{"seq": 1, "pump_time": at(), **line}]))
    return only


def the_fault(line: Mapping[str, Any] | bytes) -> dict[str, Any]:
    one = capture([line])
    assert records(one) == []
    (only,) = faults(one)
    return only


def log(*captures: Capture) -> Log:
    return adapter.assemble(PUMP, *adapter.decode_all(captures))


def kinds(found: Log) -> list[str]:
    return list(found.events["kind"].to_pylist())


def other(seq: int, **more: Any) -> dict[str, Any]:
    return {"seq": seq, **event(seq, "other"), **more}


# --- what a line says ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"kind": "delivery_start"}, {"source": "primary", "rate_ml_h": None}),
        ({"kind": "delivery_start", "source": "pca", "rate_ml_h": 2}, {"source": "pca", "rate_ml_h": 2.0}),
        ({"kind": "delivery_stop"}, {"source": None, "reason": "unknown"}),
        ({"kind": "delivery_stop", "source": "kvo", "reason": "alarm"}, {"source": "kvo", "reason": "alarm"}),
        ({"kind": "delivery_complete", "volume_ml": 3.5}, {"source": "primary", "volume_ml": 3.5}),
        ({"kind": "rate_change", "rate_dose_h": 0.5, "dose_unit": "mg"}, {"source": "primary", "rate_dose_h": 0.5, "dose_unit": "mg"}),
        ({"kind": "bolus_requested", "programmed_dose": 1}, {"source": "primary", "programmed_dose": 1.0, "at": None}),
        ({"kind": "bolus_delivered", "dose": 1, "duration_s": 30}, {"source": "primary", "dose": 1.0, "duration_s": 30.0, "at": "start"}),
        ({"kind": "bolus_delivered", "at": "end"}, {"at": "end"}),
        ({"kind": "demand_denied"}, {"source": None, "reason": "unknown"}),
        ({"kind": "demand_denied", "reason": "lockout"}, {"reason": "lockout"}),
        ({"kind": "priming_started"}, {"target": "unknown", "reason": "unknown"}),
        ({"kind": "priming_done", "programmed_ml": 0.3}, {"target": "unknown", "reason": "unknown", "programmed_ml": 0.3}),
        ({"kind": "priming_done", "target": "cannula", "reason": "aborted"}, {"target": "cannula", "reason": "aborted"}),
        ({"kind": "alarm_raised"}, {"alarm_class": "other", "stops_delivery": False}),
        ({"kind": "alarm_raised", "alarm_class": "air", "stops_delivery": True}, {"alarm_class": "air", "stops_delivery": True}),
        ({"kind": "alarm_cleared"}, {"alarm_class": None, "stops_delivery": None}),
        ({"kind": "settings_change", "lockout_s": 600}, {"lockout_s": 600.0}),
        ({"kind": "other", "reason": "whatever it was", "source": None}, {"reason": "whatever it was", "source": None}),
    ],
)
def test_a_line_says_what_its_fields_say_and_the_defaults_of_its_kind(line: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    found = the_record(**line)
    assert {name: found[name] for name in told} == told
    assert (found["kind"], found["native_code"], found["pump_time"].isoformat()) == (line["kind"], line["kind"], at())
    assert (found["record_key"], found["seq"], found["offset"], found["detail"], found["proves"]) == ("0:1", 1, 2, "{}", None)


def test_every_kind_can_be_written() -> None:
    plain = [event(0, kind) for kind in Kind if kind is not Kind.CLOCK_CHANGE]
    assert [one["kind"] for one in records(capture(numbered(plain)))] == [one["kind"] for one in plain]


def test_a_clock_change_has_its_old_and_its_new_time_and_a_loss_the_new_one() -> None:
    found = the_record(kind="clock_change", old=at(), new=at(60))
    assert (found["pump_time"].isoformat(), found["new_time"].isoformat(), found["reason"]) == (at(), at(60), "set")
    assert json.loads(found["detail"]) == {"old": at(), "new": at(60)}
    lost = the_record(kind="clock_change", reason="loss")
    assert (lost["new_time"], json.loads(lost["detail"])) == (lost["pump_time"], {"new": at()})
    for line in ({}, {"old": at()}, {"new": at()}, {"old": at(1), "new": at(60)}, {"old": at(), "new": "1969-12-31T00:00:00"}):
        assert the_fault({"seq": 1, **event(0, "clock_change"), **line})["seq"] == 1


def test_unknown_fields_go_to_detail_and_times_keep_their_milliseconds() -> None:
    line = {"kind": "clock_change", "old": at(), "new": at(1), "patient_button": [1, {"deep": None}], "ä": "ö"}
    assert json.loads(the_record(**line)["detail"]) == {"old": at(), "new": at(1), "patient_button": [1, {"deep": None}], "ä": "ö"}
    found = the_record(kind="other", pump_time="2026-03-07T20:00:00.123999")
    assert found["pump_time"] == datetime(2026, 3, 7, 20, 0, 0, 123000)


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 5000,
        b'{"seq": 1}',
        {"seq": 1, **event(0, "delivery_halt")},
        {"seq": 1, **event(0, "delivery_start", source="tertiary")},
        {"seq": 1, **event(0, "delivery_stop", reason="no reason")},
        {"seq": 1, **event(0, "delivery_start", rate_ml_h=-1)},
        {"seq": 1, **event(0, "delivery_start", rate_ml_h="2")},
        {"seq": True, **event(0, "other")},
        {"seq": 2**63, **event(0, "other")},
        {"seq": 1, "kind": "other", "pump_time": "2026-03-07T20:00:00Z"},
        {"seq": 1, "kind": "other", "pump_time": "1969-12-31T23:59:59"},
        {"seq": 1, "kind": "other", "pump_time": "2200-01-01T00:00:00"},
        {"seq": 1, "kind": "other"},
        event(0, "other"),
    ],
)
def test_a_line_that_cannot_be_an_event_is_put_aside_with_its_bytes_and_its_number(line: Mapping[str, Any] | bytes) -> None:
    found = the_fault(line)
    assert found["raw"] == (line if isinstance(line, bytes) else json.dumps(line).encode())
    assert (found["code"], found["offset"], found["hole"], found["capture"]) == ("line", 2, True, capture([line]).sha256)
    told = line.get("seq") if isinstance(line, dict) else json.loads(line)["seq"] if b"seq" in line else None
    assert found["seq"] == (told if told == 1 and told is not True else None)
    assert found["message"]


def test_a_bad_line_among_thousands_costs_itself_alone_and_stands_between_its_neighbours() -> None:
    lines: list[dict[str, Any] | bytes] = [other(seq) for seq in range(1, MANY + 1)]
    lines[999] = b"noise"
    lines[1499] = other(1500, kind="nothing")
    whole = capture(lines)
    found = records(whole)
    assert [one["seq"] for one in found] == [seq for seq in range(1, MANY + 1) if seq not in (1000, 1500)]
    assert [one["offset"] for one in found] == [one["seq"] + 1 for one in found]
    assert [one["raw"] for one in found] == [json.dumps(other(one["seq"])).encode() for one in found]
    noise, nothing = faults(whole)
    assert (noise["seq"], noise["after_seq"], noise["before_seq"], noise["offset"]) == (None, 999, 1001, 1001)
    assert (nothing["seq"], nothing["after_seq"], nothing["before_seq"], nothing["offset"]) == (1500, None, None, 1501)


def test_two_events_on_one_line_are_none_even_where_an_event_over_two_lines_makes_up_the_number() -> None:
    first, second, third = (json.dumps(other(seq)).encode() for seq in (1, 2, 3))
    half = third.index(b",") + 1
    assert records(capture([first + b" " + second, third[:half], third[half:]])) == []
    open_string = json.dumps(other(4, dose_unit="a")).encode()[:-2]
    assert records(capture([open_string, b'{ ends here"}', first + second])) == []
    assert [one["seq"] for one in records(capture([first + second, third]))] == [3]


def test_blank_lines_line_ends_and_a_missing_last_one_change_numbers_of_lines_only() -> None:
    plain = capture([other(1), other(2), other(3)])
    spaced = replace(plain, data=b"\n\r\n" + plain.data.replace(b"\n", b" \r\n\n\t\n").rstrip())
    found = records(spaced)
    assert [one["raw"] for one in found] == [one["raw"] for one in records(plain)]
    assert [one["offset"] for one in found] == [6, 9, 12]
    assert log(spaced).events.equals(log(plain).events)


def test_nothing_is_nothing_and_a_capture_without_its_header_is_one_fault() -> None:
    for data in (b"", b"\n", b" \r\n\t"):
        assert adapter.decode(Capture(data=data, family="canonical", pump_id=PUMP)) == joined(())
    whole = capture([other(1)])
    for one in (
        replace(whole, data=whole.data.split(b"\n", 1)[1]),
        replace(whole, pump_id="canonical:B2"),
        capture([other(1)], pump="canonical:"),
        capture([other(1)], log_epoch=-1),
        capture([other(1)], pumpledger=2),
    ):
        (fault,) = faults(one)
        assert (fault["code"], fault["raw"], fault["hole"], records(one)) == ("header", one.data, False, [])


def test_files_are_captures_of_the_pump_that_their_header_names() -> None:
    whole = capture([other(1)])
    (found,) = adapter.read_files([("a.jsonl", whole.data)])
    assert found == whole
    assert adapter.recognise("a.jsonl", whole.data)
    assert not adapter.recognise("a.jsonl", b"{}")
    assert [one.pump_id for one in adapter.read_files([("x", b"noise")])] == ["canonical:unknown"]
    assert [one.pump_id for one in adapter.read_files([("x", b"noise")], pump_id=PUMP)] == [PUMP]


# --- holes and clocks ---------------------------------------------------------------------------------------------------------


def test_a_missing_number_is_a_hole_where_numbers_leave_none_and_nothing_where_they_only_order() -> None:
    lines = [other(1), other(2), other(5)]
    assert kinds(log(capture(lines))) == ["other", "other", "data_gap", "other"]
    loose = log(capture(lines, contiguous=False))
    assert kinds(loose) == ["other"] * 3
    assert (log(capture(lines)).gaps_visible, loose.gaps_visible) == (True, False)


def test_captures_that_differ_on_whether_numbers_leave_holes_leave_the_holes_of_both() -> None:
    found = log(capture([other(1), b"noise", other(2), other(5)]), capture([other(5)], contiguous=False))
    assert kinds(found) == ["other", "data_corruption", "other", "data_gap", "other"]
    assert not found.gaps_visible


def test_a_bad_line_is_a_hole_unless_the_numbers_around_it_show_that_nothing_is_missing() -> None:
    assert kinds(log(capture([other(1), b"noise", other(2)]))) == ["other", "other"]
    assert kinds(log(capture([other(1), b"noise", other(3)]))) == ["other", "data_gap", "other"]
    assert kinds(log(capture([other(1), b"noise"]))) == ["other", "data_corruption"]
    assert kinds(log(capture([b"noise", other(1)]))) == ["data_corruption", "other"]
    assert kinds(log(capture([other(1), b"noise", other(2)], contiguous=False))) == ["other", "data_corruption", "other"]
    assert kinds(log(capture([other(1), other(2, kind="no"), other(3)], contiguous=False))) == ["other", "data_corruption", "other"]


def test_another_capture_heals_a_hole_and_another_content_is_a_conflict() -> None:
    broken = capture([other(1), b"noise", other(3)])
    assert kinds(log(broken, capture([other(2)]))) == ["other"] * 3
    found = log(capture([other(1)]), capture([other(1, volume_ml=1)]))
    assert found.events["conflict"].to_pylist() == [True]
    assert len(json.loads(found.events["detail"][0].as_py())["conflicts_with"]) == 1
    assert found.event_of_record.to_pylist() == found.events["event_id"].to_pylist() * 2


def test_an_anchor_stands_behind_the_record_it_names_or_behind_the_last_line_read_or_not() -> None:
    lines = [other(1), other(2), other(3)]
    told = anchor(10, utc_minutes=310, round_trip_ms=40)
    assert [one.after for one in log(capture(lines, anchor=told)).anchors] == [2]
    assert [one.after for one in log(capture(lines, anchor={**told, "after_seq": 1})).anchors] == [0]
    assert log(capture(lines, anchor={**told, "after_seq": 9})).anchors == ()
    assert log(capture([*lines, b"noise"], anchor=told)).anchors == ()
    unread = capture([*lines, other(4, kind="no")], anchor=told)
    assert log(unread).anchors == ()
    assert [one.after for one in log(unread, capture([other(4)])).anchors] == [3]


def test_a_capture_without_an_anchor_in_its_header_has_its_own() -> None:
    own = Anchor(pump_clock=datetime(2026, 3, 2, 9), utc=datetime(2026, 3, 2, 14, tzinfo=UTC))
    whole = replace(capture([other(1), other(2)]), anchor=own)
    assert [one.after for one in log(whole).anchors] == [1]
    assert [one.after for one in log(replace(whole, anchor=replace(own, after="0:1"))).anchors] == [0]
    told = replace(capture([other(1), other(2)], anchor=anchor(5)), anchor=own)
    assert [one.utc_ms for one in log(told).anchors] != [one.utc_ms for one in log(whole).anchors]


@pytest.mark.parametrize(
    "wrong", [{"pump_clock": at()}, {**anchor(0), "utc": at()}, {**anchor(0), "round_trip_ms": 10**30}, anchor(-60 * 24 * 365 * 60), 5]
)
def test_an_anchor_that_cannot_be_read_is_put_aside_and_hides_no_record(wrong: Any) -> None:
    one = capture([other(1)], anchor=wrong)
    (fault,) = faults(one)
    assert (fault["code"], fault["hole"], json.loads(fault["raw"])) == ("anchor", False, wrong)
    assert kinds(log(one)) == ["other"]
    assert log(one).anchors == ()


# --- many captures, and parts of one -------------------------------------------------------------------------------------------

_BAD = st.sampled_from(
    [
        b"noise", b'{"seq": 3, "kind": "other"}', b'{"seq": 4}', b"", b"  \r", b'{"seq": 1, "kind": "oth', b"\xff", b'{"seq": 9.5}',
        json.dumps(other(5)).encode() + b" " + json.dumps(other(6)).encode(), b'{"seq": -4611686018427387905}',
    ]
)  # fmt: skip
_SEQ = st.integers(1, 30)
_MOMENT = st.integers(0, 600).map(at)
_GOOD = st.one_of(
    st.builds(lambda seq, minute: {"seq": seq, "pump_time": minute, "kind": "other"}, _SEQ, _MOMENT),
    st.builds(lambda seq, text: other(seq, remark=text), _SEQ, st.text(max_size=3)),
    st.builds(lambda seq, kind: {"seq": seq, **event(seq, kind)}, _SEQ, st.sampled_from(["delivery_start", "alarm_raised", "power_on"])),
    st.builds(lambda seq: {"seq": seq, **event(seq, "clock_change", old=at(seq), new=at(seq + 9))}, _SEQ),
)
_ANCHORS = st.sampled_from(
    [None, anchor(5), {**anchor(5, round_trip_ms=7), "after_seq": 4}, {**anchor(5), "after_seq": 99}, {"pump_clock": "never"}, anchor(700)]
)
_OWN = st.sampled_from(
    [
        None,
        Anchor(pump_clock=datetime(2026, 3, 2, 9), utc=datetime(2026, 3, 2, 14, 0, 0, 123456, tzinfo=UTC), round_trip_ms=3),
        Anchor(pump_clock=datetime(2026, 3, 2, 9), utc=datetime(2026, 3, 2, 15, tzinfo=UTC), after="0:3"),
    ]
)


@st.composite
def _captures(draw: st.DrawFn) -> Capture:
    lines: list[Any] = draw(st.lists(st.one_of(_GOOD, _GOOD, _BAD), max_size=24))
    if draw(st.booleans()):
        lines = [{**line, "seq": number} if isinstance(line, dict) else line for number, line in enumerate(lines, 1)]
    header = {"log_epoch": draw(st.sampled_from([0, 0, 1])), "contiguous": draw(st.booleans())}
    one = capture(lines, anchor=draw(_ANCHORS), **header)
    ends = draw(st.sampled_from([one.data, one.data.rstrip(), one.data.replace(b"\n", b"\r\n"), one.data + b"\n \n"]))
    return replace(one, data=ends, anchor=draw(_OWN), part=draw(st.sampled_from([None, "x"])))


@settings(max_examples=100, deadline=None)
@given(st.lists(_captures(), max_size=4))
def test_many_captures_together_give_what_each_gives(captures: Sequence[Capture]) -> None:
    assert adapter.decode_all(captures) == joined(adapter.decode(one) for one in captures)


@settings(max_examples=100, deadline=None)
@given(_captures())
def test_a_line_is_read_among_others_as_it_is_alone(whole: Capture) -> None:
    header, *lines = [line for line in whole.data.split(b"\n") if line.strip()]
    alone = joined(adapter.decode(replace(whole, data=header + b"\n" + line)) for line in lines)
    found = adapter.decode(whole)
    columns = ["record_key", "seq", "contiguous", *CONTENT.names]
    assert found.records.select(columns).to_pylist() == alone.records.select(columns).to_pylist()
    assert _quarantined(found) == _quarantined(alone)
    assert found.records.num_rows + len(_quarantined(found)) == len(lines)


def _quarantined(found: Decoded) -> list[tuple[bytes, int | None]]:
    rows = found.faults.select(["raw", "seq", "code"]).to_pylist()
    return [(row["raw"], row["seq"]) for row in rows if row["code"] == "line"]


@settings(max_examples=300, deadline=None)
@given(whole=_captures(), others=st.lists(_captures(), max_size=2), more=st.integers(0, 400), backwards=st.booleans())
def test_the_parts_of_a_capture_give_the_log_of_the_whole(whole: Capture, others: list[Capture], more: int, backwards: bool) -> None:
    size = 640 + more
    parts = adapter.split(whole, size)
    assert all(len(part.data) <= size for part in parts)
    if len(whole.data) <= size:
        assert parts == [whole]
    found, wanted = log(*(reversed(parts) if backwards else parts), *others), log(whole, *others)
    assert found.events.equals(wanted.events)
    assert found.anchors == wanted.anchors
    assert found.gaps_visible == wanted.gaps_visible
    assert set(found.event_of_record.to_pylist()) == set(wanted.event_of_record.to_pylist())


def test_a_large_capture_is_cut_between_lines_and_no_line_is_there_twice_without_need() -> None:
    whole = capture([other(seq) for seq in range(1, MANY + 1)], anchor=anchor(10**5))
    parts = adapter.split(whole, 10_000)
    assert len(parts) == -(-len(whole.data) // 9_700)
    lines = [line for part in parts for line in part.data.splitlines()[1:]]
    assert lines == whole.data.splitlines()[1:]
    heads = [json.loads(part.data.splitlines()[0]) for part in parts]
    assert [head["anchor"]["after_seq"] for head in heads] == [MANY] * len(parts)
    assert len(adapter.split(replace(whole, data=whole.data + b" " * 10**6), 10**6)) == 1


def test_a_clock_that_was_read_behind_a_line_without_a_number_has_no_place_in_the_parts_either() -> None:
    own = Anchor(pump_clock=datetime(2026, 3, 2, 9), utc=datetime(2026, 3, 2, 14, tzinfo=UTC))
    lines = [*(other(seq) for seq in range(1, 41)), b"noise"]
    for whole in (
        capture(lines, anchor=anchor(100)),
        replace(capture(lines), anchor=own),
        replace(capture(lines, anchor=anchor(9)), anchor=own),
    ):
        parts = adapter.split(whole, 800)
        assert len(parts) > 3
        assert log(whole).anchors == log(*parts).anchors == ()


def test_what_cannot_be_cut_is_refused_in_words() -> None:
    for one in (
        capture([other(1), other(2, remark="x" * 900), other(3)]),
        replace(capture([other(1)]), data=b"noise\n" * 200),
        capture([other(seq) for seq in range(20)], note="x" * 900),
        capture([other(1, remark="x" * 300), b"y" * 300, other(2, remark="x" * 300)]),
    ):
        with pytest.raises(InputError, match="cannot be split") as refused:
            adapter.split(one, 800)
        assert refused.value.code == "too_large"
        assert refused.value.do
        assert PUMP not in str(refused.value)
