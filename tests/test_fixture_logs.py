"""The captured canonical logs give what they must bill."""

from __future__ import annotations

import json
from collections import defaultdict

import pytest

from devices import canonical
from ingest.night import rule_sets
from tests.kit import assembled, billed
from transforms.orders import parse


@pytest.fixture(scope="module")
def given(fixtures):
    folder = fixtures / "canonical"
    by_pump = defaultdict(list)
    for path in sorted(folder.glob("logs/*.jsonl")):
        for capture in canonical.read_files([(path.name, path.read_bytes())]):
            by_pump[capture.pump_id].append(capture)
    known = parse((folder / "orders.csv").read_text(), rule_sets())
    found = billed([assembled(captures) for captures in by_pump.values()], known)
    lines = defaultdict(list)
    for line in found.rows("lines"):
        lines[f"{line['patient_id']}|{line['service_date']}"].append(line)
    return json.loads((folder / "expected.json").read_text()), lines


def test_every_date_gives_the_codes_the_minutes_and_the_state_that_it_must(given):
    expected, lines = given
    for key, want in expected.items():
        mine = lines.get(key, [])
        codes, states = {line["code"]: line["units"] for line in mine}, {line["state"] for line in mine}
        told = want["want"]
        if told in ("exact", "hold", "codes"):
            assert codes == want["codes"], key
            assert {line["minutes"] for line in mine} <= {want["minutes"]}, key
        if told == "exact":
            assert states <= {"ready"}, (key, [line["reasons"] for line in mine])
        if told == "hold":
            assert states <= {"hold"}, key
        if told == "notready":
            assert "ready" not in states, key


def test_a_date_that_is_not_listed_has_no_ready_lines(given):
    expected, lines = given
    doubtful = {key.split("|")[0] for key, want in expected.items() if want["want"] in ("notready", "skip")}
    for key in lines.keys() - expected.keys():
        assert key.split("|")[0] in doubtful, key
        assert "ready" not in {line["state"] for line in lines[key]}, key
