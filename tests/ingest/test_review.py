"""Deciding, releasing and amending on a lake: what is kept, what is derived again, what a kill leaves, and what the command line says."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.contract import Capture
from devices.errors import InputError, StorageError
from ingest import cli, demo, explain, night, people, review, telling, upkeep, views
from ingest.lake import Lake
from ingest.page import as_html
from tests.ingest.test_cli import run
from tests.ingest.test_files import at_call, in_child, kill
from tests.ingest.test_night import fresh
from tests.kit import PUMP, anchor, capture, event, infusion, new_setup, numbered
from tests.test_proof import derived, histories, last_minute, order_file, pieces, put
from transforms import tables

WHEN = datetime(2026, 4, 1, 12, tzinfo=UTC)
UNENDED = [
    event(0, "delivery_start", rate_ml_h=2.0, programmed_ml=1.5),
    event(60, "delivery_start", rate_ml_h=2.0),
    event(80, "delivery_stop"),
]
LONG = numbered([*new_setup(-5), *infusion(0, 500)])
LATE = numbered([*new_setup(-5), *infusion(0, 500), *infusion(520, 20)])


def lake_of(folder: Path, *captures: Capture) -> Path:
    root = fresh(folder / "lake", *captures)
    night.nightly(root, orders_file=order_file(folder))
    return root


def more(root: Path, *captures: Capture) -> None:
    put(root, list(captures))
    night.nightly(root)


def lines(root: Path, **equal: Any) -> list[dict[str, Any]]:
    rows = views.select(Lake.open(root), "lines").to_pylist()
    return [row for row in rows if all(row[name] == value for name, value in equal.items())]


def items(root: Path, code: str) -> list[dict[str, Any]]:
    return [row for row in views.select(Lake.open(root), "worklist").to_pylist() if row["code"] == code]


def states(root: Path) -> dict[tuple[str, int], str]:
    return {(line["code"], line["revision"]): line["state"] for line in lines(root)}


def whole(root: Path) -> dict[str, bytes]:
    """The lake as its readers see it, and what people put into it."""
    kept = [path for name in ("decisions", "releases", "audit") for path in sorted((root / name).rglob("*")) if path.is_file()]
    kept = [path for path in kept if not path.name.startswith(".")]
    return derived(root) | {str(path.relative_to(root)): path.read_bytes() for path in kept}


# --- decisions --------------------------------------------------------------------------------------------------------------------


def test_a_decision_is_kept_signed_and_shown_at_once_and_a_night_changes_nothing_more(tmp_path):
    root = lake_of(tmp_path, capture(LONG, anchor=anchor(6000)))
    (item,) = items(root, "OVER_8H")
    outcome = review.decide(root, item["item_id"][:8], "clear", argument="over_8h", note="seen", by="ana", at=WHEN)
    assert outcome.shown
    assert {line["state"] for line in outcome.lines} == {"ready"}
    assert [row["state"] for row in items(root, "OVER_8H")] == ["decided"]
    before = derived(root)
    assert night.nightly(root).people == 0
    assert derived(root) == before
    (entry,) = Lake.open(root).read("audit", people.AUDIT).to_pylist()
    assert (entry["who"], entry["what"], entry["about"]) == ("ana", "decide clear", outcome.decision.decision_id)
    assert upkeep.verify(root) == []


def test_a_decision_on_facts_derives_its_pump_alone_and_undo_gives_back_the_same_bytes(tmp_path):
    other = capture(numbered(infusion(0, 30)), pump="canonical:B2", anchor=anchor(6000))
    root = lake_of(tmp_path, capture(numbered(UNENDED), anchor=anchor(6000)), other)
    before, inputs = derived(root), dict(Lake.open(root).current("consolidate", 0).inputs)
    (item,) = items(root, "NO_STOP")
    command = item["suggestion"].split("pumpledger decide ")[1].split()
    decided = review.decide(root, command[0], "stop", argument=command[2], by="ana")
    after = dict(Lake.open(root).current("consolidate", 0).inputs)
    assert {name for name in inputs if inputs[name] != after[name]} == {"pump canonical:A1"}
    assert states(root) == {("96369", 0): "ready"}
    assert lines(root)[0]["minutes"] == 65
    assert upkeep.verify(root) == []
    review.undo(root, decided.decision.decision_id[:8], by="ben")
    assert derived(root) == before
    with pytest.raises(InputError, match="taken back already"):
        review.undo(root, decided.decision.decision_id, by="ben")


def test_two_decisions_on_one_session_stand_beside_each_other(tmp_path):
    primes = [event(81, "reservoir_change"), event(81, "priming_done", target="unknown", volume_ml=0.3)]
    root = lake_of(tmp_path, capture(numbered([*new_setup(-5), *UNENDED, *primes, *infusion(85, 40)]), anchor=anchor(6000)))
    (session,) = views.select(Lake.open(root), "sessions").to_pylist()
    review.decide(root, session["session_id"], "stop", argument="2026-03-02T08:45:00", by="ana")
    review.decide(root, lines(root)[0]["line_id"], "confirm-site", by="ana")
    assert states(root) == {("96369", 0): "ready", ("96370", 0): "ready", ("96371", 0): "ready"}
    assert upkeep.verify(root) == []


def test_a_clock_is_confirmed_by_its_item(tmp_path):
    logged = [line for line in numbered([*infusion(0, 40), event(50, "other"), *infusion(1440, 40)]) if line["kind"] != "other"]
    root = lake_of(tmp_path, capture(logged, anchor=anchor(1500)))
    first = min(views.select(Lake.open(root), "sessions").to_pylist(), key=lambda row: row["printed_start"])
    review.decide(root, first["session_id"], "confirm-clock", by="ana")
    assert all(row["start"] is not None for row in views.select(Lake.open(root), "sessions").to_pylist())


def test_a_lapsed_decision_opens_its_item_again(tmp_path):
    root = lake_of(tmp_path, capture(LONG, anchor=anchor(6000)))
    review.decide(root, lines(root)[0]["line_id"], "clear", argument="OVER_8H", by="ana")
    more(root, capture(LATE[-3:], anchor=anchor(6001)))
    (item,) = items(root, "OVER_8H")
    assert item["state"] == "open"
    assert "no longer holds" in item["message"]
    assert {line["state"] for line in lines(root)} == {"hold"}


def test_an_item_about_a_pump_can_be_done_with(tmp_path):
    root = lake_of(tmp_path, capture(numbered(infusion(0, 30)), anchor=anchor(60)), capture([{"seq": 9, **event(700, "other")}]))
    cut = next(item for item in items(root, "LOG_GAP") if item["order_id"] is None)
    held = [line["state"] for line in lines(root)]
    review.decide(root, cut["item_id"], "clear", argument="LOG_GAP", by="ana")
    assert {item["state"] for item in items(root, "LOG_GAP") if item["item_id"] == cut["item_id"]} == {"decided"}
    assert [line["state"] for line in lines(root)] == held


def test_explain_shows_who_decided_what_and_whether_it_holds(tmp_path):
    root = lake_of(tmp_path, capture(LONG, anchor=anchor(6000)))
    line_id = lines(root)[0]["line_id"]
    review.decide(root, line_id, "clear", argument="OVER_8H", note="with the visit record", by="ana", at=WHEN)
    taken_back = review.decide(root, line_id, "hold", by="ben", at=WHEN)
    review.undo(root, taken_back.decision.decision_id, by="ben")
    told = explain.explain(Lake.open(root), line_id)
    assert [(one["by"], one["action"], one["stands"]) for one in sorted(told["decisions"], key=lambda one: one["by"])] == [
        ("ana", "clear", "rests on it"), ("ben", "hold", "taken back or replaced"),
    ]  # fmt: skip
    assert "clear OVER_8H by ana, 2026-04-01 12:00:00 UTC: with the visit record" in telling.as_text(told)
    assert "with the visit record" in as_html(told)


@pytest.mark.parametrize(
    ("action", "argument", "says"),
    [
        ("clear", "NO_STOP", "NO_STOP does not hold here. There is"),
        ("clear", "NO_CODE", "NO_CODE cannot be cleared"),
        ("stop", "2026-03-02T09:00:00Z", "no delivery here that lacks its stop"),
        ("confirm-site", "", "no set-up here"),
        ("confirm-clock", "", "no clock here"),
        ("note", "", "note is empty"),
        ("bless", "", "no decision 'bless'"),
    ],
)
def test_what_cannot_be_decided_says_why(tmp_path, action, argument, says):
    root = lake_of(tmp_path, capture(LONG, anchor=anchor(6000)))
    with pytest.raises(InputError) as raised:
        review.decide(root, lines(root)[0]["line_id"], action, argument=argument, by="ana")
    assert says in str(raised.value)
    assert people.decisions(Lake.open(root)) == []


def test_a_stop_outside_of_the_piece_names_its_bounds_and_several_pieces_are_listed(tmp_path):
    root = lake_of(tmp_path, capture(numbered(UNENDED), anchor=anchor(6000)))
    with pytest.raises(InputError, match=r"2026-03-02T08:00:00Z at the earliest and 2026-03-02T09:00:00Z at the latest"):
        review.decide(root, items(root, "NO_STOP")[0]["item_id"], "stop", argument="2026-03-02T09:30:00Z", by="ana")
    for beyond in ("soon", "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00", "0001-01-01T00:00:00"):
        with pytest.raises(InputError, match="is no time"):
            review.decide(root, items(root, "NO_STOP")[0]["item_id"], "stop", argument=beyond, by="ana")
    (tmp_path / "two").mkdir()
    twice = lake_of(tmp_path / "two", capture(numbered([UNENDED[0], event(30, "delivery_start"), *UNENDED[1:]]), anchor=anchor(6000)))
    with pytest.raises(InputError, match="Several deliveries without a stop"):
        review.decide(twice, items(twice, "NO_STOP")[0]["item_id"], "stop", argument="2026-03-02T08:10:00Z", by="ana")


def test_where_utc_is_unknown_a_stop_is_given_as_the_pump_printed_it(tmp_path):
    root = lake_of(tmp_path, capture(numbered(UNENDED)))
    item = items(root, "NO_STOP")[0]["item_id"]
    with pytest.raises(InputError, match="without a zone"):
        review.decide(root, item, "stop", argument="2026-03-02T08:45:00Z", by="ana")
    review.decide(root, item, "stop", argument="2026-03-02T08:45:00", by="ana")
    assert lines(root)[0]["minutes"] == 65


def test_nobody_decides_or_releases_on_tables_that_are_behind(tmp_path):
    root = lake_of(tmp_path, capture(LONG, anchor=anchor(6000)))
    put(root, [capture(LATE[-3:], anchor=anchor(6001))])
    night.drain(root)
    line_id = lines(root)[0]["line_id"]
    for act in (lambda: review.decide(root, line_id, "hold", by="ana"), lambda: review.release(root, by="ana")):
        with pytest.raises(InputError) as raised:
            act()
        assert raised.value.code == "stale"


def test_a_decision_needs_a_name(tmp_path):
    root = lake_of(tmp_path, capture(LONG, anchor=anchor(6000)))
    with pytest.raises(InputError, match="Nobody signs"):
        review.decide(root, lines(root)[0]["line_id"], "hold", by=" ")


# --- releases ---------------------------------------------------------------------------------------------------------------------


READY = [capture(numbered(infusion(0, 95)), anchor=anchor(200))]
SECOND_DAY = capture([{"seq": 3, **event(2200, "delivery_start")}, {"seq": 4, **event(2230, "delivery_stop")}], anchor=anchor(2300))
MORE = numbered([*infusion(0, 95), *infusion(100, 60)])


def test_a_release_freezes_the_ready_lines_once_and_adds_up(tmp_path):
    root = lake_of(tmp_path, *READY)
    planned = review.release(root, by="ana", dry_run=True)
    assert not (root / "releases").exists()
    taken = review.release(root, by="ana", at=WHEN)
    assert taken is not None
    assert planned is not None
    assert taken.release_id == planned.release_id
    assert [(total.payer, total.code, total.lines, total.units, total.minutes) for total in taken.totals] == [
        ("payer-a", "96369", 1, 1, 95), ("payer-a", "96370", 1, 1, 95),
    ]  # fmt: skip
    frozen = pq.read_table(root / "releases" / f"release-0001-{WHEN:%Y-%m-%d}-{taken.release_id[:10]}.parquet").to_pylist()
    assert {(row["state"], row["release_id"]) for row in frozen} == {("released", taken.release_id)}
    assert states(root) == {("96369", 0): "released", ("96370", 0): "released"}
    assert review.release(root, by="ana") is None
    assert upkeep.verify(root) == []
    assert [entry["what"] for entry in Lake.open(root).read("audit", people.AUDIT).to_pylist()] == ["release"]


def test_a_second_release_takes_what_is_new_and_follows_on_the_first(tmp_path):
    root = lake_of(tmp_path, *READY)
    review.release(root, by="ana")
    more(root, SECOND_DAY)
    second = review.release(root, by="ben")
    assert second is not None
    assert (second.number, second.lines) == (2, 1)
    first, again = people.releases(Lake.open(root))
    assert (first.previous, again.previous) == ("", first.sha256)
    assert upkeep.verify(root) == []


def test_a_release_whose_rows_are_named_by_their_hash_is_read_and_followed_on(tmp_path):
    root = lake_of(tmp_path, *READY)
    first = review.release(root, by="ana")
    assert first is not None
    (root / "releases" / first.name).rename(root / "releases" / f"{first.rows_sha256}.parquet")
    more(root, SECOND_DAY)
    second = review.release(root, by="ben")
    assert second is not None
    assert people.released(Lake.open(root)).num_rows == first.lines + second.lines
    assert {path.name for path in (root / "releases").glob("*.parquet")} == {f"{first.rows_sha256}.parquet", second.name}
    assert states(root)["96369", 0] == "released"
    assert upkeep.verify(root) == []


def test_payer_and_month_choose_what_is_taken(tmp_path):
    root = lake_of(tmp_path, *READY)
    assert review.release(root, by="ana", payer="payer-b") is None
    assert review.release(root, by="ana", month="2026-04") is None
    with pytest.raises(InputError, match="no month"):
        review.release(root, by="ana", month="March")
    assert review.release(root, by="ana", payer="payer-a", month="2026-03") is not None


def test_late_data_is_an_amendment_that_is_listed_cleared_and_taken(tmp_path):
    root = lake_of(tmp_path, *READY)
    review.release(root, by="ana")
    assert review.amendments(Lake.open(root)).num_rows == 0
    more(root, capture(MORE[2:], anchor=anchor(2100)))
    found = review.amendments(Lake.open(root), payer="payer-a", month="2026-03").to_pylist()
    assert {row["state"] for row in found} == {"hold"}
    assert all(row["void"] == row["released"][:-1] + "1" for row in found)
    assert review.amendments(Lake.open(root), month="2026-05").num_rows == 0
    assert review.release(root, by="ana") is None
    for _ in range(5):
        held = next((line for line in lines(root, state="hold")), None)
        if held is None:
            break
        review.decide(root, held["line_id"], "clear", argument=held["reasons"][0], by="ana")
    taken = review.release(root, by="ana")
    assert taken is not None
    assert taken.voids == len(found)
    assert {row["taken_by"] for row in review.amendments(Lake.open(root)).to_pylist()} == {taken.release_id}
    assert upkeep.verify(root) == []
    told = explain.explain(Lake.open(root), lines(root)[0]["line_id"])
    assert told["line"]["revision"] == 2


@pytest.mark.parametrize(("column", "there"), [("patient_id", "pt-2"), ("order_id", "ord-2")])
def test_one_infusion_is_never_claimed_twice_while_a_void_waits_to_be_cleared(tmp_path, column, there):
    root = lake_of(tmp_path, capture(numbered(infusion(0, 60)), anchor=anchor(6000)))
    usual = (tmp_path / "orders.csv").read_text()
    here = {"patient_id": "pt-1", "order_id": "ord-1"}[column]

    def ordered(text: str) -> None:
        (tmp_path / "orders.csv").write_text(text)
        night.nightly(root, orders_file=tmp_path / "orders.csv")

    def clear(**of: str) -> None:
        for item in items(root, "AMENDED_AFTER_RELEASE"):
            if item["state"] == "open" and of.items() <= item.items():
                review.decide(root, item["item_id"], "clear", argument="AMENDED_AFTER_RELEASE", by="ana")

    def standing() -> list[str]:
        rows = people.released(Lake.open(root)).to_pylist()
        gone = {row["supersedes"] for row in rows if row["state"] == "void"}
        return [row[column] for row in rows if row["state"] == "released" and f"{row['line_id']}/{row['revision']}" not in gone]

    review.release(root, by="ana")
    for now, then in ((there, here), (here, there)):
        ordered(usual.replace(here, now))
        clear(**{column: now})
        said = run("release", "--by", "ana", "--lake", root)
        waits = review.waiting(Lake.open(root))
        assert ("Ready, but not taken: 1 lines" in said, standing()) == (bool(waits), [then if waits else now])
        clear(**{column: then})
        review.release(root, by="ana")
        assert (review.waiting(Lake.open(root)), standing()) == (0, [now])
    assert waits


def test_an_amendment_that_moves_a_claim_to_another_payer_is_listed_for_both(tmp_path):
    root = lake_of(tmp_path, capture(numbered(infusion(0, 60)), anchor=anchor(6000)))
    review.release(root, by="ana")
    (tmp_path / "orders.csv").write_text((tmp_path / "orders.csv").read_text().replace("payer-a", "payer-b"))
    night.nightly(root, orders_file=tmp_path / "orders.csv")
    listed = {payer: review.amendments(Lake.open(root), payer=payer).num_rows for payer in ("payer-a", "payer-b", "payer-c")}
    assert listed == {"payer-a": 1, "payer-b": 1, "payer-c": 0}


def test_what_was_released_stays_when_its_order_and_its_session_are_no_more(tmp_path):
    root = lake_of(tmp_path, *READY)
    review.release(root, by="ana")
    path = order_file(tmp_path)
    path.write_text(path.read_text().replace("pt-1", "pt-2").replace("ord-1", "ord-2"))
    night.nightly(root, orders_file=path)
    found = {(line["patient_id"], line["code"], line["revision"]): line["state"] for line in lines(root)}
    assert found == {
        ("pt-1", "96369", 0): "released", ("pt-1", "96370", 0): "released", ("pt-1", "96369", 1): "void", ("pt-1", "96370", 1): "void",
        ("pt-2", "96369", 0): "hold", ("pt-2", "96370", 0): "hold",
    }  # fmt: skip
    assert explain.explain(Lake.open(root), lines(root, patient_id="pt-1")[0]["line_id"])["line"]["earlier_revisions"] == [0]


def test_a_hold_on_a_patient_who_has_no_order_any_more_stays_on_the_worklist(tmp_path):
    root = lake_of(tmp_path, *READY)
    held = review.decide(root, lines(root)[0]["line_id"], "hold", by="ana").decision
    path = order_file(tmp_path)
    path.write_text(path.read_text().replace("pt-1", "pt-2").replace("ord-1", "ord-2"))
    night.nightly(root, orders_file=path)
    (item,) = items(root, "DECISION_LAPSED")
    assert (item["patient_id"], item["state"]) == ("pt-1", "open")
    assert not night.stale(root)
    review.undo(root, held.decision_id, by="ana")
    assert items(root, "DECISION_LAPSED") == []


@pytest.mark.parametrize("what", ["figures", "chain", "rows", "gone", "unnamed"])
def test_verify_finds_releases_that_were_changed_behind_our_back(tmp_path, what):
    root = lake_of(tmp_path, *READY)
    taken = review.release(root, by="ana")
    assert taken is not None
    number, rows = root / "releases" / "00000001.json", root / "releases" / taken.name
    match what:
        case "figures":
            number.write_text(number.read_text().replace('"units": 2', '"units": 1'))
        case "chain":
            number.rename(root / "releases" / "00000002.json")
        case "rows":
            rows.write_bytes(rows.read_bytes()[:-1] + b"!")
        case "gone":
            rows.unlink()
        case _:
            rows.with_name("0" * 64 + ".parquet").write_bytes(b"")
    assert {finding.code for finding in upkeep.verify_files(root)} <= {"changed", "chain", "unnamed"}
    assert upkeep.verify_files(root) != []


@pytest.mark.parametrize("lost", ["*", "00000002.json", "*2*"])
def test_a_release_that_is_lost_is_told_and_its_lines_are_not_taken_again(tmp_path, lost):
    root = lake_of(tmp_path, *READY)
    review.release(root, by="ana", at=WHEN)
    more(root, SECOND_DAY)
    review.release(root, by="ana", at=WHEN)
    for path in list((root / "releases").glob(lost)):
        path.unlink()
    assert [finding.code for finding in upkeep.verify_files(root)] == ["lost"]
    for again in (lambda: review.release(root, by="ana"), lambda: night.nightly(root)):
        with pytest.raises(StorageError) as caught:
            again()
        assert caught.value.code == "lost"


def test_of_two_decisions_the_later_one_counts_though_the_clock_of_the_host_was_set_back(tmp_path):
    root = lake_of(tmp_path, *READY)
    ident = next(line["line_id"] for line in lines(root) if line["code"] == "96369")
    held = review.decide(root, ident, "hold", by="ana", at=WHEN).decision
    voided = review.decide(root, ident, "void", by="ana", at=WHEN - timedelta(hours=1)).decision
    assert voided.decided_at > held.decided_at
    assert lines(root, code="96369")[0]["state"] == "void"
    assert review.undo(root, voided.decision_id, by="ana", at=WHEN - timedelta(hours=2)).decision.decided_at > voided.decided_at


def test_a_decision_is_kept_beside_a_run_that_writes_the_audit_which_names_it_later(tmp_path):
    root = lake_of(tmp_path, *READY)
    with ThreadPoolExecutor(1) as other, Lake.open(root).lock("audit", 0):
        decided = other.submit(review.decide, root, lines(root)[0]["line_id"], "hold", by="ana").result()
        assert not (root / "audit").exists()
    assert "REVIEWER_HOLD" in [code for line in decided.lines for code in line["reasons"]]
    people.audit(Lake.open(root))
    assert Lake.open(root).read("audit", people.AUDIT)["about"].to_pylist() == [decided.decision.decision_id]


def test_verify_finds_decisions_that_were_changed_behind_our_back(tmp_path):
    root = lake_of(tmp_path, capture(LONG, anchor=anchor(6000)))
    review.decide(root, lines(root)[0]["line_id"], "hold", by="ana")
    (path,) = (root / "decisions").rglob("*.parquet")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert {finding.code for finding in upkeep.verify_files(root)} == {"changed"}


def release_killed(root: Path, number: int) -> None:
    with at_call(number, kill):
        review.release(root, by="ana", at=WHEN)


def decide_killed(root: Path, line_id: str, number: int) -> None:
    with at_call(number, kill):
        review.decide(root, line_id, "void", by="ana", at=WHEN)


def chosen(calls: int) -> list[int]:
    """Every other call of the first forty, where the release itself is written, and some of those that derive."""
    return [*range(1, min(calls, 40) + 1, 2), *range(41, calls + 1, 19)]


def test_a_release_killed_at_any_write_and_taken_again_takes_each_line_once(tmp_path):
    root = lake_of(tmp_path, *READY)
    dry = Path(shutil.copytree(root, tmp_path / "dry"))
    with at_call(0, kill) as calls:
        review.release(dry, by="ana", at=WHEN)
    after = whole(dry)
    assert len(calls) > 40
    for number in chosen(len(calls)):
        one = Path(shutil.copytree(root, tmp_path / str(number)))
        assert in_child(release_killed, one, number) == -signal.SIGKILL
        night.nightly(one)
        review.release(one, by="ana", at=WHEN)
        assert whole(one) == after, number
        assert upkeep.verify_files(one) == []
        shutil.rmtree(one)


def test_a_decision_killed_at_any_write_is_there_whole_or_not_at_all(tmp_path):
    root = lake_of(tmp_path, *READY)
    line_id = lines(root)[0]["line_id"]
    dry = Path(shutil.copytree(root, tmp_path / "dry"))
    with at_call(0, kill) as calls:
        review.decide(dry, line_id, "void", by="ana", at=WHEN)
    for number in range(1, len(calls) + 1, 9):
        one = Path(shutil.copytree(root, tmp_path / str(number)))
        assert in_child(decide_killed, one, line_id, number) == -signal.SIGKILL
        night.nightly(one)
        review.decide(one, line_id, "void", by="ana", at=WHEN)
        assert derived(one) == derived(dry), number
        assert len(people.decisions(Lake.open(one))) == 1
        assert {finding.code for finding in upkeep.verify_files(one)} <= {"unnamed"}
        shutil.rmtree(one)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_order_of_captures_and_nights_gives_the_same_tables_given_the_same_decisions_and_releases(data):
    logged = data.draw(histories())
    captures = data.draw(pieces(logged, anchor(last_minute(logged) + 5)))
    early = data.draw(st.integers(0, len(captures)))
    with TemporaryDirectory() as folder:
        orders = order_file(Path(folder))
        first = Path(folder) / "first"
        night.open_lake(first, buckets=1)
        put(first, captures[:early])
        night.nightly(first, orders_file=orders)
        held = {line["encounter_id"]: line for line in lines(first, state="hold")}
        for line in list(held.values())[:2]:
            review.decide(first, line["line_id"], "clear", argument=line["reasons"][0], by="ana", at=WHEN)
        for line in lines(first, state="ready")[1:2]:
            review.decide(first, line["line_id"], "void", by="ana", at=WHEN)
        review.release(first, by="ana", at=WHEN)
        put(first, captures[early:])
        night.nightly(first)
        second = Path(folder) / "second"
        night.open_lake(second, buckets=1)
        for name in ("decisions", "releases", "manifests/decisions"):
            if (first / name).exists():
                shutil.copytree(first / name, second / name)
        turned = data.draw(st.permutations(captures))
        cut = data.draw(st.integers(0, len(turned)))
        for part in (turned[:cut], turned[cut:]):
            put(second, part)
            night.nightly(second, orders_file=orders)
        assert derived(second) == derived(first)


# --- the command line ---------------------------------------------------------------------------------------------------------------


def test_a_biller_decides_releases_and_sees_amendments_on_the_command_line(tmp_path):
    root = lake_of(tmp_path, capture(LONG, anchor=anchor(6000)))
    ident = lines(root)[0]["line_id"][:10]
    at = ("--lake", root)
    assert "take it back with: pumpledger decide undo" in run("decide", ident, "--clear", "OVER_8H", "--by", "ana", *at)
    decided = json.loads(run("decide", "list", "--json", *at))
    assert [(one["action"], one["argument"], one["by"], one["stands"]) for one in decided] == [("clear", "OVER_8H", "ana", True)]
    assert "Would take: 2 lines" in run("release", "--dry-run", "--by", "ana", *at)
    taken = json.loads(run("release", "--by", "ana", "--json", *at))["release"]
    assert taken["lines"] == 2
    assert re.fullmatch(rf"release-0001-{taken['at'][:10]}-{taken['release_id'][:10]}\.parquet", Path(taken["file"]).name)
    assert pq.read_table(taken["file"]).num_rows == 2
    assert "Nothing new is ready" in run("release", "--by", "ana", *at)
    run("decide", "undo", decided[0]["decision_id"], "--by", "ben", *at)
    amended = json.loads(run("amendments", "--json", *at))
    assert {(row["state"], *row["reasons"]) for row in amended} == {("hold", "OVER_8H", "AMENDED_AFTER_RELEASE")}
    (item,) = (one for one in json.loads(run("worklist", "--json", *at)) if one["code"] == "AMENDED_AFTER_RELEASE")
    assert item["message"] == "What a released line rests on has changed since it was released, or a further line came to it."
    assert "No amendment of month 2026-02; there are amendments of month 2026-03 (2)." in run("amendments", "--month", "2026-02", *at)
    for style in ("table", "csv", "xlsx", "parquet"):
        run("amendments", "--format", style, "-o", tmp_path / f"a.{style}", *at)
        assert (tmp_path / f"a.{style}").stat().st_size > 100
    assert "released" in run("lines", *at)
    assert "decisions" in run("explain", ident, *at)


@pytest.mark.parametrize("argument", ["2026-03-02T08:30:00", "2026-03-02T08:30:00Z"])
@pytest.mark.parametrize("kind", ["session", "event", "item"])
def test_a_delivery_of_nobody_has_no_stop_to_confirm_and_it_is_said_why(tmp_path, kind, argument):
    root = fresh(tmp_path / "lake", capture(numbered(UNENDED), anchor=anchor(100)))
    path = order_file(tmp_path)
    path.write_text(path.read_text().replace(PUMP, "canonical:other"))
    night.nightly(root, orders_file=path)
    lake = Lake.open(root)
    (session,) = lake.read("sessions", tables.SESSIONS).to_pylist()
    named = {"session": session["session_id"], "event": session["first_event"], "item": items(root, "UNASSIGNED_PUMP")[0]["item_id"]}[kind]
    with pytest.raises(InputError, match="belongs to no patient"):
        review.decide(root, named, "stop", argument=argument, by="ana")
    assert people.decisions(lake) == []


def of_the_demo(folder: Path) -> Path:
    demo.run(folder, lambda _: None, lambda _: None)
    return folder / "lake"


def of_a_pump_without_an_order(folder: Path) -> Path:
    stranger = capture(numbered(infusion(0, 30)), anchor=anchor(60)), capture([{"seq": 9, **event(700, "other")}])
    root = lake_of(folder, *stranger)
    header, order = (folder / "orders.csv").read_text().splitlines()
    other = order.replace(PUMP, "canonical:absent").replace("ord-1", "ord-9")
    (folder / "orders.csv").write_text(f"{header}\n{order.replace('2026-01-01', '2026-03-03')}\n{other}\n")
    night.nightly(root, orders_file=folder / "orders.csv")
    return root


@pytest.mark.parametrize(
    ("made", "among"),
    [
        (of_the_demo, {"OVER_8H", "NO_START", "CLOCK_UNCERTAIN", "NO_STOP", "DEMAND_ONLY", "POSSIBLE_SITE_CHANGE", "NEAR_THRESHOLD"}),
        (of_a_pump_without_an_order, {"UNASSIGNED_PUMP", "NOT_SYNCED", "LOG_GAP"}),
        (lambda folder: lake_of(folder, capture(numbered(UNENDED), anchor=anchor(6000))), {"NO_STOP"}),
    ],
)
def test_every_command_that_the_worklist_and_explain_show_is_taken_as_it_is(tmp_path, made, among):
    root = made(tmp_path)
    shown = {(row["item_id"], row["code"]) for row in views.select(Lake.open(root), "worklist").to_pylist() if row["state"] == "open"}
    assert among <= {code for _, code in shown}
    for number, (item, code) in enumerate(sorted(shown)):
        commands = views.answers(code, item)
        assert commands or code in ("NO_CODE", "REVIEWER_HOLD", "DECISION_LAPSED")
        assert all(f"answer with: {one}" in telling.as_text(explain.explain(Lake.open(root), item)) for one in commands)
        for one in commands:
            lake = Path(shutil.copytree(root, tmp_path / f"of {number}", dirs_exist_ok=True))
            words = one.replace("YOU", "ana").split()
            done = CliRunner().invoke(cli.main, [*words[1:], "--lake", str(lake)])
            assert done.exit_code == 0, (one, done.output)
            (state,) = (row["state"] for row in items(lake, code) if row["item_id"] == item)
            assert state == "decided"
            shutil.rmtree(lake)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("decide", "abcdef", "--hold"), 2, "--by"),
        (("decide", "abcdef", "--hold", "--void", "--by", "ana"), 2, "one decision"),
        (("decide", "abcdef", "--by", "ana"), 2, "one decision"),
        (("decide", "undo", "--by", "ana"), 2, "DECISION_ID"),
        (("decide", "undo", "abcdef", "--by", "ana"), 1, "decide list"),
        (("decide", "ffffffffff", "--hold", "--by", "ana"), 1, "begins with"),
        (("release",), 2, "--by"),
        (("amendments", "--month", "soon"), 1, "month"),
    ],
)
def test_what_is_asked_wrongly_says_what_to_do(tmp_path, arguments, code, says):
    night.open_lake(tmp_path / "lake", buckets=1)
    assert says in run(*arguments, "--lake", tmp_path / "lake", ok=code)
    assert tables.DECISIONS.names
    assert "Write no names" in run("decide", "--help")


def test_releases_that_may_not_be_read_are_not_taken_for_none(tmp_path, monkeypatch):
    root = lake_of(tmp_path, *READY)
    assert review.release(root, by="ana") is not None
    listed = os.listdir

    def forbid(path):
        if Path(path).name == "releases":
            raise PermissionError(errno.EACCES, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "listdir", forbid)
    with pytest.raises(StorageError):
        people.released(Lake.open(root))
