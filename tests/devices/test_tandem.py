"""Tandem records: captured ones, made ones, every row of the mapping (docs/pump-formats.md §7), and what several tell together."""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import tandem
from devices.contract import Anchor, Capture, joined, views
from devices.errors import InputError
from devices.families import families

PUMP = "tandem:1"
EPOCH = datetime(2008, 1, 1)
NOON = 446_032_800
NOON_SHOWN = EPOCH + timedelta(seconds=NOON)


def record(seq, event, layout="", *values, at=NOON, big=False, source=0):
    """26 bytes; the layout of the data is big-endian, as in the schema."""
    data = struct.pack(">" + layout, *values).ljust(16, b"\0")
    if big:
        return struct.pack(">HII", source << 12 | event, at, seq) + data
    return struct.pack("<HII", source << 12 | event, at, seq) + turned(data)


def turned(data):
    return b"".join(data[i : i + 4][::-1] for i in range(0, 16, 4))


def as_big(little):
    head = struct.unpack("<HII", little[:10])
    return struct.pack(">HII", *head) + turned(little[10:])


def message(*records, transaction=7, packet=False):
    body = bytes((0x81, transaction, 2 + 26 * len(records), len(records), 3)) + b"".join(records)
    return (bytes((0, transaction)) if packet else b"") + body + struct.pack("<H", binascii.crc_hqx(body, 0xFFFF))


def capture(*data, anchor=None):
    return Capture(data=b"".join(data), family="tandem", pump_id=PUMP, anchor=anchor)


def decoded(*data):
    return tandem.decode(capture(*data))


def read(*data):
    """The records of a capture that has no fault."""
    found = decoded(*data)
    assert found.faults.num_rows == 0, found.faults.to_pylist()
    return views(found.records)


def assembled(*captures):
    return tandem.assemble(PUMP, *joined(tandem.decode(one) for one in captures))


def events(*records):
    """The events of a log in one capture."""
    return views(assembled(capture(*records)).events)


# --- captured records -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vectors(fixtures):
    return json.loads((fixtures / "tandem/pumpx2_history_log_vectors.json").read_text())


def detail(name):
    return lambda row: json.loads(row.detail)[name]


def column(name):
    return lambda row: getattr(row, name)


FIGURES = {
    "AlarmActivatedHistoryLog": {"alarmId": detail("alarm_id")},
    "AlertActivatedHistoryLog": {"alertId": detail("alert_id")},
    "BasalRateChangeHistoryLog": {
        "commandBasalRate": column("rate_dose_h"),
        "baseBasalRate": detail("base_u_h"),
        "maxBasalRate": detail("max_u_h"),
        "insulinDeliveryProfile": detail("profile"),
        "changeType": detail("change"),
    },
    "BolusActivatedHistoryLog": {"bolusId": detail("bolus_id"), "iob": detail("iob_u"), "bolusSize": detail("size_u")},
    "BolusCompletedHistoryLog": {
        "completionStatus": detail("completion"),
        "bolusId": detail("bolus_id"),
        "iob": detail("iob_u"),
        "insulinDelivered": column("dose"),
        "insulinRequested": column("programmed_dose"),
    },
    "BolusDeliveryHistoryLog": {
        "bolusID": detail("bolus_id"),
        "bolusDeliveryStatus": detail("status"),
        "requestedNow": detail("requested_now_mu"),
        "requestedLater": detail("requested_later_mu"),
        "deliveredTotal": detail("delivered_mu"),
    },
    "BolusRequestedMsg1HistoryLog": {"bolusId": detail("bolus_id")},
    "BolusRequestedMsg2HistoryLog": {"bolusId": detail("bolus_id")},
    "BolusRequestedMsg3HistoryLog": {
        "bolusId": detail("bolus_id"),
        "foodBolusSize": detail("food_u"),
        "correctionBolusSize": detail("correction_u"),
        "totalBolusSize": column("programmed_dose"),
    },
    "CartridgeFilledHistoryLog": {"insulinDisplay": detail("shown_u"), "insulinActual": detail("actual_u")},
    "DailyBasalHistoryLog": {
        "dailyTotalBasal": column("dose"),
        "lastBasalRate": detail("rate_u_h"),
        "iob": detail("iob_u"),
        "isBatteryCharging": detail("charging"),
        "actualBatteryCharge": detail("battery_percent"),
        "lipoMv": detail("battery_mv"),
    },
    "DateChangeHistoryLog": {"datePrior": detail("prior_day"), "dateAfter": detail("after_day"), "rawRTCTime": detail("rtc_ms")},
    "PumpingResumedHistoryLog": {"insulinAmount": detail("reservoir_u")},
    "PumpingSuspendedHistoryLog": {"insulinAmount": detail("reservoir_u"), "reason": detail("reason")},
    "UsbConnectedHistoryLog": {"negotiatedCurrentmA": detail("current_ma")},
}


def figures(vector):
    """The figures that a vector must give, by name."""
    text = re.sub(r"Set\.of\([^)]*\)", "-", vector["expected_args"])
    values = [value.strip().rstrip("FL") for value in text.split(",")]
    names = [name.split()[-1] for name in vector["field_comment"].split(",") if " " in name.strip()]
    numbers = {"true": 1, "false": 0}
    return dict(zip(names[-len(values) :], (numbers.get(value, value) for value in values), strict=False))


