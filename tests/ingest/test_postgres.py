"""The export into a real PostgreSQL: what stands there is what the lake says, whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from devices.errors import InputError, LinkError, PumpledgerError, StorageError
from ingest import views
from ingest.cli import main
from ingest.lake import Lake, months_of
from ingest.postgres import KEYS, Counts, export
from tests.broker import PATIENCE_S, soon
from tests.conftest import ROOT
from tests.database import Postgres
from transforms.tables import rows_to_table

NASTY = (
    "'; DROP TABLE lines; --", "\\.", "\\N", "NULL", "", " ", "a\tb\nc\rd", '{"a",b}', "\\", '"', "ä漢😀", "%s %(x)s", "\x01\x1f\x7f",
    "line\n\\.\nline", "$1", "null", "\u2028",
)  # fmt: skip

Row = dict[str, Any]


def row(table: str, number: int, **told: Any) -> Row:
    """A row with a value in every column, whatever columns there are."""
    made = {field.name: value(field.type, f"{field.name} {number}", number) for field in views.schema(table)}
    return {**made, **{name: "open" if table in ("sessions", "worklist") else "ready" for name in ("state",) if name in made}, **told}


def value(kind: pa.DataType, text: str, number: int) -> Any:
    if pa.types.is_list(kind):
        return [value(kind.value_type, f"{text} {place}", number) for place in range(number % 3)]
    if pa.types.is_struct(kind):
        return {field.name: value(field.type, text, number) for field in kind}
    if pa.types.is_timestamp(kind):
        return datetime(2026, 3, 8, 1, 1, number % 60, 250_000 * (number % 2), tzinfo=UTC if kind.tz else None)
    by_kind = {pa.date32(): date(2026, 3, 8), pa.bool_(): number % 2 == 0, pa.float64(): number + 0.1, pa.string(): text}
    return by_kind.get(kind, number)


def publish(lake: Lake, bucket: int = 0, **rows: list[Row]) -> None:
    """What a night derived: these rows, or two in each table."""
    made = {name: rows_to_table(views.schema(name), rows.get(name, [row(name, 1), row(name, 2)])) for name in KEYS}
    dated = {"sessions": "start_local", "setups": "printed_time", "days": "date", "lines": "service_date", "worklist": "service_date"}
    months = {name: months_of(made[name][column]) for name, column in dated.items()}
    for stage, tables in {"consolidate": ("sessions", "setups"), "bill": ("days", "lines", "worklist")}.items():
        lake.publish(stage, bucket, {name: made[name] for name in tables}, {name: months[name] for name in tables}, {})


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake.create(tmp_path / "lake", buckets=2)
    publish(made)
    return made


@pytest.fixture
def url(postgres: Postgres) -> str:
    """The address of a database with nothing in it."""
    with psycopg.connect(postgres.url()) as admin:
        for (name,) in admin.execute("SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema|public)'").fetchall():
            admin.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))
    return postgres.url()


def ask(url: str, query: Any, *values: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        done = connection.execute(query, values or None)
        return done.fetchall() if done.description else []


def standing(url: str, table: str, schema: str = "pumpledger") -> list[tuple[Any, ...]]:
    """Every row with the place it has in the database's own files: a row that was written again has another."""
    name = sql.Identifier(schema, table)
    return ask(url, sql.SQL("SELECT t.ctid::text, t.xmin::text, t.* FROM {} t ORDER BY 1").format(name))


def everything(url: str) -> dict[str, list[tuple[Any, ...]]]:
    return {table: standing(url, table) for table in KEYS}


def texts(url: str, column: str, table: str = "lines", *, withdrawn: bool | None = None) -> list[Any]:
    where = {None: "true", True: "withdrawn_at IS NOT NULL", False: "withdrawn_at IS NULL"}[withdrawn]
    names = sql.Identifier(column), sql.Identifier("pumpledger", table)
    return [one for (one,) in ask(url, sql.SQL("SELECT {} FROM {} WHERE " + where + " ORDER BY 1").format(*names))]


# What the tables are


