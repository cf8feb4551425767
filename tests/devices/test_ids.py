"""Insulin Delivery Service history: the standard's examples, captured records, every row of the mapping (docs/pump-formats.md §5),
time from reference times, and the reading dialogue.
"""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import ids
from devices.contract import Anchor, Capture, joined, views
from devices.dialogue import Ask, Got, Reply, run
from devices.errors import InputError, LinkError, PumpError
from devices.families import families
from devices.ids.link import REPORT, racp_request
from devices.ids.values import crc16
from tests.kit import head
from transforms.block import Block
from transforms.clock import ClockPolicy, place

PUMP = "ids:1"
NOON = datetime(2026, 3, 2, 12)

# --- records by hand ----------------------------------------------------------------------------------------------------------------


def sf(value):
    """An SFLOAT with two decimals at most."""
    mantissa, exponent = round(value * 100), -2
    while mantissa and mantissa % 10 == 0:
        mantissa, exponent = mantissa // 10, exponent + 1
    return struct.pack("<H", (exponent & 0xF) << 12 | mantissa & 0xFFF)


def fl(value):
    return struct.pack("<i", -2 << 24 | round(value * 100) & 0xFFFFFF)


def dt(time):
    return struct.pack("<HBBBBB", time.year, time.month, time.day, time.hour, time.minute, time.second)


def rec(seq, code, data=b"", at=0):
    return struct.pack("<HIH", code, seq, at) + data


def ref(seq, time=NOON, reason=0x3C, at=0):
    return rec(seq, 0x000F, bytes((reason,)) + dt(time) + b"\x00\x00", at)


def rate(seq, new, old=0.0, at=0):
    return rec(seq, 0x0099, b"\x00" + sf(old) + sf(new), at)


def therapy(seq, old, new, at=0):
    return rec(seq, 0x0303, bytes((old, new)), at)


def operation(seq, old, new, at=0):
    return rec(seq, 0x030C, bytes((old, new)), at)


def annunciation(seq, kind, status, at=0):
    return rec(seq, 0x033F, struct.pack("<BHHB", 0, 5, kind, status), at)


def programmed(seq, bolus, fast=2.0, extended=0.0, minutes=0, at=0, kind=0x33):
    data = struct.pack("<HB", bolus, kind) + sf(fast) + sf(extended) + struct.pack("<H", minutes)
    return rec(seq, 0x005A, data, at)


def delivered(seq, *args, **kw):
    made = programmed(seq, *args, **kw)
    return b"\x69\x00" + made[2:]


def start_of(seq, offset_s, at=0, end=0x33):
    return rec(seq, 0x0096, struct.pack("<BIB", 2, offset_s, end), at)


RUN, STOP, PAUSE = 0x55, 0x33, 0x3C


def text(*values):
    return b"".join(b"H " + value.hex().encode() + b"\n" for value in values)


def capture(*values, model=None, part=None, anchor=None):
    return Capture(data=text(*values), family="ids", pump_id=PUMP, model=model, part=part, anchor=anchor)


def decoded(*values, model=None):
    return ids.decode(capture(*values, model=model))


def assembled(*captures):
    return ids.assemble(PUMP, *joined(ids.decode(one) for one in captures))


def events(*values, model=None):
    return views(assembled(capture(*values, model=model)).events)


def one(code, data, model=None):
    """The event that a record gives behind a reference time."""
    assert decoded(rec(2, code, data), model=model).faults.num_rows == 0
    (_, event) = events(ref(1), rec(2, code, data, at=60), model=model)
    assert event.pump_time == NOON + timedelta(seconds=60)
    return event


def fault_of(*values, model=None):
    (fault,) = decoded(*values, model=model).faults.to_pylist()
    return fault


# --- the standard's worked examples -------------------------------------------------------------------------------------------------

TYPES = {
    "Reference Time": 0x000F,
    "Bolus Programmed Part 1 of 2": 0x005A,
    "Bolus Programmed Part 2 of 2": 0x0066,
    "Bolus Delivered Part 1 of 2": 0x0069,
    "Bolus Delivered Part 2 of 2": 0x0096,
    "Delivered Basal Rate Changed": 0x0099,
    "TBR Adjustment Started": 0x00A5,
    "TBR Adjustment Ended": 0x00AA,
    "TBR Adjustment Changed": 0x00C3,
    "Basal Rate Profile Template Time Block Changed": 0x00F0,
    "Annunciation Status Changed Part 1 of 2": 0x033F,
}
REASONS = {"Set Date Time": 0x33, "Periodic Recording": 0x3C, "Date Time Loss": 0x55}
BOLUSES = {"Fast": 0x33, "Extended": 0x3C, "Multiwave": 0x55}


def example_data(event):
    match TYPES[event["type"]]:
        case 0x000F:
            return bytes((REASONS[event["reason"]],)) + dt(datetime.fromisoformat(event["date_time"])) + b"\x00\x00"
        case 0x005A | 0x0069:
            minutes = event.get("duration_min", event.get("effective_duration_min", 0))
            kind = BOLUSES[event.get("bolus_type", "Fast")]
            return struct.pack("<HB", event["bolus_id"], kind) + sf(1) + sf(1) + struct.pack("<H", minutes)
        case 0x0066:
            return b"\x01" + struct.pack("<H", event["delay_min"])
        case 0x0096:
            return b"\x00" + struct.pack("<I", event["start_time_offset_s"])
        case 0x0099:
            return b"\x00" + sf(event["old"]) + sf(event["new"])
        case 0x00A5:
            return b"\x00\x3c" + sf(event["value"]) + struct.pack("<H", event["duration_programmed_min"])
        case 0x00C3:
            return b"\x00\x3c" + sf(event["value"]) + struct.pack("<HH", event["duration_programmed_min"], event["elapsed_min"])
        case 0x00AA:
            return b"\x00\x3c" + struct.pack("<H", event["effective_duration_min"]) + b"\x33"
        case 0x00F0:
            return struct.pack("<BBH", event["template"], event["block"], event["duration_min"]) + sf(event["amount_iu_h"])
        case 0x033F:
            return struct.pack("<BHHB", 0, 1, 0x0359, 0x33)


def example(name, fixtures):
    """The events of an example by number: its records, and position markers for the numbers that it leaves out."""
    told = json.loads((fixtures / "ids/ids_spec_appendix_d.json").read_text())[name]
    values, at = [], 0
    for event in told["events"]:
        last = int.from_bytes(values[-1][2:6], "little") if values else event["seq"] - 1
        values += [rec(seq, 0x03A9, at=at) for seq in range(last + 1, event["seq"])]
        values.append(rec(event["seq"], TYPES[event["type"]], example_data(event), event["offset_s"]))
        at = 0 if event["type"] == "Reference Time" else event["offset_s"]
    rows = {row.seq: row for row in events(*values)}
    assert not any(row.kind in ("data_gap", "data_corruption") for row in rows.values())
    for event in told["events"]:
        if "expect_timestamp" in event and event["seq"] in rows:
            assert rows[event["seq"]].pump_time == datetime.fromisoformat(event["expect_timestamp"]), event
    if "expect_true_interval_s" in told:
        want = told["expect_true_interval_s"]
        assert rows[want["to_seq"]].native_ms - rows[want["from_seq"]].native_ms == want["seconds"] * 1000
    return told, rows


def test_the_crc_of_the_standard_s_sample_is_the_standard_s(fixtures):
    sample = json.loads((fixtures / "ids/ids_spec_appendix_d.json").read_text())["e2e_crc_sample"]
    crc = crc16(bytes.fromhex(sample["data_hex"]))
    assert crc.to_bytes(2, "little").hex() == sample["crc_bytes_in_transmission_order_hex"]


def test_d1_a_clock_that_is_set_back_leaves_the_true_interval(fixtures):
    _, rows = example("D1_setting_of_the_date_time", fixtures)
    change = rows[10]
    assert (change.kind, change.reason, change.new_time) == ("clock_change", "set", datetime(2014, 1, 1, 11))


def test_d2_after_a_loss_elapsed_time_runs_on_over_the_setting(fixtures):
    told, rows = example("D2_date_time_loss", fixtures)
    assert (rows[99].reason, rows[120].reason) == ("loss", "set")
    lost = rows[120].new_time - timedelta(milliseconds=rows[120].native_ms - rows[99].native_ms)
    assert lost == datetime.fromisoformat(told["expect_recovered_true_time_of_loss"])


def test_d3_two_parts_are_one_bolus_that_starts_after_its_delay(fixtures):
    told, rows = example("D3_bolus", fixtures)
    assert [row.kind for row in rows.values() if row.kind.startswith("bolus")] == ["bolus_requested", "bolus_delivered"]
    assert 11 not in rows
    assert 52 not in rows
    bolus = rows[51]
    assert (bolus.at, bolus.duration_s, bolus.dose, bolus.programmed_dose) == ("end", 120.0, 2.0, 2.0)
    assert bolus.pump_time - timedelta(seconds=bolus.duration_s) == datetime.fromisoformat(told["expect_delivery_start"])
    assert json.loads(rows[10].detail)["delay_min"] == 1


def test_d4_a_temporary_rate_is_told_by_the_delivered_rate_alone(fixtures):
    _, rows = example("D4_tbr", fixtures)
    assert [(row.kind, row.source, row.rate_dose_h) for row in rows.values() if row.kind == "rate_change"] == [
        ("rate_change", "basal", 11.0),
        ("rate_change", "basal", 12.0),
        ("rate_change", "basal", 10.0),
    ]
    assert {rows[seq].kind for seq in (10, 15, 20)} == {"other"}
    assert rows[16].rate_ml_h == 0.12


