"""What people put into a lake: reviewers' decisions, releases, and who did what (docs/decisions/0019, 0020). All of it only grows.

    decisions/               rows of DECISIONS, appended and hash-chained as any input (`Lake.append`)
    releases/00000001.json   a release: what it took in numbers, the hash of its rows, and the hash of the release before it: a chain
    releases/release-0001-2026-03-31-3fa2c41be0.parquet   its rows of LINES, frozen: number, date and id (once <SHA-256>.parquet)
    audit/                   who did what, when

A release is there from the instant its numbered file is: that file is only ever created, after its rows are durable. Rows that no
numbered file names are what a killed run left; the next release removes them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from devices.errors import StorageError
from ingest import files
from ingest.lake import Lake, Problem, months_of
from transforms import tables
from transforms.decisions import Decision
from transforms.tables import identify, rows_to_table

AUDIT = pa.schema(
    [
        pa.field("entry_id", pa.string(), nullable=False),
        pa.field("at", pa.timestamp("ms", "UTC"), nullable=False),
        pa.field("who", pa.string(), nullable=False),
        pa.field("what", pa.string(), nullable=False),
        pa.field("about", pa.string(), nullable=False),
        pa.field("note", pa.string(), nullable=False),
    ]
)
"""What people did, append-only: who, when, what, about what, and why."""

_DECISIONS, _RELEASES, _AUDIT = "decisions", "releases", "audit"
_RELEASE = "release"
"""What the audit says of a release."""


@dataclass(frozen=True, slots=True)
class Total:
    """What a release took of one code for one payer."""

    payer: str
    code: str
    lines: int
    units: int
    minutes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A release as its numbered file tells it; `previous` and `sha256` are the hashes of the file before it ("": the first) and its own.

    `payer` and `month` are the filters it was taken with. `voids` counts the rows that cancel what earlier releases took.
    """

    number: int
    release_id: str
    at: datetime
    by: str
    payer: str | None
    month: str | None
    lines: int
    voids: int
    units: int
    totals: tuple[Total, ...]
    rows_sha256: str
    previous: str
    sha256: str

    @property
    def name(self) -> str:
        """The name of the file of its rows, for people: what is in it is known by its hash."""
        return f"release-{self.number:04d}-{self.at:%Y-%m-%d}-{self.release_id[:10]}.parquet"

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "at": self.at.isoformat()}


# --- decisions ----------------------------------------------------------------------------------------------------------------


def decisions(lake: Lake) -> list[Decision]:
    """All decisions that were ever taken, those that were taken back too, oldest first."""
    found = [Decision.of(row) for row in lake.read(_DECISIONS, tables.DECISIONS).to_pylist()]
    return sorted(found, key=lambda one: (one.decided_at, one.decision_id))


def adopt(lake: Lake) -> None:
    """Names again the decisions and audit entries that no manifest names. Raises StorageError."""
    lake.adopt(_DECISIONS, 0, tables.DECISIONS, key="decision_id")
    lake.adopt(_AUDIT, 0, AUDIT, key="entry_id")


def add(lake: Lake, decision: Decision) -> None:
    """Keeps a decision, durable when this returns; one that is there already is there once. Raises StorageError."""
    row = rows_to_table(tables.DECISIONS, [decision.row()])
    lake.append(_DECISIONS, 0, row, months_of(row["decided_at"]), key="decision_id")


# --- releases -----------------------------------------------------------------------------------------------------------------


def releases(lake: Lake) -> list[Release]:
    """All releases, oldest first. Raises StorageError where the chain is broken; what is lost at its end `whole` tells."""
    found: list[Release] = []
    for path in files.listed(lake.root / _RELEASES, "[0-9]*.json"):
        release = _read(path)
        if (
            release.number != len(found) + 1
            or path.stem != f"{release.number:08d}"
            or release.previous != (found[-1].sha256 if found else "")
        ):
            raise _broken(path, "It does not follow on the release before it.", "chain")
        found.append(release)
    return found