def test_every_column_has_its_type_and_says_what_it_is(url: str, lake: Lake) -> None:
    export(lake, url)
    query = """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, col_description(c.oid, a.attnum)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        WHERE c.relnamespace = 'pumpledger'::regnamespace AND c.relkind = 'r' ORDER BY c.relname, a.attnum"""
    found: dict[str, dict[str, tuple[str, bool, str]]] = {}
    for table, name, *about in ask(url, query):
        found.setdefault(table, {})[name] = tuple(about)
    assert set(found) == set(KEYS)
    for table, columns in found.items():
        fields = views.schema(table)
        assert list(columns) == [*fields.names, "month", "changed_at", "withdrawn_at"]
        for field in fields:
            assert columns[field.name][1:] == (not field.nullable, field.metadata[b"says"].decode())
    kinds = {name: about[0] for name, about in (found["sessions"] | found["days"] | found["lines"]).items()}
    assert {name: kinds[name] for name in ("start", "printed_start", "date", "infusing_s", "revision", "volume_ml", "continuous")} == {
        "start": "timestamp with time zone", "printed_start": "timestamp without time zone", "date": "date", "infusing_s": "bigint",
        "revision": "integer", "volume_ml": "double precision", "continuous": "boolean",
    }  # fmt: skip
    assert (kinds["reasons"], kinds["ledger"], kinds["code"]) == ("text[]", "jsonb", "text")
    [(says,)] = ask(url, "SELECT obj_description('pumpledger.lines'::regclass)")
    assert "a biller decides" in says


def test_every_table_has_its_key(url: str, lake: Lake) -> None:
    export(lake, url)
    query = """
        SELECT c.relname, array_agg(a.attname::text ORDER BY a.attnum) FROM pg_class c
        JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
        WHERE c.relnamespace = 'pumpledger'::regnamespace GROUP BY 1"""
    assert dict(ask(url, query)) == {
        "sessions": ["session_id"], "setups": ["setup_id"], "days": ["order_id", "date"], "lines": ["line_id", "revision"],
        "worklist": ["item_id"],
    }  # fmt: skip


@pytest.mark.parametrize("table", KEYS)
def test_every_value_comes_back_as_it_was(url: str, lake: Lake, table: str) -> None:
    empty = {field.name: None for field in views.schema(table) if field.nullable}
    rows = [row(table, number) for number in range(5)] + [row(table, 5, **empty)]
    publish(lake, **{table: rows})
    export(lake, url)
    names = views.schema(table).names
    query = sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(map(sql.Identifier, names)), sql.Identifier("pumpledger", table))
    back = [dict(zip(names, one, strict=True)) for one in ask(url, query)]
    expected = [
        {name: views.plain(one) if name == "ledger" else one for name, one in of.items()} for of in views.select(lake, table).to_pylist()
    ]
    keyed = [{tuple(one[name] for name in KEYS[table]): one for one in many} for many in (back, expected)]
    assert len(keyed[0]) == len(rows)
    assert keyed[0] == keyed[1]
    assert texts(url, "month", table) == [views.select(lake, table, month="2026-03").num_rows and "2026-03"] * 5 + [
        "unknown" if {"service_date", "start_local", "printed_time"} & set(empty) else "2026-03"
    ]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(), min_size=1, max_size=8))
def test_any_text_is_only_text(url: str, lake: Lake, found: list[str]) -> None:
    given_texts = [*NASTY, *found]
    entry = row("lines", 1)["ledger"][0]
    rows = [
        row("lines", number, line_id=str(number), drug=text, reasons=[text, ""], ledger=[{**entry, "why": text}])
        for number, text in enumerate(given_texts)
    ]
    publish(lake, lines=rows)
    export(lake, url)
    query = "SELECT drug, reasons, ledger FROM pumpledger.lines WHERE withdrawn_at IS NULL ORDER BY line_id::int"
    for text, (drug, reasons, ledger) in zip(given_texts, ask(url, query), strict=True):
        shown = text.replace("\0", "␀")
        assert (drug, reasons, ledger[0]["why"]) == (shown, [shown, ""], shown)


