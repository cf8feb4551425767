"""The lake publishes whole or not at all, loses nothing and doubles nothing: killed at any call, at any moment, with a full disk."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.contract import Capture
from devices.errors import StorageError
from ingest import files
from ingest.lake import RAW, RAW_SCHEMA, Lake, captures, months_of, raw_table
from ingest.store import Arrival, Store
from tests.ingest.test_files import FORK, at_call, disk_full, forbidden, in_child, kill
from tests.ingest.test_store import ARRIVAL, ARRIVALS, CAPTURES, capture

STAGE = "consolidate"
EVENTS = pa.schema([pa.field("event_id", pa.string(), nullable=False), pa.field("size", pa.int64(), nullable=False)])
DAYS = pa.schema([pa.field("date", pa.date32())])


def events(*ids: str) -> pa.Table:
    return pa.table({"event_id": list(ids), "size": range(len(ids))}, schema=EVENTS)


def on_disk(root: Path, table: str) -> dict[str, bytes]:
    """Every file of a table as a plain glob finds it."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted((root / table).glob("**/*.parquet"))}


def glob(root: Path, table: str, column: str) -> list[str]:
    """What a reader without manifests sees in a column, sorted."""
    found = list((root / table).glob("**/*.parquet"))
    return sorted(ds.dataset(found).to_table(columns=[column])[column].to_pylist()) if found else []


# Making and finding a lake


def test_a_lake_is_made_once_and_found_again(tmp_path: Path) -> None:
    made = Lake.create(tmp_path / "lake", buckets=4)
    assert (made.buckets, Lake.open(made.root).buckets) == (4, 4)
    with pytest.raises(StorageError) as raised:
        Lake.create(made.root)
    assert raised.value.code == "lake_exists"


@pytest.mark.parametrize("buckets", [0, 3, -8, 2048])
def test_buckets_are_a_power_of_two(tmp_path: Path, buckets: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        Lake.create(tmp_path, buckets)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "no_lake"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format": 1}', "damaged"),
        ('{"format": 2, "buckets": 8}', "lake_format"),
        ('{"format": 1, "buckets": 7}', "damaged"),
    ],
)
def test_what_is_no_lake_says_what_to_do(tmp_path: Path, content: str | None, code: str) -> None:
    if content is not None:
        (tmp_path / "manifests").mkdir()
        (tmp_path / "manifests" / "lake.json").write_text(content)
    with pytest.raises(StorageError) as raised:
        Lake.open(tmp_path)
    assert raised.value.code == code
    assert raised.value.do


def test_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with at_call(1, forbidden), pytest.raises(StorageError) as raised:
        Lake.create(tmp_path / "lake")
    assert raised.value.code == "not_writable"


def test_the_bucket_of_a_pump_is_the_same_for_ever(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path, buckets=8)
    assert [lake.bucket_of(key) for key in ("paradigm:123456", "canonical:A17", "P-1", "")] == [5, 0, 6, 4]
    counts = [0] * 8
    for n in range(4000):
        counts[lake.bucket_of(f"canonical:{n}")] += 1
    assert all(400 < count < 600 for count in counts)


# Captures


@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(st.tuples(CAPTURES, ARRIVALS), max_size=4))
def test_captures_come_back_from_raw_with_the_same_hash(pairs: list[tuple[Capture, Arrival]]) -> None:
    refused = (Capture(data=b"?", family="", pump_id=""), Arrival(ARRIVAL.received_at, "mqtt:gw1", "no JSON"))
    table = raw_table([*pairs, refused])
    assert table.schema.equals(RAW_SCHEMA)
    with tempfile.TemporaryDirectory() as folder:
        sha = files.write_table(Path(folder), table)
        back = pq.ParquetFile(Path(folder) / f"{sha}.parquet").read().cast(RAW_SCHEMA)
    assert captures(back) == [given_capture for given_capture, _ in pairs]
    assert [given_capture.sha256 for given_capture in captures(back)] == table["sha256"].to_pylist()[:-1]
    assert back["refused"].to_pylist() == [None] * len(pairs) + ["no JSON"]
    assert back["received_at"].to_pylist() == [arrival.received_at for _, arrival in [*pairs, refused]]


