"""Pieces into sessions and set-ups (docs/semantics.md §4, §5), and what is not proved of them. Kernels: plain functions of arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from devices.contract import Kind, Source
from transforms.block import KIND, NONE, SOURCE, Floats, Ints
from transforms.clock import CLOCK, HOLE, UNKNOWN
from transforms.machine import (
    ALARMED,
    BOLUS,
    BY_START,
    CODE,
    E_MS,
    E_RANK,
    E_ROW,
    END_MS,
    ENDS,
    ENDS_END,
    IDLE,
    IDLE_AT_END,
    IDLES,
    INFUSING,
    NO_START,
    NO_STOP,
    OPEN_MS,
    PIECE_WHAT,
    PIECES,
    PIECES_END,
    RUNNING,
    S_MS,
    S_RANK,
    S_ROW,
    SEG_FROM,
    SEG_TO,
    SEGS_END,
    SETTLED,
    SRC,
    WHAT,
    earlier,
)  # fmt: skip
from transforms.machine import UNKNOWN as UNPROVED

FLAGS = (
    "NO_STOP", "NO_START", "SESSION_OPEN", "LOG_GAP", "CLOCK_UNCERTAIN", "RECORD_CONFLICT", "ORDER_BOUNDARY",
    "DELIVERED_GT_DEMANDED", "GAPS_INVISIBLE", "LOCKOUT_VIOLATION", "VOLUME_MISMATCH",
)  # fmt: skip
"""What may be found on a session, each a bit: the codes about its time (the first row of docs/semantics.md §6), then the others."""
F_NO_STOP, F_NO_START, F_OPEN, F_GAP, F_CLOCK, F_CONFLICT, F_BOUNDARY, F_BEYOND_DEMAND, F_BLIND, F_LOCKOUT, F_VOLUME = (
    1 << bit for bit in range(len(FLAGS))
)
TIME_FLAGS = (1 << 7) - 1

ALARM, PAUSED = 3, 4
CLASSES = ("infusing", "unknown", "kvo", "alarm", "paused")
"""What a second of a session is; the first three as the machine's segments."""

_RESERVOIR, _PRIMED, _PRIMING, _PATIENT, _BOLUS, _GRANTED, _DENIED = (
    KIND[k.value]
    for k in (
        Kind.RESERVOIR_CHANGE, Kind.PRIMING_DONE, Kind.PRIMING_STARTED, Kind.NEW_PATIENT, Kind.BOLUS_DELIVERED, Kind.DEMAND_GRANTED,
        Kind.DEMAND_DENIED,
    )
)  # fmt: skip
_PCA, _CLINICIAN, _LOADING = (SOURCE[s.value] for s in (Source.PCA, Source.CLINICIAN, Source.LOADING))
TUBING, CANNULA = 0, 1
NO, POSSIBLE, YES = range(3)


class Told(NamedTuple):
    """What grouping needs of each event: kind, source, elapsed ms, UTC ms, quality, target (TUBING, CANNULA, -1: unknown), whether a
    priming was aborted, whether other contents of the record are known, lockout (ms; NONE), rate (mL/h; NaN), volume (mL; NaN)."""

    kind: Ints
    source: Ints
    ms: Ints
    utc: Ints
    quality: Ints
    target: Ints
    aborted: npt.NDArray[np.bool_]
    conflict: npt.NDArray[np.bool_]
    lockout: Ints
    rate: Floats
    volume: Floats


class Line(NamedTuple):
    """The stretches: first and last row, what each begins after, whether it is the end of its pump's log, whether the one before it is of
    the same pump, whether holes show in its log."""

    first: Ints
    last: Ints
    after: Ints
    ends_log: npt.NDArray[np.bool_]
    follows: npt.NDArray[np.bool_]
    shows_gaps: npt.NDArray[np.bool_]


class Pieces(NamedTuple):
    """What orders say of each piece: the row of its order (-1: none), the code of that order's id, its end (UTC ms, or its printed time
    read in the order's zone; NONE) and when its order ends (NONE: never)."""

    order: Ints
    order_id: Ints
    stop: Ints
    order_stop: Ints


