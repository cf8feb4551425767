"""The simulated insulin delivery pump: what its notifications, read by the adapter that shares no code with it, give and bill."""

from __future__ import annotations

import json
import random
import re
import struct
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import ids as adapter
from devices.contract import HOLES, AlarmClass, Capture, Kind, Source, Target, joined
from devices.dialogue import Reply, run
from devices.errors import InputError, LinkError
from ingest import docks
from ingest.store import Store
from simulators import family, ids
from simulators.link import Faults, SerialDevice, UnpluggedError, still
from simulators.rig import Rig
from simulators.therapy import Pen, therapy
from tests.kit import billed, head, infused_s, orders
from transforms.sessions import FactPolicy

START = datetime(2026, 3, 2, 5, tzinfo=UTC)
KINDS = ("insulin_like", "sc_continuous", "pca", "demand_only")


def read(captures):
    return joined(adapter.decode(one) for one in captures)


def log_of(captures):
    return adapter.assemble(captures[0].pump_id, *read(captures))


def facts(captures):
    known = orders(pump_id=captures[0].pump_id, tz="America/New_York", start="2020-01-01T00:00:00Z")
    return billed([log_of(captures)], known, FactPolicy())


def download(pump, model, at, known=(), kept=None):
    """The captures of a whole download at true UTC `at`."""
    kept = [] if kept is None else kept
    heads = [head(one) for one in known]
    summary = run(
        adapter.download(pump.pump_id, heads, model=model), lambda ask: Reply(data=pump.feed(ask.data), sent=at, received=at), kept.append
    )
    return summary, kept


def file_of(pump, model):
    return adapter.read_files([("history.txt", pump.file())], pump_id=pump.pump_id, model=model)


@pytest.mark.parametrize("model", ids.MODELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_the_log_tells_every_step_of_the_truth_in_its_order_with_its_amounts(kind, seed, model):
    pump, truth = ids.simulate(therapy(kind, seed, START, days=3), seed, model=model)
    captures = file_of(pump, model)
    assert adapter.recognise("history.txt", captures[0].data)
    assert read(captures)[1].num_rows == 0
    rows = log_of(captures).events.to_pylist()
    assert [row["kind"] for row in rows] == [step.kind.value for step in truth.told]
    for row, step in zip(rows, truth.told, strict=True):
        assert row["source"] == step.source
        assert row["target"] == step.target
        assert row["alarm_class"] == step.alarm_class
        for amount in ("rate_ml_h", "volume_ml", "programmed_ml"):
            if step.kind not in (Kind.DELIVERY_START, Kind.DAILY_TOTAL):
                assert row[amount] == pytest.approx(getattr(step, amount), abs=1e-9), (row["seq"], amount)
        if step.kind is Kind.DELIVERY_START and row["rate_ml_h"] is not None:
            assert row["rate_ml_h"] == pytest.approx(step.rate_ml_h, abs=1e-9)
        if step.kind is Kind.BOLUS_DELIVERED:
            assert row["duration_s"] == step.duration_s
        if step.reason is not None:
            assert row["reason"] == step.reason


@pytest.mark.parametrize("model", ids.MODELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_what_a_download_proves_is_what_the_truth_says_to_the_second(kind, seed, model):
    pump, truth = ids.simulate(therapy(kind, seed, START, days=4), seed, model=model, loses=0.05, chatter=True)
    summary, captures = download(pump, model, truth.end)
    assert (summary.complete, summary.clock_offset_s) == (True, -5 * 3600 if truth.end.month < 3 or truth.end.day < 8 else -4 * 3600)
    given = facts(captures)
    runs = sorted((one["from_utc"], one["to_utc"]) for one in given.rows("intervals") if one["class"] == "infusing")
    assert merged(runs) == truth.proved
    assert truth.proved_s <= truth.flowed_s
    found = sorted((one["time"], one["pump_setup"], one["new_site"]) for one in given.rows("setups"))
    assert found == sorted((one.at, one.pump_setup, one.new_site) for one in truth.set_ups)
    assert pump.forbidden == []


def merged(runs):
    found = []
    for start, stop in runs:
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return tuple(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["sfloat", "780g"])
def test_what_ran_when_the_clock_was_lost_is_counted_on_both_sides_and_not_across(kind, model):
    for seed in range(3):
        pump, truth = ids.simulate(therapy(kind, seed, START, days=3, clock_loss=True), seed, model=model)
        given = facts(file_of(pump, model))
        assert infused_s(given) == pytest.approx(truth.proved_s, abs=0.01)
        assert truth.proved_s <= truth.flowed_s


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), drift=st.sampled_from([-25.0, 25.0]), kind=st.sampled_from(KINDS))
def test_a_clock_that_drifts_moves_what_is_counted_by_its_drift_at_most(seed, drift, kind):
    script = therapy(kind, seed, START, days=3)
    pump, truth = ids.simulate(script, seed, faults=Faults(drift_s_per_day=drift))
    _, captures = download(pump, "sfloat", truth.end)
    runs = len(truth.proved)
    assert infused_s(facts(captures)) == pytest.approx(truth.proved_s, abs=3 * 25 + 2 * runs)


