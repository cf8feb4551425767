"""What must always hold (docs/semantics.md §7), over logs that hypothesis builds."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.contract import Capture
from ingest import night
from ingest.store import Arrival, Store
from tests.kit import PUMP, anchor, at, capture, give, numbered
from transforms.orders import COLUMNS

SOURCES = ("primary", "basal", "secondary", "intermittent", "pca")
SLOW = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A pump's days: episodes of delivery with what can happen in them, minutes apart, clock changes included."""
    events: list[dict[str, Any]] = []
    minute, shift = 0.0, 0.0

    def add(kind: str, **fields: Any) -> None:
        events.append({"pump_time": at(minute + shift), "kind": kind, **fields})

    def wait(low: int, high: int) -> None:
        nonlocal minute
        minute += draw(st.integers(low * 60, high * 60)) / 60

    for _ in range(draw(st.integers(1, 7))):
        wait(0, draw(st.sampled_from([5, 70, 1500])))
        what = draw(
            st.sampled_from(
                ["infusion", "infusion", "infusion", "setup", "clock", "loss", "bolus", "alarm", "limit", "kvo", "unended", "loose"]
            )
        )
        source = draw(st.sampled_from(SOURCES))
        if what == "setup":
            add("reservoir_change")
            if draw(st.booleans()):
                add("priming_done", target=draw(st.sampled_from(["tubing", "unknown"])), volume_ml=0.3)
            if draw(st.booleans()):
                add("priming_done", target="cannula", programmed_ml=0.05, volume_ml=draw(st.sampled_from([0.05, 0.02])))
        elif what == "clock":
            by = draw(st.sampled_from([-1500, -60, -2, 2, 60, 1500]))
            add("clock_change", old=at(minute + shift), new=at(minute + shift + by))
            shift += by
        elif what == "loss":
            add("clock_change", reason="loss")
        elif what == "bolus":
            add("demand_granted")
            add("bolus_delivered", source="pca", volume_ml=0.5, duration_s=draw(st.sampled_from([0, 30, 600])))
        elif what == "loose":
            kind = draw(st.sampled_from(["delivery_start", "delivery_stop", "power_on", "rate_change", "other"]))
            add(kind, **({"source": source} if kind.startswith(("delivery", "rate")) else {}))
        else:
            add("delivery_start", source=source, rate_ml_h=2.0)
            wait(0, draw(st.sampled_from([14, 17, 95, 600])))
            if what == "alarm":
                add("alarm_raised", alarm_class="occlusion", stops_delivery=True)
            elif what == "unended":
                add(draw(st.sampled_from(["power_on", "limit_cleared"])))
            elif what == "limit":
                add("limit_reached")
                wait(1, 20)
                add("limit_cleared")
                wait(1, 30)
                add("delivery_stop", source=source)
            elif what == "kvo":
                add("delivery_complete", source=source)
                add("delivery_start", source="kvo")
            else:
                add(draw(st.sampled_from(["delivery_stop", "delivery_complete"])), source=source)
    return numbered(events)


def last_minute(lines: list[dict[str, Any]]) -> float:
    return (datetime.fromisoformat(lines[-1]["pump_time"]) - datetime.fromisoformat(at())).total_seconds() / 60


@st.composite
def pieces(draw: st.DrawFn, lines: list[dict[str, Any]], end: Mapping[str, Any] | None) -> list[Capture]:
    """The same log in captures: split at records, overlapping, repeated, in any order, whole in all."""
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(lines) - 1)), max_size=4)))
    edges = [0, *[cut for cut in cuts if cut < len(lines)], len(lines)]
    found = []
    for low, high in pairwise(edges):
        start = max(0, low - draw(st.integers(0, 2)))
        told = {**end, "after_seq": lines[-1]["seq"]} if end and draw(st.booleans()) else None
        found.append(capture(lines[start:high], anchor=told))
    if end:
        found.append(capture(lines[-1:], anchor={**end, "after_seq": lines[-1]["seq"]}))
    return draw(st.permutations(found + draw(st.lists(st.sampled_from(found), max_size=2))))


@SLOW
@given(data=st.data())
def test_any_order_repetition_and_split_gives_the_same_tables_byte_for_byte(data):
    lines = data.draw(histories())
    end = anchor(last_minute(lines) + 5) if data.draw(st.booleans()) else None
    hidden = data.draw(st.sets(st.sampled_from([line["seq"] for line in lines]), max_size=2))
    lines = [line for line in lines if line["seq"] not in hidden] or lines
    one, other = data.draw(pieces(lines, end)), data.draw(pieces(lines, end))
    assert give(*one).bytes() == give(*other).bytes()