def whole(lake: Lake) -> list[Release]:
    """All releases, oldest first. Raises StorageError where the chain is broken, or lacks one that the audit names."""
    found = releases(lake)
    told = lake.read(_AUDIT, AUDIT, columns=["what", "about"]).to_pylist()
    lost = {row["about"] for row in told if row["what"] == _RELEASE} - {release.release_id for release in found}
    if lost:
        raise _broken(lake.root / _RELEASES, f"It lacks {len(lost)} releases that the audit names.", "lost")
    return found


def released(lake: Lake) -> pa.Table:
    """The rows of LINES that all releases took. Raises StorageError."""
    return pa.concat_tables(
        [tables.LINES.empty_table(), *(_kept(rows_file(lake, release), release.rows_sha256) for release in releases(lake))]
    )


def rows_file(lake: Lake, release: Release) -> Path:
    """Where the rows of a release are; earlier ones were named by their hash alone."""
    folder = lake.root / _RELEASES
    own, earlier = folder / release.name, folder / f"{release.rows_sha256}.parquet"
    return earlier if earlier.exists() and not own.exists() else own


def take(lake: Lake, rows: pa.Table, *, by: str, at: datetime, payer: str | None, month: str | None) -> Release:
    """Freezes rows of LINES as the next release; `rows` are as published, and get state and release_id. Raises StorageError.

    The id comes from the rows and the release before: a run that was killed gives the same one again.
    """
    with lake.lock(_RELEASES, 0):
        before = whole(lake)
        previous = before[-1].sha256 if before else ""
        planned = plan(rows, by=by, at=at, payer=payer, month=month, number=len(before) + 1, previous=previous)
        frozen = _frozen(rows, planned.release_id)
        named = {rows_file(lake, release) for release in before}
        folder = lake.root / _RELEASES
        for left in [*files.listed(folder, f".*{files.PART}"), *(path for path in files.listed(folder, "*.parquet") if path not in named)]:
            files.remove(left)
        files.put(folder / planned.name, files.parquet(frozen))
        path = folder / f"{planned.number:08d}.json"
        try:
            files.create(path, _written(planned))
        except FileExistsError:
            raise StorageError(f"{path} was created by another run meanwhile.", do="Run this again.", code="busy") from None
        return _read(path)


def plan(rows: pa.Table, *, by: str, at: datetime, payer: str | None, month: str | None, number: int, previous: str) -> Release:
    """The release that `take` would make of these rows, without making it."""
    found: dict[tuple[str, str], list[int]] = {}
    voids = 0
    for row in rows.select(["payer", "code", "units", "minutes", "state"]).to_pylist():
        if row["state"] == "void":
            voids += 1
            continue
        total = found.setdefault((row["payer"], row["code"]), [0, 0, 0])
        for at_, more in enumerate((1, row["units"], row["minutes"])):
            total[at_] += more
    totals = tuple(Total(*key, *sums) for key, sums in sorted(found.items()))
    release_id = identify("release", previous, hashlib.sha256(files.parquet(_frozen(rows, None))).hexdigest())
    return Release(
        number=number,
        release_id=release_id,
        at=at,
        by=by,
        payer=payer,
        month=month,
        lines=sum(total.lines for total in totals),
        voids=voids,
        units=sum(total.units for total in totals),
        totals=totals,
        rows_sha256=hashlib.sha256(files.parquet(_frozen(rows, release_id))).hexdigest(),
        previous=previous,
        sha256="",
    )


def _frozen(rows: pa.Table, release_id: str | None) -> pa.Table:
    states = ["void" if state == "void" else "released" for state in rows["state"].to_pylist()]
    new = {"state": pa.array(states, pa.string()), "release_id": pa.array([release_id] * rows.num_rows, pa.string())}
    return pa.table({name: new.get(name, rows[name]) for name in tables.LINES.names}, schema=tables.LINES)


