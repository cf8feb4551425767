"""`assemble`: the log by its numbers, its time from reference times, and what several records tell together."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from devices import sequence
from devices.contract import EVENTS, HOLES, Kind, Log, PlacedAnchor, dump_detail
from devices.ids.records import UNIT
from devices.ids.values import Bools, Ints

_PAIRS = {"005A": "0066", "0069": "0096", "033F": "0356"}
_BASES = ("000F", "F00E")


def assemble(pump_id: str, records: pa.Table, faults: pa.Table, anchors: pa.Table) -> Log:
    """The log by its sequence numbers; then its time, and what several records tell together, whichever captures they came in.

    Two parts of one thing are one event, under the key of the first. A record without a base time is part of the hole before it, or
    of one at the start of the log. A stop or start that the maker's own record tells again is told once.
    """
    has_number = records.column("seq").is_valid()
    numbered = records.filter(has_number)
    log = sequence.assemble(pump_id, numbered, faults, anchors)
    book = _Book(pump_id, log, records.filter(pc.invert(has_number)))
    book.set_times()
    book.join_parts()
    book.time_boluses()
    book.tell_once()
    book.rate_starts()
    where = book.event_ids()
    mine, lost = iter(log.event_of_record.to_pylist()), iter(book.lost_at)
    of = [where[next(mine)] if known else where[next(lost)] for known in has_number.to_pylist()]
    return replace(log, events=book.events(), anchors=book.anchors(), event_of_record=pa.array(of, pa.string()))


class _Book:
    """The rows of a log while they are put right. `into` says which row an event is told by: another one, where it is no event itself."""

    def __init__(self, pump_id: str, log: Log, lost: pa.Table) -> None:
        self.pump_id = pump_id
        self._anchors = log.anchors
        self.table, self._shift = log.events, np.arange(log.events.num_rows)
        self.lost_at: list[str] = []
        if lost.num_rows:
            self._place(lost.to_pylist())
        size = self.table.num_rows
        self.into = np.arange(size)
        self.code = np.array(self.table.column("native_code").to_pylist(), dtype=object)
        self.kind = np.array(self.table.column("kind").to_pylist(), dtype=object)
        self.hole = np.isin(self.kind, [kind.value for kind in HOLES])
        self.is_base = np.isin(self.code, _BASES) & (self.kind == Kind.CLOCK_CHANGE.value)
        self.loss = (self.kind == Kind.CLOCK_CHANGE.value) & (np.array(self.table.column("reason").to_pylist(), dtype=object) == "loss")
        self.seq = self.table.column("seq").fill_null(-1).to_numpy()
        self.offset = self.table.column("native_ms").fill_null(0).to_numpy()
        self.base = np.full(size, -1)
        self.native = np.zeros(size, dtype=np.int64)
        self.has_time = np.zeros(size, dtype=np.bool_)
        self.changed: dict[str, dict[int, Any]] = {}

    def _place(self, lost: list[dict[str, Any]]) -> None:
        """Puts a hole where a corruption without a number was received, unless there is one already."""
        keys, seqs = self.table.column("record_key").to_pylist(), self.table.column("seq").to_pylist()
        ids, codes = self.table.column("event_id").to_pylist(), self.table.column("native_code").to_pylist()
        rows = [row for row, seq in enumerate(seqs) if seq is not None]
        numbers = [seqs[row] for row in rows]
        new: dict[int, dict[str, Any]] = {}
        for record in lost:
            near = json.loads(record["detail"])
            if near["after"] is not None:
                at = int(np.searchsorted(numbers, near["after"], side="right"))
                row = rows[at - 1] + 1 if at else 0
            else:
                at = int(np.searchsorted(numbers, near["before"]))
                row = rows[at] if at < len(rows) else len(seqs)
            there = next((one for one in (row, row - 1) if 0 <= one < len(seqs) and seqs[one] is None and not codes[one]), None)
            if there is not None:
                self.lost_at.append(ids[there])
                continue
            key = f"gap:0:behind-{keys[row - 1]}" if row else "gap:0:start"
            said = {"native_code": "03A6", "raw": min(record["raw"], new[row]["raw"]) if row in new else record["raw"]}
            new[row] = {**sequence.hole_row(self.pump_id, 0, Kind.DATA_CORRUPTION, key), **said}
            self.lost_at.append(new[row]["event_id"])
        if not new:
            return
        places = np.concatenate((np.arange(len(seqs)), np.array(list(new)) - 0.5))
        order = np.argsort(places, kind="stable")
        both = pa.concat_tables([self.table, pa.Table.from_pylist(list(new.values()), schema=EVENTS)])
        self.table = both.take(pa.array(order)).combine_chunks()
        self._shift = np.flatnonzero(order < len(seqs))

    # --- time ----------------------------------------------------------------------------------------------------------------

    def set_times(self) -> None:
        """Wall time and elapsed time from the last base with no hole in between (docs/pump-formats.md §5.2, time rules).

        Elapsed time begins, behind each hole or loss, at the time that the first base shows, and runs on over all later ones.
        """
        size = len(self.code)
        if not size:
            return
        number = np.arange(size)
        before = np.concatenate(([-1], np.maximum.accumulate(np.where(self.is_base, number, -1))[:-1]))
        hole = np.maximum.accumulate(np.where(self.hole, number, -1))
        based = ~self.hole & (before > hole)
        new = self.table.column("new_time").cast(pa.int64()).fill_null(0).to_numpy()
        elapsed = self._elapsed(based, new)
        own = self.loss | (self.is_base & ~based)
        shown = np.where(own, new, new[before] + self.offset)
        self.native = np.where(self.is_base, elapsed, elapsed[before] + self.offset)
        self.base = np.where(based, before, -1)
        self.has_time = based | self.is_base
        self._absorb(np.flatnonzero(~self.hole & ~self.has_time), hole)
        mask = ~self.has_time
        self._replace("pump_time", pa.array(shown, mask=mask).cast(pa.timestamp("ms")))
        self._replace("native_ms", pa.array(self.native, mask=mask))

    def _elapsed(self, based: Bools, new: Ints) -> Ints:
        """Elapsed time at each base, 0 elsewhere."""
        bases = np.flatnonzero(self.is_base)
        fresh = ~based[bases] | self.loss[bases]
        passed = np.cumsum(np.where(fresh, 0, self.offset[bases]))
        begun = np.maximum.accumulate(np.where(fresh, np.arange(len(bases)), 0))
        elapsed = np.zeros(len(based), dtype=np.int64)
        elapsed[bases] = passed - passed[begun] + new[bases[begun]]
        return elapsed

    def _absorb(self, rows: Ints, hole: Ints) -> None:
        """Records without a base become part of the hole before them; at the start of the log, a hole of their own."""
        for before in np.unique(hole[rows]).tolist():
            mine = rows[hole[rows] == before]
            if before >= 0:
                detail = {**json.loads(self.table.column("detail")[before].as_py()), "without_time": len(mine)}
                self._set("detail", before, dump_detail(detail))
            else:
                key = f"gap:0:{self.seq[mine[0]]}-{self.seq[mine[-1]]}"
                told = sequence.hole_row(self.pump_id, 0, Kind.DATA_CORRUPTION, key, dump_detail({"without_time": len(mine)}))
                for name, value in {**dict.fromkeys(EVENTS.names), **told}.items():
                    self._set(name, int(mine[0]), value)
                self.hole[mine[0]] = True
            self.into[mine] = before if before >= 0 else mine[0]

    # --- what belongs together -----------------------------------------------------------------------------------------------

    def join_parts(self) -> None:
        """Part 2 with the next number and the same offset goes into part 1: its fields, and its bytes behind the first's."""
        second = np.array([_PAIRS.get(code, "-") for code in self.code[:-1]], dtype=object) == self.code[1:]
        near = (np.diff(self.seq) == 1) & (np.diff(self.offset) == 0) & self.has_time[1:] & self.has_time[:-1]
        rows = np.flatnonzero(second & near)
        if not len(rows):
            return
        wanted = self.table.select(["detail", "raw", "conflict"])
        ones, twos = wanted.take(pa.array(rows)).to_pylist(), wanted.take(pa.array(rows + 1)).to_pylist()
        for row, one, two in zip(rows.tolist(), ones, twos, strict=True):
            if one["conflict"] or two["conflict"]:
                parts = [json.loads(one["detail"]), json.loads(two["detail"])]
                others = sorted({other for part in parts for other in part.get("conflicts_with", ())})
                detail = dump_detail({**parts[1], **parts[0], "conflicts_with": others})
                self._set("conflict", row, True)
            else:
                detail = one["detail"][:-1] + "," + two["detail"][1:]
            self._set("detail", row, detail)
            self._set("raw", row, one["raw"] + two["raw"])
        self.into[rows + 1] = rows

    def time_boluses(self) -> None:
        """How long boluses took: the effective minutes; where these are 0, since the programming of that id and the start after it.

        Nothing is known across a cut, and a bolus of which nothing came took no time.
        """
        cut = np.cumsum(self.hole | self.loss)
        rows = np.flatnonzero(np.isin(self.code, ("005A", "0069")) & self.has_time)
        asked: dict[tuple[int, int], tuple[int, Any, Any]] = {}
        amounts = [self.table.column(name) for name in ("programmed_dose", "programmed_ml", "dose")]
        for row in rows.tolist():
            detail = json.loads(self._get("detail", row))
            bolus = int(cut[row]), detail["bolus_id"]
            if self.code[row] == "005A":
                asked[bolus] = int(self.native[row]), amounts[0][row].as_py(), amounts[1][row].as_py()
                continue
            begun = asked.get(bolus)
            if begun is not None:
                self._set("programmed_dose", row, begun[1])
                self._set("programmed_ml", row, begun[2])
            lasted = detail["minutes"] * 60.0
            if not lasted and begun is not None and "start_offset_s" in detail:
                lasted = (int(self.native[row]) - begun[0]) / 1000 - detail["start_offset_s"]
            if lasted > 0 and amounts[2][row].as_py() != 0:
                self._set("duration_s", row, float(lasted))

    def tell_once(self) -> None:
        """F00A and F00B beside a 0303 of the same meaning and offset, with no other turn between them, are told by that."""
        turns = np.flatnonzero(np.isin(self.code, ("0303", "F00A", "F00B")) & (self.kind != Kind.OTHER.value) & self.has_time)
        for number, row in enumerate(turns.tolist()):
            if self.code[row] == "0303":
                continue
            beside = [int(turns[at]) for at in (number - 1, number + 1) if 0 <= at < len(turns)]
            if any(
                self.code[one] == "0303"
                and self.kind[one] == self.kind[row]
                and (self.base[one], self.offset[one]) == (self.base[row], self.offset[row])
                for one in beside
            ):
                for name, value in (("kind", Kind.OTHER.value), ("source", None), ("reason", None)):
                    self._set(name, row, value)

    def rate_starts(self) -> None:
        """A start runs at the rate that a 0099 of the same instant tells; at 0 where the 0099 before it, or the next one, says so.

        What runs at 0 must not count as delivery. Where no 0099 tells, the rate is not known, and above 0 (docs/semantics.md §1).
        """
        rates = np.flatnonzero((self.code == "0099") & self.has_time)
        turns = np.flatnonzero(np.isin(self.code, ("0303", "F00A", "F00B")) & (self.kind != Kind.OTHER.value) & self.has_time)
        run = np.cumsum(self.hole | self.loss)
        names = ("rate_dose_h", "rate_ml_h", "dose_unit")
        columns = {name: self.table.column(name) for name in names}
        for number, row in enumerate(turns.tolist()):
            if self.kind[row] != Kind.DELIVERY_START.value or self._get("kind", row) == Kind.OTHER.value:
                continue
            at = int(np.searchsorted(rates, row))
            after, before = rates[at : at + 1].tolist(), rates[max(0, at - 1) : at].tolist()
            near = [one for one in (*after, *before) if run[one] == run[row]]
            told = next((one for one in near if self.native[one] == self.native[row]), None)
            if told is not None:
                said = {name: columns[name][told].as_py() for name in names}
            elif any(columns["rate_dose_h"][one].as_py() == 0 for one in before if one in near) or any(
                json.loads(self._get("detail", one))["old_u_h"] == 0
                for one in after
                if one in near and (number + 1 == len(turns) or one < turns[number + 1])
            ):
                said = {"rate_dose_h": 0.0, "rate_ml_h": 0.0, "dose_unit": UNIT}
            else:
                continue
            for name, value in said.items():
                self._set(name, row, value)

    # --- the result ----------------------------------------------------------------------------------------------------------

    def _get(self, name: str, row: int) -> Any:
        changed = self.changed.get(name, {})
        return changed[row] if row in changed else self.table.column(name)[row].as_py()

    def _set(self, name: str, row: int, value: Any) -> None:
        self.changed.setdefault(name, {})[row] = value

    def _replace(self, name: str, column: pa.Array) -> None:
        self.table = self.table.set_column(self.table.schema.get_field_index(name), EVENTS.field(name), column)

    def events(self) -> pa.Table:
        """The events that are left, with all changes."""
        for name, values in self.changed.items():
            chosen = np.zeros(len(self.code), dtype=np.bool_)
            rows = sorted(values)
            chosen[rows] = True
            kind = EVENTS.field(name).type
            column = self.table.column(name).combine_chunks()
            self._replace(name, pc.replace_with_mask(column, pa.array(chosen), pa.array([values[row] for row in rows], kind)))
        self.changed = {}
        return self.table.filter(pa.array(self.into == np.arange(len(self.into)))).combine_chunks()

    def event_ids(self) -> dict[str, str]:
        """By the id that a row began with, the id of the event that tells it."""
        ids = self.table.column("event_id").to_pylist()
        changed = self.changed.get("event_id", {})
        final = [changed.get(row, began) for row, began in enumerate(ids)] if changed else ids
        return {began: final[into] for began, into in zip(ids, self.into.tolist(), strict=True)}

    def anchors(self) -> tuple[PlacedAnchor, ...]:
        """The anchors behind the rows that are left."""
        row_of = np.cumsum(self.into == np.arange(len(self.into))) - 1
        return tuple(replace(anchor, after=int(row_of[self.into[self._shift[anchor.after]]])) for anchor in self._anchors)
