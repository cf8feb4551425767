"""Playing what was recorded or simulated: as a device at a port, or as captures over MQTT, on a clock that may run fast.

    transcript (JSON lines of a serial dialogue) → a device that answers by request → pseudo terminal or TCP port
    files of any family → captures → MQTT, each at the time of its last record

A transcript line is {"dir": "host_to_stick" | "stick_to_host" | …, "hex": …}; "epoch_ms", where there is one, tells how long an answer
took. What is read is decoded as the night does it, and can be watched and compared with the truth that `simulate --truth` wrote.
"""

from __future__ import annotations

import json
import select
import socket
import tempfile
import threading
import time
import tomllib
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import pyarrow.compute as pc
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from devices import families
from devices.contract import HOLES, Capture
from devices.errors import InputError, LinkError, masked
from ingest import docks, gateway, night
from ingest.store import Arrival, Store
from simulators.link import Faults, SerialDevice, UnpluggedError
from simulators.rig import Port
from transforms.orders import Orders
from transforms.sessions import FactPolicy, Facts

FASTEST = 10_000.0
_TOLERANCE_S = 60.0
_EVENTS_SHOWN = 14
_SLICE_S = 0.05
_BATCH_BYTES = 4096
_MOST_UNPACKED = 1 << 28


class Clock:
    """A clock that runs `speed` times as fast as the wall's, from the first moment that is waited for; None: it jumps."""

    def __init__(self, speed: float | None, stop: threading.Event | None = None) -> None:
        """Raises InputError for a speed below 1 or above `FASTEST`."""
        if speed is not None and not 1 <= speed <= FASTEST:
            raise InputError(f"A speed is from 1 to {FASTEST:.0f}, or max.", code="speed")
        self._speed, self._stop = speed, stop or threading.Event()
        self._began: tuple[float, datetime] | None = None

    def wait_until(self, moment: datetime) -> None:
        """Returns when it shows this moment; at once for one that is past, and for the first."""
        if self._speed is None:
            return
        if self._began is None:
            self._began = time.monotonic(), moment
        began, first = self._began
        self._stop.wait(max(0.0, began + (moment - first).total_seconds() / self._speed - time.monotonic()))

    def wait(self, seconds: float) -> None:
        """Lets so much of its time pass."""
        if self._speed is not None:
            self._stop.wait(seconds / self._speed)


# --- a transcript as a device -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A request, all that came back before the next one, and how long that took (s)."""

    request: bytes
    answer: bytes
    took_s: float


class Transcript:
    """A recorded serial dialogue as the device that was at the other end: it answers by request, not by position.

    A request is looked for from where the recording stands, then from its beginning. What was never asked is not answered, as in a
    time-out, and counted in `unknown`.
    """

    def __init__(self, recordings: Iterable[bytes], pump_id: str, *, clock: Clock | None = None) -> None:
        """Several recordings are read one after the other; each may be packed (.gz). Raises InputError where one is no transcript."""
        self.pump_id = pump_id
        self.answered = self.unknown = 0
        self._clock = clock or Clock(None)
        self._said = [exchange for data in recordings for exchange in _exchanges(_unpacked(data))]
        self._places: dict[bytes, list[int]] = {}
        for place, one in enumerate(self._said):
            self._places.setdefault(one.request, []).append(place)
        self._at = -1
        self._host = b""

    def feed(self, data: bytes) -> bytes:
        """Takes bytes of the host in any pieces, and gives what was answered to the requests that are whole by now."""
        answers = b""
        self._host += data
        while self._host:
            known = next((self._host[:size] for size in self._sizes() if self._host[:size] in self._places), None)
            if known is not None:
                self._host = self._host[len(known) :]
                answers += self._answer(known)
            elif any(request.startswith(self._host) for request in self._places):
                break
            else:
                self.unknown += 1
                self._host = b""
        return answers

    def _sizes(self) -> Iterable[int]:
        """Lengths that a request at the head of what came may have, the longest first."""
        return range(len(self._host), 0, -1)

    def _answer(self, request: bytes) -> bytes:
        places = self._places[request]
        after = bisect_right(places, self._at)
        self._at = places[after] if after < len(places) else places[0]
        self.answered += 1
        exchange = self._said[self._at]
        self._clock.wait(exchange.took_s)
        return exchange.answer


