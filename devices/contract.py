"""The contract between pumps and everything above them.

bytes (`Capture`) → `decode` → records, faults, anchors (`Decoded`) → `assemble` → the events of one pump in the order of its log (`Log`).

Both steps are pure and total: what cannot be read is a fault with its raw bytes, never an exception. Records and events
are columns (Arrow); the field names are declared once, here. The vocabulary is closed: an adapter maps into it and
invents nothing. What the kinds mean stands in docs/semantics.md §1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pyarrow as pa

from devices.errors import InputError, masked

if TYPE_CHECKING:
    from devices.dialogue import Dialogue, Identification


class Kind(StrEnum):
    """What one event says."""

    DELIVERY_START = "delivery_start"
    DELIVERY_STOP = "delivery_stop"
    DELIVERY_COMPLETE = "delivery_complete"
    RATE_CHANGE = "rate_change"
    BOLUS_REQUESTED = "bolus_requested"
    BOLUS_DELIVERED = "bolus_delivered"
    DEMAND_GRANTED = "demand_granted"
    DEMAND_DENIED = "demand_denied"
    LIMIT_REACHED = "limit_reached"
    LIMIT_CLEARED = "limit_cleared"
    PRIMING_STARTED = "priming_started"
    PRIMING_DONE = "priming_done"
    RESERVOIR_CHANGE = "reservoir_change"
    ALARM_RAISED = "alarm_raised"
    ALARM_CLEARED = "alarm_cleared"
    CLOCK_CHANGE = "clock_change"
    POWER_ON = "power_on"
    POWER_OFF = "power_off"
    NEW_PATIENT = "new_patient"
    SETTINGS_CHANGE = "settings_change"
    COUNTERS_CLEARED = "counters_cleared"
    DAILY_TOTAL = "daily_total"
    DEVICE_LINK = "device_link"
    DATA_GAP = "data_gap"
    DATA_CORRUPTION = "data_corruption"
    OTHER = "other"


HOLES = frozenset({Kind.DATA_GAP, Kind.DATA_CORRUPTION})


class Source(StrEnum):
    """Which part of a therapy delivers."""

    PRIMARY = "primary"
    SECONDARY = "secondary"
    PCA = "pca"
    LOADING = "loading"
    CLINICIAN = "clinician"
    INTERMITTENT = "intermittent"
    BASAL = "basal"
    KVO = "kvo"


class Target(StrEnum):
    """What a priming fills."""

    TUBING = "tubing"
    CANNULA = "cannula"
    UNKNOWN = "unknown"


class At(StrEnum):
    """Which instant the time of a bolus names."""

    START = "start"
    END = "end"


class AlarmClass(StrEnum):
    """Why an alarm sounds."""

    OCCLUSION = "occlusion"
    AIR = "air"
    EMPTY = "empty"
    NO_DELIVERY = "no_delivery"
    LOW_RESERVOIR = "low_reservoir"
    BATTERY = "battery"
    POWER = "power"
    CLOCK_LOST = "clock_lost"
    MALFUNCTION = "malfunction"
    LIMIT = "limit"
    OTHER = "other"


REASONS: Mapping[Kind, tuple[str, ...]] = {
    Kind.DELIVERY_STOP: (
        "unknown",
        "user",
        "alarm",
        "malfunction",
        "powered_off",
        "between_doses",
        "switching",
        "standby",
        "transitioning",
    ),
    Kind.CLOCK_CHANGE: ("set", "periodic", "loss"),
    Kind.DEMAND_DENIED: ("unknown", "lockout", "limit"),
    Kind.PRIMING_DONE: ("unknown", "amount_reached", "aborted", "error"),
}
"""The reasons that a kind may give; the first is meant where none is given."""

_TIME = pa.timestamp("ms")
_UTC = pa.timestamp("ms", "UTC")

CONTENT = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("target", pa.string()),
        pa.field("at", pa.string()),
        pa.field("alarm_class", pa.string()),
        pa.field("stops_delivery", pa.bool_()),
        pa.field("pump_time", _TIME),
        pa.field("new_time", _TIME),
        pa.field("native_ms", pa.int64()),
        pa.field("rate_ml_h", pa.float64()),
        pa.field("rate_dose_h", pa.float64()),
        pa.field("volume_ml", pa.float64()),
        pa.field("programmed_ml", pa.float64()),
        pa.field("dose", pa.float64()),
        pa.field("programmed_dose", pa.float64()),
        pa.field("dose_unit", pa.string()),
        pa.field("duration_s", pa.float64()),
        pa.field("lockout_s", pa.float64()),
        pa.field("proves", pa.string()),
        pa.field("native_code", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("raw", pa.binary(), nullable=False),
    ]
)
"""What a record says. `pump_time` naive, as printed (of a clock change: the old time; of a loss: the new one); `new_time` the
new time of a clock change; `native_ms` elapsed time that the family keeps by itself, where it does; `proves` the source that
this record shows to deliver (semantics §4, proof); `detail` JSON, "{}" where there is nothing more; `lockout_s` of a setting."""

_IDENTITY = [
    pa.field("pump_id", pa.string(), nullable=False),
    pa.field("log_epoch", pa.int32(), nullable=False),
    pa.field("record_key", pa.string(), nullable=False),
    pa.field("seq", pa.int64()),
]

_STOOD = [
    pa.field("capture", pa.string(), nullable=False),
    pa.field("part", pa.string()),
    pa.field("offset", pa.int64(), nullable=False),
]

RECORDS = pa.schema([*_STOOD, *_IDENTITY, pa.field("page", pa.string()), pa.field("contiguous", pa.bool_()), *CONTENT])
"""One row a record as decoded from one capture: where it stood (capture hash, part, byte offset or line number), what makes it
itself, the page it is of (families that have pages), whether its log's sequence numbers leave no holes, what it says."""

