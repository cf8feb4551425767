"""The Parquet lake: what was received and what was derived from it, as files under one root (docs/design.md §3).

    <table>/month=YYYY-MM/bucket=NN/<SHA-256 of the file>.parquet     month=unknown where there is none
    <input>/<SHA-256 of the file>.<suffix>                            `snapshot`
    manifests/lake.json                                               format, number of buckets
    manifests/<stage>/bucket=NN/00000001.json                         what is in force

A file's name is made of its content and a manifest is only ever created, never written again, so equal tables are equal files and an
object store would do. The lock of one writer a bucket is an OS lock of this host beside them.

**Inputs** (`append`: raw and the like) only grow. Each append of a bucket is one manifest, which names its new files and the SHA-256 of
the manifest before it: a chain. Rows that a killed run wrote but did not name count as given to the next append, so no bytes are lost,
and a row whose key is there is left out, so none is doubled.

**Stages** (`publish`) are whole or not at all. New files first, then the next manifest: from that instant its files are the tables.
Then what it does not name is removed, at once: a plain glob `<table>/**/*.parquet` is right again as soon as the publish has ended.
A reader whose files vanish under it has read a manifest that is no longer the highest, and reads the new one. The manifest before the
one in force is kept, to see what changed. A run killed at any call leaves the old state or the new one; what else it left is removed
when the bucket is next locked, or at the latest published.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from devices.contract import Anchor, Capture
from devices.errors import StorageError
from ingest import files
from ingest.store import Arrival

FORMAT = 1
RAW = "raw"
UNKNOWN = "unknown"

RAW_SCHEMA = pa.schema(
    [
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("data", pa.binary(), nullable=False),
        pa.field("data_sha256", pa.string(), nullable=False),
        pa.field("family", pa.string(), nullable=False),
        pa.field("pump_id", pa.string(), nullable=False),
        pa.field("model", pa.string()),
        pa.field("part", pa.string()),
        pa.field("pump_clock", pa.timestamp("us")),
        pa.field("utc", pa.timestamp("us", "UTC")),
        pa.field("round_trip_ms", pa.int64()),
        pa.field("after", pa.string()),
        pa.field("received_at", pa.timestamp("ms", "UTC"), nullable=False),
        pa.field("via", pa.string(), nullable=False),
        pa.field("refused", pa.string()),
    ]
)
"""Captures as received. The anchor's clocks are kept to the microsecond as Python has them, because they are part of the capture's
identity and its hash must check for ever. A payload that could not become a capture has family and pump_id "", and why in `refused`."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_MONTH = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])|unknown")
_SHA = re.compile(r"[0-9a-f]{64}")

_DERIVED: Mapping[str, frozenset[str]] = {
    "consolidate": frozenset({"consolidate", "records", "faults", "events", "sessions", "intervals", "setups", "doubts", "pumps"}),
    "bill": frozenset({"bill", "lines", "worklist", "days"}),
}
"""What can be made again, by stage: its name in manifests/, and its tables."""

Months: TypeAlias = "str | pa.Array | pa.ChunkedArray"