def test_d5_the_blocks_of_a_profile_are_settings(fixtures):
    told, rows = example("D5_profile", fixtures)
    for event in told["events"][1:]:
        detail = json.loads(rows[event["seq"]].detail)
        assert rows[event["seq"]].kind == "settings_change"
        assert (detail["block"], detail["minutes"], detail["rate_u_h"]) == (event["block"], event["duration_min"], event["amount_iu_h"])


# --- vectors of an open decoder -----------------------------------------------------------------------------------------------------

CALCULATED = {
    f"{how}_{why}_u": 3.0 + n for n, (how, why) in enumerate((h, w) for h in ("fast", "extended") for w in ("meal", "correction"))
}
SMALLER = {f"recommended_{name}": value - 2 for name, value in CALCULATED.items()}
VECTORS = {
    "AnnunciationStatusChangedPart1ParserTest": {"annunciation": 3, "type": "battery empty", "status": "confirmed", "aux_1": 8},
    "AnnunciationStatusChangedPart2ParserTest": {"aux_3": 5, "aux_4": 6},
    "BolusCalculatedPart1EventParserTest": {f"recommended_{name}": value for name, value in CALCULATED.items()},
    "BolusCalculatedPart2EventParserTest": {f"confirmed_{name}": value for name, value in CALCULATED.items()},
    "BolusCalculatedTest": SMALLER,
    "BolusDeliveredPart1EventParserTest": {"bolus_id": 3, "type": "extended", "fast_u": 0.0, "extended_u": 4.0, "minutes": 5},
    "BolusDeliveredPart2EventParserTest": {"start_offset_s": 3, "activation": "commanded", "end": "cancelled", "annunciation": 44},
    "BolusProgrammedPart1EventParserTest": {"bolus_id": 3, "type": "fast", "fast_u": 4.0, "extended_u": 0.0, "minutes": 0},
    "BolusProgrammedPart2EventParserTest": {"delay_min": 3, "activation": "manual"},
    "BolusTemplateChangedPart1EventParserTest": {"template": 3, "type": "extended", "fast_u": 0.0, "extended_u": 4.0, "minutes": 5},
    "BolusTemplateChangedPart2EventParserTest": {"delay_min": 3},
    "DeliveredBasalRateChangedEventParserTest": {"old_u_h": 1.2, "new_u_h": 2.3, "context": "device"},
    "EmptyEventDataParserTest": {},
    "MaxBolusAmountChangedEventParserTest": {"old_u": 3.0, "new_u": 4.0},
    "OperationalStateChangedEventParserTest": {"old": "priming", "new": "off"},
    "PairedValueProfileTemplateTimeBlockChangedEventParserTest": {"template": 3, "block": 4, "minutes": 5, "low": 6.0, "high": 7.0},
    "PrimingDoneEventParserTest": {"delivered_u": 3.0, "end": "aborted", "annunciation": 4},
    "PrimingStartedEventParserTest": {"programmed_u": 4.0},
    "ProfileTemplateActivatedEventParserTest": {"type": 0x33, "old": 3, "new": 4},
    "ReservoirRemainingAmountChangedParserTest": {"remaining_u": 3.0},
    "SingleValueProfileTemplateTimeBlockChangedEventParserTest": {"template": 3, "block": 4, "minutes": 5, "rate_u_h": 5.1},
    "TbrAdjustmentChangedEventParserTest": {"type": "absolute", "value": 0.9, "minutes": 10, "elapsed_min": 9, "template": 8},
    "TbrAdjustmentEndedEventParserTest": {"type": "absolute", "minutes": 4, "end": "over", "template": 5, "annunciation": 6},
    "TbrAdjustmentStartedParserTest": {"type": "relative", "value": 0.9, "minutes": 10, "template": 3},
    "TbrTemplateChangedEventParserTest": {"template": 3, "type": "relative", "value": 4.0, "minutes": 5},
    "TherapyControlStateChangedEventParserTest": {"old": "pause", "new": "run"},
    "TotalDailyInsulinDeliveryEventParserTest": {"bolus_u": 3.0, "basal_u": 4.0, "year": 2018, "month": 12, "day": 21},
}


def vectors(fixtures):
    for vector in json.loads((fixtures / "ids/androidbleparser_history_vectors.json").read_text()):
        yield vector["file"].removesuffix(".kt"), vector["test"], vector["event_code"], bytes.fromhex(vector["data_hex_little_endian"])


def test_the_vectors_of_androidbleparser_give_their_fields(fixtures):
    seen = set()
    for name, test, code, data in vectors(fixtures):
        if name in ("EventInfoReaderTest",) or name.startswith("ReferenceTime"):
            continue
        seen.add(name)
        found = decoded(rec(7, code, data, at=9))
        assert found.faults.num_rows == 0, (name, test)
        (row,) = views(found.records)
        assert (row.seq, row.native_ms, row.native_code) == (7, 9000, f"{code:04X}")
        detail = json.loads(row.detail)
        assert VECTORS[name].items() <= detail.items(), (name, detail)
        assert set(detail) - set(VECTORS[name]) <= {"flags", "flags_2"}, (name, detail)
    assert seen == set(VECTORS)


def test_the_vectors_of_reference_times_give_their_date_and_offset(fixtures):
    found = {}
    for name, test, code, data in vectors(fixtures):
        if name.startswith("ReferenceTime"):
            (row,) = views(decoded(rec(7, code, data)).records)
            found[name, test] = (row.kind, row.reason, row.new_time, json.loads(row.detail))
    base, time = "ReferenceTimeBaseOffsetEventParserTest", "ReferenceTimeEventParserTest"
    shown = datetime(2018, 1, 2, 3, 4, 5)
    for test in ("parseEventTest", "readEventDataTest"):
        assert found[time, test][:3] == ("clock_change", "loss", shown)
        assert (found[time, test][3]["zone_15min"], found[time, test][3]["dst"]) == (-1, 2)
    assert found[base, "parseEvent"][:3] == ("clock_change", "periodic", shown + timedelta(minutes=3))
    assert found[base, "readEventDataTest"][:3] == ("clock_change", "loss", shown - timedelta(minutes=1))
    assert found[base, "parseEvent"][3] == {"offset_min": 3, "reason": "periodic", "time": "2018-01-02T03:04:05"}


def test_the_vector_of_the_head_alone_is_read_and_its_lack_of_data_is_a_fault(fixtures):
    (header,) = [data for name, _, _, data in vectors(fixtures) if name == "EventInfoReaderTest"]
    fault = fault_of(header)
    assert (fault["code"], fault["seq"], fault["raw"]) == ("length", 1, header)


# --- a real 780G --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captured(fixtures):
    return (fixtures / "ids/medtronic_780g_2024-05-30.jsonl").read_bytes()


def test_a_780g_log_is_recognised_and_read_as_one(captured):
    assert ids.recognise("measurements.jsonl", captured)
    (found,) = ids.read_files([("measurements.jsonl", captured)], pump_id=PUMP, model=None, anchor=None)
    assert (found.model, found.data) == ("780g", captured)
    result = ids.decode(found)
    assert result.faults.num_rows == 0
    assert [(row.seq, row.native_code, row.kind, row.native_ms, row.offset) for row in views(result.records)] == [
        (52024, "F00D", "other", 1_743_000, 3),
        (52024, "F00D", "other", 1_743_000, 6),
        (52026, "F00D", "other", 2_044_000, 11),
        (52025, "F00C", "other", 2_044_000, 15),
    ]


def test_a_log_without_a_reference_time_is_one_hole_until_there_is_one(captured):
    (found,) = ids.read_files([("measurements.jsonl", captured)], pump_id=PUMP)
    log = assembled(found)
    (hole,) = views(log.events)
    assert (hole.kind, json.loads(hole.detail), hole.raw) == ("data_corruption", {"without_time": 3}, b"")
    assert log.event_of_record.to_pylist() == [hole.event_id] * 4
    base = capture(rec(52023, 0xF00E, b"\x3c" + dt(NOON)), model="780g")
    healed = assembled(found, base)
    assert [(row.seq, row.pump_time) for row in views(healed.events)] == [
        (52023, NOON),
        (52024, NOON + timedelta(seconds=1743)),
        (52025, NOON + timedelta(seconds=2044)),
        (52026, NOON + timedelta(seconds=2044)),
    ]


def test_its_requests_are_ours_and_what_other_services_say_is_no_answer(captured):
    racp = [row["hex"] for row in map(json.loads, captured.splitlines()) if row["uuid"].startswith("00002a52")]
    assert racp_request(REPORT, 0x69).hex() == "33690f"
    assert {"33690f", racp_request(REPORT, 0x5A, 52024, 52024).hex(), racp_request(REPORT, 0x5A, 52025, 52025).hex()} == {
        request for request in racp if request.startswith("33")
    }
    pump = Transcript({"5a330f": ["660f00000000"], "33690f": ["0f0f33f0"]}, noise=[one for one in racp if one.startswith("06")])
    ask = pump.asks(racp_request(REPORT, 0x69))
    assert ask.missing(b"< 06000101\n") > 0
    assert ask.missing(b"< 0101\n") > 0
    assert ask.missing(b"< 06000101\n< 0f0f33f0\n") == 0
    assert ask.missing(b"< 0f0f5af0\n") > 0
    assert ask.missing(b"< 0f0f33f0") > 0


def test_amounts_are_32_bits_wide_in_some_records_of_a_780g_alone():
    wide = struct.pack("<HB", 9, 0x33) + bytes.fromhex("60900ffb") + fl(0) + b"\x00\x00"
    assert one(0x005A, wide, model="780g").programmed_dose == 10.2
    assert one(0x0099, b"\x00" + fl(1.25) + fl(2.5), model="780g").rate_dose_h == 2.5
    assert json.loads(one(0x03FC, fl(10) + fl(12.5), model="MiniMed 780G").detail)["new_u"] == 12.5
    assert one(0x0395, sf(3), model="780g").programmed_dose == 3.0
    for model, data in ((None, wide), ("780g", wide[:3] + sf(1) + sf(0) + b"\x00\x00")):
        assert fault_of(rec(5, 0x005A, data), model=model)["code"] == "length"


