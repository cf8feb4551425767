"""Some days of pumps of all families through the night, with logs that come late to what billing took (tests/month.py)."""

from __future__ import annotations

import pytest

from tests import month

SEED = 2
LATE = ("canonical", "pcd")


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    def withheld(number: int) -> bool:
        return month.conformance.FAMILIES[number % len(month.conformance.FAMILIES)] in LATE

    return month.run(month.month(12, 6, SEED, nights=range(3, 4), withheld=withheld), tmp_path_factory.mktemp("month"))


def test_what_is_ready_is_what_truly_happened_and_late_logs_end_in_the_same_tables_or_in_amendments(played):
    assert played.wrong == []


def test_the_days_have_lines_that_are_ready_and_held_and_billing_took_some_that_were_amended(played):
    assert played.counts["pumps"] == 12
    assert min(played.counts[name] for name in ("lines ready", "lines hold", "released after the week", "captures late")) > 10
    assert played.amendments
    assert {"OVER_8H", "OVERLAPPING_PUMPS"} <= played.held.keys()
