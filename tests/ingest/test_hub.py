"""The hub over a real broker: stored before it is acknowledged, once however often it comes, and nothing stalls it."""

from __future__ import annotations

import hashlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from devices.contract import Anchor, Capture
from devices.errors import InputError, LinkError, StorageError
from ingest import hub
from ingest.hub import Hub, Receipt, decode_cap, encode_cap
from ingest.store import Arrival, Store
from simulators import canonical, therapy
from simulators import pcd as pcd_pumps
from simulators.rig import Rig, embedded_broker
from tests.broker import PATIENCE_S, Broker, soon
from tests.conftest import ROOT, need
from tests.kit import capture as canonical_lines


def capture(number: int, **more: Any) -> Capture:
    anchor = Anchor(pump_clock=datetime.fromisoformat("2026-03-08T06:00"), utc=datetime(2026, 3, 8, 10, 0, 0, 5000, UTC), round_trip_ms=40)
    return Capture(data=b"page %d" % number, family="canonical", pump_id="canonical:A17", part=str(number), anchor=anchor, **more)


class Edge:
    """A gateway's end: publishes, and collects receipts."""

    def __init__(self, broker: Broker, gateway: str = "gw1") -> None:
        self.gateway = gateway
        self.stored: list[str] = []
        self.refused: list[hub.Refusal] = []
        self.known: Callable[[str], bool] | None = None
        self.too_early: list[str] = []
        self._ready = threading.Event()
        self.client = Client(CallbackAPIVersion.VERSION2, client_id=f"edge-{gateway}", clean_session=False)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda client, *_: client.subscribe(f"hub1/{gateway}/receipt", 1)
        self.client.on_subscribe = lambda *_: self._ready.set()
        self.client.on_message = self._receipt
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()
        assert self._ready.wait(PATIENCE_S)

    def _receipt(self, _: Any, __: Any, message: Any) -> None:
        receipt = msgspec.json.decode(message.payload, type=Receipt)
        if self.known:
            self.too_early += [sha for sha in receipt.stored if not self.known(sha)]
        self.stored += receipt.stored
        self.refused += receipt.refused

    def send(self, payload: bytes, topic: str | None = None) -> None:
        """Publishes, and waits until the broker has it."""
        self.client.publish(topic or f"pl1/{self.gateway}/d/x1/cap", payload, qos=1).wait_for_publish(PATIENCE_S)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def edge(broker: Broker) -> Iterator[Edge]:
    one = Edge(broker)
    yield one
    one.close()


def kept(path: Path) -> list[tuple[Capture, Arrival]]:
    with Store(path) as store:
        return list(store.pending())


def hub_once(broker: Broker, path: Path) -> None:
    """A hub that was there: from now on the broker keeps for it what comes."""
    with Hub(broker.url, path):
        pass


def test_what_is_published_arrives_once_though_it_is_repeated(broker: Broker, edge: Edge, tmp_path: Path) -> None:
    captures = [capture(number) for number in range(50)]
    with Hub(broker.url, tmp_path / "store.sqlite") as running:
        for one in captures * 2:
            edge.send(encode_cap(one))
        soon(lambda: len(edge.stored) == 100, "a receipt for each")
        soon(lambda: running.counters.stored == running.counters.received == 100, "all are counted, just after their receipts")
        soon(lambda: running.counters.gateways["gw1"].stored == 100, "and so under their gateway")
    stored = kept(tmp_path / "store.sqlite")
    assert [one for one, _ in stored] == captures
    assert {arrival.via for _, arrival in stored} == {"mqtt:gw1/x1"}
    assert set(edge.stored) == {one.sha256 for one in captures}


