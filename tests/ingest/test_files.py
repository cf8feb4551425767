"""Files appear whole and durable or not at all, whatever call fails or is the last one."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import resource
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.errors import StorageError
from ingest import files

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["tests.ingest.test_files", "tests.ingest.test_store", "tests.ingest.test_lake"])


def in_child(target: Callable[..., None], *arguments: Any) -> int:
    """Runs a function in a process of its own and gives its exit code; below zero is the signal that ended it."""
    child = FORK.Process(target=target, args=arguments)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


@contextmanager
def at_call(number: int, act: Callable[[str, Path], None]) -> Iterator[list[str]]:
    """Acts at the n-th call of the seam (never for 0), and gives the list of all calls."""
    calls: list[str] = []

    def seam(operation: str, path: Path) -> None:
        calls.append(operation)
        if len(calls) == number:
            act(operation, path)

    files.seam = seam
    try:
        yield calls
    finally:
        files.seam = None


def kill(_operation: str = "", _path: Path = Path()) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def cut_and_kill(operation: str, path: Path) -> None:
    """A file of which only the first half arrived, and then no process any more."""
    if path.suffix == files.PART and operation in ("after write", "before sync"):
        os.truncate(path, path.stat().st_size // 2)
    kill()


def disk_full(_operation: str, _path: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def forbidden(_operation: str, _path: Path) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(files.PART))


def count_calls(work: Callable[[], None]) -> int:
    with at_call(0, kill) as calls:
        work()
    return len(calls)


def test_create_writes_once_and_never_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "a.json"
    files.create(path, b"one")
    with pytest.raises(FileExistsError):
        files.create(path, b"two")
    assert path.read_bytes() == b"one"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


def test_put_leaves_what_is_there_and_mends_what_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert files.put(path, b"content")
    inode = path.stat().st_ino
    assert not files.put(path, b"content")
    assert path.stat().st_ino == inode
    path.write_bytes(b"cont")
    assert files.put(path, b"content")
    assert path.read_bytes() == b"content"


def test_replace_and_remove(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    files.replace_text(path, "a = 'ä'\n")
    files.replace(path, b"b = 2\n")
    assert path.read_bytes() == b"b = 2\n"
    assert visible(tmp_path) == ["settings.toml"]
    files.remove(path)
    files.remove(path)
    assert visible(tmp_path) == []


def create_killed(path: Path, number: int, cut: bool) -> None:
    with at_call(number, cut_and_kill if cut else kill):
        files.create(path, b"0123456789" * 1000)


@pytest.mark.parametrize("cut", [False, True])
def test_a_process_killed_at_any_call_leaves_the_whole_file_or_none(tmp_path: Path, cut: bool) -> None:
    calls = count_calls(lambda: files.create(tmp_path / "dry" / "a.bin", b"x"))
    assert calls >= 16
    seen = set()
    for number in range(1, calls + 1):
        path = tmp_path / str(number) / "a.bin"
        assert in_child(create_killed, path, number, cut) == -signal.SIGKILL
        seen.add(path.exists())
        if path.exists():
            assert path.read_bytes() == b"0123456789" * 1000
        files.put(path, b"0123456789" * 1000)
        assert visible(path.parent) == ["a.bin"]
        assert path.read_bytes() == b"0123456789" * 1000
    assert seen == {False, True}


class Power:
    """Knows what reached the disk: what `os.fsync` was called for. When the power goes, nothing else is left."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.whole: set[int] = set()
        self.entries = {root.stat().st_ino: {entry.name for entry in root.iterdir()}}
        self.fsync = os.fsync
        os.fsync = self.sync  # type: ignore[assignment]

    def sync(self, handle: int) -> None:
        self.fsync(handle)
        inode = os.fstat(handle).st_ino
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            self.entries[inode] = set(os.listdir(handle))
        else:
            self.whole.add(inode)

    def fail(self, _operation: str = "", _path: Path = Path()) -> None:
        for folder, _, names in os.walk(self.root, topdown=False):
            kept = self.entries.get(Path(folder).stat().st_ino, set())
            for entry in Path(folder).iterdir():
                if entry.name not in kept:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
                elif entry.name in names and entry.stat().st_ino not in self.whole:
                    os.truncate(entry, 0)
        kill()


def create_without_power(root: Path, number: int) -> None:
    power = Power(root)
    with at_call(number, power.fail):
        files.create(root / "deep" / "down" / "a.bin", b"data")
    power.fail()


