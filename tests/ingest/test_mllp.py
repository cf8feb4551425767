"""The MLLP listener over real sockets: AA only for what the store has, AE with the reason for all else, and nobody stalls it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from devices import pcd
from devices.contract import Capture
from devices.errors import LinkError, StorageError
from ingest.mllp import Listener
from ingest.replay import Reading, truth
from ingest.store import Arrival, Store
from simulators import pcd as simulated
from simulators.therapy import therapy
from tests.broker import PATIENCE_S, soon
from tests.conftest import ROOT

START = datetime(2026, 3, 6, 12, tzinfo=UTC)


def messages(count: int = 3) -> list[bytes]:
    pump, _ = simulated.simulate(therapy("pca", 1, START, 1), 1)
    return pump.messages()[:count]


def kept(path: Path) -> list[tuple[Capture, Arrival]]:
    with Store(path) as store:
        return list(store.pending())


class Sender:
    """A pump's gateway: sends frames and waits for their answers."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self._rest = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answers(self, count: int) -> list[bytes]:
        """So many answers, in the order in which they come."""
        found: list[bytes] = []
        while len(found) < count:
            came = self.socket.recv(65_536)
            assert came, f"the listener closed after {len(found)} answers"
            frames = pcd.unframed(self._rest + came)
            self._rest = frames.rest
            found += frames.messages
        return found

    def closed(self) -> bool:
        """Whether the listener ends the connection; waits for it."""
        try:
            return self.socket.recv(65_536) == b""
        except ConnectionResetError:
            return True


@contextmanager
def sender(port: int) -> Iterator[Sender]:
    one = Sender(port)
    try:
        yield one
    finally:
        one.socket.close()


def code(answer: bytes) -> tuple[str, str, str]:
    """MSA-1, MSA-2, MSA-3."""
    fields = next(line for line in answer.split(b"\r") if line.startswith(b"MSA")).decode().split("|")
    return (fields[1], fields[2], fields[3] if len(fields) > 3 else "")


def control(message: bytes) -> str:
    return message.split(b"\r")[0].split(b"|")[9].decode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


@contextmanager
def listening(path: Path, **more: Any) -> Iterator[Listener]:
    with Listener("127.0.0.1", 0, path, **more) as listener:
        yield listener


def test_what_a_pumps_gateway_sends_is_stored_answered_and_gives_what_truly_happened(path, tmp_path):
    pump, true = simulated.simulate(therapy("pca", 1, START, 2), 1)
    (tmp_path / "truth.json").write_text(true.to_json())
    sent = pump.messages()
    with listening(path) as listener, sender(listener.port) as one:
        for _ in range(2):
            one.send(pump.mllp())
            assert [code(answer) for answer in one.answers(len(sent))] == [("AA", control(message), "") for message in sent]
        assert (listener.counters.received, listener.counters.stored) == (2 * len(sent), 2 * len(sent))
    captures = [capture for capture, _ in kept(path)]
    assert [capture.data for capture in captures] == sent
    assert {capture.pump_id for capture in captures} == {true.pump_id}
    assert {arrival.via for _, arrival in kept(path)} == {"mllp:127.0.0.1"}
    reading = Reading()
    for capture in captures:
        reading.add(capture)
    assert reading.differences(truth(tmp_path / "truth.json")) == []


def test_it_is_durable_before_it_is_answered(path):
    with listening(path) as listener, Store(path) as beside, sender(listener.port) as one:
        for message in messages(20):
            one.send(pcd.framed(message))
            assert code(one.answers(1)[0])[0] == "AA"
            (capture,) = pcd.read_files([("m", message)])
            assert beside.has(capture.sha256)


def test_frames_may_come_in_any_pieces(path):
    (first, second) = messages(2)
    with listening(path) as listener, sender(listener.port) as one:
        data = pcd.framed(first) + pcd.framed(second)
        for at in range(0, len(data), 97):
            one.send(data[at : at + 97])
        assert [code(answer)[0] for answer in one.answers(2)] == ["AA", "AA"]
    assert [capture.data for capture, _ in kept(path)] == [first, second]


def test_what_is_no_message_is_put_aside_with_its_bytes_and_answered_with_the_reason(path):
    good = messages(1)[0]
    with listening(path) as listener, sender(listener.port) as one:
        one.send(b"noise" + pcd.framed(b"hello") + pcd.framed(b"") + pcd.framed(good))
        answers = [code(answer) if b"MSA" in answer else ("?", "", "") for answer in one.answers(3)]
        assert [answer[0] for answer in answers] == ["AE", "AE", "AA"]
        assert "no HL7 message" in answers[0][2]
        soon(lambda: listener.counters.refused == 3, "the noise is counted")
    stored = kept(path)
    assert [capture.data for capture, arrival in stored if arrival.refused is None] == [good]
    assert {capture.data for capture, arrival in stored if arrival.refused} == {b"noise", b"hello", b""}


