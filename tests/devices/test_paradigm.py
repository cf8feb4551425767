"""Medtronic Paradigm: pages built here, captured pages beside the maker's own export, and the dialogue with the stick."""

from __future__ import annotations

import binascii
import csv
import gzip
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import dialogue, paradigm
from devices.contract import CHECKS, Anchor, Capture, Decoded, Event, Kind, Log, Target, joined, views
from devices.dialogue import Ask, Reply, Summary
from devices.errors import InputError, LinkError, PumpError, PumpledgerError
from devices.paradigm.files import TranscriptLink
from devices.paradigm.link import crc8, request
from simulators import paradigm as simulated
from simulators.link import Faults, UnpluggedError
from simulators.therapy import Pen, therapy
from tests.kit import head

PUMP = "paradigm:482916"
DAY = datetime(2015, 4, 20, 8)
SMALL, LARGER = "522", "723"

# Pages


def stamp(time: datetime, who: int = 0) -> bytes:
    month = time.month
    return bytes([time.second | (month >> 2) << 6, time.minute | (month & 3) << 6, time.hour | who, time.day, time.year - 2000])


def day(when: date) -> bytes:
    return bytes([when.day | (when.month >> 1) << 5, (when.year - 2000) | (when.month & 1) << 7])


def at(minutes: float = 0) -> datetime:
    return DAY + timedelta(minutes=minutes)


def plain(code: int, minutes: float, byte: int = 0) -> bytes:
    return bytes([code, byte]) + stamp(at(minutes))


def bolus(minutes: float, programmed: int, delivered: int, half_hours: int = 0, *, larger: bool = False) -> bytes:
    if larger:
        return bytes([1, *programmed.to_bytes(2), *delivered.to_bytes(2), 0, 12, half_hours]) + stamp(at(minutes))
    return bytes([1, programmed, delivered, half_hours]) + stamp(at(minutes))


def prime(minutes: float, programmed: int, delivered: int) -> bytes:
    return bytes([3, 0, programmed, 0, delivered]) + stamp(at(minutes))


def alarm(minutes: float, kind: int) -> bytes:
    return bytes([6, kind, 0, 0]) + stamp(at(minutes)) if minutes >= 0 else bytes([6, kind, 0, 0]) + stamp(datetime(2008, 1, 1))


def profile(minutes: float, rate: int, from_half_hour: int = 16) -> bytes:
    return bytes([0x7B, 1]) + stamp(at(minutes)) + bytes([from_half_hour]) + rate.to_bytes(2, "little")


def temporary(minutes: float, value: int, half_hours: int, *, percent: bool = False) -> list[bytes]:
    first = bytes([0x33, value & 0xFF]) + stamp(at(minutes)) + bytes([8 if percent else value >> 8])
    return [first, plain(0x16, minutes, half_hours)]


def sealed(body: bytes) -> bytes:
    body = body.ljust(1022, b"\0")
    return body + binascii.crc_hqx(body, 0xFFFF).to_bytes(2)


def page(*records: bytes) -> bytes:
    return sealed(b"".join(records))


def captures(pages: Sequence[bytes], *, model: str = SMALL, dump: str = "d1", anchor: Anchor | None = None) -> list[Capture]:
    """The pages of one dump, newest first."""
    return [
        Capture(data=data, family="paradigm", pump_id=PUMP, model=model, part=f"page={number};dump={dump}", anchor=anchor)
        for number, data in enumerate(pages)
    ]


def tables(given_captures: Iterable[Capture]) -> Decoded:
    return joined(paradigm.decode(one) for one in given_captures)


def read(given_captures: Iterable[Capture]) -> Log:
    return paradigm.assemble(PUMP, *tables(given_captures))


def events(given_captures: Iterable[Capture]) -> list[Event]:
    return views(read(given_captures).events)


def one(record: bytes, model: str = SMALL) -> Event:
    """The event of a record that stands alone on a page."""
    (only,) = events(captures([page(record)], model=model))
    return only


def kinds(found: Iterable[Event]) -> list[str]:
    return [event.kind for event in found]


def checks_of(given_captures: Iterable[Capture]) -> list[Event]:
    found = paradigm.cross_check(read(given_captures).events)
    assert found.schema == CHECKS
    return views(found)


HOLES = ("data_gap", "data_corruption")


def filled(number: int, records: int = 20) -> bytes:
    """A page of suspends and resumes, `number` pages after the first; each page differs."""
    return page(*(plain(0x1E + nth % 2, number * 600 + nth * 7) for nth in range(records)))


# decode: the canonical mapping


@pytest.mark.parametrize(
    ("record", "model", "says"),
    [
        (plain(0x1E, 1), SMALL, {"kind": "delivery_stop", "source": "basal", "reason": "user"}),
        (plain(0x1F, 1), SMALL, {"kind": "delivery_start", "source": "basal", "rate_dose_h": None}),
        (plain(0x21, 1), SMALL, {"kind": "reservoir_change"}),
        (
            bolus(1, 35, 35),
            SMALL,
            {"kind": "bolus_delivered", "source": "primary", "at": "start", "dose": 3.5, "programmed_dose": 3.5, "volume_ml": 0.035}
            | {"dose_unit": "U", "duration_s": None, "proves": "basal"},
        ),
        (bolus(1, 35, 14, 2), SMALL, {"dose": 1.4, "programmed_ml": 0.035, "duration_s": 1440.0, "detail": '{"programmed_s":3600}'}),
        (
            bolus(1, 500, 500, 4, larger=True),
            LARGER,
            {"dose": 12.5, "programmed_dose": 12.5, "duration_s": 7200.0, "detail": '{"iob_u":0.3,"programmed_s":7200}', "proves": "basal"},
        ),
        (prime(1, 0, 75), SMALL, {"kind": "priming_done", "target": "tubing", "reason": "unknown", "dose": 7.5, "programmed_dose": None}),
        (prime(1, 0, 0), SMALL, {"target": "tubing", "reason": "aborted", "volume_ml": 0.0}),
        (prime(1, 5, 5), SMALL, {"target": "cannula", "reason": "amount_reached", "volume_ml": 0.005, "programmed_ml": 0.005}),
        (prime(1, 5, 2), LARGER, {"target": "cannula", "reason": "aborted", "dose": 0.2, "programmed_dose": 0.5}),
        (plain(0x0C, 1, 4), SMALL, {"kind": "alarm_cleared", "detail": '{"type":4}'}),
        (
            plain(0x34, 1, 200),
            SMALL,
            {"kind": "alarm_raised", "alarm_class": "low_reservoir", "stops_delivery": False, "detail": '{"left_u":20.0}'},
        ),
        (plain(0x19, 1), SMALL, {"kind": "alarm_raised", "alarm_class": "battery", "stops_delivery": False}),
        (plain(0x1A, 1), SMALL, {"kind": "other"}),
        (plain(0x14, 1), SMALL, {"kind": "settings_change"}),
        (bytes([8, 0]) + stamp(at(1)) + bytes(145), SMALL, {"kind": "settings_change"}),
        (bytes([9, 0]) + stamp(at(1)) + bytes(145), LARGER, {"kind": "settings_change"}),
        (plain(0x16, 1, 3), SMALL, {"kind": "other", "detail": '{"duration_s":5400}'}),
        (profile(1, 36), LARGER, {"kind": "rate_change", "source": "basal", "rate_dose_h": 0.9, "rate_ml_h": 0.009, "proves": "basal"}),
        (profile(1, 0), LARGER, {"kind": "rate_change", "rate_dose_h": 0.0, "proves": None}),
        (profile(1, 36), SMALL, {"kind": "rate_change", "proves": None}),
        (bytes([0x33, 16]) + stamp(at(1)) + b"\x01", SMALL, {"kind": "rate_change", "source": "basal", "rate_dose_h": 6.8, "proves": None}),
        (bytes([0x33, 80]) + stamp(at(1)) + b"\x08", SMALL, {"kind": "rate_change", "rate_dose_h": None, "detail": '{"percent":80}'}),
        (bytes([0x33, 0]) + stamp(at(1)) + b"\x08", LARGER, {"kind": "rate_change", "rate_dose_h": 0.0}),
    ],
)
def test_each_record_says_what_the_mapping_has(record: bytes, model: str, says: dict[str, Any]) -> None:
    event = one(record, model)
    assert {name: getattr(event, name) for name in says} == says
    assert event.native_code == f"{record[0]:02x}"
    assert event.pump_time == at(1)
    assert event.raw == record


