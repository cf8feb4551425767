"""The store keeps what it gave a receipt for: killed at any call, without power at any call, twice, by many at once."""

from __future__ import annotations

import os
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from devices.contract import Anchor, Capture
from devices.errors import InputError, StorageError
from ingest.store import Arrival, Store
from tests.ingest.test_files import FORK, in_child

ARRIVAL = Arrival(datetime(2026, 3, 7, 20, 0, 0, 123456, UTC), "serial:/dev/ttyUSB0")


def capture(data: bytes, pump: str = "canonical:A17", **more: Any) -> Capture:
    return Capture(data=data, family=pump.partition(":")[0], pump_id=pump, **more)


ANCHORS = st.builds(
    Anchor,
    pump_clock=st.datetimes(),
    utc=st.datetimes(timezones=st.just(UTC)),
    round_trip_ms=st.none() | st.integers(0, 2**40),
    after=st.none() | st.text(max_size=5),
)
CAPTURES = st.builds(
    Capture,
    data=st.binary(max_size=40),
    family=st.sampled_from(["canonical", "paradigm"]),
    pump_id=st.sampled_from(["canonical:A17", "paradigm:123456", "pcd:\x00ä"]),
    model=st.none() | st.text(max_size=5),
    part=st.none() | st.text(max_size=5),
    anchor=st.none() | ANCHORS,
)
ARRIVALS = st.builds(Arrival, received_at=st.datetimes(timezones=st.just(UTC)), via=st.text(max_size=8))