def test_the_maker_s_records_mean_what_they_do_on_a_780g_alone():
    hourly = rec(2, 0xF00E, b"\x3c" + dt(NOON + timedelta(hours=1)), at=3600)
    rows = events(ref(1), hourly, rec(3, 0xF001, b"\x01", at=5), model="780g")
    assert (rows[1].kind, rows[1].reason, rows[2].pump_time) == ("clock_change", "periodic", NOON + timedelta(seconds=3605))
    other = events(ref(1), hourly, rec(3, 0xF001, b"\x01", at=5))
    assert (other[1].kind, other[2].pump_time) == ("other", NOON + timedelta(seconds=5))


# --- the mapping --------------------------------------------------------------------------------------------------------------------

STATES = {"off": 0x33, "standby": 0x3C, "preparing": 0x55, "priming": 0x5A, "waiting": 0x66, "ready": 0x96}


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (STOP, RUN, "delivery_start"),
        (PAUSE, RUN, "delivery_start"),
        (RUN, STOP, "delivery_stop"),
        (RUN, PAUSE, "delivery_stop"),
        (STOP, PAUSE, "other"),
        (RUN, RUN, "other"),
    ],
)
def test_therapy_to_run_is_a_start_and_from_run_a_stop(old, new, kind):
    event = one(0x0303, bytes((old, new)))
    assert (event.kind, event.source) == (kind, None if kind == "other" else "basal")
    assert event.reason == ("unknown" if kind == "delivery_stop" else None)


@pytest.mark.parametrize("old", STATES)
@pytest.mark.parametrize("new", STATES)
def test_operational_states_are_changes_of_power_and_reservoir_and_stops(old, new):
    event = one(0x030C, bytes((STATES[old], STATES[new])))
    if new == "preparing":
        kind = "reservoir_change"
    elif new == "off":
        kind = "power_off"
    elif old == "off":
        kind = "power_on"
    elif old == "ready" and new != "ready":
        kind = "delivery_stop"
    else:
        kind = "other"
    assert event.kind == kind
    assert (event.source, event.reason) == (("basal", "standby") if kind == "delivery_stop" else (None, None))


def test_a_delivered_rate_is_a_rate_change_of_the_basal_in_units_and_millilitres():
    event = one(0x0099, b"\x01" + sf(1) + sf(1.25) + b"\x3c")
    assert (event.kind, event.source, event.rate_dose_h, event.rate_ml_h, event.dose_unit) == ("rate_change", "basal", 1.25, 0.0125, "U")


@pytest.mark.parametrize(
    ("code", "data"),
    [
        (0x00A5, b"\x00\x33" + sf(1) + b"\x1e\x00"),
        (0x00AA, b"\x00\x33\x1e\x00\x33"),
        (0x00C3, b"\x00\x33" + sf(1) + b"\x1e\x00\x05\x00"),
        (0x003C, sf(1) * 4),
        (0x0055, sf(1) * 4),
        (0x0066, b"\x06\x00\x3c"),
        (0x0096, b"\x00" + bytes(4)),
        (0x0330, sf(120)),
        (0x0356, b"\x00"),
        (0x0359, b"\x01\x01\x3c\x00" + sf(1)),
        (0x0365, b"\x01\x01\x3c\x00" + sf(1)),
        (0x036A, b"\x01\x01\x3c\x00" + sf(1) * 2),
        (0x03A9, b""),
        (0xF001, bytes(7)),
        (0xF012, b""),
    ],
)
def test_what_says_nothing_by_itself_is_other(code, data):
    event = one(code, data)
    assert (event.kind, event.source, event.reason, event.dose, event.rate_dose_h) == ("other", None, None, None, None)


@pytest.mark.parametrize(
    ("code", "data"),
    [
        (0x00CC, b"\x33\x01\x02"),
        (0x00F0, b"\x01\x01\x3c\x00" + sf(1)),
        (0x03C0, b"\x01\x33" + sf(1) + sf(0) + b"\x00\x00"),
        (0x03CF, b"\x00"),
        (0x03F3, b"\x01\x33" + sf(1) + b"\x1e\x00"),
        (0x03FC, sf(10) + sf(12)),
    ],
)
def test_programming_is_a_change_of_settings(code, data):
    assert one(code, data).kind == "settings_change"


def test_the_total_of_a_day_is_bolus_and_basal():
    event = one(0x00FF, b"\x00" + sf(12.5) + sf(20.3) + struct.pack("<HBB", 2026, 3, 1))
    assert (event.kind, event.dose, event.volume_ml) == ("daily_total", 32.8, 0.328)


def test_priming_has_no_target_and_says_how_it_ended():
    started = one(0x0395, sf(3.5))
    assert (started.kind, started.target, started.programmed_dose, started.programmed_ml) == ("priming_started", "unknown", 3.5, 0.035)
    for code, reason in ((0x33, "aborted"), (0x3C, "amount_reached"), (0x55, "error")):
        done = one(0x039A, b"\x00" + sf(3) + bytes((code,)))
        assert (done.kind, done.target, done.reason, done.volume_ml) == ("priming_done", "unknown", reason, 0.03)


@pytest.mark.parametrize(("code", "data", "model"), [(0x000F, b"\x00\x00", None), (0x0033, b"\x3c\x00", None), (0xF00E, b"", "780g")])
@pytest.mark.parametrize(("byte", "reason"), [(0x0F, "set"), (0x33, "set"), (0x3C, "periodic"), (0x55, "loss")])
def test_reference_times_are_clock_changes(code, data, model, byte, reason):
    rows = events(ref(1), rec(2, code, bytes((byte,)) + dt(NOON + timedelta(hours=3)) + data, at=600), model=model)
    new = NOON + timedelta(hours=3, minutes=60 if code == 0x0033 else 0)
    old = new if reason == "loss" else NOON + timedelta(seconds=600)
    assert (rows[1].kind, rows[1].reason, rows[1].pump_time, rows[1].new_time) == ("clock_change", reason, old, new)


ALARMS = {
    0x000F: "malfunction", 0x0033: "malfunction", 0x003C: "occlusion", 0x0055: "other", 0x005A: "empty", 0x0066: "low_reservoir",
    0x0069: "other", 0x0096: "other", 0x0099: "other", 0x00A5: "power", 0x00AA: "battery", 0x00C3: "battery", 0x00CC: "battery",
    0x00F0: "battery", 0x00FF: "other", 0x0365: "other", 0x0303: "other", 0x030C: "other", 0x0330: "other", 0x033F: "other",
    0x0359: "other", 0xF123: "other",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "alarm_class"), ALARMS.items())
def test_an_annunciation_is_raised_when_pending_cleared_when_confirmed_and_stops_nothing(kind, alarm_class):
    rows = events(ref(1), annunciation(2, kind, 0x33), annunciation(3, kind, 0x3C), annunciation(4, kind, 0x55))
    assert [row.kind for row in rows[1:]] == ["alarm_raised", "other", "alarm_cleared"]
    assert (rows[1].alarm_class, rows[1].stops_delivery) == (alarm_class, False)
    assert rows[2].alarm_class is None


def test_the_most_that_may_be_delivered_is_a_limit_and_a_confirmation_clears_none():
    rows = events(ref(1), annunciation(2, 0x0356, 0x33), annunciation(3, 0x0356, 0x3C), annunciation(4, 0x0356, 0x55))
    assert [row.kind for row in rows[1:]] == ["limit_reached", "other", "other"]


@pytest.mark.parametrize(("reason", "word"), [(1, "alarm"), (2, "user"), (3, "unknown"), (5, "unknown"), (0x0A, "unknown")])
def test_a_780g_says_why_delivery_stopped(reason, word):
    event = one(0xF00A, bytes((reason,)), model="780g")
    assert (event.kind, event.source, event.reason) == ("delivery_stop", "basal", word)


def test_a_780g_says_that_delivery_is_restarted():
    assert (one(0xF00B, b"\x02", model="780g").kind, one(0xF00B, b"\x02", model="780g").source) == ("delivery_start", "basal")


def test_what_a_therapy_state_says_too_is_told_once():
    def kinds(*values):
        return [row.kind for row in events(ref(1), *values, model="780g")][1:]

    stopped, restarted = (lambda seq, at=9: rec(seq, 0xF00A, b"\x02", at)), (lambda seq, at=9: rec(seq, 0xF00B, b"\x02", at))
    assert kinds(stopped(2), therapy(3, RUN, STOP, 9)) == ["other", "delivery_stop"]
    assert kinds(therapy(2, RUN, STOP, 9), stopped(3)) == ["delivery_stop", "other"]
    assert kinds(therapy(2, STOP, RUN, 9), rate_wide(3, 1.0, 9), restarted(4)) == ["delivery_start", "rate_change", "other"]
    assert kinds(therapy(2, RUN, STOP, 9), stopped(3, at=10)) == ["delivery_stop", "delivery_stop"]
    assert kinds(therapy(2, STOP, RUN, 9), stopped(3)) == ["delivery_start", "delivery_stop"]


def rate_wide(seq, new, at):
    return rec(seq, 0x0099, b"\x00" + fl(0) + fl(new), at)


def test_a_stop_after_a_restart_of_the_same_second_still_stops():
    rows = events(ref(1), therapy(2, RUN, STOP, 9), rec(3, 0xF00B, b"\x01", 9), rec(4, 0xF00A, b"\x02", 9), model="780g")
    assert [row.kind for row in rows[1:]] == ["delivery_stop", "delivery_start", "delivery_stop"]


