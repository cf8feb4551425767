"""What billing pulls is filtered and ordered, and every format is read back by a reader that is not ours."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.errors import InputError
from ingest import views
from ingest.lake import Lake, months_of
from transforms import tables
from transforms.tables import identify, rows_to_table

START = datetime(2026, 3, 8, 1, 1, tzinfo=UTC)


def at(text: str) -> datetime:
    """A time without a zone."""
    return datetime.fromisoformat(text)


def session(patient: str | None = "P-001", **told: Any) -> dict[str, Any]:
    """A session as the derivation gives it."""
    row: dict[str, Any] = {
        "session_id": identify("session", patient, *told.values()), "pump_id": "canonical:A17", "stretch": identify("stretch"),
        "patient_id": patient, "order_id": "O-1", "payer": "Medicare", "drug": "hydromorphone", "route": "SC", "start": START,
        "stop": datetime(2026, 3, 8, 4, 20, tzinfo=UTC), "start_local": at("2026-03-07T20:01"),
        "stop_local": at("2026-03-07T23:20"), "printed_start": at("2026-03-07T20:01"), "span_s": 11_940, "infusing_s": 11_100,
        "unknown_s": 0, "kvo_s": 0, "alarm_s": 840, "paused_s": 0, "volume_ml": 6.25, "bolus_count": 0, "granted": 0, "denied": 0,
        "setups": 1, "new_sites": 1, "possible_sites": 0, "time_quality": "exact", "state": "closed", "flags": [],
        "first_event": identify(1), "last_event": identify(2), "evidence_hash": "e" * 64, "continuous_s": 11_100, "max_rate_ml_h": 2.0,
        "decisions": [],
    }  # fmt: skip
    return {**row, **told}


def line(**told: Any) -> dict[str, Any]:
    """A line as the derivation gives it."""
    entry = {"session_id": identify("s"), "from": START, "to": START, "seconds": 11_100.5, "counted": True, "why": "infusing"}
    row = {
        "line_id": identify("line", *told.values()), "revision": 0, "encounter_id": identify("encounter"), "session_ids": [identify("s")],
        "pump_ids": ["canonical:A17", "canonical:B2"], "patient_id": "P-001", "order_id": "O-1", "payer": "Medicare",
        "drug": "hydromorphone", "route": "SC", "place_of_service": "", "rule_set": "cpt-9637x", "rule_version": "2026.1",
        "service_date": date(2026, 3, 7), "start": START, "stop": None, "code": "96370", "units": 2, "minutes": 185,
        "revenue_codes": ["0450", "0510"], "state": "ready", "reasons": [], "explanation": "185 min", "policies": "{}",
        "ledger": [entry, {**entry, "counted": False, "why": "alarm"}], "event_ids": [identify(1)], "evidence_hash": "e" * 64,
        "decisions": [],
    }  # fmt: skip
    return {**row, **told}


def item(**told: Any) -> dict[str, Any]:
    row = {
        "item_id": identify("item", *told.values()), "code": "NO_STOP", "severity": "hold", "payer": "Medicare", "minutes_at_stake": 60,
        "service_date": date(2026, 3, 7), "message": "A delivery has no recorded stop.", "suggestion": "Confirm a stop.", "state": "open",
    }  # fmt: skip
    return {**row, **told}


def sessions(*rows: dict[str, Any]) -> pa.Table:
    return rows_to_table(tables.SESSIONS, list(rows))


def lines(*rows: dict[str, Any]) -> pa.Table:
    return rows_to_table(tables.LINES, list(rows))


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    made = Lake.create(tmp_path_factory.mktemp("lake") / "lake", buckets=2)
    april = {"start": datetime(2026, 4, 2, tzinfo=UTC), "start_local": at("2026-04-01T20:00"), "state": "open"}
    unknown = {"start": None, "start_local": None, "state": "uncertain", "payer": "Aetna"}
    for bucket, rows in enumerate(([session("P-002", **april), session("P-001")], [session("P-003", **unknown)])):
        found = sessions(*rows)
        setup = {
            "setup_id": identify("setup", bucket), "pump_id": "canonical:A17", "stretch": "", "patient_id": f"P-00{bucket}",
            "elapsed_ms": 0, "pump_setup": True, "new_site": "yes", "evidence": [], "decisions": [],
        }  # fmt: skip
        made.publish(
            "consolidate",
            bucket,
            {"sessions": found, "setups": rows_to_table(tables.SETUPS, [setup])},
            {"sessions": months_of(found["start_local"]), "setups": "2026-03"},
            {},
        )
        days = [{"order_id": "O-1", "patient_id": f"P-00{bucket}", "pump_ids": [], "date": date(2026, 3, 7 - bucket), "infusing_s": 1,
                 "unknown_s": 0, "continuous": False, "flags": []}]  # fmt: skip
        billed = {
            "lines": lines(line(state="hold", code="96370", patient_id=f"P-00{bucket}"), line(code="96369", patient_id=f"P-00{bucket}")),
            "worklist": rows_to_table(
                tables.WORKLIST,
                [item(severity="inform", minutes_at_stake=9), item(minutes_at_stake=bucket), item(minutes_at_stake=5 + bucket)],
            ),
            "days": rows_to_table(tables.DAYS, days),
        }
        made.publish("bill", bucket, billed, dict.fromkeys(billed, "2026-03"), {})
    return made


# What is selected


def test_rows_of_all_buckets_come_in_a_fixed_order_with_their_schema(lake: Lake) -> None:
    found = views.select(lake, "sessions")
    assert found["patient_id"].to_pylist() == ["P-001", "P-002", "P-003"]
    assert found.schema.equals(tables.SESSIONS, check_metadata=True)
    assert views.select(lake, "days")["date"].to_pylist() == [date(2026, 3, 6), date(2026, 3, 7)]
    assert [(row["patient_id"], row["code"]) for row in views.select(lake, "lines").to_pylist()] == [
        ("P-000", "96369"), ("P-000", "96370"), ("P-001", "96369"), ("P-001", "96370"),
    ]  # fmt: skip


def test_a_worklist_begins_with_what_holds_and_most_is_at_stake(lake: Lake) -> None:
    found = views.select(lake, "worklist").to_pylist()
    assert [(row["severity"], row["minutes_at_stake"]) for row in found] == [
        ("hold", 6), ("hold", 5), ("hold", 1), ("hold", 0), ("inform", 9), ("inform", 9),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("filters", "patients"),
    [
        ({"month": "2026-03"}, ["P-001"]),
        ({"month": "2026-04"}, ["P-002"]),
        ({"month": "unknown"}, ["P-003"]),
        ({"month": "2025-12"}, []),
        ({"patient": "P-001"}, ["P-001"]),
        ({"payer": "Aetna"}, ["P-003"]),
        ({"payer": "Medicare", "state": "open"}, ["P-002"]),
        ({"patient": "nobody"}, []),
    ],
)
def test_filters_narrow_the_rows(lake: Lake, filters: dict[str, str], patients: list[str]) -> None:
    assert views.select(lake, "sessions", **filters)["patient_id"].to_pylist() == patients


@pytest.mark.parametrize(
    ("table", "filters", "code"),
    [
        ("setups", {"payer": "Medicare"}, "filter"),
        ("setups", {"state": "open"}, "filter"),
        ("days", {"payer": "Medicare"}, "filter"),
        ("days", {"state": "open"}, "filter"),
        ("lines", {"state": "open"}, "state"),
        ("sessions", {"month": "2026-3"}, "month"),
        ("sessions", {"month": "2026-13"}, "month"),
        ("events", {}, "table"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_next_step(lake: Lake, table: str, filters: dict[str, str], code: str) -> None:
    with pytest.raises(InputError) as raised:
        views.select(lake, table, **filters)
    assert raised.value.code == code
    assert raised.value.do


def test_a_lake_without_a_night_gives_empty_tables_in_every_format(tmp_path: Path) -> None:
    empty = Lake.create(tmp_path / "lake")
    for table in ("sessions", "setups", "days", "lines", "worklist"):
        found = views.select(empty, table)
        assert found.num_rows == 0
        for form in views.FORMATS:
            views.write(found, table, form, tmp_path / f"{table}.{form}")
    assert json.loads((tmp_path / "lines.json").read_text()) == []


# CSV


def csv_of(table: pa.Table, name: str = "sessions") -> tuple[bytes, list[dict[str, str]]]:
    out = io.BytesIO()
    views.write(table, name, "csv", out)
    text = out.getvalue().decode("utf-8")
    return out.getvalue(), list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def test_csv_is_rfc_4180_with_all_columns() -> None:
    raw, [row] = csv_of(sessions(session(drug='morphine, "slow"\nrelease', payer="Ärztekammer")))
    assert list(row) == tables.SESSIONS.names
    assert raw.startswith(b"session_id,pump_id,")
    assert raw.endswith(b"\r\n")
    assert raw.count(b"\r\n") == 2
    assert (row["drug"], row["payer"]) == ('morphine, "slow"\nrelease', "Ärztekammer")


def test_csv_times_are_utc_with_z_and_local_ones_have_no_zone() -> None:
    _, [row] = csv_of(sessions(session(start=datetime(2026, 3, 8, 1, 1, 0, 250_000, tzinfo=UTC))))
    assert (row["start"], row["stop"]) == ("2026-03-08T01:01:00.250Z", "2026-03-08T04:20:00Z")
    assert row["start_local"] == "2026-03-07T20:01:00"


def test_in_csv_zero_stays_zero_and_nothing_stays_empty() -> None:
    _, [row] = csv_of(sessions(session(volume_ml=0.0, infusing_s=0, patient_id=None, max_rate_ml_h=None)))
    assert (row["volume_ml"], row["infusing_s"], row["patient_id"], row["max_rate_ml_h"]) == ("0", "0", "", "")
    _, [row] = csv_of(sessions(session(volume_ml=-0.5)))
    assert row["volume_ml"] == "-0.5"


def test_csv_lists_are_joined_and_the_ledger_is_json() -> None:
    _, [row] = csv_of(lines(line()), "lines")
    assert (row["pump_ids"], row["revenue_codes"], row["reasons"]) == ("canonical:A17;canonical:B2", "0450;0510", "")
    ledger = json.loads(row["ledger"])
    assert ledger[0] == {
        "session_id": identify("s"), "from": "2026-03-08T01:01:00Z", "to": "2026-03-08T01:01:00Z", "seconds": 11_100.5, "counted": True,
        "why": "infusing",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "=cmd|' /C calc'!A0", "＝1"])
def test_text_that_a_spreadsheet_would_run_is_led_by_an_apostrophe(text: str) -> None:
    _, [row] = csv_of(sessions(session(drug=text, flags=[text])))
    assert (row["drug"], row["flags"]) == ("'" + text, "'" + text)


@settings(max_examples=100, deadline=None)
@given(patient=st.text(min_size=1), payer=st.text(min_size=1))
def test_any_text_comes_back_from_csv_and_never_as_a_formula(patient: str, payer: str) -> None:
    _, [row] = csv_of(sessions(session(patient_id=patient, payer=payer)))
    for given_text, cell in ((patient, row["patient_id"]), (payer, row["payer"])):
        assert cell in (given_text, "'" + given_text)
        assert cell[0] not in "=+-@\t\r"


# XLSX


def book_of(table: pa.Table, name: str) -> tuple[bytes, Any]:
    out = io.BytesIO()
    views.write(table, name, "xlsx", out)
    return out.getvalue(), openpyxl.load_workbook(out)


def cells(book: Any, name: str) -> dict[str, Any]:
    head, first = list(book[name].iter_rows(max_row=2))
    return {name.value: cell for name, cell in zip(head, first, strict=True)}


def test_xlsx_cells_have_their_types() -> None:
    _, book = book_of(lines(line(place_of_service="02")), "lines")
    row = cells(book, "lines")
    assert list(row) == tables.LINES.names
    assert (row["units"].value, row["units"].data_type, row["revision"].value) == (2, "n", 0)
    assert row["start"].value == at("2026-03-08T01:01")
    assert "UTC" in row["start"].number_format
    assert (row["service_date"].is_date, row["service_date"].value.date()) == (True, date(2026, 3, 7))
    assert (row["place_of_service"].value, row["place_of_service"].data_type) == ("02", "s")
    assert (row["code"].value, row["revenue_codes"].value, row["stop"].value) == ("96370", "0450;0510", None)


def test_xlsx_zero_is_a_number_and_a_time_that_excel_cannot_hold_is_text() -> None:
    _, book = book_of(sessions(session(volume_ml=0.0, printed_start=at("1867-03-01T05:00"))), "sessions")
    row = cells(book, "sessions")
    assert (row["volume_ml"].value, row["volume_ml"].data_type) == (0, "n")
    assert row["printed_start"].value == "1867-03-01T05:00:00"
    assert row["start_local"].value == at("2026-03-07T20:01")
    assert "UTC" not in row["start_local"].number_format


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "https://example.org", "mailto:a@b.c", "007", "{=1}", "\x1b[31m"])
def test_xlsx_text_is_never_a_formula_a_link_or_a_number(text: str) -> None:
    _, book = book_of(sessions(session(drug=text)), "sessions")
    cell = cells(book, "sessions")["drug"]
    assert cell.data_type == "s"
    assert cell.hyperlink is None
    assert cell.value == text.replace("\x1b", "_x001B_")


def test_xlsx_can_be_worked_with_and_says_what_its_columns_are() -> None:
    _, book = book_of(lines(line(), line(code="96369")), "lines")
    sheet = book["lines"]
    assert sheet.freeze_panes == "A2"
    assert sheet.auto_filter.ref.startswith("A1:")
    assert sheet.auto_filter.ref.endswith("3")
    assert sheet.column_dimensions["A"].width > 15
    told = {row[0]: row[2] for row in book["data dictionary"].iter_rows(values_only=True) if row[0]}
    assert {name: told[name] for name in tables.LINES.names} == {f.name: f.metadata[b"says"].decode() for f in tables.LINES}
    assert views.PROPOSED in told


def test_equal_tables_are_equal_xlsx_bytes() -> None:
    raw, book = book_of(lines(line()), "lines")
    assert raw == book_of(lines(line()), "lines")[0]
    assert book.properties.created == at("2026-01-01T00:00")


def test_text_too_long_for_a_cell_says_that_it_was_cut() -> None:
    entry = line()["ledger"][0]
    _, book = book_of(lines(line(ledger=[entry] * 400)), "lines")
    value = cells(book, "lines")["ledger"].value
    assert len(value) == 32_767
    assert "cut here" in value
    assert "json and parquet" in value


def test_more_rows_than_a_sheet_holds_are_refused() -> None:
    rows = pa.table({"a": pa.repeat(pa.scalar(0), 1_048_576)})
    with pytest.raises(InputError) as raised:
        views.write(rows, "sessions", "xlsx", io.BytesIO())
    assert raised.value.code == "too_many_rows"


# JSON and Parquet


def test_json_is_one_array_with_every_column_and_its_kind() -> None:
    out = io.BytesIO()
    views.write(lines(line(), line(code="96369")), "lines", "json", out)
    found = json.loads(out.getvalue())
    assert [row["code"] for row in found] == ["96370", "96369"]
    assert list(found[0]) == tables.LINES.names
    assert (found[0]["start"], found[0]["stop"], found[0]["service_date"]) == ("2026-03-08T01:01:00Z", None, "2026-03-07")
    assert found[0]["ledger"][1]["counted"] is False
    assert found[0]["revenue_codes"] == ["0450", "0510"]
    out = io.BytesIO()
    views.write(sessions(session(volume_ml=float("nan"))), "sessions", "json", out)
    [row] = json.loads(out.getvalue(), parse_constant=pytest.fail)
    assert (row["start_local"], row["volume_ml"], row["unknown_s"]) == ("2026-03-07T20:01:00", None, 0)


def test_parquet_keeps_schema_and_dictionary(tmp_path: Path) -> None:
    table = lines(line())
    views.write(table, "lines", "parquet", tmp_path / "lines.parquet")
    back = pq.read_table(tmp_path / "lines.parquet")
    assert back.equals(table)
    assert back.schema.field("code").metadata[b"says"] == b"the code proposed"
    assert back.schema.metadata[b"says"].decode() == views.PROPOSED


# For people, and where it goes


def test_the_table_for_people_is_narrow_and_marks_utc() -> None:
    out = io.StringIO()
    rows = lines(line(explanation="not shown", reasons=["NO_STOP", "OVER_8H"]))
    views.write(rows, "lines", "table", out)
    text = out.getvalue()
    assert all(shown in text for shown in ("2026-03-07", "96370", "185", "NO_STOP, OVER_8H", rows["line_id"][0].as_py()[:10]))
    assert "not shown" not in text
    assert "a biller decides" in text.replace("\n", " ")
    out = io.StringIO()
    views.write(sessions(session(), session(start=None)), "sessions", "table", out)
    assert "start (UTC)" in out.getvalue()
    assert "2026-03-08 01:01" in out.getvalue()
    assert "2026-03-07 20:01 (pump)" in out.getvalue()


def test_the_table_for_people_shows_text_as_text() -> None:
    out = io.StringIO()
    views.write(sessions(session(drug="[red]x[/red]\x1b[31m")), "sessions", "table", out)
    assert "[red]x[/red]" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    target.write_text("old")
    views.write(sessions(session()), "sessions", "csv", target)
    assert target.read_bytes() == csv_of(sessions(session()))[0]
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_a_stream_of_text_gets_bytes_through_its_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), newline="\n")
    monkeypatch.setattr(sys, "stdout", stdout)
    for form in ("csv", "xlsx"):
        views.write(sessions(session()), "sessions", form, sys.stdout)
    assert stdout.buffer.getvalue().startswith(csv_of(sessions(session()))[0] + b"PK")


@pytest.mark.parametrize(("form", "code"), [("xlsx", "binary"), ("parquet", "binary"), ("pdf", "format")])
def test_what_a_stream_cannot_take_is_refused(form: str, code: str) -> None:
    with pytest.raises(InputError) as raised:
        views.write(sessions(session()), "sessions", form, io.StringIO())
    assert raised.value.code == code


def test_bytes_never_go_to_a_terminal() -> None:
    leader, follower = os.openpty()
    with os.fdopen(leader, "rb"), os.fdopen(follower, "wb") as terminal:
        for form in ("xlsx", "parquet"):
            with pytest.raises(InputError, match="not for a terminal"):
                views.write(sessions(session()), "sessions", form, terminal)
        views.write(sessions(session()), "sessions", "csv", terminal)
