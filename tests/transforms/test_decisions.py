"""Reviewers' decisions and releases (docs/semantics.md §6, Decisions): what they make of facts and lines, and when they lapse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.contract import Capture
from ingest.night import rule_sets
from tests.kit import Given, anchor, assembled, at, capture, event, infusion, new_setup, numbered, orders
from tests.test_proof import histories, last_minute
from transforms import billing, decisions, sessions
from transforms.codes import SAYS
from transforms.decisions import Case, Decision, Evidence
from transforms.orders import Orders

START, STOP = "delivery_start", "delivery_stop"
FACTS = ("events", "sessions", "intervals", "setups", "doubts")


@dataclass
class Desk:
    """A reviewer's desk: captures, orders, and the decisions and releases so far."""

    captures: list[Capture]
    known: Orders = field(default_factory=orders)
    decided: list[Decision] = field(default_factory=list)
    released: list[dict[str, Any]] = field(default_factory=list)
    _last: tuple[Any, Any] = (None, None)

    def settled(self) -> tuple[Given, list[Case]]:
        """What all this gives; reckoned anew once any of it is another."""
        all_this = ([one.sha256 for one in self.captures], self.known, [*self.decided], [*self.released])
        if self._last[0] != all_this:
            self._last = (all_this, self._settled())
        found: tuple[Given, list[Case]] = self._last[1]
        return found

    def _settled(self) -> tuple[Given, list[Case]]:
        by_pump: dict[str, list[Capture]] = {}
        for one in self.captures:
            by_pump.setdefault(one.pump_id, []).append(one)
        standing = decisions.in_force(self.decided)
        found = [
            sessions.derive(assembled(mine), self.known, sessions.FactPolicy(), [d for d in standing if d.pump_id == pump])
            for pump, mine in by_pump.items()
        ]
        facts = {name: pa.concat_tables([getattr(one, name) for one in found]) for name in FACTS}
        billed, cases = billing.settled(
            billing.Facts(*(facts[name] for name in FACTS[1:])), self.known, rule_sets(), {}, standing, [dict(row) for row in self.released]
        )
        return Given(facts, billed), cases

    @property
    def given(self) -> Given:
        return self.settled()[0]

    def lines(self, **equal: Any) -> list[dict[str, Any]]:
        return [row for row in self.given.rows("lines") if all(row[name] == value for name, value in equal.items())]

    def items(self, code: str) -> list[dict[str, Any]]:
        return [row for row in self.given.rows("worklist") if row["code"] == code]

    def base(self, pump: str) -> sessions.Facts:
        mine = [one for one in self.captures if one.pump_id == pump]
        return sessions.derive(assembled(mine), self.known, sessions.FactPolicy())

    def take(self, **told: Any) -> Decision:
        usual: dict[str, Any] = {
            "decided_at": datetime(2026, 4, 1, tzinfo=UTC) + timedelta(minutes=len(self.decided)), "by": "ana", "argument": "", "note": "",
            "named": "", "pump_id": None, "patient_id": "pt-1", "encounter_id": None, "session_ids": (), "undoes": None,
        }  # fmt: skip
        one = decisions.decide(**{**usual, **told})
        self.decided.append(one)
        return one

    def shape(self, action: str, about: str, argument: str = "", pump: str = "canonical:A1") -> Decision:
        evidence = Evidence(self.base(pump)).of(action, about)
        assert evidence is not None
        ids = tuple(row["session_id"] for row in self.given.rows("sessions"))
        return self.take(action=action, about=about, argument=argument, pump_id=pump, session_ids=ids, evidence_hash=evidence)

    def stop(self, minutes: float, *, begins: float = 0) -> Decision:
        (start,) = [row for row in self.given.rows("events") if row["kind"] == START and row["pump_time"].isoformat() == at(begins)]
        return self.shape("stop", start["event_id"], at(minutes) + "Z")

    def case(self, encounter: str | None = None) -> Case:
        cases = [case for case in self.settled()[1] if encounter in (None, case.encounter_id)]
        (only,) = cases
        return only

    def clear(self, code: str, encounter: str | None = None) -> Decision:
        case = self.case(encounter)
        assert code in case.codes
        return self.about(case, "clear", case.encounter_id, case.grounds(code), code)

    def about(self, case: Case, action: str, about: str, evidence: str, argument: str = "") -> Decision:
        told = {"action": action, "about": about, "argument": argument, "evidence_hash": evidence, "encounter_id": case.encounter_id}
        return self.take(**told, patient_id=case.about["patient_id"], session_ids=case.session_ids)

    def line(self, action: str, line: Mapping[str, Any]) -> Decision:
        case = self.case(line["encounter_id"])
        return self.about(case, action, line["line_id"], case.evidence_hash)

    def undo(self, one: Decision) -> Decision:
        return self.take(action="undo", about=one.decision_id, undoes=one.decision_id, evidence_hash="")

    def clear_all(self) -> None:
        """Clears whatever holds a line, code by code, as a person would."""
        for _ in range(20):
            held = next(((line["encounter_id"], line["reasons"][0]) for line in self.lines(state="hold")), None)
            if held is None:
                return
            self.clear(held[1], held[0])
        raise AssertionError("what was cleared came back")

    def release(self) -> list[dict[str, Any]]:
        rows = [row for row in self.lines() if decisions.takeable(row)]
        self.released += [{**row, "state": "void" if row["state"] == "void" else "released", "release_id": "r1"} for row in rows]
        return rows