@SLOW
@given(lines=histories(), timed=st.booleans())
def test_the_five_kinds_of_seconds_add_up_and_records_are_counted(lines, timed):
    found = give(capture(lines, anchor=anchor(last_minute(lines) + 5) if timed else None))
    for session in found.rows("sessions"):
        kinds = ("infusing", "unknown", "kvo", "alarm", "paused")
        assert sum(session[f"{kind}_s"] for kind in kinds) == session["span_s"]
        assert min(session[f"{kind}_s"] for kind in kinds) >= 0
        mine = [i for i in found.rows("intervals") if i["session_id"] == session["session_id"]]
        assert sum(i["to_ms"] - i["from_ms"] for i in mine) // 1000 == session["span_s"]
    assert len(found.rows("events")) == len(lines)


@SLOW
@given(lines=histories())
def test_every_ready_minute_lies_between_recorded_events_of_one_stretch(lines):
    found = give(capture(lines, anchor=anchor(last_minute(lines) + 5)))
    by_id = {event["event_id"]: event for event in found.rows("events")}
    for interval in found.rows("intervals"):
        if interval["class"] == "infusing":
            first, last = by_id[interval["first_event"]], by_id[interval["last_event"]]
            assert first["stretch"] == last["stretch"] == interval["stretch"]
            assert first["elapsed_ms"] <= interval["from_ms"] <= interval["to_ms"]


def order_file(folder: Path) -> Path:
    row = {
        "pump_id": PUMP, "patient_id": "pt-1", "order_id": "ord-1", "drug": "hydromorphone", "route": "SC", "payer": "payer-a",
        "rule_set": "cpt-9637x", "tz": "UTC", "start": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    path = folder / "orders.csv"
    path.write_text(",".join(COLUMNS) + "\n" + ",".join(row.get(column, "") for column in COLUMNS) + "\n")
    return path


def put(lake: Path, captures: list[Capture]) -> None:
    with Store(lake / "store.sqlite") as store:
        store.append((one, Arrival(received_at=datetime(2026, 3, 20, tzinfo=UTC), via="test")) for one in captures)


def derived(lake: Path) -> dict[str, bytes]:
    """Every file of the derived tables but records/, which knows how bytes happened to arrive."""
    names = [name for name in (*night.CONSOLIDATED, *night.BILLED) if name not in ("records", "pumps")]
    return {str(path.relative_to(lake)): path.read_bytes() for name in names for path in sorted((lake / name).rglob("*.parquet"))}


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_night_that_lacks_captures_and_gets_them_later_ends_as_one_that_had_them_all(data):
    lines = data.draw(histories())
    captures = data.draw(pieces(lines, anchor(last_minute(lines) + 5)))
    later = data.draw(st.integers(0, len(captures)))
    with TemporaryDirectory() as folder:
        lakes = [Path(folder) / name for name in ("at-once", "in-two-nights")]
        for lake in lakes:
            night.open_lake(lake, buckets=1)
        put(lakes[0], captures)
        night.nightly(lakes[0], orders_file=order_file(Path(folder)))
        put(lakes[1], captures[later:])
        night.nightly(lakes[1], orders_file=order_file(Path(folder)))
        put(lakes[1], captures[:later])
        night.nightly(lakes[1])
        assert derived(lakes[0]) == derived(lakes[1])
        before = derived(lakes[1])
        night.nightly(lakes[1])
        assert derived(lakes[1]) == before


def test_the_history_strategy_reaches_what_it_is_for():
    """The strategy would prove nothing if it never made a ready line, a held one, a set-up or a cut."""
    seen: set[str] = set()

    @settings(max_examples=200, deadline=None, database=None, derandomize=True)
    @given(lines=histories())
    def look(lines: list[dict[str, Any]]) -> None:
        found = give(capture(lines, anchor=anchor(last_minute(lines) + 5)))
        seen.update(found.states(), found.reasons(), (line["code"] for line in found.rows("lines")))

    look()
    assert {"ready", "hold", "96372", "96369", "96370", "CLOCK_UNCERTAIN", "NO_STOP", "NO_START"} <= seen
