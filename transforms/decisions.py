"""Reviewers' decisions and releases: which decisions still hold, and what they and releases make of lines (docs/decisions/0019, 0020).

A decision is an input of the next derivation, never an edit. It holds as long as what it was taken on is as it was then: its
`evidence_hash` is reckoned anew each time. Three shape the facts of a pump (`confirm-site`, `stop`, `confirm-clock`): what they rest
on is reckoned from the facts *without any decision* (`Evidence`), so that two of them do not undo each other; `shape` gives what is to
be derived with. The others are about the lines of an encounter, or of a therapy day: `Review` settles these, and compares them with
what was released.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from devices.contract import AlarmClass, Kind
from transforms.clock import NO_ANCHOR
from transforms.codes import SAYS
from transforms.orders import Orders
from transforms.tables import identify

SITE, STOP, CLOCK, CLEAR, HOLD, VOID, NOTE, UNDO = "confirm-site", "stop", "confirm-clock", "clear", "hold", "void", "note", "undo"
SHAPING = (SITE, STOP, CLOCK)
"""The actions that shape the facts of a pump; the others are about lines."""

ANSWERS: Mapping[str, str] = {SITE: "POSSIBLE_SITE_CHANGE", STOP: "NO_STOP", CLOCK: "CLOCK_UNCERTAIN"}
"""The code whose item such a decision answers."""

REVIEWER_HOLD, DECISION_LAPSED, AMENDED = "REVIEWER_HOLD", "DECISION_LAPSED", "AMENDED_AFTER_RELEASE"
HEADLESS = "ADDON_WITHOUT_INITIAL"
"""Holds what only goes with a line that is held; with one that a reviewer voids it is void."""
ALWAYS_HOLD = frozenset((REVIEWER_HOLD, DECISION_LAPSED, AMENDED))
"""Codes that hold whatever the rule set lists: people and releases are no matter of a payer's rules."""

NEVER_CLEARED = frozenset(("NO_CODE",))
"""A line without a code is nothing to bill, whoever says so."""