def test_data_corruption_is_a_hole_and_after_it_there_is_no_time_until_the_next_reference():
    rows = events(
        ref(1), therapy(2, STOP, RUN, 9), rec(3, 0x03A6, at=9), therapy(4, RUN, STOP, 60), ref(5, NOON, at=90), rate(6, 1.0, at=3)
    )
    assert [(row.kind, row.pump_time and row.pump_time - NOON) for row in rows] == [
        ("clock_change", timedelta()),
        ("delivery_start", timedelta(seconds=9)),
        ("data_corruption", None),
        ("clock_change", timedelta()),
        ("rate_change", timedelta(seconds=3)),
    ]
    assert json.loads(rows[2].detail)["without_time"] == 1


# --- the rate of a start ------------------------------------------------------------------------------------------------------------


def test_a_start_runs_at_the_rate_of_its_instant_or_at_zero_where_the_log_says_so():
    def start(*values):
        (found,) = [row for row in events(ref(1), *values) if row.kind == "delivery_start"]
        return found.rate_dose_h

    assert start(therapy(2, STOP, RUN, 9), rate(3, 1.5, at=9)) == 1.5
    assert start(rate(2, 1.5, at=9), therapy(3, STOP, RUN, 9)) == 1.5
    assert start(rate(2, 0.0, old=1.5, at=5), therapy(3, STOP, RUN, 9)) == 0
    assert start(therapy(2, STOP, RUN, 9), rate(3, 1.5, old=0.0, at=900)) == 0
    assert start(rate(2, 1.5, at=5), therapy(3, STOP, RUN, 9)) is None
    assert start(therapy(2, STOP, RUN, 9), rate(3, 1.5, old=1.0, at=900)) is None
    assert start(therapy(2, STOP, RUN, 9)) is None
    assert start(therapy(2, STOP, RUN, 9), therapy(3, RUN, STOP, 20), rate(4, 1.5, old=0.0, at=900)) is None


# --- boluses ------------------------------------------------------------------------------------------------------------------------


def test_a_fast_bolus_lasts_from_its_start_after_the_programming_to_its_end():
    values = [ref(1), programmed(2, 7, at=100), rec(3, 0x0066, b"\x00", 100), delivered(4, 7, at=150), start_of(5, 5, at=150, end=0x0F)]
    whole = assembled(capture(*values))
    parts = assembled(*(capture(value) for value in reversed(values)))
    assert whole.events.equals(parts.events)
    _, asked, bolus = views(whole.events)
    assert (asked.kind, asked.programmed_dose, asked.source) == ("bolus_requested", 2.0, "primary")
    assert (bolus.kind, bolus.source, bolus.at, bolus.dose, bolus.volume_ml) == ("bolus_delivered", "primary", "end", 2.0, 0.02)
    assert (bolus.programmed_dose, bolus.programmed_ml, bolus.duration_s) == (2.0, 0.02, 45.0)
    assert json.loads(bolus.detail)["end"] == "undetermined"
    assert bolus.raw == values[3] + values[4]
    at = {row.record_key: row.event_id for row in views(whole.events)}
    assert whole.event_of_record.to_pylist() == [at["0:1"], at["0:2"], at["0:2"], at["0:4"], at["0:4"]]


def test_a_bolus_over_a_clock_that_is_set_lasts_its_true_time():
    change = ref(4, NOON - timedelta(hours=5), reason=0x33, at=120)
    rows = events(ref(1), programmed(2, 7, at=100), rec(3, 0x0066, b"\x00", 100), change, delivered(5, 7, at=25), start_of(6, 0, at=25))
    assert rows[-1].duration_s == 45.0


def test_what_is_not_known_of_a_bolus_stays_open():
    parts = [programmed(2, 7, at=100), rec(3, 0x0066, b"\x00", 100)]
    end = [delivered(4, 7, at=150), start_of(5, 5, at=150)]

    def bolus(*values):
        (found,) = [row for row in events(*values) if row.kind == "bolus_delivered"]
        return found

    assert bolus(ref(1), *parts, *end[:1]).duration_s is None
    assert bolus(ref(1), rate(2, 1.0), rate(3, 1.0), *end).duration_s is None
    assert bolus(ref(1), *parts, rec(4, 0x03A6), ref(5), delivered(6, 7, at=50), start_of(7, 0, at=50)).duration_s is None
    lost = ref(4, NOON, reason=0x55)
    assert bolus(ref(1), *parts, lost, delivered(5, 7, at=50), start_of(6, 0, at=50)).duration_s is None
    assert bolus(ref(1), *parts, delivered(4, 7, 0.0, at=150), start_of(5, 5, at=150)).duration_s is None
    assert bolus(ref(1), *parts, delivered(4, 7, 2.0, minutes=3, at=150), start_of(5, 5, at=150)).duration_s == 180.0
    assert bolus(ref(1), *parts, delivered(4, 8, at=150), start_of(5, 5, at=150)).programmed_dose is None


def test_parts_that_do_not_belong_together_stay_two():
    rows = events(ref(1), delivered(2, 7, at=100), start_of(3, 0, at=101), rec(4, 0x0066, b"\x00", 101), programmed(5, 7, at=102))
    assert [row.kind for row in rows[1:]] == ["bolus_delivered", "other", "other", "bolus_requested"]
    gap = events(ref(1), delivered(2, 7, at=100), start_of(4, 0, at=100))
    assert [row.kind for row in gap[1:]] == ["bolus_delivered", "data_gap"]


def test_the_second_part_of_an_annunciation_is_of_the_same_event():
    rows = events(ref(1), annunciation(2, 0x003C, 0x33, 5), rec(3, 0x0356, b"\x01\x09\x00", 5))
    assert [row.kind for row in rows] == ["clock_change", "alarm_raised"]
    assert json.loads(rows[1].detail)["aux_3"] == 9


# --- numbers ------------------------------------------------------------------------------------------------------------------------

NAN, NRES, PLUS, RESERVED, MINUS = 0x07FF, 0x0800, 0x07FE, 0x0801, 0x0802


def test_a_number_that_is_none_is_not_known_and_an_infinite_one_is_a_fault():
    for code in (NAN, NRES):
        event = one(0x0395, struct.pack("<H", code))
        assert (event.programmed_dose, event.programmed_ml, json.loads(event.detail)) == (None, None, {"programmed_u": None})
    for code in (PLUS, RESERVED, MINUS):
        assert fault_of(rec(2, 0x0395, struct.pack("<H", code)))["code"] == "value"
    wide = {NAN: 0x007FFFFF, NRES: 0x00800000}
    for code in wide.values():
        data = struct.pack("<HB", 9, 0x33) + struct.pack("<I", code) + fl(0) + b"\x00\x00"
        assert one(0x0069, data, model="780g").dose is None
    for code in (0x007FFFFE, 0x00800001, 0x00800002):
        data = struct.pack("<HB", 9, 0x33) + struct.pack("<I", code) + fl(0) + b"\x00\x00"
        assert fault_of(rec(2, 0x0069, data), model="780g")["code"] == "value"


def test_a_rate_that_is_no_number_is_a_fault_for_it_could_be_zero():
    fault = fault_of(rec(2, 0x0099, b"\x00" + sf(1) + struct.pack("<H", NAN)))
    assert (fault["code"], fault["seq"], fault["hole"]) == ("value", 2, True)


def test_an_amount_is_not_negative_but_a_correction_may_be():
    assert fault_of(rec(2, 0x0395, sf(-1)))["code"] == "value"
    assert json.loads(one(0x003C, sf(1) + sf(-1) + sf(0) + sf(0)).detail)["recommended_fast_correction_u"] == -1.0


@given(st.integers(-2045, 2045), st.integers(-8, 7))
def test_sfloats_are_their_decimal_numbers(mantissa, exponent):
    bits = struct.pack("<H", (exponent & 0xF) << 12 | mantissa & 0xFFF)
    (row,) = views(decoded(rec(2, 0x0359, b"\x01\x01\x3c\x00" + bits)).records)
    assert json.loads(row.detail)["factor"] == float(f"{mantissa}e{exponent}")


ENUMERATIONS = {
    0x000F: (b"\x3c" + dt(NOON) + b"\x00\x00", 0, {0x0F, 0x33, 0x3C, 0x55}),
    0x0033: (b"\x3c" + dt(NOON) + b"\x00\x00", 0, {0x0F, 0x33, 0x3C, 0x55}),
    0x005A: (struct.pack("<HB", 1, 0x33) + sf(1) * 2 + b"\x00\x00", 2, {0x33, 0x3C, 0x55}),
    0x0069: (struct.pack("<HB", 1, 0x33) + sf(1) * 2 + b"\x00\x00", 2, {0x33, 0x3C, 0x55}),
    0x0066: (b"\x04\x33", 1, {0x33, 0x3C, 0x55, 0x5A}),
    0x0096: (b"\x02" + bytes(4) + b"\x33", 5, {0x0F, 0x33, 0x3C, 0x55}),
    0x0099: (b"\x01" + sf(1) * 2 + b"\x33", 5, {0x33, 0x3C, 0x55}),
    0x00A5: (b"\x00\x33" + sf(1) + b"\x1e\x00", 1, {0x33, 0x3C}),
    0x00AA: (b"\x00\x33\x1e\x00\x33", 4, {0x33, 0x3C, 0x55}),
    0x00C3: (b"\x00\x33" + sf(1) + b"\x1e\x00\x05\x00", 1, {0x33, 0x3C}),
    0x0303: (b"\x33\x55", 1, {0x33, 0x3C, 0x55}),
    0x030C: (b"\x33\x55", 0, set(STATES.values())),
    0x033F: (struct.pack("<BHHB", 0, 5, 0x003C, 0x33), 5, {0x33, 0x3C, 0x55}),
    0x039A: (b"\x00" + sf(3) + b"\x3c", 3, {0x33, 0x3C, 0x55}),
    0x03C0: (b"\x01\x33" + sf(1) * 2 + b"\x00\x00", 1, {0x33, 0x3C, 0x55}),
    0x03F3: (b"\x01\x33" + sf(1) + b"\x1e\x00", 1, {0x33, 0x3C}),
}