class Grouped(NamedTuple):
    """Sessions, their amounts, set-ups, the rows of set-ups, cuts; the rows of each stretch by instant; how many of each."""

    sessions: Ints
    amounts: Floats
    setups: Ints
    fills: Ints
    cuts: Ints
    by_instant: Ints
    made: Ints


N_SESSION, N_INTERVAL, N_SETUP, N_FILL, N_CUT = range(5)
(
    STRETCH, PIECE_FROM, PIECE_TO, STOP_PIECE, FLAG, INFUSED, UNPROVEN, KVO_MS, ALARM_MS, PAUSED_MS, CONTINUOUS, BOLUSES, GRANTED_N,
    DENIED_N, WORST, INSIDE_FROM, INSIDE_TO, FROM_UTC, TO_UTC,
) = range(19)  # fmt: skip
"""Columns of a session: `INSIDE_FROM`.. are places in `by_instant`."""
VOLUME, MAX_RATE = range(2)
I_SESSION, I_FROM, I_TO, I_FROM_UTC, I_TO_UTC, I_CLASS, I_SOURCE, I_FIRST, I_LAST = range(9)
"""Columns of an interval."""
U_STRETCH, U_SESSION, U_PUMP, U_SITE, U_FROM, U_TO = range(6)
"""Columns of a set-up: its rows stand in `fills` from `U_FROM` to `U_TO`."""
C_FLAG, C_FIRST, C_SETTLED = range(3)
"""Columns of a cut: its code, the first row after it, the row up to which it reaches."""


def room(rows: int, stretches: int, pieces: int) -> Grouped:
    """Room for all that can be found: a session has a piece, a set-up an event, and a cut is followed by a stretch."""
    return Grouped(
        sessions=np.zeros((pieces, 19), dtype=np.int64),
        amounts=np.full((pieces, 2), np.nan),
        setups=np.empty((rows, 6), dtype=np.int64),
        fills=np.empty(rows, dtype=np.int64),
        cuts=np.empty((stretches, 3), dtype=np.int64),
        by_instant=np.empty(rows, dtype=np.int64),
        made=np.zeros(5, dtype=np.int64),
    )


# --- finding --------------------------------------------------------------------------------------------------------------------


def sort_rows(told: Any, by_instant: Any, low: int, high: int) -> None:
    """The rows of a stretch by elapsed time; of equal times in the order of the log."""
    in_order = True
    for row in range(low, high + 1):
        by_instant[row] = row
        in_order = in_order and (row == low or told.ms[row - 1] <= told.ms[row])
    if not in_order:
        instants = np.empty(high + 1 - low, dtype=np.int64)
        for row in range(low, high + 1):
            instants[row - low] = told.ms[row]
        by_instant[low : high + 1] = np.argsort(instants, kind="mergesort") + low


def up_to(told: Any, by_instant: Any, low: int, high: int, ms: int, inclusive: bool) -> int:
    """The place in `by_instant`, from `low` to `high` + 1, before which all rows are before (or, inclusive, at) this instant."""
    left, right = low, high + 1
    while left < right:
        middle = (left + right) // 2
        at = told.ms[by_instant[middle]]
        if at < ms or (inclusive and at == ms):
            left = middle + 1
        else:
            right = middle
    return left


def utc_of(told: Any, ms: int, row: int) -> int:
    """UTC of an instant on elapsed time, reckoned from a row; NONE where it is not known."""
    return NONE if told.utc[row] == NONE else told.utc[row] + ms - told.ms[row]


def any_within(instants: Any, low: int, high: int) -> bool:
    """Whether any of these sorted instants lies from low to high."""
    at = np.searchsorted(instants, low)
    return bool(at < len(instants) and instants[at] <= high)


def starting(pieces: Any, low: int, high: int, ms: int, row: int, inclusive: bool) -> int:
    """The first of the pieces from `low` to `high` that does not start before (or, inclusive, at) this record."""
    left, right = low, high
    while left < right:
        middle = (left + right) // 2
        starts, rank = pieces[middle, S_MS], pieces[middle, S_RANK]
        if starts < ms or (starts == ms and (rank < row or (inclusive and rank == row))):
            left = middle + 1
        else:
            right = middle
    return left


