"""Replays over real ports and a real broker: what was recorded is read again as it was, and what differs from the truth is said."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import simulators
from devices.contract import Capture
from devices.errors import InputError, LinkError
from ingest import docks, replay
from ingest.hub import Hub, decode_cap
from ingest.store import Store
from simulators.link import Faults, SerialDevice
from simulators.rig import Rig
from simulators.therapy import Truth, therapy
from tests.broker import PATIENCE_S, soon
from tests.conftest import ROOT


def now() -> datetime:
    return datetime.now(UTC)


def scripted(kind: str, seed: int, days: int = 3):
    return therapy(kind, seed, now().replace(microsecond=0) - timedelta(days=days + 1), days)


def lines(*said: tuple[str, bytes]) -> bytes:
    return b"".join(json.dumps({"dir": who, "hex": data.hex()}).encode() + b"\n" for who, data in said)


HOST, STICK = "host_to_stick", "stick_to_host"


class Recorder:
    """A device that passes on what is asked and answered, and writes it down as a transcript."""

    def __init__(self, device: SerialDevice) -> None:
        self.pump_id, self._device, self._said = device.pump_id, device, [(HOST, b"")]

    def feed(self, data: bytes) -> bytes:
        answer = self._device.feed(data)
        self._said += [(HOST, data), (STICK, answer)]
        return answer

    def transcript(self) -> bytes:
        return lines(*self._said[1:])


def captured(device: SerialDevice, port: str) -> list[Capture]:
    found: dict[str, Capture] = {}
    replay.read_port(port, device.pump_id, lambda capture: found.setdefault(capture.sha256, capture))
    return list(found.values())


# --- transcripts --------------------------------------------------------------------------------------------------------------


def test_a_recorded_dialogue_on_a_pseudo_terminal_gives_the_pages_of_the_same_pump(fixtures):
    folder = fixtures / "medtronic_578398"
    recordings = [(folder / f"serial_{name}.jsonl.gz").read_bytes() for name in ("session", "commands", "download")]
    device = replay.Transcript(recordings, "paradigm:578398")
    with replay.served(device, "pty") as port:
        given_ = captured(device, port)
    pages = {path.read_bytes() for path in (folder / "pages").glob("*.data")}
    assert len(pages) == 11
    assert {capture.data for capture in given_ if capture.data} == pages
    assert device.unknown == 0


@pytest.mark.parametrize("to", ["pty", "socket://127.0.0.1:0"])
@pytest.mark.parametrize("family", ["paradigm", "miva"])
def test_a_download_that_was_recorded_is_the_same_download_when_it_is_replayed(to, family):
    device, _ = simulators.family(family).simulate(scripted("insulin_like", 1), 1, now=now)
    assert isinstance(device, SerialDevice)
    recorder = Recorder(device)
    with replay.served(recorder, to) as port:
        first = captured(device, port)
    again = replay.Transcript([recorder.transcript()], device.pump_id)
    with replay.served(again, to) as port:
        second = captured(device, port)
    assert len(first) > 1
    assert [capture.data for capture in second] == [capture.data for capture in first]


def test_it_answers_by_request_and_not_by_position():
    device = replay.Transcript([lines((HOST, b"a"), (STICK, b"1"), (HOST, b"b"), (STICK, b"2"), (HOST, b"a"), (STICK, b"3"))], "x")
    assert [device.feed(asked) for asked in (b"b", b"a", b"a", b"b")] == [b"2", b"3", b"1", b"2"]


def test_requests_come_in_any_pieces_and_one_that_was_never_asked_is_not_answered():
    device = replay.Transcript([lines((HOST, b"long request"), (STICK, b"on"), (STICK, b"e"), (HOST, b"short"), (STICK, b"two"))], "x")
    assert [device.feed(piece) for piece in (b"long ", b"req", b"uestsho", b"rt")] == [b"", b"", b"one", b"two"]
    assert (device.feed(b"other"), device.feed(b"short")) == (b"", b"two")
    assert (device.answered, device.unknown) == (3, 1)


@given(st.binary())
def test_any_bytes_are_a_transcript_or_an_input_error_and_never_anything_else(data):
    with suppress(InputError):
        assert isinstance(replay.Transcript([data], "x").feed(data), bytes)


def test_an_answer_takes_its_time_on_a_clock_that_runs_as_fast_as_it_is_told():
    class Waits(threading.Event):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[float] = []

        def wait(self, timeout: float | None = None) -> bool:
            self.asked.append(timeout or 0)
            return False

    rows = [
        {"dir": HOST, "hex": "61", "epoch_ms": 1000},
        {"dir": STICK, "hex": "31", "epoch_ms": 3500},
        {"dir": HOST, "hex": "62", "epoch_ms": 9000},
        {"dir": STICK, "hex": "32", "epoch_ms": 9000},
    ]
    recording = "\n".join(map(json.dumps, rows)).encode()
    waits = Waits()
    device = replay.Transcript([recording], "x", clock=replay.Clock(10, waits))
    assert device.feed(b"ab") == b"12"
    assert waits.asked == [0.25, 0.0]
    clock = replay.Clock(3600, waits)
    for hour in (5, 6, 4):
        clock.wait_until(datetime(2026, 3, 8, hour, tzinfo=UTC))
    assert waits.asked[2:] == pytest.approx([0, 1, 0], abs=0.5)
    waits.asked.clear()
    assert replay.Transcript([recording], "x", clock=replay.Clock(None, waits)).feed(b"ab") == b"12"
    assert waits.asked == []
    for speed in (0.5, 10_001, float("nan")):
        with pytest.raises(InputError, match="1 to 10000"):
            replay.Clock(speed)


# --- captures over MQTT -------------------------------------------------------------------------------------------------------


def test_captures_are_published_in_the_order_of_their_records_and_give_what_truly_happened(broker, tmp_path):
    device, true = simulators.family("canonical").simulate(scripted("pca", 2), 2, now=now, faults=Faults(reorder=True, duplicates=0.5))
    (tmp_path / "truth.json").write_text(true.to_json())
    captures = [decode_cap(payload) for payload in device.captures()]
    reading, played = replay.Reading(), []
    with Hub(broker.url, tmp_path / "hub.sqlite"), replay.publishing(broker.url, wait_s=PATIENCE_S) as publish:
        for capture in replay.play(captures, replay.Clock(None)):
            played.append(capture)
            publish(capture)
            reading.add(capture)
    with Store(tmp_path / "hub.sqlite") as store:
        there = [capture for capture, _ in store.pending()]
    assert there == list(dict.fromkeys(played))
    assert len(there) > len(captures)
    firsts = [json.loads(capture.data.splitlines()[1])["seq"] for capture in there]
    assert firsts == sorted(firsts)
    assert reading.differences(replay.truth(tmp_path / "truth.json")) == []


def test_without_a_hub_it_says_so(broker):
    with pytest.raises(LinkError, match="pumpledger listen") as caught, replay.publishing(broker.url, wait_s=0.3) as publish:
        publish(Capture(data=b"x", family="canonical", pump_id="canonical:A1"))
    assert caught.value.code == "no_receipt"


# --- the truth ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played() -> tuple[list[Capture], Truth]:
    device, true = simulators.family("canonical").simulate(scripted("sc_continuous", 3, 4), 3, now=now, batch=20)
    return [decode_cap(payload) for payload in device.captures()], true


def read(captures: list[Capture]) -> replay.Reading:
    reading = replay.Reading()
    for capture in captures:
        reading.add(capture)
    return reading


def kept(true: Truth, folder: Path) -> replay.Truth:
    (folder / "truth.json").write_text(true.to_json())
    return replay.truth(folder / "truth.json")


def test_a_whole_log_is_as_it_truly_was_and_each_lie_is_named(played, tmp_path):
    captures, true = played
    wanted = kept(true, tmp_path)
    assert read(captures).differences(wanted) == []
    lies = {
        "too much": replace(wanted, flowed_s=wanted.flowed_s / 2),
        "the log proves": replace(wanted, proved_s=wanted.proved_s - 120),
        "set-ups": replace(wanted, set_ups=wanted.set_ups[1:]),
        "event 1 is": replace(wanted, told=("power_on", *wanted.told)),
        f"event {len(wanted.told) + 1} is missing": replace(wanted, told=(*wanted.told, "power_on")),
        "the truth is about canonical:…99": replace(wanted, pump_id="canonical:X99"),
    }
    for says, lie in lies.items():
        (difference,) = read(captures).differences(lie)
        assert says in difference


def test_a_download_that_was_broken_off_differs(played, tmp_path):
    captures, true = played
    assert read(captures[:-1]).differences(kept(true, tmp_path)) != []
    assert read([]).differences(kept(true, tmp_path)) != []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pump_id": "a", "flowed_s": null, "proved_s": 1, "set_ups": [], "told": []}', "\udcff"])
def test_what_is_no_truth_is_an_input_error(tmp_path, text):
    path = tmp_path / "truth.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match="simulate --truth"):
        replay.truth(path)


def test_what_is_watched_shows_events_sessions_and_minutes_and_no_serial_number(played):
    captures, true = played
    shown = io.StringIO()
    Console(file=shown, width=140).print(read(captures).shown())
    for said in ("delivery_start", "infusing min", "sessions", "minutes of infusion", f"{len(true.told)} events"):
        assert said in shown.getvalue()
    assert true.pump_id not in shown.getvalue()


# --- faults and simulated pumps -----------------------------------------------------------------------------------------------


def test_faults_are_read_from_a_file(tmp_path):
    path = tmp_path / "faults.toml"
    start = datetime(2026, 3, 8, tzinfo=UTC)
    path.write_text(
        'drift_s_per_day = 12\nbattery_out_h = 30\nnoise = 0.02\nunplug_at = 5000\nkeep = 3\nreorder = true\nat = { 4 = "nak" }\n'
    )
    assert replay.faults(path, start) == Faults(
        drift_s_per_day=12.0, battery_out=start + timedelta(hours=30), noise=0.02, unplug_at=5000, keep=3, reorder=True, at={4: "nak"}
    )
    path.write_text("battery_out = 2026-03-08T10:00:00+02:00\n")
    assert replay.faults(path, start) == Faults(battery_out=datetime(2026, 3, 8, 8, tzinfo=UTC))


@pytest.mark.parametrize(
    "text",
    [
        "drift = 1", "noise = 2", "noise = true", 'noise = "a"', "unplug_at = -1", "unplug_at = 1.5", "reorder = 1", "at = 3",
        'at = { x = "nak" }', 'at = { 1 = "flood" }', "battery_out = 2026-03-08T10:00:00", "battery_out_h = true", "[", "keep = false",
    ],
)  # fmt: skip
def test_a_wrong_fault_is_named(tmp_path, text):
    path = tmp_path / "faults.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        replay.faults(path, now())
    assert caught.value.code == "faults"


def test_a_cable_that_was_pulled_is_plugged_in_again_and_the_download_goes_on(tmp_path):
    device, _ = simulators.family("paradigm").simulate(scripted("insulin_like", 1, 20), 1, now=now, faults=Faults(unplug_at=6000))
    said: list[str] = []
    stop = threading.Event()
    with Rig([device]) as rig:
        port = rig.port(device.pump_id)
        helper = threading.Thread(target=replay.keep_plugged, args=([port],), kwargs={"after_s": 0.2, "say": said.append, "stop": stop})
        helper.start()
        try:
            with pytest.raises(LinkError):
                docks.sync(tmp_path, f"{port.path}={device.pump_id}")
            soon(lambda: any("again" in line for line in said), "it is plugged in again")
            assert docks.sync(tmp_path, f"{port.path}={device.pump_id}")["complete"]
        finally:
            stop.set()
            helper.join()


def test_a_device_on_tcp_serves_one_host_after_the_other_and_is_gone_once_when_it_is_unplugged(tmp_path):
    device, _ = simulators.family("paradigm").simulate(scripted("insulin_like", 1, 20), 1, now=now, faults=Faults(unplug_at=6000))
    with replay.TcpPort(device, "127.0.0.1", 0) as tcp:
        with pytest.raises(LinkError):
            docks.sync(tmp_path, f"{tcp.url}={device.pump_id}")
        assert docks.sync(tmp_path, f"{tcp.url}={device.pump_id}")["complete"]
        with pytest.raises(LinkError, match="a port that is free"):
            replay.TcpPort(device, "127.0.0.1", tcp.port)


# --- the commands -------------------------------------------------------------------------------------------------------------


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-u", "-m", "ingest.cli", *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def run(*arguments: object, ok: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ingest.cli", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, timeout=2 * PATIENCE_S, check=False, env={**os.environ, "COLUMNS": "160"},
    )  # fmt: skip
    assert done.returncode == ok, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_a_simulated_pump_on_tcp_with_faults_is_downloaded_and_its_truth_holds(tmp_path):
    (tmp_path / "faults.toml").write_text("silence = 0.01\nnoise = 0.01\n")
    faults = ("--faults", tmp_path / "faults.toml", "--truth", tmp_path / "truth.json")
    with running("simulate", "paradigm", "--therapy", "insulin_like", "--listen", "127.0.0.1:0", *faults) as process:
        assert process.stdout
        pump, _, url = process.stdout.readline().strip().partition(" waits at ")
        reading = replay.Reading()
        replay.read_port(url, pump, reading.add)
    assert reading.differences(replay.truth(tmp_path / "truth.json")) == []


def test_replay_watches_publishes_and_checks(broker, played, tmp_path):
    captures, true = played
    paths = []
    for number, capture in enumerate(captures):
        paths.append(tmp_path / f"{number}.jsonl")
        paths[-1].write_bytes(capture.data)
    (tmp_path / "truth.json").write_text(true.to_json())
    with Hub(broker.url, tmp_path / "hub.sqlite"):
        told = run("replay", *paths, "--to", broker.url, "--watch", "--check", tmp_path / "truth.json", "--speed", "max")
    assert "minutes of infusion" in told
    assert "All is as it truly was." in told
    with Store(tmp_path / "hub.sqlite") as store:
        assert len(list(store.pending())) == len(captures)
    told = run("replay", *paths[:-1], "--check", tmp_path / "truth.json", "--json", ok=1)
    assert json.loads(told)["differences"]


def test_replay_says_what_it_cannot_do(tmp_path):
    (tmp_path / "odd.bin").write_bytes(b"\x00\x01")
    assert "none of a recorded dialogue" in run("replay", tmp_path / "odd.bin", "--to", "pty", ok=1)
    (tmp_path / "dialogue.jsonl").write_bytes(lines((HOST, b"a"), (STICK, b"b")))
    assert "no place to play to" in run("replay", tmp_path / "dialogue.jsonl", "--to", "ftp://x", ok=1)
    assert "1 to 10000" in run("replay", tmp_path / "odd.bin", "--speed", "fast", ok=2)


def test_a_capture_that_its_family_cannot_cut_is_played_whole():
    damaged = Capture(data=bytes(26) * 400, family="tandem", pump_id="tandem:1")
    assert list(replay.play([damaged], replay.Clock(None))) == [damaged]