@pytest.mark.parametrize("code", ENUMERATIONS)
def test_any_value_of_an_enumeration_that_is_not_in_it_is_a_fault(code):
    data, place_of, values = ENUMERATIONS[code]
    for value in range(256):
        found = decoded(rec(2, code, data[:place_of] + bytes((value,)) + data[place_of + 1 :]))
        assert (found.records.num_rows, found.faults.num_rows) == ((1, 0) if value in values else (0, 1)), value


def test_an_annunciation_or_a_record_of_no_type_is_a_fault():
    assert fault_of(annunciation(2, 0x003D, 0x33))["code"] == "value"
    for code in (0x0000, 0x0304, 0x1234, 0xEFFF, 0xFFF1, 0xFFFF):
        fault = fault_of(rec(2, code, b"\x00"))
        assert (fault["code"], fault["seq"], fault["hole"]) == ("type", 2, True)


@pytest.mark.parametrize("day", [(2026, 2, 29), (2026, 13, 1), (2026, 0, 1), (0, 1, 1), (2026, 1, 0), (65535, 1, 1)])
def test_a_date_that_is_not_in_the_calendar_is_a_fault(day):
    assert fault_of(rec(2, 0x000F, b"\x33" + struct.pack("<HBBBBB", *day, 0, 0, 0) + b"\x00\x00"))["code"] == "value"
    assert fault_of(rec(2, 0x00FF, b"\x00" + sf(1) * 2 + struct.pack("<HBB", *day)))["code"] == "value"


def test_a_record_fits_its_layout_to_the_byte():
    for data in (b"\x33", b"\x33\x55\x00", b""):
        fault = fault_of(rec(2, 0x0303, data))
        assert (fault["code"], fault["seq"]) == ("length", 2)
    assert fault_of(rec(2, 0x0066, b"\x01\x05"))["code"] == "length"
    assert fault_of(rec(2, 0x0099))["code"] == "length"
    assert fault_of(b"\x0f\x00\x01")["seq"] is None


# --- E2E-CRC ------------------------------------------------------------------------------------------------------------------------


def sealed(value):
    return value + crc16(value).to_bytes(2, "little")


def test_with_e2e_every_record_ends_with_its_crc_and_a_broken_one_is_a_fault_between_its_neighbours():
    good = [sealed(one) for one in (ref(1), rate(2, 1.0), rate(3, 2.0))]
    assert [row.rate_dose_h for row in events(*good, model="sfloat+crc")] == [None, 1.0, 2.0]
    bad = good[1][:-3] + bytes((good[1][-3] ^ 1,)) + good[1][-2:]
    fault = fault_of(good[0], bad, good[2], model="sfloat+crc")
    assert (fault["code"], fault["seq"], fault["after_seq"], fault["before_seq"], fault["raw"]) == ("crc", None, 1, 3, bad)
    assert [row.kind for row in events(good[0], bad, good[2], model="sfloat+crc")] == ["clock_change", "data_gap"]


def test_a_crc_that_the_profile_does_not_know_of_is_a_fault_and_the_other_way_round():
    assert fault_of(sealed(rate(2, 1.0)))["code"] == "length"
    assert fault_of(rate(2, 1.0), model="sfloat+crc")["code"] == "crc"
    wide = sealed(rec(2, 0x0099, b"\x00" + fl(1) + fl(2)))
    assert decoded(wide, model="780g+crc").faults.num_rows == 0


# --- time, holes, order -------------------------------------------------------------------------------------------------------------


def test_a_hole_takes_the_base_with_it_and_is_healed_by_what_fills_it():
    start, gone, stop = therapy(2, STOP, RUN, 60), rate(3, 1.0, at=60), therapy(4, RUN, STOP, 120)
    rows = events(ref(1), start, stop)
    assert [row.kind for row in rows] == ["clock_change", "delivery_start", "data_gap"]
    log = assembled(capture(ref(1), start, stop), capture(gone))
    assert [row.kind for row in views(log.events)] == ["clock_change", "delivery_start", "rate_change", "delivery_stop"]
    assert views(log.events)[3].pump_time == NOON + timedelta(seconds=120)


def test_what_has_no_base_at_the_start_of_a_log_is_a_hole_of_its_own_and_an_anchor_there_anchors_nothing():
    anchor = Anchor(pump_clock=NOON, utc=NOON.replace(tzinfo=UTC), after="0:2")
    log = assembled(capture(therapy(1, STOP, RUN, 5), rate(2, 1.0, at=5), ref(3, at=600), rate(4, 2.0, at=5), anchor=anchor))
    rows = views(log.events)
    assert [(row.kind, row.record_key) for row in rows] == [
        ("data_corruption", "gap:0:1-2"),
        ("clock_change", "0:3"),
        ("rate_change", "0:4"),
    ]
    assert [one.after for one in log.anchors] == [0]
    assert list(place(Block.of(["one"], [log]), ClockPolicy()).stretch) == [-1, 0, 0]