def test_numbers_that_are_none_stay_what_they_are(url: str, lake: Lake) -> None:
    ledger = [{**row("lines", 1)["ledger"][0], "seconds": float("nan")}]
    publish(
        lake,
        sessions=[row("sessions", number, volume_ml=value) for number, value in enumerate((float("inf"), -0.5, 1e-300, 1e300))],
        lines=[row("lines", 1, ledger=ledger)],
    )
    export(lake, url)
    assert texts(url, "volume_ml", "sessions") == [-0.5, 1e-300, 1e300, float("inf")]
    assert texts(url, "ledger")[0][0]["seconds"] is None
    assert export(lake, url)["sessions"] == Counts(0, 0, 0, 4)


# Night after night


def test_a_second_export_with_nothing_new_touches_no_row(url: str, lake: Lake) -> None:
    assert export(lake, url) == dict.fromkeys(KEYS, Counts(2, 0, 0, 0))
    before = everything(url)
    assert export(lake, url) == dict.fromkeys(KEYS, Counts(0, 0, 0, 2))
    assert everything(url) == before


def test_what_differs_is_changed_and_only_that(url: str, lake: Lake) -> None:
    export(lake, url)
    before = standing(url, "lines")
    publish(lake, lines=[row("lines", 1), row("lines", 2, drug="another", stop=None), row("lines", 3)])
    assert export(lake, url)["lines"] == Counts(1, 1, 0, 1)
    assert texts(url, "drug") == ["another", "drug 1", "drug 3"]
    assert sum(one in before for one in standing(url, "lines")) == 1
    [(first, second)] = ask(url, "SELECT min(changed_at), max(changed_at) FROM pumpledger.lines")
    assert first < second


def test_what_somebody_changed_in_the_database_is_set_right(url: str, lake: Lake) -> None:
    export(lake, url)
    ask(url, "UPDATE pumpledger.lines SET units = 99 WHERE line_id = 'line_id 1'")
    ask(url, "DELETE FROM pumpledger.lines WHERE line_id = 'line_id 2'")
    assert export(lake, url)["lines"] == Counts(1, 1, 0, 0)
    assert texts(url, "units") == [1, 2]


def test_what_vanished_is_withdrawn_and_comes_back(url: str, lake: Lake) -> None:
    export(lake, url)
    publish(lake, lines=[row("lines", 2)])
    assert export(lake, url)["lines"] == Counts(0, 0, 1, 1)
    assert texts(url, "line_id", withdrawn=True) == ["line_id 1"]
    withdrawn = standing(url, "lines")
    assert export(lake, url)["lines"] == Counts(0, 0, 0, 1)
    assert standing(url, "lines") == withdrawn
    publish(lake)
    assert export(lake, url)["lines"] == Counts(0, 1, 0, 1)
    assert texts(url, "line_id", withdrawn=True) == []


def test_another_revision_of_a_line_is_another_row(url: str, lake: Lake) -> None:
    publish(lake, lines=[row("lines", 1, line_id="x", revision=0), row("lines", 2, line_id="x", revision=1)])
    assert export(lake, url)["lines"] == Counts(2, 0, 0, 0)


def test_a_lake_without_a_night_makes_empty_tables_and_withdraws_what_is_there(url: str, lake: Lake, tmp_path: Path) -> None:
    empty = Lake.create(tmp_path / "empty")
    assert export(empty, url) == dict.fromkeys(KEYS, Counts(0, 0, 0, 0))
    export(lake, url)
    assert export(empty, url) == dict.fromkeys(KEYS, Counts(0, 0, 2, 0))


# Filters


def test_a_month_is_withdrawn_from_alone(url: str, lake: Lake) -> None:
    april = row("lines", 3, service_date=date(2026, 4, 1))
    publish(lake, lines=[row("lines", 1), row("lines", 2), april])
    export(lake, url)
    publish(lake, lines=[row("lines", 1)])
    assert export(lake, url, month="2026-03")["lines"] == Counts(0, 0, 1, 1)
    assert texts(url, "line_id", withdrawn=True) == ["line_id 2"]
    assert export(lake, url, month="2026-04")["lines"] == Counts(0, 0, 1, 0)


