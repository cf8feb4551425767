"""What billing pulls, into a PostgreSQL database: sessions, set-ups, therapy days, lines and worklist (docs/decisions/0018).

One table each, made by the first export: the columns of `transforms.tables` with their types and what they say, and three more that
tell of the export itself (`_OWN`). An export is one transaction. Each table's rows go by COPY into a temporary table; then rows whose
content differs are changed, rows that are not there are added, and rows that the lake has no more get `withdrawn_at`, which goes again
when they come back. A row that is as it was is not touched. So people may read at any time, a killed export leaves nothing, and
views, grants and further columns of the agency's own stay.

A filtered export looks at what the filter holds, in the lake or in the database: a line that was ready there and is held here is
changed, not withdrawn. Tables that do not have what is filtered by stay as they are.

    string → text      bool → boolean    int32, int64 → integer, bigint    float64 → double precision    binary → bytea
    date32 → date      timestamp → timestamp or, in UTC, timestamptz       list → array of these        struct, list of struct → jsonb

PostgreSQL's text holds no NUL character: it is shown as ␀ (U+2400).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import Cursor, conninfo, errors, sql

from devices.errors import InputError, LinkError, PumpledgerError, StorageError
from ingest import views
from ingest.lake import Lake

KEYS: Mapping[str, tuple[str, ...]] = {
    "sessions": ("session_id",),
    "setups": ("setup_id",),
    "days": ("order_id", "date"),
    "lines": ("line_id", "revision"),
    "worklist": ("item_id",),
}
"""The tables, and what makes a row of each itself."""

_NAME = re.compile(r"(?!pg_|information_schema$)[a-z_][a-z0-9_]{0,62}")
_CONNECT_S = "10"
_WORK_MEM = "128MB"
_ROWS = 16_384

_SIMPLE: Mapping[pa.DataType, LiteralString] = {
    pa.string(): "text",
    pa.bool_(): "boolean",
    pa.int32(): "integer",
    pa.int64(): "bigint",
    pa.float64(): "double precision",
    pa.binary(): "bytea",
    pa.date32(): "date",
    pa.timestamp("ms"): "timestamp without time zone",
    pa.timestamp("ms", "UTC"): "timestamp with time zone",
}

_SEEN: LiteralString = """
SELECT c.relkind IN ('r', 'p'), a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
       a.attnotnull AND NOT a.atthasdef AND a.attidentity = '', coalesce(a.attnum = ANY (i.indkey), false)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
