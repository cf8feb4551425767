"""Between a pump and its host: what a simulated pump is to the rig, and the faults of the link.

Faults are data (`Faults`) and strike at the device: `Line` carries the answers of a serial pump, `Faults.strike` the captures of
one that publishes, so that everything above sees what it would see of a bad cable.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Protocol, runtime_checkable

from devices.contract import Capture
from simulators.therapy import Script, Truth, without_power

MAX_CAP = 65_536
"""The most bytes that one MQTT payload may have (docs/design.md §5)."""


@runtime_checkable
class SerialDevice(Protocol):
    """A pump (or the stick before it) that is asked over a serial line."""

    pump_id: str

    def feed(self, data: bytes) -> bytes:
        """Takes bytes of the host, in whatever pieces they come, and gives what is answered to them. Raises UnpluggedError."""


@runtime_checkable
class PublishingDevice(Protocol):
    """A pump that publishes what it recorded."""

    pump_id: str

    def captures(self) -> list[bytes]:
        """The `cap` payloads (docs/design.md §5) of its log, in the order in which they are sent."""


class Simulator(Protocol):
    """What the module of a family provides."""

    def simulate(self, script: Script, seed: int = 0, **options: Any) -> tuple[SerialDevice | PublishingDevice, Truth]:
        """The pump to which this script happened, and the truth about it.

        Every family takes `serial` (the second half of its pump id), `faults` (Faults) and, where the pump is asked or tells its
        clock, `now`: the function that gives true UTC, which decides how much of the log is written by then (default: its end).
        """


class UnpluggedError(Exception):
    """The cable is out: `sent` is what still came through of the answer."""

    def __init__(self, sent: bytes) -> None:
        super().__init__("unplugged")
        self.sent = sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong, and where.

    `drift_s_per_day`: the pump's clock runs fast. `battery_out`: power goes then (true UTC) for `battery_out_min`. Of a serial
    pump: shares of answers that do not come (`silence`), come with a bad byte (`noise`) or as a refusal (`naks`); `at` names single
    answers by number, from 0, as "silence", "noise" or "nak"; `unplug_at`: the byte of all that it sends before which the cable is
    pulled, once. Of one that publishes: `noise`, the share of captures with a bad byte; `duplicates`, that of those sent twice;
    `reorder`; `keep`, that only so many captures come (a download that was broken off).
    """

    drift_s_per_day: float = 0.0
    battery_out: datetime | None = None
    battery_out_min: float = 40.0
    silence: float = 0.0
    noise: float = 0.0
    naks: float = 0.0
    at: Mapping[int, str] = field(default_factory=dict)
    unplug_at: int | None = None
    duplicates: float = 0.0
    reorder: bool = False
    keep: int | None = None

    def happen_to(self, script: Script) -> Script:
        """The script with the battery out, where it is."""
        if self.battery_out is None:
            return script
        return without_power(script, self.battery_out, minutes=self.battery_out_min)

    def strike(self, captures: Sequence[Capture], seed: int) -> list[Capture]:
        """What arrives of the captures of a pump that publishes, in the order in which it does."""
        chance = random.Random(f"captures:{seed}")
        left = [replace(one, data=_spoiled(one.data, chance)) if chance.random() < self.noise else one for one in captures[: self.keep]]
        left = [one for one in left for _ in range(2 if chance.random() < self.duplicates else 1)]
        if self.reorder:
            chance.shuffle(left)
        return left


class Line:
    """Carries the answers of one serial pump, with its faults; `nak` is how this family refuses (none: it cannot)."""

    def __init__(self, faults: Faults, seed: int, *, nak: bytes = b"") -> None:
        self._faults, self._nak = faults, nak
        self._chance = random.Random(f"line:{seed}")
        self._answers = 0
        self._sent = 0
        self._pulled = False

    def carry(self, request: bytes, answer: Callable[[bytes], bytes]) -> bytes:
        """What comes back to a whole request; the pump never sees one that is refused. Raises UnpluggedError."""
        fault = self._drawn()
        sent = self._nak if fault == "nak" else answer(request)
        if fault == "silence":
            sent = b""
        elif fault == "noise" and sent:
            sent = _spoiled(sent, self._chance)
        self._sent += len(sent)
        if self._faults.unplug_at is not None and self._sent > self._faults.unplug_at and not self._pulled:
            self._pulled = True
            raise UnpluggedError(sent[: max(0, len(sent) - (self._sent - self._faults.unplug_at))])
        return sent

    def _drawn(self) -> str:
        faults, number, draw = self._faults, self._answers, self._chance.random()
        self._answers += 1
        if number in faults.at:
            return faults.at[number]
        for name, share in (("silence", faults.silence), ("noise", faults.noise), ("nak", faults.naks)):
            if draw < share:
                return name
            draw -= share
        return ""


def _spoiled(data: bytes, chance: random.Random) -> bytes:
    if not data:
        return data
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ chance.randint(1, 255)]) + data[place + 1 :]


def cap(capture: Capture) -> bytes:
    """The MQTT payload of a capture (docs/design.md §5), at most MAX_CAP bytes: whoever makes captures splits them smaller."""
    anchor = capture.anchor
    payload = {
        "v": 1,
        "sha256": capture.sha256,
        "family": capture.family,
        "pump": capture.pump_id,
        "model": capture.model,
        "part": capture.part,
        "anchor": anchor
        and {
            "pump_clock": anchor.pump_clock.isoformat(),
            "utc": anchor.utc.isoformat(),
            "round_trip_ms": anchor.round_trip_ms,
            "after": anchor.after,
        },
        "bytes": base64.b64encode(capture.data).decode(),
        "kid": None,
        "sig": None,
    }
    return json.dumps(payload).encode()


def still(moment: datetime) -> Callable[[], datetime]:
    """A clock function that stands at this moment."""
    return lambda: moment


def running(moment: datetime, clock: Callable[[], datetime]) -> Callable[[], datetime]:
    """A clock function that shows `moment` now and runs on as `clock` does."""
    began = clock()
    return lambda: moment + (clock() - began)


def whole_second(time: datetime) -> datetime:
    """A reading as pumps print it: the second that has begun."""
    return time - timedelta(microseconds=time.microsecond)
