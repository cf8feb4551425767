"""What an explanation says, in words: its phrases, the tree that they make for a terminal, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

from ingest.views import PROPOSED, plain, printable
from transforms.orders import zone

Row: TypeAlias = dict[str, Any]

CLASSES: Mapping[str, str] = {
    "infusing": "delivery that the log proves",
    "unknown": "nothing in the log proves delivery here",
    "kvo": "keep-vein-open, which is no therapy",
    "alarm": "stopped by an alarm",
    "paused": "stopped or between deliveries",
}
"""What a second of a session can be, and why it is counted (the first) or not (docs/semantics.md §4)."""


# --- words ------------------------------------------------------------------------------------------------------------------


def span(seconds: float) -> str:
    """123 min 05 s; the seconds only where there are some."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min" + (f" {rest:02d} s" if rest else "")


def stamp(moment: datetime | None, tz: str | None = None) -> str:
    """An instant as text: UTC as such, with the local time of a zone beside it; none as unknown."""
    if moment is None:
        return "unknown"
    text = f"{moment:%Y-%m-%d %H:%M:%S}"
    return text if moment.tzinfo is None else f"{text} UTC{_local(moment.astimezone(UTC), tz)}"


def _local(moment: datetime, tz: str | None) -> str:
    """(20:15:00 EST), with its date where that is another; nothing where it is the same as UTC, or there is no zone."""
    try:
        local = moment if tz is None else moment.astimezone(zone(tz))
    except (KeyError, OverflowError):
        return ""
    if local.tzname() == moment.tzname():
        return ""
    day = "" if local.date() == moment.date() else f"{local:%Y-%m-%d} "
    return f" ({day}{local:%H:%M:%S %Z})"


def zone_words(about: Row) -> str:
    """What the local times of an explanation are; "" where there are none."""
    return f"local times, in brackets, are those of {about['tz']}" if about["tz"] not in (None, "UTC") else ""


def time_words(event: Row, tz: str | None = None) -> str:
    """When an event was, and how that is known; the pump's clock where UTC is unknown."""
    if event["time"] is not None:
        bound = f", ± {event['time_bound_s']:.3g} s" if event["time_bound_s"] is not None else ""
        return f"{stamp(event['time'], tz)} ({event['time_quality']}{bound})"
    shown = f"pump clock {stamp(event['pump_time'])}" if event["pump_time"] is not None else "no time"
    return f"{shown} ({event['time_method']})"


def event_words(event: Row) -> str:
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


def place_words(record: Row) -> str:
    """Where a record stood."""
    named = [f"{name} {record[name]}" for name in ("part", "page") if record[name] is not None]
    return ", ".join([f"capture {record['capture'][:12]}", *named, f"offset {record['offset']}"])


def spaced(raw: str) -> str:
    """Hex, byte by byte."""
    return " ".join(raw[i : i + 2] for i in range(0, len(raw), 2))


def readable(raw: str) -> str:
    """Bytes as text where they are nothing else."""
    data = bytes.fromhex(raw)
    return data.decode() if len(data) > 3 and data.isascii() and data.decode().isprintable() else ""


def _decoded(record: Row) -> str:
    return ", ".join(f"{name} {short(value)}" for name, value in record["decoded"].items())


def short(value: Any) -> str:
    """A value of a record or an event on one line."""
    return json.dumps(plain(value), ensure_ascii=False) if isinstance(value, dict | list) else str(plain(value))


def rule_words(rule: Row) -> list[str]:
    """The rule of a line, its citation first."""
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


def session_words(session: Row) -> str:
    """What a session counts and what not, in one sentence."""
    excluded = {name: seconds for name in CLASSES if name != "infusing" and (seconds := session[f"{name}_s"])}
    rest = ", ".join(f"{span(seconds)} {name}" for name, seconds in excluded.items())
    return f"{span(session['infusing_s'])} of recorded delivery{'; not counted: ' + rest if rest else ''}; {session['state']}."


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
    root, tz = _Node(f"{about['kind']} {about['id']}", [_Node(about["summary"], [])]), about["tz"]
    if said := zone_words(about):
        root.below.append(_Node(said, []))
    if (item := about["item"]) is not None:
        below = [_Node(f"answer with: {command}", []) for command in item["answers"]]
        root.below.append(_Node(f"item: {item['severity']}, {item['state']}, {item['minutes_at_stake']} min at stake", below))
    if (line := about["line"]) is not None:
        root.below += _line_nodes(about, line)
    root.below += [_session_node(session, tz) for session in about["sessions"]]
    if about["decisions"]:
        root.below.append(_Node("decisions", [_Node(decision_words(one), []) for one in about["decisions"]]))
    if about["events"]:
        root.below.append(_Node("events", [_event_node(event, tz) for event in about["events"]]))
    for title, words in ends(about):
        root.below.append(_Node(title, [_Node(text, []) for text in words]))
    root.below.append(_Node(PROPOSED, []))
    return root


def ends(about: Row) -> Iterator[tuple[str, list[str]]]:
    """What is told at the end, by title."""
    tz = about["tz"]
    for title, words in (
        ("what is not proved about time", [doubt_words(row, tz) for row in about["doubts"]]),
        ("holes in the log", [hole_words(row) for row in about["holes"]]),
        ("what could not be read in these captures", [fault_words(row) for row in about["faults"]]),
        ("captures", [capture_words(row, tz) for row in about["captures"]]),
    ):
        if words:
            yield title, words


TWICE = "Seconds in which two pumps infused at once are counted once."
"""Why a line may have fewer minutes than its sessions."""


