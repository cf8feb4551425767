"""The MQTT hub: what gateways publish is in the store, fsynced, before it is acknowledged (docs/design.md §5).

One thread does everything, turn by turn: it reads from the broker, keeps a group of captures, sends the receipts, and only then
acknowledges. So an acknowledgement can neither overtake the store nor reach another connection than its message came by, and
paho, whose client writes from whatever thread asks it to, is never asked by two. What goes wrong in a turn ends the connection, not
the thread: what was not acknowledged comes again, and the store knows it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
import pyarrow.compute as pc
from paho.mqtt.client import Client, MQTTMessage, topic_matches_sub
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from devices import pcd
from devices.contract import Anchor, Capture
from devices.errors import InputError, LinkError, PumpledgerError, StorageError, masked
from ingest import night
from ingest.lake import RAW_SCHEMA, Lake
from ingest.store import Arrival, Store

CAP_BYTES = 64 * 1024
"""The most bytes that one capture may have on its way: a gateway splits at record or page boundaries before it hashes."""

HL7_BYTES = 1 << 20
"""The most bytes that one HL7 message may have: an event has some 3,000."""

AHEAD = timedelta(days=1)
"""A clock anchor so far ahead of its receipt shows that the clock of who read it is wrong."""

_FALSE_TIME = "It tells of a time more than a day ahead of this machine's clock: one of the two is wrong."
_FALSE_ANCHOR = "Its clock anchor is more than a day ahead of this machine's clock; its records are kept without it."
_PAYLOAD_BYTES = CAP_BYTES * 4 // 3 + 4096
_CAPS, _STATUS = "pl1/+/d/+/cap", "pl1/+/status"
_GROUP, _GROUP_S = 16, 0.02
_CONNECT_S, _BACKOFF_S, _BACKOFF_MAX_S = 10.0, 0.5, 30.0
_KEEPALIVE_S = 30
_WAY = re.compile(r"mqtt:(?P<gateway>[^/]+)/(?P<alias>[^/]+)")


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


class Ask(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a gateway is to send again: captures of a pump (its alias) that it read from `since` on, before `until` (null: no end)."""

    v: Literal[1] = 1
    pump: str
    since: Annotated[datetime, msgspec.Meta(tz=True)] | None = msgspec.field(name="from")
    until: Annotated[datetime, msgspec.Meta(tz=True)] | None = msgspec.field(name="to")


class Answer(msgspec.Struct, kw_only=True):
    """What a gateway does about an `Ask`: `again` captures are sent anew; of `gone` the bytes are no longer there.

    `known`: whether it ever read this pump; `reading`: whether it reads the pump's dock anew, from the beginning.
    """

    v: Literal[1] = 1
    ask: Ask
    known: bool
    again: int = 0
    gone: int = 0
    reading: bool = False


class _Claim(msgspec.Struct):
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


_cap, _claim, _status = msgspec.json.Decoder(_Cap), msgspec.json.Decoder(_Claim), msgspec.json.Decoder(Status)
_answer = msgspec.json.Decoder(Answer)
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


def hl7_captures(message: bytes, now: datetime) -> list[Capture]:
    """An HL7 message as it came, as a capture; several in one, of several pumps, as several. Raises InputError for what is none."""
    if len(message) > HL7_BYTES:
        raise InputError(f"It has more than {HL7_BYTES} bytes.", code="too_large")
    found = pcd.read_files([("message", message)]) if pcd.recognise("message", message) else []
    if not found:
        raise InputError("It is no HL7 message of a device's observations.", code="no_hl7")
    if len({capture.pump_id for capture in found}) == 1:
        found = [replace(found[0], data=message)]
    if ahead(found, now):
        raise InputError(_FALSE_TIME, code="ahead")
    return found


def ahead(captures: Sequence[Capture], now: datetime) -> set[str]:
    """The SHA-256 of those that have a clock anchor, beside or in their bytes, later than `now` by more than `AHEAD`."""
    found = {one.sha256 for one in captures if one.anchor is not None and one.anchor.utc - now > AHEAD}
    for name in {one.family for one in captures}:
        anchors = night.decode_all([one for one in captures if one.family == name and one.anchor is None]).anchors
        found |= set(anchors.filter(pc.greater(anchors["utc"], now + AHEAD))["capture"].to_pylist())
    return found


