"""Therapy scripts and their truth."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.contract import AlarmClass, Kind, Source, Target
from devices.errors import InputError
from simulators.link import Faults
from simulators.therapy import Interval, Pen, PumpClock, Script, seconds, therapy, truth, without_power

KINDS = ("sc_continuous", "pca", "demand_only", "insulin_like")
SPRING = datetime(2026, 3, 6, 12, tzinfo=UTC)
T0 = datetime(2026, 1, 5, 15, tzinfo=UTC)


def within(inner: tuple[Interval, ...], outer: tuple[Interval, ...]) -> bool:
    return all(any(low <= start and stop <= high for low, high in outer) for start, stop in inner)


def at(minutes: float) -> datetime:
    return T0 + timedelta(minutes=minutes)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_arguments_give_equal_scripts_and_other_seeds_others(kind: str) -> None:
    assert therapy(kind, 3, SPRING, 4) == therapy(kind, 3, SPRING, 4)
    assert therapy(kind, 3, SPRING, 4) != therapy(kind, 4, SPRING, 4)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), days=st.integers(1, 6), loss=st.booleans())
def test_truth_adds_up(kind: str, seed: int, days: int, loss: bool) -> None:
    script = therapy(kind, seed, SPRING, days, clock_loss=loss)
    found = truth("canonical:1", script)
    assert all(script.start <= start <= stop <= script.end for start, stop in found.flowed)
    assert all(before[1] < after[0] for before, after in zip(found.flowed, found.flowed[1:], strict=False))
    assert found.flowed_s == pytest.approx(seconds(found.flowed))
    assert seconds((run.start, run.stop) for run in found.deliveries) >= found.flowed_s - 1e-6
    assert within(found.proved, found.flowed)
    assert all(set_up.new_site in {"yes", "no", "possible"} for set_up in found.set_ups)
    assert [step.recorded for step in found.told] == sorted(step.recorded for step in found.told)


@pytest.mark.parametrize("kind", ["sc_continuous", "pca", "demand_only"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_whole_log_that_ends_stopped_proves_all_that_flowed(kind: str, seed: int) -> None:
    found = truth("canonical:1", therapy(kind, seed, SPRING, 3))
    assert found.proved == found.flowed


def test_given_minutes_are_the_deliveries_that_there_are() -> None:
    script = therapy("sc_continuous", 5, SPRING, 3, minutes=(16, 91, 31, 480))
    lengths = sorted((stop - start).total_seconds() / 60 for start, stop in truth("canonical:1", script).flowed)
    assert lengths == [16, 31, 91, 480]


def test_daylight_saving_comes_as_a_clock_set_by_hand() -> None:
    changes = [step for seed in range(10) for step in therapy("pca", seed, SPRING, 5).steps if step.kind is Kind.CLOCK_CHANGE]
    assert changes
    assert all(
        step.at >= datetime(2026, 3, 8, 7, tzinfo=UTC) and step.at - timedelta(hours=4) == step.to.replace(tzinfo=UTC) for step in changes
    )


def test_what_halts_is_no_delivery_and_a_restart_is_a_new_one() -> None:
    pen = Pen(T0).run(2.0).wait(minutes=10).alarm(AlarmClass.OCCLUSION, stops=True).wait(minutes=5).run(2.0).wait(minutes=20).stop()
    found = truth("canonical:1", pen.script())
    assert found.flowed == ((at(0), at(10)), (at(15), at(35)))
    assert found.proved_s == 30 * 60


def test_a_limit_is_kvo_until_it_is_cleared() -> None:
    pen = Pen(T0).run(1.0).wait(minutes=10).step(Kind.LIMIT_REACHED).wait(minutes=5).step(Kind.LIMIT_CLEARED).wait(minutes=5).stop()
    found = truth("canonical:1", pen.script())
    assert found.flowed == ((at(0), at(10)), (at(15), at(20)))
    assert found.kvo == ((at(10), at(15)),)


def test_kvo_after_completion_is_no_infusion() -> None:
    pen = Pen(T0).run(1.0).wait(minutes=10).complete().run(0.1, Source.KVO).wait(minutes=5).stop(Source.KVO)
    found = truth("canonical:1", pen.script())
    assert found.flowed == ((at(0), at(10)),)
    assert found.kvo == ((at(10), at(15)),)


def test_a_bolus_counts_only_while_nothing_else_infuses() -> None:
    pen = Pen(T0).run(0.0).demand().bolus(0.2, 60).wait(minutes=10).run(1.0).wait(minutes=5).bolus(0.2, 60).wait(minutes=5).stop()
    assert truth("canonical:1", pen.script()).flowed == ((at(0), at(1)), (at(10), at(20)))


def test_a_bolus_is_cut_short_by_a_stop() -> None:
    pen = Pen(T0).bolus(0.2, 600).wait(minutes=2).alarm(AlarmClass.OCCLUSION, stops=True).wait(minutes=30)
    assert truth("canonical:1", pen.script()).flowed_s == 120


def test_a_battery_out_ends_what_runs_and_the_log_shows_it_only_to_its_last_record() -> None:
    pen = Pen(T0).run(1.0).wait(minutes=10).rate(2.0).wait(minutes=20).battery_out(15).wait(minutes=5).run(1.0).wait(minutes=10).stop()
    found = truth("canonical:1", pen.script())
    assert found.flowed == ((at(0), at(30)), (at(50), at(60)))
    assert found.proved == ((at(0), at(10)), (at(50), at(60)))


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 1000), hours=st.floats(13, 60), minutes=st.floats(1, 600))
def test_nothing_flows_while_the_power_is_out(kind: str, seed: int, hours: float, minutes: float) -> None:
    script = therapy(kind, seed, SPRING, 3)
    dark = without_power(script, script.start + timedelta(hours=hours), minutes=minutes)
    (loss,) = [step for step in dark.steps if step.dark_since]
    found = truth("canonical:1", dark)
    assert not any(start < loss.at and stop > loss.dark_since for start, stop in found.flowed)
    assert within(found.proved, found.flowed)


def test_a_drug_that_ran_before_the_battery_was_out_runs_again_after_it() -> None:
    script = Pen(T0).run(1.5).wait(hours=10).stop().script()
    dark = Faults(battery_out=at(60), battery_out_min=30).happen_to(script)
    assert truth("canonical:1", dark).flowed == ((at(0), at(60)), (at(95), at(600)))
    assert [step.rate_ml_h for step in dark.steps if step.kind is Kind.DELIVERY_START] == [1.5, 1.5]


def test_set_ups_are_one_until_a_piece_begins() -> None:
    pen = Pen(T0).set_up().wait(minutes=1).run(1.0).wait(minutes=30).reservoir().wait(minutes=2).prime(Target.TUBING, 0.1).wait(minutes=1)
    pen.run(1.0).wait(minutes=30).prime(Target.CANNULA, 0.01).wait(minutes=5).stop()
    shown = [(s.at, s.pump_setup, s.new_site, s.delivery) for s in truth("canonical:1", pen.script()).set_ups]
    assert shown == [
        (at(6), True, "yes", at(7)),
        (at(39), True, "no", at(40)),
        (at(70), False, "yes", at(40)),
    ]


@pytest.mark.parametrize(
    ("target", "given_ml", "programmed_ml", "pump_setup", "new_site"),
    [
        (Target.CANNULA, 0.002, 0.005, False, "possible"),
        (Target.CANNULA, 0.005, 0.005, False, "yes"),
        (Target.UNKNOWN, 0.1, None, True, "possible"),
        (Target.UNKNOWN, 0.05, 0.1, False, "possible"),
        (Target.TUBING, 0.1, None, True, "no"),
        (Target.TUBING, 0.05, 0.1, False, "no"),
    ],
)
def test_what_a_fill_shows(target: Target, given_ml: float, programmed_ml: float | None, pump_setup: bool, new_site: str) -> None:
    pen = Pen(T0).prime(target, given_ml, programmed_ml=programmed_ml).wait(minutes=1).run(1.0).wait(minutes=5).stop()
    (shown,) = truth("canonical:1", pen.script()).set_ups
    assert (shown.pump_setup, shown.new_site) == (pump_setup, new_site)


def test_a_set_up_before_a_lost_clock_belongs_to_no_delivery() -> None:
    pen = Pen(T0).set_up().wait(minutes=1).battery_out(20).wait(minutes=5).run(1.0).wait(minutes=5).stop()
    (shown,) = truth("canonical:1", pen.script()).set_ups
    assert shown.delivery is None


def test_truth_is_json() -> None:
    found = truth("canonical:1", therapy("pca", 1, SPRING, 2))
    told = json.loads(found.to_json())
    assert told["pump_id"] == "canonical:1"
    assert told["flowed_s"] == found.flowed_s
    assert len(told["told"]) == len(found.told)
    assert datetime.fromisoformat(told["flowed"][0][0]) == found.flowed[0][0]


def test_the_pump_clock_drifts_is_set_and_is_lost() -> None:
    script = Pen(T0).wait(days=1).set_clock(datetime(2026, 1, 6, 12)).wait(hours=1).battery_out(60).wait(hours=2).script()
    clock = PumpClock(script, reset_to=datetime(2005, 1, 1), drift_s_per_day=10)
    assert clock.shows(T0) == datetime(2026, 1, 5, 10)
    assert clock.showed(T0 + timedelta(days=1)) == datetime(2026, 1, 6, 10, 0, 10)
    assert clock.shows(T0 + timedelta(days=1)) == datetime(2026, 1, 6, 12)
    assert clock.shows(T0 + timedelta(days=1, hours=2)) == datetime(2005, 1, 1)
    assert clock.shows(T0 + timedelta(days=1, hours=3)).replace(microsecond=0) == datetime(2005, 1, 1, 1)


def test_a_script_that_is_none_is_refused() -> None:
    good = Pen(T0).run(1.0).wait(minutes=5).stop().script()
    with pytest.raises(InputError, match="back in time"):
        Script(start=good.start, end=good.end, clock=good.clock, steps=tuple(reversed(good.steps)))
    with pytest.raises(InputError, match="UTC"):
        Script(start=good.start.replace(tzinfo=None), end=good.end, clock=good.clock, steps=())
    with pytest.raises(InputError, match="kind of therapy"):
        therapy("oral", 1, T0, 1)
    with pytest.raises(InputError, match="one day"):
        therapy("pca", 1, T0, 0)
