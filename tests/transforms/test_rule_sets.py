"""Rule sets other than the default, and policies other than their defaults."""

from __future__ import annotations

import hashlib
from datetime import date
from importlib import resources

import pyarrow as pa
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


def billed_with(rules: ruleset.RuleSet, *events, known=None, other=()):
    known, logs = known or orders(), {"canonical:A1": events, "canonical:B2": other}
    captures = [capture(numbered(mine), pump=pump, anchor=anchor(6000)) for pump, mine in logs.items() if mine]
    facts = [sessions.derive(assembled([one]), known, sessions.FactPolicy()) for one in captures]
    tables = billing.Facts(*(pa.concat_tables([getattr(one, name) for one in facts]) for name in billing.Facts.__dataclass_fields__))
    return list(billing.bill(tables, known, {rules.name: rules}, {}).lines.to_pylist())


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


def test_per_diem_holds_a_date_that_a_session_of_unknown_utc_has_by_its_printed_time_alone():
    lines = numbered([*infusion(1500, 60), event(1600, "other"), event(1700, "other")])
    del lines[2]
    given = give(capture(lines, anchor=anchor(1710, utc_minutes=210)), known=orders(rule_set="per-diem"))
    (line,) = given.rows("lines")
    assert (line["service_date"].day, line["state"]) == (3, "hold")
    assert "CLOCK_UNCERTAIN" in line["reasons"]