def raw_of(*data: bytes, pump: str = "canonical:A17") -> pa.Table:
    return raw_table([(capture(one, pump), ARRIVAL) for one in data])


def test_raw_grows_by_what_is_new_and_its_chain_says_so(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path)
    assert (lake.raw_chain(3), lake.raw_hashes(3), lake.raw(3).num_rows) == ("", set(), 0)
    assert lake.append(RAW, 3, raw_of(), "2026-03") is None
    first = lake.append(RAW, 3, raw_of(b"a", b"b", b"a"), "2026-03")
    assert first
    assert lake.raw_chain(3) == first.sha256
    second = lake.append(RAW, 3, raw_of(b"b", b"c", pump="canonical:A17"), "2026-04")
    assert second
    assert (second.number, second.previous) == (2, first.sha256)
    assert lake.append(RAW, 3, raw_of(b"c", b"a"), "2026-04") == second
    lake.append(RAW, 3, raw_of(b"d", pump="canonical:B"), "2026-04")
    assert lake.raw(3)["data"].to_pylist() == [b"a", b"b", b"c", b"d"]
    assert lake.raw(3, pumps=["canonical:B", "canonical:none"])["data"].to_pylist() == [b"d"]
    assert lake.raw(3, hashes=[capture(b"a").sha256, capture(b"c").sha256, "none"])["data"].to_pylist() == [b"a", b"c"]
    assert lake.raw(3, hashes=[]).num_rows == lake.raw(2).num_rows == 0
    assert lake.raw_hashes(3) == {capture(one).sha256 for one in (b"a", b"b", b"c")} | {capture(b"d", "canonical:B").sha256}
    assert glob(tmp_path, RAW, "data") == [b"a", b"b", b"c", b"d"]
    assert lake.verify_files() == []


def test_raw_files_whose_manifests_were_lost_are_taken_in_again(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path)
    for data in (b"a", b"b", b"c"):
        lake.append(RAW, 0, raw_of(data), "2026-03")
    (tmp_path / "manifests" / RAW / "bucket=00" / "00000003.json").unlink()
    assert lake.raw(0)["data"].to_pylist() == [b"a", b"b"]
    lake.append(RAW, 0, raw_of(b"d"), "2026-04")
    assert lake.raw(0)["data"].to_pylist() == [b"a", b"b", b"c", b"d"]
    assert glob(tmp_path, RAW, "data") == [b"a", b"b", b"c", b"d"]
    assert lake.verify_files() == []


def test_a_broken_chain_stops_whoever_reads_it(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path)
    for data in (b"a", b"b", b"c"):
        lake.append(RAW, 0, raw_of(data), "2026-03")
    (tmp_path / "manifests" / RAW / "bucket=00" / "00000002.json").unlink()
    with pytest.raises(StorageError) as raised:
        lake.raw(0)
    assert raised.value.code == "chain"
    assert next(problem.code for problem in lake.verify_files()) == "chain"


def test_snapshots_are_kept_by_their_hash(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path)
    sha = lake.snapshot("orders.csv", b"pump_id\n")
    assert lake.snapshot("orders.csv", b"pump_id\n") == sha
    assert (tmp_path / "orders" / f"{sha}.csv").read_bytes() == lake.snapshot_bytes("orders.csv", sha) == b"pump_id\n"
    (tmp_path / "orders" / f"{sha}.csv").write_bytes(b"")
    with pytest.raises(StorageError):
        lake.snapshot_bytes("orders.csv", sha)
    assert [problem.code for problem in lake.verify_files()] == ["changed"]
    for name in ("../orders.csv", "orders", "a/b.csv", "orders.csv/x"):
        with pytest.raises(ValueError, match="snapshot"):
            lake.snapshot(name, b"")


# Stages


def publish(lake: Lake, bucket: int, ids: Iterable[str], inputs: str = "x", month: str = "2026-03") -> Any:
    return lake.publish(
        STAGE, bucket, {"events": events(*ids), "days": DAYS.empty_table()}, {"events": month, "days": "unknown"}, {"raw": inputs}
    )