def _written(release: Release) -> bytes:
    told = {name: value for name, value in release.plain().items() if name != "sha256"}
    return (json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _read(path: Path) -> Release:
    try:
        data = path.read_bytes()
        told = json.loads(data)
        told |= {"at": datetime.fromisoformat(told["at"]), "totals": tuple(Total(**total) for total in told["totals"])}
        return Release(
            **{one.name: told[one.name] for one in fields(Release) if one.name != "sha256"}, sha256=hashlib.sha256(data).hexdigest()
        )
    except OSError as error:
        raise files.storage_error(path, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(path, f"It is no release: {error}.", "damaged") from None


@lru_cache(maxsize=64)
def _kept(path: Path, sha256: str) -> pa.Table:
    return _rows(path, sha256)


def _rows(path: Path, sha256: str) -> pa.Table:
    """The frozen rows; a column that came later has none. Raises StorageError where they are not those of this hash."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise files.storage_error(path, error) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _broken(path, "Its bytes are not those that were taken.", "damaged")
    found = pq.read_table(io.BytesIO(data))
    return pa.table(
        {f.name: found[f.name].cast(f.type) if f.name in found.column_names else _none(f, found.num_rows) for f in tables.LINES},
        schema=tables.LINES,
    )


def _none(column: pa.Field, size: int) -> pa.Array:
    return pa.array([[] if pa.types.is_list(column.type) else None] * size, column.type)


def _broken(path: Path, why: str, code: str) -> StorageError:
    return StorageError(
        f"{path} is damaged.", why=why, do="Bring it back from a backup: what was released cannot be derived again.", code=code
    )


# --- who did what -------------------------------------------------------------------------------------------------------------


def audit(lake: Lake) -> None:
    """Brings audit/ up to all decisions and releases there are: what a killed run, or one beside another, left out is said by the next."""
    done = [
        (one.decided_at, one.by, f"decide {one.action}", one.decision_id, " ".join(text for text in (one.argument, one.note) if text))
        for one in decisions(lake)
    ]
    done += [(one.at, one.by, _RELEASE, one.release_id, f"{one.lines} lines, {one.voids} voids") for one in releases(lake)]
    rows = rows_to_table(
        AUDIT,
        [
            {"entry_id": identify(what, about), "at": at.replace(microsecond=0), "who": who, "what": what, "about": about, "note": note}
            for at, who, what, about, note in done
        ],
    )
    try:
        lake.append(_AUDIT, 0, rows, months_of(rows["at"]), key="entry_id")
    except StorageError as error:
        if error.code != "busy":
            raise


# --- verify -------------------------------------------------------------------------------------------------------------------


def verify(lake: Lake) -> list[Problem]:
    """What is wrong with the releases: a broken chain, rows that are not those that were taken, or that add up to other figures.

    The files of decisions/ and audit/ are checked with the lake's other inputs (`Lake.verify_files`).
    """
    folder = lake.root / _RELEASES
    try:
        found = whole(lake)
    except StorageError as error:
        return [Problem(error.code, folder, str(error))]
    problems = [
        Problem("unnamed", path, "No release names it.")
        for path in files.listed(folder, "*.parquet")
        if path not in {rows_file(lake, release) for release in found}
    ]
    for release in found:
        path = folder / f"{release.number:08d}.json"
        try:
            again = _again(_rows(rows_file(lake, release), release.rows_sha256), release)
        except (StorageError, pa.ArrowException) as error:
            problems.append(Problem("changed", path, f"Its rows cannot be read: {error}"))
            continue
        if again != {name: getattr(release, name) for name in again}:
            problems.append(Problem("changed", path, "Its figures are not those of its rows."))
    return problems


def _again(rows: pa.Table, release: Release) -> Mapping[str, Any]:
    told = plan(
        rows, by=release.by, at=release.at, payer=release.payer, month=release.month, number=release.number, previous=release.previous
    )
    same = set(rows["release_id"].to_pylist()) <= {release.release_id}
    return {"lines": told.lines, "voids": told.voids, "units": told.units, "totals": told.totals} | ({} if same else {"release_id": None})