def test_elapsed_time_is_what_the_clock_of_the_derivation_goes_by():
    values = [
        ref(1), therapy(2, STOP, RUN, 600), ref(3, NOON - timedelta(hours=9), 0x33, at=900), therapy(4, RUN, STOP, 300),
        ref(5, datetime(2005, 1, 1), 0x55), rate(6, 1.0, at=30), ref(7, NOON, 0x33, at=7638), rate(8, 2.0, at=10),
    ]  # fmt: skip
    line = place(Block.of(["one"], [assembled(capture(*values))]), ClockPolicy())
    assert list(line.stretch) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert list(line.elapsed // 1000) == [0, 600, 900, 1200, 0, 30, 7638, 7648]


def test_an_undated_corruption_stands_where_it_was_received():
    lost = rec(0xFFFFFFFF, 0x03A6, at=70)
    values = [ref(1), rate(2, 1.0, at=60), lost, rate(3, 2.0, at=80), ref(4, at=100)]
    log = assembled(capture(*values))
    rows = views(log.events)
    assert [(row.kind, row.seq) for row in rows] == [
        ("clock_change", 1),
        ("rate_change", 2),
        ("data_corruption", None),
        ("clock_change", 4),
    ]
    assert (rows[2].native_code, rows[2].raw, json.loads(rows[2].detail)) == ("03A6", lost, {"without_time": 1})
    assert log.event_of_record.to_pylist() == [rows[0].event_id, rows[1].event_id, rows[2].event_id, rows[2].event_id, rows[3].event_id]
    for some in (values[:3], values[2:]):
        again = assembled(capture(*values), capture(*some), capture(*values))
        assert [row.kind for row in views(again.events)] == [row.kind for row in rows]
    split = assembled(capture(*values[:3]), capture(*values[3:]))
    assert split.events.equals(log.events)
    other = assembled(capture(*values[:2]), capture(*values[2:]))
    assert other.events.equals(log.events)


def test_an_undated_corruption_in_a_gap_is_of_that_gap():
    lost = rec(0xFFFFFFFF, 0x03A6)
    log = assembled(capture(ref(1), rate(2, 1.0), lost, ref(4)))
    assert [row.kind for row in views(log.events)] == ["clock_change", "rate_change", "data_gap", "clock_change"]
    alone = capture(lost, part="3-3")
    log = assembled(capture(ref(1), rate(2, 1.0)), alone, capture(ref(4)))
    assert [row.kind for row in views(log.events)] == ["clock_change", "rate_change", "data_gap", "clock_change"]
    assert log.event_of_record[2].as_py() == views(log.events)[2].event_id


def test_an_undated_corruption_of_which_nobody_knows_the_place_is_a_fault_and_so_is_any_other_record_without_a_number():
    assert fault_of(rec(0xFFFFFFFF, 0x03A6))["code"] == "place"
    fault = fault_of(ref(1), rec(0xFFFFFFFF, 0x0303, b"\x33\x55"))
    assert (fault["code"], fault["after_seq"]) == ("number", 1)


def test_a_record_read_twice_is_one_and_one_that_differs_is_a_conflict_also_in_its_second_part():
    values = [ref(1), delivered(2, 7, at=9), start_of(3, 0, at=9)]
    assert [row.conflict for row in views(assembled(capture(*values), capture(*values, *values)).events)] == [False, False]
    rows = views(assembled(capture(*values), capture(start_of(3, 4, at=9))).events)
    assert [row.conflict for row in rows] == [False, True]
    assert json.loads(rows[1].detail)["conflicts_with"]


# --- lines, files, bridges ----------------------------------------------------------------------------------------------------------


def test_lines_of_other_characteristics_are_no_history_and_a_line_that_is_none_is_a_fault():
    data = b"> 33690f\nH " + ref(1).hex().encode() + b"\r\n< 0f0f33f0\nT e207\n? 2a2b\n\nH 0f0\nwhat\n" + text(rate(2, 1.0))
    data += b'{"uuid": "2a37", "hex": "00"}\n{"uuid": "2B28", "hex": "' + rate(3, 1.0).hex().encode() + b'"}\n{"uuid": 7}\n'
    found = ids.decode(Capture(data=data, family="ids", pump_id=PUMP))
    assert found.records.column("seq").to_pylist() == [1, 2, 3]
    assert [(one["offset"], one["raw"], one["after_seq"], one["before_seq"]) for one in found.faults.to_pylist()] == [
        (7, b"H 0f0", 1, 2),
        (8, b"what", 1, 2),
        (12, b'{"uuid": 7}', 3, None),
    ]


def test_a_file_says_not_which_pump_it_is_of():
    with pytest.raises(InputError) as raised:
        ids.read_files([("log.txt", text(ref(1)))])
    assert raised.value.code == "no_pump"
    (found,) = ids.read_files([("log.txt", text(ref(1)))], pump_id=PUMP, model="sfloat+crc", anchor=None)
    assert (found.pump_id, found.model) == (PUMP, "sfloat+crc")


def test_files_of_the_family_are_recognised_and_others_are_not():
    assert ids.recognise("x", text(ref(1), rate(2, 1.0)))
    assert ids.recognise("x", text(*(rate(seq, 1.0) for seq in range(2000))))
    for data in (b"", b"\n", b"< 0f0f33f0\n", b"H zz\n", text(b"\x01\x02" * 5), b'{"pumpledger": 1}\n', b"MSH|^~\\&|", bytes(range(256))):
        assert not ids.recognise("x", data)


def test_the_family_is_found_by_its_name():
    assert families()["ids"] is ids


MAC = "ble2mqtt/aa:bb:cc:dd:ee:ff"


@pytest.mark.parametrize(
    ("topic", "letter"),
    [
        ("InsulinDelivery/IDDHistoryData", "H"),
        ("0000183a-0000-1000-8000-00805f9b34fb/00002b28-0000-1000-8000-00805f9b34fb", "H"),
        ("183a/2b28", "H"),
        ("00000100-0000-1000-0000-009132591325/00000108-0000-1000-0000-009132591325", "H"),
        ("InsulinDelivery/IDDRecordAccessControlPoint", "<"),
        ("x/00002a52-0000-1000-8000-00805f9b34fb", "<"),
        ("x/RecordAccessControlPoint", "<"),
        ("CurrentTimeService/CurrentTime", "T"),
    ],
)
def test_a_message_of_a_bridge_is_a_line(topic, letter):
    assert ids.bridge_line(f"{MAC}/{topic}", b"51,102,15") == (MAC, f"{letter} 33660f\n".encode())


def test_what_else_a_bridge_says_is_no_line_and_a_broken_payload_is_kept_to_be_seen():
    for topic in (f"{MAC}/Connected", f"{MAC}/Owner", "BLE2MQTT-1234/Status", f"{MAC}/HeartRate/2a37", f"{MAC}/183a/2b28/Set", "x/y/2b28"):
        assert ids.bridge_line(topic, b"1,2") is None
    found = ids.bridge_line(f"{MAC}/183a/2b28", b"51,300\n,1")
    assert found == (MAC, b"H 51,300 ,1\n")
    (fault,) = ids.decode(Capture(data=found[1], family="ids", pump_id=PUMP)).faults.to_pylist()
    assert fault["raw"] == b"H 51,300 ,1"


def test_what_the_dialogue_asks_is_what_is_published_to_the_bridge():
    assert ids.bridge_request(MAC, b"> 33660f\n") == (f"{MAC}/InsulinDelivery/IDDRecordAccessControlPoint/Set", b"51,102,15")
    assert ids.bridge_request(MAC, b"? 2a2b\n") == (f"{MAC}/CurrentTimeService/CurrentTime/Get", b"")
    assert ids.bridge_request(MAC, b"> 33660f\n", {">": "183a/2b27/Set"}) == (f"{MAC}/183a/2b27/Set", b"51,102,15")
    with pytest.raises(InputError):
        ids.bridge_request(MAC, b"H 00\n")


# --- the dialogue -------------------------------------------------------------------------------------------------------------------


class Transcript:
    """A pump that answers by request: hex of a request → what comes, "H…" a history notification, the rest indications."""

    def __init__(self, answers, noise=(), clock=None):
        self.answers, self.noise, self.clock = {key: list(value) for key, value in answers.items()}, noise, clock
        self.asked = []
        self.kept = []
        self.notes = []

    def exchange(self, ask):
        assert ask.data.endswith(b"\n")
        self.asked.append(ask.data.decode().strip().removeprefix("> "))
        sent = [f"< {one}" for one in self.noise]
        if ask.data == b"? 2a2b\n":
            sent = [f"T {self.clock.hex()}"] if self.clock else []
        else:
            left = self.answers.get(self.asked[-1], [])
            came = left.pop(0) if left and isinstance(left[0], list) else left
            sent += [f"H {one[1:]}" if one.startswith("H") else f"< {one}" for one in came]
        data = "".join(f"{one}\n" for one in sent).encode()
        now = datetime(2026, 3, 2, 17, tzinfo=UTC)
        return Reply(data=data, sent=now - timedelta(milliseconds=80), received=now)

    def read(self, known=(), model=None):
        return run(ids.download(PUMP, known, model=model), self.exchange, self.kept.append, self.notes.append)

    def asks(self, request):
        """The Ask of this request in a download."""
        dialogue = ids.download(PUMP, [])
        step, answer = dialogue.send(None), None
        while not (isinstance(step, Ask) and step.data == b"> " + request.hex().encode() + b"\n"):
            answer = self.exchange(step) if isinstance(step, Ask) else None
            step = dialogue.send(answer)
        dialogue.close()
        return step


def h(value):
    return "H" + value.hex()


def span(low, high):
    return racp_request(REPORT, 0x5A, low, high).hex()


HISTORY = {seq: rate(seq, 1.0, at=seq % 3600) for seq in range(1, 101)}


def answers(first=1, last=100, **special):
    known = {
        "5a330f": [f"660f{last - first + 1:02x}000000"],
        "33690f": [h(HISTORY[last]), "0f0f33f0"],
        "33660f": [h(HISTORY[first]), "0f0f33f0"],
    }
    return {**known, **special}


def block(low, high, without=()):
    return [*(h(HISTORY[seq]) for seq in range(low, high + 1) if seq not in without), "0f0f33f0"]


def test_blocks_of_forty_are_read_the_newest_first():
    pump = Transcript(answers() | {span(60, 99): block(60, 99), span(20, 59): block(20, 59), span(1, 19): block(1, 19)})
    summary = pump.read(model="sfloat")
    assert pump.asked == ["5a330f", "33690f", "? 2a2b", "33660f", span(60, 99), span(20, 59), span(1, 19)]
    assert [one.part for one in pump.kept] == ["100-100", "60-99", "20-59", "1-19"]
    assert (summary.new_parts, summary.complete, summary.model, summary.clock_offset_s) == (4, True, "sfloat", None)
    assert assembled(*pump.kept).events.num_rows == 1
    assert {json.loads(row.detail)["without_time"] for row in views(assembled(*pump.kept).events)} == {100}
    assert all(one.family == "ids" and one.model == "sfloat" for one in pump.kept)


def test_what_is_known_is_not_asked_for_again_and_what_is_missing_in_it_is():
    known = [head(replace(capture(), part=part, model="sfloat")) for part in ("1-19,21-59", "60-80", None, "page 3")]
    pump = Transcript(answers() | {span(81, 99): block(81, 99), span(20, 20): block(20, 20)})
    summary = pump.read(known)
    assert pump.asked[-2:] == [span(81, 99), span(20, 20)]
    assert (summary.model, summary.complete) == ("sfloat", True)


def test_nothing_new_is_no_capture_unless_the_clock_was_read():
    known = [head(replace(capture(), part="1-100"))]
    pump = Transcript(answers())
    assert pump.read(known).new_parts == 0
    assert pump.kept == []
    pump = Transcript(answers(), clock=dt(datetime(2026, 3, 2, 12, 0, 5)) + b"\x01\x00\x00")
    summary = pump.read(known)
    assert (summary.new_parts, summary.clock_offset_s) == (1, -17_995.0)
    (found,) = pump.kept
    assert (found.anchor.pump_clock, found.anchor.round_trip_ms) == (datetime(2026, 3, 2, 12, 0, 5), 80)
    assert ids.decode(found).anchors.to_pylist()[0]["after"] == "0:100"


def test_a_clock_that_is_none_is_not_believed():
    for clock in (b"\xe2", dt(NOON)[:2] + b"\x0d\x01\x00\x00\x00\x01\x00\x00"):
        pump = Transcript(answers(first=100), clock=clock)
        assert pump.read().clock_offset_s is None
        assert "the pump does not tell its clock" in pump.notes


def test_holes_of_a_block_are_asked_for_again_until_they_come():
    special = {
        span(90, 99): block(90, 99, without={92, 95, 96}),
        span(92, 92): [["0f0f33f0"], ["0f0f33f0"], block(92, 92)],
        span(95, 96): [block(95, 96, without={96})],
        span(96, 96): [["0f0f33f0"], block(96, 96)],
    }
    pump = Transcript(answers(first=90) | special)
    assert pump.read().complete
    assert pump.asked[4:] == [span(90, 99), span(92, 92), span(95, 96), span(92, 92), span(96, 96), span(92, 92), span(96, 96)]
    assert [one.part for one in pump.kept] == ["100-100", "90-91,93-94,97-99", "95-95", "92-92", "96-96"]


def test_a_record_that_never_comes_is_told_and_the_rest_is_read():
    pump = Transcript(answers(first=97) | {span(97, 99): block(97, 99, without={98}), span(98, 98): ["0f0f33f0"]})
    assert not pump.read().complete
    assert pump.asked.count(span(98, 98)) == 3
    assert "1 records between 97 and 99 do not come" in pump.notes


def test_a_number_that_the_pump_does_not_have_is_asked_for_once():
    pump = Transcript(answers(first=97) | {span(97, 99): block(97, 99, without={98}), span(98, 98): ["0f0f3306"]})
    assert pump.read().complete
    assert pump.asked.count(span(98, 98)) == 1


def test_a_corruption_in_place_of_a_record_takes_its_place():
    lost = rec(0xFFFFFFFF, 0x03A6)
    special = {span(97, 99): [*block(97, 99, without={98})[:-1], "0f0f33f0"], span(98, 98): [h(lost), "0f0f33f0"]}
    pump = Transcript(answers(first=97) | special)
    assert pump.read().complete
    assert pump.kept[-1].part == "98-98"
    log = assembled(*pump.kept, capture(ref(96)))
    assert [row.kind for row in views(log.events)] == ["clock_change", "rate_change", "data_gap"]


def test_what_is_retained_repeated_or_of_another_service_is_dropped():
    noisy = ["06000101", h(HISTORY[3]), *block(97, 98)[:-1], h(HISTORY[97]), "0101", h(HISTORY[99]), "06000101", "0f0f33f0"]
    pump = Transcript(answers(first=97) | {span(97, 99): noisy}, noise=["06000101"])
    assert pump.read().complete
    assert pump.kept[-1].data == text(HISTORY[97], HISTORY[98], HISTORY[99])


def test_without_a_response_the_request_is_aborted_and_what_came_is_kept():
    special = {span(97, 99): [block(97, 98)[:-1]], "550f": ["0f0f55f0"], span(99, 99): block(99, 99)}
    pump = Transcript(answers(first=97) | special)
    assert pump.read().complete
    assert pump.asked[4:] == [span(97, 99), "550f", span(99, 99)]
    assert [one.part for one in pump.kept] == ["100-100", "97-98", "99-99"]


def test_a_pump_that_falls_silent_is_an_error_and_what_came_is_kept():
    pump = Transcript(answers(first=97) | {span(97, 99): [block(97, 98)[:-1]]})
    with pytest.raises(LinkError) as raised:
        pump.read()
    assert raised.value.code == "no_answer"
    assert [one.part for one in pump.kept] == ["100-100", "97-98"]
    with pytest.raises(LinkError):
        Transcript({}).read()


def test_a_request_that_was_not_completed_is_made_again():
    pump = Transcript(answers(first=100) | {"33660f": [["0f0f3308"], [h(HISTORY[100]), "0f0f33f0"]]})
    assert pump.read().complete
    assert pump.asked.count("33660f") == 2


def test_a_retained_notification_in_place_of_the_oldest_record_is_not_believed():
    lost = [h(HISTORY[99]), "0f0f33f0"]
    pump = Transcript(answers(first=97) | {"33660f": [lost, [h(HISTORY[97]), "0f0f33f0"]], span(97, 99): block(97, 99)})
    assert pump.read().complete
    assert pump.kept[-1].part == "97-99"
    never = Transcript(answers(first=97) | {"33660f": lost, span(99, 99): block(99, 99)})
    assert not never.read().complete


def test_a_pump_without_records_has_nothing_new():
    pump = Transcript({"5a330f": ["660f00000000"], "33690f": ["0f0f3306"]})
    summary = pump.read()
    assert (summary.new_parts, summary.complete, pump.kept) == (0, True, [])


def test_a_refusal_is_the_pump_s_error_but_a_count_is_not_needed():
    for code in ("02", "03", "04", "05", "09", "0a"):
        with pytest.raises(PumpError) as raised:
            Transcript(answers() | {"33690f": [f"0f0f33{code}"]}).read()
        assert raised.value.code == "refused"
    assert Transcript(answers(first=100) | {"5a330f": ["0f0f5a02"]}).read().complete
    with pytest.raises(PumpError) as raised:
        Transcript(answers() | {"33690f": [h(rate(5_000_000, 1.0)), "0f0f33f0"]}).read()
    assert raised.value.code == "numbers"
    with pytest.raises(PumpError):
        Transcript(answers() | {"33690f": ["0f0f33f0"]}).read()


def test_with_e2e_requests_carry_a_counter_and_a_crc_and_a_response_must_too():
    def answered(value, counter=0):
        return sealed(value + bytes((counter,))).hex()

    asked = [sealed(body + bytes((n,))).hex() for n, body in enumerate(map(bytes.fromhex, ("5a330f", "33690f", "33660f")))]
    only = h(sealed(HISTORY[100]))
    success = answered(bytes.fromhex("0f0f33f0"), 9)
    pump = Transcript({asked[0]: [answered(bytes.fromhex("660f01000000"))], asked[1]: [only, success], asked[2]: [only, success]})
    assert pump.read(model="sfloat+crc").complete
    assert pump.asked == [asked[0], asked[1], "? 2a2b", asked[2]]
    plain = Transcript({asked[0]: ["660f01000000"]})
    with pytest.raises(LinkError):
        plain.read(model="sfloat+crc")


def test_e2e_is_found_by_the_form_of_the_answer_whatever_was_thought_before():
    def wrapped(body, counter):
        return sealed(bytes.fromhex(body) + bytes((counter,))).hex()

    only, success = h(sealed(HISTORY[100])), wrapped("0f0f33f0", 9)
    special = {wrapped("5a330f", 0): [wrapped("660f01000000", 0)], wrapped("33690f", 1): [only, success]}
    with_crc = Transcript(special | {wrapped("33660f", 2): [only, success]})
    summary = with_crc.read()
    assert with_crc.asked == ["5a330f", wrapped("5a330f", 0), wrapped("33690f", 1), "? 2a2b", wrapped("33660f", 2)]
    assert (summary.complete, summary.model, with_crc.kept[0].model) == (True, "standard+crc", "standard+crc")
    plain = Transcript(answers(first=100) | {wrapped("5a330f", 0): ["0f0f5a05"]})
    summary = plain.read(model="acme+crc")
    assert plain.asked == [wrapped("5a330f", 0), "5a330f", "33690f", "? 2a2b", "33660f"]
    assert (summary.complete, summary.model, plain.kept[0].model) == (True, "acme", "acme")


def test_an_answer_whose_crc_does_not_hold_tells_nothing():
    broken = bytearray(sealed(bytes.fromhex("660f0100000000")))
    broken[-1] ^= 1
    with pytest.raises(LinkError):
        Transcript({"5a330f": [broken.hex()]}).read()


def wide_rate(seq):
    return rec(seq, 0x0099, b"\x00" + fl(0) + fl(1.0), seq)


def told_by(*values, model=None, known=()):
    """A download of these records, the newest of which is the last."""
    first, last = (int.from_bytes(value[2:6], "little") for value in (values[0], values[-1]))
    done = ["0f0f33f0"]
    ends = {"5a330f": [f"660f{last - first + 1:02x}000000"], "33690f": [h(values[-1]), *done], "33660f": [h(values[0]), *done]}
    pump = Transcript(ends | {span(first, last - 1): [*map(h, values[:-1]), *done]})
    return pump, lambda: pump.read(known, model=model)


@pytest.mark.parametrize("model", [None, "standard", "acme"])
def test_wide_amounts_that_no_model_names_end_a_download_before_they_are_kept_and_say_what_to_write(model):
    pump, read = told_by(ref(1), rec(2, 0xF00A, b"\x02"), wide_rate(3), rec(4, 0xF00B, b"\x02"), model=model)
    with pytest.raises(InputError, match=r'Write `model = "780g"` in the \[\[dock\]\] of its port in pumpledger.toml') as raised:
        read()
    assert (raised.value.code, bool(raised.value.why)) == ("which_model", True)
    assert model is not None or pump.kept == []
    again, read = told_by(ref(1), rec(2, 0xF00A, b"\x02"), wide_rate(3), rec(4, 0xF00B, b"\x02"), model="780g")
    assert read().complete
    assert joined(ids.decode(one) for one in again.kept).faults.num_rows == 0


def test_narrow_amounts_of_what_is_named_a_780g_end_a_download_too():
    _, read = told_by(ref(1), rate(2, 1.0), model="780g")
    with pytest.raises(InputError, match='Write `model = "standard"` in') as raised:
        read()
    assert raised.value.code == "which_model"


def test_a_maker_s_own_records_are_kept_when_the_amounts_of_others_have_told_the_profile():
    pump, read = told_by(ref(1), rec(2, 0xF00A, b"\x02"), rate(3, 1.0), rec(4, 0xF00B, b"\x02"))
    assert read().model == "standard"
    assert [(one.part, one.model) for one in pump.kept] == [("4-4", "standard"), ("1-3", "standard")]
    later, read = told_by(rec(5, 0xF00A, b"\x02"), rec(6, 0xF00A, b"\x02"), known=map(head, pump.kept))
    assert read().model == "standard"
    assert [one.part for one in later.kept] == ["6-6", "5-5"]


def test_a_maker_s_own_records_alone_are_not_read_by_guess():
    pump, read = told_by(ref(1), therapy(2, STOP, RUN), rec(3, 0xF00A, b"\x02"))
    with pytest.raises(InputError, match='`model = "780g"` for a Medtronic 780G, `model = "standard"` for any other') as raised:
        read()
    assert raised.value.code == "which_model"
    assert [one.part for one in pump.kept] == ["1-2"]


def test_what_every_profile_reads_alike_is_kept_without_one():
    pump, read = told_by(ref(1), therapy(2, STOP, RUN), therapy(3, RUN, STOP))
    assert read().model is None
    assert [one.model for one in pump.kept] == [None, None]


@given(st.integers(0, 255), st.integers(0, 255), st.lists(st.integers(0, 2**32 - 1), max_size=2))
def test_there_is_no_way_to_ask_for_anything_but_reading(opcode, operator, numbers):
    if opcode in (0x33, 0x5A, 0x55):
        assert racp_request(opcode, operator, *numbers)[0] == opcode
    else:
        with pytest.raises(InputError):
            racp_request(opcode, operator, *numbers)


def test_the_hello_asks_how_many_records_there_are_and_knows_the_answer():
    assert ids.HELLO.data == b"> 5a330f\n"
    assert ids.is_hello(b"< 06000101\n< 660f64000000\n")
    assert ids.is_hello(b"< 0f0f5a02\n")
    for answer in (b"", b"< 660f64000000", b"\x01\x55\x00" + bytes(61), b"\x01\x66\x0f\n", b"H 660f64000000\n"):
        assert not ids.is_hello(answer)
        assert (ids.HELLO.missing(answer) == 0) == ids.is_hello(answer)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.binary(max_size=60) | st.sampled_from([b"< 0f0f33f0\n", b"< 0f0f3306\n", text(HISTORY[5]), text(rate(7, 1.0))]), max_size=40
    )
)
def test_a_dialogue_ends_whatever_comes(replies):
    now = datetime(2026, 3, 2, 17, tzinfo=UTC)
    dialogue, answer, left = ids.download(PUMP, []), None, iter(replies)
    try:
        for _ in range(400):
            step = dialogue.send(answer)
            answer = None
            if isinstance(step, Ask):
                data = next(left, b"")
                step.missing(data)
                answer = Reply(data=data, sent=now, received=now)
            elif isinstance(step, Got):
                ids.decode(step.capture)
        pytest.fail("it does not end")
    except (StopIteration, LinkError, PumpError):
        pass


