"""The worklist: what needs a person, and what is only worth a look; one item for each code and what it is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import pyarrow as pa

from transforms import tables
from transforms.codes import SAYS
from transforms.days import Day
from transforms.encounters import Encounter, local_date
from transforms.orders import Order, Orders
from transforms.ruleset import RuleSet
from transforms.tables import identify, rows_to_table

WORKLIST_ORDER = ("item_id",)


class Worklist:
    """Items by id: one for each code and what it is about."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, Any]] = {}

    def table(self) -> pa.Table:
        """The WORKLIST."""
        return rows_to_table(tables.WORKLIST, list(self.items.values()), sort=WORKLIST_ORDER)

    def encounter(self, encounter: Encounter, lines: list[dict[str, Any]]) -> None:
        """An item for each code of an encounter."""
        for code in encounter.codes:
            self.add(code, encounter, lines)

    def add(self, code: str, encounter: Encounter, lines: list[dict[str, Any]] | None = None) -> None:
        """An item for one code of an encounter."""
        holder = next((s for s in encounter.spans if code in s.row["flags"]), encounter.spans[0])
        self._item(
            code,
            encounter.encounter_id,
            severity="hold" if code in encounter.rules.holds else "inform",
            patient_id=encounter.order.patient_id,
            pump_id=holder.row["pump_id"],
            payer=encounter.order.payer,
            order_id=encounter.order.order_id,
            session_id=holder.row["session_id"],
            line_id=lines[0]["line_id"] if lines else None,
            service_date=encounter.date,
            time=holder.row["start"],
            minutes_at_stake=encounter.stake,
        )

    def day(self, day: Day, line: dict[str, Any], rules: RuleSet) -> None:
        """An item for each code that holds the line of a therapy day."""
        for code in line["reasons"]:
            self._item(
                code,
                line["encounter_id"],
                severity="hold" if code in rules.holds else "inform",
                patient_id=line["patient_id"],
                pump_id=line["pump_ids"][0],
                payer=line["payer"],
                order_id=line["order_id"],
                session_id=line["session_ids"][0],
                line_id=line["line_id"],
                service_date=line["service_date"],
                time=line["start"],
                minutes_at_stake=(day.row["infusing_s"] + day.row["unknown_s"]) // 60,
            )

    def unassigned(self, sessions: list[dict[str, Any]]) -> None:
        """Items for sessions that have no order."""
        for row in sessions:
            if row["order_id"] is None:
                stake = (row["infusing_s"] + row["unknown_s"]) // 60
                self._item(
                    "UNASSIGNED_PUMP", row["session_id"], pump_id=row["pump_id"], session_id=row["session_id"], time=row["start"],
                    minutes_at_stake=stake,
                )  # fmt: skip

    def cuts(self, doubts: list[dict[str, Any]], orders: Orders) -> None:
        """Items for the cuts in the logs of pumps."""
        for doubt in doubts:
            if doubt["session_id"] is None:
                own = {order.patient_id for order in orders.of_pump(doubt["pump_id"])}
                self._item(
                    doubt["code"], doubt["doubt_id"], severity="hold", pump_id=doubt["pump_id"],
                    patient_id=next(iter(own)) if len(own) == 1 else None, time=doubt["from_utc"],
                )  # fmt: skip

    def not_synced(self, orders: Iterable[Order], seen_ms: Mapping[str, int], horizon_ms: int) -> None:
        """Items for orders whose pump was not seen."""
        for order in orders:
            seen = seen_ms.get(order.pump_id)
            end = min(horizon_ms, order.stop_ms - 1) if order.stop_ms is not None else horizon_ms
            last = local_date(end, order)
            missing = (
                local_date(order.start_ms, order) if seen is None or seen < order.start_ms else local_date(seen, order) + timedelta(days=1)
            )
            if missing <= last and end >= order.start_ms:
                self._item(
                    "NOT_SYNCED", f"{order.order_id}:{order.pump_id}:{order.start_ms}", patient_id=order.patient_id, pump_id=order.pump_id,
                    payer=order.payer, order_id=order.order_id, service_date=missing, says=f" {missing} to {last}.",
                )  # fmt: skip

    def _item(self, code: str, about: str, *, severity: str = "inform", says: str = "", **columns: Any) -> None:
        message, suggestion = SAYS[code]
        item_id = identify("item", code, about)
        self.items[item_id] = {
            "minutes_at_stake": 0,
            **columns,
            "item_id": item_id,
            "code": code,
            "severity": severity,
            "message": message + says,
            "suggestion": suggestion,
            "state": "open",
        }
