"""The night, step by step: store → raw → events, sessions, set-ups → lines and worklist (docs/design.md §3).

`drain`, `touched`, `consolidate` and `bill` are what `nightly` and the Airflow tasks call, in the same environment. Each step
publishes a bucket whole or not at all, derives again only what an input changed, and may be repeated or killed at any time.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from functools import cache, partial
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from devices.contract import FAULTS, HOLES, RECORDS, Capture, Decoded, Log, fault_id, joined, table
from devices.errors import InputError, StorageError
from devices.families import families
from ingest import files, people, settings
from ingest.lake import RAW, RAW_SCHEMA, UNKNOWN, Lake, captures, months_of, raw_table
from ingest.processes import each, processors
from ingest.store import Store
from transforms import billing, decisions, orders, ruleset, sessions, tables, totals
from transforms.block import Block
from transforms.decisions import Decision
from transforms.orders import Orders
from transforms.ruleset import RuleSet

LAKE_RECORDS = RECORDS.append(pa.field("event_id", pa.string(), nullable=False))
"""RECORDS as the lake keeps them: with the event that each became or repeats."""

CONSOLIDATED: Mapping[str, pa.Schema] = {
    "records": LAKE_RECORDS,
    "faults": FAULTS,
    "events": tables.EVENTS,
    "sessions": tables.SESSIONS,
    "intervals": tables.INTERVALS,
    "setups": tables.SETUPS,
    "doubts": tables.DOUBTS,
    "pumps": tables.PUMPS,
}
BILLED: Mapping[str, pa.Schema] = {"lines": tables.LINES, "worklist": tables.WORKLIST, "days": tables.DAYS}

_TERMS = "terms"
_PUMP, _PATIENT = "pump ", "patient "


@dataclass(frozen=True, slots=True, kw_only=True)
class OrdersUsed:
    """The orders of a night: a `file` that was read, or, where none was named (`copy`), what the lake has kept of one since `since`, UTC.

    `file` is "" where the lake never had any.
    """

    file: str
    copy: bool
    since: datetime | None
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The night's one page."""

    day: date
    orders: OrdersUsed
    received: int
    refused: int
    expected: tuple[str, ...]
    seen: tuple[str, ...]
    late: tuple[str, ...]
    minutes: int
    ready: int
    hold: int
    worklist: int
    people: int
    changed: int


def open_lake(root: Path, *, buckets: int = 8) -> Lake:
    """The lake at this root, made with its settings where there is none yet."""
    try:
        lake = Lake.open(root)
    except StorageError as error:
        if error.code != "no_lake":
            raise
        lake = Lake.create(root, buckets)
    settings.write_default(root)
    return lake


@cache
def rule_sets() -> Mapping[str, RuleSet]:
    """The rule sets that are shipped, by name."""
    found = {}
    for file in resources.files("transforms").joinpath("rules").iterdir():
        if file.name.endswith(".toml"):
            data = file.read_bytes()
            rules = ruleset.parse(data, hashlib.sha256(data).hexdigest(), name=file.name)
            found[rules.name] = rules
    return found


@cache
def code_version() -> str:
    """Hash of what derives: the code of devices and transforms, and the time zone data."""
    hashed = hashlib.sha256(importlib.metadata.version("tzdata").encode())
    for package in ("devices", "transforms"):
        folder = Path(str(resources.files(package)))
        for file in sorted(folder.rglob("*.py")):
            hashed.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return hashed.hexdigest()


# --- what the night works with ----------------------------------------------------------------------------------------------


def take_orders(root: Path, path: Path | None = None, *, none_meant: bool = False) -> Orders:
    """Reads orders.csv (from `path`, else where the settings say, else as the last night had it) and makes it the one in force.

    Every version that was used is kept under orders/. Raises InputError where the file is refused, or names no order and it was not
    said that none is meant: the night does not start.
    """
    lake = open_lake(root)
    source = path or settings.load(root).orders
    if source is None:
        if lake.current(_TERMS, 0) is None and (kept := files.listed(root / "orders", "*.csv")):
            raise InputError(
                f"The lake has kept {len(kept)} versions of the orders, and what says which of them is in force is gone.",
                why="Without it every pump would lose its patient, and every line that is not released would go.",
                do=f"Name the file with --orders; the newest of {root / 'orders'} may be the one.",
                code="no_terms",
            )
        return orders_of(lake)
    try:
        data = source.read_bytes()
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The orders at {source} cannot be read: {error}.", do="Name the file with --orders.", code="orders") from error
    found = orders.parse(text, rule_sets(), name=source.name)
    if not found.all and not none_meant:
        raise InputError(
            f"{source.name} names no order.",
            why="With it every pump would lose its patient, and every line that is not released would go.",
            do="Write it again where it comes from; if there is truly no order any more, say so with --no-orders.",
            code="no_orders",
        )
    lake.publish(_TERMS, 0, {}, {}, {"orders": lake.snapshot("orders.csv", data)})
    return found


