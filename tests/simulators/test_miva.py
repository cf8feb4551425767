"""The MIVA pump behind its serial line: its frames (docs/pump-formats.md §4), and what its bytes, read by the adapter, give and bill."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from devices import miva as adapter
from devices.contract import AlarmClass, joined
from devices.dialogue import Reply, run
from devices.errors import InputError, PumpError
from ingest import docks
from ingest.docks import SerialLink, find_family
from ingest.store import Store
from simulators import family, miva
from simulators.link import Faults, SerialDevice, still
from simulators.rig import Rig
from simulators.therapy import Pen, therapy
from tests.kit import billed, orders
from transforms.orders import COLUMNS
from transforms.sessions import FactPolicy

START = datetime(2026, 3, 2, 5, tzinfo=UTC)
KINDS = ("pca", "demand_only", "sc_continuous", "insulin_like")
OPTIONS = (
    {},
    {"checksum_family": "xor", "clock": "absolute", "form": "short", "first": 43_200},
    {"form": "short", "chatter": False, "first": 43_264 * 3 - 7},
)


def pump(kind="pca", seed=1, days=2, **options):
    return miva.simulate(therapy(kind, seed, START, days), seed, **options)


def framed(command, check="sum"):
    return b"\x02" + command + miva.checksum(command, check) + b"\x03"


def downloaded(device, moment):
    """All captures of a pump, read from this moment on."""
    now = [moment]
    device._now = lambda: now[0]

    def exchange(ask):
        sent, now[0] = now[0], now[0] + timedelta(milliseconds=50)
        return Reply(data=device.feed(ask.data), sent=sent, received=now[0])

    kept = []
    assert run(adapter.download(device.pump_id, []), exchange, kept.append).complete
    return kept


def log_of(captures):
    return adapter.assemble(captures[0].pump_id, *joined(adapter.decode(one) for one in captures))


def facts(log):
    known = orders(pump_id="miva:M1234567", tz="America/New_York", start="2020-01-01T00:00:00Z")
    return billed([log], known, FactPolicy())


def close(value):
    return value if value is None else pytest.approx(value)


def test_the_pump_is_a_serial_device_of_its_family():
    device, truth = family("miva").simulate(therapy("pca", 1, START, 1))
    assert isinstance(device, SerialDevice)
    assert device.pump_id == truth.pump_id == "miva:M1234567"


@pytest.mark.parametrize(("check", "ends"), [("sum", ("9B", "95", "A0")), ("xor", ("1B", "11", "1C"))])
def test_commands_of_real_builds_are_answered_in_frames_with_their_checksum(check, ends):
    device, _ = pump(checksum_family=check)
    assert miva.checksum(b"RE00000000", check) == b"17"
    for command, end in zip((b"RI", b"RC", b"RN"), ends, strict=True):
        answer = device.feed(b"\x02" + command + end.encode() + b"\x03")
        assert answer[:3] == b"\x02" + command
        assert answer[-1:] == b"\x03"
        assert answer[-3:-1] == miva.checksum(answer[1:-3], check)
    assert len(device.feed(framed(b"RE00000000", check))) == 46
    assert device.feed(framed(b"RN", check))[3:11] == b"M1234567"


def test_a_wrong_checksum_is_met_with_silence_and_so_is_what_the_pump_must_not_be_asked():
    device, _ = pump()
    assert device.feed(framed(b"RI", "xor")) == b""
    assert device.feed(framed(b"WC01011A0C0000")) == b""
    assert device.feed(b"\x04\x00\x00") == b""
    assert device.feed(framed(b"RI"))[1:3] == b"RI"


def test_a_frame_may_come_in_pieces_and_its_answer_comes_in_one():
    device, _ = pump()
    whole = framed(b"RI")
    answers = [device.feed(whole[at : at + 1]) for at in range(len(whole))]
    assert answers[:-1] == [b""] * (len(whole) - 1)
    assert len(answers[-1]) == 22


def test_the_ring_keeps_its_newest_records_and_its_indices_wrap():
    records = [(START, number.to_bytes(16, "big")) for number in range(miva.RING + 5)]
    device = miva.Pump("miva:M1234567", records, lambda _: b"F0000001", now=still(START))
    answer = device.feed(framed(b"RI"))
    assert (int(answer[3:11], 16), int(answer[11:19], 16)) == (5, 4)
    for index, number in ((4, miva.RING + 4), (5, 5), (miva.RING - 1, miva.RING - 1)):
        assert bytes.fromhex(device.feed(framed(b"RE%08X" % index))[11:43].decode()) == number.to_bytes(16, "big")


def test_an_unwritten_place_of_the_ring_is_empty():
    device, _ = pump(first=100)
    assert device.feed(framed(b"RE00000005"))[11:43] == b"F" * 32


def test_only_what_is_recorded_by_now_is_there_and_the_counter_runs_on():
    moments = [START + timedelta(hours=20)]
    device, _ = pump(now=lambda: moments[0])
    before = device.feed(framed(b"RI")), device.feed(framed(b"RC"))
    moments[0] += timedelta(hours=10)
    after = device.feed(framed(b"RI")), device.feed(framed(b"RC"))
    assert int(after[0][11:19], 16) > int(before[0][11:19], 16)
    assert int(after[1][4:11], 16) - int(before[1][4:11], 16) == 36_000
    assert before[1][3:4] == b"F"


def test_a_clock_that_is_set_tells_day_month_year_and_time():
    device, _ = pump(clock="absolute", now=still(datetime(2026, 3, 2, 17, 4, 5, tzinfo=UTC)))
    assert device.feed(framed(b"RC"))[3:15] == b"02031A0C0405"


def test_a_serial_number_that_is_none_is_refused():
    for serial in ("M123", "m1234567", "M12345678", "M12 4567"):
        with pytest.raises(InputError):
            pump(serial=serial)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seed", [2, 3])
def test_the_log_tells_every_step_of_the_truth_in_its_order(kind, options, seed):
    device, truth = pump(kind, seed, 3, **options)
    events = log_of(downloaded(device, truth.end)).events.to_pylist()
    fields = ("kind", "source", "reason", "alarm_class", "at", "rate_ml_h", "duration_s", "lockout_s")
    read = [tuple(event[name] for name in fields) for event in events]
    want = [
        (
            step.kind.value,
            step.source and step.source.value,
            step.reason,
            step.alarm_class and step.alarm_class.value,
            step.names.value if step.kind.value == "bolus_delivered" else None,
            *(close(getattr(step, name)) for name in fields[5:]),
        )
        for step in truth.told
    ]
    assert read == want


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_what_is_billed_is_what_the_log_proves_to_the_second(kind, options):
    device, truth = pump(kind, 4, 3, **options)
    given = facts(log_of(downloaded(device, truth.end)))
    infused = sum((one["to_ms"] - one["from_ms"]) / 1000 for one in given.rows("intervals") if one["class"] == "infusing")
    assert infused == pytest.approx(truth.proved_s, abs=1)
    assert truth.proved_s <= truth.flowed_s
    set_ups = [(one["pump_setup"], one["new_site"]) for one in given.rows("setups")]
    assert set_ups == [(one.pump_setup, one.new_site) for one in truth.set_ups]


def test_what_flowed_is_known_in_utc_from_the_counter_alone():
    device, truth = pump("sc_continuous", 5, 2)
    given = facts(log_of(downloaded(device, truth.end)))
    read = [(one["from_utc"], one["to_utc"]) for one in given.rows("intervals") if one["class"] == "infusing"]
    assert len(read) == len(truth.proved)
    for (start, stop), (low, high) in zip(sorted(read), truth.proved, strict=True):
        assert abs((start - low).total_seconds()) <= 1
        assert abs((stop - high).total_seconds()) <= 1


def test_without_power_nothing_runs_and_the_counter_goes_on():
    script = therapy("pca", 6, START, 2)
    device, truth = miva.simulate(script, 6, faults=Faults(battery_out=START + timedelta(hours=20)))
    kinds = log_of(downloaded(device, truth.end)).events.column("kind").to_pylist()
    assert {"power_off", "power_on"} <= set(kinds)
    given = facts(log_of(downloaded(device, truth.end)))
    infused = sum((one["to_ms"] - one["from_ms"]) / 1000 for one in given.rows("intervals") if one["class"] == "infusing")
    assert infused == pytest.approx(truth.proved_s, abs=1)


def test_a_dose_that_a_stop_interrupts_is_cancelled_and_none_that_flowed_is_invented():
    pen = Pen(START)
    pen.run(0.0).wait(minutes=5).bolus(0.2, 60).wait(seconds=30).alarm(AlarmClass.OCCLUSION, stops=True).wait(minutes=9).run(0.0)
    pen.wait(minutes=2).stop()
    device, truth = miva.simulate(pen.script(), 1)
    codes = log_of(downloaded(device, truth.end)).events.column("native_code").to_pylist()
    assert [code for code in codes if code in {"06", "08", "09", "17"}] == ["06", "09", "08"]
    assert truth.proved_s == 0
    assert truth.flowed_s == 30


def test_a_host_finds_and_reads_the_pump_behind_a_serial_port():
    device, _ = pump("pca", 7, 1, checksum_family="xor")
    with Rig([device]) as rig, SerialLink(rig.ports[device.pump_id]) as link:
        assert find_family(link).SHEET.family == "miva"
        kept = []
        summary = run(adapter.download(device.pump_id, []), link.exchange, kept.append)
    assert summary.complete
    assert b"".join(one.data for one in kept) == b"".join(record for _, record in device.records)


def stored(lake, pump_id):
    with Store(lake / "store.sqlite") as store:
        return b"".join(one.data for one, _ in store.pending(pump_id))


@pytest.mark.parametrize("check", ["sum", "xor"])
def test_a_pump_that_nobody_named_is_read_under_the_serial_number_that_it_tells(tmp_path, check):
    device, _ = pump("pca", 7, 1, checksum_family=check)
    with Rig([device]) as rig:
        port = rig.ports[device.pump_id]
        first = docks.sync(tmp_path, port)
        again = docks.sync(tmp_path, port, family="miva")
        named = docks.sync(tmp_path, f"{port}=miva:M1234567")
    assert (first["family"], first["pump"], first["complete"]) == ("miva", "miva:…67", True)
    assert (again["new_captures"], named["new_captures"]) == (0, 0)
    assert stored(tmp_path, "miva:M1234567") == b"".join(record for _, record in device.records)


def test_what_a_pump_says_it_is_stands_above_what_orders_name(tmp_path):
    (tmp_path / "pumpledger.toml").write_text('orders = "orders.csv"\n')
    said = {"pump_id": "miva:M9999999", "patient_id": "p", "order_id": "o", "route": "SC", "rule_set": "cpt-9637x", "tz": "UTC"}
    said["start"] = "2026-01-01T00:00:00Z"
    (tmp_path / "orders.csv").write_text(",".join(COLUMNS) + "\n" + ",".join(said.get(name, "") for name in COLUMNS) + "\n")
    device, _ = pump("pca", 7, 1)
    with Rig([device]) as rig:
        assert docks.sync(tmp_path, rig.ports[device.pump_id])["pump"] == "miva:…67"


def test_a_pump_that_is_not_the_one_that_was_named_is_refused_and_nothing_of_it_is_kept(tmp_path):
    device, _ = pump("pca", 7, 1)
    (tmp_path / "pumpledger.toml").write_text("")
    with Rig([device]) as rig:
        port = rig.ports[device.pump_id]
        with pytest.raises(PumpError) as raised:
            docks.sync(tmp_path, f"{port}=miva:M7654321")
        (tmp_path / "pumpledger.toml").write_text(f'[[dock]]\nport = "{port}"\npump = "miva:M7654321"\n')
        (told,) = docks.sync_all(tmp_path, [port])
    error = raised.value
    assert (error.code, told["error"]) == ("other_pump", "other_pump")
    assert error.what == "This is the pump miva:…67, not miva:…21."
    assert error.why == "The pump itself tells its serial number."
    assert error.do.startswith("Dock the right pump, or leave the name out")
    assert stored(tmp_path, "miva:M7654321") == stored(tmp_path, "miva:M1234567") == b""


def test_a_pump_that_tells_no_serial_number_is_not_given_one(tmp_path):
    device, _ = pump("pca", 7, 1)
    with Rig([device]) as rig:
        port = rig.ports[device.pump_id]
        device.pump_id = "miva:" + " " * 8
        with pytest.raises(PumpError) as raised:
            docks.sync(tmp_path, port)
    assert (raised.value.code, stored(tmp_path, "miva:M1234567")) == ("no_serial", b"")