def test_every_captured_record_gives_its_event_time_and_number_in_both_byte_orders(vectors):
    for vector in vectors:
        little = bytes.fromhex(vector["hex"])
        for data in (little, as_big(little)):
            (row,) = read(data)
            assert int(row.native_code) == vector["event_id"]
            assert row.seq == vector["seq"]
            assert (row.new_time or row.pump_time) == EPOCH + timedelta(seconds=vector["seconds_since_2008"])
            assert row.raw == data


def test_every_captured_record_gives_the_figures_that_it_must(vectors):
    seen = set()
    for vector in vectors:
        wanted = FIGURES.get(vector["class"])
        if wanted is None:
            continue
        (row,) = read(bytes.fromhex(vector["hex"]))
        given = figures(vector)
        for name, reading in wanted.items():
            assert reading(row) == pytest.approx(float(given[name]), abs=1e-6), (vector["test"], name)
        seen.add(vector["class"])
    assert seen == FIGURES.keys()


def test_a_captured_record_says_the_same_in_either_byte_order(vectors):
    for vector in vectors:
        little = bytes.fromhex(vector["hex"])
        one, other = (decoded(data).records.drop_columns(["raw", "capture"]) for data in (little, as_big(little)))
        assert one.equals(other)


def test_all_records_of_the_captures_can_be_read_at_once_as_raw_bytes_lines_and_wrapped_text(vectors):
    raw = b"".join(bytes.fromhex(vector["hex"]) for vector in vectors)
    lines = "\n".join(vector["hex"] for vector in vectors).encode()
    for data in (raw, raw.hex().encode(), lines, base64.b64encode(raw), base64.encodebytes(raw)):
        found = decoded(data)
        assert found.faults.num_rows == 0
        assert found.records.column("seq").to_pylist() == [vector["seq"] for vector in vectors]
        assert found.records.column("raw").to_pylist() == [bytes.fromhex(vector["hex"]) for vector in vectors]


def test_every_captured_stream_message_is_read_whole_and_no_damage_to_it_passes(fixtures):
    frames = json.loads((fixtures / "tandem/pumpx2_history_stream_frames.json").read_text())
    for frame in frames:
        data = bytes.fromhex(frame["strings_hex"][-1])
        records = [data[i : i + 26] for i in range(7, len(data) - 2, 26)]
        assert [row.raw for row in read(data)] == records
        assert [row.offset for row in read(data)] == list(range(7, len(data) - 2, 26))
        assert tandem.recognise("log.bin", data)
        for place in range(5, len(data)):
            spoiled = data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
            found = decoded(spoiled)
            assert found.records.num_rows == 0
            assert [f["hole"] for f in found.faults.to_pylist()] == [True] * found.faults.num_rows
            assert b"".join(f["raw"] for f in found.faults.to_pylist()) == spoiled


def test_the_fields_stand_where_the_schema_says(fixtures):
    """Bytes written by the schema's offsets, one field at a time, come out under the names that are kept."""
    schema = json.loads((fixtures / "tandem/tconnectsync_events.json").read_text())["events"]
    sizes = {"uint8": "B", "uint16": "H", "uint32": "I", "float32": "f"}
    kept = {
        3: {
            "CommandedBasalRate": "commanded_u_h",
            "BaseBasalRate": "base_u_h",
            "maxBasalRate": "max_u_h",
            "ChangeType": "change",
            "IDP": "profile",
        },
        4: {"AlertID": "alert_id"},
        5: {"AlarmID": "alarm_id"},
        6: {"MalfID": "malfunction_id"},
        11: {"SuspendReason": "reason", "InsulinAmount": "reservoir_u"},
        12: {"InsulinAmount": "reservoir_u"},
        13: {"TimePrior": "prior_ms", "TimeAfter": "after_ms", "RawRTCTime": "rtc_ms"},
        14: {"DatePrior": "prior_day", "DateAfter": "after_day", "RawRTCTime": "rtc_ms"},
        20: {
            "BolusID": "bolus_id",
            "CompletionStatus": "completion",
            "IOB": "iob_u",
            "InsulinDelivered": "delivered_u",
            "InsulinRequested": "requested_u",
        },
        21: {
            "BolusID": "bolus_id",
            "CompletionStatus": "completion",
            "IOB": "iob_u",
            "InsulinDelivered": "delivered_u",
            "InsulinRequested": "requested_u",
        },
        26: {"AlertID": "alert_id"},
        28: {"AlarmID": "alarm_id"},
        33: {"InsulinVolume": "shown_u", "V2Volume": "actual_u"},
        55: {"BolusID": "bolus_id", "IOB": "iob_u", "BolusSize": "size_u"},
        59: {"BolusID": "bolus_id", "IOB": "iob_u", "BolexSize": "size_u"},
        60: {"Block": "block", "Reason": "reason"},
        61: {"PrimeSize": "size_u", "CompletionStatus": "completion"},
        63: {"PrimeSize": "size_u", "CompletionStatus": "completion", "Position": "position"},
        64: {"BolusID": "bolus_id"},
        65: {"BolusID": "bolus_id"},
        66: {"BolusID": "bolus_id", "FoodBolusSize": "food_u", "CorrectionBolusSize": "correction_u", "TotalBolusSize": "total_u"},
        90: {"CommandedBasalRate": "commanded_u_h"},
        99: {"NumLogEntries": "log_entries"},
        279: {"Commanded Rate Source": "rate_source", "Commanded Rate": "commanded_mu_h"},
        280: {
            "BolusID": "bolus_id",
            "Bolus Delivery Status": "status",
            "Bolus Source": "bolus_source",
            "Requested Now": "requested_now_mu",
            "Requested Later": "requested_later_mu",
            "Delivered Total": "delivered_mu",
        },
    }
    for event, names in kept.items():
        for name, ours in names.items():
            place = schema[str(event)]["data"][name]
            data = bytearray(16)
            struct.pack_into(">" + sizes[place["type"]], data, place["offset"], 2)
            for big in (False, True):
                (row,) = read(record(5000, event, "16s", bytes(data), big=big))
                told = json.loads(row.detail)
                assert told.pop(ours) == 2, (event, name)
                assert set(told.values()) <= {0}, (event, name)