@dataclass(frozen=True, slots=True, order=True)
class File:
    """One file of a table, as a manifest names it."""

    table: str
    month: str
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was published of a stage and bucket, and from what. `previous` is the hash of the one before (inputs only).

    `sha256` is the hash of the manifest itself.
    """

    stage: str
    bucket: int
    number: int
    files: tuple[File, ...]
    inputs: Mapping[str, str]
    previous: str | None
    sha256: str


@dataclass(frozen=True, slots=True)
class Problem:
    """What `verify_files` found: a stable code (missing, changed, rows, chain, damaged, unnamed, lost), where, and in words."""

    code: str
    path: Path
    message: str


class Lake:
    """A lake under one root: `Lake.create` makes it, `Lake.open` finds it. Safe to share between threads."""

    def __init__(self, root: Path, buckets: int) -> None:
        self.root = root
        self.buckets = buckets
        self._owners: dict[tuple[str, int], int] = {}

    @classmethod
    def create(cls, root: Path, buckets: int = 8) -> Lake:
        """Makes a lake. Raises StorageError where there is one already, or the place cannot be written."""
        if buckets < 1 or buckets & (buckets - 1) or buckets > 1024:
            raise ValueError(f"buckets must be a power of two up to 1024, not {buckets}")
        try:
            files.create(_lake_json(root), _json({"format": FORMAT, "buckets": buckets}))
        except FileExistsError:
            raise StorageError(
                f"{root} is a lake already.", do="Open it, or name another folder with --lake.", code="lake_exists"
            ) from None
        return cls(root, buckets)

    @classmethod
    def open(cls, root: Path) -> Lake:
        """Opens a lake. Raises StorageError where there is none, or one of another format. Writing is tried when something is written."""
        path = _lake_json(root)
        try:
            about = json.loads(path.read_bytes())
            form, buckets = about["format"], about["buckets"]
        except (FileNotFoundError, NotADirectoryError):
            raise StorageError(
                f"There is no lake at {root}.", do="Name its folder with --lake; the first nightly run makes one.", code="no_lake"
            ) from None
        except OSError as error:
            raise files.storage_error(path, error) from error
        except (ValueError, KeyError, TypeError):
            raise _damaged(path, "It is no JSON with a format and a number of buckets.") from None
        if form != FORMAT:
            raise StorageError(
                f"The lake at {root} has format {form}; this pumpledger reads format {FORMAT}.",
                do="Use the pumpledger that made it.",
                code="lake_format",
            )
        if not isinstance(buckets, int) or buckets < 1 or buckets & (buckets - 1):
            raise _damaged(path, f"Its number of buckets is {buckets!r}.")
        return cls(root, buckets)

    def bucket_of(self, key: str) -> int:
        """The bucket of a pump, a patient or a capture hash: the same in every run and on every machine."""
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % self.buckets

    # Inputs

    def append(self, table_name: str, bucket: int, table: pa.Table, months: Months, *, key: str = "sha256") -> Manifest | None:
        """Adds rows to an input table of a bucket, each by its month ("YYYY-MM" or "unknown"), and gives the head of the chain.

        Rows whose `key` is there already are left out, so what was given before a kill may be given again. Gives the head as it was
        (None: nothing was ever appended) where nothing new remains. Raises StorageError.
        """
        with self.lock(table_name, bucket):
            chain = self._chain(table_name, bucket)
            head = chain[-1] if chain else None
            named = {file.sha256 for manifest in chain for file in manifest.files}
            strays = [path for path in self._on_disk(table_name, bucket) if path.stem not in named and _is_whole(path)]
            seen = self._keys(table_name, bucket, key)
            new: dict[str, list[pa.Table]] = {}
            for month, part in [*((_month_of(path), _fit(_load(path), table.schema, path)) for path in strays), *_by_month(table, months)]:
                fresh = []
                for value in part[key].to_pylist():
                    fresh.append(value not in seen)
                    seen.add(value)
                new.setdefault(month, []).append(part.filter(pa.array(fresh, pa.bool_())))
            written = self._write(bucket, [(table_name, (month, pa.concat_tables(new[month]))) for month in new])
            if written:
                head = self._next(table_name, bucket, head, written, {}, previous=head.sha256 if head else "")
                named.update(file.sha256 for file in written)
            for path in strays:
                if path.stem not in named:
                    files.remove(path)
            return head

    def adopt(self, table_name: str, bucket: int, schema: pa.Schema, *, key: str = "sha256") -> None:
        """Names again what an input table of a bucket holds and no manifest names: a manifest was lost, or a run was killed.

        What another run is about to name is left to it. Raises StorageError.
        """
        named = {file.sha256 for manifest in self._chain(table_name, bucket) for file in manifest.files}
        if any(path.stem not in named for path in self._on_disk(table_name, bucket)):
            try:
                self.append(table_name, bucket, schema.empty_table(), UNKNOWN, key=key)
            except StorageError as error:
                if error.code != "busy":
                    raise

    def raw(self, bucket: int, pumps: Iterable[str] | None = None, *, hashes: Iterable[str] | None = None) -> pa.Table:
        """The captures of a bucket (RAW_SCHEMA), by month of receipt and order of arrival.

        If any are named, of these pumps alone, or those with these SHA-256 alone.
        """
        name, values = ("pump_id", pumps) if hashes is None else ("sha256", hashes)
        wanted = None if values is None else pa.array(sorted(values), pa.string())

        def load(path: Path) -> pa.Table:
            if wanted is None:
                return _fit(_load(path), RAW_SCHEMA, path)
            mask = pc.is_in(_load(path, [name])[name], value_set=wanted)
            return _fit(_load(path).filter(mask), RAW_SCHEMA, path) if pc.any(mask).as_py() else RAW_SCHEMA.empty_table()

        return pa.concat_tables([RAW_SCHEMA.empty_table(), *self._load_all(RAW, bucket, None, load)])

    def raw_hashes(self, bucket: int) -> set[str]:
        """The SHA-256 of every capture of a bucket, refused payloads too."""
        return self._keys(RAW, bucket, "sha256")

    def raw_chain(self, bucket: int) -> str:
        """The hash of the head of a bucket's chain: it stands for every capture there is. "" where there is none."""
        head = self.current(RAW, bucket)
        return head.sha256 if head else ""

    def snapshot(self, name: str, data: bytes) -> str:
        """Keeps a version of an input file ("orders.csv" as orders/<its SHA-256>.csv) for ever; gives its SHA-256."""
        sha = hashlib.sha256(data).hexdigest()
        files.put(self._snapshot_path(name, sha), data)
        return sha

    def snapshot_bytes(self, name: str, sha256: str) -> bytes:
        """The bytes that `snapshot` kept. Raises StorageError where they are not there, or no longer those."""
        path = self._snapshot_path(name, sha256)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise files.storage_error(path, error) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise _damaged(path, "Its bytes do not match its name.")
        return data

    # Stages

    @contextmanager
    def lock(self, stage: str, bucket: int) -> Iterator[None]:
        """Makes this thread the one writer of a bucket of a stage, and removes what a killed run left there.

        The thread that holds it may take it again (`publish` and `append` do). Raises StorageError with code "busy" where any other
        holds it, in this process or another.
        """
        if not _NAME.fullmatch(stage) or not 0 <= bucket < self.buckets:
            raise ValueError(f"no stage {stage!r} or no bucket {bucket}")
        mine = threading.get_ident()
        if self._owners.get((stage, bucket)) == mine:
            yield
            return
        busy = StorageError(
            f"Another run is writing bucket {bucket} of {stage}.",
            why="A bucket has one writer at a time.",
            do="Wait until it has ended, and run this again.",
            code="busy",
        )
        with files.locked(self.root / "manifests" / "locks" / f"{stage}-{bucket:02d}.lock", busy):
            self._owners[stage, bucket] = mine
            try:
                self._sweep(stage, bucket, ())
                yield
            finally:
                del self._owners[stage, bucket]

    def publish(
        self, stage: str, bucket: int, tables: Mapping[str, pa.Table], months: Mapping[str, Months], inputs: Mapping[str, str]
    ) -> Manifest:
        """Makes these the tables of a stage and bucket, whole or not at all, and gives the manifest in force.

        Rows keep their order; each goes to the month that `months` gives beside its table ("YYYY-MM" or "unknown", one for all or one
        a row; it is no column of the file). `inputs` names the hashes of all they were made of. A publish that equals what is in force
        creates nothing. Raises StorageError.
        """
        with self.lock(stage, bucket):
            head = self.current(stage, bucket)
            if head and head.previous is not None:
                raise ValueError(f"{stage} is an input table: append to it")
            for other in self._stages():
                taken = self.current(other, bucket) if other != stage else None
                if taken and any(file.table in tables for file in taken.files):
                    raise ValueError(f"stage {other} has a table that stage {stage} is to publish")
            written = self._write(bucket, [(name, part) for name in tables for part in _by_month(tables[name], months[name])])
            if head is None or head.files != written or head.inputs != dict(inputs):
                head = self._next(stage, bucket, head, written, inputs, previous=None)
            self._sweep(stage, bucket, tables)
            return head

    def current(self, stage: str, bucket: int) -> Manifest | None:
        """The manifest in force: the one with the highest number. None where nothing was ever published. Raises StorageError."""
        while numbers := self._numbers(stage, bucket):
            try:
                return self._manifest(stage, bucket, numbers[-1])
            except FileNotFoundError:
                continue
        return None

    def published_at(self, stage: str, bucket: int) -> datetime | None:
        """When what is in force was published, as the file system tells it; None where it cannot, or nothing was. Raises StorageError."""
        head = self.current(stage, bucket)
        if head is None:
            return None
        path = self._folder(stage, bucket) / f"{head.number:08d}.json"
        try:
            return datetime.fromtimestamp(path.stat().st_mtime, UTC)
        except OSError:
            return None

    def read(
        self,
        table: str,
        schema: pa.Schema,
        *,
        months: Iterable[str] | None = None,
        buckets: Iterable[int] | None = None,
        columns: Sequence[str] | None = None,
        month_as: str | None = None,
    ) -> pa.Table:
        """The rows of a table as its manifests have it, by bucket, then month, then as published; empty where nothing was.

        `schema` is the table's; `columns`, if given, the ones wanted, in this order; `month_as` names a last column for each row's
        month. Raises StorageError where files are missing, damaged, or written with other columns.
        """
        target = schema if columns is None else pa.schema([schema.field(name) for name in columns])
        wanted = None if months is None else frozenset(months)

        def load(path: Path) -> pa.Table:
            rows = _fit(_load(path, target.names), target, path)
            return rows if month_as is None else _with_month(rows, month_as, _month_of(path))

        parts = [target.empty_table() if month_as is None else _with_month(target.empty_table(), month_as, UNKNOWN)]
        for bucket in range(self.buckets) if buckets is None else sorted(set(buckets)):
            parts += self._load_all(table, bucket, wanted, load)
        return pa.concat_tables(parts)

    def verify_files(self) -> list[Problem]:
        """Reads every file that a manifest in force, a chain or a snapshot names, and hashes it again. Gives what is not as it was.

        Files that no manifest names are told too: a run is writing them, or was killed, or the files were put there by hand.
        """
        problems: list[Problem] = []
        named: set[Path] = set()
        for stage in self._stages():
            for bucket in range(self.buckets):
                try:
                    in_force = self._in_force(self.current(stage, bucket))
                except StorageError as error:
                    problems.append(Problem(error.code, self._folder(stage, bucket), str(error)))
                    continue
                for file in (file for manifest in in_force for file in manifest.files):
                    path = self._path(file, bucket)
                    named.add(path)
                    problems += _verified(path, file.rows)
        for path in sorted(self.root.glob("*/month=*/bucket=*/*")):
            if path not in named:
                problems.append(Problem("unnamed", path, "No manifest names it."))
        for path in sorted(self.root.glob("*/*")):
            if path.is_file() and _SHA.fullmatch(path.stem):
                problems += _verified(path, None)
        return problems

    def _write(self, bucket: int, parts: Iterable[tuple[str, tuple[str, pa.Table]]]) -> tuple[File, ...]:
        """Writes (table, (month, rows)) as files, and gives them as a manifest names them; no rows make no file."""
        written = []
        for table, (month, rows) in parts:
            if rows.num_rows:
                sha = files.write_table(self.root / table / f"month={month}" / f"bucket={bucket:02d}", rows)
                written.append(File(table, month, sha, rows.num_rows))
        return tuple(sorted(written))

    def _next(
        self, stage: str, bucket: int, head: Manifest | None, written: Sequence[File], inputs: Mapping[str, str], *, previous: str | None
    ) -> Manifest:
        """Creates the next manifest: from here on it is in force."""
        number = head.number + 1 if head else 1
        about = {
            "format": FORMAT,
            "stage": stage,
            "bucket": bucket,
            "number": number,
            "files": [{"table": file.table, "month": file.month, "sha256": file.sha256, "rows": file.rows} for file in written],
            "inputs": dict(inputs),
        }
        if previous is not None:
            about["previous"] = previous
        path = self._folder(stage, bucket) / f"{number:08d}.json"
        try:
            files.create(path, _json(about))
        except FileExistsError:
            raise StorageError(
                f"{path} was created by another run meanwhile.", do="Let one host alone write a lake, and run this again.", code="busy"
            ) from None
        return self._manifest(stage, bucket, number)

    def _sweep(self, stage: str, bucket: int, tables: Iterable[str]) -> None:
        """Removes what is neither in force nor an input: superseded files and manifests, and what a killed run left.

        Files first, and the lowest manifest first: whenever this is cut, what is in force is whole, and the next sweep still sees
        what it has to look at.
        """
        folder = self._folder(stage, bucket)
        for path in [*files.listed(folder, f".*{files.PART}"), *self._on_disk(stage, bucket, files.PART)]:
            files.remove(path)
        numbers = self._numbers(stage, bucket)
        known = [self._manifest(stage, bucket, number) for number in numbers[-1:]]
        with suppress(StorageError):  # what is superseded and damaged is not needed any more
            known[:0] = [self._manifest(stage, bucket, number) for number in numbers[-2:-1]]
        if not known or known[-1].previous is not None:
            return
        named = {self._path(file, bucket) for file in known[-1].files}
        for table in {file.table for manifest in known for file in manifest.files}.union(tables):
            for path in [*self._on_disk(table, bucket), *self._on_disk(table, bucket, files.PART)]:
                if path not in named:
                    files.remove(path)
        for number in numbers[:-2]:
            files.remove(folder / f"{number:08d}.json")

    def _load_all(self, table: str, bucket: int, months: frozenset[str] | None, load: Callable[[Path], pa.Table]) -> list[pa.Table]:
        """The files of a table and bucket, loaded. A file that vanished was superseded: then the manifest is read again."""
        before = None
        while True:
            now = [(head.stage, head.number) for head in (self.current(stage, bucket) for stage in self._stages()) if head]
            found = self._files(table, bucket)
            try:
                return [load(self._path(file, bucket)) for file in found if months is None or file.month in months]
            except FileNotFoundError as error:
                if now == before:
                    raise _damaged(Path(error.filename or self.root / table), "A manifest names it, and it is not there.") from None
                before = now

    def _files(self, table: str, bucket: int) -> list[File]:
        """The files of a table and bucket in force, by month, then as they came."""
        found = []
        for stage in self._stages():
            head = self.current(stage, bucket)
            if head and (head.previous is None or stage == table):
                found += [file for manifest in self._in_force(head) for file in manifest.files if file.table == table]
        return sorted(found, key=lambda file: file.month)

    def _keys(self, table: str, bucket: int, key: str) -> set[str]:
        return {value for part in self._load_all(table, bucket, None, lambda path: _load(path, [key])) for value in part[key].to_pylist()}

    def _in_force(self, head: Manifest | None) -> list[Manifest]:
        """The manifests that make the tables: the whole chain of an input, the highest one of a stage."""
        if head is None or head.previous is None:
            return [head] if head else []
        return self._chain(head.stage, head.bucket)

    def _chain(self, table: str, bucket: int) -> list[Manifest]:
        """The manifests of an input, each checked against the one before it."""
        chain: list[Manifest] = []
        for number in self._numbers(table, bucket):
            manifest = self._manifest(table, bucket, number)
            if number != len(chain) + 1 or manifest.previous != (chain[-1].sha256 if chain else ""):
                path = self._folder(table, bucket) / f"{number:08d}.json"
                raise _damaged(path, "It does not follow on the manifest before it.", code="chain")
            chain.append(manifest)
        return chain

    def _manifest(self, stage: str, bucket: int, number: int) -> Manifest:
        """Raises FileNotFoundError, StorageError."""
        path = self._folder(stage, bucket) / f"{number:08d}.json"
        try:
            data = path.read_bytes()
            about = json.loads(data)
            return Manifest(
                stage=stage,
                bucket=bucket,
                number=number,
                files=tuple(File(**file) for file in about["files"]),
                inputs=dict(about["inputs"]),
                previous=about.get("previous"),
                sha256=hashlib.sha256(data).hexdigest(),
            )
        except FileNotFoundError:
            raise
        except OSError as error:
            raise files.storage_error(path, error) from error
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _damaged(path, "It is no manifest.") from None

    def _numbers(self, stage: str, bucket: int) -> list[int]:
        return sorted(int(path.stem) for path in files.listed(self._folder(stage, bucket), "[0-9]*.json"))

    def _stages(self) -> list[str]:
        return [path.name for path in files.listed(self.root / "manifests", "*") if path.is_dir() and path.name != "locks"]

    def _folder(self, stage: str, bucket: int) -> Path:
        return self.root / "manifests" / stage / f"bucket={bucket:02d}"

    def _path(self, file: File, bucket: int) -> Path:
        return self.root / file.table / f"month={file.month}" / f"bucket={bucket:02d}" / f"{file.sha256}.parquet"

    def _on_disk(self, table: str, bucket: int, suffix: str = ".parquet") -> list[Path]:
        """The files of a table and bucket that are there, whoever names them."""
        months = files.listed(self.root / table, "month=*")
        return [path for month in months for path in files.listed(month / f"bucket={bucket:02d}", f"*{suffix}")]

    def _snapshot_path(self, name: str, sha256: str) -> Path:
        stem, _, suffix = name.partition(".")
        if not _NAME.fullmatch(stem) or not _NAME.fullmatch(suffix) or not _SHA.fullmatch(sha256):
            raise ValueError(f"no name of a snapshot: {name!r} {sha256!r}")
        return self.root / stem / f"{sha256}.{suffix}"