def broker_client(url: str, client_id: str, *, lasting: bool = True) -> tuple[Client, str, int]:
    """A client (MQTT 3.1.1, acknowledging by hand, `lasting` session) of the broker at a URL, not connected yet; host; port.

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
            clean_session=not lasting,
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

    def __init__(
        self,
        broker_url: str,
        store_path: Path,
        client_id: str = "pumpledger-hub",
        *,
        hl7_topics: Sequence[str] = (),
        stall_s: float = 60.0,
    ) -> None:
        """`hl7_topics`: filters of topics whose payloads are HL7 messages of IHE PCD as they are, each a capture (docs/design.md §5).

        `stall_s`: a connection by which nothing has moved for so long, its own pulse included, is given up. Raises InputError.
        """
        self._hl7 = [_checked_filter(one) for one in hl7_topics]
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
        caps = [self._cap_of(message) for message in group]
        false = ahead([one for one in caps if isinstance(one, Capture)], now)
        hl7 = 0
        for message, cap in zip(group, caps, strict=True):
            payload, arrival = bytes(message.payload), Arrival(now, self._way(message.topic))
            if cap is None:
                taken = self._taken_hl7(payload, arrival)
                good += [(one, arrival) for one in taken]
                hl7 += bool(taken)
                continue
            receipt = receipts.setdefault(message.topic.split("/")[1], Receipt(stored=[], refused=[]))
            if why := _wrong(cap, false):
                self._store.refuse(payload, why, arrival)
            if isinstance(cap, Capture) and (not why or cap.anchor):
                receipt.stored.append(cap.sha256)
                good.append((replace(cap, anchor=None) if why else cap, arrival))
            else:
                receipt.refused.append(Refusal(sha256=_claimed(payload), why=why))
        self._store.append(good)
        self.counters.stored += hl7
        for gateway, receipt in receipts.items():
            self._client.publish(f"hub1/{gateway}/receipt", msgspec.json.encode(receipt), qos=1)
            self._count(gateway, now, receipt)
        for message in group:
            self._client.ack(message.mid, message.qos)
        del self._group[: len(group)]
        self._group_since = time.monotonic()
        self._progress()

    def _cap_of(self, message: MQTTMessage) -> Capture | Exception | None:
        """The capture of a `cap`, or why it is none; None for what is HL7."""
        if self._hl7_filter(message.topic) is not None:
            return None
        try:
            return decode_cap(bytes(message.payload))
        except Exception as error:
            return error

    def _taken_hl7(self, payload: bytes, arrival: Arrival) -> list[Capture]:
        """The captures of an HL7 message; none of what is none: that is put aside. Nobody waits for a receipt."""
        assert self._store
        try:
            return hl7_captures(payload, arrival.received_at)
        except Exception as error:
            self._store.refuse(payload, _reason(error), arrival)
            self.counters.refused += 1
            return []

    def _way(self, topic: str) -> str:
        """By what way it came: gateway and alias, or the filter of HL7 topics, for what those are called is not ours."""
        own = self._hl7_filter(topic)
        if own is not None:
            return f"mqtt:{own}"
        _, gateway, _, alias, _ = topic.split("/")
        return f"mqtt:{gateway}/{alias}"

    def _hl7_filter(self, topic: str) -> str | None:
        return next((one for one in self._hl7 if topic_matches_sub(one, topic)), None)

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
            client.subscribe([(topic, 1) for topic in (_CAPS, *self._hl7, _STATUS, self._pulse)])

    def _on_subscribe(self, _: Client, __: Any, ___: int, reasons: list[Any], ____: Any) -> None:
        refused = [topic for topic, reason in zip((_CAPS, *self._hl7), reasons, strict=False) if reason.is_failure]
        if refused:
            self.counters.trouble = f"It does not let this client read {' and '.join(refused)}."
            return
        self._subscribed = self.counters.connected = True
        self._moved = time.monotonic()

    def _on_disconnect(self, *_: Any) -> None:
        self.counters.connected = False

    def _on_message(self, client: Client, _: Any, message: MQTTMessage) -> None:
        """Takes a message in hand. Only what is no capture is acknowledged here."""
        topic = message.topic
        if topic_matches_sub(_CAPS, topic) or self._hl7_filter(topic) is not None:
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
            online = _online(message.payload)
            self.counters.gateways[gateway] = replace(self.counters.gateways.get(gateway, Gateway(seen=now)), seen=now, online=online)
        client.ack(message.mid, message.qos)


def listen(
    broker: str,
    store: Path,
    *,
    hl7_topics: Sequence[str] = (),
    until: Callable[[], bool] | None = None,
    show: Callable[[str], None] = lambda _: None,
) -> None:
    """Runs a hub until `until` says so, or Ctrl-C; `show` gets a line whenever something has changed, and one at the end.

    Raises as `Hub` does.
    """
    before = ""
    with Hub(broker, store, hl7_topics=hl7_topics) as hub, suppress(KeyboardInterrupt):
        while not (until and until()):
            if (line := _line(hub.counters)) != before:
                show(line)
                before = line
            time.sleep(0.2)
    show(f"Ended: {_line(hub.counters)}")


def _line(counters: Counters) -> str:
    parts = [f"received {counters.received}, stored {counters.stored}, refused {counters.refused}"]
    for name, gateway in sorted(dict(counters.gateways).items()):
        state = {True: "online", False: "offline", None: "?"}[gateway.online]
        parts.append(f"{name} {state}, {gateway.stored} stored, last heard {gateway.seen:%H:%M:%S}Z")
    return " · ".join([*parts, counters.trouble] if counters.trouble else parts)


def heard_by(pump_id: str, store_path: Path, root: Path) -> dict[str, str]:
    """Gateway → its alias of this pump, from all that the store and the lake have ever had of it; the one heard last comes last."""
    ways: list[str] = []
    try:
        lake = Lake.open(root)
        raw = lake.read("raw", RAW_SCHEMA, buckets=[lake.bucket_of(pump_id)], columns=["pump_id", "via"])
        ways += raw.filter(pc.equal(raw["pump_id"], pump_id))["via"].to_pylist()
    except StorageError as error:
        if error.code != "no_lake":
            raise
    if store_path.exists():
        with Store(store_path) as store:
            ways += [arrival.via for _, arrival in store.arrivals(pump_id)]
    found: dict[str, str] = {}
    for way in ways:
        if match := _WAY.fullmatch(way):
            found.pop(match["gateway"], None)
            found[match["gateway"]] = match["alias"]
    return found


def ask(broker: str, gateway: str, wanted: Ask, *, wait_s: float = 10.0) -> Answer:
    """Asks a gateway to send again what it read of a pump, and gives its answer; what it sends comes to the hub as captures do.

    Never a command to a pump: at most the gateway reads its dock anew. Raises InputError, LinkError where there is no broker, or no
    answer; then the broker keeps the ask for a gateway that was there before.
    """
    client, host, port = broker_client(broker, f"pumpledger-ask-{secrets.token_hex(8)}", lasting=False)
    answers, status = f"pl1/{gateway}/answer", f"pl1/{gateway}/status"
    found: list[Answer] = []
    state: list[bool | None] = []
    ready: list[bool] = []

    def heard(_: Client, __: Any, message: MQTTMessage) -> None:
        client.ack(message.mid, message.qos)
        if message.topic == status:
            state.append(_online(message.payload))
            return
        with suppress(*_UNREADABLE):
            found.extend(one for one in [_answer.decode(message.payload)] if one.ask == wanted)

    client.on_connect = lambda client, *_: client.subscribe([(answers, 1), (status, 1)])
    client.on_subscribe = lambda _, __, ___, reasons, ____: ready.append(not any(reason.is_failure for reason in reasons))
    client.on_message = heard
    try:
        client.connect(host, port, keepalive=_KEEPALIVE_S)
        _turn(client, lambda: bool(ready), _CONNECT_S)
        if ready == [True]:
            sent = client.publish(f"hub1/{gateway}/ask", msgspec.json.encode(wanted), qos=1)
            _turn(client, sent.is_published, _CONNECT_S)
            _turn(client, lambda: bool(found), wait_s)
        client.disconnect()
    except (OSError, ValueError, RuntimeError) as error:
        raise LinkError(
            f"The MQTT broker at {host}:{port} cannot be used.", why=_reason(error), do="Check that it runs there.", code="no_broker"
        ) from error
    if ready != [True]:
        raise LinkError(f"The MQTT broker at {host}:{port} does not let this client ask {gateway}.", code="no_broker")
    if found:
        return found[0]
    why = {True: "It says that it is online.", False: "It is offline.", None: "What it says of itself cannot be read."}
    raise LinkError(
        f"Gateway {gateway} does not answer.",
        why=why[state[-1]] if state else "Nobody of this name has been there.",
        do="If it was there before, the broker keeps what was asked until it is back. Check its name and its machine.",
        code="no_answer",
    )


def _turn(client: Client, done: Callable[[], bool], timeout_s: float) -> None:
    """Reads from the broker until something is done or the time is over. Raises ConnectionError where it is lost."""
    deadline = time.monotonic() + timeout_s
    while not done() and time.monotonic() < deadline:
        if client.loop(0.1):
            raise ConnectionError("The connection was lost")


def _online(payload: bytes | bytearray) -> bool | None:
    try:
        return _status.decode(payload).state == "online"
    except _UNREADABLE:
        return None


def _wrong(cap: Capture | Exception, false: set[str]) -> str:
    """Why what came is put aside; of a capture whose anchor alone is false the records are kept all the same."""
    if isinstance(cap, Exception):
        return _reason(cap)
    if cap.sha256 not in false:
        return ""
    return _FALSE_ANCHOR if cap.anchor else _FALSE_TIME


def _checked_filter(topics: str) -> str:
    """A filter of topics that are not our own. Raises InputError."""
    levels = topics.split("/")
    own = levels[0] in ("#", "+", "pl1", "hub1") or topics.startswith("$")
    mixed = any(len(level) > 1 and set("#+") & set(level) for level in levels)
    if own or not topics or "\0" in topics or "#" in levels[:-1] or mixed or len(topics.encode()) > 65_535:
        raise InputError(
            f"{topics!r} is no filter of topics for HL7 messages.",
            why="Those of gateways and hubs (pl1/, hub1/) are taken already." if own else "",
            do="Name topics that carry nothing else, such as 'pcd/#' or 'pcd/+/events'.",
            code="hl7_topic",
        )
    return topics


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