MS = timedelta(milliseconds=1)
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - reckoned without zones
_Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A row of DECISIONS."""

    decision_id: str
    decided_at: datetime
    by: str
    action: str
    argument: str
    note: str
    named: str
    about: str
    pump_id: str | None
    patient_id: str | None
    encounter_id: str | None
    session_ids: tuple[str, ...]
    evidence_hash: str
    undoes: str | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Decision:
        """From a row of the table."""
        told = {one.name: row[one.name] for one in fields(cls)}
        return cls(**{**told, "session_ids": tuple(row["session_ids"]), "decided_at": row["decided_at"].astimezone(UTC)})

    def row(self) -> _Row:
        """As a row of the table."""
        return {one.name: getattr(self, one.name) for one in fields(self)} | {"session_ids": list(self.session_ids)}


def decide(**told: Any) -> Decision:
    """A decision with its id, which is the hash of all the rest."""
    content = json.dumps({**told, "session_ids": list(told["session_ids"])}, sort_keys=True, default=str)
    return Decision(decision_id=identify("decision", content), **told)


def in_force(decisions: Iterable[Decision]) -> list[Decision]:
    """Those that nobody took back, oldest first; of several on the same question, the newest."""
    every = sorted(decisions, key=lambda d: (d.decided_at, d.decision_id))
    undone_by: dict[str, list[Decision]] = defaultdict(list)
    for one in every:
        if one.undoes is not None:
            undone_by[one.undoes].append(one)
    known: dict[str, bool] = {}

    def stands(one: Decision) -> bool:
        if one.decision_id not in known:
            known[one.decision_id] = not any(stands(undo) for undo in undone_by[one.decision_id])
        return known[one.decision_id]

    newest: dict[tuple[str, ...], Decision] = {}
    for one in every:
        if one.action != UNDO and stands(one):
            newest[_question(one)] = one
    return sorted(newest.values(), key=lambda d: (d.decided_at, d.decision_id))


def _question(one: Decision) -> tuple[str, ...]:
    if one.action == NOTE:
        return (NOTE, one.decision_id)
    if one.action in (HOLD, VOID):
        return (HOLD, one.about)
    return (one.action, one.about, one.argument if one.action == CLEAR else "")


def _hash(*parts: object) -> str:
    return hashlib.sha256("\n".join(str(part) for part in parts).encode()).hexdigest()


# --- the facts of a pump ------------------------------------------------------------------------------------------------------


class PumpFacts(Protocol):
    """EVENTS, SETUPS and DOUBTS of one pump; its events in the order of the log."""

    @property
    def events(self) -> pa.Table:
        """EVENTS."""

    @property
    def setups(self) -> pa.Table:
        """SETUPS."""

    @property
    def doubts(self) -> pa.Table:
        """DOUBTS."""


@dataclass(frozen=True, slots=True)
class Shaping:
    """What the facts of a pump are to be derived with; each with the decision that says so.

    `sites`: set-ups with a new site. `stops`: the event that a delivery begins with → ms after it at which it ended. `clocks`: a
    stretch, by its first event → UTC less the printed clock at its end, ms.
    """

    sites: Mapping[str, str] = field(default_factory=dict)
    stops: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    clocks: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.sites or self.stops or self.clocks)


def shape(base: PumpFacts, decided: Iterable[Decision]) -> Shaping:
    """What those of the decisions in force that still hold make of a pump; `base` are its facts without any decision."""
    wanted = [one for one in decided if one.action in SHAPING]
    sites: dict[str, str] = {}
    stops: dict[str, tuple[int, str]] = {}
    clocks: dict[str, tuple[int, str]] = {}
    evidence = Evidence(base) if wanted else None
    for one in wanted:
        assert evidence is not None
        if one.evidence_hash != evidence.of(one.action, one.about):
            continue
        if one.action == SITE:
            sites[one.about] = one.decision_id
        elif one.action == STOP:
            lasts = evidence.lasts(one.about, one.argument)
            if lasts is not None:
                stops[one.about] = (lasts, one.decision_id)
        else:
            offset = evidence.offset_ms(one.about)
            if offset is not None:
                clocks[one.about] = (offset, one.decision_id)
    return Shaping(sites, stops, clocks)


class Evidence:
    """The facts of one pump as derived without decisions, asked what a decision about them would rest on."""

    def __init__(self, base: PumpFacts) -> None:
        self._events = base.events
        self._setups = {row["setup_id"]: row for row in base.setups.to_pylist()}
        self._pieces: dict[str, list[_Row]] = defaultdict(list)
        for doubt in base.doubts.to_pylist():
            for piece in doubt["pieces"]:
                about = {name: doubt[name] for name in ("session_id", "order_id", "patient_id")}
                self._pieces[piece["event_id"]].append({**piece, **about})

    def of(self, action: str, about: str) -> str | None:
        """The hash of what such a decision rests on; None where there is nothing to decide."""
        return {SITE: self._site, STOP: self._stop, CLOCK: self._clock}[action](about)

    def pieces(self, event_id: str) -> list[_Row]:
        """The deliveries without a stop that begin with this event."""
        return self._pieces.get(event_id, [])

    def every_piece(self) -> list[_Row]:
        """All deliveries without a stop, each with its session and whose it is."""
        return [piece for pieces in self._pieces.values() for piece in pieces]

    def _site(self, setup_id: str) -> str | None:
        """A set-up without a certain new site: its records, and whose it is."""
        setup = self._setups.get(setup_id)
        if setup is None or setup["new_site"] == "yes" or setup["session_id"] is None:
            return None
        mine = self._events.filter(pc.is_in(self._events["event_id"], value_set=pa.array(setup["evidence"], pa.string())))
        return _hash(SITE, setup_id, setup["order_id"], setup["patient_id"], *_records(mine))

    def _stop(self, event_id: str) -> str | None:
        """A delivery without a stop: every record from its start to the one that shows it over, and whose it is."""
        pieces = self.pieces(event_id)
        if not pieces:
            return None
        place = {row["event_id"]: row["order_in_stretch"] for row in self._of({event_id, *(p["last_event"] for p in pieces)}).to_pylist()}
        stretch = self._of({event_id})["stretch"][0]
        at, last = self._events["order_in_stretch"], max(place[piece["last_event"]] for piece in pieces)
        within = pc.and_(pc.greater_equal(at, place[event_id]), pc.less_equal(at, last))
        mine = self._events.filter(pc.and_(pc.equal(self._events["stretch"], stretch), within))
        told = [(p["last_event"], p["from_ms"], p["to_ms"], p["from_utc"] and p["from_utc"].isoformat()) for p in pieces]
        return _hash(STOP, event_id, pieces[0]["order_id"], pieces[0]["patient_id"], told, *_records(mine))

    def lasts(self, event_id: str, argument: str) -> int | None:
        """Milliseconds from the start of a delivery to a stop, given as UTC with Z or as the pump prints it; None: not within it."""
        pieces = self.pieces(event_id)
        try:
            stop = datetime.fromisoformat(argument)
        except ValueError:
            return None
        begins = pieces[0]["printed" if stop.tzinfo is None else "from_utc"] if pieces else None
        if begins is None:
            return None
        lasts = (stop - begins) // MS
        return lasts if 0 <= lasts <= max(piece["to_ms"] - piece["from_ms"] for piece in pieces) else None

    def _clock(self, stretch: str) -> str | None:
        """A stretch without an anchor: all its records, and the offset of the next that has one."""
        offset = self.offset_ms(stretch)
        if offset is None:
            return None
        return _hash(CLOCK, stretch, offset, *_records(self._in_stretch(stretch)))

    def offset_ms(self, stretch: str) -> int | None:
        """UTC less the printed clock of the next stretch that has an anchor.

        Where the clock ran on into it, as over a hole, that is its first; where it was lost or went back, the one that it was set to
        when the anchor was read. None where there is none, where this stretch has an anchor of its own, and where it would then end
        after the next began.
        """
        mine = self._in_stretch(stretch)
        if not mine.num_rows or pc.unique(mine["time_method"]).to_pylist() != [NO_ANCHOR]:
            return None
        own = pc.fill_null(pc.equal(self._events["stretch"], stretch), False).to_pylist()
        later = _told(self._events.slice(len(own) - own[::-1].index(True)))
        following = [row for row in later if row["time"] is not None]
        following = [row for row in following if row["stretch"] == following[0]["stretch"]]
        before = _told(mine)
        if not following or not before:
            return None
        last, first = before[-1], following[0]
        begins = next(row for row in later if row["stretch"] == first["stretch"])
        lost = (begins["kind"], begins["reason"]) == (Kind.CLOCK_CHANGE.value, "loss") or begins[
            "alarm_class"
        ] == AlarmClass.CLOCK_LOST.value
        if lost or begins["pump_time"] < last["pump_time"]:
            exact = [row for row in following if row["time_quality"] == "exact"]
            if not exact:
                return None
            offset = _offset(exact[-1])
        else:
            offset = _offset(first)
        ends = (last["pump_time"] - _EPOCH) // MS + offset
        return offset if last["kind"] == Kind.CLOCK_CHANGE.value or ends <= _utc_ms(first) else None

    def _in_stretch(self, stretch: str) -> pa.Table:
        return self._events.filter(pc.equal(self._events["stretch"], stretch))

    def _of(self, ids: Collection[str]) -> pa.Table:
        return self._events.filter(pc.is_in(self._events["event_id"], value_set=pa.array(sorted(ids), pa.string())))


def _told(events: pa.Table) -> list[_Row]:
    """The records that tell the pump's clock; a bolus may name an earlier instant."""
    wanted = ["stretch", "kind", "reason", "alarm_class", "pump_time", "time", "time_quality"]
    told = pc.and_(pc.is_valid(events["pump_time"]), pc.not_equal(events["kind"], Kind.BOLUS_DELIVERED.value))
    rows: list[_Row] = events.filter(told).select(wanted).to_pylist()
    return rows