def desk(*events: Mapping[str, Any], end: float | None = 6000, known: Orders | None = None, **header: Any) -> Desk:
    return Desk([capture(numbered(events), anchor=anchor(end) if end else None, **header)], known or orders())


TWO_PUMPS = [
    capture(numbered(infusion(0, 60)), anchor=anchor(600)),
    capture(numbered(infusion(120, 60)), pump="canonical:B2", anchor=anchor(600)),
]
UNENDED = [event(0, START, rate_ml_h=2.0, programmed_ml=1.5), event(60, START, rate_ml_h=2.0), event(80, STOP)]


# --- new sites ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[event(41, "priming_done", target="cannula", reason="aborted")], []], ids=["possible", "no"])
def test_a_confirmed_site_makes_the_add_on_line_and_taking_it_back_removes_it(more):
    one = desk(*new_setup(-5), *infusion(0, 40), event(41, "reservoir_change"), *more, *infusion(45, 40))
    before = one.given.bytes()
    assert one.given.units() == {"96369": 1}
    (setup,) = [row for row in one.given.rows("setups") if row["new_site"] != "yes"]
    decision = one.shape("confirm-site", setup["setup_id"])
    assert one.given.units() == {"96369": 1, "96371": 1}
    (again,) = [row for row in one.given.rows("setups") if row["setup_id"] == setup["setup_id"]]
    assert (again["new_site"], again["decisions"]) == ("yes", [decision.decision_id])
    assert {tuple(line["decisions"]) for line in one.lines()} == {(decision.decision_id,)}
    assert [item["state"] for item in one.items("POSSIBLE_SITE_CHANGE")] == ["decided"]
    undo = one.undo(decision)
    assert one.given.bytes() == before
    one.undo(undo)
    assert one.given.units() == {"96369": 1, "96371": 1}


# --- stops ----------------------------------------------------------------------------------------------------------------------


def test_a_confirmed_stop_makes_the_unknown_piece_infusing_up_to_it_and_its_no_stop_ends():
    one = desk(*UNENDED)
    assert (one.given.session["infusing_s"], one.given.session["unknown_s"], one.given.reasons()) == (1200, 3600, {"NO_STOP"})
    decision = one.stop(45)
    session = one.given.session
    assert (session["infusing_s"], session["unknown_s"], session["paused_s"]) == (65 * 60, 0, 15 * 60)
    assert (session["flags"], session["state"], session["decisions"]) == ([], "closed", [decision.decision_id])
    assert session["volume_ml"] is None
    assert one.given.states() == {"ready"}
    assert {tuple(line["decisions"]) for line in one.lines()} == {(decision.decision_id,)}
    (item,) = one.items("NO_STOP")
    assert item["state"] == "decided"
    assert "ana" in item["message"]


def test_pieces_are_grouped_anew_after_a_confirmed_stop():
    one = desk(event(0, START), event(100, START), event(130, STOP))
    one.stop(20)
    assert [row["infusing_s"] for row in sorted(one.given.rows("sessions"), key=lambda row: row["start"])] == [1200, 1800]


@pytest.mark.parametrize(("minutes", "holds"), [(-1, False), (0, True), (60, True), (61, False)])
def test_a_stop_holds_only_within_the_piece(minutes, holds):
    one = desk(*UNENDED)
    one.stop(minutes)
    assert ("NO_STOP" in one.given.session["flags"]) is not holds