WHERE n.nspname = %s AND c.relname = %s
"""


@dataclass(frozen=True, slots=True)
class Counts:
    """What an export did to a table, in rows. Rows that came back are among the updated ones."""

    inserted: int
    updated: int
    withdrawn: int
    unchanged: int


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    kind: LiteralString
    nullable: bool
    says: str


_OWN = (
    _Column("month", "text", False, "the month by which it is pulled, YYYY-MM or unknown"),
    _Column("changed_at", "timestamp with time zone", False, "when an export last changed this row"),
    _Column("withdrawn_at", "timestamp with time zone", True, "since when pumpledger has this row no more; empty while it stands"),
)


def export(
    lake: Lake,
    to: str,
    *,
    schema: str = "pumpledger",
    month: str | None = None,
    patient: str | None = None,
    payer: str | None = None,
    state: str | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Counts]:
    """Makes the tables of a schema say what the lake says, whole or not at all; gives what that took, by table.

    `to` is postgresql://[user[:password]@]host[:port]/database; the filters are those of `views.select`, and a table that lacks one is
    left out. `progress` hears table, buckets done, buckets in all. Raises InputError for an address, schema name or filter that
    cannot be, missing rights, or tables there that are not ours; LinkError where there is no way to the database; StorageError.
    """
    if not _NAME.fullmatch(schema):
        raise InputError(
            f"{schema!r} is no name for a schema.", do="Use small letters, digits and underscores; a letter first.", code="schema_name"
        )
    only = views.months(month)
    wanted: dict[str, dict[str, str]] = {}
    refused: list[str] = []
    for table in KEYS:
        try:
            wanted[table] = views.filters(table, patient=patient, payer=payer, state=state)
        except InputError as error:
            refused.append(error.what)
    if not wanted:
        raise InputError("There is no table with such rows.", why=" ".join(refused), do="Leave a filter out.", code="filter")
    with _transaction(to, schema) as cursor:
        _own_schema(cursor, schema)
        targets = {table: _Target(cursor, schema, table) for table in wanted}
        for target in targets.values():
            target.prepare()
        return {table: target.fill(lake, only, wanted[table], progress) for table, target in targets.items()}


class _Target:
    """One table of the database within a transaction."""

    def __init__(self, cursor: Cursor[Any], schema: str, table: str) -> None:
        self._cursor, self._schema, self._table, self._key = cursor, schema, table, KEYS[table]
        self._fields = views.schema(table)
        self._columns = (*(_Column(f.name, _kind(f.type), f.nullable, _says(f)) for f in self._fields), *_OWN)
        given = (*self._fields.names, "month")
        self._names = {
            "target": sql.Identifier(schema, table),
            "stage": sql.Identifier("pg_temp", f"new_{table}"),
            "cols": sql.SQL(", ").join(map(sql.Identifier, given)),
            "new_cols": sql.SQL(", ").join(sql.Identifier("new", name) for name in given),
            "old_cols": sql.SQL(", ").join(sql.Identifier("old", name) for name in given),
            "key": sql.SQL(", ").join(map(sql.Identifier, self._key)),
            "old_key": sql.SQL(", ").join(sql.Identifier("old", name) for name in self._key),
            "same": sql.SQL(" AND ").join(sql.SQL("old.{0} = new.{0}").format(sql.Identifier(name)) for name in self._key),
        }

    def prepare(self) -> None:
        """Makes the table, or checks that it is ours and adds what newer versions have. Raises InputError."""
        seen = self._cursor.execute(_SEEN, (self._schema, self._table)).fetchall()
        if not seen:
            self._create()
            return
        kinds = {name: kind for _, name, kind, _, _, _ in seen}
        if (
            not seen[0][0]
            or {name for _, name, _, _, _, key in seen if key} != set(self._key)
            or kinds.get("withdrawn_at") != "timestamp with time zone"
        ):
            raise InputError(
                f"{self._schema}.{self._table} is there already, and pumpledger did not make it.",
                do="Name another schema with --schema.",
                code="not_ours",
            )
        ours = {column.name: column for column in self._columns}
        for name, kind in kinds.items():
            if name in ours and kind != ours[name].kind:
                raise self._other(f"Its column {name} is {kind}; this pumpledger writes {ours[name].kind}.")
        for _, name, _, fixed, needed, _ in seen:
            if name not in ours and needed:
                raise self._other(f"Its column {name} must not be empty, and this pumpledger does not know it.")
            if name in ours and fixed and ours[name].nullable:
                self._run("ALTER TABLE {target} ALTER COLUMN {name} DROP NOT NULL", name=sql.Identifier(name))
        for column in self._columns:
            if column.name not in kinds:
                self._run("ALTER TABLE {target} ADD COLUMN {name} {kind}", name=sql.Identifier(column.name), kind=sql.SQL(column.kind))
                self._comment(column)

    def fill(self, lake: Lake, only: list[str] | None, wanted: Mapping[str, str], progress: Callable[[str, int, int], None]) -> Counts:
        """Makes it say what the lake says of what is wanted."""
        self._run("CREATE TEMPORARY TABLE {stage} ON COMMIT DROP AS SELECT {cols} FROM {target} WITH NO DATA")
        staged = 0
        for bucket in range(lake.buckets):
            rows = lake.read(self._table, self._fields, months=only, buckets=[bucket], month_as="month")
            for column, value in wanted.items():
                rows = rows.filter(pc.equal(rows[column], value))
            staged += self._send(rows)
            progress(self._table, bucket + 1, lake.buckets)
        self._run("ALTER TABLE {stage} ADD PRIMARY KEY ({key})")
        self._run("ANALYZE {stage}")
        gone, values = self._gone(only, wanted)
        if only or wanted:
            left = set(self._run("SELECT {old_key} FROM {target} AS old WHERE {gone}", values, gone=gone).fetchall())
            for bucket in range(lake.buckets) if left else ():
                rows = lake.read(self._table, self._fields, buckets=[bucket], month_as="month")
                keys = zip(*(rows[name].to_pylist() for name in self._key), strict=True)
                staged += self._send(rows.filter(pa.array([key in left for key in keys], pa.bool_())))
        updated = self._run(
            "UPDATE {target} AS old SET ({cols}, changed_at, withdrawn_at) = ROW ({new_cols}, now(), NULL) FROM {stage} AS new"
            " WHERE {same} AND (old.withdrawn_at IS NOT NULL OR ROW ({old_cols}) IS DISTINCT FROM ROW ({new_cols}))"
        ).rowcount
        inserted = self._run(
            "INSERT INTO {target} ({cols}, changed_at) SELECT {new_cols}, now() FROM {stage} AS new"
            " WHERE NOT EXISTS (SELECT FROM {target} AS old WHERE {same})"
        ).rowcount
        withdrawn = self._run(
            "UPDATE {target} AS old SET withdrawn_at = now(), changed_at = now() WHERE {gone}", values, gone=gone
        ).rowcount
        return Counts(inserted, updated, withdrawn, staged - inserted - updated)

    def _gone(self, only: list[str] | None, wanted: Mapping[str, str]) -> tuple[sql.Composed, list[Any]]:
        """The condition of rows that stand there, inside the filter, and were not staged; and its values."""
        parts = [
            sql.SQL("old.withdrawn_at IS NULL"),
            sql.SQL("NOT EXISTS (SELECT FROM {stage} AS new WHERE {same})").format(**self._names),
            *(sql.SQL("old.{} = %s").format(sql.Identifier(name)) for name in wanted),
            *([sql.SQL("old.month = ANY (%s)")] if only else []),
        ]
        return sql.SQL(" AND ").join(parts), [*wanted.values(), *([only] if only else [])]

    def _send(self, rows: pa.Table) -> int:
        """COPYs rows into the temporary table, and says how many."""
        if rows.num_rows:
            statement = sql.SQL("COPY {stage} ({cols}) FROM STDIN").format(**self._names)
            with self._cursor.copy(statement) as copy:
                for block in rows.to_batches(max_chunksize=_ROWS):
                    copy.write(_copied(block))
        return int(rows.num_rows)

    def _create(self) -> None:
        defined = [
            sql.SQL("{} {}{}").format(sql.Identifier(column.name), sql.SQL(column.kind), sql.SQL("" if column.nullable else " NOT NULL"))
            for column in self._columns
        ]
        self._run(
            "CREATE TABLE {target} ({columns}, PRIMARY KEY ({key}))",
            columns=sql.SQL(", ").join(defined),
        )
        self._run("COMMENT ON TABLE {target} IS {says}", says=sql.Literal(views.PROPOSED))
        for column in self._columns:
            self._comment(column)

    def _comment(self, column: _Column) -> None:
        self._run("COMMENT ON COLUMN {target}.{name} IS {says}", name=sql.Identifier(column.name), says=sql.Literal(column.says))

    def _run(self, statement: LiteralString, values: Sequence[Any] | None = None, **more: sql.Composable) -> Cursor[Any]:
        return self._cursor.execute(sql.SQL(statement).format(**self._names, **more), values)

    def _other(self, why: str) -> InputError:
        return InputError(
            f"{self._schema}.{self._table} has other columns than this pumpledger writes.",
            why=why,
            do="Change it there, or name another schema with --schema: the tables are made anew from the lake.",
            code="other_columns",
        )


# --- the database ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _transaction(to: str, schema: str) -> Iterator[Cursor[Any]]:
    """One transaction, which no other export to this schema shares. Errors become ours, without their detail: it quotes rows."""
    address, where = _address(to)
    try:
        connection = psycopg.connect(conninfo.make_conninfo("", **address), prepare_threshold=None)
    except psycopg.Error as error:
        raise LinkError(
            f"There is no way into the database {where}.",
            why=_sentence(str(error)),
            do="Check that it runs there, and user and password; ~/.pgpass keeps a password out of the command line.",
            code="no_database",
        ) from None
    try:
        with connection, connection.cursor() as cursor:
            lock = "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0)), set_config('work_mem', %s, true)"
            row = cursor.execute(lock, (f"pumpledger {schema}", _WORK_MEM)).fetchone()
            if not row or not row[0]:
                raise StorageError(
                    f"Another export is writing to schema {schema}.", do="Wait until it has ended, and run this again.", code="busy"
                )
            yield cursor
    except psycopg.Error as error:
        raise _failed(error, where, schema) from None


def _address(to: str) -> tuple[dict[str, Any], str]:
    """What the driver is to be told, and the place in words. Raises InputError, which repeats nothing of the address.

    The driver takes the rest of a password with a bare @ or / in it for a host, and would print that when it does not find it.
    """
    scheme, _, rest = to.partition("://")
    authority = re.split("[/?]", rest, maxsplit=1)[0]
    try:
        if scheme not in ("postgresql", "postgres") or rest.count("@") > 1 or rest.count("@") != authority.count("@"):
            raise ValueError
        found = conninfo.conninfo_to_dict(to)
        host, port, name = (str(found.get(part) or "") for part in ("host", "port", "dbname"))
        if not all(one.isdigit() for one in port.split(",") if one):
            raise ValueError
    except (ValueError, psycopg.Error):
        raise InputError(
            "This is no database's address.",
            do="Write postgresql://user@host:5432/database; in user and password @ is %40, / is %2F, % is %25.",
            code="database_url",
        ) from None
    place = f"{name or 'of this user'} at {host or 'this host'}{':' + port if port else ''}"
    return {"connect_timeout": _CONNECT_S, "application_name": "pumpledger", **found, "client_encoding": "utf8"}, place


def _own_schema(cursor: Cursor[Any], schema: str) -> None:
    """Makes the schema where it is not there: who may only use it needs no right to make one."""
    if cursor.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone() is None:
        cursor.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))


def _failed(error: psycopg.Error, where: str, schema: str) -> PumpledgerError:
    why = _sentence(error.diag.message_primary or str(error))
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        return LinkError(
            f"The connection to the database {where} broke.",
            why=why,
            do="Run it again; an export is kept whole or not at all.",
            code="database_lost",
        )
    if isinstance(error, errors.InsufficientPrivilege):
        return InputError(
            f"The database {where} does not give this user the rights that an export needs.",
            why=why,
            do=f"Ask who looks after it for: CREATE SCHEMA {schema} AUTHORIZATION <user>; GRANT TEMPORARY ON DATABASE <it> TO <user>.",
            code="database_rights",
        )
    return StorageError(
        f"The database {where} did not take the export, and kept nothing of it.",
        why=why,
        do="If a night was being derived meanwhile, run it again when that has ended; else see the database's log.",
        code="database",
    )


def _sentence(text: str) -> str:
    """A message of the database as one line that ends."""
    return views.printable(" ".join(text.split())).rstrip(".") + "."


# --- Arrow → PostgreSQL ----------------------------------------------------------------------------------------------------------


def _kind(kind: pa.DataType) -> LiteralString:
    """The PostgreSQL type of an Arrow type, as the catalogue spells it."""
    if pa.types.is_struct(kind):
        return "jsonb"
    if pa.types.is_list(kind):
        return "jsonb" if pa.types.is_nested(kind.value_type) else _SIMPLE[kind.value_type] + "[]"
    return _SIMPLE[kind]


def _says(field: pa.Field) -> str:
    return str((field.metadata or {}).get(b"says", b""), "utf-8")


def _copied(rows: pa.RecordBatch) -> memoryview:
    """Rows in COPY's text format (PostgreSQL documentation, COPY, "Text Format"), made column by column."""
    cells = []
    for column in rows.columns:
        text = _text(column)
        if not pa.types.is_primitive(column.type):
            text = _replaced(text, (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")))
        cells.append(pc.fill_null(text, "\\N"))
    ended = _glued(_glued(*cells, between="\t"), "\n")
    _, offsets, data = ended.buffers()
    return memoryview(data)[: memoryview(offsets).cast("q")[len(ended)]]


def _text(values: pa.Array) -> pa.Array:
    """Values as PostgreSQL reads them from text; null stays null."""
    kind = values.type
    if _kind(kind) == "jsonb":
        return _json(values)
    if pa.types.is_list(kind):
        quoted = _glued('"', _replaced(_text(values.flatten()), (("\\", "\\\\"), ('"', '\\"'))), '"')
        return _glued("{", _items(values, pc.fill_null(quoted, "NULL")), "}")
    if pa.types.is_binary(kind):
        return pa.array([None if one is None else f"\\x{one.hex()}" for one in values.to_pylist()], pa.large_string())
    if pa.types.is_timestamp(kind) and kind.tz:
        return _glued(values.cast(pa.timestamp(kind.unit)).cast(pa.large_string()), "Z")
    text = values.cast(pa.large_string())
    return pc.replace_substring(text, "\0", "␀") if pa.types.is_string(kind) else text


def _json(values: pa.Array) -> pa.Array:
    """Values as JSON, as `views.plain` has them; null stays null, and is "null" inside another value."""
    kind = values.type
    if pa.types.is_struct(kind):
        parts: list[Any] = []
        for field, inner in zip(kind, values.flatten(), strict=True):
            parts += [f'{"," if parts else ""}"{field.name}":', pc.fill_null(_json(inner), "null")]
        return _where_valid(values, _glued("{", *parts, "}"))
    if pa.types.is_list(kind):
        return _glued("[", _items(values, pc.fill_null(_json(values.flatten()), "null")), "]")
    if pa.types.is_timestamp(kind):
        return _glued('"', _replaced(_text(values), ((" ", "T"), (".000", ""))), '"')
    if pa.types.is_floating(kind):
        return pc.if_else(pc.is_finite(values), _text(values), _large(None))
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return _text(values)
    text = _replaced(_text(values), (("\\", "\\\\"), ('"', '\\"')))
    if pc.any(pc.match_substring_regex(text, "[\\x01-\\x1f]")).as_py():
        text = _replaced(text, ((chr(code), f"\\u{code:04x}") for code in range(1, 32)))
    return _glued('"', text, '"')


def _items(values: pa.Array, texts: pa.Array) -> pa.Array:
    """The texts of what is in each list, with commas between; null where the list is."""
    lengths = pc.fill_null(pc.list_value_length(values), 0).cast(pa.int64())
    offsets = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(lengths)])
    return _where_valid(values, pc.binary_join(pa.LargeListArray.from_arrays(offsets, texts), _large(",")))


def _where_valid(values: pa.Array, texts: pa.Array) -> pa.Array:
    return pc.if_else(values.is_valid(), texts, _large(None))


def _glued(*parts: pa.Array | str, between: str = "") -> pa.Array:
    """Texts and columns of texts joined row by row; null where one of them is."""
    return pc.binary_join_element_wise(*(_large(part) if isinstance(part, str) else part for part in parts), _large(between))


def _large(text: str | None) -> pa.Scalar:
    return pa.scalar(text, pa.large_string())


def _replaced(texts: pa.Array, pairs: Iterable[tuple[str, str]]) -> pa.Array:
    for old, new in pairs:
        texts = pc.replace_substring(texts, old, new)
    return texts