def test_what_create_returned_for_outlives_the_power(tmp_path: Path) -> None:
    calls = count_calls(lambda: files.create(tmp_path / "dry" / "down" / "a.bin", b"data"))
    for number in range(1, calls + 2):
        root = tmp_path / str(number)
        root.mkdir()
        assert in_child(create_without_power, root, number) == -signal.SIGKILL
        path = root / "deep" / "down" / "a.bin"
        assert path.exists() or number <= calls
        assert not path.exists() or path.read_bytes() == b"data"


@pytest.mark.parametrize(("act", "code"), [(disk_full, "disk_full"), (forbidden, "not_writable")])
@pytest.mark.parametrize("work", [files.create, files.put, files.replace])
def test_an_error_at_any_call_says_what_to_do_and_a_second_try_heals(
    tmp_path: Path, work: Callable[[Path, bytes], Any], act: Callable[[str, Path], None], code: str
) -> None:
    calls = count_calls(lambda: work(tmp_path / "dry" / "a", b"data"))
    for number in range(1, calls + 1):
        path = tmp_path / str(number) / "a"
        with at_call(number, act), pytest.raises(StorageError) as raised:
            work(path, b"data")
        assert raised.value.code == code
        assert raised.value.do
        assert not path.exists() or path.read_bytes() == b"data"
        files.put(path, b"data")
        assert visible(path.parent) == ["a"]


def write_too_much(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        files.create(path, bytes(10_000))
    except StorageError as error:
        raise SystemExit(40 if error.code == "disk_full" else 41) from None


def test_a_write_that_the_system_cuts_short_leaves_nothing(tmp_path: Path) -> None:
    assert in_child(write_too_much, tmp_path / "big.bin") == 40
    assert list(tmp_path.iterdir()) == []


LEDGER = pa.list_(pa.struct([("session_id", pa.string()), ("from", pa.timestamp("ms", "UTC")), ("seconds", pa.int64())]))
SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("count", pa.int32()),
        pa.field("time", pa.timestamp("ms", "UTC")),
        pa.field("rate", pa.float64()),
        pa.field("raw", pa.binary()),
        pa.field("flag", pa.bool_()),
        pa.field("ledger", LEDGER),
        pa.field("flags", pa.list_(pa.string())),
    ]
)
_moment = st.integers(-(2**40), 2**41)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.text(max_size=4),
            "count": st.none() | st.integers(-(2**31), 2**31 - 1),
            "time": st.none() | _moment,
            "rate": st.none() | st.floats(allow_nan=False),
            "raw": st.none() | st.binary(max_size=6),
            "flag": st.none() | st.booleans(),
            "ledger": st.none()
            | st.lists(
                st.fixed_dictionaries(
                    {"session_id": st.none() | st.text(max_size=2), "from": _moment, "seconds": st.none() | st.integers(0, 99)}
                ),
                max_size=2,
            ),
            "flags": st.none() | st.lists(st.text(max_size=3), max_size=2),
        }
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, cut=st.integers(0, 8))
def test_equal_rows_are_equal_bytes_however_the_table_came_about(rows: list[dict[str, Any]], cut: int) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    data = files.parquet(table)
    back = pq.ParquetFile(io.BytesIO(data)).read()
    assert back.cast(SCHEMA).equals(table)
    chunked = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    padded = pa.Table.from_pylist(rows[:1] * 3 + rows, schema=SCHEMA).slice(3 * len(rows[:1]))
    annotated = table.replace_schema_metadata({"pandas": "{}"})
    encoded = table.set_column(
        0, pa.field("name", pa.dictionary(pa.int32(), pa.string()), nullable=False), table["name"].dictionary_encode()
    )
    for other in (back, chunked, padded, annotated, encoded):
        assert files.parquet(other) == data


def test_a_parquet_file_is_zstd_with_packed_integers_and_dictionaries_for_strings(tmp_path: Path) -> None:
    rows = [
        {"name": "a", "count": n, "time": n, "ledger": [{"session_id": "s", "from": n, "seconds": n}], "flags": ["f"]} for n in range(50)
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    sha = files.write_table(tmp_path, table)
    assert files.write_table(tmp_path, table) == sha
    assert visible(tmp_path) == [f"{sha}.parquet"]
    about = pq.ParquetFile(tmp_path / f"{sha}.parquet").metadata
    assert b"pandas" not in about.metadata
    columns = [about.row_group(0).column(i) for i in range(about.num_columns)]
    assert {column.compression for column in columns} == {"ZSTD"}
    packed = {column.path_in_schema for column in columns if "DELTA_BINARY_PACKED" in column.encodings}
    assert packed == {"count", "time", "ledger.list.element.from", "ledger.list.element.seconds"}
    words = {column.path_in_schema for column in columns if "RLE_DICTIONARY" in column.encodings}
    assert words == {"name", "ledger.list.element.session_id", "flags.list.element"}