@pytest.mark.parametrize(("minutes", "infusing", "held"), [(30, 25, False), (50, 40, True), (60, 50, True), (61, 15, True)])
def test_a_stop_of_two_sources_that_went_on_together_ends_each_that_it_lies_within(minutes, infusing, held):
    """Both deliver again from the end of the limit: the basal until it starts anew, the other until the power comes on."""
    both = [event(0, START, source="primary"), event(1, START, source="basal"), event(10, "limit_reached"), event(20, "limit_cleared")]
    one = desk(*both, event(40, START, source="basal"), event(45, STOP, source="basal"), event(60, "power_on"))
    (again,) = [row["event_id"] for row in one.given.rows("events") if row["kind"] == "limit_cleared"]
    one.shape("stop", again, at(minutes) + "Z")
    assert (one.given.session["infusing_s"] // 60, "NO_STOP" in one.given.session["flags"]) == (infusing, held)


def test_a_limit_within_the_piece_stays_kvo():
    one = desk(event(0, START), event(20, "limit_reached"), event(60, START), event(70, "limit_cleared"), event(90, STOP))
    one.stop(30)
    assert {name: one.given.session[f"{name}_s"] // 60 for name in ("infusing", "kvo", "unknown")} == {
        "infusing": 40,
        "kvo": 20,
        "unknown": 0,
    }


@pytest.mark.parametrize(("stopped", "infusing", "kvo"), [(0, 20, 0), (10, 30, 10), (20, 40, 10), (21, 40, 11), (60, 40, 50)])
def test_a_stop_before_a_limit_leaves_no_kvo_of_it(stopped, infusing, kvo):
    one = desk(event(0, START), event(20, "limit_reached"), event(60, START), event(70, "limit_cleared"), event(90, STOP))
    one.stop(stopped)
    rows = one.given.rows("sessions")
    assert [sum(row[name] for row in rows) for name in ("infusing_s", "kvo_s")] == [infusing * 60, kvo * 60]


def test_two_pieces_without_a_stop_are_decided_each_by_itself():
    one = desk(event(0, START), event(30, START), event(60, START), event(90, STOP))
    assert one.given.session["unknown_s"] == 3600
    one.stop(20)
    assert "NO_STOP" in one.given.session["flags"]
    one.stop(50, begins=30)
    assert (one.given.session["flags"], one.given.session["infusing_s"]) == ([], (20 + 20 + 30) * 60)


def test_a_bolus_after_the_confirmed_stop_counts_by_itself():
    one = desk(event(0, START), event(50, "bolus_delivered", source="pca", volume_ml=1, duration_s=300), event(60, START), event(90, STOP))
    one.stop(40)
    assert one.given.session["infusing_s"] == (40 + 5 + 30) * 60


def test_the_worklist_offers_the_stop_that_volume_and_rate_suggest_ready_to_paste():
    one = desk(*UNENDED)
    (item,) = one.items("NO_STOP")
    start = next(row for row in one.given.rows("events") if row["kind"] == START)
    assert f"pumpledger decide {start['event_id']} --stop 2026-03-02T08:45:00Z --by YOU" in item["suggestion"]
    for changed in ({"programmed_ml": 5.0}, {"rate_ml_h": None}, {"programmed_ml": None}):
        first = {name: value for name, value in {**UNENDED[0], **changed}.items() if value is not None}
        assert "--stop" not in desk(first, *UNENDED[1:]).items("NO_STOP")[0]["suggestion"]
    varied = desk(UNENDED[0], event(10, "rate_change", rate_ml_h=4.0), *UNENDED[1:])
    assert "--stop" not in varied.items("NO_STOP")[0]["suggestion"]


def test_a_late_record_within_the_piece_lapses_the_stop_and_the_item_says_so():
    lines = numbered([UNENDED[0], event(30, "other"), *UNENDED[1:]])
    one = Desk([capture([line for line in lines if line["seq"] != 2], anchor=anchor(6000), contiguous=False)])
    decision = one.stop(45)
    assert one.given.states() == {"ready"}
    one.captures.append(capture(lines, anchor=anchor(6000), contiguous=False))
    assert one.given.reasons() == {"NO_STOP"}
    (item,) = one.items("NO_STOP")
    assert item["state"] == "open"
    assert decision.decision_id[:10] in item["message"]
    assert [row["severity"] for row in one.items("DECISION_LAPSED")] == ["inform"]
    one.undo(decision)
    assert one.items("DECISION_LAPSED") == []


# --- clocks ---------------------------------------------------------------------------------------------------------------------


def two_stretches(cut: list[dict[str, Any]], later: float) -> Desk:
    """Two days of one log; only the second has an anchor, four hours from UTC."""
    lines = numbered([*infusion(0, 40), *cut, *infusion(later, 40)])
    lines = [line for line in lines if line["kind"] != "gone"]
    return Desk([capture(lines, anchor=anchor(later + 60, utc_minutes=later + 300))])


@pytest.mark.parametrize(
    ("cut", "left"),
    [
        ([event(50, "gone")], {"LOG_GAP"}),
        ([event(50, "clock_change", reason="loss"), event(50, "clock_change", old=at(50), new=at(52))], {"CLOCK_UNCERTAIN"}),
    ],
    ids=["a hole", "a loss"],
)
def test_a_confirmed_clock_takes_the_offset_of_the_next_stretch_and_ends_the_unknown_time(cut, left):
    one = two_stretches(cut, 1440)
    first = min(one.given.rows("sessions"), key=lambda row: row["printed_start"])
    assert (first["start"], first["time_quality"]) == (None, "unknown")
    decision = one.shape("confirm-clock", first["stretch"])
    rows = sorted(one.given.rows("sessions"), key=lambda row: row["printed_start"])
    assert (rows[0]["start"].isoformat(), rows[0]["time_quality"]) == ("2026-03-02T12:00:00+00:00", "corrected")
    assert (rows[0]["flags"], rows[0]["decisions"], rows[1]["decisions"]) == ([], [decision.decision_id], [])
    held = {line["service_date"].day: set(line["reasons"]) for line in one.lines()}
    assert held[2] == left, "what the cut itself leaves open stays"


def test_an_unsettled_cut_of_the_clock_stays():
    one = two_stretches([event(40.5, START), event(41, "clock_change", reason="loss")], 42)
    first = min(one.given.rows("sessions"), key=lambda row: row["printed_start"])
    one.shape("confirm-clock", first["stretch"])
    assert {row["session_id"]: row["flags"] for row in one.given.rows("sessions")}[first["session_id"]] == ["NO_STOP"]
    assert "CLOCK_UNCERTAIN" in one.given.reasons()


def test_a_clock_that_would_end_after_the_next_stretch_began_cannot_be_confirmed():
    one = two_stretches([event(50, "gone")], 10)
    first = min(one.given.rows("sessions"), key=lambda row: row["printed_start"])
    assert Evidence(one.base("canonical:A1")).of("confirm-clock", first["stretch"]) is None


def test_another_offset_lapses_the_confirmed_clock():
    one = two_stretches([event(50, "gone")], 1440)
    first = min(one.given.rows("sessions"), key=lambda row: row["printed_start"])
    one.shape("confirm-clock", first["stretch"])
    (old,) = one.captures
    one.captures = [
        Capture(data=old.data.replace(at(1440 + 300).encode(), at(1440 + 310).encode()), family="canonical", pump_id=old.pump_id)
    ]
    assert {row["start"] for row in one.given.rows("sessions") if row["session_id"] == first["session_id"]} == {None}
    assert [item["state"] for item in one.items("DECISION_LAPSED")] == ["open"]


# --- several decisions ------------------------------------------------------------------------------------------------------------


def test_decisions_about_facts_do_not_lapse_each_other_and_their_order_does_not_matter():
    def fresh() -> Desk:
        primes = [event(81, "reservoir_change"), event(81, "priming_done", target="unknown", volume_ml=0.3)]
        return desk(*new_setup(-5), *UNENDED, *primes, *infusion(85, 40))

    def site(one: Desk) -> None:
        (setup,) = [row for row in one.given.rows("setups") if row["new_site"] == "possible"]
        one.shape("confirm-site", setup["setup_id"])

    def stop(one: Desk) -> None:
        one.stop(45)

    found = []
    for acts in ((site, stop), (stop, site)):
        one = fresh()
        for act in acts:
            act(one)
        assert one.given.units() == {"96369": 1, "96370": 1, "96371": 1}
        assert one.given.states() == {"ready"}
        found.append({(line["code"], line["units"], line["evidence_hash"]) for line in one.lines()} and one.given.units())
    assert found[0] == found[1]


def test_of_two_decisions_on_one_question_the_newer_counts_and_the_older_again_once_it_is_taken_back():
    one = desk(*UNENDED)
    one.stop(45)
    newer = one.stop(30)
    assert one.given.session["infusing_s"] == 50 * 60
    assert one.items("DECISION_LAPSED") == []
    one.undo(newer)
    assert one.given.session["infusing_s"] == 65 * 60


# --- every hold can be cleared ------------------------------------------------------------------------------------------------------


def _conflict() -> Desk:
    lines = numbered(infusion(0, 30))
    return Desk([capture(lines, anchor=anchor(60)), capture([{**lines[0], "rate_ml_h": 9.0}])])


def _gap() -> Desk:
    lines = numbered([*infusion(0, 30), event(40, "other"), *infusion(50, 30)])
    return Desk([capture([line for line in lines if line["seq"] != 3], anchor=anchor(6000))])


def _boundary() -> Desk:
    return desk(*infusion(0, 40), known=orders({"stop": at(30) + "Z"}))


def _per_diem_too_early() -> Desk:
    lines = [{**line, "pump_time": line["pump_time"].replace("2026", "2001")} for line in numbered(infusion(0, 60))]
    end = {name: value.replace("2026", "2001") for name, value in anchor(100).items()}
    return Desk([capture(lines, anchor=end)], orders(rule_set="per-diem", start="2000-01-01T00:00:00Z"))


def _lockout() -> Desk:
    demands = [event(5, "demand_granted"), event(14, "demand_granted")]
    return desk(event(-1, "settings_change", lockout_s=600), event(0, START), *demands, event(30, STOP))


def _demands() -> Desk:
    boluses = [event(m, "bolus_delivered", source="pca", volume_ml=1, duration_s=600) for m in range(0, 60, 15)]
    return desk(event(-1, START, rate_ml_h=0), *boluses, event(70, STOP))


def _amended() -> Desk:
    one = desk(*infusion(0, 60))
    one.release()
    one.captures = desk(*infusion(0, 60), *infusion(100, 20)).captures
    return one


def _held_by_a_reviewer() -> Desk:
    one = desk(*infusion(0, 60))
    one.line("hold", one.lines()[0])
    return one


def _lapsed_void() -> Desk:
    one = desk(*infusion(0, 60))
    one.line("void", one.lines()[0])
    assert one.given.states() == {"void"}
    one.captures = desk(*infusion(0, 60), *infusion(100, 20)).captures
    return one


def _two(**second: str) -> Desk:
    return Desk(list(TWO_PUMPS), orders({}, {"pump_id": "canonical:B2", **second}))


def _overlapping() -> Desk:
    other = capture(numbered(infusion(30, 60)), pump="canonical:B2", anchor=anchor(600))
    return Desk([TWO_PUMPS[0], other], orders({}, {"pump_id": "canonical:B2"}))


HELD: Mapping[str, Callable[[], Desk]] = {
    "NO_STOP": lambda: desk(*UNENDED),
    "NO_START": lambda: desk(event(0, "other"), event(10, STOP, source="primary"), *infusion(20, 30)),
    "SESSION_OPEN": lambda: desk(event(0, START), event(30, "other")),
    "LOG_GAP": _gap,
    "CLOCK_UNCERTAIN": lambda: desk(*infusion(0, 30), end=None),
    "RECORD_CONFLICT": _conflict,
    "ORDER_BOUNDARY": _boundary,
    "OVER_8H": lambda: desk(*infusion(0, 500)),
    "OVER_UNIT_CAP": lambda: desk(*infusion(0, 600)),
    "IV_SAME_ENCOUNTER": lambda: _two(order_id="ord-2", route="IV"),
    "OVERLAPPING_PUMPS": _overlapping,
    "SECOND_ORDER_SAME_DAY": lambda: _two(order_id="ord-2"),
    "DEMAND_ONLY": _demands,
    "LOCKOUT_VIOLATION": _lockout,
    "VOLUME_MISMATCH": lambda: desk(event(0, START, rate_ml_h=20), event(60, STOP, source="primary", volume_ml=30)),
    "AMENDED_AFTER_RELEASE": _amended,
    "NOT_IN_FORCE": _per_diem_too_early,
    "REVIEWER_HOLD": _held_by_a_reviewer,
    "DECISION_LAPSED": _lapsed_void,
}
"""An example of everything that holds a line."""


def test_there_is_an_example_of_everything_that_holds():
    holds = {code for rules in rule_sets().values() for code in rules.holds} | decisions.ALWAYS_HOLD
    assert set(HELD) == holds - decisions.NEVER_CLEARED
    assert holds <= set(SAYS)


@pytest.mark.parametrize("code", HELD)
def test_everything_that_holds_is_cleared_by_a_person_and_by_nobody_else(code):
    one = HELD[code]()
    held = [line for line in one.lines(state="hold") if code in line["reasons"]]
    assert held
    assert not [line for line in one.lines(state="ready") if code in line["reasons"]]
    before = one.given.bytes()
    first = one.clear(code, held[0]["encounter_id"])
    again = next(line for line in one.lines() if (line["line_id"], line["revision"]) == (held[0]["line_id"], held[0]["revision"]))
    assert again["reasons"] == [reason for reason in held[0]["reasons"] if reason != code]
    assert first.decision_id in again["decisions"]
    assert [item["state"] for item in one.items(code) if item["service_date"] == again["service_date"]].count("decided") >= 1
    one.clear_all()
    assert {line["state"] for line in one.lines()} <= {"ready", "released", "void"}
    for decision in list(one.decided):
        if decision.action == "clear":
            one.undo(decision)
    assert one.given.bytes() == before


def test_a_line_without_a_code_is_never_ready():
    one = desk(*infusion(0, 60), known=orders(rule_set="per-diem", drug="treprostinil"))
    one.clear("NO_CODE")
    assert one.given.states() == {"hold"}


MORE: Mapping[str, Callable[[Desk], None]] = {
    "LOG_GAP": lambda one: one.captures.append(capture([{"seq": 9, **event(700, "other")}])),
    "OVER_8H": lambda one: setattr(one, "captures", desk(*infusion(0, 520)).captures),
    "IV_SAME_ENCOUNTER": lambda one: one.captures.append(
        capture([{"seq": 3, **event(200, START)}, {"seq": 4, **event(220, STOP)}], pump="canonical:B2", anchor=anchor(600))
    ),
    "SECOND_ORDER_SAME_DAY": lambda one: one.captures.append(
        capture([{"seq": 3, **event(200, START)}, {"seq": 4, **event(220, STOP)}], pump="canonical:B2", anchor=anchor(600))
    ),
    "AMENDED_AFTER_RELEASE": lambda one: setattr(one, "captures", desk(*infusion(0, 60), *infusion(100, 40)).captures),
}
"""What makes the same code hold for another reason, while the encounter itself may be as it was."""


@pytest.mark.parametrize("code", MORE)
def test_a_new_cause_opens_what_was_cleared_and_the_item_says_so(code):
    one = HELD[code]()
    held = next(line for line in one.lines() if code in line["reasons"] and line["order_id"] == "ord-1")
    one.clear(code, held["encounter_id"])
    MORE[code](one)
    again = next(line for line in one.lines() if line["line_id"] == held["line_id"] and line["state"] == "hold")
    assert code in again["reasons"]
    open_ = [item for item in one.items(code) if item["state"] == "open" and "no longer holds" in item["message"]]
    assert open_


def test_a_day_of_a_second_order_that_was_cleared_is_open_again_when_the_other_order_changes():
    one = Desk(list(TWO_PUMPS), orders({}, {"pump_id": "canonical:B2", "order_id": "ord-2"}, rule_set="per-diem"))
    one.clear_all()
    assert one.given.states() == {"ready"}
    MORE["SECOND_ORDER_SAME_DAY"](one)
    assert [line["order_id"] for line in one.lines(state="hold") if "SECOND_ORDER_SAME_DAY" in line["reasons"]] == ["ord-1", "ord-2"]


@pytest.mark.parametrize("code", ["SECOND_ORDER_SAME_DAY", "IV_SAME_ENCOUNTER", "OVERLAPPING_PUMPS"])
def test_what_was_cleared_stays_so_whatever_is_new_on_another_date(code):
    one = HELD[code]()
    held = next(line for line in one.lines() if code in line["reasons"] and line["order_id"] == "ord-1")
    one.clear(code, held["encounter_id"])
    for pump in ("canonical:A1", "canonical:B2"):
        later = [{"seq": 3, **event(1440, START)}, {"seq": 4, **event(1500, STOP)}]
        one.captures.append(capture(later, pump=pump, anchor=anchor(2000)))
    again = next(line for line in one.lines() if line["line_id"] == held["line_id"])
    assert code not in again["reasons"]
    assert [item["state"] for item in one.items(code) if item["service_date"] == held["service_date"]].count("decided") == 1
    assert len({line["service_date"] for line in one.lines()}) == 2


# --- hold, void, note ------------------------------------------------------------------------------------------------------------


def test_hold_and_void_are_about_the_line_that_was_named():
    one = desk(*infusion(0, 95))
    first, second = sorted(one.lines(), key=lambda line: line["code"])
    held = one.line("hold", second)
    assert {line["code"]: (line["state"], line["reasons"]) for line in one.lines()} == {
        "96369": ("ready", []), "96370": ("hold", ["REVIEWER_HOLD"]),
    }  # fmt: skip
    one.line("void", first)
    assert {line["code"]: line["state"] for line in one.lines()} == {"96369": "void", "96370": "hold"}
    one.undo(held)
    assert {line["code"]: line["state"] for line in one.lines()} == {"96369": "void", "96370": "void"}


@pytest.mark.parametrize(("action", "further"), [("hold", ("hold", ["ADDON_WITHOUT_INITIAL"])), ("void", ("void", []))])
def test_what_only_goes_with_the_initial_hour_waits_for_it_or_is_void_with_it(action, further):
    one = desk(*infusion(0, 95))
    first, _ = sorted(one.lines(), key=lambda line: line["code"])
    stopped = one.line(action, first)
    assert [(line["state"], line["reasons"]) for line in one.lines(code="96370")] == [further]
    assert [stopped.decision_id in line["decisions"] for line in one.lines(code="96370")] == [True]
    one.undo(stopped)
    assert one.given.states() == {"ready"}


def test_a_void_of_an_encounter_voids_all_its_lines():
    one = desk(*infusion(0, 95))
    case = one.case()
    one.about(case, "void", case.encounter_id, case.evidence_hash)
    assert one.given.states() == {"void"}


def test_a_clear_lapses_when_what_it_cleared_reaches_another_date():
    """Of two pumps of an order: the hole in the log of the one is not settled, and with each record behind it it reaches further."""
    known = orders({}, {"pump_id": "canonical:B2"})
    holed = [{"seq": 1, **event(0, "other")}, {"seq": 9, **event(2 * 1440, "other")}]
    whole = capture(numbered(infusion(1440, 60)), pump="canonical:B2", anchor=anchor(9 * 1440))
    one = Desk([capture(holed, anchor=anchor(9 * 1440)), whole], known)
    assert [line["reasons"] for line in one.lines()] == [["LOG_GAP"]]
    one.clear("LOG_GAP")
    assert [line["state"] for line in one.lines()] == ["ready"]
    later = [*holed, {"seq": 10, **event(3 * 1440, "other")}]
    one.captures = [capture(later, anchor=anchor(9 * 1440)), whole]
    assert [line["reasons"] for line in one.lines()] == [["LOG_GAP"]]


def test_a_void_that_lapsed_holds_until_somebody_looks():
    one = _lapsed_void()
    assert one.given.reasons() == {"DECISION_LAPSED"}
    (item,) = one.items("DECISION_LAPSED")
    assert (item["severity"], item["state"]) == ("hold", "open")
    assert "ana" in item["message"]
    one.line("void", one.lines()[0])
    assert "void" in one.given.states()
    assert one.items("DECISION_LAPSED") == []


@pytest.mark.parametrize("action", ["hold", "void"])
@pytest.mark.parametrize("corrected", [{"order_id": "ord-9"}, {"patient_id": "pt-2"}, {"patient_id": "pt-2", "order_id": "ord-9"}])
def test_a_hold_or_void_that_a_corrected_order_left_without_a_line_is_told_until_it_is_taken_back(action, corrected):
    one = desk(*infusion(0, 95))
    taken = one.line(action, one.lines(code="96369")[0])
    assert one.items("DECISION_LAPSED") == []
    one.known = orders(**corrected)
    (item,) = one.items("DECISION_LAPSED")
    assert (item["patient_id"], item["state"]) == ("pt-1", "open")
    assert f"{action}) no longer holds" in item["message"]
    assert f"decide undo {taken.decision_id}" in item["suggestion"]
    one.known = orders()
    assert one.items("DECISION_LAPSED") == []
    one.known = orders(**corrected)
    one.undo(taken)
    assert one.items("DECISION_LAPSED") == []


def test_a_note_is_shown_and_changes_nothing():
    one = desk(*infusion(0, 95))
    case = one.case()
    note = one.take(action="note", about=case.encounter_id, evidence_hash=case.evidence_hash, note="seen", encounter_id=case.encounter_id)
    assert one.given.states() == {"ready"}
    assert all(line["decisions"] == [note.decision_id] for line in one.lines())
    assert "Note of ana, 2026-04-01: seen" in one.items("NEAR_THRESHOLD")[0]["message"]


# --- releases ---------------------------------------------------------------------------------------------------------------------


def shown(one: Desk) -> dict[tuple[str, int], tuple[str, int, int]]:
    """(code, revision) → state, units, minutes."""
    return {(line["code"], line["revision"]): (line["state"], line["units"], line["minutes"]) for line in one.lines()}


def test_a_release_is_taken_once_and_what_stays_as_it_was_is_shown_as_released():
    one = desk(*infusion(0, 95))
    assert len(one.release()) == 2
    assert shown(one) == {("96369", 0): ("released", 1, 95), ("96370", 0): ("released", 1, 95)}
    assert one.release() == []
    assert {item["state"] for item in one.given.rows("worklist")} == {"closed"}


def test_late_data_gives_a_void_and_a_replacement_on_hold_and_the_next_release_takes_both_once_cleared():
    one = _amended()
    assert shown(one) == {("96369", 0): ("released", 1, 60), ("96369", 1): ("void", 1, 60), ("96369", 2): ("hold", 1, 80)}
    line_id = one.lines()[0]["line_id"]
    assert {line["supersedes"] for line in one.lines()} == {None, f"{line_id}/0"}
    assert one.release() == []
    one.clear("AMENDED_AFTER_RELEASE")
    assert len(one.release()) == 2
    assert shown(one) == {("96369", 0): ("released", 1, 60), ("96369", 1): ("void", 1, 60), ("96369", 2): ("released", 1, 80)}
    assert one.release() == []
    assert [item for item in one.given.rows("worklist") if item["state"] == "open" and item["severity"] == "hold"] == []


def test_what_is_healed_back_to_what_was_released_is_no_amendment():
    one = desk(*infusion(0, 60))
    before = one.captures
    one.release()
    released = one.given.bytes()
    one.captures = desk(*infusion(0, 60), *infusion(100, 20)).captures
    assert one.given.bytes() != released
    one.captures = before
    assert one.given.bytes() == released


def test_another_code_replaces_the_released_one_by_name():
    one = desk(*infusion(0, 14))
    one.release()
    one.captures = desk(*infusion(0, 14), *infusion(20, 30)).captures
    assert shown(one) == {("96372", 0): ("released", 1, 14), ("96372", 1): ("void", 1, 14), ("96369", 0): ("hold", 1, 44)}
    old, new = (next(line for line in one.lines() if line["code"] == code) for code in ("96372", "96369"))
    assert new["supersedes"] == f"{old['line_id']}/0"
    one.clear_all()
    assert len(one.release()) == 2
    one.captures = desk(*infusion(0, 14)).captures
    assert shown(one)["96372", 2] == ("hold", 1, 14)
    assert ("96369", 1) in shown(one)


def test_a_line_that_appears_beside_released_ones_is_held():
    primes = [event(41, "reservoir_change"), event(41, "priming_done", target="unknown", volume_ml=0.3)]
    one = desk(*new_setup(-5), *infusion(0, 40), *primes, *infusion(45, 40))
    one.release()
    (setup,) = [row for row in one.given.rows("setups") if row["new_site"] == "possible"]
    one.shape("confirm-site", setup["setup_id"])
    assert shown(one) == {("96369", 0): ("released", 1, 80), ("96371", 0): ("hold", 1, 80)}
    assert one.given.reasons() == {"AMENDED_AFTER_RELEASE"}


def test_a_line_that_is_gone_leaves_a_void_that_the_next_release_takes_once_cleared():
    one = desk(*infusion(0, 95))
    one.release()
    one.captures = desk(*infusion(0, 80)).captures
    assert shown(one)["96370", 1] == ("void", 1, 95)
    assert ("96370", 2) not in shown(one)
    one.clear_all()
    assert {(row["code"], row["revision"]) for row in one.release()} == {("96369", 1), ("96369", 2), ("96370", 1)}
    assert one.items("AMENDED_AFTER_RELEASE") == []


@pytest.mark.parametrize("held", [True, False])
def test_a_further_hour_goes_with_the_initial_one_that_was_voided_after_its_release(held):
    one = desk(*infusion(0, 151))
    one.release()
    initial, further = sorted(one.lines(), key=lambda line: line["code"])
    if held:
        one.line("hold", further)
    voided = one.line("void", initial)
    assert [line["state"] for line in one.lines(code="96370", revision=2)] == ["hold"] * held
    taken = one.release()
    assert sorted((row["code"], row["state"]) for row in taken) == [("96369", "void"), ("96370", "void")]
    assert all(voided.decision_id in row["decisions"] for row in taken)
    assert one.release() == []
    one.undo(voided)
    assert not [line for line in one.lines() if line["state"] == "ready"]
    one.clear("AMENDED_AFTER_RELEASE")
    assert sorted((row["code"], row["state"]) for row in one.release()) == [("96369", "ready"), ("96370", "ready")][: 2 - held]


def test_an_encounter_that_is_gone_is_still_on_the_worklist():
    one = desk(*infusion(0, 60))
    one.release()
    one.captures = desk(event(0, "other")).captures
    assert shown(one) == {("96369", 0): ("released", 1, 60), ("96369", 1): ("void", 1, 60)}
    (item,) = one.items("AMENDED_AFTER_RELEASE")
    assert (item["severity"], item["state"]) == ("hold", "open")
    (released,) = one.released
    assert (one.case().encounter_id, list(one.case().session_ids)) == (released["encounter_id"], released["session_ids"])
    one.clear("AMENDED_AFTER_RELEASE")
    assert [item["state"] for item in one.items("AMENDED_AFTER_RELEASE")] == ["decided"]
    assert len(one.release()) == 1


def test_a_service_that_moves_to_another_date_or_patient_is_not_billed_a_second_time():
    lines = numbered(infusion(0, 60))
    one = Desk([capture(lines, anchor=anchor(600))])
    one.release()
    one.captures = [capture(lines, anchor=anchor(600, utc_minutes=600 + 1440))]
    dates = {(line["service_date"].day, line["revision"]): line["state"] for line in one.lines()}
    assert dates == {(2, 0): "released", (2, 1): "void", (3, 0): "hold"}
    other = Desk([capture(lines, anchor=anchor(600))], orders(patient_id="pt-9"), released=one.released)
    assert {(line["patient_id"], line["revision"]): line["state"] for line in other.lines()} == {
        ("pt-1", 0): "released", ("pt-1", 1): "void", ("pt-9", 0): "hold",
    }  # fmt: skip
    assert other.lines(patient_id="pt-9")[0]["supersedes"] == f"{one.released[0]['line_id']}/0"


def test_what_rests_on_an_event_of_a_released_line_replaces_it_whatever_it_is_called_now():
    one = desk(*infusion(0, 60))
    (released,) = one.release()
    one.known = orders(order_id="ord-9")
    (new,) = one.lines(order_id="ord-9")
    assert set(new["session_ids"]).isdisjoint(released["session_ids"])
    assert new["encounter_id"] != released["encounter_id"]
    assert (new["state"], new["supersedes"]) == ("hold", f"{released['line_id']}/0")
    assert {(line["order_id"], line["revision"]): line["state"] for line in one.lines()} == {
        ("ord-1", 0): "released", ("ord-1", 1): "void", ("ord-9", 0): "hold",
    }  # fmt: skip
    # other records, of another day and order, replace nothing
    one.captures = [capture([{"seq": 11, **event(1440, START)}, {"seq": 12, **event(1500, STOP)}], anchor=anchor(2000))]
    (apart,) = one.lines(order_id="ord-9")
    assert (apart["state"], apart["supersedes"]) == ("ready", None)


def test_therapy_days_that_follow_on_released_ones_are_new_lines_and_no_amendments():
    known = orders(rule_set="per-diem")
    one = desk(event(0, START), event(30 * 60, "other"), known=known)
    assert [row["service_date"].day for row in one.release()] == [2]
    one.captures = desk(event(0, START), event(60 * 60, "other"), known=known).captures
    assert {line["service_date"].day: line["state"] for line in one.lines()} == {2: "released", 3: "ready", 4: "hold"}


def test_a_doubt_that_reaches_a_released_line_amends_it_and_a_time_that_moved_does_not():
    lines = numbered([*infusion(0, 60), event(100, "other"), event(101, "other")])
    one = Desk([capture(lines[:2], anchor=anchor(70))])
    one.release()
    one.captures = [capture(lines[:2], anchor=anchor(70, utc_minutes=71))]
    assert {line["state"] for line in one.lines()} == {"released"}
    one.captures.append(capture([lines[0], {**lines[1], "volume_ml": 1.0}]))
    assert "RECORD_CONFLICT" in one.given.reasons()
    assert {line["state"] for line in one.lines()} == {"released", "void", "hold"}


def test_a_reviewers_void_after_the_release_needs_no_second_look():
    one = desk(*infusion(0, 60))
    one.release()
    case = one.case()
    one.about(case, "void", case.encounter_id, case.evidence_hash)
    assert shown(one) == {("96369", 0): ("released", 1, 60), ("96369", 1): ("void", 1, 60)}
    assert len(one.release()) == 1
    assert one.release() == []


def test_another_payer_amends():
    one = desk(*infusion(0, 60))
    one.release()
    one.known = orders(payer="payer-b")
    assert {(line["payer"], line["revision"]): line["state"] for line in one.lines()} == {
        ("payer-a", 0): "released", ("payer-a", 1): "void", ("payer-b", 2): "hold",
    }  # fmt: skip


def test_evidence_is_held_and_voided_but_never_released():
    one = desk(*infusion(0, 60), known=orders(rule_set="evidence-only"))
    assert one.given.states() == {"ready"}
    assert one.release() == []


# --- properties -------------------------------------------------------------------------------------------------------------------

MANY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@MANY
@given(lines=histories(), cleared=st.booleans())
def test_a_release_followed_by_nothing_new_amends_nothing(lines, cleared):
    one = Desk([capture(lines, anchor=anchor(last_minute(lines) + 5))])
    if cleared:
        one.clear_all()
    before = {line["line_id"]: (line["state"], line["units"], line["minutes"]) for line in one.lines()}
    taken = {row["line_id"] for row in one.release()}
    after = {line["line_id"]: (line["state"], line["units"], line["minutes"]) for line in one.lines()}
    assert after == {line: ("released", *told[1:]) if line in taken else told for line, told in before.items()}
    assert one.release() == []


@MANY
@given(data=st.data())
def test_late_data_never_leaves_a_changed_line_ready_or_as_if_it_stood(data):
    lines = data.draw(histories())
    end = anchor(last_minute(lines) + 5)
    hidden = data.draw(st.sets(st.sampled_from([line["seq"] for line in lines]), max_size=max(0, len(lines) - 1)))
    one = Desk([capture([line for line in lines if line["seq"] not in hidden], anchor=end)])
    if data.draw(st.booleans()):
        one.clear_all()
    taken = {row["line_id"]: row for row in one.release()}
    early, first = list(one.captures), one.given.bytes()
    one.captures.append(capture(lines, anchor=end))
    current = Desk(one.captures, one.known, one.decided).lines()
    now = {line["line_id"]: line for line in current}
    by_key = {decisions.key_of(line): line for line in one.lines()}
    for line_id, row in taken.items():
        same = line_id in now and now[line_id]["state"] == "ready" and decisions.figures(now[line_id]) == decisions.figures(row)
        assert by_key[f"{line_id}/0"]["state"] == "released"
        assert {name: by_key[f"{line_id}/0"][name] for name in ("units", "minutes", "ledger")} == {
            name: row[name] for name in ("units", "minutes", "ledger")
        }
        assert (f"{line_id}/1" in by_key) is not same
        if not same:
            assert by_key[f"{line_id}/1"]["state"] == "void"
            assert (f"{line_id}/2" in by_key) is (line_id in now)
    touched = {row["encounter_id"] for row in taken.values()}
    events = {event for key, row in by_key.items() if row["state"] == "void" and row["supersedes"] for event in row["event_ids"]}
    for line in by_key.values():
        if line["state"] == "ready":
            assert line["encounter_id"] not in touched
            assert events.isdisjoint(line["event_ids"])
    one.captures = early
    assert one.given.bytes() == first