def test_records_that_never_come_hide_time_and_never_add_any():
    for seed in range(6):
        pump, truth = ids.simulate(therapy("insulin_like", seed, START, days=3), seed)
        (whole,) = file_of(pump, "sfloat")
        lines = whole.data.splitlines(keepends=True)
        chance = random.Random(seed)
        kept = [line for line in lines if chance.random() > 0.05]
        part = Capture(data=b"".join(kept), family="ids", pump_id=pump.pump_id)
        holes = [row for row in log_of([part]).events.to_pylist() if row["kind"] in HOLES]
        assert holes
        assert infused_s(facts([part])) <= truth.proved_s
        assert facts([part, whole]).bytes() == facts([whole]).bytes()


def test_a_download_goes_on_where_the_one_before_stopped():
    script = therapy("insulin_like", 2, START, days=4)
    half, _ = ids.simulate(script, 2, now=still(START + timedelta(days=2)))
    _, first = download(half, "sfloat", START + timedelta(days=2))
    whole, truth = ids.simulate(script, 2)
    summary, second = download(whole, "sfloat", truth.end, known=first)
    assert summary.complete
    newest = max(adapter.decode(one).records["seq"].to_pylist()[-1] for one in first)
    assert min(adapter.decode(one).records["seq"].to_pylist()[0] for one in second) == newest + 1
    log = log_of([*second, *first])
    assert log.events.equals(log_of(file_of(whole, "sfloat")).events)
    third, captures = download(whole, "sfloat", truth.end, known=[*first, *second])
    assert (third.complete, [len(one.data.splitlines()) for one in captures]) == (True, [1])


@pytest.mark.parametrize("model", ["sfloat", "780g+crc"])
def test_silence_noise_refusals_and_repetition_cost_requests_and_no_record(model):
    script = therapy("insulin_like", 4, START, days=3)
    clean, _ = ids.simulate(script, 4, model=model)
    wanted = log_of(file_of(clean, model)).events
    for seed in range(4):
        faults = Faults(silence=0.08, naks=0.08, duplicates=0.3, noise=0.05 if model.endswith("crc") else 0.0)
        pump, truth = ids.simulate(script, 4, model=model, faults=faults, loses=0.1, chatter=True, noise_seed=seed)
        kept = []
        for _ in range(20):
            try:
                summary, _ = download(pump, model, truth.end, known=list(kept), kept=kept)
            except LinkError:
                continue
            if summary.complete:
                break
        log = log_of(kept)
        assert log.events.equals(wanted)
        assert pump.forbidden == []


def test_a_pulled_cable_leaves_what_came_and_the_next_download_brings_the_rest():
    script = therapy("sc_continuous", 3, START, days=4)
    pump, truth = ids.simulate(script, 3, faults=Faults(unplug_at=2500))
    kept = []
    with pytest.raises(UnpluggedError):
        download(pump, "sfloat", truth.end, kept=kept)
    before = len(kept)
    assert before > 0
    summary, _ = download(pump, "sfloat", truth.end, known=list(kept), kept=kept)
    assert summary.complete
    assert log_of(kept).events.equals(log_of(file_of(pump, "sfloat")).events)


