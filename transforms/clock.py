"""Time (docs/semantics.md §3): stretches, elapsed time and UTC of the log of one pump.

Pump clocks lie. Durations are differences of elapsed time; elapsed time runs on over clock changes that the log tells, and
nothing is carried over a cut. UTC comes from clock anchors alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from devices.contract import HOLES, AlarmClass, Kind, Log

Ints = npt.NDArray[np.int64]

NONE = -(2**63)
"""Stands for no time in an array of milliseconds."""

START, HOLE, CLOCK = 0, 1, 2
"""What a stretch begins after: the start of the log, a hole, a cut of the clock."""

EXACT, CORRECTED, UNKNOWN = 0, 1, 2
QUALITIES = ("exact", "corrected", "unknown")
_METHODS = ("anchor", "anchor and clock changes", "between two anchors", "anchors disagree", "no anchor")
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockPolicy:
    """The policies that shape time: `clock_step_s`, and `anchor_drift` as seconds a day plus seconds."""

    clock_step_s: float = 60
    drift_s_per_day: float = 60
    drift_s: float = 120


@dataclass(frozen=True, slots=True)
class Timeline:
    """Of every event of a log, by row: its stretch (-1: a hole), elapsed and UTC time in ms (`NONE`: not known), quality, method, bound.

    By stretch: its first and last row, its end on elapsed time (its last event, or an anchor read after it), what it begins
    after. `contradicted`: (stretch, from, to) on elapsed time between two anchors that disagree.
    """

    stretch: Ints
    elapsed: Ints
    utc: Ints
    quality: Ints
    method: Ints
    bound_s: npt.NDArray[np.float64]
    first: Ints
    last: Ints
    end: Ints
    after: Ints
    contradicted: tuple[tuple[int, int, int], ...]

    def method_name(self, row: int) -> str:
        """How UTC of this event was found."""
        return _METHODS[self.method[row]]


def milliseconds(column: pa.ChunkedArray | pa.Array) -> Ints:
    """A timestamp column as int64 milliseconds, `NONE` where it is null."""
    return np.asarray(pc.fill_null(column.cast(pa.int64()), NONE).to_numpy(zero_copy_only=False), dtype=np.int64)


def place(log: Log, policy: ClockPolicy) -> Timeline:
    """The timeline of one pump's log."""
    events = log.events
    kinds = np.asarray(events.column("kind").to_pylist(), dtype=object)
    is_hole = np.isin(kinds, [k.value for k in HOLES])
    change = kinds == Kind.CLOCK_CHANGE.value
    loss = change & (np.asarray(events.column("reason").to_pylist(), dtype=object) == "loss")
    lost = (kinds == Kind.ALARM_RAISED.value) & (
        np.asarray(events.column("alarm_class").to_pylist(), dtype=object) == AlarmClass.CLOCK_LOST.value
    )
    anchors = log.anchors
    stretch, elapsed, segment, first, last, end, after, anchor_at = _run(
        is_hole,
        change & ~loss,
        loss | lost,
        kinds == Kind.BOLUS_DELIVERED.value,
        milliseconds(events.column("pump_time")),
        milliseconds(events.column("new_time")),
        np.asarray(events.column("native_ms").fill_null(NONE).to_numpy(), dtype=np.int64),
        np.array([a.after for a in anchors], dtype=np.int64),
        np.array([a.pump_clock_ms for a in anchors], dtype=np.int64),
        int(policy.clock_step_s * 1000),
    )
    size = events.num_rows
    utc = np.full(size, NONE, dtype=np.int64)
    quality = np.full(size, UNKNOWN, dtype=np.int64)
    method = np.full(size, 4, dtype=np.int64)
    bound = np.full(size, np.nan)
    contradicted: list[tuple[int, int, int]] = []
    for number in range(len(first)):
        mine = [i for i in range(len(anchors)) if anchor_at[i] != NONE and stretch[anchors[i].after] == number]
        if mine:
            rows = np.arange(first[number], last[number] + 1)
            found = _fix(log, mine, anchor_at, elapsed, segment, rows, policy)
            utc[rows], quality[rows], method[rows], bound[rows], broken = found
            contradicted += [(number, low, high) for low, high in broken]
    return Timeline(stretch, elapsed, utc, quality, method, bound, first, last, end, after, tuple(contradicted))


