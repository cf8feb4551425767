"""The gateway over a real broker and real ports: what it has leaves it on the hub's receipt alone, whatever is restarted meanwhile."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from devices import families
from devices.contract import Capture
from devices.errors import InputError, LinkError, StorageError
from ingest import gateway, settings
from ingest.cli import main
from ingest.gateway import Plan, Uplink, captures_of
from ingest.hub import CAP_BYTES, Answer, Ask, Hub, ask, decode_cap
from ingest.night import assembled, facts_of
from ingest.replay import Reading
from ingest.replay import truth as replay_truth
from ingest.store import Arrival, Store
from simulators import ids as simulated
from simulators import paradigm
from simulators import pcd as pcd_pumps
from simulators import tandem as tandem_pumps
from simulators.link import Faults
from simulators.rig import Rig
from simulators.therapy import therapy
from tests.broker import PATIENCE_S, Broker, soon
from tests.conftest import ROOT
from tests.kit import anchor, event, infusion, numbered
from tests.kit import capture as canonical
from transforms.orders import Orders
from transforms.sessions import FactPolicy

NOW = datetime(2026, 3, 10, 9, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "gateway"
    folder.mkdir()
    return folder


def some(count: int, pump: str = "canonical:A17") -> list[Capture]:
    return [Capture(data=b"page %d" % number, family="canonical", pump_id=pump, part=str(number)) for number in range(count)]


def fill(home: Path, captures: list[Capture], at: datetime = NOW) -> None:
    with Store(home / gateway.OUTBOX) as outbox:
        outbox.append((capture, Arrival(at, "serial:test")) for capture in captures)


def waiting(home: Path) -> list[Capture]:
    with Store(home / gateway.OUTBOX) as outbox:
        return [capture for capture, arrival in outbox.pending() if arrival.refused is None]


def stored(path: Path) -> list[Capture]:
    with Store(path) as store:
        return [capture for capture, _ in store.pending()]


@contextmanager
def listening(broker: Broker, *topics: str) -> Iterator[list[tuple[str, bytes, bool]]]:
    """What comes on these topics: topic, payload, retained."""
    heard: list[tuple[str, bytes, bool]] = []
    there = threading.Event()
    client = Client(CallbackAPIVersion.VERSION2)
    client.on_connect = lambda client, *_: client.subscribe([(topic, 1) for topic in topics])
    client.on_subscribe = lambda *_: there.set()
    client.on_message = lambda _client, _user, message: heard.append((message.topic, bytes(message.payload), bool(message.retain)))
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    assert there.wait(PATIENCE_S)
    yield heard
    client.disconnect()
    client.loop_stop()


def say(broker: Broker, topic: str, payload: bytes) -> None:
    client = Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    client.publish(topic, payload, qos=1).wait_for_publish(PATIENCE_S)
    client.disconnect()
    client.loop_stop()


def test_docks_and_dropped_files_reach_the_hub_and_leave_the_outbox(broker, home, tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "a.jsonl").write_bytes(canonical(numbered(infusion(0, 95)), anchor=anchor(100)).data)
    start = datetime.now(UTC) - timedelta(days=21)
    stick, _ = paradigm.simulate(therapy("insulin_like", 1, start, 20), 1, serial="482916", now=lambda: datetime.now(UTC))
    with Hub(broker.url, tmp_path / "hub.sqlite"), Rig([stick]) as rig:
        plan = Plan(broker=broker.url, name="gw1", ports=[f"{rig.ports['paradigm:482916']}=paradigm:482916"], inbox=inbox)
        told = gateway.once(home, plan, wait_s=PATIENCE_S)
        again = gateway.once(home, plan, wait_s=PATIENCE_S)
    assert (told["unsent"], told["files"], [one.get("error") for one in told["ports"]]) == (0, [("a.jsonl", None)], [None])
    assert told["ports"][0]["new_captures"] > 1
    assert again["ports"][0]["new_captures"] == 0
    assert waiting(home) == []
    there = stored(tmp_path / "hub.sqlite")
    assert {capture.pump_id for capture in there} == {"canonical:A1", "paradigm:482916"}
    with Store(home / gateway.OUTBOX) as outbox:
        assert {head.sha256 for pump in outbox.pumps() for head in outbox.heads(pump)} == {capture.sha256 for capture in there}
    assert [path.name.split("-")[1] for path in (inbox / "taken").iterdir()] == ["a.jsonl"]
    assert not (inbox / "a.jsonl").exists()


def test_without_a_hub_nothing_leaves_the_outbox_and_a_later_one_gets_everything_once(broker, home, tmp_path):
    captures = some(70)
    fill(home, captures)
    told = gateway.once(home, Plan(broker=broker.url, name="gw1"), wait_s=0.5)
    assert told["unsent"] == 70
    assert waiting(home) == captures
    with Hub(broker.url, tmp_path / "hub.sqlite"):
        assert gateway.once(home, Plan(broker=broker.url, name="gw1"), wait_s=PATIENCE_S)["unsent"] == 0
    assert stored(tmp_path / "hub.sqlite") == captures
    assert waiting(home) == []


def test_without_a_broker_it_collects_and_sends_when_there_is_one(broker, home, tmp_path):
    broker.stop()
    fill(home, some(3))
    with Uplink(broker.url, home, "gw1") as uplink:
        soon(lambda: uplink.counters.trouble, "it says that there is no broker")
        broker.start()
        with Hub(broker.url, tmp_path / "hub.sqlite"):
            assert uplink.wait_for_receipts(PATIENCE_S) == 0
        assert uplink.counters.trouble == ""
    assert stored(tmp_path / "hub.sqlite") == some(3)


def test_what_a_killed_broker_had_acknowledged_is_sent_again(broker, home, tmp_path):
    """A hub that was there and is away: the broker acknowledges, keeps in memory, and loses all of it."""
    with Hub(broker.url, tmp_path / "hub.sqlite"):
        pass
    fill(home, some(5))
    with Uplink(broker.url, home, "gw1", again_s=0.5) as uplink:
        soon(lambda: uplink.counters.sent >= 5, "all is published")
        soon(lambda: all(flight.landed() for flight in uplink._flying.values()), "the broker has acknowledged all")
        broker.stop(signal.SIGKILL)
        soon(lambda: not uplink.counters.connected, "the gateway sees that it is gone")
        broker.start()
        with Hub(broker.url, tmp_path / "hub.sqlite"):
            assert uplink.wait_for_receipts(PATIENCE_S) == 0
    assert sorted(one.part or "" for one in stored(tmp_path / "hub.sqlite")) == ["0", "1", "2", "3", "4"]


def test_a_gateway_that_is_killed_says_offline_by_its_last_will_and_its_outbox_is_sent_by_the_next(broker, home, tmp_path):
    captures = some(4)
    fill(home, captures)
    command = [sys.executable, "-m", "ingest.cli", "gateway", "--broker", broker.url, "--name", "gw7", "--lake", str(home)]
    with listening(broker, "pl1/gw7/status", "pl1/gw7/d/+/cap") as heard:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            soon(lambda: sum(topic.endswith("/cap") for topic, _, _ in heard) == 4, "all is published")
        finally:
            process.kill()
            process.wait(PATIENCE_S)
        soon(lambda: json.loads(heard[-1][1]).get("state") == "offline", "its last will")
        states = [json.loads(payload)["state"] for topic, payload, _ in heard if topic.endswith("/status")]
        assert states == ["online", "offline"]
    with listening(broker, "pl1/gw7/status") as heard:
        soon(lambda: heard, "the status is retained")
        assert heard == [("pl1/gw7/status", b'{"v":1,"state":"offline"}', True)]
    with Hub(broker.url, tmp_path / "hub.sqlite"):
        assert gateway.once(home, Plan(broker=broker.url, name="gw7"), wait_s=PATIENCE_S)["unsent"] == 0
    assert stored(tmp_path / "hub.sqlite") == captures


def test_a_receipt_for_what_a_former_run_sent_counts(broker, home, tmp_path):
    """The hub answers while the gateway is away: the broker keeps the receipt for it."""
    fill(home, some(3))
    gateway.once(home, Plan(broker=broker.url, name="gw1"), wait_s=0.3)
    with Hub(broker.url, tmp_path / "first.sqlite") as hub:
        assert gateway.once(home, Plan(broker=broker.url, name="gw1"), wait_s=PATIENCE_S)["unsent"] == 0
        assert hub.counters.stored >= 3


def test_no_topic_names_a_pump_and_the_alias_cannot_be_made_without_the_key(broker, home):
    fill(home, some(1, "canonical:SERIAL77"))
    with listening(broker, "pl1/#") as heard:
        gateway.once(home, Plan(broker=broker.url, name="gw1"), wait_s=0.5)
        topics = {topic for topic, _, _ in heard if topic.endswith("/cap")}
    own = gateway.key(home)
    assert topics == {f"pl1/gw1/d/{gateway.alias(own, 'canonical:SERIAL77')}/cap"}
    assert gateway.alias(b"another", "canonical:SERIAL77") != gateway.alias(own, "canonical:SERIAL77")
    assert stat.S_IMODE((home / gateway.KEY).stat().st_mode) == 0o600
    assert gateway.key(home) == own
    (home / gateway.KEY).chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        gateway.key(home)


def test_the_hub_may_ask_again_for_what_it_had_receipted(broker, home, tmp_path):
    fill(home, some(2), NOW)
    fill(home, some(1, "canonical:B2"), NOW)
    late = [replace(some(1)[0], part="late")]
    fill(home, late, NOW + timedelta(hours=1))
    with Uplink(broker.url, home, "gw1", again_s=0.5) as uplink:
        with Hub(broker.url, tmp_path / "lost.sqlite"):
            assert uplink.wait_for_receipts(PATIENCE_S) == 0
        known = gateway.alias(gateway.key(home), "canonical:A17")
        with Hub(broker.url, tmp_path / "second.sqlite"):
            say(broker, "hub1/gw1/ask", json.dumps({"v": 1, "pump": "0" * 16, "from": None, "to": None}).encode())
            soon(lambda: "not known here" in uplink.counters.trouble, "a pump that nobody knows")
            ask = {"v": 1, "pump": known, "from": NOW.isoformat(), "to": (NOW + timedelta(minutes=1)).isoformat()}
            say(broker, "hub1/gw1/ask", json.dumps(ask).encode())
            soon(lambda: len(stored(tmp_path / "second.sqlite")) == 2, "the range of this pump")
            assert stored(tmp_path / "second.sqlite") == some(2)
            say(broker, "hub1/gw1/ask", json.dumps({"v": 1, "pump": known, "from": None, "to": None}).encode())
            soon(lambda: len(stored(tmp_path / "second.sqlite")) == 3, "all of this pump")
            assert stored(tmp_path / "second.sqlite")[2:] == late
    assert waiting(home) == []


def asking(broker: Broker, home: Path, pump: str, since: datetime | None = None, until: datetime | None = None) -> Answer:
    return ask(broker.url, "gw1", Ask(pump=gateway.alias(gateway.key(home), pump), since=since, until=until), wait_s=PATIENCE_S)


def test_a_gateway_says_what_it_does_about_what_it_is_asked_for(broker, home, tmp_path):
    fill(home, some(3), NOW)
    fill(home, [replace(some(1)[0], part="late")], NOW + timedelta(hours=1))
    with Uplink(broker.url, home, "gw1", again_s=0.5) as uplink:
        with Hub(broker.url, tmp_path / "hub.sqlite"):
            assert uplink.wait_for_receipts(PATIENCE_S) == 0
        told = asking(broker, home, "canonical:A17", NOW, NOW + timedelta(minutes=1))
        assert (told.known, told.again, told.gone, told.reading) == (True, 3, 0, False)
        assert waiting(home) == some(3)
        with Store(home / gateway.KEPT) as kept, Store(home / gateway.OUTBOX) as outbox:
            kept.drop([some(1)[0].sha256])
            outbox.drop([one.sha256 for one in some(3)])
        told = asking(broker, home, "canonical:A17", until=NOW + timedelta(minutes=1))
        assert (told.known, told.again, told.gone, told.reading) == (True, 2, 1, False)
        told = asking(broker, home, "canonical:A17", since=NOW + timedelta(days=1))
        assert (told.known, told.again, told.gone, told.reading) == (True, 0, 0, False)
        told = asking(broker, home, "canonical:B2")
        assert (told.known, told.again, told.gone, told.reading) == (False, 0, 0, False)


def test_what_was_asked_for_survives_the_gateway_and_what_it_has_no_more_it_reads_from_the_dock(broker, home, tmp_path):
    start = datetime.now(UTC) - timedelta(days=9)
    stick, truth = paradigm.simulate(therapy("insulin_like", 1, start, 8), 1, serial="482916")
    (tmp_path / "truth.json").write_text(truth.to_json())
    with Rig([stick]) as rig:
        plan = Plan(broker=broker.url, name="gw1", ports=[f"{rig.ports['paradigm:482916']}=paradigm:482916"])
        with Hub(broker.url, tmp_path / "lost.sqlite"):
            gateway.once(home, plan, wait_s=PATIENCE_S)
        with Store(home / gateway.KEPT) as kept:
            whole = [capture for capture, _ in kept.pending()]
        with Uplink(broker.url, home, "gw1"):
            assert asking(broker, home, "paradigm:482916").again == len(whole)
        with Hub(broker.url, tmp_path / "second.sqlite"):
            assert gateway.once(home, replace(plan, ports=()), wait_s=PATIENCE_S)["unsent"] == 0
        assert stored(tmp_path / "second.sqlite") == whole
        with Store(home / gateway.KEPT) as kept:
            kept.drop([capture.sha256 for capture in whole])
        with Uplink(broker.url, home, "gw1", ports=plan.ports) as uplink:
            told = asking(broker, home, "paradigm:482916")
            assert (told.again, told.gone, told.reading) == (0, len(whole), True)
            assert uplink.anew.get_nowait() == plan.ports[0]
        say(broker, "hub1/gw1/ask", json.dumps({"v": 1, "pump": told.ask.pump, "from": None, "to": None}).encode())
        with Hub(broker.url, tmp_path / "third.sqlite"):
            again = gateway.once(home, plan, wait_s=PATIENCE_S)
    assert (again["unsent"], [one.get("error") for one in again["ports"]]) == (0, [None, None])
    reading = Reading()
    for capture in stored(tmp_path / "third.sqlite"):
        reading.add(capture)
    assert reading.differences(replay_truth(tmp_path / "truth.json")) == []


def test_a_gateway_that_does_not_answer_is_an_error_that_says_what_is_known_of_it(broker, home):
    with pytest.raises(LinkError, match="Nobody of this name"):
        ask(broker.url, "gw1", Ask(pump="0" * 16, since=None, until=None), wait_s=0.2)
    with Uplink(broker.url, home, "gw1") as uplink:
        soon(lambda: uplink.counters.connected, "it is there")
    with pytest.raises(LinkError, match="It is offline") as caught:
        ask(broker.url, "gw1", Ask(pump="0" * 16, since=None, until=None), wait_s=0.2)
    assert caught.value.code == "no_answer"
    with listening(broker, "pl1/gw1/answer") as heard, Uplink(broker.url, home, "gw1"):
        soon(lambda: heard, "the broker kept what was asked")
        assert json.loads(heard[0][1])["known"] is False
    broker.stop()
    with pytest.raises(LinkError) as caught:
        ask(broker.url, "gw1", Ask(pump="0" * 16, since=None, until=None), wait_s=0.2)
    assert caught.value.code == "no_broker"


def pumpledger(*arguments: object, ok: int = 0) -> str:
    done = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code == ok, done.output
    return " ".join(done.output.split())


def test_a_hole_in_the_lake_is_asked_for_by_the_name_of_the_pump(broker, home, tmp_path):
    lake = tmp_path / "lake"
    whole = canonical(numbered(infusion(0, 95)), anchor=anchor(100))
    fill(home, [whole], NOW)
    lake.mkdir()
    with Uplink(broker.url, home, "gw1", again_s=0.5) as uplink:
        with Hub(broker.url, lake / "store.sqlite"):
            assert uplink.wait_for_receipts(PATIENCE_S) == 0
        asked = ("ask", "canonical:A1", "--broker", broker.url, "--lake", lake)
        assert "gw1 sends 1 captures again." in pumpledger(*asked, "--from", NOW.isoformat())
        pumpledger("nightly", "--lake", lake)
        (lake / "store.sqlite").unlink()
        with Hub(broker.url, lake / "store.sqlite"):
            assert json.loads(pumpledger(*asked, "--json"))["again"] == 1
            assert uplink.wait_for_receipts(PATIENCE_S) == 0
        assert stored(lake / "store.sqlite") == [whole]
        assert "read nothing of this pump in that time" in pumpledger(*asked, "--to", "2020-01-01T00:00Z", ok=1)
        assert "never heard" in pumpledger("ask", "canonical:ZZ", "--broker", broker.url, "--lake", lake, ok=1)
        assert "never heard" in pumpledger(*asked, "--gateway", "gw2", ok=1)
        assert "never read this pump" in pumpledger("ask", "0" * 16, "--gateway", "gw1", "--broker", broker.url, "--lake", lake, ok=1)
        assert "--gateway" in pumpledger("ask", "0" * 16, "--broker", broker.url, "--lake", lake, ok=2)
        assert "no moment" in pumpledger(*asked, "--from", "yesterday", ok=2)


def test_what_was_receipted_long_ago_is_not_kept(broker, home, tmp_path):
    fill(home, some(2), NOW - timedelta(days=1000))
    with Hub(broker.url, tmp_path / "hub.sqlite"):
        gateway.once(home, Plan(broker=broker.url, name="gw1"), wait_s=PATIENCE_S)
        assert len(stored(home / gateway.KEPT)) == 2
        gateway.once(home, Plan(broker=broker.url, name="gw1"), wait_s=PATIENCE_S)
        assert stored(home / gateway.KEPT) == []


def test_garbage_from_the_hub_is_shown_and_ends_nothing(broker, home, tmp_path):
    garbage = (b"", b"\xff", b"[" * 50_000, b'{"v":1,"more":1}', b'{"v":2,"stored":[]}', b'{"v":1,"stored":[3]}')
    with Hub(broker.url, tmp_path / "hub.sqlite"), Uplink(broker.url, home, "gw1") as uplink:
        soon(lambda: uplink.counters.connected, "it is there")
        for payload in garbage:
            for topic in ("hub1/gw1/receipt", "hub1/gw1/ask"):
                uplink.counters.trouble = ""
                say(broker, topic, payload)
                soon(lambda topic=topic: f"{topic} cannot be read" in uplink.counters.trouble, "the trouble is shown")
        fill(home, some(1))
        uplink.wake()
        assert uplink.wait_for_receipts(PATIENCE_S) == 0


def test_what_the_hub_refuses_leaves_the_outbox_and_is_said(broker, home):
    fill(home, some(2))
    with Uplink(broker.url, home, "gw1") as uplink:
        soon(lambda: uplink.counters.sent == 2, "both are published")
        receipt = {"v": 1, "stored": [some(2)[0].sha256], "refused": [{"sha256": some(2)[1].sha256, "why": "It is no capture."}]}
        say(broker, "hub1/gw1/receipt", json.dumps(receipt).encode())
        assert uplink.wait_for_receipts(PATIENCE_S) == 0
        assert (uplink.counters.stored, uplink.counters.refused) == (1, 1)
        assert "It is no capture." in uplink.counters.trouble


def test_two_gateways_do_not_send_from_one_outbox(broker, home):
    with Uplink(broker.url, home, "gw1"), pytest.raises(StorageError, match="Another gateway"), Uplink(broker.url, home, "gw2"):
        pass
    with pytest.raises(InputError, match="no name for a gateway"):
        Uplink(broker.url, home, "a/b")


# --- what is too large --------------------------------------------------------------------------------------------------------


def bench(monkeypatch: pytest.MonkeyPatch, *, splits: bool) -> None:
    """A family of lines, which splits at them or not."""

    def split(capture: Capture, size: int) -> list[Capture]:
        lines = capture.data.splitlines(keepends=True)
        half = len(lines) // 2
        parts = [replace(capture, data=b"".join(some)) for some in (lines[:half], lines[half:])]
        return [one for part in parts for one in (split(part, size) if len(part.data) > size else [part])]

    family = SimpleNamespace(
        SHEET=SimpleNamespace(family="bench"),
        recognise=lambda name, data: data.startswith(b"bench"),
        read_files=lambda files, *, pump_id, model, anchor: [
            Capture(data=data, family="bench", pump_id=pump_id or "bench:1", model=model) for _, data in files
        ],
    )
    if splits:
        family.split = split
    monkeypatch.setattr(families, "families", lambda: {"bench": family})


LARGE = b"".join(b"bench %06d\n" % number for number in range(3 * CAP_BYTES // 13))


def test_a_large_capture_is_split_by_its_family_before_it_is_hashed(broker, home, tmp_path, monkeypatch):
    bench(monkeypatch, splits=True)
    fill(home, [Capture(data=LARGE, family="bench", pump_id="bench:1")])
    with Hub(broker.url, tmp_path / "hub.sqlite"):
        assert gateway.once(home, Plan(broker=broker.url, name="gw1"), wait_s=PATIENCE_S)["unsent"] == 0
    there = stored(tmp_path / "hub.sqlite")
    assert b"".join(one.data for one in there) == LARGE
    assert len(there) > 1
    assert max(len(one.data) for one in there) <= CAP_BYTES


def test_large_captures_of_families_that_split_reach_the_hub_and_give_what_the_whole_gives(broker, home, tmp_path):
    script = therapy("insulin_like", 5, datetime(2026, 2, 1, tzinfo=UTC), 24)
    pump, _ = tandem_pumps.simulate(script, 5, serial="A7")
    log = b"".join(decode_cap(payload).data for payload in pump.captures())
    tandem = Capture(data=log * (1 + CAP_BYTES // len(log)), family="tandem", pump_id="tandem:A7")
    pca, _ = pcd_pumps.simulate(therapy("pca", 5, datetime(2026, 3, 1, tzinfo=UTC), 12), 5, serial="SN5")
    messages = pca.messages()
    (first, *_) = captures_of([("one", messages[0])])
    pcd = replace(first, data=b"".join(messages))
    assert min(len(tandem.data), len(pcd.data)) > CAP_BYTES
    fill(home, [tandem, pcd])
    with Hub(broker.url, tmp_path / "hub.sqlite"):
        assert gateway.once(home, Plan(broker=broker.url, name="gw1"), wait_s=PATIENCE_S)["unsent"] == 0
    there = stored(tmp_path / "hub.sqlite")
    for whole in (tandem, pcd):
        parts = [one for one in there if one.family == whole.family]
        assert len(parts) > 1
        assert max(len(one.data) for one in parts) <= CAP_BYTES
        found = [facts_of(assembled(whole.pump_id, some), Orders(()), FactPolicy())[1] for some in (parts, [whole])]
        assert found[0].events.equals(found[1].events)
        assert found[0].sessions.equals(found[1].sessions)


def test_a_large_capture_that_cannot_be_split_is_put_aside_with_its_bytes_and_stalls_nothing(broker, home, tmp_path, monkeypatch):
    bench(monkeypatch, splits=False)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "large.bin").write_bytes(LARGE)
    small = Capture(data=b"bench", family="bench", pump_id="bench:1")
    fill(home, [Capture(data=LARGE, family="bench", pump_id="bench:2"), small])
    with Hub(broker.url, tmp_path / "hub.sqlite"):
        told = gateway.once(home, Plan(broker=broker.url, name="gw1", inbox=inbox), wait_s=PATIENCE_S)
    assert told["unsent"] == 0
    assert told["refused"] == 1
    assert stored(tmp_path / "hub.sqlite") == [small]
    with Store(home / gateway.OUTBOX) as outbox:
        ((aside, arrival),) = outbox.pending()
    assert aside.data == LARGE
    assert "65536 fit" in (arrival.refused or "")
    ((name, why),) = told["files"]
    assert (name, "65536 fit" in why) == ("large.bin", True)
    (kept, reason) = sorted((inbox / "refused").iterdir())
    assert kept.read_bytes() == LARGE
    assert "65536 fit" in reason.read_text()


# --- files --------------------------------------------------------------------------------------------------------------------


def taken(inbox: Path, home: Path, **more: Any) -> list[tuple[str, str | None]]:
    with Store(home / gateway.OUTBOX) as outbox:
        return gateway.take_files(inbox, outbox, settings.load(home).docks, **more)


def test_a_file_that_is_still_being_written_is_left_alone(home, tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    whole = canonical(numbered(infusion(0, 95))).data
    (inbox / "a.jsonl").write_bytes(whole)
    assert taken(inbox, home, settle_s=3600) == []
    (inbox / "b.jsonl.part").write_bytes(whole)
    assert taken(inbox, home, settle_s=0) == []
    (inbox / "b.jsonl.part").unlink()
    (inbox / ".hidden").write_bytes(b"x")
    assert taken(inbox, home, settle_s=0) == [("a.jsonl", None)]
    assert [one.data for one in waiting(home)] == [whole]
    assert taken(inbox, home, settle_s=0) == []


def test_files_in_a_folder_named_for_a_pump_are_its_and_of_the_model_that_its_dock_has(home, tmp_path, fixtures):
    inbox = tmp_path / "inbox"
    (inbox / "paradigm:123456").mkdir(parents=True)
    pages = sorted((fixtures / "medtronic_578398" / "pages").glob("*.data"))
    for page in pages[:2]:
        (inbox / "paradigm:123456" / page.name).write_bytes(page.read_bytes())
    (home / settings.NAME).write_text('[[dock]]\nport = "/dev/ttyUSB7"\npump = "paradigm:123456"\nmodel = "522"\n')
    assert [why for _, why in taken(inbox, home, settle_s=0)] == [None, None]
    assert {(one.pump_id, one.model) for one in waiting(home)} == {("paradigm:123456", "522")}


def test_a_file_that_no_family_knows_is_refused_with_the_reason_beside_it(home, tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "odd.bin").write_bytes(b"\x00\x01")
    ((name, why),) = taken(inbox, home, settle_s=0)
    assert (name, "no family" in (why or "")) == ("odd.bin", True)
    (kept, reason) = sorted((inbox / "refused").iterdir())
    assert (kept.read_bytes(), "no family" in reason.read_text()) == (b"\x00\x01", True)
    assert not (inbox / "odd.bin").exists()
    assert waiting(home) == []


def test_files_of_another_pump_than_their_folder_says_or_from_the_future_are_refused(home, tmp_path):
    inbox = tmp_path / "inbox"
    (inbox / "canonical:B2").mkdir(parents=True)
    (inbox / "canonical:B2" / "a.jsonl").write_bytes(canonical(numbered(infusion(0, 95))).data)
    future = {"pump_clock": "2099-01-01T00:00:00", "utc": "2099-01-01T00:00:00Z"}
    (inbox / "b.jsonl").write_bytes(canonical(numbered(infusion(0, 95)), anchor=future).data)
    found = dict(taken(inbox, home, settle_s=0))
    assert "of canonical:…A1 by their own word" in (found["a.jsonl"] or "")
    assert "a day ahead" in (found["b.jsonl"] or "")
    assert waiting(home) == []
    assert len(list((inbox / "refused").glob("*.jsonl"))) == 2


# --- a bridge -----------------------------------------------------------------------------------------------------------------

DEVICE = "ble/AA:BB:CC:DD:EE:01"
SERVICE = f"{DEVICE}/InsulinDelivery"
RACP = f"{SERVICE}/IDDRecordAccessControlPoint"
TOPICS = {"H": f"{SERVICE}/IDDHistoryData", "<": RACP, "T": f"{DEVICE}/CurrentTimeService/CurrentTime"}


class Bridge:
    """A BLE-to-MQTT bridge before a simulated pump: it retains what it publishes, and repeats some of it."""

    def __init__(self, broker: Broker, pump: simulated.Pump, connected: bool = True) -> None:
        self.pump = pump
        self.asked: list[bytes] = []
        self.client = Client(CallbackAPIVersion.VERSION2)
        self.client.on_connect = lambda client, *_: client.subscribe([(f"{RACP}/Set", 1), (f"{TOPICS['T']}/Get", 1)])
        ready = threading.Event()
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.on_message = self._ask
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()
        assert ready.wait(PATIENCE_S)
        self.client.publish(f"{DEVICE}/Connected", b"true" if connected else b"false", qos=1, retain=True).wait_for_publish(PATIENCE_S)

    def _ask(self, client: Client, _: Any, message: Any) -> None:
        if message.topic.endswith("/Get"):
            answers = [("T", self.pump.current_time())]
        else:
            self.asked.append(bytes(int(one) for one in message.payload.split(b",")))
            answers = self.pump.answer(self.asked[-1])
        for letter, value in answers:
            client.publish(TOPICS[letter], ",".join(map(str, value)), qos=1, retain=True)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.mark.parametrize("model", ["sfloat", "780g+crc"])
def test_a_pump_behind_a_bridge_is_read_through_its_topics_and_goes_on_where_it_stopped(broker, home, tmp_path, model):
    moment = [datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)]
    script = therapy("insulin_like", 3, moment[0] - timedelta(days=2), 3)
    faults = Faults(duplicates=0.3)
    pump, truth = simulated.simulate(script, 3, serial="A7", model=model, now=lambda: moment[0], faults=faults, chatter=True)
    (tmp_path / "truth.json").write_text(truth.to_json())
    address = f"{broker.url}/{DEVICE}"
    (home / settings.NAME).write_text(f'[[dock]]\nport = "{address}"\npump = "ids:A7"\nmodel = "{model}"\n')
    bridge = Bridge(broker, pump)
    plan = Plan(broker=broker.url, name="gw1", ports=[f"{address}=ids:A7"])
    with Hub(broker.url, tmp_path / "hub.sqlite"):
        first = gateway.once(home, plan, wait_s=PATIENCE_S)
        moment[0] = script.end
        before = len(bridge.asked)
        second = gateway.once(home, plan, wait_s=PATIENCE_S)
    bridge.close()
    assert [one.get("line") for one in (*first["ports"], *second["ports"]) if "error" in one or not one["complete"]] == []
    reading = Reading()
    for capture in stored(tmp_path / "hub.sqlite"):
        reading.add(capture)
    assert reading.differences(replay_truth(tmp_path / "truth.json")) == []
    assert pump.forbidden == []
    ranges = [request for request in bridge.asked if request[:2] == b"\x33\x5a"]
    again = [request for request in bridge.asked[before:] if request[:2] == b"\x33\x5a"]
    assert again
    assert not set(again) & set(ranges[: -len(again)])


def test_a_bridge_that_has_lost_its_pump_is_an_error_with_the_next_step(broker, home):
    pump, _ = simulated.simulate(therapy("insulin_like", 3, NOW, 1), 3, serial="A7")
    Bridge(broker, pump, connected=False).close()
    told = gateway.read_bridge(f"{broker.url.replace('://', '://user:secret@')}/{DEVICE}=ids:A7", home / gateway.OUTBOX)
    assert (told["error"], "near the bridge" in told["do"]) == ("bridge_unconnected", True)
    assert "secret" not in json.dumps(told)
    assert gateway.read_bridge(f"{broker.url}/{DEVICE}", home / gateway.OUTBOX)["error"] == "which_pump"
    assert gateway.read_bridge(f"{broker.url}/nothing=ids:A7", home / gateway.OUTBOX)["error"] == "bad_port"


# --- the command --------------------------------------------------------------------------------------------------------------


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ingest.cli", "gateway", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, timeout=2 * PATIENCE_S, check=False, env={**os.environ, "COLUMNS": "160"},
    )  # fmt: skip


def test_one_round_from_the_command_line(broker, home, tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "a.jsonl").write_bytes(canonical(numbered([event(0, "other")])).data)
    with Hub(broker.url, tmp_path / "hub.sqlite"):
        done = command("--once", "--broker", broker.url, "--files", inbox, "--lake", home, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"ports": [], "files": [["a.jsonl", None]], "unsent": 0, "refused": 0, "trouble": ""}
    assert len(stored(tmp_path / "hub.sqlite")) == 1


def test_a_round_in_which_something_failed_ends_with_1(home, tmp_path):
    fill(home, some(1))
    done = command("--once", "/dev/nosuchport=paradigm:123456", "--broker", "mqtt://127.0.0.1:1", "--wait", "0.2", "--lake", home)
    assert done.returncode == 1
    assert "There is no port" in done.stdout
    assert "1 captures have no receipt yet" in done.stdout
    assert "123456" not in done.stdout.replace("/dev/nosuchport=paradigm:123456", "")
    assert command("--once", "--lake", home).returncode == 1
