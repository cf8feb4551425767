"""The worklist: what needs a person, and what is only worth a look; one item for each code and what it is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from transforms import tables
from transforms.codes import SAYS
from transforms.decisions import ALWAYS_HOLD, ANSWERS, DECISION_LAPSED, REVIEWER_HOLD, Case, Decision
from transforms.encounters import local_date
from transforms.orders import Order, Orders
from transforms.tables import identify, rows_to_table

WORKLIST_ORDER = ("item_id",)


class Worklist:
    """Items by id: one for each code and what it is about."""

    def __init__(self, doubts: pa.Table | None = None) -> None:
        """`doubts` are asked for the deliveries without a stop."""
        self.items: dict[str, dict[str, Any]] = {}
        self._pieces: dict[str, list[dict[str, Any]]] = {}
        for doubt in doubts.filter(pc.equal(doubts["code"], "NO_STOP")).to_pylist() if doubts is not None else ():
            self._pieces[doubt["session_id"]] = doubt["pieces"]

    def table(self) -> pa.Table:
        """The WORKLIST."""
        return rows_to_table(tables.WORKLIST, list(self.items.values()), sort=WORKLIST_ORDER)

    def case(self, case: Case) -> None:
        """An item for each code of an encounter or a therapy day."""
        for code in case.codes:
            holds = code in case.holding or code in ALWAYS_HOLD
            cleared, lapsed = case.cleared.get(code), case.lapsed.get(code)
            says = f" Cleared by {_whose(cleared)}." if cleared else _no_longer(lapsed) if lapsed else ""
            does = self.stops(case.session_ids) if code == "NO_STOP" else ""
            if code == DECISION_LAPSED:
                says += "".join(_no_longer(one) for one in case.fallen)
                does = "".join(_undo(one) for one in case.fallen)
            if code == REVIEWER_HOLD:
                says += "".join(f" {_whose(one)}{': ' + one.note if one.note else ''}." for one in case.held)
                does = "".join(_undo(one) for one in case.held)
            says += "".join(f" Note of {_whose(one)}: {one.note}" for one in case.notes)
            self._item(
                code,
                case.encounter_id,
                severity="hold" if holds else "inform",
                says=says,
                does=does,
                state="decided" if cleared else "closed" if case.closed else "open",
                **{**case.about, **case.flags.get(code, {})},
            )

    def stops(self, session_ids: Iterable[str]) -> str:
        """The decisions on deliveries without a stop that their volume and rate suggest, ready to be given."""
        said = ""
        for piece in (piece for session in session_ids for piece in self._pieces.get(session, ())):
            begins, lasts = piece["from_utc"] or piece["printed"], piece["likely_ms"]
            if begins is not None and lasts is not None:
                stop = begins + timedelta(milliseconds=lasts)
                said += f" Its volume was given by then: pumpledger decide {piece['event_id']} --stop {written(stop)} --by YOU"
        return said

    def decisions(self, cases: list[Case], shaping: Iterable[Decision], lapsed: Iterable[Decision]) -> None:
        """What decisions about facts answered, and which of them, or of those about lines that are no more, no longer hold."""
        for one in shaping:
            code, case = ANSWERS[one.action], _case_of(one, cases)
            if case is not None and identify("item", code, case.encounter_id) not in self.items:
                severity = "hold" if code in case.holding else "inform"
                says = f" Decided by {_whose(one)}: {one.action} {one.argument}".rstrip() + "."
                self._item(code, case.encounter_id, severity=severity, says=says, state="decided", **case.about)
        for one in lapsed:
            case = _case_of(one, cases)
            about = case.about if case is not None else {"patient_id": one.patient_id, "pump_id": one.pump_id}
            says = _no_longer(one)
            self._item(DECISION_LAPSED, one.decision_id, says=says, does=_undo(one), **about)
            answers = ANSWERS.get(one.action)
            item = self.items.get(identify("item", answers, case.encounter_id)) if case is not None and answers is not None else None
            if item is not None:
                item["message"] += says

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

    def totals(self, checks: Iterable[Mapping[str, Any]], orders: Orders) -> None:
        """One item for each pump and date of CHECKS that disagree."""
        for (pump, day), mine in groupby(checks, key=lambda one: (one["pump_id"], one["date"])):
            own = {order.patient_id for order in orders.of_pump(pump)}
            told = "; ".join(f"{one['what']} {one['told']:.2f} {one['unit']} told, {one['summed']:.2f} summed" for one in mine)
            self._item(
                "TOTALS_DISAGREE", f"{pump}:{day}", pump_id=pump, patient_id=next(iter(own)) if len(own) == 1 else None,
                service_date=day, says=f" On {day}: {told}.",
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

    def _item(
        self, code: str, about: str, *, severity: str = "inform", says: str = "", does: str = "", state: str = "open", **columns: Any
    ) -> None:
        message, suggestion = SAYS[code]
        item_id = identify("item", code, about)
        self.items[item_id] = {
            "minutes_at_stake": 0,
            **columns,
            "item_id": item_id,
            "code": code,
            "severity": severity,
            "message": message + says,
            "suggestion": suggestion + does,
            "state": state,
        }


def written(moment: datetime) -> str:
    """A time as `decide --stop` takes it: UTC with Z; what a pump printed without."""
    text = moment.replace(tzinfo=None).isoformat(timespec="milliseconds" if moment.microsecond else "seconds")
    return text + ("Z" if moment.tzinfo else "")


def _whose(one: Decision) -> str:
    return f"{one.by}, {one.decided_at:%Y-%m-%d}"


def _no_longer(one: Decision) -> str:
    said = f"{one.action} {one.argument}".rstrip()
    return f" The decision {one.decision_id[:10]} ({_whose(one)}: {said}) no longer holds: what it was taken on has changed."


def _undo(one: Decision) -> str:
    return f" pumpledger decide undo {one.decision_id} --by YOU"


def _case_of(one: Decision, cases: list[Case]) -> Case | None:
    mine = set(one.session_ids)
    return next((case for case in cases if mine.intersection(case.session_ids)), None)
