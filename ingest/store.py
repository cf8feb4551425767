"""The durable store: what was received, in an embedded SQLite file, until it is in the lake, and its hashes for ever.

`append` returns after the bytes are on the disk (WAL, `synchronous=FULL`, one transaction a call). Captures are kept as received:
nothing is decoded here. A store may be used by several processes and threads at once.

A payload that cannot even become a capture is kept like one: its `Capture` has no family and no pump, and its `Arrival` says why.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import apsw

from devices.contract import Anchor, Capture, CaptureHead
from devices.errors import InputError, StorageError, masked

APPLICATION_ID = 0x504C6467
VERSION = 1
_ROOM = 256 * 1024
"""With less than this free on its disk a store has no room: a -wal and a -shm file take some of it."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)

_SCHEMA = f"""
CREATE TABLE heads (
    id INTEGER PRIMARY KEY,
    sha256 TEXT NOT NULL UNIQUE,
    data_sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    family TEXT NOT NULL,
    pump_id TEXT NOT NULL,
    model TEXT,
    part TEXT,
    pump_clock TEXT,
    utc TEXT,
    round_trip_ms INTEGER,
    after TEXT,
    received_ms INTEGER NOT NULL,
    via TEXT NOT NULL,
    refused TEXT
) STRICT;
CREATE INDEX heads_of_pump ON heads (pump_id);
CREATE TABLE payloads (id INTEGER PRIMARY KEY REFERENCES heads (id), data BLOB NOT NULL) STRICT;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
"""

_INSERT_HEAD = """
INSERT INTO heads
(sha256, data_sha256, size, family, pump_id, model, part, pump_clock, utc, round_trip_ms, after, received_ms, via, refused)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (sha256) DO NOTHING RETURNING id
"""