def _run(
    is_hole: Any, change: Any, lost: Any, bolus: Any, time: Ints, new: Ints, native: Ints, anchor_after: Ints, anchor_clock: Ints, step: int
) -> tuple[Ints, Ints, Ints, Ints, Ints, Ints, Ints, Ints]:
    """The clock itself, on plain arrays: one pass in log order.

    `mark` is the highest reading of the axis that counts (the family's own elapsed time, else the printed clock), `shown` the
    last printed reading. A reading below `mark` by up to `step` counts as no time until the clock has passed where it was.
    """
    size = len(time)
    stretch = np.full(size, -1, dtype=np.int64)
    elapsed = np.full(size, NONE, dtype=np.int64)
    segment = np.zeros(size, dtype=np.int64)
    anchor_at = np.full(len(anchor_after), NONE, dtype=np.int64)
    first, last, end, after = (np.zeros(size, dtype=np.int64) for _ in range(4))
    own = bool((native != NONE).any())
    axis = native if own else time
    count, now, mark, shown, piece, cut, next_anchor = 0, 0, NONE, NONE, 0, START, 0
    open_stretch = False
    for row in range(size):
        if is_hole[row]:
            cut, open_stretch = HOLE, False
        else:
            reading = axis[row]
            if open_stretch:
                back = reading != NONE and mark != NONE and reading < mark - step and not bolus[row]
                if lost[row] or back:
                    cut, open_stretch = CLOCK, False
            if not open_stretch:
                if lost[row] and cut == START:
                    cut = CLOCK
                first[count], after[count] = row, cut
                count += 1
                now, mark, shown, open_stretch = 0, NONE, NONE, True
                piece += 1
            stretch[row] = count - 1
            if reading == NONE or mark == NONE:
                elapsed[row] = now
            elif reading < mark:
                elapsed[row] = max(0, now - (mark - reading)) if bolus[row] else now
            else:
                now += reading - mark
                elapsed[row] = now
            if reading != NONE:
                mark = max(mark, reading)
            if time[row] != NONE and not (bolus[row] and shown != NONE and time[row] < shown):
                shown = time[row]
            segment[row] = piece
            if change[row] and new[row] != NONE:
                piece += 1
                shown = new[row]
                if not own:
                    mark = mark + new[row] - reading if reading != NONE else new[row]
            last[count - 1], end[count - 1] = row, now
        while next_anchor < len(anchor_after) and anchor_after[next_anchor] == row:
            if stretch[row] >= 0:
                ahead = anchor_clock[next_anchor] - shown if shown != NONE else 0
                if ahead >= -step:
                    passed = ahead if own or mark == NONE else anchor_clock[next_anchor] - mark
                    anchor_at[next_anchor] = max(now, now + passed)
                    end[count - 1] = max(end[count - 1], anchor_at[next_anchor])
                    if not own and passed > 0:
                        now, mark = anchor_at[next_anchor], anchor_clock[next_anchor]
                        shown = anchor_clock[next_anchor]
            next_anchor += 1
    return stretch, elapsed, segment, first[:count], last[:count], end[:count], after[:count], anchor_at


def _fix(
    log: Log, mine: list[int], anchor_at: Ints, elapsed: Ints, segment: Ints, rows: Ints, policy: ClockPolicy
) -> tuple[Ints, Ints, Ints, npt.NDArray[np.float64], list[tuple[int, int]]]:
    """UTC, quality, method and bound of the rows of one stretch from its anchors, and where two of them disagree."""
    at = np.array([anchor_at[i] for i in mine])
    utc_of = np.array([log.anchors[i].utc_ms for i in mine])
    behind = np.array([log.anchors[i].after for i in mine])
    trip = np.array([log.anchors[i].round_trip_ms or 0 for i in mine])
    piece = segment[behind] + np.array([_changed(log, row) for row in behind])
    left = np.searchsorted(behind, rows, side="left") - 1
    right = np.minimum(left + 1, len(mine) - 1)
    left = np.maximum(left, 0)
    since, span = elapsed[rows] - at[left], at[right] - at[left]
    skew = (utc_of[right] - utc_of[left]) - span
    allowed = policy.drift_s_per_day * 1000 * span / _DAY_MS + policy.drift_s * 1000
    apart = (left != right) & (np.abs(skew) > allowed)
    share = np.where(span > 0, since / np.maximum(span, 1), 0.0)
    utc = utc_of[left] + since + np.where(left != right, np.rint(share * skew), 0).astype(np.int64)
    same = (segment[rows] == piece[left]) | (segment[rows] == piece[right])
    drifted = (left != right) & (skew != 0)
    quality = np.where(apart, UNKNOWN, np.where(same & ~drifted, EXACT, CORRECTED))
    method = np.where(apart, 3, np.where(drifted, 2, np.where(same, 0, 1)))
    distance = np.minimum(np.abs(since), np.abs(elapsed[rows] - at[right]))
    bound = 1.0 + trip[left] / 2000 + policy.drift_s_per_day * distance / _DAY_MS
    pairs = [
        (int(at[i]), int(at[i + 1]))
        for i in range(len(mine) - 1)
        if abs((utc_of[i + 1] - utc_of[i]) - (at[i + 1] - at[i]))
        > policy.drift_s_per_day * 1000 * (at[i + 1] - at[i]) / _DAY_MS + policy.drift_s * 1000
    ]
    if any(low == high for low, high in pairs):
        # Two readings of one moment that disagree: one of them is false, and nothing tells which.
        apart = np.ones(len(rows), dtype=bool)
        quality, method = np.full(len(rows), UNKNOWN), np.full(len(rows), 3)
    return np.where(apart, NONE, utc), quality, method, np.where(apart, np.nan, bound), pairs


def _changed(log: Log, row: int) -> int:
    """1 if the record behind which an anchor was read is itself a clock change: the anchor is of the clock after it."""
    return int(log.events.column("kind")[int(row)].as_py() == Kind.CLOCK_CHANGE.value and log.events.column("new_time")[int(row)].is_valid)