@pytest.mark.parametrize(
    ("kind", "alarm_class", "stops"),
    [
        *((3, "battery", True), (4, "no_delivery", True), (5, "empty", True), (6, "other", True), (16, "clock_lost", True)),
        *((17, "clock_lost", True), (21, "clock_lost", True), (61, "other", True), (62, "empty", True), (103, "other", True)),
        *((74, "other", False), (54, "other", False)),
    ],
)
def test_alarm_types_have_their_class_and_whether_they_stop(kind: int, alarm_class: str, stops: bool) -> None:
    event = one(alarm(1, kind))
    assert (event.kind, event.alarm_class, event.stops_delivery) == ("alarm_raised", alarm_class, stops)
    assert json.loads(event.detail) == {"type": kind}


def test_daily_totals_carry_a_date_and_their_amounts_and_no_time() -> None:
    yesterday = date(2015, 4, 19)
    total = bytes([7, 0, 0, *(1000).to_bytes(2)]) + day(yesterday)
    told = bytearray(bytes([0x6D]) + day(yesterday) + bytes(41))
    told[11:13], told[13:15], told[16:18] = (1000).to_bytes(2), (600).to_bytes(2), (400).to_bytes(2)
    first, *totals = events(captures([page(plain(0x1A, 1), total, bytes(told))]))
    assert kinds([first, *totals]) == ["other", "daily_total", "daily_total"]
    assert [event.pump_time for event in totals] == [None, None]
    assert json.loads(totals[0].detail) == {"date": "2015-04-19", "total_u": 25.0}
    assert json.loads(totals[1].detail) == {"basal_u": 15.0, "bolus_u": 10.0, "date": "2015-04-19", "total_u": 25.0}
    large = total + bytes(3)
    assert json.loads(events(captures([page(plain(0x1A, 1), large)], model=LARGER))[1].detail)["total_u"] == 25.0


def test_who_asked_stands_in_high_bits_and_is_no_part_of_the_time() -> None:
    assert one(bytes([0x1E, 0]) + stamp(at(5), who=0x40)).pump_time == at(5)


def test_variable_records_have_their_length_in_byte_1_and_no_time() -> None:
    found = events(captures([page(plain(0x1F, 1), bytes([0x5C, 8, 1, 2, 3, 4, 5, 6]), bytes([0x5C, 0]), plain(0x1E, 2))]))
    assert kinds(found) == ["delivery_start", "other", "other", "delivery_stop"]
    assert [len(event.raw) for event in found] == [7, 8, 2, 7]


@pytest.mark.parametrize(
    ("model", "code", "length"),
    [("522", 0x5B, 20), ("723", 0x5B, 22), ("522", 0x5A, 124), ("723", 0x5A, 144), ("522", 0x69, 7), ("754", 0x50, 41), ("723", 0x50, 37)],
)
def test_lengths_go_by_the_model(model: str, code: int, length: int) -> None:
    record = bytes([code, 0]) + stamp(at(1)) + bytes(length - 7)
    assert [event.raw for event in events(captures([page(record, plain(0x1E, 2))], model=model))] == [record, plain(0x1E, 2)]


def broken(**changes: int) -> bytes:
    data = bytearray(filled(0))
    data[changes["offset"]] ^= 0xFF
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "model", "code"),
    [
        (broken(offset=30), SMALL, "crc"),
        (broken(offset=1023), SMALL, "crc"),
        (filled(0)[:-1], SMALL, "length"),
        (filled(0) * 2, SMALL, "length"),
        (b"", SMALL, "length"),
        (b"\0", SMALL, "length"),
        (sealed(plain(0x1E, 1) * 145 + bytes([0x6E])), SMALL, "overrun"),
        (page(plain(0x1E, 1), b"\x1f\0" + bytes([0x3F, 0, 0, 1, 15])), SMALL, "time"),
        (page(plain(0x1E, 1), bytes([7, 0, 0, 0, 1, 0, 0])), SMALL, "time"),
        (filled(0), None, "model"),
        (filled(0), "t:slim", "model"),
    ],
)
def test_a_bad_page_is_one_fault_with_its_bytes_and_gives_no_record(data: bytes, model: str | None, code: str) -> None:
    (capture,) = captures([data], model=model or "")
    decoded = paradigm.decode(replace(capture, model=model))
    assert decoded.records.num_rows == 0
    (fault,) = views(decoded.faults)
    assert (fault.code, fault.hole, fault.raw, fault.part) == (code, True, data, capture.part)
    assert kinds(events([capture])) == ["data_corruption"]


def test_a_page_without_a_time_gives_nothing_yet_and_no_fault() -> None:
    decoded = paradigm.decode(captures([page(bytes([7, 0, 0, 0, 40]) + day(date(2015, 4, 19)))])[0])
    assert (decoded.records.num_rows, decoded.faults.num_rows) == (0, 0)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=1100), st.sampled_from(["508", "522", "723", "754", None]), st.booleans())
def test_random_bytes_never_raise(data: bytes, model: str | None, checksum: bool) -> None:
    capture = Capture(data=sealed(data[:1022]) if checksum else data, family="paradigm", pump_id=PUMP, model=model, part="page=0;dump=x")
    found = tables([capture])
    assert found[1].num_rows <= 1
    assert not (found[0].num_rows and found[1].num_rows)
    log = paradigm.assemble(PUMP, *found)
    assert len(log.event_of_record) == found[0].num_rows


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1023), st.integers(1, 255), st.booleans())
def test_a_flipped_byte_is_always_noticed(offset: int, flip: int, larger: bool) -> None:
    data = bytearray(filled(3, 60))
    data[offset] ^= flip
    found = tables(captures([bytes(data)], model=LARGER if larger else SMALL))
    assert (found[0].num_rows, found[1].num_rows) == (0, 1)