def before_row(pieces: Any, piece: int, at: int, ms: int, row: int) -> bool:
    """Whether a point of a piece (columns from `at` on) is before a record."""
    return bool(pieces[piece, at] < ms or (pieces[piece, at] == ms and pieces[piece, at + 1] < row))


# --- sessions -------------------------------------------------------------------------------------------------------------------


def patient_between(told: Any, patients: Any, pieces: Any, one: int, other: int) -> bool:
    """Whether a new patient stands from the end of one piece to the start of another."""
    left, right = 0, len(patients)
    while left < right:
        middle = (left + right) // 2
        if told.ms[patients[middle]] < pieces[one, E_MS] or (
            told.ms[patients[middle]] == pieces[one, E_MS] and patients[middle] < pieces[one, E_RANK]
        ):
            left = middle + 1
        else:
            right = middle
    return left < len(patients) and not before_row(pieces, other, S_MS, told.ms[patients[left]], patients[left])


def make_sessions(told: Any, found: Any, said: Any, number: int, patients: Any, gap_ms: int, out: Any) -> None:
    """Pieces of one order at most the gap limit apart, with no new patient between them."""
    pieces, sessions = found.pieces, out.sessions
    of = found.of_stretch[number]
    begin = out.made[N_SESSION]
    for piece in range(of[PIECES], of[PIECES_END]):
        last = out.made[N_SESSION] - 1
        joins = False
        if last >= begin:
            stop = sessions[last, STOP_PIECE]
            joins = (
                said.order_id[sessions[last, PIECE_FROM]] == said.order_id[piece]
                and pieces[piece, S_MS] - pieces[stop, E_MS] <= gap_ms
                and not patient_between(told, patients, pieces, stop, piece)
            )
        if joins:
            if earlier(pieces, sessions[last, STOP_PIECE], E_MS, pieces, piece, E_MS):
                sessions[last, STOP_PIECE] = piece
        else:
            last += 1
            sessions[last, STRETCH] = number
            sessions[last, PIECE_FROM] = sessions[last, STOP_PIECE] = piece
            out.made[N_SESSION] += 1
        sessions[last, PIECE_TO] = piece + 1


def flag_ends(line: Any, found: Any, number: int, begin: int, gap_ms: int, out: Any) -> None:
    """Missing starts and stops; what still runs at the end of the stretch leaves its session without a stop."""
    pieces, sessions, of = found.pieces, out.sessions, found.of_stretch[number]
    code = F_OPEN if line.ends_log[number] else F_NO_STOP
    longest = begin
    for session in range(begin, out.made[N_SESSION]):
        for piece in range(sessions[session, PIECE_FROM], sessions[session, PIECE_TO]):
            for segment in range(pieces[piece, SEG_FROM], pieces[piece, SEG_TO]):
                how = found.segments[segment, CODE]
                if how == RUNNING:
                    sessions[session, FLAG] |= code
                elif how == NO_STOP:
                    sessions[session, FLAG] |= F_NO_STOP
                elif how == NO_START:
                    sessions[session, FLAG] |= F_NO_START
        if earlier(pieces, sessions[longest, STOP_PIECE], E_MS, pieces, sessions[session, STOP_PIECE], E_MS):
            longest = session
    # The session that reaches furthest is not the last one where a delivery without a stop of one order outlasts those of the next.
    if of[OPEN_MS] != NONE and longest < out.made[N_SESSION]:
        for session in (longest, out.made[N_SESSION] - 1):
            if of[OPEN_MS] <= pieces[sessions[session, STOP_PIECE], E_MS] + gap_ms:
                sessions[session, FLAG] |= code


