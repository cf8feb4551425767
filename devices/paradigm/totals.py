"""The daily totals of a Paradigm beside the sum of what its records tell (docs/pump-formats.md §3.2, 6d and 6e)."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import date, datetime, timedelta
from typing import Any

import pyarrow as pa

from devices.contract import CHECKS, HOLES, Kind, table

_READ = ("event_id", "pump_id", "kind", "pump_time", "new_time", "rate_dose_h", "dose", "duration_s", "proves", "stops_delivery")

_MOST_U = 0xFFFF / 40
"""What a total of two bytes can tell."""


def cross_check(events: pa.Table) -> pa.Table:
    """CHECKS of EVENTS: what the pump says it gave on a day, and the sum of what its records tell; `what` is bolus or basal, the unit U.

    For the days that the log covers whole, without a hole or a change of the clock. Boluses on every model; basal only where the pump
    writes its profile starts (7b, from x23 on). In order of days.
    """
    days = _Days()
    for event in events.select([*_READ, "native_code", "detail"]).to_pylist():
        days.take(event)
    return table(CHECKS, days.checks())


def _midnight_after(day: date) -> datetime:
    return datetime.combine(day + timedelta(days=1), datetime.min.time())


class _Days:
    """Sums bolus and basal by printed day."""

    def __init__(self) -> None:
        self.told: dict[tuple[date, str, float], dict[str, Any]] = {}
        self.sums: dict[tuple[date, str], float] = defaultdict(float)
        self.broken: set[tuple[date, str]] = set()
        self.now: datetime | None = None
        self.scheduled: float | None = None
        self.temp: tuple[float | None, datetime] | None = None
        self.runs: bool | None = None
        self.halted = False
        self.torn = True
        self.since = date.max

    def take(self, event: dict[str, Any]) -> None:
        kind, time, code = event["kind"], event["pump_time"], event["native_code"]
        if kind in HOLES or (kind == Kind.CLOCK_CHANGE and time is None):
            self._tear()
        elif code in ("6d", "6e"):
            self._total(json.loads(event["detail"]), event)
        elif kind == Kind.BOLUS_DELIVERED:
            self._bolus(time, event["dose"], timedelta(seconds=event["duration_s"] or 0))
            if self.halted and event["proves"]:
                self.runs, self.halted = True, False
        elif time is not None:
            self._to(time)
            self._state(kind, code, event)

    def _total(self, detail: dict[str, Any], event: dict[str, Any]) -> None:
        """A day is whole if what is read without a break began before it, and has reached its end; a total that is full tells nothing."""
        day = date.fromisoformat(detail["date"])
        for what in ("basal", "bolus"):
            self.told.setdefault((day, what, detail[f"{what}_u"]), event)
        if self.now and self.now.date() == day:
            self._to(_midnight_after(day))
        if not self.now or not self.since < day < self.now.date() or detail["total_u"] >= _MOST_U:
            self._break(day)

    def _state(self, kind: str, code: str, event: dict[str, Any]) -> None:
        if kind == Kind.CLOCK_CHANGE:
            self._tear()
            self._to(event["new_time"])
        elif code == "7b":
            self.scheduled = event["rate_dose_h"]
            if self.halted or self.runs is None:
                self.runs, self.halted = bool(self.scheduled), not self.scheduled
        elif code == "33":
            detail = json.loads(event["detail"])
            lasts = detail.get("duration_s", 0)
            self.temp = (event["rate_dose_h"], event["pump_time"] + timedelta(seconds=lasts)) if lasts else None
        elif kind in (Kind.DELIVERY_START, Kind.DELIVERY_STOP):
            self.runs, self.halted = kind == Kind.DELIVERY_START, False
        elif kind == Kind.RESERVOIR_CHANGE or event["stops_delivery"]:
            self.runs, self.halted = False, True

    def _tear(self) -> None:
        """What comes next is another log or another clock: the days on both sides are not whole."""
        if self.now:
            self._break(self.now.date())
        self.now, self.scheduled, self.temp, self.runs, self.torn = None, None, None, None, True

    def _break(self, day: date) -> None:
        self.broken |= {(day, "bolus"), (day, "basal")}

    def _to(self, time: datetime) -> None:
        if self.torn:
            self._break(time.date())
            self.torn, self.since = False, time.date()
        while self.now is not None and self.now < time:
            midnight = _midnight_after(self.now.date())
            until = min(time, midnight, self.temp[1] if self.temp and self.temp[1] > self.now else time)
            if self.temp and self.temp[1] <= self.now:
                self.temp = None
                continue
            rate = self._rate()
            if rate is None:
                self.broken.add((self.now.date(), "basal"))
            else:
                self.sums[self.now.date(), "basal"] += rate * (until - self.now).total_seconds() / 3600
            self.now = until
        self.now = max(self.now or time, time)

    def _rate(self) -> float | None:
        """What basal gives now. A share of the profile is not known: the pump tells no profile start while it lasts."""
        if self.runs is None:
            return None
        if not self.runs:
            return 0.0
        if self.temp:
            return self.temp[0]
        return self.scheduled

    def _bolus(self, start: datetime, dose: float, lasts: timedelta) -> None:
        """A square bolus over midnight belongs to both days."""
        midnight = _midnight_after(start.date())
        today = 1.0 if start + lasts <= midnight else (midnight - start) / lasts
        self.sums[start.date(), "bolus"] += dose * today
        self.sums[midnight.date(), "bolus"] += dose * (1 - today)

    def checks(self) -> list[dict[str, Any]]:
        """Rows of CHECKS."""
        return [
            {
                "pump_id": event["pump_id"],
                "date": day,
                "what": what,
                "told": told,
                "summed": self.sums[day, what],
                "unit": "U",
                "event_id": event["event_id"],
            }
            for (day, what, told), event in sorted(self.told.items(), key=lambda one: one[0])
            if (day, what) not in self.broken
        ]