def test_pages_that_are_read_together_give_what_each_gives_alone_whatever_their_models() -> None:
    pages = [
        *captures([filled(0), page(bolus(1, 35, 35), *temporary(2, 80, 2, percent=True))]),
        *captures([filled(1), page(bolus(1, 500, 500, 4, larger=True), profile(2, 36), profile(3, 0))], model=LARGER),
        *captures([page(bytes([0x50, 0]) + stamp(at(1)) + bytes(34), plain(0x1E, 2))], model="754"),
        *captures([page(plain(0x1E, 1), b"\x1f\0" + bytes([0x3F, 0, 0, 1, 15])), page(bytes([7, 0, 0, 0, 40]) + day(at().date())), b""]),
        *captures([filled(2)], model="t:slim"),
        Capture(data=b"", family="paradigm", pump_id=PUMP, part="end;dump=d1", anchor=Anchor(pump_clock=at(), utc=utc(0))),
        *captures([filled(2)]),
    ]
    for order in (pages, pages[::-1], pages[5:], []):
        together = paradigm.decode_all(order)
        assert all(one.equals(other) for one, other in zip(together, tables(order), strict=True))
    assert [len(one) for one in paradigm.decode_all(pages)] == [20 + 3 + 20 + 3 + 2 + 20, 3, 1]


# assemble: identity, order, pairs


def test_a_page_is_known_by_its_start_whatever_its_number_and_dump() -> None:
    short, long = page(plain(0x1E, 1), plain(0x1F, 2)), page(plain(0x1E, 1), plain(0x1F, 2), plain(0x1E, 3))
    newer = page(plain(0x1F, 700))
    log = read([*captures([short], dump="a"), *captures([newer, long], dump="b")])
    assert [event.pump_time for event in views(log.events)] == [at(1), at(2), at(3), at(700)]
    assert len(log.event_of_record) == 2 + 1 + 3
    assert set(log.event_of_record.to_pylist()) == set(log.events.column("event_id").to_pylist())


def test_the_place_of_a_record_in_its_page_is_its_identity_not_its_content() -> None:
    same = alarm(-1, 17)
    found = events(captures([page(same, same), page(plain(0x1E, 1))]))
    assert kinds(found) == ["delivery_stop", "alarm_raised", "alarm_raised"]
    assert len({event.event_id for event in found}) == 3


def dumps_of(pages: Sequence[bytes], cuts: Sequence[tuple[int, int]], records: int = 20) -> list[list[Capture]]:
    """Dumps of a log of `pages` (oldest first): each reads pages first..last; of the last perhaps only a beginning."""
    found = []
    for nth, (first, last) in enumerate(cuts):
        read_pages = list(pages[first : last + 1])
        if last < len(pages) - 1:
            read_pages[-1] = sealed(read_pages[-1][: 7 * records // 2])
        found.append(
            captures(read_pages[::-1], dump=f"dump{nth}", anchor=Anchor(pump_clock=at(600 * last + 300), utc=utc(600 * last + 300)))
        )
    return found


def utc(minutes: float) -> datetime:
    return (at(minutes) + timedelta(hours=4)).replace(tzinfo=UTC)


def same(first: Log, second: Log) -> bool:
    return bool(first.events.equals(second.events)) and first.anchors == second.anchors


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32))
def test_overlapping_dumps_in_any_order_and_repetition_give_each_record_once(seed: int) -> None:
    chance = random.Random(seed)
    count = chance.randint(2, 7)
    pages = [filled(number) for number in range(count)]
    cuts = [(0, chance.randint(0, 1))]
    while cuts[-1][1] < count - 1:
        last = cuts[-1][1]
        cuts.append((chance.randint(0, last), chance.randint(last, count - 1)))
    everything = [capture for dump in dumps_of(pages, cuts) for capture in dump]
    log = read(everything)
    assert [event.raw for event in views(log.events)] == [pages[n][i : i + 7] for n in range(count) for i in range(0, 140, 7)]
    repeated = everything + chance.choices(everything, k=chance.randint(0, 5))
    chance.shuffle(repeated)
    assert same(read(repeated), log)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32))
def test_bad_and_missing_pages_in_any_order_give_one_log(seed: int) -> None:
    chance = random.Random(seed)
    pages = [filled(number, 6) for number in range(6)]
    everything: list[Capture] = []
    for nth in range(chance.randint(1, 3)):
        for capture in captures(pages[chance.randint(0, 5) :][::-1], dump=f"d{nth}"):
            fate = chance.choice(["good", "good", "bad", "missing"])
            if fate == "good":
                everything.append(capture)
            elif fate == "bad":
                everything.append(replace(capture, data=capture.data[:-1] + b"?"))
    log = read(everything)
    shuffled = everything * 2
    chance.shuffle(shuffled)
    assert same(read(shuffled), log)
    found = views(log.events)
    assert len({event.record_key for event in found}) == len(found)
    for newer, older in zip(found[1:], found, strict=False):
        if newer.kind not in HOLES and older.kind not in HOLES:
            assert timedelta() < newer.pump_time - older.pump_time < timedelta(minutes=600)


def test_a_missing_page_is_a_gap_and_a_bad_one_a_corruption_and_another_dump_heals_both() -> None:
    pages = [filled(number, 4) for number in range(5)]
    first = captures(pages[::-1], dump="a")
    wounded = [first[0], replace(first[1], data=first[1].data[:700]), first[2], first[4]]
    log = read(wounded)
    assert [kind for kind in kinds(views(log.events)) if kind in HOLES] == ["data_gap", "data_corruption"]
    keys = [event.record_key for event in views(log.events) if event.kind in HOLES]
    assert all(re.fullmatch(r"(gap|bad):[0-9a-f]{16}\.\.[0-9a-f]{16}:1", key) for key in keys)
    healing = captures(pages[1:4][::-1], dump="b")
    healed = read([*wounded, *healing])
    assert not any(kind in HOLES for kind in kinds(views(healed.events)))
    assert healed.events.equals(read(first).events)


def test_two_bad_pages_between_two_are_two_corruptions_and_heal_one_by_one() -> None:
    pages = [filled(number, 4) for number in range(4)]
    first = captures(pages[::-1], dump="a")
    wounded = [first[0], *(replace(capture, data=capture.data[:-1] + b"?") for capture in first[1:3]), first[3]]
    assert kinds(events(wounded)).count("data_corruption") == 2
    assert kinds(events([*wounded, *captures(pages[:2][::-1], dump="b")])).count("data_corruption") == 1


def test_a_bad_newest_page_is_a_corruption_at_the_end_until_it_is_read() -> None:
    pages = [filled(number, 4) for number in range(2)]
    bad, good = captures(pages[::-1], dump="a")
    log = [replace(bad, data=bad.data[:-1] + b"?"), good]
    assert kinds(events(log))[-1] == "data_corruption"
    assert "data_corruption" not in kinds(events([*log, *captures(pages[::-1], dump="b")]))


def test_a_download_of_bad_pages_alone_is_lost_until_a_later_one_comes() -> None:
    early, late = (Anchor(pump_clock=at(minutes), utc=utc(minutes)) for minutes in (50, 90))
    good = captures([filled(0, 4)], dump="a", anchor=Anchor(pump_clock=at(40), utc=utc(40)))
    bad = captures([filled(0, 6)[:-1] + b"?"], dump="b", anchor=early)
    assert kinds(events([*good, *bad]))[-1] == "data_corruption"
    assert "data_corruption" not in kinds(events([*good, *bad, *captures([filled(0, 6)], dump="c", anchor=late)]))


def test_downloads_that_share_no_page_have_a_gap_between_them_and_go_by_their_anchors() -> None:
    early = captures([filled(0, 4)], dump="zz", anchor=Anchor(pump_clock=at(100), utc=utc(100)))
    late = captures([filled(5, 4)], dump="aa", anchor=Anchor(pump_clock=at(3100), utc=utc(3100)))
    found = events([*late, *early])
    assert kinds(found) == ["delivery_stop", "delivery_start"] * 2 + ["data_gap"] + ["delivery_stop", "delivery_start"] * 2
    assert found[0].pump_time == at(0)