def raw_table(captures: Iterable[tuple[Capture, Arrival]]) -> pa.Table:
    """Captures and refused payloads, as `Store.pending` gives them, as rows of RAW_SCHEMA in this order."""
    rows = []
    for capture, arrival in captures:
        anchor = capture.anchor
        rows.append(
            {
                "sha256": capture.sha256,
                "data": capture.data,
                "data_sha256": hashlib.sha256(capture.data).hexdigest(),
                "family": capture.family,
                "pump_id": capture.pump_id,
                "model": capture.model,
                "part": capture.part,
                "pump_clock": anchor and anchor.pump_clock,
                "utc": anchor and anchor.utc,
                "round_trip_ms": anchor and anchor.round_trip_ms,
                "after": anchor and anchor.after,
                "received_at": arrival.received_at,
                "via": arrival.via,
                "refused": arrival.refused,
            }
        )
    return pa.Table.from_pylist(rows, schema=RAW_SCHEMA)


def captures(table: pa.Table) -> list[Capture]:
    """The captures of rows of RAW_SCHEMA, each with its SHA-256 as it was. Refused payloads are none: their rows have `refused`."""
    found = []
    for row in table.filter(pc.is_null(table["refused"])).to_pylist():
        anchor = row["pump_clock"] and Anchor(
            pump_clock=row["pump_clock"], utc=row["utc"].astimezone(UTC), round_trip_ms=row["round_trip_ms"], after=row["after"]
        )
        found.append(
            Capture(data=row["data"], family=row["family"], pump_id=row["pump_id"], model=row["model"], part=row["part"], anchor=anchor)
        )
    return found