# --- the canonical mapping ------------------------------------------------------------------------------------------------------

MAPPING = [
    (
        "3 is a rate of basal",
        (3, "fffBBH", 0.8, 0.8, 5.0, 0, 1, 0),
        {"kind": "rate_change", "source": "basal", "rate_dose_h": 0.8, "rate_ml_h": 0.008, "dose_unit": "U"},
    ),
    ("3 of a suspend is rate 0", (3, "fffBBH", 0.0, 0.8, 5.0, 0, 16, 0), {"kind": "rate_change", "rate_ml_h": 0.0}),
    (
        "279 is a rate of basal",
        (279, "HHHHHH", 0, 3, 800, 1250, 0, 0),
        {"kind": "rate_change", "source": "basal", "rate_dose_h": 1.25, "rate_ml_h": 0.0125},
    ),
    ("279 that is suspended is rate 0", (279, "HHHH", 0, 0, 800, 0), {"kind": "rate_change", "rate_ml_h": 0.0}),
    ("11 by the user", (11, "IBBH", 0, 0, 0, 90), {"kind": "delivery_stop", "source": "basal", "reason": "user"}),
    ("11 by an alarm", (11, "IBBH", 0, 0, 1, 90), {"kind": "delivery_stop", "source": "basal", "reason": "alarm"}),
    ("11 by a malfunction", (11, "IBBH", 0, 0, 2, 90), {"kind": "delivery_stop", "reason": "malfunction"}),
    ("11 by the algorithm", (11, "IBBH", 0, 0, 6, 90), {"kind": "delivery_stop", "reason": "unknown"}),
    ("12 without a rate beside it", (12, "IHH", 0, 0, 90), {"kind": "delivery_start", "source": "basal", "rate_ml_h": None}),
    (
        "20 is a bolus at its end",
        (20, "HHfff", 9, 3, 0.0, 1.5, 2.0),
        {
            "kind": "bolus_delivered",
            "at": "end",
            "dose": 1.5,
            "volume_ml": 0.015,
            "programmed_dose": 2.0,
            "programmed_ml": 0.02,
            "dose_unit": "U",
        },
    ),
    ("21 is a bolus at its end", (21, "HHfff", 9, 3, 0.0, 1.5, 1.5), {"kind": "bolus_delivered", "at": "end", "dose": 1.5}),
    (
        "280 done is a bolus at its end",
        (280, "BBHHBBHHH", 1, 0, 9, 1000, 0, 1, 0, 500, 1500),
        {"kind": "bolus_delivered", "at": "end", "dose": 1.5, "volume_ml": 0.015, "programmed_dose": 1.5},
    ),
    (
        "280 started is nothing",
        (280, "BBHHBBHHH", 1, 1, 9, 1500, 0, 1, 0, 0, 0),
        {"kind": "other", "source": None, "dose": None, "dose_unit": None},
    ),
    (
        "66 is the request of a bolus",
        (66, "HHfff", 0, 9, 1.0, 0.5, 1.5),
        {"kind": "bolus_requested", "programmed_dose": 1.5, "programmed_ml": 0.015},
    ),
    ("55 is other", (55, "HHff", 0, 9, 0.0, 1.5), {"kind": "other"}),
    ("59 is other", (59, "HHff", 0, 9, 0.0, 1.5), {"kind": "other"}),
    ("64 is other", (64, "HH", 0, 9), {"kind": "other"}),
    ("65 is other", (65, "HH", 0, 9), {"kind": "other"}),
    ("33 is a cartridge", (33, "If", 200, 205.5), {"kind": "reservoir_change"}),
    (
        "63 fills the tubing",
        (63, "fII", 12.5, 3, 7),
        {"kind": "priming_done", "target": "tubing", "reason": "amount_reached", "volume_ml": 0.125},
    ),
    ("63 aborted", (63, "fII", 2.5, 0, 7), {"kind": "priming_done", "target": "tubing", "reason": "aborted"}),
    (
        "61 fills the cannula",
        (61, "fI", 0.3, 3),
        {"kind": "priming_done", "target": "cannula", "reason": "amount_reached", "volume_ml": 0.003},
    ),
    ("61 aborted", (61, "fI", 0.1, 0), {"kind": "priming_done", "target": "cannula", "reason": "aborted"}),
    ("61 by an alarm", (61, "fI", 0.1, 1), {"kind": "priming_done", "target": "cannula", "reason": "error"}),
    ("61 by a malfunction", (61, "fI", 0.1, 2), {"kind": "priming_done", "target": "cannula", "reason": "error"}),
    *[
        (f"5 with {n}", (5, "I", n), {"kind": "alarm_raised", "alarm_class": name, "stops_delivery": False})
        for n, name in {
            2: "occlusion",
            26: "occlusion",
            8: "empty",
            12: "battery",
            3: "power",
            14: "clock_lost",
            18: "other",
            23: "other",
            0: "other",
            31: "other",
        }.items()
    ],
    ("28 clears an alarm", (28, "I", 2), {"kind": "alarm_cleared", "alarm_class": "occlusion"}),
    ("4 is an alert", (4, "I", 2), {"kind": "alarm_raised", "alarm_class": "other", "stops_delivery": False}),
    ("26 clears an alert", (26, "I", 2), {"kind": "alarm_cleared", "alarm_class": "other"}),
    ("6 is a malfunction", (6, "I", 2), {"kind": "alarm_raised", "alarm_class": "malfunction", "stops_delivery": True}),
    ("53 is a shut down", (53,), {"kind": "power_off"}),
    ("99 is a start-up", (99,), {"kind": "power_on"}),
    ("36 is a link", (36, "f", 100.0), {"kind": "device_link"}),
    ("37 is a link", (37, "f", 0.0), {"kind": "device_link"}),
    ("81 is a total", (81, "fffHBB", 5.5, 0.8, 0.0, 3900, 64, 0), {"kind": "daily_total", "dose": 5.5, "volume_ml": 0.055}),
    ("60 is a hole", (60, "IHBB", 3, 0, 0, 1), {"kind": "data_corruption"}),
    ("90 is other", (90, "f", 0.8), {"kind": "other"}),
    ("256 is other", (256,), {"kind": "other", "detail": "{}"}),
    ("an event that nobody knows is other", (900,), {"kind": "other", "native_code": "900"}),
]