def test_a_page_that_filled_while_the_dump_was_read_is_still_one_page() -> None:
    pages = [filled(number, 4) for number in range(4)]
    shifted = [pages[3], pages[3], pages[2], pages[1], pages[0]]
    assert kinds(events(captures(shifted))) == kinds(events(captures(pages[::-1])))


def test_an_old_and_a_new_time_are_one_clock_change_and_all_its_records_lead_there() -> None:
    log = read(captures([page(plain(0x1E, 1), plain(0x17, 5), plain(0x18, 65), plain(0x1F, 66))]))
    stop, change, start = views(log.events)
    assert (change.kind, change.reason, change.native_code) == ("clock_change", "set", "17")
    assert (change.pump_time, change.new_time) == (at(5), at(65))
    assert json.loads(change.detail) == {"old": at(5).isoformat(), "new": at(65).isoformat()}
    assert change.raw == plain(0x17, 5) + plain(0x18, 65)
    assert log.event_of_record.to_pylist() == [stop.event_id, change.event_id, change.event_id, start.event_id]


def test_pairs_straddle_pages() -> None:
    first, second = temporary(9, 40, 4)
    newest, middle, oldest = page(second, plain(0x1E, 10)), page(plain(0x18, 4), first), page(plain(0x1F, 1), plain(0x17, 3))
    _, change, rate, _ = events(captures([newest, middle, oldest]))
    assert (change.kind, change.pump_time, change.new_time) == ("clock_change", at(3), at(4))
    assert (rate.kind, rate.rate_dose_h, rate.duration_s) == ("rate_change", 1.0, 7200.0)


def test_a_half_clock_change_is_a_loss() -> None:
    newest, missing, oldest = page(plain(0x1E, 10)), page(plain(0x18, 4)), page(plain(0x1F, 1), plain(0x17, 3))
    everything = captures([newest, missing, oldest])
    start, old, gap, stop = events([everything[0], everything[2]])
    assert (old.kind, old.reason, old.pump_time, old.new_time) == ("clock_change", "loss", None, None)
    assert json.loads(old.detail) == {"old": at(3).isoformat()}
    assert kinds([start, gap, stop]) == ["delivery_start", "data_gap", "delivery_stop"]
    new = events(everything[:2])[0]
    assert (new.kind, new.reason, new.pump_time, new.new_time) == ("clock_change", "loss", at(4), at(4))


def test_a_temporary_rate_and_its_duration_are_one_rate_change() -> None:
    (only,) = events(captures([page(*temporary(5, 60, 3))]))
    assert (only.kind, only.rate_dose_h, only.duration_s, only.native_code) == ("rate_change", 1.5, 5400.0, "33")
    (cancelled,) = events(captures([page(*temporary(5, 0, 0, percent=True))]))
    assert (cancelled.kind, cancelled.rate_dose_h, cancelled.rate_ml_h) == ("rate_change", None, None)
    apart = events(captures([page(temporary(5, 60, 3)[0], plain(0x16, 6, 3))]))
    assert kinds(apart) == ["rate_change", "other"]


@pytest.mark.parametrize("behind", [prime(120, 5, 5), plain(0x1F, 120)])
@pytest.mark.parametrize("late_s", [0, 18, 35])
def test_a_profile_start_goes_behind_the_record_that_it_was_written_before(behind: bytes, late_s: int) -> None:
    resumed = profile(120 + late_s / 60, 36)
    for pages in ([page(plain(0x21, 1), resumed, behind)], [page(behind), page(plain(0x21, 1), resumed)]):
        found = events(captures(pages, model=LARGER))
        assert [event.raw for event in found] == [plain(0x21, 1), behind, resumed]


@pytest.mark.parametrize(
    ("behind", "late_s"), [(prime(120, 0, 80), 18), (prime(120, 5, 5), 36), (plain(0x1E, 120), 18), (prime(120, 5, 5), -1)]
)
def test_other_profile_starts_stay_where_they_are(behind: bytes, late_s: int) -> None:
    started = profile(120 + late_s / 60, 36)
    assert [event.raw for event in events(captures([page(started, behind)], model=LARGER))] == [started, behind]


def test_a_rewritten_bolus_is_an_update_and_the_page_stays_the_same() -> None:
    before, after = bolus(1, 400, 0, 4, larger=True), bolus(1, 400, 300, 4, larger=True)
    first = captures([page(before, plain(0x1E, 2))], model=LARGER, dump="a")
    second = captures([page(after, plain(0x1E, 2))], model=LARGER, dump="b")
    for order in ([*first, *second], [*second, *first]):
        found = events(order)
        assert [(event.kind, event.dose, event.conflict) for event in found] == [
            ("bolus_delivered", 7.5, False),
            ("delivery_stop", None, False),
        ]
    early, late = (Anchor(pump_clock=at(minutes), utc=utc(minutes)) for minutes in (5, 90))
    less_but_later = [*(replace(one, anchor=late) for one in first), *(replace(one, anchor=early) for one in second)]
    assert events(less_but_later)[0].dose == 0.0


def test_other_content_at_the_same_place_is_a_conflict_that_keeps_the_later_reading() -> None:
    first = captures([page(plain(0x1E, 1), plain(0x1F, 2))], dump="a", anchor=Anchor(pump_clock=at(5), utc=utc(5)))
    second = captures([page(plain(0x1E, 1), plain(0x21, 3))], dump="b", anchor=Anchor(pump_clock=at(9), utc=utc(9)))
    for order in ([*first, *second], [*second, *first]):
        log = read(order)
        stop, change = views(log.events)
        assert (stop.conflict, change.conflict, change.kind) == (False, True, "reservoir_change")
        assert set(log.event_of_record.to_pylist()) == {stop.event_id, change.event_id}


def test_anchors_stand_behind_the_last_record_of_their_page_0() -> None:
    pages = [filled(number, 4) for number in range(2)]
    started, ended = Anchor(pump_clock=at(630), utc=utc(630)), Anchor(pump_clock=at(633), utc=utc(633), round_trip_ms=80)
    first = captures(pages[::-1], dump="a", anchor=started)
    end = Capture(data=b"", family="paradigm", pump_id=PUMP, model=SMALL, part="end;dump=a", anchor=ended)
    grown = page(*(plain(0x1E + nth % 2, 600 + nth * 7) for nth in range(6)))
    log = read([*first, end, *captures([grown], dump="b")])
    assert [(anchor.after, anchor.round_trip_ms) for anchor in log.anchors] == [(8, None), (8, 80)]
    assert log.events.column("pump_time")[8].as_py() == at(628)
    assert read([*first[1:], end]).anchors == ()
    assert read([replace(first[0], data=b"?" * 1024), first[1], end]).anchors == ()


def test_what_was_written_while_a_dump_was_read_stands_before_the_anchor_of_its_end() -> None:
    short, long = page(plain(0x1E, 1)), page(plain(0x1E, 1), plain(0x1F, 8), plain(0x1E, 30))
    started, ended = Anchor(pump_clock=at(5), utc=utc(5)), Anchor(pump_clock=at(12), utc=utc(12))
    end = Capture(data=b"", family="paradigm", pump_id=PUMP, model=SMALL, part="end;dump=a", anchor=ended)
    log = read([*captures([short], dump="a", anchor=started), end, *captures([long], dump="b")])
    assert [anchor.after for anchor in log.anchors] == [0, 1]