def months_of(times: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The month ("YYYY-MM") of each timestamp or date, as its own zone shows it; "unknown" where there is none."""
    whole = pc.add(pc.multiply(pc.year(times), 100), pc.month(times)).cast(pa.int64())
    known = pc.and_(pc.greater_equal(whole, 101), pc.less(whole, 1_000_000))
    text = pc.utf8_lpad(whole.cast(pa.string()), width=6, padding="0")
    return pc.if_else(pc.fill_null(known, False), pc.utf8_replace_slice(text, start=4, stop=4, replacement="-"), UNKNOWN)


def _by_month(table: pa.Table, months: Months) -> list[tuple[str, pa.Table]]:
    """The rows of each month, months sorted, rows in their order."""
    if isinstance(months, str):
        column = pa.chunked_array([pa.repeat(pa.scalar(months), table.num_rows)])
    else:
        column = months if isinstance(months, pa.ChunkedArray) else pa.chunked_array([months])
    if len(column) != table.num_rows:
        raise ValueError(f"{len(column)} months for {table.num_rows} rows")
    found = [] if not table.num_rows else sorted(column.unique().to_pylist())
    if wrong := [month for month in found if not _MONTH.fullmatch(month)]:
        raise ValueError(f"no months: {wrong}")
    if len(found) == 1:
        return [(found[0], table)]
    return [(month, table.filter(pc.equal(column, month))) for month in found]


def _with_month(rows: pa.Table, name: str, month: str) -> pa.Table:
    return rows.append_column(pa.field(name, pa.string(), nullable=False), pa.repeat(pa.scalar(month), rows.num_rows))


def _month_of(path: Path) -> str:
    return path.parent.parent.name.removeprefix("month=")


def _load(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A file as it is. Raises FileNotFoundError, StorageError."""
    try:
        return pq.ParquetFile(path).read(columns=columns)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, f"It cannot be read: {error}.") from error


