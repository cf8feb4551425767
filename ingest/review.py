"""What people do with lines: decide on what is held, take what is ready once, and see what changed since (docs/decisions/0019, 0020).

`decide` and `undo` keep a decision and derive what it touches; `release` freezes lines; `amendments` lists what changed in them.
Nothing here edits a table: decisions and releases are inputs of the next derivation. Nobody decides or releases on tables that do
not show yet what is there (InputError "stale").
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from devices.errors import InputError
from ingest import explain, night, people, views
from ingest.lake import Lake
from ingest.people import Release
from transforms import decisions, tables
from transforms.decisions import AMENDED, CLEAR, CLOCK, DECISION_LAPSED, HOLD, NOTE, SITE, STOP, UNDO, VOID, Case, Decision, Evidence
from transforms.orders import utc_ms
from transforms.tables import identify, rows_to_table
from transforms.worklist import written

_SHORTEST = 6
_Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A decision that is kept, the lines of what it is about as they are now, and whether the tables show it already."""

    decision: Decision
    lines: list[_Row]
    shown: bool


# --- decisions ----------------------------------------------------------------------------------------------------------------


def decide(root: Path, ident: str, action: str, *, by: str, argument: str = "", note: str = "", at: datetime | None = None) -> Outcome:
    """Keeps a decision about what this id names (a line, item, session, set-up or event), and derives what it touches.

    `argument` is T for `stop` and the code for `clear`. T is UTC with Z (or another offset), the local time of the order without one,
    or, where UTC is unknown there, what the pump printed. Raises InputError, StorageError.
    """
    lake = Lake.open(root)
    _signed(by)
    kind, whole = explain.find(lake, ident.strip().lower())
    if night.stale(root):
        raise _stale()
    asked = _Asked(lake, kind, whole)
    told = asked.about(action, argument, note)
    before = [one.decided_at for one in people.decisions(lake) if one.about == told["about"]]
    common = {"decided_at": _moment(at, before), "by": by.strip(), "action": action, "note": note}
    decision = decisions.decide(**{**_NOTHING, **common, "named": f"{kind} {whole}", **told})
    people.add(lake, decision)
    people.audit(lake)
    return _outcome(root, lake, decision)


def undo(root: Path, ident: str, *, by: str, note: str = "", at: datetime | None = None) -> Outcome:
    """Takes a decision back, whoever took it; so may an undo be. Raises InputError, StorageError."""
    lake = Lake.open(root)
    _signed(by)
    found = [one for one in people.decisions(lake) if one.decision_id.startswith(ident)]
    if len(ident) < _SHORTEST or len(found) != 1:
        why = "is too short" if len(ident) < _SHORTEST else f"names {len(found)} decisions"
        raise InputError(f"{ident!r} {why}.", do="Give more of an id of `pumpledger decide list`.", code="decision")
    one = found[0]
    if not stands(one, people.decisions(lake)):
        raise InputError(f"The decision {one.decision_id} was taken back already.", do="Nothing, if that is right.", code="decision")
    about = {name: getattr(one, name) for name in ("pump_id", "patient_id", "encounter_id", "session_ids")}
    told: _Row = {"by": by.strip(), "action": UNDO, "note": note, "named": f"decision {one.decision_id}", "about": one.decision_id}
    told |= {"decided_at": _moment(at, [one.decided_at]), "undoes": one.decision_id}
    decision = decisions.decide(**{**_NOTHING, **about, **told})
    people.add(lake, decision)
    people.audit(lake)
    return _outcome(root, lake, decision)


def stands(one: Decision, every: Iterable[Decision]) -> bool:
    """Whether nobody took a decision back."""
    undos = [other for other in every if other.undoes == one.decision_id]
    return not any(stands(undo_, every) for undo_ in undos)


_NOTHING: Mapping[str, Any] = {
    "argument": "", "pump_id": None, "patient_id": None, "encounter_id": None, "session_ids": (), "evidence_hash": "", "undoes": None,
}  # fmt: skip


