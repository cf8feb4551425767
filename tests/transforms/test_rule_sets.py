"""Rule sets other than the default, and policies other than their defaults."""

from __future__ import annotations

import hashlib
from datetime import date
from importlib import resources

import pytest

from devices.errors import InputError
from ingest.night import rule_sets
from tests.kit import anchor, assembled, billed, capture, event, give, infusion, log, new_setup, numbered, orders
from transforms import billing, ruleset, sessions


def changed(**policies: str) -> ruleset.RuleSet:
    """The default rule set with other policies."""
    text = resources.files("transforms").joinpath("rules/cpt-9637x.toml").read_text()
    for name, value in policies.items():
        (old,) = [line for line in text.splitlines() if line.startswith(f"{name} =")]
        text = text.replace(old, f"{name} = {value}")
    return ruleset.parse(text.encode(), hashlib.sha256(text.encode()).hexdigest(), name="changed")


def billed_with(rules: ruleset.RuleSet, *events, known=None):
    found = assembled([capture(numbered(events), anchor=anchor(6000))])
    facts = sessions.derive(found, known or orders(), sessions.FactPolicy())
    tables = billing.Facts(facts.sessions, facts.intervals, facts.setups, facts.doubts)
    return list(billing.bill(tables, known or orders(), {rules.name: rules}, {}).lines.to_pylist())


def test_every_shipped_rule_cites_what_it_stands_on():
    for rules in rule_sets().values():
        assert all(rule.citation for rule in rules.lines)
        assert all(therapy.citation for therapy in rules.therapies)
    assert set(rule_sets()) == {"cpt-9637x", "per-diem", "evidence-only"}


def test_per_diem_gives_one_line_a_day_with_infusion():
    given = log(*infusion(0, 60), *infusion(24 * 60, 20), known=orders(rule_set="per-diem"))
    lines = sorted(given.rows("lines"), key=lambda line: line["service_date"])
    assert [(str(line["service_date"]), line["code"], line["units"], line["minutes"], line["state"]) for line in lines] == [
        ("2026-03-02", "S9327", 1, 60, "ready"),
        ("2026-03-03", "S9327", 1, 20, "ready"),
    ]


def test_per_diem_over_24_hours_is_continuous_on_each_date_it_touches():
    given = log(*infusion(0, 30 * 60), known=orders(rule_set="per-diem"))
    assert {(line["code"], line["state"]) for line in given.rows("lines")} == {("S9326", "ready")}
    assert sum(line["minutes"] for line in given.rows("lines")) == 30 * 60
    assert all(day["continuous"] for day in given.rows("days"))


def test_per_diem_does_not_guess_a_code():
    given = log(*infusion(0, 60), known=orders(rule_set="per-diem", drug="treprostinil"))
    (line,) = given.rows("lines")
    assert (line["code"], line["state"], line["reasons"]) == ("", "hold", ["NO_CODE"])


def test_a_ledger_adds_up_to_the_minutes_of_its_day_though_the_clock_drifts():
    events = numbered([event(-5, "power_on"), *infusion(0, 600)])
    first = capture(events[:1], anchor={**anchor(-5), "after_seq": 1})
    given = give(first, capture(events, anchor=anchor(605, utc_minutes=604)), known=orders(rule_set="per-diem"))
    (line,) = given.rows("lines")
    assert line["minutes"] == 599
    assert sum(entry["seconds"] for entry in line["ledger"] if entry["counted"]) // 60 == 599


def test_an_open_session_holds_its_last_date_only_once_it_spans_a_day():
    short = log(event(0, "delivery_start"), event(20 * 60, "other"), known=orders(rule_set="per-diem"))
    assert {line["state"] for line in short.rows("lines")} == {"hold"}
    long = log(event(0, "delivery_start"), event(40 * 60, "other"), known=orders(rule_set="per-diem"))
    assert [line["state"] for line in sorted(long.rows("lines"), key=lambda line: line["service_date"])] == ["ready", "hold"]


def test_evidence_only_shows_minutes_without_a_code():
    given = log(*new_setup(-5), *infusion(0, 95), known=orders(rule_set="evidence-only", route="IV"))
    (line,) = given.rows("lines")
    assert (line["code"], line["units"], line["minutes"], line["state"]) == ("", 0, 95, "ready")


def test_an_encounter_may_be_a_session():
    events = [*infusion(0, 60), *infusion(180, 60)]
    assert sorted((line["code"], line["units"]) for line in billed_with(changed(), *events)) == [("96369", 1), ("96370", 1)]
    assert sorted(line["code"] for line in billed_with(changed(encounter='"session"'), *events)) == ["96369", "96369"]


def test_lines_split_by_day_have_the_same_units_in_total():
    events = [*new_setup(13 * 60), *infusion(14 * 60, 60), *new_setup(15 * 60), *infusion(15 * 60 + 10, 200)]
    whole = billed_with(changed(), *events)
    split = billed_with(changed(midnight='"split_by_day"'), *events)
    assert {line["service_date"] for line in split} == {date(2026, 3, 2), date(2026, 3, 3)}
    for code in ("96369", "96370", "96371"):
        assert sum(line["units"] for line in split if line["code"] == code) == sum(line["units"] for line in whole if line["code"] == code)
    assert len({line["line_id"] for line in split}) == len(split)


@pytest.mark.parametrize(
    "policies", [{"long_infusion_hold_min": "-1"}, {"unit_cap_96370": "true"}, {"near_threshold_min": '"soon"'}, {"midnight": '"noon"'}]
)
def test_a_policy_out_of_range_is_a_clear_error(policies):
    with pytest.raises(InputError, match="Rule set changed"):
        changed(**policies)


def test_a_rule_set_not_in_force_makes_no_line_and_says_so():
    known = orders(start="2007-01-01T00:00:00Z")
    lines = [{**one, "pump_time": one["pump_time"].replace("2026", "2008")} for one in numbered(infusion(0, 60))]
    end = {name: value.replace("2026", "2008") for name, value in anchor(100).items()}
    given = billed([assembled([capture(lines, anchor=end)])], known)
    assert given.rows("lines") == []
    assert "NOT_IN_FORCE" in given.codes()
