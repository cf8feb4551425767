"""The Paradigm pump and its stick, against the frames and layouts of docs/pump-formats.md §3."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.contract import AlarmClass, At, Kind, Source, Target
from devices.errors import InputError
from simulators import paradigm
from simulators.link import Faults, UnpluggedError, still
from simulators.paradigm import Stick, crc8, stamp
from simulators.therapy import Pen, Script, Truth, therapy

START = datetime(2026, 3, 6, 12, tzinfo=UTC)
T0 = datetime(2026, 1, 5, 15, tzinfo=UTC)
POWER_ON = bytes.fromhex("0100a7015783988002550000005d20010aa2".replace(" ", ""))
MODEL = bytes.fromhex("0100a7015783988000000201008d9d00")
PAGE_0 = bytes.fromhex("0100a70157839880010002020080c10000")
STATUS = bytes.fromhex("030000")

SMALL = {0x01: 9, 0x03: 10, 0x06: 9, 0x07: 7, 0x33: 8, 0x5B: 20, 0x6D: 44, 0x7B: 10}
LARGE = SMALL | {0x01: 13, 0x07: 10, 0x5B: 22, 0x6E: 52}


def stick(script: Script | None = None, **options: object) -> Stick:
    device, _ = paradigm.simulate(script or therapy("insulin_like", 1, START, 3), 1, **{"serial": "578398", **options})  # type: ignore[arg-type]
    return device


def transmit(command: int, parameters: bytes = b"", *, pages: int = 1, serial: str = "578398") -> bytes:
    head = bytes((1, 0, 0xA7, 1)) + bytes.fromhex(serial) + bytes((0x80, len(parameters), 0, 2, pages, 0, command))
    return head + bytes((crc8(head),)) + parameters + bytes((crc8(parameters),))


def radio(device: Stick, polls: int = 20) -> bytes | None:
    """One whole answer of the pump, or None where it is silent; every checksum is checked."""
    data = b""
    for _ in range(polls):
        status = device.feed(STATUS)
        assert len(status) == 64
        assert status[:2] == b"\x01\x55"
        waiting = int.from_bytes(status[6:8], "big")
        if not waiting:
            continue
        assert status[5] & 0x01
        ask = bytes((0x0C, 0)) + waiting.to_bytes(2, "big")
        block = device.feed(ask + bytes((crc8(ask),)))
        assert len(block) == waiting
        assert block[0] == 2
        assert block[7:9] == b"\xa7\x01"
        assert block[12] == crc8(block[:12])
        length = (block[5] & 0x7F) << 8 | block[6]
        assert length in {1, 64, 128}
        assert len(block) == 13 + length + 1
        assert block[-1] == crc8(block[13:-1])
        data += block[13:-1]
        if block[5] & 0x80:
            return data
    return None


def awake(device: Stick) -> Stick:
    device.feed(POWER_ON)
    assert radio(device) is not None
    return device


def asked(device: Stick, command: int, parameters: bytes = b"", *, pages: int = 1) -> bytes | None:
    reply = device.feed(transmit(command, parameters, pages=pages))
    assert reply[:2] == b"\x01\x55"
    return radio(device)


def records(page: bytes, *, large: bool) -> list[bytes]:
    lengths, found, body = LARGE if large else SMALL, [], page[:1022].rstrip(b"\0") + b"\0" * 64
    at = 0
    end = len(page[:1022].rstrip(b"\0"))
    while at < end:
        length = body[at + 1] if body[at] == 0x5C else lengths.get(body[at], 7)
        found.append(body[at : at + length])
        at += length
    return found


def log(device: Stick, *, large: bool) -> list[bytes]:
    moment = device.pump.truth.end
    return [record for page in reversed(device.pump.pages(moment)) for record in records(page, large=large)]


def codes(script: Script, model: int) -> list[int]:
    return [record[0] for record in log(stick(script, model=model), large=model == 723) if record[0] not in {0x07, 0x5B, 0x5C, 0x6D, 0x6E}]


def crc16(data: bytes) -> int:
    crc = 0xFFFF
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021) & 0xFFFF if crc & 0x8000 else crc << 1
    return crc


# --- the stick ---------------------------------------------------------------------------------------------------------


def test_the_real_frames_have_the_checksums_that_the_simulator_computes() -> None:
    assert crc8(MODEL[:14]) == MODEL[14]
    assert crc8(PAGE_0[:14]) == PAGE_0[14]
    assert crc8(POWER_ON[:14]) == POWER_ON[14]
    assert crc8(POWER_ON[15:17]) == POWER_ON[17]
    assert transmit(0x8D) == MODEL
    assert transmit(0x80, b"\0", pages=2) == PAGE_0


def test_the_stick_says_what_it_is() -> None:
    answer = stick().feed(bytes.fromhex("040000"))
    assert len(answer) == 64
    assert answer[:3] == b"\x01\x55\x00"
    assert answer[9:19] == b"ComLink II"
    assert stick(signal=77).feed(bytes.fromhex("060000"))[3] == 77
    assert stick().feed(bytes.fromhex("030000"))[:8] == b"\x01\x55\x00\x00\x02\x00\x00\x00"


def test_the_stick_counts_what_it_carried() -> None:
    device = awake(stick())
    stats = device.feed(bytes.fromhex("050000"))
    assert struct.unpack(">BBBBII", stats[3:15]) == (0, 0, 0, 0, 1, 1)
    assert device.feed(bytes.fromhex("050100"))[:2] == b"\x01\x55"


@pytest.mark.parametrize("model", [522, 723])
def test_the_real_frames_are_answered(model: int) -> None:
    device = stick(model=model)
    device.feed(POWER_ON)
    assert radio(device) == b"\x00"
    device.feed(MODEL)
    answer = radio(device)
    assert answer is not None
    assert answer[:4] == b"\x03" + str(model).encode()
    device.feed(PAGE_0)
    assert radio(device) == device.pump.pages(device.pump.truth.end)[0]


def test_frames_may_come_in_any_pieces() -> None:
    whole, pieces = stick(), stick()
    frames = POWER_ON + STATUS + STATUS + STATUS + MODEL
    answer = b"".join(pieces.feed(frames[i : i + 1]) for i in range(len(frames)))
    assert answer == whole.feed(frames)
    assert len(answer) == 5 * 64


def test_the_tail_of_an_answer_is_what_the_buffer_held_before() -> None:
    device = stick()
    before = device.feed(bytes.fromhex("040000"))
    assert device.feed(STATUS)[9:19] == before[9:19] == b"ComLink II"


def test_a_pump_that_sleeps_or_is_called_by_another_name_is_silent() -> None:
    device = stick()
    assert asked(device, 0x8D) is None
    awake(device)
    device.feed(transmit(0x8D, serial="578399"))
    assert radio(device) is None
    assert asked(device, 0x8D) is not None


def test_the_radio_sleeps_again_after_its_minutes() -> None:
    clock = [START]
    device = awake(stick(now=lambda: clock[0]))
    clock[0] += timedelta(minutes=9)
    assert asked(device, 0x8D) is not None
    clock[0] += timedelta(minutes=2)
    assert asked(device, 0x8D) is None


def test_the_pump_clock_runs_on_the_clock_that_is_given() -> None:
    device = awake(stick(now=still(START + timedelta(hours=2, seconds=5))))
    data = asked(device, 0x70)
    assert data is not None
    assert struct.unpack(">BBBHBB", data[:7]) == (9, 0, 5, 2026, 3, 6)


def test_other_reading_commands_have_answers_of_one_block() -> None:
    device = awake(stick())
    for command in (0x71, 0x72, 0x73, 0x74, 0x76, 0x79, 0x98, 0xC0, 0xC3):
        answer = asked(device, command)
        assert answer is not None
        assert len(answer) == 64
    assert asked(device, 0x71)[:6] == b"578398"  # type: ignore[index]


def test_a_page_past_the_end_is_one_byte() -> None:
    device = awake(stick())
    data = asked(device, 0x9D)
    assert data is not None
    newest_to_oldest = int.from_bytes(data[:4], "big") + 1
    assert newest_to_oldest == len(device.pump.pages(device.pump.truth.end))
    assert asked(device, 0x80, bytes((newest_to_oldest - 1,)), pages=2) == device.pump.pages(device.pump.truth.end)[-1]
    assert len(asked(device, 0x80, bytes((newest_to_oldest,)), pages=2) or b"") == 1


def test_a_command_that_would_change_the_pump_is_not_obeyed_and_is_noted() -> None:
    device = awake(stick())
    assert asked(device, 0x40, bytes(7)) is None
    assert device.forbidden == [0x40]


def test_broken_frames_are_refused() -> None:
    device = stick()
    bad = bytearray(MODEL)
    bad[14] ^= 1
    assert device.feed(bytes(bad))[:2] == b"\x01\x66"
    assert device.feed(b"\x99\x98\x97")[:2] == b"\x01\x66"
    assert device.feed(bytes((0x0C, 0, 0, 78, 0)))[:2] == b"\x01\x66"
    assert device.feed(STATUS)[:2] == b"\x01\x55"


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_stick_fail(data: bytes) -> None:
    stick().feed(data)


def test_scripted_faults_strike_the_answer_they_name() -> None:
    device = stick(faults=Faults(at={0: "silence", 1: "nak", 2: "noise"}))
    plain = stick()
    hello = bytes.fromhex("040000")
    right = plain.feed(hello)
    assert device.feed(hello) == b""
    assert device.feed(hello)[:2] == b"\x01\x66"
    noisy = device.feed(hello)
    assert sum(a != b for a, b in zip(noisy, right, strict=True)) == 1
    assert device.feed(hello) == right


def test_shares_of_faults_are_met_and_repeat_with_the_seed() -> None:
    def answers() -> list[bytes]:
        device = stick(faults=Faults(silence=0.2, naks=0.1))
        return [device.feed(STATUS) for _ in range(300)]

    first = answers()
    assert first == answers()
    assert 30 < sum(answer == b"" for answer in first) < 90
    assert 10 < sum(answer[:2] == b"\x01\x66" for answer in first) < 60


def test_the_cable_is_out_at_the_byte_that_is_named_and_can_be_put_in_again() -> None:
    device = stick(faults=Faults(unplug_at=100))
    device.feed(STATUS)
    with pytest.raises(UnpluggedError) as raised:
        device.feed(STATUS)
    assert len(raised.value.sent) == 36
    assert len(device.feed(STATUS)) == 64


# --- pages -------------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(["sc_continuous", "pca", "insulin_like"]), seed=st.integers(0, 1000), model=st.sampled_from([522, 723]))
def test_pages_have_their_size_and_checksum_and_whole_records(kind: str, seed: int, model: int) -> None:
    device = stick(therapy(kind, seed, START, 12, clock_loss=seed % 2 == 0), model=model)
    pages = device.pump.pages(device.pump.truth.end)
    for page in pages:
        assert len(page) == 1024
        assert crc16(page[:1022]) == int.from_bytes(page[1022:], "big")
    told = Counter(step.kind for step in device.pump.truth.told)
    found = Counter(record[0] for page in pages for record in records(page, large=model == 723))
    assert found[0x01] == told[Kind.BOLUS_DELIVERED]
    assert found[0x03] == told[Kind.PRIMING_DONE]
    assert found[0x21] == told[Kind.RESERVOIR_CHANGE]
    assert found[0x1E] == told[Kind.DELIVERY_STOP]
    assert found[0x1F] == told[Kind.DELIVERY_START]
    assert found[0x17] == found[0x18] == told[Kind.CLOCK_CHANGE]
    assert found[0x33] == found[0x16]
    assert found[0x33] + found[0x7B] == told[Kind.RATE_CHANGE]
    assert found[0x06] + found[0x34] + found[0x19] == told[Kind.ALARM_RAISED]
    assert found[0x07] + found[0x6D] + found[0x6E] == told[Kind.DAILY_TOTAL]
    assert found[0x5B] + found[0x5C] == told[Kind.OTHER]
    assert sum(found.values()) == sum(told.values()) + found[0x17] + found[0x33]
    assert model == 723 or not found[0x7B]


def test_a_stamp_is_the_wall_time_in_five_bytes() -> None:
    assert stamp(datetime(2015, 4, 29, 20, 14, 58)) == bytes((58 | 0x40, 14, 20, 29, 15))
    assert stamp(datetime(2026, 11, 7, 1, 2, 3)) == bytes((3 | 0x80, 2 | 0xC0, 1, 7, 26))


def test_a_full_page_never_changes_and_the_newest_grows() -> None:
    device = stick(therapy("insulin_like", 2, START, 30), model=522)
    script_end = device.pump.truth.end
    moments = [START + (script_end - START) * share / 10 for share in range(1, 11)]
    before: list[bytes] = []
    for moment in moments:
        pages = list(reversed(device.pump.pages(moment)))
        assert pages[: max(0, len(before) - 1)] == before[:-1]
        if before:
            known = before[-1][:1022].rstrip(b"\0")
            assert pages[len(before) - 1].startswith(known)
        before = pages
    assert len(before) > 2


def small_and_large(pen: Pen) -> tuple[list[int], list[int]]:
    script = pen.script()
    return codes(script, 522), codes(script, 723)


def test_a_resume_is_a_1f_and_on_a_larger_model_a_7b_written_before_it() -> None:
    pen = Pen(T0).run(0.01, Source.BASAL).wait(hours=1).stop(Source.BASAL).wait(minutes=5).run(0.01, Source.BASAL).wait(minutes=5)
    small, large = small_and_large(pen)
    assert small == [0x1E, 0x1F]
    assert large == [0x7B, 0x1E, 0x7B, 0x1F]


def test_after_a_rewind_nothing_says_on_a_small_model_that_delivery_resumed() -> None:
    pen = Pen(T0).run(0.01, Source.BASAL).wait(hours=1).set_up().wait(seconds=20).run(0.01, Source.BASAL).wait(hours=1)
    small, large = small_and_large(pen)
    assert small == [0x21, 0x03, 0x03]
    assert large == [0x7B, 0x21, 0x03, 0x7B, 0x03]


def test_a_7b_that_comes_late_is_written_where_it_is_stamped() -> None:
    pen = Pen(T0).run(0.01, Source.BASAL).wait(hours=1).set_up(site=False).wait(minutes=3).run(0.01, Source.BASAL).wait(hours=1)
    assert small_and_large(pen)[1] == [0x7B, 0x21, 0x03, 0x7B]


def test_the_bolus_that_a_suspend_cut_short_is_written_behind_it() -> None:
    pen = Pen(T0).run(0.01, Source.BASAL).wait(hours=1).bolus(0.02, 90, Source.BASAL, programmed_ml=0.05, names=At.START)
    pen.wait(seconds=90).stop(Source.BASAL)
    script = pen.script()
    device = stick(script)
    assert codes(script, 522) == [0x1E, 0x01]
    (bolus,) = [record for record in log(device, large=False) if record[0] == 0x01]
    assert bolus[1:4] == bytes((50, 20, 0))
    assert bolus[4:9] == stamp(datetime(2026, 1, 5, 11, 0, 0))


def test_amounts_are_counted_in_tenths_or_fortieths() -> None:
    pen = Pen(T0).run(0.01, Source.BASAL).wait(hours=1).bolus(0.025, 3600, Source.BASAL, names=At.START).wait(hours=3)
    script = pen.script()
    (small,) = [record for record in log(stick(script), large=False) if record[0] == 0x01]
    (large,) = [record for record in log(stick(script, model=723), large=True) if record[0] == 0x01]
    assert small[1:4] == bytes((25, 25, 2))
    assert struct.unpack(">HHHB", large[1:8]) == (100, 100, 0, 2)


def test_a_square_bolus_is_rewritten_in_place_on_a_larger_model() -> None:
    pen = Pen(T0).run(0.01, Source.BASAL).wait(hours=1).bolus(0.025, 3600, Source.BASAL, names=At.START).wait(hours=3)
    device = stick(pen.script(), model=723)
    amid, after = device.pump.pages(T0 + timedelta(hours=1, minutes=30))[0], device.pump.pages(T0 + timedelta(hours=3))[0]
    places = [i for i in range(1022) if amid[i] != after[i]]
    assert len(places) == 1
    assert (amid[places[0]], after[places[0]]) == (0, 100)


def test_a_fill_of_the_tubing_has_no_programmed_amount_and_that_of_the_cannula_has() -> None:
    pen = Pen(T0).prime(Target.TUBING, 0.09).wait(minutes=1).prime(Target.CANNULA, 0.003, programmed_ml=0.005).wait(minutes=1)
    tubing, cannula = log(stick(pen.script()), large=False)
    assert (tubing[2], tubing[4]) == (0, 90)
    assert (cannula[2], cannula[4]) == (5, 3)
    assert [step.reason for step in stick(pen.script()).pump.truth.told] == ["unknown", "aborted"]


@pytest.mark.parametrize(("model", "reset"), [(522, datetime(2005, 1, 1)), (723, datetime(2007, 1, 1)), (754, datetime(2008, 1, 1))])
def test_a_lost_clock_is_an_alarm_at_the_reset_date_and_then_a_pair_of_changes(model: int, reset: datetime) -> None:
    pen = Pen(T0).run(0.01, Source.BASAL).wait(hours=1).battery_out(30).wait(minutes=3).set_clock().wait(minutes=1)
    device = stick(pen.script(), model=model)
    found = [record for record in log(device, large=model != 522) if record[0] != 0x7B]
    assert [record[0] for record in found] == [0x06, 0x0C, 0x17, 0x18]
    assert found[0][1] == 17
    assert found[0][4:9] == found[1][2:7] == stamp(reset)
    assert found[2][2:7] == stamp(reset + timedelta(minutes=3))
    assert found[3][2:7] == stamp(datetime(2026, 1, 5, 11, 33))


def test_daily_totals_are_what_flowed() -> None:
    pen = Pen(T0).run(0.01, Source.BASAL).wait(hours=4).bolus(0.05, 200, Source.BASAL, names=At.START).wait(hours=44)
    script = pen.script()
    totals = [record for record in log(stick(script), large=False) if record[0] in {0x07, 0x6D}]
    assert [record[0] for record in totals] == [0x07, 0x6D] * 2
    assert int.from_bytes(totals[0][3:5], "big") == (14 + 5) * 40
    assert totals[0][5:7] == totals[1][1:3] == bytes((5, 26 | 0x80))
    assert struct.unpack(">HHxH", totals[1][11:18]) == ((14 + 5) * 40, 14 * 40, 5 * 40)
    assert int.from_bytes(totals[2][3:5], "big") == 24 * 40


# --- truth -------------------------------------------------------------------------------------------------------------


def within(truth: Truth) -> bool:
    return all(any(low <= start and stop <= high for low, high in truth.flowed) for start, stop in truth.proved)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["sc_continuous", "pca", "insulin_like"]),
    seed=st.integers(0, 10_000),
    model=st.sampled_from([522, 723]),
    loss=st.booleans(),
)
def test_the_log_proves_nothing_that_did_not_flow(kind: str, seed: int, model: int, loss: bool) -> None:
    truth = paradigm.simulate(therapy(kind, seed, START, 4, clock_loss=loss), seed, model=model)[1]
    assert within(truth)
    assert truth.flowed_s > 0


def test_a_small_model_proves_less_after_a_rewind_than_a_larger_one() -> None:
    pen = (
        Pen(T0).run(0.01, Source.BASAL).wait(hours=1).bolus(0.01, 40, Source.BASAL, names=At.START).wait(hours=1).set_up().wait(seconds=20)
    )
    pen.run(0.01, Source.BASAL).wait(hours=2).bolus(0.01, 40, Source.BASAL, names=At.START).wait(hours=1).stop(Source.BASAL)
    small, large = (paradigm.simulate(pen.script(), model=model)[1] for model in (522, 723))
    assert small.flowed == large.flowed
    assert small.proved_s == 2 * 3600
    assert large.proved_s == large.flowed_s == 5 * 3600


def test_deliveries_between_resume_and_suspend_are_proved_to_the_second_on_both_models() -> None:
    script = therapy("sc_continuous", 5, START, 3, minutes=(16, 91, 31))
    for model in (522, 723):
        truth = paradigm.simulate(script, model=model)[1]
        assert truth.proved == truth.flowed
        assert sorted((stop - start).total_seconds() / 60 for start, stop in truth.proved) == [16, 31, 91]


@pytest.mark.parametrize(
    "make",
    [
        lambda: paradigm.simulate(therapy("demand_only", 1, START, 2)),
        lambda: paradigm.simulate(therapy("pca", 1, START, 2), serial="12345"),
    ],
)
def test_what_a_paradigm_cannot_be_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InputError):
        make()


def test_an_alarm_that_stops_is_followed_by_its_end_and_a_7b() -> None:
    pen = Pen(T0).run(0.01, Source.BASAL).wait(hours=1).alarm(AlarmClass.OCCLUSION, stops=True).wait(minutes=5).clear(AlarmClass.OCCLUSION)
    pen.wait(minutes=1).run(0.01, Source.BASAL).wait(hours=1)
    assert small_and_large(pen) == ([0x06, 0x0C], [0x7B, 0x06, 0x0C, 0x7B])
    (alarm,) = [record for record in log(stick(pen.script()), large=False) if record[0] == 0x06]
    assert alarm[1] == 4