@pytest.mark.parametrize(
    ("filters", "tables"),
    [
        ({"payer": "payer 1"}, {"sessions", "lines", "worklist"}),
        ({"patient": "patient_id 1"}, set(KEYS)),
        ({"state": "ready"}, {"lines"}),
        ({"state": "open", "payer": "payer 1"}, {"sessions", "worklist"}),
    ],
)
def test_filters_narrow_what_is_looked_at(url: str, lake: Lake, filters: dict[str, str], tables: set[str]) -> None:
    publish(lake, lines=[row("lines", 1), row("lines", 2, state="hold")])
    told = export(lake, url, **filters)
    assert set(told) == tables
    assert set(told.values()) == ({Counts(1, 0, 0, 0)})
    export(lake, url)
    publish(lake, **{name: [] for name in KEYS})
    assert set(export(lake, url, **filters).values()) == {Counts(0, 0, 1, 0)}
    assert all(len(texts(url, "month", name, withdrawn=True)) == (1 if name in tables else 0) for name in KEYS)


def test_a_line_that_is_no_longer_ready_is_not_left_ready_by_an_export_of_ready_lines(url: str, lake: Lake) -> None:
    export(lake, url)
    publish(lake, lines=[row("lines", 1, state="released"), row("lines", 2)])
    assert export(lake, url, state="ready")["lines"] == Counts(0, 1, 0, 1)
    assert ask(url, "SELECT line_id, state FROM pumpledger.lines WHERE withdrawn_at IS NULL ORDER BY 1") == [
        ("line_id 1", "released"),
        ("line_id 2", "ready"),
    ]


@pytest.mark.parametrize(
    ("filters", "code"),
    [({"month": "2026-13"}, "month"), ({"state": "paid"}, "filter"), ({"state": "ready", "schema": "Bad-Name"}, "schema_name")],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_asked(lake: Lake, filters: dict[str, str], code: str) -> None:
    with pytest.raises(InputError) as raised:
        export(lake, "postgresql://nobody.invalid/x", **filters)
    assert raised.value.code == code


# Whole or not at all


def test_what_the_last_table_refuses_leaves_nothing_of_the_night(url: str, lake: Lake) -> None:
    export(lake, url)
    ask(url, "ALTER TABLE pumpledger.worklist ADD CONSTRAINT short CHECK (message <> 'P-007 is late')")
    before = everything(url)
    publish(lake, lines=[row("lines", 2), row("lines", 3)], worklist=[row("worklist", 1, message="P-007 is late")])
    with pytest.raises(StorageError, match='constraint "short"') as raised:
        export(lake, url)
    assert "P-007" not in str(raised.value)
    assert everything(url) == before
    ask(url, "ALTER TABLE pumpledger.worklist DROP CONSTRAINT short")
    assert export(lake, url)["lines"] == Counts(1, 0, 1, 1)


def test_a_first_export_that_fails_makes_no_tables(url: str, lake: Lake) -> None:
    publish(lake, bucket=1, lines=[row("lines", 1)], worklist=[], days=[], sessions=[], setups=[])
    with pytest.raises(StorageError, match="night was being derived"):
        export(lake, url)
    assert ask(url, "SELECT 1 FROM pg_namespace WHERE nspname = 'pumpledger'") == []


def test_an_export_that_is_killed_leaves_what_was(url: str, lake: Lake) -> None:
    export(lake, url)
    before = everything(url)
    publish(lake, lines=[row("lines", number) for number in range(2, 500)], worklist=[row("worklist", 7)])
    command = [sys.executable, "-m", "ingest.cli", "export", "--to", url, "--lake", str(lake.root)]
    blocked = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pumpledger' AND datname = current_database()"
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE pumpledger.worklist IN EXCLUSIVE MODE")
        with subprocess.Popen(command, cwd=ROOT) as running:
            soon(lambda: ask(url, blocked + " AND wait_event_type = 'Lock'"), "the export waits for the last table")
            running.send_signal(signal.SIGKILL)
            running.wait(PATIENCE_S)
    soon(lambda: not ask(url, blocked), "the server sees that it is gone")
    assert everything(url) == before
    assert export(lake, url)["lines"] == Counts(497, 0, 1, 1)


def test_two_exports_do_not_meet(url: str, lake: Lake) -> None:
    export(lake, url)
    with psycopg.connect(url) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('pumpledger pumpledger', 0))")
        with pytest.raises(StorageError) as raised:
            export(lake, url)
        assert raised.value.code == "busy"
        assert export(lake, url, schema="second")["lines"] == Counts(2, 0, 0, 0)


