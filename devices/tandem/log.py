"""`assemble`: the log by its numbers, and what several records tell together - rates of resumes, the length of boluses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from devices import sequence
from devices.contract import HOLES, AlarmClass, Kind, Log
from devices.tandem.events import RESUMED, SUSPENDED, UNIT
from devices.tandem.records import AMOUNTS, NONE, Bools, Ints

_STEP_BACK_MS = 60_000
"""A record this far before the one it follows shows a clock that went back, or is damaged (docs/semantics.md §3)."""
_NOT_IN_A_HOLE = ("source", "reason", "target", "at", "alarm_class", "stops_delivery", "new_time", *AMOUNTS, "dose_unit")
_NOT_IN_OTHER = ("source", "at", "dose", "volume_ml", "programmed_dose", "programmed_ml", "dose_unit")


def assemble(pump_id: str, records: pa.Table, faults: pa.Table, anchors: pa.Table) -> Log:
    """The log by its sequence numbers; then what several records tell together, whichever captures they came in.

    A resume takes its rate from the same second, a bolus its duration from its activation; a bolus that a completion tells is
    not told again by its delivery record, nor a day by a sum that a later one has passed. This pump writes down what happens as it
    happens, so a single record whose time fits neither neighbour is a damaged one: a hole.
    """
    log = sequence.assemble(pump_id, records, faults, anchors)
    events = log.events
    if not events.num_rows:
        return log
    found = _told_together(events)
    events = _set(events, "rate_dose_h", {row: rate for row, (rate, _) in found.rates.items()})
    events = _set(events, "rate_ml_h", {row: rate for row, (_, rate) in found.rates.items()})
    events = _set(events, "dose_unit", dict.fromkeys(found.rates, UNIT))
    events = _set(events, "duration_s", found.durations)
    for rows, kind, without in ((found.again, Kind.OTHER, _NOT_IN_OTHER), (found.damaged, Kind.DATA_CORRUPTION, _NOT_IN_A_HOLE)):
        events = _set(events, "kind", dict.fromkeys(rows, kind.value))
        for name in without:
            events = _set(events, name, dict.fromkeys(rows))
    return replace(log, events=events.combine_chunks())


def _set(events: pa.Table, name: str, values: Mapping[int, Any]) -> pa.Table:
    """The table with other values in some rows of a column."""
    if not values:
        return events
    where = events.schema.get_field_index(name)
    chosen = np.zeros(events.num_rows, dtype=np.bool_)
    rows = sorted(values)
    chosen[rows] = True
    kind = events.schema.field(name).type
    column = pc.replace_with_mask(events.column(name).combine_chunks(), pa.array(chosen), pa.array([values[row] for row in rows], kind))
    return events.set_column(where, events.schema.field(name), column)


@dataclass(frozen=True, slots=True)
class _Together:
    """By row: rates of resumes (U/h, mL/h), durations of boluses; rows that tell again what another tells; damaged rows."""

    rates: Mapping[int, tuple[float, float]]
    durations: Mapping[int, float]
    again: Sequence[int]
    damaged: Sequence[int]


def _told_together(events: pa.Table) -> _Together:
    native, kinds = events.column("native_code"), events.column("kind")
    codes = pc.if_else(pc.equal(native, ""), "-1", native).cast(pa.int64()).to_numpy().copy()
    lost = pc.equal(events.column("alarm_class"), AlarmClass.CLOCK_LOST.value).fill_null(False)
    lost = pc.and_(lost, pc.equal(kinds, Kind.ALARM_RAISED.value)).to_numpy()
    hole = pc.is_in(kinds, pa.array([kind.value for kind in HOLES])).to_numpy()
    time, new = (events.column(name).cast(pa.int64()).fill_null(NONE).to_numpy() for name in ("pump_time", "new_time"))
    time, step = np.where(hole, NONE, time), np.where(new == NONE, 0, new - time)
    damaged = _damaged(np.cumsum(hole | lost), time, step)
    codes[damaged], step[damaged], hole[damaged] = -1, 0, True
    run = np.cumsum(hole | lost)
    durations, again = _boluses(events, codes, run, time - (np.cumsum(step) - step))
    sums = np.flatnonzero((codes == 81) | (codes == 90))
    passed = (codes[sums[:-1]] == 81) & (codes[sums[1:]] == 81) & (run[sums[:-1]] == run[sums[1:]])
    rates = _resume_rates(events, codes, time, hole | lost | (step != 0))
    return _Together(rates, durations, [*again, *sums[:-1][passed].tolist()], damaged)


def _damaged(run: Ints, time: Ints, step: Ints) -> list[int]:
    """Rows without which the clock does not go back where it does: both sides of that place, if either would do."""
    back = (run[1:] == run[:-1]) & (time[:-1] != NONE)
    back &= time[1:] < np.where(time[:-1] != NONE, time[:-1] + step[:-1], 0) - _STEP_BACK_MS
    found = set()
    for row in np.flatnonzero(back).tolist():
        for without, before, after in ((row, row - 1, row + 1), (row + 1, row, row + 2)):
            inside = before >= 0 and after < len(run) and run[before] == run[after] and time[before] != NONE
            if not inside or time[after] >= time[before] + step[before] - _STEP_BACK_MS:
                found.add(without)
    return sorted(found)


def _resume_rates(events: pa.Table, codes: Ints, time: Ints, breaks: Bools) -> dict[int, tuple[float, float]]:
    """Rates of the resumes: of the next rate record of the same second, else of the one before; no other resume or stop between."""
    told = np.flatnonzero((codes == 3) | (codes == 279))
    details = [json.loads(text) for text in events.column("detail").take(pa.array(told)).to_pylist()]
    resumes = [one["change"] & RESUMED if "change" in one else one["rate_source"] != SUSPENDED for one in details]
    told = told[np.array(resumes, dtype=np.bool_)]
    turn = (codes == 11) | (codes == 12)
    second = np.cumsum(breaks | np.append(True, np.diff(time) != 0))
    turns = np.cumsum(turn)
    found = {}
    for row in np.flatnonzero(codes == 12).tolist():
        at = int(np.searchsorted(told, row))
        near = [*told[at : at + 1].tolist(), *told[max(0, at - 1) : at].tolist()]
        same = (one for one in near if second[one] == second[row] and turns[one] == turns[row] - (one < row))
        if (one := next(same, None)) is not None:
            found[row] = (events.column("rate_dose_h")[one].as_py(), events.column("rate_ml_h")[one].as_py())
    return found


def _boluses(events: pa.Table, codes: Ints, run: Ints, elapsed: Ints) -> tuple[dict[int, float], list[int]]:
    """Durations of the boluses by row, and the delivery records of boluses that another record tells.

    An extended bolus has an activation and a completion of its own (59, 21) under the id of its first part (55, 20). A bolus
    of which nothing came took no time.
    """
    done = pc.equal(events.column("kind"), Kind.BOLUS_DELIVERED.value).to_numpy()
    rows = np.flatnonzero(np.isin(codes, (20, 21, 55, 59)) | ((codes == 280) & done))
    details = events.column("detail").take(pa.array(rows)).to_pylist()
    doses = events.column("dose").take(pa.array(rows)).to_pylist()
    begun: dict[tuple[int, int], int] = {}
    durations: dict[int, float] = {}
    told: dict[int, int] = {}
    again: list[int] = []
    ids = [json.loads(detail)["bolus_id"] for detail in details]
    completed = {bolus for bolus, row in zip(ids, rows.tolist(), strict=True) if codes[row] in (20, 21)}
    for bolus, row, dose in zip(ids, rows.tolist(), doses, strict=True):
        code = int(codes[row])
        if code in (55, 59):
            begun[bolus, code] = row
            continue
        if code == 280:
            if bolus in completed:
                again.append(row)
                continue
            if bolus in told:
                again.append(told[bolus])
            told[bolus] = row
        known = [begun[bolus, one] for one in _BEGINNINGS[code] if (bolus, one) in begun]
        if known and dose:
            start = max(known) if code == 280 else known[0]
            if run[start] == run[row] and elapsed[row] >= elapsed[start]:
                durations[row] = float(elapsed[row] - elapsed[start]) / 1000
    return durations, again


_BEGINNINGS = {20: (55, 59), 21: (59, 55), 280: (55, 59)}
"""Whose activation a completion is of: its own kind's first."""