def _unpacked(data: bytes) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return zlib.decompressobj(wbits=31).decompress(data, _MOST_UNPACKED)
    except zlib.error as error:
        raise InputError("A .gz file cannot be unpacked.", why=f"{error}.", do="Copy it again from where it came.", code="gzip") from error


def _exchanges(data: bytes) -> Iterator[_Exchange]:
    """The requests of a transcript with what came back. Raises InputError for a line that is none."""
    request: bytes | None = None
    answer, asked_ms, last_ms = b"", 0.0, 0.0
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
            from_host, piece, at_ms = str(told["dir"]).startswith("host"), bytes.fromhex(told["hex"]), float(told.get("epoch_ms", 0))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"Line {number} is none of a recorded dialogue.",
                why='Each is {"dir": "host_to_stick" or the other way, "hex": …}.',
                do="Check that the file is whole; files of a pump's log go to --to mqtt://HOST:PORT.",
                code="transcript",
            ) from error
        if not from_host:
            answer += piece
            last_ms = at_ms
            continue
        if request:
            yield _Exchange(request, answer, max(0.0, last_ms - asked_ms) / 1000)
        request, answer, asked_ms, last_ms = piece, b"", at_ms, at_ms
    if request:
        yield _Exchange(request, answer, max(0.0, last_ms - asked_ms) / 1000)


# --- a device at a port --------------------------------------------------------------------------------------------------------


class TcpPort:
    """A device at a TCP port, for one host at a time, as a serial server gives it (`socket://`); a context manager."""

    def __init__(self, device: SerialDevice, host: str, port: int) -> None:
        """Port 0: any that is free; `port` says which. Raises LinkError where it cannot listen there."""
        self._device = device
        try:
            self._server = socket.create_server((host, port))
        except OSError as error:
            raise LinkError(
                f"Nobody can listen at {host}:{port}.",
                why=f"The system says: {error.strerror or error}.",
                do="Name an address of this machine and a port that is free.",
                code="tcp_address",
            ) from error
        self.port = int(self._server.getsockname()[1])
        self.url = f"socket://{host}:{self.port}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"port {self.port}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            if select.select([self._server], [], [], _SLICE_S)[0]:
                connection, _ = self._server.accept()
                with connection, suppress(OSError):
                    self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        while not self._stop.is_set():
            if not select.select([connection], [], [], _SLICE_S)[0]:
                continue
            if not (data := connection.recv(4096)):
                return
            try:
                connection.sendall(self._device.feed(data))
            except UnpluggedError as error:
                connection.sendall(error.sent)
                return


@contextmanager
def served(device: SerialDevice, to: str) -> Iterator[str]:
    """A device at `pty` or socket://HOST:PORT: gives the name by which a host opens it. Raises InputError, LinkError."""
    if to == "pty":
        with tempfile.TemporaryDirectory(prefix="replay-", ignore_cleanup_errors=True) as folder:
            port = Port(device, Path(folder) / "port")
            try:
                yield str(port.path)
            finally:
                port.unplug()
        return
    where = _address(to)
    with TcpPort(device, *where) as tcp:
        yield tcp.url


def _address(to: str) -> tuple[str, int]:
    try:
        parts = urlsplit(to)
        if parts.scheme == "socket" and parts.hostname and parts.port is not None:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise InputError(f"{to} is no place to play to.", do="Use pty, socket://HOST:PORT or mqtt://HOST:PORT.", code="replay_to")


