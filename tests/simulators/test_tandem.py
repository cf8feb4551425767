"""The simulated t:slim X2: what its bytes, read by the adapter that shares no code with it, give, and what that bills."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from devices import tandem as adapter
from devices.contract import AlarmClass, Kind, Source, Target, joined
from devices.errors import InputError
from simulators import family, tandem
from simulators.link import Faults, PublishingDevice, still
from simulators.therapy import Pen, therapy
from tests.kit import billed, infused_s, orders
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


def told(rows):
    """What rows of events say, in the words of a script's steps."""
    return [(row["kind"], row["source"], row["target"], row["alarm_class"] if row["kind"] == "alarm_raised" else None) for row in rows]


def steps(truth):
    return [
        (step.kind.value, *(one and one.value for one in (step.source, step.target)), step.alarm_class and step.alarm_class.value)
        for step in truth.told
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_log_tells_every_step_of_the_truth_in_its_order_with_its_amounts(kind, seed):
    pump, truth = tandem.simulate(therapy(kind, seed, START, days=3), seed)
    captures = pump.batches()
    assert read(captures)[1].num_rows == 0
    rows = log_of(captures).events.to_pylist()
    assert told(rows) == steps(truth)
    for row, step in zip(rows, truth.told, strict=True):
        for amount in ("rate_ml_h", "volume_ml", "programmed_ml"):
            assert row[amount] == pytest.approx(getattr(step, amount), abs=1e-6), (row["seq"], amount)
        if step.kind is Kind.BOLUS_DELIVERED and row["volume_ml"]:
            assert row["duration_s"] == step.duration_s
        if step.reason is not None:
            assert row["reason"] == step.reason


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_what_the_log_proves_is_what_the_truth_says_it_does_and_flowed(kind, seed):
    pump, truth = tandem.simulate(therapy(kind, seed, START, days=4), seed)
    given = facts(pump.batches())
    assert infused_s(given) == pytest.approx(truth.proved_s, abs=0.01)
    assert truth.proved_s <= truth.flowed_s + 1
    found = sorted((one["pump_setup"], one["new_site"]) for one in given.rows("setups"))
    assert found == sorted((one.pump_setup, one.new_site) for one in truth.set_ups)


@pytest.mark.parametrize("form", tandem.FORMS)
@pytest.mark.parametrize("text", tandem.TEXTS)
def test_every_form_and_text_as_a_file_and_as_batches_gives_the_same_log(form, text):
    script = therapy("insulin_like", 5, START, days=2)
    reference, _ = tandem.simulate(script, form="little")
    wanted = log_of(reference.batches()).events.drop_columns(["raw"])
    pump, _ = tandem.simulate(script, form=form, text=text, batch=37)
    (file,) = adapter.read_files([("log", pump.file())], pump_id=pump.pump_id, model=None, anchor=pump.anchor())
    assert adapter.recognise("log", file.data)
    for captures in ([file], pump.batches()):
        assert read(captures)[1].num_rows == 0
        log = log_of(captures)
        assert log.events.drop_columns(["raw"]).equals(wanted)
        assert [anchor.after for anchor in log.anchors] == [log.events.num_rows - 1]


def test_a_repeated_shuffled_and_interrupted_download_gives_the_same_tables_once_it_is_whole():
    script = therapy("insulin_like", 3, START, days=3)
    pump, _ = tandem.simulate(script, 3, batch=20)
    whole = pump.batches()
    wanted = facts(whole).bytes()
    for seed in range(3):
        some, _ = tandem.simulate(script, seed, batch=31, faults=Faults(duplicates=0.5, reorder=True, keep=5))
        mixed = [*some.batches(), *whole]
        random.Random(seed).shuffle(mixed)
        assert facts(mixed).bytes() == wanted


def test_a_log_that_is_not_over_is_as_long_as_it_is_by_then_and_grows_to_the_same():
    script = therapy("insulin_like", 4, START, days=3)
    early, _ = tandem.simulate(script, now=still(script.start + timedelta(days=1)))
    late, _ = tandem.simulate(script)
    first, second = early.batches(), late.batches()
    assert 0 < log_of(first).events.num_rows < log_of(second).events.num_rows
    grown = log_of([*first, *second])
    assert grown.events.drop_columns(["raw"]).equals(log_of(second).events.drop_columns(["raw"]))
    assert len(grown.anchors) == 2


@pytest.mark.parametrize("form", tandem.FORMS)
def test_a_damaged_download_proves_nothing_that_did_not_flow(form):
    """A bare record has no checksum: of a time that is wrong by less than the next record tells, at most an hour is taken for true."""
    script = therapy("insulin_like", 6, START, days=4)
    for seed in range(4):
        pump, truth = tandem.simulate(script, seed, form=form, batch=25, faults=Faults(noise=0.2))
        clean, _ = tandem.simulate(script, seed, form=form, batch=25)
        captures = pump.batches()
        spoiled = sum(one.data != other.data for one, other in zip(captures, clean.batches(), strict=True))
        assert spoiled
        assert infused_s(facts(captures)) <= truth.proved_s + (0 if form == "messages" else 3600 * spoiled)


@pytest.mark.parametrize("seed", range(3))
def test_a_lost_clock_is_a_cut_and_nothing_is_carried_over_it(seed):
    script = therapy("insulin_like", seed, START, days=4, clock_loss=True)
    pump, truth = tandem.simulate(script, seed)
    given = facts(pump.batches())
    assert AlarmClass.CLOCK_LOST in [step.alarm_class for step in truth.told]
    assert len({row["stretch"] for row in given.rows("sessions")}) == 2
    assert infused_s(given) == pytest.approx(truth.proved_s, abs=1.01)
    assert truth.proved_s < truth.flowed_s


def test_a_clock_that_is_set_over_midnight_takes_no_time_and_two_records():
    pen = Pen(START, "UTC").wait(hours=18).run(0.01, Source.BASAL).wait(minutes=30)
    pen.set_clock(datetime(2026, 3, 4, 0, 10)).wait(minutes=30).stop(Source.BASAL).wait(minutes=1)
    pump, truth = tandem.simulate(pen.script())
    captures = pump.batches()
    changes = [row for row in log_of(captures).events.to_pylist() if row["kind"] == "clock_change"]
    assert [row["native_code"] for row in changes] == ["13", "14"]
    assert changes[0]["new_time"] == changes[1]["pump_time"]
    given = facts(captures)
    assert infused_s(given) == truth.proved_s == 3600


def test_a_set_up_with_a_cannula_is_a_new_site_and_an_aborted_one_may_be():
    pen = Pen(START, "UTC").wait(hours=3).set_up().wait(seconds=10).run(0.01, Source.BASAL).wait(hours=1).stop(Source.BASAL)
    pen.wait(hours=2).reservoir().wait(minutes=4).prime(Target.TUBING, 0.09).wait(minutes=1).prime(
        Target.CANNULA, 0.001, programmed_ml=0.005
    )
    pen.wait(seconds=10).run(0.01, Source.BASAL).wait(hours=1).stop(Source.BASAL).wait(minutes=1)
    pump, _ = tandem.simulate(pen.script())
    given = facts(pump.batches())
    assert [(one["pump_setup"], one["new_site"]) for one in given.rows("setups")] == [(True, "yes"), (True, "possible")]


def test_a_malfunction_stops_by_itself():
    pen = Pen(START, "UTC").wait(hours=3).run(0.01, Source.BASAL).wait(hours=1).alarm(AlarmClass.MALFUNCTION, stops=True).wait(hours=1)
    pump, truth = tandem.simulate(pen.clear(AlarmClass.MALFUNCTION).script())
    given = facts(pump.batches())
    assert infused_s(given) == truth.proved_s == truth.flowed_s == 3600


def test_a_whole_and_ready_line_comes_out_of_a_simulated_infusion():
    pen = Pen(START, "UTC").wait(hours=3).set_up().wait(seconds=20).run(0.4).wait(minutes=100).stop().wait(minutes=1)
    pump, _ = tandem.simulate(pen.script(pen.now + timedelta(hours=2)))
    given = facts(pump.batches())
    assert given.units() == {"96369": 1, "96370": 1}
    assert given.states() == {"ready"}


def test_leaving_out_any_one_record_never_makes_more_of_the_log():
    pen = Pen(START, "UTC").wait(hours=3).set_up().wait(seconds=20).run(0.01, Source.BASAL).wait(minutes=50)
    pen.bolus(0.02, 90, Source.BASAL).wait(minutes=40).stop(Source.BASAL).wait(minutes=1).bolus(0.01, 60).wait(minutes=2)
    pen.run(0.01, Source.BASAL).wait(minutes=20).alarm(AlarmClass.OCCLUSION, stops=True).wait(minutes=1)
    pump, _ = tandem.simulate(pen.script(), form="little", batch=1)
    captures = pump.batches()
    whole = facts(captures)
    ready = {row["code"]: row["units"] for row in whole.rows("lines") if row["state"] == "ready"}
    assert ready
    for gone in range(1, len(captures) - 1):
        given = facts(captures[:gone] + captures[gone + 1 :])
        for row in given.rows("lines"):
            assert row["state"] != "ready" or row["units"] <= ready.get(row["code"], 0), (gone, row)


def test_it_is_found_by_its_name_and_publishes():
    pump, truth = family("tandem").simulate(therapy("insulin_like", 1, START, days=1), 1, serial="T7", faults=Faults())
    assert isinstance(pump, PublishingDevice)
    assert pump.pump_id == truth.pump_id == "tandem:T7"
    assert all(len(payload) < 65_536 for payload in pump.captures())


def test_equal_arguments_give_equal_bytes_and_another_form_is_refused():
    script = therapy("insulin_like", 1, START, days=1)
    assert tandem.simulate(script, 1)[0].captures() == tandem.simulate(script, 1)[0].captures()
    with pytest.raises(InputError):
        tandem.simulate(script, form="middle")


def test_a_fast_clock_shows_as_much_more_as_it_runs_fast():
    script = therapy("insulin_like", 2, START, days=2)
    pump, truth = tandem.simulate(script, faults=Faults(drift_s_per_day=20.0))
    assert infused_s(facts(pump.batches())) == pytest.approx(truth.proved_s * (1 + 20 / 86_400), abs=10)
