"""From any line, session, set-up, worklist item or event back to the bytes it rests on, for people who must be able to show it.

    line → its encounter's sessions → minutes counted and excluded, and why → events, with how their time is known
         → records, with where they stood → bytes;   and line → rule, its citation, policies, hashes of the evidence

`explain` gathers it from the lake as one plain value; `as_text`, `as_json` and `as_html` show it.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from html import escape
from itertools import pairwise
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from devices.contract import CONTENT, HOLES, Kind
from devices.errors import InputError
from ingest import people
from ingest.lake import RAW, RAW_SCHEMA, Lake
from ingest.night import BILLED, CONSOLIDATED, rule_sets
from ingest.views import PROPOSED, plain, printable
from transforms.codes import SAYS
from transforms.decisions import in_force
from transforms.tables import identify

Row: TypeAlias = dict[str, Any]

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

CLASSES: Mapping[str, str] = {
    "infusing": "delivery that the log proves",
    "unknown": "nothing in the log proves delivery here",
    "kvo": "keep-vein-open, which is no therapy",
    "alarm": "stopped by an alarm",
    "paused": "stopped or between deliveries",
}
"""What a second of a session can be, and why it is counted (the first) or not (docs/semantics.md §4)."""


def explain(lake: Lake, ident: str) -> Row:
    """All that a line, session, set-up, worklist item or event rests on, down to its bytes.

    `ident` is its id, or the first characters of it, at least six. Gives plain values (times as in the tables, bytes as hex): `kind`,
    `id`, `summary`; `line` (with `counted_s`, and `excluded_s` by reason), `others` of its encounter, `rule`; `item`; `setup`; `sessions`,
    each with `minutes`, `intervals`, `setups`, `events`; `events` that no session here shows; `doubts`; `holes`; `faults`; `captures`;
    `decisions` of reviewers, and whether it `stands` on them.
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
            "kind": kind, "id": ident, "summary": "", "line": None, "others": [], "rule": None, "item": None, "setup": None,
            "sessions": [], "events": [], "doubts": [], "holes": [], "faults": [], "captures": [], "decisions": [],
        }  # fmt: skip
        {"line": self.line, "session": self.session, "set-up": self.setup, "item": self.item, "event": self.event}[kind](about, ident)
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
            "reasons_say": [_code_says(code) for code in line["reasons"]],
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
        about["summary"] = about["summary"] or _session_summary(session)

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
        about["item"] = item
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
        about["summary"] = f"{_what(event)}: {_when(event)}."

    # Its parts

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
    low, high = doubt["from_utc"], doubt["to_utc"]
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


def _session_summary(session: Row) -> str:
    excluded = {name: seconds for name in CLASSES if name != "infusing" and (seconds := session[f"{name}_s"])}
    rest = ", ".join(f"{_span(seconds)} {name}" for name, seconds in excluded.items())
    return f"{_span(session['infusing_s'])} of recorded delivery{'; not counted: ' + rest if rest else ''}; {session['state']}."


# --- words ------------------------------------------------------------------------------------------------------------------


