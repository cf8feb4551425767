"""Every line leads back to the bytes: through its sessions, minutes, events and records, and to the rule that proposed it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from devices.contract import Capture
from devices.errors import InputError
from ingest import explain, night, telling, views
from ingest.lake import Lake
from ingest.page import as_html
from ingest.store import Arrival, Store
from ingest.telling import as_json, as_text

A, B = "canonical:A17", "canonical:B2"
EVIL = "<script>alert(1)</script>\x1b[31m"

A_LINES = [
    b'{"seq": 1, "pump_time": "2026-03-07T19:55:00", "kind": "priming_done", "target": "tubing", "volume_ml": 0.5}',
    b'{"seq": 2, "pump_time": "2026-03-07T20:00:00", "kind": "priming_done", "target": "cannula", "volume_ml": 0.05}',
    b'{"seq": 3, "pump_time": "2026-03-07T20:01:00", "kind": "delivery_start", "source": "primary", "rate_ml_h": 2.0}',
    b'{"seq": 4, "pump_time": "2026-03-07T20:31:00", "kind": "bolus_delivered", "source": "pca", "volume_ml": 0.2, "duration_s": 30}',
    b'{"seq": 5, "pump_time": "2026-03-07T21:40:00", "kind": "alarm_raised", "alarm_class": "occlusion", "stops_delivery": true}',
    b'{"seq": 6, "pump_time": "2026-03-07T21:55:00", "kind": "delivery_start", "source": "primary", "rate_ml_h": 2.0}',
    b'{"seq": 7, "pump_time": "2026-03-07T22:20:00", "kind": "clock_change", "old": "2026-03-07T22:20:00", "new": "2026-03-07T23:20:00"}',
    b'{"seq": 8, "pump_time": "2026-03-07T23:40:00", "kind": "delivery_stop", "reason": "user"}',
]
A_HEAD = (
    b'{"pumpledger": 1, "pump_id": "canonical:A17", "anchor": '
    b'{"pump_clock": "2026-03-08T01:00:00", "utc": "2026-03-08T06:00:00Z", "after_seq": 8}}'
)
B_LINES = [
    b'{"seq": 1, "pump_time": "2026-03-07T08:00:00", "kind": "delivery_start", "rate_ml_h": 1}',
    b'{"seq": 2, "pump_time": "2026-03-07T09:00:00", "kind": "delivery_start", "rate_ml_h": 2, "note": ' + json.dumps(EVIL).encode() + b"}",
    b'{"seq": 3, "nonsense": true}',
    b'{"seq": 4, "pump_time": "2026-03-07T09:30:00", "kind": "delivery_stop"}',
]
B_HEAD = b'{"pumpledger": 1, "pump_id": "canonical:B2", "anchor": {"pump_clock": "2026-03-07T10:00:00", "utc": "2026-03-07T15:00:00Z"}}'

CAPTURES = [
    Capture(data=b"\n".join([A_HEAD, *A_LINES]), family="canonical", pump_id=A),
    Capture(data=b"\n".join([A_HEAD, *A_LINES[:4]]), family="canonical", pump_id=A),
    Capture(data=b"\n".join([B_HEAD, *B_LINES]), family="canonical", pump_id=B),
]

ORDERS = f"""\
pump_id,patient_id,order_id,drug,route,concentration,dose_unit,payer,rule_set,place_of_service,tz,start,stop
{A},P-001,O-1,hydromorphone {EVIL},SC,,,Medicare,cpt-9637x,,America/New_York,2026-03-01T00:00:00Z,
{B},P-002,O-2,morphine,SC,,,Aetna & Co,cpt-9637x,,America/New_York,2026-03-07T00:00:00Z,
"""


def derived(root: Path) -> Lake:
    """A lake after a night: what two pumps recorded, to the lines."""
    made = night.open_lake(root, buckets=2)
    orders = root.parent / "orders.csv"
    orders.write_text(ORDERS)
    night.take_orders(root, orders)
    with Store(root / "store.sqlite") as store:
        store.append([(capture, Arrival(datetime(2026, 3, 8, 7, tzinfo=UTC), "file:log.jsonl")) for capture in CAPTURES])
    night.drain(root)
    for step in (night.consolidate, night.bill):
        for bucket in range(made.buckets):
            step(root, bucket)
    return made


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return derived(tmp_path_factory.mktemp("explain") / "lake")


def rows(lake: Lake, table: str, **equal: str) -> list[dict[str, Any]]:
    return [row for row in views.select(lake, table).to_pylist() if all(row[name] == value for name, value in equal.items())]


def raws(events: list[dict[str, Any]]) -> list[bytes]:
    """The bytes of the first record of each event."""
    return [bytes.fromhex(event["records"][0]["raw"]) for event in events]


# From each kind of thing


def test_a_line_leads_through_its_session_to_every_byte_in_order(lake: Lake) -> None:
    [line] = rows(lake, "lines", code="96370")
    found = explain.explain(lake, line["line_id"])
    assert (found["kind"], found["id"], found["line"]["minutes"]) == ("line", line["line_id"], line["minutes"])
    [session] = found["sessions"]
    assert raws(session["events"]) == A_LINES
    assert [event["kind"] for event in session["events"]][:3] == ["priming_done", "priming_done", "delivery_start"]
    assert {event["event_id"] for event in session["events"]} >= set(line["event_ids"])


def test_records_say_where_they_stood_in_each_capture_and_what_was_read_from_them(lake: Lake) -> None:
    [session] = rows(lake, "sessions", pump_id=A)
    bolus = next(e for e in explain.explain(lake, session["session_id"])["sessions"][0]["events"] if e["kind"] == "bolus_delivered")
    assert {(record["capture"], record["offset"]) for record in bolus["records"]} == {(c.sha256, 5) for c in CAPTURES[:2]}
    assert bolus["records"][0]["decoded"]["volume_ml"] == 0.2
    assert bolus["records"][0]["decoded"]["source"] == "pca"
    assert (bolus["time_quality"], bolus["time"]) == ("corrected", datetime(2026, 3, 8, 2, 31, tzinfo=UTC))


def test_every_second_of_a_line_is_counted_or_excluded_with_why(lake: Lake) -> None:
    [line] = rows(lake, "lines", code="96370")
    found = explain.explain(lake, line["line_id"])
    assert found["line"]["counted_s"] == (99 + 45) * 60
    assert found["line"]["excluded_s"] == {"alarm": 15 * 60}
    [session] = found["sessions"]
    assert sum(i["seconds"] for i in session["intervals"]) == session["span_s"]
    assert {i["class"]: i["counted"] for i in session["intervals"]} == {"infusing": True, "alarm": False}
    assert [i["why"] for i in session["intervals"] if not i["counted"]] == ["stopped by an alarm"]


def test_a_line_names_its_rule_with_citation_policies_and_hashes(lake: Lake) -> None:
    [line] = rows(lake, "lines", code="96370")
    found = explain.explain(lake, line["line_id"])
    assert found["rule"]["rule"]["code"] == "96370"
    assert "CMS Claims Processing Manual" in found["rule"]["rule"]["citation"]
    assert (found["rule"]["version"], found["rule"]["sha256"]) == (line["rule_version"], night.rule_sets()["cpt-9637x"].sha256)
    assert found["line"]["policies"]["gap_limit_min"] == 60
    assert found["line"]["evidence_hash"] == line["evidence_hash"]
    assert [other["code"] for other in found["others"]] == ["96369"]


def test_captures_are_named_with_how_they_came(lake: Lake) -> None:
    [session] = rows(lake, "sessions", pump_id=A)
    found = explain.explain(lake, session["session_id"])["captures"]
    assert {capture["sha256"] for capture in found} == {capture.sha256 for capture in CAPTURES[:2]}
    assert {capture["via"] for capture in found} == {"file:log.jsonl"}


def test_a_set_up_leads_to_its_events(lake: Lake) -> None:
    [setup] = rows(lake, "setups", pump_id=A)
    found = explain.explain(lake, setup["setup_id"])
    assert (found["kind"], found["setup"]["new_site"]) == ("set-up", "yes")
    assert set(setup["evidence"]) <= {event["event_id"] for event in found["sessions"][0]["events"]}


def test_an_event_leads_to_its_bytes_and_its_session(lake: Lake) -> None:
    [session] = rows(lake, "sessions", pump_id=A)
    found = explain.explain(lake, session["first_event"])
    [event] = found["events"]
    assert raws([event]) == [A_LINES[2]]
    assert event["in_sessions"] == [session["session_id"]]


def test_an_item_of_the_worklist_leads_to_what_it_is_about(lake: Lake) -> None:
    [missing] = rows(lake, "worklist", code="NO_STOP")
    found = explain.explain(lake, missing["item_id"])
    assert found["item"]["code"] == "NO_STOP"
    assert B_LINES[1] in raws(found["sessions"][0]["events"])
    assert "NO_STOP" in {doubt["code"] for doubt in found["doubts"]}


def test_a_cut_leads_to_the_hole_and_to_what_could_not_be_read(lake: Lake) -> None:
    [cut] = [row for row in rows(lake, "worklist", code="LOG_GAP") if row["session_id"] is None]
    found = explain.explain(lake, cut["item_id"])
    assert [hole["record_key"] for hole in found["holes"]] == ["gap:0:3-3"]
    assert raws(found["events"]) == [B_LINES[3]]
    assert [bytes.fromhex(fault["raw"]) for fault in found["faults"]] == [B_LINES[2]]


# Ids


def test_the_beginning_of_an_id_is_enough(lake: Lake) -> None:
    whole = rows(lake, "lines", code="96369")[0]["line_id"]
    assert explain.explain(lake, f"  {whole[:8].upper()} ")["id"] == whole


@pytest.mark.parametrize(
    ("ident", "code"), [("abc", "no_id"), ("", "no_id"), ("x" * 20, "no_id"), ("0" * 21, "no_id"), ("0" * 20, "unknown_id")]
)
def test_an_id_that_is_none_or_unknown_says_what_to_do(lake: Lake, ident: str, code: str) -> None:
    with pytest.raises(InputError) as raised:
        explain.explain(lake, ident)
    assert raised.value.code == code
    assert raised.value.do


def test_an_ambiguous_beginning_is_refused_and_names_what_it_may_be(tmp_path: Path) -> None:
    from tests.ingest.test_views import line, lines

    made = Lake.create(tmp_path / "lake", buckets=1)
    made.publish(
        "bill", 0, {"lines": lines(line(line_id="abcdef" + "0" * 14), line(line_id="abcdef" + "1" * 14))}, {"lines": "2026-03"}, {}
    )
    with pytest.raises(InputError) as raised:
        explain.explain(made, "abcdef")
    assert raised.value.code == "ambiguous_id"
    assert "line abcdef00000000000000" in raised.value.why


def test_a_line_whose_sessions_are_gone_says_so(tmp_path: Path) -> None:
    from tests.ingest.test_views import line, lines

    made = Lake.create(tmp_path / "lake", buckets=1)
    made.publish("bill", 0, {"lines": lines(line(line_id="a" * 20))}, {"lines": "2026-03"}, {})
    with pytest.raises(InputError) as raised:
        explain.explain(made, "a" * 20)
    assert "nightly" in raised.value.do


# How it is shown


def everything(lake: Lake) -> list[dict[str, Any]]:
    """Explanations of every line, session, set-up and item."""
    ids = {"lines": "line_id", "sessions": "session_id", "setups": "setup_id", "worklist": "item_id"}
    return [explain.explain(lake, row[column]) for table, column in ids.items() for row in rows(lake, table)]


def test_json_holds_all_of_it(lake: Lake) -> None:
    [line] = rows(lake, "lines", code="96370")
    found = json.loads(as_json(explain.explain(lake, line["line_id"])))
    [session] = found["sessions"]
    assert bytes.fromhex(session["events"][0]["records"][0]["raw"]) == A_LINES[0]
    assert (session["start"], session["printed_start"]) == ("2026-03-08T02:01:00Z", "2026-03-07T20:01:00")
    assert found["line"]["service_date"] == "2026-03-07"


def test_text_has_the_minutes_first_and_ends_in_the_bytes(lake: Lake) -> None:
    [line] = rows(lake, "lines", code="96370")
    text = as_text(explain.explain(lake, line["line_id"]))
    assert text.index("counted: 144 min") < text.index("not counted: 15 min alarm") < text.index("rule set") < text.index("bytes:")
    assert A_LINES[0].hex(" ") in text
    assert views.PROPOSED in text


def test_text_and_page_show_the_local_time_of_the_order_beside_utc_and_name_its_zone(lake: Lake) -> None:
    [line] = rows(lake, "lines", code="96370")
    [session] = rows(lake, "sessions", pump_id=A)
    for ident in (line["line_id"], session["session_id"]):
        found = explain.explain(lake, ident)
        assert found["tz"] == "America/New_York"
        for told in (as_text(found), Page(as_html(found)).text):
            assert "ocal times, in brackets, are those of America/New_York" in told
            assert "2026-03-08 02:31:00 UTC (2026-03-07 21:31:00 EST)" in told
    event = next(e for e in found["sessions"][0]["events"] if e["kind"] == "bolus_delivered")
    assert "(2026-03-07 21:31:00 EST)" in as_text(explain.explain(lake, event["event_id"]))


@pytest.mark.parametrize(
    ("tz", "says"),
    [
        (None, "2026-11-01 05:30:00 UTC"),
        ("UTC", "2026-11-01 05:30:00 UTC"),
        ("America/New_York", "2026-11-01 05:30:00 UTC (01:30:00 EDT)"),
        ("Asia/Kathmandu", "2026-11-01 05:30:00 UTC (11:15:00 +0545)"),
    ],
)
def test_a_stamp_names_the_offset_in_force_then(tz: str | None, says: str) -> None:
    assert telling.stamp(datetime(2026, 11, 1, 5, 30, tzinfo=UTC), tz) == says


def test_the_end_of_the_calendar_has_no_local_time_and_no_error() -> None:
    assert telling.stamp(datetime(9999, 12, 31, 23, tzinfo=UTC), "Asia/Kathmandu") == "9999-12-31 23:00:00 UTC"


def test_text_never_steers_a_terminal(lake: Lake) -> None:
    for found in everything(lake):
        text = as_text(found)
        assert all(c.isprintable() or c == "\n" for c in text)


class Page(HTMLParser):
    """What a browser would see, well formed or not."""

    VOID = frozenset({"meta"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str, **attributes: str) -> int:
        return sum(
            name == tag and all(attrs.get(key.rstrip("_")) == value for key, value in attributes.items()) for name, attrs in self.tags
        )


def test_the_page_is_well_formed_runs_nothing_and_loads_nothing(lake: Lake) -> None:
    for found in everything(lake):
        html = as_html(found)
        page = Page(html)
        assert page.open == []
        assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
        attributes = [(name, value or "") for _, attrs in page.tags for name, value in attrs.items()]
        assert not [name for name, _ in attributes if name.startswith("on") or name in ("src", "href", "action")]
        assert not re.search(r"https?:|@import|url\((?!#)", html)


def test_what_a_pump_or_an_order_wrote_is_shown_as_text(lake: Lake) -> None:
    [line] = rows(lake, "lines", code="96370")
    [session] = [row for row in rows(lake, "sessions", pump_id=B) if "NO_STOP" in row["flags"]]
    for ident in (line["line_id"], session["session_id"]):
        html = as_html(explain.explain(lake, ident))
        assert "<script" not in html
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
        assert "<script>alert(1)</script>" in Page(html).text
        assert "\x1b" not in html


def test_the_timeline_draws_bands_marks_and_the_clock(lake: Lake) -> None:
    [line] = rows(lake, "lines", code="96370")
    page = Page(as_html(explain.explain(lake, line["line_id"])))
    assert page.count("rect", class_="infusing") == 2
    assert page.count("rect", class_="alarm") == 1
    assert page.count("path", class_="mark bolus") == 1
    assert page.count("path", class_="mark raised") == 1
    assert page.count("path", class_="mark site yes") == 1
    assert page.count("path", class_="set") == 1
    assert page.count("rect", class_="corrected") == 1
    assert page.count("rect", class_="exact") == 0
    widths = [float(attrs["width"] or 0) for tag, attrs in page.tags if tag == "rect" and attrs.get("class") in ("infusing", "alarm")]
    assert widths[0] / widths[1] == pytest.approx(99 / 15, rel=1e-3)
    assert A_LINES[0].hex(" ") in page.text


def test_what_has_no_utc_is_drawn_on_elapsed_time(tmp_path: Path) -> None:
    made = night.open_lake(tmp_path / "lake", buckets=1)
    data = b"\n".join([b'{"pumpledger": 1, "pump_id": "canonical:C3"}', *A_LINES])
    with Store(made.root / "store.sqlite") as store:
        store.append(
            [(Capture(data=data, family="canonical", pump_id="canonical:C3"), Arrival(datetime(2026, 3, 8, tzinfo=UTC), "file:c"))]
        )
    night.drain(made.root)
    night.consolidate(made.root, 0)
    [session] = rows(made, "sessions")
    page = Page(as_html(explain.explain(made, session["session_id"])))
    assert "elapsed" in page.text
    assert "+1:00" in page.text
    assert page.count("rect", class_="unknown") == 1
