"""The gateway: the edge beside the pumps (docs/design.md §5).

Serial docks and files that are dropped into a folder → the outbox, durable → MQTT → the hub. A capture leaves the outbox when the
hub's receipt names it, and for no other reason: what has none is sent again, whatever was restarted meanwhile. What was receipted is
kept for a while in a store beside the outbox, for the hub may ask for it again.

As in the hub one thread does everything about the broker, turn by turn. What goes wrong in a turn ends the connection, not the thread.

A family whose captures may be large has `split(capture, size)`: captures of at most so many bytes each, cut at the borders of records
or pages, that together say the same.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec
from paho.mqtt.client import Client, MQTTMessage, MQTTMessageInfo

from devices import dialogue, families
from devices.contract import Anchor, Capture
from devices.dialogue import Reply
from devices.errors import InputError, LinkError, PumpledgerError, StorageError, masked
from ingest import docks, files, settings
from ingest.docks import split_port
from ingest.hub import CAP_BYTES, Answer, Ask, Receipt, Status, ahead, broker_client, encode_cap
from ingest.store import Arrival, Store

KEY = "gateway.key"
OUTBOX = "outbox.sqlite"
KEPT = "receipted.sqlite"

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PUMP_FOLDER = re.compile(r"[a-z][a-z0-9_]*:[^:/]+")
_UNFINISHED = (".part", ".tmp", ".partial", ".crdownload")
_SETTLE_S = 2.0
_WINDOW = 32
_LOOK_S = 1.0
_BACKOFF_S, _BACKOFF_MAX_S = 0.5, 30.0
_KEEPALIVE_S = 30
_PRUNE_S = 86_400.0
_BRIDGE_S, _RETAINED_S = 10.0, 0.5
_ASKS_S = 5.0
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


_receipt, _ask = msgspec.json.Decoder(Receipt), msgspec.json.Decoder(Ask)


def key(home: Path) -> bytes:
    """The gateway's own key, made at the first run; nobody but its user may read it. Raises InputError, StorageError."""
    path = home / KEY
    if not path.exists():
        before = os.umask(0o077)
        try:
            with suppress(FileExistsError):
                files.create(path, secrets.token_hex(32).encode())
        finally:
            os.umask(before)
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise InputError(
                f"{path} may be read by other users of this machine.",
                why="Whoever has it can tell which pump an alias is.",
                do=f"Run `chmod 600 {path}`.",
                code="key_mode",
            )
        return bytes.fromhex(path.read_text().strip())
    except (OSError, ValueError) as error:
        raise InputError(
            f"The gateway's key {path} cannot be read: {error}.", do="Put it back, or remove it: pumps then get new aliases.", code="key"
        ) from error


