"""Records of 26 bytes in either byte order, decoded many at once, to columns: `decode`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from devices import sequence
from devices.contract import ANCHORS, FAULTS, RECORDS, Capture, Decoded, Kind, anchor_row, fault_id, table
from devices.tandem.events import AMOUNT, EVENTS, FLOAT_MAX, SAYS, SIGNED, Event, Fields, Said
from devices.tandem.frames import SIZE, Cut, cut_of

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_EPOCH_S = 1_199_145_600
LITTLE = np.dtype([("type", "<u2"), ("seconds", "<u4"), ("seq", "<u4"), ("words", "<u4", 4)])
BIG = LITTLE.newbyteorder(">")
NONE = -(2**63)


_SEQ_MAX = 2**22
"""Some nine years of records: a bare record with a greater number is damaged."""
_YEAR_2012, _YEAR_2042 = 126_230_400, 1_072_915_200


def looks_of(rows: npt.NDArray[Any]) -> Ints:
    """How much each record looks like one, 0..3: its type, its time, its number. This compares byte orders; see `_can_be`."""
    kind, event = rows["type"] < 0x2000, rows["type"] & 0x0FFF
    time = (rows["seconds"] >= _YEAR_2012) & (rows["seconds"] < _YEAR_2042)
    return np.asarray((kind & (event > 0) & (event < 512)).astype(np.int64) + time + (rows["seq"] < _SEQ_MAX))


def _can_be(rows: npt.NDArray[Any]) -> Bools:
    """Whether a record without a CRC can be one: sources 0 and 1 and events up to 500 were seen; a lost clock begins at 2008."""
    event = rows["type"] & 0x0FFF
    return np.asarray((rows["type"] < 0x2000) & (event > 0) & (event < 1024) & (rows["seconds"] < _YEAR_2042) & (rows["seq"] < _SEQ_MAX))


def rows_of(cut: Cut) -> tuple[npt.NDArray[Any], Bools, str, str]:
    """The records in their byte order, which of them can be read, and why the others cannot: code and message."""
    proved = np.array(cut.proved, dtype=np.bool_)
    little, big = (np.frombuffer(bytes(cut.records), order) for order in (LITTLE, BIG))
    scores = [int(looks_of(rows[~proved]).sum()) for rows in (little, big)]
    if proved.any() or scores[0] > scores[1]:
        rows = little
    elif scores[1] > scores[0]:
        rows = big
    else:
        return little, proved, "byte_order", "the records can be read in neither byte order, or in both"
    return rows, proved | _can_be(rows), "record", "the bytes cannot be a record: its type, time or number is out of range"


def decode(capture: Capture) -> Decoded:
    """Records, faults and the anchor of one capture."""
    cut, sha = cut_of(capture.data), capture.sha256
    rows, good, code, why = rows_of(cut)
    for first, last in _runs(~good):
        raw = bytes(cut.records[first * SIZE : last * SIZE])
        cut.broken.append((first, cut.offsets[first], raw, code, why))
    here = np.flatnonzero(good)
    records, sound = _records(capture, sha, rows[here], [cut.offsets[i] for i in here.tolist()], _raw(cut, here))
    seqs = rows["seq"][here].astype(np.int64)
    rises = int(np.sign(np.diff(seqs)).sum()) if len(seqs) > 1 else 0
    falling = rises < 0 or (rises == 0 and cut.falling)
    faults = [_lost(broken, here, seqs, falling=falling) for broken in cut.broken]
    for i in np.flatnonzero(~sound).tolist():
        faults.append(
            {
                "offset": cut.offsets[here[i]],
                "code": "value",
                "message": f"record {seqs[i]} of event {int(rows['type'][here[i]]) & 0x0FFF} holds a value that cannot be",
                "seq": int(seqs[i]),
                "hole": True,
                "raw": bytes(cut.records[here[i] * SIZE : (here[i] + 1) * SIZE]),
            }
        )
    anchors = []
    if capture.anchor is not None:
        after = capture.anchor.after or _newest(seqs, faults)
        if after is None:
            faults.append({"offset": 0, "code": "anchor", "message": "the clock was read behind no record", "hole": False, "raw": b""})
        else:
            anchors.append(anchor_row(capture, capture.anchor, after, sha256=sha))
    for fault in faults:
        place = f"0:{fault.get('seq')}:{fault.get('after_seq')}:{fault.get('before_seq')}"
        fault |= {"capture": sha, "part": capture.part, "pump_id": capture.pump_id, "log_epoch": 0}
        fault["fault_id"] = fault_id(capture.pump_id, fault["code"], place, fault["raw"])
    faults.sort(key=lambda one: one["offset"])
    return Decoded(records, table(FAULTS, faults), table(ANCHORS, anchors))


def _runs(flags: Bools) -> list[tuple[int, int]]:
    """First and behind-the-last index of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8))).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _lost(broken: tuple[int, int, bytes, str, str], here: Ints, seqs: Ints, *, falling: bool) -> dict[str, Any]:
    """The fault of bytes that gave no record, between the numbers of the readable neighbours in its capture."""
    at, offset, raw, code, why = broken
    split = int(np.searchsorted(here, at))
    sides = [int(seqs[split - 1]) if split > 0 else None, int(seqs[split]) if split < len(seqs) else None]
    if None not in sides and sides[0] != sides[1]:
        sides.sort(key=lambda seq: seq or 0)
    elif falling:
        sides.reverse()
    return {"offset": offset, "code": code, "message": why, "after_seq": sides[0], "before_seq": sides[1], "hole": True, "raw": raw}