def test_a_pump_that_has_forgotten_its_oldest_records_gives_those_that_it_has():
    pump, truth = ids.simulate(therapy("insulin_like", 1, START, days=3), keeps=70)
    summary, captures = download(pump, "sfloat", truth.end)
    assert summary.complete
    seqs = sorted({seq for one in captures for seq in adapter.decode(one).records["seq"].to_pylist()})
    assert len(seqs) == 70
    assert seqs == list(range(seqs[0], seqs[0] + 70))
    assert infused_s(facts(captures)) <= truth.proved_s


def test_a_pump_without_a_clock_to_read_gives_a_log_without_utc():
    pump, truth = ids.simulate(therapy("insulin_like", 1, START, days=2), tells_clock=False)
    summary, captures = download(pump, "sfloat", truth.end)
    assert summary.clock_offset_s is None
    assert all(one.anchor is None for one in captures)
    assert infused_s(facts(captures)) == pytest.approx(truth.proved_s, abs=0.01)


def test_a_limit_is_told_and_its_end_is_not_so_what_follows_is_not_claimed():
    pen = Pen(START)
    pen.until(8).set_up().wait(minutes=1).run(0.05).wait(minutes=60).step(Kind.LIMIT_REACHED).wait(minutes=20).step(Kind.LIMIT_CLEARED)
    pen.wait(minutes=60).stop().wait(minutes=5)
    pump, truth = ids.simulate(pen.script())
    assert (truth.flowed_s, truth.proved_s) == (7200.0, 3600.0)
    assert infused_s(facts(file_of(pump, "sfloat"))) == 3600.0


def test_power_alarms_and_set_ups_are_told_in_the_words_of_the_service():
    pen = Pen(START)
    pen.until(8).set_up().wait(minutes=1).run(0.01, Source.BASAL).wait(minutes=30)
    pen.alarm(AlarmClass.OCCLUSION, stops=True).wait(minutes=3).clear(AlarmClass.OCCLUSION).run(0.01, Source.BASAL).wait(minutes=30)
    pen.step(Kind.POWER_OFF).wait(minutes=10).step(Kind.POWER_ON).wait(minutes=1).run(0.01, Source.BASAL).wait(minutes=30)
    pen.prime(Target.CANNULA, 0.002, programmed_ml=0.005).wait(minutes=1).stop().wait(minutes=1)
    pump, truth = ids.simulate(pen.script())
    rows = log_of(file_of(pump, "sfloat")).events.to_pylist()
    kinds = [row["kind"] for row in rows]
    assert kinds.count("power_off") == kinds.count("power_on") == kinds.count("reservoir_change") == 1
    assert [row["reason"] for row in rows if row["kind"] == "delivery_stop"] == ["unknown", "standby", "unknown"]
    assert [row["reason"] for row in rows if row["kind"] == "priming_done"] == ["amount_reached", "amount_reached", "aborted"]
    assert infused_s(facts(file_of(pump, "sfloat"))) == truth.proved_s == 5400.0


def test_racp_is_answered_as_the_facts_have_it():
    pump, _ = ids.simulate(therapy("insulin_like", 1, START, days=1), first_seq=100)
    count = sum(1 for _ in pump.file().splitlines())
    assert isinstance(pump, SerialDevice)
    assert pump.answer(bytes.fromhex("5a330f")) == [("<", b"\x66\x0f" + struct.pack("<I", count))]
    (first, done) = pump.answer(bytes.fromhex("33660f"))
    assert (first[0], first[1][2:6], done) == ("H", struct.pack("<I", 100), ("<", bytes.fromhex("0f0f33f0")))
    (last, _) = pump.answer(bytes.fromhex("33690f"))
    assert last[1][2:6] == struct.pack("<I", 100 + count - 1)
    some = pump.answer(bytes.fromhex("335a0f") + struct.pack("<II", 101, 105))
    assert [struct.unpack("<I", value[2:6])[0] for letter, value in some if letter == "H"] == [101, 102, 103, 104, 105]
    assert len(pump.answer(bytes.fromhex("333c0f") + struct.pack("<I", 102))) == 4
    assert len(pump.answer(bytes.fromhex("33550f") + struct.pack("<I", 100 + count - 2))) == 3
    assert len(pump.answer(bytes.fromhex("33330f"))) == count + 1
    assert pump.answer(bytes.fromhex("335a0f") + struct.pack("<II", 5, 9)) == [("<", bytes.fromhex("0f0f3306"))]
    assert pump.answer(bytes.fromhex("550f")) == [("<", bytes.fromhex("0f0f55f0"))]
    assert pump.answer(bytes.fromhex("3399")) == [("<", bytes.fromhex("0f0f3305"))]
    assert pump.answer(bytes.fromhex("33770f")) == [("<", bytes.fromhex("0f0f3303"))]
    assert pump.forbidden == []
    assert pump.answer(bytes.fromhex("3c330f")) == [("<", bytes.fromhex("0f0f3c02"))]
    assert pump.forbidden == [bytes.fromhex("3c330f")]


