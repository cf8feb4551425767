"""`import pumpledger` is all that a notebook needs: DataFrames with the right dtypes, and the way back to the bytes."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pandas as pd
import pytest

import pumpledger
from devices.errors import InputError, StorageError
from tests.ingest.test_explain import A_LINES, A, B, derived
from transforms import tables

UTC, NAIVE = "datetime64[ms, UTC]", "datetime64[ms]"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> pumpledger.LakeTables:
    root = tmp_path_factory.mktemp("door") / "lake"
    derived(root)
    return pumpledger.open(root)


def dtypes(frame: pd.DataFrame) -> dict[str, str]:
    return {str(name): str(dtype) for name, dtype in frame.dtypes.items()}


def test_sessions_have_the_dtypes_that_a_notebook_wants(lake: pumpledger.LakeTables) -> None:
    frame = lake.sessions(month="2026-03")
    assert list(frame.columns) == tables.SESSIONS.names
    found = dtypes(frame)
    assert {found[name] for name in ("session_id", "patient_id", "state")} == {"str"}
    assert (found["start"], found["stop"], found["start_local"], found["printed_start"]) == (UTC, UTC, NAIVE, NAIVE)
    assert {found[name] for name in tables.SESSIONS.names if name.endswith("_s")} == {"int64"}
    assert found["volume_ml"] == "float64"
    assert frame.groupby("patient_id")["infusing_s"].sum()["P-001"] == 144 * 60
    assert frame.explode("flags")["flags"].isin(["NO_START"]).sum() == 1


def test_an_empty_frame_has_the_same_dtypes(lake: pumpledger.LakeTables) -> None:
    assert dtypes(lake.sessions(month="1999-01")) == dtypes(lake.sessions())
    assert lake.sessions(month="1999-01").empty


def test_each_table_opens(lake: pumpledger.LakeTables) -> None:
    lines = lake.lines(payer="Medicare", state="ready")
    assert lines["code"].tolist() == ["96369", "96370"]
    assert dtypes(lines)["service_date"] == NAIVE
    assert lines["service_date"][0].date() == date(2026, 3, 7)
    assert [entry["why"] for entry in lines["ledger"][0]] == ["infusing", "alarm", "infusing"]
    assert lake.setups(patient="P-001")["pump_setup"].dtype == bool
    assert lake.days(patient="P-001")["infusing_s"].tolist() == [144 * 60]
    assert (lake.worklist()["severity"] == "hold").iloc[0]


def test_events_are_those_of_one_pump_in_the_order_of_its_log(lake: pumpledger.LakeTables) -> None:
    events = lake.events(pump=A)
    assert events["raw"].tolist() == A_LINES
    found = dtypes(events)
    assert (found["seq"], found["elapsed_ms"], found["stops_delivery"], found["time"]) == ("Int64", "Int64", "boolean", UTC)
    assert lake.events(pump=A, month="2026-03").equals(events)
    holes = lake.events(pump=B)
    assert holes["elapsed_ms"].isna().sum() == 1
    assert lake.events(pump="canonical:none").empty


def test_intervals_add_up_to_the_span(lake: pumpledger.LakeTables) -> None:
    intervals = lake.intervals(pump=A)
    assert (intervals["to_ms"] - intervals["from_ms"]).sum() // 1000 == lake.sessions(patient="P-001")["span_s"].sum()


def test_an_explanation_prints_as_a_tree_and_shows_as_a_page(lake: pumpledger.LakeTables) -> None:
    found = lake.explain(lake.lines()["line_id"][0][:8])
    assert found["kind"] == "line"
    assert A_LINES[0].hex(" ") in str(found)
    assert found.page().startswith("<!doctype html>")
    assert found._repr_html_().startswith("<iframe srcdoc=")
    assert "<html" not in found._repr_html_()


def test_mistakes_say_what_to_do(lake: pumpledger.LakeTables, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="There is no lake"):
        pumpledger.open(tmp_path)
    for ask in (lambda: lake.lines(state="done"), lambda: lake.events(pump=A, month="March"), lambda: lake.explain("zz")):
        with pytest.raises(InputError) as raised:
            ask()
        assert raised.value.do


def test_columns_are_explained() -> None:
    assert pumpledger.columns("lines")["units"] == "its units"
    assert set(pumpledger.columns("events")) == set(tables.EVENTS.names)