@pytest.mark.parametrize(("written", "wanted"), [row[1:] for row in MAPPING], ids=[row[0] for row in MAPPING])
def test_each_row_of_the_mapping_holds_in_both_byte_orders_and_through_assemble(written, wanted):
    for big in (False, True):
        data = record(5000, *written, big=big)
        for row in (*read(data), *events(data)):
            assert {name: getattr(row, name) for name in wanted} == wanted
            assert row.pump_time == NOON_SHOWN


def test_the_source_bits_of_the_type_are_no_part_of_the_event():
    assert read(record(5000, 399, source=1))[0].native_code == "399"


def test_a_captured_time_change_is_written_at_the_new_time(fixtures):
    frames = json.loads((fixtures / "tandem/pumpx2_history_stream_frames.json").read_text())
    (frame,) = [one["strings_hex"][-1] for one in frames if one["test"].endswith("TimeChange")]
    (row,) = read(bytes.fromhex(frame))
    assert (row.kind, row.reason, row.seq) == ("clock_change", "set", 2875)
    assert row.pump_time.isoformat() == "2022-03-13T01:41:51.859000"
    assert row.new_time.isoformat() == "2022-03-13T01:45:00"


def test_a_time_change_back_shows_the_later_old_time():
    (row,) = read(record(5000, 13, "III", 39_600_000, 36_000_000, 0))
    assert (row.pump_time, row.new_time) == (NOON_SHOWN + timedelta(hours=1), NOON_SHOWN)


def test_a_date_change_is_days_and_written_at_the_new_time():
    (row,) = read(record(5000, 14, "III", 5163, 5161, 0))
    assert row.new_time == NOON_SHOWN
    assert row.pump_time == NOON_SHOWN + timedelta(days=2)


# --- what several records tell together -------------------------------------------------------------------------------------------


def rate(seq, u_h, change=1 << 5, **kw):
    return record(seq, 3, "fffBBH", u_h, u_h, 5.0, 0, change, 0, **kw)


def basal(seq, mu_h, source=1, **kw):
    return record(seq, 279, "HHHH", 0, source, 0, mu_h, **kw)


def resume(seq, **kw):
    return record(seq, 12, "IHH", 0, 0, 90, **kw)


def suspend(seq, **kw):
    return record(seq, 11, "IBBH", 0, 0, 0, 90, **kw)


@pytest.mark.parametrize(
    ("records", "wanted"),
    [
        ([resume(10), rate(11, 0.8)], 0.8),
        ([resume(10), basal(11, 750)], 0.75),
        ([rate(9, 0.8), resume(10)], 0.8),
        ([resume(10), record(11, 256), basal(12, 750)], 0.75),
        ([resume(10), basal(11, 0, source=3)], 0.0),
        ([resume(10), rate(11, 0.8, at=NOON + 1)], None),
        ([resume(10), rate(11, 0.8, change=1)], None),
        ([resume(10), basal(11, 750, source=0)], None),
        ([basal(8, 750), suspend(9), resume(10)], None),
        ([resume(10), suspend(11), resume(12), rate(13, 0.8)], None),
        ([resume(10), rate(12, 0.8)], None),
        ([resume(10)], None),
    ],
)
def test_a_resume_takes_its_rate_from_the_same_second_and_from_nowhere_else(records, wanted):
    for log in (assembled(capture(*records)), assembled(*(capture(one) for one in reversed(records)))):
        (row,) = [row for row in views(log.events) if row.seq == 10]
        assert row.rate_dose_h == wanted
        assert row.rate_ml_h == (None if wanted is None else wanted / 100)
        assert row.dose_unit == (None if wanted is None else "U")