def test_a_publish_is_the_tables_by_month_in_the_order_given(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path)
    table = events("d", "c", "b", "a")
    lake.publish(STAGE, 1, {"events": table}, {"events": pa.array(["unknown", "2026-04", "2026-03", "2026-04"])}, {})
    publish(lake, 0, ["z"])
    assert lake.read("events", EVENTS)["event_id"].to_pylist() == ["z", "b", "c", "a", "d"]
    assert lake.read("events", EVENTS, buckets=[1], months=["2026-04", "unknown"], columns=["size"])["size"].to_pylist() == [1, 3, 0]
    assert lake.read("days", DAYS).schema.equals(DAYS)
    assert lake.read("lines", EVENTS, columns=["size"]).schema.names == ["size"]
    assert pq.ParquetFile(next(tmp_path.glob("events/month=unknown/bucket=01/*.parquet"))).schema_arrow.names == EVENTS.names
    with pytest.raises(StorageError) as raised:
        lake.read("events", DAYS)
    assert raised.value.code == "other_columns"


def test_an_equal_publish_creates_nothing_and_another_supersedes(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path)
    first = publish(lake, 0, ["a"])
    assert publish(lake, 0, ["a"]) == first == lake.current(STAGE, 0)
    assert publish(lake, 0, ["a"], inputs="y").number == 2
    for number, ids in enumerate((["a", "b"], [], ["c"]), start=3):
        assert publish(lake, 0, ids).number == number
        assert lake.read("events", EVENTS)["event_id"].to_pylist() == ids == glob(tmp_path, "events", "event_id")
        assert sorted(path.name for path in (tmp_path / "manifests" / STAGE / "bucket=00").iterdir()) == [
            f"{number - 1:08d}.json",
            f"{number:08d}.json",
        ]
    assert lake.verify_files() == []


def test_months_are_checked_and_tables_belong_to_one_stage(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path)
    publish(lake, 0, ["a"])
    lake.append(RAW, 0, raw_of(b"a"), "2026-03")
    wrong: list[tuple[str, Any]] = [
        (STAGE, "2026-3"),
        (STAGE, "../x"),
        (STAGE, pa.array(["2026-03"] * 2)),
        ("bill", "2026-03"),
        (RAW, "2026-03"),
    ]
    for stage, month in wrong:
        with pytest.raises(ValueError, match=r"month|stage|input"):
            lake.publish(stage, 0, {"events": events("b")}, {"events": month}, {})
    with pytest.raises(ValueError, match="stage"):
        lake.publish("../x", 0, {}, {}, {})
    assert lake.read("events", EVENTS)["event_id"].to_pylist() == ["a"]


def test_months_of_times() -> None:
    times = pa.chunked_array(
        [pa.array([datetime(2026, 3, 31, 23, 59, tzinfo=UTC), None, datetime(1, 1, 1, tzinfo=UTC)], pa.timestamp("ms", "UTC"))]
    )
    assert months_of(times).to_pylist() == ["2026-03", "unknown", "0001-01"]
    assert months_of(pa.array([2**47, -(2**47), None], pa.timestamp("ms"))).to_pylist() == ["6429-10", "unknown", "unknown"]
    assert months_of(pa.array([], pa.date32())).to_pylist() == []


STEPS = st.lists(
    st.tuples(
        st.integers(0, 1), st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["2026-03", "2026-04", "unknown"])), max_size=5)
    ),
    max_size=5,
)


@settings(max_examples=20, deadline=None)
@given(history=STEPS, other=STEPS, last=STEPS)
def test_equal_tables_are_equal_files_whatever_was_published_before(history: Any, other: Any, last: Any) -> None:
    found = []
    for steps in ([*history, *last], [*other, *last]):
        with tempfile.TemporaryDirectory() as folder:
            lake = Lake.create(Path(folder), buckets=2)
            for bucket, rows in [*steps, (0, [("a", "2026-03")] * 2), (1, [("f", "unknown")])]:
                months = pa.array([month for _, month in rows], pa.string())
                lake.publish(STAGE, bucket, {"events": events(*(name for name, _ in rows))}, {"events": months}, {})
            for bucket, rows in last:
                months = pa.array([month for _, month in rows], pa.string())
                lake.publish(STAGE, bucket, {"events": events(*(name for name, _ in rows))}, {"events": months}, {})
            assert lake.verify_files() == []
            found.append(on_disk(lake.root, "events"))
    assert found[0] == found[1]


