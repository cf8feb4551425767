"""Docked pumps over real pseudo-terminals and sockets: resumed, durable, and every failure in words."""

from __future__ import annotations

import grp
import json
import os
import pty
import select
import socket
import threading
import time
import tty
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import serial
import serial.rfc2217

from devices import families, sequence
from devices.contract import RECORDS, Anchor, Capture, CaptureHead, Decoded, Log, joined, table
from devices.dialogue import Ask, Dialogue, Got, Note, Summary
from devices.errors import InputError, LinkError, PumpError, PumpledgerError, StorageError
from ingest import docks, settings
from ingest.docks import Progress, SerialLink
from ingest.lake import Lake
from ingest.store import Store
from tests.ingest.test_files import in_child
from transforms import tables

BLOCK = 40
FIRST = datetime(2026, 3, 7, 23, 30)
HEADER = "pump_id,patient_id,order_id,drug,route,concentration,dose_unit,payer,rule_set,place_of_service,tz,start,stop"


class Bench:
    """A small family: `h` says who is there, `cSSS` the clock of the pump with that serial number, `bNN` its block NN."""

    HELLO = Ask(data=b"h", missing=lambda got: 6 - len(got), timeout_s=0.3, what="hello")

    def __init__(self, name: str = "bench", greeting: bytes = b"bench!", patience_s: float = 3, offset_s: float = -14400.2) -> None:
        self.name, self.greeting, self.patience_s, self.offset_s = name, greeting, patience_s, offset_s
        self.SHEET = SimpleNamespace(family=name)

    def is_hello(self, answer: bytes) -> bool:
        return answer == self.greeting

    def download(self, pump_id: str, known: Iterable[CaptureHead], *, model: str | None = None) -> Dialogue:
        serial = pump_id.partition(":")[2].encode()
        have = {head.part for head in known}
        clock = yield Ask(data=b"c" + serial, missing=lambda got: 2 - len(got), timeout_s=0.5, what="clock")
        assert clock
        if len(clock.data) < 2:
            raise PumpError("The pump does not answer.", do="Wake it.", code="no_answer")
        anchor = Anchor(pump_clock=clock.received.replace(tzinfo=None) - timedelta(hours=4), utc=clock.received)
        total, new = int(clock.data), 0
        for number in range(total):
            if str(number) in have:
                continue
            if new == 1:
                yield Note("going on")
            ask = Ask(
                data=b"b%02d" % number,
                missing=lambda got: BLOCK - len(got),
                timeout_s=self.patience_s,
                what=f"block {number}",
                done=number,
                total=total,
            )
            block = yield ask
            assert block
            if len(block.data) != BLOCK:
                raise PumpError("A block is short.", do="Try again.", code="short")
            new += 1
            yield Got(Capture(data=block.data, family=self.name, pump_id=pump_id, part=str(number), anchor=anchor))
        return Summary(pump_id=pump_id, model=None, new_parts=new, clock_offset_s=self.offset_s, battery="61 %")

    def decode(self, capture: Capture) -> Decoded:
        """Ten records a block, one a minute; the first is the last of the block before."""
        first = int(capture.data[1:3]) * 9
        rows = [
            {
                "capture": capture.sha256, "offset": n, "pump_id": capture.pump_id, "log_epoch": 0, "record_key": f"0:{n}", "seq": n,
                "contiguous": True, "kind": "other", "pump_time": FIRST + timedelta(minutes=n), "native_code": "",
                "detail": "{}", "raw": b"",
            }
            for n in range(first, first + 10)
        ]  # fmt: skip
        return joined(())._replace(records=table(RECORDS, rows))

    def assemble(self, pump_id: str, records: Any, faults: Any, anchors: Any) -> Log:
        return sequence.assemble(pump_id, records, faults, anchors)


class Pump:
    """What sits on the other end of a port: answers until it is unplugged."""

    def __init__(self, handle: int, serials: Iterable[bytes], blocks: int, greeting: bytes, gone_after: int | None) -> None:
        self.handle, self.serials, self.blocks, self.greeting, self.gone_after = handle, set(serials), blocks, greeting, gone_after
        self.asked: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while request := os.read(self.handle, 64):
                self.asked.append(request)
                if self.gone_after is not None and sum(one.startswith(b"b") for one in self.asked) > self.gone_after:
                    break
                os.write(self.handle, self._answer(request))
        except OSError:
            pass
        os.close(self.handle)

    def _answer(self, request: bytes) -> bytes:
        match request[:1]:
            case b"h":
                return self.greeting
            case b"c" if request[1:] in self.serials:
                return b"%02d" % self.blocks
            case b"b":
                return request.ljust(BLOCK, b".")
        return b""