def begun(seq, bolus, code=55, **kw):
    return record(seq, code, "HHff", 0, bolus, 0.0, 1.5, **kw)


def done(seq, bolus, code=20, given=1.5, **kw):
    return record(seq, code, "HHfff", bolus, 3, 0.0, given, 1.5, **kw)


def told(seq, bolus, mu=1500, **kw):
    return record(seq, 280, "BBHHBBHHH", 1, 0, bolus, 1500, 0, 1, 0, 0, mu, **kw)


def boluses(*records):
    return [row for row in events(*records) if row.kind == "bolus_delivered"]


def test_a_bolus_that_two_records_tell_is_one_and_lasts_since_its_activation():
    records = [begun(10, 7), told(11, 7, at=NOON + 90), done(12, 7, at=NOON + 90)]
    logs = [assembled(capture(*records)), assembled(*(capture(one) for one in reversed(records)))]
    for log in logs:
        other, again, bolus = views(log.events)
        assert (other.kind, again.kind, bolus.kind) == ("other", "other", "bolus_delivered")
        assert (again.dose, again.volume_ml, again.programmed_dose, again.dose_unit, again.source, again.at) == (None,) * 6
        assert (bolus.seq, bolus.dose, bolus.duration_s) == (12, 1.5, 90.0)
    assert logs[0].events.equals(logs[1].events)


def test_a_bolus_without_a_completion_is_told_by_its_delivery_record_once():
    (bolus,) = boluses(begun(10, 7), told(11, 7, 500, at=NOON + 60), told(12, 7, 1500, at=NOON + 90), told(13, 8, 200, at=NOON + 95))[:1]
    assert (bolus.seq, bolus.dose, bolus.duration_s) == (12, 1.5, 90.0)


def test_the_extended_part_of_a_bolus_lasts_since_its_own_activation():
    now, later = boluses(begun(10, 7), done(11, 7, at=NOON + 60), begun(12, 7, 59, at=NOON + 60), done(13, 7, 21, at=NOON + 3660))
    assert (now.duration_s, later.duration_s) == (60.0, 3600.0)


def test_a_clock_change_during_a_bolus_is_no_time():
    change = record(11, 13, "III", 46_860_000, 46_860_000 + 3_600_000, 0, at=NOON + 60 + 3600)
    (bolus,) = boluses(begun(10, 7), change, done(12, 7, at=NOON + 90 + 3600))
    assert bolus.duration_s == 90.0


@pytest.mark.parametrize(
    "between",
    [[], [record(11, 60)], [record(11, 5, "I", 14)]],
    ids=["a record that is missing", "a log that says it is damaged", "a clock that was lost"],
)
def test_no_duration_is_carried_over_a_cut(between):
    (bolus,) = boluses(begun(10, 7), *between, done(12, 7, at=NOON + 90))
    assert bolus.duration_s is None


def test_a_bolus_of_which_nothing_came_took_no_time():
    (bolus,) = boluses(begun(10, 7), done(11, 7, given=0.0, at=NOON + 90))
    assert (bolus.dose, bolus.duration_s) == (0.0, None)


def total(seq, units, **kw):
    return record(seq, 81, "fffHBB", units, 0.8, 0.0, 3900, 64, 0, **kw)


def test_the_total_of_a_day_is_the_last_sum_before_the_new_day():
    rows = events(total(10, 1.0), total(11, 5.5), record(12, 90), total(13, 0.0), total(14, 0.7))
    assert [(row.kind, row.dose) for row in rows if row.native_code == "81"] == [
        ("other", None),
        ("daily_total", 5.5),
        ("other", None),
        ("daily_total", 0.7),
    ]
    assert json.loads(rows[0].detail)["basal_u"] == 1.0


# --- order, holes, damage -----------------------------------------------------------------------------------------------------------


def test_a_number_that_is_missing_is_a_hole_and_is_healed_by_the_record():
    first, second, third = resume(10), record(11, 256), suspend(12)
    rows = events(first, third)
    assert [row.kind for row in rows] == ["delivery_start", "data_gap", "delivery_stop"]
    healed = assembled(capture(first, third), capture(second))
    assert [row.kind for row in views(healed.events)] == ["delivery_start", "other", "delivery_stop"]
    assert healed.gaps_visible


def test_messages_list_the_newest_first_and_the_log_the_oldest():
    records = [record(seq, 256) for seq in range(10, 19)]
    found = assembled(capture(message(*records[8:3:-1], packet=True), message(*records[3::-1])))
    assert found.events.column("seq").to_pylist() == list(range(10, 19))