# Damage


def test_verify_tells_what_is_missing_changed_and_unnamed(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path)
    publish(lake, 0, ["a"])
    publish(lake, 1, ["b"])
    publish(lake, 2, ["c"])
    lake.append(RAW, 0, raw_of(b"a"), "2026-03")
    by_bucket = {path.parent.name: path for path in tmp_path.glob("events/**/*.parquet")}
    by_bucket["bucket=00"].unlink()
    by_bucket["bucket=01"].write_bytes(by_bucket["bucket=01"].read_bytes()[:-9])
    shutil.copy(by_bucket["bucket=02"], by_bucket["bucket=02"].with_name("copy.parquet"))
    raw = next(tmp_path.glob("raw/**/*.parquet"))
    raw.write_bytes(raw.read_bytes().replace(b"canonical", b"paradigms"))
    assert sorted((problem.code, problem.path.parent.name) for problem in lake.verify_files()) == [
        ("changed", "bucket=00"),
        ("changed", "bucket=01"),
        ("missing", "bucket=00"),
        ("unnamed", "bucket=02"),
    ]
    for bucket in (0, 1):
        with pytest.raises(StorageError) as raised:
            lake.read("events", EVENTS, buckets=[bucket])
        assert raised.value.code == "damaged"
    publish(lake, 0, ["a"])
    publish(lake, 1, ["b"])
    assert lake.read("events", EVENTS)["event_id"].to_pylist() == ["a", "b", "c"]


def test_a_manifest_that_says_other_rows_and_one_that_is_none_are_told(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path)
    for bucket in (0, 1):
        publish(lake, bucket, ["a"])
    folder = tmp_path / "manifests" / STAGE
    about = json.loads((folder / "bucket=00" / "00000001.json").read_text())
    about["files"][0]["rows"] = 5
    (folder / "bucket=00" / "00000001.json").write_text(json.dumps(about))
    (folder / "bucket=01" / "00000001.json").write_text("[]")
    assert {"rows", "damaged"} <= {problem.code for problem in lake.verify_files()}
    with pytest.raises(StorageError) as raised:
        lake.current(STAGE, 1)
    assert raised.value.code == "damaged"


# One writer, many readers


def hold(root: Path, ready: Any, let_go: Any) -> None:
    with Lake.open(root).lock(STAGE, 0):
        ready.set()
        let_go.wait(30)


def test_a_bucket_has_one_writer_among_processes_and_threads(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path)
    ready, let_go = FORK.Event(), FORK.Event()
    child = FORK.Process(target=hold, args=(tmp_path, ready, let_go))
    child.start()
    assert ready.wait(30)
    with pytest.raises(StorageError) as raised:
        publish(lake, 0, ["a"])
    assert raised.value.code == "busy"
    publish(lake, 1, ["b"])
    child.kill()
    child.join()
    codes = []

    def from_another_thread() -> None:
        try:
            publish(lake, 0, ["x"])
        except StorageError as error:
            codes.append(error.code)

    with lake.lock(STAGE, 0):
        thread = threading.Thread(target=from_another_thread)
        thread.start()
        thread.join()
        publish(lake, 0, ["a"])
    assert codes == ["busy"]
    from_another_thread()
    assert codes == ["busy"]


