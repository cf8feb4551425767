"""MIVA: every row of the mapping, programmes by position, what records tell together (docs/pump-formats.md §4), and the dialogue."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from devices import families, miva
from devices.contract import Anchor, Capture, joined, views
from devices.dialogue import Ask, Got, Note, Reply, run
from devices.errors import InputError, LinkError, PumpError
from simulators import miva as simulated
from simulators.link import Faults, still
from simulators.therapy import therapy
from tests.kit import billed, head, orders
from transforms.block import Block
from transforms.clock import ClockPolicy, place
from transforms.sessions import FactPolicy

PUMP = "miva:M1234567"
RING = 43_264
NOON = datetime(2026, 3, 2, 12)
UTC_NOON = NOON.replace(tzinfo=UTC)
FF = b"\xff" * 16


def rec(code, sub=0, data=b"", *, at=1000, spare=0):
    """A record with a relative stamp; `sub` are the bytes 5 and 6."""
    return struct.pack("<BI", code, 0xF000_0000 | at) + struct.pack(">H", sub) + data.ljust(8, b"\0") + bytes([spare])


def dated(code, sub=0, data=b"", *, at=NOON):
    bits = (at.year - 2000) << 26 | at.month << 22 | at.day << 17 | at.hour << 12 | at.minute << 6 | at.second
    return struct.pack(">BIH", code, bits, sub) + data.ljust(9, b"\0")


def begin(at=1000):
    return rec(0, 0x0100, at=at)


def end(at=1000):
    return rec(0, 0x0200, at=at)


BOLUS = ("fffIIfIfIffffffffff", (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17))
CONTINUOUS = ("fffIIffffff", (0, 1, 2, 3, 4, 5, 6, 7, 22, None, 10))
INTERMITTENT = ("fffIIIfffffffff", (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14))


def long(mode=1, unit=0, layout=None, **places):
    """A programme of 16 records; `p3=7`: field 3 is 7, with its switch on."""
    kinds, bits = layout or (CONTINUOUS, BOLUS, INTERMITTENT)[mode if mode < 3 else 1]
    values = [0.0 if kind == "f" else 0 for kind in kinds]
    switches = 0
    for name, value in places.items():
        number = int(name[1:])
        values[number] = value
        if bits[number] is not None:
            switches |= 1 << bits[number]
    data = bytearray(struct.pack(">" + kinds, *values).ljust(80, b"\0") + struct.pack(">I", switches)).ljust(119, b"\0")
    data[93], data[97] = mode, unit
    data[99:109], data[109:119] = b"Protocol 0", b"XYZ".ljust(10, b"\0")
    data = bytes(data).ljust(224, b"\0").ljust(256, b"\xff")
    return [data[i : i + 16] for i in range(0, 256, 16)]


def short(rate=0.5, vtbi=20.0, starting=0.0, extra=0.2, lockout=600, name=2):
    data = struct.pack(">IffffI8s", name, rate, vtbi, starting, extra, lockout, b"")
    return [data[:16], data[16:]]


def programmed(content, at=1000):
    return [begin(at), *content, end(at)]


def part(first, last, *, epoch=0, time="relative", end=FF):
    return f"{epoch}:{first}-{last} sum {time} {end.hex()}"


def capture(records, first=0, *, epoch=0, time="relative", anchor=None):
    data = b"".join(records)
    return Capture(
        data=data, family="miva", pump_id=PUMP, part=part(first, first + len(records) - 1, epoch=epoch, time=time), anchor=anchor
    )


def decoded(captures):
    return joined(miva.decode(one) for one in captures)


def log(*captures):
    return miva.assemble(PUMP, *decoded(captures))


def events(records, first=0, **more):
    return views(log(capture(records, first, **more)).events)


def kinds(found):
    return [one.kind for one in found]


def detail(one):
    return json.loads(one.detail)


def starts(found):
    return [(one.source, one.rate_ml_h) for one in found if one.kind == "delivery_start"]


# --- each record alone ----------------------------------------------------------------------------------------------------------

ALONE = [
    (0x00, 0x0200, "settings_change", {}),
    (0x01, 0, "delivery_start", {"source": "primary"}),
    (0x02, 0, "delivery_stop", {"source": None, "reason": "user"}),
    (0x03, 0, "delivery_complete", {"source": "primary"}),
    (0x04, 1, "limit_reached", {}),
    (0x04, 2, "limit_reached", {}),
    (0x04, 4, "limit_cleared", {}),
    (0x04, 3, "other", {}),
    (0x05, 7, "other", {}),
    (0x06, 0x0200, "demand_granted", {"reason": None}),
    (0x06, 0x0100, "bolus_requested", {"source": "intermittent"}),
    (0x06, 0x0800, "bolus_requested", {"source": "clinician"}),
    (0x06, 0x0400, "other", {}),
    (0x07, 0x0003, "demand_denied", {"reason": "unknown"}),
    (0x08, 0x0010, "other", {}),
    (0x09, 1, "alarm_raised", {"alarm_class": "occlusion", "stops_delivery": True}),
    (0x09, 2, "alarm_raised", {"alarm_class": "occlusion", "stops_delivery": True}),
    (0x09, 4, "alarm_cleared", {"alarm_class": "occlusion"}),
    (0x0A, 1, "delivery_start", {"source": "primary"}),
    (0x0A, 2, "delivery_start", {"source": "primary"}),
    (0x0A, 3, "other", {}),
    (0x0B, 1, "alarm_raised", {"alarm_class": "other", "stops_delivery": False}),
    (0x0C, 0, "counters_cleared", {}),
    *((0x0D, bit, "alarm_raised", {"alarm_class": "battery", "stops_delivery": False}) for bit in (2, 4, 0x100, 0x200)),
    *((0x0D, bit, "other", {}) for bit in (0, 1, 8, 0x10, 0x20, 0x40, 0x80)),
    (0x0E, 0, "reservoir_change", {}),
    (0x0F, 0, "other", {}),
    (0x10, 0, "power_off", {}),
    (0x11, 1, "alarm_raised", {"alarm_class": "malfunction", "stops_delivery": True}),
    (0x12, 2, "alarm_raised", {"alarm_class": "malfunction", "stops_delivery": True}),
    (0x13, 1, "alarm_raised", {"alarm_class": "battery", "stops_delivery": True}),
    (0x14, 5, "other", {}),
    (0x15, 0, "alarm_raised", {"alarm_class": "other", "stops_delivery": False}),
    (0x16, 0x1001, "settings_change", {"lockout_s": None}),
    (0x17, 1, "bolus_delivered", {"source": "pca", "at": "end", "duration_s": None}),
    (0x17, 2, "bolus_delivered", {"source": "loading", "at": "end", "duration_s": None}),
    (0x17, 3, "other", {}),
    (0x18, 5, "power_on", {}),
    (0x19, 0, "other", {}),
    (0x1A, 4, "alarm_raised", {"alarm_class": "malfunction", "stops_delivery": True}),
    (0x1B, 4, "alarm_raised", {"stops_delivery": True}),
    (0x1C, 0, "alarm_raised", {"alarm_class": "battery", "stops_delivery": True}),
    (0x1D, 0, "alarm_raised", {"stops_delivery": False}),
    (0x1E, 0, "alarm_raised", {"alarm_class": "battery", "stops_delivery": False}),
    (0x1F, 1, "other", {}),
    (0x1F, 2, "alarm_raised", {"alarm_class": "battery", "stops_delivery": True}),
    (0x1F, 3, "alarm_raised", {"alarm_class": "battery", "stops_delivery": True}),
    (0x20, 0, "other", {}),
    (0xFE, 0, "other", {}),
]


@pytest.mark.parametrize(("code", "sub", "kind", "fields"), ALONE)
def test_every_row_of_the_mapping(code, sub, kind, fields):
    (one,) = events([rec(code, sub, at=77)])
    assert one.kind == kind
    assert one.native_code == f"{code:02x}"
    assert {name: getattr(one, name) for name in fields} == fields
    assert (one.native_ms, one.pump_time) == (77_000, datetime(1970, 1, 1) + timedelta(seconds=77))


def test_an_empty_record_is_a_hole_of_the_log_itself():
    assert kinds(events([rec(0x0F), FF, rec(0x0F)])) == ["other", "data_corruption", "other"]


def test_details_say_what_the_record_is_in_words():
    told = [
        detail(one)
        for one in events(
            [
                rec(0x02, 0, struct.pack(">f", 12.34)),
                rec(0x07, 3),
                rec(0x08, 0x20),
                rec(0x0B, 2, struct.pack(">If", 9000, 1.5)),
                rec(0x0D, 0x102, struct.pack(">ff", 5.91, 7.25)),
                rec(0x11, 1, struct.pack(">BH", 7, 1234)),
                rec(0x12, 0x8001),
                rec(0x16, 0x1103, struct.pack(">II", 600, 900)),
                rec(0x16, 0x2001, struct.pack(">ff", 0.5, 2.03)),
                rec(0x18, 5, struct.pack(">ff", 6.0, float("nan"))),
                rec(0x21, 9),
            ]
        )
    ]
    assert told == [
        {"name": "INFUSION_PAUSED", "infused_ml": 12.34},
        {"name": "EXTRA_DOSE_DENIED", "attempt": 3},
        {"name": "DOSE_CANCEL", "sub": 0x20, "what": "extra dose"},
        {"name": "PUMP_LIMIT_REACHED_ALARM", "sub": 2, "what": "service life", "life_s": 9000, "life_ml": 1.5},
        {"name": "BATTERY", "sub": 0x102, "what": ["low", "empty"], "battery_v": 5.91, "infused_ml": 7.25},
        {"name": "FIRMWARE_ERROR_ALARM", "sub": 1, "what": "flash CRC", "file": 7, "line": 1234},
        {"name": "SYSTEM_ERROR_ALARM", "sub": 0x8001, "what": ["upstream sensor", "external watchdog"]},
        {"name": "SETTING_CHANGE", "protocol": "Nightly", "node": "upper limit", "parameter": "extra dose lockout", "old": 600, "new": 900},
        {"name": "SETTING_CHANGE", "protocol": "Daily 2", "node": "value", "parameter": "rate", "old": 0.5, "new": 2.03},
        {"name": "POWER_ON", "sub": 5, "what": "AC", "battery_v": 6.0, "infused_ml": None},
        {"sub": 9},
    ]


def test_a_paused_infusion_has_no_volume_of_one_delivery():
    (one,) = events([rec(0x02, 0, struct.pack(">f", 12.34))])
    assert one.volume_ml is None


# --- time ----------------------------------------------------------------------------------------------------------------------


def test_a_relative_stamp_is_elapsed_time_without_its_top_nibble():
    (one,) = events([bytes.fromhex("01" + "78563412" + "00" * 11)])
    assert one.native_ms == 0x02345678 * 1000
    (two,) = events([bytes.fromhex("01" + "785634f2" + "00" * 11)])
    assert two.native_ms == 0x02345678 * 1000


def test_an_absolute_stamp_is_a_date_and_no_elapsed_time():
    for at in (NOON, datetime(2024, 2, 29, 23, 59, 59), datetime(2000, 1, 1), datetime(2063, 12, 31, 1, 2, 3)):
        (one,) = events([dated(0x01, at=at)], time="absolute")
        assert (one.pump_time, one.native_ms) == (at, None)


@pytest.mark.parametrize(
    "bits",
    [13 << 22 | 1 << 17, 1 << 17, 1 << 22, 26 << 26 | 2 << 22 | 29 << 17, 1 << 22 | 1 << 17 | 24 << 12, 1 << 22 | 1 << 17 | 60],
)
def test_a_record_whose_stamp_is_no_date_cannot_be_read(bits):
    found = events([dated(0x0F), struct.pack(">BI", 0x02, bits) + bytes(11), dated(0x0F)], time="absolute")
    assert kinds(found) == ["other", "data_corruption", "other"]
    assert found[1].pump_time is None


def test_a_counter_that_steps_back_is_a_cut_and_nothing_is_carried_across():
    found = log(capture([rec(0x01, at=5000), rec(0x0F, at=6000), rec(0x0F, at=40), rec(0x02, at=100)]))
    line = place(Block.of(["one"], [found]), ClockPolicy())
    assert line.stretch.tolist() == [0, 0, 1, 1]
    assert line.elapsed.tolist() == [0, 1_000_000, 0, 60_000]


def test_an_anchor_whose_counter_is_below_the_stamp_before_it_anchors_nothing():
    restarted = Anchor(pump_clock=datetime(1970, 1, 1, 0, 1), utc=UTC_NOON, after="0:0")
    good = Anchor(pump_clock=datetime(1970, 1, 1, 2), utc=UTC_NOON, after="0:0")
    for anchor, known in ((restarted, False), (good, True)):
        line = place(Block.of(["one"], [log(capture([rec(0x01, at=5000)], anchor=anchor))]), ClockPolicy())
        assert (line.utc[0] == UTC_NOON.timestamp() * 1000 - 2_200_000) == known


# --- programmes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "rate"),
    [
        (short(rate=0.5), 0.5),
        (short(rate=2.03, name=4), 2.03),
        (short(rate=0.0), 0.0),
        (long(p0=2.03), 2.03),
        (long(p0=0.0), 0.0),
        (long(p1=20.0), 0.0),
        (long(mode=0, p0=1.25), 1.25),
        (long(mode=0, p1=20.0, p3=3600), None),
        (long(mode=2, p0=5.0, p1=1.0), 0.0),
        (long(unit=1, p0=2.0), None),
        (long(unit=2, p0=0.0), 0.0),
        (long(unit=4, p0=1.0), None),
        (long(p0=0.5, p9=2.03), 0.5),
        (long(p0=0.5, p9=2.04), 0.5),
    ],
)
def test_a_start_starts_at_the_rate_of_its_programme(content, rate):
    found = events([*programmed(content), rec(0x01)])
    assert kinds(found) == ["other"] * (len(content) + 1) + ["settings_change", "delivery_start"]
    assert starts(found) == [("primary", rate)]


def test_a_rate_in_mg_a_minute_is_a_dose_an_hour():
    one = events([*programmed(long(unit=3, p0=2.5)), rec(0x01)])[-1]
    assert (one.rate_ml_h, one.rate_dose_h, one.dose_unit) == (None, 150.0, "mcg")


def test_a_start_of_no_known_programme_has_an_unknown_rate():
    assert starts(events([rec(0x01)])) == [("primary", None)]


@pytest.mark.parametrize("sub", [1, 2])
def test_a_delayed_start_is_kvo_until_the_delay_ends(sub):
    found = events([*programmed(long(p0=0.5, p4=1800, p10=0.1)), rec(0x01), rec(0x0A, sub), rec(0x02), rec(0x01)])
    assert starts(found) == [("kvo", 0.1), ("primary", 0.5), ("primary", 0.5)]


def test_a_new_programme_waits_for_its_own_delay():
    delayed = programmed(long(mode=2, p0=5.0, p5=60))
    assert starts(events([*delayed, rec(0x01), rec(0x0A, 1), rec(0x02), *delayed, rec(0x01), rec(0x0A, 1)])) == [
        ("kvo", None),
        ("primary", 0.0),
        ("kvo", None),
        ("primary", 0.0),
    ]


@pytest.mark.parametrize(
    ("content", "lockout"),
    [(short(lockout=480), 480.0), (long(p0=1.0, p8=600), 600.0), (long(p0=1.0), None), (long(mode=0, p0=1.0), None)],
)
def test_the_end_of_a_programme_tells_its_lockout(content, lockout):
    *_, last = events(programmed(content))
    assert (last.kind, last.lockout_s) == ("settings_change", lockout)


def test_the_end_of_a_programme_tells_all_of_it_in_words():
    *_, last = events(programmed(long(p0=2.03, p7=0.2, p8=600)))
    told = detail(last)["programme"]
    assert told["mode"] == "bolus"
    assert told["rate_unit"] == "mL/h"
    assert (told["rate"], told["extra"], told["lockout_s"]) == (2.03, 0.2, 600)
    assert (told["protocol"], told["drug_name"]) == ("Protocol 0", "XYZ")
    assert "kvo" not in told
    *_, last = events(programmed(short(extra=0.15, name=3)))
    assert (detail(last)["programme"]["protocol"], detail(last)["programme"]["extra"]) == ("Nightly", 0.15)


def test_what_lies_in_a_programme_is_no_event_however_it_looks():
    looks = [rec(code, sub) for code, sub in ((1, 0), (2, 0), (0, 0x0100), (0x0E, 0), (0x17, 1), (0x09, 2))]
    content = long(p0=1.0)
    content[7:13] = looks
    found = events([*programmed(content), rec(0x01)])
    assert kinds(found)[:17] == ["other"] * 17
    assert starts(found) == [("primary", 1.0)]
    assert all(one.pump_time is None and one.native_ms is None and one.native_code == "00" for one in found[1:17])


def test_two_short_programmes_fourteen_records_apart_are_two():
    found = events([*programmed(short(rate=1.0)), rec(0x01), *[rec(0x0F)] * 8, rec(0x02), *programmed(short(rate=2.0)), rec(0x01)])
    assert starts(found) == [("primary", 1.0), ("primary", 2.0)]


def test_a_long_programme_whose_kvo_looks_like_the_end_of_a_short_one_is_long():
    content = long(p0=0.5, p9=2.04)
    assert content[2][0] == 0
    assert content[2][5] == 2
    found = events([*programmed(content), rec(0x01)])
    assert kinds(found)[-2:] == ["settings_change", "delivery_start"]
    assert kinds(found)[:17] == ["other"] * 17


@pytest.mark.parametrize("content", [short(rate=0.5), long(p0=0.5, p9=2.03), long(p0=0.5, p9=2.04)])
@pytest.mark.parametrize("after", [[rec(0x01), rec(0x02)], [rec(0x0F)] * 20])
def test_a_log_that_begins_within_a_programme_reads_none_of_it_as_events(content, after):
    whole = [*programmed(content), *after]
    for cut in range(1, len(content) + 2):
        found = events(whole[cut:], first=cut)
        assert kinds(found)[: len(content) + 1 - cut] == ["other"] * (len(content) + 1 - cut)
        assert kinds(found)[len(content) + 1 - cut] == "settings_change"
        assert found[len(content) + 1 - cut].lockout_s is None
        assert starts(found) == [("primary", None)] * ("delivery_start" in kinds(found))


@pytest.mark.parametrize("content", [short(rate=0.5), long(p0=0.5, p9=2.03), long(p0=0.5, p9=2.04)])
def test_a_log_that_ends_within_a_programme_reads_none_of_it_as_events(content):
    whole = [rec(0x01), *[rec(0x0F)] * 20, *programmed(content)]
    for cut in range(1, len(content) + 2):
        found = events(whole[:-cut])
        assert kinds(found) == ["delivery_start"] + ["other"] * (len(whole) - cut - 1)


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0])
def test_a_programme_whose_rate_is_no_rate_starts_nothing(rate):
    for content in (short(rate=rate), long(p0=rate), long(mode=9)):
        assert kinds(events([*programmed(content), rec(0x01)]))[-2:] == ["settings_change", "data_corruption"]


@pytest.mark.parametrize("content", [short(rate=0.0), long(p0=0.0)])
def test_a_programme_of_which_a_record_is_missing_is_part_of_the_hole_and_its_start_a_hole_too(content):
    idle = [rec(0x0F)] * 20
    whole = [*programmed(short(rate=3.0)), rec(0x01), rec(0x02), *idle, *programmed(content), rec(0x01), rec(0x02), *idle]
    size = len(content) + 2
    low = 6 + len(idle)
    for gone in range(low, low + size):
        found = views(log(capture(whole[:gone]), capture(whole[gone + 1 :], first=gone + 1)).events)
        assert kinds(found)[low : low + size] == ["data_gap" if number == gone else "data_corruption" for number in range(low, low + size)]
        assert kinds(found)[low + size : low + size + 2] == ["data_corruption", "delivery_stop"]
        assert starts(found) == [("primary", 3.0)]


def test_a_hole_too_small_for_a_programme_leaves_the_programme_known():
    whole = [*programmed(short(rate=0.0)), *[rec(0x0F)] * 8, rec(0x01)]
    for count, told in ((1, [("primary", 0.0)]), (3, [("primary", 0.0)]), (4, [])):
        found = views(log(capture(whole[:6]), capture(whole[6 + count :], first=6 + count)).events)
        assert starts(found) == told
        assert ("data_corruption" in kinds(found)) == (not told)


def test_a_hole_while_a_delay_waits_for_its_end_leaves_open_whether_the_next_start_is_one():
    whole = [*programmed(long(p0=1.0, p4=900)), rec(0x01), rec(0x0F), rec(0x02), rec(0x01)]
    assert starts(events(whole)) == [("kvo", None), ("kvo", None)]
    found = views(log(capture(whole[:19]), capture(whole[20:], first=20)).events)
    assert kinds(found)[18:] == ["delivery_start", "data_gap", "delivery_stop", "data_corruption"]


def test_a_programme_near_the_end_of_what_is_known_is_part_of_a_hole_in_it():
    early = [rec(0x01), rec(0x02), *programmed(short(rate=1.0)), rec(0x01)]
    found = views(log(capture(early[:2]), capture(early[3:], first=3)).events)
    assert set(kinds(found)) == {"data_corruption", "data_gap"}
    late = [rec(0x0F)] * 20 + programmed(long(p0=1.0))[:10]
    found = views(log(capture(late[:25]), capture(late[26:], first=26)).events)
    assert kinds(found)[20:] == ["data_corruption"] * 5 + ["data_gap"] + ["data_corruption"] * 4


def test_empty_records_in_a_log_count_as_missing_ones():
    assert starts(events([*programmed(short(rate=0.0)), FF, FF, FF, rec(0x01)])) == [("primary", 0.0)]
    assert starts(events([*programmed(short(rate=0.0)), FF, FF, FF, FF, rec(0x01)])) == []


# --- doses ---------------------------------------------------------------------------------------------------------------------


def test_a_demanded_dose_lasts_from_its_grant_to_its_end():
    found = events([*programmed(short(extra=0.2)), rec(0x06, 0x0200, at=5000), rec(0x0F, at=5001), rec(0x17, 1, at=5036)])
    assert (found[-1].duration_s, found[-1].programmed_ml, found[-1].volume_ml) == (36.0, 0.2, None)


@pytest.mark.parametrize(("code", "sub"), [(0x02, 0), (0x08, 0x20), (0x09, 2), (0x09, 4), (0x0E, 0), (0x10, 0), (0x18, 1), (0x12, 1)])
def test_a_dose_that_was_interrupted_has_no_duration(code, sub):
    found = events([rec(0x06, 0x0200, at=5000), rec(code, sub, at=5010), rec(0x17, 1, at=5036)])
    assert found[-1].duration_s is None


def test_a_dose_has_no_duration_across_a_hole_a_restart_or_without_a_grant_of_its_own():
    whole = [rec(0x06, 0x0200, at=5000), rec(0x0F, at=5001), rec(0x17, 1, at=5036), rec(0x17, 1, at=5040)]
    assert [one.duration_s for one in events(whole)] == [None, None, 36.0, None]
    assert views(log(capture(whole[:1]), capture(whole[2:], first=2)).events)[2].duration_s is None
    assert events([whole[0], rec(0x17, 1, at=30)])[-1].duration_s is None


def test_doses_of_nurse_and_pump_have_their_programmed_amounts():
    content = long(p0=0.5, p2=1.0, p5=0.3, p13=0.4)
    found = events([*programmed(content), rec(0x06, 0x0100), rec(0x06, 0x0800), rec(0x17, 2)])
    assert [(one.kind, one.source, one.programmed_ml) for one in found[-3:]] == [
        ("bolus_requested", "intermittent", 0.3),
        ("bolus_requested", "clinician", 0.4),
        ("bolus_delivered", "loading", 1.0),
    ]


# --- captures ------------------------------------------------------------------------------------------------------------------


def pca(seed=1, days=2, **options):
    return simulated.simulate(therapy("pca", seed, datetime(2026, 3, 2, 5, tzinfo=UTC), days), seed, **options)


RECORDED = [record for _, record in pca()[0].records]


def test_equal_events_have_equal_bytes_of_json():
    assert log(capture(RECORDED)).events.equals(log(capture(RECORDED)).events)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_split_order_and_repetition_of_captures_gives_the_same_log(data):
    borders = sorted(data.draw(st.sets(st.integers(1, len(RECORDED) - 1), max_size=6)))
    edges = [0, *borders, len(RECORDED)]
    pieces = [capture(RECORDED[low:high], first=low) for low, high in pairwise(edges)]
    pieces += data.draw(st.lists(st.sampled_from(pieces), max_size=3))
    found = log(*data.draw(st.permutations(pieces)))
    assert found.events.equals(log(capture(RECORDED)).events)


@settings(max_examples=80, deadline=None)
@given(size=st.integers(16, 3000), first=st.integers(-50, 50_000), data=st.data())
def test_the_parts_of_a_split_capture_give_the_log_of_the_whole(size, first, data):
    records = list(RECORDED)
    for gone in data.draw(st.sets(st.integers(0, len(records) - 1), max_size=4)):
        records[gone] = data.draw(st.sampled_from([FF, begin(), end(), rec(0x30, at=7)]))
    after = data.draw(st.sampled_from([None, f"0:{first + 9}"]))
    anchor = Anchor(pump_clock=NOON, utc=UTC_NOON, round_trip_ms=9, after=after)
    whole = capture(records, first=first, anchor=data.draw(st.sampled_from([None, anchor])))
    parts = miva.split(whole, size)
    assert (parts == [whole]) == (len(whole.data) <= size)
    assert all(len(one.data) <= size and (one.model, one.pump_id) == (whole.model, PUMP) for one in parts)
    assert b"".join(one.data for one in parts) == whole.data
    one, two = log(*data.draw(st.permutations(parts))), log(whole)
    assert one.events.equals(two.events)
    assert one.anchors == two.anchors
    assert set(one.event_of_record.to_pylist()) == set(two.event_of_record.to_pylist())


def test_a_download_goes_on_from_the_parts_of_a_split_capture():
    pump, _ = pca(checksum_family="xor")
    (whole,) = miva.read_files([("dump.bin", transcript(pump, 0, len(pump.records) - 1))])
    host = Host(pump)
    host.kept = miva.split(whole, 640)
    assert len(host.kept) == 3
    assert host.sync().new_parts == 0


def test_what_cannot_be_cut_at_its_records_is_not_split():
    whole = capture(RECORDED)
    for bad, size in ((whole, 15), (replace(whole, part=None), 64), (replace(whole, part=part(0, 3)), 64)):
        with pytest.raises(InputError) as raised:
            miva.split(bad, size)
        assert raised.value.code == "too_large"
    assert miva.split(replace(whole, part=None), len(whole.data)) == [replace(whole, part=None)]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_and_mutated_bytes_never_raise_and_are_read_or_quarantined(data):
    records = data.draw(
        st.lists(
            st.one_of(
                st.binary(min_size=16, max_size=16),
                st.sampled_from(RECORDED),
                st.sampled_from([begin(), end(), FF, *short(), *long(p9=2.04)[:3]]),
            ),
            max_size=60,
        )
    )
    time = data.draw(st.sampled_from(["relative", "absolute"]))
    gone = data.draw(st.sets(st.integers(0, 60), max_size=4))
    pieces = [capture([record], first=number, time=time) for number, record in enumerate(records) if number not in gone]
    if pieces:
        found = log(*pieces)
        assert [one["raw"] for one in found.events.to_pylist() if one["raw"]] == [one.data for one in pieces]
        assert place(Block.of(["one"], [found]), ClockPolicy()).stretch.max() >= -1


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64), st.one_of(st.none(), st.text(max_size=60), st.just(part(0, 1)), st.just(part(5, 2))))
def test_a_capture_that_cannot_be_placed_is_one_fault_with_its_bytes(data, named):
    found = miva.decode(Capture(data=data, family="miva", pump_id=PUMP, part=named))
    assert b"".join(found.records.column("raw").to_pylist() + found.faults.column("raw").to_pylist()) == data


def test_a_capture_of_the_wrong_length_is_a_hole_where_it_stands():
    torn = Capture(data=rec(0x02)[:-1], family="miva", pump_id=PUMP, part=part(1, 1))
    found = log(capture([rec(0x01)]), torn)
    assert kinds(views(found.events)) == ["delivery_start", "data_corruption"]
    healed = log(capture([rec(0x01)]), torn, capture([rec(0x02)], first=1))
    assert kinds(views(healed.events)) == ["delivery_start", "delivery_stop"]


def test_records_that_differ_in_any_byte_are_a_conflict():
    later = Anchor(pump_clock=NOON, utc=UTC_NOON, after="0:0")
    first = Anchor(pump_clock=NOON, utc=UTC_NOON - timedelta(1), after="0:0")
    found = log(capture([rec(0x0F, spare=1)], anchor=later), capture([rec(0x0F, spare=0)], anchor=first))
    (one,) = views(found.events)
    assert one.conflict
    assert one.raw[-1] == 1
    assert detail(one)["name"] == "TIME_STAMP"
    assert len(detail(one)["conflicts_with"]) == 1


def test_a_programme_that_was_read_in_two_ways_is_not_known():
    other = short(rate=0.0)
    found = views(log(capture([*programmed(short(rate=1.0)), rec(0x01)]), capture(other[:1], first=1)).events)
    assert [one.conflict for one in found] == [False, True, False, False, False]
    assert kinds(found) == ["data_corruption"] * 5


def test_a_new_epoch_is_a_hole():
    found = log(capture([rec(0x01)]), capture([rec(0x02)], epoch=1))
    assert kinds(views(found.events)) == ["delivery_start", "data_gap", "delivery_stop"]


def test_the_family_is_found_by_its_name():
    assert families.family("miva") is miva


def ready(found):
    known = orders(pump_id=PUMP, tz="America/New_York", start="1960-01-01T00:00:00Z")
    lines = billed([found], known, FactPolicy()).rows("lines")
    return {(line["service_date"], line["code"]): line["units"] for line in lines if line["state"] == "ready"}


def days_of_therapy():
    """A log of deliveries that can all be billed, with programmes of all kinds, hours apart."""
    at, found = 10_000_000, []

    def then(seconds, *codes):
        nonlocal at
        at += seconds
        found.extend(rec(code, sub, at=at) for code, sub in codes)

    for content in (
        short(rate=0.0),
        short(rate=1.0),
        long(p0=0.0, p7=0.2),
        long(p0=2.0, p9=2.04),
        long(p0=1.0, p4=900),
        long(mode=2, p0=3.0),
    ):
        found.extend(programmed(content, at=at))
        delayed = [(0x0A, 1)] if content[0][:4] == struct.pack(">f", 1.0) and len(content) == 16 else []
        then(7000, (0x0F, 0), (0x01, 0))
        then(900, *delayed)
        then(1200, (0x06, 0x0200))
        then(40, (0x17, 1))
        then(3000, (0x02, 0))
        then(14_000, (0x01, 0))
        then(4000, (0x03, 0))
        then(55_000, (0x0F, 0))
    return found, at


def test_leaving_out_any_one_record_makes_no_line_ready_and_none_larger():
    records, at = days_of_therapy()
    last = len(records) - 1
    begun = datetime(1970, 1, 1) + timedelta(seconds=10_000_000)
    anchor = Anchor(
        pump_clock=begun + timedelta(seconds=at - 10_000_000), utc=UTC_NOON + timedelta(seconds=at - 10_000_000), after=f"0:{last}"
    )
    whole = ready(log(capture(records, anchor=anchor)))
    assert {code for _, code in whole} >= {"96369", "96370"}
    assert len({date for date, _ in whole}) >= 3
    for gone in range(1, last):
        left = ready(log(capture(records[:gone]), capture(records[gone + 1 :], first=gone + 1, anchor=anchor)))
        for line, units in left.items():
            assert units <= whole.get(line, 0), (gone, line)


# --- files ---------------------------------------------------------------------------------------------------------------------


def transcript(pump, first, last):
    asked = [b"RN", b"RI", b"RC", *(b"RE%08X" % (number % RING) for number in range(first, last + 1))]
    return b"".join(pump.feed(b"\x02" + one + simulated.checksum(one, "xor") + b"\x03") for one in asked)


def test_a_recorded_dialogue_is_a_file_of_this_family():
    pump, _ = pca(first=43_200, checksum_family="xor")
    count = len(pump.records)
    data = transcript(pump, 43_200, 43_200 + count - 1)
    assert miva.recognise("dump.bin", data)
    assert not miva.recognise("dump.bin", data[:70])
    (one,) = miva.read_files([("dump.bin", data)], pump_id=None, model="Nimbus H", anchor=None)
    assert (one.pump_id, one.model) == (PUMP, "Nimbus H")
    assert one.data == b"".join(record for _, record in pump.records)
    assert one.part.startswith(f"0:43200-{43_200 + count - 1} xor relative ")


def test_a_frame_of_a_file_that_is_damaged_leaves_a_hole():
    pump, _ = pca(checksum_family="xor")
    data = bytearray(transcript(pump, 0, 20))
    data[-46 * 11 + 20] ^= 1
    captures = miva.read_files([("a", bytes(data))], pump_id=PUMP, anchor=Anchor(pump_clock=NOON, utc=UTC_NOON))
    assert [one.part.split()[0] for one in captures] == ["0:0-9", "0:11-20"]
    assert {one.anchor.after for one in captures} == {"0:20"}
    assert "data_gap" in kinds(views(log(*captures).events))


def test_files_that_do_not_say_which_pump_or_how_to_read_them_are_refused():
    pump, _ = pca(checksum_family="xor")
    data = transcript(pump, 0, 5)
    nameless = data[data.index(b"\x02RI") :]
    with pytest.raises(InputError, match="no pump"):
        miva.read_files([("a", nameless)])
    assert miva.read_files([("a", nameless)], pump_id=PUMP)
    with pytest.raises(InputError, match="another pump"):
        miva.read_files([("a", data)], pump_id="miva:OTHER000")
    with pytest.raises(InputError, match="no whole dialogue"):
        miva.read_files([("a", data.replace(b"\x02RC", b"\x02XC"))])
    with pytest.raises(InputError, match="no whole dialogue"):
        miva.read_files([("a", b"")], pump_id=PUMP)


# --- the dialogue --------------------------------------------------------------------------------------------------------------


class Host:
    """Runs downloads of a simulated pump on a clock of its own, 60 ms an exchange, and keeps what it got."""

    def __init__(self, pump, now=datetime(2026, 3, 5, tzinfo=UTC)):
        self.pump, self.now = pump, now
        self.kept, self.notes, self.asks = [], [], []

    def exchange(self, ask):
        self.asks.append(ask)
        sent, self.now = self.now, self.now + timedelta(milliseconds=60)
        data = self.pump.feed(ask.data)
        assert data or ask.missing(b"") > 0
        return Reply(data=data, sent=sent, received=self.now)

    def sync(self, pump_id=PUMP, known=None):
        known = self.kept if known is None else known
        return run(miva.download(pump_id, [head(one) for one in known]), self.exchange, self.kept.append, self.notes.append)

    def seqs(self):
        return decoded(self.kept)[0].column("seq").to_pylist()


def told(log_):
    return [(one.seq, one.kind, one.raw) for one in views(log_.events)]


def test_the_requests_are_framed_as_real_builds_frame_them():
    for family, frames in (("sum", ("RI9B", "RC95", "RNA0")), ("xor", ("RI1B", "RC11", "RN1C"))):
        host = Host(pca(checksum_family=family)[0])
        host.sync()
        sent = {ask.data for ask in host.asks}
        assert {b"\x02" + frame.encode() + b"\x03" for frame in frames} <= sent
    assert miva.HELLO.data == b"\x02RE0000000017\x03"


def test_a_hello_is_answered_in_both_families_and_by_nothing_else():
    for family in ("sum", "xor"):
        answer = pca(checksum_family=family)[0].feed(miva.HELLO.data)
        assert miva.is_hello(answer)
        assert miva.HELLO.missing(answer) == 0
        assert miva.HELLO.missing(answer[:-1]) > 0
        assert not miva.is_hello(answer[:-4] + b"zz" + answer[-2:])
    assert not miva.is_hello(b"")
    assert not miva.is_hello(b"\x01\x55" + bytes(62))


@pytest.mark.parametrize("family", ["sum", "xor"])
@pytest.mark.parametrize("clock", ["relative", "absolute"])
@pytest.mark.parametrize("first", [0, 43_230, 20_000])
def test_a_download_fetches_the_whole_log_with_clock_anchors_around_it(family, clock, first):
    pump, _ = pca(checksum_family=family, clock=clock, first=first)
    host = Host(pump)
    summary = host.sync()
    assert summary.complete
    assert summary.model == ("Nimbus II or CAPS" if family == "sum" else "Nimbus H")
    assert host.seqs() == list(range(first, first + len(pump.records)))
    assert b"".join(one.data for one in host.kept) == b"".join(record for _, record in pump.records)
    assert summary.new_parts == sum(1 for one in host.kept if one.data)
    assert all(one.anchor.round_trip_ms == 60 for one in host.kept)
    assert {one.anchor.after for one in host.kept} == {f"0:{first + len(pump.records) - 1}"}
    assert (summary.clock_offset_s is None) == (clock == "relative")
    assert len(log(*host.kept).anchors) == len(host.kept)


def test_progress_counts_to_its_total():
    pump, _ = pca()
    host = Host(pump)
    host.sync()
    asked = [(ask.done, ask.total) for ask in host.asks if ask.data.startswith(b"\x02RE") and ask is not miva.HELLO]
    assert asked == [(number, len(pump.records)) for number in range(len(pump.records))]


def test_nothing_that_is_asked_can_change_a_pump():
    host = Host(pca()[0])
    host.sync()
    host.sync()
    assert {command[:2] for command in host.pump.asked} == {b"RE", b"RI", b"RC", b"RN"}


def test_nothing_new_is_one_empty_capture_with_the_clock():
    host = Host(pca()[0])
    host.sync()
    before = len(host.kept)
    summary = host.sync()
    assert (summary.new_parts, summary.complete) == (0, True)
    (one,) = host.kept[before:]
    assert one.data == b""
    assert one.anchor.utc > host.kept[0].anchor.utc
    again = host.sync()
    assert again.new_parts == 0
    assert [ask.data[1:3] for ask in host.asks[-5:]] == [b"RE", b"RN", b"RI", b"RC", b"RE"]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 2000), st.integers(0, 3))
def test_a_download_that_is_broken_off_goes_on_where_it_stopped(byte, seed):
    pump, _ = pca(first=43_200, faults=Faults(unplug_at=byte * 5))
    host = Host(pump)

    def exchange(ask):
        try:
            return host.exchange(ask)
        except Exception as error:
            raise LinkError("gone") from error

    try:
        run(miva.download(PUMP, []), exchange, host.kept.append)
        broken_off = False
    except LinkError:
        broken_off = True
    assume(broken_off)  # where the cable is pulled later, it would be pulled from the download that goes on
    already = set(host.seqs())
    asked = len(host.pump.asked)
    assert host.sync().complete
    reread = {int(one[2:], 16) for one in host.pump.asked[asked:] if one[:2] == b"RE"} & {seq % RING for seq in already}
    assert len(reread) <= 2
    assert host.seqs() == list(range(43_200, 43_200 + len(pump.records)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_a_noisy_line_costs_time_and_no_record(seed):
    pump, _ = pca(faults=Faults(noise=0.1, silence=0.1))
    pump._line._chance = random.Random(seed)
    host = Host(pump)
    for _ in range(20):
        try:
            if host.sync().complete:
                break
        except LinkError:
            continue
    fetched = decoded(host.kept)[0]
    assert sorted(set(fetched.column("seq").to_pylist())) == list(range(len(pump.records)))
    assert set(fetched.column("raw").to_pylist()) == {record for _, record in pump.records}
    assert set(fetched.column("log_epoch").to_pylist()) == {0}


def test_a_record_that_cannot_be_had_is_left_out_and_fetched_the_next_time():
    pump, _ = pca()
    host = Host(pump)
    answer = pump._answer
    pump._answer = lambda command: answer(command)[:-5] + b"\x03" if command == b"RE00000028" else answer(command)
    summary = host.sync()
    assert not summary.complete
    assert 40 not in host.seqs()
    assert len(host.seqs()) == len(pump.records) - 1
    assert kinds(views(log(*host.kept).events))[40] == "data_gap"
    pump._answer = answer
    assert host.sync().complete
    assert sorted(host.seqs()) == list(range(len(pump.records)))


def test_a_pump_that_falls_silent_ends_the_download_soon_and_what_came_is_kept():
    pump, _ = pca()
    host = Host(pump)
    answer, count = pump._answer, [0]

    def mute(command):
        count[0] += 1
        return answer(command) if count[0] < 80 else b""

    pump._answer = mute
    with pytest.raises(LinkError, match="no whole answer"):
        host.sync()
    assert host.seqs() == list(range(64))
    silent = Host(pump)
    with pytest.raises(LinkError):
        silent.sync()
    assert sum(ask.timeout_s for ask in silent.asks) <= 3
    assert all(ask.timeout_s <= 1 for ask in host.asks)


@pytest.mark.parametrize("family", ["sum", "xor"])
def test_a_pump_tells_which_one_it_is(family):
    host = Host(pca(checksum_family=family)[0])
    assert run(miva.identify(), host.exchange, host.kept.append) == PUMP
    assert (host.kept, {command[:2] for command in host.pump.asked}) == ([], {b"RE", b"RN"})


def test_a_pump_that_does_not_answer_is_not_identified():
    pump, _ = pca()
    pump._answer = lambda _: b""
    with pytest.raises(LinkError) as raised:
        run(miva.identify(), Host(pump).exchange, [].append)
    assert raised.value.code == "no_answer"


def test_another_pump_is_refused_without_its_serial_number_in_the_words():
    host = Host(pca()[0])
    with pytest.raises(PumpError) as caught:
        host.sync("miva:M7654321")
    assert "M1234567" not in str(caught.value)
    assert "M7654321" not in str(caught.value)
    assert host.kept == []


def test_what_the_pump_records_while_it_is_read_is_read_too():
    pump, _ = pca(first=43_100)
    times = [written for written, _ in pump.records]
    host = Host(pump)
    pump._now = lambda: times[min(len(times) - 1, 70 + len(host.asks) // 40)]
    assert host.sync().complete
    there = sum(1 for time in times if time <= pump._now())
    assert host.seqs()[: there - 1] == list(range(43_100, 43_100 + there - 1))


def filled(count, **options):
    """A pump whose ring has had so many records."""
    records = [(UTC_NOON, rec(0x0F, at=number)) for number in range(count)]
    return simulated.Pump(PUMP, records, lambda _: b"F0A00000", now=still(UTC_NOON), **options)


def test_a_ring_that_overran_the_last_record_read_begins_a_new_epoch():
    pump = filled(RING + 100)
    known = [capture([rec(0x0F, at=number) for number in range(40, 51)], first=40)]
    known = [Capture(data=one.data, family="miva", pump_id=PUMP, part=part(40, 50, end=one.data[-16:])) for one in known]
    host = Host(pump)
    dialogue = miva.download(PUMP, [head(one) for one in known])
    reply, got = None, None
    while got is None:
        step = dialogue.send(reply)
        reply = None
        match step:
            case Ask():
                reply = host.exchange(step)
            case Got(got):
                pass
            case Note(text):
                host.notes.append(text)
    assert got.part.startswith("1:100-163 sum relative ")
    assert got.data[:16] == rec(0x0F, at=100)
    assert any("overran" in note for note in host.notes)


def test_a_log_that_was_reset_begins_a_new_epoch_and_no_record_is_in_both():
    host = Host(filled(50))
    host.sync()
    fresh = filled(60)
    fresh.records[:] = [(UTC_NOON, rec(0x0F, at=number + 7)) for number in range(60)]
    host.pump = fresh
    assert host.sync().complete
    found = views(log(*host.kept).events)
    assert [(one.log_epoch, one.seq) for one in found if one.seq is not None] == [
        *((0, number) for number in range(50)),
        *((1, number) for number in range(60)),
    ]
    assert host.sync().new_parts == 0


def test_a_log_that_was_reset_and_is_shorter_now_begins_a_new_epoch():
    host = Host(filled(50))
    host.sync()
    host.pump = filled(20)
    assert host.sync().complete
    assert decoded(host.kept)[0].column("log_epoch").to_pylist() == [0] * 50 + [1] * 20


def test_one_garbled_reading_of_the_last_record_begins_no_new_epoch():
    host = Host(filled(50))
    host.sync()
    answer, wrong = host.pump._answer, [b"RE00000031"]

    def once(command):
        if command in wrong:
            wrong.clear()
            said = command + rec(0x01).hex().upper().encode()
            return b"\x02" + said + simulated.checksum(said, "sum") + b"\x03"
        return answer(command)

    host.pump._answer = once
    assert host.sync().new_parts == 0
    assert not wrong
    assert set(decoded(host.kept)[0].column("log_epoch").to_pylist()) == {0}


def test_records_that_are_overwritten_while_they_are_read_are_not_taken_for_the_old_ones():
    pump = filled(RING + 40)
    host = Host(pump)
    more = iter(range(RING + 40, RING + 140))
    answer = pump._answer

    def growing(command):
        if command[:2] == b"RE" and (number := next(more, None)) is not None:
            pump.records.append((UTC_NOON, rec(0x0F, at=number)))
        return answer(command)

    pump._answer = growing
    dialogue = miva.download(PUMP, [])
    reply, captures = None, []
    while len(captures) < 2:
        step = dialogue.send(reply)
        reply = host.exchange(step) if isinstance(step, Ask) else None
        if isinstance(step, Got):
            captures.append(step.capture)
    for one in decoded(captures)[0].to_pylist():
        assert one["native_ms"] == one["seq"] * 1000


def test_an_empty_log_gives_nothing_and_its_first_record_comes_the_next_time():
    pump = filled(0)
    host = Host(pump)
    assert host.sync().new_parts == 0
    assert host.kept == []
    pump.records.append((UTC_NOON, rec(0x01)))
    host.sync()
    assert host.seqs() == [0]
    assert decoded(host.kept)[0].column("log_epoch").to_pylist() == [0]


def test_firmware_that_counts_otherwise_begins_a_new_epoch():
    host = Host(pca(clock="absolute")[0])
    host.sync()
    host.pump = pca(clock="relative")[0]
    host.sync()
    assert set(decoded(host.kept)[0].column("log_epoch").to_pylist()) == {0, 1}


def test_a_clock_that_shows_no_date_is_no_anchor():
    pump, _ = pca(clock="absolute")
    pump._clock = lambda _: b"000000000000"
    host = Host(pump)
    summary = host.sync()
    assert summary.clock_offset_s is None
    assert all(one.anchor is None for one in host.kept)
    assert host.seqs() == list(range(len(pump.records)))