def test_a_blank_newest_page_leaves_the_anchor_behind_the_page_before() -> None:
    anchor = Anchor(pump_clock=at(60), utc=utc(60))
    log = read(captures([sealed(b""), filled(0, 4)], anchor=anchor))
    assert [placed.after for placed in log.anchors] == [3]
    assert not any(kind in HOLES for kind in kinds(views(log.events)))


# download


class Host:
    """Drives dialogues against a simulated stick, with a clock of its own."""

    def __init__(self, stick: simulated.Stick, now: datetime) -> None:
        self.stick, self.now = stick, now
        stick._now = lambda: self.now
        self.kept: list[Capture] = []
        self.sent: list[bytes] = []
        self.notes: list[str] = []

    def exchange(self, ask: Ask) -> Reply:
        sent = self.now
        self.sent.append(ask.data)
        data = self.stick.feed(ask.data) if ask.data else b""
        self.now += timedelta(milliseconds=60) if ask.missing(data) <= 0 else timedelta(seconds=ask.timeout_s)
        return Reply(data=data, sent=sent, received=self.now)

    def download(self, pump: str = PUMP, known: Iterable[Capture] = ()) -> Summary:
        return dialogue.run(paradigm.download(pump, map(head, known)), self.exchange, self.kept.append, self.notes.append)

    @property
    def pages_asked(self) -> list[int]:
        return [frame[15] for frame in self.sent if len(frame) == 17 and frame[13] == 0x80]


START = datetime(2026, 3, 2, 12, tzinfo=UTC)


def host(days: int = 14, model: int = 723, upto: int | None = None, **options: Any) -> Host:
    script = therapy("insulin_like", 5, START, days)
    stick, _ = simulated.simulate(script, 5, model=model, **options)
    return Host(stick, START + timedelta(days=upto or days, hours=3))


def numbers(kept: Iterable[Capture]) -> list[str]:
    return [(one.part or "").partition(";")[0] for one in kept]


def test_a_download_gives_every_page_newest_first_then_its_end_with_anchors() -> None:
    asked = host()
    summary = asked.download()
    pages = asked.stick.pump.pages(asked.now)
    assert [one.data for one in asked.kept] == [*pages, b""]
    assert numbers(asked.kept) == [*(f"page={n}" for n in range(len(pages))), "end"]
    assert len({(one.part or "").partition("dump=")[2] for one in asked.kept}) == 1
    start, end = asked.kept[0].anchor, asked.kept[-1].anchor
    assert start is not None
    assert end is not None
    assert {one.anchor for one in asked.kept[:-1]} == {start}
    for anchor in (start, end):
        assert anchor.round_trip_ms is not None
        shown = asked.stick.pump.clock.shows(anchor.utc)
        assert abs((anchor.pump_clock - shown).total_seconds()) <= 1 + anchor.round_trip_ms / 2000
    assert (summary.complete, summary.model, summary.new_parts, summary.battery) == (True, "723", len(pages), "1.40 V")
    assert summary.clock_offset_s == (start.pump_clock - start.utc.replace(tzinfo=None)).total_seconds()
    assert asked.stick.forbidden == []


def test_only_what_is_new_is_read_again() -> None:
    asked = host(30, upto=20)
    asked.download()
    before = list(asked.kept)
    asked.now = START + timedelta(days=30)
    asked.sent.clear()
    summary = asked.download(known=before)
    pages = asked.stick.pump.pages(asked.now)
    assert summary.complete
    assert 0 < summary.new_parts < len(pages) - 1
    assert asked.pages_asked == list(range(summary.new_parts + 1))
    assert read(asked.kept).events.equals(read(captures(pages, model=LARGER)).events)
    asked.sent.clear()
    assert asked.download(known=list(asked.kept)).new_parts == 0
    assert asked.pages_asked == [0]


def test_a_broken_download_goes_on_where_it_stopped() -> None:
    asked = host(40)
    pages = asked.stick.pump.pages(asked.now)
    asked.stick._line._faults = Faults(unplug_at=13_000)
    with pytest.raises(UnpluggedError):
        asked.download()
    got = len(asked.kept)
    assert 4 < got < len(pages) - 2
    assert "end" not in numbers(asked.kept)
    asked.sent.clear()
    summary = asked.download(known=list(asked.kept))
    assert summary.complete
    assert asked.pages_asked == [0, *range(got - 1, len(pages))]
    assert summary.new_parts == len(pages) - got
    assert read(asked.kept).events.equals(read(captures(pages, model=LARGER)).events)


def test_pages_known_from_a_broken_download_do_not_end_the_next() -> None:
    asked = host(10)
    pages = asked.stick.pump.pages(asked.now)
    known = captures(pages[:1], model=LARGER, dump="broken")
    assert asked.download(known=known).complete
    assert asked.pages_asked == list(range(len(pages)))


@pytest.mark.parametrize("seed", range(4))
def test_noise_silence_and_refusals_are_asked_again(seed: int) -> None:
    script = therapy("insulin_like", seed, START, 9)
    stick, _ = simulated.simulate(script, seed, model=522, faults=Faults(silence=0.06, noise=0.06, naks=0.03))
    asked = Host(stick, script.end)
    summary = asked.download()
    assert asked.notes
    pages = stick.pump.pages(asked.now)
    good = [one.data for one in asked.kept if len(one.data) == 1024]
    assert set(good) <= set(pages)
    assert summary.complete == (good == pages and numbers(asked.kept)[-1] == "end")


def test_a_page_that_is_begun_while_pages_are_read_costs_none() -> None:
    asked = host(14)
    whole = asked.stick.pump.pages(asked.now)
    begun: list[bytes] = []
    asked.stick._history = lambda number, _: [*begun, *whole, *[b"\0"] * 37][number]  # type: ignore[method-assign]
    exchange = asked.exchange

    def turn_over(ask: Ask) -> Reply:
        if not begun and asked.pages_asked[-1:] == [1] and len(ask.data) == 17 and ask.data[15] == 2:
            begun.append(page(plain(0x1E, 99999)))
        return exchange(ask)

    summary = dialogue.run(paradigm.download(PUMP, []), turn_over, asked.kept.append)
    assert begun
    assert summary.complete
    assert {one.data for one in asked.kept} == {*whole, b""}
    assert not any(kind in HOLES for kind in kinds(events(asked.kept)))


def test_a_page_that_stays_bad_is_kept_as_it_came_and_read_again_the_next_time() -> None:
    asked = host(14)
    spoilt = asked.stick.pump.pages(asked.now)[1]
    history = asked.stick._history
    asked.stick._history = lambda number, moment: spoilt[:640] if number == 1 else history(number, moment)  # type: ignore[method-assign]
    summary = asked.download()
    assert not summary.complete
    assert asked.kept[1].data == spoilt[:640]
    assert any("kept as it came" in note for note in asked.notes)
    assert kinds(events(asked.kept)).count("data_corruption") == 1
    asked.stick._history = history  # type: ignore[method-assign]
    asked.sent.clear()
    assert asked.download(known=list(asked.kept)).complete
    assert asked.pages_asked == [0, 1, 2]
    assert "data_corruption" not in kinds(events(asked.kept))


def silent(_: Ask) -> Reply:
    return Reply(data=b"", sent=START, received=START)


