"""`decode`: the values of one capture side by side, sorted into records and faults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import isnan
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from devices import sequence
from devices.contract import ANCHORS, FAULTS, RECORDS, Capture, Decoded, anchor_row, dump_detail, fault_id, parted, table
from devices.ids.lines import numbers_of, part_of, read_lines
from devices.ids.records import (
    AMOUNT,
    ANNUNCIATION,
    ANNUNCIATIONS,
    CORRUPTION,
    CRC,
    HEAD,
    KEPT,
    LOST,
    MEDTRONIC,
    MOST,
    NUMBER,
    RATE,
    SAYS,
    STANDARD,
    TIME,
    U8,
    U16,
    U32,
    VENDOR,
    VENDOR16,
    Fields,
    Record,
    Said,
    Words,
    profile_of,
)
from devices.ids.values import Bools, Ints, crcs, days_of, eleven_073, times_of


@dataclass(frozen=True, slots=True)
class _Heads:
    """The values of a capture side by side: all bytes (and some more, so that no read runs over), start and length of each, heads."""

    flat: npt.NDArray[np.uint8]
    starts: Ints
    lengths: Ints
    codes: Ints
    seqs: Ints
    offsets: Ints

    def rows(self, mine: Ints, first: int, size: int) -> npt.NDArray[np.uint8]:
        """So many bytes of each of these values, from `first` on."""
        return np.asarray(self.flat[(self.starts[mine] + first)[:, None] + np.arange(size)])


def _heads(values: Sequence[bytes]) -> _Heads:
    lengths = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
    starts = np.cumsum(lengths) - lengths
    flat = np.frombuffer(b"".join(values) + bytes(64), dtype=np.uint8)
    rows = flat[starts[:, None] + np.arange(HEAD)]
    heads = np.ascontiguousarray(rows).view(np.dtype([("type", "<u2"), ("seq", "<u4"), ("offset", "<u2")])).reshape(-1)
    return _Heads(flat, starts, lengths, heads["type"].astype(np.int64), heads["seq"].astype(np.int64), heads["offset"].astype(np.int64))


class _Decoder:
    """One capture: sorts its values into records and faults."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.profile = profile_of(capture.model)
        self.read = read_lines(capture.data)
        self.heads = _heads(self.read.values)
        size = len(self.read.values)
        self.why: dict[int, tuple[str, str]] = {}
        self.kind = np.full(size, None, dtype=object)
        self.detail = np.full(size, "{}", dtype=object)
        self.amounts = {name: np.full(size, np.nan) for name in _AMOUNTS}
        self.words = {name: np.full(size, None, dtype=object) for name in _WORDS}
        self.new_ms = np.zeros(size, dtype=np.int64)
        self.has_new = np.zeros(size, dtype=np.bool_)

    def decoded(self) -> Decoded:
        checked = self._checked()
        lost = (self.heads.seqs[checked] == LOST) & (self.heads.codes[checked] != CORRUPTION)
        self._fail(checked[lost], "number", "the record has no sequence number")
        checked = checked[~lost]
        known = {**STANDARD, **(MEDTRONIC if self.profile.medtronic else {})}
        for code in np.unique(self.heads.codes[checked]).tolist():
            mine = checked[self.heads.codes[checked] == code]
            record = known.get(code) or (KEPT if code in VENDOR else None)
            if record is None:
                self._fail(mine, "type", f"{code:04X} is no type of record")
            else:
                self._take(code, record, mine)
        return self._tables()

    def _checked(self) -> Ints:
        """The values that are long enough and, with E2E, whose CRC holds."""
        least = HEAD + (CRC if self.profile.crc else 0)
        good = self.heads.lengths >= least
        self._fail(np.flatnonzero(~good), "length", f"a record has {least} bytes or more")
        if not self.profile.crc:
            return np.flatnonzero(good)
        for length in np.unique(self.heads.lengths[good]).tolist():
            mine = np.flatnonzero(good & (self.heads.lengths == length))
            rows = self.heads.rows(mine, 0, length)
            told = rows[:, -2].astype(np.uint16) | rows[:, -1].astype(np.uint16) << 8
            bad = mine[crcs(rows[:, :-2]) != told]
            good[bad] = False
            self._fail(bad, "crc", "the CRC of a record does not hold")
        return np.flatnonzero(good)

    def _fail(self, rows: Ints, code: str, why: str) -> None:
        for row in rows.tolist():
            self.why[row] = (code, why)

    def _take(self, code: int, record: Record, mine: Ints) -> None:
        """Records of one type, those of equal flags together, for they have one layout."""
        if not record.varies:
            self._take_alike(code, record, mine, 0xFF)
            return
        flags = self.heads.flat[self.heads.starts[mine] + HEAD]
        for value in np.unique(flags).tolist():
            self._take_alike(code, record, mine[flags == value], value)

    def _take_alike(self, code: int, record: Record, mine: Ints, flags: int) -> None:
        there = _there(record, flags)
        layout = _layout(record, flags, wide=self.profile.wide)
        size = self.heads.lengths[mine] - HEAD - (CRC if self.profile.crc else 0)
        fits = size >= layout.itemsize if record.tail else size == layout.itemsize
        self._fail(mine[~fits], "length", f"a record {code:04X} has {layout.itemsize} bytes of data{' or more' if record.tail else ''}")
        mine = mine[fits]
        if not len(mine):
            return
        fields: dict[str, npt.NDArray[Any]] = {}
        sound = np.ones(len(mine), dtype=np.bool_)
        if layout.itemsize:
            rows = np.ascontiguousarray(self.heads.rows(mine, HEAD, layout.itemsize)).view(layout).reshape(-1)
            for name, kind in there:
                fields[name], possible = _value(rows[name], kind)
                sound &= possible
        if code == 0x00FF:
            sound &= days_of(fields["year"], fields["month"], fields["day"])[1]
        self._fail(mine[~sound], "value", f"a record {code:04X} holds a value that cannot be")
        mine, fields = mine[sound], {name: values[sound] for name, values in fields.items()}
        if not len(mine):
            return
        said: Said = {"kind": record.kind.value, **record.fixed, **(SAYS[code](fields) if fields and code in SAYS else {})}
        if "new_ms" in said:
            self.new_ms[mine], self.has_new[mine] = said.pop("new_ms"), True
        for name, values in said.items():
            column = self.kind if name == "kind" else self.amounts[name] if name in self.amounts else self.words[name]
            column[mine] = values
        if fields:
            self.detail[mine] = _details(fields, dict(there))

    def _tables(self) -> Decoded:
        """RECORDS, FAULTS and ANCHORS of what was found."""
        heads, size = self.heads, len(self.read.values)
        good = np.array([row not in self.why for row in range(size)], dtype=np.bool_)
        numbered = good & (heads.seqs != LOST)
        place = _Places(np.flatnonzero(numbered), heads.seqs[numbered], self.capture.part)
        faults: list[dict[str, Any]] = []
        for row in np.flatnonzero(good & ~numbered).tolist():
            after, before = place.around(row)
            if after is None and before is None:
                self.why[row] = ("place", "data corruption without a sequence number, received beside no other record")
                good[row] = False
            else:
                self.detail[row] = dump_detail({"after": after, "before": before})
        for row, (code, why) in self.why.items():
            own = int(heads.seqs[row]) if code in ("type", "value") or (code == "length" and heads.lengths[row] >= HEAD) else None
            sides = (None, None) if own is not None else place.around(row)
            faults.append(self._fault(self.read.lines[row], self.read.values[row], code, why, own, sides))
        for row, line, raw in self.read.broken:
            faults.append(self._fault(line, raw, "line", "the line is no value of a characteristic", None, place.around(row - 0.5)))
        here = np.flatnonzero(good)
        anchors: list[dict[str, Any]] = []
        if (anchor := self.capture.anchor) is not None:
            newest = int(heads.seqs[numbered].max()) if numbered.any() else None
            behind = anchor.after or (None if newest is None else sequence.key_of(0, newest))
            if behind is None:
                why = "the clock was read behind no record"
                faults.append(self._fault(0, b"", "anchor", why, None, (None, None)) | {"hole": False})
            else:
                anchors.append(anchor_row(self.capture, anchor, behind))
        for fault in faults:
            at = f"0:{fault['seq']}:{fault['after_seq']}:{fault['before_seq']}"
            fault["fault_id"] = fault_id(self.capture.pump_id, fault["code"], at, fault["raw"])
        faults.sort(key=lambda one: one["offset"])
        return Decoded(self._records(here, numbered), table(FAULTS, faults), table(ANCHORS, anchors))

    def _fault(self, line: int, raw: bytes, code: str, why: str, own: int | None, sides: tuple[int | None, int | None]) -> dict[str, Any]:
        return {
            "capture": self.capture.sha256,
            "part": self.capture.part,
            "offset": line,
            "pump_id": self.capture.pump_id,
            "log_epoch": 0,
            "code": code,
            "message": why if own is None else f"{why} (record {own})",
            "seq": own,
            "after_seq": sides[0],
            "before_seq": sides[1],
            "hole": True,
            "raw": raw,
        }

    def _records(self, here: Ints, numbered: Bools) -> pa.Table:
        size = len(here)
        seqs = pa.array(self.heads.seqs[here], mask=~numbered[here])
        keys = pc.binary_join_element_wise(pa.scalar(sequence.key_of(0, 0)[:-1]), seqs.cast(pa.string()).fill_null("lost"), "")
        values, lines = self.read.values, self.read.lines
        found: dict[str, pa.Array] = {
            "capture": pa.repeat(pa.scalar(self.capture.sha256), size),
            "part": pa.repeat(pa.scalar(self.capture.part, pa.string()), size),
            "offset": pa.array([lines[row] for row in here.tolist()], pa.int64()),
            "pump_id": pa.repeat(pa.scalar(self.capture.pump_id), size),
            "log_epoch": pa.repeat(pa.scalar(0, pa.int32()), size),
            "record_key": keys,
            "seq": seqs,
            "contiguous": pa.repeat(pa.scalar(value=True), size),
            "kind": pa.array(self.kind[here], pa.string()),
            "new_time": pa.array(self.new_ms[here], mask=~self.has_new[here]).cast(pa.timestamp("ms")),
            "native_ms": pa.array(self.heads.offsets[here] * 1000),
            "native_code": _names(self.heads.codes[here]),
            "detail": pa.array(self.detail[here], pa.string()),
            "raw": pa.array([values[row] for row in here.tolist()], pa.binary()),
            **{name: pa.array(column[here], from_pandas=True) for name, column in self.amounts.items()},
            **{name: pa.array(column[here], RECORDS.field(name).type) for name, column in self.words.items()},
        }
        return pa.table({f.name: found[f.name] if f.name in found else pa.nulls(size, f.type) for f in RECORDS}, schema=RECORDS)


