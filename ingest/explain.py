"""From any line, session, set-up, worklist item or event back to the bytes it rests on, for people who must be able to show it.

    line → its encounter's sessions → minutes counted and excluded, and why → events, with how their time is known
         → records, with where they stood → bytes;   and line → rule, its citation, policies, hashes of the evidence

`explain` gathers it from the lake as one plain value; `ingest.telling` says it, as text or JSON, and `ingest.page` draws it.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import date, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from devices.contract import CONTENT, HOLES
from devices.errors import InputError
from ingest import people, telling
from ingest.lake import RAW, RAW_SCHEMA, Lake
from ingest.night import BILLED, CONSOLIDATED, orders_of, rule_sets
from ingest.telling import CLASSES, Row
from ingest.views import answers, printable
from transforms.codes import SAYS
from transforms.decisions import HEADLESS, in_force
from transforms.tables import identify

SCHEMAS: Mapping[str, pa.Schema] = {**CONSOLIDATED, **BILLED, RAW: RAW_SCHEMA}
"""The tables of a lake."""

KINDS: Mapping[str, tuple[str, str]] = {
    "line": ("lines", "line_id"),
    "session": ("sessions", "session_id"),
    "set-up": ("setups", "setup_id"),
    "item": ("worklist", "item_id"),
    "event": ("events", "event_id"),
}
"""What has an id, with its table and the column of the id."""

_ID = re.compile(r"[0-9a-f]{6,20}")
_WHOLE = 20


def explain(lake: Lake, ident: str) -> Row:
    """All that a line, session, set-up, worklist item or event rests on, down to its bytes.

    `ident` is its id, or the first characters of it, at least six. Gives plain values (times as in the tables, bytes as hex): `kind`,
    `id`, `summary`; `tz`, the zone of the order (None: there is no order); `line` (with `counted_s`, and `excluded_s` by reason),
    `others` of its encounter, `rule`; `item`; `setup`; `sessions`, each with `minutes`, `intervals`, `setups`, `events`; `events` that
    no session here shows; `doubts`; `holes`; `faults`; `captures`; `decisions` of reviewers, and whether it `stands` on them.
    An event has `records`, each with capture, part, page, offset, `raw`, and the fields `decoded` from it.
    Raises InputError where the id is none, unknown, or the beginning of several; StorageError.
    """
    kind, whole = find(lake, ident.strip().lower())
    return _Gathering(lake).of(kind, whole)


def find(lake: Lake, ident: str) -> tuple[str, str]:
    """The kind and the whole id of the one thing that has this id, or an id that begins so. Raises InputError."""
    if not _ID.fullmatch(ident):
        raise InputError(
            f"{printable(ident)!r} is no id.",
            why="Ids are 20 hex digits; the first six or more are enough.",
            do="Copy one from sessions, setups, lines or worklist.",
            code="no_id",
        )
    found: set[tuple[str, str]] = set()
    for kind, (table, column) in KINDS.items():
        for bucket in range(lake.buckets):
            ids = lake.read(table, SCHEMAS[table], buckets=[bucket], columns=[column])[column]
            found.update((kind, one) for one in ids.filter(pc.starts_with(ids, ident)).to_pylist())
            if found and len(ident) == _WHOLE:
                return found.pop()
    if not found:
        raise InputError(
            f"Nothing here has an id that begins with {ident}.",
            why="A night may have derived it anew under another id, or it is of another lake.",
            do="Look it up in sessions, setups, lines or worklist.",
            code="unknown_id",
        )
    if len(found) > 1:
        some = ", ".join(f"{kind} {one}" for kind, one in sorted(found)[:5])
        raise InputError(
            f"{len(found)} ids begin with {ident}.", why=f"Among them {some}.", do="Give more characters.", code="ambiguous_id"
        )
    return found.pop()


# --- gathering --------------------------------------------------------------------------------------------------------------


class _Gathering:
    """Reads what one explanation needs; a pump's bucket is read once."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self._of_pump: dict[tuple[str, str], pa.Table] = {}

    def of(self, kind: str, ident: str) -> Row:
        about: Row = {
            "kind": kind, "id": ident, "summary": "", "tz": None, "line": None, "others": [], "rule": None, "item": None, "setup": None,
            "sessions": [], "events": [], "doubts": [], "holes": [], "faults": [], "captures": [], "decisions": [],
        }  # fmt: skip
        {"line": self.line, "session": self.session, "set-up": self.setup, "item": self.item, "event": self.event}[kind](about, ident)
        about["tz"] = self.zone_of(about)
        self.provenance(about)
        self.decided(about, ident)
        return about

    # What is explained

    def line(self, about: Row, line_id: str) -> None:
        versions = sorted(self.rows("lines", line_id=line_id), key=lambda row: row["revision"])
        line = versions[-1]
        counted = sum(entry["seconds"] for entry in line["ledger"] if entry["counted"])
        excluded: dict[str, float] = defaultdict(float)
        for entry in line["ledger"]:
            if not entry["counted"]:
                excluded[entry["why"]] += entry["seconds"]
        about["line"] = {
            **line,
            "policies": _parsed(line["policies"]),
            "counted_s": counted,
            "excluded_s": {why: excluded[why] for why in sorted(excluded, key=[*CLASSES, *excluded].index)},
            "reasons_say": [_code_says(code) | {"answers": self.answers_of(line, code)} for code in line["reasons"]],
            "earlier_revisions": [row["revision"] for row in versions[:-1]],
        }
        about["others"] = [
            {name: row[name] for name in ("line_id", "revision", "code", "units", "state")}
            for row in self.rows("lines", encounter_id=line["encounter_id"])
            if row["line_id"] != line_id
        ]
        about["rule"] = _rule(line)
        # What was released stands for ever, its sessions only as long as they are derived so.
        frozen = line["state"] in ("released", "void")
        kept = [one for one in line["session_ids"] if not frozen or self.rows("sessions", ("pump_id",), session_id=one)]
        about["sessions"] = [self.session_of(session) for session in kept]
        about["doubts"] = self.doubts_of(line["pump_ids"], set(line["session_ids"]), line["reasons"], line["service_date"])
        about["events"] = self.events_beside(about, line["event_ids"], line["pump_ids"])
        about["summary"] = about["summary"] or line["explanation"]

    def session(self, about: Row, session_id: str) -> None:
        session = self.session_of(session_id)
        about["sessions"] = [session]
        about["doubts"] = self.doubts_of([session["pump_id"]], {session_id}, session["flags"], None)
        about["summary"] = about["summary"] or telling.session_words(session)

    def setup(self, about: Row, setup_id: str) -> None:
        setup = self.rows("setups", setup_id=setup_id)[0]
        if setup["session_id"]:
            self.session(about, setup["session_id"])
        about["events"] = self.events_beside(about, setup["evidence"], [setup["pump_id"]])
        pump = "the pump was set up" if setup["pump_setup"] else "no pump set-up"
        about["summary"] = f"Set-up: {pump}; new site: {setup['new_site']}."
        about["setup"] = setup

    def item(self, about: Row, item_id: str) -> None:
        item = self.rows("worklist", item_id=item_id)[0]
        about["item"] = {**item, "answers": answers(item["code"], item_id) if item["state"] == "open" else []}
        about["summary"] = f"{item['code']}: {item['message']} {item['suggestion']}"
        if item["line_id"] and self.rows("lines", line_id=item["line_id"]):
            self.line(about, item["line_id"])
        elif item["session_id"] and self.rows("sessions", session_id=item["session_id"]):
            self.session(about, item["session_id"])
        elif item["pump_id"]:
            cuts = self.of_pump("doubts", item["pump_id"]).to_pylist()
            about["doubts"] = [
                {**doubt, "says": _code_says(doubt["code"])}
                for doubt in cuts
                if identify("item", item["code"], doubt["doubt_id"]) == item_id
            ]
            about["events"] = self.events_beside(about, [doubt["event_id"] for doubt in about["doubts"]], [item["pump_id"]])

    def event(self, about: Row, event_id: str) -> None:
        pump = self.rows("events", ("pump_id",), event_id=event_id)[0]["pump_id"]
        [event] = self.events_beside(about, [event_id], [pump])
        about["events"] = [event]
        around = self.of_pump("intervals", pump)
        if event["stretch"] is not None:
            at = pc.and_(pc.less_equal(around["from_ms"], event["elapsed_ms"]), pc.greater_equal(around["to_ms"], event["elapsed_ms"]))
            mine = around.filter(pc.and_(pc.equal(around["stretch"], event["stretch"]), at))
            event["in_sessions"] = sorted(set(mine["session_id"].to_pylist()))
        about["summary"] = f"{telling.event_words(event)}: {telling.time_words(event, self.zone_of(about))}."

    # Its parts

    def answers_of(self, line: Row, code: str) -> list[str]:
        """How a code that holds a line is answered by it; one that holds only because another line does is answered there."""
        return answers(code, line["line_id"]) if line["state"] == "hold" and code != HEADLESS else []

    def zone_of(self, about: Row) -> str | None:
        """The zone of the order of all this; of a pump whose orders agree on one, where none is named."""
        known = orders_of(self.lake)
        rows = [row for row in (about["line"], about["item"], *about["sessions"], *about["events"]) if row is not None]
        named = [order.tz for row in rows if row.get("order_id") for order in known.of_id(row["order_id"])]
        if named:
            return named[0]
        pumps = {pump for row in rows for pump in row.get("pump_ids", [row.get("pump_id")]) if pump is not None}
        zones = {order.tz for pump in pumps for order in known.of_pump(pump)}
        return zones.pop() if len(zones) == 1 else None

    def session_of(self, session_id: str) -> Row:
        found = self.rows("sessions", session_id=session_id)
        if not found:
            raise InputError(
                f"The session {session_id} is not in the lake any more.",
                why="It was derived anew, and what names it was not yet.",
                do="Run nightly, and ask again.",
                code="unknown_id",
            )
        session = found[0]
        pump = session["pump_id"]
        intervals = _where(self.of_pump("intervals", pump), "session_id", [session_id]).to_pylist()
        setups = _where(self.of_pump("setups", pump), "session_id", [session_id]).to_pylist()
        low, high = min((i["from_ms"] for i in intervals), default=0), max((i["to_ms"] for i in intervals), default=0)
        events = self.of_pump("events", pump)
        within = pc.and_(pc.greater_equal(events["elapsed_ms"], low), pc.less_equal(events["elapsed_ms"], high))
        within = pc.and_(pc.equal(events["stretch"], session["stretch"]), within)
        named = {session["first_event"], session["last_event"], *(event for setup in setups for event in setup["evidence"])}
        named |= {i[end] for i in intervals for end in ("first_event", "last_event") if i[end] is not None}
        mine = events.filter(
            pc.or_(pc.fill_null(within, False), pc.is_in(events["event_id"], value_set=pa.array(sorted(named), pa.string())))
        )
        return {
            **session,
            "flags_say": [_code_says(code) for code in session["flags"]],
            "minutes": {name: session[f"{name}_s"] // 60 for name in CLASSES},
            "intervals": [
                {
                    "from": i["from_utc"], "to": i["to_utc"], "from_ms": i["from_ms"], "to_ms": i["to_ms"],
                    "seconds": (i["to_ms"] - i["from_ms"]) / 1000, "class": i["class"], "counted": i["class"] == "infusing",
                    "why": CLASSES[i["class"]], "source": i["source"], "first_event": i["first_event"], "last_event": i["last_event"],
                }
                for i in sorted(intervals, key=lambda i: (i["from_ms"], i["to_ms"]))
            ],
            "setups": sorted(setups, key=lambda s: s["elapsed_ms"]),
            "events": self.with_records(mine, pump),
        }  # fmt: skip

    def events_beside(self, about: Row, ids: Iterable[str], pumps: Iterable[str]) -> list[Row]:
        """These events of these pumps, but for those that a session of the explanation shows."""
        shown = {event["event_id"] for session in about["sessions"] for event in session["events"]}
        wanted = sorted(set(ids) - shown)
        found: list[Row] = []
        for pump in sorted(set(pumps)) if wanted else ():
            found += self.with_records(_where(self.of_pump("events", pump), "event_id", wanted), pump)
        return found

    def with_records(self, events: pa.Table, pump: str) -> list[Row]:
        """Events in log order, each with the records that it was read from."""
        ids = events["event_id"].to_pylist()
        records: dict[str, list[Row]] = defaultdict(list)
        for record in _where(self.of_pump("records", pump), "event_id", ids).to_pylist():
            content = {name: record[name] for name in CONTENT.names if name not in ("raw", "detail") and record[name] is not None}
            records[record["event_id"]].append(
                {
                    "capture": record["capture"], "part": record["part"], "page": record["page"], "offset": record["offset"],
                    "record_key": record["record_key"], "seq": record["seq"], "size": len(record["raw"]), "raw": record["raw"].hex(),
                    "decoded": {**content, **({"detail": detail} if (detail := _parsed(record["detail"])) else {})},
                }
            )  # fmt: skip
        rows = [
            {
                **event, "raw": event["raw"].hex(), "detail": _parsed(event["detail"]),
                "records": sorted(records[event["event_id"]], key=lambda r: (r["capture"], r["offset"], r["raw"])),
            }
            for event in events.to_pylist()
        ]  # fmt: skip
        return sorted(rows, key=lambda e: (e["stretch"] is None, e["stretch"] or e["record_key"], e["order_in_stretch"] or 0))

    def doubts_of(self, pumps: Iterable[str], sessions: set[str], codes: Sequence[str], day: date | None) -> list[Row]:
        """What is not proved about these sessions' time, and the cuts of their pumps' logs that may reach the day."""
        found = []
        for pump in pumps:
            for doubt in self.of_pump("doubts", pump).to_pylist():
                own = doubt["session_id"] in sessions
                cut = doubt["session_id"] is None and doubt["code"] in codes and (day is None or _may_reach(doubt, day))
                if own or cut:
                    found.append({**doubt, "says": _code_says(doubt["code"])})
        return found

    def provenance(self, about: Row) -> None:
        """The captures behind all events shown, what in them could not be read, and the holes of a log that has a gap."""
        events = [*about["events"], *(event for session in about["sessions"] for event in session["events"])]
        pumps = sorted({event["pump_id"] for event in events})
        shas = {record["capture"] for event in events for record in event["records"]}
        for pump in pumps:
            columns = ["sha256", "pump_id", "family", "model", "part", "pump_clock", "utc", "received_at", "via"]
            raw = self.lake.read(RAW, RAW_SCHEMA, buckets=[self.lake.bucket_of(pump)], columns=columns)
            about["captures"] += _where(_where(raw, "pump_id", [pump]), "sha256", sorted(shas)).to_pylist()
            faults = _where(self.of_pump("faults", pump), "capture", sorted(shas)).to_pylist()
            about["faults"] += [{**fault, "raw": fault["raw"].hex()} for fault in faults]
            if any(doubt["code"] == "LOG_GAP" and doubt["pump_id"] == pump for doubt in about["doubts"]):
                about["holes"] += self.with_records(_where(self.of_pump("events", pump), "kind", sorted(HOLES)), pump)
        known = {capture["sha256"] for capture in about["captures"]}
        about["captures"] += [{"sha256": sha} for sha in sorted(shas - known)]

    def decided(self, about: Row, ident: str) -> None:
        """What reviewers decided about all this, whether it holds or not."""
        line, sessions = about["line"], {session["session_id"] for session in about["sessions"]}
        encounter, on_line = (line["encounter_id"], line["decisions"]) if line else (None, [])
        shaped = {
            one
            for row in (*about["sessions"], *(s for session in about["sessions"] for s in session["setups"]))
            for one in row["decisions"]
        }
        every = people.decisions(self.lake)
        standing = {one.decision_id for one in in_force(every)}
        for one in every:
            of_line = one.encounter_id is not None and one.encounter_id == encounter
            if one.undoes is None and (
                one.decision_id in {*on_line, *shaped} or of_line or one.about == ident or sessions & set(one.session_ids)
            ):
                rests = one.decision_id in {*on_line, *shaped}
                stands = "rests on it" if rests else "in force" if one.decision_id in standing else "taken back or replaced"
                about["decisions"].append({**one.row(), "stands": stands})

    # Reading

    def rows(self, table: str, columns: Sequence[str] | None = None, **equal: str) -> list[Row]:
        """Rows of a table whose column equals, from whichever bucket."""
        [(column, value)] = equal.items()
        wanted = None if columns is None else [*columns, column]
        found: list[Row] = []
        for bucket in range(self.lake.buckets):
            part = self.lake.read(table, SCHEMAS[table], buckets=[bucket], columns=wanted)
            found += part.filter(pc.equal(part[column], value)).to_pylist()
        return found

    def of_pump(self, table: str, pump: str) -> pa.Table:
        if (table, pump) not in self._of_pump:
            self._of_pump[table, pump] = _where(
                self.lake.read(table, SCHEMAS[table], buckets=[self.lake.bucket_of(pump)]), "pump_id", [pump]
            )
        return self._of_pump[table, pump]


def _where(table: pa.Table, column: str, values: Sequence[str]) -> pa.Table:
    return table.filter(pc.is_in(table[column], value_set=pa.array(values, pa.string())))


def _parsed(text: str) -> Any:
    """JSON as a value; as it stands where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _code_says(code: str) -> Row:
    found, suggestion = SAYS.get(code, ("", ""))
    return {"code": code, "found": found, "do": suggestion}


def _may_reach(doubt: Row, day: date) -> bool:
    """Whether a cut may reach a local date, whatever its zone: within a day of it in UTC."""
    margin = timedelta(days=1)
    low, high = doubt["since_utc"] or doubt["from_utc"], doubt["to_utc"]
    return (low is None or low.date() - margin <= day) and (high is None or high.date() + margin >= day)


def _rule(line: Row) -> Row:
    """The rule that proposed a line, as this pumpledger ships it."""
    about: Row = {"rule_set": line["rule_set"], "version": line["rule_version"], "shipped_version": None, "sha256": None, "rule": None}
    rules = rule_sets().get(line["rule_set"])
    if rules is not None:
        about["shipped_version"], about["sha256"] = rules.version, rules.sha256
        rule = next((rule for rule in rules.lines if rule.code == line["code"]), None)
        about["rule"] = asdict(rule) if rule else None
    return about