def test_errors_say_what_is_missing_and_what_to_do() -> None:
    with pytest.raises(InputError) as bad:
        paradigm.download("paradigm:12", [])
    with pytest.raises(LinkError) as no_stick:
        dialogue.run(paradigm.download(PUMP, []), silent, lambda _: None)
    with pytest.raises(LinkError) as no_pump:
        host().download("paradigm:111111")
    asked = host()
    asked.stick._data = lambda command, _: b"\x03780" if command == 0x8D else b"\x99"  # type: ignore[method-assign]
    with pytest.raises(PumpError) as wrong_model:
        asked.download()
    asked = host()
    asked.stick._data = lambda command, _: b"\x03723" if command == 0x8D else b"\x99" * 7  # type: ignore[method-assign]
    with pytest.raises(PumpError) as no_clock:
        asked.download()
    asked = host(signal=20)
    asked.stick._data = lambda *_: b""  # type: ignore[method-assign]
    with pytest.raises(LinkError) as weak:
        asked.download()
    errors: Sequence[Any] = (bad, no_stick, no_pump, wrong_model, no_clock, weak)
    assert [error.value.code for error in errors] == ["bad_pump", "no_stick", "no_pump", "wrong_model", "no_clock", "weak_signal"]
    assert all(error.value.do and "482916" not in str(error.value) for error in errors)


def test_a_link_that_only_hisses_ends_in_an_error() -> None:
    chance = random.Random(7)

    def hiss(ask: Ask) -> Reply:
        answer = b"\x01\x55\0\0\x02\x01\0\x4e".ljust(64, b"\0") if ask.data[:1] in b"\x01\x03\x04\x05\x06" else chance.randbytes(78)
        if ask.data[:1] == b"\x04":
            answer = b"\x01\x55\0" + bytes(6) + b"ComLink II".ljust(55, b"\0")
        return Reply(data=answer, sent=START, received=START)

    with pytest.raises(LinkError) as error:
        dialogue.run(paradigm.download(PUMP, []), hiss, lambda _: None)
    assert error.value.code in ("no_pump", "too_noisy")


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False))
def test_random_answers_never_hang_or_crash_the_dialogue(chance: random.Random) -> None:
    asked = host(2)

    def exchange(ask: Ask) -> Reply:
        reply = asked.exchange(ask)
        return replace(reply, data=chance.randbytes(chance.choice([0, 1, 15, 64, 78]))) if chance.random() < 0.15 else reply

    with suppress(PumpledgerError):
        dialogue.run(paradigm.download(PUMP, []), exchange, asked.kept.append)
    assert len(asked.sent) < 20_000


def test_a_slow_link_is_given_up_after_an_hour() -> None:
    asked = host()
    exchange = asked.exchange

    def slow(ask: Ask) -> Reply:
        asked.now += timedelta(minutes=2)
        return exchange(ask)

    with pytest.raises(LinkError) as error:
        dialogue.run(paradigm.download(PUMP, []), slow, asked.kept.append)
    assert error.value.code in ("too_slow", "no_pump")


@given(st.integers(0, 255), st.integers(0, 36))
def test_only_reading_requests_can_be_built(code: int, number: int) -> None:
    if code in (0x5D, 0x8D, 0x70, 0x72, 0x9D, 0x80):
        frame = request("482916", code, number)
        assert frame[13] == code
        assert crc8(frame[:14]) == frame[14]
    else:
        with pytest.raises(InputError):
            request("482916", code, number)


@pytest.mark.parametrize(
    ("code", "frame"),
    [
        (0x8D, "0100a7015783988000000201008d9d00"),
        (0x80, "0100a70157839880010002020080c10000"),
        (0x5D, "0100a7015783988002550000005d20010aa2"),
    ],
)
def test_requests_are_those_that_were_seen_on_the_wire(code: int, frame: str) -> None:
    assert request("578398", code).hex() == frame


def test_hello_finds_the_stick_and_nothing_else() -> None:
    stick = host().stick
    answer = stick.feed(paradigm.HELLO.data)
    assert paradigm.HELLO.missing(answer) == 0
    assert paradigm.is_hello(answer)
    assert not paradigm.is_hello(b"")
    assert not paradigm.is_hello(answer[:63])
    assert not paradigm.is_hello(b"\x02RI9B\x03".ljust(64, b"\0"))


# Files


def test_files_are_numbered_by_the_last_number_of_their_name() -> None:
    files = [("x/ReadHistoryData-page-10.data", filled(0)), ("7/page-03.data", filled(1)), ("page 0", filled(2))]
    found = paradigm.read_files(files, model="522")
    assert [one.part.partition(";")[0] for one in found if one.part] == ["page=10", "page=3", "page=0"]
    assert {one.pump_id for one in found} == {"paradigm:unknown"}
    assert len({(one.part or "").partition("dump=")[2] for one in found}) == 1
    assert {one.sha256 for one in paradigm.read_files(files[::-1], model="522")} == {one.sha256 for one in found}
    assert paradigm.read_files(files[:1], model="522", pump_id="paradigm:1")[0].pump_id == "paradigm:1"


@pytest.mark.parametrize(
    ("names", "model", "code"),
    [(["page-0.data"], None, "model"), (["newest.data"], "522", "no_number"), (["a/page-1.data", "b/page-1.data"], "522", "two_pages")],
)
def test_files_that_tell_too_little_are_refused_with_the_next_step(names: list[str], model: str | None, code: str) -> None:
    with pytest.raises(InputError) as error:
        paradigm.read_files([(name, filled(n)) for n, name in enumerate(names)], model=model)
    assert error.value.code == code
    assert error.value.do


def recorded(asked: Host) -> bytes:
    """A transcript of a download, as it went over the line."""
    lines: list[str] = []

    def exchange(ask: Ask) -> Reply:
        reply = asked.exchange(ask)
        for direction, data in (("host_to_stick", ask.data), ("stick_to_host", reply.data)):
            if ask.data:
                lines.append(json.dumps({"dir": direction, "len": len(data), "hex": data.hex()}))
        return reply

    dialogue.run(paradigm.download(PUMP, []), exchange, asked.kept.append)
    return "\n".join(lines).encode()


def test_a_recorded_dialogue_is_answered_by_request() -> None:
    asked = host()
    transcript = recorded(asked)
    pages = [one.data for one in asked.kept if one.data]
    for data in (transcript, gzip.compress(transcript)):
        assert paradigm.recognise("download.jsonl", data)
        found = paradigm.read_files([("download.jsonl", data)])
        assert [one.data for one in found] == pages
        assert {(one.pump_id, one.model, one.anchor) for one in found} == {(PUMP, "723", None)}
    given_anchor = Anchor(pump_clock=at(), utc=utc(0))
    assert paradigm.read_files([("d", transcript)], anchor=given_anchor)[0].anchor == given_anchor
    with pytest.raises(InputError):
        paradigm.read_files([("d", transcript)], pump_id="paradigm:999999")


@pytest.mark.parametrize(
    "data", [b'{"dir": "host_to_stick"}', b'{"dir": "host_to_stick", "hex": "0400zz"}', b'{"dir": "host_to_stick", "hex": "040000"}']
)
def test_a_damaged_recording_is_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        paradigm.read_files([("x", data)], model="522")


def test_files_are_recognised_by_what_they_are() -> None:
    assert paradigm.recognise("page-0.data", filled(0))
    assert paradigm.recognise("anything", filled(0))
    assert paradigm.recognise("page-0.data", filled(0)[:-1] + b"?")
    assert not paradigm.recognise("anything", filled(0)[:-1] + b"?")
    assert not paradigm.recognise("page-0.data", b'{"pumpledger": 1}')
    assert not paradigm.recognise("x.gz", b"\x1f\x8bxx")


