"""Time (docs/semantics.md §3): stretches, elapsed time and UTC of the logs of pumps.

Pump clocks lie. Durations are differences of elapsed time; elapsed time runs on over clock changes that the log tells, and
nothing is carried over a cut. UTC comes from clock anchors alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from devices.contract import HOLES, Kind
from transforms.block import KIND, NONE, Block, Floats, Ints, milliseconds
from transforms.compiled import Kernels

START, HOLE, CLOCK = 0, 1, 2
"""What a stretch begins after: the start of the log, a hole, a cut of the clock."""

EXACT, CORRECTED, UNKNOWN = 0, 1, 2
QUALITIES = ("exact", "corrected", "unknown")
NO_ANCHOR = "no anchor"
METHODS = ("anchor", "anchor and clock changes", "between two anchors", "anchors disagree", NO_ANCHOR, "a reviewer's decision")
_UNANCHORED, _CONFIRMED = 4, 5
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockPolicy:
    """The policies that shape time: `clock_step_s`, and `anchor_drift` as seconds a day plus seconds."""

    clock_step_s: float = 60
    drift_s_per_day: float = 60
    drift_s: float = 120


class Timeline(NamedTuple):
    """Of every event, by row: its stretch (-1: a hole), elapsed and UTC time in ms (`NONE`: not known), quality, method, bound (s);
    `early`: by how many ms the instant that a bolus names precedes its stretch, whose start then stands for it.

    By stretch: its pump, its first and last row, its end on elapsed time (its last event, or an anchor read after it), what it
    begins after. `contradicted`: (stretch, from, to) on elapsed time between two anchors that disagree, by stretch.
    """

    stretch: Ints
    elapsed: Ints
    early: Ints
    utc: Ints
    quality: Ints
    method: Ints
    bound_s: Floats
    pump: Ints
    first: Ints
    last: Ints
    end: Ints
    after: Ints
    contradicted: npt.NDArray[np.int64]


def place(block: Block, policy: ClockPolicy, confirmed: Mapping[int, int] | None = None) -> Timeline:
    """The timeline of the logs of a block.

    `confirmed`: the first row of a stretch without an anchor → UTC less its printed clock at its end, ms, as a reviewer confirmed.
    """
    change = (block.kind == KIND[Kind.CLOCK_CHANGE.value]) & ~block.clock_lost
    native = np.asarray(block.column("native_ms").fill_null(NONE).to_numpy(), dtype=np.int64)
    new = milliseconds(block.column("new_time"))
    kernel = Kernels(sys.modules[__name__], block.rows)
    size = block.rows
    rows = _Rows(
        np.isin(block.kind, [KIND[kind.value] for kind in HOLES]),
        change & (new != NONE),
        block.clock_lost,
        block.kind == KIND[Kind.BOLUS_DELIVERED.value],
        block.pump_time,
        new,
        native,
    )
    rows = kernel.rows(rows)
    stretch, elapsed, segment = np.full(size, -1, dtype=np.int64), np.full(size, NONE, dtype=np.int64), np.zeros(size, dtype=np.int64)
    early, of_stretch = np.zeros(size, dtype=np.int64), np.zeros((size, 5), dtype=np.int64)
    anchor_at = np.full(len(block.after), NONE, dtype=np.int64)
    count = kernel.run(
        rows, block.bounds, block.after, block.clock, block.anchor_bounds, int(policy.clock_step_s * 1000), stretch, elapsed, early,
        segment, of_stretch, anchor_at,
    )  # fmt: skip
    utc, quality, method = (np.full(size, fill, dtype=np.int64) for fill in (NONE, UNKNOWN, _UNANCHORED))
    bound = np.full(size, np.nan)
    of_stretch = of_stretch[:count]
    contradicted = kernel.fix(
        stretch, elapsed, segment, rows.change, rows.native, of_stretch, block.bounds, block.after, anchor_at, block.utc, block.trip,
        float(policy.drift_s_per_day), float(policy.drift_s), utc, quality, method, bound,
    )  # fmt: skip
    for number in range(count):
        low, high = int(of_stretch[number, FIRST]), int(of_stretch[number, LAST]) + 1
        if confirmed and low in confirmed and (method[low:high] == _UNANCHORED).all():
            at, shown = _last_shown(block, new, low, high)
            utc[low:high] = shown + confirmed[low] + elapsed[low:high] - elapsed[at]
            quality[low:high], method[low:high] = CORRECTED, _CONFIRMED
    pump, first, last, end, after = (np.ascontiguousarray(column) for column in of_stretch.T)
    return Timeline(stretch, elapsed, early, utc, quality, method, bound, pump, first, last, end, after, contradicted)


def _last_shown(block: Block, new: Ints, low: int, high: int) -> tuple[int, int]:
    """The last record of a stretch that tells the printed clock after it, and what that was."""
    shown = np.where(new != NONE, new, block.pump_time)[low:high]
    told = (shown != NONE) & (block.kind[low:high] != KIND[Kind.BOLUS_DELIVERED.value])
    found = np.flatnonzero(told if told.any() else shown != NONE)
    return low + int(found[-1]), int(shown[found[-1]])


class _Rows(NamedTuple):
    """What the clock needs of each event."""

    is_hole: npt.NDArray[np.bool_]
    change: npt.NDArray[np.bool_]
    lost: npt.NDArray[np.bool_]
    bolus: npt.NDArray[np.bool_]
    time: Ints
    new: Ints
    native: Ints


PUMP, FIRST, LAST, END, AFTER = range(5)


def run(
    rows: Any, bounds: Any, anchor_after: Any, anchor_clock: Any, anchor_bounds: Any, step: int, stretch: Any, elapsed: Any, early: Any,
    segment: Any, of_stretch: Any, anchor_at: Any,
) -> int:  # fmt: skip
    """The clock itself: one pass over each pump in log order. Fills the last six arrays, and gives the number of stretches.

    `mark` is the highest reading of the axis that counts (the family's own elapsed time, else the printed clock), `shown` the
    last printed reading. A reading below `mark` by up to `step` counts as no time until the clock has passed where it was.
    """
    count = 0
    for pump in range(len(bounds) - 1):
        own = False
        for row in range(bounds[pump], bounds[pump + 1]):
            own = own or rows.native[row] != NONE
        axis = rows.native if own else rows.time
        now, mark, shown, piece, cut = 0, NONE, NONE, 0, START
        anchor, anchor_end = anchor_bounds[pump], anchor_bounds[pump + 1]
        open_stretch = False
        for row in range(bounds[pump], bounds[pump + 1]):
            if rows.is_hole[row]:
                cut, open_stretch = HOLE, False
            else:
                reading = axis[row]
                if open_stretch:
                    back = reading != NONE and mark != NONE and reading < mark - step and not rows.bolus[row]
                    if rows.lost[row] or back:
                        cut, open_stretch = CLOCK, False
                if not open_stretch:
                    if rows.lost[row] and cut == START:
                        cut = CLOCK
                    of_stretch[count, PUMP] = pump
                    of_stretch[count, FIRST] = row
                    of_stretch[count, AFTER] = cut
                    count += 1
                    now, mark, shown, open_stretch = 0, NONE, NONE, True
                stretch[row] = count - 1
                if reading == NONE or mark == NONE:
                    elapsed[row] = now
                elif reading < mark and rows.bolus[row]:
                    elapsed[row], early[row] = max(0, now - (mark - reading)), max(0, mark - reading - now)
                elif reading < mark:
                    elapsed[row] = now
                else:
                    now += reading - mark
                    elapsed[row] = now
                if reading != NONE:
                    mark = max(mark, reading)
                printed = rows.time[row]
                if printed != NONE and not (rows.bolus[row] and shown != NONE and printed < shown):
                    shown = printed
                segment[row] = piece
                if rows.change[row]:
                    piece += 1
                    shown = rows.new[row]
                    if not own:
                        mark = mark + rows.new[row] - reading if reading != NONE else rows.new[row]
                of_stretch[count - 1, LAST] = row
                of_stretch[count - 1, END] = now
            while anchor < anchor_end and anchor_after[anchor] == row:
                if stretch[row] >= 0:
                    ahead = anchor_clock[anchor] - shown if shown != NONE else 0
                    if ahead >= -step:
                        passed = ahead if own or mark == NONE else anchor_clock[anchor] - mark
                        anchor_at[anchor] = max(now, now + passed)
                        of_stretch[count - 1, END] = max(of_stretch[count - 1, END], anchor_at[anchor])
                        if not own and passed > 0:
                            now, mark = anchor_at[anchor], anchor_clock[anchor]
                            shown = anchor_clock[anchor]
                    elif not own:
                        # The clock was set back, and no record may show it once it has passed where it was.
                        cut, open_stretch = CLOCK, False
                anchor += 1
    return count


def disagree(anchor_at: Any, anchor_utc: Any, one: int, other: int, slope: float, drift_s: float) -> bool:
    """Whether two anchors lie further apart than drift may move a clock."""
    span = anchor_at[other] - anchor_at[one]
    return bool(abs((anchor_utc[other] - anchor_utc[one]) - span) > slope * span + drift_s * 1000)


def fix(
    stretch: Any, elapsed: Any, segment: Any, change: Any, native: Any, of_stretch: Any, bounds: Any, anchor_after: Any,
    anchor_at: Any, anchor_utc: Any,
    trip: Any, drift_s_per_day: float, drift_s: float, utc: Any, quality: Any, method: Any, bound: Any,
) -> Any:  # fmt: skip
    """UTC, quality, method and bound of the rows of each stretch from its anchors; gives the pairs of anchors that disagree, of each
    anchor the latest before it that does, unless such a pair lies within.

    A row between two anchors takes its UTC from both: drift moves it in proportion. Between two that disagree nothing is known,
    whatever was read between them: a clock that is set little by little is set.
    """
    contradicted = np.zeros((len(anchor_after), 3), dtype=np.int64)
    disagreeing, pump, own = 0, -1, False
    mine = np.zeros(len(anchor_after) + 1, dtype=np.int64)
    apart = np.zeros(len(anchor_after) + 1, dtype=np.bool_)
    slope = drift_s_per_day * 1000 / _DAY_MS
    anchor = 0
    for number in range(len(of_stretch)):
        first, last = of_stretch[number, FIRST], of_stretch[number, LAST]
        have = 0
        while anchor < len(anchor_after) and anchor_after[anchor] <= last:
            if anchor_at[anchor] != NONE and stretch[anchor_after[anchor]] == number:
                mine[have] = anchor
                have += 1
            anchor += 1
        if have == 0:
            continue
        if pump != of_stretch[number, PUMP]:
            pump, own = of_stretch[number, PUMP], False
            for row in range(bounds[pump], bounds[pump + 1]):
                own = own or native[row] != NONE
        torn, oldest = False, 0
        apart[:have] = False
        least, most = np.inf, -np.inf
        for j in range(have):
            # The bounds of what all anchors since the oldest allow: most anchors lie within, and need no look at each of these.
            offset, drift = float(anchor_utc[mine[j]] - anchor_at[mine[j]]), slope * anchor_at[mine[j]]
            if offset - drift - least > drift_s * 1000 - 1 or most - offset - drift > drift_s * 1000 - 1:
                for i in range(j - 1, oldest - 1, -1):
                    if disagree(anchor_at, anchor_utc, mine[i], mine[j], slope, drift_s):
                        contradicted[disagreeing, 0] = number
                        contradicted[disagreeing, 1] = anchor_at[mine[i]]
                        contradicted[disagreeing, 2] = anchor_at[mine[j]]
                        disagreeing += 1
                        # Two readings that disagree, of one moment or beside elapsed time of the family's own, by which no jump
                        # lies between them: one of them is false, and nothing tells which.
                        torn = torn or own or anchor_at[mine[i]] == anchor_at[mine[j]]
                        apart[i:j] = True
                        oldest, least, most = i + 1, np.inf, -np.inf
                        for k in range(oldest, j):
                            other = float(anchor_utc[mine[k]] - anchor_at[mine[k]])
                            least = min(least, other - slope * anchor_at[mine[k]])
                            most = max(most, other + slope * anchor_at[mine[k]])
                        break
            least, most = min(least, offset - drift), max(most, offset + drift)
        before = -1
        for row in range(first, last + 1):
            while before + 1 < have and anchor_after[mine[before + 1]] < row:
                before += 1
            left, right = mine[max(before, 0)], mine[min(before + 1, have - 1)]
            since, span = elapsed[row] - anchor_at[left], anchor_at[right] - anchor_at[left]
            skew = (anchor_utc[right] - anchor_utc[left]) - span
            if torn or (left != right and apart[before]):
                method[row] = 3
                continue
            share = since / span if span > 0 else 0.0
            moved = np.int64(np.rint(share * skew)) if left != right else np.int64(0)
            utc[row] = anchor_utc[left] + since + moved
            same = (
                segment[row] == segment[anchor_after[left]] + change[anchor_after[left]]
                or segment[row] == segment[anchor_after[right]] + change[anchor_after[right]]
            )
            drifted = left != right and skew != 0
            quality[row] = EXACT if same and not drifted else CORRECTED
            method[row] = 2 if drifted else (0 if same else 1)
            distance = min(abs(since), abs(elapsed[row] - anchor_at[right]))
            bound[row] = 1.0 + trip[left] / 2000 + drift_s_per_day * distance / _DAY_MS
    return contradicted[:disagreeing]


KERNELS = ("run", "disagree", "fix")
LEAN = frozenset[str]()
