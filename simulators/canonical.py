"""A PCA pump that writes canonical JSON lines and publishes them (docs/semantics.md §1, docs/design.md §5).

It tells everything: each step of its script is one line, numbered without holes. Its log goes out in batches, each a capture with a
header of its own and with the clock anchor of the moment, said to stand behind the batch's last line where it is the log's last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from devices.contract import Capture, Kind
from simulators.link import Faults, cap, still, whole_second
from simulators.therapy import PumpClock, Script, Step, Truth, truth

FAMILY = "canonical"
RESET = datetime(2000, 1, 1)  # noqa: DTZ001
"""What the clock shows after a loss of power."""

_SAID = ("rate_ml_h", "volume_ml", "programmed_ml", "duration_s", "lockout_s", "reason", "target", "alarm_class", "source")


class Pump:
    """The pump at the moment `now`: only what is recorded by then is in its log."""

    def __init__(
        self, pump_id: str, script: Script, clock: PumpClock, *, faults: Faults, seed: int, batch: int, now: Callable[[], datetime]
    ) -> None:
        self.pump_id = pump_id
        self._log, self._clock, self._now = script.log(), clock, now
        self._faults, self._seed, self._batch = faults, seed, batch

    def captures(self) -> list[bytes]:
        """The `cap` payloads of its log, in batches of records, with the faults of its link."""
        there = self._there()
        batches = [(start, there[start : start + self._batch]) for start in range(0, len(there), self._batch)]
        whole = [
            Capture(data=self._written(lines, first=start + 1, last=start + len(lines) == len(there)), family=FAMILY, pump_id=self.pump_id)
            for start, lines in batches
        ]
        return [cap(capture) for capture in self._faults.strike(whole, self._seed)]

    def file(self) -> bytes:
        """Its whole log as one file."""
        return self._written(self._there(), first=1, last=True)

    def _there(self) -> list[Step]:
        moment = self._now()
        return [step for step in self._log if step.recorded <= moment]

    def _written(self, steps: Sequence[Step], *, first: int, last: bool) -> bytes:
        header: dict[str, Any] = {"pumpledger": 1, "pump_id": self.pump_id, "log_epoch": 0}
        if last and steps:
            moment = self._now()
            header["anchor"] = {
                "pump_clock": whole_second(self._clock.shows(moment)).isoformat(),
                "utc": whole_second(moment.astimezone(UTC)).isoformat().replace("+00:00", "Z"),
                "round_trip_ms": 40,
                "after_seq": first + len(steps) - 1,
            }
        lines = [header, *({"seq": number, **self._line(step)} for number, step in enumerate(steps, first))]
        return "".join(json.dumps(line) + "\n" for line in lines).encode()

    def _line(self, step: Step) -> dict[str, Any]:
        shown = self._clock.shows(step.recorded)
        line: dict[str, Any] = {"kind": step.kind.value}
        if step.kind is Kind.CLOCK_CHANGE:
            new = whole_second(shown).isoformat()
            if step.reason == "loss":
                line |= {"pump_time": new, "new": new}
            else:
                old = whole_second(self._clock.showed(step.at)).isoformat()
                line |= {"pump_time": old, "old": old, "new": new}
        else:
            line["pump_time"] = whole_second(shown).isoformat()
        line |= {name: value for name in _SAID if (value := getattr(step, name)) is not None}
        if step.kind is Kind.BOLUS_DELIVERED:
            line["at"] = step.names.value
        if step.kind is Kind.ALARM_RAISED:
            line["stops_delivery"] = step.stops_delivery
        return line


def simulate(
    script: Script,
    seed: int = 0,
    *,
    serial: str = "A17",
    faults: Faults | None = None,
    now: Callable[[], datetime] | None = None,
    batch: int = 50,
) -> tuple[Pump, Truth]:
    """The pump of a script, and the truth; `batch` records go into one capture (simulators.link.Simulator has the other options)."""
    faults = faults or Faults()
    script = faults.happen_to(script)
    pump_id = f"{FAMILY}:{serial}"
    clock = PumpClock(script, reset_to=RESET, drift_s_per_day=faults.drift_s_per_day)
    pump = Pump(pump_id, script, clock, faults=faults, seed=seed, batch=batch, now=now or still(script.end))
    return pump, truth(pump_id, script)