def test_a_receipt_comes_only_after_the_store_has_it(broker: Broker, edge: Edge, tmp_path: Path) -> None:
    with Hub(broker.url, tmp_path / "store.sqlite"), Store(tmp_path / "store.sqlite") as beside:
        edge.known = beside.has
        for number in range(100):
            edge.send(encode_cap(capture(number)))
        soon(lambda: len(edge.stored) == 100, "a receipt for each")
    assert edge.too_early == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_hub_killed_before_it_acknowledged_is_given_everything_again(broker: Broker, edge: Edge, tmp_path: Path, when: str) -> None:
    path = tmp_path / "store.sqlite"
    hub_once(broker, path)
    captures = [capture(number) for number in range(40)]
    for one in captures:
        edge.send(encode_cap(one))
    script = f"""
import os, signal, sys, time
from pathlib import Path
from ingest.hub import Hub
from ingest.store import Store
append = Store.append
def dies(self, captures):
    if {when == "after"}:
        append(self, captures)
    os.kill(os.getpid(), signal.SIGKILL)
Store.append = dies
with Hub(sys.argv[1], Path(sys.argv[2])):
    time.sleep({PATIENCE_S})
"""
    died = subprocess.run([sys.executable, "-c", script, broker.url, str(path)], cwd=ROOT, timeout=2 * PATIENCE_S, check=False)
    assert died.returncode == -signal.SIGKILL
    assert edge.stored == []
    assert bool(kept(path)) == (when == "after")
    with Hub(broker.url, path):
        soon(lambda: set(edge.stored) == {one.sha256 for one in captures}, "a receipt for each, from the second hub")
    assert [one for one, _ in kept(path)] == captures


def test_garbage_is_put_aside_with_its_bytes_and_stalls_nothing(broker: Broker, edge: Edge, tmp_path: Path) -> None:
    wrong_hash = msgspec.json.encode({**msgspec.json.decode(encode_cap(capture(1))), "part": "2"})
    large = encode_cap(capture(1)).replace(b'"bytes":"', b'"bytes":"' + b"A" * 100_000)
    garbage = [b"", b"\xff\x00", b"[" * 50_000, b'{"v":1}', wrong_hash, large]
    with Hub(broker.url, tmp_path / "store.sqlite") as running:
        for number in range(60):
            edge.send(garbage[number % len(garbage)])
            edge.send(encode_cap(capture(number)))
        soon(lambda: len(edge.stored) == 60 and len(edge.refused) == 60, "an answer to each")
        assert running.counters.refused == 60
    stored = kept(tmp_path / "store.sqlite")
    assert [one for one, arrival in stored if not arrival.refused] == [capture(number) for number in range(60)]
    aside = [(one.data, arrival.refused) for one, arrival in stored if arrival.refused]
    assert [data for data, _ in aside] == garbage
    assert all(why for _, why in aside)
    assert {one.why for one in edge.refused} == {why for _, why in aside}
    named = {capture(1).sha256} | {hashlib.sha256(data).hexdigest() for data in garbage[:4]}
    assert {one.sha256 for one in edge.refused} == named


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_broker_that_is_restarted_is_survived(broker: Broker, edge: Edge, tmp_path: Path, how: signal.Signals) -> None:
    with Hub(broker.url, tmp_path / "store.sqlite") as running:
        edge.send(encode_cap(capture(0)))
        soon(lambda: len(edge.stored) == 1, "a receipt")
        broker.stop(how)
        soon(lambda: not running.counters.connected and running.counters.trouble, "the hub sees that it is gone")
        broker.start()
        soon(lambda: edge.client.is_connected() and running.counters.connected, "both are back")
        edge.send(encode_cap(capture(1)))
        soon(lambda: capture(1).sha256 in edge.stored, "a receipt after it came back")
        assert running.counters.trouble == ""
    assert [one for one, _ in kept(tmp_path / "store.sqlite")] == [capture(0), capture(1)]