# What is there already


def test_columns_of_a_newer_version_are_added_and_filled(url: str, lake: Lake) -> None:
    export(lake, url)
    ask(url, "ALTER TABLE pumpledger.lines DROP COLUMN explanation, DROP COLUMN ledger, DROP COLUMN changed_at")
    ask(url, "ALTER TABLE pumpledger.lines ALTER COLUMN stop SET NOT NULL")
    publish(lake, lines=[row("lines", 1, stop=None), row("lines", 2)])
    assert export(lake, url)["lines"] == Counts(0, 2, 0, 0)
    assert texts(url, "explanation") == ["explanation 1", "explanation 2"]
    assert len(texts(url, "ledger")[0]) == 1
    [(says,)] = ask(
        url,
        "SELECT col_description(attrelid, attnum) FROM pg_attribute WHERE attrelid = 'pumpledger.lines'::regclass AND attname = 'ledger'",
    )
    assert says == views.schema("lines").field("ledger").metadata[b"says"].decode()


def test_the_agencys_own_columns_and_views_stay(url: str, lake: Lake) -> None:
    export(lake, url)
    ask(url, "ALTER TABLE pumpledger.lines ADD COLUMN claim text, ADD COLUMN seen boolean NOT NULL DEFAULT false")
    ask(url, "CREATE VIEW pumpledger.due AS SELECT line_id, units FROM pumpledger.lines WHERE state = 'ready' AND withdrawn_at IS NULL")
    ask(url, "UPDATE pumpledger.lines SET claim = 'C-1'")
    publish(lake, lines=[row("lines", 1, units=9), row("lines", 3)])
    export(lake, url)
    assert ask(url, "SELECT claim FROM pumpledger.lines ORDER BY line_id") == [("C-1",), ("C-1",), (None,)]
    assert ask(url, "SELECT * FROM pumpledger.due ORDER BY 1") == [("line_id 1", 9), ("line_id 3", 3)]


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE pumpledger.lines ALTER COLUMN units TYPE text",
        "ALTER TABLE pumpledger.lines ADD COLUMN mine text NOT NULL DEFAULT ''; ALTER TABLE pumpledger.lines ALTER mine DROP DEFAULT",
    ],
)
def test_columns_that_cannot_be_written_are_told(url: str, lake: Lake, change: str) -> None:
    export(lake, url)
    ask(url, change)
    before = everything(url)
    with pytest.raises(InputError, match="has other columns") as raised:
        export(lake, url)
    assert raised.value.code == "other_columns"
    assert everything(url) == before


@pytest.mark.parametrize(
    "theirs",
    [
        "CREATE TABLE pumpledger.lines (line_id text, revision integer, units bigint)",
        "CREATE TABLE pumpledger.lines (line_id text PRIMARY KEY, withdrawn_at timestamptz)",
        "CREATE VIEW pumpledger.days AS SELECT 1 AS one",
    ],
)
def test_tables_that_are_not_ours_are_left_alone(url: str, lake: Lake, theirs: str) -> None:
    ask(url, "CREATE SCHEMA pumpledger")
    ask(url, theirs)
    with pytest.raises(InputError, match="pumpledger did not make it") as raised:
        export(lake, url)
    assert "--schema" in raised.value.do
    assert len(ask(url, "SELECT 1 FROM pg_class WHERE relnamespace = 'pumpledger'::regnamespace AND relkind IN ('r', 'v')")) == 1
    assert export(lake, url, schema="apart")["lines"] == Counts(2, 0, 0, 0)