@contextmanager
def docked(*serials: bytes, blocks: int = 6, greeting: bytes = b"bench!", gone_after: int | None = None) -> Iterator[tuple[str, Pump]]:
    """A pump on a pseudo-terminal: the path of the port, and the pump."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    port = os.ttyname(slave)
    pump = Pump(master, serials or (b"777123",), blocks, greeting, gone_after)
    try:
        yield port, pump
    finally:
        os.close(slave)
        pump._thread.join(5)


@pytest.fixture(autouse=True)
def only_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    there(monkeypatch, Bench())


def there(monkeypatch: pytest.MonkeyPatch, *adapters: Any) -> None:
    found: Mapping[str, Any] = {adapter.SHEET.family: adapter for adapter in adapters}
    monkeypatch.setattr(families, "families", lambda: found)


def parts(lake: Path, pump: str = "bench:777123") -> list[str | None]:
    with Store(lake / "store.sqlite") as store:
        return [head.part for head in store.heads(pump)]


def failing(lake: Path, port: str, **more: Any) -> PumpledgerError:
    with pytest.raises(PumpledgerError) as caught:
        docks.sync(lake, port, **more)
    assert caught.value.what
    assert "777123" not in str(caught.value)
    return caught.value


def test_a_docked_pump_gives_everything_once_and_then_no_new_data(tmp_path: Path) -> None:
    seen: list[Progress] = []
    with docked() as (port, pump):
        first = docks.sync(tmp_path, port, pump="bench:777123", progress=seen.append)
        asked = len(pump.asked)
        second = docks.sync(tmp_path, port, pump="bench:777123")
        assert pump.asked[asked:] == [b"c777123"]
    assert parts(tmp_path) == ["0", "1", "2", "3", "4", "5"]
    assert first == {
        "port": port,
        "family": "bench",
        "pump": "bench:…23",
        "model": None,
        "new_captures": 6,
        "new_events": 55,
        "up_to": "2026-03-08T00:24:00",
        "clock_offset_s": -14400.2,
        "battery": "61 %",
        "complete": True,
        "line": "bench:…23: 55 new events, up to 2026-03-08 00:24, clock +0 s at UTC−4, battery 61 %",
    }
    assert second["line"] == "bench:…23: no new data, clock +0 s at UTC−4, battery 61 %"
    assert json.loads(json.dumps(second)) == second
    assert [(one.done, one.note) for one in seen if one.total == 6][:3] == [(0, "block 0"), (0, "going on"), (1, "block 1")]
    assert {one.port for one in seen} == {port}


def line(lake: Path, pump: str = "bench:777123", **more: Any) -> str:
    with docked(**more) as (port, _):
        return str(docks.sync(lake, port, pump=pump)["line"])


def test_what_was_known_already_is_no_new_event_whether_the_store_or_the_lake_has_it(tmp_path: Path) -> None:
    assert "19 new events, up to 2026-03-07 23:48" in line(tmp_path, blocks=2)
    assert "9 new events, up to 2026-03-07 23:57" in line(tmp_path, blocks=3)
    usual = {field.name: "" for field in tables.EVENTS if field.type == pa.string()} | {"log_epoch": 0, "raw": b"", "conflict": False}
    rows = [{**usual, "pump_id": "bench:777123", "record_key": f"0:{n}"} for n in range(28)]
    lake, events = Lake.create(tmp_path), pa.Table.from_pylist(rows, schema=tables.EVENTS)
    lake.publish("consolidate", lake.bucket_of("bench:777123"), {"events": events}, {"events": "2026-03"}, {})
    with Store(tmp_path / "store.sqlite") as store:
        store.drop([capture.sha256 for capture, _ in store.pending()])
    assert "9 new events, up to 2026-03-08 00:06" in line(tmp_path, blocks=4)


@pytest.mark.parametrize(
    ("zone", "offset_s", "wanted"),
    [
        ("UTC", -38.2, "clock −38 s,"),
        ("EST5", -5 * 3600 - 38, "clock −38 s,"),
        ("EST5", -4 * 3600 - 38, "clock −38 s at UTC−4,"),
        ("UTC", 5.5 * 3600 + 90, "clock +90 s at UTC+5:30,"),
        ("UTC", 754.0, "clock +0:12:34 h,"),
        ("UTC", -86_400 * 6_000 - 61.0, "clock −6,000 days 0:01:01 h,"),
    ],
)
def test_the_clock_is_told_against_that_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zone: str, offset_s: float, wanted: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    there(monkeypatch, Bench(offset_s=offset_s))
    try:
        assert wanted in line(tmp_path)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_time_alone_is_told_of_what_was_recorded_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    there(monkeypatch, Bench(offset_s=(FIRST + timedelta(minutes=40) - now.replace(tzinfo=None)).total_seconds()))
    assert ", up to 00:24, " in line(tmp_path)


def test_a_capture_that_cannot_be_counted_is_kept_and_said_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Bench, capture: Capture) -> Decoded:
        raise ValueError("oh")

    monkeypatch.setattr(Bench, "decode", broken)
    assert line(tmp_path).startswith("bench:…23: 6 new captures, clock")
    assert len(parts(tmp_path)) == 6


def test_everything_can_be_read_and_kept_anew(tmp_path: Path) -> None:
    with docked() as (port, pump):
        docks.sync(tmp_path, port, pump="bench:777123")
        with Store(tmp_path / "store.sqlite") as store:
            first = [capture for capture, _ in store.pending()]
            store.drop([capture.sha256 for capture in first])
        (told,) = docks.sync_all(tmp_path, [f"{port}=bench:777123"], anew=True)
        assert pump.asked[-6:] == [b"b%02d" % number for number in range(6)]
    assert told["new_captures"] == 6
    with Store(tmp_path / "store.sqlite") as store:
        assert [capture.data for capture, _ in store.pending()] == [capture.data for capture in first]


def test_a_capture_says_whence_it_came_and_its_anchor_is_utc_to_the_millisecond(tmp_path: Path) -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    with docked() as (port, _):
        docks.sync(tmp_path, port, pump="bench:777123")
    with Store(tmp_path / "store.sqlite") as store:
        for capture, arrival in store.pending():
            assert arrival.via == f"serial:{port}"
            assert capture.anchor
            assert before <= capture.anchor.utc <= datetime.now(UTC)
            assert capture.anchor.utc.microsecond % 1000 == 0


def test_a_pump_that_is_unplugged_is_an_error_at_once_and_the_next_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with docked(gone_after=3) as (port, _):
        error = failing(tmp_path, port, pump="bench:777123")
    assert isinstance(error, LinkError)
    assert error.code == "unplugged"
    assert "3 new captures stored" in error.do
    assert parts(tmp_path) == ["0", "1", "2"]
    with docked() as (port, pump):
        assert docks.sync(tmp_path, port, pump="bench:777123")["new_captures"] == 3
        assert pump.asked == [b"c777123", b"b03", b"b04", b"b05"]
    assert parts(tmp_path) == ["0", "1", "2", "3", "4", "5"]


def test_the_family_is_found_by_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = SimpleNamespace(SHEET=SimpleNamespace(family="files"))
    there(monkeypatch, Bench("another", b"other!"), Bench(), deaf)
    with docked() as (port, pump), SerialLink(port) as link:
        assert docks.find_family(link).SHEET.family == "bench"
        assert pump.asked == [b"h", b"h"]


def test_a_port_that_answers_like_two_families_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    there(monkeypatch, Bench(), Bench("twin"))
    with docked() as (port, _), SerialLink(port) as link, pytest.raises(LinkError, match=r"like bench and like twin.*--family") as caught:
        docks.find_family(link)
    assert caught.value.code == "two_families"


def test_a_family_may_want_another_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = Bench()
    fast.LINE = {"baudrate": 57600}  # type: ignore[attr-defined]
    there(monkeypatch, fast)
    with docked() as (port, _), SerialLink(port) as link, open(port, "rb", buffering=0) as beside:  # noqa: PTH123
        speeds = tty.tcgetattr(beside)[4:6]
        docks.find_family(link)
        assert (speeds, tty.tcgetattr(beside)[4:6]) == ([tty.B9600] * 2, [tty.B57600] * 2)


def test_silence_says_what_it_may_be(tmp_path: Path) -> None:
    with docked(greeting=b"") as (port, _):
        assert failing(tmp_path, port).code == "silent"
        error = failing(tmp_path, f"{port}=bench:777124")
    assert error.code == "silent"
    assert "power only" in error.why


def test_noise_says_what_it_may_be(tmp_path: Path) -> None:
    with docked(greeting=b"\x00\xff\x17") as (port, _):
        error = failing(tmp_path, port)
    assert (error.code, "baud rate" in error.why) == ("garbled", True)


def test_a_port_that_is_not_there_names_those_that_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docks.list_ports, "comports", lambda: [SimpleNamespace(device="/dev/ttyUSB7")])
    error = failing(tmp_path, "/dev/ttyNONE")
    assert (error.code, error.do) == ("no_port", "There are: /dev/ttyUSB7.")


def test_a_file_is_no_port(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert failing(tmp_path, str(tmp_path / "file")).code == "not_serial"


@pytest.mark.parametrize("port", ["spam://x", "socket://x", "socket://h:99999"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, port: str) -> None:
    assert failing(tmp_path, port).code in {"bad_port", "unreachable"}


def test_a_busy_port_names_who_holds_it(tmp_path: Path) -> None:
    with docked() as (port, _), SerialLink(port):
        error = failing(tmp_path, port)
    assert error.code == "busy"
    assert f"(process {os.getpid()}) holds it" in error.why


def _opens_as_nobody(port: str) -> None:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    try:
        SerialLink(port)
    except LinkError as error:
        os._exit(0 if error.code == "permission" and "dialout" in error.do else 2)
    os._exit(1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not use a port")
def test_a_port_that_this_user_may_not_use_names_the_group_that_may() -> None:
    with docked() as (port, _):
        os.chown(port, 0, grp.getgrnam("dialout").gr_gid)
        Path(port).chmod(0o660)
        assert in_child(_opens_as_nobody, port) == 0


def test_an_answer_that_stays_short_is_given_as_far_as_it_came() -> None:
    with docked(greeting=b"ben") as (port, _), SerialLink(port) as link:
        reply = link.exchange(Bench.HELLO)
    assert reply.data == b"ben"
    assert reply.sent <= reply.received


def test_what_an_earlier_answer_left_is_not_taken_for_the_next() -> None:
    with docked() as (port, _), SerialLink(port) as link, open(port, "rb", buffering=0) as beside:  # noqa: PTH123
        link.exchange(Ask(data=b"h", missing=lambda _: 0, timeout_s=5, what="hello"))
        assert select.select([beside], [], [], 10)[0]
        reply = link.exchange(Ask(data=b"b01", missing=lambda got: BLOCK - len(got), timeout_s=5, what="block"))
    assert reply.data == b"b01".ljust(BLOCK, b".")


def test_a_pump_may_be_reached_over_a_socket(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = f"socket://127.0.0.1:{server.getsockname()[1]}"

        def accept() -> None:
            connection, _ = server.accept()
            Pump(connection.detach(), [b"777123"], 6, b"bench!", None)

        threading.Thread(target=accept, daemon=True).start()
        assert docks.sync(tmp_path, f"{port}=bench:777123")["new_captures"] == 6
    assert failing(tmp_path, port).code == "unreachable"


class PlainPort(serial.Serial):
    """A pseudo-terminal as a port: it has no modem lines."""

    cts = dsr = ri = cd = False  # type: ignore[assignment]

    def _update_rts_state(self) -> None: ...

    def _update_dtr_state(self) -> None: ...


def test_a_pump_may_be_reached_over_a_serial_server(tmp_path: Path) -> None:
    with docked() as (behind, _), PlainPort(behind, timeout=0.05) as line, socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            manager = serial.rfc2217.PortManager(line, SimpleNamespace(write=connection.sendall))
            over = threading.Event()

            def from_line() -> None:
                while not over.is_set():
                    if data := line.read(line.in_waiting or 1):
                        connection.sendall(b"".join(manager.escape(data)))

            reader = threading.Thread(target=from_line)
            reader.start()
            while data := connection.recv(1024):
                line.write(b"".join(manager.filter(data)))
            over.set()
            reader.join()
            connection.close()

        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        assert docks.sync(tmp_path, f"rfc2217://127.0.0.1:{server.getsockname()[1]}=bench:777123")["new_captures"] == 6
        serving.join(10)


def test_settings_and_the_port_itself_name_the_pump(tmp_path: Path) -> None:
    with docked() as (port, _), docked() as (other, _):
        (tmp_path / settings.NAME).write_text(f'[[dock]]\nport = "{port}"\nfamily = "bench"\npump = "bench:777123"\n')
        assert docks.ports(tmp_path) == [port]
        assert docks.sync(tmp_path, port)["new_captures"] == 6
        assert docks.sync(tmp_path, f"{other}=bench:777123")["new_captures"] == 0


def orders(lake: Path, *pumps: str) -> None:
    rows = [f"{pump},p1,o{n},,SC,,,,cpt-9637x,12,America/New_York,2026-01-01T00:00:00Z," for n, pump in enumerate(pumps)]
    (lake / "orders.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    (lake / settings.NAME).write_text('orders = "orders.csv"\n')


def test_the_pumps_that_orders_name_are_tried_in_turn(tmp_path: Path) -> None:
    orders(tmp_path, "bench:111111", "bench:777123", "canonical:777123")
    with docked() as (port, pump):
        assert docks.sync(tmp_path, port)["pump"] == "bench:…23"
        assert pump.asked[:3] == [b"h", b"c111111", b"c777123"]


def test_a_pump_that_no_order_names_is_asked_for(tmp_path: Path) -> None:
    with docked() as (port, _):
        error = failing(tmp_path, port)
        assert isinstance(error, InputError)
        assert (error.code, f"{port}=bench:SERIAL" in error.do) == ("which_pump", True)
        orders(tmp_path, "bench:111111", "bench:222222")
        error = failing(tmp_path, port)
        assert (error.code, error.what) == ("no_pump", f"None of the 2 pumps of family bench that the orders name answers at {port}.")


def test_a_pump_with_a_dock_of_its_own_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    orders(tmp_path, "bench:777123")
    with (tmp_path / settings.NAME).open("a") as more:
        more.write('[[dock]]\nport = "/dev/ttyHOME"\npump = "bench:777123"\n')
    with docked() as (port, pump):
        assert failing(tmp_path, port).code == "which_pump"
        assert pump.asked == [b"h"]


def test_orders_that_cannot_be_read_are_not_guessed(tmp_path: Path) -> None:
    (tmp_path / settings.NAME).write_text('orders = "nowhere.csv"\n')
    with docked() as (port, _):
        assert failing(tmp_path, port).code == "orders"


def test_a_family_that_is_not_asked_or_does_not_fit_is_an_error_before_the_port_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert failing(tmp_path, "/dev/none", family="bench", pump="canonical:1").code == "bad_pump"
    assert failing(tmp_path, "/dev/none", family="spam").code == "unknown_family"
    there(monkeypatch, SimpleNamespace(SHEET=SimpleNamespace(family="files")))
    assert failing(tmp_path, "/dev/none=files:1").code == "not_asked"


def test_one_dead_port_holds_up_no_other(tmp_path: Path) -> None:
    with docked() as (good, _), docked(b"555", gone_after=2) as (dying, _):
        wanted = ["/dev/ttyNONE", f"{good}=bench:777123", f"{dying}=bench:555"]
        missing, fine, broken = docks.sync_all(tmp_path, wanted)
    assert (missing["error"], missing["port"]) == ("no_port", "/dev/ttyNONE")
    assert (fine["new_captures"], fine["port"]) == (6, good)
    assert (broken["error"], broken["port"]) == ("unplugged", dying)
    assert len(parts(tmp_path)) == 6
    assert len(parts(tmp_path, "bench:555")) == 2


def test_two_radios_that_reach_the_same_pumps_share_them(tmp_path: Path) -> None:
    orders(tmp_path, "bench:111", "bench:222")
    with docked(b"111", b"222") as (one, _), docked(b"111", b"222") as (other, _):
        results = docks.sync_all(tmp_path, [one, other])
        named = docks.sync_all(tmp_path, [f"{one}=bench:111", other])
    assert sorted(result["pump"] for result in results) == ["bench:…11", "bench:…22"]
    assert [result["pump"] for result in named] == ["bench:…11", "bench:…22"]


def test_what_nobody_foresaw_on_one_port_is_a_value_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Bench):
        def download(self, pump_id: str, known: Iterable[CaptureHead], *, model: str | None = None) -> Dialogue:
            raise ZeroDivisionError("oh")

    there(monkeypatch, Bench(), Broken("broken"))
    with docked() as (good, _), docked() as (other, _):
        fine, bad = docks.sync_all(tmp_path, [f"{good}=bench:777123", f"{other}=broken:1"])
    assert fine["new_captures"] == 6
    assert (bad["error"], bad["why"]) == ("bug", "ZeroDivisionError: oh.")


def test_an_interrupt_stops_every_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there(monkeypatch, Bench(), Bench("patient", patience_s=600))

    def progress(at: Progress) -> None:
        if at.port == wanted[0] and at.note == "block 2":
            raise KeyboardInterrupt

    with docked() as (port, _), docked(b"555") as (mute, pump):
        pump._answer = lambda request: b"99" if request[:1] == b"c" else b""  # type: ignore[method-assign]
        wanted = [f"{port}=bench:777123", f"{mute}=patient:555"]
        with pytest.raises(KeyboardInterrupt):
            docks.sync_all(tmp_path, wanted, progress=progress)
    assert parts(tmp_path) == ["0", "1"]


def test_a_store_that_cannot_keep_ends_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> list[str]:
        raise StorageError("There is no room left.", code="disk_full")

    monkeypatch.setattr(Store, "append", full)
    with docked() as (port, pump):
        assert failing(tmp_path, port, pump="bench:777123").code == "disk_full"
        assert pump.asked == [b"c777123", b"b00"]