# --- whatever comes -----------------------------------------------------------------------------------------------------------------


@st.composite
def logs(draw):
    """Records of one pump, numbered without holes, with reference times, pairs and holes of the log itself."""
    values, at, seq = [ref(500)], 0, 501
    while seq < 501 + draw(st.integers(2, 30)):
        at += draw(st.sampled_from([0, 0, 1, 60, 900]))
        bolus = draw(st.integers(1, 2))
        match draw(st.integers(0, 11)):
            case 0:
                values.append(ref(seq, NOON + timedelta(hours=seq % 7), draw(st.sampled_from([0x33, 0x3C, 0x55])), at))
                at = 0
            case 1:
                values += [programmed(seq, bolus, at=at), rec(seq + 1, 0x0066, b"\x00", at)]
            case 2:
                values += [delivered(seq, bolus, at=at), start_of(seq + 1, draw(st.integers(0, 60)), at)]
            case 3:
                values += [annunciation(seq, 0x003C, 0x33, at), rec(seq + 1, 0x0356, b"\x00", at)]
            case 4:
                values.append(therapy(seq, *draw(st.permutations([RUN, STOP])), at))
            case 5:
                values.append(operation(seq, *draw(st.tuples(*[st.sampled_from(list(STATES.values()))] * 2)), at))
            case 6:
                values.append(rec(seq, draw(st.sampled_from([0xF00A, 0xF00B])), b"\x02", at))
            case 7:
                values.append(rec(seq, 0xF00E, b"\x3c" + dt(NOON + timedelta(days=1)), at))
                at = 0
            case 8:
                values.append(rate_wide(seq, draw(st.integers(0, 2)), at))
            case 9:
                values.append(rec(seq, 0x0395, sf(2), at))
            case 10:
                values.append(rec(seq, 0xF007, b"\x01\x02", at))
            case 11 if draw(st.booleans()):
                values.append(rec(seq, 0x03A6, at=at))
        seq = int.from_bytes(values[-1][2:6], "little") + 1
    return [wide(value) if value[:2] in (b"\x5a\x00", b"\x69\x00") else value for value in values]


