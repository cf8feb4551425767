"""`assemble` for families whose records carry sequence numbers (semantics §2): duplicates, conflicts, order and holes.

The numbers are the order. Where they leave no holes (`contiguous`), a number that is missing between two that are there is a
record that is missing; where they only order, a hole is known from a line that could not be read, and from nothing else. A log of
which captures say the one and the other has the holes of both: what either proves to be missing is missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from devices.contract import CONTENT, EVENTS, Kind, Log, PlacedAnchor, dump_detail, event_id

_SAYS = [name for name in CONTENT.names if name != "raw"]


def key_of(log_epoch: int, seq: int) -> str:
    """The record key of a numbered record."""
    return f"{log_epoch}:{seq}"


Range = tuple[int, int]
"""Numbers from one to another, both in."""


def runs_of(numbers: Iterable[int]) -> list[Range]:
    """Numbers as ranges without holes, in order."""
    runs: list[Range] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs


def without(whole: Range, known: Iterable[Range]) -> list[Range]:
    """What a range has that none of the known ones has, in order."""
    first, last = whole
    found = []
    for low, high in sorted(known):
        if low <= high and low <= last:
            if low > first:
                found.append((first, low - 1))
            first = max(first, high + 1)
    return [*found, (first, last)] if first <= last else found


def keys_of(log_epochs: pa.Array, seqs: pa.Array) -> pa.Array:
    """The record keys of numbered records."""
    return pc.binary_join_element_wise(log_epochs.cast(pa.string()), seqs.cast(pa.string()), ":")


def assemble(pump_id: str, records: pa.Table, faults: pa.Table, anchors: pa.Table) -> Log:
    """The log of one pump from RECORDS, FAULTS and ANCHORS of all its captures, whatever their order and repetition."""
    event_of_record = _event_ids(pump_id, records.column("record_key"))
    rows, conflicts = _one_row_a_number(records.append_column("event_id", event_of_record), anchors)
    epochs = rows.column("log_epoch").to_numpy()
    numbers = rows.column("seq").to_numpy()
    said = _contiguous(records)
    holes = _merged(_holes(epochs, numbers, faults, said))
    events = _with_holes(pump_id, rows, conflicts, holes)
    return Log(
        events=events,
        anchors=_placed(events, anchors),
        event_of_record=event_of_record,
        gaps_visible=all(all(each) for each in said.values()),
    )


def _event_ids(pump_id: str, record_keys: pa.ChunkedArray) -> pa.Array:
    """The id of the event that each record is; a key that is there often is hashed once."""
    keys = record_keys.combine_chunks().dictionary_encode()
    return pa.array([event_id(pump_id, key) for key in keys.dictionary.to_pylist()], pa.string()).take(keys.indices)


def _one_row_a_number(records: pa.Table, anchors: pa.Table) -> tuple[pa.Table, dict[int, list[str]]]:
    """Records sorted by (epoch, number), one of each; and, by row, the hashes of the other contents of those in conflict."""
    order = pc.sort_indices(records, sort_keys=[("log_epoch", "ascending"), ("seq", "ascending")])
    rows = records.take(order)
    epochs, numbers = rows.column("log_epoch").to_numpy(), rows.column("seq").to_numpy()
    same = (epochs[1:] == epochs[:-1]) & (numbers[1:] == numbers[:-1])
    if not same.any():
        return rows, {}
    starts = np.flatnonzero(np.concatenate(([True], ~same)))
    ends = np.append(starts[1:], rows.num_rows)
    read_at = dict(zip(anchors.column("capture").to_pylist(), anchors.column("utc").cast(pa.int64()).to_pylist(), strict=True))
    keep = starts.copy()
    conflicts: dict[int, list[str]] = {}
    for group in np.flatnonzero(ends - starts > 1):
        first, last = int(starts[group]), int(ends[group])
        best, others = _chosen(rows.slice(first, last - first).to_pylist(), read_at)
        keep[group] = first + best
        if others:
            conflicts[int(group)] = others
    return rows.take(pa.array(keep)), conflicts


def _chosen(rows: list[dict[str, Any]], read_at: dict[str, int]) -> tuple[int, list[str]]:
    """Which of several readings of one record stands, and the content hashes of the others if they differ.

    The later anchor, then the greater content hash (semantics §2); of equal contents the least bytes, so that it does not
    matter which came first.
    """
    contents = [hashlib.sha256(dump_detail({name: str(row[name]) for name in _SAYS}).encode()).hexdigest() for row in rows]
    latest: dict[str, int] = {}
    for row, content in zip(rows, contents, strict=True):
        latest[content] = max(latest.get(content, -(2**63)), read_at.get(row["capture"], -(2**63)))
    winner = max(latest, key=lambda content: (latest[content], content))
    best = min((i for i, content in enumerate(contents) if content == winner), key=lambda i: (rows[i]["raw"], rows[i]["capture"]))
    return best, sorted(set(contents) - {winner})


def _contiguous(records: pa.Table) -> dict[int, set[bool]]:
    """What the captures say of each epoch: whether its numbers leave no holes."""
    said: dict[int, set[bool]] = {}
    told = pa.table({"epoch": records.column("log_epoch"), "contiguous": records.column("contiguous").fill_null(True)})
    for row in told.group_by(["epoch", "contiguous"]).aggregate([]).to_pylist():
        said.setdefault(row["epoch"], set()).add(row["contiguous"])
    return said


Hole = tuple[int, Kind, str]
"""Row before which it stands, kind, key."""


def _holes(epochs: Any, numbers: Any, faults: pa.Table, said: dict[int, set[bool]]) -> Iterable[Hole]:
    """The places where something is missing, by row."""
    lost = [f for f in faults.select(["log_epoch", "seq", "after_seq", "before_seq", "hole"]).to_pylist() if f["hole"]]
    for epoch in sorted({*said, *(f["log_epoch"] for f in lost)}):
        here = np.flatnonzero(epochs == epoch)
        start = int(np.searchsorted(epochs, epoch))
        seqs = numbers[here]
        mine = [f for f in lost if f["log_epoch"] == epoch]
        if start > 0:
            yield start, Kind.DATA_GAP, f"gap:{epoch}:epoch"
        if not len(seqs):
            if mine:
                yield start, Kind.DATA_CORRUPTION, f"gap:{epoch}:unread"
            continue
        if True in said[epoch]:
            yield from _missing_numbers(epoch, start, seqs, mine)
        if False in said[epoch]:
            yield from _unread_places(epoch, start, seqs, mine)


def _missing_numbers(epoch: int, start: int, seqs: Any, lost: list[dict[str, Any]]) -> Iterable[Hole]:
    low, high = int(seqs[0]), int(seqs[-1])
    before, beyond = low, high
    for fault in lost:
        if fault["seq"] is not None:
            before, beyond = min(before, fault["seq"]), max(beyond, fault["seq"])
        elif fault["after_seq"] is not None:
            beyond = max(beyond, fault["after_seq"] + 1)
        elif fault["before_seq"] is not None:
            before = min(before, fault["before_seq"] - 1)
    if before < low:
        yield start, Kind.DATA_CORRUPTION, f"gap:{epoch}:{before}-{low - 1}"
    for i in np.flatnonzero(np.diff(seqs) > 1):
        yield start + int(i) + 1, Kind.DATA_GAP, f"gap:{epoch}:{int(seqs[i]) + 1}-{int(seqs[i + 1]) - 1}"
    if beyond > high:
        yield start + len(seqs), Kind.DATA_CORRUPTION, f"gap:{epoch}:{high + 1}-{beyond}"


def _unread_places(epoch: int, start: int, seqs: Any, lost: list[dict[str, Any]]) -> Iterable[Hole]:
    for fault in lost:
        own, after, before = fault["seq"], fault["after_seq"], fault["before_seq"]
        if own is not None:
            at = int(np.searchsorted(seqs, own))
            filled = at < len(seqs) and seqs[at] == own
        elif after is not None:
            at = int(np.searchsorted(seqs, after, side="right"))
            filled = before is not None and at < len(seqs) and seqs[at] < before
        elif before is not None:
            at = int(np.searchsorted(seqs, before))
            filled = at > 0 and seqs[at - 1] == before - 1
        else:
            continue
        if not filled:
            yield start + at, Kind.DATA_CORRUPTION, f"gap:{epoch}:at-{own if own is not None else f'{after}/{before}'}"


def _merged(holes: Iterable[Hole]) -> list[Hole]:
    """Holes with no record between them are one; a gap of numbers gives it its name before an unread line does."""
    by_row: dict[int, Hole] = {}
    for hole in sorted(holes, key=lambda h: (h[0], h[1] != Kind.DATA_GAP, h[2])):
        by_row.setdefault(hole[0], hole)
    return list(by_row.values())


def _with_holes(pump_id: str, rows: pa.Table, conflicts: dict[int, list[str]], holes: list[Hole]) -> pa.Table:
    columns = {name: rows.column(name) for name in EVENTS.names if name in rows.column_names}
    if conflicts:
        detail = rows.column("detail").to_pylist()
        for row, others in conflicts.items():
            detail[row] = detail[row][:-1] + ("," if detail[row] != "{}" else "") + f'"conflicts_with":{dump_detail({"_": others})[5:]}'
        columns["detail"] = pa.array(detail, pa.string())
    columns["conflict"] = pa.array([row in conflicts for row in range(rows.num_rows)], pa.bool_())
    events = pa.table({name: columns[name] for name in EVENTS.names}, schema=EVENTS)
    if not holes:
        return events.combine_chunks()
    epochs = [int(key.split(":")[1]) for _, _, key in holes]
    gaps = [hole_row(pump_id, epoch, kind, key) for epoch, (_, kind, key) in zip(epochs, holes, strict=True)]
    at = np.concatenate((np.arange(events.num_rows), np.array([row - 0.5 for row, _, _ in holes])))
    both = pa.concat_tables([events, pa.Table.from_pylist(gaps, schema=EVENTS)])
    return both.take(pa.array(np.argsort(at, kind="stable"))).combine_chunks()


def hole_row(pump_id: str, log_epoch: int, kind: Kind, record_key: str, detail: str = "{}") -> dict[str, Any]:
    """The EVENTS row of a hole: it has a place, and neither time nor bytes."""
    return {
        "event_id": event_id(pump_id, record_key),
        "pump_id": pump_id,
        "log_epoch": log_epoch,
        "record_key": record_key,
        "kind": kind.value,
        "native_code": "",
        "detail": detail,
        "raw": b"",
        "conflict": False,
    }


def _placed(events: pa.Table, anchors: pa.Table) -> tuple[PlacedAnchor, ...]:
    """The anchors whose record is there, each once, in log order."""
    if not anchors.num_rows:
        return ()
    row_of = {key: row for row, key in enumerate(events.column("record_key").to_pylist())}
    clocks = anchors.column("pump_clock").cast(pa.int64()).to_pylist()
    utcs = anchors.column("utc").cast(pa.int64()).to_pylist()
    trips = anchors.column("round_trip_ms").to_pylist()
    placed = {
        PlacedAnchor(row_of[after], clock, utc, trip)
        for after, clock, utc, trip in zip(anchors.column("after").to_pylist(), clocks, utcs, trips, strict=True)
        if after in row_of
    }
    return tuple(sorted(placed, key=lambda a: (a.after, a.utc_ms, a.pump_clock_ms, a.round_trip_ms or 0)))