def is_quiet(line: Any, found: Any, number: int) -> bool:
    """Whether a stretch begins behind a cut of the clock alone, with nothing running before it."""
    if line.after[number] != CLOCK or not line.follows[number]:
        return False
    of = found.of_stretch[number - 1]
    return bool(of[SETTLED] >= 0 and of[OPEN_MS] == NONE and not of[IDLE_AT_END])


def flag_cut(told: Any, line: Any, found: Any, number: int, begin: int, gap_ms: int, out: Any) -> None:
    """After a cut the log may hide that a delivery goes on (docs/semantics.md §4.6)."""
    cut, first, last, of = line.after[number], line.first[number], line.last[number], found.of_stretch[number]
    if cut != HOLE and cut != CLOCK:
        return
    quiet, ends = is_quiet(line, found, number), False
    if quiet:
        settled = first
    elif of[SETTLED] >= 0:
        settled, ends = of[SETTLED], not of[BY_START]
    else:
        settled = last
    code = F_GAP if cut == HOLE else F_CLOCK
    for session in range(begin, out.made[N_SESSION]):
        piece = out.sessions[session, PIECE_FROM]
        starts = found.pieces[piece, S_MS]
        unsettled = before_row(found.pieces, piece, S_MS, told.ms[settled], settled)
        near_settled = ends and not unsettled and starts - told.ms[settled] <= gap_ms
        if unsettled or near_settled or starts - told.ms[first] <= gap_ms:
            out.sessions[session, FLAG] |= code
    at = out.made[N_CUT]
    out.cuts[at, C_FLAG] = code
    out.cuts[at, C_FIRST] = first
    out.cuts[at, C_SETTLED] = first if not quiet and of[SETTLED] >= 0 and of[BY_START] else settled
    out.made[N_CUT] += 1


def too_soon(told: Any, low: int, high: int) -> Any:
    """The instants, sorted, of granted demands closer to each other than the lockout that the log itself gives."""
    found = np.empty(2 * (high + 1 - low), dtype=np.int64)
    number, previous, lockout = 0, NONE, np.nan
    for row in range(low, high + 1):
        if not np.isnan(told.lockout[row]):
            lockout = told.lockout[row]
        elif told.kind[row] == _GRANTED:
            if not np.isnan(lockout) and previous != NONE and told.ms[row] - previous < lockout:
                found[number], found[number + 1] = previous, told.ms[row]
                number += 2
            previous = told.ms[row]
    return np.sort(found[:number])


def instants_of(told: Any, marked: Any, low: int, high: int) -> Any:
    """The instants, sorted, of the marked rows of a stretch."""
    found = np.empty(high + 1 - low, dtype=np.int64)
    number = 0
    for row in range(low, high + 1):
        if marked[row]:
            found[number] = told.ms[row]
            number += 1
    return np.sort(found[:number])


def flag_rest(
    told: Any, line: Any, found: Any, said: Any, number: int, begin: int, gap_ms: int, contradicted: Any, torn: int, out: Any
) -> int:
    """Conflicts, lockouts, volumes, times that are not known, orders that end, logs that show no gaps. `torn` is where the pairs of
    anchors of this stretch that disagree begin; gives where those of the next do."""
    low, high, pieces, sessions = line.first[number], line.last[number], found.pieces, out.sessions
    conflicts, soon = instants_of(told, told.conflict, low, high), too_soon(told, low, high)
    mismatches = instants_of(told, found.mismatch, low, high)
    beyond = torn
    while beyond < len(contradicted) and contradicted[beyond, 0] == number:
        beyond += 1
    for session in range(begin, out.made[N_SESSION]):
        first, stop = sessions[session, PIECE_FROM], sessions[session, STOP_PIECE]
        from_ms, to_ms = pieces[first, S_MS], pieces[stop, E_MS]
        flag = 0
        if any_within(conflicts, from_ms - gap_ms, to_ms + gap_ms):
            flag |= F_CONFLICT
        if any_within(soon, from_ms, to_ms):
            flag |= F_LOCKOUT
        if any_within(mismatches, from_ms, to_ms):
            flag |= F_VOLUME
        sessions[session, FROM_UTC] = utc_of(told, from_ms, pieces[first, S_ROW])
        sessions[session, TO_UTC] = utc_of(told, to_ms, pieces[stop, E_ROW])
        uncertain = sessions[session, FROM_UTC] == NONE or sessions[session, TO_UTC] == NONE
        for at in range(sessions[session, INSIDE_FROM], sessions[session, INSIDE_TO]):
            uncertain = uncertain or told.quality[out.by_instant[at]] == UNKNOWN
        for pair in range(torn, beyond):
            uncertain = uncertain or (contradicted[pair, 1] < to_ms and from_ms < contradicted[pair, 2])
        if uncertain:
            flag |= F_CLOCK
        ends = said.order_stop[first]
        for piece in range(first, sessions[session, PIECE_TO]):
            if said.order[first] >= 0 and ends != NONE and said.stop[piece] != NONE and said.stop[piece] > ends:
                flag |= F_BOUNDARY
        if not line.shows_gaps[number]:
            flag |= F_BLIND
        sessions[session, FLAG] |= flag
    return beyond