def _newest(seqs: Ints, faults: Sequence[Mapping[str, Any]]) -> str | None:
    """The key of the last record of a capture, read or not: behind it the clock was read."""
    if not len(seqs):
        return None
    highest = int(seqs.max())
    beyond = sum(max(1, len(f["raw"]) // SIZE) for f in faults if f.get("after_seq") == highest and f.get("before_seq") is None)
    return sequence.key_of(0, highest + beyond)


def _raw(cut: Cut, here: Ints) -> pa.Array:
    whole = pa.Array.from_buffers(pa.binary(SIZE), len(cut.offsets), [None, pa.py_buffer(bytes(cut.records))])
    return (whole if len(here) == len(cut.offsets) else whole.take(pa.array(here))).cast(pa.binary())


def _field(words: npt.NDArray[Any], offset: int, size: int | str) -> npt.NDArray[Any]:
    """A field by its big-endian offset, from words of the machine's order: floats to six decimals, the pump's own precision."""
    word = words[:, offset >> 2]
    if isinstance(size, str):
        shown = np.ascontiguousarray(word).view(np.float32).astype(np.float64)
        return np.asarray(np.round(shown, 6) + 0.0)
    return np.asarray((word.astype(np.int64) >> 8 * (4 - (offset & 3) - size)) & (256**size - 1))


def _possible(event: Event, fields: Fields) -> Bools:
    """Whether all fields of the records of an event hold what they can hold."""
    checks = [fields[name] <= most for name, most in event.most.items()]
    for name, (_, kind) in event.fields.items():
        if kind == AMOUNT:
            checks.append((fields[name] >= 0) & (fields[name] <= FLOAT_MAX))
        elif kind == SIGNED:
            checks.append(np.abs(fields[name]) <= FLOAT_MAX)
    return np.asarray(np.logical_and.reduce(checks)) if checks else np.asarray(np.True_)


def _details(fields: Fields) -> list[str]:
    """JSON of each record's fields, with sorted keys."""
    names = sorted(fields)
    pattern = "{" + ",".join(f'"{name}":%s' for name in names) + "}"
    return [pattern % values for values in zip(*(fields[name].tolist() for name in names), strict=True)]


AMOUNTS = ("rate_ml_h", "rate_dose_h", "volume_ml", "programmed_ml", "dose", "programmed_dose")
_WORDS = ("source", "reason", "target", "at", "alarm_class", "stops_delivery", "dose_unit")


def _records(capture: Capture, sha: str, rows: npt.NDArray[Any], offsets: list[int], raw: pa.Array) -> tuple[pa.Table, Bools]:
    """RECORDS of readable records; and which of them hold possible values: the others are left out."""
    size = len(rows)
    events = (rows["type"] & 0x0FFF).astype(np.int64)
    words = rows["words"].astype(np.uint32)
    time = (rows["seconds"].astype(np.int64) + _EPOCH_S) * 1000
    step = np.full(size, NONE, dtype=np.int64)
    amounts = {name: np.full(size, np.nan) for name in AMOUNTS}
    said: dict[str, npt.NDArray[Any]] = {name: np.full(size, None, dtype=object) for name in _WORDS}
    kind, detail = np.full(size, Kind.OTHER.value, dtype=object), np.full(size, "{}", dtype=object)
    sound = np.ones(size, dtype=np.bool_)
    columns: dict[str, npt.NDArray[Any]] = {**amounts, **said, "kind": kind, "step_ms": step}
    for number in np.unique(events).tolist():
        if (event := EVENTS.get(number)) is None:
            continue
        mine = np.flatnonzero(events == number)
        fields = {name: _field(words[mine], *place) for name, place in event.fields.items()}
        sound[mine] = _possible(event, fields)
        fixed = {"kind": event.kind, "source": event.source, "target": event.target, "at": event.at}
        values: Said = {name: value.value for name, value in fixed.items() if value is not None}
        if number in SAYS:
            values |= SAYS[number](fields)
        for name, value in values.items():
            columns[name][mine] = value
        if fields:
            detail[mine] = _details(fields)
    moved = step != NONE
    old = np.where(moved, time - step, time)
    seqs = pa.array(rows["seq"].astype(np.int64))
    found: dict[str, pa.Array] = {
        "capture": pa.repeat(pa.scalar(sha), size),
        "part": pa.repeat(pa.scalar(capture.part, pa.string()), size),
        "offset": pa.array(offsets, pa.int64()),
        "pump_id": pa.repeat(pa.scalar(capture.pump_id), size),
        "log_epoch": pa.repeat(pa.scalar(0, pa.int32()), size),
        "record_key": pc.binary_join_element_wise(pa.scalar(sequence.key_of(0, 0)[:-1]), seqs.cast(pa.string()), ""),
        "seq": seqs,
        "contiguous": pa.repeat(pa.scalar(True), size),
        "kind": pa.array(kind, pa.string()),
        "pump_time": pa.array(old).cast(pa.timestamp("ms")),
        "new_time": pa.array(time, mask=~moved).cast(pa.timestamp("ms")),
        "native_code": pa.array(events).cast(pa.string()),
        "detail": pa.array(detail, pa.string()),
        "raw": raw,
        **{name: pa.array(values, from_pandas=True) for name, values in amounts.items()},
        **{name: pa.array(values, RECORDS.field(name).type) for name, values in said.items()},
    }
    whole = pa.table({f.name: found[f.name] if f.name in found else pa.nulls(size, f.type) for f in RECORDS}, schema=RECORDS)
    return (whole if sound.all() else whole.filter(pa.array(sound))), sound