def test_readers_see_whole_states_while_a_writer_publishes(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path)
    states = [[f"{n}-{i}" for i in range(40)] for n in range(3)]
    publish(lake, 0, states[0])
    reading, wrong, seen = threading.Event(), [], set()

    def read() -> None:
        while not reading.is_set():
            try:
                ids = lake.read("events", EVENTS)["event_id"].to_pylist()
            except BaseException as error:
                wrong.append(error)
                return
            if ids not in states:
                wrong.append(ids)
            seen.add(ids[0])

    thread = threading.Thread(target=read)
    thread.start()
    for n in range(150):
        months = pa.array(["2026-03" if i < 20 else "2026-04" for i in range(40)])
        lake.publish(STAGE, 0, {"events": events(*states[n % 3])}, {"events": months}, {"n": str(n)})
    reading.set()
    thread.join()
    assert wrong == []
    assert len(seen) == 3


# A night that is killed, and one that meets errors


FIRST = [b"a", b"b", b"c", b"d"]
SECOND = [b"e", b"f", b"g", b"h"]


def receive(root: Path, data: list[bytes], more: Callable[[Store], Any] = lambda _: None) -> None:
    with Store(root / "store.sqlite") as store:
        store.append((capture(one, f"canonical:{one[0] % 5}"), ARRIVAL) for one in data)
        more(store)


def night(root: Path) -> None:
    """Drains the store into raw and derives events and days from all of raw."""
    lake = Lake.open(root)
    with Store(root / "store.sqlite") as store:
        waiting = list(store.pending())
        for bucket in range(lake.buckets):
            mine = [pair for pair in waiting if lake.bucket_of(pair[0].pump_id or pair[0].sha256) == bucket]
            table = raw_table(mine)
            lake.append(RAW, bucket, table, months_of(table["received_at"]))
            there = {found.sha256 for found in captures(lake.raw(bucket))} | lake.raw_hashes(bucket)
            store.drop({given_capture.sha256 for given_capture, _ in mine} & there)
    for bucket in range(lake.buckets):
        with lake.lock(STAGE, bucket):
            shas = sorted(lake.raw_hashes(bucket))
            table = events(*shas)
            months = pa.array(["unknown" if sha < "8" else "2026-03" for sha in shas], pa.string())
            lake.publish(
                STAGE,
                bucket,
                {"events": table, "days": DAYS.empty_table()},
                {"events": months, "days": "unknown"},
                {"raw": lake.raw_chain(bucket)},
            )


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake after one night, with captures for the next in the store."""
    root = tmp_path_factory.mktemp("night") / "lake"
    Lake.create(root, buckets=2)
    receive(root, FIRST)
    night(root)
    receive(root, SECOND, lambda store: store.refuse(b"?", "no JSON", ARRIVAL))
    return root


@pytest.fixture(scope="module")
def after(before: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The event files that an undisturbed night gives."""
    root = copy_of(before, tmp_path_factory.mktemp("after") / "lake")
    old = on_disk(root, "events")
    night(root)
    assert {month for month in ("unknown", "2026-03") if f"month={month}" in str(on_disk(root, "events").keys())} == {"unknown", "2026-03"}
    assert on_disk(root, "events") != old
    return on_disk(root, "events")


def copy_of(root: Path, to: Path) -> Path:
    shutil.copytree(root, to)
    return to


def calls_of_a_night(before: Path, folder: Path) -> int:
    with at_call(0, kill) as calls:
        night(copy_of(before, folder / "dry"))
    return len(calls)


def check_disturbed(root: Path, old: set[str], new: set[str]) -> None:
    """Before anything is run again: each bucket is the old state or the new one, and every capture is somewhere."""
    lake = Lake.open(root)
    for bucket in range(2):
        ids = set(lake.read("events", EVENTS, buckets=[bucket])["event_id"].to_pylist())
        mine = {sha for sha in new if sha in ids}
        assert ids == mine
        assert ids & old == {sha for sha in old if lake.bucket_of(pump_of(sha)) == bucket}
        assert ids - old in (set(), {sha for sha in new - old if lake.bucket_of(pump_of(sha)) == bucket})
    with Store(root / "store.sqlite") as store:
        held = {given_capture.sha256 for given_capture, _ in store.pending()}
    assert new <= held | lake.raw_hashes(0) | lake.raw_hashes(1)