EVENTS = pa.schema(
    [pa.field("event_id", pa.string(), nullable=False), *_IDENTITY, *CONTENT, pa.field("conflict", pa.bool_(), nullable=False)]
)
"""One row an event of one pump, in the order of its log, holes included. Time comes later (transforms.clock)."""

FAULTS = pa.schema(
    [
        pa.field("fault_id", pa.string(), nullable=False),
        *_STOOD,
        pa.field("pump_id", pa.string(), nullable=False),
        pa.field("log_epoch", pa.int32(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("seq", pa.int64()),
        pa.field("after_seq", pa.int64()),
        pa.field("before_seq", pa.int64()),
        pa.field("hole", pa.bool_(), nullable=False),
        pa.field("raw", pa.binary(), nullable=False),
    ]
)
"""What could not be read, with its bytes. `seq` its own number where that could be read, else the numbers of the readable
neighbours in its capture; `hole` whether a record may be missing there (a broken header line hides no record)."""

ANCHORS = pa.schema(
    [
        pa.field("capture", pa.string(), nullable=False),
        pa.field("pump_id", pa.string(), nullable=False),
        pa.field("log_epoch", pa.int32(), nullable=False),
        pa.field("part", pa.string()),
        pa.field("after", pa.string()),
        pa.field("pump_clock", _TIME, nullable=False),
        pa.field("utc", _UTC, nullable=False),
        pa.field("round_trip_ms", pa.int64()),
    ]
)
"""Clock anchors: `after` is the record key behind which the clock was read (none: the family's `assemble` knows the place)."""

CHECKS = pa.schema(
    [
        pa.field("pump_id", pa.string(), nullable=False),
        pa.field("date", pa.date32(), nullable=False),
        pa.field("what", pa.string(), nullable=False),
        pa.field("told", pa.float64(), nullable=False),
        pa.field("summed", pa.float64(), nullable=False),
        pa.field("unit", pa.string(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
    ]
)
"""What a pump itself says that it gave on a day of its clock (`told`, by the event of this id), beside what the records of that day
add up to (`summed`); `what` names the part, such as bolus or basal. They should be equal but for rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """The pump's clock (naive, as it prints) and the host's UTC clock, read in the same breath."""

    pump_clock: datetime
    utc: datetime
    round_trip_ms: int | None = None
    after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """Bytes as received in one go, and what makes them this capture and no other."""

    data: bytes
    family: str
    pump_id: str
    model: str | None = None
    part: str | None = None
    anchor: Anchor | None = None

    @property
    def sha256(self) -> str:
        """Its identity: SHA-256 of bytes, family, pump, model, part and anchor (docs/design.md §1)."""
        anchor = self.anchor
        head = [
            hashlib.sha256(self.data).hexdigest(),
            self.family,
            self.pump_id,
            self.model,
            self.part,
            anchor and [anchor.pump_clock.isoformat(), anchor.utc.isoformat(), anchor.round_trip_ms, anchor.after],
        ]
        return hashlib.sha256(json.dumps(head, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureHead:
    """What the store remembers of a capture for ever, also when its bytes have gone to the lake: enough to know where to go on."""

    sha256: str
    data_sha256: str
    size: int
    family: str
    pump_id: str
    model: str | None
    part: str | None


class Decoded(NamedTuple):
    """What one capture gave, or several together: RECORDS, FAULTS, ANCHORS."""

    records: pa.Table
    faults: pa.Table
    anchors: pa.Table


@dataclass(frozen=True, slots=True)
class PlacedAnchor:
    """An anchor at its place: `after` is the row of `Log.events` behind which the clock was read."""

    after: int
    pump_clock_ms: int
    utc_ms: int
    round_trip_ms: int | None


@dataclass(frozen=True, slots=True)
class Log:
    """The log of one pump, from all its captures.

    `events` (EVENTS) in log order; `event_of_record` gives for each row of the records that went in the event it became or
    repeats; `gaps_visible` whether the log can show
    that a record is missing.
    """

    events: pa.Table
    anchors: tuple[PlacedAnchor, ...]
    event_of_record: pa.Array
    gaps_visible: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """What a family's log tells and does not: the capability page in docs/pumps is printed from it."""

    family: str
    title: str
    models: str
    transport: str
    source: str
    identity: str
    elapsed: str
    gaps_visible: bool
    prime_targets: bool
    demands: bool
    limits: bool
    proof: str
    tells: Mapping[str, str] = field(default_factory=dict)
    does_not_tell: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class Adapter(Protocol):
    """What the module of a family provides. `download` and `hello` only where the pump is asked, `split` where captures can be large.

    `decode_all` where many small captures are quicker read together, `cross_check` where the log tells totals of its own.
    """

    SHEET: Sheet

    def recognise(self, name: str, data: bytes) -> bool:
        """Whether a file can be of this family (`load` without `--family`)."""

    def read_files(
        self, files: Sequence[tuple[str, bytes]], *, pump_id: str | None, model: str | None, anchor: Anchor | None
    ) -> list[Capture]:
        """The captures of files that were given together: (name, bytes). Raises InputError where they name no pump."""

    def decode(self, capture: Capture) -> Decoded:
        """Records, faults and anchors of one capture alone. Total: never raises on bytes."""

    def decode_all(self, captures: Sequence[Capture]) -> Decoded:
        """Optional: what `decode` gives of each of these captures, joined in their order. Total as `decode` is."""

    def assemble(self, pump_id: str, records: pa.Table, faults: pa.Table, anchors: pa.Table) -> Log:
        """The events of one pump from all that was decoded, in any order and however often repeated."""

    def cross_check(self, events: pa.Table) -> pa.Table:
        """Optional: CHECKS of the EVENTS that `assemble` gave: only of days that the log covers whole. Total: never raises on events."""

    def download(self, pump_id: str, known: Iterable[CaptureHead], *, model: str | None = None) -> Dialogue:
        """The reading dialogue that fetches what is not known yet; `model` where the pump does not tell it.

        Where the pump tells which one it is, and that is not `pump_id`, the dialogue raises PumpError with code `other_pump`.
        """

    def identify(self) -> Identification:
        """Optional, where a pump can tell its serial number: the dialogue that asks which one it is, as `family:serial`."""

    def split(self, capture: Capture, size: int) -> list[Capture]:
        """Optional: the capture as captures of at most `size` bytes each, cut at its records, pages or messages alone.

        Together they decode and assemble to what it does; each has its pump, model and part, and the anchor where that belongs. One
        that fits is given as itself. Raises InputError where a record alone is larger, or a cut would change what is read.
        """


def event_id(pump_id: str, record_key: str) -> str:
    """The id of the event that a record is: 20 hex digits of SHA-256 over pump and record key."""
    return hashlib.sha256(f"{pump_id}\n{record_key}".encode()).hexdigest()[:20]


def dump_detail(detail: Mapping[str, Any]) -> str:
    """JSON of a detail, with sorted keys, so that equal details are equal text."""
    return json.dumps(detail, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Event:
    """A row of RECORDS or EVENTS as an object, for people and tests; fields that a table lacks are None."""

    fields: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.fields[name]
        except KeyError:
            raise AttributeError(name) from None


def views(table: pa.Table) -> list[Event]:
    """The rows of a table as `Event` views."""
    return [Event(row) for row in table.to_pylist()]


def anchor_row(capture: Capture, anchor: Anchor, after: str | None, *, sha256: str | None = None, log_epoch: int = 0) -> dict[str, Any]:
    """The row of ANCHORS of an anchor that a capture tells; `sha256` where the capture's is at hand."""
    return {
        "capture": capture.sha256 if sha256 is None else sha256,
        "pump_id": capture.pump_id,
        "log_epoch": log_epoch,
        "part": capture.part,
        "after": after,
        "pump_clock": anchor.pump_clock,
        "utc": anchor.utc.astimezone(UTC),
        "round_trip_ms": anchor.round_trip_ms,
    }


def fault_id(pump_id: str, code: str, place: str, raw: bytes) -> str:
    """The id of a fault: what was unreadable, and where, not how often it was read."""
    head = f"{pump_id}\n{code}\n{place}\n".encode()
    return hashlib.sha256(head + raw).hexdigest()[:20]


def joined(decoded: Iterable[Decoded]) -> Decoded:
    """What several captures gave, in their order, as `assemble` takes it; of none, empty tables."""
    return Decoded(*(pa.concat_tables(tables) for tables in zip(_NOTHING, *decoded, strict=True)))


_NOTHING = Decoded(*(schema.empty_table() for schema in (RECORDS, FAULTS, ANCHORS)))


def parted(capture: Capture, size: int, borders: Iterable[int], decode: Callable[[Capture], Decoded]) -> list[Capture]:
    """For `Adapter.split`: the capture cut at as few of these borders (offsets in its bytes) as make parts of at most `size` bytes.

    Raises InputError where a part between two borders is larger, or the parts would not be read as the whole is.
    """
    end = len(capture.data)
    if end <= size:
        return [capture]
    cuts = sorted({border for border in borders if 0 < border < end} | {end})
    parts: list[Capture] = []
    start = 0
    for here, following in zip(cuts, [*cuts[1:], None], strict=True):
        if following is None or following - start > size:
            parts.append(replace(capture, data=capture.data[start:here]))
            start = here
    largest = max(len(part.data) for part in parts)
    if largest > size or _said(decode(capture)) != _said(joined(map(decode, parts))):
        raise InputError(
            f"A capture of {masked(capture.pump_id)} has {end} bytes and cannot be split into captures of {size}.",
            why=f"A piece of {largest} bytes must stay whole." if largest > size else "What is damaged in it would be read in another way.",
            do="Load the file on the hub's machine with `pumpledger load`.",
            code="too_large",
        )
    return parts


def _said(decoded: Decoded) -> list[Any]:
    """What was decoded, wherever it stood in which capture, to be compared; one anchor may be told by several captures."""
    records, faults, anchors = (one.drop_columns([name for name in ("capture", "offset") if name in one.column_names]) for one in decoded)
    return [records, faults, {tuple(row.items()) for row in anchors.to_pylist()}]


def table(schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table of this schema; a field that a row lacks is null."""
    if not rows:
        return schema.empty_table()
    return pa.table({f.name: pa.array([row.get(f.name) for row in rows], f.type) for f in schema}, schema=schema)
