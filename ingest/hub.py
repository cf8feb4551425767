"""The MQTT hub: what gateways publish is in the store, fsynced, before it is acknowledged (docs/design.md §5).

One thread does everything, turn by turn: it reads from the broker, keeps a group of captures, sends the receipts, and only then
acknowledges. So an acknowledgement can neither overtake the store nor reach another connection than its message came by, and
paho, whose client writes from whatever thread asks it to, is never asked by two. What goes wrong in a turn ends the connection, not
the thread: what was not acknowledged comes again, and the store knows it.
"""

from __future__ import annotations

import hashlib
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from devices.contract import Anchor, Capture
from devices.errors import InputError, LinkError, PumpledgerError, masked
from ingest.store import Arrival, Store

CAP_BYTES = 64 * 1024
"""The most bytes that one capture may have on its way: a gateway splits at record or page boundaries before it hashes."""

_PAYLOAD_BYTES = CAP_BYTES * 4 // 3 + 4096
_CAPS, _STATUS = "pl1/+/d/+/cap", "pl1/+/status"
_GROUP, _GROUP_S = 16, 0.02
_CONNECT_S, _BACKOFF_S, _BACKOFF_MAX_S = 10.0, 0.5, 30.0
_KEEPALIVE_S = 30


class _Anchor(msgspec.Struct, forbid_unknown_fields=True):
    pump_clock: Annotated[datetime, msgspec.Meta(tz=False)]
    utc: Annotated[datetime, msgspec.Meta(tz=True)]
    round_trip_ms: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None
    after: str | None