def _line_nodes(about: Row, line: Row) -> list[_Node]:
    minutes = _Node(f"{line['minutes']} min: {line['code'] or 'no code'} x{line['units']}, {line['state']}", [])
    minutes.below.append(_Node(f"counted: {span(line['counted_s'])}", []))
    minutes.below += [
        _Node(f"not counted: {span(seconds)} {why}, {CLASSES.get(why, why)}", []) for why, seconds in line["excluded_s"].items()
    ]
    minutes.below += [
        _Node(f"held by {said['code']}: {said['found']} {said['do']}", [_Node(f"answer with: {one}", []) for one in said["answers"]])
        for said in line["reasons_say"]
    ]
    who = ", ".join(f"{name} {line[f'{name}_id']}" for name in ("patient", "order"))
    facts = _Node(f"{who}, {line['drug']}, {line['route']}, payer {line['payer']}, service date {line['service_date']}", [])
    nodes = [minutes, facts]
    if about["others"]:
        others = ", ".join(f"{row['code']} x{row['units']} {row['state']} ({row['line_id'][:10]})" for row in about["others"])
        nodes.append(_Node(f"with it, of the same encounter: {others}", []))
    first, *rest = rule_words(about["rule"])
    policies = ", ".join(f"{name} {value}" for name, value in line["policies"].items()) if isinstance(line["policies"], dict) else ""
    nodes.append(_Node(first, [_Node(text, []) for text in (*rest, f"policies: {policies}", f"evidence: {line['evidence_hash']}")]))
    return nodes


def _session_node(session: Row, tz: str | None) -> _Node:
    node = _Node(f"session {session['session_id']} on {session['pump_id']}, {session['state']}", [])
    node.below.append(_Node(session_words(session), []))
    node.below.append(
        _Node(f"from {stamp(session['start'], tz)} to {stamp(session['stop'], tz)}, pump clock {stamp(session['printed_start'])}", [])
    )
    node.below += [_Node(f"{said['code']}: {said['found']}", []) for said in session["flags_say"]]
    intervals = [
        f"{'counted    ' if i['counted'] else 'not counted'} {span(i['seconds'])} {i['class']}"
        f"{source_words(i)}, {stamp(i['from'], tz)} to {stamp(i['to'], tz)}"
        for i in session["intervals"]
    ]
    node.below.append(_Node("minutes", [_Node(text, []) for text in intervals]))
    if session["setups"]:
        node.below.append(_Node("set-ups", [_Node(setup_words(setup, tz), []) for setup in session["setups"]]))
    node.below.append(_Node("events", [_event_node(event, tz) for event in session["events"]]))
    node.below.append(_Node(f"evidence: {session['evidence_hash']}", []))
    return node


def source_words(interval: Row) -> str:
    """The source of an interval, where its class does not say it."""
    return "" if interval["source"] in (None, interval["class"]) else f" {interval['source']}"


def setup_words(setup: Row, tz: str | None = None) -> str:
    """A set-up in one line."""
    when = stamp(setup["time"], tz) if setup["time"] is not None else f"pump clock {stamp(setup['printed_time'])}"
    pump = "pump set up" if setup["pump_setup"] else "no pump set-up"
    return f"{when}: {pump}, new site {setup['new_site']} ({setup['setup_id'][:10]})"


def _event_node(event: Row, tz: str | None) -> _Node:
    node = _Node(f"{event_words(event)}: {time_words(event, tz)} [{event['event_id'][:10]}]", [])
    for record in event["records"]:
        below = [_Node(f"bytes: {spaced(record['raw'])}", [])]
        if text := readable(record["raw"]):
            below.append(_Node(f"as text: {text}", []))
        node.below.append(_Node(place_words(record), [*below, _Node(f"decoded: {_decoded(record)}", [])]))
    if event.get("in_sessions"):
        node.below.append(_Node(f"in session {', '.join(event['in_sessions'])}", []))
    return node


def doubt_words(doubt: Row, tz: str | None = None) -> str:
    """What is not proved, and how far that reaches."""
    low, high = doubt["from_utc"], doubt["to_utc"]
    reach = [f"from {stamp(low, tz)}" if low else "", f"to {stamp(high, tz)}" if high else ""]
    about = "a cut in the log" if doubt["session_id"] is None else "this session"
    also = f", and the session from {stamp(doubt['since_utc'], tz)} on that may go on behind it" if doubt["since_utc"] else ""
    return f"{doubt['code']}, {about}: {doubt['says']['found']} It reaches {' '.join(filter(None, reach)) or 'without bound'}{also}."


def hole_words(hole: Row) -> str:
    """A hole of the log, and its place."""
    return f"{hole['kind'].replace('_', ' ')} {hole['record_key']}"


def fault_words(fault: Row) -> str:
    """What could not be read, with its bytes."""
    return f"{place_words({**fault, 'page': None})}: {fault['code']}, {fault['message']}; bytes: {spaced(fault['raw'])}"


def decision_words(one: Row) -> str:
    """A reviewer's decision, and whether it stands."""
    note = f": {one['note']}" if one["note"] else ""
    what = f"{one['action']} {one['argument']}".rstrip()
    return f"{what} by {one['by']}, {stamp(one['decided_at'])}{note} ({one['decision_id'][:10]}, {one['stands']})"


def capture_words(capture: Row, tz: str | None = None) -> str:
    """Where a capture came from, and how the clock was read with it."""
    if "via" not in capture:
        return f"{capture['sha256']}: not in raw/"
    clock = f"; clock read: pump {stamp(capture['pump_clock'])} = {stamp(capture['utc'], tz)}" if capture["utc"] else ""
    return f"{capture['sha256']}: received {stamp(capture['received_at'], tz)} via {capture['via']}{clock}"