class StoreBesideItsModel(RuleBasedStateMachine):
    """Any history of a store, against a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.folder.name) / "store.sqlite")
        self.kept: dict[str, tuple[Capture, Arrival]] = {}
        self.dropped: set[str] = set()

    @rule(batch=st.lists(st.tuples(CAPTURES, ARRIVALS), max_size=4))
    def append(self, batch: list[tuple[Capture, Arrival]]) -> None:
        assert self.store.append(batch) == [given.sha256 for given, _ in batch]
        for given_capture, arrival in batch:
            self.kept.setdefault(given_capture.sha256, (given_capture, arrival))

    @rule(data=st.data())
    def append_again(self, data: st.DataObject) -> None:
        if self.kept:
            self.append([data.draw(st.sampled_from(list(self.kept.values())))])

    @rule(payload=st.binary(max_size=9), why=st.text(max_size=9), arrival=ARRIVALS)
    def refuse(self, payload: bytes, why: str, arrival: Arrival) -> None:
        sha = self.store.refuse(payload, why, arrival)
        self.kept.setdefault(sha, (Capture(data=payload, family="", pump_id=""), Arrival(arrival.received_at, arrival.via, why)))

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if self.kept:
            gone = data.draw(st.sets(st.sampled_from(list(self.kept))))
            self.store.drop([*gone, "nothing with this hash"])
            self.dropped |= gone

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store(self.store.path)

    @invariant()
    def holds_what_it_must(self) -> None:
        assert list(self.store.pending()) == [pair for sha, pair in self.kept.items() if sha not in self.dropped]
        mine = {sha: given for sha, (given, arrival) in self.kept.items() if arrival.refused is None}
        assert self.store.pumps() == sorted({given.pump_id for given in mine.values()})
        for pump in ["canonical:A17", "paradigm:123456", "pcd:\x00ä", ""]:
            heads = self.store.heads(pump)
            assert [head.sha256 for head in heads] == [sha for sha, given in mine.items() if given.pump_id == pump]
            for head in heads:
                given_capture = mine[head.sha256]
                assert head.size == len(given_capture.data)
                assert (head.family, head.model, head.part) == (given_capture.family, given_capture.model, given_capture.part)
        assert all(self.store.has(sha) for sha in self.kept)
        assert not self.store.has("0" * 64)

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()


TestAnyHistoryOfAStore = StoreBesideItsModel.TestCase
TestAnyHistoryOfAStore.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)


def test_the_first_arrival_stands_to_the_millisecond(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        store.append([(capture(b"a"), ARRIVAL), (capture(b"a"), Arrival(ARRIVAL.received_at + timedelta(days=1), "file:x"))])
        assert [arrival for _, arrival in store.pending()] == [Arrival(datetime(2026, 3, 7, 20, 0, 0, 123000, UTC), "serial:/dev/ttyUSB0")]
    with pytest.raises(ValueError, match="time zone"):
        Arrival(datetime(2026, 3, 7), "x")


_CLOCK = datetime(2026, 3, 7, 20)
_UTC = datetime(2026, 3, 7, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    "bad",
    [
        capture(b"x", anchor=Anchor(pump_clock=_CLOCK, utc=_CLOCK)),
        capture(b"x", anchor=Anchor(pump_clock=_UTC, utc=_UTC)),
        capture(b"x", anchor=Anchor(pump_clock=_CLOCK, utc=_UTC.astimezone(timezone(timedelta(hours=1))))),
        capture(b"x", anchor=Anchor(pump_clock=_CLOCK, utc=_UTC, round_trip_ms=-1)),
        capture(b"x", anchor=Anchor(pump_clock=_CLOCK, utc=_UTC, round_trip_ms=2**63)),
        capture(b"x", model="\ud800"),
        Capture(data=b"x", family="", pump_id=""),
    ],
)
def test_what_is_no_capture_by_the_contract_is_refused_with_the_whole_batch(tmp_path: Path, bad: Capture) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        with pytest.raises(InputError):
            store.append([(capture(b"good"), ARRIVAL), (bad, ARRIVAL)])
        assert list(store.pending()) == []


def test_pending_gives_what_was_there_when_it_began_while_others_append_and_drop(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        store.append((capture(bytes([n])), ARRIVAL) for n in range(5))
        seen = []
        for given_capture, _ in store.pending():
            seen.append(given_capture.data)
            store.drop([given_capture.sha256])
            store.append([(capture(given_capture.data + b"later"), ARRIVAL)])
        assert seen == [bytes([n]) for n in range(5)]
        assert len(list(store.pending())) == 5


# Files that are no store


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE notes (text TEXT)")
    db.close()


def of_another_version(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()


def text(path: Path) -> None:
    path.write_text("once upon a time " * 1000)


def truncated(path: Path) -> None:
    with Store(path) as store:
        store.append([(capture(bytes(50_000)), ARRIVAL)])
    os.truncate(path, 5000)


def folder(path: Path) -> None:
    path.mkdir()


def use(path: Path) -> None:
    with Store(path) as store:
        list(store.pending())
        store.append([(capture(b"x"), ARRIVAL)])


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (foreign, "foreign_store"),
        (of_another_version, "store_version"),
        (text, "damaged"),
        (truncated, "damaged"),
        (folder, "not_writable"),
    ],
)
def test_a_file_that_is_no_store_says_what_to_do_and_is_left_alone(tmp_path: Path, make: Callable[[Path], None], code: str) -> None:
    path = tmp_path / "s.sqlite"
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(StorageError) as raised:
        use(path)
    assert raised.value.code == code
    assert raised.value.do
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_a_missing_folder_and_a_closed_store_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as raised:
        Store(tmp_path / "absent" / "s.sqlite")
    assert raised.value.code == "not_writable"
    store = Store(tmp_path / "s.sqlite")
    store.close()
    with pytest.raises(StorageError) as raised:
        store.pumps()
    assert raised.value.code == "closed"


def test_bytes_that_changed_in_the_file_are_never_handed_out(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with Store(path) as store:
        store.append([(capture(b"true bytes"), ARRIVAL)])
    with sqlite3.connect(path) as db:
        db.execute("UPDATE payloads SET data = x'00'")
    db.close()
    with Store(path) as store, pytest.raises(StorageError) as raised:
        list(store.pending())
    assert raised.value.code == "damaged"


# Many at once


def append_many(path: Path, who: int) -> None:
    with Store(path) as store:
        for n in range(15):
            store.append([(capture(b"shared %d" % n), ARRIVAL), (capture(b"%d of %d" % (n, who)), ARRIVAL)])


def test_processes_and_threads_append_at_once_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    children = [FORK.Process(target=append_many, args=(path, who)) for who in range(3)]
    for child in children:
        child.start()
    with Store(path) as store:
        threads = [threading.Thread(target=lambda who=who: store.append([(capture(b"%d" % who), ARRIVAL)])) for who in range(100, 108)]
        for thread in threads:
            thread.start()
        for worker in [*threads, *children]:
            worker.join()
        assert [child.exitcode for child in children] == [0, 0, 0]
        assert len(list(store.pending())) == 15 + 3 * 15 + 8


def test_a_store_whose_writer_never_ends_is_busy(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with Store(path, busy_timeout_s=0.05) as store:
        other = apsw.Connection(str(path))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError) as raised:
            store.append([(capture(b"x"), ARRIVAL)])
        assert raised.value.code == "busy"
        other.execute("ROLLBACK")
        assert store.append([(capture(b"x"), ARRIVAL)])
        other.close()


# Every call that SQLite makes, through a VFS of our own

BATCHES = [[b"one", b"two" * 3000], [b"three"], [b"one", b"four"]]


class Disk(apsw.VFS):
    """The disk as SQLite sees it: the n-th write, sync, truncate or delete is the last one, or fails."""

    def __init__(self, number: int, how: str) -> None:
        self.number, self.how, self.calls = number, how, 0
        self.undo: dict[str, list[Callable[[], Any]]] = {}
        super().__init__("disk", "unix", makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return DiskFile(self, name, flags)

    def xDelete(self, name: str, sync: bool) -> None:
        self.call()
        super().xDelete(name, sync)

    def call(self, cut: Callable[[], Any] = lambda: None) -> None:
        self.calls += 1
        if self.calls != self.number:
            return
        if self.how == "fail":
            raise apsw.IOError("injected")
        if self.how == "full":
            raise apsw.FullError("injected")
        if self.how == "cut":
            cut()
        if self.how == "power":
            for steps in self.undo.values():
                for step in reversed(steps):
                    step()
        os.kill(os.getpid(), signal.SIGKILL)


class DiskFile(apsw.VFSFile):
    """A file that remembers what it held before the writes that no sync made durable."""

    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self.disk, self.key = disk, os.fsdecode(name.filename()) if isinstance(name, apsw.URIFilename) else str(name)
        super().__init__("unix", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        self.disk.call(lambda: super(DiskFile, self).xWrite(data[: len(data) // 2], offset))
        size = super().xFileSize()
        old = super().xRead(min(len(data), max(0, size - offset)), offset) if offset < size else b""

        def undo() -> None:
            if old:
                super(DiskFile, self).xWrite(old, offset)
            super(DiskFile, self).xTruncate(size)

        self.disk.undo.setdefault(self.key, []).append(undo)
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:
        self.disk.call()
        super().xTruncate(size)

    def xSync(self, flags: int) -> None:
        self.disk.call()
        super().xSync(flags)
        self.disk.undo[self.key] = []


def live(path: Path, log: Path, number: int, how: str) -> None:
    """The life of a store on such a disk; what it acknowledged is in the log. Exits 3 where SQLite told an error, 0 at the end."""
    disk = Disk(number, how)
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    failed = False
    try:
        with Store(path) as store:
            for batch in BATCHES:
                try:
                    for sha in store.append((capture(data), ARRIVAL) for data in batch):
                        os.write(said, f"+{sha}\n".encode())
                except StorageError:
                    failed = True
            os.write(said, f"?{capture(b'one').sha256}\n".encode())
            store.drop([capture(b"one").sha256])
    except StorageError:
        failed = True
    (log.parent / "calls").write_text(str(disk.calls))
    raise SystemExit(3 if failed else 0)


def check_life(path: Path, log: Path) -> None:
    lines = log.read_text().splitlines() if log.exists() else []
    receipts = {line[1:] for line in lines if line[0] == "+"}
    maybe_dropped = {line[1:] for line in lines if line[0] == "?"}
    with Store(path) as store:
        held = {given.sha256 for given, _ in store.pending()}
        assert all(store.has(sha) for sha in receipts), "a receipt for what is not there"
        assert receipts - maybe_dropped <= held, "a receipt for bytes that are not there"
        for batch in BATCHES:
            assert len({store.has(capture(data).sha256) for data in batch if data != b"one"}) == 1, "half a batch"
        for batch in BATCHES:
            store.append((capture(data), ARRIVAL) for data in batch)
        assert sorted(head.sha256 for head in store.heads("canonical:A17")) == sorted(
            {capture(data).sha256 for batch in BATCHES for data in batch}
        )


@pytest.mark.parametrize("how", ["kill", "cut", "power", "fail", "full"])
def test_a_receipt_holds_whatever_the_last_call_of_the_disk_was(tmp_path: Path, how: str) -> None:
    assert in_child(live, tmp_path / "dry.sqlite", tmp_path / "dry.log", 0, how) == 0
    calls = int((tmp_path / "calls").read_text())
    assert calls > 40
    ends = set()
    for number in range(1, calls + 1):
        path, log = tmp_path / f"{number}.sqlite", tmp_path / f"{number}.log"
        ends.add(in_child(live, path, log, number, how))
        check_life(path, log)
    assert ends <= ({-signal.SIGKILL} if how in ("kill", "cut", "power") else {3, 0})
    assert ends & {-signal.SIGKILL, 3}


def append_for_ever(path: Path, log: Path) -> None:
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with Store(path) as store:
        for n in range(1_000_000):
            for sha in store.append([(capture(b"%d" % n), ARRIVAL), (capture(b"and %d" % n), ARRIVAL)]):
                os.write(said, f"{sha}\n".encode())


def test_a_kill_at_any_moment_loses_no_receipt(tmp_path: Path) -> None:
    path, log = tmp_path / "s.sqlite", tmp_path / "log"
    for round_ in range(12):
        child = FORK.Process(target=append_for_ever, args=(path, log))
        child.start()
        time.sleep(0.05 + 0.013 * round_)
        child.kill()
        child.join()
    receipts = [line for line in log.read_text().splitlines() if len(line) == 64]
    assert receipts
    with Store(path) as store:
        held = {given.sha256 for given, _ in store.pending()}
        assert set(receipts) <= held
        assert len(held) % 2 == 0
