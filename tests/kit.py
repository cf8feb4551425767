"""Canonical logs in a few words, and what they give: from events to facts and lines through the public functions of the rooms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from devices.contract import Capture, CaptureHead, Log, joined
from devices.families import family
from ingest.files import parquet
from ingest.night import rule_sets
from transforms import billing, sessions
from transforms.orders import COLUMNS, Orders, parse

PUMP = "canonical:A1"
DAY = datetime.fromisoformat("2026-03-02T08:00:00")


def at(minutes: float = 0, seconds: float = 0) -> str:
    """Pump time so long after the morning of DAY."""
    return (DAY + timedelta(minutes=minutes, seconds=seconds)).isoformat()


def event(minutes: float, kind: str, **fields: Any) -> dict[str, Any]:
    """One event line without its number."""
    return {"pump_time": at(minutes), "kind": kind, **fields}


def numbered(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Numbers events from 1 in their order."""
    return [{"seq": seq, **one} for seq, one in enumerate(events, 1)]


def anchor(minutes: float, *, utc_minutes: float | None = None, **more: Any) -> dict[str, Any]:
    """A clock anchor: the pump's clock is UTC unless said otherwise."""
    return {"pump_clock": at(minutes), "utc": at(minutes if utc_minutes is None else utc_minutes) + "Z", **more}


def capture(
    lines: Iterable[Mapping[str, Any] | bytes], *, pump: str = PUMP, anchor: Mapping[str, Any] | None = None, **header: Any
) -> Capture:
    """A capture of these lines under a header."""
    head = {"pumpledger": 1, "pump_id": pump, **header} | ({"anchor": anchor} if anchor else {})
    rows = [json.dumps(head).encode(), *(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)]
    return Capture(data=b"\n".join(rows) + b"\n", family="canonical", pump_id=pump)


def orders(*rows: Mapping[str, str], **changed: str) -> Orders:
    """One order of PUMP, or these; each row names only what is special about it."""
    text = [",".join(COLUMNS)]
    usual = {
        "pump_id": PUMP, "patient_id": "pt-1", "order_id": "ord-1", "drug": "hydromorphone", "route": "SC", "payer": "payer-a",
        "rule_set": "cpt-9637x", "tz": "UTC", "start": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    for row in rows or ({},):
        text.append(",".join({**usual, **changed, **row}.get(column, "") for column in COLUMNS))
    return parse("\n".join(text), rule_sets())


def assembled(captures: Sequence[Capture]) -> Log:
    """The log of the one pump that these captures are of."""
    adapter = family(captures[0].family)
    return adapter.assemble(captures[0].pump_id, *joined(adapter.decode(one) for one in captures))


def saying(one: Log, **columns: Sequence[Any]) -> Log:
    """The same log with these columns of its events: what canonical lines cannot say, such as elapsed time of a family's own."""
    events = one.events
    for name, values in columns.items():
        place = events.schema.get_field_index(name)
        events = events.set_column(place, events.schema.field(place), pa.array(values, events.schema.field(place).type))
    return replace(one, events=events)


def head(one: Capture) -> CaptureHead:
    """What the store remembers of a capture."""
    return CaptureHead(
        sha256=one.sha256,
        data_sha256=hashlib.sha256(one.data).hexdigest(),
        size=len(one.data),
        family=one.family,
        pump_id=one.pump_id,
        model=one.model,
        part=one.part,
    )


def infused_s(given: Given) -> float:
    """Seconds of infusion in all intervals of what was given."""
    return float(sum((one["to_ms"] - one["from_ms"]) / 1000 for one in given.rows("intervals") if one["class"] == "infusing"))


@dataclass(frozen=True)
class Given:
    """What some captures gave."""

    facts: Mapping[str, pa.Table]
    bill: billing.Bill

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a table of facts or of the bill."""
        found = self.facts[name] if name in self.facts else getattr(self.bill, name)
        return list(found.to_pylist())

    @property
    def session(self) -> dict[str, Any]:
        """The one session there is."""
        (only,) = self.rows("sessions")
        return only

    def units(self) -> dict[str, int]:
        """Code → units of all lines, which must be of one encounter."""
        lines = self.rows("lines")
        assert len({line["encounter_id"] for line in lines}) <= 1
        return {line["code"]: line["units"] for line in lines}

    def states(self) -> set[str]:
        """The states of all lines."""
        return {line["state"] for line in self.rows("lines")}

    def reasons(self) -> set[str]:
        """What holds any line."""
        return {reason for line in self.rows("lines") for reason in line["reasons"]}

    def codes(self) -> set[str]:
        """The codes on the worklist."""
        return {item["code"] for item in self.rows("worklist")}

    def bytes(self) -> dict[str, bytes]:
        """Every derived table as the lake would write it."""
        whole = {**self.facts, "lines": self.bill.lines, "worklist": self.bill.worklist, "days": self.bill.days}
        return {name: parquet(rows) for name, rows in whole.items()}


_FACTS = ("events", "sessions", "intervals", "setups", "doubts")


def billed(logs: Sequence[Log], known: Orders, policy: sessions.FactPolicy | None = None) -> Given:
    """Facts and lines of some pumps."""
    found = [sessions.derive(log, known, policy or sessions.FactPolicy()) for log in logs]
    facts = {name: pa.concat_tables([getattr(one, name) for one in found]) for name in _FACTS}
    bill = billing.bill(billing.Facts(*(facts[name] for name in _FACTS[1:])), known, rule_sets(), {})
    return Given(facts, bill)


def give(*captures: Capture, known: Orders | None = None, policy: sessions.FactPolicy | None = None) -> Given:
    """What captures of one or more pumps give."""
    by_pump: dict[str, list[Capture]] = {}
    for one in captures:
        by_pump.setdefault(one.pump_id, []).append(one)
    return billed([assembled(mine) for mine in by_pump.values()], known or orders(), policy)


def log(*events: Mapping[str, Any], end: float = 6000, known: Orders | None = None, **header: Any) -> Given:
    """What one complete log gives, with an anchor at its end."""
    return give(capture(numbered(events), anchor=anchor(end), **header), known=known)


def infusion(start: float, minutes: float, **fields: Any) -> list[dict[str, Any]]:
    """A delivery of the primary source."""
    return [
        event(start, "delivery_start", rate_ml_h=2.0, **fields),
        event(start + minutes, "delivery_stop", source="primary", reason="user"),
    ]


def new_setup(minutes: float) -> list[dict[str, Any]]:
    """A cassette change with a new site."""
    return [
        event(minutes, "reservoir_change"),
        event(minutes, "priming_done", target="tubing", volume_ml=0.3),
        event(minutes, "priming_done", target="cannula", volume_ml=0.05, programmed_ml=0.05),
    ]