def orders_used(root: Path, path: Path | None = None) -> OrdersUsed:
    """Which orders `take_orders` took, for people: asked right after it, with the same `path`."""
    lake = open_lake(root)
    source, terms = path or settings.load(root).orders, lake.current(_TERMS, 0)
    rows = len(orders_of(lake).all)
    if source is not None or terms is None:
        return OrdersUsed(file=str(source or ""), copy=False, since=None, rows=rows)
    kept = root / "orders" / f"{terms.inputs['orders']}.csv"
    return OrdersUsed(file=str(kept), copy=True, since=lake.published_at(_TERMS, 0), rows=rows)


def orders_of(lake: Lake) -> Orders:
    """The orders in force."""
    terms = lake.current(_TERMS, 0)
    return _parsed(lake.root, terms.inputs["orders"]) if terms else Orders(())


@cache
def _parsed(root: Path, sha256: str) -> Orders:
    return orders.parse(Lake.open(root).snapshot_bytes("orders.csv", sha256).decode(), rule_sets())


def buckets(root: Path) -> list[int]:
    """All buckets of the lake."""
    return list(range(open_lake(root).buckets))


# --- store → raw ------------------------------------------------------------------------------------------------------------


def drain(root: Path, store: Path | None = None) -> dict[str, Any]:
    """Moves what the store holds into raw/, reads it back, and only then lets the store drop the bytes."""
    lake = open_lake(root)
    received = refused = 0
    for bucket in range(lake.buckets):
        lake.adopt(RAW, bucket, RAW_SCHEMA)
    people.adopt(lake)
    people.whole(lake)
    with Store(store or root / "store.sqlite") as source:
        for batch in _batches(source.pending(), 2000):
            by_bucket: dict[int, list[Any]] = {}
            for capture, arrival in batch:
                by_bucket.setdefault(lake.bucket_of(capture.pump_id or capture.sha256), []).append((capture, arrival))
                received += 1
                refused += arrival.refused is not None
            for bucket, rows in sorted(by_bucket.items()):
                raw = raw_table(rows)
                lake.append(RAW, bucket, raw, months_of(raw["received_at"]))
                shas = raw["sha256"].to_pylist()
                kept = _whole(lake.raw(bucket, hashes=shas))
                source.drop(sha for sha in shas if sha in kept)
    return {"received": received, "refused": refused}


def _whole(raw: pa.Table) -> set[str]:
    """What raw/ holds whole, by hash: captures whose identity checks, and refused payloads whose bytes do."""
    refused = raw.filter(pc.is_valid(raw["refused"])).select(["sha256", "data", "data_sha256"]).to_pylist()
    kept = {row["sha256"] for row in refused if hashlib.sha256(row["data"]).hexdigest() == row["data_sha256"]}
    return kept | {capture.sha256 for capture in captures(raw)}