class _Cap(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    v: Literal[1]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    family: Annotated[str, msgspec.Meta(min_length=1)]
    pump: Annotated[str, msgspec.Meta(min_length=1)]
    model: str | None
    part: str | None
    anchor: _Anchor | None
    data: bytes = msgspec.field(name="bytes")
    kid: str | None = None
    sig: str | None = None


class Refusal(msgspec.Struct):
    """What could not be read: the hash that it said it has, or where it said none the SHA-256 of the payload."""

    sha256: str
    why: str


class Receipt(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a gateway may forget: captures that are stored and fsynced, payloads that were put aside."""

    v: Literal[1] = 1
    stored: list[str] = []
    refused: list[Refusal] = []


class Status(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a gateway says of itself, retained; "offline" is its last will too."""

    v: Literal[1] = 1
    state: Literal["online", "offline"]


class _Claim(msgspec.Struct):
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


_cap, _claim, _status = msgspec.json.Decoder(_Cap), msgspec.json.Decoder(_Claim), msgspec.json.Decoder(Status)
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def encode_cap(capture: Capture) -> bytes:
    """The payload of a `cap`; `decode_cap` gives back an equal capture. Times are ISO with ms (finer only where the capture is).

    Raises InputError where it has more than `CAP_BYTES` bytes, or an anchor that is not naive pump clock and UTC.
    """
    if len(capture.data) > CAP_BYTES:
        raise InputError(
            f"A capture of {masked(capture.pump_id)} has {len(capture.data)} bytes; {CAP_BYTES} fit into a message.",
            do="Split it at record or page boundaries.",
            code="too_large",
        )
    anchor = capture.anchor
    if anchor and (anchor.pump_clock.tzinfo is not None or anchor.utc.utcoffset() != timedelta(0)):
        raise InputError(f"A clock anchor of {masked(capture.pump_id)} is not naive pump clock and UTC.", code="bad_anchor")
    told = anchor and {
        "pump_clock": _iso(anchor.pump_clock),
        "utc": _iso(anchor.utc.replace(tzinfo=None)) + "Z",
        "round_trip_ms": anchor.round_trip_ms,
        "after": anchor.after,
    }
    return msgspec.json.encode(
        {
            "v": 1,
            "sha256": capture.sha256,
            "family": capture.family,
            "pump": capture.pump_id,
            "model": capture.model,
            "part": capture.part,
            "anchor": told,
            "bytes": capture.data,
            "kid": None,
            "sig": None,
        }
    )


def decode_cap(payload: bytes) -> Capture:
    """The capture that a payload is. Raises InputError for what is no `cap`, is too large, or does not have the hash it says."""
    if len(payload) > _PAYLOAD_BYTES:
        raise InputError(f"It has {len(payload)} bytes, more than a capture may have.", code="too_large")
    try:
        cap = _cap.decode(payload)
    except _UNREADABLE as error:
        raise InputError(f"It is no capture: {error}.", code="bad_cap") from error
    anchor = None
    if cap.anchor:
        if cap.anchor.utc.utcoffset() != timedelta(0):
            raise InputError("Its anchor's UTC is not UTC.", code="bad_cap")
        anchor = Anchor(
            pump_clock=cap.anchor.pump_clock,
            utc=cap.anchor.utc.astimezone(UTC),
            round_trip_ms=cap.anchor.round_trip_ms,
            after=cap.anchor.after,
        )
    capture = Capture(data=cap.data, family=cap.family, pump_id=cap.pump, model=cap.model, part=cap.part, anchor=anchor)
    if len(cap.data) > CAP_BYTES:
        raise InputError(f"It has {len(cap.data)} bytes, more than a capture may have.", code="too_large")
    if capture.sha256 != cap.sha256:
        raise InputError("What it says does not have the hash it says.", code="bad_hash")
    return capture


def broker_client(url: str, client_id: str) -> tuple[Client, str, int]:
    """A client (MQTT 3.1.1, lasting session, acknowledging by hand) of the broker at a URL, not connected yet; host; port.

    mqtt://[user:password@]host[:1883], or mqtts://…[:8883] with TLS: `?ca=`, `?cert=` and `&key=` name files. Raises InputError.
    """
    try:
        parts = urlsplit(url)
        files = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
        port = parts.port or {"mqtt": 1883, "mqtts": 8883}[parts.scheme]
        if not parts.hostname or parts.path.strip("/") or set(files) - {"ca", "cert", "key"} or (files and parts.scheme == "mqtt"):
            raise ValueError("something is missing or too much")
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=False,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        if parts.username is not None:
            client.username_pw_set(unquote(parts.username), None if parts.password is None else unquote(parts.password))
        if parts.scheme == "mqtts":
            client.tls_set(files.get("ca"), files.get("cert"), files.get("key"))
    except (ValueError, KeyError) as error:
        raise InputError(
            "This is no broker's address.",
            why=f"It cannot be read ({type(error).__name__}).",
            do="Write mqtt://host:1883, mqtt://user:password@host:1883 or mqtts://host:8883?ca=FILE.",
            code="broker_url",
        ) from error
    except OSError as error:
        raise InputError(f"A certificate or key for {parts.hostname} cannot be read: {error}.", code="broker_files") from error
    return client, parts.hostname, port


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A gateway as the hub knows it: when it was last heard (UTC), its own word on being online (None: nothing that can be read)."""

    seen: datetime
    online: bool | None = None
    stored: int = 0


@dataclass(slots=True, kw_only=True)
class Counters:
    """What `listen` shows. `stored` counts receipts: what was known already gets one too. `trouble`: what does not work right now."""

    connected: bool = False
    received: int = 0
    stored: int = 0
    refused: int = 0
    gateways: dict[str, Gateway] = field(default_factory=dict)
    trouble: str = ""


class Hub:
    """Takes captures from a broker into the store until it is stopped; a context manager."""

    def __init__(self, broker_url: str, store_path: Path, client_id: str = "pumpledger-hub", *, stall_s: float = 60.0) -> None:
        """`stall_s`: a connection by which nothing has moved for so long, its own pulse included, is given up. Raises InputError."""
        self.counters = Counters()
        self._client, self._host, self._port = broker_client(broker_url, client_id)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._pulse = f"hub1/{client_id}/pulse"
        self._stall_s = stall_s
        self._path = store_path
        self._store: Store | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._group: list[MQTTMessage] = []
        self._group_since = self._moved = self._pulsed = 0.0
        self._subscribed = self._pulse_heard = False
        self._backoff = _BACKOFF_S

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Opens the store, connects and subscribes, and goes on in a thread. Raises LinkError, StorageError."""
        self._store = Store(self._path)
        try:
            self._connect()
        except BaseException:
            self._client.disconnect()
            self._store.close()
            raise
        self._moved = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Keeps and acknowledges what is in hand, and ends the connection; the broker keeps what comes meanwhile."""
        self._stopping.set()
        if self._thread:
            self._thread.join()
        if self._store:
            self._store.close()

    def _connect(self) -> None:
        try:
            self._client.connect(self._host, self._port, keepalive=_KEEPALIVE_S)
            deadline = time.monotonic() + _CONNECT_S
            while not self._subscribed and not self.counters.trouble and not self._client.loop(0.1) and time.monotonic() < deadline:
                pass
        except OSError as error:
            self.counters.trouble = _reason(error)
        if self._subscribed:
            return
        raise LinkError(
            f"The MQTT broker at {self._host}:{self._port} cannot be used.",
            why=self.counters.trouble or "It takes the connection, but does not answer as a broker does.",
            do="Check that it runs there (`systemctl status mosquitto`) and lets this user in, or name another one with --broker.",
            code="no_broker",
        )

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception as error:
                self._reconnect(_reason(error))
        with suppress(Exception):
            if self._group:
                self._keep()
            deadline = time.monotonic() + 2
            while self._client.want_write() and time.monotonic() < deadline and not self._client.loop(0.1):
                pass
        with suppress(Exception):
            self._client.disconnect()

    def _turn(self) -> None:
        """Reads what there is, for a moment; keeps a group that is full or has waited; looks whether anything moves."""
        if self._client.loop(_GROUP_S if self._group else 0.2):
            self._reconnect("The connection to the broker was lost.")
            return
        now = time.monotonic()
        if self._group and (len(self._group) >= _GROUP or now - self._group_since >= _GROUP_S):
            self._keep()
        if self._subscribed and now - self._pulsed > self._stall_s / 4:
            self._pulsed = now
            self._client.publish(self._pulse, b"", qos=1)
        if now - self._moved > self._stall_s and (self._pulse_heard or not self._subscribed):
            self._reconnect(f"Nothing has moved for {self._stall_s:.0f} s.")

    def _reconnect(self, why: str) -> None:
        """Gives up the connection, waits longer each time that nothing came of it, and connects anew."""
        self.counters.connected, self.counters.trouble = False, why
        self._subscribed = False
        self._group.clear()
        if self._stopping.wait(self._backoff):
            return
        self._backoff = min(2 * self._backoff, _BACKOFF_MAX_S)
        self._moved = time.monotonic()
        try:
            self._client.reconnect()
        except Exception as error:
            self.counters.trouble = _reason(error)

    def _keep(self) -> None:
        """One group: into the store, then receipts, then acknowledgements. Raises StorageError, with the group still in hand."""
        assert self._store
        group = self._group[:_GROUP]
        good: list[tuple[Capture, Arrival]] = []
        receipts: dict[str, Receipt] = {}
        now = datetime.now(UTC)
        for message in group:
            gateway, payload = message.topic.split("/")[1], bytes(message.payload)
            receipt, arrival = receipts.setdefault(gateway, Receipt(stored=[], refused=[])), Arrival(now, f"mqtt:{gateway}")
            try:
                good.append((decode_cap(payload), arrival))
                receipt.stored.append(good[-1][0].sha256)
            except Exception as error:
                why = _reason(error)
                self._store.refuse(payload, why, arrival)
                receipt.refused.append(Refusal(sha256=_claimed(payload), why=why))
        self._store.append(good)
        for gateway, receipt in receipts.items():
            self._client.publish(f"hub1/{gateway}/receipt", msgspec.json.encode(receipt), qos=1)
            self._count(gateway, now, receipt)
        for message in group:
            self._client.ack(message.mid, message.qos)
        del self._group[: len(group)]
        self._group_since = time.monotonic()
        self._progress()

    def _count(self, gateway: str, now: datetime, receipt: Receipt) -> None:
        self.counters.stored += len(receipt.stored)
        self.counters.refused += len(receipt.refused)
        known = self.counters.gateways.get(gateway, Gateway(seen=now))
        self.counters.gateways[gateway] = replace(known, seen=now, stored=known.stored + len(receipt.stored))

    def _progress(self) -> None:
        self._moved = time.monotonic()
        self._backoff = _BACKOFF_S
        self.counters.trouble = ""

    def _on_connect(self, client: Client, _: Any, __: Any, reason: Any, ___: Any) -> None:
        if reason.is_failure:
            self.counters.trouble = f"It refuses this client: {reason}."
        else:
            client.subscribe([(_CAPS, 1), (_STATUS, 1), (self._pulse, 1)])

    def _on_subscribe(self, _: Client, __: Any, ___: int, reasons: list[Any], ____: Any) -> None:
        if reasons[0].is_failure:
            self.counters.trouble = f"It does not let this client read {_CAPS}."
            return
        self._subscribed = self.counters.connected = True
        self._moved = time.monotonic()

    def _on_disconnect(self, *_: Any) -> None:
        self.counters.connected = False

    def _on_message(self, client: Client, _: Any, message: MQTTMessage) -> None:
        """Takes a message in hand. Only what is no capture is acknowledged here."""
        topic = message.topic
        if topic.endswith("/cap"):
            self.counters.received += 1
            if not self._group:
                self._group_since = time.monotonic()
            self._group.append(message)
            return
        if topic == self._pulse:
            self._pulse_heard = True
            self._progress()
        else:
            gateway, now = topic.split("/")[1], datetime.now(UTC)
            try:
                online = _status.decode(message.payload).state == "online"
            except _UNREADABLE:
                online = None
            self.counters.gateways[gateway] = replace(self.counters.gateways.get(gateway, Gateway(seen=now)), seen=now, online=online)
        client.ack(message.mid, message.qos)


def listen(broker: str, store: Path, *, until: Callable[[], bool] | None = None, show: Callable[[str], None] = lambda _: None) -> None:
    """Runs a hub until `until` says so, or for ever; `show` gets a line whenever something has changed. Raises as `Hub.start`."""
    before = ""
    with Hub(broker, store) as hub:
        while not (until and until()):
            if (line := _line(hub.counters)) != before:
                show(line)
                before = line
            time.sleep(0.2)


def _line(counters: Counters) -> str:
    parts = [f"received {counters.received}, stored {counters.stored}, refused {counters.refused}"]
    for name, gateway in sorted(dict(counters.gateways).items()):
        state = {True: "online", False: "offline", None: "?"}[gateway.online]
        parts.append(f"{name} {state}, {gateway.stored} stored, last heard {gateway.seen:%H:%M:%S}Z")
    return " · ".join([*parts, counters.trouble] if counters.trouble else parts)


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds" if moment.microsecond % 1000 else "milliseconds")


def _claimed(payload: bytes) -> str:
    """The hash by which a gateway knows what it sent, as far as that can be read."""
    try:
        return _claim.decode(payload).sha256
    except _UNREADABLE:
        return hashlib.sha256(payload).hexdigest()


def _reason(error: Exception) -> str:
    """An error as a sentence for people."""
    if isinstance(error, PumpledgerError):
        return str(error)
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error}."
    return f"{error.strerror or error}." if isinstance(error, OSError) else f"{type(error).__name__}: {error}."