def count_inside(told: Any, found: Any, max_ms: int, high: int, session: int, out: Any) -> None:
    """What the events within the span of a session add up to."""
    pieces, row_of, one = found.pieces, out.by_instant, out.sessions[session]
    first, stop = one[PIECE_FROM], one[STOP_PIECE]
    pca, worst, greatest, given, known = 0, -1, np.nan, 0.0, True
    for at in range(one[INSIDE_FROM], one[INSIDE_TO]):
        row = row_of[at]
        kind = told.kind[row]
        if kind == _BOLUS:
            one[BOLUSES] += 1
            pca += told.source[row] == _PCA
            known = known and not np.isnan(told.volume[row])
            given += told.volume[row]
        elif kind == _GRANTED:
            one[GRANTED_N] += 1
        elif kind == _DENIED:
            one[DENIED_N] += 1
        worst = max(worst, told.quality[row])
        rate = told.rate[row]
        if not np.isnan(rate) and (np.isnan(greatest) or rate > greatest):
            greatest = rate
    one[WORST] = worst if worst >= 0 else UNKNOWN
    out.amounts[session, MAX_RATE] = greatest
    if pca > one[GRANTED_N]:
        one[FLAG] |= F_BEYOND_DEMAND
    flows = 0.0
    for at in range(one[INSIDE_FROM], one[INSIDE_TO]):
        row = row_of[at]
        if row != high and not np.isnan(found.amount[row]) and is_flow_of(pieces, first, stop, told.ms[row], row):
            flows += found.amount[row]
    if not np.isnan(found.amount[high]) and is_flow_of(pieces, first, stop, max_ms, high):
        flows += found.amount[high]
    reached, lasted = NONE, 0
    for piece in range(first, one[PIECE_TO]):
        for at in range(pieces[piece, SEG_FROM], pieces[piece, SEG_TO]):
            source, how = found.segments[at, SRC], found.segments[at, CODE]
            if found.segments[at, WHAT] != INFUSING:
                known = False
                continue
            if how == BOLUS:
                continue
            stop_row = found.segments[at, E_ROW]
            known = known and found.segments[at, E_RANK] == stop_row and not np.isnan(found.amount[stop_row])
            if source in (_PCA, _CLINICIAN, _LOADING):
                continue
            low_ms, high_ms = found.segments[at, S_MS], found.segments[at, E_MS]
            if high_ms > low_ms and (reached == NONE or high_ms > reached):
                lasted += high_ms - (low_ms if reached == NONE else max(low_ms, reached))
                reached = high_ms
    one[CONTINUOUS] = lasted
    if known:
        out.amounts[session, VOLUME] = flows + given


def is_flow_of(pieces: Any, first: int, stop: int, ms: int, row: int) -> bool:
    """Whether a delivery that ended at this record is of the session from the start of one piece to the end of another."""
    after_start = before_row(pieces, first, S_MS, ms, row)
    return after_start and not before_row(pieces, stop, E_MS, ms, row)


# --- intervals ------------------------------------------------------------------------------------------------------------------


