"""Looking after a lake: `verify` re-hashes and re-derives it, and the quarantine holds what could not be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from devices.contract import FAULTS
from devices.errors import InputError
from ingest import files, night, people
from ingest.lake import Lake, captures, months_of
from transforms.tables import identify, rows_to_table

_DISCARD = "quarantine discard"
_SHORTEST = 6


@dataclass(frozen=True, slots=True)
class Finding:
    """What `verify` found wrong: a stable code, and in words."""

    code: str
    message: str


def verify(root: Path, progress: Callable[[str, int, int], None] = lambda step, done, total: None) -> list[Finding]:
    """Checks every file and hash of a lake; if all are whole, derives everything anew from raw/ and compares. Empty: all is right.

    Changes nothing. What new captures, orders, policies or code would change is no fault of the lake and is said as "stale".
    """
    lake = Lake.open(root)
    found = verify_files(root)
    if found:
        return found
    for step, behind, anew, schemas, late, of in (
        (
            "derived anew",
            night.touched,
            night.derived_anew,
            night.CONSOLIDATED,
            "Bucket {} has inputs that its tables do not show yet",
            "captures",
        ),
        (
            "billed anew",
            night.unbilled,
            night.billed_anew,
            night.BILLED,
            "The lines of bucket {} do not show yet what they rest on",
            "sessions",
        ),
    ):
        stale = behind(root)
        for bucket in range(lake.buckets):
            progress(step, bucket, lake.buckets)
            if bucket in stale:
                found.append(Finding("stale", f"{late.format(bucket)}; run nightly."))
                continue
            for name, given in anew(root, bucket).items():
                published = lake.read(name, schemas[name], buckets=[bucket])
                if files.parquet(_sorted(published)) != files.parquet(_sorted(given)):
                    found.append(Finding("differs", f"Table {name} of bucket {bucket} is not what its {of} give."))
        progress(step, lake.buckets, lake.buckets)
        if found:
            break
    return found


def verify_files(root: Path) -> list[Finding]:
    """The first half of `verify`: every file that a manifest names is there with its bytes, and all chains are whole."""
    lake = Lake.open(root)
    problems = (*lake.verify_files(), *people.verify(lake))
    return [Finding(one.code, one.message if str(one.path) in one.message else f"{one.path}: {one.message}") for one in problems]


def _sorted(rows: pa.Table) -> pa.Table:
    """Rows in an order that does not depend on the months they are kept in."""
    keys = [(name, "ascending") for name in rows.column_names if not pa.types.is_nested(rows.schema.field(name).type)]
    return rows.sort_by(keys).combine_chunks() if rows.num_rows else rows


def quarantine(lake: Lake, *, discarded: bool = False) -> list[dict[str, Any]]:
    """What could not be read, each fault once, newest capture last; without those that a person has discarded."""
    gone = _discarded(lake)
    rows = {row["fault_id"]: row for row in lake.read("faults", FAULTS).to_pylist()}
    return [row for fault, row in sorted(rows.items()) if discarded or fault not in gone]


def fault(lake: Lake, ident: str) -> dict[str, Any]:
    """One fault by its id or a prefix of it. Raises InputError."""
    rows = [row for row in quarantine(lake, discarded=True) if row["fault_id"].startswith(ident)]
    if len(ident) < _SHORTEST or len(rows) != 1:
        why = "is too short" if len(ident) < _SHORTEST else f"names {len(rows)} faults"
        raise InputError(f"{ident!r} {why}.", do="Give more of an id of `pumpledger quarantine list`.", code="fault")
    return rows[0]


def retry(lake: Lake, ident: str) -> Mapping[str, int]:
    """Decodes the capture of a fault with today's code: how many records and faults it gives now. The next night derives with it."""
    about = fault(lake, ident)
    for bucket in range(lake.buckets):
        raw = lake.raw(bucket)
        mine = raw.filter(pc.equal(raw["sha256"], about["capture"]))
        for capture in captures(mine):
            decoded = night.decode(capture)
            same = about["fault_id"] in decoded.faults["fault_id"].to_pylist()
            return {"records": decoded.records.num_rows, "faults": decoded.faults.num_rows, "still": int(same)}
    raise InputError(
        "Its payload never became a capture, so there is nothing to decode.", do="Look at its bytes with `show`.", code="fault"
    )


def discard(lake: Lake, ident: str, *, by: str, note: str) -> None:
    """Marks a fault as seen and done with: it leaves the list; its bytes stay for ever, and so does who said so."""
    about = fault(lake, ident)
    entry = {
        "entry_id": identify(_DISCARD, about["fault_id"]),
        "at": datetime.now(UTC).replace(microsecond=0),
        "who": by,
        "what": _DISCARD,
        "about": about["fault_id"],
        "note": note,
    }
    row = rows_to_table(people.AUDIT, [entry])
    lake.append("audit", 0, row, months_of(row["at"]), key="entry_id")


def _discarded(lake: Lake) -> set[str]:
    rows = lake.read("audit", people.AUDIT).to_pylist()
    return {row["about"] for row in rows if row["what"] == _DISCARD}