def _signed(by: str) -> None:
    if not by.strip():
        raise InputError("Nobody signs this.", do="Say who decides with --by.", code="by")


def _moment(at: datetime | None, before: Iterable[datetime]) -> datetime:
    """When a decision is taken, to the millisecond: behind those on the same question, though the host's clock was set back since."""
    moment = (at or datetime.now(UTC)).astimezone(UTC)
    return max([moment.replace(microsecond=moment.microsecond // 1000 * 1000), *(one + decisions.MS for one in before if one > moment)])


def _stale() -> InputError:
    return InputError(
        "The tables do not show yet what the lake holds.",
        why="What was received, ordered or decided since the last night may change what this is about.",
        do="Run nightly, look again, and repeat this.",
        code="stale",
    )


def _outcome(root: Path, lake: Lake, decision: Decision) -> Outcome:
    shown = night.shown_at_once(root, decision.pump_id)
    mine = set(decision.session_ids)
    lines = [
        row
        for row in views.select(lake, "lines", patient=decision.patient_id).to_pylist()
        if row["encounter_id"] == decision.encounter_id or mine.intersection(row["session_ids"])
    ]
    return Outcome(decision, lines, shown)


class _Asked:
    """What a person named, and what can be decided about it."""

    def __init__(self, lake: Lake, kind: str, whole: str) -> None:
        self.lake, self.kind, self.whole = lake, kind, whole
        table, column = explain.KINDS[kind]
        rows = [row for row in lake.read(table, explain.SCHEMAS[table]).to_pylist() if row[column] == whole]
        self.row: _Row = max(rows, key=lambda row: row.get("revision", 0))
        self._bases: dict[str, Evidence] = {}
        self._cases: list[Case] | None = None

    def about(self, action: str, argument: str, note: str) -> _Row:
        """The columns of a decision that say what it is about and rests on."""
        match action:
            case decisions.SITE:
                return self._shaping(SITE, *self._site())
            case decisions.STOP:
                return self._stop(argument)
            case decisions.CLOCK:
                return self._shaping(CLOCK, *self._stretch())
            case decisions.CLEAR:
                return self._clear(argument)
            case decisions.HOLD | decisions.VOID | decisions.NOTE:
                if action == NOTE and not note.strip():
                    raise InputError("The note is empty.", do="Write what is to be known.", code="note")
                case = self._case()
                about = self.whole if self.kind == "line" else case.encounter_id
                if action in (HOLD, VOID) and not case.lines and self.kind != "line":
                    raise InputError("There is no line here.", do="Name a line.", code="no_line")
                return self._lines(case, about, case.evidence_hash)
            case _:
                raise InputError(f"There is no decision {action!r}.", do="See pumpledger decide --help.", code="action")

    # Facts of a pump

    def _shaping(self, action: str, pump: str, about: str, sessions: Sequence[_Row], argument: str = "") -> _Row:
        evidence = self._base(pump).of(action, about)
        patients = {row["patient_id"] for row in sessions}
        if evidence is None or None in patients or len(patients) != 1:
            raise _NOT_HERE[action]
        return {
            "argument": argument,
            "about": about,
            "pump_id": pump,
            "patient_id": patients.pop(),
            "session_ids": tuple(sorted(row["session_id"] for row in sessions)),
            "evidence_hash": evidence,
        }

    def _base(self, pump: str) -> Evidence:
        if pump not in self._bases:
            self._bases[pump] = Evidence(night.base_of(self.lake, pump))
        return self._bases[pump]

    def _sessions(self) -> list[_Row]:
        """The sessions that were named, or that the line, item or set-up is of; those around an event."""
        rows: list[_Row] = self.lake.read("sessions", tables.SESSIONS).to_pylist()
        match self.kind:
            case "session":
                ids = {self.whole}
            case "set-up":
                ids = {self.row["session_id"]}
            case "event":
                intervals = self.lake.read("intervals", tables.INTERVALS, buckets=[self.lake.bucket_of(self.row["pump_id"])])
                ids = {i["session_id"] for i in intervals.to_pylist() if self.whole in (i["first_event"], i["last_event"])}
                ids |= {row["session_id"] for row in rows if row["stretch"] == self.whole}
                ids |= {session for session, piece in self._all_pieces([self.row["pump_id"]]) if piece["event_id"] == self.whole}
            case "line":
                ids = set(self.row["session_ids"])
            case _:
                ids = {self.row["session_id"]} if self.row["order_id"] is None else set(self._case().session_ids)
        return [row for row in rows if row["session_id"] in ids]

    def _all_pieces(self, pumps: Iterable[str]) -> list[tuple[str, _Row]]:
        found = []
        for pump in sorted(set(pumps)):
            base = self._base(pump)
            found += [(piece["session_id"], {**piece, "pump_id": pump}) for piece in base.every_piece()]
        return found

    def _stop(self, argument: str) -> _Row:
        """The one delivery without a stop that is meant, and the time as it is kept."""
        rows = self._sessions()
        mine = {row["session_id"] for row in rows}
        pieces = [
            p
            for s, p in self._all_pieces(row["pump_id"] for row in rows)
            if (p["event_id"] == self.whole if self.kind == "event" else s in mine)
        ]
        found = {piece["event_id"]: piece for piece in pieces}
        if not found:
            raise _NOT_HERE[STOP]
        if len(found) > 1:
            raise _several("deliveries without a stop", [f"{event}, from {_shown(piece)}" for event, piece in sorted(found.items())])
        (piece,) = found.values()
        if piece["patient_id"] is None:
            raise _NO_ORDER
        own = [row for row in rows if row["session_id"] == piece["session_id"]] or rows
        text = self._time(argument, piece)
        if self._base(piece["pump_id"]).lasts(piece["event_id"], text) is None:
            raise InputError(
                f"{argument} does not lie within this delivery.",
                why=f"It is {_shown(piece)} at the earliest and {_shown(piece, end=True)} at the latest.",
                do="Give a time between these.",
                code="stop",
            )
        return self._shaping(STOP, piece["pump_id"], piece["event_id"], own, text)

    def _time(self, argument: str, piece: _Row) -> str:
        try:
            moment = datetime.fromisoformat(argument)
            # The years at both ends of a calendar cannot be told in every zone.
            if not 2 <= moment.year <= 9998:
                raise ValueError
        except ValueError:
            raise InputError(f"{argument!r} is no time.", do="Give one such as 2026-03-08T14:30:00Z.", code="time") from None
        if piece["from_utc"] is None:
            if moment.tzinfo is not None:
                why = "UTC is unknown there."
                raise InputError("This time has a zone.", why=why, do="Give the time as the pump printed it, without a zone.", code="time")
            return written(moment)
        if moment.tzinfo is None:
            order = next(o for o in night.orders_of(self.lake).of_id(piece["order_id"]))
            moment = datetime.fromtimestamp(utc_ms(moment, order.zone) / 1000, UTC)
        return written(moment.astimezone(UTC))

    def _site(self) -> tuple[str, str, list[_Row]]:
        rows: list[_Row] = self.lake.read("setups", tables.SETUPS).to_pylist()
        sessions = self._sessions()
        if self.kind == "set-up":
            found = [self.row]
        else:
            mine = {row["session_id"] for row in sessions}
            found = [row for row in rows if row["session_id"] in mine and row["new_site"] == "possible"]
        if not found:
            raise _NOT_HERE[SITE]
        if len(found) > 1:
            shown = [f"{row['setup_id']}, at {_stamp(row['time'] or row['printed_time'])}" for row in found]
            raise _several("set-ups with a possible new site", shown)
        return found[0]["pump_id"], found[0]["setup_id"], [row for row in sessions if row["session_id"] == found[0]["session_id"]]

    def _stretch(self) -> tuple[str, str, list[_Row]]:
        rows = self._sessions()
        if self.kind == "event":
            found = {(self.row["pump_id"], self.row["stretch"])}
        else:
            found = {(row["pump_id"], row["stretch"]) for row in rows}
            found = {one for one in found if self._base(one[0]).of(CLOCK, one[1]) is not None} if len(found) > 1 else found
        if not found:
            raise _NOT_HERE[CLOCK]
        if len(found) > 1:
            raise _several("stretches of a log without UTC", [f"{stretch}, of {pump}" for pump, stretch in sorted(found)])
        pump, stretch = found.pop()
        if stretch is None:
            raise _NOT_HERE[CLOCK]
        return pump, stretch, [row for row in rows if row["stretch"] == stretch]

    # Lines

    def _clear(self, code: str) -> _Row:
        code = code.strip().upper()
        if self.kind == "item" and self.row["order_id"] is None and self.row["code"] != DECISION_LAPSED:
            return self._done_with(code)
        if self.kind == "item" and self.row["code"] == "NOT_SYNCED":
            return self._done_with(code)
        case = self._case()
        if code in decisions.NEVER_CLEARED:
            raise InputError(
                f"{code} cannot be cleared: there would be a line without a code.",
                do="Mend the order or the rule set; or void the line.",
                code="never_cleared",
            )
        if code not in case.codes:
            codes = ", ".join(sorted(case.codes)) or "no code at all"
            raise InputError(f"{code} does not hold here.", why=f"There is {codes}.", do="Name one of these with --clear.", code="code")
        if code in case.cleared:
            one = case.cleared[code]
            raise InputError(f"{code} is cleared already, by {one.by}.", do=f"Nothing; or: decide undo {one.decision_id}", code="decided")
        return {"argument": code, **self._lines(case, case.encounter_id, case.grounds(code))}

    def _done_with(self, code: str) -> _Row:
        """An item about a pump or an order: it leaves the list of what is open, and clears no line."""
        if code != self.row["code"]:
            raise InputError(f"This item is about {self.row['code']}.", do=f"Give --clear {self.row['code']}.", code="code")
        names = ("pump_id", "patient_id")
        evidence = decisions.item_evidence(self.row)
        return (
            {"argument": code, "about": self.whole, "evidence_hash": evidence}
            | {name: self.row[name] for name in names}
            | {"pump_id": None}
        )

    def _lines(self, case: Case, about: str, evidence: str) -> _Row:
        return {
            "about": about,
            "patient_id": case.about["patient_id"],
            "encounter_id": case.encounter_id,
            "session_ids": tuple(sorted(case.session_ids)),
            "evidence_hash": evidence,
        }

    def _case(self) -> Case:
        """The one encounter, or therapy day, that is meant."""
        if self.kind == "event":
            raise InputError("An event is of no line by itself.", do="Name its line, item or session.", code="event")
        patient = self.row["patient_id"]
        if patient is None:
            raise _NO_ORDER
        session = {"session": self.whole, "set-up": self.row.get("session_id")}.get(self.kind)
        found = [case for case in self._of(patient) if self._means(case, session)]
        if not found:
            done = self.kind == "item" and self.row["code"] == DECISION_LAPSED
            do = "Take the old decision back with `decide undo`, or decide anew." if done else "Name its line or its session."
            raise InputError("There is nothing to decide about this by itself.", do=do, code="no_case")
        if len(found) > 1:
            raise _several("lines", [f"{line['line_id']}, {line['service_date']}" for case in found for line in case.lines])
        return found[0]

    def _means(self, case: Case, session: str | None) -> bool:
        if self.kind == "line":
            return bool(case.encounter_id == self.row["encounter_id"])
        if self.kind == "item":
            return identify("item", self.row["code"], case.encounter_id) == self.whole
        return session in case.session_ids

    def _of(self, patient: str) -> list[Case]:
        if self._cases is None:
            lake = self.lake
            decided, taken = night.in_force(lake), people.released(lake)
            self._cases = night.cases(lake, [patient], night.orders_of(lake), decided, taken)
        return self._cases


_NO_ORDER = InputError(
    "This belongs to no patient.", why="No order was in force.", do="Add the order to orders.csv first.", code="no_order"
)
_NOT_HERE: Mapping[str, InputError] = {
    SITE: InputError(
        "There is no set-up here whose site is open.",
        why="It must be made for a session with an order, and not show a new site by itself.",
        do="Name the set-up by its id of `pumpledger setups`.",
        code="no_site",
    ),
    STOP: InputError(
        "There is no delivery here that lacks its stop.",
        why="A delivery that runs into a hole of the log is counted to its last record: clear NO_STOP there.",
        do="Name the item, the session, or the event that the delivery begins with.",
        code="no_stop",
    ),
    CLOCK: InputError(
        "There is no clock here that can be confirmed.",
        why="It takes a stretch of the log without an anchor, an order, and a later stretch with an anchor whose clock runs on from it.",
        do="Sync the pump again; or clear CLOCK_UNCERTAIN.",
        code="no_clock",
    ),
}


def _several(what: str, shown: Sequence[str]) -> InputError:
    return InputError(f"Several {what} are meant.", why="; ".join(shown) + ".", do="Name one of these by its id.", code="several")


def _stamp(moment: datetime) -> str:
    return written(moment)


def _shown(piece: _Row, *, end: bool = False) -> str:
    """Where a delivery begins, or where it was over at the latest, as `--stop` takes it."""
    if piece["from_utc"] is not None:
        return _stamp(piece["to_utc"] if end else piece["from_utc"])
    if piece["printed"] is None:
        return "unknown"
    moment = piece["printed"]
    return _stamp(moment + (piece["to_ms"] - piece["from_ms"]) * decisions.MS if end else moment)


# --- releases -----------------------------------------------------------------------------------------------------------------


def release(
    root: Path, *, by: str, payer: str | None = None, month: str | None = None, dry_run: bool = False, at: datetime | None = None
) -> Release | None:
    """Takes the lines that are ready, once, with the voids that belong to them. None: there is nothing new.

    `month` is that of the first line of an encounter, so that none is torn apart. A dry run gives what a release would be. The lines
    are those that are published: what changed since must be derived first. Raises InputError, StorageError.
    """
    lake = Lake.open(root)
    _signed(by)
    if month is not None:
        views.months(month)
    with lake.lock("releases", 0):
        people.whole(lake)
        if night.stale(root):
            raise _stale()
        rows, _ = _to_take(views.select(lake, "lines"), payer, month)
        if not rows.num_rows:
            people.audit(lake)
            return None
        moment = (at or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0)
        if dry_run:
            before = people.releases(lake)
            previous = before[-1].sha256 if before else ""
            return people.plan(rows, by=by, at=moment, payer=payer, month=month, number=len(before) + 1, previous=previous)
        taken = people.take(lake, rows, by=by.strip(), at=moment, payer=payer, month=month)
    people.audit(lake)
    night.shown_at_once(root)
    return taken


def waiting(lake: Lake, *, payer: str | None = None, month: str | None = None) -> int:
    """How many ready lines no release takes before the void of what claimed the same infusion is cleared. Raises StorageError."""
    return _to_take(views.select(lake, "lines"), payer, month)[1]


def _to_take(lines: pa.Table, payer: str | None, month: str | None) -> tuple[pa.Table, int]:
    """The rows that a release takes: what is asked for, with the voids of what claimed the same; and how many lines wait for one."""
    names = ["line_id", "revision", "encounter_id", "service_date", "payer", "state", "code", "reasons", "release_id", "supersedes"]
    rows = lines.select(names).to_pylist()
    first: dict[str, str] = {}
    for row in rows:
        day = row["service_date"].isoformat()
        first[row["encounter_id"]] = min(day, first.get(row["encounter_id"], day))
    wanted = {
        at
        for at, row in enumerate(rows)
        if decisions.takeable(row)
        and (payer is None or row["payer"] == payer)
        and (month is None or first[row["encounter_id"]].startswith(month))
    }
    voids = [at for at, row in enumerate(rows) if row["state"] == "void" and row["supersedes"] and row["release_id"] is None]
    waits = 0
    if voids:
        rests = [{*row["session_ids"], *row["event_ids"]} for row in lines.select(["session_ids", "event_ids"]).to_pylist()]
        of: dict[str, set[int]] = defaultdict(set)
        for at in voids:
            for key in (rows[at]["supersedes"], *rests[at]):
                of[key].add(at)
        for at in sorted(at for at in wanted if rows[at]["state"] == "ready"):
            line, beside = rows[at], set().union(*(of[key] for key in rests[at] if key in of))
            with_it = of.get(line["supersedes"] or "", set()) | {v for v in beside if rows[v]["encounter_id"] != line["encounter_id"]}
            if all(decisions.takeable(rows[v]) for v in with_it):
                wanted |= with_it
            else:
                wanted.remove(at)
                waits += 1
    return lines.take(pa.array(sorted(wanted), pa.int64())), waits


def amendments(lake: Lake, *, payer: str | None = None, month: str | None = None) -> pa.Table:
    """What changed in lines after billing took them (AMENDMENTS): what is void, and what replaces it, by pairs.

    `month` is that of the date of service, `payer` that of the claim, as released or as it is now. Raises InputError, StorageError.
    """
    views.months(month)
    rows = [row for row in _amended(lake) if (payer is None or payer in _payers(row)) and (month is None or month in _months(row))]
    return rows_to_table(
        tables.AMENDMENTS,
        rows,
        sort=("patient_id", "order_id", "released_date", "service_date", "released_code", "code", "released", "line_id"),
    )


def no_amendments(lake: Lake, *, payer: str | None = None, month: str | None = None) -> str:
    """Why `amendments` gave none for these filters, and for what it would. Raises StorageError."""
    rows = [{"month": set(_months(row)), "payer": _payers(row)} for row in _amended(lake)]
    return views.nothing_of("amendments", {"month": month, "payer": payer}, rows)


def _amended(lake: Lake) -> list[_Row]:
    lines = views.select(lake, "lines").to_pylist()
    by_key = {decisions.key_of(line): line for line in lines}
    cleared = {one.decision_id for one in people.decisions(lake) if one.action == CLEAR and one.argument == AMENDED}
    voids = {line["supersedes"]: line for line in lines if line["state"] == "void" and line["supersedes"] is not None}
    instead = {line["supersedes"]: line for line in lines if line["state"] != "void" and line["supersedes"] is not None}
    added = [
        line
        for line in lines
        if line["supersedes"] is None
        and (AMENDED in line["reasons"] or (line["state"] != "void" and cleared.intersection(line["decisions"])))
    ]
    pairs = [(by_key.get(key), voids.get(key), instead.get(key)) for key in sorted({*voids, *instead})] + [
        (None, None, line) for line in added
    ]
    return [_pair(*pair) for pair in pairs]


def _months(row: _Row) -> list[str]:
    """The months of service of a line as released and as it is now."""
    return [f"{day:%Y-%m}" for day in (row.get("released_date"), row.get("service_date")) if day is not None]


def _payers(row: _Row) -> set[str]:
    """The payers of a line as released and as it is now."""
    return {row["payer"], row.get("released_payer", row["payer"])}


def _pair(before: _Row | None, void: _Row | None, now: _Row | None) -> _Row:
    some = now or void or before
    assert some is not None
    last = now or void
    row: _Row = {name: some[name] for name in ("patient_id", "payer", "order_id")}
    row |= {"state": some["state"], "reasons": some["reasons"], "taken_by": last["release_id"] if last else None}
    if before is not None:
        row |= {"released": decisions.key_of(before), "release_id": before["release_id"], "released_date": before["service_date"]}
        row["released_payer"] = before["payer"]
        row |= {f"released_{name}": before[name] for name in ("code", "units", "minutes")}
    if void is not None:
        row["void"] = decisions.key_of(void)
    if now is not None:
        row |= {name: now[name] for name in ("line_id", "revision", "service_date", "code", "units", "minutes")}
    return row