def test_a_damaged_message_is_one_fault_between_its_readable_neighbours():
    good = [message(record(seq + 1, 256), record(seq, 256)) for seq in (14, 12, 10)]
    bad = good[1][:-1] + bytes([good[1][-1] ^ 1])
    found = decoded(good[0], bad, good[2])
    (fault,) = found.faults.to_pylist()
    assert (fault["code"], fault["after_seq"], fault["before_seq"], fault["hole"], fault["raw"]) == ("crc", 11, 14, True, bad)
    assert found.records.column("seq").to_pylist() == [15, 14, 11, 10]


def test_a_damaged_message_at_the_new_end_is_a_hole_behind_the_last_record():
    bad = bytearray(message(record(12, 256)))
    bad[-1] ^= 1
    rows = views(assembled(capture(bytes(bad), message(record(11, 256), record(10, 256)))).events)
    assert [row.kind for row in rows] == ["other", "other", "data_corruption"]


def test_bytes_that_can_be_no_record_are_one_fault_a_run_and_the_rest_is_read():
    found = decoded(record(10, 256), b"\xff" * 52, record(13, 256), b"\x05\x00")
    run, tail = found.faults.to_pylist()
    assert (run["code"], run["offset"], run["after_seq"], run["before_seq"], run["raw"]) == ("record", 26, 10, 13, b"\xff" * 52)
    assert (tail["code"], tail["offset"], tail["after_seq"], tail["raw"]) == ("truncated", 104, 13, b"\x05\x00")
    assert found.records.column("seq").to_pylist() == [10, 13]


@pytest.mark.parametrize(
    "damaged",
    [
        record(11, 20, "HHfff", 7, 3, 0.0, float("nan"), 1.0),
        record(11, 20, "HHfff", 7, 3, 0.0, -1.0, 1.0),
        record(11, 3, "fff", float("inf"), 1.0, 1.0),
        record(11, 61, "fI", 0.3, 7),
        record(11, 63, "fI", 0.3, 4),
        record(11, 13, "II", 86_400_000, 0),
        record(11, 14, "II", 50_000, 5000),
    ],
)
def test_a_value_that_cannot_be_is_a_fault_with_its_number_and_a_hole(damaged):
    for data in ((record(10, 256), damaged, record(12, 256)), (message(record(12, 256), damaged, record(10, 256)),)):
        found = decoded(*data)
        (fault,) = found.faults.to_pylist()
        assert (fault["code"], fault["seq"], fault["raw"], fault["hole"]) == ("value", 11, damaged, True)
        rows = views(assembled(capture(*data)).events)
        assert [row.kind for row in rows] == ["other", "data_gap", "other"]


def test_a_record_whose_time_fits_neither_neighbour_is_a_hole_and_tells_nothing():
    others = [resume(10), rate(11, 0.8), None, suspend(13, at=NOON + 600), record(14, 256, at=NOON + 700)]
    for wrong in (NOON + 4096, NOON - 4096):
        records = [one or rate(12, 1.5, change=1, at=wrong) for one in others]
        for log in (assembled(capture(*records)), assembled(*(capture(one) for one in reversed(records)))):
            rows = views(log.events)
            assert [row.kind for row in rows] == ["delivery_start", "rate_change", "data_corruption", "delivery_stop", "other"]
            assert (rows[2].rate_ml_h, rows[2].source, rows[2].raw) == (None, None, records[2])


def test_a_clock_that_went_back_and_stays_there_makes_no_hole():
    lost = [record(12, 99, at=100), resume(13, at=200), suspend(14, at=300)]
    rows = events(record(9, 256), resume(10), rate(11, 0.8), *lost)
    assert not {"data_gap", "data_corruption"} & {row.kind for row in rows}


def test_a_line_that_is_neither_hex_nor_base64_is_a_fault_with_its_number():
    lines = [record(10, 256).hex(), "no record at all", base64.b64encode(record(12, 256)).decode(), ""]
    found = decoded("\r\n".join(lines).encode())
    (fault,) = found.faults.to_pylist()
    assert (fault["code"], fault["offset"], fault["after_seq"], fault["before_seq"]) == ("line", 2, 10, 12)
    assert found.records.column("offset").to_pylist() == [1, 3]


def test_records_that_read_in_both_byte_orders_are_not_guessed_at():
    both = bytes.fromhex("0101" + "10101010" + "00111100") + bytes(16)
    (fault,) = decoded(both).faults.to_pylist()
    assert (fault["code"], fault["raw"], fault["hole"]) == ("byte_order", both, True)
    neighbours = decoded(record(5000, 12, big=True), both).records
    assert neighbours.column("seq").to_pylist() == [5000, 0x00111100]


def test_a_record_read_twice_is_one_and_one_that_differs_is_a_conflict():
    little, big = record(10, 20, "HHfff", 7, 3, 0.0, 1.5, 1.5), record(10, 20, "HHfff", 7, 3, 0.0, 1.5, 1.5, big=True)
    same = views(assembled(capture(little), capture(big), capture(message(little))).events)
    assert [(row.seq, row.conflict) for row in same] == [(10, False)]
    other = views(assembled(capture(little), capture(done(10, 7, given=1.0))).events)
    assert [(row.seq, row.conflict) for row in other] == [(10, True)]


