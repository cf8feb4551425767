"""`assemble`: the order of messages, of several readings one, sources of KVO stops, and holes that snapshots show."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from devices import sequence
from devices.contract import CONTENT, EVENTS, Kind, Log, PlacedAnchor, Source, dump_detail, event_id
from devices.pcd.messages import place_of


class _Told(msgspec.Struct):
    """What of `detail` the order and the holes need."""

    sent: str = ""
    shows: str = ""


_told = msgspec.json.Decoder(_Told)
_SAYS = [name for name in CONTENT.names if name not in ("raw", "detail")]
_LAG_MS = 10_000
"""A snapshot shows the pump as it was some seconds around its time: it is not held against a start or a stop so near."""


@dataclass(slots=True)
class _Row:
    """A record in its place in the log."""

    index: int
    key: str
    kind: str
    reason: str | None
    source: str | None
    rate: float | None
    ms: int
    told: _Told
    conflicts: list[str] = field(default_factory=list)

    @property
    def place(self) -> tuple[int, bool, int, str, int, str]:
        """OBR-7 to the second, transitioning stops and completions first; then its fraction, MSH-7, MSH-10 (numbers by their size)."""
        first = self.kind == Kind.DELIVERY_COMPLETE.value or self.reason == "transitioning"
        control = self.key.rpartition("|")[2]
        return self.ms // 1000, not first, self.ms, self.told.sent, len(control), self.key


def assemble(pump_id: str, records: pa.Table, faults: pa.Table, anchors: pa.Table) -> Log:
    """The log of one pump by the times of its messages; KVO stops find their source, and holes their places."""
    records = records.combine_chunks()
    rows = sorted(_one_row_a_key(records), key=lambda row: row.place)
    holes = _fault_holes(rows, faults)
    kvo_stops, contradicted = _followed(rows, holes)
    holes |= contradicted
    events = _events(pump_id, records, rows, kvo_stops)
    at = [float(i) for i in range(len(rows))]
    if holes:
        gaps = [sequence.hole_row(pump_id, 0, kind, key) for _, (kind, key) in sorted(holes.items())]
        events = pa.concat_tables([events, pa.Table.from_pylist(gaps, schema=EVENTS)])
        order = np.argsort([*at, *(row - 0.5 for row in sorted(holes))], kind="stable")
        events = events.take(pa.array(order)).combine_chunks()
    return Log(
        events=events,
        anchors=_placed(events, anchors),
        event_of_record=pa.array([event_id(pump_id, key) for key in records.column("record_key").to_pylist()], pa.string()),
        gaps_visible=False,
    )


def _one_row_a_key(records: pa.Table) -> list[_Row]:
    """One row of each message: of different contents the later, then the one sent later, then the greater content hash (semantics §2)."""
    names = ("record_key", "kind", "reason", "source", "rate_ml_h")
    columns = [records.column(name).to_pylist() for name in names]
    times = records.column("pump_time").cast(pa.int64()).to_pylist()
    details = records.column("detail").to_pylist()
    found: dict[str, list[_Row]] = {}
    for index, (key, kind, reason, source, rate) in enumerate(zip(*columns, strict=True)):
        found.setdefault(key, []).append(_Row(index, key, kind, reason, source, rate, times[index], _told.decode(details[index])))
    again = [row.index for rows in found.values() if len(rows) > 1 for row in rows]
    readings = iter(records.take(pa.array(again, pa.int64())).to_pylist())
    return [rows[0] if len(rows) == 1 else _chosen(rows, [next(readings) for _ in rows]) for rows in found.values()]


def _chosen(rows: list[_Row], readings: list[dict[str, Any]]) -> _Row:
    """Which of several readings of a message stands; when it was sent is no part of its content."""
    alike = len({(reading["raw"], reading["pump_time"]) for reading in readings}) == 1
    content = [""] * len(rows) if alike else [_content(reading) for reading in readings]
    latest = {one: max((row.ms, row.told.sent) for row, other in zip(rows, content, strict=True) if other == one) for one in set(content)}
    winner = max(latest, key=lambda one: (latest[one], one))
    same = [i for i, one in enumerate(content) if one == winner]
    best = rows[min(same, key=lambda i: (rows[i].told.sent, readings[i]["raw"], readings[i]["capture"], readings[i]["offset"]))]
    best.conflicts = sorted(latest.keys() - {winner})
    return best


def _content(reading: Mapping[str, Any]) -> str:
    detail = msgspec.json.decode(reading["detail"])
    detail.pop("sent", None)
    said = {name: str(reading[name]) for name in _SAYS}
    return hashlib.sha256(dump_detail({**said, "detail": detail}).encode()).hexdigest()


_Holes = dict[int, tuple[Kind, str]]
"""By the row before which it stands: kind and key."""


def _fault_holes(rows: Sequence[_Row], faults: pa.Table) -> _Holes:
    """Where messages stood that could not be read, and did not come again readable."""
    keys = {row.key for row in rows}
    seconds, times = [row.ms // 1000 for row in rows], sorted(row.ms for row in rows)
    holes: _Holes = {}
    lost = faults.select(["seq", "after_seq", "before_seq", "hole", "raw"]).to_pylist()
    for fault in sorted(lost, key=lambda one: [(n is None, n or 0) for n in (one["seq"], one["after_seq"], one["before_seq"])]):
        own, after, before = fault["seq"], fault["after_seq"], fault["before_seq"]
        if not fault["hole"] or place_of(fault["raw"], UTC)[1] in keys:
            continue
        if own is not None:
            at, name = bisect_left(seconds, own // 1000), f"at-{own}"
        elif after is not None:
            at, name = bisect_right(times, after), f"after-{after}"
        elif before is not None:
            at, name = bisect_left(seconds, before // 1000), f"until-{before}"
        else:
            continue
        holes.setdefault(at, (Kind.DATA_CORRUPTION, f"gap:0:{name}"))
    return holes


_DELIVERIES = frozenset(kind.value for kind in (Kind.DELIVERY_START, Kind.DELIVERY_STOP, Kind.DELIVERY_COMPLETE))


def _followed(rows: Sequence[_Row], holes: Mapping[int, Any]) -> tuple[set[int], _Holes]:
    """The log followed from start to end: the rows that stop KVO, and the snapshots that show that a message is missing before them.

    What is missing is not known, so nothing that runs is known behind such a hole. `None` in `runs`: at rate 0, or not to be judged.
    """
    moves = [row.ms for row in rows if row.kind in _DELIVERIES]
    runs: dict[str | None, bool | None] = {}
    kvo_stops: set[int] = set()
    found: _Holes = {}
    for number, row in enumerate(rows):
        source = row.source
        if number in holes or row.kind in (Kind.CLOCK_CHANGE.value, Kind.NEW_PATIENT.value):
            runs.clear()
        match row.kind:
            case Kind.DELIVERY_START.value:
                runs = dict.fromkeys(runs, False) if source == "kvo" else {**runs, "kvo": False}
                runs[source] = None if row.rate == 0 and source != "kvo" else True
            case Kind.DELIVERY_STOP.value if runs.get("kvo"):
                kvo_stops.add(number)
                runs["kvo"] = False
            case Kind.DELIVERY_STOP.value if source is None:
                runs = dict.fromkeys([*runs, None], False)
            case Kind.DELIVERY_STOP.value | Kind.DELIVERY_COMPLETE.value:
                runs[source] = False
            case Kind.OTHER.value if row.told.shows and runs and None not in runs.values():
                near = bisect_left(moves, row.ms - _LAG_MS) < bisect_right(moves, row.ms + _LAG_MS)
                running = {name for name, on in runs.items() if on}
                known = "nothing" if not running else "kvo" if running == {"kvo"} else "delivery"
                agree = row.told.shows == known or (row.told.shows == "something" and running)
                if not near and not agree:
                    found[number] = (Kind.DATA_GAP, f"gap:0:before-{row.key}")
                    runs.clear()
    return kvo_stops, found


def _events(pump_id: str, records: pa.Table, rows: Sequence[_Row], kvo_stops: set[int]) -> pa.Table:
    """EVENTS of the rows, without holes."""
    taken = records.take(pa.array([row.index for row in rows], pa.int64()))
    details = taken.column("detail").to_pylist()
    for number, row in enumerate(rows):
        if row.conflicts:
            details[number] = dump_detail({**msgspec.json.decode(details[number]), "conflicts_with": row.conflicts})
    sources = [Source.KVO.value if number in kvo_stops else row.source for number, row in enumerate(rows)]
    columns = {
        **{name: taken.column(name) for name in EVENTS.names if name in taken.column_names},
        "event_id": pa.array([event_id(pump_id, row.key) for row in rows], pa.string()),
        "source": pa.array(sources, pa.string()),
        "detail": pa.array(details, pa.string()),
        "conflict": pa.array([bool(row.conflicts) for row in rows], pa.bool_()),
    }
    return pa.table({name: columns[name] for name in EVENTS.names}, schema=EVENTS).combine_chunks()


def _placed(events: pa.Table, anchors: pa.Table) -> tuple[PlacedAnchor, ...]:
    """The anchors of the readings that stand, in log order."""
    times = events.column("pump_time").cast(pa.int64()).to_pylist()
    row_of = {key: row for row, key in enumerate(events.column("record_key").to_pylist())}
    clocks = anchors.column("pump_clock").cast(pa.int64()).to_pylist()
    there = {
        (row, clock)
        for key, clock in zip(anchors.column("after").to_pylist(), clocks, strict=True)
        if (row := row_of.get(key)) is not None and times[row] == clock
    }
    return tuple(PlacedAnchor(row, clock, clock, None) for row, clock in sorted(there))