_AMOUNTS = ("rate_ml_h", "rate_dose_h", "volume_ml", "programmed_ml", "dose", "programmed_dose")
_WORDS = ("source", "reason", "target", "at", "alarm_class", "stops_delivery", "dose_unit")


def _names(codes: Ints) -> pa.Array:
    """Types as four hex digits."""
    distinct, which = np.unique(codes, return_inverse=True)
    return pa.array([f"{code:04X}" for code in distinct.tolist()], pa.string()).take(pa.array(which))


def _there(record: Record, flags: int) -> list[tuple[str, str | Words]]:
    """The fields of a record with these flags."""
    return [(one[0], one[1]) for one in record.fields if len(one) == 2 or flags >> one[2] & 1]


def _layout(record: Record, flags: int, *, wide: bool) -> np.dtype[Any]:
    """How numpy reads the data of a record with these flags, of a pump whose amounts are wide or not."""
    return np.dtype([(name, *_stored(kind, wide=wide and record.wide)) for name, kind in _there(record, flags)])


def has_wide_amounts(value: bytes, *, crc: bool) -> bool | None:
    """Whether the amounts of a history value are 32 bits wide, as its length shows; None where it has none that may be, or fits neither."""
    record = STANDARD.get(int.from_bytes(value[:2], "little"))
    size = len(value) - HEAD - (CRC if crc else 0)
    if record is None or not record.wide or size <= 0:
        return None
    return next((wide for wide in (False, True) if _layout(record, value[HEAD], wide=wide).itemsize == size), None)