# --- captures and clocks ------------------------------------------------------------------------------------------------------------


def clock(**more):
    return Anchor(pump_clock=NOON_SHOWN, utc=datetime(2022, 2, 18, 15, tzinfo=UTC), **more)


def test_the_clock_is_read_behind_the_newest_record_wherever_it_stands():
    for data in ([record(10, 256), record(11, 256)], [message(record(11, 256), record(10, 256))]):
        found = tandem.decode(capture(*data, anchor=clock(round_trip_ms=40)))
        (row,) = found.anchors.to_pylist()
        assert (row["after"], row["pump_clock"], row["round_trip_ms"]) == ("0:11", NOON_SHOWN, 40)
        assert [a.after for a in assembled(capture(*data, anchor=clock())).anchors] == [1]


def test_the_clock_is_read_behind_a_record_even_if_that_cannot_be_read():
    broken = capture(record(10, 256), b"\xff" * 26, anchor=clock())
    assert tandem.decode(broken).anchors.to_pylist()[0]["after"] == "0:11"
    assert assembled(broken).anchors == ()
    assert [a.after for a in assembled(broken, capture(record(11, 256))).anchors] == [1]


def test_an_empty_capture_has_a_clock_only_where_it_says_behind_which_record():
    assert decoded(b"").faults.num_rows == 0
    assert tandem.decode(capture(anchor=clock(after="0:10"))).anchors.to_pylist()[0]["after"] == "0:10"
    nowhere = tandem.decode(capture(anchor=clock()))
    assert (nowhere.anchors.num_rows, nowhere.faults.column("code").to_pylist()) == (0, ["anchor"])
    assert not nowhere.faults.column("hole")[0].as_py()


def test_files_name_no_pump_so_the_caller_must():
    with pytest.raises(InputError) as raised:
        tandem.read_files([("log.bin", record(10, 256))], pump_id=None, model=None, anchor=None)
    assert raised.value.code == "no_pump"
    one, two = tandem.read_files([("a", b"1"), ("b", b"2")], pump_id=PUMP, model="t:slim X2", anchor=clock())
    assert (one.data, two.data, two.pump_id, two.model, two.anchor) == (b"1", b"2", PUMP, "t:slim X2", clock())


def test_a_file_of_the_family_is_recognised_in_every_form_and_others_are_not():
    records = [record(seq, 279, at=NOON + seq) for seq in range(10, 20)]
    raw = b"".join(records)
    big = b"".join(as_big(one) for one in records)
    for data in (
        raw,
        big,
        message(*records[:9]),
        raw.hex().encode(),
        base64.encodebytes(raw),
        "\n".join(r.hex() for r in records).encode(),
    ):
        assert tandem.recognise("any.name", data)
    for data in (
        b"",
        b"\n",
        bytes(26),
        b"\xff" * 52,
        raw[:-1],
        b'{"pumpledger": 1}\n',
        b"MSH|^~\\&|",
        b"some words and numbers 12 13",
        bytes(range(256)) * 13,
    ):
        assert not tandem.recognise("log.bin", data)


def test_the_family_is_found_by_its_name():
    assert families()["tandem"] is tandem


# --- whatever comes -----------------------------------------------------------------------------------------------------------------

EVENTS = st.sampled_from([3, 4, 5, 6, 11, 12, 13, 14, 20, 21, 28, 33, 55, 59, 60, 61, 63, 66, 81, 90, 99, 256, 279, 280])


@st.composite
def logs(draw):
    """Records of one pump, numbered without holes, at times that stand still or go on, of few bolus ids."""
    found, at = [], NOON
    for seq in range(5000, 5000 + draw(st.integers(2, 25))):
        at += draw(st.sampled_from([0, 0, 1, 60, 4000]))
        event, bolus = draw(EVENTS), draw(st.integers(1, 2))
        layouts = {
            3: ("fffBBH", 0.5, 0.5, 5.0, 0, draw(st.sampled_from([1, 16, 32])), 0),
            11: ("IBBH", 0, 0, draw(st.integers(0, 6)), 90),
            13: ("II", 3_600_000, draw(st.sampled_from([0, 3_600_000, 7_200_000]))),
            14: ("II", 5161, draw(st.integers(5160, 5162))),
            20: ("HHfff", bolus, 3, 0.0, 1.5, 1.5),
            21: ("HHfff", bolus, 3, 0.0, 1.0, 1.5),
            55: ("HHff", 0, bolus, 0.0, 1.5),
            59: ("HHff", 0, bolus, 0.0, 1.5),
            61: ("fI", 0.3, draw(st.integers(0, 3))),
            63: ("fI", 9.0, 3),
            5: ("I", draw(st.integers(0, 31))),
            81: ("f", 1.0),
            279: ("HHHH", 0, draw(st.integers(0, 4)), 0, 500),
            280: ("BBHHBBHHH", 1, draw(st.integers(0, 1)), bolus, 1500, 0, 1, 0, 0, 1500),
        }
        found.append(record(seq, event, *layouts.get(event, ()), at=at))
    return found