def keep_plugged(ports: Sequence[Port], *, after_s: float = 3.0, say: Callable[[str], None], stop: threading.Event | None = None) -> None:
    """Looks after ports until `stop` (default: for ever): a device whose cable was pulled is plugged in again after so long."""
    stop = stop or threading.Event()
    gone: dict[Path, float] = {}
    while not stop.wait(_SLICE_S):
        now = time.monotonic()
        for port in ports:
            if port.plugged:
                gone.pop(port.path, None)
            elif port.path not in gone:
                gone[port.path] = now
                say(f"{port.path}: unplugged, for {after_s:g} s")
            elif now - gone[port.path] > after_s:
                port.plug_in()
                say(f"{port.path}: plugged in again")


# --- what was read, and the truth ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Truth:
    """What of simulators.therapy.Truth a log can be compared with; `set_ups` as (pump set-up, new site), `told` the kinds of events."""

    pump_id: str
    flowed_s: float
    proved_s: float
    set_ups: tuple[tuple[bool, str], ...]
    told: tuple[str, ...]


def truth(path: Path) -> Truth:
    """The truth in a file that `simulate --truth` wrote. Raises InputError."""
    try:
        told = json.loads(path.read_bytes())
        return Truth(
            str(told["pump_id"]),
            float(told["flowed_s"]),
            float(told["proved_s"]),
            tuple((bool(one["pump_setup"]), str(one["new_site"])) for one in told["set_ups"]),
            tuple(str(one["kind"]) for one in told["told"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no truth: {error}.", do="Take what `pumpledger simulate --truth` wrote.", code="truth") from error


class Reading:
    """What was read so far, decoded as the night does it: to be watched as it grows, and compared with a truth."""

    def __init__(self) -> None:
        self._captures: dict[str, dict[str, Capture]] = {}
        self._facts: dict[str, Facts] = {}
        self._stale: set[str] = set()

    def add(self, capture: Capture) -> None:
        """Takes a capture; one that is known already changes nothing."""
        mine = self._captures.setdefault(capture.pump_id, {})
        if capture.sha256 not in mine:
            mine[capture.sha256] = capture
            self._stale.add(capture.pump_id)

    def facts(self) -> Mapping[str, Facts]:
        """Of each pump what its captures give: events, sessions, set-ups; without orders."""
        for pump in sorted(self._stale):
            received = night.assembled(pump, list(self._captures[pump].values()))
            _, self._facts[pump] = night.facts_of(received, Orders(()), FactPolicy())
        self._stale.clear()
        return self._facts

    def summary(self) -> dict[str, int]:
        """How many captures, events, sessions, set-ups, and minutes of infusion."""
        facts = list(self.facts().values())
        return {
            "captures": sum(map(len, self._captures.values())),
            "events": sum(one.events.num_rows for one in facts),
            "sessions": sum(one.sessions.num_rows for one in facts),
            "set_ups": sum(one.setups.num_rows for one in facts),
            "minutes": sum(sum(one.sessions["infusing_s"].to_pylist()) for one in facts) // 60,
        }

    def shown(self) -> RenderableType:
        """The last events and the sessions of each pump, for `rich`."""
        return Group(*(part for pump, facts in self.facts().items() for part in _shown(pump, len(self._captures[pump]), facts)))

    def differences(self, truth: Truth, *, tolerance_s: float = _TOLERANCE_S) -> list[str]:
        """What differs from the truth ; nothing: all is as it truly was.

        Infusion may not exceed what flowed, and is what the log proves, within `tolerance_s`; set-ups and the kinds of all events are
        those that the log must give.
        """
        facts = self.facts().get(truth.pump_id)
        if facts is None:
            return [f"the truth is about {masked(truth.pump_id)}; what was read is of {', '.join(map(masked, self._facts)) or 'no pump'}"]
        found = []
        infusing = facts.sessions["infusing_s"].to_pylist()
        if sum(infusing) > truth.flowed_s + len(infusing):
            found.append(f"{sum(infusing)} s of infusion are counted, {truth.flowed_s:.0f} s flowed: too much")
        if abs(sum(infusing) - truth.proved_s) > tolerance_s:
            found.append(f"{sum(infusing)} s of infusion are counted, the log proves {truth.proved_s:.0f} s")
        shown = sorted((row["pump_setup"], row["new_site"]) for row in facts.setups.select(["pump_setup", "new_site"]).to_pylist())
        if shown != sorted(truth.set_ups):
            found.append(f"set-ups (pump, new site) are {_counted(shown)}; truly {_counted(truth.set_ups)}")
        kinds = [kind for kind in facts.events["kind"].to_pylist() if kind not in HOLES]
        for number, (given, true) in enumerate(zip_longest(kinds, truth.told), 1):
            if given != true:
                found.append(
                    f"event {number} is {given or 'missing'}; truly {true or 'none'} ({len(kinds)} events, truly {len(truth.told)})"
                )
                break
        return found


def _counted(set_ups: Iterable[tuple[bool, str]]) -> str:
    counts = Counter(f"{'pump' if pump else 'no pump'}/{site}" for pump, site in set_ups)
    return ", ".join(f"{number} x {name}" for name, number in sorted(counts.items())) or "none"


def _shown(pump: str, captures: int, facts: Facts) -> Iterator[RenderableType]:
    events = facts.events.num_rows
    yield Text(f"{masked(pump)}: {captures} captures, {events} events, {facts.setups.num_rows} set-ups")
    last = Table("time", "event", "source", "mL", "mL/h", box=None, pad_edge=False)
    for row in facts.events.slice(max(0, events - _EVENTS_SHOWN)).to_pylist():
        last.add_row(
            _when(row["time"], row["pump_time"]), row["kind"], row["source"] or "", _amount(row["volume_ml"]), _amount(row["rate_ml_h"])
        )
    yield last
    sessions = Table("session", "state", "infusing min", "flags", box=None, pad_edge=False)
    for row in facts.sessions.sort_by([("start", "ascending"), ("printed_start", "ascending")]).to_pylist()[-5:]:
        sessions.add_row(_when(row["start"], row["printed_start"]), row["state"], str(row["infusing_s"] // 60), ", ".join(row["flags"]))
    minutes = sum(facts.sessions["infusing_s"].to_pylist()) // 60
    yield sessions
    yield Text(f"{facts.sessions.num_rows} sessions, {minutes} minutes of infusion")


def _when(utc: datetime | None, printed: datetime | None) -> str:
    """UTC, marked so, where it is known; else what the pump's clock showed."""
    moment = utc or printed
    return f"{moment:%Y-%m-%d %H:%M:%S}{'Z' if utc else ''}" if moment else ""


def _amount(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


# --- captures on a clock -------------------------------------------------------------------------------------------------------


def in_time(captures: Iterable[Capture]) -> list[tuple[datetime, Capture]]:
    """Captures by the time (pump's clock) of their last record, each with it; cut small first, where its family splits."""
    timed: list[tuple[datetime, int, Capture]] = []
    for capture in captures:
        for part in _batches(capture):
            timed.append((_last_time(part), len(timed), part))
    return [(moment, capture) for moment, _, capture in sorted(timed, key=lambda one: one[:2])]


def _batches(capture: Capture) -> list[Capture]:
    """A capture as small ones, so that it is not all played at once; itself where its family cannot cut it."""
    split: Callable[[Capture, int], list[Capture]] | None = getattr(families.families().get(capture.family), "split", None)
    try:
        return split(capture, _BATCH_BYTES) if split else [capture]
    except InputError:
        return [capture]


def _last_time(capture: Capture) -> datetime:
    last = pc.max(night.decode(capture).records["pump_time"]).as_py()
    if last is None and capture.anchor:
        last = capture.anchor.pump_clock
    return last if last is not None else datetime.max  # noqa: DTZ901


def play(captures: Iterable[Capture], clock: Clock) -> Iterator[Capture]:
    """Gives each capture when the clock shows the time of its last record."""
    for moment, capture in in_time(captures):
        if moment < datetime.max:  # noqa: DTZ901
            clock.wait_until(moment.replace(tzinfo=UTC))
        yield capture


@contextmanager
def publishing(broker: str, *, name: str = "replay", wait_s: float = 60.0) -> Iterator[Callable[[Capture], None]]:
    """Gives a function that publishes a capture as a gateway does; ends when the hub has receipted all. Raises InputError, LinkError."""
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        home = Path(folder)
        with gateway.Uplink(broker, home, name) as uplink, Store(home / gateway.OUTBOX) as outbox:

            def publish(capture: Capture) -> None:
                outbox.append((part, Arrival(datetime.now(UTC), "replay")) for part in gateway.fitting(capture))
                uplink.wake()

            yield publish
            if left := uplink.wait_for_receipts(wait_s):
                raise LinkError(
                    f"{left} captures have no receipt.",
                    why=uplink.counters.trouble or "No hub listens at this broker.",
                    do="Start `pumpledger listen` there, and run this again.",
                    code="no_receipt",
                )


def read_port(port: str, pump: str | None, keep: Callable[[Capture], None]) -> dict[str, Any]:
    """Downloads the pump at a port as `pumpledger sync` does, into a store that is thrown away. Raises as `docks.sync`."""
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        store = Path(folder) / "store.sqlite"
        with Store(store) as beside:

            def look(_: docks.Progress | None = None) -> None:
                for capture, _arrival in beside.pending():
                    keep(capture)

            result = docks.sync(Path(folder), port, store=store, pump=pump, progress=look)
            look()
            return result


# --- faults as a file ----------------------------------------------------------------------------------------------------------

_SHARES = ("silence", "noise", "naks", "duplicates")
_AT = ("silence", "noise", "nak")


def faults(path: Path, start: datetime) -> Faults:
    """The faults that a TOML file names, by the names of simulators.link.Faults; `start` is that of the therapy.

        drift_s_per_day = 12
        battery_out_h = 30           # hours after the start; or battery_out = 2026-03-08T10:00:00Z
        noise = 0.02                 # of all answers, or captures
        unplug_at = 5000             # before this byte
        at = { 4 = "silence" }       # the fifth answer
        keep = 3                     # captures; the rest of the download never comes

    Raises InputError that names the mistake.
    """
    try:
        told = tomllib.loads(path.read_text())
        hours = told.pop("battery_out_h", None)
        if hours is not None:
            told["battery_out"] = start + timedelta(hours=_number("battery_out_h", hours))
        known = {field.name for field in fields(Faults)}
        if unknown := set(told) - known:
            raise ValueError(f"there is no fault {', '.join(sorted(unknown))}; there are {', '.join(sorted(known | {'battery_out_h'}))}")
        return Faults(**{name: _fault(name, value) for name, value in told.items()})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} names no faults: {error}.", do="Mend it; `pumpledger simulate --help` shows one.", code="faults"
        ) from error


def _fault(name: str, value: Any) -> Any:
    match name:
        case "battery_out":
            if not isinstance(value, datetime) or value.tzinfo is None:
                raise ValueError("battery_out is a time with its zone, such as 2026-03-08T10:00:00Z")
            return value.astimezone(UTC)
        case "reorder":
            if not isinstance(value, bool):
                raise ValueError("reorder is true or false")
            return value
        case "at":
            if not isinstance(value, dict) or any(what not in _AT for what in value.values()):
                raise ValueError(f"at gives answers by number, each one of {', '.join(_AT)}")
            return {int(number): what for number, what in value.items()}
        case "unplug_at" | "keep":
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} is a whole number, 0 or more")
            return value
    number = _number(name, value)
    if name in _SHARES and not 0 <= number <= 1:
        raise ValueError(f"{name} is a share from 0 to 1")
    return number


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is a number")
    return float(value)