def lay_out(told: Any, found: Any, low: int, high: int, session: int, reach: Any, intervals: Any, out: Any) -> Any:
    """The span of a session cut into intervals of one kind each, in order, each with a segment that shows it. Gives the intervals: a
    larger array where they did not fit. `reach` is how far the segments of KVO of the stretch reach, each with those before it."""
    pieces, segments, one = found.pieces, found.segments, out.sessions[session]
    of = found.of_stretch[one[STRETCH]]
    from_ms, to_ms = pieces[one[PIECE_FROM], S_MS], pieces[one[STOP_PIECE], E_MS]
    if from_ms == to_ms:
        return intervals
    kvo_from = of[IDLES] + np.searchsorted(reach, from_ms)
    kvo_to = kvo_from
    while kvo_to < of[SEGS_END] and segments[kvo_to, S_MS] <= to_ms:
        kvo_to += 1
    end_from, end_to = of[ENDS], of[ENDS_END]
    while end_from < end_to:
        middle = (end_from + end_to) // 2
        if found.ends[middle, END_MS] <= from_ms:
            end_from = middle + 1
        else:
            end_to = middle
    while end_to < of[ENDS_END] and found.ends[end_to, END_MS] <= to_ms:
        end_to += 1
    own = 0
    for piece in range(one[PIECE_FROM], one[PIECE_TO]):
        own += pieces[piece, SEG_TO] - pieces[piece, SEG_FROM]
    shown = np.empty(own + kvo_to - kvo_from, dtype=np.int64)
    bounds = np.zeros(4, dtype=np.int64)
    edges = np.empty(2 * len(shown) + end_to - end_from + 2, dtype=np.int64)
    number = 0
    for what in (INFUSING, UNPROVED):
        for piece in range(one[PIECE_FROM], one[PIECE_TO]):
            if pieces[piece, PIECE_WHAT] == what:
                for at in range(pieces[piece, SEG_FROM], pieces[piece, SEG_TO]):
                    shown[number] = at
                    number += 1
        bounds[what + 1] = number
    for at in range(kvo_from, kvo_to):
        shown[number] = at
        number += 1
    bounds[IDLE + 1] = number
    edges[0], edges[1] = from_ms, to_ms
    count = 2
    for i in range(number):
        edges[count] = min(max(segments[shown[i], S_MS], from_ms), to_ms)
        edges[count + 1] = min(max(segments[shown[i], E_MS], from_ms), to_ms)
        count += 2
    for at in range(end_from, end_to):
        if found.ends[at, END_MS] < to_ms:
            edges[count] = found.ends[at, END_MS]
            count += 1
    edges = np.sort(edges[:count])
    if out.made[N_INTERVAL] + count > len(intervals):
        more = np.empty((2 * len(intervals) + count, 9), dtype=np.int64)
        more[: out.made[N_INTERVAL]] = intervals[: out.made[N_INTERVAL]]
        intervals = more
    begin = out.made[N_INTERVAL]
    made = begin
    at_what = bounds[:3].copy()
    longest = np.full(3, -1, dtype=np.int64)
    shows_last, ended = -1, end_from
    for i in range(count - 1):
        left, right = edges[i], edges[i + 1]
        if left == right:
            continue
        what, shows = PAUSED, -1
        for one_of in range(3):
            while at_what[one_of] < bounds[one_of + 1] and segments[shown[at_what[one_of]], S_MS] <= left:
                at = shown[at_what[one_of]]
                if longest[one_of] < 0 or segments[at, E_MS] > segments[longest[one_of], E_MS]:
                    longest[one_of] = at
                at_what[one_of] += 1
            if shows < 0 and longest[one_of] >= 0 and segments[longest[one_of], E_MS] >= right:
                what, shows = one_of, longest[one_of]
        while ended < of[ENDS_END] and found.ends[ended, END_MS] <= left:
            ended += 1
        if shows < 0 and ended > of[ENDS] and found.ends[ended - 1, ALARMED]:
            what = ALARM
        one[INFUSED + what] += right - left
        if made > begin and intervals[made - 1, I_CLASS] == what and (what != INFUSING or shows_last == shows):
            intervals[made - 1, I_TO] = right
            continue
        shows_last = shows
        intervals[made, I_SESSION] = session
        intervals[made, I_FROM] = left
        intervals[made, I_TO] = right
        intervals[made, I_CLASS] = what
        intervals[made, I_SOURCE] = segments[shows, SRC] if shows >= 0 else -1
        intervals[made, I_FIRST] = segments[shows, S_ROW] if shows >= 0 else -1
        intervals[made, I_LAST] = segments[shows, E_ROW] if shows >= 0 else -1
        made += 1
    for at in range(begin, made):
        for ms, into in ((I_FROM, I_FROM_UTC), (I_TO, I_TO_UTC)):
            near = out.by_instant[max(low, up_to(told, out.by_instant, low, high, intervals[at, ms], True) - 1)]
            intervals[at, into] = utc_of(told, intervals[at, ms], near)
    out.made[N_INTERVAL] = made
    return intervals


# --- set-ups (§5) ---------------------------------------------------------------------------------------------------------------


def add_setup(told: Any, out: Any, number: int, begin: int, session: int) -> None:
    """The rows of `fills` from `begin` on are one set-up, of this session (-1: of none)."""
    pump, site = False, NO
    for at in range(begin, out.made[N_FILL]):
        row = out.fills[at]
        if told.kind[row] == _RESERVOIR:
            pump = True
        elif told.kind[row] == _PRIMED:
            aborted = told.aborted[row]
            pump = pump or (told.target[row] != CANNULA and not aborted)
            if told.target[row] == CANNULA and not aborted:
                site = YES
            elif told.target[row] != TUBING and site == NO:
                site = POSSIBLE
    at = out.made[N_SETUP]
    out.setups[at, U_STRETCH] = number
    out.setups[at, U_SESSION] = session
    out.setups[at, U_PUMP] = pump
    out.setups[at, U_SITE] = site
    out.setups[at, U_FROM] = begin
    out.setups[at, U_TO] = out.made[N_FILL]
    out.made[N_SETUP] += 1


def session_of(out: Any, begin: int, piece: int) -> int:
    """The session of a piece, of those from `begin` on; -1 where there is no such piece."""
    left, right = begin, out.made[N_SESSION]
    while left < right:
        middle = (left + right) // 2
        if out.sessions[middle, PIECE_TO] <= piece:
            left = middle + 1
        else:
            right = middle
    return int(left) if left < out.made[N_SESSION] else -1


def make_setups(told: Any, line: Any, found: Any, number: int, begin: int, out: Any) -> None:
    """Set-up events with no piece beginning between them are one set-up; one within a piece is one of its own. Those before a halt
    that settles the stretch, and is no set-up event itself, may lie within a delivery that the log does not show: of no session."""
    pieces, of = found.pieces, found.of_stretch[number]
    settled = of[SETTLED]
    if of[BY_START] or is_quiet(line, found, number) or (settled >= 0 and told.kind[settled] == _RESERVOIR):
        settled = -1
    first, last = of[PIECES], of[PIECES_END]
    longest = np.empty(last - first, dtype=np.int64)
    for piece in range(first, last):
        longest[piece - first] = piece
        if piece > first and not earlier(pieces, longest[piece - first - 1], E_MS, pieces, piece, E_MS):
            longest[piece - first] = longest[piece - first - 1]
    opened, newest = out.made[N_FILL], -1
    held = np.empty(line.last[number] + 1 - line.first[number], dtype=np.int64)
    waiting = 0
    for row in range(line.first[number], line.last[number] + 1):
        kind = told.kind[row]
        if kind != _RESERVOIR and kind != _PRIMING and kind != _PRIMED:
            continue
        ms = told.ms[row]
        begun = starting(pieces, first, last, ms, row, False)
        within = -1
        left, right = first, begun
        while left < right:
            middle = (left + right) // 2
            one = longest[middle - first]
            if pieces[one, E_MS] > ms or (pieces[one, E_MS] == ms and pieces[one, E_RANK] > row):
                right = middle
            else:
                left = middle + 1
        if left < begun:
            within = longest[left - first]
        if within >= 0:
            opened = out.made[N_FILL]
            out.fills[opened] = row
            out.made[N_FILL] += 1
            add_setup(told, out, number, opened, session_of(out, begin, within))
            continue
        if waiting > 0 and (newest < settled <= row or begun > starting(pieces, first, last, told.ms[newest], newest, True)):
            flush(told, pieces, first, last, number, begin, held, waiting, settled, out)
            waiting = 0
        held[waiting] = row
        waiting += 1
        newest = row
    if waiting > 0:
        flush(told, pieces, first, last, number, begin, held, waiting, settled, out)


