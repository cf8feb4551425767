"""Simulated pumps as the host sees them: behind serial ports, and on an MQTT broker.

    stick, truth = simulators.family("paradigm").simulate(script, seed=1)
    pca, other = simulators.family("canonical").simulate(script_of_pca, seed=2)
    with embedded_broker() as url, Rig([stick, pca], broker=url) as rig:
        print(rig.ports["paradigm:482916"])
        rig.wait_for_receipts(60)

Each serial pump is a thread behind a pseudo terminal; all that publish share one gateway, which sends again what the hub has not
receipted (docs/design.md §5).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
import select
import socket
import tempfile
import threading
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from devices.errors import InputError, LinkError, masked
from simulators.link import PublishingDevice, SerialDevice, UnpluggedError

_START_S = 10.0
_TRIES = 5


class Port:
    """A device behind a pseudo terminal. `path` is a link that stays the same when the device is plugged in again."""

    def __init__(self, device: SerialDevice, path: Path) -> None:
        self.device, self.path = device, path
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.plug_in()

    @property
    def plugged(self) -> bool:
        """Whether the device is there."""
        return self._thread is not None and self._thread.is_alive()

    def plug_in(self) -> None:
        """Makes the port appear; does nothing where it is there. The host's end is held open, so that a host may come and go."""
        if self.plugged:
            return
        pump, host = os.openpty()
        tty.setraw(host)
        os.set_blocking(pump, False)
        fresh = self.path.with_suffix(".new")
        fresh.symlink_to(os.ttyname(host))
        fresh.replace(self.path)
        self._stop.clear()
        self._thread = threading.Thread(target=self._serve, args=(pump, host), name=f"port {self.path.name}", daemon=True)
        self._thread.start()

    def unplug(self) -> None:
        """Pulls the cable."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _serve(self, pump: int, host: int) -> None:
        try:
            while not self._stop.is_set():
                if select.select([pump], [], [], 0.05)[0]:
                    self._write(pump, self.device.feed(os.read(pump, 4096)))
        except UnpluggedError as error:
            self._write(pump, error.sent)
        finally:
            self.path.unlink(missing_ok=True)
            os.close(pump)
            os.close(host)

    def _write(self, pump: int, data: bytes) -> None:
        while data and not self._stop.is_set():
            if select.select([], [pump], [], 0.05)[1]:
                data = data[os.write(pump, data) :]


class Gateway:
    """Publishes the captures of its devices, QoS 1, and again every `again_s` what the hub's receipt does not name."""

    def __init__(self, devices: Sequence[PublishingDevice], broker: str, *, name: str, key: bytes, again_s: float) -> None:
        self._devices, self._name, self._key, self._again_s = list(devices), name, key, again_s
        self._url = urlsplit(broker)
        if self._url.scheme != "mqtt" or not self._url.hostname:
            raise InputError(f"{broker} is no broker.", do="Name it as mqtt://HOST:PORT.", code="broker")
        self._changed = threading.Condition()
        self._stop = False
        self._connected = False
        self._fresh: list[tuple[str, str, bytes]] = []
        self._outgoing: list[tuple[str, str, bytes]] = []
        self._waiting: set[str] = set()
        self._done: set[str] = set()
        self._refused: dict[str, str] = {}
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, clean_session=False, protocol=mqtt.MQTTv311)
        self._client.on_connect = self._greeted
        self._client.on_message = self._received
        self._client.will_set(f"pl1/{name}/status", _status("offline"), qos=1, retain=True)
        self._thread = threading.Thread(target=self._send, name=f"gateway {name}", daemon=True)

    def alias(self, pump_id: str) -> str:
        """The opaque name of a pump in topics, made with the gateway's own key."""
        return hmac.new(self._key, pump_id.encode(), hashlib.sha256).hexdigest()[:16]

    def start(self) -> None:
        """Connects, and sends what there is. Raises LinkError."""
        self.collect()
        try:
            self._client.connect(str(self._url.hostname), self._url.port or 1883)
        except OSError as error:
            raise LinkError(
                f"No broker answers at {self._url.netloc}.", why=f"{error}.", do="Start it, or name another.", code="broker"
            ) from error
        self._client.loop_start()
        self._thread.start()

    def collect(self) -> None:
        """Takes from the devices what they have recorded since; what is not receipted yet is sent."""
        with self._changed:
            for device in self._devices:
                topic = f"pl1/{self._name}/d/{self.alias(device.pump_id)}/cap"
                named = [(json.loads(payload)["sha256"], topic, payload) for payload in device.captures()]
                self._fresh += [one for one in named if one[0] not in self._done | self._waiting]
            self._outgoing += [one for one in self._fresh if one[0] not in self._waiting]
            self._waiting |= {one[0] for one in self._fresh}
            self._changed.notify_all()

    def stop(self) -> None:
        """Says that it is offline, and disconnects."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        self._thread.join()
        with suppress(ValueError, RuntimeError):
            self._client.publish(f"pl1/{self._name}/status", _status("offline"), qos=1, retain=True).wait_for_publish(2)
        self._client.disconnect()
        self._client.loop_stop()

    def wait_for_receipts(self, timeout_s: float) -> Mapping[str, str]:
        """Waits until the hub has answered for every capture; gives those refused, by hash, with why. Raises LinkError."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._waiting, timeout_s):
                raise LinkError(f"{len(self._waiting)} captures have no receipt.", why="No hub listens at this broker.", code="no_receipt")
            return dict(self._refused)

    def counts(self) -> tuple[int, int]:
        """How many captures the hub has answered for, and how many still wait for it."""
        with self._changed:
            return len(self._done), len(self._waiting)

    def _greeted(self, client: mqtt.Client, user: Any, flags: mqtt.ConnectFlags, reason: ReasonCode, properties: Properties | None) -> None:
        client.subscribe(f"hub1/{self._name}/receipt", qos=1)
        client.publish(f"pl1/{self._name}/status", _status("online"), qos=1, retain=True)
        with self._changed:
            self._connected = True
            self._changed.notify_all()

    def _received(self, client: mqtt.Client, user: Any, message: mqtt.MQTTMessage) -> None:
        try:
            told = json.loads(message.payload)
            stored, refused = set(told["stored"]), {one["sha256"]: str(one["why"]) for one in told["refused"]}
        except (ValueError, KeyError, TypeError):
            logging.getLogger(__name__).warning("a receipt that cannot be read: %r", message.payload[:80])
            return
        with self._changed:
            self._done |= stored | refused.keys()
            self._waiting -= self._done
            self._outgoing = [one for one in self._outgoing if one[0] in self._waiting]
            self._refused |= refused
            self._changed.notify_all()

    def _send(self) -> None:
        """What is fresh goes out at once; all that has no receipt goes out again after a while."""
        while True:
            with self._changed:
                pause_s = self._again_s if self._waiting else None
                self._changed.wait_for(lambda: self._stop or (self._connected and self._fresh), pause_s)
                if self._stop:
                    return
                batch = (self._fresh or list(self._outgoing)) if self._connected else []
                if batch is self._fresh:
                    self._fresh = []
            for _, topic, payload in batch:
                self._client.publish(topic, payload, qos=1)


