"""Simulated pumps behind real ptys and real brokers."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
import pytest
import serial
from paho.mqtt.enums import CallbackAPIVersion

from devices.contract import Capture
from devices.errors import InputError, LinkError
from simulators import canonical, paradigm
from simulators.link import Faults
from simulators.rig import Port, Rig, embedded_broker
from simulators.therapy import therapy

START = datetime(2026, 3, 6, 12, tzinfo=UTC)
HELLO = bytes.fromhex("040000")
STATUS = bytes.fromhex("030000")


def stick(serial_number: str = "482916", **options: Any) -> paradigm.Stick:
    return paradigm.simulate(therapy("insulin_like", 1, START, 2), 1, serial=serial_number, **options)[0]


def pca(serial_number: str = "A17", **options: Any) -> canonical.Pump:
    return canonical.simulate(therapy("pca", 1, START, 3), 1, serial=serial_number, **options)[0]


def talk(port: serial.Serial, data: bytes, length: int = 64) -> bytes:
    port.write(data)
    return bytes(port.read(length))


def gone(port: Port, timeout_s: float = 10) -> bool:
    deadline = time.monotonic() + timeout_s
    while port.plugged and time.monotonic() < deadline:
        time.sleep(0.01)
    return not port.plugged


class Hub:
    """Stores captures and receipts them; it can be deaf to the first of them, and refuse some."""

    def __init__(self, broker: str, *, deaf: int = 0, refuse: set[str] | None = None) -> None:
        self.got: list[tuple[str, dict[str, Any]]] = []
        self.status: list[bytes] = []
        self._deaf, self._refuse = deaf, refuse or set()
        self._ready = threading.Event()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="hub", protocol=mqtt.MQTTv311)
        self.client.on_connect = lambda client, *_: client.subscribe([("pl1/+/d/+/cap", 1), ("pl1/+/status", 1)])
        self.client.on_subscribe = lambda *_: self._ready.set()
        self.client.on_message = self._take
        url = urlsplit(broker)
        self.client.connect(str(url.hostname), int(url.port or 0))
        self.client.loop_start()
        assert self._ready.wait(10)

    def _take(self, client: mqtt.Client, user: Any, message: mqtt.MQTTMessage) -> None:
        if message.topic.endswith("/status"):
            self.status.append(message.payload)
            return
        told = json.loads(message.payload)
        self.got.append((message.topic, told))
        if len(self.got) <= self._deaf:
            return
        bad = told["sha256"] in self._refuse
        receipt = {
            "v": 1,
            "stored": [] if bad else [told["sha256"]],
            "refused": [{"sha256": told["sha256"], "why": "unreadable"}] if bad else [],
        }
        client.publish(f"hub1/{message.topic.split('/')[1]}/receipt", json.dumps(receipt), qos=1)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@contextmanager
def listening(broker: str, **options: Any) -> Iterator[Hub]:
    hub = Hub(broker, **options)
    try:
        yield hub
    finally:
        hub.close()


@pytest.fixture
def real_broker(mosquitto: str, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    process = subprocess.Popen([mosquitto, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield f"mqtt://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


# --- ports -------------------------------------------------------------------------------------------------------------


def test_a_pump_answers_behind_its_port_as_it_does_when_fed() -> None:
    said: list[str] = []
    with Rig([stick()], say=said.append) as rig:
        path = rig.ports["paradigm:482916"]
        assert said == [f"paradigm:…16 at {path}"]
        with serial.Serial(path, 9600, timeout=5, exclusive=True) as port:
            assert talk(port, HELLO) == stick().feed(HELLO)


def test_a_port_survives_being_opened_and_closed_again_and_again() -> None:
    with Rig([stick()]) as rig:
        path = rig.ports["paradigm:482916"]
        for _ in range(5):
            with serial.Serial(path, 9600, timeout=5, exclusive=True) as port:
                assert talk(port, HELLO)[9:19] == b"ComLink II"


def test_every_byte_passes_the_port_unchanged() -> None:
    class Echo:
        pump_id = "echo:1"

        def feed(self, data: bytes) -> bytes:
            return data

    with Rig([Echo()]) as rig, serial.Serial(rig.ports["echo:1"], 9600, timeout=5) as port:
        every = bytes(range(256)) * 64
        assert talk(port, every, len(every)) == every


def test_several_pumps_have_ports_of_their_own() -> None:
    with Rig([stick("482916"), stick("100200", signal=90)]) as rig:
        assert len(set(rig.ports.values())) == 2
        for pump_id, signal in (("paradigm:482916", 210), ("paradigm:100200", 90)):
            with serial.Serial(rig.ports[pump_id], 9600, timeout=5) as port:
                assert talk(port, bytes.fromhex("060000"))[3] == signal


def test_a_cable_that_is_pulled_is_felt_and_can_be_put_in_again_at_the_same_path() -> None:
    with Rig([stick(faults=Faults(unplug_at=100))]) as rig:
        path = rig.ports["paradigm:482916"]
        with serial.Serial(path, 9600, timeout=5) as port:
            assert len(talk(port, STATUS)) == 64
            port.write(STATUS)
            assert gone(rig.port("paradigm:482916"))
            with pytest.raises(OSError):  # noqa: PT011
                port.read(64)
        with pytest.raises(OSError):  # noqa: PT011
            serial.Serial(path, 9600)
        rig.port("paradigm:482916").plug_in()
        assert rig.ports["paradigm:482916"] == path
        with serial.Serial(path, 9600, timeout=5) as port:
            assert len(talk(port, STATUS)) == 64


def test_no_thread_and_no_port_is_left_behind() -> None:
    before = threading.active_count()
    with Rig([stick()]) as rig:
        path = Path(rig.ports["paradigm:482916"])
        assert path.exists()
        assert threading.active_count() == before + 1
    assert not path.exists()
    assert not path.parent.exists()
    assert threading.active_count() == before


# --- brokers -----------------------------------------------------------------------------------------------------------


def check_publishing(broker: str) -> None:
    pumps = [pca("A17", batch=10), pca("B3", batch=20)]
    with listening(broker) as hub, Rig([*pumps, stick()], broker=broker, gateway="gw1") as rig:
        assert rig.wait_for_receipts(30) == {}
        assert list(rig.ports) == ["paradigm:482916"]
        assert {told["sha256"] for _, told in hub.got} == {json.loads(p)["sha256"] for pump in pumps for p in pump.captures()}
        for topic, told in hub.got:
            data = base64.b64decode(told["bytes"])
            assert Capture(data=data, family=told["family"], pump_id=told["pump"]).sha256 == told["sha256"]
            assert rig.gateway is not None
            assert topic == f"pl1/gw1/d/{rig.gateway.alias(told['pump'])}/cap"
            assert told["pump"].partition(":")[2] not in topic


def test_captures_reach_a_hub_over_a_real_broker(real_broker: str) -> None:
    check_publishing(real_broker)


def test_captures_reach_a_hub_over_the_embedded_broker() -> None:
    with embedded_broker() as broker:
        check_publishing(broker)


def test_what_has_no_receipt_is_sent_again(real_broker: str) -> None:
    pump = pca(batch=10)
    with listening(real_broker, deaf=3) as hub, Rig([pump], broker=real_broker, again_s=0.2) as rig:
        rig.wait_for_receipts(30)
        sent = Counter(told["sha256"] for _, told in hub.got)
        assert len(sent) == len(pump.captures()) > 3
        assert sorted(sent.values())[-3:] != [1, 1, 1]


def test_a_capture_that_comes_twice_is_published_twice(real_broker: str) -> None:
    pump = pca(batch=10, faults=Faults(duplicates=1.0))
    with listening(real_broker) as hub, Rig([pump], broker=real_broker, again_s=60) as rig:
        rig.wait_for_receipts(30)
        deadline = time.monotonic() + 10
        while len(hub.got) < len(pump.captures()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert set(Counter(told["sha256"] for _, told in hub.got).values()) == {2}


def test_what_the_hub_refuses_is_told_and_not_sent_again(real_broker: str) -> None:
    pump = pca(batch=10)
    bad = json.loads(pump.captures()[1])["sha256"]
    with listening(real_broker, refuse={bad}), Rig([pump], broker=real_broker) as rig:
        assert rig.wait_for_receipts(30) == {bad: "unreadable"}


def test_a_pump_that_records_more_publishes_more(real_broker: str) -> None:
    moment = [START + timedelta(days=1)]
    pump = pca(batch=10, now=lambda: moment[0])
    with listening(real_broker) as hub, Rig([pump], broker=real_broker) as rig:
        rig.wait_for_receipts(30)
        first = len(hub.got)
        moment[0] = START + timedelta(days=2)
        assert rig.gateway is not None
        rig.gateway.collect()
        rig.wait_for_receipts(30)
        assert len(hub.got) > first


def test_the_gateway_says_that_it_comes_and_goes(real_broker: str) -> None:
    with listening(real_broker) as hub:
        with Rig([pca()], broker=real_broker) as rig:
            rig.wait_for_receipts(30)
        deadline = time.monotonic() + 10
        while len(hub.status) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [json.loads(status)["state"] for status in hub.status] == ["online", "offline"]


def test_without_a_hub_the_wait_ends_with_an_error() -> None:
    with embedded_broker() as broker, Rig([pca()], broker=broker) as rig, pytest.raises(LinkError, match="no receipt"):
        rig.wait_for_receipts(0.3)


def test_a_broker_that_is_none_or_does_not_answer_is_refused() -> None:
    with pytest.raises(InputError, match="need a broker"):
        Rig([pca()])
    with pytest.raises(InputError, match="no broker"):
        Rig([pca()], broker="localhost")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        rig = Rig([stick(), pca()], broker=f"mqtt://127.0.0.1:{probe.getsockname()[1]}")
        with pytest.raises(LinkError, match="No broker answers"):
            rig.__enter__()
    assert not any(Path(path).exists() for path in rig.ports.values())


def test_two_embedded_brokers_run_beside_each_other() -> None:
    with embedded_broker() as one, embedded_broker() as other:
        assert one != other
        check_publishing(other)