BUCKET_KEY = {capture(one, f"canonical:{one[0] % 5}").sha256: f"canonical:{one[0] % 5}" for one in FIRST + SECOND}
REFUSED = Capture(data=b"?", family="", pump_id="").sha256
ALL = {*BUCKET_KEY, REFUSED}


def pump_of(sha: str) -> str:
    return BUCKET_KEY.get(sha, sha)


def check_night(root: Path, after: dict[str, bytes]) -> None:
    """After the night was run again: the same bytes, nothing lost, nothing doubled, nothing left over."""
    lake = Lake.open(root)
    assert on_disk(root, "events") == after
    assert glob(root, RAW, "sha256") == sorted(ALL)
    assert sorted(lake.raw(0)["sha256"].to_pylist() + lake.raw(1)["sha256"].to_pylist()) == sorted(ALL)
    assert [row for bucket in range(2) for row in lake.raw(bucket)["refused"].to_pylist() if row] == ["no JSON"]
    assert lake.verify_files() == []
    with Store(root / "store.sqlite") as store:
        assert list(store.pending()) == []
    assert list(root.rglob(f"*{files.PART}")) == []


def night_killed(root: Path, number: int) -> None:
    with at_call(number, kill):
        night(root)


def test_a_night_killed_at_any_call_and_run_again_is_the_night(before: Path, after: dict[str, bytes], tmp_path: Path) -> None:
    calls = calls_of_a_night(before, tmp_path)
    assert calls > 100
    old = {capture(one, f"canonical:{one[0] % 5}").sha256 for one in FIRST}
    for number in range(1, calls + 1):
        root = copy_of(before, tmp_path / str(number))
        assert in_child(night_killed, root, number) == -signal.SIGKILL
        check_disturbed(root, old, ALL)
        night(root)
        check_night(root, after)
        shutil.rmtree(root)


@pytest.mark.parametrize(("act", "code"), [(disk_full, "disk_full"), (forbidden, "not_writable")])
def test_a_night_that_meets_an_error_at_any_call_and_is_run_again_is_the_night(
    before: Path, after: dict[str, bytes], tmp_path: Path, act: Callable[[str, Path], None], code: str
) -> None:
    for number in range(1, calls_of_a_night(before, tmp_path) + 1, 3 if code == "not_writable" else 1):
        root = copy_of(before, tmp_path / str(number))
        with at_call(number, act), pytest.raises(StorageError) as raised:
            night(root)
        assert raised.value.code == code
        night(root)
        check_night(root, after)
        shutil.rmtree(root)


def test_a_night_killed_at_any_moment_any_number_of_times_is_the_night(before: Path, after: dict[str, bytes], tmp_path: Path) -> None:
    chance = random.Random(7)
    for number in range(12):
        root = copy_of(before, tmp_path / str(number))
        for _ in range(3):
            child = FORK.Process(target=night, args=(root,))
            child.start()
            time.sleep(chance.uniform(0.0, 0.12))
            child.kill()
            child.join()
        night(root)
        check_night(root, after)


@pytest.mark.parametrize("folder", ["bucket=00", "events", "manifests"])
def test_a_folder_that_may_not_be_read_is_not_taken_for_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    lake = Lake.create(tmp_path)
    publish(lake, 0, ["a"])
    listed = os.listdir

    def forbid(path: Path) -> list[str]:
        if Path(path).name == folder:
            raise PermissionError(errno.EACCES, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "listdir", forbid)
    with pytest.raises(StorageError) as raised:
        (lake.lock("events", 0).__enter__ if folder == "events" else lambda: lake.read("events", EVENTS))()
    assert raised.value.code == "not_writable"


def test_a_superseded_manifest_that_is_damaged_stops_nobody(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path)
    publish(lake, 0, ["a"])
    publish(lake, 0, ["b"])
    next(tmp_path.glob("manifests/*/bucket=00/00000001.json")).write_bytes(b"")
    publish(lake, 0, ["c"])
    assert lake.read("events", EVENTS)["event_id"].to_pylist() == ["c"]
    assert len(list(tmp_path.glob("events/**/*.parquet"))) == 1
    assert lake.verify_files() == []