def _fit(table: pa.Table, schema: pa.Schema, path: Path) -> pa.Table:
    try:
        return table.select(schema.names).cast(schema)
    except (KeyError, ValueError, pa.ArrowException) as error:
        raise StorageError(
            f"{path} has other columns than this pumpledger reads.",
            why=str(error),
            do="Run nightly, which derives the tables again.",
            code="other_columns",
        ) from error


def _is_whole(path: Path) -> bool:
    """Whether a file's bytes match its name. Raises FileNotFoundError, StorageError."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
    except FileNotFoundError:
        raise
    except OSError as error:
        raise files.storage_error(path, error) from error


def _verified(path: Path, rows: int | None) -> Iterator[Problem]:
    """What is wrong with a file that should be there, with so many rows if it is a table."""
    try:
        if not _is_whole(path):
            yield Problem("changed", path, "Its bytes do not match its name.")
        elif rows is not None and (found := pq.ParquetFile(path).metadata.num_rows) != rows:
            yield Problem("rows", path, f"It has {found} rows; its manifest says {rows}.")
    except FileNotFoundError:
        yield Problem("missing", path, "A manifest names it, and it is not there.")
    except (StorageError, pa.ArrowException) as error:
        yield Problem("changed", path, str(error))


def _lake_json(root: Path) -> Path:
    return root / "manifests" / "lake.json"


def _json(about: Mapping[str, Any]) -> bytes:
    return (json.dumps(about, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _damaged(path: Path, why: str, *, code: str = "damaged") -> StorageError:
    match path.parts[-4:]:
        case ("manifests", name, _, _):
            pass
        case (name, month, _, _) if month.startswith("month="):
            pass
        case _:
            name = ""
    stage = next((stage for stage, theirs in _DERIVED.items() if name in theirs), None)
    do = "Bring it back from a backup: it cannot be derived again."
    if stage is not None:
        do = f"It is derived, and can be made again: remove the folder manifests/{stage} of the lake, and run nightly."
    return StorageError(f"{path} is damaged.", why=why, do=do, code=code)