# Who may, and the way there


def test_a_user_of_a_schema_needs_no_more_than_that(url: str, lake: Lake) -> None:
    name = f"clerk_{uuid4().hex[:8]}"
    ask(url, sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    theirs = url.replace("postgres@", f"{name}@")
    try:
        with pytest.raises(InputError, match="rights") as raised:
            export(lake, theirs)
        assert "AUTHORIZATION" in raised.value.do
        ask(url, sql.SQL("CREATE SCHEMA pumpledger AUTHORIZATION {}").format(sql.Identifier(name)))
        assert export(lake, theirs)["lines"] == Counts(2, 0, 0, 0)
        assert export(lake, theirs)["lines"] == Counts(0, 0, 0, 2)
    finally:
        ask(url, sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


@pytest.mark.parametrize(
    "address",
    [
        "", "db.example/agency", "mysql://u:secret@h/d", "postgresql://u:sec@ret@h/d", "postgresql://u:sec/ret@h/d", "postgresql://u:sec?ret@h/d",
        "postgresql://u:sec%ret@h/d", "postgresql://u:secret", "postgresql://u:secret@h:port/d", "postgresql://u:secret@h/d?nope=1",
        "postgresql://h/d?user=u@realm&password=secret",
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_and_not_repeated(lake: Lake, address: str) -> None:
    with pytest.raises(InputError) as raised:
        export(lake, address)
    assert raised.value.code == "database_url"
    assert not any(part in str(raised.value) for part in ("sec", "ret@", "agency"))


def test_a_database_that_is_not_there_is_told_without_the_password(postgres: Postgres, lake: Lake) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        for address in (
            f"postgresql://u:s%40cret@127.0.0.1:{port}/agency", f"postgresql://u:s%40cret@/nosuch?host={postgres.folder}",
            f"postgresql://locked:s%40cret@/postgres?host={postgres.folder}",
        ):  # fmt: skip
            with pytest.raises(LinkError, match="no way into the database") as raised:
                export(lake, address)
            assert "cret" not in str(raised.value)
            assert raised.value.why


def test_a_connection_that_is_cut_is_told(url: str, lake: Lake) -> None:
    export(lake, url)
    before = everything(url)

    def cut(table: str, done: int, _: int) -> None:
        if table == "lines" and done == 1:
            ask(url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pumpledger'")

    with pytest.raises(PumpledgerError, match=r"terminating connection|broke"):
        export(lake, url, progress=cut)
    assert everything(url) == before


# The command


def run(*words: object, ok: int = 0, **environment: str) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words], env=environment)
    assert done.exit_code == ok, done.output
    return done.output


def test_the_command_counts_rows_by_table(url: str, lake: Lake) -> None:
    told = json.loads(run("export", "--to", url, "--lake", lake.root, "--json"))
    assert told["schema"] == "pumpledger"
    assert told["tables"]["lines"] == {"inserted": 2, "updated": 0, "withdrawn": 0, "unchanged": 0}
    assert set(told["tables"]) == set(KEYS)
    assert told["left_out"] == []
    told = run("export", "--lake", lake.root, "--state", "ready", PUMPLEDGER_DATABASE=url)
    assert "lines: 0 inserted, 0 updated, 0 withdrawn, 2 unchanged" in told
    assert "worklist" in told.splitlines()[-1]
    assert "pumpledger export --to postgresql://" in run("export", "--help")


def test_the_command_never_shows_a_password(lake: Lake) -> None:
    for address in ("postgresql://u:s3cret@localhost:1/d", "postgresql://u:s3cret@x@localhost/d"):
        assert "s3cret" not in run("export", "--to", address, "--lake", lake.root, "--json", ok=1)
    command = [sys.executable, "-m", "ingest.cli", "export", "--to", "postgresql://u:s3cret@localhost:1/d", "--lake", str(lake.root)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=dict(os.environ), check=False)
    assert done.returncode == 1
    assert "no way into the database d at localhost:1" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr
