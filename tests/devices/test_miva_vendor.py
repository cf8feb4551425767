"""The maker's own driver (pyZynoUnifiedDrivers, MIT, from PyPI) against our reading and our pump. Skipped where it is not installed."""

from __future__ import annotations

import importlib.util
import json
import random
import struct
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from io import StringIO

import numpy as np
import pyarrow as pa
import pytest

from devices import miva
from devices.contract import ANCHORS, FAULTS, RECORDS, Capture
from simulators import miva as simulated
from simulators.rig import Rig
from simulators.therapy import therapy
from tests.conftest import need

PUMP = "miva:M1234567"
START = datetime(2026, 3, 2, 5, tzinfo=UTC)
EACH = 200
"""Random records of every type."""


@pytest.fixture(scope="module")
def vendor():
    """The module of the driver that speaks to pumps."""
    there = importlib.util.find_spec("pyZynoUnifiedDrivers") is not None
    need("vendor", there, "the maker's driver is not installed: pip install pyZynoUnifiedDrivers==0.0.9")
    from pyZynoUnifiedDrivers.miva import module_miva

    return module_miva


def quietly(call, *args, **more):
    """The driver prints as it goes."""
    with redirect_stdout(StringIO()):
        return call(*args, **more)


def capture(records, time="relative"):
    part = f"0:0-{len(records) - 1} sum {time} {records[-1].hex()}"
    return Capture(data=b"".join(records), family="miva", pump_id=PUMP, part=part)


def alone(records, time="relative"):
    return miva.decode(capture(records, time)).records.to_pylist()


def assembled(records):
    each = miva.decode(capture(records))
    assert (each.faults.num_rows, each.faults.schema, each.records.schema) == (0, FAULTS, RECORDS)
    return miva.assemble(PUMP, each.records, each.faults, pa.table({f.name: pa.array([], f.type) for f in ANCHORS}, schema=ANCHORS))


def generated(seed=1):
    """Records of all types: sub-types mostly known ones, data that are numbers of the sizes a pump writes."""
    chance = random.Random(seed)
    known = {
        0x00: [0x0100, 0x0200], 0x04: [1, 2, 4], 0x06: [0x0100, 0x0200, 0x0800], 0x08: [0x10, 0x20, 0x40], 0x09: [1, 2, 4], 0x0A: [1, 2],
        0x0B: [1, 2], 0x0D: [1 << bit for bit in range(10)] + [0, 0x3FF], 0x11: [1, 2], 0x12: [1 << bit for bit in range(16)] + [0xFFFF],
        0x13: [1, 2], 0x16: [p << 12 | n << 8 | v for p in range(3) for n in range(3) for v in (0, 1, 2, 3, 4, 6, 8, 9)], 0x17: [1, 2],
        0x18: range(1, 9), 0x1A: [1 << bit for bit in range(10)] + [0x3FF], 0x1B: [4], 0x1F: [1, 2, 3],
    }  # fmt: skip
    found = []
    for code in range(0x20):
        for _ in range(EACH):
            subs = known.get(code)
            sub = chance.choice(list(subs)) if subs and chance.random() < 0.8 else chance.randrange(1 << 16)
            if code == 0x0D:
                sub &= 0x3FF
            if code == 0x16 and sub not in known[0x16]:
                sub = 0x1001
            whole = code in {0x0B, 0x1B} or (code == 0x16 and sub & 0xFF in {3, 8, 9})
            first = struct.pack(">I", chance.randrange(100_000)) if whole else struct.pack(">f", chance.uniform(0, 500))
            second = struct.pack(">I", chance.randrange(2)) if code == 0x16 and whole else struct.pack(">f", chance.uniform(0, 500))
            if code == 0x16 and sub & 0xFF == 9:
                first = struct.pack(">I", chance.randrange(2))
            stamp = struct.pack("<I", 0xF000_0000 | chance.randrange(1 << 28))
            found.append(bytes([code]) + stamp + struct.pack(">H", sub) + first + second + b"\0")
    return found


# --- record by record ----------------------------------------------------------------------------------------------------------

WORDS = {
    "MAX_PER_HR": "max per hour", "MAX_PER_INTERVAL": "max per interval", "CLEARED": "cleared", "AUTO_BOLUS": "auto bolus",
    "EXTRA_DOSE": "extra dose", "CLINICIAN_DOSE": "clinician dose", "STARTING_DOSE": "starting dose",
    "DOSE_TYPE_UNKNOWN": "unknown", "UPSTREAM_OCCLUSION": "upstream", "DOWNSTREAM_OCCLUSION": "downstream",
    "OCCLUSION_CLEARED": "cleared", "NORMAL_END": "normal", "SKIPPED": "skipped",
    "PRODUCT_LIFE_REACHED_SEEK_REPLACEMENT_PUMP": "product life", "SERVICE_LIFE_REACHED_DUE_FOR_SERVICE": "service life",
    "FLASH_CRC_ERROR": "flash CRC", "CORRUPTED_LIB": "library", "BATTERY_OVERHEATED": "overheated",
    "EXTRA_DOSE_FINISH": "extra dose", "STARTING_DOSE_FINISH": "starting dose", "PRODUCT_LIFE_REACHED_REPLACE_PUMP": "product life",
    "BATTERY_EMPTY_POST_CHECK": "empty at power-on", "BATTERY_DEPLETED_MOTOR_CHECK": "depleted at motor",
    "BATTERY_EMPTY_MOTOR_CHECK": "empty at motor", "INFUSION_DATA_BEGIN": "begin", "INFUSION_DATA_END": "end",
    "BATTERY_MEDIUM": "medium", "BATTERY_LOW": "low", "BATTERY_DEPLETED": "depleted", "BATTERY_RESET": "reset", "BATTERY_AC": "AC",
    "BATTERY_HIGH": "high", "BATTERY_NEW": "new", "BATTERY_EMPTY": "empty", "BATTERY_CRITICAL": "critical",
    "UPSTREAM_PRESSURE_SENSOR_ERROR": "upstream sensor", "SLOW_MOTOR_ERROR": "slow motor",
    "DOWNSTREAM_PRESSURE_SENSOR_ERROR": "downstream sensor", "MOTOR_CONTROLLER_FAILURE": "motor control",
    "VINF_LIMIT_REACHED": "infused volume limit", "MOTOR_RUNNING_WRONG_STATE_ERROR": "motor runs in wrong state",
    "MOTOR_DRIVER_FAILURE": "motor driver", "TIMER_INTERRUPT_FAILURE": "timer interrupt", "POST_FAILURE": "self test",
    "FAST_MOTOR_ERROR": "fast motor", "UPSTREAM_SENSOR_FAILURE": "upstream sensor failure",
    "DOWNSTREAM_SENSOR_FAILURE": "downstream sensor failure", "MOTOR_SENSOR_FAILURE": "motor sensor",
    "PRIMARY_AUDIO_FAILURE": "primary audio", "SUPER_CAPACITOR_FAILURE": "super capacitor",
    "EXTERNAL_WATCHDOG_FAILURE": "external watchdog", "PROTECTION_CPU_FAILURE": "protection CPU",
    "BACKUP_AUDIO_FAILURE": "backup audio", "BACKUP_VDD_LOSS": "backup VDD loss", "PRESSURE_SENSOR_STUCK": "pressure sensor stuck",
    "LCD_FAILURE": "LCD", "BACKUP_BATTERY_FAILURE": "backup battery", "BIST_FAILURE": "built-in self test",
    "MOTOR_ROTATE_FAST": "motor rotates fast", "Daily 1": "Daily 1", "Nightly": "Nightly", "Daily 2": "Daily 2", "Value": "value",
    "Upper Limit": "upper limit", "Lower Limit": "lower limit", "RATE": "rate", "EXTRA_DOSE_VOL": "extra dose volume",
    "EXTRA_DOSE_LCK": "extra dose lockout", "VTBI": "VTBI", "NEAR_END": "near end", "STDOS_LCK": "starting dose lockout",
    "VISIBILITY": "visibility",
}  # fmt: skip
OVER = {"BATTERY_OVER_UPPER_LIMIT": ("over upper limit", "battery over upper limit")}
UNDER = {"BATTERY_UNDER_LOWER_LIMIT": ("under lower limit", "battery under lower limit")}


def words(told, code):
    """What the driver says in our words; nothing where it knows none."""
    if isinstance(told, list) or code in {0x0D, 0x12, 0x1A}:
        listed = told if isinstance(told, list) else [told]
        names = [one.split(" (b'")[0] for one in listed]
        return [
            (OVER | UNDER)[name][code == 0x1A] if name in OVER | UNDER else WORDS[name]
            for name in names
            if not name.startswith("Unknown") and name != "BATTERY_NO_UPDATE"
        ]
    return None if told.startswith("Unknown") else WORDS[told]