def test_a_pump_takes_requests_in_any_pieces():
    whole, _ = ids.simulate(therapy("insulin_like", 1, START, days=1))
    pieces, _ = ids.simulate(therapy("insulin_like", 1, START, days=1))
    asked = b"> 5a330f\n> 33690f\n? 2a2b\nnothing\n"
    assert whole.feed(asked) == b"".join(pieces.feed(asked[at : at + 1]) for at in range(len(asked)))


def test_over_a_pseudo_terminal_the_captures_come_into_the_store_and_a_second_time_nothing_but_the_clock(tmp_path):
    pump, truth = ids.simulate(therapy("insulin_like", 1, START, days=2), chatter=True)
    with Rig([pump]) as rig:
        port = f"{rig.ports[pump.pump_id]}"
        with docks.SerialLink(port) as link:
            assert docks.find_family(link) is adapter
        first = docks.sync(tmp_path, port, pump=pump.pump_id)
        again = docks.sync(tmp_path, port, pump=pump.pump_id)
    assert (first["family"], first["complete"], again["complete"]) == ("ids", True, True)
    assert first["new_captures"] > 2
    with Store(tmp_path / "store.sqlite") as store:
        parts = [head.part for head in store.heads(pump.pump_id)]
    assert len(parts) == first["new_captures"] + again["new_captures"]
    assert truth.pump_id == pump.pump_id


@pytest.mark.parametrize("model", ["sfloat", "sfloat+crc", "780g", "780g+crc"])
def test_a_first_sync_finds_the_profile_or_says_what_to_write_where_and_then_reads_all_of_it(tmp_path, model):
    pump, _ = ids.simulate(therapy("insulin_like", 1, START, days=1), model=model)
    with Rig([pump]) as rig:
        port = f"{rig.ports[pump.pump_id]}"
        if model.startswith("780g"):
            with pytest.raises(InputError) as raised:
                docks.sync(tmp_path, port, pump=pump.pump_id)
            assert raised.value.code == "which_model"
            (line,) = re.findall(r"`(model = .*?)` in the (\[\[dock\]\]) of its port in pumpledger.toml", raised.value.do)
            (tmp_path / "pumpledger.toml").write_text(f'{line[1]}\nport = "{port}"\n{line[0]}\n')
        done = docks.sync(tmp_path, port, pump=pump.pump_id)
    assert done["complete"]
    assert done["model"] == ("780g" if model.startswith("780g") else "standard") + ("+crc" if model.endswith("+crc") else "")
    with Store(tmp_path / "store.sqlite") as store:
        kept = [one for one, _ in store.pending(pump.pump_id)]
    assert log_of(kept).events.equals(log_of(file_of(pump, model)).events)


def test_equal_seeds_give_equal_bytes_and_there_are_no_other_models():
    script = therapy("pca", 9, START, 2)
    assert ids.simulate(script, 5, model="780g")[0].file() == ids.simulate(script, 5, model="780g")[0].file()
    assert family("ids") is ids
    with pytest.raises(InputError, match="no model 'x'"):
        ids.simulate(script, model="x")


def test_the_fields_of_a_780g_s_boluses_are_as_its_captures_have_them():
    pump, _ = ids.simulate(therapy("insulin_like", 1, START, days=2), model="780g")
    rows = [row for row in log_of(file_of(pump, "780g")).events.to_pylist() if row["kind"] == "bolus_delivered"]
    fast = [json.loads(row["detail"]) for row in rows if json.loads(row["detail"])["type"] == "fast"]
    assert fast
    assert {(one["minutes"], one["end"]) for one in fast if one["end"] != "cancelled"} == {(0, "undetermined")}