def test_a_broker_that_hangs_and_wakes_is_survived(broker: Broker, edge: Edge, tmp_path: Path) -> None:
    pulses: list[int] = []
    with Hub(broker.url, tmp_path / "store.sqlite", stall_s=1.0) as running:
        edge.client.message_callback_add("hub1/pumpledger-hub/pulse", lambda *_: pulses.append(1))
        edge.client.subscribe("hub1/pumpledger-hub/pulse", 1)
        soon(lambda: len(pulses) > 1, "its pulse goes round")
        assert broker.process
        broker.process.send_signal(signal.SIGSTOP)
        soon(lambda: "Nothing has moved" in running.counters.trouble, "the hub sees that nothing moves")
        broker.process.send_signal(signal.SIGCONT)
        edge.send(encode_cap(capture(0)))
        soon(lambda: edge.stored, "a receipt after it woke")
    assert [one for one, _ in kept(tmp_path / "store.sqlite")] == [capture(0)]


def test_a_store_without_room_acknowledges_nothing_and_loses_nothing(
    broker: Broker, edge: Edge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.Event()
    full.set()
    append = Store.append

    def fails(self: Store, captures: Any) -> list[str]:
        if full.is_set():
            raise StorageError("There is no room left.")
        return append(self, captures)

    monkeypatch.setattr(Store, "append", fails)
    with Hub(broker.url, tmp_path / "store.sqlite") as running:
        edge.send(encode_cap(capture(0)))
        soon(lambda: "no room" in running.counters.trouble, "the trouble is shown")
        assert edge.stored == []
        full.clear()
        soon(lambda: edge.stored == [capture(0).sha256], "a receipt once there is room")
    assert [one for one, _ in kept(tmp_path / "store.sqlite")] == [capture(0)]


def test_what_comes_while_the_hub_is_away_waits_for_it(broker: Broker, edge: Edge, tmp_path: Path) -> None:
    hub_once(broker, tmp_path / "store.sqlite")
    for number in range(200):
        edge.send(encode_cap(capture(number)))
    with Hub(broker.url, tmp_path / "store.sqlite"):
        soon(lambda: len(set(edge.stored)) == 200, "a receipt for each")
    assert [one for one, _ in kept(tmp_path / "store.sqlite")] == [capture(number) for number in range(200)]


# --- HL7 as it is -----------------------------------------------------------------------------------------------------------------

HL7_START = datetime(2026, 3, 6, 12, tzinfo=UTC)


def hl7(seed: int = 1) -> list[bytes]:
    pump, _ = pcd_pumps.simulate(therapy.therapy("pca", seed, HL7_START, 1), seed, serial=f"SN{seed}")
    return pump.messages()


def test_hl7_payloads_are_captures_as_they_are_wherever_they_come_and_however_often(broker: Broker, edge: Edge, tmp_path: Path) -> None:
    sent = hl7()
    with Hub(broker.url, tmp_path / "store.sqlite", hl7_topics=["pcd/#", "ward/+/events"]) as running:
        for number, message in enumerate(sent * 2):
            edge.send(message, f"pcd/{number % 3}/out" if number % 2 else "ward/7/events")
        edge.send(encode_cap(capture(1)))
        soon(lambda: edge.stored, "a receipt for the capture beside them")
        soon(lambda: running.counters.stored == 2 * len(sent) + 1, "all are stored")
        assert running.counters.refused == 0
    there = [(one, arrival) for one, arrival in kept(tmp_path / "store.sqlite") if one.family == "pcd"]
    assert [one.data for one, _ in there] == sent
    assert len({one.pump_id for one, _ in there}) == 1
    assert {arrival.via for _, arrival in there} <= {"mqtt:pcd/#", "mqtt:ward/+/events"}
    assert edge.stored == [capture(1).sha256]


def test_hl7_that_comes_while_the_hub_is_away_or_dies_waits_for_it(broker: Broker, edge: Edge, tmp_path: Path) -> None:
    path, sent = tmp_path / "store.sqlite", hl7()
    with Hub(broker.url, path, hl7_topics=["pcd/#"]):
        pass
    for message in sent:
        edge.send(message, "pcd/out")
    script = f"""
import os, signal, sys, time
from pathlib import Path
from ingest.hub import Hub
from ingest.store import Store
append = Store.append
def dies(self, captures):
    append(self, captures)
    os.kill(os.getpid(), signal.SIGKILL)
Store.append = dies
with Hub(sys.argv[1], Path(sys.argv[2]), hl7_topics=["pcd/#"]):
    time.sleep({PATIENCE_S})
"""
    died = subprocess.run([sys.executable, "-c", script, broker.url, str(path)], cwd=ROOT, timeout=2 * PATIENCE_S, check=False)
    assert died.returncode == -signal.SIGKILL
    assert 0 < len(kept(path)) < len(sent)
    with Hub(broker.url, path, hl7_topics=["pcd/#"]) as running:
        soon(lambda: running.counters.stored == len(sent), "the second hub is given everything")
    assert [one.data for one, _ in kept(path)] == sent


def test_what_is_no_hl7_is_put_aside_and_nothing_that_is_shown_tells_of_a_patient(broker: Broker, edge: Edge, tmp_path: Path) -> None:
    first, second, *_ = hl7()
    patient = first.replace(b"\rOBR", b"\rPID|||4711^^^H||DOE^JANE\rOBR", 1)
    assert b"DOE" in patient
    other_pump = hl7(2)[0]
    junk = [b"", b"PID|||4711||DOE^JANE", b"\xff\x00", b'{"v":1}', rb"MSH|^~\&|DOE|JANE|C|D|20260302||ADT^A01|1|P|2.6"]
    lines: list[str] = []
    done = threading.Event()

    def show(line: str) -> None:
        lines.append(line)
        if "received 8, stored 3, refused 5" in line:
            done.set()

    with Hub(broker.url, tmp_path / "store.sqlite", hl7_topics=["pcd/#"]):
        pass
    for one in (*junk, patient, first + second, first + other_pump):
        edge.send(one, "pcd/DOE/JANE")
    deadline = time.monotonic() + PATIENCE_S
    hub.listen(
        broker.url,
        tmp_path / "store.sqlite",
        hl7_topics=["pcd/#"],
        until=lambda: done.is_set() or time.monotonic() > deadline,
        show=show,
    )
    assert done.is_set(), lines
    stored = kept(tmp_path / "store.sqlite")
    assert [one.data for one, arrival in stored if arrival.refused] == junk
    assert [one.data for one, arrival in stored if not arrival.refused] == [patient, first + second, first, other_pump]
    assert not any(name in text for text in [*lines, *(f"{arrival}" for _, arrival in stored)] for name in ("DOE", "JANE", "4711"))


@pytest.mark.parametrize("topics", ["", "#", "+/x", "pl1/#", "hub1/+/ask", "$SYS/#", "a/#/b", "a#", "a/b+", "a\0"])
def test_filters_that_are_none_or_are_our_own_are_refused(topics: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Hub("mqtt://localhost", tmp_path / "store.sqlite", hl7_topics=[topics])
    assert caught.value.code == "hl7_topic"


# --- clocks that are wrong --------------------------------------------------------------------------------------------------------


def test_a_clock_anchor_from_the_future_is_put_aside_and_the_records_are_kept(broker: Broker, edge: Edge, tmp_path: Path) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    late = Anchor(pump_clock=now.replace(tzinfo=None), utc=now + timedelta(hours=23))
    ahead = replace(late, utc=now + timedelta(hours=25))
    inside = {"pump_clock": "2099-01-01T00:00:00", "utc": "2099-01-01T00:00:00Z"}
    false = canonical_lines([{"seq": 1, "pump_time": "2026-03-07T20:00:00", "kind": "other"}], anchor=inside)
    sent = [replace(capture(1), anchor=late), replace(capture(2), anchor=ahead), false]
    with Hub(broker.url, tmp_path / "store.sqlite"):
        for one in sent:
            edge.send(encode_cap(one))
        soon(lambda: len(edge.stored) == 2 and len(edge.refused) == 1, "an answer to each")
    assert (edge.stored, edge.refused[0].sha256) == ([one.sha256 for one in sent[:2]], false.sha256)
    stored = kept(tmp_path / "store.sqlite")
    assert [one for one, arrival in stored if not arrival.refused] == [sent[0], replace(sent[1], anchor=None)]
    aside = [(one.data, arrival.refused or "") for one, arrival in stored if arrival.refused]
    assert [data for data, _ in aside] == [encode_cap(sent[1]), encode_cap(false)]
    assert all("a day ahead of this machine's clock" in why for _, why in aside)


@pytest.mark.parametrize("trip", [-1, 2**63, 1.5, "1"])
def test_an_envelope_whose_round_trip_cannot_be_is_refused(trip: Any) -> None:
    payload = msgspec.json.decode(encode_cap(capture(1)))
    payload["anchor"]["round_trip_ms"] = trip
    with pytest.raises(InputError, match="round_trip_ms"):
        decode_cap(msgspec.json.encode(payload))


def test_listen_shows_gateways_and_what_came(broker: Broker, edge: Edge, tmp_path: Path) -> None:
    for gateway, state in (("gw1", b'{"v":1,"state":"online"}'), ("gw2", b'{"v":1,"state":"offline"}'), ("gw3", b"{")):
        edge.client.publish(f"pl1/{gateway}/status", state, qos=1, retain=True).wait_for_publish(PATIENCE_S)
    lines: list[str] = []
    done = threading.Event()

    def show(line: str) -> None:
        lines.append(line)
        if all(part in line for part in ("gw1 online, 1 stored", "gw2 offline, 0 stored", "gw3 ?, 0 stored")):
            done.set()

    edge.client.publish("pl1/gw1/d/x1/cap", encode_cap(capture(0)), qos=1, retain=True).wait_for_publish(PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    hub.listen(broker.url, tmp_path / "store.sqlite", until=lambda: done.is_set() or time.monotonic() > deadline, show=show)
    assert done.is_set(), lines
    assert lines[-1].startswith("Ended: received 1, stored 1, refused 0")


def test_simulated_pumps_over_the_embedded_broker_all_get_their_receipts(tmp_path: Path) -> None:
    pumps = [
        canonical.simulate(therapy.therapy("pca", seed, datetime(2026, 3, 7, tzinfo=UTC), 2), seed, serial=f"A{seed}")[0]
        for seed in range(3)
    ]
    with embedded_broker() as url, Hub(url, tmp_path / "store.sqlite"), Rig(pumps, broker=url) as rig:
        assert rig.wait_for_receipts(PATIENCE_S) == {}
    with Store(tmp_path / "store.sqlite") as store:
        assert store.pumps() == ["canonical:A0", "canonical:A1", "canonical:A2"]


def test_over_tls_it_needs_the_certificate_of_who_signed(broker: Broker, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    need("openssl", openssl is not None, "no openssl on this machine")
    ca, key = tmp_path / "ca.pem", tmp_path / "key.pem"
    made = f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run([*made.split(), "-keyout", str(key), "-out", str(ca)], check=True, capture_output=True)
    broker.stop()
    broker.start("allow_anonymous true", f"certfile {ca}", f"keyfile {key}")
    with Hub(f"mqtts://localhost:{broker.port}?ca={ca}", tmp_path / "store.sqlite") as running:
        assert running.counters.connected
    with pytest.raises(LinkError, match="TLS failed"):
        Hub(f"mqtts://localhost:{broker.port}", tmp_path / "store.sqlite").start()


def test_without_a_broker_it_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"mqtt://reader:secret@127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(LinkError, match=r"Check that it runs there") as caught:
            Hub(url, tmp_path / "store.sqlite").start()
    assert caught.value.code == "no_broker"
    assert "secret" not in str(caught.value)


def test_a_broker_that_does_not_let_it_in_is_an_error_at_once(broker: Broker, tmp_path: Path) -> None:
    broker.stop()
    broker.start("allow_anonymous false", f"password_file {broker.folder / 'passwords'}")
    with pytest.raises(LinkError, match="refuses this client"):
        Hub(broker.url, tmp_path / "store.sqlite").start()


@pytest.mark.parametrize(
    "url", ["localhost", "localhost:1883", "http://x", "mqtt://", "mqtt://h:port", "mqtt://h/topic", "mqtt://h?ca=x", "mqtts://h?nope=x"]
)
def test_an_address_that_is_none_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Hub(url, tmp_path / "store.sqlite")
    assert caught.value.code == "broker_url"


def test_certificates_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Hub(f"mqtts://h?ca={tmp_path / 'none.pem'}", tmp_path / "store.sqlite")
    assert caught.value.code == "broker_files"


TEXT = st.text(max_size=8)
ANCHORS = st.builds(
    Anchor,
    pump_clock=st.datetimes(),
    utc=st.datetimes(timezones=st.just(UTC)),
    round_trip_ms=st.none() | st.integers(0, 2**63 - 1),
    after=st.none() | TEXT,
)
CAPTURES = st.builds(
    Capture,
    data=st.binary(max_size=200),
    family=st.text(min_size=1, max_size=8),
    pump_id=st.text(min_size=1, max_size=8),
    model=st.none() | TEXT,
    part=st.none() | TEXT,
    anchor=st.none() | ANCHORS,
)


@given(CAPTURES)
def test_the_store_takes_whatever_a_payload_can_say(one: Capture) -> None:
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "store.sqlite") as store:
        store.append([(decode_cap(encode_cap(one)), Arrival(datetime.now(UTC), "mqtt:gw1"))])
        assert [found for found, _ in store.pending()] == [one]


@given(CAPTURES)
def test_a_capture_comes_back_as_it_went(one: Capture) -> None:
    assert decode_cap(encode_cap(one)) == one


def test_times_go_as_iso_with_milliseconds_and_utc_as_z() -> None:
    told = msgspec.json.decode(encode_cap(capture(1)))
    assert told["anchor"] == {
        "pump_clock": "2026-03-08T06:00:00.000",
        "utc": "2026-03-08T10:00:00.005Z",
        "round_trip_ms": 40,
        "after": None,
    }
    assert list(told) == ["v", "sha256", "family", "pump", "model", "part", "anchor", "bytes", "kid", "sig"]


@given(CAPTURES, st.data())
def test_a_damaged_payload_is_refused_or_says_the_same_still(one: Capture, data: st.DataObject) -> None:
    payload = bytearray(encode_cap(one))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    with suppress(InputError):
        assert decode_cap(bytes(payload)) == one


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"family": ""},
        {"pump": ""},
        {"bytes": "A"},
        {"bytes": None},
        {"more": 1},
        {"anchor": {"pump_clock": "2026-03-08T06:00:00Z", "utc": "2026-03-08T10:00:00Z", "round_trip_ms": None, "after": None}},
        {"anchor": {"pump_clock": "2026-03-08T06:00:00", "utc": "2026-03-08T10:00:00", "round_trip_ms": None, "after": None}},
        {"anchor": {"pump_clock": "2026-03-08T06:00:00", "utc": "2026-03-08T12:00:00+02:00", "round_trip_ms": None, "after": None}},
        {"anchor": {"pump_clock": "2026-03-08T06:00:00", "utc": "2026-03-08T10:00:00Z", "round_trip_ms": -1, "after": None}},
        {"sha256": "0" * 64},
    ],
)
def test_strictly_anything_else_is_refused(change: dict[str, Any]) -> None:
    payload = msgspec.json.encode({**msgspec.json.decode(encode_cap(capture(1))), **change})
    with pytest.raises(InputError):
        decode_cap(payload)


def test_a_capture_too_large_for_a_message_is_refused_on_both_ends() -> None:
    fits = Capture(data=b"x" * hub.CAP_BYTES, family="canonical", pump_id="canonical:A17")
    assert decode_cap(encode_cap(fits)) == fits
    more = Capture(data=b"x" * (hub.CAP_BYTES + 1), family="canonical", pump_id="canonical:A17")
    with pytest.raises(InputError, match="65536 fit"):
        encode_cap(more)
    told = {**msgspec.json.decode(encode_cap(fits)), "bytes": more.data, "sha256": more.sha256}
    with pytest.raises(InputError, match="more than a capture may have"):
        decode_cap(msgspec.json.encode(told))