def checked_name(name: str) -> str:
    """The name, if it may stand in topics and certificates as a gateway's. Raises InputError."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is no name for a gateway.",
            do="Use letters, digits, dots, dashes: an opaque name, never an agency's.",
            code="name",
        )
    return name


def alias(own: bytes, pump_id: str) -> str:
    """The opaque name of a pump in topics: 16 hex digits that nobody without the key can turn back."""
    return hmac.new(own, pump_id.encode(), hashlib.sha256).hexdigest()[:16]


def fitting(capture: Capture) -> list[Capture]:
    """A capture as captures that each fit into a message: itself, or what its family splits it into.

    Raises InputError where it is too large and its family does not split.
    """
    if len(capture.data) <= CAP_BYTES:
        return [capture]
    adapter = families.families().get(capture.family)
    split: Callable[[Capture, int], list[Capture]] | None = getattr(adapter, "split", None)
    parts = split(capture, CAP_BYTES) if split else []
    if not parts or any(len(part.data) > CAP_BYTES for part in parts):
        raise InputError(
            f"A capture of {masked(capture.pump_id)} has {len(capture.data)} bytes; {CAP_BYTES} fit into a message.",
            why=f"Family {capture.family} does not say where it may be cut.",
            do="Split the file at the borders of records, or load it on the hub's machine with `pumpledger load`.",
            code="too_large",
        )
    return parts


def captures_of(
    given: Sequence[tuple[str, bytes]], *, family: str | None = None, pump: str | None = None, model: str | None = None,
    anchor: Anchor | None = None,
) -> list[Capture]:  # fmt: skip
    """The captures of files (name, bytes) that belong together; the family is the one that knows their bytes.

    Raises InputError where none does, or where the files are of another pump than `pump`.
    """
    by_family: dict[str, list[tuple[str, bytes]]] = {}
    for name, data in given:
        named = family or (pump.partition(":")[0] if pump else None)
        named = named or next((one for one, adapter in families.families().items() if adapter.recognise(name, data)), None)
        if named is None:
            raise InputError(
                f"{name} is of no family known by its bytes.",
                do="Name its family with --family, or put it into a folder named FAMILY:SERIAL.",
                code="unknown_file",
            )
        by_family.setdefault(named, []).append((name, data))
    found = [
        capture
        for named, mine in by_family.items()
        for capture in families.family(named).read_files(mine, pump_id=pump, model=model, anchor=anchor)
    ]
    other = next((capture.pump_id for capture in found if pump is not None and capture.pump_id != pump), None)
    if other is not None:
        raise InputError(
            f"These files are of {masked(other)} by their own word, and not of {masked(pump or '')}.",
            why="What a file says of itself counts.",
            do="Name no pump, or give the files of each pump apart.",
            code="other_pump",
        )
    return found


def check_clocks(captures: Sequence[Capture], now: datetime) -> None:
    """Raises InputError where a capture of files tells that UTC was what it will only be in more than a day."""
    false = ahead(captures, now)
    for capture in captures:
        if capture.sha256 in false:
            raise InputError(
                f"A capture of {masked(capture.pump_id)} has a clock anchor more than a day ahead of this machine's clock.",
                why="Either the clock of the machine that read the pump was wrong, or this one's is.",
                do="Set the clock that is wrong; files whose anchors are wrong are given with --clock, or without the anchor.",
                code="ahead",
            )


# --- outbox → hub -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Counters:
    """What the gateway shows. `waiting`: on their way, without a receipt. `trouble`: what does not work right now."""

    connected: bool = False
    waiting: int = 0
    sent: int = 0
    stored: int = 0
    refused: int = 0
    asked: int = 0
    trouble: str = ""


@dataclass(slots=True)
class _Flight:
    info: MQTTMessageInfo
    since: float

    def landed(self) -> bool:
        """Whether the broker has it; what the client could not even queue is no more on its way either."""
        try:
            return self.info.is_published()
        except (ValueError, RuntimeError):
            return True


class Uplink:
    """Carries the outbox of a gateway to the hub until it is stopped; a context manager. It needs no broker to begin with.

    `anew` gives ports, as PORT=PUMP, that are to be read from the beginning: the hub asked for what they gave.
    """

    def __init__(
        self,
        broker_url: str,
        home: Path,
        name: str,
        *,
        ports: Sequence[str] = (),
        again_s: float = 30.0,
        keep_days: float = 30.0,
        stall_s: float = 60.0,
    ) -> None:
        """`ports`: those that whoever runs it can read anew (`anew`), where the hub asks for what is not kept any more.

        `again_s`: what has no receipt for so long is sent again. `keep_days`: so long the hub may ask for what it receipted.

        `stall_s`: a connection on which nothing moves for so long, though something is on its way, is given up. Raises InputError.
        """
        self.counters = Counters()
        self.anew: SimpleQueue[str] = SimpleQueue()
        self._name, self._home, self._ports = checked_name(name), home, ports
        self._again_s, self._keep, self._stall_s = again_s, timedelta(days=keep_days), stall_s
        self._client, self._host, self._port = broker_client(broker_url, f"pumpledger-gateway-{name}")
        self._client.will_set(self._topic("status"), _status("offline"), qos=1, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_publish = self._on_publish
        self._client.on_message = self._on_message
        self._receipts, self._asks = f"hub1/{name}/receipt", f"hub1/{name}/ask"
        self._flying: dict[str, _Flight] = {}
        self._ready = False
        self._refusal = ""
        self._moved = self._looked = self._pruned = 0.0
        self._backoff = _BACKOFF_S
        self._wanted = threading.Event()
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Opens the outbox, which nobody else may send from meanwhile, and goes on in a thread. Raises InputError, StorageError."""
        busy = StorageError(
            f"Another gateway sends from {self._home}.", do="End it, or name another folder with --lake.", code="gateway_busy"
        )
        with ExitStack() as opened:
            opened.enter_context(files.locked(self._home / "gateway.lock", busy))
            self._key = key(self._home)
            self._outbox = opened.enter_context(Store(self._home / OUTBOX))
            self._kept = opened.enter_context(Store(self._home / KEPT))
            self._forget_old()
            self._open = opened.pop_all()
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Says that it is offline, and ends the connection; what has no receipt stays in the outbox."""
        self._stopping.set()
        self.wake()
        if self._thread:
            self._thread.join()
        self._open.close()

    def wake(self) -> None:
        """Says that there is something new in the outbox."""
        self._wanted.set()

    def wait_for_asks(self, timeout_s: float) -> None:
        """Waits until the broker has given what the hub asked for meanwhile, if there is a broker."""
        deadline = time.monotonic() + timeout_s
        while not self._ready and time.monotonic() < deadline:
            time.sleep(0.05)

    def wait_for_receipts(self, timeout_s: float) -> int:
        """Waits until the hub has answered for everything in the outbox; gives how many captures have no receipt then."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while any(True for _ in self._unsent()) and (rest := deadline - time.monotonic()) > 0:
                self._changed.wait(min(rest, _LOOK_S))
        return sum(1 for _ in self._unsent())

    def _topic(self, *parts: str) -> str:
        return "/".join(("pl1", self._name, *parts))

    # --- the thread of the broker ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        online = False
        while not self._stopping.is_set():
            try:
                if not online:
                    self._moved = time.monotonic()
                    self._client.connect(self._host, self._port, keepalive=_KEEPALIVE_S)
                    online = True
                self._turn()
            except Exception as error:
                online = self._ready = self.counters.connected = False
                self.counters.trouble = _reason(error)
                self._stopping.wait(self._backoff)
                self._backoff = min(2 * self._backoff, _BACKOFF_MAX_S)
        with suppress(Exception):
            if self._ready:
                self._client.publish(self._topic("status"), _status("offline"), qos=1, retain=True)
                deadline = time.monotonic() + 2
                while self._client.want_write() and time.monotonic() < deadline and not self._client.loop(0.1):
                    pass
        with suppress(Exception):
            self._client.disconnect()

    def _turn(self) -> None:
        """Reads what there is, for a moment; sends what is due; looks whether anything moves."""
        if self._client.loop(0.05 if self._flying else 0.2):
            raise LinkError(self._refusal or f"The connection to the broker at {self._host}:{self._port} was lost.", code="broker")
        now = time.monotonic()
        if self._ready and (self._wanted.is_set() or now - self._looked > _LOOK_S):
            self._wanted.clear()
            self._looked = now
            self._send(now)
        if now - self._pruned > _PRUNE_S:
            self._forget_old()
        if now - self._moved > self._stall_s and (self._flying or not self._ready):
            raise LinkError(f"Nothing has moved for {self._stall_s:.0f} s.", code="stalled")

    def _send(self, now: float) -> None:
        """Sends what is in the outbox and not on its way, oldest first, and again what was so for too long."""
        batch: list[tuple[Capture, Arrival]] = []
        room = _WINDOW - len(self._flying)
        for capture, arrival in self._unsent():
            flight = self._flying.get(capture.sha256)
            if flight is None and room == 0:
                break
            if flight is None:
                room -= 1
            elif now - flight.since < self._again_s or not flight.landed():
                continue
            if self._fits(capture, arrival):
                batch.append((capture, arrival))
        self._kept.append(batch)
        for capture, _ in batch:
            info = self._client.publish(self._topic("d", alias(self._key, capture.pump_id), "cap"), encode_cap(capture), qos=1)
            self._flying[capture.sha256] = _Flight(info, now)
            self.counters.sent += 1
        self.counters.waiting = len(self._flying)

    def _unsent(self) -> Iterator[tuple[Capture, Arrival]]:
        return ((capture, arrival) for capture, arrival in self._outbox.pending() if arrival.refused is None)

    def _fits(self, capture: Capture, arrival: Arrival) -> bool:
        """Whether it fits into a message. What does not gives place, in the outbox, to its parts, or is put aside with the reason."""
        try:
            parts = fitting(capture)
            if parts == [capture]:
                return True
            self._outbox.append((part, arrival) for part in parts)
            self._wanted.set()
        except InputError as error:
            self._outbox.refuse(capture.data, str(error), arrival)
            self.counters.refused += 1
            self.counters.trouble = str(error)
        self._outbox.drop([capture.sha256])
        return False

    def _forget_old(self) -> None:
        """Drops the bytes of what was kept for long enough."""
        limit = datetime.now(UTC) - self._keep
        old = takewhile(lambda kept: kept[1].received_at <= limit, self._kept.pending())
        self._kept.drop([capture.sha256 for capture, _ in old])
        self._pruned = time.monotonic()

    # --- what the broker says ---------------------------------------------------------------------------------------------------

    def _on_connect(self, client: Client, _: Any, __: Any, reason: Any, ___: Any) -> None:
        if reason.is_failure:
            self._refusal = f"The broker at {self._host}:{self._port} refuses this gateway: {reason}."
        else:
            self._refusal = ""
            client.subscribe([(self._receipts, 1), (self._asks, 1)])

    def _on_subscribe(self, client: Client, _: Any, __: int, reasons: list[Any], ___: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self.counters.trouble = f"The broker does not let this gateway read {self._receipts}."
            return
        client.publish(self._topic("status"), _status("online"), qos=1, retain=True)
        self._ready = self.counters.connected = True
        self.counters.trouble = ""
        self._progress()
        self.wake()

    def _on_publish(self, *_: Any) -> None:
        self._progress()

    def _progress(self) -> None:
        self._moved = time.monotonic()
        self._backoff = _BACKOFF_S

    def _on_message(self, client: Client, _: Any, message: MQTTMessage) -> None:
        """A receipt or an ask; acknowledged once it has done what it does, so that a killed gateway gets it again."""
        self._progress()
        try:
            if message.topic == self._receipts:
                self._forget(_receipt.decode(message.payload))
            elif message.topic == self._asks:
                self._send_again(_ask.decode(message.payload))
        except _UNREADABLE as error:
            self.counters.trouble = f"What came on {message.topic} cannot be read: {error}."
        client.ack(message.mid, message.qos)

    def _forget(self, receipt: Receipt) -> None:
        """Drops what the hub has: stored, or put aside there with its bytes."""
        done = {*receipt.stored, *(refusal.sha256 for refusal in receipt.refused)}
        self._outbox.drop(done)
        for sha256 in done:
            self._flying.pop(sha256, None)
        self.counters.stored += len(receipt.stored)
        self.counters.refused += len(receipt.refused)
        self.counters.waiting = len(self._flying)
        if receipt.refused:
            self.counters.trouble = f"The hub refuses {len(receipt.refused)} captures: {receipt.refused[0].why}"
        self.wake()
        with self._changed:
            self._changed.notify_all()

    def _send_again(self, ask: Ask) -> None:
        """Puts what it read of this pump at this time into the outbox again, and says so; what it has no more is to be read anew."""
        pump = next((pump for pump in self._outbox.pumps() if alias(self._key, pump) == ask.pump), None)
        answer = Answer(ask=ask, known=pump is not None)
        if pump is None:
            self.counters.trouble = f"The hub asks for pump {ask.pump[:16]!r}, which is not known here."
        else:
            arrivals = self._outbox.arrivals(pump)
            since, until = ask.since or datetime.min.replace(tzinfo=UTC), ask.until or datetime.max.replace(tzinfo=UTC)
            wanted = {sha256 for sha256, arrival in arrivals if since <= arrival.received_at < until}
            self._outbox.renew(kept for kept in self._kept.pending(pump) if kept[0].sha256 in wanted)
            there = wanted & {capture.sha256 for capture, _ in self._outbox.pending(pump)}
            for sha256 in there:
                self._flying.pop(sha256, None)
            answer.again, answer.gone = len(there), len(wanted - there)
            port = self._port_of(pump, arrivals) if not wanted or answer.gone else None
            if port is not None:
                self.anew.put(port)
                answer.reading = True
            self.counters.asked += 1
            self.wake()
        self._client.publish(self._topic("answer"), msgspec.json.encode(answer), qos=1)

    def _port_of(self, pump: str, arrivals: Sequence[tuple[str, Arrival]]) -> str | None:
        """PORT=PUMP of the port behind which a pump is, by its name there, by the settings, or because it was read there last."""
        known = settings.load(self._home)
        ports = {port: named or known.dock(port).pump for port, named in map(split_port, self._ports)}
        for port, named in ports.items():
            if named == pump:
                return f"{port}={pump}"
        for _, arrival in reversed(arrivals):
            port = arrival.via.removeprefix("serial:")
            if port in ports and ports[port] is None:
                return f"{port}={pump}"
        return None


def _status(state: Literal["online", "offline"]) -> bytes:
    return msgspec.json.encode(Status(state=state))


def _reason(error: Exception) -> str:
    if isinstance(error, PumpledgerError):
        return str(error)
    return f"{error.strerror or error}." if isinstance(error, OSError) else f"{type(error).__name__}: {error}."


# --- files → outbox -----------------------------------------------------------------------------------------------------------


def take_files(
    inbox: Path, outbox: Store, docks_: Iterable[settings.Dock] = (), *, settle_s: float = _SETTLE_S
) -> list[tuple[str, str | None]]:
    """Takes what was dropped into a folder into the outbox; gives each file's name, and why it was refused (None: it was not).

    A sub-folder named FAMILY:SERIAL holds the files of this pump: they are one download, of the model that a dock says this pump is.
    A file is touched only when nothing in its folder has changed for `settle_s`. What was taken goes to `taken/`, what was refused
    to `refused/` with the reason beside it. Raises StorageError.
    """
    models = {dock.pump: dock.model for dock in docks_ if dock.pump}
    found: list[tuple[str, str | None]] = []
    for folder, pump in [(inbox, None), *((sub, sub.name) for sub in sorted(inbox.iterdir()) if _PUMP_FOLDER.fullmatch(sub.name))]:
        whole = _settled(folder, settle_s)
        together = [whole] if pump else [[path] for path in whole]
        for paths in filter(None, together):
            found += _take(inbox, paths, outbox, pump, models.get(pump) if pump else None)
    return found


def _settled(folder: Path, settle_s: float) -> list[Path]:
    """The files of a folder, if all of them are whole as far as one can see."""
    found = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if any(path.suffix in _UNFINISHED or time.time() - path.stat().st_mtime < settle_s for path in found):
        return []
    return found


def _take(inbox: Path, paths: Sequence[Path], outbox: Store, pump: str | None, model: str | None) -> list[tuple[str, str | None]]:
    why = None
    given: list[tuple[str, bytes]] = []
    try:
        given = [(path.name, path.read_bytes()) for path in paths]
        found = captures_of(given, pump=pump, model=model)
        check_clocks(found, now := datetime.now(UTC))
        parts = [part for capture in found for part in fitting(capture)]
    except OSError as error:
        return [(path.name, f"It cannot be read: {error.strerror}.") for path in paths]
    except InputError as error:
        why = str(error)
    else:
        outbox.append((part, Arrival(now, f"file:{paths[0].name}")) for part in parts)
    for path, (name, data) in zip(paths, given, strict=True):
        to = inbox / ("refused" if why else "taken") / f"{hashlib.sha256(data).hexdigest()[:12]}-{name}"
        files.put(to, data)
        if why:
            files.replace_text(to.with_name(f"{to.name}.why.txt"), why + "\n")
        files.remove(path)
    return [(path.name, why) for path in paths]


# --- a pump behind a bridge → outbox --------------------------------------------------------------------------------------------


def is_bridge(port: str) -> bool:
    """Whether a port is the topics of a BLE-to-MQTT bridge: mqtt://HOST:PORT/PREFIX/MAC."""
    return port.startswith(("mqtt://", "mqtts://"))


class BridgeLink:
    """A pump behind a BLE-to-MQTT bridge as a link that answers `Ask`s (docs/pump-formats.md §5.3); a context manager.

    The family says what its lines are as topics and payloads (`bridge_line`, `bridge_request`). What is retained, or came before the
    request, is no answer. Where a bridge has other names, `?racp=SERVICE/CHARACTERISTIC&time=…` says which.
    """

    def __init__(self, url: str, adapter: Any) -> None:
        """Connects and subscribes. Raises InputError for a URL that is none, LinkError."""
        self._adapter = adapter
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        named = {letter: query.pop(name, None) for letter, name in ((">", "racp"), ("?", "time"))}
        own = {letter: f"{topic}/{'Set' if letter == '>' else 'Get'}" for letter, topic in named.items() if topic}
        self._topics = {**self._adapter.BRIDGE_TOPICS, **own}
        self._device = parts.path.strip("/")
        self.port = bridge_name(url)
        if self._adapter.bridge_line(f"{self._device}/s/2b28", b"0") is None:
            raise InputError(f"{self.port} names no pump of a bridge.", do="Write mqtt://HOST:PORT/PREFIX/MAC.", code="bad_port")
        broker = urlunsplit((parts.scheme, parts.netloc, "", urlencode(query), ""))
        self._client, host, port = broker_client(broker, f"pumpledger-bridge-{hashlib.sha256(url.encode()).hexdigest()[:12]}")
        self._client.on_connect = lambda client, *_: client.subscribe(f"{self._device}/#", qos=1)
        self._client.on_subscribe = lambda *_: self._heard.append(b"")
        self._client.on_message = self._on_message
        self._heard: list[bytes] = []
        self._connected: bool | None = None
        try:
            self._client.connect(host, port, keepalive=_KEEPALIVE_S)
            self._turn_until(lambda: bool(self._heard), _BRIDGE_S)
            self._turn_until(lambda: self._connected is not None, _RETAINED_S)
        except OSError as error:
            raise LinkError(
                f"The broker of {self.port} cannot be reached.", why=_reason(error), do="Check that it runs there.", code="no_broker"
            ) from error
        if not self._heard:
            raise LinkError(f"The broker of {self.port} does not let this gateway in.", do="Check user and password.", code="no_broker")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(Exception):
            self._client.unsubscribe(f"{self._device}/#")
            self._turn_until(lambda: not self._client.want_write(), 1.0)
            self._client.disconnect()

    def exchange(self, ask: dialogue.Ask) -> Reply:
        """Publishes the request, and gives the lines that came until the answer was whole or `timeout_s` was over. Raises LinkError."""
        self._turn_until(lambda: True, 0)
        if self._connected is False:
            raise LinkError(
                f"The bridge of {self.port} is not connected to its pump.",
                do="Bring the pump near the bridge, and run this again; it goes on where it stopped.",
                code="bridge_unconnected",
            )
        self._heard.clear()
        sent = _now()
        if ask.data:
            topic, payload = self._adapter.bridge_request(self._device, ask.data, self._topics)
            self._client.publish(topic, payload, qos=1)
        self._turn_until(lambda: ask.missing(b"".join(self._heard)) <= 0, ask.timeout_s)
        return Reply(data=b"".join(self._heard), sent=sent, received=_now())

    def _turn_until(self, done: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            if self._client.loop(0.02):
                raise LinkError(f"The connection to the broker of {self.port} was lost.", do="Run this again.", code="broker")
            if done() or time.monotonic() >= deadline:
                return

    def _on_message(self, client: Client, _: Any, message: MQTTMessage) -> None:
        client.ack(message.mid, message.qos)
        if message.topic == f"{self._device}/Connected":
            self._connected = message.payload.strip().lower() == b"true"
        elif not message.retain and (line := self._adapter.bridge_line(message.topic, message.payload)):
            self._heard.append(line[1])


def bridge_name(url: str) -> str:
    """A bridge's URL without user, password and query, for people."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def read_bridge(named: str, outbox: Path, *, model: str | None = None, anew: bool = False) -> dict[str, Any]:
    """Downloads a pump behind a bridge into the outbox; gives what `docks.sync_all` gives of a port, errors too.

    `anew` as there; `model` names its profile where that is not the standard's (docs/pump-formats.md §5.2), as the `model` of a [[dock]].
    """
    url, pump = split_port(named)
    port = bridge_name(url)
    try:
        if pump is None:
            raise InputError(f"Which pump is at {port}?", do="Name it as mqtt://HOST:PORT/PREFIX/MAC=ids:SERIAL.", code="which_pump")
        adapter: Any = families.family(pump.partition(":")[0])
        if not hasattr(adapter, "bridge_request"):
            raise InputError(f"Pumps of family {adapter.SHEET.family} are not read through a bridge.", code="not_asked")
        with Store(outbox) as store, BridgeLink(url, adapter) as link:
            intake = docks.Intake(store, pump, f"bridge:{port}", anew=anew, beside=outbox.with_name(KEPT))
            asked = adapter.download(pump, intake.known, model=model)
            return intake.told(port, dialogue.run(asked, link.exchange, intake.keep))
    except PumpledgerError as error:
        return {"port": port, "error": error.code, "what": error.what, "why": error.why, "do": error.do, "line": str(error)}


def _now() -> datetime:
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


# --- all of it ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a gateway does: `ports` (PORT[=PUMP], a bridge's URL too) every `every_s`; `inbox`, a folder, all the time."""

    broker: str
    name: str
    ports: Sequence[str] = ()
    inbox: Path | None = None
    every_s: float = 900.0


def once(home: Path, plan: Plan, *, wait_s: float = 60.0, settle_s: float = 0.0) -> dict[str, Any]:
    """One round: all ports and files into the outbox, and the outbox to the hub.

    Gives `ports` (as docks.sync_all), `files` (name, why it was refused), `unsent` (captures without a receipt after `wait_s`) and
    `trouble`. Raises InputError, StorageError.
    """
    _settle_in(home)
    with Uplink(plan.broker, home, plan.name, ports=plan.ports) as uplink:
        taken = _files(home, plan, settle_s)
        uplink.wake()
        results = read_ports(home, plan.ports)
        uplink.wake()
        uplink.wait_for_asks(min(wait_s, _ASKS_S))
        results += _read_anew(home, uplink)
        unsent = uplink.wait_for_receipts(wait_s)
        return {"ports": results, "files": taken, "unsent": unsent, "refused": uplink.counters.refused, "trouble": uplink.counters.trouble}


def run(home: Path, plan: Plan, *, until: Callable[[], bool] = lambda: False, show: Callable[[str], None] = lambda _: None) -> None:
    """Runs a gateway until `until` says so, or for ever; `show` gets a line whenever something has changed. Raises as `once`."""
    _settle_in(home)
    with Uplink(plan.broker, home, plan.name, ports=plan.ports) as uplink:
        ended = threading.Event()
        watcher = threading.Thread(target=_watch_files, args=(home, plan, uplink, ended, show), name="inbox", daemon=True)
        if plan.inbox:
            watcher.start()
        before, due = "", time.monotonic()
        try:
            while not until():
                if plan.ports and time.monotonic() >= due:
                    for result in read_ports(home, plan.ports):
                        show(f"{result['port']}: {result['line']}")
                    due = time.monotonic() + plan.every_s
                    uplink.wake()
                for result in _read_anew(home, uplink):
                    show(f"{result['port']}, which the hub asked for: {result['line']}")
                if (line := _line(plan.name, uplink.counters)) != before:
                    show(line)
                    before = line
                time.sleep(0.2)
        finally:
            ended.set()
            if plan.inbox:
                watcher.join()


def _read_anew(home: Path, uplink: Uplink) -> list[dict[str, Any]]:
    """Reads from the beginning what the hub asked for and the gateway has no more; gives what `read_ports` gives."""
    wanted: set[str] = set()
    with suppress(Empty):
        while True:
            wanted.add(uplink.anew.get_nowait())
    results = read_ports(home, sorted(wanted), anew=True)
    uplink.wake()
    return results


def _settle_in(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    settings.write_default(home)


def read_ports(home: Path, ports: Sequence[str], *, anew: bool = False) -> list[dict[str, Any]]:
    """Downloads all ports into the outbox, as `docks.sync_all` does; those of a bridge too."""
    known = settings.load(home)
    serial = [port for port in ports if not is_bridge(port)]
    results = (
        {one["port"]: one for one in docks.sync_all(home, serial, store=home / OUTBOX, anew=anew, beside=home / KEPT)} if serial else {}
    )
    for port in ports:
        if is_bridge(port):
            read = read_bridge(port, home / OUTBOX, model=known.dock(split_port(port)[0]).model, anew=anew)
            results[read["port"]] = read
    return list(results.values())


def _files(home: Path, plan: Plan, settle_s: float) -> list[tuple[str, str | None]]:
    if plan.inbox is None:
        return []
    if not plan.inbox.is_dir():
        raise InputError(f"There is no folder {plan.inbox}.", do="Make it, or name another with --files.", code="no_folder")
    with Store(home / OUTBOX) as outbox:
        return take_files(plan.inbox, outbox, settings.load(home).docks, settle_s=settle_s)


def _watch_files(home: Path, plan: Plan, uplink: Uplink, ended: threading.Event, show: Callable[[str], None]) -> None:
    trouble = ""
    while not ended.wait(_LOOK_S):
        try:
            for name, why in _files(home, plan, _SETTLE_S):
                show(f"{name}: {why or 'taken'}")
                uplink.wake()
            trouble = ""
        except Exception as error:
            if (now := _reason(error)) != trouble:
                show(now)
            trouble = now


def _line(name: str, counters: Counters) -> str:
    state = "online" if counters.connected else "offline"
    parts = [f"{name} {state}: sent {counters.sent}, stored {counters.stored}, refused {counters.refused}, waiting {counters.waiting}"]
    return " · ".join([*parts, counters.trouble] if counters.trouble else parts)
