"""The derived tables, declared once: Arrow types, and what each column says (the data dictionary that ships with every export)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from devices.contract import CHECKS

_S, _B, _F, _I, _L = pa.string(), pa.bool_(), pa.float64(), pa.int64(), pa.list_(pa.string())
_NAIVE, _UTC, _DATE = pa.timestamp("ms"), pa.timestamp("ms", "UTC"), pa.date32()


def _schema(*fields: tuple[str, pa.DataType, str]) -> pa.Schema:
    """A name that ends in `?` may be null."""
    return pa.schema(
        [pa.field(name.rstrip("?"), kind, nullable=name.endswith("?"), metadata={"says": says}) for name, kind, says in fields]
    )


EVENTS = _schema(
    ("event_id", _S, "hash of pump and record key"),
    ("pump_id", _S, "family:serial"),
    ("log_epoch", pa.int32(), "how often the log has begun anew"),
    ("record_key", _S, "what makes the record itself"),
    ("seq?", _I, "the record's own number"),
    ("stretch?", _S, "event_id of the first event of its stretch; a hole has none"),
    ("order_in_stretch?", _I, "its place in the stretch, from 0"),
    ("kind", _S, "what it says (docs/semantics.md §1)"),
    ("source?", _S, "what delivers"),
    ("reason?", _S, "why"),
    ("target?", _S, "what a priming fills"),
    ("at?", _S, "which instant the time of a bolus names"),
    ("alarm_class?", _S, "kind of alarm"),
    ("stops_delivery?", _B, "this pump does not deliver after this alarm"),
    ("pump_time?", _NAIVE, "the pump's clock, as printed"),
    ("time?", _UTC, "UTC, where it is known"),
    ("elapsed_ms?", _I, "elapsed time within the stretch"),
    ("time_quality", _S, "exact, corrected or unknown"),
    ("time_method", _S, "how UTC was found"),
    ("time_bound_s?", _F, "how far UTC may be off, seconds"),
    ("rate_ml_h?", _F, "rate, mL/h"),
    ("rate_dose_h?", _F, "rate, dose units/h"),
    ("volume_ml?", _F, "volume given, mL"),
    ("programmed_ml?", _F, "volume programmed, mL"),
    ("dose?", _F, "dose given"),
    ("programmed_dose?", _F, "dose programmed"),
    ("dose_unit?", _S, "unit of the doses"),
    ("duration_s?", _F, "duration, seconds"),
    ("native_code", _S, "the pump's own code"),
    ("detail", _S, "what else the record said, JSON"),
    ("raw", pa.binary(), "the record's bytes"),
)

SESSIONS = _schema(
    ("session_id", _S, "hash of pump, order and first record"),
    ("pump_id", _S, "family:serial"),
    ("stretch", _S, "event_id of the first event of its stretch"),
    ("patient_id?", _S, "from the order"),
    ("order_id?", _S, "the order in force at its start"),
    ("payer?", _S, "from the order"),
    ("drug?", _S, "from the order"),
    ("route?", _S, "from the order"),
    ("start?", _UTC, "start of its first piece"),
    ("stop?", _UTC, "end of its last piece; none while open"),
    ("start_local?", _NAIVE, "start in the order's zone"),
    ("stop_local?", _NAIVE, "stop in the order's zone"),
    ("printed_start?", _NAIVE, "what the pump's clock said at the start"),
    ("span_s", _I, "seconds from start to end"),
    ("infusing_s", _I, "seconds of delivery"),
    ("unknown_s", _I, "seconds that nothing proves"),
    ("kvo_s", _I, "seconds of keep-vein-open"),
    ("alarm_s", _I, "seconds stopped by an alarm"),
    ("paused_s", _I, "the rest"),
    ("volume_ml?", _F, "rates x time plus boluses, where all are known, mL"),
    ("bolus_count", _I, "boluses delivered"),
    ("granted", _I, "demands granted"),
    ("denied", _I, "demands denied"),
    ("setups", _I, "set-ups that belong to it"),
    ("new_sites", _I, "of these with a new site"),
    ("possible_sites", _I, "of these with a possible new site"),
    ("time_quality", _S, "the worst of its times"),
    ("state", _S, "open, closed or uncertain"),
    ("flags", _L, "codes found on it (docs/semantics.md §6)"),
    ("first_event", _S, "event it starts with"),
    ("last_event", _S, "last event of it"),
    ("evidence_hash", _S, "hash of what it rests on"),
    ("continuous_s", _I, "seconds of delivery other than boluses"),
    ("max_rate_ml_h?", _F, "greatest rate told, mL/h"),
    ("decisions", _L, "reviewers' decisions that shaped its time"),
)

INTERVALS = _schema(
    ("session_id", _S, "its session"),
    ("pump_id", _S, "family:serial"),
    ("stretch", _S, "its stretch"),
    ("from_ms", _I, "elapsed time in the stretch"),
    ("to_ms", _I, "elapsed time in the stretch"),
    ("from_utc?", _UTC, "UTC"),
    ("to_utc?", _UTC, "UTC"),
    ("class", _S, "infusing, unknown, kvo, alarm or paused"),
    ("source?", _S, "what delivers"),
    ("first_event?", _S, "the event it begins with"),
    ("last_event?", _S, "the event it ends with"),
)

SETUPS = _schema(
    ("setup_id", _S, "hash of pump and first record"),
    ("session_id?", _S, "the session it was made for"),
    ("pump_id", _S, "family:serial"),
    ("stretch", _S, "its stretch"),
    ("patient_id?", _S, "of the session"),
    ("order_id?", _S, "of the session"),
    ("elapsed_ms", _I, "elapsed time of its last event"),
    ("time?", _UTC, "UTC of its last event"),
    ("printed_time?", _NAIVE, "what the pump's clock said"),
    ("pump_setup", _B, "reservoir, cassette or tubing was set up"),
    ("new_site", _S, "yes, no or possible"),
    ("evidence", _L, "event ids"),
    ("decisions", _L, "reviewers' decisions that shaped it"),
)

PIECE = pa.struct(
    [
        ("event_id", _S),
        ("last_event", _S),
        ("from_ms", _I),
        ("to_ms", _I),
        ("from_utc", _UTC),
        ("to_utc", _UTC),
        ("printed", _NAIVE),
        ("likely_ms", _I),
    ]
)
"""A delivery without a stop: the events it begins with and that show it over, on elapsed time, in UTC and as the pump printed its
start; `likely_ms` after its start its volume was given, where the pump recorded volume and rate."""

DOUBTS = _schema(
    ("doubt_id", _S, "hash of code and what it is about"),
    ("pump_id", _S, "family:serial"),
    ("session_id?", _S, "the session whose time is not proved; none for a cut"),
    ("order_id?", _S, "of the session"),
    ("patient_id?", _S, "of the session"),
    ("code", _S, "why (first row of docs/semantics.md §6)"),
    ("from_utc?", _UTC, "from when on it may have been; none: without bound"),
    ("to_utc?", _UTC, "until when; none: without bound"),
    ("since_utc?", _UTC, "of a cut: the start of a session that ended shortly before it, and may go on behind it"),
    ("event_id", _S, "the first event of it"),
    ("pieces", pa.list_(PIECE), "of NO_STOP: the deliveries without a stop"),
)
"""What is not proved about time, and how far it reaches: sessions with a code of the first row, and cuts."""

CHECK = pa.struct([(f.name, f.type) for f in CHECKS])

PUMPS = _schema(
    ("pump_id", _S, "family:serial"),
    ("captures", _I, "captures received, repetitions apart"),
    ("records", _I, "records read in them"),
    ("events", _I, "events they became, holes apart"),
    ("repeats", _I, "records that say again what another said"),
    ("faults", _I, "places that could not be read"),
    ("holes", _I, "places where records are missing"),
    ("seen_to?", _UTC, "the last instant that its captures reach"),
    ("disagreements", pa.list_(CHECK), "days whose totals, as the pump tells them, are not what its records add up to"),
)
"""What is known of each pump: every record received is an event, quarantined or a repetition."""

DAYS = _schema(
    ("order_id", _S, "the order"),
    ("patient_id", _S, "the patient"),
    ("pump_ids", _L, "pumps that infused"),
    ("date", _DATE, "date in the order's zone"),
    ("infusing_s", _I, "seconds of delivery on it"),
    ("unknown_s", _I, "seconds that nothing proves"),
    ("continuous", _B, "a session of 24 h or more, not only boluses, covers it"),
    ("flags", _L, "codes of the sessions that touch it"),
)

LEDGER = pa.list_(pa.struct([("session_id", _S), ("from", _UTC), ("to", _UTC), ("seconds", _F), ("counted", _B), ("why", _S)]))

LINES = _schema(
    ("line_id", _S, "hash of encounter, code and rule set"),
    ("revision", pa.int32(), "0 until it was first released"),
    ("encounter_id", _S, "its encounter"),
    ("session_ids", _L, "its sessions"),
    ("pump_ids", _L, "their pumps"),
    ("patient_id", _S, "the patient"),
    ("order_id", _S, "the order"),
    ("payer", _S, "the payer"),
    ("drug", _S, "the drug"),
    ("route", _S, "the route"),
    ("place_of_service", _S, "two digits or empty"),
    ("rule_set", _S, "the rule set"),
    ("rule_version", _S, "its version"),
    ("service_date", _DATE, "local date of service"),
    ("start?", _UTC, "first start"),
    ("stop?", _UTC, "last stop"),
    ("code", _S, "the code proposed"),
    ("units", _I, "its units"),
    ("minutes", _I, "whole minutes of delivery of the encounter"),
    ("revenue_codes", _L, "revenue codes"),
    ("state", _S, "ready, hold, released or void"),
    ("reasons", _L, "codes that hold it"),
    ("explanation", _S, "a sentence for a person"),
    ("policies", _S, "the policies in force, JSON"),
    ("ledger", LEDGER, "minutes counted and excluded, and why"),
    ("event_ids", _L, "its starts, stops and set-ups"),
    ("evidence_hash", _S, "hash of the bytes behind it"),
    ("release_id?", _S, "the release that took it"),
    ("supersedes?", _S, "line_id and revision it replaces"),
    ("decisions", _L, "reviewers' decisions it rests on"),
)

WORKLIST = _schema(
    ("item_id", _S, "hash of code and what it is about"),
    ("code", _S, "what is to be looked at"),
    ("severity", _S, "hold or inform"),
    ("patient_id?", _S, "the patient"),
    ("pump_id?", _S, "the pump"),
    ("payer?", _S, "the payer"),
    ("order_id?", _S, "the order"),
    ("session_id?", _S, "the session"),
    ("line_id?", _S, "the line"),
    ("service_date?", _DATE, "the date"),
    ("time?", _UTC, "when"),
    ("minutes_at_stake", _I, "whole minutes infused or unknown"),
    ("message", _S, "what was found"),
    ("suggestion", _S, "what to do next"),
    ("state", _S, "open, decided or closed"),
)

DECISIONS = _schema(
    ("decision_id", _S, "hash of all the rest"),
    ("decided_at", _UTC, "when"),
    ("by", _S, "who"),
    ("action", _S, "confirm-site, stop, confirm-clock, clear, hold, void, note or undo"),
    ("argument", _S, "of stop: the time, as UTC with Z or as the pump printed it; of clear: the code"),
    ("note", _S, "what the reviewer wrote"),
    ("named", _S, "what the reviewer named: its kind and id"),
    ("about", _S, "what that is: a set-up, the event a delivery begins with, a stretch, an encounter, a line, an item, a decision"),
    ("pump_id?", _S, "whose facts it shapes"),
    ("patient_id?", _S, "the patient"),
    ("encounter_id?", _S, "the encounter"),
    ("session_ids", _L, "its sessions"),
    ("evidence_hash", _S, "hash of what it was taken on"),
    ("undoes?", _S, "the decision that it takes back"),
)
"""What reviewers decided, append-only (docs/semantics.md §6, Decisions)."""

AMENDMENTS = _schema(
    ("patient_id", _S, "the patient"),
    ("payer", _S, "the payer"),
    ("order_id", _S, "the order"),
    ("released?", _S, "line_id and revision that billing took; none: a line that was not there"),
    ("release_id?", _S, "the release that took it"),
    ("released_date?", _DATE, "its date of service"),
    ("released_code?", _S, "its code"),
    ("released_units?", _I, "its units"),
    ("released_minutes?", _I, "its minutes"),
    ("void?", _S, "line_id and revision of the row that voids it"),
    ("line_id?", _S, "the line that replaces it; none: it is gone"),
    ("revision?", pa.int32(), "its revision"),
    ("service_date?", _DATE, "its date of service"),
    ("code?", _S, "its code"),
    ("units?", _I, "its units"),
    ("minutes?", _I, "its minutes"),
    ("state", _S, "of what replaces it, else of what voids it: ready, hold, released or void"),
    ("reasons", _L, "codes that hold it"),
    ("taken_by?", _S, "the release that took the amendment"),
)
"""What changed in lines after billing took them, by pairs of what is void and what replaces it."""


def identify(*parts: object) -> str:
    """A business key hashed into an id: 20 hex digits of SHA-256."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:20]


def rows_to_table(schema: pa.Schema, rows: Sequence[Mapping[str, Any]], *, sort: Sequence[str] = ()) -> pa.Table:
    """Rows as a table of this schema, sorted by these columns."""
    built = pa.table({f.name: _column([row.get(f.name) for row in rows], f.type) for f in schema}, schema=schema)
    return built.sort_by([(name, "ascending") for name in sort]) if sort and built.num_rows else built


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Values as a column; a list that several rows share is read once."""
    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    place: dict[int, int] = {}
    where = [place.setdefault(id(value), len(place)) for value in values]
    firsts = dict(zip(reversed(where), reversed(values), strict=True))
    return pa.array([firsts[n] for n in range(len(firsts))], kind).take(pa.array(where, pa.int64()))
