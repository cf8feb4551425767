"""What a message says (docs/pump-formats.md §6): one message, one record; and `decode`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any

import msgspec
import pyarrow as pa

from devices.contract import (
    ANCHORS,
    FAULTS,
    RECORDS,
    AlarmClass,
    Capture,
    Decoded,
    Kind,
    Source,
    fault_id,
    table,
)
from devices.pcd.frames import WRONG, messages_of, segments_of
from devices.pcd.messages import Message, Reader, Seen, UnreadableError, key_of, place_of, utc_ms, zone_of
from devices.pcd.sheet import FAMILY, UNKNOWN_PUMP
from devices.pcd.terms import (
    ABOUT_DELIVERY,
    ALARM_OF_CODE,
    ALARM_WORDS,
    EVENT_OF_CODE,
    EVENTS_BY_NAME,
    ML,
    ML_H,
    PER_HOUR,
    REASONS,
    SECONDS,
    SOURCES,
    named,
)

_TOLD = {
    *("mode", "label", "drug", "concentration", "care_area", "library", "library_version", "rate", "dose_rate", "vtbi", "vtbi_remaining"),
    *("segment_volume", "total_volume", "time_programmed", "time_remaining", "dose_tbi", "dose_remaining", "segment_dose", "total_dose"),
    *("dose_limit", "max_doses_h", "lockout", "reason"),
}
"""What of a message is kept in `detail` as it was sent, with its unit."""
_TOLD_OF_ALARM = {"phase", "alarm_state", "inactivation", "priority", "alarm_type", "alarm_text", "alarm_source"}
"""What of a message about an alarm is kept, too."""

_SAYS_NOTHING = dict.fromkeys(RECORDS.names)

_json = msgspec.json.Encoder(order="sorted")
"""Writes a detail as `dump_detail` does, ten times as quick."""

_AHEAD = timedelta(minutes=1)
"""A message that was sent so long before what it tells happened has a clock that is wrong: it anchors nothing."""


Said = dict[str, Any]


def _event(message: Message) -> Said:
    """A PCD-10 message: one event."""
    conditions = message.by_word.get("event", [])
    if len(conditions) != 1:
        raise UnreadableError("event", f"it tells {len(conditions)} events, not one")
    name, code = named(conditions[0].value, message.style.component)
    known = name if name in EVENTS_BY_NAME else EVENT_OF_CODE.get(code, "")
    if not known and (ABOUT_DELIVERY in name or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name)):
        raise UnreadableError("event", "its event is not known, and may be one of delivery")
    kind = EVENTS_BY_NAME.get(known, Kind.OTHER)
    said: Said = {"kind": kind, "native_code": f"MDC_{known or name}"}
    group = _event_group(message)
    match kind:
        case Kind.DELIVERY_START:
            return said | _start(message, group)
        case Kind.DELIVERY_STOP | Kind.DELIVERY_COMPLETE:
            return said | _stop(message, group, kind)
        case Kind.SETTINGS_CHANGE:
            return said | {"lockout_s": _amount(message.find("lockout", None), SECONDS)}
        case Kind.CLOCK_CHANGE:
            return said | {"reason": "loss"}
    return said


def _event_group(message: Message) -> tuple[str, ...] | None:
    """The group (MDS.VMD.channel) that the event is of, where it is told and holds anything; else that of the active source."""
    told = message.find("event_source", None)
    if told is not None:
        group = tuple("".join(told.value.split()).split(".")[:3])
        if any(one.group == group and one.metric != "0" for one in message.seen):
            return group
    active = message.tokens("sources", "pump-source-info-")
    heads = [one.group for one in message.seen if len(active) == 1 and one.head_of is not None and one.head_of.value == active[0]]
    return heads[0] if len(heads) == 1 else None


def _source(message: Message, group: tuple[str, ...] | None) -> Source | None:
    """The source of an event; none where the message does not say. Raises UnreadableError for one that there is not."""
    head = next((one.head_of for one in message.seen if one.group == group and one.head_of is not None), None)
    active = message.tokens("sources", "pump-source-info-", group)
    if not active:
        return head
    if any(name not in SOURCES for name in active):
        raise UnreadableError("source", "its source is not known")
    if len(active) > 1 and (head is None or head.value not in active):
        raise UnreadableError("source", "it tells several sources")
    return SOURCES[active[0]] if len(active) == 1 else head


def _start(message: Message, group: tuple[str, ...] | None) -> Said:
    """A start must show that it is one, and whether it is KVO: IPEC asks for the delivery status in each."""
    status = message.tokens("status", "pump-delivery-status-", group)
    if len(status) != 1 or status[0] not in ("delivering", "kvo"):
        raise UnreadableError("status", f"it is a start and its delivery status is {status[0] if len(status) == 1 else 'not told'}")
    if message.tokens("infusing", "pump-status-", group) == ["not-infusing"]:
        raise UnreadableError("status", "it is a start and the pump does not infuse")
    source = _source(message, group) or Source.PRIMARY
    own = message.find("rate", group, strict=True)
    flow = message.find("flow", group) or own
    rate = _amount(flow, ML_H)
    vtbi = _amount(message.find("vtbi", group, strict=True), ML)
    return {
        "source": Source.KVO if status[0] == "kvo" else source,
        "rate_ml_h": _amount(own, ML_H) if rate is None else rate,
        "programmed_ml": vtbi,
        **_doses(message, group, "programmed_dose", "dose_tbi"),
    }


def _stop(message: Message, group: tuple[str, ...] | None, kind: Kind) -> Said:
    """A stop or a completion; what has no source stops whatever runs."""
    source = _source(message, group)
    if kind is Kind.DELIVERY_COMPLETE and source is None:
        raise UnreadableError("source", "it completes a delivery of no source")
    said: Said = {
        "source": source,
        "volume_ml": _amount(message.find("segment_volume", group), ML),
        **_doses(message, group, "dose", "segment_dose"),
    }
    transitioning = message.tokens("status", "pump-delivery-status-", group) == ["transitioning"]
    if kind is Kind.DELIVERY_STOP:
        reasons = message.tokens("reason", "pump-stopped-", group)
        said["reason"] = "transitioning" if transitioning else REASONS.get(reasons[0] if len(reasons) == 1 else "", "unknown")
    return said


def _amount(one: Seen | None, units: Mapping[str, float] | None) -> float | None:
    return None if one is None else one.amount(units)


def _doses(message: Message, group: tuple[str, ...] | None, column: str, word: str) -> Said:
    """An amount of drug and a rate of it, where their units agree: one column holds the unit of both."""
    amount = message.find(word, group, strict=True)
    dose, unit = _amount(amount, None), amount.unit if amount else ""
    said: Said = {column: dose, "dose_unit": unit} if dose is not None and unit else {}
    rate = message.find("dose_rate", group, strict=True)
    value = _amount(rate, None)
    what, _, per = (rate.unit if rate else "").rpartition("/")
    if value is not None and what and per.lower() in PER_HOUR and said.get("dose_unit", what) == what:
        said |= {"rate_dose_h": round(value * PER_HOUR[per.lower()], 9), "dose_unit": what}
    return said


def _alarm(message: Message) -> Said:
    """A PCD-04 message: its start, its end, or something else about it."""
    alarm = message.find("alarm", None)
    if alarm is None:
        raise UnreadableError("alarm", "it tells no alarm, or several", hole=False)
    name, code = named(alarm.value, message.style.component)
    phase = message.find("phase", None)
    told = "".join(phase.value.replace(message.style.component, "").split()).lower() if phase else ""
    kind = {"start": Kind.ALARM_RAISED, "end": Kind.ALARM_CLEARED}.get(told, Kind.OTHER)
    said: Said = {"kind": kind, "native_code": f"MDC_{name}" if name else code}
    if kind is not Kind.OTHER:
        words = (word for word in name.split("_") if word in ALARM_WORDS)
        said["alarm_class"] = ALARM_WORDS.get(next(words, ""), ALARM_OF_CODE.get(code, AlarmClass.OTHER))
    if kind is Kind.ALARM_RAISED:
        said["stops_delivery"] = False
    return said


def _snapshot(message: Message) -> Said:
    return {"kind": Kind.OTHER, "native_code": "R01"}


_READERS = {"R42": _event, "R40": _alarm, "R01": _snapshot}


def _happened(message: Message) -> datetime | None:
    """OBR-7; of an alarm the time (OBX-14) that one of its OBX gives."""
    if message.trigger == "R40":
        for word in ("alarm_source", "alarm"):
            for one in message.by_word.get(word, []):
                if one.observed.strip():
                    return message.instant(one.observed)
    return message.requested()


def _detail(message: Message, said: Said) -> str:
    detail = {"sent": message.sent.isoformat() if message.sent else ""}
    _, _, order, infusion, *_ = [*message.request, "", "", "", ""]
    for name, value in (("order", order), ("infusion", infusion), ("version", message.version)):
        if value:
            detail[name] = message.style.text(message.style.part(value, 0))
    is_alarm = message.trigger == "R40"
    for word, there in message.by_word.items():
        if len(there) > 1:
            continue
        if word in _TOLD:
            detail[word] = there[0].told
        elif is_alarm and word in _TOLD_OF_ALARM:
            detail[word] = there[0].shown
    if said["native_code"] == "R01":
        detail |= _shown(message)
    return _json.encode(detail).decode()


def _shown(message: Message) -> dict[str, str]:
    """What a snapshot shows to run: "nothing", "kvo", "delivery", or "something"; not told where several parts of the pump tell it."""
    infusing = message.tokens("infusing", "pump-status-")
    if infusing == ["not-infusing"]:
        return {"shows": "nothing"}
    if infusing != ["infusing"]:
        return {}
    told = {word.removeprefix("pump-delivery-status-") for one in message.by_word.get("status", []) for word in one.words}
    return {"shows": "delivery" if "delivering" in told else "kvo" if "kvo" in told else "something"}


def decode(capture: Capture) -> Decoded:
    """Records, faults and anchors of one capture. `seq` of a fault is the UTC instant (ms) at which it stands: messages have no number."""
    return decode_all([capture])


def decode_all(captures: Sequence[Capture]) -> Decoded:
    """Records, faults and anchors of captures of any pumps, in their order: what `decode` gives of each, in one table of a kind."""
    reader = Reader()
    rows: list[Said] = []
    faults: list[Said] = []
    for capture in captures:
        own, lost = _read(capture, reader)
        rows += own
        faults += lost
    records = _records(rows)
    return Decoded(records, table(FAULTS, faults), _anchors(records, [row["anchors"] for row in rows]))


def _read(capture: Capture, reader: Reader) -> tuple[list[Said], list[Said]]:
    """The rows of the records and of the faults of one capture."""
    zone = zone_of(capture.anchor)
    place = {"capture": capture.sha256, "part": capture.part, "pump_id": capture.pump_id, "log_epoch": 0}
    rows: list[Said] = []
    faults: list[Said] = []
    for offset, raw, wrong in messages_of(capture.data):
        try:
            if wrong:
                raise UnreadableError(wrong, WRONG[wrong])
            rows.append(_record(reader.message(raw, zone), {**place, "offset": offset}))
        except UnreadableError as error:
            own, _ = place_of(raw, zone)
            before = utc_ms(rows[-1]["pump_time"]) if rows and own is None else None
            hole = error.hole and capture.pump_id != UNKNOWN_PUMP
            told = {"code": error.code, "message": str(error), "hole": hole, "raw": segments_of(raw)[2]}
            faults.append({**place, "offset": offset, **told, "seq": own, "after_seq": before, "rows": len(rows)})
    for fault in faults:
        behind = fault.pop("rows")
        if fault["seq"] is None and behind < len(rows):
            fault["before_seq"] = utc_ms(rows[behind]["pump_time"])
        between = f"{fault['seq']}:{fault['after_seq']}:{fault.get('before_seq')}"
        fault["fault_id"] = fault_id(capture.pump_id, fault["code"], between, fault["raw"])
    return rows, faults


def _record(message: Message, stood: Said) -> Said:
    """The row of one message that stood there. Raises UnreadableError."""
    device, pump_id = message.device(), stood["pump_id"]
    if device is None and pump_id == UNKNOWN_PUMP:
        raise UnreadableError("device", "it names no pump", hole=False)
    if device is not None and f"{FAMILY}:{device}" != pump_id:
        raise UnreadableError("pump", "it is of another pump than the capture", hole=False)
    reader = _READERS.get(message.trigger)
    if reader is None or message.type == "ACK":
        raise UnreadableError("type", "it is no event, alarm or snapshot", hole=message.type != "ACK")
    said = reader(message)
    delivery = reader is _event
    if not message.control:
        raise UnreadableError("control_id", "it has no control id, so it cannot be told from its repetition", hole=delivery)
    time = _happened(message)
    if time is None:
        raise UnreadableError("time", "it has no time with second and zone", hole=delivery)
    return {
        **_SAYS_NOTHING,
        **stood,
        **said,
        "record_key": key_of(message.sender, message.control),
        "contiguous": False,
        "pump_time": time,
        "new_time": time if said["kind"] is Kind.CLOCK_CHANGE else None,
        "detail": _detail(message, said),
        "raw": message.raw,
        "anchors": message.sent is None or time - message.sent <= _AHEAD,
    }


def _records(rows: Sequence[Said]) -> pa.Table:
    """RECORDS of rows that have every field."""
    if not rows:
        return RECORDS.empty_table()
    columns = zip(*map(itemgetter(*RECORDS.names), rows), strict=True)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, RECORDS, strict=True)], schema=RECORDS)


def _anchors(records: pa.Table, which: Sequence[bool]) -> pa.Table:
    """Some of these records as the anchors that their own times are."""
    rows = records.select(["capture", "pump_id", "log_epoch", "part", "record_key", "pump_time"]).filter(pa.array(which, pa.bool_()))
    columns = dict(zip(rows.column_names, rows.columns, strict=True))
    columns["after"], columns["pump_clock"] = columns["record_key"], columns["pump_time"]
    columns["utc"] = columns["pump_time"].cast(ANCHORS.field("utc").type)
    columns["round_trip_ms"] = pa.nulls(rows.num_rows, pa.int64())
    return pa.table([columns[name] for name in ANCHORS.names], schema=ANCHORS)