_PENDING = """
SELECT id, sha256, data, family, pump_id, model, part, pump_clock, utc, round_trip_ms, after, received_ms, via, refused
FROM payloads JOIN heads USING (id) WHERE id > ?1 AND id <= ?2 AND (?3 IS NULL OR pump_id = ?3) ORDER BY id LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a capture came, in UTC to the millisecond, and from where: "serial:/dev/ttyUSB0", "mqtt:gw1", "file:page-00.data".

    `refused` says why the bytes could not become a capture; None for a capture.
    """

    received_at: datetime
    via: str
    refused: str | None = None

    def __post_init__(self) -> None:
        if self.received_at.tzinfo is None:
            raise ValueError("received_at needs a time zone")
        whole = self.received_at.astimezone(UTC)
        object.__setattr__(self, "received_at", whole.replace(microsecond=whole.microsecond // 1000 * 1000))


class Store:
    """The store in one SQLite file, made where there is none (its folder must exist); a context manager."""

    def __init__(self, path: Path, *, busy_timeout_s: float = 60.0) -> None:
        """Raises StorageError where the file is not ours, of another version, damaged, or cannot be opened."""
        self.path = path
        self._lock = threading.RLock()
        with self._guard():
            self._db = apsw.Connection(str(path))
            try:
                self._db.set_busy_timeout(int(busy_timeout_s * 1000))
                self._open(time.monotonic() + busy_timeout_s)
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file. What was appended is durable already."""
        with self._guard():
            self._db.close()

    def append(self, captures: Iterable[tuple[Capture, Arrival]]) -> list[str]:
        """Keeps captures, and gives the SHA-256 of each, in their order, once all are durable; all of them are kept or none.

        The same capture twice is one row, and the first arrival stands. Raises InputError for what is no capture by the contract
        (an anchor that is not naive pump clock and UTC, text that is no text), StorageError.
        """
        rows = [_row(capture, arrival) for capture, arrival in captures]
        if not rows:
            return []
        with self._guard(), self._transaction():
            for head, data in rows:
                for (new,) in self._db.execute(_INSERT_HEAD, head):
                    self._db.execute("INSERT INTO payloads (id, data) VALUES (?, ?)", (new, data))
        return [str(head[0]) for head, _ in rows]

    def refuse(self, data: bytes, why: str, arrival: Arrival) -> str:
        """Keeps bytes that could not become a capture, with the reason, durably; gives their receipt as `append` does."""
        refused = Arrival(arrival.received_at, arrival.via, why)
        return self.append([(Capture(data=data, family="", pump_id=""), refused)])[0]

    def has(self, sha256: str) -> bool:
        """Whether this capture was ever kept."""
        return bool(self._all("SELECT 1 FROM heads WHERE sha256 = ?", sha256))

    def pumps(self) -> list[str]:
        """Every pump that a capture was ever kept of, sorted."""
        return [pump for (pump,) in self._all("SELECT DISTINCT pump_id FROM heads WHERE refused IS NULL ORDER BY pump_id")]

    def heads(self, pump_id: str) -> list[CaptureHead]:
        """Every capture ever kept of a pump, in order of arrival, dropped ones too."""
        rows = self._all(
            "SELECT sha256, data_sha256, size, family, pump_id, model, part FROM heads WHERE pump_id = ? AND refused IS NULL ORDER BY id",
            pump_id,
        )
        return [
            CaptureHead(sha256=sha, data_sha256=data_sha, size=size, family=family, pump_id=pump, model=model, part=part)
            for sha, data_sha, size, family, pump, model, part in rows
        ]

    def arrivals(self, pump_id: str) -> list[tuple[str, Arrival]]:
        """SHA-256 and arrival of every capture ever kept of a pump, in order of arrival, dropped ones too."""
        rows = self._all("SELECT sha256, received_ms, via FROM heads WHERE pump_id = ? AND refused IS NULL ORDER BY id", pump_id)
        return [(sha, Arrival(_EPOCH + received_ms * _MS, via)) for sha, received_ms, via in rows]

    def pending(self, pump_id: str | None = None) -> Iterator[tuple[Capture, Arrival]]:
        """What still has its bytes here, refused payloads too, or what one pump has: in order of arrival, as it was at the first one.

        One at a time, without holding a lock meanwhile: appending and dropping may go on. Raises StorageError where bytes no longer
        match their hash.
        """
        ((last,),) = self._all("SELECT coalesce(max(id), 0) FROM payloads")
        seen = 0
        while rows := self._all(_PENDING, seen, last, pump_id):
            ((seen, sha, data, family, pump, model, part, clock, utc, trip, after, received_ms, via, refused),) = rows
            anchor = clock and Anchor(
                pump_clock=datetime.fromisoformat(clock), utc=datetime.fromisoformat(utc), round_trip_ms=trip, after=after
            )
            capture = Capture(data=data, family=family, pump_id=pump, model=model, part=part, anchor=anchor)
            if capture.sha256 != sha:
                raise self._damaged(f"The bytes of capture {sha[:12]}… of {masked(pump)} do not match their hash.")
            yield capture, Arrival(_EPOCH + received_ms * _MS, via, refused)

    def renew(self, captures: Iterable[tuple[Capture, Arrival]]) -> None:
        """As `append`, but of what was dropped the bytes are kept here anew; its arrival stays the first one."""
        rows = [_row(capture, arrival) for capture, arrival in captures]
        with self._guard(), self._transaction():
            for head, data in rows:
                self._db.execute(_INSERT_HEAD, head).fetchall()
                self._db.execute(
                    "INSERT INTO payloads (id, data) SELECT id, ? FROM heads WHERE sha256 = ? ON CONFLICT DO NOTHING", (data, head[0])
                )

    def drop(self, shas: Iterable[str]) -> None:
        """Forgets the bytes of these captures, and keeps their hashes and heads for ever. One that is not here is no error."""
        gone = [(sha,) for sha in shas]
        with self._guard(), self._transaction():
            self._db.executemany("DELETE FROM payloads WHERE id = (SELECT id FROM heads WHERE sha256 = ?)", gone)

    def _open(self, deadline: float) -> None:
        """Makes a new file ours, or checks that it is."""
        if not self._is_new() and self._one("PRAGMA application_id") != APPLICATION_ID:
            raise StorageError(
                f"{self.path} is a database, but no store of pumpledger.", do="Name another file with --store.", code="foreign_store"
            )
        self._use_wal(deadline)
        self._db.execute("PRAGMA synchronous = FULL")
        if self._is_new():
            with self._transaction():
                if self._is_new():
                    self._db.execute(_SCHEMA)
        if (version := self._one("PRAGMA user_version")) != VERSION:
            raise StorageError(
                f"{self.path} is a store of version {version}; this is version {VERSION}.",
                do="Use the pumpledger that wrote it to run the night (its bytes go to the lake), or name another file with --store.",
                code="store_version",
            )

    def _use_wal(self, deadline: float) -> None:
        """Switching to WAL does not heed the busy timeout where two processes open a new store at once: hence the loop."""
        mode = self._one("PRAGMA journal_mode")
        while mode != "wal":
            try:
                mode = self._one("PRAGMA journal_mode = WAL")
            except apsw.BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                if mode != "wal":
                    raise StorageError(
                        f"{self.path} cannot be kept safe here.",
                        why=f"SQLite could not set its journal mode to WAL; it stayed {mode}.",
                        do="Put the store on a local disk that has room, with --store.",
                        code="no_wal",
                    )

    def _is_new(self) -> bool:
        tables, application = self._one("SELECT count(*) FROM sqlite_master"), self._one("PRAGMA application_id")
        return (tables, application) == (0, 0)

    def _one(self, statement: str) -> Any:
        ((value,),) = self._db.execute(statement)
        return value

    def _all(self, statement: str, *bindings: str | int | None) -> list[tuple[Any, ...]]:
        with self._guard():
            return self._db.execute(statement, bindings).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Takes the write lock at once, so that two writers wait for each other instead of failing in the middle."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """One thread at a time; an error of SQLite becomes a StorageError that says what to do."""
        with self._lock:
            try:
                yield
            except (apsw.NotADBError, apsw.CorruptError, apsw.FormatError) as error:
                raise self._damaged(f"SQLite says: {error}.") from error
            except (apsw.BusyError, apsw.LockedError) as error:
                raise StorageError(
                    f"The store {self.path} is in use.",
                    why="Another process has held its write lock the whole time.",
                    do="Wait for it, or end it, and run this again.",
                    code="busy",
                ) from error
            except (apsw.FullError, apsw.IOError) as error:
                if not isinstance(error, apsw.FullError) and not self._no_room():
                    raise self._unreadable(error) from error
                raise StorageError(
                    f"There is no room left for the store {self.path}.",
                    do="Free some space and run it again; what had a receipt is safe.",
                    code="disk_full",
                ) from error
            except (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError) as error:
                raise StorageError(
                    f"The store {self.path} cannot be opened for writing.",
                    why=f"SQLite says: {error}.",
                    do="Check that its folder exists and that this user may write there, or name another file with --store.",
                    code="not_writable",
                ) from error
            except apsw.ConnectionClosedError as error:
                raise StorageError(f"The store {self.path} was closed.", do="Open it again.", code="closed") from error
            except apsw.Error as error:
                raise self._unreadable(error) from error

    def _no_room(self) -> bool:
        """Whether its disk is all but full: SQLite says "disk I/O error" where its -shm file finds no room."""
        try:
            return shutil.disk_usage(self.path.parent).free < _ROOM
        except OSError:
            return False

    def _unreadable(self, error: apsw.Error) -> StorageError:
        return StorageError(
            f"The store {self.path} cannot be read or written.",
            why=f"SQLite says: {error}.",
            do="Check the disk, and run it again.",
            code="io",
        )

    def _damaged(self, why: str) -> StorageError:
        return StorageError(
            f"The store {self.path} is damaged, or no store of pumpledger.",
            why=why,
            do="Put the file aside (with its -wal and -shm) and start with a new one: what was drained is in the lake, "
            "and pumps and gateways give again what was not. `sqlite3 FILE .recover` may save the rest.",
            code="damaged",
        )


def _row(capture: Capture, arrival: Arrival) -> tuple[tuple[str | int | None, ...], bytes]:
    """The row of `heads` and the bytes. Raises InputError for what would not come back with the same SHA-256."""
    anchor = capture.anchor
    who = masked(capture.pump_id) or "nobody"
    if (capture.family == "") != (arrival.refused is not None):
        raise InputError(f"A capture of {who} has no family, and no reason why it was refused, or both.", code="bad_capture")
    clock = utc = trip = after = None
    if anchor:
        if anchor.pump_clock.tzinfo is not None or anchor.utc.utcoffset() != timedelta(0):
            raise InputError(
                f"A clock anchor of {who} is not in the clocks it must be in.",
                why=f"It says pump {anchor.pump_clock.isoformat()}, host {anchor.utc.isoformat()}.",
                do="Give the pump's clock without a zone, and the host's in UTC.",
                code="bad_anchor",
            )
        clock, utc, trip, after = anchor.pump_clock.isoformat(), anchor.utc.isoformat(), anchor.round_trip_ms, anchor.after
    head = (
        capture.sha256,
        hashlib.sha256(capture.data).hexdigest(),
        len(capture.data),
        capture.family,
        capture.pump_id,
        capture.model,
        capture.part,
        clock,
        utc,
        trip,
        after,
        (arrival.received_at - _EPOCH) // _MS,
        arrival.via,
        arrival.refused,
    )
    try:
        for value in head:
            if isinstance(value, str):
                value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"A name in a capture of {who} is no text.", why=f"It is not Unicode: {error.reason}.", code="bad_capture"
        ) from error
    if trip is not None and not 0 <= trip < 2**63:
        raise InputError(f"A clock anchor of {who} has a round trip of {trip} ms.", do="Give a time of 0 ms or more.", code="bad_anchor")
    return head, capture.data