# cross_check


@pytest.mark.parametrize("model", [522, 723])
def test_the_daily_totals_of_the_pump_agree_with_its_records(model: int) -> None:
    asked = host(12, model=model)
    asked.download()
    checks = checks_of(asked.kept)
    assert {check.what for check in checks} == ({"bolus"} if model == 522 else {"bolus", "basal"})
    assert len(checks) > 8
    for check in checks:
        assert check.summed == pytest.approx(check.told, abs=0.11), check


def test_a_day_with_a_hole_is_not_compared() -> None:
    asked = host(12)
    asked.download()
    whole = {check.date for check in checks_of(asked.kept)}
    torn = {check.date for check in checks_of(asked.kept[:2] + asked.kept[3:])}
    assert torn < whole


def told(when: date, basal: int, bolus: int) -> bytes:
    """A 6d: amounts in 1/40 U."""
    record = bytearray(bytes([0x6D]) + day(when) + bytes(41))
    record[11:13], record[13:15], record[16:18] = (basal + bolus).to_bytes(2), basal.to_bytes(2), bolus.to_bytes(2)
    return bytes(record)


def test_a_day_is_compared_only_if_what_is_read_without_a_break_reaches_from_before_it_to_its_end() -> None:
    days = [DAY.date() + timedelta(days=nth) for nth in range(-1, 3)]
    first = [told(days[0], 0, 400), plain(0x1A, 1), bolus(2, 20, 20), told(days[1], 0, 80)]
    records = [*first, bolus(1500, 35, 35), told(days[2], 0, 140), plain(0x1A, 3000)]
    (check,) = checks_of(captures([page(*records, told(days[3] + timedelta(days=9), 0, 0), plain(0x1A, 3001))]))
    assert (check.pump_id, check.date, check.what, check.told, check.summed, check.unit) == (PUMP, days[2], "bolus", 3.5, 3.5, "U")


@pytest.mark.parametrize("model", [522, 723])
def test_a_bolus_that_was_not_read_is_missing_from_the_sum_of_its_day(model: int) -> None:
    asked = host(12, model=model)
    asked.download()
    log = read(asked.kept)
    compared = {(check.date, check.what): check for check in views(paradigm.cross_check(log.events))}
    lost = [
        (row, event)
        for row, event in enumerate(views(log.events))
        if event.kind == "bolus_delivered" and (event.pump_time.date(), "bolus") in compared and event.duration_s is None
    ]
    for row, event in lost[::7]:
        left = log.events.take([nth for nth in range(log.events.num_rows) if nth != row])
        check = next(one for one in views(paradigm.cross_check(left)) if (one.date, one.what) == (event.pump_time.date(), "bolus"))
        assert check.told - check.summed == pytest.approx(event.dose, abs=0.11)
        assert views(log.events)[log.events.column("event_id").to_pylist().index(check.event_id)].native_code in ("6d", "6e")
    assert len(lost) > 7


def test_a_manual_set_up_reads_as_what_was_done() -> None:
    pen = Pen(START).run(1.0).wait(hours=2).set_up().wait(hours=1).bolus(0.02, 60).wait(hours=2)
    stick, _ = simulated.simulate(pen.script(), 1, model=723)
    asked = Host(stick, pen.script().end)
    asked.download()
    found = [event for event in events(asked.kept) if event.kind in (Kind.RESERVOIR_CHANGE, Kind.PRIMING_DONE)]
    assert [(event.kind, event.target) for event in found] == [
        ("reservoir_change", None),
        ("priming_done", Target.TUBING),
        ("priming_done", Target.CANNULA),
    ]


# Captured pumps


def pages_of(folder: Path) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted(folder.glob("*.data"))]


@pytest.fixture(scope="module")
def captured(fixtures: Path) -> list[Event]:
    """The events of the 522 beside which the maker's export lies."""
    return events(paradigm.read_files(pages_of(fixtures / "medtronic_578398" / "pages"), model="522", pump_id=PUMP))


@pytest.fixture(scope="module")
def exported(fixtures: Path) -> list[tuple[datetime, str, dict[str, str]]]:
    """(time, type, values) of each row of that export."""
    with (fixtures / "medtronic_578398" / "carelink_pump_rows.csv").open(newline="") as lines:
        return [
            (
                datetime.strptime(row["Timestamp"], "%m/%d/%y %H:%M:%S"),  # noqa: DTZ007
                row["Raw-Type"],
                dict(re.findall(r"(\w+)=([^,]*)", row["Raw-Values"])),
            )
            for row in csv.DictReader(lines)
            if row["Timestamp"]
        ]


Exported = list[tuple[datetime, str, dict[str, str]]]


def of_type(exported: Exported, *names: str) -> Exported:
    return [row for row in exported if row[1] in names]


def within(captured: list[Event], rows: Exported, chosen: Callable[[Event], bool]) -> list[Event]:
    """The events of one kind that the export covers."""
    low, high = min(row[0] for row in rows), max(row[0] for row in rows)
    return [event for event in captured if chosen(event) and event.pump_time is not None and low <= event.pump_time <= high]


