"""The one module through which files are written, SQLite's apart (`ingest.store`).

A file appears under its name whole and durable, or not at all: its bytes go to a hidden `.part` file beside it, are fsynced, and
are then linked to the name, which fails where the name is taken. That is what an object store does with a conditional put, so
nothing in the lake needs a rename. What a killed run leaves is a `.part` file that no glob of `*.parquet` sees.

`seam` is called with ("before …" or "after …", path) around every single call that changes the disk: tests fail, cut or kill there.
An OSError becomes a StorageError that says what to do; FileExistsError of `create` alone passes through.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from devices.errors import StorageError

seam: Callable[[str, Path], None] | None = None

PART = ".part"


def create(path: Path, data: bytes, *, private: bool = False) -> None:
    """Writes a file that was not there, durable when this returns; one that is private nobody but its user may read.

    Raises FileExistsError where the name is taken, StorageError.
    """
    part = _part(path, data, 0o600 if private else 0o666)
    try:
        with _step("link", path):
            os.link(part, path)
    finally:
        with _step("remove", part):
            part.unlink()
    _sync_folder(path.parent)


def put(path: Path, data: bytes) -> bool:
    """As `create`, for names that are made of content: what is there already is left, what differs was damaged and is mended.

    Gives whether anything was written. Raises StorageError.
    """
    present = _read_if_there(path)
    if present == data:
        return False
    if present is not None:
        remove(path)
    try:
        create(path, data)
    except FileExistsError:
        return False
    return True


def replace(path: Path, data: bytes) -> None:
    """Writes a person's file (settings, an export), over the old one if there is one; never lake data. Raises StorageError.

    A device, a pipe, or a link in /dev such as /dev/stdout is written to, and stays what it is.
    """
    if (path.is_symlink() and path.parts[:2] in (("/", "dev"), ("/", "proc"))) or (path.exists() and not path.is_file()):
        with _step("write", path), path.open("ab", buffering=0) as stream:
            rest = memoryview(data)
            while rest:
                rest = rest[stream.write(rest) :]
        return
    part = _part(path, data)
    with _step("replace", path):
        part.replace(path)
    _sync_folder(path.parent)


def replace_text(path: Path, text: str) -> None:
    """As `replace`, for text: UTF-8, line ends as they are."""
    replace(path, text.encode())


def listed(folder: Path, pattern: str) -> list[Path]:
    """What a folder holds whose name matches, sorted; nothing where there is no folder. Raises StorageError.

    `Path.glob` takes a folder that this user may not read for an empty one: what it holds would be missing, and nobody told.
    """
    try:
        names = os.listdir(folder)  # noqa: PTH208 - the names are enough
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise storage_error(folder, error) from error
    return sorted(folder / name for name in names if fnmatchcase(name, pattern))


def remove(path: Path) -> None:
    """Removes a file; one that is not there is removed already. Raises StorageError."""
    with _step("remove", path):
        path.unlink(missing_ok=True)


def write_table(folder: Path, table: pa.Table) -> str:
    """Writes a table as `<SHA-256 of the file>.parquet` into a folder, and gives the hash. Raises StorageError."""
    data = parquet(table)
    sha = hashlib.sha256(data).hexdigest()
    put(folder / f"{sha}.parquet", data)
    return sha


def parquet(table: pa.Table) -> bytes:
    """The Parquet file of a table: equal rows of equal types give equal bytes, however the table came about.

    zstd 1, dictionaries for strings, DELTA_BINARY_PACKED for integers and times (docs/design.md §6), no metadata of pandas or of
    the readers the table went through.
    """
    schema = pa.schema([_plain(field) for field in table.schema])
    table = table.replace_schema_metadata(None).cast(schema).combine_chunks()
    strings: list[str] = []
    packed: dict[str, str] = {}
    for field in schema:
        for path, leaf in _leaves(field.name, field.type):
            if pa.types.is_string(leaf) or pa.types.is_large_string(leaf):
                strings.append(path)
            elif pa.types.is_integer(leaf) or (pa.types.is_temporal(leaf) and not pa.types.is_interval(leaf)):
                packed[path] = "DELTA_BINARY_PACKED"
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        version="2.6",
        compression="zstd",
        compression_level=1,
        use_dictionary=strings or False,
        column_encoding=packed or None,
        row_group_size=256 * 1024,
    )
    return sink.getvalue()


@contextmanager
def locked(path: Path, busy: StorageError) -> Iterator[None]:
    """Holds the lock that this file stands for; it ends with the process at the latest. Raises `busy` where another holds it."""
    _make_folder(path.parent)
    with _step("lock", path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        yield
    finally:
        os.close(handle)


def _part(path: Path, data: bytes, mode: int = 0o666) -> Path:
    """Writes the hidden file that is to become `path`, and gives its name."""
    _make_folder(path.parent)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        with _step("open", part):
            handle = os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb", buffering=0)
        with handle:
            with _step("write", part):
                rest = memoryview(data)
                while rest:
                    rest = rest[handle.write(rest) :]
            with _step("sync", part):
                os.fsync(handle.fileno())
    except StorageError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    return part


def _make_folder(folder: Path) -> None:
    """Makes a folder and those above it, durably."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with _step("folder", folder):
        folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    with _step("sync", folder):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _read_if_there(path: Path) -> bytes | None:
    with _step("read", path):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


@contextmanager
def _step(operation: str, path: Path) -> Iterator[None]:
    """One call that touches the disk: tells the seam before and after, and makes an OSError a StorageError."""
    try:
        if seam:
            seam(f"before {operation}", path)
        yield
        if seam:
            seam(f"after {operation}", path)
    except FileExistsError:
        raise
    except OSError as error:
        raise storage_error(path, error) from error


def storage_error(path: Path, error: OSError) -> StorageError:
    """What a person can do about an OSError at this path."""
    why = f"The system says: {error.strerror or error}."
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return StorageError(
                f"There is no room left for {path}.", why=why, do="Free some space and run it again; nothing was lost.", code="disk_full"
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return StorageError(
                f"{path} cannot be read or written by this user.",
                why=why,
                do="Give this user the right to read and write there (a file system without hard links cannot hold a lake), "
                "and run it again.",
                code="not_writable",
            )
        case _:
            return StorageError(f"{path} cannot be read or written.", why=why, do="Check the disk, and run it again.", code="io")


def _plain(field: pa.Field) -> pa.Field:
    """The field without metadata, and with the one name for list elements that Parquet readers give back."""
    return pa.field(field.name, _plain_type(field.type), nullable=field.nullable)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(kind):
        return pa.struct([_plain(kind.field(i)) for i in range(kind.num_fields)])
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_field).with_name("element"))
    return kind


def _leaves(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """(Parquet column path, type) of what a column consists of."""
    if pa.types.is_struct(kind):
        for i in range(kind.num_fields):
            yield from _leaves(f"{path}.{kind.field(i).name}", kind.field(i).type)
    elif pa.types.is_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    else:
        yield path, kind