def _batches(items: Iterable[Any], size: int) -> Iterable[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def touched(root: Path, day: date | None = None) -> list[int]:
    """The buckets with captures received on this UTC day; without a day, those whose inputs have changed."""
    lake = open_lake(root)
    if day is None:
        return [bucket for bucket in range(lake.buckets) if _changed(lake, bucket)]
    found = []
    for bucket in range(lake.buckets):
        received = lake.read(RAW, pa.schema([("received_at", pa.timestamp("ms", "UTC"))]), buckets=[bucket], months=[day.strftime("%Y-%m")])
        if any(moment.date() == day for moment in received["received_at"].to_pylist()):
            found.append(bucket)
    return found


# --- raw → events, sessions, set-ups -------------------------------------------------------------------------------------------


def _pump_inputs(lake: Lake, bucket: int) -> dict[str, str]:
    """Of each pump of a bucket, the hash of all that its facts are derived from."""
    found = lake.read(RAW, pa.schema([("sha256", pa.string()), ("pump_id", pa.string())]), buckets=[bucket]).to_pylist()
    shas: dict[str, list[str]] = {}
    for row in found:
        shas.setdefault(row["pump_id"], []).append(row["sha256"])
    known, policy, decided = orders_of(lake), asdict(settings.load(lake.root).facts), _shaping(in_force(lake))
    return {
        _PUMP + pump: _hash(code_version(), policy, known.of_pump(pump), sorted(mine), _ids(decided.get(pump, ())))
        for pump, mine in sorted(shas.items())
    }


def in_force(lake: Lake) -> list[Decision]:
    """The decisions that nobody took back."""
    return decisions.in_force(people.decisions(lake))


def _shaping(decided: Iterable[Decision]) -> dict[str, list[Decision]]:
    """The decisions that may shape the facts of each pump."""
    found: dict[str, list[Decision]] = {}
    for one in decided:
        if one.action in decisions.SHAPING and one.pump_id is not None:
            found.setdefault(one.pump_id, []).append(one)
    return found


def _ids(decided: Iterable[Decision]) -> list[str]:
    return [one.decision_id for one in decided]


def _hash(*parts: object) -> str:
    return hashlib.sha256("\n".join(str(part) for part in parts).encode()).hexdigest()


def _changed(lake: Lake, bucket: int) -> bool:
    current = lake.current("consolidate", bucket)
    return _pump_inputs(lake, bucket) != (dict(current.inputs) if current else {})


def consolidate(root: Path, bucket: int) -> dict[str, Any]:
    """Derives events, sessions, intervals, set-ups and doubts of the pumps of a bucket whose inputs changed, and publishes the bucket."""
    lake = open_lake(root)
    with lake.lock("consolidate", bucket):
        inputs = _pump_inputs(lake, bucket)
        current = lake.current("consolidate", bucket)
        before = dict(current.inputs) if current else {}
        if inputs == before:
            return {"bucket": bucket, "pumps": 0}
        due = [name.removeprefix(_PUMP) for name in inputs if before.get(name) != inputs[name]]
        kept = pa.array([name.removeprefix(_PUMP) for name in inputs if before.get(name) == inputs[name]], pa.string())
        derived: dict[str, list[pa.Table]] = {name: [] for name in CONSOLIDATED}
        for name, schema in CONSOLIDATED.items():
            derived[name].append(_kept(lake, name, schema, bucket, "pump_id", kept))
        known, policy, decided = orders_of(lake), settings.load(root).facts, _shaping(in_force(lake))
        for found in _derive(lake.raw(bucket, due), known, policy, decided):
            for name, rows in found.items():
                derived[name].append(rows)
        whole = {name: pa.concat_tables(parts).sort_by("pump_id") for name, parts in derived.items()}
        lake.publish("consolidate", bucket, whole, _months(whole), inputs)
    return {"bucket": bucket, "pumps": len(due)}


def _kept(lake: Lake, name: str, schema: pa.Schema, bucket: int, key: str, kept: pa.Array) -> pa.Table:
    """The published rows that stay as they are. Where none do, nothing is read: an older pumpledger may have written other columns."""
    if not len(kept):
        return schema.empty_table()
    old = lake.read(name, schema, buckets=[bucket])
    return old.filter(pc.is_in(old[key], value_set=kept))


def derived_anew(root: Path, bucket: int) -> dict[str, pa.Table]:
    """The tables of a bucket as its captures give them now, all of them, without publishing anything."""
    lake = open_lake(root)
    known, policy, decided = orders_of(lake), settings.load(root).facts, _shaping(in_force(lake))
    derived: dict[str, list[pa.Table]] = {name: [schema.empty_table()] for name, schema in CONSOLIDATED.items()}
    for found in _derive(lake.raw(bucket), known, policy, decided):
        for name, rows in found.items():
            derived[name].append(rows)
    return {name: pa.concat_tables(parts) for name, parts in derived.items()}


def _months(whole: Mapping[str, pa.Table]) -> dict[str, Any]:
    started = dict(zip(whole["sessions"]["session_id"].to_pylist(), months_of(whole["sessions"]["start_local"]).to_pylist(), strict=True))
    of_session = {
        name: pa.array([started.get(session, UNKNOWN) for session in whole[name]["session_id"].to_pylist()], pa.string())
        for name in ("intervals", "setups")
    }
    return {
        "records": months_of(whole["records"]["pump_time"]),
        "faults": UNKNOWN,
        "events": months_of(whole["events"]["time"]),
        "sessions": months_of(whole["sessions"]["start_local"]),
        **of_session,
        "doubts": UNKNOWN,
        "pumps": UNKNOWN,
    }


def decode(capture: Capture) -> Decoded:
    """Records, faults and anchors of a capture by its family. What no family can read is one fault with its bytes."""
    adapter = families().get(capture.family)
    why = f"there is no family {capture.family!r} here"
    if adapter is not None:
        try:
            return adapter.decode(capture)
        except Exception as error:  # a decoder that fails must not cost the bytes, nor the night
            why = f"the decoder failed: {type(error).__name__}: {error}"
    return joined(())._replace(faults=table(FAULTS, [_unfit(capture, "decoder", why)]))


def decode_all(captures: Sequence[Capture]) -> Decoded:
    """What `decode` gives of each of these captures of one family, joined in their order; in one go where the family can."""
    adapter = families().get(captures[0].family) if captures else None
    if adapter is not None and hasattr(adapter, "decode_all"):
        with suppress(Exception):  # read one by one, what fails is put aside, and it alone
            return adapter.decode_all(captures)
    return joined(decode(capture) for capture in captures)


def _fault(capture: str, pump_id: str, part: str | None, code: str, why: str, raw: bytes) -> dict[str, Any]:
    return {
        "fault_id": fault_id(pump_id, code, capture, raw), "capture": capture, "part": part, "offset": 0, "pump_id": pump_id,
        "log_epoch": 0, "code": code, "message": why, "hole": False, "raw": raw,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Assembled:
    """All captures of one pump: what was decoded, and its log; None where there is none, and the captures are put aside."""

    pump_id: str
    captures: tuple[Capture, ...]
    decoded: Decoded
    log: Log | None

    def put_aside(self, why: str) -> Assembled:
        """The same with its captures put aside."""
        strangers = self.decoded.faults.filter(pc.equal(self.decoded.faults["code"], "family"))
        own = _aside([_unfit(one, "derive", why) for one in self.captures])
        return Assembled(self.pump_id, self.captures, own._replace(faults=pa.concat_tables([strangers, own.faults])), None)


def assembled(pump_id: str, received: Sequence[Capture]) -> Assembled:
    """Decodes and assembles all captures of one pump. Total: what cannot be read, or is of another family, is put aside."""
    named = pump_id.partition(":")[0]
    adapter = families().get(named)
    own = tuple(sorted((capture for capture in received if capture.family == named), key=lambda capture: capture.sha256))
    strangers = [capture for capture in received if capture.family != named]
    aside = [_unfit(capture, "family", f"a capture of family {capture.family!r} names this pump") for capture in strangers]
    if adapter is None:
        aside += [_unfit(capture, "decoder", f"there is no family {capture.family!r} here") for capture in own]
        return Assembled(pump_id, own, _aside(aside), None)
    found = decode_all(own)
    told = found._replace(faults=pa.concat_tables([found.faults, table(FAULTS, aside)]))
    try:
        return Assembled(pump_id, own, told, adapter.assemble(pump_id, *found))
    except Exception as error:  # one pump whose log cannot be assembled must not cost the others their night
        aside += [_unfit(one, "derive", f"its log cannot be derived: {type(error).__name__}: {error}") for one in own]
        return Assembled(pump_id, own, _aside(aside), None)


def _aside(rows: Sequence[Mapping[str, Any]]) -> Decoded:
    return joined(())._replace(faults=table(FAULTS, rows))


def facts_of(
    one: Assembled, known: Orders, policy: sessions.FactPolicy, decided: Iterable[Decision] = ()
) -> tuple[Assembled, sessions.Facts]:
    """The facts of one pump; where its log cannot be derived its captures are put aside."""
    if one.log is not None:
        try:
            return one, sessions.derive(one.log, known, policy, decided)
        except Exception as error:  # one pump whose log cannot be derived must not cost the others their night
            one = one.put_aside(f"its log cannot be derived: {type(error).__name__}: {error}")
    nothing = (schema.empty_table() for schema in (tables.EVENTS, tables.SESSIONS, tables.INTERVALS, tables.SETUPS, tables.DOUBTS))
    return one, sessions.Facts(*nothing)


def _disagreements(one: Assembled) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The totals of the pump itself that are not what its events add up to; and a fault where they cannot be checked."""
    adapter = families().get(one.pump_id.partition(":")[0])
    if one.log is None or not one.captures or adapter is None or not hasattr(adapter, "cross_check"):
        return [], []
    last = one.captures[-1]
    try:
        return totals.disagreements(adapter.cross_check(one.log.events)), []
    except Exception as error:  # a check that fails must not cost the facts
        why = f"its totals cannot be checked: {type(error).__name__}: {error}"
        return [], [_fault(last.sha256, one.pump_id, last.part, "check", why, b"")]


def _unfit(capture: Capture, code: str, why: str) -> dict[str, Any]:
    return _fault(capture.sha256, capture.pump_id, capture.part, code, why, capture.data)


_BLOCK = 1_000_000
"""Events that are derived at once."""


def _derive(
    raw: pa.Table, known: Orders, policy: sessions.FactPolicy, decided: Mapping[str, Sequence[Decision]]
) -> Iterable[dict[str, pa.Table]]:
    """The tables of the pumps of some captures, in parts: pumps without decisions many at once, so that the kernels pay."""
    waiting: list[tuple[pa.Table, Assembled]] = []
    size = 0
    for mine in _by_pump(raw):
        one = assembled(mine["pump_id"][0].as_py(), captures(mine))
        if decided.get(one.pump_id) or one.log is None:
            yield from _alone(mine, one, known, policy, decided.get(one.pump_id, ()))
            continue
        waiting.append((mine, one))
        size += one.log.events.num_rows
        if size >= _BLOCK:
            yield from _together(waiting, known, policy)
            waiting, size = [], 0
    yield from _together(waiting, known, policy)


def _by_pump(raw: pa.Table) -> Iterable[pa.Table]:
    """The captures of each pump, sorted by pump."""
    raw = raw.sort_by("pump_id")
    pumps = raw["pump_id"].to_pylist()
    begins = [row for row, pump in enumerate(pumps) if row == 0 or pump != pumps[row - 1]]
    for begin, end in pairwise([*begins, len(pumps)]):
        yield raw.slice(begin, end - begin)


def _alone(
    raw: pa.Table, one: Assembled, known: Orders, policy: sessions.FactPolicy, decided: Sequence[Decision]
) -> Iterable[dict[str, pa.Table]]:
    one, facts = facts_of(one, known, policy, decided)
    yield _tables(facts)
    yield _about(raw, one, facts.events)


def _together(pumps: Sequence[tuple[pa.Table, Assembled]], known: Orders, policy: sessions.FactPolicy) -> Iterable[dict[str, pa.Table]]:
    logs = [one.log for _, one in pumps if one.log is not None]
    block = Block.of([one.pump_id for _, one in pumps], logs)
    try:
        facts = sessions.derive_all(block, known, policy)
    except Exception:  # one of them cannot be derived: each alone, so that it alone is put aside
        for raw, one in pumps:
            yield from _alone(raw, one, known, policy, ())
        return
    yield _tables(facts)
    begin = 0
    for (raw, one), log in zip(pumps, logs, strict=True):
        yield _about(raw, one, facts.events.slice(begin, log.events.num_rows))
        begin += log.events.num_rows


def _tables(facts: sessions.Facts) -> dict[str, pa.Table]:
    return {name: getattr(facts, name) for name in ("events", "sessions", "intervals", "setups", "doubts")}


def _about(raw: pa.Table, one: Assembled, events: pa.Table) -> dict[str, pa.Table]:
    """Records, faults and the row of PUMPS of one pump, whose events these are."""
    refused = raw.filter(pc.is_valid(raw["refused"])).to_pylist()
    lost = [_fault(row["sha256"], "", row["part"], "refused", row["refused"], row["data"]) for row in refused]
    of_record = one.log.event_of_record if one.log is not None else table(LAKE_RECORDS, [])["event_id"].combine_chunks()
    records = one.decoded.records.append_column(LAKE_RECORDS.field("event_id"), of_record)
    checks, failed = _disagreements(one)
    faults = pa.concat_tables([one.decoded.faults, table(FAULTS, lost + failed)])
    holes = pc.sum(pc.is_in(events["kind"], value_set=pa.array(sorted(HOLES), pa.string()))).as_py() or 0
    times = [pc.max(events["time"]).as_py(), pc.max(one.decoded.anchors["utc"]).as_py()]
    about = {
        "pump_id": one.pump_id,
        "captures": raw.num_rows,
        "records": records.num_rows,
        "events": events.num_rows - holes,
        "repeats": records.num_rows - pc.count_distinct(of_record).as_py(),
        "faults": faults.num_rows - len(failed),
        "holes": holes,
        "seen_to": max((moment for moment in times if moment is not None), default=None),
        "disagreements": checks,
    }
    return {
        "records": records.select(LAKE_RECORDS.names).cast(LAKE_RECORDS),
        "faults": faults,
        "pumps": tables.rows_to_table(tables.PUMPS, [about]),
    }


# --- facts → lines -------------------------------------------------------------------------------------------------------------


def bill(root: Path, bucket: int) -> dict[str, Any]:
    """Derives lines, days and worklist of the patients of a bucket whose inputs changed, and publishes the bucket."""
    lake = open_lake(root)
    with lake.lock("bill", bucket):
        known, decided, taken = orders_of(lake), in_force(lake), people.released(lake)
        unsynced = _unsynced(lake, bucket, known, decided)
        inputs = _bill_inputs(lake, bucket, known, unsynced, decided, taken)
        current = lake.current("bill", bucket)
        before = dict(current.inputs) if current else {}
        if inputs == before:
            return {"bucket": bucket, "patients": 0}
        patients = [name.removeprefix(_PATIENT) for name in inputs if name.startswith(_PATIENT)]
        due = [patient for patient in patients if before.get(_PATIENT + patient) != inputs[_PATIENT + patient]]
        kept = pa.array(sorted(set(patients) - set(due)), pa.string())
        found = billed(lake, due, known, decided, taken)
        whole = {}
        for name, schema in BILLED.items():
            old = _kept(lake, name, schema, bucket, "patient_id", kept)
            if name == "worklist":
                of_patient = pc.or_(pc.is_valid(old["order_id"]), pc.equal(old["code"], decisions.DECISION_LAPSED))
                old = old.filter(pc.and_(of_patient, pc.not_equal(old["code"], "NOT_SYNCED")))
            whole[name] = pa.concat_tables([old, getattr(found, name)])
        whole["worklist"] = pa.concat_tables([whole["worklist"], _pump_items(lake, bucket, known, decided), unsynced])
        order = {"lines": billing.LINE_ORDER, "days": billing.DAY_ORDER, "worklist": billing.WORKLIST_ORDER}
        whole = {name: rows.sort_by([(column, "ascending") for column in order[name]]) for name, rows in whole.items()}
        days = {"lines": "service_date", "worklist": "service_date", "days": "date"}
        lake.publish("bill", bucket, whole, {name: months_of(whole[name][column]) for name, column in days.items()}, inputs)
    return {"bucket": bucket, "patients": len(due)}


def _patients(lake: Lake, bucket: int, known: Orders, decided: Sequence[Decision], taken: pa.Table) -> list[str]:
    """Those that have an order, and those about whom somebody decided, or of whom lines were released."""
    every = {*known.patients(), *taken["patient_id"].to_pylist(), *(one.patient_id for one in decided)} - {None}
    return [patient for patient in sorted(every) if lake.bucket_of(patient) == bucket]


def _bill_inputs(
    lake: Lake, bucket: int, known: Orders, unsynced: pa.Table, decided: Sequence[Decision], taken: pa.Table
) -> dict[str, str]:
    """Of each patient of a bucket, and of its pumps, the hash of all that is billed from."""
    pumps: dict[str, str] = {}
    for other in range(lake.buckets):
        current = lake.current("consolidate", other)
        pumps.update(current.inputs if current else {})
    policy = asdict(settings.load(lake.root).facts)
    found = {}
    rows_of: dict[str, list[tuple[Any, ...]]] = {}
    for row in taken.select(["patient_id", "pump_ids", "line_id", "revision", "release_id"]).to_pylist():
        for name in (_PATIENT + row["patient_id"], *(_PUMP + pump for pump in row["pump_ids"])):
            rows_of.setdefault(name, []).append((row["line_id"], row["revision"], row["release_id"]))
    for patient in _patients(lake, bucket, known, decided, taken):
        mine = known.of_patient(patient)
        rules = sorted({rule_sets()[order.rule_set].sha256 for order in mine})
        rows = [order for own in sorted({order.order_id for order in mine}) for order in known.of_id(own)]
        facts = [pumps.get(_PUMP + pump) for pump in sorted({order.pump_id for order in rows})]
        released = {row for name in (_PATIENT + patient, *(_PUMP + order.pump_id for order in mine)) for row in rows_of.get(name, ())}
        decisions_ = _ids(one for one in decided if one.patient_id == patient)
        found[_PATIENT + patient] = _hash(code_version(), policy, rules, rows, facts, decisions_, sorted(released))
    own = sorted((name, sha) for name, sha in pumps.items() if lake.bucket_of(name.removeprefix(_PUMP)) == bucket)
    of_items = _ids(one for one in decided if one.action == decisions.CLEAR and one.encounter_id is None)
    return {**found, "pumps": _hash(own, of_items), "not synced": _hash(unsynced.to_pylist())}


def billed(lake: Lake, patients: Sequence[str], known: Orders, decided: Sequence[Decision], taken: pa.Table) -> billing.Bill:
    """The lines of some patients from the facts that are published; publishes nothing."""
    with collector_off():
        return billing.bill(*_given(lake, patients, known, decided, taken))


def billed_anew(root: Path, bucket: int) -> dict[str, pa.Table]:
    """Lines, days and worklist of a bucket as the published facts give them now, all of them, without publishing anything."""
    lake = open_lake(root)
    known, decided, taken = orders_of(lake), in_force(lake), people.released(lake)
    found = billed(lake, _patients(lake, bucket, known, decided, taken), known, decided, taken)
    items = [found.worklist, _pump_items(lake, bucket, known, decided), _unsynced(lake, bucket, known, decided)]
    return {"lines": found.lines, "worklist": pa.concat_tables(items), "days": found.days}


def cases(lake: Lake, patients: Sequence[str], known: Orders, decided: Sequence[Decision], taken: pa.Table) -> list[decisions.Case]:
    """What decisions about the lines of some patients can be about."""
    with collector_off():
        return billing.settled(*_given(lake, patients, known, decided, taken))[1]


def _given(lake: Lake, patients: Sequence[str], known: Orders, decided: Sequence[Decision], taken: pa.Table) -> tuple[Any, ...]:
    """What some patients are billed from."""
    pumps = {order.pump_id for patient in patients for order in known.of_patient(patient)}
    where = sorted({lake.bucket_of(pump) for pump in pumps})
    names = pa.array(sorted(pumps), pa.string())
    wanted = pa.array(sorted(patients), pa.string())

    def of(name: str, schema: pa.Schema) -> pa.Table:
        rows = lake.read(name, schema, buckets=where)
        return rows.filter(pc.is_in(rows["pump_id"], value_set=names))

    found = of("sessions", tables.SESSIONS)
    facts = billing.Facts(
        found.filter(pc.is_in(found["patient_id"], value_set=wanted)),
        of("intervals", tables.INTERVALS),
        of("setups", tables.SETUPS),
        of("doubts", tables.DOUBTS),
    )
    of_pumps = [not pumps.isdisjoint(row) for row in taken["pump_ids"].to_pylist()]
    mine = pc.or_(pc.is_in(taken["patient_id"], value_set=wanted), pa.array(of_pumps, pa.bool_()))
    return facts, known, rule_sets(), asdict(settings.load(lake.root).facts), decided, taken.filter(mine).to_pylist(), patients


@contextmanager
def collector_off() -> Iterator[None]:
    """Without the search for cycles: rows by the million have none, and looking for them costs a third of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _pump_items(lake: Lake, bucket: int, known: Orders, decided: Sequence[Decision]) -> pa.Table:
    sessions_, doubts, pumps = (lake.read(name, CONSOLIDATED[name], buckets=[bucket]) for name in ("sessions", "doubts", "pumps"))
    checks = [check for row in pumps["disagreements"].to_pylist() for check in row]
    return billing.pump_items(sessions_, doubts, known, decided, checks)


def _unsynced(lake: Lake, bucket: int, known: Orders, decided: Sequence[Decision]) -> pa.Table:
    rows = lake.read("pumps", tables.PUMPS, columns=["pump_id", "seen_to"]).to_pylist()
    seen = {row["pump_id"]: _ms(row["seen_to"]) for row in rows if row["seen_to"] is not None}
    mine = [order for order in known.all if lake.bucket_of(order.patient_id) == bucket]
    return billing.not_synced(mine, seen, max(seen.values(), default=None), decided)


def stale(root: Path) -> bool:
    """Whether something was received, ordered, decided or released that the tables do not show yet."""
    return bool(touched(root) or unbilled(root))


def unbilled(root: Path) -> list[int]:
    """The buckets whose lines, days and worklist do not show yet what was consolidated, ordered, decided or released."""
    lake = open_lake(root)
    known, decided, taken = orders_of(lake), in_force(lake), people.released(lake)
    found = []
    for bucket in range(lake.buckets):
        current = lake.current("bill", bucket)
        inputs = _bill_inputs(lake, bucket, known, _unsynced(lake, bucket, known, decided), decided, taken)
        if inputs != (dict(current.inputs) if current else {}):
            found.append(bucket)
    return found


def shown_at_once(root: Path, pump: str | None = None) -> bool:
    """Derives what a decision about a pump, or about lines alone, or a release changed; False where a run that is under way will."""
    lake = open_lake(root)
    try:
        if pump is not None:
            consolidate(root, lake.bucket_of(pump))
        for bucket in range(lake.buckets):
            bill(root, bucket)
    except StorageError as error:
        if error.code != "busy":
            raise
        return False
    return True


def base_of(lake: Lake, pump: str) -> sessions.Facts:
    """The facts of a pump as its captures give them without any decision."""
    raw = lake.raw(lake.bucket_of(pump), [pump])
    return facts_of(assembled(pump, captures(raw)), orders_of(lake), settings.load(lake.root).facts)[1]


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


# --- the whole night ----------------------------------------------------------------------------------------------------------


_MANY = 5_000
"""Captures in a night from which on its buckets go over several processes, which take a second to start."""


def nightly(
    root: Path,
    *,
    orders_file: Path | None = None,
    none_meant: bool = False,
    day: date | None = None,
    store: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> Page:
    """Store → raw → facts → lines, and the night's one page. `none_meant` as of `take_orders`; `progress` hears (step, done, how many)."""
    known = take_orders(root, orders_file, none_meant=none_meant)
    used = orders_used(root, orders_file)
    drained = drain(root, store)
    progress("received", drained["received"], drained["received"])
    lake = open_lake(root)
    due = touched(root, day) if day else list(range(lake.buckets))
    before = _line_ids(lake)
    processes = processors() if drained["received"] >= _MANY else 1
    for done, _ in enumerate(each(partial(consolidate, root), due, processes=processes), 1):
        progress("sessions", done, len(due))
    every = range(lake.buckets)
    for done, _ in enumerate(each(partial(bill, root), every, processes=processes), 1):
        progress("lines", done, len(every))
    return _page(lake, known, used, day, drained, before)


def _line_ids(lake: Lake) -> set[tuple[Any, ...]]:
    rows = lake.read("lines", tables.LINES, columns=["line_id", "revision", "units", "state", "evidence_hash"])
    return {tuple(row.values()) for row in rows.to_pylist()}


def _page(lake: Lake, known: Orders, used: OrdersUsed, day: date | None, drained: Mapping[str, Any], before: set[tuple[Any, ...]]) -> Page:
    pumps = lake.read("pumps", tables.PUMPS).to_pylist()
    lines = lake.read("lines", tables.LINES, columns=["state"])["state"].to_pylist()
    items = [
        row["severity"]
        for row in lake.read("worklist", tables.WORKLIST, columns=["severity", "state"]).to_pylist()
        if row["state"] == "open"
    ]
    minutes = lake.read("sessions", tables.SESSIONS, columns=["infusing_s"])["infusing_s"].to_pylist()
    horizon = max((row["seen_to"] for row in pumps if row["seen_to"] is not None), default=None)
    shown = day or (horizon.date() if horizon else datetime.now(UTC).date())
    expected = sorted(
        {
            order.pump_id
            for order in known.all
            if datetime.fromtimestamp(order.start_ms / 1000, UTC).date() <= shown
            and (order.stop_ms is None or datetime.fromtimestamp(order.stop_ms / 1000, UTC).date() >= shown)
        }
    )
    seen = {row["pump_id"] for row in pumps if row["seen_to"] is not None and row["seen_to"].date() >= shown}
    return Page(
        day=shown,
        orders=used,
        received=drained["received"],
        refused=drained["refused"],
        expected=tuple(expected),
        seen=tuple(pump for pump in expected if pump in seen),
        late=tuple(pump for pump in expected if pump not in seen),
        minutes=sum(minutes) // 60,
        ready=lines.count("ready"),
        hold=lines.count("hold"),
        worklist=len(items),
        people=items.count("hold"),
        changed=len(_line_ids(lake) - before),
    )
