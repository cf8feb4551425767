"""Which totals of a pump disagree with its records, and what the worklist says of them."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from devices.contract import CHECKS, table
from tests.kit import orders
from transforms import billing, tables, totals

MONDAY, TUESDAY = date(2026, 3, 2), date(2026, 3, 3)


def check(told: float, summed: float, *, what: str = "bolus", day: date = MONDAY, pump: str = "paradigm:1") -> dict[str, Any]:
    return {"pump_id": pump, "date": day, "what": what, "told": told, "summed": summed, "unit": "U", "event_id": f"{day}{what}"}


@pytest.mark.parametrize(
    ("told", "summed", "disagrees"),
    [
        *((20.0, 20.0, False), (20.0, 20.5, False), (20.0, 19.4, True), (20.0, 20.6, True)),
        *((100.0, 101.9, False), (100.0, 97.9, True), (0.0, 0.5, False), (0.0, 0.6, True), (1.0, 0.0, True)),
    ],
)
def test_totals_disagree_where_they_differ_by_more_than_half_a_unit_and_two_percent(told, summed, disagrees):
    rows = [check(told, summed)]
    assert totals.disagreements(table(CHECKS, rows)) == (rows if disagrees else [])


def test_of_no_checks_none_disagree():
    assert totals.disagreements(table(CHECKS, [])) == []


def test_the_worklist_has_one_item_that_informs_for_each_pump_and_date_with_every_figure():
    checks = [
        *(check(30.0, 25.25, what="basal"), check(12.345, 8.0), check(4.0, 9.0, day=TUESDAY)),
        check(4.0, 9.0, pump="paradigm:2"),
    ]
    known = orders(pump_id="paradigm:1")
    nothing = (tables.SESSIONS.empty_table(), tables.DOUBTS.empty_table())
    items = billing.pump_items(*nothing, known, checks=checks).to_pylist()
    assert {(one["pump_id"], one["service_date"], one["patient_id"]) for one in items} == {
        ("paradigm:1", MONDAY, "pt-1"),
        ("paradigm:1", TUESDAY, "pt-1"),
        ("paradigm:2", MONDAY, None),
    }
    assert {(one["code"], one["severity"], one["state"], one["line_id"]) for one in items} == {("TOTALS_DISAGREE", "inform", "open", None)}
    (both,) = [one for one in items if one["pump_id"] == "paradigm:1" and one["service_date"] == MONDAY]
    assert both["message"].endswith("On 2026-03-02: basal 30.00 U told, 25.25 summed; bolus 12.35 U told, 8.00 summed.")
    assert both["suggestion"]
    again = billing.pump_items(*nothing, known, checks=[check(5.0, 9.0, pump="paradigm:2")]).to_pylist()
    assert [one["item_id"] for one in again] == [one["item_id"] for one in items if one["pump_id"] == "paradigm:2"]