def _status(state: str) -> str:
    return json.dumps({"v": 1, "state": state})


class Rig:
    """Simulated pumps, running: a context manager.

    `ports`: pump id → path of the serial port of each that is asked. Those that publish need `broker` (mqtt://HOST:PORT). `say`
    gets a line for each port as it opens. Raises InputError, LinkError.
    """

    def __init__(
        self,
        devices: Sequence[SerialDevice | PublishingDevice],
        *,
        broker: str | None = None,
        gateway: str = "simulated",
        key: bytes = b"simulated",
        again_s: float = 5.0,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._serial = [device for device in devices if isinstance(device, SerialDevice)]
        publishing = [device for device in devices if isinstance(device, PublishingDevice)]
        if publishing and broker is None:
            raise InputError("Pumps that publish need a broker.", do="Name one as mqtt://HOST:PORT.", code="broker")
        self.gateway = Gateway(publishing, broker, name=gateway, key=key, again_s=again_s) if publishing and broker else None
        self._plugged: dict[str, Port] = {}
        self._say = say
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def ports(self) -> dict[str, str]:
        """Pump id → path of its port."""
        return {pump_id: str(port.path) for pump_id, port in self._plugged.items()}

    def port(self, pump_id: str) -> Port:
        """The port of a pump, to unplug it and plug it in again."""
        return self._plugged[pump_id]

    def wait_for_receipts(self, timeout_s: float) -> Mapping[str, str]:
        """As Gateway.wait_for_receipts; nothing to wait for where no pump publishes."""
        return self.gateway.wait_for_receipts(timeout_s) if self.gateway else {}

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="pumps-", ignore_cleanup_errors=True)
        try:
            for number, device in enumerate(self._serial):
                port = Port(device, Path(self._folder.name) / f"port{number}")
                self._plugged[device.pump_id] = port
                self._say(f"{masked(device.pump_id)} at {port.path}")
            if self.gateway:
                self.gateway.start()
        except BaseException:
            self._close_ports()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self.gateway:
                self.gateway.stop()
        finally:
            self._close_ports()

    def _close_ports(self) -> None:
        for port in self._plugged.values():
            port.unplug()
        if self._folder:
            self._folder.cleanup()


@contextmanager
def embedded_broker() -> Iterator[str]:
    """An MQTT 3.1.1 broker on a thread of its own at a free loopback port: gives its URL. For demos; it promises no redelivery.

    Raises LinkError where it does not start.
    """
    for attempt in range(_TRIES):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        broker = _Broker(port)
        try:
            broker.start()
        except LinkError:
            if attempt == _TRIES - 1:
                raise
            continue
        try:
            yield f"mqtt://127.0.0.1:{port}"
        finally:
            broker.stop()
        return


class _Broker:
    def __init__(self, port: int) -> None:
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._end: asyncio.Event | None = None
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait(_START_S)
        if self._failed is not None or self._end is None:
            raise LinkError("The embedded broker does not start.", why=f"{self._failed}.", code="broker") from self._failed

    def stop(self) -> None:
        if self._end is not None:
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(_START_S)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:
            self._failed = error
        finally:
            self._loop.close()
            self._ready.set()

    async def _serve(self) -> None:
        from amqtt.broker import Broker

        broker = Broker(
            {
                "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{self._port}"}},
                "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
            },
            loop=self._loop,
        )
        await broker.start()
        self._end = asyncio.Event()
        self._ready.set()
        await self._end.wait()
        await broker.shutdown()