def flush(
    told: Any, pieces: Any, first: int, last: int, number: int, begin: int, held: Any, waiting: int, settled: int, out: Any
) -> None:  # fmt: skip
    """The set-up events that waited are one set-up, of the session of the next piece if none of them is before the settling record."""
    opened, newest = out.made[N_FILL], held[waiting - 1]
    out.fills[opened : opened + waiting] = held[:waiting]
    out.made[N_FILL] += waiting
    piece = starting(pieces, first, last, told.ms[newest], newest, True)
    add_setup(told, out, number, opened, session_of(out, begin, piece) if piece < last and newest >= settled else -1)


# --- all ------------------------------------------------------------------------------------------------------------------------


def run(told: Any, line: Any, found: Any, said: Any, contradicted: Any, gap_ms: int, out: Any) -> Any:
    """Sessions, set-ups and cuts of all stretches: fills `out`, and gives the intervals."""
    intervals = np.empty((1024, 9), dtype=np.int64)
    torn = 0
    for number in range(len(line.first)):
        low, high, of = line.first[number], line.last[number], found.of_stretch[number]
        begin = out.made[N_SESSION]
        sort_rows(told, out.by_instant, low, high)
        max_ms = told.ms[out.by_instant[high]]
        news = 0
        for row in range(low, high + 1):
            news += told.kind[row] == _PATIENT
        patients = np.empty(news, dtype=np.int64)
        news = 0
        for row in range(low, high + 1):
            if told.kind[row] == _PATIENT:
                patients[news] = row
                news += 1
        make_sessions(told, found, said, number, patients, gap_ms, out)
        for session in range(begin, out.made[N_SESSION]):
            one = out.sessions[session]
            one[INSIDE_FROM] = up_to(told, out.by_instant, low, high, found.pieces[one[PIECE_FROM], S_MS], False)
            one[INSIDE_TO] = up_to(told, out.by_instant, low, high, found.pieces[one[STOP_PIECE], E_MS], True)
        flag_ends(line, found, number, begin, gap_ms, out)
        flag_cut(told, line, found, number, begin, gap_ms, out)
        torn = flag_rest(told, line, found, said, number, begin, gap_ms, contradicted, torn, out)
        make_setups(told, line, found, number, begin, out)
        reach = np.empty(of[SEGS_END] - of[IDLES], dtype=np.int64)
        for at in range(of[IDLES], of[SEGS_END]):
            reach[at - of[IDLES]] = found.segments[at, E_MS]
            if at > of[IDLES]:
                reach[at - of[IDLES]] = max(reach[at - of[IDLES]], reach[at - of[IDLES] - 1])
        for session in range(begin, out.made[N_SESSION]):
            count_inside(told, found, max_ms, high, session, out)
            intervals = lay_out(told, found, low, high, session, reach, intervals, out)
    return intervals[: out.made[N_INTERVAL]]


KERNELS = (
    "earlier", "sort_rows", "up_to", "utc_of", "any_within", "starting", "before_row", "patient_between", "make_sessions", "flag_ends",
    "is_quiet", "flag_cut", "too_soon", "instants_of", "flag_rest", "is_flow_of", "count_inside", "lay_out", "add_setup", "session_of",
    "flush", "make_setups", "run",
)  # fmt: skip
LEAN = frozenset[str]()