def test_every_record_type_is_read_as_the_maker_reads_it(vendor):
    records = generated()
    ours = alone(records)
    for raw, one in zip(records, ours, strict=True):
        theirs = quietly(vendor.parse_event_log, raw.hex().upper(), 0)
        detail = json.loads(one["detail"])
        code = raw[0]
        name = detail["name"].replace("ERROR2", "ERROR") if code == 0x1A else detail["name"]
        assert theirs["event_type"] == name
        assert theirs["time"] == f"0x{one['native_ms'] // 1000:X} ({one['native_ms'] // 1000} sec)"
        for field in ("sub_type", "infusion_data_frame", "battery_status"):
            if field in theirs and code != 0x08:
                assert (detail.get("what") or ([] if code in {0x0D, 0x12, 0x1A} else None)) == words(theirs[field], code), raw.hex()
        for theirs_name, ours_name, digits in (
            ("vinf (mL)", "infused_ml", 2),
            ("battery_voltage (V)", "battery_v", 2),
            ("battery_vinf (mL)", "infused_ml", 1),
            ("life_volume (mL)", "life_ml", 1),
            ("life_time (sec)", "life_s", 0),
            ("line_#", "line", 0),
            ("timer count", "timer", 0),
            ("auth code", "sub", 0),
            ("debug info", "sub", 0),
            ("attempted_no.", "attempt", 0),
        ):
            if theirs_name in theirs:
                assert detail[ours_name] == pytest.approx(theirs[theirs_name], abs=0.51 * 10**-digits if digits else 0), raw.hex()
        if code == 0x16:
            setting = [WORDS[theirs["protocol_name"]], WORDS[theirs["node_type"]], WORDS[theirs["parameter_index"]]]
            assert [detail["protocol"], detail["node"], detail["parameter"]] == setting
            hidden = {"VISIBLE": 0, "INVISIBLE": 1}
            for side in ("old", "new"):
                value = theirs[f"{side}_value"]
                assert detail[side] == pytest.approx(hidden.get(value, value))


def test_a_cancelled_dose_is_what_the_driver_says_where_it_can_say_it(vendor):
    for low, told in ((0x10, "STARTING_DOSE"), (0x20, "EXTRA_DOSE"), (0x40, "DOSE_TYPE_UNKNOWN")):
        raw = bytes([8]) + bytes(4) + bytes([0, low]) + bytes(9)
        assert quietly(vendor.parse_event_log, raw.hex().upper(), 0)["sub_type"] == told
        assert json.loads(alone([raw])[0]["detail"])["what"] == WORDS[told]


def test_absolute_stamps_are_read_as_the_maker_reads_them(vendor):
    chance = random.Random(2)
    moments = [datetime(2000, 1, 1) + timedelta(seconds=chance.randrange(2_000_000_000)) for _ in range(2000)]
    bits = [m.year - 2000 << 26 | m.month << 22 | m.day << 17 | m.hour << 12 | m.minute << 6 | m.second for m in moments]
    records = [b"\x01" + struct.pack(">I", one) + bytes(11) for one in bits]
    for raw, one, moment in zip(records, alone(records, "absolute"), moments, strict=True):
        assert one["pump_time"] == moment
        assert quietly(vendor.parse_event_log, raw.hex().upper(), -1)["time"] == moment.strftime("%Y-%m-%d %H:%M:%S")


# --- programmes ----------------------------------------------------------------------------------------------------------------

_SHARED = {
    "vtbi": "vtbi", "loading_dose": "loading", "kvo_rate": "kvo", "delay_kvo_rate": "delay_kvo", "concentration": "concentration",
    "drug_amount": "drug", "weight": "weight",
}  # fmt: skip
_LIMITS = {"max_per_hour": "max_per_hour", "max_per_interval": "max_per_interval", "dilute_volume": "diluent"}
FIELDS = (
    {**_SHARED, "rate": "rate"},
    {**_SHARED, **_LIMITS, "basal_rate": "rate", "auto_bolus": "auto_bolus", "demand_bolus": "extra", "clinician_dose": "clinician"},
    {**_SHARED, **_LIMITS, "dose_rate": "rate", "dose_vtbi": "vtbi", "intermittent_kvo_rate": "kvo_between"},
)
MINUTES = {"time": "time_s", "total_time": "time_s", "delay_start": "delay_s", "bolus_interval": "auto_interval_s",
           "interval_time": "interval_s", "lockout_time": "lockout_s"}  # fmt: skip
LAYOUTS = ("fffIIffffff", "fffIIfIfIfffffffff", "fffIIIfffffffff")


def long_programme(chance, mode):
    values = [chance.uniform(0, 50) if kind == "f" else chance.randrange(100_000) for kind in LAYOUTS[mode]]
    data = bytearray(struct.pack(">" + LAYOUTS[mode], *values).ljust(80, b"\0")) + struct.pack(">I", chance.randrange(1 << 32)) + bytes(172)
    data[93], data[97], data[98] = mode, chance.randrange(5), chance.randrange(2)
    data[99:109], data[109:119] = b"Protocol 7", b"MORPHINE\0\0"
    return bytes(data)