def test_all_boluses_are_those_of_the_makers_export(captured: list[Event], exported: Exported) -> None:
    rows = of_type(exported, "BolusNormal", "BolusSquare")
    wanted = sorted(
        (time, float(v["AMOUNT"]), float(v["PROGRAMMED_AMOUNT"]), int(v["DURATION"]) // 1000 if name == "BolusSquare" else 0)
        for time, name, v in rows
    )
    found = within(captured, rows, lambda event: event.kind == "bolus_delivered")
    assert sorted((e.pump_time, e.dose, e.programmed_dose, json.loads(e.detail).get("programmed_s", 0)) for e in found) == wanted
    assert len(found) == 122
    assert all(e.volume_ml == pytest.approx(e.dose / 100) for e in found)
    short = [e for e in found if e.duration_s and e.dose < e.programmed_dose]
    assert short
    assert all(e.duration_s == pytest.approx(json.loads(e.detail)["programmed_s"] * e.dose / e.programmed_dose) for e in short)


def test_all_primes_are_those_of_the_makers_export(captured: list[Event], exported: Exported) -> None:
    rows = of_type(exported, "Prime")
    target = {"manual": "tubing", "fixed": "cannula"}
    wanted = sorted((time, target[v["PRIME_TYPE"]], float(v["AMOUNT"])) for time, _, v in rows)
    found = within(captured, rows, lambda event: event.kind == "priming_done")
    assert sorted((e.pump_time, e.target, e.dose) for e in found) == wanted
    assert [sum(e.target == name for e in found) for name in ("tubing", "cannula")] == [8, 4]
    assert {e.reason for e in found if e.target == "cannula"} == {"amount_reached"}


@pytest.mark.parametrize(
    ("name", "kind", "alarm_class", "number"),
    [("Rewind", "reservoir_change", None, 8), ("JournalEntryPumpLowReservoir", "alarm_raised", "low_reservoir", 8)],
)
def test_all_rewinds_and_low_reservoirs_are_those_of_the_makers_export(
    captured: list[Event], exported: Exported, name: str, kind: str, alarm_class: str | None, number: int
) -> None:
    rows = of_type(exported, name)
    found = within(captured, rows, lambda event: event.kind == kind and event.alarm_class == alarm_class)
    assert sorted(event.pump_time for event in found) == sorted(row[0] for row in rows)
    assert len(found) == number
    if alarm_class:
        assert sorted((e.pump_time, json.loads(e.detail)["left_u"]) for e in found) == sorted((t, float(v["AMOUNT"])) for t, _, v in rows)


def test_all_alarms_and_suspends_are_those_of_the_makers_export(captured: list[Event], exported: Exported) -> None:
    rows = of_type(exported, "AlarmPump")
    wanted = {(time, int(v["RAW_TYPE"])) for time, _, v in rows}
    found = {(e.pump_time, json.loads(e.detail)["type"]) for e in captured if e.native_code == "06"}
    assert len(wanted) == 5
    assert wanted <= found
    rows = of_type(exported, "ChangeSuspendEnable")
    kind = {"user_suspend": "delivery_stop", "normal_pumping": "delivery_start"}
    moved = within(captured, rows, lambda event: event.source == "basal" and event.kind in kind.values())
    assert sorted((e.pump_time, e.kind) for e in moved) == sorted((t, kind[v["ENABLE"]]) for t, _, v in rows)
    assert len(moved) == 37


def test_totals_and_clock_changes_are_those_of_the_makers_export(captured: list[Event], exported: Exported) -> None:
    totals = {json.loads(e.detail)["date"]: json.loads(e.detail)["total_u"] for e in captured if e.native_code == "07"}
    for time, _, values in of_type(exported, "ResultDailyTotal"):
        covered = [(time - timedelta(days=back)).date().isoformat() for back in (0, 1)]
        assert float(values["AMOUNT"]) in [totals.get(one) for one in covered]
    changes = [e for e in captured if e.kind == "clock_change"]
    assert changes
    assert {e.reason for e in changes} == {"set"}
    assert sum(e.alarm_class == "clock_lost" for e in captured) >= 2


def test_the_bolus_totals_of_a_captured_pump_agree_with_its_boluses(fixtures: Path) -> None:
    found = paradigm.read_files(pages_of(fixtures / "medtronic_578398" / "pages"), model="522", pump_id=PUMP)
    checks = checks_of(found)
    assert len(checks) >= 12
    for check in checks:
        assert check.what == "bolus"
        assert check.summed == pytest.approx(check.told, abs=0.06), check


def test_the_recorded_dialogue_gives_the_stored_pages_byte_for_byte(fixtures: Path) -> None:
    folder = fixtures / "medtronic_578398"
    alone = paradigm.read_files([("d", (folder / "serial_download.jsonl.gz").read_bytes())], model="522")
    assert [one.data for one in alone] == [data for _, data in pages_of(folder / "pages")]
    assert {(one.pump_id, one.model, one.anchor) for one in alone} == {("paradigm:578398", "522", None)}
    together = [(path.name, path.read_bytes()) for path in sorted(folder.glob("serial_*.jsonl.gz"))]
    assert {one.model for one in paradigm.read_files(together)} == {"522"}
    with pytest.raises(InputError):
        paradigm.read_files([("d", (folder / "serial_download.jsonl.gz").read_bytes())])


def test_the_clock_of_the_recorded_dialogue_is_read_as_it_was_shown(fixtures: Path) -> None:
    folder = fixtures / "medtronic_578398"
    link = TranscriptLink([gzip.decompress((folder / f"serial_{name}.jsonl.gz").read_bytes()) for name in ("commands", "download")])
    kept: list[Capture] = []
    summary = dialogue.run(paradigm.download("paradigm:578398", []), link.exchange, kept.append)
    assert kept[0].anchor is not None
    assert kept[0].anchor.pump_clock == datetime(2015, 4, 29, 20, 14, 58)
    assert (summary.model, summary.battery, len(kept)) == ("522", "1.19 V", 12)


@pytest.fixture(scope="module")
def noisy(fixtures: Path) -> list[Capture]:
    data = (fixtures / "medtronic_511999_noisy" / "serial_download.jsonl.gz").read_bytes()
    return paradigm.read_files([("noisy.jsonl.gz", data)], model="723")


def test_a_noisy_dialogue_ends_in_good_pages_and_told_holes(noisy: list[Capture]) -> None:
    log = read(noisy)
    good = [one for one in noisy if paradigm.decode(one).records.num_rows]
    assert len(noisy) == 36
    assert len(good) == 33
    assert kinds(views(log.events)).count("data_corruption") == 3
    assert kinds(views(log.events)).count("data_gap") == 0


def test_on_a_larger_pump_basal_adds_up_to_its_totals_only_if_halts_and_proofs_are_right(noisy: list[Capture]) -> None:
    checks = checks_of(noisy)
    assert [sum(check.what == what for check in checks) >= 35 for what in ("basal", "bolus")] == [True, True]
    for check in checks:
        assert check.summed == pytest.approx(check.told, abs=0.06), check


def ground(folder: Path) -> bytes:
    """The page that a text dump prints."""
    rows = re.findall(r"^[0-9A-F]{4}((?:\s+0x[0-9a-f]{2})+)", folder.read_text(), re.MULTILINE)
    return bytes(int(byte, 16) for row in rows for byte in row.split())


def test_dumps_of_one_page_that_grows_give_each_record_once(fixtures: Path) -> None:
    names = ["start", "no-change", "after-single-bolus", "another-single-bolus-16-14", "priming-event", "fixed-prime"]
    names += ["fixed-prime-again", "fixed-prime-again-again-5-41", "doubled-fixed-prime"]
    everything = []
    for name in names:
        data = ground(fixtures / "medtronic_ground_start" / name / "hex-page-0.log")
        assert len(data) == 1024
        everything += captures([data], model="515", dump=name)
    last = events(everything[-1:])
    assert [event.raw for event in events(everything)] == [event.raw for event in last]
    primes = [event for event in last if event.kind == "priming_done"][-7:]
    assert [(event.target, event.dose) for event in primes] == [("tubing", 1.9), *[("cannula", 0.3)] * 6]
    assert [event.pump_time.strftime("%H:%M") for event in primes[1:]] == ["16:49", "17:10", "17:28", "17:41", "17:57", "18:02"]
    assert [(event.dose, event.pump_time.strftime("%H:%M")) for event in last if event.kind == "bolus_delivered"][-2:] == [
        (0.6, "15:05"),
        (0.6, "16:14"),
    ]


def test_pages_of_larger_and_smaller_models_read_as_their_first_readers_did(fixtures: Path) -> None:
    first, second, small = (bytes.fromhex(one["hex"]) for one in json.loads((fixtures / "minimed_rf" / "history_pages.json").read_text()))
    found = events(captures([first], model="523"))
    assert len([event for event in found if event.kind != "clock_change"]) + 2 == 52
    assert json.loads(found[0].detail)["date"] == "2015-10-31"
    assert (found[-1].dose, found[-1].pump_time) == (1.25, datetime(2015, 11, 14, 20, 59, 48))
    found = [event for event in events(captures([second], model="523")) if event.kind == "bolus_delivered"]
    assert [(event.dose, event.programmed_dose, event.duration_s) for event in found] == [(n, n, None) for n in (0.2, 0.3, 0.1)]
    found = [event for event in events(captures([small], model="522")) if event.native_code != "5c"]
    assert len(found) == 47
    assert (found[0].dose, found[9].dose, found[9].duration_s) == (2.5, 3.5, 240 * 60)
    for data, wrong in ((first, "522"), (second, "522"), (small, "523")):
        assert kinds(events(captures([data], model=wrong))) == ["data_corruption"]