@pytest.mark.parametrize(("beyond_ms", "days"), [(0, [2]), (999, [2]), (1000, [2, 3])])
@pytest.mark.parametrize("other", [0, 200])
def test_per_diem_asks_for_a_whole_second_of_a_date(beyond_ms, days, other):
    last = {"pump_time": f"2026-03-03T00:00:{beyond_ms / 1000:06.3f}", "kind": "delivery_stop"}
    events = [*infusion(0, 20)[:other], event(15 * 60, "delivery_start"), last, *infusion(24 * 60 * 2, 20)[:other]]
    given = log(*events, known=orders(rule_set="per-diem"))
    wanted = [*days, *([4] if other else [])]
    assert [(line["service_date"].day, line["state"]) for line in given.rows("lines")] == [(day, "ready") for day in wanted]
    assert [day["date"].day for day in given.rows("days")] == wanted
    assert all(sum(entry["seconds"] for entry in line["ledger"]) // 60 == line["minutes"] for line in given.rows("lines"))


def test_per_diem_shows_a_date_of_less_than_a_second_that_nothing_proves():
    first = {"pump_time": "2026-03-02T23:59:59.800", "kind": "delivery_start"}
    again = {"pump_time": "2026-03-03T00:00:00.200", "kind": "delivery_start"}
    given = log(first, again, event(16 * 60 + 10, "delivery_stop"), known=orders(rule_set="per-diem"))
    assert [(line["service_date"].day, line["state"]) for line in given.rows("lines")] == [(2, "hold"), (3, "hold")]


@pytest.mark.parametrize(
    ("says", "order", "begins", "held"),
    [
        ("on one date", {}, 100, True),
        ("at once", {}, 30, True),
        ("on another date", {}, 24 * 60, False),
        ("by the minute", {"rule_set": "cpt-9637x"}, 100, False),
        ("of another patient", {"patient_id": "pt-2"}, 100, False),
    ],
)
def test_a_day_that_two_orders_of_a_patient_have_is_not_billed_twice(says, order, begins, held):
    known = orders({}, {"pump_id": "canonical:B2", "order_id": "ord-2", **order}, rule_set="per-diem")
    captures = [capture(numbered(infusion(0, 60)), anchor=anchor(6000))]
    captures.append(capture(numbered(infusion(begins, 60)), pump="canonical:B2", anchor=anchor(6000)))
    given = give(*captures, known=known)
    assert {tuple(line["reasons"]) for line in given.rows("lines")} == {("SECOND_ORDER_SAME_DAY",) if held else ()}, says
    items = [item for item in given.rows("worklist") if item["code"] == "SECOND_ORDER_SAME_DAY"]
    assert [(item["severity"], item["minutes_at_stake"]) for item in items] == [("hold", 60)] * (2 if held else 0), says


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


@pytest.mark.parametrize(("second", "day"), [(-10, 2), (10, 3)])
def test_where_lines_split_at_midnight_a_set_up_stands_on_its_own_date(second, day):
    at = 16 * 60 + second
    events = [*new_setup(at - 120), *infusion(at - 115, 110), *new_setup(at), *infusion(at + 5, 120)]
    split = billed_with(changed(midnight='"split_by_day"'), *events)
    assert [(line["service_date"].day, line["units"]) for line in split if line["code"] == "96371"] == [(day, 1)]


def test_where_lines_split_at_midnight_a_set_up_of_the_evening_before_is_not_lost():
    known = orders({}, {"pump_id": "canonical:B2"})
    first, second = [*new_setup(15 * 60), *infusion(17 * 60, 60)], [*new_setup(15 * 60 + 30), *infusion(19 * 60, 60)]
    whole, split = (
        sorted((line["service_date"].day, line["code"], line["units"]) for line in billed_with(rules, *first, known=known, other=second))
        for rules in (changed(), changed(midnight='"split_by_day"'))
    )
    assert split == whole == [(3, "96369", 1), (3, "96370", 1), (3, "96371", 1)]


@pytest.mark.parametrize(("order", "reason"), [({"route": "IV"}, "IV_SAME_ENCOUNTER"), ({}, "SECOND_ORDER_SAME_DAY")])
@pytest.mark.parametrize(("begins", "held"), [(25 * 60, True), (41 * 60, False)])
def test_where_lines_split_at_midnight_another_order_holds_them_on_each_of_their_dates(order, reason, begins, held):
    known = orders({}, {"pump_id": "canonical:B2", "order_id": "ord-2", **order})
    lines = billed_with(changed(midnight='"split_by_day"'), *infusion(15 * 60, 120), known=known, other=infusion(begins, 60))
    assert {tuple(line["reasons"]) for line in lines} == {(reason,) if held else ()}


@pytest.mark.parametrize("tz", ["Asia/Kathmandu", "America/New_York"])
def test_lines_split_at_the_midnight_of_the_zone_of_the_order(tz):
    known = orders(tz=tz)
    midnight = {"Asia/Kathmandu": 18 * 60 + 15, "America/New_York": 24 * 60 + 5 * 60}[tz] - 8 * 60
    split = billed_with(changed(midnight='"split_by_day"'), *infusion(midnight - 70, 170), known=known)
    assert [(line["service_date"].day, line["code"], line["units"], line["minutes"]) for line in split] == [
        (2, "96369", 1, 70), (3, "96370", 2, 170),
    ]  # fmt: skip


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


# --- what a rule set says -----------------------------------------------------------------------------------------------------------

WRITTEN = """
name = "r"
version = "1"
basis = "encounter"
in_force_from = 2026-03-02
in_force_to = 2026-03-04
routes = ["SC", "IM"]
revenue_codes = ["0450"]
excluded_drugs = ["Insulin", "aspart"]
[[line]]
code = "A"
from_minutes = 1
to_minutes = 15
units = 1
revenue_codes = []
citation = "c"
[[line]]
code = "B"
role = "initial"
from_minutes = 16
units = 2
citation = "c"
[[line]]
code = "C"
role = "further"
from_minutes = 91
units_after_minutes = 31
minutes_per_unit = 60
citation = "c"
[[line]]
code = "D"
role = "setup"
from_minutes = 1
units = 1
citation = "c"
[[therapy]]
name = "pain"
drugs = ["morphine", "ketamine"]
continuous = "T1"
intermittent = "T2"
citation = "pain's"
[[therapy]]
name = "other"
drugs = ["iron", "morphine"]
continuous = "T3"
intermittent = "T4"
citation = "other's"
[holds]
codes = ["NO_STOP"]
[therapy_limits_ml_h]
morphine = 3
ketamine = 2.5
citation = "c"
"""


def written(**changed: str) -> ruleset.RuleSet:
    """The rule set above, with one piece of its text for another each."""
    text = WRITTEN
    for old, new in changed.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    return ruleset.parse(text.encode(), "sha", name="written")


@pytest.mark.parametrize(
    ("minutes", "units"),
    [
        (0, {}), (1, {"A": 1}), (15, {"A": 1}), (16, {"B": 2}), (90, {"B": 2}), (91, {"B": 2, "C": 1}), (150, {"B": 2, "C": 1}),
        (151, {"B": 2, "C": 2}), (1000, {"B": 2, "C": 16}),
    ],
)  # fmt: skip
def test_units_by_minutes_set_ups_apart(minutes, units):
    assert written().units(minutes) == units


def test_a_rule_set_is_read_as_it_is_written():
    rules = written()
    assert (rules.name, rules.version, rules.basis, rules.sha256) == ("r", "1", "encounter", "sha")
    assert [rules.in_force(date(2026, 3, day)) for day in (1, 2, 4, 5)] == [False, True, True, False]
    assert written(**{"in_force_to = 2026-03-04\n": ""}).in_force(date(2100, 1, 1))
    assert [(rule.code, rule.role) for rule in rules.lines] == [("A", ""), ("B", "initial"), ("C", "further"), ("D", "setup")]
    setup, initial = rules.rule("setup"), rules.rule("initial")
    assert setup is not None and initial is not None  # noqa: PT018
    assert (setup.code, initial.code, rules.rule("nothing")) == ("D", "B", None)
    assert [rules.revenue_of(code) for code in ("A", "B", "unknown")] == [[], ["0450"], ["0450"]]
    assert rules.holds == {"NO_STOP"}
    assert rules.policies == ruleset.Policies()
    assert '"setup_separation_min": 15' in rules.policies_json({"gap_limit_min": 61})
    assert rules.policies_json({"gap_limit_min": 61}).startswith('{"encounter": "service_day", "gap_limit_min": 61')


@pytest.mark.parametrize(
    ("drug", "excluded", "limit", "continuous", "intermittent"),
    [
        ("Morphine sulfate", False, 3.0, ("T1", "pain's"), ("T2", "pain's")),
        ("ketamine/morphine", False, 2.5, ("T1", "pain's"), ("T2", "pain's")),
        ("IRON", False, None, ("T3", "other's"), ("T4", "other's")),
        ("morphines", False, None, None, None),
        ("INSULIN aspart", True, None, None, None),
        ("(insulin)", True, None, None, None),
        ("insulins", False, None, None, None),
        ("", True, None, None, None),
        ("?", True, None, None, None),
    ],
)
def test_a_drug_is_known_by_its_words(drug, excluded, limit, continuous, intermittent):
    rules = written()
    assert rules.excludes(drug) is excluded
    assert rules.covers("SC", drug) is not excluded
    assert rules.limit_ml_h(drug) == limit
    assert rules.day_code(drug, continuous=True) == continuous
    assert rules.day_code(drug, continuous=False) == intermittent


def test_a_rule_set_that_excludes_no_drug_covers_what_names_none():
    assert rule_sets()["evidence-only"].covers("SC", "")


def test_a_rule_set_covers_the_routes_that_it_names_and_any_where_it_names_none():
    assert [written().covers(route, "morphine") for route in ("SC", "IM", "IV", "")] == [True, True, False, False]
    assert written(**{'routes = ["SC", "IM"]\n': ""}).covers("IV", "morphine")
    assert not written(**{'routes = ["SC", "IM"]\n': ""}).covers("IV", "insulin")


@pytest.mark.parametrize(
    ("policy", "low", "high", "beyond"),
    [
        ("long_infusion_hold_min", "1", "44640", ("0.9", "44641", "nan")),
        ("unit_cap_96370", "0", "1000", ("-1", "1000.5", "true")),
        ("setup_separation_min", "0", "1440", ("-0.1", "1441", '"15"')),
        ("near_threshold_min", "0", "60", ("-1", "61", "false")),
    ],
)
def test_the_ranges_of_policies_end_where_they_say(policy, low, high, beyond):
    for value in (low, high):
        assert getattr(written(**{"[holds]": f"[policies]\n{policy} = {value}\n[holds]"}).policies, policy) == float(value)
    for value in beyond:
        with pytest.raises(InputError, match=f"Rule set written: {policy} is") as raised:
            written(**{"[holds]": f"[policies]\n{policy} = {value}\n[holds]"})
        assert raised.value.code == "policy"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('name = "r"\n', "", "The rule set written cannot be read"),
        ('version = "1"\n', "", "cannot be read"),
        ("in_force_from = 2026-03-02\n", "", "cannot be read"),
        ("[holds]", "[held]", "cannot be read"),
        ('role = "further"', 'rolle = "further"', "cannot be read"),
        ('name = "r"', "name = ", "cannot be read"),
        ('excluded_drugs = ["Insulin", "aspart"]', "excluded_drugs = [1]", "cannot be read"),
        ("morphine = 3\n", 'morphine = "much"\n', "cannot be read"),
        ("[holds]", "[policies]\nunknown = 1\n[holds]", "cannot be read"),
        ('basis = "encounter"', 'basis = "week"', "there is no basis 'week'"),
        ('codes = ["NO_STOP"]', 'codes = ["NO_SUCH"]', "it holds on 'NO_SUCH', which is no code"),
        ("[holds]", '[policies]\nencounter = "week"\n[holds]', "no such encounter or midnight policy"),
        ("[holds]", '[policies]\nmidnight = "noon"\n[holds]', "no such encounter or midnight policy"),
    ],
)
def test_what_cannot_be_read_is_a_clear_error(old, new, why):
    with pytest.raises(InputError, match=why):
        written(**{old: new})


def test_every_basis_and_policy_that_there_is_can_be_written():
    assert {written(**{'basis = "encounter"': f'basis = "{basis}"'}).basis for basis in ("encounter", "day", "evidence")} == {
        "encounter", "day", "evidence",
    }  # fmt: skip
    told = written(**{"[holds]": '[policies]\nencounter = "session"\nmidnight = "split_by_day"\n[holds]'}).policies
    assert (told.encounter, told.midnight) == ("session", "split_by_day")