def wide(value):
    return value[:11] + fl(2) + fl(0) + value[-2:]


@settings(max_examples=60, deadline=None)
@given(logs(), st.data())
def test_any_split_order_and_repetition_of_the_records_gives_the_same_log(values, data):
    whole = assembled(capture(*values, model="780g"))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(values) - 1), max_size=6)))
    parts = [values[a:b] for a, b in zip([0, *cuts], [*cuts, len(values)], strict=True)]
    parts += data.draw(st.lists(st.sampled_from(parts), max_size=3))
    mixed = [data.draw(st.permutations(part)) for part in data.draw(st.permutations(parts))]
    again = assembled(*(capture(*part, model="780g") for part in mixed))
    assert again.events.equals(whole.events)
    assert sum(len(part) for part in mixed) == len(again.event_of_record)
    ids_there = set(again.events.column("event_id").to_pylist())
    assert set(again.event_of_record.to_pylist()) <= ids_there


def same(one, two):
    assert one.events.equals(two.events)
    assert one.anchors == two.anchors
    assert (one.gaps_visible, set(one.event_of_record.to_pylist())) == (two.gaps_visible, set(two.event_of_record.to_pylist()))


def check_parts(whole, parts, size):
    assert b"".join(one.data for one in parts) == whole.data
    assert all(len(one.data) <= size and (one.model, one.pump_id) == (whole.model, PUMP) for one in parts)
    assert (parts == [whole]) == (len(whole.data) <= size)


@settings(max_examples=80, deadline=None)
@given(logs(), st.integers(40, 900), st.booleans(), st.booleans(), st.data())
def test_the_parts_of_a_split_capture_give_the_log_of_the_whole(values, size, ranged, mixed, data):
    values = data.draw(st.permutations(values)) if mixed else values
    lines = [text(value) for value in values]
    numbers = [int.from_bytes(value[2:6], "little") for value in values]
    for strange in data.draw(
        st.lists(st.sampled_from([b"> 335a0f\n", b"\n", b"H 12\n", b"nothing\n", text(rec(2**32 - 1, 0x03A6))]), max_size=4)
    ):
        lines.insert(data.draw(st.integers(0, len(lines))), strange)
    anchor = data.draw(st.sampled_from([None, Anchor(pump_clock=NOON, utc=NOON.replace(tzinfo=UTC), round_trip_ms=9)]))
    named = f"{min(numbers)}-{max(numbers)}" if ranged else None
    whole = Capture(data=b"".join(lines), family="ids", pump_id=PUMP, model="780g", part=named, anchor=anchor)
    with suppress(InputError):
        parts = ids.split(whole, size)
        check_parts(whole, parts, size)
        same(assembled(*data.draw(st.permutations(parts))), assembled(whole))
        if ranged:
            asked, read = told_by(rate(min(numbers), 1.0), rate(max(numbers), 1.0), known=map(head, parts), model="acme")
            assert read().complete
            assert len(asked.asked) == 4


def test_a_long_file_is_split_at_its_lines_and_a_line_is_never_cut():
    values = [ref(1), *(rate(seq, 1.0, at=seq) for seq in range(2, 400))]
    parts = ids.split(capture(*values), 1000)
    assert all(900 < len(one.data) <= 1000 and one.data.endswith(b"\n") for one in parts[:-1])
    same(assembled(*parts), assembled(capture(*values)))
    assert ids.split(capture(*values), 10**6) == [capture(*values)]
    with pytest.raises(InputError) as raised:
        ids.split(capture(*values), 20)
    assert raised.value.code == "too_large"


@settings(max_examples=60, deadline=None)
@given(logs(), st.data())
def test_a_record_that_is_left_out_is_a_hole_and_moves_nothing_before_it(values, data):
    gone = data.draw(st.integers(1, len(values) - 1))
    whole, less = (events(*some, model="780g") for some in (values, values[:gone] + values[gone + 1 :]))
    seq = 500 + gone
    holes = [row for row in less if row.kind == "data_gap"]
    assert len(holes) == (gone < len(values) - 1)
    before = [(row.record_key, row.pump_time, row.native_ms) for row in whole if row.seq is not None and row.seq < seq]
    assert [(row.record_key, row.pump_time, row.native_ms) for row in less if row.seq is not None and row.seq < seq] == before


@settings(max_examples=60, deadline=None)
@given(logs(), st.data())
def test_elapsed_time_is_the_sum_of_the_offsets_whatever_the_clock_shows(values, data):
    log = assembled(capture(*values, model="780g"))
    line = place(Block.of(["one"], [log]), ClockPolicy())
    at = {row.seq: number for number, row in enumerate(views(log.events)) if row.seq is not None}
    passed, sums = 0, {}
    for value in values:
        code, seq, offset = struct.unpack("<HIH", value[:8])
        sums[seq] = passed + offset
        if code in (0x000F, 0xF00E):
            passed += offset
    rows = sorted(seq for seq in at if line.stretch[at[seq]] >= 0)
    for one, two in pairwise(rows):
        if line.stretch[at[one]] == line.stretch[at[two]]:
            assert line.elapsed[at[two]] - line.elapsed[at[one]] == (sums[two] - sums[one]) * 1000


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=200) | st.binary(max_size=40).map(text) | st.text(max_size=80).map(str.encode),
    st.sampled_from(["780g", "sfloat+crc", None]),
)
def test_no_bytes_raise_and_what_is_history_is_a_record_or_a_fault(data, model):
    ids.recognise("x", data)
    anchor = Anchor(pump_clock=NOON, utc=NOON.replace(tzinfo=UTC))
    whole = Capture(data=data, family="ids", pump_id=PUMP, model=model, anchor=anchor)
    found = ids.decode(whole)
    assembled(whole)
    assert data.count(b"\nH ") + data.startswith(b"H ") <= found.records.num_rows + found.faults.num_rows


@settings(max_examples=120, deadline=None)
@given(logs(), st.booleans(), st.data())
def test_a_damaged_capture_never_raises_and_loses_no_line(values, hexed, data):
    spoiled = bytearray(text(*values) if hexed else b"".join(values))
    for _ in range(data.draw(st.integers(1, 5))):
        spoiled[data.draw(st.integers(0, len(spoiled) - 1))] = data.draw(st.integers(0, 255))
    if not hexed:
        whole = bytes(spoiled)
        sizes = [len(value) for value in values]
        spoiled = text(*(whole[sum(sizes[:n]) : sum(sizes[: n + 1])] for n in range(len(sizes))))
    damaged = Capture(data=bytes(spoiled), family="ids", pump_id=PUMP, model="780g")
    found = ids.decode(damaged)
    for row in views(assembled(damaged).events):
        json.loads(row.detail)
    if not hexed:
        assert found.records.num_rows + found.faults.num_rows == len(values)