@settings(max_examples=60, deadline=None)
@given(logs(), st.data())
def test_any_split_order_repetition_and_form_of_the_records_gives_the_same_log(records, data):
    whole = assembled(capture(*records))
    parts = []
    at = 0
    while at < len(records):
        size = data.draw(st.integers(1, 9))
        some = records[at : at + size]
        at += size
        form = data.draw(st.sampled_from(["raw", "falling", "message", "hex", "base64"]))
        parts.append(
            {
                "raw": b"".join(some),
                "falling": b"".join(some[::-1]),
                "message": message(*some[::-1], packet=True),
                "hex": b"\n".join(one.hex().encode() for one in some),
                "base64": base64.encodebytes(b"".join(some)),
            }[form]
        )
    parts += data.draw(st.lists(st.sampled_from(parts), max_size=3))
    again = assembled(*(capture(one) for one in data.draw(st.permutations(parts))))
    assert again.events.equals(whole.events)
    assert again.anchors == whole.anchors


@settings(max_examples=60, deadline=None)
@given(logs(), st.data())
def test_a_record_that_is_left_out_is_a_hole_and_never_anything_else(records, data):
    gone = data.draw(st.integers(0, len(records) - 1))
    rows = events(*records[:gone], *records[gone + 1 :])
    holes = [row for row in rows if row.kind == "data_gap"]
    assert len(holes) == (0 < gone < len(records) - 1)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.binary(max_size=120).map(base64.b64encode) | st.text(max_size=80).map(str.encode))
def test_no_bytes_raise_and_all_of_them_are_a_record_or_a_fault(data):
    tandem.recognise("x", data)
    found = decoded(data)
    assembled(capture(data, anchor=clock()))
    assert data.strip() == b"" or found.records.num_rows + found.faults.num_rows > 0


@settings(max_examples=100, deadline=None)
@given(logs(), st.sampled_from(["raw", "big", "message", "hex", "base64"]), st.data())
def test_a_damaged_capture_never_raises_and_loses_no_byte(records, form, data):
    raw = b"".join(records)
    whole = {
        "raw": raw,
        "big": b"".join(as_big(one) for one in records),
        "message": b"".join(message(*records[at : at + 9][::-1]) for at in range(0, len(records), 9)),
        "hex": raw.hex().encode(),
        "base64": b"\n".join(base64.b64encode(one) for one in records),
    }[form]
    spoiled = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        spoiled[data.draw(st.integers(0, len(spoiled) - 1))] = data.draw(st.integers(0, 255))
    spoiled = bytes(spoiled[: data.draw(st.integers(0, len(spoiled)))])
    tandem.recognise("x", spoiled)
    found = decoded(spoiled)
    for row in views(assembled(capture(spoiled)).events):
        json.loads(row.detail)
    if form in ("raw", "big"):
        kept = sum(len(x) for x in (*found.records.column("raw").to_pylist(), *found.faults.column("raw").to_pylist()))
        assert kept == len(spoiled) or not spoiled.strip()


# --- split --------------------------------------------------------------------------------------------------------------------------

FORMS = {
    "raw": b"".join,
    "big": lambda records: b"".join(map(as_big, records)),
    "falling": lambda records: b"".join(records[::-1]),
    "messages": lambda records: b"".join(message(*records[at : at + 3][::-1], packet=at % 2 == 0) for at in range(0, len(records), 3)),
    "hex lines": lambda records: b"\r\n".join(one.hex().encode() for one in records),
    "hex in one line": lambda records: b"".join(records).hex(" ").encode(),
    "base64 wrapped": lambda records: base64.encodebytes(b"".join(records)),
    "base64 messages": lambda records: b"\n".join(base64.b64encode(message(*records[at : at + 2])) for at in range(0, len(records), 2)),
}


@settings(max_examples=150, deadline=None)
@given(logs(), st.sampled_from(sorted(FORMS)), st.integers(250, 900), st.integers(0, 3), st.booleans(), st.data())
def test_the_parts_of_a_capture_give_the_log_of_the_whole(records, form, size, damages, timed, data):
    whole = bytearray(FORMS[form](records))
    for _ in range(damages):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    one = capture(bytes(whole), anchor=clock(round_trip_ms=30) if timed else None)
    try:
        parts = tandem.split(one, size)
    except InputError:
        assert damages
        return
    assert b"".join(part.data for part in parts) == one.data
    assert max(len(part.data) for part in parts) <= size
    assert parts == [one] or len(one.data) > size
    assert {(part.pump_id, part.model, part.part) for part in parts} == {(one.pump_id, one.model, one.part)}
    split, log = assembled(*parts), assembled(one)
    assert split.events.equals(log.events)
    assert split.anchors == log.anchors
    assert split.event_of_record.equals(log.event_of_record)


def test_a_long_log_is_split_into_few_parts_and_a_message_is_never_cut():
    records = [record(seq, 279, at=NOON + seq) for seq in range(1, 6001)]
    for form, write in FORMS.items():
        one = capture(write(records), anchor=clock())
        parts = tandem.split(one, 65_536)
        assert len(parts) == -(-len(one.data) // 65_000), form
        assert {part.anchor.after for part in parts} == {"0:6000"}
    single = capture(message(*records[:9]))
    assert tandem.split(single, len(single.data)) == [single]
    with pytest.raises(InputError, match="must stay whole"):
        tandem.split(single, len(single.data) - 1)