def _stored(kind: str | Words, *, wide: bool) -> tuple[Any, ...]:
    """How numpy reads a field: type, and how many of it where it is more than one."""
    if not isinstance(kind, str):
        return (U8,)
    if kind == TIME:
        return (U8, 7)
    if kind in (AMOUNT, RATE):
        return (U32 if wide else U16,)
    return (U16 if kind in (NUMBER, VENDOR16) else kind,)


def _value(stored: npt.NDArray[Any], kind: str | Words) -> tuple[npt.NDArray[Any], Bools]:
    """The values of a field, and which of them can be. A time is in ms since 1970."""
    if not isinstance(kind, str):
        known = np.zeros(256, dtype=np.bool_)
        known[list(kind)] = True
        return stored, known[stored]
    if kind == TIME:
        return times_of(stored.astype(np.int64))
    if kind == VENDOR16:
        return stored, np.isin(stored, list(ANNUNCIATIONS)) | ((stored >= VENDOR.start) & (stored < VENDOR.stop))
    if kind in (NUMBER, AMOUNT, RATE):
        values, possible = eleven_073(stored, 24 if stored.dtype.itemsize == 4 else 12)
        if kind != NUMBER:
            possible &= np.isnan(values) & (kind != RATE) | (values >= 0) & (values <= MOST)
        return values, possible
    return stored, np.ones(len(stored), dtype=np.bool_)