def test_long_programmes_of_all_modes_are_read_as_the_maker_reads_them(vendor):
    chance = random.Random(3)
    edge = [bytes(5) + bytes([kind]) + bytes(10) for kind in (1, 2)]
    for number in range(240):
        mode = number % 3
        data = long_programme(chance, mode)
        theirs = quietly(vendor.parse_infusion_data_log, data.hex().upper())
        events = assembled([edge[0], *(data[at : at + 16] for at in range(0, 256, 16)), edge[1]]).events.to_pylist()
        ours = json.loads(events[-1]["detail"])["programme"]
        assert ours["mode"] == theirs["infusion_mode"]
        assert ours["rate_unit"].replace("/h", "/hr") == theirs["rate_unit"]
        assert (ours["protocol"], ours["drug_name"]) == (theirs["name"], theirs["drug_name"])
        assert ours["auth_role"] == theirs["auth_role"]
        assert ours["crc"].upper() == theirs["crc"]
        for name, value in theirs["protocol"].items():
            if name in FIELDS[mode]:
                assert ours.get(FIELDS[mode][name]) == (None if value is None else pytest.approx(value, rel=1e-6)), name
            elif name in MINUTES:
                seconds = ours.get(MINUTES[name])
                assert (None if seconds is None else seconds // 60) == value, name


def test_short_programmes_are_read_as_the_maker_reads_them(vendor):
    chance = random.Random(4)
    for name, label in ((2, "Daily 1"), (3, "Nightly"), (4, "Daily 2")) * 50:
        values = [float(np.float32(chance.uniform(0, 50))) for _ in range(4)]
        data = struct.pack(">IffffI8s", name, *values, chance.randrange(10_000), b"")
        theirs = quietly(vendor.parse_infusion_data_log, data.hex().upper())
        events = assembled([bytes(5) + b"\1" + bytes(10), data[:16], data[16:], bytes(5) + b"\2" + bytes(10)]).events.to_pylist()
        ours = json.loads(events[-1]["detail"])["programme"]
        assert ours["protocol"] == theirs["name"] == label
        assert [ours["rate"], ours["loading"], ours["extra"]] == pytest.approx(
            [theirs["cont_dose_rate"], theirs["starting_dose"], theirs["extra_dose"]], rel=1e-6
        )
        assert ours["vtbi"] == pytest.approx(theirs["vtbi"], abs=0.006)
        assert ours["lockout_s"] == theirs["extra_dose_lockout"] == events[-1]["lockout_s"]


def test_a_whole_log_has_the_programmes_where_the_maker_finds_them(vendor):
    for form in ("short", "long"):
        pump, _ = simulated.simulate(therapy("pca", 5, START, 3), 5, form=form)
        events = assembled([raw for _, raw in pump.records]).events.to_pylist()
        theirs = theirs_backwards(vendor, [raw for _, raw in pump.records])
        inner = {"name": "INFUSION_DATA", "what": "programme"}
        ours = [json.loads(one["detail"])["name"] for one in events if json.loads(one["detail"]) != inner]
        assert ours == [one["event_type"] for one in theirs if "event_type" in one]


def theirs_backwards(vendor, records):
    """What `read_multiple_event_log` gives over these records, without a port."""
    pump = object.__new__(vendor.Miva)
    pump.pump_time_offset = 0
    pump.read_pump_time = lambda: None
    pump.read_event_log_indices = lambda: {"tail": f"{0:08X}", "head": f"{len(records) - 1:08X}"}
    pump.read_single_event_log = lambda index: f"RE{index:08X}{records[index].hex().upper()}"
    return quietly(pump.read_multiple_event_log)


# --- over a port ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("check", "symbol"), [("sum", "+"), ("xor", "^")])
def test_the_maker_reads_our_pump_over_a_port(vendor, check, symbol, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vendor, "re_serial_port", r"/.*")
    pump, truth = simulated.simulate(therapy("pca", 5, START, 1), 5, checksum_family=check, form="short", first=43_250)
    with Rig([pump]) as rig:
        client = quietly(vendor.Miva, rig.ports[pump.pump_id])
        client.checksum_symbol = symbol
        try:
            indices = quietly(client.read_event_log_indices)
            last = 43_250 + len(pump.records) - 1
            assert (int(indices["tail"], 16), int(indices["head"], 16)) == (43_250, last % 43_264)
            assert quietly(client.get_pump_sn) == "M1234567"
            for number in (43_250, last):
                told = quietly(client.read_single_event_log, number)
                assert told == f"RE{number % 43_264:08X}{pump.records[number - 43_250][1].hex().upper()}"
            whole = quietly(client.read_multiple_event_log)
        finally:
            client.close()
    codes = [one["event_type"] for one in whole if "event_type" in one]
    starts = sum(step.kind.value == "delivery_start" for step in truth.told)
    assert codes.count("RUN_INFUSION") == starts
    assert sum("extra_dose_lockout" in one for one in whole) == sum(step.kind.value == "settings_change" for step in truth.told)
    assert len(codes) == len(pump.records) - 2 * sum("extra_dose_lockout" in one for one in whole)
