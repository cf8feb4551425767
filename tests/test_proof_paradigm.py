"""What must always hold (docs/semantics.md §7), over the pages of simulated Paradigm pumps that were downloaded at several times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices import paradigm
from devices.contract import Anchor, Capture
from simulators.paradigm import Pump
from simulators.therapy import therapy
from tests.kit import assembled, billed, orders

PUMP = "paradigm:482916"
START = datetime(2026, 3, 5, 5, tzinfo=UTC)
KNOWN = orders(pump_id=PUMP, tz="America/New_York")


def dump(pump: Pump, model: int, days: float) -> list[Capture]:
    """What one download gives: its pages, newest first, and the anchor at its end."""
    moment = START + timedelta(days=days)
    anchor = Anchor(pump_clock=pump.clock.shows(moment).replace(microsecond=0), utc=moment, round_trip_ms=40)
    token = f"at{days:g}"
    pages = [
        Capture(data=page, family="paradigm", pump_id=PUMP, model=str(model), part=f"page={number};dump={token}", anchor=anchor)
        for number, page in enumerate(pump.pages(moment))
    ]
    return [*pages, Capture(data=b"", family="paradigm", pump_id=PUMP, model=str(model), part=f"end;dump={token}", anchor=anchor)]


@cache
def dumps(seed: int, model: int, loss: bool) -> tuple[tuple[Capture, ...], ...]:
    """Downloads of one pump on three days of a fortnight."""
    script = therapy("insulin_like", seed, START, 9, clock_loss=loss)
    pump = Pump(script, seed=seed, model=model)
    return tuple(tuple(dump(pump, model, days)) for days in (3, 6, 9))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), seed=st.integers(0, 5), model=st.sampled_from([522, 723]), loss=st.booleans())
def test_any_order_and_repetition_of_captures_gives_the_same_tables_byte_for_byte(data, seed, model, loss):
    pages = [one for part in dumps(seed, model, loss) for one in part]
    hidden = data.draw(st.sets(st.sampled_from(range(len(pages))), max_size=3))
    pages = [one for number, one in enumerate(pages) if number not in hidden]
    again = data.draw(st.permutations(pages + data.draw(st.lists(st.sampled_from(pages), max_size=4))))
    one, other = billed([assembled(pages)], KNOWN), billed([assembled(again)], KNOWN)
    assert one.bytes() == other.bytes()
    for session in one.rows("sessions"):
        assert sum(session[f"{kind}_s"] for kind in ("infusing", "unknown", "kvo", "alarm", "paused")) == session["span_s"]


@pytest.mark.parametrize("model", [522, 723])
@pytest.mark.parametrize("seed", [0, 3])
def test_dumps_that_overlap_give_each_record_once(seed, model):
    first, second, third = dumps(seed, model, False)
    whole = assembled([*first, *second, *third]).events
    assert whole.column("record_key").to_pylist() == assembled(list(third)).events.column("record_key").to_pylist()
    assert not any(kind in ("data_gap", "data_corruption") for kind in whole.column("kind").to_pylist())


@pytest.mark.parametrize("model", [522, 723])
@pytest.mark.parametrize("seed", [0, 3])
def test_a_page_that_is_missing_or_bad_never_makes_a_line_ready_or_larger(seed, model):
    pages = list(dumps(seed, model, False)[-1])
    whole = {line["line_id"]: line for line in billed([assembled(pages)], KNOWN).rows("lines")}
    newest = min(number for number, page in enumerate(pages) if paradigm.decode(page).records.num_rows)
    for number in range(newest + 1, len(pages) - 2):
        spoiled = Capture(
            data=pages[number].data[:500] + b"\x99" + pages[number].data[501:], family="paradigm", pump_id=PUMP, model=str(model),
            part=pages[number].part, anchor=pages[number].anchor,
        )  # fmt: skip
        for left in ([*pages[:number], *pages[number + 1 :]], [*pages[:number], spoiled, *pages[number + 1 :]]):
            log = assembled(left)
            kinds = log.events.column("kind").to_pylist()
            assert kinds.count("data_corruption") == (spoiled in left)
            assert kinds.count("data_gap") == (spoiled not in left)
            for line in billed([log], KNOWN).rows("lines"):
                if line["state"] == "ready":
                    assert whole[line["line_id"]]["state"] == "ready"
                    assert line["units"] <= whole[line["line_id"]]["units"]