def _details(fields: Fields, kinds: Mapping[str, str | Words]) -> list[str]:
    """JSON of each record's fields, with sorted keys; what is no number is null."""
    columns = []
    for name in sorted(fields):
        values, kind = fields[name], kinds[name]
        if kind == VENDOR16:
            columns.append([f'"{ANNUNCIATION.get(value, f"{value:04X}")}"' for value in values.tolist()])
        elif not isinstance(kind, str):
            columns.append([f'"{kind[value]}"' for value in values.tolist()])
        elif kind == TIME:
            columns.append([f'"{text}"' for text in np.datetime_as_string(values.astype("datetime64[ms]"), unit="s").tolist()])
        elif values.dtype.kind == "f" and np.isnan(values).any():
            columns.append(["null" if isnan(value) else repr(value) for value in values.tolist()])
        else:
            columns.append(values.tolist())
    pattern = "{" + ",".join(f'"{name}":%s' for name in sorted(fields)) + "}"
    return [pattern % row for row in zip(*columns, strict=True)]


class _Places:
    """The numbers of the readable neighbours of a place in a capture; at its ends those beside the range that its part names."""

    def __init__(self, rows: Ints, seqs: Ints, part: str | None) -> None:
        self._rows, self._seqs = rows, seqs
        numbers = numbers_of(part)
        self._first = numbers[0][0] - 1 if numbers else None
        self._last = numbers[-1][1] + 1 if numbers else None

    def around(self, row: float) -> tuple[int | None, int | None]:
        at = int(np.searchsorted(self._rows, row))
        after = int(self._seqs[at - 1]) if at > 0 else self._first
        return after, int(self._seqs[at]) if at < len(self._rows) else self._last


def decode(capture: Capture) -> Decoded:
    """Records, faults and the anchor of one capture. `offset` is a line number, `native_ms` the record's own offset in ms."""
    return _Decoder(capture).decoded()


def split(capture: Capture, size: int) -> list[Capture]:
    """The capture as captures of whole lines, each of at most `size` bytes, cut between two records that can be read.

    The anchor of each names the record behind which the clock was read; the part of each names the records that it has. What else the
    part of the capture names - numbers without a record - is the first one's. Raises InputError as Adapter.split says.
    """
    if len(capture.data) <= size:
        return [capture]
    whole = decode(capture)
    after = next(iter(whole.anchors["after"].to_pylist()), None)
    anchor = capture.anchor and replace(capture.anchor, after=after)
    pieces = parted(replace(capture, anchor=anchor, part=None), size, _borders(capture.data, whole), decode)
    named = numbers_of(capture.part)
    if not named:
        return [replace(piece, part=capture.part) for piece in pieces]
    has = [
        [seq for seq in decode(piece).records["seq"].drop_null().to_pylist() if any(low <= seq <= high for low, high in named)]
        for piece in pieces
    ]
    there = sequence.runs_of(seq for seqs in has for seq in seqs)
    ranges = [sequence.runs_of(seqs) for seqs in has]
    empty = [left for one in named for left in sequence.without(one, there)]
    ranges[0] = [(named[0][0], named[0][0]), *empty, *ranges[0]]
    ranges[-1] = [*ranges[-1], (named[-1][1], named[-1][1])]
    return [replace(piece, part=part_of(mine)) for piece, mine in zip(pieces, ranges, strict=True)]


def _borders(data: bytes, decoded: Decoded) -> Iterator[int]:
    """Where the lines begin that hold a numbered record behind another one."""
    records, faults = decoded.records, decoded.faults
    stood = [(line, seq is not None) for line, seq in zip(records["offset"].to_pylist(), records["seq"].to_pylist(), strict=True)]
    stood += [(line, False) for line in faults["offset"].to_pylist()]
    starts = list(accumulate((len(line) + 1 for line in data.split(b"\n")), initial=0))
    for (_, before), (line, numbered) in pairwise(sorted(stood)):
        if before and numbered:
            yield starts[line - 1]
