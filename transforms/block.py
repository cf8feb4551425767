"""The logs of several pumps as plain arrays: what the kernels of clocks, sources and sessions work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from devices.contract import EVENTS, AlarmClass, Kind, Log, Source

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

NONE = -(2**63)
"""Stands for no time in an array of milliseconds."""

KIND = {kind.value: code for code, kind in enumerate(Kind)}
SOURCES = tuple(s.value for s in Source if s is not Source.KVO)
KVO = len(SOURCES)
SOURCE = {name: code for code, name in enumerate((*SOURCES, Source.KVO.value))}
ANY = -1
"""The source of a stop that names none."""


def milliseconds(column: pa.ChunkedArray) -> Ints:
    """A timestamp column as int64 milliseconds, `NONE` where it is null."""
    return np.asarray(pc.fill_null(column.cast(pa.int64()), NONE).to_numpy(), dtype=np.int64)


def timestamps(ms: Ints, kind: pa.DataType) -> pa.Array:
    """The inverse of `milliseconds`."""
    return pa.array(ms, pa.int64(), mask=ms == NONE).cast(kind)


def coded(column: pa.ChunkedArray, codes: dict[str, int], *, default: int = -1) -> Ints:
    """A column of words as their codes; `default` for null and for every other word."""
    parts = [np.empty(0, dtype=np.int64)]
    for chunk in column.chunks:
        if chunk.null_count == len(chunk):
            parts.append(np.full(len(chunk), default, dtype=np.int64))
            continue
        encoded = chunk if isinstance(chunk, pa.DictionaryArray) else chunk.dictionary_encode()
        words = np.array([codes.get(word, default) for word in encoded.dictionary.to_pylist()] + [default], dtype=np.int64)
        parts.append(words[pc.fill_null(encoded.indices, len(words) - 1).to_numpy()])
    return np.concatenate(parts)


def numbers(column: pa.ChunkedArray) -> Floats:
    """A column of numbers, NaN where it is null."""
    if column.null_count == len(column):
        return np.full(len(column), np.nan)
    return np.asarray(column.cast(pa.float64()).to_numpy())


def booleans(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """A column of booleans, false where it is null."""
    return np.asarray(pc.fill_null(column, False).to_numpy(), dtype=np.bool_)


@dataclass(frozen=True)
class Block:
    """The events (EVENTS) of pumps one after the other, each in the order of its log.

    `bounds`: where each pump begins, and the end. Anchors by pump and place: `after` is a row of `events`, times in ms (the round
    trip 0 where it is not known), `anchor_bounds` as `bounds`.
    """

    events: pa.Table
    pumps: tuple[str, ...]
    bounds: Ints
    after: Ints
    clock: Ints
    utc: Ints
    trip: Ints
    anchor_bounds: Ints
    gaps_visible: tuple[bool, ...]

    @classmethod
    def of(cls, pumps: Sequence[str], logs: Sequence[Log]) -> Block:
        """The logs of these pumps; those without an event are left out."""
        there = [(pump, log) for pump, log in zip(pumps, logs, strict=True) if log.events.num_rows]
        bounds = np.cumsum([0, *(log.events.num_rows for _, log in there)], dtype=np.int64)
        placed = [(first, anchor) for first, (_, log) in zip(bounds.tolist(), there, strict=False) for anchor in log.anchors]
        return cls(
            events=pa.concat_tables([log.events for _, log in there] or [EVENTS.empty_table()]),
            pumps=tuple(pump for pump, _ in there),
            bounds=bounds,
            after=np.array([first + a.after for first, a in placed], dtype=np.int64),
            clock=np.array([a.pump_clock_ms for _, a in placed], dtype=np.int64),
            utc=np.array([a.utc_ms for _, a in placed], dtype=np.int64),
            trip=np.array([a.round_trip_ms or 0 for _, a in placed], dtype=np.int64),
            anchor_bounds=np.cumsum([0, *(len(log.anchors) for _, log in there)], dtype=np.int64),
            gaps_visible=tuple(log.gaps_visible for _, log in there),
        )

    @property
    def rows(self) -> int:
        """How many events there are."""
        return int(self.events.num_rows)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of its events."""
        return self.events.column(name)

    def words(self, name: str) -> pa.Array:
        """A column of strings or bytes in one piece."""
        if name not in self._whole:
            column = self.column(name)
            self._whole[name] = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        return self._whole[name]

    @cached_property
    def _whole(self) -> dict[str, pa.Array]:
        """The columns that were asked for in one piece."""
        return {}

    @cached_property
    def kind(self) -> Ints:
        """Code of each kind (`KIND`)."""
        return coded(self.column("kind"), KIND)

    @cached_property
    def source(self) -> Ints:
        """Code of each source (`SOURCE`), -1 where none is told."""
        return coded(self.column("source"), SOURCE)

    @cached_property
    def pump_time(self) -> Ints:
        """The printed clock, ms."""
        return milliseconds(self.column("pump_time"))

    def is_one(self, name: str, *words: str) -> npt.NDArray[np.bool_]:
        """Where a column of words is one of these."""
        return np.equal(coded(self.column(name), dict.fromkeys(words, 1), default=0), 1)

    @cached_property
    def clock_lost(self) -> npt.NDArray[np.bool_]:
        """Where a record shows that the clock was lost."""
        change = (self.kind == KIND[Kind.CLOCK_CHANGE.value]) & self.is_one("reason", "loss")
        return np.asarray(change | (self.kind == KIND[Kind.ALARM_RAISED.value]) & self.is_one("alarm_class", AlarmClass.CLOCK_LOST.value))