def _span(seconds: float) -> str:
    """123 min 05 s; the seconds only where there are some."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min" + (f" {rest:02d} s" if rest else "")


def _stamp(moment: datetime | None) -> str:
    """An instant as text: UTC as such, none as unknown."""
    if moment is None:
        return "unknown"
    text = f"{moment:%Y-%m-%d %H:%M:%S}"
    return text + (" UTC" if moment.tzinfo else "")


def _when(event: Row) -> str:
    if event["time"] is not None:
        bound = f", ± {event['time_bound_s']:.3g} s" if event["time_bound_s"] is not None else ""
        return f"{_stamp(event['time'])} ({event['time_quality']}{bound})"
    shown = f"pump clock {_stamp(event['pump_time'])}" if event["pump_time"] is not None else "no time"
    return f"{shown} ({event['time_method']})"


def _what(event: Row) -> str:
    """What an event says, in a few words."""
    words = [event["kind"].replace("_", " ")]
    words += [str(event[name]) for name in ("source", "target", "alarm_class") if event[name] is not None]
    if event["reason"] not in (None, "unknown"):
        words.append(f"({event['reason']})")
    if event["stops_delivery"]:
        words.append("stops delivery")
    unit_of_dose = event["dose_unit"] or "dose"
    amounts = (
        ("rate_ml_h", "mL/h"),
        ("rate_dose_h", f"{unit_of_dose}/h"),
        ("volume_ml", "mL"),
        ("dose", unit_of_dose),
        ("duration_s", "s"),
    )
    words += [f"{event[name]:g} {unit}" for name, unit in amounts if event[name] is not None]
    for name, unit in (("programmed_ml", "mL"), ("programmed_dose", unit_of_dose)):
        if event[name] is not None:
            words.append(f"of {event[name]:g} {unit} programmed")
    return " ".join(words)


def _place(record: Row) -> str:
    """Where a record stood."""
    named = [f"{name} {record[name]}" for name in ("part", "page") if record[name] is not None]
    return ", ".join([f"capture {record['capture'][:12]}", *named, f"offset {record['offset']}"])


def _spaced(raw: str) -> str:
    return " ".join(raw[i : i + 2] for i in range(0, len(raw), 2))


def _readable(raw: str) -> str:
    """Bytes as text where they are nothing else."""
    data = bytes.fromhex(raw)
    return data.decode() if len(data) > 3 and data.isascii() and data.decode().isprintable() else ""


def _decoded(record: Row) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in record["decoded"].items())


def _short(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False) if isinstance(value, dict | list) else str(plain(value))


def _rule_words(rule: Row) -> list[str]:
    found = rule["rule"]
    words = [f"rule set {rule['rule_set']}, version {rule['version']}"]
    if rule["shipped_version"] is None:
        words.append("this pumpledger does not ship that rule set")
    elif rule["shipped_version"] != rule["version"]:
        words.append(f"this pumpledger ships version {rule['shipped_version']}: what follows is its text")
    if found is not None:
        words.append(f"citation: {found['citation']}")
        words += [
            f"{name.replace('_', ' ')}: {value}"
            for name, value in found.items()
            if name not in ("code", "citation") and value not in (None, "", 0)
        ]
    return words


# --- as text ----------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Node:
    text: str
    below: list[_Node]


def as_json(explanation: Row) -> str:
    """The explanation as JSON: UTC with Z, other times without a zone, bytes as hex."""
    return json.dumps(plain(explanation), indent=1, ensure_ascii=False)


def as_text(explanation: Row) -> str:
    """The explanation as a tree for a terminal, minutes first."""
    return "\n".join(printable(line) for line in _drawn(_tree(explanation)))


def _drawn(node: _Node, first: str = "", rest: str = "") -> Iterator[str]:
    yield first + node.text
    for n, child in enumerate(node.below, 1):
        last = n == len(node.below)
        yield from _drawn(child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))


def _tree(about: Row) -> _Node:
    root = _Node(f"{about['kind']} {about['id']}", [_Node(about["summary"], [])])
    if (item := about["item"]) is not None:
        root.below.append(_Node(f"item: {item['severity']}, {item['state']}, {item['minutes_at_stake']} min at stake", []))
    if (line := about["line"]) is not None:
        root.below += _line_nodes(about, line)
    root.below += [_session_node(session) for session in about["sessions"]]
    if about["decisions"]:
        root.below.append(_Node("decisions", [_Node(_decision_words(one), []) for one in about["decisions"]]))
    if about["events"]:
        root.below.append(_Node("events", [_event_node(event) for event in about["events"]]))
    for name, describe in (("doubts", _doubt_words), ("holes", _hole_words), ("faults", _fault_words), ("captures", _capture_words)):
        if about[name]:
            root.below.append(_Node(_TITLES[name], [_Node(describe(row), []) for row in about[name]]))
    root.below.append(_Node(PROPOSED, []))
    return root


_TITLES = {
    "doubts": "what is not proved about time",
    "holes": "holes in the log",
    "faults": "what could not be read in these captures",
    "captures": "captures",
}


_TWICE = "Seconds in which two pumps infused at once are counted once."


def _line_nodes(about: Row, line: Row) -> list[_Node]:
    minutes = _Node(f"{line['minutes']} min: {line['code'] or 'no code'} x{line['units']}, {line['state']}", [])
    minutes.below.append(_Node(f"counted: {_span(line['counted_s'])}", []))
    minutes.below += [
        _Node(f"not counted: {_span(seconds)} {why}, {CLASSES.get(why, why)}", []) for why, seconds in line["excluded_s"].items()
    ]
    minutes.below += [_Node(f"held by {said['code']}: {said['found']} {said['do']}", []) for said in line["reasons_say"]]
    who = ", ".join(f"{name} {line[f'{name}_id']}" for name in ("patient", "order"))
    facts = _Node(f"{who}, {line['drug']}, {line['route']}, payer {line['payer']}, service date {line['service_date']}", [])
    nodes = [minutes, facts]
    if about["others"]:
        others = ", ".join(f"{row['code']} x{row['units']} {row['state']} ({row['line_id'][:10]})" for row in about["others"])
        nodes.append(_Node(f"with it, of the same encounter: {others}", []))
    first, *rest = _rule_words(about["rule"])
    policies = ", ".join(f"{name} {value}" for name, value in line["policies"].items()) if isinstance(line["policies"], dict) else ""
    nodes.append(_Node(first, [_Node(text, []) for text in (*rest, f"policies: {policies}", f"evidence: {line['evidence_hash']}")]))
    return nodes


def _session_node(session: Row) -> _Node:
    node = _Node(f"session {session['session_id']} on {session['pump_id']}, {session['state']}", [])
    node.below.append(_Node(_session_summary(session), []))
    node.below.append(
        _Node(f"from {_stamp(session['start'])} to {_stamp(session['stop'])}, pump clock {_stamp(session['printed_start'])}", [])
    )
    node.below += [_Node(f"{said['code']}: {said['found']}", []) for said in session["flags_say"]]
    intervals = [
        f"{'counted    ' if i['counted'] else 'not counted'} {_span(i['seconds'])} {i['class']}"
        f"{_source(i)}, {_stamp(i['from'])} to {_stamp(i['to'])}"
        for i in session["intervals"]
    ]
    node.below.append(_Node("minutes", [_Node(text, []) for text in intervals]))
    if session["setups"]:
        node.below.append(_Node("set-ups", [_Node(_setup_words(setup), []) for setup in session["setups"]]))
    node.below.append(_Node("events", [_event_node(event) for event in session["events"]]))
    node.below.append(_Node(f"evidence: {session['evidence_hash']}", []))
    return node


def _source(interval: Row) -> str:
    return "" if interval["source"] in (None, interval["class"]) else f" {interval['source']}"


def _setup_words(setup: Row) -> str:
    when = _stamp(setup["time"]) if setup["time"] is not None else f"pump clock {_stamp(setup['printed_time'])}"
    pump = "pump set up" if setup["pump_setup"] else "no pump set-up"
    return f"{when}: {pump}, new site {setup['new_site']} ({setup['setup_id'][:10]})"


def _event_node(event: Row) -> _Node:
    node = _Node(f"{_what(event)}: {_when(event)} [{event['event_id'][:10]}]", [])
    for record in event["records"]:
        below = [_Node(f"bytes: {_spaced(record['raw'])}", [])]
        if text := _readable(record["raw"]):
            below.append(_Node(f"as text: {text}", []))
        node.below.append(_Node(_place(record), [*below, _Node(f"decoded: {_decoded(record)}", [])]))
    if event.get("in_sessions"):
        node.below.append(_Node(f"in session {', '.join(event['in_sessions'])}", []))
    return node


def _doubt_words(doubt: Row) -> str:
    low, high = doubt["from_utc"], doubt["to_utc"]
    reach = [f"from {_stamp(low)}" if low else "", f"to {_stamp(high)}" if high else ""]
    about = "a cut in the log" if doubt["session_id"] is None else "this session"
    return f"{doubt['code']}, {about}: {doubt['says']['found']} It reaches {' '.join(filter(None, reach)) or 'without bound'}."


def _hole_words(hole: Row) -> str:
    return f"{hole['kind'].replace('_', ' ')} {hole['record_key']}"


def _fault_words(fault: Row) -> str:
    return f"{_place({**fault, 'page': None})}: {fault['code']}, {fault['message']}; bytes: {_spaced(fault['raw'])}"


def _decision_words(one: Row) -> str:
    note = f": {one['note']}" if one["note"] else ""
    what = f"{one['action']} {one['argument']}".rstrip()
    return f"{what} by {one['by']}, {_stamp(one['decided_at'])}{note} ({one['decision_id'][:10]}, {one['stands']})"


def _capture_words(capture: Row) -> str:
    if "via" not in capture:
        return f"{capture['sha256']}: not in raw/"
    clock = f"; clock read: pump {_stamp(capture['pump_clock'])} = {_stamp(capture['utc'])}" if capture["utc"] else ""
    return f"{capture['sha256']}: received {_stamp(capture['received_at'])} via {capture['via']}{clock}"


# --- as a page --------------------------------------------------------------------------------------------------------------


class _Html(str):
    """Markup, as against text, which is still to be escaped."""

    __slots__ = ()


def _tag(name: str, /, *children: object, **attributes: object) -> _Html:
    """An element: children that are no markup are text and escaped, None and "" are left out; `class_` is class, `a_b` is a-b."""
    inner = "".join(child if isinstance(child, _Html) else escape(printable(str(child))) for child in children if child is not None)
    given = (
        (key.rstrip("_").replace("_", "-"), f"{value:.6g}" if isinstance(value, float) else value)
        for key, value in attributes.items()
        if value is not None
    )
    head = "".join(f' {key}="{escape(printable(str(value)))}"' for key, value in given)
    return _Html(f"<{name}{head}/>" if name in _EMPTY and not inner else f"<{name}{head}>{inner}</{name}>")


def _all(parts: Iterable[_Html]) -> _Html:
    return _Html("".join(parts))


_EMPTY = frozenset({"rect", "line", "circle", "path", "meta"})


def as_html(explanation: Row) -> str:
    """The explanation as one page that needs nothing else: a timeline of each session, minutes, rule, events with their bytes.

    It shows in light and dark, prints, runs no script and loads nothing.
    """
    about = explanation
    line = about["line"]
    parts = [_header(about)]
    if (item := about["item"]) is not None:
        named = ("severity", "state", "patient_id", "pump_id", "payer", "order_id", "service_date", "minutes_at_stake")
        parts.append(_facts({name.replace("_", " "): item[name] for name in named if item[name] is not None}))
    if about["setup"] is not None:
        parts.append(_tag("p", _setup_words(about["setup"])))
    if line is not None:
        parts += [_line_minutes(line), *_line_facts(about)]
    if about["decisions"]:
        parts.append(_section("Decisions", _tag("ul", *(_tag("li", _decision_words(one)) for one in about["decisions"]))))
    parts += [_session_section(session) for session in about["sessions"]]
    if about["events"]:
        parts.append(_section("Events", _events_table(about["events"])))
    for name, describe in (("doubts", _doubt_words), ("holes", _hole_words), ("faults", _fault_words), ("captures", _capture_words)):
        if about[name]:
            title = _TITLES[name][0].upper() + _TITLES[name][1:]
            parts.append(_section(title, _tag("ul", *(_tag("li", describe(row)) for row in about[name]), class_="mono")))
    parts.append(_tag("footer", PROPOSED))
    head = _tag(
        "head",
        _tag("meta", charset="utf-8"),
        _tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        _tag("title", f"{about['kind']} {about['id']}"),
        _Html(f"<style>{_CSS}</style>"),
    )
    return "<!doctype html>\n" + _tag("html", head, _tag("body", _PATTERNS, _tag("main", *parts)), lang="en") + "\n"


def _section(title: str, *children: _Html) -> _Html:
    return _tag("section", _tag("h2", title), *children)


def _header(about: Row) -> _Html:
    line, item = about["line"], about["item"]
    if item is not None:
        title, state = item["code"], item["severity"]
    elif line is not None:
        title, state = f"{line['code'] or 'No code'} × {line['units']}", line["state"]
    elif about["kind"] == "event":
        title, state = _what(about["events"][0]), ""
    elif about["kind"] == "set-up":
        title, state = "Set-up", ""
    else:
        title, state = f"Session on {about['sessions'][0]['pump_id']}", about["sessions"][0]["state"]
    return _tag(
        "header",
        _tag("p", f"{about['kind']} ", _tag("code", about["id"]), class_="kind"),
        _tag("h1", title, _tag("span", state, class_=f"badge {state}") if state else None),
        _tag("p", about["summary"], class_="lead"),
    )


def _line_minutes(line: Row) -> _Html:
    seconds = {"infusing": line["counted_s"], **line["excluded_s"]}
    stats = [_stat(f"{line['minutes']} min", "counted", "infusing")]
    stats += [_stat(_span(value), f"not counted: {CLASSES.get(why, why)}", why) for why, value in line["excluded_s"].items()]
    reasons = [_tag("li", _tag("b", said["code"]), f" {said['found']} {said['do']}") for said in line["reasons_say"]]
    note = _tag("p", _TWICE) if line["counted_s"] // 60 > line["minutes"] else _Html()
    return _section("Minutes", _stats(stats), _bar(seconds), note, _tag("ul", *reasons, class_="reasons") if reasons else _Html())


def _stats(stats: Iterable[_Html]) -> _Html:
    return _tag("div", *stats, class_="stats")


def _stat(value: str, label: str, what: str) -> _Html:
    return _tag("div", _tag("b", value), _tag("span", _tag("i", class_=f"swatch {what}"), label), class_="stat")


def _bar(seconds: Mapping[str, float]) -> _Html:
    whole = sum(seconds.values()) or 1
    parts = [
        _tag("i", class_=what, style=f"width:{100 * value / whole:.3f}%", title=f"{what}: {_span(value)}")
        for what, value in seconds.items()
    ]
    return _tag("div", *parts, class_="bar")


def _line_facts(about: Row) -> list[_Html]:
    line = about["line"]
    facts = {
        "Patient": line["patient_id"], "Order": line["order_id"], "Drug": line["drug"], "Route": line["route"], "Payer": line["payer"],
        "Place of service": line["place_of_service"] or "not given", "Service date": line["service_date"], "Start": _stamp(line["start"]),
        "Stop": _stamp(line["stop"]), "Pumps": ", ".join(line["pump_ids"]), "Revision": line["revision"],
        "Revenue codes": ", ".join(line["revenue_codes"]) or "none",
    }  # fmt: skip
    rule = [_tag("li", text) for text in _rule_words(about["rule"])]
    policies = line["policies"].items() if isinstance(line["policies"], dict) else ()
    listed = _tag("dl", *(_all((_tag("dt", name), _tag("dd", value))) for name, value in policies), class_="facts")
    others = [
        _tag("li", _tag("b", f"{row['code']} × {row['units']}"), f" {row['state']} ", _tag("code", row["line_id"]))
        for row in about["others"]
    ]
    return [
        _section("The line", _facts(facts)),
        *([_section("With it, of the same encounter", _tag("ul", *others))] if others else []),
        _section(
            "The rule", _tag("ul", *rule), _tag("details", _tag("summary", "Policies in force"), listed), _hash(line["evidence_hash"])
        ),
    ]


def _facts(facts: Mapping[str, object]) -> _Html:
    return _tag("dl", *(_tag("div", _tag("dt", name), _tag("dd", value)) for name, value in facts.items()), class_="facts")


def _hash(sha: str) -> _Html:
    return _tag("p", "Hash of the evidence ", _tag("code", sha), class_="mono small")


def _session_section(session: Row) -> _Html:
    facts = {
        "Pump": session["pump_id"],
        "Start": _stamp(session["start"]),
        "Stop": "still open" if session["state"] == "open" else _stamp(session["stop"]),
        "Start, local": _stamp(session["start_local"]),
        "Pump clock at start": _stamp(session["printed_start"]),
        "Time": session["time_quality"],
        "Boluses": session["bolus_count"],
        "Demands granted, denied": f"{session['granted']}, {session['denied']}",
        "Volume": "unknown" if session["volume_ml"] is None else f"{session['volume_ml']:g} mL",
    }
    seconds = {name: session[f"{name}_s"] for name in CLASSES if session[f"{name}_s"] or name == "infusing"}
    flags = [_tag("li", _tag("b", said["code"]), f" {said['found']} {said['do']}") for said in session["flags_say"]]
    setups = [_tag("li", _setup_words(setup)) for setup in session["setups"]]
    rows = [
        _tag(
            "tr",
            _tag("td", _tag("i", class_=f"swatch {i['class']}"), i["class"], _source(i)),
            _tag("td", _span(i["seconds"])),
            _tag("td", "counted" if i["counted"] else "not counted"),
            _tag("td", f"{_stamp(i['from'])} – {_stamp(i['to'])}", class_="mono"),
            _tag("td", i["why"]),
        )
        for i in session["intervals"]
    ]
    return _tag(
        "section",
        _tag("h2", "Session ", _tag("code", session["session_id"]), _tag("span", session["state"], class_=f"badge {session['state']}")),
        _timeline(session),
        _stats(_stat(_span(value), name, name) for name, value in seconds.items()),
        _facts(facts),
        _tag("ul", *flags, class_="reasons") if flags else None,
        _tag("h3", "Minutes, and why"),
        _tag("table", _head("what", "how long", "", "from – to", "why"), _tag("tbody", *rows)),
        _all((_tag("h3", "Set-ups"), _tag("ul", *setups))) if setups else None,
        _tag("h3", "Events"),
        _events_table(session["events"]),
        _hash(session["evidence_hash"]),
    )


def _head(*titles: str) -> _Html:
    return _tag("thead", _tag("tr", *(_tag("th", title) for title in titles)))


def _events_table(events: Sequence[Row]) -> _Html:
    bodies = []
    for event in events:
        row = _tag(
            "tr",
            _tag("td", _stamp(event["time"]) if event["time"] is not None else "unknown", class_="mono"),
            _tag("td", _tag("i", class_=f"swatch {event['time_quality']}"), event["time_quality"], title=event["time_method"]),
            _tag("td", _stamp(event["pump_time"]) if event["pump_time"] is not None else "", class_="mono"),
            _tag("td", _what(event)),
            _tag("td", _tag("code", event["event_id"][:10])),
        )
        records = [_record(record) for record in event["records"]]
        below = _tag(
            "tr", _tag("td", *(records or [_tag("p", "No record: this is a place where the log has none.")]), colspan=5), class_="bytes"
        )
        bodies.append(_tag("tbody", row, below, class_="event"))
    return _tag("table", _head("time", "quality", "pump clock", "what it says", "event"), *bodies)


def _record(record: Row) -> _Html:
    text = _readable(record["raw"])
    return _tag(
        "details",
        _tag("summary", _tag("code", _spaced(record["raw"])), _tag("span", _place(record), class_="soft")),
        _tag("p", _tag("code", text)) if text else None,
        _tag("p", "Capture ", _tag("code", record["capture"]), class_="soft"),
        _facts({name: _short(value) for name, value in record["decoded"].items()}),
    )


# --- the timeline -----------------------------------------------------------------------------------------------------------

_WIDTH, _LEFT, _RIGHT = 960.0, 92.0, 16.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STEPS_MS = tuple(60_000 * minutes for minutes in (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 10080, 43200))
_TICKS = 9
_QUALITIES = ("exact", "corrected", "unknown")


@dataclass(frozen=True, slots=True)
class _Axis:
    """Elapsed time across a figure, with UTC where it is known."""

    low: int
    high: int
    known: tuple[int, datetime] | None

    def x(self, ms: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (ms - self.low) / (self.high - self.low)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """(place, label): round UTC times, else round elapsed ones."""
        step = next((s for s in _STEPS_MS if (self.high - self.low) / s <= _TICKS), _STEPS_MS[-1])
        shift = 0
        if self.known is not None:
            at, utc = self.known
            shift = (utc - _EPOCH) // timedelta(milliseconds=1) - at
        day = None
        for moment in range(-(-(self.low + shift) // step) * step, self.high + shift + 1, step):
            if self.known is None:
                hours, minutes = divmod(moment // 60_000, 60)
                yield self.x(moment), f"+{hours}:{minutes:02d}"
            else:
                utc = self.known[1] + timedelta(milliseconds=moment - shift - self.known[0])
                yield self.x(moment - shift), f"{utc:%H:%M}" if day == utc.date() else f"{utc:%m-%d %H:%M}"
                day = utc.date()


def _timeline(session: Row) -> _Html:
    """Bands of what each second is; boluses, alarms, set-ups and sites as marks; how the clock is known."""
    intervals, events = session["intervals"], [event for event in session["events"] if event["elapsed_ms"] is not None]
    first = min((i["from_ms"] for i in intervals), default=0)
    last = max((i["to_ms"] for i in intervals), default=0)
    lead = max(1_800_000, (last - first) // 4)
    early = [s["elapsed_ms"] for s in session["setups"] if first - lead <= s["elapsed_ms"] < first]
    low, high = min([first, *early]), max(last, first + 60_000)
    pad = max(1, (high - low) // 60)
    known = next(((event["elapsed_ms"], event["time"]) for event in events if event["time"] is not None), None)
    axis = _Axis(low - pad, high + pad, known)
    shown = [event for event in events if axis.low <= event["elapsed_ms"] <= axis.high]
    rows: list[tuple[str, list[_Html], float]] = [("delivery", [_band(axis, i) for i in intervals], 38.0)]
    for title, marks in (
        ("boluses", [_bolus(axis, event) for event in shown if event["kind"] == Kind.BOLUS_DELIVERED]),
        ("alarms", [_alarm(axis, event) for event in shown if event["kind"] in (Kind.ALARM_RAISED, Kind.ALARM_CLEARED)]),
        ("set-ups", [_setup_mark(axis, setup) for setup in session["setups"] if axis.low <= setup["elapsed_ms"] <= axis.high]),
    ):
        if marks:
            rows.append((title, marks, 20.0))
    rows.append(("pump clock", _clock(axis, shown), 10.0))
    drawn, y = [], 6.0
    for title, marks, height in rows:
        label = _tag("text", title, x=_LEFT - 10, y=height / 2 + 4, text_anchor="end", class_="label")
        drawn.append(_tag("g", label, *marks, transform=f"translate(0 {y:g})"))
        y += height + 8
    grid = [_tag("line", x1=x, x2=x, y1=2, y2=y, class_="grid") for x, _ in axis.ticks()]
    labels = [_tag("text", label, x=x, y=y + 14, text_anchor="middle", class_="label") for x, label in axis.ticks()]
    labels.append(_tag("text", "elapsed" if known is None else "UTC", x=0, y=y + 14, class_="label"))
    title = f"Timeline of session {session['session_id']}: {_session_summary(session)}"
    svg = _tag("svg", _tag("title", title), *grid, *drawn, *labels, viewBox=f"0 0 {_WIDTH:g} {y + 22:g}", role="img")
    return _tag("figure", _tag("div", svg, class_="scroll"), _legend(session, shown, axis))


def _legend(session: Row, shown: Sequence[Row], axis: _Axis) -> _Html:
    there = {i["class"] for i in session["intervals"]}
    keys = [_tag("span", _tag("i", class_=f"swatch {name}"), name) for name in CLASSES if name in there]
    quality = {event["time_quality"] for event in shown}
    keys += [_tag("span", _tag("i", class_=f"swatch thin {name}"), f"clock {name}") for name in _QUALITIES if name in quality]
    outside = sum(setup["elapsed_ms"] < axis.low for setup in session["setups"])
    if outside:
        keys.append(_tag("span", f"{outside} set-up{'s' if outside > 1 else ''} before this figure: see Set-ups"))
    return _tag("figcaption", *keys)


def _span_of(axis: _Axis, low: int, high: int, height: int, what: str, title: str) -> _Html:
    width = max(1.5, axis.x(high) - axis.x(low))
    return _tag("rect", _tag("title", title), x=axis.x(low), y=0, width=width, height=height, class_=what)


def _band(axis: _Axis, interval: Row) -> _Html:
    low, high, what = interval["from_ms"], interval["to_ms"], interval["class"]
    label = f"{what} {_span(interval['seconds'])}"
    counted = "counted" if interval["counted"] else "not counted"
    bar = _span_of(axis, low, high, 38, what, f"{label}, {counted}: {_stamp(interval['from'])} to {_stamp(interval['to'])}")
    if axis.x(high) - axis.x(low) < 7 * len(label):
        return bar
    return _all((bar, _tag("text", label, x=(axis.x(low) + axis.x(high)) / 2, y=23, text_anchor="middle", class_=f"on {what}")))


def _mark(path: str, x: float, title: str, what: str) -> _Html:
    return _tag("path", _tag("title", title), d=path, transform=f"translate({x:g} 10)", class_=f"mark {what}")


def _title(event: Row) -> str:
    return f"{_what(event)}: {_when(event)}"


def _bolus(axis: _Axis, event: Row) -> _Html:
    return _mark("M0 9V-3M-3.5-3a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0", axis.x(event["elapsed_ms"]), _title(event), "bolus")


def _alarm(axis: _Axis, event: Row) -> _Html:
    raised = event["kind"] == Kind.ALARM_RAISED
    return _mark("M0-8L8 7H-8Z", axis.x(event["elapsed_ms"]), _title(event), "raised" if raised else "cleared")


def _setup_mark(axis: _Axis, setup: Row) -> _Html:
    """A square is a pump set-up, a diamond one with a new site, filled where it is sure."""
    site = setup["new_site"]
    path = "M-6-6H6V6H-6Z" if site == "no" else "M0-9L9 0L0 9L-9 0Z"
    return _mark(path, axis.x(setup["elapsed_ms"]), _setup_words(setup), "setup" if site == "no" else f"site {site}")


def _clock(axis: _Axis, events: Sequence[Row]) -> list[_Html]:
    """Segments between events by the worse quality of both ends, and the places where the clock was set."""
    runs: list[tuple[int, int, str]] = []
    for one, other in pairwise(events):
        worse = max(one["time_quality"], other["time_quality"], key=_QUALITIES.index)
        if runs and runs[-1][2] == worse:
            runs[-1] = (runs[-1][0], other["elapsed_ms"], worse)
        else:
            runs.append((one["elapsed_ms"], other["elapsed_ms"], worse))
    drawn = [_span_of(axis, low, high, 8, quality, f"UTC {quality}") for low, high, quality in runs]
    changes = [event for event in events if event["kind"] == Kind.CLOCK_CHANGE]
    return [*drawn, *(_tag("path", _tag("title", _title(e)), d=f"M{axis.x(e['elapsed_ms']):g}-4v16", class_="set") for e in changes)]


_PATTERNS = _Html(
    '<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>'
    '<pattern id="unknown" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="8" height="8" class="pattern-back"/><rect width="3" height="8" class="pattern-unknown"/></pattern>'
    '<pattern id="alarm" width="6" height="6" patternUnits="userSpaceOnUse">'
    '<rect width="6" height="6" class="pattern-alarm"/><circle cx="2" cy="2" r="1.1" class="pattern-back"/></pattern>'
    "</defs></svg>"
)

_CSS = """
:root{color-scheme:light dark;--bg:#fff;--ink:#17212b;--soft:#5b6875;--rule:#dbe1e8;--card:#f5f7f9;--infusing:#0f766e;--unknown:#b45309;
--kvo:#38a3d1;--alarm:#b3224f;--paused:#c3ccd6;--exact:#0f766e;--corrected:#7a8fd8;--on:#fff;--onpaused:#17212b;--ready:#15803d;
--hold:#a34a04}
@media (prefers-color-scheme:dark){:root{--bg:#12171d;--ink:#e6ebf0;--soft:#9aa7b4;--rule:#2c3640;--card:#1a2129;--infusing:#2fa89c;
--unknown:#e19a3c;--kvo:#4fb4e0;--alarm:#e0557f;--paused:#4a5763;--exact:#2fa89c;--corrected:#8ea2ea;--on:#0b1014;--onpaused:#e6ebf0;
--ready:#4fbf73;--hold:#eaa24a}}
@media print{:root{color-scheme:light;--bg:#fff;--ink:#000;--soft:#444;--rule:#bbb;--card:#fff;--infusing:#0f766e;--unknown:#b45309;
--kvo:#38a3d1;--alarm:#b3224f;--paused:#c3ccd6;--exact:#0f766e;--corrected:#7a8fd8;--on:#fff;--onpaused:#000;--ready:#15803d;
--hold:#a34a04}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}main{padding:0;max-width:none}details::details-content{
content-visibility:visible;display:block}.event,figure,.stats,.facts{break-inside:avoid}h2,h3{break-after:avoid}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1060px;margin:0 auto;padding:28px 24px 48px}h1{font-size:30px;line-height:1.2;margin:2px 0 6px}
h2{font-size:18px;margin:34px 0 12px;padding-top:18px;border-top:1px solid var(--rule)}h3{font-size:15px;margin:22px 0 6px}
code,.mono{font-family:ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;font-size:12.5px;font-weight:400}
code{overflow-wrap:anywhere}.kind,.soft,.small,.label,dt,th,figcaption,footer{color:var(--soft)}.kind{margin:0}
.lead{font-size:17px;margin:0;max-width:75ch}.small{font-size:12.5px}
.badge{display:inline-block;margin-left:12px;padding:2px 10px;border-radius:12px;border:1px solid currentColor;font-size:13px;
font-weight:600;vertical-align:middle;color:var(--soft)}
.badge.ready,.badge.closed{color:var(--ready)}.badge.hold,.badge.uncertain,.badge.open{color:var(--hold)}
.stats{display:flex;flex-wrap:wrap;gap:10px;margin:12px 0}
.stat{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:8px 14px}.stat b{display:block;font-size:20px}
.stat span{font-size:13px;color:var(--soft)}
.swatch{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:6px;background:var(--paused)}
.swatch.thin{height:5px;vertical-align:middle}.bar{display:flex;height:14px;border-radius:4px;overflow:hidden;background:var(--card)}
.bar i{display:block;height:100%}.infusing{fill:var(--infusing)}i.infusing{background:var(--infusing)}.kvo{fill:var(--kvo)}
i.kvo{background:var(--kvo)}.paused{fill:var(--paused)}i.paused{background:var(--paused)}.exact{fill:var(--exact)}
i.exact{background:var(--exact)}.corrected{fill:var(--corrected)}i.corrected{background:var(--corrected)}.unknown{fill:url(#unknown)}
i.unknown{background:repeating-linear-gradient(135deg,var(--unknown) 0 3px,var(--bg) 3px 6px)}.alarm{fill:url(#alarm)}
i.alarm{background:var(--alarm)}.pattern-back{fill:var(--bg)}.pattern-unknown{fill:var(--unknown)}.pattern-alarm{fill:var(--alarm)}
figure{margin:0}.scroll{overflow-x:auto}svg{display:block;width:100%;min-width:640px;height:auto}.label{font-size:12px;fill:var(--soft)}
.grid{stroke:var(--rule);stroke-width:1}.on{font-size:12px;font-weight:600;fill:var(--on)}.on.paused{fill:var(--onpaused)}
.on.unknown,.on.alarm{fill:var(--ink);stroke:var(--bg);stroke-width:4px;paint-order:stroke}.mark{stroke:var(--bg);stroke-width:.5}
.bolus{fill:var(--infusing);stroke:var(--infusing);stroke-width:1.5}.raised{fill:var(--alarm)}
.cleared{fill:var(--bg);stroke:var(--alarm);stroke-width:1.5}.setup{fill:var(--bg);stroke:var(--ink);stroke-width:1.5}
.site.yes{fill:var(--ink)}.site.possible{fill:var(--bg);stroke:var(--ink);stroke-width:1.5;stroke-dasharray:3 2}
.set{stroke:var(--ink);stroke-width:2}figcaption{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;margin:4px 0 10px}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(210px,1fr));gap:8px 20px;margin:12px 0}
.facts dd{margin:0;overflow-wrap:anywhere}dt{font-size:12.5px}
.reasons{padding:10px 14px 10px 30px;border-left:3px solid var(--hold);background:var(--card);margin:12px 0}ul{padding-left:20px}
li{margin:2px 0;overflow-wrap:anywhere}table{border-collapse:collapse;width:100%;font-size:13.5px}
th{text-align:left;font-weight:500;border-bottom:1px solid var(--rule);padding:4px 12px 4px 0}
td{padding:4px 12px 4px 0;vertical-align:top}tbody.event,table>tbody:not(.event) tr{border-bottom:1px solid var(--rule)}
.bytes td{padding:0 0 6px}.bytes code{font-size:11.5px;color:var(--soft)}
.bytes .soft{font-size:11.5px;margin-left:10px}.bytes p{margin:4px 0}summary{cursor:pointer}
footer{margin-top:36px;padding-top:14px;border-top:1px solid var(--rule);font-size:13px}
"""