def test_a_store_without_room_is_an_ae_and_a_second_try_an_aa(path, monkeypatch):
    full = threading.Event()
    full.set()
    append = Store.append

    def fails(self: Store, captures: Any) -> list[str]:
        if full.is_set():
            raise StorageError("There is no room left.")
        return append(self, captures)

    monkeypatch.setattr(Store, "append", fails)
    message = messages(1)[0]
    with listening(path) as listener, sender(listener.port) as one:
        one.send(pcd.framed(message))
        assert code(one.answers(1)[0]) == ("AE", control(message), "There is no room left.")
        assert "no room" in listener.counters.trouble
        full.clear()
        one.send(pcd.framed(message))
        assert code(one.answers(1)[0]) == ("AA", control(message), "")
        assert listener.counters.trouble == ""
    assert [capture.data for capture, _ in kept(path)] == [message]


@pytest.mark.parametrize("framed", [True, False])
def test_a_message_that_is_too_long_is_refused_and_ends_the_connection(path, framed):
    message = messages(1)[0]
    with listening(path, message_bytes=len(message)) as listener:
        with sender(listener.port) as one:
            long = message + b"OBX|99" + b"x" * 100_000
            one.send(pcd.framed(long) if framed else b"\x0b" + long)
            assert code(one.answers(1)[0])[:2] == ("AE", control(message))
            assert one.closed()
        with sender(listener.port) as another:
            another.send(pcd.framed(message))
            assert code(another.answers(1)[0])[0] == "AA"
    assert [capture.data for capture, arrival in kept(path) if not arrival.refused] == [message]


@pytest.mark.parametrize("began", [b"", b"\x0bMSH|^~"])
def test_who_says_nothing_for_too_long_is_sent_away(path, began):
    with listening(path, idle_s=0.3) as listener, sender(listener.port) as one:
        one.send(began)
        assert one.closed()
        assert listener.counters.broken == bool(began)
    assert kept(path) == []


def test_a_message_that_drips_in_is_given_up_though_bytes_keep_coming(path):
    with listening(path, idle_s=0.5) as listener, sender(listener.port) as one:
        ended = threading.Event()

        def drip() -> None:
            one.send(b"\x0bMSH")
            while not ended.wait(0.05):
                try:
                    one.send(b"|")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        assert one.closed()
        ended.set()
        thread.join()
        soon(lambda: listener.counters.broken == 1, "it is counted as broken off")


def test_one_connection_too_many_is_closed_and_there_is_room_again_when_another_ends(path):
    with listening(path, connections=1) as listener:
        with sender(listener.port) as first:
            first.send(pcd.framed(messages(1)[0]))
            first.answers(1)
            with sender(listener.port) as second:
                assert second.closed()

        def served() -> bool:
            with sender(listener.port) as third:
                third.send(pcd.framed(messages(1)[0]))
                try:
                    return len(third.answers(1)) == 1
                except (AssertionError, OSError):
                    return False

        soon(served, "there is room again")


def test_it_ends_while_senders_are_connected(path):
    with listening(path) as listener:
        one = Sender(listener.port)
        one.send(pcd.framed(messages(1)[0]))
        one.answers(1)
    assert one.closed()
    one.socket.close()


def test_a_port_that_is_taken_is_an_error_with_the_next_step(path):
    with listening(path) as listener, pytest.raises(LinkError, match="a port that is free"):
        Listener("127.0.0.1", listener.port, path)


def test_listen_takes_messages_without_a_broker(tmp_path):
    command = [sys.executable, "-m", "ingest.cli", "listen", "--mllp", "127.0.0.1:0", "--lake", str(tmp_path / "lake")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        port = int(process.stderr.readline().rpartition(":")[2])
        with sender(port) as one:
            one.send(pcd.framed(messages(1)[0]))
            assert code(one.answers(1)[0])[0] == "AA"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
    assert [capture.data for capture, _ in kept(tmp_path / "lake" / "store.sqlite")] == messages(1)
    assert timedelta(0) <= datetime.now(UTC) - kept(tmp_path / "lake" / "store.sqlite")[0][1].received_at


def test_a_message_from_the_future_is_an_ae_and_put_aside(path):
    pump, _ = simulated.simulate(therapy("pca", 1, datetime.now(UTC) + timedelta(days=400), 1), 1)
    message = pump.messages()[0]
    with listening(path) as listener, sender(listener.port) as one:
        one.send(pcd.framed(message))
        ((verdict, _, why),) = [code(answer) for answer in one.answers(1)]
    assert (verdict, "a day ahead" in why) == ("AE", True)
    assert [(capture.data, "a day ahead" in (arrival.refused or "")) for capture, arrival in kept(path)] == [(message, True)]
