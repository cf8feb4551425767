"""The state machine of delivery (docs/semantics.md §4), over the events of stretches in log order, on elapsed time.

All that affects a source's state lives here. Each source but KVO is in one of five states, and a record moves it by the table
`STATE`; what the moves leave behind are *segments*: (what, source, from, to), each end a point. A *point* is a place on a stretch:
elapsed ms, then rank among what is at that instant, which is the row of the log, or -1: before all; and the row it is reckoned
from. Kernels (`transforms.compiled`): plain functions of arrays, that know nothing of tables, orders or UTC.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from devices.contract import Kind, Source
from transforms.block import ANY, KIND, KVO, NONE, SOURCE, Floats, Ints

UNSEEN, DELIVERING, ZERO, HALTED, STOPPED = range(5)

# What a record does to the state of its source. A move that needs more than a new state says so by its marks: OPEN a delivery
# begins, CLOSE it ends, UNSTOPPED it was never ended before, UNSTARTED it was never begun, PROOF it is shown to deliver where the
# family says that such a record proves it.
START, START_AT_ZERO, RATE_ABOVE, RATE_ZERO, STOP, HALT, POWER_ON = range(7)
OPEN, CLOSE, UNSTOPPED, UNSTARTED, PROOF = 1, 2, 4, 8, 16

STATE = np.array(
    [  # of:  UNSEEN      DELIVERING  ZERO        HALTED      STOPPED
        (DELIVERING, DELIVERING, DELIVERING, DELIVERING, DELIVERING),  # START
        (ZERO, ZERO, ZERO, ZERO, ZERO),  # START_AT_ZERO
        (UNSEEN, DELIVERING, DELIVERING, HALTED, STOPPED),  # RATE_ABOVE
        (UNSEEN, ZERO, ZERO, HALTED, STOPPED),  # RATE_ZERO
        (STOPPED, STOPPED, STOPPED, STOPPED, STOPPED),  # STOP
        (HALTED, HALTED, HALTED, HALTED, STOPPED),  # HALT
        (HALTED, HALTED, HALTED, HALTED, STOPPED),  # POWER_ON
    ]
)
MARKS = np.array(
    [
        (OPEN, UNSTOPPED | OPEN, OPEN, OPEN, OPEN),
        (0, UNSTOPPED, 0, 0, 0),
        (PROOF, 0, OPEN, PROOF, 0),
        (0, CLOSE, 0, 0, 0),
        (UNSTARTED, CLOSE, 0, 0, 0),
        (0, CLOSE, 0, 0, 0),
        (0, UNSTOPPED, 0, 0, 0),
    ]
)

INFUSING, UNKNOWN, IDLE = range(3)
"""What a segment is; IDLE is keep-vein-open."""
PROVED, NO_STOP, NO_START, RUNNING, BOLUS = range(5)
"""How it came about: it ended for a known reason; without a stop; without a start; it still ran at the end; a bolus alone."""

WHAT, S_MS, S_RANK, S_ROW, E_MS, E_RANK, E_ROW, SRC, CODE = range(9)
"""Columns of a segment: its start and its end are points."""
STRETCH, PIECE_WHAT, SEG_FROM, SEG_TO = 0, 7, 8, 9
"""Columns of a piece, which has its start and end where a segment has them: its stretch, what it is, its segments."""
END_MS, END_RANK, END_ROW, ALARMED = range(4)
"""Columns of an end of delivery."""
SEGS, SEGS_END, IDLES, ENDS, ENDS_END, PIECES, PIECES_END, SETTLED, BY_START, OPEN_MS, IDLE_AT_END = range(11)
"""Columns of what a stretch gave: its segments (those of IDLE from `IDLES` on), ends and pieces; the row of its settling record or
-1, and whether that is a start; the earliest elapsed time since which a source runs at its end, or NONE; whether KVO does."""

_STARTS, _RATES, _STOPS, _COMPLETES = (
    KIND[k.value] for k in (Kind.DELIVERY_START, Kind.RATE_CHANGE, Kind.DELIVERY_STOP, Kind.DELIVERY_COMPLETE)
)
_ALARM, _BOLUS, _LIMITED, _UNLIMITED, _POWER = (
    KIND[k.value] for k in (Kind.ALARM_RAISED, Kind.BOLUS_DELIVERED, Kind.LIMIT_REACHED, Kind.LIMIT_CLEARED, Kind.POWER_ON)
)
_CHANGE, _OFF, _PATIENT = (KIND[k.value] for k in (Kind.RESERVOIR_CHANGE, Kind.POWER_OFF, Kind.NEW_PATIENT))
_PRIMARY, _BASAL, _INTERMITTENT = (SOURCE[s.value] for s in (Source.PRIMARY, Source.BASAL, Source.INTERMITTENT))
MOVING = np.zeros(len(Kind), dtype=np.bool_)
"""The kinds that may move a source; a bolus does so only where it proves one."""
MOVING[[_STARTS, _RATES, _STOPS, _COMPLETES, _ALARM, _LIMITED, _UNLIMITED, _POWER, _CHANGE, _OFF, _PATIENT]] = True
_NOWHERE, _BEFORE, _BEYOND, _DECIDED = -9, -2, -3, -4
"""Stand for a row: none; before the first record of the stretch; its end, where that is no record; where a reviewer says."""


class Steps(NamedTuple):
    """What the machine needs of each event: elapsed ms, kind, source (-1: none told), whether its reason is an alarm's, whether the
    pump stops after it, rate (NaN: unknown; mL/h, else dose), volume told (NaN), duration ms, by how many ms the instant that a bolus
    names precedes its stretch, whether its time is that of the end of a bolus, the source that it proves (-1), and, of the record that a
    delivery without a stop begins with, the elapsed ms at which a reviewer says that it ended (NONE)."""

    ms: Ints
    kind: Ints
    source: Ints
    alarming: npt.NDArray[np.bool_]
    stops: npt.NDArray[np.bool_]
    rate: Floats
    told: Floats
    lasts: Ints
    early: Ints
    at_end: npt.NDArray[np.bool_]
    proves: Ints
    stopped: Ints


class Found(NamedTuple):
    """What is found, filled by the machine: segments, ends, pieces, `of_stretch`; by row the amount (mL, by rate x time; NaN) of the
    deliveries of known rate that ended there, and whether the volume told there differs from it; how many of each there are."""

    segments: Ints
    ends: Ints
    pieces: Ints
    of_stretch: Ints
    amount: Floats
    mismatch: npt.NDArray[np.bool_]
    made: Ints


N_SEG, N_END, N_PIECE = range(3)


def room(steps: Steps, stretches: int) -> Found:
    """Room for all that these events can give: a delivery that begins leaves at most two segments, and a limit that is cleared begins
    up to seven anew."""
    events = len(steps.kind)
    cleared = int((steps.kind == _UNLIMITED).sum())
    most = 3 * events + 14 * cleared + 16 * stretches + 16
    return Found(
        segments=np.empty((most, 9), dtype=np.int64),
        ends=np.empty((most, 4), dtype=np.int64),
        pieces=np.empty((most, 10), dtype=np.int64),
        of_stretch=np.zeros((stretches, 11), dtype=np.int64),
        amount=np.full(events, np.nan),
        mismatch=np.zeros(events, dtype=np.bool_),
        made=np.zeros(3, dtype=np.int64),
    )


# --- one source: columns of what is kept of it --------------------------------------------------------------------------------

NOW, BEGAN, LIMITED_AT, PENDING, HALTED_AT, RUN_SINCE, RATE_SINCE = range(7)
RATE, GIVEN = range(2)
FIRST_ROW, MAX_MS, LIMIT, KVO_SINCE, KVO_SEEN, COVERS, AT_MS, AT_ROW = range(8)
"""Columns of what is kept of the whole pump: its first row, the greatest elapsed ms, whether a limit is on, since when KVO runs,
whether it ever did, how many covers, the point at which a reviewer says that a delivery ended."""


def ms_of(steps: Any, pump: Any, row: int) -> int:
    """Elapsed ms of a row, or of what stands for one."""
    if row >= 0:
        return int(steps.ms[row])
    if row == _DECIDED:
        return int(pump[AT_MS])
    return int(pump[MAX_MS]) if row == _BEYOND else 0


def put(into: Any, at: int, column: int, steps: Any, pump: Any, row: int, last: int) -> None:
    """Writes the point of a row, or of what stands for one, into three columns from `column` on."""
    into[at, column] = ms_of(steps, pump, row)
    if row >= 0 or row == _BEYOND:
        into[at, column + 1] = into[at, column + 2] = row if row >= 0 else last
    else:
        into[at, column + 1] = -1
        into[at, column + 2] = pump[FIRST_ROW] if row == _BEFORE else pump[AT_ROW]


def segment(steps: Any, pump: Any, found: Any, last: int, what: int, source: int, start: int, stop: int, code: int) -> None:
    """Adds a segment between two rows."""
    at = found.made[N_SEG]
    put(found.segments, at, S_MS, steps, pump, start, last)
    put(found.segments, at, E_MS, steps, pump, stop, last)
    found.segments[at, WHAT] = what
    found.segments[at, SRC] = source
    found.segments[at, CODE] = code
    found.made[N_SEG] += 1


def cover(steps: Any, pump: Any, covers: Any, last: int, start: int, stop: int) -> None:
    """Remembers where boluses ride on a delivery. A stop of `_NOWHERE` is never."""
    at = pump[COVERS]
    put(covers, at, S_MS, steps, pump, start, last)
    if stop == _NOWHERE:
        covers[at, E_MS], covers[at, E_RANK], covers[at, E_ROW] = 2**62, 0, 0
    else:
        put(covers, at, E_MS, steps, pump, stop, last)
    pump[COVERS] += 1


def end(steps: Any, pump: Any, found: Any, last: int, row: int, alarm: bool) -> None:
    """Remembers where a delivery ended, and whether an alarm ended it."""
    at = found.made[N_END]
    put(found.ends, at, END_MS, steps, pump, row, last)
    found.ends[at, ALARMED] = alarm
    found.made[N_END] += 1


def infused(steps: Any, pump: Any, covers: Any, found: Any, last: int, source: int, start: int, stop: int, code: int) -> None:
    """A delivery that is proved."""
    segment(steps, pump, found, last, INFUSING, source, start, stop, code)
    cover(steps, pump, covers, last, start, stop)


def close(steps: Any, pump: Any, one: Any, covers: Any, found: Any, last: int, source: int, row: int, code: int) -> None:
    """A delivery ends for a known reason: what it gave is proved, and what a limit cut off of it was KVO."""
    if one[source, LIMITED_AT] == _NOWHERE:
        infused(steps, pump, covers, found, last, source, one[source, BEGAN], row, code)
    else:
        if one[source, PENDING] != _NOWHERE:
            infused(steps, pump, covers, found, last, source, one[source, BEGAN], one[source, PENDING], code)
        segment(steps, pump, found, last, IDLE, KVO, one[source, LIMITED_AT], row, PROVED)
    one[source, LIMITED_AT] = one[source, PENDING] = _NOWHERE


def unstopped(steps: Any, pump: Any, one: Any, flow: Any, covers: Any, found: Any, last: int, source: int, row: int) -> None:
    """A record that cannot follow on what delivers: all since this delivery began is unknown, unless a reviewer knows its stop."""
    began = one[source, BEGAN]
    if steps.stopped[began] != NONE and steps.stopped[began] <= ms_of(steps, pump, row):
        pump[AT_MS], pump[AT_ROW] = steps.stopped[began], began
        at = _DECIDED if pump[AT_MS] > ms_of(steps, pump, began) else began
        if one[source, LIMITED_AT] != _NOWHERE and ms_of(steps, pump, at) <= ms_of(steps, pump, one[source, LIMITED_AT]):
            one[source, LIMITED_AT] = one[source, PENDING] = _NOWHERE
        close(steps, pump, one, covers, found, last, source, at, PROVED)
        end(steps, pump, found, last, at, False)
        flow[source, GIVEN] = np.nan
        return
    segment(steps, pump, found, last, UNKNOWN, source, began, row, NO_STOP)
    limited = one[source, LIMITED_AT]
    cover(steps, pump, covers, last, began, limited if limited != _NOWHERE else row)
    one[source, LIMITED_AT] = one[source, PENDING] = _NOWHERE
    flow[source, GIVEN] = np.nan
    end(steps, pump, found, last, row, False)


def begin(pump: Any, one: Any, source: int, row: int) -> None:
    """A delivery begins, limited where a limit is on."""
    one[source, BEGAN] = row
    one[source, PENDING] = _NOWHERE
    one[source, LIMITED_AT] = row if pump[LIMIT] else _NOWHERE


def end_kvo(steps: Any, pump: Any, found: Any, last: int, row: int) -> None:
    """KVO ends, if it runs."""
    if pump[KVO_SINCE] != _NOWHERE:
        segment(steps, pump, found, last, IDLE, KVO, pump[KVO_SINCE], row, PROVED)
        pump[KVO_SINCE] = _NOWHERE


def flowed(steps: Any, pump: Any, one: Any, flow: Any, source: int, row: int) -> None:
    """Reckons what a source gave up to here: known only while every rate is, and no limit is on."""
    now = ms_of(steps, pump, row)
    if one[source, NOW] == DELIVERING and not np.isnan(flow[source, GIVEN]):
        if np.isnan(flow[source, RATE]) or pump[LIMIT]:
            flow[source, GIVEN] = np.nan
        else:
            flow[source, GIVEN] += flow[source, RATE] * (now - one[source, RATE_SINCE]) / 3_600_000
    one[source, RATE_SINCE] = now


def tell(one: Any, flow: Any, found: Any, source: int, row: int, told: float) -> None:
    """A delivery ends here: what it gave, and whether the record tells another volume (by more than 10 % and 1 mL)."""
    given = flow[source, GIVEN]
    if not np.isnan(given) and (one[source, NOW] == DELIVERING or one[source, NOW] == ZERO):
        if not np.isnan(told) and abs(told - given) > 1 and abs(told - given) > 0.1 * told:
            found.mismatch[row] = True
        found.amount[row] = given if np.isnan(found.amount[row]) else found.amount[row] + given
    flow[source, GIVEN] = np.nan


def prove(steps: Any, pump: Any, one: Any, flow: Any, found: Any, last: int, source: int, row: int) -> None:
    """A record that the family calls a proof: an unseen or halted source delivers from here on."""
    if one[source, NOW] == UNSEEN:
        segment(steps, pump, found, last, UNKNOWN, source, _BEFORE, row, NO_START)
    elif one[source, NOW] != HALTED or steps.ms[row] <= ms_of(steps, pump, one[source, HALTED_AT]):
        return
    one[source, NOW] = DELIVERING
    flow[source, GIVEN] = np.nan
    begin(pump, one, source, row)
    end_kvo(steps, pump, found, last, row)


def move(
    steps: Any, pump: Any, one: Any, flow: Any, covers: Any, found: Any, last: int, source: int, record: int, row: int, alarm: bool,
    proves: bool,
) -> None:  # fmt: skip
    """Moves a source by the table."""
    was = one[source, NOW]
    one[source, NOW] = STATE[record, was]
    marks = MARKS[record, was]
    if marks & PROOF:
        if proves:
            prove(steps, pump, one, flow, found, last, source, row)
        return
    if marks & UNSTOPPED:
        unstopped(steps, pump, one, flow, covers, found, last, source, row)
    if marks & UNSTARTED:
        segment(steps, pump, found, last, UNKNOWN, source, _BEFORE, row, NO_START)
    if marks & CLOSE:
        close(steps, pump, one, covers, found, last, source, row, PROVED)
        end(steps, pump, found, last, row, alarm)
    if marks & OPEN:
        begin(pump, one, source, row)
    if record in (HALT, POWER_ON):
        one[source, HALTED_AT] = row


def start(steps: Any, pump: Any, one: Any, flow: Any, covers: Any, found: Any, last: int, source: int, row: int) -> None:
    """A `delivery_start`."""
    if source == KVO:
        if not pump[LIMIT]:
            for other in range(KVO):
                if one[other, NOW] == DELIVERING:
                    unstopped(steps, pump, one, flow, covers, found, last, other, row)
                    one[other, NOW] = STOPPED
        pump[KVO_SEEN] = 1
        if pump[KVO_SINCE] == _NOWHERE:
            pump[KVO_SINCE] = row
        return
    end_kvo(steps, pump, found, last, row)
    rate = steps.rate[row]
    move(steps, pump, one, flow, covers, found, last, source, START_AT_ZERO if rate == 0 else START, row, False, False)
    one[source, RUN_SINCE] = row
    one[source, RATE_SINCE] = steps.ms[row]
    flow[source, RATE] = rate
    flow[source, GIVEN] = 0.0


def stop(steps: Any, pump: Any, one: Any, flow: Any, covers: Any, found: Any, last: int, source: int, row: int) -> None:
    """A `delivery_stop` or `delivery_complete`; of no source: of all that run, and a missing start where none was seen."""
    alarm = steps.alarming[row]
    if source == KVO:
        end_kvo(steps, pump, found, last, row)
    elif source == ANY:
        unseen, running = True, 0
        for other in range(KVO):
            unseen = unseen and one[other, NOW] == UNSEEN
            running += one[other, NOW] == DELIVERING or one[other, NOW] == ZERO
        if unseen and not pump[KVO_SEEN]:
            segment(steps, pump, found, last, UNKNOWN, ANY, _BEFORE, row, NO_START)
            for other in range(KVO):
                one[other, NOW] = STOPPED
        for other in range(KVO):
            if one[other, NOW] == DELIVERING or one[other, NOW] == ZERO:
                flowed(steps, pump, one, flow, other, row)
                tell(one, flow, found, other, row, steps.told[row] if running == 1 else np.nan)
                move(steps, pump, one, flow, covers, found, last, other, STOP, row, alarm, False)
        end_kvo(steps, pump, found, last, row)
    else:
        flowed(steps, pump, one, flow, source, row)
        tell(one, flow, found, source, row, steps.told[row])
        move(steps, pump, one, flow, covers, found, last, source, STOP, row, alarm, False)


def halt(steps: Any, pump: Any, one: Any, flow: Any, covers: Any, found: Any, last: int, record: int, row: int, alarm: bool) -> None:
    """A halt stops whatever runs, KVO too."""
    for source in range(KVO):
        flowed(steps, pump, one, flow, source, row)
        tell(one, flow, found, source, row, np.nan)
        move(steps, pump, one, flow, covers, found, last, source, record, row, alarm, False)
    end_kvo(steps, pump, found, last, row)


def reach_limit(steps: Any, pump: Any, one: Any, flow: Any, row: int) -> None:
    """From here on what delivers counts as KVO."""
    if pump[LIMIT]:
        return
    for source in range(KVO):
        flowed(steps, pump, one, flow, source, row)
        if one[source, NOW] == DELIVERING:
            one[source, PENDING] = one[source, LIMITED_AT] = row
    pump[LIMIT] = 1


def clear_limit(steps: Any, pump: Any, one: Any, flow: Any, covers: Any, found: Any, last: int, row: int) -> None:
    """What delivers is no longer limited; where nothing was limited, a stop is missing."""
    for source in range(KVO):
        if one[source, NOW] != DELIVERING:
            continue
        if pump[LIMIT]:
            flow[source, GIVEN] = np.nan
            if one[source, PENDING] != _NOWHERE:
                infused(steps, pump, covers, found, last, source, one[source, BEGAN], one[source, PENDING], PROVED)
            if one[source, LIMITED_AT] != _NOWHERE:
                segment(steps, pump, found, last, IDLE, KVO, one[source, LIMITED_AT], row, PROVED)
        else:
            unstopped(steps, pump, one, flow, covers, found, last, source, row)
        one[source, BEGAN] = row
        one[source, LIMITED_AT] = one[source, PENDING] = _NOWHERE
    pump[LIMIT] = 0


def is_halt(kind: int, stops: bool) -> bool:
    """Whether a record of this kind is a halt."""
    return (kind == _ALARM and stops) or kind in (_CHANGE, _OFF, _POWER, _PATIENT)


def step(steps: Any, pump: Any, one: Any, flow: Any, covers: Any, found: Any, last: int, row: int) -> int:
    """One record; gives its source."""
    kind = steps.kind[row]
    source = steps.source[row]
    if source < 0:
        source = ANY if kind == _STOPS else _PRIMARY
    if kind == _STARTS:
        start(steps, pump, one, flow, covers, found, last, source, row)
    elif kind == _RATES:
        if source != KVO:
            flowed(steps, pump, one, flow, source, row)
            rate = steps.rate[row]
            record = RATE_ZERO if rate == 0 else RATE_ABOVE
            move(steps, pump, one, flow, covers, found, last, source, record, row, False, steps.proves[row] >= 0)
            flow[source, RATE] = rate
    elif kind in (_STOPS, _COMPLETES):
        stop(steps, pump, one, flow, covers, found, last, source, row)
    elif is_halt(kind, steps.stops[row]):
        halt(steps, pump, one, flow, covers, found, last, POWER_ON if kind == _POWER else HALT, row, kind == _ALARM)
    elif kind == _LIMITED:
        reach_limit(steps, pump, one, flow, row)
    elif kind == _UNLIMITED:
        clear_limit(steps, pump, one, flow, covers, found, last, row)
    elif kind == _BOLUS and steps.proves[row] >= 0:
        prove(steps, pump, one, flow, found, last, steps.proves[row], row)
    if pump[LIMIT]:
        running = False
        for other in range(KVO):
            running = running or one[other, NOW] == DELIVERING or one[other, NOW] == ZERO
        if not running:
            pump[LIMIT] = 0
    return int(source)


def finish(steps: Any, pump: Any, one: Any, flow: Any, covers: Any, found: Any, last: int, of: Any) -> None:
    """What still runs when the stretch ends, ends for counting at its last event."""
    beyond = last if steps.ms[last] == pump[MAX_MS] else _BEYOND
    of[OPEN_MS] = NONE
    for source in range(KVO):
        state = one[source, NOW]
        if state != DELIVERING and state != ZERO:
            continue
        since = ms_of(steps, pump, one[source, BEGAN] if state == DELIVERING else one[source, RUN_SINCE])
        of[OPEN_MS] = since if of[OPEN_MS] == NONE else min(of[OPEN_MS], since)
        if state == DELIVERING:
            flowed(steps, pump, one, flow, source, beyond)
            tell(one, flow, found, source, last, np.nan)
            if one[source, LIMITED_AT] == _NOWHERE:
                cover(steps, pump, covers, last, one[source, BEGAN], _NOWHERE)
            close(steps, pump, one, covers, found, last, source, beyond, RUNNING)
    of[IDLE_AT_END] = pump[KVO_SINCE] != _NOWHERE
    end_kvo(steps, pump, found, last, beyond)


# --- order ----------------------------------------------------------------------------------------------------------------------


def earlier(one: Any, i: int, at: int, other: Any, j: int, where: int) -> bool:
    """Whether the point in columns `at`.. of row i of `one` is before that in columns `where`.. of row j of `other`."""
    for c in range(3):
        if one[i, at + c] != other[j, where + c]:
            return bool(one[i, at + c] < other[j, where + c])
    return False


def less(rows: Any, i: int, j: int, column: int, columns: int) -> bool:
    """Whether row i is before row j by so many columns from `column` on."""
    for c in range(column, column + columns):
        if rows[i, c] != rows[j, c]:
            return bool(rows[i, c] < rows[j, c])
    return False


def ordered(rows: Any, column: int, columns: int) -> Any:
    """Rows sorted (stable) by so many columns from `column` on; rows that are in order already cost one look each."""
    size = len(rows)
    sorted_ = True
    for i in range(1, size):
        if less(rows, i, i - 1, column, columns):
            sorted_ = False
            break
    here = rows.copy()
    if sorted_:
        return here
    there = rows.copy()
    width = 1
    while width < size:
        for low in range(0, size, 2 * width):
            middle, high = min(low + width, size), min(low + 2 * width, size)
            i, j = low, middle
            for k in range(low, high):
                if i < middle and (j >= high or not less(here, j, i, column, columns)):
                    there[k] = here[i]
                    i += 1
                else:
                    there[k] = here[j]
                    j += 1
        here, there = there, here
        width *= 2
    return here


# --- boluses --------------------------------------------------------------------------------------------------------------------

_G_MS, _G_ROW, _G_END = 0, 2, 3


def boluses(steps: Any, low: int, last: int, end_ms: int, covers: Any, found: Any) -> None:
    """A bolus that starts while nothing infuses is delivery of its own duration, cut short by a stop, a halt or the end."""
    number = 0
    for row in range(low, last + 1):
        number += steps.kind[row] == _BOLUS
    if number == 0:
        return
    given = np.empty((number, 5), dtype=np.int64)
    number = 0
    for row in range(low, last + 1):
        if steps.kind[row] == _BOLUS:
            begins = steps.ms[row] - steps.early[row] - (steps.lasts[row] if steps.at_end[row] else 0)
            given[number, 0] = max(begins, 0)
            given[number, 1] = row if begins >= 0 else -1
            given[number, 2] = row
            given[number, 3] = begins + steps.lasts[row]
            given[number, 4] = steps.source[row] if steps.source[row] >= 0 else _PRIMARY
            number += 1
    given = ordered(given, 0, 5)
    riding = ordered(covers, 1, 6)
    cut, ridden, reach = low, 0, -1
    flows = np.full((1, 3), -1, dtype=np.int64)
    for i in range(number):
        while ridden < len(riding) and not earlier(given, i, _G_MS, riding, ridden, S_MS):
            if reach < 0 or earlier(riding, reach, E_MS, riding, ridden, E_MS):
                reach = ridden
            ridden += 1
        if earlier(given, i, _G_MS, flows, 0, 0) or (reach >= 0 and earlier(given, i, _G_MS, riding, reach, E_MS)):
            continue
        starts, rank, row = given[i, 0], given[i, 1], given[i, 2]
        while cut <= last and not (
            (steps.kind[cut] == _STOPS or is_halt(steps.kind[cut], steps.stops[cut]))
            and (steps.ms[cut] > starts or (steps.ms[cut] == starts and cut > rank))
        ):
            cut += 1
        alarm = False
        stops, stop_rank, stop_row = min(given[i, _G_END], end_ms), -1, row
        if cut <= last and steps.ms[cut] <= stops:
            stops, stop_rank, stop_row = steps.ms[cut], cut, cut
            alarm = steps.alarming[cut] or steps.kind[cut] == _ALARM
        elif stops < starts or (stops == starts and stop_rank < rank):
            stops, stop_rank = starts, rank
        at = found.made[N_SEG]
        flows[0, 0], flows[0, 1], flows[0, 2] = stops, stop_rank, stop_row
        found.segments[at, WHAT] = INFUSING
        found.segments[at, S_MS : S_ROW + 1] = given[i, :3]
        found.segments[at, E_MS : E_ROW + 1] = flows[0]
        found.segments[at, SRC] = given[i, 4]
        found.segments[at, CODE] = BOLUS
        found.made[N_SEG] += 1
        at = found.made[N_END]
        found.ends[at, :3] = flows[0]
        found.ends[at, ALARMED] = alarm
        found.made[N_END] += 1


# --- pieces ---------------------------------------------------------------------------------------------------------------------


def touch(steps: Any, last: int, halted: int, pieces: Any, piece: int, segments: Any, at: int) -> bool:
    """Whether a segment belongs to a piece: it starts within it, or at the instant at which it ends with no halt between; `halted` is
    the first halt that is not before the end of the piece."""
    if not earlier(pieces, piece, E_MS, segments, at, S_MS):
        return True
    if segments[at, S_MS] != pieces[piece, E_MS]:
        return False
    return bool(
        halted > last or steps.ms[halted] > segments[at, S_MS] or (steps.ms[halted] == segments[at, S_MS] and halted > segments[at, S_RANK])
    )


def merge(steps: Any, low: int, last: int, number: int, first: int, unknown: int, idle: int, found: Any) -> None:
    """Pieces of the sorted segments of a stretch: infusing ones (from `first` on; the union over the sources), and unknown ones (from
    `unknown` to `idle`), in order."""
    segments, pieces = found.segments, found.pieces
    begin_ = found.made[N_PIECE]
    made, halted = begin_, low
    for at in range(first, unknown):
        joins = False
        if made > begin_:
            open_ = made - 1
            while halted <= last and not (
                is_halt(steps.kind[halted], steps.stops[halted])
                and (
                    steps.ms[halted] > pieces[open_, E_MS] or (steps.ms[halted] == pieces[open_, E_MS] and halted >= pieces[open_, E_RANK])
                )
            ):
                halted += 1
            joins = touch(steps, last, halted, pieces, open_, segments, at)
        if joins:
            if earlier(pieces, made - 1, E_MS, segments, at, E_MS):
                pieces[made - 1, E_MS : E_ROW + 1] = segments[at, E_MS : E_ROW + 1]
        else:
            pieces[made, STRETCH] = number
            pieces[made, S_MS : E_ROW + 1] = segments[at, S_MS : E_ROW + 1]
            pieces[made, PIECE_WHAT] = INFUSING
            pieces[made, SEG_FROM] = at
            made += 1
        pieces[made - 1, SEG_TO] = at + 1
    for at in range(unknown, idle):
        pieces[made, STRETCH] = number
        pieces[made, S_MS : E_ROW + 1] = segments[at, S_MS : E_ROW + 1]
        pieces[made, PIECE_WHAT] = UNKNOWN
        pieces[made, SEG_FROM] = at
        pieces[made, SEG_TO] = at + 1
        made += 1
    if idle > unknown:
        pieces[begin_:made] = ordered(pieces[begin_:made], S_MS, 7)
    found.made[N_PIECE] = made


def run(steps: Any, first: Any, last: Any, end_ms: Any, found: Any) -> None:
    """All stretches, each from nothing: fills `found`."""
    pump = np.zeros(8, dtype=np.int64)
    one = np.zeros((KVO, 7), dtype=np.int64)
    flow = np.zeros((KVO, 2))
    covers = np.empty((len(found.segments), 7), dtype=np.int64)
    for number in range(len(first)):
        low, high = first[number], last[number]
        of = found.of_stretch[number]
        pump[FIRST_ROW], pump[LIMIT], pump[KVO_SINCE], pump[KVO_SEEN], pump[COVERS] = low, 0, _NOWHERE, 0, 0
        pump[MAX_MS] = 0
        for row in range(low, high + 1):
            pump[MAX_MS] = max(pump[MAX_MS], steps.ms[row])
        one[:, NOW] = UNSEEN
        one[:, BEGAN] = one[:, HALTED_AT] = one[:, RUN_SINCE] = _BEFORE
        one[:, LIMITED_AT] = one[:, PENDING] = _NOWHERE
        one[:, RATE_SINCE] = 0
        flow[:] = np.nan
        of[SEGS], of[ENDS], of[PIECES], of[SETTLED] = found.made[N_SEG], found.made[N_END], found.made[N_PIECE], -1
        zero = False
        for row in range(low, high + 1):
            if not (MOVING[steps.kind[row]] or (steps.kind[row] == _BOLUS and steps.proves[row] >= 0)):
                continue
            source = step(steps, pump, one, flow, covers, found, high, row)
            if of[SETTLED] < 0:
                kind = steps.kind[row]
                moves = kind in (_STARTS, _STOPS, _COMPLETES)
                settling = source in (_PRIMARY, _BASAL, _INTERMITTENT, ANY)
                if (moves and settling) or is_halt(kind, steps.stops[row]):
                    of[SETTLED] = row
                    # behind a setting to rate 0, a start does not show that nothing ran before
                    of[BY_START] = kind == _STARTS and not zero
                zero = zero or (kind == _RATES and settling and steps.rate[row] == 0)
        finish(steps, pump, one, flow, covers, found, high, of)
        boluses(steps, low, high, end_ms[number], covers[: pump[COVERS]], found)
        of[SEGS_END], of[ENDS_END] = found.made[N_SEG], found.made[N_END]
        found.segments[of[SEGS] : of[SEGS_END]] = ordered(found.segments[of[SEGS] : of[SEGS_END]], 0, 9)
        found.ends[of[ENDS] : of[ENDS_END]] = ordered(found.ends[of[ENDS] : of[ENDS_END]], 0, 4)
        unknown = of[SEGS]
        while unknown < of[SEGS_END] and found.segments[unknown, WHAT] == INFUSING:
            unknown += 1
        idle = unknown
        while idle < of[SEGS_END] and found.segments[idle, WHAT] == UNKNOWN:
            idle += 1
        of[IDLES] = idle
        merge(steps, low, high, number, of[SEGS], unknown, idle, found)
        of[PIECES_END] = found.made[N_PIECE]


KERNELS = (
    "ms_of", "put", "segment", "cover", "end", "infused", "close", "unstopped", "begin", "end_kvo", "flowed", "tell", "prove", "move",
    "start", "stop", "halt", "reach_limit", "clear_limit", "is_halt", "step", "finish", "earlier", "less", "ordered", "boluses", "touch",
    "merge", "run",
)  # fmt: skip
LEAN = frozenset(KERNELS) - {"ordered", "boluses", "merge", "run"}