def _utc_ms(row: _Row) -> int:
    return int((row["time"].replace(tzinfo=None) - _EPOCH) // MS)


def _offset(row: _Row) -> int:
    return int(_utc_ms(row) - (row["pump_time"] - _EPOCH) // MS)


def _records(events: pa.Table) -> list[str]:
    keys, raws = events["record_key"].to_pylist(), events["raw"].to_pylist()
    return [f"{key} {hashlib.sha256(raw).hexdigest()}" for key, raw in zip(keys, raws, strict=True)]


# --- the lines of a patient ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Case:
    """An encounter, or a therapy day of an order billed by the day: what is decided about lines is decided about one of these.

    `codes` is what was found of it, `holding` which codes hold it, `lines` are without reasons and state until they are
    settled. `causes` gives what else than its own evidence makes a code hold, `say` the sentence of its lines for their reasons.
    `about` are the columns of WORKLIST that its items share, `flags` those that differ for a code that a session has. `head` is the line
    without which its others are nothing. An encounter that is no more, of which lines were released, has no lines.
    """

    encounter_id: str
    session_ids: tuple[str, ...]
    evidence_hash: str
    codes: set[str]
    holding: frozenset[str]
    lines: list[_Row]
    about: _Row
    causes: Callable[[str], Iterable[str]] = lambda code: ()
    say: Callable[[list[str]], str] = lambda reasons: ""
    shaped: set[str] = field(default_factory=set)
    flags: Mapping[str, _Row] = field(default_factory=dict)
    head: str | None = None
    cleared: dict[str, Decision] = field(default_factory=dict)
    lapsed: dict[str, Decision] = field(default_factory=dict)
    notes: list[Decision] = field(default_factory=list)
    held: list[Decision] = field(default_factory=list)
    fallen: list[Decision] = field(default_factory=list)
    closed: bool = False
    _raised: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _on_line: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _rests: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _void: set[str] = field(default_factory=set)

    def grounds(self, code: str) -> str:
        """The hash of what a decision to clear this code rests on: the evidence, and all that makes the code hold."""
        return _hash(CLEAR, self.evidence_hash, code, *sorted(self.causes(code)), *sorted(self._raised.get(code, ())))

    def raise_(self, code: str, cause: str, lines: Iterable[_Row] = ()) -> None:
        """Adds a code of people or releases, which holds these lines alone."""
        self.codes.add(code)
        self._raised[code].add(cause)
        for line in lines:
            self._on_line[line["line_id"]].add(code)

    def rests(self, line: _Row, decision: Decision, *, void: bool = False) -> None:
        """A line rests on a decision; one that voids it may."""
        self._rests[line["line_id"]].add(decision.decision_id)
        if void:
            self._void.add(line["line_id"])

    @property
    def void_head(self) -> set[str] | None:
        """The decisions on its head, where one of them voids it; it may be among the lines no more."""
        return self._rests.get(self.head, set()) if self.head is not None and self.head in self._void else None

    def settle(self) -> None:
        """Reasons, state, explanation and decisions of its lines."""
        common = {code for code in self.codes if code in self.holding and code not in ALWAYS_HOLD}
        for line in self.lines:
            own = common | self._on_line.get(line["line_id"], set())
            line["reasons"] = [code for code in SAYS if code in own and code not in self.cleared]
            line["state"] = "void" if line["line_id"] in self._void else "hold" if line["reasons"] else "ready"
            line["explanation"] = self.say(line["reasons"])
            cleared = {decision.decision_id for code, decision in self.cleared.items() if code in own}
            line["decisions"] = sorted(self.shaped | cleared | self._rests.get(line["line_id"], set()))
        of_head = self.void_head
        if of_head is None:
            of_head = next((set(one["decisions"]) for one in self.lines if one["line_id"] == self.head and one["state"] != "ready"), None)
        for line in self.lines:
            if of_head is not None and line["state"] == "ready":
                line["state"], line["reasons"] = ("void", []) if self.void_head is not None else ("hold", [HEADLESS])
                line["explanation"] = self.say(line["reasons"])
                line["decisions"] = sorted({*line["decisions"], *of_head})


class Review:
    """What reviewers decided and billing took, for the lines of patients."""

    def __init__(self, decided: Iterable[Decision], released: Iterable[_Row], applied: Collection[str]) -> None:
        """`decided` are those in force, `released` the rows of LINES that releases hold, `applied` what shaped the facts."""
        self._decided: dict[str | None, list[Decision]] = defaultdict(list)
        for one in decided:
            self._decided[one.patient_id].append(one)
        self._released: dict[str, list[_Row]] = defaultdict(list)
        for row in released:
            self._released[row["patient_id"]].append(row)
        self._applied = frozenset(applied)

    def concerned(self, orders: Orders) -> set[str]:
        """The patients whom decisions are about, of whom lines were released, or who have a pump of which any were."""
        pumps = {pump for rows in self._released.values() for row in rows for pump in row["pump_ids"]}
        return {*self._released, *(order.patient_id for pump in pumps for order in orders.of_pump(pump))} | {
            patient for patient in self._decided if patient is not None
        }

    def lapsed(self, patient_id: str) -> list[Decision]:
        """The decisions that no longer shape the facts of a patient's pumps."""
        return [one for one in self._decided.get(patient_id, ()) if one.action in SHAPING and one.decision_id not in self._applied]

    def adrift(self, patient_id: str, cases: Collection[Case]) -> list[Decision]:
        """The holds and voids of a patient that are about none of these any more: an order was corrected, or what they stopped went."""
        encounters = {case.encounter_id for case in cases}
        sessions = {session for case in cases for session in case.session_ids}
        mine = [one for one in self._decided.get(patient_id, ()) if one.action in (HOLD, VOID)]
        return [one for one in mine if one.encounter_id not in encounters and sessions.isdisjoint(one.session_ids)]

    def shaping(self, patient_id: str) -> list[Decision]:
        """Those that do."""
        return [one for one in self._decided.get(patient_id, ()) if one.decision_id in self._applied]

    def settle(self, patient_id: str, cases: list[Case], pumps: Collection[str]) -> list[_Row]:
        """All rows of LINES of a patient, from the cases as derived; adds a case for what was released and is no more.

        `pumps` are those of the patient's orders: what was released of them for another patient counts too.
        """
        mine = self._decided.get(patient_id, [])
        clears = {(one.about, one.argument): one for one in mine if one.action == CLEAR}
        known = {case.encounter_id: set(case.session_ids) for case in cases}
        for case in cases:
            for one in mine:
                if one.action in (HOLD, VOID, NOTE):
                    _apply(case, one, known)
            _clear(case, clears)
            case.settle()
        taken = _Taken(self._released.get(patient_id, []), self._foreign(patient_id, pumps), cases)
        cases += taken.gone
        for case in cases:
            if AMENDED in case.codes:
                _clear(case, clears, AMENDED)
                case.settle()
        return [line for case in cases for line in case.lines] + taken.rows()

    def _foreign(self, patient_id: str, pumps: Collection[str]) -> list[_Row]:
        own = set(pumps)
        others = (rows for patient, rows in sorted(self._released.items()) if patient != patient_id)
        return [row for rows in others for row in rows if own.intersection(row["pump_ids"])]


def _apply(case: Case, one: Decision, known: Mapping[str, Collection[str]]) -> None:
    """A reviewer's hold, void or note, if it is of this case; one that lapsed holds what it was about until somebody looks."""
    here = one.encounter_id == case.encounter_id
    left = set(one.session_ids).difference(known.get(one.encounter_id or "", ()))
    if not here and left.isdisjoint(case.session_ids):
        return
    named = [line for line in case.lines if one.about in (line["line_id"], line["encounter_id"])]
    if here and one.evidence_hash == case.evidence_hash:
        if one.action == NOTE:
            case.notes.append(one)
        elif one.action == HOLD:
            case.held.append(one)
            case.raise_(REVIEWER_HOLD, one.decision_id, named)
        for line in named:
            case.rests(line, one, void=one.action == VOID)
    elif one.action != NOTE:
        case.fallen.append(one)
        case.raise_(DECISION_LAPSED, one.decision_id, named or case.lines)


def _clear(case: Case, clears: Mapping[tuple[str, str], Decision], *codes: str) -> None:
    for code in codes or sorted(case.codes - NEVER_CLEARED):
        one = clears.get((case.encounter_id, code))
        if one is not None:
            (case.cleared if one.evidence_hash == case.grounds(code) else case.lapsed)[code] = one


# --- releases -------------------------------------------------------------------------------------------------------------------


def key_of(line: Mapping[str, Any]) -> str:
    """What `supersedes` names a row of LINES by."""
    return f"{line['line_id']}/{line['revision']}"


def figures(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """What, beside a code that holds, must not differ from what was released; a time or a hash may."""
    return (line["code"], line["units"], line["minutes"], str(line["service_date"]), line["payer"])


def takeable(line: Mapping[str, Any]) -> bool:
    """Whether a release takes this row: a ready line with a code, or a void that cancels what an earlier release took."""
    if line["release_id"] is not None:
        return False
    if line["state"] == "void":
        return line["supersedes"] is not None and not line["reasons"]
    return bool(line["state"] == "ready" and line["code"])


class _Taken:
    """What was released of a patient, beside what its lines are now.

    A line that is as it was released is shown as released. Else the released row stays, a void row follows on it, and what replaces
    it is held: the line itself, or a new one of the same encounter, or one that rests on the same sessions or events.
    """

    def __init__(self, released: list[_Row], foreign: list[_Row], cases: list[Case]) -> None:
        self.gone: list[Case] = []
        self._frozen: list[_Row] = []
        self._voids: list[_Row] = []
        self._owner: dict[str, Case] = {}
        self._instead: dict[str, _Row] = {}
        self._agreed: set[str] = set()
        if not released and not foreign:
            return
        self._cases = cases
        self._of_line = {line["line_id"]: (case, line) for case in cases for line in case.lines}
        had = {case.encounter_id for case in cases if case.lines}
        history = _by_line(released)
        for line_id, rows in sorted(history.items()):
            self._compare(line_id, rows)
        others = [rows[-1] for rows in _by_line(foreign).values() if rows[-1]["state"] == "released"]
        self._newcomers({row["encounter_id"] for row in released}, history, others)
        self._answer_for()
        for case in cases:
            case.closed = case.encounter_id in had and not case.lines and AMENDED not in case.codes

    def rows(self) -> list[_Row]:
        """The released rows, and those that void them."""
        for void in self._voids:
            owner, instead = self._owner[void["supersedes"]], self._instead.get(void["supersedes"])
            if instead is not None and owner.void_head is not None:
                # What only goes with a line that a reviewer voids is cancelled with it, and nothing follows it.
                void["decisions"] = sorted({*void["decisions"], *owner.void_head})
            elif instead is not None:
                void["reasons"] = instead["reasons"]
            elif void["supersedes"] not in self._agreed and AMENDED not in owner.cleared:
                void["reasons"] = [AMENDED]
            if (cleared := owner.cleared.get(AMENDED)) is not None:
                void["decisions"] = sorted({*void["decisions"], cleared.decision_id})
        return self._frozen + self._voids

    def _compare(self, line_id: str, rows: list[_Row]) -> None:
        self._frozen += rows
        last = rows[-1]
        standing = next(row for row in reversed(rows) if row["state"] == "released")
        case, line = self._of_line.get(line_id, (None, None))
        if case is None or line is None:
            if last is standing:
                self._void(standing)
            return
        if last is standing and line["state"] == "ready" and figures(line) == figures(standing):
            case.lines.remove(line)
            return
        if last is standing:
            self._void(standing)
        if line["state"] == "void":
            case.lines.remove(line)
            if last is standing:
                self._agreed.add(key_of(standing))
                self._voids[-1]["decisions"] = line["decisions"]
            return
        line["revision"] = last["revision"] + (2 if last is standing else 1)
        line["supersedes"] = key_of(standing)
        self._hold(case, line)

    def _void(self, row: _Row) -> None:
        says = f"Voids {row['code']} x{row['units']}, {row['minutes']} min, which was released."
        self._voids.append(
            {**row, "revision": row["revision"] + 1, "state": "void", "supersedes": key_of(row), "release_id": None, "decisions": []}
            | {"reasons": [], "explanation": says}
        )

    def _hold(self, case: Case, line: _Row) -> None:
        case.raise_(AMENDED, f"{key_of(line)} instead of {line['supersedes']}: {figures(line)}", [line])
        if line["supersedes"] is not None:
            self._instead.setdefault(line["supersedes"], line)

    def _newcomers(self, encounters: set[str], history: Mapping[str, list[_Row]], others: list[_Row]) -> None:
        """Lines that were not there when others of their encounter were released, or that rest on what no longer stands."""
        changed = self._voids + others
        new = [
            (case, line)
            for case in self._cases
            for line in sorted(case.lines, key=lambda line: (line["service_date"], line["code"], line["line_id"]))
            if line["line_id"] not in history and line["state"] != "void"
        ]
        new = [(case, line) for case, line in new if case.encounter_id in encounters or any(_related(row, line) for row in changed)]
        left = [row for row in changed if row["line_id"] not in self._of_line]
        left.sort(key=lambda row: (row["service_date"], row["code"], row["line_id"]))
        for alike in (True, False):
            for _, line in new:
                found = next((r for r in left if (not alike or r["code"] == line["code"]) and _related(r, line)), None)
                if line["supersedes"] is None and found is not None:
                    left.remove(found)
                    line["supersedes"] = found["supersedes"] if found["state"] == "void" else key_of(found)
        for case, line in new:
            self._hold(case, line)

    def _answer_for(self) -> None:
        """Each void has a case whose item is about it; one that a reviewer voided needs no further look."""
        of_encounter = {case.encounter_id: case for case in self._cases}
        for void in self._voids:
            released = void["supersedes"]
            instead = self._instead.get(released)
            case = next((c for c in self._cases if instead is not None and any(line is instead for line in c.lines)), None)
            case = case or of_encounter.get(void["encounter_id"])
            if case is None:
                case = of_encounter[void["encounter_id"]] = _no_more(void)
                self.gone.append(case)
            self._owner[released] = case
            if released not in self._agreed:
                case.raise_(AMENDED, f"{released} was {figures(void)}")


def _by_line(rows: Iterable[_Row]) -> dict[str, list[_Row]]:
    found: dict[str, list[_Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["line_id"], row["revision"])):
        found[row["line_id"]].append(row)
    return found


def _related(row: Mapping[str, Any], line: Mapping[str, Any]) -> bool:
    """Whether a line may stand for what another claimed: of one encounter, or resting on a session or an event of it."""
    return (
        row["encounter_id"] == line["encounter_id"]
        or not set(row["session_ids"]).isdisjoint(line["session_ids"])
        or not set(row["event_ids"]).isdisjoint(line["event_ids"])
    )


def _no_more(row: _Row) -> Case:
    """An encounter that is no more."""
    about = {name: row[name] for name in ("patient_id", "payer", "order_id", "line_id", "service_date")}
    about |= {"pump_id": row["pump_ids"][0], "session_id": row["session_ids"][0], "time": row["start"], "minutes_at_stake": row["minutes"]}
    return Case(row["encounter_id"], tuple(row["session_ids"]), "", set(), frozenset(), [], about)


# --- items that are about no encounter -----------------------------------------------------------------------------------------


def item_evidence(item: Mapping[str, Any]) -> str:
    """The hash of what an item about a pump or an order says."""
    return _hash(
        CLEAR,
        *(item[name] for name in ("item_id", "code", "message", "minutes_at_stake", "order_id", "session_id")),
        item["time"] and item["time"].isoformat(),
    )


def answered(items: pa.Table, decided: Iterable[Decision]) -> pa.Table:
    """Items about pumps and orders, those that a reviewer is done with as decided."""
    done = {one.about: one.evidence_hash for one in decided if one.action == CLEAR}
    if not done:
        return items
    states = ["decided" if done.get(row["item_id"]) == item_evidence(row) else row["state"] for row in items.to_pylist()]
    at = items.schema.get_field_index("state")
    return items.set_column(at, items.schema.field(at), pa.array(states, pa.string()))
